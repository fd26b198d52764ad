//! `sumun-collector`: see `--help`.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory as _, Parser, Subcommand};
use sd_notify::NotifyState;
use sumun_collector::config::Config;
use sumun_collector::ingest::Pulse;
use sumun_collector::tenant::ca::CA_CERTIFICATE;
use sumun_collector::{init, run};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::info;

/// Takes what agents deliver, keeps it, answers admins
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make configuration, CA, tenant `default` and the first tokens
    Init {
        /// Directory for all of it; in /etc/sumun, the state is put under /var/lib/sumun
        dir: PathBuf,
        /// Address and port; port 0 picks a free one now and writes it down
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// More names for the server certificate: host names or addresses
        #[arg(long, num_args = 1..)]
        name: Vec<String>,
        /// Do nothing, and succeed, where it was done before; what was interrupted is made anew, with this option or without
        #[arg(long)]
        once: bool,
    },
    /// Print a file that `init` made, where there is no other program to read it with
    Show {
        /// Which
        file: Shown,
        /// Directory that `init` made
        #[arg(long, default_value = init::SYSTEM)]
        dir: PathBuf,
    },
    /// Run until SIGTERM or SIGINT
    Run {
        /// The configuration that `init` wrote
        #[arg(long, default_value = "/etc/sumun/collector.toml")]
        config: PathBuf,
    },
    /// Check a configuration and say nothing if it is good
    CheckConfig {
        /// The configuration
        #[arg(long, default_value = "/etc/sumun/collector.toml")]
        config: PathBuf,
    },
    /// Write man pages and shell completions: for those who make packages
    #[command(hide = true)]
    Pages {
        /// Where to
        folder: PathBuf,
    },
}

/// What `show` prints.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Shown {
    /// The authority's certificate, ca.pem, which is no secret
    Ca,
    /// The first token for enrolling agents, a secret
    Token,
    /// The first admin's context for sumunctl, a secret; it wants ca.pem beside it
    Admin,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Command::Pages { folder } = &arguments.command {
        return match sumun_pages::write(Arguments::command(), "8", folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!(
                    "sumun-collector: cannot write to {}: {error}",
                    folder.display()
                );
                ExitCode::FAILURE
            }
        };
    }
    logging();
    match execute(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line with every cause; a backtrace would help nobody here.
            eprintln!("sumun-collector: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let result = runtime.block_on(async {
        match command {
            Command::Init { dir, once, .. } if once && init::is_done(&dir) => {
                init::finish(&dir)?;
                println!("{} is initialised already", dir.display());
                Ok(())
            }
            Command::Init {
                dir, listen, name, ..
            } => {
                let made = init::init(&dir, listen, &name).await?;
                let file = |name| dir.join(name).display().to_string();
                println!(
                    "initialised {}, listening on {}\n\
                     start:  sumun-collector run --config {}\n\
                     enrol:  {} (100 uses, 24 hours)\n\
                     ask:    sumunctl --config {} agents list",
                    dir.display(),
                    made.address,
                    file(init::CONFIG),
                    file(init::ENROLL_TOKEN),
                    file(init::ADMIN),
                );
                Ok(())
            }
            Command::Show { file, dir } => show(file, &dir),
            Command::Run { config } => serve(Config::load(&config)?).await,
            Command::CheckConfig { config } => Ok(Config::load(&config).map(|_| ())?),
            // Done before the runtime was made.
            Command::Pages { .. } => Ok(()),
        }
    });
    // What is stuck in a system call must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn show(file: Shown, dir: &Path) -> anyhow::Result<()> {
    let path = match file {
        Shown::Ca => dir.join("ca").join(CA_CERTIFICATE),
        Shown::Token => dir.join(init::ENROLL_TOKEN),
        Shown::Admin => dir.join(init::ADMIN),
    };
    let text = match file {
        Shown::Admin => init::portable_context(dir),
        Shown::Ca | Shown::Token => std::fs::read_to_string(&path),
    };
    print!(
        "{}",
        text.with_context(|| format!("failed to read {}", path.display()))?
    );
    Ok(())
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (pulse, told) = watch::channel(None);
    let watchdog = tokio::spawn(watchdog(told));
    let running = tokio::select! {
        running = run::start(config) => running?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    pulse.send_replace(Some(running.pulse()));
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    tokio::select! {
        _ = terminate.recv() => info!("stopping: SIGTERM"),
        _ = interrupt.recv() => info!("stopping: SIGINT"),
    }
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    pulse.send_replace(None);
    running.stop().await;
    watchdog.abort();
    Ok(())
}

/// Tells systemd, several times in the time it allows, that the runtime turns and, from its start to its stop, that the writer of the log goes
/// on: a collector that takes what agents send and writes none of it is started again.
async fn watchdog(pulse: watch::Receiver<Option<Pulse>>) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    // Often, so that nearly all of that time is the writer's.
    let mut ticks = tokio::time::interval(limit / 24);
    let mut before = None;
    loop {
        ticks.tick().await;
        let pulse = pulse.borrow().clone();
        if pulse.is_none_or(|pulse| pulse.goes_on(&mut before)) {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        }
    }
}

/// For people on a terminal, JSON otherwise; `SUMUN_LOG` sets the level.
fn logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SUMUN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match std::io::stderr().is_terminal() {
        true => builder.init(),
        false => builder.json().flatten_event(true).init(),
    }
}
