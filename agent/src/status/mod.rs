//! How the agent is: one place that the stages write to, and that heartbeats,
//! `sumun-agent status`, Prometheus and systemd read.
//!
//! | part | written by |
//! |---|---|
//! | [`Status::progress`] | the pipeline: watermarks, clock, losses |
//! | [`Status::counters`] | every stage, its own |
//! | [`Status::update`] | `main` and whoever loads policies or attaches hooks |
//! | [`Status::trouble`] | whoever cannot do its work at the moment |

mod log;
mod metrics;
mod page;
mod peers;
mod socket;
mod systemd;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use sumun_proto::v1::{Door, Isolation, Lane, LoadedPolicies, Loss};

use crate::enforce::deny;
use crate::enforce::verdict::{MODES, OUTCOMES};
use crate::integrity::Standing;
use crate::kernel::KillStatus;
use crate::spool::Spool;

pub use log::start as start_log;
pub use metrics::serve as serve_metrics;
pub use page::text as status_text;
pub use peers::Peers;
pub use socket::{ask, lift, serve as serve_socket, serve_commands};
pub use systemd::{ready, reloading, stopping, watchdog};

/// The lanes, in the order of [`lane_index`].
pub const LANES: [Lane; 3] = [Lane::Alert, Lane::Life, Lane::Bulk];

/// Place of a lane in [`LANES`]; `None` for none.
#[must_use]
pub fn lane_index(lane: Lane) -> Option<usize> {
    LANES.iter().position(|known| *known == lane)
}

/// What stays the same while the agent runs.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Identity, from the configuration.
    pub agent_id: String,
    /// Tenant, from the configuration.
    pub tenant: String,
    /// Host name as the kernel has it.
    pub host_name: String,
    /// `uname -r`.
    pub kernel: String,
    /// Sixteen bytes of the boot id.
    pub boot_id: [u8; 16],
    /// `HOST:PORT` of the collector.
    pub collector: String,
}

/// How the agent is.
pub struct Status {
    /// What stays the same.
    pub run: Run,
    /// How far the pipeline is.
    pub progress: Progress,
    /// What has been counted since the start.
    pub counters: Counters,
    /// Where the collector is.
    pub peers: Peers,
    started: SystemTime,
    parts: Mutex<Parts>,
    spool: OnceLock<Spool>,
}

impl fmt::Debug for Status {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Status")
            .field("run", &self.run)
            .finish_non_exhaustive()
    }
}

/// What changes now and then.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// Where in its life the agent is.
    pub phase: Phase,
    /// How each kind of event is seen.
    pub doors: Vec<Door>,
    /// How the kernel kills, as it was tried.
    pub kills: Vec<KillStatus>,
    /// Policies that are loaded, and files that are not.
    pub policies: LoadedPolicies,
    /// Counts how often these were set; 0 = never.
    policies_set: u64,
    /// The connection to the collector.
    pub connection: Connection,
    /// When the certificate expires, seconds since the Unix epoch; 0 = not read yet.
    pub certificate_expires: i64,
    /// Where metrics are served; empty = nowhere.
    pub metrics: String,
    /// The rule for which the host is cut off from the network, and what goes on.
    pub isolation: Option<Isolation>,
    /// What the kernel does not show.
    pub integrity: Standing,
    /// Who cannot do its work, and why.
    troubles: BTreeMap<&'static str, String>,
}

/// Where in its life the agent is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Hooks are being attached, the tree is being read.
    #[default]
    Starting,
    /// Events are collected.
    Running,
    /// Policies are being loaded again.
    Reloading,
    /// What is spooled is being sent; nothing new is collected.
    Stopping,
}

impl Phase {
    /// Its name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Reloading => "reloading",
            Self::Stopping => "stopping",
        }
    }
}

/// The connection to the collector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Connection {
    /// Not tried yet.
    #[default]
    None,
    /// Both streams are open.
    Connected,
    /// Not connected; batches stay in the spool.
    Away {
        /// Why the last try failed.
        reason: String,
    },
    /// The agent is stopping and has said goodbye.
    Closed,
}

