//! TCP connections made and accepted; sockets bound and listening; whom UDP goes to; Unix sockets, raw and other unusual
//! sockets, and DNS.

use crate::assert_size;
use crate::event::process::Actor;
use crate::record::{Header, Span};
use crate::verdict::Verdict;

/// `AF_INET`.
pub const FAMILY_INET: u16 = 2;
/// `AF_INET6`.
pub const FAMILY_INET6: u16 = 10;

/// `result` is not known: the socket was closed before the handshake ended.
pub const RESULT_UNKNOWN: i32 = i32::MIN;

/// Completed after the call that began it had returned (non-blocking connect).
pub const CONN_DEFERRED: u16 = 1 << 0;
/// The socket was looked up by descriptor while others shared the table.
pub const CONN_RACY: u16 = 1 << 1;
/// The address is the caller's word: the connect failed before the kernel chose a route.
pub const CONN_CALLER: u16 = 1 << 2;
/// The accepted socket was gone when looked for; no addresses.
pub const CONN_LOST: u16 = 1 << 3;

/// A table of the kernel side was full, or the process was killed for it: recorded before the
/// result was known (`RESULT_UNKNOWN`); no second record follows.
pub const CONN_UNDECIDED: u16 = 1 << 4;

/// A TCP connect that ended (established or failed), or an accepted connection.
/// For connect, `src` is the caller's own end; for accept, `src` is the peer:
/// source and destination are always those of the connection's first packet. Of a socket that was bound or listens the
/// own end is `dst`, and there is no source.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Header, kind `CONNECT`, `ACCEPT`, `BIND` or `LISTEN`.
    pub header: Header,
    /// Who called.
    pub actor: Actor,
    /// When the connect began, `boot_ns`. For accept, and where the address is the caller's
    /// word, when the call returned.
    pub begun_ns: u64,
    /// Source address in network order; IPv4 in the first four bytes.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Source port, host order.
    pub src_port: u16,
    /// Destination port, host order.
    pub dst_port: u16,
    /// `FAMILY_INET` or `FAMILY_INET6`.
    pub family: u16,
    /// Bits of `CONN_*`.
    pub flags: u16,
    /// 0 or a negative errno.
    pub result: i32,
    /// IP protocol: 6, or 262 for MPTCP; of a bound socket any.
    pub protocol: u32,
    /// What the rules that kill made of it.
    pub verdict: Verdict,
}
assert_size!(Connection, 32 + 64 + 8 + 32 + 8 + 8 + 24);

/// The address is the kernel's copy of what the caller gave, before anything was sent.
pub const CONN_COPY: u16 = 1 << 5;
/// The kernel sends for itself.
pub const CONN_KERNEL: u16 = 1 << 6;

/// A process begins to talk to an address by UDP: it connects a socket to it, or sends it a datagram without. Told once a
/// process and address in [`FLOW_NS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// As of a connect whose result is not known; header of the kind `CONNECT_UDP`. The source has no address before the
    /// kernel has chosen a route, and no port before it has bound the socket.
    pub connection: Connection,
    /// Datagrams and connects to the same address that have had no record since the one before.
    pub folded: u64,
}
assert_size!(Datagram, 176 + 8);

/// How long a process's talk to one address is one flow, in ns.
pub const FLOW_NS: u64 = 60_000_000_000;

/// Most records of new flows, and of DNS messages, a second on each CPU; what is beyond is counted as
/// `loss::reason::LIMITED`.
pub const FLOWS_PER_SECOND: u64 = 2000;

/// A Unix socket was connected, or somebody was not let.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixConnect {
    /// Header, kind `CONNECT_UNIX`.
    pub header: Header,
    /// Who.
    pub actor: Actor,
    /// Bits of `CONN_*`.
    pub flags: u16,
    /// `SOCK_*`.
    pub kind: u16,
    /// 0 or a negative errno.
    pub result: i32,
    /// Where to: the path of the other socket's file, as it is now; or its name without a file, which begins with a NUL. Of
    /// a failed call the caller's word.
    pub path: Span,
}
assert_size!(UnixConnect, 32 + 64 + 16);

/// A socket was made that few programs need, or somebody tried to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Header, kind `SOCKET`.
    pub header: Header,
    /// Who.
    pub actor: Actor,
    /// Bits of `CONN_*`: `CONN_CALLER` where the arguments were in memory.
    pub flags: u32,
    /// 0 or a negative errno.
    pub result: i32,
    /// `AF_*`.
    pub family: u32,
    /// `SOCK_*` without flags.
    pub kind: u32,
    /// As the caller gave it: of packet sockets in network order.
    pub protocol: u32,
    /// Zero.
    pub pad: u32,
}
assert_size!(Socket, 32 + 64 + 24);

/// A message to or from port 53, as a packet had it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Header, kind `DNS`.
    pub header: Header,
    /// Who asked; all zero if that is not known (any more).
    pub actor: Actor,
    /// Address of the server, in network order; IPv4 in the first four bytes.
    pub server: [u8; 16],
    /// `FAMILY_INET` or `FAMILY_INET6`.
    pub family: u16,
    /// Bits of `DNS_*`.
    pub flags: u16,
    /// Bytes of the message, or of this segment's part of the stream, before anything was cut.
    pub len: u32,
    /// The bytes.
    pub message: Span,
}
assert_size!(Dns, 32 + 64 + 16 + 8 + 8);

/// The message came from the server.
pub const DNS_ANSWER: u16 = 1 << 0;
/// It is a segment of a TCP stream, in which a length of two bytes comes before each message.
pub const DNS_TCP: u16 = 1 << 1;

/// Bytes of a message that are copied; a power of two.
pub const DNS_MAX: usize = 4096;
