//! Processes that share their open files, made by clone with `CLONE_FILES` and without `CLONE_THREAD`: when one
//! is killed for what it has opened, user space kills the others. The address of the table alone would not tell them: once
//! the table is gone, another one is made at the same place.

use sumun_abi::{slot, verdict::Sharer};

use crate::{kernel::task::Task, maps::SHARERS};

#[inline(always)]
fn key(task: Task) -> [u64; 2] {
    [u64::from(task.pid()), task.start()]
}

/// The process shares its table, as it is known.
#[inline(always)]
pub(crate) fn shares(task: Task) {
    let _ = SHARERS.insert(key(task), task.0.number(slot::TASK_FILES), 0);
}

/// A fork; nearly never one that leaves the child its parent's table.
#[inline(always)]
pub(crate) fn fork(caller: Task, child: Task) {
    if child.shares_files() {
        shares(caller);
        shares(child);
    }
}

/// The process, if it was made to share its files, and the table that it has now.
#[inline(always)]
pub(crate) fn told(task: Task) -> Option<Sharer> {
    let [pid, start_ns] = key(task);
    SHARERS.get_ptr(&[pid, start_ns])?;
    Some(Sharer {
        start_ns,
        pid,
        table: task.0.number(slot::TASK_FILES),
    })
}
