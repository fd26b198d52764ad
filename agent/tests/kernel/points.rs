//! Calls that change names and attributes, as decision points see them: by the kernel's own objects, whatever the caller names.
//!
//! Where a kernel has no decision points each test says so and why.
#![expect(
    unsafe_code,
    reason = "names that change under the call are what is tested"
)]

use std::{
    ffi::CString,
    fs::{self, File},
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
};

use crate::bench::{self, Bench, Seen};
#[cfg(target_arch = "x86_64")]
use crate::low::{Low, int80};
use nix::{
    fcntl::{AT_FDCWD, OFlag, OpenHow, RenameFlags, openat2, renameat2},
    mount::{MntFlags, MsFlags, mount, umount2},
};
use sumun_abi::{
    event::file::{
        ACCESS_APPEND, ACCESS_PATH, ACCESS_READ, ACCESS_WRITE, CALL_COMPAT, NAMES_DIRECTORY,
        OPEN_CREATED, OPEN_TRUNCATE, Open,
    },
    record::{FLAW_RACY, SOURCE_OBJECT},
};
use sumun_agent::kernel::Kernel;
use sumun_agent::receive::{
    file,
    record::{Body, Record},
};
use sumun_policy::plan::{Clause, KindPlan, Plan};
use sumun_proto::{
    catalogue::kind_name,
    v1::{Event, File as OfFile, Kind, Source},
};

pub(crate) const KINDS: [Kind; 7] = [
    Kind::Rename,
    Kind::Unlink,
    Kind::Chmod,
    Kind::Chown,
    Kind::Truncate,
    Kind::Link,
    Kind::Symlink,
];

/// A kernel side whose decision points are used, or the reason why there is none.
pub(crate) fn points(name: &str) -> Option<Bench> {
    let mut bench = bench::take(name)?;
    if bench.kernel().points().is_empty() {
        bench.kernel().try_doors().unwrap();
    }
    let mut reasons = Vec::new();
    for status in bench.kernel().points() {
        let reason = status.reason.as_deref();
        eprintln!(
            "{:<10} {}",
            kind_name(status.kind),
            reason.unwrap_or("seen at its decision point")
        );
        reasons.extend(reason.map(str::to_owned));
    }
    if let Some(reason) = reasons.first() {
        // They come from one mechanism: some of them would be a fault.
        assert_eq!(reasons.len(), bench.kernel().points().len(), "{reasons:?}");
        eprintln!("SKIPPED {name}: {reason}");
        return None;
    }
    bench.kernel().use_points(true);
    Some(bench)
}

/// What this process did to files below a folder, in order.
pub(crate) fn told(seen: &[Seen], below: &Path) -> Vec<(Kind, Event)> {
    let pid = std::process::id();
    seen.iter()
        .filter_map(|record| {
            let read = Record::parse(&record.bytes).unwrap();
            let (kind, event) = match record.body {
                Body::Rename(names) => (Kind::Rename, file::names(Kind::Rename, &read, &names)),
                Body::Unlink(names) => (Kind::Unlink, file::names(Kind::Unlink, &read, &names)),
                Body::Change(kind, change) => (kind, file::change(kind, &read, &change)),
                _ => return None,
            };
            (record.actor().pid == pid).then_some((kind, event))
        })
        .filter(|(_, event)| {
            let file = of(event);
            [&file.path, &file.new_path].iter().any(|path| {
                path.as_ref()
                    .is_some_and(|path| Path::new(path).starts_with(below))
            })
        })
        .collect()
}

pub(crate) fn of(event: &Event) -> &OfFile {
    event.file.as_ref().unwrap()
}

pub(crate) fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(dir.path()).unwrap();
    (dir, path)
}

pub(crate) fn path_of(path: &Path) -> Option<String> {
    Some(path.to_str().unwrap().to_owned())
}

