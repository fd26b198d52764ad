//! Opening a log: which records are there, what is cut off, what is lost.

use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::Seq;
use crate::error::{Error, Result};
use crate::format::{LogId, RECORD_OVERHEAD, SEGMENT_OVERHEAD};
use crate::scan::{Scan, Step};
use crate::segment;

/// A range of records that cannot be read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// First lost sequence.
    pub from: Seq,
    /// Last lost sequence.
    pub to: Seq,
}

/// What was found when a log was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Sequence of the oldest record, or of the next one if there is none.
    pub first: Seq,
    /// Sequence of the newest record; 0 if there never was one.
    pub last: Seq,
    /// Bytes of an interrupted write that were cut off the last segment. They
    /// had not been reported durable.
    pub truncated_tail_bytes: u64,
    /// Damage found in the last segment: records that had been durable. Damage
    /// in earlier segments is found by reading them.
    pub lost: Vec<Lost>,
}

/// A segment as the open log keeps it.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) first: Seq,
    /// Tells apart two files that had the same name one after the other.
    pub(crate) generation: u64,
    /// Bytes of the file; of the active one, up to the last whole record.
    pub(crate) bytes: u64,
}

/// A log ready to go on: everything up to `last` is durable.
pub(crate) struct Recovered {
    pub(crate) id: LogId,
    /// Oldest first; the last one is `active`.
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) active: Arc<File>,
    pub(crate) recovery: Recovery,
}

pub(crate) fn recover(dir: &Path) -> Result<Recovered> {
    let mut id = None;
    let mut last_header_good = false;
    let mut segments = VecDeque::new();
    let mut newest = None;
    for first in segment::list(dir)? {
        let path = segment::path_of(dir, first);
        let file = segment::open(&path)?;
        let bytes = file
            .metadata()
            .map_err(|e| Error::io("inspect", &path, e))?
            .len();
        let header = segment::header(&path, &file)?.filter(|header| header.first == first);
        last_header_good = header.is_some();
        id = header.map(|header| header.log).or(id);
        segments.push_back(Segment {
            first,
            generation: 0,
            bytes,
        });
        newest = Some((path, Arc::new(file)));
    }
    let Some((path, file)) = newest else {
        let id = LogId::random();
        return start(dir, id, segments, 1, Recovery::default());
    };
    let mut recovery = Recovery::default();
    let Some(last) = segments.back_mut() else {
        unreachable!("the newest file was pushed together with its segment");
    };
    let first = last.first;
    let Some(id) = id else {
        // Nothing of this segment can be told apart any more, and it may have
        // held as many records as fit.
        let most = last.bytes.saturating_sub(SEGMENT_OVERHEAD) / RECORD_OVERHEAD;
        if most > 0 {
            recovery.lost.push(Lost {
                from: first,
                to: first + most - 1,
            });
        }
        return start(
            dir,
            LogId::random(),
            segments,
            first + most.max(1),
            recovery,
        );
    };

    let runs = runs(&file, id, first, last.bytes).map_err(|e| Error::io("read", &path, e))?;
    let (end, next) = keep(first, &runs, &mut recovery);
    recovery.truncated_tail_bytes = last.bytes.saturating_sub(end);
    if last.bytes > end {
        file.set_len(end)
            .map_err(|e| Error::io("cut the torn tail of", &path, e))?;
    }
    last.bytes = end.min(last.bytes);
    // What a killed program had written is in the page cache at best.
    file.sync_all().map_err(|e| Error::io("sync", &path, e))?;
    segment::sync_dir(dir)?;
    // A damaged segment takes no more records: in a closed one damage stays a
    // hole, whatever else is damaged later.
    if !last_header_good || !recovery.lost.is_empty() {
        // An empty segment gives its name to the new one.
        if next == first {
            segments.pop_back();
        }
        return start(dir, id, segments, next, recovery);
    }
    recovery.first = segments.front().map_or(first, |oldest| oldest.first);
    recovery.last = next - 1;
    Ok(Recovered {
        id,
        segments,
        active: file,
        recovery,
    })
}

/// Goes on in a new segment.
fn start(
    dir: &Path,
    id: LogId,
    mut segments: VecDeque<Segment>,
    next: Seq,
    mut recovery: Recovery,
) -> Result<Recovered> {
    let active = Arc::new(segment::create(dir, next, id, &[])?);
    segment::sync_dir(dir)?;
    segments.push_back(Segment {
        first: next,
        generation: 0,
        bytes: SEGMENT_OVERHEAD,
    });
    recovery.first = segments.front().map_or(next, |oldest| oldest.first);
    recovery.last = next - 1;
    Ok(Recovered {
        id,
        segments,
        active,
        recovery,
    })
}

/// Good records that follow each other without a hole in bytes or sequences.
struct Run {
    first: Seq,
    last: Seq,
    end: u64,
    /// The highest sequence that one of its records knows to be durable.
    durable: Seq,
}

fn runs(file: &Arc<File>, id: LogId, first: Seq, bytes: u64) -> std::io::Result<Vec<Run>> {
    let mut scan = Scan::new(Arc::clone(file), id, first, bytes);
    let mut runs: Vec<Run> = Vec::new();
    let mut broken = true;
    loop {
        match scan.step()? {
            Step::End => return Ok(runs),
            Step::Damage => broken = true,
            Step::Record(found) => {
                let header = found.header;
                let end = found.offset + header.on_disk();
                match runs.last_mut() {
                    Some(run) if !broken && header.seq == run.last + 1 => {
                        run.last = header.seq;
                        run.end = end;
                        run.durable = run.durable.max(header.durable());
                    }
                    _ => runs.push(Run {
                        first: header.seq,
                        last: header.seq,
                        end,
                        durable: header.durable(),
                    }),
                }
                broken = false;
            }
        }
    }
}

/// Decides what stays: returns the end of the good bytes and the next sequence.
fn keep(first: Seq, runs: &[Run], recovery: &mut Recovery) -> (u64, Seq) {
    // What is proven durable by a run or one behind it.
    let mut proven: Vec<Seq> = runs.iter().map(|run| run.durable).collect();
    for i in (1..proven.len()).rev() {
        proven[i - 1] = proven[i - 1].max(proven[i]);
    }
    let mut end = SEGMENT_OVERHEAD;
    let mut next = first;
    for (run, proven) in runs.iter().zip(proven) {
        if run.first > next {
            if proven < next {
                break;
            }
            recovery.lost.push(Lost {
                from: next,
                to: run.first - 1,
            });
        }
        end = run.end;
        next = run.last + 1;
    }
    (end, next)
}
