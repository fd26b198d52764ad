//! The canonical text of a predicate.
//!
//! It parses to an equal predicate without any lists, is one line whatever it
//! compares with, and is what scope records hold.

use std::fmt;

use crate::capability;
use crate::ir::{
    ANCESTOR_FIELDS, Compare, Expr, Operand, Pattern, Predicate, Quantifier, Set, TextTest, Type,
};

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Type::Str => "string",
            Type::Int => "int",
            Type::Bool => "bool",
            Type::Time => "time",
        })
    }
}

impl fmt::Display for Compare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compare::Eq => "==",
            Compare::Ne => "!=",
            Compare::Lt => "<",
            Compare::Le => "<=",
            Compare::Gt => ">",
            Compare::Ge => ">=",
        })
    }
}

impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.expr().fmt(f)
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expr::Const(value) => write!(f, "{value}"),
            Expr::And(parts) => join(f, parts, " && ", |part| matches!(part, Expr::Or(_))),
            Expr::Or(parts) => join(f, parts, " || ", |_| false),
            Expr::Not(inner) => match **inner {
                Expr::And(_)
                | Expr::Or(_)
                | Expr::Compare { .. }
                | Expr::In { .. }
                | Expr::Capability { .. }
                | Expr::ListHas { .. } => write!(f, "!({inner})"),
                _ => write!(f, "!{inner}"),
            },
            Expr::Bool(operand) => operand.fmt(f),
            Expr::Has(operand) => write!(f, "has({operand})"),
            Expr::Compare { op, left, right } => write!(f, "{left} {op} {right}"),
            Expr::In { value, set } => write!(f, "{value} in {set}"),
            Expr::Text { test, value, text } => {
                let name = match test {
                    TextTest::Prefix => "startsWith",
                    TextTest::Suffix => "endsWith",
                    TextTest::Contains => "contains",
                };
                write!(f, "{value}.{name}(")?;
                quoted(f, text)?;
                f.write_str(")")
            }
            Expr::Matches { value, pattern } => {
                let (name, text) = match pattern {
                    Pattern::Regex(text) => ("matches", text),
                    Pattern::Glob(text) => ("glob", text),
                };
                write!(f, "{value}.{name}(")?;
                quoted(f, text)?;
                f.write_str(")")
            }
            Expr::InNet { field, net } => {
                write!(f, "cidr(\"{net}\").containsIP({})", field.info().name)
            }
            Expr::Capability { field, number } => match capability::name(*number) {
                Some(name) => write!(f, "\"{name}\" in {}", field.info().name),
                None => write!(f, "{number} in {}", field.info().name),
            },
            Expr::ListHas { list, value } => write!(f, "{value} in {}", list.info().name),
            Expr::Each {
                quantifier,
                list,
                body,
            } => {
                let name = match quantifier {
                    Quantifier::Exists => "exists",
                    Quantifier::All => "all",
                };
                write!(f, "{}.{name}({ITEM}, {body})", list.info().name)
            }
        }
    }
}

/// The name of the item in canonical text; no field starts with it.
const ITEM: &str = "x";

fn join(
    f: &mut fmt::Formatter<'_>,
    parts: &[Expr],
    operator: &str,
    grouped: impl Fn(&Expr) -> bool,
) -> fmt::Result {
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            f.write_str(operator)?;
        }
        if grouped(part) {
            write!(f, "({part})")?;
        } else {
            write!(f, "{part}")?;
        }
    }
    Ok(())
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operand::Str(text) => quoted(f, text),
            Operand::Int(value) => write!(f, "{value}"),
            Operand::Bool(value) => write!(f, "{value}"),
            Operand::Time(ns) => write!(f, "timestamp(\"{}\")", crate::time::written(*ns)),
            Operand::Field(field) => f.write_str(field.info().name),
            Operand::Index { list, index } => write!(f, "{}[{index}]", list.info().name),
            Operand::Lower(inner) => write!(f, "{inner}.lowerAscii()"),
            Operand::Length(inner) => write!(f, "size({inner})"),
            Operand::Count(list) => write!(f, "size({})", list.info().name),
            Operand::Element => f.write_str(ITEM),
            Operand::Ancestor(field) => {
                let name = ANCESTOR_FIELDS
                    .iter()
                    .find(|(_, id)| id == field)
                    .map_or("", |(name, _)| name);
                write!(f, "{ITEM}.{name}")
            }
        }
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Set::List(list) = self {
            return list.fmt(f);
        }
        f.write_str("[")?;
        match self {
            Set::List(_) => {}
            Set::Str(items) => {
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        f.write_str(", ")?;
                    }
                    quoted(f, item)?;
                }
            }
            Set::Int(items) => {
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        f.write_str(", ")?;
                    }
                    write!(f, "{item}")?;
                }
            }
        }
        f.write_str("]")
    }
}

/// A text literal: every character that is not plain is escaped, so that the
/// canonical text is one line whatever the rule compares with.
fn quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for character in text.chars() {
        match character {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            other if other.is_control() => write!(f, "\\u{:04x}", u32::from(other))?,
            other => write!(f, "{other}")?,
        }
    }
    f.write_str("\"")
}