/// (device as the kernel has it, inode)
pub(crate) fn identity(path: &Path) -> (u32, u64) {
    let meta = fs::symlink_metadata(path).unwrap();
    (
        libc::major(meta.dev()) << 20 | libc::minor(meta.dev()),
        meta.ino(),
    )
}

#[test]
fn renames_and_unlinks_are_of_the_kernels_own_objects() {
    let Some(mut bench) = points("point-names") else {
        return;
    };
    let (_dir, dir) = folder();
    let at = |name: &str| dir.join(name);
    fs::create_dir(at("real")).unwrap();
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/in"), "").unwrap();
    symlink(at("real"), at("way")).unwrap();
    fs::write(at("real/a"), "").unwrap();
    fs::write(at("x"), "").unwrap();
    let (a, x, real) = (
        identity(&at("real/a")),
        identity(&at("x")),
        identity(&at("real")),
    );
    bench.ask(&KINDS);
    let here = File::open(&dir).unwrap();
    // By a link, by dots, from a descriptor; what fails is nothing, before the decision or after it.
    fs::rename(at("way/../way/./a"), at("real//b")).unwrap();
    assert!(fs::rename(at("absent"), at("d")).is_err());
    assert!(fs::remove_dir(at("full")).is_err());
    assert!(fs::rename(at("x"), at("full")).is_err());
    renameat2(&here, "way/b", &here, "x", RenameFlags::RENAME_EXCHANGE).unwrap();
    fs::remove_file(at("way/b")).unwrap();
    fs::remove_dir(at("real")).unwrap();
    let seen = bench.settle();
    let found = told(&seen, &dir);
    let short: Vec<_> = found
        .iter()
        .map(|(kind, event)| {
            let file = of(event);
            (
                *kind,
                file.path.clone(),
                file.new_path.clone(),
                (file.dev, file.ino),
            )
        })
        .collect();
    assert_eq!(
        short,
        [
            (
                Kind::Rename,
                path_of(&at("real/a")),
                path_of(&at("real/b")),
                a
            ),
            (Kind::Rename, path_of(&at("real/b")), path_of(&at("x")), a),
            (Kind::Unlink, path_of(&at("real/b")), None, x),
            (Kind::Unlink, path_of(&at("real")), None, real),
        ]
    );
    for (_, event) in &found {
        let file = of(event);
        assert_eq!((file.source(), file.flaws), (Source::Object, 0), "{file:?}");
        assert_eq!(file.new_flaws, 0, "{file:?}");
        assert_ne!(file.mode, 0);
    }
    assert_eq!(of(&found[1].1).call_flags, libc::RENAME_EXCHANGE);
    assert_eq!(of(&found[3].1).flags & NAMES_DIRECTORY, NAMES_DIRECTORY);
    assert_eq!(bench.kernel().points_full().unwrap(), 0);
    // Nobody asks any more: the caller's word again, and nothing is kept.
    bench.kernel().use_points(false);
    bench.ask(&[Kind::Unlink]);
    fs::remove_file(at("x")).unwrap();
    let seen = bench.settle();
    let found = told(&seen, &dir);
    let [(Kind::Unlink, event)] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!((of(event).source(), of(event).ino), (Source::Caller, 0));
}

