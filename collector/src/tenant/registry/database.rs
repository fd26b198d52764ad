//! What is kept of the agents in the state database.

use std::sync::Arc;

use prost::Message as _;
use sqlx::{Row, SqlitePool};
use sumun_proto::v1::{Lane, LoadedPolicies};
use uuid::Uuid;

use super::progress::Mark;
use super::{Agent, Error, Inner, LANES, Registry};

impl Registry {
    /// Writes what has changed to the state database.
    ///
    /// # Errors
    /// The database failed; the changes are written the next time.
    pub async fn persist(&self) -> Result<(), Error> {
        struct Changed {
            id: Uuid,
            name: String,
            version: String,
            kernel: String,
            last_seen_ns: i64,
            stopped_ns: i64,
            marks: Vec<(Lane, Mark)>,
            /// When they have changed.
            policies: Option<Vec<u8>>,
        }
        let changed: Vec<Changed> = {
            let mut inner = self.lock();
            let dirty = inner.agents.iter_mut().filter(|(_, agent)| agent.dirty);
            dirty
                .map(|(id, agent)| {
                    agent.dirty = false;
                    let policies = match &agent.policies {
                        Some(policies) if agent.policies_dirty => Some(policies.encode_to_vec()),
                        _ => None,
                    };
                    agent.policies_dirty = false;
                    Changed {
                        policies,
                        id: *id,
                        name: agent.name.clone(),
                        version: agent.version.clone(),
                        kernel: agent.kernel.clone(),
                        last_seen_ns: agent.last_seen_ns,
                        stopped_ns: agent.stopped_ns,
                        marks: LANES
                            .iter()
                            .zip(&agent.lanes)
                            .filter(|(_, progress)| progress.mark.boot_ns != 0)
                            .map(|(lane, progress)| (*lane, progress.mark.clone()))
                            .collect(),
                    }
                })
                .collect()
        };
        if changed.is_empty() {
            return Ok(());
        }
        let result = async {
            let mut tx = self.shared.database.begin().await?;
            for agent in &changed {
                let id = agent.id.hyphenated().to_string();
                sqlx::query(
                    "UPDATE agent SET name = ?, version = ?, kernel = ?, last_seen_ns = ?, \
                     stopped_ns = ? WHERE id = ?",
                )
                .bind(&agent.name)
                .bind(&agent.version)
                .bind(&agent.kernel)
                .bind(agent.last_seen_ns)
                .bind(agent.stopped_ns)
                .bind(&id)
                .execute(&mut *tx)
                .await?;
                if let Some(policies) = &agent.policies {
                    sqlx::query("UPDATE agent SET policies = ? WHERE id = ?")
                        .bind(policies)
                        .bind(&id)
                        .execute(&mut *tx)
                        .await?;
                }
                for (lane, mark) in &agent.marks {
                    sqlx::query(
                        "INSERT INTO agent_lane (agent, lane, boot_id, boot_ns, through_ns) \
                         VALUES (?, ?, ?, ?, ?) ON CONFLICT (agent, lane) DO UPDATE SET \
                         boot_id = excluded.boot_id, boot_ns = excluded.boot_ns, \
                         through_ns = excluded.through_ns",
                    )
                    .bind(&id)
                    .bind(*lane as i32)
                    .bind(&mark.boot_id)
                    .bind(mark.boot_ns.cast_signed())
                    .bind(mark.wall_ns)
                    .execute(&mut *tx)
                    .await?;
                }
            }
            tx.commit().await
        }
        .await;
        if let Err(error) = result {
            let mut inner = self.lock();
            for changed in &changed {
                if let Some(agent) = inner.agents.get_mut(&changed.id) {
                    agent.dirty = true;
                    agent.policies_dirty |= changed.policies.is_some();
                }
            }
            return Err(Error("write", error));
        }
        Ok(())
    }
}

