//! Programs at io_uring's own functions: they tell what it does, of which no system call returns.
//!
//! They cost nothing that is not a request, but for what is accepted. Files are seen at their decision points on the way, so those kinds
//! come with them. What the kernel decides about them by itself is in `agent-ebpf`, `hooks/file/ring.rs` and `hooks/network/ring.rs`.

use aya::Btf;
use aya_obj::btf::BtfKind;
use sumun_abi::{event::file::ring, policy::Filter, slot as s};
use sumun_proto::v1::Kind;

use super::{
    Error, Kernel,
    points::{Point, PointStatus, at, is_asked},
};

/// What requests can do.
const KINDS: [Kind; 9] = [
    Kind::Open,
    Kind::Rename,
    Kind::Unlink,
    Kind::Link,
    Kind::Symlink,
    Kind::Accept,
    Kind::Bind,
    Kind::Listen,
    Kind::ConnectUnix,
];

/// From 6.0 on each has a function of its own; `bind` and `listen` came with 6.11.
const OWN: [Point; 11] = [
    at("ring_open", &["io_openat2"], Kind::Open),
    at("ring_rename", &["io_renameat"], Kind::Rename),
    at("ring_unlink", &["io_unlinkat"], Kind::Unlink),
    at("ring_link", &["io_linkat"], Kind::Link),
    at("ring_symlink", &["io_symlinkat"], Kind::Symlink),
    at("ring_accept", &["do_accept"], Kind::Accept),
    at("ring_accepted", &["io_accept"], Kind::Accept),
    at("ring_accepts", &["io_accept"], Kind::Accept),
    at("ring_bind", &["io_bind"], Kind::Bind),
    at("ring_listen", &["io_listen"], Kind::Listen),
    at("ring_connect_unix", &["io_connect"], Kind::ConnectUnix),
];

/// Before, and in 5.10 from 5.10.162 on, most are parts of one. What workers do to files is caught as they complete a request.
const PARTS: [Point; 9] = [
    at("ring_open", &["io_openat2"], Kind::Open),
    at("ring_done", COMPLETES, Kind::Open),
    at("ring_done", COMPLETES, Kind::Rename),
    at("ring_done", COMPLETES, Kind::Unlink),
    at("ring_done", COMPLETES, Kind::Link),
    at("ring_done", COMPLETES, Kind::Symlink),
    at("ring_accept", &["do_accept"], Kind::Accept),
    at("ring_accepted", ALL, Kind::Accept),
    at("ring_accepts", ALL, Kind::Accept),
];
const COMPLETES: &[&str] = &["io_req_complete_post"];
const ALL: &[&str] = &["io_issue_sqe"];

/// What they cannot do without, beside what decision points and sockets need.
const REQUIRED: &[usize] = &[
    s::TASK_FLAGS,
    s::TASK_IO_URING,
    s::IO_RESULT,
    s::IO_OPCODE,
    s::IO_FILE,
    s::IO_OPEN_FLAGS,
    s::IO_OPEN_PLACE,
];

fn bit(kind: Kind) -> u64 {
    1 << ring(kind as u16)
}

/// The programs that this kernel needs, and what they tell.
#[derive(Default)]
pub(super) struct State {
    points: &'static [Point],
    tried: Vec<PointStatus>,
}

impl State {
    /// Bits of a filter's `known` for the kinds that it asks for and these programs tell.
    pub(super) fn wanted(&self, filter: &Filter) -> u64 {
        self.tried
            .iter()
            .filter(|status| status.reason.is_none() && is_asked(filter, status.kind))
            .fold(0, |bits, status| bits | bit(status.kind))
    }
}

impl Kernel {
    /// Whether it is told what io_uring does, by kind; empty until it was tried.
    #[must_use]
    pub fn rings(&self) -> &[PointStatus] {
        &self.rings.tried
    }

    /// Finds out of which kinds it can be told what io_uring does: the functions have to be there, and take a program.
    pub(super) fn try_rings(&mut self, btf: &Btf) {
        let has = |function: &str| btf.id_by_type_name_kind(function, BtfKind::Func).is_ok();
        let own = has("io_unlinkat");
        self.rings.points = if own { &OWN } else { &PARTS };
        let requests = KINDS.iter().filter(|kind| match kind {
            Kind::Bind | Kind::Listen => has("io_bind"),
            _ => true,
        });
        let mut tries = Vec::new();
        let tried: Vec<_> = requests
            .map(|kind| PointStatus {
                kind: *kind,
                reason: self.try_ring(*kind, btf, &mut tries).err(),
            })
            .collect();
        self.rings.tried = tried;
    }

    fn try_ring(
        &mut self,
        kind: Kind,
        btf: &Btf,
        tries: &mut Vec<(&'static str, Result<(), String>)>,
    ) -> Result<(), String> {
        let missing = self.slots.missing(REQUIRED);
        if !missing.is_empty() {
            return Err(format!("this kernel has no {}", missing.join(", ")));
        }
        let of_kind = self.points.tried.iter().find(|status| status.kind == kind);
        if let Some(reason) = of_kind.and_then(|status| status.reason.as_ref()) {
            return Err(format!("only decision points see it ({reason})"));
        }
        let points = self.rings.points.iter();
        let mut points = points.filter(|point| point.kind == kind).peekable();
        if points.peek().is_none() {
            return Err("before 6.0 its functions do not keep the result".into());
        }
        for point in points {
            let known = tries.iter().find(|(program, _)| *program == point.program);
            let tried = match known {
                Some((_, known)) => known.clone(),
                None => self.try_program(point, btf),
            };
            tries.push((point.program, tried.clone()));
            tried?;
        }
        Ok(())
    }

    fn try_program(&mut self, point: &Point, btf: &Btf) -> Result<(), String> {
        self.load_point(point, btf)?;
        // Of one that is attached for the rules in force it is known.
        if !self.points_open.contains(&point.program) {
            self.attach_point(point)?;
        }
        Ok(())
    }

    /// Attaches and pins those of the kinds that a filter asks for, before their decision points keep anything for them.
    pub(super) fn open_rings(&mut self, known: u64) {
        let points = self.rings.points.iter();
        for point in points.filter(|point| known & bit(point.kind) != 0) {
            if self.points_open.contains(&point.program) {
                continue;
            }
            if let Err(reason) = self.pin_point(point) {
                let of_kind = |status: &&mut PointStatus| status.kind == point.kind;
                if let Some(status) = self.rings.tried.iter_mut().find(of_kind) {
                    status.reason = Some(reason);
                }
            }
        }
    }

    /// Detaches all that no kind of these needs.
    pub(super) fn close_rings(&mut self, known: u64) -> Result<(), Error> {
        let needed = |program: &str| {
            let mut all = self.rings.points.iter();
            all.any(|point| point.program == program && known & bit(point.kind) != 0)
        };
        // An agent before this one may have found others.
        let unneeded: Vec<_> = OWN
            .iter()
            .chain(&PARTS[1..2])
            .map(|point| point.program)
            .filter(|program| !needed(program))
            .collect();
        for program in unneeded {
            self.pins.remove_link(program)?;
            self.points_open.retain(|open| *open != program);
        }
        Ok(())
    }
}
