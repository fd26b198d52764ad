//! Connects, binds and datagrams, denied by programs on the root of all cgroups: whatever asks for them, by a
//! call, io_uring, a send that connects (TCP Fast Open), or MPTCP.
//!
//! A datagram to an address is a connect, whether the socket is connected first or not. Sockets of the kernel's own are
//! not asked about.

use core::{
    mem::size_of,
    ptr::{addr_of, addr_of_mut},
};

use aya_ebpf::{
    bindings::bpf_sock_addr,
    macros::{cgroup_sock_addr, lsm},
    programs::{LsmContext, SockAddrContext},
};
use sumun_abi::{
    event::{
        deny::Asked,
        kind,
        network::{FAMILY_INET, FAMILY_INET6},
        process::outcome,
    },
    record::LEVELS,
    slot,
    verdict::{denied, on},
};

use super::{ALLOW, DENY, answer, begin, is_canary, record, told};
use crate::{
    kernel::{
        get, read,
        socket::{self, Sock},
        task::Task,
    },
    maps::REFUSED,
    policy::deny,
    run::Run,
};

macro_rules! programs {
    ($($program:ident, $attach:ident, $place:expr, $six:expr;)*) => {$(
        #[doc = concat!("At `", stringify!($attach), "`.")]
        #[cgroup_sock_addr($attach)]
        fn $program(ctx: SockAddrContext) -> i32 {
            asked(ctx.sock_addr, $place, $six)
        }
    )*};
}

programs! {
    deny_connect4, connect4, denied::CONNECT, false;
    deny_connect6, connect6, denied::CONNECT, true;
    deny_bind4, bind4, denied::BIND, false;
    deny_bind6, bind6, denied::BIND, true;
    deny_sendmsg4, sendmsg4, denied::CONNECT, false;
    deny_sendmsg6, sendmsg6, denied::CONNECT, true;
}

#[inline(always)]
fn asked(ctx: *mut bpf_sock_addr, place: usize, six: bool) -> i32 {
    if is_canary(place) {
        return DENY;
    }
    let Some((run, index)) = begin(place) else {
        return ALLOW;
    };
    let answer = judge(ctx, run, index, place, six);
    run.end();
    answer
}

#[inline(always)]
fn judge(ctx: *mut bpf_sock_addr, run: Run, index: u32, place: usize, six: bool) -> i32 {
    let kind = if place == denied::BIND {
        kind::BIND
    } else {
        kind::CONNECT
    };
    let Some(record) = record(run, kind) else {
        return ALLOW;
    };
    // SAFETY: the program's own context, of which the verifier allows single words; volatile, so that they stay single.
    let (halves, port, sk) = unsafe {
        let word = |place: *const u32| u64::from(place.read_volatile());
        let six = if six {
            let words = addr_of!((*ctx).user_ip6).cast::<u32>();
            [
                word(words) | word(words.add(1)) << 32,
                word(words.add(2)) | word(words.add(3)) << 32,
            ]
        } else {
            [word(addr_of!((*ctx).user_ip4)), 0]
        };
        let sk: u64 = addr_of!((*ctx).__bindgen_anon_1.sk)
            .cast::<u64>()
            .read_volatile();
        (six, word(addr_of!((*ctx).user_port)), sk)
    };
    let (family, address) = if six {
        socket::normal(halves)
    } else {
        (FAMILY_INET, halves)
    };
    // SAFETY: the record is this run's.
    unsafe {
        addr_of_mut!((*record).dst)
            .cast::<[u64; 2]>()
            .write(address);
        addr_of_mut!((*record).dst_port).write(u16::from_be(port as u16));
        addr_of_mut!((*record).family).write(family);
    }
    let outcome = sumun_asked_network(run.level, index, place as u32, run.number(sk)) as u32;
    if told(run, index, place, outcome, size_of::<Asked>() as u32) {
        DENY
    } else {
        ALLOW
    }
}

/// A socket is about to be connected: socket, address, its length. Where the root of all cgroups is out of reach; a send that
/// connects does not pass here, nor does a datagram.
#[lsm(hook = "socket_connect")]
fn deny_lsm_connect(ctx: LsmContext) -> i32 {
    by_address(&ctx, denied::CONNECT)
}

/// A socket is about to be bound, likewise.
#[lsm(hook = "socket_bind")]
fn deny_lsm_bind(ctx: LsmContext) -> i32 {
    by_address(&ctx, denied::BIND)
}

