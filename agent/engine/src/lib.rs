//! The rule engine: which rules an event matches, whether it is stored, and
//! which alerts it raises. The agent, a replay over stored events and an
//! offline test run this same code.
#![forbid(unsafe_code)]

mod index;

use std::time::Duration;

use sumun_policy::plan::is_life;
use sumun_policy::{CheckedPolicy, Effect, Matcher, Mode, Rate, Verdict};
use sumun_proto::catalogue::KINDS;
use sumun_proto::v1::{Kind, RuleRef};
use sumun_proto::{FieldId, View};

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
    /// Of a policy whose pending workloads count as inside: its selector, and the rule's own condition.
    presumed: Option<[Matcher; 2]>,
    /// It asks how a call ended.
    reads_result: bool,
    effect: Effect,
    /// Of its policy.
    mode: Mode,
    exceptions: Vec<Exception>,
    rate: Option<Rate>,
    lasts: Option<Duration>,
    forced: bool,
    lineage: bool,
}

impl Compiled {
    fn matches(&self, view: &View<'_>) -> Verdict {
        match (self.matcher.matches(view), &self.presumed) {
            (Verdict::Undecided, Some([selector, when]))
                if selector.matches(view) == Verdict::Undecided =>
            {
                when.matches(view)
            }
            (verdict, _) => verdict,
        }
    }

    /// The first exception that lets the event pass, and the first that may.
    fn excepted(&self, view: &View<'_>) -> (Option<usize>, Option<usize>) {
        let mut doubt = None;
        for (index, exception) in self.exceptions.iter().enumerate() {
            match exception.judge(view) {
                Verdict::Match => return (Some(index), doubt),
                Verdict::Undecided => doubt = doubt.or(Some(index)),
                Verdict::NoMatch => {}
            }
        }
        (None, doubt)
    }
}

#[derive(Debug)]
struct Exception {
    name: String,
    matcher: Matcher,
    /// It applies to events before this time.
    expires_ns: Option<i64>,
}

impl Exception {
    /// Whether it lets the event pass; it has to be certain. The time is that of the
    /// event: a replay says the same as the agent did.
    fn judge(&self, view: &View<'_>) -> Verdict {
        let now = || view.wall(view.event.boot_ns);
        if self.expires_ns.is_none_or(|expires| now() < expires) {
            self.matcher.matches(view)
        } else {
            Verdict::NoMatch
        }
    }
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
    /// The exception that keeps it from being raised, to be asked of [`Engine::exception`].
    pub exception: Option<usize>,
    /// The rule kills and no exception lets the event pass: what its policy asks for.
    pub kill: Option<Mode>,
    /// The rule denies and no exception lets the event pass: what its policy asks for.
    pub deny: Option<Mode>,
    /// The rule isolates and no exception lets the event pass: what its policy asks for.
    pub isolate: Option<Mode>,
    /// An exception that may let the event pass, but could not be decided: the
    /// alert is raised, but nothing is killed on a doubt.
    pub doubt: Option<usize>,
}

impl Hit {
    /// A rule that is to be judged.
    fn candidate(rule: usize) -> Self {
        Self {
            rule,
            undecided: false,
            alert: false,
            exception: None,
            kill: None,
            deny: None,
            isolate: None,
            doubt: None,
        }
    }

