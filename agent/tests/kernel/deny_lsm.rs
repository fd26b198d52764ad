//! Calls that the kernel denies by BPF LSM, on the running kernel: judged from outside, by what stands in files and what runs.
//!
//! Where a kernel has no such door each test says so and why.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, fchown, lchown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use sumun_abi::event::{deny::Asked, kind, process::outcome};
use sumun_agent::receive::record::Body;
use sumun_policy::doors::DENIABLE;
use sumun_proto::{catalogue::kind_name, v1::Kind};

use crate::actor;
use crate::bench::{self, Seen};
use crate::points;
use crate::rules::{self, Ruled};

fn eperm<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
}

/// The one call that was asked about since, of a kind of record: denied.
#[track_caller]
pub(crate) fn denied(ruled: &mut Ruled, kind: u16, count: usize) -> Vec<(Seen, Asked)> {
    let seen = ruled.bench.settle();
    for record in &seen {
        let failed = match &record.body {
            Body::FailedOpen(open) => open.result,
            Body::Change(_, change) => change.result,
            Body::Mount(_, mount) => mount.result,
            _ => 0,
        };
        let own = record.actor().pid == std::process::id();
        assert!(
            !own || failed != -libc::EPERM,
            "told twice: {:?}",
            record.body
        );
    }
    let calls = seen.into_iter().filter_map(|record| match record.body {
        Body::Asked(asked) if asked.kind == u32::from(kind) => Some((record, asked)),
        _ => None,
    });
    let calls: Vec<_> = calls.collect();
    assert_eq!(calls.len(), count, "{calls:?}");
    assert!(
        calls
            .iter()
            .all(|(_, asked)| asked.verdict.outcome == outcome::DENIED && asked.verdict.rule == 0),
        "{calls:?}"
    );
    calls
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    // As the kernel names it.
    let path = fs::canonicalize(dir.path()).unwrap();
    (dir, path)
}

/// What is said of each kind is what is so: where BPF is no security module, its programs attach and do nothing.
#[test]
fn what_has_no_effect_is_not_promised() {
    let Some(mut bench) = bench::take("lsm-doors") else {
        return;
    };
    bench.kernel().try_doors().unwrap();
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let active = modules.trim().split(',').any(|module| module == "bpf");
    eprintln!("security modules: {}", modules.trim());
    let doors = bench.kernel().doors();
    assert_eq!(doors.len(), DENIABLE.len());
    for door in doors {
        let (kind, reason) = (kind_name(door.kind), door.reason.as_deref());
        eprintln!(
            "{kind:<12} {:<8} {}",
            door.rung,
            reason.unwrap_or("denied, as was tried")
        );
        assert_eq!(door.rung == "none", reason.is_some());
        if !modules.is_empty() && !active {
            assert_ne!(door.rung, "lsm", "{kind}");
            let only_lsm = !matches!(door.kind, Kind::Connect | Kind::Bind | Kind::Sysctl);
            // Before 6.1 it cannot even be attached: no trampoline takes structures, as its ids are.
            let without = match door.kind {
                Kind::Chown => ["attached without effect", "type STRUCT is unsupported"],
                _ => ["attached without effect"; 2],
            };
            let told = |reason: &str| without.iter().any(|words| reason.contains(words));
            assert_eq!(only_lsm, reason.is_some_and(told), "{kind}: {reason:?}");
        }
    }
}

#[test]
fn an_overlay_opens_what_is_below_for_everybody() {
    let Some(mut ruled) = Ruled::new("lsm-overlay", &[Kind::Open]) else {
        return;
    };
    let (_dir, dir) = folder();
    let test = "an_overlay_opens_what_is_below_for_everybody";
    let Some(merged) = points::overlay(test, &dir, "secret") else {
        return;
    };
    // The overlay opens it with all that this test has.
    ruled.load(
        "open",
        r#"file.name == "secret" && "CAP_SYS_CHROOT" in proc.cap_effective"#,
    );
    let secret = merged.join("secret");
    let with = fs::read_to_string(&secret);
    // Of this thread alone.
    let without = std::thread::scope(|scope| {
        let reads = scope.spawn(|| {
            actor::give_up(18);
            fs::read_to_string(&secret)
        });
        reads.join().unwrap()
    });
    let calls = denied(&mut ruled, kind::OPEN, 1);
    umount2(&merged, MntFlags::MNT_DETACH).unwrap();
    assert!(eperm(with), "it has the capability");
    assert_eq!(without.unwrap(), "content");
    let (record, asked) = &calls[0];
    assert!(record.text(asked.path).ends_with("/secret"));
}

