//! What the kernel decides alone: the rules that kill, judged at each exec, and at each open, close after write, connect
//! and accept that is about to be recorded; and the rules that deny, judged where a call can still be made to fail.
//!
//! A rule is a set of clauses over up to 64 atoms, each a question about the event whose answer is
//! yes, no or unknown: a word of bits for the yes, one for the unknown. A clause holds if what it needs is yes and
//! what it forbids is no. As with filters there are two plans, and `CONTROL` says which one is active.
//!
//! What is asked about ancestors is inherited: each process has the words of what its ancestors satisfy
//! (`LINEAGE`), and of what it will satisfy itself as an ancestor. Where they are missing, because the process is older
//! than the plan or the map was full, user space tells them (`SEEDS`); until then they are unknown. What other events
//! than its exec ask about a process's own executable is kept there, too.
//!
//! What is asked about whose a process is, its workload and host, user space answers by cgroup (`SCOPES`), and for
//! whole branches of the hierarchy at once: a cgroup of which nothing is said has the answers of the nearest one above
//! it of which something is, as far as these hold for all below. So a new cgroup has them from its making on.

use crate::assert_size;
use crate::policy::{ACCESS_BITS, filtered};

/// Most clauses of a plan.
pub const CLAUSES: usize = 64;
/// Most atoms about numbers.
pub const NUMBERS: usize = 32;

/// Kinds of events, as bits of `Verdicts::kinds` and `Clause::kinds`.
pub mod on {
    /// An exec.
    pub const EXEC: u32 = 1;

    /// A kind by its place in `policy::filtered`.
    #[must_use]
    pub const fn filtered(place: usize) -> u32 {
        2 << place
    }

    /// A call before it happens, by its place in `denied`: for the rules that deny.
    #[must_use]
    pub const fn denied(place: usize) -> u32 {
        1 << (16 + place)
    }
}
const _: () = assert!(filtered::COUNT < 15 && denied::COUNT <= 16);

/// Place of a kind that can be denied.
pub mod denied {
    /// An exec.
    pub const EXEC: usize = 0;
    /// An open.
    pub const OPEN: usize = 1;
    /// A rename.
    pub const RENAME: usize = 2;
    /// The removal of a name.
    pub const UNLINK: usize = 3;
    /// A hard link.
    pub const LINK: usize = 4;
    /// A connect, or a datagram to an address.
    pub const CONNECT: usize = 5;
    /// A bind.
    pub const BIND: usize = 6;
    /// A setting of the kernel.
    pub const SYSCTL: usize = 7;
    /// A mount.
    pub const MOUNT: usize = 8;
    /// A kernel module.
    pub const MODULE_LOAD: usize = 9;
    /// A reach into another process.
    pub const PTRACE: usize = 10;
    /// Memory that can be written and executed.
    pub const MAP_WX: usize = 11;
    /// A change of a file's length.
    pub const TRUNCATE: usize = 12;
    /// A change of its permissions.
    pub const CHMOD: usize = 13;
    /// A change of its owner or group.
    pub const CHOWN: usize = 14;
    /// Another root of a mount namespace.
    pub const PIVOT_ROOT: usize = 15;
    /// Number of these.
    pub const COUNT: usize = 16;
}

/// What a number is of.
pub mod id {
    /// Real user.
    pub const UID: u32 = 0;
    /// Real group.
    pub const GID: u32 = 1;
    /// Effective user.
    pub const EUID: u32 = 2;
    /// Effective group.
    pub const EGID: u32 = 3;
    /// Source port.
    pub const SRC_PORT: u32 = 4;
    /// Destination port.
    pub const DST_PORT: u32 = 5;
    /// IP protocol.
    pub const PROTOCOL: u32 = 6;
    /// Result, with its highest bit turned over: in the order of signed numbers.
    pub const RESULT: u32 = 7;
    /// Executions: 1 if the executable is of the image, 0 if not, [`NO_IMAGE`] if there is none.
    pub const IN_IMAGE: u32 = 8;
    /// As [`IN_IMAGE`]: the root directory does not lie on an overlay.
    pub const NO_IMAGE: u32 = 2;
    /// Effective capabilities 0 to 31, as bits.
    pub const CAPS_LOW: u32 = 9;
    /// Effective capabilities from 32 on.
    pub const CAPS_HIGH: u32 = 10;
    /// Room for these; a power of two.
    pub const COUNT: usize = 16;
}

