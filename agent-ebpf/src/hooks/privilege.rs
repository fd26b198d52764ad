//! Credentials, reaching into other processes, namespaces, and memory that can hold code, when the call
//! returns. What credentials were before is taken at the call's entry.

use core::ptr::{self, addr_of, addr_of_mut};

use aya_ebpf::helpers::generated::bpf_get_current_comm;
use sumun_abi::{
    event::{
        kind,
        privilege::{
            CREDS_BEFORE_UNKNOWN, Control, Credentials, Creds, MEMORY_FILE, Memory, Reach,
            SPACES_UNKNOWN, Spaces, TASK_NAME,
        },
    },
    policy::{action, whole},
    record::{FLAW_LOST, FLAW_RACY},
    slot,
    verdict::denied,
};

use super::syscall::Call;
use crate::{
    kernel::{
        file::{File, read_user},
        path::{Tail, Text},
        task::Task,
    },
    maps::{BEFORE, Before},
};

// include/uapi/linux/ptrace.h, arch/x86/include/uapi/asm/ptrace-abi.h
const PTRACE_TRACEME: u64 = 0;
const PTRACE_SETREGSET: u64 = 0x4205;
const PTRACE_SEIZE: u64 = 0x4206;
/// TRACEME, POKETEXT, POKEDATA, POKEUSR, SETREGS, SETFPREGS, ATTACH.
const PTRACE_TOLD: u64 = 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 13 | 1 << 15 | 1 << 16;

/// `PROT_WRITE | PROT_EXEC`
const WRITE_EXECUTE: u64 = 2 | 4;
/// The number of shmat in ipc; above it stands a version.
const IPC_SHMAT: u64 = 21;
/// `SHM_EXEC` and `SHM_RDONLY`
const SHM_EXEC: u64 = 0o100_000;
const SHM_RDONLY: u64 = 0o10_000;
/// What `SHM_EXEC` without `SHM_RDONLY` gives: `PROT_READ`, too.
const SHM_PROTECTION: u64 = 1 | WRITE_EXECUTE;
/// `MAP_ANONYMOUS`
const MAP_ANONYMOUS: u64 = 0x20;

// include/uapi/linux/sched.h
const CLONE_NEWTIME: u64 = 0x80;
/// NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; of clone's flags the lowest byte is a signal.
const CLONE_NEW: u64 = 0x7e02_0000;

// include/uapi/linux/bpf.h: PROG_LOAD, PROG_ATTACH, RAW_TRACEPOINT_OPEN, LINK_CREATE
const BPF_TOLD: u64 = 1 << 5 | 1 << 8 | 1 << 17 | 1 << 28;

// include/uapi/linux/prctl.h
const PR_SET_NAME: u64 = 15;
const PR_CAP_AMBIENT: u64 = 47;
const PR_CAP_AMBIENT_RAISE: u64 = 2;
const PR_SET_PTRACER: u64 = 0x5961_6d61;
/// `PR_SET_DUMPABLE`, `PR_SET_NAME`, `PR_SET_SECUREBITS`, `PR_SET_MM`, `PR_CAP_AMBIENT`, `PR_SET_SYSCALL_USER_DISPATCH`
const PRCTL_TOLD: u64 =
    1 << 4 | 1 << PR_SET_NAME | 1 << 28 | 1 << 35 | 1 << PR_CAP_AMBIENT | 1 << 59;

/// True for what these calls are used for every day: no record comes of it.
#[inline(always)]
pub(super) fn is_idle(action: u8, a: u64, c: u64, result: i64) -> bool {
    match action {
        action::PTRACE => {
            let told = a < 64 && PTRACE_TOLD >> (a & 63) & 1 != 0;
            !told && a != PTRACE_SEIZE && a != PTRACE_SETREGSET
        }
        action::MPROTECT | action::MMAP => c & WRITE_EXECUTE != WRITE_EXECUTE,
        action::SHMAT => c & (SHM_EXEC | SHM_RDONLY) != SHM_EXEC,
        action::IPC => a & 0xffff != IPC_SHMAT || c & (SHM_EXEC | SHM_RDONLY) != SHM_EXEC,
        action::UNSHARE => a & (CLONE_NEW | CLONE_NEWTIME) == 0,
        // The child returns from it, too.
        action::CLONE => result == 0 || a & CLONE_NEW == 0,
        action::CLONE3 => result == 0,
        action::BPF => {
            // The kernel takes 32 bits of the command.
            let command = a & 0xffff_ffff;
            command >= 64 || BPF_TOLD >> (command & 63) & 1 == 0
        }
        action::PRCTL => {
            // The kernel takes 32 bits of the option.
            let option = a & 0xffff_ffff;
            let told = option < 64 && PRCTL_TOLD >> (option & 63) & 1 != 0;
            !told && option != PR_SET_PTRACER
        }
        _ => false,
    }
}

