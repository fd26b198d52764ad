//! What can go wrong with a log.

use std::io;
use std::path::{Path, PathBuf};

use crate::Seq;
use crate::recover::Lost;

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation on a log. Whatever it is, the log stays valid and the
/// operation can be tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system has no room (or the quota is used up). Nothing was appended.
    #[error("no space to {operation} {}: free space on that file system", path.display())]
    NoSpace {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// Any other failure of the system. Nothing was appended.
    #[error("failed to {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// The record would pass `Options::max_bytes`. Nothing was appended.
    #[error("log {} is at its bound of {max_bytes} bytes: remove segments first", path.display())]
    Bound {
        /// The log's directory.
        path: PathBuf,
        /// The bound.
        max_bytes: u64,
    },
    /// The payload is larger than [`crate::MAX_PAYLOAD`].
    #[error("record of {bytes} bytes is larger than the largest of {max}: split it")]
    TooLarge {
        /// Bytes of the payload.
        bytes: u64,
        /// The largest allowed.
        max: u64,
    },
    /// Another process, or another `Log` of this one, has the directory open.
    #[error("log {} is in use by another process: stop it first", path.display())]
    InUse {
        /// The log's directory.
        path: PathBuf,
    },
    /// The segment was written by a newer version of this program.
    #[error("segment {} has format version {found}, this program knows {known}: use the newer program", path.display())]
    Version {
        /// The segment file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version this program writes.
        known: u32,
    },
    /// The disk failed to take records that had been accepted. They are
    /// written again by the next append or sync; until one of them succeeds,
    /// `first_unsynced` and all after it are not durable.
    #[error("failed to sync {}: record {first_unsynced} and later are not durable and will be written again", path.display())]
    SyncFailed {
        /// The segment file.
        path: PathBuf,
        /// The lowest sequence that is not durable.
        first_unsynced: Seq,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// After a failed sync these records could not be read back: they are
    /// lost. Reported once; readers report the range too.
    #[error(
        "records were lost by a failed sync ({}): the disk is failing",
        ranges(lost)
    )]
    LostBySync {
        /// The lost ranges, ascending.
        lost: Vec<Lost>,
    },
}

fn ranges(lost: &[Lost]) -> String {
    let ranges: Vec<String> = lost
        .iter()
        .map(|range| format!("{} to {}", range.from, range.to))
        .collect();
    ranges.join(", ")
}

impl Error {
    /// An error of the system, told apart by whether space is what is missing.
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Error::NoSpace {
                operation,
                path,
                source,
            },
            _ => Error::Io {
                operation,
                path,
                source,
            },
        }
    }

    /// Whether room is what is missing, on disk or below the log's bound.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Error::NoSpace { .. } | Error::Bound { .. })
    }
}
