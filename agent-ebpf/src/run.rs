//! One run of a program: its nesting level, its scratch and its stream.

use core::{
    arch::asm,
    ptr::{self, addr_of_mut},
    slice,
};

use aya_ebpf::{helpers::bpf_get_smp_processor_id, helpers::bpf_ktime_get_boot_ns};
use sumun_abi::{
    event::network::FLOWS_PER_SECOND,
    loss::{Stream, reason},
    policy::Filter,
    record::{Header, LEVELS, RECORD_MAX, RING_LIFE},
};

use crate::{
    kernel,
    maps::{BUDGET, BULK, BUSY, CONTROL, FILTERS, Given, LIFE, SCRATCH, STREAMS, Scratch},
};

/// How many levels programs at functions may take: see `Run::begin_below`.
pub(crate) const FENTRY_LEVELS: u32 = 2;

/// A level that this run owns until `end`.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub(crate) level: u32,
}

/// The active filter.
#[inline(always)]
pub(crate) fn active() -> Option<u32> {
    let control = CONTROL.get_ptr(0)?;
    // SAFETY: a live map value; one aligned 64-bit read.
    Some(unsafe { ptr::read_volatile(control) } as u32 & 1)
}

/// A filter by index. It does not change while a program that got the index
/// from `active` runs: user space waits for that before it fills it again.
#[inline(always)]
pub(crate) fn filter(index: u32) -> Option<&'static Filter> {
    FILTERS.get(index)
}

/// Adds to a counter that user space or another level also looks at. The
/// result is not used: fetching it needs instructions that 5.10 lacks.
#[inline(always)]
pub(crate) fn add(counter: *mut u64, value: u64) {
    // SAFETY: callers pass an aligned field of a live map value.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) value) };
}

impl Run {
    /// Takes the first free level of this CPU; `None` if all are taken (counted
    /// as `NESTED`).
    ///
    /// A depth counter would do where programs nest like a stack. Where they can
    /// be preempted they do not; so each level has a counter, and it is taken by
    /// whoever reads 1 after adding 1. No two can.
    #[inline(always)]
    pub(crate) fn begin(ring: u8) -> Option<Run> {
        Run::begin_of(ring, LEVELS)
    }

    /// The same of the first levels only, as `begin_below`.
    #[inline(always)]
    pub(crate) fn begin_of(ring: u8, levels: u32) -> Option<Run> {
        let run = Run::begin_below(levels);
        if run.is_none()
            && let Some(stream) = STREAMS.get_ptr_mut(u32::from(ring) * LEVELS + LEVELS - 1)
        {
            // SAFETY: a live map value.
            add(
                unsafe { addr_of_mut!((*stream).lost[reason::NESTED as usize]) },
                1,
            );
        }
        run
    }

    /// The same of the first levels only, where nothing is lost without one: for programs that can be preempted (fentry, from 5.11 on), of which several can
    /// be under way on a processor, so that they never take what records of process life need.
    #[inline(always)]
    pub(crate) fn begin_below(levels: u32) -> Option<Run> {
        let busy: *mut u64 = BUSY.get_ptr_mut(0)?.cast();
        // Nearly always.
        add(busy, 1);
        // SAFETY: a live map value; volatile, as another level may change it.
        if unsafe { ptr::read_volatile(busy) } == 1 {
            return Some(Run { level: 0 });
        }
        add(busy, u64::MAX);
        let mut level = 1;
        while level < levels {
            // SAFETY: `level` is below the array's length.
            let counter = unsafe { busy.add(level as usize) };
            add(counter, 1);
            // SAFETY: as above; volatile, as another level may change it.
            if unsafe { ptr::read_volatile(counter) } == 1 {
                return Some(Run { level });
            }
            add(counter, u64::MAX);
            level += 1;
        }
        None
    }

    /// Gives the level back.
    #[inline(always)]
    pub(crate) fn end(self) {
        if let Some(busy) = BUSY.get_ptr_mut(0) {
            let busy: *mut u64 = busy.cast();
            if self.level < LEVELS {
                // SAFETY: bound checked.
                add(unsafe { busy.add(self.level as usize) }, u64::MAX);
            }
        }
    }

    /// The fixed part of the record being built.
    #[inline(always)]
    pub(crate) fn record<T>(self) -> Option<*mut T> {
        const { assert!(core::mem::size_of::<T>() <= RECORD_MAX) };
        let scratch = scratch(self.level)?;
        // SAFETY: the record is the first field and large enough.
        Some(unsafe { addr_of_mut!((*scratch).record) }.cast())
    }

