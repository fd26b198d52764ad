//! Calls through io_uring, without a library: one ring, one request, one completion.

use std::ffi::CStr;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

/// `IORING_OP_*`, and the places of the rings: include/uapi/linux/io_uring.h.
const CONNECT: u8 = 16;
/// As above.
const OPENAT: u8 = 18;
/// `IORING_SETUP_SQPOLL`: a thread of the kernel's makes the calls.
const KERNEL_THREAD: u32 = 2;
/// `IORING_ENTER_SQ_WAKEUP`.
const WAKE: libc::c_uint = 2;
const AT_SUBMISSIONS: libc::off_t = 0;
const AT_COMPLETIONS: libc::off_t = 0x0800_0000;
const AT_ENTRIES: libc::off_t = 0x1000_0000;
const GET_EVENTS: libc::c_uint = 1;
/// Bytes that are mapped of each: a ring of one entry needs less.
const ROOM: usize = 4096;

/// `struct io_uring_params`: ten words, then the places of both rings' parts.
type Parameters = [u32; 30];
/// Word of `flags`.
const FLAGS: usize = 2;
/// Word of `sq_off.tail` and `sq_off.array`, of `cq_off.cqes`.
const SUBMITTED: usize = 11;
const ARRAY: usize = 16;
const CQES: usize = 25;

struct Mapped(*mut u8);

impl Mapped {
    fn new(ring: RawFd, at: libc::off_t) -> io::Result<Self> {
        // SAFETY: a new shared mapping of the ring overlaps nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                ROOM,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                ring,
                at,
            )
        };
        match start == libc::MAP_FAILED {
            true => Err(io::Error::last_os_error()),
            false => Ok(Self(start.cast())),
        }
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        assert!(offset as usize + 4 <= ROOM && offset.is_multiple_of(4));
        // SAFETY: inside the mapping, which lives as long as `self`, and aligned.
        unsafe { AtomicU32::from_ptr(self.0.add(offset as usize).cast()) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no reference outlives `self`.
        unsafe { libc::munmap(self.0.cast(), ROOM) };
    }
}

/// Opens a file through io_uring, with these flags (`O_*`).
///
/// # Errors
/// What the request ended with; `ENOSYS` or `EPERM` of the set-up where there is no io_uring, as [`Refused`].
pub fn open(path: &CStr, flags: i32) -> Result<io::Result<OwnedFd>, Refused> {
    let address = path.as_ptr() as u64;
    // struct io_uring_sqe: opcode, fd, off, addr, len (mode), open_flags.
    let words = [
        u32::from(OPENAT),
        libc::AT_FDCWD.cast_unsigned(),
        0,
        0,
        address as u32,
        (address >> 32) as u32,
        0,
        (libc::O_CLOEXEC | flags).cast_unsigned(),
    ];
    let opened = submit(words, false)?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(opened.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Connects a socket through io_uring; by a thread of the kernel's (SQPOLL), or as the call is made.
///
/// # Errors
/// As [`open`].
pub fn connect(
    socket: BorrowedFd<'_>,
    to: SocketAddrV4,
    kernel_thread: bool,
) -> Result<io::Result<()>, Refused> {
    // struct sockaddr_in: family, port, address, padding.
    let mut name = [0_u8; 16];
    name[..2].copy_from_slice(&2_u16.to_ne_bytes());
    name[2..4].copy_from_slice(&to.port().to_be_bytes());
    name[4..8].copy_from_slice(&to.ip().octets());
    let address = name.as_ptr() as u64;
    // struct io_uring_sqe: opcode, fd, addr2 (length of the name), addr (the name).
    let words = [
        u32::from(CONNECT),
        socket.as_raw_fd().cast_unsigned(),
        16,
        0,
        address as u32,
        (address >> 32) as u32,
        0,
        0,
    ];
    Ok(submit(words, kernel_thread)?.map(drop))
}

/// Makes one request and waits for its end. What it points to outlives it.
fn submit(words: [u32; 8], kernel_thread: bool) -> Result<io::Result<i32>, Refused> {
    let mut parameters: Parameters = [0; 30];
    if kernel_thread {
        parameters[FLAGS] = KERNEL_THREAD;
    }
    // SAFETY: a buffer of the structure's size that outlives the call.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    let ring = Errno::result(ring).map_err(|errno| Refused(errno.into()))?;
    let ring = i32::try_from(ring).map_err(|error| Refused(io::Error::other(error)))?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    let ring = unsafe { OwnedFd::from_raw_fd(ring) };
    let map = |at| Mapped::new(ring.as_raw_fd(), at).map_err(Refused);
    let (submissions, completions) = (map(AT_SUBMISSIONS)?, map(AT_COMPLETIONS)?);
    let entries = map(AT_ENTRIES)?;
    for (place, word) in (0..).step_by(4).zip(words) {
        entries.word(place).store(word, Ordering::Relaxed);
    }
    submissions
        .word(parameters[ARRAY])
        .store(0, Ordering::Relaxed);
    submissions
        .word(parameters[SUBMITTED])
        .store(1, Ordering::Release);
    let wake = if kernel_thread { WAKE } else { 0 };
    // SAFETY: integers, and a null pointer where no signal mask is given; callers see to it that what the request points to
    // outlives it.
    let entered = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd(),
            1,
            1,
            GET_EVENTS | wake,
            std::ptr::null::<libc::sigset_t>(),
            0,
        )
    };
    Errno::result(entered).map_err(|errno| Refused(errno.into()))?;
    // struct io_uring_cqe: user_data, res.
    let result = completions
        .word(parameters[CQES] + 8)
        .load(Ordering::Acquire);
    let result = result.cast_signed();
    match result {
        0.. => Ok(Ok(result)),
        _ => Ok(Err(io::Error::from_raw_os_error(-result))),
    }
}

/// This host has no io_uring for us.
#[derive(Debug)]
pub struct Refused(pub io::Error);

#[cfg(test)]
mod tests {
    #[test]
    fn a_file_is_opened() {
        match super::open(c"/dev/null", libc::O_RDONLY) {
            Ok(opened) => drop(opened.expect("it is there")),
            Err(refused) => println!("SKIPPED: {refused:?}"),
        }
    }
}
