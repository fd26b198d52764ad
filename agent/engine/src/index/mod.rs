//! Which rules of a kind can match an event, found by what they need.
//!
//! A rule is looked at only if the event meets the most selective need of one of its
//! branches ([`sumun_policy::needs`]). Rules that share a key are told apart by their further needs, so
//! that a common one (a shell) does not lead to all rules that name it. What the
//! index finds may be too much, never too little: what is unknown meets every need that reads it.

mod build;
mod hash;
mod table;

use sumun_policy::ir::Predicate;
use sumun_policy::needs::{Source, needs};
use sumun_proto::View;
use sumun_proto::v1::Kind;

use table::Table;

/// Rules of one kind. Immutable.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Where the search begins; `None` without rules.
    root: Option<NodeId>,
    nodes: Vec<Node>,
    probes: Vec<Probe>,
    /// Numbers of rules, in the runs that nodes and probes name.
    rules: Vec<u32>,
}

/// Index into `Index::nodes`.
type NodeId = u32;

/// Rules that share what was asked on the way to it.
#[derive(Clone, Copy, Debug)]
struct Node {
    /// To be looked at.
    found: Run,
    /// What to ask for the others.
    probes: Run,
}

/// Items from `first` on, before `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Run {
    first: u32,
    end: u32,
}

impl Run {
    fn range(self) -> std::ops::Range<usize> {
        self.first as usize..self.end as usize
    }
}

/// One source and what its values lead to.
#[derive(Debug)]
struct Probe {
    source: Source,
    table: Table,
    /// All rules that ask this source, for an event of which it is unknown.
    unknown: Run,
}

impl Index {
    /// The index of numbered rules on events of a kind.
    pub(crate) fn new<'a>(rules: impl Iterator<Item = (u32, &'a Predicate)>, kind: Kind) -> Self {
        let branches = rules
            .flat_map(|(rule, predicate)| {
                needs(predicate, kind)
                    .into_iter()
                    .map(move |needs| build::Branch { rule, needs })
            })
            .collect::<Vec<_>>();
        build::index(&branches)
    }

    /// Calls `found` with each rule that could match, in no order, some more than once.
    pub(crate) fn candidates(&self, view: &View<'_>, mut found: impl FnMut(u32)) {
        if let Some(root) = self.root {
            self.visit(root, view, &mut found);
        }
    }

    /// The depth is bounded by that of the index ([`build::DEPTH_MAX`]).
    fn visit(&self, node: NodeId, view: &View<'_>, found: &mut impl FnMut(u32)) {
        let node = self.nodes[node as usize];
        for rule in &self.rules[node.found.range()] {
            found(*rule);
        }
        for probe in &self.probes[node.probes.range()] {
            let unknown = if probe.source.has_one_value() && !probe.table.looks_within() {
                probe.source.values(view, |value| {
                    probe
                        .table
                        .look_up(value, |node| self.visit(node, view, found));
                })
            } else {
                // Values may lead to one node many times.
                let mut nodes = Vec::new();
                let unknown = probe.source.values(view, |value| {
                    probe.table.look_up(value, |node| nodes.push(node));
                });
                nodes.sort_unstable();
                nodes.dedup();
                for node in nodes {
                    self.visit(node, view, found);
                }
                unknown
            };
            if unknown {
                for rule in &self.rules[probe.unknown.range()] {
                    found(*rule);
                }
            }
        }
    }

    /// Bytes that it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        self.nodes.len() * size_of::<Node>()
            + self.rules.len() * size_of::<u32>()
            + self
                .probes
                .iter()
                .map(|probe| size_of::<Probe>() + probe.table.bytes())
                .sum::<usize>()
    }
}

#[cfg(test)]
mod tests;
