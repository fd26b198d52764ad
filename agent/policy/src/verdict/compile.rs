//! From a predicate to a formula of questions that the kernel can answer, or to the condition
//! that it cannot judge.

use sumun_abi::event::file::{
    ACCESS_APPEND, ACCESS_READ, ACCESS_WRITE, FILE_DELETED, FILE_IN_IMAGE, FILE_NOT_IN_IMAGE,
    OPEN_CREATED, OPEN_TRUNCATE,
};
use sumun_proto::v1::Kind;
use sumun_proto::{FieldId, text};

use super::formula::{Formula, Whose};
use super::scope::{Scope, is_scope, negated};
use super::{Id, RESULT_ZERO, TEXT_MAX, TEXTS_MAX, Texts, net};
use crate::condition::{is_plain, kind_condition};
use crate::glob::{Glob, Shape};
use crate::ir::{Compare, Expr, Operand, Pattern, Predicate, Quantifier, Set, TextTest, Type};
use crate::narrow::{can_be_read, on_kind};

/// Longest condition in a reason, in characters.
const SHOWN_MAX: usize = 160;

const TOO_LONG: &str = "the list is longer than the 8,192 items that the kernel has room for";
const _: () = assert!(TEXTS_MAX == 8192);

/// A condition that only the agent can judge.
#[derive(Debug)]
pub(super) struct Beyond {
    condition: String,
    why: &'static str,
}

impl std::fmt::Display for Beyond {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (text, cut) = match self.condition.char_indices().nth(SHOWN_MAX) {
            Some((end, _)) => (&self.condition[..end], "…"),
            None => (self.condition.as_str(), ""),
        };
        write!(f, "{text}{cut}")?;
        match self.why {
            "" => Ok(()),
            why => write!(f, " ({why})"),
        }
    }
}

/// A formula that is true of an event of the kind exactly if the predicate is true for certain.
pub(super) fn compile(predicate: &Predicate, kind: Kind) -> Result<Formula, Beyond> {
    formula(predicate.expr(), true, kind)
}

/// The same for an expression being true, or false if not `positive`. An error is neither.
fn formula(expr: &Expr, positive: bool, kind: Kind) -> Result<Formula, Beyond> {
    if is_scope(expr) {
        let asked = match positive {
            true => expr.clone(),
            false => negated(expr),
        };
        return Ok(Formula::Scope {
            scope: Scope {
                asked: Predicate::new(asked),
                presumed: false,
            },
            yes: true,
        });
    }
    match expr {
        Expr::Const(value) => Ok(Formula::Const(*value == positive)),
        Expr::Not(inner) => formula(inner, !positive, kind),
        Expr::And(parts) => join(parts, positive, !positive, kind),
        Expr::Or(parts) => join(parts, positive, positive, kind),
        Expr::Has(Operand::Field(field))
            if !on_kind(*field, kind) || is_of_denied(*field, kind) =>
        {
            Ok(Formula::Const(!positive))
        }
        Expr::Compare {
            left: Operand::Field(field),
            ..
        }
        | Expr::Compare {
            right: Operand::Field(field),
            ..
        }
        | Expr::In {
            value: Operand::Field(field),
            ..
        } if is_of_denied(*field, kind) => Ok(Formula::Const(false)),
        // Absent is neither, so that what is not true is not false.
        Expr::Bool(Operand::Field(FieldId::ProcExeInImage)) => match kind {
            Kind::Exec => {
                let asked = u32::from(positive);
                Ok(Formula::number(Id::InImage, vec![(asked, asked)]))
            }
            _ => Err(Beyond {
                condition: "proc.exe.in_image".into(),
                why: "the kernel knows it when the program is executed",
            }),
        },
        // As above: each answer is a bit of its own.
        Expr::Bool(Operand::Field(FieldId::FileInImage)) if kind == Kind::MapExec => {
            let bit = match positive {
                true => FILE_IN_IMAGE,
                false => FILE_NOT_IN_IMAGE,
            };
            Ok(Formula::Flag { bit, yes: true })
        }
        Expr::Bool(Operand::Field(FieldId::FileDeleted)) if kind == Kind::MapExec => {
            Ok(Formula::Flag {
                bit: FILE_DELETED,
                yes: positive,
            })
        }
        atom => {
            if let Some(holds) = kind_condition(atom, kind) {
                return Ok(Formula::Const(holds == positive));
            }
            if !can_be_read(atom, kind) {
                return Ok(Formula::Const(false));
            }
            let formula = condition(atom).map_err(|why| Beyond {
                condition: Predicate::new(atom.clone()).to_string(),
                why,
            })?;
            Ok(match positive {
                true => formula,
                false => formula.not(),
            })
        }
    }
}

