//! What an ask reads of an event, with the matcher's meaning of absent and unknown.

use std::net::IpAddr;

use sumun_proto::view::{ancestor_value, is_first};
use sumun_proto::{FieldId, Value, View, text};

use super::{Key, RANGE_MAX};

/// Something that is read of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// What.
    pub read: Read,
    /// Texts in lower case, as `lowerAscii()` makes them.
    pub lowered: bool,
}

/// See [`Source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Read {
    /// A text or an integer.
    Field(FieldId),
    /// An address, as such.
    Address(FieldId),
    /// An item of a list of text.
    Item(FieldId, u32),
    /// All items of a list of text.
    Items(FieldId),
    /// A field of all ancestors.
    Ancestors(FieldId),
}

/// A value that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed<'a> {
    /// Text.
    Text(&'a [u8]),
    /// Integer.
    Int(i64),
    /// Address.
    Address(IpAddr),
}

impl Source {
    pub(super) fn new(read: Read) -> Self {
        Self {
            read,
            lowered: false,
        }
    }

    /// The source of a list of which only matters whether it is known to its end.
    pub(super) fn unknown_of(list: FieldId) -> Self {
        Self::new(match list {
            FieldId::ProcAncestors => Read::Ancestors(FieldId::ProcPid),
            list => Read::Items(list),
        })
    }

    /// The list that all values come from.
    pub(super) fn list(&self) -> Option<FieldId> {
        match self.read {
            Read::Items(list) => Some(list),
            Read::Ancestors(_) => Some(FieldId::ProcAncestors),
            _ => None,
        }
    }

    /// True if at most one value is read.
    #[must_use]
    pub fn has_one_value(&self) -> bool {
        self.list().is_none()
    }

    /// Calls `probe` with each value that is there. Returns true if there could be others: something
    /// is unknown. It may return as soon as that is known.
    #[must_use]
    pub fn values(&self, view: &View<'_>, mut probe: impl FnMut(Probed<'_>)) -> bool {
        let mut tell = |value: Value<'_>| match value {
            Value::Str(text) if self.lowered => {
                probe(Probed::Text(text::lower(text).as_bytes()));
                false
            }
            Value::Str(text) => {
                probe(Probed::Text(text.as_bytes()));
                false
            }
            Value::Int(number) => {
                probe(Probed::Int(number));
                false
            }
            Value::Unknown => true,
            Value::Absent | Value::Bool(_) | Value::Time(_) | Value::List(_) => false,
        };
        match self.read {
            Read::Field(field) => match view.get(field) {
                Value::Absent => {
                    named_by(field).is_some_and(|path| matches!(view.get(path), Value::Unknown))
                }
                value => tell(value),
            },
            Read::Address(field) => match view.ip(field) {
                Some(address) => {
                    probe(Probed::Address(address));
                    false
                }
                None => matches!(view.get(field), Value::Unknown),
            },
            Read::Item(list, index) => match view.get(list) {
                Value::List(items) => {
                    let index = index as usize;
                    if !items.complete && index + 1 >= items.len() {
                        return true;
                    }
                    items.get(index).is_some_and(|text| tell(Value::Str(text)))
                }
                other => tell(other),
            },
            Read::Items(list) => match view.get(list) {
                Value::List(items) if items.complete => {
                    for text in items.iter() {
                        tell(Value::Str(text));
                    }
                    false
                }
                Value::List(_) | Value::Unknown => true,
                _ => false,
            },
            Read::Ancestors(field) => {
                let mut top = view.image();
                for image in view.ancestors() {
                    if tell(ancestor_value(image, field)) {
                        return true;
                    }
                    top = Some(image);
                }
                !top.is_some_and(is_first)
            }
        }
    }

    /// How likely an event has such a value, guessed: of 1,024. `None` if that is not worth to be asked.
    pub(super) fn chance(&self, key: &Key) -> Option<u32> {
        let halved = |of: u32, times: usize| of >> times.min(31);
        let chance = match key {
            Key::Text(_) => match self.read {
                Read::Field(field) if is_path(field) => 2,
                Read::Field(field) if named_by(field).is_some() => 8,
                Read::Item(..) | Read::Items(_) => 16,
                Read::Ancestors(_) => 16,
                // Few texts are possible.
                _ => 400,
            },
            Key::Start(text) if **text == *b"/" => return None,
            Key::Start(text) => 2 + halved(1024, text.len() / 3),
            Key::Part(text) => 32 + halved(1024, text.len() / 3),
            Key::Range(first, last) => {
                let width = last.abs_diff(*first);
                if width > RANGE_MAX {
                    return None;
                }
                // Few users, but many ports and processes.
                let one = match self.read {
                    Read::Field(FieldId::NetDstPort | FieldId::NetSrcPort | FieldId::ProcPid) => 8,
                    _ => 128,
                };
                one + 16 * (u64::BITS - width.leading_zeros())
            }
            Key::Net(first, length) => {
                let hosts = match first {
                    IpAddr::V4(_) => 32_u8.saturating_sub(*length),
                    IpAddr::V6(_) => 64_u8.saturating_sub(*length) / 2,
                };
                2 + u32::from(hosts) * u32::from(hosts)
            }
        };
        let dear = match self.read {
            Read::Items(_) | Read::Ancestors(_) => 16,
            _ => 0,
        };
        Some(chance + dear)
    }
}

/// The path that a name is the last component of.
fn named_by(field: FieldId) -> Option<FieldId> {
    NAMES
        .iter()
        .find(|(_, name)| *name == field)
        .map(|(path, _)| *path)
}

/// The field that holds the last component of a path, also of one that has lost its start.
pub(super) fn name_of(path: FieldId) -> Option<FieldId> {
    NAMES
        .iter()
        .find(|(known, _)| *known == path)
        .map(|(_, name)| *name)
}

const NAMES: [(FieldId, FieldId); 3] = [
    (FieldId::ProcExePath, FieldId::ProcExeName),
    (FieldId::FilePath, FieldId::FileName),
    (FieldId::ProcParentExePath, FieldId::ProcParentExeName),
];

fn is_path(field: FieldId) -> bool {
    name_of(field).is_some()
        || matches!(
            field,
            FieldId::ProcCwd | FieldId::FileNewPath | FieldId::NetDstPath
        )
}