impl Connection {
    /// Its name in JSON.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "connecting",
            Self::Connected => "connected",
            Self::Away { .. } => "unreachable",
            Self::Closed => "closed",
        }
    }
}

/// How far a lane is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneProgress {
    /// Everything of the lane up to this boot time is in batches up to `epoch`, `number`.
    pub through_boot_ns: u64,
    /// Epoch of this run.
    pub epoch: u64,
    /// Last batch written in this epoch; 0 = none yet.
    pub number: u64,
    /// Batches in the spool, not yet acknowledged.
    pub spooled_batches: u64,
    /// Their bytes.
    pub spooled_bytes: u64,
    /// Their events and alerts.
    pub spooled_events: u64,
    /// Bytes of the lane's files.
    pub disk_bytes: u64,
    /// Events given up for lack of space since the start; gap records say so too.
    pub dropped_events: u64,
}

/// How far the pipeline is, for heartbeats. Written a few times a second.
#[derive(Debug, Default)]
pub struct Progress {
    lanes: Mutex<[LaneProgress; 3]>,
    losses: Mutex<Vec<Loss>>,
    wall_offset_ns: AtomicI64,
    attached: AtomicBool,
    bootstrapped: AtomicBool,
    turns: AtomicU64,
}

impl Progress {
    /// Moves one lane on: everything up to `through_boot_ns` is in batches up to (`epoch`, `number`),
    /// all of them written to the spool.
    pub fn written(&self, lane: Lane, epoch: u64, number: u64, through_boot_ns: u64) {
        if let Some(index) = lane_index(lane) {
            let mut lanes = locked(&self.lanes);
            let lane = &mut lanes[index];
            (lane.epoch, lane.number) = (epoch, number);
            // A watermark that has been told stays told.
            lane.through_boot_ns = lane.through_boot_ns.max(through_boot_ns);
        }
    }

    /// Cumulative losses of the kernel streams.
    pub fn set_losses(&self, losses: Vec<Loss>) {
        *locked(&self.losses) = losses;
    }

    /// Cumulative losses of the kernel streams.
    #[must_use]
    pub fn losses(&self) -> Vec<Loss> {
        locked(&self.losses).clone()
    }

    /// Wall time minus boot time, ns.
    pub fn set_wall_offset_ns(&self, offset: i64) {
        self.wall_offset_ns.store(offset, Ordering::Relaxed);
    }

    /// Wall time minus boot time, ns.
    #[must_use]
    pub fn wall_offset_ns(&self) -> i64 {
        self.wall_offset_ns.load(Ordering::Relaxed)
    }

    /// All hooks are attached that can be.
    pub fn set_attached(&self, attached: bool) {
        self.attached.store(attached, Ordering::Relaxed);
    }

    /// All hooks are attached that can be.
    #[must_use]
    pub fn attached(&self) -> bool {
        self.attached.load(Ordering::Relaxed)
    }

    /// The process tree holds what ran before the hooks were attached.
    pub fn set_bootstrapped(&self, bootstrapped: bool) {
        self.bootstrapped.store(bootstrapped, Ordering::Relaxed);
    }

    /// The process tree holds what ran before the hooks were attached.
    #[must_use]
    pub fn bootstrapped(&self) -> bool {
        self.bootstrapped.load(Ordering::Relaxed)
    }

