//! Runtimes that hang, restart, lie and talk too much.

use std::collections::HashMap;

use sumun_proto::cri::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use sumun_proto::cri::{
    Container, ContainerMetadata, ContainerStatus, ContainerStatusRequest, ContainerStatusResponse,
    ImageSpec, ListContainersRequest, ListContainersResponse, PodSandboxMetadata, PodSandboxStatus,
    PodSandboxStatusRequest, PodSandboxStatusResponse,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::*;

/// A runtime with one container, `known`, in the pod `pod-1`.
pub(super) struct Runtime {
    pub(super) labels: HashMap<String, String>,
    pub(super) hangs: bool,
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn list_containers(
        &self,
        _: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let one = |id: &str, sandbox: &str| Container {
            id: id.into(),
            pod_sandbox_id: sandbox.into(),
        };
        // Also those that nobody asked for.
        let containers = vec![one("another", "pod-2"), one("known", "pod-1")];
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Result<Response<ContainerStatusResponse>, Status> {
        if self.hangs {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        let id = request.into_inner().container_id;
        let mut labels = self.labels.clone();
        match id.as_str() {
            "known" => {}
            // Longer than any answer may be.
            "large" => _ = labels.insert("large".into(), "x".repeat(5 << 20)),
            "broken" => return Err(Status::internal("its description cannot be read")),
            "stuck" => tokio::time::sleep(Duration::from_secs(60)).await,
            _ => return Err(Status::not_found("no such container")),
        }
        let status = ContainerStatus {
            id,
            metadata: Some(ContainerMetadata {
                name: "web".into(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: "docker.io/library/nginx:1.25".into(),
            }),
            image_ref: "docker.io/library/nginx@sha256:0123".into(),
            labels,
        };
        Ok(Response::new(ContainerStatusResponse {
            status: Some(status),
        }))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        if id != "pod-1" {
            return Err(Status::unknown(format!("sandbox {id} not found")));
        }
        let status = PodSandboxStatus {
            id,
            metadata: Some(PodSandboxMetadata {
                name: "cart-1".into(),
                uid: "uid-1".into(),
                namespace: "shop".into(),
                attempt: 0,
            }),
            labels: HashMap::from([("app".into(), "cart".into())]),
        };
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(status),
        }))
    }
}

pub(super) fn serve_cri(socket: &std::path::Path, runtime: Runtime) -> tokio::task::JoinHandle<()> {
    let listener = UnixListener::bind(socket).expect("a socket");
    tokio::spawn(async move {
        let served = tonic::transport::Server::builder()
            .add_service(RuntimeServiceServer::new(runtime))
            .serve_with_incoming(UnixListenerStream::new(listener));
        let _ = served.await;
    })
}

pub(super) fn known(answer: Answer) -> Option<Facts> {
    match answer {
        Answer::Known(facts) => Some(facts),
        _ => None,
    }
}

pub(super) fn nobody() -> Settings {
    Settings {
        cri: Vec::new(),
        docker: Vec::new(),
        podman: Vec::new(),
        stores: Vec::new(),
        cloud: None,
        kubelet: None,
    }
}

pub(super) fn question(container: &str) -> Question {
    Question {
        made_ns: 0,
        waits_ns: 0,
        tries: 0,
        named: None,
        workload: 7,
        container: container.into(),
        runtime: String::new(),
    }
}

pub(super) fn on_this_thread<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(work)
}

