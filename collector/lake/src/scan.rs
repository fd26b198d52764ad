//! From a predicate to an expression over a table's columns, and what can be
//! said without reading any.

use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Column as ColumnName, ScalarValue};
use datafusion::logical_expr::expr::{InList, Like, ScalarFunction};
use datafusion::logical_expr::{
    Expr as Scan, Operator, ScalarUDF, and, binary_expr, lit, not, or, when,
};
use sumun_policy::Predicate;
use sumun_policy::ir::{Compare, Expr, Operand, Set, TextTest};
use sumun_proto::catalogue::KINDS;
use sumun_proto::v1::Kind;
use sumun_proto::{FieldId, FieldType};

use crate::error::{Error, Result};
use crate::facts::{TOLD_UNKNOWN, told_bit};
use crate::family::{ANCESTORS_UNKNOWN_COLUMN, Family, UNKNOWN_COLUMN, time_type, unknown_bit};
use crate::judge::{Argument, Judge};

/// The predicate as an expression over the table's columns: true exactly where
/// the matcher says that the event matches; false or NULL elsewhere.
///
/// # Errors
/// [`Error::Malformed`] for a pattern that the policy crate would not have let through.
pub fn expression(predicate: &Predicate, family: Family) -> Result<Scan> {
    let mut parts = Vec::new();
    for part in predicate.conjuncts() {
        // What is left of an unknown text may decide that a page is not worth
        // reading, never that a row matches: where the exact expression is
        // true, so is the one without the guard.
        if let Some(hint) = hint(part, family) {
            parts.push(hint);
        }
        parts.push(exact(part, family)?);
    }
    Ok(joined(parts, and).unwrap_or_else(|| lit(true)))
}

/// A part of a predicate, as [`expression`] makes it of the whole.
///
/// # Errors
/// As [`expression`].
pub fn exact(expr: &Expr, family: Family) -> Result<Scan> {
    Ok(match expr {
        Expr::Const(value) => lit(*value),
        Expr::And(parts) => {
            let parts: Result<Vec<_>> = parts.iter().map(|part| exact(part, family)).collect();
            joined(parts?, and).unwrap_or_else(|| lit(true))
        }
        Expr::Or(parts) => {
            let parts: Result<Vec<_>> = parts.iter().map(|part| exact(part, family)).collect();
            joined(parts?, or).unwrap_or_else(|| lit(false))
        }
        Expr::Not(inner) => not(exact(inner, family)?),
        Expr::Bool(Operand::Field(id)) => guarded(*id, family),
        Expr::Has(Operand::Field(id)) => has(*id, family),
        Expr::Text {
            test: TextTest::Suffix,
            value: Operand::Field(path),
            text,
        } if family.has(*path) && name_in(*path, text).is_some() => {
            ends_in(expr, *path, text, family)?
        }
        Expr::Compare { .. } | Expr::In { .. } | Expr::Text { .. } => {
            match plain(expr, &|id| guarded(id, family)) {
                Some(plain) => plain,
                None => judged(expr, family)?,
            }
        }
        _ => judged(expr, family)?,
    })
}

/// The field of a path's last component: a path that was cut at its start still has it.
pub(crate) fn name_of(path: FieldId) -> Option<FieldId> {
    match path {
        FieldId::ProcExePath => Some(FieldId::ProcExeName),
        FieldId::ProcParentExePath => Some(FieldId::ProcParentExeName),
        FieldId::FilePath => Some(FieldId::FileName),
        _ => None,
    }
}

/// That field and the last component that a suffix asks for, where it asks for a whole one.
fn name_in(path: FieldId, suffix: &str) -> Option<(FieldId, &str)> {
    let name = name_of(path)?;
    let (_, wanted) = suffix.rsplit_once('/')?;
    Some((name, wanted))
}

/// `path.endsWith(suffix)`: false also of an unknown path with another last component.
fn ends_in(expr: &Expr, path: FieldId, suffix: &str, family: Family) -> Result<Scan> {
    let whole = plain(expr, &|id| bare(id, family));
    let (Some(whole), Some((name, wanted))) = (whole, name_in(path, suffix)) else {
        return judged(expr, family);
    };
    let other = guarded(name, family).not_eq(lit(wanted));
    // A CASE of branches of known types always builds.
    let cut = when(other, lit(false)).end().map_err(Error::scan("plan"))?;
    when(known(path), whole)
        .otherwise(cut)
        .map_err(Error::scan("plan"))
}

