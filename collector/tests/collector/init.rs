//! `init`: what it writes, to whom it is readable, and what stays the same.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

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
