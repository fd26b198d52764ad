//! Which system calls the exit hook looks at, native and 32-bit.
//!
//! Numbers: `arch/x86/entry/syscalls/syscall_{64,32}.tbl`, `include/uapi/asm-generic/unistd.h`
//! and `arch/arm64/tools/syscall_32.tbl` of Linux; they never change.

use sumun_abi::policy::{SYSCALL_MAX, action::*};

/// Native calls of this architecture.
const NATIVE: &[(libc::c_long, u8)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, OPEN),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_creat, CREAT),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, RENAME),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, RMDIR),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, UNLINK),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_dup2, DUP),
    (libc::SYS_dup, DUP),
    (libc::SYS_dup3, DUP),
    (libc::SYS_pidfd_getfd, GETFD),
    (libc::SYS_open_tree, GETFD),
    (libc::SYS_fcntl, FCNTL),
    (libc::SYS_openat, OPENAT),
    (libc::SYS_openat2, OPENAT2),
    (libc::SYS_open_by_handle_at, OPEN_BY_HANDLE),
    (libc::SYS_close, CLOSE),
    (libc::SYS_renameat, RENAMEAT),
    (libc::SYS_renameat2, RENAMEAT),
    (libc::SYS_unlinkat, UNLINKAT),
    (libc::SYS_connect, CONNECT),
    (libc::SYS_accept, ACCEPT),
    (libc::SYS_accept4, ACCEPT),
    (libc::SYS_mount, MOUNT),
    (libc::SYS_umount2, MOUNT),
    (libc::SYS_pivot_root, MOUNT),
    (libc::SYS_move_mount, MOUNT),
    (libc::SYS_chroot, MOUNT),
];

/// 32-bit calls of i386.
#[cfg(target_arch = "x86_64")]
const COMPAT: &[(libc::c_long, u8)] = &[
    (5, OPEN),
    (6, CLOSE),
    (8, CREAT),
    (10, UNLINK),
    (21, MOUNT),
    (22, MOUNT),
    (38, RENAME),
    (40, RMDIR),
    (41, DUP),
    (52, MOUNT),
    (55, FCNTL),
    (61, MOUNT),
    (63, DUP),
    (102, SOCKETCALL),
    (217, MOUNT),
    (221, FCNTL),
    (295, OPENAT),
    (301, UNLINKAT),
    (302, RENAMEAT),
    (330, DUP),
    (342, OPEN_BY_HANDLE),
    (353, RENAMEAT),
    (362, CONNECT),
    (364, ACCEPT),
    (428, GETFD),
    (429, MOUNT),
    (437, OPENAT2),
    (438, GETFD),
];

/// 32-bit calls of Arm (EABI).
#[cfg(target_arch = "aarch64")]
const COMPAT: &[(libc::c_long, u8)] = &[
    (5, OPEN),
    (6, CLOSE),
    (8, CREAT),
    (10, UNLINK),
    (21, MOUNT),
    (38, RENAME),
    (40, RMDIR),
    (41, DUP),
    (52, MOUNT),
    (55, FCNTL),
    (61, MOUNT),
    (63, DUP),
    (218, MOUNT),
    (221, FCNTL),
    (283, CONNECT),
    (285, ACCEPT),
    (322, OPENAT),
    (328, UNLINKAT),
    (329, RENAMEAT),
    (358, DUP),
    (366, ACCEPT),
    (371, OPEN_BY_HANDLE),
    (382, RENAMEAT),
    (428, GETFD),
    (429, MOUNT),
    (437, OPENAT2),
    (438, GETFD),
];

/// The table for the programs: native action in the low byte, 32-bit in the high.
pub(super) fn table() -> [u16; SYSCALL_MAX] {
    let mut table = [0; SYSCALL_MAX];
    for (calls, shift) in [(NATIVE, 0), (COMPAT, 8)] {
        for (number, action) in calls {
            if let Some(entry) = usize::try_from(*number).ok().and_then(|n| table.get_mut(n)) {
                *entry |= u16::from(*action) << shift;
            }
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_taken_once() {
        for calls in [NATIVE, COMPAT] {
            let mut numbers: Vec<_> = calls.iter().map(|(number, _)| *number).collect();
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
}
