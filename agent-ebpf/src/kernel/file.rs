//! `struct file` and the descriptor table.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use core::mem::{MaybeUninit, size_of};
use sumun_abi::{
    event::file::{
        ACCESS_APPEND, ACCESS_PATH, ACCESS_READ, ACCESS_WRITE, OPEN_CREATED, OPEN_TRUNCATE,
    },
    slot,
};

use super::{Block, Object, get, number_at, task::Task, value};

// include/linux/fs.h
const FMODE_READ: u32 = 1;
const FMODE_WRITE: u32 = 2;
const FMODE_PATH: u32 = 1 << 14;
const FMODE_CREATED: u32 = 1 << 20;
/// Opened by the kernel below another file: from 6.5 on, and before (`open_with_fake_path`).
const FMODE_BACKING: u32 = 1 << 25;
const FMODE_NOACCOUNT: u32 = 1 << 29;
/// `__FMODE_EXEC`, among the flags: opened to be executed.
const FMODE_EXEC: u32 = 1 << 5;
/// `O_APPEND`; the same on x86 and Arm.
const O_APPEND: u32 = 0o2000;
/// `O_TRUNC`; the same on x86 and Arm.
pub(crate) const O_TRUNC: u64 = 0o1000;

/// `O_ACCMODE` and `O_PATH`; the same on x86 and Arm.
const O_ACCMODE: u64 = 3;
pub(crate) const O_PATH: u64 = 0o10_000_000;

const S_IFMT: u16 = 0o170_000;
const S_IFREG: u16 = 0o100_000;
const S_IFDIR: u16 = 0o040_000;
const S_IFSOCK: u16 = 0o140_000;

/// `AT_FDCWD`
const AT_FDCWD: i32 = -100;

/// Address of a `struct file`.
#[derive(Clone, Copy)]
pub(crate) struct File(pub(crate) u64);

impl File {
    /// Gone when it was looked for.
    pub(crate) const LOST: File = File(0);

    /// The file behind a descriptor of a task; 0 if there is none (any more).
    #[inline(always)]
    pub(crate) fn of(task: Task, fd: i32) -> File {
        let table = task.files().follow(slot::FILES_FDT);
        if table.address == 0 || fd as u32 >= table.get::<u32>(slot::FDTABLE_MAX) {
            return File::LOST;
        }
        let files: u64 = table.get(slot::FDTABLE_FD);
        File(number_at(files.wrapping_add(u64::from(fd as u32) * 8)))
    }

    /// The structure.
    #[inline(always)]
    pub(crate) fn object(self) -> Object {
        Object::cast(self.0, slot::TYPE_FILE)
    }

