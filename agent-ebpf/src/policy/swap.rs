//! Has the file behind a descriptor been put there by the open that returned it?
//!
//! When a call returns, only the descriptor table shows what it opened, and a thread that shares the
//! table may have put another file there: one that no rule asks for. So what is about to be left
//! out is checked: every open, and every call that copies a descriptor, leaves its *claim* for (table,
//! descriptor). Two calls of different threads that claim the same file at the same place, with no close
//! between them, mean that one of them did not get it by itself: the open among them that was left out is
//! reported as `lost`. Whichever returns last finds the other's claim.
//!
//! What leaves no claim: descriptors received over a socket, and those that io_uring installs. And one
//! open that was left out is remembered for each place: of several that more
//! threads swap at the same moment, only the last is reported.

use core::ptr::{self, addr_of_mut};

use sumun_abi::{
    event::{file::Open, kind},
    policy::{Claim, SWAP_SLOTS},
    record::{FLAW_LOST, FLAW_RACY, RING_BULK},
    slot,
};

use super::verdict;
use crate::{
    kernel::{
        Object,
        file::File,
        path::{Tail, Text},
        task::Task,
    },
    maps::CLAIMS,
    run::{self, Run, add},
};

/// Tries to enter a claim that another processor is changing, which takes it some ten ns.
const PATIENCE: u32 = 256;

/// Bits of `Claim::word` for the thread id (`PID_MAX_LIMIT`, include/linux/threads.h).
const TID_BITS: u32 = 22;
const TID_MASK: u64 = (1 << TID_BITS) - 1;
/// Where the file's part begins.
const FILE_SHIFT: u32 = TID_BITS;

