//! The root of all cgroups, and programs attached to it so that others' stay.

use std::{
    ffi::{CString, OsString},
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::Path,
};

use super::cgroup::{ROOT_INO, mounts_in};

// include/uapi/linux/bpf.h
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_LINK_CREATE: libc::c_long = 28;

/// Opens the root of the unified hierarchy: as it is mounted here, as the first process sees it, or by a mount of its own
/// that nobody sees.
///
/// # Errors
/// There is none to be had from here that covers the whole host, and why.
pub(super) fn host_root() -> Result<OwnedFd, String> {
    let mut partial = None;
    for (base, mounts) in [
        ("", "/proc/self/mountinfo"),
        ("/proc/1/root", "/proc/1/mountinfo"),
    ] {
        let text = fs::read_to_string(mounts).unwrap_or_default();
        for place in mounts_in(&text, "unified") {
            let mut path = OsString::from(base);
            path.push(place);
            let Ok(root) = fs::File::open(&path) else {
                continue;
            };
            match root.metadata() {
                Ok(found) if found.ino() == ROOT_INO => return Ok(root.into()),
                Ok(_) => {
                    partial.get_or_insert(path);
                }
                Err(_) => {}
            }
        }
    }
    let own = mounted().and_then(|root| {
        let root = fs::File::from(root);
        Ok((root.metadata()?.ino(), root))
    });
    match (own, partial) {
        (Ok((ROOT_INO, root)), _) => Ok(root.into()),
        (_, Some(path)) => Err(format!(
            "{} is the root of this cgroup namespace only, and programs on it would not cover the host: run the agent in the host's cgroup namespace, or with its pid namespace",
            path.display()
        )),
        (Ok(_), None) => Err(
            "this cgroup namespace shows a part of the host's cgroups only: run the agent in the host's".to_owned(),
        ),
        (Err(error), None) => Err(format!(
            "no unified hierarchy of cgroups is mounted, and it cannot be: {error}"
        )),
    }
}

/// A mount of the unified hierarchy that is in no mount namespace.
#[expect(unsafe_code, reason = "no crate has these calls")]
fn mounted() -> io::Result<OwnedFd> {
    const FSCONFIG_CMD_CREATE: libc::c_long = 6;
    let taken = |result: libc::c_long| match result {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: a descriptor that the call has just made.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
    };
    // SAFETY: the name is a C string; the other arguments are numbers.
    let context = taken(unsafe { libc::syscall(libc::SYS_fsopen, c"cgroup2".as_ptr(), 1) })?;
    // SAFETY: a descriptor and numbers; the command takes no texts.
    let made = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            std::ptr::null::<u8>(),
            std::ptr::null::<u8>(),
            0,
        )
    };
    if made == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor and numbers.
    let mount = taken(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, 0) })?;
    // That is a reference only, to which nothing can be attached.
    let root = fs::File::open(format!("/proc/self/fd/{}", mount.as_raw_fd()))?;
    Ok(root.into())
}

/// Attaches a program to a cgroup by a link, beside whatever is there. From 5.7.
#[expect(
    unsafe_code,
    reason = "aya hands out no link of this kind that can be pinned"
)]
pub(super) fn attach(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let attributes: [u32; 4] = [
        program.as_raw_fd().cast_unsigned(),
        cgroup.as_raw_fd().cast_unsigned(),
        attach_type,
        0,
    ];
    // SAFETY: the attributes live through the call and are as long as it is told.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_CREATE,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the call has just made.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Pins a link.
#[expect(unsafe_code, reason = "as above")]
pub(super) fn pin(link: impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let attributes = Attributes {
        path: path.as_ptr() as u64,
        fd: link.as_fd().as_raw_fd().cast_unsigned(),
        flags: 0,
    };
    // SAFETY: attributes and path live through the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_PIN,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::mounts_in;

    #[test]
    fn only_the_unified_hierarchy_is_taken() {
        let hybrid = "42 32 0:38 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw";
        let v1 = "43 32 0:39 / /sys/fs/cgroup/pids rw,nosuid shared:11 - cgroup cgroup rw,pids";
        assert_eq!(
            mounts_in(hybrid, "unified"),
            [Path::new("/sys/fs/cgroup/unified")]
        );
        assert!(mounts_in(v1, "unified").is_empty());
    }
}
