//! The one writer of the durable log.
//!
//! ```text
//! streams → queue → judge numbers → append → sync → visible → acknowledge
//!                                                      └ full or old segment → sealer → lake → segment dropped
//! ```
//!
//! Everything that waits in the queue while a sync runs is one group and
//! shares the next sync. Only this task knows delivery numbers, so two streams
//! of one agent cannot disagree.
//!
//! A log that cannot be written stops the writer, not the program: it tries
//! again, nothing is acknowledged, the queue fills and the streams wait.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sqlx::SqlitePool;
use sumun_proto::v1::{Batch, Gap, Lane};
use sumun_proto::{FORMAT, Host};
use sumun_segment::Log;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use crate::ingest::lane::{LaneKey, Lanes, Verdict};
use crate::ingest::pulse::Pulse;
use crate::ingest::record::Record;
use crate::ingest::seal::{SealJob, Sealer};
use crate::metrics::Metrics;
use crate::state::now_ns;
use crate::store::{Applied, Store};
use crate::tenant::identity::Identity;
use crate::tenant::registry::{Delivered, Mark, Registry};

/// Deliveries that may wait for the writer. When it is full the streams wait;
/// nothing is dropped. The bytes of their bodies are bounded apart.
const QUEUE: usize = 1024;
/// Deliveries and bytes that share one sync at most.
const GROUP: usize = 512;
const GROUP_BYTES: usize = 16 * 1024 * 1024;
/// Pause before a failed write is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Where there is nothing to write, this often the writer says that it is there.
const BEAT: Duration = Duration::from_secs(1);
/// A failure that lasts is logged this often.
pub(crate) const NAG: Duration = Duration::from_secs(60);
/// Refused batches remembered in the state database.
const ERRORS_KEPT: i64 = 10_000;

/// A delivery that has passed the cheap checks.
#[derive(Debug)]
pub struct Delivery {
    /// Whose it is.
    pub identity: Identity,
    /// Name of the host.
    pub host_name: Arc<str>,
    /// Delivery epoch.
    pub epoch: u64,
    /// Lane.
    pub lane: Lane,
    /// Number in epoch and lane.
    pub number: u64,
    /// Hash of the body, as the agent gave it.
    pub sha256: [u8; 32],
    /// The encoded batch.
    pub body: Bytes,
    /// The batch, or why it is none: then it is refused for good.
    pub batch: Result<Box<Batch>, String>,
}

/// How a delivery ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable and visible, now or since an earlier delivery.
    Taken,
    /// It will never be taken; its number is consumed.
    Refused(String),
    /// Numbers before it are missing: the stream cannot go on.
    Hole {
        /// The number that is expected.
        expected: u64,
    },
    /// The collector cannot tell now: the stream cannot go on.
    Unavailable,
}

/// Where streams hand in deliveries. Clones are handles to the same writer.
#[derive(Clone, Debug)]
pub struct Intake {
    queue: mpsc::Sender<Job>,
    /// One permit for each KiB of bodies that are in memory.
    budget: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Job {
    delivery: Delivery,
    reply: oneshot::Sender<Outcome>,
    _permit: OwnedSemaphorePermit,
}

impl Intake {
    /// Hands in a delivery; waits while the writer is behind. `None` when the
    /// collector is stopping.
    pub async fn submit(&self, delivery: Delivery) -> Option<oneshot::Receiver<Outcome>> {
        let cost = u32::try_from(delivery.body.len() / 1024 + 1).unwrap_or(u32::MAX);
        let budget = Arc::clone(&self.budget);
        let permit = budget.acquire_many_owned(cost).await.ok()?;
        let (reply, outcome) = oneshot::channel();
        let job = Job {
            delivery,
            reply,
            _permit: permit,
        };
        let bytes = i64::try_from(job.delivery.body.len()).unwrap_or(0);
        self.metrics.buffered_bytes.inc_by(bytes);
        match self.queue.send(job).await {
            Ok(()) => Some(outcome),
            Err(_) => {
                self.metrics.buffered_bytes.dec_by(bytes);
                None
            }
        }
    }
}

/// When a segment of the log becomes files of the lake, and how much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Age of a segment with data.
    pub segment_age: Duration,
    /// Bytes of bodies in memory before they are durable.
    pub buffer_bytes: usize,
}

