//! Delivery: once, in order, acknowledged when durable.

use crate::common::{
    EPOCH, Site, WALL, batch, contains, delivery, heartbeat, hello, is_ack, is_reject,
    raw_delivery, segments, until,
};
use sumun_proto::MESSAGE_MAX;
use sumun_proto::v1::forward_reply::Message as Reply;
use sumun_proto::v1::forward_request::Message as Ask;
use sumun_proto::v1::{Goodbye, Lane, LaneState, Table};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_batch_is_in_the_log_and_visible() {
    let site = Site::new().await;
    let running = site.start().await;
    let agent = site.enroll().await;
    let mut stream = agent.stream(&site).await.expect("a stream");
    for number in 1..=5 {
        let reply = stream
            .deliver(delivery(EPOCH, number, &batch(number, 2)))
            .await;
        assert!(is_ack(&reply, number), "{reply:?}");
        let marker = format!("/bin/marker-{number}-1");
        assert!(
            segments(&site)
                .iter()
                .any(|path| contains(path, marker.as_bytes()))
        );
        let (rows, _) = site
            .search(Table::Events, &format!("proc.exe.path == '{marker}'"))
            .await;
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!(rows[0]["host"]["id"], agent.id.as_str());
    }
    // With nothing to write the writer says all the same that it goes on.
    let (pulse, mut before) = (running.pulse(), None);
    assert!(pulse.goes_on(&mut before));
    for _ in 0..2 {
        until("a beat", || pulse.goes_on(&mut before)).await;
    }
    running.stop().await;
    // And once it has ended it does not.
    let _ = pulse.goes_on(&mut before);
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    assert!(!pulse.goes_on(&mut before));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_is_taken_once() {
    let site = Site::new().await;
    let running = site.start().await;
    let agent = site.enroll().await;
    let mut stream = agent.stream(&site).await.expect("a stream");
    for number in 1..=3 {
        assert!(is_ack(
            &stream
                .deliver(delivery(EPOCH, number, &batch(number, 1)))
                .await,
            number
        ));
    }
    // A repeat is acknowledged, not stored; on another stream too.
    assert!(is_ack(
        &stream.deliver(delivery(EPOCH, 2, &batch(2, 1))).await,
        2
    ));
    let mut second = agent.stream(&site).await.expect("a stream");
    assert!(is_ack(
        &second.deliver(delivery(EPOCH, 3, &batch(3, 1))).await,
        3
    ));
    // Another body under a used number is refused for good.
    assert!(is_reject(
        &stream.deliver(delivery(EPOCH, 2, &batch(9, 1))).await,
        2
    ));
    // The same number in another epoch is another batch.
    assert!(is_ack(
        &stream.deliver(delivery(EPOCH + 1, 1, &batch(10, 1))).await,
        1
    ));
    let (rows, _) = site.search(Table::Events, "kind == 'exec'").await;
    assert_eq!(rows.len(), 4);

    // A hole ends the stream; the number that was expected is still good.
    let ended = stream
        .deliver(delivery(EPOCH, 5, &batch(5, 1)))
        .await
        .expect_err("a hole");
    assert_eq!(ended.code(), Code::FailedPrecondition, "{ended}");
    assert!(ended.message().contains('4'), "{ended}");
    let mut stream = agent.stream(&site).await.expect("a stream");
    for number in 4..=5 {
        assert!(is_ack(
            &stream
                .deliver(delivery(EPOCH, number, &batch(number, 1)))
                .await,
            number
        ));
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_survive_restarts_in_the_log_and_in_the_lake() {
    // The second run seals the segment it finds after a second.
    let site = Site::with(&[("segment_seconds", 1)]).await;
    let running = site.start().await;
    let agent = site.enroll().await;
    let mut stream = agent.stream(&site).await.expect("a stream");
    assert!(is_ack(
        &stream.deliver(delivery(EPOCH, 1, &batch(1, 4))).await,
        1
    ));
    assert!(is_reject(
        &stream.deliver(raw_delivery(EPOCH, 2, vec![0xff; 9])).await,
        2
    ));
    running.stop().await;

    for _ in 0..2 {
        let running = site.start().await;
        let mut stream = agent.stream(&site).await.expect("a stream");
        assert!(is_ack(
            &stream.deliver(delivery(EPOCH, 1, &batch(1, 4))).await,
            1
        ));
        assert!(is_reject(
            &stream.deliver(raw_delivery(EPOCH, 2, vec![0xff; 9])).await,
            2
        ));
        assert!(is_reject(
            &stream.deliver(delivery(EPOCH, 1, &batch(2, 4))).await,
            1
        ));
        let (rows, _) = site.search(Table::Events, "").await;
        assert_eq!(rows.len(), 4);
        until("sealed", || {
            segments(&site)
                .iter()
                .all(|path| !contains(path, b"/bin/marker-1-1"))
        })
        .await;
        let (rows, _) = site.search(Table::Events, "").await;
        assert_eq!(rows.len(), 4);
        running.stop().await;
    }
    let running = site.start().await;
    let mut stream = agent.stream(&site).await.expect("a stream");
    assert!(is_ack(
        &stream.deliver(delivery(EPOCH, 3, &batch(3, 1))).await,
        3
    ));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_batch_is_refused_for_good_and_the_lane_goes_on() {
    let site = Site::new().await;
    let running = site.start().await;
    let agent = site.enroll().await;
    let mut stream = agent.stream(&site).await.expect("a stream");
    let reply = stream
        .deliver(raw_delivery(EPOCH, 1, b"\xff\xff garbage".to_vec()))
        .await;
    assert!(is_reject(&reply, 1), "{reply:?}");
    let mut wrong = delivery(EPOCH, 2, &batch(2, 1));
    wrong.sha256[3] ^= 1;
    assert!(is_reject(&stream.deliver(wrong).await, 2));
    assert!(is_ack(
        &stream.deliver(delivery(EPOCH, 3, &batch(3, 1))).await,
        3
    ));
    let reply = stream
        .deliver(raw_delivery(EPOCH, 1, b"\xff\xff garbage".to_vec()))
        .await;
    assert!(is_reject(&reply, 1), "told again: {reply:?}");
    assert_eq!(running.metrics.rejects.get(), 2);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large_a_message_ends_its_stream_and_nothing_else() {
    let site = Site::new().await;
    let running = site.start().await;
    let agent = site.enroll().await;
    let mut stream = agent.stream(&site).await.expect("a stream");
    let mut other = agent.stream(&site).await.expect("a stream");
    let ended = stream
        .deliver(raw_delivery(EPOCH, 1, vec![0; MESSAGE_MAX + 1]))
        .await
        .expect_err("too large");
    assert_eq!(ended.code(), Code::OutOfRange, "{ended}");
    // Too large for a batch, but not for a message: refused for good.
    let reply = other
        .deliver(raw_delivery(EPOCH, 1, vec![0; sumun_proto::BATCH_MAX + 1]))
        .await;
    assert!(is_reject(&reply, 1), "{reply:?}");
    assert!(is_ack(
        &other.deliver(delivery(EPOCH, 2, &batch(2, 1))).await,
        2
    ));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_must_begin_with_one_hello() {
    let site = Site::new().await;
    let running = site.start().await;
    let agent = site.enroll().await;
    let mut stream = agent.stream(&site).await.expect("a stream");
    stream.send(Ask::Hello(hello())).await;
    let ended = stream.reply().await.expect_err("a second hello");
    assert_eq!(ended.code(), Code::InvalidArgument);
    let mut stream = agent.stream(&site).await.expect("a stream");
    let mut lane = delivery(EPOCH, 1, &batch(1, 1));
    lane.lane = 77;
    let ended = stream.deliver(lane).await.expect_err("an unknown lane");
    assert_eq!(ended.code(), Code::InvalidArgument);
    running.stop().await;
}

fn claim(number: u64, through_boot_ns: u64) -> LaneState {
    LaneState {
        lane: Lane::Life as i32,
        through_boot_ns,
        epoch: EPOCH,
        number,
        spooled_batches: number,
        ..LaneState::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watermark_is_of_what_is_here_and_survives_a_restart() {
    let site = Site::new().await;
    let running = site.start().await;
    let agent = site.enroll().await;
    let state =
        |running: &sumun_collector::run::Running| running.registry.snapshot("default")[0].clone();
    assert_eq!(state(&running).state.reason(), "silent");
    let mut stream = agent.stream(&site).await.expect("a stream");
    until("starting", || state(&running).state.reason() == "starting").await;

    let mut silent = batch(1, 1);
    silent.through_boot_ns = 0;
    let mut beat = heartbeat();
    beat.lanes = vec![claim(1, 5_000_000)];
    stream.send(Ask::Heartbeat(beat)).await;
    until("online", || state(&running).state.name() == "online").await;
    let through = |running: &_| state(running).lane(Lane::Life).expect("a lane").through_ns;
    assert_eq!(through(&running), 0, "its batch is not here");
    assert!(is_ack(
        &stream.deliver(delivery(EPOCH, 1, &silent)).await,
        1
    ));
    assert_eq!(through(&running), WALL + 5_000_000);

    // A batch's own word.
    assert!(is_ack(
        &stream.deliver(delivery(EPOCH, 2, &batch(7, 1))).await,
        2
    ));
    assert_eq!(through(&running), WALL + 7_000_001);
    // Claimed at once: everything is here.
    let mut beat = heartbeat();
    beat.lanes = vec![claim(2, 8_000_000)];
    stream.send(Ask::Heartbeat(beat)).await;
    until("claimed", || through(&running) == WALL + 8_000_000).await;

    stream
        .send(Ask::Goodbye(Goodbye {
            reason: "stop".into(),
            lanes: vec![claim(2, 9_000_000)],
            boot_ns: 9_000_000,
            wall_offset_ns: WALL,
        }))
        .await;
    until("stopped", || state(&running).state.reason() == "stopped").await;
    drop(stream);
    running.stop().await;

    let running = site.start().await;
    assert_eq!(state(&running).state.reason(), "stopped");
    assert_eq!(through(&running), WALL + 9_000_000);
    // What is claimed of batches from before the restart counts at once.
    let stream = agent.stream(&site).await.expect("a stream");
    let mut beat = heartbeat();
    beat.lanes = vec![claim(2, 10_000_000)];
    stream.send(Ask::Heartbeat(beat)).await;
    until("claimed", || through(&running) == WALL + 10_000_000).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_what_was_sent() {
    let site = Site::new().await;
    let running = site.start().await;
    let agent = site.enroll().await;
    let mut stream = agent.stream(&site).await.expect("a stream");
    for number in 1..=50 {
        stream
            .send(Ask::Delivery(delivery(EPOCH, number, &batch(number, 20))))
            .await;
    }
    let first = stream.reply().await;
    assert!(is_ack(&first, 1), "{first:?}");
    let stop = tokio::spawn(running.stop());
    let mut acknowledged = 1;
    loop {
        match stream.reply().await {
            Ok(Reply::Ack(ack)) => acknowledged = ack.number,
            Ok(other) => panic!("{other:?}"),
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                break;
            }
        }
    }
    stop.await.expect("stopped");
    let running = site.start().await;
    let (rows, _) = site.search(Table::Events, "").await;
    assert!(rows.len() as u64 >= acknowledged * 20);
    assert_eq!(rows.len() % 20, 0);
    running.stop().await;
}
