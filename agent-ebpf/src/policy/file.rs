//! Is an open, or a close after write, of interest?

use core::ptr::{self, addr_of_mut};

use sumun_abi::{
    event::file::{OPEN_TRUNCATE, OPEN_TRUNCATE_UNKNOWN},
    policy::{ACCESS_BITS, DirKey, DirVerdict, Filter, OPEN_BITS, filtered, tag},
    record::{FLAW_DELETED, LEVELS, PATH_MAX},
    slot,
};

use super::{ALL, copy, exe, find, first};
use crate::{
    kernel::{self, Block, get, path},
    maps::{DIRS, FLUSH, Scratch},
    run::{self, scratch},
};

/// Which of the clauses `left` this file, opened so, could satisfy.
#[inline(always)]
pub(crate) fn clauses(
    level: u32,
    index: u32,
    filter: &Filter,
    mut left: u64,
    file: Block,
    flags: u32,
) -> u64 {
    let flags = if flags & OPEN_TRUNCATE_UNKNOWN != 0 {
        flags | OPEN_TRUNCATE
    } else {
        flags
    };
    left &= access_clauses(filter, flags);
    object_clauses(level, index, filter, left, file)
}

/// Which of the clauses of `filtered::MAP_EXEC` this file, mapped so, could satisfy.
#[inline(always)]
pub(crate) fn mapped_clauses(
    level: u32,
    index: u32,
    filter: &Filter,
    file: Block,
    flags: u32,
) -> u64 {
    let mut access = filter.any_access;
    let mut bit = OPEN_BITS;
    while bit < ACCESS_BITS.len() {
        if flags & ACCESS_BITS[bit] != 0 {
            access |= filter.access[bit];
        }
        bit += 1;
    }
    let left = filter.clauses[filtered::MAP_EXEC] & access;
    object_clauses(level, index, filter, left, file)
}

/// Which of the clauses `left` the file itself and its process could satisfy.
#[inline(always)]
fn object_clauses(level: u32, index: u32, filter: &Filter, mut left: u64, file: Block) -> u64 {
    if left & !filter.any_path != 0 {
        left &= filter.any_path
            | sumun_path_clauses(
                level,
                index,
                file.get(slot::FILE_DENTRY),
                file.get(slot::FILE_MNT),
            );
    }
    if left & !filter.any_exe_file != 0 {
        left &= filter.any_exe_file | exe::sumun_exe_clauses(level, index, exe::FILE);
    }
    left
}

/// Which of the clauses of `filtered::CONNECT_UNIX` a socket's file could satisfy. One without a file (`dentry` 0) has a name
/// that no clause knows: it could satisfy each.
#[inline(always)]
pub(crate) fn socket_clauses(
    level: u32,
    index: u32,
    filter: &Filter,
    dentry: u64,
    mnt: u64,
) -> u64 {
    let mut left = filter.clauses[filtered::CONNECT_UNIX];
    if dentry != 0 && left & !filter.any_path != 0 {
        left &= filter.any_path | sumun_path_clauses(level, index, dentry, mnt);
    }
    if left & !filter.any_exe_file != 0 {
        left &= filter.any_exe_file | exe::sumun_exe_clauses(level, index, exe::FILE);
    }
    left
}

/// Clauses whose condition on the access is satisfied by a file opened so. (Those on what a mapped file is are of no open.)
#[inline(always)]
pub(crate) fn access_clauses(filter: &Filter, flags: u32) -> u64 {
    let mut access = filter.any_access;
    let mut bit = 0;
    while bit < OPEN_BITS {
        if flags & ACCESS_BITS[bit] != 0 {
            access |= filter.access[bit];
        }
        bit += 1;
    }
    access
}

/// Changes whenever a path may lead elsewhere than before.
#[inline(always)]
pub(crate) fn epoch() -> u64 {
    let flushed = FLUSH.get_ptr(0).map_or(0, |counter| {
        // SAFETY: a live map value.
        unsafe { ptr::read_volatile(counter) }
    });
    flushed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ path::changes()
}

