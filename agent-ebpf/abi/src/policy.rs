//! Which file and network records leave the kernel: control word, filters
//! and the keys of the maps they look into.
//!
//! Two filters exist, of which one is active. User space fills the other,
//! then changes `CONTROL` (array, one entry: 0 or 1) in one write; a program reads
//! `CONTROL` once and judges by that filter alone. A kind is off, sent, or filtered by up to
//! 64 clauses, each a bit: every condition looks up the set of clauses it
//! satisfies, and the intersection decides. Conditions err towards sending:
//! the filter in user space judges again with everything known.

use crate::assert_size;

/// Number of filters.
pub const FILTERS: u32 = 2;

/// What a system call means to the exit hook. `SYSCALLS` holds, for each
/// number, the action of the native call in the low byte and of the 32-bit call in
/// the high byte.
pub mod action {
    /// Nothing: the hook returns.
    pub const NONE: u8 = 0;
    /// open(path, flags, mode)
    pub const OPEN: u8 = 1;
    /// openat(dirfd, path, flags, mode)
    pub const OPENAT: u8 = 2;
    /// openat2(dirfd, path, how, size)
    pub const OPENAT2: u8 = 3;
    /// creat(path, mode)
    pub const CREAT: u8 = 4;
    /// open_by_handle_at(mountfd, handle, flags)
    pub const OPEN_BY_HANDLE: u8 = 5;
    /// close(fd), at entry for the close itself and at exit for the claims
    pub const CLOSE: u8 = 6;
    /// rename(from, to)
    pub const RENAME: u8 = 7;
    /// renameat(fromfd, from, tofd, to) and renameat2(…, flags)
    pub const RENAMEAT: u8 = 8;
    /// unlink(path)
    pub const UNLINK: u8 = 9;
    /// unlinkat(dirfd, path, flags)
    pub const UNLINKAT: u8 = 10;
    /// rmdir(path)
    pub const RMDIR: u8 = 11;
    /// connect(fd, address, length)
    pub const CONNECT: u8 = 12;
    /// accept(fd, …) and accept4
    pub const ACCEPT: u8 = 13;
    /// socketcall(call, arguments): 32-bit x86
    pub const SOCKETCALL: u8 = 14;
    /// mount(source, target, type, flags, data). This and `UMOUNT` to `MOVE_MOUNT` change which
    /// path leads where.
    pub const MOUNT: u8 = 15;
    /// dup(from), dup2(from, to) and dup3(from, to, flags)
    pub const DUP: u8 = 16;
    /// fcntl(fd, command, argument): as `DUP` for two commands
    pub const FCNTL: u8 = 17;
    /// Returns a descriptor of a file that this call did not open: open_tree
    pub const GETFD: u8 = 18;
    /// setuid, setgid, setreuid, setregid, setresuid, setresgid, setfsuid, setfsgid
    pub const SETID: u8 = 19;
    /// capset(header, data)
    pub const CAPSET: u8 = 20;
    /// ptrace(request, pid, address, data)
    pub const PTRACE: u8 = 21;
    /// process_vm_readv(pid, …)
    pub const VM_READ: u8 = 22;
    /// process_vm_writev(pid, …)
    pub const VM_WRITE: u8 = 23;
    /// pidfd_getfd(pidfd, descriptor, flags): as `GETFD`, too
    pub const PIDFD_GETFD: u8 = 24;
    /// memfd_create(name, flags)
    pub const MEMFD: u8 = 25;
    /// unshare(flags)
    pub const UNSHARE: u8 = 26;
    /// clone(flags, …), as `UNSHARE` for the child
    pub const CLONE: u8 = 27;
    /// clone3(arguments, size), likewise
    pub const CLONE3: u8 = 28;
    /// setns(fd, namespaces)
    pub const SETNS: u8 = 29;
    /// mprotect(address, length, protection) and pkey_mprotect
    pub const MPROTECT: u8 = 30;
    /// mmap(address, length, protection, flags, fd, offset), and mmap2 of 32-bit calls
    pub const MMAP: u8 = 31;
    /// The same with all arguments in memory: 32-bit
    pub const MMAP_OLD: u8 = 32;
    /// init_module(image, length, parameters)
    pub const INIT_MODULE: u8 = 33;
    /// finit_module(fd, parameters, flags)
    pub const FINIT_MODULE: u8 = 34;
    /// delete_module(name, flags)
    pub const DELETE_MODULE: u8 = 35;
    /// bpf(command, attributes, size)
    pub const BPF: u8 = 36;
    /// umount(path) and umount2(path, flags)
    pub const UMOUNT: u8 = 37;
    /// pivot_root(new, old)
    pub const PIVOT_ROOT: u8 = 38;
    /// chroot(path)
    pub const CHROOT: u8 = 39;
    /// move_mount(fromfd, from, tofd, to, flags)
    pub const MOVE_MOUNT: u8 = 40;
    /// fsmount(fs, flags, attributes)
    pub const FSMOUNT: u8 = 41;
    /// kexec_load and kexec_file_load
    pub const KEXEC: u8 = 42;
    /// io_uring_setup(entries, parameters)
    pub const IO_URING: u8 = 43;
    /// chmod(path, mode)
    pub const CHMOD: u8 = 44;
    /// fchmod(fd, mode)
    pub const FCHMOD: u8 = 45;
    /// fchmodat(dirfd, path, mode) and fchmodat2(…, flags)
    pub const FCHMODAT: u8 = 46;
    /// chown(path, user, group) and lchown
    pub const CHOWN: u8 = 47;
    /// fchown(fd, user, group)
    pub const FCHOWN: u8 = 48;
    /// fchownat(dirfd, path, user, group, flags)
    pub const FCHOWNAT: u8 = 49;
    /// truncate(path, length)
    pub const TRUNCATE: u8 = 50;
    /// ftruncate(fd, length)
    pub const FTRUNCATE: u8 = 51;
    /// link(from, to)
    pub const LINK: u8 = 52;
    /// linkat(fromfd, from, tofd, to, flags)
    pub const LINKAT: u8 = 53;
    /// symlink(target, path)
    pub const SYMLINK: u8 = 54;
    /// symlinkat(target, dirfd, path)
    pub const SYMLINKAT: u8 = 55;
    /// setxattr(path, name, value, size, flags) and lsetxattr
    pub const SETXATTR: u8 = 56;
    /// fsetxattr(fd, name, value, size, flags)
    pub const FSETXATTR: u8 = 57;
    /// bind(fd, address, length)
    pub const BIND: u8 = 58;
    /// listen(fd, backlog)
    pub const LISTEN: u8 = 59;
    /// socket(family, type, protocol)
    pub const SOCKET: u8 = 60;
    /// shmat(id, address, flags)
    pub const SHMAT: u8 = 61;
    /// ipc(call, first, second, third, pointer): 32-bit x86. As `SHMAT` for one of its calls
    pub const IPC: u8 = 62;
    /// prctl(option, second, third, …)
    pub const PRCTL: u8 = 63;
    /// userfaultfd(flags). A mask of actions has 64 bits: those from here on share the bit of the one 64 below, and
    /// [`super::whole`] tells which of the two is asked for.
    pub const USERFAULTFD: u8 = 64 + PRCTL;
    /// mount_setattr(dirfd, path, flags, …) and fspick(dirfd, path, flags), which begins a remount
    pub const MOUNT_AT: u8 = 64 + MOVE_MOUNT;
    /// setxattrat(dirfd, path, flags, name, arguments, size)
    pub const SETXATTRAT: u8 = 64 + SETXATTR;
    /// setgroups(number, groups)
    pub const SETGROUPS: u8 = 64 + SETID;
    /// The bit of an action in a mask.
    #[must_use]
    pub const fn bit(action: u8) -> u64 {
        1 << (action & 63)
    }
}

