//! The three lanes' batches of one cycle of reading.
//!
//! A lane's batches are built from what the cycle read, in order, and written
//! when the cycle ends. What a lane already holds (after a kill between writing and
//! advancing the ring, or when one lane could be written and another not) is skipped by origin.

use std::collections::HashMap;

use prost::Message as _;
use sumun_proto::v1::{Facts, Gap, Lane};

use super::batch::{BatchBuilder, Closed, Origin, Room};
use crate::kernel::StreamId;
use crate::spool::{self, Spool};

/// One lane in this cycle.
pub struct LaneWriter {
    lane: Lane,
    origin: Origin,
    wall_offset_ns: i64,
    /// What rules may ask of the host.
    host: Option<Facts>,
    open: BatchBuilder,
    closed: Vec<Closed>,
    /// Highest number of each stream that the lane holds.
    held: HashMap<StreamId, u64>,
    room: Room,
    /// As it is written.
    body: Vec<u8>,
}

impl LaneWriter {
    /// A lane that holds `held` already.
    #[must_use]
    pub fn new(
        lane: Lane,
        origin: Origin,
        wall_offset_ns: i64,
        held: HashMap<StreamId, u64>,
    ) -> Self {
        let open = BatchBuilder::new(lane, &origin, wall_offset_ns);
        Self {
            lane,
            origin,
            wall_offset_ns,
            host: None,
            open,
            closed: Vec::new(),
            held,
            room: Room::default(),
            body: Vec::new(),
        }
    }

    /// True when the lane holds this record already.
    #[must_use]
    pub fn holds(&self, stream: StreamId, seq: u64) -> bool {
        self.held.get(&stream).is_some_and(|held| seq <= *held)
    }

    /// The batch to add to.
    pub fn open(&mut self) -> &mut BatchBuilder {
        if self.open.full() {
            self.roll();
        }
        &mut self.open
    }

    /// True when the next row goes to another batch.
    #[must_use]
    pub fn full(&self) -> bool {
        self.open.full()
    }

    /// Adds a gap, unless the lane holds it already.
    pub fn gap(&mut self, gap: Gap) {
        if let Some(origin) = &gap.stream
            && gap.last_seq != 0
        {
            let stream = StreamId {
                ring: u8::try_from(origin.ring).unwrap_or(u8::MAX),
                cpu: origin.cpu,
                level: u8::try_from(origin.level).unwrap_or(u8::MAX),
            };
            if self.holds(stream, gap.last_seq) {
                return;
            }
            self.open().reached(stream, gap.last_seq);
        }
        self.open().gap(gap);
    }

    /// What rules may ask of the host from now on.
    pub fn set_host(&mut self, host: &Facts) {
        self.host = Some(host.clone());
        self.open.host(self.host.clone());
    }

    /// The offset of the wall clock for what is added from now on.
    pub fn set_wall_offset(&mut self, wall_offset_ns: i64) {
        if wall_offset_ns != self.wall_offset_ns {
            self.wall_offset_ns = wall_offset_ns;
            self.roll();
        }
    }

    /// True when there is something to write.
    #[must_use]
    pub fn pending(&self) -> bool {
        !self.closed.is_empty() || !self.open.is_empty()
    }

    /// Writes what the cycle added. On an error everything that was not
    /// written is forgotten: it will be read again.
    ///
    /// # Errors
    /// When the spool cannot take it.
    pub fn write(
        &mut self,
        spool: &Spool,
        through_boot_ns: u64,
    ) -> Result<Option<spool::Key>, spool::Error> {
        self.roll();
        let mut closed = std::mem::take(&mut self.closed);
        if let Some(last) = closed.last_mut() {
            last.batch.through_boot_ns = through_boot_ns;
        }
        let mut last = None;
        for part in closed {
            let events = part.batch.events.len() + part.batch.alerts.len();
            let body = &mut self.body;
            body.clear();
            body.reserve(part.batch.encoded_len());
            part.batch.encode_raw(body);
            let written = spool.append(
                self.lane,
                &spool::Item {
                    body,
                    events: events as u64,
                    missing: part.batch.gaps.iter().map(|gap| gap.count).sum(),
                    first_boot_ns: part.times.0,
                    last_boot_ns: part.times.1,
                    boot_id: self.origin.boot_id,
                    wall_offset_ns: part.batch.wall_offset_ns,
                    pin_generation: self.origin.pin_generation,
                    highest: &part.highest,
                },
            )?;
            for (stream, seq) in part.highest {
                let held = self.held.entry(stream).or_default();
                *held = (*held).max(seq);
            }
            last = Some(written);
            self.room.keep(part.batch);
        }
        Ok(last)
    }

    /// Gives up the room that is kept for the next batches.
    pub fn relax(&mut self) {
        (self.room, self.body) = (Room::default(), Vec::new());
        if self.open.is_empty() {
            self.discard();
        }
    }

    /// Forgets what the cycle added.
    pub fn discard(&mut self) {
        self.closed.clear();
        self.open = self.next();
    }

    fn next(&self) -> BatchBuilder {
        let mut next = BatchBuilder::new(self.lane, &self.origin, self.wall_offset_ns);
        next.host(self.host.clone());
        next
    }

    fn roll(&mut self) {
        let empty = self.open.is_empty();
        self.open.leave_room(&mut self.room);
        let next = self.next().with_room(&mut self.room);
        let over = std::mem::replace(&mut self.open, next);
        if !empty {
            self.closed.push(over.close());
        }
    }
}
