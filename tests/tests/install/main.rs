//! The packages in a machine with systemd: docs/install-systemd.md as it stands, a crash, a hang, an upgrade, and
//! what a purge leaves. And the machine as an instance of EC2: [`cloud`].

mod cloud;
mod tarball;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sumun_tests::host::{Turn, scratch};
use sumun_tests::machine::{self, Machine};
use sumun_tests::programs;

const PAGE: &str = include_str!("../../../docs/install-systemd.md");
const LIMIT: Duration = Duration::from_secs(60);

/// The blocks of a language on a page under a heading.
fn blocks(page: &str, heading: &str, language: &str) -> Vec<String> {
    let from = page
        .find(&format!("## {heading}\n"))
        .unwrap_or_else(|| panic!("the page has a part {heading:?}"));
    let part = page[from..].split("\n## ").next().unwrap_or_default();
    let blocks: Vec<String> = part
        .split(&format!("```{language}\n"))
        .skip(1)
        .map(|block| block.split("```").next().unwrap_or_default().to_owned())
        .collect();
    assert!(!blocks.is_empty(), "{heading:?} has {language}");
    blocks
}

/// What of Sumun's is left in a machine, but for packages that were brought.
fn left(machine: &Machine) -> String {
    machine
        .run(
            "find / -xdev -iname '*sumun*' -not -path '/proc/*' -not -path '/root/*.deb'; \
             find /run /dev/shm /sys/fs/bpf /sys/fs/cgroup -iname '*sumun*' 2>/dev/null; true",
        )
        .expect("a search")
}

/// Copies the packages of a folder into the machine's `/root`.
fn bring(machine: &Machine, packages: &Path) {
    machine.run("rm -f /root/*.deb").expect("room for packages");
    for entry in fs::read_dir(packages).expect("packages") {
        let path = entry.expect("a package").path();
        let to = machine
            .path("/root")
            .join(path.file_name().expect("a file"));
        fs::copy(&path, to).expect("copied");
    }
}

/// Packages of a version of the programs under test, one for each.
fn build(kind: &str, version: Option<&str>, out: &Path) -> Vec<PathBuf> {
    pack(kind, version, out);
    let mut packages: Vec<PathBuf> = fs::read_dir(out)
        .expect("the folder of packages")
        .map(|entry| entry.expect("a package").path())
        .collect();
    packages.sort();
    assert_eq!(packages.len(), 3, "{packages:?}");
    packages
}

/// Runs the script that makes packages.
fn pack(kind: &str, version: Option<&str>, out: &Path) {
    let programs = programs::path("sumun-agent");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/packages/build");
    let mut command = Command::new(script);
    command.args(["--only", kind]);
    // Compressing takes longer than all else.
    command.env("SUMUN_DEB_COMPRESSION", "none");
    command.env("SUMUN_RPM_PAYLOAD", "w0.gzdio");
    if let Some(version) = version {
        command.args(["--version", version]);
    }
    let built = command
        .arg(programs.parent().expect("a program lies in a folder"))
        .arg(out)
        .output()
        .expect("the script can be started");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
}

