//! Opens, closes, renames and unlinks on the running kernel, native and 32-bit.
#![expect(
    unsafe_code,
    reason = "raw descriptors and 32-bit calls are what is tested"
)]

use std::{
    fs,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
};

use crate::bench::{self, Seen};
#[cfg(target_arch = "x86_64")]
use crate::low::{Low, int80};
use sumun_abi::{
    event::file::*,
    record::{FLAW_LOST, FLAW_RACY, SOURCE_CALLER, SOURCE_OBJECT},
};
use sumun_agent::receive::record::Body;
use sumun_policy::plan::{KindPlan, Plan};
use sumun_proto::v1::Kind;

fn all(kinds: &[Kind]) -> Plan {
    Plan {
        kinds: kinds.iter().map(|kind| (*kind, KindPlan::All)).collect(),
        ..Plan::default()
    }
}

/// Opens by this process, as (path, record).
fn opens(seen: &[Seen]) -> Vec<(String, Open)> {
    let own = std::process::id();
    seen.iter()
        .filter_map(|record| match record.body {
            Body::Open(open) if open.actor.pid == own => Some((record.text(open.path), open)),
            _ => None,
        })
        .collect()
}

fn open_of(seen: &[Seen], path: &std::path::Path) -> Open {
    let found: Vec<_> = opens(seen)
        .into_iter()
        .filter(|(found, _)| found == path.to_str().unwrap())
        .collect();
    let [(_, open)] = found[..] else {
        panic!("{} opens of {}", found.len(), path.display())
    };
    open
}

#[test]
fn opens_say_what_was_granted_and_where_the_object_is() {
    let Some(mut bench) = bench::take("open") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let (first, second, third) = (dir.join("first"), dir.join("second"), dir.join("third"));
    fs::write(&second, "content").unwrap();
    std::os::unix::fs::symlink(&second, dir.join("link")).unwrap();
    let generation = bench.generation(7);
    bench
        .kernel()
        .set_filter(&all(&[Kind::Open]), generation)
        .unwrap();
    drop(bench.settle());

    drop(fs::File::create_new(&first).unwrap());
    drop(
        fs::OpenOptions::new()
            .append(true)
            .open(dir.join("link"))
            .unwrap(),
    );
    drop(
        fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(dir.join("./first"))
            .unwrap(),
    );
    drop(
        fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(&dir)
            .unwrap(),
    );
    assert!(fs::File::open(dir.join("absent")).is_err());
    // openat2 and creat, which the standard library does not use.
    let name = std::ffi::CString::new(third.to_str().unwrap()).unwrap();
    let how = nix::fcntl::OpenHow::new()
        .flags(nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_CREAT | nix::fcntl::OFlag::O_TRUNC)
        .mode(nix::sys::stat::Mode::S_IRWXU);
    drop(nix::fcntl::openat2(nix::fcntl::AT_FDCWD, name.as_c_str(), how).unwrap());
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: a valid name; the descriptor is new and ours.
        let fd = unsafe { libc::syscall(libc::SYS_creat, name.as_ptr(), 0o600) };
        assert!(fd >= 0);
        drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    }

    let seen = bench.settle();
    let found: Vec<_> = opens(&seen)
        .into_iter()
        .filter(|(path, _)| path == first.to_str().unwrap())
        .collect();
    let [(_, created), (_, again)] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(created.flags, ACCESS_READ | ACCESS_WRITE | OPEN_CREATED);
    assert_eq!(again.flags, ACCESS_WRITE | OPEN_TRUNCATE);
    let meta = fs::metadata(&first).unwrap();
    assert_eq!(created.ino, meta.ino());
    assert_eq!(
        (created.dev >> 20, created.dev & 0xf_ffff),
        (libc::major(meta.dev()), libc::minor(meta.dev()))
    );
    assert_eq!(created.mode, meta.mode());
    assert_eq!(
        (created.path.source, created.path.flaws & !FLAW_RACY),
        (SOURCE_OBJECT, 0)
    );
    assert_eq!(created.header.generation, generation);
    assert_eq!(open_of(&seen, &second).flags, ACCESS_WRITE | ACCESS_APPEND);
    assert_eq!(open_of(&seen, &dir).flags, ACCESS_PATH);
    let found: Vec<_> = opens(&seen)
        .into_iter()
        .filter(|(path, _)| path == third.to_str().unwrap())
        .collect();
    assert_eq!(
        found[0].1.flags,
        ACCESS_READ | ACCESS_WRITE | OPEN_CREATED | OPEN_TRUNCATE
    );
    #[cfg(target_arch = "x86_64")]
    assert_eq!(found[1].1.flags, ACCESS_WRITE | OPEN_TRUNCATE);
    assert!(
        !opens(&seen)
            .iter()
            .any(|(path, _)| path.ends_with("absent"))
    );
}

