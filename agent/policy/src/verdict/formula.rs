//! Conditions that the kernel can judge, joined; and their disjunctive form.
//!
//! A question can be answered yes, no or unknown, and everything here keeps that apart:
//! a formula is true only if it is whatever the unknown answers are.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use super::scope::Scope;
use super::{Atom, CLAUSES_MAX, End, Id, NETS_MAX, Texts};
use crate::clause::{filled, without_longer};

/// Most clauses that are looked at on the way to fewer.
const WORK_MAX: usize = 512;

/// A condition in negation normal form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Formula {
    Const(bool),
    /// The executable is, or with `yes` false is not, one of these.
    Texts {
        whose: Whose,
        texts: Texts,
        yes: bool,
    },
    /// The number lies in one of the ranges: sorted, apart; if there always is one, neither none nor everything.
    Number {
        id: Id,
        ranges: Vec<(u32, u32)>,
    },
    /// The bit of the file's flags is, or with `yes` false is not, set.
    Flag {
        bit: u32,
        yes: bool,
    },
    /// The end of the connection lies, or with `yes` false does not, in one of the networks, which are sorted.
    Net {
        end: End,
        nets: Vec<(IpAddr, u8)>,
        yes: bool,
    },
    /// The answer about whose the process is is yes, or with `yes` false no.
    Scope {
        scope: Scope,
        yes: bool,
    },
    And(Vec<Formula>),
    Or(Vec<Formula>),
}

/// Whose path is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// That of the executable.
    Own,
    /// That of the executable of one of the ancestors, at least.
    Ancestors,
    /// That of the file.
    File,
    /// That which the file is to have.
    To,
    /// No path: the name of a setting.
    Setting,
    /// No path: the value of a setting.
    Value,
}

