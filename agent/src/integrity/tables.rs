//! Tables of functions in the kernel's memory that lead elsewhere: those of system calls, and those by which `/proc` lists processes
//! and sockets.
//!
//! Read are the structures that the kernel itself uses: from the thread that looks to its open files, and from these to their
//! functions. So it makes no difference whether a structure was changed or another one put in its place.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;

use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use sumun_abi::slot;

use super::Found;
use crate::kernel::folder;
use crate::kernel::memory::Memory;
use crate::kernel::symbols::FUNCTIONS;

/// Calls that every kernel from 5.10 on has, of every processor: so long each table is at least.
const CALLS_MIN: usize = 441;
/// Entries of a table that are looked at at most.
const CALLS_MAX: usize = 1024;

/// Entries of the tables of system calls that lead out of the kernel, or to what is no system call.
///
/// # Errors
/// They cannot be read; for people.
pub fn calls(memory: &mut Memory) -> Result<Found, String> {
    let tables = memory.symbols.tables.clone();
    if tables.is_empty() {
        return Err("the kernel's list of symbols has no table of system calls: it was built without CONFIG_KALLSYMS_ALL".into());
    }
    let mut found = Found::new();
    for (table, range) in tables {
        let entries = entries(memory, &range).map_err(|error| format!("{table}: {error}"))?;
        for (number, entry) in entries.into_iter().enumerate() {
            if memory.symbols.calls.binary_search(&entry).is_err() {
                let place = place(memory, entry);
                found.insert(
                    format!("{table}[{number}]"),
                    format!("expected the function of a system call; found {place}"),
                );
            }
        }
    }
    Ok(found)
}

/// All entries of a table. How long it is nothing tells but the next symbol, and before that there may be what has none: as many as there are on
/// every kernel, and more up to the last that is a system call.
fn entries(memory: &mut Memory, table: &Range<u64>) -> io::Result<Vec<u64>> {
    let most = usize::try_from((table.end - table.start) / 8).unwrap_or(CALLS_MAX);
    let mut entries = memory.pointers(table.start, most.min(CALLS_MAX))?;
    let is_call = |entry: &u64| memory.symbols.calls.binary_search(entry).is_ok();
    let last = entries.iter().rposition(is_call).map_or(0, |last| last + 1);
    entries.truncate(last.max(CALLS_MIN));
    Ok(entries)
}

/// Where an address lies, without telling where the kernel does.
fn place(memory: &Memory, address: u64) -> String {
    let text = &memory.symbols.text;
    match text.contains(&address) {
        true => format!(
            "_stext+{:#x} in the kernel's own code",
            address - text.start
        ),
        false => format!("{address:#x} outside the kernel's own code"),
    }
}

/// A structure of functions.
struct Structure {
    /// What people know it by.
    name: String,
    address: u64,
    /// Slot of its size.
    size: usize,
    /// A function of it: slot of its place, its name there, and which it has to be.
    is: (usize, &'static str, &'static str),
}

/// What of [`of_proc`] cannot be told here: where the function itself is not known, another one of the kernel's own passes for it.
#[must_use]
pub fn partly(memory: &Memory) -> Option<String> {
    let listed = &memory.symbols.functions;
    let unlisted = FUNCTIONS
        .into_iter()
        .filter(|name| !listed.contains_key(name));
    let unlisted: Vec<_> = unlisted.collect();
    let own = std::process::id();
    let lacking = ["net/tcp", "net/udp"].into_iter();
    let lacking = lacking.filter(|name| folder::open(own, name).is_err());
    let lacking: Vec<_> = lacking.collect();
    let mut said = Vec::new();
    if !unlisted.is_empty() {
        said.push(format!(
            "the kernel's list of symbols has no {}",
            unlisted.join(", ")
        ));
    }
    if !lacking.is_empty() {
        said.push(format!("/proc has no {}", lacking.join(", ")));
    }
    (!said.is_empty()).then(|| said.join("; "))
}

