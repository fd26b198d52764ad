//! The kernel's memory, which the agent looks at while a rule asks whether its tables lead elsewhere.
//!
//! The one entry of the array `MEMORY` says what the iterator `memory` writes into its file: an address, and how many bytes from there.
//! At the address 0 it is the address of the task that reads, in eight bytes. What cannot be read is not written.

/// Bytes that are read at once at most.
pub const READ_MAX: usize = 4096;
