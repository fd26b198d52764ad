//! Credentials, reaching into other processes, namespaces, memory that can hold code.

use sumun_abi::event::file::CALL_COMPAT;
use sumun_abi::event::privilege::{
    CREDS_BEFORE_UNKNOWN, Control, Credentials, Creds, MEMORY_FILE, Memory, Reach, SPACES_UNKNOWN,
    Spaces,
};
use sumun_proto::identity::exec_id;
use sumun_proto::v1::{self, Event, File, Kind, Namespaces, Privilege, Target};

use super::file::{failed, text_of};
use super::kernel::name;
use super::record::Record;
use crate::kernel::syscalls;

/// include/uapi/linux/prctl.h.
const PR_SET_PTRACER: u32 = 0x5961_6d61;

/// An event of this family.
fn event(kind: Kind, tid: u32, (number, flags): (u32, u32), privilege: Privilege) -> Event {
    Event {
        kind: kind.into(),
        tid,
        call: syscalls::name(number, flags & CALL_COMPAT != 0)
            .unwrap_or_default()
            .into(),
        privilege: Some(privilege),
        ..Event::default()
    }
}

/// A call that changed the credentials of its thread or its groups, or was to.
#[must_use]
pub fn credentials(kind: Kind, record: &Credentials) -> Event {
    let known = record.flags & CREDS_BEFORE_UNKNOWN == 0;
    let privilege = Privilege {
        old: known.then(|| creds(&record.before)),
        new: Some(creds(&record.after)),
        ..Privilege::default()
    };
    let call = (record.number, record.flags);
    Event {
        result: failed(record.result),
        failed: record.result < 0,
        ..event(kind, record.actor.tid, call, privilege)
    }
}

fn creds(creds: &Creds) -> v1::Credentials {
    v1::Credentials {
        uid: creds.uid,
        gid: creds.gid,
        suid: creds.suid,
        sgid: creds.sgid,
        euid: creds.euid,
        egid: creds.egid,
        fsuid: creds.fsuid,
        fsgid: creds.fsgid,
        cap_inheritable: creds.cap_inheritable,
        cap_permitted: creds.cap_permitted,
        cap_effective: creds.cap_effective,
    }
}

/// ptrace, process_vm_readv and process_vm_writev, pidfd_getfd.
#[must_use]
pub fn reach(kind: Kind, record: &Record<'_>, reach: &Reach) -> Event {
    let (exe_path, _, exe_flaws) = text_of(record, reach.exe);
    let target = reach.target;
    let privilege = Privilege {
        target: (target.pid != 0).then(|| Target {
            pid: target.pid,
            tid: target.tid,
            start_ns: target.start_ns,
            exec_id: exec_id(target.pid, target.start_ns, target.image),
            uid: target.uid,
            euid: target.euid,
            exe_path,
            exe_flaws,
        }),
        target_given: reach.given,
        request: reach.request,
        result: Some(reach.result),
        ..Privilege::default()
    };
    event(
        kind,
        reach.actor.tid,
        (reach.number, reach.flags),
        privilege,
    )
}

/// unshare, clone with new namespaces, setns.
#[must_use]
pub fn spaces(kind: Kind, spaces: &Spaces) -> Event {
    let unknown = spaces.flags & SPACES_UNKNOWN != 0;
    let ns = spaces.ns;
    let privilege = Privilege {
        namespaces: (!unknown).then_some(spaces.namespaces),
        namespaces_unknown: unknown,
        ns: Some(Namespaces {
            mnt: ns.mnt,
            pid: ns.pid,
            net: ns.net,
            user: ns.user,
            uts: ns.uts,
            ipc: ns.ipc,
            cgroup: ns.cgroup,
            pid_inside: ns.pid_inside,
        }),
        ..Privilege::default()
    };
    let call = (spaces.number, spaces.flags);
    Event {
        result: failed(spaces.result),
        failed: spaces.result < 0,
        ..event(kind, spaces.actor.tid, call, privilege)
    }
}

/// memfd_create, and memory that can be written and executed at once.
#[must_use]
pub fn memory(kind: Kind, record: &Record<'_>, memory: &Memory) -> Event {
    let mut privilege = Privilege::default();
    if kind == Kind::MapWx {
        privilege.address = Some(memory.address);
        (privilege.length, privilege.protection) = (memory.len, memory.protection);
    }
    let call = (memory.number, memory.flags);
    let mut event = event(kind, memory.actor.tid, call, privilege);
    if memory.flags & MEMORY_FILE != 0 {
        let (path, source, flaws) = text_of(record, memory.path);
        event.file = Some(File {
            path,
            source,
            flaws,
            dev: memory.dev,
            ino: memory.ino,
            mode: memory.mode,
            ..File::default()
        });
    }
    event
}

/// prctl and userfaultfd.
#[must_use]
pub fn control(kind: Kind, control: &Control) -> Event {
    let privilege = Privilege {
        result: Some(control.result),
        option: control.option,
        second: match control.option {
            // The kernel takes the low half (security/yama/yama_lsm.c, `yama_task_prctl`): -1 has several forms.
            PR_SET_PTRACER => i64::from(control.second as i32).cast_unsigned(),
            _ => control.second,
        },
        third: control.third,
        name: name(&control.name),
        ..Privilege::default()
    };
    let call = (control.number, control.flags);
    event(kind, control.actor.tid, call, privilege)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_trace_is_one_number_however_it_is_written() {
        let given = |option, second| {
            let none = sumun_abi::plain::read::<Control>(&[0; size_of::<Control>()]);
            let given = Control {
                option,
                second,
                ..none.expect("it is plain")
            };
            let event = control(Kind::Prctl, &given);
            event.privilege.map(|privilege| privilege.second)
        };
        for any in [u64::MAX, 0xffff_ffff, 0x1_ffff_ffff] {
            assert_eq!(given(PR_SET_PTRACER, any), Some(u64::MAX));
            assert_eq!(given(4, any), Some(any));
        }
        assert_eq!(given(PR_SET_PTRACER, 0x1_0000_0007), Some(7));
    }
}
