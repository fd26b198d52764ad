//! What became of rules that deny, on calls that the kernel denied and on events that took place all the same. A call that was
//! denied by the process that held it is told by that.

use std::collections::{BTreeMap, VecDeque};

use sumun_engine::Hit;
use sumun_policy::Mode;
use sumun_proto::v1::{Kind, Verdict};

use super::fanotify::{Call, Decision};
use super::verdict::Told;
use crate::detect::unloaded;

const DENY: &str = "deny";
const DENY_VIA_AGENT: &str = "deny-via-agent";
const ALERT: &str = "alert";
const DENIED: &str = "denied";
const WOULD_DENY: &str = "would-deny";
const GUARDED: &str = "guarded";
const FAILED: &str = "failed";
const UNDECIDED: &str = "undecided";
const EXPIRED: &str = "expired";

/// Effective modes of rules that deny, as [`sumun_policy::report::MODES`] names them.
pub const MODES: [&str; 3] = [DENY, DENY_VIA_AGENT, ALERT];
/// Outcomes, as the catalogue names them under `verdict.outcome`.
pub const OUTCOMES: [&str; 6] = [DENIED, WOULD_DENY, GUARDED, FAILED, UNDECIDED, EXPIRED];

/// How often each outcome was reached, by mode: indices are those of [`MODES`] and [`OUTCOMES`].
pub type Denials = [[u64; OUTCOMES.len()]; MODES.len()];

/// Calls that were let through on purpose and whose record has not come yet, at most; the oldest is forgotten, and its
/// event says only that it was not denied.
const LET_THROUGH_MAX: usize = 1024;
/// A record that comes later is of another call, ns.
const LET_THROUGH_NS: u64 = 10_000_000_000;

/// How a rule that denies in `enforce` is carried out on a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carried {
    /// The kernel judges alone.
    ByKernel,
    /// Calls are held until they have been judged.
    ByHolding,
    /// It is not, and why.
    Not(String),
}

/// A call that went on although a rule would have denied it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Kind of its event.
    pub kind: i32,
    /// Its process.
    pub pid: u32,
    /// Inode number of its file; 0 = it is about none, or it is not known.
    pub ino: u64,
    /// When it was judged.
    pub boot_ns: u64,
    /// The rules; none: whichever matches.
    pub rules: Vec<usize>,
    effective: &'static str,
    outcome: &'static str,
    reason: String,
}

impl Passed {
    /// One that was held.
    #[must_use]
    pub fn of_call(call: &Call) -> Self {
        let outcome = match call.decision {
            Decision::Guarded => GUARDED,
            Decision::Undecided => UNDECIDED,
            Decision::Denied | Decision::Failed => FAILED,
        };
        Self {
            kind: call.kind,
            pid: call.pid,
            ino: call.ino,
            boot_ns: call.boot_ns,
            rules: call.rules.clone(),
            effective: DENY_VIA_AGENT,
            outcome,
            reason: call.reason.clone(),
        }
    }

    /// One that the kernel's programs were asked about; `None` if it was denied, or nobody had anything to say.
    #[must_use]
    pub fn of_told(told: Told, (kind, pid, ino, boot_ns): (Kind, u32, u64, u64)) -> Option<Self> {
        let (outcome, rules, reason) = match told.passed()? {
            super::verdict::Pass::Guarded(rule) => (
                GUARDED,
                vec![rule],
                "no policy may keep this process from anything",
            ),
            super::verdict::Pass::Expired(rule) => (
                EXPIRED,
                vec![rule],
                "the kernel's verdicts had expired, as no agent was there",
            ),
            super::verdict::Pass::Undecided => (
                UNDECIDED,
                Vec::new(),
                "the kernel did not know what the rule asks for, before the call was made",
            ),
        };
        Some(Self {
            kind: kind.into(),
            pid,
            ino,
            boot_ns,
            rules,
            effective: DENY,
            outcome,
            reason: reason.to_owned(),
        })
    }

    fn verdict(&self) -> (&'static str, &'static str, String) {
        (self.effective, self.outcome, self.reason.clone())
    }
}

/// Says of each hit of a rule that denies what became of it.
#[derive(Debug, Default)]
pub struct Denier {
    /// How rules are carried out on a kind, by their place among all.
    carried: BTreeMap<(usize, i32), Carried>,
    let_through: VecDeque<Passed>,
    denials: Denials,
}

/// The event that is judged, and its process and file (0 = not known).
#[derive(Clone, Copy, Debug)]
pub struct Of {
    /// Its kind.
    pub kind: Kind,
    /// Its process.
    pub pid: u32,
    /// Inode number of its file; 0 = not known.
    pub ino: u64,
    /// When it was recorded.
    pub boot_ns: u64,
}

