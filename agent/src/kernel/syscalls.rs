//! Which system calls the exit hook looks at, native and 32-bit, and how they are called. Those that differ only in
//! the width of an argument (setuid32, mmap2, truncate64) have one name.
//!
//! Numbers: `arch/x86/entry/syscalls/syscall_{64,32}.tbl`, `include/uapi/asm-generic/unistd.h`
//! and `arch/arm64/tools/syscall_32.tbl` of Linux; they never change.

use sumun_abi::policy::{SYSCALL_MAX, action::*};

/// Number, action, name.
type Call = (libc::c_long, u8, &'static str);

/// The same number on every architecture, from 6.6.
const FCHMODAT2: libc::c_long = 452;
/// Likewise, from 6.13.
const SETXATTR_AT: libc::c_long = 463;

/// Native calls of this architecture.
const NATIVE: &[Call] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, OPEN, "open"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_creat, CREAT, "creat"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, RENAME, "rename"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, RMDIR, "rmdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, UNLINK, "unlink"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_dup2, DUP, "dup2"),
    (libc::SYS_dup, DUP, "dup"),
    (libc::SYS_dup3, DUP, "dup3"),
    (libc::SYS_pidfd_getfd, PIDFD_GETFD, "pidfd_getfd"),
    (libc::SYS_open_tree, GETFD, "open_tree"),
    (libc::SYS_fcntl, FCNTL, "fcntl"),
    (libc::SYS_openat, OPENAT, "openat"),
    (libc::SYS_openat2, OPENAT2, "openat2"),
    (
        libc::SYS_open_by_handle_at,
        OPEN_BY_HANDLE,
        "open_by_handle_at",
    ),
    (libc::SYS_close, CLOSE, "close"),
    (libc::SYS_renameat, RENAMEAT, "renameat"),
    (libc::SYS_renameat2, RENAMEAT, "renameat2"),
    (libc::SYS_unlinkat, UNLINKAT, "unlinkat"),
    (libc::SYS_connect, CONNECT, "connect"),
    (libc::SYS_accept, ACCEPT, "accept"),
    (libc::SYS_accept4, ACCEPT, "accept4"),
    (libc::SYS_mount, MOUNT, "mount"),
    (libc::SYS_umount2, UMOUNT, "umount2"),
    (libc::SYS_pivot_root, PIVOT_ROOT, "pivot_root"),
    (libc::SYS_move_mount, MOVE_MOUNT, "move_mount"),
    (libc::SYS_mount_setattr, MOUNT_AT, "mount_setattr"),
    (libc::SYS_fspick, MOUNT_AT, "fspick"),
    (libc::SYS_chroot, CHROOT, "chroot"),
    (libc::SYS_setuid, SETID, "setuid"),
    (libc::SYS_setgid, SETID, "setgid"),
    (libc::SYS_setreuid, SETID, "setreuid"),
    (libc::SYS_setregid, SETID, "setregid"),
    (libc::SYS_setresuid, SETID, "setresuid"),
    (libc::SYS_setresgid, SETID, "setresgid"),
    (libc::SYS_setfsuid, SETID, "setfsuid"),
    (libc::SYS_setfsgid, SETID, "setfsgid"),
    (libc::SYS_setgroups, SETGROUPS, "setgroups"),
    (libc::SYS_capset, CAPSET, "capset"),
    (libc::SYS_ptrace, PTRACE, "ptrace"),
    (libc::SYS_process_vm_readv, VM_READ, "process_vm_readv"),
    (libc::SYS_process_vm_writev, VM_WRITE, "process_vm_writev"),
    (libc::SYS_memfd_create, MEMFD, "memfd_create"),
    (libc::SYS_unshare, UNSHARE, "unshare"),
    (libc::SYS_clone, CLONE, "clone"),
    (libc::SYS_clone3, CLONE3, "clone3"),
    (libc::SYS_setns, SETNS, "setns"),
    (libc::SYS_mprotect, MPROTECT, "mprotect"),
    (libc::SYS_pkey_mprotect, MPROTECT, "pkey_mprotect"),
    (libc::SYS_mmap, MMAP, "mmap"),
    (libc::SYS_shmat, SHMAT, "shmat"),
    (libc::SYS_prctl, PRCTL, "prctl"),
    (libc::SYS_userfaultfd, USERFAULTFD, "userfaultfd"),
    (libc::SYS_init_module, INIT_MODULE, "init_module"),
    (libc::SYS_finit_module, FINIT_MODULE, "finit_module"),
    (libc::SYS_delete_module, DELETE_MODULE, "delete_module"),
    (libc::SYS_bpf, BPF, "bpf"),
    (libc::SYS_fsmount, FSMOUNT, "fsmount"),
    (libc::SYS_kexec_load, KEXEC, "kexec_load"),
    (libc::SYS_kexec_file_load, KEXEC, "kexec_file_load"),
    (libc::SYS_io_uring_setup, IO_URING, "io_uring_setup"),
    (libc::SYS_fchmod, FCHMOD, "fchmod"),
    (libc::SYS_fchmodat, FCHMODAT, "fchmodat"),
    (FCHMODAT2, FCHMODAT, "fchmodat2"),
    (libc::SYS_fchown, FCHOWN, "fchown"),
    (libc::SYS_fchownat, FCHOWNAT, "fchownat"),
    (libc::SYS_truncate, TRUNCATE, "truncate"),
    (libc::SYS_ftruncate, FTRUNCATE, "ftruncate"),
    (libc::SYS_linkat, LINKAT, "linkat"),
    (libc::SYS_symlinkat, SYMLINKAT, "symlinkat"),
    (libc::SYS_setxattr, SETXATTR, "setxattr"),
    (libc::SYS_lsetxattr, SETXATTR, "lsetxattr"),
    (libc::SYS_fsetxattr, FSETXATTR, "fsetxattr"),
    (SETXATTR_AT, SETXATTRAT, "setxattrat"),
    (libc::SYS_bind, BIND, "bind"),
    (libc::SYS_listen, LISTEN, "listen"),
    (libc::SYS_socket, SOCKET, "socket"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, CHMOD, "chmod"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chown, CHOWN, "chown"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lchown, CHOWN, "lchown"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_link, LINK, "link"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_symlink, SYMLINK, "symlink"),
    // Through x32, these have numbers of their own (`arch/x86/entry/syscalls/syscall_64.tbl`); nothing else has them.
    #[cfg(target_arch = "x86_64")]
    (521, PTRACE, "ptrace"),
    #[cfg(target_arch = "x86_64")]
    (528, KEXEC, "kexec_load"),
    #[cfg(target_arch = "x86_64")]
    (539, VM_READ, "process_vm_readv"),
    #[cfg(target_arch = "x86_64")]
    (540, VM_WRITE, "process_vm_writev"),
];

