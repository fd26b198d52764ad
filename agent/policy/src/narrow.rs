//! From a predicate to the clauses the kernel can judge.
//!
//! The predicate is brought into disjunctive form; of each condition that
//! the kernel knows, a superset is kept, everything else is taken as "may
//! hold". So a clause is never stricter than what it came from. Two conditions on one
//! field that leave nothing together are not dropped but loosened to one of them:
//! if the field cannot be read, both could hold.

use std::collections::BTreeMap;
use sumun_proto::FieldId;
use sumun_proto::catalogue::{family, kind_name};
use sumun_proto::v1::Kind;

use crate::clause::Condition;
use crate::condition::condition;
use crate::errors::Errors;
use crate::ir::{Expr, Operand, Predicate};
use crate::plan::{CLAUSES_MAX, Clause, tells_failures};

/// The clauses of a predicate on one kind; none means that it can never match.
pub(crate) struct Narrowed {
    pub(crate) clauses: Vec<Clause>,
    /// There would have been more than [`CLAUSES_MAX`].
    pub(crate) widened: bool,
    /// Of the events whose fields can be read, they let through those that the
    /// predicate matches, and no other. False means only "not seen".
    pub(crate) exact: bool,
}

/// True when the field can be present on events of the kind.
#[must_use]
pub fn on_kind(field: FieldId, kind: Kind) -> bool {
    let info = field.info();
    info.families.contains(&family(kind))
        && (info.kinds.is_empty() || info.kinds.contains(&kind_name(kind)))
}

/// Clauses that let through every event of the kind which the predicate
/// matches or cannot decide.
pub(crate) fn narrow(predicate: &Predicate, kind: Kind) -> Narrowed {
    let mut narrowing = Narrowing {
        kind,
        widened: false,
        exact: true,
    };
    let clauses = narrowing.clauses(predicate.expr(), true);
    Narrowed {
        clauses,
        widened: narrowing.widened,
        exact: narrowing.exact && !narrowing.widened,
    }
}

/// True when no event of the kind can satisfy the predicate.
pub(crate) fn never(predicate: &Predicate, kind: Kind) -> bool {
    narrow(predicate, kind).clauses.is_empty() && !asks_for_failures(predicate, kind)
}

/// True when calls that fail can satisfy the predicate, of which clauses say nothing.
pub(crate) fn asks_for_failures(predicate: &Predicate, kind: Kind) -> bool {
    tells_failures(kind) && Errors::asked(predicate) != Errors::NONE
}

/// Makes clauses fewer without letting less through: equal ones are
/// dropped, those that differ in one condition are joined. If there are still
/// more than the bound, all become one, and the second value is true.
pub(crate) fn reduce(mut clauses: Vec<Clause>) -> (Vec<Clause>, bool) {
    if clauses.iter().any(Clause::is_everything) {
        return (vec![Clause::default()], false);
    }
    loop {
        let before = clauses.len();
        for condition in Condition::ALL {
            let mut joined: BTreeMap<Clause, Clause> = BTreeMap::new();
            for clause in clauses {
                joined
                    .entry(clause.without(condition))
                    .and_modify(|known| *known = known.hull(&clause))
                    .or_insert(clause);
            }
            clauses = joined.into_values().collect();
        }
        if clauses.len() == before {
            break;
        }
    }
    if clauses.iter().any(Clause::is_everything) {
        return (vec![Clause::default()], false);
    }
    clauses.sort_unstable();
    if clauses.len() <= CLAUSES_MAX {
        return (clauses, false);
    }
    let whole = clauses
        .into_iter()
        .reduce(|whole, clause| whole.hull(&clause))
        .unwrap_or_default();
    (vec![whole], true)
}

struct Narrowing {
    kind: Kind,
    widened: bool,
    exact: bool,
}

