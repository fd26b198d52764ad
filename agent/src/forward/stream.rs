//! One `Forward` stream: batches of its lanes out, acknowledgements in.

use std::sync::Arc;
use std::time::Duration;

use sumun_proto::v1::forward_reply::Message as Reply;
use sumun_proto::v1::forward_request::Message;
use sumun_proto::v1::ingest_client::IngestClient;
use sumun_proto::v1::{Ack, Delivery, ForwardReply, ForwardRequest, Lane, Reject};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use tracing::warn;

use super::connect::chain;
use super::heartbeat::{goodbye, heartbeat, hello};
use super::outbox::Outbox;
use super::window::Window;
use crate::spool::Spool;
use crate::status::{Counters, Status};

/// Heartbeats are this far apart on an idle stream,
const IDLE: Duration = Duration::from_millis(200);
/// and this far, in idle intervals, on a busy one.
const BUSY_TICKS: u32 = 5;
/// Longest wait for the collector to take the stream.
const OPEN: Duration = Duration::from_secs(15);
/// Longest wait for an acknowledgement while batches are out.
const ACK: Duration = Duration::from_secs(120);
/// How long a stream that is closed for a new certificate waits for what is out.
const SETTLE: Duration = Duration::from_secs(5);
/// How long the collector gets to end its side after a goodbye.
const FAREWELL: Duration = Duration::from_secs(1);
/// Messages between this task and HTTP/2. When it is full the stream waits, and
/// batches stay in the spool; a heartbeat that finds it full is left out, because what fills
/// it are signs of life.
const QUEUE: usize = 4;

/// What a stream is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Send.
    Go,
    /// Let what is out be acknowledged, then close: a new connection follows.
    Reconnect,
    /// Send what is spooled, until this time at most, then say goodbye.
    Stop(Instant),
}

/// A stream that broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the collector did not take the stream within 15 s")]
    Open,
    #[error("{}", status_text(.0))]
    Status(tonic::Status),
    #[error("the collector closed the stream")]
    Closed,
    #[error("the collector acknowledged nothing for 120 s")]
    Stalled,
    #[error(transparent)]
    Spool(#[from] crate::spool::Error),
}

/// A status that the collector sent has a message; one that stands for a broken
/// connection has a cause.
pub(super) fn status_text(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(cause) => format!("the connection broke: {}", chain(cause)),
        None => format!("the collector refused: {}", status.message()),
    }
}

pub(super) struct Stream {
    lanes: &'static [Lane],
    status: Arc<Status>,
    outbox: Outbox,
    window: Window,
    /// Read from the spool, not yet given to HTTP/2.
    next: Option<Delivery>,
    /// Lane that is looked at first, so that none starves another.
    turn: usize,
    /// Which policies the collector was told of on this stream. Only the alert lane's tells
    /// them, so that a late word of one stream cannot take back what another has said.
    told: u64,
    tx: mpsc::Sender<ForwardRequest>,
    replies: Streaming<ForwardReply>,
}

impl Stream {
    /// Opens a stream for some lanes; it starts with the oldest batch that is
    /// not acknowledged.
    pub(super) async fn open(
        mut client: IngestClient<Channel>,
        lanes: &'static [Lane],
        status: Arc<Status>,
        spool: &Spool,
    ) -> Result<Self, Fault> {
        let outbox = Outbox::new(spool, lanes)?;
        let (tx, rx) = mpsc::channel(QUEUE);
        let hello = Message::Hello(hello(&status, lanes));
        // The queue is empty, there is room.
        let _ = tx.try_send(wrap(hello));
        let replies = timeout(OPEN, client.forward(ReceiverStream::new(rx)))
            .await
            .map_err(|_| Fault::Open)?
            .map_err(Fault::Status)?
            .into_inner();
        Ok(Self {
            lanes,
            status,
            outbox,
            window: Window::default(),
            next: None,
            turn: 0,
            told: 0,
            tx,
            replies,
        })
    }

