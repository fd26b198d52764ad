//! What goes out, what is counted, and what a kill, a failed write and a reload leave of it.

use std::collections::HashMap;

use prost::Message as _;
use sumun_policy::check_file;
use sumun_proto::v1::{Batch, Lane};

use super::*;
use crate::pipeline::batch;
use crate::spool::{Found, Settings};

const SECOND: u64 = 1_000_000_000;
const RATE: Rate = Rate {
    count: 10,
    window_ns: 60 * SECOND,
};
const PIN: u64 = 7;
const HERE: Origin = Origin {
    pin_generation: PIN,
    boot_id: [1; 16],
};
const KEY: Key = (1, 0);
const STREAM: StreamId = StreamId {
    ring: 1,
    cpu: 0,
    level: 0,
};

fn engine(rate: &str) -> Engine {
    let text = format!(
        "[policy]\nname = \"p\"\n[[rule]]\nid = \"r\"\non = [\"open\"]\nrate = \"{rate}\"\n"
    );
    let check = check_file("p.toml", &text);
    Engine::new(&[check.policy.expect("a policy")])
}

struct Host {
    dir: tempfile::TempDir,
    spool: Spool,
    lane: LaneWriter,
    folds: Folds,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (this, orphans) = Self::run(dir, HERE, "10/1m");
        assert!(orphans.is_empty());
        this
    }

    fn run(dir: tempfile::TempDir, origin: Origin, rate: &str) -> (Self, Vec<Orphan>) {
        let settings = Settings {
            alert_bytes: 16 << 20,
            life_bytes: 16 << 20,
            bulk_bytes: 16 << 20,
            ..Settings::new(dir.path().join("spool"))
        };
        let (spool, found): (Spool, Found) = Spool::open(&settings).expect("the spool opens");
        let lane = LaneWriter::new(
            Lane::Alert,
            batch::Origin {
                boot_id: origin.boot_id,
                pin_generation: origin.pin_generation,
                cgroup_controller: String::new(),
                redactor: Rc::default(),
            },
            1000,
            found.held(Lane::Alert, origin.pin_generation),
        );
        let (folds, orphans) =
            Folds::open(dir.path(), origin, KEY.0, &engine(rate)).expect("the files open");
        let this = Self {
            dir,
            spool,
            lane,
            folds,
        };
        (this, orphans)
    }

    /// As after a kill: what is in memory is gone.
    fn again(self, origin: Origin, rate: &str) -> (Self, Vec<Orphan>) {
        let Self { dir, spool, .. } = self;
        drop(spool);
        Self::run(dir, origin, rate)
    }

    /// Alerts of records with these numbers, one a second; how many go out.
    fn alerts(&mut self, seqs: std::ops::Range<u64>) -> usize {
        let folds = &mut self.folds;
        let mut out = 0;
        for seq in seqs {
            if folds.has_counted(STREAM, seq) {
                continue;
            }
            let at = (seq * SECOND, false);
            let sample = || Sample {
                event: Event {
                    boot_ns: seq * SECOND,
                    tid: 42,
                    ..Event::default()
                },
                by: None,
            };
            let goes_out = folds.take(KEY, RATE, at, || engine("10/1m").rules()[0].clone(), sample);
            out += usize::from(goes_out);
            folds.counted(STREAM, seq);
        }
        out
    }

    /// Settles at a second; rows that were written.
    fn settle(&mut self, second: u64) -> u64 {
        let Self {
            spool, lane, folds, ..
        } = self;
        let (rows, _) = folds
            .settle(lane, spool, second * SECOND, 1000)
            .expect("it can be written");
        rows
    }

    /// Folds in the alert lane: count, first, last and time in seconds, and who did it.
    fn rows(&self) -> Vec<(u64, u64, u64, u64)> {
        self.spool.sync().expect("synced");
        self.spool.rewind(Lane::Alert).expect("rewound");
        let mut rows = Vec::new();
        while let Some(delivery) = self.spool.next(Lane::Alert).expect("a batch") {
            let batch = Batch::decode(&delivery.body[..]).expect("a batch");
            for alert in &batch.alerts {
                let fold = alert.fold.expect("a fold");
                let rule = &batch.rules[alert.rule as usize - 1];
                assert_eq!((&*rule.policy, &*rule.rule), ("p", "r"));
                assert_eq!(alert.event.as_ref().map(|event| event.tid), Some(42));
                rows.push((
                    fold.count,
                    fold.first_boot_ns / SECOND,
                    fold.last_boot_ns / SECOND,
                    fold.at_boot_ns / SECOND,
                ));
            }
        }
        rows
    }
}

#[test]
fn the_first_go_out_and_the_rest_is_one_row_when_the_window_ends() {
    let mut host = Host::new();
    assert!(!host.folds.pending());
    assert_eq!(host.alerts(100..150), 10);
    assert_eq!(host.settle(150), 0, "the window is open until 160");
    host.folds.read_through(159 * SECOND);
    assert!(!host.folds.pending());
    host.folds.read_through(160 * SECOND);
    assert_eq!(host.settle(161), 1);
    assert_eq!(host.rows(), [(40, 110, 149, 161)]);
    assert!(!host.folds.pending());
    // The next window is a new one; it is ended by an alert behind it, too.
    assert_eq!(host.alerts(200..215), 10);
    assert_eq!(host.alerts(260..262), 2);
    assert_eq!(host.settle(262), 1);
    assert_eq!(host.rows()[1], (5, 210, 214, 262));
    // Few alerts leave no row.
    host.folds.close_all();
    assert_eq!(host.settle(263), 0);
}

