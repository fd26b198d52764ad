//! Rules that kill: who dies, who does not, and what is told of it.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sumun_tests::check::{int, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::ctl::Ctl;
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::{programs, raw};

const LIMIT: Duration = Duration::from_secs(60);
const SIGKILL: i32 = 9;

/// What is asked of the arguments cannot be judged by the kernel.
fn policy(name: &str, mode: &str, dir: &str) -> String {
    format!(
        r#"
[policy]
name = "{name}"
version = 1
mode = "{mode}"

[[rule]]
id = "evil"
title = "A program with a mark"
on = ["exec"]
when = 'proc.args.exists(arg, arg == "--{name}={dir}")'
effect = "kill"
severity = "high"

[[rule.exception]]
name = "allowed"
when = 'proc.args.exists(arg, arg == "--allowed")'
owner = "ops@example.com"

[[rule]]
id = "often"
on = ["exec"]
when = 'proc.args.exists(arg, arg == "--often-{name}={dir}")'
effect = "kill"
rate = "1/24h"

[[rule]]
id = "secret"
on = ["open"]
when = 'file.path == "{dir}/{name}.secret"'
effect = "kill"
"#
    )
}

/// A program that stays until its input ends; killed when the test is over.
struct Victim(Child);

impl Victim {
    fn start(command: &mut Command) -> Self {
        raw::bind_to_this_thread(command);
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it can be started");
        Self(child)
    }

    /// A shell with these arguments beside its own.
    fn shell(script: &str, args: &[&str]) -> Self {
        let mut command = Command::new("/bin/sh");
        Self::start(command.args(["-c", script, "sh"]).args(args))
    }

    fn pid(&self) -> i64 {
        self.0.id().into()
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().expect("a child").is_none()
    }

