//! The doors that make calls fail: programs on the root of all cgroups, and of BPF LSM.
//!
//! At the start each is tried: loaded, attached, and shown a call of the agent's own that it has to deny (`tries`). A kind
//! of which all doors pass can be denied on this host. Attached they stay only while a rule asks for their kind, since a
//! program at each open or datagram costs, too. Then they are pinned, as the others are: what they deny they deny while
//! no agent is there, too, until the lease is over or they are released.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::{
    Btf, Ebpf,
    maps::{Array, MapData, ProgramArray},
    programs::{Program, ProgramFd},
};
use serde::Serialize;
use sumun_abi::{
    policy::{Filter, whole},
    verdict::{Verdicts, denied, on},
};
use sumun_policy::doors::{DENIABLE, Doors};
use sumun_proto::v1::Kind;

use super::{Error, HookStatus, Kernel, cgroup_root, chain, tries, verdicts};

/// How a door is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// To the root of all cgroups: `enum bpf_attach_type`.
    Cgroup(u32),
}

impl At {
    fn rung(self) -> &'static str {
        match self {
            At::Cgroup(_) => "cgroup",
        }
    }
}

/// A door.
#[derive(Clone, Copy, Debug)]
struct Door {
    /// Of its pins.
    name: &'static str,
    /// The program that is attached and jumps to the one behind it.
    door: &'static str,
    /// The program behind it.
    program: &'static str,
    /// The map of one entry that says where to.
    behind: &'static str,
    at: At,
    /// Place of its kind in `DENIABLE`.
    place: usize,
}

macro_rules! cgroup_door {
    ($name:literal, $behind:literal, $at:expr, $place:expr) => {
        Door {
            name: concat!("deny_", $name),
            door: concat!("door_", $name),
            program: concat!("deny_", $name),
            behind: $behind,
            at: At::Cgroup($at),
            place: $place,
        }
    };
}

// Attach types: include/uapi/linux/bpf.h.
const DOORS: &[Door] = &[
    cgroup_door!("bind4", "AT_BIND4", 8, denied::BIND),
    cgroup_door!("bind6", "AT_BIND6", 9, denied::BIND),
    cgroup_door!("connect4", "AT_CONNECT4", 10, denied::CONNECT),
    cgroup_door!("connect6", "AT_CONNECT6", 11, denied::CONNECT),
    cgroup_door!("sendmsg4", "AT_SENDMSG4", 14, denied::CONNECT),
    cgroup_door!("sendmsg6", "AT_SENDMSG6", 15, denied::CONNECT),
    cgroup_door!("sysctl", "AT_SYSCTL", 18, denied::SYSCTL),
];

/// What can make calls of a kind fail.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct DoorStatus {
    /// The kind.
    #[serde(serialize_with = "name_of")]
    pub kind: Kind,
    /// The rung: `lsm` or `cgroup`; the best there is.
    pub rung: &'static str,
    /// Why it does not work here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

fn name_of<S: serde::Serializer>(kind: &Kind, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(sumun_proto::catalogue::kind_name(*kind))
}

/// The doors of a kernel.
pub(super) struct State {
    canary: Array<MapData, u64>,
    /// The root of all cgroups, or why there is none.
    root: Result<OwnedFd, String>,
    /// What was tried, by the order of `DENIABLE`; empty until it was.
    tried: Vec<DoorStatus>,
}

impl State {
    pub(super) fn new(canary: Array<MapData, u64>) -> Self {
        Self {
            canary,
            root: Err("the doors have not been tried".to_owned()),
            tried: Vec::new(),
        }
    }
}

/// The kinds that the rules of a plan deny, or that only a door can record, as bits of places.
pub(super) fn wanted(filter: &Filter, plan: &Verdicts) -> u32 {
    let denied = (plan.kinds & verdicts::DENIED) / on::denied(0);
    let recorded = match filter.whole & 1 << whole::SYSCTL {
        0 => 0,
        _ => 1 << denied::SYSCTL,
    };
    denied | recorded
}

impl Kernel {
    /// Finds out by trying what can be denied on this host. What an agent before this one has attached stays so.
    ///
    /// # Errors
    /// A map cannot be written. A kernel that has no such doors is no error: see [`Kernel::doors`].
    pub fn try_doors(&mut self) -> Result<(), Error> {
        let btf = self.take_btf()?;
        self.deny.root = cgroup_root::host_root();
        let mut tried = Vec::with_capacity(DENIABLE.len());
        for (place, kind) in DENIABLE.into_iter().enumerate() {
            let doors = || DOORS.iter().filter(|door| door.place == place);
            let reason = match doors().next() {
                None => Some("not built yet for this kind".to_owned()),
                Some(_) => self.try_place(place, &btf).err(),
            };
            let rung = doors().next().map_or("none", |door| door.at.rung());
            tried.push(DoorStatus { kind, rung, reason });
        }
        self.deny.tried = tried;
        self.btf = Some(btf);
        Ok(())
    }

    /// What can be denied here, and why not; empty until it was tried.
    #[must_use]
    pub fn doors(&self) -> &[DoorStatus] {
        &self.deny.tried
    }

    /// What comes from a door alone, as hooks are told.
    pub(super) fn hooks_of_doors(&self) -> Option<HookStatus> {
        let sysctl = self.deny.tried.get(denied::SYSCTL)?;
        Some(HookStatus {
            hook: "cgroup_sysctl",
            kinds: vec!["sysctl"],
            available: sysctl.reason.is_none(),
            reason: sysctl.reason.clone(),
            verified_instructions: None,
        })
    }

