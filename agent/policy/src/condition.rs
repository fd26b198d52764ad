//! What the kernel can judge of one condition, and whether that is all of it.

use std::net::IpAddr;

use ipnet::IpNet;
use sumun_abi::event::file::{
    ACCESS_APPEND, ACCESS_READ, ACCESS_WRITE, FILE_DELETED, FILE_IN_IMAGE, FILE_NOT_IN_IMAGE,
    OPEN_CREATED, OPEN_TRUNCATE,
};
use sumun_proto::catalogue::kind_name;
use sumun_proto::v1::Kind;
use sumun_proto::{FieldId, text};

use crate::clause::{filled, without_longer};
use crate::coarse::{EXACT_MAX, listed};
use crate::glob::{Glob, Shape};
use crate::ir::{Compare, Expr, Operand, Pattern, Set, TextTest};
use crate::plan::{Clause, Ports};

/// What the kernel can judge of a condition.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) clause: Clause,
    /// It is the whole condition.
    pub(crate) exact: bool,
}

impl Part {
    /// The clause asks for less than the condition.
    pub(crate) fn looser(clause: Clause) -> Self {
        Self {
            clause,
            exact: false,
        }
    }

    /// The clause is the condition, unless it asks for nothing.
    fn exact(clause: Clause) -> Self {
        let exact = !clause.is_everything();
        Self { clause, exact }
    }
}

/// The clause of one condition; `None` when it cannot hold on the kind.
pub(crate) fn condition(atom: &Expr, positive: bool, kind: Kind) -> Option<Part> {
    let everything = Clause::default();
    if let Some(holds) = kind_condition(atom, kind) {
        return (holds == positive).then_some(Part {
            clause: everything,
            exact: true,
        });
    }
    if let Some(part) = port_condition(atom, positive) {
        return Some(part);
    }
    // What is neither, because there is no image, is neither here.
    if let Expr::Bool(Operand::Field(FieldId::FileInImage)) = atom {
        let bit = match positive {
            true => FILE_IN_IMAGE,
            false => FILE_NOT_IN_IMAGE,
        };
        return Some(Part::exact(Clause {
            access_any: Some(bit),
            ..everything
        }));
    }
    if !positive {
        return Some(Part::looser(everything));
    }
    Some(match atom {
        Expr::Bool(Operand::Field(FieldId::FileDeleted)) if kind == Kind::MapExec => {
            Part::exact(Clause {
                access_any: Some(FILE_DELETED),
                ..everything
            })
        }
        Expr::Bool(Operand::Field(field)) => Part::exact(Clause {
            access_any: access_bit(*field),
            ..everything
        }),
        Expr::Compare {
            op: Compare::Eq,
            left: Operand::Field(field),
            right: Operand::Str(literal),
        } => exact_texts(*field, std::slice::from_ref(literal)),
        Expr::In {
            value: Operand::Field(field),
            set: Set::Str(items),
        } => exact_texts(*field, items),
        Expr::In {
            value: Operand::Field(field),
            set: Set::List(list),
        } => listed(*field, list).0,
        Expr::Text {
            test: TextTest::Prefix,
            value: Operand::Field(FieldId::FilePath | FieldId::NetDstPath),
            text,
        } => {
            let clause = Clause {
                path_prefixes: whole_prefix(text).map(|prefix| vec![prefix]),
                ..everything
            };
            match is_plain(text) {
                true => Part::exact(clause),
                false => Part::looser(clause),
            }
        }
        Expr::Text {
            test: TextTest::Suffix,
            value: Operand::Field(FieldId::ProcExePath),
            text,
        } => Part::looser(Clause {
            // A path that ends in `/name` has that last component.
            exe_names: text
                .rsplit_once('/')
                .and_then(|(_, name)| text::to_bytes(name))
                .map(|name| vec![name]),
            ..everything
        }),
        Expr::Matches {
            value: Operand::Field(field),
            pattern: Pattern::Glob(glob),
        } => match Glob::parse(glob) {
            Ok(glob) => glob_condition(*field, &glob),
            // The checker parsed the same text.
            Err(_) => Part::looser(everything),
        },
        Expr::InNet { field, net } => {
            Part::exact(nets(*field, vec![(net.addr(), net.prefix_len())]))
        }
        _ => Part::looser(everything),
    })
}

