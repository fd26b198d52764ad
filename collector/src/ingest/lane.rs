//! Delivery numbers: each is taken once.
//!
//! Per agent, epoch and lane: the highest number taken, and for the last
//! [`WINDOW`] of them how each ended and the start of its hash. Numbers are
//! contiguous from 1, so what comes is the next one, a repeat, or a hole.

use std::collections::{HashMap, VecDeque};

use sqlx::{Row, SqliteConnection, SqlitePool};
use sumun_proto::WINDOW;
use sumun_proto::v1::Lane;
use uuid::Uuid;

use crate::state::now_ns;

/// 128 bits of the SHA-256 tell two bodies under one number apart.
const HASH: usize = 16;
const SLOT: usize = 1 + HASH;
const TAKEN: u8 = 1;
const REFUSED: u8 = 2;

/// Names a lane for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaneKey {
    /// The agent.
    pub agent: Uuid,
    /// Its delivery epoch.
    pub epoch: u64,
    /// The lane.
    pub lane: Lane,
}

/// What a number is to a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next one. `missing_from` is set if numbers before it were lost by
    /// damage of the collector's log: the first of them.
    Next {
        /// First lost number.
        missing_from: Option<u64>,
    },
    /// It was taken before.
    Repeat,
    /// It was refused before.
    RefusedBefore,
    /// It was used before, by another body.
    Conflict,
    /// Numbers between are missing: this one is expected.
    Hole {
        /// The expected number.
        expected: u64,
    },
}

/// The numbers of one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers {
    high: u64,
    /// Of the numbers `high - window.len() + 1 ..= high`.
    window: VecDeque<[u8; SLOT]>,
    /// Damage of the log that this lane has been reconciled with.
    loss: i64,
    /// Changed since the last checkpoint.
    dirty: bool,
    /// `through` of the checkpoint that it was last a part of.
    checkpoint: u64,
}

impl Numbers {
    fn new() -> Self {
        Numbers {
            high: 0,
            window: VecDeque::new(),
            loss: 0,
            dirty: false,
            checkpoint: 0,
        }
    }

    /// The highest number taken or refused.
    #[must_use]
    pub fn high(&self) -> u64 {
        self.high
    }

    /// What this number is, when the log's newest known damage is `loss`.
    #[must_use]
    pub fn judge(&self, number: u64, sha256: &[u8; 32], loss: i64) -> Verdict {
        let expected = self.high.saturating_add(1);
        if number == expected {
            return Verdict::Next { missing_from: None };
        }
        if number > expected {
            return match self.loss < loss {
                // They were acknowledged and the log has lost them: the agent
                // cannot send them again.
                true => Verdict::Next {
                    missing_from: Some(expected),
                },
                false => Verdict::Hole { expected },
            };
        }
        let back = self.high - number;
        let slot = usize::try_from(back)
            .ok()
            .and_then(|back| self.window.len().checked_sub(back + 1))
            .and_then(|index| self.window.get(index));
        match slot {
            // Further back than an agent may repeat: it was taken, that is all
            // that is known.
            None => Verdict::Repeat,
            Some(slot) if slot[1..] != sha256[..HASH] => Verdict::Conflict,
            Some(slot) if slot[0] == REFUSED => Verdict::RefusedBefore,
            Some(_) => Verdict::Repeat,
        }
    }

    /// Takes the number. Numbers that are jumped over are gone.
    pub fn take(&mut self, number: u64, sha256: &[u8; 32], refused: bool, loss: i64) {
        if number <= self.high {
            return;
        }
        if number > self.high + 1 {
            self.window.clear();
        }
        self.high = number;
        self.loss = self.loss.max(loss);
        self.dirty = true;
        let mut slot = [0; SLOT];
        slot[0] = if refused { REFUSED } else { TAKEN };
        slot[1..].copy_from_slice(&sha256[..HASH]);
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(slot);
    }
}

/// The lanes in use. Others are read from the state database when they come.
#[derive(Debug)]
pub struct Lanes {
    database: SqlitePool,
    lanes: HashMap<LaneKey, Numbers>,
}

/// Lanes kept in memory after they were written.
const IDLE_MAX: usize = 4096;

/// What is written to the state database in one transaction with the files of
/// a log segment.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    through: u64,
    lanes: Vec<(LaneKey, Numbers)>,
}

impl Lanes {
    /// No lane in memory yet.
    #[must_use]
    pub fn new(database: SqlitePool) -> Self {
        Lanes {
            database,
            lanes: HashMap::new(),
        }
    }

    /// The numbers of a lane.
    ///
    /// # Errors
    /// The database failed.
    pub async fn get(&mut self, key: LaneKey) -> Result<&mut Numbers, sqlx::Error> {
        let read = match self.lanes.contains_key(&key) {
            true => None,
            false => Some(read(&self.database, key).await?),
        };
        let numbers = self.lanes.entry(key);
        Ok(numbers.or_insert_with(|| read.unwrap_or_else(Numbers::new)))
    }

