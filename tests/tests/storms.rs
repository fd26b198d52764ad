//! What hostile programs do to an agent: everything is stored or counted as lost, nothing is told of the wrong
//! one, and memory stays bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use sumun_tests::bench::rate::pss_kib;
use sumun_tests::check::{self, int, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::elf;
use sumun_tests::host::{Agent, Collector, Turn, scratch};

const LIMIT: Duration = Duration::from_secs(120);
/// What the agent may have at most, whatever is done to it.
const PSS_MAX_KIB: u64 = 64 * 1024;
/// Processes at once, where the host has numbers for so many.
const PROCESSES: u32 = 32_000;
/// Numbers left to the rest of the host.
const SPARED: u32 = 4_000;

/// Runs `act` and returns the most memory that the agent had meanwhile, with what came of it.
fn watched<T>(agent: u32, act: impl FnOnce() -> T) -> (u64, T) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(pss_kib(agent).expect("the agent lives"));
                std::thread::sleep(Duration::from_millis(20));
            }
            most
        });
        let came = act();
        done.store(true, Ordering::Relaxed);
        (watch.join().expect("the watch ends"), came)
    })
}

/// What the gaps of a host since then say was lost.
fn lost(collector: &Collector, since: u64) -> i64 {
    let gaps = collector.ctl().gaps(since).expect("gaps");
    gaps.rows.iter().filter_map(|row| int(row, "count")).sum()
}

fn file_rules(dir: &Path) -> String {
    format!(
        r#"
[policy]
name = "files"
version = 1

[[rule]]
id = "under"
on = ["open"]
when = 'file.path.startsWith("{}/")'
effect = "record"

[[rule]]
id = "end"
on = ["open"]
when = 'file.name == "end-of-the-way"'
effect = "record"
"#,
        dir.display()
    )
}

#[cfg(target_arch = "x86_64")]
#[test]
fn thirty_two_thousand_processes_at_once() {
    let Some(turn) = Turn::take("thirty_two_thousand_processes_at_once") else {
        return;
    };
    let max: u32 = fs::read_to_string("/proc/sys/kernel/pid_max")
        .expect("a limit")
        .trim()
        .parse()
        .expect("a number");
    let count = PROCESSES.min(max - SPARED);
    let scratch = scratch();
    let program = scratch.path().join("forks");
    elf::write_forks(&program, count).expect("the program");
    let collector = Collector::start().expect("a collector");
    let mut agent = Agent::start(turn, &collector, &[]).expect("an agent");
    let since = unix_ns();
    let (most, parent) = watched(agent.process().pid(), || {
        let mut child = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut byte = [0];
        let begun = Instant::now();
        let told = child
            .stdout
            .as_mut()
            .expect("is piped")
            .read_exact(&mut byte);
        told.expect("it tells when all are there");
        println!("{count} processes at once after {:?}", begun.elapsed());
        drop(child.stdin.take());
        let parent = child.id();
        assert_eq!(
            child.wait().expect("it ends").code(),
            Some(0),
            "all were made"
        );
        parent
    });
    let until = unix_ns();
    let path = program.to_str().expect("UTF-8");
    let mut pids: BTreeMap<&str, BTreeSet<i64>> = BTreeMap::new();
    let mut rows = 0;
    for (kind, filter) in [
        (
            "fork",
            format!("kind == 'fork' && proc.exe.path == '{path}'"),
        ),
        (
            "exit",
            format!("kind == 'exit' && proc.exe.path == '{path}'"),
        ),
    ] {
        let asked = collector.ctl().wait_complete(since, until, &filter, LIMIT);
        let complete = asked.is_ok();
        let seen = pids.entry(kind).or_default();
        let mut wrong = check::Problems::default();
        collector
            .ctl()
            .each_event(since, until, &filter, |row: Value| {
                let pid = int(&row, "proc.pid").expect("a number");
                if pid == i64::from(parent) {
                    return;
                }
                rows += 1;
                seen.insert(pid);
                if int(&row, "proc.parent.pid") != Some(parent.into()) {
                    wrong.add(&row.to_string());
                }
            })
            .expect("an answer");
        wrong.none("children of another parent");
        let missing = i64::from(count) - seen.len() as i64;
        // What is missing was said to be.
        if complete {
            assert_eq!(missing, 0, "{kind}: the answer says that it is complete");
        }
        let lost = lost(&collector, since);
        assert!(
            missing >= 0 && missing <= lost,
            "{kind}: {missing} missing, {lost} lost"
        );
        println!(
            "{kind}: {} of {count} stored, {lost} counted as lost",
            seen.len()
        );
    }
    assert_eq!(
        rows,
        pids.values().map(BTreeSet::len).sum::<usize>(),
        "none is stored twice"
    );
    println!("the agent had at most {most} KiB");
    assert!(most <= PSS_MAX_KIB, "{most} KiB");
    agent.stop().expect("the agent stops when told to");
}

