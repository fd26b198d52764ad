//! Joining and meeting clauses, never stricter than their parts.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::condition::join_ports;
use crate::plan::{Clause, Ports};

/// A list of byte strings, `None` when there is no condition.
pub(crate) type Bytes = Option<Vec<Vec<u8>>>;

/// One of the conditions of a clause.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Condition {
    Path,
    Exe,
    Access,
    SrcPort,
    DstPort,
    SrcNet,
    DstNet,
}

impl Condition {
    pub(crate) const ALL: [Self; 7] = [
        Self::Path,
        Self::Exe,
        Self::Access,
        Self::SrcPort,
        Self::DstPort,
        Self::SrcNet,
        Self::DstNet,
    ];
}

impl Clause {
    /// Both hold. Where two conditions leave nothing, the first is kept; the second
    /// value is false if something was loosened so.
    pub(crate) fn met(&self, other: &Self) -> (Self, bool) {
        let mut exact = true;
        let (path_prefixes, path_exact) = pair(
            (&self.path_prefixes, &self.path_exact),
            (&other.path_prefixes, &other.path_exact),
            met_paths,
            &mut exact,
        );
        let (exe_names, exe_paths) = pair(
            (&self.exe_names, &self.exe_paths),
            (&other.exe_names, &other.exe_paths),
            met_exes,
            &mut exact,
        );
        let (path_prefixes, path_exact) = without_longer(path_prefixes, path_exact);
        let both = Self {
            path_prefixes,
            path_exact,
            exe_names,
            exe_paths,
            access_any: match (self.access_any, other.access_any) {
                // One of these and one of those: the smaller set is the stricter one.
                (Some(one), Some(two)) if one & two == two => Some(two),
                (Some(one), Some(two)) => {
                    exact &= one & two == one;
                    Some(one)
                }
                (one, two) => one.or(two),
            },
            src_ports: single(&self.src_ports, &other.src_ports, met_ports, &mut exact),
            dst_ports: single(&self.dst_ports, &other.dst_ports, met_ports, &mut exact),
            src_nets: single(&self.src_nets, &other.src_nets, met_nets, &mut exact),
            dst_nets: single(&self.dst_nets, &other.dst_nets, met_nets, &mut exact),
        };
        (both, exact)
    }

    /// True when the other clause holds wherever this one does, as far as that is seen.
    pub(crate) fn lies_within(&self, other: &Self) -> bool {
        let (both, exact) = self.met(other);
        exact && both == *self
    }

    /// The clause without one of its conditions. Clauses that are equal without it are
    /// together exactly their [`Clause::hull`].
    pub(crate) fn without(&self, condition: Condition) -> Self {
        let mut rest = self.clone();
        match condition {
            Condition::Path => (rest.path_prefixes, rest.path_exact) = (None, None),
            Condition::Exe => (rest.exe_names, rest.exe_paths) = (None, None),
            Condition::Access => rest.access_any = None,
            Condition::SrcPort => rest.src_ports = None,
            Condition::DstPort => rest.dst_ports = None,
            Condition::SrcNet => rest.src_nets = None,
            Condition::DstNet => rest.dst_nets = None,
        }
        rest
    }

    /// One clause that holds wherever one of both does.
    pub(crate) fn hull(&self, other: &Self) -> Self {
        let (path_prefixes, path_exact) = either(
            (&self.path_prefixes, &self.path_exact),
            (&other.path_prefixes, &other.path_exact),
        );
        let (exe_names, exe_paths) = either(
            (&self.exe_names, &self.exe_paths),
            (&other.exe_names, &other.exe_paths),
        );
        let (path_prefixes, path_exact) = without_longer(path_prefixes, path_exact);
        Self {
            path_prefixes,
            path_exact,
            exe_names,
            exe_paths,
            access_any: self
                .access_any
                .zip(other.access_any)
                .map(|(one, two)| one | two),
            src_ports: ports_of_either(&self.src_ports, &other.src_ports),
            dst_ports: ports_of_either(&self.dst_ports, &other.dst_ports),
            src_nets: nets_of_either(&self.src_nets, &other.src_nets),
            dst_nets: nets_of_either(&self.dst_nets, &other.dst_nets),
        }
    }
}

/// A condition of one list: both, or the one that is there.
fn single<T: Clone>(
    one: &Option<Vec<T>>,
    other: &Option<Vec<T>>,
    met: impl Fn(&[T], &[T]) -> Vec<T>,
    exact: &mut bool,
) -> Option<Vec<T>> {
    match (one, other) {
        (Some(one), Some(other)) => {
            let both = met(one, other);
            *exact &= !both.is_empty();
            Some(if both.is_empty() { one.clone() } else { both })
        }
        (one, other) => one.clone().or_else(|| other.clone()),
    }
}

/// A condition of two lists of which one has to hold.
fn pair(
    one: (&Bytes, &Bytes),
    other: (&Bytes, &Bytes),
    met: impl Fn(&Both<'_>, &Both<'_>) -> (Vec<Vec<u8>>, Vec<Vec<u8>>),
    exact: &mut bool,
) -> (Bytes, Bytes) {
    match (Both::of(one), Both::of(other)) {
        (Some(left), Some(right)) => {
            let (first, second) = met(&left, &right);
            if first.is_empty() && second.is_empty() {
                *exact = false;
                return (one.0.clone(), one.1.clone());
            }
            (filled(first), filled(second))
        }
        (Some(_), None) => (one.0.clone(), one.1.clone()),
        _ => (other.0.clone(), other.1.clone()),
    }
}

