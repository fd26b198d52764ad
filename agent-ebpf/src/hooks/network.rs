//! TCP connections made, with their result whenever it comes, and accepted.
//!
//! A connect is followed by its socket's state: it begins in the caller's context,
//! and ends there or, later, in whatever context a packet arrives. What no state
//! tells is known when the call returns: a connect that failed before the
//! kernel chose a route, and the error of one that failed before its first packet.
//!
//! Not seen: connects that io_uring or a send with MSG_FASTOPEN makes and that fail before
//! the first state; what io_uring accepts where its functions take no programs (`ring`).

mod dns;
mod ring;
mod udp;
pub(super) mod unix;

use core::{
    mem::size_of,
    ptr::{self, addr_of_mut},
};

use aya_ebpf::{
    helpers::bpf_ktime_get_boot_ns, macros::btf_tracepoint, programs::BtfTracePointContext,
};
use sumun_abi::{
    event::{
        kind,
        network::{
            CONN_CALLER, CONN_DEFERRED, CONN_LOST, CONN_RACY, CONN_UNDECIDED, Connection,
            FAMILY_INET, FAMILY_INET6, RESULT_UNKNOWN,
        },
        process::outcome,
    },
    policy::{Filter, MODE_FILTERED, MODE_NONE, filtered, whole},
    record::{LEVELS, RING_BULK},
    verdict::on,
};

use super::syscall::Call;
use crate::{
    kernel::{
        file::{File, read_user},
        socket::{self, End, Sock},
        task::Task,
    },
    maps::{CALLING, Calling, FAILING, FLIGHTS, REPORTED, Reported},
    policy::{self, verdict},
    run::{self, Run, scratch},
};

// include/net/tcp_states.h
const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const SYN_RECV: u32 = 3;

// include/uapi/asm-generic/errno.h and include/linux/errno.h
const EPERM: i32 = 1;
const EINTR: i32 = 4;
const EBADF: i32 = 9;
const EFAULT: i32 = 14;
const ENOTSOCK: i32 = 88;
const ECONNABORTED: i32 = 103;
const EISCONN: i32 = 106;
const EALREADY: i32 = 114;
const EINPROGRESS: i32 = 115;
const ERESTARTSYS: i32 = 512;
const ERESTART_RESTARTBLOCK: i32 = 516;

/// Every change of state of every socket with such states.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    changed(&ctx, false)
}

/// The same once more, after the first. The kernel leaves a program out while it runs on
/// the same CPU already: a packet that interrupts it changes another socket's state unseen.
/// It cannot be in both at once, and what the first has done the second finds done.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state_again(ctx: BtfTracePointContext) -> i32 {
    changed(&ctx, true)
}

#[inline(always)]
fn changed(ctx: &BtfTracePointContext, again: bool) -> i32 {
    let (old, new) = (ctx.arg::<u64>(1) as u32, ctx.arg::<u64>(2) as u32);
    if new != SYN_SENT && old != SYN_SENT && old != SYN_RECV {
        return 0;
    }
    let Some(run) = Run::begin(RING_BULK) else {
        return 0;
    };
    if let Some(index) = run::active() {
        let sock = Sock(run.number(ctx.arg(0)));
        // DCCP and SCTP have these states too; of MPTCP the paths are looked at.
        if sock.protocol() == socket::TCP {
            if new == SYN_SENT {
                sumun_connect_begins(run.level, index, sock.0, u32::from(again));
            } else {
                sumun_connect_ends(run.level, index, sock.0, old, new);
            }
        }
    }
    run.end();
    0
}

