//! What the kernel has to send: the plan its pre-filter is loaded with.
//!
//! The plan lets through every event that some rule could match or could not
//! decide; it may let through more. An event passes a kind's plan if
//! one clause holds; a clause holds if each of its conditions does; a condition
//! whose field the kernel could not judge (lost, truncated, a map full) holds.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use sumun_proto::FieldId;
use sumun_proto::catalogue::{KINDS, family, kind_name};
use sumun_proto::v1::{Kind, Scope, ScopeRule, scope::Mode};
use sumun_proto::view::OF_WRITER;

use crate::errors::Errors;
use crate::file::{CheckedPolicy, Rule};
use crate::ir::Predicate;
use crate::narrow::{narrow, reduce};

/// Most clauses of one kind; a plan that would need more is widened. The
/// kernel side has 64 for the kinds of files that are filtered, and 64 for
/// the two of connections.
pub const CLAUSES_MAX: usize = 32;

/// Most entries of the kernel's map for one filter, with those of the rules that kill: two are in it during a swap.
pub const ENTRIES_MAX: usize = sumun_abi::policy::MATCH_ENTRIES as usize / 2;

/// Bytes of kernel memory for an entry of that map, at most: its node of the trie, and one where two part.
pub const ENTRY_BYTES: usize = 2 * 512;

/// Most bytes of one kind's scope: predicates first, then only the rules' names.
pub const SCOPE_BYTES: usize = 256 * 1024;

/// The plan of all kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Every kind of the catalogue once, in the order of their numbers.
    pub kinds: Vec<(Kind, KindPlan)>,
    /// Of kinds that [`tells_failures`] is true of, the errors that rules ask for, if they do: a call that failed with another is
    /// not sent.
    pub failures: Vec<(Kind, Errors)>,
    /// Some rule asks who wrote an executable.
    pub writers: bool,
}

/// The plan of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KindPlan {
    /// No rule asks for it: nothing is sent.
    #[default]
    None,
    /// Everything is sent.
    All,
    /// Sent if one of these holds. One to [`CLAUSES_MAX`], none of them empty.
    Clauses(Vec<Clause>),
}

/// Conditions that must all hold; a `None` asks for nothing. All lists are sorted and not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Clause {
    /// Paths, as bytes, that start with one of these; with `path_exact`
    /// one condition: one of either holds.
    pub path_prefixes: Option<Vec<Vec<u8>>>,
    /// Paths, as bytes, that equal one of these.
    pub path_exact: Option<Vec<Vec<u8>>>,
    /// Last component of the executable's path; with `exe_paths` one condition.
    pub exe_names: Option<Vec<Vec<u8>>>,
    /// Path of the executable.
    pub exe_paths: Option<Vec<Vec<u8>>>,
    /// One of these bits (of `sumun_abi::policy::ACCESS_BITS`) is set. With `OPEN_TRUNCATE`,
    /// `OPEN_TRUNCATE_UNKNOWN` is one that could not be judged.
    pub access_any: Option<u32>,
    /// Source ports, in disjoint ranges.
    pub src_ports: Option<Vec<Ports>>,
    /// Destination ports, in disjoint ranges.
    pub dst_ports: Option<Vec<Ports>>,
    /// Source networks: address with zero host bits, prefix length.
    pub src_nets: Option<Vec<(IpAddr, u8)>>,
    /// Destination networks.
    pub dst_nets: Option<Vec<(IpAddr, u8)>>,
}

/// Ports from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports {
    /// First port.
    pub first: u16,
    /// Last port, not below the first.
    pub last: u16,
}

impl Ports {
    /// The fewest aligned blocks that make up the range.
    fn blocks(&self) -> usize {
        let (mut first, end) = (u32::from(self.first), u32::from(self.last) + 1);
        let mut blocks = 0;
        while first < end {
            let aligned = if first == 0 {
                16
            } else {
                first.trailing_zeros()
            };
            first += 1 << aligned.min((end - first).ilog2());
            blocks += 1;
        }
        blocks
    }

