//! Opens and other calls that fail, on the running kernel: only with the errors that rules ask for.
#![expect(
    unsafe_code,
    reason = "calls that the standard library keeps away from are what is tested"
)]

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions, Permissions},
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::Path,
    process::id,
    ptr,
};

use crate::bench::{self, Bench, Seen};
use libc::{c_long, syscall};
use sumun_abi::event::file::{ACCESS_READ, ACCESS_WRITE, CALL_COMPAT, OPEN_FAILED, OPEN_TRUNCATE};
use sumun_agent::{
    kernel::syscalls,
    receive::{
        file, kernel, privilege,
        record::{Body, Record},
    },
};
use sumun_policy::plan::{KindPlan, Plan};
use sumun_policy::{Lists, Predicate, errors::Errors};
use sumun_proto::v1::{Kind, Source};

fn load(bench: &mut Bench, predicate: &str, plan: KindPlan) {
    let predicate = Predicate::parse(predicate, &Lists::default()).unwrap();
    let plan = Plan {
        kinds: vec![(Kind::Open, plan)],
        failures: vec![(Kind::Open, Errors::asked(&predicate))],
        ..Plan::default()
    };
    let generation = bench.kernel().filter_generation() + 1;
    assert_eq!(bench.kernel().set_filter(&plan, generation).unwrap(), []);
}