/// An open or exec that the kernel judges here has succeeded: a result has only one that was denied,
/// which leaves no record in the kernel, and one that failed by itself, which the agent judges.
fn is_of_denied(field: FieldId, kind: Kind) -> bool {
    field == FieldId::Result && matches!(kind, Kind::Exec | Kind::Open)
}

/// All parts, or with `or` one of them.
fn join(parts: &[Expr], positive: bool, or: bool, kind: Kind) -> Result<Formula, Beyond> {
    let (mut formulas, mut beyond) = (Vec::with_capacity(parts.len()), None);
    // What asks only whose the process is is one question.
    let (scope, rest): (Vec<&Expr>, Vec<&Expr>) = parts.iter().partition(|part| is_scope(part));
    let scope: Vec<Expr> = scope.into_iter().cloned().collect();
    let scope = match (scope.len(), or == positive) {
        (0, _) => None,
        (1, _) => scope.into_iter().next(),
        (_, true) => Some(Expr::Or(scope)),
        (_, false) => Some(Expr::And(scope)),
    };
    for part in scope.iter().chain(rest) {
        match formula(part, positive, kind) {
            // What the others say does not matter then.
            Ok(Formula::Const(value)) if value == or => return Ok(Formula::Const(or)),
            Ok(formula) => formulas.push(formula),
            Err(found) => {
                beyond.get_or_insert(found);
            }
        }
    }
    match beyond {
        Some(beyond) => Err(beyond),
        None => Ok(match or {
            true => Formula::or(formulas),
            false => Formula::and(formulas),
        }),
    }
}

