//! The spool against a collector that insists on the promises: numbers without
//! holes, one body for each, and every event stored once or in a gap.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use prost::Message;
use sha2::{Digest, Sha256};
use sumun_proto::{WINDOW, v1};

use super::*;

const LIFE: v1::Lane = v1::Lane::Life;
const BULK: v1::Lane = v1::Lane::Bulk;
const ALERT: v1::Lane = v1::Lane::Alert;
const PIN: u64 = 77;
const STREAM: StreamId = StreamId {
    ring: 1,
    cpu: 3,
    level: 0,
};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a directory")
}

fn settings(dir: &Path) -> Settings {
    Settings {
        alert_bytes: 16 << 20,
        life_bytes: 16 << 20,
        bulk_bytes: 16 << 20,
        quarantine_files: 5,
        quarantine_bytes: 4 << 20,
        ..Settings::new(dir.join("spool"))
    }
}

fn open(dir: &Path) -> (Spool, Found) {
    Spool::open(&settings(dir)).expect("the spool opens")
}

/// Appends a batch of the events `ids`, with a body of about `bytes`.
fn append(
    spool: &Spool,
    lane: v1::Lane,
    ids: std::ops::Range<u64>,
    bytes: usize,
) -> Result<Key, Error> {
    let batch = v1::Batch {
        format: sumun_proto::FORMAT,
        lane: lane.into(),
        boot_id: vec![9; 16],
        wall_offset_ns: 1000,
        events: ids
            .clone()
            .map(|id| v1::Event {
                boot_ns: id,
                ..v1::Event::default()
            })
            .collect(),
        scopes: vec![v1::Scope {
            reason: "x".repeat(bytes),
            ..v1::Scope::default()
        }],
        ..v1::Batch::default()
    };
    let item = Item {
        body: &batch.encode_to_vec(),
        events: ids.end - ids.start,
        missing: Some(0),
        first_boot_ns: ids.start,
        last_boot_ns: ids.end - 1,
        boot_id: [9; 16],
        wall_offset_ns: 1000,
        pin_generation: PIN,
        highest: &BTreeMap::from([(STREAM, ids.end - 1)]),
    };
    spool.append(lane, &item)
}

/// A collector: takes what fits and stops the test at what must not be.
#[derive(Default)]
struct Collector {
    high: HashMap<(i32, u64), u64>,
    hashes: HashMap<(i32, u64, u64), Vec<u8>>,
    /// How often each event of a lane was stored.
    stored: BTreeMap<(i32, u64), u32>,
    gaps: Vec<(v1::Lane, v1::Gap)>,
}

impl Collector {
    /// `true` if it is new.
    fn take(&mut self, delivery: &v1::Delivery) -> bool {
        assert_eq!(Sha256::digest(&delivery.body)[..], delivery.sha256);
        let key = (delivery.lane, delivery.epoch, delivery.number);
        if let Some(hash) = self.hashes.get(&key) {
            assert_eq!(*hash, delivery.sha256, "another body under {key:?}");
            return false;
        }
        let high = self.high.entry((key.0, key.1)).or_default();
        assert_eq!(delivery.number, *high + 1, "a hole before {key:?}");
        *high += 1;
        self.hashes.insert(key, delivery.sha256.clone());
        let batch = v1::Batch::decode(&delivery.body[..]).expect("a batch");
        assert_eq!((batch.format, batch.lane), (sumun_proto::FORMAT, key.0));
        assert_eq!(batch.boot_id, vec![9; 16]);
        for event in &batch.events {
            *self.stored.entry((key.0, event.boot_ns)).or_default() += 1;
        }
        let lane = batch.lane();
        self.gaps
            .extend(batch.gaps.into_iter().map(|gap| (lane, gap)));
        true
    }

    fn forget(&mut self, delivery: &v1::Delivery) {
        // Refused: the number is used, nothing of it is stored.
        let batch = v1::Batch::decode(&delivery.body[..]).expect("a batch");
        for event in &batch.events {
            self.stored.remove(&(delivery.lane, event.boot_ns));
        }
        assert!(batch.gaps.is_empty(), "gaps are not refused here");
    }

