//! Operators and functions of predicates.

use cel::common::ast::{CallExpr, Expr as Node, IdedExpr, operators};
use sumun_proto::FieldId;

use crate::capability;
use crate::check::{Checker, Term, describe};
use crate::ir::{Compare, Expr, Operand, Set, TextTest, Type};
use crate::literal;
use crate::logic::{and, not, or};
use crate::problem::{Problem, did_you_mean};

impl Checker<'_> {
    pub(crate) fn call(&mut self, node: &IdedExpr, call: &CallExpr) -> Option<Term> {
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
            ("matches", Some(target), [pattern]) => self.matches(target, pattern),
            ("glob", Some(target), [pattern]) => self.glob(target, pattern),
            ("lowerAscii", Some(target), []) => self.lower_ascii(target),
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
            "glob",
            "lowerAscii",
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
                "lowerAscii" => "()",
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
        if matches!(&list.expr, Node::Ident(name) if name == "lists") {
            return self.list_by_hash(list, index);
        }
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
            // In lower case it has as many.
            Term::Value(Operand::Lower(inner)) => Operand::Length(inner),
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
            Term::Value(Operand::Field(field)) if capability::is_set(field) => {
                self.capability(value, &operand, field)
            }
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
                    (Set::List(list), ty @ (Type::Str | Type::Int))
                        if list.ty().is_none_or(|known| known == ty) =>
                    {
                        Set::List(list)
                    }
                    (Set::List(list), ty) => {
                        let name = list.name();
                        return self.fault(
                            node,
                            format!("{operand} is {ty}, and lists.{name} holds none"),
                        );
                    }
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
                let unfit = match &set {
                    Set::Str(items) => items
                        .iter()
                        .find_map(|item| literal::fits(&operand, item).err()),
                    Set::List(items) => items.unfit(&operand),
                    Set::Int(_) => None,
                };
                if let Some(message) = unfit {
                    return self.fault(list, message);
                }
                let found = match (&operand, &set) {
                    (Operand::Str(text), Set::Str(items)) => Some(items.contains(text)),
                    (Operand::Int(number), Set::Int(items)) => Some(items.contains(number)),
                    (Operand::Str(text), Set::List(items)) => items.has_text(text),
                    (Operand::Int(number), Set::List(items)) => items.has_number(*number),
                    _ => None,
                };
                Some(Term::Truth(match found {
                    Some(found) => Expr::Const(found),
                    None if operand.is_literal() => {
                        return self.fault(node, "of this list, no item is known here");
                    }
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

    /// `"CAP_…" in field`, or the number of one that has no name here.
    fn capability(&mut self, value: &IdedExpr, given: &Operand, field: FieldId) -> Option<Term> {
        let number = match given {
            Operand::Str(name) => capability::number(name),
            Operand::Int(number) => match u8::try_from(*number) {
                Ok(number) if number < 64 => Ok(number),
                _ => Err(format!(
                    "{number} is no capability: they count from 0 to 63"
                )),
            },
            other => Err(format!(
                "{other} stands here, but {} holds capabilities: write one by its name, as \"CAP_SYS_ADMIN\"",
                field.info().name
            )),
        };
        match number {
            Ok(number) => Some(Term::Truth(Expr::Capability { field, number })),
            Err(message) => self.fault(value, message),
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
