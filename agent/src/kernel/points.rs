//! Decision points: programs at the functions that the kernel asks before it opens a file, or changes a name or an attribute.
//!
//! There it holds its own objects, so that records of these calls say what was opened or changed, and not what the caller named or
//! what another thread has put behind the descriptor since. They need
//! trampolines (fentry), and no BPF LSM: that is asked behind the very same functions. Each is tried at the start by a call
//! of the agent's own; attached they are only while a rule asks for their kind, then pinned as doors are. They only keep
//! what they see for the hook at the call's exit, so two agents' side by side, while one takes over, do no harm.

use std::mem::offset_of;

use aya::{
    Btf,
    maps::{Array, HashMap, MapData},
    programs::{FEntry, FExit, Program, ProgramError, links::FdLink},
};
use serde::Serialize;
use sumun_abi::{
    event::file::{KNOWN_BYTES, Known, OPENED_BYTES, POINTS_FULL, point},
    policy::{Filter, MODE_NONE, WRITERS, filtered, whole},
    slot as s,
};
use sumun_proto::v1::Kind;

use super::{Error, Kernel, chain, doors, tries, verifier};

/// A decision point, or another function of the kernel's that a program is at.
#[derive(Debug)]
pub(super) struct Point {
    /// Name of the program; also of its pinned link.
    pub(super) program: &'static str,
    /// The functions that it can be attached to, with the same first arguments; the first that the kernel lets it.
    functions: &'static [&'static str],
    /// The kind of records that it knows more of.
    pub(super) kind: Kind,
}

pub(super) const fn at(
    program: &'static str,
    functions: &'static [&'static str],
    kind: Kind,
) -> Point {
    Point {
        program,
        functions,
        kind,
    }
}

const POINTS: [Point; 9] = [
    at("point_open", &["security_file_open"], Kind::Open),
    at("point_rename", &["security_path_rename"], Kind::Rename),
    at("point_unlink", &["security_path_unlink"], Kind::Unlink),
    at("point_rmdir", &["security_path_rmdir"], Kind::Unlink),
    at("point_link", &["security_path_link"], Kind::Link),
    at("point_symlink", &["security_path_symlink"], Kind::Symlink),
    at("point_chmod", &["security_path_chmod"], Kind::Chmod),
    // Old kernels (5.10) have no trampolines for what takes structures, as that one takes ids.
    at(
        "point_chown",
        &["security_path_chown", "chown_common"],
        Kind::Chown,
    ),
    at("point_truncate", &["vfs_truncate"], Kind::Truncate),
];

/// What they cannot do without.
const REQUIRED: &[usize] = &[
    s::TASK_PID,
    s::TASK_FLAGS,
    s::PATH_MNT,
    s::PATH_DENTRY,
    s::FILE_MNT,
    s::FILE_DENTRY,
    s::FILE_INODE,
    s::FILE_MODE,
    s::FILE_FLAGS,
    s::DENTRY_PARENT,
    s::DENTRY_NAME,
    s::DENTRY_NAME_LEN,
    s::DENTRY_INODE,
    s::INODE_INO,
    s::INODE_SB,
    s::INODE_MODE,
    s::SB_DEV,
    s::VFSMOUNT_ROOT,
    s::MOUNT_MNT,
    s::MOUNT_PARENT,
    s::MOUNT_MOUNTPOINT,
    s::MOUNT_NS,
];

/// The agent's own try of all points, in `CANARY` beside the thread: behind the bits of what can be denied.
const TRY: u64 = 1 << 63;

/// What is kept of a call for longer than this belongs to one whose return was not seen, ns. A call that takes longer is recorded
/// with the caller's word.
const STALE_NS: u64 = 60_000_000_000;

