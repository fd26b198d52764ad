//! A collector for tests: real TLS with a CA of its own, the real services, and
//! a will that tests decide.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use sumun_proto::v1::enrolment_server::{Enrolment, EnrolmentServer};
use sumun_proto::v1::forward_reply::Message as Reply;
use sumun_proto::v1::forward_request::Message;
use sumun_proto::v1::ingest_server::{Ingest, IngestServer};
use sumun_proto::v1::{
    Ack, Delivery, EnrollRequest, EnrollResponse, ForwardReply, ForwardRequest, Goodbye, Heartbeat,
    Hello, Lane, Reject, RenewRequest, RenewResponse,
};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use super::identity;
use crate::config::{Collector, server_name};

/// The agent of all tests.
pub(crate) const AGENT: &str = "6f9619ff-8b86-4d01-b42d-00c04fc964ff";
/// The token that enrols.
pub(crate) const TOKEN: &str = "enrol-me";
/// Longest wait for anything that has to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A certificate authority.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).expect("a CA").pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    fn agent_params(
        &self,
        agent: &str,
        from: OffsetDateTime,
        to: OffsetDateTime,
    ) -> CertificateParams {
        let mut params = CertificateParams::default();
        let uri = format!("spiffe://sumun/tenant/default/agent/{agent}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("a URI"))];
        (params.not_before, params.not_after) = (from, to);
        params
    }

    /// A certificate for the key of a request, valid for a day from now on, and dated back so
    /// far that by its dates alone it would be due for renewal.
    fn sign(&self, csr_der: Vec<u8>) -> String {
        let mut csr =
            CertificateSigningRequestParams::from_der(&csr_der.into()).expect("a request");
        let now = OffsetDateTime::now_utc();
        csr.params =
            self.agent_params(AGENT, now - time::Duration::WEEK, now + time::Duration::DAY);
        csr.signed_by(&self.issuer).expect("a certificate").pem()
    }

    /// Writes the files of an enrolled agent, whose certificate is valid from and to these many
    /// seconds from now.
    pub(crate) fn enrolled(
        &self,
        folder: &Path,
        from: i64,
        to: i64,
        address: SocketAddr,
    ) -> Collector {
        let key = KeyPair::generate().expect("a key");
        let now = OffsetDateTime::now_utc();
        let params = self.agent_params(
            AGENT,
            now + time::Duration::seconds(from),
            now + time::Duration::seconds(to),
        );
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let collector = Collector {
            address: address.to_string(),
            name: server_name(&address.to_string()).expect("a name"),
            ca: folder.join("ca.pem"),
            certificate: folder.join("agent.pem"),
            key: folder.join("agent.key"),
        };
        for (path, content) in [
            (&collector.ca, self.pem.clone()),
            (&collector.certificate, certificate.pem()),
            (&collector.key, key.serialize_pem()),
        ] {
            identity::replace(path, content.as_bytes(), 0o600).expect("a file");
        }
        collector
    }
}

/// What the collector has seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) hellos: Vec<Hello>,
    /// Leaf certificate of the connection of each hello, DER.
    pub(crate) certificates: Vec<Vec<u8>>,
    /// Every delivery, repeats included.
    pub(crate) deliveries: Vec<Delivery>,
    pub(crate) heartbeats: Vec<Heartbeat>,
    pub(crate) goodbyes: Vec<Goodbye>,
    pub(crate) renewals: usize,
}

impl Seen {
    /// Numbers of a lane in the order of their arrival.
    pub(crate) fn numbers(&self, lane: Lane) -> Vec<u64> {
        self.deliveries
            .iter()
            .filter(|delivery| delivery.lane() == lane)
            .map(|delivery| delivery.number)
            .collect()
    }
}

/// What the collector does with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Will {
    /// Acknowledges it, at once or when the will becomes this.
    Acknowledge,
    /// Keeps silent.
    Hold,
    /// Breaks the stream.
    Break,
    /// Refuses the batch of this number for good, acknowledges all others.
    Refuse(u64),
}

/// A running collector. Stops when dropped.
pub(crate) struct Peer {
    pub(crate) authority: Arc<Authority>,
    pub(crate) address: SocketAddr,
    will: watch::Sender<Will>,
    seen: watch::Sender<Seen>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
struct Service {
    authority: Arc<Authority>,
    will: watch::Receiver<Will>,
    seen: watch::Sender<Seen>,
    enrolled: Arc<Mutex<bool>>,
}

impl Peer {
    pub(crate) async fn start(will: Will) -> Self {
        Self::start_with(will, Arc::new(Authority::new())).await
    }