/// The two lists of a condition, one of which may be empty.
struct Both<'a> {
    first: &'a [Vec<u8>],
    second: &'a [Vec<u8>],
}

impl<'a> Both<'a> {
    fn of((first, second): (&'a Bytes, &'a Bytes)) -> Option<Self> {
        (first.is_some() || second.is_some()).then(|| Self {
            first: first.as_deref().unwrap_or_default(),
            second: second.as_deref().unwrap_or_default(),
        })
    }
}

pub(crate) fn filled(mut items: Vec<Vec<u8>>) -> Bytes {
    items.sort_unstable();
    items.dedup();
    (!items.is_empty()).then_some(items)
}

/// Prefixes and whole paths that lie in both conditions.
fn met_paths(one: &Both<'_>, other: &Both<'_>) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut prefixes, mut exact) = (Vec::new(), Vec::new());
    for left in one.first {
        for right in other.first {
            if left.starts_with(right) {
                prefixes.push(left.clone());
            } else if right.starts_with(left) {
                prefixes.push(right.clone());
            }
        }
    }
    for (paths, side) in [(one.second, other), (other.second, one)] {
        for path in paths {
            let within = side.first.iter().any(|prefix| path.starts_with(prefix));
            if within || side.second.binary_search(path).is_ok() {
                exact.push(path.clone());
            }
        }
    }
    (prefixes, exact)
}

/// Names and paths of executables that lie in both conditions.
fn met_exes(one: &Both<'_>, other: &Both<'_>) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let names = one
        .first
        .iter()
        .filter(|name| other.first.binary_search(name).is_ok())
        .cloned()
        .collect();
    let mut paths = Vec::new();
    for (list, side) in [(one.second, other), (other.second, one)] {
        for path in list {
            let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
            let named = side
                .first
                .binary_search_by(|known| known.as_slice().cmp(name));
            if side.second.binary_search(path).is_ok() || named.is_ok() {
                paths.push(path.clone());
            }
        }
    }
    (names, paths)
}

fn met_ports(one: &[Ports], other: &[Ports]) -> Vec<Ports> {
    let mut both = Vec::new();
    for left in one {
        for right in other {
            let (first, last) = (left.first.max(right.first), left.last.min(right.last));
            if first <= last {
                both.push(Ports { first, last });
            }
        }
    }
    join_ports(both)
}

fn met_nets(one: &[(IpAddr, u8)], other: &[(IpAddr, u8)]) -> Vec<(IpAddr, u8)> {
    let mut both = Vec::new();
    for (nets, side) in [(one, other), (other, one)] {
        both.extend(nets.iter().filter(|net| {
            // None lies within another one of its side, so only the last one before it can be around it.
            let after = side.partition_point(|around| around <= *net);
            after
                .checked_sub(1)
                .is_some_and(|last| within(net, &side[last]))
        }));
    }
    both.sort_unstable();
    both.dedup();
    both
}

/// True when the first network lies in the second.
fn within(inner: &(IpAddr, u8), outer: &(IpAddr, u8)) -> bool {
    match (IpNet::new(inner.0, inner.1), IpNet::new(outer.0, outer.1)) {
        (Ok(inner), Ok(outer)) => outer.contains(&inner),
        _ => false,
    }
}

/// One of two conditions of two lists each.
fn either(one: (&Bytes, &Bytes), other: (&Bytes, &Bytes)) -> (Bytes, Bytes) {
    match (Both::of(one), Both::of(other)) {
        (Some(one), Some(other)) => (
            filled([one.first, other.first].concat()),
            filled([one.second, other.second].concat()),
        ),
        _ => (None, None),
    }
}

/// Drops what a shorter prefix includes. The prefixes are sorted.
pub(crate) fn without_longer(prefixes: Bytes, exact: Bytes) -> (Bytes, Bytes) {
    let Some(all) = prefixes else {
        return (None, exact);
    };
    let mut kept: Vec<Vec<u8>> = Vec::with_capacity(all.len());
    for prefix in all {
        if !kept.last().is_some_and(|last| prefix.starts_with(last)) {
            kept.push(prefix);
        }
    }
    let exact = exact.and_then(|mut paths| {
        paths.retain(|path| {
            // None of the prefixes begins another one, so only the last one before it can begin the path.
            let after = kept.partition_point(|prefix| prefix <= path);
            !after
                .checked_sub(1)
                .is_some_and(|last| path.starts_with(&kept[last]))
        });
        filled(paths)
    });
    (Some(kept), exact)
}

fn ports_of_either(one: &Option<Vec<Ports>>, other: &Option<Vec<Ports>>) -> Option<Vec<Ports>> {
    let (one, other) = (one.as_ref()?, other.as_ref()?);
    Some(join_ports([one.as_slice(), other].concat()))
}

fn nets_of_either(
    one: &Option<Vec<(IpAddr, u8)>>,
    other: &Option<Vec<(IpAddr, u8)>>,
) -> Option<Vec<(IpAddr, u8)>> {
    let (one, other) = (one.as_ref()?, other.as_ref()?);
    let mut nets = [one.as_slice(), other].concat();
    // What is around others stands before them.
    nets.sort_unstable();
    let mut kept: Vec<(IpAddr, u8)> = Vec::with_capacity(nets.len());
    for net in nets {
        if !kept.last().is_some_and(|last| within(&net, last)) {
            kept.push(net);
        }
    }
    Some(kept)
}
