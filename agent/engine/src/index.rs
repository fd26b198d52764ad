//! Which rules of a kind can match an event, by the name of its executable.

use std::collections::HashMap;

use sumun_policy::Predicate;
use sumun_policy::ir::{Compare, Expr, Operand, Set};
use sumun_proto::{FieldId, Value, View};

/// Rules of one kind. A rule that asks for certain names of executables is
/// looked at only when the event has one of them.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Looked at on every event.
    always: Vec<usize>,
    /// Looked at on events whose `proc.exe.name` is the key.
    by_name: HashMap<Box<str>, Vec<usize>>,
    /// All rules in `by_name`, for an event whose name is unknown.
    named: Vec<usize>,
}

impl Index {
    pub(crate) fn new<'a>(rules: impl Iterator<Item = (usize, &'a Predicate)>) -> Self {
        let mut index = Self::default();
        for (number, predicate) in rules {
            match names(predicate) {
                Some(names) => {
                    for name in names {
                        index.by_name.entry(name.into()).or_default().push(number);
                    }
                    index.named.push(number);
                }
                None => index.always.push(number),
            }
        }
        index
    }

    /// Calls `judge` with each rule that could match, each once.
    pub(crate) fn candidates(&self, view: &View<'_>, mut judge: impl FnMut(usize)) {
        for number in &self.always {
            judge(*number);
        }
        if self.named.is_empty() {
            return;
        }
        let named = match view.get(FieldId::ProcExeName) {
            Value::Str(name) => self.by_name.get(&*name).map_or(&[][..], Vec::as_slice),
            Value::Unknown => &self.named,
            _ => &[],
        };
        for number in named {
            judge(*number);
        }
    }
}

/// The names outside of which the predicate is false or an error.
fn names(predicate: &Predicate) -> Option<Vec<&str>> {
    predicate.conjuncts().iter().find_map(|part| match part {
        Expr::Compare {
            op: Compare::Eq,
            left: Operand::Field(FieldId::ProcExeName),
            right: Operand::Str(name),
        } => Some(vec![name.as_str()]),
        Expr::In {
            value: Operand::Field(FieldId::ProcExeName),
            set: Set::Str(items),
        } => Some(items.iter().map(String::as_str).collect()),
        _ => None,
    })
}
