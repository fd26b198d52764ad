//! Loss counters and sequences: what the agent compares to know that nothing
//! is missing, or exactly what is.

use crate::assert_size;
use crate::record::{LEVELS, RINGS};

/// Why a record that had a sequence number did not reach its ring.
pub mod reason {
    /// The ring had no room.
    pub const RING_FULL: u32 = 0;
    /// Deeper nesting than `LEVELS`; has no stream of its own and is counted
    /// in the deepest.
    pub const NESTED: u32 = 1;
    /// A record that outgrew its scratch buffer (a bug if it ever counts).
    pub const TOO_LONG: u32 = 2;
    /// More new UDP flows or DNS messages in a second than `event::network::FLOWS_PER_SECOND`.
    pub const LIMITED: u32 = 3;
    /// Number of reasons.
    pub const COUNT: usize = 4;
}

/// One stream's state on one CPU. The map `STREAMS` is a per-CPU array with
/// index `ring * LEVELS + level`; only programs on that CPU at that level
/// write it, so plain additions are exact.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// The last sequence number given out.
    pub seq: u64,
    /// Cumulative losses by `reason`. Their sum over all but NESTED is
    /// the number of sequence numbers that will never be seen.
    pub lost: [u64; reason::COUNT],
}
assert_size!(Stream, 40);

/// Entries of the map `STREAMS`.
pub const STREAMS: u32 = RINGS * LEVELS;
