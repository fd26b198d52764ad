//! What agents tell of workloads and of their hosts, beside the rows: in memory whole, and in the state database.
//!
//! A row for each workload that was ever told of, some hundred bytes; nothing removes them yet, as nothing removes the
//! events that they belong to.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message as _;
use sqlx::{Row as _, SqliteConnection, SqlitePool};
use sumun_lake::FactTable;
use sumun_proto::Host;
use sumun_proto::v1::{Batch, Facts};

use super::Error;

/// Facts with the host and boot they are of.
#[derive(Clone, Debug)]
pub(super) struct HostFacts {
    pub(super) host: String,
    pub(super) boot_id: Vec<u8>,
    pub(super) facts: Arc<Facts>,
}

/// Those of a batch.
pub(super) fn of_batch(host: &Host, batch: &Batch) -> Vec<HostFacts> {
    let told = batch.facts.iter().map(|facts| HostFacts {
        host: host.id.clone(),
        boot_id: batch.boot_id.clone(),
        facts: Arc::new(facts.clone()),
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
    } in told
    {
        sqlx::query(
            "INSERT INTO workload_facts (tenant, host, boot_id, workload, version, facts) \
             VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, host, boot_id, workload) DO UPDATE \
             SET version = excluded.version, facts = excluded.facts \
             WHERE excluded.version >= version",
        )
        .bind(tenant)
        .bind(host)
        .bind(boot_id)
        .bind(facts.workload.cast_signed())
        .bind(facts.version.cast_signed())
        .bind(facts.encode_to_vec())
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}
