//! What became of each rule that kills, on one event: a function of the rules' hits, of what the kernel
//! did before the process started, and of one try to kill it now.

use sumun_abi::event::process::{Exec, outcome};
use sumun_abi::verdict::Verdict as OfRecord;
use sumun_engine::Hit;
use sumun_policy::Mode;
use sumun_proto::v1::{Kind, Verdict};

use super::hunt::Hunted;
use super::kill::Done;

const BEFORE_START: &str = "kill-before-start";
const AFTER: &str = "kill-after";
const LATE: &str = "kill-late";
const ALERT: &str = "alert";
const KILLED: &str = "killed";
const WOULD_KILL: &str = "would-kill";
const GUARDED: &str = "guarded";
const GONE: &str = "gone";
const FAILED: &str = "failed";
const EXPIRED: &str = "expired";
const UNDECIDED: &str = "undecided";

/// Effective modes of rules that kill, as [`sumun_policy::report::MODES`] names them.
pub const MODES: [&str; 4] = [BEFORE_START, AFTER, LATE, ALERT];
/// Outcomes, as the catalogue names them under `verdict.outcome`.
pub const OUTCOMES: [&str; 7] = [
    KILLED, WOULD_KILL, GUARDED, GONE, FAILED, EXPIRED, UNDECIDED,
];

/// Processes that a reason names at most.
const NAMED_MAX: usize = 16;

/// What the kernel's programs did about an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    outcome: u32,
    rule: usize,
    error: u32,
    table: u64,
    /// It was asked about before it happened, by rules that deny; else after, by rules that kill.
    before: bool,
}

/// Why a call goes on that a rule, by its number, would have denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// The process is one that no policy may keep from anything.
    Guarded(usize),
    /// The kernel's verdicts had expired.
    Expired(usize),
    /// Some rule may match.
    Undecided,
}

impl Told {
    /// Of the record of an exec; `None` when the kernel had nothing to do.
    #[must_use]
    pub fn of_exec(exec: &Exec) -> Option<Self> {
        Self::of(&OfRecord {
            outcome: exec.outcome,
            rule: exec.rule,
            error: exec.error,
            ..OfRecord::default()
        })
    }

    /// Of the record of another event, likewise.
    #[must_use]
    pub fn of(verdict: &OfRecord) -> Option<Self> {
        (verdict.outcome != outcome::NONE).then_some(Self {
            outcome: verdict.outcome,
            rule: verdict.rule as usize,
            error: verdict.error,
            table: verdict.table,
            before: false,
        })
    }

    /// Of the record of a call that was asked about before it happened, likewise.
    #[must_use]
    pub fn of_call(verdict: &OfRecord) -> Option<Self> {
        Self::of(verdict).map(|told| Self {
            before: true,
            ..told
        })
    }

    /// What was done about it by rules that kill.
    #[must_use]
    pub fn after(self) -> Option<Self> {
        (!self.before).then_some(self)
    }

    /// The table of open files of a process that the kernel has killed, if others share it.
    #[must_use]
    pub fn table(&self) -> Option<u64> {
        (self.outcome == outcome::KILLED && self.table != 0).then_some(self.table)
    }

    /// The rule for which the call failed.
    #[must_use]
    pub fn denied_by(&self) -> Option<usize> {
        (self.before && self.outcome == outcome::DENIED).then_some(self.rule)
    }

    /// Why a call that was asked about before it happened goes on all the same; `None` if it does not, or no rule
    /// had anything to say.
    #[must_use]
    pub(super) fn passed(&self) -> Option<Pass> {
        match self.outcome {
            _ if !self.before => None,
            outcome::GUARDED => Some(Pass::Guarded(self.rule)),
            outcome::EXPIRED => Some(Pass::Expired(self.rule)),
            outcome::UNDECIDED => Some(Pass::Undecided),
            _ => None,
        }
    }

    /// The rule for which the process was killed.
    #[must_use]
    pub fn killed_by(&self) -> Option<usize> {
        (self.outcome == outcome::KILLED).then_some(self.rule)
    }
}