    fn drain(&mut self, spool: &Spool, lane: v1::Lane) {
        spool.sync().expect("synced");
        spool.rewind(lane).expect("a lane");
        while let Some(delivery) = spool.next(lane).expect("read") {
            self.take(&delivery);
            spool
                .ack(lane, delivery.epoch, delivery.number)
                .expect("acknowledged");
        }
        let statistics = spool.statistics(lane).expect("a lane");
        assert_eq!(
            (
                statistics.batches,
                statistics.bytes,
                statistics.events,
                statistics.in_flight
            ),
            (0, 0, 0, 0)
        );
    }

    fn stored_of(&self, lane: v1::Lane) -> Vec<u64> {
        let lane = i32::from(lane);
        assert!(self.stored.values().all(|times| *times == 1), "doubled");
        self.stored
            .keys()
            .filter(|(of, _)| *of == lane)
            .map(|(_, id)| *id)
            .collect()
    }

    /// Events in the lane's gaps; panics at one without a count.
    fn missing_of(&self, lane: v1::Lane) -> u64 {
        self.gaps
            .iter()
            .filter(|(of, _)| *of == lane)
            .map(|(_, gap)| gap.count.expect("the count is known"))
            .sum()
    }
}

#[test]
fn batches_are_sent_in_order_once_they_are_synced() {
    let dir = directory();
    let (spool, _) = open(dir.path());
    let mut changed = spool.subscribe(LIFE).expect("a lane");
    let first = append(&spool, LIFE, 1..4, 10).expect("appended");
    let second = append(&spool, LIFE, 4..5, 10).expect("appended");
    let other = append(&spool, ALERT, 1..2, 10).expect("appended");
    assert_eq!((first.number, second.number, other.number), (1, 2, 1));
    assert_eq!((first.epoch, first.epoch), (second.epoch, other.epoch));
    assert_eq!(spool.next(LIFE).expect("read"), None);
    assert!(!changed.has_changed().expect("the spool is open"));
    spool.sync().expect("synced");
    assert!(changed.has_changed().expect("the spool is open"));
    assert_eq!(*changed.borrow_and_update(), 2);

    let statistics = spool.statistics(LIFE).expect("a lane");
    assert_eq!((statistics.epoch, statistics.number), (first.epoch, 2));
    assert_eq!((statistics.batches, statistics.events), (2, 4));
    assert_eq!(statistics.oldest_boot_ns, Some(1));
    assert_eq!(statistics.oldest_wall_ns, Some(1001));

    let one = spool.next(LIFE).expect("read").expect("the first");
    let two = spool.next(LIFE).expect("read").expect("the second");
    assert_eq!((one.number, two.number), (1, 2));
    assert_eq!(spool.next(LIFE).expect("read"), None);
    assert_eq!(spool.statistics(LIFE).expect("a lane").in_flight, 2);
    spool.ack(LIFE, one.epoch, 1).expect("acknowledged");
    spool.ack(LIFE, one.epoch, 1).expect("again");
    spool.rewind(LIFE).expect("a lane");
    assert_eq!(spool.next(LIFE).expect("read"), Some(two));
    spool.ack(LIFE, one.epoch, 2).expect("acknowledged");
    let statistics = spool.statistics(LIFE).expect("a lane");
    assert_eq!(
        (statistics.batches, statistics.bytes, statistics.events),
        (0, 0, 0)
    );
    assert_eq!(statistics.oldest_boot_ns, None);

    for (epoch, number) in [(one.epoch, 3), (one.epoch ^ 1, 1), (one.epoch, 0)] {
        let answer = spool.ack(LIFE, epoch, number);
        assert!(matches!(answer, Err(Error::NotSent { .. })), "{answer:?}");
    }
    let none = append(&spool, v1::Lane::Unspecified, 1..2, 0);
    assert!(matches!(none, Err(Error::NoLane)));
    let large = append(&spool, LIFE, 9..10, sumun_proto::BATCH_MAX);
    assert!(matches!(large, Err(Error::TooLarge { .. })));
}

