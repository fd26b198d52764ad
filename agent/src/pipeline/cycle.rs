//! The cycle of reading, and what happens around it: start, reload, stop.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sumun_abi::loss::{Stream, reason};
use sumun_abi::verdict::Guard;
use sumun_policy::plan::KindPlan;
use sumun_proto::Host;
use sumun_proto::catalogue::{KINDS, kind_name};
use sumun_proto::v1::{Door, Gap, Kind, Lane, Loss, Scope, System};

use super::applied::Applied;
use super::batch::Origin;
use super::changes::{self, Asked, Moment};
use super::clock::{Clock, boot_ns};
use super::consumed::{Before, Consumed};
use super::core::Core;
use super::denied::{Pending, Unsaid};
use super::folds::{self, Folds};
use super::integrity::{Findings, Modules};
use super::lanes::LaneWriter;
use super::policies::{self, Loaded};
use super::streams::Streams;
use super::syncer::Syncer;
use super::told::Told;
use crate::detect::Detector;
use crate::enforce::Enforcer;
use crate::enforce::deny::Denier;
use crate::enforce::fanotify::{self, Keeper};
use crate::enforce::isolate::{self, Isolation};
use crate::enforce::lineage::{self, Untold};
use crate::enforce::scope::{self, Scopes};
use crate::enrich::changes::Changes;
use crate::enrich::host;
use crate::enrich::names::Names;
use crate::enrich::process::{ImageKey, Limits, Tree};
use crate::enrich::runtime;
use crate::enrich::workload::Workloads;
use crate::enrich::workload::path::classify;
use crate::integrity::{Check, Finding, Held, Process, Report, Standing, Turn, Watch};
use crate::kernel::{DoorStatus, HookStatus, Kernel, Known, PointStatus, StreamId, cgroup, heap};
use crate::privacy::Redactor;
use crate::released::Note;
use crate::spool::{Found, Spool};
use crate::status::{LANES, Status, lane_index};

/// Things of the host below which a walk left something out; with more, all is taken for left out.
const UNREAD_MAX: usize = 4096;
/// Bytes read from a ring in one cycle at most: bounds the memory of a cycle.
const CYCLE_BYTES: u64 = 512 * 1024;
/// A cycle that read more than this is followed by the next at once.
const BUSY_BYTES: u64 = 256 * 1024;
/// Pause after a cycle that read no more than `BUSY_BYTES`. A batch, its write, its sync and its way to the collector cost the same
/// whatever is in it: with a third of this, an exec took twice the processor time (docs/performance.md).
const PAUSE: Duration = Duration::from_millis(15);
/// Pause while the kernel's rules wait for what a runtime says of a workload.
const ASKING_PAUSE: Duration = Duration::from_millis(5);
/// A cycle that read at least this leaves free pages in the heap.
const STRAIN_BYTES: u64 = 16 * 1024;
/// They are given back when there has been no such cycle for this long.
const RELAXED_AFTER: Duration = Duration::from_secs(2);
/// Pause after a cycle whose spool writes failed.
const TROUBLE_PAUSE: Duration = Duration::from_millis(500);
/// At least this between two watermarks.
const WATERMARK_EVERY: Duration = Duration::from_millis(100);
/// At least this between two repairs of the process tree.
const REPAIR_EVERY: Duration = Duration::from_secs(5);
/// At least this between two looks for exceptions that have expired, ns.
const EXPIRE_EVERY_NS: u64 = 1_000_000_000;
/// At least this between two looks for calls whose return was not seen, ns.
const FORGET_EVERY_NS: u64 = 10_000_000_000;
/// How long the start waits until opens and executions are held that rules deny.
const HELD_WITHIN: Duration = Duration::from_secs(2);
/// How long the start waits until workloads have been named that rules ask for.
const NAMED_WITHIN: Duration = Duration::from_secs(2);
/// How long a look waits at most until all records have been read that were there when it ended.
const LATE_WITHIN: Duration = Duration::from_secs(60);
/// At most one line of log in this time about the same trouble.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Who complains in the status.
const SPOOL: &str = "spool";
const POLICIES: &str = "policies";
const EXPIRED: &str = "exceptions";
const DENY: &str = "deny";
const SELECTORS: &str = "selectors";

/// The policies as they are read again beside the cycle.
type Reload = std::thread::JoinHandle<Result<Loaded, policies::Error>>;

/// How others steer the pipeline.
#[derive(Debug, Default)]
pub struct Control {
    /// Set to end after a last cycle.
    pub stop: AtomicBool,
    /// Set to read the policies again.
    pub reload: AtomicBool,
    /// Set to end the isolation of the host; false again when that is done.
    pub lift: AtomicBool,
}

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

