//! TCP connections made and accepted; sockets bound and listening.

use crate::assert_size;
use crate::event::process::Actor;
use crate::record::Header;
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
assert_size!(Connection, 32 + 56 + 8 + 32 + 8 + 8 + 24);
