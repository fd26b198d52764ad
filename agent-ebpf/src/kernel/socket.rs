//! `struct sock` of TCP and MPTCP: both ends, errors, and the socket that a process knows.

use core::ptr::addr_of_mut;

use sumun_abi::{
    event::network::{Connection, FAMILY_INET, FAMILY_INET6},
    slot,
};

use super::{bit, field, file::File, get, read};

/// `SOCK_STREAM`; the same on x86 and Arm.
const SOCK_STREAM: u16 = 1;
/// `IPPROTO_TCP`
pub(crate) const TCP: u32 = 6;
/// `IPPROTO_MPTCP`
pub(crate) const MPTCP: u32 = 262;

/// Address of a `struct sock`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sock(pub(crate) u64);

/// An address and a port, IPv4 addresses in the first four bytes.
#[derive(Clone, Copy)]
pub(crate) struct End {
    /// First and second half of the address, as they lie in memory.
    pub(crate) address: [u64; 2],
    /// In host order.
    pub(crate) port: u16,
}

impl End {
    /// No address, port 0.
    pub(crate) const NONE: End = End {
        address: [0; 2],
        port: 0,
    };
}

/// An IPv6 address: its halves, or the IPv4 address that it is the mapped form of
/// (`::ffff:a.b.c.d`), or that no address at all stands for beside one.
#[inline(always)]
pub(crate) fn normal(halves: [u64; 2]) -> (u16, [u64; 2]) {
    // As little-endian numbers: bytes 8 to 11 are 00 00 ff ff.
    if halves[0] == 0 && halves[1] as u32 == 0xffff_0000 {
        (FAMILY_INET, [halves[1] >> 32, 0])
    } else {
        (FAMILY_INET6, halves)
    }
}

impl Sock {
    /// The socket behind an open file; 0 if it is none.
    #[inline(always)]
    pub(crate) fn of(file: File) -> Sock {
        if file.is_lost() || !file.is_socket() {
            return Sock(0);
        }
        Sock(get(get(file.0, slot::FILE_PRIVATE), slot::SOCKET_SK))
    }

    #[inline(always)]
    pub(crate) fn is_lost(self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    pub(crate) fn family(self) -> u16 {
        get(self.0, slot::SOCK_FAMILY)
    }

    #[inline(always)]
    pub(crate) fn protocol(self) -> u32 {
        u32::from(get::<u16>(self.0, slot::SOCK_PROTOCOL))
    }

    /// True for TCP and MPTCP over IP.
    #[inline(always)]
    pub(crate) fn is_tcp(self) -> bool {
        let family = self.family();
        let protocol = self.protocol();
        (family == FAMILY_INET || family == FAMILY_INET6)
            && (protocol == TCP || protocol == MPTCP)
            && get::<u16>(self.0, slot::SOCK_TYPE) == SOCK_STREAM
    }

    /// The error that ended a connection, positive; 0 = none.
    #[inline(always)]
    pub(crate) fn error(self) -> i32 {
        get(self.0, slot::SOCK_ERR)
    }

    /// The socket that the process holds, and its protocol: itself, or the MPTCP
    /// socket of which this is the first path. `None` for a further path of a
    /// connection that exists: nobody called connect for it.
    #[inline(always)]
    pub(crate) fn owner(self) -> Option<(Sock, u32)> {
        if !bit(self.0, slot::TCP_IS_MPTCP) {
            return Some((self, TCP));
        }
        let context: u64 = get(self.0, slot::ICSK_ULP_DATA);
        let owner: u64 = get(context, slot::SUBFLOW_CONN);
        if owner == 0 {
            return Some((self, MPTCP));
        }
        if get::<u64>(owner, slot::MPTCP_FIRST) != self.0 {
            return None;
        }
        Some((Sock(owner), MPTCP))
    }

    /// Inode number of the socket's file; 0 if no process holds it any more.
    #[inline(always)]
    pub(crate) fn ino(self) -> u64 {
        let socket: u64 = get(self.0, slot::SOCK_SOCKET);
        if socket == 0 {
            return 0;
        }
        get(field(socket, slot::SOCKET_INODE), slot::INODE_INO)
    }

    /// True if the kernel made it for itself.
    #[inline(always)]
    pub(crate) fn is_kernel(self) -> bool {
        bit(self.0, slot::SOCK_KERN)
    }

    /// True inside a send that connects (TCP Fast Open).
    #[inline(always)]
    pub(crate) fn sends(self) -> bool {
        get::<u64>(self.0, slot::TCP_FASTOPEN_REQ) != 0
    }

    /// Family and own end of a socket that has no other yet.
    #[inline(always)]
    pub(crate) fn own(self) -> (u16, End) {
        let port = u16::from_be(get(self.0, slot::INET_SPORT));
        let (family, address) = if self.family() == FAMILY_INET {
            let own: u32 = get(self.0, slot::SOCK_SADDR);
            (FAMILY_INET, [u64::from(own), 0])
        } else {
            normal(halves(self.0, slot::SOCK_SADDR6))
        };
        (family, End { address, port })
    }

    /// Family, own end and other end. The own port is the one in the header to
    /// send: `skc_num` is gone once a failed connect has given its port back.
    #[inline(always)]
    pub(crate) fn ends(self) -> (u16, End, End) {
        let own_port = u16::from_be(get(self.0, slot::INET_SPORT));
        let port = u16::from_be(get(self.0, slot::SOCK_DPORT));
        let (family, own, other) = if self.family() == FAMILY_INET {
            let own: u32 = get(self.0, slot::SOCK_SADDR);
            let other: u32 = get(self.0, slot::SOCK_DADDR);
            (FAMILY_INET, [u64::from(own), 0], [u64::from(other), 0])
        } else {
            let (family, other) = normal(halves(self.0, slot::SOCK_DADDR6));
            let own = halves(self.0, slot::SOCK_SADDR6);
            // Beside an IPv4 address, `::` is no address yet, too.
            let own = if family == FAMILY_INET {
                [own[1] >> 32, 0]
            } else {
                own
            };
            (family, own, other)
        };
        (
            family,
            End {
                address: own,
                port: own_port,
            },
            End {
                address: other,
                port,
            },
        )
    }
}

#[inline(always)]
fn halves(base: u64, index: usize) -> [u64; 2] {
    let address = field(base, index);
    if address == 0 {
        return [0; 2];
    }
    [read(address), read(address + 8)]
}

/// Writes the ends of a connection.
#[inline(always)]
pub(crate) fn store(out: *mut Connection, family: u16, src: End, dst: End) {
    // SAFETY: callers pass their record; its addresses lie at multiples of eight.
    unsafe {
        addr_of_mut!((*out).src)
            .cast::<[u64; 2]>()
            .write(src.address);
        addr_of_mut!((*out).dst)
            .cast::<[u64; 2]>()
            .write(dst.address);
        addr_of_mut!((*out).src_port).write(src.port);
        addr_of_mut!((*out).dst_port).write(dst.port);
        addr_of_mut!((*out).family).write(family);
    }
}