/// Clauses whose condition on the path is satisfied. The directory's part
/// of the answer is cached; only a name that matters is looked at each time.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_path_clauses(level: u32, index: u32, dentry: u64, mnt: u64) -> u64 {
    if level >= LEVELS {
        return ALL;
    }
    let Some(scratch) = scratch(level) else {
        return ALL;
    };
    let Some(filter) = run::filter(index & 1) else {
        return ALL;
    };
    // SAFETY: the scratch is this run's.
    let block = Block::read(dentry, unsafe { addr_of_mut!((*scratch).dentry) });
    let parent: u64 = block.get(slot::DENTRY_PARENT);
    if parent == dentry {
        return whole(level, index, scratch, dentry, mnt);
    }
    let inode: u64 = get(parent, slot::DENTRY_INODE);
    let key = DirKey {
        inode,
        mnt,
        ino: get(inode, slot::INODE_INO),
        inode_generation: get(inode, slot::INODE_GENERATION),
        generation: filter.generation,
        // Read before the walk: a change during it makes the entry one that nobody finds.
        flush: epoch(),
    };
    let (file, dir) = match DIRS.get_ptr(&key) {
        // SAFETY: a live map value; an entry that is recycled meanwhile holds
        // another directory's verdict, which `DIRS`' pre-allocation makes possible and the
        // kernel's RCU grace period for LRU elements makes unlikely enough to need no lock.
        Some(verdict) => unsafe { ((*verdict).file, (*verdict).dir) },
        None => {
            // The path of a mount's root does not lead through its parent. (No walk in a
            // mount arrives from above its root, so there was no verdict for it to find.)
            if dentry == get(mnt, slot::VFSMOUNT_ROOT) {
                return whole(level, index, scratch, dentry, mnt);
            }
            let walked = path::walk(level, parent, mnt);
            if walked.flaws() & !FLAW_DELETED != 0 {
                return ALL;
            }
            let (file, dir) = directory(scratch, index, walked.start());
            let verdict = DirVerdict { file, dir, pad: 0 };
            let _ = DIRS.insert(&key, &verdict, 0);
            (file, dir)
        }
    };
    if dir == 0 {
        return file;
    }
    let source = block.get(slot::DENTRY_NAME);
    let len = u64::from(block.get::<u32>(slot::DENTRY_NAME_LEN));
    file | name(scratch, index, dir, source, len)
}

/// Judges a path that has no usable parent: walked each time.
#[inline(always)]
fn whole(level: u32, index: u32, scratch: *mut Scratch, dentry: u64, mnt: u64) -> u64 {
    let walked = path::walk(level, dentry, mnt);
    if walked.flaws() & !FLAW_DELETED != 0 {
        return ALL;
    }
    // As a directory it is covered by what covers everything below it …
    let (below, _) = directory(scratch, index, walked.start());
    // … and as a name by what names it. Roots of mounts are few and seldom opened: whatever
    // asks for an exact path gets them.
    let exact = find(scratch, first(index, tag::ROOT), 0).map_or(0, |(found, _)| found.file);
    below | exact
}

/// Looks up the walked directory: clauses that everything in it satisfies, and its number
/// if some of its names matter.
#[inline(always)]
fn directory(scratch: *mut Scratch, index: u32, start: u64) -> (u64, u32) {
    let len = (PATH_MAX as u64).wrapping_sub(start);
    // SAFETY: the scratch is this run's; the address is only handed to a helper that never faults.
    let source = unsafe { addr_of_mut!((*scratch).walk) } as u64 + start;
    let copied = copy(scratch, 0, source, len);
    let mut text_len = copied;
    // The root is "/" already; what does not fit is cut and has no final slash.
    if len > 1 && len < 255 {
        let place = kernel::opaque(copied) & 0xff;
        if place < 255 {
            // SAFETY: 1 + place <= 255.
            unsafe {
                super::text(scratch)
                    .add(place as usize)
                    .write_volatile(b'/')
            };
        }
        text_len += 1;
    }
    match find(scratch, first(index, tag::DIR), text_len) {
        Some((found, exact)) => (found.file, if exact { found.dir } else { 0 }),
        None => (0, 0),
    }
}

/// Looks up a name in a directory that has a number.
#[inline(always)]
fn name(scratch: *mut Scratch, index: u32, dir: u32, source: u64, len: u64) -> u64 {
    // SAFETY: four bytes of the key's text.
    unsafe { super::text(scratch).cast::<u32>().write_unaligned(dir) };
    let copied = copy(scratch, 4, source, len);
    match find(scratch, first(index, tag::NAME), 4 + copied) {
        Some((found, exact)) => found.file | if exact { found.file_exact } else { 0 },
        None => 0,
    }
}
