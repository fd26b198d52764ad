//! The spool under real faults: its writer is killed, its disk is full.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use prost::Message;
use sumun_agent::kernel::StreamId;
use sumun_agent::spool::{Error, Item, Key, Settings, Spool};
use sumun_proto::v1::{Batch, Delivery, Event, Lane, Scope};

const LANES: [Lane; 3] = [Lane::Alert, Lane::Life, Lane::Bulk];
const PIN: u64 = 5;
const STREAM: StreamId = StreamId {
    ring: 0,
    cpu: 1,
    level: 2,
};

fn settings(dir: &Path) -> Settings {
    Settings {
        alert_bytes: 16 << 20,
        life_bytes: 16 << 20,
        bulk_bytes: 32 << 20,
        ..Settings::new(dir.join("spool"))
    }
}

/// Appends the event `id`, in a body of about `bytes`.
fn append(spool: &Spool, lane: Lane, id: u64, bytes: usize) -> Result<Key, Error> {
    let batch = Batch {
        format: sumun_proto::FORMAT,
        lane: lane.into(),
        boot_id: vec![1; 16],
        events: vec![Event {
            boot_ns: id,
            ..Event::default()
        }],
        scopes: vec![Scope {
            reason: "y".repeat(bytes),
            ..Scope::default()
        }],
        ..Batch::default()
    };
    let item = Item {
        body: &batch.encode_to_vec(),
        events: 1,
        missing: Some(0),
        first_boot_ns: id,
        last_boot_ns: id,
        boot_id: [1; 16],
        wall_offset_ns: 0,
        pin_generation: PIN,
        highest: &BTreeMap::from([(STREAM, id)]),
    };
    spool.append(lane, &item)
}

/// What a collector has of one lane.
#[derive(Default)]
struct Received {
    numbers: BTreeMap<u64, u64>,
    ids: Vec<u64>,
    missing: u64,
}

impl Received {
    /// Takes a delivery that must be the next of its epoch.
    fn take(&mut self, delivery: &Delivery) {
        let number = self.numbers.entry(delivery.epoch).or_default();
        assert_eq!(delivery.number, *number + 1);
        *number += 1;
        let batch = Batch::decode(&delivery.body[..]).expect("a batch");
        self.ids
            .extend(batch.events.iter().map(|event| event.boot_ns));
        for gap in &batch.gaps {
            self.missing += gap.count.expect("the count is known");
        }
    }

    fn drain(&mut self, spool: &Spool, lane: Lane) {
        spool.sync().expect("synced");
        spool.rewind(lane).expect("a lane");
        while let Some(delivery) = spool.next(lane).expect("read") {
            self.take(&delivery);
            spool
                .ack(lane, delivery.epoch, delivery.number)
                .expect("acknowledged");
        }
    }
}

/// The folder of the spool that the killed writer has to write to.
const WRITER: &str = "SUMUN_TEST_SPOOL_WRITER";

/// Writes as the agent does: what the lanes hold already is skipped.
fn write_until_killed(dir: &Path) -> ! {
    let (spool, found) = Spool::open(&settings(dir)).expect("the spool opens");
    let mut last = LANES.map(|lane| {
        let held = found.held(lane, PIN);
        held.get(&STREAM).copied().unwrap_or(0)
    });
    loop {
        for (lane, last) in LANES.into_iter().zip(&mut last) {
            let id = *last + 1;
            append(&spool, lane, id, (id as usize * 997) % 9000).expect("appended");
            *last = id;
            println!("wrote {} {id}", lane as i32);
        }
        if last[0].is_multiple_of(10) {
            spool.sync().expect("synced");
        }
        if last[0].is_multiple_of(25) {
            // The collector answers for part of what it is sent.
            for lane in LANES {
                let mut sent = Vec::new();
                while let Some(delivery) = spool.next(lane).expect("read") {
                    for event in &Batch::decode(&delivery.body[..]).expect("a batch").events {
                        println!("sent {} {}", lane as i32, event.boot_ns);
                    }
                    sent.push((delivery.epoch, delivery.number));
                }
                if let Some((epoch, number)) = sent.get(sent.len() / 2) {
                    println!("acked {} {epoch} {number}", lane as i32);
                    spool.ack(lane, *epoch, *number).expect("acknowledged");
                }
            }
        }
    }
}

