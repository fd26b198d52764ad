//! How the index is made.

use std::collections::{BTreeMap, HashMap};

use sumun_policy::needs::{Key, Need, Source};

use super::table::{Table, number};
use super::{Index, Node, NodeId, Probe, Run};

/// Most nodes on the way to a rule.
pub(super) const DEPTH_MAX: usize = 4;
/// So many branches of rules are looked at rather than told apart.
const FEW: usize = 3;
/// How often all branches together may be told apart. Beyond that, rules that share a key are all looked at: slower, but
/// the index stays in proportion to its rules whatever they are.
const WORK_MAX: usize = 16;

/// A way in which a rule can match.
#[derive(Debug)]
pub(super) struct Branch {
    pub(super) rule: u32,
    pub(super) needs: Vec<Need>,
}

/// A branch and which of its needs were asked on the way to it, by bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Entry {
    branch: u32,
    asked: u8,
}

struct Builder<'a> {
    branches: &'a [Branch],
    index: Index,
    /// Many keys lead to the same rules.
    known: HashMap<Vec<Entry>, NodeId>,
    work: usize,
}

/// What is known so far of a source.
#[derive(Default)]
struct Draft {
    keys: BTreeMap<Key, Vec<Entry>>,
    all: Vec<u32>,
}

/// The index of branches, at most 2^32.
pub(super) fn index(branches: &[Branch]) -> Index {
    let mut builder = Builder {
        branches,
        index: Index::default(),
        known: HashMap::new(),
        work: WORK_MAX * branches.len(),
    };
    let all = (0..branches.len()).map(|branch| Entry {
        branch: number(branch),
        asked: 0,
    });
    if !branches.is_empty() {
        builder.index.root = Some(builder.node(all.collect(), 1));
    }
    builder.index
}

impl Builder<'_> {
    fn node(&mut self, mut entries: Vec<Entry>, depth: usize) -> NodeId {
        entries.sort_unstable();
        entries.dedup();
        if let Some(node) = self.known.get(&entries) {
            return *node;
        }
        let mut found = Vec::new();
        let mut drafts: BTreeMap<Source, Draft> = BTreeMap::new();
        let split = entries.len() > FEW && depth < DEPTH_MAX && entries.len() <= self.work;
        if split {
            self.work -= entries.len();
        }
        let common = if split && depth > 1 {
            self.common(&entries)
        } else {
            HashMap::new()
        };
        for entry in &entries {
            match split.then(|| self.best(*entry, &common)).flatten() {
                Some((bit, need)) => {
                    let further = Entry {
                        asked: entry.asked | bit,
                        ..*entry
                    };
                    for ask in &need.asks {
                        let draft = drafts.entry(ask.source).or_default();
                        draft.all.push(self.rule(*entry));
                        for key in &ask.keys {
                            draft.keys.entry(key.clone()).or_default().push(further);
                        }
                    }
                }
                None => found.push(self.rule(*entry)),
            }
        }
        let probes: Vec<Probe> = drafts
            .into_iter()
            .map(|(source, draft)| {
                let nodes: Vec<(Key, NodeId)> = draft
                    .keys
                    .into_iter()
                    .map(|(key, entries)| (key, self.node(entries, depth + 1)))
                    .collect();
                Probe {
                    source,
                    table: Table::new(nodes.into_iter()),
                    unknown: self.rules(draft.all),
                }
            })
            .collect();
        let found = self.rules(found);
        let first = number(self.index.probes.len());
        self.index.probes.extend(probes);
        let probes = Run {
            first,
            end: number(self.index.probes.len()),
        };
        let node = number(self.index.nodes.len());
        self.index.nodes.push(Node { found, probes });
        self.known.insert(entries, node);
        node
    }

    fn rule(&self, entry: Entry) -> u32 {
        self.branches[entry.branch as usize].rule
    }

    fn rules(&mut self, mut rules: Vec<u32>) -> Run {
        rules.sort_unstable();
        rules.dedup();
        let first = number(self.index.rules.len());
        self.index.rules.extend(rules);
        Run {
            first,
            end: number(self.index.rules.len()),
        }
    }

    /// The needs of an entry that were not asked yet, with their bits.
    fn open(&self, entry: Entry) -> impl Iterator<Item = (u8, &Need)> {
        let needs = &self.branches[entry.branch as usize].needs;
        (0..u8::BITS)
            .map(|bit| 1_u8 << bit)
            .zip(needs)
            .filter(move |(bit, _)| entry.asked & bit == 0)
    }

    /// The most selective of them.
    fn best(&self, entry: Entry, common: &HashMap<(Source, &Key), usize>) -> Option<(u8, &Need)> {
        let shared = |need: &Need| {
            need.asks.iter().any(|ask| {
                ask.keys
                    .iter()
                    .any(|key| common.contains_key(&(ask.source, key)))
            })
        };
        // Those that most of the entries have in common tell nothing apart.
        self.open(entry)
            .min_by_key(|(_, need)| (shared(need), need.chance()))
    }

    /// The keys that more than half of the entries have, with their number.
    fn common(&self, entries: &[Entry]) -> HashMap<(Source, &Key), usize> {
        let mut counts: HashMap<(Source, &Key), usize> = HashMap::new();
        for entry in entries {
            for ask in self.open(*entry).flat_map(|(_, need)| &need.asks) {
                for key in &ask.keys {
                    *counts.entry((ask.source, key)).or_default() += 1;
                }
            }
        }
        counts.retain(|_, count| *count > entries.len() / 2);
        counts
    }
}
