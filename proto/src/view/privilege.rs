//! Fields of the family `privilege`.

use crate::catalogue::FieldId;
use crate::text::file_name;
use crate::v1::{Credentials, Kind, Privilege, Target};

use super::{Items, UNKNOWN_TEXT, Value, View, int, list, nonzero, optional, text};

/// Capabilities by their bit in a set, in the order of their numbers (include/uapi/linux/capability.h).
pub const CAPABILITIES: &[(u64, &str)] = &[
    (1 << 0, "cap_chown"),
    (1 << 1, "cap_dac_override"),
    (1 << 2, "cap_dac_read_search"),
    (1 << 3, "cap_fowner"),
    (1 << 4, "cap_fsetid"),
    (1 << 5, "cap_kill"),
    (1 << 6, "cap_setgid"),
    (1 << 7, "cap_setuid"),
    (1 << 8, "cap_setpcap"),
    (1 << 9, "cap_linux_immutable"),
    (1 << 10, "cap_net_bind_service"),
    (1 << 11, "cap_net_broadcast"),
    (1 << 12, "cap_net_admin"),
    (1 << 13, "cap_net_raw"),
    (1 << 14, "cap_ipc_lock"),
    (1 << 15, "cap_ipc_owner"),
    (1 << 16, "cap_sys_module"),
    (1 << 17, "cap_sys_rawio"),
    (1 << 18, "cap_sys_chroot"),
    (1 << 19, "cap_sys_ptrace"),
    (1 << 20, "cap_sys_pacct"),
    (1 << 21, "cap_sys_admin"),
    (1 << 22, "cap_sys_boot"),
    (1 << 23, "cap_sys_nice"),
    (1 << 24, "cap_sys_resource"),
    (1 << 25, "cap_sys_time"),
    (1 << 26, "cap_sys_tty_config"),
    (1 << 27, "cap_mknod"),
    (1 << 28, "cap_lease"),
    (1 << 29, "cap_audit_write"),
    (1 << 30, "cap_audit_control"),
    (1 << 31, "cap_setfcap"),
    (1 << 32, "cap_mac_override"),
    (1 << 33, "cap_mac_admin"),
    (1 << 34, "cap_syslog"),
    (1 << 35, "cap_wake_alarm"),
    (1 << 36, "cap_block_suspend"),
    (1 << 37, "cap_audit_read"),
    (1 << 38, "cap_perfmon"),
    (1 << 39, "cap_bpf"),
    (1 << 40, "cap_checkpoint_restore"),
];

/// Namespaces by their flag (include/uapi/linux/sched.h).
const NAMESPACES: &[(u64, &str)] = &[
    (0x0002_0000, "mnt"),
    (0x2000_0000, "pid"),
    (0x4000_0000, "net"),
    (0x1000_0000, "user"),
    (0x0400_0000, "uts"),
    (0x0800_0000, "ipc"),
    (0x0200_0000, "cgroup"),
    (0x0000_0080, "time"),
];

/// `PROT_*`
const PROTECTIONS: &[(u64, &str)] = &[(1, "read"), (2, "write"), (4, "exec")];

/// Requests of ptrace that are recorded (include/uapi/linux/ptrace.h).
const REQUESTS: &[(u32, &str)] = &[
    (0, "traceme"),
    (4, "poketext"),
    (5, "pokedata"),
    (6, "pokeusr"),
    (13, "setregs"),
    (15, "setfpregs"),
    (16, "attach"),
    (0x4205, "setregset"),
    (0x4206, "seize"),
];

/// Options of prctl that are recorded (include/uapi/linux/prctl.h).
const OPTIONS: &[(u32, &str)] = &[
    (4, "set_dumpable"),
    (SET_NAME, "set_name"),
    (28, "set_securebits"),
    (35, "set_mm"),
    (47, "cap_ambient_raise"),
    (59, "set_syscall_user_dispatch"),
    (0x5961_6d61, "set_ptracer"),
];
const SET_NAME: u32 = 15;

/// Flags of userfaultfd (include/uapi/linux/userfaultfd.h).
const FAULT_FLAGS: &[(u64, &str)] = &[
    (1, "user_mode_only"),
    (0x800, "nonblock"),
    (0x8_0000, "cloexec"),
];

impl<'a> View<'a> {
    pub(super) fn privilege(&self, id: FieldId) -> Option<Value<'a>> {
        let privilege = self.event.privilege.as_ref()?;
        match self.kind() {
            Kind::Setid | Kind::Capset => credentials(privilege, id),
            Kind::Unshare | Kind::Setns => namespaces(privilege, id),
            Kind::MapWx => memory(privilege, id),
            Kind::Ptrace | Kind::ProcessVmReadv | Kind::ProcessVmWritev | Kind::PidfdGetfd => {
                reach(privilege, self.kind(), id)
            }
            Kind::Prctl | Kind::Userfaultfd if id == FieldId::Result => {
                Some(Value::Int(privilege.result?.into()))
            }
            Kind::Prctl => prctl(privilege, id),
            Kind::Userfaultfd if id == FieldId::UserfaultfdFlags => {
                Some(list(Items::Bits(privilege.second, FAULT_FLAGS), true))
            }
            _ => None,
        }
    }
}

fn credentials(privilege: &Privilege, id: FieldId) -> Option<Value<'static>> {
    let new = privilege.new.as_ref()?;
    if let Some(value) = credential(new, id, &NEW) {
        return Some(value);
    }
    let Some(old) = privilege.old.as_ref() else {
        if id == FieldId::PrivCapGained {
            return Some(list(Items::Bits(0, CAPABILITIES), false));
        }
        // They were something.
        return OLD.contains(&id).then_some(Value::Unknown);
    };
    if id == FieldId::PrivCapGained {
        let gained = new.cap_effective & !old.cap_effective;
        return Some(list(Items::Bits(gained, CAPABILITIES), true));
    }
    credential(old, id, &OLD)
}

