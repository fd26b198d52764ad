//! From a predicate to the clauses the kernel can judge.
//!
//! The predicate is brought into disjunctive form; of each condition that
//! the kernel knows, a superset is kept, everything else is taken as "may
//! hold". So a clause is never stricter than what it came from. Two conditions on one
//! field that leave nothing together are not dropped but loosened to one of them:
//! if the field cannot be read, both could hold.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use sumun_abi::event::file::{
    ACCESS_APPEND, ACCESS_READ, ACCESS_WRITE, OPEN_CREATED, OPEN_TRUNCATE,
};
use sumun_proto::catalogue::{family, kind_name};
use sumun_proto::v1::Kind;
use sumun_proto::{FieldId, text};

use crate::clause::Condition;
use crate::ir::{Compare, Expr, Operand, Predicate, Set, TextTest};
use crate::plan::{CLAUSES_MAX, Clause, Ports};

/// The clauses of a predicate on one kind; none means that it can never match.
pub(crate) struct Narrowed {
    pub(crate) clauses: Vec<Clause>,
    /// There would have been more than [`CLAUSES_MAX`].
    pub(crate) widened: bool,
}

/// True when the field can be present on events of the kind.
#[must_use]
pub fn on_kind(field: FieldId, kind: Kind) -> bool {
    let info = field.info();
    info.families.contains(&family(kind))
        && (info.kinds.is_empty() || info.kinds.contains(&kind_name(kind)))
}

/// Clauses that let through every event of the kind which the predicate
/// matches or cannot decide.
pub(crate) fn narrow(predicate: &Predicate, kind: Kind) -> Narrowed {
    let mut narrowing = Narrowing {
        kind,
        widened: false,
    };
    let clauses = narrowing.clauses(predicate.expr(), true);
    Narrowed {
        clauses,
        widened: narrowing.widened,
    }
}

/// Makes clauses fewer without letting less through: equal ones are
/// dropped, those that differ in one condition are joined. If there are still
/// more than the bound, all become one, and the second value is true.
pub(crate) fn reduce(mut clauses: Vec<Clause>) -> (Vec<Clause>, bool) {
    if clauses.iter().any(Clause::is_everything) {
        return (vec![Clause::default()], false);
    }
    loop {
        let before = clauses.len();
        for condition in Condition::ALL {
            let mut joined: BTreeMap<Clause, Clause> = BTreeMap::new();
            for clause in clauses {
                joined
                    .entry(clause.without(condition))
                    .and_modify(|known| *known = known.hull(&clause))
                    .or_insert(clause);
            }
            clauses = joined.into_values().collect();
        }
        if clauses.len() == before {
            break;
        }
    }
    if clauses.iter().any(Clause::is_everything) {
        return (vec![Clause::default()], false);
    }
    clauses.sort_unstable();
    if clauses.len() <= CLAUSES_MAX {
        return (clauses, false);
    }
    let whole = clauses
        .into_iter()
        .reduce(|whole, clause| whole.hull(&clause))
        .unwrap_or_default();
    (vec![whole], true)
}

struct Narrowing {
    kind: Kind,
    widened: bool,
}

impl Narrowing {
    /// Clauses for the expression being true, or false if not `positive`.
    fn clauses(&mut self, expr: &Expr, positive: bool) -> Vec<Clause> {
        match (expr, positive) {
            (Expr::Const(value), _) if *value == positive => vec![Clause::default()],
            (Expr::Const(_), _) => Vec::new(),
            (Expr::Not(inner), _) => self.clauses(inner, !positive),
            (Expr::And(parts), true) | (Expr::Or(parts), false) => {
                let mut whole = vec![Clause::default()];
                for part in parts {
                    let clauses = self.clauses(part, positive);
                    whole = self.product(whole, clauses);
                }
                whole
            }
            (Expr::Or(parts), true) | (Expr::And(parts), false) => {
                let mut whole = Vec::new();
                for part in parts {
                    whole.extend(self.clauses(part, positive));
                }
                self.reduced(whole)
            }
            (Expr::Has(Operand::Field(field)), _) if !on_kind(*field, self.kind) => {
                if positive {
                    Vec::new()
                } else {
                    vec![Clause::default()]
                }
            }
            (Expr::Has(_), _) => vec![Clause::default()],
            (atom, _) if !self.can_be_read(atom) => Vec::new(),
            (atom, _) => {
                condition(atom, positive, self.kind).map_or_else(Vec::new, |clause| vec![clause])
            }
        }
    }

    fn reduced(&mut self, clauses: Vec<Clause>) -> Vec<Clause> {
        let (clauses, widened) = reduce(clauses);
        self.widened |= widened;
        clauses
    }

