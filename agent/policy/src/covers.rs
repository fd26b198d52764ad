//! Does a query ask only for what a recorded rule let through?

use std::cell::LazyCell;

use sumun_proto::FieldId;
use sumun_proto::catalogue::kind_name;
use sumun_proto::v1::Kind;

use crate::glob::{Glob, Shape};
use crate::ir::{Compare, Expr, Operand, Pattern, Predicate, Set, TextTest};
use crate::logic;
use crate::narrow::never;

/// A query that has more alternatives is looked at as it stands.
const ALTERNATIVES_MAX: usize = 64;

/// What a query asks of events of one kind: each that it matches is matched by one of these at least. None if it asks for no
/// event of the kind. Different rules may have let through different ones.
#[must_use]
pub fn alternatives(query: &Predicate, kind: Kind) -> Vec<Predicate> {
    let is_kind = Expr::Compare {
        op: Compare::Eq,
        left: Operand::Field(FieldId::Kind),
        right: Operand::Str(kind_name(kind).to_owned()),
    };
    let all = split(query.expr()).unwrap_or_else(|| vec![query.expr().clone()]);
    all.into_iter()
        .map(|one| Predicate::new(logic::and(is_kind.clone(), one)))
        .filter(|one| !never(one, kind))
        .collect()
}

/// The alternatives of an expression, each without one on its top; `None` if there are too many.
fn split(expr: &Expr) -> Option<Vec<Expr>> {
    let all = match expr {
        Expr::Or(parts) => {
            let mut all = Vec::new();
            for part in parts {
                all.extend(split(part)?);
            }
            all
        }
        Expr::And(parts) => {
            let mut all = vec![Expr::Const(true)];
            for part in parts {
                let more = split(part)?;
                if all.len() * more.len() > ALTERNATIVES_MAX {
                    return None;
                }
                let joined = |one: &Expr| {
                    let one = one.clone();
                    more.iter()
                        .map(move |other| logic::and(one.clone(), other.clone()))
                        .collect::<Vec<_>>()
                };
                all = all.iter().flat_map(joined).collect();
            }
            all
        }
        other => vec![other.clone()],
    };
    (all.len() <= ALTERNATIVES_MAX).then_some(all)
}

/// True when every event that `query` can match is one that `recorded` can match,
/// as far as that can be read off the text: each conjunct of `recorded` is
/// equalled or narrowed (longer prefix, subset of an `in`, smaller range or
/// network) by a conjunct of `query`. False means only "not seen".
#[must_use]
pub fn covers(query: &Predicate, recorded: &Predicate) -> bool {
    implies(query.conjuncts(), recorded.expr())
}

/// True when `wanted` holds wherever all of `given` hold.
fn implies(given: &[Expr], wanted: &Expr) -> bool {
    if given.iter().any(|one| narrows(one, wanted)) {
        return true;
    }
    match wanted {
        Expr::Const(true) => return true,
        Expr::And(parts) if parts.iter().all(|part| implies(given, part)) => return true,
        Expr::Or(parts) if parts.iter().any(|part| implies(given, part)) => return true,
        _ => {}
    }
    // One of the alternatives holds: each has to imply what is wanted.
    given.iter().any(|one| match one {
        Expr::Or(alternatives) => alternatives.iter().all(|alternative| match alternative {
            Expr::And(parts) => implies(parts, wanted),
            other => implies(std::slice::from_ref(other), wanted),
        }),
        _ => false,
    })
}

/// True when `wanted` holds wherever `given` holds: two conditions, not joined ones.
fn narrows(given: &Expr, wanted: &Expr) -> bool {
    if given == wanted {
        return true;
    }
    match wanted {
        Expr::Text { test, value, text } => values(given, value, |known| match known {
            Known::Text(known) => test_holds(*test, known, text),
            Known::Part(known_test, part) => match (known_test, test) {
                (TextTest::Prefix, TextTest::Prefix) => part.starts_with(text.as_str()),
                (TextTest::Suffix, TextTest::Suffix) => part.ends_with(text.as_str()),
                (_, TextTest::Contains) => part.contains(text.as_str()),
                _ => false,
            },
            Known::Number(_) | Known::Bound(..) => false,
        }),
        Expr::Matches { value, pattern } => {
            // Most conditions are about something else.
            let regex = LazyCell::new(|| pattern.compile());
            values(given, value, |known| match known {
                Known::Text(text) => regex.as_ref().is_ok_and(|regex| regex.is_match(text)),
                _ => false,
            })
        }
        Expr::In { value, set } => values(given, value, |known| match (known, set) {
            (Known::Text(text), Set::Str(items)) => items.iter().any(|item| item == text),
            (Known::Number(number), Set::Int(items)) => items.contains(&number),
            // Of a list that only its hash is known of, nothing is seen.
            (Known::Text(text), Set::List(items)) => items.has_text(text) == Some(true),
            (Known::Number(number), Set::List(items)) => items.has_number(number) == Some(true),
            _ => false,
        }),
        Expr::Compare { op, left, right } => values(given, left, |known| match (known, right) {
            (Known::Text(text), Operand::Str(literal)) => op.holds(text, literal.as_str()),
            (Known::Number(number), Operand::Int(literal) | Operand::Time(literal)) => {
                op.holds(&number, literal)
            }
            (Known::Bound(known, bound), Operand::Int(literal) | Operand::Time(literal)) => {
                bound_holds(known, bound, *op, *literal)
            }
            _ => false,
        }),
        Expr::InNet { field, net } => match given {
            Expr::InNet {
                field: given,
                net: inner,
            } => given == field && net.contains(inner),
            other => values(other, &Operand::Field(*field), |known| match known {
                Known::Text(text) => text.parse().is_ok_and(|address| {
                    let address: std::net::IpAddr = address;
                    net.contains(&address)
                }),
                _ => false,
            }),
        },
        Expr::Has(operand) => reads(given, operand),
        _ => false,
    }
}

