//! The one state behind all handles of a log, and the work done on it.

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Seq;
use crate::error::{Error, Result};
use crate::format::{LogId, MAX_PAYLOAD, RECORD_OVERHEAD, RecordHeader, SEGMENT_OVERHEAD};
use crate::log::Options;
use crate::recover::{Lost, Recovered, Segment};
use crate::reserve::Reserve;
use crate::scan::{Scan, Step};
use crate::segment::{self, SegmentInfo};

/// Locks are taken in the order writer, syncing, state.
#[derive(Debug)]
pub(crate) struct Shared {
    dir: PathBuf,
    pub(crate) id: LogId,
    pub(crate) options: Options,
    writer: Mutex<Writer>,
    /// Held over every sync, so that its error is seen by who must act on it.
    syncing: Mutex<()>,
    /// Held over a removal; taken before `state`, with no other lock held.
    removing: Mutex<()>,
    state: Mutex<State>,
    /// Makes the next sync of data fail as a broken disk would.
    #[cfg(test)]
    pub(crate) fail_sync: std::sync::atomic::AtomicBool,
    /// Keeps the directory to this log.
    _lock: File,
}

#[derive(Debug)]
struct Writer {
    reserve: Reserve,
    /// A failed write may have left bytes behind the last whole record.
    torn: bool,
    headers: Vec<u8>,
}

/// What all handles see.
#[derive(Debug)]
pub(crate) struct State {
    /// Oldest first, never empty; the last one is the active one.
    segments: VecDeque<Segment>,
    active: Arc<File>,
    /// Generations given to segments so far.
    generations: u64,
    pub(crate) written: Seq,
    pub(crate) durable: Seq,
    /// A sync failed: all after `durable` has to be written again.
    sync_failed: bool,
    /// The name of the active segment may not be on disk yet.
    name_unsynced: bool,
}

/// Which limits an append keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Ordinary,
    Reserved,
}

/// Where a sequence is to be found, at one moment.
pub(crate) struct Place {
    pub(crate) oldest: Seq,
    pub(crate) written: Seq,
    pub(crate) durable: Seq,
    /// First sequence of the segment, which is its name.
    pub(crate) first: Seq,
    pub(crate) generation: u64,
    /// Offset behind its last whole record.
    pub(crate) end: u64,
    /// The last sequence that is this segment's to hold.
    pub(crate) last: Seq,
    /// The file, if it is open already.
    pub(crate) active: Option<Arc<File>>,
}

/// Takes the log's directory for this process.
pub(crate) fn lock_dir(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| Error::io("open", &path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse {
            path: dir.to_path_buf(),
        }),
        Err(TryLockError::Error(error)) => Err(Error::io("lock", &path, error)),
    }
}