/// In the caller's context: remember who it is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_connect_begins(level: u32, index: u32, sock: u64, again: u32) -> u64 {
    let task = Task::current();
    let tid = task.tid();
    if again != 0
        && let Some(calling) = CALLING.get_ptr(&tid)
        && let Some((owner, _)) = Sock(sock).owner()
        // SAFETY: a live map value.
        && unsafe { (*calling).sock } == owner.0
    {
        return 0;
    }
    // What a socket that was at this address left behind, if anything.
    let _ = FLIGHTS.remove(&sock);
    if level >= LEVELS {
        return 0;
    }
    let Some(scratch) = scratch(level) else {
        return 0;
    };
    let Some(filter) = run::filter(index & 1) else {
        return 0;
    };
    if filter.mode[filtered::CONNECT] == MODE_NONE {
        return 0;
    }
    let Some((owner, protocol)) = Sock(sock).owner() else {
        return 0;
    };
    let run = Run { level };
    let _ = REPORTED.remove(&owner.0);
    if let Some(left) = FAILING.get_ptr(&tid) {
        unfinished(run, (index, filter), tid, left, RESULT_UNKNOWN);
    }
    let exe = if filter.mode[filtered::CONNECT] == MODE_FILTERED {
        policy::network::exe(level, index, filter, filtered::CONNECT)
    } else {
        policy::ALL
    };
    // SAFETY: the scratch is this run's; all fields are written before the map copies them.
    let entered = unsafe {
        let flight = addr_of_mut!((*scratch).flight);
        task.actor(addr_of_mut!((*flight).actor));
        addr_of_mut!((*flight).begun_ns).write(bpf_ktime_get_boot_ns());
        addr_of_mut!((*flight).owner).write(owner.0);
        addr_of_mut!((*flight).exe).write(exe);
        addr_of_mut!((*flight).generation).write(filter.generation);
        addr_of_mut!((*flight).protocol).write(protocol as u16);
        addr_of_mut!((*flight).crossed).write(0);
        FLIGHTS.insert(&sock, &*flight, 0)
    };
    // A socket of the kernel's own and one that a send connects are in no call of connect.
    let calls = !owner.is_kernel() && !Sock(sock).sends();
    if calls {
        let calling = Calling {
            sock: owner.0,
            sure: u64::from(!task.may_serve_ring()),
        };
        let _ = CALLING.insert(&tid, &calling, 0);
    }
    // What a rule that kills asks for is mostly known by now, and the process is sure to be the one that runs: when
    // the answer comes in, it may not be.
    let judged = calls && verdict::asked(index, on::filtered(filtered::CONNECT));
    if (judged || entered.is_err())
        && let Some(record) = run.record::<Connection>()
    {
        let (family, src, dst) = Sock(sock).ends();
        socket::store(record, family, src, dst);
        // SAFETY: scratch and record are this run's.
        unsafe {
            let flight = addr_of_mut!((*scratch).flight);
            addr_of_mut!((*record).actor).write((*flight).actor);
            addr_of_mut!((*record).begun_ns).write((*flight).begun_ns);
            addr_of_mut!((*record).flags).write(CONN_UNDECIDED);
            addr_of_mut!((*record).result).write(RESULT_UNKNOWN);
            addr_of_mut!((*record).protocol).write(protocol);
        }
        let killed = judge(run, index, kind::CONNECT, true) == outcome::KILLED;
        if killed {
            // The call returns to nobody.
            let _ = FLIGHTS.remove(&sock);
        }
        if killed || entered.is_err() {
            sent(run, filter, kind::CONNECT);
        }
    }
    0
}

/// A socket leaves the states of a handshake, perhaps one that a connect began.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_connect_ends(level: u32, index: u32, sock: u64, old: u32, new: u32) -> u64 {
    let Some(flight) = FLIGHTS.get_ptr_mut(&sock) else {
        return 0;
    };
    if level >= LEVELS {
        return 0;
    }
    let run = Run { level };
    let Some(record) = run.record::<Connection>() else {
        return 0;
    };
    // SAFETY: a live map value; the kernel holds the socket's lock while its state changes, so
    // nobody else looks at this entry, and it is copied before it is removed.
    let (owner, exe, generation, crossed) = unsafe {
        if new == SYN_RECV {
            // Both ends called connect at once.
            addr_of_mut!((*flight).crossed).write(1);
            return 0;
        }
        addr_of_mut!((*record).actor).write((*flight).actor);
        addr_of_mut!((*record).begun_ns).write((*flight).begun_ns);
        addr_of_mut!((*record).protocol).write(u32::from((*flight).protocol));
        (
            (*flight).owner,
            (*flight).exe,
            (*flight).generation,
            (*flight).crossed,
        )
    };
    let _ = FLIGHTS.remove(&sock);
    if old == SYN_RECV && crossed == 0 {
        // Another socket's, which was at this address before.
        return 0;
    }
    let Some(filter) = run::filter(index & 1) else {
        return 0;
    };
    if filter.mode[filtered::CONNECT] == MODE_NONE {
        return 0;
    }
    let sock = Sock(sock);
    let error = sock.error();
    let result = if new == ESTABLISHED {
        0
    } else if error > 0 {
        -error
    } else {
        RESULT_UNKNOWN
    };
    // SAFETY: the record is this run's.
    let tid = unsafe { (*record).actor.tid };
    let call = match CALLING.get_ptr(&tid) {
        // SAFETY: a live map value.
        Some(calling) => unsafe {
            if (*calling).sock == owner {
                Some((*calling).sure != 0)
            } else {
                None
            }
        },
        None => None,
    };
    let mut flags = if call.is_some() { 0 } else { CONN_DEFERRED };
    let (family, src, dst) = sock.ends();
    socket::store(record, family, src, dst);
    // SAFETY: as above.
    unsafe {
        addr_of_mut!((*record).result).write(result);
        addr_of_mut!((*record).flags).write(flags);
    }
    // A filter that came meanwhile asks for other executables.
    let exe = if generation == filter.generation {
        exe
    } else {
        policy::ALL
    };
    if filter.mode[filtered::CONNECT] == MODE_FILTERED
        && policy::network::clauses(level, index, filter, filtered::CONNECT, exe, record) == 0
    {
        return 0;
    }
    if result == RESULT_UNKNOWN && call == Some(true) {
        // SAFETY: as above; all of the record but its header is written, and
        // the header's bytes are those of an older record.
        if FAILING.insert(&tid, unsafe { &*record }, 0).is_ok() {
            return 0;
        }
        flags |= CONN_UNDECIDED;
        // SAFETY: as above.
        unsafe { addr_of_mut!((*record).flags).write(flags) };
    }
    if result != 0 && result != RESULT_UNKNOWN {
        let ino = Sock(owner).ino();
        if ino != 0 {
            let reported = Reported {
                ino,
                error: u64::from(error as u32),
            };
            let _ = REPORTED.insert(&owner, &reported, 0);
        }
    }
    send(run, (index, filter), kind::CONNECT, true);
    0
}

