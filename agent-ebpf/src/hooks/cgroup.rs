//! Cgroups that are made, renamed and removed, in the hierarchy that names processes' cgroups.
//!
//! In the ring of process life, so that a workload's cgroup is read before its first process. They
//! are always sent: nothing filters them.

use core::ptr::addr_of_mut;

use aya_ebpf::{
    helpers::generated::bpf_probe_read_kernel_str, macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use sumun_abi::{
    event::{
        cgroup::{CGROUP_PATH, Cgroup},
        kind,
    },
    record::{FLAW_LOST, FLAW_TRUNCATED, RING_LIFE, SOURCE_OBJECT, Span},
    slot,
};

use crate::{
    kernel::{Object, cgroup_hierarchy},
    run::Run,
};

/// A record with the room for its only text.
#[repr(C)]
struct Named {
    cgroup: Cgroup,
    path: [u8; CGROUP_PATH],
}

/// A cgroup was made; no process can be in it yet.
#[btf_tracepoint(function = "cgroup_mkdir")]
fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    record(&ctx, kind::CGROUP_MKDIR)
}

/// A cgroup has another path.
#[btf_tracepoint(function = "cgroup_rename")]
fn cgroup_rename(ctx: BtfTracePointContext) -> i32 {
    record(&ctx, kind::CGROUP_RENAME)
}

/// A cgroup was removed; no process is in it any more.
#[btf_tracepoint(function = "cgroup_rmdir")]
fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    record(&ctx, kind::CGROUP_RMDIR)
}

/// The tracepoints' arguments are the cgroup and its path, which the kernel has written out for them.
#[inline(always)]
fn record(ctx: &BtfTracePointContext, kind: u16) -> i32 {
    let cgroup = Object::argument(ctx.arg(0));
    let path: u64 = ctx.arg(1);
    let hierarchy: u32 = cgroup
        .follow(slot::CGROUP_ROOT)
        .get(slot::CGROUP_ROOT_HIERARCHY);
    if hierarchy != cgroup_hierarchy() {
        return 0;
    }
    let id: u64 = cgroup.follow(slot::CGROUP_KN).get(slot::KERNFS_ID);
    let Some(run) = Run::begin(RING_LIFE) else {
        return 0;
    };
    if let Some(named) = run.record::<Named>() {
        // SAFETY: the record is this run's; the helper never faults.
        let copied = unsafe {
            addr_of_mut!((*named).cgroup.id).write(id);
            bpf_probe_read_kernel_str(
                addr_of_mut!((*named).path).cast(),
                CGROUP_PATH as u32,
                path as *const _,
            )
        };
        // The final NUL is counted.
        let (len, flaws) = match copied {
            1..1024 => (copied as u64 - 1, 0),
            1024.. => (CGROUP_PATH as u64 - 1, FLAW_TRUNCATED),
            _ => (0, FLAW_LOST),
        };
        let span = Span {
            offset: size_of::<Cgroup>() as u16,
            len: len as u16,
            source: SOURCE_OBJECT,
            flaws,
            pad: 0,
        };
        // SAFETY: the record is this run's.
        unsafe { addr_of_mut!((*named).cgroup.path).write(span) };
        run.send(RING_LIFE, kind, 0, size_of::<Cgroup>() as u32 + len as u32);
    }
    run.end();
    0
}
