//! Cgroups that come and go: from them the agent knows a workload before its first process.

use crate::assert_size;
use crate::record::{Header, Span};

/// Bytes of a cgroup's path with its final NUL: what the kernel's tracepoints tell
/// (`TRACE_CGROUP_PATH_LEN`, kernel/cgroup/cgroup-internal.h).
pub const CGROUP_PATH: usize = 1024;

/// A cgroup of the chosen hierarchy was made, renamed or removed. No actor: whose
/// a workload is does not depend on who made its cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Header, kind `CGROUP_MKDIR`, `CGROUP_RENAME` or `CGROUP_RMDIR`.
    pub header: Header,
    /// `kn->id`, as in [`super::process::Actor`].
    pub id: u64,
    /// Its path from the root of the hierarchy, after a rename the new one.
    pub path: Span,
}
assert_size!(Cgroup, 32 + 8 + 8);
