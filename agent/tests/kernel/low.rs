//! 32-bit calls, and memory that they can point to.
#![expect(unsafe_code, reason = "32-bit calls and their memory are made by hand")]

/// A 32-bit system call made from 64-bit code; pointers have to lie below 4 GiB.
pub(crate) fn int80(number: u32, a: u32, b: u32, c: u32, d: u32) -> i32 {
    let result: u64;
    // SAFETY: enters the kernel like any system call; rbx is saved by hand because the
    // compiler keeps it for itself, and the kernel clobbers r8 to r11.
    unsafe {
        std::arch::asm!(
            "push rbx",
            "mov ebx, {a:e}",
            "int 0x80",
            "pop rbx",
            a = in(reg) a,
            inlateout("rax") u64::from(number) => result,
            in("rcx") u64::from(b),
            in("rdx") u64::from(c),
            in("rsi") u64::from(d),
            in("rdi") 0_u64,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result as i32
}

/// Strings in memory that a 32-bit call can point to.
pub(crate) struct Low(*mut u8, usize);

impl Low {
    pub(crate) fn new() -> Self {
        // SAFETY: a new anonymous mapping in the low 2 GiB, leaked with the test.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                -1,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Low(at.cast(), 0)
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) -> u32 {
        assert!(self.1 + bytes.len() < 4096);
        // SAFETY: inside the mapping.
        unsafe {
            let at = self.0.add(self.1);
            at.copy_from(bytes.as_ptr(), bytes.len());
            self.1 += (bytes.len() + 1).next_multiple_of(8);
            at as u32
        }
    }
}