/// Sends the record of a connect that failed inside its call.
#[inline(always)]
fn unfinished(
    run: Run,
    (index, filter): (u32, &Filter),
    tid: u32,
    left: *const Connection,
    result: i32,
) {
    let Some(record) = run.record::<Connection>() else {
        return;
    };
    // SAFETY: the record is this run's, `left` a live map value that only this thread's calls
    // take out; the header is written by `send`.
    unsafe {
        ptr::copy_nonoverlapping(left, record, 1);
        addr_of_mut!((*record).result).write(result);
    }
    let _ = FAILING.remove(&tid);
    send(run, (index, filter), kind::CONNECT, true);
}

/// Lets the rules that kill judge, and sends the record. `sure`: the socket is the connection's own.
#[inline(always)]
fn send(run: Run, (index, filter): (u32, &Filter), kind: u16, sure: bool) {
    judge(run, index, kind, sure);
    sent(run, filter, kind);
}

/// The outcome, which the record has, too.
#[inline(always)]
fn judge(run: Run, index: u32, kind: u16, sure: bool) -> u32 {
    let asked = on::filtered(if kind == kind::CONNECT {
        filtered::CONNECT
    } else {
        filtered::ACCEPT
    });
    if verdict::asked(index, asked) {
        return verdict::sumun_judge_connection(run.level, index, asked, u32::from(sure)) as u32;
    }
    if let Some(record) = run.record::<Connection>() {
        // SAFETY: the record is this run's.
        verdict::none(unsafe { addr_of_mut!((*record).verdict) });
    }
    outcome::NONE
}

#[inline(always)]
fn sent(run: Run, filter: &Filter, kind: u16) {
    run.send(
        RING_BULK,
        kind,
        filter.generation,
        size_of::<Connection>() as u32,
    );
}

/// Errors that say nothing about this attempt: it goes on, was made
/// before, or there was none.
#[inline(always)]
fn is_no_failure(result: i32) -> bool {
    matches!(
        -result,
        EINPROGRESS | EALREADY | EISCONN | EINTR | EBADF | ENOTSOCK | EFAULT
    ) || (ERESTARTSYS..=ERESTART_RESTARTBLOCK).contains(&-result)
}

