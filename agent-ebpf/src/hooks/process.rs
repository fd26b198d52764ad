//! Fork, exec, exit, and the processes that were there before.
//!
//! Process life is always sent: nothing filters it.

use core::ptr::addr_of_mut;

use aya_ebpf::{
    helpers::generated::bpf_seq_write, macros::btf_tracepoint, programs::BtfTracePointContext,
};
use sumun_abi::{
    event::{
        kind,
        process::{EXE_INTERPRETED, EXE_SECURE, Exec, Exit, Fork, outcome},
    },
    record::{Header, LEVELS, RECORD_MAX, RING_LIFE},
    slot,
    verdict::{Sharer, on},
};

use super::file::writers;
use crate::{
    kernel::{
        Object, bit, get, layer, opaque,
        path::{self, Tail, Text},
        task::Task,
        value,
    },
    maps::{BEGUN, EXITED},
    policy::{hunt, lineage, sharers as table, verdict},
    run::{self, Run, scratch},
};

/// A new process or thread; threads are not recorded.
#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    forked(&ctx, false)
}

/// The same once more, after the first. The kernel leaves a program out while it is under way on the same CPU: where
/// tracepoints can be preempted (7.x), a fork that comes in between would not be recorded, and of the child nobody would know
/// the ancestors. It cannot be in both at once, and what the first has done the second finds done.
#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork_again(ctx: BtfTracePointContext) -> i32 {
    forked(&ctx, true)
}

#[inline(always)]
fn forked(ctx: &BtfTracePointContext, again: bool) -> i32 {
    let child = Task(Object::argument(ctx.arg(1)));
    // The filter is looked at inside the run: until its end user space does not fill it anew.
    if child.pid() != child.tid() || is_done(child, again) {
        return 0;
    }
    // Inside the run, which user space waits for when a hunt begins; also of one whose record is lost.
    let run = Run::begin(RING_LIFE);
    if hunt::is_on() {
        hunt::sumun_born(u64::from(child.pid()), child.start());
    }
    if let Some(run) = run {
        let index = run::active().unwrap_or(0);
        fork(run, index, Task(Object::argument(ctx.arg(0))), child);
        run.end();
    }
    0
}

/// True if the second of the two programs at a fork or an exec finds that the first has handled it.
#[inline(always)]
fn is_done(task: Task, again: bool) -> bool {
    let key = [u64::from(task.pid()), task.start()];
    let number = task.image();
    if again {
        // SAFETY: the value is copied at once; a task begins one image at a time.
        let done = unsafe { BEGUN.get(&key) }.is_some_and(|begun| *begun == number);
        let _ = BEGUN.remove(&key);
        return done;
    }
    // Before anything can go wrong: what the first counts as lost, the second does not tell.
    let _ = BEGUN.insert(&key, &number, 0);
    false
}

#[inline(always)]
fn fork(run: Run, index: u32, parent: Task, child: Task) {
    let Some(record) = run.record::<Fork>() else {
        return;
    };
    let real_parent = child.parent();
    let known = lineage::fork(run.level, index, parent, real_parent, child);
    table::fork(parent, child);
    // SAFETY: the record is this run's.
    unsafe {
        parent.actor(addr_of_mut!((*record).actor));
        child.actor(addr_of_mut!((*record).child));
        addr_of_mut!((*record).parent_pid).write(real_parent.pid());
        addr_of_mut!((*record).lineage_unknown).write(u32::from(!known));
        addr_of_mut!((*record).parent_start_ns).write(real_parent.start());
        addr_of_mut!((*record).parent_image).write(real_parent.image());
        child.namespaces(addr_of_mut!((*record).ns));
    }
    run.send(
        RING_LIFE,
        kind::FORK,
        generation(index),
        size_of::<Fork>() as u32,
    );
}

#[inline(always)]
fn generation(index: u32) -> u32 {
    run::filter(index).map_or(0, |filter| filter.generation)
}

/// An exec that succeeded, before the new image runs its first instruction.
#[btf_tracepoint(function = "sched_process_exec")]
fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    executed(&ctx, false)
}