/// What a conjunct allows of its column, without the guards against unknown values.
fn hint(expr: &Expr, family: Family) -> Option<Scan> {
    if let Expr::Matches {
        value: value @ Operand::Field(id),
        pattern,
    } = expr
        && family.has(*id)
    {
        // What a glob starts with tells which pages can hold it.
        let start = Expr::Text {
            test: TextTest::Prefix,
            value: value.clone(),
            text: Some(pattern.start()).filter(|start| !start.is_empty())?,
        };
        return plain(&start, &|id| bare(id, family));
    }
    let (Expr::Compare {
        left: Operand::Field(id),
        ..
    }
    | Expr::In {
        value: Operand::Field(id),
        ..
    }
    | Expr::Text {
        value: Operand::Field(id),
        ..
    }) = expr
    else {
        return None;
    };
    (family.has(*id) && is_guarded(*id)).then(|| plain(expr, &|id| bare(id, family)))?
}

/// Comparisons, `in` and tests of text on whole fields, in the columns' own operators.
fn plain(expr: &Expr, column: &dyn Fn(FieldId) -> Scan) -> Option<Scan> {
    let operand = |operand: &Operand| -> Option<Scan> {
        Some(match operand {
            Operand::Str(text) => lit(text.as_str()),
            Operand::Int(value) => lit(*value),
            Operand::Bool(value) => lit(*value),
            Operand::Time(ns) => time_literal(*ns),
            Operand::Field(id) => column(*id),
            _ => return None,
        })
    };
    Some(match expr {
        Expr::Compare { op, left, right } => {
            let op = match op {
                Compare::Eq => Operator::Eq,
                Compare::Ne => Operator::NotEq,
                Compare::Lt => Operator::Lt,
                Compare::Le => Operator::LtEq,
                Compare::Gt => Operator::Gt,
                Compare::Ge => Operator::GtEq,
            };
            binary_expr(operand(left)?, op, operand(right)?)
        }
        Expr::In { value, set } => {
            let list: Vec<_> = match set {
                Set::Str(set) => set.iter().map(|text| lit(text.as_str())).collect(),
                Set::Int(set) => set.iter().map(|number| lit(*number)).collect(),
                Set::List(_) => return None,
            };
            if list.is_empty() {
                // An absent value is not outside of nothing either.
                return when(operand(value)?.is_not_null(), lit(false)).end().ok();
            }
            Scan::InList(InList::new(Box::new(operand(value)?), list, false))
        }
        Expr::Text { test, value, text } => {
            let escaped = like_escaped(text);
            let pattern = match test {
                TextTest::Prefix => format!("{escaped}%"),
                TextTest::Suffix => format!("%{escaped}"),
                TextTest::Contains => format!("%{escaped}%"),
            };
            Scan::Like(Like::new(
                false,
                Box::new(operand(value)?),
                Box::new(lit(pattern)),
                None,
                false,
            ))
        }
        _ => return None,
    })
}

/// `%`, `_` and the backslash stand for themselves behind a backslash.
fn like_escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '%' | '_' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

fn judged(expr: &Expr, family: Family) -> Result<Scan> {
    let judge = Judge::new(expr, family).map_err(Error::Malformed)?;
    if judge.columns().is_empty() {
        return Ok(lit(ScalarValue::Boolean(judge.nothing())));
    }
    let args = judge
        .columns()
        .iter()
        .map(|argument| {
            let name = match argument {
                Argument::Field(id) => id.info().column,
                Argument::AncestorsPid => "proc_ancestors_pid",
                Argument::AncestorsExecId => "proc_ancestors_exec_id",
                Argument::AncestorsExePath => "proc_ancestors_exe_path",
                Argument::AncestorsUnknown => ANCESTORS_UNKNOWN_COLUMN,
                Argument::Unknown => UNKNOWN_COLUMN,
                Argument::ToldUnknown => TOLD_UNKNOWN,
            };
            named(name)
        })
        .collect();
    let function = Arc::new(ScalarUDF::new_from_impl(judge));
    Ok(Scan::ScalarFunction(ScalarFunction::new_udf(
        function, args,
    )))
}

