//! Rows are there once, whatever happens between the steps of sealing.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sumun_lake::engine::{Query, Range};
use sumun_lake::{Engine, EngineOptions, RowReader};
use sumun_proto::v1::scope::Mode;
use sumun_proto::v1::{Event, Facts, File, Image, Kind, Lane, Origin};

use super::*;

pub(crate) const BOOT: [u8; 16] = [7; 16];
/// Wall clock at boot of every host in tests.
pub(crate) const WALL: i64 = 1_700_000_000_000_000_000;

/// A batch of opens numbered from `first`, one nanosecond apart.
pub(crate) fn opens(first: u64, count: u64) -> Batch {
    let image = Image {
        exec_id: 9,
        pid: 100,
        seen: true,
        exe_path: "/usr/bin/cat".into(),
        args: vec!["cat".into()],
        ..Image::default()
    };
    let event = |number: u64| Event {
        kind: Kind::Open.into(),
        boot_ns: number,
        image: 1,
        tid: 100,
        origin: Some(Origin {
            ring: 1,
            seq: number,
            ..Origin::default()
        }),
        file: Some(File {
            path: Some(format!("/srv/{number}")),
            dev: 1,
            ino: number,
            ..File::default()
        }),
        ..Event::default()
    };
    Batch {
        format: 1,
        lane: Lane::Bulk.into(),
        boot_id: BOOT.to_vec(),
        wall_offset_ns: WALL,
        images: vec![image],
        events: (first..first + count).map(event).collect(),
        ..Batch::default()
    }
}

/// What is told of a workload at a time since boot; some 200 bytes.
pub(crate) fn told(workload: u64, at_boot_ns: u64) -> Batch {
    Batch {
        format: 1,
        lane: Lane::Life.into(),
        boot_id: BOOT.to_vec(),
        wall_offset_ns: WALL,
        facts: vec![Facts {
            workload,
            version: at_boot_ns,
            container_name: "x".repeat(200),
            namespace: format!("space-{workload}"),
            ..Facts::default()
        }],
        ..Batch::default()
    }
}

pub(crate) fn applied(segment: u64, seq: u64, host: &str, batch: Batch) -> Applied {
    Applied {
        segment,
        seq,
        tenant: "default".into(),
        host: Host {
            id: host.into(),
            name: format!("name-{host}"),
        },
        received_ns: WALL,
        batch,
    }
}

pub(crate) async fn open(dir: &Path) -> Store {
    open_with(dir, Bounds::default()).await
}

pub(crate) async fn open_with(dir: &Path, bounds: Bounds) -> Store {
    let database = crate::state::open(&dir.join("state.db")).await.unwrap();
    let lake = dir.join("lake");
    Store::open(database, lake.to_str().unwrap(), bounds)
        .await
        .unwrap()
}

fn engine(store: &Store, dir: &Path) -> Engine {
    let options = EngineOptions {
        memory_bytes: 64 * 1024 * 1024,
        spill_dir: dir.join("spill"),
        spill_bytes: 1024 * 1024 * 1024,
        threads: 2,
    };
    Engine::new(store.lake(), &options).unwrap()
}

/// Sequence numbers of the rows of table file.
async fn seqs(engine: &Engine, snapshot: &Snapshot) -> Vec<u64> {
    let query = Query {
        source: snapshot.table(Family::File),
        range: Range {
            since: i64::MIN,
            until: i64::MAX,
        },
        filter: sumun_lake::scan::exact(&sumun_policy::ir::Expr::Const(true), Family::File)
            .unwrap(),
    };
    let mut reader = RowReader::new(engine, query);
    let mut seqs = Vec::new();
    while reader.peek().await.unwrap().is_some() {
        let row: serde_json::Value = serde_json::from_str(&reader.take().unwrap()).unwrap();
        seqs.push(row["origin"]["seq"].as_str().unwrap().parse().unwrap());
    }
    seqs
}

fn files(dir: &Path) -> usize {
    Lake::open(dir.join("lake").to_str().unwrap())
        .unwrap()
        .list()
        .unwrap()
        .len()
}

