//! The type checker: from the syntax tree to the checked predicate.
//!
//! A node is checked to a [`Term`]. A fault is noted with its place, the node
//! becomes `None`, and its neighbours are checked all the same, so that one run
//! shows every fault.

use std::collections::BTreeMap;
use std::sync::Arc;

use cel::common::ast::{CallExpr, Expr as Node, IdedExpr, LiteralValue, SelectExpr};
use sumun_proto::{FIELDS, FieldId, FieldType};

use crate::ir::{ANCESTOR_FIELDS, Expr, Operand, Set, Type};
use crate::list::List;
use crate::literal;
use crate::parse::Parsed;
use crate::problem::{Problem, did_you_mean};

/// Named lists of literals: `lists.NAME` in predicates. All are sorted and without repeats.
pub type Lists = BTreeMap<String, Set>;

/// Most bodies that `exists` and `all` over literals may unfold to in one predicate.
pub const UNFOLD_MAX: usize = 1024;

/// Checks a parsed predicate; with it comes what is taken but probably not meant. Without
/// lists it is a canonical text, which names large ones by their hash.
///
/// # Errors
/// Every fault, in the order of the text.
pub(crate) fn check(
    parsed: &Parsed<'_>,
    lists: Option<&Lists>,
) -> Result<(Expr, Vec<Problem>), Vec<Problem>> {
    let mut checker = Checker {
        parsed,
        lists,
        problems: Vec::new(),
        warnings: Vec::new(),
        items: Vec::new(),
        unfolded: 0,
    };
    let expr = checker.truth(&parsed.root);
    let mut problems = checker.problems;
    match expr {
        Some(expr) if problems.is_empty() => {
            let mut warnings = checker.warnings;
            warnings.sort_by_key(|problem| problem.offset);
            warnings.dedup();
            Ok((expr, warnings))
        }
        _ => {
            problems.sort_by_key(|problem| problem.offset);
            problems.dedup();
            Err(problems)
        }
    }
}

/// What a node stands for.
pub(crate) enum Term {
    /// A condition.
    Truth(Expr),
    /// A value, boolean fields and literals included.
    Value(Operand),
    /// A field that is a list.
    List(FieldId),
    /// Literals.
    Set(Set),
    /// An item of `proc.ancestors`.
    Image,
    /// `cidr("…")`.
    Net(ipnet::IpNet),
}

/// What the name of an item stands for.
#[derive(Clone)]
pub(crate) enum Item {
    /// The item of an `exists` or `all` over a list field.
    Of(FieldId),
    /// A literal of the set that is being unfolded.
    Literal(Operand),
}

pub(crate) struct Checker<'a> {
    pub(crate) parsed: &'a Parsed<'a>,
    lists: Option<&'a Lists>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
    /// Names of items, the innermost last.
    pub(crate) items: Vec<(String, Item)>,
    /// Bodies unfolded so far.
    pub(crate) unfolded: usize,
}