/// A condition, or why the kernel cannot judge it; the reason may be empty.
fn condition(atom: &Expr) -> Result<Formula, &'static str> {
    match atom {
        Expr::Compare {
            op,
            left: Operand::Field(field),
            right: Operand::Int(number),
        } => {
            let id = id_of(*field).ok_or("")?;
            let number = number.saturating_add(zero_of(id));
            Ok(Formula::number(id, compared(*op, number)))
        }
        Expr::In {
            value: Operand::Field(field),
            set: Set::Int(items),
        } => {
            let id = id_of(*field).ok_or("")?;
            let items = items.iter().map(|item| item.saturating_add(zero_of(id)));
            // A number that no id can be is in no range.
            let ids = items.filter_map(|item| u32::try_from(item).ok());
            Ok(Formula::number(id, ids.map(|id| (id, id)).collect()))
        }
        Expr::In {
            value: Operand::Field(field),
            set: Set::List(list),
        } if list.ty() == Some(Type::Int) => {
            id_of(*field).ok_or("")?;
            Err("of numbers, it knows a list of some dozens at most")
        }
        Expr::Bool(Operand::Field(field)) => {
            net::private(*field).or_else(|| flag(*field)).ok_or("")
        }
        Expr::InNet { field, net } => net::within(*field, *net),
        Expr::Capability { field, number } => match field {
            FieldId::ProcCapEffective => Ok(Formula::number(Id::Capability(*number), vec![(1, 1)])),
            _ => Err("of capabilities, it knows those that are effective at the event"),
        },
        Expr::Compare {
            op: op @ (Compare::Eq | Compare::Ne),
            left: Operand::Field(field),
            right: Operand::Str(literal),
        } if net::is_text(*field) => {
            let one = net::one_of(*field, std::slice::from_ref(literal))?;
            Ok(match op {
                Compare::Eq => one,
                _ => one.not(),
            })
        }
        Expr::In {
            value: Operand::Field(field),
            set: Set::Str(items),
        } if net::is_text(*field) => net::one_of(*field, items),
        Expr::Text {
            test: TextTest::Suffix,
            value: Operand::Field(field @ (FieldId::ProcExePath | FieldId::FilePath)),
            text: suffix,
        } => ends_with(suffix, whose(*field)),
        Expr::Matches {
            value: Operand::Field(field @ (FieldId::ProcExePath | FieldId::FilePath)),
            pattern: Pattern::Glob(glob),
        } => {
            if let Some(names) = Glob::parse(glob).ok().and_then(|glob| glob.at_any_depth()) {
                return named_at_any_depth(&names, whose(*field));
            }
            one_text(atom, true)
        }
        Expr::Each {
            quantifier,
            list: FieldId::ProcAncestors,
            body,
        } => {
            // `all` is that none fails.
            let exists = *quantifier == Quantifier::Exists;
            let texts = texts(body, exists, &ancestor)?;
            Ok(Formula::Texts {
                whose: Whose::Ancestors,
                texts,
                yes: exists,
            })
        }
        Expr::Compare {
            op: Compare::Ne, ..
        } => one_text(atom, false),
        atom => one_text(atom, true),
    }
}

/// A condition on a path or name, or with `yes` false on its negation: the executable's own, or the file's.
fn one_text(atom: &Expr, yes: bool) -> Result<Formula, &'static str> {
    let whose = field_of(atom).map_or(Whose::Own, whose);
    let mut texts = texts(atom, yes, &|operand| match operand {
        Operand::Field(field) => part(*field),
        _ => None,
    })?;
    if whose == Whose::Setting {
        // In the kernel it is a path, in which a dot is no more than a character.
        for text in texts.paths.iter_mut().chain(&mut texts.prefixes) {
            swap_dots(text);
        }
        texts = Texts::default().union(texts);
    }
    Ok(Formula::Texts { whose, texts, yes })
}

/// The name of a setting, from how sysctl(8) writes it to how the kernel does, and back.
fn swap_dots(name: &mut [u8]) {
    for byte in name {
        *byte = match *byte {
            b'.' => b'/',
            b'/' => b'.',
            other => other,
        };
    }
}

/// A path that ends in `/name` has that last component, and more before it.
fn ends_with(suffix: &str, whose: Whose) -> Result<Formula, &'static str> {
    const WHY: &str = "of how a path ends, it knows a whole last name like \"/sh\"";
    let name = suffix.strip_prefix('/').ok_or(WHY)?;
    if name.contains('/') {
        return Err(WHY);
    }
    let name = vec![bytes(name)?];
    Ok(Formula::and(vec![
        is_one_of(whose, name.clone(), Vec::new()),
        is_one_of(whose, Vec::new(), name).not(),
    ]))
}

/// As [`ends_with`] for one of the names, or the path is one of them.
fn named_at_any_depth(names: &[String], whose: Whose) -> Result<Formula, &'static str> {
    let names = names.iter().map(|name| bytes(name));
    let names = sorted(names.collect::<Result<_, _>>()?);
    let whole = is_one_of(whose, Vec::new(), names.clone());
    // Not simply the name: of a path that has lost its start, the agent knows no more.
    Ok(Formula::or(vec![
        Formula::and(vec![
            is_one_of(whose, names, Vec::new()),
            whole.clone().not(),
        ]),
        whole,
    ]))
}