#[test]
fn a_denied_open_gives_no_descriptor_and_truncates_nothing() {
    let Some(mut ruled) = Ruled::new("lsm-open", &[Kind::Open]) else {
        return;
    };
    let (_dir, dir) = folder();
    let secret = dir.join("secret");
    fs::write(&secret, "content").unwrap();
    fs::write(dir.join("other"), "content").unwrap();
    symlink(&secret, dir.join("link")).unwrap();
    ruled.load(
        "open",
        &format!(
            r#"file.path.startsWith("{}/") && file.name == "secret" && file.access.write"#,
            dir.display()
        ),
    );
    let writes = |path: &Path| OpenOptions::new().write(true).truncate(true).open(path);
    assert!(eperm(writes(&secret)));
    assert!(eperm(writes(&dir.join("link"))), "by a symbolic link");
    assert!(
        eperm(writes(
            &dir.join("../")
                .join(dir.file_name().unwrap())
                .join("./secret")
        )),
        "by a roundabout path"
    );
    assert_eq!(
        fs::read_to_string(&secret).unwrap(),
        "content",
        "it may be read"
    );
    writes(&dir.join("other")).unwrap();
    let calls = denied(&mut ruled, kind::OPEN, 3);
    for (record, asked) in &calls {
        assert_eq!(record.text(asked.path), secret.to_str().unwrap());
        assert_ne!(asked.ino, 0);
    }
}

