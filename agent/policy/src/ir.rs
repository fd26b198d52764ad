//! The checked predicate: small, typed, resolved, and the same for the
//! matcher, the kernel plan and the store scan.
//!
//! # Meaning
//!
//! An expression over one event has one of three outcomes: true, false or
//! error. Reading an absent field is an error; `&&` is false if one side is
//! false, `||` is true if one side is true, whatever the other side is; any
//! other error stays one, also under `!`. An event matches if the whole is true.
//!
//! | `a && b` | true  | false | error |   | <code>a &#124;&#124; b</code> | true | false | error |
//! |----------|-------|-------|-------|---|----------|------|-------|-------|
//! | true     | true  | false | error |   | true     | true | true  | true  |
//! | false    | false | false | false |   | false    | true | false | error |
//! | error    | error | false | error |   | error    | true | error | error |
//!
//! This is SQL's logic with NULL for error. `exists` is `||` and `all` is `&&`
//! over the items, so `exists` over no items is false and `all` is true.
//!
//! A field can also be *unknown*: the event has it, but it was lost or cut
//! off. A test of an unknown value can be true or false, so an expression has a
//! *set* of possible outcomes; each operator is applied to every pair. If only true is
//! possible the event matches, if true is not possible it does not, otherwise it is
//! undecided. So `unknown && false` is false, `unknown && error` cannot match, and
//! `unknown || true` matches. `has` of an unknown field is unknown.
//!
//! A list can be incomplete: its end was cut. Its last item and everything
//! after it are then unknown, its size too. An index at or past the end of a
//! complete list is an error.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use ipnet::IpNet;
use regex_automata::meta::Regex;
use sumun_proto::{FieldId, FieldType};

use crate::check::{Lists, check};
use crate::glob::Glob;
use crate::limits;
use crate::list::{INLINE_BYTES, List};
use crate::literal;
use crate::parse::with_parsed;
use crate::problem::Problem;

/// A boolean expression.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// `true` or `false`.
    Const(bool),
    /// `a && b && …`: two or more, none of them an `And`.
    And(Vec<Expr>),
    /// `a || b || …`: two or more, none of them an `Or`.
    Or(Vec<Expr>),
    /// `!a`, where `a` is not a `Not`.
    Not(Box<Expr>),
    /// A boolean field.
    Bool(Operand),
    /// `has(field)`: the operand is a `Field`, here also of a list of text, or an `Ancestor`.
    Has(Operand),
    /// A comparison of two operands of one type. `left` is never a literal;
    /// order is defined on integers, times and text (by code point).
    Compare {
        /// How they are compared.
        op: Compare,
        /// Not a literal.
        left: Operand,
        /// Of the same type.
        right: Operand,
    },
    /// `value in [literals]`.
    In {
        /// An integer or a text, not a literal.
        value: Operand,
        /// Of the same type.
        set: Set,
    },
    /// `startsWith`, `endsWith` or `contains` of a literal.
    Text {
        /// Which.
        test: TextTest,
        /// A text, not a literal.
        value: Operand,
        /// The literal.
        text: String,
    },
    /// `value.matches(regex)` or `value.glob(glob)`.
    Matches {
        /// A text, not a literal.
        value: Operand,
        /// Checked and within the limits.
        pattern: Pattern,
    },
    /// `cidr(net).containsIP(field)`.
    InNet {
        /// `net.src.ip` or `net.dst.ip`.
        field: FieldId,
        /// Host bits are zero.
        net: IpNet,
    },
    /// `"cap_…" in field`.
    Capability {
        /// A set of capabilities.
        field: FieldId,
        /// Of the capability, below 64.
        number: u8,
    },
    /// `value in list`.
    ListHas {
        /// A list of text.
        list: FieldId,
        /// A text, literals included.
        value: Operand,
    },
    /// `list.exists(x, body)` or `list.all(x, body)`; never nested.
    Each {
        /// Which.
        quantifier: Quantifier,
        /// A list of text, or `proc.ancestors`.
        list: FieldId,
        /// Reads the item as `Element` or `Ancestor`.
        body: Box<Expr>,
    },
}

