//! The starter policies: every file is in order, and none sends a whole kind to user space.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sumun_tests::check::text;
use sumun_tests::programs;

/// The files below `deploy/policies` whose names end so.
fn files(end: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/policies");
    let mut found = Vec::new();
    for tactic in fs::read_dir(root).expect("deploy/policies").flatten() {
        for file in fs::read_dir(tactic.path()).expect("a tactic").flatten() {
            if file.file_name().to_string_lossy().ends_with(end) {
                found.push(file.path());
            }
        }
    }
    found.sort();
    found
}

/// What `policy explain` says of files, as if they were loaded together.
fn explained(files: &[PathBuf]) -> Vec<Value> {
    let output = Command::new(programs::path("sumunctl"))
        .args(["policy", "explain", "-o", "json"])
        .args(files)
        .output()
        .expect("sumunctl can be started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(errors, "", "the kernel's clauses are enough");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn every_file_is_in_order_and_narrow() {
    let on = files(".toml");
    let off = files(".toml.off");
    assert!(on.len() >= 12, "{on:?}");
    for file in on.iter().chain(&off) {
        let output = Command::new(programs::path("sumunctl"))
            .args(["policy", "check"])
            .arg(file)
            .output()
            .expect("sumunctl can be started");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        // The one file that is off because of what it costs is warned of.
        assert_eq!(said.contains("warning"), off.contains(file), "{said}");

        let content = fs::read_to_string(file).expect("a policy");
        let name = file.display();
        assert!(content.contains("\nmode = \"observe\"\n"), "{name}");
        for rule in content.split("[[rule]]").skip(1) {
            for key in ["id", "title", "severity", "attack", "rate"] {
                let start = format!("\n{key} = ");
                assert_eq!(rule.matches(&start).count(), 1, "{name}: {key}: {rule}");
            }
            let attack = rule
                .lines()
                .find_map(|line| line.strip_prefix("attack = ["))
                .and_then(|list| list.strip_suffix(']'))
                .unwrap_or_else(|| panic!("{name}: {rule}"));
            for id in attack.split(", ") {
                let number = id.strip_prefix("\"T").and_then(|id| id.strip_suffix('"'));
                let number = number.unwrap_or_else(|| panic!("{name}: {id}"));
                let (technique, sub) = number.split_once('.').unwrap_or((number, "000"));
                let digits = |part: &str, size| {
                    part.len() == size && part.bytes().all(|byte| byte.is_ascii_digit())
                };
                assert!(digits(technique, 4) && digits(sub, 3), "{name}: {id}");
            }
        }
    }
    // Names are unique among the files: both together are taken as one host's. Names of files are, too.
    let rows = explained(&on);
    let policies: BTreeSet<&str> = rows.iter().map(|row| text(row, "policy")).collect();
    assert_eq!(policies.len(), on.len());
    for (policy, file) in on.iter().map(|file| (file.file_stem(), file)) {
        let policy = policy.and_then(|name| name.to_str()).expect("a name");
        assert!(
            policies.contains(policy),
            "{} holds another",
            file.display()
        );
    }
    let mut seen = BTreeSet::new();
    for row in &rows {
        let rule = (text(row, "policy"), text(row, "rule"), text(row, "kind"));
        assert!(seen.insert(rule), "twice: {rule:?}");
        // Every process is sent anyhow; of the rest nothing may be sent whole.
        let cost = match text(row, "kind") {
            "exec" => "free",
            _ => "narrow",
        };
        assert_eq!(text(row, "cost"), cost, "{row}");
        assert_eq!(text(row, "effective"), "alert", "{row}");
    }
}