fn lintian(packages: &[PathBuf]) {
    let output = Command::new("lintian")
        .args([
            "--allow-root",
            "--tag-display-limit=0",
            "--fail-on=error,warning",
        ])
        // So they are built for this test alone.
        .args([
            "--suppress-tags",
            "uses-no-compression-for-control-tarball,uses-no-compression-for-data-tarball",
        ])
        .args(packages)
        .output()
        .expect("lintian can be started");
    assert!(
        output.status.success(),
        "lintian:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The systemd state of a unit.
fn property(machine: &Machine, unit: &str, name: &str) -> String {
    let value = machine
        .run(&format!("systemctl show --value -p {name} {unit}"))
        .expect("systemctl answers");
    value.trim().to_owned()
}

/// Files of the configuration's folder that user data, the SSM document and the Ansible role write themselves.
fn beside() -> Vec<String> {
    let ways = [
        include_str!("../../../deploy/aws/install"),
        include_str!("../../../deploy/aws/ssm-install.json"),
        include_str!("../../../deploy/ansible/roles/sumun_agent/tasks/main.yml"),
    ];
    let is_name = |byte: char| byte.is_ascii_alphanumeric() || "./_-".contains(byte);
    let words = ways.iter().flat_map(|way| way.split(|byte| !is_name(byte)));
    let mut files: Vec<String> = words
        .filter(|word| word.starts_with("/etc/sumun/") && word.contains('.'))
        .map(str::to_owned)
        .collect();
    files.sort_unstable();
    files.dedup();
    files
}

/// What systemd runs is of its unit and slice, as an admin finds it.
fn units_are_told(machine: &Machine) {
    if let Some(reason) = &machine.without_units {
        return println!("SKIPPED units of systemd on events: {reason}");
    }
    let begun = Instant::now();
    machine
        .run(
            "systemd-run -q --wait --unit=seen /bin/true
             systemd-run -q --wait --unit=seen-in --slice=shop-web.slice /bin/true
             systemd-run -q --scope --unit=session-7 --slice=user-4711.slice /bin/true",
        )
        .expect("units of systemd");
    for (what, kind, filter) in [
        (
            "a service",
            "unit",
            r#"unit == "seen.service" && slice == "system.slice""#,
        ),
        (
            "one of a slice of its own",
            "unit",
            r#"unit == "seen-in.service" && slice == "shop-web.slice""#,
        ),
        (
            "a session",
            "session",
            r#"slice == "user-4711.slice" && login.uid == 4711 && login.session == "7""#,
        ),
        (
            "a service that is older than the agent",
            "unit",
            r#"unit == "early.service" && slice == "system.slice""#,
        ),
    ] {
        let filter = format!(
            r#"kind == "exec" && proc.exe.name in ["true", "sleep"] && {filter} && workload.kind == "{kind}" && !has(container.id)"#
        );
        machine
            .until(
                &format!("[ -n \"$(sumunctl events list --since 10m --where '{filter}' -o jsonl 2>/dev/null)\" ]"),
                LIMIT,
            )
            .unwrap_or_else(|error| panic!("{what}: {error:#}"));
    }
    machine.run("systemctl stop early").expect("it stops");
    println!("units: {:.1} s", begun.elapsed().as_secs_f64());
}

#[test]
fn the_packages_install_survive_a_crash_upgrade_and_leave_nothing() {
    let name = "install";
    let root = match machine::root() {
        Ok(root) => root,
        Err(reason) => return println!("SKIPPED {name}: {reason}"),
    };
    if !nix::unistd::geteuid().is_root() {
        return println!("SKIPPED {name}: a machine is booted by root only");
    }
    let dir = scratch();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    lintian(&build("deb", None, &first));
    build("deb", Some("0.99.0"), &second);

    let Some(_turn) = Turn::take(name) else {
        return;
    };
    let machine = Machine::boot(&root).expect("a machine");
    let bring = |packages: &Path| bring(&machine, packages);
    let follow = |heading: &str| {
        for block in blocks(PAGE, heading, "sh") {
            machine
                .run(&block)
                .unwrap_or_else(|error| panic!("{heading}: {error:#}"));
        }
    };

    // Nothing that was installed runs before it is told to, and installing takes nothing for granted.
    bring(&first);
    follow("The collector");
    machine
        .until("systemctl -q is-active sumun-collector", LIMIT)
        .expect("the collector is ready");
    assert_eq!(
        property(&machine, "sumun-collector", "User"),
        "sumun-collector"
    );
    let owner = machine
        .run("stat -c %U /var/lib/sumun/collector /etc/sumun/ca /etc/sumun/collector.toml /etc/sumun/admin.toml")
        .expect("the collector's files");
    assert_eq!(
        owner,
        "sumun-collector\nsumun-collector\nsumun-collector\nroot\n"
    );
    machine
        .run("systemd-run -q --unit=early /bin/sh -c 'while sleep 1; do :; done'")
        .expect("a service");
    follow("An agent");
    assert_eq!(property(&machine, "sumun-agent", "ActiveState"), "active");
    let online = "sumunctl agents list -o jsonl 2>/dev/null | grep -q '\"online\"'";
    machine.until(online, LIMIT).expect("the agent is online");
    let doctor = machine
        .run("sumun-agent doctor")
        .expect("nothing is broken");
    for good in [
        "configuration",
        "certificate",
        "collector",
        "agent",
        "bpffs",
    ] {
        assert!(
            doctor.contains(&format!("good     {good} ")),
            "{good}:\n{doctor}"
        );
    }
    units_are_told(&machine);
    let identity = "sed -n 's/^id = //p' /etc/sumun/agent.toml; ls /etc/sumun/policies | wc -l";
    let before = machine.run(identity).expect("its identity");

    // Killed, it comes back by itself.
    let pid = property(&machine, "sumun-agent", "MainPID");
    machine.run(&format!("kill -9 {pid}")).expect("killed");
    let back = format!(
        "systemctl -q is-active sumun-agent && [ \"$(systemctl show --value -p MainPID sumun-agent)\" != {pid} ]"
    );
    machine.until(&back, LIMIT).expect("it comes back");
    assert_eq!(property(&machine, "sumun-agent", "NRestarts"), "1");
    machine.until(online, LIMIT).expect("online again");

    // Hung, it is started again by the watchdog, and so is the collector. (The time is the test's; whether it is watched at all is the unit's.)
    for unit in ["sumun-agent", "sumun-collector"] {
        let watched = property(&machine, unit, "WatchdogUSec");
        assert_ne!(watched, "0", "{unit} is not watched");
        let folder = format!("/run/systemd/system/{unit}.service.d");
        machine
            .run(&format!(
                "mkdir -p {folder}; printf '[Service]\\nWatchdogSec=3\\n' >{folder}/test.conf; systemctl daemon-reload; systemctl restart {unit}"
            ))
            .expect("a shorter time");
        let pid = property(&machine, unit, "MainPID");
        machine.run(&format!("kill -STOP {pid}")).expect("stopped");
        let back = format!(
            "systemctl -q is-active {unit} && [ \"$(systemctl show --value -p MainPID {unit})\" != {pid} ]"
        );
        machine.until(&back, LIMIT).expect("it comes back");
        machine
            .run(&format!(
                "journalctl --no-pager -u {unit} | grep -q 'Watchdog timeout'"
            ))
            .expect("the watchdog did it");
        // It feeds the watchdog by itself.
        std::thread::sleep(Duration::from_secs(4));
        let restarts = property(&machine, unit, "NRestarts");
        assert_eq!(restarts, "1", "{unit} is restarted while it works");
        machine
            .run(&format!(
                "rm -r {folder}; systemctl daemon-reload; systemctl restart {unit}"
            ))
            .expect("the unit as it is");
    }
    machine.until(online, LIMIT).expect("online again");

    // The ceiling is that of the unit.
    for (name, value) in [
        ("CPUQuotaPerSecUSec", "1s"),
        ("MemoryMax", "536870912"),
        ("TasksMax", "64"),
    ] {
        assert_eq!(property(&machine, "sumun-agent", name), value, "{name}");
    }

    // Upgraded: another process, the same agent, and what the operator changed stays.
    machine
        .run("echo SUMUN_LOG=info >>/etc/default/sumun-agent; rm /etc/sumun/policies/*mining*.toml")
        .expect("changes of the operator");
    let mine = machine.run(identity).expect("its identity");
    assert_ne!(mine, before, "a policy was removed");
    let pid = property(&machine, "sumun-agent", "MainPID");
    bring(&second);
    follow("Upgrades");
    let version = "dpkg-query -W -f '${Version} ' sumun-agent sumun-collector sumunctl";
    assert_eq!(
        machine.run(version).expect("the packages"),
        "0.99.0 0.99.0 0.99.0 "
    );
    assert_eq!(property(&machine, "sumun-agent", "ActiveState"), "active");
    assert_ne!(property(&machine, "sumun-agent", "MainPID"), pid);
    assert_eq!(machine.run(identity).expect("its identity"), mine);
    machine
        .run("grep -q '^SUMUN_LOG=info' /etc/default/sumun-agent")
        .expect("the conffile stays");
    machine
        .until(online, LIMIT)
        .expect("online after the upgrade");
    machine
        .until("systemctl -q is-active sumun-collector", LIMIT)
        .expect("the collector is ready again");

    // Removed: the kernel is left alone, the identity stays. Installed again, it is the same agent and runs.
    machine
        .run("apt-get remove -y sumun-agent && [ ! -e /sys/fs/bpf/sumun ] && [ -e /etc/sumun/agent.key ]")
        .expect("removed");
    machine
        .run("apt-get install -y ./sumun-agent_*.deb && systemctl start sumun-agent")
        .expect("installed again");
    assert_eq!(machine.run(identity).expect("its identity"), mine);

    // Purged: nothing, nor of what other ways to install leave beside.
    let beside = beside();
    assert!(beside.len() >= 3, "{beside:?}");
    machine
        .run(&format!("touch {}", beside.join(" ")))
        .expect("files of other ways to install");
    follow("Removing");
    assert_eq!(left(&machine), "", "left after a purge");

    // What another way to install finds then is a machine that never had any of it.
    cloud::by_user_data(&machine, &first);
}

#[test]
fn the_rpms_hold_what_the_debs_hold_and_erase_all_of_it() {
    let name = "rpm";
    let root = match machine::root() {
        Ok(root) => root,
        Err(reason) => return println!("SKIPPED {name}: {reason}"),
    };
    if !nix::unistd::geteuid().is_root() {
        return println!("SKIPPED {name}: a package is installed by root only");
    }
    let dir = scratch();
    let packages = dir.path().join("rpm");
    build("rpm", None, &packages);
    // No machine has to run for it; a copy of its root is where packages may leave something.
    let root = machine::copy(&root, dir.path()).expect("a copy of the root");
    for entry in fs::read_dir(&packages).expect("packages") {
        let path = entry.expect("a package").path();
        let to = root.join("root").join(path.file_name().expect("a file"));
        fs::copy(&path, to).expect("copied");
    }
    let inside = |script: &str| {
        let output = Command::new("chroot")
            .arg(&root)
            .args(["/bin/sh", "-euc", script])
            .output()
            .expect("chroot can be started");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{script}:\n{text}{errors}");
        text
    };
    // On a host /run is memory, and not a folder of the root.
    let found = "find / -xdev -iname '*sumun*' -not -path '/run/*' -not -path '/root/*.rpm' | sort";
    // Debian's own packages are not in rpm's database; what is needed is there.
    inside("rpm -i --nodeps --nosignature /root/*.rpm");
    let files = inside(found);
    for file in [
        "/usr/bin/sumun-agent",
        "/usr/bin/sumun-collector",
        "/usr/bin/sumunctl",
        "/usr/lib/systemd/system/sumun-agent.service",
        "/usr/share/man/man8/sumun-agent.8.gz",
        "/usr/share/man/man8/sumun-agent-enroll.8.gz",
        "/usr/share/man/man1/sumunctl.1.gz",
        "/usr/share/bash-completion/completions/sumunctl",
        "/etc/default/sumun-agent",
    ] {
        assert!(
            files.lines().any(|line| line == file),
            "{file} is not among:\n{files}"
        );
    }
    inside(
        "getent passwd sumun-collector >/dev/null && sumunctl --version && sumun-collector --version",
    );
    inside("rpm -e --nodeps sumun-agent sumun-collector sumunctl");
    assert_eq!(inside(found), "", "left after an erase");
}
