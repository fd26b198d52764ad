//! The state database: tenants, tokens, agents, delivery numbers, manifest.
//!
//! SQLite in WAL mode with `synchronous = FULL`: a committed transaction
//! survives power loss. Events are never kept here.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::SqlitePool;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{SqlSafeStr, migrate::MigrateError};

/// Every migration, in order: (version, name, text). A version that was
/// released is never changed.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "state", include_str!("../../migrations/0001_state.sql")),
    (
        2,
        "manifest",
        include_str!("../../migrations/0002_manifest.sql"),
    ),
    (
        3,
        "policies",
        include_str!("../../migrations/0003_policies.sql"),
    ),
    (4, "facts", include_str!("../../migrations/0004_facts.sql")),
    (5, "join", include_str!("../../migrations/0005_join.sql")),
    (
        6,
        "facts_kept",
        include_str!("../../migrations/0006_facts_kept.sql"),
    ),
];

/// Connections to the database. Writers wait for each other in SQLite anyway.
const CONNECTIONS: u32 = 8;

/// A failed operation on the state database.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened or made.
    #[error("failed to open state database {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// SQLite's word.
        #[source]
        source: sqlx::Error,
    },
    /// The schema cannot be brought to this version.
    #[error("failed to migrate state database {}: use the program that wrote it or a newer one", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: MigrateError,
    },
}

/// Opens the database, made if it is absent, and brings its schema up to date.
///
/// # Errors
/// The file is no database, cannot be written, or was written by a newer version.
pub async fn open(path: &Path) -> Result<SqlitePool, Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(30));
    let pool = SqlitePoolOptions::new()
        .max_connections(CONNECTIONS)
        .connect_with(options)
        .await
        .map_err(|source| Error::Open {
            path: path.to_path_buf(),
            source,
        })?;
    let migrations = MIGRATIONS
        .iter()
        .map(|(version, name, sql)| {
            Migration::new(
                *version,
                Cow::Borrowed(*name),
                MigrationType::Simple,
                (*sql).into_sql_str(),
                false,
            )
        })
        .collect();
    Migrator::with_migrations(migrations)
        .run(&pool)
        .await
        .map_err(|source| Error::Migrate {
            path: path.to_path_buf(),
            source,
        })?;
    Ok(pool)
}

/// The time now, in nanoseconds since the Unix epoch.
#[must_use]
pub fn now_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_nanos()).ok())
        .unwrap_or(0)
}

/// A duration in nanoseconds, at most [`i64::MAX`].
#[must_use]
pub fn span_ns(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