#[inline(always)]
fn mix(one: u64, other: u64) -> u64 {
    let mixed =
        (one ^ other.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ mixed >> 32
}

/// The claim for a descriptor of a table.
#[inline(always)]
fn claim(files: u64, fd: i32) -> Option<*mut Claim> {
    CLAIMS.get_ptr_mut((mix(files, u64::from(fd as u32)) % u64::from(SWAP_SLOTS)) as u32)
}

/// What a word says of who claims which file.
#[inline(always)]
fn word(file: File, tid: u32) -> u64 {
    word_of(file.0, file.number(), tid)
}

/// The same, of the file at this address with an inode of this number.
#[inline(always)]
fn word_of(file: u64, ino: u64, tid: u32) -> u64 {
    // With the inode number, so that a file whose memory is used again for another is another.
    mix(file, ino) << FILE_SHIFT | u64::from(tid) & TID_MASK
}

/// A descriptor of the current process was closed: the same file at the same place may now
/// be the next one's own. A file's memory is soon used again.
#[inline(always)]
pub(crate) fn closed(task: Task, fd: i32) {
    if let Some(claim) = claim(task.0.number(slot::TASK_FILES), fd) {
        // SAFETY: a live map value; aligned, and a claim that comes in between stays open.
        unsafe {
            let found = addr_of_mut!((*claim).word).read_volatile();
            addr_of_mut!((*claim).closed).write_volatile(found);
            addr_of_mut!((*claim).contested).write_volatile(0);
        }
    }
}

/// Two threads name one file.
#[inline(always)]
fn disputed(found: u64, mine: u64) -> bool {
    found >> FILE_SHIFT == mine >> FILE_SHIFT && (found ^ mine) & TID_MASK != 0
}

/// Claims `file` for an open that is to be left out. True if it must not be: another call put the
/// file there, or may have.
#[inline(always)]
pub(crate) fn opened(
    run: Run,
    filter: u32,
    task: Task,
    fd: i32,
    file: File,
    name: u64,
    flags: u32,
) -> bool {
    if !task.shares_files() {
        let open = Brief {
            files: run.number(task.files().address),
            fd,
            file: file.0,
            ino: file.number(),
            name,
            asked: flags,
        };
        return is_anothers(open, task.tid());
    }
    let what = Opening::new(filter, fd, OPENED);
    sumun_claim(run.level, what.0, file.0, name, u64::from(flags)) != 0
}

/// An open that is to be left out, as the short way knows it.
#[derive(Clone, Copy)]
pub(crate) struct Brief {
    /// Address of the table.
    pub(crate) files: u64,
    /// Descriptor.
    pub(crate) fd: i32,
    /// Address of the file.
    pub(crate) file: u64,
    /// Number of its inode.
    pub(crate) ino: u64,
    /// Its name, in the caller's memory.
    pub(crate) name: u64,
    /// `ACCESS_*` and the like, as asked for.
    pub(crate) asked: u32,
}

/// Of an open in a table that nobody shares any more: true if who shared it a moment ago has left a claim of the file.
#[inline(always)]
pub(crate) fn is_anothers(open: Brief, tid: u32) -> bool {
    let Some(claim) = claim(open.files, open.fd) else {
        return false;
    };
    // SAFETY: a live map value; aligned reads.
    let (found, closed) = unsafe {
        (
            addr_of_mut!((*claim).word).read_volatile(),
            addr_of_mut!((*claim).closed).read_volatile(),
        )
    };
    let mine = word_of(open.file, open.ino, tid);
    found != closed && disputed(found, mine) || contested(claim, mine)
}

/// Somebody who could not enter names the same file.
#[inline(always)]
fn contested(claim: *mut Claim, mine: u64) -> bool {
    // SAFETY: callers pass a live map value; an aligned read.
    let by = unsafe { addr_of_mut!((*claim).contested).read_volatile() };
    by != 0 && disputed(by, mine)
}

/// Leaves a claim that this run has entered and written `mine` into. True if the open has to be sent: somebody came meanwhile, waited in vain, names
/// the same file, and has not reported it. They have written that before they tried for the last time, and each addition is a barrier, so either they
/// entered or it is seen here.
#[inline(always)]
fn leave_contested(claim: *mut Claim, mine: u64) -> bool {
    leave(claim);
    if !contested(claim, mine) {
        return false;
    }
    if !enter(claim) {
        return true;
    }
    // SAFETY: a live map value that this run has entered.
    let unsent = unsafe {
        let unsent = addr_of_mut!((*claim).unsent).read_volatile() == mine;
        if unsent {
            addr_of_mut!((*claim).unsent).write_volatile(0);
        }
        unsent
    };
    leave(claim);
    unsent
}

/// Claims the file for an open in a table that is shared, where nobody disputes it. False, and nothing
/// is changed, where somebody may: that is for `opened` to judge.
#[inline(always)]
pub(crate) fn claimed(task: Task, open: Brief) -> bool {
    let Some(claim) = claim(open.files, open.fd) else {
        return false;
    };
    if !enters(claim) {
        return false;
    }
    let mine = word_of(open.file, open.ino, task.tid());
    // SAFETY: a live map value that this run has entered.
    unsafe {
        let found = addr_of_mut!((*claim).word).read_volatile();
        let closed = addr_of_mut!((*claim).closed).read_volatile() == found;
        // Looked at inside, as `sumun_claim` does.
        let quiet = (closed || !disputed(found, mine))
            && !contested(claim, mine)
            && File::of(task, open.fd).0 == open.file;
        if quiet {
            addr_of_mut!((*claim).word).write_volatile(mine);
            addr_of_mut!((*claim).closed).write_volatile(0);
            addr_of_mut!((*claim).task).write_volatile(task.0.address);
            addr_of_mut!((*claim).name).write_volatile(open.name);
            addr_of_mut!((*claim).flags).write_volatile(u64::from(open.asked));
            addr_of_mut!((*claim).unsent).write_volatile(mine);
        }
        !leave_contested(claim, mine) && quiet
    }
}

/// An open that is sent: with `file`, or with none, because nothing was behind its descriptor. The
/// last one that was left out here may have seen its file: then that open is reported.
#[inline(always)]
pub(crate) fn sent(run: Run, filter: u32, task: Task, fd: i32, file: File) {
    if task.shares_files() {
        let how = if file.is_lost() { LOST } else { SENT };
        sumun_claim(run.level, Opening::new(filter, fd, how).0, file.0, 0, 0);
    }
}

/// Claims the file that a call put behind `fd`, which was behind `from` and may still be.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_dup(level: u32, filter: u32, from: u64, fd: u64) -> u64 {
    let task = Task::current();
    let mut file = File::of(task, from as i32);
    if file.is_lost() {
        file = File::of(task, fd as i32);
    }
    if file.is_lost() {
        return 0;
    }
    sumun_claim(
        level,
        Opening::new(filter, fd as i32, COPIED).0,
        file.0,
        0,
        0,
    )
}

/// A descriptor, how it came about, and the filter, in one word.
#[derive(Clone, Copy)]
struct Opening(u64);

/// An open that is to be left out.
const OPENED: u64 = 0;
/// An open that found nothing.
const LOST: u64 = 1;
/// A copy of a descriptor.
const COPIED: u64 = 2;
/// An open that is sent.
const SENT: u64 = 3;

impl Opening {
    #[inline(always)]
    fn new(filter: u32, fd: i32, how: u64) -> Opening {
        Opening(u64::from(fd as u32) | u64::from(filter & 1) << 32 | how << 40)
    }

    #[inline(always)]
    fn fd(self) -> i32 {
        self.0 as i32
    }

    #[inline(always)]
    fn filter(self) -> u32 {
        (self.0 >> 32) as u32 & 1
    }

    #[inline(always)]
    fn how(self) -> u64 {
        self.0 >> 40
    }
}

