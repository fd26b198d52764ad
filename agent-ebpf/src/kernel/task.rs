//! `task_struct` and what hangs from it: identity, credentials, namespaces, cgroup.

use core::ptr::addr_of_mut;

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf};
use sumun_abi::{
    event::{
        privilege::{Creds, Target},
        process::{Actor, Namespaces},
    },
    slot,
};

use super::{Object, cgroup_index, field, get, read, value};

/// `SIGNAL_GROUP_EXIT`, include/linux/sched/signal.h.
const SIGNAL_GROUP_EXIT: u32 = 4;

// include/linux/sched.h
const PF_IO_WORKER: u32 = 0x10;
const PF_KTHREAD: u32 = 0x0020_0000;

/// A `task_struct`.
#[derive(Clone, Copy)]
pub(crate) struct Task(pub(crate) Object);

impl Task {
    #[inline(always)]
    pub(crate) fn current() -> Task {
        let address = if value(slot::CURRENT_TASK_BTF) == slot::NONE {
            // SAFETY: no arguments; returns a plain number.
            unsafe { bpf_get_current_task() }
        } else {
            // SAFETY: no arguments.
            unsafe { bpf_get_current_task_btf() as u64 }
        };
        Task(Object::current(address))
    }

    /// The same in programs of cgroups, which may not ask for a task whose type is known on every kernel.
    #[inline(always)]
    pub(crate) fn current_plain() -> Task {
        // SAFETY: no arguments; returns a plain number.
        Task(Object::plain(unsafe { bpf_get_current_task() }))
    }

    #[inline(always)]
    pub(crate) fn tid(self) -> u32 {
        self.0.get(slot::TASK_PID)
    }

    #[inline(always)]
    pub(crate) fn pid(self) -> u32 {
        self.0.get(slot::TASK_TGID)
    }

    /// True for a thread that makes no system calls: the kernel's own, and the workers of io_uring (from 5.12 threads of
    /// their process).
    #[inline(always)]
    pub(crate) fn makes_no_calls(self) -> bool {
        self.0.get::<u32>(slot::TASK_FLAGS) & (PF_IO_WORKER | PF_KTHREAD) != 0
    }

    /// True for a thread that io_uring has made in its process: a worker, or the one that polls for requests. Before 5.12 (and the
    /// same code in 5.10.162) they are the kernel's own.
    #[inline(always)]
    pub(crate) fn works_for_ring(self) -> bool {
        self.0.get::<u32>(slot::TASK_FLAGS) & (PF_IO_WORKER | PF_KTHREAD) == PF_IO_WORKER
    }

    /// True for a thread that may do what was asked of an io_uring: one that has used one, or that io_uring has made.
    #[inline(always)]
    pub(crate) fn may_serve_ring(self) -> bool {
        self.0.get::<u64>(slot::TASK_IO_URING) != 0 || self.works_for_ring()
    }

    #[inline(always)]
    pub(crate) fn leader(self) -> Task {
        Task(self.0.follow(slot::TASK_GROUP_LEADER))
    }

    #[inline(always)]
    pub(crate) fn parent(self) -> Task {
        Task(self.0.follow(slot::TASK_REAL_PARENT))
    }

    #[inline(always)]
    pub(crate) fn start(self) -> u64 {
        self.leader().0.get(slot::TASK_START)
    }

    #[inline(always)]
    pub(crate) fn image(self) -> u64 {
        self.0.get(slot::TASK_EXEC_ID)
    }

    #[inline(always)]
    pub(crate) fn cred(self) -> Object {
        self.0.follow(slot::TASK_CRED)
    }

    #[inline(always)]
    pub(crate) fn files(self) -> Object {
        self.0.follow(slot::TASK_FILES)
    }

    #[inline(always)]
    pub(crate) fn fs(self) -> Object {
        self.0.follow(slot::TASK_FS)
    }

    #[inline(always)]
    pub(crate) fn mm(self) -> Object {
        self.0.follow(slot::TASK_MM)
    }

    /// The same task, of which the verifier knows nothing: where it is one of several.
    #[inline(always)]
    pub(crate) fn plain(self) -> Task {
        Task(Object::plain(
            self.leader().0.number(slot::TASK_GROUP_LEADER),
        ))
    }

    /// True if the current process is in a 32-bit call.
    #[inline(always)]
    pub(crate) fn is_compat() -> bool {
        Task::current().0.get::<u32>(slot::TASK_COMPAT) & super::compat_mask() != 0
    }

    /// Threads still alive, as the thread that leaves sees it.
    #[inline(always)]
    pub(crate) fn live(self) -> u32 {
        self.0.follow(slot::TASK_SIGNAL).get(slot::SIGNAL_LIVE)
    }

    /// What `wait` will report.
    #[inline(always)]
    pub(crate) fn exit_code(self) -> u32 {
        let signal = self.0.follow(slot::TASK_SIGNAL);
        if signal.get::<u32>(slot::SIGNAL_FLAGS) & SIGNAL_GROUP_EXIT != 0 {
            return signal.get(slot::SIGNAL_EXIT_CODE);
        }
        self.leader().0.get(slot::TASK_EXIT_CODE)
    }

