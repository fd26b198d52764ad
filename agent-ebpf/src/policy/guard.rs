//! Whom no rule stops: programs without which nobody gets in to mend what a rule has broken, and those that run the host and its
//! containers.
//!
//! A name alone guards nobody: the file has to be root's and nobody else's to write, the process root's, and in the first pid
//! namespace. Root of a container that shares that namespace can still look so. What is denied to nobody who looks so is denied to
//! few too few; but of whom to kill user space is asked, which knows a container by its root and its cgroup.

use sumun_abi::{event::process::outcome, slot, verdict::on};

use crate::{
    kernel::{Object, get, nonzero, read, task::Task},
    maps::GUARD,
};

/// Inode number of the first pid namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: u32 = 0xefff_fffc;
/// `S_IWGRP | S_IWOTH`
const WRITABLE_BY_OTHERS: u16 = 0o022;

/// The agent, of whatever version.
const AGENT: u64 = 1;
/// The daemon whose listener lets people in.
const SSHD: u64 = 2;
/// What it hands a login to.
const SESSION: u64 = 4;
/// What runs the host or its containers, as root. The agent has the same list (`agent/src/enforce/guard.rs`).
const SERVICE: u64 = 8;

/// A name as it lies in memory, filled with zeros, and what it is of.
const fn name(text: &[u8], of: u64) -> (u32, [u64; 3], u64) {
    let mut words = [0; 3];
    let mut place = 0;
    while place < text.len() {
        words[place / 8] |= (text[place] as u64) << (place % 8 * 8);
        place += 1;
    }
    (text.len() as u32, words, of)
}

const NAMES: [(u32, [u64; 3], u64); 22] = [
    name(b"sumun-agent", AGENT),
    name(b"sshd", SSHD),
    name(b"sshd-session", SESSION),
    name(b"sshd-auth", SESSION),
    name(b"systemd-logind", SERVICE),
    name(b"systemd-journald", SERVICE),
    name(b"systemd-udevd", SERVICE),
    name(b"udevadm", SERVICE),
    name(b"kubelet", SERVICE),
    name(b"k3s", SERVICE),
    name(b"kubelite", SERVICE),
    name(b"containerd", SERVICE),
    name(b"containerd-shim", SERVICE),
    name(b"containerd-shim-runc-v1", SERVICE),
    name(b"containerd-shim-runc-v2", SERVICE),
    name(b"dockerd", SERVICE),
    name(b"crio", SERVICE),
    name(b"conmon", SERVICE),
    name(b"conmonrs", SERVICE),
    name(b"podman", SERVICE),
    name(b"runc", SERVICE),
    name(b"crun", SERVICE),
];

/// What a path's last component is the name of; 0: of none of these.
#[inline(always)]
fn named(dentry: u64) -> u64 {
    let len: u32 = get(dentry, slot::DENTRY_NAME_LEN);
    if len > 24 {
        return 0;
    }
    let at: u64 = get(dentry, slot::DENTRY_NAME);
    let mut found: [u64; 3] = [read(at), read(at + 8), read(at + 16)];
    // What lies behind the name is not part of it.
    let mut word = 0;
    while word < 3 {
        let left = len.saturating_sub(word as u32 * 8);
        found[word] &= if left >= 8 {
            u64::MAX
        } else {
            (1_u64 << (left * 8)) - 1
        };
        word += 1;
    }
    let mut is = 0;
    let mut place = 0;
    while place < NAMES.len() {
        let (known, words, of) = &NAMES[place];
        is |= *of
            & !nonzero(
                u64::from(*known ^ len)
                    | words[0] ^ found[0]
                    | words[1] ^ found[1]
                    | words[2] ^ found[2],
            );
        place += 1;
    }
    is
}

/// The current process is one that no policy may keep from anything.
#[inline(always)]
pub(super) fn is_of_call(task: Task) -> bool {
    let pid = task.pid();
    let mm = task.mm();
    if pid == 1 || mm.address == 0 {
        return true;
    }
    let exe = mm.follow(slot::MM_EXE_FILE);
    let inode = exe.follow(slot::FILE_INODE);
    if named(exe.number(slot::FILE_DENTRY)) != 0
        && is_of_the_host(task, inode)
        && (is_of_root(task) || is_forked_by_root(task, inode))
    {
        return true;
    }
    is_the_agent(task, inode)
}

/// The outcome if the current process is one that no policy may kill, or that only user space can tell from such a one; else
/// `NONE`. `forced`: what runs the host and its containers may be killed.
#[inline(always)]
pub(super) fn of_kill(task: Task, kind: u32, forced: bool) -> u32 {
    let pid = task.pid();
    let mm = task.mm();
    if pid == 1 || mm.address == 0 {
        return outcome::GUARDED;
    }
    let exe = mm.follow(slot::MM_EXE_FILE);
    let inode = exe.follow(slot::FILE_INODE);
    let is = named(exe.number(slot::FILE_DENTRY));
    if is != 0 && is_of_the_host(task, inode) {
        let of_root = is_of_root(task);
        if is == AGENT && of_root {
            return outcome::GUARDED;
        }
        if is == SSHD {
            // When it starts it does not listen yet, later only one of its processes does. Others can run it with a library of
            // their own: user space asks who made the process.
            return if kind == on::EXEC && of_root {
                outcome::GUARDED
            } else {
                outcome::PERHAPS_GUARDED
            };
        }
        if is == SERVICE && of_root && !forced {
            return outcome::PERHAPS_GUARDED;
        }
    }
    if is_the_agent(task, inode) {
        outcome::GUARDED
    } else {
        outcome::NONE
    }
}

/// The agent that runs, or root's use of its program.
#[inline(always)]
fn is_the_agent(task: Task, inode: Object) -> bool {
    let Some(guard) = GUARD.get(0) else {
        return false;
    };
    if u64::from(task.pid()) == guard.pid && task.start() == guard.start_ns {
        return true;
    }
    let ino: u64 = inode.get(slot::INODE_INO);
    let dev: u32 = get(inode.number(slot::INODE_SB), slot::SB_DEV);
    guard.exe_ino != 0 && ino == guard.exe_ino && dev == guard.exe_dev && is_of_root(task)
}

/// Root of the host runs it: whoever else does can have it load a library of their own.
#[inline(always)]
fn is_of_root(task: Task) -> bool {
    task.cred().get::<u32>(slot::CRED_UID) == 0
}

/// Root's process of the same program made it, as sshd makes the one that becomes a login's shell.
#[inline(always)]
fn is_forked_by_root(task: Task, inode: Object) -> bool {
    let parent = task.parent();
    let exe = parent.mm().follow(slot::MM_EXE_FILE);
    is_of_root(parent) && exe.number(slot::FILE_INODE) == inode.address
}

/// Neither a user nor a container can have put it there: its file is root's, nobody else may write it, and it is
/// in the first pid namespace.
#[inline(always)]
fn is_of_the_host(task: Task, inode: Object) -> bool {
    task.pid_namespace() == FIRST_PID_NAMESPACE
        && inode.get::<u32>(slot::INODE_UID) == 0
        && inode.get::<u16>(slot::INODE_MODE) & WRITABLE_BY_OTHERS == 0
}
