//! Another engine reads the lake and counts the same rows.

use std::fs;
use std::time::Duration;

use sumun_tests::clock::unix_ns;
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::oracle::{self, FileCall};
use sumun_tests::{duck, generator};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn duckdb_counts_the_same_rows_in_the_lake() {
    let Some(python) = duck::python() else {
        println!(
            "SKIPPED duckdb_counts_the_same_rows: DuckDB is not installed, run 'make setup-test'"
        );
        return;
    };
    let Some(turn) = Turn::take("duckdb_counts_the_same_rows") else {
        return;
    };
    let scratch = scratch();
    let files = scratch.path().join("files");
    fs::create_dir(&files).expect("a directory");
    let dir = files.to_str().expect("UTF-8").to_owned();
    let policy = format!(
        r#"
[policy]
name = "independent"
version = 1

[[rule]]
id = "opens"
on = ["open", "rename"]
when = 'file.path.startsWith("{dir}/")'
effect = "record"
"#
    );
    let collector = Collector::start_with(&[("# segment_seconds = 60", "segment_seconds = 1")])
        .expect("a collector");
    let mut agent = Agent::start(turn, &collector, &[("independent", &policy)]).expect("an agent");
    let oracle = scratch.path().join("opens");
    let since = unix_ns();
    generator::run(
        "open-storm",
        &[
            "--dir",
            &dir,
            "--count",
            "5000",
            "--rate",
            "5000",
            "--names",
            "--oracle",
            oracle.to_str().expect("UTF-8"),
        ],
    )
    .expect("the storm");
    let until = unix_ns();
    let done: Vec<FileCall> = oracle::read(&oracle).expect("the oracle");
    let ctl = collector.ctl();
    let mut counts = Vec::new();
    for kind in ["open", "rename"] {
        let filter = format!(r#"kind == "{kind}" && file.path.startsWith("{dir}/")"#);
        let answer = ctl
            .complete_events(since, until, &filter, LIMIT)
            .expect("a complete answer");
        let produced = done.iter().filter(|one| one.kind == kind).count();
        assert_eq!(answer.rows.len(), produced, "{kind}");
        counts.push((kind, produced));
    }
    agent.stop().expect("the agent stops");
    for (kind, produced) in counts {
        let quiet = Duration::from_secs(5);
        let counted = duck::settled(&python, collector.dir(), kind, &format!("{dir}/"), quiet)
            .expect("DuckDB counts");
        let produced = produced as u64;
        let expected = duck::Count {
            rows: produced,
            origins: produced,
            paths: produced,
        };
        assert_eq!(counted, expected, "{kind}");
        println!("DuckDB agrees: {produced} rows of kind {kind}");
    }
}
