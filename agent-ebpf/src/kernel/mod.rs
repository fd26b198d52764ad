//! Readers of kernel structures: the only place with raw kernel pointers.
//!
//! An address is a number here; whatever cannot be read is 0, and reading
//! through 0 gives 0, so a chain of reads needs one check at its end.
//! Offsets come from the read-only data that the loader filled
//! (`sumun_abi::slot`); a field that this kernel does not have reads as 0 and the
//! verifier prunes the read.

pub(crate) mod file;
pub(crate) mod layer;
pub(crate) mod packet;
pub(crate) mod path;
pub(crate) mod regs;
pub(crate) mod socket;
pub(crate) mod task;

use core::{
    arch::asm,
    mem::{MaybeUninit, size_of},
    ptr,
};

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use sumun_abi::{policy::SYSCALL_MAX, slot, slot::symbol};

#[unsafe(no_mangle)]
static OFFSETS: [u32; slot::COUNT] = [slot::NONE; slot::COUNT];
#[unsafe(no_mangle)]
static SYMBOLS: [u64; symbol::COUNT] = [0; symbol::COUNT];
/// Actions by system call number, see `sumun_abi::policy::action`.
#[unsafe(no_mangle)]
static SYSCALLS: [u16; SYSCALL_MAX] = [0; SYSCALL_MAX];
/// The bit of `TASK_COMPAT` that marks a 32-bit call.
#[unsafe(no_mangle)]
static COMPAT_MASK: u32 = 0;
/// Index into `css_set.subsys`, or `NONE` for the unified hierarchy.
#[unsafe(no_mangle)]
static CGROUP_INDEX: u32 = slot::NONE;

/// Number of the hierarchy whose cgroups records name (`cgroup_root.hierarchy_id`).
#[unsafe(no_mangle)]
static CGROUP_HIERARCHY: u32 = 0;

/// Value of a slot; a constant to the verifier when `index` is one to the compiler.
#[inline(always)]
pub(crate) fn value(index: usize) -> u32 {
    // SAFETY: every index is a constant of the slot table, whose length this array has. Volatile:
    // the loader writes the real values after compilation.
    unsafe { ptr::read_volatile(ptr::addr_of!(OFFSETS).cast::<u32>().add(index)) }
}

#[inline(always)]
pub(crate) fn address_of(index: usize) -> u64 {
    // SAFETY: as in `value`.
    unsafe { ptr::read_volatile(ptr::addr_of!(SYMBOLS).cast::<u64>().add(index)) }
}

#[inline(always)]
pub(crate) fn compat_mask() -> u32 {
    // SAFETY: a static; volatile as in `value`.
    unsafe { ptr::read_volatile(ptr::addr_of!(COMPAT_MASK)) }
}

#[inline(always)]
pub(crate) fn cgroup_index() -> u32 {
    // SAFETY: a static; volatile as in `value`.
    unsafe { ptr::read_volatile(ptr::addr_of!(CGROUP_INDEX)) }
}

#[inline(always)]
pub(crate) fn cgroup_hierarchy() -> u32 {
    // SAFETY: a static; volatile as in `value`.
    unsafe { ptr::read_volatile(ptr::addr_of!(CGROUP_HIERARCHY)) }
}

/// Actions of a system call number.
#[inline(always)]
pub(crate) fn actions(number: u64) -> u16 {
    let number = opaque(number);
    if number >= SYSCALL_MAX as u64 {
        return 0;
    }
    // SAFETY: bound checked; volatile as in `value`.
    unsafe { ptr::read_volatile(ptr::addr_of!(SYSCALLS).cast::<u16>().add(number as usize)) }
}

/// The same value, of which the compiler knows nothing: a bound that is checked
/// after it stays in the program, where the verifier looks for it.
#[inline(always)]
pub(crate) fn opaque(mut value: u64) -> u64 {
    // SAFETY: moves a register to itself. (Without any instruction the line information
    // would name one place twice, which the kernel refuses.)
    unsafe { asm!("{0} = {0}", inlateout(reg) value, options(pure, nomem, nostack)) };
    value
}

