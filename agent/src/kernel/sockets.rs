//! Programs that see what sockets do, by the cgroup of the socket: of the root, so that they see all.

use std::fs::File;

use aya::programs::{CgroupAttachMode, CgroupSkbAttachType, Program, links::FdLink};
use sumun_abi::{
    policy::{Filter, MODE_NONE, filtered, whole},
    slot as s,
};

use super::{HookStatus, Kernel, cgroup_root::host_root, chain, program_array, verifier};

/// A program on the sockets of a cgroup.
pub(super) struct SocketHook {
    /// Name of the program; also of its pinned link.
    program: &'static str,
    /// The program that is attached and jumps to it.
    door: &'static str,
    /// The map of one entry that says where to.
    behind: &'static str,
    /// The kind of records that come from it.
    kinds: &'static [&'static str],
    /// Of a program that sees packets, which.
    packets: Option<CgroupSkbAttachType>,
    /// Whether the filter asks for it: it is attached only then.
    asked: fn(&Filter) -> bool,
}

#[cfg(test)]
impl SocketHook {
    pub(super) fn kinds(&self) -> &'static [&'static str] {
        self.kinds
    }
}

const fn of_udp(program: &'static str, door: &'static str, behind: &'static str) -> SocketHook {
    SocketHook {
        program,
        door,
        behind,
        kinds: &["connect_udp"],
        packets: None,
        asked: |filter| filter.mode[filtered::CONNECT_UDP] != MODE_NONE,
    }
}

const fn of_dns(
    program: &'static str,
    door: &'static str,
    behind: &'static str,
    packets: CgroupSkbAttachType,
) -> SocketHook {
    SocketHook {
        program,
        door,
        behind,
        kinds: &["dns"],
        packets: Some(packets),
        asked: |filter| filter.whole >> whole::DNS & 1 != 0,
    }
}

pub(super) const SOCKET_HOOKS: [SocketHook; 6] = [
    of_udp("udp_connect4", "door_udp_connect4", "AT_UDP_CONNECT4"),
    of_udp("udp_connect6", "door_udp_connect6", "AT_UDP_CONNECT6"),
    of_udp("udp_send4", "door_udp_send4", "AT_UDP_SEND4"),
    of_udp("udp_send6", "door_udp_send6", "AT_UDP_SEND6"),
    of_dns(
        "dns_out",
        "door_dns_out",
        "AT_DNS_OUT",
        CgroupSkbAttachType::Egress,
    ),
    of_dns(
        "dns_in",
        "door_dns_in",
        "AT_DNS_IN",
        CgroupSkbAttachType::Ingress,
    ),
];

/// What they all read.
const REQUIRED: [usize; 9] = [
    s::TASK_PID,
    s::TASK_TGID,
    s::TASK_GROUP_LEADER,
    s::TASK_START,
    s::TASK_EXEC_ID,
    s::TASK_CRED,
    s::CRED_UID,
    s::TASK_FILES,
    s::FILES_COUNT,
];

impl Kernel {
    /// Puts the programs behind their doors and tries the doors out; those that the filter asks for stay attached.
    pub(super) fn attach_sockets(&mut self, filter: &Filter) -> Vec<HookStatus> {
        let missing = self.slots.missing(&REQUIRED);
        let root = match missing.as_slice() {
            [] => host_root().map(File::from),
            missing => Err(format!("this kernel has no {}", missing.join(", "))),
        };
        SOCKET_HOOKS
            .iter()
            .map(|hook| {
                let tried = root
                    .as_ref()
                    .map_err(String::clone)
                    .and_then(|root| self.try_socket(hook, root, (hook.asked)(filter)));
                if tried.is_err() {
                    self.vacate_socket(hook);
                }
                HookStatus {
                    hook: hook.program,
                    kinds: hook.kinds.to_vec(),
                    available: tried.is_ok(),
                    reason: tried.err(),
                    verified_instructions: None,
                }
            })
            .collect()
    }

