//! What becomes of each rule: which condition is judged where, what it costs, and
//! what its effect will be.
//!
//! Nothing is analysed here a second time: each answer is read off the plan that
//! the compiler makes of the rule and of its conditions one by one.

use sumun_proto::v1::Kind;

use crate::file::{CheckedPolicy, Effect, Mode, Rule};
use crate::ir::{Expr, Predicate};
use crate::narrow::narrow;
use crate::plan::{Clause, KindFilter, KindPlan, Plan, is_life};

/// A rule on one of its kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// Name of the policy.
    pub policy: String,
    /// Id of the rule.
    pub rule: String,
    /// One of the rule's kinds.
    pub kind: Kind,
    /// What the rule does.
    pub effect: Effect,
    /// What its policy asks for.
    pub requested: Mode,
    /// What can be expected of a host.
    pub effective: Effective,
    /// Why that is less than what was asked for; empty if it is not.
    pub reason: String,
    /// What this rule alone makes the kernel send.
    pub cost: Cost,
    /// What all rules on the kind together make it send.
    pub cost_of_kind: Cost,
    /// What the kernel's filter is to the rule; `None` where it does not filter.
    pub filter: Option<Filter>,
    /// The conditions that the rule joins by `&&`, in its order; none if it has no `when`.
    pub conditions: Vec<Condition>,
}

/// A condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its canonical text.
    pub text: String,
    /// Where it is judged.
    pub judged: Judged,
}

/// Where a condition is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Judged {
    /// In the kernel: what does not meet it is not sent.
    Kernel,
    /// A looser condition in the kernel, the rest in the agent.
    KernelThenAgent,
    /// In the agent, on what the kernel sent.
    Agent,
    /// Nowhere: it cannot be true on this kind.
    Never,
}

/// What the kernel's filter is to a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// It lets through what the rule matches, and what the kernel could not read.
    Exact,
    /// It lets through more.
    Looser,
}

/// What is sent to user space, from the cheapest to the dearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cost {
    /// No event: the rule cannot match.
    Nothing,
    /// No event more: those of process life are always sent.
    Free,
    /// What the kernel's filter lets through.
    Narrow,
    /// Every event of the kind.
    EveryEvent,
}

/// What is done when a rule matches: the fixed list that hosts report from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effective {
    /// The event is stored and an alert raised.
    Alert,
    /// The event is stored.
    Record,
    /// Nothing: the rule cannot match on the kind.
    None,
}

impl Judged {
    /// Its name in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Judged::Kernel => "kernel",
            Judged::KernelThenAgent => "kernel, then agent",
            Judged::Agent => "agent",
            Judged::Never => "never true",
        }
    }
}

impl Filter {
    /// Its name in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Filter::Exact => "exact",
            Filter::Looser => "looser",
        }
    }
}

impl Cost {
    /// Its name in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Cost::Nothing => "nothing",
            Cost::Free => "free",
            Cost::Narrow => "narrow",
            Cost::EveryEvent => "every event of the kind",
        }
    }

    fn of(plan: &KindPlan, kind: Kind) -> Self {
        match plan {
            _ if is_life(kind) => Cost::Free,
            KindPlan::None => Cost::Nothing,
            KindPlan::Clauses(_) => Cost::Narrow,
            KindPlan::All => Cost::EveryEvent,
        }
    }
}

impl Effective {
    /// Its name in output and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Effective::Alert => "alert",
            Effective::Record => "record",
            Effective::None => "none",
        }
    }
}

/// How an effect is carried out: a row of [`CARRIED`].
struct Carried {
    effect: Effect,
    /// On these kinds; on every one if there are none.
    kinds: &'static [Kind],
    /// Only if the kernel's filter is exact, so that the kernel can decide alone.
    in_kernel: bool,
    effective: Effective,
    /// Why this is less than what was asked for; empty if it is not.
    reason: &'static str,
}

/// How each effect is carried out: the first row that fits. The last row of an effect
/// fits always.
const CARRIED: &[Carried] = &[
    Carried {
        effect: Effect::Record,
        kinds: &[],
        in_kernel: false,
        effective: Effective::Record,
        reason: "",
    },
    Carried {
        effect: Effect::Alert,
        kinds: &[],
        in_kernel: false,
        effective: Effective::Alert,
        reason: "",
    },
];

impl Carried {
    fn fits(&self, effect: Effect, kind: Kind, exact: bool) -> bool {
        self.effect == effect
            && (self.kinds.is_empty() || self.kinds.contains(&kind))
            && (exact || !self.in_kernel)
    }
}

