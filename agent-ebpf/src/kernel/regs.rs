//! Registers of a system call, as the raw tracepoints hand them over.
//!
//! The pointer is one that the verifier knows as a `pt_regs`, so its fields are loaded
//! directly, at the cost of a load.

use core::ptr;

use sumun_abi::slot;

use super::value;

/// A `pt_regs`.
#[derive(Clone, Copy)]
pub(crate) struct Regs(pub(crate) u64);

/// Marks calls through the x32 interface. Their numbers are otherwise native, and from 512 on those of calls whose arguments in memory
/// differ.
const X32: u64 = 0x4000_0000;

impl Regs {
    #[inline(always)]
    fn load(self, index: usize) -> u64 {
        let offset = value(index);
        if offset == slot::NONE {
            return 0;
        }
        // SAFETY: the verifier checks that this is a field of the structure, and lets a
        // fault read 0.
        unsafe { ptr::read_volatile((self.0 + u64::from(offset)) as *const u64) }
    }

    /// The number of the call.
    #[inline(always)]
    pub(crate) fn number(self) -> u64 {
        Regs::plain(self.load(slot::REGS_NUMBER))
    }

    /// The same of what `sys_enter` gives for it.
    #[inline(always)]
    pub(crate) fn plain(given: u64) -> u64 {
        given & 0xffff_ffff & !X32
    }

    /// The first five arguments.
    #[inline(always)]
    pub(crate) fn arguments(self, compat: bool) -> [u64; 5] {
        if compat {
            [
                self.load(slot::REGS_COMPAT_ARG0) & 0xffff_ffff,
                self.load(slot::REGS_COMPAT_ARG1) & 0xffff_ffff,
                self.load(slot::REGS_COMPAT_ARG2) & 0xffff_ffff,
                self.load(slot::REGS_COMPAT_ARG3) & 0xffff_ffff,
                self.load(slot::REGS_COMPAT_ARG4) & 0xffff_ffff,
            ]
        } else {
            [
                self.load(slot::REGS_ARG0),
                self.load(slot::REGS_ARG1),
                self.load(slot::REGS_ARG2),
                self.load(slot::REGS_ARG3),
                self.load(slot::REGS_ARG4),
            ]
        }
    }
}