fn is_one_of(whose: Whose, names: Vec<Vec<u8>>, paths: Vec<Vec<u8>>) -> Formula {
    Formula::Texts {
        whose,
        texts: Texts {
            names,
            paths,
            prefixes: Vec::new(),
        },
        yes: true,
    }
}

fn whose(field: FieldId) -> Whose {
    match field {
        FieldId::FilePath
        | FieldId::FileName
        | FieldId::TargetExePath
        | FieldId::TargetExeName
        | FieldId::MountTarget => Whose::File,
        FieldId::FileNewPath => Whose::To,
        FieldId::SysctlName => Whose::Setting,
        FieldId::SysctlValue => Whose::Value,
        _ => Whose::Own,
    }
}

/// A part of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Its last component.
    Name,
    /// All of it.
    Whole,
    /// All of what is no path.
    Text,
}

fn part(field: FieldId) -> Option<Part> {
    match field {
        FieldId::ProcExeName | FieldId::FileName | FieldId::TargetExeName => Some(Part::Name),
        FieldId::ProcExePath
        | FieldId::FilePath
        | FieldId::FileNewPath
        | FieldId::TargetExePath
        | FieldId::MountTarget => Some(Part::Whole),
        FieldId::SysctlName | FieldId::SysctlValue => Some(Part::Text),
        _ => None,
    }
}

fn ancestor(operand: &Operand) -> Option<Part> {
    match operand {
        Operand::Ancestor(field @ (FieldId::ProcExeName | FieldId::ProcExePath)) => part(*field),
        _ => None,
    }
}

/// The field that a condition on a text is about.
fn field_of(atom: &Expr) -> Option<FieldId> {
    match atom {
        Expr::Compare { left: value, .. }
        | Expr::In { value, .. }
        | Expr::Text { value, .. }
        | Expr::Matches { value, .. } => match value {
            Operand::Field(field) => Some(*field),
            _ => None,
        },
        _ => None,
    }
}

/// The texts of which one applies exactly if the expression is true, or false if not `positive`.
fn texts(
    expr: &Expr,
    positive: bool,
    field: &impl Fn(&Operand) -> Option<Part>,
) -> Result<Texts, &'static str> {
    const JOINED: &str = "of an ancestor, it knows conditions joined by ||";
    const TESTS: &str =
        "it knows names and paths by ==, in, /folder/** and **/name, of the process also by !=";
    let known = |operand: &Operand| match operand {
        Operand::Lower(_) => Err("it knows no lower case"),
        other => field(other).ok_or(""),
    };
    match (expr, positive) {
        (Expr::Not(inner), _) => texts(inner, !positive, field),
        (Expr::Or(parts), true) | (Expr::And(parts), false) => {
            let mut whole = Texts::default();
            for part in parts {
                whole = whole.union(texts(part, positive, field)?);
            }
            Ok(whole)
        }
        (
            Expr::Compare {
                op: Compare::Eq,
                left,
                right: Operand::Str(literal),
            },
            true,
        )
        | (
            Expr::Compare {
                op: Compare::Ne,
                left,
                right: Operand::Str(literal),
            },
            false,
        ) => one_of(known(left)?, std::slice::from_ref(literal)),
        (
            Expr::In {
                value,
                set: Set::Str(items),
            },
            true,
        ) => one_of(known(value)?, items),
        (
            Expr::In {
                value,
                set: Set::List(list),
            },
            true,
        ) => {
            let field = known(value)?;
            if list.len() > TEXTS_MAX {
                return Err(TOO_LONG);
            }
            let items: Vec<String> = list.texts().map(str::to_owned).collect();
            one_of(field, &items)
        }
        (
            Expr::Text {
                test: TextTest::Prefix,
                value,
                text,
            },
            true,
        ) => match known(value)? {
            Part::Whole => Ok(Texts {
                prefixes: vec![prefix(text)?],
                ..Texts::default()
            }),
            Part::Text => Ok(Texts {
                prefixes: vec![start(text)?],
                ..Texts::default()
            }),
            Part::Name => Err("it knows what a path starts with, not a name"),
        },
        (
            Expr::Matches {
                value,
                pattern: Pattern::Glob(glob),
            },
            true,
        ) => glob_texts(known(value)?, glob),
        (Expr::And(_), true) | (Expr::Or(_), false) => Err(JOINED),
        (
            Expr::Compare { left: value, .. }
            | Expr::In { value, .. }
            | Expr::Text { value, .. }
            | Expr::Matches { value, .. },
            _,
        ) => {
            known(value)?;
            Err(TESTS)
        }
        _ => Err(""),
    }
}

