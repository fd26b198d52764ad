//! What the generators write down about what they really did, one JSON object a line.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// One program that was executed and has ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exec {
    /// Process id.
    pub pid: u32,
    /// Process id of the caller of fork.
    pub parent: u32,
    /// Path of the executable, in the catalogue's text form.
    pub path: String,
    /// Arguments, in the catalogue's text form.
    pub args: Vec<String>,
    /// The arguments are longer than an agent keeps.
    pub too_long: bool,
    /// Exit status.
    pub code: i32,
}

/// One system call on a file that succeeded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FileCall {
    /// `open`, `close_write`, `rename` or `unlink`.
    pub kind: String,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// Path, in the catalogue's text form.
    pub path: String,
    /// Where a rename put it.
    pub new_path: Option<String>,
    /// Device in the kernel's encoding, from fstat.
    pub dev: u64,
    /// Inode number, from fstat.
    pub ino: u64,
    /// Made by a 32-bit call.
    pub compat: bool,
}

/// One end of a TCP connection, or an attempt that failed.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, Hash)]
pub struct Connection {
    /// `connect` or `accept`.
    pub kind: String,
    /// Process.
    pub pid: u32,
    /// Address and port of the caller of connect.
    pub src: (String, u16),
    /// Address and port of the listener.
    pub dst: (String, u16),
    /// 0 or a negative error number.
    pub result: i32,
}

/// One try to mislead: what the call really did, and what a naive observer would have seen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Try {
    /// `open`, `rename` or `unlink`.
    pub kind: String,
    /// Thread that made the call.
    pub tid: u32,
    /// Boot time before the call, ns.
    pub begun: u64,
    /// Boot time after the call, ns.
    pub ended: u64,
    /// Path of the object the call really acted on.
    pub path: String,
    /// Its device in the kernel's encoding.
    pub dev: u64,
    /// Its inode number.
    pub ino: u64,
    /// The name before or after the call (or the descriptor after it) was that of another object.
    pub won: bool,
}

/// Device in the kernel's encoding from `st_dev`.
#[must_use]
pub fn kernel_dev(st_dev: u64) -> u64 {
    nix::sys::stat::major(st_dev) << 20 | nix::sys::stat::minor(st_dev)
}

/// Writes one object a line.
///
/// # Errors
/// The file cannot be written.
pub fn write<T: Serialize>(path: &Path, items: &[T]) -> Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut writer = BufWriter::new(file);
    for item in items {
        serde_json::to_writer(&mut writer, item)?;
        writer.write_all(b"\n")?;
    }
    writer.flush()?;
    Ok(())
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// The file cannot be read, or a line is not such an object.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    BufReader::new(file)
        .lines()
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect()
}
