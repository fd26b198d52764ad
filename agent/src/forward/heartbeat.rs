//! What a stream says about its lanes.

use sumun_proto::v1::{Goodbye, Heartbeat, Hello, Lane, LaneState, LoadedPolicies};

use crate::pipeline::clock;
use crate::status::{Status, lane_index};

/// The first message of a stream.
pub(super) fn hello(status: &Status, lanes: &[Lane]) -> Hello {
    Hello {
        host_name: status.run.host_name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: status.run.boot_id.to_vec(),
        lanes: lanes.iter().map(|lane| (*lane).into()).collect(),
        kernel: status.run.kernel.clone(),
        doors: status.parts().doors,
    }
}

/// `None` while the pipeline has not said what time it is: a heartbeat is a
/// promise about times.
pub(super) fn heartbeat(
    status: &Status,
    lanes: &[Lane],
    policies: Option<LoadedPolicies>,
) -> Option<Heartbeat> {
    let progress = &status.progress;
    // The watermarks are read before the losses, so a loss that a heartbeat does
    // not hold yet is not below a watermark that it does.
    let lanes = states(status, lanes);
    let wall_offset_ns = progress.wall_offset_ns();
    (wall_offset_ns != 0).then(|| Heartbeat {
        boot_ns: clock::boot_ns().unwrap_or_default(),
        wall_offset_ns,
        boot_id: status.run.boot_id.to_vec(),
        lanes,
        losses: progress.losses(),
        attached: progress.attached(),
        bootstrapped: progress.bootstrapped(),
        trouble: status.trouble_text(),
        policies,
        isolation: status.isolation(),
    })
}

/// The last message of a stream of an agent that stops.
pub(super) fn goodbye(status: &Status, lanes: &[Lane]) -> Goodbye {
    Goodbye {
        reason: "stopped".to_owned(),
        lanes: states(status, lanes),
        boot_ns: clock::boot_ns().unwrap_or_default(),
        wall_offset_ns: status.progress.wall_offset_ns(),
    }
}

fn states(status: &Status, lanes: &[Lane]) -> Vec<LaneState> {
    let progress = status.lanes();
    lanes
        .iter()
        .filter_map(|lane| {
            let state = progress[lane_index(*lane)?];
            Some(LaneState {
                lane: (*lane).into(),
                through_boot_ns: state.through_boot_ns,
                epoch: state.epoch,
                number: state.number,
                spooled_batches: state.spooled_batches,
                spooled_bytes: state.spooled_bytes,
                spooled_events: state.spooled_events,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Run;

    #[test]
    fn a_heartbeat_is_of_its_lanes_and_waits_for_the_clock() {
        let status = Status::new(Run::default());
        status.progress.written(Lane::Bulk, 5, 2, 100);
        assert_eq!(heartbeat(&status, &[Lane::Bulk], None), None);
        status.progress.set_wall_offset_ns(7);
        let beat = heartbeat(&status, &[Lane::Life, Lane::Bulk], None).expect("the clock is known");
        assert_eq!(beat.lanes.len(), 2);
        assert_eq!(
            (beat.lanes[1].number, beat.lanes[1].through_boot_ns),
            (2, 100)
        );
        assert!(beat.boot_ns > 0);
    }
}
