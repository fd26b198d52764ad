//! Files that are mapped to be executed, when mmap returns: libraries, and whatever a program loads like one.
//!
//! What the kernel maps when a program is executed, the executable and its loader, comes by no call: the exec tells it. Not seen is
//! a file that is mapped without the right and given it later (mprotect), or by a process that asked for every readable mapping to be
//! executable (`READ_IMPLIES_EXEC`).

use core::ptr::addr_of_mut;

use sumun_abi::{
    event::{
        file::{CALL_COMPAT, FILE_DELETED, FILE_IN_IMAGE, FILE_NOT_IN_IMAGE, Open},
        kind,
        process::{EXE_IN_IMAGE, EXE_LAYERED},
    },
    policy::{MODE_FILTERED, MODE_NONE, action, filtered},
    record::{FLAW_LOST, FLAW_RACY, RING_BULK},
    slot,
    verdict::on,
};

use crate::{
    hooks::syscall::Call,
    kernel::{
        Block, Object,
        file::{File, read_user},
        get, layer,
        path::{self, Tail, Text, Walked},
        task::Task,
    },
    policy::{self, verdict},
    run::{self, Run, scratch},
};

/// `PROT_EXEC`
const PROT_EXEC: u64 = 4;
/// `MAP_ANONYMOUS`
const MAP_ANONYMOUS: u64 = 0x20;

/// True if a call maps a file to be executed, or may do so: what mmap's old form asks for is in memory.
#[inline(always)]
pub(in crate::hooks) fn is_one(action: u8, protection: u64, flags: u64) -> bool {
    match action {
        action::MMAP => protection & PROT_EXEC != 0 && flags & MAP_ANONYMOUS == 0,
        action::MMAP_OLD => true,
        _ => false,
    }
}

/// mmap returned, and `is_one` is true of it. Its arguments were handed over.
#[unsafe(no_mangle)]
#[inline(never)]
pub(in crate::hooks) extern "C" fn sumun_mapped(call: u64) -> u64 {
    let call = Call(call);
    let run = Run {
        level: call.level(),
    };
    let index = call.filter();
    let Some(filter) = run::filter(index) else {
        return 0;
    };
    let mode = filter.mode[filtered::MAP_EXEC];
    if mode == MODE_NONE {
        return 0;
    }
    let Some(given) = run::given(run.level) else {
        return 0;
    };
    let [a, _, _, _, mut fd] = given.arguments;
    if call.action() == action::MMAP_OLD {
        let Some([_, _, protection, flags, from, _]) = read_user::<[u32; 6]>(a) else {
            return 0;
        };
        if !is_one(action::MMAP, protection.into(), flags.into()) {
            return 0;
        }
        fd = from.into();
    }
    let Some(scratch) = scratch(run.level) else {
        return 0;
    };
    let fd = fd as i32;
    let task = Task::current();
    let file = File::of(task, fd);
    // SAFETY: the scratch is this run's.
    let block = Block::read(file.0, unsafe { addr_of_mut!((*scratch).file) });
    let mut flags = if call.is_compat() { CALL_COMPAT } else { 0 };
    if !file.is_lost() {
        flags |= sumun_loaded(file.inode(), file.dentry()) as u32;
        if mode == MODE_FILTERED
            && policy::file::mapped_clauses(run.level, index, filter, block, flags) == 0
        {
            return 0;
        }
    }
    let Some(record) = run.record::<Open>() else {
        return 0;
    };
    let mut tail = Tail::after::<Open>(run.level);
    let mut walked = Walked::LOST;
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).flags).write(flags);
        addr_of_mut!((*record).fd).write(fd);
        file.identity(
            addr_of_mut!((*record).dev),
            addr_of_mut!((*record).mode),
            addr_of_mut!((*record).ino),
        );
        // What was mapped is known by what is behind the descriptor now.
        let racy = if task.shares_files() { FLAW_RACY } else { 0 };
        let place = addr_of_mut!((*record).path);
        if file.is_lost() {
            Text::NONE.store(place, FLAW_LOST | racy);
        } else {
            walked = path::walk(run.level, file.dentry(), file.mnt());
            tail.walked(walked).store(place, racy);
        }
        verdict::none(addr_of_mut!((*record).verdict));
    }
    let asked = on::filtered(filtered::MAP_EXEC);
    if verdict::asked(index, asked) {
        verdict::sumun_judge_file(run.level, index, asked, walked.0, file.0);
    }
    run.send(RING_BULK, kind::MAP_EXEC, filter.generation, tail.end());
    0
}

/// `FILE_*` of a file of the current process.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_loaded(inode: u64, dentry: u64) -> u64 {
    let layers = layer::look(Task::current(), Object::plain(inode));
    let mut flags = match layers & (EXE_LAYERED | EXE_IN_IMAGE) {
        0 => 0,
        EXE_LAYERED => FILE_NOT_IN_IMAGE,
        _ => FILE_IN_IMAGE,
    };
    let nameless = get::<u64>(dentry, slot::DENTRY_HASHED) == 0
        && get::<u64>(dentry, slot::DENTRY_PARENT) != dentry;
    if nameless || get::<u32>(inode, slot::INODE_NLINK) == 0 {
        flags |= FILE_DELETED;
    }
    flags.into()
}
