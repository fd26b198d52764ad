//! The in-process matcher: a checked predicate, ready to judge events.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use ipnet::IpNet;
use regex_automata::meta::Regex;
use sumun_proto::v1::Image;
use sumun_proto::view::{ancestor_value, is_first};
use sumun_proto::{FieldId, Value, View, text};

use crate::ir::{Compare, Expr, Operand, Predicate, Quantifier, Set, TextTest};
use crate::list::List;
use crate::outcome::{Outcomes, Verdict};

/// A compiled predicate. It is immutable and can be shared by threads.
#[derive(Debug)]
pub struct Matcher {
    root: Node,
}

/// [`Expr`] with sets hashed and regular expressions compiled.
#[derive(Debug)]
enum Node {
    Const(bool),
    And(Box<[Node]>),
    Or(Box<[Node]>),
    Not(Box<Node>),
    Bool(Operand),
    Has(Operand),
    Compare(Compare, Operand, Operand),
    /// Of text; true if it is equal.
    IsText(Operand, Box<str>),
    InTexts(Operand, Texts),
    InNumbers(Operand, HashSet<i64>),
    InList(Operand, Arc<List>),
    Text(TextTest, Operand, Box<str>),
    /// With the last components that a path has to have one of, if there are such.
    Matches(Operand, Box<Regex>, Option<Box<[String]>>),
    InNet(FieldId, IpNet),
    Capability(FieldId, u8),
    ListHas(FieldId, Operand),
    Each(Quantifier, FieldId, Box<Node>),
}

/// A set of texts.
#[derive(Debug)]
enum Texts {
    /// Up to [`FEW`]: comparing is quicker than hashing.
    Few(Box<[Box<str>]>),
    Many(HashSet<Box<str>>),
}

/// See [`Texts::Few`].
const FEW: usize = 8;

impl Texts {
    fn new(items: &[String]) -> Self {
        let items = items.iter().map(|item| item.as_str().into());
        match items.len() {
            0..=FEW => Texts::Few(items.collect()),
            _ => Texts::Many(items.collect()),
        }
    }

    fn contains(&self, text: &str) -> bool {
        match self {
            Texts::Few(items) => items.iter().any(|item| **item == *text),
            Texts::Many(items) => items.contains(text),
        }
    }
}

