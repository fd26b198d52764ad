//! Alerts beyond a rule's rate: counted, and told in one row when their window ends.
//!
//! A window begins with the first alert of a rule while none is open. The first so many alerts of
//! it go out at once; of the rest one is kept as a sample, with a count. The window ends
//! when everything up to its end has been read, when the rule is unloaded or its rate changed, or
//! when the agent stops; then the count goes out as a row of the alert lane.
//!
//! There is one window for each rule, so the rules bound the memory. The state belongs to the
//! cycle: a cycle that could not be written is read again, so what it did here is undone. What a
//! cycle did is on disk (`file`) before its records are given up, so an agent that is killed goes on
//! counting where it was: its restart reads some records again, and those that the file has
//! counted do not count twice. After a power loss the file may be older than the events; these are
//! the truth in any case, as each names the rules that matched it.

mod file;

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::path::Path;
use std::rc::Rc;

use sumun_abi::event::process::Actor;
use sumun_engine::Engine;
use sumun_policy::Rate;
use sumun_proto::v1::{self, Event, RuleRef};

use super::lanes::LaneWriter;
use crate::enrich::process::Node;
use crate::enrich::workload::Workload;
use crate::kernel::StreamId;
use crate::spool::{self, Spool};

pub use self::file::{Error, Origin, Orphan};

/// The folds themselves, as a stream of the alert lane: a fold that is in the lane is not written again.
const FOLDS: StreamId = StreamId {
    ring: u8::MAX,
    cpu: 0,
    level: 0,
};

/// A rule of a generation of policies.
pub type Key = (u32, usize);

/// One of the folded alerts.
#[derive(Debug)]
pub struct Sample {
    /// Its event.
    pub event: Event,
    /// Who did it; `None` when that was in the memory of an agent that was killed.
    pub by: Option<(Rc<Node>, Actor, Option<Rc<Workload>>)>,
}

#[derive(Clone, Debug)]
struct Fold {
    /// Grows with every fold of this host.
    number: u64,
    count: u64,
    first_ns: u64,
    last_ns: u64,
    undecided: bool,
    sample: Rc<Sample>,
}

#[derive(Clone, Debug)]
struct Window {
    rule: Rc<RuleRef>,
    rate: Rate,
    start_ns: u64,
    /// Alerts that went out.
    sent: u64,
    fold: Option<Fold>,
}

/// A fold whose window has ended.
#[derive(Debug)]
struct Ended {
    key: Key,
    rule: Rc<RuleRef>,
    fold: Fold,
}

/// All windows.
pub struct Folds {
    windows: HashMap<Key, Window>,
    /// What the windows were that this cycle has touched.
    undo: HashMap<Key, Option<Window>>,
    /// Number of the last record of each stream that is counted, and what it was before this cycle.
    counted: BTreeMap<StreamId, u64>,
    counted_before: BTreeMap<StreamId, u64>,
    /// Not yet in the lane; never more than the windows of a few cycles. Behind `ended_before`, this cycle's.
    ended: Vec<Ended>,
    ended_before: usize,
    next: u64,
    next_before: u64,
    file: file::File,
}

impl Window {
    fn new(rule: Rc<RuleRef>, rate: Rate, start_ns: u64) -> Self {
        Self {
            rule,
            rate,
            start_ns,
            sent: 0,
            fold: None,
        }
    }

    fn end_ns(&self) -> u64 {
        self.start_ns.saturating_add(self.rate.window_ns)
    }

    fn close(self, key: Key) -> Option<Ended> {
        let Self { rule, fold, .. } = self;
        fold.map(|fold| Ended { key, rule, fold })
    }
}

impl Folds {
    /// What the last run left: its windows go on if the rules are the same; folds
    /// from before a reboot or a release are returned, to be written as they are.
    ///
    /// # Errors
    /// When the files in the state directory cannot be opened or made.
    pub fn open(
        state: &Path,
        origin: Origin,
        generation: u32,
        engine: &Engine,
    ) -> Result<(Self, Vec<Orphan>), Error> {
        let (file, saved) = file::File::open(state, origin)?;
        let mut folds = Self {
            windows: HashMap::new(),
            undo: HashMap::new(),
            counted: saved.counted(),
            counted_before: BTreeMap::new(),
            ended: Vec::new(),
            ended_before: 0,
            next: saved.next(),
            next_before: 0,
            file,
        };
        for window in saved.windows() {
            let same = engine.rules().iter().position(|rule| {
                (&rule.policy, &rule.rule) == (&window.rule.policy, &window.rule.rule)
            });
            match same.filter(|rule| engine.rate(*rule) == Some(window.rate)) {
                Some(rule) => {
                    folds.windows.insert((generation, rule), window);
                }
                None => folds.ended.extend(window.close((generation, usize::MAX))),
            }
        }
        folds.commit();
        Ok((folds, saved.orphans()))
    }

    /// True when this record's alerts were counted before it was read again.
    #[must_use]
    pub fn has_counted(&self, stream: StreamId, seq: u64) -> bool {
        self.counted
            .get(&stream)
            .is_some_and(|counted| seq <= *counted)
    }

    /// This record's alerts have been counted.
    pub fn counted(&mut self, stream: StreamId, seq: u64) {
        let counted = self.counted.entry(stream).or_default();
        *counted = (*counted).max(seq);
    }

