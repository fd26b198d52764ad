//! Who waits in a call that is held, and what the call asks for: from `/proc`, while the thread waits. What it
//! reads there is the kernel's own, not what the process could write.

use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;

use sumun_abi::event::file::{
    ACCESS_APPEND, ACCESS_READ, ACCESS_UNKNOWN, ACCESS_WRITE, OPEN_TRUNCATE, OPEN_TRUNCATE_UNKNOWN,
};
use sumun_proto::text;

use crate::enforce::guard::DELETED;
use crate::kernel::folder;
use crate::kernel::known::known;
use crate::kernel::stat::Stat;

/// The one that waits.
#[derive(Debug)]
pub(super) struct Opener {
    pub pid: u32,
    pub stat: Stat,
    /// Real and effective ids: uid, gid, euid, egid.
    pub ids: [u32; 4],
    /// Effective capabilities, bit n is capability n.
    pub cap_effective: u64,
    /// `None`: not known.
    pub exe: Option<String>,
}

impl Opener {
    /// Of a thread.
    ///
    /// # Errors
    /// `/proc` does not say.
    pub(super) fn of(tid: u32) -> Result<Self, String> {
        let path = format!("/proc/{tid}/status");
        let mut status = Vec::new();
        folder::open(tid, "status")
            .and_then(|mut file| file.read_to_end(&mut status))
            .map_err(|error| format!("cannot read {path}: {error}"))?;
        let bad = || format!("{path} has another form");
        // The name stands in the first line and is the process's own choice, but for line ends.
        let field = |name: &[u8]| {
            let mut lines = status.split(|byte| *byte == b'\n');
            let line = lines.find_map(|line| line.strip_prefix(name))?;
            std::str::from_utf8(line).ok()
        };
        let ids = |name: &[u8]| {
            let mut numbers = field(name)?.split_ascii_whitespace().map(str::parse::<u32>);
            Some([numbers.next()?.ok()?, numbers.next()?.ok()?])
        };
        let pid: u32 = field(b"Tgid:")
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(bad)?;
        let ([uid, euid], [gid, egid]) =
            (ids(b"Uid:").ok_or_else(bad)?, ids(b"Gid:").ok_or_else(bad)?);
        let cap_effective = field(b"CapEff:")
            .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
            .ok_or_else(bad)?;
        let stat = Stat::of(pid)
            .map_err(|error| format!("cannot read /proc/{pid}/stat: {error}"))?
            .ok_or("the process has ended")?;
        Ok(Self {
            pid,
            stat,
            ids: [uid, gid, euid, egid],
            cap_effective,
            exe: exe(tid),
        })
    }
}

/// Path of a thread's executable. One whose name ends as the kernel marks deleted ones is not known.
fn exe(tid: u32) -> Option<String> {
    let link = format!("/proc/{tid}/exe");
    let path = fs::read_link(&link).ok()?;
    let path = path.as_os_str().as_bytes();
    let path = match path.strip_suffix(DELETED) {
        None => path,
        Some(stripped) if known(&link).is_ok_and(|file| file.links == 0) => stripped,
        Some(_) => return None,
    };
    Some(text::from_bytes(path))
}

/// Path of a thread's cgroup in a hierarchy, of which the number is given, as records of the kernel name it; `None`: not known.
pub(super) fn cgroup(tid: u32, hierarchy: u32) -> Option<String> {
    let text = fs::read(format!("/proc/{tid}/cgroup")).ok()?;
    // Lines of number, controllers and path; a path has no line end (`cgroup_mkdir`, kernel/cgroup/cgroup.c).
    let number = format!("{hierarchy}:");
    let mut lines = text.split(|byte| *byte == b'\n');
    let rest = lines.find_map(|line| line.strip_prefix(number.as_bytes()))?;
    let colon = rest.iter().position(|byte| *byte == b':')?;
    let path = &rest[colon + 1..];
    // Of one outside the namespace it begins otherwise.
    (path.starts_with(b"/") && !path.starts_with(b"/..")).then(|| text::from_bytes(path))
}

/// A system call that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// `ACCESS_*` and `OPEN_*` bits.
    Open(u32),
    /// execve or execveat: the kernel opens the program for it.
    Exec,
}

/// What a thread's system call asks for: its number and registers, which no other thread can change. Unknown
/// of openat2, whose flags are in memory, of io_uring, and of what the kernel opens by itself.
pub(super) fn asked(tid: u32) -> Asked {
    let line = fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
    parse(&line)
}

