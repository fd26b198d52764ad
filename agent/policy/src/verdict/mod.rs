//! What the kernel judges alone: the rules that kill, as the kernel evaluates them at an exec, before
//! it starts, and at the kinds of [`AFTER`], once the call is through; and the rules that deny, at the kinds
//! of [`DENIABLE`] for which a host has a door, before the call does anything.
//!
//! A plan has up to [`ATOMS_MAX`] atoms, each a question with the answers yes, no and unknown, and
//! up to [`CLAUSES_MAX`] clauses. A clause holds if the atoms it needs are all yes and those it
//! forbids are all no; then its rule kills. So unlike the filter's ([`crate::plan`]) a clause is never looser than
//! the rule it came from: where one holds, the rule matches and none of its exceptions does.
//! Nor is it stricter: if every answer is known, a clause of a rule holds exactly then. A rule
//! that cannot be brought into that form as a whole is not in the plan; the agent judges it.

mod compile;
mod formula;
mod net;
pub mod scope;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;

use sumun_proto::FieldId;
use sumun_proto::v1::Kind;

pub(crate) use compile::holds_always;

use self::formula::{Atoms, Conjunction, Formula, disjunction};
use self::scope::Scope;
use crate::doors::{DENIABLE, Doors};
use crate::file::{CheckedPolicy, Effect, Mode, Rule};
use crate::narrow::on_kind;

/// Most atoms of a plan.
pub const ATOMS_MAX: usize = 64;
/// Most clauses of a plan.
pub const CLAUSES_MAX: usize = 64;
/// Most atoms about numbers.
pub const NUMBERS_MAX: usize = 32;
/// Most texts of all atoms: the kernel's map holds two plans, each with its filter, which has the other half.
pub const TEXTS_MAX: usize = sumun_abi::policy::MATCH_ENTRIES as usize / 4;
/// Most networks of an atom.
pub const NETS_MAX: usize = 1024;
/// Longest text in an atom, in bytes: one byte less than a key of the kernel's map holds.
pub const TEXT_MAX: usize = 254;

/// Kinds besides exec that the kernel judges: when the event has happened. Of the others only the agent
/// knows enough: what a rename or unlink names is the caller's word.
pub const AFTER: [Kind; 5] = [
    Kind::Open,
    Kind::CloseWrite,
    Kind::Connect,
    Kind::Accept,
    Kind::MapExec,
];

/// The plan of all rules that kill or deny in `enforce` and that the kernel can judge alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerdictPlan {
    /// Questions; bit n of a clause's words stands for the n-th.
    pub atoms: Vec<Atom>,
    /// In the order of their rules.
    pub clauses: Vec<VerdictClause>,
}

/// A question about an event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Atom {
    /// About the executable of the process's image; on exec, of the new one.
    Exe(Texts),
    /// About that of one of its ancestors, at least. If none is known to be one of the texts, the
    /// answer is no only if all of them are known, up to a process without a parent: that of
    /// an ancestor without an executable (a kernel thread), or whose exec was not seen, is unknown.
    Ancestor(Texts),
    /// About a number.
    Number {
        /// Which.
        id: Id,
        /// From the first to the last, both included.
        range: (u32, u32),
    },
    /// About the path of the file; of a call that is asked about before it happens, also of what is mounted on, loaded or reached for.
    File(Texts),
    /// About the path that a file is to have.
    To(Texts),
    /// About the name of a setting of the kernel, parted by slashes; its texts are whole ones and prefixes.
    Setting(Texts),
    /// About the value that it is to have, likewise.
    Value(Texts),
    /// Whether this bit of the record's flags (one of `sumun_abi::policy::ACCESS_BITS`) is set.
    Flag(u32),
    /// About an end of the connection: it lies in one of the networks (address with zero host bits, length
    /// of the prefix), which are sorted; none of them is of IPv4 addresses mapped to IPv6.
    Net {
        /// Which end.
        end: End,
        /// One to [`NETS_MAX`] networks.
        nets: Vec<(IpAddr, u8)>,
    },
    /// About whose the process is; answered by its cgroup.
    Scope(Scope),
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// `net.src`
    Src,
    /// `net.dst`
    Dst,
}

