//! `task_struct` and what hangs from it: identity, credentials, namespaces, cgroup.

use core::ptr::addr_of_mut;

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf};
use sumun_abi::{
    event::process::{Actor, Namespaces},
    slot,
};

use super::{cgroup_index, field, get, load, read, value};

/// `SIGNAL_GROUP_EXIT`, include/linux/sched/signal.h.
const SIGNAL_GROUP_EXIT: u32 = 4;

/// Address of a `task_struct`.
#[derive(Clone, Copy)]
pub(crate) struct Task(pub(crate) u64);

impl Task {
    #[inline(always)]
    pub(crate) fn current() -> Task {
        // SAFETY: no arguments; returns a plain number.
        Task(unsafe { bpf_get_current_task() })
    }

    #[inline(always)]
    pub(crate) fn tid(self) -> u32 {
        get(self.0, slot::TASK_PID)
    }

    #[inline(always)]
    pub(crate) fn pid(self) -> u32 {
        get(self.0, slot::TASK_TGID)
    }

    #[inline(always)]
    pub(crate) fn leader(self) -> Task {
        Task(get(self.0, slot::TASK_GROUP_LEADER))
    }

    #[inline(always)]
    pub(crate) fn parent(self) -> Task {
        Task(get(self.0, slot::TASK_REAL_PARENT))
    }

    #[inline(always)]
    pub(crate) fn start(self) -> u64 {
        get(self.leader().0, slot::TASK_START)
    }

    #[inline(always)]
    pub(crate) fn image(self) -> u64 {
        get(self.0, slot::TASK_EXEC_ID)
    }

    #[inline(always)]
    pub(crate) fn cred(self) -> u64 {
        get(self.0, slot::TASK_CRED)
    }

    #[inline(always)]
    pub(crate) fn files(self) -> u64 {
        get(self.0, slot::TASK_FILES)
    }

    #[inline(always)]
    pub(crate) fn fs(self) -> u64 {
        get(self.0, slot::TASK_FS)
    }

    #[inline(always)]
    pub(crate) fn mm(self) -> u64 {
        get(self.0, slot::TASK_MM)
    }

    /// True if the current process is in a 32-bit call.
    #[inline(always)]
    pub(crate) fn is_compat() -> bool {
        let flags: u32 = if value(slot::CURRENT_TASK_BTF) == slot::NONE {
            get(Task::current().0, slot::TASK_COMPAT)
        } else {
            // SAFETY: no arguments.
            load(
                unsafe { bpf_get_current_task_btf() } as u64,
                slot::TASK_COMPAT,
            )
        };
        flags & super::compat_mask() != 0
    }

    /// Threads still alive, as the thread that leaves sees it.
    #[inline(always)]
    pub(crate) fn live(self) -> u32 {
        get(get(self.0, slot::TASK_SIGNAL), slot::SIGNAL_LIVE)
    }

    /// What `wait` will report.
    #[inline(always)]
    pub(crate) fn exit_code(self) -> u32 {
        let signal = get(self.0, slot::TASK_SIGNAL);
        if get::<u32>(signal, slot::SIGNAL_FLAGS) & SIGNAL_GROUP_EXIT != 0 {
            return get(signal, slot::SIGNAL_EXIT_CODE);
        }
        get(self.leader().0, slot::TASK_EXIT_CODE)
    }

    /// Session leader's pid in the initial namespace.
    #[inline(always)]
    pub(crate) fn session(self) -> u32 {
        let pids = field(get(self.0, slot::TASK_SIGNAL), slot::SIGNAL_PIDS);
        let kind = value(slot::PIDTYPE_SID);
        if pids == 0 || kind == slot::NONE {
            return 0;
        }
        let pid: u64 = read(pids + u64::from(kind) * 8);
        get(field(pid, slot::PID_NUMBERS), slot::UPID_NR)
    }

