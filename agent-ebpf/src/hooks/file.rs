//! Open, close after write, rename, unlink, at the raw system call tracepoints.

pub(super) mod change;
pub(super) mod mapped;
pub(super) mod point;
mod ring;
pub(super) mod writers;

use core::{mem::size_of, ptr::addr_of_mut};

use sumun_abi::{
    event::{
        file::{
            ACCESS_UNKNOWN, ACCESS_WRITE, CALL_COMPAT, FailedOpen, Known, NAMES_DIRECTORY,
            NAMES_OBJECT, Names, OPEN_TRUNCATE, OPEN_TRUNCATE_UNKNOWN, Open,
        },
        kind,
    },
    policy::{MODE_FILTERED, MODE_NONE, action, filtered},
    record::{FLAW_LOST, FLAW_RACY, LEVELS, RECORD_MAX, RING_BULK},
    slot,
    verdict::on,
};

use super::syscall::Call;
use crate::{
    kernel::{
        Block,
        file::{self, File, O_TRUNC},
        get, opaque,
        path::{self, Tail, Text, Walked},
        task::Task,
    },
    policy::{self, swap, verdict},
    run::{self, Run, scratch},
};

/// `AT_FDCWD`
const AT_FDCWD: i32 = -100;
/// What creat opens with: `O_CREAT | O_WRONLY | O_TRUNC`.
const O_CREAT_WRITE: u64 = 0o100 | 1 | O_TRUNC;
/// `AT_REMOVEDIR`
const AT_REMOVEDIR: u64 = 0x200;

/// An open that returned `fd`, or the entry of a close of it. `name` is the
/// caller's, `how` its flags or (openat2) where they are.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_open(call: u64, fd: u64, name: u64, how: u64) -> u64 {
    let call = Call(call);
    let run = Run {
        level: call.level(),
    };
    let index = call.filter();
    let Some(filter) = run::filter(index) else {
        return 0;
    };
    let closing = call.action() == action::CLOSE;
    let mode = filter.mode[if closing {
        filtered::CLOSE_WRITE
    } else {
        filtered::OPEN
    }];
    if mode == MODE_NONE {
        return 0;
    }
    let Some(scratch) = scratch(run.level) else {
        return 0;
    };
    let fd = fd as i32;
    let task = Task::current();
    let mut file = File::of(task, fd);
    // SAFETY: the scratch is this run's.
    let block = Block::read(file.0, unsafe { addr_of_mut!((*scratch).file) });
    let access = File::access(block);
    let mut asked = if call.is_compat() { CALL_COMPAT } else { 0 };
    if closing {
        if file.is_lost() || access & ACCESS_WRITE == 0 || !file.is_regular() {
            return 0;
        }
    } else {
        asked |= truncates(call, how);
    }
    let mut flags = access | asked;
    if mode == MODE_FILTERED && file.is_lost() {
        swap::sent(run, index, task, fd, file);
    } else if mode == MODE_FILTERED {
        let wanted = filter.clauses[if closing {
            filtered::CLOSE_WRITE
        } else {
            filtered::OPEN
        }];
        if policy::file::clauses(run.level, index, filter, wanted, block, flags) == 0 {
            if closing || !swap::opened(run, index, task, fd, file, name, asked) {
                return 0;
            }
            // What is known of the file behind the descriptor is not this open's.
            file = File::LOST;
            flags = asked;
        } else if !closing {
            swap::sent(run, index, task, fd, file);
        }
    }
    let Some(record) = run.record::<Open>() else {
        return 0;
    };
    let mut tail = Tail::after::<Open>(run.level);
    let mut walked = Walked::LOST;
    let inode = file.inode();
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).flags).write(flags);
        addr_of_mut!((*record).fd).write(fd);
        addr_of_mut!((*record).dev).write(get(get(inode, slot::INODE_SB), slot::SB_DEV));
        addr_of_mut!((*record).mode).write(u32::from(get::<u16>(inode, slot::INODE_MODE)));
        addr_of_mut!((*record).ino).write(get(inode, slot::INODE_INO));
        let racy = if task.shares_files() { FLAW_RACY } else { 0 };
        let place = addr_of_mut!((*record).path);
        if file.is_lost() {
            tail.user_string(name).store(place, FLAW_LOST | racy);
        } else {
            walked = path::walk(run.level, file.dentry(), file.mnt());
            tail.walked(walked).store(place, racy);
        }
        verdict::none(addr_of_mut!((*record).verdict));
    }
    let (kind, asked) = if closing {
        (kind::CLOSE_WRITE, on::filtered(filtered::CLOSE_WRITE))
    } else {
        (kind::OPEN, on::filtered(filtered::OPEN))
    };
    if verdict::asked(index, asked) {
        verdict::sumun_judge_file(run.level, index, asked, walked.0, file.0);
    }
    run.send(RING_BULK, kind, filter.generation, tail.end());
    0
}