/// All ones if the highest bit is set, else 0: a comparison without a branch. (Of a loop's turn with branches the verifier walks each way
/// apart, in each turn.)
#[inline(always)]
pub(crate) fn spread(value: u64) -> u64 {
    // Opaque, or the compiler makes a branch of what is done with it.
    opaque((value as i64 >> 63) as u64)
}

/// All ones if it is not 0, likewise.
#[inline(always)]
pub(crate) fn nonzero(value: u64) -> u64 {
    spread(value | opaque(value.wrapping_neg()))
}

/// Reads `T` at a kernel address; zero if it cannot be read.
#[inline(always)]
pub(crate) fn read<T: Copy + Plain>(address: u64) -> T {
    let mut out = MaybeUninit::<T>::zeroed();
    // SAFETY: the destination is ours; the helper never faults, whatever the address,
    // and zeroes the destination when it fails. Every bit pattern is a `T`.
    unsafe {
        bpf_probe_read_kernel(
            out.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const _,
        );
        out.assume_init()
    }
}

/// Types of which every bit pattern is a value.
pub(crate) trait Plain {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for i32 {}
impl Plain for u64 {}
impl Plain for [u8; 16] {}
impl Plain for [u32; 6] {}

/// Address of a field; 0 if the kernel has none or the base is 0.
#[inline(always)]
pub(crate) fn field(base: u64, index: usize) -> u64 {
    let offset = value(index);
    if offset == slot::NONE || base == 0 {
        return 0;
    }
    base + u64::from(offset)
}

/// Reads a field; zero if there is none.
#[inline(always)]
pub(crate) fn get<T: Copy + Plain + Default>(base: u64, index: usize) -> T {
    let offset = value(index);
    if offset == slot::NONE {
        return T::default();
    }
    read(base.wrapping_add(u64::from(offset)))
}

/// Loads a field through a pointer that the verifier knows the type of: a single instruction,
/// where `get` is a call. Reads 0 if the memory has gone.
#[inline(always)]
pub(crate) fn load<T: Copy + Plain>(base: u64, index: usize) -> T {
    let offset = value(index);
    // SAFETY: the verifier refuses the program unless this is a field of the
    // structure that `base` points to, and lets a fault read 0.
    unsafe { ptr::read_volatile((base + u64::from(offset)) as *const T) }
}

/// The 64 bits at a kernel address; zero if they cannot be read.
#[inline(always)]
pub(crate) fn number_at(address: u64) -> u64 {
    Object::cast(address, slot::TYPE_NUMBER).get(slot::NUMBER)
}

/// What the verifier knows of an address, fixed where the address comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Its type: from the arguments of a tracepoint.
    Always,
    /// Its type, where the kernel has `bpf_get_current_task_btf`.
    FromCurrent,
    /// The type that was said, where the kernel lets that be said.
    Cast,
    /// Nothing: a number.
    Never,
}

/// A structure, and how its fields are read: with a load where the verifier knows the type (a
/// nanosecond), else by a helper (ten to twenty).
#[derive(Clone, Copy)]
pub(crate) struct Object {
    /// Its address; 0 if there is none.
    pub(crate) address: u64,
    known: Known,
}

impl Object {
    /// An argument of a tracepoint that points to a structure.
    #[inline(always)]
    pub(crate) fn argument(address: u64) -> Object {
        Object {
            address,
            known: Known::Always,
        }
    }

    /// What the helpers for the current task return.
    #[inline(always)]
    fn current(address: u64) -> Object {
        Object {
            address,
            known: Known::FromCurrent,
        }
    }

    /// A number that is an address.
    #[inline(always)]
    pub(crate) fn plain(address: u64) -> Object {
        Object {
            address,
            known: Known::Never,
        }
    }

