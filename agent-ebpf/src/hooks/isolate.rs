//! Keeps all packets of a host's sockets back, but those that its list lets pass: the programs of cgroups that see each packet
//! which a socket sends or gets, so that connections that exist stop, too.
//!
//! Loopback passes in every network namespace (its device has the number 1 in each), and what neighbours need to find each other.
//! What cannot be read does not pass: here, unlike elsewhere, a doubt decides for keeping back.
//!
//! Not seen, so neither kept back: packets that are forwarded, those of packet sockets and XDP, and what has no socket.

use core::ptr::{self, addr_of};

use aya_ebpf::{
    bindings::__sk_buff, helpers::bpf_ktime_get_boot_ns, macros::cgroup_skb,
    programs::SkBuffContext,
};
use sumun_abi::{
    event::network::{FAMILY_INET, FAMILY_INET6},
    isolate::{ALLOWED_MAX, ANY_PORT, Allowed, CANARY, Isolation, STATE, canary, dropped},
};

use super::deny::{ALLOW, DENY};
use crate::{
    kernel::packet::load,
    maps::{DROPPED, ISOLATING, ISOLATION, LEASE},
};

/// include/net/flow.h: `LOOPBACK_IFINDEX`.
const LOOPBACK: u32 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
/// Options for each hop, which messages about multicast groups have.
const HOP_BY_HOP: u8 = 0;

/// What a socket sends.
#[cgroup_skb(egress)]
fn isolate_out(ctx: SkBuffContext) -> i32 {
    asked(ctx.skb.skb, false)
}

/// What a socket gets.
#[cgroup_skb(ingress)]
fn isolate_in(ctx: SkBuffContext) -> i32 {
    asked(ctx.skb.skb, true)
}

#[inline(always)]
fn asked(skb: *mut __sk_buff, incoming: bool) -> i32 {
    let (Some(state), Some(test)) = (ISOLATING.get_ptr(STATE), ISOLATING.get_ptr(CANARY)) else {
        return ALLOW;
    };
    // SAFETY: live map values; aligned 64-bit reads.
    let (state, test) = unsafe { (state.read_volatile(), test.read_volatile()) };
    if test != 0 && is_canary(skb, incoming, test) {
        return DENY;
    }
    if state == 0 {
        return ALLOW;
    }
    let Some(plan) = ISOLATION.get_ptr((state as u32 & 1) ^ 1) else {
        return ALLOW;
    };
    // SAFETY: a field of a live map value.
    let until = unsafe { addr_of!((*plan).until_ns).read_volatile() };
    let lease = match LEASE.get_ptr(0) {
        // SAFETY: a live map value.
        Some(lease) => unsafe { lease.read_volatile() },
        None => 0,
    };
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if now >= lease || (until != 0 && now >= until) {
        return ALLOW;
    }
    if passes(skb, incoming, plan) {
        return ALLOW;
    }
    let way = if incoming { dropped::IN } else { dropped::OUT };
    if let Some(count) = DROPPED.get_ptr_mut(way) {
        // SAFETY: this CPU's value. A packet of another kind in between may be left out of the count, never out of the judgement.
        unsafe { *count += 1 };
    }
    DENY
}

#[inline(always)]
fn passes(skb: *mut __sk_buff, incoming: bool, plan: *const Isolation) -> bool {
    // SAFETY: a field of the context.
    if unsafe { ptr::read_volatile(addr_of!((*skb).ifindex)) } == LOOPBACK {
        return true;
    }
    match Packet::read(skb, incoming) {
        Some(packet) => packet.is_of_neighbours || is_listed(&packet, plan),
        None => false,
    }
}

/// A datagram between these ports, IPv4 without options.
#[inline(always)]
fn is_canary(skb: *mut __sk_buff, incoming: bool, test: u64) -> bool {
    let (Some(protocol), Some(source), Some(destination)) = (
        load::<u8>(skb, 9),
        load::<u16>(skb, 20),
        load::<u16>(skb, 22),
    ) else {
        return false;
    };
    protocol == UDP && canary(incoming, u16::from_be(source), u16::from_be(destination)) == test
}

/// What the list asks about.
struct Packet {
    /// Of the other end.
    address: [u64; 2],
    family: u16,
    protocol: u8,
    /// The ports could be read.
    has_ports: bool,
    /// Of the other end.
    port: u16,
    /// Of this end.
    local: u16,
    /// It is one by which neighbours find each other.
    is_of_neighbours: bool,
}

