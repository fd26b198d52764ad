//! Which errors of a call a predicate asks for.

use sumun_abi::policy::ERRORS;
use sumun_proto::FieldId;

use crate::ir::{Expr, Operand, Predicate, Set};

/// A set of error numbers, from 1 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errors([u64; ERRORS]);

impl Errors {
    /// None.
    pub const NONE: Self = Self([0; ERRORS]);
    /// All.
    const ALL: Self = Self([u64::MAX; ERRORS]);

    /// A bit for each, by its number.
    #[must_use]
    pub fn words(self) -> [u64; ERRORS] {
        self.0
    }

    /// True if the error, a positive number, is in the set.
    #[must_use]
    pub fn has(self, error: u32) -> bool {
        let word = self.0.get(error as usize / 64);
        word.is_some_and(|word| word >> (error % 64) & 1 != 0)
    }

    pub(crate) fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] | other.0[at]))
    }

    fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] & other.0[at]))
    }

    /// Those whose result, which is negative, satisfies the test.
    fn where_result(test: impl Fn(i64) -> bool) -> Self {
        let mut set = Self::NONE;
        for error in 1..ERRORS * 64 {
            if i64::try_from(error).is_ok_and(|error| test(-error)) {
                set.0[error / 64] |= 1 << (error % 64);
            }
        }
        set
    }

    /// Errors with which a call could satisfy a predicate that reads `result`; none if it does not read it: such a predicate
    /// is about calls that succeeded.
    #[must_use]
    pub fn asked(predicate: &Predicate) -> Self {
        match predicate.fields().contains(&FieldId::Result) {
            true => Self::of(predicate.expr(), true),
            false => Self::NONE,
        }
    }

    fn of(expr: &Expr, positive: bool) -> Self {
        match (expr, positive) {
            (Expr::Const(value), _) => match *value == positive {
                true => Self::ALL,
                false => Self::NONE,
            },
            (Expr::Not(inner), _) => Self::of(inner, !positive),
            (Expr::And(parts), true) | (Expr::Or(parts), false) => parts
                .iter()
                .map(|part| Self::of(part, positive))
                .fold(Self::ALL, Self::and),
            (Expr::Or(parts), true) | (Expr::And(parts), false) => parts
                .iter()
                .map(|part| Self::of(part, positive))
                .fold(Self::NONE, Self::or),
            (
                Expr::Compare {
                    op,
                    left: Operand::Field(FieldId::Result),
                    right: Operand::Int(number),
                },
                _,
            ) => Self::where_result(|result| op.holds(&result, number) == positive),
            (
                Expr::In {
                    value: Operand::Field(FieldId::Result),
                    set: Set::Int(items),
                },
                _,
            ) => Self::where_result(|result| items.contains(&result) == positive),
            _ => Self::ALL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lists;

    fn asked(text: &str) -> Errors {
        Errors::asked(&Predicate::parse(text, &Lists::default()).expect("a predicate"))
    }

    #[test]
    fn only_errors_that_can_satisfy_it_are_asked_for() {
        assert_eq!(asked("file.path == \"/etc/shadow\""), Errors::NONE);
        let all = asked("result < 0");
        assert!((1..=133).all(|error| all.has(error)));
        let one = asked("result == -13 && file.path.startsWith(\"/etc/\")");
        assert!(one.has(13) && !one.has(2) && !one.has(1000));
        let two = asked("result == -13 || result in [-1, -30]");
        let known: Vec<u32> = (0..300).filter(|error| two.has(*error)).collect();
        assert_eq!(known, [1, 13, 30]);
        let some = asked("result < 0 && result != -2");
        assert!(some.has(1) && some.has(133) && !some.has(2));
        assert_eq!(asked("result == 0 && file.trunc"), Errors::NONE);
        // One alternative does not read it.
        assert!(asked("result == -13 || file.trunc").has(2));
    }
}
