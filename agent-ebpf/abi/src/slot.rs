//! Places in kernel structures that the programs read, each named once.
//!
//! The loader resolves every slot from the running kernel's BTF (BPF Type
//! Format) and writes the result into the object's read-only data, so the
//! verifier sees constants and prunes the branch behind a place that does not
//! exist. The first alternative that resolves wins; fields inside anonymous
//! structures and unions are found like fields of the structure around them.

/// Value of a slot that this kernel does not have.
pub const NONE: u32 = u32::MAX;

/// Where a slot's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Byte offset of a field: structure, then a path such as `thread_info.flags` or `regs[1]`.
    Field(&'static str, &'static str),
    /// Bit offset of a bit field.
    Bit(&'static str, &'static str),
    /// Value of an enumerator: enumeration, then name.
    Value(&'static str, &'static str),
    /// Number of arguments of a tracepoint.
    Arguments(&'static str),
    /// Size of a structure in bytes.
    Size(&'static str),
    /// BTF id of a structure.
    Type(&'static str),
    /// BTF id of a function.
    Function(&'static str),
    /// Number of parameters of a function.
    Parameters(&'static str),
}

/// The types that casts are made to.
pub const CAST_TYPES: [usize; 4] = [TYPE_FILE, TYPE_DENTRY, TYPE_SEQCOUNT, TYPE_NUMBER];

/// The number in place of the helper's in the calls that `CAST` stands for. The loader puts the kernel's
/// function there or, where there is none, an instruction that returns 0.
pub const CAST_CALL: i32 = 0x7355_4d43;

/// One slot: its name, for reports, and its alternatives.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Name of the constant.
    pub name: &'static str,
    /// Tried in order.
    pub places: &'static [Place],
}

macro_rules! slots {
    ($($name:ident = $($place:ident($($part:literal),+))|+;)*) => {
        #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "counts the constants below")]
        enum Index { $($name,)* COUNT }
        $(
            #[doc = concat!("Slot index: ", $($($part, " "),+),+)]
            pub const $name: usize = Index::$name as usize;
        )*
        /// Number of slots.
        pub const COUNT: usize = Index::COUNT as usize;
        /// All slots, by index.
        pub static TABLE: [Slot; COUNT] = [
            $(Slot { name: stringify!($name), places: &[$(Place::$place($($part),+)),+] },)*
        ];
    };
}

slots! {
    // From 5.11: a pointer that the verifier knows, whose fields are loaded directly.
    CURRENT_TASK_BTF = Value("bpf_func_id", "BPF_FUNC_get_current_task_btf");

    // From 6.2: tells the verifier the type of what is at an address
    // (<https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/helpers.c>), and those types.
    CAST = Function("bpf_rdonly_cast");
    TYPE_FILE = Type("file");
    TYPE_DENTRY = Type("dentry");
    TYPE_SEQCOUNT = Type("seqcount");
    SEQCOUNT_SEQUENCE = Field("seqcount", "sequence");
    // Any structure that begins with a number of 64 bits.
    TYPE_NUMBER = Type("timespec64");
    NUMBER = Field("timespec64", "tv_sec");

    TASK_PID = Field("task_struct", "pid");
    TASK_TGID = Field("task_struct", "tgid");
    TASK_GROUP_LEADER = Field("task_struct", "group_leader");
    TASK_REAL_PARENT = Field("task_struct", "real_parent");
    TASK_START = Field("task_struct", "start_boottime") | Field("task_struct", "real_start_time");
    TASK_EXEC_ID = Field("task_struct", "self_exec_id");
    TASK_CRED = Field("task_struct", "cred");
    TASK_SIGNAL = Field("task_struct", "signal");
    TASK_NSPROXY = Field("task_struct", "nsproxy");
    TASK_FILES = Field("task_struct", "files");
    TASK_FS = Field("task_struct", "fs");
    TASK_MM = Field("task_struct", "mm");
    TASK_CGROUPS = Field("task_struct", "cgroups");
    TASK_EXIT_CODE = Field("task_struct", "exit_code");
    TASK_FLAGS = Field("task_struct", "flags");
    TASK_THREAD_PID = Field("task_struct", "thread_pid");
    TASK_LOGINUID = Field("task_struct", "loginuid");
    TASK_SESSIONID = Field("task_struct", "sessionid");
    // The compat bit: x86 keeps it in `status`, aarch64 in `flags`.
    TASK_COMPAT = Field("task_struct", "thread_info.status") | Field("task_struct", "thread_info.flags");

    SIGNAL_LIVE = Field("signal_struct", "live");
    SIGNAL_NR_THREADS = Field("signal_struct", "nr_threads");
    SIGNAL_FLAGS = Field("signal_struct", "flags");
    SIGNAL_EXIT_CODE = Field("signal_struct", "group_exit_code");
    SIGNAL_PIDS = Field("signal_struct", "pids");
    SIGNAL_TTY = Field("signal_struct", "tty");
    TTY_NAME = Field("tty_struct", "name");
    PIDTYPE_SID = Value("pid_type", "PIDTYPE_SID");

    PID_LEVEL = Field("pid", "level");
    PID_NUMBERS = Field("pid", "numbers");
    UPID_NR = Field("upid", "nr");
    UPID_NS = Field("upid", "ns");
    PIDNS_REAPER = Field("pid_namespace", "child_reaper");
    // From a number to its process: the numbers of a namespace are an xarray.
    PIDNS_NUMBERS = Field("pid_namespace", "idr.idr_rt.xa_head");
    XA_NODE_SHIFT = Field("xa_node", "shift");
    XA_NODE_SLOTS = Field("xa_node", "slots");
    PID_TASKS = Field("pid", "tasks");
    TASK_PID_LINKS = Field("task_struct", "pid_links");
    // From 6.9 a pidfd's process hangs from its inode.
    PID_STASHED = Field("pid", "stashed");
    INODE_PRIVATE = Field("inode", "i_private");

    NSPROXY_UTS = Field("nsproxy", "uts_ns");
    NSPROXY_IPC = Field("nsproxy", "ipc_ns");
    NSPROXY_MNT = Field("nsproxy", "mnt_ns");
    NSPROXY_NET = Field("nsproxy", "net_ns");
    NSPROXY_CGROUP = Field("nsproxy", "cgroup_ns");
    UTS_INUM = Field("uts_namespace", "ns.inum");
    IPC_INUM = Field("ipc_namespace", "ns.inum");
    MNT_INUM = Field("mnt_namespace", "ns.inum");
    NET_INUM = Field("net", "ns.inum");
    CGROUP_INUM = Field("cgroup_namespace", "ns.inum");
    PID_INUM = Field("pid_namespace", "ns.inum");
    USER_INUM = Field("user_namespace", "ns.inum");
    // What kind of namespace it is, as a CLONE_NEW* flag; until 6.17 its operations say so.
    NS_TYPE = Field("ns_common", "ns_type");
    NS_OPS = Field("ns_common", "ops");
    NS_OPS_TYPE = Field("proc_ns_operations", "type");

    CRED_UID = Field("cred", "uid");
    CRED_GID = Field("cred", "gid");
    CRED_EUID = Field("cred", "euid");
    CRED_EGID = Field("cred", "egid");
    CRED_SUID = Field("cred", "suid");
    CRED_SGID = Field("cred", "sgid");
    CRED_FSUID = Field("cred", "fsuid");
    CRED_FSGID = Field("cred", "fsgid");
    CRED_CAP_INHERITABLE = Field("cred", "cap_inheritable");
    CRED_CAP_PERMITTED = Field("cred", "cap_permitted");
    CRED_CAP_EFFECTIVE = Field("cred", "cap_effective");
    CRED_USER_NS = Field("cred", "user_ns");

    CSS_SET_SUBSYS = Field("css_set", "subsys");
    CSS_SET_DEFAULT = Field("css_set", "dfl_cgrp");
    CSS_CGROUP = Field("cgroup_subsys_state", "cgroup");
    CGROUP_ROOT = Field("cgroup", "root");
    CGROUP_ROOT_HIERARCHY = Field("cgroup_root", "hierarchy_id");
    CGROUP_KN = Field("cgroup", "kn");
    CGROUP_PARENT = Field("cgroup", "self.parent");
    CGROUP_LEVEL = Field("cgroup", "level");
    CGROUP_ANCESTORS = Field("cgroup", "ancestors");
    KERNFS_ID = Field("kernfs_node", "id");
    CGROUP_PIDS = Value("cgroup_subsys_id", "pids_cgrp_id");
    CGROUP_MEMORY = Value("cgroup_subsys_id", "memory_cgrp_id");

    MM_EXE_FILE = Field("mm_struct", "exe_file");
    MM_ARG_START = Field("mm_struct", "arg_start");
    MM_ARG_END = Field("mm_struct", "arg_end");

    FILES_COUNT = Field("files_struct", "count");
    FILES_FDT = Field("files_struct", "fdt");
    FDTABLE_MAX = Field("fdtable", "max_fds");
    FDTABLE_FD = Field("fdtable", "fd");
    FS_USERS = Field("fs_struct", "users");
    FS_PWD_MNT = Field("fs_struct", "pwd.mnt");
    FS_PWD_DENTRY = Field("fs_struct", "pwd.dentry");
    FS_ROOT_MNT = Field("fs_struct", "root.mnt");

    FILE_MNT = Field("file", "f_path.mnt");
    FILE_DENTRY = Field("file", "f_path.dentry");
    FILE_INODE = Field("file", "f_inode");
    FILE_MODE = Field("file", "f_mode");
    FILE_FLAGS = Field("file", "f_flags");
    FILE_PRIVATE = Field("file", "private_data");
    FILE_OP = Field("file", "f_op");
    // Functions by which directories are listed and names are found, and by which a list's lines are shown.
    FILE_OPS_SIZE = Size("file_operations");
    FILE_OPS_SHARED = Field("file_operations", "iterate_shared");
    INODE_OP = Field("inode", "i_op");
    INODE_OPS_SIZE = Size("inode_operations");
    INODE_OPS_LOOKUP = Field("inode_operations", "lookup");
    SEQ_OP = Field("seq_file", "op");
    SEQ_OPS_SIZE = Size("seq_operations");
    SEQ_OPS_SHOW = Field("seq_operations", "show");

    DENTRY_PARENT = Field("dentry", "d_parent");
    DENTRY_NAME = Field("dentry", "d_name.name");
    DENTRY_NAME_LEN = Field("dentry", "d_name.len");
    DENTRY_INODE = Field("dentry", "d_inode");
    DENTRY_HASHED = Field("dentry", "d_hash.pprev");
    INODE_INO = Field("inode", "i_ino");
    INODE_MODE = Field("inode", "i_mode");
    INODE_SB = Field("inode", "i_sb");
    INODE_NLINK = Field("inode", "i_nlink");
    INODE_UID = Field("inode", "i_uid");
    INODE_GENERATION = Field("inode", "i_generation");
    // What lies behind an inode in what its file system makes of it.
    INODE_SIZE = Size("inode");
    // The nanoseconds have a flag in their highest bit from 6.13 on.
    INODE_CTIME = Field("inode", "i_ctime_sec") | Field("inode", "__i_ctime.tv_sec") | Field("inode", "i_ctime.tv_sec");
    INODE_CTIME_NS = Field("inode", "i_ctime_nsec") | Field("inode", "__i_ctime.tv_nsec") | Field("inode", "i_ctime.tv_nsec");
    SB_DEV = Field("super_block", "s_dev");
    SB_MAGIC = Field("super_block", "s_magic");
    SB_IFLAGS = Field("super_block", "s_iflags");
    VFSMOUNT_ROOT = Field("vfsmount", "mnt_root");
    VFSMOUNT_SB = Field("vfsmount", "mnt_sb");
    MOUNT_MNT = Field("mount", "mnt");
    MOUNT_PARENT = Field("mount", "mnt_parent");
    MOUNT_MOUNTPOINT = Field("mount", "mnt_mountpoint");
    MOUNT_NS = Field("mount", "mnt_ns");
    MOUNT_CHILDREN = Field("mount", "mnt_mounts");
    MOUNT_CHILD = Field("mount", "mnt_child");
    MNTNS_ROOT = Field("mnt_namespace", "root");

    BPRM_SECURE = Bit("linux_binprm", "secureexec");
    BPRM_FILE = Field("linux_binprm", "file");
    BPRM_FILENAME = Field("linux_binprm", "filename");
    BPRM_INTERP = Field("linux_binprm", "interp");
    EXIT_ARGUMENTS = Arguments("sched_process_exit");

    // System call number and arguments. The 32-bit calls of x86 pass theirs elsewhere.
    REGS_NUMBER = Field("pt_regs", "orig_ax") | Field("pt_regs", "syscallno");
    REGS_ARG0 = Field("pt_regs", "di") | Field("pt_regs", "orig_x0");
    REGS_ARG1 = Field("pt_regs", "si") | Field("pt_regs", "regs[1]");
    REGS_ARG2 = Field("pt_regs", "dx") | Field("pt_regs", "regs[2]");
    REGS_ARG3 = Field("pt_regs", "r10") | Field("pt_regs", "regs[3]");
    REGS_ARG4 = Field("pt_regs", "r8") | Field("pt_regs", "regs[4]");
    REGS_COMPAT_ARG0 = Field("pt_regs", "bx") | Field("pt_regs", "orig_x0");
    REGS_COMPAT_ARG1 = Field("pt_regs", "cx") | Field("pt_regs", "regs[1]");
    REGS_COMPAT_ARG2 = Field("pt_regs", "dx") | Field("pt_regs", "regs[2]");
    REGS_COMPAT_ARG3 = Field("pt_regs", "si") | Field("pt_regs", "regs[3]");
    REGS_COMPAT_ARG4 = Field("pt_regs", "di") | Field("pt_regs", "regs[4]");

    TASK_IO_URING = Field("task_struct", "io_uring");
    // A request of io_uring. What it asks for stands at its beginning.
    IO_RESULT = Field("io_kiocb", "cqe.res") | Field("io_kiocb", "result");
    IO_OPCODE = Field("io_kiocb", "opcode");
    IO_FILE = Field("io_kiocb", "file");
    IO_OPEN_FLAGS = Field("io_open", "how.flags");
    IO_OPEN_PLACE = Field("io_open", "file_slot");
    IO_RENAME_FLAGS = Field("io_rename", "flags");
    IO_UNLINK_FLAGS = Field("io_unlink", "flags");
    IO_LINK_FLAGS = Field("io_hardlink", "flags") | Field("io_link", "flags");
    SOCKET_SK = Field("socket", "sk");
    SOCKET_INODE = Field("socket_alloc", "vfs_inode");
    SOCK_FAMILY = Field("sock", "__sk_common.skc_family");
    SOCK_DPORT = Field("sock", "__sk_common.skc_dport");
    SOCK_DADDR = Field("sock", "__sk_common.skc_daddr");
    SOCK_SADDR = Field("sock", "__sk_common.skc_rcv_saddr");
    SOCK_DADDR6 = Field("sock", "__sk_common.skc_v6_daddr");
    SOCK_SADDR6 = Field("sock", "__sk_common.skc_v6_rcv_saddr");
    SOCK_PROTOCOL = Field("sock", "sk_protocol");
    SOCK_TYPE = Field("sock", "sk_type");
    SOCK_ERR = Field("sock", "sk_err");
    SOCK_SOCKET = Field("sock", "sk_socket");
    SOCK_KERN = Bit("sock", "sk_kern_sock");
    INET_SPORT = Field("inet_sock", "inet_sport");
    TCP_FASTOPEN_REQ = Field("tcp_sock", "fastopen_req");
    TCP_IS_MPTCP = Bit("tcp_sock", "is_mptcp");
    ICSK_ULP_DATA = Field("inet_connection_sock", "icsk_ulp_data");
    SUBFLOW_CONN = Field("mptcp_subflow_context", "conn");
    MPTCP_FIRST = Field("mptcp_sock", "first");

    PATH_MNT = Field("path", "mnt");
    PATH_DENTRY = Field("path", "dentry");
    VMA_FILE = Field("vm_area_struct", "vm_file");
    // Until 5.18 it is asked twice about an exchange of two names, from 5.19 on once with the call's flags as a fifth.
    RENAME_PARAMETERS = Parameters("bpf_lsm_path_rename");
    // From 6.2 on it is asked about open files, and `path_truncate` no more.
    FILE_TRUNCATE = Function("bpf_lsm_file_truncate");
    READING_MODULE = Value("kernel_read_file_id", "READING_MODULE");
    // From 6.19 on, of modules that the kernel unpacks itself.
    READING_MODULE_COMPRESSED = Value("kernel_read_file_id", "READING_MODULE_COMPRESSED");
    LOADING_MODULE = Value("kernel_load_data_id", "LOADING_MODULE");
    // The socket at the other end of a Unix socket, and what it is bound to.
    UNIX_PEER = Field("unix_sock", "peer");
    UNIX_ADDRESS = Field("unix_sock", "addr");
    UNIX_DENTRY = Field("unix_sock", "path.dentry");
    UNIX_MNT = Field("unix_sock", "path.mnt");
    UNIX_ADDRESS_LEN = Field("unix_address", "len");
    UNIX_ADDRESS_NAME = Field("unix_address", "name");

    MODULE_LOAD = Arguments("module_load");
    MODULE_NAME = Field("module", "name");
    // With CONFIG_MODULE_SIG.
    MODULE_SIG_OK = Field("module", "sig_ok");
    PROG_TYPE = Field("bpf_prog", "type");
    PROG_ATTACH = Field("bpf_prog", "expected_attach_type");
    PROG_LEN = Field("bpf_prog", "len");
    PROG_AUX = Field("bpf_prog", "aux");
    PROG_AUX_ID = Field("bpf_prog_aux", "id");
    PROG_AUX_NAME = Field("bpf_prog_aux", "name");
}

/// Addresses of kernel variables, from `/proc/kallsyms`; 0 = not shown. All are optional.
pub mod symbol {
    /// Sequence lock that every rename takes (`fs/dcache.c`).
    pub const RENAME_LOCK: usize = 0;
    /// Sequence lock that every change of the mount tree takes (`fs/namespace.c`).
    pub const MOUNT_LOCK: usize = 1;
    /// Number of symbols.
    pub const COUNT: usize = 2;
    /// Their names.
    pub static NAMES: [&str; COUNT] = ["rename_lock", "mount_lock"];
}
