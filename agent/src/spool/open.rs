//! Opening a lane: what it holds, what has become of it, what is missing.

use std::collections::VecDeque;
use std::path::Path;
use std::time::SystemTime;

use sumun_proto::{WINDOW, catalogue::lane_name, v1};
use sumun_segment::{Entry, Log, Seq};
use tracing::{info, warn};

use super::IN_FLIGHT_BYTES;
use super::error::Error;
use super::item::{Header, Held};
use super::lane::{Counts, Lane, Segment, failed, folders, log_options};
use super::ledger::{Epoch, Ledger, Missing, State};

/// Reads a lane and starts a new epoch in it.
pub(super) fn open(
    dir: &Path,
    lane: v1::Lane,
    quota: u64,
    epoch: u64,
) -> Result<(Lane, Held), Error> {
    let (log_dir, ledger_dir) = folders(dir, lane);
    let options = log_options(quota);
    let (log, recovery) = Log::open(log_dir, options).map_err(|e| failed(lane, "open", e))?;
    let (ledger, known) =
        Ledger::open(&ledger_dir).map_err(|e| failed(lane, "open the ledger of", e))?;
    let written = log.written();
    let mut state = known.unwrap_or_else(|| State {
        // Nothing is known of what came before.
        acked: log.first() - 1,
        ..State::default()
    });
    state.settle(written);
    drop_again(&log, &state, lane);

    let mut scan = Scan::default();
    scan.read(&log, &mut state, lane)?;
    begin_epoch(&mut state, epoch, written);
    let unnamed = state.epochs.first().map_or(0, |oldest| oldest.first - 1);
    if state.acked < unnamed {
        warn!(
            lane = lane_name(lane),
            from = state.acked + 1,
            to = unnamed,
            "spooled batches are gone and so are their numbers"
        );
        state.acked = unnamed;
    }
    scan.note_missing(&mut state);
    scan.note_front(&mut state, log.first());
    state.owed.retain(|owed| !scan.told.contains(&owed.from));
    state.settle(written);

    let mut held = state.held();
    for segment in &scan.segments {
        let highest = super::item::Highest::list(&segment.held.highest);
        held.merge(segment.held.pin_generation, &highest);
    }
    let next = state.acked + 1;
    let mut opened = Lane {
        lane,
        name: lane_name(lane),
        roll_first: log.active().last >= log.active().first,
        log,
        ledger,
        state,
        epoch,
        number: 0,
        ledger_behind: false,
        segments: scan.segments,
        segment_bytes: options.segment_bytes,
        sent: VecDeque::new(),
        cursor: 0,
        next,
        protected: scan.protected,
        reader: None,
        bytes: scan.bytes,
        events: scan.events,
        counts: Counts {
            lost_batches: scan.lost_batches,
            ..Counts::default()
        },
    };
    if let Err(error) = opened.store() {
        // A disk that cannot be written stops no one from sending what is there.
        warn!(
            lane = opened.name,
            error = &error as &dyn std::error::Error,
            "ledger not written"
        );
    }
    let statistics = opened.statistics();
    info!(
        lane = opened.name,
        batches = statistics.batches,
        events = statistics.events,
        bytes = statistics.bytes,
        truncated_tail_bytes = recovery.truncated_tail_bytes,
        "lane of the spool opened"
    );
    Ok((opened, held))
}

/// Removes segments that were given up just before the program ended.
fn drop_again(log: &Log, state: &State, lane: v1::Lane) {
    for segment in log.segments().iter().filter(|segment| segment.sealed) {
        let Some(index) = state.missing_at(segment.first) else {
            continue;
        };
        if state.missing[index].to >= segment.last
            && let Err(error) = log.drop_segment(segment.first)
        {
            warn!(lane = lane_name(lane), %error, "a segment that was given up is still there");
        }
    }
}

fn begin_epoch(state: &mut State, epoch: u64, written: Seq) {
    // An epoch in which nothing was written never was.
    state.epochs.retain(|other| other.first <= written);
    state.epochs.push(Epoch {
        epoch,
        first: written + 1,
    });
}

/// What a pass over all batches of a lane finds.
#[derive(Default)]
struct Scan {
    segments: VecDeque<Segment>,
    /// Refused batches whose gap batch is there.
    told: Vec<Seq>,
    /// Ranges that cannot be read, with what is known from around them.
    lost: Vec<Missing>,
    lost_batches: u64,
    protected: Seq,
    /// Of what is not acknowledged.
    bytes: u64,
    events: u64,
    /// The last readable header.
    before: Option<Header>,
}

