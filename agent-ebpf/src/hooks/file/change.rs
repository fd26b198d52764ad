//! Permissions, owners, lengths, links and extended attributes, when the call returns.

use core::ptr::{self, addr_of_mut};

use sumun_abi::{
    event::{
        file::{CHANGE_OBJECT, CHANGE_TO_OBJECT, Change, Known},
        kind,
    },
    policy::{action, whole},
    record::{FLAW_LOST, FLAW_RACY},
};

use super::point;
use crate::{
    hooks::{kernel::named, syscall::Call},
    kernel::{
        file::{File, read_user},
        path::{Tail, Text},
    },
    run,
};

/// `AT_FDCWD`
const CWD: i32 = -100;

/// What a call says, in its own places.
struct Asked {
    /// 1 if the call names the file itself, by a descriptor.
    by_object: u64,
    object: u64,
    dirfd: i32,
    name: u64,
    to_dirfd: i32,
    to_name: u64,
    value: u64,
    user: u64,
    group: u64,
}

/// A call returned that has changed something about a file, or was to.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_change(call: u64) -> u64 {
    let call = Call(call);
    let (kind, place) = match call.action() {
        action::CHMOD | action::FCHMOD | action::FCHMODAT => (kind::CHMOD, whole::CHMOD),
        action::CHOWN | action::FCHOWN | action::FCHOWNAT => (kind::CHOWN, whole::CHOWN),
        action::TRUNCATE | action::FTRUNCATE => (kind::TRUNCATE, whole::TRUNCATE),
        action::LINK | action::LINKAT => (kind::LINK, whole::LINK),
        action::SYMLINK | action::SYMLINKAT => (kind::SYMLINK, whole::SYMLINK),
        _ => (kind::SETXATTR, whole::SETXATTR),
    };
    let Some(handed) = call.handed(place) else {
        return 0;
    };
    let [a, b, c, d, e] = handed.given.arguments;
    let mut asked = Asked {
        by_object: 0,
        object: a,
        dirfd: CWD,
        name: a,
        to_dirfd: CWD,
        to_name: 0,
        value: 0,
        user: u64::from(u32::MAX),
        group: u64::from(u32::MAX),
    };
    match handed.action {
        action::CHMOD => asked.value = b,
        action::FCHMOD => (asked.by_object, asked.value) = (1, b),
        action::FCHMODAT => (asked.dirfd, asked.name, asked.value) = (a as i32, b, c),
        action::CHOWN => (asked.user, asked.group) = (b, c),
        action::FCHOWN => (asked.by_object, asked.user, asked.group) = (1, b, c),
        action::FCHOWNAT => {
            (asked.dirfd, asked.name) = (a as i32, b);
            (asked.user, asked.group, asked.value) = (c, d, e);
        }
        // The longer form of 32-bit calls has the upper half in a register of its own.
        action::TRUNCATE => asked.value = b | half(handed.flags, c),
        action::FTRUNCATE => {
            asked.by_object = 1;
            asked.value = b | half(handed.flags, c);
        }
        action::LINK => asked.to_name = b,
        action::LINKAT => {
            (asked.dirfd, asked.name) = (a as i32, b);
            (asked.to_dirfd, asked.to_name, asked.value) = (c as i32, d, e);
        }
        action::SYMLINK => asked.to_name = b,
        action::SYMLINKAT => (asked.to_dirfd, asked.to_name) = (b as i32, c),
        action::FSETXATTR => (asked.by_object, asked.to_name, asked.value) = (1, b, e),
        action::SETXATTRAT => {
            (asked.dirfd, asked.name, asked.to_name) = (a as i32, b, d);
            // `struct xattr_args`: where the value is, its size, then the flags.
            asked.value = u64::from(read_user::<u32>(e + 12).unwrap_or(0));
        }
        _ => (asked.to_name, asked.value) = (b, e),
    }
    let run = handed.run;
    // The verifier need not know any more which call it was: it would walk through all that follows once for each.
    let kind = run.number(u64::from(kind)) as u16;
    let asked = Asked {
        by_object: run.number(asked.by_object),
        object: run.number(asked.object),
        dirfd: run.number(asked.dirfd as u64) as i32,
        name: run.number(asked.name),
        to_dirfd: run.number(asked.to_dirfd as u64) as i32,
        to_name: run.number(asked.to_name),
        value: run.number(asked.value),
        user: run.number(asked.user),
        group: run.number(asked.group),
    };
    let mut flags = run.number(u64::from(handed.flags)) as u32;
    let task = handed.task;
    let known = match handed.action {
        // The kernel does not come by the decision point of the calls on a path.
        action::FTRUNCATE => None,
        _ => run::filter(call.filter()).and_then(|filter| point::of(filter, kind)),
    };
    // One word: of an `Option` older verifiers see the half that is not there being read.
    let known = known.unwrap_or(ptr::null());
    let Some(record) = run.record::<Change>() else {
        return 0;
    };
    let mut tail = Tail::after::<Change>(run.level);
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).number).write(handed.given.number as u32);
        addr_of_mut!((*record).value).write(asked.value);
        addr_of_mut!((*record).uid).write(asked.user as u32);
        addr_of_mut!((*record).gid).write(asked.group as u32);
        addr_of_mut!((*record).result).write(handed.result());
        addr_of_mut!((*record).pad).write(0);
        let (name, above) = (addr_of_mut!((*record).name), addr_of_mut!((*record).base));
        if !known.is_null() {
            seen(record, known, &mut tail, flags);
            point::forget(task);
            return handed.send(kind, tail.end());
        }
        let file = if asked.by_object != 0 {
            File::of(task, asked.object as i32)
        } else {
            File::LOST
        };
        file.identity(
            addr_of_mut!((*record).dev),
            addr_of_mut!((*record).mode),
            addr_of_mut!((*record).ino),
        );
        if asked.by_object != 0 {
            flags |= CHANGE_OBJECT;
            let racy = if task.shares_files() { FLAW_RACY } else { 0 };
            Text::NONE.store(above, 0);
            if file.is_lost() {
                Text::NONE.store(name, FLAW_LOST | racy);
            } else {
                tail.path(file.dentry(), file.mnt()).store(name, racy);
            }
        } else if kind == kind::SYMLINK {
            // What the link says is a text like any other: it need not lead anywhere.
            tail.user_string(asked.name).store(name, 0);
            Text::NONE.store(above, 0);
        } else {
            named(&handed, &mut tail, asked.name, asked.dirfd, (name, above));
        }
        let (name, above) = (
            addr_of_mut!((*record).to_name),
            addr_of_mut!((*record).to_base),
        );
        if kind == kind::SETXATTR {
            tail.user_string(asked.to_name).store(name, 0);
            Text::NONE.store(above, 0);
        } else {
            named(
                &handed,
                &mut tail,
                asked.to_name,
                asked.to_dirfd,
                (name, above),
            );
        }
        addr_of_mut!((*record).flags).write(flags);
    }
    handed.send(kind, tail.end())
}

/// What a decision point saw of a change: all of its record but who did it and what the call says itself.
///
/// # Safety
/// `record` is the run's own, `known` a value of `KNOWN` of the current thread.
#[inline(always)]
pub(super) unsafe fn seen(record: *mut Change, known: *const Known, tail: &mut Tail, flags: u32) {
    // SAFETY: the caller's.
    unsafe {
        addr_of_mut!((*record).flags).write(flags | CHANGE_OBJECT | CHANGE_TO_OBJECT);
        addr_of_mut!((*record).dev).write((*known).dev);
        addr_of_mut!((*record).mode).write((*known).mode);
        addr_of_mut!((*record).ino).write((*known).ino);
        Text::NONE.store(addr_of_mut!((*record).base), 0);
        Text::NONE.store(addr_of_mut!((*record).to_base), 0);
        tail.known(false).store(addr_of_mut!((*record).name), 0);
        tail.known(true).store(addr_of_mut!((*record).to_name), 0);
    }
}

/// The upper half of a length.
#[inline(always)]
fn half(flags: u32, upper: u64) -> u64 {
    if flags == 0 { 0 } else { upper << 32 }
}
