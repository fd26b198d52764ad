//! Batches that the collector refuses for good, kept for people to look at.
//!
//! One file each, `TIME-LANE-EPOCH-NUMBER.batch`: a line of JSON that says
//! what it is and why it was refused, then the body as it was sent. Bounded in files and
//! bytes: the oldest goes first, and is counted.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;
use sumun_proto::v1;

use super::error::Error;

/// The folder and its bounds.
#[derive(Debug)]
pub(super) struct Quarantine {
    dir: PathBuf,
    files_max: usize,
    bytes_max: u64,
    /// Files removed to stay below the bounds, and bodies that did not fit.
    pub(super) removed: u64,
}

#[derive(Serialize)]
struct Label<'a> {
    lane: &'a str,
    epoch: String,
    number: u64,
    sha256: String,
    bytes: usize,
    reason: &'a str,
}

impl Quarantine {
    pub(super) fn open(dir: PathBuf, files_max: usize, bytes_max: u64) -> Result<Self, Error> {
        fs::create_dir_all(&dir).map_err(|e| io("create", &dir, e))?;
        Ok(Quarantine {
            dir,
            files_max,
            bytes_max,
            removed: 0,
        })
    }

    pub(super) fn store(
        &mut self,
        lane: &'static str,
        delivery: &v1::Delivery,
        reason: &str,
    ) -> Result<(), Error> {
        let label = Label {
            lane,
            epoch: format!("{:016x}", delivery.epoch),
            number: delivery.number,
            sha256: hex::encode(&delivery.sha256),
            bytes: delivery.body.len(),
            reason,
        };
        let mut line = serde_json::to_vec(&label).unwrap_or_default();
        line.push(b'\n');
        let bytes = (line.len() + delivery.body.len()) as u64;
        if !self.make_room(bytes)? {
            self.removed += 1;
            return Ok(());
        }
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let name = format!(
            "{:020}-{lane}-{}-{}.batch",
            now.as_nanos(),
            label.epoch,
            label.number
        );
        let path = self.dir.join(name);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(&line)?;
                file.write_all(&delivery.body)?;
                file.sync_all()
            });
        written.map_err(|error| {
            let _ = fs::remove_file(&path);
            io("write", &path, error)
        })
    }

    /// Removes the oldest files until one of `bytes` fits; `false` if it never can.
    fn make_room(&mut self, bytes: u64) -> Result<bool, Error> {
        if bytes > self.bytes_max || self.files_max == 0 {
            return Ok(false);
        }
        let mut files = self.files()?;
        let mut total: u64 = files.iter().map(|(_, bytes)| bytes).sum();
        // Names start with the time, so the order is that of age.
        files.sort();
        let mut left = files.len();
        for (path, size) in files {
            if left < self.files_max && total + bytes <= self.bytes_max {
                break;
            }
            fs::remove_file(&path).map_err(|e| io("remove", &path, e))?;
            self.removed += 1;
            left -= 1;
            total -= size;
        }
        Ok(true)
    }

    /// Files and their sizes.
    pub(super) fn files(&self) -> Result<Vec<(PathBuf, u64)>, Error> {
        let mut files = Vec::new();
        let listed = fs::read_dir(&self.dir).map_err(|e| io("list", &self.dir, e))?;
        for entry in listed {
            let entry = entry.map_err(|e| io("list", &self.dir, e))?;
            let path = entry.path();
            if path.extension().is_some_and(|suffix| suffix == "batch") {
                let size = entry.metadata().map_err(|e| io("inspect", &path, e))?.len();
                files.push((path, size));
            }
        }
        Ok(files)
    }
}

fn io(operation: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        operation,
        path: path.to_path_buf(),
        source,
    }
}
