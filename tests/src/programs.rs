//! Where the programs under test are.

use std::path::PathBuf;

/// The folder of the built programs: `SUMUN_PROGRAMS`, or the one the running test was built into.
///
/// # Panics
/// The test's own path is not known.
#[must_use]
pub fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("SUMUN_PROGRAMS") {
        return PathBuf::from(folder);
    }
    let own = std::env::current_exe().expect("a running program has a path");
    let folder = own.parent().expect("a program lies in a folder");
    // Tests are built into `deps`, programs beside it.
    if folder.ends_with("deps") {
        folder.parent().expect("`deps` has a parent").to_owned()
    } else {
        folder.to_owned()
    }
}

/// Path of a program.
///
/// # Panics
/// It was not built: `make build` does that.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    let path = folder().join(name);
    assert!(
        path.exists(),
        "{} is not there: run 'make build' first",
        path.display()
    );
    path
}

/// True for the long forms of the tests (`make test-faults`).
#[must_use]
pub fn long() -> bool {
    std::env::var("SUMUN_FAULTS").is_ok_and(|form| form == "long")
}
