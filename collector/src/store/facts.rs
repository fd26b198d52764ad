//! What agents tell of workloads and of their hosts, beside the rows: in memory whole, and in the state database.
//!
//! Bounded by age and by size, for each tenant and over all of them ([`Kept`]). Agents tell of what lives again and again
//! ([`TOLD_AGAIN`]), so what was told longest ago is what ended longest ago, and goes first: of the hosts that tell most, so that none
//! of them can crowd out what others have told. Of each host
//! it is kept up to when its rows may be of workloads that went: later rows have all that was told of them, and a question that reaches
//! back further is told so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection, SqlitePool};
use sumun_lake::FactTable;
use sumun_lake::facts::ENTRY_BYTES;
use sumun_proto::Host;
use sumun_proto::v1::{Batch, Facts};
use sumun_proto::view::facts::TOLD_AGAIN;

use super::Error;
use crate::state::span_ns;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// For so long after it was told last.
    pub age: Duration,
    /// Bytes of each tenant in memory, about.
    pub bytes: usize,
    /// Bytes of all tenants.
    pub all_bytes: usize,
}

impl Kept {
    /// What has to go of each tenant, of which there are so many bytes: with some room, so that it is not a little each time. If all together
    /// have too much, those that have most give up first.
    pub(super) fn over<T: Clone>(&self, mut held: Vec<(T, usize)>) -> Vec<(T, usize)> {
        let over = |bytes: usize, max: usize| match bytes.checked_sub(max) {
            None | Some(0) => 0,
            Some(more) => more.saturating_add(max / 8).min(bytes),
        };
        let own: Vec<usize> = held
            .iter()
            .map(|(_, bytes)| over(*bytes, self.bytes))
            .collect();
        for ((_, bytes), own) in held.iter_mut().zip(&own) {
            *bytes -= own;
        }
        let sum = held.iter().map(|(_, bytes)| *bytes).sum();
        let more = over(sum, self.all_bytes);
        let indexed = held
            .iter()
            .enumerate()
            .map(|(index, (_, bytes))| (index, *bytes));
        let mut over = own;
        for (index, share) in shares(indexed.collect(), more) {
            over[index] += share;
        }
        held.into_iter()
            .map(|(tenant, _)| tenant)
            .zip(over)
            .collect()
    }
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            age: Duration::from_secs(400 * 86_400),
            bytes: 64 * 1024 * 1024,
            all_bytes: 512 * 1024 * 1024,
        }
    }
}

/// A clock that is further from where it should be was set, and by it nothing is too old …
const JUMP: Duration = Duration::from_secs(86_400);
/// … until it has been steady for so long: whoever has set it wrongly has time to notice.
const STEADY: Duration = Duration::from_secs(86_400);
/// The same of one that is so long after what was received last, when a collector begins.
const AWAY: Duration = Duration::from_secs(30 * 86_400);

/// Whether the collector's clock can be believed as to what is too old.
#[derive(Debug)]
pub(super) struct Clock {
    /// When it was compared last, and what it said.
    seen: (Instant, i64),
    distrusted: Option<Instant>,
}

impl Clock {
    /// As it is when a collector begins that has received something at this time last.
    pub(super) fn new(now: Instant, now_ns: i64, newest_ns: Option<i64>) -> Self {
        let away = newest_ns.is_some_and(|newest| now_ns.saturating_sub(newest) > span_ns(AWAY));
        Self {
            seen: (now, now_ns),
            distrusted: away.then_some(now),
        }
    }

    /// Whether it can be believed at this moment, at which it says so.
    pub(super) fn is_trusted(&mut self, now: Instant, now_ns: i64) -> bool {
        let (seen, seen_ns) = std::mem::replace(&mut self.seen, (now, now_ns));
        let should = seen_ns.saturating_add(span_ns(now.saturating_duration_since(seen)));
        if now_ns.abs_diff(should) > span_ns(JUMP).unsigned_abs() {
            tracing::error!(
                days = now_ns.saturating_sub(should) / span_ns(JUMP),
                "this host's clock was set: for a day nothing that is told of workloads counts as too old"
            );
            self.distrusted = Some(now);
        }
        let since = self.distrusted;
        if since.is_some_and(|since| now.saturating_duration_since(since) >= STEADY) {
            self.distrusted = None;
        }
        self.distrusted.is_none()
    }
}

/// What is read at a time, at most; of what is too old the rest follows with the next segment.
const FORGET_AT_ONCE: u32 = 20_000;
/// An event of a workload comes at most so long after it was told of last: twice, for an agent that is busy.
const AFTER: Duration = TOLD_AGAIN.saturating_mul(2);

