//! Tests that need to look inside, or to break a sync.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::*;
use crate::{Entry, Lost, RECORD_OVERHEAD, SEGMENT_OVERHEAD, Seq};

const SMALL: Options = Options {
    segment_bytes: 4096,
    max_bytes: None,
    reserve: 0,
};

fn open(dir: &Path, options: Options) -> (Log, Recovery) {
    Log::open(dir, options).expect("the log opens")
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Read {
    Record(Seq, Vec<u8>),
    Lost(Seq, Seq),
}

fn read_all(mut reader: Reader) -> Vec<Read> {
    let mut all = Vec::new();
    while let Some(entry) = reader.next().expect("the log can be read") {
        all.push(match entry {
            Entry::Record { seq, payload, .. } => Read::Record(seq, payload.to_vec()),
            Entry::Lost { from, to } => Read::Lost(from, to),
        });
    }
    all
}

fn record(seq: Seq) -> Vec<u8> {
    format!("record {seq}").into_bytes()
}

fn records(range: std::ops::RangeInclusive<Seq>) -> Vec<Read> {
    range.map(|seq| Read::Record(seq, record(seq))).collect()
}

fn append(log: &Log, range: std::ops::RangeInclusive<Seq>) {
    for seq in range {
        assert_eq!(log.append(&record(seq)).expect("appended"), seq);
    }
}

fn segment_file(dir: &Path, first: Seq) -> PathBuf {
    dir.join(format!("{first:020}.seg"))
}

fn flip(path: &Path, offset: u64) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("the segment is there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)
        .expect("the offset lies in the file");
    file.write_all_at(&[byte[0] ^ 0x40], offset)
        .expect("the byte is written");
}

/// Offset of record `n` (from 1) of a segment that holds `record(1)`, ….
fn offset_of(n: Seq) -> u64 {
    SEGMENT_OVERHEAD
        + (1..n)
            .map(|seq| RECORD_OVERHEAD + record(seq).len() as u64)
            .sum::<u64>()
}

#[test]
fn what_is_appended_is_read_across_segments_and_reopening() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, recovery) = open(dir.path(), SMALL);
    assert_eq!((recovery.first, recovery.last), (1, 0));
    assert_eq!(log.written(), 0);
    append(&log, 1..=500);
    assert!(log.segments().len() > 3);
    assert_eq!(read_all(log.reader(0)), records(1..=500));
    assert_eq!(read_all(log.reader(300)), records(300..=500));
    assert_eq!(read_all(log.reader(300).until(310)), records(300..=310));
    assert_eq!(read_all(log.reader(501)), []);

    let durable = log.durable();
    assert_eq!(read_all(log.durable_reader(1)), records(1..=durable));
    assert!(durable < 500);
    let mut reader = log.durable_reader(durable + 1);
    assert_eq!(reader.next().expect("read"), None);
    assert_eq!(log.sync().expect("synced"), 500);
    assert!(reader.next().expect("read").is_some());

    assert!(matches!(
        Log::open(dir.path(), SMALL),
        Err(Error::InUse { .. })
    ));
    let on_disk: u64 = log.segments().iter().map(|s| s.bytes).sum();
    assert_eq!(on_disk, log.bytes_on_disk());
    drop(reader);
    drop(log);
    let (log, recovery) = open(dir.path(), SMALL);
    assert_eq!(recovery.last, 500);
    assert_eq!(recovery.truncated_tail_bytes, 0);
    assert_eq!(read_all(log.reader(1)), records(1..=500));
    append(&log, 501..=510);
    assert_eq!(read_all(log.reader(1)), records(1..=510));
}

#[test]
fn parts_batches_and_empty_payloads() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path(), Options::default());
    assert_eq!(log.append_parts(&[b"a", b"", b"bc"]).expect("appended"), 1);
    assert_eq!(log.append(b"").expect("appended"), 2);
    assert_eq!(log.append_many(&[]).expect("nothing"), 3..3);
    let many: Vec<Vec<u8>> = (0..3000u32).map(|n| n.to_le_bytes().to_vec()).collect();
    let slices: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    assert_eq!(log.append_many(&slices).expect("appended"), 3..3003);
    let large = vec![7; 3 << 20];
    assert_eq!(log.append(&large).expect("appended"), 3003);
    let read = read_all(log.reader(1));
    assert_eq!(read[0], Read::Record(1, b"abc".to_vec()));
    assert_eq!(read[1], Read::Record(2, Vec::new()));
    for (n, payload) in many.into_iter().enumerate() {
        assert_eq!(read[n + 2], Read::Record(n as u64 + 3, payload));
    }
    assert_eq!(read[3002], Read::Record(3003, large));
    let too_large = vec![0; crate::MAX_PAYLOAD as usize + 1];
    assert!(matches!(
        log.append(&too_large),
        Err(Error::TooLarge { .. })
    ));
    assert_eq!(log.written(), 3003);
}

