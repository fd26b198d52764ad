//! The header every record starts with, and the spans its strings lie in.
//!
//! A record is `Header`, then the fixed part of its kind (`crate::event`),
//! then the tail: bytes that the spans of the fixed part point into. Offsets
//! of spans count from the start of the record.

use crate::assert_size;

/// Ring of process life and verdicts.
pub const RING_LIFE: u8 = 0;
/// Ring of file and network records.
pub const RING_BULK: u8 = 1;
/// Number of rings.
pub const RINGS: u32 = 2;

/// Nesting levels that have a scratch buffer and a sequence of their own.
/// A program that interrupts a program of ours on the same CPU (softirq in
/// tracepoint, NMI) uses the next level; what nests deeper is counted as lost.
pub const LEVELS: u32 = 4;

/// The largest record: what a scratch buffer holds and a decoder accepts.
pub const RECORD_MAX: usize = 26 * 1024;

/// Bytes of one path, like the kernel's `PATH_MAX`, without a final NUL.
pub const PATH_MAX: usize = 4096;
/// Path components walked before a path is `FLAW_TRUNCATED`.
pub const PATH_DEPTH_MAX: u32 = 64;
/// Bytes of arguments that are copied; longer ones are `FLAW_TRUNCATED`.
pub const ARGS_MAX: usize = 16 * 1024;

/// First bytes of every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of the whole record in bytes, header included.
    pub len: u32,
    /// One of `crate::event::kind`.
    pub kind: u16,
    /// `RING_LIFE` or `RING_BULK`.
    pub ring: u8,
    /// Nesting level, below `LEVELS`.
    pub level: u8,
    /// CPU the record was built on.
    pub cpu: u32,
    /// Generation of the filter that let the record through (`crate::policy`).
    pub generation: u32,
    /// Sequence of the stream (ring, CPU, level); the first record is 1.
    pub seq: u64,
    /// `bpf_ktime_get_boot_ns` when the record was built.
    pub boot_ns: u64,
}
assert_size!(Header, 32);

/// Where a string lies in a record, how it is known and what is wrong with it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Bytes from the start of the record.
    pub offset: u16,
    /// Length in bytes; no final NUL is counted.
    pub len: u16,
    /// One of the `SOURCE_*` values.
    pub source: u8,
    /// Bits of `FLAW_*`.
    pub flaws: u8,
    /// Zero.
    pub pad: u16,
}
assert_size!(Span, 8);

/// Nothing was read: the span says nothing.
pub const SOURCE_NONE: u8 = 0;
/// Walked or read from the kernel's own object.
pub const SOURCE_OBJECT: u8 = 1;
/// The kernel's copy of what the caller gave; the caller can no longer change it.
pub const SOURCE_COPY: u8 = 2;
/// Read from the caller's memory: the caller's word, no more.
pub const SOURCE_CALLER: u8 = 3;

/// Cut at a bound; the start is missing for paths, the end for all else.
pub const FLAW_TRUNCATED: u8 = 1 << 0;
/// A page could not be read; what is there is true but incomplete.
pub const FLAW_PARTIAL: u8 = 1 << 1;
/// The path does not lead to the root of the mount namespace (lazily
/// unmounted, or a file that has no name, such as a pipe or a memfd).
pub const FLAW_UNREACHABLE: u8 = 1 << 2;
/// The object was gone when it was looked for.
pub const FLAW_LOST: u8 = 1 << 3;
/// Another thread or process could have changed it between the call and the look.
pub const FLAW_RACY: u8 = 1 << 4;
/// The object has been deleted (no links left, or its entry is unhashed).
pub const FLAW_DELETED: u8 = 1 << 5;
