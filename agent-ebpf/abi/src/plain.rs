//! Reading the fixed parts out of bytes.

use crate::event::{cgroup, deny, file, kernel, network, privilege, process};
use crate::record::Header;
use crate::verdict::Sharer;

/// A type for which every pattern of bytes is a value and that has no hidden padding.
///
/// # Safety
/// Only for `#[repr(C)]` structures of integers, arrays of integers and such structures, whose
/// padding is explicit.
pub unsafe trait Plain: Copy {}

// SAFETY: integers and structures of integers, padding explicit, sizes asserted where defined.
unsafe impl Plain for Header {}
// SAFETY: as above.
unsafe impl Plain for process::Fork {}
// SAFETY: as above.
unsafe impl Plain for process::Exec {}
// SAFETY: as above.
unsafe impl Plain for process::Exit {}
// SAFETY: as above.
unsafe impl Plain for cgroup::Cgroup {}
// SAFETY: as above.
unsafe impl Plain for file::Open {}
// SAFETY: as above.
unsafe impl Plain for file::Names {}
// SAFETY: as above.
unsafe impl Plain for file::Change {}
// SAFETY: as above.
unsafe impl Plain for network::Connection {}
// SAFETY: as above.
unsafe impl Plain for network::Datagram {}
// SAFETY: as above.
unsafe impl Plain for network::UnixConnect {}
// SAFETY: as above.
unsafe impl Plain for network::Socket {}
// SAFETY: as above.
unsafe impl Plain for network::Dns {}
// SAFETY: as above.
unsafe impl Plain for file::FailedOpen {}
// SAFETY: as above.
unsafe impl Plain for Sharer {}
// SAFETY: as above.
unsafe impl Plain for privilege::Credentials {}
// SAFETY: as above.
unsafe impl Plain for privilege::Reach {}
// SAFETY: as above.
unsafe impl Plain for privilege::Spaces {}
// SAFETY: as above.
unsafe impl Plain for privilege::Memory {}
// SAFETY: as above.
unsafe impl Plain for privilege::Control {}
// SAFETY: as above.
unsafe impl Plain for kernel::Module {}
// SAFETY: as above.
unsafe impl Plain for kernel::Program {}
// SAFETY: as above.
unsafe impl Plain for kernel::Mount {}
// SAFETY: as above.
unsafe impl Plain for kernel::Setup {}
// SAFETY: as above.
unsafe impl Plain for kernel::Setting {}
// SAFETY: as above.
unsafe impl Plain for deny::Asked {}

/// The value at the start of the bytes; `None` when there are too few. Any alignment will do.
#[must_use]
pub fn read<T: Plain>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: the length was checked, the read is unaligned, and every pattern of bytes is a
    // value of a `Plain` type.
    Some(unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast::<T>()) })
}

/// The bytes of a value, as they lie in a record.
#[must_use]
pub fn bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: a `Plain` type has no hidden padding, so all its bytes are initialised.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(value).cast(), size_of::<T>()) }
}