#[cfg(target_arch = "x86_64")]
use I386 as COMPAT;

#[cfg(target_arch = "aarch64")]
use ARM as COMPAT;

/// 32-bit calls of i386.
#[cfg(any(target_arch = "x86_64", test))]
const I386: &[Call] = &[
    (5, OPEN, "open"),
    (6, CLOSE, "close"),
    (8, CREAT, "creat"),
    (9, LINK, "link"),
    (10, UNLINK, "unlink"),
    (15, CHMOD, "chmod"),
    (16, CHOWN, "lchown"),
    (21, MOUNT, "mount"),
    (22, UMOUNT, "umount"),
    (23, SETID, "setuid"),
    (26, PTRACE, "ptrace"),
    (38, RENAME, "rename"),
    (40, RMDIR, "rmdir"),
    (41, DUP, "dup"),
    (46, SETID, "setgid"),
    (52, UMOUNT, "umount2"),
    (55, FCNTL, "fcntl"),
    (61, CHROOT, "chroot"),
    (63, DUP, "dup2"),
    (70, SETID, "setreuid"),
    (71, SETID, "setregid"),
    (81, SETGROUPS, "setgroups"),
    (83, SYMLINK, "symlink"),
    (90, MMAP_OLD, "mmap"),
    (92, TRUNCATE, "truncate"),
    (93, FTRUNCATE, "ftruncate"),
    (94, FCHMOD, "fchmod"),
    (95, FCHOWN, "fchown"),
    (102, SOCKETCALL, "socketcall"),
    (117, IPC, "shmat"),
    (120, CLONE, "clone"),
    (125, MPROTECT, "mprotect"),
    (128, INIT_MODULE, "init_module"),
    (129, DELETE_MODULE, "delete_module"),
    (138, SETID, "setfsuid"),
    (139, SETID, "setfsgid"),
    (164, SETID, "setresuid"),
    (170, SETID, "setresgid"),
    (172, PRCTL, "prctl"),
    (182, CHOWN, "chown"),
    (185, CAPSET, "capset"),
    (192, MMAP, "mmap"),
    (193, TRUNCATE, "truncate"),
    (194, FTRUNCATE, "ftruncate"),
    (198, CHOWN, "lchown"),
    (203, SETID, "setreuid"),
    (204, SETID, "setregid"),
    (206, SETGROUPS, "setgroups"),
    (207, FCHOWN, "fchown"),
    (208, SETID, "setresuid"),
    (210, SETID, "setresgid"),
    (212, CHOWN, "chown"),
    (213, SETID, "setuid"),
    (214, SETID, "setgid"),
    (215, SETID, "setfsuid"),
    (216, SETID, "setfsgid"),
    (217, PIVOT_ROOT, "pivot_root"),
    (221, FCNTL, "fcntl"),
    (226, SETXATTR, "setxattr"),
    (227, SETXATTR, "lsetxattr"),
    (228, FSETXATTR, "fsetxattr"),
    (283, KEXEC, "kexec_load"),
    (295, OPENAT, "openat"),
    (298, FCHOWNAT, "fchownat"),
    (301, UNLINKAT, "unlinkat"),
    (302, RENAMEAT, "renameat"),
    (303, LINKAT, "linkat"),
    (304, SYMLINKAT, "symlinkat"),
    (306, FCHMODAT, "fchmodat"),
    (310, UNSHARE, "unshare"),
    (330, DUP, "dup3"),
    (342, OPEN_BY_HANDLE, "open_by_handle_at"),
    (346, SETNS, "setns"),
    (347, VM_READ, "process_vm_readv"),
    (348, VM_WRITE, "process_vm_writev"),
    (350, FINIT_MODULE, "finit_module"),
    (353, RENAMEAT, "renameat2"),
    (356, MEMFD, "memfd_create"),
    (357, BPF, "bpf"),
    (359, SOCKET, "socket"),
    (361, BIND, "bind"),
    (362, CONNECT, "connect"),
    (363, LISTEN, "listen"),
    (364, ACCEPT, "accept4"),
    (374, USERFAULTFD, "userfaultfd"),
    (380, MPROTECT, "pkey_mprotect"),
    (397, SHMAT, "shmat"),
    (425, IO_URING, "io_uring_setup"),
    (428, GETFD, "open_tree"),
    (429, MOVE_MOUNT, "move_mount"),
    (432, FSMOUNT, "fsmount"),
    (433, MOUNT_AT, "fspick"),
    (435, CLONE3, "clone3"),
    (437, OPENAT2, "openat2"),
    (438, PIDFD_GETFD, "pidfd_getfd"),
    (442, MOUNT_AT, "mount_setattr"),
    (452, FCHMODAT, "fchmodat2"),
    (463, SETXATTRAT, "setxattrat"),
];

