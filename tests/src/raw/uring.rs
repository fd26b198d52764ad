//! Calls through io_uring, without a library: a ring, its requests and their completions.

use std::ffi::CStr;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

/// `IORING_OP_*`, and the places of the rings: include/uapi/linux/io_uring.h.
const NOP: u8 = 0;
const ACCEPT: u8 = 13;
const CONNECT: u8 = 16;
const OPENAT: u8 = 18;
const OPENAT2: u8 = 28;
const RENAMEAT: u8 = 35;
const UNLINKAT: u8 = 36;
const SYMLINKAT: u8 = 38;
const LINKAT: u8 = 39;
const BIND: u8 = 56;
const LISTEN: u8 = 57;
/// `IORING_SETUP_SQPOLL`: a thread of the kernel's makes the calls.
const KERNEL_THREAD: u32 = 2;
/// `IORING_ENTER_SQ_WAKEUP`.
const WAKE: libc::c_uint = 2;
/// `IORING_REGISTER_FILES`.
const REGISTER_FILES: libc::c_uint = 2;
/// `IORING_FEAT_CQE_SKIP`.
const SKIPS: u32 = 1 << 11;
const AT_SUBMISSIONS: libc::off_t = 0;
const AT_COMPLETIONS: libc::off_t = 0x0800_0000;
const AT_ENTRIES: libc::off_t = 0x1000_0000;
const GET_EVENTS: libc::c_uint = 1;
/// Bytes that are mapped of each: rings of so few entries need less.
const ROOM: usize = 4096;
/// Requests at once.
const ENTRIES: u32 = 8;
/// Completions that have room then.
const COMPLETIONS: u32 = 2 * ENTRIES;

/// `struct io_uring_params`: ten words, then the places of both rings' parts.
type Parameters = [u32; 30];
/// Words of `flags` and `features`.
const FLAGS: usize = 2;
const FEATURES: usize = 5;
/// Words of `sq_off.tail` and `sq_off.array`, of `cq_off.head`, `cq_off.tail` and `cq_off.cqes`.
const SUBMITTED: usize = 11;
const ARRAY: usize = 16;
const TAKEN: usize = 20;
const COMPLETED: usize = 21;
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

/// What is done in order: the next begins when this has succeeded (`IOSQE_IO_LINK`).
pub const LINKED: u32 = 1 << 2;
/// A worker does it, whatever the submitter could do at once (`IOSQE_ASYNC`).
pub const BY_WORKER: u32 = 1 << 4;
/// It is not completed if it succeeds (`IOSQE_CQE_SKIP_SUCCESS`, from 5.17 on).
pub const UNTOLD: u32 = 1 << 6;

/// `struct io_uring_sqe`, by words: opcode and flags, fd, off or addr2 (two), addr (two), len, flags of the call, user_data (two), …,
/// file_index (11). What it points to outlives it.
#[derive(Clone, Copy, Debug)]
pub struct Request([u32; 16]);

impl Request {
    fn new(opcode: u8, fd: u32, second: u64, address: u64, len: u32, flags: i32) -> Self {
        let mut words = [0; 16];
        words[..8].copy_from_slice(&[
            u32::from(opcode),
            fd,
            second as u32,
            (second >> 32) as u32,
            address as u32,
            (address >> 32) as u32,
            len,
            flags.cast_unsigned(),
        ]);
        Self(words)
    }

    /// Nothing.
    #[must_use]
    pub fn nothing() -> Self {
        Self::new(NOP, 0, 0, 0, 0, 0)
    }

    /// openat(AT_FDCWD, path, flags, 0o600).
    #[must_use]
    pub fn open(path: &CStr, flags: i32) -> Self {
        Self::new(OPENAT, CWD, 0, path.as_ptr() as u64, 0o600, flags)
    }

    /// openat2(AT_FDCWD, path, how), where `how` is a `struct open_how`.
    #[must_use]
    pub fn open2(path: &CStr, how: &[u64; 3]) -> Self {
        let size = size_of_val(how) as u32;
        Self::new(
            OPENAT2,
            CWD,
            how.as_ptr() as u64,
            path.as_ptr() as u64,
            size,
            0,
        )
    }

    /// renameat2(AT_FDCWD, from, AT_FDCWD, to, flags).
    #[must_use]
    pub fn rename(from: &CStr, to: &CStr, flags: u32) -> Self {
        let to = to.as_ptr() as u64;
        let flags = flags.cast_signed();
        Self::new(RENAMEAT, CWD, to, from.as_ptr() as u64, CWD, flags)
    }

    /// unlinkat(AT_FDCWD, path, flags).
    #[must_use]
    pub fn unlink(path: &CStr, flags: i32) -> Self {
        Self::new(UNLINKAT, CWD, 0, path.as_ptr() as u64, 0, flags)
    }

