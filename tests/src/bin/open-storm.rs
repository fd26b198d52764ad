//! Opens files and writes down, or counts, what succeeded.
//!
//! `open-storm --dir DIR --count N --oracle FILE [--threads 2] [--rate PER_SECOND] [--names]`
//! creates unique files: every fourth by the 32-bit call where the kernel has
//! it, every seventh with a name that is not UTF-8; with `--names` every tenth is
//! renamed and every tenth unlinked.
//!
//! `open-storm --dir DIR --seconds S --rate PER_SECOND [--threads 2]`
//! opens the same 1,000 files again and again and prints how many opens
//! succeeded and in how many nanoseconds.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use sumun_tests::args::Args;
use sumun_tests::clock::Pace;
use sumun_tests::oracle::{self, FileCall};
use sumun_tests::raw::{self, Name};

/// Files of the rate-controlled form.
const FILES: usize = 1000;

fn main() -> Result<()> {
    let args = Args::parse()?;
    let dir = args.path("dir")?;
    let threads = args.number("threads", 2)?;
    let rate = args.number("rate", 0)? / threads;
    if args.has("seconds") {
        let seconds = Duration::from_secs(args.number("seconds", 1)?);
        return again(&dir, threads, rate, seconds);
    }
    let count = args.number("count", 1000)?;
    let names = args.has("names");
    let calls = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                let own = dir.join(format!("t{thread}"));
                let share = count / threads + u64::from(thread < count % threads);
                scope.spawn(move || unique(&own, share, rate, names))
            })
            .collect();
        handles
            .into_iter()
            .map(|handle| handle.join().expect("a thread of the storm panicked"))
            .collect::<Result<Vec<_>>>()
    })?
    .concat();
    oracle::write(&args.path("oracle")?, &calls)?;
    println!("{}", calls.len());
    Ok(())
}

/// Bytes of a file's name and the catalogue's text of it.
fn name_of(dir: &Path, seq: u64) -> Result<(CString, String)> {
    let dir = dir.to_str().context("the directory's name is UTF-8")?;
    Ok(if seq % 7 == 6 {
        let bytes = [format!("{dir}/f{seq}").as_bytes(), b"\xfe\\"].concat();
        (CString::new(bytes)?, format!("{dir}/f{seq}\\xfe\\\\"))
    } else {
        let text = format!("{dir}/f{seq}");
        (CString::new(text.clone())?, text)
    })
}

fn unique(dir: &Path, count: u64, rate: u64, names: bool) -> Result<Vec<FileCall>> {
    fs::create_dir(dir).with_context(|| format!("create {}", dir.display()))?;
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
    let memory = Name::new(c"")?;
    let mut pace = Pace::new(rate);
    let mut calls = Vec::new();
    let mut compat_works = true;
    for seq in 0..count {
        pace.wait();
        let (bytes, path) = name_of(dir, seq)?;
        memory.set(&bytes);
        let mut compat = seq % 4 == 3 && compat_works;
        let mut fd = if compat {
            memory.open32(flags, 0o600)
        } else {
            memory.open(flags, 0o600)
        };
        if compat && fd == Err(Errno::ENOSYS) {
            (compat, compat_works) = (false, false);
            fd = memory.open(flags, 0o600);
        }
        let fd = fd.with_context(|| format!("open {path}"))?;
        let (dev, ino) = raw::identity(fd).context("fstat of a file just opened")?;
        raw::close(fd);
        let call = |kind: &str, path: &str, compat: bool| FileCall {
            kind: kind.to_owned(),
            pid: std::process::id(),
            tid: raw::tid(),
            path: path.to_owned(),
            new_path: None,
            dev,
            ino,
            compat,
        };
        calls.push(call("open", &path, compat));
        calls.push(call("close_write", &path, false));
        if names && seq % 10 == 0 {
            let to = format!("{path}.new");
            let to_bytes = CString::new([bytes.as_bytes(), b".new"].concat())?;
            memory.rename(&to_bytes).context("rename")?;
            calls.push(FileCall {
                new_path: Some(to),
                ..call("rename", &path, false)
            });
        }
        if names && seq % 10 == 5 {
            memory.unlink().context("unlink")?;
            calls.push(call("unlink", &path, false));
        }
    }
    Ok(calls)
}

fn again(dir: &Path, threads: u64, rate: u64, seconds: Duration) -> Result<()> {
    let files: Vec<PathBuf> = (0..FILES)
        .map(|index| dir.join(format!("m{index}")))
        .collect();
    for file in &files {
        fs::write(file, "")?;
    }
    let total = AtomicU64::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|_| {
                let (files, total) = (&files, &total);
                scope.spawn(move || -> Result<()> {
                    let names = files
                        .iter()
                        .map(|file| Ok(CString::new(file.to_str().context("UTF-8")?)?))
                        .collect::<Result<Vec<_>>>()?;
                    let mut pace = Pace::new(rate);
                    let mut opened = 0;
                    // Checking the clock at every open would halve the highest rate.
                    while begun.elapsed() < seconds {
                        for name in names.iter().take(100) {
                            pace.wait();
                            let fd = nix::fcntl::open(
                                name.as_c_str(),
                                nix::fcntl::OFlag::O_RDONLY,
                                nix::sys::stat::Mode::empty(),
                            )?;
                            drop(fd);
                            opened += 1;
                        }
                    }
                    total.fetch_add(opened, Ordering::Relaxed);
                    Ok(())
                })
            })
            .collect();
        handles
            .into_iter()
            .try_for_each(|handle| handle.join().expect("a thread of the storm panicked"))
    })?;
    println!(
        "{} {}",
        total.load(Ordering::Relaxed),
        begun.elapsed().as_nanos()
    );
    Ok(())
}
