//! Layers of an overlay: whether an executable came with the image of its container.

use sumun_abi::{
    event::process::{EXE_IN_IMAGE, EXE_LAYERED},
    slot,
    verdict::id,
};

use super::{Object, get, number_at, task::Task, value};
use crate::run::Run;

/// `OVERLAYFS_SUPER_MAGIC` (include/uapi/linux/magic.h)
const OVERLAY: u64 = 0x794c_7630;

/// `EXE_LAYERED` and `EXE_IN_IMAGE` for an executable, as seen from the root directory of a task.
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
fn look(task: Task, inode: Object) -> u32 {
    let root = task
        .fs()
        .follow(slot::FS_ROOT_MNT)
        .number(slot::VFSMOUNT_SB);
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
