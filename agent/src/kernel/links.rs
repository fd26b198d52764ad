//! Links that are given up. By itself the kernel lets go of a link some time after its pin is removed (a grace period and a
//! worker's turn), and whoever attaches the same program again meanwhile has it there twice: each event is told twice.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    thread,
    time::{Duration, Instant},
};

// include/uapi/linux/bpf.h
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
const BPF_LINK_DETACH: libc::c_long = 34;

/// How long a kernel may take to let go of a link that was removed.
pub(super) const DETACH_DEADLINE: Duration = Duration::from_secs(5);

/// A link that the kernel has yet to let go of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GivenUp {
    link: u32,
    program: u32,
}

/// Detaches a pinned link, whose pin is to be removed now. Links of cgroups are gone when this returns (5.9). Others know no
/// such call: of them the numbers, by which it can be seen when they are.
pub(super) fn give_up(pin: &Path) -> Option<GivenUp> {
    let path = CString::new(pin.as_os_str().as_bytes()).ok()?;
    let link = call(BPF_OBJ_GET, [path.as_ptr() as u64, 0]).ok()?;
    let link = own(link);
    let detached = call(BPF_LINK_DETACH, [link.as_raw_fd() as u64, 0]);
    if detached.is_ok() {
        return None;
    }
    // Numbers are told from 5.8 on; of a pinned program, which stands beside a link, there is none of a link.
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd())).ok()?;
    let number = |name: &str| {
        let number = told.lines().find_map(|line| line.strip_prefix(name));
        number?.trim().parse().ok()
    };
    Some(GivenUp {
        link: number("link_id:")?,
        program: number("prog_id:")?,
    })
}

/// Waits until the kernel has let go of a link; not for ever.
pub(super) fn wait(given_up: GivenUp) {
    wait_for_end(BPF_LINK_GET_FD_BY_ID, given_up.link, Instant::now());
}

/// Waits until the programs of links run no more, which is a moment after the links have lost their numbers. Nobody else may
/// hold the programs. All of them have one [`DETACH_DEADLINE`]: false if it has passed.
pub(super) fn wait_for_programs(given_up: &[GivenUp]) -> bool {
    let begun = Instant::now();
    given_up
        .iter()
        .all(|one| wait_for_end(BPF_PROG_GET_FD_BY_ID, one.program, begun))
}

fn wait_for_end(command: libc::c_long, number: u32, begun: Instant) -> bool {
    while begun.elapsed() < DETACH_DEADLINE {
        match call(command, [u64::from(number), 0]) {
            Ok(found) => drop(own(found)),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(_) => return true,
        }
        thread::sleep(Duration::from_millis(2));
    }
    false
}

#[expect(unsafe_code, reason = "aya keeps these calls to itself")]
fn call(command: libc::c_long, attributes: [u64; 2]) -> io::Result<i32> {
    // SAFETY: the attributes live through the call and are as long as it is told; the path that one of the commands is given
    // is its caller's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result as i32),
    }
}

#[expect(unsafe_code, reason = "as above")]
fn own(fd: i32) -> OwnedFd {
    // SAFETY: callers pass a descriptor that a call has just made.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