    /// Sends the first `len` bytes of the record.
    #[inline(always)]
    pub(crate) fn send(self, ring: u8, kind: u16, generation: u32, len: u32) {
        sumun_send(
            self.level,
            u32::from(ring) << 16 | u32::from(kind),
            generation,
            len,
        );
    }

    /// Takes one of the records that a second has room for; `which` is a place in `BUDGET`. If none is left, the record is
    /// counted as `LIMITED`, under the number that it would have had.
    #[inline(always)]
    pub(crate) fn within_budget(self, which: u32) -> bool {
        let Some(budget) = BUDGET.get_ptr_mut(which) else {
            return true;
        };
        // SAFETY: no arguments.
        let second = unsafe { bpf_ktime_get_boot_ns() } / 1_000_000_000;
        // SAFETY: a live map value; another level on this CPU may spend from it meanwhile, which makes
        // the bound one record larger.
        unsafe {
            if (*budget)[0] != second {
                budget.write([second, 0]);
            }
            if (*budget)[1] < FLOWS_PER_SECOND {
                (*budget)[1] += 1;
                return true;
            }
        }
        if self.level < LEVELS
            && let Some(stream) = STREAMS.get_ptr_mut(LEVELS + self.level)
        {
            let stream: *mut Stream = stream;
            // SAFETY: as in `sumun_send`.
            unsafe {
                (*stream).seq += 1;
                add(addr_of_mut!((*stream).lost[reason::LIMITED as usize]), 1);
            }
        }
        false
    }

    /// A kernel pointer as a number that global functions take.
    #[inline(always)]
    pub(crate) fn number(self, pointer: u64) -> u64 {
        let Some(scratch) = scratch(self.level) else {
            return 0;
        };
        forgotten(scratch, pointer)
    }
}

/// The same number, of which the verifier knows nothing any more: what it knows of a number in a loop makes each turn another
/// state, and one known value more another way through all that follows.
#[inline(always)]
pub(crate) fn forgotten(scratch: *mut Scratch, number: u64) -> u64 {
    // SAFETY: callers pass their run's scratch.
    unsafe {
        ptr::write_volatile(addr_of_mut!((*scratch).number), number);
        ptr::read_volatile(addr_of_mut!((*scratch).number))
    }
}

/// The working memory of a level.
#[inline(always)]
pub(crate) fn scratch(level: u32) -> Option<*mut Scratch> {
    SCRATCH.get_ptr_mut(level)
}

/// The call that was handed over at this level.
#[inline(always)]
pub(crate) fn given(level: u32) -> Option<&'static Given> {
    let scratch = scratch(level)?;
    // SAFETY: a live map value that this run owns, written before the function was called.
    Some(unsafe { &*ptr::addr_of!((*scratch).given) })
}

/// Completes the header and writes the record to its ring, or counts it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_send(level: u32, ring_kind: u32, generation: u32, len: u32) -> u64 {
    let ring = (ring_kind >> 16) as u8;
    if level >= LEVELS {
        return 1;
    }
    let Some(scratch) = scratch(level) else {
        return 1;
    };
    let index = if ring == RING_LIFE {
        level
    } else {
        LEVELS + level
    };
    let Some(stream) = STREAMS.get_ptr_mut(index) else {
        return 1;
    };
    let stream: *mut Stream = stream;
    // SAFETY: live map values; this level's stream is written by its owner alone, but for
    // the nested count, which is another field.
    unsafe {
        let seq = (*stream).seq + 1;
        (*stream).seq = seq;
        let record: *mut u8 = addr_of_mut!((*scratch).record).cast();
        record.cast::<Header>().write(Header {
            len,
            kind: ring_kind as u16,
            ring,
            level: level as u8,
            cpu: bpf_get_smp_processor_id(),
            generation,
            seq,
            boot_ns: bpf_ktime_get_boot_ns(),
        });
        let len = kernel::opaque(u64::from(len)) as usize;
        if len < core::mem::size_of::<Header>() || len > RECORD_MAX {
            add(addr_of_mut!((*stream).lost[reason::TOO_LONG as usize]), 1);
            return 1;
        }
        let bytes = slice::from_raw_parts(record, len);
        let sent = if ring == RING_LIFE {
            LIFE.output::<[u8]>(bytes, 0)
        } else {
            BULK.output::<[u8]>(bytes, 0)
        };
        if sent.is_err() {
            add(addr_of_mut!((*stream).lost[reason::RING_FULL as usize]), 1);
            return 1;
        }
    }
    0
}
