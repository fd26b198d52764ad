//! Decision points: the functions that the kernel asks before it changes a name or an attribute (`security_path_*`,
//! include/linux/security.h, with `CONFIG_SECURITY_PATH`). Whatever the caller has named, there the kernel holds its own
//! objects. It calls them once for each system call, native or 32-bit, and not for what file systems and servers in the
//! kernel do by themselves (overlayfs' inner calls, nfsd).
//!
//! Whether the call comes to anything is known only when it returns: so what was seen is kept for its thread until then (`KNOWN`),
//! and the hook at the exit makes the one record. Where nothing was kept it says the caller's word, marked as that. Of what io_uring
//! does no call returns: `ring` makes that record.

use core::ptr::addr_of_mut;

use aya_ebpf::{helpers::bpf_ktime_get_boot_ns, macros::fentry, programs::FEntryContext};
use sumun_abi::{
    event::{
        file::{CALL_IO_URING, Known, OPEN_TRUNCATE, Open, POINTS_FULL, point, ring},
        kind,
    },
    policy::{Filter, MODE_FILTERED, WRITERS, filtered},
    record::{LEVELS, RING_BULK},
    slot,
    verdict::on,
};

use crate::{
    hooks::{deny::is_try_of_points, file::writers},
    kernel::{
        Block,
        file::{File, O_PATH, O_TRUNC},
        get,
        path::{self, Tail, Text},
        task::Task,
    },
    maps::{KNOWN, OPENED, POINTS},
    policy::{self, verdict},
    run::{self, FENTRY_LEVELS, Run, add, scratch},
};

/// A name is about to be removed: folder and entry.
#[fentry(function = "security_path_unlink")]
fn point_unlink(ctx: FEntryContext) -> i32 {
    one(&ctx, kind::UNLINK)
}

/// A folder is about to be removed.
#[fentry(function = "security_path_rmdir")]
fn point_rmdir(ctx: FEntryContext) -> i32 {
    one(&ctx, kind::UNLINK)
}

#[inline(always)]
fn one(ctx: &FEntryContext, kind: u16) -> i32 {
    if let Some(run) = begin(kind) {
        let folder = run.number(ctx.arg(0));
        let dentry = run.number(ctx.arg(1));
        sumun_decided(word(run, kind), dentry, get(folder, slot::PATH_MNT), 0, 0);
        run.end();
    }
    0
}

/// A file is about to get another name: folder and entry of both.
#[fentry(function = "security_path_rename")]
fn point_rename(ctx: FEntryContext) -> i32 {
    if let Some(run) = begin(kind::RENAME) {
        let folder = run.number(ctx.arg(0));
        let dentry = run.number(ctx.arg(1));
        let to_folder = run.number(ctx.arg(2));
        let to_dentry = run.number(ctx.arg(3));
        sumun_decided(
            word(run, kind::RENAME),
            dentry,
            get(folder, slot::PATH_MNT),
            to_dentry,
            get(to_folder, slot::PATH_MNT),
        );
        run.end();
    }
    0
}

/// A file is about to get one more name: its entry, then folder and entry of the link. Both are on one mount, or there is no
/// link.
#[fentry(function = "security_path_link")]
fn point_link(ctx: FEntryContext) -> i32 {
    if let Some(run) = begin(kind::LINK) {
        let dentry = run.number(ctx.arg(0));
        let folder = run.number(ctx.arg(1));
        let to_dentry = run.number(ctx.arg(2));
        let mnt = get(folder, slot::PATH_MNT);
        sumun_decided(word(run, kind::LINK), dentry, mnt, to_dentry, mnt);
        run.end();
    }
    0
}

