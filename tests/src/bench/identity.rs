//! What it takes to know whose everything is: the agent's memory for a thousand containers, and its time for the events in
//! one of them beside those outside.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sumun_proto::cri::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use sumun_proto::cri::{
    Container, ContainerMetadata, ContainerStatus, ContainerStatusRequest, ContainerStatusResponse,
    ImageSpec, ListContainersRequest, ListContainersResponse, PodSandboxMetadata, PodSandboxStatus,
    PodSandboxStatusRequest, PodSandboxStatusResponse,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::rate;
use super::report::{Report, Sample};
use super::work::{BATCHES, Work, measured, per, per_piece};
use crate::container::{Cgroup, hierarchy, id, pod_uid};
use crate::host::{Agent, Collector};

/// Containers that are there at once, each with a pod of its own.
const CONTAINERS: u64 = 1_000;
/// The number of the first.
const FIRST: u64 = 900_000;
/// Matched opens of a batch.
const OPENS: u32 = 1_500;
/// After the work, as long as the agent may still have to do with it.
const SETTLE: Duration = Duration::from_millis(600);
/// How long the agent may take until it has asked about all containers.
const LIMIT: Duration = Duration::from_secs(120);

/// A runtime that knows every container, as Kubernetes labels them; counts the pods it has told of.
struct Runtime {
    told: Arc<AtomicU64>,
    /// The pod of each container, by the container's id.
    pods: HashMap<String, String>,
}

impl Runtime {
    fn new(told: Arc<AtomicU64>) -> Self {
        let pods = (0..CONTAINERS).map(|number| (id(FIRST + number), pod_uid(FIRST + number)));
        Self {
            told,
            pods: pods.collect(),
        }
    }

    fn pod(&self, container: &str) -> String {
        self.pods.get(container).cloned().unwrap_or_default()
    }
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let id = request.into_inner().filter.unwrap_or_default().id;
        let pod_sandbox_id = format!("pod-{id}");
        let containers = vec![Container { id, pod_sandbox_id }];
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Result<Response<ContainerStatusResponse>, Status> {
        let id = request.into_inner().container_id;
        let labels = [
            ("io.kubernetes.container.name", "web".to_owned()),
            ("io.kubernetes.pod.name", format!("cart-{}", &id[..10])),
            ("io.kubernetes.pod.namespace", "shop".to_owned()),
            ("io.kubernetes.pod.uid", self.pod(&id)),
        ];
        let status = ContainerStatus {
            metadata: Some(ContainerMetadata {
                name: "web".into(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: "registry.example.com/shop/cart:1.25.3".into(),
            }),
            image_ref: format!("registry.example.com/shop/cart@sha256:{id}"),
            labels: labels.map(|(key, value)| (key.into(), value)).into(),
            id,
        };
        let status = Some(status);
        Ok(Response::new(ContainerStatusResponse { status }))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        self.told.fetch_add(1, Ordering::Relaxed);
        let id = request.into_inner().pod_sandbox_id;
        let labels = [
            ("app.kubernetes.io/name", "cart"),
            ("app.kubernetes.io/instance", "cart-production"),
            ("app.kubernetes.io/version", "1.25.3"),
            ("app.kubernetes.io/component", "frontend"),
            ("app.kubernetes.io/part-of", "shop"),
            ("pod-template-hash", "7d4b9c6f5d"),
        ];
        let status = PodSandboxStatus {
            metadata: Some(PodSandboxMetadata {
                name: format!("cart-{}", &id[..14]),
                uid: self.pod(id.trim_start_matches("pod-")),
                namespace: "shop".into(),
                attempt: 0,
            }),
            labels: HashMap::from(labels.map(|(key, value)| (key.into(), value.into()))),
            id,
        };
        let status = Some(status);
        Ok(Response::new(PodSandboxStatusResponse { status }))
    }
}

/// The cgroup that this process is in, of those that name a workload.
fn own_cgroup() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = |wanted: fn(&str) -> bool| {
        let line = text.lines().find(|line| {
            let names = line.split(':').nth(1).unwrap_or_default();
            names.split(',').any(wanted)
        })?;
        line.splitn(3, ':').nth(2)
    };
    let path = path(|name| name == "pids").or_else(|| path(str::is_empty));
    let path = path.context("/proc/self/cgroup names no cgroup")?;
    Ok(hierarchy().join(path.trim_start_matches('/')))
}

fn join(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
        .with_context(|| format!("join {}", cgroup.display()))
}

/// Nanoseconds of a matched open: of the work, and of the agent.
fn opens(work: &Work, agent: u32) -> Result<(f64, f64)> {
    std::thread::sleep(SETTLE);
    let (from, begun) = (rate::cpu_ns(agent)?, Instant::now());
    std::thread::sleep(SETTLE);
    let idle = per(rate::cpu_ns(agent)? - from, 1) / begun.elapsed().as_secs_f64();
    let (from, begun) = (rate::cpu_ns(agent)?, Instant::now());
    let each = measured(|| per_piece(OPENS, || work.open_matched()))?;
    std::thread::sleep(SETTLE);
    let own = per(rate::cpu_ns(agent)? - from, 1) - idle * begun.elapsed().as_secs_f64();
    Ok((each, own / f64::from(OPENS * BATCHES)))
}

