//! Whom processes talk to by UDP: the programs of cgroups that see a socket connected, and each send to an address that the
//! socket is not connected to. They run in the sender's context, for native, 32-bit and io_uring's calls and for the kernel's own
//! sockets, and get the kernel's copy of the address.
//!
//! What comes after is not looked at: whether the datagram was sent, and those of a connected socket.

use core::{
    mem::size_of,
    ptr::{self, addr_of, addr_of_mut},
};

use aya_ebpf::{
    bindings::bpf_sock_addr, helpers::bpf_ktime_get_boot_ns, macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use sumun_abi::{
    event::{
        kind,
        network::{CONN_COPY, CONN_KERNEL, Datagram, FAMILY_INET, FLOW_NS, RESULT_UNKNOWN},
    },
    policy::{MODE_FILTERED, MODE_NONE, filtered},
    record::{LEVELS, RING_BULK},
};

use crate::{
    kernel::{
        socket::{self, End, Sock},
        task::Task,
    },
    maps::{FLOWS, Flow, FlowKey, OF_UDP},
    policy,
    run::{self, Run},
};

/// `IPPROTO_UDP`
const UDP: u32 = 17;

/// connect() of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
fn udp_connect4(ctx: SockAddrContext) -> i32 {
    four(ctx.sock_addr)
}

/// connect() of an IPv6 socket.
#[cgroup_sock_addr(connect6)]
fn udp_connect6(ctx: SockAddrContext) -> i32 {
    six(ctx.sock_addr)
}

/// A datagram is sent to an IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
fn udp_send4(ctx: SockAddrContext) -> i32 {
    four(ctx.sock_addr)
}

/// A datagram is sent to an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
fn udp_send6(ctx: SockAddrContext) -> i32 {
    six(ctx.sock_addr)
}

/// A field of the context, which the verifier wants to see loaded by itself.
macro_rules! field {
    ($ctx:ident.$($field:tt)+) => {
        // SAFETY: a field of the context that the kernel handed over.
        unsafe { ptr::read_volatile(addr_of!((*$ctx).$($field)+)) }
    };
}

/// 1: let it pass.
#[inline(always)]
fn four(ctx: *mut bpf_sock_addr) -> i32 {
    if field!(ctx.protocol) != UDP {
        return 1;
    }
    let Some(run) = Run::begin(RING_BULK) else {
        return 1;
    };
    if let Some(index) = run::active() {
        let sock = field!(ctx.__bindgen_anon_1.sk) as u64;
        let address = u64::from(field!(ctx.user_ip4));
        let what = what(run, index, FAMILY_INET, field!(ctx.user_port));
        sumun_udp(what, run.number(sock), address, 0);
    }
    run.end();
    1
}

/// Likewise.
#[inline(always)]
fn six(ctx: *mut bpf_sock_addr) -> i32 {
    if field!(ctx.protocol) != UDP {
        return 1;
    }
    let Some(run) = Run::begin(RING_BULK) else {
        return 1;
    };
    if let Some(index) = run::active() {
        let sock = field!(ctx.__bindgen_anon_1.sk) as u64;
        let half = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let halves = [
            half(field!(ctx.user_ip6[0]), field!(ctx.user_ip6[1])),
            half(field!(ctx.user_ip6[2]), field!(ctx.user_ip6[3])),
        ];
        let (family, [low, high]) = socket::normal(halves);
        let what = what(run, index, family, field!(ctx.user_port));
        sumun_udp(what, run.number(sock), low, high);
    }
    run.end();
    1
}

/// Level, filter, family and port, in one word.
#[inline(always)]
fn what(run: Run, index: u32, family: u16, port: u32) -> u64 {
    let port = u16::from_be(port as u16);
    u64::from(run.level)
        | u64::from(index & 1) << 8
        | u64::from(family) << 16
        | u64::from(port) << 32
}

/// A process connects or sends to this address.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_udp(what: u64, sock: u64, low: u64, high: u64) -> u64 {
    let (level, index) = (what as u32 & 0xff, (what >> 8) as u32 & 1);
    let (family, port) = ((what >> 16) as u16, (what >> 32) as u16);
    if level >= LEVELS {
        return 0;
    }
    let run = Run { level };
    let Some(filter) = run::filter(index) else {
        return 0;
    };
    if filter.mode[filtered::CONNECT_UDP] == MODE_NONE {
        return 0;
    }
    let task = Task::current_plain();
    let key = FlowKey {
        address: [low, high],
        start_ns: task.start(),
        image: task.image(),
        pid: task.pid(),
        port,
        family,
    };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let mut folded = 0;
    if let Some(flow) = FLOWS.get_ptr_mut(&key) {
        // SAFETY: a live map value; one that is recycled meanwhile counts one too many.
        unsafe {
            if (*flow).generation == filter.generation
                && now.wrapping_sub((*flow).judged_ns) < FLOW_NS
            {
                run::add(addr_of_mut!((*flow).folded), 1);
                return 0;
            }
            if (*flow).told != 0 {
                folded = (*flow).folded;
            }
        }
    }
    let Some(record) = run.record::<Datagram>() else {
        return 0;
    };
    let dst = End {
        address: [low, high],
        port,
    };
    let flags = if Sock(sock).is_kernel() {
        CONN_COPY | CONN_KERNEL
    } else {
        CONN_COPY
    };
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        let connection = addr_of_mut!((*record).connection);
        socket::store(connection, family, End::NONE, dst);
        task.actor(addr_of_mut!((*connection).actor));
        addr_of_mut!((*connection).begun_ns).write(now);
        addr_of_mut!((*connection).flags).write(flags);
        addr_of_mut!((*connection).result).write(RESULT_UNKNOWN);
        addr_of_mut!((*connection).protocol).write(UDP);
        policy::verdict::none(addr_of_mut!((*connection).verdict));
        addr_of_mut!((*record).folded).write(folded);
        let wanted = if filter.mode[filtered::CONNECT_UDP] == MODE_FILTERED {
            let exe = policy::network::exe_plain(level, index, filter, filtered::CONNECT_UDP);
            policy::network::clauses(level, index, filter, filtered::CONNECT_UDP, exe, connection)
                != 0
        } else {
            true
        };
        if wanted && !run.within_budget(OF_UDP) {
            return 0;
        }
        let flow = Flow {
            judged_ns: now,
            folded: 0,
            generation: filter.generation,
            told: u32::from(wanted),
        };
        let _ = FLOWS.insert(&key, &flow, 0);
        if !wanted {
            return 0;
        }
    }
    run.send(
        RING_BULK,
        kind::CONNECT_UDP,
        filter.generation,
        size_of::<Datagram>() as u32,
    );
    0
}
