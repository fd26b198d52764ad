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
    programs::{Program, ProgramError, ProgramFd, links::FdLink},
};
use serde::Serialize;
use sumun_abi::{
    policy::{Filter, whole},
    slot as s,
    verdict::{Verdicts, denied, on},
};
use sumun_policy::doors::{DENIABLE, Doors};
use sumun_proto::v1::Kind;

use super::{Error, HookStatus, Kernel, cgroup_root, chain, tries, verdicts, verifier};

/// The rung of BPF LSM.
const LSM: &str = "lsm";
/// That of programs on the root of all cgroups.
const CGROUP: &str = "cgroup";

/// How a door is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// To the root of all cgroups: `enum bpf_attach_type`.
    Cgroup(u32),
    /// To a hook of BPF LSM.
    Lsm(&'static str),
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
    /// A slot that kernels without its hook do not have: there, another door is asked instead.
    needs: Option<usize>,
}

/// The doors that together deny a kind.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// Place of the kind in `DENIABLE`.
    place: usize,
    rung: &'static str,
    doors: &'static [Door],
    /// Slots without which it would know too little to deny anything.
    required: &'static [usize],
}

/// Kinds of records that come from a door alone, whether or not a rule denies.
pub(super) const KINDS_OF_DOORS: &[&str] = &["sysctl"];

macro_rules! cgroup_door {
    ($name:literal, $behind:literal, $at:expr) => {
        Door {
            name: concat!("deny_", $name),
            door: concat!("door_", $name),
            program: concat!("deny_", $name),
            behind: $behind,
            at: At::Cgroup($at),
            needs: None,
        }
    };
}

macro_rules! lsm_door {
    ($name:literal, $behind:literal, $hook:literal) => {
        lsm_door!($name, $behind, $hook, None)
    };
    ($name:literal, $behind:literal, $hook:literal, $needs:expr) => {
        Door {
            name: concat!("deny_lsm_", $name),
            door: concat!("door_lsm_", $name),
            program: concat!("deny_lsm_", $name),
            behind: $behind,
            at: At::Lsm($hook),
            needs: $needs,
        }
    };
}

macro_rules! lsm_way {
    ($place:expr, $required:expr; $($door:expr),+) => {
        Way {
            place: $place,
            rung: LSM,
            doors: &[$($door),+],
            required: $required,
        }
    };
}

const SOCKET: &[usize] = &[
    s::SOCKET_SK,
    s::SOCK_PROTOCOL,
    s::SOCK_KERN,
    s::MM_EXE_FILE,
    s::INODE_UID,
];
const PATH: &[usize] = &[
    s::PATH_MNT,
    s::PATH_DENTRY,
    s::BPRM_FILE,
    s::VMA_FILE,
    s::MM_EXE_FILE,
    s::INODE_UID,
    s::FILE_MNT,
    s::FILE_DENTRY,
    s::FILE_MODE,
    s::FILE_FLAGS,
    s::DENTRY_PARENT,
    s::DENTRY_NAME,
    s::DENTRY_NAME_LEN,
    s::DENTRY_INODE,
    s::VFSMOUNT_ROOT,
    s::MOUNT_MNT,
    s::MOUNT_PARENT,
    s::MOUNT_MOUNTPOINT,
    s::MOUNT_NS,
];
const MODULE: &[usize] = &[
    s::READING_MODULE,
    s::LOADING_MODULE,
    s::FILE_DENTRY,
    s::FILE_MNT,
];

