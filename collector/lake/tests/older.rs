//! A file that was written before a field was appended to the catalogue.

mod sample;

use std::fs::File;
use std::sync::Arc;

use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sample::opens;
use sumun_lake::engine::{Query, Range};
use sumun_lake::{Family, RowReader, Source, scan, write};
use sumun_policy::{Lists, Predicate};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_that_did_not_exist_yet_is_absent() {
    let dir = tempfile::tempdir().expect("a directory");
    let lake = sample::lake(dir.path());
    let write = |segment, first| {
        write::write(
            &lake,
            "t",
            Family::File,
            "2026-01-01",
            segment,
            &opens("a", first, 10),
        )
        .expect("a file")
    };
    let (mut old, new) = (write(1, 0), write(2, 10));
    // The same rows without the columns `exceptions` and `verdict_*`.
    let path = lake.root().join(&old.path);
    let file = File::open(&path).expect("the file");
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .expect("a Parquet file")
        .build()
        .expect("a reader");
    let batches: Vec<_> = reader.map(|batch| batch.expect("rows")).collect();
    let schema = batches[0].schema();
    let kept: Vec<usize> = (0..schema.fields().len())
        .filter(|column| {
            let name = schema.field(*column).name();
            name != "exceptions" && !name.starts_with("verdict_")
        })
        .collect();
    assert_eq!(kept.len() + 5, schema.fields().len());
    let schema = Arc::new(schema.project(&kept).expect("a schema"));
    let file = File::create(&path).expect("the file");
    let mut writer = ArrowWriter::try_new(file, schema, None).expect("a writer");
    for batch in &batches {
        let batch = batch.project(&kept).expect("columns");
        writer.write(&batch).expect("written");
    }
    writer.close().expect("a file");
    old.bytes = std::fs::metadata(&path).expect("the file").len();

    let engine = sample::engine(&lake, dir.path(), 48 * 1024 * 1024);
    let source = Source {
        family: Family::File,
        files: vec![Arc::new(old), Arc::new(new)],
        memory: Vec::new(),
        facts: Arc::default(),
    };
    for (text, old, new) in [
        ("true", 10, 10),
        // Absent is neither true nor false.
        ("\"p/r/e\" in exceptions", 0, 0),
        ("!(\"p/r/e\" in exceptions)", 0, 10),
        ("verdict.outcome == \"killed\"", 0, 0),
        ("!has(verdict.outcome)", 10, 10),
    ] {
        let predicate = Predicate::parse(text, &Lists::new()).expect("well-typed");
        let query = Query {
            source: source.clone(),
            range: Range {
                since: i64::MIN,
                until: i64::MAX,
            },
            filter: scan::expression(&predicate, Family::File).expect("an expression"),
        };
        let mut reader = RowReader::of_few(&engine, query);
        let mut found = [0, 0];
        while reader.peek().await.expect("a scan").is_some() {
            let row = reader.take().expect("it was peeked at");
            let row: serde_json::Value = serde_json::from_str(&row).expect("JSON");
            found[usize::from(row.get("exceptions").is_some())] += 1;
        }
        assert_eq!(found, [old, new], "{text}");
    }
}
