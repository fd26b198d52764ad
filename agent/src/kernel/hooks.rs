//! The programs, where they attach and what they cannot do without.

use serde::Serialize;
use sumun_abi::slot as s;

/// A program on a BTF tracepoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    /// Name of the program; also of its pinned link.
    pub(super) program: &'static str,
    /// The program that is attached and jumps to it.
    pub(super) door: &'static str,
    /// The map of one entry that says where to.
    pub(super) behind: &'static str,
    /// Name of the tracepoint.
    pub(super) tracepoint: &'static str,
    /// Kinds of records that come from it.
    pub(super) kinds: &'static [&'static str],
    /// Slots without which it would say something wrong.
    pub(super) required: &'static [usize],
    /// Attached only while the filter asks for it.
    pub(super) on_demand: bool,
    /// A slot that says whether this kernel has the tracepoint, where one without it has nothing to tell, either.
    pub(super) can_lack: Option<usize>,
}

/// Fields that name a process.
macro_rules! with_actor {
    ($($slot:expr),* $(,)?) => {
        &[
            s::TASK_PID, s::TASK_TGID, s::TASK_GROUP_LEADER, s::TASK_START, s::TASK_EXEC_ID,
            s::TASK_CRED, s::CRED_UID, s::CRED_GID, s::CRED_EUID, s::CRED_EGID, s::CRED_CAP_EFFECTIVE,
            s::TASK_FILES, s::FILES_COUNT, $($slot),*
        ]
    };
}

/// Fields that name a process, an open file and its path.
macro_rules! with_path {
    ($($slot:expr),* $(,)?) => {
        with_actor![
            s::TASK_MM, s::MM_EXE_FILE, s::TASK_FS, s::FS_PWD_MNT, s::FS_PWD_DENTRY, s::FS_USERS,
            s::FILES_FDT, s::FDTABLE_MAX, s::FDTABLE_FD, s::FILE_MNT, s::FILE_DENTRY, s::FILE_INODE,
            s::FILE_MODE, s::FILE_FLAGS, s::DENTRY_PARENT, s::DENTRY_NAME, s::DENTRY_NAME_LEN,
            s::DENTRY_INODE, s::DENTRY_HASHED, s::VFSMOUNT_ROOT, s::MOUNT_MNT, s::MOUNT_PARENT,
            s::MOUNT_MOUNTPOINT, s::MOUNT_NS, s::INODE_INO, s::INODE_SB, s::INODE_MODE,
            s::INODE_NLINK, s::INODE_GENERATION, s::SB_DEV, $($slot),*
        ]
    };
}

/// The program that runs at every system call's entry.
pub(super) const SYS_ENTER: &str = "sys_enter";

/// A hook that tells of cgroups.
const fn cgroup_hook(program: &'static str, door: &'static str, behind: &'static str) -> Hook {
    Hook {
        program,
        door,
        behind,
        tracepoint: program,
        kinds: &[],
        required: &[
            s::CGROUP_ROOT,
            s::CGROUP_ROOT_HIERARCHY,
            s::CGROUP_KN,
            s::KERNFS_ID,
        ],
        on_demand: false,
        can_lack: None,
    }
}

