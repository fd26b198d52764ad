//! How many events one CPU turns from encoded batches into a Parquet file in a
//! second: decode, rows, write; and how long searches over such files take.
//! `cargo run --release -p sumun-lake --example rate`

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use prost::Message;
use sumun_lake::engine::{Query, Range};
use sumun_lake::{
    Engine, EngineOptions, Family, Lake, LakeFile, RowReader, RowSet, Source as Rows, scan, write,
};
use sumun_policy::{Lists, Predicate};
use sumun_proto::Host;
use sumun_proto::v1::{Batch, Event, File, Image, Kind, Lane, Origin, Source};

const BATCHES: u64 = 500;
const EVENTS: u64 = 1000;
const IMAGES: u64 = 40;

fn main() {
    let dir = std::env::temp_dir().join(format!("sumun-rate-{}", std::process::id()));
    let lake = Lake::open(dir.to_str().expect("UTF-8")).expect("a lake");
    let bodies: Vec<Vec<u8>> = (0..BATCHES).map(|n| batch(n).encode_to_vec()).collect();
    let encoded: usize = bodies.iter().map(Vec::len).sum();
    let host = Arc::new(Host {
        id: "8b0e1a52-6f7e-4bd0-a6b6-6b4b5a0f3f10".into(),
        name: "web-1".into(),
    });
    let start = Instant::now();
    let batches: Vec<Batch> = bodies
        .iter()
        .map(|body| Batch::decode(body.as_slice()).expect("a batch"))
        .collect();
    let decoded = start.elapsed();
    let mut sets = Vec::new();
    for batch in &batches {
        let of_batch = sumun_lake::rows(&host, batch).expect("rows");
        sets.extend(of_batch.into_iter().map(Arc::new));
    }
    let built = start.elapsed();
    let file = write::write(&lake, "rate", Family::File, "2026-01-01", 1, &sets).expect("a file");
    let whole = start.elapsed();
    let events = (BATCHES * EVENTS) as f64;
    let memory: usize = sets.iter().map(|set| set.bytes()).sum();
    println!(
        "{} events: decode {decoded:?}, rows {:?}, parquet {:?}: {:.0} events/s",
        file.rows,
        built - decoded,
        whole - built,
        events / whole.as_secs_f64()
    );
    println!(
        "bytes an event: {:.0} encoded, {:.0} in memory, {:.1} in the file",
        encoded as f64 / events,
        memory as f64 / events,
        file.bytes as f64 / events
    );
    search(&lake, &dir, vec![Arc::new(file)], &sets);
    std::fs::remove_dir_all(&dir).expect("the lake can be removed");
}

/// Times searches over six such files.
fn search(lake: &Lake, dir: &Path, mut files: Vec<Arc<LakeFile>>, sets: &[Arc<RowSet>]) {
    for segment in 2..=6 {
        let file = write::write(lake, "rate", Family::File, "2026-01-01", segment, sets);
        files.push(Arc::new(file.expect("a file")));
    }
    let options = EngineOptions {
        memory_bytes: 512 * 1024 * 1024,
        spill_dir: dir.join("spill"),
        spill_bytes: 1024 * 1024 * 1024,
        threads: 2,
    };
    let engine = Engine::new(lake, &options).expect("an engine");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let rows: u64 = files.iter().map(|file| file.rows).sum();
    for text in [
        "true",
        "file.path.startsWith('/srv/data/13/')",
        "file.path == '/srv/data/13/no-such-file'",
        "proc.ancestors.exists(a, a.exe.name == 'worker-3') && file.ino == 7",
    ] {
        let predicate = Predicate::parse(text, &Lists::new()).expect("well-typed");
        let mut query = Query {
            source: Rows {
                facts: Arc::default(),
                family: Family::File,
                files: files.clone(),
                memory: Vec::new(),
            },
            range: Range {
                since: i64::MIN,
                until: i64::MAX,
            },
            filter: scan::expression(&predicate, Family::File).expect("an expression"),
        };
        let start = Instant::now();
        let newest = engine.newest(std::slice::from_ref(&query), 101);
        let times = runtime.block_on(newest).expect("a scan");
        let first = start.elapsed();
        if let Some(oldest) = times.get(99) {
            query.range.since = *oldest;
        }
        let found = runtime.block_on(async {
            let mut reader = RowReader::of_few(&engine, query);
            let mut found = 0;
            while reader.peek().await.expect("a scan").is_some() {
                reader.take();
                found += 1;
            }
            found
        });
        println!(
            "newest 100 of {rows} rows where {text}: {found} rows, times after {first:?}, all after {:?}",
            start.elapsed()
        );
    }
}

/// Opens of distinct files by a few processes, each with eight ancestors.
fn batch(number: u64) -> Batch {
    let mut images = Vec::new();
    for image in 0..IMAGES {
        let parent = match image {
            0 => 0,
            n if n < 8 => n,
            n => 8 - n % 2,
        };
        images.push(Image {
            exec_id: (number << 20) + image,
            pid: 1000 + image as u32,
            start_ns: (number + image) * 1_000_003,
            parent: parent as u32,
            parent_pid: 1000 + parent as u32,
            seen: true,
            exe_path: format!("/usr/lib/service-{}/bin/worker-{}", image % 7, image),
            args: (0..6)
                .map(|arg| format!("--option-{arg}={}", image * 31))
                .collect(),
            cwd: "/var/lib/service".into(),
            cgroup_id: 4000 + image % 5,
            cgroup_hierarchy: "unified".into(),
            ..Image::default()
        });
    }
    let events = (0..EVENTS)
        .map(|event| {
            let seq = number * EVENTS + event;
            Event {
                kind: Kind::Open.into(),
                boot_ns: seq * 20_011 + seq * 2_654_435_761 % 9_000,
                image: (8 + event * 7 % (IMAGES - 8) + 1) as u32,
                tid: 1000,
                origin: Some(Origin {
                    ring: 1,
                    cpu: (event % 2) as u32,
                    level: 0,
                    seq,
                }),
                file: Some(File {
                    path: Some(format!(
                        "/srv/data/{}/file-{:016x}",
                        seq % 97,
                        seq.wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    )),
                    source: Source::Object.into(),
                    flags: 1,
                    dev: 0x80_0001,
                    ino: seq.wrapping_mul(0x9e37_79b9) % 10_000_000,
                    mode: 0o100_644,
                    fd: 3,
                    ..File::default()
                }),
                rules: vec![],
                ..Event::default()
            }
        })
        .collect();
    Batch {
        format: 1,
        lane: Lane::Bulk.into(),
        boot_id: vec![7; 16],
        wall_offset_ns: 1_767_225_600_000_000_000,
        images,
        events,
        ..Batch::default()
    }
}
