//! Open, close after write, rename, unlink; changes of a file's attributes and links.

use crate::assert_size;
use crate::event::process::Actor;
use crate::record::{Header, Span};
use crate::verdict::Verdict;

/// Asked for reading.
pub const ACCESS_READ: u32 = 1 << 0;
/// Asked for writing.
pub const ACCESS_WRITE: u32 = 1 << 1;
/// Opened for appending only.
pub const ACCESS_APPEND: u32 = 1 << 2;
/// O_PATH: a reference, no reading or writing.
pub const ACCESS_PATH: u32 = 1 << 3;
/// What was asked for could not be read: of an open that failed, or that the agent held.
pub const ACCESS_UNKNOWN: u32 = 1 << 4;
/// The call created the file (`FMODE_CREATED`: the kernel's own word).
pub const OPEN_CREATED: u32 = 1 << 8;
/// The call asked to truncate (its own flags).
pub const OPEN_TRUNCATE: u32 = 1 << 9;
/// `OPEN_TRUNCATE` could not be read (openat2's structure was gone).
pub const OPEN_TRUNCATE_UNKNOWN: u32 = 1 << 10;
/// The open failed. Never in a kernel record, whose kind says so.
pub const OPEN_FAILED: u32 = 1 << 11;
/// Made by a 32-bit call.
pub const CALL_COMPAT: u32 = 1 << 16;
/// Made through io_uring.
pub const CALL_IO_URING: u32 = 1 << 17;

/// A file was opened (`OPEN`), or explicitly closed after having been open
/// for writing (`CLOSE_WRITE`; the path is the one at that moment).
///
/// When the descriptor was already empty the object is zero, `path` is
/// the caller's word and carries `FLAW_LOST`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// Header, kind `OPEN` or `CLOSE_WRITE`.
    pub header: Header,
    /// Who.
    pub actor: Actor,
    /// Bits of `ACCESS_*`, `OPEN_*`, `CALL_*`.
    pub flags: u32,
    /// The descriptor that was returned.
    pub fd: i32,
    /// Superblock device (`i_sb->s_dev`), kernel encoding (major << 20 | minor).
    pub dev: u32,
    /// `i_mode`: type and permission bits.
    pub mode: u32,
    /// Inode number.
    pub ino: u64,
    /// Path of the object.
    pub path: Span,
    /// What the rules that kill made of it.
    pub verdict: Verdict,
}
assert_size!(Open, 32 + 56 + 32 + 24);

/// A rename or unlink that succeeded. Directories are the kernel's objects
/// as they stood when the call returned; names are the caller's word.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// Header, kind `RENAME` or `UNLINK`.
    pub header: Header,
    /// Who.
    pub actor: Actor,
    /// `CALL_*`; for unlink `NAMES_DIRECTORY`.
    pub flags: u32,
    /// The call's own flags (`RENAME_*`, `AT_REMOVEDIR`).
    pub call_flags: u32,
    /// Walked base directory (dirfd or cwd) of the first name; empty when the name is absolute.
    pub base: Span,
    /// First name, as the caller's memory has it.
    pub name: Span,
    /// Walked base directory of the second name (rename).
    pub to_base: Span,
    /// Second name (rename): where it went.
    pub to_name: Span,
}
assert_size!(Names, 32 + 56 + 8 + 32);

/// rmdir, or unlinkat with AT_REMOVEDIR.
pub const NAMES_DIRECTORY: u32 = 1 << 0;

/// Something about a file was changed, or it was given another name. Calls on a path carry the kernel's base
/// directories and the caller's names; calls on a descriptor have no base, and `name` is the object's path.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Header, kind `CHMOD` to `SETXATTR`.
    pub header: Header,
    /// Who.
    pub actor: Actor,
    /// `CALL_*`, `CHANGE_OBJECT`.
    pub flags: u32,
    /// Number of the system call.
    pub number: u32,
    /// `CHMOD`: the permission bits that were asked for; `TRUNCATE`: the length; else the call's own flags.
    pub value: u64,
    /// `CHOWN`: the user as the caller gave it, `u32::MAX` = unchanged.
    pub uid: u32,
    /// `CHOWN`: the group, likewise.
    pub gid: u32,
    /// With `CHANGE_OBJECT`: as in `Open`.
    pub dev: u32,
    /// With `CHANGE_OBJECT`: `i_mode` after the call.
    pub mode: u32,
    /// With `CHANGE_OBJECT`: inode number.
    pub ino: u64,
    /// Walked base directory of `name`; empty when that is absolute or an object's path.
    pub base: Span,
    /// The file; of `SYMLINK`, what the link says.
    pub name: Span,
    /// Walked base directory of `to_name` (links).
    pub to_base: Span,
    /// The new name (links); of `SETXATTR`, the attribute.
    pub to_name: Span,
}
assert_size!(Change, 32 + 56 + 40 + 32);

/// The call named a descriptor: what is said of the file is the kernel's word.
pub const CHANGE_OBJECT: u32 = 1 << 0;

/// An open failed. The directory is the kernel's object, the name the caller's word.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedOpen {
    /// Header, kind `OPEN_FAILED`.
    pub header: Header,
    /// Who.
    pub actor: Actor,
    /// Bits of `ACCESS_*`, `OPEN_*`, `CALL_*`: what was asked for. With `ACCESS_UNKNOWN` that could not be read.
    pub flags: u32,
    /// The negative errno.
    pub result: i32,
    /// Walked base directory (dirfd or cwd); empty when the name is absolute.
    pub base: Span,
    /// The name, as the caller's memory has it. `FLAW_LOST`: it had none, as open_by_handle_at.
    pub name: Span,
}
assert_size!(FailedOpen, 32 + 56 + 8 + 16);
