//! Another engine reads the lake and counts the same rows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sumun_tests::clock::unix_ns;
use sumun_tests::generator;
use sumun_tests::host::{Agent, Collector, Turn};
use sumun_tests::oracle::{self, FileCall};

const LIMIT: Duration = Duration::from_secs(60);

/// Python with DuckDB, as `make setup-test` installs it.
fn python() -> Option<PathBuf> {
    let cache = std::env::var_os("SUMUN_CACHE").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache/sumun"),
        PathBuf::from,
    );
    let python = cache.join("venv/bin/python3");
    python.exists().then_some(python)
}

#[test]
fn duckdb_counts_the_same_rows_in_the_lake() {
    let Some(python) = python() else {
        println!(
            "SKIPPED duckdb_counts_the_same_rows: DuckDB is not installed, run 'make setup-test'"
        );
        return;
    };
    let Some(turn) = Turn::take("duckdb_counts_the_same_rows") else {
        return;
    };
    let scratch = tempfile::Builder::new()
        .prefix("sumun-test.")
        .tempdir()
        .expect("a temporary directory");
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
    let mut collector = Collector::start().expect("a collector");
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
    // The newest rows are in the collector's memory and log; stopping it puts them into the lake.
    collector.stop().expect("the collector stops");

    let lake = collector.dir().join("lake");
    let script = r"
import duckdb, glob, sys
lake, prefix = sys.argv[1:3]
files = glob.glob(lake + '/**/*.parquet', recursive=True)
assert files, 'no Parquet file under ' + lake
file_rows = [f for f in files if '/file/' in f or 'family=file' in f]
assert file_rows, 'no file of the family file: ' + str(files)
for kind in sys.argv[3:]:
    query = 'select count(*), count(distinct file_ino), count(distinct file_path) from read_parquet(?, union_by_name=true) where kind = ? and starts_with(file_path, ?)'
    print(kind, *duckdb.execute(query, [file_rows, kind, prefix]).fetchone())
";
    let output = Command::new(python)
        .args(["-c", script])
        .arg(&lake)
        .arg(format!("{dir}/"))
        .args(["open", "rename"])
        .output()
        .expect("python can be started");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for (kind, count) in counts {
        let line = said
            .lines()
            .find(|line| line.starts_with(&format!("{kind} ")))
            .expect("a count of every kind");
        let numbers: Vec<usize> = line
            .split(' ')
            .skip(1)
            .map(|number| number.parse().expect("a number"))
            .collect();
        assert_eq!(numbers[0], count, "{kind}: DuckDB's count of rows");
        assert_eq!(
            numbers[2], count,
            "{kind}: DuckDB's count of distinct paths"
        );
    }
    println!("DuckDB agrees: {}", said.trim().replace('\n', ", "));
}
