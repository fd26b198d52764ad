//! What `explain` says of a rule is what its plan does.

#[path = "common/mod.rs"]
mod common;
#[path = "common/kernel.rs"]
mod kernel;

use std::cell::Cell;
use std::io::Write as _;

use common::{Dice, KINDS};
use kernel::{passes, policy};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use sumun_policy::doors::Doors;
use sumun_policy::errors::Errors;
use sumun_policy::explain::{Cost, Effective, Filter, Judged};
use sumun_policy::plan::{KindPlan, is_life};
use sumun_policy::{Effect, Matcher, Mode, Plan, Verdict, deny, explain};
use sumun_proto::v1::Kind;
use sumun_proto::{FieldId, Value, text};

/// Kinds that the kernel filters.
const FILTERED: &[Kind] = &[Kind::Open, Kind::CloseWrite, Kind::Connect, Kind::Accept];

const EXES: &[&str] = &[
    "proc.exe.name == 'sh'",
    "proc.exe.name in ['sh', 'bash', 'SH']",
    "proc.exe.path == '/bin/sh'",
    "proc.exe.path.endsWith('/sh')",
    "proc.exe.path.endsWith('bin/sh')",
    "proc.exe.path.glob('/{usr,bin}/**/sh')",
    "proc.exe.name.lowerAscii() == 'sh'",
    "kind in ['open', 'connect']",
    "proc.uid == 0",
];
const FILES: &[&str] = &[
    "file.path.startsWith('/etc/')",
    "file.path.startsWith('/')",
    r"file.path.startsWith(r'/tmp/\xff')",
    "file.path.glob('/{etc,usr}/**')",
    "file.path.glob('/{etc/**,bin/sh}')",
    "file.path.glob('/*/*.d/*')",
    "file.path.glob('/etc/*/*')",
    r"file.path.glob(r'/{tmp/\xff\\b,etc/passwd}')",
    "file.path in ['/bin/sh', '/etc/passwd', '/tmp/a']",
    "file.access.write",
    "file.access.read",
    "file.create",
    "file.trunc",
];
const NETS: &[&str] = &[
    "net.dst.port in [22, 443]",
    "net.dst.port > 80",
    "net.dst.port >= 0",
    "net.src.port != 0",
    "cidr('10.0.0.0/8').containsIP(net.dst.ip)",
    "cidr('::/0').containsIP(net.src.ip)",
    "net.dst.ip == '10.0.0.1'",
    "net.dst.ip in ['10.0.0.1', '::1']",
    "net.proto == 'tcp'",
];

/// A condition: of those that the kernel may know, alone or joined, or any.
fn part(dice: &mut Dice<'_>, pool: &[&str], depth: usize) -> String {
    match dice.roll(8) {
        0 => format!("!({})", dice.pick(pool)),
        1 => format!("({} || {})", dice.pick(pool), dice.pick(pool)),
        2 => {
            let (one, two, three) = (dice.pick(pool), dice.pick(pool), dice.pick(pool));
            format!("({one} && {two} || {three})")
        }
        3 => common::predicate(dice, depth),
        _ => dice.pick(pool).to_owned(),
    }
}

