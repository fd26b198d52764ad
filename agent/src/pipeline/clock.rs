//! Boot time and wall time.
//!
//! Records carry boot time; the wall clock is boot time plus an offset. The
//! offset in use moves only when it is more than a millisecond off, so that
//! times within a host keep the order of their boot times while a clock is
//! slewed; a step of more than 100 ms is a record of its own.

use nix::time::{ClockId, clock_gettime};
use sumun_proto::v1::ClockStep;

/// The offset is left alone while it is right to this, ns.
const KEEP_NS: i64 = 1_000_000;
/// A change of more than this is reported, ns.
const STEP_NS: i64 = 100_000_000;

/// The host's clocks.
#[derive(Debug)]
pub struct Clock {
    offset_ns: i64,
}

impl Clock {
    /// Reads both clocks.
    ///
    /// # Errors
    /// When the kernel has no such clock.
    pub fn new() -> nix::Result<Self> {
        Ok(Self {
            offset_ns: measure()?,
        })
    }

    /// Wall time minus boot time, ns.
    #[must_use]
    pub fn offset_ns(&self) -> i64 {
        self.offset_ns
    }

    /// Looks again; a step when the wall clock was set.
    pub fn refresh(&mut self) -> Option<ClockStep> {
        let (offset, now) = (measure().ok()?, boot_ns().ok()?);
        let moved = offset.wrapping_sub(self.offset_ns);
        if moved.abs() <= KEEP_NS {
            return None;
        }
        self.offset_ns = offset;
        (moved.abs() > STEP_NS).then_some(ClockStep {
            at_boot_ns: now,
            step_ns: moved,
        })
    }
}

/// Nanoseconds since boot, suspended time included: the clock of kernel records.
///
/// # Errors
/// When the kernel has no such clock.
pub fn boot_ns() -> nix::Result<u64> {
    read(ClockId::CLOCK_BOOTTIME).map(i64::cast_unsigned)
}

fn measure() -> nix::Result<i64> {
    // Between two readings of one clock the other is read: the closest of a
    // few tries is good to well under a microsecond, whatever interrupts it.
    let mut best = (i64::MAX, 0);
    for _ in 0..5 {
        let before = read(ClockId::CLOCK_BOOTTIME)?;
        let wall = read(ClockId::CLOCK_REALTIME)?;
        let after = read(ClockId::CLOCK_BOOTTIME)?;
        let spread = after - before;
        if spread < best.0 {
            best = (spread, wall - before - spread / 2);
        }
    }
    Ok(best.1)
}

fn read(clock: ClockId) -> nix::Result<i64> {
    let time = clock_gettime(clock)?;
    Ok(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unmoved_clock_reports_nothing() {
        let mut clock = Clock::new().expect("clocks");
        let offset = clock.offset_ns();
        assert_eq!(clock.refresh(), None);
        assert_eq!(clock.offset_ns(), offset);
    }

    #[test]
    fn a_step_is_reported_once() {
        let mut clock = Clock::new().expect("clocks");
        clock.offset_ns -= 5_000_000_000;
        let step = clock.refresh().expect("a step");
        assert!((step.step_ns - 5_000_000_000).abs() < 10_000_000);
        assert_eq!(clock.refresh(), None);
    }
}
