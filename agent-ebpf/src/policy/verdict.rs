//! Rules that kill, judged at an exec before the new image runs, and at other events when they have happened
//! and are about to be recorded.
//!
//! What is unknown never kills: the record says `UNDECIDED`, and user space judges again. A process is killed only while
//! it is the one that runs: a packet that ends a connect may come in while another does.

use core::{
    mem::offset_of,
    ptr::{addr_of, addr_of_mut},
};

use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, generated::bpf_send_signal};
use sumun_abi::{
    event::{
        file::{OPEN_TRUNCATE, OPEN_TRUNCATE_UNKNOWN, Open},
        network::{
            CONN_CALLER, CONN_LOST, CONN_UNDECIDED, Connection, FAMILY_INET, RESULT_UNKNOWN,
        },
        process::{Actor, Exec, outcome},
    },
    policy::{ACCESS_BITS, OPEN_BITS, tag},
    record::{
        FLAW_LOST, FLAW_PARTIAL, FLAW_RACY, FLAW_TRUNCATED, FLAW_UNREACHABLE, LEVELS, PATH_MAX,
    },
    slot,
    verdict::{CLAUSES, FORCED, NUMBERS, Verdict, Verdicts, id, on},
};

use super::{
    copy, find, first, guard,
    lineage::{self, Image},
    lookup_walked, scope,
};
use crate::{
    kernel::{file::File, layer, nonzero, path::Walked, spread, task::Task},
    maps::{Answers, LEASE, Scratch, VERDICTS},
    run::{Run, forgotten, scratch},
};

/// `SIGKILL`
pub(super) const SIGKILL: u32 = 9;
/// With one of these a path is not known.
const UNKNOWN: u8 = FLAW_TRUNCATED | FLAW_PARTIAL | FLAW_LOST | FLAW_RACY;

/// True if any rule of the active plan can kill at events of a kind (of `verdict::on`).
#[inline(always)]
pub(crate) fn asked(index: u32, kind: u32) -> bool {
    VERDICTS
        .get(index & 1)
        .is_some_and(|plan| plan.kinds & kind != 0)
}

/// The same of execs, or something that a later event asks for becomes known at them.
#[inline(always)]
pub(crate) fn asked_at_exec(index: u32) -> bool {
    VERDICTS
        .get(index & 1)
        .is_some_and(|plan| plan.kinds & on::EXEC != 0 || lineage::is_kept(plan))
}

/// What the path that was just walked satisfies, by its whole and by its last component: the yes of both sets, and which of the
/// atoms about names, or `None` about all, are not known.
#[inline(always)]
pub(super) fn path(
    scratch: *mut Scratch,
    index: u32,
    walked: Walked,
    (whole, last): (u8, u8),
    plan: &Verdicts,
) -> (u64, u64, u64) {
    if walked.flaws() & UNKNOWN != 0 {
        return (0, 0, u64::MAX);
    }
    let len = (PATH_MAX as u64).wrapping_sub(walked.start());
    let (yes, own_yes) = lookup_walked(scratch, index, whole, walked.start(), len);
    if walked.flaws() & FLAW_UNREACHABLE != 0 {
        // The name of a memfd may have a slash in it; what then is its last component?
        return (yes, own_yes, plan.named);
    }
    let len = walked.name_len();
    let start = (PATH_MAX as u64).wrapping_sub(len);
    let (named, own_named) = lookup_walked(scratch, index, last, start, len);
    (yes | named, own_yes | own_named, 0)
}

/// Answers what is asked about the executable, whose path was just walked; the answers are left in the scratch.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_answers(level: u32, index: u32, walked: u64) -> u64 {
    if level >= LEVELS {
        return 1;
    }
    let Some(scratch) = scratch(level) else {
        return 1;
    };
    let Some(plan) = VERDICTS.get(index & 1) else {
        return 1;
    };
    let tags = (tag::VERDICT_PATH, tag::VERDICT_NAME);
    let (yes, own_yes, open) = path(scratch, index, Walked(walked), tags, plan);
    // SAFETY: the scratch is this run's.
    unsafe {
        addr_of_mut!((*scratch).answers).write(Answers {
            yes,
            unknown: open & plan.exe & !yes,
            own_yes,
            own_unknown: open & plan.lineage & !own_yes,
        });
    }
    0
}