    /// Session leader's pid in the initial namespace.
    #[inline(always)]
    pub(crate) fn session(self) -> u32 {
        let kind = value(slot::PIDTYPE_SID);
        if kind == slot::NONE {
            return 0;
        }
        let signal = self.0.follow(slot::TASK_SIGNAL);
        let pid = signal.follow_item(slot::SIGNAL_PIDS, kind);
        first_number(pid)
    }

    /// Address of the name of its controlling terminal; 0 if it has none.
    #[inline(always)]
    pub(crate) fn tty(self) -> u64 {
        let signal = self.0.follow(slot::TASK_SIGNAL);
        field(signal.number(slot::SIGNAL_TTY), slot::TTY_NAME)
    }

    /// `kn->id` in the hierarchy that the loader chose.
    #[inline(always)]
    pub(crate) fn cgroup(self) -> u64 {
        let set = self.0.follow(slot::TASK_CGROUPS);
        let index = cgroup_index();
        let cgroup = if index == slot::NONE {
            set.follow(slot::CSS_SET_DEFAULT)
        } else {
            set.follow_item(slot::CSS_SET_SUBSYS, index)
                .follow(slot::CSS_CGROUP)
        };
        cgroup.follow(slot::CGROUP_KN).get(slot::KERNFS_ID)
    }

    /// Address of the `struct cgroup` itself.
    #[inline(always)]
    pub(crate) fn cgroup_address(self) -> u64 {
        let set = self.0.follow(slot::TASK_CGROUPS);
        let index = cgroup_index();
        if index == slot::NONE {
            set.get(slot::CSS_SET_DEFAULT)
        } else {
            set.follow_item(slot::CSS_SET_SUBSYS, index)
                .get(slot::CSS_CGROUP)
        }
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
            addr_of_mut!((*out).uid).write(cred.get(slot::CRED_UID));
            addr_of_mut!((*out).gid).write(cred.get(slot::CRED_GID));
            addr_of_mut!((*out).euid).write(cred.get(slot::CRED_EUID));
            addr_of_mut!((*out).egid).write(cred.get(slot::CRED_EGID));
            addr_of_mut!((*out).cgroup_id).write(self.cgroup());
            // NONE + 1 is 0: the unified hierarchy.
            addr_of_mut!((*out).cgroup_hierarchy).write(hierarchy.wrapping_add(1));
            addr_of_mut!((*out).files_shared).write(u32::from(self.shares_files()));
            addr_of_mut!((*out).cap_effective).write(cred.number(slot::CRED_CAP_EFFECTIVE));
        }
    }

    /// True if other tasks share the descriptor table.
    #[inline(always)]
    pub(crate) fn shares_files(self) -> bool {
        self.files().get::<u32>(slot::FILES_COUNT) > 1
    }

    /// True if other tasks share root and working directory.
    #[inline(always)]
    pub(crate) fn shares_fs(self) -> bool {
        self.fs().get::<u32>(slot::FS_USERS) > 1
    }

    /// Address of its number in its own pid namespace (a `upid`); not a constant
    /// place, so it is a plain number.
    #[inline(always)]
    fn innermost(self) -> Object {
        let pid = self.leader().0.follow(slot::TASK_THREAD_PID);
        if pid.address == 0 {
            return Object::plain(0);
        }
        let level: u32 = pid.get(slot::PID_LEVEL);
        // A upid is a number and a pointer: 16 bytes in all kernels since 2.6.24.
        let place = pid.address + u64::from(value(slot::PID_NUMBERS));
        Object::plain(place + u64::from(level & 63) * 16)
    }

    /// Its own pid namespace.
    #[inline(always)]
    pub(crate) fn pid_namespace(self) -> u32 {
        self.innermost().follow(slot::UPID_NS).get(slot::PID_INUM)
    }

    /// True if other processes share the descriptor table, not only its own threads.
    #[inline(always)]
    pub(crate) fn shares_files_with_others(self) -> bool {
        let threads: u32 = self
            .0
            .follow(slot::TASK_SIGNAL)
            .get(slot::SIGNAL_NR_THREADS);
        threads != 0 && self.files().get::<u32>(slot::FILES_COUNT) > threads
    }

    /// The task that a number names in this one's pid namespace: none if there is none (any more).
    #[inline(always)]
    pub(crate) fn numbered(self, number: u32) -> Task {
        let namespace = self.innermost().follow(slot::UPID_NS).address;
        Task::of_pid(numbered(namespace, number))
    }

    /// The task of a `struct pid`.
    #[inline(always)]
    pub(crate) fn of_pid(pid: u64) -> Task {
        // The first list is that of PIDTYPE_PID, and one task is in it.
        let link: u64 = get(pid, slot::PID_TASKS);
        let links = value(slot::TASK_PID_LINKS);
        if pid == 0 || link == 0 || links == slot::NONE {
            return Task(Object::plain(0));
        }
        Task(Object::plain(link.wrapping_sub(u64::from(links))))
    }

    /// Fills in its credentials.
    #[inline(always)]
    pub(crate) fn creds(self, out: *mut Creds) {
        let cred = self.cred();
        // SAFETY: callers pass the field inside their record or map value.
        unsafe {
            addr_of_mut!((*out).uid).write(cred.get(slot::CRED_UID));
            addr_of_mut!((*out).gid).write(cred.get(slot::CRED_GID));
            addr_of_mut!((*out).suid).write(cred.get(slot::CRED_SUID));
            addr_of_mut!((*out).sgid).write(cred.get(slot::CRED_SGID));
            addr_of_mut!((*out).euid).write(cred.get(slot::CRED_EUID));
            addr_of_mut!((*out).egid).write(cred.get(slot::CRED_EGID));
            addr_of_mut!((*out).fsuid).write(cred.get(slot::CRED_FSUID));
            addr_of_mut!((*out).fsgid).write(cred.get(slot::CRED_FSGID));
            addr_of_mut!((*out).cap_inheritable).write(cred.number(slot::CRED_CAP_INHERITABLE));
            addr_of_mut!((*out).cap_permitted).write(cred.number(slot::CRED_CAP_PERMITTED));
            addr_of_mut!((*out).cap_effective).write(cred.number(slot::CRED_CAP_EFFECTIVE));
        }
    }

    /// Fills in who this is, as the target of a call; all zero if there is no such task.
    #[inline(always)]
    pub(crate) fn target(self, out: *mut Target) {
        let cred = self.cred();
        // SAFETY: callers pass the field inside their record.
        unsafe {
            addr_of_mut!((*out).start_ns).write(self.start());
            addr_of_mut!((*out).image).write(self.image());
            addr_of_mut!((*out).pid).write(self.pid());
            addr_of_mut!((*out).tid).write(self.tid());
            addr_of_mut!((*out).uid).write(cred.get(slot::CRED_UID));
            addr_of_mut!((*out).euid).write(cred.get(slot::CRED_EUID));
        }
    }

    /// The first process of its pid namespace.
    #[inline(always)]
    pub(crate) fn reaper(self) -> Task {
        Task(
            self.innermost()
                .follow(slot::UPID_NS)
                .follow(slot::PIDNS_REAPER),
        )
    }

    /// Fills in its namespaces.
    #[inline(always)]
    pub(crate) fn namespaces(self, out: *mut Namespaces) {
        let proxy = self.0.follow(slot::TASK_NSPROXY);
        let inside = self.innermost();
        let inum = |namespace, number| proxy.follow(namespace).get(number);
        // SAFETY: callers pass the field inside their record.
        unsafe {
            addr_of_mut!((*out).mnt).write(inum(slot::NSPROXY_MNT, slot::MNT_INUM));
            addr_of_mut!((*out).pid).write(inside.follow(slot::UPID_NS).get(slot::PID_INUM));
            addr_of_mut!((*out).net).write(inum(slot::NSPROXY_NET, slot::NET_INUM));
            addr_of_mut!((*out).user)
                .write(self.cred().follow(slot::CRED_USER_NS).get(slot::USER_INUM));
            addr_of_mut!((*out).uts).write(inum(slot::NSPROXY_UTS, slot::UTS_INUM));
            addr_of_mut!((*out).ipc).write(inum(slot::NSPROXY_IPC, slot::IPC_INUM));
            addr_of_mut!((*out).cgroup).write(inum(slot::NSPROXY_CGROUP, slot::CGROUP_INUM));
            addr_of_mut!((*out).pid_inside).write(inside.get(slot::UPID_NR));
        }
    }
}

