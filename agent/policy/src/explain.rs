//! What becomes of each rule: which condition is judged where, what it costs, and
//! what its effect will be.
//!
//! Nothing is analysed here a second time: each answer is read off the plan that
//! the compiler makes of the rule and of its conditions one by one.

use sumun_proto::v1::Kind;

use crate::coarse::{Taken, listed};
use crate::condition::condition;
use crate::deny;
use crate::doors::Doors;
use crate::errors::Errors;
use crate::file::{CheckedPolicy, Effect, Mode, Rule};
use crate::ir::{Expr, Operand, Predicate, Set, Type};
use crate::list::List;
use crate::narrow::{asks_for_failures, never};
use crate::plan::{
    Clause, ENTRY_BYTES, KindFilter, KindPlan, Plan, is_life, reads_names, watches_modules,
};
use crate::rungs::{OnRung, on_rungs};
use crate::verdict::scope::{is_scope, remark};
use crate::verdict::{AFTER, Late, VerdictPlan};

/// A rule on one of its kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// Name of the policy.
    pub policy: String,
    /// Id of the rule.
    pub rule: String,
    /// One of the rule's kinds.
    pub kind: Kind,
    /// What the rule does.
    pub effect: Effect,
    /// What its policy asks for.
    pub requested: Mode,
    /// What can be expected of a host.
    pub effective: Effective,
    /// Why that is less than what was asked for; empty if it is not.
    pub reason: String,
    /// What this rule alone makes the kernel send.
    pub cost: Cost,
    /// What all rules on the kind together make it send.
    pub cost_of_kind: Cost,
    /// What the kernel's filter is to the rule; `None` where it does not filter.
    pub filter: Option<Filter>,
    /// The conditions that the rule joins by `&&`, in its order; none if it has no `when`.
    pub conditions: Vec<Condition>,
    /// The lists too long to be written out that it names, in its order.
    pub lists: Vec<ListUse>,
    /// What becomes of it in `enforce` on each rung that makes a difference.
    pub rungs: Vec<OnRung>,
}

/// What a long list is to a rule on a kind. The agent looks a value up in it by its hash, whatever its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListUse {
    /// What it is called in the policy.
    pub name: String,
    /// Number of items.
    pub items: usize,
    /// Bytes in the agent, shared by all rules that name it.
    pub matcher_bytes: usize,
    /// What the kernel takes of it.
    pub kernel: Taken,
    /// Bytes for that in the kernel, at most; rules with the same condition share them.
    pub kernel_bytes: usize,
}

/// A condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its canonical text.
    pub text: String,
    /// Where it is judged.
    pub judged: Judged,
}

/// Where a condition is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Judged {
    /// In the kernel: what does not meet it is not sent, or if the kernel kills or denies for the rule, not stopped.
    Kernel,
    /// A looser condition in the kernel, the rest in the agent.
    KernelThenAgent,
    /// In the agent, on what the kernel sent.
    Agent,
    /// Nowhere: it cannot be true on this kind.
    Never,
}

/// What the kernel's filter is to a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// It lets through what the rule matches, and what the kernel could not read.
    Exact,
    /// It lets through more.
    Looser,
}

/// What is sent to user space, from the cheapest to the dearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cost {
    /// No event: the rule cannot match.
    Nothing,
    /// No event more: those of process life are always sent.
    Free,
    /// What the kernel's filter lets through.
    Narrow,
    /// Every event of the kind.
    EveryEvent,
}

/// What is done when a rule matches: the fixed list that hosts report from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effective {
    /// The call fails: the kernel judges it before it does anything. An alert is raised.
    Deny,
    /// The call fails, once the agent has judged it. An alert is raised.
    DenyViaAgent,
    /// The process is killed by the kernel, before its first instruction. An alert is raised.
    KillBeforeStart,
    /// The process is killed by the kernel, when the event has happened. An alert is raised.
    KillAfter,
    /// The process is killed once the agent has judged the event. An alert is raised.
    KillLate,
    /// The host is cut off from the network once the agent has judged the event. An alert is raised.
    Isolate,
    /// The event is stored and an alert raised.
    Alert,
    /// The event is stored.
    Record,
    /// Nothing: the rule cannot match on the kind.
    None,
}