impl Denier {
    /// From now on rules are carried out so.
    pub fn set_carried(&mut self, carried: BTreeMap<(usize, i32), Carried>) {
        self.carried = carried;
    }

    /// A call went through although a rule would have denied it.
    pub fn let_through(&mut self, call: Passed) {
        if self.let_through.len() == LET_THROUGH_MAX {
            self.let_through.pop_front();
        }
        self.let_through.push_back(call);
    }

    /// Adds the verdicts of rules that deny to those of rules that kill. `told` is what the kernel did. A hit that only
    /// the kernel knows of is added to those found; `knows` says whether it is one of the rules of the record's generation.
    pub fn judge(
        &mut self,
        hits: &mut Vec<Hit>,
        verdicts: &mut Vec<Option<Verdict>>,
        of: Of,
        told: Option<Told>,
        knows: impl FnOnce(usize) -> bool,
    ) {
        let denied_by = told.and_then(|told| told.denied_by());
        if let Some(rule) = denied_by {
            let acts = |hit: &Hit| hit.rule == rule && hit.deny == Some(Mode::Enforce);
            let known = hits.iter().any(acts) || knows(rule);
            confirm(hits, if known { rule } else { unloaded(rule) });
        }
        if hits.iter().all(|hit| hit.deny.is_none()) {
            return;
        }
        verdicts.resize(hits.len(), None);
        let known = match told.and_then(|told| Passed::of_told(told, (of.kind, of.pid, of.ino, 0)))
        {
            // Of what is recorded as it is asked for, the same record says so.
            Some(passed) => Some(passed),
            None if denied_by.is_some() => None,
            None => self.remembered(of),
        };
        let mut seen = [[false; OUTCOMES.len()]; MODES.len()];
        for (hit, verdict) in hits.iter().zip(verdicts) {
            let Some(mode) = hit.deny else { continue };
            let made = self.verdict(hit, mode, of.kind, known.as_ref(), denied_by);
            count(&mut self.denials, &mut seen, &made);
            *verdict = Some(made);
        }
    }

    fn remembered(&mut self, of: Of) -> Option<Passed> {
        let place = self.let_through.iter().rposition(|call| {
            call.kind == i32::from(of.kind)
                && call.pid == of.pid
                && (of.ino == 0 || call.ino == 0 || call.ino == of.ino)
                && (call.boot_ns..call.boot_ns.saturating_add(LET_THROUGH_NS)).contains(&of.boot_ns)
        });
        place.and_then(|place| self.let_through.remove(place))
    }

    /// A call that was held was denied.
    pub fn count_denied(&mut self) {
        self.denials[1][0] += 1;
    }

    /// How often each outcome was reached since the start; several rules of one event count once.
    #[must_use]
    pub fn denials(&self) -> &Denials {
        &self.denials
    }

    fn verdict(
        &self,
        hit: &Hit,
        mode: Mode,
        kind: Kind,
        known: Option<&Passed>,
        denied_by: Option<usize>,
    ) -> Verdict {
        let is_it = |call: &&Passed| call.rules.is_empty() || call.rules.contains(&hit.rule);
        let known = known.filter(is_it);
        let carried = self.carried.get(&(hit.rule, kind.into()));
        let (effective, outcome, reason) = match mode {
            _ if !hit.is_certain() => (
                ALERT,
                UNDECIDED,
                // Whoever held the call knows best.
                match known.filter(|call| call.outcome == UNDECIDED) {
                    Some(call) => call.reason.clone(),
                    None => "a value that the rule or an exception asks for is unknown".to_owned(),
                },
            ),
            Mode::Observe => (ALERT, WOULD_DENY, "the policy is in observe".to_owned()),
            Mode::Enforce => match (denied_by, known, carried) {
                // Whoever it was: the call did nothing.
                (Some(_), ..) => (DENY, DENIED, String::new()),
                (None, Some(call), _) => call.verdict(),
                (None, None, Some(Carried::Not(reason))) => (ALERT, FAILED, reason.clone()),
                (None, None, Some(Carried::ByKernel)) => (
                    DENY,
                    FAILED,
                    "the kernel's program was not asked: it was not attached yet, had no room to work in, or the kernel made the call for itself".to_owned(),
                ),
                (None, None, Some(Carried::ByHolding) | None) => (
                    DENY_VIA_AGENT,
                    FAILED,
                    "it was not held: the file or its folder had not been marked yet, or nobody held calls at that moment".to_owned(),
                ),
            },
        };
        Verdict {
            requested: match mode {
                Mode::Enforce => "enforce",
                Mode::Observe => "observe",
            }
            .into(),
            effective: effective.into(),
            outcome: outcome.into(),
            reason,
        }
    }
}