#[test]
fn segments_are_sealed_and_removed_oldest_first_and_numbers_go_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path(), Options::default());
    assert_eq!(log.roll().expect("nothing to roll"), None);
    append(&log, 1..=10);
    let sealed = log.roll().expect("rolled").expect("a segment");
    assert_eq!((sealed.first, sealed.last, sealed.sealed), (1, 10, true));
    assert_eq!(log.durable(), 10);
    append(&log, 11..=20);
    log.roll().expect("rolled");
    let mut behind = log.reader(1);
    assert!(behind.next().expect("read").is_some());

    assert_eq!(log.remove_through(9).expect("nothing goes").segments, 0);
    let removed = log.remove_through(19).expect("one goes");
    assert_eq!((removed.segments, removed.bytes), (1, sealed.bytes));
    assert_eq!(log.first(), 11);
    assert_eq!(read_all(behind), records(11..=20));
    assert_eq!(log.remove_through(u64::MAX).expect("one goes").segments, 1);
    assert_eq!(log.segments().len(), 1);
    assert_eq!(read_all(log.reader(1)), []);
    drop(log);

    let (log, recovery) = open(dir.path(), Options::default());
    assert_eq!((recovery.first, recovery.last), (21, 20));
    append(&log, 21..=22);
    assert_eq!(read_all(log.reader(1)), records(21..=22));
}

#[test]
fn the_bound_refuses_and_removal_makes_room() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = Options {
        segment_bytes: 4096,
        max_bytes: Some(16 * 1024),
        reserve: 4096,
    };
    let (log, _) = open(dir.path(), options);
    let payload = [1; 1000];
    let error = loop {
        if let Err(error) = log.append(&payload) {
            break error;
        }
        assert!(log.bytes_on_disk() <= 16 * 1024);
    };
    assert!(matches!(error, Error::Bound { .. }) && error.is_full());
    let full = log.written();
    log.append_reserved(&[b"gap"]).expect("passes the bound");
    assert!(log.reserve_held(), "the disk had room");
    let oldest = log.segments()[0].last;
    log.remove_through(oldest).expect("removed");
    assert_eq!(log.append(&payload).expect("room again"), full + 2);
}

#[test]
fn a_torn_tail_is_cut_and_what_was_whole_stays() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path(), Options::default());
    append(&log, 1..=3);
    drop(log);
    let path = segment_file(dir.path(), 1);
    let whole = std::fs::read(&path).expect("the segment is there");
    for len in SEGMENT_OVERHEAD..whole.len() as u64 {
        std::fs::write(&path, &whole[..len as usize]).expect("cut");
        let (log, recovery) = open(dir.path(), Options::default());
        let left = (1..=3).take_while(|n| offset_of(n + 1) <= len).count() as u64;
        assert_eq!(recovery.last, left, "cut at {len}");
        assert_eq!(recovery.truncated_tail_bytes, len - offset_of(left + 1));
        assert_eq!(recovery.lost, []);
        append(&log, left + 1..=left + 1);
        assert_eq!(read_all(log.reader(1)), records(1..=left + 1));
    }
}

#[test]
fn damage_in_durable_records_is_reported_and_hides_nothing() {
    for synced in [true, false] {
        let dir = tempfile::tempdir().expect("a directory");
        let (log, _) = open(dir.path(), Options::default());
        append(&log, 1..=4);
        if synced {
            log.sync().expect("synced");
        }
        append(&log, 5..=8);
        drop(log);
        // The length of record 3: its end is not known any more.
        flip(&segment_file(dir.path(), 1), offset_of(3));
        let (log, recovery) = open(dir.path(), Options::default());
        if synced {
            assert_eq!(recovery.lost, [Lost { from: 3, to: 3 }]);
            assert_eq!(recovery.last, 8);
            let mut expected = records(1..=2);
            expected.push(Read::Lost(3, 3));
            expected.extend(records(4..=8));
            assert_eq!(read_all(log.reader(1)), expected);
            assert_eq!(read_all(log.reader(4)), records(4..=8));
        } else {
            // Never durable: what stays is a prefix.
            assert_eq!(recovery.lost, []);
            assert_eq!(recovery.last, 2);
            assert_eq!(read_all(log.reader(1)), records(1..=2));
        }
    }
}

