//! Killing a lineage: a process, and all that descend from it.
//!
//! Who descends from whom is known by the records of forks, so nobody gets away by leaving their parent, their session or
//! their cgroup. Those records come behind what happens: between a process's fork and its record its child can fork
//! again. So the kernel side is told first that a lineage is hunted. From then on it knows of each new process whom it comes from of those
//! that were there, and all of these have a record by then, which is read here ahead of its turn. Whoever is of the lineage
//! is told to the kernel, which kills them and what they make as a system call of theirs returns, and is killed from here, too: some make no
//! calls. When nobody new is found, it is over.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::guard::How;
use super::kill::{self, Done, Target};
use crate::enrich::process::Tree;
use crate::kernel::{Hunt, Kin};
use crate::pipeline::clock::boot_ns;
use crate::receive::record::{Body, Record};

/// How long a hunt may hold up the reading of records.
const DEADLINE: Duration = Duration::from_millis(300);
/// How long the kernel kills what the lineage makes after that: one that was killed in the middle of a fork has its child still.
const GRACE_NS: u64 = 500_000_000;
/// How often nobody new has to be found.
const QUIET_ROUNDS: u32 = 2;
/// What hunts may take of any such time: who sets off many rules at once must not keep the agent from reading.
const WINDOW: Duration = Duration::from_secs(4);
const SPENT_MAX: Duration = Duration::from_secs(1);
/// The kernel keeps watch for longer each time so many were killed.
const RENEW_EVERY: usize = 128;
/// Things that hinder that are told of one hunt; the others are of the same sorts.
const REMARKS_MAX: usize = 4;

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Hunted {
    /// Those that were killed, but for the process itself.
    pub(super) killed: Vec<u32>,
    /// Those that were made while they were hunted, and had ended when they were looked for.
    pub(super) ended: usize,
    /// What hinders, for people; the first [`REMARKS_MAX`].
    pub(super) remarks: Vec<String>,
}

impl Hunted {
    fn remark(&mut self, remark: impl Into<String>) {
        let remark = remark.into();
        if self.remarks.len() < REMARKS_MAX && !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }
}

/// The hunts of this agent.
#[derive(Debug, Default)]
pub(super) struct Hunts {
    /// `None`: descendants are killed without the kernel's help.
    kernel: Option<Hunt>,
    /// Those that are doomed, until [`Self::tidy`] finds the time to be over.
    doomed: HashSet<Kin>,
    until_ns: u64,
    /// When the present [`WINDOW`] began, and what hunts have taken of it.
    window: Option<Instant>,
    spent: Duration,
}

impl Hunts {
    pub(super) fn new(kernel: Hunt) -> Self {
        let mut hunts = Self {
            kernel: Some(kernel),
            ..Self::default()
        };
        // What an agent before this one has left: while the kernel keeps watch each call costs more.
        hunts.forget();
        hunts
    }

    /// Kills all that descend from a process, which itself was dealt with, and says who that was. `None`: it is one
    /// of those of a hunt that has just been. `forced`: what runs the host is meant, too.
    pub(super) fn hunt(&mut self, tree: &Tree, root: Kin, forced: bool) -> Option<Hunted> {
        let begun = Instant::now();
        let now_ns = boot_ns().unwrap_or(0);
        if self.doomed.contains(&root) && now_ns < self.until_ns {
            return None;
        }
        if self.window.is_none_or(|window| window.elapsed() > WINDOW) {
            (self.window, self.spent) = (Some(begun), Duration::ZERO);
        }
        let hunted = match self.spent < SPENT_MAX {
            true => self.hunt_down(tree, root, (begun, now_ns), forced),
            false => {
                let mut hunted = Hunted::default();
                hunted.remark("many lineages were killed just before: of this one only who is in the records that have been read");
                for kin in tree.lineage(root).1.into_iter().filter(|kin| *kin != root) {
                    strike(kin, forced, &mut hunted);
                }
                hunted
            }
        };
        self.spent += begun.elapsed();
        Some(hunted)
    }

    fn hunt_down(
        &mut self,
        tree: &Tree,
        root: Kin,
        (begun, now_ns): (Instant, u64),
        forced: bool,
    ) -> Hunted {
        let mut hunted = Hunted::default();
        let overlaps = now_ns < self.until_ns;
        self.until_ns = now_ns + nanoseconds(DEADLINE) + GRACE_NS;
        let full = self.begin(overlaps, forced, &mut hunted);
        let (mut lineage, mut living) = tree.lineage(root);
        self.add_unread(&mut lineage, &mut living, &mut hunted);
        self.doom(root, forced, &mut hunted);
        for kin in &living {
            self.doom(*kin, forced, &mut hunted);
        }
        let others = living.into_iter().filter(|kin| *kin != root);
        for (number, kin) in others.enumerate() {
            if number % RENEW_EVERY == RENEW_EVERY - 1 {
                self.hold(DEADLINE, &mut hunted);
            }
            // Of one that has ended since its record was made nothing is left to be told.
            strike(kin, forced, &mut hunted);
        }
        self.chase(begun, forced, &mut hunted);
        let Some(kernel) = &self.kernel else {
            return hunted;
        };
        if let (Some(before), Ok(after)) = (full, kernel.full())
            && after > before
        {
            hunted.remark(format!(
                "{} processes were made meanwhile of which the kernel had no room to tell: some of them may be left",
                after - before
            ));
        }
        self.hold(Duration::ZERO, &mut hunted);
        hunted
    }

