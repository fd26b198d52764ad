//! One lane: its log, its ledger, and what was sent of it.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use sumun_proto::{BATCH_MAX, WINDOW, catalogue::lane_name, v1};
use sumun_segment::{Entry, Log, Options, Reader, Seq};
use tracing::warn;

use super::error::Error;
use super::item::{Header, Held, Highest, Item, filler_body, gap_body};
use super::ledger::{Ledger, Missing, State};
use super::{IN_FLIGHT_BYTES, Key, Statistics};

/// Closed segments of the life lane that stay when they are acknowledged: the
/// newest ones, together at most this many segments' worth, at least two.
const RETAINED: usize = 2;
/// Space of a lane's log that is held back for gap batches.
const RESERVE_BYTES: u64 = 256 * 1024;

/// A lane of the spool. What is here is guarded by one lock; syncs go past it.
pub(super) struct Lane {
    pub(super) lane: v1::Lane,
    pub(super) name: &'static str,
    pub(super) log: Log,
    pub(super) ledger: Ledger,
    pub(super) state: State,
    pub(super) epoch: u64,
    /// Number of the last batch of this epoch.
    pub(super) number: u64,
    /// The active segment may hold batches of an earlier epoch.
    pub(super) roll_first: bool,
    /// The ledger could not be written; it is tried again with the next change.
    pub(super) ledger_behind: bool,
    /// Of the segments there are, oldest first.
    pub(super) segments: VecDeque<Segment>,
    pub(super) segment_bytes: u64,
    /// Handed out in this run and not answered, oldest first: at most `WINDOW`
    /// and about `IN_FLIGHT_BYTES`, beyond which nothing is handed out.
    pub(super) sent: VecDeque<Sent>,
    /// How many of `sent` were handed out since the last rewind.
    pub(super) cursor: usize,
    /// The first that was never handed out in this run.
    pub(super) next: Seq,
    /// Up to here the collector may have seen what the lane holds, in this
    /// run or the one before: it is not given up.
    pub(super) protected: Seq,
    pub(super) reader: Option<Reader>,
    /// Not acknowledged: bytes of bodies and events.
    pub(super) bytes: u64,
    pub(super) events: u64,
    pub(super) counts: Counts,
}

/// What is known of a segment without reading it.
#[derive(Debug)]
pub(super) struct Segment {
    /// First sequence of the log's segment.
    pub(super) first: Seq,
    pub(super) last: Seq,
    pub(super) bytes: u64,
    pub(super) events: u64,
    /// Events that are missing when it is: those in it, and what its gaps count.
    pub(super) count: Option<u64>,
    pub(super) first_boot_ns: u64,
    pub(super) last_boot_ns: u64,
    pub(super) boot_id: Vec<u8>,
    pub(super) wall_offset_ns: i64,
    pub(super) held: Held,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) seq: Seq,
    pub(super) bytes: u64,
    pub(super) events: u64,
    pub(super) refused: bool,
}

/// Since the start of this run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) dropped_batches: u64,
    pub(super) dropped_events: u64,
    pub(super) lost_batches: u64,
    pub(super) refused_batches: u64,
}

impl Segment {
    pub(super) fn new(first: Seq) -> Self {
        Segment {
            first,
            last: first - 1,
            bytes: 0,
            events: 0,
            count: Some(0),
            first_boot_ns: u64::MAX,
            last_boot_ns: 0,
            boot_id: Vec::new(),
            wall_offset_ns: 0,
            held: Held::default(),
        }
    }

    pub(super) fn add(&mut self, seq: Seq, header: &Header, bytes: u64) {
        if self.boot_id.is_empty() {
            self.boot_id.clone_from(&header.boot_id);
            self.wall_offset_ns = header.wall_offset_ns;
        }
        self.last = seq;
        self.bytes += bytes;
        self.events = self.events.saturating_add(header.events);
        self.count = self
            .count
            .zip(header.count())
            .map(|(a, b)| a.saturating_add(b));
        self.first_boot_ns = self.first_boot_ns.min(header.first_boot_ns);
        self.last_boot_ns = self.last_boot_ns.max(header.last_boot_ns);
        self.held.merge(header.pin_generation, &header.highest);
    }

