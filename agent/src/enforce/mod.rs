//! Rules that kill: what the kernel did, and what is left to be done here.
//!
//! On the reading thread, before the event is written: killing does not wait for the disk. A cycle that
//! could not be written is read again, so what was decided is kept until it could be.

pub mod deny;
pub mod fanotify;
pub mod guard;
mod hunt;
pub mod isolate;
pub mod kill;
pub mod lineage;
pub mod scope;
mod sharers;
pub mod verdict;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sumun_abi::event::process::Actor;
use sumun_engine::Hit;
use sumun_policy::Mode;
use sumun_proto::v1::{Kind, RuleRef, Verdict};

use self::hunt::Hunts;
use self::kill::{Done, Proven, Target};
use self::verdict::{MODES, OUTCOMES, Told};
use crate::detect::{Detector, unloaded};
use crate::enrich::process::Tree;
use crate::integrity::Process;
use crate::kernel::pidfd::PidFd;
use crate::kernel::{Hunt, Kin, SharersSource, StreamId};

/// Lines of log in [`LOG_EVERY`] at most; the alerts tell of all.
const LOG_LINES: u32 = 20;
const LOG_EVERY: Duration = Duration::from_secs(10);

/// How often each outcome was reached, by mode: indices are those of [`MODES`] and [`OUTCOMES`].
pub type Kills = [[u64; OUTCOMES.len()]; MODES.len()];

/// The record that is judged.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// Its stream.
    pub stream: StreamId,
    /// Its number there.
    pub seq: u64,
    /// The policies it is judged by.
    pub generation: u32,
    /// Kind of the event.
    pub kind: Kind,
    /// Its process.
    pub actor: &'a Actor,
    /// What the kernel did.
    pub told: Option<Told>,
    /// Its event is in the spool from before a restart, or it is older than the loaded rules: nothing is
    /// killed for it.
    pub dealt_with: bool,
    /// A record says that this process did it. Else nothing is killed for it.
    pub certain: bool,
    /// Who descends from whom.
    pub tree: &'a Tree,
}

/// Applies rules that kill.
#[derive(Debug, Default)]
pub struct Enforcer {
    /// What was decided in this cycle; not more than the rings hold.
    settled: HashMap<(StreamId, u64), Vec<Option<Verdict>>>,
    kills: Kills,
    log: Lines,
    /// Who shares open files.
    sharers: SharersSource,
    /// Processes that `/proc` does not show; as many as a look finds of its own at most.
    proven: Vec<Proven>,
    /// Lineages that are killed.
    hunts: Hunts,
}

impl Enforcer {
    /// One that asks the kernel who shares open files, and has it help to kill lineages.
    #[must_use]
    pub fn new(sharers: SharersSource, hunt: Hunt) -> Self {
        Self {
            sharers,
            hunts: Hunts::new(hunt),
            ..Self::default()
        }
    }

    /// Takes those that were found at the last look at what `/proc` does not show.
    pub fn prove(&mut self, hidden: Vec<(Process, PidFd, String)>) {
        let proven = hidden.into_iter().map(|(process, held, program)| Proven {
            pid: process.pid,
            start_ns: process.start_ns,
            held,
            program,
        });
        self.proven = proven.collect();
    }

    /// Kills if a rule asks for it, and says what became of each hit; empty when no rule
    /// that kills has hit. A hit that the kernel knows of is added to those found.
    pub fn judge(
        &mut self,
        detector: &Detector,
        judged: &Judged<'_>,
        found: &mut Vec<Hit>,
    ) -> Vec<Option<Verdict>> {
        let generation = judged.generation;
        if let Some(rule) = judged.told.and_then(|told| told.killed_by()) {
            let hit = found
                .iter()
                .any(|hit| hit.rule == rule && hit.kill == Some(Mode::Enforce));
            // The number is one of the rules of its generation alone.
            let known = hit || detector.has(generation, rule);
            verdict::confirm(found, if known { rule } else { unloaded(rule) });
        }
        if !judged.certain {
            for hit in found.iter_mut().filter(|hit| hit.kill.is_some()) {
                hit.undecided = true;
            }
        }
        if found.iter().all(|hit| hit.kill.is_none()) {
            return Vec::new();
        }
        let key = (judged.stream, judged.seq);
        if let Some(settled) = self.settled.get(&key) {
            return settled.clone();
        }
        // One rule that means it is enough.
        let forced = found.iter().any(|hit| {
            hit.kill == Some(Mode::Enforce)
                && hit.is_certain()
                && detector.is_forced(generation, hit.rule)
        });
        let target = Target::of(judged.kind, judged.actor, forced);
        let mut verdicts = verdict::decide(
            judged.kind,
            found,
            judged.told,
            |rule| rule_name(&detector.describe(generation, rule)),
            |table| match table {
                // Nothing is killed twice; what was done before is told by what is stored.
                Some(_) if judged.dealt_with => Done::Gone,
                Some(table) => {
                    let (with, remark) = sharers::kill(target.pid, table, &self.sharers);
                    Done::Killed { with, remark }
                }
                None if judged.dealt_with => kill::look(&target),
                None => kill::kill(&target, self.proven.iter().find(|one| one.is(&target))),
            },
        );
        if !judged.dealt_with {
            self.kill_lineage(detector, (judged, forced), found, &mut verdicts);
            self.count(&verdicts);
            self.tell(detector, judged, found, &verdicts);
        }
        self.settled.insert(key, verdicts.clone());
        verdicts
    }

