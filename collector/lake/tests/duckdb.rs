//! Another engine reads the same files: layout, types, values.

mod sample;

use std::path::{Path, PathBuf};
use std::process::Command;

use sample::opens;
use sumun_lake::{Family, write};

/// Python with DuckDB, where `make setup-test` puts it.
fn python() -> Option<PathBuf> {
    let cache = std::env::var_os("SUMUN_CACHE").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache/sumun"),
        PathBuf::from,
    );
    let python = cache.join("venv/bin/python3");
    let found = Command::new(&python)
        .args(["-c", "import duckdb"])
        .output()
        .is_ok_and(|output| output.status.success());
    found.then_some(python)
}

const QUESTION: &str = "
import duckdb, json, sys
rows = duckdb.sql(f\"\"\"
    SELECT tenant, family, day::VARCHAR, count(*), count(DISTINCT origin_seq), sum(origin_seq),
           min(time)::VARCHAR, typeof(any_value(time)), typeof(any_value(proc_args)),
           any_value(proc_ancestors_exe_path), count(_unknown), min(_unknown)
    FROM read_parquet('{sys.argv[1]}/**/*.parquet', hive_partitioning = true)
    GROUP BY ALL\"\"\").fetchall()
print(json.dumps(rows))
";

#[test]
fn duckdb_reads_the_same_rows() {
    let Some(python) = python() else {
        println!(
            "SKIPPED duckdb_reads_the_same_rows: DuckDB is not installed, run 'make setup-test'"
        );
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let lake = sample::lake(dir.path());
    for segment in 0..4 {
        let sets = opens("a", segment * 1000, 1000);
        write::write(
            &lake,
            "acme",
            Family::File,
            "2026-01-02",
            segment + 1,
            &sets,
        )
        .expect("a file");
    }
    let output = Command::new(python)
        .args(["-c", QUESTION])
        .arg(lake.root())
        .env("TZ", "UTC")
        .output()
        .expect("python runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let row = &rows[0];
    assert_eq!(rows.as_array().map(Vec::len), Some(1));
    assert_eq!(row[0], "acme");
    assert_eq!(row[1], "file");
    assert_eq!(row[2], "2026-01-02");
    assert_eq!(row[3], 4000);
    assert_eq!(row[4], 4000);
    assert_eq!(row[5], 4000 * 3999 / 2);
    assert!(
        row[6]
            .as_str()
            .is_some_and(|time| time.starts_with("2026-01-01 00:00:00")),
        "{row}"
    );
    assert_eq!(row[8], "VARCHAR[]");
    assert_eq!(row[9], serde_json::json!(["/bin/sh"]));
    // One path of ten is cut; file.path is the eighth field that can be unknown.
    assert_eq!(row[10], 400);
    assert_eq!(row[11], 1 << 7);
}