/// Paths, as bytes; all lists are sorted. One of them applies. A text has one to
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
    /// Number of its texts and networks.
    fn texts(&self) -> usize {
        match self {
            Atom::Exe(texts)
            | Atom::Ancestor(texts)
            | Atom::File(texts)
            | Atom::To(texts)
            | Atom::Setting(texts)
            | Atom::Value(texts) => texts.names.len() + texts.paths.len() + texts.prefixes.len(),
            Atom::Net { nets, .. } => nets.len(),
            Atom::Number { .. } | Atom::Flag(_) | Atom::Scope(_) => 0,
        }
    }
}

/// A number that is asked for.
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
    /// `net.src.port`
    SrcPort,
    /// `net.dst.port`
    DstPort,
    /// The IP protocol: 6 is `net.proto == "tcp"`, 17 `"udp"`, 262 `"mptcp"`.
    Protocol,
    /// `result`, moved up by [`RESULT_ZERO`].
    Result,
    /// Of an exec: 1 if `proc.exe.in_image`, 0 if not, [`NO_IMAGE`] if that is absent.
    InImage,
    /// 1 if this capability is in `proc.cap_effective`, 0 if not.
    Capability(u8),
}

/// As an [`Id::InImage`]: the root directory of the process is of no image.
pub const NO_IMAGE: u32 = sumun_abi::verdict::id::NO_IMAGE;

/// What a result of zero is as an [`Id::Result`].
pub const RESULT_ZERO: u32 = 1 << 31;

/// Atoms that together make a rule kill or deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictClause {
    /// Number of the rule: its place among all rules of the policies, in their order.
    pub rule: usize,
    /// Kinds that it is about, by [`kind_bit`], or of a rule that denies by [`denied_bit`]; and [`FORCED`].
    pub kinds: u32,
    /// Atoms that have to be yes.
    pub need: u64,
    /// Atoms that have to be no.
    pub forbid: u64,
}

/// A rule that kills or denies in `enforce`, but that the kernel does not judge on a kind on which it could.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Late {
    /// Its place among all rules of the policies.
    pub rule: usize,
    /// One of its kinds: exec or one of [`AFTER`], or of a rule that denies one for which there is a door.
    pub kind: Kind,
    /// Why only the agent can judge it.
    pub reason: String,
}