/// The text by which everything calls these bytes.
fn told(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(&chunk.valid().replace('\\', "\\\\"));
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[test]
fn long_and_odd_names_arguments_and_places() {
    let Some(turn) = Turn::take("long_and_odd_names_arguments_and_places") else {
        return;
    };
    let scratch = scratch();
    let dir = fs::canonicalize(scratch.path()).expect("a path");
    let collector = Collector::start().expect("a collector");
    let rules = file_rules(&dir);
    let mut agent = Agent::start(turn, &collector, &[("files", &rules)]).expect("an agent");
    let pid = agent.process().pid();
    let since = unix_ns();
    let (most, (names, exec, deep)) =
        watched(pid, || (odd_names(&dir), two_megabytes(&dir), deep(&dir)));
    let until = unix_ns();
    let ctl = collector.ctl();

    let filter = format!(
        "kind == 'open' && file.path.startsWith('{}/')",
        dir.display()
    );
    let opens = ctl
        .complete_events(since, until, &filter, LIMIT)
        .expect("a complete answer");
    let stored = check::by_text(&opens.rows, "file.path");
    let mut problems = check::Problems::default();
    for name in &names {
        let path = told(name);
        match stored.get(path.as_str()).map_or(0, Vec::len) {
            1 => {}
            times => problems.add(&format!("{path:?} is stored {times} times")),
        }
    }
    problems.none("names");
    println!("{} odd names, each stored once as it is", names.len());

    let filter = format!("kind == 'exec' && proc.exe.path == '{}'", exec.display());
    let execs = ctl
        .complete_events(since, until, &filter, LIMIT)
        .expect("a complete answer");
    let [exec] = &execs.rows[..] else {
        panic!("{} execs of {filter}", execs.rows.len());
    };
    let arguments = check::list(exec, "proc.args");
    let kept: usize = arguments.iter().map(|argument| argument.len()).sum();
    assert_eq!(check::list(exec, "proc.args_flaws"), ["truncated"]);
    assert!((8 * 1024..=16 * 1024).contains(&kept), "{kept} bytes kept");
    assert!(
        arguments[1..]
            .iter()
            .all(|argument| argument.bytes().all(|byte| byte == b'a'))
    );

    let filter = "kind == 'open' && file.name == 'end-of-the-way'";
    let ends = ctl
        .complete_events(since, until, filter, LIMIT)
        .expect("a complete answer");
    let [end] = &ends.rows[..] else {
        panic!("{} opens at the end of the way", ends.rows.len());
    };
    assert!(
        check::list(end, "file.flaws").contains(&"truncated"),
        "{end}"
    );
    assert!(
        text(end, "file.path").ends_with("/dddddddd/end-of-the-way"),
        "{end}"
    );
    println!("2 MB of arguments and a path of {deep} bytes are told as far as they are kept");
    assert!(most <= PSS_MAX_KIB, "{most} KiB");
    agent.stop().expect("the agent stops when told to");
}

/// Makes files with names that terminals and parsers trip over; returns their paths.
fn odd_names(dir: &Path) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = vec![
        b"new\nline".into(),
        b"tab\tand\rreturn".into(),
        b"\x1b[31mred\x1b[0m\x07".into(),
        b"not \xff\xfe text".into(),
        b"half \xe2\x82".into(),
        br"back\slash \x41".into(),
        b"quote\"'`$(id)".into(),
        "\u{202e}txt.exe".into(),
        b" ".into(),
        b"%s%n{}".into(),
        vec![b'x'; 255],
    ];
    // Each byte that a name can have.
    names.extend(
        (1..=255)
            .filter(|byte| *byte != b'/')
            .map(|byte| vec![b'n', byte]),
    );
    // A whole path of the longest kind: 4,095 bytes.
    let mut long = dir.to_owned();
    while long.as_os_str().len() + 201 < 4095 {
        long.push("p".repeat(200));
    }
    fs::create_dir_all(&long).expect("a directory");
    let rest = 4095 - long.as_os_str().len() - 1;
    let mut paths: Vec<Vec<u8>> = names
        .into_iter()
        .map(|name| {
            dir.join(OsStr::from_bytes(&name))
                .into_os_string()
                .into_vec()
        })
        .collect();
    if rest > 0 {
        paths.push(long.join("q".repeat(rest)).into_os_string().into_vec());
    }
    for path in &paths {
        fs::write(OsStr::from_bytes(path), "").expect("a file");
    }
    paths
}

