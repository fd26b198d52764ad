//! Connects of Unix sockets, and sockets that few programs make.
//!
//! Not seen: what io_uring makes, what it connects where its functions take no programs (`ring`), and datagrams of Unix sockets that are not connected.

use core::{mem::size_of, ptr::addr_of_mut};

use sumun_abi::{
    event::{
        kind,
        network::{
            CONN_CALLER, CONN_LOST, CONN_RACY, FAMILY_INET, FAMILY_INET6, Socket, UnixConnect,
        },
    },
    policy::{MODE_FILTERED, MODE_NONE, action, filtered, whole},
    record::{FLAW_LOST, FLAW_RACY, RING_BULK},
    slot,
};

use crate::{
    hooks::syscall::Call,
    kernel::{
        field,
        file::{File, read_user},
        get,
        path::{Tail, Text},
        socket::Sock,
        task::Task,
    },
    policy,
    run::{self, Run},
};

/// `AF_UNIX`
pub(super) const UNIX: u16 = 1;
/// `AF_NETLINK`
const NETLINK: u64 = 16;
/// `SOCK_RAW`; the same on x86 and Arm.
const RAW: u64 = 3;
/// `SOCK_TYPE_MASK`, include/linux/net.h: above are flags.
const TYPE: u64 = 0xf;

/// connect as a number of socketcall, include/uapi/linux/net.h.
const SYS_CONNECT: u64 = 3;

// include/uapi/asm-generic/errno-base.h
const EPERM: i32 = 1;
const EACCES: i32 = 13;

/// connect(fd, address, length) returned, if it was a Unix socket's. Of those that failed the ones that were not permitted. Of
/// socketcall, `fd` is its number and `address` where the arguments are: a function between would be too much for the stack of 5.10.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_unix(
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
    let Some(filter) = run::filter(index) else {
        return 0;
    };
    let mode = filter.mode[filtered::CONNECT_UNIX];
    let result = result as i32;
    if mode == MODE_NONE || result != 0 && result != -EPERM && result != -EACCES {
        return 0;
    }
    let (mut fd, mut address, mut len) = (fd, address, len);
    if call.action() == action::SOCKETCALL {
        if fd != SYS_CONNECT {
            return 0;
        }
        len = u64::from(read_user::<u32>(address + 8).unwrap_or(0));
        let first: u64 = read_user(address).unwrap_or(u64::MAX);
        fd = first & 0xffff_ffff;
        address = first >> 32;
    }
    let task = Task::current();
    let shared = task.shares_files();
    let sock = Sock::of(File::of(task, fd as i32));
    let mut flags = if shared { CONN_RACY } else { 0 };
    let (mut kind, mut peer) = (0, 0);
    if sock.is_lost() {
        // Not a socket, unless someone else has closed it meanwhile.
        if !shared || len < 3 || read_user::<u16>(address) != Some(UNIX) {
            return 0;
        }
        flags |= CONN_LOST;
    } else {
        if sock.family() != UNIX {
            return 0;
        }
        kind = get(sock.0, slot::SOCK_TYPE);
        peer = get(sock.0, slot::UNIX_PEER);
    }
    told(run, index, (kind, peer), (flags, result, address))
}

/// A Unix socket was connected, by its own word.
#[inline(always)]
pub(super) fn connected(run: Run, index: u32, sock: Sock) -> u64 {
    let peer = get(sock.0, slot::UNIX_PEER);
    told(run, index, (get(sock.0, slot::SOCK_TYPE), peer), (0, 0, 0))
}

