//! What the programs promise whoever calls them: files, exit codes, words.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use sumun_tests::check::{int, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::programs;

const LIMIT: Duration = Duration::from_secs(60);

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn enroll(collector: &Collector, token: &Path, ca: &Path, out: &Path) -> Output {
    Command::new(programs::path("sumun-agent"))
        .arg("enroll")
        .arg("--collector")
        .arg(collector.addr().expect("an address"))
        .arg("--token-file")
        .arg(token)
        .arg("--ca")
        .arg(ca)
        .arg("--out")
        .arg(out)
        .output()
        .expect("sumun-agent can be started")
}

/// The words of a refusal: it must end with this status and say all of these.
#[track_caller]
fn refused(output: &Output, status: i32, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(status), "{said}");
    for word in words {
        assert!(said.contains(word), "'{word}' is not in: {said}");
    }
}

#[test]
fn secrets_are_for_their_owner_alone() {
    let collector = Collector::start().expect("a collector");
    for name in ["admin.toml", "enroll.token", "ca/ca.key"] {
        let path = collector.dir().join(name);
        let mode = fs::metadata(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let scratch = scratch();
    let out = scratch.path().join("agent");
    let dir = collector.dir();
    let output = enroll(
        &collector,
        &dir.join("enroll.token"),
        &dir.join("ca/ca.pem"),
        &out,
    );
    assert!(output.status.success(), "{}", said(&output));
    let key = fs::read_dir(&out)
        .expect("the agent's folder")
        .flatten()
        .find(|entry| {
            fs::read_to_string(entry.path()).is_ok_and(|text| text.contains("PRIVATE KEY"))
        })
        .expect("a key");
    let mode = key.metadata().expect("its mode").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{:?}", key.path());
}

#[test]
fn a_token_is_used_up_and_a_wrong_one_or_another_ca_is_refused() {
    let scratch = scratch();
    let collector = Collector::start().expect("a collector");
    let ca = collector.dir().join("ca/ca.pem");
    let output = collector.ctl().run(&["tokens", "create", "--uses", "1"]);
    assert!(output.status.success(), "{}", said(&output));
    let token = scratch.path().join("token");
    fs::write(&token, &output.stdout).expect("a token");
    let first = enroll(&collector, &token, &ca, &scratch.path().join("one"));
    assert!(first.status.success(), "{}", said(&first));
    let second = enroll(&collector, &token, &ca, &scratch.path().join("two"));
    refused(&second, 1, &["token"]);
    assert!(
        !scratch.path().join("two/agent.toml").exists(),
        "a refused enrolment wrote a configuration"
    );
    // An identity is not overwritten by accident.
    let good = collector.dir().join("enroll.token");
    let again = enroll(&collector, &good, &ca, &scratch.path().join("one"));
    refused(&again, 1, &["--force"]);

    fs::write(&token, "not-a-token\n").expect("a token");
    refused(
        &enroll(&collector, &token, &ca, &scratch.path().join("three")),
        1,
        &["token"],
    );

    let other = Collector::start().expect("another collector");
    let other_ca = other.dir().join("ca/ca.pem");
    refused(
        &enroll(&collector, &good, &other_ca, &scratch.path().join("four")),
        1,
        &["certificate"],
    );
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest() {
    let scratch = scratch();
    let mut collector = Collector::start().expect("a collector");
    let dir = collector.dir().to_owned();
    let home = scratch.path().join("agent");
    let output = enroll(
        &collector,
        &dir.join("enroll.token"),
        &dir.join("ca/ca.pem"),
        &home,
    );
    assert!(output.status.success(), "{}", said(&output));

    let agent_toml = home.join("agent.toml");
    let good = fs::read_to_string(&agent_toml).expect("the configuration");
    let check = || {
        Command::new(programs::path("sumun-agent"))
            .arg("check-config")
            .arg("--config")
            .arg(&agent_toml)
            .output()
            .expect("sumun-agent can be started")
    };
    let output = check();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let line = good.lines().count() + 1;
    fs::write(&agent_toml, format!("{good}[spol]\nbulk = 1\n")).expect("the configuration");
    refused(
        &check(),
        1,
        &[&format!("agent.toml:{line}:"), "spol", "spool"],
    );
    fs::write(&agent_toml, &good).expect("the configuration");

    let policies = home.join("policies");
    fs::create_dir_all(&policies).expect("the policies' folder");
    let rule = |when: &str| {
        format!(
            "[policy]\nname = \"p\"\nversion = 1\n\n[[rule]]\nid = \"r\"\non = [\"exec\"]\nwhen = '{when}'\n"
        )
    };
    for (policy, words) in [
        (
            rule("proc.exe.nam == \"x\""),
            &["p.toml:8:", "proc.exe.nam", "proc.exe.name"][..],
        ),
        (rule("proc.pid == \"x\""), &["p.toml:8:", "int"]),
        (rule("proc.pid == 1 &&"), &["p.toml:8:"]),
        (rule("true").replace("rule", "rul"), &["p.toml:5:", "rul"]),
        (
            rule("true") + "effect = \"capture\"\n",
            &["p.toml:9:", "not yet"],
        ),
    ] {
        fs::write(policies.join("p.toml"), &policy).expect("a policy");
        refused(&check(), 1, words);
    }
    fs::write(policies.join("p.toml"), rule("proc.exe.name == \"x\"")).expect("a policy");
    assert_eq!(check().status.code(), Some(0), "{}", said(&check()));

    collector.stop().expect("it stops");
    let toml = dir.join("collector.toml");
    let text = fs::read_to_string(&toml).expect("the configuration");
    let line = text.lines().count() + 1;
    fs::write(&toml, format!("{text}[zebra]\n")).expect("the configuration");
    let output = Command::new(programs::path("sumun-collector"))
        .arg("run")
        .arg("--config")
        .arg(&toml)
        .output()
        .expect("sumun-collector can be started");
    refused(&output, 1, &[&format!("collector.toml:{line}:"), "zebra"]);
}

#[test]
fn sumunctl_says_with_its_status_what_became_of_a_command() {
    let collector = Collector::start().expect("a collector");
    let ctl = collector.ctl();
    for wrong in [
        &["events", "lst"][..],
        &["nonsense"],
        &["events", "list", "--since", "yesterday"],
        &["events", "list", "-o", "xml"],
    ] {
        refused(&ctl.run(wrong), 2, &[]);
    }
    // Nobody has enrolled: an empty answer is an answer.
    let output = ctl.run(&["events", "list", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON"),
        serde_json::json!([])
    );

    let predicate = |text: &str| ctl.run(&["events", "list", "--where", text]);
    for (text, words) in [
        (r#"proc.exe.nam == "x""#, &["proc.exe.name", "1:"][..]),
        (r#"proc.pid == "x""#, &["int"]),
        ("proc.pid == ", &["1:"]),
    ] {
        let output = predicate(text);
        assert_ne!(output.status.code(), Some(0), "{text}: {}", said(&output));
        for word in words {
            assert!(
                said(&output).contains(word),
                "{text}: '{word}' is not in: {}",
                said(&output)
            );
        }
    }
    // Hostile ones are refused before they are parsed, and the collector lives on.
    for hostile in [
        format!("{}true{}", "(".repeat(2000), ")".repeat(2000)),
        format!("a{}", ".b".repeat(2000)),
        format!("true{}", " && true".repeat(2000)),
        "!".repeat(4000) + "true",
        format!("proc.exe.name == \"{}\"", "x".repeat(100_000)),
    ] {
        let output = predicate(&hostile);
        assert_ne!(output.status.code(), Some(0), "{}", said(&output));
    }
    assert_eq!(ctl.run(&["agents", "list"]).status.code(), Some(0));

    let gone = collector.dir().join("no-such-file.toml");
    let output = Command::new(programs::path("sumunctl"))
        .arg("--config")
        .arg(&gone)
        .args(["agents", "list"])
        .output()
        .expect("sumunctl can be started");
    refused(&output, 1, &["no-such-file.toml"]);
    // Another token is no admin's.
    let admin = fs::read_to_string(collector.dir().join("admin.toml")).expect("the context");
    let token = admin
        .lines()
        .find(|line| line.starts_with("token"))
        .expect("a token");
    let forged = collector.dir().join("forged.toml");
    fs::write(&forged, admin.replace(token, "token = \"forged\"")).expect("a context");
    let output = Command::new(programs::path("sumunctl"))
        .arg("--config")
        .arg(&forged)
        .args(["agents", "list"])
        .output()
        .expect("sumunctl can be started");
    refused(&output, 1, &["token"]);
}

#[test]
fn answers_come_in_every_form_with_their_completeness() {
    let Some(turn) = Turn::take("answers_come_in_every_form") else {
        return;
    };
    let policy = r#"
[policy]
name = "interface"
version = 7

[[rule]]
id = "true-ran"
title = "The program true ran"
on = ["exec"]
when = 'proc.exe.name == "true"'
effect = "alert"
severity = "high"
attack = ["T1059"]
"#;
    let collector = Collector::start().expect("a collector");
    let agent = Agent::start(turn, &collector, &[("interface", policy)]).expect("an agent");
    let ctl = collector.ctl();
    let since = unix_ns();
    // Through a shell, so that there is something between this test and the program.
    let mut shell = Command::new("/bin/sh")
        .args(["-c", "/bin/true 'a b' '\u{1b}[31m'; exit 3"])
        .spawn()
        .expect("a shell");
    let pid = shell.id();
    shell.wait().expect("it ends");
    let until = unix_ns();
    let filter = r#"kind == "exec" && proc.exe.name == "true""#;
    let answer = ctl
        .complete_events(since, until, filter, LIMIT)
        .expect("a complete answer");
    assert_eq!(answer.rows.len(), 1, "{:?}", answer.rows);
    let row = &answer.rows[0];
    assert_eq!(int(row, "proc.parent.pid"), Some(pid.into()));
    assert_eq!(
        row["proc"]["args"],
        serde_json::json!(["/bin/true", "a b", "\u{1b}[31m"])
    );
    // 64-bit ids are strings: no reader of JSON may round them.
    for field in ["boot_ns", "proc.exec_id", "proc.start", "origin.seq"] {
        let value = field.split('.').fold(row, |value, key| &value[key]);
        assert!(value.is_string(), "{field} is {value}");
    }

    let rfc = sumun_tests::clock::rfc3339;
    let (from, to) = (rfc(since), rfc(until));
    let list = |more: &[&str]| {
        let mut args = vec!["events", "list", "--since", &from, "--until", &to];
        args.extend(more);
        ctl.run(&args)
    };
    let json = list(&["--where", filter, "-o", "json"]);
    let rows: Vec<Value> = serde_json::from_slice(&json.stdout).expect("one array");
    assert_eq!(&rows, &answer.rows);
    let table = list(&["--where", filter]);
    let text_of_table = said(&table);
    assert!(text_of_table.contains("/bin/true 'a b'"), "{text_of_table}");
    assert!(
        !text_of_table.contains('\u{1b}'),
        "an argument reached the terminal: {text_of_table}"
    );

    let limited = list(&["--limit", "1", "-o", "jsonl"]);
    assert_eq!(String::from_utf8_lossy(&limited.stdout).lines().count(), 1);
    assert!(
        said(&limited).contains(r#""truncated":true"#),
        "{}",
        said(&limited)
    );

    // A question about what is not collected is answered, and not complete.
    let unasked = r#"kind == "open" && file.path.startsWith("/nowhere/")"#;
    let output = list(&["--where", unasked, "-o", "jsonl"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(
        said(&output).contains(r#""complete":false"#),
        "{}",
        said(&output)
    );
    let output = list(&["--where", unasked, "-o", "jsonl", "--require-complete"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let output = list(&["--where", filter, "-o", "jsonl", "--require-complete"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));

    // The alert is a row of its own, the event never among alerts, the alert never among events.
    let alerts = ctl.alerts(since, "").expect("the alerts").rows;
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    assert_eq!(text(&alerts[0], "rule.id"), "true-ran");
    assert_eq!(text(&alerts[0], "rule.severity"), "high");
    assert_eq!(text(&alerts[0], "policy.name"), "interface");
    assert_eq!(int(&alerts[0], "policy.version"), Some(7));
    assert_eq!(alerts[0]["origin"], row["origin"]);

    let agents = ctl.agents().expect("the agents");
    assert_eq!(agents.len(), 1);
    let id = text(&agents[0], "id");
    assert_eq!(id, agent.id().expect("the agent's id"));
    let exec_id = text(row, "proc.exec_id");
    for process in [pid.to_string(), exec_id.to_owned()] {
        let tree = ctl.run(&["tree", id, &process, "--since", &from, "--until", &to]);
        assert_eq!(tree.status.code(), Some(0), "{}", said(&tree));
        assert!(said(&tree).contains("/bin/true"), "{}", said(&tree));
    }

    let status = Command::new(programs::path("sumun-agent"))
        .arg("status")
        .arg("--config")
        .arg(agent.config())
        .args(["-o", "json"])
        .output()
        .expect("sumun-agent can be started");
    assert_eq!(status.status.code(), Some(0), "{}", said(&status));
    assert!(
        serde_json::from_slice::<Value>(&status.stdout)
            .expect("JSON")
            .is_object(),
        "{}",
        said(&status)
    );
}