/// The reading thread's state.
pub struct Pipeline {
    kernel: Kernel,
    spool: Spool,
    syncer: Syncer,
    status: Arc<Status>,
    policies: PathBuf,
    core: Core,
    loaded: Loaded,
    applied: Applied,
    keeper: Keeper,
    /// How it was when last looked.
    holding: fanotify::Report,
    pending: Pending,
    unsaid: Unsaid,
    /// Who released the host before this agent, until that is written.
    released: Option<Note>,
    watch: Watch,
    /// What a look has come to, until it is judged.
    reported: Option<(Report, Held, Instant)>,
    findings: Findings,
    standing: Standing,
    host: Host,
    hold: Duration,
    asked: Asked,
    told: Told,
    generation: u32,
    scopes: Vec<Scope>,
    /// Last batch of each lane of `LANES`: epoch and number.
    written: [(u64, u64); 3],
    /// How often the kernel had left each hook's program out when last looked.
    missed: HashMap<&'static str, u64>,
    last_watermark: Option<Instant>,
    last_repair: Option<Instant>,
    /// When calls whose return was not seen were last forgotten, boot time in ns.
    forgot_ns: u64,
    last_complaint: Option<Instant>,
    /// The last cycle under load, until the heap has been given back.
    last_strain: Option<Instant>,
    /// Exceptions that expired up to this wall time have been told.
    expired_through_ns: i64,
    through_boot_ns: u64,
}

/// A moment at which no program was under way, and what had been given out by then.
struct Quiet {
    boot_ns: u64,
    streams: Vec<(StreamId, Stream)>,
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
            enforcer: Enforcer::new(kernel.sharers()),
            denier: Denier::default(),
            isolation: Isolation::open(
                kernel.isolator(&isolate.cgroup)?,
                isolate,
                Arc::clone(&status),
                &state,
                boot_id,
            ),
            tries,
            life,
            bulk,
            alert,
            folds,
            own_pid: std::process::id(),
            counts: super::Counts::default(),
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
        pipeline.apply(loaded, true)?;
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
        let doors = pipeline.kernel.deniable();
        if doors != *pipeline.loaded.doors() {
            // One of them could be tried, but not kept.
            let loaded = pipeline.loaded.clone().with_doors(doors);
            pipeline.apply(loaded, true)?;
        }
        // Not before: rules of an agent that is long gone would come to life again.
        pipeline.hold()?;
        let attached_ns = boot_ns()?;
        pipeline.scopes =
            pipeline
                .loaded
                .scopes(pipeline.kernel.hooks(), pipeline.generation, attached_ns);
        for scope in pipeline.scopes.clone() {
            pipeline.core.life.open().scope(scope);
        }
        let released = pipeline.released.as_ref().and_then(Note::read);
        if !reused {
            let why = released.map_or_else(
                || "the kernel side was not attached".to_owned(),
                |who| format!("the kernel side was not attached: the host was released at {who}"),
            );
            pipeline.unwatched(before.as_ref(), attached_ns, ("unwatched", &why));
        } else if unsaid {
            let why = (
                "untold",
                "the agent was killed: of calls that were denied just before, the last may be missing",
            );
            pipeline.unwatched(before.as_ref(), attached_ns, why);
        }
        pipeline.bootstrap_cgroups();
        pipeline.tell_scopes();
        pipeline.bootstrap()?;
        pipeline.guard()?;
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