/// An open failed: what it asked for, under the name that the caller gave.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn sumun_failed_open(call: u64) -> u64 {
    let call = Call(call);
    let run = Run {
        level: call.level(),
    };
    let Some(given) = run::given(run.level) else {
        return 0;
    };
    let Some(filter) = run::filter(call.filter()) else {
        return 0;
    };
    let [a, b, c, ..] = given.arguments;
    let (dirfd, name, how) = match call.action() {
        action::OPEN => (AT_FDCWD, a, b),
        action::CREAT => (AT_FDCWD, a, O_CREAT_WRITE),
        action::OPENAT => (a as i32, b, c),
        action::OPEN_BY_HANDLE => (a as i32, 0, c),
        _ => (
            a as i32,
            b,
            // `struct open_how` begins with the flags.
            file::read_user::<u64>(c).unwrap_or(u64::MAX),
        ),
    };
    let task = Task::current();
    let Some(record) = run.record::<FailedOpen>() else {
        return 0;
    };
    let mut flags = if how == u64::MAX {
        ACCESS_UNKNOWN | OPEN_TRUNCATE_UNKNOWN
    } else {
        file::asked(how)
    };
    if call.is_compat() {
        flags |= CALL_COMPAT;
    }
    let racy = if task.shares_files() || task.shares_fs() {
        FLAW_RACY
    } else {
        0
    };
    let mut tail = Tail::after::<FailedOpen>(run.level);
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).flags).write(flags);
        addr_of_mut!((*record).result).write(given.result as i32);
        let start = tail.end();
        tail.user_string(name)
            .store(addr_of_mut!((*record).name), 0);
        base(run, task, &mut tail, start, dirfd).store(addr_of_mut!((*record).base), racy);
    }
    run.send(RING_BULK, kind::OPEN_FAILED, filter.generation, tail.end());
    0
}

/// Whether the call asked to truncate: its own flags, from registers where they are there.
#[inline(always)]
fn truncates(call: Call, how: u64) -> u32 {
    let flags = match call.action() {
        action::CREAT => O_TRUNC,
        // `struct open_how` begins with the flags; the caller may have changed it since.
        action::OPENAT2 => match file::read_user::<u64>(how) {
            Some(flags) => flags,
            None => return OPEN_TRUNCATE_UNKNOWN,
        },
        _ => how,
    };
    if flags & O_TRUNC != 0 {
        OPEN_TRUNCATE
    } else {
        0
    }
}

