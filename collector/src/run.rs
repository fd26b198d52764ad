//! A running collector: started in order, stopped in reverse.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::SqlitePool;
use sumun_proto::MESSAGE_MAX;
use sumun_proto::v1::admin_server::AdminServer;
use sumun_proto::v1::enrolment_server::EnrolmentServer;
use sumun_proto::v1::ingest_server::IngestServer;
use sumun_proto::v1::query_server::QueryServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tracing::{error, info, warn};

use crate::api::admin::AdminService;
use crate::api::auth::{Admins, Agents};
use crate::api::server::connections;
use crate::api::tls::{self, SERVER_ROTATE, SERVER_VALID, ServerCertificate};
use crate::config::Config;
use crate::ingest::writer::chain;
use crate::ingest::{EnrolmentService, Ingest, IngestService, Pulse};
use crate::init::reachable;
use crate::metrics::Metrics;
use crate::query::{self, QueryService};
use crate::state;
use crate::store::{Bounds, Store};
use crate::tenant::ca::{self, Ca};
use crate::tenant::join::limit::Limit;
use crate::tenant::registry::{self, Registry};
use crate::tenant::token::{self, Tokens};

/// The file with the address of the port, one line, present while it is open.
pub const ADDRESS_FILE: &str = "collector.addr";
/// The same for metrics.
pub const METRICS_FILE: &str = "metrics.addr";

/// Progress of the agents is written this often: what a crash may cost of it.
const PERSIST_EVERY: Duration = Duration::from_secs(5);
/// Largest request of an admin or an enrolment, in bytes.
const SMALL_MESSAGE: usize = 256 * 1024;
/// Requests of one connection at a time: an agent needs a few, a console more.
const STREAMS_PER_CONNECTION: u32 = 64;
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
const KEEPALIVE_WITHIN: Duration = Duration::from_secs(10);

