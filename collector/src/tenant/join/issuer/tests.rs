//! Against a real server with TLS, which answers well, badly, or not at all.

use std::fs;
use std::net::SocketAddr;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::super::kubernetes::{KeySource, Kubernetes};
use super::super::tests::{Cluster, SUBJECT, claims};
use super::super::{Failure, Join, Method, Proven, prepare, prove};
use super::*;
use sumun_proto::v1::enroll_request::Proof;

const PASS: &str = "the collector's token";
/// Nothing is ever due again, unless a key is asked for that is not there.
const NOW: Pace = Pace {
    again: Duration::ZERO,
    fresh: Duration::from_secs(3600),
    kept: Duration::from_secs(3600),
    patience: Duration::from_secs(5),
};

#[derive(Clone, Debug)]
enum Mood {
    /// Answers, with this discovery document and these keys.
    Well(String, String),
    /// This in answer to everything, whole.
    Says(String),
    /// A body without an end.
    Endless,
    /// Takes the request and says nothing.
    Silent,
    /// Takes the connection and says nothing.
    Mute,
}

struct Server {
    dir: TempDir,
    address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
    /// Paths that were asked for with the right token.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut params = CertificateParams::new(Vec::new()).expect("names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("an authority");
        fs::write(dir.path().join("ca.pem"), authority.pem()).expect("a file");
        fs::write(dir.path().join("token"), format!("{PASS}\n")).expect("a file");
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .and_then(|params| params.signed_by(&key, &authority))
            .expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .expect("a certificate and its key");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mood = Arc::new(Mutex::new(Mood::Mute));
        let asked = Arc::default();
        let (moods, asks) = (Arc::clone(&mood), Arc::clone(&asked));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mood = moods.lock().expect("a lock").clone();
                tokio::spawn(answer(stream, acceptor.clone(), mood, Arc::clone(&asks)));
            }
        });
        Self {
            dir,
            address,
            mood,
            asked,
        }
    }

    fn name(&self) -> String {
        format!("https://{}", self.address)
    }

    fn is(&self, mood: Mood) {
        *self.mood.lock().expect("a lock") = mood;
    }

    /// Answers well, with the keys of this cluster.
    fn has(&self, keys: &str) {
        let name = self.name();
        let document = json!({ "issuer": name, "jwks_uri": format!("{name}/openid/v1/jwks") });
        self.is(Mood::Well(document.to_string(), keys.to_owned()));
    }

    fn requests(&self) -> usize {
        self.asked.lock().expect("a lock").len()
    }

    fn issuer(&self, pace: Pace) -> Issuer {
        let path = |name: &str| self.dir.path().join(name);
        Issuer::new(&self.name(), &path("ca.pem"), Some(path("token")))
            .expect("an issuer")
            .at_pace(pace)
    }

    fn joins(&self, pace: Pace) -> Vec<Join> {
        vec![Join {
            name: "here".into(),
            tenant: "acme".into(),
            method: Method::Kubernetes(Kubernetes {
                issuer: self.name(),
                audience: "sumun-collector".into(),
                keys: KeySource::Issuer(Arc::new(self.issuer(pace))),
                subjects: vec![SUBJECT.into()],
            }),
        }]
    }

    /// What becomes of a token of this cluster.
    async fn judge(&self, joins: &[Join], cluster: &Cluster, kid: &str) -> Result<Proven, Failure> {
        let mut claims = claims();
        claims["iss"] = self.name().into();
        let token = cluster.sign(&json!({ "alg": "ES256", "kid": kid }), &claims);
        let proof = Proof::ServiceAccountToken(token);
        prepare(joins, &proof).await;
        prove(joins, &proof).map(|(_, proven)| proven)
    }
}

