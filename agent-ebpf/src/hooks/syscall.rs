//! The two raw system call tracepoints: they run at every call of every process,
//! so the first thing is to find out that a call is of no interest.

use core::ptr::addr_of_mut;

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use sumun_abi::{
    event::file::CALL_COMPAT,
    policy::{ERRORS, WRITERS, action},
    record::RING_BULK,
    verdict::denied,
};

use super::{
    deny::was_denied,
    file::{
        change::sumun_change,
        mapped::{self, sumun_mapped},
        point::{self, sumun_failed_change, sumun_failed_seen_open},
        sumun_failed_open, sumun_names, sumun_open,
        writers::{self, sumun_opened},
    },
    kernel::sumun_kernel,
    network::{
        self, sumun_accept, sumun_connect, sumun_own_end, sumun_socketcall,
        unix::{sumun_socket, sumun_unix},
    },
    privilege::{self, sumun_privilege},
};
use crate::{
    kernel::{self, regs::Regs, task::Task},
    maps::Given,
    policy::{self, early, hunt},
    run::{self, Run, scratch},
};

// include/uapi/linux/fcntl.h
const F_DUPFD: u64 = 0;
const F_DUPFD_CLOEXEC: u64 = 1030;

/// What the global functions need to know of a call, in one word.
#[derive(Clone, Copy)]
pub(crate) struct Call(pub(crate) u64);

impl Call {
    #[inline(always)]
    fn new(run: Run, filter: u32, action: u8, compat: bool) -> Call {
        Call(
            u64::from(run.level)
                | u64::from(filter) << 8
                | u64::from(action) << 16
                | u64::from(compat) << 24,
        )
    }

    #[inline(always)]
    pub(crate) fn level(self) -> u32 {
        self.0 as u32 & 0xff
    }

    #[inline(always)]
    pub(crate) fn filter(self) -> u32 {
        (self.0 >> 8) as u32 & 1
    }

    #[inline(always)]
    pub(crate) fn action(self) -> u8 {
        (self.0 >> 16) as u8
    }

    #[inline(always)]
    pub(crate) fn is_compat(self) -> bool {
        self.0 >> 24 & 1 != 0
    }

    /// The same of a call that failed with this.
    #[inline(always)]
    fn failing(self, result: i64) -> Call {
        Call(self.0 | u64::from(result as i32 as u32) << 32)
    }

    /// What it failed with; 0 if nobody has said that it did.
    #[inline(always)]
    pub(crate) fn result(self) -> i32 {
        (self.0 >> 32) as i32
    }
}

/// A call that was handed over, in the global function that records it.
pub(super) struct Handed {
    pub(super) run: Run,
    pub(super) action: u8,
    /// `CALL_COMPAT` or nothing.
    pub(super) flags: u32,
    pub(super) generation: u32,
    pub(super) given: &'static Given,
    pub(super) task: Task,
}

impl Handed {
    /// 0, or the negative errno that the call returned.
    #[inline(always)]
    pub(super) fn result(&self) -> i32 {
        if self.given.result < 0 {
            self.given.result as i32
        } else {
            0
        }
    }

    /// Sends the record.
    #[inline(always)]
    pub(super) fn send(&self, kind: u16, len: u32) -> u64 {
        self.run.send(RING_BULK, kind, self.generation, len);
        0
    }
}

impl Call {
    /// What was handed over; `None` if nobody asks for the kind (of `policy::whole`). Of a call that failed, and is told only where
    /// that is asked for, it was asked for.
    #[inline(always)]
    pub(super) fn handed(self, kind: u32) -> Option<Handed> {
        let run = Run {
            level: self.level(),
        };
        let filter = run::filter(self.filter())?;
        let given = run::given(run.level)?;
        if filter.whole >> (kind & 63) & 1 == 0 && !is_told_if_asked(self.action(), given.result) {
            return None;
        }
        Some(Handed {
            run,
            action: self.action(),
            flags: if self.is_compat() { CALL_COMPAT } else { 0 },
            generation: filter.generation,
            given,
            task: Task::current(),
        })
    }
}