/// The collector cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state database.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The certificate authority.
    #[error(transparent)]
    Ca(#[from] ca::Error),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// Tokens.
    #[error(transparent)]
    Token(#[from] token::Error),
    /// Agents.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The store.
    #[error("failed to open the store")]
    Store(#[from] crate::store::Error),
    /// The log.
    #[error(transparent)]
    Ingest(#[from] crate::ingest::Error),
    /// The query engine.
    #[error("failed to start the query engine")]
    Query(#[source] sumun_lake::Error),
    /// An entry for nobody.
    #[error("the entry [[join]] {join:?} is for the tenant {tenant:?}, which does not exist")]
    Tenant {
        /// Its name.
        join: String,
        /// The tenant.
        tenant: Arc<str>,
    },
    /// A port.
    #[error("failed to listen on {address}: is another program using it?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// A file.
    #[error("failed to write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
}

/// A collector that is ready.
#[derive(Debug)]
pub struct Running {
    /// Its port.
    pub address: SocketAddr,
    /// Where its metrics are, if anywhere.
    pub metrics_address: Option<SocketAddr>,
    /// Its agents.
    pub registry: Registry,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    config: Config,
    database: SqlitePool,
    ingest: Ingest,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    stop: watch::Sender<bool>,
}

/// Starts a collector. When this returns it is ready: what was acknowledged
/// before is visible, the port is open and its address written down.
///
/// # Errors
/// Whatever is missing or in use.
pub async fn start(config: Config) -> Result<Running, Error> {
    let metrics = Arc::new(Metrics::default());
    let (stop, stopping) = watch::channel(false);
    for file in [ADDRESS_FILE, METRICS_FILE] {
        // Nobody shall find the address of the process before.
        let _ = std::fs::remove_file(config.run.join(file));
    }
    let ca = Arc::new(Ca::load(&config.ca_dir())?);
    let database = state::open(&config.database()).await?;
    let tokens = Arc::new(Tokens::load(database.clone()).await?);
    let registry = Registry::load(database.clone()).await?;
    for join in &config.joins {
        if !registry.has_tenant(&join.tenant) {
            return Err(Error::Tenant {
                join: join.name.clone(),
                tenant: Arc::clone(&join.tenant),
            });
        }
    }
    let bounds = Bounds {
        facts: config.facts,
        ..Bounds::default()
    };
    let store = Store::open(
        database.clone(),
        &config.lake_dir().to_string_lossy(),
        bounds,
    )
    .await?;
    let ingest = Ingest::start(
        &config.log_dir(),
        database.clone(),
        store.clone(),
        registry.clone(),
        Arc::clone(&metrics),
        config.limits,
    )
    .await?;

    let listener = listen(config.listen).await?;
    let address = local(&listener, config.listen)?;
    let certificate = Arc::new(ServerCertificate::issue(&ca, &config.names)?);
    note_expiry(&metrics);
    let tls = tls::server_config(&ca, Arc::clone(&certificate), config.renewal_grace)?;
    let incoming = connections(
        listener,
        Arc::new(tls),
        config.max_connections,
        Arc::clone(&metrics),
        stopping.clone(),
    );

    let (health, health_service) = tonic_health::server::health_reporter();
    type Ingesting = IngestServer<IngestService>;
    health.set_serving::<Ingesting>().await;
    health
        .set_serving::<EnrolmentServer<EnrolmentService>>()
        .await;
    health.set_serving::<QueryServer<QueryService>>().await;
    health.set_serving::<AdminServer<AdminService>>().await;
    let mut writable = ingest.writable.clone();
    tokio::spawn(async move {
        while writable.changed().await.is_ok() {
            let writable = *writable.borrow_and_update();
            match writable {
                true => health.set_serving::<Ingesting>().await,
                false => health.set_not_serving::<Ingesting>().await,
            }
        }
    });

    let agents = Agents::new(registry.clone(), config.renewal_grace);
    let admins = Admins::new(Arc::clone(&tokens), Arc::clone(&metrics));
    let enrolment = EnrolmentServer::new(EnrolmentService {
        database: database.clone(),
        ca: Arc::clone(&ca),
        registry: registry.clone(),
        metrics: Arc::clone(&metrics),
        valid: config.certificate_valid,
        joins: config.joins.clone().into(),
        limit: Limit::default(),
    })
    .max_decoding_message_size(SMALL_MESSAGE);
    let ingesting = IngestServer::new(IngestService {
        intake: ingest.intake.clone(),
        agents,
        registry: registry.clone(),
        ca: Arc::clone(&ca),
        valid: config.certificate_valid,
        metrics: Arc::clone(&metrics),
        stopping: stopping.clone(),
    })
    .max_decoding_message_size(MESSAGE_MAX);
    let admin = AdminServer::new(AdminService {
        tokens,
        database: database.clone(),
        registry: registry.clone(),
    })
    .max_decoding_message_size(SMALL_MESSAGE);
    let limits = query::Limits::new(config.state_dir().join("spill"));
    let query = QueryService::new(store, registry.clone(), &limits).map_err(Error::Query)?;
    let query = QueryServer::new(query).max_decoding_message_size(SMALL_MESSAGE);
    let check = move |admins: Admins| move |request| admins.check(request);
    let router = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_WITHIN))
        .http2_max_header_list_size(16 * 1024)
        .add_service(health_service)
        .add_service(enrolment)
        .add_service(ingesting)
        .add_service(InterceptedService::new(admin, check(admins.clone())))
        .add_service(InterceptedService::new(query, check(admins)));
    let mut signal = stopping.clone();
    let server = tokio::spawn(
        router.serve_with_incoming_shutdown(incoming, async move { stopped(&mut signal).await }),
    );

    let metrics_address = match config.metrics {
        None => None,
        Some(wanted) => {
            let listener = listen(wanted).await?;
            let bound = local(&listener, wanted)?;
            tokio::spawn(serve_metrics(
                listener,
                Arc::clone(&metrics),
                stopping.clone(),
            ));
            write_address(&config.run.join(METRICS_FILE), bound)?;
            Some(bound)
        }
    };
    tokio::spawn(rotate(
        certificate,
        ca,
        config.names.clone(),
        Arc::clone(&metrics),
        stopping.clone(),
    ));
    tokio::spawn(keep_progress(registry.clone(), stopping));
    write_address(&config.run.join(ADDRESS_FILE), reachable(address))?;
    info!(%address, "ready");
    Ok(Running {
        address,
        metrics_address,
        registry,
        metrics,
        config,
        database,
        ingest,
        server,
        stop,
    })
}

impl Running {
    /// Whether what was handed in is written: for the watchdog.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.ingest.pulse.clone()
    }

    /// Stops: streams are answered and closed, what was taken is durable. Ends
    /// after the configured time at the latest; nothing acknowledged depends on it.
    pub async fn stop(self) {
        let deadline = Instant::now() + self.config.drain;
        for file in [ADDRESS_FILE, METRICS_FILE] {
            let _ = std::fs::remove_file(self.config.run.join(file));
        }
        self.stop.send_replace(true);
        let mut server = self.server;
        match timeout_at(deadline, &mut server).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => warn!(error = %chain(&error), "the server ended with an error"),
            Ok(Err(error)) => error!(%error, "the server failed"),
            Err(_) => {
                warn!("connections were still open at the end of the drain time");
                server.abort();
            }
        }
        if timeout_at(deadline, self.ingest.finish()).await.is_err() {
            warn!("the log was still busy at the end of the drain time");
        }
        if let Err(error) = self.registry.persist().await {
            warn!(error = %chain(&error), "failed to keep the agents' progress");
        }
        // A connection that is stuck must not keep the process.
        let _ = timeout(Duration::from_secs(1), self.database.close()).await;
        info!("stopped");
    }
}

