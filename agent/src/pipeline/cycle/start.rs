//! The start: what an earlier agent left, what is there, and the first rules.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sumun_abi::verdict::Guard;
use sumun_proto::Host;
use sumun_proto::catalogue::kind_name;
use sumun_proto::v1::{Gap, Kind, Lane, System};

use super::Pipeline;
use crate::detect::Detector;
use crate::enforce::Enforcer;
use crate::enforce::deny::Denier;
use crate::enforce::fanotify::{self, Keeper};
use crate::enforce::isolate::{self, Isolation};
use crate::enforce::lineage::{self, Untold};
use crate::enforce::scope::{self, Scopes};
use crate::enrich::changes::Changes;
use crate::enrich::names::Names;
use crate::enrich::process::{Limits, Tree};
use crate::enrich::workload::Workloads;
use crate::enrich::workload::path::classify;
use crate::enrich::{host, runtime};
use crate::integrity::{Standing, Watch};
use crate::kernel::{HookStatus, Kernel, Trial, cgroup, heap};
use crate::pipeline::applied::Applied;
use crate::pipeline::batch::Origin;
use crate::pipeline::changes::Asked;
use crate::pipeline::clock::{Clock, boot_ns};
use crate::pipeline::consumed::{Before, Consumed};
use crate::pipeline::core::Core;
use crate::pipeline::denied::{Pending, Unsaid};
use crate::pipeline::folds::{self, Folds};
use crate::pipeline::integrity::{Findings, Modules};
use crate::pipeline::lanes::LaneWriter;
use crate::pipeline::policies::{self, Loaded};
use crate::pipeline::streams::Streams;
use crate::pipeline::syncer::Syncer;
use crate::pipeline::told::Told;
use crate::privacy::Redactor;
use crate::released::Note;
use crate::spool::{Found, Spool};
use crate::status::Status;

/// Things of the host below which a walk left something out; with more, all is taken for left out.
const UNREAD_MAX: usize = 4096;
/// The trouble that something of another agent stays attached.
const OTHERS: &str = "others";
/// How long the start waits until opens and executions are held that rules deny.
const HELD_WITHIN: Duration = Duration::from_secs(2);
/// How long the start waits until workloads have been named that rules ask for.
const NAMED_WITHIN: Duration = Duration::from_secs(2);

/// What the pipeline is made of.
pub struct Setup {
    /// The loaded kernel side, not yet attached.
    pub kernel: Kernel,
    /// The lanes on disk.
    pub spool: Spool,
    /// What the spool held when it was opened.
    pub found: Found,
    /// Where watermarks, figures and troubles go.
    pub status: Arc<Status>,
    /// State directory.
    pub state: PathBuf,
    /// Directory of policies.
    pub policies: PathBuf,
    /// The host.
    pub host: Host,
    /// Sixteen bytes of the boot id.
    pub boot_id: [u8; 16],
    /// Bounds of the process tree.
    pub tree: Limits,
    /// Rules that kill go on for so long without an agent.
    pub hold: Duration,
    /// Whether fanotify is asked what was renamed and removed.
    pub fanotify: bool,
    /// What goes on while a rule isolates the host.
    pub isolate: isolate::Settings,
    /// How often is looked for what the kernel does not show; `None` = never.
    pub integrity: Option<Duration>,
    /// Takes secrets out of arguments.
    pub redactor: Redactor,
    /// Whom to ask of containers and of the host.
    pub runtimes: runtime::Settings,
    /// What the host says of itself.
    pub system: System,
}