/// The certain hit of a rule that kills in `enforce`.
pub(super) fn killed_for(rule: usize) -> Hit {
    Hit {
        rule,
        undecided: false,
        alert: true,
        exception: None,
        kill: Some(Mode::Enforce),
        deny: None,
        isolate: None,
        doubt: None,
    }
}

/// Makes the hit of the rule for which the kernel killed say so. The matcher sees at least
/// what the kernel saw, so it has hit as a rule; but what was done is told in any case.
pub fn confirm(hits: &mut Vec<Hit>, rule: usize) {
    let killed = killed_for(rule);
    match hits.iter_mut().find(|hit| hit.rule == rule) {
        Some(hit) => *hit = killed,
        None => hits.push(killed),
    }
}

/// The verdict of each hit, `None` for a rule that does not kill. `kill` is called once at most, and only if a rule that
/// enforces certainly matched; with a table, it kills those that share it with a process that the kernel has
/// killed. `name` names a rule.
pub fn decide(
    kind: Kind,
    hits: &[Hit],
    told: Option<Told>,
    name: impl Fn(usize) -> String,
    kill: impl FnOnce(Option<u64>) -> Done,
) -> Vec<Option<Verdict>> {
    let acts = |hit: &Hit| hit.kill == Some(Mode::Enforce) && hit.is_certain();
    let applied = if hits.iter().any(acts) {
        Some(apply(kind, told, kill))
    } else {
        None
    };
    let killed_by = told.and_then(|told| told.killed_by());
    let verdict = |hit: &Hit| {
        let requested = match hit.kill? {
            Mode::Enforce => "enforce",
            Mode::Observe => "observe",
        };
        let (effective, outcome, reason) = match &applied {
            _ if hit.undecided => (
                ALERT,
                UNDECIDED,
                "a value that the rule asks for is unknown".into(),
            ),
            _ if hit.doubt.is_some() => (
                ALERT,
                UNDECIDED,
                "a value that an exception asks for is unknown".into(),
            ),
            Some((effective, outcome, reason)) if acts(hit) => match killed_by {
                Some(rule) if rule != hit.rule => {
                    let killed = format!("killed for {}", name(rule));
                    let reason = match reason.as_str() {
                        "" => killed,
                        more => format!("{killed}; {more}"),
                    };
                    (*effective, *outcome, reason)
                }
                _ => (*effective, *outcome, reason.clone()),
            },
            _ => (ALERT, WOULD_KILL, "the policy is in observe".into()),
        };
        Some(Verdict {
            requested: requested.into(),
            effective: effective.into(),
            outcome: outcome.into(),
            reason,
        })
    };
    hits.iter().map(verdict).collect()
}

/// Whether something was done, or tried, for a rule.
#[must_use]
pub fn is_applied(verdict: &Verdict) -> bool {
    verdict.effective != ALERT
}

/// Whether the process has ended, by the rule or before it.
#[must_use]
pub fn has_ended(verdict: &Verdict) -> bool {
    is_applied(verdict) && [KILLED, GONE, EXPIRED].contains(&verdict.outcome.as_str())
}

/// Adds what became of those that descend from the process; `None`: it is one of those that are being killed with another.
pub(super) fn with_lineage(verdict: &mut Verdict, hunted: Option<&Hunted>) {
    let (what, remarks) = match hunted {
        None => (
            "it descends from a process whose lineage was killed just before".to_owned(),
            Vec::new(),
        ),
        Some(hunted) => (of_lineage(hunted), hunted.remarks.clone()),
    };
    let mut parts = vec![std::mem::take(&mut verdict.reason), what];
    parts.extend(remarks);
    parts.retain(|part| !part.is_empty());
    verdict.reason = parts.join("; ");
}

fn of_lineage(hunted: &Hunted) -> String {
    let ended = match hunted.ended {
        0 => String::new(),
        count => format!("; {count} that they made meanwhile had ended"),
    };
    match hunted.killed.len() {
        0 => format!("no process that descends from it was left{ended}"),
        count => {
            let all = named(&hunted.killed);
            format!("killed with it, as they descend from it, {count}: {all}{ended}")
        }
    }
}

