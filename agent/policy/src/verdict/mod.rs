//! What the kernel judges alone: the rules that kill, as the kernel evaluates them at an exec.
//!
//! A plan has up to [`ATOMS_MAX`] atoms, each a question with the answers yes, no and unknown, and
//! up to [`CLAUSES_MAX`] clauses. A clause holds if the atoms it needs are all yes and those it
//! forbids are all no; then its rule kills. So unlike the filter's ([`crate::plan`]) a clause is never looser than
//! the rule it came from: where one holds, the rule matches and none of its exceptions does.
//! Nor is it stricter: if every answer is known, a clause of a rule holds exactly then. A rule
//! that cannot be brought into that form as a whole is not in the plan; the agent judges it.

mod compile;
mod formula;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use sumun_proto::v1::Kind;

pub(crate) use compile::holds_always;

use self::formula::{Atoms, Conjunction, Formula, disjunction};
use crate::file::{CheckedPolicy, Effect, Mode, Rule};

/// Most atoms of a plan.
pub const ATOMS_MAX: usize = 64;
/// Most clauses of a plan.
pub const CLAUSES_MAX: usize = 64;
/// Most atoms about numbers.
pub const NUMBERS_MAX: usize = 32;
/// Most texts of all atoms: the kernel's map holds two plans, each with its filter, which has the other half.
pub const TEXTS_MAX: usize = sumun_abi::policy::MATCH_ENTRIES as usize / 4;
/// Longest text in an atom, in bytes: one byte less than a key of the kernel's map holds.
pub const TEXT_MAX: usize = 254;

/// The plan of all rules that kill in `enforce` and that the kernel can judge alone on execs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerdictPlan {
    /// Questions; bit n of a clause's words stands for the n-th.
    pub atoms: Vec<Atom>,
    /// In the order of their rules.
    pub clauses: Vec<VerdictClause>,
}

/// A question about an exec.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Atom {
    /// About the new image's executable.
    Exe(Texts),
    /// About that of one of its ancestors, at least. If none is known to be one of the texts, the
    /// answer is no only if all of them are known, up to a process without a parent: that of
    /// an ancestor without an executable (a kernel thread), or whose exec was not seen, is unknown.
    Ancestor(Texts),
    /// About an id of the process.
    Number {
        /// Which.
        id: Id,
        /// From the first to the last, both included.
        range: (u32, u32),
    },
}

/// Paths of executables, as bytes; all lists are sorted. One of them applies. A text has one to
/// [`TEXT_MAX`] bytes, none of them zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Texts {
    /// The last component is one of these.
    pub names: Vec<Vec<u8>>,
    /// The path is one of these.
    pub paths: Vec<Vec<u8>>,
    /// The path begins with one of these.
    pub prefixes: Vec<Vec<u8>>,
}

impl Atom {
    /// Number of its texts.
    fn texts(&self) -> usize {
        match self {
            Atom::Exe(texts) | Atom::Ancestor(texts) => {
                texts.names.len() + texts.paths.len() + texts.prefixes.len()
            }
            Atom::Number { .. } => 0,
        }
    }
}

/// An id that every process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Id {
    /// `proc.uid`
    Uid,
    /// `proc.gid`
    Gid,
    /// `proc.euid`
    Euid,
    /// `proc.egid`
    Egid,
}

/// Atoms that together make a rule kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictClause {
    /// Number of the rule: its place among all rules of the policies, in their order.
    pub rule: usize,
    /// Atoms that have to be yes.
    pub need: u64,
    /// Atoms that have to be no.
    pub forbid: u64,
}

/// A rule that kills in `enforce` on execs, but that the kernel does not judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Late {
    /// Its place among all rules of the policies.
    pub rule: usize,
    /// Why only the agent can judge it.
    pub reason: String,
}

/// What a plan says of an exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// This rule kills: that of the first clause that holds.
    Kills(usize),
    /// No clause holds, but one could if its unknown answers were known.
    Undecided,
    /// No clause can hold.
    Nothing,
}

impl VerdictPlan {
    /// The plan for all rules of all policies, and what is left to the agent with the reason, in
    /// the order of the rules. Exceptions that have expired at `now_ns`, ns since the Unix epoch, no
    /// longer count; the others do until the plan is built again, at [`next_expiry`].
    #[must_use]
    pub fn build(policies: &[CheckedPolicy], now_ns: i64) -> (Self, Vec<Late>) {
        let mut building = Building::default();
        let mut late = Vec::new();
        let rules = policies
            .iter()
            .flat_map(|policy| policy.rules.iter().map(move |rule| (policy.mode, rule)));
        for (number, (mode, rule)) in rules.enumerate() {
            let asked = rule.effect == Effect::Kill && rule.kinds.contains(&Kind::Exec);
            if !asked || mode != Mode::Enforce {
                continue;
            }
            let added = clauses(rule, now_ns)
                .and_then(|(atoms, clauses)| building.add(number, &atoms, &clauses));
            if let Err(reason) = added {
                late.push(Late {
                    rule: number,
                    reason,
                });
            }
        }
        (building.plan, late)
    }

