//! What the process takes from the kernel for its heap, and when it gives it back.
//!
//! By itself the C library keeps an arena for almost every thread, and keeps what was freed for
//! good once a large block has been freed: the loader's 25 MiB of parsed kernel types would
//! stay until the end. Other libraries than glibc have no such switches and need none.

/// Freed blocks of at least this size go back at once; so does more than this at the end of an arena.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: i32 = 256 * 1024;

/// Arenas of the heap: by itself eight for each processor. Here one thread, the reader, does
/// nearly all the work, and need only not wait for the others.
#[cfg(target_env = "gnu")]
const ARENAS: i32 = 4;

/// Bounds what the heap keeps. To be called before the first thread is started: arenas that exist stay.
#[cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "the C library's switches have no safe door")
)]
pub fn bound() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two integers and changes only the allocator's own parameters, under its lock. What
    // it does not know it leaves as it is.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}

/// Gives back every free page of the heap. Costs some milliseconds: for after
/// the start, and for when nothing is to be done.
#[cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "the C library's switches have no safe door")
)]
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches only memory that nobody has allocated, under the allocator's locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