    /// What is missing when all of it is.
    fn missing(&self, reason: &str) -> Missing {
        Missing {
            from: self.first,
            to: self.last,
            reason: reason.into(),
            count: self.count,
            first_boot_ns: self.first_boot_ns.min(self.last_boot_ns),
            last_boot_ns: self.last_boot_ns,
            boot_id: self.boot_id.clone(),
            wall_offset_ns: self.wall_offset_ns,
            pin_generation: self.held.pin_generation,
            ..Missing::default()
        }
    }
}

/// How the log of a lane with this quota is kept.
pub(super) fn log_options(quota: u64) -> Options {
    Options {
        // Small enough that giving one up costs little, large enough for batches.
        segment_bytes: (quota / 32).clamp(1 << 20, 8 << 20),
        max_bytes: Some(quota),
        reserve: RESERVE_BYTES,
    }
}

impl Lane {
    pub(super) fn append(&mut self, item: &Item<'_>) -> Result<Key, Error> {
        if item.body.len() > BATCH_MAX {
            return Err(Error::TooLarge {
                bytes: item.body.len(),
                max: BATCH_MAX,
            });
        }
        self.pay()?;
        self.write(item, 0)
    }

    /// Writes the gap batches that refused batches have left to be written.
    pub(super) fn pay(&mut self) -> Result<(), Error> {
        while let Some(owed) = self.state.owed.first().cloned() {
            let body = gap_body(self.lane, &owed, owed.detail.clone());
            let item = Item {
                body: &body,
                events: 0,
                missing: owed.count,
                first_boot_ns: owed.first_boot_ns,
                last_boot_ns: owed.last_boot_ns,
                boot_id: owed.boot_id.as_slice().try_into().unwrap_or_default(),
                wall_offset_ns: owed.wall_offset_ns,
                pin_generation: owed.pin_generation,
                highest: &BTreeMap::new(),
            };
            self.write(&item, owed.from)?;
            self.state.owed.remove(0);
            self.store_soon();
        }
        Ok(())
    }

    fn write(&mut self, item: &Item<'_>, about: Seq) -> Result<Key, Error> {
        if self.roll_first {
            self.log.roll().map_err(|e| self.failed("roll", e))?;
            self.roll_first = false;
        }
        let number = self.number + 1;
        let header = Header::of(item, self.epoch, number, about);
        let prefix = header.prefix();
        let seq = loop {
            let parts = [prefix.as_slice(), item.body];
            let appended = match about {
                0 => self.log.append_parts(&parts),
                _ => self.log.append_reserved(&parts),
            };
            match appended {
                Ok(seq) => break seq,
                Err(sumun_segment::Error::Bound { .. }) => {
                    if !self.make_room()? {
                        return Err(Error::Full { lane: self.name });
                    }
                }
                Err(sumun_segment::Error::LostBySync { lost }) => {
                    for range in lost {
                        self.lose(range.from, range.to);
                    }
                }
                Err(error) => return Err(self.failed("append to", error)),
            }
        };
        self.number = number;
        let active = self.log.active().first;
        if self.segments.back().is_none_or(|last| last.first < active) {
            self.segments.push_back(Segment::new(active));
        }
        if let Some(segment) = self.segments.back_mut() {
            segment.add(seq, &header, item.body.len() as u64);
        }
        self.bytes += item.body.len() as u64;
        self.events += item.events;
        Ok(Key {
            epoch: self.epoch,
            number,
        })
    }

    /// Makes room below the lane's quota; `false` if nothing may go.
    fn make_room(&mut self) -> Result<bool, Error> {
        let before = self.log.bytes_on_disk();
        // What is only kept for the process tree goes first.
        self.release(0)?;
        if self.log.bytes_on_disk() < before {
            return Ok(true);
        }
        match self.lane {
            v1::Lane::Bulk => self.drop_oldest(),
            _ => Ok(false),
        }
    }

