//! The service `Ingest`: streams of deliveries and heartbeats.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use sumun_proto::WINDOW;
use sumun_proto::v1::forward_reply::Message as Reply;
use sumun_proto::v1::forward_request::Message as Ask;
use sumun_proto::v1::ingest_server::Ingest;
use sumun_proto::v1::{
    self, Ack, ForwardReply, ForwardRequest, Hello, Lane, Reject, RenewRequest, RenewResponse,
};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, error, info, warn};

use crate::api::auth::Agents;
use crate::ingest::check::check_delivery;
use crate::ingest::writer::{Delivery, Intake, Outcome, chain};
use crate::metrics::Metrics;
use crate::tenant::ca::{self, Ca};
use crate::tenant::identity::Identity;
use crate::tenant::registry::{Registry, Session};

/// The first message of a stream must come within this.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// A stream on which nothing comes for so long is closed: heartbeats come
/// every 200 ms.
const IDLE: Duration = Duration::from_secs(60);
/// Deliveries of one stream that wait to be durable; then the stream is not
/// read any more. What an agent may leave unacknowledged is not more.
const IN_FLIGHT: usize = WINDOW;
/// Replies that wait for the network; then the stream waits.
const REPLIES: usize = 64;
/// Bodies larger than this are hashed and decoded apart from the network threads.
const LARGE: usize = 32 * 1024;
const NAME_MAX: usize = 253;