/// Functions of `/proc` that lead out of the kernel, or elsewhere than they did when it was built.
///
/// # Errors
/// They cannot be read; for people.
pub fn of_proc(memory: &mut Memory) -> Result<Found, String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| format!("{what}: {error}")
    };
    let own = std::process::id();
    let mut structures = Vec::new();
    let folders = [
        (
            "/proc",
            File::open("/proc"),
            "proc_root_readdir",
            "proc_root_lookup",
        ),
        (
            "/proc/PID",
            folder::open(own, "."),
            "proc_tgid_base_readdir",
            "proc_tgid_base_lookup",
        ),
    ];
    for (name, file, lists, finds) in folders {
        let file = file.map_err(failed(name))?;
        let its = file_of(memory, &file).map_err(failed(name))?;
        structures.push(Structure {
            name: format!("{name} file_operations"),
            address: memory.field(its, slot::FILE_OP).map_err(failed(name))?,
            size: slot::FILE_OPS_SIZE,
            is: (slot::FILE_OPS_SHARED, "iterate_shared", lists),
        });
        let inode = memory.field(its, slot::FILE_INODE).map_err(failed(name))?;
        structures.push(Structure {
            name: format!("{name} inode_operations"),
            address: memory.field(inode, slot::INODE_OP).map_err(failed(name))?,
            size: slot::INODE_OPS_SIZE,
            is: (slot::INODE_OPS_LOOKUP, "lookup", finds),
        });
    }
    for (name, show) in [("tcp", "tcp4_seq_show"), ("udp", "udp4_seq_show")] {
        let shown = format!("/proc/net/{name}");
        let file = match folder::open(own, &format!("net/{name}")) {
            Ok(file) => file,
            // A kernel without it.
            Err(error) if folder::is_gone(&error) => continue,
            Err(error) => return Err(failed(&shown)(error)),
        };
        let its = file_of(memory, &file).map_err(failed(&shown))?;
        let list = memory.field(its, slot::FILE_PRIVATE);
        let list = list.map_err(failed(&shown))?;
        let functions = memory.field(list, slot::SEQ_OP).map_err(failed(&shown))?;
        structures.push(Structure {
            name: format!("{shown} seq_operations"),
            address: functions,
            size: slot::SEQ_OPS_SIZE,
            is: (slot::SEQ_OPS_SHOW, "show", show),
        });
    }
    let mut found = Found::new();
    for structure in structures {
        let odd = odd(memory, &structure).map_err(failed(&structure.name))?;
        found.extend(odd);
    }
    Ok(found)
}

/// What of a structure leads elsewhere.
fn odd(memory: &mut Memory, structure: &Structure) -> io::Result<BTreeMap<String, String>> {
    let size = memory.value(structure.size)? as usize;
    let (place_of, member, expected) = structure.is;
    let at = memory.value(place_of)? as usize / 8;
    let mut found = BTreeMap::new();
    for (index, word) in memory
        .pointers(structure.address, size / 8)?
        .into_iter()
        .enumerate()
    {
        let named = memory.symbols.functions.get(expected);
        let (name, wanted) = match index == at {
            true => (format!("{} {member}", structure.name), expected),
            false => (
                format!("{} +{:#x}", structure.name, 8 * index),
                "a function of the kernel's own",
            ),
        };
        let fits = match (index == at, named) {
            (true, Some(named)) => named.contains(&word),
            // Flags and what is not set are no addresses of the kernel's.
            (false, _) if word >> 63 == 0 => true,
            _ => memory.symbols.text.contains(&word),
        };
        if !fits {
            let place = place(memory, word);
            found.insert(name, format!("expected {wanted}; found {place}"));
        }
    }
    Ok(found)
}

/// Address of the structure of an open file of `/proc`.
fn file_of(memory: &mut Memory, file: &File) -> io::Result<u64> {
    if fstatfs(file)?.filesystem_type() != PROC_SUPER_MAGIC {
        return Err(io::Error::other("something else is mounted there"));
    }
    let number = u64::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    let task = memory.own_task()?;
    let files = memory.field(task, slot::TASK_FILES)?;
    // Another thread that opens many makes the table a larger one, and the old one is soon used for something else.
    let table = memory.field(files, slot::FILES_FDT)?;
    let descriptors = memory.field(table, slot::FDTABLE_FD)?;
    let its = memory.pointers(descriptors.wrapping_add(8 * number), 1)?[0];
    let inode = memory.field(its, slot::FILE_INODE)?;
    match memory.field(inode, slot::INODE_INO)? == file.metadata()?.ino() {
        true => Ok(its),
        false => Err(io::Error::other("its descriptor could not be followed")),
    }
}
