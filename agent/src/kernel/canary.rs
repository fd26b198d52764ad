//! Whether this host can hold and deny calls, found by trying: on a file without a name, of which nobody else knows.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::fanotify::{EXEC, Group, OPEN};

/// The longest it may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Denies an open and an exec of a file of its own.
///
/// # Errors
/// Why it does not work here.
pub fn try_out() -> Result<(), String> {
    let group = Group::new().map_err(|errno| {
        format!("the kernel gives no permission events (fanotify_init): {errno}; they need CAP_SYS_ADMIN and CONFIG_FANOTIFY_ACCESS_PERMISSIONS")
    })?;
    let made = memfd_create("sumun-canary", MFdFlags::MFD_CLOEXEC);
    let canary =
        File::from(made.map_err(|errno| format!("cannot make a file to try it on: {errno}"))?);
    canary
        .set_permissions(fs::Permissions::from_mode(0o700))
        .map_err(|error| format!("cannot make a file to try it on: {error}"))?;
    group
        .mark_open(canary.as_fd(), OPEN | EXEC)
        .map_err(|errno| format!("cannot ask for permission events (fanotify_mark): {errno}"))?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), canary.as_raw_fd());
    let calls = thread::spawn(move || {
        let opened = File::open(&path).err();
        let executed = Command::new(&path).stdin(Stdio::null()).spawn().err();
        [("open", opened), ("exec", executed)]
    });
    let begun = Instant::now();
    loop {
        if calls.is_finished() {
            let results = calls
                .join()
                .map_err(|_| "a call on a file to try it on panicked")?;
            for (what, error) in results {
                match error.map(|error| (error.raw_os_error(), error)) {
                    Some((Some(libc::EPERM), _)) => {}
                    Some((_, error)) => {
                        return Err(format!("a denied {what} ended otherwise: {error}"));
                    }
                    None => return Err(format!("an {what} was denied and went on")),
                }
            }
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            // What waits is let go with the group.
            return Err("a call on a file to try it on was not held".into());
        }
        wait(&group);
        while let Ok(Some(event)) = group.next() {
            // A call that was killed meanwhile does not wait for it.
            let _ = group.answer(event, false);
        }
    }
}

fn wait(group: &Group) {
    let mut fds = [PollFd::new(group.as_fd(), PollFlags::POLLIN)];
    // An interrupted wait is a short one.
    let _ = poll(&mut fds, PollTimeout::from(10_u8));
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_denied_call_fails_here() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: permission events need root");
            return;
        }
        assert_eq!(super::try_out(), Ok(()));
    }
}
