//! Renames and removals as fanotify tells of them, where there are no decision points: what was done, judged from outside, whatever
//! the calls named.
//!
//! Where a kernel does not tell, each test says so and why.
#![expect(
    unsafe_code,
    reason = "names and descriptors that change under the call are what is tested"
)]

use std::{
    collections::HashMap,
    ffi::CString,
    fs::{self, File},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::{MetadataExt as _, symlink},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
    time::{Duration, Instant},
};

use crate::bench::{self, Bench};
#[cfg(target_arch = "x86_64")]
use crate::low::{Low, int80};
use crate::rings;
use nix::{
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use sumun_abi::{
    event::file::{CALL_COMPAT, NAMES_DIRECTORY},
    record::FLAW_RACY,
};
use sumun_agent::{
    enrich::changes::{By, Changes},
    kernel::handles,
    receive::{
        file,
        record::{Body, Record},
    },
};
use sumun_proto::v1::{Event, File as OfFile, Kind, Source};

/// The kernel side without decision points, and the other witness.
struct Both {
    bench: Bench,
    changes: Changes,
    dir: PathBuf,
    /// By records, in order; and by nothing but events.
    told: Vec<Event>,
    alone: Vec<Event>,
    /// Who did those.
    by: Vec<By>,
    /// Threads that did something of which there was no record when it was read.
    strangers: Vec<u32>,
    _dir: tempfile::TempDir,
}

fn both(name: &str, kinds: &[Kind]) -> Option<Both> {
    if let Err(why) = handles::try_out() {
        eprintln!("SKIPPED {name}: {why}");
        return None;
    }
    let mut bench = bench::take(name)?;
    let dir = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(dir.path()).unwrap();
    let mut changes = Changes::default();
    changes.set(kinds).unwrap();
    bench.ask(kinds);
    Some(Both {
        bench,
        changes,
        dir: path,
        told: Vec::new(),
        alone: Vec::new(),
        by: Vec::new(),
        strangers: Vec::new(),
        _dir: dir,
    })
}

fn now() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
    now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned()
}

impl Both {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A cycle, as of the pipeline: first what is told, then the records.
    fn cycle(&mut self) {
        let strangers = self.changes.read(now);
        self.strangers
            .extend(strangers.into_iter().map(|stranger| stranger.tid));
        let (pid, below) = (std::process::id(), self.dir.clone());
        for seen in self.bench.drain() {
            let read = Record::parse(&seen.bytes).unwrap();
            let kind = match read.body {
                Body::Rename(_) => Kind::Rename,
                Body::Unlink(_) => Kind::Unlink,
                _ => continue,
            };
            let (Body::Rename(names) | Body::Unlink(names)) = read.body else {
                continue;
            };
            let mut event = file::names(kind, &read, &names);
            let actor = names.actor;
            self.changes
                .confirm(&mut event, &actor, read.header.boot_ns, true);
            if actor.pid == pid && is_below(&event, &below) {
                self.told.push(event);
            }
        }
        self.alone_until(0);
    }

    /// Until what was left over of this thread counts no more.
    fn forget(&mut self) {
        std::thread::sleep(Duration::from_millis(1100));
        self.cycle();
    }

    fn alone_until(&mut self, through_ns: u64) {
        let below = self.dir.clone();
        let alone = self.changes.alone(through_ns, 0, now());
        for one in alone.into_iter().filter(|one| is_below(&one.event, &below)) {
            self.alone.push(one.event);
            self.by.push(one.by);
        }
        self.changes.written(now());
    }

    /// Until everything of before is told.
    fn settle(&mut self) {
        // What is done behind this is done before the end of it is read.
        std::thread::sleep(Duration::from_millis(20));
        self.cycle();
        self.cycle();
        self.alone_until(u64::MAX / 2);
    }

    /// All that is told with the kernel's word, by what is told of it: a removal's path and inode.
    fn removed(&self) -> HashMap<(String, u64), usize> {
        let mut all = HashMap::new();
        for event in self.told.iter().chain(&self.alone) {
            let file = of(event);
            if event.kind() == Kind::Unlink && file.source() == Source::Object {
                *all.entry((file.path.clone().unwrap(), file.ino))
                    .or_default() += 1;
            }
        }
        all
    }
}