/// System call numbers in `SYSCALLS`; higher ones are of no interest. Of the calls through x32 that have numbers of their own, the
/// last is 547.
pub const SYSCALL_MAX: usize = 548;

/// Position of a kind in `Filter::mode`.
pub mod filtered {
    /// Opens.
    pub const OPEN: usize = 0;
    /// Closes after write.
    pub const CLOSE_WRITE: usize = 1;
    /// Renames.
    pub const RENAME: usize = 2;
    /// Unlinks.
    pub const UNLINK: usize = 3;
    /// Connects.
    pub const CONNECT: usize = 4;
    /// Accepts.
    pub const ACCEPT: usize = 5;
    /// Talk by UDP.
    pub const CONNECT_UDP: usize = 6;
    /// Connects of Unix sockets: with a path, among the file clauses.
    pub const CONNECT_UNIX: usize = 7;
    /// Files mapped to be executed.
    pub const MAP_EXEC: usize = 8;
    /// Number of kinds.
    pub const COUNT: usize = 9;
}

/// Bit of a kind in `Filter::whole`: kinds of which every record is sent, or none. What a
/// caller names never filters, and the others are few.
pub mod whole {
    /// Credentials.
    pub const SETID: u32 = 0;
    /// Capabilities.
    pub const CAPSET: u32 = 1;
    /// Tracing.
    pub const PTRACE: u32 = 2;
    /// Reading another process's memory.
    pub const VM_READ: u32 = 3;
    /// Writing it.
    pub const VM_WRITE: u32 = 4;
    /// Taking another process's descriptor.
    pub const PIDFD_GETFD: u32 = 5;
    /// Files in memory.
    pub const MEMFD: u32 = 6;
    /// New namespaces.
    pub const UNSHARE: u32 = 7;
    /// Namespaces entered.
    pub const SETNS: u32 = 8;
    /// Memory that can be written and executed.
    pub const MAP_WX: u32 = 9;
    /// Kernel modules loaded.
    pub const MODULE_LOAD: u32 = 10;
    /// Kernel modules removed.
    pub const MODULE_UNLOAD: u32 = 11;
    /// BPF programs.
    pub const BPF: u32 = 12;
    /// Mounts.
    pub const MOUNT: u32 = 13;
    /// Unmounts.
    pub const UMOUNT: u32 = 14;
    /// Changes of the root of a mount namespace.
    pub const PIVOT_ROOT: u32 = 15;
    /// Changes of a process's root.
    pub const CHROOT: u32 = 16;
    /// Other kernels.
    pub const KEXEC: u32 = 17;
    /// `io_uring` instances.
    pub const IO_URING: u32 = 18;
    /// Permission bits.
    pub const CHMOD: u32 = 19;
    /// Owners.
    pub const CHOWN: u32 = 20;
    /// Lengths.
    pub const TRUNCATE: u32 = 21;
    /// Hard links.
    pub const LINK: u32 = 22;
    /// Symbolic links.
    pub const SYMLINK: u32 = 23;
    /// Extended attributes.
    pub const SETXATTR: u32 = 24;
    /// Sockets bound to an address.
    pub const BIND: u32 = 25;
    /// Sockets that listen.
    pub const LISTEN: u32 = 26;
    /// Settings of the kernel.
    pub const SYSCTL: u32 = 27;
    /// Unusual sockets.
    pub const SOCKET: u32 = 28;
    /// DNS.
    pub const DNS: u32 = 29;
    /// How the kernel and others treat a process.
    pub const PRCTL: u32 = 30;
    /// Page faults that a process handles by itself.
    pub const USERFAULTFD: u32 = 31;
    /// Number of kinds; at most 64.
    pub const COUNT: usize = 32;
}