impl Checker<'_> {
    /// Notes a fault at a node.
    pub(crate) fn fault<T>(&mut self, node: &IdedExpr, message: impl Into<String>) -> Option<T> {
        let offset = self.place(node);
        self.problems
            .push(Problem::at(self.parsed.text, offset, message));
        None
    }

    /// Notes what is taken but probably not meant.
    pub(crate) fn warn(&mut self, node: &IdedExpr, message: impl Into<String>) {
        let offset = self.place(node);
        self.warnings
            .push(Problem::at(self.parsed.text, offset, message));
    }

    /// Where a node begins as a person sees it: a member at its first name.
    fn place(&self, node: &IdedExpr) -> usize {
        match &node.expr {
            Node::Select(select) => self.place(&select.operand),
            Node::Call(CallExpr {
                target: Some(target),
                ..
            }) => self.place(target),
            Node::Comprehension(inner) => self.place(&inner.iter_range),
            Node::Call(call) if !call.func_name.contains(['_', '@']) => {
                self.name_offset(node, &call.func_name)
            }
            _ => self.parsed.offset(node.id),
        }
    }

    /// Offset of the function name that stands before the call's parenthesis.
    pub(crate) fn name_offset(&self, call: &IdedExpr, name: &str) -> usize {
        let open = self.parsed.offset(call.id);
        self.parsed
            .text
            .get(..open)
            .and_then(|before| before.rfind(name))
            .unwrap_or(open)
    }

    /// A node that has to be a condition.
    pub(crate) fn truth(&mut self, node: &IdedExpr) -> Option<Expr> {
        match self.term(node)? {
            Term::Truth(expr) => Some(expr),
            Term::Value(Operand::Bool(value)) => Some(Expr::Const(value)),
            Term::Value(operand) if operand.ty() == Type::Bool => Some(Expr::Bool(operand)),
            Term::Value(operand) => {
                let ty = operand.ty();
                self.fault(
                    node,
                    format!("{operand} is {ty}, but a condition is needed here: compare it"),
                )
            }
            Term::List(list) => {
                let name = list.info().name;
                self.fault(node, format!("{name} is a list, but a condition is needed here: write \"…\" in {name}, or {name}.exists(x, …)"))
            }
            other => {
                let what = describe(&other);
                self.fault(
                    node,
                    format!("{what} stands here, but a condition is needed"),
                )
            }
        }
    }

    /// A node that has to be a value.
    pub(crate) fn value(&mut self, node: &IdedExpr, wanted: &str) -> Option<Operand> {
        match self.term(node)? {
            Term::Value(operand) => Some(operand),
            other => {
                let what = describe(&other);
                self.fault(node, format!("{what} stands here, but {wanted} is needed"))
            }
        }
    }

    /// A node that has to be a text and no literal.
    pub(crate) fn text(&mut self, node: &IdedExpr, function: &str) -> Option<Operand> {
        let operand = self.value(node, "a string")?;
        if operand.ty() != Type::Str {
            let ty = operand.ty();
            return self.fault(
                node,
                format!("{operand} is {ty}: {function} is for strings"),
            );
        }
        if operand.is_literal() {
            return self.fault(
                node,
                format!("{function} of a literal: write the field first"),
            );
        }
        Some(operand)
    }

    /// A node that has to be a text literal.
    pub(crate) fn text_literal(&mut self, node: &IdedExpr, function: &str) -> Option<String> {
        match self.value(node, "a string literal")? {
            Operand::Str(text) => Some(text),
            other => self.fault(
                node,
                format!("the argument of {function} is {other}, but it has to be a string literal"),
            ),
        }
    }

    pub(crate) fn term(&mut self, node: &IdedExpr) -> Option<Term> {
        match &node.expr {
            Node::Literal(value) => self.literal(node, value),
            Node::List(list) => {
                let items: Vec<Option<Operand>> = list
                    .elements
                    .iter()
                    .map(|element| self.list_item(element))
                    .collect();
                let items: Vec<Operand> = items.into_iter().collect::<Option<_>>()?;
                match literal::set(items) {
                    Ok(set) => Some(Term::Set(set)),
                    Err(message) => self.fault(node, message),
                }
            }
            Node::Ident(name) => self.path(node, name),
            Node::Select(select) if select.test => self.has(node, select),
            Node::Select(_) => match dotted(node) {
                Some(name) => self.path(node, &name),
                None => self.fault(node, "only fields have members"),
            },
            Node::Call(call) => self.call(node, call),
            Node::Comprehension(inner) => self.each(node, inner),
            Node::Map(_) | Node::Struct(_) => {
                self.fault(node, "maps and messages are not part of predicates")
            }
            Node::Unspecified => self.fault(node, "an expression is missing here"),
        }
    }

    fn literal(&mut self, node: &IdedExpr, value: &LiteralValue) -> Option<Term> {
        match value {
            LiteralValue::Boolean(value) => Some(Term::Value(Operand::Bool(*value.inner()))),
            LiteralValue::Int(value) => Some(Term::Value(Operand::Int(*value.inner()))),
            LiteralValue::String(text) => Some(Term::Value(Operand::Str(text.inner().to_owned()))),
            LiteralValue::UInt(_) => {
                self.fault(node, "all integers are int: write it without the u")
            }
            LiteralValue::Double(_) => {
                self.fault(node, "numbers are integers: there are no fractions")
            }
            LiteralValue::Bytes(_) => self.fault(
                node,
                "there are no byte strings: bytes that are not UTF-8 are written \\xNN in fields, \"\\\\xNN\" in a literal",
            ),
            LiteralValue::Null => self.fault(
                node,
                "there is no null: a field is absent, ask with has(field)",
            ),
        }
    }

    fn list_item(&mut self, node: &IdedExpr) -> Option<Operand> {
        match self.value(node, "a literal")? {
            operand @ (Operand::Str(_) | Operand::Int(_)) => Some(operand),
            other => self.fault(
                node,
                format!("{other} stands in a list, but a list holds string or int literals"),
            ),
        }
    }

    /// A dotted name: an item, a list, a field.
    fn path(&mut self, node: &IdedExpr, name: &str) -> Option<Term> {
        let (first, rest) = name.split_once('.').unwrap_or((name, ""));
        let item = self
            .items
            .iter()
            .rev()
            .find(|(known, _)| known == first)
            .map(|(_, item)| item.clone());
        match item {
            Some(Item::Literal(operand)) if rest.is_empty() => return Some(Term::Value(operand)),
            Some(Item::Of(FieldId::ProcAncestors)) => return self.ancestor(node, first, rest),
            Some(Item::Of(_)) if rest.is_empty() => return Some(Term::Value(Operand::Element)),
            Some(_) => {
                return self.fault(
                    node,
                    format!("{first} is a string: it has no member {rest}"),
                );
            }
            None => {}
        }
        if first == "lists" {
            return self.list(node, rest);
        }
        if let Some(field) = FieldId::by_name(name) {
            return Some(match field.info().ty {
                FieldType::StrList | FieldType::ImageList => Term::List(field),
                _ => Term::Value(Operand::Field(field)),
            });
        }
        let message = unknown_field(name, self.items.iter().map(|(item, _)| item.as_str()));
        self.fault(node, message)
    }

    fn ancestor(&mut self, node: &IdedExpr, item: &str, rest: &str) -> Option<Term> {
        if rest.is_empty() {
            return Some(Term::Image);
        }
        if let Some((_, field)) = ANCESTOR_FIELDS.iter().find(|(name, _)| *name == rest) {
            return Some(Term::Value(Operand::Ancestor(*field)));
        }
        let names = ANCESTOR_FIELDS.iter().map(|(name, _)| *name);
        let near = did_you_mean(rest, names.clone());
        let all = names.collect::<Vec<_>>().join(", ");
        self.fault(
            node,
            format!("an item of proc.ancestors has no field {rest}{near}: {item} has {all}"),
        )
    }

    /// `lists["NAME#HASH"]`, which only canonical texts have.
    pub(crate) fn list_by_hash(&mut self, node: &IdedExpr, index: &IdedExpr) -> Option<Term> {
        if self.lists.is_some() {
            return self.fault(node, "lists has no items by number: write lists.NAME");
        }
        let reference = self.text_literal(index, "lists[…]")?;
        match List::referred(&reference) {
            Some(list) => Some(Term::Set(Set::List(Arc::new(list)))),
            None => self.fault(index, format!("{reference:?} is no list and its hash")),
        }
    }

    fn list(&mut self, node: &IdedExpr, name: &str) -> Option<Term> {
        let none = Lists::new();
        let lists = self.lists.unwrap_or(&none);
        if let Some(set) = lists.get(name) {
            let mut set = set.clone();
            set.tidy();
            return Some(Term::Set(set));
        }
        let near = did_you_mean(name, lists.keys().map(String::as_str));
        let none = if lists.is_empty() {
            ": there are no lists here"
        } else {
            ""
        };
        self.fault(node, format!("unknown list lists.{name}{near}{none}"))
    }

    fn has(&mut self, node: &IdedExpr, select: &SelectExpr) -> Option<Term> {
        let name = match dotted(&select.operand) {
            Some(before) => format!("{before}.{}", select.field),
            None => return self.fault(node, "has() takes a field"),
        };
        match self.path(node, &name)? {
            Term::Value(operand @ (Operand::Field(_) | Operand::Ancestor(_))) => {
                Some(Term::Truth(Expr::Has(operand)))
            }
            Term::List(FieldId::ProcAncestors) => self.fault(
                node,
                "has(proc.ancestors) says nothing: ask proc.ancestors.exists(a, …)",
            ),
            Term::List(list) => Some(Term::Truth(Expr::Has(Operand::Field(list)))),
            other => {
                let what = describe(&other);
                self.fault(node, format!("has() takes a field, not {what}"))
            }
        }
    }
}