#[tokio::test]
async fn a_crash_before_the_manifest_leaves_no_file_and_the_log_has_the_rows() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    store.apply(applied(1, 1, "a", opens(0, 10)));
    let held = store.lock().memory.begin_seal(1, WALL);
    store.write(1, held).await.unwrap();
    assert_eq!(files(dir.path()), 1);
    let half = dir.path().join("lake/tenant=default/half.parquet.tmp");
    std::fs::write(half, "x").unwrap();
    let foreign = dir.path().join("lake/notes.parquet");
    std::fs::write(&foreign, "of somebody else").unwrap();
    drop(store);

    let store = open(dir.path()).await;
    assert!(
        foreign.exists(),
        "a file that is not the lake's is left alone"
    );
    std::fs::remove_file(&foreign).unwrap();
    assert_eq!(
        files(dir.path()),
        0,
        "a file that no manifest names is removed"
    );
    assert_eq!(store.snapshot("default").rows(Family::File), 0);
    // The log is replayed: the same segment again.
    store.apply(applied(1, 1, "a", opens(0, 10)));
    store.seal(1, &Checkpoint::default()).await.unwrap();
    let engine = engine(&store, dir.path());
    let snapshot = store.snapshot("default");
    assert_eq!(seqs(&engine, &snapshot).await, (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_crash_after_the_manifest_leaves_each_row_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    store.apply(applied(1, 1, "a", opens(0, 10)));
    store.apply(applied(2, 2, "a", opens(10, 5)));
    let held = store.lock().memory.begin_seal(1, WALL);
    let files = store.write(1, held.clone()).await.unwrap();
    store
        .commit(1, &held, &files, &Checkpoint::default())
        .await
        .unwrap();
    drop(store);

    let store = open(dir.path()).await;
    // Segment 1 is committed as sealed; only segment 2 is replayed.
    store.apply(applied(2, 2, "a", opens(10, 5)));
    let engine = engine(&store, dir.path());
    let snapshot = store.snapshot("default");
    assert_eq!(seqs(&engine, &snapshot).await, (0..15).collect::<Vec<_>>());
    assert_eq!(snapshot.rows(Family::File), 15);
}

#[tokio::test]
async fn a_commit_that_was_not_confirmed_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let mut batch = opens(0, 10);
    batch.scopes = vec![Scope {
        kind: Kind::Open.into(),
        mode: Mode::All.into(),
        from_boot_ns: 5,
        ..Scope::default()
    }];
    store.apply(applied(1, 1, "a", batch));
    let held = store.lock().memory.begin_seal(1, WALL);
    let written = store.write(1, held.clone()).await.unwrap();
    let checkpoint = Checkpoint::default();
    store.commit(1, &held, &written, &checkpoint).await.unwrap();
    store.seal(1, &Checkpoint::default()).await.unwrap();
    assert_eq!(store.snapshot("default").rows(Family::File), 10);
    drop(store);
    let store = open(dir.path()).await;
    let snapshot = store.snapshot("default");
    assert_eq!(snapshot.rows(Family::File), 10);
    assert_eq!(files(dir.path()), 1);
    let scopes = snapshot.scopes();
    assert_eq!(scopes.len(), 1);
    assert_eq!(scopes[0].from_ns, WALL + 5);
    assert_eq!(scopes[0].scope.mode(), Mode::All);
}

#[tokio::test]
async fn tenants_do_not_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    store.apply(applied(1, 1, "a", opens(0, 3)));
    let mut other = applied(1, 2, "b", opens(3, 4));
    other.tenant = "other".into();
    store.apply(other);
    for _ in 0..2 {
        assert_eq!(store.snapshot("default").rows(Family::File), 3);
        assert_eq!(store.snapshot("other").rows(Family::File), 4);
        assert_eq!(store.snapshot("nobody").rows(Family::File), 0);
        store.seal(1, &Checkpoint::default()).await.unwrap();
    }
    assert_eq!(files(dir.path()), 2);
}

#[tokio::test]
async fn a_batch_that_cannot_be_read_is_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let mut batch = opens(4, 2);
    batch.events[0].kind = 999;
    store.apply(applied(1, 1, "a", batch));
    let snapshot = store.snapshot("default");
    assert_eq!(snapshot.rows(Family::File), 0);
    assert_eq!(snapshot.rows(Family::Gap), 1);
}