/// Bit of `Filter::known`: who opens a file for writing is remembered.
pub const WRITERS: u64 = 1 << 63;

/// Nobody asked: no walk, no record.
pub const MODE_NONE: u32 = 0;
/// Every record is sent.
pub const MODE_ALL: u32 = 1;
/// A record is sent if some clause could match.
pub const MODE_FILTERED: u32 = 2;

/// Access bits that a clause can ask for: position n of `Filter::access`
/// stands for `ACCESS_BITS[n]` of `event::file`.
pub const ACCESS_BITS: [u32; 9] = [
    crate::event::file::ACCESS_READ,
    crate::event::file::ACCESS_WRITE,
    crate::event::file::ACCESS_APPEND,
    crate::event::file::ACCESS_PATH,
    crate::event::file::OPEN_CREATED,
    crate::event::file::OPEN_TRUNCATE,
    crate::event::file::FILE_IN_IMAGE,
    crate::event::file::FILE_NOT_IN_IMAGE,
    crate::event::file::FILE_DELETED,
];
/// The first so many are of opens, the others of files that are mapped.
pub const OPEN_BITS: usize = 6;

/// One of the two filters (array `FILTERS`). File kinds share one space of
/// 64 clauses, network kinds another; `clauses` says which belong to a kind.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Goes into the header of every record it lets through.
    pub generation: u32,
    /// Zero.
    pub pad: u32,
    /// Bit n: the exit hook acts on action n.
    pub actions: u64,
    /// Bit n: the entry hook acts on action n.
    pub entry_actions: u64,
    /// Bit n: kind n of module `whole` is sent.
    pub whole: u64,
    /// Bit n: decision points see kind n of `event::file::point`. Bit n of `event::file::ring`: of io_uring, too. And [`WRITERS`].
    pub known: u64,
    /// By action, [`Failures::of`]: with which errno a call fails that is sent all the same. Bit n of it is errno n.
    pub failures: Failures,
    /// `MODE_*` of each kind in `filtered`.
    pub mode: [u32; filtered::COUNT],
    /// Zero.
    pub pad_mode: u32,
    /// Clauses of each kind.
    pub clauses: [u64; filtered::COUNT],
    /// File clauses that ask for one of several access bits, by `ACCESS_BITS`.
    pub access: [u64; ACCESS_BITS.len()],
    /// File clauses without a condition on access.
    pub any_access: u64,
    /// File clauses without a condition on the path.
    pub any_path: u64,
    /// File clauses without a condition on the executable.
    pub any_exe_file: u64,
    /// Network clauses without a condition on the executable.
    pub any_exe_net: u64,
    /// Network clauses without a condition on the source port.
    pub any_src_port: u64,
    /// Network clauses without a condition on the destination port.
    pub any_dst_port: u64,
    /// Network clauses without a condition on the source address.
    pub any_src_net: u64,
    /// Network clauses without a condition on the destination address.
    pub any_dst_net: u64,
}
assert_size!(Filter, 40 + 64 * 24 + 40 + 72 + 72 + 64);