/// 32-bit calls of Arm (EABI).
#[cfg(any(target_arch = "aarch64", test))]
const ARM: &[Call] = &[
    (5, OPEN, "open"),
    (6, CLOSE, "close"),
    (8, CREAT, "creat"),
    (9, LINK, "link"),
    (10, UNLINK, "unlink"),
    (15, CHMOD, "chmod"),
    (16, CHOWN, "lchown"),
    (21, MOUNT, "mount"),
    (23, SETID, "setuid"),
    (26, PTRACE, "ptrace"),
    (38, RENAME, "rename"),
    (40, RMDIR, "rmdir"),
    (41, DUP, "dup"),
    (46, SETID, "setgid"),
    (52, UMOUNT, "umount2"),
    (55, FCNTL, "fcntl"),
    (61, CHROOT, "chroot"),
    (63, DUP, "dup2"),
    (70, SETID, "setreuid"),
    (71, SETID, "setregid"),
    (81, SETGROUPS, "setgroups"),
    (83, SYMLINK, "symlink"),
    (92, TRUNCATE, "truncate"),
    (93, FTRUNCATE, "ftruncate"),
    (94, FCHMOD, "fchmod"),
    (95, FCHOWN, "fchown"),
    (120, CLONE, "clone"),
    (125, MPROTECT, "mprotect"),
    (128, INIT_MODULE, "init_module"),
    (129, DELETE_MODULE, "delete_module"),
    (138, SETID, "setfsuid"),
    (139, SETID, "setfsgid"),
    (164, SETID, "setresuid"),
    (170, SETID, "setresgid"),
    (172, PRCTL, "prctl"),
    (182, CHOWN, "chown"),
    (185, CAPSET, "capset"),
    (192, MMAP, "mmap"),
    (193, TRUNCATE, "truncate"),
    (194, FTRUNCATE, "ftruncate"),
    (198, CHOWN, "lchown"),
    (203, SETID, "setreuid"),
    (204, SETID, "setregid"),
    (206, SETGROUPS, "setgroups"),
    (207, FCHOWN, "fchown"),
    (208, SETID, "setresuid"),
    (210, SETID, "setresgid"),
    (212, CHOWN, "chown"),
    (213, SETID, "setuid"),
    (214, SETID, "setgid"),
    (215, SETID, "setfsuid"),
    (216, SETID, "setfsgid"),
    (218, PIVOT_ROOT, "pivot_root"),
    (221, FCNTL, "fcntl"),
    (226, SETXATTR, "setxattr"),
    (227, SETXATTR, "lsetxattr"),
    (228, FSETXATTR, "fsetxattr"),
    (281, SOCKET, "socket"),
    (282, BIND, "bind"),
    (283, CONNECT, "connect"),
    (284, LISTEN, "listen"),
    (285, ACCEPT, "accept"),
    (305, SHMAT, "shmat"),
    (322, OPENAT, "openat"),
    (325, FCHOWNAT, "fchownat"),
    (328, UNLINKAT, "unlinkat"),
    (329, RENAMEAT, "renameat"),
    (330, LINKAT, "linkat"),
    (331, SYMLINKAT, "symlinkat"),
    (333, FCHMODAT, "fchmodat"),
    (337, UNSHARE, "unshare"),
    (347, KEXEC, "kexec_load"),
    (358, DUP, "dup3"),
    (366, ACCEPT, "accept4"),
    (371, OPEN_BY_HANDLE, "open_by_handle_at"),
    (375, SETNS, "setns"),
    (376, VM_READ, "process_vm_readv"),
    (377, VM_WRITE, "process_vm_writev"),
    (379, FINIT_MODULE, "finit_module"),
    (382, RENAMEAT, "renameat2"),
    (385, MEMFD, "memfd_create"),
    (386, BPF, "bpf"),
    (388, USERFAULTFD, "userfaultfd"),
    (394, MPROTECT, "pkey_mprotect"),
    (401, KEXEC, "kexec_file_load"),
    (425, IO_URING, "io_uring_setup"),
    (428, GETFD, "open_tree"),
    (429, MOVE_MOUNT, "move_mount"),
    (432, FSMOUNT, "fsmount"),
    (433, MOUNT_AT, "fspick"),
    (435, CLONE3, "clone3"),
    (437, OPENAT2, "openat2"),
    (438, PIDFD_GETFD, "pidfd_getfd"),
    (442, MOUNT_AT, "mount_setattr"),
    (452, FCHMODAT, "fchmodat2"),
    (463, SETXATTRAT, "setxattrat"),
];