/// A program at the entry of a function, or at its exit.
enum Traced<'a> {
    Entry(&'a mut FEntry),
    Exit(&'a mut FExit),
}

impl Traced<'_> {
    fn is_loaded(&self) -> bool {
        match self {
            Traced::Entry(program) => program.fd().is_ok(),
            Traced::Exit(program) => program.fd().is_ok(),
        }
    }

    fn load(&mut self, function: &str, btf: &Btf) -> Result<(), ProgramError> {
        match self {
            Traced::Entry(program) => verifier::load(|| program.load(function, btf)),
            Traced::Exit(program) => verifier::load(|| program.load(function, btf)),
        }
    }

    fn unload(&mut self) -> Result<(), ProgramError> {
        match self {
            Traced::Entry(program) => program.unload(),
            Traced::Exit(program) => program.unload(),
        }
    }

    fn attach(&mut self) -> Result<FdLink, ProgramError> {
        match self {
            Traced::Entry(program) => {
                let link = program.attach()?;
                program.take_link(link).map(Into::into)
            }
            Traced::Exit(program) => {
                let link = program.attach()?;
                program.take_link(link).map(Into::into)
            }
        }
    }
}

/// Whether the calls of a kind are seen at decision points, or what io_uring does of it at its functions.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct PointStatus {
    /// The kind.
    #[serde(serialize_with = "doors::name_of")]
    pub kind: Kind,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What is kept of calls under way, by thread.
type Kept<const BYTES: usize> = HashMap<MapData, u32, [u8; BYTES]>;

/// The decision points of a kernel.
pub(super) struct State {
    known: Kept<KNOWN_BYTES>,
    opened: Kept<OPENED_BYTES>,
    counters: Array<MapData, u64>,
    /// By the order of the kinds in `POINTS`; empty until they were tried.
    pub(super) tried: Vec<PointStatus>,
    /// False if the host is not to use them.
    pub(super) used: bool,
}

impl State {
    pub(super) fn new(
        (known, opened): (Kept<KNOWN_BYTES>, Kept<OPENED_BYTES>),
        counters: Array<MapData, u64>,
        used: bool,
    ) -> Self {
        Self {
            known,
            opened,
            counters,
            tried: Vec::new(),
            used,
        }
    }

    /// Bits of the kinds that a filter asks for and decision points see.
    pub(super) fn wanted(&self, filter: &Filter) -> u64 {
        self.tried
            .iter()
            .filter(|status| status.reason.is_none() && is_asked(filter, status.kind))
            .fold(0, |bits, status| bits | bit(status.kind))
    }
}

/// Place in `POINTS`. Records and events have the same numbers.
fn place(kind: Kind) -> u32 {
    point(kind as u16)
}

fn bit(kind: Kind) -> u64 {
    1 << place(kind)
}

pub(super) fn is_asked(filter: &Filter, kind: Kind) -> bool {
    let whole = |place: u32| filter.whole >> place & 1 != 0;
    match kind {
        Kind::Open => filter.mode[filtered::OPEN] != MODE_NONE,
        Kind::Rename => filter.mode[filtered::RENAME] != MODE_NONE,
        Kind::Unlink => filter.mode[filtered::UNLINK] != MODE_NONE,
        Kind::Link => whole(whole::LINK),
        Kind::Symlink => whole(whole::SYMLINK),
        Kind::Chmod => whole(whole::CHMOD),
        Kind::Chown => whole(whole::CHOWN),
        Kind::Truncate => whole(whole::TRUNCATE),
        Kind::Accept => filter.mode[filtered::ACCEPT] != MODE_NONE,
        Kind::ConnectUnix => filter.mode[filtered::CONNECT_UNIX] != MODE_NONE,
        Kind::Bind => whole(whole::BIND),
        Kind::Listen => whole(whole::LISTEN),
        _ => false,
    }
}