fn parse(line: &str) -> Asked {
    const UNKNOWN: Asked = Asked::Open(ACCESS_UNKNOWN | OPEN_TRUNCATE_UNKNOWN);
    let mut words = line.split_ascii_whitespace();
    let Some(number) = words.next().and_then(|word| word.parse::<u32>().ok()) else {
        return UNKNOWN;
    };
    let argument = match number {
        number if CALLS.creat.contains(&number) => {
            return Asked::Open(ACCESS_WRITE | OPEN_TRUNCATE);
        }
        number if CALLS.exec.contains(&number) => return Asked::Exec,
        number if CALLS.open.contains(&number) => 1,
        number if CALLS.openat.contains(&number) => 2,
        _ => return UNKNOWN,
    };
    let flags = words
        .nth(argument)
        .and_then(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    let Some(flags) = flags else {
        return UNKNOWN;
    };
    // As the kernel makes f_mode of it: OPEN_FMODE, include/linux/fs.h.
    let mode = flags.wrapping_add(1) & 3;
    let has = |flag: libc::c_int| flags & u64::from(flag.cast_unsigned()) != 0;
    let bits = [
        (mode & 1 != 0, ACCESS_READ),
        (mode & 2 != 0, ACCESS_WRITE),
        (has(libc::O_APPEND), ACCESS_APPEND),
        (has(libc::O_TRUNC), OPEN_TRUNCATE),
    ];
    Asked::Open(
        bits.into_iter()
            .filter(|(set, _)| *set)
            .fold(0, |all, (_, bit)| all | bit),
    )
}

/// Numbers of system calls, native and 32-bit: none of one table opens a file under another's number.
struct Calls {
    open: &'static [u32],
    openat: &'static [u32],
    creat: &'static [u32],
    exec: &'static [u32],
}

/// openat and open_by_handle_at have their flags in the same place.
#[cfg(target_arch = "x86_64")]
const CALLS: Calls = Calls {
    open: &[2, 5],
    openat: &[257, 304, 295, 342],
    creat: &[85, 8],
    exec: &[59, 322, 11, 358],
};
#[cfg(target_arch = "aarch64")]
const CALLS: Calls = Calls {
    open: &[5],
    openat: &[56, 265, 322, 371],
    creat: &[8],
    exec: &[221, 281, 11, 387],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn what_a_call_asks_for_is_in_its_registers() {
        let openat = |flags: &str| {
            parse(&format!(
                "257 0xffffff9c 0x7ffd 0x{flags} 0x1b6 0x0 0x0 0x7ff 0x7f"
            ))
        };
        assert_eq!(openat("0"), Asked::Open(ACCESS_READ));
        assert_eq!(openat("80000"), Asked::Open(ACCESS_READ));
        assert_eq!(openat("241"), Asked::Open(ACCESS_WRITE | OPEN_TRUNCATE));
        assert_eq!(
            openat("402"),
            Asked::Open(ACCESS_READ | ACCESS_WRITE | ACCESS_APPEND)
        );
        assert_eq!(openat("3"), Asked::Open(0));
        assert_eq!(
            parse("2 0x7f 0x1 0x0 0x0 0x0 0x0 0x1 0x1"),
            Asked::Open(ACCESS_WRITE)
        );
        assert_eq!(
            parse("85 0x7f 0x1 0x0 0x0 0x0 0x0 0x1 0x1"),
            Asked::Open(ACCESS_WRITE | OPEN_TRUNCATE)
        );
        assert_eq!(parse("59 0x7f 0x1 0x0 0x0 0x0 0x0 0x1 0x1"), Asked::Exec);
        let unknown = Asked::Open(ACCESS_UNKNOWN | OPEN_TRUNCATE_UNKNOWN);
        for line in [
            "",
            "running",
            "-1 0x1 0x2",
            "437 0x1 0x2 0x3",
            "426 0x1",
            "257 0x1",
        ] {
            assert_eq!(parse(line), unknown, "{line}");
        }
    }

    #[test]
    fn the_cgroup_of_this_process_is_that_of_its_own_line() {
        let text = fs::read_to_string("/proc/self/cgroup").expect("a table");
        let tid = nix::unistd::gettid().as_raw().cast_unsigned();
        for line in text.lines() {
            let (number, rest) = line.split_once(':').expect("a number");
            let path = rest.split_once(':').map(|(_, path)| path.to_owned());
            assert_eq!(cgroup(tid, number.parse().expect("a number")), path);
        }
        assert_eq!(cgroup(tid, 4_000), None);
    }

    #[test]
    fn this_process_is_found_as_it_is() {
        let own = Opener::of(nix::unistd::gettid().as_raw().cast_unsigned()).expect("this thread");
        assert_eq!(own.pid, std::process::id());
        assert_eq!(own.ids[0], nix::unistd::getuid().as_raw());
        let exe = std::env::current_exe().expect("a path");
        assert_eq!(own.exe, Some(text::from_bytes(exe.as_os_str().as_bytes())));
        assert!(Opener::of(u32::MAX).is_err());
    }
}
