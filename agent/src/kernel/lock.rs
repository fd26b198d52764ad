//! One agent per kernel.
//!
//! The lock has to be the same object for every mount and network namespace:
//! neither a file under `/run` nor an abstract socket is. devtmpfs has one instance
//! per kernel, so its root directory is locked, through a mount of our
//! own that is attached nowhere. Kernel: `devtmpfs` mounts return the one
//! superblock (<https://github.com/torvalds/linux/blob/v6.12/drivers/base/devtmpfs.c#L66>).

use std::{
    ffi::CStr,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
};

use nix::fcntl::{Flock, FlockArg};

use super::Error;

/// Where the lock is.
#[derive(Clone, Debug)]
pub enum LockPlace {
    /// The kernel's own: for every agent that runs for real.
    Kernel,
    /// None: for pins that nobody else can know (a probe).
    Nowhere,
    /// A file, for agents that do not share pins with others (tests).
    File(PathBuf),
}

/// Held until dropped, or until the process ends however.
#[derive(Debug)]
pub struct Lock {
    _held: Option<Flock<File>>,
}

/// Takes the lock.
///
/// # Errors
/// [`Error::Running`] when another process holds it.
pub fn take(place: &LockPlace) -> Result<Lock, Error> {
    let file = match place {
        LockPlace::Kernel => match devtmpfs() {
            Ok(file) => file,
            Err(_) => {
                // Without CAP_SYS_ADMIN, or in a kernel without devtmpfs: as good as it gets there.
                open("/run/sumun-agent.lock".into())?
            }
        },
        LockPlace::File(path) => open(path.clone())?,
        LockPlace::Nowhere => return Ok(Lock { _held: None }),
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(held) => Ok(Lock { _held: Some(held) }),
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => Err(Error::Running { pid: holder(&file) }),
        Err((_, errno)) => Err(Error::Call {
            op: "take the agent's lock",
            source: errno.into(),
        }),
    }
}

fn open(path: PathBuf) -> Result<File, Error> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(Error::file("open", path))
}

/// The root directory of the kernel's only devtmpfs.
#[expect(unsafe_code, reason = "fsopen and fsmount have no safe wrapper")]
fn devtmpfs() -> io::Result<File> {
    const FSCONFIG_CMD_CREATE: libc::c_ulong = 6;
    const NAME: &CStr = c"devtmpfs";
    let owned = |fd: libc::c_long| {
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given this descriptor to us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    };
    // SAFETY: a valid string and flags; FSOPEN_CLOEXEC is 1.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, NAME.as_ptr(), 1) })?;
    // SAFETY: no pointers but null ones are passed.
    let created = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            0usize,
            0usize,
            0,
        )
    };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: integers only; FSMOUNT_CLOEXEC is 1, no attributes.
    let mount = owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, 0) })?;
    // The descriptor of the mount is an O_PATH one, which cannot be locked.
    File::open(format!("/proc/self/fd/{}", mount.as_raw_fd()))
}

/// Who holds the lock on a file, from `/proc/locks`.
fn holder(file: &File) -> Option<u32> {
    let meta = file.metadata().ok()?;
    let (dev, inode) = (meta.dev(), meta.ino());
    let wanted = format!(
        "{:02x}:{:02x}:{inode}",
        nix::sys::stat::major(dev),
        nix::sys::stat::minor(dev)
    );
    fs::read_to_string("/proc/locks")
        .ok()?
        .lines()
        .find_map(|line| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match words[..] {
                [_, "FLOCK", _, "WRITE", pid, place, ..] if place == wanted => {
                    pid.parse().ok().filter(|pid| *pid != 0)
                }
                _ => None,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_learns_the_first_ones_pid() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let place = LockPlace::File(dir.path().join("lock"));
        let first = take(&place).expect("nobody holds it");
        match take(&place) {
            Err(Error::Running { pid }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("the lock was given twice: {other:?}"),
        }
        drop(first);
        take(&place).expect("it is free again");
    }
}