/// What a plan says of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// This rule kills, or denies: that of the first clause that holds.
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
    ///
    /// There is room for what is denied first, then for execs: what is stopped before it starts is worth more.
    #[must_use]
    pub fn build(policies: &[CheckedPolicy], doors: &Doors, now_ns: i64) -> (Self, Vec<Late>) {
        let mut building = Building::default();
        let mut late = Vec::new();
        let rules = |effect| {
            policies
                .iter()
                .flat_map(|policy| policy.rules.iter().map(move |rule| (policy.mode, rule)))
                .enumerate()
                .filter(move |(_, (mode, rule))| rule.effect == effect && *mode == Mode::Enforce)
        };
        let denied: Vec<Kind> = DENIABLE
            .into_iter()
            .filter(|kind| doors.door(*kind).is_ok())
            .collect();
        for (effect, kinds) in [
            (Effect::Deny, &denied[..]),
            (Effect::Kill, &[Kind::Exec]),
            (Effect::Kill, &AFTER),
        ] {
            for (number, (_, rule)) in rules(effect) {
                for kind in kinds.iter().filter(|kind| rule.kinds.contains(kind)) {
                    let bit = match effect {
                        Effect::Deny => denied_bit(*kind),
                        _ if rule.force => kind_bit(*kind) | FORCED,
                        _ => kind_bit(*kind),
                    };
                    let works = match effect {
                        Effect::Kill => doors.kills(*kind),
                        _ => Ok(()),
                    };
                    let added = works
                        .and_then(|()| clauses(rule, *kind, now_ns))
                        .and_then(|(atoms, clauses)| building.add((number, bit), &atoms, &clauses));
                    if let Err(reason) = added {
                        late.push(Late {
                            rule: number,
                            kind: *kind,
                            reason,
                        });
                    }
                }
            }
        }
        let mut plan = building.plan;
        plan.clauses.sort_by_key(|clause| clause.rule);
        late.sort_by_key(|late| late.rule);
        (plan, late)
    }

    /// The questions about executables that are asked on other kinds than exec, as bits: the answers have to be
    /// kept with each process.
    #[must_use]
    pub fn kept(&self) -> u64 {
        let after = self.clauses.iter();
        // Of an exec that is denied it is the new one that is asked for.
        let execs = kind_bit(Kind::Exec) | denied_bit(Kind::Exec) | FORCED;
        let after = after.filter(|clause| clause.kinds & !execs != 0);
        let asked = after.fold(0, |all, clause| all | clause.need | clause.forbid);
        let atoms = self.atoms.iter().enumerate();
        atoms
            .filter(|(_, atom)| matches!(atom, Atom::Exe(_)))
            .fold(0, |all, (place, _)| all | 1 << place)
            & asked
    }

    /// What the kernel does at an event of a kind, given the answer to each question; `None` is unknown.
    #[must_use]
    pub fn judge(&self, kind: Kind, answer: impl Fn(&Atom) -> Option<bool>) -> Outcome {
        self.judge_by(kind_bit(kind), answer)
    }

    /// What the kernel does at a call before it happens, likewise.
    #[must_use]
    pub fn judge_before(&self, kind: Kind, answer: impl Fn(&Atom) -> Option<bool>) -> Outcome {
        self.judge_by(denied_bit(kind), answer)
    }

    fn judge_by(&self, kind: u32, answer: impl Fn(&Atom) -> Option<bool>) -> Outcome {
        let (mut yes, mut no) = (0_u64, 0_u64);
        for (number, atom) in self.atoms.iter().enumerate() {
            match answer(atom) {
                Some(true) => yes |= 1 << number,
                Some(false) => no |= 1 << number,
                None => {}
            }
        }
        let mut possible = false;
        let clauses = self.clauses.iter();
        for clause in clauses.filter(|clause| clause.kinds & kind != 0) {
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

/// In [`VerdictClause::kinds`], of a rule that kills: it means what runs the host and its containers, too (`force = true`).
pub const FORCED: u32 = 1 << 15;

/// When an exception of a rule that kills or denies expires next after a time, ns since the Unix epoch: the
/// plan has to be built again then, for what it excepted to be killed.
#[must_use]
pub fn next_expiry(policies: &[CheckedPolicy], now_ns: i64) -> Option<i64> {
    policies
        .iter()
        .flat_map(|policy| &policy.rules)
        .filter(|rule| matches!(rule.effect, Effect::Kill | Effect::Deny))
        .flat_map(|rule| &rule.exceptions)
        .filter_map(|exception| exception.expires_ns)
        .filter(|expires| *expires > now_ns)
        .min()
}

/// The bit of a kind in [`VerdictClause::kinds`]: the first is exec's, then those of [`AFTER`] follow. The kernel judges no
/// other: 0.
#[must_use]
pub fn kind_bit(kind: Kind) -> u32 {
    let place = AFTER.iter().position(|after| *after == kind);
    match kind {
        Kind::Exec => 1,
        _ => place.map_or(0, |place| 2 << place),
    }
}

/// The bit of a call that is asked about before it happens in [`VerdictClause::kinds`]; 0: nothing can deny the kind.
#[must_use]
pub fn denied_bit(kind: Kind) -> u32 {
    let place = DENIABLE.iter().position(|known| *known == kind);
    place.map_or(0, sumun_abi::verdict::on::denied)
}

/// Why the kernel cannot judge a rule on a kind, all its exceptions included, if it were the only one.
pub(crate) fn late_alone(rule: &Rule, kind: Kind) -> Option<String> {
    // One bit is as good as another.
    clauses(rule, kind, i64::MIN)
        .and_then(|(atoms, clauses)| Building::default().add((0, 1), &atoms, &clauses))
        .err()
}

/// What is known only once a call is through, of what the kernel could judge then.
fn comes_too_late(field: FieldId, kind: Kind) -> bool {
    match field {
        FieldId::Result
        | FieldId::NetSrcIp
        | FieldId::NetSrcPort
        | FieldId::NetSrcPrivate
        | FieldId::FileCreate => true,
        // The program may be set-user-id.
        FieldId::ProcEuid | FieldId::ProcEgid | FieldId::ProcCapEffective => kind == Kind::Exec,
        _ => false,
    }
}

/// The clauses of a rule on a kind, or why there are none.
fn clauses(rule: &Rule, kind: Kind, now_ns: i64) -> Result<(Atoms, Vec<Conjunction>), String> {
    let denies = rule.effect == Effect::Deny;
    if denies {
        let exceptions = rule.exceptions.iter().map(|exception| &exception.predicate);
        let late = std::iter::once(&rule.predicate)
            .chain(exceptions)
            .flat_map(|predicate| predicate.fields())
            .find(|field| on_kind(*field, kind) && comes_too_late(*field, kind));
        if let Some(field) = late {
            let name = field.info().name;
            return Err(format!("{name} is not known before the call is made"));
        }
    }
    let only = match denies {
        true => "before the call is made, the kernel cannot judge",
        false => "only the agent can judge",
    };
    let compiled =
        |predicate| compile::compile(predicate, kind).map_err(|beyond| format!("{only} {beyond}"));
    let mut parts = match &rule.presumed {
        None => vec![compiled(&rule.predicate)?],
        // Of no other part an unknown answer counts as yes.
        Some(presumed) => vec![
            Formula::Scope {
                scope: Scope {
                    asked: presumed.selector.clone(),
                    presumed: true,
                },
                yes: true,
            },
            compiled(&presumed.when)?,
        ],
    };
    for exception in &rule.exceptions {
        if exception
            .expires_ns
            .is_some_and(|expires| expires <= now_ns)
        {
            continue;
        }
        let excepts = compile::compile(&exception.predicate, kind).map_err(|beyond| {
            let name = &exception.name;
            format!("{only} the exception {name:?}: {beyond}")
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
    numbers: HashMap<Atom, u32>,
}

impl Building {
    /// Adds a rule on a kind with all its clauses, or nothing of it.
    fn add(
        &mut self,
        (rule, kinds): (usize, u32),
        atoms: &Atoms,
        clauses: &[Conjunction],
    ) -> Result<(), String> {
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
        let mut known = self.numbers.clone();
        known.extend(
            (known.len() as u32..)
                .zip(&added)
                .map(|(bit, number)| (atoms.all[*number].clone(), bit)),
        );
        let word = |set: &std::collections::BTreeSet<usize>| {
            set.iter()
                .filter_map(|number| known.get(&atoms.all[*number]))
                // There may turn out to be too many.
                .fold(0_u64, |word, bit| word | 1_u64.wrapping_shl(*bit))
        };
        let mut all = self.plan.clauses.clone();
        for clause in clauses {
            let clause = VerdictClause {
                rule,
                kinds,
                need: word(&clause.need),
                forbid: word(&clause.forbid),
            };
            // The same on another kind.
            match all.iter_mut().find(|known| {
                VerdictClause {
                    kinds: known.kinds,
                    ..clause
                } == **known
            }) {
                Some(known) => known.kinds |= clause.kinds,
                None => all.push(clause),
            }
        }
        if all.len() > CLAUSES_MAX {
            return Err(full(CLAUSES_MAX, "clauses"));
        }
        if self.plan.atoms.len() + added.len() > ATOMS_MAX {
            return Err(full(ATOMS_MAX, "questions"));
        }
        let about_numbers = self.plan.atoms.iter();
        let about_numbers = about_numbers.chain(added.iter().map(|number| &atoms.all[*number]));
        let numbers = about_numbers.filter(|atom| matches!(atom, Atom::Number { .. }));
        if numbers.count() > NUMBERS_MAX {
            return Err(full(NUMBERS_MAX, "ranges of numbers"));
        }
        let asked = self.plan.atoms.iter();
        let asked = asked.chain(added.iter().map(|number| &atoms.all[*number]));
        if asked.map(Atom::texts).sum::<usize>() > TEXTS_MAX {
            return Err(full(TEXTS_MAX, "names, paths and networks"));
        }
        let added = added.iter().map(|number| atoms.all[*number].clone());
        self.plan.atoms.extend(added);
        self.plan.clauses = all;
        self.numbers = known;
        Ok(())
    }
}
