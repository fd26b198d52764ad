//! Fork, exec, exit, and the process that every record names.

use crate::assert_size;
use crate::record::{Header, Span};

/// Which image of which process did it: in every record, after the header.
///
/// (`pid`, `start_ns`, `image`) is the identity of a program image on one boot:
/// a pid alone is reused, a start time alone is shared, and `image`
/// (`task_struct.self_exec_id`) goes up by one at each exec and is inherited
/// by fork. Credentials can change without an exec, so they are here too.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actor {
    /// `group_leader->start_boottime`: ns since boot.
    pub start_ns: u64,
    /// `self_exec_id`.
    pub image: u64,
    /// Thread group id in the initial pid namespace.
    pub pid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// Real user id, in the initial user namespace.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// Effective user id.
    pub euid: u32,
    /// Effective group id.
    pub egid: u32,
    /// `kn->id` of the cgroup in the chosen hierarchy; 0 = not known.
    pub cgroup_id: u64,
    /// 0 = the unified hierarchy, else 1 + the v1 controller's number in this kernel's
    /// `enum cgroup_subsys_id`; the agent chose it and knows its name.
    pub cgroup_hierarchy: u32,
    /// 1 if other tasks share the open files (`files->count > 1`).
    pub files_shared: u32,
    /// Effective capabilities, bit n = capability n, in the user namespace of the credentials. Of who made no record: [`CAPS_UNKNOWN`].
    pub cap_effective: u64,
}
assert_size!(Actor, 64);

/// Capabilities that are not known: more than the kernel has, so no task's.
pub const CAPS_UNKNOWN: u64 = u64::MAX;

/// Namespace inode numbers (`ns_common.inum`); 0 = not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Mount.
    pub mnt: u32,
    /// The pid namespace of the process itself (of its thread pid's last level).
    pub pid: u32,
    /// Network.
    pub net: u32,
    /// User namespace of its credentials.
    pub user: u32,
    /// UTS.
    pub uts: u32,
    /// IPC.
    pub ipc: u32,
    /// Cgroup.
    pub cgroup: u32,
    /// The pid in its own pid namespace.
    pub pid_inside: u32,
}
assert_size!(Namespaces, 32);

/// A new process (thread creation is not recorded). The actor is the parent
/// as `fork` saw it: the caller, also when CLONE_PARENT gives the child another.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// Header, kind `FORK`.
    pub header: Header,
    /// The caller of fork.
    pub actor: Actor,
    /// The child, with the image it inherited.
    pub child: Actor,
    /// Real parent of the child (`real_parent`), differs with CLONE_PARENT.
    pub parent_pid: u32,
    /// 1: what is asked about the child's ancestors is not known to the kernel.
    pub lineage_unknown: u32,
    /// Start time of that parent.
    pub parent_start_ns: u64,
    /// Image of that parent.
    pub parent_image: u64,
    /// Namespaces of the child.
    pub ns: Namespaces,
}
assert_size!(Fork, 32 + 64 + 64 + 24 + 32);

/// An exec that succeeded (the actor is the new image), or a process found by the
/// task iterator (kind `TASK`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exec {
    /// Header, kind `EXEC` or `TASK`.
    pub header: Header,
    /// The process with its new image.
    pub actor: Actor,
    /// Its real parent's pid.
    pub parent_pid: u32,
    /// The thread that called exec, when it was not the leader; else equals `tid`.
    pub old_tid: u32,
    /// Start time of the parent.
    pub parent_start_ns: u64,
    /// Image of the parent.
    pub parent_image: u64,
    /// Namespaces.
    pub ns: Namespaces,
    /// Permitted capabilities, bit n = capability n.
    pub cap_permitted: u64,
    /// Inheritable capabilities.
    pub cap_inheritable: u64,
    /// Login user id (`loginuid`), `u32::MAX` = never logged in.
    pub auid: u32,
    /// Audit session id, `u32::MAX` = none.
    pub audit_session: u32,
    /// Session leader's pid (`setsid`), initial pid namespace; 0 = not known.
    pub session: u32,
    /// `exe_flags`.
    pub exe_flags: u32,
    /// The executable's superblock device (`i_sb->s_dev`), kernel encoding.
    pub exe_dev: u32,
    /// Link count of the executable; 0 = deleted or never had a name.
    pub exe_nlink: u32,
    /// The executable's inode number.
    pub exe_ino: u64,
    /// When its content or attributes were last changed (`i_ctime`): ns since the Unix epoch; 0 = not known.
    pub exe_changed_ns: u64,
    /// Who opened the executable for writing, as far as that was watched.
    pub writer: Writer,
    /// Since when it was watched: ns since boot.
    pub watched_since_ns: u64,
    /// Path of the kernel's file object (`mm->exe_file`).
    pub exe: Span,
    /// Working directory.
    pub cwd: Span,
    /// Arguments, each ended by NUL as in the process's memory; at exec the
    /// process has not run yet and cannot have changed them.
    pub args: Span,
    /// Total bytes of arguments (`arg_end - arg_start`), also what was cut.
    pub args_total: u64,
    /// With [`EXE_INTERPRETED`]: the name that exec was given (`bprm->filename`), the kernel's copy; relative to `cwd` if it is
    /// not absolute.
    pub script: Span,
    /// Name of the controlling terminal's device (`signal->tty->name`): `pts3`, `tty1`. Empty = it has none.
    pub tty: Span,
    /// `outcome` of the kernel's verdicts on this exec.
    pub outcome: u32,
    /// With an outcome that names a rule: its number in the plan of the header's generation.
    pub rule: u32,
    /// With `outcome::FAILED`: the errno, positive.
    pub error: u32,
    /// As `Fork::lineage_unknown`.
    pub lineage_unknown: u32,
}
assert_size!(
    Exec,
    32 + 64 + 24 + 32 + 16 + 16 + 8 + 8 + 8 + 40 + 24 + 8 + 16 + 16
);

