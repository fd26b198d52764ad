//! What has been sent on a stream and is not yet answered.

use std::collections::VecDeque;

use sumun_proto::v1::{Delivery, Lane};

/// Batches that are out, in the order they were sent. It is the spool that bounds
/// them, to `sumun_proto::WINDOW` and a number of bytes a lane: it hands out no more.
#[derive(Debug, Default)]
pub(super) struct Window {
    out: VecDeque<Sent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    lane: Lane,
    epoch: u64,
    number: u64,
}

impl Window {
    /// Nothing is out.
    pub(super) fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// A batch has been sent.
    pub(super) fn sent(&mut self, delivery: &Delivery) {
        self.out.push_back(Sent {
            lane: delivery.lane(),
            epoch: delivery.epoch,
            number: delivery.number,
        });
    }

    /// The collector has everything of this epoch and lane up to `number`: takes
    /// these out and returns how many they were.
    pub(super) fn acknowledged(&mut self, lane: Lane, epoch: u64, number: u64) -> usize {
        self.take(|sent| sent.lane == lane && sent.epoch == epoch && sent.number <= number)
    }

    /// The collector will never take this batch. False when it was not out.
    pub(super) fn refused(&mut self, lane: Lane, epoch: u64, number: u64) -> bool {
        self.take(|sent| (sent.lane, sent.epoch, sent.number) == (lane, epoch, number)) > 0
    }

    fn take(&mut self, is_done: impl Fn(&Sent) -> bool) -> usize {
        let before = self.out.len();
        self.out.retain(|sent| !is_done(sent));
        before - self.out.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(window: &mut Window, lane: Lane, epoch: u64, number: u64) {
        window.sent(&Delivery {
            lane: lane.into(),
            epoch,
            number,
            ..Delivery::default()
        });
    }

    #[test]
    fn an_answer_is_of_its_epoch_and_lane_only() {
        let mut window = Window::default();
        sent(&mut window, Lane::Bulk, 1, 8);
        sent(&mut window, Lane::Bulk, 1, 9);
        sent(&mut window, Lane::Bulk, 2, 1);
        sent(&mut window, Lane::Life, 2, 1);
        assert_eq!(window.acknowledged(Lane::Bulk, 2, 5), 1);
        assert_eq!(window.acknowledged(Lane::Bulk, 1, 9), 2);
        assert_eq!(window.acknowledged(Lane::Bulk, 1, 9), 0);
        assert!(!window.is_empty());
        assert!(!window.refused(Lane::Life, 2, 2));
        assert!(window.refused(Lane::Life, 2, 1));
        assert!(window.is_empty());
    }
}