    /// Every clause of one side with every clause of the other.
    fn product(&mut self, one: Vec<Clause>, other: Vec<Clause>) -> Vec<Clause> {
        if one.is_empty() || other.is_empty() {
            return Vec::new();
        }
        if one.len() * other.len() > CLAUSES_MAX * CLAUSES_MAX {
            // Neither side alone is stricter than both together.
            self.widened = true;
            return if one.len() <= other.len() { one } else { other };
        }
        let mut clauses = Vec::with_capacity(one.len() * other.len());
        for left in &one {
            for right in &other {
                clauses.push(left.met(right));
            }
        }
        self.reduced(clauses)
    }

    /// False when the condition reads a field that events of the kind never have.
    fn can_be_read(&self, atom: &Expr) -> bool {
        let operand = |operand: &Operand| match operand {
            Operand::Field(field) | Operand::Count(field) | Operand::Index { list: field, .. } => {
                on_kind(*field, self.kind)
            }
            Operand::Length(inner) => match **inner {
                Operand::Field(field) | Operand::Index { list: field, .. } => {
                    on_kind(field, self.kind)
                }
                _ => true,
            },
            _ => true,
        };
        match atom {
            Expr::Bool(value)
            | Expr::In { value, .. }
            | Expr::Text { value, .. }
            | Expr::Matches { value, .. } => operand(value),
            Expr::Compare { left, right, .. } => operand(left) && operand(right),
            Expr::InNet { field, .. } => on_kind(*field, self.kind),
            Expr::ListHas { list, value } => on_kind(*list, self.kind) && operand(value),
            Expr::Each { list, .. } => on_kind(*list, self.kind),
            _ => true,
        }
    }
}

/// The clause of one condition; `None` when it cannot hold on the kind.
fn condition(atom: &Expr, positive: bool, kind: Kind) -> Option<Clause> {
    let everything = Clause::default();
    if let Some(holds) = kind_condition(atom, kind) {
        return (holds == positive).then_some(everything);
    }
    if let Some(clause) = port_condition(atom, positive) {
        return clause;
    }
    if !positive {
        return Some(everything);
    }
    Some(match atom {
        Expr::Bool(Operand::Field(field)) => Clause {
            access_any: access_bit(*field),
            ..everything
        },
        Expr::Compare {
            op: Compare::Eq,
            left: Operand::Field(field),
            right: Operand::Str(literal),
        } => texts(*field, std::slice::from_ref(literal)),
        Expr::In {
            value: Operand::Field(field),
            set: Set::Str(items),
        } => texts(*field, items),
        Expr::Text {
            test: TextTest::Prefix,
            value: Operand::Field(FieldId::FilePath),
            text,
        } => Clause {
            path_prefixes: whole_prefix(text).map(|prefix| vec![prefix]),
            ..everything
        },
        Expr::Text {
            test: TextTest::Suffix,
            value: Operand::Field(FieldId::ProcExePath),
            text,
        } => Clause {
            // A path that ends in `/name` has that last component.
            exe_names: text
                .rsplit_once('/')
                .and_then(|(_, name)| text::to_bytes(name))
                .map(|name| vec![name]),
            ..everything
        },
        Expr::InNet { field, net } => nets(*field, vec![(net.addr(), net.prefix_len())]),
        _ => everything,
    })
}

/// Whether a condition on the field `kind` holds.
fn kind_condition(atom: &Expr, kind: Kind) -> Option<bool> {
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

/// The clause of a condition on a port; the inner `None` when no port satisfies it.
fn port_condition(atom: &Expr, positive: bool) -> Option<Option<Clause>> {
    let (field, wanted) = match atom {
        Expr::Compare {
            op,
            left: Operand::Field(field @ (FieldId::NetSrcPort | FieldId::NetDstPort)),
            right: Operand::Int(number),
        } => (*field, compared_ports(*op, *number)),
        Expr::In {
            value: Operand::Field(field @ (FieldId::NetSrcPort | FieldId::NetDstPort)),
            set: Set::Int(items),
        } => {
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
    let ports = if positive {
        wanted
    } else {
        outside_ports(&wanted)
    };
    if ports == [EVERY_PORT] {
        return Some(Some(Clause::default()));
    }
    if ports.is_empty() {
        // No port satisfies it, but the port may be unknown: ask for nothing.
        return Some(Some(Clause::default()));
    }
    Some(Some(match field {
        FieldId::NetSrcPort => Clause {
            src_ports: Some(ports),
            ..Clause::default()
        },
        _ => Clause {
            dst_ports: Some(ports),
            ..Clause::default()
        },
    }))
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
        FieldId::FilePath => Clause {
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
/// end; `None` when nothing is left to ask for.
fn whole_prefix(prefix: &str) -> Option<Vec<u8>> {
    let mut end = prefix.len();
    loop {
        if end == 0 {
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
