//! Reaches into other processes, and memory that can be written and executed, denied by BPF LSM.

use core::ptr::addr_of_mut;

use aya_ebpf::{macros::lsm, programs::LsmContext};
use sumun_abi::{event::kind, slot, verdict::denied};

use super::{answer, begin, is_canary, record, refuse};
use crate::{
    kernel::{Object, file::File, get, task::Task},
    policy::deny,
};

/// `PTRACE_MODE_ATTACH`, include/linux/ptrace.h: to read or write it, or to take something from it.
const ATTACH: u32 = 2;

/// Somebody asks for the right to reach into a process: ptrace, process_vm_readv and -writev, pidfd_getfd, `/proc/PID/mem`.
#[lsm(hook = "ptrace_access_check")]
fn deny_lsm_ptrace(ctx: LsmContext) -> i32 {
    let mode: u32 = ctx.arg(1);
    if mode & ATTACH == 0 {
        return 0;
    }
    if is_canary(denied::PTRACE) {
        return answer(true);
    }
    let Some((run, index)) = begin(denied::PTRACE) else {
        return 0;
    };
    let mut denied = false;
    if let Some(record) = record(run, kind::PTRACE) {
        let target = Task(Object::plain(run.number(ctx.arg(0))));
        let exe = target.mm().follow(slot::MM_EXE_FILE);
        // SAFETY: the record is this run's.
        unsafe {
            addr_of_mut!((*record).value).write(u64::from(mode));
            addr_of_mut!((*record).target_pid).write(target.pid());
            addr_of_mut!((*record).target_start_ns).write(target.start());
        }
        let file = File(exe.address);
        denied = deny::sumun_ask_file(
            run.level,
            index,
            denied::PTRACE as u32,
            file.dentry(),
            file.mnt(),
        ) != 0;
        if denied {
            refuse(denied::PTRACE);
        }
    }
    run.end();
    answer(denied)
}

// include/uapi/asm-generic/mman-common.h
const PROT_WRITE: u64 = 2;
const PROT_EXEC: u64 = 4;

/// A file, or with 0 none, is about to be mapped.
#[lsm(hook = "mmap_file")]
fn deny_lsm_mmap(ctx: LsmContext) -> i32 {
    mapped(&ctx, ctx.arg(2), false)
}

/// The protection of memory is about to change.
#[lsm(hook = "file_mprotect")]
fn deny_lsm_mprotect(ctx: LsmContext) -> i32 {
    mapped(&ctx, ctx.arg(2), true)
}

#[inline(always)]
fn mapped(ctx: &LsmContext, protection: u64, of_vma: bool) -> i32 {
    if protection & (PROT_WRITE | PROT_EXEC) != PROT_WRITE | PROT_EXEC {
        // The agent may be kept from mapping both. Nobody maps memory only to write, but the agent as it tries: its other
        // memory comes while it tries, too.
        return answer(protection == PROT_WRITE && is_canary(denied::MAP_WX));
    }
    let Some((run, index)) = begin(denied::MAP_WX) else {
        return 0;
    };
    let mut denied = false;
    if let Some(record) = record(run, kind::MAP_WX) {
        // SAFETY: the record is this run's.
        unsafe { addr_of_mut!((*record).value).write(protection) };
        let of: u64 = run.number(ctx.arg(0));
        let file = File(if of_vma { get(of, slot::VMA_FILE) } else { of });
        denied = deny::sumun_ask_file(
            run.level,
            index,
            denied::MAP_WX as u32,
            file.dentry(),
            file.mnt(),
        ) != 0;
    }
    run.end();
    answer(denied)
}
