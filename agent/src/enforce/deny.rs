//! What became of rules that deny, on events that took place all the same. A call that was denied has no kernel
//! record; it is told by the process that held it.

use std::collections::{BTreeMap, VecDeque};

use sumun_engine::Hit;
use sumun_policy::Mode;
use sumun_proto::v1::{Kind, Verdict};

use super::fanotify::{Call, Decision};

const DENY_VIA_AGENT: &str = "deny-via-agent";
const ALERT: &str = "alert";
const DENIED: &str = "denied";
const WOULD_DENY: &str = "would-deny";
const GUARDED: &str = "guarded";
const FAILED: &str = "failed";
const UNDECIDED: &str = "undecided";

/// Effective modes of rules that deny, as [`sumun_policy::report::MODES`] names them.
pub const MODES: [&str; 2] = [DENY_VIA_AGENT, ALERT];
/// Outcomes, as the catalogue names them under `verdict.outcome`.
pub const OUTCOMES: [&str; 5] = [DENIED, WOULD_DENY, GUARDED, FAILED, UNDECIDED];

/// How often each outcome was reached, by mode: indices are those of [`MODES`] and [`OUTCOMES`].
pub type Denials = [[u64; OUTCOMES.len()]; MODES.len()];

/// Calls that were let through on purpose and whose record has not come yet, at most; the oldest is forgotten, and its
/// event says only that it was not denied.
const LET_THROUGH_MAX: usize = 1024;
/// A record that comes later is of another call, ns.
const LET_THROUGH_NS: u64 = 10_000_000_000;

/// Says of each hit of a rule that denies what became of it.
#[derive(Debug, Default)]
pub struct Denier {
    /// Rules that are not carried out on a kind, by their place among all.
    reasons: BTreeMap<(usize, i32), String>,
    let_through: VecDeque<Call>,
    denials: Denials,
}

impl Denier {
    /// From now on these rules are not carried out on these kinds.
    pub fn set_reasons(&mut self, reasons: BTreeMap<(usize, i32), String>) {
        self.reasons = reasons;
    }

    /// A call went through although a rule would have denied it.
    pub fn let_through(&mut self, call: Call) {
        if self.let_through.len() == LET_THROUGH_MAX {
            self.let_through.pop_front();
        }
        self.let_through.push_back(call);
    }

    /// Adds the verdicts of rules that deny to those of rules that kill, for an event of a process on
    /// a file (0 = not known).
    pub fn judge(
        &mut self,
        hits: &[Hit],
        verdicts: &mut Vec<Option<Verdict>>,
        (kind, pid, ino, boot_ns): (Kind, u32, u64, u64),
    ) {
        if hits.iter().all(|hit| hit.deny.is_none()) {
            return;
        }
        verdicts.resize(hits.len(), None);
        let place = self.let_through.iter().rposition(|call| {
            call.kind == i32::from(kind)
                && call.pid == pid
                && (ino == 0 || call.ino == ino)
                && (call.boot_ns..call.boot_ns.saturating_add(LET_THROUGH_NS)).contains(&boot_ns)
        });
        let known = place.and_then(|place| self.let_through.remove(place));
        let mut seen = [[false; OUTCOMES.len()]; MODES.len()];
        for (hit, verdict) in hits.iter().zip(verdicts) {
            let Some(mode) = hit.deny else { continue };
            let made = self.verdict(hit, mode, kind, known.as_ref());
            count(&mut self.denials, &mut seen, &made);
            *verdict = Some(made);
        }
    }

    /// A call was denied.
    pub fn count_denied(&mut self) {
        self.denials[0][0] += 1;
    }

    /// How often each outcome was reached since the start; several rules of one event count once.
    #[must_use]
    pub fn denials(&self) -> &Denials {
        &self.denials
    }

    fn verdict(&self, hit: &Hit, mode: Mode, kind: Kind, known: Option<&Call>) -> Verdict {
        let known = known.filter(|call| call.rules.contains(&hit.rule));
        let missing = || self.reasons.get(&(hit.rule, kind.into()));
        let (effective, outcome, reason) = match mode {
            _ if !hit.is_certain() => (
                ALERT,
                UNDECIDED,
                "a value that the rule or an exception asks for is unknown".to_owned(),
            ),
            Mode::Observe => (ALERT, WOULD_DENY, "the policy is in observe".to_owned()),
            Mode::Enforce => match (known, missing()) {
                (Some(call), _) => {
                    let outcome = match call.decision {
                        Decision::Guarded => GUARDED,
                        Decision::Undecided => UNDECIDED,
                        Decision::Denied | Decision::Failed => FAILED,
                    };
                    (DENY_VIA_AGENT, outcome, call.reason.clone())
                }
                (None, Some(reason)) => (ALERT, FAILED, reason.clone()),
                (None, None) => (
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
        denier.judge(hits, &mut verdicts, (Kind::Open, 7, 9, at));
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
        denier.set_reasons(BTreeMap::from([(
            (3, Kind::Open.into()),
            "no mark".to_owned(),
        )]));
        assert_eq!(told(&mut denier, &hits[3..], 50), ["enforce alert failed"]);
        assert_eq!(denier.denials()[1][3], 1);
    }

    #[test]
    fn a_call_that_was_let_through_explains_its_own_event_once() {
        let mut denier = Denier::default();
        denier.let_through(call(Decision::Guarded, 3, 100));
        denier.let_through(call(Decision::Undecided, 3, 200));
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
