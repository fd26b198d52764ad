//! Segment files: their names, how one is made, what is said about them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::Seq;
use crate::error::{Error, Result};
use crate::format::{LogId, SEGMENT_HEADER, SEQ_MAX, SegmentHeader, VERSION};

const SUFFIX: &str = ".seg";

/// What is known of a segment without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Sequence of its first record (of the next one, while it is empty).
    pub first: Seq,
    /// Sequence of its last record; `first - 1` while it is empty.
    pub last: Seq,
    /// Bytes of the file.
    pub bytes: u64,
    /// Whether it is closed: it takes no more records and is synced.
    pub sealed: bool,
}

pub(crate) fn path_of(dir: &Path, first: Seq) -> PathBuf {
    dir.join(format!("{first:020}{SUFFIX}"))
}

/// First sequences of all segments in `dir`, ascending. Files that were being
/// made when the program ended are removed.
pub(crate) fn list(dir: &Path) -> Result<Vec<Seq>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("list", dir, e))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(".tmp") {
            let path = entry.path();
            fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        } else if let Some(first) = first_of(name) {
            found.push(first);
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn first_of(name: &str) -> Option<Seq> {
    let digits = name.strip_suffix(SUFFIX)?;
    if digits.len() != 20 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits
        .parse()
        .ok()
        .filter(|first| (1..=SEQ_MAX).contains(first))
}

/// Makes a segment that holds `records` (encoded) and gives it its name once
/// it is on disk. The file is open for reading and writing, at its end. The
/// directory is not synced yet.
pub(crate) fn create(dir: &Path, first: Seq, log: LogId, records: &[u8]) -> Result<File> {
    let path = path_of(dir, first);
    let temporary = path.with_extension("tmp");
    let made = write_new(&temporary, first, log, records)
        .and_then(|file| fs::rename(&temporary, &path).map(|()| file));
    match made {
        Ok(file) => Ok(file),
        Err(error) => {
            // On a full disk the half-made file is what is in the way.
            let _ = fs::remove_file(&temporary);
            Err(Error::io("create segment", &path, error))
        }
    }
}

fn write_new(path: &Path, first: Seq, log: LogId, records: &[u8]) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let header = SegmentHeader {
        version: VERSION,
        first,
        log,
    };
    file.write_all(&header.encode())?;
    file.write_all(records)?;
    file.sync_all()?;
    Ok(file)
}

/// Reads a segment's header; `None` if it has none that is whole.
pub(crate) fn header(path: &Path, file: &File) -> Result<Option<SegmentHeader>> {
    let mut bytes = [0; SEGMENT_HEADER];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(Error::io("read", path, error)),
    }
    let header = SegmentHeader::decode(&bytes);
    if let Some(header) = header
        && header.version != VERSION
    {
        return Err(Error::Version {
            path: path.to_path_buf(),
            found: header.version,
            known: VERSION,
        });
    }
    Ok(header)
}

pub(crate) fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| Error::io("open", path, e))
}

/// Makes created, renamed and removed names in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Error::io("sync directory", dir, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_names_are_segments() {
        assert_eq!(first_of("00000000000000000012.seg"), Some(12));
        for name in [
            "00000000000000000000.seg",
            "12.seg",
            "+0000000000000000012.seg",
            "99999999999999999999.seg",
            "18446744073709551615.seg",
            "00000000000000000012.damaged",
            "lock",
        ] {
            assert_eq!(first_of(name), None, "{name}");
        }
    }
}
