//! The agents: who is enrolled, what each of them last said, and how far each
//! of its lanes is delivered.
//!
//! Kept in memory and written to the state database at intervals. A watermark
//! in here is of delivered data only: the batches up to it are durable in the
//! log and visible to queries, whatever an agent claims of its own progress.

mod database;
mod progress;
mod session;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::SqlitePool;
use sumun_proto::v1::{Door, Isolation, Lane, LoadedPolicies, Loss};
use tokio::sync::watch;
use uuid::Uuid;

use self::progress::LaneProgress;
pub use self::progress::Mark;
pub use self::session::Session;
use self::session::bounded;
use crate::state::now_ns;
use crate::tenant::identity::Identity;

/// An agent that says nothing for so long is silent.
pub const SILENT_AFTER: Duration = Duration::from_secs(15);

/// The lanes, in the order of [`AgentStatus::lanes`].
pub const LANES: [Lane; 3] = [Lane::Alert, Lane::Life, Lane::Bulk];

/// Whether an agent is doing its work, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Hooks attached, tree bootstrapped, stream open, heard of lately.
    Online,
    /// Connected, but not attached or bootstrapped yet.
    Starting,
    /// It said goodbye.
    Stopped,
    /// It broke off without a word.
    Silent,
    /// Its certificate has expired.
    Expired,
}

impl State {
    /// `online` or `offline`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Online => "online",
            _ => "offline",
        }
    }

    /// Why it is not online; empty if it is.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            State::Online => "",
            State::Starting => "starting",
            State::Stopped => "stopped",
            State::Silent => "silent",
            State::Expired => "expired",
        }
    }
}

/// How far a lane of an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneStatus {
    /// Which lane.
    pub lane: Lane,
    /// Everything of this lane up to here is delivered, durable and visible;
    /// wall clock of the host, ns since the Unix epoch. 0 = nothing known.
    pub through_ns: i64,
    /// Batches in the agent's spool, as it last said.
    pub spooled_batches: u64,
    /// Their bytes.
    pub spooled_bytes: u64,
    /// Their events.
    pub spooled_events: u64,
}

/// An agent as queries see it.
#[derive(Clone, Debug)]
pub struct AgentStatus {
    /// `host.id`: the UUID of its certificate.
    pub id: String,
    /// `host.name`
    pub name: String,
    /// Its tenant.
    pub tenant: Arc<str>,
    /// When it was enrolled, ns since the Unix epoch, as all times here.
    pub enrolled_ns: i64,
    /// When it was last heard of; 0 = never.
    pub last_seen_ns: i64,
    /// Whether it is online, and why not.
    pub state: State,
    /// Version of the agent.
    pub version: String,
    /// `uname -r` of the host.
    pub kernel: String,
    /// How each kind is seen there.
    pub doors: Vec<Door>,
    /// What it has lost since its hooks were pinned, cumulative.
    pub losses: Vec<Loss>,
    /// What it complains of; empty when all is well.
    pub trouble: String,
    /// For which rule its host is cut off from the network, as it last said; `None` = it is not.
    pub isolation: Option<Isolation>,
    /// What policies it has loaded, as it last said; `None` = it never did.
    pub policies: Option<Arc<LoadedPolicies>>,
    /// End of its newest certificate.
    pub certificate_expires_ns: i64,
    /// Alert, life, bulk.
    pub lanes: Vec<LaneStatus>,
    /// The host's boot, 16 bytes; empty = not known.
    pub boot_id: Vec<u8>,
}

impl AgentStatus {
    /// The status of one lane.
    #[must_use]
    pub fn lane(&self, lane: Lane) -> Option<&LaneStatus> {
        self.lanes.iter().find(|status| status.lane == lane)
    }
}

/// A failed operation of the registry.
#[derive(Debug, thiserror::Error)]
#[error("failed to {0} agents in the state database")]
pub struct Error(&'static str, #[source] sqlx::Error);

/// Why an agent's certificate is not good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such tenant.
    #[error("the certificate's tenant does not exist")]
    UnknownTenant,
    /// No such agent, or of another tenant.
    #[error("the certificate's agent is not enrolled: enrol it again")]
    UnknownAgent,
    /// Revoked.
    #[error("the agent has been revoked")]
    Revoked,
}

/// A batch that is durable and visible.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// Whose it is.
    pub agent: Uuid,
    /// Its lane.
    pub lane: Lane,
    /// Its epoch.
    pub epoch: u64,
    /// The highest number of that epoch and lane.
    pub number: u64,
    /// What the batch itself says of the lane.
    pub mark: Option<Mark>,
}

