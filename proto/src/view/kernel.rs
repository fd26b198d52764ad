//! Fields of the family `kernel`.

use std::borrow::Cow;

use crate::catalogue::FieldId;
use crate::v1::{KernelChange, Kind};

use super::{Items, Value, View, list, nonzero, optional, text};

/// Commands of bpf that are recorded (include/uapi/linux/bpf.h).
const COMMANDS: &[(u32, &str)] = &[
    (5, "prog_load"),
    (8, "prog_attach"),
    (17, "raw_tracepoint_open"),
    (28, "link_create"),
];

/// `enum bpf_prog_type`, in order.
const PROGRAMS: &[&str] = &[
    "unspec",
    "socket_filter",
    "kprobe",
    "sched_cls",
    "sched_act",
    "tracepoint",
    "xdp",
    "perf_event",
    "cgroup_skb",
    "cgroup_sock",
    "lwt_in",
    "lwt_out",
    "lwt_xmit",
    "sock_ops",
    "sk_skb",
    "cgroup_device",
    "sk_msg",
    "raw_tracepoint",
    "cgroup_sock_addr",
    "lwt_seg6local",
    "lirc_mode2",
    "sk_reuseport",
    "flow_dissector",
    "cgroup_sysctl",
    "raw_tracepoint_writable",
    "cgroup_sockopt",
    "tracing",
    "struct_ops",
    "ext",
    "lsm",
    "sk_lookup",
    "syscall",
    "netfilter",
];

/// By `sumun_abi::event::kernel::signature`.
const SIGNATURES: &[&str] = &["unchecked", "none", "good"];

/// `MS_*` (include/uapi/linux/mount.h).
const MOUNT_FLAGS: &[(u64, &str)] = &[
    (4096, "bind"),
    (16384, "rec"),
    (8192, "move"),
    (32, "remount"),
    (1, "ro"),
    (2, "nosuid"),
    (4, "nodev"),
    (8, "noexec"),
    (1 << 18, "private"),
    (1 << 19, "slave"),
    (1 << 20, "shared"),
    (1 << 17, "unbindable"),
];

/// `MNT_*` and `UMOUNT_NOFOLLOW` (include/linux/fs.h).
const UMOUNT_FLAGS: &[(u64, &str)] = &[(1, "force"), (2, "detach"), (4, "expire"), (8, "nofollow")];

impl<'a> View<'a> {
    pub(super) fn kernel(&self, id: FieldId) -> Option<Value<'a>> {
        let change = self.event.kernel.as_ref()?;
        match self.kind() {
            // Of mounts only those that succeeded are recorded.
            Kind::ModuleLoad
            | Kind::ModuleUnload
            | Kind::Bpf
            | Kind::KexecLoad
            | Kind::IoUringSetup
                if id == FieldId::Result =>
            {
                Some(Value::Int(change.result?.into()))
            }
            Kind::ModuleLoad | Kind::ModuleUnload => module(change, id),
            Kind::Bpf => program(change, id),
            Kind::Mount | Kind::Umount | Kind::PivotRoot | Kind::Chroot => {
                mount(change, self.kind(), &self.event.call, id)
            }
            Kind::Sysctl => match id {
                FieldId::SysctlName => optional(change.name.as_deref(), change.name_flaws),
                FieldId::SysctlValue => optional(change.value.as_deref(), change.value_flaws),
                _ => None,
            },
            Kind::Integrity => match id {
                FieldId::IntegrityCheck => Some(text(&change.check)),
                FieldId::IntegrityObject => optional(change.name.as_deref(), change.name_flaws),
                FieldId::IntegrityDetail => optional(change.value.as_deref(), change.value_flaws),
                _ => None,
            },
            Kind::IoUringSetup if id == FieldId::IoUringEntries => {
                Some(Value::Int(change.entries?.into()))
            }
            _ => None,
        }
    }
}

fn module(change: &KernelChange, id: FieldId) -> Option<Value<'_>> {
    match id {
        FieldId::ModuleName => match change.name.as_deref() {
            None if change.name_unknown => Some(Value::Unknown),
            name => optional(name, 0),
        },
        // Told with the name, or not at all.
        FieldId::ModuleSignature if change.name_unknown => Some(Value::Unknown),
        FieldId::ModuleSignature => Some(text(SIGNATURES.get(change.signature? as usize)?)),
        FieldId::ModuleParams => optional(change.parameters.as_deref(), change.parameters_flaws),
        _ => None,
    }
}

fn program(change: &KernelChange, id: FieldId) -> Option<Value<'_>> {
    // Each of these commands is about a program, which has a type: without one nothing of it is known, as its descriptor
    // was gone when the call returned.
    let lost = change.program_type.is_none();
    match id {
        FieldId::BpfProgType
        | FieldId::BpfProgName
        | FieldId::BpfProgId
        | FieldId::BpfAttachType
            if lost =>
        {
            Some(Value::Unknown)
        }
        FieldId::BpfCommand => {
            let command = change.command?;
            let known = COMMANDS.iter().find(|(known, _)| *known == command)?;
            Some(text(known.1))
        }
        FieldId::BpfProgType => {
            let number = change.program_type?;
            Some(match PROGRAMS.get(number as usize) {
                Some(name) => text(name),
                None => Value::Str(Cow::Owned(number.to_string())),
            })
        }
        FieldId::BpfProgName => optional(change.name.as_deref(), 0),
        FieldId::BpfProgId => nonzero(change.program_id.into()),
        FieldId::BpfAttachType => Some(Value::Int(change.attach_type?.into())),
        _ => None,
    }
}

fn mount<'a>(change: &'a KernelChange, kind: Kind, call: &str, id: FieldId) -> Option<Value<'a>> {
    match id {
        FieldId::MountSource => optional(change.source.as_deref(), change.source_flaws),
        FieldId::MountTarget => optional(change.target.as_deref(), change.target_flaws),
        FieldId::MountType => optional(change.fs.as_deref(), change.fs_flaws),
        FieldId::MountFlaws => Some(list(Items::Flaws(change.target_flaws), true)),
        // The calls of the new kind have flags of their own.
        FieldId::MountFlags if call == "mount" => {
            Some(list(Items::Bits(change.flags?, MOUNT_FLAGS), true))
        }
        FieldId::MountFlags if kind == Kind::Umount => {
            Some(list(Items::Bits(change.flags?, UMOUNT_FLAGS), true))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_program_that_was_lost_nothing_is_absent() {
        let lost = KernelChange {
            command: Some(28),
            ..KernelChange::default()
        };
        let known = KernelChange {
            program_type: Some(2),
            attach_type: Some(0),
            ..lost.clone()
        };
        for id in [
            FieldId::BpfProgType,
            FieldId::BpfProgName,
            FieldId::BpfProgId,
            FieldId::BpfAttachType,
        ] {
            assert!(matches!(program(&lost, id), Some(Value::Unknown)));
            assert!(!matches!(program(&known, id), Some(Value::Unknown)));
        }
        assert!(matches!(
            program(&lost, FieldId::BpfCommand),
            Some(Value::Str(_))
        ));
    }
}