/// Hands over what is known of the layer that the executable is of: its `EXE_*` flags.
#[inline(always)]
pub(crate) fn set_in_image(level: u32, flags: u32) {
    if let Some(scratch) = scratch(level) {
        // SAFETY: the scratch is this run's; the values have room for every id.
        unsafe {
            addr_of_mut!((*scratch).values)
                .cast::<u32>()
                .add(id::IN_IMAGE as usize)
                .write(layer::number(flags));
        }
    }
}

/// What became of an event: in one word, because a global function returns a number.
#[derive(Clone, Copy)]
pub(crate) struct Judged(pub(crate) u64);

impl Judged {
    /// `unknown` is what is not known of lineage, if anything.
    #[inline(always)]
    pub(super) fn new(outcome: u32, rule: u32, error: u64, unknown: u64) -> Judged {
        Judged(
            u64::from(outcome & 0xff)
                | u64::from(unknown != 0) << 8
                | (error & 0xffff) << 16
                | u64::from(rule) << 32,
        )
    }

    /// No clause holds; with what is `open`, if anything, one could.
    #[inline(always)]
    pub(super) fn open(open: u64, unknown: u64) -> Judged {
        let outcome = if open == 0 {
            outcome::NONE
        } else {
            outcome::UNDECIDED
        };
        Judged::new(outcome, 0, 0, unknown)
    }

    #[inline(always)]
    pub(crate) fn outcome(self) -> u32 {
        self.0 as u32 & 0xff
    }

    #[inline(always)]
    pub(crate) fn rule(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    pub(crate) fn error(self) -> u32 {
        (self.0 >> 16) as u32 & 0xffff
    }

    /// What is asked about the process or its ancestors is not known.
    #[inline(always)]
    pub(crate) fn lineage_unknown(self) -> u32 {
        (self.0 >> 8) as u32 & 1
    }

    /// Writes it into the record of an event of the current process.
    #[inline(always)]
    pub(super) fn store(self, out: *mut Verdict) {
        let task = Task::current();
        let outcome = self.outcome();
        let table = if outcome == outcome::KILLED && task.shares_files() {
            task.0.number(slot::TASK_FILES)
        } else {
            0
        };
        // SAFETY: callers pass a field of their record.
        unsafe {
            addr_of_mut!((*out).outcome).write(outcome);
            addr_of_mut!((*out).rule).write(self.rule());
            addr_of_mut!((*out).error).write(self.error());
            addr_of_mut!((*out).lineage_unknown).write(self.lineage_unknown());
            addr_of_mut!((*out).table).write(table);
        }
    }
}

/// Nothing was judged.
#[inline(always)]
pub(crate) fn none(out: *mut Verdict) {
    // SAFETY: callers pass a field of their record.
    unsafe {
        addr_of_mut!((*out).outcome).write(outcome::NONE);
        addr_of_mut!((*out).rule).write(0);
        addr_of_mut!((*out).error).write(0);
        addr_of_mut!((*out).lineage_unknown).write(0);
        addr_of_mut!((*out).table).write(0);
    }
}

/// In the place of a file's address: what is in the record is certain.
pub(crate) const CERTAIN: u64 = u64::MAX;

/// Judges the open or close of the record, whose path was just walked, and writes into it what became of it. `file` is 0 if it
/// was gone. The outcome is returned.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_judge_file(
    level: u32,
    index: u32,
    kind: u32,
    walked: u64,
    file: u64,
) -> u64 {
    if level >= LEVELS {
        return 0;
    }
    let Some(scratch) = scratch(level) else {
        return 0;
    };
    let Some(plan) = VERDICTS.get(index & 1) else {
        return 0;
    };
    let Some(record) = (Run { level }).record::<Open>() else {
        return 0;
    };
    // SAFETY: the record is this run's.
    let (flags, fd) = unsafe {
        (
            addr_of!((*record).flags).read(),
            addr_of!((*record).fd).read(),
        )
    };
    let task = Task::current();
    // Where others can put another file in its place, what was read may have been of one that was gone by then.
    let there =
        file == CERTAIN || file != 0 && (!task.shares_files() || File::of(task, fd).0 == file);
    let mut accesses = 0;
    let mut yes = 0;
    let mut bit = 0;
    while bit < ACCESS_BITS.len() {
        accesses |= plan.access[bit];
        if flags & ACCESS_BITS[bit] != 0 {
            yes |= plan.access[bit];
        }
        bit += 1;
    }
    let mut unknown = 0;
    if flags & OPEN_TRUNCATE_UNKNOWN != 0 {
        unknown = plan.access[TRUNCATE];
    }
    if there {
        let tags = (tag::VERDICT_FILE_PATH, tag::VERDICT_FILE_NAME);
        let (found, _, open) = path(scratch, index, Walked(walked), tags, plan);
        yes |= found;
        unknown |= open & plan.file;
    } else {
        yes = 0;
        unknown = plan.file | accesses;
    }
    // SAFETY: the scratch is this run's, and so is the record.
    unsafe {
        addr_of_mut!((*scratch).answers).write(Answers {
            yes,
            unknown: unknown & !yes,
            own_yes: 0,
            own_unknown: 0,
        });
        let judged = judge(level, index, kind);
        judged.store(addr_of_mut!((*record).verdict));
        u64::from(judged.outcome())
    }
}