    /// Reads until told to stop; then once more, and says how far it came.
    pub fn run(mut self, control: &Control) {
        let mut reload = None;
        while !control.stop.load(Ordering::Acquire) {
            if reload.is_none() && control.reload.swap(false, Ordering::AcqRel) {
                reload = Some(self.begin_reload());
            }
            if let Some(read) = reload.take_if(|read| read.is_finished()) {
                self.reload(read);
                crate::status::ready();
            }
            if control.lift.load(Ordering::Acquire) {
                self.core.isolation.lift();
                control.lift.store(false, Ordering::Release);
            }
            let pause = self.cycle();
            self.status.progress.turned();
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
        self.keeper.stop();
        // Until the rings are empty, but not for ever: others go on writing.
        for _ in 0..8 {
            self.last_watermark = None;
            if self.cycle() >= PAUSE {
                break;
            }
        }
        // No window ends by itself any more.
        self.core.folds.close_all();
        match self.write(0) {
            Ok(()) => {
                self.reached(self.through_boot_ns);
                if self.pending.is_empty() && self.unsaid.set(false).is_err() {
                    tracing::warn!("the next agent will say that denied calls may be missing");
                }
            }
            Err(error) => self.fail(&error),
        }
        self.publish();
    }

    /// One cycle; how long to pause after it.
    fn cycle(&mut self) -> Duration {
        if let Some(step) = self.core.clock.refresh() {
            tracing::warn!(step_ns = step.step_ns, "the wall clock was set");
            self.core.life.open().clock_step(step);
        }
        let offset = self.core.clock.offset_ns();
        for (_, lane) in self.core.lanes() {
            lane.set_wall_offset(offset);
        }
        let quiet = self.quiet();
        let bulk_ahead = self.kernel.bulk.backlog();
        // After that: so it has what was told of every record up to there.
        let through_ns = self.through_boot_ns;
        let strangers = self.core.changes.read(|| boot_ns().unwrap_or(through_ns));
        self.told.cycle(&mut self.core);
        self.tell_scopes();
        // Before the rings are read, so that what let a call through is known when its record comes; and so
        // that whoever made a call is known when the call is looked at.
        self.pending
            .add(self.keeper.take(), self.through_boot_ns, &mut self.core);
        let mut read = drain(&mut self.kernel.life, CYCLE_BYTES, &mut self.core);
        // At once: what is in a new cgroup may be about to begin.
        self.tell_scopes();
        let life_emptied = !self.kernel.life.has_more() || read < CYCLE_BYTES;
        let mut bulk_emptied = false;
        if life_emptied {
            if !self.pending.is_empty() {
                let now_ns = boot_ns().unwrap_or(self.through_boot_ns);
                self.pending
                    .emit(&mut self.core, (self.through_boot_ns, now_ns));
            }
            self.findings.emit(&mut self.core);
            let bulk = drain(
                &mut self.kernel.bulk,
                bulk_ahead.min(CYCLE_BYTES),
                &mut self.core,
            );
            bulk_emptied = bulk >= bulk_ahead || bulk_ahead <= CYCLE_BYTES;
            read += bulk;
        }
        let complete = quiet.as_ref().filter(|_| life_emptied && bulk_emptied);
        let moment = Moment {
            told_ns: through_ns,
            read_ns: complete.map_or(through_ns, |quiet| quiet.boot_ns),
            now_ns: boot_ns().unwrap_or(through_ns),
            generation: self.generation,
        };
        self.core.changed(&strangers, moment);
        let mut through = 0;
        if let Some(quiet) = quiet.filter(|_| life_emptied && bulk_emptied) {
            let gaps =
                self.core
                    .streams
                    .compare(&quiet.streams, quiet.boot_ns, &self.core.consumed);
            for (stream, gap) in gaps {
                self.core.gap(stream, gap);
            }
            self.missed(quiet.boot_ns);
            self.forget_stale_calls(quiet.boot_ns);
            self.status.progress.set_losses(losses(&quiet.streams));
            through = quiet.boot_ns;
            self.core.folds.read_through(through);
        }
        if let Err(error) = self.write(through) {
            self.fail(&error);
            self.expire();
            return TROUBLE_PAUSE;
        }
        if life_emptied {
            self.pending.written();
            self.findings.written();
        }
        self.told.written();
        if let Some(released) = self.released.take() {
            released.forget();
        }
        self.core
            .changes
            .written(boot_ns().unwrap_or(self.through_boot_ns));
        self.look_at_keeper();
        if self.asked.is_news(&self.core.changes) {
            self.publish();
        }
        if through != 0 {
            self.through_boot_ns = through;
            self.last_watermark = Some(Instant::now());
            self.reached(through);
        }
        if self.status.trouble(SPOOL, None) {
            tracing::info!("the spool can be written again");
            self.last_complaint = None;
        }
        self.tell(life_emptied);
        self.core.tree.end_cycle(bulk_emptied);
        self.core.workloads.end_cycle(bulk_emptied);
        if bulk_emptied {
            self.core.detector.retire(self.generation);
            self.core.folds.retire(self.generation);
        }
        self.repair();
        self.look_at_kernel(bulk_emptied);
        self.relax(read);
        self.expire();
        match read {
            // The kernel's rules wait for what a runtime says.
            BUSY_BYTES.. => Duration::ZERO,
            _ if self.core.scopes.are_asked() && self.core.workloads.stats().pending > 0 => {
                ASKING_PAUSE
            }
            _ => PAUSE,
        }
    }

    /// Gives back what a load has left, once it is over: while it lasts it would be taken again
    /// at once, and the time is needed.
    fn relax(&mut self, read: u64) {
        if read >= STRAIN_BYTES {
            self.last_strain = Some(Instant::now());
        } else if self
            .last_strain
            .is_some_and(|last| last.elapsed() >= RELAXED_AFTER)
        {
            self.last_strain = None;
            for (_, lane) in self.core.lanes() {
                lane.relax();
            }
            heap::give_back();
        }
    }

    /// Spool, then read positions, then rings.
    fn write(&mut self, through: u64) -> anyhow::Result<()> {
        let spool = &self.spool;
        for (lane, writer) in self.core.lanes() {
            if let Some(written) = writer.write(spool, through)?
                && let Some(index) = lane_index(lane)
            {
                self.written[index] = (written.epoch, written.number);
                self.syncer.written();
            }
        }
        self.settle()?;
        let through = through.max(self.through_boot_ns);
        let wall = self
            .core
            .clock
            .offset_ns()
            .wrapping_add(through.cast_signed());
        self.core.streams.store(&mut self.core.consumed);
        self.core.consumed.write(wall)?;
        let (life, bulk) = (self.kernel.life.position(), self.kernel.bulk.position());
        self.kernel.life.commit(life);
        self.kernel.bulk.commit(bulk);
        self.core.enforcer.written();
        Ok(())
    }

    /// What the cycle led to is in the lanes: the folds that have ended follow, and the state of the others.
    fn settle(&mut self) -> anyhow::Result<()> {
        let Core {
            folds,
            alert,
            clock,
            counts,
            ..
        } = &mut self.core;
        if !folds.pending() {
            return Ok(());
        }
        let (rows, written) = folds.settle(alert, &self.spool, boot_ns()?, clock.offset_ns())?;
        counts.alerts += rows;
        if let (Some(written), Some(index)) = (written, lane_index(Lane::Alert)) {
            self.written[index] = (written.epoch, written.number);
            self.syncer.written();
        }
        Ok(())
    }

    /// Nothing of this cycle counts: it will be read again.
    fn fail(&mut self, error: &anyhow::Error) {
        self.core.folds.rollback();
        self.core.changes.undo();
        self.core.untold.discard();
        for (_, lane) in self.core.lanes() {
            lane.discard();
        }
        self.core.streams.rewind(&self.core.consumed);
        self.kernel.life.rewind();
        self.kernel.bulk.rewind();
        self.status.trouble(SPOOL, Some(format!("{error:#}")));
        if self
            .last_complaint
            .is_none_or(|last| last.elapsed() > COMPLAIN_EVERY)
        {
            tracing::error!(
                error = format!("{error:#}"),
                "the spool cannot be written; reading has stopped, the kernel counts what is lost"
            );
            self.last_complaint = Some(Instant::now());
        }
    }

    /// A moment at which nothing is under way, if there is one soon. Sequences are
    /// read before the check, so whatever has a number by then has ended by the check.
    fn quiet(&self) -> Option<Quiet> {
        if self
            .last_watermark
            .is_some_and(|last| last.elapsed() < WATERMARK_EVERY)
        {
            return None;
        }
        let boot_ns = boot_ns().ok()?;
        let streams = self.kernel.streams().ok()?;
        for _ in 0..50 {
            if !self.kernel.in_flight().ok()? {
                return Some(Quiet { boot_ns, streams });
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Now and then, what decision points keep of calls whose return was not seen is removed: else there would be no room.
    fn forget_stale_calls(&mut self, now_ns: u64) {
        if self.forgot_ns + FORGET_EVERY_NS > now_ns {
            return;
        }
        self.forgot_ns = now_ns;
        if let Err(error) = self.kernel.forget_stale_calls(now_ns) {
            tracing::warn!(%error, "what decision points have kept cannot be looked through");
        }
        if let Ok(full) = self.kernel.points_full() {
            let counter = &self.status.counters.points_full;
            counter.store(full, Ordering::Relaxed);
        }
        if let Ok(forgotten) = self.kernel.writers_forgotten() {
            let counters = &self.status.counters;
            let (evicted, failed) = (&counters.writers_evicted, &counters.writers_failed);
            evicted.store(forgotten.evicted, Ordering::Relaxed);
            failed.store(forgotten.failed, Ordering::Relaxed);
        }
    }

    /// Runs of a program that the kernel left out have no number: all that can be said is how many
    /// there were at most. The door may be older than this agent: what it has counted by
    /// the first look may have happened while nobody looked.
    fn missed(&mut self, now_ns: u64) {
        let Ok(counts) = self.kernel.missed() else {
            return;
        };
        for (hook, count) in counts {
            let before = self.missed.insert(hook, count).unwrap_or(0);
            if count <= before {
                continue;
            }
            let more = count - before;
            tracing::warn!(
                hook,
                more,
                "the kernel has left out runs of a hook's program"
            );
            let gap = Gap {
                reason: "skipped".into(),
                count: None,
                from_boot_ns: self.through_boot_ns,
                to_boot_ns: now_ns,
                detail: format!("at most {more}, of {hook}"),
                ..Gap::default()
            };
            self.core.counts.gaps += 1;
            if hook.starts_with("sched_") {
                self.core.repair = true;
                self.core.life.gap(gap);
            } else {
                self.core.bulk.gap(gap);
            }
        }
    }

    /// Begins to read the policies again. Long lists take a good part of a second: the rings go on being read.
    fn begin_reload(&self) -> Reload {
        let (directory, before) = (self.policies.clone(), self.loaded.clone());
        std::thread::spawn(move || {
            let read = policies::load(&directory, &before);
            // What reading has taken is several times what is kept.
            heap::give_back();
            read
        })
    }

    /// Takes the policies that were read; a bad file leaves the rules that were loaded from it.
    fn reload(&mut self, read: Reload) {
        let applied = match read.join() {
            Ok(Ok(loaded)) => self
                .apply(loaded, false)
                .map_err(|error| error.context("the kernel does not take the new filter")),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(anyhow::anyhow!(
                "the thread that reads them panicked; see the log"
            )),
        };
        match applied {
            Ok(()) => {
                self.status.trouble(POLICIES, None);
                tracing::info!(hash = %self.loaded.hash(), rules = self.loaded.rules(), "policies are loaded");
            }
            Err(error) => {
                let error = format!("{error:#}; the loaded policies stay");
                tracing::error!(error, "the policies are not reloaded");
                self.status.trouble(POLICIES, Some(error));
            }
        }
        self.publish();
    }

    /// Swaps filter and rules; the scopes that change are recorded at the swap.
    fn apply(&mut self, mut loaded: Loaded, first: bool) -> anyhow::Result<()> {
        let generation = self.generation.wrapping_add(1);
        // Known before the kernel can stamp a record with it.
        self.core.detector.load(generation, loaded.engine());
        // From before the rules ask.
        let points = self.kernel.points();
        self.asked
            .begin(&mut self.core.changes, points, loaded.plan());
        let before_ns = boot_ns()?;
        let verdicts = loaded.verdicts();
        let Core {
            tree,
            untold,
            workloads,
            scopes,
            ..
        } = &mut self.core;
        let mut left_out = 0;
        let mut scoped = scope::Plan::default();
        let known = || {
            let (processes, more) = untold.everyone(tree, verdicts);
            left_out = more;
            let (plan, cgroups) = scopes.everyone(workloads, verdicts);
            scoped = plan;
            Known { processes, cgroups }
        };
        match self
            .kernel
            .set_rules(loaded.plan(), verdicts, generation, known)
        {
            Ok(swapped) => {
                let unscoped = self.core.scopes.swap(scoped, swapped.unscoped);
                if unscoped > 0 {
                    tracing::warn!(
                        cgroups = unscoped,
                        "the kernel has no room for whose all cgroups are: rules that ask for workloads are judged late there"
                    );
                }
                if swapped.late {
                    let reason =
                        "the texts of the rules that kill need more room than the kernel's map has";
                    tracing::warn!("{reason}: what they name is killed after it has started");
                    loaded.without_kernel(reason);
                }
                if swapped.unseeded + left_out > 0 {
                    tracing::warn!(
                        processes = swapped.unseeded + left_out,
                        "the kernel has no room for the ancestry of all processes: rules that ask for ancestors kill some after they have started"
                    );
                }
                for kind in swapped.widened {
                    tracing::warn!(
                        kind = kind_name(kind),
                        "the rules need more room than the kernel's filter has; every event of the kind is sent"
                    );
                }
            }
            Err(error) => {
                self.core.detector.unload(generation);
                self.asked.end(&mut self.core.changes, false);
                return Err(error.into());
            }
        }
        let after_ns = boot_ns()?;
        self.asked.end(&mut self.core.changes, true);
        self.core.tree.keep_writers(loaded.plan().writers);
        self.generation = generation;
        self.loaded = loaded;
        let (rules, asked) = self.loaded.isolating();
        let refused = self
            .loaded
            .refused()
            .iter()
            .any(|file| file.kept.is_empty());
        self.core.isolation.set_rules(&rules, asked, refused);
        let held = !self.loaded.held().is_empty();
        if let Err(error) = self.unsaid.set(held || self.unsaid.is_left()) {
            tracing::warn!(%error, "cannot write that calls are held: if the agent is killed, nothing says that denied calls may be missing");
        }
        self.hold_calls(generation);
        if let Err(error) = self.applied.write(generation, self.loaded.hash()) {
            tracing::warn!(%error, "cannot write which rules are applied: after a restart nothing is killed for what is recorded until then");
        }
        if first {
            return Ok(());
        }
        self.scope(before_ns, after_ns);
        Ok(())
    }

    /// Says what is collected, if it is something else than before.
    fn scope(&mut self, before_ns: u64, after_ns: u64) {
        let hooks = self.kernel.hooks();
        let mut scopes = self.loaded.scopes(hooks, self.generation, after_ns);
        policies::narrow(&mut scopes, &self.standing.report.blind);
        for scope in policies::changes(&self.scopes, &scopes, before_ns) {
            self.core.life.open().scope(scope);
        }
        self.scopes = scopes;
    }

    /// Hands the rules by which calls are held, and what is known for them, to whoever holds them.
    fn hold_calls(&mut self, generation: u32) {
        let rules = self.loaded.held();
        let Core {
            workloads, scopes, ..
        } = &mut self.core;
        let questions = Keeper::questions(rules);
        let cgroups = scopes.hold(workloads, &questions);
        let hierarchy = cgroup::hierarchy(self.kernel.cgroup_controller());
        let hierarchy = hierarchy
            .inspect_err(|error| tracing::warn!(%error, "whose a process is that opens a file cannot be told"))
            .ok();
        self.keeper
            .set(rules, generation, &self.host, (hierarchy, cgroups));
    }

    /// Nobody looked between the last agent and now, or not at everything.
    fn unwatched(&mut self, before: Option<&Before>, attached_ns: u64, why: (&str, &str)) {
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
    fn bootstrap_cgroups(&mut self) {
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
    fn bootstrap(&mut self) -> anyhow::Result<()> {
        let mut alive = HashSet::new();
        let core = &mut self.core;
        self.kernel
            .bootstrap_tasks(|bytes| core.task(bytes, &mut alive))?;
        self.core.tree.join();
        // Exits may have been lost, too.
        self.core.tree.retire_all_but(&alive);
        Ok(())
    }

    /// Process records were lost: asks the kernel for what runs now.
    fn repair(&mut self) {
        let due = self
            .last_repair
            .is_none_or(|last| last.elapsed() > REPAIR_EVERY);
        if !self.core.repair || !due {
            return;
        }
        self.last_repair = Some(Instant::now());
        self.core.repair = false;
        self.bootstrap_cgroups();
        if let Err(error) = self.bootstrap() {
            let error = format!("{error:#}");
            tracing::warn!(
                error,
                "the process tree cannot be repaired; ancestry may be missing"
            );
        }
    }

    /// Goes on with the look at what the kernel does not show, which a thread of its own takes, while a rule asks for it.
    fn look_at_kernel(&mut self, bulk_emptied: bool) {
        if let Some((report, held, since)) = self.reported.take() {
            // That a module was removed may be told by a record that is not read yet.
            match bulk_emptied || since.elapsed() > LATE_WITHIN {
                true => self.judge(report, held, bulk_emptied),
                false => self.reported = Some((report, held, since)),
            }
        }
        let asked = *self.loaded.plan().kind(Kind::Integrity) != KindPlan::None;
        let process = |key: ImageKey| Process {
            pid: key.pid,
            start_ns: key.start_ns,
        };
        match self.watch.turn(asked) {
            Turn::Nothing => {}
            Turn::Begin => {
                let living = self.core.tree.living();
                let processes = living.map(|node| process(node.key)).collect();
                let modules = self.core.modules.names();
                if let Err(reason) = self.watch.look(processes, modules) {
                    self.blind(reason);
                }
            }
            Turn::Confirm(mut missing) => {
                // Most have ended, and their records have been read since.
                let living = self.core.tree.living();
                let living: HashSet<Process> = living.map(|node| process(node.key)).collect();
                missing.retain(|one| living.contains(one));
                // Records may be late, or lost: the kernel's own list decides.
                let tasks = match missing.is_empty() {
                    true => Err("nobody is missing".into()),
                    false => self.kernel.running().map_err(|error| error.to_string()),
                };
                self.watch.alive(missing, tasks);
            }
            Turn::Done(report, held) => self.reported = Some((report, held, Instant::now())),
            Turn::Failed(reason) => self.blind(reason),
        }
        if self.standing.asked != asked || self.standing.every != self.watch.every() {
            self.standing.asked = asked;
            self.standing.every = self.watch.every();
            self.publish();
        }
    }

    /// Takes out what the records since tell otherwise. `read`: all of them were read that were there when the look ended.
    fn judge(&mut self, mut report: Report, held: Held, read: bool) {
        let modules = self.core.modules.names();
        let found = report.findings.len();
        report
            .findings
            .retain(|one| !one.needs_module() || read && modules.contains(&one.object));
        if !read && found > report.findings.len() {
            let reason = "records are late: whether modules were removed is not known".to_owned();
            report.partly.insert(Check::HiddenModule, reason);
        } else if let Some(reason) = self.core.modules.unknown() {
            report.partly.insert(Check::HiddenModule, reason);
        }
        // The agent has looked at their folders in vain, and may not kill what it knows nothing of.
        let tree = &self.core.tree;
        let known = |process: &Process| {
            let mut living = tree.living();
            let node = living.find(|node| is(node.key, *process))?;
            let program = node.program().filter(|program| program.exe_flaws == 0)?;
            let name = program.exe_path.rsplit('/').next()?;
            (!name.is_empty()).then(|| name.to_owned())
        };
        let named = held
            .into_iter()
            .filter_map(|(process, held)| Some((process, held, known(&process)?)));
        self.core.enforcer.prove(named.collect());
        self.found(report);
    }

    /// Nothing could be looked at.
    fn blind(&mut self, reason: String) {
        let blind = Check::ALL.into_iter().map(|check| (check, reason.clone()));
        let report = Report {
            blind: blind.collect(),
            ..Report::default()
        };
        self.found(report);
    }

    /// A look has ended.
    fn found(&mut self, report: Report) {
        let now_ns = boot_ns().unwrap_or(self.through_boot_ns);
        let when = (self.generation, now_ns, self.through_boot_ns);
        for Finding {
            check,
            object,
            detail,
            ..
        } in self.findings.add(&report, when)
        {
            tracing::warn!(
                check = check.name(),
                object,
                detail,
                "the kernel does not show what it knows"
            );
        }
        let before = &self.standing.report;
        for (check, reason) in report.blind.iter().chain(&report.partly) {
            let told = [before.blind.get(check), before.partly.get(check)];
            if !told.contains(&Some(reason)) {
                tracing::warn!(check = check.name(), reason, "cannot be looked at");
            }
        }
        self.standing.looked_ns = policies::wall_ns();
        let same = self.standing.report.blind == report.blind;
        self.standing.report = report;
        if !same {
            // Not what is complete already: what was found there has been told.
            self.scope(
                self.through_boot_ns + 1,
                now_ns.max(self.through_boot_ns + 1),
            );
        }
        self.publish();
    }

    /// Says once of each exception that it has expired; the engine judges that for each event by itself,
    /// the kernel is given its rules anew. It is also told that there is an agent.
    fn expire(&mut self) {
        let now_ns = policies::wall_ns();
        let (from_ns, passed) = (self.expired_through_ns, now_ns - self.expired_through_ns);
        // Also after the clock was set back.
        if passed.unsigned_abs() < EXPIRE_EVERY_NS {
            return;
        }
        self.expired_through_ns = now_ns;
        if let Err(error) = self.hold() {
            tracing::error!(
                error = format!("{error:#}"),
                "the rules that kill may expire"
            );
        }
        self.core.isolation.tick();
        self.loaded.tell_expired(from_ns, now_ns);
        // Also when a clock that was set back makes exceptions apply again, and until it is done.
        let Some(renewed) = self.loaded.renewed(now_ns) else {
            self.status.trouble(EXPIRED, None);
            return;
        };
        let applied = self.apply(renewed, false);
        let error = applied.err().map(|error| {
            format!("{error:#}; the kernel goes on with exceptions that have expired")
        });
        if self.status.trouble(EXPIRED, error.clone())
            && let Some(error) = error
        {
            tracing::error!(error, "the rules that kill are not swapped");
        }
        self.publish();
    }

    /// The kernel's rules hold from now on for as long as is asked for.
    fn hold(&mut self) -> anyhow::Result<()> {
        let hold_ns = u64::try_from(self.hold.as_nanos()).unwrap_or(u64::MAX);
        Ok(self.kernel.hold_until(boot_ns()?.saturating_add(hold_ns))?)
    }

    /// No rule kills the agent.
    fn guard(&mut self) -> anyhow::Result<()> {
        let own = std::process::id();
        let node = self.core.tree.living().find(|node| node.key.pid == own);
        let Some((node, program)) = node.and_then(|node| Some((node.clone(), node.program()?)))
        else {
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
            pid: u64::from(own),
        })?)
    }

    /// Says when rules that deny are carried out otherwise than before.
    fn look_at_keeper(&mut self) {
        let now = self.keeper.report();
        let same = (&now.trouble, &now.missing) == (&self.holding.trouble, &self.holding.missing);
        self.holding = now;
        if same {
            return;
        }
        let trouble = self.holding.trouble.clone();
        if self.status.trouble(DENY, trouble.clone()) {
            match trouble {
                Some(trouble) => tracing::error!(trouble, "nothing is denied"),
                None => tracing::info!("rules that deny are carried out"),
            }
        }
        for missing in &self.holding.missing {
            tracing::warn!(
                rule = missing.rule,
                reason = missing.reason,
                "a rule that denies is not carried out"
            );
        }
        self.publish();
    }

    /// Waits a little until the workloads that are there have been named: rules of a previous agent hold as long, and the new
    /// ones are not to begin with less.
    fn name_workloads(&mut self, cloud: bool) {
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

    /// Tells the kernel whose cgroups are.
    fn tell_scopes(&mut self) {
        let Core {
            workloads, scopes, ..
        } = &mut self.core;
        scopes.tell(&mut self.kernel, workloads);
        self.keeper.tell(scopes.take_told());
    }

    /// Tells the kernel of the ancestors that it has asked for.
    fn tell(&mut self, emptied: bool) {
        let Core { tree, untold, .. } = &mut self.core;
        let left_out = untold.tell(&mut self.kernel, tree, self.loaded.verdicts(), emptied);
        if left_out > 0 {
            tracing::debug!(
                left_out,
                "the kernel has no room for the ancestry of some processes"
            );
        }
    }

    /// Everything up to a time is in the lanes.
    fn reached(&mut self, through_boot_ns: u64) {
        let progress = &self.status.progress;
        progress.set_wall_offset_ns(self.core.clock.offset_ns());
        for (index, lane) in LANES.iter().enumerate() {
            let (epoch, number) = self.written[index];
            progress.written(*lane, epoch, number, through_boot_ns);
        }
        let (counters, counts) = (&self.status.counters, &self.core.counts);
        let set = |counter: &AtomicU64, value| counter.store(value, Ordering::Relaxed);
        set(&counters.records, counts.life + counts.bulk);
        set(&counters.undecodable, counts.undecodable);
        set(&counters.events, counts.events);
        set(&counters.alerts, counts.alerts);
        set(&counters.excepted, counts.excepted);
        set(&counters.folded, counts.folded);
        set(&counters.gaps, counts.gaps);
        self.told.counters(counters);
        let workloads = self.core.workloads.stats();
        set(&counters.cgroups_left_out, workloads.left_out);
        set(&counters.cgroups_unknown, workloads.unknown);
        set(&counters.workloads_pending, workloads.pending as u64);
        set(&counters.scopes, self.core.scopes.told() as u64);
        set(&counters.scopes_left_out, self.core.scopes.left_out());
        let full = self.core.scopes.is_full().then(|| {
            "the kernel has no room for whose further cgroups are: rules that ask for workloads are judged late there".to_owned()
        });
        if self.status.trouble(SELECTORS, full.clone())
            && let Some(full) = full
        {
            tracing::error!("{full}");
        }
        set(&counters.names_evicted, self.core.names.evicted());
        changes::count(self.core.changes.counts(), counters);
        let denials = self.core.denier.denials().iter().flatten();
        for (counter, count) in counters.denials.iter().flatten().zip(denials) {
            set(counter, *count);
        }
        set(&counters.held_calls, self.holding.counts.held);
        set(&counters.held_overflows, self.holding.counts.overflows);
        set(&counters.holder_restarts, self.holding.restarts);
        let kills = self.core.enforcer.kills().iter().flatten();
        for (counter, count) in counters.kills.iter().flatten().zip(kills) {
            set(counter, *count);
        }
    }

    /// What changes with policies and hooks.
    fn publish(&mut self) {
        let hooks = self.kernel.hooks();
        let trouble = self.holding.trouble.as_deref();
        let told = self.asked.tell(&self.core.changes);
        let seen = (self.kernel.points(), self.kernel.rings(), &told);
        let mut doors = doors(hooks, seen, self.kernel.doors(), trouble);
        if let Some(door) = doors.iter_mut().find(|door| door.kind() == Kind::Integrity)
            && self.watch.every().is_some()
        {
            door.rung = "agent".into();
            door.reason = self.standing.blind();
        }
        let standing = self.standing.clone();
        self.status.update(|parts| {
            parts.doors = doors;
            parts.integrity = standing;
        });
        self.holding = self.keeper.report();
        let mut report = self.loaded.report(hooks, &self.holding);
        if let Some(reason) = self.core.isolation.trouble() {
            policies::without_isolation(&mut report, reason);
        }
        if self.standing.asked {
            self.loaded
                .without_checks(&mut report, &self.standing.report.blind);
        }
        self.status.set_policies(report);
        let carried = self.loaded.denied(hooks, &self.holding);
        self.core.denier.set_carried(carried);
    }
}

/// How each kind is seen, and what makes its calls fail.
fn doors(
    hooks: &[HookStatus],
    (points, rings, told): (&[PointStatus], &[PointStatus], &Result<String, String>),
    deny: &[DoorStatus],
    trouble: Option<&str>,
) -> Vec<Door> {
    KINDS
        .iter()
        .map(|(name, kind)| {
            let (deny, deny_reason) = denied(*kind, deny, trouble);
            let of_kind: Vec<_> = hooks
                .iter()
                .filter(|hook| hook.kinds.contains(name))
                .collect();
            let refused: Vec<_> = of_kind
                .iter()
                .filter(|hook| !hook.available)
                .map(|hook| {
                    format!(
                        "{}: {}",
                        hook.hook,
                        hook.reason.as_deref().unwrap_or_default()
                    )
                })
                .collect();
            let seen = refused.is_empty() && !of_kind.is_empty();
            let point = points.iter().find(|point| point.kind == *kind);
            let no_point = point.map(|point| point.reason.as_deref());
            let mut reasons = refused;
            let rung = match (seen, kind, no_point) {
                (false, ..) => "none",
                (true, Kind::Sysctl, _) => "cgroup",
                (true, _, Some(None)) => "fentry",
                (true, _, why) => {
                    reasons.extend(why.flatten().map(|why| format!("fentry: {why}")));
                    match kind {
                        Kind::Rename | Kind::Unlink => changes::rung(told, &mut reasons),
                        _ => "tracepoint",
                    }
                }
            };
            let ring = rings.iter().find(|ring| ring.kind == *kind);
            let untold = ring.and_then(|ring| ring.reason.as_ref());
            reasons.extend(untold.map(|why| format!("not told of io_uring: {why}")));
            Door {
                kind: (*kind).into(),
                rung: rung.into(),
                reason: reasons.join("; "),
                deny,
                deny_reason,
            }
        })
        .collect()
}

/// What makes calls of a kind fail on this host, and why it is not better; empty if nothing ever does.
fn denied(kind: Kind, doors: &[DoorStatus], trouble: Option<&str>) -> (String, String) {
    let Some(door) = doors.iter().find(|door| door.kind == kind) else {
        return (String::new(), String::new());
    };
    match (&door.reason, trouble) {
        (None, _) => (door.rung.into(), String::new()),
        (Some(reason), None) if matches!(kind, Kind::Open | Kind::Exec) => {
            ("fanotify".into(), reason.clone())
        }
        (Some(reason), Some(trouble)) if matches!(kind, Kind::Open | Kind::Exec) => (
            "none".into(),
            format!("{}: {reason}; fanotify: {trouble}", door.rung),
        ),
        (Some(reason), _) => ("none".into(), reason.clone()),
    }
}

fn is(key: ImageKey, process: Process) -> bool {
    (key.pid, key.start_ns) == (process.pid, process.start_ns)
}

fn losses(streams: &[(StreamId, Stream)]) -> Vec<Loss> {
    let named = |(stream, state): &(StreamId, Stream)| {
        let stream = *stream;
        REASONS
            .iter()
            .filter_map(|(reason, name)| {
                let count = state.lost[*reason as usize];
                (count > 0).then(|| Loss {
                    ring: stream.ring.into(),
                    cpu: stream.cpu,
                    level: stream.level.into(),
                    reason: (*name).into(),
                    count,
                })
            })
            .collect::<Vec<_>>()
    };
    streams.iter().flat_map(named).collect()
}

/// Names of the kernel's reasons for a loss.
const REASONS: [(u32, &str); 4] = [
    (reason::RING_FULL, "ring_full"),
    (reason::NESTED, "nested"),
    (reason::TOO_LONG, "too_long"),
    (reason::LIMITED, "limited"),
];

fn drain(ring: &mut crate::kernel::Ring, max_bytes: u64, core: &mut Core) -> u64 {
    let before = ring.position();
    if max_bytes == 0 {
        return 0;
    }
    let mut records = ring.drain(max_bytes);
    while let Some(bytes) = records.next() {
        core.record(bytes);
    }
    ring.position() - before
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
