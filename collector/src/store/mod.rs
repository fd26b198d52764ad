//! What queries see: the rows of the newest log segments in memory, older ones
//! in files of the lake.
//!
//! A batch is applied after the log has synced it and before it is
//! acknowledged, so a row is visible once it is acknowledged. A segment of
//! the log is sealed once it takes no more records:
//!
//! 1. its rows are written, one file for each tenant and table, and synced;
//! 2. one transaction commits the files' manifest, the scopes and what the log
//!    wants committed with them;
//! 3. under one lock the rows in memory give way to the files.
//!
//! A snapshot is taken under the same lock: it holds each row once, in memory or in
//! a file. A crash before 2 leaves files that no manifest names, which the
//! next start removes, and the log, which is replayed; a crash after 2 leaves a
//! log that the committed place says is sealed.

mod facts;
mod manifest;
mod memory;
mod snapshot;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sqlx::SqlitePool;
use sumun_lake::{FactTable, Family, Lake, LakeFile, RowSet};
use sumun_proto::Host;
use sumun_proto::v1::{Batch, Gap, Scope};
use sumun_proto::view::boot_id_text;
use sumun_proto::view::facts::with_pod_of;
use tokio::task::spawn_blocking;
use tracing::{error, info};

use crate::ingest::Checkpoint;
use crate::state::{now_ns, span_ns};

pub use facts::Kept;
use facts::{Forgotten, HostFacts};
use memory::{Memory, Segment};
pub use snapshot::{HostScope, Snapshot};

/// A failed operation of the store. Nothing was changed; it can be tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state database failed.
    #[error("failed to {0} the manifest of the lake")]
    Database(&'static str, #[source] sqlx::Error),
    /// The lake failed.
    #[error("failed to {0}")]
    Lake(&'static str, #[source] sumun_lake::Error),
    /// A row of the manifest is not understood.
    #[error("the manifest of the lake names table {0}: was it written by a newer version?")]
    Family(String),
    /// A task of the program's own failed.
    #[error("failed to write a segment to the lake: a task ended early")]
    Task,
}

/// Memory for rows that are not in the lake yet. Beyond it, batches of a newer
/// segment wait until an older one is sealed: the writer of the log stands
/// still, and through it the agents, which spool. Nothing is dropped.
pub const MEMORY_BYTES: usize = 1024 * 1024 * 1024;

/// What a store may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// As [`MEMORY_BYTES`].
    pub memory: usize,
    /// Of what is told of workloads.
    pub facts: Kept,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            memory: MEMORY_BYTES,
            facts: Kept::default(),
        }
    }
}

/// A batch on its way to being visible.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Log segment it is in.
    pub segment: u64,
    /// Its place in the log.
    pub seq: u64,
    /// Tenant of the agent's certificate.
    pub tenant: Arc<str>,
    /// The host.
    pub host: Host,
    /// When it arrived, ns since the Unix epoch.
    pub received_ns: i64,
    /// What it says.
    pub batch: Batch,
}

/// The store. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    database: SqlitePool,
    lake: Lake,
    bounds: Bounds,
    inner: Mutex<Inner>,
    /// By which facts become too old.
    clock: Mutex<facts::Clock>,
    /// Rows have left memory.
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    memory: Memory,
    tenants: HashMap<Arc<str>, Tenant>,
}

/// What is durable of a tenant.
#[derive(Debug, Default)]
struct Tenant {
    /// By `Family as usize`; copied when it changes while a snapshot has it.
    files: [Arc<Vec<Arc<LakeFile>>>; Family::ALL.len()],
    scopes: Arc<Vec<Arc<HostScope>>>,
    /// Also of what is not durable yet: it is found again when the log is read.
    facts: Arc<FactTable>,
}

impl Store {
    /// Opens the lake at a folder or `file://` URL and reads its manifest; files
    /// that no manifest names are removed.
    ///
    /// # Errors
    /// The lake or the database cannot be used.
    pub async fn open(database: SqlitePool, lake: &str, bounds: Bounds) -> Result<Self, Error> {
        let lake = Lake::open(lake).map_err(|e| Error::Lake("open the lake", e))?;
        let mut inner = Inner::default();
        for file in manifest::files(&database).await? {
            let tenant: Arc<str> = file.tenant.as_str().into();
            let family = file.family as usize;
            let tenant = inner.tenants.entry(tenant).or_default();
            Arc::make_mut(&mut tenant.files[family]).push(Arc::new(file));
        }
        for (tenant, scope) in manifest::scopes(&database).await? {
            let tenant = inner.tenants.entry(tenant).or_default();
            Arc::make_mut(&mut tenant.scopes).push(Arc::new(scope));
        }
        let newest = facts::newest(&database).await?;
        let clock = facts::Clock::new(Instant::now(), now_ns(), newest);
        for (tenant, table) in facts::load(&database).await? {
            inner.tenants.entry(tenant).or_default().facts = table;
        }
        let known: Vec<String> = inner
            .tenants
            .values()
            .flat_map(|tenant| tenant.files.iter())
            .flat_map(|files| files.iter().map(|file| file.path.clone()))
            .collect();
        let in_lake = lake.clone();
        let swept = spawn_blocking(move || sweep(&in_lake, &known)).await;
        swept.map_err(|_| Error::Task)??;
        Ok(Store {
            shared: Arc::new(Shared {
                database,
                lake,
                bounds,
                inner: Mutex::new(inner),
                clock: Mutex::new(clock),
                freed: Condvar::new(),
            }),
        })
    }