/// The item that `Element` and `Ancestor` read.
enum Item<'a> {
    None,
    Text(Cow<'a, str>),
    Image(&'a Image),
    /// The last item of a list that was cut.
    Cut,
}

impl Matcher {
    /// Compiles a predicate.
    #[must_use]
    pub fn compile(predicate: &Predicate) -> Self {
        Self {
            root: Node::compile(predicate.expr()),
        }
    }

    /// Judges an event.
    #[must_use]
    pub fn matches(&self, view: &View<'_>) -> Verdict {
        self.outcomes(view).verdict()
    }

    /// What it can be on an event.
    pub(crate) fn outcomes(&self, view: &View<'_>) -> Outcomes {
        self.root.judge(view, &Item::None)
    }
}

impl Node {
    fn compile(expr: &Expr) -> Self {
        let all = |parts: &[Expr]| parts.iter().map(Self::compile).collect();
        match expr {
            Expr::Const(value) => Node::Const(*value),
            Expr::And(parts) => Node::And(all(parts)),
            Expr::Or(parts) => Node::Or(all(parts)),
            Expr::Not(inner) => Node::Not(Box::new(Self::compile(inner))),
            Expr::Bool(operand) => Node::Bool(operand.clone()),
            Expr::Has(operand) => Node::Has(operand.clone()),
            Expr::Compare {
                op: Compare::Eq,
                left,
                right: Operand::Str(text),
            } => Node::IsText(left.clone(), text.as_str().into()),
            Expr::Compare { op, left, right } => Node::Compare(*op, left.clone(), right.clone()),
            Expr::In {
                value,
                set: Set::Str(items),
            } => Node::InTexts(value.clone(), Texts::new(items)),
            Expr::In {
                value,
                set: Set::Int(items),
            } => Node::InNumbers(value.clone(), items.iter().copied().collect()),
            Expr::In {
                value,
                set: Set::List(list),
            } => Node::InList(value.clone(), Arc::clone(list)),
            Expr::Text { test, value, text } => {
                Node::Text(*test, value.clone(), text.as_str().into())
            }
            Expr::Matches { value, pattern } => match pattern.compile() {
                Ok(regex) => Node::Matches(
                    value.clone(),
                    Box::new(regex),
                    pattern.last_names().map(Vec::into_boxed_slice),
                ),
                // The checker compiled the same pattern with the same limits.
                Err(_) => Node::Const(false),
            },
            Expr::InNet { field, net } => Node::InNet(*field, *net),
            Expr::Capability { field, number } => Node::Capability(*field, *number),
            Expr::ListHas { list, value } => Node::ListHas(*list, value.clone()),
            Expr::Each {
                quantifier,
                list,
                body,
            } => Node::Each(*quantifier, *list, Box::new(Self::compile(body))),
        }
    }

    fn judge(&self, view: &View<'_>, item: &Item<'_>) -> Outcomes {
        match self {
            Node::Const(value) => Outcomes::of(*value),
            Node::And(parts) => {
                let mut whole = Outcomes::TRUE;
                for part in parts {
                    whole = whole.and(part.judge(view, item));
                    if whole == Outcomes::FALSE {
                        break;
                    }
                }
                whole
            }
            Node::Or(parts) => {
                let mut whole = Outcomes::FALSE;
                for part in parts {
                    whole = whole.or(part.judge(view, item));
                    if whole == Outcomes::TRUE {
                        break;
                    }
                }
                whole
            }
            Node::Not(inner) => inner.judge(view, item).not(),
            Node::Bool(operand) => match read(operand, view, item) {
                Value::Bool(value) => Outcomes::of(value),
                other => missing(&other),
            },
            Node::Has(operand) => match read(operand, view, item) {
                Value::Absent => Outcomes::FALSE,
                Value::Unknown => Outcomes::UNKNOWN,
                _ => Outcomes::TRUE,
            },
            Node::Compare(op, left, right) => {
                compare(*op, &read(left, view, item), &read(right, view, item))
            }
            Node::IsText(operand, literal) => match read(operand, view, item) {
                Value::Str(text) => Outcomes::of(*text == **literal),
                other => missing(&other),
            },
            Node::InTexts(operand, items) => match read(operand, view, item) {
                Value::Str(text) => Outcomes::of(items.contains(&text)),
                other => missing(&other),
            },
            Node::InNumbers(operand, items) => match read(operand, view, item) {
                Value::Int(number) => Outcomes::of(items.contains(&number)),
                other => missing(&other),
            },
            Node::InList(operand, list) => {
                let found = match read(operand, view, item) {
                    Value::Str(text) => list.has_text(&text),
                    Value::Int(number) => list.has_number(number),
                    other => return missing(&other),
                };
                found.map_or(Outcomes::UNKNOWN, Outcomes::of)
            }
            Node::Text(test, operand, literal) => match read(operand, view, item) {
                Value::Str(text) => Outcomes::of(match test {
                    TextTest::Prefix => text.starts_with(&**literal),
                    TextTest::Suffix => text.ends_with(&**literal),
                    TextTest::Contains => text.contains(&**literal),
                }),
                Value::Unknown
                    if *test == TextTest::Suffix
                        && literal.rsplit_once('/').is_some_and(|(_, wanted)| {
                            has_another_name(operand, &[wanted], view)
                        }) =>
                {
                    Outcomes::FALSE
                }
                other => missing(&other),
            },
            Node::Matches(operand, regex, names) => match read(operand, view, item) {
                Value::Str(text) => Outcomes::of(regex.is_match(&*text)),
                Value::Unknown
                    if names
                        .as_ref()
                        .is_some_and(|names| has_another_name(operand, names, view)) =>
                {
                    Outcomes::FALSE
                }
                other => missing(&other),
            },
            Node::InNet(field, net) => match view.ip(*field) {
                Some(address) => Outcomes::of(net.contains(&address)),
                None => missing(&view.get(*field)),
            },
            Node::Capability(field, number) => match view.get(*field) {
                Value::Int(set) => Outcomes::of(set >> number & 1 == 1),
                other => missing(&other),
            },
            Node::ListHas(list, operand) => match read(operand, view, item) {
                Value::Str(wanted) => over(view, *list, Quantifier::Exists, |item| match item {
                    Item::Text(text) => Outcomes::of(*text == wanted),
                    _ => Outcomes::UNKNOWN,
                }),
                other => missing(&other),
            },
            Node::Each(quantifier, list, body) => {
                over(view, *list, *quantifier, |item| body.judge(view, item))
            }
        }
    }
}

/// Joins the outcomes of the items of a list.
fn over<'a>(
    view: &View<'a>,
    list: FieldId,
    quantifier: Quantifier,
    judge: impl Fn(&Item<'a>) -> Outcomes,
) -> Outcomes {
    let (mut whole, settled) = match quantifier {
        Quantifier::Exists => (Outcomes::FALSE, Outcomes::TRUE),
        Quantifier::All => (Outcomes::TRUE, Outcomes::FALSE),
    };
    let join = |whole: Outcomes, one: Outcomes| match quantifier {
        Quantifier::Exists => whole.or(one),
        Quantifier::All => whole.and(one),
    };
    let complete = if list == FieldId::ProcAncestors {
        let mut top = view.image();
        for image in view.ancestors() {
            whole = join(whole, judge(&Item::Image(image)));
            if whole == settled {
                return whole;
            }
            top = Some(image);
        }
        top.is_some_and(is_first)
    } else {
        let items = match view.get(list) {
            Value::List(items) => items,
            other => return missing(&other),
        };
        let sure = if items.complete {
            usize::MAX
        } else {
            items.len().saturating_sub(1)
        };
        for (index, text) in items.iter().enumerate() {
            let item = if index < sure {
                Item::Text(text)
            } else {
                Item::Cut
            };
            whole = join(whole, judge(&item));
            if whole == settled {
                return whole;
            }
        }
        items.complete
    };
    if complete {
        whole
    } else {
        join(whole, Outcomes::UNKNOWN)
    }
}

/// A path that was cut at its start still has its last component: true if that
/// is none of these.
fn has_another_name(operand: &Operand, names: &[impl AsRef<str>], view: &View<'_>) -> bool {
    let (path, lowered) = match operand {
        Operand::Lower(inner) => (&**inner, true),
        other => (other, false),
    };
    let name = match path {
        Operand::Field(FieldId::ProcExePath) => FieldId::ProcExeName,
        Operand::Field(FieldId::ProcParentExePath) => FieldId::ProcParentExeName,
        Operand::Field(FieldId::FilePath) => FieldId::FileName,
        _ => return false,
    };
    match view.get(name) {
        Value::Str(name) => {
            let name = if lowered { text::lower(name) } else { name };
            names.iter().all(|wanted| name != wanted.as_ref())
        }
        _ => false,
    }
}

/// The outcome of testing a value that cannot be tested.
fn missing(value: &Value<'_>) -> Outcomes {
    match value {
        Value::Unknown => Outcomes::UNKNOWN,
        _ => Outcomes::ERROR,
    }
}

fn compare(op: Compare, left: &Value<'_>, right: &Value<'_>) -> Outcomes {
    match (left, right) {
        (Value::Str(left), Value::Str(right)) => Outcomes::of(op.holds(&**left, &**right)),
        (Value::Int(left), Value::Int(right)) | (Value::Time(left), Value::Time(right)) => {
            Outcomes::of(op.holds(left, right))
        }
        (Value::Bool(left), Value::Bool(right)) => Outcomes::of(op.holds(left, right)),
        // Reading either absent side is an error, whatever the other one would be.
        (Value::Absent, _) | (_, Value::Absent) => Outcomes::ERROR,
        (Value::Unknown, _) | (_, Value::Unknown) => Outcomes::UNKNOWN,
        _ => Outcomes::ERROR,
    }
}

fn read<'a>(operand: &'a Operand, view: &View<'a>, item: &'a Item<'_>) -> Value<'a> {
    match operand {
        Operand::Str(text) => Value::Str(Cow::Borrowed(text)),
        Operand::Int(number) => Value::Int(*number),
        Operand::Bool(value) => Value::Bool(*value),
        Operand::Time(ns) => Value::Time(*ns),
        Operand::Field(field) => view.get(*field),
        Operand::Index { list, index } => match view.get(*list) {
            Value::List(items) => {
                let index = *index as usize;
                if !items.complete && index + 1 >= items.len() {
                    return Value::Unknown;
                }
                items.get(index).map_or(Value::Absent, Value::Str)
            }
            other => other,
        },
        Operand::Lower(inner) => match read(inner, view, item) {
            Value::Str(text) => Value::Str(text::lower(text)),
            other => other,
        },
        Operand::Length(inner) => match read(inner, view, item) {
            Value::Str(text) => Value::Int(i64::try_from(text.chars().count()).unwrap_or(i64::MAX)),
            other => other,
        },
        Operand::Count(list) => match view.get(*list) {
            Value::List(items) if items.complete => {
                Value::Int(i64::try_from(items.len()).unwrap_or(i64::MAX))
            }
            Value::List(_) => Value::Unknown,
            other => other,
        },
        Operand::Element => match item {
            Item::Text(text) => Value::Str(Cow::Borrowed(&**text)),
            Item::Cut => Value::Unknown,
            Item::None | Item::Image(_) => Value::Absent,
        },
        Operand::Ancestor(field) => match item {
            Item::Image(image) => ancestor_value(image, *field),
            _ => Value::Absent,
        },
    }
}