async fn answer(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    mood: Mood,
    asked: Arc<Mutex<Vec<String>>>,
) -> Option<()> {
    if let Mood::Mute = mood {
        tokio::time::sleep(Duration::from_secs(60)).await;
        return None;
    }
    let mut stream = acceptor.accept(stream).await.ok()?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        stream
            .read_buf(&mut head)
            .await
            .ok()
            .filter(|read| *read > 0)?;
    }
    let head = String::from_utf8(head).ok()?;
    let path = head.split(' ').nth(1)?.to_owned();
    let whole = |text: &str| {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        )
    };
    let known = head.contains(&format!("authorization: Bearer {PASS}\r\n"));
    if known {
        asked.lock().ok()?.push(path.clone());
    }
    let said = match mood {
        _ if !known => "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n".to_owned(),
        Mood::Well(document, _) if path == "/.well-known/openid-configuration" => whole(&document),
        Mood::Well(_, keys) if path == "/openid/v1/jwks" => whole(&keys),
        Mood::Well(..) => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
        Mood::Says(text) => text,
        Mood::Endless => {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.ok()?;
            let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
            loop {
                stream.write_all(chunk.as_bytes()).await.ok()?;
            }
        }
        Mood::Silent | Mood::Mute => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            return None;
        }
    };
    stream.write_all(said.as_bytes()).await.ok()?;
    stream.shutdown().await.ok()
}