/// The field's column; a typed NULL where the table has none.
fn bare(id: FieldId, family: Family) -> Scan {
    if family.has(id) {
        return named(id.info().column);
    }
    let ty = match id.info().ty {
        FieldType::Int => DataType::Int64,
        FieldType::Bool => DataType::Boolean,
        FieldType::Time => time_type(),
        FieldType::Str | FieldType::StrList | FieldType::ImageList => DataType::Utf8,
    };
    // A basic type always has a NULL.
    lit(ScalarValue::try_new_null(&ty).unwrap_or(ScalarValue::Null))
}

/// Whether the column can hold what is left of an unknown value.
fn is_guarded(id: FieldId) -> bool {
    id.info().ty == FieldType::Str && unknown_bit(id).is_some()
}

/// The field's column, NULL where the value is unknown.
fn guarded(id: FieldId, family: Family) -> Scan {
    let bare = bare(id, family);
    if !family.has(id) || !is_guarded(id) {
        return bare;
    }
    // A CASE of two branches of known types always builds.
    when(known(id), bare.clone()).end().unwrap_or(bare)
}

fn has(id: FieldId, family: Family) -> Scan {
    if !family.has(id) {
        return lit(false);
    }
    let column = match id.info().ty {
        FieldType::ImageList => named("proc_ancestors_pid"),
        _ => named(id.info().column),
    };
    let there = column.is_not_null();
    let listed = matches!(id.info().ty, FieldType::StrList | FieldType::ImageList);
    if let Some(bit) = told_bit(id) {
        // What is told in part is there; what is not told may be.
        let told = is_zero(named(TOLD_UNKNOWN), bit);
        let told = match unknown_bit(id) {
            Some(_) => and(told, known(id)),
            None => told,
        };
        // A CASE of branches of known types always builds.
        let there = when(there.clone(), lit(true)).when(told, lit(false)).end();
        return there.unwrap_or(lit(ScalarValue::Boolean(None)));
    }
    // What is left of a list is there.
    if listed || unknown_bit(id).is_none() {
        return there;
    }
    when(known(id), there.clone()).end().unwrap_or(there)
}

/// True where the field's bit is not set in `_unknown`.
fn known(id: FieldId) -> Scan {
    let bit = unknown_bit(id).unwrap_or(0);
    or(
        named(UNKNOWN_COLUMN).is_null(),
        is_zero(named(UNKNOWN_COLUMN), bit),
    )
}

fn is_zero(bits: Scan, bit: i64) -> Scan {
    binary_expr(bits, Operator::BitwiseAnd, lit(bit)).eq(lit(0_i64))
}

pub(crate) fn named(column: &str) -> Scan {
    Scan::Column(ColumnName::new_unqualified(column))
}

pub(crate) fn time_literal(ns: i64) -> Scan {
    lit(ScalarValue::TimestampNanosecond(
        Some(ns),
        Some("UTC".into()),
    ))
}

/// Joined in pairs, so that a long list is no deep tree.
fn joined(mut parts: Vec<Scan>, join: fn(Scan, Scan) -> Scan) -> Option<Scan> {
    while parts.len() > 1 {
        let mut pairs = Vec::with_capacity(parts.len().div_ceil(2));
        let mut parts_left = parts.into_iter();
        while let Some(left) = parts_left.next() {
            pairs.push(match parts_left.next() {
                Some(right) => join(left, right),
                None => left,
            });
        }
        parts = pairs;
    }
    parts.pop()
}

/// Rows of which kinds of events the predicate can match, judged from the
/// kinds each field can be present on and from what it says about `kind`.
#[must_use]
pub fn kinds(predicate: &Predicate) -> Vec<Kind> {
    KINDS
        .iter()
        .filter(|(_, kind)| {
            Family::of_kind(*kind)
                .is_some_and(|family| can_match(predicate.expr(), family, Some(*kind)))
        })
        .map(|(_, kind)| *kind)
        .collect()
}

/// Whether the predicate can match a row of the table.
#[must_use]
pub fn can_match_in(predicate: &Predicate, family: Family) -> bool {
    if Family::EVENTS.contains(&family) {
        return kinds(predicate)
            .into_iter()
            .any(|kind| Family::of_kind(kind) == Some(family));
    }
    can_match(predicate.expr(), family, None)
}

fn can_match(expr: &Expr, family: Family, kind: Option<Kind>) -> bool {
    let place = Place { family, kind };
    place.outcomes(expr) & TRUE != 0
}

