//! What agents tell of workloads and of their hosts, beside the rows: in memory whole, and in the state database.
//!
//! Bounded by age and by size, for each tenant ([`Kept`]). Agents tell of what lives again and again
//! ([`TOLD_AGAIN`]), so what was told longest ago is what ended longest ago, and goes first. Of each host
//! it is kept up to when its rows may be of workloads that went: later rows have all that was told of them, and a question that reaches
//! back further is told so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use sqlx::{Row as _, SqliteConnection, SqlitePool};
use sumun_lake::FactTable;
use sumun_proto::Host;
use sumun_proto::v1::{Batch, Facts};
use sumun_proto::view::facts::TOLD_AGAIN;

use super::Error;
use crate::state::span_ns;

/// How much is kept of each tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// For so long after it was told last.
    pub age: Duration,
    /// Bytes, encoded; in memory it is some times as much.
    pub bytes: usize,
}

impl Kept {
    /// What has to go of so many bytes: with some room, so that it is not a little each time.
    pub(super) fn over(&self, bytes: usize) -> usize {
        match bytes.checked_sub(self.bytes) {
            None | Some(0) => 0,
            Some(more) => more.saturating_add(self.bytes / 8),
        }
    }
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            age: Duration::from_secs(400 * 86_400),
            bytes: 64 * 1024 * 1024,
        }
    }
}

/// What is removed at a time, at most; the rest follows with the next segment.
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

/// Removes what is older than it may be, and what is too much: `over` bytes. What was told longest ago goes first.
pub(super) async fn forget(
    tx: &mut SqliteConnection,
    tenant: &str,
    before_ns: i64,
    over: usize,
) -> Result<Vec<Forgotten>, sqlx::Error> {
    let oldest = sqlx::query(
        "SELECT host, boot_id, workload, version, received_ns, told_ns, length(facts) AS bytes FROM workload_facts \
         WHERE tenant = ? AND received_ns < ? ORDER BY received_ns LIMIT ?",
    )
    .bind(tenant)
    .bind(if over > 0 { i64::MAX } else { before_ns })
    .bind(FORGET_AT_ONCE)
    .fetch_all(&mut *tx)
    .await?;
    let (mut gone, mut freed) = (Vec::new(), 0);
    for row in oldest {
        if row.try_get::<i64, _>("received_ns")? >= before_ns && freed >= over {
            break;
        }
        freed += usize::try_from(row.try_get::<i64, _>("bytes")?).unwrap_or(0);
        let told_ns: i64 = row.try_get("told_ns")?;
        gone.push(Forgotten {
            host: row.try_get("host")?,
            boot_id: row.try_get("boot_id")?,
            workload: row.try_get::<i64, _>("workload")?.cast_unsigned(),
            version: row.try_get::<i64, _>("version")?.cast_unsigned(),
            through_ns: told_ns.saturating_add(span_ns(AFTER)),
        });
    }
    let mut through: HashMap<&str, i64> = HashMap::new();
    for facts in &gone {
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
    Ok(gone)
}
