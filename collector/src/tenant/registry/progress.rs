//! How far one lane of an agent is delivered, and what its agent claims of it.

use sumun_proto::v1::LaneState;

/// Claims of a lane whose batches have not all arrived; the oldest is given up
/// for a newer one beyond this, which only makes the watermark later.
const CLAIMS_MAX: usize = 64;
/// Epochs of a lane whose progress is remembered for claims.
const EPOCHS_KEPT: usize = 4;

/// A point of a lane: delivered up to here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The boot that the time belongs to.
    pub boot_id: Vec<u8>,
    /// Boot-time clock, ns.
    pub boot_ns: u64,
    /// The same in wall clock, ns since the Unix epoch.
    pub wall_ns: i64,
}

#[derive(Debug, Default)]
pub(super) struct LaneProgress {
    pub(super) mark: Mark,
    /// Highest number delivered by epoch, of the newest few epochs.
    delivered: Vec<(u64, u64)>,
    /// What heartbeats said of batches that had not all arrived; oldest first.
    claims: Vec<Claim>,
    pub(super) spooled_batches: u64,
    pub(super) spooled_bytes: u64,
    pub(super) spooled_events: u64,
}

#[derive(Debug)]
struct Claim {
    epoch: u64,
    number: u64,
    mark: Mark,
}

impl LaneProgress {
    pub(super) fn deliver(&mut self, epoch: u64, number: u64, mark: Option<Mark>) {
        match self.delivered.iter_mut().find(|(known, _)| *known == epoch) {
            Some((_, high)) => *high = number.max(*high),
            None => {
                if self.delivered.len() == EPOCHS_KEPT {
                    self.delivered.remove(0);
                }
                self.delivered.push((epoch, number));
            }
        }
        if let Some(mark) = mark {
            self.advance(mark);
        }
        self.settle();
    }

    pub(super) fn claim(&mut self, state: &LaneState, mark: Mark) {
        self.spooled_batches = state.spooled_batches;
        self.spooled_bytes = state.spooled_bytes;
        self.spooled_events = state.spooled_events;
        if state.through_boot_ns == 0 {
            return;
        }
        if state.number == 0 {
            // Nothing written in this epoch: what counts is what older epochs left.
            if state.spooled_batches == 0 {
                self.claims.clear();
                self.advance(mark);
            }
            return;
        }
        if self.claims.len() == CLAIMS_MAX {
            // Settling goes oldest first, so dropping from the middle of the
            // backlog keeps both the next step and the newest word.
            self.claims.remove(CLAIMS_MAX / 2);
        }
        self.claims.push(Claim {
            epoch: state.epoch,
            number: state.number,
            mark,
        });
        self.settle();
    }

    /// A lane is delivered in order, across epochs too: if the number is
    /// there, so is everything older.
    fn settle(&mut self) {
        let settled = self.claims.iter().rposition(|claim| {
            self.delivered
                .iter()
                .any(|(epoch, high)| *epoch == claim.epoch && *high >= claim.number)
        });
        if let Some(last) = settled {
            let marks: Vec<Mark> = self.claims.drain(..=last).map(|claim| claim.mark).collect();
            for mark in marks {
                self.advance(mark);
            }
        }
    }

    /// Time goes forward within a boot. Its wall clock may be set back, and
    /// then the newer word counts: earlier times may still come.
    fn advance(&mut self, mark: Mark) {
        if mark.boot_id != self.mark.boot_id || mark.boot_ns >= self.mark.boot_ns {
            self.mark = mark;
        }
    }
}

#[cfg(test)]
mod tests {
    use sumun_proto::v1::Lane;

    use super::*;

    fn state(epoch: u64, number: u64, through: u64, spooled: u64) -> LaneState {
        LaneState {
            lane: Lane::Life as i32,
            through_boot_ns: through,
            epoch,
            number,
            spooled_batches: spooled,
            ..LaneState::default()
        }
    }

    fn mark(boot_ns: u64) -> Mark {
        Mark {
            boot_id: vec![1; 16],
            boot_ns,
            wall_ns: boot_ns.cast_signed() + 1000,
        }
    }

    #[test]
    fn a_claim_counts_once_its_batches_are_here() {
        let mut lane = LaneProgress::default();
        lane.claim(&state(7, 2, 50, 2), mark(50));
        assert_eq!(lane.mark.boot_ns, 0);
        lane.deliver(7, 1, None);
        assert_eq!(lane.mark.boot_ns, 0);
        lane.deliver(7, 2, None);
        assert_eq!(lane.mark.wall_ns, 1050);
        assert!(lane.claims.is_empty());
    }

    #[test]
    fn an_epoch_without_batches_says_something_only_if_nothing_older_is_spooled() {
        let mut lane = LaneProgress::default();
        lane.claim(&state(8, 0, 50, 3), mark(50));
        assert_eq!(lane.mark.boot_ns, 0);
        lane.claim(&state(8, 0, 60, 0), mark(60));
        assert_eq!(lane.mark.boot_ns, 60);
    }

    #[test]
    fn a_late_batch_does_not_take_a_watermark_back() {
        let mut lane = LaneProgress::default();
        lane.deliver(7, 1, Some(mark(90)));
        lane.deliver(7, 2, Some(mark(80)));
        assert_eq!(lane.mark.boot_ns, 90);
    }

    #[test]
    fn claims_are_bounded_and_the_newest_is_kept() {
        let mut lane = LaneProgress::default();
        for number in 1..=1000 {
            lane.claim(&state(7, number, number, number), mark(number));
        }
        assert_eq!(lane.claims.len(), CLAIMS_MAX);
        lane.deliver(7, 1000, None);
        assert_eq!(lane.mark.boot_ns, 1000);
    }
}