// Of each kind the best way first. Attach types: include/uapi/linux/bpf.h.
const WAYS: &[Way] = &[
    lsm_way!(denied::EXEC, PATH; lsm_door!("exec", "AT_LSM_EXEC", "bprm_check_security")),
    lsm_way!(denied::OPEN, PATH; lsm_door!("open", "AT_LSM_OPEN", "file_open")),
    lsm_way!(denied::RENAME, PATH; lsm_door!("rename", "AT_LSM_RENAME", "path_rename")),
    lsm_way!(denied::UNLINK, PATH;
        lsm_door!("unlink", "AT_LSM_UNLINK", "path_unlink"),
        lsm_door!("rmdir", "AT_LSM_RMDIR", "path_rmdir")),
    lsm_way!(denied::LINK, PATH; lsm_door!("link", "AT_LSM_LINK", "path_link")),
    // The root of all cgroups first: there, datagrams and sends that connect pass, too.
    Way {
        place: denied::CONNECT,
        rung: CGROUP,
        doors: &[
            cgroup_door!("connect4", "AT_CONNECT4", 10),
            cgroup_door!("connect6", "AT_CONNECT6", 11),
            cgroup_door!("sendmsg4", "AT_SENDMSG4", 14),
            cgroup_door!("sendmsg6", "AT_SENDMSG6", 15),
        ],
        required: SOCKET,
    },
    lsm_way!(denied::CONNECT, SOCKET; lsm_door!("connect", "AT_LSM_CONNECT", "socket_connect")),
    Way {
        place: denied::BIND,
        rung: CGROUP,
        doors: &[
            cgroup_door!("bind4", "AT_BIND4", 8),
            cgroup_door!("bind6", "AT_BIND6", 9),
        ],
        required: SOCKET,
    },
    lsm_way!(denied::BIND, SOCKET; lsm_door!("bind", "AT_LSM_BIND", "socket_bind")),
    Way {
        place: denied::SYSCTL,
        rung: CGROUP,
        doors: &[cgroup_door!("sysctl", "AT_SYSCTL", 18)],
        required: &[s::MM_EXE_FILE, s::INODE_UID],
    },
    lsm_way!(denied::MOUNT, PATH;
        lsm_door!("mount", "AT_LSM_MOUNT", "sb_mount"),
        lsm_door!("move", "AT_LSM_MOVE", "move_mount"),
        lsm_door!("remount", "AT_LSM_REMOUNT", "sb_remount")),
    lsm_way!(denied::PIVOT_ROOT, PATH; lsm_door!("pivot", "AT_LSM_PIVOT", "sb_pivotroot")),
    lsm_way!(denied::TRUNCATE, PATH;
        lsm_door!("truncate", "AT_LSM_TRUNCATE", "path_truncate"),
        lsm_door!("ftruncate", "AT_LSM_FTRUNCATE", "file_truncate", Some(s::FILE_TRUNCATE))),
    lsm_way!(denied::CHMOD, PATH; lsm_door!("chmod", "AT_LSM_CHMOD", "path_chmod")),
    lsm_way!(denied::CHOWN, PATH; lsm_door!("chown", "AT_LSM_CHOWN", "path_chown")),
    lsm_way!(denied::MODULE_LOAD, MODULE;
        lsm_door!("read", "AT_LSM_READ", "kernel_read_file"),
        lsm_door!("load", "AT_LSM_LOAD", "kernel_load_data")),
    lsm_way!(denied::PTRACE, PATH; lsm_door!("ptrace", "AT_LSM_PTRACE", "ptrace_access_check")),
    lsm_way!(denied::MAP_WX, PATH;
        lsm_door!("mmap", "AT_LSM_MMAP", "mmap_file"),
        lsm_door!("mprotect", "AT_LSM_MPROTECT", "file_mprotect")),
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

pub(super) fn name_of<S: serde::Serializer>(kind: &Kind, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(sumun_proto::catalogue::kind_name(*kind))
}

/// The doors of a kernel.
pub(super) struct State {
    canary: Array<MapData, u64>,
    /// The root of all cgroups, or why there is none.
    root: Result<OwnedFd, String>,
    /// What was tried, by the order of `DENIABLE`; empty until it was.
    tried: Vec<DoorStatus>,
    /// One of the programs of BPF LSM has denied a call.
    lsm_has_effect: bool,
    /// How each is denied.
    ways: [Option<&'static Way>; DENIABLE.len()],
}

/// A door that is attached; not any more when this is dropped, unless it was pinned.
enum Link {
    Cgroup(OwnedFd),
    Lsm(FdLink),
}

impl State {
    pub(super) fn new(canary: Array<MapData, u64>) -> Self {
        Self {
            canary,
            root: Err("the doors have not been tried".to_owned()),
            tried: Vec::new(),
            lsm_has_effect: false,
            ways: [None; DENIABLE.len()],
        }
    }

    pub(super) fn set_canary(&mut self, value: u64) -> Result<(), String> {
        self.canary
            .set(0, value, 0)
            .map_err(|error| format!("cannot write the map CANARY: {}", chain(&error)))
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
    /// Finds out by trying what can be denied on this host, and what decision points see. What an agent before this one has attached stays so.
    ///
    /// # Errors
    /// A map cannot be written. A kernel that has no such doors is no error: see [`Kernel::doors`].
    pub fn try_doors(&mut self) -> Result<(), Error> {
        let btf = self.take_btf()?;
        self.deny.root = cgroup_root::host_root();
        let places = 0..DENIABLE.len();
        self.deny.tried = places.map(|place| self.try_place(place, &btf)).collect();
        self.try_points(&btf);
        self.btf = Some(btf);
        Ok(())
    }

    /// As if the root of all cgroups were out of reach, or not any more: what programs there deny is tried anew. For tests of
    /// what is second best, while no rule denies. The kinds are those that [`Kernel::doors`] names then.
    ///
    /// # Errors
    /// As of [`Kernel::try_doors`], which is to be called first.
    pub fn leave_out_cgroups(&mut self, left_out: bool) -> Result<(), Error> {
        let btf = self.take_btf()?;
        self.deny.root = match left_out {
            true => Err("the root of all cgroups is left out".to_owned()),
            false => cgroup_root::host_root(),
        };
        for place in 0..self.deny.tried.len() {
            let ways = WAYS.iter().filter(|way| way.place == place);
            if ways.clone().any(|way| way.rung == CGROUP) {
                self.deny.tried[place] = self.try_place(place, &btf);
            }
        }
        self.btf = Some(btf);
        Ok(())
    }

    /// Tries the ways to deny a kind, the best first, until one works.
    fn try_place(&mut self, place: usize, btf: &Btf) -> DoorStatus {
        let kind = DENIABLE[place];
        self.deny.ways[place] = None;
        let mut reasons = Vec::new();
        for way in WAYS.iter().filter(|way| way.place == place) {
            match self.try_way(way, btf) {
                Ok(()) => {
                    self.deny.ways[place] = Some(way);
                    return DoorStatus {
                        kind,
                        rung: way.rung,
                        reason: None,
                    };
                }
                Err(reason) => reasons.push(format!("{}: {reason}", way.rung)),
            }
        }
        DoorStatus {
            kind,
            rung: "none",
            reason: Some(reasons.join("; ")),
        }
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
            kinds: KINDS_OF_DOORS.to_vec(),
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
        Doors::of_host(self.deny.tried.iter().map(of).collect()).without(self.without_kills())
    }

    fn try_way(&mut self, way: &Way, btf: &Btf) -> Result<(), String> {
        let missing = self.slots.missing(way.required);
        if !missing.is_empty() {
            return Err(format!("this kernel has no {}", missing.join(", ")));
        }
        // Without the door it has to go through, or its failure would prove nothing. The agent's unit takes some calls from
        // it, like loading modules: that the programs of BPF LSM have an effect here is known by others then.
        let free = tries::try_kind(DENIABLE[way.place], way.rung, false);
        if let Err(reason) = free
            && !(way.rung == LSM && self.deny.lsm_has_effect)
        {
            return Err(reason);
        }
        let mut links = Vec::new();
        for door in self.doors_of(way) {
            self.load_door(door, btf)?;
            if self.pins.link(door.name).exists() {
                continue;
            }
            self.put_behind(door)?;
            links.push(self.attach_link(door)?);
        }
        self.prove(way)?;
        self.deny.lsm_has_effect |= way.rung == LSM;
        Ok(())
    }

    /// The doors of a way that this kernel has.
    fn doors_of(&self, way: &Way) -> Vec<&'static Door> {
        let is_here = |door: &&Door| {
            door.needs
                .is_none_or(|slot| self.slots.missing(&[slot]).is_empty())
        };
        way.doors.iter().filter(is_here).collect()
    }

    /// A call of the agent's own has to fail.
    fn prove(&mut self, way: &Way) -> Result<(), String> {
        let tid = u64::from(nix::unistd::gettid().as_raw().cast_unsigned());
        self.deny.set_canary(tid | 1 << (32 + way.place))?;
        let tried = tries::try_kind(DENIABLE[way.place], way.rung, true);
        self.deny.set_canary(0)?;
        tried
    }

    fn load_door(&mut self, door: &Door, btf: &Btf) -> Result<(), String> {
        for name in [door.program, door.door] {
            let program = self
                .ebpf
                .program_mut(name)
                .ok_or_else(|| format!("the object has no program {name}"))?;
            if program.fd().is_ok() {
                continue;
            }
            let loaded = match (program, door.at) {
                (Program::CgroupSockAddr(program), _) => verifier::load(|| program.load()),
                (Program::CgroupSysctl(program), _) => verifier::load(|| program.load()),
                (Program::Lsm(program), At::Lsm(hook)) => {
                    verifier::load(|| program.load(hook, btf))
                }
                _ => return Err(format!("{name} is no program of a door")),
            };
            loaded.map_err(|error| refused(name, &error))?;
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

    fn attach_link(&mut self, door: &Door) -> Result<Link, String> {
        match door.at {
            At::Cgroup(attach_type) => {
                let root = self.deny.root.as_ref().map_err(Clone::clone)?;
                let program = fd_of(&mut self.ebpf, door.door)?;
                let link = cgroup_root::attach(program.as_fd(), root.as_fd(), attach_type);
                link.map(Link::Cgroup).map_err(|error| match error.raw_os_error() {
                    Some(libc::EPERM) => "somebody has attached a program to the root of all cgroups that allows no other".to_owned(),
                    _ => format!("cannot attach {} to the root of all cgroups: {error}", door.door),
                })
            }
            At::Lsm(hook) => {
                let failed =
                    |error: &ProgramError| format!("cannot attach {}: {}", door.door, chain(error));
                let Some(Program::Lsm(program)) = self.ebpf.program_mut(door.door) else {
                    return Err(format!("the object has no program {}", door.door));
                };
                let attached = match program.attach() {
                    // Old kernels (5.10) attach what was loaded only once, and it was, when it was tried.
                    Err(ProgramError::SyscallError(error))
                        if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
                    {
                        let btf = Btf::from_sys_fs().map_err(|error| chain(&error))?;
                        program
                            .unload()
                            .and_then(|()| verifier::load(|| program.load(hook, &btf)))
                            .and_then(|()| program.attach())
                    }
                    attached => attached,
                };
                attached
                    .and_then(|id| program.take_link(id))
                    .map(|link| Link::Lsm(link.into()))
                    .map_err(|error| failed(&error))
            }
        }
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
        let Some(way) = self.deny.ways[place] else {
            return Ok(());
        };
        let mut attached = false;
        for door in self.doors_of(way) {
            self.open_door(door, &mut attached)?;
        }
        match attached {
            true => self.prove(way),
            false => Ok(()),
        }
    }

    fn open_door(&mut self, door: &Door, attached: &mut bool) -> Result<(), String> {
        self.put_behind(door)?;
        let path = self.pins.link(door.name);
        if path.exists() {
            return Ok(());
        }
        self.pins.wait_for_end(door.name);
        match self.attach_link(door)? {
            Link::Cgroup(link) => {
                cgroup_root::pin(&link, &path)
                    .map_err(|error| format!("cannot pin its link: {error}"))?;
            }
            Link::Lsm(link) => {
                link.pin(&path)
                    .map_err(|error| format!("cannot pin its link: {}", chain(&error)))?;
            }
        }
        *attached = true;
        Ok(())
    }

    /// Detaches all but the doors that are wanted.
    pub(super) fn close_doors(&mut self, wanted: u32) -> Result<(), Error> {
        for way in WAYS {
            // Another way of the kind may have been the best when an agent before this one was there.
            let kept = self.deny.ways[way.place].is_some_and(|best| best.rung == way.rung);
            if kept && wanted & 1 << way.place != 0 {
                continue;
            }
            for door in way.doors {
                self.pins.remove_link(door.name)?;
            }
        }
        Ok(())
    }
}

fn places(wanted: u32) -> impl Iterator<Item = usize> {
    (0..DENIABLE.len()).filter(move |place| wanted & 1 << place != 0)
}

/// Why a program does not load, in words where the kernel has none.
pub(super) fn refused(name: &str, error: &ProgramError) -> String {
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
        && io_error.raw_os_error() == Some(libc::EPERM)
        && verifier_log.to_string().trim().is_empty()
    {
        return "this kernel loads no programs of the kind (EPERM, without a word of its verifier)"
            .to_owned();
    }
    format!("the kernel refuses the program {name}: {}", chain(error))
}

fn fd_of<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a ProgramFd, String> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| format!("the object has no program {name}"))?;
    program.fd().map_err(|error| chain(&error))
}
