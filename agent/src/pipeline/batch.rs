//! A batch under construction: events, and the images and rules they share.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use prost::Message as _;
use sumun_abi::event::process::Actor;
use sumun_proto::v1::{
    Alert, Batch, ClockStep, Event, ExceptionRef, Facts, Gap, Image, Lane, Namespaces, RuleRef,
    Scope, Verdict,
};
use sumun_proto::view::REDACTED;
use sumun_proto::{BATCH_MAX, FORMAT};

use super::secrets;
use crate::enrich::process::{DROPPED, ImageKey, Node, Program};
use crate::enrich::workload::Workload;
use crate::enrich::writer::Writer;
use crate::kernel::StreamId;
use crate::privacy::Redactor;

/// A batch is closed when its estimated size passes this; the largest single
/// event (an exec with escaped arguments and its ancestry) still fits above it.
pub const CLOSE_BYTES: usize = BATCH_MAX / 4;

/// What is the same for all batches of a run.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Sixteen bytes of the boot id.
    pub boot_id: [u8; 16],
    /// Generation of the pinned maps.
    pub pin_generation: u64,
    /// Name of the cgroup hierarchy that records name, when it is not the unified one.
    pub cgroup_controller: String,
    /// Takes secrets out of arguments.
    pub redactor: Rc<Redactor>,
}

/// An image in the batch: who, with which credentials, and how much of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Entry {
    key: ImageKey,
    ids: [u32; 4],
    cap_effective: u64,
    cgroup: (u64, u32),
    part: Part,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    /// As an ancestor: pid, id and executable.
    Ancestor,
    /// With everything known.
    Whole,
    /// Nothing is known but its name.
    Unseen,
}

/// A batch of one lane that is being filled.
pub struct BatchBuilder {
    batch: Batch,
    cgroup_controller: String,
    redactor: Rc<Redactor>,
    /// Images, by index, whose arguments have secrets: rules see them, what is written does not.
    secret: Vec<(u32, Rc<Program>)>,
    entries: HashMap<Entry, u32>,
    /// Those of `batch`, in the same order.
    workloads: Vec<Rc<Workload>>,
    rules: HashMap<(u32, usize), u32>,
    /// Of a rule in the batch, by its index there and the exception's.
    exceptions: HashMap<(u32, usize), u32>,
    bytes: usize,
    highest: BTreeMap<StreamId, u64>,
    times: Option<(u64, u64)>,
}

/// The room that a batch took, for the next one: under load the heap would take it from the kernel for each anew, and grow it by halves.
#[derive(Default)]
pub struct Room {
    events: Vec<Event>,
    images: Vec<Image>,
    entries: HashMap<Entry, u32>,
}

impl Room {
    /// Takes what a batch that has been written leaves.
    pub fn keep(&mut self, batch: Batch) {
        (self.events, self.images) = (batch.events, batch.images);
        self.events.clear();
        self.images.clear();
    }
}

/// A batch that is complete, with what the spool keeps beside it.
pub struct Closed {
    /// The message.
    pub batch: Batch,
    /// Highest sequence number of each kernel stream in it.
    pub highest: BTreeMap<StreamId, u64>,
    /// First and last time of its rows, boot ns.
    pub times: (u64, u64),
}

impl BatchBuilder {
    /// An empty batch.
    #[must_use]
    pub fn new(lane: Lane, origin: &Origin, wall_offset_ns: i64) -> Self {
        Self {
            batch: Batch {
                format: FORMAT,
                lane: lane.into(),
                boot_id: origin.boot_id.to_vec(),
                pin_generation: origin.pin_generation,
                wall_offset_ns,
                ..Batch::default()
            },
            cgroup_controller: origin.cgroup_controller.clone(),
            redactor: Rc::clone(&origin.redactor),
            secret: Vec::new(),
            entries: HashMap::new(),
            workloads: Vec::new(),
            rules: HashMap::new(),
            exceptions: HashMap::new(),
            bytes: 64,
            highest: BTreeMap::new(),
            times: None,
        }
    }