/// The verdict of an event: of the first of its rules that was applied, else of the first.
#[must_use]
pub fn of_event(verdicts: &[Option<Verdict>]) -> Option<&Verdict> {
    let all = || verdicts.iter().flatten();
    all()
        .find(|verdict| is_applied(verdict))
        .or_else(|| all().next())
}

/// What was done: effective mode, outcome, reason.
fn apply(
    kind: Kind,
    told: Option<Told>,
    kill: impl FnOnce(Option<u64>) -> Done,
) -> (&'static str, &'static str, String) {
    let (by_kernel, when) = match kind {
        Kind::Exec => (BEFORE_START, " before it started"),
        _ => (AFTER, ""),
    };
    let before = match told.map(|told| (told.outcome, told.error)) {
        Some((outcome::KILLED, _)) => {
            let reason = match told.and_then(|told| told.table()).map(|table| kill(Some(table))) {
                None | Some(Done::Gone) => String::new(),
                Some(Done::Killed { with, remark }) => killed(String::new(), &with, remark),
                Some(Done::Guarded(guarded)) => guarded.to_string(),
                Some(Done::Failed(why)) => why,
            };
            return (by_kernel, KILLED, reason);
        }
        Some((outcome::GUARDED, _)) => {
            let reason = "no policy may kill this process".into();
            return (by_kernel, GUARDED, reason);
        }
        Some((outcome::FAILED, errno)) => {
            let error = std::io::Error::from_raw_os_error(errno.cast_signed());
            format!("the kernel could not kill it{when} ({error}); judged by the agent")
        }
        Some((outcome::EXPIRED, _)) => {
            "the kernel's verdicts had expired, as no agent was there; judged by the agent".into()
        }
        Some((outcome::UNDECIDED, _)) => {
            format!("the kernel could not decide{when}; judged by the agent")
        }
        Some((outcome::ELSEWHERE, _)) => {
            "the answer came in while another process ran, which is the only one that the kernel can kill; judged by the agent".into()
        }
        Some((outcome::PERHAPS_GUARDED, _)) => {
            "only the agent can tell whether it is of the host's sshd or services, which no policy may kill; judged by the agent".into()
        }
        _ if kind == Kind::Exec => "judged by the agent, after it had started".into(),
        _ => "judged by the agent, after the event".to_owned(),
    };
    let expired = told.is_some_and(|told| told.outcome == outcome::EXPIRED);
    match kill(None) {
        Done::Killed { with, remark } => (LATE, KILLED, killed(before, &with, remark)),
        Done::Gone if expired => (LATE, EXPIRED, format!("{before}: it had ended")),
        Done::Gone => (LATE, GONE, format!("{before}: it had ended")),
        Done::Guarded(guarded) => (LATE, GUARDED, guarded.to_string()),
        Done::Failed(why) => (LATE, FAILED, format!("{before}: {why}")),
    }
}

/// Numbers of processes, the first of them.
fn named(pids: &[u32]) -> String {
    let named: Vec<String> = pids.iter().take(NAMED_MAX).map(u32::to_string).collect();
    let mut all = named.join(", ");
    if pids.len() > NAMED_MAX {
        all.push_str(&format!(" and {} more", pids.len() - NAMED_MAX));
    }
    all
}

