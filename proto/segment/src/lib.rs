//! The append log: the agent's spool and the collector's durable log are both
//! this one piece of code.
//!
//! A log is a directory of segments. Records are appended to the newest one,
//! numbered from 1 without holes, synced in groups, read while appends go on,
//! and removed oldest segment first. It knows nothing of what a record means.
//!
//! # Layout
//!
//! ```text
//! DIR/lock                          held (flock) while the log is open
//! DIR/reserve                       preallocated space, see "Full disk"
//! DIR/00000000000000000001.seg      segment; the name is its first sequence
//! DIR/00000000000000004711.seg
//! DIR/*.tmp                         a segment being made; removed at open
//! ```
//!
//! All integers are little-endian. A segment starts with 32 bytes:
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 8 | magic `SUMUNLOG` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | CRC-32C of the other 28 bytes |
//! | 16 | 8 | sequence of the first record |
//! | 24 | 8 | log id: random, the same in every segment of a log |
//!
//! and goes on with records back to back, 24 bytes and the payload each:
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 4 | payload length, at most [`MAX_PAYLOAD`] |
//! | 4 | 4 | behind: this sequence minus the highest one known durable when the record was written (capped) |
//! | 8 | 8 | sequence |
//! | 16 | 4 | CRC-32C of the payload |
//! | 20 | 4 | CRC-32C of the 20 bytes before |
//! | 24 | | payload |
//!
//! Both checksums of a record start from the log id, so that bytes inside a
//! payload, which may be chosen by an attacker, are never taken for a record
//! when recovery searches damaged bytes for the next good one. Length,
//! sequence and payload are all covered; a run of zeros is never a record.
//!
//! # Limits
//!
//! A payload has at most [`MAX_PAYLOAD`] bytes. A segment is closed when the
//! next record would pass `segment_bytes`; a single larger record gets a
//! segment of its own. `max_bytes` bounds the whole directory: an append that
//! would pass it fails with [`Error::Bound`] and the caller decides what goes.
//!
//! # Invariants
//!
//! 1. Sequences only grow and are never used twice, whatever was removed or lost.
//! 2. A segment is synced, whole, before the next one gets its name; so only
//!    the last segment can have a torn tail.
//! 3. A segment gets its name by rename, after its header is on disk; the
//!    directory is synced before a record in it is reported durable.
//! 4. What [`Log::sync`] has reported is there after power loss.
//! 5. Bytes after the last good record never stay: a write that fails half way
//!    is cut off at once, and nothing is appended until that has worked.
//!
//! # Recovery
//!
//! The last segment is read whole. A record that fails its checksum and is
//! followed by nothing that proves it durable is the torn tail of an
//! interrupted write: the file is cut there, so what remains is a prefix of
//! what was appended. If a later good record says (`behind`) that the damaged
//! one had been durable when it was written, this is damage, not an
//! interruption: the lost sequences are reported, all later records stay, and
//! the log goes on in a new segment.
//! Earlier segments are not read at open; damage in them is reported as
//! [`Entry::Lost`] by whoever reads over it, and later records still come.
//! A segment whose header is damaged is still read, with the id that the other
//! segments of the log carry, but no longer appended to; if there is no other,
//! all sequences it may have held are reported lost and are not used again.
//!
//! # Failed syncs
//!
//! After `fdatasync` has failed the kernel may have dropped the pages and
//! marked them clean, so that a second call would succeed for data that was
//! never written. Hence every record after the last successful sync counts as
//! not durable, syncs are serialised (each error is reported once per open
//! file), and the next append or sync first writes all of those records,
//! verified by their checksums, to a new segment that is synced before it gets
//! its name. What cannot be read back any more is [`Error::LostBySync`].
//! The old segment keeps its now superfluous tail: a segment ends where the
//! next one begins.
//!
//! # Full disk
//!
//! `reserve` bytes are preallocated in a file of their own.
//! [`Log::append_reserved`] gives that space up if the disk is full, so that a
//! record about the loss can still be written. Ordinary appends fail until the
//! reserve could be taken again. File systems that compress or copy on write
//! do not promise that freed space is usable; there the reserve is an attempt.

#![forbid(unsafe_code)]

mod error;
mod format;
mod log;
mod reader;
mod recover;
mod reserve;
mod scan;
mod segment;
mod shared;

pub use error::{Error, Result};
pub use format::{MAX_PAYLOAD, RECORD_OVERHEAD, SEGMENT_OVERHEAD};
pub use log::{Log, Options, Removed};
pub use reader::{Entry, Reader};
pub use recover::{Lost, Recovery};
pub use segment::SegmentInfo;

/// Number of a record in its log: the first is 1, 0 stands for "none yet".
pub type Seq = u64;