/// connect(fd, address, length) returned.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_connect(
    call: u64,
    fd: u64,
    address: u64,
    len: u64,
    result: u64,
) -> u64 {
    let call = Call(call);
    let run = Run {
        level: call.level(),
    };
    let index = call.filter();
    let result = result as i32;
    let Some(filter) = run::filter(index) else {
        return 0;
    };
    if filter.mode[filtered::CONNECT] == MODE_NONE {
        return 0;
    }
    let task = Task::current();
    let tid = task.tid();
    let sock = Sock::of(File::of(task, fd as i32));
    let shared = task.shares_files();
    let failed = result < 0 && !is_no_failure(result);
    if let Some(calling) = CALLING.get_ptr(&tid) {
        // SAFETY: a live map value.
        let (begun, sure) = unsafe { ((*calling).sock, (*calling).sure != 0) };
        let _ = CALLING.remove(&tid);
        // io_uring can have left it; where descriptors are shared, this one can lead elsewhere by now.
        let ours = begun == sock.0 || sure && shared;
        if let Some(left) = FAILING.get_ptr(&tid) {
            let result = if ours && failed {
                result
            } else {
                RESULT_UNKNOWN
            };
            unfinished(run, (index, filter), tid, left, result);
        }
        if ours {
            if failed {
                let _ = REPORTED.remove(&sock.0);
            }
            return 0;
        }
    }
    if result == 0 {
        // Disconnected: what was reported has been forgotten.
        let _ = REPORTED.remove(&sock.0);
    }
    if !failed {
        return 0;
    }
    if sock.is_lost() {
        // Not a socket, unless someone else has closed it meanwhile.
        if !shared {
            return 0;
        }
    } else {
        if !sock.is_tcp() || was_reported(sock, result) {
            return 0;
        }
    }
    let Some((family, dst)) = given(address, len) else {
        return 0;
    };
    if result == -EPERM && super::deny::network::was_refused(tid, dst.address, dst.port) {
        return 0;
    }
    let Some(record) = run.record::<Connection>() else {
        return 0;
    };
    let mut src = End::NONE;
    let mut protocol = socket::TCP;
    if !sock.is_lost() {
        (_, src, _) = sock.ends();
        protocol = sock.protocol();
    }
    socket::store(record, family, src, dst);
    let flags = if shared {
        CONN_CALLER | CONN_RACY
    } else {
        CONN_CALLER
    };
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).begun_ns).write(bpf_ktime_get_boot_ns());
        addr_of_mut!((*record).flags).write(flags);
        addr_of_mut!((*record).result).write(result);
        addr_of_mut!((*record).protocol).write(protocol);
    }
    // The caller's word filters nothing; who the caller is does.
    if filter.mode[filtered::CONNECT] == MODE_FILTERED
        && policy::network::exe(run.level, index, filter, filtered::CONNECT) == 0
    {
        return 0;
    }
    send(run, (index, filter), kind::CONNECT, true);
    0
}

/// True if this error is that of an earlier connect, which had been recorded; the
/// socket hands out each once.
#[inline(always)]
fn was_reported(sock: Sock, result: i32) -> bool {
    let Some(reported) = REPORTED.get_ptr(&sock.0) else {
        return false;
    };
    // SAFETY: a live map value.
    let (ino, error) = unsafe { ((*reported).ino, (*reported).error as i32) };
    let _ = REPORTED.remove(&sock.0);
    // An error that getsockopt(SO_ERROR) took leaves this one behind.
    ino == sock.ino() && (error == -result || result == -ECONNABORTED)
}

/// The address in the caller's memory, if it is one of IP.
#[inline(always)]
fn given(address: u64, len: u64) -> Option<(u16, End)> {
    let len = len as u32;
    if len < 16 {
        return None;
    }
    let first: u64 = read_user(address)?;
    let port = u16::from_be((first >> 16) as u16);
    match first as u16 {
        FAMILY_INET => Some((
            FAMILY_INET,
            End {
                address: [first >> 32, 0],
                port,
            },
        )),
        FAMILY_INET6 if len >= 24 => {
            let halves = [read_user(address + 8)?, read_user(address + 16)?];
            let (family, address) = socket::normal(halves);
            Some((family, End { address, port }))
        }
        _ => None,
    }
}

