//! Executes many programs with unique names and writes down each.
//!
//! `exec-storm --dir DIR --count N --oracle FILE [--workers 2] [--threads 2] [--rate PER_SECOND]`
//!
//! Each worker is a process of its own, so that parents differ. Every program
//! is a hard link with a name of its own in DIR, gets ten arguments (one of
//! them not UTF-8), and ends with a status that says how many arguments it
//! got. Every 500th has an argument longer than an agent keeps.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use sumun_tests::args::Args;
use sumun_tests::clock::Pace;
use sumun_tests::oracle::{self, Exec};
use sumun_tests::{elf, raw};

/// Longer than the 16 KiB of arguments that an agent keeps.
const LONG: usize = 20_000;

fn main() -> Result<()> {
    let args = Args::parse()?;
    let dir = args.path("dir")?;
    let file = args.path("oracle")?;
    if args.has("worker") {
        return worker(&args, &dir, &file);
    }
    let helper = dir.join("helper");
    elf::write(&helper)?;
    let workers = args.number("workers", 2)?;
    let count = args.number("count", 1000)?;
    let rate = args.number("rate", 0)?;
    let mut children = Vec::new();
    for index in 0..workers {
        let part = PathBuf::from(format!("{}.{index}", file.display()));
        // The first workers take what does not divide.
        let share = count / workers + u64::from(index < count % workers);
        let child = Command::new(std::env::current_exe()?)
            .arg("--worker")
            .arg(index.to_string())
            .arg("--dir")
            .arg(&dir)
            .arg("--oracle")
            .arg(&part)
            .arg("--count")
            .arg(share.to_string())
            .arg("--threads")
            .arg(args.number("threads", 2)?.to_string())
            .arg("--rate")
            .arg((rate / workers).to_string())
            .spawn()
            .context("start a worker")?;
        children.push((child, part));
    }
    let mut all: Vec<Exec> = Vec::new();
    for (mut child, part) in children {
        let status = child.wait()?;
        ensure!(status.success(), "a worker failed: {status}");
        all.extend(oracle::read::<Exec>(&part)?);
        fs::remove_file(&part)?;
    }
    oracle::write(&file, &all)?;
    println!("{}", all.len());
    Ok(())
}

fn worker(args: &Args, dir: &Path, file: &Path) -> Result<()> {
    let index = args.number("worker", 0)?;
    let count = args.number("count", 0)?;
    let threads = args.number("threads", 2)?;
    let rate = args.number("rate", 0)?;
    let own = dir.join(format!("w{index}"));
    fs::create_dir(&own).with_context(|| format!("create {}", own.display()))?;
    let done = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                let (own, helper) = (&own, dir.join("helper"));
                scope.spawn(move || -> Result<Vec<Exec>> {
                    let mut pace = Pace::new(rate / threads);
                    (thread..count)
                        .step_by(usize::try_from(threads)?)
                        .map(|seq| {
                            pace.wait();
                            one(own, &helper, seq)
                        })
                        .collect()
                })
            })
            .collect();
        handles
            .into_iter()
            .map(|handle| handle.join().expect("a thread of the storm panicked"))
            .collect::<Result<Vec<_>>>()
    })?;
    oracle::write(file, &done.concat())
}

fn one(own: &Path, helper: &Path, seq: u64) -> Result<Exec> {
    let path = own.join(format!("x{seq}"));
    fs::hard_link(helper, &path).with_context(|| format!("link {}", path.display()))?;
    let too_long = seq % 500 == 499;
    let mut arguments: Vec<Vec<u8>> = vec![path.as_os_str().as_bytes().to_vec()];
    arguments.extend((1..8).map(|index| format!("arg{index}-{seq}").into_bytes()));
    arguments.push(Vec::new());
    // Neither UTF-8 nor free of the escape character.
    arguments.push([b"\xff\\", seq.to_string().as_bytes()].concat());
    let mut texts: Vec<String> = arguments[..9]
        .iter()
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .collect();
    texts.push(format!("\\xff\\\\{seq}"));
    if too_long {
        arguments.push(vec![b'z'; LONG]);
        texts.push("z".repeat(LONG));
    }
    let path_text = texts[0].clone();
    let arguments: Vec<CString> = arguments
        .into_iter()
        .map(CString::new)
        .collect::<Result<_, _>>()?;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let child = raw::fork_exec(&path, &arguments).context("fork")?;
    let WaitStatus::Exited(_, code) = waitpid(Pid::from_raw(child), None)? else {
        bail!("the program {path_text} was ended by a signal");
    };
    ensure!(
        usize::try_from(code) == Ok(arguments.len()),
        "the program {path_text} ended with {code}: it did not run"
    );
    Ok(Exec {
        pid: u32::try_from(child)?,
        parent: std::process::id(),
        path: path_text,
        args: texts,
        too_long,
        code,
    })
}