    /// Gives up the oldest segment that the collector cannot have seen, and
    /// says so in its place. `false` if there is none.
    pub(super) fn drop_oldest(&mut self) -> Result<bool, Error> {
        let seen = self.protected.max(self.state.acked);
        let Some(index) = self.segments.iter().position(|s| s.first > seen) else {
            return Ok(false);
        };
        if self.segments[index].first >= self.log.active().first {
            self.log.roll().map_err(|e| self.failed("roll", e))?;
        }
        let segment = &self.segments[index];
        let (first, last) = (segment.first, segment.last);
        let (bytes, events) = (segment.bytes, segment.events);
        let missing = segment.missing("spool_full");
        let mut held = self.state.held();
        held.merge(
            segment.held.pin_generation,
            &Highest::list(&segment.held.highest),
        );
        let before = self.state.clone();
        self.state.add_missing(missing);
        self.state.set_held(&held);
        // Said first: what is gone without a word would be a silent loss.
        if let Err(error) = self.store() {
            self.state = before;
            return Err(error);
        }
        self.log
            .drop_segment(first)
            .map_err(|e| self.failed("remove a segment of", e))?;
        self.segments.remove(index);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.events = self.events.saturating_sub(events);
        self.counts.dropped_batches += last + 1 - first;
        self.counts.dropped_events += events;
        Ok(true)
    }

    /// Removes closed segments that are acknowledged, but for the newest
    /// `retained` closed ones.
    fn release(&mut self, retained: usize) -> Result<(), Error> {
        let active = self.log.active().first;
        let closed = self.segments.iter().filter(|s| s.first < active).count();
        let mut kept = retained.min(closed);
        let mut bytes = 0;
        for segment in self.segments.iter().take(closed).rev().skip(kept) {
            bytes += segment.bytes;
            if retained == 0 || bytes > self.segment_bytes {
                break;
            }
            // Small ones, left by restarts, do not count as much.
            kept += 1;
        }
        let mut through = 0;
        let mut held = self.state.held();
        for (index, segment) in self.segments.iter().enumerate().take(closed - kept) {
            // What was dropped or lost behind it belongs to it.
            let next = self.segments.get(index + 1).map_or(active, |s| s.first);
            if next > self.state.acked + 1 {
                break;
            }
            through = next - 1;
            held.merge(
                segment.held.pin_generation,
                &Highest::list(&segment.held.highest),
            );
        }
        if through == 0 {
            return Ok(());
        }
        self.state.set_held(&held);
        self.ledger
            .store(&self.state)
            .map_err(|e| self.failed("note what is gone from", e))?;
        self.log
            .remove_through(through)
            .map_err(|e| self.failed("remove a segment of", e))?;
        while self.segments.front().is_some_and(|s| s.last <= through) {
            self.segments.pop_front();
        }
        Ok(())
    }

    /// The next batch to send, of those that are synced.
    pub(super) fn next(&mut self) -> Result<Option<v1::Delivery>, Error> {
        while let Some(sent) = self.sent.get(self.cursor).copied() {
            if !sent.refused {
                let (delivery, _) = self.delivery(sent.seq)?;
                self.cursor += 1;
                return Ok(Some(delivery));
            }
            self.cursor += 1;
        }
        while self.state.refused.contains(&self.next) {
            self.next += 1;
        }
        let in_flight: u64 = self.sent.iter().map(|sent| sent.bytes).sum();
        let seq = self.next;
        if self.sent.len() >= WINDOW || in_flight >= IN_FLIGHT_BYTES || seq > self.log.durable() {
            return Ok(None);
        }
        let (delivery, events) = self.delivery(seq)?;
        self.sent.push_back(Sent {
            seq,
            bytes: delivery.body.len() as u64,
            events,
            refused: false,
        });
        self.cursor += 1;
        self.next = seq + 1;
        self.protected = self.protected.max(seq);
        Ok(Some(delivery))
    }

    /// A batch as it is sent, and the events in it. What is missing is
    /// replaced by a gap under its number.
    fn delivery(&mut self, seq: Seq) -> Result<(v1::Delivery, u64), Error> {
        if self.state.missing_at(seq).is_none() {
            if let Some((header, body)) = self.read(seq)? {
                let delivery = v1::Delivery {
                    epoch: header.epoch,
                    lane: self.lane.into(),
                    number: header.number,
                    sha256: header.sha256,
                    body: body.into(),
                };
                return Ok((delivery, header.events));
            }
            warn!(lane = self.name, seq, "a spooled batch is damaged");
            self.lose(seq, seq);
        }
        let (epoch, number) = self.state.key_of(seq).unwrap_or_default();
        let body = self.replacement(seq)?;
        let delivery = v1::Delivery {
            epoch,
            lane: self.lane.into(),
            number,
            sha256: Header::sha256(&body).to_vec(),
            body: body.into(),
        };
        Ok((delivery, 0))
    }

