//! Credentials that change, processes that reach into others, namespaces, and memory that can hold code.

use crate::assert_size;
use crate::event::process::{Actor, Namespaces};
use crate::record::{Header, Span};

/// Credentials of a task (`struct cred`), in the initial user namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Creds {
    /// Real user.
    pub uid: u32,
    /// Real group.
    pub gid: u32,
    /// Saved user.
    pub suid: u32,
    /// Saved group.
    pub sgid: u32,
    /// Effective user.
    pub euid: u32,
    /// Effective group.
    pub egid: u32,
    /// User for access to files.
    pub fsuid: u32,
    /// Group for access to files.
    pub fsgid: u32,
    /// Inheritable capabilities, bit n = capability n.
    pub cap_inheritable: u64,
    /// Permitted capabilities.
    pub cap_permitted: u64,
    /// Effective capabilities.
    pub cap_effective: u64,
}
assert_size!(Creds, 32 + 24);

/// `before` is not known: the call had begun before the hook at its entry was attached.
pub const CREDS_BEFORE_UNKNOWN: u32 = 1 << 0;

/// A call changed the credentials of its thread, or its groups; or it tried to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Header, kind `SETID` or `CAPSET`.
    pub header: Header,
    /// Who; with the credentials after the call.
    pub actor: Actor,
    /// Number of the system call.
    pub number: u32,
    /// `CALL_COMPAT`, `CREDS_*`.
    pub flags: u32,
    /// 0, or a negative errno.
    pub result: i32,
    /// Zero.
    pub pad: u32,
    /// As the call began.
    pub before: Creds,
    /// As it returned.
    pub after: Creds,
}
assert_size!(Credentials, 32 + 64 + 16 + 56 + 56);

/// A process as it was found through its number or its pidfd. All zero: there was none (any more).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// As in `Actor`.
    pub start_ns: u64,
    /// As in `Actor`.
    pub image: u64,
    /// As in `Actor`.
    pub pid: u32,
    /// As in `Actor`.
    pub tid: u32,
    /// Real user.
    pub uid: u32,
    /// Effective user.
    pub euid: u32,
}
assert_size!(Target, 32);

/// A process reached into another one: traced it, read or wrote its memory, took a descriptor. Also
/// attempts that failed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Header, kind `PTRACE` to `PIDFD_GETFD`.
    pub header: Header,
    /// Who.
    pub actor: Actor,
    /// Number of the system call.
    pub number: u32,
    /// `CALL_COMPAT`.
    pub flags: u32,
    /// `PTRACE`: the request; `PIDFD_GETFD`: the other process's descriptor.
    pub request: u32,
    /// The process as the caller named it: a number in its own pid namespace, or a pidfd.
    pub given: i32,
    /// 0, or a negative errno.
    pub result: i32,
    /// Zero.
    pub pad: u32,
    /// The other process; of `PTRACE_TRACEME` the caller itself.
    pub target: Target,
    /// Path of its executable.
    pub exe: Span,
}
assert_size!(Reach, 32 + 64 + 24 + 32 + 8);

/// Namespaces were made or entered, or somebody tried to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spaces {
    /// Header, kind `UNSHARE` or `SETNS`.
    pub header: Header,
    /// Who called.
    pub actor: Actor,
    /// Number of the system call.
    pub number: u32,
    /// `CALL_COMPAT`, `SPACES_*`.
    pub flags: u32,
    /// Which ones: `CLONE_NEW*`.
    pub namespaces: u32,
    /// clone and clone3: the child, in the caller's pid namespace; its fork record has its namespaces.
    pub child: u32,
    /// 0, or a negative errno.
    pub result: i32,
    /// Zero.
    pub pad: u32,
    /// The caller's namespaces after the call.
    pub ns: Namespaces,
}
assert_size!(Spaces, 32 + 64 + 24 + 32);

/// `namespaces` could not be read.
pub const SPACES_UNKNOWN: u32 = 1 << 0;

/// Memory that can be written and executed at once, or a file that is nothing but memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Header, kind `MEMFD_CREATE` or `MAP_WX`.
    pub header: Header,
    /// Who.
    pub actor: Actor,
    /// Number of the system call.
    pub number: u32,
    /// `CALL_COMPAT`, `MEMORY_*`.
    pub flags: u32,
    /// `MAP_WX`: where it begins.
    pub address: u64,
    /// `MAP_WX`: its length as the caller gave it.
    pub len: u64,
    /// `MAP_WX`: `PROT_*`.
    pub protection: u32,
    /// The call's own flags (`MAP_*`, `MFD_*`).
    pub call_flags: u32,
    /// The file's device, as in `file::Open`; 0 if there is no file.
    pub dev: u32,
    /// Its `i_mode`.
    pub mode: u32,
    /// Its inode number.
    pub ino: u64,
    /// Its path.
    pub path: Span,
}
assert_size!(Memory, 32 + 64 + 24 + 16 + 16);

/// There is a file, or was: nothing else is said of it if it was gone when looked for.
pub const MEMORY_FILE: u32 = 1 << 0;

/// Bytes of a task's name with its NUL (`TASK_COMM_LEN`, include/linux/sched.h).
pub const TASK_NAME: usize = 16;

/// A process changed how the kernel or others treat it, or asked to handle page faults by itself. Also attempts that failed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Header, kind `PRCTL` or `USERFAULTFD`.
    pub header: Header,
    /// Who.
    pub actor: Actor,
    /// Number of the system call.
    pub number: u32,
    /// `CALL_COMPAT`.
    pub flags: u32,
    /// 0, or a negative errno.
    pub result: i32,
    /// `PRCTL`: `PR_*`.
    pub option: u32,
    /// `PRCTL`: the second argument; `USERFAULTFD`: the flags.
    pub second: u64,
    /// `PRCTL`: the third argument.
    pub third: u64,
    /// The thread's name after the call, ended by NUL if it is shorter.
    pub name: [u8; TASK_NAME],
}
assert_size!(Control, 32 + 64 + 16 + 16 + 16);