/// An atom about a number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Number {
    /// Of module `id`.
    pub id: u32,
    /// Yes from this number …
    pub first: u32,
    /// … to this one.
    pub last: u32,
    /// The bits of it that are compared; all of a number, one of capabilities.
    pub mask: u32,
    /// The atom's bit.
    pub atom: u64,
}
assert_size!(Number, 24);

/// Atoms that together make a rule kill or deny.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clause {
    /// Have to be yes.
    pub need: u64,
    /// Have to be no.
    pub forbid: u64,
    /// Number of the rule; with [`FORCED`] it kills what a host needs, too.
    pub rule: u32,
    /// Kinds of events that it judges, of module `on`.
    pub kinds: u32,
}
assert_size!(Clause, 24);

/// In [`Clause::rule`], of a rule that kills: it means services of the host, too.
pub const FORCED: u32 = 1 << 31;

/// One of the two plans (array `VERDICTS`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdicts {
    /// As `Filter::generation`.
    pub generation: u32,
    /// Clauses in use, from the first; 0: nothing is judged.
    pub clauses: u32,
    /// Numbers in use, from the first.
    pub numbers: u32,
    /// Kinds of events that some clause judges, of module `on`.
    pub kinds: u32,
    /// Atoms about the executable.
    pub exe: u64,
    /// Of these, those that other kinds than exec ask for. If there are none, and no atoms about ancestors, `LINEAGE` is not kept.
    pub kept: u64,
    /// Atoms about ancestors.
    pub lineage: u64,
    /// Atoms about the path of the file.
    pub file: u64,
    /// Atoms about the path that a file is to have.
    pub to: u64,
    /// Atoms about the name of a setting.
    pub setting: u64,
    /// Atoms about the value that it is to have.
    pub value: u64,
    /// Of those about paths, those that ask for a name.
    pub named: u64,
    /// Atoms about the workload and the host.
    pub scope: u64,
    /// Of these, those that are yes where user space does not know yet.
    pub presumed: u64,
    /// Atoms about flags, by `ACCESS_BITS`.
    pub access: [u64; ACCESS_BITS.len()],
    /// Atoms about the source address.
    pub src_net: u64,
    /// Atoms about the destination address.
    pub dst_net: u64,
    /// Atoms about numbers, by what they are of: which are unknown if that is.
    pub numbered: [u64; id::COUNT],
    /// Atoms about numbers.
    pub number: [Number; NUMBERS],
    /// Clauses, in the order of their rules: the first that holds decides.
    pub clause: [Clause; CLAUSES],
}
assert_size!(
    Verdicts,
    16 + 96 + 8 * ACCESS_BITS.len() + 8 * id::COUNT + 24 * NUMBERS + 24 * CLAUSES
);

impl Default for Verdicts {
    fn default() -> Self {
        Verdicts {
            generation: 0,
            clauses: 0,
            numbers: 0,
            kinds: 0,
            exe: 0,
            kept: 0,
            lineage: 0,
            file: 0,
            to: 0,
            setting: 0,
            value: 0,
            named: 0,
            scope: 0,
            presumed: 0,
            access: [0; ACCESS_BITS.len()],
            src_net: 0,
            dst_net: 0,
            numbered: [0; id::COUNT],
            number: [Number::default(); NUMBERS],
            clause: [Clause::default(); CLAUSES],
        }
    }
}

/// Processes in `LINEAGE` and in `SEEDS`.
pub const LINEAGE_ENTRIES: u32 = 16 * 1024;

/// Key of `LINEAGE`: a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineageKey {
    /// Start time of the process.
    pub start_ns: u64,
    /// Process id.
    pub pid: u32,
    /// `LINEAGE`: 0. `SEEDS`: the plan they belong to, 0 or 1.
    pub plan: u32,
}
assert_size!(LineageKey, 16);

