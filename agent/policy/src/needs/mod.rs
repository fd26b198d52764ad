//! What an event has to have for a predicate to be true, as an index over many rules asks it.
//!
//! A predicate is brought into branches, one of which has to hold; a branch has needs, all of
//! which have to be met; a need is met if one of its asks is. They are looser than the predicate, never
//! stricter: wherever it could be true, whatever the unknown values are, some branch has all its needs met.
//! So an index may go by any one need of each branch, and its rules are then judged in full.

mod atom;
mod read;

use std::collections::BTreeMap;
use std::net::IpAddr;

use sumun_proto::FieldId;
use sumun_proto::v1::Kind;

use crate::ir::{Expr, Predicate, Quantifier};
pub use read::{Probed, Read, Source};

/// Most branches of a predicate: where there would be more, some are taken together.
pub const BRANCHES_MAX: usize = 16;
/// Most needs of a branch; the most selective are kept.
pub const NEEDS_MAX: usize = 8;
/// Widest range of integers that is worth an ask.
const RANGE_MAX: u64 = 1 << 16;
/// Shortest text that is looked for anywhere in another, in bytes.
pub const PART_MIN: usize = 4;

/// One way to be true: all of these are needed. Without any, nothing is known of it.
pub type Branch = Vec<Need>;

/// Met if one of its asks is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Each of a source of its own.
    pub asks: Vec<Ask>,
}

/// Met if a value that is read there is one of the keys', or if what is read there is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// What is read.
    pub source: Source,
    /// May be empty: then only what is unknown meets it.
    pub keys: Vec<Key>,
}

/// Values that are looked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// This text.
    Text(Box<[u8]>),
    /// Texts that start with this; not empty.
    Start(Box<[u8]>),
    /// Texts that have this somewhere; [`PART_MIN`] bytes or more.
    Part(Box<[u8]>),
    /// Integers from the first to the last.
    Range(i64, i64),
    /// Addresses of this network: its first, and the length of its prefix.
    Net(IpAddr, u8),
}

/// The branches of a predicate on events of a kind; none if it can never be true.
#[must_use]
pub fn needs(predicate: &Predicate, kind: Kind) -> Vec<Branch> {
    let mut branches = Finder { kind, list: None }.branches(predicate.expr(), true);
    for branch in &mut branches {
        branch.retain(|need| need.chance().is_some());
        branch.sort_by_key(Need::chance);
        branch.truncate(NEEDS_MAX);
    }
    branches
}

impl Need {
    fn of(ask: Ask) -> Self {
        Self { asks: vec![ask] }
    }

    /// How likely an event meets it, guessed: of 1,024 for each of its keys. `None` if that is not worth to be asked.
    #[must_use]
    pub fn chance(&self) -> Option<u32> {
        let keys = self
            .asks
            .iter()
            .flat_map(|ask| ask.keys.iter().map(|key| (&ask.source, key)));
        keys.map(|(source, key)| source.chance(key))
            .try_fold(1_u32, |sum, one| Some(sum.saturating_add(one?)))
    }

    /// Met where one of both is.
    fn join(&mut self, other: Self) {
        for ask in other.asks {
            match self.asks.iter_mut().find(|one| one.source == ask.source) {
                Some(one) => one.keys.extend(ask.keys),
                None => self.asks.push(ask),
            }
        }
    }

    /// The one source and its ranges, if there is nothing else.
    fn ranges(&mut self) -> Option<(Source, &mut Vec<Key>)> {
        match self.asks.as_mut_slice() {
            [Ask { source, keys }]
                if keys.iter().all(|key| matches!(key, Key::Range(..)))
                    && source.has_one_value() =>
            {
                Some((*source, keys))
            }
            _ => None,
        }
    }
}

/// Nothing is known: it may hold on every event.
fn always() -> Vec<Branch> {
    vec![Branch::new()]
}

struct Finder {
    kind: Kind,
    /// The list that the enclosing `Each` goes over.
    list: Option<FieldId>,
}

