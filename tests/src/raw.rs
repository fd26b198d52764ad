//! System calls that no safe wrapper offers: names in memory that another
//! thread rewrites meanwhile, 32-bit calls from a 64-bit process, a plain fork.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use nix::errno::Errno;

pub mod bpf;
mod name;
pub mod uring;

pub use name::Name;

/// close(2) of a number that may belong to nobody: errors are no matter.
pub fn close(fd: i32) {
    // SAFETY: closing a descriptor touches no memory.
    unsafe { libc::close(fd) };
}

/// dup2(2) onto a number that may belong to anybody in this process.
///
/// # Errors
/// As dup2(2).
pub fn dup2(from: i32, onto: i32) -> nix::Result<i32> {
    // SAFETY: duplicating a descriptor touches no memory.
    Errno::result(unsafe { libc::dup2(from, onto) })
}

/// Device (kernel encoding) and inode number of a descriptor; `None` when it is not open.
#[must_use]
pub fn identity(fd: i32) -> Option<(u64, u64)> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel fills the structure or fails.
    let stat = unsafe {
        if libc::fstat(fd, stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    Some((crate::oracle::kernel_dev(stat.st_dev), stat.st_ino))
}

/// Thread id of the caller.
#[must_use]
pub fn tid() -> u32 {
    // SAFETY: gettid cannot fail.
    u32::try_from(unsafe { libc::gettid() }).expect("thread ids are positive")
}

/// The calling thread gets descriptors of its own.
///
/// # Errors
/// As unshare(2).
pub fn unshare_files() -> nix::Result<()> {
    // SAFETY: only the descriptor table of this thread changes.
    Errno::result(unsafe { libc::unshare(libc::CLONE_FILES) }).map(drop)
}

/// fork, then execve in the child (which ends with status 127 if that fails). Returns the child's id.
///
/// # Errors
/// As fork(2).
pub fn fork_exec(path: &CStr, args: &[CString]) -> nix::Result<i32> {
    let mut argv: Vec<*const libc::c_char> = args.iter().map(|arg| arg.as_ptr()).collect();
    argv.push(std::ptr::null());
    let envp: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: the child of this threaded process calls only execve and _exit,
    // on memory prepared before the fork.
    unsafe {
        let child = Errno::result(libc::fork())?;
        if child == 0 {
            libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr());
            libc::_exit(127);
        }
        Ok(child)
    }
}

/// A child process that shares the open files of the caller, and ends after so many seconds. Returns its id.
///
/// # Errors
/// As clone(2).
pub fn clone_sharing_files(seconds: u32) -> nix::Result<i32> {
    let flags = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and without a stack this is a fork: the child has a copy of the memory
    // and calls only sleep and _exit.
    unsafe {
        let child = Errno::result(libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0))?;
        if child == 0 {
            libc::sleep(seconds);
            libc::_exit(0);
        }
        i32::try_from(child).map_err(|_| Errno::ESRCH)
    }
}

/// Runs a program to its end, bound to this thread; what it said, and its process id.
///
/// # Panics
/// It cannot be started.
pub fn run_here(command: &mut Command) -> (Output, i64) {
    bind_to_this_thread(command);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it can be started");
    let pid = child.id().into();
    (child.wait_with_output().expect("its end"), pid)
}

/// The program that `command` starts is killed when the thread that starts it is gone: nothing
/// outlives a test that was killed itself.
pub fn bind_to_this_thread(command: &mut Command) {
    // SAFETY: the closure makes one system call that is safe after fork, on constants.
    unsafe {
        command.pre_exec(|| {
            let result = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Errno::result(result).map(drop).map_err(io::Error::from)
        });
    }
}

/// getppid(2) by number: the cheapest call that enters the kernel.
pub fn getppid() {
    // SAFETY: cannot fail, touches nothing.
    unsafe { libc::syscall(libc::SYS_getppid) };
}