/// All agents of all tenants. Clones are handles to the same registry.
#[derive(Clone, Debug)]
pub struct Registry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    database: SqlitePool,
    inner: Mutex<Inner>,
    /// Counts changes of watermarks and states.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    tenants: Vec<Arc<str>>,
    agents: HashMap<Uuid, Agent>,
}

#[derive(Debug)]
struct Agent {
    tenant: Arc<str>,
    name: String,
    enrolled_ns: i64,
    certificate_expires_ns: i64,
    revoked: bool,
    last_seen_ns: i64,
    /// When it was last heard of by this process: immune to a set clock.
    heard: Option<Instant>,
    stopped_ns: i64,
    version: String,
    kernel: String,
    boot_id: Vec<u8>,
    doors: Vec<Door>,
    losses: Vec<Loss>,
    trouble: String,
    isolation: Option<Isolation>,
    policies: Option<Arc<LoadedPolicies>>,
    /// They are not in the database yet.
    policies_dirty: bool,
    attached: bool,
    bootstrapped: bool,
    streams: u32,
    /// Streams that wait for this collector: their silence is not the agent's.
    waiting: u32,
    lanes: [LaneProgress; 3],
    dirty: bool,
}

impl Agent {
    /// One that has said nothing yet.
    fn new(tenant: Arc<str>, name: String, enrolled_ns: i64, expires_ns: i64) -> Self {
        Agent {
            tenant,
            name,
            enrolled_ns,
            certificate_expires_ns: expires_ns,
            revoked: false,
            last_seen_ns: 0,
            heard: None,
            stopped_ns: 0,
            version: String::new(),
            kernel: String::new(),
            boot_id: Vec::new(),
            doors: Vec::new(),
            losses: Vec::new(),
            trouble: String::new(),
            isolation: None,
            policies: None,
            policies_dirty: false,
            attached: false,
            bootstrapped: false,
            streams: 0,
            waiting: 0,
            lanes: Default::default(),
            dirty: false,
        }
    }

    fn state(&self, now_ns: i64) -> State {
        let expired = self.certificate_expires_ns <= now_ns;
        if self.streams == 0 {
            return if expired {
                State::Expired
            } else if self.stopped_ns != 0 {
                State::Stopped
            } else {
                State::Silent
            };
        }
        let heard = self.heard.is_some_and(|at| at.elapsed() < SILENT_AFTER);
        if self.stopped_ns != 0 {
            State::Stopped
        } else if !heard && self.waiting == 0 {
            State::Silent
        } else if self.attached && self.bootstrapped {
            State::Online
        } else {
            State::Starting
        }
    }

    fn touch(&mut self) {
        self.heard = Some(Instant::now());
        self.last_seen_ns = now_ns();
        self.dirty = true;
    }

    fn lane(&mut self, lane: Lane) -> Option<&mut LaneProgress> {
        let index = LANES.iter().position(|known| *known == lane)?;
        Some(&mut self.lanes[index])
    }
}

impl Registry {
    /// Reads tenants and agents from the state database.
    ///
    /// # Errors
    /// The database failed.
    pub async fn load(database: SqlitePool) -> Result<Self, Error> {
        let inner = database::read(&database)
            .await
            .map_err(|error| Error("read", error))?;
        let (changed, _) = watch::channel(0);
        Ok(Registry {
            shared: Arc::new(Shared {
                database,
                inner: Mutex::new(inner),
                changed,
            }),
        })
    }

    /// Everything known of a tenant's agents, by name.
    #[must_use]
    pub fn snapshot(&self, tenant: &str) -> Vec<AgentStatus> {
        let now = now_ns();
        let inner = self.lock();
        let mut all: Vec<AgentStatus> = inner
            .agents
            .iter()
            .filter(|(_, agent)| &*agent.tenant == tenant)
            .map(|(id, agent)| AgentStatus {
                id: id.hyphenated().to_string(),
                name: agent.name.clone(),
                tenant: Arc::clone(&agent.tenant),
                enrolled_ns: agent.enrolled_ns,
                last_seen_ns: agent.last_seen_ns,
                state: agent.state(now),
                version: agent.version.clone(),
                kernel: agent.kernel.clone(),
                doors: agent.doors.clone(),
                losses: agent.losses.clone(),
                trouble: agent.trouble.clone(),
                isolation: agent.isolation.clone(),
                policies: agent.policies.clone(),
                certificate_expires_ns: agent.certificate_expires_ns,
                lanes: LANES
                    .iter()
                    .zip(&agent.lanes)
                    .map(|(lane, progress)| LaneStatus {
                        lane: *lane,
                        through_ns: progress.mark.wall_ns,
                        spooled_batches: progress.spooled_batches,
                        spooled_bytes: progress.spooled_bytes,
                        spooled_events: progress.spooled_events,
                    })
                    .collect(),
                boot_id: agent.boot_id.clone(),
            })
            .collect();
        all.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        all
    }