/// Of the path of a file, what it starts with; of that of an executable, its last component.
fn glob_condition(field: FieldId, glob: &Glob) -> Part {
    let everything = Clause::default();
    match field {
        FieldId::FilePath | FieldId::NetDstPath => {
            let (mut prefixes, mut whole) = (Vec::new(), Vec::new());
            let mut exact = true;
            for shape in glob.shapes() {
                let (list, bytes) = match &shape {
                    Shape::Whole(text) => (&mut whole, text::to_bytes(text)),
                    Shape::Below(text) | Shape::From(text) => (&mut prefixes, whole_prefix(text)),
                };
                let Some(bytes) = bytes else {
                    return Part::looser(everything);
                };
                exact &= match &shape {
                    Shape::Whole(text) | Shape::Below(text) => is_plain(text),
                    Shape::From(_) => false,
                };
                list.push(bytes);
            }
            let (path_prefixes, path_exact) = without_longer(filled(prefixes), filled(whole));
            Part {
                clause: Clause {
                    path_prefixes,
                    path_exact,
                    ..everything
                },
                exact,
            }
        }
        FieldId::ProcExePath => {
            let names = glob.last_names().and_then(|names| {
                let bytes = names.iter().map(|name| text::to_bytes(name));
                bytes.collect::<Option<Vec<_>>>()
            });
            Part::looser(Clause {
                exe_names: names.and_then(filled),
                ..everything
            })
        }
        _ => Part::looser(everything),
    }
}

/// True when a text begins as its bytes do, and is the only text that they have: it
/// has no bytes that are not UTF-8, which could be a part of a character.
pub(crate) fn is_plain(text: &str) -> bool {
    text::to_bytes(text).is_some_and(|bytes| {
        std::str::from_utf8(&bytes).is_ok() && text::from_bytes(&bytes) == text
    })
}

/// Why the kernel can judge nothing of a condition that it may be thought to judge.
pub(crate) fn beyond_the_kernel(atom: &Expr) -> Option<String> {
    let value = match atom {
        // One alternative that it cannot judge is enough.
        Expr::Or(parts) => return parts.iter().find_map(beyond_the_kernel),
        Expr::In {
            value:
                Operand::Field(
                    FieldId::FilePath
                    | FieldId::NetDstPath
                    | FieldId::ProcExePath
                    | FieldId::ProcExeName,
                ),
            set: Set::List(list),
        } if list.len() > EXACT_MAX => {
            let (name, count) = (list.name(), list.len());
            return Some(format!(
                "lists.{name} has {count} items, and it takes a list of at most {EXACT_MAX}"
            ));
        }
        Expr::Matches {
            value:
                Operand::Field(field @ (FieldId::FilePath | FieldId::NetDstPath | FieldId::ProcExePath)),
            pattern: Pattern::Glob(glob),
        } => {
            let parsed = Glob::parse(glob).ok()?;
            let glob = Operand::Str(glob.clone());
            return glob_condition(*field, &parsed)
                .clause
                .is_everything()
                .then(|| match field {
                    FieldId::FilePath | FieldId::NetDstPath => {
                        format!("the glob {glob} begins with a wildcard")
                    }
                    _ => format!("the last name in the glob {glob} has a wildcard"),
                });
        }
        Expr::Compare { left: value, .. }
        | Expr::In { value, .. }
        | Expr::Text { value, .. }
        | Expr::Matches { value, .. } => value,
        _ => return None,
    };
    matches!(value, Operand::Lower(_)).then(|| format!("{value} is known in the agent only"))
}

/// Whether a condition on the field `kind` holds.
pub(crate) fn kind_condition(atom: &Expr, kind: Kind) -> Option<bool> {
    let name = kind_name(kind);
    match atom {
        Expr::Compare {
            op,
            left: Operand::Field(FieldId::Kind),
            right: Operand::Str(literal),
        } => Some(op.holds(name, literal.as_str())),
        Expr::In {
            value: Operand::Field(FieldId::Kind),
            set: Set::Str(items),
        } => Some(items.iter().any(|item| item == name)),
        _ => None,
    }
}

/// Most ranges of ports of one condition: it has two filters of twice two kinds to hold.
const RANGES_MAX: usize = 4096;

