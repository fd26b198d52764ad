//! Random events of the families that change privileges and the kernel.

use sumun_abi::event::file::CHANGE_OBJECT;
use sumun_abi::record::{FLAW_LOST, FLAW_TRUNCATED};
use sumun_proto::v1::{
    Credentials, Dns, File, KernelChange, Kind, Namespaces, Network, Privilege, Source, Target,
    Workload,
};

use super::{Dice, PATHS};

pub(super) const CALLS: &[&str] = &["", "chmod", "mount", "umount2", "setresuid", "clone"];
const WORDS: &[&str] = &[
    "",
    "sh",
    "tmpfs",
    "kprobe",
    "/etc/passwd",
    "security.capability",
];

/// A text that can be missing or cut off.
fn word(dice: &mut Dice<'_>, unknowns: bool) -> (Option<String>, u32) {
    if dice.chance(3) {
        let lost = unknowns && dice.chance(8);
        return (None, if lost { FLAW_LOST.into() } else { 0 });
    }
    let cut = unknowns && dice.chance(4);
    let flaws = if cut { FLAW_TRUNCATED.into() } else { 0 };
    (Some(dice.pick(WORDS).to_owned()), flaws)
}

/// A file that a call has changed.
pub(super) fn changed(dice: &mut Dice<'_>, mut file: File, unknowns: bool) -> File {
    file.flags = if dice.chance(8) { CHANGE_OBJECT } else { 0 };
    file.dev = u32::from(file.flags != 0 && dice.chance(8));
    file.ino = file.dev.into();
    file.change = Some(dice.pick(&[0o644, 0o4755, 0o2711, 0]));
    file.owner = (!dice.chance(4)).then(|| dice.pick(&[0, 1000]));
    file.group = (!dice.chance(4)).then(|| dice.pick(&[0, 1000]));
    (file.xattr, file.xattr_flaws) = word(dice, unknowns);
    file
}

fn credentials(dice: &mut Dice<'_>) -> Credentials {
    Credentials {
        uid: dice.pick(&[0, 1, 1000]),
        euid: dice.pick(&[0, 1, 1000]),
        cap_effective: dice.pick(&[0, 1, 1 << 21, u64::MAX]),
        cap_permitted: dice.pick(&[0, 1]),
        ..Credentials::default()
    }
}

pub(super) fn privilege(dice: &mut Dice<'_>, unknowns: bool) -> Privilege {
    let old = !(unknowns && dice.chance(4));
    let flaws = if unknowns && dice.chance(4) {
        dice.pick(&[FLAW_LOST, FLAW_TRUNCATED]).into()
    } else {
        0
    };
    let target = (!dice.chance(4)).then(|| Target {
        pid: dice.pick(&[1, 22, 1000]),
        uid: dice.pick(&[0, 1000]),
        exe_path: (!dice.chance(3)).then(|| dice.pick(PATHS).to_owned()),
        exe_flaws: flaws,
        ..Target::default()
    });
    // A call that succeeded reached somebody.
    let result = if target.is_none() && !unknowns {
        -3
    } else {
        dice.pick(&[0, -1])
    };
    Privilege {
        old: old.then(|| credentials(dice)),
        new: Some(credentials(dice)),
        target,
        target_given: 22,
        request: dice.pick(&[0, 5, 16, 99]),
        result: Some(result),
        namespaces: Some(dice.pick(&[0, 0x2000_0000, 0x7e02_0080])),
        namespaces_unknown: unknowns && dice.chance(4),
        ns: Some(Namespaces::default()),
        address: Some(4096),
        length: dice.pick(&[0, 22, 4096]),
        protection: dice.pick(&[6, 7]),
        option: dice.pick(&[4, 15, 28, 99]),
        second: dice.pick(&[0, 1, 0x8_0800, u64::MAX]),
        third: dice.pick(&[0, 22]),
        name: (!dice.chance(3)).then(|| dice.pick(WORDS).to_owned()),
    }
}