    /// Sees every change of a watermark or a state.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Waits until every agent of the tenant that `wanted` picks and that is
    /// online has all of `lanes` delivered beyond `time_ns`, at most for
    /// `patience`. Agents that are offline are not waited for.
    pub async fn wait_through(
        &self,
        tenant: &str,
        wanted: impl Fn(&str, &str) -> bool,
        lanes: &[Lane],
        time_ns: i64,
        patience: Duration,
    ) {
        let mut changed = self.subscribe();
        let passed = || {
            let now = now_ns();
            self.lock()
                .agents
                .iter()
                .filter(|(id, agent)| {
                    &*agent.tenant == tenant
                        && agent.state(now) == State::Online
                        && wanted(&id.hyphenated().to_string(), &agent.name)
                })
                .all(|(_, agent)| {
                    LANES.iter().zip(&agent.lanes).all(|(lane, progress)| {
                        !lanes.contains(lane) || progress.mark.wall_ns >= time_ns
                    })
                })
        };
        // Elapsed is an answer too: the caller reads the watermarks themselves.
        let _ = tokio::time::timeout(patience, async {
            while !passed() {
                if changed.changed().await.is_err() {
                    return;
                }
                // Heartbeats of many hosts come in bunches: look once for all.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Whether there is a tenant of this name.
    #[must_use]
    pub fn has_tenant(&self, name: &str) -> bool {
        self.lock().tenants.iter().any(|tenant| **tenant == *name)
    }

    /// Whether the certificate's tenant and agent exist and are not revoked.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, identity: &Identity) -> Result<(), Refusal> {
        let inner = self.lock();
        if !inner.tenants.contains(&identity.tenant) {
            return Err(Refusal::UnknownTenant);
        }
        match inner.agents.get(&identity.agent) {
            Some(agent) if agent.tenant != identity.tenant => Err(Refusal::UnknownAgent),
            Some(agent) if agent.revoked => Err(Refusal::Revoked),
            Some(_) => Ok(()),
            None => Err(Refusal::UnknownAgent),
        }
    }

    /// Takes note of an agent that has just been revoked in the database: it is refused from its next message on.
    pub fn revoke(&self, agent: Uuid) {
        if let Some(agent) = self.lock().agents.get_mut(&agent) {
            agent.revoked = true;
        }
    }

    /// Takes note of an agent that has just been written to the database.
    pub fn enrolled(&self, identity: &Identity, name: &str, expires_ns: i64, enrolled_ns: i64) {
        let tenant = Arc::clone(&identity.tenant);
        let agent = Agent::new(tenant, bounded(name), enrolled_ns, expires_ns);
        self.lock().agents.insert(identity.agent, agent);
        self.announce();
    }

    /// Writes the end of a renewed certificate.
    ///
    /// # Errors
    /// The database failed.
    pub async fn renewed(&self, identity: &Identity, expires_ns: i64) -> Result<(), Error> {
        sqlx::query("UPDATE agent SET certificate_expires_ns = ? WHERE id = ?")
            .bind(expires_ns)
            .bind(identity.agent.hyphenated().to_string())
            .execute(&self.shared.database)
            .await
            .map_err(|error| Error("write", error))?;
        self.expires(identity, expires_ns);
        Ok(())
    }

    /// Takes note of the end of a certificate that has just been written to the database.
    pub fn expires(&self, identity: &Identity, expires_ns: i64) {
        self.change(identity.agent, |agent| {
            agent.certificate_expires_ns = expires_ns;
        });
    }

    /// A batch is durable and visible.
    pub fn delivered(&self, delivered: Delivered) {
        self.change(delivered.agent, |agent| {
            agent.dirty = true;
            if let Some(lane) = agent.lane(delivered.lane) {
                lane.deliver(delivered.epoch, delivered.number, delivered.mark);
            }
        });
    }

    /// How far a lane is delivered; the default if nothing is known.
    #[must_use]
    pub fn mark(&self, agent: Uuid, lane: Lane) -> Mark {
        let mut inner = self.lock();
        let progress = inner
            .agents
            .get_mut(&agent)
            .and_then(|agent| agent.lane(lane));
        progress
            .map(|progress| progress.mark.clone())
            .unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        let inner = &self.shared.inner;
        inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, agent: Uuid, change: impl FnOnce(&mut Agent)) {
        if let Some(agent) = self.lock().agents.get_mut(&agent) {
            change(agent);
        }
        self.announce();
    }

    fn announce(&self) {
        self.shared
            .changed
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}
