//! Rules that deny, held by permission events: what fails, what does not, who is never made to wait, and what is told of it.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sumun_tests::check::{int, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::container::{Cgroup, id};
use sumun_tests::ctl::Ctl;
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::{programs, raw};

const LIMIT: Duration = Duration::from_secs(60);
/// The longest a call may wait when nobody answers: the agent looks after 100 ms, and this host is busy.
const WAITS: Duration = Duration::from_secs(5);
const EPERM: i64 = -1;

fn policy(name: &str, mode: &str, dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"
[policy]
name = "{name}"
version = 1
mode = "{mode}"

[[rule]]
id = "secret"
title = "A secret was opened"
on = ["open"]
when = 'file.path == "{dir}/{name}/secret"'
effect = "deny"
severity = "high"

[[rule.exception]]
name = "head"
when = 'proc.exe.name == "head"'
owner = "ops@example.com"

[[rule]]
id = "vault"
on = ["open"]
when = 'file.path.startsWith("{dir}/{name}/vault/")'
effect = "deny"

[[rule]]
id = "writes"
on = ["open"]
when = 'file.path == "{dir}/{name}/settings" && file.access.write'
effect = "deny"

[[rule]]
id = "tool"
on = ["exec"]
when = 'proc.exe.path == "{dir}/{name}/tool"'
effect = "deny"

[[rule]]
id = "arguments"
on = ["open"]
when = 'file.path == "{dir}/{name}/plain" && "{dir}/{name}/plain" in proc.args'
effect = "deny"
"#
    )
}

/// Files that the rules name, in a folder of their own.
fn files(dir: &Path, name: &str) -> PathBuf {
    let home = dir.join(name);
    fs::create_dir_all(home.join("vault/deep")).expect("folders");
    for file in ["secret", "secrets", "settings", "plain", "vault/deep/key"] {
        fs::write(home.join(file), format!("content of {file}\n")).expect("a file");
    }
    fs::copy("/bin/echo", home.join("tool")).expect("a copy");
    fs::copy("/bin/echo", home.join("tools")).expect("a copy");
    home
}

/// What `cat` says of a file, and its process id.
fn cat(path: &Path) -> (Output, i64) {
    raw::run_here(Command::new("/bin/cat").arg(path))
}

#[track_caller]
fn assert_denied(path: &Path) -> i64 {
    let (output, pid) = cat(path);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.stdout.is_empty(), "{} was read", path.display());
    assert!(
        said.contains("Operation not permitted"),
        "{}: {said}",
        path.display()
    );
    pid
}

#[track_caller]
fn assert_read(path: &Path) -> i64 {
    let (output, pid) = cat(path);
    assert!(output.status.success(), "{output:?}");
    assert!(!output.stdout.is_empty());
    pid
}