impl Narrowing {
    /// Clauses for the expression being true, or false if not `positive`.
    fn clauses(&mut self, expr: &Expr, positive: bool) -> Vec<Clause> {
        match (expr, positive) {
            (Expr::Const(value), _) if *value == positive => vec![Clause::default()],
            (Expr::Const(_), _) => Vec::new(),
            (Expr::Not(inner), _) => self.clauses(inner, !positive),
            (Expr::And(parts), true) | (Expr::Or(parts), false) => {
                let mut whole = vec![Clause::default()];
                for part in parts {
                    let clauses = self.clauses(part, positive);
                    whole = self.product(whole, clauses);
                }
                whole
            }
            (Expr::Or(parts), true) | (Expr::And(parts), false) => {
                let mut whole = Vec::new();
                for part in parts {
                    whole.extend(self.clauses(part, positive));
                }
                self.reduced(whole)
            }
            (Expr::Has(Operand::Field(field)), _) if !on_kind(*field, self.kind) => {
                if positive {
                    Vec::new()
                } else {
                    vec![Clause::default()]
                }
            }
            (Expr::Has(_), _) => {
                self.exact = false;
                vec![Clause::default()]
            }
            (atom, _) if !can_be_read(atom, self.kind) || self.is_about_failures(atom) => {
                Vec::new()
            }
            (atom, _) => match condition(atom, positive, self.kind) {
                None => Vec::new(),
                Some(part) => {
                    self.exact &= part.exact;
                    vec![part.clause]
                }
            },
        }
    }

    /// True for a condition on how a call ended, which no event satisfies that the clauses let through: calls that fail pass by
    /// their error (`plan::Plan::failures`), and of those that succeed there is no result.
    fn is_about_failures(&self, atom: &Expr) -> bool {
        let value = match atom {
            Expr::Compare { left: value, .. } | Expr::In { value, .. } => value,
            _ => return false,
        };
        tells_failures(self.kind) && *value == Operand::Field(FieldId::Result)
    }

    fn reduced(&mut self, clauses: Vec<Clause>) -> Vec<Clause> {
        let (clauses, widened) = reduce(clauses);
        self.widened |= widened;
        clauses
    }

    /// Every clause of one side with every clause of the other.
    fn product(&mut self, one: Vec<Clause>, other: Vec<Clause>) -> Vec<Clause> {
        if one.is_empty() || other.is_empty() {
            return Vec::new();
        }
        if one.len() * other.len() > CLAUSES_MAX * CLAUSES_MAX {
            // Neither side alone is stricter than both together.
            self.widened = true;
            return if one.len() <= other.len() { one } else { other };
        }
        let mut clauses = Vec::with_capacity(one.len() * other.len());
        for left in &one {
            for right in &other {
                let (both, exact) = left.met(right);
                self.exact &= exact;
                clauses.push(both);
            }
        }
        self.reduced(clauses)
    }
}

/// False when the condition reads a field that events of the kind never have.
pub(crate) fn can_be_read(atom: &Expr, kind: Kind) -> bool {
    let operand = |operand: &Operand| match operand {
        Operand::Field(field) | Operand::Count(field) | Operand::Index { list: field, .. } => {
            on_kind(*field, kind)
        }
        Operand::Length(inner) | Operand::Lower(inner) => match **inner {
            Operand::Field(field) | Operand::Index { list: field, .. } => on_kind(field, kind),
            _ => true,
        },
        _ => true,
    };
    match atom {
        Expr::Bool(value)
        | Expr::In { value, .. }
        | Expr::Text { value, .. }
        | Expr::Matches { value, .. } => operand(value),
        Expr::Compare { left, right, .. } => operand(left) && operand(right),
        Expr::InNet { field, .. } | Expr::Capability { field, .. } => on_kind(*field, kind),
        Expr::ListHas { list, value } => on_kind(*list, kind) && operand(value),
        Expr::Each { list, .. } => on_kind(*list, kind),
        _ => true,
    }
}
