//! Programs killed, a collector away, a spool that is full, an agent that does not come back:
//! what is stored and what is recorded as missing add up to what was done.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rand::Rng;
use serde_json::Value;
use sumun_tests::check::{self, Problems, int, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::ctl::Ctl;
use sumun_tests::generator::Background;
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::oracle::{self, Exec, FileCall};
use sumun_tests::programs;

const LIMIT: Duration = Duration::from_secs(120);
/// Always collected, whatever the rules.
const EXECS: &str = r#"kind == "exec""#;

fn sub(dir: &Path, name: &str) -> String {
    let path = dir.join(name);
    fs::create_dir(&path).expect("a directory");
    path.to_str().expect("temporary names are UTF-8").to_owned()
}

/// Records every open under a directory.
fn opens_under(dir: &str) -> String {
    format!(
        r#"
[policy]
name = "faults"
version = 1

[[rule]]
id = "opens"
on = ["open"]
when = 'file.path.startsWith("{dir}/")'
effect = "record"
"#
    )
}

fn storm(name: &str, dir: &str, count: u64, rate: u64, oracle: &Path) -> Background {
    let args: Vec<OsString> = vec![
        "--dir".into(),
        dir.into(),
        "--count".into(),
        count.to_string().into(),
        "--rate".into(),
        rate.to_string().into(),
        "--oracle".into(),
        oracle.into(),
    ];
    Background::start(name, &args).expect("a storm")
}

/// Stored opens under a directory up to now, once the store has everything up to now, gaps or not.
fn settled(ctl: &Ctl, since: u64, filter: &str) -> Vec<Value> {
    let until = unix_ns();
    let begun = Instant::now();
    loop {
        let answer = ctl.events(since, Some(until), filter).expect("an answer");
        // A recorded gap makes it incomplete for ever; the watermarks have to pass all the same.
        let passed = answer.completeness["hosts"]
            .as_array()
            .is_some_and(|hosts| {
                !hosts.is_empty() && hosts.iter().all(|host| reached(host, until))
            });
        if answer.complete() || passed {
            return answer.rows;
        }
        assert!(
            begun.elapsed() < LIMIT,
            "the store has not caught up after {LIMIT:?}: {}",
            answer.completeness
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn reached(host: &Value, until: u64) -> bool {
    let format = &time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::parse(text(host, "through"), format)
        .is_ok_and(|through| through.unix_timestamp_nanos() >= i128::from(until))
}

/// Paths of opens that are not stored; a path stored twice is a problem.
fn missing_opens(done: &[FileCall], rows: &[Value], problems: &mut Problems) -> u64 {
    let mut counts: HashMap<&str, u64> = HashMap::new();
    for row in rows {
        *counts.entry(text(row, "file.path")).or_default() += 1;
    }
    for (path, count) in counts.iter().filter(|(_, count)| **count > 1) {
        problems.add(&format!("open {path} is stored {count} times"));
    }
    let opens = done.iter().filter(|one| one.kind == "open");
    opens
        .filter(|one| !counts.contains_key(one.path.as_str()))
        .count() as u64
}

/// Sum of the gaps of a lane. A gap without a count is a problem: nothing here loses power.
fn recorded(gaps: &[Value], lane: &str, problems: &mut Problems) -> u64 {
    gaps.iter()
        .filter(|gap| text(gap, "gap.lane") == lane)
        .map(|gap| {
            int(gap, "gap.count").map_or_else(
                || {
                    problems.add(&format!("a gap without a count: {gap}"));
                    0
                },
                i64::cast_unsigned,
            )
        })
        .sum()
}

/// Every kill is one of these.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Agent,
    Collector,
    Both,
}

#[test]
fn killed_at_random_moments_nothing_is_lost_unrecorded_or_doubled() {
    let Some(turn) = Turn::take("killed_at_random_moments") else {
        return;
    };
    let kills = if programs::long() { 100 } else { 20 };
    let scratch = scratch();
    let (files, execs) = (sub(scratch.path(), "files"), sub(scratch.path(), "execs"));
    let mut collector = Collector::start().expect("a collector");
    let policy = opens_under(&files);
    let mut agent = Agent::start(turn, &collector, &[("faults", &policy)]).expect("an agent");
    let since = unix_ns();
    // More than the kills can last; ended by the count, so that the oracles are whole.
    let seconds = kills * 2 + 10;
    let (opens_oracle, execs_oracle) = (
        scratch.path().join("opens"),
        scratch.path().join("execs.jsonl"),
    );
    let opens = storm("open-storm", &files, 1500 * seconds, 1500, &opens_oracle);
    let programs_run = storm("exec-storm", &execs, 200 * seconds, 200, &execs_oracle);
    let mut random = rand::rng();
    for round in 0..kills {
        std::thread::sleep(Duration::from_millis(random.random_range(50..900)));
        let victim = match random.random_range(0..5) {
            0 | 1 => Victim::Agent,
            2 | 3 => Victim::Collector,
            _ => Victim::Both,
        };
        println!("kill {round}: {victim:?}");
        if matches!(victim, Victim::Agent | Victim::Both) {
            agent.kill();
        }
        if matches!(victim, Victim::Collector | Victim::Both) {
            collector.kill();
        }
        std::thread::sleep(Duration::from_millis(random.random_range(0..500)));
        if matches!(victim, Victim::Collector | Victim::Both) {
            collector.restart().expect("the collector starts again");
        }
        if matches!(victim, Victim::Agent | Victim::Both) {
            // Not waited for: the next kill may hit it while it starts.
            agent.run().expect("the agent starts again");
        }
    }
    agent
        .online(&collector)
        .expect("the agent is online in the end");
    opens.finish().expect("the opens");
    programs_run.finish().expect("the execs");

    let ctl = collector.ctl();
    let mut problems = Problems::default();
    let rows = settled(
        &ctl,
        since,
        &format!(r#"kind == "open" && file.path.startsWith("{files}/")"#),
    );
    let gaps = ctl.gaps(since).expect("the gaps").rows;
    let done: Vec<FileCall> = oracle::read(&opens_oracle).expect("the oracle");
    let missing = missing_opens(&done, &rows, &mut problems);
    let lost = recorded(&gaps, "bulk", &mut problems);
    println!(
        "opens: {} stored, {missing} missing, {lost} recorded as gaps",
        rows.len()
    );
    assert_eq!(missing, lost, "missing opens and recorded gaps; {gaps:?}");

    let life = settled(&ctl, since, r#"kind in ["fork", "exec", "exit"]"#);
    let in_gaps = check::streams(&life, &gaps, &mut problems);
    gaps.iter().for_each(|gap| println!("gap: {gap}"));
    let done: Vec<Exec> = oracle::read(&execs_oracle).expect("the oracle");
    let exec_rows: Vec<Value> = life
        .iter()
        .filter(|row| text(row, "kind") == "exec" && text(row, "proc.exe.path").starts_with(&execs))
        .cloned()
        .collect();
    let stored = check::by_text(&exec_rows, "proc.exe.path");
    let mut missing = 0;
    for one in &done {
        match stored.get(one.path.as_str()).map(Vec::as_slice) {
            None => {
                missing += 1;
                println!("missing: {one:?}; of its process there are:");
                life.iter()
                    .filter(|row| int(row, "proc.pid") == Some(one.pid.into()))
                    .for_each(|row| println!("  {row}"));
            }
            Some([row]) => {
                if int(row, "proc.pid") != Some(one.pid.into())
                    || int(row, "proc.parent.pid") != Some(one.parent.into())
                    || !one.too_long && check::list(row, "proc.args") != one.args
                {
                    problems.add(&format!("{one:?} is stored as {row}"));
                }
            }
            Some(rows) => {
                problems.add(&format!("exec {} is stored {} times", one.path, rows.len()))
            }
        }
    }
    println!(
        "execs: {} done, {missing} missing, {in_gaps} life records in gaps",
        done.len()
    );
    problems.none("after the kills");
    assert!(
        missing <= in_gaps,
        "{missing} execs are missing, {in_gaps} records lie in gaps"
    );
}

#[test]
fn a_collector_that_was_away_gets_everything() {
    let Some(turn) = Turn::take("a_collector_that_was_away") else {
        return;
    };
    // Longer than it takes until an agent is called silent.
    let away: u64 = if programs::long() { 60 } else { 20 };
    let scratch = scratch();
    let files = sub(scratch.path(), "files");
    let mut collector = Collector::start().expect("a collector");
    let policy = opens_under(&files);
    let mut agent = Agent::start(turn, &collector, &[("faults", &policy)]).expect("an agent");
    let oracle = scratch.path().join("opens");
    let since = unix_ns();
    let opens = storm("open-storm", &files, 2000 * (away + 4), 2000, &oracle);
    std::thread::sleep(Duration::from_secs(2));
    collector.kill();
    std::thread::sleep(Duration::from_secs(away));
    collector.restart().expect("the collector starts again");
    opens.finish().expect("the opens");
    let until = unix_ns();
    agent.online(&collector).expect("the agent is back");
    let filter = format!(r#"kind == "open" && file.path.startsWith("{files}/")"#);
    let answer = collector
        .ctl()
        .complete_events(since, until, &filter, LIMIT)
        .expect("a complete answer");
    let done: Vec<FileCall> = oracle::read(&oracle).expect("the oracle");
    let done: Vec<FileCall> = done.into_iter().filter(|one| one.kind == "open").collect();
    check::file_calls(&done, &answer.rows).none("opens while the collector was away");
    println!(
        "{} opens, the collector away for {away} s, all stored once",
        done.len()
    );
}

#[test]
fn a_full_spool_leaves_an_exact_gap() {
    let Some(turn) = Turn::take("a_full_spool_leaves_an_exact_gap") else {
        return;
    };
    let scratch = scratch();
    let files = sub(scratch.path(), "files");
    let mut collector = Collector::start().expect("a collector");
    let policy = opens_under(&files);
    let mut agent = Agent::enroll(turn, &collector, &[("faults", &policy)]).expect("an agent");
    let mut config = fs::read_to_string(agent.config()).expect("the configuration");
    assert!(
        !config.contains("\n[spool]"),
        "the test writes this table itself: {config}"
    );
    config.push_str("\n[spool]\nbulk = \"16MiB\"\n");
    fs::write(agent.config(), config).expect("the configuration");
    agent.run().expect("the agent runs");
    agent.online(&collector).expect("the agent is online");
    let since = unix_ns();
    collector.kill();
    // Each event takes some 150 bytes in the spool: several times its bound.
    let oracle = scratch.path().join("opens");
    let count = if programs::long() { 400_000 } else { 250_000 };
    storm("open-storm", &files, count, 15_000, &oracle)
        .finish()
        .expect("the opens");
    collector.restart().expect("the collector starts again");
    agent.online(&collector).expect("the agent is back");
    let filter = format!(r#"kind == "open" && file.path.startsWith("{files}/")"#);
    let ctl = collector.ctl();
    let rows = settled(&ctl, since, &filter);
    let gaps = ctl.gaps(since).expect("the gaps").rows;
    let mut problems = Problems::default();
    let done: Vec<FileCall> = oracle::read(&oracle).expect("the oracle");
    let missing = missing_opens(&done, &rows, &mut problems);
    let lost = recorded(&gaps, "bulk", &mut problems);
    println!(
        "{count} opens: {} stored, {missing} missing, {lost} recorded as gaps",
        rows.len()
    );
    problems.none("a full spool");
    assert!(
        missing > 0,
        "the spool's bound was not reached: not exercised"
    );
    assert_eq!(missing, lost, "missing opens and recorded gaps: {gaps:?}");
    assert!(
        gaps.iter()
            .any(|gap| text(gap, "gap.reason") == "spool_full"),
        "no gap says that the spool was full: {gaps:?}"
    );
    // And whoever asks is told.
    let answer = ctl.events(since, None, &filter).expect("an answer");
    assert!(!answer.complete(), "{}", answer.completeness);
    assert!(
        answer.completeness["gaps"]
            .to_string()
            .contains("spool_full"),
        "{}",
        answer.completeness
    );
}

#[test]
fn an_agent_that_does_not_come_back_is_named_in_every_answer() {
    let Some(turn) = Turn::take("an_agent_that_does_not_come_back") else {
        return;
    };
    let collector = Collector::start().expect("a collector");
    let mut agent = Agent::start(turn, &collector, &[]).expect("an agent");
    let since = unix_ns();
    Command::new("/bin/true").status().expect("true runs");
    collector
        .ctl()
        .complete_events(since, unix_ns(), EXECS, LIMIT)
        .expect("a complete answer while it lives");
    agent.kill();
    let ctl = collector.ctl();
    let begun = Instant::now();
    let reason = loop {
        let answer = ctl.events(since, None, EXECS).expect("an answer");
        let host = &answer.completeness["hosts"][0];
        let reason = text(host, "reason");
        if reason.contains("silent") {
            assert!(!answer.complete(), "{}", answer.completeness);
            assert!(
                !answer.rows.is_empty(),
                "what was there before is still found"
            );
            break reason.to_owned();
        }
        assert!(
            begun.elapsed() < LIMIT,
            "never called silent: {}",
            answer.completeness
        );
        std::thread::sleep(Duration::from_millis(500));
    };
    assert!(
        reason.starts_with("data to ") && reason.contains(", then silent"),
        "the reason is '{reason}'"
    );
    let agents = ctl.agents().expect("the agents");
    assert_eq!(text(&agents[0], "state"), "offline");
    assert_eq!(text(&agents[0], "reason"), "silent");
    // While it was away the kernel went on writing into the pinned rings.
    Command::new("/bin/true").status().expect("true runs");
    let until = unix_ns();
    agent.run().expect("it comes back");
    agent.online(&collector).expect("it is online");
    let answer = ctl
        .complete_events(
            since,
            until,
            r#"kind == "exec" && proc.exe.name == "true""#,
            LIMIT,
        )
        .expect("a complete answer, the time it was away included");
    let own = answer
        .rows
        .iter()
        .filter(|row| int(row, "proc.parent.pid") == Some(std::process::id().into()))
        .count();
    assert_eq!(own, 2, "{:?}", answer.rows);
}

#[test]
fn an_agent_that_was_stopped_says_goodbye() {
    let Some(turn) = Turn::take("an_agent_that_was_stopped") else {
        return;
    };
    let collector = Collector::start().expect("a collector");
    let mut agent = Agent::start(turn, &collector, &[]).expect("an agent");
    let since = unix_ns();
    Command::new("/bin/true").status().expect("true runs");
    agent.stop().expect("it stops");
    let ctl = collector.ctl();
    let agents = ctl.agents().expect("the agents");
    assert_eq!(text(&agents[0], "state"), "offline");
    assert_eq!(text(&agents[0], "reason"), "stopped");
    // What happened just before is there: it was drained.
    let answer = ctl
        .events(since, None, r#"kind == "exec" && proc.exe.name == "true""#)
        .expect("an answer");
    assert!(
        answer
            .rows
            .iter()
            .any(|row| int(row, "proc.parent.pid") == Some(std::process::id().into())),
        "{:?}",
        answer.rows
    );
    assert!(!answer.complete(), "{}", answer.completeness);
    agent.release().expect("it can be released");
    assert!(
        !Path::new("/sys/fs/bpf/sumun").exists(),
        "pins are left after release"
    );
}

#[test]
fn a_second_agent_is_refused_with_the_pid_of_the_first() {
    let Some(turn) = Turn::take("a_second_agent_is_refused") else {
        return;
    };
    let collector = Collector::start().expect("a collector");
    let mut agent = Agent::start(turn, &collector, &[]).expect("an agent");
    let output = Command::new(programs::path("sumun-agent"))
        .arg("run")
        .arg("--config")
        .arg(agent.config())
        .output()
        .expect("it can be started");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    let pid = agent.process().pid().to_string();
    assert!(
        said.contains(&pid),
        "the first has pid {pid}; the second said: {said}"
    );
    // And the first is not harmed.
    assert!(agent.process().ended().is_none());
    agent.online(&collector).expect("still online");
}

#[test]
fn a_reload_takes_good_policies_and_keeps_them_when_a_bad_one_comes() {
    let Some(turn) = Turn::take("a_reload_takes_good_policies") else {
        return;
    };
    let scratch = scratch();
    let (first, second) = (sub(scratch.path(), "first"), sub(scratch.path(), "second"));
    let collector = Collector::start().expect("a collector");
    let mut agent =
        Agent::start(turn, &collector, &[("one", &opens_under(&first))]).expect("an agent");
    let ctl = collector.ctl();
    let seen = |dir: &str| {
        let filter = format!(r#"kind == "open" && file.path.startsWith("{dir}/")"#);
        let path = format!("{dir}/probe");
        let since = unix_ns();
        fs::write(&path, "x").expect("a file");
        let until = unix_ns();
        let begun = Instant::now();
        // Until the agent's watermark has passed the write: then it is there, or it never will be.
        loop {
            let answer = ctl.events(since, Some(until), &filter).expect("an answer");
            let passed = answer.completeness["hosts"]
                .as_array()
                .is_some_and(|hosts| hosts.iter().all(|host| reached(host, until)));
            if passed {
                return (!answer.rows.is_empty(), answer.completeness);
            }
            assert!(begun.elapsed() < LIMIT, "{}", answer.completeness);
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let before = unix_ns();
    assert!(seen(&first).0, "the first policy is loaded");
    assert!(
        !seen(&second).0,
        "nobody has asked for the second directory"
    );

    let both = opens_under(&second).replace("faults", "second");
    agent.policy("two", &both).expect("a policy");
    agent.reload();
    let begun = Instant::now();
    while !seen(&second).0 {
        assert!(
            begun.elapsed() < LIMIT,
            "the second policy is never loaded: {}",
            agent.process().said()
        );
    }
    assert!(seen(&first).0, "the first policy is still loaded");
    let (_, completeness) = seen(&second);
    assert_eq!(completeness["complete"], true, "{completeness}");
    // For the time before the reload the answer is not complete, and says why.
    let filter = format!(r#"kind == "open" && file.path.startsWith("{second}/")"#);
    let answer = ctl.events(before, None, &filter).expect("an answer");
    assert!(!answer.complete(), "{}", answer.completeness);
    assert!(
        answer.completeness["scope"].to_string().contains("open"),
        "{}",
        answer.completeness
    );

    // A bad file is refused with its place, and unloads nothing.
    agent
        .policy("three", "[policy]\nname = \"three\"\nversoin = 1\n")
        .expect("a policy");
    agent.reload();
    let begun = Instant::now();
    while !agent.process().said().contains("three.toml:3") {
        assert!(
            begun.elapsed() < LIMIT,
            "no word about the bad file: {}",
            agent.process().said()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(
        agent.process().said().contains("version"),
        "{}",
        agent.process().said()
    );
    assert!(
        seen(&first).0 && seen(&second).0,
        "the good policies are still loaded"
    );
}
