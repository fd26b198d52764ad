//! Telling the verifier the type of what is at an address, so that its fields are loaded and not read by helpers: the
//! one function of the kernel that the programs call. The object holds calls with a number of no meaning
//! (`slot::CAST_CALL`); they are completed here.

use std::os::fd::{FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use sumun_abi::slot;

use super::slots::Slots;

/// `BPF_PROG_LOAD` of `enum bpf_cmd`, include/uapi/linux/bpf.h.
const PROG_LOAD: libc::c_int = 5;
/// `BPF_PROG_TYPE_RAW_TRACEPOINT`
const PROG_TYPE_RAW_TRACEPOINT: u32 = 17;

/// `call NUMBER`, with the number in the upper half.
const CALL: u64 = 0x85;
/// Makes it a call of a function instead of a helper: `BPF_PSEUDO_KFUNC_CALL` as source register.
const OF_FUNCTION: u64 = 2 << 12;
/// `r0 = 0`
const NOTHING: u64 = 0xb7;
/// `r1 = 0`
const NO_ADDRESS: u64 = 0x01b7;
/// `r2 = NUMBER`, with the number in the upper half.
const OF_TYPE: u64 = 0x02b7;
/// `exit`
const EXIT: u64 = 0x95;

/// The object with its calls completed for this kernel, aligned as ELF wants it.
pub(super) struct Completed {
    bytes: Vec<u8>,
    start: usize,
}

impl Completed {
    /// Where the kernel has no such function, or does not let it be called, its slot is emptied: the
    /// programs then read by helpers.
    pub(super) fn new(object: &[u8], slots: &mut Slots) -> Self {
        let function = slots.values[slot::CAST];
        let kind = slots.values[slot::TYPE_FILE];
        if !slots.missing(&slot::CAST_TYPES).is_empty() || !is_callable(function, kind) {
            slots.values[slot::CAST] = slot::NONE;
        }
        let completed = match slots.values[slot::CAST] {
            slot::NONE => NOTHING,
            function => CALL | OF_FUNCTION | u64::from(function) << 32,
        };
        let open = CALL | u64::from(slot::CAST_CALL.cast_unsigned()) << 32;
        let mut bytes = vec![0; object.len() + 8];
        let start = bytes.as_ptr().align_offset(8).min(8);
        let place = &mut bytes[start..start + object.len()];
        place.copy_from_slice(object);
        // Instructions are aligned to their size in the file, too.
        for word in place.as_chunks_mut::<8>().0 {
            if u64::from_le_bytes(*word) == open {
                *word = completed.to_le_bytes();
            }
        }
        bytes.truncate(start + object.len());
        Self { bytes, start }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// Whether a program may call the function, tried with one that does nothing else.
#[expect(unsafe_code, reason = "bpf(2) has no safe wrapper here")]
fn is_callable(function: u32, kind: u32) -> bool {
    let code = [
        NO_ADDRESS,
        OF_TYPE | u64::from(kind) << 32,
        CALL | OF_FUNCTION | u64::from(function) << 32,
        NOTHING,
        EXIT,
    ];
    let license = c"Dual MIT/GPL";
    // The first members of `union bpf_attr` for a load: type and number of instructions, their address,
    // the licence's.
    let attr = [
        u64::from(PROG_TYPE_RAW_TRACEPOINT) | (code.len() as u64) << 32,
        code.as_ptr() as u64,
        license.as_ptr() as u64,
    ];
    // SAFETY: the kernel reads the attributes, the instructions and the licence, which outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, attr.as_ptr(), size_of_val(&attr)) };
    match Errno::result(result).map(i32::try_from) {
        Ok(Ok(program)) => {
            // SAFETY: the kernel has just given this descriptor to us alone; dropped, the program is gone.
            drop(unsafe { OwnedFd::from_raw_fd(program) });
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_completed_and_nothing_else_is_touched() {
        let open = CALL | u64::from(slot::CAST_CALL.cast_unsigned()) << 32;
        let helper = CALL | 1 << 32;
        let mut object: Vec<u8> = [helper, open, EXIT]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        object.push(7);
        let mut slots = Slots {
            values: [slot::NONE; slot::COUNT],
            symbols: [0; slot::symbol::COUNT],
        };
        let completed = Completed::new(&object, &mut slots);
        let mut expected = object.clone();
        expected[8..16].copy_from_slice(&NOTHING.to_le_bytes());
        assert_eq!(completed.bytes(), expected);
        assert_eq!(completed.bytes().as_ptr().align_offset(8), 0);
    }
}