#[test]
fn damage_in_sealed_segments_is_read_over() {
    for (what, offset) in [
        ("payload", offset_of(4) + RECORD_OVERHEAD + 2),
        ("length", offset_of(4)),
        ("sequence", offset_of(4) + 8),
        ("checksum", offset_of(4) + 21),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let (log, _) = open(dir.path(), Options::default());
        append(&log, 1..=8);
        log.roll().expect("rolled");
        append(&log, 9..=10);
        flip(&segment_file(dir.path(), 1), offset);
        let mut expected = records(1..=3);
        expected.push(Read::Lost(4, 4));
        expected.extend(records(5..=10));
        assert_eq!(read_all(log.reader(1)), expected, "{what}");
    }
}

#[test]
fn a_missing_or_cut_sealed_segment_is_a_loss() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path(), Options::default());
    for first in [1, 6, 11] {
        append(&log, first..=first + 4);
        log.roll().expect("rolled");
    }
    append(&log, 16..=16);
    std::fs::remove_file(segment_file(dir.path(), 6)).expect("removed by hand");
    let file = std::fs::File::options()
        .write(true)
        .open(segment_file(dir.path(), 11))
        .expect("the segment is there");
    file.set_len(SEGMENT_OVERHEAD + 3).expect("cut");
    let mut expected = records(1..=5);
    expected.push(Read::Lost(6, 10));
    expected.push(Read::Lost(11, 15));
    expected.extend(records(16..=16));
    assert_eq!(read_all(log.reader(1)), expected);
    drop(log);
    let (log, recovery) = open(dir.path(), Options::default());
    assert_eq!((recovery.first, recovery.last), (1, 16));
    // Who looks at the files alone sees one hole.
    let read = read_all(log.reader(1));
    assert_eq!(read.first(), Some(&Read::Record(1, record(1))));
    assert_eq!(read.last(), Some(&Read::Record(16, record(16))));
    let lost: u64 = read
        .iter()
        .map(|entry| match entry {
            Read::Lost(from, to) => to - from + 1,
            Read::Record(..) => 0,
        })
        .sum();
    assert_eq!(lost, 10);
}

#[test]
fn damaged_segment_headers() {
    // With a second segment the log's id is known, and nothing is lost.
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path(), Options::default());
    append(&log, 1..=5);
    log.roll().expect("rolled");
    append(&log, 6..=8);
    drop(log);
    flip(&segment_file(dir.path(), 6), 26);
    let (log, recovery) = open(dir.path(), Options::default());
    assert_eq!((recovery.last, &recovery.lost[..]), (8, &[][..]));
    append(&log, 9..=9);
    assert_eq!(read_all(log.reader(1)), records(1..=9));
    assert_eq!(log.segments().len(), 3, "the damaged one takes no more");
    drop(log);

    // Alone, its records are lost, and their numbers are not used again.
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path(), Options::default());
    append(&log, 1..=5);
    drop(log);
    flip(&segment_file(dir.path(), 1), 26);
    let (log, recovery) = open(dir.path(), Options::default());
    let [Lost { from: 1, to }] = recovery.lost[..] else {
        panic!("{recovery:?}");
    };
    assert!(to >= 5);
    assert_eq!(log.append(b"next").expect("appended"), to + 1);
    assert_eq!(
        read_all(log.reader(1)),
        [Read::Lost(1, to), Read::Record(to + 1, b"next".to_vec())]
    );
}

#[test]
fn a_newer_format_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(open(dir.path(), SMALL));
    let header = crate::format::SegmentHeader {
        version: 2,
        first: 1,
        log: crate::format::LogId(1),
    };
    std::fs::write(segment_file(dir.path(), 1), header.encode()).expect("written");
    assert!(matches!(
        Log::open(dir.path(), SMALL),
        Err(Error::Version { found: 2, .. })
    ));
}