    /// Whether the rule certainly matched and certainly no exception does.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        !self.undecided && self.exception.is_none() && self.doubt.is_none()
    }
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
            .map(|(policy, rule)| Compiled {
                matcher: Matcher::compile(&rule.predicate),
                // Nothing else is done for a doubt.
                presumed: rule
                    .presumed
                    .as_ref()
                    .filter(|_| matches!(rule.effect, Effect::Kill | Effect::Deny))
                    .map(|presumed| [&presumed.selector, &presumed.when].map(Matcher::compile)),
                reads_result: rule.predicate.fields().contains(&FieldId::Result),
                effect: rule.effect,
                mode: policy.mode,
                exceptions: rule.exceptions.iter().map(compile).collect(),
                rate: rule.rate,
                lasts: rule.lasts,
                forced: rule.force,
                lineage: rule.lineage,
            })
            .collect();
        let refs = all().map(|(policy, rule)| policy.rule_ref(rule)).collect();
        let kinds = KINDS
            .iter()
            .map(|(_, kind)| {
                let of_kind = (0..)
                    .zip(all())
                    .filter(|(_, (_, rule))| rule.kinds.contains(kind))
                    .map(|(number, (_, rule))| (number, &rule.predicate));
                (*kind, Index::new(of_kind, *kind))
            })
            .collect();
        Self { rules, refs, kinds }
    }

    /// What events and alerts say of each rule; the index is that of [`Hit::rule`].
    #[must_use]
    pub fn rules(&self) -> &[RuleRef] {
        &self.refs
    }

    /// Name of an exception of a rule; the indices are those of a [`Hit`].
    #[must_use]
    pub fn exception(&self, rule: usize, exception: usize) -> Option<&str> {
        let exception = self.rules.get(rule)?.exceptions.get(exception)?;
        Some(&exception.name)
    }

    /// How many alerts of a rule go out one by one; all of them if there is no rate.
    #[must_use]
    pub fn rate(&self, rule: usize) -> Option<Rate> {
        self.rules.get(rule)?.rate
    }

    /// Whether a rule that kills means what runs the host and its containers, too.
    #[must_use]
    pub fn is_forced(&self, rule: usize) -> bool {
        self.rules.get(rule).is_some_and(|rule| rule.forced)
    }

    /// Whether a rule that kills means all that descend from the process, too.
    #[must_use]
    pub fn kills_lineage(&self, rule: usize) -> bool {
        self.rules.get(rule).is_some_and(|rule| rule.lineage)
    }

    /// For how long a rule isolates; `None` if it does not, or without an end.
    #[must_use]
    pub fn lasts(&self, rule: usize) -> Option<Duration> {
        self.rules.get(rule)?.lasts
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
            index.candidates(view, |rule| hits.push(Hit::candidate(rule as usize)));
            hits.sort_unstable_by_key(|hit| hit.rule);
            hits.dedup_by_key(|hit| hit.rule);
            // A rule that does not read how a call ended is about those that succeeded.
            let failed = view.event.failed;
            hits.retain_mut(|hit| {
                (!failed || self.rules[hit.rule].reads_result) && self.judge(hit, view)
            });
        }
        !hits.is_empty() || is_life(kind)
    }

    /// Judges the rule of a hit in full, and fills in the hit. False if it does not match.
    fn judge(&self, hit: &mut Hit, view: &View<'_>) -> bool {
        let rule = &self.rules[hit.rule];
        hit.undecided = match rule.matches(view) {
            Verdict::NoMatch => return false,
            Verdict::Match => false,
            Verdict::Undecided => true,
        };
        let (exception, doubt) = rule.excepted(view);
        let stops = |effect| rule.effect == effect && exception.is_none();
        hit.alert = rule.effect != Effect::Record && exception.is_none();
        hit.exception = exception;
        hit.kill = stops(Effect::Kill).then_some(rule.mode);
        hit.deny = stops(Effect::Deny).then_some(rule.mode);
        hit.isolate = stops(Effect::Isolate).then_some(rule.mode);
        hit.doubt = doubt.filter(|_| exception.is_none());
        true
    }

    /// Bytes that the index over the rules takes, about; the rules' own conditions are not in it.
    #[must_use]
    pub fn index_bytes(&self) -> usize {
        self.kinds.iter().map(|(_, index)| index.bytes()).sum()
    }
}

fn compile(exception: &sumun_policy::Exception) -> Exception {
    Exception {
        name: exception.name.clone(),
        matcher: Matcher::compile(&exception.predicate),
        expires_ns: exception.expires_ns,
    }
}

#[cfg(test)]
mod tests;
