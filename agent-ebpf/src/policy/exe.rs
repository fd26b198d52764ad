//! Which clauses the current process's executable satisfies.

use sumun_abi::{
    policy::{ExeKey, ExeVerdict, tag},
    record::{FLAW_DELETED, LEVELS, PATH_MAX},
    slot,
};

use super::{ALL, lookup_walked};
use crate::{
    kernel::{path, task::Task},
    maps::EXES,
    run::{self, scratch},
};

/// The answer for file clauses.
pub(crate) const FILE: u32 = 0;
/// The answer for network clauses.
pub(crate) const NET: u32 = 1;

/// Answers from the cache, or walks the path of the executable once per image and filter.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_exe_clauses(level: u32, index: u32, space: u32) -> u64 {
    of(Task::current(), level, index, space)
}

/// The same for programs of cgroups (`Task::current_plain`).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_exe_clauses_plain(level: u32, index: u32, space: u32) -> u64 {
    of(Task::current_plain(), level, index, space)
}

#[inline(always)]
fn of(task: Task, level: u32, index: u32, space: u32) -> u64 {
    if level >= LEVELS {
        return ALL;
    }
    let Some(scratch) = scratch(level) else {
        return ALL;
    };
    let Some(filter) = run::filter(index & 1) else {
        return ALL;
    };
    let key = ExeKey {
        start_ns: task.start(),
        image: task.image(),
        pid: task.pid(),
        generation: filter.generation,
    };
    if let Some(verdict) = EXES.get_ptr(&key) {
        // SAFETY: a live map value; for a recycled one see `policy::file`.
        return unsafe {
            if space == FILE {
                (*verdict).file
            } else {
                (*verdict).net
            }
        };
    }
    let exe = task.mm().follow(slot::MM_EXE_FILE);
    let walked = path::walk(
        level,
        exe.number(slot::FILE_DENTRY),
        exe.number(slot::FILE_MNT),
    );
    if walked.flaws() & !FLAW_DELETED != 0 {
        return ALL;
    }
    let len = (PATH_MAX as u64).wrapping_sub(walked.start());
    let (path_file, path_net) = lookup_walked(scratch, index, tag::EXE_PATH, walked.start(), len);
    let name_len = walked.name_len();
    let start = (PATH_MAX as u64).wrapping_sub(name_len);
    let (name_file, name_net) = lookup_walked(scratch, index, tag::EXE_NAME, start, name_len);
    let verdict = ExeVerdict {
        file: path_file | name_file,
        net: path_net | name_net,
    };
    let _ = EXES.insert(&key, &verdict, 0);
    if space == FILE {
        verdict.file
    } else {
        verdict.net
    }
}
