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
const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
const BPF_LINK_DETACH: libc::c_long = 34;

/// How long a kernel may take to let go of a link that was removed.
pub(super) const DETACH_DEADLINE: Duration = Duration::from_secs(5);

/// Detaches a pinned link, whose pin is to be removed now. Links of cgroups are gone when this returns (5.9). Others know no
/// such call: of them the number, by which it can be seen when they are.
pub(super) fn give_up(pin: &Path) -> Option<u32> {
    let path = CString::new(pin.as_os_str().as_bytes()).ok()?;
    let link = call(BPF_OBJ_GET, [path.as_ptr() as u64, 0]).ok()?;
    let link = own(link);
    let detached = call(BPF_LINK_DETACH, [link.as_raw_fd() as u64, 0]);
    if detached.is_ok() {
        return None;
    }
    // Numbers are told from 5.8 on; of a pinned program, which stands beside a link, there is none.
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd())).ok()?;
    let number = told.lines().find_map(|line| line.strip_prefix("link_id:"));
    number?.trim().parse().ok()
}

/// Waits until the kernel has let go of a link; not for ever.
pub(super) fn wait(number: u32) {
    let begun = Instant::now();
    while begun.elapsed() < DETACH_DEADLINE {
        match call(BPF_LINK_GET_FD_BY_ID, [u64::from(number), 0]) {
            Ok(link) => drop(own(link)),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(_) => return,
        }
        thread::sleep(Duration::from_millis(2));
    }
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