    /// Where a rule that was applied means the lineage: kills what descends from the process, and says so.
    fn kill_lineage(
        &mut self,
        detector: &Detector,
        (judged, forced): (&Judged<'_>, bool),
        found: &[Hit],
        verdicts: &mut [Option<Verdict>],
    ) {
        let means_it = |hit: &Hit, verdict: &Verdict| {
            verdict::has_ended(verdict) && detector.kills_lineage(judged.generation, hit.rule)
        };
        let mut asked = found.iter().zip(verdicts.iter());
        if !asked.any(|(hit, verdict)| {
            verdict
                .as_ref()
                .is_some_and(|verdict| means_it(hit, verdict))
        }) {
            return;
        }
        let root = Kin {
            pid: judged.actor.pid,
            start_ns: judged.actor.start_ns,
        };
        let hunted = self.hunts.hunt(judged.tree, root, forced);
        for (hit, verdict) in found.iter().zip(verdicts) {
            if let Some(verdict) = verdict.as_mut().filter(|verdict| means_it(hit, verdict)) {
                verdict::with_lineage(verdict, hunted.as_ref());
            }
        }
    }

    /// The cycle is in the spool: none of its records is read again.
    pub fn written(&mut self) {
        self.settled.clear();
        self.hunts.tidy();
    }

    /// How often each outcome was reached since the start; several rules of one event count once.
    #[must_use]
    pub fn kills(&self) -> &Kills {
        &self.kills
    }

    fn count(&mut self, verdicts: &[Option<Verdict>]) {
        let mut seen = [[false; OUTCOMES.len()]; MODES.len()];
        for verdict in verdicts.iter().flatten() {
            let mode = MODES.iter().position(|mode| *mode == verdict.effective);
            let outcome = OUTCOMES.iter().position(|name| *name == verdict.outcome);
            if let (Some(mode), Some(outcome)) = (mode, outcome)
                && !std::mem::replace(&mut seen[mode][outcome], true)
            {
                self.kills[mode][outcome] += 1;
            }
        }
    }

    fn tell(
        &mut self,
        detector: &Detector,
        judged: &Judged<'_>,
        found: &[Hit],
        verdicts: &[Option<Verdict>],
    ) {
        let applied = verdict::of_event(verdicts)
            .filter(|verdict| verdict::is_applied(verdict))
            .filter(|_| self.log.next(Instant::now()));
        let Some(applied) = applied else { return };
        let of_rule = found
            .iter()
            .zip(verdicts)
            .find(|(_, verdict)| verdict.as_ref() == Some(applied));
        let rule = of_rule.map_or_else(String::new, |(hit, _)| {
            rule_name(&detector.describe(judged.generation, hit.rule))
        });
        tracing::warn!(
            pid = judged.actor.pid,
            rule,
            mode = applied.effective,
            outcome = applied.outcome,
            reason = applied.reason,
            not_told = std::mem::take(&mut self.log.left_out),
            "a rule that kills was applied"
        );
    }
}

fn rule_name(rule: &RuleRef) -> String {
    format!("{}/{}", rule.policy, rule.rule)
}

/// So many lines in a time.
#[derive(Debug, Default)]
struct Lines {
    since: Option<Instant>,
    told: u32,
    left_out: u64,
}

impl Lines {
    /// Whether another line may be told; if not, it is counted.
    fn next(&mut self, now: Instant) -> bool {
        if self
            .since
            .is_none_or(|since| now.duration_since(since) >= LOG_EVERY)
        {
            (self.since, self.told) = (Some(now), 0);
        }
        let may = self.told < LOG_LINES;
        if may {
            self.told += 1;
        } else {
            self.left_out += 1;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrich::process::Limits;

    #[test]
    fn lines_are_bounded_and_the_rest_counted() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        let told = (0..100).filter(|_| lines.next(start)).count();
        assert_eq!((told, lines.left_out), (20, 80));
        assert!(lines.next(start + LOG_EVERY));
    }

    fn outcomes(verdicts: &[Option<Verdict>]) -> Vec<&str> {
        let all = verdicts.iter().flatten();
        all.map(|verdict| verdict.outcome.as_str()).collect()
    }

    #[test]
    fn a_record_is_acted_on_once_however_often_it_is_read() {
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("60")
            .spawn()
            .expect("a child");
        let actor = Actor {
            pid: child.id(),
            tid: child.id(),
            start_ns: crate::kernel::stat::tests::start_ns(child.id()),
            ..Actor::default()
        };
        let tree = Tree::new(Limits { bytes: 1 << 20 });
        let record = |seq, dealt_with| Judged {
            stream: StreamId {
                ring: 0,
                cpu: 0,
                level: 0,
            },
            seq,
            generation: 1,
            kind: Kind::Exec,
            actor: &actor,
            told: None,
            dealt_with,
            certain: true,
            tree: &tree,
        };
        let detector = Detector::new(sumun_proto::Host::default());
        let mut enforcer = Enforcer::default();
        let mut judge = |record: &Judged<'_>, written: bool| {
            if written {
                enforcer.written();
            }
            let verdicts = enforcer.judge(&detector, record, &mut vec![verdict::killed_for(0)]);
            (outcomes(&verdicts).join(" "), enforcer.kills[2][0])
        };
        // From before a restart: it may be another's turn, so it is looked at only.
        assert_eq!(judge(&record(1, true), false), ("failed".into(), 0));
        assert!(child.try_wait().expect("a child").is_none(), "it lives");
        // It may be another that did it.
        let doubtful = Judged {
            certain: false,
            ..record(4, false)
        };
        assert_eq!(judge(&doubtful, false), ("undecided".into(), 0));
        assert!(child.try_wait().expect("a child").is_none(), "it lives");
        assert_eq!(judge(&record(2, false), false), ("killed".into(), 1));
        child.wait().expect("its end");
        // The cycle could not be written: what was done is still known, also when a lane has it by now.
        assert_eq!(judge(&record(2, false), false), ("killed".into(), 1));
        assert_eq!(judge(&record(2, true), false), ("killed".into(), 1));
        assert_eq!(judge(&record(3, false), true), ("gone".into(), 1));
        assert_eq!(judge(&record(2, true), true), ("gone".into(), 1));
    }