    /// Everything that has changed since the last call, to be written with the
    /// segment whose last record is `through`. It may be newer than that
    /// record, as long as it is durable in the log: replay takes every record
    /// behind `through` and only ever raises numbers. `written` is the newest
    /// checkpoint known to be in the database.
    pub fn checkpoint(&mut self, through: u64, written: u64) -> Checkpoint {
        let mut lanes = Vec::new();
        for (key, numbers) in &mut self.lanes {
            if std::mem::take(&mut numbers.dirty) {
                numbers.checkpoint = through;
                lanes.push((*key, numbers.clone()));
            }
        }
        if self.lanes.len() > IDLE_MAX {
            // The others can be read again when they are needed.
            self.lanes.retain(|_, numbers| numbers.checkpoint > written);
        }
        Checkpoint { through, lanes }
    }
}

impl Checkpoint {
    /// The last record of the log that the transaction covers.
    #[must_use]
    pub fn through(&self) -> u64 {
        self.through
    }

    /// Writes it as a part of a transaction.
    ///
    /// # Errors
    /// The database failed.
    pub async fn write(&self, tx: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let now = now_ns();
        for (key, numbers) in &self.lanes {
            let window: Vec<u8> = numbers.window.iter().flatten().copied().collect();
            sqlx::query(
                "INSERT INTO ingest_lane (agent, epoch, lane, high, window, loss, updated_ns) \
                 VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (agent, epoch, lane) DO UPDATE SET \
                 high = excluded.high, window = excluded.window, loss = excluded.loss, \
                 updated_ns = excluded.updated_ns",
            )
            .bind(key.agent.hyphenated().to_string())
            .bind(&key.epoch.to_be_bytes()[..])
            .bind(key.lane as i32)
            .bind(numbers.high.cast_signed())
            .bind(window)
            .bind(numbers.loss)
            .bind(now)
            .execute(&mut *tx)
            .await?;
        }
        sqlx::query("UPDATE ingest_log SET sealed_through = max(sealed_through, ?)")
            .bind(self.through.cast_signed())
            .execute(&mut *tx)
            .await?;
        Ok(())
    }
}

async fn read(database: &SqlitePool, key: LaneKey) -> Result<Numbers, sqlx::Error> {
    let row = sqlx::query(
        "SELECT high, window, loss FROM ingest_lane WHERE agent = ? AND epoch = ? AND lane = ?",
    )
    .bind(key.agent.hyphenated().to_string())
    .bind(&key.epoch.to_be_bytes()[..])
    .bind(key.lane as i32)
    .fetch_optional(database)
    .await?;
    let Some(row) = row else {
        return Ok(Numbers::new());
    };
    let window: Vec<u8> = row.try_get("window")?;
    let slots = window.chunks_exact(SLOT).map(|chunk| {
        let mut slot = [0; SLOT];
        slot.copy_from_slice(chunk);
        slot
    });
    Ok(Numbers {
        high: row.try_get::<i64, _>("high")?.cast_unsigned(),
        window: slots.collect(),
        loss: row.try_get("loss")?,
        dirty: false,
        checkpoint: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u64) -> [u8; 32] {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&n.to_be_bytes());
        hash
    }

    fn filled(count: u64) -> Numbers {
        let mut numbers = Numbers::new();
        for n in 1..=count {
            assert_eq!(
                numbers.judge(n, &hash(n), 0),
                Verdict::Next { missing_from: None }
            );
            numbers.take(n, &hash(n), n % 10 == 0, 0);
        }
        numbers
    }

    #[test]
    fn repeats_conflicts_and_holes() {
        let numbers = filled(2000);
        assert_eq!(numbers.judge(1999, &hash(1999), 0), Verdict::Repeat);
        assert_eq!(numbers.judge(2000, &hash(2000), 0), Verdict::RefusedBefore);
        assert_eq!(numbers.judge(1999, &hash(1), 0), Verdict::Conflict);
        // The oldest of the window, and the one before it.
        assert_eq!(numbers.judge(977, &hash(1), 0), Verdict::Conflict);
        assert_eq!(numbers.judge(976, &hash(1), 0), Verdict::Repeat);
        assert_eq!(
            numbers.judge(2002, &hash(2002), 0),
            Verdict::Hole { expected: 2001 }
        );
        assert_eq!(numbers.window.len(), WINDOW);
    }

    #[test]
    fn after_damage_a_lane_may_jump_once() {
        let mut numbers = filled(5);
        assert_eq!(
            numbers.judge(9, &hash(9), 1),
            Verdict::Next {
                missing_from: Some(6)
            }
        );
        numbers.take(9, &hash(9), false, 1);
        assert_eq!(
            numbers.judge(11, &hash(11), 1),
            Verdict::Hole { expected: 10 }
        );
        assert_eq!(numbers.judge(7, &hash(7), 1), Verdict::Repeat);
    }
}
