//! `init`: what it writes, to whom it is readable, and what stays the same.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::{Program, Site};

fn mode(path: &Path) -> u32 {
    let metadata = std::fs::metadata(path).expect("it exists");
    metadata.permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_for_the_owner_only() {
    let site = Site::new().await;
    let dir = site.path();
    for file in [
        "admin.toml",
        "enroll.token",
        "collector.toml",
        "ca/ca.key",
        "state/state.db",
    ] {
        assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
    }
    for folder in ["", "ca", "state"] {
        assert_eq!(mode(&dir.join(folder)), 0o700, "{folder}");
    }
    let running = site.start().await;
    for file in ["state/state.db-wal", "state/state.db-shm"] {
        assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_init_changes_nothing() {
    let site = Site::new().await;
    let before = site.read("admin.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_sumun-collector"))
        .arg("init")
        .arg(site.path())
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("is initialised"), "{said}");
    assert_eq!(site.read("admin.toml"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_stays_across_restarts() {
    let site = Site::new().await;
    let mut addresses = Vec::new();
    for _ in 0..2 {
        let program = Program::start(&site).await;
        addresses.push(site.read("collector.addr"));
        // One collector for one directory.
        let mut second = Command::new(env!("CARGO_BIN_EXE_sumun-collector"));
        second
            .arg("run")
            .arg("--config")
            .arg(site.path().join("collector.toml"));
        let output = second.output().expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("in use"));
        program.kill();
    }
    assert_eq!(addresses[0], addresses[1]);
    assert_eq!(addresses[0], format!("{}\n", site.config().listen));
    let context: toml::Table = site.read("admin.toml").parse().expect("toml");
    assert_eq!(context["address"].as_str(), Some(addresses[0].trim()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_is_an_error_with_its_place() {
    let site = Site::new().await;
    let path = site.path().join("collector.toml");
    let text = site
        .read("collector.toml")
        .replace("[ingest]\n", "[ingest]\nsegment_size = 3\n");
    std::fs::write(&path, text).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_sumun-collector"))
        .arg("run")
        .arg("--config")
        .arg(&path)
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("collector.toml:16:1: unknown key `segment_size`"),
        "{said}"
    );
}

fn init_once(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sumun-collector"));
    command.arg("init").arg(dir).arg("--once");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// As a pod that is evicted: whenever it is killed, the next one goes on, and what was finished is not touched.
#[test]
fn an_init_that_was_killed_is_done_by_the_next_one() {
    let (mut interrupted, mut step) = (0, Duration::ZERO);
    loop {
        let scratch = tempfile::tempdir().expect("a folder");
        let dir = scratch.path().join("collector");
        let mut first = init_once(&dir).spawn().expect("it runs");
        std::thread::sleep(step);
        first.kill().expect("killed");
        let ended = first.wait().expect("ended");
        let done = dir.join("collector.toml").exists();
        let before = std::fs::read(dir.join("ca/ca.pem")).unwrap_or_default();
        interrupted += u32::from(!done && dir.join("init.unfinished").exists());

        let again = init_once(&dir).output().expect("it runs");
        let said = String::from_utf8_lossy(&again.stderr);
        assert!(again.status.success(), "after {step:?}: {said}");
        for file in [
            "collector.toml",
            "admin.toml",
            "enroll.token",
            "state/state.db",
        ] {
            assert!(dir.join(file).exists(), "after {step:?}: {file}");
        }
        for file in ["init.unfinished", "collector.toml.new"] {
            assert!(!dir.join(file).exists(), "after {step:?}: {file}");
        }
        let after = std::fs::read(dir.join("ca/ca.pem")).expect("a CA");
        assert!(!done || before == after, "what was finished was made anew");
        if ended.success() {
            break;
        }
        step = step * 5 / 4 + Duration::from_millis(2);
        assert!(step < Duration::from_secs(30), "it never ends");
    }
    assert!(interrupted > 0, "it was never killed at its work");
}

#[test]
fn one_that_is_at_work_is_left_alone() {
    let scratch = tempfile::tempdir().expect("a folder");
    let dir = scratch.path();
    let mark = std::fs::File::create(dir.join("init.unfinished")).expect("a mark");
    mark.lock().expect("locked");
    std::fs::create_dir(dir.join("ca")).expect("a folder");
    std::fs::write(dir.join("ca/ca.key"), "another's").expect("a key");
    let output = init_once(dir).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("another 'init' is at work"), "{said}");
    let key = std::fs::read_to_string(dir.join("ca/ca.key")).expect("the key");
    assert_eq!(key, "another's");
    drop(mark);
    assert!(init_once(dir).output().expect("it runs").status.success());
}

#[test]
fn what_a_collector_has_used_is_not_made_anew() {
    let scratch = tempfile::tempdir().expect("a folder");
    let dir = scratch.path();
    assert!(init_once(dir).output().expect("it runs").status.success());
    std::fs::write(dir.join("init.unfinished"), "").expect("a mark");
    std::fs::remove_file(dir.join("collector.toml")).expect("removed");
    std::fs::create_dir(dir.join("state/log")).expect("a log");
    let output = init_once(dir).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is initialised"));
    assert!(dir.join("state/state.db").exists());
}
