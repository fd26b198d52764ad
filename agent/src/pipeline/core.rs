//! What happens to a record between the ring and the spool.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::rc::Rc;

use sumun_abi::event::deny::Asked;
use sumun_abi::event::process::{Actor, outcome};
use sumun_abi::record::{Header, RING_LIFE};
use sumun_abi::verdict::Verdict as OfRecord;
use sumun_engine::Hit;
use sumun_policy::Mode;
use sumun_policy::plan::is_unfiltered;
use sumun_proto::v1::{self, Event, Gap, Kind, Lane, Verdict};

use super::changes;
use super::clock::Clock;
use super::consumed::Consumed;
use super::folds::{Folds, Sample};
use super::integrity::Modules;
use super::lanes::LaneWriter;
use super::streams::{Seen, Streams};
use crate::detect::Detector;
use crate::enforce::deny::{Denier, Of, Passed};
use crate::enforce::isolate::{ByRule, Isolation};
use crate::enforce::lineage::Untold;
use crate::enforce::scope::Scopes;
use crate::enforce::verdict::{Told, of_event};
use crate::enforce::{Enforcer, Judged};
use crate::enrich::changes::Changes;
use crate::enrich::login;
use crate::enrich::names::Names;
use crate::enrich::process::{ImageKey, Node, Tree};
use crate::enrich::runtime::cloud;
use crate::enrich::workload::{Workload, Workloads};
use crate::kernel::{StreamId, handles};
use crate::receive::record::{Body, Malformed, Record};
use crate::receive::{cgroup, deny, file, kernel, network, privilege, process};

/// Counters of the pipeline since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records read from the life ring.
    pub life: u64,
    /// Records read from the bulk ring.
    pub bulk: u64,
    /// Bulk records that no rule wanted.
    pub unwanted: u64,
    /// Events written to a lane.
    pub events: u64,
    /// Alerts written.
    pub alerts: u64,
    /// Alerts that were counted instead, beyond the rate of their rule.
    pub folded: u64,
    /// Alerts that an exception kept from being raised.
    pub excepted: u64,
    /// Records that could not be read.
    pub undecodable: u64,
    /// Gaps found between kernel and agent.
    pub gaps: u64,
}

/// Everything that a record passes through, on the reading thread.
pub struct Core {
    /// Processes.
    pub tree: Tree,
    /// Whose they are.
    pub workloads: Workloads,
    /// Sequences.
    pub streams: Streams,
    /// Stored read positions.
    pub consumed: Consumed,
    /// Wall clock.
    pub clock: Clock,
    /// Rules.
    pub detector: Detector,
    /// Names that addresses were resolved from.
    pub names: Names,
    /// Modules that were loaded.
    pub(super) modules: Modules,
    /// Renames and removals, as fanotify tells of them.
    pub changes: Changes,
    /// The host's mount namespace, by its number; `None` if that cannot be told.
    pub host_mounts: Option<u32>,
    /// What rules that kill lead to.
    pub enforcer: Enforcer,
    /// What became of rules that deny.
    pub denier: Denier,
    /// What rules that isolate lead to.
    pub isolation: Isolation,
    /// When this agent tried what can be denied, boot time in ns, and the thread that did: what it recorded of its own harmless
    /// calls, if hooks of an agent before it were attached, is no event.
    pub tries: (u32, std::ops::RangeInclusive<u64>),
    /// Children of this agent on which it tried how the kernel kills, and when, likewise: they are told as any process, but no
    /// rule is about them.
    pub trials: (Vec<u32>, std::ops::RangeInclusive<u64>),
    /// Lane of process life.
    pub life: LaneWriter,
    /// Lane of file and network events.
    pub bulk: LaneWriter,
    /// Lane of alerts.
    pub alert: LaneWriter,
    /// Alerts beyond their rule's rate.
    pub folds: Folds,
    /// The agent's own pid in the initial namespace, as far as that can be told.
    pub own_pid: u32,
    /// The agent among the processes; `None` until it has found itself.
    pub own: Option<Rc<Node>>,
    /// Counters.
    pub counts: Counts,
    /// Process records were lost: the tree has to be repaired by the task iterator.
    pub repair: bool,
    /// Processes whose ancestry the kernel has to be told.
    pub untold: Untold,
    /// Whose cgroups are, as the kernel is told.
    pub scopes: Scopes,
}