pub(super) async fn read(database: &SqlitePool) -> Result<Inner, sqlx::Error> {
    let mut inner = Inner::default();
    for row in sqlx::query("SELECT name FROM tenant")
        .fetch_all(database)
        .await?
    {
        inner.tenants.push(row.try_get::<String, _>("name")?.into());
    }
    let rows = sqlx::query(
        "SELECT id, tenant, name, enrolled_ns, certificate_expires_ns, revoked_ns, last_seen_ns, \
         stopped_ns, version, kernel, policies FROM agent",
    );
    for row in rows.fetch_all(database).await? {
        let id: String = row.try_get("id")?;
        let Ok(id) = Uuid::try_parse(&id) else {
            continue;
        };
        let tenant: String = row.try_get("tenant")?;
        let policies: Vec<u8> = row.try_get("policies")?;
        let agent = Agent {
            revoked: row.try_get::<i64, _>("revoked_ns")? != 0,
            last_seen_ns: row.try_get("last_seen_ns")?,
            stopped_ns: row.try_get("stopped_ns")?,
            version: row.try_get("version")?,
            kernel: row.try_get("kernel")?,
            policies: (!policies.is_empty())
                .then(|| {
                    LoadedPolicies::decode(policies.as_slice())
                        .ok()
                        .map(Arc::new)
                })
                .flatten(),
            ..Agent::new(
                tenant.into(),
                row.try_get("name")?,
                row.try_get("enrolled_ns")?,
                row.try_get("certificate_expires_ns")?,
            )
        };
        inner.agents.insert(id, agent);
    }
    let rows = sqlx::query("SELECT agent, lane, boot_id, boot_ns, through_ns FROM agent_lane");
    for row in rows.fetch_all(database).await? {
        let id: String = row.try_get("agent")?;
        let lane: i32 = row.try_get("lane")?;
        let (Ok(id), Ok(lane)) = (Uuid::try_parse(&id), Lane::try_from(lane)) else {
            continue;
        };
        let Some(progress) = inner.agents.get_mut(&id).and_then(|agent| agent.lane(lane)) else {
            continue;
        };
        progress.mark = Mark {
            boot_id: row.try_get("boot_id")?,
            boot_ns: row.try_get::<i64, _>("boot_ns")?.cast_unsigned(),
            wall_ns: row.try_get("through_ns")?,
        };
    }
    // What heartbeats claim is settled against these; the newest epochs last.
    let rows = sqlx::query("SELECT agent, epoch, lane, high FROM ingest_lane ORDER BY updated_ns");
    for row in rows.fetch_all(database).await? {
        let id: String = row.try_get("agent")?;
        let epoch: Vec<u8> = row.try_get("epoch")?;
        let lane: i32 = row.try_get("lane")?;
        let (Ok(id), Ok(epoch), Ok(lane)) = (
            Uuid::try_parse(&id),
            <[u8; 8]>::try_from(epoch.as_slice()),
            Lane::try_from(lane),
        ) else {
            continue;
        };
        if let Some(progress) = inner.agents.get_mut(&id).and_then(|agent| agent.lane(lane)) {
            let high: i64 = row.try_get("high")?;
            progress.deliver(u64::from_be_bytes(epoch), high.cast_unsigned(), None);
        }
    }
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use sumun_policy::report;
    use sumun_proto::v1::{Heartbeat, Hello};

    use super::*;
    use crate::tenant::identity::Identity;

    #[tokio::test]
    async fn what_an_agent_has_loaded_is_kept_and_cut() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("state.db");
        let identity = Identity {
            tenant: "default".into(),
            agent: Uuid::from_u128(1),
        };
        let id = identity.agent.hyphenated().to_string();
        let database = crate::state::open(&path).await.expect("a database");
        for statement in [
            "INSERT INTO tenant (name, created_ns) VALUES ('default', 1)".to_owned(),
            format!(
                "INSERT INTO agent (id, tenant, name, machine_id, enrolled_ns, \
                 certificate_expires_ns) VALUES ('{id}', 'default', 'h', '', 1, 9)"
            ),
        ] {
            sqlx::query(sqlx::AssertSqlSafe(statement))
                .execute(&database)
                .await
                .expect("a row");
        }
        let registry = Registry::load(database).await.expect("a registry");
        let policies = |registry: &Registry| registry.snapshot("default")[0].policies.clone();
        assert_eq!(policies(&registry), None);
        let session = registry.connect(&identity, &Hello::default());
        session.heartbeat(&Heartbeat {
            policies: Some(LoadedPolicies {
                hash: "x".repeat(5000),
                ..LoadedPolicies::default()
            }),
            ..Heartbeat::default()
        });
        // One without news changes nothing.
        session.heartbeat(&Heartbeat::default());
        let told = policies(&registry).expect("what it said");
        assert_eq!(told.hash.len(), report::REPORT_TEXT_MAX);
        registry.persist().await.expect("written");
        let database = crate::state::open(&path).await.expect("the database again");
        let again = Registry::load(database).await.expect("a registry");
        assert_eq!(policies(&again), Some(told));
    }
}