fn killed(before: String, with: &[u32], remark: Option<String>) -> String {
    let mut parts = vec![before];
    if !with.is_empty() {
        let all = named(with);
        parts.push(format!(
            "killed with it, as they share its open files: {all}"
        ));
    }
    parts.extend(remark);
    parts.retain(|part| !part.is_empty());
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enforce::guard::Guarded;
    use std::cell::Cell;

    fn hit(rule: usize, mode: Mode) -> Hit {
        Hit {
            rule,
            undecided: false,
            alert: true,
            exception: None,
            kill: Some(mode),
            deny: None,
            isolate: None,
            doubt: None,
        }
    }

    fn told(outcome: u32, rule: usize, error: u32) -> Option<Told> {
        Some(Told {
            outcome,
            rule,
            error,
            table: 0,
            before: false,
        })
    }

    fn dead() -> Done {
        Done::Killed {
            with: Vec::new(),
            remark: None,
        }
    }

    /// Requested, effective, outcome, reason of each hit, and how often it was tried to kill.
    fn judged(hits: &[Hit], told: Option<Told>, done: Done) -> (Vec<[String; 4]>, u32) {
        let tries = Cell::new(0);
        let kill = |_| {
            tries.set(tries.get() + 1);
            done
        };
        let verdicts = decide(Kind::Exec, hits, told, |rule| format!("p/r{rule}"), kill);
        assert_eq!(verdicts.len(), hits.len());
        let of = |verdict: Verdict| {
            assert!(MODES.contains(&verdict.effective.as_str()));
            assert!(OUTCOMES.contains(&verdict.outcome.as_str()));
            [
                verdict.requested,
                verdict.effective,
                verdict.outcome,
                verdict.reason,
            ]
        };
        let all = verdicts.into_iter().flatten().map(of).collect();
        (all, tries.get())
    }

    fn short(all: &[[String; 4]]) -> Vec<[&str; 3]> {
        all.iter()
            .map(|[requested, effective, outcome, _]| {
                [requested.as_str(), effective.as_str(), outcome.as_str()]
            })
            .collect()
    }

    #[test]
    fn the_modes_are_those_of_reports() {
        for mode in MODES {
            assert!(sumun_policy::report::MODES.contains(&mode), "{mode}");
        }
    }

    #[test]
    fn observe_and_doubt_never_kill() {
        let undecided = Hit {
            undecided: true,
            ..hit(1, Mode::Enforce)
        };
        let doubtful = Hit {
            doubt: Some(0),
            ..hit(2, Mode::Enforce)
        };
        let alert = Hit {
            kill: None,
            ..hit(3, Mode::Enforce)
        };
        let hits = [hit(0, Mode::Observe), undecided, doubtful, alert];
        let (all, tries) = judged(&hits, None, dead());
        assert_eq!(tries, 0);
        assert_eq!(
            short(&all),
            [
                ["observe", "alert", "would-kill"],
                ["enforce", "alert", "undecided"],
                ["enforce", "alert", "undecided"],
            ]
        );
        // Nor when the kernel failed at what user space doubts.
        let (all, tries) = judged(&hits[1..2], told(outcome::FAILED, 1, 11), dead());
        assert_eq!((all[0][2].as_str(), tries), ("undecided", 0));
    }

    #[test]
    fn several_rules_kill_once_and_each_is_told() {
        let hits = [
            hit(0, Mode::Observe),
            hit(4, Mode::Enforce),
            hit(7, Mode::Enforce),
        ];
        let (all, tries) = judged(&hits, None, dead());
        assert_eq!(tries, 1);
        assert_eq!(
            short(&all),
            [
                ["observe", "alert", "would-kill"],
                ["enforce", "kill-late", "killed"],
                ["enforce", "kill-late", "killed"],
            ]
        );
        let verdicts = decide(Kind::Open, &hits, None, |_| String::new(), |_| dead());
        let event = of_event(&verdicts).expect("a verdict");
        assert_eq!(event.effective, "kill-late", "what was applied comes first");
        assert_eq!(event.reason, "judged by the agent, after the event");
        assert_eq!(of_event(&[None, None]), None);
    }

    #[test]
    fn what_the_kernel_did_is_not_done_again() {
        let mut hits = vec![hit(4, Mode::Enforce), hit(7, Mode::Enforce)];
        let (all, tries) = judged(&hits, told(outcome::KILLED, 7, 0), dead());
        assert_eq!(tries, 0);
        assert_eq!(short(&all), [["enforce", "kill-before-start", "killed"]; 2]);
        assert_eq!(
            (all[0][3].as_str(), all[1][3].as_str()),
            ("killed for p/r7", "")
        );
        let (all, tries) = judged(&hits, told(outcome::GUARDED, 7, 0), dead());
        assert_eq!(
            (short(&all)[0], tries),
            (["enforce", "kill-before-start", "guarded"], 0)
        );
        // Of another event it is another mode; who shares its table is killed now.
        let of = |table| {
            let told = told(outcome::KILLED, 4, 0).map(|told| Told { table, ..told });
            let asked = Cell::new(None);
            let kill = |table| {
                asked.set(table);
                Done::Killed {
                    with: vec![8, 9],
                    remark: None,
                }
            };
            let verdicts = decide(Kind::Open, &hits[..1], told, |_| String::new(), kill);
            let verdict = verdicts[0].clone().expect("a verdict");
            (verdict.effective, verdict.reason, asked.get())
        };
        assert_eq!(of(0), ("kill-after".into(), String::new(), None));
        let reason = "killed with it, as they share its open files: 8, 9";
        assert_eq!(of(7), ("kill-after".into(), reason.into(), Some(7)));
        // A rule that the matcher did not hit, or an exception that it saw: killed all the same.
        hits[1].exception = Some(0);
        hits[1].kill = None;
        confirm(&mut hits, 7);
        confirm(&mut hits, 9);
        assert_eq!(hits, [4, 7, 9].map(|rule| hit(rule, Mode::Enforce)));
    }

    #[test]
    fn what_became_of_the_lineage_is_told_with_the_rest() {
        let told = |outcome: &str, hunted: Option<&Hunted>| {
            let mut verdict = Verdict {
                effective: AFTER.into(),
                outcome: outcome.into(),
                reason: "killed for p/r1".into(),
                ..Verdict::default()
            };
            assert!(has_ended(&verdict), "{outcome}");
            with_lineage(&mut verdict, hunted);
            verdict.reason
        };
        let hunted = Hunted {
            killed: (1..=20).collect(),
            ended: 3,
            remarks: vec!["process 21 descends from it: guarded".into()],
        };
        let reason = told(KILLED, Some(&hunted));
        assert!(
            reason
                .starts_with("killed for p/r1; killed with it, as they descend from it, 20: 1, 2"),
            "{reason}"
        );
        assert!(
            reason.ends_with("16 and 4 more; 3 that they made meanwhile had ended; process 21 descends from it: guarded"),
            "{reason}"
        );
        assert_eq!(
            told(GONE, Some(&Hunted::default())),
            "killed for p/r1; no process that descends from it was left"
        );
        assert!(told(EXPIRED, None).contains("just before"));
    }

    #[test]
    fn what_the_kernel_could_not_do_is_done_late() {
        let hits = [hit(4, Mode::Enforce)];
        let late = |told, done| {
            let (all, tries) = judged(&hits, told, done);
            assert_eq!((tries, all[0][1].as_str()), (1, "kill-late"));
            (all[0][2].clone(), all[0][3].clone())
        };
        let (outcome, reason) = late(told(outcome::FAILED, 4, 11), dead());
        assert_eq!(outcome, "killed");
        assert!(reason.contains("os error 11"), "{reason}");
        assert_eq!(late(told(outcome::EXPIRED, 4, 0), dead()).0, "killed");
        assert_eq!(late(told(outcome::EXPIRED, 4, 0), Done::Gone).0, "expired");
        assert_eq!(late(told(outcome::UNDECIDED, 0, 0), Done::Gone).0, "gone");
        assert_eq!(late(None, Done::Gone).0, "gone");
        for outcome in [outcome::ELSEWHERE, outcome::PERHAPS_GUARDED] {
            assert_eq!(late(told(outcome, 4, 0), dead()).0, "killed");
        }
        assert_eq!(
            late(None, Done::Guarded(Guarded::Init)),
            (
                "guarded".into(),
                "no policy may kill the first process".into()
            )
        );
        let (outcome, reason) = late(None, Done::Failed("cannot".into()));
        assert_eq!(outcome, "failed");
        assert!(reason.ends_with(": cannot"), "{reason}");
        let with = Done::Killed {
            with: (1..=20).collect(),
            remark: Some("process 1 shares its files: guarded".into()),
        };
        let (_, reason) = late(None, with);
        assert!(reason.contains("15, 16 and 4 more; process 1"), "{reason}");
    }
}