impl Shared {
    pub(crate) fn new(
        dir: PathBuf,
        options: Options,
        lock: File,
        reserve: Reserve,
        recovered: Recovered,
    ) -> Result<Self> {
        let mut active = &*recovered.active;
        active
            .seek(SeekFrom::End(0))
            .map_err(|e| Error::io("seek in", &dir, e))?;
        Ok(Shared {
            dir,
            id: recovered.id,
            options,
            writer: Mutex::new(Writer {
                reserve,
                torn: false,
                headers: Vec::new(),
            }),
            syncing: Mutex::new(()),
            removing: Mutex::new(()),
            state: Mutex::new(State {
                segments: recovered.segments,
                active: recovered.active,
                generations: 0,
                written: recovered.recovery.last,
                durable: recovered.recovery.last,
                sync_failed: false,
                name_unsynced: false,
            }),
            #[cfg(test)]
            fail_sync: std::sync::atomic::AtomicBool::new(false),
            _lock: lock,
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn path_of(&self, first: Seq) -> PathBuf {
        segment::path_of(&self.dir, first)
    }

    pub(crate) fn retake_reserve(&self) {
        // Appends insist on it; here it is only a first chance.
        let _ = lock(&self.writer).reserve.take();
    }

    pub(crate) fn reserve_held(&self) -> bool {
        lock(&self.writer).reserve.held()
    }

    pub(crate) fn append(&self, records: &[&[&[u8]]], room: Room) -> Result<Range<Seq>> {
        let mut lens = Vec::with_capacity(records.len());
        let mut total = 0;
        for parts in records {
            let bytes = parts.iter().map(|part| part.len() as u64).sum();
            if bytes > MAX_PAYLOAD {
                return Err(Error::TooLarge {
                    bytes,
                    max: MAX_PAYLOAD,
                });
            }
            lens.push(bytes as u32);
            total += RECORD_OVERHEAD + bytes;
        }

        let mut guard = lock(&self.writer);
        let writer = &mut *guard;
        self.mend(writer)?;
        if room == Room::Ordinary {
            writer.reserve.take()?;
            self.make_room(total)?;
        }
        let (first, durable) = {
            let state = self.state();
            (state.written + 1, state.durable)
        };
        if records.is_empty() {
            return Ok(first..first);
        }

        writer.headers.clear();
        for (seq, (parts, len)) in (first..).zip(records.iter().zip(&lens)) {
            let header = RecordHeader::of(self.id, seq, durable, *len, parts);
            writer.headers.extend_from_slice(&header.encode(self.id));
        }
        let mut written = self.write(writer, records);
        if room == Room::Reserved && matches!(written, Err(Error::NoSpace { .. })) {
            self.mend(writer)?;
            writer.reserve.release()?;
            written = self.write(writer, records);
        }
        written?;

        let last = first + records.len() as u64 - 1;
        let mut state = self.state();
        state.written = last;
        state.active_segment().bytes += total;
        Ok(first..last + 1)
    }

    /// Writes the encoded headers and their payloads at the end of the active
    /// segment: all of it, or nothing that is still there afterwards.
    fn write(&self, writer: &mut Writer, records: &[&[&[u8]]]) -> Result<()> {
        let (active, path) = {
            let mut state = self.state();
            let first = state.active_segment().first;
            (Arc::clone(&state.active), self.path_of(first))
        };
        let mut slices = Vec::with_capacity(records.len() * 2);
        let headers = writer.headers.chunks(RECORD_OVERHEAD as usize);
        for (header, parts) in headers.zip(records) {
            slices.push(IoSlice::new(header));
            slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        }
        let Err(error) = write_all(&active, &mut slices) else {
            return Ok(());
        };
        writer.torn = true;
        // Cut at once if it can be; else the next append insists on it.
        let _ = self.cut(writer);
        Err(Error::io("append to", &path, error))
    }

    /// Brings the log to where it can be appended to after a failure.
    fn mend(&self, writer: &mut Writer) -> Result<()> {
        self.cut(writer)?;
        if self.state().sync_failed {
            self.rewrite_unsynced()?;
        }
        Ok(())
    }

    /// Removes what a failed write has left.
    fn cut(&self, writer: &mut Writer) -> Result<()> {
        if !writer.torn {
            return Ok(());
        }
        let (active, segment) = {
            let mut state = self.state();
            (Arc::clone(&state.active), state.active_segment().clone())
        };
        active
            .set_len(segment.bytes)
            .and_then(|()| (&*active).seek(SeekFrom::Start(segment.bytes)))
            .map_err(|e| Error::io("cut a torn write off", &self.path_of(segment.first), e))?;
        writer.torn = false;
        Ok(())
    }

    /// Checks the bound and closes the active segment if `bytes` more would
    /// make it too large. The caller holds the writer.
    fn make_room(&self, bytes: u64) -> Result<()> {
        let full = {
            let mut state = self.state();
            let active = state.active_segment().bytes;
            let full = active > SEGMENT_OVERHEAD && active + bytes > self.options.segment_bytes;
            let more = bytes + if full { SEGMENT_OVERHEAD } else { 0 };
            if let Some(max_bytes) = self.options.max_bytes
                && state.bytes() + self.options.reserve + more > max_bytes
            {
                return Err(Error::Bound {
                    path: self.dir.clone(),
                    max_bytes,
                });
            }
            full
        };
        if full { self.roll() } else { Ok(()) }
    }

    pub(crate) fn seal(&self) -> Result<Option<SegmentInfo>> {
        let mut writer = lock(&self.writer);
        self.mend(&mut writer)?;
        let info = self.state().info_of_active();
        if info.last < info.first {
            return Ok(None);
        }
        self.roll()?;
        Ok(Some(SegmentInfo {
            sealed: true,
            ..info
        }))
    }

    /// Syncs the active segment and goes on in a new one. The caller holds the
    /// writer.
    fn roll(&self) -> Result<()> {
        let _syncing = lock(&self.syncing);
        self.sync_active()?;
        let next = self.state().written + 1;
        let file = segment::create(&self.dir, next, self.id, &[])?;
        self.state().activate(next, SEGMENT_OVERHEAD, file);
        self.sync_name()
    }

    pub(crate) fn sync(&self) -> Result<Seq> {
        loop {
            {
                let _syncing = lock(&self.syncing);
                if !self.state().sync_failed {
                    self.sync_active()?;
                    return Ok(self.state().durable);
                }
            }
            // Nothing may be appended while the unsynced records move.
            let mut writer = lock(&self.writer);
            self.mend(&mut writer)?;
        }
    }

    /// The caller holds `syncing`, and no sync has failed before.
    fn sync_active(&self) -> Result<()> {
        self.sync_name()?;
        let (active, first, written, durable) = {
            let mut state = self.state();
            let first = state.active_segment().first;
            (
                Arc::clone(&state.active),
                first,
                state.written,
                state.durable,
            )
        };
        if written == durable {
            return Ok(());
        }
        let synced = active.sync_data();
        #[cfg(test)]
        let synced = match self
            .fail_sync
            .swap(false, std::sync::atomic::Ordering::Relaxed)
        {
            true => Err(io::Error::from_raw_os_error(nix::libc::EIO)),
            false => synced,
        };
        let mut state = self.state();
        match synced {
            Ok(()) => {
                state.durable = state.durable.max(written);
                Ok(())
            }
            Err(source) => {
                state.sync_failed = true;
                Err(Error::SyncFailed {
                    path: self.path_of(first),
                    first_unsynced: state.durable + 1,
                    source,
                })
            }
        }
    }

    /// The caller holds `syncing`.
    fn sync_name(&self) -> Result<()> {
        if self.state().name_unsynced {
            segment::sync_dir(&self.dir)?;
            self.state().name_unsynced = false;
        }
        Ok(())
    }

    /// After a failed sync: writes all records that are not durable to a new
    /// segment. The caller holds the writer.
    fn rewrite_unsynced(&self) -> Result<()> {
        let _syncing = lock(&self.syncing);
        let (active, segment, written, durable) = {
            let mut state = self.state();
            let segment = state.active_segment().clone();
            (
                Arc::clone(&state.active),
                segment,
                state.written,
                state.durable,
            )
        };
        let mut records = Vec::new();
        let mut lost = Vec::new();
        let mut next = durable + 1;
        let mut scan = Scan::new(active, self.id, segment.first, segment.bytes);
        // What cannot even be read (an error) is as lost as what is damaged.
        while let Ok(step) = scan.step() {
            let found = match step {
                Step::Record(found) => found,
                Step::Damage => continue,
                Step::End => break,
            };
            let seq = found.header.seq;
            if seq <= durable {
                continue;
            }
            if seq > next {
                lost.push(Lost {
                    from: next,
                    to: seq - 1,
                });
            }
            let payload = scan.payload(&found);
            // The file is synced before it has a name: all of it or nothing is
            // durable, so each record vouches for itself.
            let header = RecordHeader::of(self.id, seq, seq, found.header.len, &[payload]);
            records.extend_from_slice(&header.encode(self.id));
            records.extend_from_slice(payload);
            next = seq + 1;
        }
        if next <= written {
            lost.push(Lost {
                from: next,
                to: written,
            });
        }
        let first = if records.is_empty() {
            written + 1
        } else {
            durable + 1
        };
        let file = segment::create(&self.dir, first, self.id, &records)?;
        {
            let mut state = self.state();
            if state.active_segment().first == first {
                state.segments.pop_back();
            }
            state.activate(first, SEGMENT_OVERHEAD + records.len() as u64, file);
            state.sync_failed = false;
        }
        self.sync_name()?;
        self.state().durable = written;
        if lost.is_empty() {
            Ok(())
        } else {
            Err(Error::LostBySync { lost })
        }
    }

    /// Removes the oldest segment if all of it is `seq` or lower and it is not
    /// the active one. Returns its bytes.
    pub(crate) fn remove_oldest(&self, seq: Seq) -> Result<Option<u64>> {
        let oldest = {
            let state = self.state();
            match (state.segments.front(), state.segments.get(1)) {
                (Some(oldest), Some(second)) if second.first - 1 <= seq => oldest.first,
                _ => return Ok(None),
            }
        };
        self.remove(oldest)
    }

    /// Removes a closed segment by its first sequence. Returns its bytes.
    pub(crate) fn remove(&self, first: Seq) -> Result<Option<u64>> {
        // So that a segment that could not be removed goes back to its place.
        let _removing = lock(&self.removing);
        let (index, segment) = {
            let mut state = self.state();
            let closed = state.segments.len() - 1;
            let Some(index) = (0..closed).find(|i| state.segments[*i].first == first) else {
                return Ok(None);
            };
            match state.segments.remove(index) {
                Some(segment) => (index, segment),
                None => return Ok(None),
            }
        };
        let path = self.path_of(first);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.state().segments.insert(index, segment);
                return Err(Error::io("remove", &path, error));
            }
        }
        // Before the next one goes: power loss must not leave an older one.
        segment::sync_dir(&self.dir)?;
        Ok(Some(segment.bytes))
    }
}

impl State {
    fn active_segment(&mut self) -> &mut Segment {
        self.segments
            .back_mut()
            .expect("a log always has an active segment")
    }

