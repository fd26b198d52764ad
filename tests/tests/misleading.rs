//! Nobody is misled: names rewritten and descriptors swapped under the call.
//!
//! Every try is reported with the object that the call really got, or marked
//! as lost, racy or the caller's word; none is wrong and unmarked, none missing. A run
//! in which no race was won has shown nothing, and fails.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use sumun_tests::check::{self, Told};
use sumun_tests::clock::unix_ns;
use sumun_tests::generator;
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::oracle::{self, Try};
use sumun_tests::programs;

const TRIES: u64 = 100_000;
/// Of renames and unlinks, each of which makes two or three events; of long tests as many as of the others.
const FEW: u64 = 20_000;
/// Two spinning threads and the programs under test share the processors: as
/// fast as both could would be a test of the ring's size.
const RATE: &str = "10000";
const LIMIT: Duration = Duration::from_secs(180);
/// The kernel's word on renames and removals is read every few milliseconds, on a busy host later.
const READ_WITHIN: Duration = Duration::from_secs(2);

/// Which witness of the kernel is asked what renames and removals did, beside decision points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rung {
    /// As it is: the best that there is.
    Best,
    /// None.
    Tracepoint,
}

fn few() -> u64 {
    match programs::long() {
        true => TRIES,
        false => FEW,
    }
}

fn mislead(mode: &str, kind: &str) {
    mislead_on(Rung::Best, mode, kind, TRIES);
}

fn mislead_on(asked: Rung, mode: &str, kind: &str, tries: u64) {
    let test = format!("mislead {mode} ({asked:?})");
    let Some(turn) = Turn::take(&test) else {
        return;
    };
    let scratch = scratch();
    let sub = |name: &str| {
        let path = scratch.path().join(name);
        fs::create_dir(&path).expect("a directory");
        path.to_str().expect("temporary names are UTF-8").to_owned()
    };
    // Their names differ in one letter.
    let (dir, decoy) = (sub("side-a"), sub("side-b"));
    let policy = format!(
        r#"
[policy]
name = "mislead"
version = 1

[[rule]]
id = "watched"
on = ["{kind}"]
when = 'file.path.startsWith("{dir}/")'
effect = "record"
"#
    );
    let collector = Collector::start().expect("a collector");
    let mut agent =
        Agent::enroll(turn, &collector, &[("mislead", &policy)]).expect("an enrolled agent");
    if asked == Rung::Tracepoint {
        let mut config = fs::read_to_string(agent.config()).expect("a configuration");
        config.push_str("\n[files]\nfanotify = false\n");
        fs::write(agent.config(), config).expect("a configuration");
    }
    agent.run().expect("an agent");
    agent.online(&collector).expect("an agent");
    let ctl = collector.ctl();
    let rung = rung(&ctl.agents().expect("agents"), kind);
    println!("{test}: {kind} is seen at {rung}");
    if asked == Rung::Tracepoint && rung != "tracepoint" {
        println!("SKIPPED {test}: this kernel has decision points");
        return;
    }
    let oracle = scratch.path().join("oracle");
    let since = unix_ns();
    let said = generator::run(
        "mislead",
        &[
            "--mode",
            mode,
            "--dir",
            &dir,
            "--decoy",
            &decoy,
            "--tries",
            &tries.to_string(),
            "--rate",
            RATE,
            "--oracle",
            oracle.to_str().expect("UTF-8"),
        ],
    );
    if matches!(kind, "rename" | "unlink") {
        // What no call has named bears the time at which it was read, so some of the last tries' are of a little later.
        thread::sleep(READ_WITHIN);
    }
    let until = unix_ns();
    if let Err(error) = &said
        && mode == "open32"
        && !thirty_two_bit(scratch.path())
    {
        println!("SKIPPED mislead open32: this kernel has no 32-bit calls ({error})");
        return;
    }
    said.expect("the generator");
    let done: Vec<Try> = oracle::read(&oracle).expect("the oracle");
    let watched = format!(r#"kind == "{kind}" && file.path.startsWith("{dir}/")"#);
    ctl.wait_complete(since, until, &watched, LIMIT)
        .expect("a complete answer");
    // Everything of the kind: an object that was swapped for another has the other's path.
    let mut told = Vec::new();
    let of_kind = format!(r#"kind == "{kind}""#);
    ctl.each_event(since, until, &of_kind, |row| told.push(Told::of(&row)))
        .expect("an answer");
    let verdict = check::tries(&done, &told);
    println!("{test}: {verdict}");
    assert!(verdict.won > 0, "{test}: no race was won: not exercised");
    verdict.problems.none(&format!("{test}: {verdict}"));
    if matches!(kind, "rename" | "unlink") && rung != "tracepoint" {
        // Marked or not: what was really done is told by the kernel, each of it once.
        let truths = check::truths(&done, &told);
        assert!(verdict.right > 0, "{test}: {verdict}");
        truths.none(&format!("{test}: what was done"));
    }
}

/// How a kind is seen, as the agent has told.
fn rung(agents: &[serde_json::Value], kind: &str) -> String {
    let doors = agents.iter().filter_map(|agent| agent["doors"].as_array());
    let mut doors = doors.flatten();
    let door = doors.find(|door| door["kind"] == kind);
    let rung = door.and_then(|door| door["rung"].as_str());
    rung.expect("a kind that the agent tells of").to_owned()
}

/// True when the kernel takes 32-bit calls.
fn thirty_two_bit(dir: &Path) -> bool {
    let path = std::ffi::CString::new(dir.to_str().expect("UTF-8")).expect("no NUL");
    let name = sumun_tests::raw::Name::new(&path).expect("memory");
    let fd = name.open32(0, 0);
    if let Ok(fd) = fd {
        sumun_tests::raw::close(fd);
    }
    fd.is_ok()
}

#[test]
fn a_name_rewritten_during_open() {
    mislead("open", "open");
}

#[test]
fn a_name_rewritten_during_openat2() {
    mislead("openat2", "open");
}

#[test]
fn a_name_rewritten_during_a_32_bit_open() {
    mislead("open32", "open");
}

#[test]
fn a_name_rewritten_during_rename() {
    mislead_on(Rung::Best, "rename", "rename", few());
}

#[test]
fn a_name_rewritten_during_unlink() {
    mislead_on(Rung::Best, "unlink", "unlink", few());
}

#[test]
fn a_name_rewritten_during_rename_where_nobody_else_is_asked() {
    mislead_on(Rung::Tracepoint, "rename", "rename", few());
}

#[test]
fn a_name_rewritten_during_unlink_where_nobody_else_is_asked() {
    mislead_on(Rung::Tracepoint, "unlink", "unlink", few());
}

#[test]
fn a_descriptor_swapped_for_another_watched_file() {
    mislead("swap-within", "open");
}

#[test]
fn a_descriptor_swapped_for_a_file_nobody_watches() {
    mislead("swap", "open");
}