/// accept(listener, …) returned `fd`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_accept(call: u64, listener: u64, fd: u64) -> u64 {
    let call = Call(call);
    let run = Run {
        level: call.level(),
    };
    let index = call.filter();
    let Some(filter) = run::filter(index) else {
        return 0;
    };
    if filter.mode[filtered::ACCEPT] == MODE_NONE || (fd as i32) < 0 {
        return 0;
    }
    let task = Task::current();
    let file = File::of(task, fd as i32);
    let sock = Sock::of(file);
    let shared = task.shares_files();
    let mut flags = if shared { CONN_RACY } else { 0 };
    if !sock.is_tcp() {
        if !shared && !file.is_lost() {
            return 0;
        }
        // Gone or swapped: the listening socket tells whether it was TCP.
        let listener = Sock::of(File::of(task, listener as i32));
        if !listener.is_lost() && !listener.is_tcp() {
            return 0;
        }
        flags |= CONN_LOST;
    }
    let Some(record) = run.record::<Connection>() else {
        return 0;
    };
    let (mut family, mut own, mut peer) = (0, End::NONE, End::NONE);
    let mut protocol = socket::TCP;
    if flags & CONN_LOST == 0 {
        (family, own, peer) = sock.ends();
        protocol = sock.protocol();
    }
    socket::store(record, family, peer, own);
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).begun_ns).write(bpf_ktime_get_boot_ns());
        addr_of_mut!((*record).flags).write(flags);
        addr_of_mut!((*record).result).write(0);
        addr_of_mut!((*record).protocol).write(protocol);
    }
    if filter.mode[filtered::ACCEPT] == MODE_FILTERED && flags & CONN_LOST == 0 {
        let exe = policy::network::exe(run.level, index, filter, filtered::ACCEPT);
        if policy::network::clauses(run.level, index, filter, filtered::ACCEPT, exe, record) == 0 {
            return 0;
        }
    }
    // As in `sumun_judge_file`.
    let sure = !shared || File::of(task, fd as i32).0 == file.0;
    send(run, (index, filter), kind::ACCEPT, sure);
    0
}

/// A socket was bound, or listens: its own end as the kernel has it.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_own_end(call: u64, fd: u64, listens: u64) -> u64 {
    let task = Task::current();
    let file = File::of(task, fd as i32);
    own_end(Call(call), file, listens, task.shares_files())
}

/// The same of the socket behind an open file; `shared` if the file may be another one's by now.
#[inline(always)]
fn own_end(call: Call, file: File, listens: u64, shared: bool) -> u64 {
    let (kind, place) = if listens != 0 {
        (kind::LISTEN, whole::LISTEN)
    } else {
        (kind::BIND, whole::BIND)
    };
    let Some(handed) = call.handed(place) else {
        return 0;
    };
    let task = handed.task;
    let sock = Sock::of(file);
    let mut flags = if shared { CONN_RACY } else { 0 };
    let (mut family, mut own, mut protocol) = (0, End::NONE, 0);
    if !sock.is_lost() && matches!(sock.family(), FAMILY_INET | FAMILY_INET6) {
        // The other end is not looked at: of what is only bound it is nobody's.
        (family, own) = sock.own();
        protocol = sock.protocol();
    } else if shared && (sock.is_lost() || file.is_lost()) {
        flags |= CONN_LOST;
    } else {
        // A socket of another family, like Unix's.
        return 0;
    }
    let Some(record) = handed.run.record::<Connection>() else {
        return 0;
    };
    socket::store(record, family, End::NONE, own);
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).begun_ns).write(bpf_ktime_get_boot_ns());
        addr_of_mut!((*record).flags).write(flags);
        addr_of_mut!((*record).result).write(0);
        addr_of_mut!((*record).protocol).write(protocol);
    }
    handed.send(kind, size_of::<Connection>() as u32)
}

// include/uapi/linux/net.h
const SYS_SOCKET: u64 = 1;
const SYS_BIND: u64 = 2;
const SYS_CONNECT: u64 = 3;
const SYS_LISTEN: u64 = 4;
const SYS_ACCEPT: u64 = 5;
const SYS_ACCEPT4: u64 = 18;

/// socketcall(number, arguments) of 32-bit x86 returned. The arguments are in memory, which the
/// caller may have changed since.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_socketcall(
    call: u64,
    number: u64,
    arguments: u64,
    result: u64,
) -> u64 {
    let own_end = number == SYS_BIND || number == SYS_LISTEN;
    let told = own_end && result as i64 >= 0
        || number == SYS_SOCKET
        || number == SYS_CONNECT
        || number == SYS_ACCEPT
        || number == SYS_ACCEPT4;
    if !told {
        return 0;
    }
    let first: u64 = read_user(arguments).unwrap_or(u64::MAX);
    let fd = first & 0xffff_ffff;
    if number == SYS_SOCKET {
        let protocol = u64::from(read_user::<u32>(arguments + 8).unwrap_or(0));
        unix::sumun_socket(call, first.rotate_left(32), protocol, result, 1)
    } else if own_end {
        sumun_own_end(call, fd, u64::from(number == SYS_LISTEN))
    } else if number == SYS_CONNECT {
        let len = u64::from(read_user::<u32>(arguments + 8).unwrap_or(0));
        sumun_connect(call, fd, first >> 32, len, result)
    } else {
        sumun_accept(call, fd, result)
    }
}
