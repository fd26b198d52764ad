//! Fixed parts of the records, one file per event family.

pub mod cgroup;
pub mod deny;
pub mod file;
pub mod kernel;
pub mod network;
pub mod privilege;
pub mod process;

/// Kinds of records. Ranges: 1-99 process, 100-199 file, 200-299 network,
/// 300-399 privilege, 400-499 kernel, 500-599 verdicts; never reused.
pub mod kind {
    /// [`super::process::Fork`]
    pub const FORK: u16 = 1;
    /// [`super::process::Exec`]
    pub const EXEC: u16 = 2;
    /// [`super::process::Exit`]
    pub const EXIT: u16 = 3;
    /// A process found by the task iterator: the same fixed part as `EXEC`.
    pub const TASK: u16 = 4;
    /// [`super::cgroup::Cgroup`]
    pub const CGROUP_MKDIR: u16 = 5;
    /// [`super::cgroup::Cgroup`]
    pub const CGROUP_RMDIR: u16 = 6;
    /// [`super::cgroup::Cgroup`]: only version 1 renames.
    pub const CGROUP_RENAME: u16 = 7;
    /// [`super::file::Open`]
    pub const OPEN: u16 = 100;
    /// [`super::file::Open`], at an explicit close of a file open for writing.
    pub const CLOSE_WRITE: u16 = 101;
    /// [`super::file::Names`]
    pub const RENAME: u16 = 102;
    /// [`super::file::Names`]
    pub const UNLINK: u16 = 103;
    /// [`super::file::Change`]
    pub const CHMOD: u16 = 104;
    /// [`super::file::Change`]
    pub const CHOWN: u16 = 105;
    /// [`super::file::Change`]
    pub const TRUNCATE: u16 = 106;
    /// [`super::file::Change`]
    pub const LINK: u16 = 107;
    /// [`super::file::Change`]
    pub const SYMLINK: u16 = 108;
    /// [`super::file::Change`]
    pub const SETXATTR: u16 = 109;
    /// [`super::file::FailedOpen`]; an event of the kind `open` like `OPEN`.
    pub const OPEN_FAILED: u16 = 110;
    /// [`super::file::Open`], of a file that was mapped to be executed.
    pub const MAP_EXEC: u16 = 111;
    /// [`super::network::Connection`]
    pub const CONNECT: u16 = 200;
    /// [`super::network::Connection`]
    pub const ACCEPT: u16 = 201;
    /// [`super::network::Connection`]
    pub const BIND: u16 = 202;
    /// [`super::network::Connection`]
    pub const LISTEN: u16 = 203;
    /// [`super::network::Datagram`]
    pub const CONNECT_UDP: u16 = 204;
    /// [`super::network::UnixConnect`]
    pub const CONNECT_UNIX: u16 = 205;
    /// [`super::network::Socket`]
    pub const SOCKET: u16 = 206;
    /// [`super::network::Dns`]
    pub const DNS: u16 = 207;
    /// [`super::privilege::Credentials`]
    pub const SETID: u16 = 300;
    /// [`super::privilege::Credentials`]
    pub const CAPSET: u16 = 301;
    /// [`super::privilege::Reach`]
    pub const PTRACE: u16 = 302;
    /// [`super::privilege::Reach`]
    pub const PROCESS_VM_READV: u16 = 303;
    /// [`super::privilege::Reach`]
    pub const PROCESS_VM_WRITEV: u16 = 304;
    /// [`super::privilege::Reach`]
    pub const PIDFD_GETFD: u16 = 305;
    /// [`super::privilege::Memory`]
    pub const MEMFD_CREATE: u16 = 306;
    /// [`super::privilege::Spaces`]
    pub const UNSHARE: u16 = 307;
    /// [`super::privilege::Spaces`]
    pub const SETNS: u16 = 308;
    /// [`super::privilege::Memory`]
    pub const MAP_WX: u16 = 309;
    /// [`super::privilege::Control`]
    pub const PRCTL: u16 = 310;
    /// [`super::privilege::Control`]
    pub const USERFAULTFD: u16 = 311;
    /// [`super::kernel::Module`]
    pub const MODULE_LOAD: u16 = 400;
    /// [`super::kernel::Module`]
    pub const MODULE_UNLOAD: u16 = 401;
    /// [`super::kernel::Program`]
    pub const BPF: u16 = 402;
    /// [`super::kernel::Mount`]
    pub const MOUNT: u16 = 403;
    /// [`super::kernel::Mount`]
    pub const UMOUNT: u16 = 404;
    /// [`super::kernel::Mount`]
    pub const PIVOT_ROOT: u16 = 405;
    /// [`super::kernel::Mount`]
    pub const CHROOT: u16 = 406;
    /// [`super::kernel::Setup`]
    pub const KEXEC_LOAD: u16 = 407;
    /// [`super::kernel::Setup`]
    pub const IO_URING_SETUP: u16 = 408;
    /// [`super::kernel::Setting`]
    pub const SYSCTL: u16 = 409;
    /// [`super::deny::Asked`]
    pub const ASKED: u16 = 500;
}
