//! Ordinary load beside a test: files, processes, pipes, memory, sockets.
//!
//! `noise --dir DIR --seconds S`: ends by itself, or when its input is closed.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sumun_tests::args::Args;
use sumun_tests::{elf, raw};

fn main() -> Result<()> {
    let args = Args::parse()?;
    let dir = args.path("dir")?;
    let end = Instant::now() + Duration::from_secs(args.number("seconds", 10)?);
    let program = dir.join("noise-program");
    elf::write(&program)?;
    let stop = AtomicBool::new(false);
    let stop = &stop;
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            // Whoever started this has gone, or closed its end on purpose.
            let mut byte = [0];
            while !stop.load(Ordering::Relaxed) {
                match std::io::stdin().read(&mut byte) {
                    Ok(0) | Err(_) => stop.store(true, Ordering::Relaxed),
                    Ok(_) => {}
                }
            }
        });
        let work = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) && Instant::now() < end {
                round(&dir, &program)?;
            }
            Ok(())
        });
        let result = work.join().expect("the thread of the noise panicked");
        // The reader of the input may wait for ever.
        match result {
            Ok(()) => std::process::exit(0),
            Err(error) => Err(error),
        }
    })
}

fn round(dir: &Path, program: &Path) -> Result<()> {
    for entry in fs::read_dir("/etc")
        .context("list /etc")?
        .flatten()
        .take(50)
    {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            drop(fs::File::open(entry.path()));
        }
        raw::getppid();
    }
    let file = dir.join("noise-file");
    for index in 0..50 {
        let mut handle = fs::File::create(&file)?;
        handle.write_all(&[b'x'; 512])?;
        drop(handle);
        fs::rename(&file, dir.join(format!("noise-{index}")))?;
    }
    for index in 0..50 {
        fs::remove_file(dir.join(format!("noise-{index}")))?;
    }
    for _ in 0..5 {
        Command::new(program).status().context("run a program")?;
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    for _ in 0..5 {
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (mut server, _) = listener.accept()?;
        server.write_all(b"noise")?;
        drop(server);
        drop(client);
    }
    Ok(())
}
