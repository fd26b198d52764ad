//! The durable queue between the rings and the collector.
//!
//! # Layout
//!
//! ```text
//! DIR/alert/  DIR/life/  DIR/bulk/    a lane: a log (`sumun_segment`) of batches
//! DIR/LANE/ledger/                    what has become of them (`ledger`)
//! DIR/quarantine/                     batches the collector refused for good
//! ```
//!
//! # Numbers
//!
//! A batch is delivered under (agent, epoch, lane, number). The epoch is drawn
//! at each start, numbers of an epoch and lane are contiguous from 1, and a batch
//! keeps both for ever. In the log of a lane each number has one sequence, so
//! the ledger speaks of sequences and knows where each epoch begins.
//!
//! # What goes when space runs out
//!
//! Each lane has a quota of its own. When bulk reaches its quota, or the disk
//! is full, the oldest segment of bulk goes, of those that the collector cannot
//! have seen. The ledger notes it first, in space that is preallocated; its first number then
//! delivers a gap that says how many events were in it and when, the others
//! nothing: the gap stands at the place of the loss, and numbers stay
//! contiguous. A gap that may have been sent does not change any more. Alerts and life
//! are never given up: when nothing can be written, [`Spool::append`] fails, the
//! caller stops reading the ring, and the kernel's counters hold the loss.
//!
//! # Order
//!
//! Append (survives a kill) → [`Spool::sync`] (survives power loss) →
//! [`Spool::next`] → acknowledged → the segment goes. The life lane keeps its
//! newest closed segments for the process tree of the next start.
//!
//! # Bounds
//!
//! Handed out and not answered: `WINDOW` batches and [`IN_FLIGHT_BYTES`] a
//! lane; [`Spool::next`] gives nothing more until there are answers. Memory
//! grows with the number of segments, not of batches.

mod error;
mod item;
mod lane;
mod ledger;
mod open;
mod quarantine;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sumun_proto::v1;
use sumun_segment::{Entry, Log, Reader, Seq};
use tokio::sync::watch;
use tracing::warn;

pub use error::Error;
pub(crate) use item::Highest;
pub use item::Item;

use crate::kernel::StreamId;
use item::{Header, Held};
use lane::{Lane, failed};
use quarantine::Quarantine;

/// Bytes of bodies of one lane that may be sent and not yet answered.
pub const IN_FLIGHT_BYTES: u64 = 4 * 1024 * 1024;

/// Segments of bulk that one append may give up on a full disk: what others
/// fill faster than that is not won by giving up everything.
const DROPS_AT_ONCE: usize = 4;
/// A failing disk is complained about this often.
const COMPLAINT_EVERY: Duration = Duration::from_secs(60);

const LANES: [v1::Lane; 3] = [v1::Lane::Alert, v1::Lane::Life, v1::Lane::Bulk];

/// Where the spool lies and how large it may become.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its folder, made if it is absent.
    pub dir: PathBuf,
    /// Bytes on disk of the alert lane.
    pub alert_bytes: u64,
    /// Bytes on disk of the life lane.
    pub life_bytes: u64,
    /// Bytes on disk of the bulk lane.
    pub bulk_bytes: u64,
    /// Refused batches that are kept.
    pub quarantine_files: usize,
    /// Bytes of refused batches that are kept.
    pub quarantine_bytes: u64,
}

/// Name of a batch within its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Epoch: one start of the agent.
    pub epoch: u64,
    /// Number, from 1.
    pub number: u64,
}

/// What a lane holds, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Epoch of this run.
    pub epoch: u64,
    /// Number of the last batch written in it; 0 = none yet.
    pub number: u64,
    /// Numbers that are not consumed yet.
    pub batches: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Events and alerts in them.
    pub events: u64,
    /// Nothing that is not acknowledged is older than this, boot ns of its own boot.
    pub oldest_boot_ns: Option<u64>,
    /// The same by the wall clock, Unix ns.
    pub oldest_wall_ns: Option<i64>,
    /// Handed out and not answered.
    pub in_flight: u64,
    /// Bytes of the lane's files.
    pub disk_bytes: u64,
    /// Batches given up for lack of space since the start.
    pub dropped_batches: u64,
    /// Events in them.
    pub dropped_events: u64,
    /// Batches found damaged since the start.
    pub lost_batches: u64,
    /// Batches refused by the collector since the start.
    pub refused_batches: u64,
}

/// What was found when the spool was opened.
#[derive(Debug)]
pub struct Found {
    held: [Held; 3],
}

/// The open spool. Clones are handles to the same one; every method may be
/// called from any thread, and none waits for the network.
#[derive(Clone)]
pub struct Spool {
    shared: Arc<Shared>,
}

