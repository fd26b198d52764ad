//! The manifest in the state database.

use std::sync::Arc;

use prost::Message;
use sqlx::{Row, SqliteConnection, SqlitePool};
use sumun_lake::{Family, LakeFile};
use sumun_proto::v1::Scope;

use crate::store::Error;
use crate::store::memory::Segment;
use crate::store::snapshot::HostScope;

/// All files of the lake.
pub(super) async fn files(database: &SqlitePool) -> Result<Vec<LakeFile>, Error> {
    let failed = |error| Error::Database("read", error);
    let rows = sqlx::query(
        "SELECT tenant, family, segment, path, rows, bytes, min_ns, max_ns, hosts FROM lake_file \
         ORDER BY segment",
    )
    .fetch_all(database)
    .await
    .map_err(failed)?;
    let mut files = Vec::with_capacity(rows.len());
    for row in rows {
        let int = |name: &str| row.try_get::<i64, _>(name).map_err(failed);
        let text = |name: &str| row.try_get::<String, _>(name).map_err(failed);
        let family = text("family")?;
        files.push(LakeFile {
            tenant: text("tenant")?,
            family: Family::by_name(&family).ok_or(Error::Family(family))?,
            segment: int("segment")?.cast_unsigned(),
            path: text("path")?,
            rows: int("rows")?.cast_unsigned(),
            bytes: int("bytes")?.cast_unsigned(),
            min_time: int("min_ns")?,
            max_time: int("max_ns")?,
            hosts: text("hosts")?.split(' ').map(str::to_owned).collect(),
        });
    }
    Ok(files)
}

/// All scopes with their tenants, in the order they came.
pub(super) async fn scopes(database: &SqlitePool) -> Result<Vec<(Arc<str>, HostScope)>, Error> {
    let failed = |error| Error::Database("read", error);
    let rows = sqlx::query("SELECT tenant, host, from_ns, scope FROM scope ORDER BY id")
        .fetch_all(database)
        .await
        .map_err(failed)?;
    let mut scopes = Vec::with_capacity(rows.len());
    for row in rows {
        let tenant: String = row.try_get("tenant").map_err(failed)?;
        let bytes: Vec<u8> = row.try_get("scope").map_err(failed)?;
        let scope = Scope::decode(bytes.as_slice())
            .map_err(|error| failed(sqlx::Error::Decode(Box::new(error))))?;
        scopes.push((
            tenant.into(),
            HostScope {
                host: row.try_get("host").map_err(failed)?,
                from_ns: row.try_get("from_ns").map_err(failed)?,
                scope,
            },
        ));
    }
    Ok(scopes)
}

/// Writes the files and scopes of a segment; what an earlier try, whose commit was
/// not confirmed, may have written is replaced.
pub(super) async fn insert(
    tx: &mut SqliteConnection,
    segment: u64,
    files: &[LakeFile],
    held: &Segment,
) -> Result<(), sqlx::Error> {
    for table in [
        "DELETE FROM lake_file WHERE segment = ?",
        "DELETE FROM scope WHERE segment = ?",
    ] {
        sqlx::query(table)
            .bind(segment.cast_signed())
            .execute(&mut *tx)
            .await?;
    }
    for file in files {
        sqlx::query(
            "INSERT INTO lake_file (tenant, family, segment, path, rows, bytes, min_ns, max_ns, \
             hosts) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&file.tenant)
        .bind(file.family.name())
        .bind(segment.cast_signed())
        .bind(&file.path)
        .bind(file.rows.cast_signed())
        .bind(file.bytes.cast_signed())
        .bind(file.min_time)
        .bind(file.max_time)
        .bind(file.hosts.join(" "))
        .execute(&mut *tx)
        .await?;
    }
    for (tenant, rows) in &held.tenants {
        super::facts::insert(&mut *tx, tenant, &rows.facts).await?;
        for scope in &rows.scopes {
            sqlx::query(
                "INSERT INTO scope (segment, tenant, host, from_ns, scope) VALUES (?, ?, ?, ?, ?)",
            )
            .bind(segment.cast_signed())
            .bind(&**tenant)
            .bind(&scope.host)
            .bind(scope.from_ns)
            .bind(scope.scope.encode_to_vec())
            .execute(&mut *tx)
            .await?;
        }
    }
    Ok(())
}
