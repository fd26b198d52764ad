//! Whether the writer of the log goes on: what systemd's watchdog is fed by.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What the writer last did. Clones are handles to the same.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    steps: AtomicU64,
    waits: AtomicUsize,
}

impl Pulse {
    /// The writer has done something, tried again, or found nothing to do.
    pub(crate) fn step(&self) {
        self.0.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Until what is returned is dropped the writer waits for the lake, which may be away for long and is tried again and again:
    /// a restart would not bring it back.
    pub(crate) fn waits(&self) -> Waits {
        self.0.waits.fetch_add(1, Ordering::Relaxed);
        Waits(self.clone())
    }

    /// Whether it has gone on since it was asked last, or need not.
    #[must_use]
    pub fn goes_on(&self, before: &mut Option<u64>) -> bool {
        let steps = self.0.steps.load(Ordering::Relaxed);
        before.replace(steps) != Some(steps) || self.0.waits.load(Ordering::Relaxed) > 0
    }
}

/// Ends the wait when it is dropped, a panic included.
#[derive(Debug)]
pub(crate) struct Waits(Pulse);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.0.waits.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_that_stands_still_is_told_from_one_that_waits() {
        let (pulse, mut before) = (Pulse::default(), None);
        assert!(pulse.goes_on(&mut before));
        assert!(!pulse.goes_on(&mut before));
        pulse.step();
        assert!(pulse.goes_on(&mut before));
        let waits = pulse.waits();
        assert!(pulse.goes_on(&mut before));
        assert!(pulse.goes_on(&mut before));
        drop(waits);
        assert!(!pulse.goes_on(&mut before));
    }

    #[test]
    fn a_writer_that_panicked_waits_for_nothing() {
        let (pulse, mut before) = (Pulse::default(), None);
        assert!(pulse.goes_on(&mut before));
        let waiting = pulse.clone();
        let ended = std::thread::spawn(move || {
            let _waits = waiting.waits();
            std::panic::resume_unwind(Box::new("as a panic"));
        });
        assert!(ended.join().is_err());
        assert!(!pulse.goes_on(&mut before));
    }
}
