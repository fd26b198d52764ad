//! All maps. Each is bounded; what happens when one is full stands with it.
//!
//! Sizes given here are defaults; the loader may raise the rings before load.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, lpm_trie::LpmTrie},
};
use sumun_abi::{
    event::{
        file::{KNOWN_BYTES, KNOWN_ENTRIES, OPENED_BYTES, POINTS as POINT_COUNT},
        kernel::Loaded,
        network::Connection,
        privilege::Creds,
        process::{Actor, WRITERS_ENTRIES, Writer, watched},
    },
    isolate::{self, Isolation},
    loss::{STREAMS as STREAM_COUNT, Stream},
    policy::{
        Claim, DirKey, DirVerdict, ExeKey, ExeVerdict, FILTERS as FILTER_COUNT, Filter, MATCH_DATA,
        MATCH_ENTRIES, Match, MatchKey, SWAP_SLOTS,
    },
    record::{LEVELS, RECORD_MAX},
    verdict::{
        Guard, HUNT_ENTRIES, LINEAGE_ENTRIES, Lineage, LineageKey, SCOPES_ENTRIES, SHARERS_ENTRIES,
        Scope, ScopeKey, Verdicts, hunt, id,
    },
};

use crate::kernel::BLOCK;

/// Bytes for walking a path from its end to its start: the longest path, and
/// room for one component more, so that the last one that fits never reaches past the end.
pub(crate) const WALK_BYTES: usize = 4096 + 256;

/// State of a walk. It lives in a map because the verifier forgets what it knows of a
/// value stored there: in registers each step would be a state of its own, and a
/// million of them are not enough.
#[repr(C)]
pub(crate) struct Walker {
    /// Start of the text so far.
    pub(crate) at: u64,
    /// Length of the last component.
    pub(crate) name_len: u64,
    /// Hash over the objects passed.
    pub(crate) hash: u64,
    /// `FLAW_*`.
    pub(crate) flaws: u64,
    /// The dentry that it has come to.
    pub(crate) here: u64,
    /// The mount that it is in.
    pub(crate) mnt: u64,
    /// The root of that mount.
    pub(crate) root: u64,
}

/// Working memory of one program on one CPU at one nesting level.
#[repr(C)]
pub(crate) struct Scratch {
    /// The record being built.
    pub(crate) record: [u8; RECORD_MAX],
    /// The path being walked, right-aligned at 4096.
    pub(crate) walk: [u8; WALK_BYTES],
    /// Where that walk has come.
    pub(crate) walker: Walker,
    /// Key for a look-up in `MATCH`.
    pub(crate) key: MatchKey,
    /// The start of a `struct file`.
    pub(crate) file: [u8; BLOCK],
    /// The start of the `struct dentry` of that file.
    pub(crate) dentry: [u8; BLOCK],
    /// The start of the one that a walk has come to.
    pub(crate) step: [u8; BLOCK],
    /// A pointer stored here comes back as a plain number.
    pub(crate) number: u64,
    /// A connect that begins.
    pub(crate) flight: Flight,
    /// What the event under way satisfies.
    pub(crate) answers: Answers,
    /// What is known of the process under way; at a fork, also of the parent of its child.
    pub(crate) words: [Lineage; 2],
    /// The cgroup that is looked up.
    pub(crate) scope: ScopeKey,
    /// Address of its `struct cgroup`; 0: nothing above it can be found.
    pub(crate) cgroup: u64,
    /// What the process satisfies by its cgroup: yes, and unknown.
    pub(crate) scoped: [u64; 2],
    /// Numbers that rules that kill ask for, by `verdict::id`.
    pub(crate) values: [u32; id::COUNT],
    /// The system call under way.
    pub(crate) given: Given,
}

/// A system call that returned, for the global function that records it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Given {
    /// Its first five arguments.
    pub(crate) arguments: [u64; 5],
    /// What it returned.
    pub(crate) result: i64,
    /// Its number.
    pub(crate) number: u64,
}

/// Atoms of the rules that kill, as an event answers them.
#[repr(C)]
pub(crate) struct Answers {
    /// Of those about the event itself, on exec about the executable: yes …
    pub(crate) yes: u64,
    /// … and unknown.
    pub(crate) unknown: u64,
    /// On exec, of those about ancestors: yes …
    pub(crate) own_yes: u64,
    /// … and unknown.
    pub(crate) own_unknown: u64,
}
// Per-CPU values are limited to 32 KiB (PCPU_MIN_UNIT_SIZE).
const _: () = assert!(core::mem::size_of::<Scratch>() <= 32 * 1024);

