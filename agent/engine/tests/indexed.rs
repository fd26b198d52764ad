//! What the engine finds by its index is what all rules say, each judged alone: on random sets of
//! rules and random events, absent and unknown values and bytes that are not text included.

#[path = "../../policy/tests/common/mod.rs"]
mod common;

use std::cell::Cell;
use std::io::Write as _;

use common::{Dice, KINDS};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use sumun_engine::{Engine, Hit};
use sumun_policy::problem::Place;
use sumun_policy::{
    CheckedPolicy, Effect, Exception, Lists, Matcher, Mode, Predicate, Rule, Verdict,
};
use sumun_proto::View;
use sumun_proto::v1::{Kind, Severity};

/// Sets of rules.
const SETS: u32 = 1300;
/// Most rules of a set.
const RULES: usize = 48;
/// Events that each set is asked about.
const EVENTS: usize = 80;

/// Conditions that many rules share, so that the index has to tell them apart by others.
const SHARED: &[&str] = &[
    "proc.exe.name in ['sh', 'bash', 'a']",
    "proc.exe.name in ['sh', 'passwd']",
    "proc.exe.path.startsWith('/usr/')",
];
/// Conditions by which rules differ.
const OWN: &[&str] = &[
    "proc.ancestors.exists(a, a.exe.name == 'sh')",
    "proc.ancestors.exists(a, a.exe.name in ['bash', 'passwd'])",
    "proc.ancestors.exists(a, a.exe.path.startsWith('/usr/'))",
    "proc.args.exists(x, x.contains('/tmp/'))",
    "'-c' in proc.args",
    "'sh' in proc.args",
    "proc.args[0] == '-c'",
    "proc.cwd.startsWith('/etc/')",
    "proc.cwd == '/tmp/a'",
    "proc.parent.exe.name == 'sh'",
    "proc.parent.exe.path.endsWith('/bash')",
    "proc.uid == 1000",
    "proc.pid in [1, 22]",
    "file.path.glob('/etc/*/**')",
    "net.dst.port == 443",
];

fn predicate(dice: &mut Dice<'_>, focused: bool) -> Predicate {
    let depth = dice.roll(4);
    let text = match focused {
        true => {
            let (shared, own) = (dice.pick(SHARED), dice.pick(OWN));
            match dice.roll(4) {
                0 => format!("{shared} && {own} && {}", common::predicate(dice, 0)),
                1 => format!("{shared} && ({own} || {})", dice.pick(OWN)),
                _ => format!("{shared} && {own} && {}", dice.pick(OWN)),
            }
        }
        false => common::predicate(dice, depth),
    };
    match Predicate::parse(&text, &Lists::new()) {
        Ok(predicate) => predicate,
        Err(problems) => panic!("{text}: {problems:?}"),
    }
}

fn policy(name: &str, dice: &mut Dice<'_>, seeds: &[Vec<u8>]) -> CheckedPolicy {
    let focused = dice.chance(8);
    let rules = seeds.iter().enumerate().map(|(number, seed)| {
        let mut dice = Dice::new(seed);
        // Rules on many kinds at once, so that events find many of them.
        let kinds = KINDS.iter().filter(|_| dice.chance(10)).copied().collect();
        let effect = dice.pick(&[
            Effect::Record,
            Effect::Alert,
            Effect::Kill,
            Effect::Deny,
            Effect::Isolate,
        ]);
        let exceptions = dice.roll(6).saturating_sub(3);
        let exceptions = (0..exceptions).map(|number| Exception {
            name: format!("exception-{number}"),
            owner: "test".to_owned(),
            predicate: predicate(&mut dice, false),
            expires_ns: dice.chance(4).then_some(1_767_225_600_000_000_001),
            place: Place {
                offset: 0,
                line: 1,
                column: 1,
            },
        });
        let exceptions = exceptions.collect();
        Rule {
            id: format!("rule-{number}"),
            title: String::new(),
            kinds,
            predicate: predicate(&mut dice, focused),
            presumed: None,
            effect,
            force: true,
            lineage: false,
            lasts: None,
            severity: Severity::Medium,
            attack: Vec::new(),
            exceptions,
            rate: None,
        }
    });
    CheckedPolicy {
        path: name.to_owned(),
        sha256: [0; 32],
        name: name.to_owned(),
        version: 1,
        mode: dice.pick(&[Mode::Observe, Mode::Enforce]),
        lists: Lists::new(),
        rules: rules.collect(),
    }
}

/// A rule with its conditions compiled, and the mode of its policy.
struct Alone<'a> {
    rule: &'a Rule,
    mode: Mode,
    matcher: Matcher,
    exceptions: Vec<Matcher>,
}

