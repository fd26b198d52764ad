//! The starter policies: each rule tells its attack and nothing beside it, and ordinary work is silent.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use sumun_tests::check::{int, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::host::{Agent, Collector, Turn};
use sumun_tests::programs;

const LIMIT: Duration = Duration::from_secs(30);

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
        // Every process is sent anyhow; of the rest nothing may be sent whole.
        let cost = match text(row, "kind") {
            "exec" => "free",
            _ => "narrow",
        };
        assert_eq!(text(row, "cost"), cost, "{row}");
        assert_eq!(text(row, "effective"), "alert", "{row}");
    }
}

/// True if the row's process descends from this one.
fn below(row: &Value, pid: i64) -> bool {
    let ancestors = row["proc"]["ancestors"].as_array();
    int(row, "proc.pid") == Some(pid)
        || ancestors.is_some_and(|all| all.iter().any(|one| int(one, "pid") == Some(pid)))
}

#[test]
fn each_rule_tells_its_attack_and_ordinary_work_is_silent() {
    let Some(turn) = Turn::take("each_rule_tells_its_attack") else {
        return;
    };
    let on = files(".toml");
    let rules = names(&explained(&on));
    // What others do on this machine meanwhile may match too; it must not fold the alerts of this test.
    let policies: Vec<(String, String)> = on
        .iter()
        .map(|file| {
            let name = file.file_stem().expect("a name").to_string_lossy();
            let content = fs::read_to_string(file).expect("a policy");
            assert!(content.contains("rate = \"10/1m\""));
            (
                name.into_owned(),
                content.replace("rate = \"10/1m\"", "rate = \"100000/1m\""),
            )
        })
        .collect();
    let policies: Vec<(&str, &str)> = policies
        .iter()
        .map(|(name, content)| (name.as_str(), content.as_str()))
        .collect();
    let collector = Collector::start().expect("a collector");
    let ctl = collector.ctl();
    let _agent = Agent::start(turn, &collector, &policies).expect("an agent");

    let scratch = tempfile::Builder::new()
        .prefix("sumun-test.")
        .tempdir_in("/tmp")
        .expect("a temporary directory");
    let out = scratch.path();
    let since = unix_ns();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/starter/stages.sh");
    let status = Command::new("timeout")
        .args(["-k", "1", "45", "unshare", "-m", "/bin/bash"])
        .arg(&script)
        .arg("all")
        .arg(out)
        .status()
        .expect("unshare can be started");
    let log = fs::read_to_string(out.join("log")).unwrap_or_default();
    assert!(status.success(), "{status}: {log}");
    assert!(
        !out.join("failed").exists(),
        "{}\n{log}",
        fs::read_to_string(out.join("failed")).unwrap_or_default()
    );
    let pid = |stage: &str| -> i64 {
        let pid = fs::read_to_string(out.join(format!("{stage}.pid"))).expect("the stage ran");
        pid.trim().parse().expect("a number")
    };
    let (negative, ordinary, positive) = (pid("negative"), pid("ordinary"), pid("positive"));

    // The attacks come last: with their alerts, those of the stages before have come too.
    let begun = Instant::now();
    let (alerts, told) = loop {
        let alerts = ctl.alerts(since, "").expect("the alerts").rows;
        let told: BTreeSet<String> = alerts
            .iter()
            .filter(|row| below(row, positive) && row["rule"]["undecided"] == false)
            .map(|row| format!("{}/{}", text(row, "policy.name"), text(row, "rule.id")))
            .collect();
        if told == rules || begun.elapsed() > LIMIT {
            break (alerts, told);
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    let silent: Vec<_> = rules.difference(&told).collect();
    assert!(
        silent.is_empty(),
        "rules without an alert: {silent:?}\n{log}"
    );
    for row in alerts.iter().filter(|row| below(row, positive)) {
        assert_eq!(row["rule"]["undecided"], false, "{row}");
    }
    for (stage, root) in [("negative", negative), ("ordinary", ordinary)] {
        let told: Vec<String> = alerts
            .iter()
            .filter(|row| below(row, root))
            .map(|row| {
                format!(
                    "{}: {} {} {}",
                    row["rule"]["id"], row["proc"]["exe"]["path"], row["proc"]["args"], row["file"]
                )
            })
            .collect();
        assert!(told.is_empty(), "{stage}: {told:#?}");
    }

    // Silence means something only if the work was seen.
    let until = unix_ns();
    for (stage, root, least) in [("negative", negative, 40), ("ordinary", ordinary, 100)] {
        let filter = format!(r#"kind == "exec" && proc.ancestors.exists(a, a.pid == {root})"#);
        let seen = ctl
            .complete_events(since, until, &filter, LIMIT)
            .expect("a complete answer")
            .rows
            .len();
        println!("{stage}: {seen} programs, no alert");
        assert!(seen >= least, "{stage}: {seen} programs");
    }
    let excepted = r#"kind == "exec" && (
        "server-shell/web-server-shell/mail and piped logs" in exceptions || "server-shell/database-shell/archive command" in exceptions)"#;
    let excepted = ctl
        .complete_events(since, until, excepted, LIMIT)
        .expect("a complete answer");
    assert_eq!(excepted.rows.len(), 2, "{:?}", excepted.rows);
    println!(
        "positive: {} of {} rules, {} alerts; {} alerts of others on this machine",
        told.len(),
        rules.len(),
        alerts.iter().filter(|row| below(row, positive)).count(),
        alerts.iter().filter(|row| !below(row, positive)).count()
    );
}