    /// An alert of a rule with a rate: true if it goes out, false if it is folded.
    pub fn take(
        &mut self,
        key: Key,
        rate: Rate,
        (at_ns, undecided): (u64, bool),
        describe: impl FnOnce() -> RuleRef,
        sample: impl FnOnce() -> Sample,
    ) -> bool {
        self.touch(key);
        // Records of two rings may come a little out of order: an earlier one belongs to the open window.
        if self
            .windows
            .get(&key)
            .is_some_and(|window| at_ns >= window.end_ns())
        {
            self.close(key);
        }
        let window = self
            .windows
            .entry(key)
            .or_insert_with(|| Window::new(Rc::new(describe()), rate, at_ns));
        if window.sent < rate.count {
            window.sent += 1;
            return true;
        }
        match &mut window.fold {
            Some(fold) => {
                fold.count += 1;
                fold.first_ns = fold.first_ns.min(at_ns);
                fold.last_ns = fold.last_ns.max(at_ns);
                fold.undecided |= undecided;
            }
            None => {
                window.fold = Some(Fold {
                    number: self.next,
                    count: 1,
                    first_ns: at_ns,
                    last_ns: at_ns,
                    undecided,
                    sample: Rc::new(sample()),
                });
                self.next += 1;
            }
        }
        false
    }

    /// Everything up to a time has been read.
    pub fn read_through(&mut self, through_ns: u64) {
        self.close_where(|_, window| window.end_ns() <= through_ns);
    }

    /// No record of another generation of policies can come.
    pub fn retire(&mut self, current: u32) {
        self.close_where(|(generation, _), _| *generation != current);
    }

    /// Nothing more is read.
    pub fn close_all(&mut self) {
        self.close_where(|_, _| true);
    }

    fn close_where(&mut self, over: impl Fn(&Key, &Window) -> bool) {
        let mut over: Vec<Key> = self
            .windows
            .iter()
            .filter(|(key, window)| over(key, window))
            .map(|(key, _)| *key)
            .collect();
        over.sort_unstable();
        for key in over {
            self.touch(key);
            self.close(key);
        }
    }

    fn touch(&mut self, key: Key) {
        let windows = &self.windows;
        self.undo
            .entry(key)
            .or_insert_with(|| windows.get(&key).cloned());
    }

    fn close(&mut self, key: Key) {
        let window = self.windows.remove(&key);
        self.ended
            .extend(window.and_then(|window| window.close(key)));
    }

    /// What the cycle led to is in the lanes.
    pub fn commit(&mut self) {
        self.undo.clear();
        self.counted_before.clone_from(&self.counted);
        self.ended_before = self.ended.len();
        self.next_before = self.next;
    }

    /// The cycle will be read again.
    pub fn rollback(&mut self) {
        for (key, window) in mem::take(&mut self.undo) {
            match window {
                Some(window) => self.windows.insert(key, window),
                None => self.windows.remove(&key),
            };
        }
        self.counted.clone_from(&self.counted_before);
        self.ended.truncate(self.ended_before);
        self.next = self.next_before;
    }

    /// True when something has changed since the last [`Folds::commit`], or waits to be written.
    #[must_use]
    pub fn pending(&self) -> bool {
        !self.undo.is_empty() || !self.ended.is_empty()
    }

    /// Writes a row for each window that has ended, in batches of their own, then the state. The rows carry
    /// the time at which they are written: what a watermark has passed is not added to.
    /// Returns their number, and the last batch.
    ///
    /// # Errors
    /// When the lane or the file cannot be written; what is not in the lane is kept.
    pub fn settle(
        &mut self,
        lane: &mut LaneWriter,
        spool: &Spool,
        at_ns: u64,
        wall_offset_ns: i64,
    ) -> anyhow::Result<(u64, Option<spool::Key>)> {
        self.commit();
        let (mut rows, mut last) = (0, None);
        while !self.ended.is_empty() {
            let mut taken = 0;
            while let Some(ended) = self.ended.get(taken)
                && !lane.full()
            {
                taken += 1;
                // Written just before the agent was killed.
                if !lane.holds(FOLDS, ended.fold.number) {
                    add(lane, ended, at_ns);
                    rows += 1;
                }
            }
            last = lane.write(spool, 0)?.or(last);
            self.ended.drain(..taken);
            self.ended_before = self.ended.len();
        }
        self.save(wall_offset_ns)?;
        Ok((rows, last))
    }

    /// Writes the state. What was returned as an orphan is not in it any more.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&mut self, wall_offset_ns: i64) -> Result<(), Error> {
        let saved = file::Saved::of(self, wall_offset_ns);
        self.file.write(saved)
    }
}

fn add(lane: &mut LaneWriter, ended: &Ended, at_ns: u64) {
    let Ended { key, rule, fold } = ended;
    let batch = lane.open();
    let rule = batch.rule(*key, || (**rule).clone());
    let image = match &fold.sample.by {
        Some((node, actor, workload)) => batch.image(node, actor, workload.as_ref()),
        None => 0,
    };
    let event = Event {
        image,
        ..fold.sample.event.clone()
    };
    batch.alert(alert(rule, fold, event, at_ns), FOLDS, fold.number);
}

fn alert(rule: u32, fold: &Fold, event: Event, at_ns: u64) -> v1::Alert {
    v1::Alert {
        rule,
        undecided: fold.undecided,
        event: Some(event),
        fold: Some(v1::Fold {
            count: fold.count,
            first_boot_ns: fold.first_ns,
            last_boot_ns: fold.last_ns,
            at_boot_ns: at_ns,
        }),
    }
}

#[cfg(test)]
mod tests;
