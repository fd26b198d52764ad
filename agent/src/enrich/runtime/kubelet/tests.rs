//! Against a double of the kubelet's API: TLS, and a token that it checks.

use std::sync::Mutex as Lock;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::super::tests::{Runtime, nobody, on_this_thread, question, serve_cri};
use super::super::{self as runtime, Learned};
use super::*;

const PASS: &str = "the-agents-token";
const NODE: &str = "node-1";

#[derive(Clone, Debug)]
enum Mood {
    /// These pods, to who has the token.
    Well(Value),
    /// Whatever comes.
    Says(String),
    Endless,
    Silent,
}

struct Double {
    dir: TempDir,
    address: SocketAddr,
    mood: Arc<Lock<Mood>>,
    asked: Arc<Lock<Vec<String>>>,
}

impl Double {
    async fn start(mood: Mood) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut params = CertificateParams::new(Vec::new()).expect("names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"));
        let authority = authority.expect("an authority");
        std::fs::write(dir.path().join("ca.crt"), authority.pem()).expect("a file");
        std::fs::write(dir.path().join("token"), format!("{PASS}\n")).expect("a file");
        let key = KeyPair::generate().expect("a key");
        // As the kubelet's own: by the node's name.
        let certificate = CertificateParams::new(vec![NODE.to_owned()])
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
        let (mood, asked) = (Arc::new(Lock::new(mood)), Arc::default());
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

    fn is(&self, mood: Mood) {
        *self.mood.lock().expect("a lock") = mood;
    }

    fn requests(&self) -> usize {
        self.asked.lock().expect("a lock").len()
    }

    fn settings(&self) -> Settings {
        Settings {
            address: Some(self.address.to_string()),
            name: Some(NODE.to_owned()),
            ca: self.dir.path().join("ca.crt"),
            token: self.dir.path().join("token"),
        }
    }
}

async fn answer(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    mood: Mood,
    asked: Arc<Lock<Vec<String>>>,
) -> Option<()> {
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
    let known = head.starts_with("GET /pods HTTP/1.1\r\n")
        && head.contains(&format!("Authorization: Bearer {PASS}\r\n"));
    asked.lock().ok()?.push(head);
    let said = match mood {
        Mood::Well(_) if !known => {
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 12\r\n\r\nUnauthorized".to_owned()
        }
        Mood::Well(pods) => {
            let text = pods.to_string();
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}",
                text.len()
            )
        }
        Mood::Says(text) => text,
        Mood::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
            let part = vec![b' '; 1 << 20];
            loop {
                stream.write_all(&part).await.ok()?;
            }
        }
        Mood::Silent => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            return None;
        }
    };
    stream.write_all(said.as_bytes()).await.ok()?;
    stream.shutdown().await.ok()
}

/// As the kubelet lists it, with what nobody asked for.
fn pod(uid: &str, owner: &str) -> Value {
    json!({
        "metadata": {
            "name": "cart-5d8f-x", "namespace": "shop", "uid": uid,
            "labels": { "app": "cart" },
            "ownerReferences": [
                { "apiVersion": "v1", "kind": "ConfigMap", "name": "of-its-own", "uid": "1" },
                { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": "2", "controller": true },
            ],
        },
        "spec": { "serviceAccountName": "cart", "nodeName": NODE, "containers": [{ "name": "web" }] },
        "status": { "phase": "Running" },
    })
}

fn list(pods: &[Value]) -> Mood {
    Mood::Well(json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods }))
}

fn facts(uid: &str) -> Facts {
    Facts {
        pod_uid: uid.into(),
        pod_name: "cart-5d8f-x".into(),
        ..Facts::default()
    }
}

#[test]
fn a_pod_has_the_owner_and_account_that_the_kubelet_says_and_no_other() {
    on_this_thread(async {
        let alone = json!({ "metadata": { "uid": "u-3" }, "spec": {} });
        let double = Double::start(list(&[
            pod("u-1", "cart-5d8f"),
            pod("u-2", "till-9c"),
            alone,
        ]));
        let double = double.await;
        let kubelet = Kubelet::new(double.settings());
        let told = kubelet.add(&facts("u-1")).await.expect("an answer");
        let told = told.expect("a pod");
        assert_eq!(
            [
                &told.owner_kind,
                &told.owner_name,
                &told.service_account,
                &told.node
            ],
            ["ReplicaSet", "cart-5d8f", "cart", NODE]
        );
        assert_eq!(told.pod_name, "cart-5d8f-x", "what the runtime said stays");
        // Known from the same list, also that nobody made it.
        let told = kubelet.add(&facts("u-2")).await.expect("an answer");
        assert_eq!(told.expect("a pod").owner_name, "till-9c");
        let told = kubelet.add(&facts("u-3")).await.expect("an answer");
        let told = told.expect("a pod");
        assert_eq!(
            (told.owner_kind.as_str(), told.service_account.as_str()),
            ("", "")
        );
        assert_eq!(double.requests(), 1);
        // Of another node's, nothing, and never twice within a second.
        let begun = Instant::now();
        for _ in 0..2 {
            let told = kubelet.add(&facts("u-9")).await.expect("an answer");
            assert!(told.is_none());
        }
        assert_eq!(double.requests(), 3);
        assert!(begun.elapsed() > AGAIN, "{:?}", begun.elapsed());
        // One that has gone is forgotten with the next list.
        double.is(list(&[pod("u-4", "x")]));
        assert!(
            kubelet
                .add(&facts("u-4"))
                .await
                .expect("an answer")
                .is_some()
        );
        assert_eq!(kubelet.state.lock().await.pods.len(), 1);
    });
}