#[test]
fn names_are_denied_by_the_kernels_own_objects() {
    let Some(mut ruled) = Ruled::new("lsm-names", &[Kind::Rename, Kind::Unlink, Kind::Link]) else {
        return;
    };
    let (_dir, dir) = folder();
    let at = |name: &str| dir.join(name);
    for name in ["kept", "free"] {
        fs::write(at(name), name).unwrap();
    }
    fs::create_dir(at("box")).unwrap();
    symlink(&dir, dir.join("around")).unwrap();
    let exact = |name: &str| format!(r#"file.path == "{}""#, at(name).display());

    ruled.load("unlink", &format!("{} || {}", exact("kept"), exact("box")));
    assert!(eperm(fs::remove_file(at("kept"))));
    assert!(
        eperm(fs::remove_file(at("around").join("kept"))),
        "through a symbolic link"
    );
    assert!(eperm(fs::remove_dir(at("box"))));
    assert!(at("kept").exists() && at("box").exists());
    let calls = denied(&mut ruled, kind::UNLINK, 3);
    assert_eq!(
        calls[1].0.text(calls[1].1.path),
        at("kept").to_str().unwrap()
    );

    ruled.load(
        "rename",
        &format!(
            r#"{} || file.new_path.startsWith("{}/")"#,
            exact("kept"),
            at("box").display()
        ),
    );
    assert!(eperm(fs::rename(at("kept"), at("gone"))));
    assert!(eperm(fs::rename(at("free"), at("box").join("in"))));
    assert!(at("kept").exists() && at("free").exists());
    fs::rename(at("free"), at("moved")).unwrap();
    // Of two files that change their names, both lose theirs.
    fs::write(at("other"), "other").unwrap();
    assert!(eperm(rules::exchange(&at("kept"), &at("other"))));
    assert!(eperm(rules::exchange(&at("other"), &at("kept"))));
    assert_eq!(fs::read_to_string(at("kept")).unwrap(), "kept");
    rules::exchange(&at("other"), &at("moved")).unwrap();
    assert_eq!(fs::read_to_string(at("other")).unwrap(), "free");
    let calls = denied(&mut ruled, kind::RENAME, 4);
    for (_, asked) in &calls[2..] {
        assert_eq!(asked.ino, fs::metadata(at("kept")).unwrap().ino());
    }
    assert_eq!(
        calls[0].0.text(calls[0].1.to_path),
        at("gone").to_str().unwrap()
    );
    assert_eq!(
        calls[1].0.text(calls[1].1.to_path),
        at("box").join("in").to_str().unwrap()
    );

    ruled.load("link", &exact("kept"));
    assert!(eperm(fs::hard_link(at("kept"), at("second"))));
    assert!(!at("second").exists());
    fs::hard_link(at("moved"), at("second")).unwrap();
    denied(&mut ruled, kind::LINK, 1);
}

#[test]
fn a_denied_truncation_leaves_the_content() {
    let Some(mut ruled) = Ruled::new("lsm-truncate", &[Kind::Truncate]) else {
        return;
    };
    let (_dir, dir) = folder();
    let at = |name: &str| dir.join(name);
    for name in ["kept", "free"] {
        fs::write(at(name), "content").unwrap();
    }
    symlink(at("kept"), at("link")).unwrap();
    ruled.load(
        "truncate",
        &format!(r#"file.path == "{}""#, at("kept").display()),
    );
    let by_path = |name: &str| nix::unistd::truncate(&at(name), 3).map_err(io::Error::from);
    let by_descriptor = |name: &str| {
        let file = OpenOptions::new().write(true).open(at(name)).unwrap();
        file.set_len(3)
    };
    assert!(eperm(by_path("kept")));
    assert!(eperm(by_path("link")), "by a symbolic link");
    assert!(eperm(by_descriptor("kept")));
    assert!(eperm(File::create(at("kept"))), "by an open");
    assert_eq!(fs::read_to_string(at("kept")).unwrap(), "content");
    by_path("free").unwrap();
    by_descriptor("free").unwrap();
    assert_eq!(fs::read_to_string(at("free")).unwrap(), "con");
    for (record, asked) in denied(&mut ruled, kind::TRUNCATE, 4) {
        assert_eq!(record.text(asked.path), at("kept").to_str().unwrap());
        assert_eq!(asked.ino, fs::metadata(at("kept")).unwrap().ino());
    }
}

/// Where one of both cannot be denied (no trampoline of 5.10 takes ids), the other is tested all the same.
#[test]
fn a_denied_change_of_permissions_or_owner_changes_nothing() {
    let (_dir, dir) = folder();
    let at = |name: &str| dir.join(name);
    for name in ["kept", "free"] {
        fs::write(at(name), "").unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    symlink(at("kept"), at("link")).unwrap();
    let kept = format!(r#"file.path == "{}""#, at("kept").display());
    let state = |name: &str| {
        let found = fs::metadata(at(name)).unwrap();
        (found.mode() & 0o7777, found.uid(), found.gid())
    };
    if let Some(mut ruled) = Ruled::new("lsm-chmod", &[Kind::Chmod]) {
        ruled.load("chmod", &kept);
        let mode = || fs::Permissions::from_mode(0o4755);
        assert!(eperm(fs::set_permissions(at("kept"), mode())));
        assert!(eperm(fs::set_permissions(at("link"), mode())));
        let file = File::open(at("kept")).unwrap();
        assert!(eperm(file.set_permissions(mode())), "by a descriptor");
        assert_eq!(state("kept"), (0o644, 0, 0));
        fs::set_permissions(at("free"), mode()).unwrap();
        assert_eq!(state("free"), (0o4755, 0, 0));
        for (record, asked) in denied(&mut ruled, kind::CHMOD, 3) {
            assert_eq!(record.text(asked.path), at("kept").to_str().unwrap());
            assert_eq!(asked.value & 0o7777, 0o4755);
        }
    }
    if let Some(mut ruled) = Ruled::new("lsm-chown", &[Kind::Chown]) {
        ruled.load("chown", &kept);
        assert!(eperm(chown(at("kept"), Some(7), Some(8))));
        assert!(eperm(chown(at("link"), Some(7), None)));
        assert!(eperm(lchown(at("kept"), None, Some(8))));
        let file = File::open(at("kept")).unwrap();
        assert!(eperm(fchown(&file, Some(7), None)), "by a descriptor");
        assert_eq!(state("kept"), (0o644, 0, 0));
        chown(at("free"), Some(7), Some(8)).unwrap();
        assert_eq!((state("free").1, state("free").2), (7, 8));
        for (record, asked) in denied(&mut ruled, kind::CHOWN, 4) {
            assert_eq!(record.text(asked.path), at("kept").to_str().unwrap());
        }
    }
}

#[test]
fn a_denied_program_does_not_start() {
    let Some(mut ruled) = Ruled::new("lsm-exec", &[Kind::Exec]) else {
        return;
    };
    let (_dir, dir) = folder();
    let program = actor::program(dir.join("tool"));
    let free = actor::program(dir.join("free"));
    let script = dir.join("script");
    // Only so the interpreter is one that the test has.
    fs::write(&script, format!("#!{} --list\n", free.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    ruled.load(
        "exec",
        &format!(
            r#"proc.exe.name == "tool" || proc.exe.path == "{}""#,
            script.display()
        ),
    );
    let run = |program: &Path| Command::new(program).arg("--list").output();
    assert!(eperm(run(&program)));
    assert!(eperm(run(&script)), "by its own path");
    assert!(run(&free).unwrap().status.success());
    let calls = denied(&mut ruled, kind::EXEC, 2);
    assert_eq!(calls[0].0.text(calls[0].1.path), program.to_str().unwrap());
    assert_eq!(calls[1].0.text(calls[1].1.path), script.to_str().unwrap());
}

#[test]
fn a_denied_mount_covers_nothing() {
    let Some(mut ruled) = Ruled::new("lsm-mount", &[Kind::Mount]) else {
        return;
    };
    let (_dir, dir) = folder();
    let at = |name: &str| dir.join(name);
    for name in ["kept", "free"] {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("file"), "here").unwrap();
    }
    ruled.load(
        "mount",
        &format!(r#"mount.target == "{}""#, at("kept").display()),
    );
    let tmpfs = |at: &Path| {
        mount(
            Some("none"),
            at,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
    };
    assert_eq!(tmpfs(&at("kept")), Err(nix::errno::Errno::EPERM));
    let bind = mount(
        Some(&at("free")),
        &at("kept"),
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    );
    assert_eq!(bind, Err(nix::errno::Errno::EPERM));
    assert!(at("kept").join("file").exists());
    tmpfs(&at("free")).unwrap();
    let covered = !at("free").join("file").exists();
    umount2(&at("free"), MntFlags::MNT_DETACH).unwrap();
    assert!(covered);
    denied(&mut ruled, kind::MOUNT, 2);
}

/// What is mounted is changed by the calls that prepare mounts, too, which name no path; and a root by another call.
#[test]
fn a_denied_remount_or_change_of_root_changes_nothing() {
    let Some(mut ruled) = Ruled::new("lsm-remount", &[Kind::Mount, Kind::PivotRoot]) else {
        return;
    };
    let (_dir, dir) = folder();
    let at = dir.join("at");
    fs::create_dir(&at).unwrap();
    let none = None::<&str>;
    mount(Some("none"), &at, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let write = |name: &str| fs::write(at.join(name), "");

    ruled.load("mount", "proc.uid == 0");
    assert!(eperm(rules::remount_read_only(&at)));
    let old = mount(
        none,
        &at,
        none,
        MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
        none,
    );
    assert_eq!(old, Err(nix::errno::Errno::EPERM));
    write("first").unwrap();
    denied(&mut ruled, kind::MOUNT, 2);
    // It may be any path that it is at: a rule that asks for one is undecided.
    ruled.load("mount", &format!(r#"mount.target == "{}""#, at.display()));
    rules::remount_read_only(&at).unwrap();
    let error = write("second").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let outcomes = ruled.bench.settle().into_iter().filter_map(|record| {
        let Body::Asked(asked) = record.body else {
            return None;
        };
        (asked.kind == u32::from(kind::MOUNT)).then_some(asked.verdict.outcome)
    });
    assert_eq!(outcomes.collect::<Vec<_>>(), [outcome::UNDECIDED]);

    let turn = || nix::unistd::pivot_root(&at, &at);
    ruled.load(
        "pivot_root",
        &format!(r#"mount.target == "{}""#, at.display()),
    );
    assert_eq!(turn(), Err(nix::errno::Errno::EPERM));
    let calls = denied(&mut ruled, kind::PIVOT_ROOT, 1);
    assert_eq!(calls[0].0.text(calls[0].1.path), at.to_str().unwrap());
    ruled.load("exit", "");
    umount2(&at, MntFlags::MNT_DETACH).unwrap();
    // It is no mount any more: what the kernel says of it where nothing denies it.
    assert_ne!(turn(), Err(nix::errno::Errno::EPERM));
}

#[test]
fn memory_and_other_processes_are_out_of_reach() {
    let Some(mut ruled) = Ruled::new("lsm-memory", &[Kind::Ptrace, Kind::MapWx]) else {
        return;
    };
    let (_dir, dir) = folder();
    let victim = actor::program(dir.join("victim"));
    ruled.load("ptrace", r#"target.exe.name == "victim""#);
    let mut child = actor::command(&victim, &["wait".to_owned()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // It has said something: it runs.
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut [0; 1])
        .unwrap();
    let reached = rules::seize(child.id());
    let mem = File::open(format!("/proc/{}/mem", child.id()));
    let own = Command::new("/proc/self/exe")
        .arg("--list")
        .spawn()
        .unwrap();
    let free = rules::seize(own.id());
    drop(child.stdin.take());
    child.wait().unwrap();
    let mut own = own;
    let _ = own.kill();
    own.wait().unwrap();
    assert!(eperm(reached), "it was taken hold of");
    assert!(mem.is_err(), "its memory could be opened");
    assert!(!eperm(free), "another one may be");
    let seen = ruled.bench.settle();
    let calls: Vec<Asked> = seen
        .iter()
        .filter_map(|record| match record.body {
            Body::Asked(asked) if asked.kind == u32::from(kind::PTRACE) => Some(asked),
            _ => None,
        })
        .collect();
    assert!(
        calls.len() >= 2 && calls.iter().all(|call| call.target_pid == child.id()),
        "{calls:?}"
    );
    let twice = seen.iter().any(
        |record| matches!(record.body, Body::Reach(Kind::Ptrace, reach) if reach.result == -1),
    );
    assert!(!twice, "the call's failure is not told twice");

    ruled.load("map_wx", "proc.uid == 0");
    assert!(eperm(rules::map_both(false)) && eperm(rules::map_both(true)));
    denied(&mut ruled, kind::MAP_WX, 2);
    ruled.load("map_wx", "proc.uid == 4294967294");
    rules::map_both(false).unwrap();
    rules::map_both(true).unwrap();
}

/// Where the root of all cgroups is out of reach: without datagrams that are sent to an address, and sends that connect.
#[test]
fn without_cgroups_connects_and_binds_are_denied_all_the_same() {
    let Some(mut ruled) = Ruled::new("lsm-network", &[Kind::Connect, Kind::Bind]) else {
        return;
    };
    ruled.bench.kernel().leave_out_cgroups(true).unwrap();
    let doors = ruled.bench.kernel().doors();
    let is_of = |kind| doors.iter().find(|door| door.kind == kind).unwrap();
    let (connect, bind) = (is_of(Kind::Connect), is_of(Kind::Bind));
    assert_eq!(connect.rung, bind.rung);
    match &connect.reason {
        Some(reason) => eprintln!("SKIPPED lsm-network: {reason}"),
        None => {
            assert_eq!(connect.rung, "lsm");
            connects_and_binds(&mut ruled);
            ruled.load("exit", "");
        }
    }
    ruled.bench.kernel().leave_out_cgroups(false).unwrap();
}

fn connects_and_binds(ruled: &mut Ruled) {
    let listen = |address: &str| TcpListener::bind((address, 0)).unwrap();
    let (there, free) = (listen("127.0.0.1"), listen("127.0.0.1"));
    let port = there.local_addr().unwrap().port();
    ruled.load("connect", &format!("net.dst.port == {port}"));
    assert!(eperm(TcpStream::connect(("127.0.0.1", port))));
    let any = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(eperm(any.connect(("127.0.0.1", port))));
    let mut tried = 2;
    let six = TcpListener::bind("[::1]:0").is_ok();
    if six {
        assert!(eperm(TcpStream::connect(("::1", port))));
        assert!(eperm(TcpStream::connect(("::ffff:127.0.0.1", port))));
        tried += 2;
    } else {
        eprintln!("SKIPPED IPv6: this host has none");
    }
    there.set_nonblocking(true).unwrap();
    assert!(
        there
            .accept()
            .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock),
        "somebody came"
    );
    let _stream = TcpStream::connect(free.local_addr().unwrap()).unwrap();
    for (_, asked) in denied(ruled, kind::CONNECT, tried) {
        assert_eq!(asked.dst_port, port);
    }

    drop(there);
    ruled.load("bind", &format!("net.dst.port == {port}"));
    assert!(eperm(TcpListener::bind(("127.0.0.1", port))));
    assert!(eperm(UdpSocket::bind(("0.0.0.0", port))));
    assert!(eperm(rules::bind_without_family(port)));
    let mut tried = 3;
    if six {
        assert!(eperm(TcpListener::bind(("::", port))));
        tried += 1;
    }
    for (_, asked) in denied(ruled, kind::BIND, tried) {
        assert_eq!(asked.dst_port, port);
    }
    ruled.load("bind", "net.dst.port == 1");
    rules::bind_without_family(port).unwrap();
}

#[test]
fn a_denied_module_is_not_even_read() {
    let Some(mut ruled) = Ruled::new("lsm-module", &[Kind::ModuleLoad]) else {
        return;
    };
    let (_dir, dir) = folder();
    let path = dir.join("evil.ko");
    File::create(&path).unwrap().write_all(&[0; 4096]).unwrap();
    fs::copy(&path, dir.join("free.ko")).unwrap();
    ruled.load("module_load", r#"file.name == "evil.ko""#);
    assert!(eperm(rules::load_module(&path)));
    // It is none, and that is found out only now.
    let other = rules::load_module(&dir.join("free.ko"));
    assert_eq!(other.unwrap_err().raw_os_error(), Some(libc::ENOEXEC));
    let calls = denied(&mut ruled, kind::MODULE_LOAD, 1);
    assert_eq!(calls[0].0.text(calls[0].1.path), path.to_str().unwrap());
}
