//! Giving up rights that a process does not need any more.

use std::fs;
use std::io;

/// `CAP_DAC_READ_SEARCH`
pub const DAC_READ_SEARCH: u32 = 2;
/// `CAP_SYS_PTRACE`
pub const SYS_PTRACE: u32 = 19;

/// `_LINUX_CAPABILITY_VERSION_3`, include/uapi/linux/capability.h
const VERSION: u32 = 0x2008_0522;
/// Highest number of a capability that there may be.
const LAST: u32 = 63;

#[repr(C)]
struct Header {
    version: u32,
    /// 0: the calling thread.
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Leaves this thread, and those that it starts from now on, of their capabilities these at most, and no way to get others: no
/// program that it executes gives it any.
///
/// # Errors
/// The kernel does not take it; it has what it had then.
#[expect(unsafe_code, reason = "no crate here has capset")]
pub fn keep(capabilities: &[u32]) -> io::Result<()> {
    let mask = capabilities.iter().fold(0_u64, |mask, one| mask | 1 << one);
    let mask = mask & permitted()?;
    nix::sys::prctl::set_no_new_privs()?;
    for capability in (0..=LAST).filter(|one| mask >> one & 1 == 0) {
        // Not without CAP_SETPCAP, and not what the kernel does not know: with no new privileges they are of no use.
        // SAFETY: numbers only.
        unsafe {
            libc::prctl(
                libc::PR_CAPBSET_DROP,
                libc::c_ulong::from(capability),
                0,
                0,
                0,
            )
        };
    }
    // SAFETY: numbers only.
    unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        )
    };
    let half = |shift: u32| {
        let set = (mask >> shift & u64::from(u32::MAX)) as u32;
        Data {
            effective: set,
            permitted: set,
            inheritable: 0,
        }
    };
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    let data = [half(0), half(32)];
    // SAFETY: both are as the call of this version takes them, and live through it.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What this thread may make effective.
fn permitted() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "no CapPrm in /proc/thread-self/status",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line of the thread's own, as the kernel tells it.
    fn told(name: &str) -> u64 {
        let status = fs::read_to_string("/proc/thread-self/status").expect("its status");
        let value = status.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(value.expect("a line").trim(), 16).expect("a number")
    }

    #[test]
    fn a_thread_keeps_what_it_names_and_no_more() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: a thread with rights is needed");
            return;
        }
        // Rights are a thread's own: the other tests keep theirs.
        let left = std::thread::spawn(|| {
            keep(&[SYS_PTRACE, LAST]).expect("it gives them up");
            let status = ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:", "NoNewPrivs:"];
            status.map(told)
        });
        let own = 1 << SYS_PTRACE;
        assert_eq!(left.join().expect("a thread"), [own, own, 0, 0, 1]);
        assert_ne!(permitted().expect("rights"), own);
    }
}