#[test]
fn a_kubelet_that_answers_badly_costs_its_time_and_a_word() {
    on_this_thread(async {
        let whole = list(&[pod("u-1", "cart")]);
        let double = Double::start(whole.clone()).await;
        let said = |text: &str| {
            Mood::Says(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}",
                text.len()
            ))
        };
        for (mood, part) in [
            (said("garbage"), "expected"),
            (said("[]"), "PodList"),
            (said(r#"{"items":[{"metadata":{}}]}"#), "uid"),
            (Mood::Says("SSH-2.0-OpenSSH\r\n\r\n".into()), "not HTTP"),
            (
                Mood::Says("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".into()),
                "may get nodes/pods",
            ),
            (Mood::Endless, "too long"),
        ] {
            double.is(mood);
            let kubelet = Kubelet::new(double.settings());
            let error = kubelet.add(&facts("u-1")).await.expect_err(part);
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
        // It is given up, and found well again.
        double.is(Mood::Silent);
        let kubelet = Kubelet::new(double.settings());
        let one = facts("u-1");
        let waited = tokio::time::timeout(Duration::from_millis(200), kubelet.add(&one)).await;
        assert!(waited.is_err());
        double.is(whole);
        assert!(kubelet.add(&one).await.expect("an answer").is_some());

        // Another's token, another's certificate, another name: nothing is shown and nothing believed.
        std::fs::write(double.dir.path().join("token"), "of-somebody-else").expect("a file");
        let error = Kubelet::new(double.settings()).add(&one).await;
        assert!(error.expect_err("refused").to_string().contains("401"));
        std::fs::write(double.dir.path().join("token"), "two lines\nX-Header: 1").expect("a file");
        let error = Kubelet::new(double.settings()).add(&one).await;
        assert!(error.expect_err("refused").to_string().contains("no token"));
        std::fs::write(double.dir.path().join("token"), PASS).expect("a file");
        let asked = double.requests();
        let other = Double::start(list(&[])).await;
        for settings in [
            Settings {
                ca: other.settings().ca,
                ..double.settings()
            },
            Settings {
                name: Some("node-2".into()),
                ..double.settings()
            },
        ] {
            Kubelet::new(settings)
                .add(&one)
                .await
                .expect_err("a stranger");
        }
        assert_eq!(double.requests(), asked, "no token was shown to a stranger");
    });
}

/// A container of the pod `uid-1` is asked about, where this kubelet is; what becomes known of it.
async fn asked_beside(double: &Double) -> tokio::sync::mpsc::Receiver<Learned> {
    let socket = double.dir.path().join("cri.sock");
    let one = Runtime {
        labels: HashMap::new(),
        hangs: false,
    };
    serve_cri(&socket, one);
    let settings = runtime::Settings {
        cri: vec![socket],
        kubelet: Some(double.settings()),
        ..nobody()
    };
    let (questions, asked) = tokio::sync::mpsc::channel(4);
    let (answers, learned) = tokio::sync::mpsc::channel(4);
    tokio::spawn(runtime::serve(settings, Arc::default(), asked, answers));
    questions.send(question("known")).await.expect("asked");
    learned
}

/// And whether more is to come.
fn owner_of(learned: Option<Learned>) -> (String, bool) {
    let learned = learned.expect("an answer");
    assert_eq!(learned.workload, 7);
    let facts = learned.facts.expect("facts");
    assert_eq!(facts.pod_name, "cart-1");
    (facts.owner_name, facts.pod_pending)
}

#[test]
fn the_runtimes_word_comes_first_and_what_the_kubelet_adds_after_it() {
    on_this_thread(async {
        let double = Double::start(list(&[pod("uid-1", "cart-5d8f")])).await;
        let mut learned = asked_beside(&double).await;
        assert_eq!(owner_of(learned.recv().await), (String::new(), true));
        assert_eq!(owner_of(learned.recv().await), ("cart-5d8f".into(), false));
        // Of a pod that it does not know nothing more will be said.
        let double = Double::start(list(&[])).await;
        let mut learned = asked_beside(&double).await;
        assert_eq!(owner_of(learned.recv().await), (String::new(), true));
        assert_eq!(owner_of(learned.recv().await), (String::new(), false));
        // One that hangs does not hold up the runtime's word.
        let double = Double::start(Mood::Silent).await;
        let mut learned = asked_beside(&double).await;
        assert_eq!(owner_of(learned.recv().await), (String::new(), true));
        let more = tokio::time::timeout(Duration::from_millis(300), learned.recv()).await;
        assert!(more.is_err(), "{more:?}");
    });
}

#[test]
fn a_kubelet_that_could_not_be_asked_is_asked_again() {
    on_this_thread(async {
        let away = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
        let double = Double::start(Mood::Says(away.into())).await;
        let mut learned = asked_beside(&double).await;
        assert_eq!(owner_of(learned.recv().await), (String::new(), true));
        while double.requests() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Until then it is not said that there is no owner.
        let more = tokio::time::timeout(Duration::from_millis(300), learned.recv()).await;
        assert!(more.is_err(), "{more:?}");
        double.is(list(&[pod("uid-1", "cart-5d8f")]));
        let more = tokio::time::timeout(Duration::from_secs(20), learned.recv()).await;
        assert_eq!(
            owner_of(more.expect("asked again")),
            ("cart-5d8f".into(), false)
        );
    });
}
