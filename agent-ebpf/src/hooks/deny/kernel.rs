//! Settings of the kernel (`/proc/sys`), as they are written: recorded, and denied by a program on the root of all cgroups.
//! Mounts and modules, denied by BPF LSM.

use core::{
    mem::size_of,
    ptr::{self, addr_of_mut},
};

use aya_ebpf::{
    helpers::generated::{bpf_sysctl_get_name, bpf_sysctl_get_new_value},
    macros::{cgroup_sysctl, lsm},
    programs::{LsmContext, SysctlContext},
};
use sumun_abi::{
    event::{
        kernel::{SETTING_NAME, SETTING_VALUE, Setting},
        kind,
        process::outcome,
    },
    policy::whole,
    record::{FLAW_TRUNCATED, RING_BULK, SOURCE_COPY},
    slot,
    verdict::{denied, on},
};

use super::{ALLOW, DENY, answer, begin, is_canary, of_file, of_path, record, refuse};
use crate::{
    kernel::{file::File, opaque, path::Text, task::Task, value},
    policy::{deny, verdict},
    run::{self, Run},
};

/// Where the name lies in the record, and then the value.
const NAME: usize = size_of::<Setting>();
const VALUE: usize = NAME + SETTING_NAME;

/// A setting is read or written.
#[cgroup_sysctl]
fn deny_sysctl(ctx: SysctlContext) -> i32 {
    // The agent only reads.
    if is_canary(denied::SYSCTL) {
        return DENY;
    }
    // SAFETY: the program's own context.
    let (writes, position) = unsafe {
        (
            ptr::addr_of!((*ctx.sysctl).write).read_volatile(),
            ptr::addr_of!((*ctx.sysctl).file_pos).read_volatile(),
        )
    };
    if writes == 0 {
        return ALLOW;
    }
    let wanted = run::active()
        .and_then(run::filter)
        .is_some_and(|filter| filter.whole & 1 << whole::SYSCTL != 0);
    if !wanted {
        return ALLOW;
    }
    let Some(run) = Run::begin(RING_BULK) else {
        return ALLOW;
    };
    let answer = written(&ctx, run, position);
    run.end();
    answer
}

#[inline(always)]
fn written(ctx: &SysctlContext, run: Run, position: u32) -> i32 {
    let Some(index) = run::active() else {
        return ALLOW;
    };
    let Some(filter) = run::filter(index) else {
        return ALLOW;
    };
    let Some(record) = run.record::<Setting>() else {
        return ALLOW;
    };
    // SAFETY: the record is this run's, and what follows its fixed part has room for both texts; the helpers write no
    // more than they are told and end it with NUL.
    let (name, value) = unsafe {
        let bytes: *mut u8 = record.cast();
        let name = bpf_sysctl_get_name(
            ctx.sysctl.cast(),
            bytes.add(NAME).cast(),
            SETTING_NAME as u64,
            0,
        );
        let value = bpf_sysctl_get_new_value(
            ctx.sysctl.cast(),
            bytes.add(VALUE).cast(),
            SETTING_VALUE as u64,
        );
        (name, value)
    };
    let (name_len, name_flaws) = length(name, SETTING_NAME);
    let (mut value_len, value_flaws) = length(value, SETTING_VALUE);
    let last = opaque(value_len.wrapping_sub(1));
    if value_flaws == 0 && last < SETTING_VALUE as u64 {
        // SAFETY: bound checked.
        let byte = unsafe {
            record
                .cast::<u8>()
                .add(VALUE + last as usize)
                .read_volatile()
        };
        if byte == b'\n' {
            value_len = last;
        }
    }
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        Task::current().actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).position).write(position);
        addr_of_mut!((*record).pad).write(0);
        Text::at(NAME, name_len, SOURCE_COPY).store(addr_of_mut!((*record).name), name_flaws);
        Text::at(VALUE, value_len, SOURCE_COPY).store(addr_of_mut!((*record).value), value_flaws);
        verdict::none(addr_of_mut!((*record).verdict));
    }
    let mut outcome = outcome::NONE;
    if verdict::asked(index, on::denied(denied::SYSCTL)) {
        outcome = deny::sumun_ask_setting(run.level, index) as u32;
    }
    let len = opaque(VALUE as u64 + value_len);
    run.send(RING_BULK, kind::SYSCTL, filter.generation, len as u32);
    if outcome == outcome::DENIED {
        DENY
    } else {
        ALLOW
    }
}

