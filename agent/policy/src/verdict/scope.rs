//! What a rule asks about whose a process is: of its workload, its host and its cloud, and of nothing else.
//!
//! The kernel knows none of these, but it knows the cgroup of each process, and user space what all of its
//! processes answer. So each largest part of a condition that asks for nothing else is one question, whatever it is made of: the
//! matcher itself answers it, once for each cgroup and not for each event.

use sumun_proto::view::facts::{is_of_host, is_of_workload};
use sumun_proto::view::workload::OF_WORKLOAD;
use sumun_proto::{FieldId, View};

use crate::file::Rule;
use crate::ir::{Expr, Predicate};
use crate::matcher::Matcher;
use crate::outcome::{Outcomes, Verdict};

/// A question about the workload and the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scope {
    /// The answer is yes if this matches for certain, and no if it certainly does not.
    pub asked: Predicate,
    /// The answer is yes also if that is not known: of a selector whose policy says that pending workloads are inside.
    pub presumed: bool,
}

/// Whether a field is the same for all events of a cgroup's processes, as far as it is known.
#[must_use]
pub fn is_of_scope(field: FieldId) -> bool {
    is_of_host(field)
        || is_of_workload(field)
        || OF_WORKLOAD.contains(&field)
        || matches!(field, FieldId::HostId | FieldId::HostName)
}

/// Whether an expression reads such fields, and no others.
pub(crate) fn is_scope(expr: &Expr) -> bool {
    let (mut some, mut all) = (false, true);
    expr.visit(&mut |field| {
        some = true;
        all &= is_of_scope(field);
    });
    some && all
}

/// The expression that is true where this one is false.
pub(crate) fn negated(expr: &Expr) -> Expr {
    match expr {
        Expr::Not(inner) => (**inner).clone(),
        other => Expr::Not(Box::new(other.clone())),
    }
}

/// What is to be known of a rule that is judged before a call is made: until a workload is named nothing is stopped, or it counts as
/// inside. `None`: it asks for nothing that is told of workloads.
pub(crate) fn remark(rule: &Rule) -> Option<&'static str> {
    let exceptions = rule.exceptions.iter().map(|exception| &exception.predicate);
    let asks = std::iter::once(&rule.predicate)
        .chain(exceptions)
        .flat_map(Predicate::fields)
        .any(|field| is_of_workload(field) || OF_WORKLOAD.contains(&field));
    asks.then_some(match rule.presumed {
        None => {
            "whose a process is, is known by its cgroup; of a workload that is not named yet nothing is stopped (selector.pending = \"alert\")"
        }
        Some(_) => {
            "whose a process is, is known by its cgroup; a workload that is not named yet counts as inside (selector.pending = \"inside\")"
        }
    })
}

/// A question that is compiled, to be asked of cgroups.
#[derive(Debug)]
pub struct Question {
    part: Part,
    presumed: bool,
}

#[derive(Debug)]
enum Part {
    And(Vec<Part>),
    Or(Vec<Part>),
    Not(Box<Part>),
    /// A single condition, with what it reads.
    One(Matcher, Vec<FieldId>),
}

impl Question {
    /// Compiles a question.
    #[must_use]
    pub fn new(scope: &Scope) -> Self {
        Self {
            part: Part::new(scope.asked.expr()),
            presumed: scope.presumed,
        }
    }

    /// The answer of whoever is in the view's workload; `None` is unknown. What `known` says no to is taken as
    /// unknown: what may be another thing, or be absent, in a cgroup below.
    ///
    /// That it counts as yes where it is unknown ([`Scope::presumed`]) is not in it.
    #[must_use]
    pub fn answer(&self, view: &View<'_>, known: impl Fn(FieldId) -> bool) -> Option<bool> {
        match self.part.judge(view, &known).verdict() {
            Verdict::Match => Some(true),
            Verdict::NoMatch => Some(false),
            Verdict::Undecided => None,
        }
    }

    /// It counts as yes where the answer is unknown.
    #[must_use]
    pub fn is_presumed(&self) -> bool {
        self.presumed
    }
}

impl Part {
    fn new(expr: &Expr) -> Self {
        let all = |parts: &[Expr]| parts.iter().map(Self::new).collect();
        match expr {
            Expr::And(parts) => Self::And(all(parts)),
            Expr::Or(parts) => Self::Or(all(parts)),
            Expr::Not(inner) => Self::Not(Box::new(Self::new(inner))),
            one => {
                let one = Predicate::new(one.clone());
                Self::One(Matcher::compile(&one), one.fields())
            }
        }
    }

    fn judge(&self, view: &View<'_>, known: &impl Fn(FieldId) -> bool) -> Outcomes {
        match self {
            Self::And(parts) => parts.iter().fold(Outcomes::TRUE, |whole, part| {
                whole.and(part.judge(view, known))
            }),
            Self::Or(parts) => parts.iter().fold(Outcomes::FALSE, |whole, part| {
                whole.or(part.judge(view, known))
            }),
            Self::Not(inner) => inner.judge(view, known).not(),
            // It may be absent, too, which is an error: but whatever makes up for both true and false makes up for that.
            Self::One(_, fields) if !fields.iter().all(|field| known(*field)) => Outcomes::UNKNOWN,
            Self::One(matcher, _) => matcher.outcomes(view),
        }
    }
}
