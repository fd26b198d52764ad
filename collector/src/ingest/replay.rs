//! At start: what the log holds and the lake does not becomes visible again.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message;
use sqlx::{Row, SqlitePool};
use sumun_proto::v1::Batch;
use sumun_segment::{Entry as LogEntry, Recovery};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tracing::{error, info};

use crate::ingest::lane::{LaneKey, Lanes};
use crate::ingest::record::Record;
use crate::ingest::seal::{self, SealJob};
use crate::ingest::writer::{Entry, apply};
use crate::ingest::{Error, database};
use crate::state::now_ns;

/// Records read ahead of the store: bounds memory, the reader waits.
const AHEAD: usize = 16;

enum Step {
    Record {
        seq: u64,
        segment: u64,
        payload: Bytes,
    },
    Lost {
        from: u64,
        to: u64,
    },
}

/// How far the log is in the lake, and its newest known damage.
pub(crate) struct Replayed {
    pub(crate) sealed_through: u64,
    pub(crate) loss: i64,
}

/// Replays the log into the store, the lanes and the registry; seals closed
/// segments as it comes past them.
pub(crate) async fn replay(
    pool: &SqlitePool,
    lanes: &mut Lanes,
    recovery: &Recovery,
    parts: &seal::Parts,
) -> Result<Replayed, Error> {
    let row = sqlx::query("SELECT sealed_through FROM ingest_log")
        .fetch_one(pool)
        .await
        .map_err(database("read the place in the log from"))?;
    let sealed: i64 = row
        .try_get("sealed_through")
        .map_err(database("read the place in the log from"))?;
    let mut sealed_through = sealed.cast_unsigned();
    if recovery.last < sealed_through {
        // A log that was emptied or is another one: its numbers start anew, and
        // what it will hold must not be taken for sealed.
        return Err(Error::LogBehind {
            last: recovery.last,
            sealed_through,
        });
    }
    let log = parts.log.clone();
    blocking(move || log.remove_through(sealed_through)).await??;

    for lost in &recovery.lost {
        note_loss(pool, parts, lost.from.max(sealed_through + 1), lost.to).await?;
    }
    // A lane may jump over lost numbers only if the loss is known first.
    let mut loss = newest_loss(pool).await?;

    let (sender, mut steps) = mpsc::channel(AHEAD);
    let log = parts.log.clone();
    let until = parts.log.written();
    let reading = spawn_blocking(move || {
        let mut reader = log.reader(sealed_through + 1).until(until);
        while let Some(entry) = reader.next()? {
            let step = match entry {
                LogEntry::Record {
                    seq,
                    segment,
                    payload,
                } => Step::Record {
                    seq,
                    segment,
                    payload: Bytes::copy_from_slice(payload),
                },
                LogEntry::Lost { from, to } => Step::Lost { from, to },
            };
            if sender.blocking_send(step).is_err() {
                break;
            }
        }
        Ok::<(), sumun_segment::Error>(())
    });

    let mut records = 0u64;
    let mut current: Option<u64> = None;
    // The last number of each lane that was read: between two of them nothing
    // but damage can be missing.
    let mut seen = HashMap::new();
    while let Some(step) = steps.recv().await {
        match step {
            Step::Lost { from, to } => {
                note_loss(pool, parts, from, to).await?;
                loss = newest_loss(pool).await?;
            }
            Step::Record {
                seq,
                segment,
                payload,
            } => {
                if let Some(before) = current.filter(|before| *before != segment) {
                    let checkpoint = lanes.checkpoint(seq - 1, sealed_through);
                    parts
                        .seal(&SealJob {
                            segment: before,
                            checkpoint,
                        })
                        .await;
                    sealed_through = seq - 1;
                }
                current = Some(segment);
                records += 1;
                take(lanes, &mut seen, parts, loss, (segment, seq, payload)).await?;
            }
        }
    }
    reading.await.map_err(|_| Error::Task)??;
    // Nothing follows the last closed segment yet: the writer would not come
    // past it before there is something.
    let closed = parts
        .log
        .segments()
        .into_iter()
        .rev()
        .find(|segment| segment.sealed);
    if let Some(closed) = closed.filter(|closed| current == Some(closed.first)) {
        let checkpoint = lanes.checkpoint(closed.last, sealed_through);
        let job = SealJob {
            segment: closed.first,
            checkpoint,
        };
        parts.seal(&job).await;
        sealed_through = closed.last;
    }
    if records > 0 {
        info!(records, "replayed the log");
    }
    Ok(Replayed {
        sealed_through,
        loss,
    })
}

async fn take(
    lanes: &mut Lanes,
    seen: &mut HashMap<LaneKey, u64>,
    parts: &seal::Parts,
    loss: i64,
    (segment, seq, payload): (u64, u64, Bytes),
) -> Result<(), Error> {
    let (mut record, body) =
        Record::decode(payload).map_err(|source| Error::Record { seq, source })?;
    let key = LaneKey {
        agent: record.agent,
        epoch: record.epoch,
        lane: record.lane,
    };
    let numbers = lanes
        .get(key)
        .await
        .map_err(database("read delivery numbers from"))?;
    let before = seen.insert(key, record.number).unwrap_or(numbers.high());
    if record.missing_from == 0 && record.number > before.saturating_add(1) {
        record.missing_from = before + 1;
    }
    let refused = !record.refused.is_empty();
    // Damage that was known when the record was written, not what came later.
    let reconciled = match record.missing_from {
        0 => 0,
        _ => loss,
    };
    numbers.take(record.number, &record.sha256, refused, reconciled);
    let batch = match refused {
        true => None,
        // It was decoded before it was written.
        false => Some(Batch::decode(body).map_err(|source| Error::Batch { seq, source })?),
    };
    let entry = Entry {
        segment,
        seq,
        record,
        batch,
    };
    let (applied, delivered) = entry.into_parts(&parts.registry);
    apply(&parts.store, applied.into_iter().collect()).await;
    parts.registry.delivered(delivered);
    Ok(())
}

async fn note_loss(
    pool: &SqlitePool,
    parts: &seal::Parts,
    from: u64,
    to: u64,
) -> Result<(), Error> {
    if from > to {
        return Ok(());
    }
    let done = sqlx::query(
        "INSERT OR IGNORE INTO ingest_loss (from_seq, to_seq, found_ns) VALUES (?, ?, ?)",
    )
    .bind(from.cast_signed())
    .bind(to.cast_signed())
    .bind(now_ns())
    .execute(pool)
    .await
    .map_err(database("write a loss to"))?;
    if done.rows_affected() > 0 {
        parts.metrics.log_lost_records.inc_by(to - from + 1);
        error!(
            from,
            to,
            "the log is damaged: acknowledged batches cannot be read; each lane \
             gets a gap where they were, check the disk"
        );
    }
    Ok(())
}

async fn newest_loss(pool: &SqlitePool) -> Result<i64, Error> {
    let row = sqlx::query("SELECT coalesce(max(id), 0) AS newest FROM ingest_loss")
        .fetch_one(pool)
        .await
        .map_err(database("read losses from"))?;
    row.try_get("newest").map_err(database("read losses from"))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(|_| Error::Task)
}