fn keys_of(cluster: &Cluster, kid: &str) -> String {
    let keys = fs::read_to_string(cluster.dir.path().join("keys.json")).expect("keys");
    keys.replace("\"one\"", &format!("{kid:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_fetched_kept_and_changed_with_the_issuers() {
    let server = Server::start().await;
    let (old, new) = (Cluster::new(), Cluster::new());
    let joins = server.joins(NOW);
    server.has(&keys_of(&old, "one"));
    // Many at once: one asks.
    let all = (0..20).map(|_| server.judge(&joins, &old, "one"));
    for judged in futures::future::join_all(all).await {
        judged.expect("a node");
    }
    assert_eq!(
        *server.asked.lock().expect("a lock"),
        ["/.well-known/openid-configuration", "/openid/v1/jwks"]
    );
    // The issuer has changed its keys: a new name is asked for at once, and the old one is of no use any more.
    server.has(&keys_of(&new, "two"));
    server.judge(&joins, &new, "two").await.expect("a node");
    let failure = server.judge(&joins, &old, "one").await.expect_err("gone");
    assert!(
        !failure.broken && failure.why.contains("not signed by a key"),
        "{failure:?}"
    );
    // Another key by the name of one that is there stays a stranger's.
    let failure = server
        .judge(&joins, &old, "two")
        .await
        .expect_err("a stranger");
    assert!(!failure.broken, "{failure:?}");

    // Who does not show its token, or is shown another authority's certificate, learns nothing.
    let mut joins = server.joins(NOW);
    fs::write(server.dir.path().join("token"), "of somebody else").expect("a file");
    let failure = server
        .judge(&joins, &new, "two")
        .await
        .expect_err("no keys");
    assert!(failure.broken && failure.why.contains("401"), "{failure:?}");
    fs::write(server.dir.path().join("token"), PASS).expect("a file");
    server.judge(&joins, &new, "two").await.expect("a node");
    let other = Server::start().await;
    // The file is read whenever it is needed.
    joins = server.joins(NOW);
    fs::copy(
        other.dir.path().join("ca.pem"),
        server.dir.path().join("ca.pem"),
    )
    .expect("a file");
    let failure = server
        .judge(&joins, &new, "two")
        .await
        .expect_err("no keys");
    assert!(
        failure.broken && failure.why.contains("certificate"),
        "{failure:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_can_have_an_issuer_asked_at_will() {
    let server = Server::start().await;
    let cluster = Cluster::new();
    // As it runs, but for the time that a key is taken for fresh.
    let joins = server.joins(Pace {
        fresh: Duration::ZERO,
        again: AGAIN,
        ..NOW
    });
    server.has(&keys_of(&cluster, "one"));
    server.judge(&joins, &cluster, "one").await.expect("a node");
    for number in 0..10 {
        let failure = server.judge(&joins, &cluster, &format!("k{number}")).await;
        assert!(!failure.expect_err("no such key").broken);
    }
    assert_eq!(server.requests(), 2);
    // Nor one that fails.
    let joins = server.joins(Pace {
        again: AGAIN,
        ..NOW
    });
    server.is(Mood::Says(
        "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".into(),
    ));
    for _ in 0..10 {
        let failure = server
            .judge(&joins, &cluster, "one")
            .await
            .expect_err("no keys");
        assert!(failure.broken && failure.why.contains("500"), "{failure:?}");
    }
    assert_eq!(server.requests(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_answers_badly_costs_little_and_the_last_keys_count() {
    let server = Server::start().await;
    let cluster = Cluster::new();
    let name = server.name();
    let quick = Pace {
        fresh: Duration::ZERO,
        patience: Duration::from_millis(500),
        ..NOW
    };
    let said = |text: &str| {
        Mood::Says(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        ))
    };
    let document =
        |issuer: &str, keys: &str| json!({ "issuer": issuer, "jwks_uri": keys }).to_string();
    let whole = keys_of(&cluster, "one");
    let kept = server.joins(quick);
    server.has(&whole);
    server.judge(&kept, &cluster, "one").await.expect("a node");
    let place = format!("{name}/openid/v1/jwks");
    for (mood, part) in [
        (Mood::Mute, "in time"),
        (Mood::Silent, "in time"),
        (Mood::Endless, "limit"),
        (said("garbage"), "no discovery document"),
        (said("[]"), "no discovery document"),
        (Mood::Says("SSH-2.0-OpenSSH\r\n\r\n".into()), "HTTP"),
        (
            Mood::Says(format!(
                "HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n"
            )),
            "302",
        ),
        (
            Mood::Says("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{".into()),
            "",
        ),
        (
            Mood::Well(document("https://other.example", &place), whole.clone()),
            "https://other.example",
        ),
        (
            Mood::Well(
                document(&name, &place.replace("https", "http")),
                whole.clone(),
            ),
            "is not https",
        ),
        (
            Mood::Well(document(&name, "/openid/v1/jwks"), whole.clone()),
            "is not https",
        ),
        (
            Mood::Well(document(&name, &place), "garbage".into()),
            "no JWKS",
        ),
        (
            Mood::Well(document(&name, &place), r#"{"keys": []}"#.into()),
            "no key of RSA",
        ),
    ] {
        server.is(mood.clone());
        let begun = Instant::now();
        let joins = server.joins(quick);
        let failure = server.judge(&joins, &cluster, "one").await.expect_err(part);
        assert!(
            failure.broken && failure.why.contains(part),
            "{mood:?}: {failure:?}"
        );
        assert_eq!(failure.tenant.as_deref(), Some("acme"), "{mood:?}");
        // It has been asked, in vain, and what it said before still counts.
        let known = server.judge(&kept, &cluster, "one").await;
        known.unwrap_or_else(|failure| panic!("{mood:?}: {failure:?}"));
        assert!(begun.elapsed() < Duration::from_secs(10), "{mood:?}");
    }
    // But not for ever.
    let ended = server.joins(Pace {
        kept: Duration::from_millis(50),
        ..quick
    });
    server.has(&whole);
    server.judge(&ended, &cluster, "one").await.expect("a node");
    server.is(Mood::Silent);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(
        server
            .judge(&ended, &cluster, "one")
            .await
            .expect_err("too old")
            .broken
    );
}

#[test]
fn an_issuer_that_is_asked_has_tls_and_an_authority() {
    let dir = tempfile::tempdir().expect("a folder");
    let none = dir.path().join("none.pem");
    fs::write(&none, "").expect("a file");
    for (name, part) in [
        ("http://issuer.example", "is not https"),
        ("issuer.example", "is not https"),
        ("https://user@issuer.example", "is not https"),
        ("https://", "is not https"),
        ("https://issuer.example", "no certificate"),
    ] {
        let why = Issuer::new(name, &none, None).expect_err(part);
        assert!(why.contains(part), "{name}: {why}");
    }
    let why =
        Issuer::new("https://i.example", &dir.path().join("absent"), None).expect_err("absent");
    assert!(why.contains("absent"), "{why}");
}
