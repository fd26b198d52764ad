//! The forwarder and a real spool against a collector with real TLS.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use sumun_proto::v1::{Batch, Delivery, Lane};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::identity::Holder;
use super::peer::{AGENT, Authority, Peer, TOKEN, Will};
use super::{Command, run};
use crate::cli::Enroll;
use crate::config::{Collector, Config};
use crate::enroll::{Enrolled, Outcome, enroll};
use crate::spool::{Item, Settings, Spool};
use crate::starter;
use crate::status::{Connection, Run, Status};

/// Longest wait for anything that has to happen.
const PATIENCE: Duration = Duration::from_secs(60);
const DAY: i64 = 86_400;

struct Agent {
    folder: tempfile::TempDir,
    spool: Spool,
    status: Arc<Status>,
    commands: watch::Sender<Command>,
    task: Option<JoinHandle<()>>,
}

impl Agent {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = Settings::new(folder.path().join("spool"));
        let (spool, _) = Spool::open(&settings).expect("a spool");
        let status = Arc::new(Status::new(Run {
            host_name: "host".into(),
            ..Run::default()
        }));
        status.progress.set_wall_offset_ns(1);
        Self {
            folder,
            spool,
            status,
            commands: watch::Sender::new(Command::Run),
            task: None,
        }
    }

    /// With a certificate of the peer's CA, valid from and to these many seconds from now.
    fn enrolled(peer: &Peer, from: i64, to: i64) -> (Self, Collector) {
        let agent = Self::new();
        let collector = peer
            .authority
            .enrolled(agent.folder.path(), from, to, peer.address);
        (agent, collector)
    }

    fn start(&mut self, collector: Collector) {
        self.task = Some(tokio::spawn(run(
            collector,
            self.spool.clone(),
            self.status.clone(),
            self.commands.subscribe(),
        )));
    }

    /// Appends batches with one event each.
    fn append(&self, lane: Lane, count: usize) {
        for _ in 0..count {
            let body = Batch {
                lane: lane.into(),
                ..Batch::default()
            }
            .encode_to_vec();
            let item = Item {
                body: &body,
                events: 1,
                missing: Some(0),
                first_boot_ns: 1,
                last_boot_ns: 2,
                boot_id: [1; 16],
                wall_offset_ns: 1,
                pin_generation: 1,
                highest: &BTreeMap::new(),
            };
            self.spool.append(lane, &item).expect("appended");
        }
    }

    fn sync(&self) {
        self.spool.sync().expect("synced");
    }

    fn spooled(&self, lane: Lane) -> u64 {
        self.spool.statistics(lane).expect("a lane").batches
    }

    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < PATIENCE, "not in time: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn stop(mut self) {
        let deadline = Instant::now() + PATIENCE;
        self.commands.send_replace(Command::Stop { deadline });
        if let Some(task) = self.task.take() {
            tokio::time::timeout(PATIENCE, task)
                .await
                .expect("stops in time")
                .expect("does not panic");
        }
    }

    fn away_because(&self) -> Option<String> {
        match self.status.parts().connection {
            Connection::Away { reason } => Some(reason),
            _ => None,
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_synced_goes_out_in_order_and_leaves_the_spool_when_acknowledged() {
    let peer = Peer::start(Will::Acknowledge).await;
    let (mut agent, collector) = Agent::enrolled(&peer, -60, DAY);
    agent.append(Lane::Life, 3);
    agent.start(collector);
    peer.until("idle heartbeats of both streams", |seen| {
        let of = |lanes| {
            seen.heartbeats
                .iter()
                .filter(|beat| beat.lanes.len() == lanes)
                .count()
        };
        of(1) >= 2 && of(2) >= 2
    })
    .await;
    assert!(
        peer.seen().deliveries.is_empty(),
        "sent before it was synced"
    );
    agent.sync();
    agent.append(Lane::Alert, 1);
    agent.append(Lane::Bulk, 2);
    agent.append(Lane::Life, 2);
    agent.sync();
    let seen = peer
        .until("all batches", |seen| seen.deliveries.len() == 8)
        .await;
    assert_eq!(seen.numbers(Lane::Life), [1, 2, 3, 4, 5]);
    assert_eq!(seen.numbers(Lane::Bulk), [1, 2]);
    assert_eq!(seen.numbers(Lane::Alert), [1]);
    for delivery in &seen.deliveries {
        use sha2::Digest as _;
        assert_eq!(
            delivery.sha256,
            sha2::Sha256::digest(&delivery.body).to_vec()
        );
    }
    agent
        .until("an empty spool", || {
            [Lane::Alert, Lane::Life, Lane::Bulk]
                .iter()
                .all(|lane| agent.spooled(*lane) == 0)
        })
        .await;
    let mut hello_lanes: Vec<_> = seen
        .hellos
        .iter()
        .map(|hello| hello.lanes.clone())
        .collect();
    hello_lanes.sort();
    assert_eq!(hello_lanes, [vec![1], vec![2, 3]]);
    agent
        .until("the status says so", || {
            agent.status.parts().connection == Connection::Connected
        })
        .await;
    agent.stop().await;
    let seen = peer
        .until("goodbyes", |seen| seen.goodbyes.len() == 2)
        .await;
    assert_eq!(seen.deliveries.len(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_acknowledged_is_sent_again_from_the_oldest_on() {
    let peer = Peer::start(Will::Acknowledge).await;
    let (mut agent, collector) = Agent::enrolled(&peer, -60, DAY);
    agent.append(Lane::Life, 5);
    agent.sync();
    agent.start(collector);
    agent
        .until("the first five acknowledged", || {
            agent.spooled(Lane::Life) == 0
        })
        .await;
    peer.set(Will::Hold);
    agent.append(Lane::Life, 5);
    agent.sync();
    peer.until("five more", |seen| seen.deliveries.len() == 10)
        .await;
    peer.set(Will::Break);
    peer.until("the first of them again", |seen| {
        seen.deliveries.len() >= 11
    })
    .await;
    peer.set(Will::Acknowledge);
    agent
        .until("all acknowledged", || agent.spooled(Lane::Life) == 0)
        .await;
    let seen = peer.seen();
    assert!(seen.hellos.len() >= 4, "two streams, at least twice");
    // Whatever was sent again starts with 6 and is the same batch.
    let mut bodies: BTreeMap<u64, Delivery> = BTreeMap::new();
    for delivery in &seen.deliveries[..5] {
        bodies.insert(delivery.number, delivery.clone());
    }
    for delivery in &seen.deliveries[5..] {
        assert!(delivery.number >= 6, "an acknowledged batch was sent again");
        let first = bodies
            .entry(delivery.number)
            .or_insert_with(|| delivery.clone());
        assert_eq!(first, delivery);
    }
    assert_eq!(
        bodies.keys().copied().collect::<Vec<_>>(),
        (1..=10).collect::<Vec<u64>>()
    );
    assert_eq!(seen.deliveries[10].number, 6);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_is_out_than_the_collector_remembers() {
    let peer = Peer::start(Will::Hold).await;
    let (mut agent, collector) = Agent::enrolled(&peer, -60, DAY);
    let (window, more) = (sumun_proto::WINDOW, 100);
    agent.append(Lane::Bulk, window + more);
    agent.sync();
    agent.start(collector);
    let full = peer
        .until("a full window", |seen| seen.deliveries.len() >= window)
        .await;
    let beats = full.heartbeats.len();
    let later = peer
        .until("signs of life", |seen| seen.heartbeats.len() >= beats + 6)
        .await;
    assert_eq!(later.deliveries.len(), window);
    peer.set(Will::Acknowledge);
    agent
        .until("all acknowledged", || agent.spooled(Lane::Bulk) == 0)
        .await;
    let wanted: Vec<_> = (1..=(window + more) as u64).collect();
    assert_eq!(peer.seen().numbers(Lane::Bulk), wanted);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_batch_is_put_aside_and_a_gap_stands_for_it() {
    let peer = Peer::start(Will::Refuse(2)).await;
    let (mut agent, collector) = Agent::enrolled(&peer, -60, DAY);
    agent.append(Lane::Life, 3);
    agent.sync();
    agent.start(collector);
    agent
        .until("the rest acknowledged", || {
            agent
                .status
                .counters
                .rejected_batches
                .load(std::sync::atomic::Ordering::Relaxed)
                == 1
                && agent
                    .status
                    .counters
                    .acked_batches
                    .load(std::sync::atomic::Ordering::Relaxed)
                    >= 2
        })
        .await;
    // The lane goes on, and what comes next brings the gap at the latest.
    agent.append(Lane::Life, 1);
    agent.sync();
    let has_gap = |delivery: &Delivery| {
        Batch::decode(&*delivery.body).is_ok_and(|batch| {
            batch
                .gaps
                .iter()
                .any(|gap| gap.reason == "rejected" && gap.count == Some(1))
        })
    };
    peer.until("a gap", |seen| seen.deliveries.iter().any(has_gap))
        .await;
    agent
        .until("an empty lane", || agent.spooled(Lane::Life) == 0)
        .await;
    let kept = std::fs::read_dir(agent.folder.path().join("spool/quarantine"))
        .expect("the quarantine")
        .count();
    assert!(kept > 0, "the refused batch is not kept");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_while_connected_and_used_without_a_restart() {
    let peer = Peer::start(Will::Acknowledge).await;
    // Past two thirds of its life: due at once, and valid until tomorrow.
    let (mut agent, collector) = Agent::enrolled(&peer, -9 * DAY, DAY);
    let read = |collector: &Collector| {
        let pem = std::fs::read(&collector.certificate).expect("the certificate");
        Holder::of(&pem, "agent.pem").expect("an agent's certificate")
    };
    let before = read(&collector);
    agent.start(collector.clone());
    let seen = peer
        .until("streams with another certificate", |seen| {
            seen.certificates
                .iter()
                .any(|leaf| *leaf != seen.certificates[0])
                && seen.hellos.len() >= 4
        })
        .await;
    assert_eq!(seen.renewals, 1);
    let after = read(&collector);
    assert_eq!(after.agent_id, before.agent_id);
    assert!(after.not_before > before.not_before);
    // The new connection carries batches.
    agent.append(Lane::Alert, 1);
    agent.sync();
    agent
        .until("acknowledged", || agent.spooled(Lane::Alert) == 0)
        .await;
    let beats = peer.seen().heartbeats.len();
    let later = peer
        .until("it goes on", |seen| seen.heartbeats.len() >= beats + 10)
        .await;
    assert_eq!(later.renewals, 1, "renewed again and again");
    assert!(later.goodbyes.is_empty(), "a reconnect is no goodbye");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_is_named_and_a_new_one_is_picked_up() {
    let peer = Peer::start(Will::Acknowledge).await;
    let (mut agent, collector) = Agent::enrolled(&peer, -2 * DAY, -DAY);
    agent.append(Lane::Life, 1);
    agent.sync();
    agent.start(collector.clone());
    agent
        .until("a reason", || agent.away_because().is_some())
        .await;
    let reason = agent.away_because().unwrap_or_default();
    assert!(reason.contains("the certificate expired at"), "{reason}");
    assert!(reason.contains("enroll --force"), "{reason}");
    assert_eq!(agent.spooled(Lane::Life), 1);
    peer.authority
        .enrolled(agent.folder.path(), -60, DAY, peer.address);
    agent
        .until("delivered", || agent.spooled(Lane::Life) == 0)
        .await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_of_another_ca_gets_nothing() {
    let peer = Peer::start(Will::Acknowledge).await;
    let mut agent = Agent::new();
    let stranger = Authority::new();
    let collector = stranger.enrolled(agent.folder.path(), -60, DAY, peer.address);
    agent.append(Lane::Life, 1);
    agent.sync();
    agent.start(collector);
    agent
        .until("a reason", || agent.away_because().is_some())
        .await;
    let reason = agent.away_because().unwrap_or_default();
    assert!(reason.contains("invalid peer certificate"), "{reason}");
    assert!(peer.seen().hellos.is_empty());
    assert_eq!(agent.spooled(Lane::Life), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_keeps_the_spool_and_stopping_does_not_wait_for_ever() {
    let peer = Peer::start(Will::Acknowledge).await;
    let (mut agent, collector) = Agent::enrolled(&peer, -60, DAY);
    drop(peer);
    agent.append(Lane::Bulk, 1);
    agent.sync();
    agent.start(collector);
    agent
        .until("a reason", || agent.away_because().is_some())
        .await;
    agent.commands.send_replace(Command::Stop {
        deadline: Instant::now(),
    });
    let task = agent.task.take().expect("started");
    tokio::time::timeout(PATIENCE, task)
        .await
        .expect("stops")
        .expect("does not panic");
    assert_eq!(agent.spooled(Lane::Bulk), 1);
}

fn enrolment(peer: &Peer, folder: &Path, ca: &str) -> Enroll {
    Enroll {
        collector: peer.address.to_string(),
        token_file: Some(folder.join("token")),
        join: None,
        metadata: ([127, 0, 0, 1], 1).into(),
        service_account_token: folder.join("none"),
        ca: folder.join(ca),
        out: folder.join("enrolled"),
        force: false,
        once: false,
        settings: None,
        no_policies: false,
        starter_policies: false,
    }
}

/// Enrols where there is no identity yet, or another one is asked for.
async fn new(args: &Enroll) -> Result<Enrolled, crate::enroll::Error> {
    match enroll(args, "host", |_| ()).await? {
        Outcome::Enrolled(enrolled) => Ok(enrolled),
        Outcome::Known { config, .. } => panic!("{} was there", config.display()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enrolling_once_waits_for_the_collector_and_takes_settings_over_each_time() {
    let peer = Peer::start(Will::Acknowledge).await;
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    std::fs::write(folder.join("token"), TOKEN).expect("the token");
    std::fs::write(folder.join("ca.pem"), &peer.authority.pem).expect("the CA");
    std::fs::write(folder.join("settings"), "[log]\nlevel = \"warn\"\n").expect("settings");
    let args = Enroll {
        once: true,
        settings: Some(folder.join("settings")),
        ..enrolment(&peer, folder, "ca.pem")
    };
    // Nobody listens there yet: it waits, and says once what for.
    let nobody = Enroll {
        collector: "127.0.0.1:1".into(),
        ..args.clone()
    };
    let said = std::sync::Mutex::new(Vec::new());
    let waiting = enroll(&nobody, "host", |why| {
        said.lock().expect("not poisoned").push(why.to_owned());
    });
    let waited = tokio::time::timeout(Duration::from_secs(2), waiting).await;
    assert!(waited.is_err(), "{waited:?}");
    let said = said.into_inner().expect("not poisoned");
    assert_eq!(said.len(), 1, "{said:?}");

    let enrolled = new(&args).await.expect("enrolled");
    let written = || std::fs::read_to_string(&enrolled.config).expect("the configuration");
    assert_eq!(
        Config::load(&enrolled.config).expect("good").log_level,
        "warn"
    );
    let first = written();
    let again = async |args: &Enroll| enroll(args, "host", |_| ()).await;
    let unchanged = again(&args).await.expect("enrolled already");
    assert!(matches!(unchanged, Outcome::Known { changed: false, .. }));
    assert_eq!(written(), first);
    std::fs::write(folder.join("settings"), "[log]\nlevel = \"debug\"\n").expect("settings");
    let changed = again(&args).await.expect("enrolled already");
    assert!(matches!(changed, Outcome::Known { changed: true, .. }));
    assert_eq!(
        Config::load(&enrolled.config).expect("good").log_level,
        "debug"
    );
    for wrong in ["[log]\nlevl = 1\n", "[agent]\nid = \"x\"\n", "[log"] {
        std::fs::write(folder.join("settings"), wrong).expect("settings");
        let error = again(&args).await.expect_err("wrong settings");
        assert!(error.to_string().contains("settings"), "{error}");
        assert_eq!(
            Config::load(&enrolled.config).expect("good").log_level,
            "debug"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enrolling_writes_an_identity_that_works_and_is_not_overwritten() {
    let peer = Peer::start(Will::Acknowledge).await;
    let mut agent = Agent::new();
    let folder = agent.folder.path();
    std::fs::write(folder.join("token"), format!("{TOKEN}\n")).expect("the token");
    std::fs::write(folder.join("given-ca.pem"), &peer.authority.pem).expect("the CA");
    let mut args = enrolment(&peer, folder, "given-ca.pem");
    let enrolled = new(&args).await.expect("enrolled");
    assert_eq!(enrolled.agent_id, AGENT);
    let config = Config::load(&enrolled.config).expect("a good configuration");
    let key = std::fs::metadata(&config.collector.key).expect("the key");
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
    }
    let one = config.policies.join(starter::POLICIES[0].0);
    let count = || {
        std::fs::read_dir(&config.policies)
            .expect("policies")
            .count()
    };
    assert_eq!(
        (enrolled.policies, count()),
        (starter::POLICIES.len(), starter::POLICIES.len())
    );
    std::fs::remove_file(&one).expect("a policy");

    let error = new(&args).await.expect_err("enrolled already");
    assert!(error.to_string().contains("--force"), "{error}");
    args.force = true;
    let again = new(&args).await.expect("enrolled again");
    assert_eq!(again.policies, 0);
    assert!(!one.exists(), "what was taken away stays away");
    let bare = Enroll {
        out: folder.join("bare"),
        no_policies: true,
        ..args.clone()
    };
    new(&bare).await.expect("enrolled");
    let bare = std::fs::read_dir(bare.out.join("policies")).expect("the folder");
    assert_eq!(bare.count(), 0);
    std::fs::write(folder.join("token"), "wrong").expect("the token");
    let before = std::fs::read(&config.collector.certificate).expect("the certificate");
    let error = new(&args).await.expect_err("a token that is not known");
    assert!(
        error.to_string().contains("not known or used up"),
        "{error}"
    );
    let after = std::fs::read(&config.collector.certificate).expect("the certificate");
    assert_eq!(before, after, "a failed enrolment changed the identity");
    let left: Vec<_> = std::fs::read_dir(&args.out)
        .expect("the folder")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("a name")
        })
        .collect();
    assert!(
        !left
            .iter()
            .any(|name| name.contains("enrolling") || name.ends_with(".new")),
        "{left:?}"
    );

    agent.append(Lane::Life, 1);
    agent.sync();
    agent.start(config.collector);
    agent
        .until("delivered", || agent.spooled(Lane::Life) == 0)
        .await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enrolling_trusts_only_the_given_ca() {
    let peer = Peer::start(Will::Acknowledge).await;
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("token"), TOKEN).expect("the token");
    std::fs::write(folder.path().join("ca.pem"), Authority::new().pem).expect("a CA");
    let args = enrolment(&peer, folder.path(), "ca.pem");
    let error = new(&args).await.expect_err("another CA");
    let chain = super::connect::chain(&error);
    assert!(chain.contains("invalid peer certificate"), "{chain}");
    assert!(!args.out.join("agent.toml").exists());
}
