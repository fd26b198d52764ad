//! What was proved once is bound to the agent that showed it first; and the record of who came and was refused.

use sqlx::{Row, Sqlite, SqlitePool, Transaction};
use sumun_proto::v1::{JoinAttempt, Joined};
use uuid::Uuid;

use crate::state::now_ns;

/// Rows of the log that are kept.
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

/// Forgets what is bound, so that another agent can be bound to it; how many it were.
///
/// # Errors
/// The database failed.
pub async fn forget(
    database: &SqlitePool,
    tenant: &str,
    subject: &str,
    by: &str,
) -> Result<u64, sqlx::Error> {
    let mut tx = database.begin_with("BEGIN IMMEDIATE").await?;
    let gone = sqlx::query(
        "DELETE FROM join_binding WHERE tenant = ? AND subject = ? RETURNING method, agent",
    )
    .bind(tenant)
    .bind(subject)
    .fetch_all(&mut *tx)
    .await?;
    for row in &gone {
        let attempt = JoinAttempt {
            method: row.try_get("method")?,
            outcome: "forgotten".into(),
            subject: subject.to_owned(),
            agent: row.try_get("agent")?,
            by: by.to_owned(),
            ..JoinAttempt::default()
        };
        write(&mut tx, tenant, &attempt).await?;
    }
    tx.commit().await?;
    Ok(gone.len() as u64)
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
    sqlx::query("DELETE FROM join_log WHERE id <= (SELECT max(id) FROM join_log) - ?")
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