/// What the active filter wants to do about a call: the action, and whether it is a 32-bit call.
/// Nothing of the filter is kept: only a run that has begun holds one fast.
#[inline(always)]
fn wanted(number: u64, entry: bool) -> Option<(u8, bool)> {
    let actions = kernel::actions(number);
    if actions == 0 {
        return None;
    }
    let filter = run::filter(run::active()?)?;
    let mask = if entry {
        filter.entry_actions
    } else {
        filter.actions
    };
    let (native, compat) = (actions as u8, (actions >> 8) as u8);
    if mask & (1 << (native & 63) | 1 << (compat & 63)) == 0 {
        return None;
    }
    let is_compat = Task::is_compat();
    let action = if is_compat { compat } else { native };
    if mask & 1 << (action & 63) == 0 {
        return None;
    }
    Some((action, is_compat))
}

/// Calls of which the failed ones are of interest, too: there the attempt says enough.
const FAILURES: u64 = 1 << action::CONNECT
    | 1 << action::SOCKETCALL
    | 1 << action::PTRACE
    | 1 << action::VM_READ
    | 1 << action::VM_WRITE
    | 1 << action::PIDFD_GETFD
    | 1 << action::INIT_MODULE
    | 1 << action::FINIT_MODULE
    | 1 << action::DELETE_MODULE
    | 1 << action::BPF
    | 1 << action::KEXEC
    | 1 << action::SOCKET
    | action::bit(action::PRCTL);

/// Calls that pass decision points.
const DECIDED: u64 = 1 << action::RENAME
    | 1 << action::RENAMEAT
    | 1 << action::UNLINK
    | 1 << action::UNLINKAT
    | 1 << action::RMDIR
    | 1 << action::CHMOD
    | 1 << action::FCHMOD
    | 1 << action::FCHMODAT
    | 1 << action::CHOWN
    | 1 << action::FCHOWN
    | 1 << action::FCHOWNAT
    | 1 << action::TRUNCATE
    | 1 << action::LINK
    | 1 << action::LINKAT
    | 1 << action::SYMLINK
    | 1 << action::SYMLINKAT;

/// True for a call that failed, and of which that is told only if some rule asks for it.
#[inline(always)]
fn is_told_if_asked(action: u8, result: i64) -> bool {
    result < 0 && FAILURES >> (action & 63) & 1 == 0
}

/// True if some rule asks for calls that fail like this.
#[inline(always)]
fn is_asked_for(action: u8, result: i64) -> bool {
    let Some(filter) = run::active().and_then(run::filter) else {
        return false;
    };
    let error = -result as u64;
    let word = kernel::opaque(error >> 6);
    if word >= ERRORS as u64 {
        return false;
    }
    filter.failures.of(action)[word as usize] >> (error & 63) & 1 != 0
}

/// A call of the kinds that are recorded whole. It is left in the scratch for a global function, which takes no
/// more than numbers, and read from the registers only there: what is kept in this program's frame counts for
/// every chain of calls, of which 5.10 has 512 bytes.
#[inline(always)]
fn handed_over(ctx: &BtfTracePointContext, action: u8, compat: bool) {
    let [a, b, c, d, _] = Regs(ctx.arg(0)).arguments(compat);
    let maps = mapped::is_one(action, c, d);
    let idle = privilege::is_idle(action, a, c, ctx.arg(1))
        || action == action::SOCKET && network::unix::is_ordinary(a, b);
    if idle && !maps {
        return;
    }
    let Some(run) = Run::begin(RING_BULK) else {
        return;
    };
    if let Some(index) = run::active()
        && let Some(scratch) = scratch(run.level)
    {
        let regs = Regs(ctx.arg(0));
        // SAFETY: the scratch is this run's.
        unsafe {
            let given = addr_of_mut!((*scratch).given);
            addr_of_mut!((*given).arguments).write(regs.arguments(compat));
            addr_of_mut!((*given).number).write(regs.number());
            addr_of_mut!((*given).result).write(ctx.arg(1));
        }
        let call = Call::new(run, index, action, compat).0;
        if maps {
            sumun_mapped(call);
        }
        if !idle {
            sumun_whole(call);
        }
    }
    run.end();
}