const TRUE: u8 = 1;
const FALSE: u8 = 2;
const NULL: u8 = 4;

/// Where rows are that the predicate is judged for without reading them.
struct Place {
    family: Family,
    kind: Option<Kind>,
}

impl Place {
    /// The outcomes that are possible.
    fn outcomes(&self, expr: &Expr) -> u8 {
        match expr {
            Expr::Const(true) => TRUE,
            Expr::Const(false) => FALSE,
            Expr::And(parts) => parts
                .iter()
                .fold(TRUE, |all, part| pairs(all, self.outcomes(part), FALSE)),
            Expr::Or(parts) => parts
                .iter()
                .fold(FALSE, |any, part| pairs(any, self.outcomes(part), TRUE)),
            Expr::Not(inner) => {
                let inner = self.outcomes(inner);
                (inner & NULL)
                    | if inner & TRUE != 0 { FALSE } else { 0 }
                    | if inner & FALSE != 0 { TRUE } else { 0 }
            }
            Expr::Has(Operand::Field(id)) if !self.present(*id) => FALSE,
            Expr::Compare {
                op,
                left: Operand::Field(FieldId::Kind),
                right: Operand::Str(text),
            } if self.kind.is_some() => truth(op.holds(self.kind_name(), text.as_str())),
            Expr::In {
                value: Operand::Field(FieldId::Kind),
                set: Set::Str(set),
            } if self.kind.is_some() => truth(set.iter().any(|text| text == self.kind_name())),
            Expr::Compare { left, right, .. } if self.missing(left) || self.missing(right) => NULL,
            Expr::Bool(value)
            | Expr::In { value, .. }
            | Expr::Text { value, .. }
            | Expr::Matches { value, .. }
                if self.missing(value) =>
            {
                NULL
            }
            Expr::InNet { field, .. } | Expr::Capability { field, .. } if !self.present(*field) => {
                NULL
            }
            Expr::ListHas { list, .. } | Expr::Each { list, .. } if !self.present(*list) => NULL,
            _ => TRUE | FALSE | NULL,
        }
    }

    fn kind_name(&self) -> &'static str {
        self.kind.map_or("", sumun_proto::catalogue::kind_name)
    }

    fn missing(&self, operand: &Operand) -> bool {
        match operand {
            Operand::Field(id) | Operand::Count(id) | Operand::Index { list: id, .. } => {
                !self.present(*id)
            }
            Operand::Length(inner) | Operand::Lower(inner) => self.missing(inner),
            _ => false,
        }
    }

    /// Whether the field can be there.
    fn present(&self, id: FieldId) -> bool {
        let info = id.info();
        self.family.has(id)
            && (self.kind.is_none()
                || info.kinds.is_empty()
                || info.kinds.contains(&self.kind_name()))
    }
}

fn truth(value: bool) -> u8 {
    if value { TRUE } else { FALSE }
}

/// All outcomes of `&&` (`winner` FALSE) or `||` (`winner` TRUE) of two sets.
fn pairs(left: u8, right: u8, winner: u8) -> u8 {
    let mut all = 0;
    for a in [TRUE, FALSE, NULL] {
        for b in [TRUE, FALSE, NULL] {
            if left & a == 0 || right & b == 0 {
                continue;
            }
            all |= if a == winner || b == winner {
                winner
            } else if a == NULL || b == NULL {
                NULL
            } else {
                (TRUE | FALSE) & !winner
            };
        }
    }
    all
}

/// Values that the top-level conjuncts allow for a text field: what `==` and `in`
/// leave; `None` if nothing is said.
#[must_use]
pub fn allowed(predicate: &Predicate, id: FieldId) -> Option<Vec<String>> {
    let mut allowed: Option<Vec<String>> = None;
    for part in predicate.conjuncts() {
        let these = match part {
            Expr::Compare {
                op: Compare::Eq,
                left: Operand::Field(field),
                right: Operand::Str(text),
            } if *field == id => vec![text.clone()],
            Expr::In {
                value: Operand::Field(field),
                set: Set::Str(set),
            } if *field == id => set.clone(),
            _ => continue,
        };
        allowed = Some(match allowed {
            None => these,
            Some(known) => known
                .into_iter()
                .filter(|text| these.contains(text))
                .collect(),
        });
    }
    allowed
}
