//! Opens that fail, on the running kernel: only with the errors that rules ask for.

use std::fs::{self, File, OpenOptions};
use std::process::id;

use crate::bench::{self, Bench, Seen};
use sumun_abi::event::file::{ACCESS_READ, ACCESS_WRITE, OPEN_FAILED, OPEN_TRUNCATE};
use sumun_agent::receive::{
    file,
    record::{Body, Record},
};
use sumun_policy::plan::{KindPlan, Plan};
use sumun_policy::{Lists, Predicate, errors::Errors};
use sumun_proto::v1::{Kind, Source};

fn load(bench: &mut Bench, predicate: &str, plan: KindPlan) {
    let predicate = Predicate::parse(predicate, &Lists::default()).unwrap();
    let plan = Plan {
        kinds: vec![(Kind::Open, plan)],
        open_errors: Errors::asked(&predicate),
        ..Plan::default()
    };
    let generation = bench.kernel().filter_generation() + 1;
    assert_eq!(bench.kernel().set_filter(&plan, generation).unwrap(), []);
}

/// Of this process: path, what was asked for, result.
fn told(seen: &[Seen]) -> Vec<(String, u32, i32)> {
    seen.iter()
        .filter_map(|record| match &record.body {
            Body::FailedOpen(open) if open.actor.pid == id() => {
                let event = file::failed_open(&Record::parse(&record.bytes).unwrap(), open);
                let file = event.file.unwrap();
                assert_eq!(file.source(), Source::Caller);
                assert_eq!((file.dev, file.ino), (0, 0));
                assert_ne!(file.flags & OPEN_FAILED, 0);
                let asked = file.flags & (ACCESS_READ | ACCESS_WRITE | OPEN_TRUNCATE);
                Some((file.path.unwrap(), asked, event.result.unwrap()))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn only_errors_that_are_asked_for_are_told() {
    let Some(mut bench) = bench::take("failed") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    fs::write(place("file"), "content").unwrap();
    let fail = || {
        // Not there; a directory for writing; below what is no directory.
        assert!(File::open(place("none")).is_err());
        assert!(
            OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(dir.path())
                .is_err()
        );
        assert!(File::open(place("file/below")).is_err());
        drop(File::open(place("file")).unwrap());
    };
    let path = |name: &str| place(name).to_str().unwrap().to_owned();
    let (none, below) = (path("none"), path("file/below"));
    let whole = dir.path().to_str().unwrap().to_owned();

    load(&mut bench, "file.trunc", KindPlan::None);
    fail();
    assert_eq!(told(&bench.settle()), []);

    // ENOENT 2, ENOTDIR 20, EISDIR 21.
    load(&mut bench, "result in [-2, -21]", KindPlan::None);
    fail();
    let wanted = [
        (none.clone(), ACCESS_READ, -2),
        (whole.clone(), ACCESS_WRITE | OPEN_TRUNCATE, -21),
    ];
    assert_eq!(told(&bench.settle()), wanted);

    load(&mut bench, "result < 0", KindPlan::All);
    fail();
    let seen = bench.settle();
    assert_eq!(
        told(&seen),
        [
            (none, ACCESS_READ, -2),
            (whole, ACCESS_WRITE | OPEN_TRUNCATE, -21),
            (below, ACCESS_READ, -20),
        ]
    );
    let opened =
        |record: &&Seen| matches!(&record.body, Body::Open(open) if open.actor.pid == id());
    assert_eq!(seen.iter().filter(opened).count(), 1);
}