impl Packet {
    #[inline(always)]
    fn read(skb: *mut __sk_buff, incoming: bool) -> Option<Self> {
        let first: u8 = load(skb, 0)?;
        let mut is_of_neighbours = false;
        let mut has_ports = true;
        let (family, address, protocol, transport) = if first >> 4 == 4 {
            let fragment: u16 = load(skb, 6)?;
            has_ports = u16::from_be(fragment) & 0x1fff == 0;
            let address: u32 = load(skb, if incoming { 12 } else { 16 })?;
            (
                FAMILY_INET,
                [u64::from(address), 0],
                load::<u8>(skb, 9)?,
                u32::from(first & 0xf) * 4,
            )
        } else {
            let place = if incoming { 8 } else { 24 };
            let address = [load(skb, place)?, load(skb, place + 8)?];
            let next: u8 = load(skb, 6)?;
            let hops: u8 = load(skb, 7)?;
            let (protocol, transport) = if next == HOP_BY_HOP {
                let more: u8 = load(skb, 41)?;
                (load::<u8>(skb, 40)?, 48 + u32::from(more) * 8)
            } else {
                (next, 40)
            };
            if protocol == ICMP6 {
                let kind: u8 = load(skb, transport)?;
                // Of neighbour discovery no router has passed it on, and none will pass on what tells of groups
                // (RFC 4861, 2710, 3810).
                is_of_neighbours = match kind {
                    133..=137 => hops == 255,
                    // Who sends it chooses how far it comes: only what is of the link.
                    130..=132 | 143 => hops == 1 && (!incoming || is_of_link(address[0])),
                    _ => false,
                };
            }
            (FAMILY_INET6, address, protocol, transport)
        };
        has_ports &= protocol == TCP || protocol == UDP;
        let (mut source, mut destination) = (0, 0);
        if has_ports {
            source = u16::from_be(load(skb, transport)?);
            destination = u16::from_be(load(skb, transport + 2)?);
        }
        let (port, local) = if incoming {
            (source, destination)
        } else {
            (destination, source)
        };
        Some(Self {
            address,
            family,
            protocol,
            has_ports,
            port,
            local,
            is_of_neighbours,
        })
    }

    #[inline(always)]
    fn is(&self, allowed: *const Allowed) -> bool {
        // SAFETY: callers pass an entry of a live map value; the fields are plain integers. A plan is written while it
        // is not in force.
        let (address, mask, family, protocol, flags) = unsafe {
            (
                addr_of!((*allowed).address).read(),
                addr_of!((*allowed).mask).read(),
                addr_of!((*allowed).family).read(),
                addr_of!((*allowed).protocol).read(),
                addr_of!((*allowed).flags).read(),
            )
        };
        if family != self.family || (protocol != 0 && protocol != u16::from(self.protocol)) {
            return false;
        }
        let differs =
            (self.address[0] & mask[0]) ^ address[0] | (self.address[1] & mask[1]) ^ address[1];
        if differs != 0 {
            return false;
        }
        if flags & ANY_PORT != 0 {
            return true;
        }
        // SAFETY: as above.
        let (first, last, local_first, local_last) = unsafe {
            (
                addr_of!((*allowed).port_first).read(),
                addr_of!((*allowed).port_last).read(),
                addr_of!((*allowed).local_first).read(),
                addr_of!((*allowed).local_last).read(),
            )
        };
        self.has_ports
            && self.port >= first
            && self.port <= last
            && self.local >= local_first
            && self.local <= local_last
    }
}

/// An address of `fe80::/10`, by its first half as it lies in the packet.
#[inline(always)]
fn is_of_link(half: u64) -> bool {
    half.to_be() >> 54 == 0xfe80 >> 6
}

/// Whether the list has the packet.
#[inline(always)]
fn is_listed(packet: &Packet, plan: *const Isolation) -> bool {
    // SAFETY: a field of a live map value.
    let count = unsafe { addr_of!((*plan).count).read() };
    let mut place = 0;
    while place < ALLOWED_MAX {
        if place as u32 >= count {
            return false;
        }
        // SAFETY: below the length of the list.
        if packet.is(unsafe { addr_of!((*plan).list[place]) }) {
            return true;
        }
        place += 1;
    }
    false
}
