//! Rules that the kernel judges alone at opens and connects: who does what they name does not get to use it, whether an agent
//! lives or not.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use sumun_tests::check::{int, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::ctl::Ctl;
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::{programs, raw};

const LIMIT: Duration = Duration::from_secs(60);
const SIGKILL: i32 = 9;
/// How often each is tried in each state of the agent.
const TIMES: usize = 50;

fn run(act: &str, file: &Path) -> Output {
    Command::new("/bin/bash")
        .arg("-c")
        .arg(format!("{act} && echo here > '{}'", file.display()))
        .output()
        .expect("it can be started")
}

/// As [`was_killed`], but it may be killed when it has written the file; then it is false.
fn killed_in_time(act: &str, file: &Path) -> bool {
    let killed = run(act, file).status.signal() == Some(SIGKILL);
    killed && fs::remove_file(file).is_err()
}

/// Lets bash do something and write a file afterwards. True if it was killed; then it has not.
fn was_killed(act: &str, file: &Path) -> bool {
    let output = run(act, file);
    let killed = output.status.signal() == Some(SIGKILL);
    assert!(!killed || !file.exists(), "killed too late: {output:?}");
    assert!(
        killed || output.status.success() && file.exists(),
        "{output:?}"
    );
    let _ = fs::remove_file(file);
    killed
}