#[test]
fn a_restart_goes_on_with_the_numbers_of_before() {
    let dir = directory();
    let mut collector = Collector::default();
    let mut epochs = Vec::new();
    for run in 0..4u64 {
        let (spool, found) = open(dir.path());
        let held = found.held(LIFE, PIN).get(&STREAM).copied();
        assert_eq!(held, (run > 0).then_some(run * 10));
        assert_eq!(found.held(LIFE, PIN + 1), HashMap::new());
        assert_eq!(found.held(BULK, PIN), HashMap::new());
        for id in 1..=10 {
            let id = run * 10 + id;
            let key = append(&spool, LIFE, id..id + 1, 50).expect("appended");
            assert_eq!(key.number, (id - 1) % 10 + 1);
            epochs.push(key.epoch);
        }
        spool.sync().expect("synced");
        // Half of what this run wrote is sent, part of that acknowledged.
        for step in 0..7 {
            let delivery = spool.next(LIFE).expect("read").expect("a batch");
            collector.take(&delivery);
            if step < 4 {
                spool
                    .ack(LIFE, delivery.epoch, delivery.number)
                    .expect("acknowledged");
            }
        }
    }
    epochs.dedup();
    assert_eq!(epochs.len(), 4);
    let (spool, _) = open(dir.path());
    assert_eq!(spool.statistics(LIFE).expect("a lane").batches, 40 - 16);
    collector.drain(&spool, LIFE);
    assert_eq!(collector.stored_of(LIFE), (1..=40).collect::<Vec<_>>());
    assert!(collector.gaps.is_empty());
}

#[test]
fn what_a_lane_has_dealt_with_is_known_after_its_segments_are_gone() {
    let dir = directory();
    let (spool, _) = open(dir.path());
    let mut collector = Collector::default();
    for id in 1..=30 {
        append(&spool, BULK, id..id + 1, 200_000).expect("appended");
        collector.drain(&spool, BULK);
    }
    let on_disk = spool.statistics(BULK).expect("a lane").disk_bytes;
    assert!(on_disk < 2 << 20, "{on_disk} bytes are left");
    drop(spool);
    for generation in [PIN, PIN + 1] {
        let (spool, found) = open(dir.path());
        assert_eq!(found.held(BULK, PIN).get(&STREAM), Some(&30));
        assert_eq!(
            found.held(BULK, generation).len(),
            usize::from(generation == PIN)
        );
        drop(spool);
    }
}