/// The field equals one of the literals.
fn one_of(part: Part, literals: &[String]) -> Result<Texts, &'static str> {
    if literals.is_empty() {
        return Err("the list is empty");
    }
    let all = literals.iter().map(|literal| bytes(literal));
    let all = sorted(all.collect::<Result<_, _>>()?);
    Ok(match part {
        Part::Name => Texts {
            names: all,
            ..Texts::default()
        },
        Part::Whole | Part::Text => Texts {
            paths: all,
            ..Texts::default()
        },
    })
}

fn glob_texts(part: Part, glob: &str) -> Result<Texts, &'static str> {
    const WHY: &str = "of globs it knows /folder/** and **/name";
    if part == Part::Text {
        return Err("of what is no path, it knows ==, in and startsWith");
    }
    let glob = Glob::parse(glob).map_err(|_| "")?;
    let (mut paths, mut prefixes) = (Vec::new(), Vec::new());
    for shape in glob.shapes() {
        match &shape {
            Shape::Whole(text) => paths.push(bytes(text)?),
            Shape::Below(text) if part == Part::Whole => prefixes.push(prefix(text)?),
            Shape::Below(_) | Shape::From(_) => return Err(WHY),
        }
    }
    let paths = sorted(paths);
    Ok(match part {
        Part::Name => Texts {
            names: paths,
            ..Texts::default()
        },
        // In order, and nothing twice.
        Part::Whole | Part::Text => Texts::default().union(Texts {
            paths,
            prefixes,
            ..Texts::default()
        }),
    })
}

/// The bytes of a text that a name or path can be.
fn bytes(literal: &str) -> Result<Vec<u8>, &'static str> {
    let Some(bytes) = text::to_bytes(literal).filter(|bytes| text::from_bytes(bytes) == literal)
    else {
        return Err("the text is one that no bytes have");
    };
    within_limits(bytes)
}

/// The bytes that every path has in front which starts with the text, and no other path.
fn prefix(text: &str) -> Result<Vec<u8>, &'static str> {
    if matches!(text, "" | "/") {
        return Err("every path starts with it");
    }
    start(text)
}

/// The bytes of what a text starts with.
fn start(text: &str) -> Result<Vec<u8>, &'static str> {
    if !is_plain(text) {
        return Err("the text ends within a character, or is one that no bytes have");
    }
    within_limits(text::to_bytes(text).ok_or("")?)
}

fn within_limits(bytes: Vec<u8>) -> Result<Vec<u8>, &'static str> {
    match bytes.len() {
        0 => Err("the text is empty"),
        // Behind it, a key of the kernel is filled with such bytes.
        _ if bytes.contains(&0) => Err("the text has a byte 0"),
        1..=TEXT_MAX => Ok(bytes),
        _ => Err("the text has more than 254 bytes"),
    }
}

fn sorted(mut texts: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    texts.sort_unstable();
    texts.dedup();
    texts
}

fn id_of(field: FieldId) -> Option<Id> {
    Some(match field {
        FieldId::ProcUid => Id::Uid,
        FieldId::ProcGid => Id::Gid,
        FieldId::ProcEuid => Id::Euid,
        FieldId::ProcEgid => Id::Egid,
        FieldId::NetSrcPort => Id::SrcPort,
        FieldId::NetDstPort => Id::DstPort,
        FieldId::Result => Id::Result,
        _ => return None,
    })
}