impl Pipeline {
    /// Loads the policies, attaches, and fills the process tree.
    ///
    /// # Errors
    /// When the kernel side cannot be attached or the state directory not be written.
    pub fn start(setup: Setup) -> anyhow::Result<Self> {
        let Setup {
            mut kernel,
            spool,
            found,
            status,
            state,
            policies,
            host,
            boot_id,
            tree,
            hold,
            fanotify,
            isolate,
            integrity,
            redactor,
            runtimes,
            system,
        } = setup;
        let clock = Clock::new()?;
        let begun_ns = boot_ns()?;
        kernel.try_doors()?;
        let asked = Asked::new(fanotify);
        let tid = nix::unistd::gettid().as_raw().cast_unsigned();
        let tries = (tid, begun_ns..=boot_ns()?);
        let none = Loaded::none(kernel.deniable());
        let loaded = policies::load(&policies, &none)?;
        let pin_generation = kernel.pin_generation();
        let cpus = kernel.cpus()?;
        let (consumed, before) = Consumed::open(&state, cpus, pin_generation, boot_id)?;
        let reused = kernel.reused();
        let origin = Origin {
            boot_id,
            pin_generation,
            cgroup_controller: kernel.cgroup_controller().to_owned(),
            redactor: Rc::new(redactor),
        };
        let lane = |lane: Lane| {
            LaneWriter::new(
                lane,
                origin.clone(),
                clock.offset_ns(),
                found.held(lane, pin_generation),
            )
        };
        let (life, bulk, alert) = (lane(Lane::Life), lane(Lane::Bulk), lane(Lane::Alert));
        let known = before
            .as_ref()
            .is_some_and(|before| before.pin_generation == pin_generation);
        let since = if reused { 0 } else { boot_ns()? };
        let (mut folds, orphans) = Folds::open(
            &state,
            folds::Origin {
                pin_generation,
                boot_id,
            },
            kernel.last_generation().wrapping_add(1),
            &loaded.engine(),
        )?;
        let told = !orphans.is_empty();
        for orphan in orphans {
            let count = orphan.count;
            if let Err(error) = orphan.write(&spool, policies::wall_ns()) {
                tracing::error!(
                    count,
                    error = format!("{error:#}"),
                    "the count of folded alerts from before cannot be written; their events are stored, with the rule they matched"
                );
            }
        }
        if told {
            folds.save(clock.offset_ns())?;
        }
        let mut core = Core {
            tree: Tree::new(tree),
            workloads: Workloads::default(),
            streams: Streams::new(reused && !known, since),
            consumed,
            clock,
            detector: Detector::new(host.clone()),
            names: Names::default(),
            modules: Modules::default(),
            changes: Changes::default(),
            host_mounts: host::mounts(),
            enforcer: Enforcer::new(kernel.sharers(), kernel.hunt()?),
            denier: Denier::default(),
            isolation: Isolation::open(
                kernel.isolator(&isolate.cgroup)?,
                isolate,
                Arc::clone(&status),
                &state,
                boot_id,
            ),
            tries,
            trials: (Vec::new(), 0..=0),
            life,
            bulk,
            alert,
            folds,
            own_pid: 0,
            own: None,
            counts: crate::pipeline::Counts::default(),
            repair: false,
            untold: Untold::default(),
            scopes: Scopes::new(host.clone()),
        };
        restore(&mut core, &spool, boot_id);
        let spool_epoch = spool.statistics(Lane::Life)?.epoch;
        let mut pipeline = Self {
            kernel,
            syncer: Syncer::start(spool.clone())?,
            spool,
            status,
            policies,
            core,
            loaded: none,
            applied: Applied::new(&state),
            keeper: Keeper::default(),
            holding: fanotify::Report::default(),
            pending: Pending::default(),
            unsaid: Unsaid::new(&state),
            released: Some(Note::of(&state)),
            watch: Watch::new(integrity),
            reported: None,
            findings: Findings::default(),
            standing: Standing::default(),
            host: host.clone(),
            hold,
            told: Told::start(runtimes, system, &state, boot_id)?,
            asked,
            generation: 0,
            scopes: Vec::new(),
            written: [(spool_epoch, 0); 3],
            missed: HashMap::new(),
            last_watermark: None,
            last_repair: None,
            forgot_ns: 0,
            last_complaint: None,
            last_strain: None,
            expired_through_ns: policies::wall_ns(),
            through_boot_ns: 0,
        };
        pipeline.generation = pipeline.kernel.last_generation();
        if pipeline.applied.is(pipeline.generation, loaded.hash()) {
            // What was recorded while there was no agent was recorded under these very rules.
            let core = &mut pipeline.core;
            core.detector.load(pipeline.generation, loaded.engine());
        }
        if lineage::asked(loaded.verdicts()) != 0 {
            // Who runs now is told to the kernel with the rules.
            pipeline.bootstrap()?;
        }
        pipeline.told.begin(&mut pipeline.core);
        let held = Keeper::questions(loaded.held());
        if scope::asked(loaded.verdicts()) || !held.is_empty() {
            pipeline.bootstrap_cgroups();
            pipeline.name_workloads(scope::asks_for_cloud(loaded.verdicts(), &held));
        }
        let unsaid = pipeline.unsaid.is_left();
        // The filter first: what is attached is judged by it from the first record on.
        let (on_trial, mut trial) = loaded.on_trial();
        pipeline.apply(on_trial, true)?;
        if pipeline.loaded.verdicts().clauses.is_empty() && trial.leave_out() {
            // With its rules there was too much for the kernel's map; without, there may not be.
            pipeline.apply(loaded.clone(), true)?;
        }
        pipeline.kernel.attach()?;
        pipeline.kernel.note(HookStatus {
            hook: "integrity",
            kinds: vec![kind_name(Kind::Integrity)],
            available: integrity.is_some(),
            reason: integrity
                .is_none()
                .then(|| "[integrity] every is \"off\" in agent.toml".to_owned()),
            verified_instructions: None,
        });
        // Not before: rules of an agent that is long gone would come to life again.
        pipeline.hold()?;
        pipeline.try_kills(&trial)?;
        let doors = pipeline.kernel.deniable();
        let loaded = match doors == *loaded.doors() {
            true => loaded,
            // One of them could be tried, but not kept; or something does not kill.
            false => loaded.with_doors(doors),
        };
        pipeline.apply(loaded, true)?;
        let attached_ns = boot_ns()?;
        pipeline.scopes =
            pipeline
                .loaded
                .scopes(pipeline.kernel.hooks(), pipeline.generation, attached_ns);
        for scope in pipeline.scopes.clone() {
            pipeline.core.life.open().scope(scope);
        }
        pipeline.bootstrap_cgroups();
        pipeline.tell_scopes();
        pipeline.bootstrap()?;
        pipeline.guard()?;
        // Only now, so that at every moment the rules of one of the two are in force.
        let retired = pipeline.retire_others();
        let released = pipeline.released.as_ref().and_then(Note::read);
        if !reused {
            let why = match (retired, released) {
                (Some(retired), _) => retired,
                (None, Some(who)) => {
                    format!("the kernel side was not attached: the host was released at {who}")
                }
                (None, None) => "the kernel side was not attached".to_owned(),
            };
            pipeline.unwatched(before.as_ref(), attached_ns, ("unwatched", &why));
        } else if unsaid {
            let why = (
                "untold",
                "the agent was killed: of calls that were denied just before, the last may be missing",
            );
            pipeline.unwatched(before.as_ref(), attached_ns, why);
        }
        pipeline.keeper.settle(HELD_WITHIN);
        let progress = &pipeline.status.progress;
        progress.set_attached(true);
        progress.set_bootstrapped(true);
        progress.set_wall_offset_ns(pipeline.core.clock.offset_ns());
        pipeline.publish();
        // What loading has taken is several times what the agent needs.
        heap::give_back();
        Ok(pipeline)
    }