/// Runs it and reports. The agent is stopped, and has its own configuration back afterwards.
///
/// # Errors
/// The agent does not start or stop, or no cgroups can be made.
pub fn run(
    rounds: usize,
    work: &Work,
    agent: &mut Agent,
    collector: &Collector,
    report: &mut Report,
) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("cri.sock");
    let told = Arc::new(AtomicU64::new(0));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let listener = {
        let _guard = runtime.enter();
        UnixListener::bind(&socket)?
    };
    runtime.spawn(
        tonic::transport::Server::builder()
            .add_service(RuntimeServiceServer::new(Runtime::new(Arc::clone(&told))))
            .serve_with_incoming(UnixListenerStream::new(listener)),
    );
    let config = fs::read_to_string(agent.config())?;
    let with = format!(
        "{config}\n[identity]\ncloud = \"off\"\ndocker = []\npodman = []\nstorage = []\ncri = [{:?}]\n",
        socket.display().to_string()
    );
    fs::write(agent.config(), with)?;
    agent.run()?;
    agent.online(collector)?;
    let done = with_containers(rounds, work, agent, &told, report);
    agent.stop()?;
    agent.release()?;
    fs::write(agent.config(), config)?;
    done
}

fn with_containers(
    rounds: usize,
    work: &Work,
    agent: &mut Agent,
    told: &AtomicU64,
    report: &mut Report,
) -> Result<()> {
    let pid = agent.process().pid();
    // The first events take what later ones use again.
    opens(work, pid)?;
    let before = rate::pss_kib(pid)?;
    let begun = Instant::now();
    let containers: Vec<Cgroup> = (0..CONTAINERS)
        .map(|number| {
            let (pod, id) = (pod_uid(FIRST + number), id(FIRST + number));
            Cgroup::make(&format!("/kubepods/burstable/pod{pod}/{id}"))
        })
        .collect::<Result<_>>()?;
    while told.load(Ordering::Relaxed) < CONTAINERS {
        ensure!(
            begun.elapsed() < LIMIT,
            "{} of {CONTAINERS} containers were asked about",
            told.load(Ordering::Relaxed)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let asked = begun.elapsed();
    std::thread::sleep(Duration::from_secs(2));
    let after = rate::pss_kib(pid)?;
    let home = own_cgroup()?;
    let mut rows = Vec::new();
    for round in 0..rounds {
        let container = containers.first().context("a container")?.path();
        let within = || {
            join(container)?;
            let inside = opens(work, pid);
            join(&home)?;
            inside
        };
        // By turns first: what grows with time is in both alike.
        let (outside, inside) = if round % 2 == 0 {
            (opens(work, pid)?, within()?)
        } else {
            let inside = within()?;
            (opens(work, pid)?, inside)
        };
        println!(
            "  round {:>2}: a matched open outside {:.0} + {:.0} ns, in a container {:.0} + {:.0} ns (work + agent)",
            round + 1,
            outside.0,
            outside.1,
            inside.0,
            inside.1
        );
        rows.push((outside, inside));
    }
    report.section(&format!("{CONTAINERS} containers, each known in full"));
    let grown = after.saturating_sub(before);
    report.figure(
        "identity_pss_kib",
        "the agent's PSS before, with them, and the difference, KiB",
        format!("{before}, {after}, {grown}"),
        json!({"before": before, "after": after, "grown": grown}),
        "goal: 8192 or less",
    );
    report.figure(
        "identity_asked_ms",
        "until the runtime had told of all of them, ms",
        format!("{:.0}", asked.as_secs_f64() * 1e3),
        json!(asked.as_millis()),
        "",
    );
    type Row = ((f64, f64), (f64, f64));
    type Part = fn(&Row) -> (f64, f64);
    let kinds: [(&str, &str, Part); 2] = [
        ("work", "the work", |row| (row.0.0, row.1.0)),
        ("agent", "the agent itself", |row| (row.0.1, row.1.1)),
    ];
    for (key, what, get) in kinds {
        let sample = |value: &dyn Fn(f64, f64) -> f64| {
            let values = rows.iter().map(|row| {
                let (outside, inside) = get(row);
                value(outside, inside)
            });
            Sample::of(values.collect())
        };
        let figures = [
            ("outside", "outside", sample(&|outside, _| outside)),
            (
                "added",
                "more in a container",
                sample(&|outside, inside| inside - outside),
            ),
        ];
        for (name, words, sample) in figures {
            report.figure(
                &format!("identity_{key}_{name}_ns"),
                &format!("a matched open+close, {what}, {words}, ns"),
                sample.to_string(),
                sample.json(),
                "",
            );
        }
    }
    let shares = rows.iter().map(|(outside, inside)| {
        let whole = |(work, agent): &(f64, f64)| work + agent;
        (whole(inside) / whole(outside) - 1.0) * 100.0
    });
    let shares = Sample::of(shares.collect());
    report.figure(
        "identity_added_percent",
        "a matched open+close, work and agent, more in a container, %",
        format!(
            "{:.1} ({:.1} to {:.1})",
            shares.median, shares.low, shares.high
        ),
        shares.json(),
        "goal: 2 % or less",
    );
    Ok(())
}
