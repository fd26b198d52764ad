//! What the probe says of the running kernel agrees with what loading finds.

use std::{collections::BTreeMap, fs};

use serde_json::json;
use sumun_agent::kernel::{canary, handles};
use sumun_policy::plan::is_own;
use sumun_proto::{
    catalogue::{KINDS, family, kind_name},
    v1::Kind,
};

use crate::bench;

#[test]
fn the_probe_loads_every_hook_and_leaves_nothing() {
    if let Some(reason) = bench::unable() {
        eprintln!("SKIPPED the_probe_loads_every_hook_and_leaves_nothing: {reason}");
        return;
    }
    let _turn = bench::turn();
    let report = sumun_agent::kernel::probe();
    eprintln!("{report:#?}");
    assert!(report.btf.available && report.object.available && report.ring_buffer.available);
    assert!(report.task_iterator.available);
    assert!(report.missing_capabilities.is_empty());
    assert!(!report.hooks.is_empty());
    for hook in &report.hooks {
        assert!(hook.available, "{hook:?}");
    }
    let name = format!("/sys/fs/bpf/sumun-probe-{}", std::process::id());
    assert!(!std::path::Path::new(&name).exists());
}

/// What the page on kernels is made of: `tests/tests/kernels` reads the line, of this kernel and of those in virtual machines.
#[test]
fn what_this_kernel_gives_is_told() {
    let Some(mut bench) = bench::take("facts") else {
        return;
    };
    let kernel = bench.kernel();
    kernel.try_doors().unwrap();
    // What denies where the root of all cgroups is out of reach is to be among the instructions.
    kernel.leave_out_cgroups(true).unwrap();
    kernel.leave_out_cgroups(false).unwrap();
    let mut kinds: BTreeMap<&str, (&str, Option<String>)> = BTreeMap::new();
    for hook in kernel.hooks() {
        let cgroup = ["udp_", "dns_", "cgroup_sysctl"];
        let rung = match cgroup.iter().any(|name| hook.hook.starts_with(name)) {
            true => "cgroup",
            false => "tracepoint",
        };
        for kind in &hook.kinds {
            let (_, reason) = kinds.entry(kind).or_insert((rung, None));
            *reason = reason.take().or(hook.reason.clone());
        }
    }
    for point in kernel.points() {
        if point.reason.is_none() {
            kinds.insert(kind_name(point.kind), ("fentry", None));
        }
    }
    if handles::try_out().is_ok() {
        for name in ["rename", "unlink"] {
            let (rung, _) = kinds.get_mut(name).unwrap();
            if *rung == "tracepoint" {
                *rung = "fanotify";
            }
        }
    }
    // The agent tries its doors before it attaches, and then it is among the hooks.
    let doors = kernel.doors();
    let sysctl = doors.iter().find(|door| door.kind == Kind::Sysctl).unwrap();
    kinds.insert("sysctl", ("cgroup", sysctl.reason.clone()));
    // What the agent looks for by itself comes from no hook.
    let own = KINDS.iter().filter(|(_, kind)| is_own(*kind));
    kinds.extend(own.map(|(name, _)| (*name, ("agent", None))));
    let told = |name: &str| KINDS.iter().find(|(known, _)| *known == name);
    let kinds: Vec<_> = kinds
        .into_iter()
        .map(|(name, (rung, reason))| {
            let family = family(told(name).unwrap().1);
            json!({"kind": name, "family": family, "rung": rung, "reason": reason})
        })
        .collect();
    assert_eq!(kinds.len(), KINDS.len(), "each kind comes from somewhere");
    let facts = json!({
        "release": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim(),
        "kinds": kinds,
        "doors": kernel.doors(),
        "fanotify": canary::try_out().err(),
        "instructions": kernel.instructions().into_iter().collect::<BTreeMap<_, _>>(),
    });
    println!("FACTS {facts}");
}