    #[test]
    fn what_the_kernel_killed_for_is_told_even_if_nobody_knows_the_rule() {
        let exec = sumun_abi::event::process::Exec {
            outcome: sumun_abi::event::process::outcome::KILLED,
            rule: 3,
            ..sumun_abi::plain::read(&[0; 1024]).expect("room for a record")
        };
        let actor = Actor::default();
        let record = Judged {
            stream: StreamId {
                ring: 0,
                cpu: 0,
                level: 0,
            },
            seq: 1,
            generation: 9,
            kind: Kind::Exec,
            actor: &actor,
            told: Told::of_exec(&exec),
            dealt_with: false,
            certain: true,
            tree: &Tree::new(Limits { bytes: 1 << 20 }),
        };
        let detector = Detector::new(sumun_proto::Host::default());
        let mut found = Vec::new();
        let verdicts = Enforcer::default().judge(&detector, &record, &mut found);
        assert_eq!(outcomes(&verdicts), ["killed"]);
        let [hit] = found[..] else {
            panic!("one hit, not {found:?}");
        };
        let rule = detector.describe(9, hit.rule);
        assert_eq!(
            (rule.policy.as_str(), rule.rule.as_str()),
            ("unloaded", "rule-3")
        );
        assert!(hit.alert && hit.is_certain());
    }

    #[test]
    fn several_rules_of_one_event_are_one_kill() {
        let mut enforcer = Enforcer::default();
        let verdict = |effective: &str, outcome: &str| {
            Some(Verdict {
                effective: effective.into(),
                outcome: outcome.into(),
                ..Verdict::default()
            })
        };
        enforcer.count(&[
            verdict("alert", "would-kill"),
            verdict("kill-late", "killed"),
            verdict("kill-late", "killed"),
            None,
        ]);
        let kills = enforcer.kills();
        assert_eq!((kills[3][1], kills[2][0]), (1, 1));
        assert_eq!(kills.iter().flatten().sum::<u64>(), 2);
    }
}
