//! Calls that rules can deny, asked about before they happen.
//!
//! A program here lets a call go on unless a rule denies it for certain: what cannot be read, a level that is not
//! free, a plan that is just being swapped, all let it go on. What was denied is an event, recorded here, since
//! nothing else of it will be seen; what a rule would have denied and what goes on all the same (the process is guarded, the
//! rules have expired, something is unknown) is recorded beside the event that follows.

pub(super) mod file;
pub(super) mod kernel;
pub(super) mod network;
pub(super) mod privilege;
pub(super) mod process;

use core::{arch::asm, ptr::addr_of_mut};

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use sumun_abi::{
    event::{deny::Asked, process::outcome},
    record::{RING_BULK, RING_LIFE},
    slot,
    verdict::{denied, on},
};

use crate::{
    kernel::{get, path::Text, task::Task},
    maps::{CANARY, REFUSED},
    policy::{deny, verdict},
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

/// Whether the call is the agent's own try of the decision points.
#[inline(always)]
pub(super) fn is_try_of_points() -> bool {
    is_canary(31)
}

/// The same of an exec, which a child of the trying thread makes.
#[inline(always)]
pub(super) fn is_child_of_canary(place: usize) -> bool {
    let Some(canary) = CANARY.get_ptr(0) else {
        return false;
    };
    // SAFETY: as in `is_canary`.
    let canary = unsafe { canary.read_volatile() };
    canary >> 32 & (1 << place) != 0 && Task::current().parent().tid() == canary as u32
}

/// A security module's answer: 0, or -EPERM. From 6.10 the verifier wants to see that it is between -4095 and 0, which it does
/// of a constant on each way, and not of what compilers make of that.
#[inline(always)]
pub(super) fn answer(denied: bool) -> i32 {
    let mut answer = 0_i64;
    // SAFETY: two registers, one of which is written.
    unsafe {
        asm!(
            "if {denied} == 0 goto +1",
            "{answer} = -1",
            denied = in(reg) u64::from(denied),
            answer = inout(reg) answer,
            options(pure, nomem, nostack)
        );
    }
    answer as i32
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

/// Of the calls on one file, those that rules can ask for when they fail.
const TOLD: u32 = 1 << denied::MOUNT
    | 1 << denied::TRUNCATE
    | 1 << denied::CHMOD
    | 1 << denied::CHOWN
    | 1 << denied::PIVOT_ROOT
    | 1 << denied::UNLINK;

/// How long a call may take from being denied to its return.
const RETURNS_NS: u64 = 1_000_000_000;

/// The call of the current thread fails for this: what comes of it, when it returns, is on record.
#[inline(always)]
pub(super) fn refuse(place: usize) {
    // Even, where a connect's is odd; above it when, as not every call comes by that asks.
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let word = now & !0xff | (place as u64) << 1;
    let _ = REFUSED.insert(&Task::current().tid(), &word, 0);
}

/// True if this call, which failed with EPERM, was denied and is on record.
#[inline(always)]
pub(super) fn was_denied(result: i32, place: usize) -> bool {
    if result != -1 {
        return false;
    }
    let tid = Task::current().tid();
    let Some(refused) = REFUSED.get_ptr(&tid) else {
        return false;
    };
    // SAFETY: a live map value; no arguments.
    let (word, now) = unsafe { (refused.read_volatile(), bpf_ktime_get_boot_ns()) };
    let _ = REFUSED.remove(&tid);
    let by = (word & 0xff) as usize;
    // An open that would empty the file is denied as that.
    let same = by == place << 1 || place == denied::OPEN && by == denied::TRUNCATE << 1;
    same && now.wrapping_sub(word & !0xff) < RETURNS_NS
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

/// The answer to a call on one file, which `find` says: entry and mount, both 0 if there is none. `value` is what its record has
/// as such.
#[inline(always)]
pub(super) fn of_file(
    place: usize,
    kind: u16,
    value: u64,
    find: impl FnOnce(Run) -> (u64, u64),
) -> i32 {
    if is_canary(place) {
        return answer(true);
    }
    let Some((run, index)) = begin(place) else {
        return 0;
    };
    let mut denied = false;
    if let Some(record) = record(run, kind) {
        // SAFETY: the record is this run's.
        unsafe { addr_of_mut!((*record).value).write(value) };
        let (dentry, mnt) = find(run);
        denied = deny::sumun_ask_file(run.level, index, place as u32, dentry, mnt) != 0;
        if denied && TOLD >> place & 1 != 0 {
            refuse(place);
        }
    }
    run.end();
    answer(denied)
}

/// The same of a file that a `struct path` names.
#[inline(always)]
pub(super) fn of_path(place: usize, kind: u16, value: u64, path: u64) -> i32 {
    of_file(place, kind, value, |run| {
        let path = run.number(path);
        (get(path, slot::PATH_DENTRY), get(path, slot::PATH_MNT))
    })
}

/// Sends the record, whose length is `len`, if a rule had something to say; whether the call is denied.
#[inline(always)]
pub(crate) fn told(run: Run, index: u32, place: usize, outcome: u32, len: u32) -> bool {
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