/// A symbolic link is about to be made: folder, entry, and what it says.
#[fentry(function = "security_path_symlink")]
fn point_symlink(ctx: FEntryContext) -> i32 {
    if let Some(run) = begin(kind::SYMLINK) {
        let folder = run.number(ctx.arg(0));
        let to_dentry = run.number(ctx.arg(1));
        let says = run.number(ctx.arg(2));
        let mnt = get(folder, slot::PATH_MNT);
        sumun_decided(word(run, kind::SYMLINK), says, 0, to_dentry, mnt);
        run.end();
    }
    0
}

/// Permission bits are about to be changed.
#[fentry(function = "security_path_chmod")]
fn point_chmod(ctx: FEntryContext) -> i32 {
    of_path(&ctx, kind::CHMOD)
}

/// An owner is about to be changed.
#[fentry(function = "security_path_chown")]
fn point_chown(ctx: FEntryContext) -> i32 {
    of_path(&ctx, kind::CHOWN)
}

/// A length is about to be changed by a call on a path. (Its `security_path_truncate` is asked about opens that truncate, too.)
#[fentry(function = "vfs_truncate")]
fn point_truncate(ctx: FEntryContext) -> i32 {
    of_path(&ctx, kind::TRUNCATE)
}

#[inline(always)]
fn of_path(ctx: &FEntryContext, kind: u16) -> i32 {
    if let Some(run) = begin(kind) {
        let path = run.number(ctx.arg(0));
        let (dentry, mnt) = (get(path, slot::PATH_DENTRY), get(path, slot::PATH_MNT));
        sumun_decided(word(run, kind), dentry, mnt, 0, 0);
        run.end();
    }
    0
}

/// A file is about to be opened. It is asked of each open, so what no rule asks about is left out here.
#[fentry(function = "security_file_open")]
fn point_open(ctx: FEntryContext) -> i32 {
    if writers::are_asked_for() {
        writers::opening(ctx.arg(0));
    }
    if let Some(run) = begin(kind::OPEN) {
        open(run, run.number(ctx.arg(0)));
        run.end();
    }
    0
}

#[inline(always)]
fn open(run: Run, file: u64) {
    let Some(index) = run::active() else {
        return;
    };
    let Some(filter) = run::filter(index) else {
        return;
    };
    let Some(scratch) = scratch(run.level) else {
        return;
    };
    // SAFETY: the scratch is this run's.
    let block = Block::read(file, unsafe { addr_of_mut!((*scratch).file) });
    if File::is_inner(block) {
        return;
    }
    let mut flags = File::access(block);
    if u64::from(block.get::<u32>(slot::FILE_FLAGS)) & O_TRUNC != 0 {
        flags |= OPEN_TRUNCATE;
    }
    let wanted = filter.clauses[filtered::OPEN];
    if filter.mode[filtered::OPEN] == MODE_FILTERED
        && policy::file::clauses(run.level, index, filter, wanted, block, flags) == 0
    {
        // What is there is of an open that no call returns from: of the kernel's own.
        let tid = Task::current().tid();
        if OPENED.get_ptr(&tid).is_some() {
            let _ = OPENED.remove(&tid);
        }
        return;
    }
    sumun_opening(run.level, file, flags);
}

/// Keeps what is known of an open of the current thread.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_opening(level: u32, file: u64, flags: u32) -> u64 {
    let run = Run { level };
    let Some(known) = run.record::<Known>() else {
        return 0;
    };
    let opened = File(file);
    // SAFETY: the record is this run's; all fields are written, and the map's value is a part of it.
    unsafe {
        addr_of_mut!((*known).boot_ns).write(bpf_ktime_get_boot_ns());
        addr_of_mut!((*known).kind).write(kind::OPEN);
        addr_of_mut!((*known).flags).write(flags);
        addr_of_mut!((*known).file).write(file);
        opened.identity(
            addr_of_mut!((*known).dev),
            addr_of_mut!((*known).mode),
            addr_of_mut!((*known).ino),
        );
        let walked = path::walk(level, opened.dentry(), opened.mnt());
        path::retain(level, walked);
        Text::NONE.store(addr_of_mut!((*known).to_path), 0);
        if OPENED
            .insert(&Task::current().tid(), &*known.cast(), 0)
            .is_err()
        {
            no_room();
        }
    }
    0
}

