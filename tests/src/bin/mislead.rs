//! Tries to make an observer of system calls believe something false.
//!
//! `mislead --mode MODE --dir DIR --decoy DIR --tries N --oracle FILE [--rate PER_SECOND]`
//!
//! - `open`, `openat2`, `open32`, `rename`, `unlink`: a sibling thread (with
//!   descriptors of its own, so that nothing but the name is shared) changes one letter of
//!   the name over and over while the call runs. Both names are good, so every call
//!   acts on one of two objects, and which one the kernel took, the call's effect tells. Renames
//!   and unlinks have the second object in the decoy directory, whose path differs in one letter.
//! - `swap`: the name stands still; a sibling thread that shares the descriptors
//!   closes or replaces the descriptor that open is about to return, with a
//!   file of the decoy directory (which no rule asks for); `swap-within` takes
//!   one of the same directory instead.
//!
//! Every try writes down what it really got. A race is *won* when the name just before or just
//! after the call, or the descriptor just after it, was not that of the object.

use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use anyhow::{Context, Result, bail, ensure};
use sumun_tests::args::Args;
use sumun_tests::clock::{Pace, boot_ns};
use sumun_tests::oracle::{self, Try};
use sumun_tests::raw::{self, Name};

fn main() -> Result<()> {
    let args = Args::parse()?;
    let dir = args.path("dir")?;
    let tries = args.number("tries", 1000)?;
    let rate = args.number("rate", 0)?;
    let mode = args.get("mode").context("--mode is missing")?;
    let done = match mode {
        "open" | "openat2" | "open32" => {
            let paths = [dir.join("file-a"), dir.join("file-b")];
            names(paths, tries, rate, |name| open(mode, name))?
        }
        "rename" => {
            let to = CString::new(dir.join("to").to_str().context("UTF-8")?)?;
            let paths = [dir.join("file"), args.path("decoy")?.join("file")];
            names(paths, tries, rate, |name| {
                name.rename(&to).context("rename")?;
                Ok(Effect::Gone("rename"))
            })?
        }
        "unlink" => {
            let paths = [dir.join("file"), args.path("decoy")?.join("file")];
            names(paths, tries, rate, |name| {
                name.unlink().context("unlink")?;
                Ok(Effect::Gone("unlink"))
            })?
        }
        "swap-within" => swap(&dir, &dir, tries, rate, 2)?,
        "swap" => swap(&dir, &args.path("decoy")?, tries, rate, 3)?,
        other => bail!("there is no mode '{other}'"),
    };
    oracle::write(&args.path("oracle")?, &done)?;
    println!(
        "{} tries, {} races won",
        done.len(),
        done.iter().filter(|try_| try_.won).count()
    );
    Ok(())
}

/// What a call did.
enum Effect {
    /// Opened the object of this identity.
    Opened(u64, u64),
    /// One of the two names is gone.
    Gone(&'static str),
}

fn open(mode: &str, name: &Name) -> Result<Effect> {
    let fd = match mode {
        "open" => name.open(libc::O_RDONLY, 0),
        "openat2" => name.openat2(libc::O_RDONLY, 0),
        _ => name.open32(libc::O_RDONLY, 0),
    }
    .context(mode.to_owned())?;
    let (dev, ino) = raw::identity(fd).context("fstat of a file just opened")?;
    raw::close(fd);
    Ok(Effect::Opened(dev, ino))
}

/// One of two files whose names differ in one letter.
struct Candidate {
    path: PathBuf,
    dev: u64,
    ino: u64,
}

impl Candidate {
    fn make(path: PathBuf) -> Result<Self> {
        let mut this = Self {
            path,
            dev: 0,
            ino: 0,
        };
        this.renew()?;
        Ok(this)
    }

    fn renew(&mut self) -> Result<()> {
        let meta = fs::File::create(&self.path)
            .and_then(|file| file.metadata())
            .with_context(|| format!("create {}", self.path.display()))?;
        self.dev = oracle::kernel_dev(meta.dev());
        self.ino = meta.ino();
        Ok(())
    }
}

fn names(
    paths: [PathBuf; 2],
    tries: u64,
    rate: u64,
    call: impl Fn(&Name) -> Result<Effect>,
) -> Result<Vec<Try>> {
    let texts = [0, 1].map(|index: usize| paths[index].to_string_lossy().into_owned().into_bytes());
    let differ: Vec<usize> = (0..texts[0].len())
        .filter(|at| texts[1].get(*at) != Some(&texts[0][*at]))
        .collect();
    ensure!(
        texts[0].len() == texts[1].len() && differ.len() == 1,
        "the two names have to differ in one letter: {paths:?}"
    );
    let place = differ[0];
    let letters = [texts[0][place], texts[1][place]];
    let [one, other] = paths;
    let mut candidates = [Candidate::make(one)?, Candidate::make(other)?];
    let [text, _] = texts;
    let name = Name::new(&CString::new(text)?)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sibling = scope.spawn(|| -> Result<()> {
            raw::unshare_files().context("unshare")?;
            while !stop.load(Ordering::Relaxed) {
                // Both letters stand about equally long.
                name.byte(place)
                    .fetch_xor(letters[0] ^ letters[1], Ordering::Relaxed);
                for _ in 0..20 {
                    std::hint::spin_loop();
                }
            }
            Ok(())
        });
        // The sibling has left the common descriptors before the first try.
        std::thread::sleep(std::time::Duration::from_millis(50));
        let mut pace = Pace::new(rate);
        let result = (0..tries)
            .map(|_| {
                pace.wait();
                one_name(&name, place, letters, &mut candidates, &call)
            })
            .collect::<Result<Vec<_>>>();
        stop.store(true, Ordering::Relaxed);
        sibling.join().expect("the sibling panicked")?;
        result
    })
}

