//! Calls that rules which deny were asked about, before they happened.

use crate::assert_size;
use crate::event::process::Actor;
use crate::record::{Header, Span};
use crate::verdict::Verdict;

/// Made for the agent's own test of a door. Never in a record.
pub const ASKED_CANARY: u32 = 1 << 31;

/// A call of which a rule that denies said something: it was denied (`outcome::DENIED`), and then this is its event, or it goes
/// on all the same, and its event, if it becomes one, follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Header, kind `ASKED`; in the ring of the kind that was asked for.
    pub header: Header,
    /// Who; of an exec, the image that asks for another.
    pub actor: Actor,
    /// What was asked for: the kind (`event::kind`) of the records of such a call.
    pub kind: u32,
    /// Files: `ACCESS_*` and `OPEN_*` of `event::file`. Executions: `EXE_*` of `event::process`.
    pub flags: u32,
    /// Mounts: the call's own flags; `PTRACE`: the mode (`PTRACE_MODE_*`); `MAP_WX`: the protection; `MODULE_LOAD`: what is
    /// read (`enum kernel_read_file_id`); `CHMOD`: the permission bits that are to be.
    pub value: u64,
    /// The file's superblock device, as in `file::Open`; 0 = there is none.
    pub dev: u32,
    /// Its `i_mode`.
    pub mode: u32,
    /// Its inode number.
    pub ino: u64,
    /// Start of the process that is reached for.
    pub target_start_ns: u64,
    /// The process that is reached for.
    pub target_pid: u32,
    /// The connection's IP protocol; 262 is MPTCP.
    pub protocol: u32,
    /// Destination of a connect, own end of a bind, in network order; IPv4 in the first four bytes.
    pub dst: [u8; 16],
    /// Its port, host order.
    pub dst_port: u16,
    /// `network::FAMILY_INET` or `FAMILY_INET6`; 0: it is no call of the network.
    pub family: u16,
    /// Zero.
    pub pad: u32,
    /// The file, as the kernel names it.
    pub path: Span,
    /// Where a rename or link leads: its folder is the kernel's object, the name the kernel's copy.
    pub to_path: Span,
    /// What the rules made of it.
    pub verdict: Verdict,
}
assert_size!(Asked, 32 + 64 + 16 + 16 + 16 + 16 + 8 + 16 + 24);
