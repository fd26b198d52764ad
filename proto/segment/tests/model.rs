//! Random histories of a log against a model that says what must be there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use sumun_segment::{Entry, Log, Options, RECORD_OVERHEAD, Recovery, SEGMENT_OVERHEAD, Seq};

#[derive(Clone, Debug)]
enum Step {
    Append(u16),
    AppendMany(Vec<u8>),
    Sync,
    Roll,
    /// Removes through the given share (of 256) of what is there.
    Remove(u8),
    /// Drops one closed segment.
    Drop(u8),
    Reopen,
    /// Power is lost: the last segment keeps a share of what was not synced.
    Cut(u16),
    /// A bit of the last segment's unsynced part flips, and the log is reopened.
    FlipUnsynced(u16, u8),
    /// A bit of any record flips, and the log is reopened.
    FlipAny(u16, u16, u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0u16..600).prop_map(Step::Append),
        3 => proptest::collection::vec(any::<u8>(), 0..6).prop_map(Step::AppendMany),
        4 => Just(Step::Sync),
        2 => Just(Step::Roll),
        1 => any::<u8>().prop_map(Step::Remove),
        1 => any::<u8>().prop_map(Step::Drop),
        2 => Just(Step::Reopen),
        3 => any::<u16>().prop_map(Step::Cut),
        2 => (any::<u16>(), 0u8..8).prop_map(|(at, bit)| Step::FlipUnsynced(at, bit)),
        2 => (any::<u16>(), any::<u16>(), 0u8..8).prop_map(|(r, at, bit)| Step::FlipAny(r, at, bit)),
    ]
}

const OPTIONS: Options = Options {
    segment_bytes: 2048,
    max_bytes: None,
    reserve: 0,
};

#[derive(Clone, Debug)]
struct Record {
    seq: Seq,
    payload: Vec<u8>,
    /// Highest durable sequence when it was written.
    knew: Seq,
    segment: Seq,
    offset: u64,
    lost: bool,
}

impl Record {
    fn end(&self) -> u64 {
        self.offset + RECORD_OVERHEAD + self.payload.len() as u64
    }
}

struct World {
    dir: PathBuf,
    log: Option<Log>,
    records: Vec<Record>,
    durable: Seq,
    written: Seq,
}

impl World {
    fn new(dir: &Path) -> Self {
        World {
            dir: dir.to_path_buf(),
            log: Some(Log::open(dir, OPTIONS).expect("the log opens").0),
            records: Vec::new(),
            durable: 0,
            written: 0,
        }
    }

    fn log(&self) -> &Log {
        self.log.as_ref().expect("the log is open")
    }

    fn active(&self) -> Seq {
        self.log().segments().last().expect("one is active").first
    }

    fn file(&self, segment: Seq) -> File {
        File::options()
            .read(true)
            .write(true)
            .open(self.dir.join(format!("{segment:020}.seg")))
            .expect("the segment is there")
    }