impl Judged {
    /// Its name in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Judged::Kernel => "kernel",
            Judged::KernelThenAgent => "kernel, then agent",
            Judged::Agent => "agent",
            Judged::Never => "never true",
        }
    }
}

impl Filter {
    /// Its name in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Filter::Exact => "exact",
            Filter::Looser => "looser",
        }
    }
}

impl Cost {
    /// Its name in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Cost::Nothing => "nothing",
            Cost::Free => "free",
            Cost::Narrow => "narrow",
            Cost::EveryEvent => "every event of the kind",
        }
    }

    fn of(plan: &KindPlan, kind: Kind) -> Self {
        match plan {
            _ if is_life(kind) => Cost::Free,
            KindPlan::None => Cost::Nothing,
            KindPlan::Clauses(_) => Cost::Narrow,
            KindPlan::All => Cost::EveryEvent,
        }
    }
}

impl Effective {
    /// Its name in output and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Effective::Deny => "deny",
            Effective::DenyViaAgent => "deny-via-agent",
            Effective::KillBeforeStart => "kill-before-start",
            Effective::KillAfter => "kill-after",
            Effective::KillLate => "kill-late",
            Effective::Isolate => "isolate",
            Effective::Alert => "alert",
            Effective::Record => "record",
            Effective::None => "none",
        }
    }
}

/// What a rule that isolates does, wherever it is said: what goes on, and what is not covered.
pub const ISOLATED: &str = "once the agent has judged the event: all packets of the host's sockets are kept back, those of its containers too, but loopback, the collector, DNS to the host's servers, DHCP, neighbour discovery, file servers it has mounted, and what [enforce.isolate] of its agent.toml allows; NOT covered: forwarded packets (of virtual machines, of a router) and packet sockets";

/// What a rule that kills a lineage does beside killing the process.
const LINEAGE: &str =
    "its descendants are killed with it by the agent, and by the kernel as they make a system call";

/// How the effect of a rule is carried out on a kind, and why that is less than what was asked for
/// (empty if it is not). `number` is the rule's place among all rules of the policies that
/// are loaded together, `late` what [`VerdictPlan::build`] leaves to the agent of them with these doors.
#[must_use]
pub fn effective(
    mode: Mode,
    (number, rule): (usize, &Rule),
    kind: Kind,
    doors: &Doors,
    late: &[Late],
) -> (Effective, String) {
    let (effective, reason) = of_process(mode, (number, rule), kind, doors, late);
    let kills = matches!(
        effective,
        Effective::KillBeforeStart | Effective::KillAfter | Effective::KillLate
    );
    match (kills && rule.lineage, reason.as_str()) {
        (false, _) => (effective, reason),
        (true, "") => (effective, LINEAGE.to_owned()),
        (true, reason) => (effective, format!("{reason}; {LINEAGE}")),
    }
}

/// The same of the process alone.
fn of_process(
    mode: Mode,
    (number, rule): (usize, &Rule),
    kind: Kind,
    doors: &Doors,
    late: &[Late],
) -> (Effective, String) {
    let less = |effective, reason: &str| (effective, reason.to_owned());
    let judged_alone = |by_kernel| {
        let late = late
            .iter()
            .find(|late| late.rule == number && late.kind == kind);
        match late {
            Some(late) => (Effective::KillLate, late.reason.clone()),
            None => (by_kernel, remark(rule).unwrap_or_default().to_owned()),
        }
    };
    if never(&rule.predicate, kind) {
        return less(Effective::None, "the rule can never match on this kind");
    }
    match (rule.effect, mode, kind) {
        (Effect::Record, ..) => less(Effective::Record, ""),
        (Effect::Alert, ..) => less(Effective::Alert, ""),
        (Effect::Isolate, Mode::Observe, _) => {
            less(Effective::Alert, "observe: reports what would be isolated")
        }
        (Effect::Isolate, Mode::Enforce, _) => less(Effective::Isolate, ISOLATED),
        (Effect::Deny, ..) => deny::effective(mode, (number, rule), kind, doors, late),
        (Effect::Kill, Mode::Observe, _) => {
            less(Effective::Alert, "observe: reports what would be killed")
        }
        (Effect::Kill, Mode::Enforce, Kind::Exit) => {
            less(Effective::Alert, "the process has ended by then")
        }
        (Effect::Kill, Mode::Enforce, Kind::Exec) => judged_alone(Effective::KillBeforeStart),
        (Effect::Kill, Mode::Enforce, kind) if asks_for_failures(&rule.predicate, kind) => less(
            Effective::KillLate,
            "calls that fail are judged by the agent",
        ),
        (Effect::Kill, Mode::Enforce, kind) if AFTER.contains(&kind) => {
            judged_alone(Effective::KillAfter)
        }
        (Effect::Kill, Mode::Enforce, Kind::Rename | Kind::Unlink) => less(
            Effective::KillLate,
            "what the call names is the caller's word: the process is killed once the agent has judged the event",
        ),
        (Effect::Kill, Mode::Enforce, _) => less(
            Effective::KillLate,
            "the kernel judges no such event: the process is killed once the agent has judged it",
        ),
    }
}

