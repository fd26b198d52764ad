//! The starter policies: every file is in order, none sends a whole kind to user space, each rule
//! tells its attack and nothing beside it, and ordinary work is silent.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sumun_tests::check::{int, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::ctl::{Answer, Ctl};
use sumun_tests::host::{Agent, Collector, Turn};
use sumun_tests::programs;

/// How long the store may take until an answer is complete.
const LIMIT: Duration = Duration::from_secs(30);

/// How long the stages may take; they bound themselves to less (`bound` in stages.sh).
const STAGES: Duration = Duration::from_secs(75);

/// What the stage of expected alerts is told by, and by nothing else; docs/policy.md names them.
const EXPECTED: [&str; 9] = [
    "attack-tools/tool",
    "login-and-loader/access-rules",
    "login-and-loader/root-authorized-keys",
    "password-files/read",
    "private-keys/server-key",
    "scheduled-and-services/cron",
    "scheduled-and-services/service",
    "system-programs/written",
    "unusual-places/temporary",
];

/// Rules whose attack is no work of a shell's: tests/families.rs hides a process from the agent, agent/src/integrity reads lists of kernels
/// that were taken over.
const ELSEWHERE: [&str; 2] = ["rootkits/hidden", "rootkits/hooked"];

/// Starts its arguments in a process whose pid is lower than that of its parent, as it comes about where pids have
/// begun anew (clone3 with `set_tid`; its number is the same on every architecture). Waits for it.
const LOWER_PID: &str = r#"
    for my $pid (300 .. $$ - 1) {
        my $tid = pack "i", $pid;
        my $how = pack "Q11", 0, 0, 0, 0, 17, 0, 0, 0, unpack("J", pack "P", $tid), 1, 0;
        my $child = syscall 435, $how, length $how;
        if ($child == 0) { exec @ARGV; exit 127 }
        next if $child < 0 && $!{EEXIST};
        last if $child < 0;
        waitpid $child, 0;
        exit($? >> 8 || $? & 127);
    }
    print STDERR "no lower pid: $!\n";
    exec @ARGV;
"#;

/// The files below `deploy/policies` whose names end so.
fn files(end: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/policies");
    let mut found = Vec::new();
    for tactic in fs::read_dir(root).expect("deploy/policies").flatten() {
        for file in fs::read_dir(tactic.path()).expect("a tactic").flatten() {
            if file.file_name().to_string_lossy().ends_with(end) {
                found.push(file.path());
            }
        }
    }
    found.sort();
    found
}

