//! Where the programs are.

use std::path::{Path, PathBuf};

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
