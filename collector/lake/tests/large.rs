//! More rows than a query may hold in memory: sorted part by part, pruned by
//! time, and the same rows whichever way they are asked for.

mod sample;

use std::sync::Arc;

use sample::{WALL, opens};
use sumun_lake::engine::{Query, Range};
use sumun_lake::{Family, Lake, RowReader, Source, scan, write};
use sumun_policy::{Lists, Predicate};

const FILES: u64 = 3;
const SETS: u64 = 50;
const ROWS: u64 = 2000;
const TOTAL: u64 = FILES * SETS * ROWS;

/// Rows of two hosts, dealt to three files in turn so that their times overlap.
fn source(lake: &Lake) -> Source {
    let mut files = Vec::new();
    for file in 0..FILES {
        let mut sets = Vec::new();
        for set in 0..SETS {
            let first = (set * FILES + file) * ROWS;
            sets.extend(opens(["a", "b"][(set % 2) as usize], first, ROWS));
        }
        let written = write::write(lake, "t", Family::File, "2026-01-01", file + 1, &sets);
        files.push(Arc::new(written.expect("a file")));
    }
    Source {
        family: Family::File,
        files,
        memory: Vec::new(),
        facts: Arc::default(),
    }
}

fn query(source: &Source, text: &str, range: Range) -> Query {
    let predicate = Predicate::parse(text, &Lists::new()).expect("well-typed");
    Query {
        source: source.clone(),
        range,
        filter: scan::expression(&predicate, Family::File).expect("an expression"),
    }
}

async fn seqs(engine: &sumun_lake::Engine, query: Query) -> Vec<u64> {
    let mut reader = RowReader::new(engine, query);
    let mut seqs = Vec::new();
    while let Some(time) = reader.peek().await.expect("a scan") {
        reader.take().expect("it was peeked at");
        seqs.push((time - WALL).cast_unsigned() / 1000);
    }
    seqs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_in_memory_comes_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let lake = sample::lake(dir.path());
    let source = source(&lake);
    let whole = Range {
        since: i64::MIN,
        until: i64::MAX,
    };
    // All columns of all rows take about 200 MB.
    let engine = sample::engine(&lake, dir.path(), 48 * 1024 * 1024);
    let all = seqs(&engine, query(&source, "true", whole)).await;
    assert_eq!(all.len() as u64, TOTAL);
    assert!(all.iter().copied().eq(0..TOTAL), "each row once, by time");
    let times = engine
        .newest(&[query(&source, "true", whole)], 3)
        .await
        .expect("a scan");
    let newest: Vec<_> = times.iter().map(|time| (time - WALL) / 1000).collect();
    let many = engine
        .newest(
            &[query(&source, "file.ino >= 5", whole)],
            TOTAL as usize + 7,
        )
        .await
        .expect("a scan");
    let many: Vec<_> = many.iter().map(|time| (time - WALL) / 1000).collect();
    assert!(
        many.into_iter().eq((5..TOTAL as i64).rev()),
        "every file was read"
    );
    assert_eq!(
        newest,
        [TOTAL as i64 - 1, TOTAL as i64 - 2, TOTAL as i64 - 3]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn narrow_questions_find_their_rows() {
    let dir = tempfile::tempdir().expect("a directory");
    let lake = sample::lake(dir.path());
    let source = source(&lake);
    let engine = sample::engine(&lake, dir.path(), 48 * 1024 * 1024);
    let at = |number: u64| WALL + number as i64 * 1000;
    let whole = Range {
        since: i64::MIN,
        until: i64::MAX,
    };
    let part = Range {
        since: at(123_450),
        until: at(123_460),
    };
    let found = seqs(&engine, query(&source, "true", part)).await;
    assert_eq!(found, (123_450..123_460).collect::<Vec<_>>());
    let one = "file.path == '/srv/5/file-000100005' && proc.exe.name == 'cat'";
    assert_eq!(seqs(&engine, query(&source, one, whole)).await, [100_005]);
    // Its path is there for people, and is not what a predicate may rely on.
    let cut = "file.path == '/srv/3/file-000100003'";
    assert_eq!(seqs(&engine, query(&source, cut, whole)).await, [0; 0]);
    let cut = "file.name == 'file-000100003'";
    assert_eq!(seqs(&engine, query(&source, cut, whole)).await, [100_003]);
    let path = sample::path(100_007);
    let literal = |text: &str| format!("'{}'", text.replace('\\', "\\\\"));
    for text in [
        format!("file.path == {}", literal(&path)),
        format!("file.path.startsWith({})", literal(&path)),
        format!("file.path.endsWith({})", literal(&path[5..])),
        format!("file.path.contains({})", literal(&path[2..])),
        // Neither `_` nor `%` stands for other characters.
        "file.path.contains('/a_b%c') && file.ino == 100007".to_owned(),
        "file.path.startsWith('/srv/a_') && file.ino == 100007".to_owned(),
    ] {
        let found = seqs(&engine, query(&source, &text, whole)).await;
        assert_eq!(found, [100_007], "{text}");
    }
    let none = "file.path.startsWith('/srv/1_/') || file.path.contains('a%b')";
    assert_eq!(seqs(&engine, query(&source, none, whole)).await, [0; 0]);
    let not = "!file.path.startsWith('/srv/1')";
    let found = seqs(&engine, query(&source, not, part)).await;
    let expected: Vec<u64> = (123_450..123_460)
        .filter(|number| number % 10 != 3 && !(number % 50).to_string().starts_with('1'))
        .collect();
    assert_eq!(found, expected);
}