impl Core {
    /// A record of one of the rings.
    pub fn record(&mut self, bytes: &[u8]) {
        let record = match Record::parse(bytes) {
            Ok(record) => record,
            Err(malformed) => return self.undecodable(bytes, malformed),
        };
        let header = record.header;
        let life = header.ring == RING_LIFE;
        if life {
            self.counts.life += 1;
        } else {
            self.counts.bulk += 1;
        }
        let seen = self.take(&header);
        let told = match &record.body {
            Body::Asked(asked) => {
                let told = Told::of_call(&asked.verdict);
                if told.is_none_or(|told| told.denied_by().is_none()) {
                    return self.passed(&record, asked, seen);
                }
                told
            }
            Body::Exec(exec) => Told::of_exec(exec),
            Body::Setting(setting) => Told::of_call(&setting.verdict),
            _ => of_record(&record.body).and_then(|verdict| Told::of(&verdict)),
        };
        let offset_ns = self.clock.offset_ns();
        let tree = &mut self.tree;
        let (event, node, actor) = match &record.body {
            // Process records come to the tree also when they were dealt with before a restart.
            Body::Fork(fork) => process::fork(tree, fork),
            Body::Exec(exec) => {
                let began = process::exec(tree, &record, exec, offset_ns);
                login::look(&began.1);
                began
            }
            Body::Exit(exit) => process::exit(tree, exit),
            Body::Task(task) => {
                login::look(&process::task(tree, &record, task, offset_ns));
                return;
            }
            // So do cgroups, to the table of workloads.
            Body::Cgroup(cgroup) => {
                return cgroup::cgroup(&mut self.workloads, &record, cgroup);
            }
            Body::Asked(asked) if deny::kind(asked) == Kind::Exec => {
                let (actor, asker) = (asked.actor, tree.find(&asked.actor));
                // As of any exec, the process is shown with the program that it asked for.
                let program = deny::program(&record, asked);
                let node = tree.never_began(&asker, program, header.boot_ns);
                (deny::denied(&record, asked), node, actor)
            }
            body => {
                let actor = body.actor();
                let mut event = other(&record, &mut self.names);
                self.names.name(&mut event, &actor);
                if let Body::Module(..) = body {
                    self.modules.told(&event);
                }
                (event, tree.find(&actor), actor)
            }
        };
        if !life && actor.tid == self.tries.0 && self.tries.1.contains(&header.boot_ns) {
            return;
        }
        if actor.pid == self.own_pid && changes::is_look(&record.body) {
            return;
        }
        match &record.body {
            Body::Fork(fork) if fork.lineage_unknown != 0 => {
                // Its parent is one that the kernel does not know, either.
                self.untold.processes.extend(node.parent());
                self.untold.processes.push(Rc::clone(&node));
            }
            Body::Exec(exec) if exec.lineage_unknown != 0 => {
                self.untold.processes.push(Rc::clone(&node));
            }
            Body::Exit(exit) => self
                .untold
                .ended
                .push((exit.actor.pid, exit.actor.start_ns)),
            body => {
                if of_record(body).is_some_and(|verdict| {
                    verdict.outcome == outcome::UNDECIDED && verdict.lineage_unknown != 0
                }) {
                    self.untold.processes.push(Rc::clone(&node));
                }
            }
        }
        if seen == Seen::New {
            let mut event = event;
            // Of a call that failed fanotify tells nothing.
            if matches!(record.body, Body::Rename(names) | Body::Unlink(names) if names.result >= 0)
            {
                let as_host = Some(node.ns.mnt) == self.host_mounts;
                self.changes
                    .confirm(&mut event, &actor, header.boot_ns, as_host);
            }
            self.emit(event, &node, (&actor, true), &header, told);
        }
    }

    /// A call that a rule would have denied, and that went on: its own event follows, if it becomes one.
    fn passed(&mut self, record: &Record<'_>, asked: &Asked, seen: Seen) {
        let kind = deny::kind(asked);
        let of = (kind, asked.actor.pid, asked.ino, record.header.boot_ns);
        if let Some(passed) =
            Told::of_call(&asked.verdict).and_then(|told| Passed::of_told(told, of))
            && seen == Seen::New
        {
            self.denier.let_through(passed);
        }
        if asked.verdict.lineage_unknown != 0 {
            let node = self.tree.find(&asked.actor);
            self.untold.processes.push(node);
        }
    }

    /// A process of the task iterator.
    pub fn task(&mut self, bytes: &[u8], alive: &mut HashSet<ImageKey>) {
        match Record::parse(bytes) {
            Ok(record) => {
                if let Body::Task(task) = &record.body {
                    let offset_ns = self.clock.offset_ns();
                    let node = process::task(&mut self.tree, &record, task, offset_ns);
                    login::look(&node);
                    alive.insert(node.key);
                }
            }
            Err(malformed) => {
                self.counts.undecodable += 1;
                tracing::warn!(%malformed, "a record of the task iterator cannot be read");
            }
        }
    }