    fn try_socket(&mut self, hook: &SocketHook, root: &File, asked: bool) -> Result<(), String> {
        for name in [hook.program, hook.door] {
            load(self.socket_program(name)?)
                .map_err(|error| format!("the kernel refuses the program {name}: {error}"))?;
        }
        let program = self.socket_program(hook.program)?;
        let fd = program
            .fd()
            .and_then(|fd| Ok(fd.try_clone()?))
            .map_err(|error| chain(&error))?;
        program_array(&mut self.ebpf, hook.behind)?
            .set(0, &fd, 0)
            .map_err(|error| {
                format!(
                    "cannot put the program behind {}: {}",
                    hook.door,
                    chain(&error)
                )
            })?;
        self.attach_socket(hook, root)?;
        if !asked {
            self.pins
                .remove_link(hook.program)
                .map_err(|error| chain(&error))?;
        }
        Ok(())
    }

    /// Attaches what the filter asks for, and detaches what it does not. Those that this kernel refused stay away.
    pub(super) fn switch_sockets(&mut self, filter: &Filter, attach: bool) -> Result<(), String> {
        let mut opened = None;
        for hook in &SOCKET_HOOKS {
            let available = |status: &HookStatus| status.hook == hook.program && status.available;
            if !self.hooks.iter().any(available) {
                continue;
            }
            let asked = (hook.asked)(filter);
            if asked && attach {
                let root = match opened.take() {
                    Some(root) => root,
                    None => host_root()?.into(),
                };
                self.attach_socket(hook, &root)?;
                opened = Some(root);
            } else if !asked && !attach {
                self.pins
                    .remove_link(hook.program)
                    .map_err(|error| chain(&error))?;
            }
        }
        Ok(())
    }

    /// Attaches a hook's door, unless it is.
    fn attach_socket(&mut self, hook: &SocketHook, root: &File) -> Result<(), String> {
        let path = self.pins.link(hook.program);
        if path.exists() {
            return Ok(());
        }
        // A link stands beside the programs of others by itself, and takes no flags.
        let mode = CgroupAttachMode::Single;
        let failed = |error: &dyn std::error::Error| format!("cannot attach: {}", chain(error));
        let link: FdLink = match (self.socket_program(hook.door)?, hook.packets) {
            (Program::CgroupSkb(door), Some(packets)) => {
                let id = door
                    .attach(root, packets, mode)
                    .map_err(|error| failed(&error))?;
                let link = door.take_link(id).map_err(|error| failed(&error))?;
                link.try_into().map_err(|error| failed(&error))?
            }
            (Program::CgroupSockAddr(door), None) => {
                let id = door.attach(root, mode).map_err(|error| failed(&error))?;
                let link = door.take_link(id).map_err(|error| failed(&error))?;
                link.try_into().map_err(|error| failed(&error))?
            }
            _ => return Err(format!("{} is of another type", hook.door)),
        };
        link.pin(path)
            .map_err(|error| format!("cannot pin its link: {}", chain(&error)))?;
        Ok(())
    }

    /// Leaves nothing behind a door that cannot be used: not a previous agent's program, either.
    fn vacate_socket(&mut self, hook: &SocketHook) {
        if let Ok(mut map) = program_array(&mut self.ebpf, hook.behind) {
            // An error says that it was empty.
            let _ = map.clear_index(&0);
        }
        let _ = self.pins.remove_link(hook.program);
    }

    fn socket_program(&mut self, name: &str) -> Result<&mut Program, String> {
        self.ebpf
            .program_mut(name)
            .ok_or_else(|| format!("the object has no program {name}"))
    }
}

/// Loads a program, unless an earlier `attach` has.
pub(super) fn load(program: &mut Program) -> Result<(), String> {
    if program.fd().is_ok() {
        return Ok(());
    }
    match program {
        Program::CgroupSkb(program) => verifier::load(|| program.load()),
        Program::CgroupSockAddr(program) => verifier::load(|| program.load()),
        _ => return Err("it is of another type".into()),
    }
    .map_err(|error| chain(&error))
}
