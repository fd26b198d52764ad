//! What `/proc/PID/stat` says of a process: whether it is still the one that a record names, and what it is.

use std::io::{self, Read as _};

use super::folder;

/// `PF_EXITING` and `PF_KTHREAD` of `include/linux/sched.h`.
const EXITING: u64 = 0x4;
const KTHREAD: u64 = 0x0020_0000;

/// A process, or one of its threads, at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    state: u8,
    parent: u32,
    flags: u64,
    start_ticks: u64,
    stack: u64,
}

impl Stat {
    /// Of a process; `None` when there is none of that number.
    ///
    /// # Errors
    /// The file cannot be read or has another form, or a mount lies over it.
    pub fn of(pid: u32) -> io::Result<Option<Self>> {
        Self::read(pid, "stat")
    }

    /// Of a thread of a process; `None` when it has none of that number.
    ///
    /// # Errors
    /// As [`Stat::of`].
    pub fn of_thread(pid: u32, tid: u32) -> io::Result<Option<Self>> {
        Self::read(pid, &format!("task/{tid}/stat"))
    }

    fn read(pid: u32, path: &str) -> io::Result<Option<Self>> {
        let mut text = Vec::new();
        let read = folder::open(pid, path).and_then(|mut file| file.read_to_end(&mut text));
        match read {
            Ok(_) => {}
            Err(error) if folder::is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        Self::parse(&text)
            .map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it has another form"))
    }

    /// The name stands in brackets and is the process's own choice: any bytes, brackets too.
    fn parse(text: &[u8]) -> Option<Self> {
        let name_end = text.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(text.get(name_end + 1..)?).ok()?;
        // From the third field on, the state.
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        let flags = fields.nth(4)?.parse().ok()?;
        let start_ticks = fields.nth(12)?.parse().ok()?;
        let stack = fields.nth(5).and_then(|word| word.parse().ok());
        Some(Self {
            state,
            parent,
            flags,
            start_ticks,
            stack: stack.unwrap_or(0),
        })
    }

    /// Whether it began at this time, ns since boot, as far as the clock tick of this file tells.
    #[must_use]
    pub fn began_at(self, start_ns: u64) -> bool {
        tick_ns().is_some_and(|tick_ns| self.start_ticks == start_ns / tick_ns)
    }

    /// When it began, ns since boot, rounded down to the clock tick of this file.
    #[must_use]
    pub fn start_ns(self) -> u64 {
        self.start_ticks.saturating_mul(tick_ns().unwrap_or(0))
    }

    /// Number of the process that is its parent now; 0: none here.
    #[must_use]
    pub fn parent(self) -> u32 {
        self.parent
    }

    /// Whether it came from another by a fork and has executed nothing since: each exec gives a stack at another
    /// address, which a fork inherits, and which is told to nobody who may not look into the process.
    #[must_use]
    pub fn is_fork_of(self, other: Self) -> bool {
        self.stack != 0 && self.stack == other.stack
    }

    /// It does nothing until it is told to go on: stopped, or stopped by a debugger.
    #[must_use]
    pub fn is_stopped(self) -> bool {
        matches!(self.state, b'T' | b't')
    }

    /// It waits for a device, and for nothing else.
    #[must_use]
    pub fn is_stuck(self) -> bool {
        self.state == b'D'
    }

    /// It belongs to the kernel.
    #[must_use]
    pub fn is_kernel_thread(self) -> bool {
        self.flags & KTHREAD != 0
    }

    /// It has ended or is about to: it may have given up its files.
    #[must_use]
    pub fn is_exiting(self) -> bool {
        self.flags & EXITING != 0
    }
}

fn tick_ns() -> Option<u64> {
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let hertz = u64::try_from(hertz).ok().filter(|hertz| *hertz > 0)?;
    Some(1_000_000_000 / hertz)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Start of a process, ns since boot, rounded down to a tick.
    pub(crate) fn start_ns(pid: u32) -> u64 {
        let stat = Stat::of(pid).expect("stat").expect("a process");
        stat.start_ticks * tick_ns().expect("a tick")
    }

    #[test]
    fn a_name_cannot_forge_the_rest() {
        let rest = "S 1 2 3 4 5 4194560 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21 22 23 24 77 26";
        for name in [&b"sh"[..], b"a) R 9 9 9 9 9 9 (", b"\xff)\xfe", b""] {
            let text = [b"12 (", name, b") ", rest.as_bytes()].concat();
            let stat = Stat::parse(&text).expect("a form that is known");
            assert_eq!((stat.flags, stat.start_ticks), (4_194_560, 4711));
            assert_eq!((stat.parent(), stat.stack), (1, 77));
            assert!(!stat.is_kernel_thread() && !stat.is_exiting());
        }
        for text in [&b""[..], b"12 (sh", b"12 (sh) S 1 2", b"12 (sh) \xff"] {
            assert_eq!(Stat::parse(text), None);
        }
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        let own = std::process::id();
        let stat = Stat::of(own).expect("stat").expect("this process");
        let start_ns = start_ns(own);
        assert!(stat.began_at(start_ns) && stat.began_at(start_ns + 1));
        assert!(!stat.began_at(start_ns + 10_000_000) && !stat.began_at(start_ns - 1));
        assert!(!stat.is_kernel_thread());
        assert_eq!(Stat::of(u32::MAX).expect("no such file"), None);
        let thread = Stat::of_thread(own, nix::unistd::gettid().as_raw().cast_unsigned());
        assert!(!thread.expect("stat").expect("this thread").is_exiting());
        let kthreadd = Stat::of(2).ok().flatten();
        assert!(kthreadd.is_none_or(Stat::is_kernel_thread));
    }
}
