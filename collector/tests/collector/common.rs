//! A collector and agents for tests: real TLS on loopback, real files.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prost::Message;
use rcgen::{CertificateParams, KeyPair};
use sha2::{Digest, Sha256};
use sumun_collector::config::Config;
use sumun_collector::init;
use sumun_collector::run::{self, Running};
use sumun_proto::v1::enrolment_client::EnrolmentClient;
use sumun_proto::v1::forward_reply::Message as Reply;
use sumun_proto::v1::forward_request::Message as Ask;
use sumun_proto::v1::ingest_client::IngestClient;
use sumun_proto::v1::query_client::QueryClient;
use sumun_proto::v1::search_reply::Message as Found;
use sumun_proto::v1::{
    Batch, Completeness, Delivery, EnrollRequest, Event, ForwardReply, ForwardRequest, Heartbeat,
    Hello, Image, Kind, Lane, Origin, SearchRequest, Table,
};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status, Streaming};

/// Longest any test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// An initialised directory.
pub(crate) struct Site {
    pub(crate) dir: TempDir,
}

impl Site {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let listen = "127.0.0.1:0".parse().expect("an address");
        init::init(&dir.path().join("c"), listen, &[])
            .await
            .expect("init");
        Site { dir }
    }

    /// Replaces a line of the configuration, or the comment in its place.
    pub(crate) async fn with(settings: &[(&str, u64)]) -> Self {
        let site = Site::new().await;
        let path = site.path().join("collector.toml");
        let mut text = std::fs::read_to_string(&path).expect("configuration");
        for (key, value) in settings {
            let line = text
                .lines()
                .find(|line| {
                    line.trim_start_matches("# ")
                        .starts_with(&format!("{key} ="))
                })
                .expect("a line for the key")
                .to_owned();
            text = text.replace(&line, &format!("{key} = {value}"));
        }
        std::fs::write(&path, text).expect("configuration");
        site
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("c")
    }

    pub(crate) fn config(&self) -> Config {
        Config::load(&self.path().join("collector.toml")).expect("configuration")
    }

    pub(crate) async fn start(&self) -> Running {
        run::start(self.config())
            .await
            .expect("the collector starts")
    }

    pub(crate) fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.path().join(file)).expect("a file")
    }

    pub(crate) fn ca(&self) -> String {
        self.read("ca/ca.pem")
    }

    pub(crate) fn enroll_token(&self) -> String {
        self.read("enroll.token").trim().to_owned()
    }

    pub(crate) fn admin_token(&self) -> String {
        let context: toml::Table = self.read("admin.toml").parse().expect("toml");
        context["token"].as_str().expect("a token").to_owned()
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.config().listen)
    }

    pub(crate) async fn channel(
        &self,
        identity: Option<(&str, &str)>,
    ) -> Result<Channel, tonic::transport::Error> {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.ca()))
            .domain_name("localhost");
        if let Some((certificate, key)) = identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        Endpoint::from_shared(self.url())
            .expect("a URL")
            .tls_config(tls)
            .expect("TLS settings")
            .connect_timeout(Duration::from_secs(10))
            .connect()
            .await
    }

    pub(crate) async fn enroll(&self) -> Agent {
        self.enroll_with(&self.enroll_token())
            .await
            .expect("enrolled")
    }

    pub(crate) async fn enroll_with(&self, token: &str) -> Result<Agent, Status> {
        let (csr_der, key) = csr();
        let channel = self.channel(None).await.expect("connected");
        let response = EnrolmentClient::new(channel)
            .enroll(EnrollRequest {
                token: token.to_owned(),
                csr_der,
                host_name: "host-1".into(),
                machine_id: "m1".into(),
                proof: None,
            })
            .await?
            .into_inner();
        Ok(Agent {
            id: response.agent_id,
            certificate: response.certificate_pem,
            key,
        })
    }

    /// Rows and completeness of a search over everything.
    pub(crate) async fn search(
        &self,
        table: Table,
        predicate: &str,
    ) -> (Vec<serde_json::Value>, Completeness) {
        let channel = self.channel(None).await.expect("connected");
        let mut request = Request::new(SearchRequest {
            table: table as i32,
            r#where: predicate.to_owned(),
            since_ns: 0,
            until_ns: None,
            limit: 0,
        });
        bearer(&mut request, &self.admin_token());
        let client = QueryClient::new(channel);
        let mut replies = client
            .max_decoding_message_size(usize::MAX)
            .search(request)
            .await
            .expect("a search")
            .into_inner();
        let mut rows = Vec::new();
        let mut completeness = None;
        while let Some(reply) = replies.message().await.expect("rows") {
            match reply.message {
                Some(Found::Rows(found)) => rows.extend(
                    found
                        .json
                        .iter()
                        .map(|row| serde_json::from_str(row).expect("JSON")),
                ),
                Some(Found::Completeness(last)) => completeness = Some(last),
                None => {}
            }
        }
        (rows, completeness.expect("completeness comes last"))
    }
}

pub(crate) fn bearer<T>(request: &mut Request<T>, token: &str) {
    let value = format!("Bearer {token}").parse().expect("ASCII");
    request.metadata_mut().insert("authorization", value);
}

/// A signing request and its key.
pub(crate) fn csr() -> (Vec<u8>, String) {
    let key = KeyPair::generate().expect("a key");
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .expect("a request");
    (csr.der().to_vec(), key.serialize_pem())
}