/// What a zero is as such a number.
fn zero_of(id: Id) -> i64 {
    match id {
        Id::Result => RESULT_ZERO.into(),
        _ => 0,
    }
}

/// A bit of the file's flags.
fn flag(field: FieldId) -> Option<Formula> {
    let bit = match field {
        FieldId::FileAccessRead => ACCESS_READ,
        FieldId::FileAccessWrite => ACCESS_WRITE,
        FieldId::FileAccessAppend => ACCESS_APPEND,
        FieldId::FileCreate => OPEN_CREATED,
        FieldId::FileTrunc => OPEN_TRUNCATE,
        _ => return None,
    };
    Some(Formula::Flag { bit, yes: true })
}

/// The ids that compare so with a number, in ranges.
fn compared(op: Compare, number: i64) -> Vec<(u32, u32)> {
    let between = |first: i64, last: i64| {
        let last = last.min(u32::MAX.into());
        match (u32::try_from(first.max(0)), u32::try_from(last)) {
            (Ok(first), Ok(last)) if first <= last => vec![(first, last)],
            _ => Vec::new(),
        }
    };
    let below = || {
        number
            .checked_sub(1)
            .map_or_else(Vec::new, |last| between(0, last))
    };
    let above = || {
        let first = number.checked_add(1);
        first.map_or_else(Vec::new, |first| between(first, i64::MAX))
    };
    match op {
        Compare::Eq => between(number, number),
        Compare::Ne => [below(), above()].concat(),
        Compare::Lt => below(),
        Compare::Le => between(0, number),
        Compare::Gt => above(),
        Compare::Ge => between(number, i64::MAX),
    }
}

/// True when the predicate holds for every event of a kind, as far as that is seen.
pub(crate) fn holds_always(predicate: &Predicate, kind: Kind) -> bool {
    always(predicate.expr(), kind) == Some(true)
}

/// What an expression is on every event of a kind whose fields are known.
fn always(expr: &Expr, kind: Kind) -> Option<bool> {
    let joined = |parts: &[Expr], or: bool| {
        let mut whole = Some(!or);
        for part in parts {
            match always(part, kind) {
                Some(value) if value == or => return Some(or),
                Some(_) => {}
                None => whole = None,
            }
        }
        whole
    };
    match expr {
        Expr::Const(value) => Some(*value),
        Expr::Not(inner) => always(inner, kind).map(|value| !value),
        Expr::And(parts) => joined(parts, false),
        Expr::Or(parts) => joined(parts, true).or_else(|| {
            // Two conditions may leave nothing out together.
            let formula = formula(expr, true, kind).ok()?;
            (formula == Formula::Const(true)).then_some(true)
        }),
        Expr::Text {
            test: TextTest::Prefix,
            value: Operand::Field(FieldId::ProcExePath | FieldId::FilePath | FieldId::ProcCwd),
            text,
        } if text == "/" => Some(true),
        Expr::Text {
            value: Operand::Field(field),
            text,
            ..
        } if text.is_empty() && on_kind(*field, kind) => Some(true),
        Expr::Has(Operand::Field(field))
            if on_kind(*field, kind) && field.info().absent.is_empty() =>
        {
            Some(true)
        }
        Expr::Has(Operand::Field(FieldId::ProcExeName | FieldId::ProcExePath)) => Some(true),
        atom => match kind_condition(atom, kind) {
            Some(holds) => Some(holds),
            // An error is not true, and would not be under `!`.
            None if !can_be_read(atom, kind) => None,
            None => match condition(atom).ok()? {
                Formula::Const(value) => Some(value),
                // Whatever it is.
                Formula::Number { ranges, .. } if ranges == [(0, u32::MAX)] => Some(true),
                _ => None,
            },
        },
    }
}
