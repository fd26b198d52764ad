//! Files of a process's folder in `/proc`, and never of what somebody has mounted over it: a file system of theirs need not
//! answer, and whoever waits for it can wait for ever, not even to be killed.

use std::cell::OnceCell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open as open_path, openat2};
use nix::sys::stat::Mode;

/// Opens a file below `/proc/PID`, by its path there, to be read. `/proc` is the one that was there when this thread asked first.
///
/// # Errors
/// `EXDEV` if a mount lies over the folder, the file, or what leads there; else as open(2). A kernel before 5.6 cannot be
/// asked to stop there: it opens what is mounted.
pub fn open(pid: u32, path: &str) -> io::Result<File> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_XDEV);
    match openat2(root()?, format!("{pid}/{path}").as_str(), how) {
        Ok(file) => Ok(file.into()),
        Err(Errno::ENOSYS) => File::open(format!("/proc/{pid}/{path}")),
        Err(errno) => Err(errno.into()),
    }
}

/// `/proc` itself, without a right to read. Each thread has its own: one can have a table of descriptors apart.
///
/// # Errors
/// What open(2) says.
pub fn root() -> io::Result<Rc<OwnedFd>> {
    thread_local! {
        static ROOT: OnceCell<Rc<OwnedFd>> = const { OnceCell::new() };
    }
    ROOT.with(|root| {
        if let Some(root) = root.get() {
            return Ok(Rc::clone(root));
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let opened = Rc::new(open_path("/proc", flags, Mode::empty())?);
        Ok(Rc::clone(root.get_or_init(|| opened)))
    })
}

/// True if it is not a process's own file that would be opened, but another's.
#[must_use]
pub fn is_covered(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EXDEV)
}

/// True if there is no such process, or none any more.
#[must_use]
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn only_the_own_folder_of_a_process_is_opened() {
        let own = std::process::id();
        let mut text = String::new();
        let mut file = open(own, "stat").expect("this process");
        file.read_to_string(&mut text).expect("its file");
        assert!(text.starts_with(&format!("{own} (")));
        let gone = open(u32::MAX, "stat").expect_err("no process");
        assert!(is_gone(&gone) && !is_covered(&gone), "{gone}");
        // Its root is of another file system, as what is mounted over a folder is.
        let other = open(own, "root/etc").expect_err("another mount");
        assert!(is_covered(&other), "{other}");
    }
}