#[test]
fn after_a_failed_sync_everything_unsynced_is_written_again() {
    for durable in [0, 4] {
        let dir = tempfile::tempdir().expect("a directory");
        let (log, _) = open(dir.path(), Options::default());
        append(&log, 1..=4);
        if durable > 0 {
            log.sync().expect("synced");
        }
        append(&log, 5..=8);
        let mut reader = log.reader(1);
        assert!(reader.next().expect("read").is_some());
        log.shared.fail_sync.store(true, Ordering::Relaxed);
        match log.sync() {
            Err(Error::SyncFailed { first_unsynced, .. }) => {
                assert_eq!(first_unsynced, durable + 1);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(log.durable(), durable);
        append(&log, 9..=9);
        assert_eq!(log.durable(), 8, "written again and synced");
        let segments = log.segments();
        assert_eq!(segments.last().map(|s| s.first), Some(durable + 1));
        assert_eq!(read_all(reader), records(2..=9));
        assert_eq!(read_all(log.reader(1)), records(1..=9));
        assert_eq!(log.sync().expect("synced"), 9);
        drop(log);
        let (log, recovery) = open(dir.path(), Options::default());
        assert_eq!((recovery.last, recovery.truncated_tail_bytes), (9, 0));
        assert_eq!(read_all(log.reader(1)), records(1..=9));
    }
}

#[test]
fn what_a_failed_sync_has_lost_is_said_once_and_stays_a_hole() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path(), Options::default());
    append(&log, 1..=2);
    log.sync().expect("synced");
    append(&log, 3..=6);
    log.shared.fail_sync.store(true, Ordering::Relaxed);
    log.sync().expect_err("the disk is broken");
    // The page of record 4 did not come back.
    flip(&segment_file(dir.path(), 1), offset_of(4) + RECORD_OVERHEAD);
    match log.sync() {
        Err(Error::LostBySync { lost }) => assert_eq!(lost, [Lost { from: 4, to: 4 }]),
        other => panic!("{other:?}"),
    }
    assert_eq!(log.sync().expect("synced"), 6);
    let mut expected = records(1..=3);
    expected.push(Read::Lost(4, 4));
    expected.extend(records(5..=6));
    assert_eq!(read_all(log.reader(1)), expected);
    drop(log);
    let (log, recovery) = open(dir.path(), Options::default());
    assert_eq!(recovery.lost, [Lost { from: 4, to: 4 }]);
    assert_eq!(recovery.last, 6);
    assert_eq!(read_all(log.reader(1)), expected);
}

#[test]
fn a_payload_cannot_pose_as_a_record() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path(), Options::default());
    // Whole records of another log, as someone who does not know the id of
    // this one would forge them.
    let forged: Vec<u8> = (2..40)
        .flat_map(|seq| {
            let id = crate::format::LogId(1);
            let header = crate::format::RecordHeader::of(id, seq, seq, 4, &[b"evil"]);
            [&header.encode(id)[..], b"evil"].concat()
        })
        .collect();
    log.append(&forged).expect("appended");
    log.append(b"good").expect("appended");
    log.roll().expect("rolled");
    flip(&segment_file(dir.path(), 1), SEGMENT_OVERHEAD);
    assert_eq!(
        read_all(log.reader(1)),
        [Read::Lost(1, 1), Read::Record(2, b"good".to_vec())]
    );
}

#[test]
fn syncs_and_reads_run_beside_appends() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = Options {
        segment_bytes: 64 * 1024,
        ..Options::default()
    };
    let (log, _) = open(dir.path(), options);
    const COUNT: Seq = 20_000;
    std::thread::scope(|scope| {
        let syncer = log.clone();
        scope.spawn(move || {
            let mut last = 0;
            while last < COUNT {
                let durable = syncer.sync().expect("synced");
                assert!(durable >= last);
                last = durable;
            }
        });
        let mut reader = log.durable_reader(1);
        scope.spawn(move || {
            let mut expected = 1;
            while expected <= COUNT {
                match reader.next().expect("read") {
                    Some(Entry::Record { seq, payload, .. }) => {
                        assert_eq!(seq, expected);
                        assert_eq!(payload, record(seq));
                        expected += 1;
                    }
                    Some(lost) => panic!("{lost:?}"),
                    None => std::thread::yield_now(),
                }
            }
        });
        append(&log, 1..=COUNT);
    });
    assert_eq!(log.durable(), COUNT);
}