    /// Gives a new batch the room of one that is over.
    #[must_use]
    pub fn with_room(mut self, room: &mut Room) -> Self {
        let Room {
            events,
            images,
            entries,
        } = std::mem::take(room);
        (self.batch.events, self.batch.images, self.entries) = (events, images, entries);
        self
    }

    /// Nothing is added any more: the room that was only needed for that, and all of an empty batch.
    pub fn leave_room(&mut self, room: &mut Room) {
        room.entries = std::mem::take(&mut self.entries);
        room.entries.clear();
        if self.is_empty() {
            room.keep(std::mem::take(&mut self.batch));
        }
    }

    /// The message so far.
    #[must_use]
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Big enough to be closed.
    #[must_use]
    pub fn full(&self) -> bool {
        self.bytes >= CLOSE_BYTES
    }

    /// Nothing in it that has to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let batch = &self.batch;
        batch.events.is_empty()
            && batch.alerts.is_empty()
            && batch.gaps.is_empty()
            && batch.scopes.is_empty()
            && batch.clock_steps.is_empty()
            && batch.facts.is_empty()
    }

    /// Index (from one) of an image with the credentials of this event, in the workload of its cgroup.
    pub fn image(
        &mut self,
        node: &Rc<Node>,
        actor: &Actor,
        workload: Option<&Rc<Workload>>,
    ) -> u32 {
        let program = node.program();
        let part = if program.is_some() {
            Part::Whole
        } else {
            Part::Unseen
        };
        let entry = Entry {
            key: node.key,
            ids: [actor.uid, actor.gid, actor.euid, actor.egid],
            cap_effective: actor.cap_effective,
            cgroup: (actor.cgroup_id, actor.cgroup_hierarchy),
            part,
        };
        if let Some(index) = self.entries.get(&entry) {
            return *index;
        }
        let parent = node.parent().map_or(0, |parent| self.ancestor(&parent));
        let mut image = base(node, parent);
        let [uid, gid, euid, egid] = entry.ids;
        (image.uid, image.gid, image.euid, image.egid) = (uid, gid, euid, egid);
        // Of nobody it is not known.
        image.cap_effective = (actor.pid != 0).then_some(actor.cap_effective);
        image.cgroup_id = actor.cgroup_id;
        image.cgroup_hierarchy = match actor.cgroup_hierarchy {
            0 => "unified".into(),
            _ => self.cgroup_controller.clone(),
        };
        image.workload = workload.map_or(0, |workload| self.workload(workload));
        image.ns = namespaces(node);
        if let Some(peer) = node.login() {
            (image.login_ip, image.login_port) = (peer.ip().to_string(), peer.port().into());
        }
        if let Some(program) = program {
            image.seen = true;
            image.exe_path.clone_from(&program.exe_path);
            image.exe_flaws = program.exe_flaws;
            image.exe_dev = program.exe_dev;
            image.exe_ino = program.exe_ino;
            image.in_image = program.in_image;
            image.setid = program.setid;
            image.script.clone_from(&program.script);
            image.exe_changed_ns = program.exe_changed_ns;
            image.args.clone_from(&program.args);
            image.args_flaws = program.args_flaws;
            image.args_total = program.args_total;
            image.cwd.clone_from(&program.cwd);
            image.cwd_flaws = program.cwd_flaws;
            image.auid = program.auid;
            image.session = program.session;
            image.tty.clone_from(&program.tty);
            [_, image.cap_permitted, image.cap_inheritable] = program.caps;
            image.bootstrapped = program.bootstrapped;
            image.kernel_thread = program.kernel_thread;
            image.writer = program.writer.get().map(Writer::message);
            if let Some(told) = program.told(&self.redactor) {
                // Marks may be longer than what they stand for.
                self.bytes += told.iter().map(|arg| arg.len() + 4).sum::<usize>();
                let index = self.push_image(entry, image);
                self.secret.push((index, program));
                return index;
            }
        }
        self.push_image(entry, image)
    }

    /// Adds an event, and the origin it came from.
    pub fn event(&mut self, event: Event, stream: StreamId, seq: u64) {
        self.bytes += 64 + text_bytes(&event);
        self.reached(stream, seq);
        self.span(event.boot_ns);
        self.batch.events.push(event);
    }

    /// Takes the last event out again: no rule wanted it.
    pub fn withdraw(&mut self) -> Option<Event> {
        let event = self.batch.events.pop();
        if let Some(event) = &event {
            self.bytes = self.bytes.saturating_sub(64 + text_bytes(event));
        }
        event
    }

    /// Says of the last event what became of the rules that kill.
    pub fn verdict(&mut self, verdict: Verdict) {
        self.bytes += verdict_bytes(&verdict);
        if let Some(event) = self.batch.events.last_mut() {
            event.verdict = Some(verdict);
        }
    }

    /// Inode of the file of the last event; 0 = not known.
    #[must_use]
    pub fn last_ino(&self) -> u64 {
        let event = self.batch.events.last();
        event
            .and_then(|event| event.file.as_ref())
            .map_or(0, |file| file.ino)
    }

    /// Marks the last event with a rule that matched it.
    pub fn matched(&mut self, rule: u32) {
        if let Some(event) = self.batch.events.last_mut() {
            event.rules.push(rule);
        }
    }

    /// Marks the last event with the exception that let it pass a rule of the batch.
    pub fn excepted(&mut self, rule: u32, exception: usize, name: impl FnOnce() -> String) {
        let index = match self.exceptions.get(&(rule, exception)) {
            Some(index) => *index,
            None => {
                let name = name();
                self.bytes += 16 + name.len();
                self.batch.exceptions.push(ExceptionRef { rule, name });
                let index = index_of(self.batch.exceptions.len());
                self.exceptions.insert((rule, exception), index);
                index
            }
        };
        if let Some(event) = self.batch.events.last_mut() {
            event.exceptions.push(index);
        }
    }

    /// Adds an alert, and the origin of its event.
    pub fn alert(&mut self, alert: Alert, stream: StreamId, seq: u64) {
        if let Some(event) = &alert.event {
            self.bytes += 96 + text_bytes(event);
            self.span(alert.fold.map_or(event.boot_ns, |fold| fold.at_boot_ns));
        }
        self.reached(stream, seq);
        self.batch.alerts.push(alert);
    }

    /// Index (from one) of a rule of a generation of policies.
    pub fn rule(&mut self, rule: (u32, usize), describe: impl FnOnce() -> RuleRef) -> u32 {
        if let Some(index) = self.rules.get(&rule) {
            return *index;
        }
        self.batch.rules.push(describe());
        self.bytes += 128;
        let index = index_of(self.batch.rules.len());
        self.rules.insert(rule, index);
        index
    }

    /// Adds a gap at this place of the lane.
    pub fn gap(&mut self, gap: Gap) {
        self.bytes += 64 + gap.detail.len();
        self.span(gap.to_boot_ns);
        self.batch.gaps.push(gap);
    }

    /// Adds a scope.
    pub fn scope(&mut self, scope: Scope) {
        self.bytes += 64
            + scope
                .rules
                .iter()
                .map(|rule| 32 + rule.predicate.len())
                .sum::<usize>()
            + scope.policies.len() * 160;
        self.span(scope.from_boot_ns);
        self.batch.scopes.push(scope);
    }

    /// Adds a step of the wall clock.
    pub fn clock_step(&mut self, step: ClockStep) {
        self.span(step.at_boot_ns);
        self.batch.clock_steps.push(step);
    }

    /// Adds what was learned of a workload or the host.
    pub fn facts(&mut self, facts: Facts) {
        self.bytes += facts.encoded_len();
        self.span(facts.version);
        self.batch.facts.push(facts);
    }

    /// What rules may ask of the host.
    pub fn host(&mut self, host: Option<Facts>) {
        self.batch.host = host;
    }

    /// The record with this number has been dealt with, stored or not.
    pub fn reached(&mut self, stream: StreamId, seq: u64) {
        let highest = self.highest.entry(stream).or_default();
        *highest = (*highest).max(seq);
    }

    /// Ends the batch. Only now are secrets taken out of it: the rules have judged what was really run.
    #[must_use]
    pub fn close(mut self) -> Closed {
        for (index, program) in self.secret {
            let at = (index as usize).checked_sub(1);
            if let Some(image) = at.and_then(|at| self.batch.images.get_mut(at))
                && let Some(told) = program.told(&self.redactor)
            {
                image.args = told.to_vec();
                image.args_flaws |= REDACTED;
            }
        }
        secrets::redact(&mut self.batch, &self.redactor);
        // They were for rules; the collector has them once for all batches.
        for workload in &mut self.batch.workloads {
            (workload.facts, workload.pending) = (None, false);
        }
        self.batch.host = None;
        Closed {
            batch: self.batch,
            highest: self.highest,
            times: self.times.unwrap_or_default(),
        }
    }

    /// Index (from one) of a workload: a batch has few.
    fn workload(&mut self, workload: &Rc<Workload>) -> u32 {
        let known = self
            .workloads
            .iter()
            .rposition(|known| Rc::ptr_eq(known, workload));
        if let Some(index) = known {
            return index_of(index + 1);
        }
        let told = &workload.told;
        self.bytes += 64 + told.cgroup.len() + 2 * told.container_id.len() + told.unit.len();
        self.batch.workloads.push(told.clone());
        self.workloads.push(Rc::clone(workload));
        index_of(self.workloads.len())
    }

    fn ancestor(&mut self, node: &Rc<Node>) -> u32 {
        let entry = Entry {
            key: node.key,
            ids: node.ids,
            cap_effective: 0,
            cgroup: (0, 0),
            part: Part::Ancestor,
        };
        if let Some(index) = self.entries.get(&entry) {
            return *index;
        }
        // Chains are bounded (`enrich::process::DEPTH_MAX`), so is this recursion.
        let parent = node.parent().map_or(0, |parent| self.ancestor(&parent));
        let mut image = base(node, parent);
        if let Some(program) = node.program() {
            image.seen = true;
            image.exe_path.clone_from(&program.exe_path);
            image.exe_flaws = program.exe_flaws;
            image.args_flaws = DROPPED;
        }
        [image.uid, image.gid, image.euid, image.egid] = node.ids;
        self.push_image(entry, image)
    }

    fn push_image(&mut self, entry: Entry, image: Image) -> u32 {
        self.bytes += 96
            + image.exe_path.len()
            + image.cwd.len()
            + image.args.iter().map(|arg| arg.len() + 4).sum::<usize>()
            + image
                .writer
                .as_ref()
                .map_or(0, |writer| 16 + writer.path.as_deref().unwrap_or("").len());
        self.batch.images.push(image);
        let index = index_of(self.batch.images.len());
        self.entries.insert(entry, index);
        index
    }

    fn span(&mut self, boot_ns: u64) {
        let (first, last) = self.times.unwrap_or((boot_ns, boot_ns));
        self.times = Some((first.min(boot_ns), last.max(boot_ns)));
    }
}