/// What `policy explain` says of files, as if they were loaded together.
fn explained(files: &[PathBuf]) -> Vec<Value> {
    let output = Command::new(programs::path("sumunctl"))
        .args(["policy", "explain", "-o", "json"])
        .args(files)
        .output()
        .expect("sumunctl can be started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(errors, "", "the kernel's clauses are enough");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn names(rows: &[Value]) -> BTreeSet<String> {
    rows.iter()
        .map(|row| format!("{}/{}", text(row, "policy"), text(row, "rule")))
        .collect()
}

#[test]
fn every_file_is_in_order_and_narrow() {
    let on = files(".toml");
    let off = files(".toml.off");
    assert!(on.len() >= 12, "{on:?}");
    for file in on.iter().chain(&off) {
        let output = Command::new(programs::path("sumunctl"))
            .args(["policy", "check"])
            .arg(file)
            .output()
            .expect("sumunctl can be started");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        // The one file that is off because of what it costs is warned of.
        assert_eq!(said.contains("warning"), off.contains(file), "{said}");

        let content = fs::read_to_string(file).expect("a policy");
        let name = file.display();
        assert!(content.contains("\nmode = \"observe\"\n"), "{name}");
        for rule in content.split("[[rule]]").skip(1) {
            for key in ["id", "title", "severity", "attack", "rate"] {
                let start = format!("\n{key} = ");
                assert_eq!(rule.matches(&start).count(), 1, "{name}: {key}: {rule}");
            }
            let attack = rule
                .lines()
                .find_map(|line| line.strip_prefix("attack = ["))
                .and_then(|list| list.strip_suffix(']'))
                .unwrap_or_else(|| panic!("{name}: {rule}"));
            for id in attack.split(", ") {
                let number = id.strip_prefix("\"T").and_then(|id| id.strip_suffix('"'));
                let number = number.unwrap_or_else(|| panic!("{name}: {id}"));
                let (technique, sub) = number.split_once('.').unwrap_or((number, "000"));
                let digits = |part: &str, size| {
                    part.len() == size && part.bytes().all(|byte| byte.is_ascii_digit())
                };
                assert!(digits(technique, 4) && digits(sub, 3), "{name}: {id}");
            }
        }
    }
    // Names are unique among the files: both together are taken as one host's. Names of files are, too.
    let rows = explained(&on);
    let policies: BTreeSet<&str> = rows.iter().map(|row| text(row, "policy")).collect();
    assert_eq!(policies.len(), on.len());
    for (policy, file) in on.iter().map(|file| (file.file_stem(), file)) {
        let policy = policy.and_then(|name| name.to_str()).expect("a name");
        assert!(
            policies.contains(policy),
            "{} holds another",
            file.display()
        );
    }
    let mut seen = BTreeSet::new();
    for row in &rows {
        let rule = (text(row, "policy"), text(row, "rule"), text(row, "kind"));
        assert!(seen.insert(rule), "twice: {rule:?}");
        // Every process is sent anyhow; of the rest nothing may be sent whole but what is seldom.
        let cost = match text(row, "kind") {
            "exec" => "free",
            "open" | "connect" | "connect_unix" | "map_exec" => "narrow",
            "module_load" | "ptrace" | "process_vm_writev" | "integrity" => {
                "every event of the kind"
            }
            _ => panic!("{row}"),
        };
        assert_eq!(text(row, "cost"), cost, "{row}");
        assert_eq!(text(row, "cost_of_kind"), cost, "{row}");
        assert_eq!(text(row, "effective"), "alert", "{row}");
    }
}

/// The script of the stages, waiting for its line; ends with its input.
struct Stages {
    child: Child,
    out: tempfile::TempDir,
}

impl Stages {
    fn prepare() -> Self {
        let out = tempfile::Builder::new()
            .prefix("sumun-test.")
            .tempdir_in("/tmp")
            .expect("a temporary directory");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/starter/stages.sh");
        let child = Command::new("perl")
            .args(["-MErrno", "-e", LOWER_PID])
            .args(["unshare", "-m", "/bin/bash"])
            .arg(script)
            .arg("all")
            .arg(out.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("perl can be started");
        Self { child, out }
    }

    /// Lets it run. Its end has come when this returns.
    fn run(&mut self) {
        let mut stdin = self.child.stdin.take().expect("stdin is piped");
        // If it has ended before, its status says so.
        let _ = stdin.write_all(b"go\n");
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(begun.elapsed() < STAGES, "the stages go on: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "{status}: {}", self.log());
        let failed = self.read("failed");
        assert!(failed.is_empty(), "{failed}\n{}", self.log());
        print!("{}", self.read("times"));
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.out.path().join(name)).unwrap_or_default()
    }

    fn log(&self) -> String {
        self.read("log")
    }

    /// The process that all of a stage descend from.
    fn pid(&self, stage: &str) -> i64 {
        let pid = self.read(&format!("{stage}.pid"));
        pid.trim().parse().expect("the stage ran")
    }
}

/// True if the row's process descends from this one.
fn below(row: &Value, pid: i64) -> bool {
    let ancestors = row["proc"]["ancestors"].as_array();
    int(row, "proc.pid") == Some(pid)
        || ancestors.is_some_and(|all| all.iter().any(|one| int(one, "pid") == Some(pid)))
}

fn rule_of(alert: &Value) -> String {
    format!("{}/{}", text(alert, "policy.name"), text(alert, "rule.id"))
}

/// Who did what, for a message.
fn told_of(row: &Value) -> String {
    format!(
        "{} {} {} file {} net {} pid {} ancestors {} undecided {}",
        text(row, "kind"),
        text(row, "proc.exe.path"),
        row["proc"]["args"],
        row["file"]["path"],
        row["net"]["dst"],
        row["proc"]["pid"],
        row["proc"]["ancestors"],
        row["rule"]["undecided"],
    )
}

/// What is stored of a rule that should have told something.
fn stored(ctl: &Ctl, (since, until): (u64, u64), rule: &str, alerts: &[Value]) -> String {
    let mut said = format!("{rule}:");
    let of_it = alerts.iter().filter(|alert| rule_of(alert) == rule);
    for alert in of_it {
        said += &format!("\n  alert: {}", told_of(alert));
    }
    match ctl.events(since, Some(until), &format!(r#""{rule}" in rules"#)) {
        Ok(Answer { rows, completeness }) => {
            for row in rows.iter().take(20) {
                said += &format!("\n  event: {}", told_of(row));
            }
            said += &format!("\n  {} events; {completeness}", rows.len());
        }
        Err(error) => said += &format!("\n  events: {error:#}"),
    }
    said
}

#[test]
fn each_rule_tells_its_attack_and_ordinary_work_is_silent() {
    let Some(turn) = Turn::take("each_rule_tells_its_attack") else {
        return;
    };
    let on = files(".toml");
    let mut rules = names(&explained(&on));
    rules.retain(|rule| !ELSEWHERE.contains(&rule.as_str()));
    let collector = Collector::start().expect("a collector");
    let ctl = collector.ctl();
    // Before the agent, which has to find their parents among what runs already.
    let mut stages = Stages::prepare();
    let mut agent = Agent::enroll_as_usual(turn, &collector).expect("an enrolment");
    let installed = fs::read_dir(agent.home().join("policies")).expect("the policies");
    assert_eq!(installed.count(), on.len(), "an enrolment brings them all");
    for file in &on {
        let name = file.file_stem().expect("a name").to_string_lossy();
        let given = agent.home().join(format!("policies/{name}.toml"));
        let given = fs::read_to_string(given).expect("an installed policy");
        assert_eq!(given, fs::read_to_string(file).expect("a policy"));
        // What others do on this machine meanwhile may match too; it must not fold the alerts of this test.
        assert!(given.contains("rate = \"10/1m\""));
        let loose = given.replace("rate = \"10/1m\"", "rate = \"100000/1m\"");
        agent.policy(&name, &loose).expect("written");
    }
    agent.run().expect("an agent");
    agent.online(&collector).expect("an agent");

    let since = unix_ns();
    stages.run();
    let until = unix_ns();
    let alerts = ctl
        .complete_alerts(since, until, "", LIMIT)
        .unwrap_or_else(|error| panic!("{error:#}; gaps: {:?}", ctl.gaps(since)))
        .rows;

    let of_stage = |stage: &str| -> Vec<&Value> {
        let pid = stages.pid(stage);
        alerts.iter().filter(|row| below(row, pid)).collect()
    };
    let rules_of = |rows: &[&Value]| -> BTreeSet<String> {
        let certain = rows.iter().filter(|row| row["rule"]["undecided"] == false);
        certain.map(|row| rule_of(row)).collect()
    };
    let mut faults = Vec::new();
    let positive = of_stage("positive");
    let expected = of_stage("expected");
    let wanted_there = EXPECTED.iter().map(|&rule| rule.to_owned()).collect();
    for (stage, rows, wanted) in [
        ("positive", &positive, &rules),
        ("expected", &expected, &wanted_there),
    ] {
        let told = rules_of(rows);
        for rule in wanted.difference(&told) {
            let stored = stored(&ctl, (since, until), rule, &alerts);
            faults.push(format!("{stage}: no alert of {stored}"));
        }
        for rule in told.difference(wanted) {
            faults.push(format!("{stage}: an alert of {rule}"));
        }
        let doubts = rows.iter().filter(|row| row["rule"]["undecided"] != false);
        faults.extend(
            doubts.map(|row| format!("{stage}: {} is in doubt: {}", rule_of(row), told_of(row))),
        );
    }
    for stage in ["negative", "ordinary"] {
        let told = of_stage(stage);
        let told = told
            .iter()
            .map(|row| format!("{stage}: {}: {}", rule_of(row), told_of(row)));
        faults.extend(told);
    }
    assert!(
        faults.is_empty(),
        "{}\ngaps: {:?}\n{}",
        faults.join("\n"),
        ctl.gaps(since),
        stages.log()
    );

    // Silence means something only if the work was seen.
    for (stage, least) in [("negative", 40), ("ordinary", 200)] {
        let root = stages.pid(stage);
        let filter = format!(r#"kind == "exec" && proc.ancestors.exists(a, a.pid == {root})"#);
        let seen = ctl
            .complete_events(since, until, &filter, LIMIT)
            .expect("a complete answer")
            .rows
            .len();
        println!("{stage}: {seen} programs, no alert");
        assert!(seen >= least, "{stage}: {seen} programs");
    }
    // Exceptions let pass what they are for.
    for (exception, stage) in [
        (
            "server-shell/web-server-shell/mail and piped logs",
            "negative",
        ),
        ("server-shell/database-shell/archive command", "negative"),
        ("password-files/read/daily backup", "ordinary"),
    ] {
        let excepted = ctl
            .events(
                since,
                Some(until),
                &format!(r#""{exception}" in exceptions"#),
            )
            .expect("an answer");
        let pid = stages.pid(stage);
        assert!(
            excepted.rows.iter().any(|row| below(row, pid)),
            "{exception}"
        );
    }
    println!(
        "positive: {} of {} rules, {} alerts; expected: {} alerts; {} alerts in all",
        rules_of(&positive).len(),
        rules.len(),
        positive.len(),
        expected.len(),
        alerts.len()
    );
}
