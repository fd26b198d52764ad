//! What rules ask about whose a process is: answered by its cgroup, or by what is known of all below one above it.

use core::ptr::{addr_of, addr_of_mut};

use sumun_abi::{
    event::process::Exec,
    record::LEVELS,
    slot,
    verdict::{SCOPE_STEPS, ScopeKey},
};

use crate::{
    kernel::{get, task::Task},
    maps::{SCOPES, VERDICTS},
    run::{Run, scratch},
};

/// Answers what the plan asks about whose the process is, if it asks; the answers are left in the scratch.
#[inline(always)]
pub(super) fn answer(level: u32, index: u32) {
    if VERDICTS.get(index & 1).is_some_and(|plan| plan.scope != 0) {
        sumun_scope(level, index);
    }
}

/// Answers what the plan asks about the workload of who did what is in the record; the answers are left in the scratch.
///
/// Of an event of another process than the one that runs, as of a connect that ends with a packet, only the cgroup's own entry
/// is known: the cgroups above it cannot be found by a number.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_scope(level: u32, index: u32) -> u64 {
    if level >= LEVELS {
        return 1;
    }
    let Some(scratch) = scratch(level) else {
        return 1;
    };
    let Some(plan) = VERDICTS.get(index & 1) else {
        return 1;
    };
    let Some(record) = (Run { level }).record::<Exec>() else {
        return 1;
    };
    // What is judged begins with a header and who did it.
    // SAFETY: record and scratch are this run's, the actor is written; map values are live, and user space replaces them as a
    // whole.
    unsafe {
        let mut id = addr_of!((*record).actor.cgroup_id).read();
        let mut cgroup = Task::current_plain().cgroup_address();
        if cgroup_id(cgroup) != id {
            cgroup = 0;
        }
        let key = addr_of_mut!((*scratch).scope);
        let (mut yes, mut unknown) = (0, plan.scope);
        let mut step = 0;
        while step <= SCOPE_STEPS {
            key.write(ScopeKey {
                cgroup: id,
                plan: index & 1,
                pad: 0,
            });
            if let Some(scope) = SCOPES.get_ptr(&*key)
                && (*scope).generation == plan.generation
            {
                if step == 0 {
                    yes = (*scope).yes;
                    unknown = (*scope).unknown;
                } else {
                    yes = (*scope).below_yes;
                    unknown = (*scope).below_unknown;
                }
                yes |= unknown & plan.presumed;
                unknown &= !plan.presumed;
                break;
            }
            cgroup = get(get(cgroup, slot::CGROUP_PARENT), slot::CSS_CGROUP);
            if cgroup == 0 {
                break;
            }
            id = cgroup_id(cgroup);
            step += 1;
        }
        addr_of_mut!((*scratch).scoped).write([yes & plan.scope, unknown & plan.scope]);
    }
    0
}

#[inline(always)]
fn cgroup_id(cgroup: u64) -> u64 {
    get(get(cgroup, slot::CGROUP_KN), slot::KERNFS_ID)
}