impl Formula {
    /// The id lies in one of these ranges, which may overlap.
    pub(super) fn number(id: Id, mut ranges: Vec<(u32, u32)>) -> Self {
        if let Id::Capability(_) = id {
            // It is 0 or 1.
            ranges.retain(|(first, _)| *first <= 1);
            if ranges.iter().any(|range| range.0 == 0) && ranges.iter().any(|range| range.1 != 0) {
                return Self::Const(true);
            }
            ranges = ranges
                .iter()
                .map(|range| (range.0, range.1.min(1)))
                .collect();
        }
        ranges.retain(|(first, last)| first <= last);
        ranges.sort_unstable();
        let mut apart: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match apart.last_mut() {
                Some(known) if first <= known.1.saturating_add(1) => known.1 = known.1.max(last),
                _ => apart.push((first, last)),
            }
        }
        match apart.as_slice() {
            // Of what may be absent, "whatever it is" is a condition.
            _ if id.can_be_absent() => Self::Number { id, ranges: apart },
            [] => Self::Const(false),
            [(0, u32::MAX)] => Self::Const(true),
            _ => Self::Number { id, ranges: apart },
        }
    }

    /// The end lies in one of these networks.
    pub(super) fn net(end: End, mut nets: Vec<(IpAddr, u8)>) -> Self {
        nets.sort_unstable();
        nets.dedup();
        Self::Net {
            end,
            nets,
            yes: true,
        }
    }

    /// All hold.
    pub(super) fn and(parts: Vec<Self>) -> Self {
        Self::join(parts, false)
    }

    /// One holds.
    pub(super) fn or(parts: Vec<Self>) -> Self {
        Self::join(parts, true)
    }

    /// It is false for certain.
    pub(super) fn not(self) -> Self {
        match self {
            Self::Const(value) => Self::Const(!value),
            Self::Texts { whose, texts, yes } => Self::Texts {
                whose,
                texts,
                yes: !yes,
            },
            Self::Number { id, ranges } => Self::number(id, gaps(&ranges)),
            Self::Flag { bit, yes } => Self::Flag { bit, yes: !yes },
            Self::Net { end, nets, yes } => Self::Net {
                end,
                nets,
                yes: !yes,
            },
            Self::Scope { scope, yes } => Self::Scope { scope, yes: !yes },
            Self::And(parts) => Self::or(parts.into_iter().map(Self::not).collect()),
            Self::Or(parts) => Self::and(parts.into_iter().map(Self::not).collect()),
        }
    }

    /// Joins parts; conditions of one kind become one where that says the same.
    fn join(parts: Vec<Self>, or: bool) -> Self {
        let mut joined: Vec<Self> = Vec::new();
        let mut rest = parts;
        rest.reverse();
        while let Some(part) = rest.pop() {
            match part {
                Self::And(inner) if !or => rest.extend(inner.into_iter().rev()),
                Self::Or(inner) if or => rest.extend(inner.into_iter().rev()),
                part => match joined.iter().position(|known| known.joins(&part, or)) {
                    Some(at) => {
                        let known = joined.swap_remove(at);
                        joined.push(known.joined(part, or));
                    }
                    None => joined.push(part),
                },
            }
        }
        if joined.contains(&Self::Const(or)) {
            return Self::Const(or);
        }
        joined.retain(|part| *part != Self::Const(!or));
        match (joined.pop(), joined.is_empty()) {
            (None, _) => Self::Const(!or),
            (Some(only), true) => only,
            (Some(last), false) => {
                joined.push(last);
                match or {
                    true => Self::Or(joined),
                    false => Self::And(joined),
                }
            }
        }
    }

    fn joins(&self, other: &Self, or: bool) -> bool {
        match (self, other) {
            (
                Self::Texts { whose, yes, .. },
                Self::Texts {
                    whose: other,
                    yes: other_yes,
                    ..
                },
            ) => whose == other && *yes == or && *other_yes == or,
            (Self::Number { id, .. }, Self::Number { id: other, .. }) => id == other,
            (
                Self::Net { end, nets, yes },
                Self::Net {
                    end: other,
                    nets: more,
                    yes: other_yes,
                },
            ) => {
                end == other
                    && *yes == or
                    && *other_yes == or
                    && nets.len() + more.len() <= NETS_MAX
            }
            _ => self == other,
        }
    }

    fn joined(self, other: Self, or: bool) -> Self {
        match (self, other) {
            (Self::Texts { whose, texts, yes }, Self::Texts { texts: more, .. }) => Self::Texts {
                whose,
                texts: texts.union(more),
                yes,
            },
            (Self::Number { id, ranges }, Self::Number { ranges: more, .. }) => match or {
                true => Self::number(id, [ranges, more].concat()),
                false => {
                    let either = Self::number(id, [gaps(&ranges), gaps(&more)].concat());
                    either.not()
                }
            },
            (Self::Net { end, nets, yes }, Self::Net { nets: more, .. }) => {
                match Self::net(end, [nets, more].concat()) {
                    Self::Net { end, nets, .. } => Self::Net { end, nets, yes },
                    other => other,
                }
            }
            (same, _) => same,
        }
    }
}

impl Id {
    /// False for what every event of a kind with this number has.
    fn can_be_absent(self) -> bool {
        matches!(
            self,
            Self::SrcPort | Self::DstPort | Self::Result | Self::InImage
        )
    }
}

impl Texts {
    /// One of either applies.
    pub(super) fn union(self, other: Self) -> Self {
        let prefixes = filled([self.prefixes, other.prefixes].concat());
        let paths = filled([self.paths, other.paths].concat());
        let (prefixes, paths) = without_longer(prefixes, paths);
        Self {
            names: filled([self.names, other.names].concat()).unwrap_or_default(),
            paths: paths.unwrap_or_default(),
            prefixes: prefixes.unwrap_or_default(),
        }
    }
}

/// What lies in none of the ranges, which are sorted and apart.
fn gaps(ranges: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let mut gaps = Vec::with_capacity(ranges.len() + 1);
    let mut next = Some(0);
    for (first, last) in ranges {
        if let Some(from) = next
            && from < *first
        {
            gaps.push((from, first - 1));
        }
        next = last.checked_add(1);
    }
    if let Some(from) = next {
        gaps.push((from, u32::MAX));
    }
    gaps
}