    /// Adds a gap to the lane of its ring.
    pub fn gap(&mut self, stream: StreamId, gap: Gap) {
        self.counts.gaps += 1;
        tracing::warn!(
            ring = stream.ring, cpu = stream.cpu, reason = %gap.reason, count = ?gap.count,
            "records were lost between kernel and agent"
        );
        if stream.ring == RING_LIFE {
            self.repair = true;
            self.life.gap(gap);
        } else {
            self.modules.forget("records were lost");
            self.bulk.gap(gap);
        }
    }

    fn take(&mut self, header: &Header) -> Seen {
        let (seen, gap) = self.streams.take(header, &self.consumed);
        if let Some(gap) = gap {
            self.gap(stream_of(header), gap);
        }
        seen
    }

    /// Adds an event to the lanes. Of an actor that is not `certain` nothing is killed.
    pub(super) fn emit(
        &mut self,
        mut event: Event,
        node: &Rc<Node>,
        (actor, certain): (&Actor, bool),
        header: &Header,
        told: Option<Told>,
    ) {
        let (stream, life) = (stream_of(header), header.ring == RING_LIFE);
        let (kind, failed) = (event.kind(), event.failed);
        event.boot_ns = header.boot_ns;
        event.origin = Some(v1::Origin {
            ring: header.ring.into(),
            cpu: header.cpu,
            level: header.level.into(),
            seq: header.seq,
        });
        let workload = self.workloads.of(actor.cgroup_id);
        let by = (node, actor, workload.as_ref());
        let lane = if life { &mut self.life } else { &mut self.bulk };
        let held = lane.holds(stream, header.seq);
        let batch = lane.open();
        event.image = batch.image(node, actor, workload.as_ref());
        batch.event(event, stream, header.seq);
        let generation = header.generation;
        let on_trial =
            self.trials.0.contains(&actor.pid) && self.trials.1.contains(&header.boot_ns);
        let told = told.filter(|_| !on_trial);
        let mut found = self.detector.judge(generation, batch.batch()).to_vec();
        if on_trial {
            found.clear();
        }
        if told.is_some_and(|told| told.denied_by().is_some()) && !has_failures(kind) {
            // Other rules are not asked: nothing was opened, executed or changed.
            found.retain(|hit| hit.deny == Some(Mode::Enforce));
        }
        // Rules are about those who steal credentials there; the agent is one of those who may ask. It is on record all the same.
        if cloud::is_asked(&batch.batch().events)
            && is_own(node, actor, (self.own_pid, self.own.as_deref()))
        {
            for hit in &mut found {
                hit.alert = false;
                (hit.kill, hit.deny, hit.isolate) = (None, None, None);
            }
        }
        let judged = Judged {
            stream,
            seq: header.seq,
            generation,
            kind,
            actor,
            told: told.and_then(Told::after),
            dealt_with: held || !self.detector.knows(generation),
            certain,
            tree: &self.tree,
        };
        let mut verdicts = self.enforcer.judge(&self.detector, &judged, &mut found);
        let ino = batch.last_ino();
        let of = Of {
            kind,
            pid: actor.pid,
            ino,
            boot_ns: header.boot_ns,
        };
        let detector = &self.detector;
        self.denier
            .judge(&mut found, &mut verdicts, of, told, |rule| {
                detector.has(generation, rule)
            });
        let asked = |rule| ByRule {
            rule: detector.describe(generation, rule),
            lasts: detector.lasts(generation, rule),
        };
        self.isolation
            .judge(&found, &mut verdicts, judged.dealt_with, asked);
        if let Some(verdict) = of_event(&verdicts) {
            batch.verdict(verdict.clone());
        }
        for hit in &found {
            let rule = batch.rule((generation, hit.rule), || {
                self.detector.describe(generation, hit.rule)
            });
            batch.matched(rule);
            if let Some(exception) = hit.exception {
                self.counts.excepted += 1;
                batch.excepted(rule, exception, || {
                    self.detector.exception(generation, hit.rule, exception)
                });
            }
        }
        // Process life is stored whether or not a rule asks for it, and where a name is the
        // caller's word it decides about alerts only, but for calls that failed.
        let stored = life || !found.is_empty() || is_unfiltered(kind) && !failed;
        if held || !stored {
            let event = batch.withdraw();
            if !held {
                self.counts.unwanted += 1;
            }
            if found.is_empty() {
                return;
            }
            self.alerts(event, (&found, &verdicts), by, header);
            return;
        }
        self.counts.events += 1;
        if found.iter().any(|hit| hit.alert) {
            let event = batch.batch().events.last().cloned();
            self.alerts(event, (&found, &verdicts), by, header);
        }
    }