/// The name that a chain of members spells; `None` when it does not start with a name.
fn dotted(node: &IdedExpr) -> Option<String> {
    match &node.expr {
        Node::Ident(name) => Some(name.clone()),
        Node::Select(select) if !select.test => {
            Some(format!("{}.{}", dotted(&select.operand)?, select.field))
        }
        _ => None,
    }
}

pub(crate) fn describe(term: &Term) -> String {
    match term {
        Term::Truth(_) => "a condition".to_owned(),
        Term::Value(operand) => format!("{operand} ({})", operand.ty()),
        Term::List(list) => format!("the list {}", list.info().name),
        Term::Set(_) => "a list of literals".to_owned(),
        Term::Image => "an item of proc.ancestors".to_owned(),
        Term::Net(net) => format!("the network {net}"),
    }
}

fn unknown_field<'a>(name: &'a str, items: impl Iterator<Item = &'a str>) -> String {
    let group = format!("{name}.");
    let members: Vec<&str> = FIELDS
        .iter()
        .map(|field| field.name)
        .filter(|field| field.starts_with(&group))
        .take(6)
        .collect();
    if !members.is_empty() {
        return format!("{name} is a group of fields: write {}", members.join(", "));
    }
    if let Some(field) = FIELDS.iter().find(|field| {
        name.strip_prefix(field.name)
            .is_some_and(|rest| rest.starts_with('.'))
    }) {
        let member = &name[field.name.len() + 1..];
        return format!("{} has no member {member}", field.name);
    }
    let near = did_you_mean(name, FIELDS.iter().map(|field| field.name).chain(items));
    format!("unknown field {name}{near}")
}
