//! What the columns' own operators cannot say, row by row: patterns, networks, lower case,
//! lengths and everything about lists. The meaning is that of
//! [`sumun_policy::ir`], with NULL for both error and unknown.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, BooleanArray, Int64Array, ListArray, StringArray, TimestampNanosecondArray,
};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::cast::{
    as_boolean_array, as_int64_array, as_list_array, as_string_array, as_timestamp_nanosecond_array,
};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use regex_automata::meta::Regex;
use sumun_policy::ir::{Expr, Operand, Pattern, Quantifier, Set, TextTest};
use sumun_proto::{FieldId, FieldType, text};

use crate::facts::told_bit;
use crate::family::{Family, unknown_bit};
use crate::scan::name_of;

/// A part of a predicate as a function of columns: `sumun_judge(columns…)`.
#[derive(Clone, Debug)]
pub(crate) struct Judge {
    expr: Expr,
    /// The arguments, in order.
    columns: Vec<Argument>,
    /// Compiled, by pattern.
    regexes: Arc<Vec<(Pattern, Regex)>>,
    signature: Signature,
}

/// What an argument of the function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Argument {
    Field(FieldId),
    AncestorsPid,
    AncestorsExecId,
    AncestorsExePath,
    AncestorsUnknown,
    Unknown,
    /// What is unknown of fields that are told.
    ToldUnknown,
}

impl PartialEq for Judge {
    fn eq(&self, other: &Self) -> bool {
        self.expr == other.expr && self.columns == other.columns
    }
}

impl Eq for Judge {}

impl Hash for Judge {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.expr.hash(state);
        self.columns.hash(state);
    }
}

impl Judge {
    /// The function of an expression over a table's columns.
    pub(crate) fn new(expr: &Expr, family: Family) -> std::result::Result<Self, String> {
        let mut fields = Vec::new();
        let mut patterns = Vec::new();
        collect(expr, &mut fields, &mut patterns);
        fields.retain(|id| family.has(*id));
        fields.sort_unstable();
        fields.dedup();
        let mut columns = Vec::new();
        for id in &fields {
            if id.info().ty == FieldType::ImageList {
                columns.extend([
                    Argument::AncestorsPid,
                    Argument::AncestorsExecId,
                    Argument::AncestorsExePath,
                    Argument::AncestorsUnknown,
                ]);
            } else {
                columns.push(Argument::Field(*id));
            }
        }
        if fields.iter().any(|id| unknown_bit(*id).is_some()) {
            columns.push(Argument::Unknown);
        }
        if fields.iter().any(|id| told_bit(*id).is_some()) {
            columns.push(Argument::ToldUnknown);
        }
        let mut regexes = Vec::new();
        for pattern in patterns {
            let regex = pattern.compile()?;
            regexes.push((pattern, regex));
        }
        Ok(Judge {
            expr: expr.clone(),
            columns,
            regexes: Arc::new(regexes),
            signature: Signature::variadic_any(Volatility::Immutable),
        })
    }

    /// The arguments, in order.
    pub(crate) fn columns(&self) -> &[Argument] {
        &self.columns
    }

    /// The outcome where every column is missing.
    pub(crate) fn nothing(&self) -> Option<bool> {
        Row {
            judge: self,
            columns: &[],
            row: 0,
        }
        .outcome(&self.expr, &Item::None)
    }
}

impl ScalarUDFImpl for Judge {
    fn name(&self) -> &'static str {
        "sumun_judge"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        if arrays.len() != self.columns.len() {
            return exec_err!("sumun_judge takes {} columns", self.columns.len());
        }
        let rows = arrays.first().map_or(args.number_rows, |array| array.len());
        let columns = arrays.iter().map(Typed::of).collect::<Result<Vec<_>>>()?;
        let outcomes: BooleanArray = (0..rows)
            .map(|row| {
                Row {
                    judge: self,
                    columns: &columns,
                    row,
                }
                .outcome(&self.expr, &Item::None)
            })
            .collect();
        Ok(ColumnarValue::Array(Arc::new(outcomes)))
    }
}

