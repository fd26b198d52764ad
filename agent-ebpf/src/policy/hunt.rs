//! A lineage that is killed as a whole. User space cannot do it alone: who forks faster than it reads is never caught up with.
//!
//! While it is hunted, each new process is known by whom it comes from of those that were there when the hunt began. Of these user
//! space knows which are of the lineage, once it has read the records of their forks. Whoever is, or comes from one, is killed
//! as its next system call returns: a child as the call returns in it that made it, before it does anything itself. So nobody gets away,
//! however often they fork, and however they hide from their parents.

use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, generated::bpf_send_signal};
use sumun_abi::{event::process::outcome, verdict::hunt};

use super::{guard, verdict::SIGKILL};
use crate::{
    kernel::task::Task,
    maps::{BORN, DOOMED, HUNT},
    run,
};

#[inline(always)]
fn key(task: Task) -> [u64; 2] {
    [u64::from(task.pid()), task.start()]
}

/// True while a lineage is hunted.
#[inline(always)]
pub(crate) fn is_on() -> bool {
    // SAFETY: a live map value, written by user space as a whole.
    let until = HUNT
        .get_ptr(hunt::UNTIL)
        .map_or(0, |until| unsafe { until.read_volatile() });
    // SAFETY: no arguments.
    until != 0 && unsafe { bpf_ktime_get_boot_ns() } < until
}

/// Whom a process comes from, of those that were there when the hunt began.
#[inline(always)]
fn root(own: &[u64; 2]) -> [u64; 2] {
    // SAFETY: the value is copied at once, and written once, when the process is made.
    unsafe { BORN.get(own) }.copied().unwrap_or(*own)
}

/// The process that runs has made one.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_born(pid: u64, start_ns: u64) -> u64 {
    let root = root(&key(Task::current()));
    if BORN.insert([pid, start_ns], root, 0).is_err()
        && let Some(full) = HUNT.get_ptr_mut(hunt::FULL)
    {
        run::add(full, 1);
    }
    0
}

/// A system call returns: the current process is killed if it is of the lineage.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_doomed() -> u64 {
    let task = Task::current();
    // SAFETY: the value is copied at once.
    let Some(forced) = (unsafe { DOOMED.get(root(&key(task))) }).copied() else {
        return 0;
    };
    if guard::of_kill(task, 0, forced != 0) == outcome::NONE {
        // SAFETY: the current process; the helper refuses what it cannot do.
        unsafe { bpf_send_signal(SIGKILL) };
    }
    0
}