    /// The same as a range.
    #[must_use]
    pub fn range(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

/// True for fork, exec and exit: always sent and stored, whatever the rules say.
#[must_use]
pub fn is_life(kind: Kind) -> bool {
    matches!(kind, Kind::Fork | Kind::Exec | Kind::Exit)
}

/// True for kinds whose name is the caller's word on the rung without
/// decision points: a filter could be misled, so every event is sent and stored if any rule
/// asks for the kind. So is what the agent finds by itself ([`is_own`]).
#[must_use]
pub fn is_unfiltered(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Rename
            | Kind::Unlink
            | Kind::Chmod
            | Kind::Chown
            | Kind::Truncate
            | Kind::Link
            | Kind::Symlink
            | Kind::Setxattr
            | Kind::Mount
            | Kind::Umount
            | Kind::PivotRoot
            | Kind::Chroot
    ) || is_own(kind)
}

/// True for kinds of which a call that failed is an event if some rule asks for its error, by reading `result`. (Of ptrace, of modules and
/// others every attempt is one: there it says enough.)
#[must_use]
pub fn tells_failures(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Open
            | Kind::Rename
            | Kind::Unlink
            | Kind::Chmod
            | Kind::Chown
            | Kind::Truncate
            | Kind::Link
            | Kind::Symlink
            | Kind::Setxattr
            | Kind::Setid
            | Kind::Capset
            | Kind::Unshare
            | Kind::Setns
            | Kind::Mount
            | Kind::Umount
            | Kind::PivotRoot
            | Kind::Chroot
    )
}

/// True for what no record of the kernel tells: the agent looks for it while a rule asks for the kind.
#[must_use]
pub fn is_own(kind: Kind) -> bool {
    kind == Kind::Integrity
}

/// True for kinds that the kernel side does not filter: every record is sent if any rule asks for the kind. Those
/// that are not [`is_unfiltered`] too are stored if a rule matches; they are few on any host.
#[must_use]
pub fn is_whole(kind: Kind) -> bool {
    is_unfiltered(kind)
        || matches!(family(kind), "privilege" | "kernel")
        || matches!(kind, Kind::Bind | Kind::Listen | Kind::Socket | Kind::Dns)
}

/// True if a rule reads the name that an address was resolved from.
#[must_use]
pub fn reads_names(rule: &Rule) -> bool {
    let connects = |kind: &Kind| matches!(kind, Kind::Connect | Kind::ConnectUdp);
    rule.kinds.iter().any(connects) && reads(rule, &[FieldId::NetDstName])
}

/// True if a rule asks for what the agent finds by itself: which modules there are is known from their loading and their removal.
#[must_use]
pub fn watches_modules(rule: &Rule) -> bool {
    rule.kinds.iter().any(|kind| is_own(*kind))
}

/// True if a rule reads who wrote an executable: only then it is watched.
#[must_use]
pub fn reads_writers(rule: &Rule) -> bool {
    reads(rule, &OF_WRITER)
}

/// True if a rule or one of its exceptions reads one of these fields.
fn reads(rule: &Rule, fields: &[FieldId]) -> bool {
    let reads = |predicate: &Predicate| {
        let read = predicate.fields();
        fields.iter().any(|field| read.contains(field))
    };
    let exceptions = &rule.exceptions;
    reads(&rule.predicate) || exceptions.iter().any(|one| reads(&one.predicate))
}