    fn replacement(&mut self, seq: Seq) -> Result<Vec<u8>, Error> {
        let Some(index) = self.state.missing_at(seq) else {
            return Ok(Vec::new());
        };
        if !self.state.missing[index].frozen {
            // Once it may have been sent it must not change any more.
            self.state.missing[index].frozen = true;
            if let Err(error) = self.store() {
                self.state.missing[index].frozen = false;
                return Err(error);
            }
        }
        let missing = &self.state.missing[index];
        if seq > missing.from {
            return Ok(filler_body(self.lane, missing));
        }
        let (epoch, number) = self.state.key_of(seq).unwrap_or_default();
        let last = number + (missing.to - missing.from);
        let detail = format!("batches {number} to {last} of epoch {epoch:016x}");
        Ok(gap_body(self.lane, missing, detail))
    }

    /// Reads a batch; `None` if it is damaged.
    fn read(&mut self, seq: Seq) -> Result<Option<(Header, Vec<u8>)>, Error> {
        let mut reader = match self.reader.take() {
            Some(reader) if reader.position() == seq => reader,
            _ => self.log.durable_reader(seq),
        };
        let entry = reader.next().map_err(|e| self.failed("read", e))?;
        let found = match entry {
            Some(Entry::Record {
                seq: found,
                payload,
                ..
            }) if found == seq => Header::split(payload)
                .filter(|(header, _)| self.state.key_of(seq) == Some((header.epoch, header.number)))
                .map(|(header, body)| (header, body.to_vec())),
            _ => None,
        };
        if found.is_some() {
            self.reader = Some(reader);
        }
        Ok(found)
    }

    /// Notes batches that cannot be read any more.
    pub(super) fn lose(&mut self, from: Seq, to: Seq) {
        let from = from.max(self.state.acked + 1);
        if from > to {
            return;
        }
        let around = self.segments.iter().rev().find(|s| s.first <= from);
        let missing = Missing {
            from,
            to,
            count: None,
            ..around.map(|s| s.missing("corrupt")).unwrap_or_default()
        };
        self.state.add_missing(missing);
        self.counts.lost_batches += to + 1 - from;
        self.store_soon();
    }

    pub(super) fn rewind(&mut self) {
        self.cursor = 0;
    }

    /// Log sequence of a batch that was handed out; `None` if it was answered.
    fn answered(&self, epoch: u64, number: u64) -> Result<Option<Seq>, Error> {
        let seq = self.state.seq_of(epoch, number);
        match seq.filter(|seq| *seq < self.next) {
            Some(seq) if seq <= self.state.acked => Ok(None),
            Some(seq) => Ok(Some(seq)),
            None => Err(Error::NotSent {
                lane: self.name,
                epoch,
                number,
            }),
        }
    }

    /// Everything up to this batch is the collector's.
    pub(super) fn ack(&mut self, epoch: u64, number: u64) -> Result<(), Error> {
        let Some(seq) = self.answered(epoch, number)? else {
            return Ok(());
        };
        self.consume_through(seq);
        if self
            .ledger
            .acknowledge(&self.state)
            .inspect_err(|error| warn!(lane = self.name, %error, "acknowledgement not noted"))
            .is_err()
        {
            // Not knowing costs a repeat that the collector recognises.
            self.ledger_behind = true;
        }
        let retained = match self.lane {
            v1::Lane::Life => RETAINED,
            _ => 0,
        };
        self.release(retained)
    }

    fn consume_through(&mut self, seq: Seq) {
        self.state.acked = self.state.acked.max(seq);
        while self.state.refused.contains(&(self.state.acked + 1)) {
            self.state.acked += 1;
        }
        while let Some(sent) = self.sent.front().copied()
            && sent.seq <= self.state.acked
        {
            self.sent.pop_front();
            self.cursor = self.cursor.saturating_sub(1);
            if !sent.refused {
                self.bytes = self.bytes.saturating_sub(sent.bytes);
                self.events = self.events.saturating_sub(sent.events);
            }
        }
        self.next = self.next.max(self.state.acked + 1);
        self.state.settle(self.log.written());
    }

    /// The batch that the collector refuses; `None` if that was known.
    pub(super) fn refusal(
        &mut self,
        epoch: u64,
        number: u64,
    ) -> Result<Option<(Seq, v1::Delivery)>, Error> {
        let Some(seq) = self.answered(epoch, number)? else {
            return Ok(None);
        };
        if self.state.refused.contains(&seq) {
            return Ok(None);
        }
        let (delivery, _) = self.delivery(seq)?;
        Ok(Some((seq, delivery)))
    }

