//! What the kernel side and the agent agree on: records, map keys and values,
//! and the table of kernel structure offsets that the loader resolves.
//!
//! Every type here is `#[repr(C)]` with fixed-width integers and explicit
//! padding; sizes are asserted at compile time for both targets. Kinds are
//! plain integers in reserved ranges and are never reused, so that a record
//! from an older pinned program is either understood or refused, never
//! misread. All integers are in the byte order of the host: records never
//! leave it in this form.
#![no_std]

pub mod event;
pub mod isolate;
pub mod loss;
pub mod memory;
#[expect(
    unsafe_code,
    reason = "reading plain data out of bytes is what this module is"
)]
pub mod plain;
pub mod policy;
pub mod record;
pub mod slot;
pub mod verdict;

/// Version of everything in this crate. It is part of the pin path
/// (`/sys/fs/bpf/sumun/v<ABI>-<hash of the maps>`), so agents of different versions never share maps.
pub const ABI: u32 = 2;

/// Asserts a type's size where it is defined.
macro_rules! assert_size {
    ($type:ty, $size:expr) => {
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        const _: () = assert!(core::mem::align_of::<$type>() <= 8);
    };
}
pub(crate) use assert_size;
