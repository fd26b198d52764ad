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

/// Answers what the plan asks about whose the process is, which may be nothing; the answers are left in the scratch.
#[inline(always)]
pub(super) fn answer(level: u32, index: u32) {
    let (Some(scratch), Some(plan)) = (scratch(level), VERDICTS.get(index & 1)) else {
        return;
    };
    // SAFETY: the scratch is this run's.
    unsafe { addr_of_mut!((*scratch).scoped).write([0; 2]) };
    if plan.scope != 0 {
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
    let mut deep = false;
    // What is judged begins with a header and who did it.
    // SAFETY: record and scratch are this run's, the actor is written.
    unsafe {
        let mut id = addr_of!((*record).actor.cgroup_id).read();
        let mut cgroup = Task::current_plain().cgroup_address();
        if cgroup_id(cgroup) != id {
            cgroup = 0;
        }
        // Whoever makes cgroups chooses how deep they are: begun is where the root is still reached (`cgroup_ancestor`, include/linux/cgroup.h,
        // from 6.1 on; before, the kernel has only numbers there).
        if get::<i32>(cgroup, slot::CGROUP_LEVEL) > SCOPE_STEPS as i32 {
            let place = cgroup.wrapping_add(8 * u64::from(SCOPE_STEPS));
            let above: u64 = get(place, slot::CGROUP_ANCESTORS);
            if above != 0 {
                (cgroup, id, deep) = (above, cgroup_id(above), true);
            }
        }
        addr_of_mut!((*scratch).cgroup).write(cgroup);
        addr_of_mut!((*scratch).scope).write(ScopeKey {
            cgroup: id,
            plan: index & 1,
            pad: 0,
        });
        // Where nothing at all is known of any cgroup above, nothing is presumed either: a plan without answers would stop a host.
        addr_of_mut!((*scratch).scoped).write([0, plan.scope]);
    }
    let mut step = 0;
    while step <= SCOPE_STEPS {
        if sumun_scope_step(level, index, u32::from(deep || step > 0)) != 0 {
            break;
        }
        step += 1;
    }
    0
}

/// Looks a cgroup up, and if nothing is said of it goes on to the one above; 1 if there is an answer or no further cgroup. `below` is 1 once the
/// process is in one below. (A function of its own: the verifier looks at it once and not at every turn of the loop.)
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_scope_step(level: u32, index: u32, below: u32) -> u64 {
    if level >= LEVELS {
        return 1;
    }
    let Some(scratch) = scratch(level) else {
        return 1;
    };
    let Some(plan) = VERDICTS.get(index & 1) else {
        return 1;
    };
    // SAFETY: the scratch is this run's; map values are live memory.
    unsafe {
        let key = addr_of_mut!((*scratch).scope);
        if let Some(scope) = SCOPES.get_ptr(&*key)
            && (*scope).generation == plan.generation
        {
            let (yes, unknown) = if below == 0 {
                (addr_of!((*scope).yes), addr_of!((*scope).unknown))
            } else {
                (
                    addr_of!((*scope).below_yes),
                    addr_of!((*scope).below_unknown),
                )
            };
            let (yes, unknown) = (yes.read_volatile(), unknown.read_volatile());
            // Asked afterwards: an entry that was given to another key meanwhile begins with that one's cgroup and generation.
            if addr_of!((*scope).cgroup).read_volatile() != addr_of!((*key).cgroup).read()
                || addr_of!((*scope).generation).read_volatile() != plan.generation
            {
                return 1;
            }
            let yes = yes | unknown & plan.presumed;
            let unknown = unknown & !plan.presumed;
            addr_of_mut!((*scratch).scoped).write([yes & plan.scope, unknown & plan.scope]);
            return 1;
        }
        let here = addr_of!((*scratch).cgroup).read();
        let above: u64 = get(get(here, slot::CGROUP_PARENT), slot::CSS_CGROUP);
        if here == 0 || above == 0 {
            return 1;
        }
        addr_of_mut!((*scratch).cgroup).write(above);
        addr_of_mut!((*key).cgroup).write(cgroup_id(above));
    }
    0
}

#[inline(always)]
fn cgroup_id(cgroup: u64) -> u64 {
    get(get(cgroup, slot::CGROUP_KN), slot::KERNFS_ID)
}
