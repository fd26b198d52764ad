//! Joining conditions so that the checked predicate keeps its form.

use crate::ir::Expr;

/// `left && right`, flat, without constants that say nothing.
pub(crate) fn and(left: Expr, right: Expr) -> Expr {
    match (left, right) {
        (Expr::Const(true), other) | (other, Expr::Const(true)) => other,
        (Expr::Const(false), _) | (_, Expr::Const(false)) => Expr::Const(false),
        (Expr::And(mut parts), Expr::And(more)) => {
            parts.extend(more);
            Expr::And(parts)
        }
        (Expr::And(mut parts), other) => {
            parts.push(other);
            Expr::And(parts)
        }
        (one, Expr::And(mut parts)) => {
            parts.insert(0, one);
            Expr::And(parts)
        }
        (one, other) => Expr::And(vec![one, other]),
    }
}

/// `left || right`, flat, without constants that say nothing.
pub(crate) fn or(left: Expr, right: Expr) -> Expr {
    match (left, right) {
        (Expr::Const(false), other) | (other, Expr::Const(false)) => other,
        (Expr::Const(true), _) | (_, Expr::Const(true)) => Expr::Const(true),
        (Expr::Or(mut parts), Expr::Or(more)) => {
            parts.extend(more);
            Expr::Or(parts)
        }
        (Expr::Or(mut parts), other) => {
            parts.push(other);
            Expr::Or(parts)
        }
        (one, Expr::Or(mut parts)) => {
            parts.insert(0, one);
            Expr::Or(parts)
        }
        (one, other) => Expr::Or(vec![one, other]),
    }
}

/// `!inner`, without a double negation.
pub(crate) fn not(inner: Expr) -> Expr {
    match inner {
        Expr::Const(value) => Expr::Const(!value),
        Expr::Not(inner) => *inner,
        other => Expr::Not(Box::new(other)),
    }
}
