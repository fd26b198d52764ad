//! Opens, renames, removals and links, denied by BPF LSM: by the kernel's own objects, whatever names the caller has
//! for them, and whatever makes the call.

use core::ptr::addr_of_mut;

use aya_ebpf::{macros::lsm, programs::LsmContext};
use sumun_abi::{
    event::{
        file::{OPEN_CREATED, OPEN_TRUNCATE},
        kind,
    },
    policy::{MODE_FILTERED, filtered},
    slot,
    verdict::denied,
};

use super::{answer, begin, is_canary, of_file, of_path, record, refuse};
use crate::{
    kernel::{
        Block,
        file::{File, O_TRUNC},
        get, value,
    },
    policy::{self, deny},
    run::{self, Run, scratch},
};

/// A file is about to be opened.
#[lsm(hook = "file_open")]
fn deny_lsm_open(ctx: LsmContext) -> i32 {
    if is_canary(denied::OPEN) {
        return answer(true);
    }
    let Some((run, index)) = begin(denied::OPEN) else {
        return 0;
    };
    let denied = opened(run, index, run.number(ctx.arg(0)));
    if denied {
        refuse(denied::OPEN);
    }
    run.end();
    answer(denied)
}

#[inline(always)]
fn opened(run: Run, index: u32, file: u64) -> bool {
    let Some(filter) = run::filter(index) else {
        return false;
    };
    let Some(scratch) = scratch(run.level) else {
        return false;
    };
    // SAFETY: the scratch is this run's.
    let block = Block::read(file, unsafe { addr_of_mut!((*scratch).file) });
    if File::is_below(block) {
        return false;
    }
    let mut flags = File::access(block) & !OPEN_CREATED;
    if u64::from(block.get::<u32>(slot::FILE_FLAGS)) & O_TRUNC != 0 {
        flags |= OPEN_TRUNCATE;
    }
    // What no rule on opens can match, no rule that denies can. That a file was created is not asked here.
    if filter.mode[filtered::OPEN] == MODE_FILTERED
        && policy::file::clauses(
            run.level,
            index,
            filter,
            filter.clauses[filtered::OPEN],
            block,
            flags | OPEN_CREATED,
        ) == 0
    {
        return false;
    }
    let Some(record) = record(run, kind::OPEN) else {
        return false;
    };
    // SAFETY: the record is this run's.
    unsafe { addr_of_mut!((*record).flags).write(flags) };
    let file = File(file);
    deny::sumun_ask_file(
        run.level,
        index,
        denied::OPEN as u32,
        file.dentry(),
        file.mnt(),
    ) != 0
}

/// A name is about to be removed.
#[lsm(hook = "path_unlink")]
fn deny_lsm_unlink(ctx: LsmContext) -> i32 {
    removed(&ctx)
}

/// A folder is about to be removed.
#[lsm(hook = "path_rmdir")]
fn deny_lsm_rmdir(ctx: LsmContext) -> i32 {
    removed(&ctx)
}

#[inline(always)]
fn removed(ctx: &LsmContext) -> i32 {
    of_file(denied::UNLINK, kind::UNLINK, 0, |run| {
        let folder = run.number(ctx.arg(0));
        (run.number(ctx.arg(1)), get(folder, slot::PATH_MNT))
    })
}

/// The length of a file is about to change: by its path, and until 6.1 also by a descriptor, or by an open that empties it.
#[lsm(hook = "path_truncate")]
fn deny_lsm_truncate(ctx: LsmContext) -> i32 {
    of_path(denied::TRUNCATE, kind::TRUNCATE, 0, ctx.arg(0))
}

/// The same from 6.2 on, by a descriptor or by an open.
#[lsm(hook = "file_truncate")]
fn deny_lsm_ftruncate(ctx: LsmContext) -> i32 {
    of_file(denied::TRUNCATE, kind::TRUNCATE, 0, |run| {
        let file = File(run.number(ctx.arg(0)));
        (file.dentry(), file.mnt())
    })
}

/// The permissions of a file are about to change: path, mode.
#[lsm(hook = "path_chmod")]
fn deny_lsm_chmod(ctx: LsmContext) -> i32 {
    let mode: u16 = ctx.arg(1);
    of_path(denied::CHMOD, kind::CHMOD, u64::from(mode), ctx.arg(0))
}

/// The owner or group of a file is about to change: path, ids.
#[lsm(hook = "path_chown")]
fn deny_lsm_chown(ctx: LsmContext) -> i32 {
    of_path(denied::CHOWN, kind::CHOWN, 0, ctx.arg(0))
}

/// `RENAME_EXCHANGE` (include/uapi/linux/fs.h): both names stay, and each is the other file's.
const EXCHANGE: u32 = 2;

/// A file is about to get another name: folder and entry of both, and flags on kernels that ask only once about two files that
/// change their names.
#[lsm(hook = "path_rename")]
fn deny_lsm_rename(ctx: LsmContext) -> i32 {
    if is_canary(denied::RENAME) {
        return answer(true);
    }
    let Some((run, index)) = begin(denied::RENAME) else {
        return 0;
    };
    let mut denied = renamed(&ctx, run, index, (0, 1), (2, 3));
    if !denied && value(slot::RENAME_PARAMETERS) == 5 {
        let flags: u32 = ctx.arg(4);
        if flags & EXCHANGE != 0 {
            denied = renamed(&ctx, run, index, (2, 3), (0, 1));
        }
    }
    if denied {
        refuse(denied::RENAME);
    }
    run.end();
    answer(denied)
}

/// Whether the first name may not become the second: places of folder and entry among the arguments.
#[inline(always)]
fn renamed(
    ctx: &LsmContext,
    run: Run,
    index: u32,
    (folder, entry): (usize, usize),
    (to_folder, to_entry): (usize, usize),
) -> bool {
    let mnt = get(run.number(ctx.arg(folder)), slot::PATH_MNT);
    let to_mnt = get(run.number(ctx.arg(to_folder)), slot::PATH_MNT);
    leads(run, run.number(ctx.arg(to_entry)), to_mnt);
    let entry = run.number(ctx.arg(entry));
    record(run, kind::RENAME).is_some()
        && deny::sumun_ask_file(run.level, index, denied::RENAME as u32, entry, mnt) != 0
}

/// A file is about to get one more name: its entry, then folder and entry of the link.
#[lsm(hook = "path_link")]
fn deny_lsm_link(ctx: LsmContext) -> i32 {
    if is_canary(denied::LINK) {
        return answer(true);
    }
    let Some((run, index)) = begin(denied::LINK) else {
        return 0;
    };
    let dentry = run.number(ctx.arg(0));
    let folder = run.number(ctx.arg(1));
    let to_dentry = run.number(ctx.arg(2));
    // Both are on one mount, or there is no link.
    let mnt = get(folder, slot::PATH_MNT);
    leads(run, to_dentry, mnt);
    let denied = record(run, kind::LINK).is_some()
        && deny::sumun_ask_file(run.level, index, denied::LINK as u32, dentry, mnt) != 0;
    if denied {
        refuse(denied::LINK);
    }
    run.end();
    answer(denied)
}

/// Hands over where it leads.
#[inline(always)]
fn leads(run: Run, dentry: u64, mnt: u64) {
    if let Some(scratch) = scratch(run.level) {
        // SAFETY: the scratch is this run's.
        unsafe {
            addr_of_mut!((*scratch).given.arguments[0]).write(dentry);
            addr_of_mut!((*scratch).given.arguments[1]).write(mnt);
        }
    }
}
