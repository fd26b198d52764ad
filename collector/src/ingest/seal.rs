//! Closed segments of the log become files of the lake, one after the other.
//!
//! Order of durability: files synced → one transaction with their manifest,
//! the delivery numbers and the place in the log → segment dropped. A crash
//! between any two leaves the segment in the log, and the next start replays
//! what the transaction does not cover.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sumun_segment::Log;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep};
use tracing::{error, warn};

use crate::ingest::lane::Checkpoint;
use crate::ingest::writer::{NAG, chain};
use crate::metrics::Metrics;
use crate::store::Store;
use crate::tenant::registry::Registry;

/// Closed segments that may wait: their rows are in memory. When it is full
/// the writer waits.
const QUEUE: usize = 2;
const RETRY: Duration = Duration::from_secs(1);

/// A closed segment.
#[derive(Debug)]
pub(crate) struct SealJob {
    /// Its first sequence.
    pub(crate) segment: u64,
    /// What is committed with it.
    pub(crate) checkpoint: Checkpoint,
}

/// Hands segments to the sealing task, which ends when this is dropped and
/// everything handed in is done.
#[derive(Debug)]
pub(crate) struct Sealer {
    queue: mpsc::Sender<SealJob>,
    through: Arc<AtomicU64>,
}

/// What the sealing task works with.
pub(crate) struct Parts {
    pub(crate) log: Log,
    pub(crate) store: Store,
    pub(crate) registry: Registry,
    pub(crate) metrics: Arc<Metrics>,
}

impl Sealer {
    pub(crate) fn start(parts: Parts, through: u64) -> (Self, JoinHandle<()>) {
        let (queue, mut jobs) = mpsc::channel::<SealJob>(QUEUE);
        let through = Arc::new(AtomicU64::new(through));
        let done = Arc::clone(&through);
        let task = tokio::spawn(async move {
            while let Some(job) = jobs.recv().await {
                let last = job.checkpoint.through();
                parts.seal(&job).await;
                done.store(last, Ordering::Release);
            }
        });
        (Sealer { queue, through }, task)
    }

    pub(crate) async fn seal(&self, job: SealJob) {
        if self.queue.send(job).await.is_err() {
            // The task ends only with this handle, or by a panic; the segment
            // stays in the log.
            error!("the sealing task is gone: segments stay in the log until a restart");
        }
    }

    /// Last record that is known to be in the lake.
    pub(crate) fn sealed_through(&self) -> u64 {
        self.through.load(Ordering::Acquire)
    }
}

impl Parts {
    /// Tries until it has worked.
    pub(crate) async fn seal(&self, job: &SealJob) {
        let mut nagged: Option<Instant> = None;
        let forgotten = loop {
            let error = match self.store.seal(job.segment, &job.checkpoint).await {
                Ok(forgotten) => break forgotten,
                Err(error) => error,
            };
            self.metrics.seal_errors.inc();
            if nagged.is_none_or(|at| at.elapsed() >= NAG) {
                nagged = Some(Instant::now());
                error!(
                    segment = job.segment,
                    error = %chain(&error),
                    "failed to write a log segment to the lake: it stays in the log"
                );
            }
            sleep(RETRY).await;
        };
        self.metrics.seals.inc();
        self.metrics.facts_forgotten.inc_by(forgotten);
        let log = self.log.clone();
        let through = job.checkpoint.through();
        match spawn_blocking(move || log.remove_through(through)).await {
            Ok(Ok(_)) => {}
            // It is removed with the next one.
            Ok(Err(error)) => warn!(error = %chain(&error), "failed to drop a log segment"),
            Err(error) => warn!(%error, "failed to drop a log segment"),
        }
        if let Err(error) = self.registry.persist().await {
            warn!(error = %chain(&error), "failed to keep the agents' progress");
        }
    }
}