/// Explains every rule of policies that are loaded together, on each of its kinds, with the exceptions
/// that apply at `now_ns`, ns since the Unix epoch.
#[must_use]
pub fn explain(policies: &[CheckedPolicy], now_ns: i64) -> Vec<Explained> {
    let (plan, _) = Plan::build(policies);
    let doors = Doors::foreseen();
    let (_, late) = VerdictPlan::build(policies, &doors, now_ns);
    let mut rows = Vec::new();
    let rules = policies
        .iter()
        .flat_map(|policy| policy.rules.iter().map(move |rule| (policy, rule)));
    for (number, (policy, rule)) in rules.enumerate() {
        for kind in &rule.kinds {
            let effective = effective(policy.mode, (number, rule), *kind, &doors, &late);
            rows.push(one(policy, rule, *kind, &plan, effective));
        }
    }
    rows
}

fn one(
    policy: &CheckedPolicy,
    rule: &Rule,
    kind: Kind,
    together: &Plan,
    (effective, reason): (Effective, String),
) -> Explained {
    let alone = KindFilter::of([&rule.predicate], kind);
    // Of calls that fail the error alone is looked at.
    let failures = |plan: &KindPlan, asked: bool| asked && *plan == KindPlan::None;
    let by_error = failures(&alone.plan, asks_for_failures(&rule.predicate, kind));
    let asked = together.failures(kind) != Errors::NONE;
    let together = together.kind(kind);
    Explained {
        policy: policy.name.clone(),
        rule: rule.id.clone(),
        kind,
        effect: rule.effect,
        requested: policy.mode,
        effective,
        reason,
        cost: match kind {
            // For the names that it reads on other kinds.
            Kind::Dns if reads_names(rule) => Cost::EveryEvent,
            Kind::ModuleLoad | Kind::ModuleUnload if watches_modules(rule) => Cost::EveryEvent,
            _ if by_error => Cost::Narrow,
            _ => Cost::of(&alone.plan, kind),
        },
        cost_of_kind: match failures(together, asked) {
            true => Cost::Narrow,
            false => Cost::of(together, kind),
        },
        filter: match &alone.plan {
            KindPlan::Clauses(_) if alone.exact => Some(Filter::Exact),
            KindPlan::Clauses(_) => Some(Filter::Looser),
            KindPlan::None if by_error => Some(Filter::Looser),
            KindPlan::All | KindPlan::None => None,
        },
        conditions: rule
            .predicate
            .conjuncts()
            .iter()
            .filter(|part| **part != Expr::Const(true))
            .map(|part| Condition {
                text: Predicate::new(part.clone()).to_string(),
                judged: match effective {
                    Effective::Deny | Effective::KillBeforeStart | Effective::KillAfter => {
                        Judged::Kernel
                    }
                    Effective::DenyViaAgent => Judged::Agent,
                    _ => judged(part, kind, &alone),
                },
            })
            .collect(),
        lists: lists(rule, kind, &alone.plan, effective),
        rungs: on_rungs(rule, kind),
    }
}