fn base(node: &Node, parent: u32) -> Image {
    Image {
        exec_id: node.exec_id,
        pid: node.key.pid,
        start_ns: node.key.start_ns,
        parent,
        parent_pid: node.parent_pid(),
        parent_exec_id: node.parent_exec_id(),
        ..Image::default()
    }
}

fn namespaces(node: &Node) -> Option<Namespaces> {
    let ns = &node.ns;
    (ns.mnt != 0).then_some(Namespaces {
        mnt: ns.mnt,
        pid: ns.pid,
        net: ns.net,
        user: ns.user,
        uts: ns.uts,
        ipc: ns.ipc,
        cgroup: ns.cgroup,
        pid_inside: ns.pid_inside,
    })
}

fn text_bytes(event: &Event) -> usize {
    let file = event.file.as_ref().map_or(0, |file| {
        file.path.as_ref().map_or(0, String::len) + file.new_path.as_ref().map_or(0, String::len)
    });
    file + event.verdict.as_ref().map_or(0, verdict_bytes)
}

fn verdict_bytes(verdict: &Verdict) -> usize {
    16 + verdict.requested.len()
        + verdict.effective.len()
        + verdict.outcome.len()
        + verdict.reason.len()
}

/// Indices count from one; a batch is closed long before they could not fit.
fn index_of(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
