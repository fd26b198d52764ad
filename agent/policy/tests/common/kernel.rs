//! A model of the kernel's filter.

use sumun_abi::event::file::{
    ACCESS_APPEND, ACCESS_READ, ACCESS_WRITE, FILE_DELETED, FILE_IN_IMAGE, FILE_NOT_IN_IMAGE,
    OPEN_CREATED, OPEN_TRUNCATE,
};
use sumun_policy::plan::{Clause, KindPlan, Ports};
use sumun_policy::{CheckedPolicy, check_file};
use sumun_proto::v1::Kind;
use sumun_proto::{FieldId, Value, View, catalogue, text};

/// A policy of one rule on these kinds.
pub(crate) fn policy(when: &str, kinds: &[Kind]) -> CheckedPolicy {
    let on: Vec<String> = kinds
        .iter()
        .map(|kind| format!("{:?}", catalogue::kind_name(*kind)))
        .collect();
    let file = format!(
        "[policy]\nname = \"p\"\n[[rule]]\nid = \"r\"\non = [{}]\nwhen = '''\n{when}'''\n",
        on.join(", ")
    );
    let check = check_file("p.toml", &file);
    assert!(check.errors.is_empty(), "{file}\n{check}");
    check.policy.expect("no errors")
}

/// The kernel side, as the plan's documentation has it: a condition whose
/// field cannot be judged holds, one whose field is not there does not.
pub(crate) fn passes(plan: &KindPlan, view: &View<'_>) -> bool {
    match plan {
        KindPlan::None => false,
        KindPlan::All => true,
        KindPlan::Clauses(clauses) => clauses.iter().any(|clause| holds(clause, view)),
    }
}

/// The field that a condition on the path is about.
fn path_of(kind: Kind) -> FieldId {
    match kind {
        Kind::ConnectUnix => FieldId::NetDstPath,
        _ => FieldId::FilePath,
    }
}

fn holds(clause: &Clause, view: &View<'_>) -> bool {
    let bytes = |field| match view.get(field) {
        Value::Str(value) => Some(Some(text::to_bytes(&value).expect("events are in form"))),
        Value::Unknown => Some(None),
        _ => None,
    };
    let one_of = |field, test: &dyn Fn(&[u8]) -> bool| match bytes(field) {
        Some(Some(value)) => test(&value),
        Some(None) => true,
        None => false,
    };
    let listed = |list: &Option<Vec<Vec<u8>>>, value: &[u8]| {
        list.as_ref()
            .is_some_and(|list| list.iter().any(|item| item == value))
    };
    let path = clause.path_prefixes.is_none() && clause.path_exact.is_none()
        || one_of(path_of(view.kind()), &|path| {
            listed(&clause.path_exact, path)
                || clause
                    .path_prefixes
                    .as_ref()
                    .is_some_and(|list| list.iter().any(|prefix| path.starts_with(prefix)))
        });
    let exe = clause.exe_names.is_none() && clause.exe_paths.is_none()
        || clause.exe_names.is_some()
            && one_of(FieldId::ProcExeName, &|name| {
                listed(&clause.exe_names, name)
            })
        || clause.exe_paths.is_some()
            && one_of(FieldId::ProcExePath, &|path| {
                listed(&clause.exe_paths, path)
            });
    let access = clause.access_any.is_none_or(|bits| {
        [
            (FieldId::FileAccessRead, ACCESS_READ),
            (FieldId::FileAccessWrite, ACCESS_WRITE),
            (FieldId::FileAccessAppend, ACCESS_APPEND),
            (FieldId::FileCreate, OPEN_CREATED),
            (FieldId::FileTrunc, OPEN_TRUNCATE),
            (FieldId::FileDeleted, FILE_DELETED),
            (FieldId::FileInImage, FILE_IN_IMAGE),
        ]
        .iter()
        .any(|(field, bit)| {
            bits & bit != 0 && matches!(view.get(*field), Value::Bool(true) | Value::Unknown)
        }) || bits & FILE_NOT_IN_IMAGE != 0
            && matches!(
                view.get(FieldId::FileInImage),
                Value::Bool(false) | Value::Unknown
            )
    });
    let port = |list: &Option<Vec<Ports>>, field| {
        list.as_ref().is_none_or(|list| match view.get(field) {
            Value::Int(port) => list
                .iter()
                .any(|ports| u16::try_from(port).is_ok_and(|port| ports.range().contains(&port))),
            Value::Unknown => true,
            _ => false,
        })
    };
    let net = |list: &Option<Vec<(std::net::IpAddr, u8)>>, field| {
        list.as_ref().is_none_or(|list| match view.get(field) {
            Value::Str(address) => list.iter().any(|(net, length)| {
                let net = ipnet::IpNet::new(*net, *length).expect("a valid length");
                assert_eq!(net, net.trunc(), "host bits are zero");
                net.contains(&address.parse::<std::net::IpAddr>().expect("an address"))
            }),
            Value::Unknown => true,
            _ => false,
        })
    };
    path && exe
        && access
        && port(&clause.src_ports, FieldId::NetSrcPort)
        && port(&clause.dst_ports, FieldId::NetDstPort)
        && net(&clause.src_nets, FieldId::NetSrcIp)
        && net(&clause.dst_nets, FieldId::NetDstIp)
}
