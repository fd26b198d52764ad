//! Messages to and from port 53, UDP and TCP, of sockets of this host: the programs of cgroups that see each packet that a socket
//! sends or gets.
//!
//! A question is made by the process that sends it; an answer comes in while any process runs, and is that of the one that
//! asked by the same socket. Of a TCP stream each segment is a record, and who asked is who opened the connection.
//!
//! Not seen: fragments but the first, IPv6 packets with extension headers, and servers' side of it.

use core::{
    mem::size_of,
    ptr::{self, addr_of, addr_of_mut},
};

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_get_socket_cookie, bpf_skb_load_bytes},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use sumun_abi::{
    event::{
        kind,
        network::{DNS_ANSWER, DNS_MAX, DNS_TCP, Dns, FAMILY_INET, FAMILY_INET6},
        process::Actor,
    },
    policy::whole,
    record::{LEVELS, RING_BULK, SOURCE_COPY, Span},
};

use crate::{
    kernel::{opaque, packet::load, task::Task},
    maps::{ASKERS, OF_DNS},
    run::{self, Run, scratch},
};

/// The port, as it lies in a packet.
const PORT: u16 = 53_u16.to_be();
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Flags of a segment that opens a connection: SYN without ACK.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// What a socket sends.
#[cgroup_skb(egress)]
fn dns_out(ctx: SkBuffContext) -> i32 {
    look(ctx.skb.skb, false);
    1
}

/// What a socket gets.
#[cgroup_skb(ingress)]
fn dns_in(ctx: SkBuffContext) -> i32 {
    look(ctx.skb.skb, true);
    1
}

/// Where in the packet what is.
struct Found {
    family: u16,
    protocol: u8,
    /// Where the header of the transport begins.
    transport: u32,
}

/// One load of the packet, at a constant place.
#[inline(always)]
fn at<T: Copy>(data: usize, place: usize) -> T {
    // SAFETY: callers have compared the place with the packet's end, which the verifier checks.
    unsafe { ptr::read_volatile((data + place) as *const T) }
}

/// Finds out that a packet is of no interest, with loads alone where it has no options.
#[inline(always)]
fn find(skb: *mut __sk_buff, incoming: bool) -> Option<Found> {
    // SAFETY: fields of the context that the kernel handed over.
    let (data, end) = unsafe {
        (
            ptr::read_volatile(addr_of!((*skb).data)) as usize,
            ptr::read_volatile(addr_of!((*skb).data_end)) as usize,
        )
    };
    if data + 24 > end {
        return None;
    }
    let first: u8 = at(data, 0);
    let (family, protocol, transport) = if first >> 4 == 4 {
        let fragment: u16 = at(data, 6);
        if u16::from_be(fragment) & 0x1fff != 0 {
            return None;
        }
        (FAMILY_INET, at::<u8>(data, 9), u32::from(first & 0xf) * 4)
    } else {
        (FAMILY_INET6, at::<u8>(data, 6), 40)
    };
    if protocol != UDP && protocol != TCP {
        return None;
    }
    let place = if incoming { 0 } else { 2 };
    let port = if transport == 20 {
        at::<u16>(data, 20 + place)
    } else if transport == 40 && data + 44 <= end {
        at::<u16>(data, 40 + place)
    } else {
        load::<u16>(skb, transport + place as u32)?
    };
    (port == PORT).then_some(Found {
        family,
        protocol,
        transport,
    })
}

#[inline(always)]
fn look(skb: *mut __sk_buff, incoming: bool) {
    let Some(found) = find(skb, incoming) else {
        return;
    };
    let Some(run) = Run::begin(RING_BULK) else {
        return;
    };
    tell(skb, run, found, incoming);
    run.end();
}

#[inline(always)]
fn tell(skb: *mut __sk_buff, run: Run, found: Found, incoming: bool) -> Option<()> {
    let filter = run::filter(run::active()?)?;
    if filter.whole >> whole::DNS & 1 == 0 || run.level >= LEVELS {
        return None;
    }
    let record = run.record::<Dns>()?;
    let scratch = scratch(run.level)?;
    let tcp = found.protocol == TCP;
    let (head, opens) = if tcp {
        let data_offset: u8 = load(skb, found.transport + 12)?;
        let flags: u8 = load(skb, found.transport + 13)?;
        (u32::from(data_offset >> 4) * 4, flags & (SYN | ACK) == SYN)
    } else {
        (8, true)
    };
    // SAFETY: the context that the kernel handed over; the record is this run's.
    unsafe {
        let cookie = bpf_get_socket_cookie(skb.cast());
        let actor: *mut Actor = addr_of_mut!((*record).actor);
        if !incoming && opens {
            Task::current_plain().actor(actor);
            let _ = ASKERS.insert(&cookie, &*actor, 0);
        } else if let Some(asker) = ASKERS.get_ptr(&cookie) {
            ptr::copy_nonoverlapping(asker, actor, 1);
        } else {
            clear(actor);
        }
    }
    let place = found.transport + head;
    // SAFETY: a field of the context.
    let all = unsafe { ptr::read_volatile(addr_of!((*skb).len)) };
    let left = opaque(u64::from(all.wrapping_sub(place)));
    // Nothing in it, or less than is said.
    if left == 0 || left > u64::from(u32::MAX >> 1) {
        return None;
    }
    if !run.within_budget(OF_DNS) {
        return None;
    }
    let copied = if left > DNS_MAX as u64 {
        DNS_MAX as u64
    } else {
        left
    };
    // As 5.10 understands that it is neither nothing nor too much.
    let copied = (opaque(copied - 1) & (DNS_MAX as u64 - 1)) + 1;
    let (server, len) = match (found.family, incoming) {
        (FAMILY_INET, false) => (16, 4),
        (FAMILY_INET, true) => (12, 4),
        (_, false) => (24, 16),
        (_, true) => (8, 16),
    };
    let mut flags = if incoming { DNS_ANSWER } else { 0 };
    if tcp {
        flags |= DNS_TCP;
    }
    let span = Span {
        offset: size_of::<Dns>() as u16,
        len: copied as u16,
        source: SOURCE_COPY,
        flaws: 0,
        pad: 0,
    };
    // SAFETY: the record is this run's, and all fields are written; the tail is far within the scratch's record.
    let failed = unsafe {
        let address = addr_of_mut!((*record).server);
        address.cast::<[u64; 2]>().write([0, 0]);
        let read = if len == 4 {
            bpf_skb_load_bytes(skb.cast(), server, address.cast(), 4)
        } else {
            bpf_skb_load_bytes(skb.cast(), server, address.cast(), 16)
        };
        addr_of_mut!((*record).family).write(found.family);
        addr_of_mut!((*record).flags).write(flags);
        addr_of_mut!((*record).len).write(left as u32);
        addr_of_mut!((*record).message).write(span);
        let tail = addr_of_mut!((*scratch).record)
            .cast::<u8>()
            .add(size_of::<Dns>());
        read | bpf_skb_load_bytes(skb.cast(), place, tail.cast(), copied as u32)
    };
    if failed == 0 {
        run.send(
            RING_BULK,
            kind::DNS,
            filter.generation,
            (size_of::<Dns>() as u64 + copied) as u32,
        );
    }
    Some(())
}

/// Nobody, in words of eight, where the compiler would call a function.
#[inline(always)]
fn clear(actor: *mut Actor) {
    let mut word = 0;
    while word < size_of::<Actor>() / 8 {
        // SAFETY: callers pass the actor inside their record, which is made of such words.
        unsafe { actor.cast::<u64>().add(word).write_volatile(0) };
        word += 1;
    }
}
