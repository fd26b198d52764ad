//! Where the programs are.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Path of a program under test or of a generator: in the folder that `SUMUN_BIN`
/// names, else beside the running test.
///
/// # Panics
/// It was not built: `make build` does that.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    let given = std::env::var_os("SUMUN_BIN").map(|folder| Path::new(&folder).join(name));
    if let Some(path) = given.filter(|path| path.exists()) {
        return path;
    }
    let path = beside().join(name);
    assert!(
        path.exists(),
        "{} is not there: run 'make build' first",
        path.display()
    );
    path
}

/// A program of tests, as cargo names it; built before this one.
///
/// # Panics
/// cargo names none.
#[must_use]
pub fn test(name: &str) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    cargo.args([
        "test",
        "--release",
        "--workspace",
        "--no-run",
        "--message-format=json",
        "--test",
        name,
    ]);
    let output = cargo.output().expect("cargo can be run");
    let said = String::from_utf8_lossy(&output.stdout);
    let named = said.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let found = message["target"]["name"] == name;
        found.then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    named.unwrap_or_else(|| {
        panic!(
            "cargo names no test program: {}",
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

/// True in a guest whose processor is emulated: everything takes ten times as long and more.
#[must_use]
pub fn emulated() -> bool {
    std::env::var_os("SUMUN_TEST_EMULATED").is_some()
}

/// Whether a kernel of tests/vm/fetch-kernels is there for a guest; where it is not, the reason is told as a skip.
#[must_use]
pub fn guest_kernel(test: &str, kernel: &str) -> bool {
    let cache = std::env::var("SUMUN_CACHE").map_or_else(
        |_| Path::new(&std::env::var("HOME").unwrap_or_default()).join(".cache/sumun"),
        PathBuf::from,
    );
    let there = cache.join("kernels").join(kernel).join("vmlinuz").exists();
    if !there {
        println!("SKIPPED {test}: no kernel {kernel} for a guest, run 'make setup-test'");
    }
    there
}

/// The folder of the built programs.
fn beside() -> PathBuf {
    let own = std::env::current_exe().expect("a running program has a path");
    let folder = own.parent().expect("a program lies in a folder");
    // Tests are built into `deps`, programs beside it.
    if folder.ends_with("deps") {
        folder.parent().expect("`deps` has a parent").to_owned()
    } else {
        folder.to_owned()
    }
}

/// True for the long forms of the tests (`make test-faults`).
#[must_use]
pub fn long() -> bool {
    std::env::var("SUMUN_FAULTS").is_ok_and(|form| form == "long")
}

/// True where `tests/run` runs what boots virtual machines after the programs on this host; says so.
#[must_use]
pub fn guests_run_elsewhere() -> bool {
    let elsewhere = std::env::var("SUMUN_GUESTS").is_ok_and(|which| which == "elsewhere");
    if elsewhere {
        println!("virtual machines come after the other tests: see the end");
    }
    elsewhere
}
