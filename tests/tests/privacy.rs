//! Secrets in arguments: rules see them, the collector, the spool and the logs do not.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use sumun_tests::check::{list, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::host::{Agent, Collector, Turn};
use sumun_tests::programs;

const LIMIT: Duration = Duration::from_secs(60);

/// The secret. The rule names its beginning alone: what was loaded is told to the collector.
const SECRET: &str = "Zq7sumunsecret";

const POLICY: &str = r#"
[policy]
name = "privacy"
version = 1

[[rule]]
id = "seen"
on = ["exec"]
when = 'proc.args.exists(a, a.contains("Zq7sumun"))'
severity = "high"
"#;

/// Files below a folder that hold some bytes.
fn holding(folder: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(holding(&path, bytes));
        } else if fs::read(&path)
            .is_ok_and(|text| text.windows(bytes.len()).any(|part| part == bytes))
        {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn rules_see_secrets_and_nothing_that_leaves_the_host_does() {
    let name = "rules_see_secrets";
    let Some(turn) = Turn::take(name) else {
        return;
    };
    let collector = Collector::start().expect("a collector");
    let mut agent = Agent::start(turn, &collector, &[("privacy", POLICY)]).expect("an agent");
    let since = unix_ns();
    for args in [
        vec!["--password".to_owned(), SECRET.to_owned(), "one".to_owned()],
        vec![format!("--db-password={SECRET}"), "two".to_owned()],
        vec![format!("https://me:{SECRET}@host/three")],
        vec!["-c".to_owned(), format!("mysql -p{SECRET} four")],
    ] {
        let status = Command::new("/bin/true").args(&args).status();
        assert!(status.expect("/bin/true can be started").success());
    }
    let ctl = collector.ctl();
    let alerts = ctl
        .complete_alerts(since, unix_ns(), r#"rule.id == "seen""#, LIMIT)
        .expect("an answer that is complete");
    let rows = &alerts.rows;
    assert_eq!(rows.len(), 4, "{rows:?}");
    for (row, told) in rows.iter().zip([
        &["/bin/true", "--password", "[redacted]", "one"][..],
        &["/bin/true", "--db-password=[redacted]", "two"],
        &["/bin/true", "https://me:[redacted]@host/three"],
        &["/bin/true", "-c", "mysql -p[redacted] four"],
    ]) {
        assert_eq!(list(row, "proc.args"), told);
        assert_eq!(list(row, "proc.args_flaws"), ["redacted"]);
        assert_eq!(text(row, "proc.exe.name"), "true");
    }
    // Searches see what was sent.
    let events = ctl
        .events(
            since,
            None,
            r#"kind == "exec" && proc.args.exists(a, a == "[redacted]")"#,
        )
        .expect("an answer");
    assert_eq!(events.rows.len(), 1, "{:?}", events.rows);

    agent.stop().expect("it stops");
    for folder in [agent.home(), collector.dir().to_path_buf()] {
        let found = holding(&folder, SECRET.as_bytes());
        assert!(found.is_empty(), "{found:?}");
    }
    // A report of what went wrong tells as little.
    let report = agent.home().join("report.tar");
    let written = Command::new(programs::path("sumun-agent"))
        .args(["bugreport", "--config"])
        .arg(agent.config())
        .arg("--out")
        .arg(&report)
        .output()
        .expect("sumun-agent can be started");
    assert!(
        written.status.success(),
        "{}",
        String::from_utf8_lossy(&written.stderr)
    );
    let key = fs::read_to_string(agent.home().join("agent.key")).expect("its key");
    let line = key.lines().nth(1).expect("a key has lines");
    let text = fs::read(&report).expect("the report");
    assert!(
        !text.windows(line.len()).any(|part| part == line.as_bytes()),
        "the key is in the report"
    );
}
