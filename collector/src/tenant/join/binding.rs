//! What was proved once is bound to the agent that showed it first; and the record of who came and was refused.

use sqlx::{Row, Sqlite, SqlitePool, Transaction};
use sumun_proto::v1::{JoinAttempt, Joined};
use uuid::Uuid;

use crate::state::now_ns;

/// Rows of the log that are kept of a tenant, of those refused and of the others.
const LOG_MAX: i64 = 10_000;
/// Longest text of others' that is kept in it, in bytes.
const TEXT_MAX: usize = 512;
/// Rows that one answer holds at most.
pub const ROWS_MAX: u32 = 10_000;

/// An agent that something proved is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The agent.
    pub agent: Uuid,
    /// SHA-256 of its public key.
    pub key: Vec<u8>,
}

/// Looks whom a proof is bound to.
///
/// # Errors
/// The database failed.
pub async fn bound(
    tx: &mut Transaction<'_, Sqlite>,
    tenant: &str,
    method: &str,
    subject: &str,
) -> Result<Option<Binding>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT agent, key FROM join_binding WHERE tenant = ? AND method = ? AND subject = ?",
    )
    .bind(tenant)
    .bind(method)
    .bind(subject)
    .fetch_optional(&mut **tx)
    .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let agent: String = row.try_get("agent")?;
    let agent = Uuid::try_parse(&agent).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(Some(Binding {
        agent,
        key: row.try_get("key")?,
    }))
}

/// Another subject that this key is bound to.
///
/// # Errors
/// The database failed.
pub async fn other_of_key(
    tx: &mut Transaction<'_, Sqlite>,
    tenant: &str,
    (method, subject): (&str, &str),
    key: &[u8],
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT subject FROM join_binding WHERE tenant = ? AND key = ? AND NOT (method = ? AND subject = ?)",
    )
    .bind(tenant)
    .bind(key)
    .bind(method)
    .bind(subject)
    .fetch_optional(&mut **tx)
    .await
}

/// Binds a proof to an agent and its key, or notes that it was shown again.
///
/// # Errors
/// The database failed.
pub async fn bind(
    tx: &mut Transaction<'_, Sqlite>,
    tenant: &str,
    (method, subject, entry): (&str, &str, &str),
    to: &Binding,
) -> Result<(), sqlx::Error> {
    let now = now_ns();
    sqlx::query(
        "INSERT INTO join_binding (tenant, method, subject, entry, agent, key, bound_ns, used_ns) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT DO UPDATE SET entry = excluded.entry, key = excluded.key, used_ns = excluded.used_ns",
    )
    .bind(tenant)
    .bind(method)
    .bind(subject)
    .bind(entry)
    .bind(to.agent.hyphenated().to_string())
    .bind(&to.key)
    .bind(now)
    .bind(now)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// All that is bound of a tenant, the newest last.
///
/// # Errors
/// The database failed.
pub async fn list(database: &SqlitePool, tenant: &str) -> Result<Vec<Joined>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT method, subject, entry, agent, agent.name AS host, bound_ns, used_ns \
         FROM join_binding JOIN agent ON agent.id = join_binding.agent \
         WHERE join_binding.tenant = ? ORDER BY bound_ns DESC LIMIT ?",
    )
    .bind(tenant)
    .bind(ROWS_MAX)
    .fetch_all(database)
    .await?;
    let read = |row: &sqlx::sqlite::SqliteRow| {
        Ok(Joined {
            method: row.try_get("method")?,
            subject: row.try_get("subject")?,
            entry: row.try_get("entry")?,
            agent: row.try_get("agent")?,
            host: row.try_get("host")?,
            bound_ns: row.try_get("bound_ns")?,
            used_ns: row.try_get("used_ns")?,
        })
    };
    rows.iter().rev().map(read).collect()
}

/// Forgets what is bound, so that another agent can be bound to it, and revokes the agents that were: one of them may be
/// somebody else's. The registry has to learn of them.
///
/// # Errors
/// The database failed.
pub async fn forget(
    database: &SqlitePool,
    tenant: &str,
    subject: &str,
    by: &str,
) -> Result<Vec<Uuid>, sqlx::Error> {
    let mut tx = database.begin_with("BEGIN IMMEDIATE").await?;
    let gone = sqlx::query(
        "DELETE FROM join_binding WHERE tenant = ? AND subject = ? RETURNING method, agent",
    )
    .bind(tenant)
    .bind(subject)
    .fetch_all(&mut *tx)
    .await?;
    let mut agents = Vec::with_capacity(gone.len());
    for row in &gone {
        let agent: String = row.try_get("agent")?;
        sqlx::query(
            "UPDATE agent SET revoked_ns = ? WHERE id = ? AND tenant = ? AND revoked_ns = 0",
        )
        .bind(now_ns())
        .bind(&agent)
        .bind(tenant)
        .execute(&mut *tx)
        .await?;
        agents.push(Uuid::try_parse(&agent).map_err(|error| sqlx::Error::Decode(error.into()))?);
        let attempt = JoinAttempt {
            method: row.try_get("method")?,
            outcome: "forgotten".into(),
            subject: subject.to_owned(),
            agent,
            by: by.to_owned(),
            ..JoinAttempt::default()
        };
        write(&mut tx, tenant, &attempt).await?;
    }
    tx.commit().await?;
    Ok(agents)
}