/// Leaves the claim; 1 if the file is another's.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_claim(level: u32, what: u64, file: u64, name: u64, flags: u64) -> u64 {
    let what = Opening(what);
    let how = what.how();
    let fd = what.fd();
    let file = File(file);
    let task = Task::current();
    let run = Run { level };
    let Some(claim) = claim(run.number(task.files().address), fd) else {
        return 0;
    };
    let tid = task.tid();
    let unknown = Other {
        task,
        tid,
        name: 0,
        flags: 0,
    };
    let mine = if how == LOST { 0 } else { word(file, tid) };
    if !enter(claim) {
        // Whoever is inside, for as long as an interrupt lasts, may be the one whose file this is.
        if mine != 0 {
            // SAFETY: a live map value; an aligned write.
            unsafe { addr_of_mut!((*claim).contested).write_volatile(mine) };
        }
        if !enters(claim) {
            // What cannot be judged is sent.
            if how == COPIED {
                report(run, what, unknown);
            }
            return 1;
        }
    }
    // The claim of who put it there may have come and gone between the look at the file and the
    // look at the claim; then the file has gone, too.
    let vanished = (how == OPENED || how == SENT) && File::of(task, fd).0 != file.0;
    // SAFETY: a live map value that this run has entered.
    let (disputed, other) = unsafe {
        let found = addr_of_mut!((*claim).word).read_volatile();
        let closed = addr_of_mut!((*claim).closed).read_volatile() == found;
        let unsent = addr_of_mut!((*claim).unsent).read_volatile();
        let disputed = match how {
            OPENED | SENT => {
                (!closed || vanished) && disputed(found, mine) || contested(claim, mine)
            }
            // The original is still there: it cannot be another file at the same address.
            COPIED => disputed(found, mine) || disputed(unsent, mine),
            _ => true,
        };
        let other = Other {
            task: Task(Object::plain(addr_of_mut!((*claim).task).read_volatile())),
            tid: (unsent & TID_MASK) as u32,
            name: addr_of_mut!((*claim).name).read_volatile(),
            flags: addr_of_mut!((*claim).flags).read_volatile() as u32,
        };
        // Who disputes has another file than it thinks. If it is one that is sent, its own last
        // open may be the one that was left out.
        let told = disputed && unsent != 0 && (other.tid != tid || how == SENT);
        if how != LOST {
            addr_of_mut!((*claim).word).write_volatile(mine);
            addr_of_mut!((*claim).closed).write_volatile(0);
        }
        if how == COPIED {
            addr_of_mut!((*claim).contested).write_volatile(0);
        }
        if how == OPENED && !disputed && !vanished {
            addr_of_mut!((*claim).task).write_volatile(run.number(task.0.address));
            addr_of_mut!((*claim).name).write_volatile(name);
            addr_of_mut!((*claim).flags).write_volatile(flags);
            addr_of_mut!((*claim).unsent).write_volatile(mine);
        } else if told {
            addr_of_mut!((*claim).unsent).write_volatile(0);
        }
        let late = match how {
            OPENED => leave_contested(claim, mine),
            _ => {
                leave(claim);
                false
            }
        };
        (disputed || late, if told { Some(other) } else { None })
    };
    if let Some(other) = other {
        report(run, what, other);
    }
    u64::from(disputed || vanished)
}

/// Enters a claim; false if another processor does not leave it.
#[inline(always)]
fn enter(claim: *mut Claim) -> bool {
    let mut tries = 0;
    while tries < PATIENCE {
        if enters(claim) {
            return true;
        }
        tries += 1;
    }
    false
}

/// Enters a claim if nobody is in it.
#[inline(always)]
fn enters(claim: *mut Claim) -> bool {
    // SAFETY: callers pass a live map value; who reads 1 after adding 1 has entered, as in
    // `Run::begin`.
    unsafe {
        let busy = addr_of_mut!((*claim).busy);
        add(busy, 1);
        let entered = ptr::read_volatile(busy) == 1;
        if !entered {
            leave(claim);
        }
        entered
    }
}

/// Leaves a claim that this run has entered.
#[inline(always)]
fn leave(claim: *mut Claim) {
    // SAFETY: callers pass a live map value.
    unsafe { add(addr_of_mut!((*claim).busy), u64::MAX) };
}

/// An open that was left out because of another's file.
#[derive(Clone, Copy)]
struct Other {
    task: Task,
    tid: u32,
    name: u64,
    flags: u32,
}

/// Reports it.
#[inline(always)]
fn report(run: Run, what: Opening, other: Other) {
    let Some(filter) = run::filter(what.filter()) else {
        return;
    };
    let Some(record) = run.record::<Open>() else {
        return;
    };
    let current = Task::current();
    let mut tail = Tail::after::<Open>(run.level);
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        let actor = addr_of_mut!((*record).actor);
        if other.task.tid() == other.tid {
            other.task.actor(actor);
        } else {
            // It ended just now. Who shares its table is most likely of its process.
            current.actor(actor);
            addr_of_mut!((*actor).tid).write(other.tid);
        }
        addr_of_mut!((*record).flags).write(other.flags);
        addr_of_mut!((*record).fd).write(what.fd());
        addr_of_mut!((*record).dev).write(0);
        addr_of_mut!((*record).mode).write(0);
        addr_of_mut!((*record).ino).write(0);
        // The name lies in the memory of the one who opened.
        let same = other.task.mm().address == current.0.number(slot::TASK_MM);
        let path = if same {
            tail.user_string(other.name)
        } else {
            Text::NONE
        };
        path.store(addr_of_mut!((*record).path), FLAW_LOST | FLAW_RACY);
        // It may be another's than the process that runs, and of what it opened nothing is known.
        verdict::none(addr_of_mut!((*record).verdict));
    }
    run.send(RING_BULK, kind::OPEN, filter.generation, tail.end());
}