pub(super) fn kernel(dice: &mut Dice<'_>, unknowns: bool) -> KernelChange {
    let (name, lost) = word(dice, false);
    let (parameters, parameters_flaws) = word(dice, unknowns);
    let (source, source_flaws) = word(dice, unknowns);
    let (target, target_flaws) = word(dice, unknowns);
    let (fs, fs_flaws) = word(dice, unknowns);
    let (value, value_flaws) = word(dice, unknowns);
    KernelChange {
        result: dice.chance(12).then(|| dice.pick(&[0, -1])),
        name_unknown: unknowns && name.is_none() && lost == 0,
        name,
        parameters,
        parameters_flaws,
        command: Some(dice.pick(&[5, 28, 99])),
        program_type: (!(unknowns && dice.chance(3))).then(|| dice.pick(&[2, 26, 999])),
        program_id: dice.pick(&[0, 22]),
        attach_type: Some(0),
        source,
        source_flaws,
        target,
        target_flaws,
        fs,
        fs_flaws,
        flags: Some(dice.pick(&[0, 1, 4096 | 16384])),
        entries: None,
        signature: dice.chance(8).then(|| dice.pick(&[0, 1, 2])),
        value,
        value_flaws,
        name_flaws: 0,
        check: dice.pick(&["hidden_process", "kprobe", "sh"]).to_owned(),
    }
}

/// What processes of the same batch can be part of. What a runtime tells of them is no part of stored events.
pub(super) fn workloads() -> Vec<Workload> {
    let container = Workload {
        id: 2,
        kind: "container".into(),
        cgroup: "/docker/sh".into(),
        container_id: "sh".into(),
        runtime: "docker".into(),
        pod_uid: "22".into(),
        ..Workload::default()
    };
    let unit = Workload {
        id: 1000,
        kind: "session".into(),
        cgroup: "/bin/sh".into(),
        unit: "sh".into(),
        slice: "tmpfs".into(),
        login_uid: Some(1000),
        login_session: "1".into(),
        ..Workload::default()
    };
    vec![container, unit]
}

/// UDP, a Unix socket, an unusual socket, or a DNS server.
pub(super) fn talk(dice: &mut Dice<'_>, kind: Kind, network: Network, unknowns: bool) -> Network {
    // Of what is told with an address it is always known.
    let dst_ip = match network.dst_ip.is_empty() {
        true => vec![10, 0, 0, 1],
        false => network.dst_ip,
    };
    match kind {
        Kind::ConnectUnix => {
            let lost = unknowns && dice.chance(4);
            Network {
                dst_flaws: if lost { FLAW_LOST.into() } else { 0 },
                dst_path: Some(dice.pick(PATHS).to_owned()).filter(|_| !lost),
                dst_source: dice.pick(&[Source::Object, Source::Caller]).into(),
                result: Some(dice.pick(&[0, -13])),
                r#type: dice.pick(&[0, 1, 2]),
                ..Network::default()
            }
        }
        Kind::Socket => Network {
            family: dice.pick(&[2, 17, 99]),
            r#type: dice.pick(&[3, 2]),
            protocol: dice.pick(&[1, 22, 80]),
            result: Some(dice.pick(&[0, -1])),
            ..Network::default()
        },
        Kind::Dns => Network {
            dst_ip,
            dst_port: 53,
            protocol: dice.pick(&[6, 17]),
            ..Network::default()
        },
        _ => Network {
            src_ip: Vec::new(),
            dst_ip,
            dst_name: dice.chance(8).then(|| dice.pick(WORDS).to_owned()),
            protocol: 17,
            result: None,
            flags: 0,
            folded: dice.pick(&[0, 22]),
            ..network
        },
    }
}

pub(super) fn dns(dice: &mut Dice<'_>, unknowns: bool) -> Dns {
    let response = dice.chance(8);
    Dns {
        response,
        question_name: (!dice.chance(2)).then(|| dice.pick(WORDS).to_owned()),
        question_type: dice.pick(&[1, 28, 999]),
        rcode: (response && !(unknowns && dice.chance(2))).then(|| dice.pick(&[0, 3, 99])),
        answers: (0..dice.roll(3))
            .map(|_| dice.pick(WORDS).to_owned())
            .collect(),
        flaws: if unknowns && dice.chance(4) {
            FLAW_TRUNCATED.into()
        } else {
            0
        },
    }
}