#[test]
fn paths_cross_mounts_and_depth_is_marked() {
    let Some(mut bench) = bench::take("walk") else {
        return;
    };
    bench.ask(&[Kind::Open]);
    drop(fs::File::open("/proc/self/../version").unwrap());
    drop(fs::File::open("/").unwrap());
    drop(fs::File::open("/proc").unwrap());
    // Deeper than any walk: the end is there, the start is cut and marked.
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d/".repeat(100));
    fs::create_dir_all(&deep).unwrap();
    drop(fs::File::create(deep.join("bottom")).unwrap());
    let seen = bench.settle();
    assert_eq!(
        open_of(&seen, "/proc/version".as_ref()).path.flaws & !FLAW_RACY,
        0
    );
    assert_eq!(open_of(&seen, "/".as_ref()).path.flaws & !FLAW_RACY, 0);
    assert_eq!(open_of(&seen, "/proc".as_ref()).path.flaws & !FLAW_RACY, 0);
    let cut: Vec<_> = opens(&seen)
        .into_iter()
        .filter(|(path, _)| path.ends_with("/bottom"))
        .collect();
    let [(path, open)] = &cut[..] else {
        panic!("{cut:?}")
    };
    assert!(path.starts_with("/d/d/d"), "{path}");
    assert_eq!(
        open.path.flaws & !FLAW_RACY,
        sumun_abi::record::FLAW_TRUNCATED
    );
}

