//! The kinds that change privileges, files and the kernel: from the call to the answer of a search.

use std::os::fd::AsRawFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use serde_json::Value;
use sumun_tests::check::{int, list, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::ctl::Answer;
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::programs;

/// How long the store may take until an answer is complete.
const LIMIT: Duration = Duration::from_secs(60);

const POLICY: &str = r#"
[policy]
name = "kinds"
version = 1

[[rule]]
id = "privilege"
on = ["setid", "capset", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "memfd_create", "unshare", "setns", "map_wx", "prctl", "userfaultfd"]
effect = "record"

[[rule]]
id = "kernel"
on = ["module_load", "module_unload", "bpf", "mount", "umount", "pivot_root", "chroot", "kexec_load", "io_uring_setup"]
effect = "record"

[[rule]]
id = "file"
on = ["chmod", "chown", "truncate", "link", "symlink", "setxattr"]
effect = "record"

[[rule]]
id = "network"
on = ["bind", "listen"]
when = 'proc.exe.name.startsWith("perl")'
effect = "record"

[[rule]]
id = "to-root"
title = "A process that was not root became root"
on = ["setid"]
when = 'priv.old.euid != 0 && priv.new.euid == 0'
severity = "high"

[[rule]]
id = "setuid"
on = ["chmod"]
when = 'file.new_setuid && file.new_exec && file.name == "b"'
"#;

/// A shell's work in a mount namespace of its own, in a directory.
fn work(dir: &Path) -> String {
    let dir = dir.display();
    let (ptrace, mprotect, memfd, bpf, faults) = (
        libc_number("ptrace"),
        libc_number("mprotect"),
        libc_number("memfd_create"),
        libc_number("bpf"),
        libc_number("userfaultfd"),
    );
    format!(
        r#"set -e
cd {dir}
echo content > a
cp a b
chmod 4755 b
chown 7:9 a
truncate -s 2 a
ln a hard
ln -s a soft
mkdir m
mount -t tmpfs -o nosuid word m
umount m
chroot / true
perl -e '$> = 65534; $> = 0; die $! if $>'
sleep 60 >/dev/null 2>&1 &
victim=$!
until read -r name </proc/$victim/comm && [ "$name" = sleep ]; do :; done
perl -e 'my $pid = 0 + shift; syscall({ptrace}, 16, $pid, 0, 0) == 0 or die $!; waitpid $pid, 0x40000000; syscall({ptrace}, 17, $pid, 0, 0)' $victim
kill $victim
unshare -u true
perl -e 'my $page = "x" x 16384; my $at = unpack("J", pack("P", $page)); $at = ($at + 4095) & ~4095; syscall({mprotect}, $at, 4096, 7) == 0 or die $!'
perl -e 'my $name = "code\0"; syscall({memfd}, $name, 0) > 0 or die $!'
perl -e 'syscall({bpf}, (1 << 32) + 5, 0, 0) == -1 or die "it went well"'
perl -e 'syscall({faults}, 0x80801)'
perl -e '$0 = "kworker/u9:7-events"'
perl -MIO::Socket::INET -e 'IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 0, Listen => 1, Proto => "tcp") or die $!'
"#
    )
}

/// Numbers that perl has no name for.
fn libc_number(name: &str) -> u32 {
    let (x86, arm) = match name {
        "ptrace" => (101, 117),
        "mprotect" => (10, 226),
        "bpf" => (321, 280),
        "userfaultfd" => (323, 282),
        _ => (319, 279),
    };
    if cfg!(target_arch = "x86_64") {
        x86
    } else {
        arm
    }
}

#[test]
fn each_new_kind_is_stored_with_its_words() {
    let Some(turn) = Turn::take("each_new_kind_is_stored") else {
        return;
    };
    let scratch = scratch();
    let dir = scratch
        .path()
        .canonicalize()
        .expect("a directory")
        .join("work");
    std::fs::create_dir(&dir).expect("a directory");
    let collector = Collector::start().expect("a collector");
    let mut agent = Agent::start(turn, &collector, &[("kinds", POLICY)]).expect("an agent");
    let since = unix_ns();
    let output = Command::new("unshare")
        .args(["-m", "/bin/sh", "-c", &work(&dir)])
        .output()
        .expect("unshare can be started");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let until = unix_ns();
    let ctl = collector.ctl();
    let ask = |filter: &str| -> Vec<Value> {
        let answer: Answer = ctl
            .complete_events(since, until, filter, LIMIT)
            .unwrap_or_else(|error| panic!("{filter}: {error:#}"));
        answer.rows
    };
    // Who else works on this machine is told apart by what was worked on.
    let one = |filter: &str| -> Value {
        let mut rows = ask(filter);
        assert_eq!(rows.len(), 1, "{filter}: {rows:?}");
        rows.remove(0)
    };
    let path = |name: &str| format!("{}/{name}", dir.display());
    let (a, b) = (path("a"), path("b"));

    let chmod = one(&format!(
        r#"kind == "chmod" && file.path == "{b}" && file.new_setuid"#
    ));
    assert_eq!(int(&chmod, "file.new_mode"), Some(0o4755));
    assert_eq!(text(&chmod, "file.source"), "caller");
    assert_eq!(list(&chmod, "rules"), ["kinds/file", "kinds/setuid"]);
    let chown = one(&format!(r#"kind == "chown" && file.path == "{a}""#));
    assert_eq!(
        (int(&chown, "file.new_uid"), int(&chown, "file.new_gid")),
        (Some(7), Some(9))
    );
    let cut = one(&format!(r#"kind == "truncate" && file.path == "{a}""#));
    assert_eq!(text(&cut, "file.length"), "2");
    assert_eq!(text(&cut, "file.source"), "object");
    let link = one(&format!(
        r#"kind == "link" && file.new_path == "{}""#,
        path("hard")
    ));
    assert_eq!(text(&link, "file.path"), a);
    let soft = one(&format!(
        r#"kind == "symlink" && file.new_path == "{}""#,
        path("soft")
    ));
    assert_eq!(text(&soft, "file.path"), "a");

    let mount = one(&format!(
        r#"kind == "mount" && mount.target == "{}""#,
        path("m")
    ));
    assert_eq!(
        (text(&mount, "mount.source"), text(&mount, "mount.type")),
        ("word", "tmpfs")
    );
    assert!(list(&mount, "mount.flags").contains(&"nosuid"), "{mount}");
    one(&format!(
        r#"kind == "umount" && mount.target == "{}""#,
        path("m")
    ));
    assert!(
        !ask(r#"kind == "chroot" && mount.target == "/" && proc.exe.name == "chroot""#).is_empty()
    );

    let raised = ask(
        r#"kind == "setid" && proc.exe.name.startsWith("perl") && priv.old.euid == 65534 && priv.new.euid == 0"#,
    );
    assert!(!raised.is_empty());
    assert!(
        list(&raised[0], "priv.cap_gained").contains(&"cap_setuid"),
        "{}",
        raised[0]
    );
    let traced = one(
        r#"kind == "ptrace" && ptrace.request == "attach" && proc.exe.name.startsWith("perl") && target.exe.name == "sleep""#,
    );
    assert_eq!(int(&traced, "result"), Some(0));
    let victim = int(&traced, "target.pid").expect("a pid");
    let asleep = ask(&format!(r#"kind == "exec" && proc.pid == {victim}"#));
    // The image is the one that was executed.
    assert_eq!(
        text(&asleep[0], "proc.exec_id"),
        text(&traced, "target.exec_id")
    );
    let made = ask(r#"kind == "unshare" && proc.exe.name == "unshare" && "uts" in ns.types"#);
    assert!(!made.is_empty());
    let both = ask(r#"kind == "map_wx" && call == "mprotect" && proc.exe.name.startsWith("perl")"#);
    assert_eq!(list(&both[0], "mem.prot"), ["read", "write", "exec"]);
    let memory = ask(r#"kind == "memfd_create" && file.path == "memfd:code""#);
    assert_eq!(text(&memory[0], "file.source"), "object");
    assert_ne!(text(&memory[0], "file.ino"), "");
    // The kernel takes 32 bits of the command, whatever stands above them.
    let loads =
        ask(r#"kind == "bpf" && bpf.command == "prog_load" && proc.exe.name.startsWith("perl")"#);
    assert!(int(&loads[0], "result") < Some(0), "{}", loads[0]);
    let asked = ask(r#"kind == "userfaultfd" && proc.exe.name.startsWith("perl")"#);
    let flags = list(&asked[0], "userfaultfd.flags");
    // Where the kernel has none, it was asked for all the same.
    assert!(
        flags.contains(&"nonblock") && flags.contains(&"cloexec"),
        "{flags:?}"
    );
    let named = one(
        r#"kind == "prctl" && prctl.option == "set_name" && prctl.name.startsWith("kworker/") && proc.exe.name.startsWith("perl")"#,
    );
    assert_eq!(text(&named, "prctl.name"), "kworker/u9:7-ev");
    assert_eq!(int(&named, "result"), Some(0));
    for kind in ["bind", "listen"] {
        let own = ask(&format!(
            r#"kind == "{kind}" && proc.exe.name.startsWith("perl") && net.dst.ip == "127.0.0.1""#
        ));
        assert!(
            own.iter().any(|row| int(row, "net.dst.port") > Some(0)),
            "{kind}: {own:?}"
        );
        assert_eq!(text(&own[0], "net.proto"), "tcp");
    }

    let alerts = ctl
        .complete_alerts(since, until, r#"rule.id == "to-root""#, LIMIT)
        .expect("a complete answer");
    assert!(
        alerts
            .rows
            .iter()
            .any(|row| int(row, "priv.old.euid") == Some(65534))
    );
    // What nobody asks for is not collected, and the answer says so.
    agent.stop().expect("the agent stops when told to");
}

/// A process that waits; ends with the test.
struct Sleeps(Child);

impl Drop for Sleeps {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_the_kernel_does_not_show_is_found() {
    let Some(turn) = Turn::take("what_the_kernel_does_not_show") else {
        return;
    };
    const KILLS: &str = r#"
[policy]
name = "kills"
version = 1
mode = "enforce"

[[rule]]
id = "miner"
title = "A miner that hides"
on = ["integrity"]
when = 'integrity.check == "hidden_process" && proc.exe.name == "miner"'
severity = "critical"
effect = "kill"
"#;
    const STARTER: &str = include_str!("../../deploy/policies/defense-evasion/rootkits.toml");
    let scratch = scratch();
    let said = |command: &mut Command| {
        let output = command.output().expect("the program can be started");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        text
    };
    // A mount namespace of this thread and of the agent that it starts: nobody else is fooled.
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    said(Command::new("mount").args(["--make-rprivate", "/"]));
    let collector = Collector::start().expect("a collector");
    let miner = scratch.path().join("miner");
    std::fs::copy("/bin/sleep", &miner).expect("a copy");
    let [shown, hidden, swapped, silent, mut miner] = [
        Path::new("sleep"),
        Path::new("sleep"),
        Path::new("sleep"),
        Path::new("sleep"),
        &miner,
    ]
    .map(|program| {
        Sleeps(
            Command::new(program)
                .arg("600")
                .spawn()
                .expect("sleep can be started"),
        )
    });
    let folder = |of: &Sleeps| format!("/proc/{}", of.0.id());
    let (over, of_shown) = (scratch.path().as_os_str(), folder(&shown));
    said(
        Command::new("mount")
            .arg("--bind")
            .arg(over)
            .arg(folder(&hidden)),
    );
    said(
        Command::new("mount")
            .arg("--bind")
            .args([&of_shown, &folder(&swapped)]),
    );
    said(
        Command::new("mount")
            .arg("--bind")
            .arg(over)
            .arg(folder(&miner)),
    );
    // A file system whose server never answers: whoever opens something there waits until the last of these is closed.
    let server = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    let covers = server.as_ref().map(|server| {
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            server.as_raw_fd()
        );
        let (flags, options) = (MsFlags::empty(), Some(options.as_str()));
        mount(
            Some("silent"),
            folder(&silent).as_str(),
            Some("fuse"),
            flags,
            options,
        )
    });
    let silent = match covers {
        Ok(Ok(())) => Some(&silent),
        no => {
            eprintln!("SKIPPED a file system that does not answer: {no:?}");
            None
        }
    };
    let since = unix_ns();
    let stop = AtomicBool::new(false);
    let (stop, ctl) = (&stop, collector.ctl());
    std::thread::scope(|scope| {
        // Whoever begins and ends meanwhile is not hidden.
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let _ = Command::new("/bin/true").status();
            }
        });
        // The threads end also if an assertion fails.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(stop);
        let mut agent = Agent::start(turn, &collector, &[("rootkits", STARTER), ("kills", KILLS)])
            .expect("an agent");
        let begun = Instant::now();
        let hiding = [Some(&hidden), Some(&swapped), silent]
            .into_iter()
            .flatten();
        let mut wanted: Vec<_> = hiding
            .chain([&miner])
            .map(|one| Some(i64::from(one.0.id())))
            .collect();
        let rows = loop {
            let rows = ctl
                .complete_events(
                    since,
                    unix_ns(),
                    r#"kind == "integrity" && integrity.check == "hidden_process""#,
                    LIMIT,
                )
                .expect("a complete answer")
                .rows;
            if rows.len() >= wanted.len() || begun.elapsed() > Duration::from_secs(30) {
                break rows;
            }
            std::thread::sleep(Duration::from_millis(200));
        };
        let mut found: Vec<_> = rows.iter().map(|row| int(row, "proc.pid")).collect();
        found.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(found, wanted, "{rows:?}");
        for row in &rows {
            let is_miner = int(row, "proc.pid") == Some(i64::from(miner.0.id()));
            let (name, outcome) = match is_miner {
                true => ("miner", "killed"),
                false => ("sleep", ""),
            };
            assert_eq!(text(row, "proc.exe.name"), name);
            assert_eq!(text(row, "verdict.outcome"), outcome, "{row}");
            assert_eq!(
                text(row, "integrity.object"),
                int(row, "proc.pid").unwrap_or(0).to_string()
            );
            assert!(
                text(row, "integrity.detail").contains("a mount lies over"),
                "{row}"
            );
        }
        let status = said(
            Command::new(programs::path("sumun-agent"))
                .args(["status", "-o", "json", "--config"])
                .arg(agent.config()),
        );
        let status: Value = serde_json::from_str(&status).expect("JSON");
        let told = status["integrity"]["findings"]
            .as_array()
            .expect("findings");
        let of_process = told.iter().filter(|one| one["check"] == "hidden_process");
        assert_eq!(of_process.count(), wanted.len(), "{}", status["integrity"]);
        println!("{}", status["integrity"]);
        let alerts = ctl
            .complete_alerts(since, unix_ns(), r#"rule.id == "hidden""#, LIMIT)
            .expect("a complete answer");
        assert_eq!(alerts.rows.len(), wanted.len(), "{:?}", alerts.rows);
        // Not only said: the kernel's own list and a descriptor prove who it is.
        let ended = miner.0.wait().expect("its end");
        assert_eq!(ended.signal(), Some(9));
        agent.stop().expect("the agent stops when told to");
    });
}