/// Words of a set of errors: one more than the highest errno that a call returns, 133, needs.
pub const ERRORS: usize = 3;

/// A set of errors for each bit of a mask of actions, in halves: a longer array has no default.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures([[[u64; ERRORS]; 32]; 2]);

impl Failures {
    /// The set of an action.
    #[must_use]
    #[inline(always)]
    pub fn of(&self, action: u8) -> &[u64; ERRORS] {
        let bit = (action & 63) as usize;
        &self.0[bit >> 5][bit & 31]
    }

    /// The same, to be changed.
    pub fn of_mut(&mut self, action: u8) -> &mut [u64; ERRORS] {
        let bit = (action & 63) as usize;
        &mut self.0[bit >> 5][bit & 31]
    }
}

/// What a key of the trie `MATCH` holds after its first byte; the upper bit
/// of that byte is the filter.
pub mod tag {
    /// Directory path with a final slash.
    pub const DIR: u8 = 1;
    /// `Match::dir` (host order), then a file name.
    pub const NAME: u8 = 2;
    /// Path of an executable.
    pub const EXE_PATH: u8 = 3;
    /// Last component of that path.
    pub const EXE_NAME: u8 = 4;
    /// Source port, network order.
    pub const SRC_PORT: u8 = 5;
    /// Destination port.
    pub const DST_PORT: u8 = 6;
    /// Source address, IPv4.
    pub const SRC_NET4: u8 = 7;
    /// Source address, IPv6.
    pub const SRC_NET6: u8 = 8;
    /// Destination address, IPv4.
    pub const DST_NET4: u8 = 9;
    /// Destination address, IPv6.
    pub const DST_NET6: u8 = 10;
    /// Nothing: clauses that ask for some exact path, for files that are the root of a mount.
    pub const ROOT: u8 = 11;
    /// As `EXE_PATH`, for verdicts: `Match::file` holds atoms about the executable itself,
    /// `Match::net` those about ancestors.
    pub const VERDICT_PATH: u8 = 12;
    /// As `EXE_NAME`, likewise.
    pub const VERDICT_NAME: u8 = 13;
    /// Path of a file, for verdicts, in `Match::file`.
    pub const VERDICT_FILE_PATH: u8 = 14;
    /// Last component of that path, likewise.
    pub const VERDICT_FILE_NAME: u8 = 15;
    /// Source address, IPv4, for verdicts.
    pub const VERDICT_SRC_NET4: u8 = 16;
    /// Source address, IPv6, likewise.
    pub const VERDICT_SRC_NET6: u8 = 17;
    /// Destination address, IPv4, likewise.
    pub const VERDICT_DST_NET4: u8 = 18;
    /// Destination address, IPv6, likewise.
    pub const VERDICT_DST_NET6: u8 = 19;
    /// Path that a file is to have, for verdicts, in `Match::file`.
    pub const VERDICT_TO_PATH: u8 = 20;
    /// Name of a setting of the kernel, likewise.
    pub const VERDICT_SETTING: u8 = 21;
    /// Value that it is to have, likewise.
    pub const VERDICT_VALUE: u8 = 22;
    /// Bit of the first byte that selects the filter.
    pub const FILTER: u8 = 0x80;
}