/// What the writer works with.
pub(crate) struct Parts {
    pub(crate) log: Log,
    pub(crate) lanes: Lanes,
    pub(crate) database: SqlitePool,
    pub(crate) store: Store,
    pub(crate) registry: Registry,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Limits,
    /// Newest known damage of the log.
    pub(crate) loss: i64,
    pub(crate) sealer: Sealer,
    /// What is told of its going on.
    pub(crate) pulse: Pulse,
    /// Last record that is in the lake or on its way to it.
    pub(crate) scheduled: u64,
}

/// Starts the writer. It ends when every [`Intake`] is gone. The receiver
/// tells whether the log can be written.
pub(crate) fn start(parts: Parts) -> (Intake, watch::Receiver<bool>, JoinHandle<()>) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let (writable, watch) = watch::channel(true);
    // The largest batch must fit, or it would wait for ever.
    let floor = sumun_proto::MESSAGE_MAX / 1024 + 1;
    let permits = (parts.limits.buffer_bytes / 1024).clamp(floor, Semaphore::MAX_PERMITS);
    let intake = Intake {
        queue: sender,
        budget: Arc::new(Semaphore::new(permits)),
        metrics: Arc::clone(&parts.metrics),
    };
    let writer = Writer {
        parts,
        writable,
        filled_at: None,
        nagged: None,
    };
    let task = tokio::spawn(writer.run(queue));
    (intake, watch, task)
}

struct Writer {
    parts: Parts,
    writable: watch::Sender<bool>,
    /// When the active segment got its first record.
    filled_at: Option<Instant>,
    nagged: Option<Instant>,
}

/// A job of a group, judged.
struct Judged {
    job: Job,
    verdict: Result<Verdict, ()>,
    /// What to append, its sequence once it is appended.
    record: Option<(Record, u64)>,
}

