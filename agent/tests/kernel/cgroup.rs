//! Cgroups on the running kernel: that they are told by id and path before any process is in them, in the hierarchy that
//! names processes' cgroups and in no other.

use std::{collections::HashMap, fs, os::unix::fs::MetadataExt, path::PathBuf, process::Command};

use sumun_abi::event::kind;
use sumun_agent::kernel::cgroup;
use sumun_agent::receive::record::{Body, Record};

use crate::bench::{self, Seen};

/// Where the hierarchy is mounted; with v1 controllers each has its own.
fn mount(controller: &str) -> PathBuf {
    match controller {
        "unified" => "/sys/fs/cgroup".into(),
        _ => PathBuf::from("/sys/fs/cgroup").join(controller),
    }
}

/// Kind, id and path of what was told of cgroups of this name.
fn told(seen: &[Seen], name: &str) -> Vec<(u16, u64, String)> {
    seen.iter()
        .filter_map(|record| match record.body {
            Body::Cgroup(told) => {
                let header = Record::parse(&record.bytes).unwrap().header;
                Some((header.kind, told.id, record.text(told.path)))
            }
            _ => None,
        })
        .filter(|(_, _, path)| path.contains(name))
        .collect()
}

#[test]
fn a_cgroup_is_told_with_its_id_before_the_processes_in_it() {
    let Some(mut bench) = bench::take("cgroup") else {
        return;
    };
    let controller = bench.kernel().cgroup_controller();
    let name = format!("sumun-cgroup-{}", std::process::id());
    let (top, below) = (
        mount(controller).join(&name),
        mount(controller).join(&name).join("below"),
    );
    fs::create_dir(&top).unwrap();
    fs::create_dir(&below).unwrap();
    let ids = [&top, &below].map(|path| fs::metadata(path).unwrap().ino());
    let mut walked = HashMap::new();
    let found = cgroup::walk(
        controller,
        |id, path| {
            walked.insert(id, path.to_owned());
        },
        |_| {},
    );
    assert_eq!(found.unwrap().cgroups, walked.len());
    assert_eq!(walked[&1], "/");
    assert_eq!(walked[&ids[0]], format!("/{name}"));
    assert_eq!(walked[&ids[1]], format!("/{name}/below"));

    let procs = below.join("cgroup.procs");
    // The shell joins the cgroup and becomes the program.
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "echo $$ > \"$0\" && exec /bin/true"])
        .arg(&procs);
    let mut child = command.spawn().unwrap();
    let pid = child.id();
    assert!(child.wait().unwrap().success());
    fs::remove_dir(&below).unwrap();
    fs::remove_dir(&top).unwrap();
    let seen = bench.settle();
    let wanted = [
        (kind::CGROUP_MKDIR, ids[0], format!("/{name}")),
        (kind::CGROUP_MKDIR, ids[1], format!("/{name}/below")),
        (kind::CGROUP_RMDIR, ids[1], format!("/{name}/below")),
        (kind::CGROUP_RMDIR, ids[0], format!("/{name}")),
    ];
    let all = told(&seen, &name);
    let short = |told: &[(u16, u64, String)]| -> Vec<(u16, u64)> {
        told.iter().map(|(kind, id, _)| (*kind, *id)).collect()
    };
    assert_eq!(short(&all), short(&wanted));
    // Of what is being removed only the number counts.
    assert_eq!(all[..2], wanted[..2]);
    let made = seen
        .iter()
        .position(|record| matches!(record.body, Body::Cgroup(told) if told.id == ids[1]));
    let inside = seen.iter().position(|record| {
        matches!(record.body, Body::Exec(exec) if exec.actor.pid == pid && exec.actor.cgroup_id == ids[1])
    });
    assert!(made.unwrap() < inside.unwrap());
}

#[test]
fn a_rename_is_told() {
    let Some(mut bench) = bench::take("cgroup-rename") else {
        return;
    };
    let controller = bench.kernel().cgroup_controller();
    if controller == "unified" {
        eprintln!("SKIPPED a_rename_is_told: only version 1 renames cgroups");
        return;
    }
    let name = format!("sumun-renamed-{}", std::process::id());
    let (from, to) = (
        mount(controller).join(format!("{name}-a")),
        mount(controller).join(format!("{name}-b")),
    );
    fs::create_dir(&from).unwrap();
    let id = fs::metadata(&from).unwrap().ino();
    fs::rename(&from, &to).unwrap();
    fs::remove_dir(&to).unwrap();
    let all = told(&bench.settle(), &name);
    assert_eq!(all[0], (kind::CGROUP_MKDIR, id, format!("/{name}-a")));
    assert_eq!(all[1], (kind::CGROUP_RENAME, id, format!("/{name}-b")));
}