/// A value in an expression.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// A text literal, in the catalogue's form.
    Str(String),
    /// An integer literal.
    Int(i64),
    /// A boolean literal; only compared with boolean operands that are no literals.
    Bool(bool),
    /// A time literal: nanoseconds since the Unix epoch.
    Time(i64),
    /// A field that is not a list.
    Field(FieldId),
    /// An item of a list of text, from 0.
    Index {
        /// A list of text.
        list: FieldId,
        /// From 0.
        index: u32,
    },
    /// `lowerAscii()` of a text that is neither a literal nor itself one: its ASCII
    /// letters in lower case, all else as it is. Absent and unknown stay so.
    Lower(Box<Operand>),
    /// Number of code points of a text.
    Length(Box<Operand>),
    /// Number of items of a list of text.
    Count(FieldId),
    /// The item of the enclosing `Each` over a list of text.
    Element,
    /// A field of the item of the enclosing `Each` over `proc.ancestors`, named by the
    /// same field of the process: `ProcPid`, `ProcExecId`, `ProcExePath` or `ProcExeName`.
    Ancestor(FieldId),
}

/// Type of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// Text.
    Str,
    /// Integer.
    Int,
    /// Boolean.
    Bool,
    /// Time.
    Time,
}

/// Literals of one type; sorted and without repeats.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Set {
    /// Text.
    Str(Vec<String>),
    /// Integers.
    Int(Vec<i64>),
    /// A list too long to be written out.
    List(Arc<List>),
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compare {
    /// `==`
    Eq,
    /// `!=`
    Ne,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
}

/// A pattern of a text; always judged in linear time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// Found anywhere in the text; in the syntax of `regex-automata`.
    Regex(String),
    /// Stands for the whole text; see [`crate::glob`].
    Glob(String),
}

/// A test of a text against a literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TextTest {
    /// `startsWith`
    Prefix,
    /// `endsWith`
    Suffix,
    /// `contains`
    Contains,
}

/// How an `Each` joins the outcomes of its items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quantifier {
    /// `||`
    Exists,
    /// `&&`
    All,
}

/// A checked predicate. Its `Display` is the canonical text: it parses to
/// an equal predicate, needs no lists, and is what scope records hold. Of a [`List`] it has
/// name and hash only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Predicate {
    expr: Expr,
}

/// The fields of an item of `proc.ancestors`: name and field of the process.
pub const ANCESTOR_FIELDS: &[(&str, FieldId)] = &[
    ("pid", FieldId::ProcPid),
    ("exec_id", FieldId::ProcExecId),
    ("exe.path", FieldId::ProcExePath),
    ("exe.name", FieldId::ProcExeName),
];

impl Predicate {
    /// The predicate that matches every event.
    #[must_use]
    pub fn everything() -> Self {
        Self {
            expr: Expr::Const(true),
        }
    }

    /// Parses and checks what a person wrote, at most [`limits::TEXT_MAX`] bytes.
    ///
    /// # Errors
    /// Every fault with its place; never an empty list.
    pub fn parse(text: &str, lists: &Lists) -> Result<Self, Vec<Problem>> {
        Self::parse_with_warnings(text, lists).map(|(predicate, _)| predicate)
    }

    /// As [`Predicate::parse`], and what in it is taken but probably not meant.
    ///
    /// # Errors
    /// As [`Predicate::parse`].
    pub fn parse_with_warnings(
        text: &str,
        lists: &Lists,
    ) -> Result<(Self, Vec<Problem>), Vec<Problem>> {
        Self::within(text, Some(lists), limits::TEXT_MAX)
    }