#[inline(always)]
fn no_room() {
    if let Some(counter) = POINTS.get_ptr_mut(POINTS_FULL) {
        add(counter, 1);
    }
}

/// Bit of `Filter::known`: decision points see opens.
pub(in crate::hooks) const OPENS: u64 = 1 << point(kind::OPEN);

/// What else is asked about opens than a look at their descriptor: `OPENS` and `policy::WRITERS`. Both in one look, because it is
/// taken at every open.
#[inline(always)]
pub(in crate::hooks) fn asked_of_opens() -> u64 {
    run::active()
        .and_then(run::filter)
        .map_or(0, |filter| filter.known & (OPENS | WRITERS))
}

/// An open returned `fd`: records it if a decision point saw it, and says so by 1. `made` is `CALL_*`; `how` are its flags, of openat2
/// unknown. What io_uring puts into its own table has no descriptor: -1.
#[unsafe(no_mangle)]
#[inline(never)]
pub(in crate::hooks) extern "C" fn sumun_seen_open(made: u32, fd: u64, how: u64) -> u64 {
    let task = Task::current();
    let tid = task.tid();
    // A reference does not come by the decision point; what is there then is of another open.
    if how & O_PATH != 0 {
        return 0;
    }
    let Some(value) = OPENED.get_ptr(&tid) else {
        return 0;
    };
    let known: *const Known = value.cast();
    let fd = fd as i32;
    let found = File::of(task, fd);
    // SAFETY: a live map value that only this thread's calls write.
    let same = unsafe { (*known).file } == found.0;
    // Where nobody else could have put it there, it is another open that the decision point saw last: one that the kernel made.
    if !same && fd >= 0 && (!task.shares_files() || found.is_reference()) {
        let _ = OPENED.remove(&tid);
        return 0;
    }
    let levels = if made & CALL_IO_URING != 0 {
        FENTRY_LEVELS
    } else {
        LEVELS
    };
    let Some(run) = Run::begin_of(RING_BULK, levels) else {
        let _ = OPENED.remove(&tid);
        return 1;
    };
    if let Some(index) = run::active()
        && let Some(filter) = run::filter(index)
        && let Some(record) = run.record::<Open>()
    {
        let mut tail = Tail::after::<Open>(run.level);
        // SAFETY: the record is this run's; all fields are written. The value as above.
        unsafe {
            task.actor(addr_of_mut!((*record).actor));
            addr_of_mut!((*record).flags).write((*known).flags | made);
            addr_of_mut!((*record).fd).write(fd);
            addr_of_mut!((*record).dev).write((*known).dev);
            addr_of_mut!((*record).mode).write((*known).mode);
            addr_of_mut!((*record).ino).write((*known).ino);
            let walked = path::recall(run.level);
            tail.walked(walked).store(addr_of_mut!((*record).path), 0);
            verdict::none(addr_of_mut!((*record).verdict));
            let asked = on::filtered(filtered::OPEN);
            if verdict::asked(index, asked) {
                verdict::sumun_judge_file(run.level, index, asked, walked.0, verdict::CERTAIN);
            }
        }
        run.send(RING_BULK, kind::OPEN, filter.generation, tail.end());
    }
    let _ = OPENED.remove(&tid);
    run.end();
    1
}

/// An open failed that a decision point may have seen: it was denied behind it, or by what is opened.
#[unsafe(no_mangle)]
#[inline(never)]
pub(in crate::hooks) extern "C" fn sumun_failed_seen_open() -> u64 {
    if asked_of_opens() & OPENS != 0 {
        let tid = Task::current().tid();
        // Most opens that fail have not come so far.
        if OPENED.get_ptr(&tid).is_some() {
            let _ = OPENED.remove(&tid);
        }
    }
    0
}

