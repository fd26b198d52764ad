//! Power lost: a guest with a disk runs the normal programs and QEMU is killed.
//! Everything that was reported as stored before is in the store afterwards, once.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::Rng;
use sumun_tests::programs;

/// The kernel of the guest, as tests/vm/fetch-kernels names it.
const KERNEL: &str = "6.12";

fn harness() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vm/run")
}

fn guest(scratch: &Path, reported: &Path, more_options: &[&str], more: &[&str]) -> (i32, String) {
    let mut command = Command::new(harness());
    command.arg("--disk").arg(scratch.join("disk.img")).args([
        "--disk-size",
        "1G",
        "--memory",
        "2048",
        "--timeout",
        "600",
    ]);

    for program in ["sumun-agent", "sumun-collector", "sumunctl"] {
        command.arg("--file").arg(format!(
            "{}:/sumun/{program}",
            programs::path(program).display()
        ));
    }
    command
        .arg("--file")
        .arg(format!(
            "{}:/sumun/power-guest",
            programs::path("power-guest").display()
        ))
        .arg("--file")
        .arg(format!("{}:/sumun/reported", reported.display()))
        .arg("--work")
        .arg(scratch.join("work"))
        .args(more_options)
        .args([
            KERNEL,
            "--",
            "env",
            "SUMUN_BIN=/sumun",
            "/sumun/power-guest",
        ])
        .args(["--state", "/disk", "--reported", "/sumun/reported"])
        .args(more);
    let output = command.output().expect("the harness can be started");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.code().unwrap_or(-1), said)
}

#[test]
fn what_was_reported_before_the_power_was_lost_is_stored() {
    if programs::guests_run_elsewhere() {
        return;
    }
    if !programs::guest_kernel("power loss", KERNEL) {
        return;
    }
    let cuts = if programs::long() { 10 } else { 3 };
    let scratch = tempfile::Builder::new()
        .prefix("sumun-power.")
        .tempdir()
        .expect("a temporary directory");
    let list = scratch.path().join("reported");
    let mut reported: BTreeSet<String> = BTreeSet::new();
    let mut random = rand::rng();
    for round in 0..cuts {
        let lines: Vec<&str> = reported.iter().map(String::as_str).collect();
        fs::write(&list, lines.join("\n")).expect("the list");
        // Some way into its work, at no particular moment.
        let marker = format!("^told {}0$", random.random_range(3..20));
        let delay = format!("{:.2}", random.random_range(0.0..2.0));
        let number = round.to_string();
        let (status, said) = guest(
            scratch.path(),
            &list,
            &["--power-loss-at", &marker, "--power-loss-delay", &delay],
            &["--round", &number],
        );
        assert_eq!(status, 0, "round {round}:\n{said}");
        // From the file: a line without its end was never completely reported.
        let log =
            fs::read_to_string(scratch.path().join("work/output.log")).expect("the guest's output");
        let new: Vec<&str> = log
            .split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n')?.strip_prefix("acked "))
            .collect();
        assert!(
            !new.is_empty(),
            "round {round}: nothing was reported:\n{said}"
        );
        println!("power cut {round}: {} reported in this life", new.len());
        reported.extend(new.into_iter().map(str::to_owned));
    }
    let lines: Vec<&str> = reported.iter().map(String::as_str).collect();
    fs::write(&list, lines.join("\n")).expect("the list");
    let (status, said) = guest(scratch.path(), &list, &[], &["--verify"]);
    assert_eq!(status, 0, "{said}");
    assert!(
        said.contains(&format!("verified {}", reported.len())),
        "{said}"
    );
    println!(
        "{} reported before {cuts} power cuts, all stored once",
        reported.len()
    );
}