#[test]
fn the_next_agent_takes_decision_points_over() {
    let Some(mut bench) = points("point-restart") else {
        return;
    };
    let (_dir, dir) = folder();
    let at = |name: &str| dir.join(name);
    bench.ask(&[Kind::Rename]);
    let moved = |name: &str| {
        fs::write(at(name), "").unwrap();
        let file = identity(&at(name));
        fs::rename(at(name), at(&format!("{name}-moved"))).unwrap();
        file
    };
    let before = moved("before");
    // Like a kill: nothing is released, and what is seen meanwhile is in the rings.
    bench.quit();
    let between = moved("between");
    // As the agent begins.
    let mut next = Kernel::load(&bench.config).unwrap();
    assert!(next.reused());
    next.try_doors().unwrap();
    let refused: Vec<_> = next
        .points()
        .iter()
        .filter_map(|of| of.reason.as_deref())
        .collect();
    assert!(refused.is_empty(), "{refused:?}");
    next.use_points(true);
    let loaded = moved("loaded");
    next.attach().unwrap();
    bench.kernel = Some(next);
    let attached = moved("attached");
    let mut seen = bench.settle();
    bench.ask(&[Kind::Rename]);
    let asked = moved("asked");
    seen.extend(bench.settle());
    let found: Vec<_> = told(&seen, &dir)
        .iter()
        .map(|(_, event)| {
            let file = of(event);
            (file.source(), (file.dev, file.ino), file.path.clone())
        })
        .collect();
    let expected = [
        ("before", before),
        ("between", between),
        ("loaded", loaded),
        ("attached", attached),
        ("asked", asked),
    ];
    let expected: Vec<_> = expected
        .map(|(name, file)| (Source::Object, file, path_of(&at(name))))
        .into();
    assert_eq!(found, expected);
}

#[test]
fn changes_are_of_the_kernels_own_objects() {
    let Some(mut bench) = points("point-changes") else {
        return;
    };
    let (_dir, dir) = folder();
    let at = |name: &str| dir.join(name);
    fs::create_dir(at("real")).unwrap();
    symlink(at("real"), at("way")).unwrap();
    fs::write(at("real/a"), "content").unwrap();
    symlink("a", at("real/to-a")).unwrap();
    let (a, to_a) = (identity(&at("real/a")), identity(&at("real/to-a")));
    let open = fs::OpenOptions::new()
        .write(true)
        .open(at("real/a"))
        .unwrap();
    bench.ask(&KINDS);
    fs::set_permissions(at("way/to-a"), fs::Permissions::from_mode(0o640)).unwrap();
    open.set_permissions(fs::Permissions::from_mode(0o600))
        .unwrap();
    std::os::unix::fs::lchown(at("way/to-a"), Some(7), None).unwrap();
    std::os::unix::fs::fchown(&open, Some(0), Some(9)).unwrap();
    nix::unistd::truncate(&at("way/to-a"), 3).unwrap();
    // An open that truncates is none of these; nor is a truncation by descriptor one by path.
    drop(File::create(at("way/to-a")).unwrap());
    open.set_len(2).unwrap();
    fs::hard_link(at("way/a"), at("way/b")).unwrap();
    symlink("../no/such", at("way/c")).unwrap();
    let seen = bench.settle();
    let found = told(&seen, &dir);
    let short: Vec<_> = found
        .iter()
        .map(|(kind, event)| {
            let file = of(event);
            (
                *kind,
                file.path.clone(),
                file.new_path.clone(),
                (file.dev, file.ino),
            )
        })
        .collect();
    let path = path_of(&at("real/a"));
    assert_eq!(
        short,
        [
            (Kind::Chmod, path.clone(), None, a),
            (Kind::Chmod, path.clone(), None, a),
            (Kind::Chown, path_of(&at("real/to-a")), None, to_a),
            (Kind::Chown, path.clone(), None, a),
            (Kind::Truncate, path.clone(), None, a),
            (Kind::Truncate, path.clone(), None, a),
            (Kind::Link, path.clone(), path_of(&at("real/b")), a),
            (
                Kind::Symlink,
                Some("../no/such".to_owned()),
                path_of(&at("real/c")),
                (0, 0)
            ),
        ]
    );
    for (kind, event) in &found {
        let file = of(event);
        let source = match kind {
            Kind::Symlink => Source::Copy,
            _ => Source::Object,
        };
        // By its descriptor a file is known as it is when ftruncate returns, and threads share the table.
        let flaws = match file.change {
            Some(2) => RACY,
            _ => 0,
        };
        assert_eq!(
            (file.source(), file.flaws, file.new_flaws),
            (source, flaws, 0),
            "{file:?}"
        );
        if matches!(kind, Kind::Link | Kind::Symlink) {
            assert_eq!(file.new_source(), Source::Object);
        }
    }
    assert_eq!(of(&found[4].1).change, Some(3));
}

