//! From rows to a Parquet file.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::arrow::arrow_writer::ArrowWriterOptions;
use datafusion::parquet::basic::{Compression, Encoding, ZstdLevel};
use datafusion::parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use datafusion::parquet::schema::types::ColumnPath;

use crate::error::{Error, Result};
use crate::family::Family;
use crate::files::{Lake, LakeFile};
use crate::rows::{RowSet, gather};

/// Rows of a row group: what the writer holds in memory, encoded.
const ROW_GROUP: usize = 128 * 1024;
/// Rows of a page: what a selective query decodes at least.
const PAGE: usize = 8 * 1024;
/// Rows gathered at once.
const CHUNK: usize = 8 * 1024;

/// Integers that grow from row to row: their differences are small.
const GROWING: &[&str] = &["time", "boot_ns", "origin_seq"];
/// Texts that hardly repeat within a row group.
const UNIQUE: &[&str] = &["file_ino"];

/// Writes the rows of one tenant and table in one segment of the log as one file.
/// When it returns, the file and its folders are on disk under its name.
///
/// # Errors
/// [`Error::Parquet`], [`Error::Io`], [`Error::Rows`]; there is no file then.
pub fn write(
    lake: &Lake,
    tenant: &str,
    family: Family,
    day: &str,
    segment: u64,
    sets: &[Arc<RowSet>],
) -> Result<LakeFile> {
    let path = Lake::path(tenant, family, day, segment)?;
    let mut by_host: BTreeMap<&str, Vec<&RowSet>> = BTreeMap::new();
    for set in sets {
        by_host.entry(&set.host().id).or_default().push(set);
    }
    let local = lake.local(&path);
    let failed = |source| Error::Parquet {
        path: local.clone(),
        source,
    };
    let bytes = lake.create(&path, |file| {
        let options = ArrowWriterOptions::new()
            .with_properties(properties())
            .with_skip_arrow_metadata(true);
        let mut writer =
            ArrowWriter::try_new_with_options(file, family.schema(), options).map_err(failed)?;
        for sets in by_host.values() {
            in_order(family, sets, |batch| writer.write(batch).map_err(failed))?;
        }
        writer.close().map_err(failed)?;
        Ok(())
    })?;
    Ok(LakeFile {
        tenant: tenant.to_owned(),
        family,
        segment,
        path,
        rows: sets.iter().map(|set| set.len() as u64).sum(),
        bytes,
        min_time: sets.iter().map(|set| set.min_time()).min().unwrap_or(0),
        max_time: sets.iter().map(|set| set.max_time()).max().unwrap_or(0),
        hosts: by_host.keys().map(|host| (*host).to_owned()).collect(),
    })
}

fn properties() -> WriterProperties {
    // The lowest level: sealing has to keep up with what agents deliver.
    let level = ZstdLevel::try_new(1).unwrap_or_default();
    let mut properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_2_0)
        .set_compression(Compression::ZSTD(level))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_max_row_group_row_count(Some(ROW_GROUP))
        .set_data_page_row_count_limit(PAGE)
        .set_write_batch_size(PAGE)
        .set_created_by(concat!("sumun ", env!("CARGO_PKG_VERSION")).to_owned());
    for column in GROWING {
        let column = ColumnPath::from(*column);
        properties = properties
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
    }
    for column in UNIQUE {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(*column), false);
    }
    properties.build()
}

/// Hands over all rows of the sets, of one host, ordered by time.
fn in_order(
    family: Family,
    sets: &[&RowSet],
    mut take: impl FnMut(&RecordBatch) -> Result<()>,
) -> Result<()> {
    let total = sets.iter().map(|set| set.len()).sum();
    let mut order: Vec<(i64, u32, u32)> = Vec::with_capacity(total);
    for (set_at, set) in sets.iter().enumerate() {
        for (row, time) in set.times().iter().enumerate() {
            order.push((*time, set_at as u32, row as u32));
        }
    }
    // Lanes are nearly in order: a run-merging sort is close to linear here.
    order.sort();
    let columns: Vec<_> = (0..family.columns().len()).collect();
    for chunk in order.chunks(CHUNK) {
        // Only the sets this chunk takes from.
        let mut near: Vec<u32> = chunk.iter().map(|(_, set, _)| *set).collect();
        near.sort_unstable();
        near.dedup();
        let from: Vec<_> = near.iter().map(|set| sets[*set as usize]).collect();
        let picked: Vec<_> = chunk
            .iter()
            .map(|(_, set, row)| (near.partition_point(|n| n < set), *row as usize))
            .collect();
        take(&gather(family, &from, &picked, &columns)?)?;
    }
    Ok(())
}
