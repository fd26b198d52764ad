//! Real faults: a file system that is really full, a writer that is killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use sumun_segment::{Entry, Error, Log, Options, Reader, Seq};

/// Gives this thread a file system of its own, 1 MiB large. It vanishes with
/// the thread. `None`, said on stderr, when this needs rights we do not have.
fn small_file_system(at: &Path) -> Option<()> {
    let made = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| {
            mount(
                None::<&str>,
                "/",
                None::<&str>,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                None::<&str>,
            )
        })
        .and_then(|()| {
            mount(
                Some("tmpfs"),
                at,
                Some("tmpfs"),
                MsFlags::empty(),
                Some("size=1m"),
            )
        });
    if let Err(error) = made {
        eprintln!(
            "SKIPPED a_full_disk_refuses_and_nothing_is_torn: no file system of our own can be mounted here: {error}"
        );
        return None;
    }
    Some(())
}

fn payload(seq: Seq, len: usize) -> Vec<u8> {
    let mut payload = seq.to_le_bytes().to_vec();
    payload.resize(len.max(8), seq as u8);
    payload
}

fn check_all(mut reader: Reader, mut expected: impl FnMut(Seq) -> Vec<u8>) -> u64 {
    let mut count = 0;
    while let Some(entry) = reader.next().expect("the log can be read") {
        match entry {
            Entry::Record { seq, payload, .. } => assert!(payload == expected(seq), "record {seq}"),
            lost => panic!("{lost:?}"),
        }
        count += 1;
    }
    count
}

/// One test at a time: a child has the other's lock on its log, too, from its fork until its exec.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn a_full_disk_refuses_and_nothing_is_torn() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().expect("a directory");
    if small_file_system(dir.path()).is_none() {
        return;
    }
    let options = Options {
        segment_bytes: 128 * 1024,
        max_bytes: None,
        reserve: 64 * 1024,
    };
    let (log, _) = Log::open(dir.path(), options).expect("the log opens");
    assert!(log.reserve_held());
    let mut written = 0;
    let error = loop {
        match log.append(&payload(written + 1, 10_000)) {
            Ok(seq) => written = seq,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::NoSpace { .. }), "{error:?}");
    assert!(error.is_full());
    assert!(written > 80, "{written} records were taken");
    for _ in 0..3 {
        let error = log.append(&payload(written + 1, 10_000));
        assert!(matches!(error, Err(Error::NoSpace { .. })));
        for segment in log.segments() {
            let path = dir.path().join(format!("{:020}.seg", segment.first));
            let len = std::fs::metadata(path).expect("the segment is there").len();
            assert_eq!(len, segment.bytes, "nothing torn is left");
        }
    }
    assert_eq!(log.sync().expect("what was taken can be synced"), written);

    // Nothing fits any more, but the record about it does.
    std::fs::write(dir.path().join("filler"), vec![0; 1 << 20]).expect_err("the disk is full");
    let gap = log.append_reserved(&[&payload(written + 1, 9_000)]);
    assert_eq!(gap.expect("the reserve is for this"), written + 1);
    assert!(!log.reserve_held());
    assert_eq!(log.sync().expect("synced"), written + 1);
    // The reserve comes first, before anything ordinary.
    assert!(matches!(log.append(b"small"), Err(Error::NoSpace { .. })));
    let len = move |seq| if seq == written + 1 { 9_000 } else { 10_000 };
    assert_eq!(
        check_all(log.reader(1), |seq| payload(seq, len(seq))),
        written + 1
    );
    drop(log);
    let (log, recovery) = Log::open(dir.path(), options).expect("opens on a full disk");
    assert_eq!(recovery.last, written + 1);
    assert_eq!(recovery.truncated_tail_bytes, 0);

    std::fs::remove_file(dir.path().join("filler")).expect("removed");
    let oldest = log.segments()[0].last;
    assert_eq!(log.remove_through(oldest).expect("removed").segments, 1);
    assert!(log.reserve_held());
    let seq = log.append(&payload(written + 2, 10_000));
    assert_eq!(seq.expect("there is room"), written + 2);
    check_all(log.reader(1), |seq| payload(seq, len(seq)));
}

/// Says what the killed writer did, one line each.
const WRITER: &str = "SUMUN_TEST_LOG_WRITER";

#[test]
fn a_killed_writer_loses_nothing_it_had_appended() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let options = Options {
        segment_bytes: 64 * 1024,
        ..Options::default()
    };
    let length = |seq: Seq| 8 + (seq.wrapping_mul(7919) % 3000) as usize;
    if let Some(dir) = std::env::var_os(WRITER) {
        let (log, _) = Log::open(dir, options).expect("the log opens");
        loop {
            let next = log.written() + 1;
            assert_eq!(
                log.append(&payload(next, length(next))).expect("appended"),
                next
            );
            println!("wrote {next}");
            if next.is_multiple_of(16) {
                log.sync().expect("synced");
            }
            if next.is_multiple_of(200) {
                log.remove_through(next.saturating_sub(400))
                    .expect("removed");
            }
        }
    }

    let dir = tempfile::tempdir().expect("a directory");
    let rounds = if std::env::var_os("SUMUN_FAULTS").is_some() {
        200
    } else {
        20_u64
    };
    let mut before = 0;
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args([
                "--exact",
                "a_killed_writer_loses_nothing_it_had_appended",
                "--nocapture",
            ])
            .env(WRITER, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the writer starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut wrote = before;
        let mut take = |line: Option<std::io::Result<String>>| match line {
            Some(Ok(line)) => {
                if let Some(seq) = line.strip_prefix("wrote ") {
                    wrote = seq.parse().expect("a number");
                }
                Some(wrote)
            }
            _ => None,
        };
        // Let it get going, then end it in the middle of something.
        while take(lines.next()).expect("it is running") < before + 20 {}
        std::thread::sleep(Duration::from_micros(round * 791 % 5000));
        child.kill().expect("killed");
        child.wait().expect("gone");
        while take(lines.next()).is_some() {}

        let (log, recovery) = Log::open(dir.path(), options).expect("the log opens");
        assert!(
            recovery.last == wrote || recovery.last == wrote + 1,
            "{} of {wrote} records are there",
            recovery.last
        );
        assert_eq!(recovery.lost, []);
        let count = check_all(log.reader(1), |seq| payload(seq, length(seq)));
        assert_eq!(count, recovery.last + 1 - recovery.first);
        assert!(recovery.last > before);
        before = recovery.last;
    }
}