    /// What the kernel does at an exec, given the answer to each question; `None` is unknown.
    #[must_use]
    pub fn judge(&self, answer: impl Fn(&Atom) -> Option<bool>) -> Outcome {
        let (mut yes, mut no) = (0_u64, 0_u64);
        for (number, atom) in self.atoms.iter().enumerate() {
            match answer(atom) {
                Some(true) => yes |= 1 << number,
                Some(false) => no |= 1 << number,
                None => {}
            }
        }
        let mut possible = false;
        for clause in &self.clauses {
            if clause.need & !yes == 0 && clause.forbid & !no == 0 {
                return Outcome::Kills(clause.rule);
            }
            possible |= clause.need & no == 0 && clause.forbid & yes == 0;
        }
        match possible {
            true => Outcome::Undecided,
            false => Outcome::Nothing,
        }
    }
}

/// When an exception of a rule that kills expires next after a time, ns since the Unix epoch: the
/// plan has to be built again then, for what it excepted to be killed.
#[must_use]
pub fn next_expiry(policies: &[CheckedPolicy], now_ns: i64) -> Option<i64> {
    policies
        .iter()
        .flat_map(|policy| &policy.rules)
        .filter(|rule| rule.effect == Effect::Kill)
        .flat_map(|rule| &rule.exceptions)
        .filter_map(|exception| exception.expires_ns)
        .filter(|expires| *expires > now_ns)
        .min()
}

/// Why the kernel cannot judge a rule on execs, all its exceptions included, if it were the only one.
pub(crate) fn late_alone(rule: &Rule) -> Option<String> {
    clauses(rule, i64::MIN)
        .and_then(|(atoms, clauses)| Building::default().add(0, &atoms, &clauses))
        .err()
}

/// The clauses of a rule on execs, or why there are none.
fn clauses(rule: &Rule, now_ns: i64) -> Result<(Atoms, Vec<Conjunction>), String> {
    let kills = compile::compile(&rule.predicate, Kind::Exec)
        .map_err(|beyond| format!("only the agent can judge {beyond}"))?;
    let mut parts = vec![kills];
    for exception in &rule.exceptions {
        if exception
            .expires_ns
            .is_some_and(|expires| expires <= now_ns)
        {
            continue;
        }
        let excepts = compile::compile(&exception.predicate, Kind::Exec).map_err(|beyond| {
            let name = &exception.name;
            format!("only the agent can judge the exception {name:?}: {beyond}")
        })?;
        parts.push(excepts.not());
    }
    let mut atoms = Atoms::default();
    let clauses = disjunction(&Formula::and(parts), &mut atoms).map_err(|_| {
        format!("its conditions and exceptions need more than {CLAUSES_MAX} clauses in the kernel")
    })?;
    Ok((atoms, clauses))
}

/// A plan to which rules are added while there is room.
#[derive(Default)]
struct Building {
    plan: VerdictPlan,
    numbers: HashMap<Atom, usize>,
}

impl Building {
    /// Adds a rule with all its clauses, or nothing of it.
    fn add(&mut self, rule: usize, atoms: &Atoms, clauses: &[Conjunction]) -> Result<(), String> {
        let full = |max: usize, what: &str| {
            format!("with the rules before it, there would be more than {max} {what} in the kernel")
        };
        let mut added: Vec<usize> = clauses
            .iter()
            .flat_map(|clause| clause.need.iter().chain(&clause.forbid))
            .copied()
            .filter(|number| !self.numbers.contains_key(&atoms.all[*number]))
            .collect();
        added.sort_unstable();
        added.dedup();
        if self.plan.clauses.len() + clauses.len() > CLAUSES_MAX {
            return Err(full(CLAUSES_MAX, "clauses"));
        }
        if self.plan.atoms.len() + added.len() > ATOMS_MAX {
            return Err(full(ATOMS_MAX, "questions"));
        }
        let about_numbers = self.plan.atoms.iter();
        let about_numbers = about_numbers.chain(added.iter().map(|number| &atoms.all[*number]));
        let numbers = about_numbers.filter(|atom| matches!(atom, Atom::Number { .. }));
        if numbers.count() > NUMBERS_MAX {
            return Err(full(NUMBERS_MAX, "ranges of ids"));
        }
        let asked = self.plan.atoms.iter();
        let asked = asked.chain(added.iter().map(|number| &atoms.all[*number]));
        if asked.map(Atom::texts).sum::<usize>() > TEXTS_MAX {
            return Err(full(TEXTS_MAX, "names and paths"));
        }
        for number in added {
            let atom = atoms.all[number].clone();
            self.numbers.insert(atom.clone(), self.plan.atoms.len());
            self.plan.atoms.push(atom);
        }
        let word = |set: &std::collections::BTreeSet<usize>| {
            set.iter()
                .filter_map(|number| self.numbers.get(&atoms.all[*number]))
                .fold(0_u64, |word, bit| word | 1 << bit)
        };
        self.plan
            .clauses
            .extend(clauses.iter().map(|clause| VerdictClause {
                rule,
                need: word(&clause.need),
                forbid: word(&clause.forbid),
            }));
        Ok(())
    }
}
