//! How far each kernel stream has been read: the numbers that tell a restarted
//! agent what it has already dealt with, and what was lost while it was away.
//!
//! One small file, `consumed`, with two slots written in turn. A slot is
//!
//! ```text
//! crc32c  4   over everything after it in the slot
//! magic   4   "SCN1"
//! turn    8   the higher valid slot counts
//! pin     8   generation of the pinned maps the numbers belong to
//! through 8   wall time up to which the agent had read everything, ns
//! boot   16   boot id
//! count   4   number of streams
//! streams     count x 8: last sequence number dealt with, by ring, level and CPU; a
//!             level beyond the last holds the count of losses without a number
//! ```
//!
//! all little-endian. It is written after the spool and before the ring is advanced, with
//! a plain write: that survives a kill of the agent, and after a power loss
//! the pinned maps are gone too, so the numbers are not needed. A torn slot
//! fails its checksum and the other one holds: its records are still in the ring.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use sumun_abi::record::{LEVELS, RINGS};

use crate::kernel::StreamId;

const MAGIC: [u8; 4] = *b"SCN1";
const HEADER: usize = 52;

/// Failure of the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened or made.
    #[error("cannot open {path}: {source}; the state directory must be writable")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What a run before this one left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    /// Generation of the pinned maps it read.
    pub pin_generation: u64,
    /// Boot id.
    pub boot_id: [u8; 16],
    /// Wall time up to which it had read everything, ns since the epoch; 0 = unknown.
    pub through_wall_ns: i64,
}

/// The numbers, in memory and in the file.
#[derive(Debug)]
pub struct Consumed {
    file: File,
    path: PathBuf,
    cpus: u32,
    turn: u64,
    pin_generation: u64,
    boot_id: [u8; 16],
    streams: Vec<u64>,
    /// The wall time that the newest slot holds, until a stream moves on.
    current: Option<i64>,
    buffer: Vec<u8>,
}

impl Consumed {
    /// Opens the file. Numbers of other pinned maps do not count: the streams then start at 0.
    ///
    /// # Errors
    /// When the file cannot be opened or made.
    pub fn open(
        state: &Path,
        cpus: u32,
        pin_generation: u64,
        boot_id: [u8; 16],
    ) -> Result<(Self, Option<Before>), Error> {
        let path = state.join("consumed");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| Error::Open {
                path: path.clone(),
                source,
            })?;
        let count = (RINGS * (LEVELS + 1) * cpus) as usize;
        let mut consumed = Self {
            file,
            path,
            cpus,
            turn: 0,
            pin_generation,
            boot_id,
            streams: vec![0; count],
            current: None,
            buffer: Vec::new(),
        };
        let before = consumed.load();
        Ok((consumed, before))
    }

    /// Last number dealt with in a stream; 0 = none, or a stream of a CPU beyond those known.
    #[must_use]
    pub fn get(&self, stream: StreamId) -> u64 {
        self.index(stream).map_or(0, |index| self.streams[index])
    }

    /// Moves a stream on; it never moves back.
    pub fn set(&mut self, stream: StreamId, seq: u64) {
        if let Some(index) = self.index(stream)
            && self.streams[index] < seq
        {
            self.streams[index] = seq;
            self.current = None;
        }
    }

    /// Writes the next slot, unless the newest holds all this already.
    ///
    /// # Errors
    /// When the write fails; the slot before still holds.
    pub fn write(&mut self, through_wall_ns: i64) -> Result<(), Error> {
        if self.current == Some(through_wall_ns) {
            return Ok(());
        }
        self.current = None;
        self.turn += 1;
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.extend([0; 4]);
        buffer.extend(MAGIC);
        buffer.extend(self.turn.to_le_bytes());
        buffer.extend(self.pin_generation.to_le_bytes());
        buffer.extend(through_wall_ns.to_le_bytes());
        buffer.extend(self.boot_id);
        buffer.extend(
            u32::try_from(self.streams.len())
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        for seq in &self.streams {
            buffer.extend(seq.to_le_bytes());
        }
        let crc = crc32c::crc32c(&buffer[4..]);
        buffer[..4].copy_from_slice(&crc.to_le_bytes());
        let offset = (self.turn % 2) * buffer.len() as u64;
        self.file
            .write_all_at(&self.buffer, offset)
            .map_err(|source| Error::Write {
                path: self.path.clone(),
                source,
            })?;
        self.current = Some(through_wall_ns);
        Ok(())
    }

    fn index(&self, stream: StreamId) -> Option<usize> {
        let StreamId { ring, cpu, level } = stream;
        let (ring, level) = (u32::from(ring), u32::from(level));
        (ring < RINGS && level <= LEVELS && cpu < self.cpus)
            .then(|| ((ring * (LEVELS + 1) + level) * self.cpus + cpu) as usize)
    }

    fn load(&mut self) -> Option<Before> {
        let slot = HEADER + self.streams.len() * 8;
        let mut bytes = vec![0; slot];
        let mut best: Option<(u64, Vec<u8>)> = None;
        for which in 0..2 {
            if self
                .file
                .read_exact_at(&mut bytes, which * slot as u64)
                .is_err()
            {
                continue;
            }
            if let Some(turn) = check(&bytes)
                && best.as_ref().is_none_or(|(best, _)| *best < turn)
            {
                best = Some((turn, bytes.clone()));
            }
        }
        let (turn, bytes) = best?;
        self.turn = turn;
        let before = Before {
            pin_generation: u64::from_le_bytes(array(&bytes, 16)),
            through_wall_ns: i64::from_le_bytes(array(&bytes, 24)),
            boot_id: array(&bytes, 32),
        };
        if before.pin_generation == self.pin_generation && before.boot_id == self.boot_id {
            for (index, seq) in self.streams.iter_mut().enumerate() {
                *seq = u64::from_le_bytes(array(&bytes, HEADER + index * 8));
            }
        }
        Some(before)
    }
}