    /// linkat(AT_FDCWD, from, AT_FDCWD, to, 0).
    #[must_use]
    pub fn link(from: &CStr, to: &CStr) -> Self {
        let to = to.as_ptr() as u64;
        Self::new(LINKAT, CWD, to, from.as_ptr() as u64, CWD, 0)
    }

    /// symlinkat(says, AT_FDCWD, to).
    #[must_use]
    pub fn symlink(says: &CStr, to: &CStr) -> Self {
        let to = to.as_ptr() as u64;
        Self::new(SYMLINKAT, CWD, to, says.as_ptr() as u64, 0, 0)
    }

    /// connect(socket, name), where `name` is a `struct sockaddr`.
    #[must_use]
    pub fn connect(socket: BorrowedFd<'_>, name: &[u8]) -> Self {
        let len = name.len() as u64;
        Self::new(CONNECT, of(socket), len, name.as_ptr() as u64, 0, 0)
    }

    /// accept4(socket, NULL, NULL, 0).
    #[must_use]
    pub fn accept(socket: BorrowedFd<'_>) -> Self {
        Self::new(ACCEPT, of(socket), 0, 0, 0, 0)
    }

    /// The same again and again (`IORING_ACCEPT_MULTISHOT`, from 5.19 on).
    #[must_use]
    pub fn accept_all(socket: BorrowedFd<'_>) -> Self {
        let mut request = Self::accept(socket);
        // `ioprio`.
        request.0[0] |= 1 << 16;
        request
    }

    /// bind(socket, name), from 6.11 on.
    #[must_use]
    pub fn bind(socket: BorrowedFd<'_>, name: &[u8]) -> Self {
        let len = name.len() as u64;
        Self::new(BIND, of(socket), len, name.as_ptr() as u64, 0, 0)
    }

    /// listen(socket, 8), from 6.11 on.
    #[must_use]
    pub fn listen(socket: BorrowedFd<'_>) -> Self {
        Self::new(LISTEN, of(socket), 0, 0, 8, 0)
    }

    /// With `LINKED`, `BY_WORKER` and `UNTOLD`.
    #[must_use]
    pub fn with(mut self, flags: u32) -> Self {
        self.0[0] |= flags << 8;
        self
    }

    /// What it opens goes to this place of the ring's own table, and has no descriptor.
    #[must_use]
    pub fn into_place(mut self, place: u32) -> Self {
        self.0[11] = place + 1;
        self
    }
}

const CWD: u32 = libc::AT_FDCWD.cast_unsigned();

fn of(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// An io_uring.
pub struct Ring {
    fd: OwnedFd,
    parameters: Parameters,
    submissions: Mapped,
    completions: Mapped,
    entries: Mapped,
    kernel_thread: bool,
}

impl Ring {
    /// A ring whose requests a thread of the kernel's picks up (SQPOLL), or that are made by a call.
    ///
    /// # Errors
    /// There is no io_uring for us.
    pub fn new(kernel_thread: bool) -> Result<Self, Refused> {
        let mut parameters: Parameters = [0; 30];
        if kernel_thread {
            parameters[FLAGS] = KERNEL_THREAD;
        }
        // SAFETY: a buffer of the structure's size that outlives the call.
        let fd =
            unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, parameters.as_mut_ptr()) };
        let fd = Errno::result(fd).map_err(|errno| Refused(errno.into()))?;
        let fd = i32::try_from(fd).map_err(|error| Refused(io::Error::other(error)))?;
        // SAFETY: the kernel has just given this descriptor to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let map = |at| Mapped::new(fd.as_raw_fd(), at).map_err(Refused);
        Ok(Self {
            submissions: map(AT_SUBMISSIONS)?,
            completions: map(AT_COMPLETIONS)?,
            entries: map(AT_ENTRIES)?,
            fd,
            parameters,
            kernel_thread,
        })
    }

    /// Whether it knows `UNTOLD`.
    #[must_use]
    pub fn skips(&self) -> bool {
        self.parameters[FEATURES] & SKIPS != 0
    }

    /// Gives it a table of four places of its own.
    ///
    /// # Errors
    /// As io_uring_register(2).
    pub fn with_places(self) -> io::Result<Self> {
        let none = [-1_i32; 4];
        // SAFETY: a buffer of so many descriptors that outlives the call.
        let made = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.fd.as_raw_fd(),
                REGISTER_FILES,
                none.as_ptr(),
                none.len(),
            )
        };
        Errno::result(made)?;
        Ok(self)
    }

    /// Makes these requests and waits until so many are completed, in the order of which are the numbers of the requests and what they ended with.
    ///
    /// # Errors
    /// As io_uring_enter(2).
    ///
    /// # Panics
    /// They are more than have room.
    pub fn make(&mut self, requests: &[Request], completed: u32) -> io::Result<Vec<(u32, i32)>> {
        let count = u32::try_from(requests.len()).unwrap_or(u32::MAX);
        assert!(count <= ENTRIES && completed <= COMPLETIONS);
        let tail = self.submissions.word(self.parameters[SUBMITTED]);
        let first = tail.load(Ordering::Relaxed);
        for (number, request) in (0..).zip(requests) {
            let slot = first.wrapping_add(number) % ENTRIES;
            let mut words = request.0;
            words[8] = number;
            for (place, word) in (slot * 64..).step_by(4).zip(words) {
                self.entries.word(place).store(word, Ordering::Relaxed);
            }
            let array = self.parameters[ARRAY] + slot * 4;
            self.submissions.word(array).store(slot, Ordering::Relaxed);
        }
        tail.store(first.wrapping_add(count), Ordering::Release);
        let wake = if self.kernel_thread { WAKE } else { 0 };
        // SAFETY: integers, and a null pointer where no signal mask is given; callers see to it that what the requests point to
        // outlives them.
        let entered = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd.as_raw_fd(),
                count,
                completed,
                GET_EVENTS | wake,
                std::ptr::null::<libc::sigset_t>(),
                0,
            )
        };
        Errno::result(entered)?;
        Ok(self.take())
    }

    fn take(&mut self) -> Vec<(u32, i32)> {
        let head = self.completions.word(self.parameters[TAKEN]);
        let tail = self.completions.word(self.parameters[COMPLETED]);
        let (mut at, end) = (head.load(Ordering::Relaxed), tail.load(Ordering::Acquire));
        let mut taken = Vec::new();
        while at != end {
            // struct io_uring_cqe: user_data, res, flags.
            let cqe = self.parameters[CQES] + at % COMPLETIONS * 16;
            let word = |offset| self.completions.word(cqe + offset).load(Ordering::Relaxed);
            taken.push((word(0), word(8).cast_signed()));
            at = at.wrapping_add(1);
        }
        head.store(at, Ordering::Release);
        taken
    }
}

