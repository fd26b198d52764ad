//! Names that are rewritten, and folders and descriptors that are swapped, while the call runs: against what a call's return tells
//! alone, against the decision point of opens, and against rules that deny by BPF LSM. Renames and removals are tried like this at decision
//! points in `points`, and where fanotify tells in `names`.
//!
//! What the calls really did is judged from outside. A run in which no race was won has shown nothing, and fails. All tests whose name
//! says `misleads_nobody` make a table of docs/kernel-support.md, by rung.

mod fentry;
mod lsm;
mod tracepoint;

use std::{
    ffi::CString,
    fs::{self, File},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
};
use sumun_abi::record::{FLAW_RACY, SOURCE_OBJECT};

use crate::{
    bench::{self, Bench},
    points::{below, identity, opens, set},
    racing::Name,
};

/// Ends a sibling, whatever becomes of the test.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// True until there were so many tries (in a guest a tenth) and they have shown something, which takes a while where processors are emulated or
/// others use them. What comes of them has room in the rings.
fn goes_on(tries: usize, count: usize, shown: bool) -> bool {
    tries < bench::times(count) || !shown && tries < 10_000
}

/// Does one thing over and over in a sibling thread while another is done here.
fn beside<T>(mut sibling: impl FnMut() + Send, here: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                sibling();
            }
        });
        let _stop = Stop(&stop);
        here()
    })
}

/// Two folders whose paths differ in one letter, with a file each, and a name that a sibling turns from one into the other.
struct Sides {
    dir: PathBuf,
    name: Name,
    place: usize,
    _dir: tempfile::TempDir,
}

/// What a call did: to the file of which side; and whether the name stood for the other just before or after it.
struct Done<T> {
    result: T,
    before: usize,
    after: usize,
}

impl<T> Done<T> {
    fn is_won(&self, side: usize) -> bool {
        self.before != side || self.after != side
    }
}

impl Sides {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(temporary.path()).unwrap();
        let name = CString::new(dir.join("side-a/f").to_str().unwrap()).unwrap();
        let sides = Self {
            place: dir.join("side-").to_str().unwrap().len(),
            name: Name::new(&name).unwrap(),
            dir,
            _dir: temporary,
        };
        for side in 0..2 {
            fs::create_dir(sides.folder(side)).unwrap();
            fs::write(sides.file(side), "content").unwrap();
        }
        sides
    }

    fn folder(&self, side: usize) -> PathBuf {
        self.dir.join(["side-a", "side-b"][side])
    }

    fn file(&self, side: usize) -> PathBuf {
        self.folder(side).join("f")
    }

    /// Which side the name stands for.
    fn stands(&self) -> usize {
        usize::from(self.name.byte(self.place).load(Ordering::SeqCst) == b'b')
    }

    fn turn(&self) {
        let letter = self.name.byte(self.place);
        letter.fetch_xor(b'a' ^ b'b', Ordering::Relaxed);
        // Both stand about equally long.
        for _ in 0..20 {
            std::hint::spin_loop();
        }
    }

    fn call<T>(&self, call: impl FnOnce(&Name) -> T) -> Done<T> {
        let before = self.stands();
        let result = call(&self.name);
        Done {
            result,
            before,
            after: self.stands(),
        }
    }

    /// An open of one of three sorts, as far as the kernel has them.
    fn open(&self, turn: usize, flags: i32) -> Done<nix::Result<File>> {
        let done = self.call(|name| match turn % 3 {
            0 => name.open(flags, 0),
            1 => name.openat2(flags, 0),
            _ => match name.open32(flags, 0) {
                Err(Errno::ENOSYS) => name.open(flags, 0),
                result => result,
            },
        });
        Done {
            result: done.result.map(owned),
            before: done.before,
            after: done.after,
        }
    }
}

/// A descriptor that a call has just returned.
#[expect(unsafe_code, reason = "the calls are made by number")]
fn owned(fd: i32) -> File {
    // SAFETY: it is new, and nobody else's.
    File::from(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A sibling rewrites the name while an open runs: of both files one is asked for, and each open of it is told, none of the other.
fn rewritten_opens(bench: &mut Bench) {
    let sides = Sides::new();
    let asked = identity(&sides.file(0));
    set(bench, &below(&sides.folder(0)));
    let (mut done, mut won, mut tries) = (0, 0, 0);
    beside(
        || sides.turn(),
        || {
            while goes_on(tries, 6000, won > 0 && done > 0 && done < tries) {
                let open = sides.open(tries, libc::O_RDONLY);
                let ino = open.result.as_ref().unwrap().metadata().unwrap().ino();
                let side = usize::from(ino != asked.1);
                won += usize::from(open.is_won(side));
                done += usize::from(side == 0);
                tries += 1;
            }
        },
    );
    let found = opens(&bench.settle(), &sides.dir);
    eprintln!("{won} of {tries} races won, {done} opens of what is asked for");
    assert!(won > 0, "no race was won: not exercised");
    assert!(done > 0 && done < tries);
    for (path, open) in &found {
        let known = (open.path.source, open.path.flaws & !FLAW_RACY);
        assert_eq!(known, (SOURCE_OBJECT, 0), "{open:?}");
        assert_eq!((open.dev, open.ino), asked);
        assert_eq!(Path::new(path), sides.file(0));
    }
    bench.nothing_else_missing("sys_exit", done - found.len());
}

/// Two folders with a file each, and an open descriptor that a sibling turns from one folder into the other.
struct Folders {
    dir: PathBuf,
    base: File,
    each: [File; 2],
    _dir: tempfile::TempDir,
}

impl Folders {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(temporary.path()).unwrap();
        let each = ["p", "q"].map(|name| {
            fs::create_dir(dir.join(name)).unwrap();
            fs::write(dir.join(name).join("f"), "content").unwrap();
            File::open(dir.join(name)).unwrap()
        });
        Self {
            base: each[0].try_clone().unwrap(),
            each,
            dir,
            _dir: temporary,
        }
    }

    fn file(&self, side: usize) -> PathBuf {
        self.dir.join(["p", "q"][side]).join("f")
    }

    #[expect(
        unsafe_code,
        reason = "no safe wrapper puts a file behind a descriptor that is in use"
    )]
    fn turn(&self, side: usize) {
        // SAFETY: descriptors that are held.
        unsafe { libc::dup2(self.each[side].as_raw_fd(), self.base.as_raw_fd()) };
    }
}

/// Two names change what they stand for.
fn exchange(one: &Path, other: &Path) {
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).unwrap();
}
