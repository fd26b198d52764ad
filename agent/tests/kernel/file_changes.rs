//! Permissions, owners, lengths, links and extended attributes on the running kernel, native and 32-bit.
#![expect(
    unsafe_code,
    reason = "calls that the standard library keeps away from are what is tested"
)]

use std::{
    ffi::CString,
    fs,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::Path,
};

use crate::bench::{self, Seen};
use libc::syscall;
use sumun_abi::{
    event::file::{CALL_COMPAT, CHANGE_OBJECT, Change},
    record::{SOURCE_CALLER, SOURCE_OBJECT},
};
use sumun_agent::{
    kernel::syscalls,
    receive::{
        file,
        record::{Body, Record},
    },
};
use sumun_proto::v1::{Event, Kind};

const KINDS: [Kind; 6] = [
    Kind::Chmod,
    Kind::Chown,
    Kind::Truncate,
    Kind::Link,
    Kind::Symlink,
    Kind::Setxattr,
];

/// Changes by this process: kind, record, event.
fn changes(seen: &[Seen]) -> Vec<(Kind, Change, Event)> {
    let pid = std::process::id();
    seen.iter()
        .filter_map(|record| match record.body {
            Body::Change(kind, change) if change.actor.pid == pid => {
                let read = Record::parse(&record.bytes).unwrap();
                Some((kind, change, file::change(kind, &read, &change)))
            }
            _ => None,
        })
        .collect()
}

fn call(change: &Change) -> &'static str {
    syscalls::name(change.number, change.flags & CALL_COMPAT != 0).unwrap()
}