#[test]
fn a_container_and_its_pod_are_told_and_labels_are_cut() {
    on_this_thread(async {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("cri.sock");
        let labels = HashMap::from([
            ("small".into(), "1".into()),
            ("large".into(), "x".repeat(LABELS_MAX)),
        ]);
        let runtime = Runtime {
            labels,
            hangs: false,
        };
        let _server = serve_cri(&socket, runtime);
        let settings = Settings {
            cri: vec![socket],
            ..nobody()
        };
        let sources = Sources::new(settings, Arc::default());
        let facts = known(sources.ask(&question("known")).await).expect("facts");
        assert_eq!(
            (facts.container_name.as_str(), facts.image_tag.as_str()),
            ("web", "1.25")
        );
        assert_eq!(
            (facts.pod_name.as_str(), facts.namespace.as_str()),
            ("cart-1", "shop")
        );
        // What fits is told whole, and what does not in part.
        let [small, large] = facts.container_labels.as_slice() else {
            panic!("{} labels", facts.container_labels.len());
        };
        assert!(small == "small=1" && large.starts_with("large=xxx"));
        assert_eq!(small.len() + large.len(), LABELS_MAX);
        assert_eq!(facts.container_labels_flaws, u32::from(FLAW_TRUNCATED));
        assert_eq!(facts.image_digest, "sha256:0123");
        // Of its pod that says nothing.
        assert_eq!(facts.pod_labels, ["app=cart"]);
        assert_eq!((facts.pod_labels_flaws, facts.cut), (0, false));
        // The container that only holds the pod.
        let pod = known(sources.ask(&question("pod-1")).await).expect("facts");
        assert_eq!(
            (pod.pod_uid.as_str(), pod.container_name.as_str()),
            ("uid-1", "")
        );
        assert!(matches!(
            sources.ask(&question("another")).await,
            Answer::Denied
        ));
    });
}