/// Where `OPEN_TRUNCATE` stands in `ACCESS_BITS`.
const TRUNCATE: usize = OPEN_BITS - 1;
const _: () = assert!(ACCESS_BITS[TRUNCATE] == OPEN_TRUNCATE);

/// Judges the connection of the record and writes into it what became of it. `sure` is 0 if others may have put another socket
/// in the place of the one that was read. The outcome is returned.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_judge_connection(
    level: u32,
    index: u32,
    kind: u32,
    sure: u32,
) -> u64 {
    if level >= LEVELS {
        return 0;
    }
    let Some(scratch) = scratch(level) else {
        return 0;
    };
    let Some(plan) = VERDICTS.get(index & 1) else {
        return 0;
    };
    let Some(record) = (Run { level }).record::<Connection>() else {
        return 0;
    };
    // SAFETY: record and scratch are this run's.
    unsafe {
        let flags = addr_of!((*record).flags).read();
        let result = addr_of!((*record).result).read();
        let values: *mut u32 = addr_of_mut!((*scratch).values).cast();
        let ports = [
            (id::SRC_PORT, addr_of!((*record).src_port).read()),
            (id::DST_PORT, addr_of!((*record).dst_port).read()),
        ];
        for (id, port) in ports {
            values.add(id as usize).write(u32::from(port));
        }
        values
            .add(id::PROTOCOL as usize)
            .write(addr_of!((*record).protocol).read());
        values
            .add(id::RESULT as usize)
            .write(result as u32 ^ 1 << 31);
        let mut yes = 0;
        let mut unknown = 0;
        if sure == 0 || flags & (CONN_LOST | CONN_CALLER) != 0 {
            unknown = plan.src_net
                | plan.dst_net
                | plan.numbered[id::SRC_PORT as usize]
                | plan.numbered[id::DST_PORT as usize]
                | plan.numbered[id::PROTOCOL as usize];
        } else {
            let (len, src, dst) = if addr_of!((*record).family).read() == FAMILY_INET {
                (4, tag::VERDICT_SRC_NET4, tag::VERDICT_DST_NET4)
            } else {
                (16, tag::VERDICT_SRC_NET6, tag::VERDICT_DST_NET6)
            };
            if plan.dst_net != 0 {
                yes |= net(scratch, index, dst, addr_of!((*record).dst) as u64, len);
            }
            if plan.src_net != 0 {
                yes |= net(scratch, index, src, addr_of!((*record).src) as u64, len);
            }
            // It has just begun: the kernel has not chosen a port yet.
            if flags & CONN_UNDECIDED != 0 {
                unknown = plan.numbered[id::SRC_PORT as usize];
            }
        }
        if result == RESULT_UNKNOWN {
            unknown |= plan.numbered[id::RESULT as usize];
        }
        addr_of_mut!((*scratch).answers).write(Answers {
            yes,
            unknown,
            own_yes: 0,
            own_unknown: 0,
        });
        let judged = judge(level, index, kind);
        judged.store(addr_of_mut!((*record).verdict));
        u64::from(judged.outcome())
    }
}