    /// `kn->id` in the hierarchy that the loader chose.
    #[inline(always)]
    pub(crate) fn cgroup(self) -> u64 {
        let set = get(self.0, slot::TASK_CGROUPS);
        let index = cgroup_index();
        let cgroup: u64 = if index == slot::NONE {
            get(set, slot::CSS_SET_DEFAULT)
        } else {
            let css: u64 = read(field(set, slot::CSS_SET_SUBSYS) + u64::from(index) * 8);
            get(css, slot::CSS_CGROUP)
        };
        get(get(cgroup, slot::CGROUP_KN), slot::KERNFS_ID)
    }

    /// Fills in who this is.
    #[inline(always)]
    pub(crate) fn actor(self, out: *mut Actor) {
        let cred = self.cred();
        let hierarchy = cgroup_index();
        // SAFETY: callers pass the actor inside their record or map value.
        unsafe {
            addr_of_mut!((*out).start_ns).write(self.start());
            addr_of_mut!((*out).image).write(self.image());
            addr_of_mut!((*out).pid).write(self.pid());
            addr_of_mut!((*out).tid).write(self.tid());
            addr_of_mut!((*out).uid).write(get(cred, slot::CRED_UID));
            addr_of_mut!((*out).gid).write(get(cred, slot::CRED_GID));
            addr_of_mut!((*out).euid).write(get(cred, slot::CRED_EUID));
            addr_of_mut!((*out).egid).write(get(cred, slot::CRED_EGID));
            addr_of_mut!((*out).cgroup_id).write(self.cgroup());
            // NONE + 1 is 0: the unified hierarchy.
            addr_of_mut!((*out).cgroup_hierarchy).write(hierarchy.wrapping_add(1));
            addr_of_mut!((*out).files_shared).write(u32::from(self.shares_files()));
        }
    }

    /// True if other tasks share the descriptor table.
    #[inline(always)]
    pub(crate) fn shares_files(self) -> bool {
        get::<u32>(self.files(), slot::FILES_COUNT) > 1
    }

    /// True if other tasks share root and working directory.
    #[inline(always)]
    pub(crate) fn shares_fs(self) -> bool {
        get::<u32>(self.fs(), slot::FS_USERS) > 1
    }

    /// The first process of its pid namespace.
    #[inline(always)]
    pub(crate) fn reaper(self) -> Task {
        let thread_pid = get(self.leader().0, slot::TASK_THREAD_PID);
        let level: u32 = get(thread_pid, slot::PID_LEVEL);
        let inside = field(thread_pid, slot::PID_NUMBERS) + u64::from(level & 63) * 16;
        Task(get(get(inside, slot::UPID_NS), slot::PIDNS_REAPER))
    }

    /// Fills in its namespaces.
    #[inline(always)]
    pub(crate) fn namespaces(self, out: *mut Namespaces) {
        let proxy = get(self.0, slot::TASK_NSPROXY);
        let thread_pid = get(self.leader().0, slot::TASK_THREAD_PID);
        let level: u32 = get(thread_pid, slot::PID_LEVEL);
        // A upid is a number and a pointer: 16 bytes in all kernels since 2.6.24.
        let inside = field(thread_pid, slot::PID_NUMBERS) + u64::from(level & 63) * 16;
        // SAFETY: callers pass the field inside their record.
        unsafe {
            addr_of_mut!((*out).mnt).write(get(get(proxy, slot::NSPROXY_MNT), slot::MNT_INUM));
            addr_of_mut!((*out).pid).write(get(get(inside, slot::UPID_NS), slot::PID_INUM));
            addr_of_mut!((*out).net).write(get(get(proxy, slot::NSPROXY_NET), slot::NET_INUM));
            addr_of_mut!((*out).user)
                .write(get(get(self.cred(), slot::CRED_USER_NS), slot::USER_INUM));
            addr_of_mut!((*out).uts).write(get(get(proxy, slot::NSPROXY_UTS), slot::UTS_INUM));
            addr_of_mut!((*out).ipc).write(get(get(proxy, slot::NSPROXY_IPC), slot::IPC_INUM));
            addr_of_mut!((*out).cgroup)
                .write(get(get(proxy, slot::NSPROXY_CGROUP), slot::CGROUP_INUM));
            addr_of_mut!((*out).pid_inside).write(get(inside, slot::UPID_NR));
        }
    }
}