/// Data bytes of a key of `MATCH`: the most a kernel trie takes.
pub const MATCH_DATA: usize = 256;
/// Text bytes after the tag; longer text is looked up (and entered) cut, where
/// the value stands for everything that begins so.
pub const MATCH_TEXT: usize = MATCH_DATA - 1;
/// Entries of `MATCH`. A filter that needs more is not loadable: user
/// space widens the kind to `MODE_ALL` and says so.
pub const MATCH_ENTRIES: u32 = 32 * 1024;

/// Key of the trie `MATCH` (longest prefix match).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatchKey {
    /// Significant bits of `data`.
    pub bits: u32,
    /// Tag, then text or number.
    pub data: [u8; MATCH_DATA],
}
assert_size!(MatchKey, 260);

/// Value of the trie: of every prefix of its key, too, because a look-up finds only the longest.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// File clauses that are satisfied by anything that begins with the key.
    pub file: u64,
    /// Network clauses, likewise.
    pub net: u64,
    /// File clauses satisfied by this very key.
    pub file_exact: u64,
    /// Network clauses satisfied by this very key.
    pub net_exact: u64,
    /// Length of the key's data in bytes, to tell an exact hit.
    pub len: u32,
    /// `DIR`: number of the directory in keys of `NAME`; 0 = none of its names matters.
    pub dir: u32,
}
assert_size!(Match, 40);

/// Key of the cache `DIRS` (LRU: the oldest verdicts make room): a directory
/// as seen through a mount, while no rename and no mount has changed
/// where it is. Inode numbers are reused, hence pointer and generation too.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirKey {
    /// Address of the directory's inode.
    pub inode: u64,
    /// Address of the mount.
    pub mnt: u64,
    /// Inode number.
    pub ino: u64,
    /// `i_generation`.
    pub inode_generation: u32,
    /// `Filter::generation`.
    pub generation: u32,
    /// `FLUSH` and the kernel's own sequences, folded.
    pub flush: u64,
}
assert_size!(DirKey, 40);

/// Verdict on a directory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirVerdict {
    /// File clauses that every name in it satisfies.
    pub file: u64,
    /// As `Match::dir`.
    pub dir: u32,
    /// Zero.
    pub pad: u32,
}
assert_size!(DirVerdict, 16);

/// Key of the cache `EXES` (LRU): a program image under a filter.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExeKey {
    /// Start time of the process.
    pub start_ns: u64,
    /// `self_exec_id`.
    pub image: u64,
    /// Process id.
    pub pid: u32,
    /// `Filter::generation`.
    pub generation: u32,
}
assert_size!(ExeKey, 24);

/// Clauses that an executable satisfies.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExeVerdict {
    /// File clauses.
    pub file: u64,
    /// Network clauses.
    pub net: u64,
}
assert_size!(ExeVerdict, 16);

/// Number of claims.
pub const SWAP_SLOTS: u32 = 16 * 1024;

/// That a call put a file behind a descriptor of a table that others share (array `CLAIMS`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Owned by who reads 1 after adding 1.
    pub busy: u64,
    /// Bits 0 to 21 thread id, the rest a hash of the file. 0: nobody.
    pub word: u64,
    /// The word that stood here when the descriptor was closed.
    pub closed: u64,
    /// The last open that was left out, as `word`; 0 once it has been reported.
    pub unsent: u64,
    /// Address of its thread's `task_struct`.
    pub task: u64,
    /// Its name, in that thread's memory.
    pub name: u64,
    /// Its flags, as in the record.
    pub flags: u64,
    /// Who could not enter wrote here what its `word` would have been, until the next descriptor that is closed or copied here. Whoever is inside
    /// looks at it once more after leaving.
    pub contested: u64,
}
assert_size!(Claim, 64);
