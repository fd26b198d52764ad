//! The opens that nobody asks about, which are nearly all: left out with a few loads and one look-up.
//!
//! It answers what the long way (`hooks::file::sumun_open`) would answer, for a directory that has a verdict and a file
//! that nobody disputes. Whatever it does not know takes the long way.

use core::ptr;

use sumun_abi::{
    event::file::{CALL_COMPAT, OPEN_TRUNCATE},
    policy::{DirKey, Filter, MODE_FILTERED, MODE_NONE, action, filtered},
    slot,
};

use super::{
    file,
    swap::{self, Brief},
};
use crate::{
    kernel::{
        file::{File, O_TRUNC, granted},
        task::Task,
    },
    maps::DIRS,
    run,
};

/// True if the open that returned `fd` is none that any rule asks for. `name` and `how` are as for
/// `sumun_open`.
#[inline(always)]
pub(crate) fn left_out(action: u8, compat: bool, fd: i32, name: u64, how: u64) -> bool {
    let what = u64::from(fd as u32) | u64::from(action) << 32 | u64::from(compat) << 40;
    sumun_early(what, name, how) != 0
}

/// A function of its own, so that what it keeps on the stack is not below the long way's.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_early(what: u64, name: u64, how: u64) -> u64 {
    let (fd, action, compat) = (what as i32, (what >> 32) as u8, what >> 40 & 1 != 0);
    u64::from(judged(action, compat, fd, name, how))
}

#[inline(always)]
fn judged(action: u8, compat: bool, fd: i32, name: u64, how: u64) -> bool {
    let Some(index) = run::active() else {
        return false;
    };
    let Some(filter) = run::filter(index) else {
        return false;
    };
    let generation = current(filter);
    if filter.mode[filtered::OPEN] != MODE_FILTERED {
        // Such a call is looked at for who writes, or for why it failed.
        return filter.mode[filtered::OPEN] == MODE_NONE;
    }
    let task = Task::current();
    let found = File::of(task, fd);
    if found.is_lost() {
        return false;
    }
    let opened = found.object();
    let truncates = action == action::CREAT || how & O_TRUNC != 0;
    let asked = if compat { CALL_COMPAT } else { 0 } | if truncates { OPEN_TRUNCATE } else { 0 };
    let flags = granted(opened.get(slot::FILE_MODE), opened.get(slot::FILE_FLAGS)) | asked;
    let left = filter.clauses[filtered::OPEN] & file::access_clauses(filter, flags);
    if left != 0 {
        if left & filter.any_path != 0 {
            return false;
        }
        let dentry = opened.follow(slot::FILE_DENTRY);
        let parent = dentry.follow(slot::DENTRY_PARENT);
        let inode = parent.follow(slot::DENTRY_INODE);
        if inode.address == 0 || parent.address == dentry.address {
            return false;
        }
        let key = DirKey {
            inode: inode.address,
            mnt: opened.get(slot::FILE_MNT),
            ino: inode.get(slot::INODE_INO),
            inode_generation: inode.get(slot::INODE_GENERATION),
            generation,
            flush: file::epoch(),
        };
        let Some(verdict) = DIRS.get_ptr(&key) else {
            return false;
        };
        // SAFETY: a live map value; for a recycled one see `policy::file`.
        let (all, names) = unsafe { ((*verdict).file, (*verdict).dir) };
        if names != 0 || left & all != 0 {
            return false;
        }
    }
    let open = Brief {
        files: task.0.number(slot::TASK_FILES),
        fd,
        file: found.0,
        ino: opened.follow(slot::FILE_INODE).get(slot::INODE_INO),
        name,
        asked,
    };
    // No run holds the filter fast: if it is still the active one and still the same, it was all the time.
    if run::active() != Some(index) || current(filter) != generation {
        return false;
    }
    if task.shares_files() {
        swap::claimed(task, open)
    } else {
        !swap::is_anothers(open, task.tid())
    }
}

/// The filter's generation, read now.
#[inline(always)]
fn current(filter: &Filter) -> u32 {
    // SAFETY: a field of a live map value.
    unsafe { ptr::read_volatile(ptr::addr_of!(filter.generation)) }
}
