//! What io_uring does to files. No system call returns from it: the submitter's thread does it inside `io_uring_enter` or on its way
//! out of any call, the thread that polls for requests does it, or a worker. They all come by io_uring's own functions, which hold
//! the request: at their exit its result is known, whether or not it is put into the completion queue (io_uring/openclose.c,
//! io_uring/fs.c). What was opened or changed the decision point on the way has kept for the thread (`point`), as of a call.
//!
//! Before 5.19, and in 5.10 from 5.10.162 on, all but the open are parts of one function, and what a worker has done is gone from the
//! request when that returns: it is told as the worker completes it (`ring_done`).
//!
//! Not seen: an open as a reference (`O_PATH`), which does not come by the decision point; a request that fails; and where io_uring's
//! threads are the kernel's own (before 5.12) what they do.

use core::ptr::addr_of_mut;

use aya_ebpf::{
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use sumun_abi::{
    event::{
        file::{CALL_IO_URING, Change, Known, NAMES_DIRECTORY, Names, ring},
        kind,
    },
    record::RING_BULK,
    slot,
};

use super::{
    change,
    point::{sumun_failed_seen_open, sumun_seen_open},
    seen,
};
use crate::{
    kernel::{file, get, path::Tail, task::Task},
    maps::{KNOWN, OPENED},
    policy,
    run::{self, FENTRY_LEVELS, Run},
};

/// A request to open a file, also as a direct descriptor.
#[fexit(function = "io_openat2")]
fn ring_open(ctx: FExitContext) -> i32 {
    let request: u64 = ctx.arg(0);
    opened(request, tried(&ctx, request));
    0
}

/// A request to rename.
#[fexit(function = "io_renameat")]
fn ring_rename(ctx: FExitContext) -> i32 {
    let request: u64 = ctx.arg(0);
    changed(request, tried(&ctx, request));
    0
}

/// A request to remove a name or a folder.
#[fexit(function = "io_unlinkat")]
fn ring_unlink(ctx: FExitContext) -> i32 {
    let request: u64 = ctx.arg(0);
    changed(request, tried(&ctx, request));
    0
}

/// A request for one more name.
#[fexit(function = "io_linkat")]
fn ring_link(ctx: FExitContext) -> i32 {
    let request: u64 = ctx.arg(0);
    changed(request, tried(&ctx, request));
    0
}

/// A request for a symbolic link.
#[fexit(function = "io_symlinkat")]
fn ring_symlink(ctx: FExitContext) -> i32 {
    let request: u64 = ctx.arg(0);
    changed(request, tried(&ctx, request));
    0
}

/// A request is completed at once, which workers do: request and result.
#[fentry(function = "io_req_complete_post")]
fn ring_done(ctx: FEntryContext) -> i32 {
    if !Task::current().works_for_ring() {
        return 0;
    }
    let request: u64 = ctx.arg(0);
    let result = ctx.arg::<u64>(1) as i32;
    // One of them at most: neither outlives its request.
    changed(request, result);
    opened(request, result);
    0
}

/// What a function of io_uring's made of its request: its result, or an error if it will be tried again.
#[inline(always)]
fn tried(ctx: &FExitContext, request: u64) -> i32 {
    if ctx.arg::<u64>(2) as i32 != 0 {
        return -1;
    }
    get::<u32>(request, slot::IO_RESULT) as i32
}

#[inline(always)]
fn opened(request: u64, result: i32) {
    if OPENED.get_ptr(&Task::current().tid()).is_none() {
        return;
    }
    if result < 0 {
        sumun_failed_seen_open();
        return;
    }
    let fd = if get::<u32>(request, slot::IO_OPEN_PLACE) == 0 {
        result as u64
    } else {
        u64::MAX
    };
    sumun_seen_open(CALL_IO_URING, fd, get(request, slot::IO_OPEN_FLAGS));
}

#[inline(always)]
fn changed(request: u64, result: i32) {
    let tid = Task::current().tid();
    let Some(known) = KNOWN.get_ptr(&tid) else {
        return;
    };
    if result >= 0
        && let Some(run) = Run::begin_of(RING_BULK, FENTRY_LEVELS)
    {
        let known: *const Known = known.cast();
        // SAFETY: a live map value that only this thread's calls write.
        let asked = match unsafe { (*known).kind } {
            kind::RENAME => slot::IO_RENAME_FLAGS,
            kind::UNLINK => slot::IO_UNLINK_FLAGS,
            _ => slot::IO_LINK_FLAGS,
        };
        sumun_ring_changed(run.level, get(request, asked));
        run.end();
    }
    let _ = KNOWN.remove(&tid);
}

/// Sends the record of what the current thread has done to names; `asked` are the flags of the request.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_ring_changed(level: u32, asked: u32) -> u64 {
    let run = Run { level };
    let task = Task::current();
    let Some(filter) = run::active().and_then(run::filter) else {
        return 0;
    };
    let Some(known) = KNOWN.get_ptr(&task.tid()) else {
        return 0;
    };
    let known: *const Known = known.cast();
    // SAFETY: a live map value that only this thread's calls write.
    let (kind, mode) = unsafe { ((*known).kind, (*known).mode) };
    let rename = kind == kind::RENAME;
    let directory = file::is_directory(mode);
    if rename || kind == kind::UNLINK && directory {
        policy::flush();
    }
    if filter.known >> (ring(kind) & 63) & 1 == 0 {
        return 0;
    }
    if rename || kind == kind::UNLINK {
        let Some(record) = run.record::<Names>() else {
            return 0;
        };
        let mut tail = Tail::after::<Names>(level);
        let mut flags = CALL_IO_URING;
        if !rename && directory {
            flags |= NAMES_DIRECTORY;
        }
        // SAFETY: the record is this run's; all fields are written. The value as above.
        unsafe {
            task.actor(addr_of_mut!((*record).actor));
            addr_of_mut!((*record).call_flags).write(asked);
            addr_of_mut!((*record).result).write(0);
            addr_of_mut!((*record).pad).write(0);
            seen(record, known, &mut tail, flags, rename);
        }
        run.send(RING_BULK, kind, filter.generation, tail.end());
        return 0;
    }
    let Some(record) = run.record::<Change>() else {
        return 0;
    };
    let mut tail = Tail::after::<Change>(level);
    let value = if kind == kind::LINK { asked } else { 0 };
    // SAFETY: as above.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).number).write(0);
        addr_of_mut!((*record).value).write(u64::from(value));
        addr_of_mut!((*record).uid).write(u32::MAX);
        addr_of_mut!((*record).gid).write(u32::MAX);
        addr_of_mut!((*record).result).write(0);
        addr_of_mut!((*record).pad).write(0);
        change::seen(record, known, &mut tail, CALL_IO_URING);
    }
    run.send(RING_BULK, kind, filter.generation, tail.end());
    0
}