impl Scan {
    fn read(&mut self, log: &Log, state: &mut State, lane: v1::Lane) -> Result<(), Error> {
        self.protected = state.acked;
        let mut reader = log.reader(log.first());
        // How many of `lost` have a known end.
        let mut closed = 0;
        while let Some(entry) = reader.next().map_err(|e| failed(lane, "read", e))? {
            let (seq, segment, payload) = match entry {
                Entry::Lost { from, to } => {
                    self.lose(from, to);
                    continue;
                }
                Entry::Record {
                    seq,
                    segment,
                    payload,
                } => (seq, segment, payload),
            };
            let Some((header, body)) = Header::split(payload) else {
                self.lose(seq, seq);
                continue;
            };
            for missing in &mut self.lost[closed..] {
                end_at(missing, &header);
            }
            closed = self.lost.len();
            learn(state, &header, seq);
            self.add(state, seq, segment, header, body.len() as u64);
        }
        for missing in &mut self.lost[closed..] {
            // Nothing readable follows: it may have been until now.
            let now = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .ok()
                .and_then(|now| i64::try_from(now.as_nanos()).ok())
                .unwrap_or(i64::MAX);
            let boot_ns = u64::try_from(now.saturating_sub(missing.wall_offset_ns)).unwrap_or(0);
            missing.last_boot_ns = missing.first_boot_ns.max(boot_ns);
        }
        Ok(())
    }

    fn add(&mut self, state: &State, seq: Seq, segment: Seq, header: Header, bytes: u64) {
        if self.segments.back().is_none_or(|last| last.first < segment) {
            self.segments.push_back(Segment::new(segment));
        }
        if let Some(last) = self.segments.back_mut() {
            last.add(seq, &header, bytes);
        }
        if header.about > 0 {
            self.told.push(header.about);
        }
        let open =
            seq > state.acked && state.missing_at(seq).is_none() && !state.refused.contains(&seq);
        if open {
            // As much as may have been sent before the last run ended.
            if seq - state.acked <= WINDOW as u64 && self.bytes < IN_FLIGHT_BYTES {
                self.protected = seq;
            }
            self.bytes += bytes;
            self.events = self.events.saturating_add(header.events);
        }
        self.before = Some(header);
    }

    fn lose(&mut self, from: Seq, to: Seq) {
        let before = self.before.clone().unwrap_or_default();
        self.lost.push(Missing {
            from,
            to,
            reason: "corrupt".into(),
            count: None,
            first_boot_ns: before.last_boot_ns,
            last_boot_ns: before.last_boot_ns,
            boot_id: before.boot_id,
            wall_offset_ns: before.wall_offset_ns,
            pin_generation: before.pin_generation,
            ..Missing::default()
        });
    }

    /// Hands over what is missing and was not acknowledged, each epoch's by itself.
    fn note_missing(&mut self, state: &mut State) {
        for missing in std::mem::take(&mut self.lost) {
            self.note(state, missing);
        }
    }

    /// Notes what is gone before the oldest record, though nobody dropped it.
    fn note_front(&mut self, state: &mut State, first: Seq) {
        let from = state.acked + 1;
        if from >= first {
            return;
        }
        let after = self.segments.front();
        let missing = Missing {
            from,
            to: first - 1,
            reason: "corrupt".into(),
            count: None,
            first_boot_ns: 0,
            last_boot_ns: after.map_or(0, |s| s.first_boot_ns.min(s.last_boot_ns)),
            boot_id: after.map(|s| s.boot_id.clone()).unwrap_or_default(),
            wall_offset_ns: after.map_or(0, |s| s.wall_offset_ns),
            pin_generation: after.map_or(0, |s| s.held.pin_generation),
            ..Missing::default()
        };
        self.note(state, missing);
    }

    fn note(&mut self, state: &mut State, missing: Missing) {
        let to = missing.to;
        let mut from = missing.from.max(state.acked + 1);
        while from <= to {
            let next_epoch = state
                .epochs
                .iter()
                .map(|epoch| epoch.first)
                .find(|first| *first > from)
                .unwrap_or(Seq::MAX);
            let part = Missing {
                from,
                to: to.min(next_epoch - 1),
                ..missing.clone()
            };
            from = part.to + 1;
            let known = (part.from..=part.to)
                .filter(|seq| state.missing_at(*seq).is_some())
                .count() as u64;
            self.lost_batches += part.to + 1 - part.from - known;
            state.add_missing(part);
        }
    }
}

/// The first readable batch after a loss tells when it was over.
fn end_at(missing: &mut Missing, header: &Header) {
    if missing.boot_id.is_empty() {
        missing.boot_id.clone_from(&header.boot_id);
        missing.wall_offset_ns = header.wall_offset_ns;
        missing.pin_generation = header.pin_generation;
    }
    // In the clock of the batch before: the host may have booted in between.
    let shift = header.wall_offset_ns.saturating_sub(missing.wall_offset_ns);
    let end = header.first_boot_ns.saturating_add_signed(shift);
    missing.last_boot_ns = end.max(missing.first_boot_ns);
}

/// Takes the first sequence of an epoch from one of its batches.
fn learn(state: &mut State, header: &Header, seq: Seq) {
    let Some(first) = (seq + 1)
        .checked_sub(header.number)
        .filter(|first| *first > 0)
    else {
        return;
    };
    let learned = Epoch {
        epoch: header.epoch,
        first,
    };
    if seq <= state.acked || state.epochs.contains(&learned) {
        return;
    }
    state.epochs.retain(|epoch| epoch.epoch != header.epoch);
    let at = state.epochs.partition_point(|epoch| epoch.first < first);
    state.epochs.insert(at, learned);
}