fn is_below(event: &Event, below: &Path) -> bool {
    let path = of(event).path.as_ref();
    path.is_some_and(|path| Path::new(path).starts_with(below))
}

fn of(event: &Event) -> &OfFile {
    event.file.as_ref().unwrap()
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// (device as the kernel has it, inode)
fn identity(path: &Path) -> (u32, u64) {
    let meta = fs::symlink_metadata(path).unwrap();
    let (major, minor) = (libc::major(meta.dev()), libc::minor(meta.dev()));
    (major << 20 | minor, meta.ino())
}

const KINDS: [Kind; 2] = [Kind::Rename, Kind::Unlink];

#[test]
fn what_was_named_and_done_is_the_kernels_word() {
    let Some(mut both) = both("names-names", &KINDS) else {
        return;
    };
    let dir = both.dir.clone();
    let at = |name: &str| dir.join(name);
    fs::create_dir(at("real")).unwrap();
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/in"), "").unwrap();
    symlink(at("real"), at("way")).unwrap();
    fs::write(at("real/a"), "").unwrap();
    fs::write(at("x"), "").unwrap();
    fs::write(at("over"), "").unwrap();
    let (a, x, real) = (
        identity(&at("real/a")),
        identity(&at("x")),
        identity(&at("real")),
    );
    let here = File::open(&dir).unwrap();
    // By a link, by dots, from a descriptor; what fails is nothing.
    fs::rename(at("way/../way/./a"), at("real//b")).unwrap();
    assert!(fs::rename(at("absent"), at("d")).is_err());
    assert!(fs::remove_dir(at("full")).is_err());
    assert!(fs::rename(at("x"), at("full")).is_err());
    renameat2(&here, "way/b", &here, "x", RenameFlags::RENAME_EXCHANGE).unwrap();
    // Over another; by another name of the same file; onto itself, which is nothing done.
    fs::rename(at("x"), at("over")).unwrap();
    fs::hard_link(at("over"), at("hard")).unwrap();
    fs::rename(at("hard"), at("over")).unwrap();
    both.cycle();
    both.forget();
    fs::remove_file(at("hard")).unwrap();
    both.cycle();
    fs::remove_file(at("way/b")).unwrap();
    both.cycle();
    fs::remove_dir(at("real/")).unwrap();
    both.settle();
    let short: Vec<_> = both
        .told
        .iter()
        .map(|event| {
            let file = of(event);
            let name = |path: &Option<String>| {
                let path = path.as_ref()?;
                Some(path.strip_prefix(&text(&dir)).unwrap().to_owned())
            };
            let sure = file.source() == Source::Object && file.flaws == 0 && file.new_flaws == 0;
            (
                name(&file.path).unwrap(),
                name(&file.new_path),
                sure,
                (file.dev, file.ino),
            )
        })
        .collect();
    let path = |path: &str| path.to_owned();
    let renamed = |from: &str, to: &str, of| (path(from), Some(path(to)), true, of);
    let removed = |name: &str, of| (path(name), None, true, of);
    assert_eq!(
        short,
        [
            renamed("/real/a", "/real/b", a),
            renamed("/real/b", "/x", a),
            renamed("/x", "/over", a),
            (path("/hard"), Some(path("/over")), false, (0, 0)),
            removed("/hard", a),
            removed("/real/b", x),
            removed("/real", real),
        ]
    );
    assert_eq!(of(&both.told[6]).flags & NAMES_DIRECTORY, NAMES_DIRECTORY);
    // That an exchange leads back is no event of its own.
    assert_eq!(both.alone, []);
}

#[test]
fn a_whole_tree_that_is_removed_is_told_as_it_was() {
    let Some(mut both) = both("names-tree", &[Kind::Unlink]) else {
        return;
    };
    let mut expected = Vec::new();
    for turn in 0..20 {
        let top = both.at(&format!("tree {turn}"));
        let mut folder = top.clone();
        for depth in 0..8 {
            folder.push(format!("\\{depth}\n\u{e9}"));
        }
        fs::create_dir_all(&folder).unwrap();
        for name in ["a", "b"] {
            fs::write(folder.join(name), "").unwrap();
            expected.push(identity(&folder.join(name)).1);
        }
        while folder.starts_with(&top) {
            expected.push(identity(&folder).1);
            folder.pop();
        }
        fs::remove_dir_all(&top).unwrap();
    }
    both.settle();
    let mut found = Vec::new();
    for event in &both.told {
        let file = of(event);
        assert_eq!((file.source(), file.flaws), (Source::Object, 0), "{file:?}");
        found.push(file.ino);
    }
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(both.alone, []);
}

/// A sibling rewrites the name while the call runs: what is told is what the call did.
#[test]
fn a_rewritten_name_misleads_nobody() {
    let Some(mut both) = both("names-rewritten", &KINDS) else {
        return;
    };
    let dir = both.dir.clone();
    let sides = ["side-a", "side-b"].map(|side| dir.join(side));
    for side in &sides {
        fs::create_dir(side).unwrap();
    }
    let mut name = CString::new(text(&sides[0].join("f")))
        .unwrap()
        .into_bytes_with_nul();
    let place = text(&sides[0]).len() - 1;
    let pointer = name.as_mut_ptr();
    // SAFETY: inside the text, which outlives the thread; from now on this byte is written through this reference only.
    let letter = unsafe { AtomicU8::from_ptr(pointer.add(place)) };
    let to = CString::new(text(&dir.join("to"))).unwrap();
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
            did.push((turn % 2 == 1, *identity, text(path)));
            if turn % 500 == 0 {
                both.cycle();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    both.settle();
    assert!(won > 0, "no race was won: not exercised");
    assert_eq!(both.told.len(), did.len());
    let as_told = |event: &Event| {
        let file = of(event);
        let renamed = event.kind() == Kind::Rename;
        (renamed, (file.dev, file.ino), file.path.clone().unwrap())
    };
    // Of each call at its place, if nothing is wrong with it; in any case as something that the thread did.
    let (mut sure, mut found) = (0, Vec::new());
    for (event, did) in both.told.iter().zip(&did) {
        let file = of(event);
        if file.source() == Source::Object {
            found.push(as_told(event));
            if file.flaws == 0 {
                sure += 1;
                assert_eq!(&as_told(event), did);
            }
        }
    }
    for event in &both.alone {
        assert_eq!(of(event).flaws, u32::from(FLAW_RACY));
        found.push(as_told(event));
    }
    eprintln!(
        "{won} of {} races won, {sure} calls sure, {} things done told alone",
        did.len(),
        both.alone.len()
    );
    assert!(!both.alone.is_empty());
    // Where processors are emulated a reading takes so long that hardly a call stands alone in it.
    assert!(sure > 0 || bench::is_emulated());
    found.sort_unstable();
    did.sort_unstable();
    assert_eq!(found, did);
}

/// A sibling swaps the folder on the way for another one while the call runs.
#[test]
fn a_swapped_parent_misleads_nobody() {
    let Some(mut both) = both("names-parents", &[Kind::Unlink]) else {
        return;
    };
    let boxes = ["p", "q"].map(|name| both.at(name));
    for name in &boxes {
        fs::create_dir(name).unwrap();
    }
    let stop = AtomicBool::new(false);
    let mut did = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let [p, q] = &boxes;
                renameat2(AT_FDCWD, p, AT_FDCWD, q, RenameFlags::RENAME_EXCHANGE).unwrap();
            }
        });
        for turn in 0..bench::times(2000) {
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
            if turn % 200 == 0 {
                both.cycle();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    both.settle();
    assert_eq!(both.told.len(), did.len());
    let mut inodes: HashMap<u64, usize> = HashMap::new();
    for ((path, ino), count) in both.removed() {
        assert!(
            boxes.iter().any(|one| path == text(&one.join("f"))),
            "{path}"
        );
        *inodes.entry(ino).or_default() += count;
    }
    for (event, did) in both.told.iter().zip(&did) {
        if let (Source::Object, 0, Some(ino)) = (of(event).source(), of(event).flaws, did) {
            assert_eq!(of(event).ino, *ino);
        }
    }
    let mut known: HashMap<u64, usize> = HashMap::new();
    for ino in did.iter().flatten() {
        *known.entry(*ino).or_default() += 1;
    }
    eprintln!(
        "{} of {} removals are known for certain",
        known.values().sum::<usize>(),
        did.len()
    );
    assert!(known.values().sum::<usize>() > did.len() / 10);
    for (ino, count) in known {
        assert!(
            inodes.get(&ino).is_some_and(|told| *told >= count),
            "{ino} was removed {count} times"
        );
    }
    assert_eq!(inodes.values().sum::<usize>(), did.len());
}

/// A sibling puts another folder behind the descriptor that the name is relative to.
#[test]
fn a_swapped_folder_behind_a_descriptor_misleads_nobody() {
    let Some(mut both) = both("names-descriptor", &[Kind::Unlink]) else {
        return;
    };
    let boxes = ["p", "q"].map(|name| both.at(name));
    for name in &boxes {
        fs::create_dir(name).unwrap();
    }
    let folders = [0, 1].map(|side: usize| File::open(&boxes[side]).unwrap());
    let base = File::open(&boxes[0]).unwrap();
    let stop = AtomicBool::new(false);
    let (mut did, mut both_sides) = (HashMap::new(), [0; 2]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut side = 0;
            while !stop.load(Ordering::Relaxed) {
                side ^= 1;
                // SAFETY: descriptors that are held.
                unsafe { libc::dup2(folders[side].as_raw_fd(), base.as_raw_fd()) };
            }
        });
        for turn in 0..bench::times(2000) {
            let paths = [0, 1].map(|side: usize| boxes[side].join("f"));
            let inodes = [0, 1].map(|side: usize| {
                if !paths[side].exists() {
                    fs::write(&paths[side], "").unwrap();
                }
                identity(&paths[side]).1
            });
            // SAFETY: a descriptor that is held, whatever is behind it, and a valid name.
            let result = unsafe { libc::unlinkat(base.as_raw_fd(), c"f".as_ptr(), 0) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            let gone = usize::from(paths[0].exists());
            both_sides[gone] += 1;
            *did.entry((text(&paths[gone]), inodes[gone])).or_default() += 1;
            if turn % 500 == 0 {
                both.cycle();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    both.settle();
    eprintln!("{both_sides:?}, {} told alone", both.alone.len());
    assert!(both_sides.iter().all(|count| *count > 0));
    assert_eq!(both.removed(), did);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn thirty_two_bit_calls_are_confirmed() {
    let Some(mut both) = both("names-compat", &KINDS) else {
        return;
    };
    fs::write(both.at("a"), "").unwrap();
    let its = identity(&both.at("a"));
    let mut low = Low::new();
    let mut put = |name: &str| low.put(text(&both.at(name)).as_bytes());
    let (a, b) = (put("./a"), put("./b"));
    if int80(20, 0, 0, 0, 0) != std::process::id() as i32 {
        eprintln!("SKIPPED thirty_two_bit_calls_are_confirmed: this kernel has no 32-bit calls");
        return;
    }
    // rename, unlink
    assert_eq!(int80(38, a, b, 0, 0), 0);
    assert_eq!(int80(10, b, 0, 0, 0), 0);
    both.settle();
    let paths: Vec<_> = both
        .told
        .iter()
        .map(|event| of(event).path.clone())
        .collect();
    assert_eq!(
        paths,
        [Some(text(&both.at("a"))), Some(text(&both.at("b")))]
    );
    for event in &both.told {
        let file = of(event);
        assert_ne!(file.flags & CALL_COMPAT, 0);
        assert_eq!((file.source(), (file.dev, file.ino)), (Source::Object, its));
    }
    assert_eq!(both.alone, []);
}

/// More than the kernel keeps: what is told is right, and that some is missing is told, too.
#[test]
fn an_overflow_is_told_and_confirms_nothing_else() {
    let setting = "/proc/sys/fs/fanotify/max_queued_events";
    if bench::times(10) < 10 && Path::new(setting).exists() {
        // Nobody else's, and slow.
        fs::write(setting, "1500").unwrap();
    }
    let Some(mut both) = both("names-overflow", &[Kind::Unlink]) else {
        return;
    };
    let most = fs::read_to_string(setting);
    let most: usize = most.unwrap().trim().parse().unwrap();
    if most > 20_000 {
        eprintln!("SKIPPED names-overflow: {most} events may wait here");
        return;
    }
    let count = most + 1000;
    let path = |turn: usize| both.dir.join(format!("f{turn}"));
    let mut inodes = Vec::new();
    for turn in 0..count {
        fs::write(path(turn), "").unwrap();
        inodes.push((text(&path(turn)), identity(&path(turn)).1));
    }
    for turn in 0..count {
        fs::remove_file(path(turn)).unwrap();
    }
    let (mut overflows, mut missing) = (0, false);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) && overflows == 0 {
        both.changes.read(now);
        missing |= both.changes.missing().is_some();
        both.cycle();
        overflows = both.changes.counts().overflows;
    }
    both.settle();
    assert!(missing);
    assert_eq!(overflows, 1);
    assert_eq!(both.told.len(), count);
    let removed = both.removed();
    eprintln!("{} of {count} are known", removed.len());
    assert!(removed.len() >= most / 2 && removed.len() < count);
    for (found, times) in removed {
        assert_eq!(times, 1);
        assert!(inodes.contains(&found), "{found:?}");
    }
}

/// File systems that are mounted later are watched, and can be unmounted; what has no handles keeps the caller's word.
#[test]
fn new_mounts_are_followed_and_not_held() {
    let Some(mut both) = both("names-mounts", &[Kind::Unlink]) else {
        return;
    };
    let (new, merged) = (both.at("new"), both.at("merged"));
    for place in ["new", "merged", "lower", "upper", "work"] {
        fs::create_dir(both.at(place)).unwrap();
    }
    mount(
        Some("none"),
        &new,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    if handles::fs_of(File::open(&new).unwrap().as_fd()).unwrap() == handles::FsId::default() {
        return eprintln!(
            "SKIPPED new_mounts_are_followed_and_not_held: a tmpfs has no number here, so it is not watched"
        );
    }
    let begun = Instant::now();
    let its = loop {
        fs::write(new.join("f"), "").unwrap();
        let its = identity(&new.join("f"));
        fs::remove_file(new.join("f")).unwrap();
        both.cycle();
        let last = both.told.last().map(of).unwrap();
        if last.source() == Source::Object {
            assert_eq!((last.dev, last.ino), its);
            assert_eq!(last.path, Some(text(&new.join("f"))));
            break its;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "it was not followed"
        );
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_ne!(its, (0, 0));
    // Nothing of it is open: not busy.
    umount2(&new, MntFlags::empty()).unwrap();
    fs::write(both.at("lower/a"), "").unwrap();
    fs::write(both.at("upper/b"), "").unwrap();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        both.at("lower").display(),
        both.at("upper").display(),
        both.at("work").display()
    );
    let made = mount(
        Some("none"),
        &merged,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    );
    if let Err(errno) = made {
        eprintln!("SKIPPED overlays: no overlay can be mounted: {errno}");
        return;
    }
    std::thread::sleep(Duration::from_millis(300));
    let (mut removed, told) = (Vec::new(), both.told.len());
    for name in ["a", "b"] {
        removed.push(fs::remove_file(merged.join(name)));
    }
    both.settle();
    let left_out = both.changes.left_out();
    umount2(&merged, MntFlags::empty()).unwrap();
    for result in removed {
        result.unwrap();
    }
    let found: Vec<_> = both.told[told..]
        .iter()
        .map(|event| (of(event).path.clone(), of(event).source()))
        .collect();
    let of_caller = |name: &str| (Some(text(&merged.join(name))), Source::Caller);
    // Overlays have handles that can be opened if they were asked for them (`nfs_export`); this one was not.
    left_out.unwrap();
    assert_eq!(found, [of_caller("a"), of_caller("b")]);
    // What it did below is known for what it is.
    assert!(!both.alone.is_empty());
    for event in &both.alone {
        let path = of(event).path.clone().unwrap();
        assert!(both.changes.is_inner(&path), "{path}");
    }
}

/// What io_uring's workers remove has no record: it is told alone, and of whom is not made up.
#[test]
fn what_io_uring_removes_is_told_alone() {
    let Some(mut both) = both("names-uring", &[Kind::Unlink]) else {
        return;
    };
    both.cycle();
    fs::write(both.at("f"), "").unwrap();
    let its = identity(&both.at("f"));
    let path = CString::new(text(&both.at("f"))).unwrap();
    match rings::unlink(&path) {
        Ok(result) => result.unwrap(),
        Err(refused) => {
            eprintln!("SKIPPED names-uring: no io_uring here: {refused:?}");
            return;
        }
    }
    both.settle();
    assert_eq!(both.told, []);
    let [event] = &both.alone[..] else {
        panic!("{:?}", both.alone)
    };
    assert_eq!(of(event).path, Some(text(&both.at("f"))));
    assert_eq!((of(event).dev, of(event).ino), its);
    assert!(matches!(both.by[..], [By::Unknown]), "{:?}", both.by);
    assert!(both.strangers.contains(&event.tid));
}

/// A file system whose program answers nothing lies where a record's path leads to at the host: nobody waits for it.
#[test]
fn a_program_that_answers_nothing_holds_up_nobody() {
    let Some(mut both) = both("names-fuse", &[Kind::Unlink]) else {
        return;
    };
    let (hung, mine) = (both.at("hung"), both.at("mine"));
    for place in [&hung, &mine] {
        fs::create_dir(place).unwrap();
    }
    fs::write(mine.join("f"), "").unwrap();
    let its = identity(&mine.join("f"));
    let device = match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(device) => device,
        Err(error) => {
            eprintln!("SKIPPED names-fuse: cannot open /dev/fuse: {error}");
            return;
        }
    };
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
        device.as_raw_fd()
    );
    let (none, kind) = (Some("none"), Some("fuse"));
    if let Err(errno) = mount(none, &hung, kind, MsFlags::empty(), Some(options.as_str())) {
        eprintln!("SKIPPED names-fuse: cannot be mounted: {errno}");
        return;
    }
    std::thread::sleep(Duration::from_millis(300));
    both.cycle();
    let made = std::thread::scope(|scope| {
        let remove = || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let nothing = None::<&str>;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(nothing, "/", nothing, private, nothing)?;
            mount(Some(&mine), &hung, nothing, MsFlags::MS_BIND, nothing)?;
            nix::unistd::unlink(&hung.join("f"))
        };
        scope.spawn(remove).join().unwrap()
    });
    let begun = Instant::now();
    both.settle();
    let took = begun.elapsed();
    umount2(&hung, MntFlags::MNT_DETACH).unwrap();
    drop(device);
    made.unwrap();
    assert!(took < Duration::from_secs(2), "{took:?}");
    let [told] = &both.told[..] else {
        panic!("{:?}", both.told)
    };
    assert_eq!(of(told).path, Some(text(&hung.join("f"))));
    assert_eq!(of(told).source(), Source::Caller);
    let [alone] = &both.alone[..] else {
        panic!("{:?}", both.alone)
    };
    assert_eq!(of(alone).path, Some(text(&mine.join("f"))));
    assert_eq!((of(alone).dev, of(alone).ino), its);
    // Beside load the reading may have lasted too long to be certain of it.
    assert!(matches!(both.by[..], [By::Record(_) | By::Unknown]));
    // Others are confirmed as before.
    fs::write(both.at("g"), "").unwrap();
    fs::remove_file(both.at("g")).unwrap();
    both.settle();
    assert_eq!(of(&both.told[1]).source(), Source::Object);
}

/// What was told before nobody was there any more is of nobody's record.
#[test]
fn what_is_not_read_is_not_taken_for_what_comes() {
    let Some(mut both) = both("names-restart", &[Kind::Unlink]) else {
        return;
    };
    for name in ["a", "b"] {
        fs::write(both.at(name), "").unwrap();
    }
    fs::remove_file(both.at("a")).unwrap();
    both.changes.set(&[]).unwrap();
    both.changes.set(&[Kind::Unlink]).unwrap();
    fs::remove_file(both.at("b")).unwrap();
    both.settle();
    let sources: Vec<_> = both.told.iter().map(|event| of(event).source()).collect();
    assert_eq!(sources, [Source::Caller, Source::Object]);
    assert_eq!(both.alone, []);
    let counts = both.changes.counts();
    assert!(counts.confirmed >= 1 && counts.unconfirmed >= 1 && counts.overflows == 0);
}