    #[inline(always)]
    pub(crate) fn is_lost(self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    pub(crate) fn dentry(self) -> u64 {
        get(self.0, slot::FILE_DENTRY)
    }

    #[inline(always)]
    pub(crate) fn mnt(self) -> u64 {
        get(self.0, slot::FILE_MNT)
    }

    #[inline(always)]
    pub(crate) fn inode(self) -> u64 {
        get(self.0, slot::FILE_INODE)
    }

    /// Its inode's number.
    #[inline(always)]
    pub(crate) fn number(self) -> u64 {
        get(self.inode(), slot::INODE_INO)
    }

    /// Writes its device, mode and inode number.
    #[inline(always)]
    pub(crate) fn identity(self, dev: *mut u32, mode: *mut u32, ino: *mut u64) {
        let inode = self.inode();
        // SAFETY: callers pass fields of their record.
        unsafe {
            dev.write(get(get(inode, slot::INODE_SB), slot::SB_DEV));
            mode.write(u32::from(get::<u16>(inode, slot::INODE_MODE)));
            ino.write(get(inode, slot::INODE_INO));
        }
    }

    /// The `struct pid` of a pidfd.
    #[inline(always)]
    pub(crate) fn pid(self) -> u64 {
        if value(slot::PID_STASHED) == slot::NONE {
            get(self.0, slot::FILE_PRIVATE)
        } else {
            get(self.inode(), slot::INODE_PRIVATE)
        }
    }

    /// What kind of namespace the file stands for, as a `CLONE_NEW*` flag.
    #[inline(always)]
    pub(crate) fn namespace(self) -> u32 {
        let namespace: u64 = get(self.inode(), slot::INODE_PRIVATE);
        if value(slot::NS_TYPE) == slot::NONE {
            return get(get(namespace, slot::NS_OPS), slot::NS_OPS_TYPE);
        }
        get(namespace, slot::NS_TYPE)
    }

    #[inline(always)]
    pub(crate) fn is_socket(self) -> bool {
        get::<u16>(self.inode(), slot::INODE_MODE) & S_IFMT == S_IFSOCK
    }

    #[inline(always)]
    pub(crate) fn is_regular(self) -> bool {
        is_regular(get(self.inode(), slot::INODE_MODE))
    }

    /// True for an open that is no call's: of the file below an overlay's, or of a program that is executed.
    #[inline(always)]
    pub(crate) fn is_inner(block: Block) -> bool {
        Self::is_below(block) || block.get::<u32>(slot::FILE_FLAGS) & FMODE_EXEC != 0
    }

    /// True for the file below an overlay's: the overlay opens it with the credentials of who has mounted it, once the caller's own open has
    /// been let through.
    #[inline(always)]
    pub(crate) fn is_below(block: Block) -> bool {
        block.get::<u32>(slot::FILE_MODE) & (FMODE_BACKING | FMODE_NOACCOUNT) != 0
    }

    /// True for a reference that was opened with `O_PATH`.
    #[inline(always)]
    pub(crate) fn is_reference(self) -> bool {
        self.object().get::<u32>(slot::FILE_MODE) & FMODE_PATH != 0
    }

    /// `ACCESS_*` and `OPEN_CREATED` of a file read at once: what the kernel granted.
    #[inline(always)]
    pub(crate) fn access(block: Block) -> u32 {
        granted(block.get(slot::FILE_MODE), block.get(slot::FILE_FLAGS))
    }
}

/// True for a file of this mode that can be written through.
#[inline(always)]
pub(crate) fn is_for_writing(mode: u32) -> bool {
    mode & FMODE_WRITE != 0
}

/// True for a regular file, by the mode of its inode.
#[inline(always)]
pub(crate) fn is_regular(mode: u16) -> bool {
    mode & S_IFMT == S_IFREG
}

/// True for a folder, by the mode of its inode.
#[inline(always)]
pub(crate) fn is_directory(mode: u32) -> bool {
    mode as u16 & S_IFMT == S_IFDIR
}

/// False for a call with these flags that opens only for reading.
#[inline(always)]
pub(crate) fn may_write(how: u64) -> bool {
    how & O_ACCMODE != 0
}

/// What a call with these flags asks for: `ACCESS_*`, and `OPEN_TRUNCATE`.
#[inline(always)]
pub(crate) fn asked(how: u64) -> u32 {
    let mut asked = match how & O_ACCMODE {
        0 => ACCESS_READ,
        1 => ACCESS_WRITE,
        _ => ACCESS_READ | ACCESS_WRITE,
    };
    if how & O_PATH != 0 {
        asked = ACCESS_PATH;
    }
    if how & u64::from(O_APPEND) != 0 {
        asked |= ACCESS_APPEND;
    }
    if how & O_TRUNC != 0 {
        asked |= OPEN_TRUNCATE;
    }
    asked
}

/// `ACCESS_*` and `OPEN_CREATED` of a file with this mode and these flags.
#[inline(always)]
pub(crate) fn granted(mode: u32, flags: u32) -> u32 {
    let mut access = 0;
    if mode & FMODE_READ != 0 {
        access |= ACCESS_READ;
    }
    if mode & FMODE_WRITE != 0 {
        access |= ACCESS_WRITE;
    }
    if mode & FMODE_PATH != 0 {
        access |= ACCESS_PATH;
    }
    if mode & FMODE_CREATED != 0 {
        access |= OPEN_CREATED;
    }
    if flags & O_APPEND != 0 {
        access |= ACCESS_APPEND;
    }
    access
}

/// Directory that a relative name starts from: dentry and mount.
#[inline(always)]
pub(crate) fn base(task: Task, dirfd: i32) -> (u64, u64) {
    if dirfd == AT_FDCWD {
        let fs = task.fs();
        return (fs.number(slot::FS_PWD_DENTRY), fs.number(slot::FS_PWD_MNT));
    }
    let file = File::of(task, dirfd);
    (file.dentry(), file.mnt())
}

/// Reads from the caller's memory.
#[inline(always)]
pub(crate) fn read_user<T: Copy + super::Plain>(address: u64) -> Option<T> {
    let mut out = MaybeUninit::<T>::zeroed();
    // SAFETY: the destination is ours, and the helper never faults. Every bit pattern is a `T`.
    unsafe {
        let failed = bpf_probe_read_user(
            out.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const _,
        );
        if failed == 0 {
            Some(out.assume_init())
        } else {
            None
        }
    }
}