/// Records of process life. Full: the record is lost and counted in its stream.
#[map]
pub(crate) static LIFE: RingBuf = RingBuf::pinned(16 * 1024 * 1024, 0);

/// File and network records. Full: as `LIFE`.
#[map]
pub(crate) static BULK: RingBuf = RingBuf::pinned(32 * 1024 * 1024, 0);

/// One working memory per level; fixed size.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(LEVELS, 0);

/// Which levels are taken on each CPU: the claim counters of `run`. User space
/// reads them to know that no program is under way.
#[map]
pub(crate) static BUSY: PerCpuArray<[u64; LEVELS as usize]> = PerCpuArray::pinned(1, 0);

/// Sequence and losses of each stream, by `ring * LEVELS + level`.
#[map]
pub(crate) static STREAMS: PerCpuArray<Stream> = PerCpuArray::pinned(STREAM_COUNT, 0);

/// The active filter, 0 or 1.
#[map]
pub(crate) static CONTROL: Array<u64> = Array::pinned(1, 0);

/// The two filters.
#[map]
pub(crate) static FILTERS: Array<Filter> = Array::pinned(FILTER_COUNT, 0);

/// What paths, names, ports and addresses satisfy. Filled by user space only;
/// a filter that does not fit is not loaded.
#[map]
pub(crate) static MATCH: LpmTrie<[u8; MATCH_DATA], Match> = LpmTrie::pinned(MATCH_ENTRIES, 0);

/// Verdicts on directories. Full: the least recently used one makes room and is walked again.
#[map]
pub(crate) static DIRS: LruHashMap<DirKey, DirVerdict> = LruHashMap::pinned(16 * 1024, 0);

/// Verdicts on program images. Full: as `DIRS`.
#[map]
pub(crate) static EXES: LruHashMap<ExeKey, ExeVerdict> = LruHashMap::pinned(8 * 1024, 0);

/// Which thread claims which file, by (descriptor table, descriptor): see `policy::swap`. Two
/// places that fall together: the later claim stands, and the earlier is not compared any more.
#[map]
pub(crate) static CLAIMS: Array<Claim> = Array::pinned(SWAP_SLOTS, 0);

/// Goes up whenever a path may lead elsewhere than before.
#[map]
pub(crate) static FLUSH: Array<u64> = Array::pinned(1, 0);

/// The two plans of the rules that kill.
#[map]
pub(crate) static VERDICTS: Array<Verdicts> = Array::pinned(FILTER_COUNT, 0);

/// What each process inherited for them. Full: what is asked about it and its ancestors is unknown to the
/// kernel, which its fork record says, and user space decides.
#[map]
pub(crate) static LINEAGE: HashMap<LineageKey, Lineage> = HashMap::pinned(LINEAGE_ENTRIES, 0);

/// The same of processes that `LINEAGE` knows nothing of, filled by user space only. Full: as `LINEAGE`.
#[map]
pub(crate) static SEEDS: HashMap<LineageKey, Lineage> = HashMap::pinned(LINEAGE_ENTRIES, 0);

/// Whose cgroups are, as rules ask for it. Filled by user space only, so it takes memory for what is in it. Full: such cgroups
/// have what is known of all below the nearest one above that is in it, mostly nothing; counted there.
#[map]
pub(crate) static SCOPES: HashMap<ScopeKey, Scope> =
    HashMap::pinned(SCOPES_ENTRIES, BPF_F_NO_PREALLOC);

/// Processes that were made to share their open files with another, by (pid, start), and the table's address
/// then. Full: the oldest makes room, and is not found when one that shares its files is killed.
#[map]
pub(crate) static SHARERS: LruHashMap<[u64; 2], u64> = LruHashMap::pinned(SHARERS_ENTRIES, 0);

/// Until when a lineage is hunted, and a counter, by `hunt`.
#[map]
pub(crate) static HUNT: Array<u64> = Array::pinned(hunt::COUNT, 0);

/// Processes that were made while a lineage is hunted, by (pid, start): the one that they come from of those that were there when it
/// began. Full: counted in `HUNT`; such a process is not killed at its beginning, and the agent says that some may be left.
#[map]
pub(crate) static BORN: HashMap<[u64; 2], [u64; 2]> = HashMap::pinned(HUNT_ENTRIES, 0);