/// Once it is denied, within the time in which new marks are made.
fn until_denied(path: &Path) {
    let begun = Instant::now();
    while cat(path).0.status.success() {
        assert!(begun.elapsed() < LIMIT, "{} can be read", path.display());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The rows of a process of a kind, once everything of it has come.
fn rows(ctl: &Ctl, since: u64, kind: &str, pid: i64, file: &str) -> Vec<Value> {
    let mut filter = format!(r#"kind == "{kind}" && proc.pid == {pid}"#);
    if !file.is_empty() {
        filter.push_str(&format!(r#" && file.path == "{file}""#));
    }
    let answer = ctl.events(since, None, &filter).expect("rows");
    if !answer.rows.is_empty() {
        // As far as now: it is there once, and not again later.
        let filter = format!("proc.pid == {pid}");
        wait_through(ctl, since, &filter);
    }
    let answer = ctl.events(since, None, &filter).expect("rows");
    answer.rows
}

fn wait_through(ctl: &Ctl, since: u64, filter: &str) {
    let _ = ctl.complete_events(since, unix_ns(), filter, Duration::from_secs(5));
}

#[track_caller]
fn told_once(ctl: &Ctl, since: u64, kind: &str, pid: i64, file: &str, verdict: [&str; 4]) -> Value {
    let begun = Instant::now();
    let row = loop {
        let rows = rows(ctl, since, kind, pid, file);
        match &rows[..] {
            [row] => break row.clone(),
            [] if begun.elapsed() < LIMIT => std::thread::sleep(Duration::from_millis(100)),
            rows => panic!("one {kind} of {pid}, not {rows:?}"),
        }
    };
    assert_verdict(&row, verdict);
    row
}

#[track_caller]
fn assert_verdict(row: &Value, [requested, effective, outcome, reason]: [&str; 4]) {
    let said = |field: &str| text(row, &format!("verdict.{field}")).to_owned();
    assert_eq!(
        [said("requested"), said("effective"), said("outcome")],
        [requested, effective, outcome],
        "{row}"
    );
    assert!(said("reason").contains(reason), "{row}");
}

#[track_caller]
fn alerted_once(ctl: &Ctl, since: u64, pid: i64, rule: &str, verdict: [&str; 4]) {
    let begun = Instant::now();
    loop {
        let filter = format!(r#"proc.pid == {pid} && rule.id == "{rule}""#);
        let rows = ctl.alerts(since, &filter).expect("alerts").rows;
        if let [row] = &rows[..] {
            return assert_verdict(row, verdict);
        }
        assert!(
            rows.is_empty() && begun.elapsed() < LIMIT,
            "one alert, not {rows:?}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn status(agent: &Agent) -> Value {
    let output = Command::new(programs::path("sumun-agent"))
        .args(["status", "-o", "json", "--config"])
        .arg(agent.config())
        .output()
        .expect("the status");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// Effective mode and reason of a rule, from a list of policies.
fn mode_of(policies: &Value, policy: &str, rule: &str) -> (String, String) {
    let policies = policies.as_array().cloned().unwrap_or_default();
    let found = policies.iter().find(|known| known["name"] == policy);
    let modes = found.and_then(|known| known["modes"].as_array()).cloned();
    let modes = modes.unwrap_or_default();
    let known = modes.iter().find(|known| known["rule"] == rule);
    let word = |key: &str| {
        let word = known.and_then(|known| known[key].as_str());
        word.unwrap_or_default().to_owned()
    };
    (word("effective"), word("reason"))
}

/// Waits until the status says so of a rule.
fn until_mode(agent: &Agent, rule: &str, mode: &str) -> String {
    let begun = Instant::now();
    loop {
        let (known, reason) = mode_of(&status(agent)["policies"], "strict", rule);
        if known == mode {
            return reason;
        }
        assert!(
            begun.elapsed() < LIMIT,
            "{rule} is {known:?}, not {mode}: {reason}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The process that holds calls for an agent.
fn holder(agent: u32) -> Option<Pid> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .find(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            line.ends_with(b"\0hold-calls\0")
                && status.lines().any(|line| {
                    line.strip_prefix("PPid:")
                        .is_some_and(|ppid| ppid.trim() == agent.to_string())
                })
        })
        .map(Pid::from_raw)
}

const DENIED: [&str; 4] = ["enforce", "deny-via-agent", "denied", ""];

#[test]
fn what_a_rule_names_is_denied_and_told_once() {
    let Some(turn) = Turn::take("what_a_rule_names_is_denied") else {
        return;
    };
    let scratch = scratch();
    // As the kernel names it.
    let dir = fs::canonicalize(scratch.path()).expect("a path");
    let (strict, watch) = (files(&dir, "strict"), files(&dir, "watch"));
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
    for rule in ["secret", "vault", "writes", "tool"] {
        until_mode(&agent, rule, "deny-via-agent");
    }
    let reason = until_mode(&agent, "arguments", "alert");
    assert!(reason.contains("proc.args is not known"), "{reason}");
    let since = unix_ns();
    let path = |file: &str| strict.join(file);
    let name = |file: &str| path(file).display().to_string();

    // The file, and not its neighbour; not by one that an exception lets through.
    let pid = assert_denied(&path("secret"));
    let row = told_once(&ctl, since, "open", pid, "", DENIED);
    assert_eq!(text(&row, "file.path"), name("secret"));
    assert_eq!(int(&row, "result"), Some(EPERM), "{row}");
    assert_eq!(text(&row, "proc.exe.name"), "cat");
    assert_eq!(row["rules"], serde_json::json!(["strict/secret"]));
    alerted_once(&ctl, since, pid, "secret", DENIED);
    assert_read(&path("secrets"));
    let (output, head) = raw::run_here(Command::new("/usr/bin/head").arg(path("secret")));
    assert!(output.status.success(), "{output:?}");
    let filter = format!(r#"kind == "open" && proc.pid == {head}"#);
    let begun = Instant::now();
    let row = loop {
        let rows = ctl.events(since, None, &filter).expect("rows").rows;
        match &rows[..] {
            [row] => break row.clone(),
            rows => assert!(rows.is_empty() && begun.elapsed() < LIMIT, "{rows:?}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(
        row["exceptions"],
        serde_json::json!(["strict/secret/head"]),
        "{row}"
    );

    // No other name of the file is a way around.
    fs::hard_link(path("secret"), dir.join("another")).expect("a link");
    let pid = assert_denied(&dir.join("another"));
    let file = dir.join("another").display().to_string();
    let renamed = "it is the file that the rule names";
    told_once(
        &ctl,
        since,
        "open",
        pid,
        &file,
        [DENIED[0], DENIED[1], DENIED[2], renamed],
    );
    std::os::unix::fs::symlink(path("secret"), dir.join("symbolic")).expect("a link");
    assert_denied(&dir.join("symbolic"));
    let bound = dir.join("bound");
    fs::write(&bound, "").expect("a file");
    let mounted = Command::new("mount")
        .arg("--bind")
        .args([&path("secret"), &bound])
        .status();
    if mounted.is_ok_and(|status| status.success()) {
        let (output, _) = cat(&bound);
        let unmounted = Command::new("umount").arg(&bound).status().expect("umount");
        assert!(unmounted.success() && !output.status.success() && output.stdout.is_empty());
    } else {
        println!("SKIPPED: nothing can be mounted here, so not over another name");
    }

    // Nor is another way to open it.
    let opened = |file: &str| {
        let path = std::ffi::CString::new(name(file)).expect("a path");
        raw::uring::open(&path, 0)
    };
    match (opened("secret"), opened("secrets")) {
        (Ok(secret), Ok(near)) => {
            let error = secret.expect_err("it is denied").raw_os_error();
            assert_eq!(error, Some(libc::EPERM));
            near.expect("it may be opened");
        }
        (refused, _) => println!("SKIPPED: no io_uring here: {refused:?}"),
    }

    // Nor is a file that takes its place, or one that is moved away.
    fs::write(path("next"), "content of next\n").expect("a file");
    fs::rename(path("next"), path("secret")).expect("it takes its place");
    assert_denied(&path("secret"));
    // The new file is looked at a few times a second.
    std::thread::sleep(Duration::from_secs(1));
    fs::rename(path("secret"), path("elsewhere")).expect("it is moved");
    std::thread::sleep(Duration::from_millis(600));
    until_denied(&path("elsewhere"));

    // Below a folder, also what is new there.
    let pid = assert_denied(&path("vault/deep/key"));
    told_once(&ctl, since, "open", pid, "", DENIED);
    fs::rename(path("plain"), path("vault/new")).expect("a file");
    assert_denied(&path("vault/new"));
    fs::rename(path("vault/new"), path("plain")).expect("a file");
    fs::create_dir(path("vault/later")).expect("a folder");
    fs::hard_link(path("plain"), path("vault/later/key")).expect("a file");
    until_denied(&path("vault/later/key"));

    // What a call asks for.
    assert_read(&path("settings"));
    let (output, pid) = raw::run_here(
        Command::new("/bin/cp")
            .args(["--no-target-directory"])
            .arg(path("plain"))
            .arg(path("settings")),
    );
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(
        fs::read(path("settings")).expect("it may be read"),
        b"content of settings\n"
    );
    let row = told_once(&ctl, since, "open", pid, &name("settings"), DENIED);
    assert_eq!(row["file"]["access"]["write"], true, "{row}");
    assert_eq!(row["file"]["trunc"], true, "{row}");

    // A program: nothing of it runs.
    let refused = Command::new(path("tool")).arg("it ran").output();
    assert_eq!(
        refused.map_err(|error| error.kind()).expect_err("denied"),
        ErrorKind::PermissionDenied
    );
    assert!(
        Command::new(path("tools"))
            .output()
            .expect("near")
            .status
            .success()
    );
    let (output, shell) = raw::run_here(
        Command::new("/bin/sh").args(["-c", &format!("{} it ran; echo $?", name("tool"))]),
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "126\n",
        "{output:?}"
    );
    let begun = Instant::now();
    let row = loop {
        let filter = format!(
            r#"kind == "exec" && proc.exe.path == "{}" && proc.parent.pid == {shell}"#,
            name("tool")
        );
        let rows = ctl.events(since, None, &filter).expect("rows").rows;
        match &rows[..] {
            [row] => break row.clone(),
            rows => assert!(rows.is_empty() && begun.elapsed() < LIMIT, "{rows:?}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_verdict(&row, DENIED);
    assert_eq!(int(&row, "result"), Some(EPERM), "{row}");
    assert_eq!(
        text(&row, "proc.parent.exe.path"),
        fs::canonicalize("/bin/sh")
            .expect("a shell")
            .display()
            .to_string()
    );
    // Reading a program is no exec, and executing one no open.
    assert_read(&path("tool"));

    // What cannot be judged in time goes on, and says so.
    let pid = assert_read(&path("plain"));
    let undeniable = ["enforce", "alert", "failed", "proc.args is not known"];
    told_once(&ctl, since, "open", pid, &name("plain"), undeniable);

    // Observed: it goes on, and the alert says what would have been done.
    let pid = assert_read(&watch.join("secret"));
    let observed = ["observe", "alert", "would-deny", "observe"];
    told_once(
        &ctl,
        since,
        "open",
        pid,
        &watch.join("secret").display().to_string(),
        observed,
    );
    alerted_once(&ctl, since, pid, "secret", observed);
    assert!(
        Command::new(watch.join("tool"))
            .output()
            .expect("observed")
            .status
            .success()
    );

    // Other rules, at once.
    let changed = policy("strict", "enforce", &dir).replace("/secret\"", "/secrets\"");
    agent.policy("strict", &changed).expect("a policy");
    agent.reload();
    until_denied(&path("secrets"));
    assert_read(&path("elsewhere"));
    until_mode(&agent, "secret", "deny-via-agent");

    // What those pay who only pass by, for the reader of this test.
    let each = |path: &Path| {
        let begun = Instant::now();
        for _ in 0..2000 {
            fs::File::open(path).expect("it may be opened");
        }
        begun.elapsed() / 2000
    };
    let (near, far) = (each(&path("plain")), each(&watch.join("plain")));
    println!("an open in a folder that a rule names takes {near:?}, elsewhere {far:?}");

    // Fleet-wide, too.
    let id = agent.id().expect("an id");
    let begun = Instant::now();
    loop {
        let output = ctl.run(&["agents", "show", &id, "-o", "json"]);
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let shown = shown
            .as_array()
            .and_then(|rows| rows.first())
            .unwrap_or(&shown);
        let (mode, reason) = mode_of(&shown["policies"], "strict", "arguments");
        let (other, _) = mode_of(&shown["policies"], "strict", "secret");
        if mode == "alert" && other == "deny-via-agent" {
            assert!(reason.contains("proc.args is not known"), "{reason}");
            break;
        }
        assert!(begun.elapsed() < LIMIT, "{shown}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let deny = status(&agent)["deny"].clone();
    assert!(
        deny["denied"].as_u64().is_some_and(|denied| denied >= 10),
        "{deny}"
    );
    assert_eq!(deny["restarts"], 0, "{deny}");
    agent.stop().expect("it stops");
    assert_read(&path("secrets"));
}

#[test]
fn nobody_waits_for_an_agent_that_does_not_answer() {
    let Some(turn) = Turn::take("nobody_waits_for_an_agent") else {
        return;
    };
    let scratch = scratch();
    let dir = fs::canonicalize(scratch.path()).expect("a path");
    let strict = files(&dir, "strict");
    let secret = strict.join("secret");
    let collector = Collector::start().expect("a collector");
    let ctl = collector.ctl();
    let text = policy("strict", "enforce", &dir);
    let mut agent = Agent::start(turn, &collector, &[("strict", &text)]).expect("an agent");
    until_mode(&agent, "secret", "deny-via-agent");
    let since = unix_ns();
    let own = agent.process().pid();

    // The agent hangs: it is denied all the same, and told when the agent goes on.
    agent.process().signal(Signal::SIGSTOP);
    let begun = Instant::now();
    let pid = assert_denied(&secret);
    let took = begun.elapsed();
    std::thread::sleep(Duration::from_millis(500));
    assert_denied(&secret);
    agent.process().signal(Signal::SIGCONT);
    assert!(took < WAITS, "{took:?}");
    told_once(&ctl, since, "open", pid, "", DENIED);

    // Who answers hangs: who waits goes on, then it is denied again.
    let held = holder(own).expect("a process that holds calls");
    kill(held, Signal::SIGSTOP).expect("it is there");
    let begun = Instant::now();
    let (_, pid) = cat(&secret);
    let took = begun.elapsed();
    assert!(took < WAITS, "{took:?}");
    println!("with the holder stopped, an open took {took:?}");
    until_denied(&secret);
    assert_ne!(holder(own), Some(held));
    let failed = ["enforce", "deny-via-agent", "failed", "it was not held"];
    let begun = Instant::now();
    // It was let go, or came when another answered already.
    loop {
        let filter = format!(r#"kind == "open" && proc.pid == {pid}"#);
        let rows = ctl.events(since, None, &filter).expect("rows").rows;
        if let [row] = &rows[..] {
            match row.get("result") {
                // Judged before the agent has said that nobody holds calls, or after.
                None if text_of(row, "verdict.effective") == "alert" => {
                    assert_verdict(row, ["enforce", "alert", "failed", "was stopped"]);
                }
                None => assert_verdict(row, failed),
                Some(_) => assert_verdict(row, DENIED),
            }
            break;
        }
        assert!(rows.is_empty() && begun.elapsed() < LIMIT, "{rows:?}");
        std::thread::sleep(Duration::from_millis(50));
    }

    // Who answers is killed.
    let held = holder(own).expect("a process that holds calls");
    kill(held, Signal::SIGKILL).expect("it is there");
    until_denied(&secret);
    let restarts = || status(&agent)["deny"]["restarts"].as_u64();
    let begun = Instant::now();
    while restarts() != Some(2) {
        assert!(begun.elapsed() < LIMIT, "{:?}", restarts());
        std::thread::sleep(Duration::from_millis(50));
    }
    until_mode(&agent, "secret", "deny-via-agent");

    // Both are stopped, then the agent dies: its end is that of the other, and nobody waits.
    let held = holder(own).expect("a process that holds calls");
    agent.process().signal(Signal::SIGSTOP);
    kill(held, Signal::SIGSTOP).expect("it is there");
    let mut command = Command::new("/bin/cat");
    raw::bind_to_this_thread(&mut command);
    let mut waits = command
        .arg(&secret)
        .stdout(Stdio::null())
        .spawn()
        .expect("it can be started");
    std::thread::sleep(Duration::from_millis(300));
    assert!(waits.try_wait().expect("a child").is_none(), "it waits");
    agent.kill();
    let begun = Instant::now();
    let ended = loop {
        if let Some(status) = waits.try_wait().expect("a child") {
            break status;
        }
        assert!(begun.elapsed() < WAITS, "it waits for nobody");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(ended.success() && ended.signal().is_none(), "{ended}");
    assert_read(&secret);

    // The next agent denies again, and says that something may be missing.
    agent.run().expect("it runs again");
    agent.online(&collector).expect("online");
    until_denied(&secret);
    let gaps = ctl.gaps(since).expect("gaps").rows;
    let untold = gaps
        .iter()
        .filter(|gap| text_of(gap, "gap.reason") == "untold");
    assert_eq!(untold.count(), 2, "one in each lane of events: {gaps:?}");
    agent.stop().expect("it stops");
}

fn text_of<'a>(row: &'a Value, name: &str) -> &'a str {
    text(row, name)
}

const OF_WORKLOADS: &str = r#"
[policy]
name = "shop"
version = 1
mode = "enforce"

[selector]
container = { labels = { app = "cart" } }

[[rule]]
id = "by-label"
on = ["open"]
when = 'file.path == "DIR/secret"'
effect = "deny"

[[rule.exception]]
name = "head"
when = 'proc.exe.name == "head" && container.name == "cart-1"'
owner = "ops@example.com"
"#;

const OF_ONE: &str = r#"
[policy]
name = "one"
version = 1
mode = "enforce"

[[rule]]
id = "by-path"
on = ["open"]
when = 'file.path == "DIR/key" && container.id == "ONE" && host.name != "another"'
effect = "deny"
"#;

/// Docker's API, as far as it is asked: of containers with these ids, what their label is. It has nothing to say until it is well.
fn docker(socket: &Path, well: Arc<AtomicBool>, known: [(String, &'static str); 2]) {
    let listener = UnixListener::bind(socket).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { break };
            let mut bytes = vec![0; 4096];
            let len = stream.read(&mut bytes).unwrap_or(0);
            let asked = String::from_utf8_lossy(&bytes[..len]).into_owned();
            let found = known.iter().find(|(id, _)| asked.contains(id.as_str()));
            let (status, body) = match (well.load(Ordering::Relaxed), found) {
                (false, _) => (500, "{}".to_owned()),
                (true, None) => (404, "{}".to_owned()),
                (true, Some((id, app))) => {
                    let config = format!(r#"{{"Image":"box","Labels":{{"app":"{app}"}}}}"#);
                    let name = format!("/{app}-1");
                    (
                        200,
                        format!(
                            r#"{{"Id":"{id}","Name":"{name}","Image":"sha256:7","Config":{config}}}"#
                        ),
                    )
                }
            };
            let _ = write!(
                stream,
                "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
    });
}

/// Runs a program on a file in a cgroup.
fn within(cgroup: &Cgroup, program: &str, file: &Path) -> (Output, i64) {
    let script = r#"echo $$ > "$1/cgroup.procs" && exec "$2" "$3""#;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).arg(cgroup.path());
    raw::run_here(command.arg(program).arg(file))
}

#[test]
fn what_is_denied_in_one_container_is_read_in_another() {
    let Some(turn) = Turn::take("what_is_denied_in_one_container") else {
        return;
    };
    let scratch = scratch();
    let dir = fs::canonicalize(scratch.path()).expect("a path");
    for file in ["secret", "key"] {
        fs::write(dir.join(file), "content\n").expect("a file");
    }
    let (one, other) = (id(8001), id(8002));
    let (well, socket) = (Arc::new(AtomicBool::new(false)), dir.join("docker.sock"));
    docker(
        &socket,
        Arc::clone(&well),
        [(one.clone(), "cart"), (other.clone(), "till")],
    );
    let collector = Collector::start().expect("a collector");
    let ctl = collector.ctl();
    let filled = |text: &str| {
        let text = text.replace("DIR", &dir.display().to_string());
        text.replace("ONE", &one)
    };
    let (shop, of_one) = (filled(OF_WORKLOADS), filled(OF_ONE));
    let policies = [("shop", shop.as_str()), ("one", of_one.as_str())];
    let mut agent = Agent::enroll(turn, &collector, &policies).expect("an agent");
    let config = agent.config();
    let mut written = fs::read_to_string(&config).expect("a configuration");
    written.push_str(&format!(
        "\n[identity]\ncloud = \"off\"\ncri = []\npodman = []\nstorage = []\ndocker = [{socket:?}]\n"
    ));
    fs::write(&config, written).expect("a configuration");
    agent.run().expect("an agent that runs");
    agent.online(&collector).expect("an agent that is online");
    for (policy, rule) in [("shop", "by-label"), ("one", "by-path")] {
        let begun = Instant::now();
        let reason = loop {
            let (mode, reason) = mode_of(&status(&agent)["policies"], policy, rule);
            if mode == "deny-via-agent" {
                break reason;
            }
            assert!(begun.elapsed() < LIMIT, "{rule} is {mode}: {reason}");
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(reason.contains("not named yet"), "{rule}: {reason}");
    }
    let since = unix_ns();
    let make = |id: &str| Cgroup::make(&format!("/docker/{id}")).expect("a cgroup");
    let (carts, tills) = (make(&one), make(&other));
    let read = |cgroup: &Cgroup, file: &str| {
        let (output, pid) = within(cgroup, "/bin/cat", &dir.join(file));
        (output.status.success(), pid)
    };

    // Whose it is the path says, from the first program in it on; nobody has to be asked.
    let (was_read, pid) = read(&carts, "key");
    assert!(!was_read, "a container is known by its path");
    told_once(
        &ctl,
        since,
        "open",
        pid,
        &dir.join("key").display().to_string(),
        DENIED,
    );
    assert!(read(&tills, "key").0 && cat(&dir.join("key")).0.status.success());

    // What it is called nobody has told yet: nothing is denied, and that is said.
    let (was_read, pid) = read(&carts, "secret");
    assert!(was_read, "what is not known denies nothing");
    let undecided = [DENIED[0], "alert", "undecided", "not named yet"];
    alerted_once(&ctl, since, pid, "by-label", undecided);
    well.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    let pid = loop {
        let (was_read, pid) = read(&carts, "secret");
        if !was_read {
            break pid;
        }
        assert!(begun.elapsed() < LIMIT, "it is named, and reads");
        std::thread::sleep(Duration::from_millis(100));
    };
    alerted_once(&ctl, since, pid, "by-label", DENIED);
    for _ in 0..3 {
        assert!(read(&tills, "secret").0 && cat(&dir.join("secret")).0.status.success());
        assert!(!read(&carts, "secret").0);
    }
    // Also below it, and not by whom an exception names.
    let below = Cgroup::make(&format!("/docker/{one}/below")).expect("a cgroup");
    assert!(!read(&below, "secret").0);
    let (output, _) = within(&carts, "/usr/bin/head", &dir.join("secret"));
    assert!(output.status.success(), "{output:?}");
    // Another process that holds calls begins with what is known.
    let before = holder(agent.process().pid()).expect("a holder");
    kill(before, Signal::SIGKILL).expect("killed");
    let begun = Instant::now();
    while read(&carts, "secret").0 {
        assert!(begun.elapsed() < LIMIT, "nobody holds calls any more");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(read(&tills, "secret").0);
    agent.stop().expect("the agent stops when told to");
}