/// A sibling rewrites the name while the call runs: what is told is what the call did.
#[test]
fn a_rewritten_name_misleads_nobody() {
    let Some(mut bench) = points("point-rewritten") else {
        return;
    };
    let (_dir, dir) = folder();
    let sides = ["side-a", "side-b"].map(|side| dir.join(side));
    for side in &sides {
        fs::create_dir(side).unwrap();
    }
    bench.ask(&[Kind::Rename, Kind::Unlink]);
    let mut name = CString::new(sides[0].join("f").to_str().unwrap())
        .unwrap()
        .into_bytes_with_nul();
    let place = sides[0].to_str().unwrap().len() - 1;
    let pointer = name.as_mut_ptr();
    // SAFETY: inside the text, which outlives the thread; from now on this byte is written through this reference only.
    let letter = unsafe { AtomicU8::from_ptr(pointer.add(place)) };
    let to = CString::new(dir.join("to").to_str().unwrap()).unwrap();
    let stop = AtomicBool::new(false);
    let (mut did, mut won) = (Vec::new(), 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                letter.fetch_xor(b'a' ^ b'b', Ordering::Relaxed);
                for _ in 0..20 {
                    std::hint::spin_loop();
                }
            }
        });
        for turn in 0..bench::times(4000) {
            let objects = [0, 1].map(|side: usize| {
                let path = sides[side].join("f");
                if !path.exists() {
                    fs::write(&path, "").unwrap();
                }
                (identity(&path), path)
            });
            let before = letter.load(Ordering::SeqCst);
            // SAFETY: texts that end with a zero, whatever stands in the one byte.
            let result = unsafe {
                match turn % 2 {
                    0 => libc::unlink(pointer.cast()),
                    _ => libc::rename(pointer.cast(), to.as_ptr()),
                }
            };
            let after = letter.load(Ordering::SeqCst);
            assert_eq!(result, 0);
            let gone: Vec<_> = (0..2).filter(|side| !objects[*side].1.exists()).collect();
            let [gone] = gone[..] else {
                panic!("{gone:?} are gone")
            };
            let its = [b'a', b'b'][gone];
            won += usize::from(before != its || after != its);
            let (identity, path) = &objects[gone];
            did.push((turn % 2, *identity, path_of(path)));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let seen = bench.settle();
    let found: Vec<_> = told(&seen, &dir)
        .iter()
        .map(|(kind, event)| {
            let file = of(event);
            assert_eq!(
                (file.source(), file.flaws & !RACY),
                (Source::Object, 0),
                "{file:?}"
            );
            (
                usize::from(*kind == Kind::Rename),
                (file.dev, file.ino),
                file.path.clone(),
            )
        })
        .collect();
    eprintln!("{won} of {} races won", did.len());
    assert!(won > 0, "no race was won: not exercised");
    assert_eq!(found.len(), did.len());
    for (found, did) in found.iter().zip(&did) {
        assert_eq!(found, did);
    }
}

/// A rename elsewhere while a path was walked.
const RACY: u32 = FLAW_RACY as u32;