/// The same once more, after the first. The kernel leaves a program out while it is under way on the same CPU: where
/// tracepoints can be preempted (7.x), an exec that comes in between would be neither judged nor recorded. It
/// cannot be in both at once, and what the first has done the second finds done.
#[btf_tracepoint(function = "sched_process_exec")]
fn sched_process_exec_again(ctx: BtfTracePointContext) -> i32 {
    executed(&ctx, true)
}

#[inline(always)]
fn executed(ctx: &BtfTracePointContext, again: bool) -> i32 {
    let task = Task(Object::argument(ctx.arg(0)));
    if is_done(task, again) {
        return 0;
    }
    if let Some(run) = Run::begin(RING_LIFE) {
        let index = run::active().unwrap_or(0);
        let old_tid: u32 = ctx.arg(1);
        let binprm: u64 = ctx.arg(2);
        let mut flags = 0;
        if bit(binprm, slot::BPRM_SECURE) {
            flags |= EXE_SECURE;
        }
        let name: u64 = get(binprm, slot::BPRM_FILENAME);
        let mut script = 0;
        if name != get::<u64>(binprm, slot::BPRM_INTERP) {
            flags |= EXE_INTERPRETED;
            script = name;
        }
        let script = run.number(script);
        if let Some(len) = image(run, task, old_tid, flags, Some((index, script))) {
            if verdict::asked_at_exec(index) {
                judge(run, index);
            }
            run.send(RING_LIFE, kind::EXEC, generation(index), len);
        }
        run.end();
    }
    0
}

/// Lets the rules that kill judge, and writes what became of it into the record.
#[inline(always)]
fn judge(run: Run, index: u32) {
    let judged = verdict::judge(run.level, index, on::EXEC);
    if let Some(record) = run.record::<Exec>() {
        // SAFETY: the record is this run's.
        unsafe {
            addr_of_mut!((*record).outcome).write(judged.outcome());
            addr_of_mut!((*record).rule).write(judged.rule());
            addr_of_mut!((*record).error).write(judged.error());
            addr_of_mut!((*record).lineage_unknown).write(judged.lineage_unknown());
        }
    }
}