/// The table for the programs: native action in the low byte, 32-bit in the high.
pub(super) fn table() -> [u16; SYSCALL_MAX] {
    let mut table = [0; SYSCALL_MAX];
    for (calls, shift) in [(NATIVE, 0), (COMPAT, 8)] {
        for (number, action, _) in calls {
            if let Some(entry) = usize::try_from(*number).ok().and_then(|n| table.get_mut(n)) {
                *entry |= u16::from(*action) << shift;
            }
        }
    }
    table
}

/// Name of a call that some action is about.
#[must_use]
pub fn name(number: u32, compat: bool) -> Option<&'static str> {
    let calls = if compat { COMPAT } else { NATIVE };
    calls
        .iter()
        .find(|(known, ..)| *known == libc::c_long::from(number))
        .map(|(.., name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_taken_once() {
        for calls in [NATIVE, I386, ARM] {
            let mut numbers: Vec<_> = calls.iter().map(|(number, ..)| *number).collect();
            numbers.sort_unstable();
            let len = numbers.len();
            numbers.dedup();
            assert_eq!(numbers.len(), len);
            assert!(
                numbers
                    .iter()
                    .all(|number| (*number as usize) < SYSCALL_MAX)
            );
        }
    }

    /// Action of a call of that name.
    fn action(calls: &[Call], name: &str) -> Option<u8> {
        let call = calls.iter().find(|(.., known)| *known == name);
        call.map(|(_, action, _)| *action)
    }

    #[test]
    fn what_is_seen_of_native_programs_is_seen_of_32_bit_ones() {
        for (_, native, name) in NATIVE {
            for (calls, i386) in [(I386, true), (ARM, false)] {
                // arm's socket calls have numbers of their own; i386's first came through one door, `accept` to this day.
                let (other, wanted) = match *name {
                    "accept" if i386 => ("socketcall", SOCKETCALL),
                    // i386 has no longer form of it.
                    "kexec_file_load" if i386 => continue,
                    name => (name, *native),
                };
                let found = calls
                    .iter()
                    .any(|(_, action, known)| *known == other && *action == wanted);
                assert!(found, "{name}, i386: {i386}");
            }
        }
    }

    #[test]
    fn every_action_has_a_32_bit_call() {
        let actions: std::collections::BTreeSet<u8> =
            NATIVE.iter().map(|(_, action, _)| *action).collect();
        for calls in [I386, ARM] {
            for wanted in &actions {
                let found = calls.iter().any(|(_, action, _)| action == wanted);
                assert!(
                    found || *wanted == ACCEPT && calls == I386,
                    "action {wanted}"
                );
            }
        }
        // What mmap asks has another form there.
        assert!(ARM.contains(&(192, MMAP, "mmap")));
        assert!(I386.contains(&(192, MMAP, "mmap")));
    }

    /// Calls whose number through x32 is not the native one, from 512 on.
    #[cfg(target_arch = "x86_64")]
    const X32: [&str; 36] = [
        "rt_sigaction",
        "rt_sigreturn",
        "ioctl",
        "readv",
        "writev",
        "recvfrom",
        "sendmsg",
        "recvmsg",
        "execve",
        "ptrace",
        "rt_sigpending",
        "rt_sigtimedwait",
        "rt_sigqueueinfo",
        "sigaltstack",
        "timer_create",
        "mq_notify",
        "kexec_load",
        "waitid",
        "set_robust_list",
        "get_robust_list",
        "vmsplice",
        "move_pages",
        "preadv",
        "pwritev",
        "rt_tgsigqueueinfo",
        "recvmmsg",
        "sendmmsg",
        "process_vm_readv",
        "process_vm_writev",
        "setsockopt",
        "getsockopt",
        "io_setup",
        "io_submit",
        "execveat",
        "preadv2",
        "pwritev2",
    ];

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn what_is_seen_of_native_programs_is_seen_through_x32() {
        let native: Vec<_> = NATIVE
            .iter()
            .filter(|(number, ..)| *number < 512)
            .copied()
            .collect();
        for (number, call) in (512..).zip(X32) {
            let own = NATIVE.iter().find(|(known, ..)| *known == number);
            let wanted = action(&native, call).map(|action| (number, action, call));
            assert_eq!(own.copied(), wanted, "{call}");
        }
        assert!(NATIVE.iter().all(|(number, ..)| *number < 548));
    }
}
