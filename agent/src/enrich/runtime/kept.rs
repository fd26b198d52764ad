//! What runtimes said, kept for a restart of the agent: rules that ask for names are not to begin with less than they had because a
//! runtime is slow at that moment.
//!
//! Two files in the state directory that are only added to, [`FILE_MAX`] bytes each: when the newer one is full it takes the place
//! of the older, which is given up. What lives is told of again every some hours, and so stands in the newer one again. They are of
//! this boot only, and never flushed to the disk: another boot has other workloads.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use prost::Message as _;
use sumun_abi::record::FLAW_LOST;
use sumun_proto::v1::Facts;

/// Most bytes of each of the two files: some ten thousand containers with usual labels.
const FILE_MAX: u64 = 4 * 1024 * 1024;
/// Longest record, in bytes: of more, labels are left out and stay unknown until they are told again. No tenant's labels push out
/// the names of all others.
const RECORD_MAX: usize = 16 * 1024;
/// The newer file and the older one.
const NAMES: [&str; 2] = ["names", "names.old"];

/// The files.
#[derive(Debug)]
pub struct Kept {
    paths: [PathBuf; 2],
    boot_id: [u8; 16],
    /// `None` after it could not be written: nothing is kept then, which costs names at a restart only.
    file: Option<File>,
    bytes: u64,
}

impl Kept {
    /// Opens them, and what they say: the oldest first. Those of another boot are given up.
    #[must_use]
    pub fn open(state: &Path, boot_id: [u8; 16]) -> (Self, Vec<Facts>) {
        let paths = NAMES.map(|name| state.join(name));
        let mut facts = Vec::new();
        for path in paths.iter().rev() {
            match read(path, boot_id) {
                Ok((said, whole)) => {
                    facts.extend(said);
                    // What is added is found behind what is whole only.
                    let cut = OpenOptions::new().write(true).open(path);
                    if cut.and_then(|file| file.set_len(whole)).is_err() {
                        let _ = fs::remove_file(path);
                    }
                }
                Err(error) => {
                    if error.kind() != io::ErrorKind::NotFound {
                        tracing::info!(path = %path.display(), %error, "what containers were called is asked anew");
                    }
                    // It is begun again, or is not there.
                    let _ = fs::remove_file(path);
                }
            }
        }
        let mut kept = Self {
            paths,
            boot_id,
            file: None,
            bytes: 0,
        };
        kept.settle(kept.begin());
        (kept, facts)
    }

    /// Keeps what was said of a workload.
    pub fn keep(&mut self, facts: &Facts) {
        if self.file.is_some() {
            let mut record = facts.encode_length_delimited_to_vec();
            if record.len() > RECORD_MAX {
                let short = Facts {
                    container_labels: Vec::new(),
                    pod_labels: Vec::new(),
                    container_labels_flaws: u32::from(FLAW_LOST),
                    pod_labels_flaws: u32::from(FLAW_LOST),
                    ..facts.clone()
                };
                record = short.encode_length_delimited_to_vec();
            }
            let added = self.add(&record);
            if let Err(error) = added {
                tracing::warn!(path = %self.paths[0].display(), %error, "what containers are called is not kept for a restart");
                self.file = None;
            }
        }
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        let len = bytes.len() as u64;
        if self.bytes + len > FILE_MAX {
            fs::rename(&self.paths[0], &self.paths[1])?;
            let (file, bytes) = self.begin()?;
            (self.file, self.bytes) = (Some(file), bytes);
        }
        if let Some(file) = &mut self.file {
            // In one call: who ends the agent does not cut it in two.
            if let Err(error) = file.write_all(bytes) {
                // Half of it hides nothing that was written before.
                let _ = file.set_len(self.bytes);
                return Err(error);
            }
            self.bytes += len;
        }
        Ok(())
    }

    fn settle(&mut self, begun: io::Result<(File, u64)>) {
        match begun {
            Ok((file, bytes)) => (self.file, self.bytes) = (Some(file), bytes),
            Err(error) => {
                tracing::warn!(path = %self.paths[0].display(), %error, "what containers are called is not kept for a restart");
            }
        }
    }

