//! Process life on the running kernel: exact paths, arguments, parents and ends.

use std::{
    ffi::OsString,
    os::unix::{ffi::OsStringExt, fs::PermissionsExt, process::CommandExt, process::ExitStatusExt},
    process::Command,
};

use crate::bench;
use sumun_abi::record::{ARGS_MAX, FLAW_TRUNCATED, SOURCE_COPY, SOURCE_OBJECT};
use sumun_agent::receive::record::Body;

#[test]
fn exec_names_the_file_and_every_argument() {
    let Some(mut bench) = bench::take("exec") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("a program");
    std::fs::copy("/bin/true", &program).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&program, &link).unwrap();
    let odd = OsString::from_vec(vec![b'x', 0xff, b'\n', b'\\']);
    let mut child = Command::new(&link)
        .arg0("another name")
        .args(["", "two words"])
        .arg(&odd)
        .current_dir(dir.path())
        .spawn()
        .unwrap();
    let pid = child.id();
    child.wait().unwrap();

    let seen = bench.until("exec and exit", |seen| {
        seen.iter()
            .any(|r| matches!(r.body, Body::Exit(exit) if exit.actor.pid == pid))
    });
    let execs: Vec<_> = seen
        .iter()
        .filter_map(|r| match r.body {
            Body::Exec(exec) if exec.actor.pid == pid => Some((r, exec)),
            _ => None,
        })
        .collect();
    let [(record, exec)] = execs[..] else {
        panic!("{} execs", execs.len())
    };
    assert_eq!(record.text(exec.exe), program.to_str().unwrap());
    assert_eq!((exec.exe.source, exec.exe.flaws), (SOURCE_OBJECT, 0));
    assert_eq!(record.text(exec.cwd), dir.path().to_str().unwrap());
    let start = usize::from(exec.args.offset);
    let arguments = &record.bytes[start..start + usize::from(exec.args.len)];
    assert_eq!(arguments, b"another name\0\0two words\0x\xff\n\\\0");
    assert_eq!((exec.args.source, exec.args.flaws), (SOURCE_COPY, 0));
    assert_eq!(exec.args_total, arguments.len() as u64);
    assert_eq!(exec.parent_pid, std::process::id());
    assert_eq!((exec.actor.uid, exec.actor.euid), (0, 0));
    assert_ne!(exec.cap_effective, 0);
    assert_ne!(exec.actor.cgroup_id, 0);
    let meta = std::fs::metadata(&program).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((exec.exe_ino, exec.exe_nlink), (meta.ino(), 1));
    let own = |name: &str| {
        let link = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        let text = link.to_str().unwrap().to_owned();
        text[text.find('[').unwrap() + 1..text.len() - 1]
            .parse::<u32>()
            .unwrap()
    };
    assert_eq!(
        (
            exec.ns.mnt,
            exec.ns.pid,
            exec.ns.net,
            exec.ns.user,
            exec.ns.uts,
            exec.ns.ipc,
            exec.ns.cgroup
        ),
        (
            own("mnt"),
            own("pid"),
            own("net"),
            own("user"),
            own("uts"),
            own("ipc"),
            own("cgroup")
        )
    );
    let forks: Vec<_> = seen
        .iter()
        .filter_map(|r| match r.body {
            Body::Fork(fork) if fork.child.pid == pid => Some(fork),
            _ => None,
        })
        .collect();
    let [fork] = forks[..] else {
        panic!("{} forks", forks.len())
    };
    assert_eq!(fork.actor.pid, std::process::id());
    assert_eq!(fork.child.start_ns, exec.actor.start_ns);
    assert_ne!(fork.child.image, exec.actor.image);
    assert_eq!(exec.parent_start_ns, fork.actor.start_ns);
}

#[test]
fn long_arguments_are_cut_and_marked() {
    let Some(mut bench) = bench::take("args") else {
        return;
    };
    let long = "y".repeat(100_000);
    let mut child = Command::new("/bin/true").arg(&long).spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    let seen = bench.until("the exec", |seen| {
        seen.iter()
            .any(|r| matches!(r.body, Body::Exec(exec) if exec.actor.pid == pid))
    });
    for record in &seen {
        if let Body::Exec(exec) = record.body
            && exec.actor.pid == pid
        {
            assert_eq!(usize::from(exec.args.len), ARGS_MAX);
            assert_eq!(exec.args.flaws, FLAW_TRUNCATED);
            assert_eq!(exec.args_total, 100_000 + 1 + "/bin/true".len() as u64 + 1);
            let wanted = format!("/bin/true\0{long}");
            assert_eq!(record.text(exec.args), wanted[..ARGS_MAX]);
        }
    }
}

