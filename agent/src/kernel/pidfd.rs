//! A process held by a descriptor: the number of a process that has ended can be given to another, the
//! descriptor cannot.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockType, SockaddrStorage, getpeername, getsockopt, sockopt};

/// `KCMP_FILES` of `include/uapi/linux/kcmp.h`.
const KCMP_FILES: libc::c_int = 2;

/// A process, as long as this is held.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// The process that has this number now.
    ///
    /// # Errors
    /// `ESRCH` when none has; `EINVAL` or `ENOENT` when it is that of a thread.
    #[expect(unsafe_code, reason = "pidfd_open has no safe wrapper here")]
    pub fn open(pid: u32) -> nix::Result<Self> {
        let pid = libc::pid_t::try_from(pid).map_err(|_| Errno::ESRCH)?;
        // SAFETY: integers only.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
        // SAFETY: the kernel has just given this descriptor to us alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Whether it has ended, waited for or not. A process whose first thread alone has ended has not.
    ///
    /// # Errors
    /// What poll(2) says.
    pub fn has_ended(&self) -> nix::Result<bool> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
    }

    /// The other end of a TCP connection that it has as this descriptor; `None` if it is another thing, or cannot be told.
    /// From Linux 5.6 on.
    #[must_use]
    #[expect(unsafe_code, reason = "pidfd_getfd has no safe wrapper here")]
    pub fn peer(&self, descriptor: i32) -> Option<SocketAddr> {
        // SAFETY: integers only.
        let fd = Errno::result(unsafe {
            libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), descriptor, 0)
        });
        let fd = i32::try_from(fd.ok()?).ok()?;
        // SAFETY: the kernel has just given this descriptor to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if getsockopt(&fd, sockopt::SockType).ok()? != SockType::Stream {
            return None;
        }
        let peer: SockaddrStorage = getpeername(fd.as_raw_fd()).ok()?;
        match (peer.as_sockaddr_in(), peer.as_sockaddr_in6()) {
            (Some(v4), _) => Some(SocketAddr::new(v4.ip().into(), v4.port())),
            (_, Some(v6)) => Some(SocketAddr::new(v6.ip().to_canonical(), v6.port())),
            _ => None,
        }
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// `ESRCH` when it has ended and been waited for; `EPERM`.
    #[expect(unsafe_code, reason = "pidfd_send_signal has no safe wrapper here")]
    pub fn kill(&self) -> nix::Result<()> {
        // SAFETY: a descriptor that is held, a null pointer where the kernel takes one for "as kill(2)".
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        Errno::result(result).map(drop)
    }
}

/// Whether two threads have one table of open files. Also true of two that have none any more: that one
/// of them is not on its way out has to be seen afterwards.
///
/// # Errors
/// `ESRCH` when one is not there, `EPERM`, and `ENOSYS` from a kernel without kcmp.
#[expect(unsafe_code, reason = "kcmp has no safe wrapper")]
pub fn share_files(one: u32, other: u32) -> nix::Result<bool> {
    let id = |id: u32| libc::pid_t::try_from(id).map_err(|_| Errno::ESRCH);
    let (one, other) = (id(one)?, id(other)?);
    // SAFETY: integers only.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) };
    Errno::result(order).map(|order| order == 0)
}
