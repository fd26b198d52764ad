//! The starter policies of `deploy/policies`, which an enrolment gives a host that has none.

use std::fs;
use std::io;
use std::path::Path;

use crate::forward::identity;

/// File name and text of each, by name. `build.rs` lists what there is; `.toml.off` is not among them.
pub const POLICIES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/starter.rs"));

/// Writes those whose name is free in a folder. How many that were is returned.
///
/// # Errors
/// A file cannot be written; those before it are there.
pub fn install(folder: &Path) -> Result<usize, identity::Error> {
    let mut written = 0;
    for (name, text) in POLICIES {
        let path = folder.join(name);
        // A link that leads nowhere is somebody's, too.
        let free =
            fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if free {
            identity::replace(&path, text.as_bytes(), 0o644)?;
            written += 1;
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::policies;

    #[test]
    fn what_is_there_is_kept_and_the_rest_is_loaded_without_a_fault() {
        let folder = tempfile::tempdir().expect("a folder");
        let (own, gone) = (POLICIES[0].0, POLICIES[1].0);
        fs::write(folder.path().join(own), "# ours\n").expect("a file");
        std::os::unix::fs::symlink("/nowhere/at-all", folder.path().join(gone)).expect("a link");
        assert_eq!(install(folder.path()).expect("written"), POLICIES.len() - 2);
        let kept = fs::read_to_string(folder.path().join(own)).expect("a file");
        assert_eq!(kept, "# ours\n");
        assert!(fs::read_link(folder.path().join(gone)).is_ok());

        fs::remove_file(folder.path().join(own)).expect("removed");
        fs::remove_file(folder.path().join(gone)).expect("removed");
        assert_eq!(install(folder.path()).expect("written"), 2);
        assert_eq!(install(folder.path()).expect("nothing to do"), 0);
        let loaded = policies::load(folder.path(), &policies::Loaded::default()).expect("policies");
        assert_eq!(loaded.refused().len(), 0);
        assert_eq!(
            loaded.report(&[], &Default::default()).policies.len(),
            POLICIES.len()
        );
    }
}