#[test]
fn the_bound_gives_up_the_oldest_unsent_bulk_and_says_exactly_what() {
    for sent in [0, 7] {
        let dir = directory();
        let (spool, _) = open(dir.path());
        let mut collector = Collector::default();
        let per_batch = 3;
        let mut appended = 0;
        let append_some = |spool: &Spool, count: u64, appended: &mut u64| {
            for _ in 0..count {
                let ids = *appended + 1..*appended + 1 + per_batch;
                append(spool, BULK, ids, 150_000).expect("bulk always finds room");
                *appended += per_batch;
            }
        };
        append_some(&spool, 20, &mut appended);
        spool.sync().expect("synced");
        for _ in 0..sent {
            // Seen by the collector, which cannot answer any more.
            let delivery = spool.next(BULK).expect("read").expect("a batch");
            collector.take(&delivery);
        }
        append_some(&spool, 280, &mut appended);
        let statistics = spool.statistics(BULK).expect("a lane");
        assert!(statistics.disk_bytes <= 16 << 20);
        assert!(statistics.dropped_batches > 100);
        assert_eq!(
            statistics.dropped_events,
            statistics.dropped_batches * per_batch
        );
        assert_eq!(statistics.events, appended - statistics.dropped_events);
        assert_eq!(statistics.batches, 300);

        drop(spool);
        let (spool, _) = open(dir.path());
        let again = spool.statistics(BULK).expect("a lane");
        assert_eq!(
            (again.batches, again.events),
            (statistics.batches, statistics.events)
        );
        // The gap is sent, and then more has to go.
        spool.sync().expect("synced");
        while let Some(delivery) = spool.next(BULK).expect("read") {
            collector.take(&delivery);
        }
        append_some(&spool, 200, &mut appended);
        collector.drain(&spool, BULK);

        let stored = collector.stored_of(BULK);
        assert_eq!(stored.len() as u64 + collector.missing_of(BULK), appended);
        assert!(collector.gaps.len() >= 2);
        for (_, gap) in &collector.gaps {
            assert_eq!(gap.reason, "spool_full");
            let count = gap.count.expect("the count is known");
            assert_eq!(
                gap.to_boot_ns - gap.from_boot_ns + 1,
                count,
                "exactly these"
            );
            let inside = |id: &&u64| (gap.from_boot_ns..=gap.to_boot_ns).contains(*id);
            assert_eq!(stored.iter().filter(inside).count(), 0);
        }
        if sent > 0 {
            assert_eq!(stored[..sent], (1..=sent as u64).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_segment_that_was_given_up_stays_given_up() {
    let dir = directory();
    let (spool, _) = open(dir.path());
    let files = || -> Vec<(PathBuf, Vec<u8>)> {
        std::fs::read_dir(dir.path().join("spool/bulk"))
            .expect("the lane")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|suffix| suffix == "seg"))
            .map(|path| (path.clone(), std::fs::read(path).expect("read")))
            .collect()
    };
    let mut id = 0;
    let mut before = files();
    while spool.statistics(BULK).expect("a lane").dropped_batches == 0 {
        before = files();
        id += 1;
        append(&spool, BULK, id..id + 1, 150_000).expect("appended");
    }
    drop(spool);
    // As if the program had ended between saying it and doing it.
    for (path, bytes) in before {
        if !path.exists() {
            std::fs::write(path, bytes).expect("written");
        }
    }
    let (spool, _) = open(dir.path());
    let mut collector = Collector::default();
    collector.drain(&spool, BULK);
    let stored = collector.stored_of(BULK).len() as u64;
    assert_eq!(stored + collector.missing_of(BULK), id);
    assert!(collector.missing_of(BULK) > 0);
}

#[test]
fn life_is_never_given_up_and_keeps_its_newest_segments() {
    let dir = directory();
    let (spool, _) = open(dir.path());
    let mut id = 0;
    let error = loop {
        match append(&spool, LIFE, id + 1..id + 2, 200_000) {
            Ok(_) => id += 1,
            Err(error) => break error,
        }
    };
    assert!(error.is_full(), "{error:?}");
    assert!(
        append(&spool, BULK, 1..2, 200_000).is_ok(),
        "it has its own space"
    );
    let mut collector = Collector::default();
    collector.drain(&spool, LIFE);
    assert_eq!(collector.stored_of(LIFE), (1..=id).collect::<Vec<_>>());

    let retained = |spool: &Spool| -> Vec<u64> {
        spool
            .life_bodies()
            .map(|body| v1::Batch::decode(&body.expect("read")[..]).expect("a batch"))
            .map(|batch| batch.events[0].boot_ns)
            .collect()
    };
    let kept = retained(&spool);
    assert!(
        kept.len() >= 10 && (kept.len() as u64) < id / 2,
        "{}",
        kept.len()
    );
    assert_eq!(kept.last(), Some(&id));
    assert!(kept.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    drop(spool);
    let (spool, _) = open(dir.path());
    assert_eq!(retained(&spool), kept);
    assert_eq!(spool.statistics(LIFE).expect("a lane").batches, 0);
    // What is only retained makes room for what is new.
    for _ in 0..70 {
        id += 1;
        append(&spool, LIFE, id..id + 1, 200_000).expect("there is room");
    }
    collector.drain(&spool, LIFE);
    assert_eq!(collector.stored_of(LIFE).len() as u64, id);
}

#[test]
fn no_more_is_unanswered_than_the_collector_remembers() {
    let dir = directory();
    let (spool, _) = open(dir.path());
    for id in 1..=1500 {
        append(&spool, BULK, id..id + 1, 10).expect("appended");
    }
    for id in 1..=30 {
        append(&spool, ALERT, id..id + 1, 350_000).expect("appended");
    }
    spool.sync().expect("synced");
    let take_all = |lane| {
        let mut taken = Vec::new();
        while let Some(delivery) = spool.next(lane).expect("read") {
            taken.push(delivery);
        }
        taken
    };
    let bulk = take_all(BULK);
    assert_eq!(bulk.len(), WINDOW);
    spool.ack(BULK, bulk[0].epoch, 10).expect("acknowledged");
    assert_eq!(take_all(BULK).len(), 10);
    let alerts = take_all(ALERT);
    let bytes: usize = alerts.iter().map(|delivery| delivery.body.len()).sum();
    assert!((IN_FLIGHT_BYTES..IN_FLIGHT_BYTES + 400_000).contains(&(bytes as u64)));
    spool.rewind(ALERT).expect("a lane");
    assert_eq!(take_all(ALERT), alerts);
}

#[test]
fn a_refused_batch_is_put_aside_and_the_lane_goes_on() {
    let dir = directory();
    let (spool, _) = open(dir.path());
    let mut collector = Collector::default();
    for id in 1..=20 {
        append(&spool, BULK, id * 10..id * 10 + 5, 1000).expect("appended");
    }
    spool.sync().expect("synced");
    let mut epoch = 0;
    for number in 1..=20 {
        let delivery = spool.next(BULK).expect("read").expect("a batch");
        epoch = delivery.epoch;
        collector.take(&delivery);
        if number % 3 == 0 {
            collector.forget(&delivery);
            for _ in 0..2 {
                spool
                    .reject(BULK, epoch, number, "not a batch\nat all")
                    .expect("put aside");
            }
        }
    }
    assert!(spool.reject(BULK, epoch, 999, "").is_err());
    let statistics = spool.statistics(BULK).expect("a lane");
    assert_eq!(statistics.refused_batches, 6);
    // Fourteen are unanswered; six gaps were written.
    assert_eq!(statistics.batches, 14 + 6);
    spool.ack(BULK, epoch, 1).expect("acknowledged");
    drop(spool);

    let (spool, _) = open(dir.path());
    collector.drain(&spool, BULK);
    assert_eq!(collector.stored_of(BULK).len(), 14 * 5);
    assert_eq!(collector.missing_of(BULK), 6 * 5);
    for (gap, number) in collector.gaps.iter().zip([3, 6, 9, 12, 15, 18]) {
        let gap = &gap.1;
        assert_eq!(gap.reason, "rejected");
        assert_eq!(
            (gap.from_boot_ns, gap.to_boot_ns),
            (number * 10, number * 10 + 4)
        );
        assert!(
            gap.detail
                .contains(&format!("batch {number} of epoch {epoch:016x}"))
        );
    }
    let mut files: Vec<_> = std::fs::read_dir(dir.path().join("spool/quarantine"))
        .expect("the quarantine")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    assert_eq!(files.len(), 5, "bounded");
    let kept = std::fs::read(files.last().expect("the newest")).expect("read");
    let (label, body) = kept.split_at(kept.iter().position(|b| *b == b'\n').expect("a line") + 1);
    let label: serde_json::Value = serde_json::from_slice(label).expect("JSON");
    assert_eq!(label["number"], 18);
    assert_eq!(label["reason"], "not a batch\nat all");
    let batch = v1::Batch::decode(body).expect("the body as it was sent");
    assert_eq!(batch.events[0].boot_ns, 180);
}

#[test]
fn damaged_batches_become_gaps_under_their_own_numbers() {
    for reopened in [true, false] {
        let dir = directory();
        let (mut spool, _) = open(dir.path());
        for id in 1..=30 {
            append(&spool, LIFE, id..id + 1, 100_000).expect("appended");
        }
        spool.sync().expect("synced");
        // Somewhere in the fifth batch, in a segment that is closed.
        let path = dir.path().join("spool/life/00000000000000000001.seg");
        let mut bytes = std::fs::read(&path).expect("the first segment");
        bytes[450_000] ^= 1;
        std::fs::write(&path, bytes).expect("written");
        if reopened {
            drop(spool);
            spool = open(dir.path()).0;
            let statistics = spool.statistics(LIFE).expect("a lane");
            assert_eq!((statistics.lost_batches, statistics.events), (1, 29));
        }
        let mut collector = Collector::default();
        spool.sync().expect("synced");
        while let Some(delivery) = spool.next(LIFE).expect("read") {
            collector.take(&delivery);
        }
        let stored: Vec<u64> = (1..=30).filter(|id| *id != 5).collect();
        assert_eq!(collector.stored_of(LIFE), stored);
        let [(_, gap)] = &collector.gaps[..] else {
            panic!("{:?}", collector.gaps);
        };
        assert_eq!((gap.reason.as_str(), gap.count), ("corrupt", None));
        assert!(gap.from_boot_ns <= 5 && gap.to_boot_ns >= 5);
        // Said once means said the same way for ever.
        drop(spool);
        let (spool, _) = open(dir.path());
        spool.sync().expect("synced");
        while let Some(delivery) = spool.next(LIFE).expect("read") {
            assert!(!collector.take(&delivery));
        }
    }
}

#[test]
fn a_lost_ledger_costs_repeats_and_nothing_else() {
    let dir = directory();
    let mut collector = Collector::default();
    let mut id = 0;
    for _ in 0..3 {
        let (spool, _) = open(dir.path());
        for _ in 0..10 {
            id += 1;
            append(&spool, LIFE, id..id + 1, 50_000).expect("appended");
        }
        spool.sync().expect("synced");
        for _ in 0..8 {
            let delivery = spool.next(LIFE).expect("read").expect("a batch");
            collector.take(&delivery);
            spool
                .ack(LIFE, delivery.epoch, delivery.number)
                .expect("acknowledged");
        }
    }
    std::fs::remove_dir_all(dir.path().join("spool/life/ledger")).expect("removed");
    let (spool, _) = open(dir.path());
    collector.drain(&spool, LIFE);
    assert_eq!(collector.stored_of(LIFE), (1..=id).collect::<Vec<_>>());
    assert!(collector.gaps.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Append(u8, u32),
    Send(u8),
    /// Acknowledge the n-th unanswered one.
    Ack(u8),
    Refuse(u8),
    Reconnect,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (1u8..20, 0u32..1_000_000).prop_map(|(n, bytes)| Step::Append(n, bytes)),
        6 => (1u8..30).prop_map(Step::Send),
        3 => any::<u8>().prop_map(Step::Ack),
        2 => any::<u8>().prop_map(Step::Refuse),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if std::env::var_os("SUMUN_FAULTS").is_some() { 500 } else { 40 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_event_is_stored_once_or_in_a_gap(steps in proptest::collection::vec(step(), 1..120)) {
        let dir = directory();
        let mut spool = open(dir.path()).0;
        let mut collector = Collector::default();
        let mut appended = 0;
        // Taken by the collector, and the agent does not know.
        let mut unanswered: Vec<v1::Delivery> = Vec::new();
        for step in steps {
            match step {
                Step::Append(count, bytes) => {
                    for _ in 0..count {
                        let ids = appended + 1..appended + 3;
                        append(&spool, BULK, ids, bytes as usize / 2).expect("bulk finds room");
                        appended += 2;
                    }
                    spool.sync().expect("synced");
                }
                Step::Send(count) => {
                    for _ in 0..count {
                        let Some(delivery) = spool.next(BULK).expect("read") else { break };
                        collector.take(&delivery);
                        unanswered.push(delivery);
                    }
                }
                Step::Ack(which) => {
                    if unanswered.is_empty() { continue }
                    let index = usize::from(which) % unanswered.len();
                    let delivery = &unanswered[index];
                    spool.ack(BULK, delivery.epoch, delivery.number).expect("acknowledged");
                    unanswered.drain(..=index);
                }
                Step::Refuse(which) => {
                    if unanswered.is_empty() { continue }
                    let index = usize::from(which) % unanswered.len();
                    let batch = v1::Batch::decode(&unanswered[index].body[..]).expect("a batch");
                    if batch.events.is_empty() { continue }
                    let delivery = unanswered.remove(index);
                    collector.forget(&delivery);
                    spool.reject(BULK, delivery.epoch, delivery.number, "no").expect("refused");
                }
                Step::Reconnect => {
                    spool.rewind(BULK).expect("a lane");
                    unanswered.clear();
                }
                Step::Restart => {
                    drop(spool);
                    spool = open(dir.path()).0;
                    unanswered.clear();
                }
            }
            let statistics = spool.statistics(BULK).expect("a lane");
            assert!(statistics.disk_bytes <= (16 << 20) + (1 << 20));
        }
        collector.drain(&spool, BULK);
        let stored = collector.stored_of(BULK).len() as u64;
        prop_assert_eq!(stored + collector.missing_of(BULK), appended);
    }
}