/// Records a connect: type of the socket and the other end, flags, result, and where the caller's address is.
#[inline(always)]
fn told(
    run: Run,
    index: u32,
    (kind, peer): (u16, u64),
    (mut flags, result, address): (u16, i32, u64),
) -> u64 {
    let Some(filter) = run::filter(index) else {
        return 0;
    };
    let mode = filter.mode[filtered::CONNECT_UNIX];
    if mode == MODE_NONE {
        return 0;
    }
    let task = Task::current();
    let of_caller = result != 0 || flags & CONN_LOST != 0;
    if of_caller {
        flags |= CONN_CALLER;
    }
    let (dentry, mnt) = if of_caller {
        (0, 0)
    } else {
        (get(peer, slot::UNIX_DENTRY), get(peer, slot::UNIX_MNT))
    };
    if mode == MODE_FILTERED
        && policy::file::socket_clauses(run.level, index, filter, dentry, mnt) == 0
    {
        return 0;
    }
    let Some(record) = run.record::<UnixConnect>() else {
        return 0;
    };
    let mut tail = Tail::after::<UnixConnect>(run.level);
    let racy = if flags & CONN_RACY != 0 { FLAW_RACY } else { 0 };
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).flags).write(flags);
        addr_of_mut!((*record).kind).write(kind);
        addr_of_mut!((*record).result).write(result);
        let place = addr_of_mut!((*record).path);
        if of_caller {
            // After the family.
            tail.user_string(address + 2).store(place, racy);
        } else if dentry != 0 {
            tail.path(dentry, mnt).store(place, racy);
        } else {
            // It has a name without a file, or has been closed since: then what it was bound to under that name is gone.
            let bound: u64 = get(peer, slot::UNIX_ADDRESS);
            let len: u32 = get(bound, slot::UNIX_ADDRESS_LEN);
            if bound == 0 || len <= 2 {
                Text::NONE.store(place, FLAW_LOST | racy);
            } else {
                let name = field(bound, slot::UNIX_ADDRESS_NAME) + 2;
                tail.kernel_bytes(name, u64::from(len - 2))
                    .store(place, racy);
            }
        }
    }
    run.send(RING_BULK, kind::CONNECT_UNIX, filter.generation, tail.end());
    0
}

/// True for the sockets of ordinary work: Unix's, netlink's, and IP's but the raw ones.
#[inline(always)]
pub(crate) fn is_ordinary(family: u64, kind: u64) -> bool {
    let family = family & 0xffff_ffff;
    family == u64::from(UNIX)
        || family == NETLINK
        || (family == u64::from(FAMILY_INET) || family == u64::from(FAMILY_INET6))
            && kind & TYPE != RAW
}

/// socket(family, type, protocol) returned. `what` is the family above the type. With `memory` the arguments were in the caller's
/// memory: where the socket is there, it tells.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_socket(
    call: u64,
    what: u64,
    protocol: u64,
    result: u64,
    memory: u64,
) -> u64 {
    let call = Call(call);
    let run = Run {
        level: call.level(),
    };
    let Some(filter) = run::filter(call.filter()) else {
        return 0;
    };
    if filter.whole >> whole::SOCKET & 1 == 0 {
        return 0;
    }
    let task = Task::current();
    let result = result as i32;
    let (mut family, mut kind) = (what >> 32, what & TYPE);
    let mut flags = 0;
    if memory != 0 {
        let sock = if result >= 0 {
            Sock::of(File::of(task, result))
        } else {
            Sock(0)
        };
        if sock.is_lost() {
            flags |= CONN_CALLER;
        } else {
            family = u64::from(sock.family());
            kind = u64::from(get::<u16>(sock.0, slot::SOCK_TYPE));
        }
        if task.shares_files() {
            flags |= CONN_RACY;
        }
        if is_ordinary(family, kind) {
            return 0;
        }
    }
    let Some(record) = run.record::<Socket>() else {
        return 0;
    };
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).flags).write(u32::from(flags));
        addr_of_mut!((*record).result).write(if result < 0 { result } else { 0 });
        addr_of_mut!((*record).family).write(family as u32);
        addr_of_mut!((*record).kind).write(kind as u32);
        addr_of_mut!((*record).protocol).write(protocol as u32);
        addr_of_mut!((*record).pad).write(0);
    }
    run.send(
        RING_BULK,
        kind::SOCKET,
        filter.generation,
        size_of::<Socket>() as u32,
    );
    0
}