fn one_name(
    name: &Name,
    place: usize,
    letters: [u8; 2],
    candidates: &mut [Candidate; 2],
    call: &impl Fn(&Name) -> Result<Effect>,
) -> Result<Try> {
    let letter = name.byte(place);
    let begun = boot_ns();
    let before = letter.load(Ordering::SeqCst);
    let effect = call(name)?;
    let after = letter.load(Ordering::SeqCst);
    let ended = boot_ns();
    let (kind, index) = match effect {
        Effect::Opened(dev, ino) => {
            let found = candidates
                .iter()
                .position(|one| (one.dev, one.ino) == (dev, ino));
            ("open", found.context("opened neither of the two files")?)
        }
        Effect::Gone(kind) => {
            let gone: Vec<usize> = (0..2)
                .filter(|index| !candidates[*index].path.exists())
                .collect();
            ensure!(gone.len() == 1, "{} of the two names are gone", gone.len());
            (kind, gone[0])
        }
    };
    let object = &candidates[index];
    let record = Try {
        kind: kind.to_owned(),
        tid: raw::tid(),
        begun,
        ended,
        path: object.path.to_str().context("UTF-8")?.to_owned(),
        dev: object.dev,
        ino: object.ino,
        won: before != letters[index] || after != letters[index],
    };
    if kind != "open" {
        candidates[index].renew()?;
    }
    Ok(record)
}

/// `ways` is how many of the three ways the sibling uses; the third, a plain open of the
/// decoy, would be a flood of events of its own where the decoy is watched.
fn swap(dir: &Path, decoys: &Path, tries: u64, rate: u64, ways: u32) -> Result<Vec<Try>> {
    let object = Candidate::make(dir.join("file"))?;
    let decoy = fs::File::create(decoys.join("decoy"))?;
    let decoy_name = Name::new(&CString::new(
        decoys.join("decoy").to_str().context("UTF-8")?,
    )?)?;
    let text = object.path.to_str().context("UTF-8")?.to_owned();
    let name = Name::new(&CString::new(text.clone())?)?;
    // The lowest free number: the one that open will return.
    let target = AtomicI32::new(name.open(libc::O_RDONLY, 0)?);
    raw::close(target.load(Ordering::Relaxed));
    let decoy = decoy.as_raw_fd();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sibling = scope.spawn(|| {
            let target = target.load(Ordering::Relaxed);
            let mut turn = 0u32;
            while !stop.load(Ordering::Relaxed) {
                turn = turn.wrapping_add(1);
                match turn / 64 % ways {
                    // Whatever stands there is replaced, then the number is free again.
                    0 => {
                        let _ = raw::dup2(decoy, target);
                        raw::close(target);
                    }
                    1 => raw::close(target),
                    // Closed, and the number goes to another file by a plain open.
                    _ => {
                        raw::close(target);
                        if let Ok(fd) = decoy_name.open(libc::O_RDONLY, 0) {
                            raw::close(fd);
                        }
                    }
                }
            }
        });
        let mut pace = Pace::new(rate);
        let result = (0..tries)
            .map(|_| -> Result<Try> {
                pace.wait();
                let begun = boot_ns();
                let fd = name.open(libc::O_RDONLY, 0).context("open")?;
                let got = raw::identity(fd);
                let ended = boot_ns();
                raw::close(fd);
                Ok(Try {
                    kind: "open".to_owned(),
                    tid: raw::tid(),
                    begun,
                    ended,
                    path: text.clone(),
                    dev: object.dev,
                    ino: object.ino,
                    won: got != Some((object.dev, object.ino)),
                })
            })
            .collect::<Result<Vec<_>>>();
        stop.store(true, Ordering::Relaxed);
        sibling.join().expect("the sibling panicked");
        result
    })
}