pub(super) const HOOKS: &[Hook] = &[
    Hook {
        program: "sched_process_fork",
        door: "door_fork",
        behind: "AT_FORK",
        tracepoint: "sched_process_fork",
        kinds: &["fork"],
        required: with_actor![s::TASK_REAL_PARENT],
        on_demand: false,
        can_lack: None,
    },
    // After the first, for what that one misses.
    Hook {
        program: "sched_process_fork_again",
        door: "door_fork_again",
        behind: "AT_FORK_AGAIN",
        tracepoint: "sched_process_fork",
        kinds: &["fork"],
        required: with_actor![s::TASK_REAL_PARENT],
        on_demand: false,
        can_lack: None,
    },
    Hook {
        program: "sched_process_exec",
        door: "door_exec",
        behind: "AT_EXEC",
        tracepoint: "sched_process_exec",
        kinds: &["exec"],
        required: with_path![
            s::TASK_REAL_PARENT,
            s::MM_ARG_START,
            s::MM_ARG_END,
            s::INODE_UID,
        ],
        on_demand: false,
        can_lack: None,
    },
    // After the first, for what that one misses.
    Hook {
        program: "sched_process_exec_again",
        door: "door_exec_again",
        behind: "AT_EXEC_AGAIN",
        tracepoint: "sched_process_exec",
        kinds: &["exec"],
        required: with_path![
            s::TASK_REAL_PARENT,
            s::MM_ARG_START,
            s::MM_ARG_END,
            s::INODE_UID,
        ],
        on_demand: false,
        can_lack: None,
    },
    Hook {
        program: "sched_process_exit",
        door: "door_exit",
        behind: "AT_EXIT",
        tracepoint: "sched_process_exit",
        kinds: &["exit"],
        required: with_actor![
            s::TASK_SIGNAL,
            s::SIGNAL_LIVE,
            s::SIGNAL_FLAGS,
            s::SIGNAL_EXIT_CODE,
            s::TASK_EXIT_CODE,
            s::EXIT_ARGUMENTS,
        ],
        on_demand: false,
        can_lack: None,
    },
    Hook {
        program: "sys_exit",
        door: "door_sys_exit",
        behind: "AT_SYS_EXIT",
        tracepoint: "sys_exit",
        kinds: &[
            "open",
            "rename",
            "unlink",
            "chmod",
            "chown",
            "truncate",
            "link",
            "symlink",
            "setxattr",
            "map_exec",
            "connect",
            "accept",
            "bind",
            "listen",
            "connect_unix",
            "socket",
            "setid",
            "capset",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "pidfd_getfd",
            "memfd_create",
            "unshare",
            "setns",
            "map_wx",
            "prctl",
            "userfaultfd",
            "module_load",
            "module_unload",
            "bpf",
            "mount",
            "umount",
            "pivot_root",
            "chroot",
            "kexec_load",
            "io_uring_setup",
        ],
        required: with_path![
            s::TASK_COMPAT,
            s::REGS_NUMBER,
            s::REGS_ARG0,
            s::REGS_ARG1,
            s::REGS_ARG2,
            s::REGS_ARG3,
            s::REGS_ARG4,
            s::REGS_COMPAT_ARG0,
            s::REGS_COMPAT_ARG1,
            s::REGS_COMPAT_ARG2,
            s::REGS_COMPAT_ARG3,
            s::REGS_COMPAT_ARG4,
        ],
        on_demand: false,
        can_lack: None,
    },
    Hook {
        program: "inet_sock_set_state",
        door: "door_state",
        behind: "AT_STATE",
        tracepoint: "inet_sock_set_state",
        kinds: &["connect"],
        required: with_path![
            s::SOCKET_SK,
            s::SOCKET_INODE,
            s::FILE_PRIVATE,
            s::SOCK_FAMILY,
            s::SOCK_DPORT,
            s::SOCK_DADDR,
            s::SOCK_SADDR,
            s::SOCK_PROTOCOL,
            s::SOCK_TYPE,
            s::SOCK_ERR,
            s::SOCK_SOCKET,
            s::SOCK_KERN,
            s::INET_SPORT,
            s::TCP_FASTOPEN_REQ,
        ],
        on_demand: false,
        can_lack: None,
    },
    // What they tell is no event: from them events know whose they are.
    cgroup_hook("cgroup_mkdir", "door_cgroup_mkdir", "AT_CGROUP_MKDIR"),
    cgroup_hook("cgroup_rename", "door_cgroup_rename", "AT_CGROUP_RENAME"),
    cgroup_hook("cgroup_rmdir", "door_cgroup_rmdir", "AT_CGROUP_RMDIR"),
    // Only the names of modules come from it; that one was loaded is told by its call.
    Hook {
        program: "module_load",
        door: "door_module_load",
        behind: "AT_MODULE_LOAD",
        tracepoint: "module_load",
        kinds: &[],
        required: &[s::TASK_PID, s::MODULE_NAME],
        on_demand: false,
        can_lack: Some(s::MODULE_LOAD),
    },
    // After the first, for what that one misses.
    Hook {
        program: "inet_sock_set_state_again",
        door: "door_state_again",
        behind: "AT_STATE_AGAIN",
        tracepoint: "inet_sock_set_state",
        kinds: &["connect"],
        required: with_path![
            s::SOCKET_SK,
            s::SOCKET_INODE,
            s::FILE_PRIVATE,
            s::SOCK_FAMILY,
            s::SOCK_DPORT,
            s::SOCK_DADDR,
            s::SOCK_SADDR,
            s::SOCK_PROTOCOL,
            s::SOCK_TYPE,
            s::SOCK_ERR,
            s::SOCK_SOCKET,
            s::SOCK_KERN,
            s::INET_SPORT,
            s::TCP_FASTOPEN_REQ,
        ],
        on_demand: false,
        can_lack: None,
    },
    Hook {
        program: SYS_ENTER,
        door: "door_sys_enter",
        behind: "AT_SYS_ENTER",
        tracepoint: "sys_enter",
        kinds: &["close_write"],
        required: with_path![
            s::TASK_COMPAT,
            s::REGS_NUMBER,
            s::REGS_ARG0,
            s::REGS_COMPAT_ARG0,
        ],
        on_demand: true,
        can_lack: None,
    },
];

/// What became of a hook.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct HookStatus {
    /// Its name.
    pub hook: &'static str,
    /// Kinds of records that come from it.
    pub kinds: Vec<&'static str>,
    /// True if it is attached, or will be when a filter asks for it.
    pub available: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Instructions that the kernel's verifier walked through before it took the programs; told from 5.16 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_instructions: Option<u64>,
}
