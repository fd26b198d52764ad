//! The scan means what the matcher means: random predicates over random
//! events, absent, unknown and non-UTF-8 values included, in files and in memory.

#[path = "../../../agent/policy/tests/common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use common::{Case, Dice, KINDS};
use proptest::prelude::*;
use sumun_abi::record::{FLAW_LOST, FLAW_TRUNCATED};
use sumun_lake::engine::{Query, Range};
use sumun_lake::{
    Engine, EngineOptions, FactTable, Family, Lake, RowReader, RowSet, Source, scan, write,
};
use sumun_policy::{Lists, Matcher, Predicate, Verdict};
use sumun_proto::v1::{Alert, Batch, Cloud, Event, Facts, Image, Kind, Origin, RuleRef, Workload};
use sumun_proto::view::REDACTED;
use sumun_proto::{Host, View};

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

/// Facts of a workload and of a host: whole, cut, and not known in the ways there are.
fn told() -> Vec<(Option<Facts>, Option<Facts>)> {
    let (cut, lost) = (u32::from(FLAW_TRUNCATED), u32::from(FLAW_LOST));
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let container = |labels: &[&str], flaws| Facts {
        container_name: "web".into(),
        image: "nginx".into(),
        container_labels: texts(labels),
        container_labels_flaws: flaws,
        ..Facts::default()
    };
    let pod = |labels: &[&str], flaws| Facts {
        pod_name: "cart-1".into(),
        pod_uid: "u-1".into(),
        namespace: "shop".into(),
        pod_labels: texts(labels),
        pod_labels_flaws: flaws,
        ..container(&["a=1"], 0)
    };
    let instance = |tags: &[&str], tags_flaws| Facts {
        cloud: Some(Cloud {
            provider: "aws".into(),
            account: "1".into(),
            role: "web".into(),
            tags: texts(tags),
            tags_flaws,
            ..Cloud::default()
        }),
        ..Facts::default()
    };
    let workloads = [
        None,
        Some(container(&[], 0)),
        Some(container(&[], lost)),
        Some(container(&["a=1", "app=cart", "b=2"], 0)),
        Some(container(&["a=1", "app=cart"], cut)),
        Some(container(&["app=cart", "b=2"], cut)),
        Some(container(&["app=cart", "b=2"], REDACTED)),
        Some(pod(&["app=cart", "b=2"], 0)),
        Some(pod(&["a=1", "b=2"], cut)),
        Some(Facts {
            pod_pending: true,
            ..pod(&["app=cart"], 0)
        }),
        Some(Facts {
            owner_kind: "Job".into(),
            ..pod(&["app=cart"], 0)
        }),
        Some(Facts {
            cut: true,
            ..pod(&["app=cart"], 0)
        }),
        Some(Facts {
            untold: true,
            container_labels_flaws: lost,
            pod_labels_flaws: lost,
            ..Facts::default()
        }),
    ];
    let hosts = [
        None,
        Some(Facts::default()),
        Some(Facts {
            cloud_pending: true,
            ..Facts::default()
        }),
        Some(instance(&[], 0)),
        Some(instance(&["app=cart", "b=2"], cut)),
        Some(instance(&[], lost)),
        Some(Facts {
            cloud: Some(Cloud {
                provider: "aws".into(),
                role_untold: true,
                ..Cloud::default()
            }),
            ..Facts::default()
        }),
    ];
    let of_workloads = workloads.into_iter().map(|facts| (facts, None));
    let of_hosts = hosts.into_iter().map(|facts| (None, facts));
    of_workloads.chain(of_hosts).collect()
}

