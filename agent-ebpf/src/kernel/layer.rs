//! Layers of an overlay: whether an executable came with the image of its container.

use sumun_abi::{
    event::process::{EXE_IN_IMAGE, EXE_LAYERED},
    slot,
    verdict::id,
};

use super::{Object, get, number_at, read, task::Task, value};
use crate::run::Run;

/// `OVERLAYFS_SUPER_MAGIC` (include/uapi/linux/magic.h)
const OVERLAY: u64 = 0x794c_7630;

/// Mounts that are followed from a process's root to that of its mount namespace, one on the other.
const DEPTH: u32 = 16;
/// Mounts that lie one over the other as the root of a mount namespace, of which the process's root is none.
const STACKED: u32 = 4;

/// `EXE_LAYERED` and `EXE_IN_IMAGE` for an executable, as seen from the root of a task's mount namespace: its own root directory
/// is whatever it has called chroot for.
///
/// A file of the upper layer has its dentry there right behind the inode of the overlay (`struct ovl_inode`,
/// fs/overlayfs/ovl_entry.h, the same from 4.19 to 7.2). It may differ from the image's in its attributes alone.
#[inline(always)]
pub(crate) fn of(run: Run, task: Task, inode: Object) -> u32 {
    forgotten(run, look(task, inode))
}

/// Flags that the verifier knows nothing of any more: with each known value apart it walks through all that follows once for each, and
/// 5.10's does not come to an end.
#[inline(always)]
pub(crate) fn forgotten(run: Run, flags: u32) -> u32 {
    run.number(u64::from(flags)) as u32
}

#[inline(always)]
pub(crate) fn look(task: Task, inode: Object) -> u32 {
    let root = sumun_root(
        task.fs().number(slot::FS_ROOT_MNT),
        task.0.follow(slot::TASK_NSPROXY).number(slot::NSPROXY_MNT),
    );
    let size = value(slot::INODE_SIZE);
    if root == 0
        || size == slot::NONE
        || inode.address == 0
        || get::<u64>(root, slot::SB_MAGIC) != OVERLAY
    {
        return 0;
    }
    if inode.number(slot::INODE_SB) != root {
        return EXE_LAYERED;
    }
    match number_at(inode.address.wrapping_add(u64::from(size))) {
        0 => EXE_LAYERED | EXE_IN_IMAGE,
        _ => EXE_LAYERED,
    }
}

/// The superblock of what a mount namespace shows as its root, with a mount that a process of it has as its root.
///
/// The namespace's own first mount is one that nobody sees: the root lies on it (`pivot_root`, fs/namespace.c), maybe over
/// another one that does. Downwards that would be a search among all that is mounted there, so it is looked for upwards: it is the last mount
/// on the way that lies not on another's root but somewhere in it, or the first one of all.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_root(mnt: u64, namespace: u64) -> u64 {
    let first: u64 = get(namespace, slot::MNTNS_ROOT);
    let inside = value(slot::MOUNT_MNT);
    if first == 0 || mnt == 0 || inside == slot::NONE {
        return get(mnt, slot::VFSMOUNT_SB);
    }
    let inside = u64::from(inside);
    let mut mount = mnt.wrapping_sub(inside);
    let mut found = mount;
    let mut step = 0;
    while step < DEPTH {
        step += 1;
        if mount == first {
            return get(found.wrapping_add(inside), slot::VFSMOUNT_SB);
        }
        let below: u64 = get(mount, slot::MOUNT_PARENT);
        if below == mount || below == 0 {
            break;
        }
        let root: u64 = get(below.wrapping_add(inside), slot::VFSMOUNT_ROOT);
        if get::<u64>(mount, slot::MOUNT_MOUNTPOINT) != root {
            found = below;
        }
        mount = below;
    }
    // Its root is of no mount of the namespace, as one that was never attached, or lies deeper than that.
    let mut top = first;
    let mut step = 0;
    while step < STACKED {
        step += 1;
        let child =
            get::<u64>(top, slot::MOUNT_CHILDREN).wrapping_sub(u64::from(value(slot::MOUNT_CHILD)));
        let root: u64 = get(top.wrapping_add(inside), slot::VFSMOUNT_ROOT);
        // Without children it is no mount: what is read there is no such place.
        if get::<u64>(child, slot::MOUNT_PARENT) != top
            || get::<u64>(child, slot::MOUNT_MOUNTPOINT) != root
        {
            break;
        }
        top = child;
    }
    get(top.wrapping_add(inside), slot::VFSMOUNT_SB)
}

/// The inode whose content this one is: of a file of an overlay the one of the upper layer, 0 if it is of a lower one, where
/// nobody writes.
#[inline(always)]
pub(crate) fn real(inode: u64) -> u64 {
    let size = value(slot::INODE_SIZE);
    if size == slot::NONE || get::<u64>(get(inode, slot::INODE_SB), slot::SB_MAGIC) != OVERLAY {
        return inode;
    }
    let upper: u64 = read(inode.wrapping_add(u64::from(size)));
    match (upper, get(upper, slot::DENTRY_INODE)) {
        (0, _) => 0,
        // Not to be read: some file that nobody wrote.
        (_, 0) => inode,
        (_, real) => real,
    }
}

/// The same as a number that rules ask for (`verdict::id::IN_IMAGE`).
#[inline(always)]
pub(crate) fn number(flags: u32) -> u32 {
    if flags & EXE_LAYERED == 0 {
        id::NO_IMAGE
    } else {
        u32::from(flags & EXE_IN_IMAGE != 0)
    }
}

/// Last change of an inode's content or attributes: ns since the Unix epoch, 0 if it cannot be read.
#[inline(always)]
pub(crate) fn changed_ns(inode: Object) -> u64 {
    /// `I_CTIME_QUERIED` (include/linux/fs.h)
    const QUERIED: u32 = 1 << 31;
    let seconds: u64 = inode.get(slot::INODE_CTIME);
    let ns: u32 = inode.get(slot::INODE_CTIME_NS);
    seconds
        .wrapping_mul(1_000_000_000)
        .wrapping_add(u64::from(ns & !QUERIED))
}
