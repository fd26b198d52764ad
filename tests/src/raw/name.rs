//! Names in memory that another thread rewrites while a call reads them.

use std::ffi::CStr;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::errno::Errno;

/// Bytes of a [`Name`].
const SIZE: usize = 4096;

/// A name in memory below 4 GiB, so that 32-bit calls can point to it, whose
/// bytes another thread may change while the kernel reads them.
#[derive(Debug)]
pub struct Name {
    start: *mut u8,
}

// SAFETY: every access from Rust goes through `AtomicU8`; the mapping lives
// until the last reference is gone.
unsafe impl Send for Name {}
// SAFETY: as above.
unsafe impl Sync for Name {}

impl Name {
    /// Maps memory and writes the name into it.
    ///
    /// # Errors
    /// The memory cannot be mapped.
    ///
    /// # Panics
    /// The name does not fit 4,095 bytes.
    pub fn new(name: &CStr) -> io::Result<Self> {
        #[cfg(target_arch = "x86_64")]
        let low = libc::MAP_32BIT;
        #[cfg(not(target_arch = "x86_64"))]
        let low = 0;
        // SAFETY: a new anonymous mapping overlaps nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | low,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let this = Self {
            start: start.cast(),
        };
        this.set(name);
        Ok(this)
    }

    /// Writes another name.
    ///
    /// # Panics
    /// The name does not fit 4,095 bytes.
    pub fn set(&self, name: &CStr) {
        for (index, byte) in name.to_bytes_with_nul().iter().enumerate() {
            self.byte(index).store(*byte, Ordering::Relaxed);
        }
    }

    /// One byte of it, to be changed under the kernel's eyes.
    ///
    /// # Panics
    /// The index is not within the mapping.
    #[must_use]
    pub fn byte(&self, index: usize) -> &AtomicU8 {
        assert!(index < SIZE, "index {index} is outside the name's memory");
        // SAFETY: within the mapping, which lives as long as `self`; u8 needs no alignment.
        unsafe { AtomicU8::from_ptr(self.start.add(index)) }
    }

    /// openat(AT_FDCWD, name, …) by number: nothing between here and the kernel reads the name.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(&self, flags: i32, mode: u32) -> nix::Result<i32> {
        // SAFETY: the pointer is to a mapping that holds a NUL.
        let fd =
            unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, self.start, flags, mode) };
        descriptor(fd)
    }

    /// openat2(AT_FDCWD, name, …).
    ///
    /// # Errors
    /// As openat2(2).
    pub fn openat2(&self, flags: i32, mode: u32) -> nix::Result<i32> {
        let how: [u64; 3] = [
            u64::try_from(flags).map_err(|_| Errno::EINVAL)?,
            u64::from(mode),
            0,
        ];
        // SAFETY: `how` is a struct open_how, the name as in `open`.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                libc::AT_FDCWD,
                self.start,
                how.as_ptr(),
                size_of_val(&how),
            )
        };
        descriptor(fd)
    }

    /// The 32-bit open(name, …), by `int $0x80`.
    ///
    /// # Errors
    /// As open(2); ENOSYS where the kernel has no 32-bit calls.
    #[cfg(target_arch = "x86_64")]
    pub fn open32(&self, flags: i32, mode: u32) -> nix::Result<i32> {
        const OPEN: u64 = 5;
        let name = self.start as u64;
        let mut result = OPEN;
        // SAFETY: the call reads the name and changes no memory of this process; rbx, which the
        // compiler keeps for itself, is restored; older kernels clear r8 to r11.
        unsafe {
            std::arch::asm!(
                "xchg rbx, {name}",
                "int 0x80",
                "xchg rbx, {name}",
                name = inout(reg) name => _,
                inout("rax") result,
                in("rcx") i64::from(flags),
                in("rdx") u64::from(mode),
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        // The kernel's answer is 32 bits wide here.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a 32-bit call answers with 32 bits"
        )]
        let answer = result as u32 as i32;
        if answer < 0 {
            Err(Errno::from_raw(-answer))
        } else {
            Ok(answer)
        }
    }

    /// There are no 32-bit calls of this kind on this processor.
    ///
    /// # Errors
    /// Always ENOSYS.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn open32(&self, _flags: i32, _mode: u32) -> nix::Result<i32> {
        Err(Errno::ENOSYS)
    }

    /// renameat2(AT_FDCWD, name, AT_FDCWD, to, 0).
    ///
    /// # Errors
    /// As rename(2).
    pub fn rename(&self, to: &CStr) -> nix::Result<()> {
        // SAFETY: both pointers hold a NUL and outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_renameat2,
                libc::AT_FDCWD,
                self.start,
                libc::AT_FDCWD,
                to.as_ptr(),
                0,
            )
        };
        Errno::result(result).map(drop)
    }

    /// unlinkat(AT_FDCWD, name, 0).
    ///
    /// # Errors
    /// As unlink(2).
    pub fn unlink(&self) -> nix::Result<()> {
        // SAFETY: the pointer holds a NUL and outlives the call.
        let result = unsafe { libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, self.start, 0) };
        Errno::result(result).map(drop)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, unmapped once.
        unsafe { libc::munmap(self.start.cast(), SIZE) };
    }
}

fn descriptor(answer: i64) -> nix::Result<i32> {
    let answer = Errno::result(answer)?;
    i32::try_from(answer).map_err(|_| Errno::EBADF)
}