    /// Finds the agent among the processes. Its pid as it knows it itself is that of its own namespace.
    pub(super) fn find_itself(&mut self) -> Option<&Rc<Node>> {
        let own = std::process::id();
        let space = std::fs::metadata("/proc/self/ns/pid").map_or(0, |space| space.ino());
        let inside = |node: &Rc<Node>| {
            u64::from(node.ns.pid) == space && space != 0 && node.ns.pid_inside == own
        };
        let found = self.tree.living().find(inside);
        // Where the host's numbers are the agent's.
        let found = found.or_else(|| {
            let mut all = self.tree.living();
            all.find(|node| space == handles::FIRST_PIDS && node.key.pid == own)
        });
        self.own_pid = found.as_ref().map_or(0, |node| node.key.pid);
        self.own = found;
        self.own.as_ref()
    }

    pub(super) fn alerts(
        &mut self,
        event: Option<Event>,
        (found, verdicts): (&[Hit], &[Option<Verdict>]),
        (node, actor, workload): (&Rc<Node>, &Actor, Option<&Rc<Workload>>),
        header: &Header,
    ) {
        let (stream, generation) = (stream_of(header), header.generation);
        let Some(event) = event else { return };
        let held = self.alert.holds(stream, header.seq);
        let counted = self.folds.has_counted(stream, header.seq);
        let judged_by = self.detector.judged_by(generation);
        let mut rated = false;
        for (index, hit) in found.iter().enumerate().filter(|(_, hit)| hit.alert) {
            let verdict = || verdicts.get(index).cloned().flatten();
            if let Some(rate) = self.detector.rate(generation, hit.rule) {
                if counted {
                    continue;
                }
                rated = true;
                let sample = || Sample {
                    event: Event {
                        rules: Vec::new(),
                        exceptions: Vec::new(),
                        verdict: verdict(),
                        ..event.clone()
                    },
                    by: Some((Rc::clone(node), *actor, workload.cloned())),
                };
                let goes_out = self.folds.take(
                    (judged_by, hit.rule),
                    rate,
                    (header.boot_ns, hit.undecided),
                    || self.detector.describe(generation, hit.rule),
                    sample,
                );
                if !goes_out {
                    self.counts.folded += 1;
                    continue;
                }
            }
            if held {
                continue;
            }
            let batch = self.alert.open();
            let rule = batch.rule((generation, hit.rule), || {
                self.detector.describe(generation, hit.rule)
            });
            let image = batch.image(node, actor, workload);
            let event = Event {
                image,
                rules: Vec::new(),
                exceptions: Vec::new(),
                verdict: verdict(),
                ..event.clone()
            };
            let alert = v1::Alert {
                rule,
                undecided: hit.undecided,
                event: Some(event),
                fold: None,
            };
            batch.alert(alert, stream, header.seq);
            self.counts.alerts += 1;
        }
        if rated {
            self.folds.counted(stream, header.seq);
        }
    }

    /// A record that cannot be read has a number all the same, if its header can.
    fn undecodable(&mut self, bytes: &[u8], malformed: Malformed) {
        self.counts.undecodable += 1;
        tracing::warn!(%malformed, "a kernel record cannot be read");
        let Some(header) = sumun_abi::plain::read::<Header>(bytes) else {
            return;
        };
        let stream = stream_of(&header);
        if u32::from(header.ring) >= sumun_abi::record::RINGS
            || u32::from(header.level) >= sumun_abi::record::LEVELS
            || self.take(&header) == Seen::Before
        {
            return;
        }
        let gap = Gap {
            reason: "undecodable".into(),
            count: Some(1),
            from_boot_ns: header.boot_ns,
            to_boot_ns: header.boot_ns,
            stream: Some(v1::Origin {
                ring: header.ring.into(),
                cpu: header.cpu,
                level: header.level.into(),
                seq: 0,
            }),
            first_seq: header.seq,
            last_seq: header.seq,
            detail: malformed.to_string(),
        };
        self.gap(stream, gap);
    }