/// A text without its `lowerAscii()`, and whether it had one.
fn lowered(operand: &Operand) -> (&Operand, bool) {
    match operand {
        Operand::Lower(inner) => (inner, true),
        other => (other, false),
    }
}

fn collect(expr: &Expr, fields: &mut Vec<FieldId>, patterns: &mut Vec<Pattern>) {
    let operand = |operand: &Operand, fields: &mut Vec<FieldId>| {
        let mut at = operand;
        while let Operand::Length(inner) | Operand::Lower(inner) = at {
            at = inner;
        }
        match at {
            Operand::Field(id) | Operand::Count(id) | Operand::Index { list: id, .. } => {
                fields.push(*id);
            }
            _ => {}
        }
    };
    match expr {
        Expr::Const(_) => {}
        Expr::And(parts) | Expr::Or(parts) => {
            for part in parts {
                collect(part, fields, patterns);
            }
        }
        Expr::Not(inner) => collect(inner, fields, patterns),
        Expr::Text { value, text, .. } => {
            operand(value, fields);
            if let (Operand::Field(path), _) = lowered(value)
                && text.contains('/')
            {
                fields.extend(name_of(*path));
            }
        }
        Expr::Bool(value) | Expr::Has(value) | Expr::In { value, .. } => operand(value, fields),
        Expr::Matches { value, pattern } => {
            operand(value, fields);
            if let (Operand::Field(path), _) = lowered(value)
                && pattern.last_names().is_some()
            {
                fields.extend(name_of(*path));
            }
            patterns.push(pattern.clone());
        }
        Expr::Compare { left, right, .. } => {
            operand(left, fields);
            operand(right, fields);
        }
        Expr::InNet { field, .. } | Expr::Capability { field, .. } => fields.push(*field),
        Expr::ListHas { list, value } => {
            fields.push(*list);
            operand(value, fields);
        }
        Expr::Each { list, body, .. } => {
            fields.push(*list);
            collect(body, fields, patterns);
        }
    }
}