/// The turn of a slot whose checksum holds.
fn check(slot: &[u8]) -> Option<u64> {
    let count = (slot.len().checked_sub(HEADER)?) / 8;
    let good = u32::from_le_bytes(array(slot, 0)) == crc32c::crc32c(&slot[4..])
        && slot[4..8] == MAGIC
        && u32::from_le_bytes(array(slot, 48)) as usize == count;
    good.then(|| u64::from_le_bytes(array(slot, 8)))
}

/// `N` bytes at an offset that the caller knows to be inside.
fn array<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[offset..offset + N]);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(ring: u8, cpu: u32, level: u8) -> StreamId {
        StreamId { ring, cpu, level }
    }

    #[test]
    fn a_restart_finds_the_numbers_and_a_torn_slot_the_ones_before() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut consumed, before) = Consumed::open(dir.path(), 2, 7, [1; 16]).expect("open");
        assert_eq!(before, None);
        consumed.set(stream(1, 1, 3), 41);
        consumed.write(100).expect("write");
        consumed.set(stream(1, 1, 3), 42);
        consumed.write(200).expect("write");
        drop(consumed);
        let (again, before) = Consumed::open(dir.path(), 2, 7, [1; 16]).expect("open");
        assert_eq!(again.get(stream(1, 1, 3)), 42);
        assert_eq!(before.expect("before").through_wall_ns, 200);
        // Turn 2 lies in the first slot.
        again.file.write_all_at(&[0xff; 8], 30).expect("tear");
        drop(again);
        let (torn, before) = Consumed::open(dir.path(), 2, 7, [1; 16]).expect("open");
        assert_eq!(torn.get(stream(1, 1, 3)), 41);
        assert_eq!(before.expect("before").through_wall_ns, 100);
    }

    #[test]
    fn what_the_file_holds_is_not_written_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut consumed, _) = Consumed::open(dir.path(), 1, 7, [1; 16]).expect("open");
        let mut turn_after = |seq, wall| {
            consumed.set(stream(0, 0, 0), seq);
            consumed.write(wall).expect("write");
            consumed.turn
        };
        assert_eq!(turn_after(5, 100), 1);
        assert_eq!(turn_after(5, 100), 1);
        assert_eq!(turn_after(4, 100), 1, "a stream never moves back");
        assert_eq!(turn_after(6, 100), 2);
        assert_eq!(turn_after(6, 200), 3);
    }

    #[test]
    fn numbers_of_other_pins_do_not_count() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut consumed, _) = Consumed::open(dir.path(), 1, 7, [1; 16]).expect("open");
        consumed.set(stream(0, 0, 0), 9);
        consumed.write(5).expect("write");
        let (fresh, before) = Consumed::open(dir.path(), 1, 8, [1; 16]).expect("open");
        assert_eq!(fresh.get(stream(0, 0, 0)), 0);
        assert_eq!(before.expect("before").pin_generation, 7);
    }

    #[test]
    fn streams_out_of_range_are_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut consumed, _) = Consumed::open(dir.path(), 1, 7, [1; 16]).expect("open");
        consumed.set(stream(9, 9, 9), 5);
        assert_eq!(consumed.get(stream(9, 9, 9)), 0);
    }
}
