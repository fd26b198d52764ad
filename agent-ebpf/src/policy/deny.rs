//! Rules that deny, judged before the call does anything.
//!
//! What is unknown never denies. Functions here have frames of their own, apart from those of the rules that kill: the
//! calls that lead to those use all of the stack that there is.

use core::{
    mem::offset_of,
    ptr::{addr_of, addr_of_mut},
};

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use sumun_abi::{
    event::{
        deny::Asked,
        kernel::Setting,
        network::FAMILY_INET,
        process::{Exec, outcome},
    },
    policy::{ACCESS_BITS, MATCH_TEXT, OPEN_BITS, tag},
    record::{FLAW_TRUNCATED, LEVELS, Span},
    slot,
    verdict::{Verdicts, denied, id, on},
};

use super::{
    copy, find, first, guard,
    lineage::{self, Image},
    scope,
    verdict::{
        Judged, matched, net, numbers, path as walked_path, set_ids, set_in_image, sumun_answers,
    },
};
use crate::{
    hooks::told,
    kernel::{
        Object, get, layer,
        path::{self, Tail, Walked},
        task::Task,
    },
    maps::{Answers, LEASE, Scratch, VERDICTS},
    run::{Run, forgotten, scratch},
};

// All begin with a header and who did it.
const _: () = assert!(
    offset_of!(Asked, actor) == offset_of!(Setting, actor)
        && offset_of!(Asked, actor) == offset_of!(Exec, actor)
);

/// Asks the rules about the connect or bind of the record, and writes into it what they made of it. The outcome is returned.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_ask_network(level: u32, index: u32, kind: u32) -> u64 {
    if level >= LEVELS {
        return 0;
    }
    let Some(scratch) = scratch(level) else {
        return 0;
    };
    let Some(plan) = VERDICTS.get(index & 1) else {
        return 0;
    };
    let Some(record) = (Run { level }).record::<Asked>() else {
        return 0;
    };
    // SAFETY: record and scratch are this run's.
    unsafe {
        let port = addr_of!((*record).dst_port).read();
        let values: *mut u32 = addr_of_mut!((*scratch).values).cast();
        values.add(id::DST_PORT as usize).write(u32::from(port));
        values
            .add(id::PROTOCOL as usize)
            .write(addr_of!((*record).protocol).read());
        let mut unknown = plan.src_net
            | plan.numbered[id::SRC_PORT as usize]
            | plan.numbered[id::RESULT as usize];
        // Which one it becomes, the kernel has not chosen yet.
        if port == 0 && kind == on::denied(denied::BIND) {
            unknown |= plan.numbered[id::DST_PORT as usize];
        }
        let (len, dst) = if addr_of!((*record).family).read() == FAMILY_INET {
            (4, tag::VERDICT_DST_NET4)
        } else {
            (16, tag::VERDICT_DST_NET6)
        };
        let yes = if plan.dst_net != 0 {
            net(scratch, index, dst, addr_of!((*record).dst) as u64, len)
        } else {
            0
        };
        answer(scratch, yes, unknown);
        let judged = ask(level, index, kind);
        judged.store(addr_of_mut!((*record).verdict));
        u64::from(judged.outcome())
    }
}

/// Asks the rules about the file of the call of the record, and sends it if one has something to say; 1 if the call is denied.
/// Without a file both numbers are 0. Of renames and links, where they lead stands in `Scratch::given`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_ask_file(
    level: u32,
    index: u32,
    place: u32,
    dentry: u64,
    mnt: u64,
) -> u64 {
    if level >= LEVELS || place >= denied::COUNT as u32 {
        return 0;
    }
    let Some(scratch) = scratch(level) else {
        return 0;
    };
    let Some(plan) = VERDICTS.get(index & 1) else {
        return 0;
    };
    let run = Run { level };
    let Some(record) = run.record::<Asked>() else {
        return 0;
    };
    let place = place as usize;
    let kind = 1 << (16 + place);
    let mut tail = Tail::after::<Asked>(level);
    // SAFETY: record and scratch are this run's.
    unsafe {
        let inode: u64 = get(dentry, slot::DENTRY_INODE);
        if dentry != 0 {
            addr_of_mut!((*record).dev).write(get(get(inode, slot::INODE_SB), slot::SB_DEV));
            addr_of_mut!((*record).mode).write(u32::from(get::<u16>(inode, slot::INODE_MODE)));
            addr_of_mut!((*record).ino).write(get(inode, slot::INODE_INO));
        }
        let walked = if dentry == 0 {
            Walked::LOST
        } else {
            path::walk(level, dentry, mnt)
        };
        if place == denied::EXEC {
            sumun_answers(level, index, walked.0);
            let flags = layer::of(run, Task::current(), Object::plain(inode));
            set_in_image(level, flags);
            addr_of_mut!((*record).flags).write(flags);
        } else {
            let tags = (tag::VERDICT_FILE_PATH, tag::VERDICT_FILE_NAME);
            let (mut yes, _, open) = walked_path(scratch, index, walked, tags, plan);
            let unknown = open & plan.file;
            let flags = addr_of!((*record).flags).read();
            let mut bit = 0;
            while bit < OPEN_BITS {
                if flags & ACCESS_BITS[bit] != 0 {
                    yes |= plan.access[bit];
                }
                bit += 1;
            }
            answer(scratch, yes, unknown);
        }
        if dentry != 0 {
            tail.walked(walked).store(addr_of_mut!((*record).path), 0);
        }
        if place == denied::RENAME || place == denied::LINK {
            let walked = path::walk(
                level,
                addr_of!((*scratch).given.arguments[0]).read(),
                addr_of!((*scratch).given.arguments[1]).read(),
            );
            let tags = (tag::VERDICT_TO_PATH, tag::VERDICT_TO_PATH);
            let (yes, _, open) = walked_path(scratch, index, walked, tags, plan);
            let answers = addr_of_mut!((*scratch).answers);
            (*answers).yes |= yes & plan.to;
            (*answers).unknown |= open & plan.to & !yes;
            tail.walked(walked)
                .store(addr_of_mut!((*record).to_path), 0);
        }
        let judged = ask(level, index, kind);
        judged.store(addr_of_mut!((*record).verdict));
        u64::from(told(run, index, place, judged.outcome(), tail.end()))
    }
}