    pub(crate) async fn start_with(will: Will, authority: Arc<Authority>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(address.ip())];
        let certificate = params
            .signed_by(&key, &authority.issuer)
            .expect("a certificate");
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(certificate.pem(), key.serialize_pem()))
            .client_ca_root(Certificate::from_pem(&authority.pem))
            .client_auth_optional(true);
        let (will, will_seen) = watch::channel(will);
        let (seen, _) = watch::channel(Seen::default());
        let service = Service {
            authority: authority.clone(),
            will: will_seen,
            seen: seen.clone(),
            enrolled: Arc::default(),
        };
        let ingest =
            IngestServer::new(service.clone()).max_decoding_message_size(sumun_proto::MESSAGE_MAX);
        let router = Server::builder()
            .tls_config(tls)
            .expect("TLS")
            .add_service(ingest)
            .add_service(EnrolmentServer::new(service));
        let server = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            router.serve_with_incoming(incoming).await.expect("serving");
        });
        Self {
            authority,
            address,
            will,
            seen,
            server,
        }
    }

    pub(crate) fn set(&self, will: Will) {
        self.will.send_replace(will);
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until that is so.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Seen) -> bool) -> Seen {
        let mut seen = self.seen.subscribe();
        let waited = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| holds(seen))).await;
        match waited {
            Ok(seen) => seen.expect("the peer runs").clone(),
            Err(_) => panic!("not seen in time: {what}"),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

type Replies = ReceiverStream<Result<ForwardReply, Status>>;

#[tonic::async_trait]
impl Ingest for Service {
    type ForwardStream = Replies;

    async fn forward(
        &self,
        request: Request<Streaming<ForwardRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let leaf = request
            .peer_certs()
            .and_then(|chain| chain.first().map(|leaf| leaf.to_vec()))
            .ok_or_else(|| Status::unauthenticated("a client certificate is needed"))?;
        self.seen.send_modify(|seen| seen.certificates.push(leaf));
        let (tx, rx) = mpsc::channel(16);
        let service = self.clone();
        tokio::spawn(service.take(request.into_inner(), tx));
        Ok(Response::new(ReceiverStream::new(rx)))
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<RenewResponse>, Status> {
        self.seen.send_modify(|seen| seen.renewals += 1);
        Ok(Response::new(RenewResponse {
            certificate_pem: self.authority.sign(request.into_inner().csr_der),
            ca_pem: self.authority.pem.clone(),
        }))
    }
}

#[tonic::async_trait]
impl Enrolment for Service {
    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        let request = request.into_inner();
        if request.token != TOKEN {
            return Err(Status::permission_denied(
                "the token is not known or used up",
            ));
        }
        *self.enrolled.lock().expect("not poisoned") = true;
        Ok(Response::new(EnrollResponse {
            agent_id: AGENT.to_owned(),
            tenant: "default".to_owned(),
            certificate_pem: self.authority.sign(request.csr_der),
            ca_pem: self.authority.pem.clone(),
        }))
    }
}

impl Service {
    async fn take(
        mut self,
        mut stream: Streaming<ForwardRequest>,
        tx: mpsc::Sender<Result<ForwardReply, Status>>,
    ) {
        let mut held: Vec<Delivery> = Vec::new();
        loop {
            tokio::select! {
                message = stream.message() => {
                    let Ok(Some(ForwardRequest { message: Some(message) })) = message else {
                        return;
                    };
                    self.seen.send_modify(|seen| match &message {
                        Message::Hello(hello) => seen.hellos.push(hello.clone()),
                        Message::Delivery(delivery) => seen.deliveries.push(delivery.clone()),
                        Message::Heartbeat(beat) => seen.heartbeats.push(beat.clone()),
                        Message::Goodbye(goodbye) => seen.goodbyes.push(goodbye.clone()),
                    });
                    if let Message::Delivery(delivery) = message {
                        held.push(delivery);
                    }
                }
                changed = self.will.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            let will = *self.will.borrow_and_update();
            match will {
                Will::Hold => continue,
                Will::Break if held.is_empty() => continue,
                Will::Break => {
                    let _ = tx
                        .send(Err(Status::unavailable("as the test wants it")))
                        .await;
                    return;
                }
                Will::Acknowledge | Will::Refuse(_) => {}
            }
            for delivery in held.drain(..) {
                if tx.send(Ok(answer(&delivery, will))).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn answer(delivery: &Delivery, will: Will) -> ForwardReply {
    let Delivery {
        epoch,
        lane,
        number,
        ..
    } = *delivery;
    let message = if will == Will::Refuse(number) {
        Reply::Reject(Reject {
            epoch,
            lane,
            number,
            reason: "malformed".to_owned(),
        })
    } else {
        Reply::Ack(Ack {
            epoch,
            lane,
            number,
        })
    };
    ForwardReply {
        message: Some(message),
    }
}
