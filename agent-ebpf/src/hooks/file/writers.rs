//! Who opens files for writing, remembered until one of them is executed. Only while a rule asks (`policy::WRITERS`).
//!
//! Decision points see the kernel's own object, also of opens that io_uring makes; the call's exit sees the one behind the new
//! descriptor, and where the kernel left a decision point's program out it is what remembers. Both write the same.
//!
//! Not seen: who writes through a descriptor or a mapping that another has opened, or through the device below the file system;
//! on kernels without decision points, what io_uring opens, and what is gone from its descriptor before the call returns.

use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use sumun_abi::{
    event::process::{Exec, Writer, watched, writer},
    policy::{WRITERS as ASKED, action},
    slot,
};

use crate::{
    kernel::{
        Object,
        file::{self, File},
        get, layer,
        task::Task,
    },
    maps::{FileKey, WATCHED, WRITERS},
    run::{self, Run, add},
};

/// `BTRFS_SUPER_MAGIC` (include/uapi/linux/magic.h): its subvolumes share a device and have the same numbers.
const BTRFS: u64 = 0x9123_683e;
/// `SB_I_NOEXEC` (include/linux/fs.h): of procfs, sysfs and their like.
const NOEXEC: u64 = 2;

/// True if some rule asks.
#[inline(always)]
pub(in crate::hooks) fn are_asked_for() -> bool {
    run::active()
        .and_then(run::filter)
        .is_some_and(|filter| filter.known & ASKED != 0)
}

/// True if a call with these arguments may open for writing: of openat2 they are not at hand.
#[inline(always)]
pub(in crate::hooks) fn may_open(action: u8, b: u64, c: u64) -> bool {
    match action {
        action::OPEN => file::may_write(b),
        action::OPENAT | action::OPEN_BY_HANDLE => file::may_write(c),
        _ => true,
    }
}

/// A file is about to be opened, at its decision point: the kernel's pointer.
#[inline(always)]
pub(super) fn opening(file: u64) {
    let file = Object::argument(file);
    if file::is_for_writing(file.get(slot::FILE_MODE)) {
        sumun_wrote(file.number(slot::FILE_INODE));
    }
}

/// An open or memfd_create has returned this descriptor.
#[unsafe(no_mangle)]
#[inline(never)]
pub(in crate::hooks) extern "C" fn sumun_opened(fd: u64) -> u64 {
    let file = File::of(Task::current(), fd as i32);
    if !file.is_lost() && file::is_for_writing(file.object().get(slot::FILE_MODE)) {
        sumun_wrote(file.inode());
    }
    0
}

/// The current process has this file open for writing.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_wrote(inode: u64) -> u64 {
    if !file::is_regular(get(inode, slot::INODE_MODE))
        || get::<u64>(get(inode, slot::INODE_SB), slot::SB_IFLAGS) & NOEXEC != 0
    {
        return 0;
    }
    // Of an overlay's file that nobody has changed yet, the one below is about to be opened, by the same process.
    let real = layer::real(inode);
    if real == 0 {
        return 0;
    }
    let key = key(real);
    let task = Task::current();
    let who = Writer {
        start_ns: task.start(),
        image: task.image(),
        // SAFETY: no arguments.
        boot_ns: unsafe { bpf_ktime_get_boot_ns() },
        pid: task.pid(),
        state: writer::SEEN,
    };
    let found = WRITERS.get_ptr_mut(&key);
    if let Some(found) = found {
        // SAFETY: a live map value; should it be recycled meanwhile, another file's writer has another time. A new value would cost several times as much,
        // and most files are opened again by who opened them before.
        unsafe {
            if (*found).start_ns == who.start_ns
                && (*found).image == who.image
                && (*found).pid == who.pid
            {
                addr_of_mut!((*found).boot_ns).write(who.boot_ns);
                return 0;
            }
        }
    }
    if WRITERS.insert(&key, &who, 0).is_ok() {
        if found.is_none() {
            count(watched::FILES);
        }
        return 0;
    }
    // Rather nobody than who it was before.
    let _ = WRITERS.remove(&key);
    count(watched::FAILED);
    0
}

#[inline(always)]
fn count(place: u32) {
    if let Some(counter) = WATCHED.get_ptr_mut(place) {
        add(counter, 1);
    }
}

#[inline(always)]
fn key(inode: u64) -> FileKey {
    let sb: u64 = get(inode, slot::INODE_SB);
    let generation: u32 = get(inode, slot::INODE_GENERATION);
    // A file that leaves memory and comes back has another address, and its writer is then unknown.
    let address = if generation == 0 || get::<u64>(sb, slot::SB_MAGIC) == BTRFS {
        inode
    } else {
        0
    };
    FileKey {
        ino: get(inode, slot::INODE_INO),
        address,
        dev: get(sb, slot::SB_DEV),
        generation,
    }
}

/// Writes into the `Exec` of the record who wrote its executable.
#[inline(always)]
pub(in crate::hooks) fn tell(run: Run, inode: Object) {
    if let Some(record) = run.record::<Exec>() {
        // SAFETY: the record is this run's.
        unsafe {
            addr_of_mut!((*record).writer).write(Writer::default());
            addr_of_mut!((*record).watched_since_ns).write(0);
        }
    }
    if are_asked_for() {
        sumun_writer(run.level, run.number(inode.address));
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_writer(level: u32, inode: u64) -> u64 {
    let Some(record) = (Run { level }).record::<Exec>() else {
        return 0;
    };
    let since = WATCHED.get(watched::SINCE).map_or(0, |since| *since);
    let real = layer::real(inode);
    // SAFETY: the record is this run's; a live map value is copied.
    unsafe {
        addr_of_mut!((*record).watched_since_ns).write(since);
        let out = addr_of_mut!((*record).writer);
        if inode == 0 {
            return 0;
        }
        if real == 0 {
            addr_of_mut!((*out).state).write(writer::LOWER);
            return 0;
        }
        addr_of_mut!((*out).state).write(writer::NOT_SEEN);
        // What was remembered before may have been written again while nobody asked.
        if let Some(found) = WRITERS.get_ptr(&key(real))
            && (*found).boot_ns >= since
        {
            out.write(addr_of!(*found).read());
        }
    }
    0
}