#[test]
fn a_script_is_its_interpreter_with_the_script_as_argument() {
    let Some(mut bench) = bench::take("script") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, "#!/bin/sh -e\nexit 3\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = Command::new(&script).spawn().unwrap();
    let pid = child.id();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let seen = bench.until("the exit", |seen| {
        seen.iter()
            .any(|r| matches!(r.body, Body::Exit(exit) if exit.actor.pid == pid))
    });
    let shell = std::fs::canonicalize("/bin/sh").unwrap();
    for record in &seen {
        match record.body {
            Body::Exec(exec) if exec.actor.pid == pid => {
                assert_eq!(record.text(exec.exe), shell.to_str().unwrap());
                assert_eq!(exec.exe_flags, sumun_abi::event::process::EXE_INTERPRETED);
                let wanted = format!("/bin/sh\0-e\0{}\0", script.display());
                assert_eq!(record.text(exec.args), wanted);
            }
            Body::Exit(exit) if exit.actor.pid == pid => assert_eq!(exit.code, 3 << 8),
            _ => {}
        }
    }
}

#[test]
fn each_process_ends_once_and_threads_are_no_processes() {
    let Some(mut bench) = bench::take("exit") else {
        return;
    };
    let mut pids = Vec::new();
    for round in 0..bench::times(200) {
        // Threads that leave together, by exit of the process and by a signal.
        let script = if round % 2 == 0 {
            "exit 7"
        } else {
            "kill -9 $$"
        };
        let mut child = Command::new("/bin/sh")
            .args(["-c", script])
            .spawn()
            .unwrap();
        pids.push((child.id(), child.wait().unwrap().into_raw() as u32));
    }
    let threads: Vec<_> = (0..50).map(|_| std::thread::spawn(|| {})).collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    let seen = bench.settle();
    for (pid, status) in pids {
        let codes: Vec<u32> = seen
            .iter()
            .filter_map(|r| match r.body {
                Body::Exit(exit) if exit.actor.pid == pid => Some(exit.code),
                _ => None,
            })
            .collect();
        assert_eq!(codes, [status], "of pid {pid}");
    }
    let own = std::process::id();
    assert!(
        !seen
            .iter()
            .any(|r| matches!(r.body, Body::Fork(fork) if fork.child.pid == own))
    );
    assert!(
        !seen
            .iter()
            .any(|r| matches!(r.body, Body::Exit(exit) if exit.actor.pid == own))
    );
}

#[test]
fn the_iterator_finds_every_process_that_runs() {
    let Some(mut bench) = bench::take("tasks") else {
        return;
    };
    let mut children: Vec<_> = (0..300)
        .map(|n| {
            Command::new("/bin/sleep")
                .arg(format!("{}", 1000 + n))
                .spawn()
                .unwrap()
        })
        .collect();
    let mut found = std::collections::HashMap::new();
    let count = bench
        .kernel()
        .bootstrap_tasks(|bytes| {
            let record = sumun_agent::receive::record::Record::parse(bytes).unwrap();
            let Body::Task(task) = record.body else {
                panic!("not a task")
            };
            let text = |span| String::from_utf8_lossy(record.text(span)).into_owned();
            let old = found.insert(task.actor.pid, (task, text(task.exe), text(task.args)));
            assert!(old.is_none(), "pid {} twice", task.actor.pid);
        })
        .unwrap();
    let pids: Vec<u32> = children.iter().map(std::process::Child::id).collect();
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(count as usize, found.len());
    let sleep = std::fs::canonicalize("/bin/sleep").unwrap();
    let own = &found[&std::process::id()];
    assert_eq!(own.1, std::env::current_exe().unwrap().to_str().unwrap());
    for (n, pid) in pids.iter().enumerate() {
        let (task, exe, args) = &found[pid];
        assert_eq!(exe, sleep.to_str().unwrap());
        assert_eq!(*args, format!("/bin/sleep\0{}\0", 1000 + n));
        assert_eq!(task.parent_pid, std::process::id());
        assert_eq!(task.parent_start_ns, own.0.actor.start_ns);
    }
    assert!(
        found.contains_key(&1),
        "pid 1 is missing among {:?}",
        found.keys()
    );
}