    /// The lake.
    #[must_use]
    pub fn lake(&self) -> &Lake {
        &self.shared.lake
    }

    /// Bytes of rows in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.lock().memory.bytes()
    }

    /// Makes a batch visible. Call it in the order of the log. Blocks while
    /// memory is full and an older segment waits to be sealed.
    pub fn apply(&self, applied: Applied) {
        let Applied {
            segment,
            seq,
            tenant,
            host,
            received_ns,
            batch,
        } = applied;
        let host = Arc::new(host);
        let sets = sumun_lake::rows(&host, &batch).unwrap_or_else(|why| {
            error!(
                host = %host.id, seq, received_ns, %why,
                "a batch in the log cannot be read: its place in the data is a gap"
            );
            undecodable(&host, &batch, &why)
        });
        let scopes = scopes_of(&host, &batch);
        let mut told = facts::of_batch(&host, &batch, received_ns);
        let sets = sets.into_iter().map(Arc::new).collect();
        let mut inner = self.lock();
        while inner.memory.bytes() >= self.shared.bounds.memory && inner.memory.older_than(segment)
        {
            let freed = self.shared.freed.wait(inner);
            inner = freed.unwrap_or_else(PoisonError::into_inner);
        }
        if !told.is_empty() {
            let of_tenant = inner.tenants.entry(Arc::clone(&tenant)).or_default();
            let table = Arc::make_mut(&mut of_tenant.facts);
            for HostFacts { boot_id, facts, .. } in &mut told {
                if let Some(before) = table.get(&host.id, &boot_id_text(boot_id), facts.workload) {
                    *facts = Arc::new(with_pod_of((**facts).clone(), before));
                }
                table.learn(&host.id, boot_id, facts);
            }
        }
        inner.memory.add(segment, &tenant, sets, scopes, told);
    }

    /// Moves the rows of a log segment, which takes no more records, to the
    /// lake, and commits `checkpoint` with them. When this returns the segment
    /// can be dropped. After an error nothing has changed for readers, and the
    /// same call is right. Returns of how many workloads and hosts facts went with it ([`Kept`]).
    ///
    /// # Errors
    /// The lake or the database failed.
    pub async fn seal(&self, segment: u64, checkpoint: &Checkpoint) -> Result<u64, Error> {
        // The day is fixed by the first try, so that the second one replaces its files.
        let held = self.lock().memory.begin_seal(segment, now_ns());
        let files = self.write(segment, held.clone()).await?;
        let forgotten = self.commit(segment, &held, &files, checkpoint).await?;
        let count = forgotten.values().map(|gone| gone.len() as u64).sum();
        self.publish(segment, &held, files, &forgotten);
        Ok(count)
    }

    /// Step 1 of the module's text.
    async fn write(&self, segment: u64, held: Segment) -> Result<Vec<LakeFile>, Error> {
        let lake = self.shared.lake.clone();
        let written = spawn_blocking(move || {
            let day = sumun_lake::json::day(held.sealed_ns);
            let mut files = Vec::new();
            for (tenant, rows) in &held.tenants {
                for family in Family::ALL {
                    let sets = &rows.tables[family as usize];
                    if !sets.is_empty() {
                        let write = sumun_lake::write::write;
                        files.push(write(&lake, tenant, family, &day, segment, sets)?);
                    }
                }
            }
            Ok(files)
        })
        .await;
        written
            .map_err(|_| Error::Task)?
            .map_err(|e| Error::Lake("write a segment to the lake", e))
    }

    /// Step 2.
    async fn commit(
        &self,
        segment: u64,
        held: &Segment,
        files: &[LakeFile],
        checkpoint: &Checkpoint,
    ) -> Result<HashMap<Arc<str>, Vec<Forgotten>>, Error> {
        let failed = |error| Error::Database("write", error);
        let kept = self.shared.bounds.facts;
        let sizes: Vec<(Arc<str>, usize)> = {
            let inner = self.lock();
            let tenants = inner.tenants.iter();
            let told = tenants.filter(|(_, tenant)| !tenant.facts.is_empty());
            told.map(|(name, tenant)| (Arc::clone(name), tenant.facts.bytes()))
                .collect()
        };
        let mut tx = self.shared.database.begin().await.map_err(failed)?;
        manifest::insert(&mut tx, segment, files, held)
            .await
            .map_err(failed)?;
        let now_ns = now_ns();
        let before_ns = match self.trusts_clock(now_ns) {
            true => now_ns.saturating_sub(span_ns(kept.age)),
            false => i64::MIN,
        };
        let mut forgotten = HashMap::new();
        for (tenant, over) in kept.over(sizes) {
            let gone = facts::forget(&mut tx, &tenant, before_ns, over)
                .await
                .map_err(failed)?;
            forgotten.insert(tenant, gone);
        }
        checkpoint.write(&mut tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(forgotten)
    }

    fn trusts_clock(&self, now_ns: i64) -> bool {
        let clock = self.shared.clock.lock();
        let mut clock = clock.unwrap_or_else(PoisonError::into_inner);
        clock.is_trusted(Instant::now(), now_ns)
    }

    /// Step 3.
    fn publish(
        &self,
        segment: u64,
        held: &Segment,
        files: Vec<LakeFile>,
        forgotten: &HashMap<Arc<str>, Vec<Forgotten>>,
    ) {
        let mut inner = self.lock();
        for (tenant, gone) in forgotten.iter().filter(|(_, gone)| !gone.is_empty()) {
            let tenant = inner.tenants.entry(Arc::clone(tenant)).or_default();
            let table = Arc::make_mut(&mut tenant.facts);
            for facts in gone {
                facts.apply(table);
            }
        }
        for file in files {
            let family = file.family as usize;
            let tenant = inner
                .tenants
                .entry(file.tenant.as_str().into())
                .or_default();
            Arc::make_mut(&mut tenant.files[family]).push(Arc::new(file));
        }
        for (tenant, rows) in &held.tenants {
            if !rows.scopes.is_empty() {
                let tenant = inner.tenants.entry(Arc::clone(tenant)).or_default();
                Arc::make_mut(&mut tenant.scopes).extend(rows.scopes.iter().cloned());
            }
        }
        inner.memory.remove(segment);
        drop(inner);
        self.shared.freed.notify_all();
    }

    /// Everything of a tenant as it is now: every row once.
    #[must_use]
    pub fn snapshot(&self, tenant: &str) -> Snapshot {
        let inner = self.lock();
        let mut tables: [Vec<Arc<RowSet>>; Family::ALL.len()] = Default::default();
        let mut newest = Vec::new();
        for rows in inner.memory.of(tenant) {
            for (table, sets) in tables.iter_mut().zip(&rows.tables) {
                table.extend(sets.iter().cloned());
            }
            newest.extend(rows.scopes.iter().cloned());
        }
        let durable = inner.tenants.get(tenant);
        let files = durable.map_or_else(Default::default, |durable| durable.files.clone());
        let older = durable.map_or_else(Arc::default, |durable| Arc::clone(&durable.scopes));
        let facts = durable.map_or_else(Arc::default, |durable| Arc::clone(&durable.facts));
        drop(inner);
        Snapshot::new(files, tables, &older, newest, facts)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        let inner = &self.shared.inner;
        inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes what a crash has left.
fn sweep(lake: &Lake, known: &[String]) -> Result<(), Error> {
    let known: std::collections::HashSet<&str> = known.iter().map(String::as_str).collect();
    let mut removed = 0u64;
    for path in lake.list().map_err(|e| Error::Lake("list the lake", e))? {
        // A file that is none of ours is left alone.
        let written = path.ends_with(".parquet") || path.ends_with(".parquet.tmp");
        let ours = written && path.starts_with("tenant=");
        if ours && !known.contains(path.as_str()) {
            lake.remove(&path)
                .map_err(|e| Error::Lake("remove an unfinished file from the lake", e))?;
            removed += 1;
        }
    }
    if removed > 0 {
        info!(removed, "removed unfinished files from the lake");
    }
    Ok(())
}

/// A gap in place of a batch that has no rows.
fn undecodable(host: &Arc<Host>, batch: &Batch, why: &sumun_lake::Error) -> Vec<RowSet> {
    let events = batch.events.iter();
    let alerted = batch.alerts.iter().filter_map(|alert| alert.event.as_ref());
    let times: Vec<u64> = events.chain(alerted).map(|event| event.boot_ns).collect();
    let mut gaps = batch.gaps.clone();
    gaps.push(Gap {
        reason: "undecodable".into(),
        count: Some((batch.events.len() + batch.alerts.len()) as u64),
        from_boot_ns: times.iter().copied().min().unwrap_or(batch.through_boot_ns),
        to_boot_ns: times.iter().copied().max().unwrap_or(batch.through_boot_ns),
        detail: why.to_string(),
        ..Gap::default()
    });
    let rest = Batch {
        lane: batch.lane,
        boot_id: batch.boot_id.clone(),
        pin_generation: batch.pin_generation,
        wall_offset_ns: batch.wall_offset_ns,
        gaps,
        ..Batch::default()
    };
    // A batch of gaps alone has no events that could be malformed.
    sumun_lake::rows(host, &rest).unwrap_or_default()
}

fn scopes_of(host: &Host, batch: &Batch) -> Vec<Arc<HostScope>> {
    let wall = |scope: &Scope| {
        batch
            .wall_offset_ns
            .wrapping_add(scope.from_boot_ns.cast_signed())
    };
    batch
        .scopes
        .iter()
        .map(|scope| {
            Arc::new(HostScope {
                host: host.id.clone(),
                from_ns: wall(scope),
                scope: scope.clone(),
            })
        })
        .collect()
}
