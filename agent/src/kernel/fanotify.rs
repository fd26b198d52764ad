//! Permission events of fanotify(7): the kernel holds an open or an exec until it has been answered, or until the
//! descriptor of the group is closed. Linux 2.6.37, `FAN_OPEN_EXEC_PERM` 5.0, thread ids 4.20; needs
//! `CONFIG_FANOTIFY_ACCESS_PERMISSIONS` and CAP_SYS_ADMIN.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use nix::errno::Errno;

/// An open by a system call or by the kernel for a process; an exec asks twice, with this after [`EXEC`].
pub const OPEN: u64 = libc::FAN_OPEN_PERM;
/// An open to execute: the program, the interpreter of a script, the dynamic loader.
pub const EXEC: u64 = libc::FAN_OPEN_EXEC_PERM;
/// More events waited than the kernel keeps: what came then was let through.
pub const OVERFLOW: u64 = libc::FAN_Q_OVERFLOW;

/// Bytes of an event without anything added, `struct fanotify_event_metadata`.
const EVENT: usize = size_of::<libc::fanotify_event_metadata>();

/// A group of marks and of calls that wait for its answer; when it is closed, they go on.
#[derive(Debug)]
pub struct Group(OwnedFd);

/// A call that waits. Dropped without an answer, it goes on waiting.
#[derive(Debug)]
pub struct Event {
    /// What it is, bits of the constants above.
    pub mask: u64,
    /// The thread, in the pid namespace of the one that made the group.
    pub tid: u32,
    /// The file, opened for reading without an event; `None` with [`OVERFLOW`].
    pub file: Option<OwnedFd>,
}

impl Group {
    /// A group without marks, whose descriptor is never waited for.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN, `ENOSYS` or `EINVAL` where the kernel has no permission events.
    #[expect(unsafe_code, reason = "fanotify_init has no safe wrapper here")]
    pub fn new() -> nix::Result<Self> {
        let flags =
            libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | libc::FAN_REPORT_TID;
        // A fifo is not waited for, and looking leaves no trace in access times.
        let files = libc::O_RDONLY
            | libc::O_CLOEXEC
            | libc::O_LARGEFILE
            | libc::O_NONBLOCK
            | libc::O_NOATIME;
        // SAFETY: integers only.
        let fd = Errno::result(unsafe { libc::fanotify_init(flags, files.cast_unsigned()) })?;
        // SAFETY: the kernel has just given this descriptor to us alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// From now on, events of what this path leads to; with `children`, of all files in this folder. Twice is as good as once.
    ///
    /// # Errors
    /// What fanotify_mark(2) says.
    #[expect(unsafe_code, reason = "fanotify_mark has no safe wrapper here")]
    pub fn mark(&self, path: &CStr, mask: u64, children: bool) -> nix::Result<()> {
        let (kind, events) = match children {
            true => (libc::FAN_MARK_ONLYDIR, mask | libc::FAN_EVENT_ON_CHILD),
            false => (0, mask),
        };
        // SAFETY: a descriptor that is held, and a text that ends with a zero and outlives the call.
        let result = unsafe {
            libc::fanotify_mark(
                self.0.as_raw_fd(),
                libc::FAN_MARK_ADD | kind,
                events,
                libc::AT_FDCWD,
                path.as_ptr(),
            )
        };
        Errno::result(result).map(drop)
    }

    /// From now on, events of an open file.
    ///
    /// # Errors
    /// What fanotify_mark(2) says.
    #[expect(unsafe_code, reason = "as above")]
    pub fn mark_open(&self, file: BorrowedFd<'_>, mask: u64) -> nix::Result<()> {
        // SAFETY: two descriptors that are held; a null path stands for the second.
        let result = unsafe {
            libc::fanotify_mark(
                self.0.as_raw_fd(),
                libc::FAN_MARK_ADD,
                mask,
                file.as_raw_fd(),
                std::ptr::null(),
            )
        };
        Errno::result(result).map(drop)
    }

    /// Takes all marks back. Calls that wait already go on waiting.
    ///
    /// # Errors
    /// What fanotify_mark(2) says.
    #[expect(unsafe_code, reason = "as above")]
    pub fn flush(&self) -> nix::Result<()> {
        // SAFETY: a descriptor that is held; of no path anything is asked.
        let result = unsafe {
            libc::fanotify_mark(
                self.0.as_raw_fd(),
                libc::FAN_MARK_FLUSH,
                0,
                libc::AT_FDCWD,
                std::ptr::null(),
            )
        };
        Errno::result(result).map(drop)
    }

    /// The next call that waits; `None` when there is none.
    ///
    /// # Errors
    /// The kernel could not open the file: the call has been denied by it. Or it speaks another version.
    #[expect(unsafe_code, reason = "the kernel gives descriptors as numbers")]
    pub fn next(&self) -> nix::Result<Option<Event>> {
        // Room for one alone: each is answered before the next descriptor is made.
        let mut bytes = [0_u8; EVENT];
        let len = match nix::unistd::read(&self.0, &mut bytes) {
            Ok(len) => len,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        // event_len, vers, reserved, metadata_len, mask, fd, pid: include/uapi/linux/fanotify.h.
        if len != EVENT || bytes[4] != libc::FANOTIFY_METADATA_VERSION {
            return Err(Errno::EPROTO);
        }
        let [low, high] = [word(8), word(12)];
        let mask = match cfg!(target_endian = "little") {
            true => u64::from(high) << 32 | u64::from(low),
            false => u64::from(low) << 32 | u64::from(high),
        };
        let fd = word(16).cast_signed();
        // SAFETY: the kernel has just given this descriptor to us alone.
        let file = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(Some(Event {
            mask,
            tid: word(20),
            file,
        }))
    }

    /// Lets a call go on, or fail with EPERM.
    ///
    /// # Errors
    /// `ENOENT` when it does not wait any more: it was killed.
    pub fn answer(&self, event: Event, allow: bool) -> nix::Result<()> {
        let Some(file) = event.file else {
            return Ok(());
        };
        let response = match allow {
            true => libc::FAN_ALLOW,
            false => libc::FAN_DENY,
        };
        // struct fanotify_response
        let mut bytes = [0_u8; 8];
        bytes[..4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
        bytes[4..].copy_from_slice(&response.to_ne_bytes());
        nix::unistd::write(&self.0, &bytes).map(drop)
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
