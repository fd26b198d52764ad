//! Runs scans over files and memory: bounded in memory, spilling what it must
//! sort to a folder, on threads of its own so that a heavy query does not
//! delay what agents deliver.

use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use datafusion::arrow::array::{Array, RecordBatch, TimestampNanosecondArray};
use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::cast::{as_boolean_array, as_timestamp_nanosecond_array};
use datafusion::common::{DFSchema, DataFusionError, Result as PlanResult};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::context::ExecutionProps;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr as Scan;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::physical_expr::{
    LexOrdering, PhysicalExpr, PhysicalSortExpr, create_physical_expr,
};
use datafusion::physical_plan::filter::FilterExecBuilder;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionConfig;
use futures::{StreamExt, TryStreamExt};
use tokio::runtime::Runtime;

use crate::error::{Error, Result};
use crate::facts::{FactTable, joined};
use crate::family::Family;
use crate::files::{Lake, LakeFile};
use crate::rows::{RowSet, gather};
use crate::scan::{named, time_literal};

/// Rows that a scan handles at once.
const BATCH: usize = 8 * 1024;

/// Rows that are sorted at once when many are asked for.
pub const WINDOW: usize = 16 * 1024;
/// Most times that are remembered to cut a range into parts.
const SAMPLE: usize = 1024 * 1024;

/// Every n-th time of a scan; n doubles when there are too many.
#[derive(Debug)]
struct Sample {
    times: Vec<i64>,
    stride: usize,
    seen: usize,
}

impl Default for Sample {
    fn default() -> Self {
        Sample {
            times: Vec::new(),
            stride: 1,
            seen: 0,
        }
    }
}

impl Sample {
    fn extend(&mut self, times: &[i64]) {
        for time in times {
            if self.seen.is_multiple_of(self.stride) {
                if self.times.len() == SAMPLE {
                    let mut kept = false;
                    self.times.retain(|_| {
                        kept = !kept;
                        kept
                    });
                    self.stride *= 2;
                }
                self.times.push(*time);
            }
            self.seen += 1;
        }
    }

    fn windows(mut self, range: Range) -> Vec<Range> {
        self.times.sort_unstable();
        let step = (WINDOW / self.stride).max(1);
        let mut windows = Vec::new();
        let mut since = range.since;
        for bound in self.times.iter().step_by(step).skip(1) {
            if *bound > since && *bound < range.until {
                windows.push(Range {
                    since,
                    until: *bound,
                });
                since = *bound;
            }
        }
        windows.push(Range {
            since,
            until: range.until,
        });
        windows
    }
}

/// Bounds of all queries together.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Memory of all running queries; what has to be sorted beyond it is spilled.
    pub memory_bytes: usize,
    /// Folder of spilled data, emptied when the engine starts.
    pub spill_dir: PathBuf,
    /// Bound of that folder.
    pub spill_bytes: u64,
    /// Threads, and parts a scan is split into.
    pub threads: usize,
}

/// What one table holds in a snapshot.
#[derive(Clone, Debug)]
pub struct Source {
    /// The table.
    pub family: Family,
    /// Its files.
    pub files: Vec<Arc<LakeFile>>,
    /// Its rows in memory.
    pub memory: Vec<Arc<RowSet>>,
    /// What is told of the workloads and hosts of its rows.
    pub facts: Arc<FactTable>,
}

/// A part of time; rows of table gap are in it if they overlap it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Inclusive, ns since the Unix epoch.
    pub since: i64,
    /// Exclusive.
    pub until: i64,
}

/// Which rows of a source.
#[derive(Clone, Debug)]
pub struct Query {
    /// From where.
    pub source: Source,
    /// When.
    pub range: Range,
    /// What must be true.
    pub filter: Scan,
}