/// `-E2BIG`: what there was room for has been written.
const CUT: i64 = -7;

/// Length of a text that a helper wrote, and its flaws.
#[inline(always)]
fn length(returned: i64, room: usize) -> (u64, u8) {
    if returned == CUT {
        // The kernel takes long values and cuts them, too: its beginning is what counts.
        return (room as u64 - 1, FLAW_TRUNCATED);
    }
    if returned < 0 || returned as u64 >= room as u64 {
        // There is none (a write of nothing).
        return (0, FLAW_TRUNCATED);
    }
    (returned as u64, 0)
}

/// Something is about to be mounted, or a mount changed: device, path, type, flags, data.
#[lsm(hook = "sb_mount")]
fn deny_lsm_mount(ctx: LsmContext) -> i32 {
    of_path(denied::MOUNT, kind::MOUNT, ctx.arg(3), ctx.arg(1))
}

/// A mount is about to be moved, or one that was prepared put in its place: from, to.
#[lsm(hook = "move_mount")]
fn deny_lsm_move(ctx: LsmContext) -> i32 {
    of_path(denied::MOUNT, kind::MOUNT, 0, ctx.arg(1))
}

/// `MS_REMOUNT` (include/uapi/linux/mount.h)
const REMOUNT: u64 = 32;

/// What is mounted is about to be set up anew, wherever that is: no path is told.
#[lsm(hook = "sb_remount")]
fn deny_lsm_remount(_ctx: LsmContext) -> i32 {
    of_file(denied::MOUNT, kind::MOUNT, REMOUNT, |_| (0, 0))
}

/// A mount namespace is about to get another root: where the old one goes, the new one.
#[lsm(hook = "sb_pivotroot")]
fn deny_lsm_pivot(ctx: LsmContext) -> i32 {
    of_path(denied::PIVOT_ROOT, kind::PIVOT_ROOT, 0, ctx.arg(1))
}

/// The kernel is about to read a file for itself: file, what it is.
#[lsm(hook = "kernel_read_file")]
fn deny_lsm_read(ctx: LsmContext) -> i32 {
    let what: u32 = ctx.arg(1);
    if what != value(slot::READING_MODULE) && what != value(slot::READING_MODULE_COMPRESSED) {
        return 0;
    }
    module(&ctx, true)
}

/// The kernel is about to take what a process hands it: what it is.
#[lsm(hook = "kernel_load_data")]
fn deny_lsm_load(ctx: LsmContext) -> i32 {
    let what: u32 = ctx.arg(0);
    if what != value(slot::LOADING_MODULE) {
        return 0;
    }
    module(&ctx, false)
}

#[inline(always)]
fn module(ctx: &LsmContext, from_file: bool) -> i32 {
    if is_canary(denied::MODULE_LOAD) {
        return answer(true);
    }
    let Some((run, index)) = begin(denied::MODULE_LOAD) else {
        return 0;
    };
    let mut denied = false;
    if record(run, kind::MODULE_LOAD).is_some() {
        let file = if from_file {
            File(run.number(ctx.arg(0)))
        } else {
            File::LOST
        };
        denied = deny::sumun_ask_file(
            run.level,
            index,
            denied::MODULE_LOAD as u32,
            file.dentry(),
            file.mnt(),
        ) != 0;
        if denied {
            refuse(denied::MODULE_LOAD);
        }
    }
    run.end();
    answer(denied)
}