impl Kernel {
    /// Finds out by trying which calls decision points see. What an agent before this one has attached stays so.
    pub(super) fn try_points(&mut self, btf: &Btf) {
        let missing = self.slots.missing(REQUIRED);
        let mut loaded: Vec<_> = POINTS
            .iter()
            .map(|point| match missing.as_slice() {
                [] => self.load_point(point, btf),
                missing => Err(format!("this kernel has no {}", missing.join(", "))),
            })
            .collect();
        let seen = match loaded.iter().any(Result::is_ok) {
            true => self.prove_points(&mut loaded),
            false => Ok(()),
        };
        let mut tried: Vec<PointStatus> = Vec::new();
        for (point, loaded) in POINTS.iter().zip(loaded) {
            let reason = loaded.and(seen.clone()).err();
            match tried.last_mut() {
                Some(status) if status.kind == point.kind => {
                    status.reason = status.reason.take().or(reason);
                }
                _ => tried.push(PointStatus {
                    kind: point.kind,
                    reason,
                }),
            }
        }
        self.points.tried = tried;
        self.try_rings(btf);
    }

    /// What decision points see, and why not; empty until it was tried.
    #[must_use]
    pub fn points(&self) -> &[PointStatus] {
        &self.points.tried
    }

    /// Whether they are used from the next filter on.
    pub fn use_points(&mut self, used: bool) {
        self.points.used = used;
    }

    /// How many calls decision points had no room to keep: those are recorded with the caller's word.
    ///
    /// # Errors
    /// The counter cannot be read.
    pub fn points_full(&self) -> Result<u64, Error> {
        let count = self.points.counters.get(&POINTS_FULL, 0);
        count.map_err(Error::map("read", "POINTS"))
    }

    /// Attaches those that can be for as long as their calls are made.
    fn prove_points(&mut self, loaded: &mut [Result<(), String>]) -> Result<(), String> {
        let mut links = Vec::new();
        for (point, loaded) in POINTS.iter().zip(loaded.iter_mut()) {
            // Beside that of an agent before this one, if there is one: its counters are its own.
            if loaded.is_ok() {
                match self.attach_point(point) {
                    Ok(link) => links.push(link),
                    Err(reason) => *loaded = Err(reason),
                }
            }
        }
        let read = |counters: &Array<MapData, u64>, point: &Point| {
            counters
                .get(&place(point.kind), 0)
                .map_err(|error| chain(&error))
        };
        let before: Result<Vec<_>, _> = POINTS
            .iter()
            .map(|point| read(&self.points.counters, point))
            .collect();
        let tid = u64::from(nix::unistd::gettid().as_raw().cast_unsigned());
        self.deny.set_canary(tid | TRY)?;
        let made = tries::change_names();
        self.deny.set_canary(0)?;
        made?;
        for ((point, loaded), before) in POINTS.iter().zip(loaded).zip(before?) {
            // Of unlinks two points count in one place.
            let least = POINTS.iter().filter(|one| one.kind == point.kind).count() as u64;
            let seen = read(&self.points.counters, point)? - before;
            if loaded.is_ok() && seen < least {
                *loaded =
                    Err("attached without effect: the agent's own call was not seen".to_owned());
            }
        }
        Ok(())
    }

    pub(super) fn load_point(&mut self, point: &Point, btf: &Btf) -> Result<(), String> {
        let mut program = self.point(point)?;
        if program.is_loaded() {
            return Ok(());
        }
        let mut refused = Ok(());
        for function in point.functions {
            match program.load(function, btf) {
                Ok(()) => return Ok(()),
                Err(error) => refused = Err(doors::refused(point.program, &error)),
            }
        }
        refused
    }

    pub(super) fn attach_point(&mut self, point: &Point) -> Result<FdLink, String> {
        let failed =
            |error: &ProgramError| format!("cannot attach {}: {}", point.program, chain(error));
        let attached = match self.point(point)?.attach() {
            // Old kernels (5.10) attach what was loaded only once.
            Err(ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                let btf = Btf::from_sys_fs().map_err(|error| chain(&error))?;
                let unloaded = self.point(point)?.unload();
                unloaded.map_err(|error| failed(&error))?;
                self.load_point(point, &btf)?;
                self.point(point)?.attach()
            }
            attached => attached,
        };
        attached.map_err(|error| failed(&error))
    }