/// Makes the hit of the rule for which the kernel denied say so: the matcher sees at least what the kernel saw, and what was
/// done is told in any case.
fn confirm(hits: &mut Vec<Hit>, rule: usize) {
    let denied = Hit {
        rule,
        undecided: false,
        alert: true,
        exception: None,
        kill: None,
        deny: Some(Mode::Enforce),
        isolate: None,
        doubt: None,
    };
    match hits.iter_mut().find(|hit| hit.rule == rule) {
        Some(hit) => *hit = denied,
        None => hits.push(denied),
    }
}

/// The verdict of a call that was denied.
#[must_use]
pub fn denied(call: &Call) -> Verdict {
    Verdict {
        requested: "enforce".into(),
        effective: DENY_VIA_AGENT.into(),
        outcome: DENIED.into(),
        reason: call.reason.clone(),
    }
}

fn count(
    denials: &mut Denials,
    seen: &mut [[bool; OUTCOMES.len()]; MODES.len()],
    verdict: &Verdict,
) {
    let mode = MODES.iter().position(|mode| *mode == verdict.effective);
    let outcome = OUTCOMES.iter().position(|name| *name == verdict.outcome);
    if let (Some(mode), Some(outcome)) = (mode, outcome)
        && !std::mem::replace(&mut seen[mode][outcome], true)
    {
        denials[mode][outcome] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hit(rule: usize, mode: Mode) -> Hit {
        Hit {
            rule,
            undecided: false,
            alert: true,
            exception: None,
            kill: None,
            deny: Some(mode),
            isolate: None,
            doubt: None,
        }
    }

    fn call(decision: Decision, rule: usize, boot_ns: u64) -> Call {
        Call {
            decision,
            reason: "because".into(),
            rules: vec![rule],
            kind: Kind::Open.into(),
            boot_ns,
            pid: 7,
            tid: 7,
            start_ns: 1,
            exe: None,
            ids: [0; 4],
            cap_effective: 0,
            path: None,
            flaws: 0,
            flags: 0,
            dev: 1,
            ino: 9,
            mode: 0,
        }
    }

    fn told(denier: &mut Denier, hits: &[Hit], at: u64) -> Vec<String> {
        let mut verdicts = Vec::new();
        let of = Of {
            kind: Kind::Open,
            pid: 7,
            ino: 9,
            boot_ns: at,
        };
        denier.judge(&mut hits.to_vec(), &mut verdicts, of, None, |_| true);
        let of = |verdict: Verdict| {
            format!(
                "{} {} {}",
                verdict.requested, verdict.effective, verdict.outcome
            )
        };
        verdicts.into_iter().flatten().map(of).collect()
    }

    #[test]
    fn the_modes_are_those_of_reports() {
        for mode in MODES {
            assert!(sumun_policy::report::MODES.contains(&mode), "{mode}");
        }
    }

    #[test]
    fn what_was_not_denied_says_why() {
        let mut denier = Denier::default();
        let unsure = Hit {
            undecided: true,
            ..hit(0, Mode::Enforce)
        };
        let alert = Hit {
            deny: None,
            ..hit(0, Mode::Enforce)
        };
        let hits = [hit(0, Mode::Observe), unsure, alert, hit(3, Mode::Enforce)];
        assert_eq!(
            told(&mut denier, &hits, 50),
            [
                "observe alert would-deny",
                "enforce alert undecided",
                "enforce deny-via-agent failed",
            ]
        );
        denier.set_carried(BTreeMap::from([(
            (3, Kind::Open.into()),
            Carried::Not("no mark".to_owned()),
        )]));
        assert_eq!(told(&mut denier, &hits[3..], 50), ["enforce alert failed"]);
        assert_eq!(denier.denials()[2][3], 1);
    }

    #[test]
    fn a_call_that_was_let_through_explains_its_own_event_once() {
        let mut denier = Denier::default();
        denier.let_through(Passed::of_call(&call(Decision::Guarded, 3, 100)));
        denier.let_through(Passed::of_call(&call(Decision::Undecided, 3, 200)));
        let hits = [hit(3, Mode::Enforce)];
        // An event of before, and one of long after.
        for at in [99, 200 + LET_THROUGH_NS] {
            assert_eq!(
                told(&mut denier, &hits, at),
                ["enforce deny-via-agent failed"]
            );
        }
        assert_eq!(
            told(&mut denier, &hits, 300),
            ["enforce deny-via-agent undecided"]
        );
        assert_eq!(
            told(&mut denier, &hits, 300),
            ["enforce deny-via-agent guarded"]
        );
        assert_eq!(
            told(&mut denier, &hits, 300),
            ["enforce deny-via-agent failed"]
        );
    }
}