    /// Sends until told otherwise.
    pub(super) async fn run(mut self, mut orders: watch::Receiver<Order>) -> Result<(), Fault> {
        let mut tick = interval(IDLE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut order = *orders.borrow_and_update();
        let mut until = None;
        let mut busy = false;
        let mut ticks = 0;
        let mut heard = Instant::now();
        loop {
            if order != Order::Reconnect {
                self.fetch().await?;
            }
            let drained = self.next.is_none() && self.window.is_empty();
            match order {
                Order::Stop(_) if drained => return self.farewell().await,
                Order::Reconnect if drained => return Ok(()),
                _ => {}
            }
            tokio::select! {
                biased;
                reply = self.replies.message() => {
                    let reply = reply.map_err(Fault::Status)?.ok_or(Fault::Closed)?;
                    heard = Instant::now();
                    self.reply(reply).await?;
                }
                changed = orders.changed() => {
                    // The forwarder is gone: as if told to close.
                    order = if changed.is_ok() { *orders.borrow_and_update() } else { Order::Reconnect };
                    until = match order {
                        Order::Go => None,
                        Order::Reconnect => {
                            // Not sent yet, so the next connection finds it in the spool.
                            self.next = None;
                            Some(Instant::now() + SETTLE)
                        }
                        Order::Stop(deadline) => Some(deadline),
                    };
                }
                () = sleep_until(until.unwrap_or(heard)), if until.is_some() => {
                    return match order {
                        Order::Stop(_) => self.farewell().await,
                        _ => Ok(()),
                    };
                }
                _ = tick.tick() => {
                    ticks += 1;
                    if (!busy || ticks >= BUSY_TICKS) && self.beat() {
                        ticks = 0;
                    }
                    busy = false;
                }
                permit = self.tx.clone().reserve_owned(), if self.next.is_some() => {
                    let permit = permit.map_err(|_| Fault::Closed)?;
                    if let Some(batch) = self.next.take() {
                        if self.window.is_empty() {
                            heard = Instant::now();
                        }
                        busy = true;
                        let bytes = batch.body.len();
                        self.window.sent(&batch);
                        let counters = &self.status.counters;
                        Counters::add(&counters.sent_batches, 1);
                        Counters::add(&counters.sent_bytes, bytes as u64);
                        permit.send(wrap(Message::Delivery(batch)));
                    }
                }
                () = self.outbox.changed(), if self.next.is_none() && order == Order::Go => {}
                () = sleep_until(heard + ACK), if !self.window.is_empty() => {
                    return Err(Fault::Stalled);
                }
            }
        }
    }

    /// Takes the next batch, of each lane in turn.
    async fn fetch(&mut self) -> Result<(), Fault> {
        if self.next.is_some() {
            return Ok(());
        }
        for offset in 0..self.lanes.len() {
            let place = (self.turn + offset) % self.lanes.len();
            let lane = self.lanes[place];
            if let Some(batch) = self.outbox.next(lane).await? {
                self.turn = place + 1;
                self.next = Some(batch);
                return Ok(());
            }
        }
        Ok(())
    }

    async fn reply(&mut self, reply: ForwardReply) -> Result<(), Fault> {
        match reply.message {
            Some(Reply::Ack(ack)) => self.acknowledged(ack).await,
            Some(Reply::Reject(reject)) => self.refused(reject).await,
            // From a newer collector; it cannot be about a batch of ours.
            None => Ok(()),
        }
    }

    async fn acknowledged(&mut self, ack: Ack) -> Result<(), Fault> {
        let lane = ack.lane();
        let count = self.window.acknowledged(lane, ack.epoch, ack.number);
        if count == 0 {
            // Repeated, or of what another connection sent.
            return Ok(());
        }
        Counters::add(&self.status.counters.acked_batches, count as u64);
        self.outbox.acknowledge(lane, ack.epoch, ack.number).await?;
        Ok(())
    }

    async fn refused(&mut self, reject: Reject) -> Result<(), Fault> {
        let lane = reject.lane();
        if !self.window.refused(lane, reject.epoch, reject.number) {
            warn!(
                lane = sumun_proto::catalogue::lane_name(lane),
                number = reject.number,
                "the collector refused a batch that was not sent"
            );
            return Ok(());
        }
        Counters::add(&self.status.counters.rejected_batches, 1);
        self.outbox
            .refuse(lane, reject.epoch, reject.number, reject.reason)
            .await?;
        Ok(())
    }

    /// Sends a heartbeat if there is room for it.
    fn beat(&mut self) -> bool {
        let news = if self.lanes.contains(&Lane::Alert) {
            self.status.policies_since(self.told)
        } else {
            None
        };
        let (told, policies) = news.map_or((self.told, None), |(set, news)| (set, Some(news)));
        let sent = heartbeat(&self.status, self.lanes, policies)
            .is_some_and(|beat| self.tx.try_send(wrap(Message::Heartbeat(beat))).is_ok());
        if sent {
            self.told = told;
        }
        sent
    }

    /// Says goodbye and lets the collector end the stream.
    async fn farewell(self) -> Result<(), Fault> {
        let Self {
            lanes,
            status,
            tx,
            mut replies,
            ..
        } = self;
        let goodbye = wrap(Message::Goodbye(goodbye(&status, lanes)));
        let _ = timeout(FAREWELL, async {
            let sent = tx.send(goodbye).await;
            drop(tx);
            if sent.is_ok() {
                while let Ok(Some(_)) = replies.message().await {}
            }
        })
        .await;
        Ok(())
    }
}

fn wrap(message: Message) -> ForwardRequest {
    ForwardRequest {
        message: Some(message),
    }
}