#[inline(always)]
pub(super) fn net(scratch: *mut Scratch, index: u32, tag: u8, source: u64, len: u64) -> u64 {
    let copied = copy(scratch, 0, source, len);
    find(scratch, first(index, tag), copied).map_or(0, |(found, _)| found.net)
}

// What is judged begins with a header and who did it.
const _: () = assert!(
    offset_of!(Exec, actor) == offset_of!(Open, actor)
        && offset_of!(Exec, actor) == offset_of!(Connection, actor)
);

/// Judges the event of the record, of which the scratch has the answers so far, and kills its process if a rule says so
/// and it is the one that runs.
#[inline(always)]
pub(crate) fn judge(level: u32, index: u32, kind: u32) -> Judged {
    // Beside what follows and not in it: the calls that lead there leave no stack for one more (512 bytes for all).
    scope::answer(level, index);
    Judged(sumun_judge(level, index, kind))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_judge(level: u32, index: u32, kind: u32) -> u64 {
    let none = Judged::new(outcome::NONE, 0, 0, 0).0;
    if level >= LEVELS {
        return none;
    }
    let Some(scratch) = scratch(level) else {
        return none;
    };
    let Some(plan) = VERDICTS.get(index & 1) else {
        return none;
    };
    let Some(record) = (Run { level }).record::<Exec>() else {
        return none;
    };
    // SAFETY: record and scratch are this run's; the actor and all answers are written.
    let (actor, answers) = unsafe { (addr_of!((*record).actor), addr_of_mut!((*scratch).answers)) };
    let who = Image::of_actor(actor);
    // SAFETY: as above.
    let (mut yes, mut unknown) = unsafe { ((*answers).yes, (*answers).unknown) };
    // Told apart from 0 at the end only.
    let mut lineage_unknown = forgotten(scratch, 0);
    if lineage::is_kept(plan) {
        // SAFETY: the scratch is this run's.
        let words = unsafe { addr_of_mut!((*scratch).words[0]) };
        if kind == on::EXEC {
            lineage::exec(words, index, plan, who, answers);
        } else {
            lineage::words(words, who, plan, index);
        }
        // SAFETY: as above; on exec the answers say the same of the executable.
        unsafe {
            yes |= (*words).above_yes | (*words).exe_yes;
            unknown |= (*words).above_unknown | (*words).exe_unknown;
            lineage_unknown = (*words).above_unknown | (*words).exe_unknown;
        }
    }
    // Whether or not the plan asks: two ways through all that follows would be verified one by one.
    // SAFETY: as above.
    unsafe {
        yes |= (*scratch).scoped[0];
        unknown |= (*scratch).scoped[1];
        set_ids(scratch, actor);
    }
    yes |= numbers(plan, scratch) & !unknown;
    let (rule, open) = matched(plan, scratch, kind, yes, unknown);
    let Some(rule) = rule else {
        return Judged::open(open, lineage_unknown).0;
    };
    let (outcome, error) = kill(who, kind, rule & FORCED != 0);
    Judged::new(outcome, rule & !FORCED, error, lineage_unknown).0
}

/// Hands over the ids of who did it, for the conditions on numbers.
///
/// # Safety
/// The scratch is the run's, and the actor is written.
#[inline(always)]
pub(super) unsafe fn set_ids(scratch: *mut Scratch, actor: *const Actor) {
    // SAFETY: as the caller says; the values have room for every id.
    unsafe {
        let values: *mut u32 = addr_of_mut!((*scratch).values).cast();
        let caps = addr_of!((*actor).cap_effective).read();
        for (id, value) in [
            (id::CAPS_LOW, caps as u32),
            (id::CAPS_HIGH, (caps >> 32) as u32),
            (id::UID, addr_of!((*actor).uid).read()),
            (id::GID, addr_of!((*actor).gid).read()),
            (id::EUID, addr_of!((*actor).euid).read()),
            (id::EGID, addr_of!((*actor).egid).read()),
        ] {
            values.add(id as usize).write(value);
        }
    }
}

/// The rule of the first clause that holds, and what is unknown of clauses that could hold if it were known.
#[inline(always)]
pub(super) fn matched(
    plan: &Verdicts,
    scratch: *mut Scratch,
    kind: u32,
    yes: u64,
    unknown: u64,
) -> (Option<u32>, u64) {
    let (mut rule, mut open) = (None, forgotten(scratch, 0));
    let mut place = 0;
    while place < CLAUSES {
        if place as u32 >= plan.clauses {
            break;
        }
        let clause = &plan.clause[place];
        place += 1;
        let against = clause.need & !(yes | unknown)
            | clause.forbid & yes
            | !nonzero(u64::from(clause.kinds & kind));
        let unknown = unknown & (clause.need | clause.forbid);
        if against | unknown == 0 {
            rule = Some(clause.rule);
            break;
        }
        open |= unknown & !nonzero(against);
    }
    (rule, open)
}

/// Kills a process if it runs and may be killed: the outcome and the error. `forced`: what a host needs, too.
#[inline(always)]
fn kill(who: Image, kind: u32, forced: bool) -> (u32, u64) {
    let task = Task::current();
    if task.pid() != who.pid || task.start() != who.start_ns {
        return (outcome::ELSEWHERE, 0);
    }
    let kept = guard::of_kill(task, kind, forced);
    if kept != outcome::NONE {
        return (kept, 0);
    }
    // SAFETY: a live map value, written by user space as a whole.
    let until = LEASE
        .get_ptr(0)
        .map_or(0, |until| unsafe { until.read_volatile() });
    // SAFETY: no arguments.
    if unsafe { bpf_ktime_get_boot_ns() } > until {
        return (outcome::EXPIRED, 0);
    }
    // SAFETY: the current process; the helper refuses what it cannot do.
    let sent = unsafe { bpf_send_signal(SIGKILL) };
    if sent != 0 {
        return (outcome::FAILED, sent.wrapping_neg() as u64);
    }
    (outcome::KILLED, 0)
}

/// Atoms about numbers that are yes.
#[inline(always)]
pub(super) fn numbers(plan: &Verdicts, scratch: *mut Scratch) -> u64 {
    let mut yes = forgotten(scratch, 0);
    let mut place = 0;
    while place < NUMBERS {
        if place as u32 >= plan.numbers {
            break;
        }
        let number = &plan.number[place];
        place += 1;
        // SAFETY: the scratch is this run's; the place is inside.
        let value = unsafe {
            addr_of!((*scratch).values)
                .cast::<u32>()
                .add(number.id as usize & (id::COUNT - 1))
                .read()
        };
        let value = value & number.mask;
        let below = u64::from(value).wrapping_sub(u64::from(number.first));
        let above = u64::from(number.last).wrapping_sub(u64::from(value));
        yes |= number.atom & !spread(below | above);
    }
    yes
}
const _: () = assert!(id::COUNT.is_power_of_two());