    /// Parses a canonical text, as scope records hold it, at most
    /// [`limits::CANONICAL_MAX`] bytes. Items of a [`List`] are not known then: whether one is in it
    /// cannot be decided.
    ///
    /// # Errors
    /// As [`Predicate::parse`].
    pub fn parse_canonical(text: &str) -> Result<Self, Vec<Problem>> {
        Self::within(text, None, limits::CANONICAL_MAX).map(|(predicate, _)| predicate)
    }

    fn within(
        text: &str,
        lists: Option<&Lists>,
        length_max: usize,
    ) -> Result<(Self, Vec<Problem>), Vec<Problem>> {
        let (expr, warnings) = with_parsed(text, length_max, |parsed| check(parsed, lists))?;
        let predicate = Self::new(expr);
        let canonical = predicate.to_string();
        if canonical.len() > limits::CANONICAL_MAX {
            let message = format!(
                "the predicate has {} bytes with its lists filled in, at most {} are taken: split the rule",
                canonical.len(),
                limits::CANONICAL_MAX
            );
            return Err(vec![Problem::at(text, 0, message)]);
        }
        // Whoever reads the canonical text has limits too.
        if let Err(problem) = limits::check(&canonical, limits::CANONICAL_MAX) {
            let message = format!(
                "with its lists filled in, {}: split the rule",
                problem.message
            );
            return Err(vec![Problem::at(text, 0, message)]);
        }
        Ok((predicate, warnings))
    }

    /// Wraps an expression that keeps the invariants written at [`Expr`].
    pub(crate) fn new(expr: Expr) -> Self {
        Self { expr }
    }

    /// The expression.
    #[must_use]
    pub fn expr(&self) -> &Expr {
        &self.expr
    }

    /// The top-level conjuncts: the predicate is their `&&`.
    #[must_use]
    pub fn conjuncts(&self) -> &[Expr] {
        match &self.expr {
            Expr::And(parts) => parts,
            other => std::slice::from_ref(other),
        }
    }

    /// Every field that is read, once each, in catalogue order. Fields of an
    /// item of `proc.ancestors` are not in it, `proc.ancestors` is.
    #[must_use]
    pub fn fields(&self) -> Vec<FieldId> {
        let mut fields = Vec::new();
        self.expr.visit(&mut |field| fields.push(field));
        fields.sort_unstable();
        fields.dedup();
        fields
    }
}

impl Expr {
    /// Calls `seen` with each field that is read.
    pub(crate) fn visit(&self, seen: &mut impl FnMut(FieldId)) {
        match self {
            Expr::Const(_) => {}
            Expr::And(parts) | Expr::Or(parts) => {
                for part in parts {
                    part.visit(seen);
                }
            }
            Expr::Not(inner) => inner.visit(seen),
            Expr::Bool(operand)
            | Expr::Has(operand)
            | Expr::In { value: operand, .. }
            | Expr::Text { value: operand, .. }
            | Expr::Matches { value: operand, .. } => operand.visit(seen),
            Expr::Compare { left, right, .. } => {
                left.visit(seen);
                right.visit(seen);
            }
            Expr::InNet { field, .. } | Expr::Capability { field, .. } => seen(*field),
            Expr::ListHas { list, value } => {
                seen(*list);
                value.visit(seen);
            }
            Expr::Each { list, body, .. } => {
                seen(*list);
                body.visit(seen);
            }
        }
    }
}

impl Operand {
    /// Its type.
    #[must_use]
    pub fn ty(&self) -> Type {
        match self {
            Operand::Str(_) | Operand::Index { .. } | Operand::Element | Operand::Lower(_) => {
                Type::Str
            }
            Operand::Int(_) | Operand::Length(_) | Operand::Count(_) => Type::Int,
            Operand::Bool(_) => Type::Bool,
            Operand::Time(_) => Type::Time,
            Operand::Field(field) | Operand::Ancestor(field) => match field.info().ty {
                FieldType::Int => Type::Int,
                FieldType::Bool => Type::Bool,
                FieldType::Time => Type::Time,
                FieldType::Str | FieldType::StrList | FieldType::ImageList => Type::Str,
            },
        }
    }

