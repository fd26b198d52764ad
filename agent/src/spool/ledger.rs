//! What has become of a lane's batches: acknowledged, given up, refused.
//!
//! The ledger is a small log of its own (`LANE/ledger/`), whose records are
//! snapshots of all there is to know, each replacing what came before, and
//! acknowledgements between them. When it has grown, a snapshot starts a new
//! segment and the old ones go. It has a reserve, so that what was given up for
//! lack of space can be noted without any.
//!
//! Record: one byte, then 1 = a `State` message, 2 = the acknowledged log
//! sequence (8 bytes, little-endian).

use std::path::Path;

use prost::Message;
use sumun_segment::{Entry, Log, Options, Result, Seq};

use super::item::{Held, Highest};

const SNAPSHOT: u8 = 1;
const ACKNOWLEDGED: u8 = 2;
/// Size at which the ledger is written anew.
const COMPACT_BYTES: u64 = 256 * 1024;
const RESERVE_BYTES: u64 = 128 * 1024;

/// All that is known of a lane besides its batches. Batches are named by
/// their sequence in the lane's log.
#[derive(Clone, PartialEq, Message)]
pub(super) struct State {
    /// Everything up to here is the collector's.
    #[prost(uint64, tag = "1")]
    pub(super) acked: Seq,
    /// Batches above `acked` that were refused for good.
    #[prost(uint64, repeated, tag = "2")]
    pub(super) refused: Vec<Seq>,
    /// Ascending; each ends where the next begins.
    #[prost(message, repeated, tag = "3")]
    pub(super) epochs: Vec<Epoch>,
    /// Ascending, disjoint.
    #[prost(message, repeated, tag = "4")]
    pub(super) missing: Vec<Missing>,
    /// Gap batches that have to be written about refused ones: `from` is the
    /// sequence of the refused batch.
    #[prost(message, repeated, tag = "5")]
    pub(super) owed: Vec<Missing>,
    /// Kernel streams: how far they were dealt with in segments that are gone.
    #[prost(fixed64, tag = "6")]
    pub(super) held_generation: u64,
    #[prost(message, repeated, tag = "7")]
    pub(super) held: Vec<Highest>,
}

/// Numbers of an epoch start with 1 at the log sequence `first`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct Epoch {
    #[prost(fixed64, tag = "1")]
    pub(super) epoch: u64,
    #[prost(uint64, tag = "2")]
    pub(super) first: Seq,
}

/// Batches of one epoch that are gone and were not delivered.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Missing {
    #[prost(uint64, tag = "1")]
    pub(super) from: Seq,
    #[prost(uint64, tag = "2")]
    pub(super) to: Seq,
    /// As `gap.reason` in the catalogue.
    #[prost(string, tag = "3")]
    pub(super) reason: String,
    /// Events in them; absent = not known.
    #[prost(uint64, optional, tag = "4")]
    pub(super) count: Option<u64>,
    #[prost(fixed64, tag = "5")]
    pub(super) first_boot_ns: u64,
    #[prost(fixed64, tag = "6")]
    pub(super) last_boot_ns: u64,
    #[prost(bytes = "vec", tag = "7")]
    pub(super) boot_id: Vec<u8>,
    #[prost(sfixed64, tag = "8")]
    pub(super) wall_offset_ns: i64,
    #[prost(fixed64, tag = "9")]
    pub(super) pin_generation: u64,
    /// Its gap may have been sent: it must stay as it is.
    #[prost(bool, tag = "10")]
    pub(super) frozen: bool,
    /// For people: the collector's word on a refused batch.
    #[prost(string, tag = "11")]
    pub(super) detail: String,
}

impl State {
    pub(super) fn held(&self) -> Held {
        let mut held = Held::default();
        held.merge(self.held_generation, &self.held);
        held
    }

    pub(super) fn set_held(&mut self, held: &Held) {
        self.held_generation = held.pin_generation;
        self.held = Highest::list(&held.highest);
    }

    /// Whether everything is in the order that the rest relies on.
    fn is_sound(&self) -> bool {
        let mut epoch_after = 0;
        let epochs = self.epochs.iter().all(|epoch| {
            let sound = epoch.first > epoch_after;
            epoch_after = epoch.first;
            sound
        });
        let mut missing_after = 0;
        let missing = self.missing.iter().all(|missing| {
            let sound = missing.from > missing_after && missing.to >= missing.from;
            missing_after = missing.to;
            sound
        });
        let most = Seq::MAX / 2;
        epochs && missing && epoch_after.max(missing_after).max(self.acked) < most
    }

