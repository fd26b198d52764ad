//! Arbitrary records in a lane and in its ledger: the spool opens, sends what
//! it can, and never panics.

use std::collections::{BTreeMap, HashMap};

use prost::Message;
use sumun_agent::spool::{Item, Settings, Spool};
use sumun_proto::v1::{Batch, Lane};
use sumun_segment::{Entry, Log, Options};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a directory")
}

/// Opens the spool, sends everything, answers for it, and appends.
fn use_spool(dir: &std::path::Path) {
    let (spool, found) = Spool::open(&Settings::new(dir.to_path_buf())).expect("the spool opens");
    let _ = found.held(Lane::Bulk, 0);
    append(&spool);
    spool.sync().expect("synced");
    let mut numbers: HashMap<u64, u64> = HashMap::new();
    let mut sent = 0;
    while let Some(delivery) = spool.next(Lane::Bulk).expect("read") {
        if let Some(before) = numbers.insert(delivery.epoch, delivery.number) {
            assert_eq!(delivery.number, before + 1, "a hole");
        }
        sent += 1;
        let answer = match sent % 5 {
            0 => spool.reject(Lane::Bulk, delivery.epoch, delivery.number, "no"),
            _ => spool.ack(Lane::Bulk, delivery.epoch, delivery.number),
        };
        answer.expect("it was sent");
        assert!(sent < 1000, "there is an end");
    }
    append(&spool);
    spool.statistics(Lane::Bulk).expect("a lane");
}

fn append(spool: &Spool) {
    let body = Batch::default().encode_to_vec();
    let item = Item {
        body: &body,
        events: 1,
        missing: Some(0),
        first_boot_ns: 1,
        last_boot_ns: 2,
        boot_id: [1; 16],
        wall_offset_ns: 0,
        pin_generation: 1,
        highest: &BTreeMap::new(),
    };
    spool.append(Lane::Bulk, &item).expect("appended");
}

/// All payloads of a log.
fn payloads(dir: &std::path::Path) -> Vec<Vec<u8>> {
    let (log, _) = Log::open(dir, Options::default()).expect("the log opens");
    let mut reader = log.reader(1);
    let mut all = Vec::new();
    while let Some(entry) = reader.next().expect("read") {
        if let Entry::Record { payload, .. } = entry {
            all.push(payload.to_vec());
        }
    }
    all
}

fn write(dir: &std::path::Path, payloads: &[Vec<u8>]) {
    let (log, _) = Log::open(dir, Options::default()).expect("the log opens");
    let slices: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
    log.append_many(&slices).expect("appended");
}

#[test]
fn fuzz_records_of_a_lane() {
    // A good lane to start from.
    let origin = directory();
    for _ in 0..3 {
        let settings = Settings::new(origin.path().to_path_buf());
        let (spool, _) = Spool::open(&settings).expect("the spool opens");
        for _ in 0..4 {
            append(&spool);
        }
        spool.sync().expect("synced");
        for _ in 0..2 {
            let delivery = spool.next(Lane::Bulk).expect("read").expect("a batch");
            spool
                .ack(Lane::Bulk, delivery.epoch, delivery.number)
                .expect("it was sent");
        }
    }
    let lane = payloads(&origin.path().join("bulk"));
    let ledger = payloads(&origin.path().join("bulk/ledger"));

    // Each edit is four bytes: which log, which record, where, with what.
    bolero::check!()
        .with_iterations(if std::env::var_os("SUMUN_FAULTS").is_some() {
            5000
        } else {
            300
        })
        .for_each(|edits: &[u8]| {
            let mut logs = [lane.clone(), ledger.clone()];
            for edit in edits.chunks_exact(4).take(16) {
                let log = &mut logs[usize::from(edit[0]) % 2];
                let which = usize::from(edit[1]) % log.len();
                let record = &mut log[which];
                let at = usize::from(edit[2]) % (record.len() + 1);
                match edit[0] / 2 % 4 {
                    0 => record.insert(at, edit[3]),
                    1 => record.truncate(at),
                    2 if record.len() > 1 => {
                        record.remove(at.min(record.len() - 1));
                    }
                    _ => {
                        if let Some(byte) = record.get_mut(at) {
                            *byte = edit[3];
                        }
                    }
                }
            }
            let dir = directory();
            write(&dir.path().join("bulk"), &logs[0]);
            write(&dir.path().join("bulk/ledger"), &logs[1]);
            use_spool(dir.path());
            use_spool(dir.path());
        });
}