/// A sibling swaps the folder on the way for another one while the call runs.
#[test]
fn a_swapped_parent_misleads_nobody() {
    let Some(mut bench) = points("point-parents") else {
        return;
    };
    let (_dir, dir) = folder();
    let boxes = ["p", "q"].map(|name| dir.join(name));
    for name in &boxes {
        fs::create_dir(name).unwrap();
    }
    bench.ask(&[Kind::Unlink]);
    let stop = AtomicBool::new(false);
    let mut did = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat2(
                    AT_FDCWD,
                    &boxes[0],
                    AT_FDCWD,
                    &boxes[1],
                    RenameFlags::RENAME_EXCHANGE,
                )
                .unwrap();
            }
        });
        for _ in 0..bench::times(2000) {
            // Of both files one is kept open, so that its fate can be told.
            let files = [0, 1].map(|side: usize| {
                let path = boxes[side].join("f");
                fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .unwrap()
            });
            if fs::remove_file(boxes[0].join("f")).is_err() {
                // Both were made in one.
                continue;
            }
            let gone = files
                .iter()
                .find(|file| file.metadata().unwrap().nlink() == 0);
            did.push(gone.map(|file| file.metadata().unwrap().ino()));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let seen = bench.settle();
    let found = told(&seen, &dir);
    assert_eq!(found.len(), did.len());
    for ((_, event), did) in found.iter().zip(&did) {
        let file = of(event);
        assert_eq!(file.source(), Source::Object);
        if let Some(ino) = did {
            assert_eq!(file.ino, *ino, "{file:?}");
        }
        assert!(
            boxes
                .iter()
                .any(|name| file.path == path_of(&name.join("f"))),
            "{file:?}"
        );
    }
    let sure = did.iter().flatten().count();
    eprintln!("{sure} of {} removals are known for certain", did.len());
    assert!(sure > did.len() / 10);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn thirty_two_bit_calls_come_by_decision_points() {
    let Some(mut bench) = points("point-compat") else {
        return;
    };
    let (_dir, dir) = folder();
    fs::write(dir.join("a"), "").unwrap();
    let ino = identity(&dir.join("a"));
    let mut low = Low::new();
    let mut text = |name: &str| low.put(dir.join(name).to_str().unwrap().as_bytes());
    let (a, b) = (text("./a"), text("./b"));
    if int80(20, 0, 0, 0, 0) != std::process::id() as i32 {
        eprintln!(
            "SKIPPED thirty_two_bit_calls_come_by_decision_points: this kernel has no 32-bit calls"
        );
        return;
    }
    bench.ask(&KINDS);
    // chmod, rename, unlink
    assert_eq!(int80(15, a, 0o600, 0, 0), 0);
    assert_eq!(int80(38, a, b, 0, 0), 0);
    assert_eq!(int80(10, b, 0, 0, 0), 0);
    let seen = bench.settle();
    let found: Vec<_> = told(&seen, &dir)
        .iter()
        .map(|(kind, event)| {
            let file = of(event);
            assert_ne!(file.flags & CALL_COMPAT, 0);
            assert_eq!((file.source(), (file.dev, file.ino)), (Source::Object, ino));
            (*kind, file.path.clone())
        })
        .collect();
    assert_eq!(
        found,
        [
            (Kind::Chmod, path_of(&dir.join("a"))),
            (Kind::Rename, path_of(&dir.join("a"))),
            (Kind::Unlink, path_of(&dir.join("b"))),
        ]
    );
}

/// Opens by this process of what is below a folder, in order.
pub(crate) fn opens(seen: &[Seen], below: &Path) -> Vec<(String, Open)> {
    let pid = std::process::id();
    seen.iter()
        .filter_map(|record| match record.body {
            Body::Open(open) if open.actor.pid == pid => Some((record.text(open.path), open)),
            _ => None,
        })
        .filter(|(path, _)| Path::new(path).starts_with(below))
        .collect()
}

pub(crate) fn below(dir: &Path) -> Plan {
    let clause = Clause {
        path_prefixes: Some(vec![format!("{}/", dir.display()).into_bytes()]),
        ..Clause::default()
    };
    Plan {
        kinds: vec![(Kind::Open, KindPlan::Clauses(vec![clause]))],
        ..Plan::default()
    }
}

pub(crate) fn set(bench: &mut Bench, plan: &Plan) {
    let generation = bench.kernel().last_generation() + 1;
    assert_eq!(bench.kernel().set_filter(plan, generation).unwrap(), []);
    drop(bench.settle());
}

#[test]
fn opens_are_of_the_file_that_was_decided_about() {
    let Some(mut bench) = points("point-open") else {
        return;
    };
    let (_dir, dir) = folder();
    let (_elsewhere, elsewhere) = folder();
    let at = |name: &str| dir.join(name);
    fs::create_dir(at("real")).unwrap();
    symlink(at("real"), elsewhere.join("way")).unwrap();
    fs::write(at("real/a"), "content").unwrap();
    set(&mut bench, &below(&dir));
    let way = |name: &str| elsewhere.join("way").join(name);
    let text = CString::new(way("a").to_str().unwrap()).unwrap();
    // Whatever threads share the table: that of the tests is shared.
    drop(File::open(way("a")).unwrap());
    drop(File::create_new(way("b")).unwrap());
    let how = OpenHow::new().flags(OFlag::O_WRONLY | OFlag::O_TRUNC | OFlag::O_APPEND);
    drop(openat2(AT_FDCWD, text.as_c_str(), how).unwrap());
    let reference = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(way("a"));
    drop(reference.unwrap());
    // Not allowed, not there, not asked about.
    assert!(fs::write(way(""), "").is_err());
    assert!(File::open(way("absent")).is_err());
    drop(File::create(elsewhere.join("c")).unwrap());
    let seen = bench.settle();
    let found = opens(&seen, &dir);
    let short: Vec<_> = found
        .iter()
        .map(|(path, open)| (path.as_str(), (open.dev, open.ino), open.flags))
        .collect();
    let (a, b) = (at("real/a"), at("real/b"));
    let a = (a.to_str().unwrap(), identity(&a));
    assert_eq!(
        short,
        [
            (a.0, a.1, ACCESS_READ),
            (
                b.to_str().unwrap(),
                identity(&b),
                ACCESS_READ | ACCESS_WRITE | OPEN_CREATED
            ),
            (a.0, a.1, ACCESS_WRITE | ACCESS_APPEND | OPEN_TRUNCATE),
            (a.0, a.1, ACCESS_PATH),
        ]
    );
    for (_, open) in &found {
        assert_eq!(open.path.source, SOURCE_OBJECT);
        let racy = if open.flags & ACCESS_PATH != 0 {
            FLAW_RACY
        } else {
            0
        };
        assert_eq!(open.path.flaws, racy, "{open:?}");
        assert!(open.fd > 2);
    }
}

/// A sibling closes or replaces the descriptor while the call returns: nothing is lost, and nothing is another file's.
#[test]
fn a_swapped_descriptor_misleads_nobody() {
    let Some(mut bench) = points("point-swap") else {
        return;
    };
    let (_dir, dir) = folder();
    let (_elsewhere, elsewhere) = folder();
    let secret = dir.join("secret");
    fs::write(&secret, "").unwrap();
    let its = identity(&secret);
    let decoy = File::create(elsewhere.join("decoy")).unwrap();
    set(&mut bench, &below(&dir));
    let name = CString::new(secret.to_str().unwrap()).unwrap();
    // SAFETY: a valid name; the descriptor is new, and closed at once: the next open gets its number.
    let target = unsafe {
        let target = libc::open(name.as_ptr(), libc::O_RDONLY);
        libc::close(target);
        target
    };
    assert!(target > 2);
    let stop = AtomicBool::new(false);
    let (mut done, mut won) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // SAFETY: numbers that only this test uses meanwhile.
                unsafe {
                    libc::dup2(decoy.as_raw_fd(), target);
                    libc::close(target);
                }
            }
        });
        // Where the processors are emulated, it takes a while until one is won.
        while done < bench::times(4000) || won == 0 && done < 20_000 {
            // SAFETY: a valid name, a structure to fill, and a number that only this test uses.
            unsafe {
                let fd = libc::open(name.as_ptr(), libc::O_RDONLY);
                assert!(fd >= 0);
                let mut meta: libc::stat = std::mem::zeroed();
                let there = libc::fstat(fd, &raw mut meta) == 0;
                won += usize::from(!there || meta.st_ino != its.1);
                libc::close(fd);
            }
            done += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    let seen = bench.settle();
    let found = opens(&seen, &dir);
    eprintln!("{won} of {done} races won");
    assert!(won > 0, "no race was won: not exercised");
    // And the one that found the number.
    bench.nothing_else_missing("sys_exit", done + 1 - found.len());
    for (_, open) in found {
        let known = (
            open.path.source,
            open.path.flaws & !FLAW_RACY,
            (open.dev, open.ino),
        );
        assert_eq!(known, (SOURCE_OBJECT, 0, its), "{open:?}");
    }
    drop(decoy);
}

