//! What single conditions need.

use std::net::IpAddr;

use regex_syntax::hir::literal::{ExtractKind, Extractor};
use regex_syntax::hir::{Hir, HirKind, Look};
use sumun_proto::FieldId;

use super::read::{Read, Source, name_of};
use super::{Ask, Branch, Finder, Key, Need, PART_MIN, always};
use crate::condition::kind_condition;
use crate::glob::{Glob, Shape};
use crate::ir::{Compare, Expr, Operand, Pattern, Set, TextTest};
use crate::narrow::{can_be_read, on_kind};

impl Finder {
    /// Branches for a single condition being true, or false if not `positive`.
    pub(super) fn atom(&self, atom: &Expr, positive: bool) -> Vec<Branch> {
        if let Some(holds) = kind_condition(atom, self.kind) {
            return if holds == positive {
                always()
            } else {
                Vec::new()
            };
        }
        if let Expr::Has(operand) = atom {
            return match operand {
                Operand::Field(field) if positive && !on_kind(*field, self.kind) => Vec::new(),
                _ => always(),
            };
        }
        if !can_be_read(atom, self.kind) {
            return Vec::new();
        }
        match self.needs(atom, positive) {
            Some(needs) => vec![needs],
            None => always(),
        }
    }

    fn needs(&self, atom: &Expr, positive: bool) -> Option<Vec<Need>> {
        if let Some(needs) = self.ranges(atom, positive) {
            return Some(needs);
        }
        let one = |source: Source, keys: Vec<Key>| Some(vec![Need::of(Ask { source, keys })]);
        match atom {
            Expr::Compare {
                op,
                left,
                right: Operand::Str(literal),
            } if (*op == if positive { Compare::Eq } else { Compare::Ne }) => {
                let source = self.source(left)?;
                one(source, equal(source, std::slice::from_ref(literal)))
            }
            _ if !positive => None,
            Expr::In {
                value,
                set: Set::Str(items),
            } => {
                let source = self.source(value)?;
                one(source, equal(source, items))
            }
            Expr::ListHas {
                list,
                value: Operand::Str(literal),
            } => one(Source::new(Read::Items(*list)), vec![whole(literal)]),
            Expr::InNet { field, net } => {
                let key = Key::Net(net.network(), net.prefix_len());
                one(Source::new(Read::Address(*field)), vec![key])
            }
            Expr::Text { test, value, text } => {
                let source = self.text_source(value)?;
                match test {
                    TextTest::Prefix => one(source, vec![Key::Start(start(text)?)]),
                    TextTest::Contains => one(source, vec![part(text.as_bytes())?]),
                    TextTest::Suffix => match (named(source), text.rsplit_once('/')) {
                        (Some(names), Some((_, name))) => one(names, vec![whole(name)]),
                        _ => one(source, vec![part(text.as_bytes())?]),
                    },
                }
            }
            Expr::Matches { value, pattern } => {
                let source = self.text_source(value)?;
                match pattern {
                    Pattern::Glob(glob) => glob_needs(source, &Glob::parse(glob).ok()?),
                    Pattern::Regex(pattern) => one(source, regex_keys(pattern)?),
                }
            }
            _ => None,
        }
    }

    /// Of a condition on an integer.
    fn ranges(&self, atom: &Expr, positive: bool) -> Option<Vec<Need>> {
        let (value, keys) = match atom {
            Expr::Compare {
                op,
                left,
                right: Operand::Int(number),
            } => {
                let number = *number;
                let below = number.checked_sub(1).map(|last| Key::Range(i64::MIN, last));
                let above = number
                    .checked_add(1)
                    .map(|first| Key::Range(first, i64::MAX));
                let keys: Vec<Key> = match if positive { *op } else { op.negated() } {
                    Compare::Eq => vec![Key::Range(number, number)],
                    Compare::Ne => below.into_iter().chain(above).collect(),
                    Compare::Lt => below.into_iter().collect(),
                    Compare::Le => vec![Key::Range(i64::MIN, number)],
                    Compare::Gt => above.into_iter().collect(),
                    Compare::Ge => vec![Key::Range(number, i64::MAX)],
                };
                (left, keys)
            }
            Expr::In {
                value,
                set: Set::Int(items),
            } if positive => {
                let points = items.iter().map(|item| Key::Range(*item, *item));
                (value, points.collect())
            }
            _ => return None,
        };
        let source = self.source(value)?;
        Some(vec![Need::of(Ask { source, keys })])
    }