/// Levels of an xarray that a number below 4 million (`PID_MAX_LIMIT`) can need, of six bits each.
const LEVELS: u32 = 4;

/// The `struct pid` of a number in a pid namespace; 0 if there is none.
#[inline(always)]
fn numbered(namespace: u64, number: u32) -> u64 {
    let mut entry: u64 = get(namespace, slot::PIDNS_NUMBERS);
    let mut level = 0;
    // Inner nodes are marked in the lowest bits (`xa_is_node`, include/linux/xarray.h).
    while level < LEVELS && entry & 3 == 2 && entry > 4096 {
        level += 1;
        let node = entry - 2;
        let shift = u32::from(get::<u8>(node, slot::XA_NODE_SHIFT));
        let place = u64::from(number >> (shift & 31) & 63);
        let slots = field(node, slot::XA_NODE_SLOTS);
        // A number that the top node does not reach names nobody.
        if shift > 24 || slots == 0 || level == 1 && number >> (shift & 31) > 63 {
            return 0;
        }
        entry = read(slots + place * 8);
    }
    if entry & 3 == 0 { entry } else { 0 }
}

/// A `pid`'s number in the initial namespace.
#[inline(always)]
fn first_number(pid: Object) -> u32 {
    if pid.address == 0 || value(slot::PID_NUMBERS) == slot::NONE {
        return 0;
    }
    let numbers = pid.address + u64::from(value(slot::PID_NUMBERS));
    get(numbers, slot::UPID_NR)
}