    /// Waits for its end.
    fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("a child") {
                return status;
            }
            assert!(begun.elapsed() < LIMIT, "{} lives", self.0.id());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends its input, so that it ends by itself.
    fn let_go(mut self) -> ExitStatus {
        drop(self.0.stdin.take());
        self.ended()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The one alert of a process, once it is there.
fn alert(ctl: &Ctl, since: u64, pid: i64) -> Value {
    let begun = Instant::now();
    loop {
        let filter = format!("proc.pid == {pid}");
        let rows = ctl.alerts(since, &filter).expect("the alerts").rows;
        if let [row] = &rows[..] {
            return row.clone();
        }
        assert!(
            rows.is_empty() && begun.elapsed() < LIMIT,
            "one alert, not {rows:?}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn verdict<'a>(row: &'a Value, field: &str) -> &'a str {
    text(row, &format!("verdict.{field}"))
}

#[track_caller]
fn assert_verdict(row: &Value, [requested, effective, outcome, reason]: [&str; 4]) {
    assert_eq!(verdict(row, "requested"), requested, "{row}");
    assert_eq!(verdict(row, "effective"), effective, "{row}");
    assert_eq!(verdict(row, "outcome"), outcome, "{row}");
    assert!(verdict(row, "reason").contains(reason), "{row}");
}

#[test]
fn what_a_rule_matches_is_killed_in_enforce_and_only_there() {
    let Some(turn) = Turn::take("what_a_rule_matches_is_killed") else {
        return;
    };
    let scratch = scratch();
    let dir = scratch.path().to_str().expect("UTF-8").to_owned();
    for name in ["strict", "watch"] {
        fs::write(scratch.path().join(format!("{name}.secret")), "x\n").expect("a file");
    }
    let (strict, watch) = (format!("--strict={dir}"), format!("--watch={dir}"));
    let collector = Collector::start().expect("a collector");
    let ctl = collector.ctl();
    let policies = [
        ("strict", policy("strict", "enforce", &dir)),
        ("watch", policy("watch", "observe", &dir)),
    ];
    let policies = policies
        .each_ref()
        .map(|(name, text)| (*name, text.as_str()));
    let mut agent = Agent::start(turn, &collector, &policies).expect("an agent");
    let since = unix_ns();

    // Enforced: what only user space can judge dies after it has started.
    let mut evil = Victim::shell("read x", &[&strict]);
    assert_eq!(evil.ended().signal(), Some(SIGKILL));
    let row = alert(&ctl, since, evil.pid());
    assert_eq!(text(&row, "rule.id"), "evil");
    let killed = ["enforce", "kill-late", "killed", "judged by the agent"];
    assert_verdict(&row, killed);

    // Observed: it lives, and the alert says what would have been done.
    let mut watched = Victim::shell("read x", &[&watch]);
    let row = alert(&ctl, since, watched.pid());
    assert_verdict(&row, ["observe", "alert", "would-kill", "observe"]);
    assert!(watched.lives());
    assert_eq!(watched.let_go().signal(), None);

    // Excepted: it lives, and there is no alert.
    let mut allowed = Victim::shell("read x", &[&strict, "--allowed"]);
    let filter = format!(r#"kind == "exec" && proc.pid == {}"#, allowed.pid());
    let answer = ctl
        .complete_events(since, unix_ns(), &filter, LIMIT)
        .expect("a complete answer");
    let [row] = &answer.rows[..] else {
        panic!("one exec, not {:?}", answer.rows);
    };
    assert_eq!(row["exceptions"], json!(["strict/evil/allowed"]));
    assert_eq!(row.get("verdict"), None, "{row}");
    assert!(allowed.lives());
    let filter = format!("proc.pid == {}", allowed.pid());
    assert!(ctl.alerts(since, &filter).expect("alerts").rows.is_empty());
    assert_eq!(allowed.let_go().signal(), None);

    // A file: the process that has opened it, by the kernel.
    let open = |name: &str| format!("exec 3<{dir}/{name}.secret; read x");
    let mut reader = Victim::shell(&open("strict"), &[]);
    assert_eq!(reader.ended().signal(), Some(SIGKILL));
    let row = alert(&ctl, since, reader.pid());
    assert_eq!(text(&row, "rule.id"), "secret");
    assert_verdict(&row, ["enforce", "kill-after", "killed", ""]);
    let mut reader = Victim::shell(&open("watch"), &[]);
    let row = alert(&ctl, since, reader.pid());
    assert_verdict(&row, ["observe", "alert", "would-kill", "observe"]);
    assert!(reader.lives());
    drop(reader);

    // And the process that has the same open files.
    let mut command = Command::new(programs::path("share-files"));
    let path = format!("{dir}/strict.secret");
    let mut pair = Victim::start(command.args(["--path", &path, "--seconds", "90"]));
    let mut line = String::new();
    let output = pair.0.stdout.as_mut().expect("its output");
    BufReader::new(output).read_line(&mut line).expect("a line");
    let sharer: i64 = line.trim().parse().expect("a process id");
    let input = pair.0.stdin.as_mut().expect("its input");
    input.write_all(b"\n").expect("it reads");
    assert_eq!(pair.ended().signal(), Some(SIGKILL));
    let row = alert(&ctl, since, pair.pid());
    let with = format!("killed with it, as they share its open files: {sharer}");
    assert_verdict(&row, ["enforce", "kill-after", "killed", &with]);
    let filter = format!(r#"kind == "exit" && proc.pid == {sharer}"#);
    let begun = Instant::now();
    let ended = loop {
        let rows = ctl.events(since, None, &filter).expect("rows").rows;
        if let [row] = &rows[..] {
            break row.clone();
        }
        assert!(begun.elapsed() < LIMIT, "one end, not {rows:?}");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(int(&ended, "exit.signal"), Some(SIGKILL.into()), "{ended}");

    // Events are searched by it, tables show it.
    let filter = r#"verdict.requested == "enforce" && verdict.outcome == "killed""#;
    let found = ctl.events(since, None, filter).expect("rows").rows;
    let mut pids: Vec<_> = found.iter().map(|row| int(row, "proc.pid")).collect();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!((found.len(), pids.len()), (3, 3), "{found:?}");
    let table = ctl.run(&["alerts", "list", "--where", filter]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(
        table.contains("VERDICT") && table.contains(" killed "),
        "{table}"
    );

    // Alerts are folded, verdicts are not: each dies, and its event says so.
    let often = format!("--often-strict={dir}");
    for _ in 0..3 {
        let mut victim = Victim::shell("read x", &[&often]);
        assert_eq!(victim.ended().signal(), Some(SIGKILL));
    }
    // Beside them there may be one of somebody's, whose arguments are cut off.
    let filter = r#"kind == "exec" && "strict/often" in rules && verdict.outcome == "killed""#;
    let answer = ctl
        .complete_events(since, unix_ns(), filter, LIMIT)
        .expect("a complete answer");
    assert_eq!(answer.rows.len(), 3, "{:?}", answer.rows);
    for row in &answer.rows {
        assert_verdict(row, killed);
    }

    // Nobody was there when it started: the next agent reads the record late and kills all the same.
    agent.kill();
    let mut evil = Victim::shell("read x", &[&strict]);
    std::thread::sleep(Duration::from_millis(500));
    assert!(evil.lives());
    agent.run().expect("it runs again");
    assert_eq!(evil.ended().signal(), Some(SIGKILL));
    agent.online(&collector).expect("online");
    assert_verdict(&alert(&ctl, since, evil.pid()), killed);
    agent.stop().expect("it stops");
    let begun = Instant::now();
    let rows = loop {
        let rows = ctl
            .alerts(since, r#"rule.id == "often""#)
            .expect("rows")
            .rows;
        if rows.len() == 2 {
            break rows;
        }
        assert!(begun.elapsed() < LIMIT, "one and a fold, not {rows:?}");
        std::thread::sleep(Duration::from_millis(100));
    };
    let total: i64 = rows.iter().filter_map(|row| int(row, "alert.count")).sum();
    assert_eq!(total, 3, "{rows:?}");
    for row in &rows {
        assert_verdict(row, killed);
    }
}

/// A cgroup that bounds what is in it; whatever is left in it is killed at its end.
struct Pen(PathBuf);

impl Pen {
    fn new(processes: u32) -> Option<Self> {
        let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
        let root = roots.into_iter().find(|root| {
            let controllers = fs::read_to_string(root.join("cgroup.subtree_control"));
            root.join("pids/cgroup.procs").exists()
                || root.ends_with("pids") && root.join("cgroup.procs").exists()
                || controllers
                    .is_ok_and(|all| all.split_ascii_whitespace().any(|one| one == "pids"))
        })?;
        let dir = root.join(format!("sumun-test-lineage-{}", std::process::id()));
        fs::create_dir(&dir).expect("a cgroup");
        let pen = Self(dir);
        fs::write(pen.0.join("pids.max"), processes.to_string()).expect("a limit");
        Some(pen)
    }

    /// Whoever is in it and has not ended.
    fn inside(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.0.join("cgroup.procs")).expect("its processes");
        let pids = text.lines().filter_map(|line| line.parse().ok());
        pids.collect()
    }
}

impl Drop for Pen {
    fn drop(&mut self) {
        let begun = Instant::now();
        while fs::remove_dir(&self.0).is_err() && begun.elapsed() < LIMIT {
            for pid in self.inside() {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
    }
}

#[test]
fn a_lineage_dies_as_a_whole_however_it_forks() {
    const TIMES: usize = 20;
    let Some(turn) = Turn::take("a_lineage_dies_as_a_whole") else {
        return;
    };
    // Room also for those that have ended and that the first process has not taken notice of yet.
    let Some(pen) = Pen::new(8000) else {
        eprintln!("SKIPPED a_lineage_dies_as_a_whole: no cgroup here can bound processes");
        return;
    };
    let scratch = scratch();
    let trigger = scratch.path().join("trigger");
    fs::write(&trigger, "x\n").expect("a file");
    let trigger = trigger.to_str().expect("UTF-8");
    let rules = format!(
        r#"
[policy]
name = "kin"
version = 1
mode = "enforce"

[[rule]]
id = "all-of-it"
on = ["open"]
when = 'file.path == "{trigger}"'
effect = "kill"
kill = "lineage"
"#
    );
    let collector = Collector::start().expect("a collector");
    let ctl = collector.ctl();
    let mut agent = Agent::start(turn, &collector, &[("kin", &rules)]).expect("an agent");
    let since = unix_ns();
    // Somebody else's, who forks all the time.
    let mut bystander = Victim::shell("while :; do /bin/true; done", &[]);
    // In the pen: one that has left session and parent behind; some that do so again and again, so that no process lives for
    // long; some that always have a child; and some that fork as fast as they can.
    let storm = format!(
        r#"exec 2>&-
        echo $$ >'{}/cgroup.procs'
        (setsid sh -c 'while :; do sleep 1; done' &)
        chain() {{ ( chain & ) }}
        for i in 1 2 3 4; do
            (chain &)
            (while :; do sleep 0.01; done &)
            (while :; do (:) & (:) & wait; done &)
        done
        read go
        exec 3<'{trigger}'
        read never"#,
        pen.0.display()
    );
    let mut pids = Vec::new();
    for turn in 0..TIMES {
        let mut offender = Victim::shell(&storm, &[]);
        let begun = Instant::now();
        let mut there = 0;
        while there < 12 {
            there = pen.inside().len();
            assert!(begun.elapsed() < LIMIT, "{there} are there");
        }
        let input = offender.0.stdin.as_mut().expect("its input");
        input.write_all(b"go\n").expect("it reads");
        assert_eq!(offender.ended().signal(), Some(SIGKILL));
        let begun = Instant::now();
        while !pen.inside().is_empty() {
            let left = pen.inside();
            assert!(begun.elapsed() < LIMIT, "{left:?} are left of turn {turn}");
            std::thread::sleep(Duration::from_millis(1));
        }
        println!("of {there}, nobody was left after {:?}", begun.elapsed());
        pids.push(offender.pid());
        assert!(bystander.lives());
    }
    for pid in pids {
        let row = alert(&ctl, since, pid);
        let with = "killed with it, as they descend from it, ";
        assert_verdict(&row, ["enforce", "kill-after", "killed", with]);
    }
    assert!(bystander.lives());
    agent.stop().expect("it stops");
}