    /// The batch will never be taken: its number is consumed, and a gap about
    /// it goes into the lane.
    pub(super) fn refuse(&mut self, seq: Seq, reason: &str) -> Result<(), Error> {
        let header = match self.state.missing_at(seq) {
            Some(_) => None,
            None => self.read(seq)?.map(|(header, _)| header),
        };
        // A refused gap gets no gap of its own: that might never end.
        if let Some(header) = header.filter(|header| header.about == 0) {
            self.state.owed.push(Missing {
                from: seq,
                to: seq,
                reason: "rejected".into(),
                count: header.count(),
                first_boot_ns: header.first_boot_ns,
                last_boot_ns: header.last_boot_ns,
                boot_id: header.boot_id,
                wall_offset_ns: header.wall_offset_ns,
                pin_generation: header.pin_generation,
                frozen: false,
                detail: format!(
                    "batch {} of epoch {:016x}: {reason}",
                    header.number, header.epoch
                ),
            });
        }
        self.counts.refused_batches += 1;
        if let Some(sent) = self.sent.iter_mut().find(|sent| sent.seq == seq) {
            sent.refused = true;
            self.bytes = self.bytes.saturating_sub(sent.bytes);
            self.events = self.events.saturating_sub(sent.events);
        }
        self.state.refused.push(seq);
        self.consume_through(self.state.acked);
        self.store_soon();
        self.pay()
    }

    pub(super) fn statistics(&self) -> Statistics {
        let refused = self.state.refused.len() as u64;
        let unacked = self.log.written().saturating_sub(self.state.acked);
        let oldest = self
            .segments
            .iter()
            .find(|segment| segment.last > self.state.acked);
        let missing = self.state.missing.first();
        let segment_time = oldest.map(|s| (s.first_boot_ns, s.wall_offset_ns));
        let missing_time = missing.map(|m| (m.first_boot_ns, m.wall_offset_ns));
        let time = match (segment_time, missing_time) {
            (Some(a), Some(b)) => Some(if wall(a) <= wall(b) { a } else { b }),
            (a, b) => a.or(b),
        };
        Statistics {
            epoch: self.epoch,
            number: self.number,
            batches: unacked.saturating_sub(refused),
            bytes: self.bytes,
            events: self.events,
            oldest_boot_ns: time.map(|time| time.0),
            oldest_wall_ns: time.map(wall),
            in_flight: self.sent.iter().filter(|sent| !sent.refused).count() as u64,
            disk_bytes: self.log.bytes_on_disk(),
            dropped_batches: self.counts.dropped_batches,
            dropped_events: self.counts.dropped_events,
            lost_batches: self.counts.lost_batches,
            refused_batches: self.counts.refused_batches,
        }
    }

    /// Writes and syncs the ledger.
    pub(super) fn store(&mut self) -> Result<(), Error> {
        let stored = self
            .ledger
            .store(&self.state)
            .and_then(|()| self.ledger.sync());
        self.ledger_behind = stored.is_err();
        stored.map_err(|e| self.failed("keep the ledger of", e))
    }

    /// Writes the ledger if it can be written; else with the next change.
    fn store_soon(&mut self) {
        if let Err(error) = self.store() {
            warn!(
                lane = self.name,
                error = &error as &dyn std::error::Error,
                "ledger not written"
            );
        }
    }

    pub(super) fn failed(&self, operation: &'static str, source: sumun_segment::Error) -> Error {
        failed(self.lane, operation, source)
    }
}

pub(super) fn failed(
    lane: v1::Lane,
    operation: &'static str,
    source: sumun_segment::Error,
) -> Error {
    Error::Log {
        operation,
        lane: lane_name(lane),
        source,
    }
}

fn wall((boot_ns, offset_ns): (u64, i64)) -> i64 {
    i64::try_from(boot_ns)
        .unwrap_or(i64::MAX)
        .saturating_add(offset_ns)
}

/// The folder of a lane's log, and of its ledger below it.
pub(super) fn folders(dir: &Path, lane: v1::Lane) -> (std::path::PathBuf, std::path::PathBuf) {
    let log = dir.join(lane_name(lane));
    let ledger = log.join("ledger");
    (log, ledger)
}