/// Queries run while segments are sealed one after the other: every snapshot
/// has exactly the rows that were applied when it was taken, each once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_exact_while_sealing() {
    const SEGMENTS: u64 = 12;
    const BATCHES: u64 = 5;
    const ROWS: u64 = 40;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let engine = engine(&store, dir.path());
    let (before, after) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let done = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (store, before, after, done) =
            (store.clone(), before.clone(), after.clone(), done.clone());
        async move {
            for segment in 1..=SEGMENTS {
                for batch in 0..BATCHES {
                    let first = ((segment - 1) * BATCHES + batch) * ROWS;
                    before.store(first + ROWS, Ordering::SeqCst);
                    let host = format!("host-{}", batch % 2);
                    store.apply(applied(segment, first + 1, &host, opens(first, ROWS)));
                    after.store(first + ROWS, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                }
                store.seal(segment, &Checkpoint::default()).await.unwrap();
            }
            done.store(true, Ordering::SeqCst);
        }
    });
    let mut queries = 0;
    while !done.load(Ordering::SeqCst) || queries == 0 {
        let least = after.load(Ordering::SeqCst);
        let snapshot = store.snapshot("default");
        let most = before.load(Ordering::SeqCst);
        let seqs = seqs(&engine, &snapshot).await;
        let count = seqs.len() as u64;
        assert!((least..=most).contains(&count), "{least} {count} {most}");
        assert_eq!(seqs, (0..count).collect::<Vec<_>>());
        queries += 1;
    }
    writer.await.unwrap();
    assert!(queries > 3, "only {queries} queries ran beside the sealing");
    assert_eq!(store.memory_bytes(), 0);
    assert_eq!(files(dir.path()) as u64, SEGMENTS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_memory_holds_newer_segments_back_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let database = crate::state::open(&dir.path().join("state.db"))
        .await
        .unwrap();
    let lake = dir.path().join("lake");
    let bounds = Bounds {
        memory: 1,
        ..Bounds::default()
    };
    let store = Store::open(database, lake.to_str().unwrap(), bounds)
        .await
        .unwrap();
    // One segment alone may pass the bound: nothing could free it.
    store.apply(applied(1, 1, "a", opens(0, 10)));
    store.apply(applied(1, 2, "a", opens(10, 10)));
    let (begun, begins) = std::sync::mpsc::sync_channel(1);
    let newer = std::thread::spawn({
        let store = store.clone();
        move || {
            begun.send(()).unwrap();
            store.apply(applied(2, 3, "a", opens(20, 10)));
        }
    });
    begins.recv().unwrap();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(store.snapshot("default").rows(Family::File), 20);
    }
    store.seal(1, &Checkpoint::default()).await.unwrap();
    tokio::task::spawn_blocking(move || newer.join().unwrap())
        .await
        .unwrap();
    assert_eq!(store.snapshot("default").rows(Family::File), 30);
}

#[tokio::test]
async fn of_workloads_the_last_told_of_are_kept_and_the_rest_is_not_forgotten_silently() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = |bytes| Bounds {
        facts: Kept {
            bytes,
            ..Kept::default()
        },
        ..Bounds::default()
    };
    let now = now_ns();
    let tell = |store: &Store, segment, seq: u64, batch| {
        let mut applied = applied(segment, seq, "a", batch);
        applied.received_ns = now + i64::try_from(seq).unwrap();
        store.apply(applied);
    };
    let known = |store: &Store| -> Vec<u64> {
        let facts = store.snapshot("default").table(Family::File).facts;
        let boot = sumun_proto::view::boot_id_text(&BOOT);
        let known = |id: &u64| facts.get("a", &boot, *id).is_some();
        (1..=100).filter(known).collect()
    };
    let all: Vec<u64> = (1..=100).collect();

    let store = open_with(dir.path(), bounds(1 << 20)).await;
    for id in 1..=90 {
        tell(&store, 1, id, told(id, id));
    }
    assert_eq!(store.seal(1, &Checkpoint::default()).await.unwrap(), 0);
    drop(store);

    // As with a smaller bound than before. 1 lives, so it is told of again.
    let store = open_with(dir.path(), bounds(64 * 1024)).await;
    assert_eq!(known(&store), all[..90]);
    tell(&store, 2, 91, told(1, 91));
    tell(&store, 2, 92, told(91, 92));
    let gone = store.seal(2, &Checkpoint::default()).await.unwrap();
    let first = gone + 2;
    let mut kept = vec![1];
    kept.extend(first..=91);
    assert_eq!(known(&store), kept, "{gone} went");
    let snapshot = store.snapshot("default");
    let facts = snapshot.table(Family::File).facts;
    assert!(facts.bytes() <= 64 * 1024 && facts.bytes() > 48 * 1024);
    // Exactly as long as the last that went may have had events.
    let through = WALL + i64::try_from(first - 1).unwrap() + 12 * 3600 * 1_000_000_000;
    assert_eq!(snapshot.forgotten("a"), Some(through));
    assert_eq!(snapshot.forgotten("b"), None);
    drop(store);

    // And so it is found again. What is older than it may be goes whatever its size.
    let old = Bounds {
        facts: Kept {
            age: Duration::ZERO,
            ..Kept::default()
        },
        ..Bounds::default()
    };
    let store = open_with(dir.path(), old).await;
    assert_eq!(known(&store), kept);
    assert_eq!(store.snapshot("default").forgotten("a"), Some(through));
    let went = store.seal(3, &Checkpoint::default()).await.unwrap();
    assert_eq!(went, kept.len() as u64);
    assert!(known(&store).is_empty());
    tell(&store, 4, 200, told(5, 200));
    assert_eq!(known(&store), [5]);
}
