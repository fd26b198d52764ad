//! When to try again.

use std::time::{Duration, Instant};

use rand::Rng as _;

/// First wait, before jitter.
const FIRST: Duration = Duration::from_millis(200);
/// Longest wait while the collector has been away for less than a minute.
const SOON_MAX: Duration = Duration::from_secs(2);
/// Longest wait after that.
const LATE_MAX: Duration = Duration::from_secs(30);
/// How long "soon" is.
const SOON: Duration = Duration::from_secs(60);

/// Waits that double, with jitter, from the first failure on.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    since: Option<Instant>,
    tries: u32,
}

impl Backoff {
    /// The next wait.
    pub(crate) fn next(&mut self, now: Instant) -> Duration {
        let since = *self.since.get_or_insert(now);
        let most = if now.saturating_duration_since(since) < SOON {
            SOON_MAX
        } else {
            LATE_MAX
        };
        let wait = FIRST.saturating_mul(1 << self.tries.min(16)).min(most);
        self.tries = self.tries.saturating_add(1);
        // Anywhere in the upper half: hosts that lost their collector together come back apart.
        wait.mul_f64(rand::rng().random_range(0.5..1.0))
    }

    /// A connection held: the next failure starts anew.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_below_two_seconds_for_a_minute_and_then_grow_to_thirty() {
        let start = Instant::now();
        let mut backoff = Backoff::default();
        let early: Vec<_> = (0..20)
            .map(|_| backoff.next(start + Duration::from_secs(59)))
            .collect();
        assert!(
            early[0] < FIRST && early.iter().all(|wait| *wait < SOON_MAX),
            "{early:?}"
        );
        assert!(early[19] >= SOON_MAX / 2);
        let late = backoff.next(start + Duration::from_secs(59) + SOON);
        assert!(late >= LATE_MAX / 2 && late < LATE_MAX, "{late:?}");
        backoff.reset();
        assert!(backoff.next(start) < FIRST);
    }
}
