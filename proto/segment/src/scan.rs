//! Reads one segment forward, record by record, and finds the next good record
//! behind damaged bytes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::Seq;
use crate::format::{LogId, RECORD_HEADER, RecordHeader, SEGMENT_OVERHEAD};

/// Bytes read at once, unless a record needs more.
const WINDOW: u64 = 256 * 1024;

/// One forward reader of a segment file.
pub(crate) struct Scan {
    file: Arc<File>,
    log: LogId,
    /// Offset of the next byte to look at.
    at: u64,
    /// Bytes from here on are not looked at.
    end: u64,
    /// The lowest sequence the next record can have.
    floor: Seq,
    window: Vec<u8>,
    /// Offset of the window's first byte.
    window_at: u64,
}

/// A good record; its payload stays in the window until the next step.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) offset: u64,
    pub(crate) header: RecordHeader,
    payload: Range<usize>,
}

/// What a step came upon.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Record(Found),
    /// Bytes that are no record were passed over.
    Damage,
    /// The end given to the scan.
    End,
}

impl Scan {
    pub(crate) fn new(file: Arc<File>, log: LogId, first: Seq, end: u64) -> Self {
        Scan {
            file,
            log,
            at: SEGMENT_OVERHEAD,
            end,
            floor: first,
            window: Vec::new(),
            window_at: 0,
        }
    }

    /// Lets a scan of a growing segment go on to its new end.
    pub(crate) fn extend(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    pub(crate) fn step(&mut self) -> io::Result<Step> {
        if self.at >= self.end {
            return Ok(Step::End);
        }
        let at = self.at;
        let Some(header) = self.header(at)? else {
            self.resume_after(at)?;
            return Ok(Step::Damage);
        };
        // The header is good, so its length is: look where it leads first.
        let log = self.log;
        let next = at + header.on_disk();
        let good = header.seq >= self.floor
            && match self.bytes(at, header.on_disk())? {
                Some(record) => header.matches(log, &record[RECORD_HEADER..]),
                None => false,
            };
        if good {
            let payload = (at - self.window_at) as usize + RECORD_HEADER;
            self.at = next;
            self.floor = header.seq.saturating_add(1);
            return Ok(Step::Record(Found {
                offset: at,
                payload: payload..payload + header.len as usize,
                header,
            }));
        }
        if next == self.end || (next < self.end && self.header(next)?.is_some()) {
            self.at = next;
        } else {
            self.resume_after(at)?;
        }
        Ok(Step::Damage)
    }

    /// Steps back to `found`, so that the next step finds it again.
    pub(crate) fn back_to(&mut self, found: &Found) {
        self.at = found.offset;
        self.floor = found.header.seq;
    }

    /// The payload of the record the last step found.
    pub(crate) fn payload(&self, found: &Found) -> &[u8] {
        &self.window[found.payload.clone()]
    }

    /// Moves to the next offset after `at` with a good header, or to the end.
    fn resume_after(&mut self, at: u64) -> io::Result<()> {
        let mut offset = at + 1;
        while offset + RECORD_HEADER as u64 <= self.end {
            if let Some(header) = self.header(offset)?
                && header.seq >= self.floor
                && offset + header.on_disk() <= self.end
            {
                self.at = offset;
                return Ok(());
            }
            offset += 1;
        }
        self.at = self.end;
        Ok(())
    }

    fn header(&mut self, at: u64) -> io::Result<Option<RecordHeader>> {
        let log = self.log;
        Ok(self
            .bytes(at, RECORD_HEADER as u64)?
            .and_then(|bytes| RecordHeader::decode(log, bytes)))
    }

    /// `len` bytes from `at`, or `None` if the end comes first.
    fn bytes(&mut self, at: u64, len: u64) -> io::Result<Option<&[u8]>> {
        if len > self.end.saturating_sub(at) {
            return Ok(None);
        }
        let held = self.window_at..self.window_at + self.window.len() as u64;
        if at < held.start || at + len > held.end {
            self.fill(at, len.max(WINDOW).min(self.end - at))?;
            if len > self.window.len() as u64 {
                return Ok(None);
            }
        }
        let start = (at - self.window_at) as usize;
        Ok(Some(&self.window[start..start + len as usize]))
    }

    /// Reads the window anew. It is shorter than `len` if the file is.
    fn fill(&mut self, at: u64, len: u64) -> io::Result<()> {
        let len = len as usize;
        if self.window.capacity() > 4 * len.max(WINDOW as usize) {
            self.window = Vec::new();
        }
        self.window.resize(len, 0);
        self.window_at = at;
        let mut filled = 0;
        while filled < len {
            match self
                .file
                .read_at(&mut self.window[filled..], at + filled as u64)
            {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.window.clear();
                    return Err(error);
                }
            }
        }
        self.window.truncate(filled);
        Ok(())
    }
}