/// Fills in an `Exec` for `task`; its length. With the active filter, and with what an interpreter runs or 0, for an exec of the
/// current process: only then can arguments be read, and are the rules that kill asked.
#[inline(always)]
fn image(run: Run, task: Task, old_tid: u32, flags: u32, exec: Option<(u32, u64)>) -> Option<u32> {
    let record = run.record::<Exec>()?;
    // SAFETY: the record is this run's; all fields are written, here and by what is called.
    unsafe {
        addr_of_mut!((*record).old_tid).write(old_tid);
        addr_of_mut!((*record).exe_flags).write(layer::forgotten(run, flags));
        addr_of_mut!((*record).outcome).write(outcome::NONE);
        addr_of_mut!((*record).rule).write(0);
        addr_of_mut!((*record).error).write(0);
        addr_of_mut!((*record).lineage_unknown).write(0);
    }
    // In functions of their own, which the verifier looks at once: each pointer that may be null doubles the ways through all that
    // follows as long as it is in use, and 6.1's walked half a million instructions where all were.
    if exec.is_some() {
        sumun_exec_who(run.level);
        sumun_exec_exe(run.level);
    } else {
        who(record, task);
        executable(run, record, task);
    }
    let mut tail = Tail::after::<Exec>(run.level);
    // Asked for where it is used: what is held over a call is another way through what follows.
    let exe = || task.mm().follow(slot::MM_EXE_FILE);
    let walked = path::walk(
        run.level,
        exe().number(slot::FILE_DENTRY),
        exe().number(slot::FILE_MNT),
    );
    // SAFETY: as above.
    unsafe {
        if let Some((index, _)) = exec
            && verdict::asked_at_exec(index)
        {
            verdict::sumun_answers(run.level, index, walked.0);
            verdict::set_in_image(run.level, addr_of_mut!((*record).exe_flags).read());
        }
        let exe = if exe().address == 0 {
            Text::NONE
        } else {
            tail.walked(walked)
        };
        exe.store(addr_of_mut!((*record).exe), 0);
        let fs = task.fs();
        let cwd = if fs.address == 0 {
            Text::NONE
        } else {
            tail.path(fs.number(slot::FS_PWD_DENTRY), fs.number(slot::FS_PWD_MNT))
        };
        cwd.store(addr_of_mut!((*record).cwd), 0);
        // Before the arguments, which take the room that there is.
        if let Some((_, script)) = exec {
            let end = sumun_exec_texts(run.level, tail.end(), script);
            tail = Tail::from(run.level, end as u32);
        } else {
            texts(record, &mut tail, task, 0);
        }
        let mm = task.mm();
        let start: u64 = mm.get(slot::MM_ARG_START);
        let end: u64 = mm.get(slot::MM_ARG_END);
        let args = if exec.is_some() {
            tail.arguments(start, end)
        } else {
            Text::NONE
        };
        args.store(addr_of_mut!((*record).args), 0);
        addr_of_mut!((*record).args_total).write(end.wrapping_sub(start));
    }
    Some(tail.end())
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_exec_who(level: u32) -> u64 {
    if let Some(record) = (Run { level }).record::<Exec>() {
        who(record, Task::current());
    }
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_exec_texts(level: u32, at: u32, script: u64) -> u64 {
    let mut tail = Tail::from(level, at);
    if let Some(record) = (Run { level }).record::<Exec>() {
        texts(record, &mut tail, Task::current(), script);
    }
    tail.end().into()
}

/// Appends what an interpreter runs, and the terminal.
#[inline(always)]
fn texts(record: *mut Exec, tail: &mut Tail, task: Task, script: u64) {
    let mut append = |address| match address {
        0 => Text::NONE,
        address => tail.kernel_string(address),
    };
    let tty = task.tty();
    // SAFETY: callers pass their run's record.
    unsafe {
        append(script).store(addr_of_mut!((*record).script), 0);
        append(tty).store(addr_of_mut!((*record).tty), 0);
    }
}

/// Writes who the process is: identity, parent, credentials, session.
#[inline(always)]
fn who(record: *mut Exec, task: Task) {
    // SAFETY: callers pass their run's record.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        task.namespaces(addr_of_mut!((*record).ns));
        let parent = task.parent();
        addr_of_mut!((*record).parent_pid).write(parent.pid());
        addr_of_mut!((*record).parent_start_ns).write(parent.start());
        addr_of_mut!((*record).parent_image).write(parent.image());
        let cred = task.cred();
        addr_of_mut!((*record).cap_permitted).write(cred.number(slot::CRED_CAP_PERMITTED));
        addr_of_mut!((*record).cap_inheritable).write(cred.number(slot::CRED_CAP_INHERITABLE));
        let auid = if value(slot::TASK_LOGINUID) == slot::NONE {
            u32::MAX
        } else {
            task.0.get(slot::TASK_LOGINUID)
        };
        addr_of_mut!((*record).auid).write(auid);
        let audit_session = if value(slot::TASK_SESSIONID) == slot::NONE {
            u32::MAX
        } else {
            task.0.get(slot::TASK_SESSIONID)
        };
        addr_of_mut!((*record).audit_session).write(audit_session);
        addr_of_mut!((*record).session).write(task.session());
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_exec_exe(level: u32) -> u64 {
    let run = Run { level };
    if let Some(record) = run.record::<Exec>() {
        executable(run, record, Task::current());
    }
    0
}

/// Writes what the executable's file is, and adds to the flags which layer it is of.
#[inline(always)]
fn executable(run: Run, record: *mut Exec, task: Task) {
    let inode = task.mm().follow(slot::MM_EXE_FILE).follow(slot::FILE_INODE);
    // SAFETY: callers pass their run's record, whose flags are written.
    unsafe {
        addr_of_mut!((*record).exe_dev).write(inode.follow(slot::INODE_SB).get(slot::SB_DEV));
        addr_of_mut!((*record).exe_nlink).write(inode.get(slot::INODE_NLINK));
        addr_of_mut!((*record).exe_ino).write(inode.get(slot::INODE_INO));
        addr_of_mut!((*record).exe_changed_ns).write(layer::changed_ns(inode));
        let flags = addr_of_mut!((*record).exe_flags);
        flags.write(flags.read() | layer::of(run, task, inode));
    }
    writers::tell(run, inode);
}

/// A thread leaves; the last one of its process is recorded.
#[btf_tracepoint(function = "sched_process_exit")]
fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    let task = Task(Object::argument(ctx.arg(0)));
    if value(slot::EXIT_ARGUMENTS) == 2 {
        // The kernel says itself whether this was the last thread.
        if ctx.arg::<u64>(1) & 0xff == 0 {
            return 0;
        }
    } else {
        if task.live() != 0 {
            return 0;
        }
        // BPF_NOEXIST: the second of two threads that both saw 0 fails here.
        let key = [u64::from(task.pid()), task.start()];
        if EXITED.insert(key, 0, 1).is_err() {
            return 0;
        }
    }
    if let Some(run) = Run::begin(RING_LIFE) {
        let index = run::active().unwrap_or(0);
        if let Some(record) = run.record::<Exit>() {
            // SAFETY: the record is this run's.
            unsafe {
                task.actor(addr_of_mut!((*record).actor));
                addr_of_mut!((*record).code).write(task.exit_code());
                addr_of_mut!((*record).pad).write(0);
            }
            run.send(
                RING_LIFE,
                kind::EXIT,
                generation(index),
                size_of::<Exit>() as u32,
            );
        }
        lineage::exit(index, task);
        run.end();
    }
    0
}

/// Context of a task iterator (`struct bpf_iter__task`).
#[repr(C)]
pub(super) struct IterTask {
    pub(super) meta: *const IterMeta,
    pub(super) task: u64,
}

/// `struct bpf_iter_meta`.
#[repr(C)]
pub(super) struct IterMeta {
    pub(super) seq: *mut core::ffi::c_void,
    sid: u64,
    pub(super) num: u64,
}

/// Writes one `TASK` record per process into the iterator's file. The kernel
/// calls it again for the same task when its buffer was full, so any
/// number of processes passes through one page of memory.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn tasks(ctx: *const IterTask) -> i32 {
    // SAFETY: the kernel passes this context to programs of this type.
    let (meta, pointer) = unsafe { ((*ctx).meta, (*ctx).task) };
    if pointer == 0 {
        return 0;
    }
    if let Some(run) = Run::begin(RING_LIFE) {
        let mut task = Task(Object::plain(run.number(pointer)));
        let first = task.reaper();
        // SAFETY: as above.
        let mut more = unsafe { (*meta).num } == 0 && first.tid() != task.tid();
        loop {
            if task.pid() == task.tid()
                && let Some(len) = image(run, task, task.tid(), 0, None)
            {
                // Who made it was not seen.
                if task.shares_files_with_others() {
                    table::shares(task);
                }
                write(run, meta, len);
            }
            if !more {
                break;
            }
            // Some kernels hide the first process from iterators: it is added to the first one shown.
            more = false;
            task = first;
        }
        run.end();
    }
    0
}

/// Writes one `Sharer` into the iterator's file for each process that was made to share its open files.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn sharers(ctx: *const IterTask) -> i32 {
    // SAFETY: as in `tasks`.
    let (meta, pointer) = unsafe { ((*ctx).meta, (*ctx).task) };
    if pointer == 0 {
        return 0;
    }
    let task = Task(Object::argument(pointer));
    if task.pid() == task.tid()
        && let Some(sharer) = table::told(task)
    {
        // SAFETY: `seq` is the kernel's.
        unsafe {
            bpf_seq_write(
                (*meta).seq.cast(),
                (&raw const sharer).cast_mut().cast(),
                size_of::<Sharer>() as u32,
            );
        }
    }
    0
}

#[inline(always)]
fn write(run: Run, meta: *const IterMeta, len: u32) {
    if run.level >= LEVELS {
        return;
    }
    let Some(scratch) = scratch(run.level) else {
        return;
    };
    let len = opaque(u64::from(len));
    if len > RECORD_MAX as u64 {
        return;
    }
    // SAFETY: the scratch is this run's, `len` is inside the record, and `seq` is the kernel's.
    unsafe {
        let record: *mut u8 = addr_of_mut!((*scratch).record).cast();
        record.cast::<Header>().write(Header {
            len: len as u32,
            kind: kind::TASK,
            ring: RING_LIFE,
            level: run.level as u8,
            cpu: 0,
            generation: 0,
            seq: 0,
            boot_ns: aya_ebpf::helpers::bpf_ktime_get_boot_ns(),
        });
        bpf_seq_write((*meta).seq.cast(), record.cast(), len as u32);
    }
}