impl Finder {
    /// Branches for the expression being true, or false if not `positive`.
    fn branches(&mut self, expr: &Expr, positive: bool) -> Vec<Branch> {
        match (expr, positive) {
            (Expr::Const(value), _) if *value == positive => always(),
            (Expr::Const(_), _) => Vec::new(),
            (Expr::Not(inner), _) => self.branches(inner, !positive),
            (Expr::And(parts), true) | (Expr::Or(parts), false) => {
                let mut whole = always();
                for part in parts {
                    let more = self.branches(part, positive);
                    whole = both(whole, more);
                }
                whole
            }
            (Expr::Or(parts), true) | (Expr::And(parts), false) => {
                let parts = parts.iter().map(|part| self.branches(part, positive));
                either(parts.collect())
            }
            (
                Expr::Each {
                    quantifier,
                    list,
                    body,
                },
                _,
            ) if (*quantifier == Quantifier::Exists) == positive => {
                self.exists(*list, body, positive)
            }
            (atom, _) => self.atom(atom, positive),
        }
    }

    /// Some item satisfies the body; or the list is not known to its end.
    fn exists(&mut self, list: FieldId, body: &Expr, positive: bool) -> Vec<Branch> {
        if !crate::narrow::on_kind(list, self.kind) {
            return Vec::new();
        }
        let outer = self.list.replace(list);
        let mut branches = self.branches(body, positive);
        self.list = outer;
        let unknown = || Ask {
            source: Source::unknown_of(list),
            keys: Vec::new(),
        };
        if branches.is_empty() {
            return vec![vec![Need::of(unknown())]];
        }
        for need in branches.iter_mut().flatten() {
            if need.asks.iter().all(|ask| ask.source.list() != Some(list)) {
                need.asks.push(unknown());
            }
        }
        branches
    }
}

/// Every branch of one side with every branch of the other.
fn both(one: Vec<Branch>, mut other: Vec<Branch>) -> Vec<Branch> {
    if one.len() * other.len() > BRANCHES_MAX {
        other = taken_together(other);
    }
    if one.len() * other.len() > BRANCHES_MAX {
        return one;
    }
    let mut all = Vec::with_capacity(one.len() * other.len());
    for left in &one {
        for right in &other {
            let mut branch = left.clone();
            for need in right {
                meet(&mut branch, need.clone());
            }
            all.push(branch);
        }
    }
    all
}

/// Adds a need to a branch. Ranges of one source become what lies in both.
fn meet(branch: &mut Branch, mut need: Need) {
    if let Some((source, keys)) = need.ranges() {
        for known in branch.iter_mut() {
            if let Some((other, ranges)) = known.ranges()
                && other == source
            {
                *ranges = met_ranges(ranges, keys);
                return;
            }
        }
    }
    branch.push(need);
}

fn met_ranges(one: &[Key], other: &[Key]) -> Vec<Key> {
    let mut met = Vec::new();
    for left in one {
        for right in other {
            if let (Key::Range(first, last), Key::Range(from, to)) = (left, right) {
                let (first, last) = (*first.max(from), *last.min(to));
                if first <= last {
                    met.push(Key::Range(first, last));
                }
            }
        }
    }
    met
}

/// One of the sides holds. Those that ask one source only become one branch.
fn either(sides: Vec<Vec<Branch>>) -> Vec<Branch> {
    let mut simple: BTreeMap<Source, Need> = BTreeMap::new();
    let mut all = Vec::new();
    for mut branch in sides.into_iter().flatten() {
        match branch.as_slice() {
            [] => return always(),
            [need] if need.asks.len() == 1 => {
                let need = branch.remove(0);
                let source = need.asks[0].source;
                simple.entry(source).or_default().join(need);
            }
            _ => all.push(branch),
        }
    }
    all.extend(simple.into_values().map(|need| vec![need]));
    if all.len() > BRANCHES_MAX {
        all = taken_together(all);
    }
    all
}

/// One branch with the most selective need of each, or none if one of them has none.
fn taken_together(branches: Vec<Branch>) -> Vec<Branch> {
    if branches.len() <= 1 {
        return branches;
    }
    let mut whole = Need::default();
    for branch in branches {
        let best = branch
            .into_iter()
            .filter_map(|need| Some((need.chance()?, need)))
            .min_by_key(|(chance, _)| *chance);
        match best {
            Some((_, need)) => whole.join(need),
            None => return always(),
        }
    }
    vec![vec![whole]]
}

#[cfg(test)]
mod tests;