/// Runs scans.
#[derive(Debug)]
pub struct Engine {
    context: Arc<TaskContext>,
    threads: usize,
    store: ObjectStoreUrl,
    /// Taken when the engine is dropped.
    runtime: Option<Runtime>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Engine {
    /// Makes an engine that reads this lake.
    ///
    /// # Errors
    /// [`Error::Io`] if the spill folder cannot be emptied or made.
    pub fn new(lake: &Lake, options: &EngineOptions) -> Result<Self> {
        let dir = &options.spill_dir;
        match fs::remove_dir_all(dir) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("empty", dir, error)),
        }
        fs::create_dir_all(dir).map_err(|e| Error::io("create directory", dir, e))?;
        let disk = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![dir.clone()]))
            .with_max_temp_directory_size(options.spill_bytes);
        let env: Arc<RuntimeEnv> = RuntimeEnvBuilder::new()
            .with_disk_manager_builder(disk)
            .with_memory_pool(Arc::new(FairSpillPool::new(options.memory_bytes)))
            .build_arc()
            .map_err(Error::scan("set up the query engine"))?;
        let store = ObjectStoreUrl::parse("sumun://lake").map_err(Error::scan("name the lake"))?;
        env.register_object_store(store.as_ref(), lake.store());
        let threads = options.threads.max(1);
        let config = SessionConfig::new()
            .with_target_partitions(threads)
            .with_batch_size(BATCH)
            // Below the smallest pool that is useful.
            .with_sort_spill_reservation_bytes(options.memory_bytes / (16 * threads));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("query")
            .enable_all()
            .build()
            .map_err(|e| Error::io("start threads for", dir, e))?;
        let context = TaskContext::default()
            .with_session_config(config)
            .with_runtime(env);
        Ok(Engine {
            context: Arc::new(context),
            threads,
            store,
            runtime: Some(runtime),
        })
    }

    /// Runs something on the engine's threads.
    pub fn spawn<F>(&self, work: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match &self.runtime {
            Some(runtime) => runtime.spawn(work),
            None => tokio::spawn(work),
        }
    }

    /// The `time` of the newest rows of all queries, newest first, at most
    /// `most`. Newest files first: those that are older than what was found are not read.
    ///
    /// # Errors
    /// [`Error::Scan`], [`Error::Memory`].
    pub async fn newest(&self, queries: &[Query], most: usize) -> Result<Vec<i64>> {
        let mut times = Vec::new();
        if most == 0 {
            return Ok(times);
        }
        let mut files: Vec<(usize, Arc<LakeFile>)> = Vec::new();
        let mut round: Vec<Query> = queries.to_vec();
        for (at, query) in round.iter_mut().enumerate() {
            files.extend(query.source.files.drain(..).map(|file| (at, file)));
        }
        files.sort_by_key(|(_, file)| std::cmp::Reverse(file.max_time));
        let mut files = files.into_iter().peekable();
        let mut share = self.threads;
        loop {
            let floor = if times.len() == most {
                times.last().copied()
            } else {
                None
            };
            let mut left = share;
            while let Some((at, file)) = files
                .next_if(|(_, file)| left > 0 && floor.is_none_or(|floor| file.max_time > floor))
            {
                round[at].source.files.push(file);
                left -= 1;
            }
            if let Some(floor) = floor {
                for query in &mut round {
                    query.range.since = query.range.since.max(floor);
                }
            }
            times.extend(self.newest_of(&round, most).await?);
            times.sort_unstable_by_key(|time| std::cmp::Reverse(*time));
            times.truncate(most);
            let enough = times.len() == most;
            let oldest = times.last().copied();
            let more = files
                .peek()
                .is_some_and(|(_, file)| !enough || oldest.is_none_or(|time| file.max_time > time));
            if !more {
                return Ok(times);
            }
            for query in &mut round {
                query.source.files.clear();
                query.source.memory.clear();
            }
            share *= 2;
        }
    }

    async fn newest_of(&self, queries: &[Query], most: usize) -> Result<Vec<i64>> {
        let mut inputs = Vec::new();
        for query in queries {
            inputs.extend(self.plan(query, Some(&["time"]))?);
        }
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let union = one_of(inputs)?;
        let plan = sorted(union, &["time"], true, Some(most))?;
        let stream =
            execute_stream(plan, Arc::clone(&self.context)).map_err(Error::scan("start a scan"))?;
        let batches: Vec<RecordBatch> = stream
            .try_collect()
            .await
            .map_err(Error::scan("scan for the newest rows"))?;
        let mut times = Vec::new();
        for batch in &batches {
            let column = as_timestamp_nanosecond_array(batch.column(0))
                .map_err(Error::scan("read times"))?;
            times.extend(column.values());
        }
        Ok(times)
    }

    /// Cuts the range of a query into parts of about [`WINDOW`] rows each, oldest
    /// first: read one after the other, each part is sorted in memory, however
    /// many rows there are together. Only times are read for it.
    ///
    /// # Errors
    /// [`Error::Scan`], [`Error::Memory`].
    pub async fn windows(&self, query: &Query) -> Result<Vec<Range>> {
        let whole = vec![query.range];
        if query.source.family == Family::Gap {
            // A gap that overlaps two parts would be in both.
            return Ok(whole);
        }
        let inputs = self.plan(query, Some(&["time"]))?;
        if inputs.is_empty() {
            return Ok(whole);
        }
        let mut stream = execute_stream(one_of(inputs)?, Arc::clone(&self.context))
            .map_err(Error::scan("start a scan"))?;
        let mut sample = Sample::default();
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(Error::scan("scan for times"))?;
            let column = as_timestamp_nanosecond_array(batch.column(0))
                .map_err(Error::scan("read times"))?;
            sample.extend(column.values());
        }
        Ok(sample.windows(query.range))
    }

    /// All rows of a query with all columns of its table, oldest first.
    ///
    /// # Errors
    /// [`Error::Scan`]; the stream fails with what DataFusion says.
    pub fn ordered(&self, query: &Query) -> Result<SendableRecordBatchStream> {
        let schema = query.source.family.schema();
        let inputs = self.plan(query, None)?;
        if inputs.is_empty() {
            let nothing = futures::stream::empty();
            return Ok(Box::pin(RecordBatchStreamAdapter::new(schema, nothing)));
        }
        let union = one_of(inputs)?;
        let keys = ["time", "host_id", "origin_cpu", "origin_seq"];
        let keys: Vec<_> = keys
            .into_iter()
            .filter(|key| schema.index_of(key).is_ok())
            .collect();
        let plan = sorted(union, &keys, false, None)?;
        execute_stream(plan, Arc::clone(&self.context)).map_err(Error::scan("start a scan"))
    }

    /// Plans over the files and over memory, with these columns or all.
    fn plan(&self, query: &Query, columns: Option<&[&str]>) -> Result<Vec<Arc<dyn ExecutionPlan>>> {
        let failed = Error::scan("plan a scan");
        self.try_plan(query, columns).map_err(failed)
    }

    fn try_plan(
        &self,
        query: &Query,
        columns: Option<&[&str]>,
    ) -> PlanResult<Vec<Arc<dyn ExecutionPlan>>> {
        let Source {
            family,
            files,
            memory,
            facts,
        } = &query.source;
        let family = *family;
        let Range { since, until } = query.range;
        // Comparisons of time first: they prune best and cost least.
        let end = if family == Family::Gap {
            "gap_to"
        } else {
            "time"
        };
        let filter = named(end)
            .gt_eq(time_literal(since))
            .and(named("time").lt(time_literal(until)))
            .and(joined(facts, family, query.filter.clone())?);
        let schema = family.schema();
        let wanted: Vec<usize> = match columns {
            None => (0..schema.fields().len()).collect(),
            Some(names) => names.iter().filter_map(|name| family.index(name)).collect(),
        };
        let mut needed: Vec<usize> = filter
            .column_refs()
            .iter()
            .filter_map(|column| family.index(column.name()))
            .collect();
        needed.extend(&wanted);
        needed.sort_unstable();
        needed.dedup();
        let overlaps = |min: i64, max: i64| max >= since && min < until;

        let mut inputs: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        let files: Vec<_> = files
            .iter()
            .filter(|file| file.rows > 0 && overlaps(file.min_time, file.max_time))
            .collect();
        if !files.is_empty() {
            inputs.push(self.over_files(&schema, &files, &filter, &needed)?);
        }
        let sets: Vec<_> = memory
            .iter()
            .filter(|set| overlaps(set.min_time(), set.max_time()))
            .cloned()
            .collect();
        if !sets.is_empty() {
            inputs.push(self.over_memory(family, sets, &filter, &needed)?);
        }
        let projected: SchemaRef = Arc::new(schema.project(&needed)?);
        let predicate = physical(&filter, &projected)?;
        let kept: Vec<usize> = wanted
            .iter()
            .filter_map(|column| needed.iter().position(|known| known == column))
            .collect();
        inputs
            .into_iter()
            .map(|input| {
                // The scans below may pass what they could not judge.
                let filter = FilterExecBuilder::new(Arc::clone(&predicate), input)
                    .apply_projection(Some(kept.clone()))?
                    .build()?;
                Ok(Arc::new(filter) as Arc<dyn ExecutionPlan>)
            })
            .collect()
    }

    fn over_files(
        &self,
        schema: &SchemaRef,
        files: &[&Arc<LakeFile>],
        filter: &Scan,
        needed: &[usize],
    ) -> PlanResult<Arc<dyn ExecutionPlan>> {
        let source = ParquetSource::new(Arc::clone(schema))
            .with_predicate(physical(filter, schema)?)
            .with_pushdown_filters(true)
            .with_reorder_filters(true)
            .with_enable_page_index(true);
        let mut groups = vec![Vec::new(); self.threads.min(files.len())];
        let count = groups.len();
        for (at, file) in files.iter().enumerate() {
            groups[at % count].push(PartitionedFile::new(file.path.clone(), file.bytes));
        }
        let groups = groups.into_iter().map(FileGroup::new).collect();
        let config = FileScanConfigBuilder::new(self.store.clone(), Arc::new(source))
            .with_projection_indices(Some(needed.to_vec()))?
            .with_file_groups(groups)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    fn over_memory(
        &self,
        family: Family,
        sets: Vec<Arc<RowSet>>,
        filter: &Scan,
        needed: &[usize],
    ) -> PlanResult<Arc<dyn ExecutionPlan>> {
        let schema = family.schema();
        let mut judged: Vec<usize> = filter
            .column_refs()
            .iter()
            .filter_map(|column| family.index(column.name()))
            .collect();
        judged.sort_unstable();
        judged.dedup();
        let predicate = physical(filter, &Arc::new(schema.project(&judged)?))?;
        let projected: SchemaRef = Arc::new(schema.project(needed)?);
        let share = sets.len().div_ceil(self.threads);
        let partitions = sets
            .chunks(share)
            .map(|sets| {
                Arc::new(Memory {
                    family,
                    sets: Arc::from(sets),
                    predicate: Arc::clone(&predicate),
                    judged: judged.clone(),
                    needed: needed.to_vec(),
                    schema: Arc::clone(&projected),
                }) as Arc<dyn PartitionStream>
            })
            .collect();
        let none: [LexOrdering; 0] = [];
        Ok(Arc::new(StreamingTableExec::try_new(
            projected, partitions, None, none, false, None,
        )?))
    }
}

