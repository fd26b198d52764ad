//! From records of cgroups to the table of workloads.

use sumun_abi::event::cgroup::Cgroup;
use sumun_abi::event::kind;
use sumun_abi::record::FLAW_LOST;
use sumun_proto::text;

use super::record::Record;
use crate::enrich::workload::Workloads;

/// Takes a record of a cgroup.
pub fn cgroup(workloads: &mut Workloads, record: &Record<'_>, cgroup: &Cgroup) {
    let path = text::from_bytes(record.text(cgroup.path));
    // One without its path is as one whose record was lost: its events name no workload. One that was cut, as none that
    // a runtime makes, belongs to the workload that the start of its path names.
    let known = cgroup.path.flaws & FLAW_LOST == 0;
    match record.header.kind {
        kind::CGROUP_MKDIR if known => workloads.made(cgroup.id, &path, record.header.boot_ns),
        kind::CGROUP_RENAME if known => workloads.renamed(cgroup.id, &path),
        kind::CGROUP_RMDIR => workloads.removed(cgroup.id),
        _ => {}
    }
}