/// What is known of a process for the atoms about ancestors, and about its executable.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// The plan's generation: under another one it says nothing.
    pub generation: u32,
    /// Zero.
    pub pad: u32,
    /// The image that `own` and `exe` are about.
    pub image: u64,
    /// Atoms that some ancestor satisfies.
    pub above_yes: u64,
    /// Atoms of which that is not known.
    pub above_unknown: u64,
    /// Atoms that the process satisfies for its descendants.
    pub own_yes: u64,
    /// Atoms of which that is not known.
    pub own_unknown: u64,
    /// Atoms of `Verdicts::kept` that its executable satisfies.
    pub exe_yes: u64,
    /// Atoms of which that is not known.
    pub exe_unknown: u64,
}
assert_size!(Lineage, 64);

/// Cgroups in `SCOPES`: twice as many as one plan may take.
pub const SCOPES_ENTRIES: u32 = 32 * 1024;
/// Most cgroups above a process's own that are asked. From Linux 6.1 on they are the ones nearest to the root: who makes cgroups cannot
/// make them too deep to be found. Before, what lies deeper below one that has an entry needs one of its own.
pub const SCOPE_STEPS: u32 = 64;

/// Key of `SCOPES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScopeKey {
    /// Id of the cgroup (`kernfs_node.id`) in the hierarchy that records name.
    pub cgroup: u64,
    /// The plan it belongs to, 0 or 1.
    pub plan: u32,
    /// Zero.
    pub pad: u32,
}
assert_size!(ScopeKey, 16);

/// What is known of a cgroup for the atoms about the workload and the host. What is neither yes nor unknown is no.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Id of the cgroup: of another one it says nothing. From 6.1 on the kernel gives an entry that is taken out to another key at
    /// once, while whoever has found it still reads.
    pub cgroup: u64,
    /// The plan's generation: under another one it says nothing.
    pub generation: u32,
    /// Zero.
    pub pad: u32,
    /// Atoms that processes in the cgroup satisfy.
    pub yes: u64,
    /// Atoms of which that is not known.
    pub unknown: u64,
    /// Atoms that processes in every cgroup below satisfy, those to come included.
    pub below_yes: u64,
    /// Atoms of which that is not known, or not the same for all.
    pub below_unknown: u64,
}
assert_size!(Scope, 48);

/// What became of an event other than an exec that the kernel judged: in the record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// One of `event::process::outcome`.
    pub outcome: u32,
    /// With an outcome that names a rule: its number in the plan of the header's generation.
    pub rule: u32,
    /// With `outcome::FAILED`: the errno, positive.
    pub error: u32,
    /// 1: what is asked about the process or its ancestors is not known to the kernel.
    pub lineage_unknown: u32,
    /// With `outcome::KILLED`, if other tasks share its open files: address of the table, by which
    /// they are found.
    pub table: u64,
}
assert_size!(Verdict, 24);

/// Processes in `SHARERS`.
pub const SHARERS_ENTRIES: u32 = 4096;

/// A process that was made to share its open files with another, as the iterator `sharers` tells.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sharer {
    /// Start time of the process.
    pub start_ns: u64,
    /// Process id.
    pub pid: u64,
    /// Address of the table of open files that it has now.
    pub table: u64,
}
assert_size!(Sharer, 24);

/// Processes in `BORN` and in `DOOMED`.
pub const HUNT_ENTRIES: u32 = 8 * 1024;

/// Places in `HUNT`.
pub mod hunt {
    /// Until when a lineage is hunted, ns since boot; 0: none is.
    pub const UNTIL: u32 = 0;
    /// Processes for which `BORN` had no room, since the maps were made.
    pub const FULL: u32 = 1;
    /// Number of these.
    pub const COUNT: u32 = 2;
}

/// Whom no policy may kill (array `GUARD`, one entry), besides the first process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Inode number of the agent's executable; 0: there is none.
    pub exe_ino: u64,
    /// Device of its file system, kernel encoding.
    pub exe_dev: u32,
    /// Zero.
    pub pad: u32,
    /// The agent's start time …
    pub start_ns: u64,
    /// … and process id; it is the agent itself, whatever it executes.
    pub pid: u64,
}
assert_size!(Guard, 32);