/// Who was the last to open a file for writing: also the value of the map `WRITERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writer {
    /// Start of its process, as in `Actor`.
    pub start_ns: u64,
    /// Its image.
    pub image: u64,
    /// When it opened the file: ns since boot.
    pub boot_ns: u64,
    /// Its process.
    pub pid: u32,
    /// `writer`.
    pub state: u32,
}
assert_size!(Writer, 32);

/// What is known of who wrote an executable.
pub mod writer {
    /// No rule asks: nothing was watched.
    pub const NOT_WATCHED: u32 = 0;
    /// Nobody was seen to open it.
    pub const NOT_SEEN: u32 = 1;
    /// `Writer` tells who.
    pub const SEEN: u32 = 2;
    /// It is of a lower layer of an overlay, which nobody can open for writing there.
    pub const LOWER: u32 = 3;
}

/// Files whose writer is remembered (map `WRITERS`).
pub const WRITERS_ENTRIES: u32 = 32 * 1024;

/// Places in the map `WATCHED`.
pub mod watched {
    /// Boot time since which every open for writing is remembered, ns.
    pub const SINCE: u32 = 0;
    /// How many files were remembered; beyond `WRITERS_ENTRIES` each has made room for itself.
    pub const FILES: u32 = 1;
    /// How many could not be.
    pub const FAILED: u32 = 2;
    /// Number of places.
    pub const COUNT: u32 = 3;
}

/// What became of an event that the kernel judged by the rules that it can judge alone.
pub mod outcome {
    /// No such rule matched, or there is none.
    pub const NONE: u32 = 0;
    /// The rule matched, and the process dies before its next instruction.
    pub const KILLED: u32 = 1;
    /// The rule matched, but the process is one that no policy may kill.
    pub const GUARDED: u32 = 2;
    /// The rule matched, but the kernel did not take the signal.
    pub const FAILED: u32 = 3;
    /// The rule matched, but no agent has been there for too long: its verdicts have expired.
    pub const EXPIRED: u32 = 4;
    /// Some rule may match: what it asks for could not be read.
    pub const UNDECIDED: u32 = 5;
    /// The rule matched, but another process was running, as a packet came in: the kernel can only signal that one.
    pub const ELSEWHERE: u32 = 6;
    /// The rule matched, but the process may be one that no policy may kill, as the sshd that listens: only user space can tell.
    pub const PERHAPS_GUARDED: u32 = 7;
    /// The rule matched, and the call failed with EPERM before it did anything.
    pub const DENIED: u32 = 8;
}

/// The program runs with more than its caller's real ids have: it is set-user-id or set-group-id or has file capabilities, or
/// real and effective ids differed before (`bprm->secureexec`, which the program sees as `AT_SECURE`).
pub const EXE_SECURE: u32 = 1 << 0;
/// What was executed is run by another program, as a script or by binfmt_misc: `exe` is the interpreter, the last one if there are
/// several (`bprm->interp != filename`).
pub const EXE_INTERPRETED: u32 = 1 << 1;
/// The root of the process's mount namespace lies on an overlay, as those of containers do: the next flag says something.
pub const EXE_LAYERED: u32 = 1 << 2;
/// With [`EXE_LAYERED`]: the executable is of that overlay, and not of its upper layer, where changes go.
pub const EXE_IN_IMAGE: u32 = 1 << 3;

/// The last thread of a process has gone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Header, kind `EXIT`.
    pub header: Header,
    /// The process.
    pub actor: Actor,
    /// `exit_code` as `wait` reports it: low 7 bits signal, bit 7 core dumped,
    /// next 8 bits the status.
    pub code: u32,
    /// Zero.
    pub pad: u32,
}
assert_size!(Exit, 32 + 64 + 8);
