//! The service `Query`: searches, process trees, agents, and with every answer
//! whether it is complete.

mod answer;
mod completeness;
mod scope;
#[cfg(test)]
mod tests;
mod tree;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use sumun_lake::engine::Range;
use sumun_lake::{Engine, EngineOptions, Family, scan};
use sumun_policy::{Lists, Predicate};
use sumun_proto::FieldId;
use sumun_proto::catalogue::lane_name;
use sumun_proto::v1::query_server::Query;
use sumun_proto::v1::{
    Agent, AgentLane, AgentsReply, AgentsRequest, Kind, Lane, SearchReply, SearchRequest, Table,
    TreeRequest,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::error;

use crate::ingest::writer::chain;
use crate::state::now_ns;
use crate::store::{Snapshot, Store};
use crate::tenant::registry::{AgentStatus, Registry};
use crate::tenant::token::Admin;

use answer::Answer;
use completeness::Asked;

/// How long a query whose end is now waits for watermarks to pass it.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a query waits for its turn.
const TURN: Duration = Duration::from_secs(10);
/// Messages that wait for a slow reader of an answer; the query waits when it is full.
const REPLIES: usize = 4;

/// Bounds of all queries together.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Memory of all running queries; what has to be sorted beyond it is spilled.
    pub memory_bytes: usize,
    /// Folder of spilled data, emptied at start.
    pub spill_dir: PathBuf,
    /// Bound of that folder.
    pub spill_bytes: u64,
    /// Threads that run queries.
    pub threads: usize,
    /// Queries that run at once; more wait for their turn.
    pub running: usize,
}

impl Limits {
    /// The defaults, spilling below a folder.
    #[must_use]
    pub fn new(spill_dir: PathBuf) -> Self {
        Limits {
            memory_bytes: 512 * 1024 * 1024,
            spill_dir,
            spill_bytes: 16 * 1024 * 1024 * 1024,
            threads: std::thread::available_parallelism().map_or(2, usize::from),
            running: 4,
        }
    }
}

/// The service `Query`. The tenant is the admin token's.
#[derive(Clone, Debug)]
pub struct QueryService {
    store: Store,
    registry: Registry,
    engine: Arc<Engine>,
    turns: Arc<Semaphore>,
}

type Replies = Pin<Box<dyn Stream<Item = Result<SearchReply, Status>> + Send>>;