impl Plan {
    /// The plan for all rules of all policies, and a sentence for each kind
    /// that had to be widened because it needs more than [`CLAUSES_MAX`] clauses, and one if the
    /// kernel may lack the room for all kinds.
    #[must_use]
    pub fn build(policies: &[CheckedPolicy]) -> (Self, Vec<String>) {
        let mut warnings = Vec::new();
        let kinds = KINDS
            .iter()
            .map(|(name, kind)| {
                let rules = policies.iter().flat_map(|policy| &policy.rules);
                let asked = rules
                    .filter(|rule| rule.kinds.contains(kind))
                    .map(|rule| &rule.predicate);
                let KindFilter { plan, widened, .. } = KindFilter::of(asked, *kind);
                if widened {
                    let what = match plan {
                        KindPlan::All => "every record is sent",
                        _ => "one looser filter is used",
                    };
                    warnings.push(format!(
                        "the rules on {name} need more than {CLAUSES_MAX} kernel clauses: {what}; use `in` and lists instead of many rules"
                    ));
                }
                (*kind, plan)
            })
            .collect();
        let mut plan = Self {
            kinds,
            failures: Vec::new(),
            writers: false,
        };
        let rules = policies.iter().flat_map(|policy| &policy.rules);
        for rule in rules {
            for kind in rule.kinds.iter().filter(|kind| tells_failures(**kind)) {
                plan.ask_failures(*kind, Errors::asked(&rule.predicate));
            }
            // The names that addresses were resolved from come from what DNS servers answer.
            if reads_names(rule) {
                plan.ask(Kind::Dns);
            }
            plan.writers |= reads_writers(rule);
            if watches_modules(rule) {
                plan.ask(Kind::ModuleLoad);
                plan.ask(Kind::ModuleUnload);
            }
        }
        let entries: usize = plan.clauses().map(Clause::entries).sum();
        if entries > ENTRIES_MAX {
            warnings.push(format!(
                "the rules need up to {entries} entries of the kernel's map, which has room for {ENTRIES_MAX}: of kinds that do not fit in every event is sent to user space; use shorter lists"
            ));
        }
        (plan, warnings)
    }

    /// Everything of a kind is sent.
    fn ask(&mut self, kind: Kind) {
        for (known, plan) in &mut self.kinds {
            if *known == kind {
                *plan = KindPlan::All;
            }
        }
    }

    fn ask_failures(&mut self, kind: Kind, errors: Errors) {
        if errors == Errors::NONE {
            return;
        }
        match self.failures.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, asked)) => *asked = asked.or(errors),
            None => self.failures.push((kind, errors)),
        }
    }

    /// Errors of a kind with which a call is sent.
    #[must_use]
    pub fn failures(&self, kind: Kind) -> Errors {
        let found = self.failures.iter().find(|(known, _)| *known == kind);
        found.map_or(Errors::NONE, |(_, errors)| *errors)
    }

    fn clauses(&self) -> impl Iterator<Item = &Clause> {
        self.kinds.iter().flat_map(|(_, plan)| match plan {
            KindPlan::Clauses(clauses) => clauses.as_slice(),
            KindPlan::None | KindPlan::All => &[],
        })
    }

    /// The plan of a kind.
    #[must_use]
    pub fn kind(&self, kind: Kind) -> &KindPlan {
        self.kinds
            .iter()
            .find(|(known, _)| *known == kind)
            .map_or(&KindPlan::None, |(_, plan)| plan)
    }
}

/// The plan of a kind, and what is known of it.
pub(crate) struct KindFilter {
    pub(crate) plan: KindPlan,
    /// There would have been more than [`CLAUSES_MAX`] clauses.
    pub(crate) widened: bool,
    /// Of the events whose fields the kernel can read, it lets through those that one of the
    /// predicates matches, and no other. False means only "not seen".
    pub(crate) exact: bool,
}

impl KindFilter {
    /// The filter for predicates that are asked on a kind.
    pub(crate) fn of<'a>(asked: impl IntoIterator<Item = &'a Predicate>, kind: Kind) -> Self {
        let all = Self {
            plan: KindPlan::All,
            widened: false,
            exact: false,
        };
        if is_life(kind) {
            return all;
        }
        let mut clauses = Vec::new();
        let (mut widened, mut exact) = (false, true);
        for predicate in asked {
            if is_unfiltered(kind) && !tells_failures(kind) {
                return all;
            }
            let narrowed = narrow(predicate, kind);
            if is_whole(kind) && !narrowed.clauses.is_empty() {
                return all;
            }
            widened |= narrowed.widened;
            exact &= narrowed.exact;
            clauses.extend(narrowed.clauses);
        }
        let (clauses, reduced) = reduce(clauses);
        widened |= reduced;
        let plan = if clauses.is_empty() {
            KindPlan::None
        } else if clauses.iter().any(Clause::is_everything) {
            KindPlan::All
        } else {
            KindPlan::Clauses(clauses)
        };
        Self {
            plan,
            widened,
            exact: exact && !widened,
        }
    }
}