/// The long lists of a rule, and what the kernel takes of each.
fn lists(rule: &Rule, kind: Kind, filter: &KindPlan, effective: Effective) -> Vec<ListUse> {
    let mut uses: Vec<ListUse> = Vec::new();
    let filtered = matches!(filter, KindPlan::Clauses(_));
    each_list(rule.predicate.expr(), true, &mut |list, atom, positive| {
        let kernel = match effective {
            // The agent answers for each cgroup.
            _ if is_scope(atom) => Taken::Nothing,
            Effective::Deny | Effective::KillBeforeStart => Taken::Items(list.len()),
            _ if filtered => taken(atom, list, positive, kind),
            _ => Taken::Nothing,
        };
        let used = ListUse {
            name: list.name().to_owned(),
            items: list.len(),
            matcher_bytes: list.bytes(),
            kernel,
            kernel_bytes: kernel.entries() * ENTRY_BYTES,
        };
        if !uses.contains(&used) {
            uses.push(used);
        }
    });
    uses
}

/// The long lists of which the filter takes something coarser: name, items and what.
pub(crate) fn loosened(predicate: &Predicate, kind: Kind) -> Vec<(String, usize, Taken)> {
    let mut found = Vec::new();
    let plan = KindFilter::of([predicate], kind).plan;
    if matches!(plan, KindPlan::Clauses(_)) {
        each_list(predicate.expr(), true, &mut |list, atom, positive| {
            let taken = taken(atom, list, positive, kind);
            let coarse = !matches!(taken, Taken::Items(_) | Taken::Ports(_) | Taken::Nothing);
            let one = (list.name().to_owned(), list.len(), taken);
            if coarse && !found.contains(&one) {
                found.push(one);
            }
        });
    }
    found
}

/// What the filter takes of a condition on a list.
fn taken(atom: &Expr, list: &List, positive: bool, kind: Kind) -> Taken {
    let Expr::In {
        value: Operand::Field(field),
        ..
    } = atom
    else {
        return Taken::Nothing;
    };
    match condition(atom, positive, kind) {
        Some(part) if part.clause.is_everything() => Taken::Nothing,
        Some(_) if list.ty() == Some(Type::Str) => listed(*field, list).1,
        Some(part) => Taken::Ports(part.clause.entries()),
        None => Taken::Nothing,
    }
}

/// Calls `seen` with each long list, the condition that names it, and whether that has to be true.
pub(crate) fn each_list(expr: &Expr, positive: bool, seen: &mut impl FnMut(&List, &Expr, bool)) {
    match expr {
        Expr::And(parts) | Expr::Or(parts) => {
            for part in parts {
                each_list(part, positive, seen);
            }
        }
        Expr::Not(inner) => each_list(inner, !positive, seen),
        Expr::Each { body, .. } => each_list(body, positive, seen),
        Expr::In {
            set: Set::List(list),
            ..
        } => seen(list, expr, positive),
        _ => {}
    }
}

/// Where a condition is judged, given the filter of its whole rule.
fn judged(part: &Expr, kind: Kind, whole: &KindFilter) -> Judged {
    let part = Predicate::new(part.clone());
    if never(&part, kind) {
        return Judged::Never;
    }
    let alone = KindFilter::of([&part], kind);
    let needed = match &alone.plan {
        // True of every event of the kind, or beyond the kernel.
        KindPlan::All if alone.exact => return Judged::Kernel,
        // By the error.
        KindPlan::None => return Judged::Kernel,
        KindPlan::All => return Judged::Agent,
        KindPlan::Clauses(needed) => needed,
    };
    let asked: &[Clause] = match &whole.plan {
        KindPlan::Clauses(_) if whole.exact => return Judged::Kernel,
        KindPlan::Clauses(asked) => asked,
        KindPlan::All | KindPlan::None => &[],
    };
    // Other conditions may have left no room for this one in the rule's clauses.
    let kept = !asked.is_empty()
        && asked
            .iter()
            .all(|clause| needed.iter().any(|other| clause.lies_within(other)));
    match (kept, alone.exact) {
        (true, true) => Judged::Kernel,
        (true, false) => Judged::KernelThenAgent,
        (false, _) => Judged::Agent,
    }
}