fn text(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

#[test]
fn changes_by_path_and_by_descriptor_are_told() {
    let Some(mut bench) = bench::take("changes") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let path = dir.join("a");
    fs::write(&path, "content").unwrap();
    let (here, open) = (
        fs::File::open(&dir).unwrap(),
        fs::OpenOptions::new().write(true).open(&path).unwrap(),
    );
    bench.ask(&KINDS);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    open.set_permissions(fs::Permissions::from_mode(0o640))
        .unwrap();
    std::os::unix::fs::lchown(&path, Some(7), None).unwrap();
    std::os::unix::fs::fchown(&open, Some(0), Some(9)).unwrap();
    open.set_len(3).unwrap();
    nix::unistd::truncate(&path, 2).unwrap();
    fs::hard_link(&path, dir.join("b")).unwrap();
    std::os::unix::fs::symlink("../no/such", dir.join("c")).unwrap();
    nix::unistd::symlinkat("a", &here, "d").unwrap();
    nix::sys::stat::fchmodat(
        &here,
        "a",
        nix::sys::stat::Mode::S_IRUSR,
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )
    .unwrap();
    let (name, attribute) = (text(&path), CString::new("user.sumun").unwrap());
    // SAFETY: valid strings and a value of the given length.
    let set = unsafe {
        libc::setxattr(
            name.as_ptr(),
            attribute.as_ptr(),
            [1_u8].as_ptr().cast(),
            1,
            0,
        )
    };
    // The value, its size and the flags, XATTR_REPLACE here; from 6.13.
    let value = [1_u8];
    let arguments = [value.as_ptr() as u64, 1 | 2 << 32];
    // SAFETY: as above, and arguments of the given length.
    let set_at = unsafe {
        libc::syscall(
            463,
            here.as_raw_fd(),
            c"a".as_ptr(),
            0,
            attribute.as_ptr(),
            arguments.as_ptr(),
            size_of_val(&arguments),
        )
    };
    let why = std::io::Error::last_os_error();
    // An attempt that fails is nothing.
    assert!(fs::hard_link(dir.join("absent"), dir.join("e")).is_err());
    let seen = bench.settle();
    let found = changes(&seen);
    let own = |event: &Event| event.file.as_ref().unwrap().path.clone().unwrap();
    let short: Vec<_> = found
        .iter()
        .map(|(kind, change, event)| (*kind, own(event), change.flags & CHANGE_OBJECT != 0))
        .collect();
    let a = path.to_str().unwrap().to_owned();
    let mut wanted = vec![
        (Kind::Chmod, a.clone(), false),
        (Kind::Chmod, a.clone(), true),
        (Kind::Chown, a.clone(), false),
        (Kind::Chown, a.clone(), true),
        (Kind::Truncate, a.clone(), true),
        (Kind::Truncate, a.clone(), false),
        (Kind::Link, a.clone(), false),
        (Kind::Symlink, "../no/such".to_owned(), false),
        (Kind::Symlink, "a".to_owned(), false),
        (Kind::Chmod, a.clone(), false),
    ];
    if set == 0 {
        wanted.push((Kind::Setxattr, a.clone(), false));
    } else {
        eprintln!("SKIPPED setxattr: {}", std::io::Error::last_os_error());
    }
    if set_at == 0 {
        wanted.push((Kind::Setxattr, a.clone(), false));
    } else {
        eprintln!("SKIPPED setxattrat: {why}");
    }
    assert_eq!(short, wanted);
    let file = |at: usize| found[at].2.file.as_ref().unwrap();
    assert_eq!(
        (file(0).change, file(1).change),
        (Some(0o4755), Some(0o640))
    );
    assert_eq!((file(2).owner, file(2).group), (Some(7), None));
    assert_eq!((file(3).owner, file(3).group), (Some(0), Some(9)));
    assert_eq!((file(4).change, file(5).change), (Some(3), Some(2)));
    let names: Vec<_> = (6..9)
        .map(|at| file(at).new_path.clone().unwrap())
        .collect();
    assert_eq!(
        names,
        ["b", "c", "d"].map(|name| dir.join(name).to_str().unwrap().to_owned())
    );
    assert_eq!(file(9).change, Some(0o400));
    if set == 0 {
        assert_eq!(file(10).xattr.as_deref(), Some("user.sumun"));
    }
    if set_at == 0 {
        let (_, change, event) = found.last().unwrap();
        let file = event.file.as_ref().unwrap();
        assert_eq!(file.xattr.as_deref(), Some("user.sumun"));
        assert_eq!((change.value, call(change)), (2, "setxattrat"));
    }
    // Whose word it is: the object's, or the caller's in the kernel's directory.
    assert_eq!(found[0].1.name.source, SOURCE_CALLER);
    assert_eq!(found[1].1.name.source, SOURCE_OBJECT);
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((found[1].1.ino, found[0].1.ino), (meta.ino(), 0));
    assert_eq!(found[1].1.mode & 0o7777, 0o640);
    assert!(["chmod", "fchmodat"].contains(&call(&found[0].1)));
    assert_eq!(call(&found[1].1), "fchmod");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn thirty_two_bit_changes_are_told_too() {
    use crate::low::{Low, int80};
    let Some(mut bench) = bench::take("changes32") else {
        return;
    };
    if int80(20, 0, 0, 0, 0) != std::process::id() as i32 {
        eprintln!("SKIPPED thirty_two_bit_changes_are_told_too: this kernel has no 32-bit calls");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    fs::write(dir.join("a"), "content").unwrap();
    let mut low = Low::new();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (a, b) = (low.put(path("a").as_bytes()), low.put(path("b").as_bytes()));
    let open = fs::OpenOptions::new()
        .write(true)
        .open(dir.join("a"))
        .unwrap();
    bench.ask(&KINDS);
    // chmod, lchown of 16 bits, chown32, truncate, ftruncate64, link, symlink.
    assert_eq!(int80(15, a, 0o2711, 0, 0), 0);
    assert_eq!(int80(16, a, 5, 0xffff, 0), 0);
    assert_eq!(int80(212, a, u32::MAX, 70000, 0), 0);
    assert_eq!(int80(92, a, 3, 77, 0), 0);
    assert_eq!(int80(194, open.as_raw_fd() as u32, 5, 1, 0), 0);
    assert_eq!(int80(9, a, b, 0, 0), 0);
    let seen = bench.settle();
    let found = changes(&seen);
    let file = |at: usize| found[at].2.file.as_ref().unwrap();
    let calls: Vec<_> = found.iter().map(|(_, change, _)| call(change)).collect();
    assert_eq!(
        calls,
        ["chmod", "lchown", "chown", "truncate", "ftruncate", "link"]
    );
    assert!(
        found
            .iter()
            .all(|(_, change, _)| change.flags & CALL_COMPAT != 0)
    );
    assert_eq!(file(0).change, Some(0o2711));
    assert_eq!((file(1).owner, file(1).group), (Some(5), None));
    assert_eq!((file(2).owner, file(2).group), (None, Some(70000)));
    assert_eq!(file(3).change, Some(3));
    assert_eq!(file(4).change, Some(5 | 1 << 32));
    assert_eq!(file(5).new_path.as_deref(), Some(path("b").as_str()));
    // SAFETY: no memory is involved.
    unsafe { syscall(libc::SYS_ftruncate, open.as_raw_fd(), 0) };
}