#[inline(always)]
fn by_address(ctx: &LsmContext, place: usize) -> i32 {
    if is_canary(place) {
        return answer(true);
    }
    let Some((run, index)) = begin(place) else {
        return 0;
    };
    let sock: u64 = get(run.number(ctx.arg(0)), slot::SOCKET_SK);
    let address = run.number(ctx.arg(1));
    let len: u32 = ctx.arg(2);
    let denied = addressed(run, index, place, (sock, address, len));
    run.end();
    answer(denied)
}

#[inline(always)]
fn addressed(run: Run, index: u32, place: usize, (sock, address, len): (u64, u64, u32)) -> bool {
    let kind = if place == denied::BIND {
        kind::BIND
    } else {
        kind::CONNECT
    };
    let first: u64 = read(address);
    // A bind of old takes no family for IPv4, if it is to any address.
    let unspecified = place == denied::BIND
        && first & 0xffff_ffff_0000_ffff == 0
        && Sock(sock).family() == FAMILY_INET;
    // `struct sockaddr_in` and `sockaddr_in6`: family, port, and the address behind 0 or 4 bytes more.
    let (family, halves) = if (first as u16 == FAMILY_INET || unspecified) && len >= 16 {
        (FAMILY_INET, [first >> 32, 0])
    } else if first as u16 == FAMILY_INET6 && len >= 24 {
        socket::normal([read(address + 8), read(address + 16)])
    } else {
        return false;
    };
    let Some(record) = record(run, kind) else {
        return false;
    };
    // SAFETY: the record is this run's.
    unsafe {
        addr_of_mut!((*record).dst).cast::<[u64; 2]>().write(halves);
        addr_of_mut!((*record).dst_port).write(u16::from_be((first >> 16) as u16));
        addr_of_mut!((*record).family).write(family);
    }
    let outcome = sumun_asked_network(run.level, index, place as u32, sock) as u32;
    told(run, index, place, outcome, size_of::<Asked>() as u32)
}

/// Judges the connection of the record, of this socket; the outcome.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_asked_network(level: u32, index: u32, place: u32, sock: u64) -> u64 {
    let none = u64::from(outcome::NONE);
    if level >= LEVELS {
        return none;
    }
    let Some(record) = (Run { level }).record::<Asked>() else {
        return none;
    };
    let sock = Sock(sock);
    let protocol = sock.protocol();
    let (owner, protocol) = if protocol == socket::TCP {
        // A further path of a connection that exists: nobody asked for it.
        let Some(owned) = sock.owner() else {
            return none;
        };
        owned
    } else {
        (sock, protocol)
    };
    if owner.is_kernel() {
        return none;
    }
    // SAFETY: the record is this run's.
    unsafe { addr_of_mut!((*record).protocol).write(protocol) };
    let kind = if place == denied::BIND as u32 {
        on::denied(denied::BIND)
    } else {
        on::denied(denied::CONNECT)
    };
    let outcome = deny::sumun_ask_network(level, index, kind);
    // Its call fails with nothing else to show for it; of a send no record follows.
    if outcome as u32 == outcome::DENIED && place == denied::CONNECT as u32 && !sock.sends() {
        let task = Task::current();
        // SAFETY: the record is this run's.
        let of = unsafe { refused(record) };
        let _ = REFUSED.insert(&task.tid(), &of, 0);
    }
    outcome
}

/// What the call that was denied wanted, as a number; as the event of its failure would say it.
///
/// # Safety
/// The record is the run's.
#[inline(always)]
unsafe fn refused(record: *const Asked) -> u64 {
    // SAFETY: as the caller says.
    unsafe {
        let address = addr_of!((*record).dst).cast::<[u64; 2]>().read();
        of(address, addr_of!((*record).dst_port).read())
    }
}

#[inline(always)]
fn of(address: [u64; 2], port: u16) -> u64 {
    address[0].rotate_left(32) ^ address[1] ^ u64::from(port) << 48 | 1
}

/// True if this connect, which failed with EPERM, was denied here and is on record.
#[inline(always)]
pub(in crate::hooks) fn was_refused(tid: u32, address: [u64; 2], port: u16) -> bool {
    let Some(refused) = REFUSED.get_ptr(&tid) else {
        return false;
    };
    // SAFETY: a live map value.
    let same = unsafe { refused.read_volatile() } == of(address, port);
    let _ = REFUSED.remove(&tid);
    same
}

const _: () = assert!(FAMILY_INET != FAMILY_INET6);