#[test]
fn a_killed_agent_loses_and_doubles_nothing_it_had_spooled() {
    if let Some(dir) = std::env::var_os(WRITER) {
        write_until_killed(Path::new(&dir));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let rounds = match std::env::var_os("SUMUN_FAULTS") {
        Some(_) => 100,
        None => 15_u64,
    };
    // By lane: the highest id that was written, and what was delivered.
    let mut wrote: BTreeMap<i32, u64> = BTreeMap::new();
    let mut sent: BTreeMap<i32, Vec<u64>> = BTreeMap::new();
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args([
                "--exact",
                "a_killed_agent_loses_and_doubles_nothing_it_had_spooled",
                "--nocapture",
            ])
            .env(WRITER, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the writer starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut count = 0;
        let mut take = |line: Option<std::io::Result<String>>| {
            let line = line?.ok()?;
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
            if let (Some(lane), Some(id)) = (number(1), number(2)) {
                match words[0] {
                    "wrote" => {
                        wrote.insert(lane as i32, id);
                        count += 1;
                    }
                    "sent" => sent.entry(lane as i32).or_default().push(id),
                    _ => {}
                }
            }
            Some(count)
        };
        while take(lines.next()).expect("it is running") < 120 {}
        std::thread::sleep(Duration::from_micros(round * 1777 % 20_000));
        child.kill().expect("killed");
        child.wait().expect("gone");
        while take(lines.next()).is_some() {}

        // Everything that was written is there, and nothing twice.
        let (_spool, found) = Spool::open(&settings(dir.path())).expect("the spool opens");
        for lane in LANES {
            let last = wrote[&(lane as i32)];
            let held = found.held(lane, PIN)[&STREAM];
            assert!(held == last || held == last + 1, "{held} is held of {last}");
        }
    }

    let (spool, found) = Spool::open(&settings(dir.path())).expect("the spool opens");
    for lane in LANES {
        let held = found.held(lane, PIN)[&STREAM];
        let mut ids = Vec::new();
        spool.sync().expect("synced");
        while let Some(delivery) = spool.next(lane).expect("read") {
            let batch = Batch::decode(&delivery.body[..]).expect("a batch");
            assert!(batch.gaps.is_empty());
            ids.extend(batch.events.iter().map(|event| event.boot_ns));
            spool
                .ack(lane, delivery.epoch, delivery.number)
                .expect("acknowledged");
        }
        // What comes now is the whole rest, once and in order.
        let first = ids.first().copied().unwrap_or(held + 1);
        assert_eq!(ids, (first..=held).collect::<Vec<_>>());
        // What does not come any more had been sent.
        let sent = &sent[&(lane as i32)];
        for id in 1..first {
            assert!(sent.contains(&id), "{id} was never sent");
        }
    }
}

/// Gives this thread a file system of its own, which vanishes with it. `None`,
/// said on stderr, when this needs rights we do not have.
fn small_file_system(at: &Path, size: &str) -> Option<()> {
    let options = format!("size={size}");
    let made = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| {
            let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        })
        .and_then(|()| {
            let flags = MsFlags::empty();
            mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(&*options))
        });
    if let Err(error) = made {
        eprintln!("SKIPPED a_full_disk: no file system of our own can be mounted here: {error}");
        return None;
    }
    Some(())
}

#[test]
fn on_a_full_disk_bulk_makes_room_and_then_appends_fail_until_there_is_some() {
    let dir = tempfile::tempdir().expect("a directory");
    if small_file_system(dir.path(), "24m").is_none() {
        return;
    }
    let (spool, _) = Spool::open(&settings(dir.path())).expect("the spool opens");
    let mut bulk = 0;
    while spool
        .statistics(Lane::Bulk)
        .expect("a lane")
        .dropped_batches
        == 0
    {
        bulk += 1;
        append(&spool, Lane::Bulk, bulk, 100_000).expect("bulk gives way to bulk");
    }
    let size = spool.statistics(Lane::Bulk).expect("a lane").disk_bytes;
    assert!(size < 24 << 20, "the disk was full before the quota was");
    assert!(spool.sync().is_ok());

    // Alerts and life take what bulk has, until it has no more to give.
    let mut alerts = 0;
    let mut life = 0;
    let error = loop {
        if let Err(error) = append(&spool, Lane::Alert, alerts + 1, 150_000) {
            break error;
        }
        alerts += 1;
        if let Err(error) = append(&spool, Lane::Life, life + 1, 100_000) {
            break error;
        }
        life += 1;
    };
    assert!(error.is_full(), "{error:?}");
    assert!(alerts > 40, "only {alerts} alerts were written");
    for _ in 0..3 {
        assert!(append(&spool, Lane::Life, life + 1, 100_000).is_err());
    }
    // Nothing is torn: what was taken is all there, also for a new process.
    drop(spool);
    let (spool, found) = Spool::open(&settings(dir.path())).expect("opens on a full disk");
    assert_eq!(found.held(Lane::Life, PIN)[&STREAM], life);
    let mut received = LANES.map(|_| Received::default());
    for (lane, received) in LANES.into_iter().zip(&mut received) {
        received.drain(&spool, lane);
    }
    assert_eq!(received[0].ids, (1..=alerts).collect::<Vec<_>>());
    assert_eq!(received[1].ids, (1..=life).collect::<Vec<_>>());
    assert_eq!(received[2].ids.len() as u64 + received[2].missing, bulk);
    assert!(received[2].missing > 0);
    assert_eq!(received[0].missing + received[1].missing, 0);

    // Acknowledged is removed, and so there is room again.
    for id in life + 1..life + 20 {
        append(&spool, Lane::Life, id, 100_000).expect("there is room again");
    }
    received[1].drain(&spool, Lane::Life);
    assert_eq!(received[1].ids.len() as u64, life + 19);
}