    /// Where the value of an operand is read, if it is a value of the event or of the list's items.
    fn source(&self, operand: &Operand) -> Option<Source> {
        let read = match operand {
            Operand::Field(field @ (FieldId::NetSrcIp | FieldId::NetDstIp)) => {
                Read::Address(*field)
            }
            Operand::Field(field) => Read::Field(*field),
            Operand::Index { list, index } => Read::Item(*list, *index),
            Operand::Element => Read::Items(self.list?),
            Operand::Ancestor(field) => Read::Ancestors(*field),
            Operand::Lower(inner) => {
                let source = self.text_source(inner)?;
                return Some(Source {
                    lowered: true,
                    ..source
                });
            }
            _ => return None,
        };
        Some(Source::new(read))
    }

    /// The same, for what is read as text: an address is not.
    fn text_source(&self, operand: &Operand) -> Option<Source> {
        self.source(operand)
            .filter(|source| !matches!(source.read, Read::Address(_)))
    }
}

fn equal(source: Source, literals: &[String]) -> Vec<Key> {
    match source.read {
        // What is no address equals none.
        Read::Address(_) => literals
            .iter()
            .filter_map(|literal| literal.parse().ok())
            .map(|address: IpAddr| match address {
                IpAddr::V4(_) => Key::Net(address, 32),
                IpAddr::V6(_) => Key::Net(address, 128),
            })
            .collect(),
        _ => literals.iter().map(|literal| whole(literal)).collect(),
    }
}

fn whole(text: &str) -> Key {
    Key::Text(text.as_bytes().into())
}

fn start(text: &str) -> Option<Box<[u8]>> {
    (!text.is_empty()).then(|| text.as_bytes().into())
}

fn part(text: &[u8]) -> Option<Key> {
    (text.len() >= PART_MIN).then(|| Key::Part(text.into()))
}

/// Where the last component of a path is read.
fn named(source: Source) -> Option<Source> {
    match source.read {
        // Of an ancestor whose path was cut, the matcher does not ask the name.
        Read::Field(path) => Some(Source {
            read: Read::Field(name_of(path)?),
            ..source
        }),
        _ => None,
    }
}

/// What a glob asks: its start, its last name, and what it has in between.
fn glob_needs(source: Source, glob: &Glob) -> Option<Vec<Need>> {
    let starts: Option<Vec<Key>> = glob
        .shapes()
        .map(|shape| match shape {
            Shape::Whole(text) => Some(whole(&text)),
            Shape::Below(text) | Shape::From(text) => Some(Key::Start(start(&text)?)),
        })
        .collect();
    let names = named(source).zip(glob.last_names());
    let parts: Option<Vec<Key>> = glob
        .longest_parts()
        .iter()
        .map(|text| part(text.as_bytes()))
        .collect();
    let mut needs = Vec::new();
    for (source, keys) in [
        starts.map(|keys| (source, keys)),
        names.map(|(names, texts)| (names, texts.iter().map(|text| whole(text)).collect())),
        parts.map(|keys| (source, keys)),
    ]
    .into_iter()
    .flatten()
    {
        needs.push(Need::of(Ask { source, keys }));
    }
    (!needs.is_empty()).then_some(needs)
}

/// What a text that matches a regular expression starts with, if it is anchored, or has somewhere.
fn regex_keys(pattern: &str) -> Option<Vec<Key>> {
    // It was parsed when the predicate was checked.
    let hir = regex_syntax::parse(pattern).ok()?;
    let anchored = hir.properties().look_set_prefix().contains(Look::Start);
    let beginnings = Extractor::new().kind(ExtractKind::Prefix).extract(&hir);
    let of_beginnings: Option<Vec<Key>> = beginnings.literals().and_then(|literals| {
        literals
            .iter()
            .map(|literal| match anchored {
                true => (!literal.is_empty()).then(|| Key::Start(literal.as_bytes().into())),
                false => part(literal.as_bytes()),
            })
            .collect()
    });
    // No beginnings at all are those of an expression that matches nothing.
    of_beginnings
        .filter(|keys| {
            keys.iter()
                .all(|key| !matches!(key, Key::Start(text) if text.len() < PART_MIN))
        })
        .or_else(|| Some(vec![part(longest_literal(&hir)?)?]))
}

/// The longest text that stands in every text that matches, as far as that is seen.
fn longest_literal(hir: &Hir) -> Option<&[u8]> {
    match hir.kind() {
        HirKind::Literal(literal) => Some(&literal.0),
        HirKind::Capture(inner) => longest_literal(&inner.sub),
        HirKind::Repetition(inner) if inner.min > 0 => longest_literal(&inner.sub),
        HirKind::Concat(parts) => parts
            .iter()
            .filter_map(longest_literal)
            .max_by_key(|text| text.len()),
        _ => None,
    }
}