/// The fields of credentials in one order.
const OLD: [FieldId; 10] = [
    FieldId::PrivOldUid,
    FieldId::PrivOldGid,
    FieldId::PrivOldSuid,
    FieldId::PrivOldSgid,
    FieldId::PrivOldEuid,
    FieldId::PrivOldEgid,
    FieldId::PrivOldFsuid,
    FieldId::PrivOldFsgid,
    FieldId::PrivOldCapEffective,
    FieldId::PrivOldCapPermitted,
];
const NEW: [FieldId; 10] = [
    FieldId::PrivNewUid,
    FieldId::PrivNewGid,
    FieldId::PrivNewSuid,
    FieldId::PrivNewSgid,
    FieldId::PrivNewEuid,
    FieldId::PrivNewEgid,
    FieldId::PrivNewFsuid,
    FieldId::PrivNewFsgid,
    FieldId::PrivNewCapEffective,
    FieldId::PrivNewCapPermitted,
];

fn credential(creds: &Credentials, id: FieldId, fields: &[FieldId; 10]) -> Option<Value<'static>> {
    let values = [
        creds.uid.into(),
        creds.gid.into(),
        creds.suid.into(),
        creds.sgid.into(),
        creds.euid.into(),
        creds.egid.into(),
        creds.fsuid.into(),
        creds.fsgid.into(),
        creds.cap_effective,
        creds.cap_permitted,
    ];
    let place = fields.iter().position(|field| *field == id)?;
    Some(int(values[place]))
}

fn namespaces(privilege: &Privilege, id: FieldId) -> Option<Value<'static>> {
    let ns = privilege.ns.as_ref();
    match id {
        FieldId::NsTypes => {
            let types = privilege.namespaces.unwrap_or_default().into();
            let known = !privilege.namespaces_unknown;
            Some(list(Items::Bits(types, NAMESPACES), known))
        }
        FieldId::NsMnt => nonzero(ns?.mnt.into()),
        FieldId::NsPid => nonzero(ns?.pid.into()),
        FieldId::NsNet => nonzero(ns?.net.into()),
        FieldId::NsUser => nonzero(ns?.user.into()),
        _ => None,
    }
}

fn memory(privilege: &Privilege, id: FieldId) -> Option<Value<'static>> {
    match id {
        FieldId::MemAddr => privilege.address.map(int),
        FieldId::MemLen => Some(int(privilege.length)),
        FieldId::MemProt => {
            let bits = privilege.protection.into();
            Some(list(Items::Bits(bits, PROTECTIONS), true))
        }
        _ => None,
    }
}

fn prctl(privilege: &Privilege, id: FieldId) -> Option<Value<'_>> {
    let names = privilege.option == SET_NAME;
    match id {
        FieldId::PrctlOption => {
            let option = privilege.option;
            let known = OPTIONS.iter().find(|(known, _)| *known == option)?;
            Some(text(known.1))
        }
        // Of a name they are an address.
        FieldId::PrctlArg2 if !names => Some(int(privilege.second)),
        FieldId::PrctlArg3 if !names => Some(int(privilege.third)),
        FieldId::PrctlName if names => optional(privilege.name.as_deref(), 0),
        _ => None,
    }
}

fn reach(privilege: &Privilege, kind: Kind, id: FieldId) -> Option<Value<'_>> {
    match id {
        FieldId::Result => Some(Value::Int(privilege.result?.into())),
        FieldId::TargetGiven => Some(Value::Int(privilege.target_given.into())),
        FieldId::TargetFd if kind == Kind::PidfdGetfd => Some(Value::Int(privilege.request.into())),
        FieldId::PtraceRequest if kind == Kind::Ptrace => {
            let request = REQUESTS
                .iter()
                .find(|(known, _)| *known == privilege.request)?;
            Some(text(request.1))
        }
        _ => match &privilege.target {
            Some(target) => of_target(target, id),
            // A call that succeeded reached somebody, who has ended since.
            None if privilege.result == Some(0) && TARGET.contains(&id) => Some(Value::Unknown),
            None => None,
        },
    }
}

/// What is unknown of a target that has ended.
const TARGET: [FieldId; 8] = [
    FieldId::TargetPid,
    FieldId::TargetTid,
    FieldId::TargetStart,
    FieldId::TargetExecId,
    FieldId::TargetUid,
    FieldId::TargetEuid,
    FieldId::TargetExePath,
    FieldId::TargetExeName,
];

fn of_target(target: &Target, id: FieldId) -> Option<Value<'_>> {
    let path = target.exe_path.as_deref();
    Some(match id {
        FieldId::TargetPid => Value::Int(target.pid.into()),
        FieldId::TargetTid => Value::Int(target.tid.into()),
        FieldId::TargetStart => int(target.start_ns),
        FieldId::TargetExecId => int(target.exec_id),
        FieldId::TargetUid => Value::Int(target.uid.into()),
        FieldId::TargetEuid => Value::Int(target.euid.into()),
        FieldId::TargetExePath => optional(path, target.exe_flaws)?,
        FieldId::TargetExeName => match path {
            // A truncated path has lost its start: the name still stands.
            Some(path) if target.exe_flaws & UNKNOWN_TEXT & !TRUNCATED == 0 => {
                text(file_name(path))
            }
            _ => optional(path, target.exe_flaws)?,
        },
        FieldId::TargetExeFlaws => list(Items::Flaws(target.exe_flaws), true),
        _ => return None,
    })
}

const TRUNCATED: u32 = sumun_abi::record::FLAW_TRUNCATED as u32;