impl<'a> Alone<'a> {
    fn new(policy: &CheckedPolicy, rule: &'a Rule) -> Self {
        let exceptions = rule.exceptions.iter();
        Self {
            rule,
            mode: policy.mode,
            matcher: Matcher::compile(&rule.predicate),
            exceptions: exceptions
                .map(|exception| Matcher::compile(&exception.predicate))
                .collect(),
        }
    }

    /// What the documentation says of a rule that stands alone.
    fn judge(&self, number: usize, view: &View<'_>) -> Option<Hit> {
        let verdict = self.matcher.matches(view);
        if !self.rule.kinds.contains(&view.kind()) || verdict == Verdict::NoMatch {
            return None;
        }
        let wall = view.wall(view.event.boot_ns);
        let met: Vec<Verdict> = std::iter::zip(&self.rule.exceptions, &self.exceptions)
            .map(|(exception, matcher)| {
                match exception.expires_ns.is_some_and(|expires| wall >= expires) {
                    true => Verdict::NoMatch,
                    false => matcher.matches(view),
                }
            })
            .collect();
        let exception = met.iter().position(|met| *met == Verdict::Match);
        let doubt = met.iter().position(|met| *met == Verdict::Undecided);
        let passes = exception.is_some();
        Some(Hit {
            rule: number,
            undecided: verdict == Verdict::Undecided,
            alert: self.rule.effect != Effect::Record && !passes,
            exception,
            kill: (self.rule.effect == Effect::Kill && !passes).then_some(self.mode),
            deny: (self.rule.effect == Effect::Deny && !passes).then_some(self.mode),
            isolate: (self.rule.effect == Effect::Isolate && !passes).then_some(self.mode),
            doubt: doubt.filter(|_| !passes),
        })
    }
}

/// Cases are pairs of a set of rules and an event.
#[test]
fn the_index_finds_what_all_rules_say() {
    let [cases, judged, hits, undecided, doubts] = [const { Cell::new(0_u64) }; 5];
    let add = |count: &Cell<u64>, more: usize| count.set(count.get() + more as u64);
    let rules = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 90), 1..RULES);
    let events = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 60), EVENTS);
    let split = any::<[u8; 5]>();
    let config = ProptestConfig {
        cases: SETS,
        max_shrink_iters: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let run = TestRunner::new(config).run(&(rules, events, split), |(rules, events, split)| {
        let mut dice = Dice::new(&split);
        let (one, other) = rules.split_at(rules.len() * dice.roll(4) / 4);
        let policies = [
            policy("one", &mut dice, one),
            policy("other", &mut dice, other),
        ];
        let engine = Engine::new(&policies);
        let alone: Vec<Alone<'_>> = policies
            .iter()
            .flat_map(|policy| policy.rules.iter().map(|rule| Alone::new(policy, rule)))
            .collect();
        let mut found = Vec::new();
        for bytes in &events {
            let mut dice = Dice::new(bytes);
            let kind = dice.pick(KINDS);
            let unknowns = dice.chance(8);
            let case = common::event(&mut dice, kind, unknowns);
            let stored = engine.evaluate(&case.view(), &mut found);
            let expected: Vec<Hit> = alone
                .iter()
                .enumerate()
                .filter_map(|(number, rule)| rule.judge(number, &case.view()))
                .collect();
            if found != expected {
                let of = |hits: &[Hit], number| hits.iter().find(|hit| hit.rule == number).copied();
                let differs = alone
                    .iter()
                    .enumerate()
                    .find(|(number, _)| of(&found, *number) != of(&expected, *number));
                let rule = differs.map(|(_, alone)| alone.rule.predicate.to_string());
                prop_assert_eq!(&found, &expected, "{:?} on {:?}", rule, case);
            }
            let life = matches!(kind, Kind::Fork | Kind::Exec | Kind::Exit);
            prop_assert_eq!(stored, life || !expected.is_empty());
            add(&cases, 1);
            add(&judged, alone.len());
            add(&hits, found.len());
            add(&undecided, found.iter().filter(|hit| hit.undecided).count());
            add(
                &doubts,
                found.iter().filter(|hit| hit.doubt.is_some()).count(),
            );
        }
        Ok(())
    });
    common::passed(run);
    let [cases, judged, hits, undecided, doubts] =
        [cases, judged, hits, undecided, doubts].map(|count| count.get());
    // Where it is seen also when the test passes.
    let _ = writeln!(
        std::io::stderr(),
        "index against all rules: {cases} cases, {judged} rules judged, {hits} hits, {undecided} undecided, {doubts} in doubt"
    );
    assert!(cases >= 100_000, "{cases} cases");
    assert!(
        hits > judged / 20 && hits < judged / 2,
        "{hits} of {judged}"
    );
    assert!(undecided > hits / 50 && doubts > hits / 200);
}
