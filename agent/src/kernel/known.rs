//! Which file something is, as the kernel has it in memory: whoever asks does not wait for the file system, which
//! can be a program that never answers, and whose silence not even SIGKILL ends.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;

use nix::sys::stat::makedev;

/// A file, as it was known last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Device and inode, as of stat(2).
    pub id: (u64, u64),
    /// Names that it has.
    pub links: u32,
    /// Its owner.
    pub uid: u32,
    /// Type and permissions.
    pub mode: u32,
}

/// What a link of `/proc` leads to (`/proc/PID/exe`), or any path that needs no walk on a file system of others.
/// Linux 4.11.
///
/// # Errors
/// What statx(2) says.
#[expect(
    unsafe_code,
    reason = "statx has no safe wrapper that does not synchronise"
)]
pub fn known(path: &str) -> io::Result<Known> {
    let path = CString::new(path)?;
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: a text that ends with a zero and room for the answer, both of which outlive the call.
    let result = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT,
            libc::STATX_BASIC_STATS,
            stat.as_mut_ptr(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: plain numbers, for which zeroes are values, too.
    let stat = unsafe { stat.assume_init() };
    Ok(Known {
        id: (
            makedev(stat.stx_dev_major.into(), stat.stx_dev_minor.into()),
            stat.stx_ino,
        ),
        links: stat.stx_nlink,
        uid: stat.stx_uid,
        mode: stat.stx_mode.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn it_is_what_stat_says() {
        let stat = fs::metadata("/proc/self/exe").expect("this program");
        let expected = Known {
            id: (stat.dev(), stat.ino()),
            links: stat.nlink().try_into().expect("few names"),
            uid: stat.uid(),
            mode: stat.mode(),
        };
        assert_eq!(known("/proc/self/exe").ok(), Some(expected));
        let missing = known("/proc/self/missing").expect_err("nothing there");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