impl Writer {
    async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        if self.active_bytes() > 0 {
            self.filled_at = Some(Instant::now());
        }
        loop {
            self.parts.pulse.step();
            let age = self.parts.limits.segment_age;
            let due = self.filled_at.map(|at| at + age);
            let first = tokio::select! {
                biased;
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.roll().await;
                    continue;
                }
                job = queue.recv() => job,
                () = sleep(BEAT) => continue,
            };
            let Some(first) = first else { break };
            let mut bytes = first.delivery.body.len();
            let mut group = vec![first];
            while group.len() < GROUP && bytes < GROUP_BYTES {
                let Ok(job) = queue.try_recv() else { break };
                bytes += job.delivery.body.len();
                group.push(job);
            }
            self.take(group).await;
            if self.active_bytes() >= self.parts.limits.segment_bytes {
                self.roll().await;
            }
        }
    }

    /// Bytes of records in the active segment.
    fn active_bytes(&self) -> u64 {
        let segments = self.parts.log.segments();
        segments
            .last()
            .map_or(0, |active| match active.last < active.first {
                true => 0,
                false => active.bytes,
            })
    }

    async fn take(&mut self, group: Vec<Job>) {
        let received_ns = now_ns();
        let mut judged = Vec::with_capacity(group.len());
        for job in group {
            judged.push(self.judge(job, received_ns).await);
            // A group takes one question to the database for each, and a busy database half a minute for one.
            self.parts.pulse.step();
        }
        judged = self.make_durable(judged).await;
        let mut applied = Vec::new();
        let mut delivered = Vec::new();
        let mut replies = Vec::with_capacity(judged.len());
        let segments = self.parts.log.segments();
        for Judged {
            job,
            verdict,
            record,
        } in judged
        {
            let bytes = i64::try_from(job.delivery.body.len()).unwrap_or(0);
            self.parts.metrics.buffered_bytes.dec_by(bytes);
            let outcome = self.outcome(&job.delivery, verdict);
            if let Outcome::Refused(reason) = &outcome {
                self.remember(&job.delivery, reason).await;
                self.parts.pulse.step();
            }
            if let Some((record, seq)) = record {
                let segment = segments
                    .iter()
                    .rev()
                    .find(|segment| segment.first <= seq)
                    .map_or(seq, |segment| segment.first);
                let entry = Entry {
                    segment,
                    seq,
                    record,
                    batch: job.delivery.batch.ok().map(|batch| *batch),
                };
                self.count(&entry, bytes);
                let (visible, done) = entry.into_parts(&self.parts.registry);
                applied.extend(visible);
                delivered.push(done);
            }
            replies.push((job.reply, outcome));
        }
        if !applied.is_empty() || !delivered.is_empty() {
            self.filled_at.get_or_insert_with(Instant::now);
        }
        // A failed sync closes segments too; while memory is full the store
        // waits for older ones, so they go first.
        self.schedule().await;
        self.parts.pulse.step();
        let waits = self.parts.pulse.waits();
        apply(&self.parts.store, applied).await;
        drop(waits);
        for done in delivered {
            self.parts.registry.delivered(done);
        }
        for (reply, outcome) in replies {
            // The stream may be gone; the agent will send it again and be told.
            let _ = reply.send(outcome);
        }
    }

    async fn judge(&mut self, job: Job, received_ns: i64) -> Judged {
        let delivery = &job.delivery;
        let key = LaneKey {
            agent: delivery.identity.agent,
            epoch: delivery.epoch,
            lane: delivery.lane,
        };
        let loss = self.parts.loss;
        let numbers = match self.parts.lanes.get(key).await {
            Ok(numbers) => numbers,
            Err(error) => {
                self.nag(
                    &error,
                    "failed to read delivery numbers from the state database",
                );
                return Judged {
                    job,
                    verdict: Err(()),
                    record: None,
                };
            }
        };
        let verdict = numbers.judge(delivery.number, &delivery.sha256, loss);
        let mut record = None;
        if let Verdict::Next { missing_from } = verdict {
            let refused = delivery.batch.as_ref().err();
            numbers.take(delivery.number, &delivery.sha256, refused.is_some(), loss);
            record = Some((
                Record {
                    received_ns,
                    tenant: delivery.identity.tenant.to_string(),
                    agent: delivery.identity.agent,
                    host_name: delivery.host_name.to_string(),
                    epoch: delivery.epoch,
                    lane: delivery.lane,
                    number: delivery.number,
                    sha256: delivery.sha256,
                    refused: refused.cloned().unwrap_or_default(),
                    missing_from: missing_from.unwrap_or(0),
                },
                0,
            ));
        }
        Judged {
            job,
            verdict: Ok(verdict),
            record,
        }
    }

    fn outcome(&self, delivery: &Delivery, verdict: Result<Verdict, ()>) -> Outcome {
        let metrics = &self.parts.metrics;
        match verdict {
            Err(()) => Outcome::Unavailable,
            Ok(Verdict::Next { .. }) => match &delivery.batch {
                Ok(_) => Outcome::Taken,
                Err(reason) => {
                    metrics.rejects.inc();
                    warn!(
                        agent = %delivery.identity.agent, epoch = delivery.epoch,
                        lane = delivery.lane.as_str_name(), number = delivery.number, %reason,
                        "refused a batch for good"
                    );
                    Outcome::Refused(reason.clone())
                }
            },
            Ok(Verdict::Repeat) => {
                metrics.repeats.inc();
                Outcome::Taken
            }
            Ok(Verdict::RefusedBefore) => {
                metrics.repeats.inc();
                Outcome::Refused("this batch was refused before".into())
            }
            Ok(Verdict::Conflict) => {
                metrics.rejects.inc();
                error!(
                    agent = %delivery.identity.agent, epoch = delivery.epoch,
                    lane = delivery.lane.as_str_name(), number = delivery.number,
                    "refused a batch: its number was used by another one"
                );
                Outcome::Refused("this number was used by another batch".into())
            }
            Ok(Verdict::Hole { expected }) => {
                metrics.holes.inc();
                Outcome::Hole { expected }
            }
        }
    }

    /// Appends and syncs until it has worked.
    async fn make_durable(&mut self, group: Vec<Judged>) -> Vec<Judged> {
        let mut group = group;
        if group.iter().all(|judged| judged.record.is_none()) {
            return group;
        }
        let begun = Instant::now();
        loop {
            let log = self.parts.log.clone();
            let written = spawn_blocking(move || {
                let result = write(&log, &mut group);
                (group, result)
            })
            .await;
            let result;
            (group, result) = match written {
                Ok(written) => written,
                // Only a panic gets here: the group is gone and so must the
                // process be, or its numbers would count as taken.
                Err(error) => {
                    error!(%error, "the log writer failed");
                    std::process::abort();
                }
            };
            match result {
                Ok(()) => break,
                Err(error) => {
                    self.parts.pulse.step();
                    self.parts.metrics.log_errors.inc();
                    self.parts.metrics.log_writable.set(0);
                    self.writable.send_replace(false);
                    self.nag(
                        &error,
                        "failed to write the log: nothing is acknowledged until it works",
                    );
                    sleep(RETRY).await;
                }
            }
        }
        if !*self.writable.borrow() {
            info!("the log can be written again");
            self.nagged = None;
            self.parts.metrics.log_writable.set(1);
            self.writable.send_replace(true);
        }
        self.parts.metrics.syncs.inc();
        self.parts
            .metrics
            .sync_seconds
            .observe(begun.elapsed().as_secs_f64());
        group
    }

    fn count(&self, entry: &Entry, bytes: i64) {
        let Some(batch) = &entry.batch else { return };
        let rows = batch.events.len() + batch.alerts.len() + batch.gaps.len();
        let metrics = &self.parts.metrics;
        metrics.batches.inc();
        metrics.batch_bytes.inc_by(bytes.cast_unsigned());
        metrics.rows.inc_by(rows as u64);
    }

    /// Keeps the refusal for people. Best effort: the number itself is
    /// remembered in the log.
    async fn remember(&self, delivery: &Delivery, reason: &str) {
        let written = async {
            let mut tx = self.parts.database.begin().await?;
            sqlx::query(
                "INSERT INTO ingest_error (at_ns, tenant, agent, epoch, lane, number, reason) \
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(now_ns())
            .bind(&*delivery.identity.tenant)
            .bind(delivery.identity.agent.hyphenated().to_string())
            .bind(&delivery.epoch.to_be_bytes()[..])
            .bind(delivery.lane as i32)
            .bind(delivery.number.cast_signed())
            .bind(reason)
            .execute(&mut *tx)
            .await?;
            sqlx::query(
                "DELETE FROM ingest_error WHERE id <= (SELECT max(id) FROM ingest_error) - ?",
            )
            .bind(ERRORS_KEPT)
            .execute(&mut *tx)
            .await?;
            tx.commit().await
        };
        if let Err(error) = written.await {
            warn!(%error, "failed to keep a refusal in the state database");
        }
    }

    /// Closes the active segment.
    async fn roll(&mut self) {
        let log = self.parts.log.clone();
        let rolled = spawn_blocking(move || log.roll()).await;
        match rolled {
            Ok(Ok(_)) => self.filled_at = None,
            Ok(Err(error)) => {
                self.nag(&error, "failed to close a log segment");
                // Not at once again, and not never.
                self.filled_at = Some(Instant::now());
                sleep(RETRY).await;
            }
            Err(error) => error!(%error, "the log writer failed"),
        }
        self.schedule().await;
    }

    /// Hands closed segments to the sealer; waits while it is behind, which
    /// bounds the rows that are held in memory.
    async fn schedule(&mut self) {
        for segment in self.parts.log.segments() {
            if !segment.sealed || segment.last <= self.parts.scheduled {
                continue;
            }
            self.parts.scheduled = segment.last;
            let written = self.parts.sealer.sealed_through();
            let checkpoint = self.parts.lanes.checkpoint(segment.last, written);
            let job = SealJob {
                segment: segment.first,
                checkpoint,
            };
            let _waits = self.parts.pulse.waits();
            self.parts.sealer.seal(job).await;
        }
    }

    fn nag(&mut self, error: &dyn std::error::Error, what: &str) {
        if self.nagged.is_none_or(|at| at.elapsed() >= NAG) {
            self.nagged = Some(Instant::now());
            error!(error = %chain(error), "{what}");
        }
    }
}

