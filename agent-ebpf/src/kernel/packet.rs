//! Bytes of packets.

use core::mem::size_of;

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};

use super::Plain;

/// Bytes of the packet, wherever they are; `None` if it has not as many.
#[inline(always)]
pub(crate) fn load<T: Copy + Default + Plain>(skb: *mut __sk_buff, place: u32) -> Option<T> {
    let mut value = T::default();
    // SAFETY: the destination is ours and as long as is said; of a `Plain` type any bytes are a value.
    let failed = unsafe {
        bpf_skb_load_bytes(
            skb.cast(),
            place,
            (&raw mut value).cast(),
            size_of::<T>() as u32,
        )
    };
    (failed == 0).then_some(value)
}