    /// The kernel keeps watch for so long, and the grace.
    fn hold(&mut self, more: Duration, hunted: &mut Hunted) {
        let (Some(kernel), Ok(now_ns)) = (&mut self.kernel, boot_ns()) else {
            return;
        };
        if now_ns >= self.until_ns {
            hunted.remark("it took so long that the kernel had stopped to keep watch: who was made at that moment may be left");
        }
        self.until_ns = now_ns + nanoseconds(more) + GRACE_NS;
        if let Err(error) = kernel.hold_until(self.until_ns) {
            hunted.remark(error.to_string());
        }
    }

    /// Forgets a hunt whose time is over; to be called now and then.
    pub(super) fn tidy(&mut self) {
        if self.until_ns == 0 || boot_ns().is_ok_and(|now_ns| now_ns < self.until_ns) {
            return;
        }
        self.until_ns = 0;
        self.forget();
    }

    fn forget(&mut self) {
        self.doomed.clear();
        if let Some(kernel) = &mut self.kernel
            && let Err(error) = kernel.end()
        {
            tracing::warn!(%error, "what was told to the kernel of a lineage cannot be taken back");
        }
    }

    /// Tells the kernel to keep watch; how many it had no room for until now.
    fn begin(&mut self, overlaps: bool, forced: bool, hunted: &mut Hunted) -> Option<u64> {
        if overlaps {
            // Of the hunt before, those whom nobody has found yet: the kernel forgets whom they come from.
            let born = self.kernel.as_ref()?.born().unwrap_or_default();
            for (kin, root) in born {
                if self.doomed.contains(&root) && !self.doomed.contains(&kin) {
                    self.doom(kin, forced, hunted);
                }
            }
        }
        let kernel = self.kernel.as_mut()?;
        let full = kernel.full().ok();
        match kernel
            .begin(self.until_ns)
            .and_then(|()| kernel.wait_for_programs())
        {
            Ok(true) => {}
            Ok(false) => {
                hunted.remark("a program of the kernel side took too long: what was forked at that moment may be left");
            }
            Err(error) => hunted.remark(error.to_string()),
        }
        full
    }

    /// Those of whose forks the record waits to be read.
    fn add_unread(&self, lineage: &mut HashSet<Kin>, living: &mut Vec<Kin>, hunted: &mut Hunted) {
        let Some(kernel) = &self.kernel else { return };
        let read = kernel.unread(|bytes| {
            let Ok(Record {
                body: Body::Fork(fork),
                ..
            }) = Record::parse(bytes)
            else {
                return;
            };
            let by = [
                (fork.actor.pid, fork.actor.start_ns),
                (fork.parent_pid, fork.parent_start_ns),
            ];
            let child = Kin {
                pid: fork.child.pid,
                start_ns: fork.child.start_ns,
            };
            let is_of_it = by
                .into_iter()
                .any(|(pid, start_ns)| lineage.contains(&Kin { pid, start_ns }));
            if is_of_it && lineage.insert(child) {
                living.push(child);
            }
        });
        if let Err(error) = read {
            hunted.remark(error.to_string());
        }
    }

    /// Kills those that were made meanwhile, until nobody new is found.
    fn chase(&mut self, begun: Instant, forced: bool, hunted: &mut Hunted) {
        let mut quiet = 0;
        while quiet < QUIET_ROUNDS {
            let Some(kernel) = &self.kernel else { return };
            let born = match kernel.wait_for_programs().and_then(|_| kernel.born()) {
                Ok(born) => born,
                Err(error) => {
                    hunted.remark(error.to_string());
                    return;
                }
            };
            let fresh: Vec<Kin> = born
                .into_iter()
                .filter(|(kin, root)| self.doomed.contains(root) && !self.doomed.contains(kin))
                .map(|(kin, _)| kin)
                .collect();
            quiet = if fresh.is_empty() { quiet + 1 } else { 0 };
            self.hold(DEADLINE, hunted);
            for kin in fresh {
                self.doom(kin, forced, hunted);
                hunted.ended += usize::from(strike(kin, forced, hunted) == Some(Done::Gone));
            }
            if begun.elapsed() > DEADLINE {
                hunted.remark("there were still new ones when the time was over: the kernel kills them for a while longer");
                return;
            }
        }
    }

    fn doom(&mut self, kin: Kin, forced: bool, hunted: &mut Hunted) {
        self.doomed.insert(kin);
        if let Some(kernel) = &mut self.kernel
            && let Err(error) = kernel.doom(kin, forced)
        {
            hunted.remark(format!("{error}: what {} makes may be left", kin.pid));
        }
    }
}

/// Kills one; what became of it, if it was not that.
fn strike(kin: Kin, forced: bool, hunted: &mut Hunted) -> Option<Done> {
    let target = Target {
        pid: kin.pid,
        tid: kin.pid,
        start_ns: kin.start_ns,
        with_sharers: false,
        how: How {
            starting: false,
            forced,
        },
    };
    match kill::kill(&target, None) {
        Done::Killed { .. } => {
            hunted.killed.push(kin.pid);
            return None;
        }
        Done::Guarded(guarded) => {
            hunted.remark(format!("process {} descends from it: {guarded}", kin.pid));
        }
        Done::Failed(why) => {
            hunted.remark(format!("process {} descends from it: {why}", kin.pid));
        }
        Done::Gone => return Some(Done::Gone),
    }
    None
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