    /// The pipeline has gone round once more, with or without work. The watchdog
    /// is fed only while this goes on.
    pub fn turned(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// How often the pipeline has gone round.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }
}

/// What has been counted since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Records read from the rings.
    pub records: AtomicU64,
    /// Records that could not be decoded.
    pub undecodable: AtomicU64,
    /// Events written to the spool.
    pub events: AtomicU64,
    /// Alerts written to the spool.
    pub alerts: AtomicU64,
    /// Alerts that were counted instead, beyond the rate of their rule.
    pub folded: AtomicU64,
    /// Alerts that an exception kept from being raised.
    pub excepted: AtomicU64,
    /// Cgroups that were not taken because there were too many.
    pub cgroups_left_out: AtomicU64,
    /// Events whose cgroup was not known.
    pub cgroups_unknown: AtomicU64,
    /// Containers that a runtime told of.
    pub runtime_known: AtomicU64,
    /// Containers that no runtime knew.
    pub runtime_unknown: AtomicU64,
    /// Questions to a runtime that it did not answer.
    pub runtime_failed: AtomicU64,
    /// Of them those about one container that a runtime could not answer while it answers of others.
    pub runtime_refused: AtomicU64,
    /// Who does not answer now what containers and the host are, and why: by socket, `kubelet` or `cloud`.
    pub identity_troubles: Mutex<BTreeMap<String, String>>,
    /// Containers that were not asked about, because too many waited.
    pub runtime_dropped: AtomicU64,
    /// Containers that are asked about and not named yet.
    pub workloads_pending: AtomicU64,
    /// Workloads that were named, of those whose making was seen.
    pub workloads_named: AtomicU64,
    /// How long they were not, milliseconds together …
    pub workloads_named_ms: AtomicU64,
    /// … and the longest.
    pub workloads_named_longest_ms: AtomicU64,
    /// Cgroups that the kernel was told of, for rules that ask for workloads.
    pub scopes: AtomicU64,
    /// Such cgroups for which it had no room.
    pub scopes_left_out: AtomicU64,
    /// Gap records written to the spool.
    pub gaps: AtomicU64,
    /// Names of addresses that were forgotten, while they held, for want of room.
    pub names_evicted: AtomicU64,
    /// Renames and removals that are told as the kernel did them.
    pub changes_confirmed: AtomicU64,
    /// Those of which that is not known.
    pub changes_unconfirmed: AtomicU64,
    /// What was done without a call that named it.
    pub changes_alone: AtomicU64,
    /// Events of fanotify that are of what an overlay does below for a call.
    pub changes_inner: AtomicU64,
    /// Times that more of what fanotify tells waited than the kernel keeps.
    pub changes_overflows: AtomicU64,
    /// Calls that decision points had no room to keep.
    pub points_full: AtomicU64,
    /// Files whose writer was forgotten for want of room.
    pub writers_evicted: AtomicU64,
    /// Files whose writer could not be remembered.
    pub writers_failed: AtomicU64,
    /// Batches given to the connection, repeats included.
    pub sent_batches: AtomicU64,
    /// Their bytes.
    pub sent_bytes: AtomicU64,
    /// Batches that the collector has acknowledged.
    pub acked_batches: AtomicU64,
    /// Batches that the collector has refused for good.
    pub rejected_batches: AtomicU64,
    /// Connections to the collector that came about.
    pub connects: AtomicU64,
    /// Certificates renewed.
    pub renewals: AtomicU64,
    /// Events on which a rule that kills matched, by mode and outcome.
    pub kills: [[AtomicU64; OUTCOMES.len()]; MODES.len()],
    /// Events on which a rule that denies matched, by mode and outcome.
    pub denials: [[AtomicU64; deny::OUTCOMES.len()]; deny::MODES.len()],
    /// Opens and executions that were held and answered.
    pub held_calls: AtomicU64,
    /// Times that more of them waited than the kernel keeps.
    pub held_overflows: AtomicU64,
    /// Processes that held calls and ended without being told to.
    pub holder_restarts: AtomicU64,
}

impl Counters {
    /// Adds to one of them.
    pub fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Ordering::Relaxed);
    }
}

impl Status {
    /// The status of an agent that is starting.
    #[must_use]
    pub fn new(run: Run) -> Self {
        Self {
            run,
            progress: Progress::default(),
            counters: Counters::default(),
            peers: Peers::default(),
            started: SystemTime::now(),
            parts: Mutex::default(),
            spool: OnceLock::new(),
        }
    }