    fn point(&mut self, point: &Point) -> Result<Traced<'_>, String> {
        match self.ebpf.program_mut(point.program) {
            Some(Program::FEntry(program)) => Ok(Traced::Entry(program)),
            Some(Program::FExit(program)) => Ok(Traced::Exit(program)),
            _ => Err(format!("the object has no program {}", point.program)),
        }
    }

    /// What has to be attached for a filter's `known`: also to see who writes.
    fn attached_for(&self, known: u64) -> u64 {
        let sees = |status: &PointStatus| status.kind == Kind::Open && status.reason.is_none();
        let writers = known & WRITERS != 0 && self.points.used;
        if writers && self.points.tried.iter().any(sees) {
            return known | bit(Kind::Open);
        }
        known
    }

    /// Attaches and pins the points of these kinds, in the place of a previous agent's. One that cannot be attached is told as
    /// one that does not work, and its calls are recorded with the caller's word.
    pub(super) fn open_points(&mut self, known: u64) {
        let wanted = self.attached_for(known);
        self.open_rings(known);
        for point in POINTS.iter().filter(|point| wanted & bit(point.kind) != 0) {
            if self.points_open.contains(&point.program) {
                continue;
            }
            let pinned = self.pin_point(point);
            if let Err(reason) = pinned {
                let of_kind = |status: &&mut PointStatus| status.kind == point.kind;
                if let Some(status) = self.points.tried.iter_mut().find(of_kind) {
                    status.reason = Some(reason);
                }
            }
        }
    }

    /// Attaches and pins one, in the place of a previous agent's.
    pub(super) fn pin_point(&mut self, point: &Point) -> Result<(), String> {
        let pinned = self.attach_point(point).and_then(|link| {
            let failed = |error: &dyn std::error::Error| {
                format!("cannot pin {}: {}", point.program, chain(error))
            };
            self.pins
                .remove_link(point.program)
                .map_err(|error| failed(&error))?;
            link.pin(self.pins.link(point.program))
                .map(drop)
                .map_err(|error| failed(&error))
        });
        if pinned.is_ok() {
            self.points_open.push(point.program);
        }
        pinned
    }

    /// Detaches all but those.
    pub(super) fn close_points(&mut self, known: u64) -> Result<(), Error> {
        let wanted = self.attached_for(known);
        for point in POINTS.iter().filter(|point| wanted & bit(point.kind) == 0) {
            self.pins.remove_link(point.program)?;
            self.points_open.retain(|open| *open != point.program);
        }
        self.close_rings(known)
    }

    /// Forgets what was kept of calls whose return was not seen.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn forget_stale_calls(&mut self, now_ns: u64) -> Result<(), Error> {
        forget_stale(&mut self.points.known, now_ns)
            .and_then(|()| forget_stale(&mut self.points.opened, now_ns))
            .map_err(Error::map("list", "KNOWN or OPENED"))
    }
}

fn forget_stale<const BYTES: usize>(
    kept: &mut Kept<BYTES>,
    now_ns: u64,
) -> Result<(), aya::maps::MapError> {
    let threads: Vec<_> = kept.keys().collect::<Result<_, _>>()?;
    for thread in threads {
        let stale = kept.get(&thread, 0).is_ok_and(|call| {
            let since = call[offset_of!(Known, boot_ns)..].first_chunk();
            since.is_some_and(|since| u64::from_ne_bytes(*since) + STALE_NS < now_ns)
        });
        if stale {
            // Gone already is as good.
            let _ = kept.remove(&thread);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By that list `policy explain` says what decision points make of a rule.
    #[test]
    fn policies_are_explained_by_the_kinds_that_are_seen() {
        let mut kinds = POINTS.map(|point| point.kind).to_vec();
        kinds.dedup();
        assert_eq!(kinds, sumun_policy::rungs::POINTS);
    }
}
