//! Lists of a hundred thousand items, on a real kernel: what is in them is seen, what is not is not,
//! what it takes is said, and one that is too long changes nothing.

use std::fmt::{Display, Write as _};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use sumun_tests::bench::rate::pss_kib;
use sumun_tests::check::text;
use sumun_tests::clock::unix_ns;
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::programs;

const LIMIT: Duration = Duration::from_secs(60);
const ITEMS: usize = 100_000;
/// On the loopback, and on no list of anybody else.
const BAD_ADDRESS: &str = "127.66.6.6";
const BAD_TOOL: &str = "sumun-bad-tool";

fn items<T: Display>(special: &str, count: usize, other: impl Fn(usize) -> T) -> String {
    let mut all = format!("\"{special}\"");
    for n in 1..count {
        let _ = write!(all, ",\n\"{}\"", other(n));
    }
    all
}

/// Three lists of this many items, each with one that the test does.
fn policy(version: u32, dir: &str, count: usize) -> String {
    let paths = items(&format!("{dir}/bad"), count, |n| {
        format!("/srv/indicators/{:02}/sample-{n:06}.bin", n % 97)
    });
    let names = items(BAD_TOOL, ITEMS, |n| format!("indicator-tool-{n:06}"));
    let addresses = items(BAD_ADDRESS, ITEMS, |n| {
        format!("203.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255)
    });
    format!(
        r#"[policy]
name = "ioc"
version = {version}
mode = "enforce"
[lists]
paths = [{paths}]
names = [{names}]
addresses = [{addresses}]
[[rule]]
id = "opened"
on = ["open"]
when = 'file.path in lists.paths'
[[rule]]
id = "started"
on = ["exec"]
when = 'proc.exe.name in lists.names'
effect = "kill"
[[rule]]
id = "met"
on = ["connect"]
when = 'net.dst.ip in lists.addresses'
"#
    )
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

fn wait<T: std::fmt::Debug>(
    what: &str,
    mut answer: impl FnMut() -> T,
    good: impl Fn(&T) -> bool,
) -> T {
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

#[test]
fn a_hundred_thousand_items_are_looked_for() {
    let Some(turn) = Turn::take("a_hundred_thousand_items_are_looked_for") else {
        return;
    };
    let scratch = scratch();
    let dir = scratch.path().to_str().expect("UTF-8").to_owned();
    for name in ["bad", "good"] {
        fs::write(scratch.path().join(name), "").expect("a file");
    }
    let collector = Collector::start().expect("a collector");
    let ctl = collector.ctl();
    let small = format!(
        "[policy]\nname = \"ioc\"\n[[rule]]\nid = \"opened\"\non = [\"open\"]\nwhen = 'file.path == \"{dir}/bad\"'\n"
    );
    let mut agent = Agent::start(turn, &collector, &[("ioc", &small)]).expect("an agent");
    // Memory is given back some time after the start.
    std::thread::sleep(Duration::from_secs(3));
    let pid = agent.process().pid();
    let pss = || pss_kib(pid).expect("it runs");
    let before = pss();

    let loaded = |agent: &mut Agent, version: u32| {
        let begun = Instant::now();
        agent.reload();
        wait(
            "the new version",
            || status(&*agent),
            |state| state["policies"][0]["version"] == version,
        );
        begun.elapsed()
    };
    agent
        .policy("ioc", &policy(2, &dir, ITEMS))
        .expect("a policy");
    let took = loaded(&mut agent, 2);
    std::thread::sleep(Duration::from_secs(3));
    let mut after = vec![pss()];
    for version in 3..6 {
        agent
            .policy("ioc", &policy(version, &dir, ITEMS))
            .expect("a policy");
        loaded(&mut agent, version);
        std::thread::sleep(Duration::from_secs(3));
        after.push(pss());
    }
    println!(
        "agent's PSS: {before} KiB with one path, {after:?} KiB with three lists of {ITEMS} items after each of four reloads; the first took {took:?}"
    );
    // Three lists, 13 MiB in the matcher; the bound is far from that of many copies.
    let most = after.iter().max().expect("four");
    assert!(*most < before + 48 * 1024, "{before} {after:?}");

    // What each of them takes is said offline.
    let file = agent.home().join("policies/ioc.toml");
    let file = file.to_str().expect("UTF-8");
    let checked = ctl.run(&["policy", "check", file]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    println!("{said}");
    assert!(checked.status.success());
    assert!(said.contains("lists.paths has 100000 items, "), "{said}");
    let explained = ctl.run(&["policy", "explain", file, "-o", "json"]);
    let rows: Vec<Value> = serde_json::from_slice(&explained.stdout).expect("JSON");
    let kernel: Vec<&str> = rows
        .iter()
        .map(|row| text(&row["lists"][0], "kernel"))
        .collect();
    assert_eq!(kernel[0], "the 98 folders that they are below", "{rows:?}");
    assert_eq!(rows[1]["effective"], "kill-late");
    assert!(
        text(&rows[1], "reason").contains("longer than the 8,192 items"),
        "{rows:?}"
    );
    assert!(kernel[2].ends_with(" networks around them"), "{rows:?}");
    let table = ctl.run(&["policy", "explain", file]);
    println!("{}", String::from_utf8_lossy(&table.stdout));

    // An item of each, and beside it one that is none.
    let since = unix_ns();
    for name in ["bad", "good"] {
        drop(fs::File::open(scratch.path().join(name)).expect("it opens"));
    }
    for address in [BAD_ADDRESS, "127.66.6.7"] {
        let listener = TcpListener::bind((address, 0)).expect("the loopback");
        let to = listener.local_addr().expect("its address");
        drop(TcpStream::connect(to).expect("it listens"));
    }
    let tool = scratch.path().join(BAD_TOOL);
    fs::copy("/bin/sleep", &tool).expect("a program");
    let mut killed = Command::new(&tool).arg("50").spawn().expect("it starts");
    let ended = killed.wait().expect("it ends");
    assert_eq!(ended.signal(), Some(Signal::SIGKILL as i32), "{ended}");
    let other = scratch.path().join("sumun-good-tool");
    fs::copy("/bin/true", &other).expect("a program");
    assert!(Command::new(&other).status().expect("it starts").success());
    let until = unix_ns();

    // Whatever a rule matched is stored, so a query for that is complete.
    let of_rule = r#"kind == "open" && "ioc/opened" in rules"#;
    let answer = ctl
        .complete_events(since, until, of_rule, LIMIT)
        .expect("a complete answer");
    let paths: Vec<&str> = answer
        .rows
        .iter()
        .map(|row| text(row, "file.path"))
        .collect();
    assert_eq!(paths, [format!("{dir}/bad")]);
    let of_rule = r#"kind == "connect" && "ioc/met" in rules"#;
    let answer = ctl
        .complete_events(since, until, of_rule, LIMIT)
        .expect("a complete answer");
    let met: Vec<&str> = answer
        .rows
        .iter()
        .map(|row| text(row, "net.dst.ip"))
        .collect();
    assert_eq!(met, [BAD_ADDRESS]);
    let alerts = wait(
        "three alerts",
        || ctl.alerts(since, "true").expect("the alerts").rows,
        |rows| rows.len() >= 3,
    );
    let mut rules: Vec<&str> = alerts.iter().map(|row| text(row, "rule.id")).collect();
    rules.sort_unstable();
    assert_eq!(rules, ["met", "opened", "started"], "{alerts:?}");

    // The record of what was collected has the list's hash only: nothing is claimed by an item.
    let of_path = format!(r#"kind == "open" && file.path == "{dir}/bad""#);
    let answer = ctl.events(since, Some(until), &of_path).expect("an answer");
    assert_eq!(answer.rows.len(), 1, "{:?}", answer.rows);
    assert!(!answer.complete(), "{}", answer.completeness);
    let reason = text(&answer.completeness["scope"][0], "reason");
    assert_eq!(reason, "open: filtered");

    // One more than is taken: refused at its place, and what was loaded goes on.
    agent
        .policy("ioc", &policy(9, &dir, ITEMS + 1))
        .expect("a policy");
    agent.reload();
    let state = wait(
        "a fault",
        || status(&agent),
        |state| {
            state["policy_errors"]
                .as_array()
                .is_some_and(|all| !all.is_empty())
        },
    );
    let fault = &state["policy_errors"][0];
    let error = text(fault, "error");
    assert!(
        error.contains(
            "ioc.toml:6:9: error: the list paths has 100001 items, at most 100000 are taken"
        ),
        "{error}"
    );
    assert_eq!(fault["kept"], "ioc");
    assert_eq!(state["policies"][0]["version"], 5, "{state}");
    let since = unix_ns();
    drop(fs::File::open(scratch.path().join("bad")).expect("it opens"));
    wait(
        "an alert of the policy that was kept",
        || {
            ctl.alerts(since, r#"rule.id == "opened""#)
                .expect("the alerts")
                .rows
        },
        |rows| rows.len() == 1,
    );
    agent.stop().expect("it stops");
}
