//! What the kernel decides alone: the rules that kill, judged at each exec.
//!
//! A rule is a set of clauses over up to 64 atoms, each a question about the exec whose answer is
//! yes, no or unknown: a word of bits for the yes, one for the unknown. A clause holds if what it needs is yes and
//! what it forbids is no. As with filters there are two plans, and `CONTROL` says which one is active.
//!
//! What is asked about ancestors is inherited: each process has the words of what its ancestors satisfy
//! (`LINEAGE`), and of what it will satisfy itself as an ancestor. Where they are missing, because the process is older
//! than the plan or the map was full, user space tells them (`SEEDS`); until then they are unknown.

use crate::assert_size;

/// Most clauses of a plan.
pub const CLAUSES: usize = 64;
/// Most atoms about numbers.
pub const NUMBERS: usize = 32;

/// An id of a process.
pub mod id {
    /// Real user.
    pub const UID: u32 = 0;
    /// Real group.
    pub const GID: u32 = 1;
    /// Effective user.
    pub const EUID: u32 = 2;
    /// Effective group.
    pub const EGID: u32 = 3;
}

/// An atom about an id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Number {
    /// Of module `id`.
    pub id: u32,
    /// Yes from this number …
    pub first: u32,
    /// … to this one.
    pub last: u32,
    /// Zero.
    pub pad: u32,
    /// The atom's bit.
    pub atom: u64,
}
assert_size!(Number, 24);

/// Atoms that together make a rule kill.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clause {
    /// Have to be yes.
    pub need: u64,
    /// Have to be no.
    pub forbid: u64,
    /// Number of the rule.
    pub rule: u32,
    /// Zero.
    pub pad: u32,
}
assert_size!(Clause, 24);

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
    /// Zero.
    pub pad: u32,
    /// Atoms about the executable.
    pub exe: u64,
    /// Atoms about ancestors; 0: `LINEAGE` is not kept.
    pub lineage: u64,
    /// Of both, those that ask for a name.
    pub named: u64,
    /// Atoms about ids.
    pub number: [Number; NUMBERS],
    /// Clauses, in the order of their rules: the first that holds decides.
    pub clause: [Clause; CLAUSES],
}
assert_size!(Verdicts, 16 + 24 + 24 * NUMBERS + 24 * CLAUSES);

impl Default for Verdicts {
    fn default() -> Self {
        Verdicts {
            generation: 0,
            clauses: 0,
            numbers: 0,
            pad: 0,
            exe: 0,
            lineage: 0,
            named: 0,
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

/// What is known of the atoms about ancestors for one process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// The plan's generation: under another one it says nothing.
    pub generation: u32,
    /// Zero.
    pub pad: u32,
    /// The image that `own` is about.
    pub image: u64,
    /// Atoms that some ancestor satisfies.
    pub above_yes: u64,
    /// Atoms of which that is not known.
    pub above_unknown: u64,
    /// Atoms that the process satisfies for its descendants.
    pub own_yes: u64,
    /// Atoms of which that is not known.
    pub own_unknown: u64,
}
assert_size!(Lineage, 48);

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
