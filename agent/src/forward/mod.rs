//! The spool's batches to the collector, exactly once.
//!
//! One connection (mutual TLS, HTTP/2), two `Forward` streams on it: the alert
//! lane, and life with bulk, so that alerts never wait behind bulk. A stream sends what
//! the spool has synced, in the order of each lane, with a bounded window of batches that
//! are not acknowledged; an acknowledgement takes them out of the spool. When the connection breaks,
//! a new one starts with the oldest batch that is not acknowledged: what the collector has
//! already, it knows by epoch, lane and number. The spool goes on filling meanwhile.
//!
//! A batch that the collector refuses for good is quarantined by the spool, and a gap record stands
//! for it. The certificate is renewed over the connection and used from the next
//! connection on, which is made as soon as what is out has been acknowledged.

pub(crate) mod backoff;
pub mod connect;
mod heartbeat;
pub mod identity;
mod outbox;
#[cfg(test)]
pub(crate) mod peer;
mod renew;
mod stream;
#[cfg(test)]
mod tests;
mod window;

use std::sync::Arc;
use std::time::{Duration, Instant};

use sumun_proto::MESSAGE_MAX;
use sumun_proto::v1::Lane;
use sumun_proto::v1::ingest_client::IngestClient;
use time::OffsetDateTime;
use tokio::sync::watch;
use tracing::{info, warn};

use self::backoff::Backoff;
use self::connect::chain;
use self::identity::Identity;
use self::stream::{Fault, Order, Stream};
use crate::config::Collector;
use crate::spool::Spool;
use crate::status::{Connection, Counters, Status};

/// Lanes of the first stream.
const ALERT: &[Lane] = &[Lane::Alert];
/// Lanes of the second stream.
const REST: &[Lane] = &[Lane::Life, Lane::Bulk];

/// A connection that has held this long counts as made: one that the collector
/// ends at once is still the same failure.
const HOLDS: Duration = Duration::from_millis(500);
/// While the collector is away, another reason is logged this often at most.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// An expired certificate is tried to be renewed this often at most; in between
/// the collector is asked to take it as it is, in case it is the clock that is wrong.
const RENEW_AGAIN: Duration = Duration::from_secs(10);

/// What is to be done, told to [`run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Keep sending.
    Run,
    /// Send what is spooled for so long at most, say goodbye, return.
    Stop {
        /// When to give up; what is left stays in the spool.
        deadline: Instant,
    },
}