    /// Delivery key of a batch.
    pub(super) fn key_of(&self, seq: Seq) -> Option<(u64, u64)> {
        let after = self.epochs.partition_point(|epoch| epoch.first <= seq);
        let epoch = self.epochs.get(after.checked_sub(1)?)?;
        Some((epoch.epoch, seq - epoch.first + 1))
    }

    /// Log sequence of a delivery key.
    pub(super) fn seq_of(&self, epoch: u64, number: u64) -> Option<Seq> {
        let index = self.epochs.iter().position(|e| e.epoch == epoch)?;
        let seq = self.epochs[index]
            .first
            .checked_add(number.checked_sub(1)?)?;
        match self.epochs.get(index + 1) {
            Some(next) if seq >= next.first => None,
            _ => Some(seq),
        }
    }

    /// The missing range that `seq` lies in.
    pub(super) fn missing_at(&self, seq: Seq) -> Option<usize> {
        let after = self.missing.partition_point(|missing| missing.from <= seq);
        let index = after.checked_sub(1)?;
        (self.missing[index].to >= seq).then_some(index)
    }

    /// Notes batches of one epoch as missing. What was missing already stays
    /// as it was; a range that just goes on grows.
    pub(super) fn add_missing(&mut self, new: Missing) {
        let mut from = new.from;
        let mut counted = new.count;
        while from <= new.to {
            if let Some(index) = self.missing_at(from) {
                from = self.missing[index].to + 1;
                continue;
            }
            let after = self.missing.partition_point(|missing| missing.from < from);
            let to = match self.missing.get(after) {
                Some(next) => new.to.min(next.from - 1),
                None => new.to,
            };
            let part = Missing {
                from,
                to,
                // The events cannot be told apart: the first part has them all.
                count: counted,
                ..new.clone()
            };
            counted = counted.map(|_| 0);
            from = to + 1;
            let same_epoch = after > 0
                && self.key_of(self.missing[after - 1].from).map(|key| key.0)
                    == self.key_of(part.from).map(|key| key.0);
            match self.missing[..after].last_mut() {
                Some(before) if same_epoch && before.goes_on_with(&part) => before.take(part),
                _ => self.missing.insert(after, part),
            }
        }
    }

    /// Brings the state to what the lane's log can have, and forgets what is
    /// over.
    pub(super) fn settle(&mut self, written: Seq) {
        self.acked = self.acked.min(written);
        let acked = self.acked;
        self.refused.retain(|seq| *seq > acked && *seq <= written);
        self.missing
            .retain(|missing| missing.to > acked && missing.from <= written);
        self.epochs.retain(|epoch| epoch.first <= written + 1);
        // An epoch is over when the next one begins at or below what is acked.
        let over = self
            .epochs
            .iter()
            .skip(1)
            .take_while(|next| next.first <= acked + 1)
            .count();
        self.epochs.drain(..over);
    }
}

impl Missing {
    fn goes_on_with(&self, next: &Missing) -> bool {
        !self.frozen
            && self.to + 1 == next.from
            && self.reason == next.reason
            && self.count.is_some() == next.count.is_some()
            && (&self.boot_id, self.pin_generation, &self.detail)
                == (&next.boot_id, next.pin_generation, &next.detail)
    }

    fn take(&mut self, next: Missing) {
        self.to = next.to;
        self.count = self.count.zip(next.count).map(|(a, b)| a.saturating_add(b));
        self.first_boot_ns = self.first_boot_ns.min(next.first_boot_ns);
        self.last_boot_ns = self.last_boot_ns.max(next.last_boot_ns);
    }
}

/// The open ledger of a lane.
pub(super) struct Ledger {
    log: Log,
}

impl Ledger {
    /// The last known state; `None` if there is none.
    pub(super) fn open(dir: &Path) -> Result<(Self, Option<State>)> {
        let options = Options {
            segment_bytes: u64::MAX,
            max_bytes: None,
            reserve: RESERVE_BYTES,
        };
        let (log, recovery) = Log::open(dir, options)?;
        let mut state: Option<State> = None;
        let mut reader = log.reader(recovery.first);
        while let Some(entry) = reader.next()? {
            // A lost record is made good by the next snapshot.
            let Entry::Record { payload, .. } = entry else {
                continue;
            };
            match payload.split_first() {
                Some((&SNAPSHOT, bytes)) => {
                    if let Ok(read) = State::decode(bytes)
                        && read.is_sound()
                    {
                        state = Some(read);
                    }
                }
                Some((&ACKNOWLEDGED, bytes)) => {
                    if let (Some(state), Ok(acked)) = (&mut state, bytes.try_into()) {
                        state.acked = state.acked.max(Seq::from_le_bytes(acked));
                    }
                }
                _ => {}
            }
        }
        Ok((Ledger { log }, state))
    }