/// The door that may have denied a call; `COUNT` if there is none of which the failed ones are told.
#[inline(always)]
fn door_of(action: u8) -> usize {
    match action {
        action::OPEN..=action::OPEN_BY_HANDLE => denied::OPEN,
        action::MOUNT | action::MOVE_MOUNT | action::FSMOUNT | action::MOUNT_AT => denied::MOUNT,
        action::PIVOT_ROOT => denied::PIVOT_ROOT,
        action::CHMOD..=action::FCHMODAT => denied::CHMOD,
        action::CHOWN..=action::FCHOWNAT => denied::CHOWN,
        action::TRUNCATE | action::FTRUNCATE => denied::TRUNCATE,
        action::LINK | action::LINKAT => denied::LINK,
        action::RENAME | action::RENAMEAT => denied::RENAME,
        action::UNLINK..=action::RMDIR => denied::UNLINK,
        _ => denied::COUNT,
    }
}

/// Records a call that was handed over.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_whole(call: u64) -> u64 {
    let Some(given) = run::given(Call(call).level()) else {
        return 0;
    };
    let action = Call(call).action();
    // What a rule has denied is on record.
    if is_told_if_asked(action, given.result) && was_denied(given.result as i32, door_of(action)) {
        return sumun_failed_change();
    }
    let fd = given.arguments[0];
    match Call(call).action() {
        action::OPEN..=action::OPEN_BY_HANDLE => sumun_failed_open(call),
        action::RENAME..=action::RMDIR => {
            names(Call(call).failing(given.result).0, given.arguments)
        }
        action::SOCKET => {
            let [family, kind, protocol, ..] = given.arguments;
            sumun_socket(
                call,
                family << 32 | kind & 0xffff_ffff,
                protocol,
                given.result as u64,
                0,
            )
        }
        action::BIND => sumun_own_end(call, fd, 0),
        action::LISTEN => sumun_own_end(call, fd, 1),
        action::CHMOD..=action::FSETXATTR | action::SETXATTRAT => sumun_change(call),
        action::PIDFD_GETFD => {
            let got = given.result;
            if got >= 0 && Task::current().shares_files() {
                let (level, index) = (Call(call).level(), Call(call).filter());
                policy::swap::sumun_dup(level, index, got as u64, got as u64);
            }
            sumun_privilege(call)
        }
        action::SETID..=action::MMAP_OLD | action::SETGROUPS => {
            // A file in memory is open for writing, and no open call comes by.
            if Call(call).action() == action::MEMFD && writers::are_asked_for() {
                sumun_opened(given.result as u64);
            }
            sumun_privilege(call)
        }
        action::SHMAT | action::IPC | action::PRCTL | action::USERFAULTFD => sumun_privilege(call),
        _ => sumun_kernel(call),
    }
}

/// A call on names returned.
#[inline(always)]
fn names(call: u64, [a, b, c, d, e]: [u64; 5]) -> u64 {
    let cwd = -100i32 as u32 as u64;
    match Call(call).action() {
        action::RENAME => sumun_names(call, cwd << 32 | cwd, a, b, 0),
        action::RENAMEAT => sumun_names(call, c << 32 | a & 0xffff_ffff, b, d, e),
        action::UNLINKAT => sumun_names(call, a & 0xffff_ffff, b, 0, c),
        _ => sumun_names(call, cwd << 32 | cwd, a, 0, 0),
    }
}