/// An open of the kernel's own, whose call is no open, is not taken for the next one of its thread.
#[test]
fn an_open_of_the_kernels_own_is_not_the_next_ones() {
    let Some(mut bench) = points("point-inner") else {
        return;
    };
    let (_dir, dir) = folder();
    let area = dir.join("area");
    fs::write(&area, [0; 8192]).unwrap();
    set(&mut bench, &below(&dir));
    let name = CString::new(area.to_str().unwrap()).unwrap();
    // SAFETY: a valid name. It is no swap area: it is opened, looked at, and refused.
    assert_eq!(unsafe { libc::swapon(name.as_ptr(), 0) }, -1);
    drop(File::open("/dev/null").unwrap());
    drop(File::open(&area).unwrap());
    let seen = bench.settle();
    let found = opens(&seen, &dir);
    let [(path, open)] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(
        (path.as_str(), open.ino),
        (area.to_str().unwrap(), identity(&area).1)
    );
}

/// What overlayfs does below by itself is no call of anybody.
/// An overlay in a folder, over its `lower` with one file: where it is mounted. `None` if there can be none, which is said.
pub(crate) fn overlay(test: &str, dir: &Path, file: &str) -> Option<PathBuf> {
    let at = |name: &str| dir.join(name);
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(at(name)).unwrap();
    }
    fs::write(at("lower").join(file), "content").unwrap();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("lower").display(),
        at("upper").display(),
        at("work").display()
    );
    let merged = at("merged");
    let mounted = mount(
        Some("none"),
        &merged,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    );
    if let Err(errno) = mounted {
        eprintln!("SKIPPED {test}: no overlay can be mounted: {errno}");
        return None;
    }
    Some(merged)
}