/// What an agent keeps.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) id: String,
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Agent {
    pub(crate) async fn client(
        &self,
        site: &Site,
    ) -> Result<IngestClient<Channel>, tonic::transport::Error> {
        let channel = site.channel(Some((&self.certificate, &self.key))).await?;
        Ok(IngestClient::new(channel).max_encoding_message_size(usize::MAX))
    }

    /// A stream that has said hello.
    pub(crate) async fn stream(&self, site: &Site) -> Result<Stream, Status> {
        let mut client = self
            .client(site)
            .await
            .map_err(|error| Status::unavailable(format!("{error:?}")))?;
        let (asks, requests) = mpsc::channel(64);
        asks.send(ask(Ask::Hello(hello()))).await.expect("room");
        let replies = client.forward(ReceiverStream::new(requests)).await?;
        Ok(Stream {
            asks,
            replies: replies.into_inner(),
        })
    }
}

pub(crate) fn hello() -> Hello {
    Hello {
        host_name: "host-1".into(),
        version: "0.1.0".into(),
        boot_id: vec![7; 16],
        lanes: vec![Lane::Alert as i32, Lane::Life as i32, Lane::Bulk as i32],
        kernel: "6.1".into(),
        doors: Vec::new(),
    }
}

/// An open forward stream.
pub(crate) struct Stream {
    pub(crate) asks: mpsc::Sender<ForwardRequest>,
    pub(crate) replies: Streaming<ForwardReply>,
}

impl Stream {
    pub(crate) async fn send(&self, message: Ask) {
        // A stream that the collector has ended answers the next `reply`.
        let _ = self.asks.send(ask(message)).await;
    }

    /// The next reply, or how the stream ended.
    pub(crate) async fn reply(&mut self) -> Result<Reply, Status> {
        let reply = tokio::time::timeout(PATIENCE, self.replies.message())
            .await
            .expect("a reply in time")?;
        let reply = reply.ok_or_else(|| Status::cancelled("ended"))?;
        Ok(reply.message.expect("a reply says something"))
    }

    pub(crate) async fn deliver(&mut self, delivery: Delivery) -> Result<Reply, Status> {
        self.send(Ask::Delivery(delivery)).await;
        self.reply().await
    }
}

pub(crate) fn ask(message: Ask) -> ForwardRequest {
    ForwardRequest {
        message: Some(message),
    }
}

pub(crate) fn is_ack(reply: &Result<Reply, Status>, number: u64) -> bool {
    matches!(reply, Ok(Reply::Ack(ack)) if ack.number == number)
}

pub(crate) fn is_reject(reply: &Result<Reply, Status>, number: u64) -> bool {
    matches!(reply, Ok(Reply::Reject(reject)) if reject.number == number)
}

pub(crate) const EPOCH: u64 = 0xfeed_0000_0000_0001;
pub(crate) const WALL: i64 = 1_790_000_000_000_000_000;

/// A batch of `count` execs with unique paths.
pub(crate) fn batch(number: u64, count: u64) -> Batch {
    let first = number * 1_000_000;
    let images = (0..count).map(|n| Image {
        exec_id: first + n + 1,
        pid: 4000,
        start_ns: 5,
        seen: true,
        exe_path: format!("/bin/marker-{number}-{n}"),
        args: vec!["marker".into()],
        ..Image::default()
    });
    let events = (0..count).map(|n| Event {
        kind: Kind::Exec as i32,
        boot_ns: first + n + 1,
        image: u32::try_from(n).expect("small") + 1,
        tid: 4000,
        origin: Some(Origin {
            ring: 0,
            cpu: 0,
            level: 0,
            seq: first + n + 1,
        }),
        ..Event::default()
    });
    Batch {
        format: sumun_proto::FORMAT,
        lane: Lane::Life as i32,
        boot_id: vec![7; 16],
        pin_generation: 1,
        wall_offset_ns: WALL,
        images: images.collect(),
        events: events.collect(),
        through_boot_ns: first + count,
        ..Batch::default()
    }
}

pub(crate) fn delivery(epoch: u64, number: u64, batch: &Batch) -> Delivery {
    raw_delivery(epoch, number, batch.encode_to_vec())
}

pub(crate) fn raw_delivery(epoch: u64, number: u64, body: Vec<u8>) -> Delivery {
    Delivery {
        epoch,
        lane: Lane::Life as i32,
        number,
        sha256: Sha256::digest(&body).to_vec(),
        body: body.into(),
    }
}

pub(crate) fn heartbeat() -> Heartbeat {
    Heartbeat {
        boot_ns: 1,
        wall_offset_ns: WALL,
        boot_id: vec![7; 16],
        lanes: Vec::new(),
        losses: Vec::new(),
        attached: true,
        bootstrapped: true,
        trouble: String::new(),
        policies: None,
        isolation: None,
    }
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The program itself, killed when it is dropped.
pub(crate) struct Program {
    child: Child,
}

impl Program {
    pub(crate) async fn start(site: &Site) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sumun-collector"));
        command
            .arg("run")
            .arg("--config")
            .arg(site.path().join("collector.toml"));
        Self::spawn(site, command).await
    }

    /// Waits for the address file, which the last process may have left.
    pub(crate) async fn spawn(site: &Site, mut command: Command) -> Self {
        let address = site.path().join("collector.addr");
        let _ = std::fs::remove_file(&address);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut program = Program { child };
        let end = Instant::now() + PATIENCE;
        while !address.exists() {
            let ended = program.child.try_wait().expect("a status");
            assert_eq!(ended, None, "the program ended");
            assert!(Instant::now() < end, "never ready");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        program
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("gone");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn segments(site: &Site) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(site.path().join("state/log"))
        .expect("the log")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    files.sort();
    files
}

pub(crate) fn contains(path: &Path, bytes: &[u8]) -> bool {
    match std::fs::read(path) {
        Ok(content) => content.windows(bytes.len()).any(|window| window == bytes),
        // Removed since it was listed.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}
