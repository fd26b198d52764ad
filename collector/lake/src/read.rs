//! What queries take out of scans: rows as JSON, gaps, images of processes.

use std::collections::VecDeque;

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::datatypes::{Int64Type, TimestampNanosecondType};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;

use crate::engine::{Engine, Query, Range, times};
use crate::error::{Error, Result};
use crate::facts::with_facts;
use crate::json;

/// Rows of one query as JSON, oldest first.
pub struct RowReader<'a> {
    engine: &'a Engine,
    query: Query,
    /// Parts of the range that are still to be read, newest first; `None`
    /// until they are known.
    windows: Option<Vec<Range>>,
    stream: Option<SendableRecordBatchStream>,
    rows: VecDeque<(i64, String)>,
}

impl<'a> RowReader<'a> {
    /// Of a query that may have any number of rows: they are read in parts of
    /// [`crate::engine::WINDOW`].
    #[must_use]
    pub fn new(engine: &'a Engine, query: Query) -> Self {
        RowReader {
            engine,
            query,
            windows: None,
            stream: None,
            rows: VecDeque::new(),
        }
    }

    /// Of a query that is known to have few rows: they are sorted at once.
    #[must_use]
    pub fn of_few(engine: &'a Engine, query: Query) -> Self {
        let windows = Some(vec![query.range]);
        RowReader {
            windows,
            ..Self::new(engine, query)
        }
    }

    /// Time of the next row; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Scan`], [`Error::Memory`].
    pub async fn peek(&mut self) -> Result<Option<i64>> {
        while self.rows.is_empty() {
            let Some(batch) = self.batch().await? else {
                return Ok(None);
            };
            let Some(times) = times(&batch) else { continue };
            let source = &self.query.source;
            let rows = json::rows(source.family, &with_facts(&source.facts, &batch));
            self.rows.extend(times.values().iter().copied().zip(rows));
        }
        Ok(self.rows.front().map(|(time, _)| *time))
    }

    /// The row that was peeked at.
    pub fn take(&mut self) -> Option<String> {
        self.rows.pop_front().map(|(_, row)| row)
    }

    async fn batch(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(stream) = &mut self.stream {
                match stream.next().await {
                    Some(batch) => return batch.map(Some).map_err(Error::scan("scan")),
                    None => self.stream = None,
                }
            }
            let windows = match &mut self.windows {
                Some(windows) => windows,
                unknown => {
                    let mut windows = self.engine.windows(&self.query).await?;
                    windows.reverse();
                    unknown.insert(windows)
                }
            };
            let Some(range) = windows.pop() else {
                return Ok(None);
            };
            self.query.range = range;
            self.stream = Some(self.engine.ordered(&self.query)?);
        }
    }
}

/// A row of table gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GapRow {
    /// `host.id`
    pub host: String,
    /// `gap.lane`
    pub lane: String,
    /// `gap.reason`
    pub reason: String,
    /// `gap.count`
    pub count: Option<u64>,
    /// `gap.from`, ns since the Unix epoch.
    pub from: i64,
    /// `gap.to`
    pub to: i64,
}

/// A row of table process, as the tree needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRow {
    /// `boot_id`
    pub boot: String,
    /// `proc.pid`
    pub pid: i64,
    /// `proc.start`
    pub start: i64,
    /// `proc.exec_id`
    pub exec_id: i64,
    /// `proc.ancestors`: their exec_id.
    pub ancestors: Vec<i64>,
}

impl Engine {
    /// The gaps of a query on table gap, at most `most`, oldest first.
    ///
    /// # Errors
    /// [`Error::Scan`], [`Error::Memory`].
    pub async fn gaps(&self, query: &Query, most: usize) -> Result<Vec<GapRow>> {
        let mut gaps = Vec::new();
        let mut stream = self.ordered(query)?;
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(Error::scan("scan for gaps"))?;
            for row in 0..batch.num_rows() {
                if gaps.len() == most {
                    return Ok(gaps);
                }
                gaps.push(GapRow {
                    host: text(&batch, "host_id", row),
                    lane: text(&batch, "gap_lane", row),
                    reason: text(&batch, "gap_reason", row),
                    count: int(&batch, "gap_count", row).map(i64::cast_unsigned),
                    from: time(&batch, "gap_from", row),
                    to: time(&batch, "gap_to", row),
                });
            }
        }
        Ok(gaps)
    }

    /// The images of a query on table process, one for each row, at most `most`.
    ///
    /// # Errors
    /// [`Error::Scan`], [`Error::Memory`].
    pub async fn images(&self, query: &Query, most: usize) -> Result<Vec<ImageRow>> {
        let mut images = Vec::new();
        let mut stream = self.ordered(query)?;
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(Error::scan("scan for processes"))?;
            for row in 0..batch.num_rows() {
                if images.len() == most {
                    return Ok(images);
                }
                let (Some(pid), Some(start), Some(exec_id)) = (
                    int(&batch, "proc_pid", row),
                    int(&batch, "proc_start", row),
                    int(&batch, "proc_exec_id", row),
                ) else {
                    continue;
                };
                images.push(ImageRow {
                    boot: text(&batch, "boot_id", row),
                    pid,
                    start,
                    exec_id,
                    ancestors: ints(&batch, "proc_ancestors_exec_id", row),
                });
            }
        }
        Ok(images)
    }
}

fn text(batch: &RecordBatch, column: &str, row: usize) -> String {
    batch
        .column_by_name(column)
        .and_then(|array| array.as_string_opt::<i32>())
        .filter(|array| array.is_valid(row))
        .map(|array| array.value(row).to_owned())
        .unwrap_or_default()
}

fn int(batch: &RecordBatch, column: &str, row: usize) -> Option<i64> {
    let array = batch.column_by_name(column)?;
    let array = array.as_primitive_opt::<Int64Type>()?;
    array.is_valid(row).then(|| array.value(row))
}

fn time(batch: &RecordBatch, column: &str, row: usize) -> i64 {
    batch
        .column_by_name(column)
        .and_then(|array| array.as_primitive_opt::<TimestampNanosecondType>())
        .filter(|array| array.is_valid(row))
        .map_or(0, |array| array.value(row))
}

fn ints(batch: &RecordBatch, column: &str, row: usize) -> Vec<i64> {
    let list = batch
        .column_by_name(column)
        .and_then(|array| array.as_list_opt::<i32>())
        .filter(|array| array.is_valid(row))
        .map(|array| array.value(row));
    match list
        .as_ref()
        .and_then(|list| list.as_primitive_opt::<Int64Type>())
    {
        Some(items) => items.values().to_vec(),
        None => Vec::new(),
    }
}
