//! Arbitrary bytes as segments: no panic, and no record that is not one.

use std::collections::HashSet;
use std::path::Path;

use sumun_segment::{Entry, Log, Options, Seq};

fn write_segment(dir: &Path, first: Seq, bytes: &[u8]) {
    std::fs::write(dir.join(format!("{first:020}.seg")), bytes).expect("written");
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a directory")
}

/// All records of a log that `bytes` hold at any offset, by a second reading
/// of the format.
fn records_in(bytes: &[u8]) -> HashSet<(Seq, Vec<u8>)> {
    let word = |at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&bytes[at..at + 4]);
        u32::from_le_bytes(word)
    };
    let mut found = HashSet::new();
    if bytes.len() < 32 {
        return found;
    }
    let seed = crc32c::crc32c(&bytes[24..32]);
    for at in 32..bytes.len().saturating_sub(23) {
        let len = word(at) as usize;
        let Some(payload) = bytes.get(at + 24..at + 24 + len) else {
            continue;
        };
        if crc32c::crc32c_append(seed, &bytes[at..at + 20]) == word(at + 20)
            && crc32c::crc32c_append(seed, payload) == word(at + 16)
        {
            let seq = u64::from(word(at + 8)) | u64::from(word(at + 12)) << 32;
            found.insert((seq, payload.to_vec()));
        }
    }
    found
}

/// Opens a log of these segments and reads it to its end.
fn read(dir: &Path) -> Vec<(Seq, Vec<u8>)> {
    let Ok((log, recovery)) = Log::open(dir, Options::default()) else {
        return Vec::new();
    };
    let mut records = Vec::new();
    let mut reader = log.reader(1);
    let mut next = recovery.first;
    while let Some(entry) = reader.next().expect("read") {
        let (from, to) = match entry {
            Entry::Record { seq, payload, .. } => {
                records.push((seq, payload.to_vec()));
                (seq, seq)
            }
            Entry::Lost { from, to } => (from, to),
        };
        assert_eq!(from, next, "no sequence is passed over in silence");
        assert!(to >= from);
        next = to + 1;
    }
    assert_eq!(next, log.written() + 1);
    // A log that was opened can be appended to, whatever was found.
    let seq = log.append(b"more").expect("appended");
    assert_eq!(seq, log.written());
    records
}

#[test]
fn fuzz_any_bytes_as_a_segment() {
    bolero::check!()
        .with_iterations(2000)
        .for_each(|input: &[u8]| {
            let dir = directory();
            write_segment(dir.path(), 1, input);
            let genuine = records_in(input);
            for record in read(dir.path()) {
                assert!(genuine.contains(&record), "record {} is made up", record.0);
            }
        });
}

#[test]
fn fuzz_damage_to_a_good_segment() {
    let original = directory();
    let payload = |seq: Seq| vec![seq as u8; (seq as usize * 37) % 120];
    {
        let (log, _) = Log::open(original.path(), Options::default()).expect("the log opens");
        for seq in 1..=12 {
            log.append(&payload(seq)).expect("appended");
            if seq % 4 == 0 {
                log.sync().expect("synced");
            }
        }
        log.roll().expect("rolled");
        log.append(&payload(13)).expect("appended");
    }
    let name = |first: Seq| original.path().join(format!("{first:020}.seg"));
    let first = std::fs::read(name(1)).expect("the segment is there");
    let second = std::fs::read(name(13)).expect("the segment is there");

    // Each edit is three bytes: what, where (a share of the file), with what.
    bolero::check!()
        .with_iterations(2000)
        .for_each(|edits: &[u8]| {
            let mut bytes = first.clone();
            for edit in edits.chunks_exact(3).take(32) {
                let at = usize::from(edit[1]) * bytes.len() / 256;
                match edit[0] % 4 {
                    0 | 1 if at < bytes.len() => bytes[at] ^= edit[2],
                    2 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, edit[2]),
                }
            }
            for sealed in [true, false] {
                let dir = directory();
                write_segment(dir.path(), 1, &bytes);
                if sealed {
                    write_segment(dir.path(), 13, &second);
                }
                for (seq, read) in read(dir.path()) {
                    assert!(seq <= 13 && read == payload(seq), "record {seq} is made up");
                }
            }
        });
}
