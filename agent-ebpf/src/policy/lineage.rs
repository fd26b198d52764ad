//! What a process's ancestors satisfy: inherited at fork, kept across exec, dropped at exit.

use sumun_abi::verdict::{Lineage, LineageKey, Verdicts};

use crate::{
    kernel::task::Task,
    maps::{LINEAGE, SEEDS, VERDICTS},
};

/// Words of a process that nothing is known of.
#[inline(always)]
fn unknown(plan: &Verdicts) -> Lineage {
    Lineage {
        generation: plan.generation,
        pad: 0,
        image: 0,
        above_yes: 0,
        above_unknown: plan.lineage,
        own_yes: 0,
        own_unknown: plan.lineage,
    }
}

#[inline(always)]
fn key(task: Task, plan: u32) -> LineageKey {
    LineageKey {
        start_ns: task.start(),
        pid: task.pid(),
        plan,
    }
}

/// The words of a process: its own, or what user space has told.
#[inline(always)]
fn words(task: Task, plan: &Verdicts, index: u32) -> Lineage {
    let mut words = unknown(plan);
    if let Some(kept) = LINEAGE.get_ptr(&key(task, 0)) {
        // SAFETY: a live map value, which only the process itself changes, at its exec.
        let kept = unsafe { *kept };
        if kept.generation == plan.generation {
            words = kept;
            // An exec that the kernel left the hook out of.
            if kept.image != task.image() {
                words.own_yes = 0;
                words.own_unknown = plan.lineage;
            }
        }
    }
    if words.above_unknown | words.own_unknown != 0
        && let Some(seed) = SEEDS.get_ptr(&key(task, index & 1))
    {
        // SAFETY: a live map value; user space replaces it as a whole.
        let seed = unsafe { *seed };
        if seed.generation == plan.generation {
            if words.above_unknown != 0 {
                words.above_yes = seed.above_yes;
                words.above_unknown = seed.above_unknown;
            }
            if words.own_unknown != 0 && seed.image == task.image() {
                words.own_yes = seed.own_yes;
                words.own_unknown = seed.own_unknown;
            }
        }
    }
    words
}

/// A fork: the child inherits. `real_parent` is its parent, `caller` what it is a copy of. True if nothing that
/// is asked about its ancestors is unknown.
#[inline(always)]
pub(crate) fn fork(index: u32, caller: Task, real_parent: Task, child: Task) -> bool {
    let Some(plan) = VERDICTS.get(index & 1) else {
        return true;
    };
    if plan.lineage == 0 {
        return true;
    }
    let above = words(real_parent, plan, index);
    let mut own = above;
    // CLONE_PARENT
    if caller.pid() != real_parent.pid() {
        own = words(caller, plan, index);
    }
    let yes = above.above_yes | above.own_yes;
    let child_words = Lineage {
        generation: plan.generation,
        pad: 0,
        image: child.image(),
        above_yes: yes,
        above_unknown: (above.above_unknown | above.own_unknown) & !yes,
        own_yes: own.own_yes,
        own_unknown: own.own_unknown,
    };
    let kept = LINEAGE.insert(&key(child, 0), &child_words, 0).is_ok();
    kept && child_words.above_unknown | child_words.own_unknown == 0
}

/// An exec of the current process, whose new image answers `own`: what its ancestors satisfy, and what of that is unknown.
#[inline(always)]
pub(crate) fn exec(index: u32, plan: &Verdicts, own: (u64, u64)) -> (u64, u64) {
    let task = Task::current();
    let mut words = words(task, plan, index);
    words.image = task.image();
    (words.own_yes, words.own_unknown) = own;
    // Full: its children are unknown, as it is.
    let _ = LINEAGE.insert(&key(task, 0), &words, 0);
    (words.above_yes, words.above_unknown)
}

/// The process has ended.
#[inline(always)]
pub(crate) fn exit(index: u32, task: Task) {
    if let Some(plan) = VERDICTS.get(index & 1)
        && plan.lineage != 0
    {
        let _ = LINEAGE.remove(&key(task, 0));
    }
}
