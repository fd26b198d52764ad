//! The logic of the predicates: sets of possible outcomes (see [`crate::ir`]).

/// Which of true, false and error an expression can be on one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcomes(u8);

const T: u8 = 1;
const F: u8 = 2;
const E: u8 = 4;

/// What a predicate says of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// True whatever the unknown values are.
    Match,
    /// Not true, whatever the unknown values are.
    NoMatch,
    /// It depends on a value that was lost or cut off.
    Undecided,
}

impl Outcomes {
    pub(crate) const TRUE: Self = Self(T);
    pub(crate) const FALSE: Self = Self(F);
    pub(crate) const ERROR: Self = Self(E);
    /// A test of an unknown value.
    pub(crate) const UNKNOWN: Self = Self(T | F);

    pub(crate) fn of(value: bool) -> Self {
        if value { Self::TRUE } else { Self::FALSE }
    }

    pub(crate) fn not(self) -> Self {
        Self(self.0 & E | (self.0 & T) << 1 | (self.0 & F) >> 1)
    }

    pub(crate) fn and(self, other: Self) -> Self {
        let (one, two) = (self.0, other.0);
        let error = one & E != 0 && two & (T | E) != 0 || two & E != 0 && one & (T | E) != 0;
        Self(one & two & T | (one | two) & F | if error { E } else { 0 })
    }

    pub(crate) fn or(self, other: Self) -> Self {
        self.not().and(other.not()).not()
    }

    pub(crate) fn verdict(self) -> Verdict {
        match (self.0 & T != 0, self.0 & (F | E) != 0) {
            (true, false) => Verdict::Match,
            (true, true) => Verdict::Undecided,
            (false, _) => Verdict::NoMatch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `&&` of two single outcomes, as the table in `ir` has it.
    fn table(one: u8, two: u8) -> u8 {
        match (one, two) {
            (F, _) | (_, F) => F,
            (E, _) | (_, E) => E,
            _ => T,
        }
    }

    #[test]
    fn sets_are_the_table_applied_to_every_pair() {
        for one in 1..8 {
            for two in 1..8 {
                let mut expected = 0;
                for left in [T, F, E] {
                    for right in [T, F, E] {
                        if one & left != 0 && two & right != 0 {
                            expected |= table(left, right);
                        }
                    }
                }
                assert_eq!(Outcomes(one).and(Outcomes(two)).0, expected, "{one} {two}");
            }
            assert_eq!(Outcomes(one).not().not(), Outcomes(one));
        }
        assert_eq!(Outcomes::TRUE.not(), Outcomes::FALSE);
        assert_eq!(Outcomes::ERROR.not(), Outcomes::ERROR);
        assert_eq!(Outcomes::ERROR.or(Outcomes::TRUE), Outcomes::TRUE);
        assert_eq!(Outcomes::ERROR.or(Outcomes::FALSE), Outcomes::ERROR);
    }

    #[test]
    fn an_unknown_that_cannot_matter_decides() {
        assert_eq!(
            Outcomes::UNKNOWN.and(Outcomes::FALSE).verdict(),
            Verdict::NoMatch
        );
        assert_eq!(
            Outcomes::UNKNOWN.and(Outcomes::ERROR).verdict(),
            Verdict::NoMatch
        );
        assert_eq!(
            Outcomes::UNKNOWN.or(Outcomes::TRUE).verdict(),
            Verdict::Match
        );
        assert_eq!(Outcomes::UNKNOWN.not().verdict(), Verdict::Undecided);
    }
}
