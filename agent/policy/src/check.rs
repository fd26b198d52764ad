//! The type checker: from the syntax tree to the checked predicate.
//!
//! A node is checked to a [`Term`]. A fault is noted with its place, the node
//! becomes `None`, and its neighbours are checked all the same, so that one run
//! shows every fault.

use std::collections::BTreeMap;

use cel::common::ast::{CallExpr, ComprehensionExpr, Expr as Node, IdedExpr, LiteralValue};
use cel::common::ast::{SelectExpr, operators};
use sumun_proto::{FIELDS, FieldId, FieldType};

use crate::ir::{ANCESTOR_FIELDS, Compare, Expr, Operand, Quantifier, Set, TextTest, Type};
use crate::literal;
use crate::parse::Parsed;
use crate::problem::{Problem, did_you_mean};

/// Named lists of literals: `lists.NAME` in predicates.
pub type Lists = BTreeMap<String, Set>;

/// Most bodies that `exists` and `all` over literals may unfold to in one predicate.
pub const UNFOLD_MAX: usize = 1024;

/// Checks a parsed predicate.
///
/// # Errors
/// Every fault, in the order of the text.
pub(crate) fn check(parsed: &Parsed<'_>, lists: &Lists) -> Result<Expr, Vec<Problem>> {
    let mut checker = Checker {
        parsed,
        lists,
        problems: Vec::new(),
        items: Vec::new(),
        unfolded: 0,
    };
    let expr = checker.truth(&parsed.root);
    let mut problems = checker.problems;
    match expr {
        Some(expr) if problems.is_empty() => Ok(expr),
        _ => {
            problems.sort_by_key(|problem| problem.offset);
            problems.dedup();
            Err(problems)
        }
    }
}

/// What a node stands for.
enum Term {
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
enum Item {
    /// The item of an `exists` or `all` over a list field.
    Of(FieldId),
    /// A literal of the set that is being unfolded.
    Literal(Operand),
}

struct Checker<'a> {
    parsed: &'a Parsed<'a>,
    lists: &'a Lists,
    problems: Vec<Problem>,
    items: Vec<(String, Item)>,
    unfolded: usize,
}