/// What rules ask of what is told.
const TOLD: &[&str] = &[
    r#""app=cart" in LIST"#,
    r#"!("app=cart" in LIST)"#,
    r#"!("zz=1" in LIST)"#,
    r#""zz=1" in LIST"#,
    "has(LIST)",
    "!has(LIST)",
    "LIST.size() == 0",
    "LIST.size() != 1",
    r#"LIST[0] == "app=cart""#,
    r#"LIST[1] != "b=2""#,
    r#"LIST.exists(l, l.startsWith("app="))"#,
    r#"!LIST.exists(l, l.startsWith("zz="))"#,
    r#"LIST.all(l, l.contains("="))"#,
    r#"!LIST.all(l, l.startsWith("app"))"#,
    r#"LIST.exists(l, has(LIST) && l == "b=2")"#,
    "has(LIST_flaws)",
    r#""truncated" in LIST_flaws || "lost" in LIST_flaws"#,
    r#"!("lost" in LIST_flaws)"#,
    r#"TEXT == "web""#,
    r#"TEXT != "web""#,
    r#"!(TEXT == "web")"#,
    r#"!TEXT.startsWith("w")"#,
    r#"TEXT.lowerAscii() != "x""#,
    "has(TEXT)",
    "!has(TEXT)",
    r#"has(TEXT) || kind == "fork""#,
];

#[test]
fn what_is_told_means_to_a_search_what_it_means_to_the_agent() {
    let dir = tempfile::tempdir().expect("a directory");
    let lake = Lake::open(dir.path().join("lake").to_str().expect("UTF-8")).expect("a lake");
    let engine = engine(&lake, dir.path());
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime");
    let mut table = FactTable::default();
    let mut memory = Vec::new();
    let mut cases = Vec::new();
    for (number, (workload, host)) in told().into_iter().enumerate() {
        let name = Host {
            id: format!("h{number}"),
            name: String::new(),
        };
        let event = Event {
            kind: Kind::Exec.into(),
            image: 1,
            origin: Some(Origin {
                seq: number as u64,
                ..Origin::default()
            }),
            ..Event::default()
        };
        let batch = Batch {
            boot_id: vec![1; 16],
            events: vec![event.clone()],
            images: vec![Image {
                workload: 1,
                seen: true,
                ..Image::default()
            }],
            workloads: vec![Workload {
                id: 7,
                kind: "container".into(),
                ..Workload::default()
            }],
            ..Batch::default()
        };
        for (id, facts) in [(7, &workload), (0, &host)] {
            let facts = facts.iter().map(|facts| Facts {
                workload: id,
                ..facts.clone()
            });
            for facts in facts {
                table.learn(&name.id, &batch.boot_id, &Arc::new(facts));
            }
        }
        let sets = sumun_lake::rows(&Arc::new(name.clone()), &batch).expect("well-formed");
        memory.extend(sets.into_iter().map(Arc::new));
        let mut inside = batch;
        inside.workloads[0].facts = workload;
        inside.host = host;
        cases.push((name, inside, event));
    }
    let source = Source {
        family: Family::Process,
        files: Vec::new(),
        memory,
        facts: Arc::new(table),
    };
    let lists = ["container.labels", "k8s.labels", "cloud.tags"];
    let texts = [
        "container.name",
        "container.image_tag",
        "k8s.pod.name",
        "k8s.pod.uid",
        "k8s.owner.kind",
        "cloud.account",
        "cloud.role",
        "cloud.scaling_group",
    ];
    let mut outcomes = [0; 3];
    for text in TOLD {
        let (place, fields) = match text.contains("TEXT") {
            true => ("TEXT", &texts[..]),
            false => ("LIST", &lists[..]),
        };
        for field in fields {
            let text = text.replace(place, field);
            let predicate = Predicate::parse(&text, &Lists::new()).expect("well-typed");
            let matcher = Matcher::compile(&predicate);
            let mut expected = BTreeSet::new();
            for (number, (host, batch, event)) in cases.iter().enumerate() {
                let view = View {
                    host,
                    batch,
                    event,
                    alert: None,
                };
                let verdict = matcher.matches(&view);
                outcomes[match verdict {
                    Verdict::Match => 0,
                    Verdict::NoMatch => 1,
                    _ => 2,
                }] += 1;
                if verdict == Verdict::Match {
                    expected.insert(number as u64);
                }
            }
            let query = Query {
                source: source.clone(),
                range: ALL,
                filter: scan::expression(&predicate, Family::Process).expect("an expression"),
            };
            let found = runtime.block_on(found(&engine, query));
            assert_eq!(found, expected, "{text}");
        }
    }
    // What is not known is there, and is neither.
    assert!(outcomes.iter().all(|count| *count > 100), "{outcomes:?}");
}
