//! From an agent's stream to the durable log.
//!
//! A delivery is acknowledged after it is synced to the log and its rows are
//! visible to queries; never before. See [`writer`] for the path.

pub mod check;
mod enrol;
pub mod lane;
mod pulse;
pub mod record;
mod replay;
mod seal;
mod service;
pub mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::SqlitePool;
use sumun_segment::{Log, Options};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use enrol::EnrolmentService;
pub use lane::Checkpoint;
pub use pulse::Pulse;
pub use service::IngestService;
pub use writer::{Delivery, Intake, Limits, Outcome};

use crate::ingest::lane::Lanes;
use crate::ingest::seal::Sealer;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::tenant::registry::Registry;

/// Ingest could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log cannot be opened or read.
    #[error("failed to use the log {}", path.display())]
    Log {
        /// Its directory.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: sumun_segment::Error,
    },
    /// Reading the log failed on the way.
    #[error("failed to replay the log")]
    Replay(#[from] sumun_segment::Error),
    /// The state database failed.
    #[error("failed to {0} the state database")]
    Database(&'static str, #[source] sqlx::Error),
    /// A record of the log is not understood.
    #[error("log record {seq} is not understood: was it written by a newer version?")]
    Record {
        /// Its sequence.
        seq: u64,
        /// What is wrong with it.
        #[source]
        source: record::Error,
    },
    /// A batch in the log is not understood.
    #[error("the batch of log record {seq} is not understood: was it written by a newer version?")]
    Batch {
        /// Its sequence.
        seq: u64,
        /// What is wrong with it.
        #[source]
        source: prost::DecodeError,
    },
    /// The log was removed or replaced under the state database.
    #[error(
        "the log ends at record {last}, but records up to {sealed_through} are in the lake: \
         put back the log that belongs to this state database"
    )]
    LogBehind {
        /// Last record of the log.
        last: u64,
        /// Last record in the lake.
        sealed_through: u64,
    },
    /// A task of the program's own failed.
    #[error("failed to replay the log: a task ended early")]
    Task,
}

fn database(operation: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |source| Error::Database(operation, source)
}

/// Running ingest.
#[derive(Debug)]
pub struct Ingest {
    /// Where streams hand in deliveries.
    pub intake: Intake,
    /// Whether the log can be written now.
    pub writable: watch::Receiver<bool>,
    /// Whether the writer goes on.
    pub pulse: Pulse,
    writer: JoinHandle<()>,
    sealer: JoinHandle<()>,
}

impl Ingest {
    /// Opens the log in `dir`, replays it and starts the writer. When this
    /// returns, everything that was ever acknowledged is visible in `store`.
    ///
    /// # Errors
    /// The log or the database cannot be used.
    pub async fn start(
        dir: &Path,
        database: SqlitePool,
        store: Store,
        registry: Registry,
        metrics: Arc<Metrics>,
        limits: Limits,
    ) -> Result<Self, Error> {
        let options = Options {
            // The writer closes segments itself, between two groups.
            segment_bytes: u64::MAX,
            max_bytes: None,
            reserve: 0,
        };
        let path = dir.to_path_buf();
        let opened = tokio::task::spawn_blocking(move || Log::open(&path, options)).await;
        let (log, recovery) = opened
            .map_err(|_| Error::Task)?
            .map_err(|source| Error::Log {
                path: dir.to_path_buf(),
                source,
            })?;
        let mut lanes = Lanes::new(database.clone());
        let parts = seal::Parts {
            log: log.clone(),
            store: store.clone(),
            registry: registry.clone(),
            metrics: Arc::clone(&metrics),
        };
        let replayed = replay::replay(&database, &mut lanes, &recovery, &parts).await?;
        let (sealer, sealing) = Sealer::start(parts, replayed.sealed_through);
        let pulse = Pulse::default();
        let (intake, writable, writing) = writer::start(writer::Parts {
            log,
            lanes,
            database,
            store,
            registry,
            metrics,
            limits,
            loss: replayed.loss,
            sealer,
            pulse: pulse.clone(),
            scheduled: replayed.sealed_through,
        });
        Ok(Ingest {
            intake,
            writable,
            pulse,
            writer: writing,
            sealer: sealing,
        })
    }

    /// Waits until everything that was handed in is durable, and a segment that
    /// is being written to the lake is done. Every other [`Intake`] must be
    /// dropped before. What is not in the lake is replayed at the next start.
    pub async fn finish(self) {
        let Ingest {
            intake,
            writable: _,
            pulse: _,
            writer,
            sealer,
        } = self;
        drop(intake);
        // A task that panicked has said so; there is nothing to add.
        let _ = writer.await;
        let _ = sealer.await;
    }
}