/// Begins a run if the kind is asked for and the call, or the function of io_uring, will return to a hook that makes the record.
#[inline(always)]
fn begin(kind: u16) -> Option<Run> {
    let place = point(kind);
    if is_try_of_points()
        && let Some(counter) = POINTS.get_ptr_mut(place)
    {
        add(counter, 1);
    }
    let filter = run::filter(run::active()?)?;
    if filter.known >> (place & 63) & 1 == 0 {
        return None;
    }
    let task = Task::current();
    let told = filter.known >> (ring(kind) & 63) & 1 != 0 && task.works_for_ring();
    if task.makes_no_calls() && !told {
        return None;
    }
    Run::begin_below(FENTRY_LEVELS)
}

#[inline(always)]
fn word(run: Run, kind: u16) -> u64 {
    u64::from(run.level) | u64::from(kind) << 16
}

/// Keeps what is known of a call of the current thread: its object and, of renames and links, where that leads. Of a symbolic link
/// `dentry` is the kernel's copy of what it says.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_decided(word: u64, dentry: u64, mnt: u64, to_dentry: u64, to_mnt: u64) -> u64 {
    let run = Run {
        level: word as u32 & 0xffff,
    };
    let kind = (word >> 16) as u16;
    let Some(known) = run.record::<Known>() else {
        return 0;
    };
    let mut tail = Tail::after::<Known>(run.level);
    // SAFETY: the record is this run's; all fields are written, and the map's value is a part of it.
    unsafe {
        addr_of_mut!((*known).boot_ns).write(bpf_ktime_get_boot_ns());
        addr_of_mut!((*known).kind).write(kind);
        addr_of_mut!((*known).name_len).write(0);
        addr_of_mut!((*known).flags).write(0);
        addr_of_mut!((*known).file).write(0);
        let path = if kind == kind::SYMLINK {
            addr_of_mut!((*known).dev).write(0);
            addr_of_mut!((*known).mode).write(0);
            addr_of_mut!((*known).ino).write(0);
            tail.kernel_string(dentry)
        } else {
            let inode: u64 = get(dentry, slot::DENTRY_INODE);
            addr_of_mut!((*known).dev).write(get(get(inode, slot::INODE_SB), slot::SB_DEV));
            addr_of_mut!((*known).mode).write(u32::from(get::<u16>(inode, slot::INODE_MODE)));
            addr_of_mut!((*known).ino).write(get(inode, slot::INODE_INO));
            tail.path(dentry, mnt)
        };
        path.store(addr_of_mut!((*known).path), 0);
        let to = if to_dentry == 0 {
            Text::NONE
        } else {
            tail.path(to_dentry, to_mnt).to_be()
        };
        to.store(addr_of_mut!((*known).to_path), 0);
        if KNOWN
            .insert(&Task::current().tid(), &*known.cast(), 0)
            .is_err()
        {
            no_room();
        }
    }
    0
}

/// What a decision point saw of the call of the current thread that returns now, if it is of this kind of record.
#[inline(always)]
pub(in crate::hooks) fn of(filter: &Filter, kind: u16) -> Option<*const Known> {
    if filter.known >> (point(kind) & 63) & 1 == 0 {
        return None;
    }
    let known: *const Known = KNOWN.get_ptr(&Task::current().tid())?.cast();
    // SAFETY: a live map value that only this thread's calls write.
    let same = unsafe { (*known).kind } == kind;
    same.then_some(known)
}

/// It is not needed any more.
#[inline(always)]
pub(in crate::hooks) fn forget(task: Task) {
    let _ = KNOWN.remove(&task.tid());
}

/// A call failed that may have passed a decision point.
#[unsafe(no_mangle)]
#[inline(never)]
pub(in crate::hooks) extern "C" fn sumun_failed_change() -> u64 {
    let Some(filter) = run::active().and_then(run::filter) else {
        return 0;
    };
    if filter.known != 0 {
        forget(Task::current());
    }
    0
}