/// Of this process: path, what was asked for, result.
fn told(seen: &[Seen]) -> Vec<(String, u32, i32)> {
    seen.iter()
        .filter_map(|record| match &record.body {
            Body::FailedOpen(open) if open.actor.pid == id() => {
                let event = file::failed_open(&Record::parse(&record.bytes).unwrap(), open);
                let file = event.file.unwrap();
                assert_eq!(file.source(), Source::Caller);
                assert_eq!((file.dev, file.ino), (0, 0));
                assert_ne!(file.flags & OPEN_FAILED, 0);
                let asked = file.flags & (ACCESS_READ | ACCESS_WRITE | OPEN_TRUNCATE);
                Some((file.path.unwrap(), asked, event.result.unwrap()))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn only_errors_that_are_asked_for_are_told() {
    let Some(mut bench) = bench::take("failed") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    fs::write(place("file"), "content").unwrap();
    let fail = || {
        // Not there; a directory for writing; below what is no directory.
        assert!(File::open(place("none")).is_err());
        assert!(
            OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(dir.path())
                .is_err()
        );
        assert!(File::open(place("file/below")).is_err());
        drop(File::open(place("file")).unwrap());
    };
    let path = |name: &str| place(name).to_str().unwrap().to_owned();
    let (none, below) = (path("none"), path("file/below"));
    let whole = dir.path().to_str().unwrap().to_owned();

    load(&mut bench, "file.trunc", KindPlan::None);
    fail();
    assert_eq!(told(&bench.settle()), []);

    // ENOENT 2, ENOTDIR 20, EISDIR 21.
    load(&mut bench, "result in [-2, -21]", KindPlan::None);
    fail();
    let wanted = [
        (none.clone(), ACCESS_READ, -2),
        (whole.clone(), ACCESS_WRITE | OPEN_TRUNCATE, -21),
    ];
    assert_eq!(told(&bench.settle()), wanted);

    load(&mut bench, "result < 0", KindPlan::All);
    fail();
    let seen = bench.settle();
    assert_eq!(
        told(&seen),
        [
            (none, ACCESS_READ, -2),
            (whole, ACCESS_WRITE | OPEN_TRUNCATE, -21),
            (below, ACCESS_READ, -20),
        ]
    );
    let opened =
        |record: &&Seen| matches!(&record.body, Body::Open(open) if open.actor.pid == id());
    assert_eq!(seen.iter().filter(opened).count(), 1);
}

/// Kinds of which calls that fail are told, but for opens.
const KINDS: [Kind; 16] = [
    Kind::Rename,
    Kind::Unlink,
    Kind::Chmod,
    Kind::Chown,
    Kind::Truncate,
    Kind::Link,
    Kind::Symlink,
    Kind::Setxattr,
    Kind::Mount,
    Kind::Umount,
    Kind::PivotRoot,
    Kind::Chroot,
    Kind::Setid,
    Kind::Capset,
    Kind::Unshare,
    Kind::Setns,
];

/// Asks for such failures, and for no call that succeeds.
fn ask(bench: &mut Bench, predicate: &str) {
    let predicate = Predicate::parse(predicate, &Lists::default()).unwrap();
    let errors = Errors::asked(&predicate);
    let plan = Plan {
        failures: KINDS.iter().map(|kind| (*kind, errors)).collect(),
        ..Plan::default()
    };
    let generation = bench.kernel().last_generation() + 1;
    assert_eq!(bench.kernel().set_filter(&plan, generation).unwrap(), []);
    drop(bench.settle());
}

/// Of this process: kind, call, result, and the path or target where there is one.
fn attempts(seen: &[Seen]) -> Vec<(Kind, String, i32, String)> {
    seen.iter()
        .filter(|record| record.actor().pid == id())
        .filter_map(|record| {
            let read = Record::parse(&record.bytes).unwrap();
            let event = match &record.body {
                Body::Change(kind, change) => file::change(*kind, &read, change),
                Body::Rename(names) => file::names(Kind::Rename, &read, names),
                Body::Unlink(names) => file::names(Kind::Unlink, &read, names),
                Body::Mount(kind, mount) => kernel::mount(*kind, &read, mount),
                Body::Credentials(kind, changed) => privilege::credentials(*kind, changed),
                Body::Spaces(kind, spaces) => privilege::spaces(*kind, spaces),
                _ => return None,
            };
            assert!(event.failed, "{event:?}");
            let path = event.file.as_ref().and_then(|file| file.path.clone());
            let target = event.kernel.as_ref().and_then(|of| of.target.clone());
            let path = path.or(target).unwrap_or_default();
            Some((
                event.kind(),
                event.call.clone(),
                event.result.unwrap(),
                path,
            ))
        })
        .collect()
}

/// What nobody but root may, tried by nobody in a thread of its own: what comes of it.
fn try_all(dir: &Path) -> Vec<(Kind, &'static str, c_long, String)> {
    const NOBODY: c_long = 65534;
    let text = |path: &Path| CString::new(path.to_str().unwrap()).unwrap();
    let (path, other) = (dir.join("file"), dir.join("other"));
    let (file, link, root) = (text(&path), text(&other), c"/".to_owned());
    let absent = dir.join("absent");
    let gone = text(&absent);
    let (path, absent) = (path.display().to_string(), absent.display().to_string());
    let (folder, dir) = (dir.display().to_string(), text(dir));
    let thread = std::thread::spawn(move || {
        let mut tried = Vec::new();
        let space = File::open("/proc/self/ns/uts").unwrap();
        let at = c_long::from(libc::AT_FDCWD);
        let none = ptr::null::<u8>();
        // No more than this thread is of them.
        // SAFETY: numbers.
        unsafe {
            assert_eq!(syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY), 0);
            assert_eq!(syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY), 0);
        }
        let mut tell = |kind, call, result: c_long, path: &str| {
            let errno = c_long::from(std::io::Error::last_os_error().raw_os_error().unwrap());
            assert_eq!(result, -1, "{call}");
            tried.push((kind, call, -errno, path.to_owned()));
        };
        let header = [0x2008_0522_u32, 0];
        let wanted = [1_u32, 1, 0, 0, 0, 0];
        let groups = [0_u32];
        // SAFETY: valid strings and memory of the given length; none of them does anything.
        unsafe {
            let result = syscall(libc::SYS_fchmodat, at, file.as_ptr(), 0o777);
            tell(Kind::Chmod, "fchmodat", result, &path);
            let result = syscall(libc::SYS_fchownat, at, file.as_ptr(), NOBODY, -1, 0);
            tell(Kind::Chown, "fchownat", result, &path);
            let result = syscall(libc::SYS_truncate, file.as_ptr(), 0);
            tell(Kind::Truncate, "truncate", result, &path);
            let result = syscall(libc::SYS_linkat, at, file.as_ptr(), at, link.as_ptr(), 0);
            tell(Kind::Link, "linkat", result, &path);
            let result = syscall(libc::SYS_symlinkat, file.as_ptr(), at, link.as_ptr());
            tell(Kind::Symlink, "symlinkat", result, &path);
            let result = syscall(libc::SYS_renameat2, at, file.as_ptr(), at, link.as_ptr(), 0);
            tell(Kind::Rename, "", result, &path);
            let result = syscall(libc::SYS_unlinkat, at, file.as_ptr(), 0);
            tell(Kind::Unlink, "", result, &path);
            let result = syscall(libc::SYS_unlinkat, at, gone.as_ptr(), 0);
            tell(Kind::Unlink, "", result, &absent);
            let result = syscall(libc::SYS_unlinkat, at, dir.as_ptr(), libc::AT_REMOVEDIR);
            tell(Kind::Unlink, "", result, &folder);
            let name = c"user.sumun";
            let result = syscall(
                libc::SYS_setxattr,
                file.as_ptr(),
                name.as_ptr(),
                file.as_ptr(),
                1,
                0,
            );
            tell(Kind::Setxattr, "setxattr", result, &path);
            let result = syscall(
                libc::SYS_mount,
                none,
                root.as_ptr(),
                none,
                libc::MS_REMOUNT,
                none,
            );
            tell(Kind::Mount, "mount", result, "/");
            let result = syscall(libc::SYS_umount2, root.as_ptr(), 0);
            tell(Kind::Umount, "umount2", result, "/");
            let result = syscall(libc::SYS_pivot_root, root.as_ptr(), dir.as_ptr());
            tell(Kind::PivotRoot, "pivot_root", result, "/");
            let result = syscall(libc::SYS_chroot, root.as_ptr());
            tell(Kind::Chroot, "chroot", result, "/");
            let result = syscall(libc::SYS_setresuid, 0, 0, 0);
            tell(Kind::Setid, "setresuid", result, "");
            let result = syscall(libc::SYS_setgroups, 1, groups.as_ptr());
            tell(Kind::Setid, "setgroups", result, "");
            let result = syscall(libc::SYS_capset, header.as_ptr(), wanted.as_ptr());
            tell(Kind::Capset, "capset", result, "");
            let result = syscall(libc::SYS_unshare, libc::CLONE_NEWUTS);
            tell(Kind::Unshare, "unshare", result, "");
            let flags = c_long::from(libc::CLONE_NEWUTS | libc::SIGCHLD);
            let result = syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
            tell(Kind::Unshare, "clone", result, "");
            let result = syscall(libc::SYS_setns, space.as_raw_fd(), 0);
            tell(Kind::Setns, "setns", result, "");
        }
        tried
    });
    thread.join().unwrap()
}

#[test]
fn attempts_are_told_only_if_asked_for() {
    let Some(mut bench) = bench::take("attempts") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.join("file"), "content").unwrap();
    // What is told of those that succeed, and nothing asks for failures.
    bench.ask(&KINDS);
    let tried = try_all(&dir);
    let told = bench.settle();
    let own: Vec<_> = told
        .iter()
        .filter(|record| record.actor().pid == id())
        .filter_map(|record| match &record.body {
            Body::Credentials(kind, changed) => Some((*kind, changed.result)),
            Body::Change(kind, change) => Some((*kind, change.result)),
            Body::Mount(kind, mount) => Some((*kind, mount.result)),
            Body::Spaces(kind, spaces) => Some((*kind, spaces.result)),
            _ => None,
        })
        .collect();
    // The two by which the thread became nobody.
    assert_eq!(own, [(Kind::Setid, 0), (Kind::Setid, 0)]);

    let wanted = |tried: &[(Kind, &str, c_long, String)], asked: &dyn Fn(c_long) -> bool| {
        tried
            .iter()
            .filter(|(_, _, result, _)| asked(*result))
            .map(|(kind, call, result, path)| {
                (*kind, (*call).to_owned(), *result as i32, path.clone())
            })
            .collect::<Vec<_>>()
    };
    assert!(wanted(&tried, &|result| result == -1).len() >= 12);
    // By decision points, where there are some, the same: one of each, and nothing is left behind.
    for points in [false, true] {
        bench.kernel().use_points(points);
        ask(&mut bench, "result < 0");
        let tried = try_all(&dir);
        assert_eq!(attempts(&bench.settle()), wanted(&tried, &|_| true));
        ask(&mut bench, "result == -1");
        let tried = try_all(&dir);
        assert_eq!(
            attempts(&bench.settle()),
            wanted(&tried, &|result| result == -1)
        );
        // Others by the thousand are none.
        let absent = c"/absent/file";
        for _ in 0..bench::times(20_000) {
            // SAFETY: a valid string.
            assert_eq!(unsafe { libc::chmod(absent.as_ptr(), 0o600) }, -1);
        }
        assert_eq!(attempts(&bench.settle()), []);
    }
    // What succeeds is not told to those who ask for failures.
    fs::set_permissions(dir.join("file"), Permissions::from_mode(0o600)).unwrap();
    assert_eq!(attempts(&bench.settle()), []);
}

#[test]
fn flags_of_32_bit_calls_stay_with_what_fails() {
    let Some(mut bench) = bench::take("attempts32") else {
        return;
    };
    #[cfg(target_arch = "x86_64")]
    {
        use crate::low::{Low, int80};
        if int80(20, 0, 0, 0, 0) != id() as i32 {
            eprintln!(
                "SKIPPED flags_of_32_bit_calls_stay_with_what_fails: this kernel has no 32-bit calls"
            );
            return;
        }
        let mut low = Low::new();
        let place = low.put(b"/absent/sumun");
        ask(&mut bench, "result == -2");
        // chmod, chroot.
        assert_eq!(int80(15, place, 0o600, 0, 0), -2);
        assert_eq!(int80(61, place, 0, 0, 0), -2);
        let path = "/absent/sumun".to_owned();
        let seen = bench.settle();
        assert_eq!(
            attempts(&seen),
            [
                (Kind::Chmod, "chmod".to_owned(), -2, path.clone()),
                (Kind::Chroot, "chroot".to_owned(), -2, path),
            ]
        );
        let compat = |record: &Seen| match &record.body {
            Body::Change(_, change) => Some((change.number, change.flags)),
            Body::Mount(_, mount) => Some((mount.number, mount.flags)),
            _ => None,
        };
        for (number, flags) in seen.iter().filter_map(compat) {
            assert_ne!(flags & CALL_COMPAT, 0);
            assert!(["chmod", "chroot"].contains(&syscalls::name(number, true).unwrap()));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (&mut bench, CALL_COMPAT, syscalls::name(0, true));
        eprintln!("SKIPPED flags_of_32_bit_calls_stay_with_what_fails: they are made as on x86");
    }
}