/// Each claim, held against the filter's model on events whose fields can be read.
#[test]
fn claims_hold_on_random_rules() {
    let counts: [Cell<u64>; 5] = Default::default();
    let count = |at: usize| counts[at].set(counts[at].get() + 1);
    let shapes = proptest::collection::vec(any::<u8>(), 0..80);
    let bytes = proptest::collection::vec(any::<u8>(), 60);
    let events = proptest::collection::vec(bytes, 24);
    let config = ProptestConfig {
        cases: 2000,
        max_shrink_iters: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let run =
        TestRunner::new(config).run(&(0..3_usize, shapes, events), |(depth, shape, events)| {
            // Top-level conditions first: they are what is explained.
            let mut dice = Dice::new(&shape);
            let pool = [EXES, dice.pick(&[FILES, NETS])].concat();
            let parts: Vec<String> = (0..1 + dice.roll(3))
                .map(|_| part(&mut dice, &pool, depth))
                .collect();
            let when = parts.join(" && ");
            let rule = policy(&when, KINDS);
            let matcher = Matcher::compile(&rule.rules[0].predicate);
            let policies = std::slice::from_ref(&rule);
            let explained = explain(policies, 0);
            let (plan, _) = Plan::build(policies);
            prop_assert_eq!(explained.len(), KINDS.len());
            for said in &explained {
                let cost = match plan.kind(said.kind) {
                    _ if is_life(said.kind) => Cost::Free,
                    KindPlan::None if plan.failures(said.kind) != Errors::NONE => Cost::Narrow,
                    KindPlan::None => Cost::Nothing,
                    KindPlan::Clauses(_) => Cost::Narrow,
                    KindPlan::All => Cost::EveryEvent,
                };
                prop_assert_eq!(said.cost, cost, "{} on {:?}", when, said.kind);
                prop_assert_eq!(said.cost_of_kind, cost, "{} on {:?}", when, said.kind);
                prop_assert_eq!(said.filter.is_some(), cost == Cost::Narrow);
            }
            // The filter and the matcher of each condition by itself.
            let alone: Vec<(Plan, Matcher)> = explained[0]
                .conditions
                .iter()
                .map(|condition| {
                    let rule = policy(&condition.text, KINDS);
                    let matcher = Matcher::compile(&rule.rules[0].predicate);
                    (Plan::build(&[rule]).0, matcher)
                })
                .collect();
            for bytes in &events {
                let mut dice = Dice::new(bytes);
                // Most of them of the kinds that the kernel filters: the others make few claims.
                let kinds = if dice.chance(4) { KINDS } else { FILTERED };
                let kind = dice.pick(kinds);
                let case = common::event(&mut dice, kind, false);
                let view = case.view();
                let said = explained
                    .iter()
                    .find(|said| said.kind == kind)
                    .expect("every kind is explained");
                let sent = passes(plan.kind(kind), &view);
                let verdict = matcher.matches(&view);
                if said.effective == Effective::None {
                    count(0);
                    prop_assert_ne!(verdict, Verdict::Match, "{} on {:?}", when, case);
                }
                if said.filter == Some(Filter::Exact) && verdict != Verdict::Undecided {
                    count(1);
                    prop_assert_eq!(sent, verdict == Verdict::Match, "{} on {:?}", when, case);
                }
                for (condition, (alone, matcher)) in said.conditions.iter().zip(&alone) {
                    let verdict = matcher.matches(&view);
                    match condition.judged {
                        Judged::Kernel if sent && verdict != Verdict::Undecided => {
                            count(2);
                            prop_assert_eq!(
                                verdict,
                                Verdict::Match,
                                "{} of {} on {:?}",
                                condition.text,
                                when,
                                case
                            );
                        }
                        Judged::KernelThenAgent if sent => {
                            count(3);
                            let passed = passes(alone.kind(kind), &view);
                            prop_assert!(passed, "{} of {} on {:?}", condition.text, when, case);
                        }
                        Judged::Never => {
                            count(4);
                            prop_assert_ne!(
                                verdict,
                                Verdict::Match,
                                "{} of {} on {:?}",
                                condition.text,
                                when,
                                case
                            );
                        }
                        _ => {}
                    }
                }
            }
            Ok(())
        });
    common::passed(run);
    let [never, exact, kernel, partly, not_here] = counts.map(Cell::into_inner);
    let _ = writeln!(
        std::io::stderr(),
        "explain against the plan: {never} events of rules that never match, {exact} of exact filters, \
         {kernel} of conditions in the kernel, {partly} partly there, {not_here} of conditions that are never true"
    );
    for count in [never, exact, kernel, partly, not_here] {
        assert!(count > 500, "{count} cases");
    }
}

/// What people read, on rules as people write them.
#[test]
fn rules_are_explained_as_the_documentation_has_it() {
    let told = |when: &str, kind: Kind| {
        let mut all = explain(&[policy(when, &[kind])], 0);
        assert_eq!(all.len(), 1);
        let said = all.remove(0);
        let judged: Vec<&str> = said
            .conditions
            .iter()
            .map(|condition| condition.judged.name())
            .collect();
        format!(
            "{}, {}: {}",
            said.cost.name(),
            said.filter.map_or("no filter", Filter::name),
            judged.join(" | ")
        )
    };
    for (when, kind, expected) in [
        (
            "file.access.write && file.path.startsWith('/etc/')",
            Kind::Open,
            "narrow, exact: kernel | kernel",
        ),
        (
            "file.path.glob('/etc/*.d/**') && proc.exe.name.lowerAscii() != 'dpkg'",
            Kind::Open,
            "narrow, looser: kernel, then agent | agent",
        ),
        (
            "file.path.glob('/etc/{passwd,shadow}')",
            Kind::Open,
            "narrow, exact: kernel",
        ),
        (
            "file.path.glob('/{etc,root}/**')",
            Kind::Open,
            "narrow, exact: kernel",
        ),
        (
            "file.path.glob('**/id_rsa')",
            Kind::Open,
            "every event of the kind, no filter: agent",
        ),
        (
            "proc.exe.path.glob('/usr/**/nc') && net.dst.port > 1024",
            Kind::Connect,
            "narrow, looser: kernel, then agent | kernel",
        ),
        (
            "file.access.write && file.create",
            Kind::Open,
            "narrow, looser: kernel | agent",
        ),
        (
            "file.path.startsWith('/a/') && file.path.startsWith('/b/')",
            Kind::Open,
            "narrow, looser: kernel | agent",
        ),
        (
            "file.path == '/etc/passwd'",
            Kind::Rename,
            "every event of the kind, no filter: agent",
        ),
        (
            "proc.exe.name == 'sh'",
            Kind::Exec,
            "free, no filter: agent",
        ),
        (
            "kind == 'accept'",
            Kind::Connect,
            "nothing, no filter: never true",
        ),
        (
            "net.dst.port in [22, 80]",
            Kind::Connect,
            "narrow, exact: kernel",
        ),
        ("true", Kind::Open, "every event of the kind, no filter: "),
    ] {
        assert_eq!(told(when, kind), expected, "{when}");
    }
}

/// A wide rule makes every rule on its kind as dear.
#[test]
fn the_cost_of_a_kind_is_that_of_its_widest_rule() {
    let mut narrow = policy("file.path == '/etc/passwd'", &[Kind::Open]);
    narrow.rules[0].id = "narrow".to_owned();
    let wide = policy("proc.uid == 0", &[Kind::Open, Kind::Connect]);
    narrow.rules.extend(wide.rules);
    let costs: Vec<(Kind, Cost, Cost)> = explain(&[narrow], 0)
        .iter()
        .map(|said| (said.kind, said.cost, said.cost_of_kind))
        .collect();
    assert_eq!(
        costs,
        [
            (Kind::Open, Cost::Narrow, Cost::EveryEvent),
            (Kind::Open, Cost::EveryEvent, Cost::EveryEvent),
            (Kind::Connect, Cost::EveryEvent, Cost::EveryEvent),
        ]
    );
}

const OPENS: &[&str] = &[
    "file.path == '/etc/passwd'",
    "file.path in ['/bin/sh', '/etc/passwd', '/tmp/a', 'x']",
    "file.path.startsWith('/etc/')",
    "file.path.startsWith('/e')",
    r"file.path.startsWith(r'/tmp/\xff')",
    r"file.path.startsWith(r'/tmp/\x')",
    "file.path.glob('/{etc,usr}/**')",
    "file.path.glob('/etc/*/*')",
    r"file.path.glob(r'/{tmp/\xff\\b,etc/passwd}')",
    "file.path.endsWith('d')",
    "file.access.write",
    "proc.uid == 0",
    "proc.exe.name == 'sh'",
];
const EXECS: &[&str] = &[
    "proc.exe.path == '/bin/sh'",
    "proc.exe.path in ['/bin/sh', '/usr/bin/bash']",
    "proc.exe.path.startsWith('/usr/')",
    "proc.exe.path.startsWith('/bin/s')",
    "proc.exe.path.glob('/{usr,bin}/**/sh')",
    "proc.exe.name == 'sh'",
    "proc.uid == 0",
];

/// A condition on files that names some, or not.
fn naming(dice: &mut Dice<'_>, pool: &[&str], depth: usize) -> String {
    let mut inner = || match depth {
        0 => dice.pick(pool).to_owned(),
        _ => naming(dice, pool, depth - 1),
    };
    let (one, other) = (inner(), inner());
    match dice.roll(6) {
        0 => format!("!({one})"),
        1 | 2 => format!("({one} || {other})"),
        3 | 4 => format!("({one} && {other})"),
        _ => one,
    }
}

/// What a rule that denies matches is one of the files that it names.
#[test]
fn every_match_of_a_rule_that_denies_is_named() {
    let (matched, unnamed) = (Cell::new(0_u64), Cell::new(0_u64));
    let shapes = proptest::collection::vec(any::<u8>(), 0..80);
    let bytes = proptest::collection::vec(any::<u8>(), 60);
    let events = proptest::collection::vec(bytes, 40);
    let config = ProptestConfig {
        cases: 3000,
        max_shrink_iters: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let run =
        TestRunner::new(config).run(&(0..3_usize, shapes, events), |(depth, shape, events)| {
            let mut dice = Dice::new(&shape);
            let (kind, pool, path) = match dice.roll(2) {
                0 => (Kind::Open, OPENS, FieldId::FilePath),
                _ => (Kind::Exec, EXECS, FieldId::ProcExePath),
            };
            let when = naming(&mut dice, pool, depth);
            let mut rule = policy(&when, &[kind]);
            rule.mode = Mode::Enforce;
            rule.rules[0].effect = Effect::Deny;
            let matcher = Matcher::compile(&rule.rules[0].predicate);
            let plan = deny::plan(&[rule], &Doors::default(), &[]);
            let Some(planned) = plan.first() else {
                unnamed.set(unnamed.get() + 1);
                return Ok(());
            };
            prop_assert_eq!((plan.len(), planned.rule, planned.kind), (1, 0, kind));
            for bytes in &events {
                let case = common::event(&mut Dice::new(bytes), kind, false);
                let view = case.view();
                if matcher.matches(&view) != Verdict::Match {
                    continue;
                }
                let Value::Str(path) = view.get(path) else {
                    prop_assert!(false, "{} matches without a path: {:?}", when, case);
                    continue;
                };
                matched.set(matched.get() + 1);
                let path = text::to_bytes(&path).expect("events are in form");
                prop_assert!(
                    planned.names.contain(&path),
                    "{} names not {:?}",
                    when,
                    case
                );
            }
            Ok(())
        });
    common::passed(run);
    let _ = writeln!(
        std::io::stderr(),
        "{} events matched rules that name files, {} rules named none",
        matched.get(),
        unnamed.get()
    );
    assert!(
        matched.get() > 2000 && unnamed.get() > 500,
        "{matched:?} {unnamed:?}"
    );
}
