//! Everything that happened is stored exactly once, with the right words.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use sumun_tests::check::{self, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::oracle::{self, Connection, Exec, FileCall};
use sumun_tests::{generator, programs};

const MANY: &str = "20000";
/// How long the store may take until an answer is complete.
const LIMIT: Duration = Duration::from_secs(120);

fn sub(dir: &Path, name: &str) -> String {
    let path = dir.join(name);
    fs::create_dir(&path).expect("a directory");
    path.to_str().expect("temporary names are UTF-8").to_owned()
}

#[test]
fn every_exec_is_stored_once_with_parent_path_and_arguments() {
    let Some(turn) = Turn::take("every_exec_is_stored_once") else {
        return;
    };
    let scratch = scratch();
    let collector = Collector::start().expect("a collector");
    let mut agent = Agent::start(turn, &collector, &[]).expect("an agent");
    let (dir, noise) = (sub(scratch.path(), "execs"), sub(scratch.path(), "noise"));
    let oracle = scratch.path().join("execs.jsonl");
    let load = generator::noise(Path::new(&noise), 300).expect("noise");
    let since = unix_ns();
    let count = generator::run(
        "exec-storm",
        &[
            "--dir",
            &dir,
            "--count",
            MANY,
            "--oracle",
            oracle.to_str().expect("UTF-8"),
        ],
    )
    .expect("the storm");
    assert_eq!(count, MANY);
    let until = unix_ns();
    drop(load);
    let done: Vec<Exec> = oracle::read(&oracle).expect("the oracle");
    let filter = format!(r#"kind in ["exec", "exit"] && proc.exe.path.startsWith("{dir}/")"#);
    let answer = collector
        .ctl()
        .complete_events(since, until, &filter, LIMIT)
        .expect("a complete answer");
    let storm = programs::path("exec-storm");
    check::execs(&done, &answer.rows, storm.to_str().expect("UTF-8")).none("execs and exits");
    forks(&collector, since, until, &done);
    agent.stop().expect("the agent stops when told to");
    println!("{MANY} execs, each stored once with its fork and its exit");
}

/// Every program was forked once, by the right parent.
fn forks(collector: &Collector, since: u64, until: u64, done: &[Exec]) {
    let answer = collector
        .ctl()
        .complete_events(
            since,
            until,
            r#"kind == "fork" && proc.exe.name == "exec-storm""#,
            LIMIT,
        )
        .expect("a complete answer");
    let mut problems = check::Problems::default();
    let forks: std::collections::HashMap<i64, &Value> = answer
        .rows
        .iter()
        .filter_map(|row| Some((check::int(row, "proc.pid")?, row)))
        .collect();
    for one in done {
        match forks.get(&i64::from(one.pid)) {
            None => problems.add(&format!("the fork of {} is not stored", one.path)),
            Some(row) if check::int(row, "proc.parent.pid") != Some(one.parent.into()) => {
                problems.add(&format!(
                    "the fork of {} has another parent: {row}",
                    one.path
                ));
            }
            Some(_) => {}
        }
    }
    problems.none("forks");
}

#[test]
fn every_file_call_is_stored_once_with_its_object() {
    let Some(turn) = Turn::take("every_file_call_is_stored_once") else {
        return;
    };
    let scratch = scratch();
    let (dir, noise) = (sub(scratch.path(), "files"), sub(scratch.path(), "noise"));
    let policy = format!(
        r#"
[policy]
name = "files"
version = 1

[[rule]]
id = "under"
on = ["open", "close_write", "rename", "unlink"]
when = 'file.path.startsWith("{dir}/")'
effect = "record"
"#
    );
    let collector = Collector::start().expect("a collector");
    let _agent = Agent::start(turn, &collector, &[("files", &policy)]).expect("an agent");
    let oracle = scratch.path().join("files.jsonl");
    let load = generator::noise(Path::new(&noise), 300).expect("noise");
    let since = unix_ns();
    generator::run(
        "open-storm",
        &[
            "--dir",
            &dir,
            "--count",
            MANY,
            // What a busy file server does; the benchmark asks how much more there could be.
            "--rate",
            "5000",
            "--names",
            "--oracle",
            oracle.to_str().expect("UTF-8"),
        ],
    )
    .expect("the storm");
    let until = unix_ns();
    drop(load);
    let done: Vec<FileCall> = oracle::read(&oracle).expect("the oracle");
    let opened = done.iter().filter(|one| one.kind == "open").count();
    assert_eq!(opened.to_string(), MANY);
    let mut stored = Vec::new();
    for kind in ["open", "close_write", "rename", "unlink"] {
        let filter = format!(
            "kind == {kind:?} && file.path.startsWith({:?})",
            format!("{dir}/")
        );
        let answer = collector
            .ctl()
            .complete_events(since, until, &filter, LIMIT)
            .expect("a complete answer");
        stored.extend(answer.rows);
    }
    check::file_calls(&done, &stored).none("calls on files");
    let names = |row: &&Value| matches!(check::text(row, "kind"), "rename" | "unlink");
    let caller = stored.iter().filter(names);
    let caller = caller.filter(|row| check::text(row, "file.source") == "caller");
    let caller = caller.count();
    let agents = collector.ctl().agents().expect("agents");
    let doors = agents.iter().filter_map(|agent| agent["doors"].as_array());
    let mut doors = doors.flatten().filter(|door| door["kind"] == "rename");
    match doors.next().and_then(|door| door["rung"].as_str()) {
        Some("tracepoint") => println!("{caller} renames and unlinks have the caller's word"),
        rung => assert_eq!(caller, 0, "calls with the caller's word, on {rung:?}"),
    }
    let racy = |row: &&Value| names(row) && check::list(row, "file.flaws").contains(&"racy");
    let racy = stored.iter().filter(racy).count();
    let all = stored.iter().filter(names).count();
    println!("{racy} of {all} renames and unlinks are racy");
    assert!(racy <= all / 10, "{racy} of {all} are racy");
    let compat = done.iter().filter(|one| one.compat).count();
    println!(
        "{opened} opens ({compat} of them 32-bit), {} calls on files in all, each stored once",
        done.len()
    );
    // The rule that asked for them is on every row.
    let without = stored
        .iter()
        .filter(|row| check::list(row, "rules") != ["files/under"])
        .count();
    assert_eq!(without, 0, "rows without the rule that asked for them");
}

#[test]
fn what_no_rule_asks_for_is_not_stored() {
    let Some(turn) = Turn::take("what_no_rule_asks_for_is_not_stored") else {
        return;
    };
    let scratch = scratch();
    let (wanted, other) = (sub(scratch.path(), "wanted"), sub(scratch.path(), "other"));
    let policy = format!(
        r#"
[policy]
name = "files"
version = 1

[[rule]]
id = "wanted"
on = ["open"]
when = 'file.path.startsWith("{wanted}/")'
effect = "record"
"#
    );
    let collector = Collector::start().expect("a collector");
    let _agent = Agent::start(turn, &collector, &[("files", &policy)]).expect("an agent");
    let since = unix_ns();
    for dir in [&other, &wanted] {
        for index in 0..200 {
            fs::write(format!("{dir}/f{index}"), "x").expect("a file");
        }
    }
    let until = unix_ns();
    let ctl = collector.ctl();
    let filter = format!(r#"kind == "open" && file.path.startsWith("{wanted}/")"#);
    let answer = ctl
        .complete_events(since, until, &filter, LIMIT)
        .expect("a complete answer");
    assert_eq!(answer.rows.len(), 200);
    let filter = format!(r#"kind == "open" && file.path.startsWith("{other}/")"#);
    let answer = ctl.events(since, Some(until), &filter).expect("an answer");
    assert_eq!(answer.rows.len(), 0, "{:?}", answer.rows.first());
    // And the answer says that nothing there is no proof that nothing happened.
    assert!(!answer.complete(), "{}", answer.completeness);
    assert!(
        answer.completeness["scope"].to_string().contains("open"),
        "{}",
        answer.completeness
    );
}

#[test]
fn every_connection_is_stored_with_its_result_and_both_ends() {
    let Some(turn) = Turn::take("every_connection_is_stored") else {
        return;
    };
    let scratch = scratch();
    let policy = r#"
[policy]
name = "network"
version = 1

[[rule]]
id = "all"
on = ["connect", "accept"]
when = 'net.dst.port > 0'
effect = "record"
"#;
    let collector = Collector::start().expect("a collector");
    let _agent = Agent::start(turn, &collector, &[("network", policy)]).expect("an agent");
    let since = unix_ns();
    let mut done: Vec<Connection> = Vec::new();
    for (name, more) in [("v4", &[][..]), ("v6", &["--v6"][..])] {
        let oracle = scratch.path().join(name);
        let mut args = vec![
            "--count",
            "2000",
            "--oracle",
            oracle.to_str().expect("UTF-8"),
        ];
        args.extend(more);
        generator::run("connect-storm", &args).expect("the storm");
        done.extend(oracle::read::<Connection>(&oracle).expect("the oracle"));
    }
    let until = unix_ns();
    let mut stored = Vec::new();
    for kind in ["connect", "accept"] {
        let filter = format!(r#"kind == "{kind}" && net.dst.port > 0"#);
        let answer = collector
            .ctl()
            .complete_events(since, until, &filter, LIMIT)
            .expect("a complete answer");
        stored.extend(
            answer
                .rows
                .into_iter()
                .filter(|row| text(row, "proc.exe.name") == "connect-storm"),
        );
    }
    check::connections(&done, &stored).none("connections");
    let refused = done.iter().filter(|one| one.result != 0).count();
    println!(
        "{} ends of connections stored, {refused} of them refused",
        done.len()
    );
}
