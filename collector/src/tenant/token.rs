//! Tokens: random 256 bits, shown once, kept as their SHA-256.
//!
//! A fast hash is enough: there is nothing to guess in 256 random bits.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rand::TryRngCore;
use rand::rngs::OsRng;
use sha2::{Digest, Sha256};
use sqlx::{Row, SqlitePool};

use crate::state::{now_ns, span_ns};

/// Most uses an enrolment token may have.
pub const USES_MAX: u32 = 100_000;
/// Longest time a token may be valid.
pub const VALID_MAX: Duration = Duration::from_secs(10 * 366 * 86_400);

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To enrol agents, a number of times.
    Enroll,
    /// To query and to administer.
    Admin,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Purpose::Enroll => "enroll",
            Purpose::Admin => "admin",
        }
    }
}

/// A failed operation on tokens.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system has no randomness to give.
    #[error("failed to draw a random token")]
    Random(#[source] rand::rand_core::OsError),
    /// The database failed.
    #[error("failed to {0} token in the state database")]
    Database(&'static str, #[source] sqlx::Error),
    /// Out of bounds.
    #[error("{0}")]
    Invalid(&'static str),
}

/// Whoever holds an admin token. A service finds it in the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// The tenant whose data may be seen.
    pub tenant: Arc<str>,
    /// Name of the token, for logs.
    pub name: Arc<str>,
}

/// A new token.
#[derive(Debug)]
pub struct Created {
    /// The secret: `sumun_enroll_` or `sumun_admin_` and 64 hexadecimal digits.
    pub token: String,
    /// When it ends, ns since the Unix epoch; 0 = never.
    pub expires_ns: i64,
}

/// The tokens. Admin tokens are also in memory, so that a request costs no
/// look-up in the database.
#[derive(Debug)]
pub struct Tokens {
    database: SqlitePool,
    admins: RwLock<HashMap<[u8; 32], (Admin, i64)>>,
}

impl Tokens {
    /// Reads the admin tokens.
    ///
    /// # Errors
    /// The database failed.
    pub async fn load(database: SqlitePool) -> Result<Self, Error> {
        let read = |error| Error::Database("read", error);
        let rows =
            sqlx::query("SELECT hash, tenant, name, expires_ns FROM token WHERE purpose = 'admin'")
                .fetch_all(&database)
                .await
                .map_err(read)?;
        let mut admins = HashMap::new();
        for row in rows {
            let hash: Vec<u8> = row.try_get("hash").map_err(read)?;
            let Ok(hash) = <[u8; 32]>::try_from(hash.as_slice()) else {
                continue;
            };
            let tenant: String = row.try_get("tenant").map_err(read)?;
            let name: String = row.try_get("name").map_err(read)?;
            let admin = Admin {
                tenant: tenant.into(),
                name: name.into(),
            };
            admins.insert(hash, (admin, row.try_get("expires_ns").map_err(read)?));
        }
        Ok(Tokens {
            database,
            admins: RwLock::new(admins),
        })
    }

    /// Makes a token. `uses` counts for enrolment only; `valid` of zero, for an
    /// admin token only, means that it does not end.
    ///
    /// # Errors
    /// Uses or validity are out of bounds, or the database failed.
    pub async fn create(
        &self,
        tenant: &str,
        purpose: Purpose,
        name: &str,
        uses: u32,
        valid: Duration,
    ) -> Result<Created, Error> {
        if valid > VALID_MAX {
            return Err(Error::Invalid("a token is valid for ten years at most"));
        }
        if name.len() > 256 {
            return Err(Error::Invalid("a token's name has 256 bytes at most"));
        }
        if purpose == Purpose::Enroll {
            if uses == 0 || uses > USES_MAX {
                return Err(Error::Invalid(
                    "an enrolment token has between 1 and 100000 uses",
                ));
            }
            if valid.is_zero() {
                return Err(Error::Invalid(
                    "an enrolment token must expire: give its validity in seconds",
                ));
            }
        }
        let mut secret = [0; 32];
        OsRng.try_fill_bytes(&mut secret).map_err(Error::Random)?;
        let token = format!("sumun_{}_{}", purpose.name(), hex::encode(secret));
        let created_ns = now_ns();
        let expires_ns = match valid.is_zero() {
            true => 0,
            false => created_ns.saturating_add(span_ns(valid)),
        };
        let hash = hash(&token);
        sqlx::query(
            "INSERT INTO token (hash, purpose, tenant, name, uses_left, created_ns, expires_ns) \
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&hash[..])
        .bind(purpose.name())
        .bind(tenant)
        .bind(name)
        .bind(match purpose {
            Purpose::Enroll => i64::from(uses),
            Purpose::Admin => 0,
        })
        .bind(created_ns)
        .bind(expires_ns)
        .execute(&self.database)
        .await
        .map_err(|error| Error::Database("write", error))?;
        if purpose == Purpose::Admin {
            let admin = Admin {
                tenant: tenant.into(),
                name: name.into(),
            };
            self.admins
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(hash, (admin, expires_ns));
        }
        Ok(Created { token, expires_ns })
    }

    /// The holder of an admin token; `None` if there is no such token or it has expired.
    #[must_use]
    pub fn admin(&self, token: &str) -> Option<Admin> {
        let admins = self.admins.read().unwrap_or_else(PoisonError::into_inner);
        let (admin, expires_ns) = admins.get(&hash(token))?;
        (*expires_ns == 0 || now_ns() < *expires_ns).then(|| admin.clone())
    }
}

/// What is kept of a token.
#[must_use]
pub fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}