/// Asks the rules about the setting of the record, likewise.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_ask_setting(level: u32, index: u32) -> u64 {
    if level >= LEVELS {
        return 0;
    }
    let Some(scratch) = scratch(level) else {
        return 0;
    };
    let Some(plan) = VERDICTS.get(index & 1) else {
        return 0;
    };
    let Some(record) = (Run { level }).record::<Setting>() else {
        return 0;
    };
    // SAFETY: record and scratch are this run's.
    unsafe {
        let record_at = record as u64;
        let (mut yes, mut unknown) = (0, 0);
        for (span, tag, atoms) in [
            (
                addr_of!((*record).name).read(),
                tag::VERDICT_SETTING,
                plan.setting,
            ),
            (
                addr_of!((*record).value).read(),
                tag::VERDICT_VALUE,
                plan.value,
            ),
        ] {
            if atoms == 0 {
                continue;
            }
            // Of a text that is longer than all that a rule may ask for, the beginning answers everything.
            if span.flaws & FLAW_TRUNCATED != 0 && span.len < MATCH_TEXT as u16 {
                unknown |= atoms;
            } else {
                yes |= text(scratch, index, tag, record_at, span);
            }
        }
        answer(scratch, yes, unknown);
        let judged = ask(level, index, on::denied(denied::SYSCTL));
        judged.store(addr_of_mut!((*record).verdict));
        u64::from(judged.outcome())
    }
}

/// What a text of the record satisfies.
#[inline(always)]
fn text(scratch: *mut Scratch, index: u32, tag: u8, record: u64, span: Span) -> u64 {
    let source = record + u64::from(span.offset);
    let copied = copy(scratch, 0, source, u64::from(span.len));
    match find(scratch, first(index, tag), copied) {
        Some((found, true)) => found.file | found.file_exact,
        Some((found, false)) => found.file,
        None => 0,
    }
}

/// Leaves in the scratch what the call satisfies.
///
/// # Safety
/// The scratch is the run's.
#[inline(always)]
pub(super) unsafe fn answer(scratch: *mut Scratch, yes: u64, unknown: u64) {
    // SAFETY: as the caller says.
    unsafe {
        addr_of_mut!((*scratch).answers).write(Answers {
            yes,
            unknown: unknown & !yes,
            own_yes: 0,
            own_unknown: 0,
        });
    }
}

/// Asks the rules about the call of the record, of which the scratch has the answers so far.
#[inline(always)]
fn ask(level: u32, index: u32, kind: u32) -> Judged {
    scope::answer(level, index);
    Judged(sumun_ask(level, index, kind))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_ask(level: u32, index: u32, kind: u32) -> u64 {
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
    let Some(record) = (Run { level }).record::<Asked>() else {
        return none;
    };
    // SAFETY: record and scratch are this run's; the actor and all answers are written.
    let (actor, answers) = unsafe { (addr_of!((*record).actor), addr_of!((*scratch).answers)) };
    let who = Image::of_actor(actor);
    // SAFETY: as above.
    let (mut yes, mut unknown) = unsafe { ((*answers).yes, (*answers).unknown) };
    // As in `verdict::sumun_judge`.
    let mut lineage_unknown = forgotten(scratch, 0);
    if lineage::is_kept(plan) {
        // SAFETY: the scratch is this run's.
        let words = unsafe { addr_of_mut!((*scratch).words[0]) };
        lineage::words(words, who, plan, index);
        // SAFETY: as above; of an exec the answers say what the new executable satisfies.
        unsafe {
            yes |= (*words).above_yes;
            unknown |= (*words).above_unknown;
            if kind != on::denied(denied::EXEC) {
                yes |= (*words).exe_yes;
                unknown |= (*words).exe_unknown;
            }
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
    decide(plan, scratch, kind, (yes, unknown), lineage_unknown)
}

#[inline(always)]
fn decide(
    plan: &Verdicts,
    scratch: *mut Scratch,
    kind: u32,
    (yes, unknown): (u64, u64),
    lineage_unknown: u64,
) -> u64 {
    let (rule, open) = matched(plan, scratch, kind, yes, unknown);
    let Some(rule) = rule else {
        return Judged::open(open, lineage_unknown).0;
    };
    // SAFETY: a live map value, written by user space as a whole.
    let until = LEASE
        .get_ptr(0)
        .map_or(0, |until| unsafe { until.read_volatile() });
    let outcome = if guard::is_of_call(Task::current()) {
        outcome::GUARDED
    // SAFETY: no arguments.
    } else if unsafe { bpf_ktime_get_boot_ns() } > until {
        outcome::EXPIRED
    } else {
        outcome::DENIED
    };
    Judged::new(outcome, rule, 0, lineage_unknown).0
}