/// Questions by their number.
#[derive(Default)]
pub(super) struct Atoms {
    pub(super) all: Vec<Atom>,
    numbers: HashMap<Atom, usize>,
}

impl Atoms {
    fn number(&mut self, atom: Atom) -> usize {
        if let Some(known) = self.numbers.get(&atom) {
            return *known;
        }
        self.all.push(atom.clone());
        self.numbers.insert(atom, self.all.len() - 1);
        self.all.len() - 1
    }
}

/// Numbers of atoms that have to be yes, and of those that have to be no.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Conjunction {
    pub(super) need: BTreeSet<usize>,
    pub(super) forbid: BTreeSet<usize>,
}

impl Conjunction {
    /// This atom is yes, or with `yes` false no.
    fn one(number: usize, yes: bool) -> Self {
        let (one, none) = (BTreeSet::from([number]), BTreeSet::new());
        let (need, forbid) = match yes {
            true => (one, none),
            false => (none, one),
        };
        Self { need, forbid }
    }

    /// True when this one holds wherever the other does.
    fn is_wider(&self, other: &Self) -> bool {
        self.need.is_subset(&other.need) && self.forbid.is_subset(&other.forbid)
    }

    fn met(&self, other: &Self) -> Self {
        Self {
            need: self.need.union(&other.need).copied().collect(),
            forbid: self.forbid.union(&other.forbid).copied().collect(),
        }
    }
}

/// There would be more than [`CLAUSES_MAX`].
#[derive(Debug)]
pub(super) struct TooMany;

/// The disjunctive form of a formula.
pub(super) fn disjunction(
    formula: &Formula,
    atoms: &mut Atoms,
) -> Result<Vec<Conjunction>, TooMany> {
    let clauses = clauses(formula, atoms)?;
    if clauses.len() > CLAUSES_MAX {
        return Err(TooMany);
    }
    Ok(clauses)
}

fn clauses(formula: &Formula, atoms: &mut Atoms) -> Result<Vec<Conjunction>, TooMany> {
    Ok(match formula {
        Formula::Const(true) => vec![Conjunction::default()],
        Formula::Const(false) => Vec::new(),
        Formula::Texts { whose, texts, yes } => {
            let atom = match whose {
                Whose::Own => Atom::Exe(texts.clone()),
                Whose::Ancestors => Atom::Ancestor(texts.clone()),
                Whose::File => Atom::File(texts.clone()),
                Whose::To => Atom::To(texts.clone()),
                Whose::Setting => Atom::Setting(texts.clone()),
                Whose::Value => Atom::Value(texts.clone()),
            };
            vec![Conjunction::one(atoms.number(atom), *yes)]
        }
        Formula::Flag { bit, yes } => {
            vec![Conjunction::one(atoms.number(Atom::Flag(*bit)), *yes)]
        }
        Formula::Net { end, nets, yes } => {
            let atom = Atom::Net {
                end: *end,
                nets: nets.clone(),
            };
            vec![Conjunction::one(atoms.number(atom), *yes)]
        }
        Formula::Scope { scope, yes } => {
            let atom = Atom::Scope(scope.clone());
            vec![Conjunction::one(atoms.number(atom), *yes)]
        }
        // No number is one of none; but if there is no number, nobody knows here that it is not.
        Formula::Number { id, ranges } if ranges.is_empty() => {
            let atom = Atom::Number {
                id: *id,
                range: (0, u32::MAX),
            };
            vec![Conjunction::one(atoms.number(atom), false)]
        }
        // Whether it is there or not is one question.
        Formula::Number {
            id: id @ Id::Capability(_),
            ranges,
        } if *ranges == [(0, 0)] => {
            let atom = Atom::Number {
                id: *id,
                range: (1, 1),
            };
            vec![Conjunction::one(atoms.number(atom), false)]
        }
        Formula::Number { id, ranges } => {
            let mut number = |range: &(u32, u32)| {
                atoms.number(Atom::Number {
                    id: *id,
                    range: *range,
                })
            };
            let mut clause = Conjunction::default();
            match ranges.as_slice() {
                [range] if range.1 != u32::MAX || range.0 == 0 => {
                    clause.need = BTreeSet::from([number(range)])
                }
                // One clause, however many ranges.
                ranges => clause.forbid = gaps(ranges).iter().map(number).collect(),
            }
            vec![clause]
        }
        Formula::Or(parts) => {
            let mut whole = Vec::new();
            for part in parts {
                whole.extend(clauses(part, atoms)?);
                if whole.len() > WORK_MAX {
                    return Err(TooMany);
                }
            }
            fewest(whole)
        }
        Formula::And(parts) => {
            let mut whole = vec![Conjunction::default()];
            for part in parts {
                let part = clauses(part, atoms)?;
                if whole.len() * part.len() > WORK_MAX {
                    return Err(TooMany);
                }
                let pairs = whole
                    .iter()
                    .flat_map(|one| part.iter().map(move |other| one.met(other)));
                whole = fewest(pairs.collect());
            }
            whole
        }
    })
}