/// Processes of the lineage that is hunted, likewise; 1 if what runs the host is meant, too. Filled by user space only: what
/// it has no room for it says.
#[map]
pub(crate) static DOOMED: HashMap<[u64; 2], u64> = HashMap::pinned(HUNT_ENTRIES, 0);

/// Whom no policy may kill.
#[map]
pub(crate) static GUARD: Array<Guard> = Array::pinned(1, 0);

/// Boot time until which verdicts hold, ns; the agent moves it on while it lives.
#[map]
pub(crate) static LEASE: Array<u64> = Array::pinned(1, 0);

/// Whether packets are kept back, and by which plan; and the agent's own test of it.
#[map]
pub(crate) static ISOLATING: Array<u64> = Array::pinned(isolate::STATES, 0);

/// The two plans of what passes then. Filled by user space only; what it has no room for does not pass, and it says so.
#[map]
pub(crate) static ISOLATION: Array<Isolation> = Array::pinned(isolate::PLANS, 0);

/// Packets that were kept back, since the maps were made.
#[map]
pub(crate) static DROPPED: PerCpuArray<u64> = PerCpuArray::pinned(isolate::dropped::COUNT, 0);

/// The agent's own test of the doors that deny: in the low half the thread whose calls fail, in the high half
/// of which kinds, by `denied`. 0: none.
#[map]
pub(crate) static CANARY: Array<u64> = Array::pinned(1, 0);

/// Threads whose connect was just denied, by thread id, until the call returns: its failure has been recorded. Full: the
/// oldest makes room, and its failure is recorded once more as that of the call.
#[map]
pub(crate) static REFUSED: LruHashMap<u32, u64> = LruHashMap::pinned(1024, 0);

/// Credentials as a call began that may change them.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Before {
    /// Start of the thread's process: thread ids are reused.
    pub(crate) start_ns: u64,
    /// The credentials.
    pub(crate) creds: Creds,
}

/// Threads inside such a call, by thread id. Full: the oldest makes room, and its record says that what was before
/// is not known.
#[map]
pub(crate) static BEFORE: LruHashMap<u32, Before> = LruHashMap::pinned(4096, 0);

/// Modules that were just loaded, by thread id, from the load to the return of its call. Full:
/// the oldest makes room, and its record has neither name nor signature.
#[map]
pub(crate) static MODULES: LruHashMap<u32, Loaded> = LruHashMap::pinned(256, 0);

/// Processes whose exit has been recorded, by (pid, start): two last threads
/// can each see themselves as the last. Full: the oldest makes room; the two meet within microseconds.
#[map]
pub(crate) static EXITED: LruHashMap<[u64; 2], u32> = LruHashMap::pinned(4096, 0);

/// Images whose beginning, a fork or an exec, the first of the two programs at it has handled, by (pid, start), with the number of
/// the image: the second looks, and removes it. What is left behind, where the kernel left the second out, is of no image
/// that comes later. Full: the oldest makes room, and the two meet within microseconds.
#[map]
pub(crate) static BEGUN: LruHashMap<[u64; 2], u64> = LruHashMap::pinned(4096, 0);

/// A connect that is under way.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Flight {
    /// Who called connect.
    pub(crate) actor: Actor,
    /// When.
    pub(crate) begun_ns: u64,
    /// Address of the socket that the process holds: of MPTCP's above its first path.
    pub(crate) owner: u64,
    /// Network clauses that the executable satisfies …
    pub(crate) exe: u64,
    /// … under this filter.
    pub(crate) generation: u32,
    /// IP protocol.
    pub(crate) protocol: u16,
    /// 1 once the other end's own connect has crossed this one.
    pub(crate) crossed: u16,
}

/// Connects under way, by socket address. Full: the connect is recorded at once
/// with its result unknown (`CONN_UNDECIDED`).
#[map]
pub(crate) static FLIGHTS: HashMap<u64, Flight> = HashMap::pinned(32 * 1024, 0);

/// A connect that a thread is in.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Calling {
    /// Address of the socket.
    pub(crate) sock: u64,
    /// 0 if it may be io_uring that makes the connect: then no call returns from it.
    pub(crate) sure: u64,
}

/// Threads inside a connect that the socket hook has seen, by thread id: that call is
/// not a failure before the first packet. Full: such a failure may be recorded
/// twice, once as the caller's word.
#[map]
pub(crate) static CALLING: LruHashMap<u32, Calling> = LruHashMap::pinned(8 * 1024, 0);

