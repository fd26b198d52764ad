//! What is kept of a process for the rules that kill: what its ancestors satisfy, inherited at fork, kept across exec;
//! and what its executable does, for events other than its exec. Dropped at exit.

use core::ptr::{self, addr_of, addr_of_mut};

use sumun_abi::{
    event::process::Actor,
    verdict::{Lineage, LineageKey, Verdicts},
};

use crate::{
    kernel::task::Task,
    maps::{Answers, LINEAGE, SEEDS, VERDICTS},
    run::scratch,
};

/// An image of a process.
#[derive(Clone, Copy)]
pub(crate) struct Image {
    pub(crate) start_ns: u64,
    pub(crate) pid: u32,
    image: u64,
}

impl Image {
    #[inline(always)]
    fn of(task: Task) -> Image {
        Image {
            start_ns: task.start(),
            pid: task.pid(),
            image: task.image(),
        }
    }

    /// That of a record.
    #[inline(always)]
    pub(crate) fn of_actor(actor: *const Actor) -> Image {
        // SAFETY: callers pass the actor of their record.
        unsafe {
            Image {
                start_ns: addr_of!((*actor).start_ns).read(),
                pid: addr_of!((*actor).pid).read(),
                image: addr_of!((*actor).image).read(),
            }
        }
    }

    #[inline(always)]
    fn key(self, plan: u32) -> LineageKey {
        LineageKey {
            start_ns: self.start_ns,
            pid: self.pid,
            plan,
        }
    }
}

/// True if the plan asks for what is kept here.
#[inline(always)]
pub(crate) fn is_kept(plan: &Verdicts) -> bool {
    plan.lineage | plan.kept != 0
}

/// Writes the words of a process: its own, or what user space has told. (Into the scratch: the stack of all calls
/// together has 512 bytes.)
#[inline(always)]
pub(crate) fn words(out: *mut Lineage, who: Image, plan: &Verdicts, index: u32) {
    // SAFETY: callers pass words of their scratch; map values are live. Only the process itself changes its own words, at
    // its exec, and user space replaces what it tells as a whole.
    unsafe {
        let mut own = false;
        if let Some(kept) = LINEAGE.get_ptr(&who.key(0))
            && (*kept).generation == plan.generation
        {
            ptr::copy_nonoverlapping(kept, out, 1);
            own = true;
        }
        if !own {
            addr_of_mut!((*out).generation).write(plan.generation);
            addr_of_mut!((*out).pad).write(0);
            addr_of_mut!((*out).above_yes).write(0);
            addr_of_mut!((*out).above_unknown).write(plan.lineage);
        }
        // An exec that the kernel left the hook out of.
        if !own || (*out).image != who.image {
            addr_of_mut!((*out).own_yes).write(0);
            addr_of_mut!((*out).own_unknown).write(plan.lineage);
            addr_of_mut!((*out).exe_yes).write(0);
            addr_of_mut!((*out).exe_unknown).write(plan.kept);
        }
        addr_of_mut!((*out).image).write(who.image);
        if unknown(out) != 0
            && let Some(seed) = SEEDS.get_ptr(&who.key(index & 1))
            && (*seed).generation == plan.generation
        {
            if (*out).above_unknown != 0 {
                addr_of_mut!((*out).above_yes).write((*seed).above_yes);
                addr_of_mut!((*out).above_unknown).write((*seed).above_unknown);
            }
            if (*seed).image == who.image {
                if (*out).own_unknown != 0 {
                    addr_of_mut!((*out).own_yes).write((*seed).own_yes);
                    addr_of_mut!((*out).own_unknown).write((*seed).own_unknown);
                }
                if (*out).exe_unknown != 0 {
                    addr_of_mut!((*out).exe_yes).write((*seed).exe_yes);
                    addr_of_mut!((*out).exe_unknown).write((*seed).exe_unknown);
                }
            }
        }
    }
}

/// All that is unknown.
#[inline(always)]
fn unknown(words: *const Lineage) -> u64 {
    // SAFETY: callers pass written words.
    unsafe { (*words).above_unknown | (*words).own_unknown | (*words).exe_unknown }
}

/// A fork: the child inherits. `real_parent` is its parent, `caller` what it is a copy of. True if nothing that
/// is asked about it is unknown.
#[inline(always)]
pub(crate) fn fork(level: u32, index: u32, caller: Task, real_parent: Task, child: Task) -> bool {
    let Some(plan) = VERDICTS.get(index & 1) else {
        return true;
    };
    if !is_kept(plan) {
        return true;
    }
    let Some(scratch) = scratch(level) else {
        return false;
    };
    // SAFETY: the scratch is this run's.
    unsafe {
        let own = addr_of_mut!((*scratch).words[0]);
        let parent = addr_of_mut!((*scratch).words[1]);
        words(own, Image::of(caller), plan, index);
        let mut above = own;
        // CLONE_PARENT
        if caller.pid() != real_parent.pid() {
            words(parent, Image::of(real_parent), plan, index);
            above = parent;
        }
        let yes = (*above).above_yes | (*above).own_yes;
        let unknown_above = ((*above).above_unknown | (*above).own_unknown) & !yes;
        // What the child satisfies itself is what its maker does.
        addr_of_mut!((*own).above_yes).write(yes);
        addr_of_mut!((*own).above_unknown).write(unknown_above);
        let child = Image::of(child);
        addr_of_mut!((*own).image).write(child.image);
        let kept = LINEAGE.insert(&child.key(0), &*own, 0).is_ok();
        kept && unknown(own) == 0
    }
}

/// An exec, whose new image answers so: leaves what is known of it now in `words`.
#[inline(always)]
pub(crate) fn exec(
    out: *mut Lineage,
    index: u32,
    plan: &Verdicts,
    who: Image,
    answers: *const Answers,
) {
    words(out, who, plan, index);
    // SAFETY: callers pass words and answers of their scratch, which are written.
    unsafe {
        addr_of_mut!((*out).own_yes).write((*answers).own_yes);
        addr_of_mut!((*out).own_unknown).write((*answers).own_unknown);
        addr_of_mut!((*out).exe_yes).write((*answers).yes & plan.kept);
        addr_of_mut!((*out).exe_unknown).write((*answers).unknown & plan.kept);
        // Full: its children are unknown, as it is.
        let _ = LINEAGE.insert(&who.key(0), &*out, 0);
    }
}

/// The process has ended.
#[inline(always)]
pub(crate) fn exit(index: u32, task: Task) {
    if let Some(plan) = VERDICTS.get(index & 1)
        && is_kept(plan)
    {
        let _ = LINEAGE.remove(&Image::of(task).key(0));
    }
}