/// An array of one of the catalogue's types.
enum Typed<'a> {
    Bool(&'a BooleanArray),
    Int(&'a Int64Array),
    Time(&'a TimestampNanosecondArray),
    Str(&'a StringArray),
    List(&'a ListArray),
}

impl<'a> Typed<'a> {
    fn of(array: &'a ArrayRef) -> Result<Self> {
        Ok(match array.data_type() {
            DataType::Boolean => Typed::Bool(as_boolean_array(array)?),
            DataType::Int64 => Typed::Int(as_int64_array(array)?),
            DataType::Utf8 => Typed::Str(as_string_array(array)?),
            DataType::List(_) => Typed::List(as_list_array(array)?),
            DataType::Timestamp(_, _) => Typed::Time(as_timestamp_nanosecond_array(array)?),
            other => return exec_err!("sumun_judge cannot read {other}"),
        })
    }
}

/// A value that is neither absent nor unknown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Val<'a> {
    Bool(bool),
    /// An integer or a time.
    Int(i64),
    Str(Cow<'a, str>),
}

impl<'a> Val<'a> {
    fn text(text: &'a str) -> Self {
        Val::Str(Cow::Borrowed(text))
    }
}

/// The item of the enclosing `Each`.
enum Item<'a> {
    None,
    /// `None` where it is unknown.
    Text(Option<&'a str>),
    Ancestor {
        pid: Option<i64>,
        exec_id: Option<i64>,
        path: Option<&'a str>,
        /// As `_ancestors_unknown`.
        unknown: i64,
    },
}

struct Row<'a> {
    judge: &'a Judge,
    columns: &'a [Typed<'a>],
    row: usize,
}

impl<'a> Row<'a> {
    fn column(&self, wanted: Argument) -> Option<&'a Typed<'a>> {
        let at = self
            .judge
            .columns
            .iter()
            .position(|known| *known == wanted)?;
        self.columns.get(at)
    }

    fn int(&self, wanted: Argument) -> Option<i64> {
        match self.column(wanted)? {
            Typed::Int(array) => array.is_valid(self.row).then(|| array.value(self.row)),
            _ => None,
        }
    }

    /// Whether the field is unknown, or the list incomplete.
    fn unknown(&self, id: FieldId) -> bool {
        let has = |mask: Argument, bit: i64| self.int(mask).unwrap_or(0) & bit != 0;
        unknown_bit(id).is_some_and(|bit| has(Argument::Unknown, bit))
            || told_bit(id).is_some_and(|bit| has(Argument::ToldUnknown, bit))
    }

    /// The items of a list.
    fn list(&self, wanted: Argument) -> Option<(&'a ArrayRef, Range<usize>)> {
        match self.column(wanted)? {
            Typed::List(array) if array.is_valid(self.row) => {
                let offsets = array.value_offsets();
                let at = |index: usize| usize::try_from(offsets[index]).ok();
                Some((array.values(), at(self.row)?..at(self.row + 1)?))
            }
            _ => None,
        }
    }

    fn texts(&self, list: FieldId) -> Option<Texts<'a>> {
        let (items, range) = self.list(Argument::Field(list))?;
        let cut = self.unknown(list);
        Some(Texts {
            items: as_string_array(items).ok()?,
            known: range.len() - usize::from(cut && !range.is_empty()),
            range,
            cut,
        })
    }

    fn field(&self, id: FieldId) -> Option<Val<'a>> {
        if self.unknown(id) {
            return None;
        }
        let row = self.row;
        match self.column(Argument::Field(id))? {
            Typed::Bool(array) => array.is_valid(row).then(|| Val::Bool(array.value(row))),
            Typed::Int(array) => array.is_valid(row).then(|| Val::Int(array.value(row))),
            Typed::Time(array) => array.is_valid(row).then(|| Val::Int(array.value(row))),
            Typed::Str(array) => array.is_valid(row).then(|| Val::text(array.value(row))),
            Typed::List(_) => None,
        }
    }

    fn value<'v>(&'v self, operand: &'v Operand, item: &Item<'v>) -> Option<Val<'v>> {
        Some(match operand {
            Operand::Str(text) => Val::text(text),
            Operand::Int(value) | Operand::Time(value) => Val::Int(*value),
            Operand::Bool(value) => Val::Bool(*value),
            Operand::Field(id) => self.field(*id)?,
            Operand::Index { list, index } => Val::text(self.texts(*list)?.get(*index as usize)?),
            Operand::Lower(inner) => match self.value(inner, item)? {
                Val::Str(text) => Val::Str(text::lower(text)),
                _ => return None,
            },
            Operand::Length(inner) => match self.value(inner, item)? {
                Val::Str(text) => Val::Int(i64::try_from(text.chars().count()).ok()?),
                _ => return None,
            },
            Operand::Count(list) => {
                let texts = self.texts(*list)?;
                if texts.cut {
                    return None;
                }
                Val::Int(i64::try_from(texts.range.len()).ok()?)
            }
            Operand::Element => match item {
                Item::Text(text) => Val::text((*text)?),
                _ => return None,
            },
            Operand::Ancestor(id) => {
                let Item::Ancestor {
                    pid,
                    exec_id,
                    path,
                    unknown,
                } = item
                else {
                    return None;
                };
                match id {
                    FieldId::ProcPid => Val::Int((*pid)?),
                    FieldId::ProcExecId => Val::Int((*exec_id)?),
                    FieldId::ProcExePath if *unknown == 0 => Val::text((*path)?),
                    FieldId::ProcExeName if *unknown < 2 => Val::text(text::file_name((*path)?)),
                    _ => return None,
                }
            }
        })
    }

    fn outcome(&self, expr: &Expr, item: &Item<'_>) -> Option<bool> {
        match expr {
            Expr::Const(value) => Some(*value),
            Expr::And(parts) => all(parts.iter().map(|part| self.outcome(part, item))),
            Expr::Or(parts) => any(parts.iter().map(|part| self.outcome(part, item))),
            Expr::Not(inner) => self.outcome(inner, item).map(|outcome| !outcome),
            Expr::Bool(value) => match self.value(value, item)? {
                Val::Bool(value) => Some(value),
                _ => None,
            },
            Expr::Has(operand) => self.has(operand, item),
            Expr::Compare { op, left, right } => {
                let left = self.value(left, item)?;
                let right = self.value(right, item)?;
                Some(op.holds(&left, &right))
            }
            Expr::In { value, set } => match (self.value(value, item)?, set) {
                (Val::Str(text), Set::Str(set)) => Some(
                    set.binary_search_by(|known| known.as_str().cmp(&text))
                        .is_ok(),
                ),
                (Val::Int(number), Set::Int(set)) => Some(set.binary_search(&number).is_ok()),
                (Val::Str(text), Set::List(list)) => list.has_text(&text),
                (Val::Int(number), Set::List(list)) => list.has_number(number),
                _ => None,
            },
            Expr::Text { test, value, text } => {
                let value = match self.value(value, item) {
                    Some(Val::Str(value)) => value,
                    Some(_) => return None,
                    None if *test == TextTest::Suffix => {
                        let (_, wanted) = text.rsplit_once('/')?;
                        return self.has_another_name(value, &[wanted]);
                    }
                    None => return None,
                };
                Some(match test {
                    TextTest::Prefix => value.starts_with(text.as_str()),
                    TextTest::Suffix => value.ends_with(text.as_str()),
                    TextTest::Contains => value.contains(text.as_str()),
                })
            }
            Expr::Matches { value, pattern } => {
                let regexes = &self.judge.regexes;
                let (_, regex) = regexes.iter().find(|(known, _)| known == pattern)?;
                match self.value(value, item) {
                    Some(Val::Str(value)) => Some(regex.is_match(&*value)),
                    Some(_) => None,
                    None => self.has_another_name(value, &pattern.last_names()?),
                }
            }
            Expr::InNet { field, net } => match self.field(*field)? {
                Val::Str(ip) => Some(net.contains(&ip.parse::<IpAddr>().ok()?)),
                _ => None,
            },
            Expr::Capability { field, number } => match self.field(*field)? {
                Val::Int(set) => Some(set >> number & 1 == 1),
                _ => None,
            },
            Expr::ListHas { list, value } => {
                let texts = self.texts(*list)?;
                let Val::Str(value) = self.value(value, item)? else {
                    return None;
                };
                let found = (0..texts.known).any(|at| texts.get(at) == Some(&*value));
                (found || !texts.cut).then_some(found)
            }
            Expr::Each {
                quantifier,
                list,
                body,
            } => {
                let outcomes = if *list == FieldId::ProcAncestors {
                    self.each_ancestor(body)?
                } else {
                    self.each_text(*list, body)?
                };
                let outcomes = outcomes.into_iter();
                match quantifier {
                    Quantifier::Exists => any(outcomes),
                    Quantifier::All => all(outcomes),
                }
            }
        }
    }

    /// False for an unknown path whose last component, which it still has, is none of these.
    fn has_another_name(&self, operand: &Operand, names: &[impl AsRef<str>]) -> Option<bool> {
        let (Operand::Field(path), in_lower_case) = lowered(operand) else {
            return None;
        };
        let name = name_of(*path)?;
        if !self.unknown(*path) {
            return None;
        }
        let Val::Str(name) = self.field(name)? else {
            return None;
        };
        let name = if in_lower_case {
            text::lower(name)
        } else {
            name
        };
        let other = names.iter().all(|wanted| name != wanted.as_ref());
        other.then_some(false)
    }

    fn has(&self, operand: &Operand, item: &Item<'_>) -> Option<bool> {
        match operand {
            Operand::Field(id) if id.info().ty == FieldType::ImageList => {
                Some(self.list(Argument::AncestorsPid).is_some())
            }
            // What is left of a list is there.
            Operand::Field(id) if id.info().ty == FieldType::StrList => {
                let there = self.list(Argument::Field(*id)).is_some();
                (there || told_bit(*id).is_none() || !self.unknown(*id)).then_some(there)
            }
            Operand::Field(id) => (!self.unknown(*id)).then(|| self.field(*id).is_some()),
            Operand::Ancestor(id) => {
                let Item::Ancestor { path, unknown, .. } = item else {
                    return None;
                };
                match id {
                    FieldId::ProcExePath => (*unknown == 0).then_some(path.is_some()),
                    FieldId::ProcExeName => (*unknown < 2).then_some(path.is_some()),
                    _ => Some(true),
                }
            }
            _ => Some(self.value(operand, item).is_some()),
        }
    }

    /// Outcomes of the items of a list of text; one more where it is incomplete.
    fn each_text(&self, list: FieldId, body: &Expr) -> Option<Vec<Option<bool>>> {
        let texts = self.texts(list)?;
        let mut outcomes: Vec<_> = (0..texts.range.len())
            .map(|at| self.outcome(body, &Item::Text(texts.get(at))))
            .collect();
        if texts.cut {
            outcomes.push(None);
        }
        Some(outcomes)
    }

    fn each_ancestor(&self, body: &Expr) -> Option<Vec<Option<bool>>> {
        let (pids, pid_at) = self.list(Argument::AncestorsPid)?;
        let (exec_ids, exec_id_at) = self.list(Argument::AncestorsExecId)?;
        let (paths, path_at) = self.list(Argument::AncestorsExePath)?;
        let marks = self.list(Argument::AncestorsUnknown);
        let pids = as_int64_array(pids).ok()?;
        let exec_ids = as_int64_array(exec_ids).ok()?;
        let paths = as_string_array(paths).ok()?;
        let mut outcomes = Vec::with_capacity(pid_at.len() + 1);
        for ((pid, exec_id), path) in pid_at.zip(exec_id_at).zip(path_at) {
            let unknown = match &marks {
                Some((marks, at)) => {
                    let marks = as_int64_array(marks).ok()?;
                    marks.value(at.start + outcomes.len())
                }
                None => 0,
            };
            let item = Item::Ancestor {
                pid: pids.is_valid(pid).then(|| pids.value(pid)),
                exec_id: exec_ids.is_valid(exec_id).then(|| exec_ids.value(exec_id)),
                path: paths.is_valid(path).then(|| paths.value(path)),
                unknown,
            };
            outcomes.push(self.outcome(body, &item));
        }
        if self.unknown(FieldId::ProcAncestors) {
            outcomes.push(None);
        }
        Some(outcomes)
    }
}

/// A list of text.
struct Texts<'a> {
    items: &'a StringArray,
    range: Range<usize>,
    /// How many of its first items are known.
    known: usize,
    /// Whether its end is missing.
    cut: bool,
}

impl<'a> Texts<'a> {
    /// The item, if there is one and it is known.
    fn get(&self, index: usize) -> Option<&'a str> {
        (index < self.known).then(|| self.items.value(self.range.start + index))
    }
}

/// SQL's AND.
fn all(outcomes: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut whole = Some(true);
    for outcome in outcomes {
        match outcome {
            Some(false) => return Some(false),
            Some(true) => {}
            None => whole = None,
        }
    }
    whole
}

/// SQL's OR.
fn any(outcomes: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut whole = Some(false);
    for outcome in outcomes {
        match outcome {
            Some(true) => return Some(true),
            Some(false) => {}
            None => whole = None,
        }
    }
    whole
}
