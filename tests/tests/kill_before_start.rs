//! Rules that the kernel judges alone: what they name never runs, whether an agent lives or not, and what was
//! promised of each rule is what happens.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use sumun_tests::check::{int, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::ctl::Ctl;
use sumun_tests::generator::Background;
use sumun_tests::host::{Agent, Collector, Turn, scratch};

const LIMIT: Duration = Duration::from_secs(60);
const SIGKILL: i32 = 9;

/// A copy of the shell under another name.
fn shell(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let sh = fs::canonicalize("/bin/sh").expect("a shell");
    fs::copy(sh, &path).expect("a copy of it");
    path
}

/// Lets a shell print something and write a file. True if it was killed; then it has done neither.
fn was_killed(shell: &Path, file: &Path, args: &[&str]) -> bool {
    let output = Command::new(shell)
        .arg("-c")
        .arg(format!("echo here; : > {}", file.display()))
        .args(args)
        .output()
        .expect("it can be started");
    let killed = output.status.signal() == Some(SIGKILL);
    assert!(
        !killed || output.stdout.is_empty() && !file.exists(),
        "killed too late: {output:?}"
    );
    assert!(killed || output.status.success() && file.exists());
    let _ = fs::remove_file(file);
    killed
}

/// All alerts since a time, once there are so many.
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
fn killed_a_thousand_times_with_the_agent_alive_stopped_and_dead() {
    let Some(turn) = Turn::take("killed_a_thousand_times") else {
        return;
    };
    let scratch = scratch();
    let (evil, good) = (shell(scratch.path(), "evil"), shell(scratch.path(), "good"));
    let file = scratch.path().join("file");
    let policy = format!(
        r#"
[policy]
name = "gate"
version = 1
mode = "enforce"

[[rule]]
id = "evil"
on = ["exec"]
when = 'proc.exe.path == "{}" && proc.uid == 0'
effect = "kill"
"#,
        evil.display()
    );
    let collector = Collector::start().expect("a collector");
    let ctl = collector.ctl();
    let mut agent = Agent::start(turn, &collector, &[("gate", &policy)]).expect("an agent");
    let since = unix_ns();
    // A load beside it: some hundred other programs each second.
    let execs = scratch.path().join("execs");
    fs::create_dir(&execs).expect("a directory");
    let args: Vec<OsString> = vec![
        "--dir".into(),
        execs.into(),
        "--count".into(),
        "3000".into(),
        "--rate".into(),
        "200".into(),
        "--oracle".into(),
        scratch.path().join("oracle").into(),
    ];
    let load = Background::start("exec-storm", &args).expect("a load");
    let round = |count: usize| {
        let killed = (0..count).filter(|_| was_killed(&evil, &file, &[])).count();
        assert!(!was_killed(&good, &file, &[]), "the other was killed");
        killed
    };
    let mut killed = BTreeMap::new();
    killed.insert("alive", round(400));
    agent.process().signal(Signal::SIGSTOP);
    killed.insert("stopped", round(300));
    agent.process().signal(Signal::SIGCONT);
    agent.kill();
    killed.insert("dead", round(300));
    agent.run().expect("the agent starts again");
    agent.online(&collector).expect("it is online");
    killed.insert("back", round(50));
    load.finish().expect("the load");
    println!("killed: {killed:?}");
    assert_eq!(
        killed,
        BTreeMap::from([
            ("alive", 400),
            ("stopped", 300),
            ("dead", 300),
            ("back", 50)
        ])
    );
    let rows = alerts(&ctl, since, 1050);
    assert_eq!(rows.len(), 1050);
    for row in &rows {
        assert_eq!(text(row, "rule.id"), "evil", "{row}");
        assert_eq!(text(row, "verdict.requested"), "enforce", "{row}");
        assert_eq!(text(row, "verdict.effective"), "kill-before-start", "{row}");
        assert_eq!(text(row, "verdict.outcome"), "killed", "{row}");
        assert_eq!(int(row, "policy.version"), Some(1), "{row}");
    }
    // Each is an event, too.
    let filter = r#"kind == "exec" && verdict.outcome == "killed""#;
    let answer = ctl
        .complete_events(since, unix_ns(), filter, LIMIT)
        .expect("a complete answer");
    assert_eq!(answer.rows.len(), 1050);

    // Without pins nothing is enforced any more.
    agent.stop().expect("the agent stops");
    assert!(was_killed(&evil, &file, &[]), "a stopped agent has let go");
    agent.release().expect("the pins are removed");
    assert!(!was_killed(&evil, &file, &[]));
    // The next one tells who did that.
    agent.run().expect("the agent starts again");
    agent.online(&collector).expect("it is online");
    let begun = Instant::now();
    loop {
        let gaps = ctl.gaps(since).expect("the gaps").rows;
        let told = |row: &Value| text(row, "gap.detail").contains("the host was released at");
        if gaps.iter().any(told) {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "{gaps:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(was_killed(&evil, &file, &[]));
}

/// A rule, what it is promised to be, and what shows it.
struct Promise {
    rule: &'static str,
    when: String,
    /// Of the program that is run.
    args: &'static [&'static str],
    /// Runs below this program.
    below: bool,
}

#[test]
fn what_explain_promises_is_what_the_kernel_does() {
    let Some(turn) = Turn::take("what_explain_promises") else {
        return;
    };
    let scratch = scratch();
    let dir = scratch.path().to_str().expect("UTF-8").to_owned();
    let file = scratch.path().join("file");
    let below = shell(scratch.path(), "server");
    let promises = [
        Promise {
            rule: "path",
            when: format!(r#"proc.exe.path == "{dir}/path""#),
            args: &[],
            below: false,
        },
        Promise {
            rule: "name",
            when: r#"proc.exe.name in ["name", "nobody"]"#.to_owned(),
            args: &[],
            below: false,
        },
        Promise {
            rule: "prefix",
            when: format!(r#"proc.exe.path.startsWith("{dir}/pre") && proc.euid < 1000"#),
            args: &[],
            below: false,
        },
        Promise {
            rule: "negated",
            when: format!(
                r#"proc.exe.path.startsWith("{dir}/neg") && !(proc.exe.name == "other") && proc.gid != 7"#
            ),
            args: &[],
            below: false,
        },
        Promise {
            rule: "lineage",
            when:
                r#"proc.exe.name == "lineage" && proc.ancestors.exists(a, a.exe.name == "server")"#
                    .to_owned(),
            args: &[],
            below: true,
        },
        Promise {
            rule: "either",
            when: format!(
                r#"proc.exe.path == "{dir}/either" && (proc.uid == 4711 || proc.ancestors.exists(a, a.exe.path == "{dir}/server"))"#
            ),
            args: &[],
            below: true,
        },
        Promise {
            rule: "arguments",
            when: r#"proc.exe.name == "arguments" && proc.args.exists(a, a == "--evil")"#
                .to_owned(),
            args: &["sh", "--evil"],
            below: false,
        },
        Promise {
            rule: "regex",
            when: format!(r#"proc.exe.path.matches("^{dir}/re(g|x)ex$")"#),
            args: &[],
            below: false,
        },
    ];
    let mut policy =
        String::from("[policy]\nname = \"promises\"\nversion = 3\nmode = \"enforce\"\n");
    for promise in &promises {
        policy += &format!(
            "\n[[rule]]\nid = \"{}\"\non = [\"exec\"]\nwhen = '{}'\neffect = \"kill\"\n",
            promise.rule, promise.when
        );
        shell(scratch.path(), promise.rule);
    }
    let collector = Collector::start().expect("a collector");
    let ctl = collector.ctl();
    let mut agent = Agent::start(turn, &collector, &[("promises", &policy)]).expect("an agent");

    let output = ctl.run(&[
        "policy",
        "explain",
        agent
            .home()
            .join("policies/promises.toml")
            .to_str()
            .expect("UTF-8"),
        "-o",
        "json",
    ]);
    assert!(output.status.success(), "{output:?}");
    let explained: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let promised: BTreeMap<&str, &str> = explained
        .iter()
        .map(|row| (text(row, "rule"), text(row, "effective")))
        .collect();
    assert_eq!(promised.len(), promises.len(), "{explained:?}");
    println!("promised: {promised:?}");

    let since = unix_ns();
    for promise in &promises {
        let program = scratch.path().join(promise.rule);
        if promised[promise.rule] == "kill-before-start" && !promise.below {
            assert!(
                was_killed(&program, &file, promise.args),
                "{}",
                promise.rule
            );
            continue;
        }
        // Below the server, or killed only once it runs: then it waits for that.
        let mut command = Command::new(if promise.below { &below } else { &program });
        if promise.below {
            let script = format!("{} -c ': > {}'; true", program.display(), file.display());
            command.arg("-c").arg(script);
            let status = command.status().expect("it can be started");
            assert!(status.success() && !file.exists(), "{}", promise.rule);
        } else {
            command
                .args(["-c", "while :; do sleep 0.05; done"])
                .args(promise.args);
            let mut child = command.spawn().expect("it can be started");
            let begun = Instant::now();
            let status = loop {
                if let Some(status) = child.try_wait().expect("a child") {
                    break status;
                }
                if begun.elapsed() > LIMIT {
                    let _ = child.kill();
                    panic!("{} lives", promise.rule);
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            assert_eq!(status.signal(), Some(SIGKILL), "{}", promise.rule);
        }
    }
    let rows = alerts(&ctl, since, promises.len());
    let did: BTreeMap<&str, &str> = rows
        .iter()
        .map(|row| {
            assert_eq!(text(row, "verdict.outcome"), "killed", "{row}");
            (text(row, "rule.id"), text(row, "verdict.effective"))
        })
        .collect();
    assert_eq!(did, promised);
    assert_eq!(rows.len(), promises.len());

    // The host says the same of each rule.
    let id = agent.id().expect("an id");
    let output = ctl.run(&["agents", "show", &id, "-o", "json"]);
    assert!(output.status.success(), "{output:?}");
    let shown: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let modes = shown["policies"][0]["modes"]
        .as_array()
        .or_else(|| shown[0]["policies"][0]["modes"].as_array());
    let modes = modes.unwrap_or_else(|| panic!("no modes in {shown}"));
    let reported: BTreeMap<&str, &str> = modes
        .iter()
        .map(|row| (text(row, "rule"), text(row, "effective")))
        .collect();
    assert_eq!(reported, promised);
    agent.stop().expect("the agent stops");
}