/// A rename or unlink, or with [`Call::failing`] one that failed. `fds` holds two directory descriptors. The paths of
/// directories may have changed.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_names(
    call: u64,
    fds: u64,
    from: u64,
    to: u64,
    call_flags: u64,
) -> u64 {
    let call = Call(call);
    let (action, result) = (call.action(), call.result());
    let rename = action == action::RENAME || action == action::RENAMEAT;
    let directory =
        action == action::RMDIR || action == action::UNLINKAT && call_flags & AT_REMOVEDIR != 0;
    if result == 0 && (rename || directory) {
        policy::flush();
    }
    let Some(filter) = run::filter(call.filter()) else {
        return 0;
    };
    let mode = filter.mode[if rename {
        filtered::RENAME
    } else {
        filtered::UNLINK
    }];
    // Of one that failed it was asked for.
    if result == 0 && mode == MODE_NONE {
        return 0;
    }
    let run = Run {
        level: call.level(),
    };
    let kind = if rename { kind::RENAME } else { kind::UNLINK };
    let known = point::of(filter, kind);
    let task = Task::current();
    let Some(record) = run.record::<Names>() else {
        return 0;
    };
    let mut tail = Tail::after::<Names>(run.level);
    let mut flags = if call.is_compat() { CALL_COMPAT } else { 0 };
    if directory {
        flags |= NAMES_DIRECTORY;
    }
    let racy = if task.shares_files() || task.shares_fs() {
        FLAW_RACY
    } else {
        0
    };
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).flags).write(flags);
        addr_of_mut!((*record).call_flags).write(call_flags as u32);
        addr_of_mut!((*record).result).write(result);
        addr_of_mut!((*record).pad).write(0);
        if let Some(known) = known {
            seen(record, known, &mut tail, flags, rename);
            point::forget(task);
            run.send(RING_BULK, kind, filter.generation, tail.end());
            return 0;
        }
        addr_of_mut!((*record).dev).write(0);
        addr_of_mut!((*record).mode).write(0);
        addr_of_mut!((*record).ino).write(0);
        let start = tail.end();
        tail.user_string(from)
            .store(addr_of_mut!((*record).name), 0);
        base(run, task, &mut tail, start, fds as i32).store(addr_of_mut!((*record).base), racy);
        if rename {
            let start = tail.end();
            tail.user_string(to)
                .store(addr_of_mut!((*record).to_name), 0);
            base(run, task, &mut tail, start, (fds >> 32) as i32)
                .store(addr_of_mut!((*record).to_base), racy);
        } else {
            Text::NONE.store(addr_of_mut!((*record).to_name), 0);
            Text::NONE.store(addr_of_mut!((*record).to_base), 0);
        }
    }
    run.send(RING_BULK, kind, filter.generation, tail.end());
    0
}

/// What a decision point saw of a rename or an unlink: all of its record but who did it and the flags of the call.
///
/// # Safety
/// `record` is the run's own, `known` a value of `KNOWN` of the current thread.
#[inline(always)]
unsafe fn seen(record: *mut Names, known: *const Known, tail: &mut Tail, flags: u32, rename: bool) {
    // SAFETY: the caller's.
    unsafe {
        addr_of_mut!((*record).flags).write(flags | NAMES_OBJECT);
        addr_of_mut!((*record).dev).write((*known).dev);
        addr_of_mut!((*record).mode).write((*known).mode);
        addr_of_mut!((*record).ino).write((*known).ino);
        Text::NONE.store(addr_of_mut!((*record).base), 0);
        Text::NONE.store(addr_of_mut!((*record).to_base), 0);
        tail.known(false).store(addr_of_mut!((*record).name), 0);
        let to = if rename { tail.known(true) } else { Text::NONE };
        to.store(addr_of_mut!((*record).to_name), 0);
    }
}

/// The directory that the name at `start` of the record is relative to; none if it is absolute.
#[inline(always)]
pub(super) fn base(run: Run, task: Task, tail: &mut Tail, start: u32, dirfd: i32) -> Text {
    let start = opaque(u64::from(start));
    if run.level < LEVELS
        && let Some(scratch) = scratch(run.level)
        && start < RECORD_MAX as u64
        && u64::from(tail.end()) > start
    {
        // SAFETY: bound checked.
        let first = unsafe {
            addr_of_mut!((*scratch).record)
                .cast::<u8>()
                .add(start as usize)
                .read_volatile()
        };
        if first == b'/' {
            return Text::NONE;
        }
    }
    let (dentry, mnt) = file::base(task, dirfd);
    tail.path(dentry, mnt)
}

const _: () = assert!(size_of::<Open>() < 512);
