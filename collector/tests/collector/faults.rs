//! Kills, a full disk and a damaged log: nothing acknowledged is lost or doubled.

use std::collections::HashSet;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::common::{EPOCH, Program, Site, Stream, batch, delivery, is_ack, segments, until};
use sumun_proto::v1::forward_reply::Message as Reply;
use sumun_proto::v1::forward_request::Message as Ask;
use sumun_proto::v1::{Batch, Table};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Sends from the first unacknowledged number on until the stream breaks or
/// `last` is acknowledged; `acknowledged` follows.
async fn push(stream: &mut Stream, acknowledged: &AtomicU64, last: u64) {
    let asks = stream.asks.clone();
    let first = acknowledged.load(Ordering::Relaxed) + 1;
    let sending = tokio::spawn(async move {
        for number in first..=last {
            let batch = batch(number, 20);
            let message = crate::common::ask(Ask::Delivery(delivery(EPOCH, number, &batch)));
            if asks.send(message).await.is_err() {
                return;
            }
        }
    });
    while acknowledged.load(Ordering::Relaxed) < last {
        match stream.reply().await {
            Ok(Reply::Ack(ack)) => acknowledged.fetch_max(ack.number, Ordering::Relaxed),
            Ok(Reply::Reject(reject)) => panic!("refused: {reject:?}"),
            Err(_) => break,
        };
    }
    sending.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_under_load_lose_and_double_nothing() {
    const KILLS: u64 = 8;
    const LAST: u64 = 1500;
    // Small segments: kills hit sealing, too.
    let site = Site::with(&[("segment_bytes", 65_536), ("segment_seconds", 1)]).await;
    let mut program = Program::start(&site).await;
    let agent = site.enroll().await;
    let acknowledged = AtomicU64::new(0);
    let mut progressed = 0;
    for kill in 0..KILLS {
        let before = acknowledged.load(Ordering::Relaxed);
        let mut stream = agent.stream(&site).await.expect("a stream");
        let enough = before + 20 + 13 * kill;
        tokio::select! {
            () = push(&mut stream, &acknowledged, LAST) => {}
            // What is acknowledged and not read yet is sent again: a repeat.
            () = until("some progress", || acknowledged.load(Ordering::Relaxed) >= enough) => {}
        }
        program.kill();
        drop(stream);
        program = Program::start(&site).await;
        let now = acknowledged.load(Ordering::Relaxed);
        progressed += u64::from(now > before && now < LAST);
        let (rows, _) = site.search(Table::Events, "").await;
        assert!(
            rows.len() as u64 >= now * 20,
            "acknowledged rows are visible"
        );
        assert_eq!(rows.len() % 20, 0, "a batch is visible whole");
    }
    assert!(
        progressed >= KILLS / 2,
        "the kills hit an idle collector: {progressed}"
    );
    let mut stream = agent.stream(&site).await.expect("a stream");
    push(&mut stream, &acknowledged, LAST).await;
    assert_eq!(acknowledged.load(Ordering::Relaxed), LAST);
    let (rows, _) = site.search(Table::Events, "").await;
    assert_eq!(rows.len() as u64, LAST * 20, "rows, not distinct names");
    let names: HashSet<&str> = rows
        .iter()
        .map(|row| row["proc"]["exe"]["path"].as_str().expect("a path"))
        .collect();
    assert_eq!(names.len() as u64, LAST * 20);
}

async fn ingest_health(site: &Site) -> ServingStatus {
    let channel = site.channel(None).await.expect("connected");
    let request = HealthCheckRequest {
        service: "sumun.v1.Ingest".into(),
    };
    let response = HealthClient::new(channel).check(request).await;
    response.expect("an answer").into_inner().status()
}

/// A body of some size.
fn large(number: u64) -> Batch {
    let mut batch = batch(number, 1);
    batch.images[0].args = vec!["x".repeat(200_000)];
    batch
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_acknowledgements_and_nothing_else() {
    let site = Site::new().await;
    // A bound on the size of files stands for the full disk: the log's writes
    // fail half way, as they do there.
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' XFSZ; ulimit -S -f 2048; exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_sumun-collector"))
        .arg("run")
        .arg("--config")
        .arg(site.path().join("collector.toml"));
    let program = Program::spawn(&site, command).await;
    let agent = site.enroll().await;
    let mut stream = agent.stream(&site).await.expect("a stream");
    let mut acknowledged = 0;
    for number in 1..=20 {
        stream
            .send(Ask::Delivery(delivery(EPOCH, number, &large(number))))
            .await;
        // Else all of them may share one sync, which does not fit.
        if number == 1 {
            acknowledged += 1;
            assert!(is_ack(&stream.reply().await, acknowledged));
        }
    }
    // `ulimit -f` counts blocks of 512 or 1024 bytes: 1 or 2 MiB of log. What
    // shares a sync with the first that does not fit waits with it.
    while let Ok(reply) = tokio::time::timeout(Duration::from_secs(3), stream.reply()).await {
        acknowledged += 1;
        assert!(is_ack(&reply, acknowledged), "{reply:?}");
    }
    assert!((1..=11).contains(&acknowledged), "{acknowledged}");
    assert_eq!(ingest_health(&site).await, ServingStatus::NotServing);
    // It still answers; what is acknowledged is all there is.
    let (rows, _) = site.search(Table::Events, "").await;
    assert_eq!(rows.len() as u64, acknowledged);

    // Room again: it goes on by itself, on the same stream.
    let done = Command::new("prlimit")
        .args(["--fsize=unlimited", "--pid", &program.pid().to_string()])
        .status()
        .expect("prlimit");
    assert!(done.success());
    while acknowledged < 20 {
        acknowledged += 1;
        let reply = stream.reply().await;
        assert!(is_ack(&reply, acknowledged), "{reply:?}");
    }
    assert_eq!(ingest_health(&site).await, ServingStatus::Serving);
    program.kill();
    let running = site.start().await;
    let (rows, _) = site.search(Table::Events, "").await;
    assert_eq!(rows.len(), 20);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_within_the_log_becomes_a_gap() {
    damage(&["/bin/marker-5-1"], 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_several_records_becomes_gaps() {
    damage(
        &["/bin/marker-2-1", "/bin/marker-4-1", "/bin/marker-5-1"],
        2,
    )
    .await;
}

/// Damages the records of the markers, each of one batch of two rows.
async fn damage(damaged: &[&str], gaps_expected: usize) {
    let site = Site::new().await;
    let running = site.start().await;
    let agent = site.enroll().await;
    let mut stream = agent.stream(&site).await.expect("a stream");
    for number in 1..=6 {
        assert!(is_ack(
            &stream
                .deliver(delivery(EPOCH, number, &batch(number, 2)))
                .await,
            number
        ));
    }
    drop(stream);
    running.stop().await;

    let segment = segments(&site).pop().expect("a segment");
    let mut bytes = std::fs::read(&segment).expect("a segment");
    for marker in damaged {
        let at = bytes
            .windows(marker.len())
            .position(|window| window == marker.as_bytes())
            .expect("the record");
        bytes[at] ^= 0x20;
    }
    std::fs::write(&segment, bytes).expect("damaged");

    let running = site.start().await;
    assert_eq!(running.metrics.log_lost_records.get(), damaged.len() as u64);
    let (rows, _) = site.search(Table::Events, "").await;
    assert_eq!(
        rows.len(),
        12 - 2 * damaged.len(),
        "the others are still there"
    );
    let mut stream = agent.stream(&site).await.expect("a stream");
    assert!(is_ack(
        &stream.deliver(delivery(EPOCH, 7, &batch(7, 2))).await,
        7
    ));
    let (gaps, _) = site.search(Table::Gaps, "").await;
    assert_eq!(gaps.len(), gaps_expected, "{gaps:?}");
    for gap in &gaps {
        assert_eq!(gap["gap"]["reason"], "corrupt", "{gaps:?}");
        assert_eq!(gap["host"]["id"], agent.id.as_str());
    }
    running.stop().await;
}
