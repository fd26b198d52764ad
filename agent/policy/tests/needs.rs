//! What a predicate needs is never more than it asks: where it is true, or could be, some
//! branch has all its needs met. On random predicates and events, unknown values included.

#[path = "common/mod.rs"]
mod common;

use std::cell::Cell;
use std::io::Write as _;

use common::{Dice, KINDS};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use sumun_policy::needs::{Ask, BRANCHES_MAX, Key, NEEDS_MAX, PART_MIN, Probed, needs};
use sumun_policy::{Lists, Matcher, Predicate, Verdict};
use sumun_proto::View;

const PREDICATES: u32 = 3600;
const EVENTS: usize = 40;

fn is_met(ask: &Ask, view: &View<'_>) -> bool {
    let mut met = false;
    let unknown = ask.source.values(view, |value| {
        met |= ask.keys.iter().any(|key| has(key, value));
    });
    met || unknown
}

fn has(key: &Key, value: Probed<'_>) -> bool {
    match (key, value) {
        (Key::Text(text), Probed::Text(value)) => **text == *value,
        (Key::Start(text), Probed::Text(value)) => value.starts_with(text),
        (Key::Part(text), Probed::Text(value)) => {
            value.windows(text.len()).any(|part| part == &**text)
        }
        (Key::Range(first, last), Probed::Int(number)) => (*first..=*last).contains(&number),
        (Key::Net(first, length), Probed::Address(address)) => {
            let net = ipnet::IpNet::new(*first, *length).expect("a network");
            net.contains(&address)
        }
        _ => false,
    }
}

#[test]
fn what_could_match_has_its_needs_met() {
    let [cases, possible, needless, unmet] = [const { Cell::new(0_u64) }; 4];
    let add = |count: &Cell<u64>, yes: bool| count.set(count.get() + u64::from(yes));
    let shapes = proptest::collection::vec(any::<u8>(), 0..120);
    let events = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 60), EVENTS);
    let config = ProptestConfig {
        cases: PREDICATES,
        max_shrink_iters: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let run = TestRunner::new(config).run(&(shapes, events), |(shape, events)| {
        let mut dice = Dice::new(&shape);
        let depth = dice.roll(4);
        let text = common::predicate(&mut dice, depth);
        let predicate = Predicate::parse(&text, &Lists::new()).expect("well-typed");
        let matcher = Matcher::compile(&predicate);
        for bytes in &events {
            let mut dice = Dice::new(bytes);
            let kind = dice.pick(KINDS);
            let unknowns = dice.chance(8);
            let case = common::event(&mut dice, kind, unknowns);
            let branches = needs(&predicate, kind);
            prop_assert!(branches.len() <= BRANCHES_MAX);
            for need in branches.iter().flatten() {
                let keys = need.asks.iter().flat_map(|ask| &ask.keys);
                for key in keys {
                    match key {
                        Key::Start(text) => prop_assert!(!text.is_empty()),
                        Key::Part(text) => prop_assert!(text.len() >= PART_MIN),
                        _ => {}
                    }
                }
            }
            prop_assert!(branches.iter().all(|branch| branch.len() <= NEEDS_MAX));
            let met = branches.iter().any(|branch| {
                let met = |ask: &Ask| is_met(ask, &case.view());
                branch.iter().all(|need| need.asks.iter().any(met))
            });
            let can_match = matcher.matches(&case.view()) != Verdict::NoMatch;
            prop_assert!(met || !can_match, "{} on {:?}: {:?}", text, case, branches);
            add(&cases, true);
            add(&possible, can_match);
            add(&needless, branches.iter().any(Vec::is_empty));
            add(&unmet, !met);
        }
        Ok(())
    });
    common::passed(run);
    let [cases, possible, needless, unmet] =
        [cases, possible, needless, unmet].map(|count| count.get());
    // Where it is seen also when the test passes.
    let _ = writeln!(
        std::io::stderr(),
        "needs: {cases} cases, {possible} could match, {needless} without a need, {unmet} left out"
    );
    assert!(cases >= 100_000, "{cases} cases");
    assert!(possible > cases / 20 && unmet > cases / 4);
}
