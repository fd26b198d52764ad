//! What io_uring accepts, binds, lets listen and connects to Unix sockets: at its own functions, as `hooks::file::ring` says. TCP connects
//! are seen by their state, whoever makes them.
//!
//! What is accepted is seen where the kernel makes it a file (`do_accept`), which is in no descriptor yet: so nobody can swap it, requests
//! that accept again and again are seen each time, and so is what gets no descriptor. Calls come by there, too: a request is told from them
//! by a mark of its thread, from the entry of its function to the exit.
//!
//! Not seen: sockets that io_uring makes; and connects of Unix sockets before 6.0, whose result is gone when the function returns.

use core::ptr::addr_of_mut;

use aya_ebpf::{
    helpers::bpf_ktime_get_boot_ns,
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use sumun_abi::{
    event::{kind, network::Connection},
    policy::{MODE_FILTERED, MODE_NONE, filtered},
    record::RING_BULK,
    slot,
};

use super::{own_end, send, unix};
use crate::{
    hooks::syscall::Call,
    kernel::{
        file::File,
        get,
        socket::{self, Sock},
        task::Task,
    },
    maps::ACCEPTING,
    policy,
    run::{self, FENTRY_LEVELS, Run},
};

/// `IORING_OP_ACCEPT`, include/uapi/linux/io_uring.h.
const ACCEPT: u8 = 13;

/// A request to accept begins; before 6.0 any request.
#[fentry(function = "io_accept")]
fn ring_accepts(ctx: FEntryContext) -> i32 {
    if get::<u8>(ctx.arg(0), slot::IO_OPCODE) == ACCEPT {
        let _ = ACCEPTING.insert(&Task::current().tid(), &1, 0);
    }
    0
}

/// It ends, for now or for good; it may be gone by now.
#[fexit(function = "io_accept")]
fn ring_accepted(_ctx: FExitContext) -> i32 {
    let tid = Task::current().tid();
    if ACCEPTING.get_ptr(&tid).is_some() {
        let _ = ACCEPTING.remove(&tid);
    }
    0
}

/// A socket was accepted, by a call or a request: the file that it was made, or an error.
#[fexit(function = "do_accept")]
fn ring_accept(ctx: FExitContext) -> i32 {
    let task = Task::current();
    if !task.may_serve_ring() || ACCEPTING.get_ptr(&task.tid()).is_none() {
        return 0;
    }
    if let Some(run) = Run::begin_of(RING_BULK, FENTRY_LEVELS) {
        // An error is no socket's file.
        sumun_ring_accept(run.level, run.number(ctx.arg(5)));
        run.end();
    }
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_ring_accept(level: u32, file: u64) -> u64 {
    let run = Run { level };
    let Some(index) = run::active() else {
        return 0;
    };
    let Some(filter) = run::filter(index) else {
        return 0;
    };
    let sock = Sock::of(File(file));
    if filter.mode[filtered::ACCEPT] == MODE_NONE || !sock.is_tcp() {
        return 0;
    }
    let Some(record) = run.record::<Connection>() else {
        return 0;
    };
    let (family, own, peer) = sock.ends();
    socket::store(record, family, peer, own);
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        Task::current().actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).begun_ns).write(bpf_ktime_get_boot_ns());
        addr_of_mut!((*record).flags).write(0);
        addr_of_mut!((*record).result).write(0);
        addr_of_mut!((*record).protocol).write(sock.protocol());
    }
    if filter.mode[filtered::ACCEPT] == MODE_FILTERED {
        let exe = policy::network::exe(level, index, filter, filtered::ACCEPT);
        if policy::network::clauses(level, index, filter, filtered::ACCEPT, exe, record) == 0 {
            return 0;
        }
    }
    send(run, (index, filter), kind::ACCEPT, true);
    0
}

/// A request to bind a socket.
#[fexit(function = "io_bind")]
fn ring_bind(ctx: FExitContext) -> i32 {
    ended(&ctx, 0)
}

/// A request to let a socket listen.
#[fexit(function = "io_listen")]
fn ring_listen(ctx: FExitContext) -> i32 {
    ended(&ctx, 1)
}

#[inline(always)]
fn ended(ctx: &FExitContext, listens: u64) -> i32 {
    if let Some(run) = done(ctx) {
        if let Some(index) = run::active() {
            let file: u64 = get(ctx.arg(0), slot::IO_FILE);
            sumun_ring_own_end(u64::from(run.level) | u64::from(index) << 8, file, listens);
        }
        run.end();
    }
    0
}

/// Begins a run if the function has done its request.
#[inline(always)]
fn done(ctx: &FExitContext) -> Option<Run> {
    let tried = ctx.arg::<u64>(2) as i32;
    if tried != 0 || get::<u32>(ctx.arg(0), slot::IO_RESULT) as i32 != 0 {
        return None;
    }
    Run::begin_of(RING_BULK, FENTRY_LEVELS)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_ring_own_end(call: u64, file: u64, listens: u64) -> u64 {
    own_end(Call(call), File(file), listens, false)
}

/// A request to connect a socket: of Unix sockets that is all that is seen.
#[fexit(function = "io_connect")]
fn ring_connect_unix(ctx: FExitContext) -> i32 {
    if let Some(run) = done(&ctx) {
        let file: u64 = get(ctx.arg(0), slot::IO_FILE);
        sumun_ring_unix(run.level, file);
        run.end();
    }
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_ring_unix(level: u32, file: u64) -> u64 {
    let run = Run { level };
    let Some(index) = run::active() else {
        return 0;
    };
    let sock = Sock::of(File(file));
    if sock.family() != unix::UNIX {
        return 0;
    }
    unix::connected(run, index, sock)
}
