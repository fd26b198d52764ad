//! Open, close after write, rename, unlink; changes of a file's attributes and links.

use crate::assert_size;
use crate::event::kind;
use crate::event::process::Actor;
use crate::record::{Header, PATH_MAX, Span};
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
/// Of a file that was mapped: it is of a lower layer of the overlay that the root of the process's mount namespace lies on.
pub const FILE_IN_IMAGE: u32 = 1 << 18;
/// That root lies on an overlay, and the file is not of a lower layer of it.
pub const FILE_NOT_IN_IMAGE: u32 = 1 << 19;
/// Of a file that was mapped: it has no name any more, or never had one.
pub const FILE_DELETED: u32 = 1 << 20;

/// A file was opened (`OPEN`), explicitly closed after having been open
/// for writing (`CLOSE_WRITE`; the path is the one at that moment), or mapped to be executed (`MAP_EXEC`).
///
/// When the descriptor was already empty the object is zero, `path` is
/// the caller's word and carries `FLAW_LOST`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// Header, kind `OPEN`, `CLOSE_WRITE` or `MAP_EXEC`.
    pub header: Header,
    /// Who.
    pub actor: Actor,
    /// Bits of `ACCESS_*`, `OPEN_*`, `CALL_*`; of `MAP_EXEC`, of `FILE_*` and `CALL_*`.
    pub flags: u32,
    /// The descriptor that was returned, or that was mapped; -1: of io_uring, a place in its own table.
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
assert_size!(Open, 32 + 64 + 32 + 24);

/// A rename or unlink, or one that was tried. With `NAMES_OBJECT` both names are whole paths of the kernel's own objects, as they stood
/// when it decided about the call. Else directories are the kernel's objects as they stood when the call returned; names
/// are the caller's word, and of the object nothing is known.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// Header, kind `RENAME` or `UNLINK`.
    pub header: Header,
    /// Who.
    pub actor: Actor,
    /// `CALL_*`, `NAMES_OBJECT`; for unlink `NAMES_DIRECTORY`.
    pub flags: u32,
    /// The call's own flags (`RENAME_*`, `AT_REMOVEDIR`).
    pub call_flags: u32,
    /// With `NAMES_OBJECT`: as in `Open`, of what was renamed or removed.
    pub dev: u32,
    /// Likewise.
    pub mode: u32,
    /// Likewise.
    pub ino: u64,
    /// 0, or a negative errno.
    pub result: i32,
    /// Zero.
    pub pad: u32,
    /// Walked base directory (dirfd or cwd) of the first name; empty when the name is absolute.
    pub base: Span,
    /// First name, as the caller's memory has it.
    pub name: Span,
    /// Walked base directory of the second name (rename).
    pub to_base: Span,
    /// Second name (rename): where it went.
    pub to_name: Span,
}
assert_size!(Names, 32 + 64 + 32 + 32);

/// rmdir, or unlinkat with AT_REMOVEDIR.
pub const NAMES_DIRECTORY: u32 = 1 << 0;
/// A decision point saw the call.
pub const NAMES_OBJECT: u32 = 1 << 1;

/// Something about a file was changed, or it was given another name; or somebody tried to. Calls on a path carry the kernel's base
/// directories and the caller's names; calls on a descriptor, and those that a decision point saw, have no base, and `name` is
/// the object's path.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Header, kind `CHMOD` to `SETXATTR`.
    pub header: Header,
    /// Who.
    pub actor: Actor,
    /// `CALL_*`, `CHANGE_OBJECT`, `CHANGE_TO_OBJECT`.
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
    /// 0, or a negative errno.
    pub result: i32,
    /// Zero.
    pub pad: u32,
    /// Walked base directory of `name`; empty when that is absolute or an object's path.
    pub base: Span,
    /// The file; of `SYMLINK`, what the link says.
    pub name: Span,
    /// Walked base directory of `to_name` (links).
    pub to_base: Span,
    /// The new name (links); of `SETXATTR`, the attribute.
    pub to_name: Span,
}
assert_size!(Change, 32 + 64 + 48 + 32);

/// The call named a descriptor, or a decision point saw it: what is said of the file is the kernel's word.
pub const CHANGE_OBJECT: u32 = 1 << 0;
/// A decision point saw where the link was made: `to_name` is a whole path of the kernel's own objects. Of a symbolic link, what it
/// says is the kernel's copy.
pub const CHANGE_TO_OBJECT: u32 = 1 << 1;

/// What a decision point saw of a call, until the call returns (map `KNOWN`, followed by the text of both paths; of an open map
/// `OPENED`, followed by that of one).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// When.
    pub boot_ns: u64,
    /// Kind of the record that it belongs to.
    pub kind: u16,
    /// Length of the last component of `path`.
    pub name_len: u16,
    /// Device of the object, as in `Open`; 0 if it has none yet.
    pub dev: u32,
    /// Its inode number.
    pub ino: u64,
    /// Its `i_mode`.
    pub mode: u32,
    /// Of an open, as in `Open`.
    pub flags: u32,
    /// Of an open, the address of its `struct file`.
    pub file: u64,
    /// Its path; of a symbolic link, what it says.
    pub path: Span,
    /// Where a rename or link leads.
    pub to_path: Span,
}
assert_size!(Known, 56);

/// Bytes of a value of `KNOWN`.
pub const KNOWN_BYTES: usize = size_of::<Known>() + 2 * PATH_MAX;
/// Bytes of a value of `OPENED`.
pub const OPENED_BYTES: usize = size_of::<Known>() + PATH_MAX;
/// Calls in each at once.
pub const KNOWN_ENTRIES: u32 = 256;
/// Bit of a kind of record in `policy::Filter::known`, and its place in `POINTS`.
#[must_use]
pub const fn point(kind: u16) -> u32 {
    kind as u32 - 100
}
/// Bit of a kind of record in `policy::Filter::known`: of what io_uring does, its own functions tell.
#[must_use]
pub const fn ring(kind: u16) -> u32 {
    if kind < kind::CONNECT {
        point(kind) + 32
    } else {
        (kind - kind::CONNECT) as u32 + 52
    }
}
/// Places in `POINTS`: how often each decision point saw the agent's own try, …
pub const POINTS: u32 = 17;
/// … and how many calls found no room.
pub const POINTS_FULL: u32 = POINTS - 1;

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
assert_size!(FailedOpen, 32 + 64 + 8 + 16);