/// Executes a program with 2 MB of arguments; returns its path.
fn two_megabytes(dir: &Path) -> PathBuf {
    let program = dir.join("many");
    elf::write(&program).expect("the program");
    let argument = "a".repeat(100_000);
    let status = Command::new(&program)
        .args(std::iter::repeat_n(&argument, 20))
        .env_clear()
        .status()
        .expect("it runs");
    assert_eq!(status.code(), Some(21));
    program
}

/// Opens a file too deep for any path; returns the length that its path would have.
fn deep(dir: &Path) -> usize {
    const DEPTH: usize = 1500;
    let start = dir.join("deep");
    fs::create_dir(&start).expect("a directory");
    let script = format!(
        "i=0; while [ $i -lt {DEPTH} ]; do mkdir dddddddd && cd -P dddddddd || exit 1; i=$((i + 1)); done; : > end-of-the-way"
    );
    let status = Command::new("/bin/sh")
        .args(["-c", &script])
        .current_dir(&start)
        // The shell keeps its place by name only as long as that is short enough.
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stderr(Stdio::null())
        .status()
        .expect("a shell");
    assert!(status.success(), "{status}");
    start.as_os_str().len() + DEPTH * 9 + "/end-of-the-way".len()
}

#[test]
fn ten_thousand_mounts() {
    const MOUNTS: usize = 10_000;
    let Some(turn) = Turn::take("ten_thousand_mounts") else {
        return;
    };
    let scratch = scratch();
    let dir = fs::canonicalize(scratch.path()).expect("a path");
    let collector = Collector::start().expect("a collector");
    let rules = file_rules(&dir);
    let mut agent = Agent::start(turn, &collector, &[("files", &rules)]).expect("an agent");
    let pid = agent.process().pid();
    let since = unix_ns();
    let place = dir.clone();
    let (most, ()) = watched(pid, || {
        // A thread can have a mount table of its own, which goes with it.
        let run = std::thread::spawn(move || mounts(&place, MOUNTS));
        run.join().expect("the mounts");
    });
    let until = unix_ns();
    let filter = format!(
        "kind == 'open' && file.path.startsWith('{}/')",
        dir.display()
    );
    let opens = collector
        .ctl()
        .complete_events(since, until, &filter, LIMIT)
        .expect("a complete answer");
    let stored = check::by_text(&opens.rows, "file.path");
    let mut problems = check::Problems::default();
    for index in (0..MOUNTS).step_by(100) {
        let path = dir.join(format!("m/{index}/file"));
        let times = stored
            .get(path.to_str().expect("UTF-8"))
            .map_or(0, Vec::len);
        if times != 1 {
            problems.add(&format!("{} is stored {times} times", path.display()));
        }
    }
    problems.none("opens below mounts");
    println!("{MOUNTS} mounts made and gone: the agent had at most {most} KiB");
    assert!(most <= PSS_MAX_KIB, "{most} KiB");
    agent.stop().expect("the agent stops when told to");
}

/// Mounts one directory on so many, and opens a file in every hundredth of them.
fn mounts(dir: &Path, count: usize) {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount table");
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).expect("a private one");
    let place = dir.join("m");
    fs::create_dir(&place).expect("a directory");
    mount(Some("sumun"), &place, Some("tmpfs"), MsFlags::empty(), NONE).expect("a file system");
    let source = place.join("source");
    fs::create_dir(&source).expect("a directory");
    for index in 0..count {
        let target = place.join(index.to_string());
        fs::create_dir(&target).expect("a directory");
        mount(Some(&source), &target, NONE, MsFlags::MS_BIND, NONE).expect("a mount");
        if index % 100 == 0 {
            fs::write(target.join("file"), "").expect("a file");
        }
    }
}
