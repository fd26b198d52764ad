//! Rules that deny, judged by the kernel alone: what does not happen, also while the agent is dead, and what is told of it.

use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sumun_tests::check::{int, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::ctl::Ctl;
use sumun_tests::host::{Agent, Collector, Turn};
use sumun_tests::{programs, raw};

const LIMIT: Duration = Duration::from_secs(60);
const EPERM: i64 = -1;
const PATTERN: &str = "/proc/sys/kernel/core_pattern";

fn policy(name: &str, mode: &str, port: u16) -> String {
    format!(
        r#"
[policy]
name = "{name}"
version = 1
mode = "{mode}"

[[rule]]
id = "port"
title = "Nobody is to talk to it"
on = ["connect"]
when = 'net.dst.port == {port} && proc.exe.name in ["bash", "dash"]'
effect = "deny"
severity = "high"

[[rule.exception]]
name = "dash"
when = 'proc.exe.name == "dash"'
owner = "ops@example.com"

[[rule]]
id = "pattern"
on = ["sysctl"]
when = 'sysctl.name == "kernel.core_pattern" && sysctl.value.startsWith("|/nowhere")'
effect = "deny"

[[rule]]
id = "listens"
on = ["bind"]
when = 'net.dst.port == {port} && proc.args.exists(a, a == "-l")'
effect = "deny"
"#
    )
}

/// What a shell does, and its process id.
fn bash(script: &str) -> (Output, i64) {
    raw::run_here(Command::new("/bin/bash").args(["-c", script]))
}

fn is_denied(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stderr).contains("Operation not permitted")
}