/// A call begins that may change credentials.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn sumun_begins() -> u64 {
    let task = Task::current();
    let mut before = Before {
        start_ns: task.start(),
        creds: Creds::default(),
    };
    task.creds(&raw mut before.creds);
    let _ = BEFORE.insert(&task.tid(), &before, 0);
    0
}

/// A call that may change credentials has failed, and nobody is told.
#[inline(always)]
pub(super) fn forget() {
    let _ = BEFORE.remove(&Task::current().tid());
}

/// A call of this family returned.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_privilege(call: u64) -> u64 {
    match Call(call).action() {
        action::SETID | action::CAPSET | action::SETGROUPS => sumun_credentials(call),
        action::PTRACE | action::VM_READ | action::VM_WRITE | action::PIDFD_GETFD => {
            sumun_reach(call)
        }
        action::UNSHARE | action::CLONE | action::CLONE3 | action::SETNS => sumun_spaces(call),
        action::PRCTL | action::USERFAULTFD => sumun_control(call),
        _ => sumun_memory(call),
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_credentials(call: u64) -> u64 {
    let call = Call(call);
    let (kind, place) = if call.action() == action::CAPSET {
        (kind::CAPSET, whole::CAPSET)
    } else {
        (kind::SETID, whole::SETID)
    };
    let Some(handed) = call.handed(place) else {
        return 0;
    };
    let Some(record) = handed.run.record::<Credentials>() else {
        return 0;
    };
    let task = handed.task;
    let tid = task.tid();
    let mut known = false;
    // SAFETY: the record is this run's, and all fields are written; the map value is live, and only this
    // thread's calls write it.
    unsafe {
        let before = addr_of_mut!((*record).before);
        let after = addr_of_mut!((*record).after);
        task.creds(after);
        if handed.result() < 0 {
            // A call that failed has changed nothing, and may not have come by `sumun_begins`: seccomp refuses it before.
            ptr::copy_nonoverlapping(after, before, 1);
            known = true;
        } else if let Some(found) = BEFORE.get_ptr(&tid)
            && (*found).start_ns == task.start()
        {
            ptr::copy_nonoverlapping(addr_of!((*found).creds), before, 1);
            known = true;
        } else {
            before.write(Creds::default());
        }
        let _ = BEFORE.remove(&tid);
        // Groups are not among them.
        let told = handed.result() != 0 || handed.action == action::SETGROUPS;
        if known && !told && same(before, after) {
            return 0;
        }
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).number).write(handed.given.number as u32);
        let flags = if known { 0 } else { CREDS_BEFORE_UNKNOWN };
        addr_of_mut!((*record).flags).write(handed.flags | flags);
        addr_of_mut!((*record).result).write(handed.result());
        addr_of_mut!((*record).pad).write(0);
    }
    handed.send(kind, size_of::<Credentials>() as u32)
}

