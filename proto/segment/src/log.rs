//! The open log: append, sync, roll, remove.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use tracing::{info, warn};

use crate::Seq;
use crate::error::{Error, Result};
use crate::reader::Reader;
use crate::recover::{Recovery, recover};
use crate::reserve::Reserve;
use crate::segment::{self, SegmentInfo};
use crate::shared::{Room, Shared, lock_dir};

/// How a log is kept.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A segment is closed when the next record would make it larger than this.
    pub segment_bytes: u64,
    /// Bound of all the log's files together, reserve included; `None` leaves
    /// it to the file system.
    pub max_bytes: Option<u64>,
    /// Bytes held back for [`Log::append_reserved`]; 0 for none.
    pub reserve: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            segment_bytes: 64 * 1024 * 1024,
            max_bytes: None,
            reserve: 0,
        }
    }
}

/// What [`Log::remove_through`] has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Number of segments.
    pub segments: u64,
    /// Bytes of their files.
    pub bytes: u64,
}

/// An open log. Clones are handles to the same one: any thread may append,
/// sync, read and remove. Appends wait for each other, syncs wait for each
/// other, but an append waits for a sync only when a segment is full.
#[derive(Clone, Debug)]
pub struct Log {
    pub(crate) shared: Arc<Shared>,
}

impl Log {
    /// Opens the log in `dir`, made if it is absent, and brings it to a valid
    /// state. Everything that is there afterwards is durable.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::Version`], or what the system says.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<(Log, Recovery)> {
        let dir = dir.as_ref().to_path_buf();
        fs::create_dir_all(&dir).map_err(|e| Error::io("create directory", &dir, e))?;
        if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            segment::sync_dir(parent)?;
        }
        let lock = lock_dir(&dir)?;
        let recovered = recover(&dir)?;
        let recovery = recovered.recovery.clone();
        let mut reserve = Reserve::new(&dir, options.reserve);
        if let Err(error) = reserve.take() {
            warn!(%error, "log opened without its reserve");
        }
        if recovery.truncated_tail_bytes > 0 || !recovery.lost.is_empty() {
            info!(
                dir = %dir.display(),
                truncated_tail_bytes = recovery.truncated_tail_bytes,
                lost = ?recovery.lost,
                "log recovered"
            );
        }
        let shared = Shared::new(dir, options, lock, reserve, recovered)?;
        let log = Log {
            shared: Arc::new(shared),
        };
        Ok((log, recovery))
    }

    /// Appends one record and returns its sequence. It survives the end of
    /// this process at once, power loss after the next [`Log::sync`].
    ///
    /// # Errors
    /// Nothing was appended; [`Error::is_full`] tells whether room is missing.
    pub fn append(&self, payload: &[u8]) -> Result<Seq> {
        self.append_parts(&[payload])
    }

    /// Like [`Log::append`], of a payload that lies in several pieces.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn append_parts(&self, parts: &[&[u8]]) -> Result<Seq> {
        let range = self.shared.append(&[parts], Room::Ordinary)?;
        Ok(range.start)
    }

    /// Appends all of these records or none, in as few writes as the system
    /// allows, and returns their sequences.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn append_many(&self, payloads: &[&[u8]]) -> Result<Range<Seq>> {
        let parts: Vec<[&[u8]; 1]> = payloads.iter().map(|payload| [*payload]).collect();
        let records: Vec<&[&[u8]]> = parts.iter().map(|parts| parts.as_slice()).collect();
        self.shared.append(&records, Room::Ordinary)
    }

    /// Like [`Log::append_parts`], for a record that must get through: it may
    /// pass `max_bytes` and `segment_bytes`, and takes the reserve's space if
    /// the disk is full.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn append_reserved(&self, parts: &[&[u8]]) -> Result<Seq> {
        let range = self.shared.append(&[parts], Room::Reserved)?;
        Ok(range.start)
    }

    /// Makes everything appended before the call durable and returns the
    /// highest durable sequence. May run beside appends.
    ///
    /// # Errors
    /// [`Error::SyncFailed`] or [`Error::LostBySync`]: see "Failed syncs" at
    /// the top of the crate. Calling again is right.
    pub fn sync(&self) -> Result<Seq> {
        self.shared.sync()
    }

    /// Closes the active segment, so that it can be removed once its records
    /// are no longer needed, and goes on in a new one. An empty active segment
    /// stays: `None`.
    ///
    /// # Errors
    /// The active segment stays open; what a sync or a new file can fail with.
    pub fn roll(&self) -> Result<Option<SegmentInfo>> {
        self.shared.seal()
    }

    /// Removes the oldest closed segments whose records are all numbered `seq`
    /// or lower. The active segment stays; [`Log::roll`] first if it shall go.
    ///
    /// # Errors
    /// Segments that were removed before the error stay removed.
    pub fn remove_through(&self, seq: Seq) -> Result<Removed> {
        let mut removed = Removed::default();
        while let Some(bytes) = self.shared.remove_oldest(seq)? {
            removed.segments += 1;
            removed.bytes += bytes;
        }
        if removed.segments > 0 {
            // There may be room for the reserve again; appends insist on it.
            self.shared.retake_reserve();
        }
        Ok(removed)
    }

    /// Removes the closed segment that starts with `first`, wherever it stands;
    /// `false` if there is none. Readers report its records lost, unless it was
    /// the oldest: who drops from the middle keeps account of it.
    ///
    /// # Errors
    /// The segment is still there.
    pub fn drop_segment(&self, first: Seq) -> Result<bool> {
        let dropped = self.shared.remove(first)?.is_some();
        if dropped {
            self.shared.retake_reserve();
        }
        Ok(dropped)
    }

    /// Reads from the record `from` on (or the oldest there is) everything
    /// that is written, durable or not, and goes on as more is appended.
    #[must_use]
    pub fn reader(&self, from: Seq) -> Reader {
        Reader::new(Arc::clone(&self.shared), from, false)
    }

    /// Like [`Log::reader`], of durable records only.
    #[must_use]
    pub fn durable_reader(&self, from: Seq) -> Reader {
        Reader::new(Arc::clone(&self.shared), from, true)
    }

    /// All segments, oldest first; the last one is the active one.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.shared.state().infos()
    }

    /// The segment that is appended to.
    #[must_use]
    pub fn active(&self) -> SegmentInfo {
        self.shared.state().info_of_active()
    }

    /// Sequence of the oldest record, or of the next one if there is none.
    #[must_use]
    pub fn first(&self) -> Seq {
        self.shared.state().oldest()
    }

    /// Sequence of the newest record; 0 if there never was one.
    #[must_use]
    pub fn written(&self) -> Seq {
        self.shared.state().written
    }

    /// The highest sequence known to be durable.
    #[must_use]
    pub fn durable(&self) -> Seq {
        self.shared.state().durable
    }

    /// Bytes of all segments and of the reserve.
    #[must_use]
    pub fn bytes_on_disk(&self) -> u64 {
        self.shared.state().bytes() + self.shared.options.reserve
    }

    /// Whether the reserve is whole. It is not after [`Log::append_reserved`]
    /// has used it; each ordinary append tries to take it again first.
    #[must_use]
    pub fn reserve_held(&self) -> bool {
        self.shared.reserve_held()
    }
}

#[cfg(test)]
mod tests;