/// Facts with the host and boot they are of.
#[derive(Clone, Debug)]
pub(super) struct HostFacts {
    pub(super) host: String,
    pub(super) boot_id: Vec<u8>,
    pub(super) facts: Arc<Facts>,
    /// By the collector's clock, ns since the Unix epoch.
    received_ns: i64,
    /// By the host's.
    told_ns: i64,
}

/// Facts that went.
#[derive(Clone, Debug)]
pub(super) struct Forgotten {
    host: String,
    boot_id: Vec<u8>,
    workload: u64,
    version: u64,
    through_ns: i64,
}

impl Forgotten {
    /// Takes it out of the table, too.
    pub(super) fn apply(&self, table: &mut FactTable) {
        let of = (self.workload, self.version);
        table.forget(&self.host, &self.boot_id, of, self.through_ns);
    }
}

/// Those of a batch.
pub(super) fn of_batch(host: &Host, batch: &Batch, received_ns: i64) -> Vec<HostFacts> {
    let told = batch.facts.iter().map(|facts| HostFacts {
        host: host.id.clone(),
        boot_id: batch.boot_id.clone(),
        facts: Arc::new(facts.clone()),
        received_ns,
        told_ns: batch.wall_offset_ns.saturating_add_unsigned(facts.version),
    });
    told.collect()
}

/// All that are stored, by tenant.
pub(super) async fn load(
    database: &SqlitePool,
) -> Result<HashMap<Arc<str>, Arc<FactTable>>, Error> {
    let failed = |error| Error::Database("read", error);
    let mut tenants: HashMap<Arc<str>, FactTable> = HashMap::new();
    let rows = sqlx::query("SELECT tenant, host, boot_id, facts FROM workload_facts")
        .fetch_all(database)
        .await
        .map_err(failed)?;
    for row in rows {
        let tenant: String = row.try_get("tenant").map_err(failed)?;
        let host: String = row.try_get("host").map_err(failed)?;
        let boot_id: Vec<u8> = row.try_get("boot_id").map_err(failed)?;
        let bytes: Vec<u8> = row.try_get("facts").map_err(failed)?;
        let facts = Facts::decode(bytes.as_slice())
            .map_err(|error| failed(sqlx::Error::Decode(Box::new(error))))?;
        let table = tenants.entry(tenant.into()).or_default();
        table.learn(&host, &boot_id, &Arc::new(facts));
    }
    let rows = sqlx::query("SELECT tenant, host, through_ns FROM workload_facts_forgotten")
        .fetch_all(database)
        .await
        .map_err(failed)?;
    for row in rows {
        let tenant: String = row.try_get("tenant").map_err(failed)?;
        let host: String = row.try_get("host").map_err(failed)?;
        let through_ns = row.try_get("through_ns").map_err(failed)?;
        let table = tenants.entry(tenant.into()).or_default();
        table.forget(&host, &[], (0, 0), through_ns);
    }
    let whole = tenants.into_iter();
    Ok(whole
        .map(|(tenant, table)| (tenant, Arc::new(table)))
        .collect())
}

/// When something was told last, by the collector's clock.
pub(super) async fn newest(database: &SqlitePool) -> Result<Option<i64>, Error> {
    sqlx::query_scalar("SELECT max(received_ns) FROM workload_facts")
        .fetch_one(database)
        .await
        .map_err(|error| Error::Database("read", error))
}

