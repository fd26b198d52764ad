//! The agents: who is enrolled, what each of them last said, and how far each
//! of its lanes is delivered.
//!
//! Kept in memory and written to the state database at intervals. A watermark
//! in here is of delivered data only: the batches up to it are durable in the
//! log and visible to queries, whatever an agent claims of its own progress.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prost::Message as _;
use sqlx::{Row, SqlitePool};
use sumun_policy::report;
use sumun_proto::v1::{
    Door, Goodbye, Heartbeat, Hello, Isolation, Lane, LaneState, LoadedPolicies, Loss,
};
use tokio::sync::watch;
use uuid::Uuid;

use crate::state::now_ns;
use crate::tenant::identity::Identity;

/// An agent that says nothing for so long is silent.
pub const SILENT_AFTER: Duration = Duration::from_secs(15);

/// The lanes, in the order of [`AgentStatus::lanes`].
pub const LANES: [Lane; 3] = [Lane::Alert, Lane::Life, Lane::Bulk];

/// Claims of a lane whose batches have not all arrived; the oldest is given up
/// for a newer one beyond this, which only makes the watermark later.
const CLAIMS_MAX: usize = 64;
/// Longest text of an agent's own that is kept, in bytes.
const TEXT_MAX: usize = 1024;
/// Most entries of a list of an agent's own that are kept.
const LIST_MAX: usize = 4096;

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

/// A point of a lane: delivered up to here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The boot that the time belongs to.
    pub boot_id: Vec<u8>,
    /// Boot-time clock, ns.
    pub boot_ns: u64,
    /// The same in wall clock, ns since the Unix epoch.
    pub wall_ns: i64,
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

#[derive(Debug, Default)]
struct LaneProgress {
    mark: Mark,
    /// Highest number delivered by epoch, of the newest few epochs.
    delivered: Vec<(u64, u64)>,
    /// What heartbeats said of batches that had not all arrived; oldest first.
    claims: Vec<Claim>,
    spooled_batches: u64,
    spooled_bytes: u64,
    spooled_events: u64,
}

#[derive(Debug)]
struct Claim {
    epoch: u64,
    number: u64,
    mark: Mark,
}

/// Epochs of a lane whose progress is remembered for claims.
const EPOCHS_KEPT: usize = 4;

impl LaneProgress {
    fn deliver(&mut self, epoch: u64, number: u64, mark: Option<Mark>) {
        match self.delivered.iter_mut().find(|(known, _)| *known == epoch) {
            Some((_, high)) => *high = number.max(*high),
            None => {
                if self.delivered.len() == EPOCHS_KEPT {
                    self.delivered.remove(0);
                }
                self.delivered.push((epoch, number));
            }
        }
        if let Some(mark) = mark {
            self.advance(mark);
        }
        self.settle();
    }

    fn claim(&mut self, state: &LaneState, mark: Mark) {
        self.spooled_batches = state.spooled_batches;
        self.spooled_bytes = state.spooled_bytes;
        self.spooled_events = state.spooled_events;
        if state.through_boot_ns == 0 {
            return;
        }
        if state.number == 0 {
            // Nothing written in this epoch: what counts is what older epochs left.
            if state.spooled_batches == 0 {
                self.claims.clear();
                self.advance(mark);
            }
            return;
        }
        if self.claims.len() == CLAIMS_MAX {
            // Settling goes oldest first, so dropping from the middle of the
            // backlog keeps both the next step and the newest word.
            self.claims.remove(CLAIMS_MAX / 2);
        }
        self.claims.push(Claim {
            epoch: state.epoch,
            number: state.number,
            mark,
        });
        self.settle();
    }

    /// A lane is delivered in order, across epochs too: if the number is
    /// there, so is everything older.
    fn settle(&mut self) {
        let settled = self.claims.iter().rposition(|claim| {
            self.delivered
                .iter()
                .any(|(epoch, high)| *epoch == claim.epoch && *high >= claim.number)
        });
        if let Some(last) = settled {
            let marks: Vec<Mark> = self.claims.drain(..=last).map(|claim| claim.mark).collect();
            for mark in marks {
                self.advance(mark);
            }
        }
    }

