//! The scan means what the matcher means: random predicates over random
//! events, absent, unknown and non-UTF-8 values included, in files and in memory.

#[path = "../../../agent/policy/tests/common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use common::{Case, Dice, KINDS};
use proptest::prelude::*;
use sumun_lake::engine::{Query, Range};
use sumun_lake::{Engine, EngineOptions, Family, Lake, RowReader, RowSet, Source, scan, write};
use sumun_policy::{Lists, Matcher, Predicate, Verdict};
use sumun_proto::View;
use sumun_proto::v1::{Alert, Origin, RuleRef};

const EVENTS: usize = 24;
const PREDICATES: usize = 6;
const ALL: Range = Range {
    since: i64::MIN,
    until: i64::MAX,
};

struct Corpus {
    cases: Vec<(Case, bool)>,
    sources: Vec<Source>,
}

/// Rows of all cases, every second one in a file, every third one an alert.
fn corpus(lake: &Lake, events: &[Vec<u8>]) -> Corpus {
    let mut cases = Vec::new();
    let mut in_files: Vec<Arc<RowSet>> = Vec::new();
    let mut in_memory: Vec<Arc<RowSet>> = Vec::new();
    for (number, bytes) in events.iter().enumerate() {
        let mut dice = Dice::new(bytes);
        let kind = dice.pick(KINDS);
        let mut case = common::event(&mut dice, kind, true);
        case.event.origin = Some(Origin {
            seq: number as u64,
            ..Origin::default()
        });
        let alerted = number % 3 == 0;
        let mut batch = case.batch.clone();
        if alerted {
            case.batch.rules = vec![RuleRef::default()];
            batch.rules = case.batch.rules.clone();
            batch.alerts = vec![Alert {
                rule: 1,
                event: Some(case.event.clone()),
                ..Alert::default()
            }];
        } else {
            batch.events = vec![case.event.clone()];
        }
        let host = Arc::new(case.host.clone());
        let sets = sumun_lake::rows(&host, &batch).expect("well-formed");
        let place = match number % 2 {
            0 => &mut in_files,
            _ => &mut in_memory,
        };
        place.extend(sets.into_iter().map(Arc::new));
        cases.push((case, alerted));
    }
    let of = |sets: &[Arc<RowSet>], family| -> Vec<Arc<RowSet>> {
        let sets = sets.iter().filter(|set| set.family() == family);
        sets.cloned().collect()
    };
    let sources = Family::ALL
        .into_iter()
        .map(|family| {
            let written = of(&in_files, family);
            let files = match written.is_empty() {
                true => Vec::new(),
                false => {
                    let file = write::write(lake, "t", family, "2026-01-01", 1, &written);
                    vec![Arc::new(file.expect("a file"))]
                }
            };
            Source {
                family,
                files,
                memory: of(&in_memory, family),
                facts: Arc::default(),
            }
        })
        .collect();
    Corpus { cases, sources }
}

async fn found(engine: &Engine, query: Query) -> BTreeSet<u64> {
    let mut reader = RowReader::of_few(engine, query);
    let mut found = BTreeSet::new();
    while reader.peek().await.expect("a scan").is_some() {
        let row = reader.take().expect("it was peeked at");
        let row: serde_json::Value = serde_json::from_str(&row).expect("JSON");
        let seq = row["origin"]["seq"].as_str().expect("a string");
        assert!(found.insert(seq.parse().expect("a number")), "a row twice");
    }
    found
}

fn engine(lake: &Lake, dir: &Path) -> Engine {
    let options = EngineOptions {
        memory_bytes: 64 * 1024 * 1024,
        spill_dir: dir.join("spill"),
        spill_bytes: 1024 * 1024 * 1024,
        threads: 2,
    };
    Engine::new(lake, &options).expect("an engine")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 300, ..ProptestConfig::default() })]

    /// 360 predicates on 24 events each.
    #[test]
    fn scan_and_matcher_agree(
        shapes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), PREDICATES),
        events in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 60), EVENTS),
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        let lake = Lake::open(dir.path().join("lake").to_str().expect("UTF-8")).expect("a lake");
        let engine = engine(&lake, dir.path());
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let corpus = corpus(&lake, &events);
        for shape in &shapes {
            let text = common::predicate(&mut Dice::new(shape), 3);
            let predicate = Predicate::parse(&text, &Lists::new()).expect("well-typed");
            let matcher = Matcher::compile(&predicate);
            for source in &corpus.sources {
                let family = source.family;
                let expected: BTreeSet<u64> = corpus
                    .cases
                    .iter()
                    .enumerate()
                    .filter(|(_, (case, alerted))| match alerted {
                        true => family == Family::Alert,
                        false => Family::of_kind(case.view().kind()) == Some(family),
                    })
                    .filter(|(_, (case, alerted))| {
                        let alert = Alert { rule: 1, ..Alert::default() };
                        let view = View { alert: alerted.then_some(&alert), ..case.view() };
                        matcher.matches(&view) == Verdict::Match
                    })
                    .map(|(number, _)| number as u64)
                    .collect();
                let query = Query {
                    source: source.clone(),
                    range: ALL,
                    filter: scan::expression(&predicate, family).expect("an expression"),
                };
                let found = runtime.block_on(found(&engine, query));
                prop_assert_eq!(&found, &expected, "{} in {}", text, family.name());
                if family != Family::Gap && !scan::can_match_in(&predicate, family) {
                    prop_assert_eq!(expected.len(), 0, "{} in {}", text, family.name());
                }
            }
        }
    }
}