/// Opens a file through io_uring, with these flags (`O_*`).
///
/// # Errors
/// What the request ended with; `ENOSYS` or `EPERM` of the set-up where there is no io_uring, as [`Refused`].
pub fn open(path: &CStr, flags: i32) -> Result<io::Result<OwnedFd>, Refused> {
    let opened = one(Request::open(path, libc::O_CLOEXEC | flags), false)?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(opened.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Removes a file through io_uring. Linux 5.11.
///
/// # Errors
/// As [`open`].
pub fn unlink(path: &CStr) -> Result<io::Result<()>, Refused> {
    Ok(one(Request::unlink(path, 0), false)?.map(drop))
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
    let name = name(to);
    Ok(one(Request::connect(socket, &name), kernel_thread)?.map(drop))
}

/// `struct sockaddr_in`: family, port, address, padding.
#[must_use]
pub fn name(of: SocketAddrV4) -> [u8; 16] {
    let mut name = [0; 16];
    name[..2].copy_from_slice(&2_u16.to_ne_bytes());
    name[2..4].copy_from_slice(&of.port().to_be_bytes());
    name[4..8].copy_from_slice(&of.ip().octets());
    name
}

fn one(request: Request, kernel_thread: bool) -> Result<io::Result<i32>, Refused> {
    let mut ring = Ring::new(kernel_thread)?;
    let made = ring.make(&[request], 1).map_err(Refused)?;
    let [(_, result)] = made[..] else {
        return Err(Refused(io::Error::other("it was not completed once")));
    };
    Ok(match result {
        0.. => Ok(result),
        _ => Err(io::Error::from_raw_os_error(-result)),
    })
}

/// This host has no io_uring for us.
#[derive(Debug)]
pub struct Refused(pub io::Error);

#[cfg(test)]
mod tests {
    use super::{LINKED, Request, Ring};

    #[test]
    fn a_file_is_opened() {
        match super::open(c"/dev/null", libc::O_RDONLY) {
            Ok(opened) => drop(opened.expect("it is there")),
            Err(refused) => println!("SKIPPED: {refused:?}"),
        }
    }

    #[test]
    fn what_is_linked_is_done_in_order_up_to_what_fails() {
        let mut ring = match Ring::new(false) {
            Ok(ring) => ring,
            Err(refused) => return println!("SKIPPED: {refused:?}"),
        };
        for _ in 0..5 {
            let requests = [
                Request::nothing().with(LINKED),
                // Of an open: of a removal that fails, kernels up to 6.12 and later go on with what is linked to it.
                Request::open(c"/no/such", libc::O_RDONLY).with(LINKED),
                Request::nothing(),
            ];
            let made = ring.make(&requests, 3).expect("it is a ring");
            let (no_such, cancelled) = (-libc::ENOENT, -libc::ECANCELED);
            assert_eq!(made, [(0, 0), (1, no_such), (2, cancelled)]);
        }
    }
}