/// True if the call changed nothing.
#[inline(always)]
fn same(one: *const Creds, other: *const Creds) -> bool {
    let (one, other) = (one.cast::<u64>(), other.cast::<u64>());
    let mut word = 0;
    while word < size_of::<Creds>() / 8 {
        // SAFETY: both are aligned to eight bytes and that long.
        if unsafe { one.add(word).read_volatile() != other.add(word).read_volatile() } {
            return false;
        }
        word += 1;
    }
    true
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_reach(call: u64) -> u64 {
    let call = Call(call);
    let (kind, place) = match call.action() {
        action::VM_READ => (kind::PROCESS_VM_READV, whole::VM_READ),
        action::VM_WRITE => (kind::PROCESS_VM_WRITEV, whole::VM_WRITE),
        action::PIDFD_GETFD => (kind::PIDFD_GETFD, whole::PIDFD_GETFD),
        _ => (kind::PTRACE, whole::PTRACE),
    };
    let Some(handed) = call.handed(place) else {
        return 0;
    };
    // Also of the other calls: a later one of this thread may fail for another reason.
    if super::deny::was_denied(handed.result(), denied::PTRACE) && kind == kind::PTRACE {
        return 0;
    }
    let task = handed.task;
    let [a, b, ..] = handed.given.arguments;
    let (given, request, target) = match handed.action {
        action::PTRACE if a == PTRACE_TRACEME => (0, a, task.plain()),
        action::PTRACE => (b, a, task.numbered(b as u32)),
        action::PIDFD_GETFD => (a, b, Task::of_pid(File::of(task, a as i32).pid())),
        _ => (a, 0, task.numbered(a as u32)),
    };
    // Reading one's own memory in this way is no reaching out.
    if matches!(handed.action, action::VM_READ | action::VM_WRITE) && target.pid() == task.pid() {
        return 0;
    }
    let Some(record) = handed.run.record::<Reach>() else {
        return 0;
    };
    let mut tail = Tail::after::<Reach>(handed.run.level);
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).number).write(handed.given.number as u32);
        addr_of_mut!((*record).flags).write(handed.flags);
        addr_of_mut!((*record).request).write(request as u32);
        addr_of_mut!((*record).given).write(given as i32);
        addr_of_mut!((*record).result).write(handed.result());
        addr_of_mut!((*record).pad).write(0);
        target.target(addr_of_mut!((*record).target));
        let exe = target.mm().follow(slot::MM_EXE_FILE);
        let exe = if exe.address == 0 {
            Text::NONE
        } else {
            tail.path(exe.number(slot::FILE_DENTRY), exe.number(slot::FILE_MNT))
        };
        exe.store(addr_of_mut!((*record).exe), 0);
    }
    handed.send(kind, tail.end())
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_spaces(call: u64) -> u64 {
    let call = Call(call);
    let setns = call.action() == action::SETNS;
    let place = if setns { whole::SETNS } else { whole::UNSHARE };
    let Some(handed) = call.handed(place) else {
        return 0;
    };
    let task = handed.task;
    let [a, b, ..] = handed.given.arguments;
    let mut flags = handed.flags;
    let mut child = handed.given.result as u32;
    let result = handed.result();
    let namespaces = match handed.action {
        action::CLONE => a & CLONE_NEW,
        action::CLONE3 => match read_user::<u64>(a) {
            Some(asked) => {
                if asked & (CLONE_NEW | CLONE_NEWTIME) == 0 {
                    return 0;
                }
                asked & (CLONE_NEW | CLONE_NEWTIME)
            }
            None => {
                flags |= SPACES_UNKNOWN;
                0
            }
        },
        // The kernel takes 32 bits of the type.
        action::SETNS if b as u32 != 0 => b,
        action::SETNS => u64::from(File::of(task, a as i32).namespace()),
        _ => a & (CLONE_NEW | CLONE_NEWTIME),
    };
    if matches!(handed.action, action::SETNS | action::UNSHARE) || result != 0 {
        child = 0;
    }
    if setns && namespaces & (CLONE_NEW | CLONE_NEWTIME) == 0 {
        // The descriptor was gone.
        flags |= SPACES_UNKNOWN;
    }
    let Some(record) = handed.run.record::<Spaces>() else {
        return 0;
    };
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).number).write(handed.given.number as u32);
        addr_of_mut!((*record).flags).write(flags);
        addr_of_mut!((*record).namespaces).write(namespaces as u32);
        addr_of_mut!((*record).child).write(child);
        addr_of_mut!((*record).result).write(result);
        addr_of_mut!((*record).pad).write(0);
        task.namespaces(addr_of_mut!((*record).ns));
    }
    let kind = if setns { kind::SETNS } else { kind::UNSHARE };
    handed.send(kind, size_of::<Spaces>() as u32)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_memory(call: u64) -> u64 {
    let call = Call(call);
    let memfd = call.action() == action::MEMFD;
    let place = if memfd { whole::MEMFD } else { whole::MAP_WX };
    let Some(handed) = call.handed(place) else {
        return 0;
    };
    let task = handed.task;
    let [a, b, mut protection, mut call_flags, mut fd] = handed.given.arguments;
    let mut address = handed.given.result as u64;
    let mut len = b;
    let mut is_file = false;
    match handed.action {
        action::MEMFD => {
            (address, len, protection) = (0, 0, 0);
            (call_flags, fd) = (b, handed.given.result as u64);
            is_file = true;
        }
        action::MPROTECT => (address, call_flags) = (a, 0),
        // As long as the segment, which no argument tells. ipc returns 0 and writes the address where its third argument leads, after which
        // other threads may change it.
        action::SHMAT | action::IPC => {
            if handed.action == action::IPC {
                address = read_user::<u32>(call_flags).unwrap_or(0).into();
            }
            (call_flags, len, protection) = (protection, 0, SHM_PROTECTION);
        }
        action::MMAP_OLD => {
            let Some([_, length, prot, flags, from, _]) = read_user::<[u32; 6]>(a) else {
                return 0;
            };
            if u64::from(prot) & WRITE_EXECUTE != WRITE_EXECUTE {
                return 0;
            }
            (len, protection) = (u64::from(length), u64::from(prot));
            (call_flags, fd) = (u64::from(flags), u64::from(from));
            is_file = call_flags & MAP_ANONYMOUS == 0;
        }
        _ => is_file = call_flags & MAP_ANONYMOUS == 0,
    }
    let Some(record) = handed.run.record::<Memory>() else {
        return 0;
    };
    let mut tail = Tail::after::<Memory>(handed.run.level);
    let file = if is_file {
        File::of(task, fd as i32)
    } else {
        File::LOST
    };
    let racy = if task.shares_files() { FLAW_RACY } else { 0 };
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).number).write(handed.given.number as u32);
        let flags = if is_file { MEMORY_FILE } else { 0 };
        addr_of_mut!((*record).flags).write(handed.flags | flags);
        addr_of_mut!((*record).address).write(address);
        addr_of_mut!((*record).len).write(len);
        addr_of_mut!((*record).protection).write(protection as u32);
        addr_of_mut!((*record).call_flags).write(call_flags as u32);
        file.identity(
            addr_of_mut!((*record).dev),
            addr_of_mut!((*record).mode),
            addr_of_mut!((*record).ino),
        );
        let path = addr_of_mut!((*record).path);
        if !is_file {
            Text::NONE.store(path, 0);
        } else if !file.is_lost() {
            tail.path(file.dentry(), file.mnt()).store(path, racy);
        } else if memfd {
            tail.user_string(a).store(path, FLAW_LOST | racy);
        } else {
            Text::NONE.store(path, FLAW_LOST | racy);
        }
    }
    let kind = if memfd {
        kind::MEMFD_CREATE
    } else {
        kind::MAP_WX
    };
    handed.send(kind, tail.end())
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_control(call: u64) -> u64 {
    let call = Call(call);
    let prctl = call.action() == action::PRCTL;
    let place = if prctl {
        whole::PRCTL
    } else {
        whole::USERFAULTFD
    };
    let Some(handed) = call.handed(place) else {
        return 0;
    };
    let task = handed.task;
    let [a, b, c, ..] = handed.given.arguments;
    let option = if prctl { a & 0xffff_ffff } else { 0 };
    // What a thread is named is seldom of interest, and said often; by the first thread's name a process is known. To lower and to
    // ask for ambient capabilities gives nobody any.
    if option == PR_SET_NAME && task.tid() != task.pid()
        || option == PR_CAP_AMBIENT && b != PR_CAP_AMBIENT_RAISE
    {
        return 0;
    }
    let Some(record) = handed.run.record::<Control>() else {
        return 0;
    };
    // SAFETY: the record is this run's, and all fields are written: the helper fills the name, whatever it returns.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).number).write(handed.given.number as u32);
        addr_of_mut!((*record).flags).write(handed.flags);
        addr_of_mut!((*record).result).write(handed.result());
        addr_of_mut!((*record).option).write(option as u32);
        addr_of_mut!((*record).second).write(if prctl { b } else { a });
        addr_of_mut!((*record).third).write(if prctl { c } else { 0 });
        let name = addr_of_mut!((*record).name);
        bpf_get_current_comm(name.cast(), TASK_NAME as u32);
    }
    let kind = if prctl {
        kind::PRCTL
    } else {
        kind::USERFAULTFD
    };
    handed.send(kind, size_of::<Control>() as u32)
}