    /// Opens the newer file at its end, with its head if it is new.
    fn begin(&self) -> io::Result<(File, u64)> {
        let mut options = OpenOptions::new();
        let options = options.append(true).create(true).mode(0o600);
        let mut file = options.open(&self.paths[0])?;
        let mut bytes = file.metadata()?.len();
        if bytes == 0 {
            file.write_all(&self.boot_id)?;
            bytes = self.boot_id.len() as u64;
        }
        Ok((file, bytes))
    }
}

/// What stands in a file, up to what has another form, as a record of which the end was not written: nothing that follows in it can be found.
/// And how many bytes that is.
///
/// # Errors
/// It cannot be read, or is of another boot.
fn read(path: &Path, boot_id: [u8; 16]) -> io::Result<(Vec<Facts>, u64)> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    file.take(2 * FILE_MAX).read_to_end(&mut bytes)?;
    let mut rest = bytes
        .strip_prefix(&boot_id[..])
        .ok_or_else(|| io::Error::other("it is of another boot"))?;
    let mut facts = Vec::new();
    let mut left = rest.len();
    while let Ok(one) = Facts::decode_length_delimited(&mut rest) {
        facts.push(one);
        left = rest.len();
        if rest.is_empty() {
            break;
        }
    }
    Ok((facts, (bytes.len() - left) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(workload: u64, label: usize) -> Facts {
        Facts {
            workload,
            container_name: "web".into(),
            container_labels: vec!["x".repeat(label)],
            ..Facts::default()
        }
    }

    fn workloads(facts: &[Facts]) -> Vec<u64> {
        facts.iter().map(|facts| facts.workload).collect()
    }

    #[test]
    fn what_was_said_is_found_again_in_the_same_boot_only() {
        let dir = tempfile::tempdir().expect("a folder");
        let (mut kept, facts) = Kept::open(dir.path(), [7; 16]);
        assert!(facts.is_empty());
        for id in 1..=3 {
            kept.keep(&named(id, 10));
        }
        drop(kept);
        let (mut kept, facts) = Kept::open(dir.path(), [7; 16]);
        assert_eq!(facts, [named(1, 10), named(2, 10), named(3, 10)]);
        kept.keep(&named(4, 10));
        let (_, facts) = Kept::open(dir.path(), [7; 16]);
        assert_eq!(workloads(&facts), [1, 2, 3, 4]);
        let (mut kept, facts) = Kept::open(dir.path(), [8; 16]);
        assert!(facts.is_empty());
        kept.keep(&named(4, 10));
        kept.keep(&named(5, 10));
        // The end is missing.
        let path = dir.path().join(NAMES[0]);
        let bytes = fs::read(&path).expect("a file");
        fs::write(&path, &bytes[..bytes.len() - 1]).expect("a file");
        let (mut kept, facts) = Kept::open(dir.path(), [8; 16]);
        assert_eq!(workloads(&facts), [4]);
        kept.keep(&named(6, 10));
        assert_eq!(workloads(&Kept::open(dir.path(), [8; 16]).1), [4, 6]);
        // Too many labels are not kept, which is said.
        let (mut kept, _) = Kept::open(dir.path(), [8; 16]);
        kept.keep(&named(7, RECORD_MAX));
        let (_, facts) = Kept::open(dir.path(), [8; 16]);
        let last = facts.last().expect("facts");
        assert_eq!((last.workload, last.container_name.as_str()), (7, "web"));
        let lost = u32::from(FLAW_LOST);
        assert_eq!(last.container_labels_flaws, lost);
        assert!(last.container_labels.is_empty());
    }

    #[test]
    fn the_newest_are_kept_in_so_much_room() {
        let dir = tempfile::tempdir().expect("a folder");
        let (mut kept, _) = Kept::open(dir.path(), [7; 16]);
        let label = RECORD_MAX / 2;
        let count = 4 * FILE_MAX / label as u64;
        for id in 1..=count {
            kept.keep(&named(id, label));
        }
        let sizes = NAMES.map(|name| {
            let file = fs::metadata(dir.path().join(name));
            file.expect("a file").len()
        });
        assert!(sizes.iter().all(|size| *size <= FILE_MAX), "{sizes:?}");
        let (_, facts) = Kept::open(dir.path(), [7; 16]);
        let first = facts[0].workload;
        assert!(first > 1 && facts.len() as u64 > count / 4, "{first}");
        assert_eq!(workloads(&facts), (first..=count).collect::<Vec<_>>());
    }
}