/// Threads that try a request of io_uring to accept, by thread id. Full: the oldest makes room, and what it accepts is not told: more
/// threads than that would have to be in it at once.
#[map]
pub(crate) static ACCEPTING: LruHashMap<u32, u32> = LruHashMap::pinned(8 * 1024, 0);

/// A connect that failed inside its call after the first state change; the
/// error is known only when the call returns. Full: recorded at once, result unknown
/// (`CONN_UNDECIDED`).
#[map]
pub(crate) static FAILING: HashMap<u32, Connection> = HashMap::pinned(1024, 0);

/// A failure that was recorded.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Reported {
    /// Inode number of the socket's file: addresses are reused.
    pub(crate) ino: u64,
    /// Its errno, positive.
    pub(crate) error: u64,
}

/// What decision points saw of calls under way, by thread id; taken when the call returns, whether or not it succeeds. Full: the
/// call is recorded with the caller's word, and counted in `POINTS`. What is left behind, where the return was not seen,
/// user space removes.
#[map]
pub(crate) static KNOWN: HashMap<u32, [u8; KNOWN_BYTES]> = HashMap::pinned(KNOWN_ENTRIES, 0);

/// The same of opens, of which a thread has one under way: the last that it was asked about. Full: as `KNOWN`; the open is
/// recorded by what stands behind its descriptor.
#[map]
pub(crate) static OPENED: HashMap<u32, [u8; OPENED_BYTES]> = HashMap::pinned(KNOWN_ENTRIES, 0);

/// What the iterator `memory` reads: see `sumun_abi::memory`.
#[map]
pub(crate) static MEMORY: Array<[u64; 2]> = Array::with_max_entries(1, 0);

/// Counters of decision points, by `event::file::point`.
#[map]
pub(crate) static POINTS: Array<u64> = Array::with_max_entries(POINT_COUNT, 0);

/// Sockets whose failure was recorded and may yet be reported to a second connect
/// on the same socket. Full: that second report may be recorded again as the caller's word.
#[map]
pub(crate) static REPORTED: LruHashMap<u64, Reported> = LruHashMap::pinned(8 * 1024, 0);

/// Whom a process talks to by UDP.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct FlowKey {
    /// The other end's address.
    pub(crate) address: [u64; 2],
    /// Start of the process.
    pub(crate) start_ns: u64,
    /// Its image.
    pub(crate) image: u64,
    /// Its number.
    pub(crate) pid: u32,
    /// The other end's port.
    pub(crate) port: u16,
    /// `FAMILY_*`.
    pub(crate) family: u16,
}

/// What became of it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Flow {
    /// When it was last judged.
    pub(crate) judged_ns: u64,
    /// What has come since of which there is no record.
    pub(crate) folded: u64,
    /// The filter that judged it.
    pub(crate) generation: u32,
    /// 1 if it was told.
    pub(crate) told: u32,
}

/// Talk by UDP that was judged. Full: the oldest makes room, and is judged and told anew with the next datagram; how many it
/// had meanwhile is then not told.
#[map]
pub(crate) static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::pinned(16 * 1024, 0);

/// `BUDGET`: new UDP flows.
pub(crate) const OF_UDP: u32 = 0;
/// `BUDGET`: DNS messages.
pub(crate) const OF_DNS: u32 = 1;

/// A second since boot, and how many records of a kind were made in it.
#[map]
pub(crate) static BUDGET: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(2, 0);

/// Who asked a DNS server, by the socket's cookie, which is never used again. Full: the oldest makes room, and an answer that
/// comes later names no process.
#[map]
pub(crate) static ASKERS: LruHashMap<u64, Actor> = LruHashMap::pinned(8 * 1024, 0);

/// A file, whatever names it has.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct FileKey {
    /// Its inode's number …
    pub(crate) ino: u64,
    /// … and address, where number and generation can be another file's, too; else 0.
    pub(crate) address: u64,
    /// Device of its superblock.
    pub(crate) dev: u32,
    /// Generation of its number.
    pub(crate) generation: u32,
}

/// Who last opened a file for writing. Full: the least recently used makes room, counted by `watched::FILES`; who wrote that
/// file is then unknown.
#[map]
pub(crate) static WRITERS: LruHashMap<FileKey, Writer> = LruHashMap::pinned(WRITERS_ENTRIES, 0);

/// Since when, and counters, by `watched`.
#[map]
pub(crate) static WATCHED: Array<u64> = Array::pinned(watched::COUNT, 0);