    /// From now on the lanes' figures are those of this spool.
    pub fn watch_spool(&self, spool: Spool) {
        // A second spool would be a second agent.
        let _ = self.spool.set(spool);
    }

    /// All lanes, in the order of [`LANES`]: how far the pipeline is, and what is spooled.
    #[must_use]
    pub fn lanes(&self) -> [LaneProgress; 3] {
        let mut lanes = *locked(&self.progress.lanes);
        for (lane, known) in LANES.iter().zip(&mut lanes) {
            let Some(Ok(held)) = self.spool.get().map(|spool| spool.statistics(*lane)) else {
                continue;
            };
            known.spooled_batches = held.batches;
            known.spooled_bytes = held.bytes;
            known.spooled_events = held.events;
            known.disk_bytes = held.disk_bytes;
            known.dropped_events = held.dropped_events;
        }
        lanes
    }

    /// Changes what changes now and then.
    pub fn update(&self, change: impl FnOnce(&mut Parts)) {
        change(&mut locked(&self.parts));
    }

    /// A copy of what changes now and then.
    #[must_use]
    pub fn parts(&self) -> Parts {
        locked(&self.parts).clone()
    }

    /// What the host is cut off for; `None` if it is not.
    #[must_use]
    pub fn isolation(&self) -> Option<Isolation> {
        locked(&self.parts).isolation.clone()
    }

    /// Other policies are in force, or other hooks are attached.
    pub fn set_policies(&self, policies: LoadedPolicies) {
        let parts = &mut locked(&self.parts);
        parts.policies = policies;
        parts.policies_set += 1;
    }

    /// The policies, if they were set since `told` was returned with them; 0 is the beginning.
    #[must_use]
    pub fn policies_since(&self, told: u64) -> Option<(u64, LoadedPolicies)> {
        let parts = &locked(&self.parts);
        (parts.policies_set > told).then(|| (parts.policies_set, parts.policies.clone()))
    }

    /// Says that `who` cannot do its work, or with `None` that it can again.
    /// True when that is a change, so that it is logged once.
    pub fn trouble(&self, who: &'static str, what: Option<String>) -> bool {
        let troubles = &mut locked(&self.parts).troubles;
        match what {
            None => troubles.remove(who).is_some(),
            Some(what) => troubles.insert(who, what.clone()) != Some(what),
        }
    }

    /// Who cannot do its work, and why, in one line; empty when all is well.
    #[must_use]
    pub fn trouble_text(&self) -> String {
        locked(&self.parts)
            .troubles
            .iter()
            .map(|(who, what)| format!("{who}: {what}"))
            .collect::<Vec<_>>()
            .join("; ")
    }

    /// When the agent was started.
    #[must_use]
    pub fn started(&self) -> SystemTime {
        self.started
    }
}

/// Nothing here panics while it holds a lock; if something did, the plain data
/// behind it is still good.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watermark_never_moves_back() {
        let status = Status::new(Run::default());
        status.progress.written(Lane::Life, 7, 3, 100);
        status.progress.written(Lane::Life, 7, 4, 90);
        let [alert, life, bulk] = status.lanes();
        assert_eq!((life.epoch, life.number, life.through_boot_ns), (7, 4, 100));
        assert_eq!((alert.number, bulk.number), (0, 0));
    }

    #[test]
    fn troubles_are_reported_once_and_together() {
        let status = Status::new(Run::default());
        assert!(status.trouble("spool", Some("disk full".into())));
        assert!(!status.trouble("spool", Some("disk full".into())));
        assert!(status.trouble("policies", Some("one file is wrong".into())));
        assert_eq!(
            status.trouble_text(),
            "policies: one file is wrong; spool: disk full"
        );
        assert!(status.trouble("spool", None));
        assert!(!status.trouble("spool", None));
        assert_eq!(status.trouble_text(), "policies: one file is wrong");
    }
}