/// An error and what caused it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Appends what is not appended yet and syncs. Called again after an error it
/// goes on where it failed.
fn write(log: &Log, group: &mut [Judged]) -> Result<(), sumun_segment::Error> {
    for judged in group.iter_mut() {
        let Some((record, seq)) = &mut judged.record else {
            continue;
        };
        if *seq == 0 {
            let header = record.encode();
            let body: &[u8] = match record.refused.is_empty() {
                true => &judged.job.delivery.body,
                false => &[],
            };
            *seq = log.append_parts(&[&header, body])?;
        }
    }
    match log.sync() {
        Ok(_) => Ok(()),
        Err(error) => {
            if let sumun_segment::Error::LostBySync { lost } = &error {
                // They are still here: append them anew.
                for (_, seq) in group.iter_mut().filter_map(|judged| judged.record.as_mut()) {
                    if lost.iter().any(|lost| (lost.from..=lost.to).contains(seq)) {
                        *seq = 0;
                    }
                }
            }
            Err(error)
        }
    }
}

/// A record of the log on its way to the store.
pub(crate) struct Entry {
    pub(crate) segment: u64,
    pub(crate) seq: u64,
    pub(crate) record: Record,
    pub(crate) batch: Option<Batch>,
}

impl Entry {
    /// What becomes visible, and what the registry learns.
    pub(crate) fn into_parts(self, registry: &Registry) -> (Option<Applied>, Delivered) {
        let Entry {
            segment,
            seq,
            record,
            batch,
        } = self;
        let mark = batch.as_ref().and_then(mark);
        let batch = match record.missing_from {
            0 => batch,
            from => Some(with_gap(batch, &record, from, registry)),
        };
        let applied = batch.map(|batch| Applied {
            segment,
            seq,
            tenant: record.tenant.as_str().into(),
            host: Host {
                id: record.agent.hyphenated().to_string(),
                name: record.host_name,
            },
            received_ns: record.received_ns,
            batch,
        });
        let delivered = Delivered {
            agent: record.agent,
            lane: record.lane,
            epoch: record.epoch,
            number: record.number,
            mark,
        };
        (applied, delivered)
    }
}