/// What the kernel judges of a condition on a port.
fn port_condition(atom: &Expr, positive: bool) -> Option<Part> {
    let (field, wanted) = match atom {
        Expr::Compare {
            op,
            left: Operand::Field(field @ (FieldId::NetSrcPort | FieldId::NetDstPort)),
            right: Operand::Int(number),
        } => (*field, compared_ports(*op, *number)),
        Expr::In {
            value: Operand::Field(field @ (FieldId::NetSrcPort | FieldId::NetDstPort)),
            set,
        } => {
            let items = match set {
                Set::Int(items) => items.as_slice(),
                Set::List(list) => list.numbers(),
                Set::Str(_) => &[],
            };
            let ports = items
                .iter()
                .filter_map(|item| u16::try_from(*item).ok())
                .map(|port| Ports {
                    first: port,
                    last: port,
                })
                .collect();
            (*field, join_ports(ports))
        }
        _ => return None,
    };
    let mut ports = if positive {
        wanted
    } else {
        outside_ports(&wanted)
    };
    // If no port satisfies it, the port may still be unknown: ask for nothing.
    if ports == [EVERY_PORT] || ports.is_empty() {
        return Some(Part::looser(Clause::default()));
    }
    let exact = ports.len() <= RANGES_MAX;
    if let (false, Some(first), Some(last)) = (exact, ports.first(), ports.last()) {
        ports = vec![Ports {
            first: first.first,
            last: last.last,
        }];
    }
    let clause = match field {
        FieldId::NetSrcPort => Clause {
            src_ports: Some(ports),
            ..Clause::default()
        },
        _ => Clause {
            dst_ports: Some(ports),
            ..Clause::default()
        },
    };
    Some(Part { clause, exact })
}

const EVERY_PORT: Ports = Ports {
    first: 0,
    last: u16::MAX,
};

fn compared_ports(op: Compare, number: i64) -> Vec<Ports> {
    let last = i64::from(u16::MAX);
    let between = |first: i64, end: i64| {
        let (first, end) = (first.max(0), end.min(last));
        match (u16::try_from(first), u16::try_from(end)) {
            (Ok(first), Ok(last)) if first <= last => vec![Ports { first, last }],
            _ => Vec::new(),
        }
    };
    match op {
        Compare::Eq => between(number, number),
        Compare::Ne => outside_ports(&between(number, number)),
        Compare::Lt => between(0, number.saturating_sub(1)),
        Compare::Le => between(0, number),
        Compare::Gt => between(number.saturating_add(1), last),
        Compare::Ge => between(number, last),
    }
}

/// The ports that lie in none of the sorted ranges.
fn outside_ports(ranges: &[Ports]) -> Vec<Ports> {
    let mut outside = Vec::new();
    let mut next: u32 = 0;
    for range in ranges {
        if let (Ok(first), Some(last)) = (u16::try_from(next), range.first.checked_sub(1))
            && first <= last
        {
            outside.push(Ports { first, last });
        }
        next = u32::from(range.last) + 1;
    }
    if let Ok(first) = u16::try_from(next) {
        outside.push(Ports {
            first,
            last: u16::MAX,
        });
    }
    outside
}

/// Sorted, disjoint, neighbours joined.
pub(crate) fn join_ports(mut ranges: Vec<Ports>) -> Vec<Ports> {
    ranges.sort_unstable();
    let mut joined: Vec<Ports> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(before) if u32::from(range.first) <= u32::from(before.last) + 1 => {
                before.last = before.last.max(range.last);
            }
            _ => joined.push(range),
        }
    }
    joined
}

fn access_bit(field: FieldId) -> Option<u32> {
    match field {
        FieldId::FileAccessRead => Some(ACCESS_READ),
        FieldId::FileAccessWrite => Some(ACCESS_WRITE),
        FieldId::FileAccessAppend => Some(ACCESS_APPEND),
        FieldId::FileCreate => Some(OPEN_CREATED),
        FieldId::FileTrunc => Some(OPEN_TRUNCATE),
        _ => None,
    }
}

/// The same, and whether it is the whole condition.
pub(crate) fn exact_texts(field: FieldId, literals: &[String]) -> Part {
    let clause = texts(field, literals);
    let one_text = |literal: &String| {
        text::to_bytes(literal).is_some_and(|bytes| text::from_bytes(&bytes) == *literal)
    };
    Part {
        exact: !clause.is_everything() && literals.iter().all(one_text),
        clause,
    }
}