    /// True for a literal.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        matches!(
            self,
            Operand::Str(_) | Operand::Int(_) | Operand::Bool(_) | Operand::Time(_)
        )
    }

    fn visit(&self, seen: &mut impl FnMut(FieldId)) {
        match self {
            Operand::Field(field) | Operand::Count(field) => seen(*field),
            Operand::Index { list, .. } => seen(*list),
            Operand::Length(inner) | Operand::Lower(inner) => inner.visit(seen),
            Operand::Str(_)
            | Operand::Int(_)
            | Operand::Bool(_)
            | Operand::Time(_)
            | Operand::Element
            | Operand::Ancestor(_) => {}
        }
    }
}

impl Pattern {
    /// Compiles it within the limits.
    ///
    /// # Errors
    /// Why it is no pattern, or that it is too large.
    pub fn compile(&self) -> Result<Regex, String> {
        match self {
            Pattern::Regex(pattern) => literal::regex(pattern),
            Pattern::Glob(pattern) => Glob::parse(pattern)?.regex(),
        }
    }

    /// The last components that a text has to have one of, if the pattern names them: they
    /// can decide about a path that has lost its start.
    #[must_use]
    pub fn last_names(&self) -> Option<Vec<String>> {
        match self {
            Pattern::Regex(_) => None,
            Pattern::Glob(pattern) => Glob::parse(pattern).ok()?.last_names(),
        }
    }

    /// What every text that matches starts with, as far as that is seen; may be empty.
    #[must_use]
    pub fn start(&self) -> String {
        match self {
            Pattern::Regex(_) => String::new(),
            Pattern::Glob(pattern) => {
                Glob::parse(pattern).map_or_else(|_| String::new(), |glob| glob.start())
            }
        }
    }
}

/// Takes so many bytes, and forgets them.
struct Room(usize);

impl fmt::Write for Room {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 = self.0.checked_sub(text.len()).ok_or(fmt::Error)?;
        Ok(())
    }
}

impl Set {
    /// Sorts it and drops repeats.
    pub(crate) fn tidy(&mut self) {
        match self {
            Set::Str(items) => {
                items.sort_unstable();
                items.dedup();
            }
            Set::Int(items) => {
                items.sort_unstable();
                items.dedup();
            }
            Set::List(_) => {}
        }
    }

    /// The same, packed if its text is too long to be written out.
    pub(crate) fn named(self, name: &str) -> Self {
        if write!(Room(INLINE_BYTES), "{self}").is_ok() {
            return self;
        }
        match List::pack(name, &self) {
            Some(list) => Set::List(Arc::new(list)),
            None => self,
        }
    }
}

impl Compare {
    /// The comparison with its sides exchanged.
    #[must_use]
    pub fn mirrored(self) -> Self {
        match self {
            Compare::Eq | Compare::Ne => self,
            Compare::Lt => Compare::Gt,
            Compare::Le => Compare::Ge,
            Compare::Gt => Compare::Lt,
            Compare::Ge => Compare::Le,
        }
    }

    /// The comparison that is true where this one is false.
    #[must_use]
    pub fn negated(self) -> Self {
        match self {
            Compare::Eq => Compare::Ne,
            Compare::Ne => Compare::Eq,
            Compare::Lt => Compare::Ge,
            Compare::Le => Compare::Gt,
            Compare::Gt => Compare::Le,
            Compare::Ge => Compare::Lt,
        }
    }

    /// Applies it to two values in order.
    #[must_use]
    pub fn holds<T: Ord + ?Sized>(self, left: &T, right: &T) -> bool {
        match self {
            Compare::Eq => left == right,
            Compare::Ne => left != right,
            Compare::Lt => left < right,
            Compare::Le => left <= right,
            Compare::Gt => left > right,
            Compare::Ge => left >= right,
        }
    }
}