/// A share of the rows in memory.
#[derive(Debug)]
struct Memory {
    family: Family,
    sets: Arc<[Arc<RowSet>]>,
    /// Over the columns `judged`.
    predicate: Arc<dyn PhysicalExpr>,
    judged: Vec<usize>,
    needed: Vec<usize>,
    schema: SchemaRef,
}

impl PartitionStream for Memory {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let scan = MemoryScan {
            family: self.family,
            sets: Arc::clone(&self.sets),
            predicate: Arc::clone(&self.predicate),
            judged: self.judged.clone(),
            needed: self.needed.clone(),
        };
        let batches = futures::stream::iter(chunks(&self.sets))
            .map(move |chunk| scan.chunk(&chunk))
            .try_filter(|batch| futures::future::ready(batch.num_rows() > 0));
        Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.schema),
            batches,
        ))
    }
}

/// Set and rows from, to.
type Chunk = Vec<(usize, usize, usize)>;

/// All rows of the sets in portions of about [`BATCH`].
fn chunks(sets: &[Arc<RowSet>]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut chunk: Chunk = Vec::new();
    let mut rows = 0;
    for (at, set) in sets.iter().enumerate() {
        let mut from = 0;
        while from < set.len() {
            let to = set.len().min(from + BATCH - rows);
            chunk.push((at, from, to));
            rows += to - from;
            from = to;
            if rows == BATCH {
                chunks.push(std::mem::take(&mut chunk));
                rows = 0;
            }
        }
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}

struct MemoryScan {
    family: Family,
    sets: Arc<[Arc<RowSet>]>,
    predicate: Arc<dyn PhysicalExpr>,
    judged: Vec<usize>,
    needed: Vec<usize>,
}

impl MemoryScan {
    /// Judges the rows on the columns that the predicate reads, then makes all
    /// columns of those that pass.
    fn chunk(&self, chunk: &Chunk) -> PlanResult<RecordBatch> {
        let external = |error: Error| DataFusionError::External(Box::new(error));
        let sets: Vec<&RowSet> = chunk.iter().map(|(set, _, _)| &*self.sets[*set]).collect();
        let mut picked: Vec<(usize, usize)> = Vec::with_capacity(BATCH);
        for (at, (_, from, to)) in chunk.iter().enumerate() {
            picked.extend((*from..*to).map(|row| (at, row)));
        }
        let judged = gather(self.family, &sets, &picked, &self.judged).map_err(external)?;
        let outcome = self
            .predicate
            .evaluate(&judged)?
            .into_array(judged.num_rows())?;
        let outcome = as_boolean_array(&outcome)?;
        let mut row = 0;
        picked.retain(|_| {
            let passes = outcome.is_valid(row) && outcome.value(row);
            row += 1;
            passes
        });
        gather(self.family, &sets, &picked, &self.needed).map_err(external)
    }
}

/// The expression over a schema.
pub(crate) fn physical(expr: &Scan, schema: &Schema) -> PlanResult<Arc<dyn PhysicalExpr>> {
    let schema = DFSchema::try_from(schema.clone())?;
    create_physical_expr(
        expr,
        &schema,
        &ExecutionProps::new(),
        &PhysicalPlanningContext::default(),
    )
}

fn one_of(mut inputs: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
    match inputs.pop() {
        Some(only) if inputs.is_empty() => Ok(only),
        last => {
            inputs.extend(last);
            UnionExec::try_new(inputs).map_err(Error::scan("join scans"))
        }
    }
}

fn sorted(
    input: Arc<dyn ExecutionPlan>,
    keys: &[&str],
    descending: bool,
    fetch: Option<usize>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let failed = Error::scan("order a scan");
    let schema = input.schema();
    let options = SortOptions {
        descending,
        nulls_first: false,
    };
    let keys: PlanResult<Vec<_>> = keys
        .iter()
        .map(|key| {
            Ok(PhysicalSortExpr::new(
                physical(&named(key), &schema)?,
                options,
            ))
        })
        .collect();
    let ordering = keys.map_err(failed)?;
    let Some(ordering) = LexOrdering::new(ordering) else {
        return Ok(input);
    };
    let sort = SortExec::new(ordering.clone(), input)
        .with_preserve_partitioning(true)
        .with_fetch(fetch);
    let merge = SortPreservingMergeExec::new(ordering, Arc::new(sort)).with_fetch(fetch);
    Ok(Arc::new(merge))
}

/// `time` of each row of a batch of a table.
#[must_use]
pub fn times(batch: &RecordBatch) -> Option<&TimestampNanosecondArray> {
    as_timestamp_nanosecond_array(batch.column_by_name("time")?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_the_range_and_hold_few_rows_each() {
        let range = Range {
            since: -5,
            until: i64::MAX,
        };
        for rows in [0, 1, WINDOW, 10 * WINDOW, 3 * SAMPLE] {
            let mut sample = Sample::default();
            // Two interleaved runs, as of two hosts.
            let times: Vec<_> = (0..rows as i64).map(|n| n / 2 + n % 2 * 1000).collect();
            sample.extend(&times);
            let windows = sample.windows(range);
            assert_eq!(windows.first().map(|first| first.since), Some(range.since));
            assert_eq!(windows.last().map(|last| last.until), Some(range.until));
            for pair in windows.windows(2) {
                assert_eq!(pair[0].until, pair[1].since);
            }
            for window in &windows {
                let within = |time: &&i64| (window.since..window.until).contains(*time);
                let count = times.iter().filter(within).count();
                assert!(count <= 2 * WINDOW, "{count} of {rows}");
            }
        }
    }

    #[test]
    fn many_rows_of_one_time_stay_together() {
        let mut sample = Sample::default();
        sample.extend(&vec![7; 5 * WINDOW]);
        let range = Range { since: 0, until: 9 };
        let windows = sample.windows(range);
        assert_eq!(windows.len(), 2);
    }
}