/// What is stored of each kind under these policies, one row a kind. The time,
/// the hash of the policies and the generation are left for the agent to fill in.
///
/// Fork, exec and exit are always stored; what the caller names ([`is_unfiltered`]) is if any rule
/// asks for the kind, and not only for calls that fail. Of the others, an event is stored if a
/// rule matches or cannot decide, so a kind is `filtered` by its rules' predicates
/// also where every record is sent to user space.
#[must_use]
pub fn scopes(policies: &[CheckedPolicy]) -> Vec<Scope> {
    KINDS
        .iter()
        .map(|(_, kind)| {
            let asked: Vec<_> = policies
                .iter()
                .flat_map(|policy| policy.rules.iter().map(move |rule| (policy, rule)))
                .filter(|(_, rule)| rule.kinds.contains(kind))
                .collect();
            let everything = Predicate::everything();
            let everything = asked.iter().any(|(_, rule)| rule.predicate == everything)
                || is_unfiltered(*kind)
                    && KindFilter::of(asked.iter().map(|(_, rule)| &rule.predicate), *kind).plan
                        != KindPlan::None;
            let (mode, (rules, reason)) = if is_life(*kind) || everything {
                // Of calls that failed only what rules ask for is told.
                let mut of_failures = asked;
                of_failures
                    .retain(|(_, rule)| tells_failures(*kind) && reads(rule, &[FieldId::Result]));
                (Mode::All, recorded(&of_failures))
            } else if asked.is_empty() {
                let reason = format!("no rule asks for {}", kind_name(*kind));
                (Mode::None, (Vec::new(), reason))
            } else {
                (Mode::Filtered, recorded(&asked))
            };
            Scope {
                kind: (*kind).into(),
                mode: mode.into(),
                rules,
                reason,
                ..Scope::default()
            }
        })
        .collect()
}

/// What a scope says of the rules on a kind, and what it leaves out. What is left out is not said to be
/// collected, so less is claimed than is true.
fn recorded(asked: &[(&CheckedPolicy, &Rule)]) -> (Vec<ScopeRule>, String) {
    let mut rules = Vec::with_capacity(asked.len());
    let (mut bytes, mut unsaid, mut unnamed) = (0, 0, 0);
    for (policy, rule) in asked {
        let mut predicate = rule.predicate.to_string();
        let names = 16 + policy.name.len() + rule.id.len();
        if bytes + names + predicate.len() > SCOPE_BYTES {
            predicate.clear();
            unsaid += 1;
        }
        if bytes + names > 2 * SCOPE_BYTES {
            unnamed += 1;
            continue;
        }
        bytes += names + predicate.len();
        rules.push(ScopeRule {
            policy: policy.name.clone(),
            rule: rule.id.clone(),
            predicate,
        });
    }
    let reason = match (unsaid, unnamed) {
        (0, _) => String::new(),
        (_, 0) => format!("the predicates of {unsaid} rules are too long for the record"),
        _ => format!(
            "the predicates of {unsaid} rules are too long for the record, and {unnamed} are not named in it"
        ),
    };
    (rules, reason)
}

impl Clause {
    /// Entries of the kernel's map that it takes, at most.
    #[must_use]
    pub fn entries(&self) -> usize {
        fn count<T>(items: &Option<Vec<T>>) -> usize {
            items.as_ref().map_or(0, Vec::len)
        }
        // A path has its folder's entry, too.
        let files = 2 * (count(&self.path_prefixes) + count(&self.path_exact));
        let programs = count(&self.exe_names) + count(&self.exe_paths);
        let nets = count(&self.src_nets) + count(&self.dst_nets);
        let ports = [&self.src_ports, &self.dst_ports].into_iter().flatten();
        files + programs + nets + ports.flatten().map(Ports::blocks).sum::<usize>()
    }

    /// True when nothing is asked for.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }
}