/// Every system call that returns.
#[btf_tracepoint(function = "sys_exit")]
fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    if hunt::is_on() {
        hunt::sumun_doomed();
    }
    let regs = Regs(ctx.arg(0));
    let Some((action, compat)) = wanted(regs.number(), false) else {
        return 0;
    };
    let result: i64 = ctx.arg(1);
    let failed = is_told_if_asked(action, result);
    if failed && matches!(action, action::OPEN..=action::OPEN_BY_HANDLE) {
        sumun_failed_seen_open();
    }
    if failed && !is_asked_for(action, result) {
        if action & 63 == action::SETID & 63 || action & 63 == action::CAPSET & 63 {
            super::privilege::forget();
        }
        if DECIDED >> (action & 63) & 1 != 0 {
            sumun_failed_change();
        }
        return 0;
    }
    if failed || action >= action::SETID || action == action::MOUNT {
        handed_over(&ctx, action, compat);
        return 0;
    }
    let [a, b, c, d, e] = regs.arguments(compat);
    if matches!(
        action,
        action::CLOSE | action::DUP | action::FCNTL | action::GETFD
    ) {
        let task = Task::current();
        if !task.shares_files() {
            return 0;
        }
        if action == action::CLOSE {
            policy::swap::closed(task, a as i32);
            return 0;
        }
        // dup2 of a descriptor onto itself changes nothing.
        if action == action::DUP && a as u32 == result as u32
            // The kernel takes 32 bits of the command.
            || action == action::FCNTL
                && b as u32 as u64 != F_DUPFD
                && b as u32 as u64 != F_DUPFD_CLOEXEC
        {
            return 0;
        }
    }
    if matches!(action, action::OPEN..=action::OPEN_BY_HANDLE) {
        let asked = point::asked_of_opens();
        if asked != 0 {
            if asked & WRITERS != 0 && writers::may_open(action, b, c) {
                sumun_opened(result as u64);
            }
            let how = match action {
                action::OPEN => b,
                action::OPENAT | action::OPEN_BY_HANDLE => c,
                _ => 0,
            };
            if asked & point::OPENS != 0
                && point::sumun_seen_open(if compat { CALL_COMPAT } else { 0 }, result as u64, how)
                    != 0
            {
                return 0;
            }
        }
    }
    let opened = match action {
        action::OPEN => Some((a, b)),
        action::CREAT => Some((a, 0)),
        action::OPENAT => Some((b, c)),
        action::OPEN_BY_HANDLE => Some((0, c)),
        // Which flags openat2 was given is in the caller's memory: not for here.
        _ => None,
    };
    if let Some((name, how)) = opened
        && early::left_out(action, compat, result as i32, name, how)
    {
        return 0;
    }
    let Some(run) = Run::begin(RING_BULK) else {
        return 0;
    };
    let Some(index) = run::active() else {
        run.end();
        return 0;
    };
    let call = Call::new(run, index, action, compat).0;
    let fd = result as u64;
    match action {
        action::OPEN => sumun_open(call, fd, a, b),
        action::CREAT => sumun_open(call, fd, a, 0),
        action::OPENAT | action::OPENAT2 => sumun_open(call, fd, b, c),
        // The file is named by a handle: there is no name to fall back on.
        action::OPEN_BY_HANDLE => sumun_open(call, fd, 0, c),
        action::RENAME..=action::RMDIR => names(call, [a, b, c, d, e]),
        action::CONNECT => {
            sumun_unix(call, a, b, c, fd);
            sumun_connect(call, a, b, c, fd)
        }
        action::ACCEPT => sumun_accept(call, a, fd),
        action::SOCKETCALL => {
            sumun_unix(call, a, b, 0, fd);
            sumun_socketcall(call, a, b, fd)
        }
        action::DUP | action::FCNTL => policy::swap::sumun_dup(run.level, index, a, fd),
        action::GETFD => policy::swap::sumun_dup(run.level, index, fd, fd),
        _ => 0,
    };
    run.end();
    0
}

/// Every system call that begins; attached only while a filter asks for closes, or for credentials
/// before a call changed them.
#[btf_tracepoint(function = "sys_enter")]
fn sys_enter(ctx: BtfTracePointContext) -> i32 {
    let regs = Regs(ctx.arg(0));
    let Some((action, compat)) = wanted(Regs::plain(ctx.arg(1)), true) else {
        return 0;
    };
    if matches!(action, action::SETID | action::CAPSET | action::SETGROUPS) {
        privilege::sumun_begins();
        return 0;
    }
    let [fd, ..] = regs.arguments(compat);
    let Some(run) = Run::begin(RING_BULK) else {
        return 0;
    };
    if let Some(index) = run::active() {
        sumun_open(Call::new(run, index, action, compat).0, fd, 0, 0);
    }
    run.end();
    0
}