    /// What is at an address, as a structure of this type (a slot of `CAST_TYPES`); of the caller's making: the
    /// kernel only takes care that no read does harm.
    #[inline(always)]
    pub(crate) fn cast(mut address: u64, kind: usize) -> Object {
        if value(slot::CAST) != slot::NONE {
            // SAFETY: a call as of any helper: arguments in r1 and r2, result in r0, the others are lost.
            unsafe {
                asm!(
                    "call {function}",
                    function = const slot::CAST_CALL,
                    inlateout("r1") address => _,
                    inlateout("r2") u64::from(value(kind)) => _,
                    lateout("r0") address,
                    lateout("r3") _,
                    lateout("r4") _,
                    lateout("r5") _,
                    options(nostack)
                );
            }
        }
        Object {
            address,
            known: Known::Cast,
        }
    }

    #[inline(always)]
    fn is_known(self) -> bool {
        match self.known {
            Known::Always => true,
            // Asked anew each time: the verifier follows a constant better than a register.
            Known::FromCurrent => value(slot::CURRENT_TASK_BTF) != slot::NONE,
            Known::Cast => value(slot::CAST) != slot::NONE,
            Known::Never => false,
        }
    }

    /// A field; zero if there is none. (The verifier wants to see the check for 0: some fields
    /// it knows as pointers that can be null.)
    #[inline(always)]
    pub(crate) fn get<T: Copy + Plain + Default>(self, index: usize) -> T {
        if value(index) == slot::NONE || self.address == 0 {
            return T::default();
        }
        if self.is_known() {
            load(self.address, index)
        } else {
            get(self.address, index)
        }
    }

    /// A field, as a number of which the verifier knows nothing: what global functions take.
    #[inline(always)]
    pub(crate) fn number(self, index: usize) -> u64 {
        let offset = value(index);
        if offset == slot::NONE || self.address == 0 {
            return 0;
        }
        Object::cast(self.address + u64::from(offset), slot::TYPE_NUMBER).get(slot::NUMBER)
    }

    /// The structure that a field points to.
    #[inline(always)]
    pub(crate) fn follow(self, index: usize) -> Object {
        Object {
            address: self.get(index),
            known: self.known,
        }
    }

    /// The structure that an item of an array of pointers points to, which is a field.
    /// `item` is a constant of the program.
    #[inline(always)]
    pub(crate) fn follow_item(self, index: usize, item: u32) -> Object {
        let offset = value(index);
        if offset == slot::NONE || self.address == 0 {
            return Object {
                address: 0,
                known: self.known,
            };
        }
        let place = self.address + u64::from(offset) + u64::from(item) * 8;
        let address = if self.is_known() {
            // SAFETY: as in `load`.
            unsafe { ptr::read_volatile(place as *const u64) }
        } else {
            read(place)
        };
        Object {
            address,
            known: self.known,
        }
    }
}

/// Bytes of a structure that are read at once where several of its fields are wanted.
pub(crate) const BLOCK: usize = 96;

/// The first bytes of a structure.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    base: u64,
    bytes: *const u8,
}

impl Block {
    /// Reads the block at `base` into `bytes`, which stays in use as long as the block.
    #[inline(always)]
    pub(crate) fn read(base: u64, bytes: *mut [u8; BLOCK]) -> Block {
        // SAFETY: callers pass room in their scratch; the helper never faults.
        unsafe { bpf_probe_read_kernel(bytes.cast(), BLOCK as u32, base as *const _) };
        Block {
            base,
            bytes: bytes.cast(),
        }
    }

    /// A field: from the block if it lies inside in this kernel, else by itself.
    #[inline(always)]
    pub(crate) fn get<T: Copy + Plain + Default>(self, index: usize) -> T {
        let offset = value(index);
        if offset > (BLOCK - size_of::<T>()) as u32 {
            return get(self.base, index);
        }
        // SAFETY: bound checked.
        unsafe { self.bytes.add(offset as usize).cast::<T>().read_unaligned() }
    }
}

/// Reads a bit field's bit.
#[inline(always)]
pub(crate) fn bit(base: u64, index: usize) -> bool {
    let offset = value(index);
    if offset == slot::NONE {
        return false;
    }
    let byte: u8 = read(base.wrapping_add(u64::from(offset / 8)));
    byte & (1 << (offset % 8)) != 0
}
