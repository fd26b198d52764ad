//! Clocks, and keeping a rate.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot, the clock of `boot_ns` in events.
#[must_use]
pub fn boot_ns() -> u64 {
    now(ClockId::CLOCK_BOOTTIME)
}

/// Nanoseconds since the Unix epoch.
#[must_use]
pub fn unix_ns() -> u64 {
    now(ClockId::CLOCK_REALTIME)
}

fn now(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("Linux has had these clocks since 2.6.39");
    u64::try_from(time.tv_sec()).expect("after 1970") * 1_000_000_000
        + u64::try_from(time.tv_nsec()).expect("nanoseconds are not negative")
}

/// RFC 3339 in UTC with nanoseconds, as `--since` and `--until` take it.
#[must_use]
pub fn rfc3339(unix_ns: u64) -> String {
    let time = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ns))
        .expect("times of this century fit");
    time.format(&time::format_description::well_known::Rfc3339)
        .expect("UTC has an RFC 3339 form")
}

/// Keeps a rate against an absolute plan, so that a pause is caught up with.
#[derive(Debug)]
pub struct Pace {
    begun: Instant,
    per_second: u64,
    done: u64,
}

impl Pace {
    /// `per_second` 0 means as fast as possible.
    #[must_use]
    pub fn new(per_second: u64) -> Self {
        Self {
            begun: Instant::now(),
            per_second,
            done: 0,
        }
    }

    /// Waits until the next piece of work is due.
    pub fn wait(&mut self) {
        self.done += 1;
        if self.per_second == 0 {
            return;
        }
        let due = Duration::from_nanos(self.done.saturating_mul(1_000_000_000) / self.per_second);
        let early = due.saturating_sub(self.begun.elapsed());
        // Shorter sleeps cost more than they give: go ahead by up to a millisecond.
        if early > Duration::from_millis(1) {
            std::thread::sleep(early);
        }
    }
}