/// Writes a row of the log.
///
/// # Errors
/// The database failed.
pub async fn write(
    tx: &mut Transaction<'_, Sqlite>,
    tenant: &str,
    attempt: &JoinAttempt,
) -> Result<(), sqlx::Error> {
    let refused = attempt.outcome == "refused";
    sqlx::query(
        "INSERT INTO join_log (at_ns, tenant, method, outcome, subject, host, address, agent, reason, by) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(now_ns())
    .bind(tenant)
    .bind(&attempt.method)
    .bind(&attempt.outcome)
    .bind(cut(&attempt.subject))
    .bind(cut(&attempt.host))
    .bind(&attempt.address)
    .bind(&attempt.agent)
    .bind(cut(&attempt.reason))
    .bind(cut(&attempt.by))
    .execute(&mut **tx)
    .await?;
    // Refusals apart, and each tenant's apart: nobody can push out what an admin did, or another's.
    sqlx::query(
        "DELETE FROM join_log WHERE tenant = ? AND (outcome = 'refused') = ? AND id <= (SELECT id FROM join_log \
         WHERE tenant = ? AND (outcome = 'refused') = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
    )
    .bind(tenant)
    .bind(refused)
    .bind(tenant)
    .bind(refused)
    .bind(LOG_MAX)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The log of a tenant, the newest last.
///
/// # Errors
/// The database failed.
pub async fn log(
    database: &SqlitePool,
    tenant: &str,
    limit: u32,
) -> Result<Vec<JoinAttempt>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT at_ns, method, outcome, subject, host, address, agent, reason, by FROM join_log \
         WHERE tenant = ? ORDER BY id DESC LIMIT ?",
    )
    .bind(tenant)
    .bind(limit.min(ROWS_MAX))
    .fetch_all(database)
    .await?;
    let read = |row: &sqlx::sqlite::SqliteRow| {
        Ok(JoinAttempt {
            at_ns: row.try_get("at_ns")?,
            method: row.try_get("method")?,
            outcome: row.try_get("outcome")?,
            subject: row.try_get("subject")?,
            host: row.try_get("host")?,
            address: row.try_get("address")?,
            agent: row.try_get("agent")?,
            reason: row.try_get("reason")?,
            by: row.try_get("by")?,
        })
    };
    rows.iter().rev().map(read).collect()
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::identity::Identity;
    use crate::tenant::registry::{Refusal, Registry};

    async fn database(dir: &std::path::Path) -> SqlitePool {
        let database = crate::state::open(&dir.join("state.db"))
            .await
            .expect("a database");
        for statement in [
            "INSERT INTO tenant (name, created_ns) VALUES ('a', 1), ('b', 1)".to_owned(),
            format!(
                "INSERT INTO agent (id, tenant, name, machine_id, enrolled_ns, \
                 certificate_expires_ns) VALUES ('{}', 'a', 'h', '', 1, 9)",
                Uuid::from_u128(1)
            ),
        ] {
            sqlx::query(sqlx::AssertSqlSafe(statement))
                .execute(&database)
                .await
                .expect("a row");
        }
        database
    }

    #[tokio::test]
    async fn what_is_forgotten_is_revoked_and_a_key_is_of_one_host() {
        let dir = tempfile::tempdir().expect("a folder");
        let database = database(dir.path()).await;
        let to = Binding {
            agent: Uuid::from_u128(1),
            key: vec![7; 32],
        };
        let mut tx = database
            .begin_with("BEGIN IMMEDIATE")
            .await
            .expect("a transaction");
        bind(&mut tx, "a", ("ec2", "i-1", "e"), &to)
            .await
            .expect("bound");
        let other = other_of_key(&mut tx, "a", ("ec2", "i-2"), &to.key)
            .await
            .expect("an answer");
        assert_eq!(other.as_deref(), Some("i-1"));
        let own = other_of_key(&mut tx, "a", ("ec2", "i-1"), &to.key)
            .await
            .expect("an answer");
        assert_eq!(own, None);
        tx.commit().await.expect("written");

        assert!(
            forget(&database, "b", "i-1", "x")
                .await
                .expect("an answer")
                .is_empty()
        );
        let registry = Registry::load(database.clone()).await.expect("a registry");
        let identity = Identity {
            tenant: "a".into(),
            agent: to.agent,
        };
        assert_eq!(registry.check(&identity), Ok(()));
        let agents = forget(&database, "a", "i-1", "x").await.expect("forgotten");
        assert_eq!(agents, [to.agent]);
        registry.revoke(to.agent);
        assert_eq!(registry.check(&identity), Err(Refusal::Revoked));
        // Another collector on this database finds it so, too.
        let again = Registry::load(database).await.expect("a registry");
        assert_eq!(again.check(&identity), Err(Refusal::Revoked));
    }

    #[tokio::test]
    async fn nobody_pushes_out_what_another_did() {
        let dir = tempfile::tempdir().expect("a folder");
        let database = database(dir.path()).await;
        let mut tx = database
            .begin_with("BEGIN IMMEDIATE")
            .await
            .expect("a transaction");
        let attempt = |outcome: &str| JoinAttempt {
            outcome: outcome.into(),
            ..JoinAttempt::default()
        };
        write(&mut tx, "a", &attempt("forgotten"))
            .await
            .expect("written");
        write(&mut tx, "b", &attempt("refused"))
            .await
            .expect("written");
        for _ in 0..LOG_MAX + 10 {
            write(&mut tx, "a", &attempt("refused"))
                .await
                .expect("written");
        }
        tx.commit().await.expect("written");
        let count = |tenant: &'static str, outcome: &'static str| {
            let database = database.clone();
            async move {
                sqlx::query_scalar::<_, i64>(
                    "SELECT count(*) FROM join_log WHERE tenant = ? AND outcome = ?",
                )
                .bind(tenant)
                .bind(outcome)
                .fetch_one(&database)
                .await
                .expect("a number")
            }
        };
        assert_eq!(count("a", "refused").await, LOG_MAX);
        assert_eq!(count("a", "forgotten").await, 1);
        assert_eq!(count("b", "refused").await, 1);
    }
}