    /// Before it is said of any rule that it kills: it is tried.
    fn try_kills(&mut self, trial: &Trial) -> anyhow::Result<()> {
        let begun_ns = boot_ns()?;
        let children = self.kernel.try_kills(trial);
        self.core.trials = (children, begun_ns..=boot_ns()?);
        for status in self.kernel.kills() {
            let (mode, reason) = (status.mode, status.reason.as_deref().unwrap_or_default());
            if !status.available {
                tracing::error!(
                    mode,
                    reason,
                    "the kernel does not kill: rules that do are carried out late"
                );
            } else if status.reason.is_some() {
                tracing::warn!(mode, reason, "whether the kernel kills is not known");
            }
        }
        let kills = self.kernel.kills().to_vec();
        self.status.update(|parts| parts.kills = kills);
        Ok(())
    }

    /// Detaches what an agent with other maps has left. What is to be said of it, if there was one.
    fn retire_others(&mut self) -> Option<String> {
        let (retired, done) = self.kernel.retire_others();
        if let Err(error) = done {
            let error = format!(
                "{error}; what an agent of another version has attached is in force beside this one's until its lease is over"
            );
            tracing::error!("{error}");
            self.status.trouble(OTHERS, Some(error));
        }
        if retired.is_empty() {
            return None;
        }
        let unread = |place: usize| {
            let counts = retired.iter().map(|one| one.unread[place]);
            counts.sum::<Option<u64>>().map_or_else(
                || "a number that could not be told".to_owned(),
                |count| count.to_string(),
            )
        };
        let told = format!(
            "an agent of another version, or with other sizes, was there: its rules were in force until these were, and what it had not read is given up with its maps: {} records of process life, {} others",
            unread(0),
            unread(1)
        );
        tracing::info!("{told}");
        Some(told)
    }