/// Why there is no connection (any more).
#[derive(Debug, thiserror::Error)]
enum Away {
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error(transparent)]
    Connect(#[from] connect::Error),
    #[error(transparent)]
    Stream(#[from] Fault),
    #[error("failed to renew the expired certificate")]
    Renew(#[from] renew::Error),
    #[error("{fault}")]
    Certificate { fault: String, source: Box<Away> },
}

/// Sends until told to stop. Never fails: without a collector it tries again,
/// after at most 2 s in the first minute and 30 s later.
pub async fn run(
    collector: Collector,
    spool: Spool,
    status: Arc<Status>,
    mut commands: watch::Receiver<Command>,
) {
    status.watch_spool(spool.clone());
    let mut forwarder = Forwarder {
        collector,
        spool,
        status,
        backoff: Backoff::default(),
        logged: None,
        renewed: None,
        doubted: false,
        received: 0,
    };
    loop {
        let stopping = match *commands.borrow_and_update() {
            Command::Run => None,
            Command::Stop { deadline } => Some(deadline),
        };
        let outcome = forwarder.session(commands.clone()).await;
        match outcome {
            Ok(End::Stopped) => {
                forwarder.set(Connection::Closed);
                info!("said goodbye to the collector");
                return;
            }
            Ok(End::Renewed) => continue,
            Err(away) => forwarder.away(&away),
        }
        let wait = forwarder.backoff.next(Instant::now());
        let over = stopping.is_some_and(|deadline| Instant::now() + wait >= deadline);
        if over {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // Only a stop is ever told; the last try follows at once.
            changed = commands.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// How a connection ended that did not break.
enum End {
    /// The agent stops, and what could be sent is sent.
    Stopped,
    /// There is a new certificate to connect with.
    Renewed,
}

struct Forwarder {
    collector: Collector,
    spool: Spool,
    status: Arc<Status>,
    backoff: Backoff,
    /// When the collector's absence was last logged, and its reason; `None` while it is there.
    logged: Option<(Instant, String)>,
    /// When an expired certificate was last tried to be renewed.
    renewed: Option<Instant>,
    /// The collector did not accept the certificate.
    doubted: bool,
    /// When this process got its certificate, seconds since the Unix epoch; 0 = found it.
    received: i64,
}

impl Forwarder {
    /// One connection, until it breaks, a new certificate is there, or the agent stops.
    async fn session(&mut self, mut commands: watch::Receiver<Command>) -> Result<End, Away> {
        let identity = Identity::load(&self.collector)?;
        let holder = identity.holder.clone();
        self.status
            .update(|parts| parts.certificate_expires = holder.not_after);
        let outcome = self.connected(identity, &mut commands).await;
        // An expired certificate is the likeliest reason for whatever failed.
        let now = OffsetDateTime::now_utc().unix_timestamp();
        if let Err(Away::Stream(Fault::Status(status))) = &outcome {
            self.doubted = status.code() == tonic::Code::Unauthenticated;
        }
        outcome.map_err(|away| match (holder.fault_at(now), &away) {
            (Some(fault), Away::Stream(_) | Away::Renew(_)) => Away::Certificate {
                fault,
                source: Box::new(away),
            },
            _ => away,
        })
    }

    async fn connected(
        &mut self,
        identity: Identity,
        commands: &mut watch::Receiver<Command>,
    ) -> Result<End, Away> {
        let Identity { mut holder, tls } = identity;
        // Collectors date certificates back, for hosts whose clock is behind. A life that
        // began when it came here is what two thirds are counted of, however short it is.
        holder.not_before = holder.not_before.max(self.received);
        let address = self.collector.address.clone();
        let name = &self.collector.name;
        let channel = connect::connect(&address, name, tls, &self.status.peers).await?;
        let client = IngestClient::new(channel)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        let now = OffsetDateTime::now_utc().unix_timestamp();
        // It expired while this host was off, or the clock of this host is behind.
        let expired = now >= holder.not_after || std::mem::take(&mut self.doubted);
        if expired && self.may_renew() {
            renew::once(client.clone(), &self.collector, &holder, &self.status).await?;
            self.received = now;
            return Ok(End::Renewed);
        }
        let open = |lanes| Stream::open(client.clone(), lanes, self.status.clone(), &self.spool);
        let (alert, rest) = tokio::try_join!(open(ALERT), open(REST))?;
        let (order, orders) = watch::channel(Order::Go);
        let streams =
            async { tokio::try_join!(alert.run(orders.clone()), rest.run(orders.clone())) };
        tokio::pin!(streams);
        let collector = self.collector.clone();
        let status = self.status.clone();
        let renewal = renew::renew(client.clone(), &collector, &holder, &status);
        tokio::pin!(renewal);
        let holds = tokio::time::sleep(HOLDS);
        tokio::pin!(holds);
        let (mut held, mut renewed) = (false, false);
        // What was told before this connection was made counts too.
        commands.mark_changed();
        loop {
            tokio::select! {
                ended = &mut streams => {
                    ended?;
                    return Ok(match *order.borrow() {
                        Order::Stop(_) => End::Stopped,
                        Order::Go | Order::Reconnect => End::Renewed,
                    });
                }
                () = &mut holds, if !held => {
                    held = true;
                    self.here();
                }
                () = &mut renewal, if !renewed => {
                    renewed = true;
                    self.received = OffsetDateTime::now_utc().unix_timestamp();
                    order.send_if_modified(|order| {
                        let going = *order == Order::Go;
                        if going {
                            *order = Order::Reconnect;
                        }
                        going
                    });
                }
                changed = commands.changed() => {
                    // Whoever could tell is gone: nothing is to be waited for.
                    let gone = changed.is_err();
                    let deadline = match *commands.borrow_and_update() {
                        Command::Stop { deadline } => deadline,
                        Command::Run if gone => Instant::now(),
                        Command::Run => continue,
                    };
                    order.send_replace(Order::Stop(deadline.into()));
                    if gone {
                        streams.await?;
                        return Ok(End::Stopped);
                    }
                }
            }
        }
    }

    /// Whether an expired certificate may be renewed now. Not again and again: by a clock
    /// that is far ahead, the new one has expired too.
    fn may_renew(&mut self) -> bool {
        let due = self
            .renewed
            .is_none_or(|last| last.elapsed() >= RENEW_AGAIN);
        if due {
            self.renewed = Some(Instant::now());
        }
        due
    }

    /// The collector is there.
    fn here(&mut self) {
        self.backoff.reset();
        self.logged = None;
        Counters::add(&self.status.counters.connects, 1);
        self.set(Connection::Connected);
        info!(collector = %self.collector.address, "connected to the collector");
    }

    /// The collector is not there: one line a change, not one a try.
    fn away(&mut self, away: &Away) {
        let reason = chain(away);
        let due = match &self.logged {
            None => true,
            Some((at, logged)) => *logged != reason && at.elapsed() >= LOG_AGAIN,
        };
        if due {
            warn!(
                collector = %self.collector.address,
                %reason,
                "no connection to the collector, events stay in the spool"
            );
            self.logged = Some((Instant::now(), reason.clone()));
        }
        self.set(Connection::Away { reason });
    }

    fn set(&self, connection: Connection) {
        self.status.update(|parts| parts.connection = connection);
    }
}