/// Waits until the collector is stopping.
pub(crate) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the program is on its way out, too.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|source| Error::Listen { address, source })
}

fn local(listener: &TcpListener, address: SocketAddr) -> Result<SocketAddr, Error> {
    listener
        .local_addr()
        .map_err(|source| Error::Listen { address, source })
}

/// Appears whole or not at all.
fn write_address(path: &Path, address: SocketAddr) -> Result<(), Error> {
    let next = path.with_extension("addr.tmp");
    std::fs::write(&next, format!("{address}\n"))
        .and_then(|()| std::fs::rename(&next, path))
        .map_err(|source| Error::Write {
            path: path.to_path_buf(),
            source,
        })
}

fn note_expiry(metrics: &Metrics) {
    let expires = state::now_ns() / 1_000_000_000 + SERVER_VALID.as_secs().cast_signed();
    metrics.certificate_expires.set(expires as f64);
}

async fn rotate(
    certificate: Arc<ServerCertificate>,
    ca: Arc<Ca>,
    names: Vec<String>,
    metrics: Arc<Metrics>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut ticks = interval(SERVER_ROTATE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stopped(&mut stopping) => return,
        }
        match certificate.rotate(&ca, &names) {
            Ok(()) => {
                note_expiry(&metrics);
                info!("replaced the server certificate");
            }
            Err(error) => {
                error!(error = %chain(&error), "failed to replace the server certificate");
            }
        }
    }
}

async fn keep_progress(registry: Registry, mut stopping: watch::Receiver<bool>) {
    let mut ticks = interval(PERSIST_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stopped(&mut stopping) => return,
        }
        let kept = registry.persist().await;
        if let Err(error) = &kept
            && !failing
        {
            warn!(error = %chain(error), "failed to keep the agents' progress");
        }
        failing = kept.is_err();
    }
}

/// As much HTTP as Prometheus needs.
async fn serve_metrics(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    mut stopping: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stopping) => return,
        };
        if let Ok((socket, _)) = accepted {
            // One after the other, each bounded in time: a scrape is short.
            let answered = answer_scrape(socket, &metrics);
            let _ = timeout(Duration::from_secs(5), answered).await;
        } else {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn answer_scrape(mut socket: TcpStream, metrics: &Metrics) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 1024];
        let read = socket.read(&mut part).await?;
        head.extend_from_slice(&part[..read]);
        if read == 0 || head.len() > 8 * 1024 {
            return Ok(());
        }
    }
    let (status, body) = match head.starts_with(b"GET /metrics ") {
        true => ("200 OK", metrics.text()),
        false => ("404 Not Found", String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/openmetrics-text; version=1.0.0; \
         charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await?;
    socket.write_all(body.as_bytes()).await?;
    socket.shutdown().await
}