    /// The lane of a number, for those who go through all.
    pub fn lanes(&mut self) -> [(Lane, &mut LaneWriter); 3] {
        [
            (Lane::Life, &mut self.life),
            (Lane::Bulk, &mut self.bulk),
            (Lane::Alert, &mut self.alert),
        ]
    }
}

/// Whether who acts is the agent, or its very executable run by root in its namespaces, as `doctor` and `enroll` are. A name would be
/// anybody's, and whoever else may run the executable can have it do other things (LD_PRELOAD).
fn is_own(node: &Node, actor: &Actor, (own_pid, own): (u32, Option<&Node>)) -> bool {
    if actor.pid == own_pid {
        return true;
    }
    let Some(own) = own else { return false };
    let file = |node: &Node| {
        let program = node.program()?;
        (program.exe_ino != 0).then_some((program.exe_dev, program.exe_ino))
    };
    let of_root = actor.uid == 0 && actor.euid == 0;
    let spaces = |node: &Node| (node.ns.user, node.ns.mnt);
    // A service of root's with fewer rights cannot become the agent, and is not taken for it.
    let rights = |node: &Node| node.program().map(|program| program.caps[1]);
    let as_many = match (rights(node), rights(own)) {
        (Some(rights), Some(needed)) => needed & !rights == 0,
        _ => false,
    };
    of_root
        && as_many
        && own.ns.user != 0
        && own.ns.mnt != 0
        && spaces(node) == spaces(own)
        && file(own).is_some_and(|own| file(node) == Some(own))
}

/// Kinds of which calls that failed are events, too: rules are about what was tried.
fn has_failures(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Connect | Kind::Ptrace | Kind::ModuleLoad | Kind::Sysctl
    )
}

/// What the kernel's rules that kill made of an event other than an exec.
fn of_record(body: &Body) -> Option<OfRecord> {
    match body {
        Body::Open(open) | Body::CloseWrite(open) | Body::Mapped(open) => Some(open.verdict),
        Body::Connect(made) | Body::Accept(made) => Some(made.verdict),
        Body::Setting(setting) => Some(setting.verdict),
        Body::Asked(asked) => Some(asked.verdict),
        _ => None,
    }
}

/// The event of a record that is not about the life of a process.
fn other(record: &Record<'_>, names: &mut Names) -> Event {
    match &record.body {
        Body::FailedOpen(open) => file::failed_open(record, open),
        Body::Datagram(datagram) => network::datagram(datagram),
        Body::Unix(connect) => network::unix(record, connect),
        Body::Socket(socket) => network::socket(socket),
        Body::Dns(message) => {
            let (event, resolved) = network::dns(record, message);
            if let Some(resolved) = resolved {
                names.learn(&message.actor, resolved, record.header.boot_ns);
            }
            event
        }
        Body::Open(open) => file::open(Kind::Open, record, open),
        Body::CloseWrite(open) => file::open(Kind::CloseWrite, record, open),
        Body::Mapped(open) => file::open(Kind::MapExec, record, open),
        Body::Rename(names) => file::names(Kind::Rename, record, names),
        Body::Unlink(names) => file::names(Kind::Unlink, record, names),
        Body::Change(kind, change) => file::change(*kind, record, change),
        Body::Connect(made) => network::connection(Kind::Connect, made),
        Body::Accept(made) => network::connection(Kind::Accept, made),
        Body::OwnEnd(kind, own) => network::own_end(*kind, own),
        Body::Credentials(kind, changed) => privilege::credentials(*kind, changed),
        Body::Reach(kind, reach) => privilege::reach(*kind, record, reach),
        Body::Spaces(kind, spaces) => privilege::spaces(*kind, spaces),
        Body::Memory(kind, memory) => privilege::memory(*kind, record, memory),
        Body::Control(kind, control) => privilege::control(*kind, control),
        Body::Module(kind, module) => kernel::module(*kind, record, module),
        Body::Program(kind, program) => kernel::program(*kind, program),
        Body::Mount(kind, mount) => kernel::mount(*kind, record, mount),
        Body::Setup(kind, setup) => kernel::setup(*kind, setup),
        Body::Setting(written) => kernel::setting(record, written),
        Body::Asked(asked) => deny::denied(record, asked),
        // They have been dealt with.
        Body::Fork(_) | Body::Exec(_) | Body::Exit(_) | Body::Task(_) | Body::Cgroup(_) => {
            Event::default()
        }
    }
}

fn stream_of(header: &Header) -> StreamId {
    StreamId {
        ring: header.ring,
        cpu: header.cpu,
        level: header.level,
    }
}