    /// Nobody looked between the last agent and now, or not at everything.
    pub(super) fn unwatched(
        &mut self,
        before: Option<&Before>,
        attached_ns: u64,
        why: (&str, &str),
    ) {
        let Some(before) = before.filter(|before| before.through_wall_ns != 0) else {
            return;
        };
        let from = before
            .through_wall_ns
            .wrapping_sub(self.core.clock.offset_ns());
        for (lane, writer) in self.core.lanes() {
            if lane == Lane::Alert {
                continue;
            }
            writer.gap(Gap {
                reason: why.0.into(),
                count: None,
                from_boot_ns: from.cast_unsigned(),
                to_boot_ns: attached_ns,
                detail: why.1.into(),
                ..Gap::default()
            });
        }
    }

    /// Takes the cgroups that are there; what goes on meanwhile is told by records.
    pub(super) fn bootstrap_cgroups(&mut self) {
        let mut alive = HashSet::new();
        // What stands in for cgroups that were not looked at: the outermost thing of the host above each, of which there are few.
        let mut unread = HashSet::new();
        let workloads = &mut self.core.workloads;
        let walked = cgroup::walk(
            self.kernel.cgroup_controller(),
            |id, path| {
                alive.insert(id);
                workloads.made(id, path, 0);
            },
            |path| {
                let host = &path[..classify(path).made_by_host];
                let host = if unread.len() < UNREAD_MAX { host } else { "/" };
                if !unread.contains(host) {
                    unread.insert(host.to_owned());
                }
            },
        );
        match walked {
            Ok(cgroup::Walked { left_out, .. }) => {
                workloads.removed_all_but(&alive, &unread);
                if unread.iter().all(|host| workloads.at(host).is_some()) {
                    workloads.restored();
                }
                if left_out > 0 {
                    tracing::warn!(
                        left_out,
                        "some cgroups are not looked at: events of processes in them do not say whose they are"
                    );
                }
            }
            Err(error) => tracing::warn!(
                %error,
                "workloads that were there before the agent are not known: their events do not say whose they are"
            ),
        }
    }

    /// Who runs now, by the task iterator; the tree is brought to that.
    pub(super) fn bootstrap(&mut self) -> anyhow::Result<()> {
        let mut alive = HashSet::new();
        let core = &mut self.core;
        self.kernel
            .bootstrap_tasks(|bytes| core.task(bytes, &mut alive))?;
        self.core.tree.join();
        // Exits may have been lost, too.
        self.core.tree.retire_all_but(&alive);
        Ok(())
    }

    /// No rule kills the agent.
    pub(super) fn guard(&mut self) -> anyhow::Result<()> {
        let node = self.core.find_itself();
        let Some((node, program)) = node.and_then(|node| Some((node, node.program()?))) else {
            tracing::warn!(
                "the agent does not find itself among the processes: only its name guards it"
            );
            return Ok(());
        };
        // The kernel's own device numbers: those of stat are others on some file systems.
        Ok(self.kernel.guard(Guard {
            exe_ino: program.exe_ino,
            exe_dev: program.exe_dev,
            pad: 0,
            start_ns: node.key.start_ns,
            pid: u64::from(node.key.pid),
        })?)
    }

    /// Waits a little until the workloads that are there have been named: rules of a previous agent hold as long, and the new
    /// ones are not to begin with less.
    pub(super) fn name_workloads(&mut self, cloud: bool) {
        let begun = Instant::now();
        loop {
            self.told.learn(&mut self.core);
            let named = self.core.workloads.stats().pending == 0;
            if named && (!cloud || self.told.knows_cloud()) {
                return;
            }
            if begun.elapsed() > NAMED_WITHIN {
                tracing::warn!(
                    pending = self.core.workloads.stats().pending,
                    "not all workloads are named yet: of those that are not, rules that ask for them stop nothing until they are"
                );
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Images of batches that are still in the spool: the ancestry of processes whose
/// parents have exited, which the task iterator cannot tell.
fn restore(core: &mut Core, spool: &Spool, boot_id: [u8; 16]) {
    for body in spool.life_bodies() {
        // What cannot be read is reported by the spool; the rest of the tree still helps.
        if let Ok(body) = body
            && let Ok(batch) = <sumun_proto::v1::Batch as prost::Message>::decode(body.as_slice())
            && batch.boot_id == boot_id
        {
            crate::enrich::restore::images(&mut core.tree, &batch);
            core.workloads.restore(&batch);
            for facts in batch.facts {
                core.workloads.restore_facts(facts);
            }
        }
    }
}