#[test]
fn a_runtime_that_hangs_is_left_alone_and_one_that_restarts_is_asked_again() {
    on_this_thread(async {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("cri.sock");
        let hanging = Runtime {
            labels: HashMap::new(),
            hangs: true,
        };
        let server = serve_cri(&socket, hanging);
        let settings = Settings {
            cri: vec![socket.clone()],
            ..nobody()
        };
        let told = Arc::new(Told::default());
        let sources = Sources::new(settings, Arc::clone(&told));
        let begun = Instant::now();
        assert!(matches!(
            sources.ask(&question("known")).await,
            Answer::Unasked
        ));
        assert!(begun.elapsed() >= PATIENCE);
        // Nobody waits for it a second time.
        let begun = Instant::now();
        assert!(matches!(
            sources.ask(&question("known")).await,
            Answer::Unasked
        ));
        assert!(begun.elapsed() < PATIENCE / 2);
        assert_eq!(told.failed.load(Ordering::Relaxed), 1);
        server.abort();
        let _ = server.await;
        std::fs::remove_file(&socket).expect("a socket");
        assert!(matches!(
            sources.ask(&question("known")).await,
            Answer::Unasked
        ));
        let healthy = Runtime {
            labels: HashMap::new(),
            hangs: false,
        };
        let _server = serve_cri(&socket, healthy);
        let begun = Instant::now();
        let facts = loop {
            if let Answer::Known(facts) = sources.ask(&question("known")).await {
                break facts;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "it is not asked again"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(facts.container_name, "web");
    });
}

/// Asks of containers that their runtime cannot describe, and of one that it can.
async fn nobody_suffers_for_another(sources: &Sources, told: &Told, refused: &[&str]) {
    for (count, id) in refused.iter().enumerate() {
        let answer = sources.ask(&question(id)).await;
        assert!(matches!(answer, Answer::Unasked), "{id}");
        let begun = Instant::now();
        let facts = known(sources.ask(&question("known")).await);
        assert!(facts.is_some_and(|facts| facts.container_name == "web"));
        assert!(begun.elapsed() < PATIENCE / 2, "{id}");
        assert_eq!(told.refused.load(Ordering::Relaxed), count as u64 + 1);
    }
    // What it says that is too long is an answer.
    let facts = known(sources.ask(&question("large")).await).expect("facts");
    assert!(facts.untold && facts.container_name.is_empty());
    let failed = told.failed.load(Ordering::Relaxed);
    assert_eq!(failed, told.refused.load(Ordering::Relaxed));
    assert!(told.troubles().is_empty());
}

#[test]
fn what_a_runtime_cannot_say_of_one_container_silences_it_for_nobody_else() {
    on_this_thread(async {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("cri.sock");
        let runtime = Runtime {
            labels: HashMap::new(),
            hangs: false,
        };
        let server = serve_cri(&socket, runtime);
        let settings = Settings {
            cri: vec![socket.clone()],
            ..nobody()
        };
        let told = Arc::new(Told::default());
        let sources = Sources::new(settings, Arc::clone(&told));
        nobody_suffers_for_another(&sources, &told, &["broken", "stuck"]).await;
        // One that answers of nobody is left alone, and it is said why.
        server.abort();
        let _ = server.await;
        assert!(matches!(
            sources.ask(&question("known")).await,
            Answer::Unasked
        ));
        assert!(sources.cri[0].is_resting().await);
        let troubles = told.troubles();
        assert!(
            troubles.contains_key(&socket.display().to_string()),
            "{troubles:?}"
        );
    });
}

#[test]
fn what_docker_cannot_say_of_one_container_silences_it_for_nobody_else() {
    on_this_thread(async {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut bytes = vec![0; 4096];
                let len = stream.read(&mut bytes).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&bytes[..len]).into_owned();
                let id = request.split('/').nth(2).unwrap_or_default();
                let (status, body) = match id {
                    "known" => (200, r#"{"Name":"/web"}"#.to_owned()),
                    "large" => (200, format!(r#"{{"Name":"/{}"}}"#, "x".repeat(2 << 20))),
                    "garbage" => (200, "<html>".into()),
                    "broken" => (500, "{}".into()),
                    _ => (404, "{}".into()),
                };
                let text = format!(
                    "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
        let settings = Settings {
            docker: vec![socket],
            ..nobody()
        };
        let told = Arc::new(Told::default());
        let sources = Sources::new(settings, Arc::clone(&told));
        nobody_suffers_for_another(&sources, &told, &["broken", "garbage"]).await;
    });
}

#[test]
fn docker_answers_in_json_and_podman_leaves_files() {
    on_this_thread(async {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut bytes = vec![0; 4096];
                let len = stream.read(&mut bytes).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&bytes[..len]).into_owned();
                let (status, body) = if request.starts_with("GET /containers/abc/json ") {
                    (
                        200,
                        r#"{"Id":"abc","Name":"/shop_web_1","Image":"sha256:77","Config":{"Image":"registry:5000/nginx","Labels":{"a":"1",
                           "com.amazonaws.ecs.cluster":"prod","com.amazonaws.ecs.container-name":"web","com.amazonaws.ecs.task-definition-family":"shop",
                           "com.amazonaws.ecs.task-arn":"arn:aws:ecs:eu-west-1:123456789012:task/prod/0123"}}}"#,
                    )
                } else if request.starts_with("GET /images/sha256:77/json ") {
                    (
                        200,
                        r#"{"Id":"sha256:77","RepoDigests":["nginx@sha256:a1","registry:5000/nginx@sha256:b2"]}"#,
                    )
                } else {
                    (404, "{}")
                };
                let text = format!(
                    "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
        let store = dir.path().join("overlay-containers");
        std::fs::create_dir(&store).expect("a folder");
        let metadata =
            r#"{\"image-name\":\"localhost/app:2\",\"image-id\":\"99\",\"name\":\"quiet\"}"#;
        let list = format!(r#"[{{"id":"def","names":["quiet"],"metadata":"{metadata}"}}]"#);
        std::fs::write(store.join("containers.json"), list).expect("a file");
        let images = dir.path().join("overlay-images");
        std::fs::create_dir(&images).expect("a folder");
        let list = r#"[{"id":"98","digest":"sha256:c0"},{"id":"99","digest":"sha256:c3"}]"#;
        std::fs::write(images.join("images.json"), list).expect("a file");
        let settings = Settings {
            docker: vec![socket],
            stores: vec![dir.path().to_owned()],
            ..nobody()
        };
        assert!(settings.present());
        let sources = Sources::new(settings, Arc::default());
        let web = known(sources.ask(&question("abc")).await).expect("facts");
        assert_eq!(
            (web.container_name.as_str(), web.source.as_str()),
            ("shop_web_1", "docker")
        );
        // The port of a registry is no tag.
        assert_eq!(
            (web.image.as_str(), web.image_tag.as_str()),
            ("registry:5000/nginx", "")
        );
        assert_eq!(web.container_labels[0], "a=1");
        // Of its registry, and not of another that has the same image.
        assert_eq!(web.image_digest, "sha256:b2");
        assert_eq!(web.image_id, "sha256:77");
        let task = [
            &web.ecs_cluster,
            &web.ecs_container,
            &web.ecs_family,
            &web.ecs_task_arn,
        ];
        let arn = "arn:aws:ecs:eu-west-1:123456789012:task/prod/0123";
        assert_eq!(task, ["prod", "web", "shop", arn]);
        let quiet = known(sources.ask(&question("def")).await).expect("facts");
        assert_eq!(
            (quiet.container_name.as_str(), quiet.image_tag.as_str()),
            ("quiet", "2")
        );
        assert_eq!(quiet.image_digest, "sha256:c3");
        assert_eq!(quiet.image_id, "sha256:99");
        // Its labels stand elsewhere: they are not known, which is not that there are none.
        assert!(quiet.container_labels.is_empty());
        assert_eq!(quiet.container_labels_flaws, u32::from(FLAW_LOST));
        assert!(matches!(
            sources.ask(&question("ghi")).await,
            Answer::Denied
        ));
    });
}

#[test]
fn the_pipeline_never_waits() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("docker.sock");
    // It is there, and nobody takes what is written to it.
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let settings = Settings {
        docker: vec![socket],
        ..nobody()
    };
    let mut runtimes = Runtimes::start(settings).expect("a thread");
    let begun = Instant::now();
    let mut asked = 0;
    for number in 0..3 * QUESTIONS {
        asked += usize::from(runtimes.ask(question(&number.to_string())).is_ok());
    }
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!((QUESTIONS..3 * QUESTIONS).contains(&asked), "{asked}");
    let dropped = runtimes.told().dropped.load(Ordering::Relaxed) as usize;
    assert_eq!(dropped, 3 * QUESTIONS - asked);
    let _ = runtimes.learned();
}

#[test]
fn who_is_away_for_long_is_not_waited_for_and_is_asked_when_it_is_back() {
    on_this_thread(async {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("cri.sock");
        // Nobody listens any more.
        drop(UnixListener::bind(&socket).expect("a socket"));
        let settings = Settings {
            cri: vec![socket.clone()],
            ..nobody()
        };
        let sources = Sources::new(settings, Arc::default());
        let unasked = async || matches!(sources.ask(&question("known")).await, Answer::Unasked);
        // It may be about to restart.
        assert!(unasked().await && unasked().await);
        let long_ago = Instant::now().checked_sub(AWAY_AFTER).expect("some time");
        *sources.cri[0].rest.lock().await = Rest {
            // Its rest is not over.
            until: Some(Instant::now() + REST_MAX),
            next: REST_MAX,
            away: Some(long_ago),
        };
        assert!(!unasked().await);
        std::fs::remove_file(&socket).expect("a socket");
        assert!(!unasked().await);
        let runtime = Runtime {
            labels: HashMap::new(),
            hangs: false,
        };
        let _server = serve_cri(&socket, runtime);
        assert!(known(sources.ask(&question("known")).await).is_some());
        assert!(sources.cri[0].rest.lock().await.away.is_none());
    });
}

#[test]
fn a_runtime_that_restarts_with_the_agent_is_waited_for() {
    on_this_thread(async {
        let dir = tempfile::tempdir().expect("a folder");
        let store = dir.path().join("overlay-containers");
        std::fs::create_dir(&store).expect("a folder");
        let socket = dir.path().join("cri.sock");
        let settings = Settings {
            cri: vec![socket.clone()],
            docker: vec![dir.path().join("docker.sock")],
            stores: vec![dir.path().to_owned()],
            ..nobody()
        };
        assert!(settings.present());
        let mut sources = Sources::new(settings, Arc::default());
        let of = |runtime: &str| Question {
            runtime: runtime.into(),
            ..question("known")
        };
        let unasked = async |sources: &Sources, runtime: &str| {
            matches!(sources.ask(&of(runtime)).await, Answer::Unasked)
        };
        for runtime in ["containerd", "cri-o", "docker"] {
            assert!(unasked(&sources, runtime).await, "{runtime}");
        }
        assert!(!unasked(&sources, "podman").await);
        sources.begun = Instant::now().checked_sub(AWAY_AFTER).expect("some time");
        assert!(!unasked(&sources, "cri-o").await);
    });
}