#[test]
fn a_cycle_that_is_read_again_counts_once() {
    let mut host = Host::new();
    assert_eq!(host.alerts(100..105), 5);
    host.settle(105);
    for _ in 0..2 {
        assert_eq!(host.alerts(105..130), 5);
        host.folds.read_through(200 * SECOND);
        host.folds.rollback();
    }
    assert_eq!(host.alerts(105..130), 5);
    host.folds.close_all();
    assert_eq!(host.settle(130), 1);
    assert_eq!(host.rows(), [(20, 110, 129, 130)]);
}

#[test]
fn a_killed_agent_goes_on_counting_and_what_it_had_counted_counts_once() {
    let mut host = Host::new();
    assert_eq!(host.alerts(100..130), 10);
    host.settle(130);
    // Read, but not written anywhere when the kill comes.
    assert_eq!(host.alerts(130..140), 0);
    let (mut host, orphans) = host.again(HERE, "10/1m");
    assert!(orphans.is_empty());
    // The rings are read again from before what was counted.
    assert_eq!(host.alerts(120..150), 0);
    host.folds.read_through(160 * SECOND);
    assert_eq!(host.settle(161), 1);
    assert_eq!(host.rows(), [(40, 110, 149, 161)]);
}

#[test]
fn a_row_that_was_written_just_before_the_kill_is_not_written_again() {
    let mut host = Host::new();
    assert_eq!(host.alerts(100..150), 10);
    host.settle(150);
    let before: HashMap<_, _> = ["folds.0", "folds.1"]
        .into_iter()
        .map(|name| {
            (
                name,
                std::fs::read(host.dir.path().join(name)).expect("it is there"),
            )
        })
        .collect();
    host.folds.close_all();
    assert_eq!(host.settle(151), 1);
    // The row had come to the lane, the state not to the file.
    for (name, bytes) in before {
        std::fs::write(host.dir.path().join(name), bytes).expect("written");
    }
    let (mut host, _) = host.again(HERE, "10/1m");
    host.folds.close_all();
    assert_eq!(host.settle(152), 0);
    assert_eq!(host.rows(), [(40, 110, 149, 151)]);
}

#[test]
fn a_rule_that_is_gone_or_another_ends_its_window() {
    let mut host = Host::new();
    assert_eq!(host.alerts(100..130), 10);
    host.settle(130);
    host.folds.retire(KEY.0);
    assert!(!host.folds.pending(), "its generation is the current one");
    let (mut host, _) = host.again(HERE, "20/1m");
    assert!(host.folds.pending());
    assert_eq!(host.settle(131), 1);
    assert_eq!(host.rows(), [(20, 110, 129, 131)]);
    assert_eq!(host.alerts(131..150), 10);
    host.folds.retire(KEY.0 + 1);
    assert_eq!(host.settle(150), 1);
    assert_eq!(host.rows()[1], (9, 141, 149, 150));
}

#[test]
fn what_was_counted_before_a_reboot_is_told_after_it() {
    let mut host = Host::new();
    assert_eq!(host.alerts(100..150), 10);
    host.settle(150);
    let there = Origin {
        pin_generation: 8,
        boot_id: [2; 16],
    };
    let (mut host, orphans) = host.again(there, "10/1m");
    assert_eq!(orphans.len(), 1);
    for orphan in orphans {
        assert_eq!(orphan.count, 40);
        // The wall clock was 1000 ns ahead of the boot's.
        orphan
            .write(&host.spool, 500 * SECOND.cast_signed() + 1000)
            .expect("written");
    }
    assert_eq!(host.rows(), [(40, 110, 149, 500)]);
    host.folds.save(0).expect("written");
    let (mut host, orphans) = host.again(there, "10/1m");
    assert!(orphans.is_empty(), "told once");
    // Numbers of the other boot's streams do not count.
    assert_eq!(host.alerts(1..12), 10);
    host.folds.close_all();
    assert_eq!(host.settle(12), 1);
    assert_eq!(host.rows()[1], (1, 11, 11, 12));
}

#[test]
fn a_torn_file_leaves_the_other_one() {
    let mut host = Host::new();
    assert_eq!(host.alerts(100..115), 10);
    host.settle(115);
    assert_eq!(host.alerts(115..120), 0);
    host.settle(120);
    // Turn 2 is in the second file.
    let path = host.dir.path().join("folds.1");
    let mut bytes = std::fs::read(&path).expect("the file");
    bytes[10] ^= 0xff;
    std::fs::write(&path, bytes).expect("written");
    let (mut host, _) = host.again(HERE, "10/1m");
    assert!(host.folds.has_counted(STREAM, 114) && !host.folds.has_counted(STREAM, 115));
    assert_eq!(host.alerts(110..120), 0);
    host.folds.close_all();
    assert_eq!(host.settle(121), 1);
    assert_eq!(host.rows(), [(10, 110, 119, 121)]);
}