fn alerts(ctl: &Ctl, since: u64, count: usize) -> Vec<Value> {
    let begun = Instant::now();
    loop {
        let rows = ctl.alerts(since, "").expect("the alerts").rows;
        if rows.len() >= count {
            return rows;
        }
        assert!(begun.elapsed() < LIMIT, "{} alerts of {count}", rows.len());
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn opens_and_connects_kill_with_the_agent_alive_stopped_and_dead() {
    let Some(turn) = Turn::take("opens_and_connects_kill") else {
        return;
    };
    let scratch = scratch();
    let dir = scratch.path().to_str().expect("UTF-8").to_owned();
    let file = scratch.path().join("file");
    fs::write(scratch.path().join("secret"), "x").expect("a file");
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let [asked, other] = listeners
        .each_ref()
        .map(|one| one.local_addr().expect("an address").port());
    let policy = format!(
        r#"
[policy]
name = "gate"
version = 1
mode = "enforce"

[[rule]]
id = "write"
on = ["open"]
when = 'file.path == "{dir}/secret" && file.access.write && !proc.ancestors.exists(a, a.exe.name == "nobody")'
effect = "kill"

[[rule.exception]]
name = "mender"
when = 'proc.exe.name == "dash"'
owner = "ops@example.com"

[[rule]]
id = "out"
on = ["connect"]
when = 'net.dst.port == {asked} && net.dst.private && proc.exe.name != "curl"'
effect = "kill"
"#
    );
    let collector = Collector::start().expect("a collector");
    let ctl = collector.ctl();
    let mut agent = Agent::start(turn, &collector, &[("gate", &policy)]).expect("an agent");
    let since = unix_ns();
    let connect = |port: u16| format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
    // Whoever ran before the agent may have had other parents: below this test, the ancestors are not known to the kernel.
    let late = was_killed(
        &format!("exec 3>>'{dir}/secret'; for ((i = 0; i < 9999999; i++)); do :; done"),
        &file,
    );
    assert!(late, "the agent kills");
    let [row] = &alerts(&ctl, since, 1)[..] else {
        panic!("one alert");
    };
    assert_eq!(text(row, "verdict.effective"), "kill-late", "{row}");

    let simple = policy.replace(
        r#" && !proc.ancestors.exists(a, a.exe.name == "nobody")"#,
        "",
    );
    let simple = simple.replace("version = 1", "version = 2");
    agent.policy("gate", &simple).expect("written");
    agent.reload();
    let begun = Instant::now();
    // Until then the agent kills, at times when the file is there already.
    while !killed_in_time(&format!("exec 3>>'{dir}/secret'"), &file) {
        assert!(begun.elapsed() < LIMIT, "the other policy is not loaded");
    }
    let since = unix_ns();
    let round = || {
        let opened = format!("exec 3>>'{dir}/secret'");
        let opens = (0..TIMES).filter(|_| was_killed(&opened, &file)).count();
        let connects = (0..TIMES)
            .filter(|_| was_killed(&connect(asked), &file))
            .count();
        // Reading it, another port, and what is excepted.
        assert!(!was_killed(&format!("exec 3<'{dir}/secret'"), &file));
        assert!(!was_killed(&connect(other), &file));
        assert!(!was_killed(
            &format!("dash -c \"exec 3>>'{dir}/secret'\""),
            &file
        ));
        (opens, connects)
    };
    let mut killed = BTreeMap::new();
    killed.insert("alive", round());
    agent.process().signal(Signal::SIGSTOP);
    killed.insert("stopped", round());
    agent.process().signal(Signal::SIGCONT);
    agent.kill();
    killed.insert("dead", round());
    agent.run().expect("the agent starts again");
    agent.online(&collector).expect("it is online");
    killed.insert("back", round());
    println!("killed: {killed:?}");
    let all = (TIMES, TIMES);
    let expected = ["alive", "stopped", "dead", "back"].map(|state| (state, all));
    assert_eq!(killed, BTreeMap::from(expected));
    let rows = alerts(&ctl, since, 8 * TIMES);
    let mut each: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for row in &rows {
        let who = (int(row, "proc.pid"), text(row, "kind"));
        each.entry(who).or_default().push(text(row, "time"));
    }
    let twice = each.iter().filter(|(_, times)| times.len() > 1);
    assert_eq!(rows.len(), 8 * TIMES, "{:?}", twice.collect::<Vec<_>>());
    for row in &rows {
        assert_eq!(text(row, "verdict.effective"), "kill-after", "{row}");
        assert_eq!(text(row, "verdict.outcome"), "killed", "{row}");
        assert_eq!(int(row, "policy.version"), Some(2), "{row}");
    }
    let filter = r#"kind == "open" && "gate/write/mender" in exceptions"#;
    let excepted = ctl.events(since, None, filter).expect("the events").rows;
    assert_eq!(excepted.len(), 4, "{excepted:?}");

    // A process that shares the open files dies with the one that opened, also if its agent comes too late for that one.
    agent.process().signal(Signal::SIGSTOP);
    let mut command = Command::new(programs::path("share-files"));
    raw::bind_to_this_thread(&mut command);
    let path = format!("{dir}/secret");
    let mut pair = command
        .args(["--path", &path, "--seconds", "90", "--write"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a pair");
    let mut line = String::new();
    let output = pair.stdout.as_mut().expect("its output");
    BufReader::new(output).read_line(&mut line).expect("a line");
    let sharer: u32 = line.trim().parse().expect("a process id");
    let input = pair.stdin.as_mut().expect("its input");
    input.write_all(b"\n").expect("it reads");
    assert_eq!(pair.wait().expect("its end").signal(), Some(SIGKILL));
    assert!(
        Path::new(&format!("/proc/{sharer}")).exists(),
        "nobody is there to kill it"
    );
    agent.process().signal(Signal::SIGCONT);
    let begun = Instant::now();
    let filter = format!("proc.pid == {}", pair.id());
    let row = loop {
        let rows = ctl.alerts(since, &filter).expect("the alerts").rows;
        if let [row] = &rows[..] {
            break row.clone();
        }
        assert!(begun.elapsed() < LIMIT, "one alert, not {rows:?}");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(text(&row, "verdict.effective"), "kill-after", "{row}");
    let with = format!("killed with it, as they share its open files: {sharer}");
    assert_eq!(text(&row, "verdict.reason"), with, "{row}");
    let filter = format!(r#"kind == "exit" && proc.pid == {sharer}"#);
    let begun = Instant::now();
    while ctl
        .events(since, None, &filter)
        .expect("rows")
        .rows
        .is_empty()
    {
        assert!(begun.elapsed() < LIMIT, "the sharer lives");
        std::thread::sleep(Duration::from_millis(100));
    }
    spares_services(&ctl, &dir);
    takes_over_from_other_sizes(&mut agent, &collector, &dir);
    agent.stop().expect("the agent stops");
    agent.release().expect("the pins are removed");
    assert!(!was_killed(&format!("exec 3>>'{dir}/secret'"), &file));
}

/// What runs containers may do what the rule forbids; who has put on its name may not.
fn spares_services(ctl: &Ctl, dir: &str) {
    let safe = tempfile::tempdir_in("/var/lib").expect("a folder");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(safe.path(), mode).expect("for all to read");
    for (folder, spared) in [(safe.path(), true), (Path::new(dir), false)] {
        let since = unix_ns();
        let program = folder.join("containerd");
        fs::copy("/bin/bash", &program).expect("a copy");
        // Not by a shell that starts another program: it is the one that opens.
        let act = format!("exec 3>>'{dir}/secret'; read -t 20 <> <(:); exit 7");
        let ended = Command::new(&program)
            .args(["-c", &act])
            .spawn()
            .and_then(|mut child| {
                let pid = child.id();
                let alert = alert_of(ctl, since, pid);
                let killed = child.try_wait()?.and_then(|status| status.signal());
                child.kill()?;
                child.wait()?;
                Ok((alert, killed))
            });
        let (row, killed) = ended.expect("a child");
        let outcome = if spared { "guarded" } else { "killed" };
        assert_eq!(text(&row, "verdict.outcome"), outcome, "{row}");
        assert_eq!(text(&row, "verdict.effective"), "kill-late", "{row}");
        assert_eq!(killed, (!spared).then_some(SIGKILL), "{row}");
        let reason = text(&row, "verdict.reason");
        assert_eq!(
            reason.contains("without force = true may kill what runs the host"),
            spared,
            "{row}"
        );
    }
}

fn alert_of(ctl: &Ctl, since: u64, pid: u32) -> Value {
    let begun = Instant::now();
    loop {
        let filter = format!("proc.pid == {pid}");
        let rows = ctl.alerts(since, &filter).expect("the alerts").rows;
        if let Some(row) = rows.first() {
            return row.clone();
        }
        assert!(begun.elapsed() < LIMIT, "no alert of {pid}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// An agent with other maps comes after one that was killed: nobody gets through while it starts, and what was not read is told.
fn takes_over_from_other_sizes(agent: &mut Agent, collector: &Collector, dir: &str) {
    let since = unix_ns();
    agent.kill();
    let config = fs::read_to_string(agent.config()).expect("its configuration");
    let config = format!("{config}\n[rings]\nbulk = \"4MiB\"\n");
    fs::write(agent.config(), config).expect("it is written");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let tries = std::thread::scope(|scope| {
        let tries = scope.spawn(|| {
            let (mut count, file) = (0, format!("{dir}/through"));
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let act = format!("exec 3>>'{dir}/secret'");
                assert!(
                    was_killed(&act, Path::new(&file)),
                    "try {count} was not killed"
                );
                count += 1;
            }
            count
        });
        let started = agent.run().and_then(|()| agent.online(collector));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        started.expect("the agent starts");
        tries.join().expect("each is killed")
    });
    println!("{tries} opens killed while other maps took over");
    assert!(tries > 20);
    let gaps = collector.ctl().gaps(since).expect("gaps").rows;
    let told = gaps
        .iter()
        .filter(|gap| text(gap, "gap.detail").contains("with other sizes, was there"));
    assert_eq!(told.count(), 2, "one in each lane of events: {gaps:?}");
    assert_eq!(fs::read_dir("/sys/fs/bpf/sumun").expect("pins").count(), 1);
}