#[test]
fn a_descriptor_that_is_gone_is_told_with_the_callers_name() {
    let Some(mut bench) = bench::take("lost") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let target = fs::canonicalize(dir.path()).unwrap().join("target");
    fs::write(&target, "").unwrap();
    bench.ask(&[Kind::Open]);
    drop(bench.settle());
    // A sibling closes whatever descriptor the opener is about to get.
    let probe = fs::File::open(&target).unwrap();
    // The number that the next open gets is the one that the last one got.
    let fd = std::sync::Arc::new(std::sync::atomic::AtomicI32::new(probe.as_raw_fd()));
    drop(probe);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let sibling = {
        let (stop, fd) = (stop.clone(), fd.clone());
        std::thread::spawn(move || {
            let mut closed = 0_u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // SAFETY: closing a number that nobody owns by type is what is tested; the
                // opener below uses raw descriptors.
                if unsafe { libc::close(fd.load(std::sync::atomic::Ordering::Relaxed)) } == 0 {
                    closed += 1;
                }
            }
            closed
        })
    };
    let name = std::ffi::CString::new(target.to_str().unwrap()).unwrap();
    let mut tries = 0_u64;
    let mut counted = (0_u64, 0_u64);
    let begun = std::time::Instant::now();
    while counted.0 == 0 && begun.elapsed() < std::time::Duration::from_secs(60) {
        for _ in 0..bench::times(2000) {
            // SAFETY: a valid name.
            let opened = unsafe { libc::open(name.as_ptr(), libc::O_RDONLY) };
            assert!(opened >= 0);
            let before = fd.swap(opened, std::sync::atomic::Ordering::Relaxed);
            if opened != before {
                // SAFETY: at worst closed already; nothing else opens files in this test.
                unsafe { libc::close(before) };
            }
            tries += 1;
        }
        for (path, open) in opens(&bench.drain()) {
            assert_ne!(
                open.path.flaws & FLAW_RACY,
                0,
                "threads share the table: {open:?}"
            );
            if open.path.flaws & FLAW_LOST != 0 {
                assert_eq!((path.as_str(), open.ino), (target.to_str().unwrap(), 0));
                assert_eq!(open.path.source, SOURCE_CALLER);
                counted.0 += 1;
            } else if path == target.to_str().unwrap() {
                counted.1 += 1;
            }
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let closed = sibling.join().unwrap();
    eprintln!(
        "of {tries} opens {closed} were closed by the sibling, {} were lost, {} seen",
        counted.0, counted.1
    );
    assert!(counted.0 > 0, "no race was won: not exercised");
}

#[test]
fn closes_are_told_while_they_are_asked_for() {
    let Some(mut bench) = bench::take("close") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let closes = |seen: &[Seen]| -> Vec<String> {
        seen.iter()
            .filter_map(|record| match record.body {
                Body::CloseWrite(open) if open.actor.pid == std::process::id() => {
                    assert_ne!(open.flags & ACCESS_WRITE, 0);
                    Some(record.text(open.path))
                }
                _ => None,
            })
            .filter(|path| path.starts_with(dir.to_str().unwrap()))
            .collect()
    };
    bench.ask(&[Kind::CloseWrite]);
    fs::write(dir.join("one"), "").unwrap();
    drop(fs::File::open(dir.join("one")).unwrap());
    assert_eq!(closes(&bench.settle()), [dir.join("one").to_str().unwrap()]);
    bench.ask(&[]);
    fs::write(dir.join("two"), "").unwrap();
    assert_eq!(closes(&bench.settle()), Vec::<String>::new());
    bench.ask(&[Kind::CloseWrite]);
    fs::write(dir.join("three"), "").unwrap();
    assert_eq!(
        closes(&bench.settle()),
        [dir.join("three").to_str().unwrap()]
    );
}

#[test]
fn renames_and_unlinks_carry_the_directory_and_the_callers_name() {
    let Some(mut bench) = bench::take("names") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    fs::write(dir.join("a"), "").unwrap();
    bench.ask(&[Kind::Rename, Kind::Unlink]);
    let here = fs::File::open(&dir).unwrap();
    let sub = fs::File::open(dir.join("sub")).unwrap();
    nix::fcntl::renameat2(
        &here,
        "a",
        &sub,
        "b",
        nix::fcntl::RenameFlags::RENAME_NOREPLACE,
    )
    .unwrap();
    fs::rename(dir.join("sub/b"), dir.join("c")).unwrap();
    assert!(fs::rename(dir.join("absent"), dir.join("d")).is_err());
    nix::unistd::unlinkat(&here, "c", nix::unistd::UnlinkatFlags::NoRemoveDir).unwrap();
    fs::remove_dir(dir.join("sub")).unwrap();
    let seen = bench.settle();
    let own = std::process::id();
    let names: Vec<_> = seen
        .iter()
        .filter_map(|record| match record.body {
            Body::Rename(names) | Body::Unlink(names) if names.actor.pid == own => Some((
                matches!(record.body, Body::Rename(_)),
                record.text(names.base),
                record.text(names.name),
                record.text(names.to_base),
                record.text(names.to_name),
                names,
            )),
            _ => None,
        })
        .filter(|(_, base, name, ..)| {
            base.starts_with(dir.to_str().unwrap()) || name.starts_with(dir.to_str().unwrap())
        })
        .collect();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let short: Vec<_> = names
        .iter()
        .map(|(rename, base, name, to_base, to_name, _)| {
            (
                *rename,
                base.as_str(),
                name.as_str(),
                to_base.as_str(),
                to_name.as_str(),
            )
        })
        .collect();
    assert_eq!(
        short,
        [
            (true, dir.to_str().unwrap(), "a", path("sub").as_str(), "b"),
            (true, "", path("sub/b").as_str(), "", path("c").as_str()),
            (false, dir.to_str().unwrap(), "c", "", ""),
            (false, "", path("sub").as_str(), "", ""),
        ]
    );
    assert_eq!(names[0].5.call_flags, libc::RENAME_NOREPLACE);
    assert_eq!(names[0].5.name.source, SOURCE_CALLER);
    assert_eq!(names[0].5.base.source, SOURCE_OBJECT);
    assert_eq!(names[2].5.flags & NAMES_DIRECTORY, 0);
    assert_eq!(names[3].5.flags & NAMES_DIRECTORY, NAMES_DIRECTORY);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn thirty_two_bit_calls_are_no_way_around() {
    let Some(mut bench) = bench::take("compat") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    fs::write(dir.join("a"), "").unwrap();
    let mut low = Low::new();
    let text = |name: &str| dir.join(name).to_str().unwrap().as_bytes().to_vec();
    let (a, b) = (low.put(&text("a")), low.put(&text("b")));
    if int80(20, 0, 0, 0, 0) != std::process::id() as i32 {
        eprintln!(
            "SKIPPED thirty_two_bit_calls_are_no_way_around: this kernel has no 32-bit calls"
        );
        return;
    }
    bench.ask(&[Kind::Open, Kind::CloseWrite, Kind::Rename, Kind::Unlink]);
    // open, openat, openat2, creat; close; rename, renameat2; unlink, rmdir.
    let flags = (libc::O_WRONLY | libc::O_TRUNC) as u32;
    let how = low.put(&[u64::from(flags).to_ne_bytes(), [0; 8], [0; 8]].concat());
    let cwd = libc::AT_FDCWD as u32;
    for fd in [
        int80(5, a, flags, 0, 0),
        int80(295, cwd, a, flags, 0),
        int80(437, cwd, a, how, 24),
        int80(8, a, 0o600, 0, 0),
    ] {
        assert!(fd >= 0, "{fd}");
        assert_eq!(int80(6, fd as u32, 0, 0, 0), 0);
    }
    assert_eq!(int80(38, a, b, 0, 0), 0);
    assert_eq!(int80(353, cwd, b, cwd, a), 0);
    assert_eq!(int80(10, a, 0, 0, 0), 0);
    // The same numbers, native, are other calls and no events: fstat, mprotect, setitimer …
    let seen = bench.settle();
    let own = std::process::id();
    let mut got = Vec::new();
    for record in &seen {
        let (kind, text, flags) = match record.body {
            Body::Open(open) if open.actor.pid == own => {
                ("open", record.text(open.path), open.flags)
            }
            Body::CloseWrite(open) if open.actor.pid == own => {
                ("close", record.text(open.path), open.flags)
            }
            Body::Rename(names) if names.actor.pid == own => {
                ("rename", record.text(names.name), names.flags)
            }
            Body::Unlink(names) if names.actor.pid == own => {
                ("unlink", record.text(names.name), names.flags)
            }
            _ => continue,
        };
        if text.starts_with(dir.to_str().unwrap()) {
            got.push((kind, text.rsplit('/').next().unwrap().to_owned(), flags));
        }
    }
    let open = (
        "open",
        "a".to_owned(),
        ACCESS_WRITE | OPEN_TRUNCATE | CALL_COMPAT,
    );
    let close = ("close", "a".to_owned(), ACCESS_WRITE | CALL_COMPAT);
    let mut wanted = Vec::new();
    wanted.extend(std::iter::repeat_n(open, 4));
    wanted.extend(std::iter::repeat_n(close, 4));
    wanted.push(("rename", "a".to_owned(), CALL_COMPAT));
    wanted.push(("rename", "b".to_owned(), CALL_COMPAT));
    wanted.push(("unlink", "a".to_owned(), CALL_COMPAT));
    assert_eq!(got, wanted);
}