    /// Writes the whole state. It survives a kill now, power loss after
    /// [`Ledger::sync`].
    pub(super) fn store(&self, state: &State) -> Result<()> {
        let bytes = state.encode_to_vec();
        let seq = self.log.append_reserved(&[&[SNAPSHOT], &bytes])?;
        if self.log.active().bytes > COMPACT_BYTES.max(4 * bytes.len() as u64)
            && self.log.roll().is_ok_and(|rolled| rolled.is_some())
        {
            self.log.append_reserved(&[&[SNAPSHOT], &bytes])?;
            self.log.sync()?;
            self.log.remove_through(seq)?;
        }
        Ok(())
    }

    pub(super) fn acknowledge(&self, state: &State) -> Result<()> {
        if self.log.active().bytes > COMPACT_BYTES {
            return self.store(state);
        }
        let acked = state.acked.to_le_bytes();
        self.log.append_parts(&[&[ACKNOWLEDGED], &acked])?;
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.log.sync().map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(from: Seq, to: Seq, count: u64) -> Missing {
        Missing {
            from,
            to,
            reason: "spool_full".into(),
            count: Some(count),
            first_boot_ns: from * 10,
            last_boot_ns: to * 10,
            ..Missing::default()
        }
    }

    fn state() -> State {
        State {
            epochs: vec![
                Epoch { epoch: 7, first: 1 },
                Epoch {
                    epoch: 8,
                    first: 101,
                },
            ],
            ..State::default()
        }
    }

    #[test]
    fn keys_and_sequences_name_each_other() {
        let state = state();
        assert_eq!(state.key_of(1), Some((7, 1)));
        assert_eq!(state.key_of(100), Some((7, 100)));
        assert_eq!(state.key_of(101), Some((8, 1)));
        assert_eq!(state.seq_of(8, 1), Some(101));
        assert_eq!(state.seq_of(7, 100), Some(100));
        assert_eq!(state.seq_of(7, 101), None);
        assert_eq!(state.seq_of(7, 0), None);
        assert_eq!(state.seq_of(9, 1), None);
        assert_eq!(state.seq_of(8, u64::MAX), None);
        assert_eq!(State::default().key_of(1), None);
    }

    #[test]
    fn missing_ranges_grow_but_not_when_sent_nor_over_epochs() {
        let mut state = state();
        state.add_missing(missing(10, 19, 5));
        state.add_missing(missing(20, 29, 7));
        assert_eq!(state.missing.len(), 1);
        assert_eq!(
            (state.missing[0].to, state.missing[0].count),
            (29, Some(12))
        );
        assert_eq!(state.missing[0].last_boot_ns, 290);
        state.missing[0].frozen = true;
        state.add_missing(missing(30, 100, 1));
        assert_eq!(state.missing.len(), 2);
        state.add_missing(missing(101, 105, 1));
        assert_eq!(state.missing.len(), 3, "another epoch");
        assert_eq!(state.missing_at(9), None);
        assert_eq!(state.missing_at(29), Some(0));
        assert_eq!(state.missing_at(105), Some(2));
        assert_eq!(state.missing_at(106), None);
        state.acked = 29;
        state.settle(200);
        assert_eq!(state.missing.len(), 2);
        assert_eq!(state.epochs.len(), 2);
        state.acked = 100;
        state.settle(200);
        assert_eq!(state.epochs.len(), 1);
    }

    #[test]
    fn what_is_missing_twice_is_counted_once() {
        let mut state = state();
        let mut unknown = missing(15, 16, 0);
        unknown.count = None;
        unknown.reason = "corrupt".into();
        state.add_missing(unknown);
        state.add_missing(missing(10, 20, 40));
        let ranges: Vec<_> = state
            .missing
            .iter()
            .map(|m| (m.from, m.to, m.count))
            .collect();
        assert_eq!(
            ranges,
            [(10, 14, Some(40)), (15, 16, None), (17, 20, Some(0))]
        );
    }

    #[test]
    fn the_last_state_and_later_acknowledgements_are_found_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut expected = state();
        expected.add_missing(missing(10, 20, 40));
        {
            let (ledger, found) = Ledger::open(dir.path()).expect("opens");
            assert_eq!(found, None);
            for acked in 1..30_000 {
                expected.acked = acked;
                match acked % 100 {
                    0 => ledger.store(&expected).expect("stored"),
                    _ => ledger.acknowledge(&expected).expect("stored"),
                }
            }
            ledger.sync().expect("synced");
            assert!(ledger.log.bytes_on_disk() < 3 * COMPACT_BYTES);
        }
        let (_, found) = Ledger::open(dir.path()).expect("opens");
        assert_eq!(found, Some(expected));
    }
}