/// The clause of a text field that equals one of the literals.
fn texts(field: FieldId, literals: &[String]) -> Clause {
    let clause = Clause::default();
    if let FieldId::NetSrcIp | FieldId::NetDstIp = field {
        let addresses: Option<Vec<_>> = literals
            .iter()
            .map(|literal| {
                let address: IpAddr = literal.parse().ok()?;
                let net = IpNet::from(address);
                Some((net.addr(), net.prefix_len()))
            })
            .collect();
        return match addresses {
            Some(mut addresses) if !addresses.is_empty() => {
                addresses.sort_unstable();
                nets(field, addresses)
            }
            _ => clause,
        };
    }
    // A literal that is not in the catalogue's form equals no text, but the text may be unknown.
    let bytes: Option<Vec<Vec<u8>>> = literals
        .iter()
        .map(|literal| text::to_bytes(literal))
        .collect();
    let Some(mut bytes) = bytes.filter(|bytes| !bytes.is_empty()) else {
        return clause;
    };
    bytes.sort_unstable();
    bytes.dedup();
    match field {
        FieldId::FilePath | FieldId::NetDstPath => Clause {
            path_exact: Some(bytes),
            ..clause
        },
        FieldId::ProcExePath => Clause {
            exe_paths: Some(bytes),
            ..clause
        },
        FieldId::ProcExeName => Clause {
            exe_names: Some(bytes),
            ..clause
        },
        _ => clause,
    }
}

fn nets(field: FieldId, nets: Vec<(IpAddr, u8)>) -> Clause {
    match field {
        FieldId::NetSrcIp => Clause {
            src_nets: Some(nets),
            ..Clause::default()
        },
        FieldId::NetDstIp => Clause {
            dst_nets: Some(nets),
            ..Clause::default()
        },
        _ => Clause::default(),
    }
}

/// The bytes of a text prefix, without the beginning of an escape at its
/// end; `None` when nothing is left to ask for, or what every path starts with.
pub(crate) fn whole_prefix(prefix: &str) -> Option<Vec<u8>> {
    let mut end = prefix.len();
    loop {
        if matches!(&prefix[..end], "" | "/") {
            return None;
        }
        if let Some(bytes) = text::to_bytes(&prefix[..end]) {
            return Some(bytes);
        }
        // Bad escapes in the middle, too, end what can be asked for.
        end = prefix[..end].rfind('\\')?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_that_ends_within_an_escape_is_shortened() {
        assert_eq!(whole_prefix("/tmp/a").as_deref(), Some(&b"/tmp/a"[..]));
        assert_eq!(whole_prefix("/tmp/\\xf").as_deref(), Some(&b"/tmp/"[..]));
        assert_eq!(whole_prefix("/a\\\\\\").as_deref(), Some(&b"/a\\"[..]));
        assert_eq!(whole_prefix("\\x").as_deref(), None);
        assert_eq!(whole_prefix("/a\\q/b").as_deref(), Some(&b"/a"[..]));
    }

    #[test]
    fn port_ranges_are_exact() {
        let range = |first, last| Ports { first, last };
        assert_eq!(compared_ports(Compare::Eq, 22), [range(22, 22)]);
        assert_eq!(
            compared_ports(Compare::Ne, 22),
            [range(0, 21), range(23, 65535)]
        );
        assert_eq!(compared_ports(Compare::Ne, 0), [range(1, 65535)]);
        assert_eq!(compared_ports(Compare::Lt, 1024), [range(0, 1023)]);
        assert_eq!(compared_ports(Compare::Gt, 65534), [range(65535, 65535)]);
        assert_eq!(compared_ports(Compare::Gt, 65535), []);
        assert_eq!(compared_ports(Compare::Eq, -1), []);
        assert_eq!(compared_ports(Compare::Ge, i64::MIN), [EVERY_PORT]);
        assert_eq!(outside_ports(&[EVERY_PORT]), []);
        assert_eq!(
            join_ports(vec![range(3, 4), range(1, 2), range(9, 9)]),
            [range(1, 4), range(9, 9)]
        );
    }
}
