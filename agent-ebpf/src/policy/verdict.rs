//! Rules that kill, judged at an exec before the new image runs.
//!
//! What is unknown never kills: the record says `UNDECIDED`, and user space judges again.

use core::ptr::addr_of_mut;

use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, generated::bpf_send_signal};
use sumun_abi::{
    event::process::{Exec, outcome},
    policy::tag,
    record::{
        FLAW_LOST, FLAW_PARTIAL, FLAW_RACY, FLAW_TRUNCATED, FLAW_UNREACHABLE, LEVELS, PATH_MAX,
    },
    slot,
    verdict::{CLAUSES, NUMBERS, Verdicts, id},
};

use super::{lineage, lookup_walked};
use crate::{
    kernel::{Object, get, path::Walked, task::Task},
    maps::{Answers, GUARD, LEASE, Scratch, VERDICTS},
    run::{Run, scratch},
};

/// `SIGKILL`
const SIGKILL: u32 = 9;
/// The daemon whose listener lets people in to mend what a rule has broken.
const SSHD: &[u8; 4] = b"sshd";
/// The agent, of whatever version.
const AGENT: &[u8; 11] = b"sumun-agent";
/// Inode number of the first pid namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: u32 = 0xefff_fffc;
/// `S_IWGRP | S_IWOTH`
const WRITABLE_BY_OTHERS: u16 = 0o022;
/// With one of these a path is not known.
const UNKNOWN: u8 = FLAW_TRUNCATED | FLAW_PARTIAL | FLAW_LOST | FLAW_RACY;

/// True if any rule of the active plan can kill.
#[inline(always)]
pub(crate) fn asked(index: u32) -> bool {
    VERDICTS
        .get(index & 1)
        .is_some_and(|plan| plan.clauses != 0)
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
    let walked = Walked(walked);
    let (mut yes, mut own_yes, mut open) = (0, 0, plan.exe | plan.lineage);
    let mut guarded_name = 0;
    if walked.flaws() & UNKNOWN == 0 {
        let len = (PATH_MAX as u64).wrapping_sub(walked.start());
        (yes, own_yes) = lookup_walked(scratch, index, tag::VERDICT_PATH, walked.start(), len);
        open = 0;
        if walked.flaws() & FLAW_UNREACHABLE != 0 {
            // The name of a memfd may have a slash in it; what then is its last component?
            open = plan.named;
        } else {
            let len = walked.name_len();
            let start = (PATH_MAX as u64).wrapping_sub(len);
            let (named, own_named) = lookup_walked(scratch, index, tag::VERDICT_NAME, start, len);
            yes |= named;
            own_yes |= own_named;
            guarded_name = u64::from(
                len == SSHD.len() as u64 && ends_with(scratch, SSHD)
                    || len == AGENT.len() as u64 && ends_with(scratch, AGENT),
            );
        }
    }
    // SAFETY: the scratch is this run's.
    unsafe {
        addr_of_mut!((*scratch).answers).write(Answers {
            yes,
            unknown: open & plan.exe & !yes,
            own_yes,
            own_unknown: open & plan.lineage & !own_yes,
            guarded_name,
        });
    }
    0
}

/// Whether the walked path ends so; the walk's text ends at `PATH_MAX`.
#[inline(always)]
fn ends_with<const N: usize>(scratch: *mut Scratch, name: &[u8; N]) -> bool {
    let mut place = 0;
    while place < N {
        // SAFETY: the scratch is this run's; constant places inside the walk.
        let byte = unsafe {
            addr_of_mut!((*scratch).walk)
                .cast::<u8>()
                .add(PATH_MAX - N + place)
                .read_volatile()
        };
        if byte != name[place] {
            return false;
        }
        place += 1;
    }
    true
}

/// What became of an exec: in one word, because a global function returns a number.
#[derive(Clone, Copy)]
pub(crate) struct Judged(pub(crate) u64);