/// What a condition says of one value.
enum Known<'a> {
    /// It is this text.
    Text(&'a str),
    /// A part of it is this text.
    Part(TextTest, &'a str),
    /// It is this number.
    Number(i64),
    /// It lies on this side of a number.
    Bound(Compare, i64),
}

/// True when `given` is about `value` and each possibility it leaves passes `test`.
fn values(given: &Expr, value: &Operand, test: impl Fn(Known<'_>) -> bool) -> bool {
    if let Operand::Lower(inner) = value
        && known_of(given, inner, &|known| match known {
            // What is known of a text is known of its lower case.
            Known::Text(text) => test(Known::Text(&text.to_ascii_lowercase())),
            Known::Part(part, text) => test(Known::Part(part, &text.to_ascii_lowercase())),
            Known::Number(_) | Known::Bound(..) => false,
        })
    {
        return true;
    }
    known_of(given, value, &test)
}

fn known_of(given: &Expr, value: &Operand, test: &dyn Fn(Known<'_>) -> bool) -> bool {
    match given {
        Expr::Compare { op, left, right } if left == value => match (op, right) {
            (Compare::Eq, Operand::Str(text)) => test(Known::Text(text)),
            (Compare::Eq, Operand::Int(number) | Operand::Time(number)) => {
                test(Known::Number(*number))
            }
            (op, Operand::Int(number) | Operand::Time(number)) => test(Known::Bound(*op, *number)),
            _ => false,
        },
        Expr::In {
            value: given,
            set: Set::Str(items),
        } => given == value && items.iter().all(|item| test(Known::Text(item))),
        Expr::In {
            value: given,
            set: Set::Int(items),
        } => given == value && items.iter().all(|item| test(Known::Number(*item))),
        Expr::In {
            value: given,
            set: Set::List(items),
        } => {
            given == value
                && items.ty().is_some()
                && items.texts().all(|item| test(Known::Text(item)))
                && items
                    .numbers()
                    .iter()
                    .all(|item| test(Known::Number(*item)))
        }
        Expr::Text {
            test: part,
            value: given,
            text,
        } => given == value && test(Known::Part(*part, text)),
        Expr::Matches {
            value: given,
            pattern: Pattern::Glob(glob),
        } if given == value => Glob::parse(glob).is_ok_and(|glob| {
            glob.shapes().all(|shape| match shape {
                Shape::Whole(text) => test(Known::Text(&text)),
                Shape::Below(text) | Shape::From(text) => {
                    test(Known::Part(TextTest::Prefix, &text))
                }
            })
        }),
        _ => false,
    }
}

fn test_holds(test: TextTest, text: &str, part: &str) -> bool {
    match test {
        TextTest::Prefix => text.starts_with(part),
        TextTest::Suffix => text.ends_with(part),
        TextTest::Contains => text.contains(part),
    }
}

/// True when every number with `known bound` has `op literal`.
fn bound_holds(known: Compare, bound: i64, op: Compare, literal: i64) -> bool {
    use Compare::{Ge, Gt, Le, Lt, Ne};
    match (known, op) {
        (Gt, Gt) | (Ge, Ge) | (Gt, Ge) => bound >= literal,
        (Ge, Gt) => bound > literal,
        (Lt, Lt) | (Le, Le) | (Lt, Le) => bound <= literal,
        (Le, Lt) => bound < literal,
        (Gt, Ne) => bound >= literal,
        (Ge, Ne) => bound > literal,
        (Lt, Ne) => bound <= literal,
        (Le, Ne) => bound < literal,
        _ => false,
    }
}

/// True when the condition can only be true if the field is there.
fn reads(given: &Expr, field: &Operand) -> bool {
    let is = |operand: &Operand| match operand {
        // The length of a lower case is that of the text itself: neither stands in the other.
        Operand::Lower(inner) | Operand::Length(inner) => **inner == *field,
        other => other == field,
    };
    match given {
        Expr::Bool(operand)
        | Expr::In { value: operand, .. }
        | Expr::Text { value: operand, .. }
        | Expr::Matches { value: operand, .. } => is(operand),
        Expr::Compare { left, right, .. } => is(left) || is(right),
        Expr::InNet { field: id, .. } | Expr::Capability { field: id, .. } => {
            *field == Operand::Field(*id)
        }
        _ => false,
    }
}
