//! The rule engine: which rules an event matches, whether it is stored, and
//! which alerts it raises. The agent, a replay over stored events and an
//! offline test run this same code.
#![forbid(unsafe_code)]

mod index;

use sumun_policy::plan::is_life;
use sumun_policy::{CheckedPolicy, Effect, Matcher, Verdict};
use sumun_proto::View;
use sumun_proto::catalogue::KINDS;
use sumun_proto::v1::{Kind, RuleRef};

use crate::index::Index;

/// All rules of the loaded policies, compiled. Immutable: a reload builds a new one.
#[derive(Debug)]
pub struct Engine {
    rules: Vec<Compiled>,
    refs: Vec<RuleRef>,
    kinds: Vec<(Kind, Index)>,
}

#[derive(Debug)]
struct Compiled {
    matcher: Matcher,
    effect: Effect,
}

/// A rule that matched an event, or could not be decided on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Index into [`Engine::rules`].
    pub rule: usize,
    /// A value it reads was lost or cut off: it may or may not match.
    pub undecided: bool,
    /// An alert is raised.
    pub alert: bool,
}

impl Engine {
    /// Compiles the rules of these policies, in their order.
    #[must_use]
    pub fn new(policies: &[CheckedPolicy]) -> Self {
        let all = || {
            policies
                .iter()
                .flat_map(|policy| policy.rules.iter().map(move |rule| (policy, rule)))
        };
        let rules = all()
            .map(|(_, rule)| Compiled {
                matcher: Matcher::compile(&rule.predicate),
                effect: rule.effect,
            })
            .collect();
        let refs = all().map(|(policy, rule)| policy.rule_ref(rule)).collect();
        let kinds = KINDS
            .iter()
            .map(|(_, kind)| {
                let of_kind = all()
                    .enumerate()
                    .filter(|(_, (_, rule))| rule.kinds.contains(kind))
                    .map(|(number, (_, rule))| (number, &rule.predicate));
                (*kind, Index::new(of_kind))
            })
            .collect();
        Self { rules, refs, kinds }
    }

    /// What events and alerts say of each rule; the index is that of [`Hit::rule`].
    #[must_use]
    pub fn rules(&self) -> &[RuleRef] {
        &self.refs
    }

    /// Judges an event. `hits` is emptied and filled with the rules that matched or could not be
    /// decided, in the order of the rules; it is the caller's, so that it is allocated once.
    ///
    /// Returns true if the event is to be stored: a rule hit, or it is
    /// a fork, exec or exit.
    pub fn evaluate(&self, view: &View<'_>, hits: &mut Vec<Hit>) -> bool {
        hits.clear();
        let kind = view.kind();
        if let Some((_, index)) = self.kinds.iter().find(|(known, _)| *known == kind) {
            index.candidates(view, |number| {
                let rule = &self.rules[number];
                let undecided = match rule.matcher.matches(view) {
                    Verdict::NoMatch => return,
                    Verdict::Match => false,
                    Verdict::Undecided => true,
                };
                hits.push(Hit {
                    rule: number,
                    undecided,
                    alert: rule.effect == Effect::Alert,
                });
            });
        }
        // Candidates come from two lists.
        hits.sort_unstable_by_key(|hit| hit.rule);
        !hits.is_empty() || is_life(kind)
    }
}

#[cfg(test)]
mod tests;
