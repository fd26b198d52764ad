//! The cycle of reading, and what happens around it: start, reload, stop.

mod look;
mod publish;
mod rules;
mod start;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sumun_abi::loss::{Stream, reason};
use sumun_proto::Host;
use sumun_proto::v1::{Gap, Lane, Loss, Scope};

use super::applied::Applied;
use super::changes::{Asked, Moment};
use super::clock::boot_ns;
use super::core::Core;
use super::denied::{Pending, Unsaid};
use super::integrity::Findings;
use super::policies::{self, Loaded};
use super::syncer::Syncer;
use super::told::Told;
use crate::enforce::fanotify::{self, Keeper};
use crate::integrity::{Held, Report, Standing, Watch};
use crate::kernel::{Kernel, StreamId, heap};
use crate::released::Note;
use crate::spool::Spool;
use crate::status::{Status, lane_index};

pub use start::Setup;

/// Bytes read from a ring in one cycle at most: bounds the memory of a cycle.
const CYCLE_BYTES: u64 = 512 * 1024;
/// Where this waits in the rings there is no pause.
const BUSY_BYTES: u64 = 256 * 1024;
/// Pause after a cycle. A batch, its write, its sync and its way to the collector cost the same
/// whatever is in it: with a third of this, an exec took twice the processor time (docs/performance.md).
const PAUSE: Duration = Duration::from_millis(15);
/// So many of them under load, one after the other as long as no more than `BUSY_BYTES` waits, where nothing but storing comes of a record.
const PAUSES_UNDER_LOAD: u32 = 3;
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
/// At least this between two looks for calls whose return was not seen, ns.
const FORGET_EVERY_NS: u64 = 10_000_000_000;
/// At most one line of log in this time about the same trouble.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Who complains in the status.
const SPOOL: &str = "spool";

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
            self.rest(pause);
        }
        self.keeper.stop();
        // Until the rings are empty, but not for ever: others go on writing.
        for _ in 0..8 {
            self.last_watermark = None;
            let pause = self.cycle();
            if pause >= TROUBLE_PAUSE || self.backlog() < STRAIN_BYTES {
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
        let scoped = self.core.scopes.are_asked();
        // A record that is being written holds up those behind it: asking again at once would not help its writer.
        if read > 0 && self.backlog() >= BUSY_BYTES {
            Duration::ZERO
        } else if scoped && self.core.workloads.stats().pending > 0 {
            // The kernel's rules wait for what a runtime says.
            ASKING_PAUSE
        } else if read < STRAIN_BYTES
            || scoped
            || self.loaded.acts()
            || self.core.changes.is_watching()
        {
            // Somebody may wait for what comes of a record: the kernel for an ancestry, a new cgroup for its rules, a kill that the
            // kernel could not do; and who renamed something is looked for while the thread is there.
            PAUSE
        } else {
            PAUSE * PAUSES_UNDER_LOAD
        }
    }

    /// Bytes that wait in the rings.
    fn backlog(&self) -> u64 {
        self.kernel.life.backlog() + self.kernel.bulk.backlog()
    }

    /// Waits; under load only as long as little has come.
    fn rest(&self, pause: Duration) {
        if pause >= TROUBLE_PAUSE {
            std::thread::sleep(pause);
            return;
        }
        let mut left = pause;
        while !left.is_zero() {
            let step = left.min(PAUSE);
            std::thread::sleep(step);
            left -= step;
            if self.backlog() >= BUSY_BYTES {
                break;
            }
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