impl Judged {
    #[inline(always)]
    fn new(outcome: u32, rule: u32, error: u64, unknown: bool) -> Judged {
        Judged(
            u64::from(outcome & 0xff)
                | u64::from(unknown) << 8
                | (error & 0xffff) << 16
                | u64::from(rule) << 32,
        )
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

    /// What is asked about ancestors is not known.
    #[inline(always)]
    pub(crate) fn lineage_unknown(self) -> u32 {
        (self.0 >> 8) as u32 & 1
    }
}

/// Judges the exec of the current process, whose answers are in the scratch, and kills it if a rule says so.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_judge(level: u32, index: u32) -> u64 {
    let none = Judged::new(outcome::NONE, 0, 0, false).0;
    if level >= LEVELS {
        return none;
    }
    let Some(scratch) = scratch(level) else {
        return none;
    };
    let Some(plan) = VERDICTS.get(index & 1) else {
        return none;
    };
    let task = Task::current();
    // SAFETY: the scratch is this run's; all fields were written by `sumun_answers`.
    let (mut yes, mut unknown, own, guarded_name) = unsafe {
        let answers = addr_of_mut!((*scratch).answers);
        (
            (*answers).yes,
            (*answers).unknown,
            ((*answers).own_yes, (*answers).own_unknown),
            (*answers).guarded_name,
        )
    };
    let mut lineage_unknown = false;
    if plan.lineage != 0 {
        let (above_yes, above_unknown) = lineage::exec(index, plan, own);
        yes |= above_yes;
        unknown |= above_unknown;
        lineage_unknown = above_unknown != 0;
    }
    yes |= numbers(plan, task);
    let (mut rule, mut open) = (None, false);
    let mut place = 0;
    while place < CLAUSES {
        if place as u32 >= plan.clauses {
            break;
        }
        let clause = &plan.clause[place];
        place += 1;
        if (yes | unknown) & clause.need == clause.need && yes & clause.forbid == 0 {
            if unknown & (clause.need | clause.forbid) == 0 {
                rule = Some(clause.rule);
                break;
            }
            open = true;
        }
    }
    let Some(rule) = rule else {
        let outcome = if open {
            outcome::UNDECIDED
        } else {
            outcome::NONE
        };
        return Judged::new(outcome, 0, 0, lineage_unknown).0;
    };
    if guarded(level, task, guarded_name != 0) {
        return Judged::new(outcome::GUARDED, rule, 0, lineage_unknown).0;
    }
    // SAFETY: a live map value, written by user space as a whole.
    let until = LEASE
        .get_ptr(0)
        .map_or(0, |until| unsafe { until.read_volatile() });
    // SAFETY: no arguments.
    if unsafe { bpf_ktime_get_boot_ns() } > until {
        return Judged::new(outcome::EXPIRED, rule, 0, lineage_unknown).0;
    }
    // SAFETY: the current process; the helper refuses what it cannot do.
    let sent = unsafe { bpf_send_signal(SIGKILL) };
    if sent != 0 {
        return Judged::new(
            outcome::FAILED,
            rule,
            sent.wrapping_neg() as u64,
            lineage_unknown,
        )
        .0;
    }
    Judged::new(outcome::KILLED, rule, 0, lineage_unknown).0
}

/// Atoms about ids that are yes.
#[inline(always)]
fn numbers(plan: &Verdicts, task: Task) -> u64 {
    let cred = task.cred();
    let ids: [u32; 4] = [
        cred.get(slot::CRED_UID),
        cred.get(slot::CRED_GID),
        cred.get(slot::CRED_EUID),
        cred.get(slot::CRED_EGID),
    ];
    let mut yes = 0;
    let mut place = 0;
    while place < NUMBERS {
        if place as u32 >= plan.numbers {
            break;
        }
        let number = &plan.number[place];
        place += 1;
        let value = match number.id {
            id::UID => ids[0],
            id::GID => ids[1],
            id::EUID => ids[2],
            _ => ids[3],
        };
        if number.first <= value && value <= number.last {
            yes |= number.atom;
        }
    }
    yes
}

/// Whether the current process is one that no policy may kill. Kernel threads do not execute anything.
#[inline(always)]
fn guarded(level: u32, task: Task, named: bool) -> bool {
    let pid = task.pid();
    if pid == 1 {
        return true;
    }
    let inode = task.mm().follow(slot::MM_EXE_FILE).follow(slot::FILE_INODE);
    if named && is_of_the_host(level, inode) {
        return true;
    }
    let Some(guard) = GUARD.get(0) else {
        return false;
    };
    if u64::from(pid) == guard.pid && task.start() == guard.start_ns {
        return true;
    }
    let ino: u64 = inode.get(slot::INODE_INO);
    let dev: u32 = get(inode.number(slot::INODE_SB), slot::SB_DEV);
    guard.exe_ino != 0 && ino == guard.exe_ino && dev == guard.exe_dev
}

/// Neither a user nor a container can have put it there: its file is root's, nobody else may write it, and it is
/// in the first pid namespace.
#[inline(always)]
fn is_of_the_host(level: u32, inode: Object) -> bool {
    let Some(record) = (Run { level }).record::<Exec>() else {
        return false;
    };
    // SAFETY: the record is this run's; the hook has written it.
    let namespace = unsafe { addr_of_mut!((*record).ns.pid).read() };
    namespace == FIRST_PID_NAMESPACE
        && inode.get::<u32>(slot::INODE_UID) == 0
        && inode.get::<u16>(slot::INODE_MODE) & WRITABLE_BY_OTHERS == 0
}
