//! What changes the kernel or a whole mount namespace: modules, BPF programs, mounts, another kernel, io_uring.

use crate::assert_size;
use crate::event::process::Actor;
use crate::record::{Header, Span};
use crate::verdict::Verdict;

/// Bytes of a module's name with its NUL (`MODULE_NAME_LEN`, include/linux/moduleparam.h, is 56 on 64 bits).
pub const MODULE_NAME: usize = 64;
/// Bytes of a BPF program's name (`BPF_OBJ_NAME_LEN`).
pub const PROGRAM_NAME: usize = 16;

/// Something is the caller's word, because the call failed.
pub const KERNEL_CALLER: u32 = 1 << 0;
/// The file behind the descriptor was gone when looked for.
pub const KERNEL_LOST: u32 = 1 << 1;

/// A module was loaded or removed, or somebody tried to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// Header, kind `MODULE_LOAD` or `MODULE_UNLOAD`.
    pub header: Header,
    /// Who.
    pub actor: Actor,
    /// Number of the system call.
    pub number: u32,
    /// `CALL_COMPAT`, `KERNEL_*`.
    pub flags: u32,
    /// 0 or a negative errno.
    pub result: i32,
    /// The call's own flags.
    pub call_flags: u32,
    /// finit_module: the file's device, as in `file::Open`.
    pub dev: u32,
    /// Its `i_mode`.
    pub mode: u32,
    /// Its inode number.
    pub ino: u64,
    /// Its path.
    pub path: Span,
    /// Parameters, the caller's word.
    pub parameters: Span,
    /// Name: of a load the kernel's own, empty if it failed; of an unload the caller's word.
    pub name: [u8; MODULE_NAME],
    /// Of a load with a name: one of `signature`.
    pub signature: u64,
}
assert_size!(Module, 32 + 64 + 32 + 16 + 64 + 8);

/// What the kernel made of a module's signature.
pub mod signature {
    /// It does not say: it was built without `CONFIG_MODULE_SIG`.
    pub const UNCHECKED: u64 = 0;
    /// There is none that it trusts, and it has loaded the module all the same (`module.sig_ok` is false).
    pub const NONE: u64 = 1;
    /// One that it trusts.
    pub const GOOD: u64 = 2;
}

/// What is known of a module that was loaded, until its call returns (map `MODULES`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// As in `Module`.
    pub name: [u8; MODULE_NAME],
    /// As in `Module`.
    pub signature: u64,
}
assert_size!(Loaded, 64 + 8);

/// A BPF program was loaded or attached, or somebody tried to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Header, kind `BPF`.
    pub header: Header,
    /// Who.
    pub actor: Actor,
    /// Number of the system call.
    pub number: u32,
    /// `CALL_COMPAT`, `KERNEL_*`.
    pub flags: u32,
    /// 0 or a negative errno.
    pub result: i32,
    /// `enum bpf_cmd`.
    pub command: u32,
    /// `enum bpf_prog_type`; `u32::MAX` = not known.
    pub kind: u32,
    /// `enum bpf_attach_type` that the program expects.
    pub attach: u32,
    /// Number of the program while it lives; 0 = not known.
    pub id: u32,
    /// Instructions.
    pub instructions: u32,
    /// Name, ended by NUL if it is shorter.
    pub name: [u8; PROGRAM_NAME],
}
assert_size!(Program, 32 + 64 + 32 + 16);

/// A mount was made, changed or removed, or a root changed, or somebody tried to. Directories are the kernel's objects, names the
/// caller's word.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Header, kind `MOUNT` to `CHROOT`.
    pub header: Header,
    /// Who.
    pub actor: Actor,
    /// Number of the system call.
    pub number: u32,
    /// `CALL_COMPAT`.
    pub flags: u32,
    /// The call's own flags (`MS_*`, `MNT_*`, `MOVE_MOUNT_*`, `FSMOUNT_*`).
    pub call_flags: u64,
    /// 0, or a negative errno.
    pub result: i32,
    /// Zero.
    pub pad: u32,
    /// Walked base directory of `source`.
    pub source_base: Span,
    /// What is mounted: a device, a directory or a word; of pivot_root, where the old root goes.
    pub source: Span,
    /// Walked base directory of `target`.
    pub base: Span,
    /// Where.
    pub target: Span,
    /// Type of file system.
    pub fs: Span,
}
assert_size!(Mount, 32 + 64 + 24 + 40);

/// Bytes of a setting's name, with its NUL.
pub const SETTING_NAME: usize = 256;
/// Bytes of a setting's value that are looked at; longer ones are `FLAW_TRUNCATED`.
pub const SETTING_VALUE: usize = 1024;

/// A setting below `/proc/sys` is being written.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Header, kind `SYSCTL`.
    pub header: Header,
    /// Who.
    pub actor: Actor,
    /// Where in the file it is written.
    pub position: u32,
    /// Zero.
    pub pad: u32,
    /// Name, parted by slashes.
    pub name: Span,
    /// What is written, without a final line feed.
    pub value: Span,
    /// What the rules that deny made of it.
    pub verdict: Verdict,
}
assert_size!(Setting, 32 + 64 + 8 + 16 + 24);

/// Another kernel was put in place, or an io_uring set up.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Header, kind `KEXEC_LOAD` or `IO_URING_SETUP`.
    pub header: Header,
    /// Who.
    pub actor: Actor,
    /// Number of the system call.
    pub number: u32,
    /// `CALL_COMPAT`.
    pub flags: u32,
    /// 0 or a negative errno.
    pub result: i32,
    /// io_uring_setup: entries.
    pub entries: u32,
    /// The call's own flags.
    pub call_flags: u64,
}
assert_size!(Setup, 32 + 64 + 24);
