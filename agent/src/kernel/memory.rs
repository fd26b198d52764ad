//! The kernel's memory, read at its own addresses by a program of ours: what its tables and structures hold.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use aya::maps::{Array, Map, MapData};
use sumun_abi::{memory::READ_MAX, slot};

use super::symbols::Symbols;
use super::{Error, Kernel, chain, tasks};

/// Name of the program and of its pinned link.
const PROGRAM: &str = "memory";
/// The entry that says what is read.
const WANTED: &str = "MEMORY";

/// Reads the kernel's memory. Two at a time would take each other's answers: the agent has one, in the thread that looks.
pub struct Memory {
    wanted: Array<MapData, [u64; 2]>,
    /// An iterator: each time it is opened, it reads what is wanted.
    pin: PathBuf,
    offsets: [u32; slot::COUNT],
    /// Where the kernel's functions and tables lie.
    pub symbols: Symbols,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Memory").finish_non_exhaustive()
    }
}

impl Memory {
    /// Bytes at an address.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn read(&mut self, address: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let part = (len - bytes.len()).min(READ_MAX);
            let from = address.wrapping_add(bytes.len() as u64);
            let before = bytes.len();
            self.wanted
                .set(0, [from, part as u64], 0)
                .map_err(io::Error::other)?;
            bytes.resize(before + part, 0);
            // No more than there is, or it would go on to further tasks.
            File::open(&self.pin)?
                .read_exact(&mut bytes[before..])
                .map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => {
                        io::Error::other(format!("the kernel cannot read {part} bytes there"))
                    }
                    _ => error,
                })?;
        }
        Ok(bytes)
    }

    /// The pointers from an address on.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn pointers(&mut self, address: u64, count: usize) -> io::Result<Vec<u64>> {
        let bytes = self.read(address, 8 * count)?;
        let (words, _) = bytes.as_chunks::<8>();
        Ok(words.iter().map(|word| u64::from_ne_bytes(*word)).collect())
    }

    /// The pointer in a field of the structure at an address.
    ///
    /// # Errors
    /// As [`Memory::read`]; this kernel has no such field.
    pub fn field(&mut self, base: u64, field: usize) -> io::Result<u64> {
        let offset = self.value(field)?;
        let pointers = self.pointers(base.wrapping_add(offset.into()), 1)?;
        Ok(pointers[0])
    }

    /// What a slot is worth on this kernel.
    ///
    /// # Errors
    /// It has no such field or structure.
    pub fn value(&self, slot: usize) -> io::Result<u32> {
        match self.offsets[slot] {
            slot::NONE => Err(io::Error::other(format!(
                "this kernel has no {}",
                slot::TABLE[slot].name
            ))),
            value => Ok(value),
        }
    }

    /// Address of the structure of the thread that asks.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn own_task(&mut self) -> io::Result<u64> {
        Ok(self.pointers(0, 1)?[0])
    }
}

impl Kernel {
    /// What reads the kernel's memory.
    ///
    /// # Errors
    /// The kernel shows no addresses, or refuses the program; for people.
    pub fn memory(&self) -> Result<Memory, String> {
        let symbols = self.symbols.clone()?;
        let pin = self.pins.link(PROGRAM);
        if !pin.exists() {
            return Err("the program that reads memory is not there: see the log".into());
        }
        let Some(Map::Array(data)) = self.ebpf.map(WANTED) else {
            return Err(Error::Absent(WANTED).to_string());
        };
        let failed = |error: &dyn std::error::Error| chain(error);
        let fd = data.fd().as_fd();
        let fd = fd.try_clone_to_owned().map_err(|error| failed(&error))?;
        let data = MapData::from_fd(fd).map_err(|error| failed(&error))?;
        let wanted = Array::try_from(Map::Array(data)).map_err(|error| failed(&error))?;
        Ok(Memory {
            wanted,
            pin,
            offsets: self.slots.values,
            symbols,
        })
    }

    /// Loads the iterator and pins it in place of a previous agent's.
    pub(super) fn pin_memory(&mut self, btf: &aya::Btf) -> Result<(), String> {
        let pin = self.pins.link(PROGRAM);
        tasks::pin_iterator(&mut self.ebpf, PROGRAM, &pin, btf)
    }
}