struct Shared {
    lanes: [Mutex<Lane>; 3],
    /// The lanes' logs, so that a sync holds nobody up.
    logs: [Log; 3],
    /// The highest durable sequence of each lane: grows when there may be
    /// something to send.
    durable: [watch::Sender<Seq>; 3],
    quarantine: Mutex<Quarantine>,
    complained: Mutex<Option<Instant>>,
}

impl Settings {
    /// Default sizes.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Settings {
            dir,
            alert_bytes: 64 << 20,
            life_bytes: 512 << 20,
            bulk_bytes: 1 << 30,
            quarantine_files: 1000,
            quarantine_bytes: 64 << 20,
        }
    }
}

impl Found {
    /// How far the lane has dealt with each kernel stream of this generation
    /// of pins: what is not above is there already.
    #[must_use]
    pub fn held(&self, lane: v1::Lane, pin_generation: u64) -> HashMap<StreamId, u64> {
        match index(lane).map(|index| &self.held[index]) {
            Ok(held) if held.pin_generation == pin_generation => {
                held.highest.iter().map(|(id, seq)| (*id, *seq)).collect()
            }
            _ => HashMap::new(),
        }
    }
}

impl Spool {
    /// Opens the spool and starts a new epoch. All batches are read once.
    ///
    /// # Errors
    /// A folder or log cannot be opened. A full disk is no error here.
    pub fn open(settings: &Settings) -> Result<(Spool, Found), Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&settings.dir)
            .map_err(|source| Error::Io {
                operation: "create",
                path: settings.dir.clone(),
                source,
            })?;
        let quarantine = Quarantine::open(
            settings.dir.join("quarantine"),
            settings.quarantine_files,
            settings.quarantine_bytes,
        )?;
        let epoch = loop {
            match rand::random() {
                0 => {}
                epoch => break epoch,
            }
        };
        let open = |lane, quota| open::open(&settings.dir, lane, quota, epoch);
        let (alert, alert_held) = open(v1::Lane::Alert, settings.alert_bytes)?;
        let (life, life_held) = open(v1::Lane::Life, settings.life_bytes)?;
        let (bulk, bulk_held) = open(v1::Lane::Bulk, settings.bulk_bytes)?;
        let logs = [alert.log.clone(), life.log.clone(), bulk.log.clone()];
        let shared = Shared {
            durable: [0, 1, 2].map(|index: usize| watch::Sender::new(logs[index].durable())),
            logs,
            lanes: [Mutex::new(alert), Mutex::new(life), Mutex::new(bulk)],
            quarantine: Mutex::new(quarantine),
            complained: Mutex::new(None),
        };
        let spool = Spool {
            shared: Arc::new(shared),
        };
        let found = Found {
            held: [alert_held, life_held, bulk_held],
        };
        Ok((spool, found))
    }

    /// Appends a batch. It survives a kill from now on, power loss after the
    /// next [`Spool::sync`]. An error is logged once a minute, and the caller may try
    /// again as it likes.
    ///
    /// # Errors
    /// [`Error::is_full`]: there is no room and nothing may be given up for it.
    pub fn append(&self, lane: v1::Lane, item: &Item<'_>) -> Result<Key, Error> {
        let index = index(lane)?;
        let mut drops = 0;
        loop {
            let appended = self.lane(index).append(item);
            let Err(error) = appended else {
                return appended;
            };
            if drops < DROPS_AT_ONCE
                && no_space(&error)
                && self.lane(2).drop_oldest().is_ok_and(|dropped| dropped)
            {
                drops += 1;
                continue;
            }
            self.complain(&error);
            return Err(error);
        }
    }

    /// Makes everything appended before the call durable, so that it may be
    /// sent. Appends go on meanwhile.
    ///
    /// # Errors
    /// What is not durable stays unsent; the next call tries again.
    pub fn sync(&self) -> Result<(), Error> {
        let mut result = Ok(());
        for index in 0..LANES.len() {
            if let Err(error) = self.sync_lane(index) {
                self.complain(&error);
                result = Err(error);
            }
        }
        result
    }

    /// Changes when the lane has more to send: the value only grows.
    #[must_use]
    pub fn subscribe(&self, lane: v1::Lane) -> Option<watch::Receiver<u64>> {
        let index = index(lane).ok()?;
        Some(self.shared.durable[index].subscribe())
    }

    /// The next batch to send in this lane, in order; `None` when all that is
    /// synced has been handed out, or as much as may be unanswered.
    ///
    /// # Errors
    /// The lane cannot be read, or a gap not be noted. The next call tries again.
    pub fn next(&self, lane: v1::Lane) -> Result<Option<v1::Delivery>, Error> {
        self.lane(index(lane)?).next()
    }

    /// Hands out everything that is unanswered again, from the oldest on: for
    /// a new connection.
    ///
    /// # Errors
    /// [`Error::NoLane`].
    pub fn rewind(&self, lane: v1::Lane) -> Result<(), Error> {
        self.lane(index(lane)?).rewind();
        Ok(())
    }

    /// The collector has everything of this epoch and lane up to `number` on
    /// its disk, and all older epochs: it answers in the order of sending.
    ///
    /// # Errors
    /// [`Error::NotSent`], or acknowledged segments cannot be removed.
    pub fn ack(&self, lane: v1::Lane, epoch: u64, number: u64) -> Result<(), Error> {
        self.lane(index(lane)?).ack(epoch, number)
    }

    /// The collector will never take this batch: it is put aside with the
    /// reason, its number is consumed, and a gap about it goes into the lane.
    ///
    /// # Errors
    /// [`Error::NotSent`], or the batch cannot be read. If the gap cannot be written
    /// now it is written before the next batch.
    pub fn reject(
        &self,
        lane: v1::Lane,
        epoch: u64,
        number: u64,
        reason: &str,
    ) -> Result<(), Error> {
        // What a collector says is cut to what a log line and a gap can bear.
        let reason: String = reason.chars().take(300).collect();
        let mut lane = self.lane(index(lane)?);
        let Some((seq, delivery)) = lane.refusal(epoch, number)? else {
            return Ok(());
        };
        warn!(lane = lane.name, epoch = %format_args!("{epoch:016x}"), number, reason, "batch refused by the collector");
        let kept = lock(&self.shared.quarantine).store(lane.name, &delivery, &reason);
        if let Err(error) = kept {
            // The gap says what is missing all the same.
            self.complain(&error);
        }
        if let Err(error) = lane.refuse(seq, &reason) {
            self.complain(&error);
        }
        Ok(())
    }

    /// What the lane holds.
    ///
    /// # Errors
    /// [`Error::NoLane`].
    pub fn statistics(&self, lane: v1::Lane) -> Result<Statistics, Error> {
        Ok(self.lane(index(lane)?).statistics())
    }

    /// Files removed from the quarantine to keep it small, since the start.
    #[must_use]
    pub fn quarantine_removed(&self) -> u64 {
        lock(&self.shared.quarantine).removed
    }

    /// Bodies of the life lane that are still there, acknowledged or not,
    /// oldest first: what the process tree is rebuilt from.
    #[must_use]
    pub fn life_bodies(&self) -> LifeBodies {
        let log = &self.shared.logs[1];
        LifeBodies {
            reader: log.reader(log.first()).until(log.written()),
            failed: false,
        }
    }

    fn sync_lane(&self, index: usize) -> Result<(), Error> {
        let log = &self.shared.logs[index];
        let durable = loop {
            if log.durable() == log.written() {
                break log.durable();
            }
            match log.sync() {
                Ok(durable) => break durable,
                Err(sumun_segment::Error::LostBySync { lost }) => {
                    for range in lost {
                        self.lane(index).lose(range.from, range.to);
                    }
                }
                Err(error) => return Err(failed(LANES[index], "sync", error)),
            }
        };
        self.shared.durable[index].send_if_modified(|known| {
            let grown = durable > *known;
            *known = durable;
            grown
        });
        let mut lane = self.lane(index);
        if lane.ledger_behind {
            lane.store()?;
        }
        Ok(())
    }

    fn lane(&self, index: usize) -> MutexGuard<'_, Lane> {
        lock(&self.shared.lanes[index])
    }

    /// Logs an error, once a minute.
    fn complain(&self, error: &Error) {
        let mut complained = lock(&self.shared.complained);
        if complained.is_none_or(|last| last.elapsed() >= COMPLAINT_EVERY) {
            *complained = Some(Instant::now());
            warn!(
                error = error as &dyn std::error::Error,
                "the spool cannot keep up its work"
            );
        }
    }
}

/// See [`Spool::life_bodies`].
pub struct LifeBodies {
    reader: Reader,
    /// What cannot be read ends it, after saying so.
    failed: bool,
}

impl Iterator for LifeBodies {
    type Item = Result<Vec<u8>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            match self.reader.next() {
                Ok(None) => return None,
                Ok(Some(Entry::Record { payload, .. })) => {
                    if let Some((_, body)) = Header::split(payload) {
                        return Some(Ok(body.to_vec()));
                    }
                }
                // The lane says what it has lost when it is sent.
                Ok(Some(Entry::Lost { .. })) => {}
                Err(error) => {
                    self.failed = true;
                    return Some(Err(failed(v1::Lane::Life, "read", error)));
                }
            }
        }
        None
    }
}

fn index(lane: v1::Lane) -> Result<usize, Error> {
    LANES
        .iter()
        .position(|known| *known == lane)
        .ok_or(Error::NoLane)
}

fn no_space(error: &Error) -> bool {
    matches!(
        error,
        Error::Log {
            source: sumun_segment::Error::NoSpace { .. },
            ..
        }
    )
}

/// Locks, also after a panic elsewhere: each change is made as a whole after
/// its work has succeeded.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