/// Without clauses that never hold, and those that hold only where another one does.
fn fewest(clauses: Vec<Conjunction>) -> Vec<Conjunction> {
    let mut kept: Vec<Conjunction> = Vec::with_capacity(clauses.len());
    for clause in clauses {
        if !clause.need.is_disjoint(&clause.forbid)
            || kept.iter().any(|known| known.is_wider(&clause))
        {
            continue;
        }
        kept.retain(|known| !clause.is_wider(known));
        kept.push(clause);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(ranges: &[(u32, u32)]) -> Formula {
        Formula::number(Id::Uid, ranges.to_vec())
    }

    #[test]
    fn ranges_are_joined_and_met_exactly() {
        assert_eq!(gaps(&[(0, 0)]), [(1, u32::MAX)]);
        assert_eq!(gaps(&[(5, u32::MAX)]), [(0, 4)]);
        assert_eq!(gaps(&[]), [(0, u32::MAX)]);
        assert_eq!(gaps(&[(1, 2), (4, 4)]), [(0, 0), (3, 3), (5, u32::MAX)]);
        assert_eq!(uid(&[(3, 4), (0, 2), (9, 8)]), uid(&[(0, 4)]));
        assert_eq!(uid(&[(0, 4), (5, u32::MAX)]), Formula::Const(true));
        assert_eq!(uid(&[]), Formula::Const(false));
        assert_eq!(
            Formula::and(vec![uid(&[(0, 9)]), uid(&[(5, 20)])]),
            uid(&[(5, 9)])
        );
        assert_eq!(
            Formula::and(vec![uid(&[(0, 4)]), uid(&[(5, 20)])]),
            Formula::Const(false)
        );
        assert_eq!(
            Formula::or(vec![uid(&[(0, 4)]), uid(&[(0, 4)]).not()]),
            Formula::Const(true)
        );
    }

    #[test]
    fn a_list_of_ids_is_one_clause() {
        let mut atoms = Atoms::default();
        let clauses = disjunction(&uid(&[(1, 1), (5, 5)]), &mut atoms).expect("few");
        assert_eq!((clauses.len(), clauses[0].forbid.len()), (1, 3));
        let clauses = disjunction(&uid(&[(1, 1), (5, 5)]).not(), &mut atoms).expect("few");
        assert_eq!((clauses.len(), clauses[0].forbid.len()), (1, 2));
        // Root and everybody else are one question.
        let mut atoms = Atoms::default();
        let root = disjunction(&uid(&[(0, 0)]), &mut atoms).expect("few");
        let others = disjunction(&uid(&[(0, 0)]).not(), &mut atoms).expect("few");
        assert_eq!(atoms.all.len(), 1);
        assert_eq!(root[0].need, others[0].forbid);
    }
}