    /// Time goes forward within a boot. Its wall clock may be set back, and
    /// then the newer word counts: earlier times may still come.
    fn advance(&mut self, mark: Mark) {
        if mark.boot_id != self.mark.boot_id || mark.boot_ns >= self.mark.boot_ns {
            self.mark = mark;
        }
    }
}

impl Agent {
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
        let inner = read(&database)
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
        let agent = Agent {
            tenant: Arc::clone(&identity.tenant),
            name: bounded(name),
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
        };
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

    /// A stream begins. It counts as open until the returned value is dropped.
    #[must_use]
    pub fn connect(&self, identity: &Identity, hello: &Hello) -> Session {
        self.change(identity.agent, |agent| {
            if !hello.host_name.is_empty() {
                agent.name = bounded(&hello.host_name);
            }
            agent.version = bounded(&hello.version);
            agent.kernel = bounded(&hello.kernel);
            agent.doors = hello.doors.iter().take(LIST_MAX).cloned().collect();
            if agent.boot_id != hello.boot_id || agent.streams == 0 {
                agent.attached = false;
                agent.bootstrapped = false;
            }
            agent.boot_id = hello.boot_id.clone();
            agent.stopped_ns = 0;
            agent.streams += 1;
            agent.touch();
        });
        Session {
            registry: self.clone(),
            agent: identity.agent,
            waits: AtomicBool::new(false),
        }
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

    /// Writes what has changed to the state database.
    ///
    /// # Errors
    /// The database failed; the changes are written the next time.
    pub async fn persist(&self) -> Result<(), Error> {
        struct Changed {
            id: Uuid,
            name: String,
            version: String,
            kernel: String,
            last_seen_ns: i64,
            stopped_ns: i64,
            marks: Vec<(Lane, Mark)>,
            /// When they have changed.
            policies: Option<Vec<u8>>,
        }
        let changed: Vec<Changed> = {
            let mut inner = self.lock();
            let dirty = inner.agents.iter_mut().filter(|(_, agent)| agent.dirty);
            dirty
                .map(|(id, agent)| {
                    agent.dirty = false;
                    let policies = match &agent.policies {
                        Some(policies) if agent.policies_dirty => Some(policies.encode_to_vec()),
                        _ => None,
                    };
                    agent.policies_dirty = false;
                    Changed {
                        policies,
                        id: *id,
                        name: agent.name.clone(),
                        version: agent.version.clone(),
                        kernel: agent.kernel.clone(),
                        last_seen_ns: agent.last_seen_ns,
                        stopped_ns: agent.stopped_ns,
                        marks: LANES
                            .iter()
                            .zip(&agent.lanes)
                            .filter(|(_, progress)| progress.mark.boot_ns != 0)
                            .map(|(lane, progress)| (*lane, progress.mark.clone()))
                            .collect(),
                    }
                })
                .collect()
        };
        if changed.is_empty() {
            return Ok(());
        }
        let result = async {
            let mut tx = self.shared.database.begin().await?;
            for agent in &changed {
                let id = agent.id.hyphenated().to_string();
                sqlx::query(
                    "UPDATE agent SET name = ?, version = ?, kernel = ?, last_seen_ns = ?, \
                     stopped_ns = ? WHERE id = ?",
                )
                .bind(&agent.name)
                .bind(&agent.version)
                .bind(&agent.kernel)
                .bind(agent.last_seen_ns)
                .bind(agent.stopped_ns)
                .bind(&id)
                .execute(&mut *tx)
                .await?;
                if let Some(policies) = &agent.policies {
                    sqlx::query("UPDATE agent SET policies = ? WHERE id = ?")
                        .bind(policies)
                        .bind(&id)
                        .execute(&mut *tx)
                        .await?;
                }
                for (lane, mark) in &agent.marks {
                    sqlx::query(
                        "INSERT INTO agent_lane (agent, lane, boot_id, boot_ns, through_ns) \
                         VALUES (?, ?, ?, ?, ?) ON CONFLICT (agent, lane) DO UPDATE SET \
                         boot_id = excluded.boot_id, boot_ns = excluded.boot_ns, \
                         through_ns = excluded.through_ns",
                    )
                    .bind(&id)
                    .bind(*lane as i32)
                    .bind(&mark.boot_id)
                    .bind(mark.boot_ns.cast_signed())
                    .bind(mark.wall_ns)
                    .execute(&mut *tx)
                    .await?;
                }
            }
            tx.commit().await
        }
        .await;
        if let Err(error) = result {
            let mut inner = self.lock();
            for changed in &changed {
                if let Some(agent) = inner.agents.get_mut(&changed.id) {
                    agent.dirty = true;
                    agent.policies_dirty |= changed.policies.is_some();
                }
            }
            return Err(Error("write", error));
        }
        Ok(())
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

/// An open stream of an agent.
#[derive(Debug)]
pub struct Session {
    registry: Registry,
    agent: Uuid,
    waits: AtomicBool,
}

impl Session {
    /// Anything at all was heard.
    pub fn heard(&self) {
        self.registry.change(self.agent, Agent::touch);
    }

    /// The stream waits for this collector from now on, or no longer.
    pub fn waits(&self, waits: bool) {
        if self.waits.swap(waits, Ordering::Relaxed) == waits {
            return;
        }
        self.registry.change(self.agent, |agent| match waits {
            true => agent.waiting += 1,
            false => {
                agent.waiting = agent.waiting.saturating_sub(1);
                agent.touch();
            }
        });
    }

    /// A heartbeat.
    pub fn heartbeat(&self, beat: &Heartbeat) {
        self.registry.change(self.agent, |agent| {
            agent.touch();
            agent.attached = beat.attached;
            agent.bootstrapped = beat.bootstrapped;
            agent.trouble = bounded(&beat.trouble);
            agent.isolation = beat.isolation.as_ref().map(isolation);
            agent.losses = beat.losses.iter().take(LIST_MAX).cloned().collect();
            if let Some(policies) = &beat.policies {
                let mut policies = policies.clone();
                report::bound(&mut policies);
                agent.policies = Some(Arc::new(policies));
                agent.policies_dirty = true;
            }
            if !beat.boot_id.is_empty() {
                agent.boot_id = beat.boot_id.clone();
            }
            let boot_id = agent.boot_id.clone();
            claim_all(agent, &beat.lanes, &boot_id, beat.wall_offset_ns);
        });
    }

    /// A goodbye: the agent stops on purpose.
    pub fn goodbye(&self, goodbye: &Goodbye) {
        self.registry.change(self.agent, |agent| {
            agent.touch();
            agent.stopped_ns = now_ns();
            let boot_id = agent.boot_id.clone();
            claim_all(agent, &goodbye.lanes, &boot_id, goodbye.wall_offset_ns);
        });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.waits(false);
        self.registry.change(self.agent, |agent| {
            agent.streams = agent.streams.saturating_sub(1);
            agent.dirty = true;
        });
    }
}

fn claim_all(agent: &mut Agent, lanes: &[LaneState], boot_id: &[u8], wall_offset_ns: i64) {
    for state in lanes.iter().take(LANES.len()) {
        let mark = Mark {
            boot_id: boot_id.to_vec(),
            boot_ns: state.through_boot_ns,
            wall_ns: wall_offset_ns.wrapping_add(state.through_boot_ns.cast_signed()),
        };
        if let Some(lane) = agent.lane(state.lane()) {
            lane.claim(state, mark);
        }
    }
}

fn bounded(text: &str) -> String {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// What is kept of an isolation.
fn isolation(told: &Isolation) -> Isolation {
    Isolation {
        policy: bounded(&told.policy),
        rule: bounded(&told.rule),
        cgroup: bounded(&told.cgroup),
        allowed: told
            .allowed
            .iter()
            .take(LIST_MAX)
            .map(|text| bounded(text))
            .collect(),
        ..*told
    }
}

async fn read(database: &SqlitePool) -> Result<Inner, sqlx::Error> {
    let mut inner = Inner::default();
    for row in sqlx::query("SELECT name FROM tenant")
        .fetch_all(database)
        .await?
    {
        inner.tenants.push(row.try_get::<String, _>("name")?.into());
    }
    let rows = sqlx::query(
        "SELECT id, tenant, name, enrolled_ns, certificate_expires_ns, revoked_ns, last_seen_ns, \
         stopped_ns, version, kernel, policies FROM agent",
    );
    for row in rows.fetch_all(database).await? {
        let id: String = row.try_get("id")?;
        let Ok(id) = Uuid::try_parse(&id) else {
            continue;
        };
        let tenant: String = row.try_get("tenant")?;
        let policies: Vec<u8> = row.try_get("policies")?;
        let agent = Agent {
            tenant: tenant.into(),
            name: row.try_get("name")?,
            enrolled_ns: row.try_get("enrolled_ns")?,
            certificate_expires_ns: row.try_get("certificate_expires_ns")?,
            revoked: row.try_get::<i64, _>("revoked_ns")? != 0,
            last_seen_ns: row.try_get("last_seen_ns")?,
            heard: None,
            stopped_ns: row.try_get("stopped_ns")?,
            version: row.try_get("version")?,
            kernel: row.try_get("kernel")?,
            boot_id: Vec::new(),
            doors: Vec::new(),
            losses: Vec::new(),
            trouble: String::new(),
            isolation: None,
            policies: (!policies.is_empty())
                .then(|| {
                    LoadedPolicies::decode(policies.as_slice())
                        .ok()
                        .map(Arc::new)
                })
                .flatten(),
            policies_dirty: false,
            attached: false,
            bootstrapped: false,
            streams: 0,
            waiting: 0,
            lanes: Default::default(),
            dirty: false,
        };
        inner.agents.insert(id, agent);
    }
    let rows = sqlx::query("SELECT agent, lane, boot_id, boot_ns, through_ns FROM agent_lane");
    for row in rows.fetch_all(database).await? {
        let id: String = row.try_get("agent")?;
        let lane: i32 = row.try_get("lane")?;
        let (Ok(id), Ok(lane)) = (Uuid::try_parse(&id), Lane::try_from(lane)) else {
            continue;
        };
        let Some(progress) = inner.agents.get_mut(&id).and_then(|agent| agent.lane(lane)) else {
            continue;
        };
        progress.mark = Mark {
            boot_id: row.try_get("boot_id")?,
            boot_ns: row.try_get::<i64, _>("boot_ns")?.cast_unsigned(),
            wall_ns: row.try_get("through_ns")?,
        };
    }
    // What heartbeats claim is settled against these; the newest epochs last.
    let rows = sqlx::query("SELECT agent, epoch, lane, high FROM ingest_lane ORDER BY updated_ns");
    for row in rows.fetch_all(database).await? {
        let id: String = row.try_get("agent")?;
        let epoch: Vec<u8> = row.try_get("epoch")?;
        let lane: i32 = row.try_get("lane")?;
        let (Ok(id), Ok(epoch), Ok(lane)) = (
            Uuid::try_parse(&id),
            <[u8; 8]>::try_from(epoch.as_slice()),
            Lane::try_from(lane),
        ) else {
            continue;
        };
        if let Some(progress) = inner.agents.get_mut(&id).and_then(|agent| agent.lane(lane)) {
            let high: i64 = row.try_get("high")?;
            progress.deliver(u64::from_be_bytes(epoch), high.cast_unsigned(), None);
        }
    }
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(epoch: u64, number: u64, through: u64, spooled: u64) -> LaneState {
        LaneState {
            lane: Lane::Life as i32,
            through_boot_ns: through,
            epoch,
            number,
            spooled_batches: spooled,
            ..LaneState::default()
        }
    }

    fn mark(boot_ns: u64) -> Mark {
        Mark {
            boot_id: vec![1; 16],
            boot_ns,
            wall_ns: boot_ns.cast_signed() + 1000,
        }
    }

    #[test]
    fn a_claim_counts_once_its_batches_are_here() {
        let mut lane = LaneProgress::default();
        lane.claim(&state(7, 2, 50, 2), mark(50));
        assert_eq!(lane.mark.boot_ns, 0);
        lane.deliver(7, 1, None);
        assert_eq!(lane.mark.boot_ns, 0);
        lane.deliver(7, 2, None);
        assert_eq!(lane.mark.wall_ns, 1050);
        assert!(lane.claims.is_empty());
    }

    #[test]
    fn an_epoch_without_batches_says_something_only_if_nothing_older_is_spooled() {
        let mut lane = LaneProgress::default();
        lane.claim(&state(8, 0, 50, 3), mark(50));
        assert_eq!(lane.mark.boot_ns, 0);
        lane.claim(&state(8, 0, 60, 0), mark(60));
        assert_eq!(lane.mark.boot_ns, 60);
    }

    #[test]
    fn a_late_batch_does_not_take_a_watermark_back() {
        let mut lane = LaneProgress::default();
        lane.deliver(7, 1, Some(mark(90)));
        lane.deliver(7, 2, Some(mark(80)));
        assert_eq!(lane.mark.boot_ns, 90);
    }

    #[test]
    fn claims_are_bounded_and_the_newest_is_kept() {
        let mut lane = LaneProgress::default();
        for number in 1..=1000 {
            lane.claim(&state(7, number, number, number), mark(number));
        }
        assert_eq!(lane.claims.len(), CLAIMS_MAX);
        lane.deliver(7, 1000, None);
        assert_eq!(lane.mark.boot_ns, 1000);
    }

    #[tokio::test]
    async fn what_an_agent_has_loaded_is_kept_and_cut() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("state.db");
        let identity = Identity {
            tenant: "default".into(),
            agent: Uuid::from_u128(1),
        };
        let id = identity.agent.hyphenated().to_string();
        let database = crate::state::open(&path).await.expect("a database");
        for statement in [
            "INSERT INTO tenant (name, created_ns) VALUES ('default', 1)".to_owned(),
            format!(
                "INSERT INTO agent (id, tenant, name, machine_id, enrolled_ns, \
                 certificate_expires_ns) VALUES ('{id}', 'default', 'h', '', 1, 9)"
            ),
        ] {
            sqlx::query(sqlx::AssertSqlSafe(statement))
                .execute(&database)
                .await
                .expect("a row");
        }
        let registry = Registry::load(database).await.expect("a registry");
        let policies = |registry: &Registry| registry.snapshot("default")[0].policies.clone();
        assert_eq!(policies(&registry), None);
        let session = registry.connect(&identity, &Hello::default());
        session.heartbeat(&Heartbeat {
            policies: Some(LoadedPolicies {
                hash: "x".repeat(5000),
                ..LoadedPolicies::default()
            }),
            ..Heartbeat::default()
        });
        // One without news changes nothing.
        session.heartbeat(&Heartbeat::default());
        let told = policies(&registry).expect("what it said");
        assert_eq!(told.hash.len(), report::REPORT_TEXT_MAX);
        registry.persist().await.expect("written");
        let database = crate::state::open(&path).await.expect("the database again");
        let again = Registry::load(database).await.expect("a registry");
        assert_eq!(policies(&again), Some(told));
    }
}
