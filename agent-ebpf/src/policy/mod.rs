//! Which file and network records leave the kernel, for which events processes are killed (`verdict`), and which calls fail (`deny`).
//!
//! Of the former each function answers with a set of clauses; a record is sent when the
//! intersection over all conditions is not empty. What cannot be judged satisfies
//! every clause: it is sent, and user space judges again.

pub(crate) mod deny;
pub(crate) mod early;
pub(crate) mod exe;
pub(crate) mod file;
mod guard;
pub(crate) mod hunt;
pub(crate) mod lineage;
pub(crate) mod network;
pub(crate) mod scope;
pub(crate) mod sharers;
pub(crate) mod swap;
pub(crate) mod verdict;

use core::ptr::{self, addr_of_mut};

use aya_ebpf::{helpers::generated::bpf_probe_read_kernel, maps::lpm_trie::Key};
use sumun_abi::policy::{MATCH_DATA, MATCH_TEXT, Match, tag};

use crate::{
    kernel::opaque,
    maps::{FLUSH, MATCH, Scratch},
    run,
};

/// Satisfied by what cannot be judged.
pub(crate) const ALL: u64 = u64::MAX;

/// From now on every path is looked at anew.
#[inline(always)]
pub(crate) fn flush() {
    if let Some(counter) = FLUSH.get_ptr_mut(0) {
        run::add(counter, 1);
    }
}

/// The first byte of a key.
#[inline(always)]
fn first(index: u32, tag: u8) -> u8 {
    if index & 1 == 0 {
        tag
    } else {
        tag | tag::FILTER
    }
}

/// Where a key's text begins; `len` bytes may follow if they are at most `MATCH_TEXT`.
#[inline(always)]
fn text(scratch: *mut Scratch) -> *mut u8 {
    // SAFETY: callers own the scratch.
    unsafe { addr_of_mut!((*scratch).key.data).cast::<u8>().add(1) }
}

/// Copies kernel text into the key, `at` bytes into its text (a constant): at most what fits.
/// Its length.
#[inline(always)]
fn copy(scratch: *mut Scratch, at: usize, source: u64, len: u64) -> u64 {
    let most = (MATCH_TEXT - at) as u64;
    let len = if len > most { most } else { len };
    let len = opaque(len) & 0xff;
    if len > most {
        return 0;
    }
    // SAFETY: at + len <= MATCH_TEXT; the helper never faults.
    unsafe {
        bpf_probe_read_kernel(text(scratch).add(at).cast(), len as u32, source as *const _);
    }
    len
}

/// Looks up the key, whose text has `len` bytes: the value and whether it is an exact hit.
#[inline(always)]
fn find(scratch: *mut Scratch, first: u8, len: u64) -> Option<(&'static Match, bool)> {
    // SAFETY: callers own the scratch; the map's key is this packed pair.
    unsafe {
        let key = addr_of_mut!((*scratch).key);
        addr_of_mut!((*key).data).cast::<u8>().write(first);
        let bits = ((len + 1) * 8) as u32;
        addr_of_mut!((*key).bits).write(if bits > MATCH_DATA as u32 * 8 {
            MATCH_DATA as u32 * 8
        } else {
            bits
        });
        let found = MATCH.get(&*key.cast::<Key<[u8; MATCH_DATA]>>())?;
        let exact = u64::from(ptr::addr_of!(found.len).read()) == len + 1;
        Some((found, exact))
    }
}

/// Looks up a part of the path that was just walked, the `len` bytes from `start` on: both sets of what it
/// satisfies.
#[inline(always)]
fn lookup_walked(scratch: *mut Scratch, index: u32, tag: u8, start: u64, len: u64) -> (u64, u64) {
    // SAFETY: the scratch is this run's; the address is only handed to a helper that never faults.
    let source = unsafe { addr_of_mut!((*scratch).walk) } as u64 + start;
    let copied = copy(scratch, 0, source, len);
    match find(scratch, first(index, tag), copied) {
        Some((found, true)) => (found.file | found.file_exact, found.net | found.net_exact),
        Some((found, false)) => (found.file, found.net),
        None => (0, 0),
    }
}
