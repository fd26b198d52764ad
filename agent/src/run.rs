//! `sumun-agent run`: the kernel side, the reading thread and the connection, wired together.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sumun_proto::Host;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::config::Config;
use crate::enrich::process::Limits;
use crate::forward;
use crate::kernel::{Kernel, KernelConfig, heap, resident};
use crate::pipeline::{Control, Pipeline, Setup};
use crate::privacy::Redactor;
use crate::spool::{self, Spool};
use crate::status::{self, Phase, Run, Status};

/// Bytes that the process tree may take.
const TREE_BYTES: usize = 12 * 1024 * 1024;
/// How long a stopping agent goes on sending what is spooled.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting, or that the reading thread ended by itself.
pub fn run(config: Config) -> anyhow::Result<()> {
    heap::bound();
    status::start_log(config.log_format, &config.log_level);
    let kernel = Kernel::load(&KernelConfig {
        life_bytes: config.rings.life,
        bulk_bytes: config.rings.bulk,
        ..KernelConfig::default()
    })?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.state)
        .with_context(|| format!("cannot make the state directory {}", config.state.display()))?;
    let (spool, found) = Spool::open(&spool::Settings {
        alert_bytes: config.spool.alert,
        life_bytes: config.spool.life,
        bulk_bytes: config.spool.bulk,
        ..spool::Settings::new(config.state.join("spool"))
    })?;
    let host = Host {
        id: config.agent_id.clone(),
        name: host_name(),
    };
    let boot_id = boot_id()?;
    let status = Arc::new(Status::new(Run {
        agent_id: config.agent_id.clone(),
        tenant: config.tenant.clone(),
        host_name: host.name.clone(),
        kernel: kernel_release(),
        boot_id,
        collector: config.collector.address.clone(),
    }));
    let setup = Setup {
        kernel,
        spool: spool.clone(),
        found,
        status: Arc::clone(&status),
        state: config.state.clone(),
        policies: config.policies.clone(),
        host,
        boot_id,
        tree: Limits { bytes: TREE_BYTES },
        hold: config.hold,
        fanotify: config.fanotify,
        isolate: config.isolate.clone(),
        integrity: config.integrity,
        redactor: Redactor::new(config.privacy.clone()),
        runtimes: config.identity.clone(),
        system: crate::enrich::host::system(&kernel_release()),
    };
    // One thread: what is sent is a few megabytes a second at most, and with more of them most of the time
    // would go into waking each other.
    let runtime = tokio::runtime::Builder::new_current_thread()
        // Each thread costs memory; the spool's file operations are short.
        .max_blocking_threads(4)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(config, setup, spool, status))
}

async fn serve(
    config: Config,
    setup: Setup,
    spool: Spool,
    status: Arc<Status>,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;

    let socket = status::serve_socket(&config.run, Arc::clone(&status))?;
    tokio::spawn(socket);
    if let Some(address) = config.metrics {
        match status::serve_metrics(address, Arc::clone(&status)).await {
            Ok((bound, server)) => {
                status.update(|parts| parts.metrics = bound.to_string());
                tokio::spawn(server);
            }
            // Metrics are no reason not to protect the host.
            Err(error) => tracing::error!(%address, %error, "metrics are not served"),
        }
    }
    tokio::spawn(status::watchdog(Arc::clone(&status)));

    let control = Arc::new(Control::default());
    let socket = status::serve_commands(&config.run, Arc::clone(&status), Arc::clone(&control))?;
    tokio::spawn(socket);
    let (started, mut ended, reader) = read(setup, Arc::clone(&control))?;
    started
        .await
        .context("the reading thread ended while it started")??;
    let (orders, commands) = watch::channel(forward::Command::Run);
    let sender = tokio::spawn(forward::run(
        config.collector.clone(),
        spool,
        Arc::clone(&status),
        commands,
    ));
    status.update(|parts| parts.phase = Phase::Running);
    status::ready();
    if let Err(error) = resident::give_back() {
        tracing::debug!(%error, "what only the start needed stays in memory");
    }
    tracing::info!("collecting");

    loop {
        tokio::select! {
            _ = hangup.recv() => {
                status::reloading();
                // The reading thread says that it is over.
                control.reload.store(true, Ordering::Release);
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = &mut ended => anyhow::bail!("the reading thread has ended by itself; see the log"),
        }
    }
    status::stopping();
    status.update(|parts| parts.phase = Phase::Stopping);
    tracing::info!("stopping");
    control.stop.store(true, Ordering::Release);
    tokio::task::spawn_blocking(move || reader.join())
        .await
        .context("cannot wait for the reading thread")?
        .map_err(|_| {
            anyhow::anyhow!(
                "the reading thread panicked; what it had not spooled is still in the rings"
            )
        })?;
    let deadline = Instant::now() + DRAIN;
    // Only fails when the sender is gone already.
    let _ = orders.send(forward::Command::Stop { deadline });
    let patience = DRAIN + Duration::from_secs(1);
    if tokio::time::timeout(patience, sender).await.is_err() {
        tracing::warn!("the collector did not take everything; the rest stays in the spool");
    }
    tracing::info!("stopped; programs and rings stay in the kernel for the next start");
    Ok(())
}

/// A message about the start, one about the end, and the thread itself.
type Reader = (
    oneshot::Receiver<anyhow::Result<()>>,
    oneshot::Receiver<()>,
    thread::JoinHandle<()>,
);

/// Starts the reading thread. It owns everything that a record passes through.
fn read(setup: Setup, control: Arc<Control>) -> anyhow::Result<Reader> {
    let (tell_start, started) = oneshot::channel();
    let (tell_end, ended) = oneshot::channel();
    let thread = thread::Builder::new()
        .name("reader".into())
        .spawn(move || {
            // Nobody listens any more only when the agent is ending anyway.
            let _tell_end = tell_end;
            match Pipeline::start(setup) {
                Ok(pipeline) => {
                    let _ = tell_start.send(Ok(()));
                    pipeline.run(&control);
                }
                Err(error) => {
                    let _ = tell_start.send(Err(error));
                }
            }
        })
        .context("cannot start the reading thread")?;
    Ok((started, ended, thread))
}

/// The host's name as the kernel has it, or as it is given to a pod, which has another: `SUMUN_HOST_NAME`.
#[must_use]
pub fn host_name() -> String {
    if let Ok(name) = std::env::var("SUMUN_HOST_NAME")
        && !name.is_empty()
    {
        return name;
    }
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn boot_id() -> anyhow::Result<[u8; 16]> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))?;
    let mut id = [0; 16];
    hex::decode_to_slice(text.trim().replace('-', ""), &mut id)
        .with_context(|| format!("{PATH} holds no boot id"))?;
    Ok(id)
}
