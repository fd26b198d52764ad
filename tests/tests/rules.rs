//! What rules say, and when they are silent: exceptions, rates, reloads.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use sumun_tests::check::{int, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::ctl::Ctl;
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::programs;

const LIMIT: Duration = Duration::from_secs(60);

fn policy(version: u32, dir: &str) -> String {
    format!(
        r#"
[policy]
name = "rules"
version = {version}

[[rule]]
id = "opened"
title = "A watched file was opened"
on = ["open"]
when = 'file.path.startsWith("{dir}/watched/")'

[[rule.exception]]
name = "health check"
when = 'file.name == "health"'
owner = "ops@example.com"
expires = 2099-01-31

[[rule.exception]]
name = "long over"
when = 'file.name == "over"'
owner = "ops@example.com"
expires = 2020-01-31

[[rule]]
id = "often"
on = ["open"]
when = 'file.path == "{dir}/often"'
rate = "10/1m"
"#
    )
}

fn sumunctl(ctl: &Ctl, args: &[&str]) -> Vec<Value> {
    let output = ctl.run(args);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn status(agent: &Agent) -> Value {
    let output = Command::new(programs::path("sumun-agent"))
        .arg("status")
        .arg("--config")
        .arg(agent.config())
        .args(["-o", "json"])
        .output()
        .expect("sumun-agent can be started");
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Waits for an answer that satisfies.
fn wait<T>(what: &str, mut answer: impl FnMut() -> T, good: impl Fn(&T) -> bool) -> T
where
    T: std::fmt::Debug,
{
    let begun = Instant::now();
    loop {
        let answer = answer();
        if good(&answer) {
            return answer;
        }
        assert!(begun.elapsed() < LIMIT, "never {what}: {answer:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum")
        .arg(path)
        .output()
        .expect("sha256sum can be started");
    let said = String::from_utf8(output.stdout).expect("a hash");
    said.split(' ').next().expect("a hash").to_owned()
}

#[test]
fn an_excepted_event_is_stored_repeats_are_folded_and_a_reload_is_seen() {
    let Some(turn) = Turn::take("an_excepted_event_is_stored") else {
        return;
    };
    let scratch = scratch();
    let dir = scratch.path().to_str().expect("UTF-8").to_owned();
    fs::create_dir(scratch.path().join("watched")).expect("a directory");
    for name in ["watched/plain", "watched/health", "watched/over", "often"] {
        fs::write(scratch.path().join(name), "").expect("a file");
    }
    let collector = Collector::start().expect("a collector");
    let ctl = collector.ctl();
    let mut agent =
        Agent::start(turn, &collector, &[("rules", &policy(1, &dir))]).expect("an agent");
    let since = unix_ns();
    let open = |name: &str| drop(fs::File::open(scratch.path().join(name)).expect("it opens"));
    open("watched/plain");
    open("watched/health");
    open("watched/over");
    for _ in 0..50 {
        open("often");
    }
    let until = unix_ns();

    // Everything is stored, and says which rule matched and which exception let it pass.
    let filter = format!(r#"kind == "open" && file.path.startsWith("{dir}/watched/")"#);
    let answer = ctl
        .complete_events(since, until, &filter, LIMIT)
        .expect("a complete answer");
    assert_eq!(answer.rows.len(), 3, "{:?}", answer.rows);
    for row in &answer.rows {
        assert_eq!(row["rules"], serde_json::json!(["rules/opened"]), "{row}");
        let excepted = match text(row, "file.name") {
            "health" => serde_json::json!(["rules/opened/health check"]),
            _ => serde_json::json!([]),
        };
        assert_eq!(row["exceptions"], excepted, "{row}");
    }
    let by_exception = r#""rules/opened/health check" in exceptions"#;
    let found = ctl.events(since, Some(until), by_exception).expect("rows");
    assert_eq!(found.rows.len(), 1, "{:?}", found.rows);
    let often = format!(r#"kind == "open" && file.path == "{dir}/often""#);
    let answer = ctl
        .complete_events(since, until, &often, LIMIT)
        .expect("a complete answer");
    assert_eq!(answer.rows.len(), 50);

    // No alert for the one that was excepted; the exception that has expired excepts nothing.
    let alerts = |filter: &str| ctl.alerts(since, filter).expect("the alerts").rows;
    let opened = alerts(r#"rule.id == "opened""#);
    let mut names: Vec<&str> = opened.iter().map(|row| text(row, "file.name")).collect();
    names.sort_unstable();
    assert_eq!(names, ["over", "plain"]);
    for row in &opened {
        assert_eq!(int(row, "alert.count"), Some(1));
        assert_eq!(row["alert"]["folded"], false);
    }

    // Ten at once, and the agent is killed before the rest is told.
    let of_rate = || alerts(r#"rule.id == "often""#);
    let first = wait("ten alerts", of_rate, |rows| rows.len() >= 10);
    assert_eq!(first.len(), 10, "{first:?}");
    agent.kill();
    agent.run().expect("it runs again");
    agent.online(&collector).expect("online");

    let state = status(&agent);
    assert_eq!(state["expired_exceptions"], 1, "{state}");
    let modes = &state["policies"][0]["modes"];
    assert_eq!(modes[0]["rule"], "opened");
    assert_eq!(modes[0]["requested"], "observe");
    assert_eq!(modes[0]["effective"], "alert");
    assert_eq!(modes[0]["exceptions"][1]["expired"], true);

    let file = agent.home().join("policies/rules.toml");
    let checked = ctl.run(&["policy", "check", file.to_str().expect("UTF-8")]);
    assert!(checked.status.success(), "an expired exception is no error");
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    let warning = "rules.toml:22:11: warning: the exception \"long over\" of rule \"opened\" expired at 2020-02-01T00:00:00Z";
    assert!(checked.contains(warning), "{checked}");

    // A reload ends the window: one row for the other forty.
    let old = sha256(&file);
    assert_eq!(state["policies"][0]["hash"], old.as_str());
    agent.policy("rules", &policy(2, &dir)).expect("a policy");
    agent
        .policy("bad", "[policy]\nnmae = 1\n")
        .expect("a policy");
    let new = sha256(&file);
    assert_ne!(old, new);
    agent.reload();
    let rows = wait("a folded alert", of_rate, |rows| rows.len() > 10);
    assert_eq!(rows.len(), 11, "{rows:?}");
    let folded: Vec<&Value> = rows
        .iter()
        .filter(|row| row["alert"]["folded"] == true)
        .collect();
    let [folded] = folded[..] else {
        panic!("one folded row, not {folded:?}");
    };
    assert_eq!(int(folded, "alert.count"), Some(40));
    assert!(text(folded, "alert.first") < text(folded, "alert.last"));
    assert!(text(folded, "alert.last") < text(folded, "time"));
    let stored = answer
        .rows
        .iter()
        .any(|row| row["origin"] == folded["origin"]);
    assert!(stored, "the sample is one of the stored events: {folded}");

    // The new version is seen at the host, in the fleet's list and in the scope.
    let state = wait(
        "the new hash in the status",
        || status(&agent),
        |state| {
            let policies = state["policies"].as_array();
            policies.is_some_and(|all| all.iter().any(|policy| policy["hash"] == new.as_str()))
        },
    );
    assert_eq!(state["policies"][0]["version"], 2, "{state}");
    let fault = &state["policy_errors"][0];
    assert!(
        text(fault, "error").contains("bad.toml:2:1: error:"),
        "{fault}"
    );
    let listed = wait(
        "the new hash in the list",
        || sumunctl(&ctl, &["policy", "list", "-o", "json"]),
        |rows| rows.iter().any(|row| row["hash"] == new.as_str()),
    );
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert_eq!(text(&listed[0], "host.id"), agent.id().expect("its id"));
    assert_eq!(listed[0]["modes"][1]["effective"], "alert");
    assert!(text(&listed[1], "file").ends_with("bad.toml"), "{listed:?}");
    let shown = sumunctl(
        &ctl,
        &["agents", "show", &agent.id().expect("its id"), "-o", "json"],
    );
    assert_eq!(shown[0]["policies"][0]["hash"], new.as_str());
    let table = ctl.run(&["policy", "list"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(
        table.contains(&new[..12]) && table.contains("2 alert"),
        "{table}"
    );

    // A window that a stop ends: the row has the process of its first match.
    for _ in 0..15 {
        open("often");
    }
    agent.stop().expect("it stops");
    let rows = wait("the row of the stop", of_rate, |rows| rows.len() > 21);
    let total: i64 = rows.iter().filter_map(|row| int(row, "alert.count")).sum();
    assert_eq!((rows.len(), total), (22, 65), "{rows:?}");
    let last = rows
        .iter()
        .find(|row| int(row, "alert.count") == Some(5))
        .expect("the five beyond ten");
    assert_eq!(int(last, "proc.pid"), Some(std::process::id().into()));
}
