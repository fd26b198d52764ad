//! `exists` and `all`: over fields, and unfolded over literals.

use cel::common::ast::{ComprehensionExpr, Expr as Node, IdedExpr, LiteralValue, operators};
use sumun_proto::FIELDS;

use crate::check::{Checker, Item, Term, UNFOLD_MAX, describe};
use crate::ir::{Expr, Operand, Quantifier, Set};
use crate::logic::{and, or};

impl Checker<'_> {
    pub(crate) fn each(&mut self, node: &IdedExpr, inner: &ComprehensionExpr) -> Option<Term> {
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
            Set::List(list) if list.len() <= UNFOLD_MAX && list.ty().is_some() => {
                let numbers = list.numbers().iter().copied().map(Operand::Int);
                let texts = list.texts().map(|text| Operand::Str(text.to_owned()));
                numbers.chain(texts).collect()
            }
            Set::List(list) => {
                let (name, count) = (list.name(), list.len());
                return self.fault(
                    node,
                    format!("lists.{name} has {count} items, too many to unfold: exists and all take {UNFOLD_MAX}, a longer list can only stand behind in"),
                );
            }
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
