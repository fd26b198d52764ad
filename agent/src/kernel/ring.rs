//! A ring buffer that is read without being advanced: a record is given up
//! only once the caller says that it is safe elsewhere.
//!
//! Layout of the mapping (kernel/bpf/ringbuf.c): one page with the consumer's
//! position, one with the producer's, then the data twice in a row, so that a record
//! that wraps is read in one piece. Each record has an eight-byte header: length
//! with a busy and a discard bit, and a page offset. Lengths are rounded up to eight.
//! <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/ringbuf.c#L31>

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    slice,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

const BUSY: u32 = 1 << 31;
const DISCARD: u32 = 1 << 30;
const HEADER: u64 = 8;

/// One pinned ring, mapped. One reader at a time: the lock sees to that.
#[derive(Debug)]
pub struct Ring {
    fd: OwnedFd,
    consumer: Mapping,
    producer: Mapping,
    size: u64,
    page: usize,
    cursor: u64,
}

#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is memory that any thread may use; `Ring` is the one that decides how.
#[expect(unsafe_code, reason = "raw pointers are not Send by themselves")]
unsafe impl Send for Mapping {}

#[expect(unsafe_code, reason = "mmap of a BPF ring")]
impl Mapping {
    fn new(fd: &OwnedFd, len: usize, writable: bool, offset: usize) -> io::Result<Self> {
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Mapping { base, len })
    }

    fn position(&self) -> &AtomicU64 {
        // SAFETY: page-aligned, at least a page long, mapped as long as `self` lives, and
        // the kernel reads and writes it as an aligned 64-bit word.
        unsafe { self.base.cast::<AtomicU64>().as_ref() }
    }
}

#[expect(unsafe_code, reason = "munmap of a mapping of our own")]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; nothing borrows from it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl Ring {
    /// Maps a ring of `size` data bytes.
    ///
    /// # Errors
    /// The mapping is refused.
    pub fn new(fd: OwnedFd, size: u32) -> io::Result<Self> {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?
            .and_then(|page| usize::try_from(page).ok())
            .unwrap_or(4096);
        let consumer = Mapping::new(&fd, page, true, 0)?;
        let producer = Mapping::new(&fd, page + 2 * size as usize, false, page)?;
        let cursor = consumer.position().load(Ordering::Acquire);
        Ok(Ring {
            fd,
            consumer,
            producer,
            size: u64::from(size),
            page,
            cursor,
        })
    }

    /// Bytes that the ring holds.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that the kernel has written and nobody has given up.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        let produced = self.producer.position().load(Ordering::Acquire);
        produced.saturating_sub(self.consumer.position().load(Ordering::Relaxed))
    }

    /// True if there is something after the last drained record. Says so also for a
    /// record that was begun just after `commit`, so that waiting on the
    /// descriptor after a `false` loses no wake-up.
    #[must_use]
    pub fn has_more(&self) -> bool {
        fence(Ordering::SeqCst);
        self.producer.position().load(Ordering::Acquire) > self.cursor
    }

    /// Records after the last drained one, up to the first that is still
    /// being written, and at most about `max_bytes`. Nothing is given up: after a crash, or
    /// after [`Ring::rewind`], they are read again.
    pub fn drain(&mut self, max_bytes: u64) -> Drain<'_> {
        let produced = self.producer.position().load(Ordering::Acquire);
        let end = produced.min(self.cursor.saturating_add(max_bytes.max(1)));
        Drain {
            ring: self,
            end,
            produced,
        }
    }

    /// Position after the last drained record, for [`Ring::commit`].
    #[must_use]
    pub fn position(&self) -> u64 {
        self.cursor
    }

    /// Gives up everything before `position`, which a previous [`Ring::position`] returned.
    pub fn commit(&mut self, position: u64) {
        let consumer = self.consumer.position();
        if position > consumer.load(Ordering::Relaxed) && position <= self.cursor {
            consumer.store(position, Ordering::Release);
        }
    }

    /// Reads again from what was last committed.
    pub fn rewind(&mut self) {
        self.cursor = self.consumer.position().load(Ordering::Acquire);
    }

    /// The record at the cursor: its payload, or `None` for a discarded one. `Err`
    /// means that it is still being written.
    #[expect(unsafe_code, reason = "reads memory that the kernel writes")]
    fn next(&self) -> Result<(Option<&[u8]>, u64), ()> {
        let offset = self.page + (self.cursor & (self.size - 1)) as usize;
        // SAFETY: the offset is below page + size, eight-aligned, and the data is mapped
        // twice: 8 bytes are inside. The kernel writes the word atomically.
        let word = unsafe {
            self.producer
                .base
                .as_ptr()
                .add(offset)
                .cast::<AtomicU32>()
                .as_ref()
        }
        .ok_or(())?
        .load(Ordering::Acquire);
        if word & BUSY != 0 {
            return Err(());
        }
        let len = u64::from(word & !(BUSY | DISCARD));
        let next = self.cursor + (len + HEADER).next_multiple_of(8);
        if word & DISCARD != 0 || len > self.size - HEADER {
            return Ok((None, next));
        }
        // SAFETY: at most `size` bytes from an offset below page + size: inside the double
        // mapping. The kernel does not touch them before the consumer's position
        // passes them, which `commit` cannot do while this borrow lives.
        let payload = unsafe {
            slice::from_raw_parts(
                self.producer.base.as_ptr().add(offset + HEADER as usize),
                len as usize,
            )
        };
        Ok((Some(payload), next))
    }
}

impl AsFd for Ring {
    /// Readable (level-triggered) while there is something to read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Records of one [`Ring::drain`].
#[derive(Debug)]
pub struct Drain<'a> {
    ring: &'a mut Ring,
    end: u64,
    produced: u64,
}

impl Drain<'_> {
    /// The next record. It is lent until the next call; the ring cannot be committed meanwhile.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot lend")]
    pub fn next(&mut self) -> Option<&[u8]> {
        loop {
            if self.ring.cursor >= self.end || self.ring.cursor >= self.produced {
                return None;
            }
            let (payload, next) = self.ring.next().ok()?;
            let found = payload.map(|payload| (payload.as_ptr(), payload.len()));
            self.ring.cursor = next;
            if let Some((base, len)) = found {
                #[expect(
                    unsafe_code,
                    reason = "the borrow checker cannot see that the cursor does not move the data"
                )]
                // SAFETY: the same bytes as in `Ring::next`, lent for as long as `self` is
                // borrowed; nothing commits the ring during that time.
                return Some(unsafe { slice::from_raw_parts(base, len) });
            }
        }
    }
}
