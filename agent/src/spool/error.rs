//! What can go wrong with the spool.

use std::io;
use std::path::PathBuf;

/// A failed operation on the spool. Nothing of it has happened; it can be
/// tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lane's log cannot be opened, read, written or synced.
    #[error("failed to {operation} the {lane} lane of the spool")]
    Log {
        /// What was tried.
        operation: &'static str,
        /// The lane.
        lane: &'static str,
        /// The log's word.
        #[source]
        source: sumun_segment::Error,
    },
    /// The lane has used up its quota and nothing in it may be given up.
    #[error("the {lane} lane of the spool is full: reconnect the collector or raise its quota")]
    Full {
        /// The lane.
        lane: &'static str,
    },
    /// The body is larger than any collector takes.
    #[error("batch of {bytes} bytes is larger than the largest of {max}: split it")]
    TooLarge {
        /// Bytes of the body.
        bytes: usize,
        /// The largest allowed.
        max: usize,
    },
    /// The lane is `LANE_UNSPECIFIED`.
    #[error("a batch needs one of the lanes alert, life and bulk")]
    NoLane,
    /// The collector answered for a batch that it was not sent.
    #[error(
        "answer for batch {number} of epoch {epoch:016x} in the {lane} lane, which was not sent"
    )]
    NotSent {
        /// The lane.
        lane: &'static str,
        /// The epoch of the answer.
        epoch: u64,
        /// Its number.
        number: u64,
    },
    /// A folder or file beside the logs.
    #[error("failed to {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether room is what is missing, on disk or in the lane's quota.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Error::Full { .. } => true,
            Error::Log { source, .. } => source.is_full(),
            _ => false,
        }
    }
}