impl QueryService {
    /// Makes the service.
    ///
    /// # Errors
    /// The folder for spilled data cannot be used.
    pub fn new(
        store: Store,
        registry: Registry,
        limits: &Limits,
    ) -> Result<Self, sumun_lake::Error> {
        let engine = Engine::new(
            store.lake(),
            &EngineOptions {
                memory_bytes: limits.memory_bytes,
                spill_dir: limits.spill_dir.clone(),
                spill_bytes: limits.spill_bytes,
                threads: limits.threads,
            },
        )?;
        Ok(QueryService {
            store,
            registry,
            engine: Arc::new(engine),
            turns: Arc::new(Semaphore::new(limits.running.max(1))),
        })
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, Status> {
        let turns = Arc::clone(&self.turns);
        match tokio::time::timeout(TURN, turns.acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(Status::resource_exhausted(
                "too many queries are running: try again",
            )),
        }
    }

    /// What is asked, what is known of the hosts, and the rows, in this order: the
    /// rows are never older than the watermarks.
    async fn look(&self, tenant: &str, asked: &Asked, wait: bool) -> (Vec<AgentStatus>, Snapshot) {
        if wait {
            self.registry
                .wait_through(
                    tenant,
                    |id, name| asked.is_about(id, name),
                    &asked.lanes,
                    asked.range.until,
                    PATIENCE,
                )
                .await;
        }
        let hosts = self
            .registry
            .snapshot(tenant)
            .into_iter()
            .filter(|host| asked.is_about(&host.id, &host.name))
            .collect();
        (hosts, self.store.snapshot(tenant))
    }

    async fn run_search(&self, tenant: &str, request: SearchRequest) -> Result<Replies, Status> {
        let predicate = parse(request.r#where.clone()).await?;
        let range = range(request.since_ns, request.until_ns)?;
        let table = request.table();
        let families: Vec<Family> = match table {
            Table::Unspecified => return Err(Status::invalid_argument("no table was named")),
            Table::Events => Family::EVENTS.to_vec(),
            Table::Alerts => vec![Family::Alert],
            Table::Gaps => vec![Family::Gap],
        }
        .into_iter()
        .filter(|family| scan::can_match_in(&predicate, *family))
        .collect();
        let kinds = match table {
            Table::Events => scan::kinds(&predicate),
            _ => Vec::new(),
        };
        let asked = Asked {
            lanes: lanes(table, &families),
            kinds,
            names: scan::allowed(&predicate, FieldId::HostName),
            ids: scan::allowed(&predicate, FieldId::HostId),
            gaps: table != Table::Gaps,
            predicate,
            range,
        };
        let turn = self.turn().await?;
        let wait = request.until_ns.is_none();
        let (hosts, snapshot) = self.look(tenant, &asked, wait).await;
        let mut queries = Vec::new();
        for family in families {
            let filter = scan::expression(&asked.predicate, family).map_err(|e| failed(&e))?;
            queries.push(sumun_lake::engine::Query {
                source: snapshot.table_of(family, asked.ids.as_deref()),
                range,
                filter,
            });
        }
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
        Ok(self.answer(turn, asked, hosts, snapshot, queries, limit))
    }

    /// Runs the queries on the engine's threads.
    fn answer(
        &self,
        turn: OwnedSemaphorePermit,
        asked: Asked,
        hosts: Vec<AgentStatus>,
        snapshot: Snapshot,
        queries: Vec<sumun_lake::engine::Query>,
        limit: usize,
    ) -> Replies {
        let (sender, replies) = mpsc::channel(REPLIES);
        let engine = Arc::clone(&self.engine);
        self.engine.spawn(async move {
            let answer = Answer {
                engine: &engine,
                replies: &sender,
            };
            let done = async {
                let truncated = answer.rows(queries, limit).await?;
                let complete =
                    completeness::of(&engine, &asked, &hosts, &snapshot, truncated).await?;
                answer.completeness(complete).await
            };
            let ended = tokio::select! {
                ended = done => ended,
                // Nobody reads on: scans that have found nothing yet end too.
                () = sender.closed() => Err(answer::Stop::Gone),
            };
            if let Err(answer::Stop::Failed(error)) = ended {
                // The reader may be gone; then nobody waits for this.
                let _ = sender.send(Err(failed(&error))).await;
            }
            drop(turn);
        });
        Box::pin(ReceiverStream::new(replies))
    }
}

#[tonic::async_trait]
impl Query for QueryService {
    type SearchStream = Replies;
    type TreeStream = Replies;

    async fn search(
        &self,
        request: Request<SearchRequest>,
    ) -> Result<Response<Self::SearchStream>, Status> {
        let tenant = tenant(&request)?;
        let replies = self.run_search(&tenant, request.into_inner()).await?;
        Ok(Response::new(replies))
    }

    async fn tree(
        &self,
        request: Request<TreeRequest>,
    ) -> Result<Response<Self::TreeStream>, Status> {
        let tenant = tenant(&request)?;
        let replies = self.run_tree(&tenant, request.into_inner()).await?;
        Ok(Response::new(replies))
    }

    async fn agents(
        &self,
        request: Request<AgentsRequest>,
    ) -> Result<Response<AgentsReply>, Status> {
        let tenant = tenant(&request)?;
        let AgentsRequest {
            host: wanted,
            policies,
        } = request.into_inner();
        let agents = self
            .registry
            .snapshot(&tenant)
            .into_iter()
            .filter(|agent| wanted.is_empty() || agent.id == wanted || agent.name == wanted)
            .map(|status| agent(status, policies))
            .collect();
        Ok(Response::new(AgentsReply { agents }))
    }
}

fn tenant<T>(request: &Request<T>) -> Result<Arc<str>, Status> {
    match request.extensions().get::<Admin>() {
        Some(admin) => Ok(Arc::clone(&admin.tenant)),
        None => Err(Status::unauthenticated("this needs an admin token")),
    }
}

/// Parses on a thread that may block.
async fn parse(text: String) -> Result<Predicate, Status> {
    if text.trim().is_empty() {
        return Ok(Predicate::everything());
    }
    let parsed = tokio::task::spawn_blocking(move || Predicate::parse(&text, &Lists::new())).await;
    match parsed {
        Ok(Ok(predicate)) => Ok(predicate),
        Ok(Err(problems)) => {
            let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
            Err(Status::invalid_argument(lines.join("\n")))
        }
        Err(_) => Err(Status::internal("the predicate could not be parsed")),
    }
}

fn range(since: i64, until: Option<i64>) -> Result<Range, Status> {
    let until = until.unwrap_or_else(now_ns);
    if since >= until {
        return Err(Status::invalid_argument(
            "the range is empty: since is not before until",
        ));
    }
    Ok(Range { since, until })
}

fn lanes(table: Table, families: &[Family]) -> Vec<Lane> {
    match table {
        Table::Alerts => vec![Lane::Alert],
        Table::Gaps => vec![Lane::Alert, Lane::Life, Lane::Bulk],
        _ => {
            let mut lanes: Vec<_> = families.iter().map(|family| lane_of(*family)).collect();
            lanes.dedup();
            lanes
        }
    }
}

/// The lane that delivers a table's rows.
fn lane_of(family: Family) -> Lane {
    match family {
        Family::Process => Lane::Life,
        Family::File | Family::Network | Family::Privilege | Family::Kernel => Lane::Bulk,
        Family::Alert | Family::Gap => Lane::Alert,
    }
}

/// The lane that delivers a kind.
fn lane_of_kind(kind: Kind) -> Lane {
    Family::of_kind(kind).map_or(Lane::Unspecified, lane_of)
}

fn failed(error: &sumun_lake::Error) -> Status {
    match error {
        sumun_lake::Error::Memory => Status::resource_exhausted(error.to_string()),
        _ => {
            error!(error = %chain(error), "a query failed");
            Status::internal(format!("the query failed: {}", chain(error)))
        }
    }
}

fn agent(status: AgentStatus, policies: bool) -> Agent {
    Agent {
        policies: status
            .policies
            .filter(|_| policies)
            .map(|policies| (*policies).clone()),
        id: status.id,
        name: status.name,
        state: status.state.name().to_owned(),
        reason: status.state.reason().to_owned(),
        version: status.version,
        kernel: status.kernel,
        enrolled_ns: status.enrolled_ns,
        last_seen_ns: status.last_seen_ns,
        certificate_expires_ns: status.certificate_expires_ns,
        lanes: status
            .lanes
            .iter()
            .map(|lane| AgentLane {
                lane: lane_name(lane.lane).to_owned(),
                through_ns: lane.through_ns,
                spooled_batches: lane.spooled_batches,
                spooled_bytes: lane.spooled_bytes,
                spooled_events: lane.spooled_events,
            })
            .collect(),
        losses: status.losses,
        doors: status.doors,
        trouble: status.trouble,
        isolation: status.isolation,
    }
}
