//! Calls that rules can deny, asked about before they happen.
//!
//! A program here lets a call go on unless a rule denies it for certain: what cannot be read, a level that is not
//! free, a plan that is just being swapped, all let it go on. What was denied is an event, recorded here, since
//! nothing else of it will be seen; what a rule would have denied and what goes on all the same (the process is guarded, the
//! rules have expired, something is unknown) is recorded beside the event that follows.

pub(super) mod kernel;
pub(super) mod network;

use core::ptr::addr_of_mut;

use sumun_abi::{
    event::{deny::Asked, process::outcome},
    record::{RING_BULK, RING_LIFE},
    verdict::{denied, on},
};

use crate::{
    kernel::{path::Text, task::Task},
    maps::CANARY,
    policy::verdict,
    run::{self, Run},
};

/// A cgroup program's answer: the call goes on.
pub(super) const ALLOW: i32 = 1;
/// It fails with EPERM.
pub(super) const DENY: i32 = 0;

/// Whether the call is the agent's own try of this door: it fails and leaves no record.
#[inline(always)]
pub(super) fn is_canary(place: usize) -> bool {
    let Some(canary) = CANARY.get_ptr(0) else {
        return false;
    };
    // SAFETY: a live map value; one aligned 64-bit read.
    let canary = unsafe { canary.read_volatile() };
    canary >> 32 & (1 << place) != 0 && Task::current().tid() == canary as u32
}

/// Begins a run if a rule asks for the kind, with the number of the active plan.
#[inline(always)]
pub(super) fn begin(place: usize) -> Option<(Run, u32)> {
    if !verdict::asked(run::active()?, on::denied(place)) {
        return None;
    }
    let run = Run::begin(ring(place))?;
    // Only now it stays as it is.
    match run::active() {
        Some(index) => Some((run, index)),
        None => {
            run.end();
            None
        }
    }
}

#[inline(always)]
fn ring(place: usize) -> u8 {
    if place == denied::EXEC {
        RING_LIFE
    } else {
        RING_BULK
    }
}

/// An empty record of a call of the current process, of which the records are of this kind.
#[inline(always)]
pub(super) fn record(run: Run, kind: u16) -> Option<*mut Asked> {
    let record = run.record::<Asked>()?;
    // SAFETY: the record is this run's; all fields but the header, which is written last, are.
    unsafe {
        Task::current().actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).kind).write(u32::from(kind));
        addr_of_mut!((*record).flags).write(0);
        addr_of_mut!((*record).value).write(0);
        addr_of_mut!((*record).dev).write(0);
        addr_of_mut!((*record).mode).write(0);
        addr_of_mut!((*record).ino).write(0);
        addr_of_mut!((*record).target_start_ns).write(0);
        addr_of_mut!((*record).target_pid).write(0);
        addr_of_mut!((*record).protocol).write(0);
        addr_of_mut!((*record).dst).cast::<[u64; 2]>().write([0; 2]);
        addr_of_mut!((*record).dst_port).write(0);
        addr_of_mut!((*record).family).write(0);
        addr_of_mut!((*record).pad).write(0);
        Text::NONE.store(addr_of_mut!((*record).path), 0);
        Text::NONE.store(addr_of_mut!((*record).to_path), 0);
        verdict::none(addr_of_mut!((*record).verdict));
    }
    Some(record)
}

/// Sends the record, whose length is `len`, if a rule had something to say; whether the call is denied.
#[inline(always)]
pub(super) fn told(run: Run, index: u32, place: usize, outcome: u32, len: u32) -> bool {
    if outcome != outcome::NONE {
        run.send(
            ring(place),
            sumun_abi::event::kind::ASKED,
            run::filter(index).map_or(0, |filter| filter.generation),
            len,
        );
    }
    outcome == outcome::DENIED
}