impl Checker<'_> {
    /// Notes a fault at a node.
    fn fault<T>(&mut self, node: &IdedExpr, message: impl Into<String>) -> Option<T> {
        let offset = self.place(node);
        self.problems
            .push(Problem::at(self.parsed.text, offset, message));
        None
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
    fn name_offset(&self, call: &IdedExpr, name: &str) -> usize {
        let open = self.parsed.offset(call.id);
        self.parsed
            .text
            .get(..open)
            .and_then(|before| before.rfind(name))
            .unwrap_or(open)
    }

    /// A node that has to be a condition.
    fn truth(&mut self, node: &IdedExpr) -> Option<Expr> {
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
    fn value(&mut self, node: &IdedExpr, wanted: &str) -> Option<Operand> {
        match self.term(node)? {
            Term::Value(operand) => Some(operand),
            other => {
                let what = describe(&other);
                self.fault(node, format!("{what} stands here, but {wanted} is needed"))
            }
        }
    }

    /// A node that has to be a text and no literal.
    fn text(&mut self, node: &IdedExpr, function: &str) -> Option<Operand> {
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
    fn text_literal(&mut self, node: &IdedExpr, function: &str) -> Option<String> {
        match self.value(node, "a string literal")? {
            Operand::Str(text) => Some(text),
            other => self.fault(
                node,
                format!("the argument of {function} is {other}, but it has to be a string literal"),
            ),
        }
    }

    fn term(&mut self, node: &IdedExpr) -> Option<Term> {
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

    fn list(&mut self, node: &IdedExpr, name: &str) -> Option<Term> {
        if let Some(set) = self.lists.get(name) {
            let mut set = set.clone();
            set.tidy();
            return Some(Term::Set(set));
        }
        let near = did_you_mean(name, self.lists.keys().map(String::as_str));
        let none = if self.lists.is_empty() {
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

    fn call(&mut self, node: &IdedExpr, call: &CallExpr) -> Option<Term> {
        let name = call.func_name.as_str();
        match (name, call.target.as_deref(), call.args.as_slice()) {
            (operators::LOGICAL_AND, None, [left, right]) => {
                let (left, right) = (self.truth(left), self.truth(right));
                Some(Term::Truth(and(left?, right?)))
            }
            (operators::LOGICAL_OR, None, [left, right]) => {
                let (left, right) = (self.truth(left), self.truth(right));
                Some(Term::Truth(or(left?, right?)))
            }
            (operators::LOGICAL_NOT, None, [inner]) => Some(Term::Truth(not(self.truth(inner)?))),
            (operators::NEGATE, None, [inner]) => match self.value(inner, "an int")? {
                Operand::Int(value) if value != i64::MIN => Some(Term::Value(Operand::Int(-value))),
                _ => self.fault(
                    node,
                    "only an int literal can be negative: there is no arithmetic",
                ),
            },
            (operators::IN, None, [value, list]) => self.contained(node, value, list),
            (operators::INDEX, None, [list, index]) => self.index(list, index),
            (operators::CONDITIONAL, ..) => self.fault(
                node,
                "? : is not part of predicates: write (a && b) || (!a && c)",
            ),
            ("size", None, [of]) | ("size", Some(of), []) => self.size(of),
            ("timestamp", None, [text]) => {
                let written = self.text_literal(text, "timestamp")?;
                match crate::time::parse(&written) {
                    Some(ns) => Some(Term::Value(Operand::Time(ns))),
                    None => self.fault(
                        text,
                        "not a time: write it like \"2026-01-31T08:00:00Z\", between 1678 and 2262",
                    ),
                }
            }
            ("cidr", None, [text]) => {
                let written = self.text_literal(text, "cidr")?;
                match literal::net(&written) {
                    Ok(net) => Some(Term::Net(net)),
                    Err(message) => self.fault(text, message),
                }
            }
            ("containsIP", Some(net), [field]) => self.in_net(net, field),
            ("startsWith", Some(target), [text]) => self.text_test(TextTest::Prefix, target, text),
            ("endsWith", Some(target), [text]) => self.text_test(TextTest::Suffix, target, text),
            ("contains", Some(target), [text]) => self.text_test(TextTest::Contains, target, text),
            ("matches", Some(target), [pattern]) => {
                let value = self.text(target, "matches");
                let written = self.text_literal(pattern, "matches")?;
                if let Err(message) = literal::regex(&written) {
                    return self.fault(pattern, message);
                }
                Some(Term::Truth(Expr::Matches {
                    value: value?,
                    pattern: written,
                }))
            }
            (_, None, [left, right]) if compare(name).is_some() => {
                self.compared(node, compare(name)?, left, right)
            }
            _ => self.no_such_call(node, call),
        }
    }

    fn no_such_call(&mut self, node: &IdedExpr, call: &CallExpr) -> Option<Term> {
        let name = call.func_name.as_str();
        if name.contains(['_', '@']) && cel::common::ast::operators::ADD != name
            || name == operators::ADD
        {
            return self.fault(
                node,
                "there is no arithmetic and no joining of strings or lists in predicates",
            );
        }
        const MEMBERS: &[&str] = &[
            "startsWith",
            "endsWith",
            "contains",
            "matches",
            "size",
            "exists",
            "all",
            "containsIP",
        ];
        const GLOBALS: &[&str] = &["has", "size", "timestamp", "cidr"];
        let (known, how) = if call.target.is_some() {
            (MEMBERS, "member function")
        } else {
            (GLOBALS, "function")
        };
        let offset = self.name_offset(node, name);
        let message = if known.contains(&name) {
            let usage = match name {
                "exists" | "all" => "(x, condition)",
                "has" => "(field)",
                "size" => "(field) or field.size()",
                _ => "(\"…\"), or (field) for containsIP: one argument",
            };
            format!("wrong number of arguments: {name}{usage}")
        } else if let Some(elsewhere) = GLOBALS.iter().chain(MEMBERS).find(|other| **other == name)
        {
            if call.target.is_some() {
                format!("{elsewhere} is no member function: write {elsewhere}(…)")
            } else {
                format!("{elsewhere} is a member function: write field.{elsewhere}(…)")
            }
        } else {
            let near = did_you_mean(name, known.iter().copied());
            format!("unknown {how} {name}{near}: there are {}", known.join(", "))
        };
        self.problems
            .push(Problem::at(self.parsed.text, offset, message));
        None
    }

    fn text_test(&mut self, test: TextTest, target: &IdedExpr, text: &IdedExpr) -> Option<Term> {
        let name = match test {
            TextTest::Prefix => "startsWith",
            TextTest::Suffix => "endsWith",
            TextTest::Contains => "contains",
        };
        let value = self.text(target, name);
        let text = self.text_literal(text, name);
        Some(Term::Truth(Expr::Text {
            test,
            value: value?,
            text: text?,
        }))
    }

    fn in_net(&mut self, net: &IdedExpr, field: &IdedExpr) -> Option<Term> {
        let net = match self.term(net)? {
            Term::Net(net) => net,
            _ => return self.fault(net, "containsIP belongs to cidr(\"…\")"),
        };
        match self.value(field, "an address field")? {
            Operand::Field(id @ (FieldId::NetSrcIp | FieldId::NetDstIp)) => {
                Some(Term::Truth(Expr::InNet { field: id, net }))
            }
            other => self.fault(
                field,
                format!("{other} is no address: containsIP takes net.src.ip or net.dst.ip"),
            ),
        }
    }

    fn index(&mut self, list: &IdedExpr, index: &IdedExpr) -> Option<Term> {
        let field = match self.term(list)? {
            Term::List(FieldId::ProcAncestors) => {
                return self.fault(list, "proc.ancestors has no fixed places: use proc.parent, or proc.ancestors.exists(a, …)");
            }
            Term::List(field) => field,
            other => {
                let what = describe(&other);
                return self.fault(list, format!("{what} is no list field: it has no items"));
            }
        };
        match self.value(index, "an item number")? {
            Operand::Int(number) if u32::try_from(number).is_ok() => {
                Some(Term::Value(Operand::Index {
                    list: field,
                    index: u32::try_from(number).unwrap_or(u32::MAX),
                }))
            }
            other => self.fault(
                index,
                format!("{other} is no item number: items count from 0"),
            ),
        }
    }

    fn size(&mut self, of: &IdedExpr) -> Option<Term> {
        let operand = match self.term(of)? {
            Term::List(FieldId::ProcAncestors) => {
                return self.fault(of, "proc.ancestors has no size: its far end may be unknown");
            }
            Term::List(list) => Operand::Count(list),
            Term::Value(Operand::Str(text)) => {
                Operand::Int(i64::try_from(text.chars().count()).unwrap_or(i64::MAX))
            }
            Term::Value(operand) if operand.ty() == Type::Str => Operand::Length(Box::new(operand)),
            other => {
                let what = describe(&other);
                return self.fault(
                    of,
                    format!("{what} has no size: only strings and lists have"),
                );
            }
        };
        Some(Term::Value(operand))
    }

    fn contained(&mut self, node: &IdedExpr, value: &IdedExpr, list: &IdedExpr) -> Option<Term> {
        let operand = self.value(value, "a value");
        let list_term = self.term(list);
        let (operand, list_term) = (operand?, list_term?);
        match list_term {
            Term::List(FieldId::ProcAncestors) => self.fault(
                list,
                "proc.ancestors holds images: write proc.ancestors.exists(a, a.exe.name == …)",
            ),
            Term::List(field) if operand.ty() == Type::Str => Some(Term::Truth(Expr::ListHas {
                list: field,
                value: operand,
            })),
            Term::List(field) => {
                let (ty, name) = (operand.ty(), field.info().name);
                self.fault(node, format!("{operand} is {ty}, but {name} holds strings"))
            }
            Term::Set(set) => {
                let set = match (set, operand.ty()) {
                    (Set::Str(items), Type::Int) if items.is_empty() => Set::Int(Vec::new()),
                    (Set::Int(items), Type::Str) if items.is_empty() => Set::Str(Vec::new()),
                    (Set::Str(items), Type::Str) => Set::Str(items),
                    (Set::Int(items), Type::Int) => Set::Int(items),
                    (Set::Str(_), ty) => {
                        return self.fault(
                            node,
                            format!("{operand} is {ty}, but the list holds strings"),
                        );
                    }
                    (Set::Int(_), ty) => {
                        return self
                            .fault(node, format!("{operand} is {ty}, but the list holds ints"));
                    }
                };
                if let Set::Str(items) = &set {
                    for item in items {
                        if let Err(message) = literal::fits(&operand, item) {
                            return self.fault(list, message);
                        }
                    }
                }
                let found = match (&operand, &set) {
                    (Operand::Str(text), Set::Str(items)) => Some(items.contains(text)),
                    (Operand::Int(number), Set::Int(items)) => Some(items.contains(number)),
                    _ => None,
                };
                Some(Term::Truth(match found {
                    Some(found) => Expr::Const(found),
                    None => Expr::In {
                        value: operand,
                        set,
                    },
                }))
            }
            other => {
                let what = describe(&other);
                self.fault(
                    list,
                    format!("{what} is no list: in needs one at its right"),
                )
            }
        }
    }

    fn compared(
        &mut self,
        node: &IdedExpr,
        op: Compare,
        left: &IdedExpr,
        right: &IdedExpr,
    ) -> Option<Term> {
        let (one, other) = (self.term(left), self.term(right));
        let (one, other) = (one?, other?);
        let (mut op, one, other) = match (one, other) {
            (Term::Truth(expr), Term::Value(Operand::Bool(value)))
            | (Term::Value(Operand::Bool(value)), Term::Truth(expr)) => {
                return self.compared_with_literal(node, op, expr, value);
            }
            (Term::Truth(_), _) | (_, Term::Truth(_)) => {
                return self.fault(
                    node,
                    "a condition is compared: write a && b, a || b and !a, and brackets around comparisons",
                );
            }
            (Term::Value(one), Term::Value(other)) => (op, one, other),
            (term @ (Term::List(_) | Term::Set(_)), _)
            | (_, term @ (Term::List(_) | Term::Set(_))) => {
                let what = describe(&term);
                return self.fault(
                    node,
                    format!("{what} is compared as a whole: compare items, or write … in LIST"),
                );
            }
            (term, Term::Value(_)) | (_, term) => {
                let what = describe(&term);
                return self.fault(node, format!("{what} cannot be compared"));
            }
        };
        if one.ty() != other.ty() {
            let (first, second) = (one.ty(), other.ty());
            let help = match (&one, &other) {
                (_, Operand::Str(_)) if first == Type::Time => ": write timestamp(\"…\")",
                (Operand::Str(_), _) if second == Type::Time => ": write timestamp(\"…\")",
                (_, Operand::Str(text)) | (Operand::Str(text), _)
                    if text.parse::<i64>().is_ok() =>
                {
                    ": write the number without quotes"
                }
                _ => "",
            };
            return self.fault(
                node,
                format!("{one} is {first}, but {other} is {second}{help}"),
            );
        }
        let (one, other) = if one.is_literal() {
            op = op.mirrored();
            (other, one)
        } else {
            (one, other)
        };
        if one.is_literal() {
            return Some(Term::Truth(Expr::Const(match (&one, &other) {
                // Both were literals: the sides have been exchanged, and the sign with them.
                (Operand::Str(one), Operand::Str(other)) => op.holds(one, other),
                (Operand::Int(one), Operand::Int(other))
                | (Operand::Time(one), Operand::Time(other)) => op.holds(one, other),
                (Operand::Bool(one), Operand::Bool(other)) => op.holds(one, other),
                _ => return self.fault(node, "two literals are compared"),
            })));
        }
        if let Operand::Bool(value) = other {
            return self.compared_with_literal(node, op, Expr::Bool(one), value);
        }
        if one.ty() == Type::Bool && !matches!(op, Compare::Eq | Compare::Ne) {
            return self.fault(node, "conditions have no order: use == or !=");
        }
        if let (Compare::Eq | Compare::Ne, Operand::Str(text)) = (op, &other)
            && let Err(message) = literal::fits(&one, text)
        {
            return self.fault(right, message);
        }
        Some(Term::Truth(Expr::Compare {
            op,
            left: one,
            right: other,
        }))
    }

    /// `condition == true` and its like.
    fn compared_with_literal(
        &mut self,
        node: &IdedExpr,
        op: Compare,
        expr: Expr,
        value: bool,
    ) -> Option<Term> {
        match (op, value) {
            (Compare::Eq, true) | (Compare::Ne, false) => Some(Term::Truth(expr)),
            (Compare::Eq, false) | (Compare::Ne, true) => Some(Term::Truth(not(expr))),
            _ => self.fault(node, "conditions have no order: use == or !="),
        }
    }

    fn each(&mut self, node: &IdedExpr, inner: &ComprehensionExpr) -> Option<Term> {
        let step = match &inner.loop_step.expr {
            Node::Call(step) => step,
            _ => return self.fault(node, "only exists and all go over lists"),
        };
        let (quantifier, body) = match (
            &inner.accu_init.expr,
            step.func_name.as_str(),
            step.args.as_slice(),
        ) {
            (Node::Literal(LiteralValue::Boolean(_)), operators::LOGICAL_OR, [_, body]) => {
                (Quantifier::Exists, body)
            }
            (Node::Literal(LiteralValue::Boolean(_)), operators::LOGICAL_AND, [_, body]) => {
                (Quantifier::All, body)
            }
            _ => {
                return self.fault(
                    node,
                    "only exists and all go over lists: map, filter and exists_one are not part of predicates",
                );
            }
        };
        let name = inner.iter_var.clone();
        if name == "lists"
            || FIELDS
                .iter()
                .any(|field| field.name.split('.').next() == Some(name.as_str()))
        {
            return self.fault(
                node,
                format!("{name} is the name of a field or of lists: give the item another name"),
            );
        }
        match self.term(&inner.iter_range)? {
            Term::List(list) => {
                if self
                    .items
                    .iter()
                    .any(|(_, item)| matches!(item, Item::Of(_)))
                {
                    return self.fault(
                        node,
                        "exists or all over a field stands inside another: only one is taken",
                    );
                }
                self.items.push((name, Item::Of(list)));
                let body = self.truth(body);
                self.items.pop();
                Some(Term::Truth(Expr::Each {
                    quantifier,
                    list,
                    body: Box::new(body?),
                }))
            }
            Term::Set(set) => self.unfold(node, quantifier, &name, set, body),
            other => {
                let what = describe(&other);
                self.fault(node, format!("{what} is no list: exists and all need one"))
            }
        }
    }

    /// `exists` or `all` over literals: the body once for each.
    fn unfold(
        &mut self,
        node: &IdedExpr,
        quantifier: Quantifier,
        name: &str,
        set: Set,
        body: &IdedExpr,
    ) -> Option<Term> {
        let literals: Vec<Operand> = match set {
            Set::Str(items) => items.into_iter().map(Operand::Str).collect(),
            Set::Int(items) => items.into_iter().map(Operand::Int).collect(),
        };
        let mut whole = Expr::Const(quantifier == Quantifier::All);
        for literal in literals {
            self.unfolded += 1;
            if self.unfolded > UNFOLD_MAX {
                return self.fault(
                    node,
                    format!(
                        "exists and all over literals unfold to more than {UNFOLD_MAX} conditions"
                    ),
                );
            }
            self.items.push((name.to_owned(), Item::Literal(literal)));
            let one = self.truth(body);
            self.items.pop();
            whole = match quantifier {
                Quantifier::Exists => or(whole, one?),
                Quantifier::All => and(whole, one?),
            };
        }
        Some(Term::Truth(whole))
    }
}

fn compare(function: &str) -> Option<Compare> {
    Some(match function {
        operators::EQUALS => Compare::Eq,
        operators::NOT_EQUALS => Compare::Ne,
        operators::LESS => Compare::Lt,
        operators::LESS_EQUALS => Compare::Le,
        operators::GREATER => Compare::Gt,
        operators::GREATER_EQUALS => Compare::Ge,
        _ => return None,
    })
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

fn describe(term: &Term) -> String {
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