#[test]
fn an_overlay_tells_one_call_once() {
    let Some(mut bench) = points("point-overlay") else {
        return;
    };
    let (_dir, dir) = folder();
    let Some(merged) = overlay("an_overlay_tells_one_call_once", &dir, "a") else {
        return;
    };
    bench.ask(&[&KINDS[..], &[Kind::Open]].concat());
    let results = [
        File::open(merged.join("a")).map(drop),
        fs::set_permissions(merged.join("a"), fs::Permissions::from_mode(0o600)),
        fs::rename(merged.join("a"), merged.join("b")),
        fs::remove_file(merged.join("b")),
    ];
    let seen = bench.settle();
    umount2(&merged, MntFlags::MNT_DETACH).unwrap();
    let opened = opens(&seen, &dir);
    assert_eq!(opened.len(), 1, "{opened:?}");
    assert_eq!(Some(&opened[0].0), path_of(&merged.join("a")).as_ref());
    for result in results {
        result.unwrap();
    }
    let found: Vec<_> = told(&seen, &dir)
        .iter()
        .map(|(kind, event)| (*kind, of(event).path.clone(), of(event).source()))
        .collect();
    assert_eq!(
        found,
        [
            (Kind::Chmod, path_of(&merged.join("a")), Source::Object),
            (Kind::Rename, path_of(&merged.join("a")), Source::Object),
            (Kind::Unlink, path_of(&merged.join("b")), Source::Object),
        ]
    );
}