/// Makes rows visible, in order.
pub(crate) async fn apply(store: &Store, applied: Vec<Applied>) {
    if applied.is_empty() {
        return;
    }
    let store = store.clone();
    let done = spawn_blocking(move || {
        for entry in applied {
            store.apply(entry);
        }
    })
    .await;
    if let Err(error) = done {
        // Acknowledging rows that queries do not see would be a silent loss;
        // the log has them, and the next start shows them.
        error!(%error, "the store failed to take a batch");
        std::process::abort();
    }
}

fn mark(batch: &Batch) -> Option<Mark> {
    (batch.through_boot_ns != 0).then(|| Mark {
        boot_id: batch.boot_id.clone(),
        boot_ns: batch.through_boot_ns,
        wall_ns: batch
            .wall_offset_ns
            .wrapping_add(batch.through_boot_ns.cast_signed()),
    })
}

/// Damage of the log has swallowed numbers before this record: says so at the
/// place of the loss.
fn with_gap(batch: Option<Batch>, record: &Record, from: u64, registry: &Registry) -> Batch {
    let before = registry.mark(record.agent, record.lane);
    let mut batch = batch.unwrap_or_else(|| Batch {
        format: FORMAT,
        lane: record.lane as i32,
        boot_id: before.boot_id.clone(),
        wall_offset_ns: before.wall_ns.wrapping_sub(before.boot_ns.cast_signed()),
        through_boot_ns: 0,
        ..Batch::default()
    });
    let from_boot_ns = match before.boot_id == batch.boot_id {
        true => before.boot_ns,
        false => 0,
    };
    let events = batch.events.iter().map(|event| event.boot_ns);
    let first = events
        .chain(std::iter::once(batch.through_boot_ns))
        .filter(|ns| *ns != 0);
    batch.gaps.push(Gap {
        reason: "corrupt".into(),
        count: None,
        from_boot_ns,
        to_boot_ns: first.min().unwrap_or(from_boot_ns).max(from_boot_ns),
        detail: format!(
            "the collector's log lost the batches {from} to {}",
            record.number.saturating_sub(1)
        ),
        ..Gap::default()
    });
    batch
}