/// Writes facts; what is newer stays.
pub(super) async fn insert(
    tx: &mut SqliteConnection,
    tenant: &str,
    told: &[HostFacts],
) -> Result<(), sqlx::Error> {
    for HostFacts {
        host,
        boot_id,
        facts,
        received_ns,
        told_ns,
    } in told
    {
        sqlx::query(
            "INSERT INTO workload_facts (tenant, host, boot_id, workload, version, facts, received_ns, told_ns) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, host, boot_id, workload) DO UPDATE \
             SET version = excluded.version, facts = excluded.facts, \
             received_ns = max(received_ns, excluded.received_ns), told_ns = max(told_ns, excluded.told_ns) \
             WHERE excluded.version >= version",
        )
        .bind(tenant)
        .bind(host)
        .bind(boot_id)
        .bind(facts.workload.cast_signed())
        .bind(facts.version.cast_signed())
        .bind(facts.encode_to_vec())
        .bind(received_ns)
        .bind(told_ns)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// Removes what is older than it may be, and what is too much: `over` bytes, of the hosts that hold most. What was told longest ago
/// goes first.
pub(super) async fn forget(
    tx: &mut SqliteConnection,
    tenant: &str,
    before_ns: i64,
    over: usize,
) -> Result<Vec<Forgotten>, sqlx::Error> {
    let old = sqlx::query(OLDEST)
        .bind(tenant)
        .bind(None::<&str>)
        .bind(before_ns)
        .bind(FORGET_AT_ONCE)
        .fetch_all(&mut *tx)
        .await?;
    let (mut gone, mut freed) = (Vec::new(), 0);
    for row in &old {
        let (facts, bytes) = oldest(row)?;
        freed += bytes;
        gone.push(facts);
    }
    remove(tx, tenant, &gone).await?;
    if freed < over {
        let held = sqlx::query(
            "SELECT host, sum(length(facts) + ?) AS bytes FROM workload_facts WHERE tenant = ? GROUP BY host",
        )
        .bind(entry_bytes())
        .bind(tenant)
        .fetch_all(&mut *tx)
        .await?;
        let held = held.iter().map(|row| {
            let bytes: i64 = row.try_get("bytes")?;
            let host: String = row.try_get("host")?;
            Ok((host, usize::try_from(bytes).unwrap_or(0)))
        });
        let held = held.collect::<Result<Vec<_>, sqlx::Error>>()?;
        for (host, share) in shares(held, over - freed) {
            gone.extend(forget_of(tx, tenant, &host, share).await?);
        }
    }
    Ok(gone)
}

/// Removes so many bytes of one host.
async fn forget_of(
    tx: &mut SqliteConnection,
    tenant: &str,
    host: &str,
    share: usize,
) -> Result<Vec<Forgotten>, sqlx::Error> {
    let (mut gone, mut freed) = (Vec::new(), 0);
    while freed < share {
        let rows = sqlx::query(OLDEST)
            .bind(tenant)
            .bind(Some(host))
            .bind(i64::MAX)
            .bind(FORGET_AT_ONCE)
            .fetch_all(&mut *tx)
            .await?;
        if rows.is_empty() {
            break;
        }
        let begun = gone.len();
        for row in &rows {
            if freed >= share {
                break;
            }
            let (facts, bytes) = oldest(row)?;
            freed += bytes;
            gone.push(facts);
        }
        remove(tx, tenant, &gone[begun..]).await?;
    }
    Ok(gone)
}

/// Of a tenant, and a host unless that is NULL; told before a time; so many.
const OLDEST: &str = "SELECT host, boot_id, workload, version, told_ns, length(facts) AS bytes FROM workload_facts \
     WHERE tenant = ?1 AND (?2 IS NULL OR host = ?2) AND received_ns < ?3 ORDER BY received_ns LIMIT ?4";

fn entry_bytes() -> i64 {
    i64::try_from(ENTRY_BYTES).unwrap_or(i64::MAX)
}

fn oldest(row: &SqliteRow) -> Result<(Forgotten, usize), sqlx::Error> {
    let told_ns: i64 = row.try_get("told_ns")?;
    let bytes = usize::try_from(row.try_get::<i64, _>("bytes")?).unwrap_or(0);
    let facts = Forgotten {
        host: row.try_get("host")?,
        boot_id: row.try_get("boot_id")?,
        workload: row.try_get::<i64, _>("workload")?.cast_unsigned(),
        version: row.try_get::<i64, _>("version")?.cast_unsigned(),
        through_ns: told_ns.saturating_add(span_ns(AFTER)),
    };
    Ok((facts, bytes + ENTRY_BYTES))
}

/// What hosts or tenants have to give up so that so many bytes are free: those that hold most come down to one level.
fn shares<T>(mut held: Vec<(T, usize)>, over: usize) -> Vec<(T, usize)> {
    if over == 0 {
        return Vec::new();
    }
    held.sort_unstable_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let (mut sum, mut level, mut count) = (0_usize, 0, 0);
    for (index, (_, bytes)) in held.iter().enumerate() {
        sum += bytes;
        count = index + 1;
        level = sum.saturating_sub(over) / count;
        let next = held.get(count).map_or(0, |(_, bytes)| *bytes);
        if sum >= over && level >= next {
            break;
        }
    }
    held.truncate(count);
    let shares = held
        .into_iter()
        .map(|(host, bytes)| (host, bytes.saturating_sub(level)));
    shares.filter(|(_, share)| *share > 0).collect()
}

/// Takes them out of the database, and notes up to when rows may be of them.
async fn remove(
    tx: &mut SqliteConnection,
    tenant: &str,
    gone: &[Forgotten],
) -> Result<(), sqlx::Error> {
    let mut through: HashMap<&str, i64> = HashMap::new();
    for facts in gone {
        sqlx::query(
            "DELETE FROM workload_facts WHERE tenant = ? AND host = ? AND boot_id = ? AND workload = ?",
        )
        .bind(tenant)
        .bind(&facts.host)
        .bind(&facts.boot_id)
        .bind(facts.workload.cast_signed())
        .execute(&mut *tx)
        .await?;
        let latest = through.entry(&facts.host).or_insert(facts.through_ns);
        *latest = (*latest).max(facts.through_ns);
    }
    for (host, through_ns) in through {
        sqlx::query(
            "INSERT INTO workload_facts_forgotten (tenant, host, through_ns) VALUES (?, ?, ?) \
             ON CONFLICT (tenant, host) DO UPDATE SET through_ns = max(through_ns, excluded.through_ns)",
        )
        .bind(tenant)
        .bind(host)
        .bind(through_ns)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{AWAY, Clock, JUMP, Kept, STEADY, shares};
    use crate::state::span_ns;
    use std::time::{Duration, Instant};

    #[test]
    fn by_a_clock_that_was_set_nothing_is_too_old_for_a_day() {
        let begin = Instant::now();
        let year = span_ns(Duration::from_secs(400 * 86_400));
        let mut clock = Clock::new(begin, 1_000, Some(0));
        let mut at = |hours: u64, set: i64| {
            let passed = Duration::from_secs(hours * 3_600);
            clock.is_trusted(begin + passed, 1_000 + span_ns(passed) + set)
        };
        assert!(at(0, 0) && at(1, 0));
        // A little is what time servers do.
        assert!(at(2, span_ns(JUMP) / 2));
        assert!(!at(3, year) && !at(4, year));
        // Back again: that is no steady clock, either.
        assert!(!at(5, 0) && !at(20, 0));
        assert!(at(5 + 24, 0) && at(100, 0));

        // It was set before this collector began.
        let late = 1_000 + span_ns(AWAY) + 1;
        let mut clock = Clock::new(begin, late, Some(1_000));
        assert!(!clock.is_trusted(begin, late));
        assert!(clock.is_trusted(begin + STEADY, late + span_ns(STEADY)));
        assert!(Clock::new(begin, late, None).is_trusted(begin, late));
    }

    #[test]
    fn all_tenants_together_have_a_bound_and_who_has_most_gives_up_first() {
        let kept = Kept {
            bytes: 800,
            all_bytes: 1_600,
            ..Kept::default()
        };
        let over = |held: &[(&'static str, usize)]| {
            let over = kept.over(held.to_vec());
            over.into_iter()
                .filter(|(_, over)| *over > 0)
                .collect::<Vec<_>>()
        };
        assert_eq!(over(&[]), []);
        assert_eq!(over(&[("a", 800), ("b", 800)]), []);
        assert_eq!(over(&[("a", 900), ("b", 100)]), [("a", 200)]);
        // None has too much for one.
        assert_eq!(
            over(&[("a", 700), ("b", 600), ("c", 400)]),
            [("a", 200), ("b", 100)]
        );
        // One has, and what it gives up for that is enough for all.
        assert_eq!(over(&[("a", 1_200), ("b", 600)]), [("a", 500)]);
        // As many as there are bytes for: each has its share.
        let many: Vec<(usize, usize)> = (0..100).map(|tenant| (tenant, 100)).collect();
        let left = many.iter().zip(kept.over(many.clone()));
        assert!(left.clone().all(|((_, had), (_, over))| over < *had));
        let sum: usize = left.map(|((_, had), (_, over))| had - over).sum();
        assert!(sum <= 1_600, "{sum}");
    }

    #[test]
    fn who_tells_most_gives_up_first() {
        let held = |all: &[(&str, usize)]| -> Vec<(String, usize)> {
            all.iter()
                .map(|(host, bytes)| ((*host).to_owned(), *bytes))
                .collect()
        };
        let all = held(&[("a", 10), ("loud", 1_000), ("b", 20)]);
        assert_eq!(shares(all.clone(), 900), held(&[("loud", 900)]));
        assert_eq!(shares(all.clone(), 990), held(&[("loud", 985), ("b", 5)]));
        // More than there is: everything.
        assert_eq!(
            shares(all, 5_000),
            held(&[("loud", 1_000), ("b", 20), ("a", 10)])
        );
        let same = held(&[("a", 100), ("b", 100)]);
        assert_eq!(shares(same, 50), held(&[("a", 25), ("b", 25)]));
        assert!(shares::<&str>(Vec::new(), 50).is_empty());
    }
}