/// Explains every rule of policies that are loaded together, on each of its kinds.
#[must_use]
pub fn explain(policies: &[CheckedPolicy]) -> Vec<Explained> {
    let (plan, _) = Plan::build(policies);
    policies
        .iter()
        .flat_map(|policy| policy.rules.iter().map(move |rule| (policy, rule)))
        .flat_map(|(policy, rule)| rule.kinds.iter().map(move |kind| (policy, rule, *kind)))
        .map(|(policy, rule, kind)| one(policy, rule, kind, plan.kind(kind)))
        .collect()
}

fn one(policy: &CheckedPolicy, rule: &Rule, kind: Kind, together: &KindPlan) -> Explained {
    let alone = KindFilter::of([&rule.predicate], kind);
    let never = narrow(&rule.predicate, kind).clauses.is_empty();
    let carried = CARRIED
        .iter()
        .find(|row| row.fits(rule.effect, kind, alone.exact));
    let (effective, reason) = match carried {
        Some(row) if !never => (row.effective, row.reason.to_owned()),
        _ => (
            Effective::None,
            "the rule can never match on this kind".to_owned(),
        ),
    };
    Explained {
        policy: policy.name.clone(),
        rule: rule.id.clone(),
        kind,
        effect: rule.effect,
        requested: policy.mode,
        effective,
        reason,
        cost: Cost::of(&alone.plan, kind),
        cost_of_kind: Cost::of(together, kind),
        filter: match &alone.plan {
            KindPlan::Clauses(_) if alone.exact => Some(Filter::Exact),
            KindPlan::Clauses(_) => Some(Filter::Looser),
            KindPlan::All | KindPlan::None => None,
        },
        conditions: rule
            .predicate
            .conjuncts()
            .iter()
            .filter(|part| **part != Expr::Const(true))
            .map(|part| Condition {
                text: Predicate::new(part.clone()).to_string(),
                judged: judged(part, kind, &alone),
            })
            .collect(),
    }
}

/// Where a condition is judged, given the filter of its whole rule.
fn judged(part: &Expr, kind: Kind, whole: &KindFilter) -> Judged {
    let part = Predicate::new(part.clone());
    if narrow(&part, kind).clauses.is_empty() {
        return Judged::Never;
    }
    let alone = KindFilter::of([&part], kind);
    let needed = match &alone.plan {
        // True of every event of the kind, or beyond the kernel.
        KindPlan::All if alone.exact => return Judged::Kernel,
        KindPlan::All | KindPlan::None => return Judged::Agent,
        KindPlan::Clauses(needed) => needed,
    };
    let asked: &[Clause] = match &whole.plan {
        KindPlan::Clauses(_) if whole.exact => return Judged::Kernel,
        KindPlan::Clauses(asked) => asked,
        KindPlan::All | KindPlan::None => &[],
    };
    // Other conditions may have left no room for this one in the rule's clauses.
    let kept = !asked.is_empty()
        && asked
            .iter()
            .all(|clause| needed.iter().any(|other| clause.lies_within(other)));
    match (kept, alone.exact) {
        (true, true) => Judged::Kernel,
        (true, false) => Judged::KernelThenAgent,
        (false, _) => Judged::Agent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every effect has a row for every kind, whatever the filter.
    #[test]
    fn every_effect_is_carried_out_somehow() {
        for effect in [Effect::Record, Effect::Alert] {
            for (_, kind) in sumun_proto::catalogue::KINDS {
                for exact in [true, false] {
                    assert!(CARRIED.iter().any(|row| row.fits(effect, *kind, exact)));
                }
            }
        }
    }

    /// An effect that the kernel carries out on some kinds falls back to its later rows.
    #[test]
    fn the_first_row_that_fits_is_taken() {
        let rows = [
            Carried {
                effect: Effect::Alert,
                kinds: &[Kind::Exec],
                in_kernel: true,
                effective: Effective::Record,
                reason: "",
            },
            Carried {
                effect: Effect::Alert,
                kinds: &[],
                in_kernel: false,
                effective: Effective::Alert,
                reason: "judged in the agent",
            },
        ];
        let first = |kind, exact| {
            let row = rows.iter().find(|row| row.fits(Effect::Alert, kind, exact));
            row.map(|row| row.effective)
        };
        assert_eq!(first(Kind::Exec, true), Some(Effective::Record));
        assert_eq!(first(Kind::Exec, false), Some(Effective::Alert));
        assert_eq!(first(Kind::Open, true), Some(Effective::Alert));
        assert!(!rows[1].fits(Effect::Record, Kind::Open, true));
    }
}