/// The service `Ingest`. Every method needs an agent's certificate.
#[derive(Debug)]
pub struct IngestService {
    /// Where deliveries go.
    pub intake: Intake,
    /// Who may deliver.
    pub agents: Agents,
    /// Learns what agents say of themselves.
    pub registry: Registry,
    /// Renews certificates.
    pub ca: Arc<Ca>,
    /// Validity of a renewed certificate.
    pub valid: Duration,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// True once the collector is stopping.
    pub stopping: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl Ingest for IngestService {
    type ForwardStream =
        Pin<Box<dyn futures::Stream<Item = Result<ForwardReply, Status>> + Send + 'static>>;

    async fn forward(
        &self,
        request: Request<Streaming<ForwardRequest>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        let peer = self.agents.require(&request)?;
        let (replies, outgoing) = mpsc::channel(REPLIES);
        let mut forward = Forward {
            identity: peer.identity,
            expires_in: peer.expires_in,
            inbound: request.into_inner(),
            intake: self.intake.clone(),
            agents: self.agents.clone(),
            registry: self.registry.clone(),
            stopping: self.stopping.clone(),
            replies,
        };
        let metrics = Arc::clone(&self.metrics);
        tokio::spawn(async move {
            metrics.streams.inc();
            let ended = forward.run().await;
            metrics.streams.dec();
            let agent = forward.identity.agent;
            match ended {
                Ok(()) => debug!(%agent, "forward stream ended"),
                Err(status) => {
                    info!(%agent, code = ?status.code(), reason = status.message(), "forward stream ended");
                    // The agent may be gone already.
                    let _ = forward.replies.send(Err(status)).await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<RenewResponse>, Status> {
        let identity = self.agents.require_for_renewal(&request)?;
        let csr = &request.get_ref().csr_der;
        let issued = match self.ca.issue_agent(csr, &identity, self.valid) {
            Ok(issued) => issued,
            Err(error @ ca::Error::Request) => {
                return Err(Status::invalid_argument(error.to_string()));
            }
            Err(error) => {
                error!(error = %chain(&error), "failed to renew a certificate");
                return Err(Status::internal("the collector cannot renew now"));
            }
        };
        if let Err(error) = self.registry.renewed(&identity, issued.expires_ns).await {
            error!(error = %chain(&error), "failed to renew a certificate");
            return Err(Status::unavailable(
                "the collector cannot renew now: try again",
            ));
        }
        info!(agent = %identity.agent, "renewed an agent's certificate");
        Ok(Response::new(RenewResponse {
            certificate_pem: issued.pem,
            ca_pem: self.ca.pem().to_owned(),
        }))
    }
}

/// A delivery on its way through the writer.
struct Pending {
    epoch: u64,
    lane: Lane,
    number: u64,
    outcome: Outcome,
}

type Waiting = FuturesOrdered<futures::future::BoxFuture<'static, Pending>>;

struct Forward {
    identity: Identity,
    expires_in: Duration,
    inbound: Streaming<ForwardRequest>,
    intake: Intake,
    agents: Agents,
    registry: Registry,
    stopping: watch::Receiver<bool>,
    replies: mpsc::Sender<Result<ForwardReply, Status>>,
}

impl Forward {
    async fn run(&mut self) -> Result<(), Status> {
        let hello = self.hello().await?;
        let lanes = lanes_of(&hello)?;
        let session = self.registry.connect(&self.identity, &hello);
        let host_name: Arc<str> = hello.host_name.as_str().into();
        info!(
            agent = %self.identity.agent, tenant = %self.identity.tenant, host = %host_name,
            version = %hello.version, "forward stream opened"
        );
        let mut waiting = Waiting::new();
        let ended = self.read(&session, &host_name, &lanes, &mut waiting).await;
        // What was read is answered before the stream ends, whatever ends it.
        while let Some(pending) = waiting.next().await {
            self.reply(pending).await?;
        }
        ended
    }

    async fn hello(&mut self) -> Result<Hello, Status> {
        let first = timeout(HELLO_WITHIN, self.inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello within 10 seconds"))??;
        match first.and_then(|request| request.message) {
            Some(Ask::Hello(hello)) => Ok(hello),
            _ => Err(Status::invalid_argument(
                "the first message of a stream must be a hello",
            )),
        }
    }

    async fn read(
        &mut self,
        session: &Session,
        host_name: &Arc<str>,
        lanes: &[Lane],
        waiting: &mut Waiting,
    ) -> Result<(), Status> {
        let expiry = sleep(self.expires_in);
        tokio::pin!(expiry);
        let mut stopping = self.stopping.clone();
        loop {
            let full = waiting.len() >= IN_FLIGHT;
            session.waits(full);
            let message = tokio::select! {
                biased;
                Some(pending) = waiting.next(), if !waiting.is_empty() => {
                    self.reply(pending).await?;
                    continue;
                }
                () = stopped(&mut stopping) => {
                    return Err(Status::unavailable("the collector is stopping"));
                }
                () = &mut expiry => {
                    return Err(Status::unauthenticated(
                        "the certificate has expired: renew it",
                    ));
                }
                message = timeout(IDLE, self.inbound.message()), if !full => message,
            };
            let message = message
                .map_err(|_| Status::deadline_exceeded("nothing heard for 60 seconds"))??;
            let Some(request) = message else {
                return Ok(());
            };
            match request.message {
                Some(Ask::Delivery(delivery)) => {
                    session.heard();
                    let pending = self.deliver(session, host_name, lanes, delivery).await?;
                    waiting.push_back(pending);
                }
                Some(Ask::Heartbeat(beat)) => {
                    self.agents.still_allowed(&self.identity)?;
                    session.heartbeat(&beat);
                }
                Some(Ask::Goodbye(goodbye)) => {
                    session.goodbye(&goodbye);
                    info!(agent = %self.identity.agent, reason = %goodbye.reason, "agent said goodbye");
                    if let Err(error) = self.registry.persist().await {
                        warn!(error = %chain(&error), "failed to keep a goodbye");
                    }
                }
                Some(Ask::Hello(_)) => {
                    return Err(Status::invalid_argument("a second hello on one stream"));
                }
                // A message of a newer version, or none: nothing to lose.
                None => session.heard(),
            }
        }
    }

    async fn deliver(
        &self,
        session: &Session,
        host_name: &Arc<str>,
        lanes: &[Lane],
        delivery: v1::Delivery,
    ) -> Result<futures::future::BoxFuture<'static, Pending>, Status> {
        let (epoch, number) = (delivery.epoch, delivery.number);
        let checked = match delivery.body.len() > LARGE {
            true => spawn_blocking(move || check_delivery(delivery)).await,
            false => Ok(check_delivery(delivery)),
        };
        let checked = checked.map_err(|_| Status::internal("failed to check a delivery"))??;
        let lane = checked.lane;
        if !lanes.contains(&lane) {
            return Err(Status::invalid_argument(
                "a delivery of a lane that the hello does not name",
            ));
        }
        let delivery = Delivery {
            identity: self.identity.clone(),
            host_name: Arc::clone(host_name),
            epoch,
            lane,
            number,
            sha256: checked.sha256,
            body: checked.body,
            batch: checked.batch,
        };
        let mut submit = std::pin::pin!(self.intake.submit(delivery));
        let outcome = match submit.as_mut().now_or_never() {
            Some(outcome) => outcome,
            None => {
                session.waits(true);
                let outcome = submit.await;
                session.waits(false);
                outcome
            }
        };
        let outcome = outcome.ok_or_else(|| Status::unavailable("the collector is stopping"))?;
        Ok(outcome
            .map(move |outcome| Pending {
                epoch,
                lane,
                number,
                outcome: outcome.unwrap_or(Outcome::Unavailable),
            })
            .boxed())
    }

    async fn reply(&self, pending: Pending) -> Result<(), Status> {
        let Pending {
            epoch,
            lane,
            number,
            outcome,
        } = pending;
        let lane_number = lane as i32;
        let message = match outcome {
            Outcome::Taken => Reply::Ack(Ack {
                epoch,
                lane: lane_number,
                number,
            }),
            Outcome::Refused(reason) => Reply::Reject(Reject {
                epoch,
                lane: lane_number,
                number,
                reason,
            }),
            Outcome::Hole { expected } => {
                return Err(Status::failed_precondition(format!(
                    "{} number {number} of epoch {epoch:#x} came where {expected} was expected: \
                     send again from there",
                    lane.as_str_name()
                )));
            }
            Outcome::Unavailable => {
                return Err(Status::unavailable("the collector cannot take batches now"));
            }
        };
        let reply = ForwardReply {
            message: Some(message),
        };
        let sent = self.replies.send(Ok(reply)).await;
        sent.map_err(|_| Status::cancelled("the agent has gone"))
    }
}

/// The lanes of a hello, each of them known.
fn lanes_of(hello: &Hello) -> Result<Vec<Lane>, Status> {
    if hello.host_name.len() > NAME_MAX {
        return Err(Status::invalid_argument(
            "a host name has 253 bytes at most",
        ));
    }
    if hello.boot_id.len() != 16 {
        return Err(Status::invalid_argument("a boot id has 16 bytes"));
    }
    let known = |lane: Lane| lane != Lane::Unspecified;
    let lanes: Vec<Lane> = hello.lanes().filter(|lane| known(*lane)).collect();
    match lanes.len() == hello.lanes.len() && !lanes.is_empty() {
        true => Ok(lanes),
        false => Err(Status::invalid_argument(
            "a hello names the lanes of its stream, and only known ones",
        )),
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the program is on its way out, too.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}