/// The rows of a process of a kind, once there are any.
fn rows(ctl: &Ctl, since: u64, kind: &str, pid: i64) -> Vec<Value> {
    let filter = format!(r#"kind == "{kind}" && proc.pid == {pid}"#);
    let begun = Instant::now();
    loop {
        let rows = ctl.events(since, None, &filter).expect("rows").rows;
        if !rows.is_empty() {
            // As far as now: it is there once, and not again later.
            let _ = ctl.complete_events(since, unix_ns(), &filter, Duration::from_secs(5));
            return ctl.events(since, None, &filter).expect("rows").rows;
        }
        assert!(begun.elapsed() < LIMIT, "no {kind} of {pid}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn alerts(ctl: &Ctl, since: u64, pid: i64) -> Vec<(String, String)> {
    let begun = Instant::now();
    loop {
        let filter = format!("proc.pid == {pid}");
        let rows = ctl.alerts(since, &filter).expect("alerts").rows;
        if rows.len() >= 2 || begun.elapsed() > LIMIT {
            let of = |row: &Value| {
                let rule = format!("{}/{}", text(row, "policy.name"), text(row, "rule.id"));
                (rule, text(row, "verdict.outcome").to_owned())
            };
            let mut all: Vec<_> = rows.iter().map(of).collect();
            all.sort();
            return all;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn verdict(row: &Value) -> [&str; 3] {
    ["requested", "effective", "outcome"].map(|field| text(row, &format!("verdict.{field}")))
}

fn status(agent: &Agent) -> Value {
    let output = Command::new(programs::path("sumun-agent"))
        .args(["status", "-o", "json", "--config"])
        .arg(agent.config())
        .output()
        .expect("the status");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// What makes calls of a kind fail, and why it is not better.
fn door(status: &Value, kind: &str) -> (String, String) {
    let hooks = status["hooks"].as_array().cloned().unwrap_or_default();
    let door = hooks.iter().find(|hook| hook["kind"] == kind);
    let word = |key: &str| {
        let word = door.and_then(|door| door[key].as_str());
        word.unwrap_or_default().to_owned()
    };
    (word("deny"), word("deny_reason"))
}

#[test]
fn what_the_kernel_denies_does_not_happen_and_is_told_once() {
    let Some(turn) = Turn::take("what_the_kernel_denies") else {
        return;
    };
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = tcp.local_addr().expect("its address").port();
    let udp = UdpSocket::bind(("127.0.0.1", port)).expect("the same port");
    tcp.set_nonblocking(true).expect("a listener");
    udp.set_nonblocking(true).expect("a socket");
    let quiet = || {
        tcp.accept()
            .is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
            && udp
                .recv(&mut [0; 8])
                .is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    let collector = Collector::start().expect("a collector");
    let ctl = collector.ctl();
    let policies = [
        ("strict", policy("strict", "enforce", port)),
        ("watch", policy("watch", "observe", port)),
    ];
    let policies = policies
        .each_ref()
        .map(|(name, text)| (*name, text.as_str()));
    let mut agent = Agent::start(turn, &collector, &policies).expect("an agent");
    let said = status(&agent);
    for kind in ["connect", "bind", "sysctl"] {
        let (deny, reason) = door(&said, kind);
        if deny == "none" {
            println!("SKIPPED what_the_kernel_denies: {kind} cannot be denied here: {reason}");
            return;
        }
        assert!(
            ["cgroup", "lsm"].contains(&deny.as_str()),
            "{kind}: {deny} {reason}"
        );
    }
    // What cannot be denied at all says nothing, what could be elsewhere says why not here.
    assert_eq!(door(&said, "fork").0, "");
    let (deny, reason) = door(&said, "rename");
    assert!(
        deny == "lsm" || deny == "none" && !reason.is_empty(),
        "{deny} {reason}"
    );
    let modes = |policy: &str| {
        let policies = said["policies"].as_array().cloned().unwrap_or_default();
        let found = policies
            .iter()
            .find(|known| known["name"] == policy)
            .cloned();
        let modes = found.map_or(Value::Null, |found| found["modes"].clone());
        let modes = modes.as_array().cloned().unwrap_or_default();
        let of = |mode: &Value| {
            let word = |key: &str| mode[key].as_str().unwrap_or_default().to_owned();
            (word("rule"), word("effective"), word("reason"))
        };
        modes.iter().map(of).collect::<Vec<_>>()
    };
    let strict = modes("strict");
    assert_eq!(
        strict
            .iter()
            .map(|(rule, mode, _)| (rule.as_str(), mode.as_str()))
            .collect::<Vec<_>>(),
        [("port", "deny"), ("pattern", "deny"), ("listens", "alert")]
    );
    assert!(
        strict[2].2.contains("the kernel cannot judge"),
        "{}",
        strict[2].2
    );
    assert!(modes("watch").iter().all(|(_, mode, _)| mode == "alert"));

    let since = unix_ns();
    let tcp_script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
    let (output, pid) = bash(&tcp_script);
    assert!(is_denied(&output) && quiet(), "{output:?}");
    let found = rows(&ctl, since, "connect", pid);
    let [row] = &found[..] else {
        panic!("one event, not {found:?}");
    };
    assert_eq!(verdict(row), ["enforce", "deny", "denied"], "{row}");
    assert_eq!(int(row, "result"), Some(EPERM), "{row}");
    assert_eq!(
        (
            text(row, "net.dst.ip"),
            int(row, "net.dst.port"),
            text(row, "net.proto")
        ),
        ("127.0.0.1", Some(port.into()), "tcp")
    );
    assert_eq!(text(row, "proc.exe.name"), "bash");
    assert_eq!(row["rules"], json!(["strict/port", "watch/port"]), "{row}");
    assert_eq!(
        alerts(&ctl, since, pid),
        [
            ("strict/port".to_owned(), "denied".to_owned()),
            ("watch/port".to_owned(), "would-deny".to_owned()),
        ]
    );
    // A datagram of a socket that bash connects.
    let (output, pid) = bash(&format!("echo x >/dev/udp/127.0.0.1/{port}"));
    assert!(is_denied(&output) && quiet(), "{output:?}");
    let found = rows(&ctl, since, "connect", pid);
    assert_eq!(
        (found.len(), text(&found[0], "net.proto")),
        (1, "udp"),
        "{found:?}"
    );

    // Settings: the value stays, the attempt is on record.
    let before = fs::read_to_string(PATTERN).expect("a setting");
    if fs::write(PATTERN, &before).is_ok() {
        let (output, pid) = bash(&format!("echo '|/nowhere %p' >{PATTERN}"));
        assert!(is_denied(&output), "{output:?}");
        assert_eq!(fs::read_to_string(PATTERN).expect("a setting"), before);
        let found = rows(&ctl, since, "sysctl", pid);
        let [row] = &found[..] else {
            panic!("one event, not {found:?}");
        };
        assert_eq!(verdict(row), ["enforce", "deny", "denied"], "{row}");
        assert_eq!(
            (
                text(row, "sysctl.name"),
                text(row, "sysctl.value"),
                int(row, "result")
            ),
            ("kernel.core_pattern", "|/nowhere %p", Some(EPERM))
        );
    } else {
        println!("SKIPPED settings: /proc/sys is not writable here");
    }

    // The agent is killed: the kernel goes on, and the next one tells what it did.
    agent.kill();
    let (output, alone) = bash(&tcp_script);
    assert!(is_denied(&output) && quiet(), "{output:?}");
    agent.run().expect("the next agent");
    let found = rows(&ctl, since, "connect", alone);
    assert_eq!(
        (found.len(), verdict(&found[0])),
        (1, ["enforce", "deny", "denied"]),
        "{found:?}"
    );
    agent.stop().expect("its end");
    let (output, _) = bash(&tcp_script);
    assert!(is_denied(&output) && quiet(), "{output:?}");
    agent.release().expect("the pins are removed");
    let (output, _) = bash(&tcp_script);
    assert!(output.status.success(), "{output:?}");
    assert!(tcp.accept().is_ok());
}
