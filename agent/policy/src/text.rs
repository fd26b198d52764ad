//! Functions of text: tests against a literal or a pattern, and lower case.

use cel::common::ast::IdedExpr;
use sumun_proto::FieldId;

use crate::check::{Checker, Term};
use crate::glob::{Glob, Shape};
use crate::ir::{Compare, Expr, Operand, Pattern, Set, TextTest, Type};
use crate::literal;

impl Checker<'_> {
    pub(crate) fn text_test(
        &mut self,
        test: TextTest,
        target: &IdedExpr,
        text: &IdedExpr,
    ) -> Option<Term> {
        let name = match test {
            TextTest::Prefix => "startsWith",
            TextTest::Suffix => "endsWith",
            TextTest::Contains => "contains",
        };
        let value = self.text(target, name);
        let literal = self.text_literal(text, name);
        let (value, literal) = (value?, literal?);
        let capital = literal::capital(&literal);
        if let Err(message) = literal::lowered(&value, capital, &format!("{literal:?}")) {
            return self.fault(text, message);
        }
        Some(Term::Truth(Expr::Text {
            test,
            value,
            text: literal,
        }))
    }

    pub(crate) fn matches(&mut self, target: &IdedExpr, pattern: &IdedExpr) -> Option<Term> {
        let value = self.text(target, "matches");
        let written = self.text_literal(pattern, "matches")?;
        if let Err(message) = literal::regex(&written) {
            return self.fault(pattern, message);
        }
        let value = value?;
        let capital = literal::regex_capital(&written);
        if let Err(message) = literal::lowered(&value, capital, "a regular expression") {
            return self.fault(pattern, message);
        }
        Some(Term::Truth(Expr::Matches {
            value,
            pattern: Pattern::Regex(written),
        }))
    }

    /// `value.glob(pattern)`. What plainer tests say as well becomes one of those.
    pub(crate) fn glob(&mut self, target: &IdedExpr, pattern: &IdedExpr) -> Option<Term> {
        let value = self.text(target, "glob");
        let written = self.text_literal(pattern, "glob")?;
        let glob = match Glob::parse(&written).and_then(|glob| glob.regex().map(|_| glob)) {
            Ok(glob) => glob,
            Err(message) => return self.fault(pattern, message),
        };
        let value = value?;
        if let Err(message) = literal::lowered(&value, glob.capital(), "a glob") {
            return self.fault(pattern, message);
        }
        let shapes: Vec<Shape> = glob.shapes().collect();
        if let Some(message) = doubt(&value, &written, &glob) {
            self.warn(pattern, message);
        }
        let whole: Option<Vec<String>> = shapes
            .iter()
            .map(|shape| match shape {
                Shape::Whole(text) => Some(text.clone()),
                _ => None,
            })
            .collect();
        if let Some(texts) = whole {
            for text in &texts {
                if let Err(message) = literal::fits(&value, text) {
                    return self.fault(pattern, message);
                }
            }
            let mut set = Set::Str(texts);
            set.tidy();
            return Some(Term::Truth(match set {
                Set::Str(mut texts) if texts.len() == 1 => Expr::Compare {
                    op: Compare::Eq,
                    left: value,
                    right: Operand::Str(texts.remove(0)),
                },
                set => Expr::In { value, set },
            }));
        }
        Some(Term::Truth(match shapes.as_slice() {
            [Shape::Below(start)] => Expr::Text {
                test: TextTest::Prefix,
                value,
                text: start.clone(),
            },
            _ => Expr::Matches {
                value,
                pattern: Pattern::Glob(written),
            },
        }))
    }

    pub(crate) fn lower_ascii(&mut self, target: &IdedExpr) -> Option<Term> {
        let operand = self.value(target, "a string")?;
        if operand.ty() != Type::Str {
            let ty = operand.ty();
            return self.fault(
                target,
                format!("{operand} is {ty}: lowerAscii is for strings"),
            );
        }
        Some(Term::Value(match operand {
            Operand::Str(text) => Operand::Str(text.to_ascii_lowercase()),
            lowered @ Operand::Lower(_) => lowered,
            Operand::Field(field @ (FieldId::Kind | FieldId::NetSrcIp | FieldId::NetDstIp)) => {
                let name = field.info().name;
                return self.fault(
                    target,
                    format!("{name} has no upper-case letters: take lowerAscii() out"),
                );
            }
            other => Operand::Lower(Box::new(other)),
        }))
    }
}

/// Why a glob is probably not what was meant, and what to write.
fn doubt(value: &Operand, written: &str, glob: &Glob) -> Option<String> {
    let shapes: Vec<Shape> = glob.shapes().collect();
    let at_root = matches!(
        value,
        Operand::Field(
            FieldId::FilePath
                | FieldId::FileNewPath
                | FieldId::NetDstPath
                | FieldId::ProcExePath
                | FieldId::ProcParentExePath
                | FieldId::ProcCwd
        ) | Operand::Ancestor(FieldId::ProcExePath)
    );
    let address = matches!(value, Operand::Field(FieldId::NetSrcIp | FieldId::NetDstIp));
    if shapes
        .iter()
        .any(|shape| *shape == Shape::Below(String::new()))
    {
        let field = matches!(value, Operand::Field(_) | Operand::Ancestor(_));
        let instead = if field {
            format!(": write has({value})")
        } else {
            String::new()
        };
        return Some(format!(
            "the glob {written:?} matches every value that is there{instead}"
        ));
    }
    match shapes.as_slice() {
        [Shape::Whole(text)] => {
            return Some(format!(
                "the glob {written:?} has no wildcard: write {value} == {}",
                Operand::Str(text.clone())
            ));
        }
        _ if shapes.iter().all(|shape| matches!(shape, Shape::Whole(_))) => {
            return Some(format!(
                "the glob {written:?} has no wildcard but braces: write {value} in [\"…\", \"…\"]"
            ));
        }
        _ => {}
    }
    if address {
        return Some(format!(
            "a glob of an address is judged as text: write cidr(\"…\").containsIP({value})"
        ));
    }
    if at_root && written.ends_with('/') {
        return Some(format!(
            "the glob {written:?} ends in /, which no path below the root does: write {written}** for everything below"
        ));
    }
    if at_root && !glob.is_rooted() {
        return Some(format!(
            "the glob {written:?} stands for the whole path, which starts with /: write **/ in front to match at any depth"
        ));
    }
    None
}