    /// Notes what the log has taken; `sync` says whether it had to roll first.
    fn wrote(&mut self, seq: Seq, payload: Vec<u8>, knew: Seq) {
        let segment = self.active();
        let offset = match self.records.last() {
            Some(last) if last.segment == segment => last.end(),
            _ => SEGMENT_OVERHEAD,
        };
        self.written = seq;
        self.records.push(Record {
            seq,
            payload,
            knew,
            segment,
            offset,
            lost: false,
        });
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Append(len) => {
                let payload = vec![(*len % 251) as u8; usize::from(*len)];
                let half = payload.len() / 2;
                let seq = self
                    .log()
                    .append_parts(&[&payload[..half], &payload[half..]])
                    .expect("appended");
                self.durable = self.log().durable();
                assert_eq!(seq, self.written + 1);
                self.wrote(seq, payload, self.durable);
            }
            Step::AppendMany(lens) => {
                let payloads: Vec<Vec<u8>> =
                    lens.iter().map(|n| vec![*n; usize::from(*n)]).collect();
                let slices: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
                let range = self.log().append_many(&slices).expect("appended");
                self.durable = self.log().durable();
                let expected = self.written + 1..self.written + 1 + lens.len() as u64;
                assert_eq!(range, expected);
                for (seq, payload) in range.zip(payloads) {
                    self.wrote(seq, payload, self.durable);
                }
            }
            Step::Sync => {
                assert_eq!(self.log().sync().expect("synced"), self.written);
                self.durable = self.written;
            }
            Step::Roll => {
                self.log().roll().expect("rolled");
                self.durable = self.log().durable();
            }
            Step::Remove(share) => {
                let through = self.written * u64::from(*share) / 256;
                self.log().remove_through(through).expect("removed");
                let first = self.log().first();
                assert!(first <= through + 1 || first == self.log().segments()[0].first);
                self.records.retain(|record| record.seq >= first);
            }
            Step::Drop(which) => {
                let segments = self.log().segments();
                let victim = &segments[usize::from(*which) % segments.len()];
                let dropped = self.log().drop_segment(victim.first).expect("dropped");
                assert_eq!(dropped, victim.sealed);
                if dropped && victim.first == segments[0].first {
                    self.records.retain(|record| record.seq > victim.last);
                } else if dropped {
                    for record in &mut self.records {
                        record.lost |= record.segment == victim.first;
                    }
                }
            }
            Step::Reopen => self.reopen(|_| {}),
            Step::Cut(share) => {
                let active = self.active();
                let (from, to) = self.unsynced();
                let cut = from + (to - from) * u64::from(*share) / u64::from(u16::MAX);
                self.records
                    .retain(|record| record.segment != active || record.end() <= cut);
                self.reopen(|world| world.file(active).set_len(cut).expect("cut"));
            }
            Step::FlipUnsynced(at, bit) => {
                let active = self.active();
                let (from, to) = self.unsynced();
                if from == to {
                    return;
                }
                let offset = from + u64::from(*at) % (to - from);
                // No record behind it can know it durable: a prefix stays.
                self.records
                    .retain(|record| record.segment != active || record.end() <= offset);
                self.reopen(|world| flip(&world.file(active), offset, *bit));
            }
            Step::FlipAny(which, at, bit) => {
                let active = self.active();
                let there: Vec<usize> = (0..self.records.len())
                    .filter(|i| !self.records[*i].lost)
                    .collect();
                if there.is_empty() {
                    return;
                }
                let index = there[usize::from(*which) % there.len()];
                let hit = self.records[index].clone();
                let offset = hit.offset + u64::from(*at) % (hit.end() - hit.offset);
                let known = |record: &Record| !record.lost && record.knew >= hit.seq;
                if hit.segment != active || self.records[index + 1..].iter().any(known) {
                    self.records[index].lost = true;
                } else {
                    self.records.truncate(index);
                }
                self.reopen(|world| flip(&world.file(hit.segment), offset, *bit));
            }
        }
    }

    /// Unsynced bytes of the active segment.
    fn unsynced(&self) -> (u64, u64) {
        let active = self.active();
        let mut bytes = (SEGMENT_OVERHEAD, SEGMENT_OVERHEAD);
        for record in self.records.iter().filter(|r| r.segment == active) {
            bytes.1 = record.end();
            if record.seq <= self.durable {
                bytes.0 = record.end();
            }
        }
        bytes
    }

    fn reopen(&mut self, damage: impl FnOnce(&Self)) {
        let first = self.log().first();
        let active = self.active();
        self.log = None;
        damage(self);
        let (log, recovery) = Log::open(&self.dir, OPTIONS).expect("the log opens");
        self.written = self
            .records
            .last()
            .map_or(active.max(first) - 1, |last| last.seq.max(active - 1));
        self.durable = self.written;
        self.log = Some(log);
        self.check_recovery(&recovery, active);
    }

    fn check_recovery(&self, recovery: &Recovery, active: Seq) {
        assert_eq!(recovery.last, self.written);
        assert_eq!(recovery.first, self.log().first());
        let reported: Vec<Seq> = recovery.lost.iter().flat_map(|l| l.from..=l.to).collect();
        let expected: Vec<Seq> = self
            .records
            .iter()
            .filter(|record| record.lost && record.segment == active)
            .map(|record| record.seq)
            .collect();
        assert_eq!(reported, expected);
    }

    fn check(&self) {
        let mut reader = self.log().reader(1);
        let mut expected = self.records.iter();
        while let Some(entry) = reader.next().expect("read") {
            match entry {
                Entry::Record {
                    seq,
                    payload,
                    segment,
                } => {
                    let record = expected.next().expect("nothing more was written");
                    assert!(!record.lost, "{} was lost", record.seq);
                    assert_eq!((seq, segment), (record.seq, record.segment));
                    assert!(payload == record.payload, "payload of {seq}");
                }
                Entry::Lost { from, to } => {
                    for seq in from..=to {
                        let record = expected.next().expect("nothing more was written");
                        assert!(record.lost && record.seq == seq, "{seq} was not lost");
                    }
                }
            }
        }
        assert!(expected.next().is_none(), "something is missing");
        assert_eq!(self.log().written(), self.written);
        assert!(self.log().durable() >= self.durable);
    }
}

fn flip(file: &File, offset: u64, bit: u8) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("in the file");
    file.write_all_at(&[byte[0] ^ 1 << bit], offset)
        .expect("written");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if std::env::var_os("SUMUN_FAULTS").is_some() { 5000 } else { 400 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_log_holds_what_its_history_says(steps in proptest::collection::vec(step(), 1..60)) {
        // Syncs are the subject of other tests; here they only have to be quick.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        let mut world = World::new(dir.path());
        for step in &steps {
            world.apply(step);
            world.check();
        }
    }
}
