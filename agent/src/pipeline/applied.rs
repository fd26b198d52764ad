//! Which policies a generation of the kernel's filter stands for, across restarts: one line in the state
//! directory, the generation and the hash of the policies.
//!
//! The records of a generation that is not the one of this line, or whose policies are not those that are loaded now, were
//! made under other rules: nothing is killed for them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The file.
#[derive(Clone, Debug)]
pub struct Applied {
    path: PathBuf,
}

impl Applied {
    /// In this state directory.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self {
            path: state.join("applied"),
        }
    }

    /// True if the generation was made of policies with this hash. What cannot be read says no.
    #[must_use]
    pub fn is(&self, generation: u32, hash: &str) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|text| text == line(generation, hash))
    }

    /// Writes it down; a plain write, as after a power loss the kernel has forgotten its generations.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, generation: u32, hash: &str) -> io::Result<()> {
        fs::write(&self.path, line(generation, hash))
    }
}

fn line(generation: u32, hash: &str) -> String {
    format!("{generation} {hash}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_policies_of_the_same_generation_are_known_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let applied = Applied::new(dir.path());
        assert!(!applied.is(1, "abc"));
        applied.write(7, "abc").expect("written");
        assert!(Applied::new(dir.path()).is(7, "abc"));
        for (generation, hash) in [(7, "abd"), (8, "abc"), (7, "ab")] {
            assert!(!applied.is(generation, hash));
        }
    }
}