    /// The same, for compiling policies.
    #[must_use]
    pub fn deniable(&self) -> Doors {
        let of = |door: &DoorStatus| {
            let works = door.reason.clone().map_or(Ok(()), Err);
            (door.kind, works)
        };
        Doors::of_host(self.deny.tried.iter().map(of).collect())
    }

    fn try_place(&mut self, place: usize, btf: &Btf) -> Result<(), String> {
        let mut links = Vec::new();
        for door in DOORS.iter().filter(|door| door.place == place) {
            self.load_door(door, btf)?;
            if self.pins.link(door.name).exists() {
                continue;
            }
            self.put_behind(door)?;
            links.push(self.attach_link(door)?);
        }
        self.prove(place)
    }

    /// A call of the agent's own has to fail.
    fn prove(&mut self, place: usize) -> Result<(), String> {
        let tid = u64::from(nix::unistd::gettid().as_raw().cast_unsigned());
        let set = |canary: &mut Array<MapData, u64>, value| {
            canary
                .set(0, value, 0)
                .map_err(|error| format!("cannot write the map CANARY: {}", chain(&error)))
        };
        set(&mut self.deny.canary, tid | 1 << (32 + place))?;
        let tried = tries::try_kind(DENIABLE[place]);
        set(&mut self.deny.canary, 0)?;
        tried
    }

    fn load_door(&mut self, door: &Door, _btf: &Btf) -> Result<(), String> {
        for name in [door.program, door.door] {
            let program = self
                .ebpf
                .program_mut(name)
                .ok_or_else(|| format!("the object has no program {name}"))?;
            if program.fd().is_ok() {
                continue;
            }
            let loaded = match program {
                Program::CgroupSockAddr(program) => program.load(),
                Program::CgroupSysctl(program) => program.load(),
                _ => return Err(format!("{name} is no program of a door")),
            };
            loaded.map_err(|error| {
                format!("the kernel refuses the program {name}: {}", chain(&error))
            })?;
        }
        Ok(())
    }

    fn put_behind(&mut self, door: &Door) -> Result<(), String> {
        let failed = |error: &dyn std::error::Error| {
            format!(
                "cannot put the program behind {}: {}",
                door.door,
                chain(error)
            )
        };
        let fd = fd_of(&mut self.ebpf, door.program)?;
        let fd = fd.try_clone().map_err(|error| failed(&error))?;
        let map = self
            .ebpf
            .map_mut(door.behind)
            .ok_or_else(|| format!("the object has no map {}", door.behind))?;
        ProgramArray::try_from(map)
            .and_then(|mut map| map.set(0, &fd, 0))
            .map_err(|error| failed(&error))
    }

    fn attach_link(&mut self, door: &Door) -> Result<OwnedFd, String> {
        let At::Cgroup(attach_type) = door.at;
        let root = self.deny.root.as_ref().map_err(Clone::clone)?;
        let program = fd_of(&mut self.ebpf, door.door)?;
        cgroup_root::attach(program.as_fd(), root.as_fd(), attach_type).map_err(|error| match error
            .raw_os_error()
        {
            Some(libc::EPERM) => {
                "somebody has attached a program to the root of all cgroups that allows no other"
                    .to_owned()
            }
            _ => format!(
                "cannot attach {} to the root of all cgroups: {error}",
                door.door
            ),
        })
    }

    /// Puts this agent's programs behind the doors that are wanted, and attaches and pins those that are not attached yet.
    pub(super) fn open_doors(&mut self, wanted: u32) -> Result<(), Error> {
        for place in places(wanted) {
            self.open_place(place).map_err(|reason| Error::Hook {
                hook: "a door that denies",
                reason,
            })?;
        }
        Ok(())
    }

    /// The same; what cannot be opened is told as a door that does not work, and what is asked for there has to be
    /// compiled otherwise.
    pub(super) fn open_what_can_be(&mut self, wanted: u32) {
        for place in places(wanted) {
            if let Err(reason) = self.open_place(place)
                && let Some(status) = self.deny.tried.get_mut(place)
            {
                status.reason = Some(reason);
            }
        }
    }

    fn open_place(&mut self, place: usize) -> Result<(), String> {
        // Why not, is told with the kind; no rule is judged at a door that there is not.
        let status = self.deny.tried.get(place);
        if status.is_none_or(|status| status.reason.is_some()) {
            return Ok(());
        }
        let mut attached = false;
        for door in DOORS.iter().filter(|door| door.place == place) {
            self.open_door(door, &mut attached)?;
        }
        match attached {
            true => self.prove(place),
            false => Ok(()),
        }
    }

    fn open_door(&mut self, door: &Door, attached: &mut bool) -> Result<(), String> {
        self.put_behind(door)?;
        let path = self.pins.link(door.name);
        if path.exists() {
            return Ok(());
        }
        let link = self.attach_link(door)?;
        cgroup_root::pin(&link, &path).map_err(|error| format!("cannot pin its link: {error}"))?;
        *attached = true;
        Ok(())
    }

    /// Detaches all but the doors that are wanted.
    pub(super) fn close_doors(&mut self, wanted: u32) -> Result<(), Error> {
        for door in DOORS.iter().filter(|door| wanted & 1 << door.place == 0) {
            self.pins.remove_link(door.name)?;
        }
        Ok(())
    }
}

fn places(wanted: u32) -> impl Iterator<Item = usize> {
    (0..DENIABLE.len()).filter(move |place| wanted & 1 << place != 0)
}

fn fd_of<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a ProgramFd, String> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| format!("the object has no program {name}"))?;
    program.fd().map_err(|error| chain(&error))
}