    /// Makes `file` the active segment.
    fn activate(&mut self, first: Seq, bytes: u64, file: File) {
        self.generations += 1;
        self.segments.push_back(Segment {
            first,
            generation: self.generations,
            bytes,
        });
        self.active = Arc::new(file);
        self.name_unsynced = true;
    }

    pub(crate) fn oldest(&self) -> Seq {
        self.segments
            .front()
            .map_or(self.written + 1, |oldest| oldest.first)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    pub(crate) fn infos(&self) -> Vec<SegmentInfo> {
        let mut infos: Vec<SegmentInfo> = self
            .segments
            .iter()
            .zip(self.segments.iter().skip(1))
            .map(|(segment, next)| SegmentInfo {
                first: segment.first,
                last: next.first - 1,
                bytes: segment.bytes,
                sealed: true,
            })
            .collect();
        infos.push(self.info_of_active());
        infos
    }

    pub(crate) fn info_of_active(&self) -> SegmentInfo {
        let (first, bytes) = self
            .segments
            .back()
            .map_or((self.written + 1, 0), |active| (active.first, active.bytes));
        SegmentInfo {
            first,
            last: self.written,
            bytes,
            sealed: false,
        }
    }

    pub(crate) fn place_of(&self, seq: Seq) -> Place {
        let after = self
            .segments
            .partition_point(|segment| segment.first <= seq);
        let index = after.saturating_sub(1);
        let segment = &self.segments[index];
        let next = self.segments.get(index + 1);
        Place {
            oldest: self.oldest(),
            written: self.written,
            durable: self.durable,
            first: segment.first,
            generation: segment.generation,
            end: segment.bytes,
            last: next.map_or(self.written, |next| next.first - 1),
            active: next.is_none().then(|| Arc::clone(&self.active)),
        }
    }
}

/// Locks, also after a panic elsewhere: no update of ours is left half done by
/// one, each is made after the work has succeeded.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes all slices at the file's position. `writev` takes at most 1,024
/// slices (`UIO_MAXIOV`); the standard library caps its calls accordingly.
fn write_all(mut file: &File, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !slices.is_empty() {
        match file.write_vectored(slices) {
            Ok(0) if slices.iter().any(|slice| !slice.is_empty()) => {
                return Err(io::ErrorKind::WriteZero.into());
            }
            Ok(n) => IoSlice::advance_slices(&mut slices, n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
