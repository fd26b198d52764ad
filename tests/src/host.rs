//! The programs under test on this host: a turn on the kernel, a collector, an agent.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::ctl::Ctl;
use crate::process::Process;
use crate::programs;

/// How long a program may take until it serves: the agent attaches some dozen programs.
const READY: Duration = Duration::from_secs(60);
/// The same where the processor is emulated: the verifier alone needs a minute there.
const READY_EMULATED: Duration = Duration::from_secs(300);

fn ready() -> Duration {
    match programs::emulated() {
        true => READY_EMULATED,
        false => READY,
    }
}

/// The right to run an agent on this kernel; the next test waits until it is dropped.
#[derive(Debug)]
pub struct Turn {
    _lock: Flock<File>,
}

impl Turn {
    /// Waits for the turn. `None`, with a line that says why, where no agent can run.
    ///
    /// # Panics
    /// The lock cannot be taken.
    #[must_use]
    pub fn take(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED {test}: an agent needs root");
            return None;
        }
        if !Path::new("/sys/kernel/btf/vmlinux").exists() {
            println!("SKIPPED {test}: this kernel has no BTF (/sys/kernel/btf/vmlinux)");
            return None;
        }
        // A directory that is there anyway: the lock leaves no file behind.
        let folder = File::open("/run").expect("/run can be opened");
        let lock = Flock::lock(folder, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .expect("/run can be locked");
        Some(Self { _lock: lock })
    }
}

/// A directory for a test's files, removed when it is dropped.
///
/// # Panics
/// It cannot be made.
#[must_use]
pub fn scratch() -> TempDir {
    tempfile::Builder::new()
        .prefix("sumun-test.")
        .tempdir()
        .expect("a temporary directory")
}

/// A collector in a folder of its own.
#[derive(Debug)]
pub struct Collector {
    process: Process,
    dir: TempDir,
}

impl Collector {
    /// `init` and `run`; returns when it serves.
    ///
    /// # Errors
    /// It does not get ready; the message holds what it printed.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// As [`Self::start`], with lines of its configuration replaced: (what stands
    /// in it, what to write instead).
    ///
    /// # Errors
    /// As [`Self::start`], or a line that is not there.
    pub fn start_with(lines: &[(&str, &str)]) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("sumun-collector.")
            .tempdir()?;
        let output = Command::new(programs::path("sumun-collector"))
            .arg("init")
            .arg(dir.path())
            .args(["--listen", "127.0.0.1:0"])
            .output()?;
        ensure!(
            output.status.success(),
            "sumun-collector init: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let path = dir.path().join("collector.toml");
        let mut config = fs::read_to_string(&path)?;
        for (old, new) in lines {
            ensure!(config.contains(old), "'{old}' is not in: {config}");
            config = config.replace(old, new);
        }
        fs::write(&path, config)?;
        let process = Self::run(dir.path())?;
        Ok(Self { process, dir })
    }

    fn run(dir: &Path) -> Result<Process> {
        let addr = dir.join("collector.addr");
        if addr.exists() {
            fs::remove_file(&addr)?;
        }
        let mut process = Process::start(
            "sumun-collector",
            Command::new(programs::path("sumun-collector"))
                .arg("run")
                .arg("--config")
                .arg(dir.join("collector.toml")),
            &dir.join("collector.log"),
        )?;
        let begun = Instant::now();
        while !addr.exists() {
            ensure!(
                process.ended().is_none() && begun.elapsed() < ready(),
                "the collector is not ready; it said:\n{}",
                process.said()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(process)
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// IP:PORT.
    ///
    /// # Errors
    /// It has not said it.
    pub fn addr(&self) -> Result<String> {
        let path = self.dir.path().join("collector.addr");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// `sumunctl` as its first admin.
    #[must_use]
    pub fn ctl(&self) -> Ctl {
        Ctl::new(self.dir.path().join("admin.toml"))
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM; waits for the end.
    ///
    /// # Errors
    /// It had to be killed.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.process.stop()?;
        ensure!(
            status.success(),
            "the collector ended with {status}; it said:\n{}",
            self.process.said()
        );
        Ok(())
    }

    /// Runs it again on the same folder and port.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.process = Self::run(self.dir.path())?;
        Ok(())
    }
}

/// An agent on this kernel, with a folder of its own.
#[derive(Debug)]
pub struct Agent {
    process: Option<Process>,
    dir: TempDir,
    // Held longest: the next agent starts when this one has released the kernel.
    _turn: Turn,
}

impl Agent {
    /// Enrols it and writes its policies (file name without `.toml`, text), but does not run it.
    ///
    /// # Errors
    /// The enrolment fails.
    pub fn enroll(turn: Turn, collector: &Collector, policies: &[(&str, &str)]) -> Result<Self> {
        let this = Self::enroll_with(turn, collector, &["--no-policies"])?;
        for (name, text) in policies {
            this.policy(name, text)?;
        }
        Ok(this)
    }

    /// Enrols it as whoever says nothing else does: it has the starter policies.
    ///
    /// # Errors
    /// The enrolment fails.
    pub fn enroll_as_usual(turn: Turn, collector: &Collector) -> Result<Self> {
        Self::enroll_with(turn, collector, &[])
    }

    fn enroll_with(turn: Turn, collector: &Collector, options: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sumun-agent.").tempdir()?;
        let home = dir.path().join("agent");
        let output = Command::new(programs::path("sumun-agent"))
            .arg("enroll")
            .arg("--collector")
            .arg(collector.addr()?)
            .arg("--token-file")
            .arg(collector.dir().join("enroll.token"))
            .arg("--ca")
            .arg(collector.dir().join("ca/ca.pem"))
            .arg("--out")
            .arg(&home)
            .args(options)
            .output()?;
        ensure!(
            output.status.success(),
            "sumun-agent enroll: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        fs::create_dir_all(home.join("policies"))?;
        let this = Self {
            process: None,
            dir,
            _turn: turn,
        };
        // What an earlier test left that was killed itself.
        this.release()?;
        Ok(this)
    }

    /// Enrols, runs, and waits until the collector calls it online.
    ///
    /// # Errors
    /// It does not get ready; the message holds what it printed.
    pub fn start(turn: Turn, collector: &Collector, policies: &[(&str, &str)]) -> Result<Self> {
        let mut this = Self::enroll(turn, collector, policies)?;
        this.run()?;
        this.online(collector)?;
        Ok(this)
    }

    /// Writes a policy; a running agent reads it at the next [`Self::reload`].
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn policy(&self, name: &str, text: &str) -> Result<()> {
        fs::write(
            self.home().join("policies").join(format!("{name}.toml")),
            text,
        )?;
        Ok(())
    }

    /// Its folder: agent.toml, policies, state.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("agent")
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.home().join("agent.toml")
    }

    /// Its process.
    ///
    /// # Panics
    /// It was never run.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the agent was run")
    }

    /// Runs it, without waiting for anything.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&mut self) -> Result<()> {
        let process = Process::start(
            "sumun-agent",
            Command::new(programs::path("sumun-agent"))
                .arg("run")
                .arg("--config")
                .arg(self.config()),
            &self.dir.path().join("agent.log"),
        )?;
        self.process = Some(process);
        Ok(())
    }

    /// Waits until the collector calls it online.
    ///
    /// # Errors
    /// It does not get there; the message holds what it printed.
    pub fn online(&mut self, collector: &Collector) -> Result<()> {
        let ctl = collector.ctl();
        let id = self.id()?;
        let begun = Instant::now();
        let mut state = "unknown to the collector".to_owned();
        loop {
            if let Ok(agents) = ctl.agents()
                && let Some(agent) = agents.iter().find(|agent| agent["id"] == id.as_str())
            {
                if agent["state"] == "online" {
                    return Ok(());
                }
                state = agent.to_string();
            }
            let process = self.process();
            ensure!(
                process.ended().is_none() && begun.elapsed() < ready(),
                "the agent is not online ({state}); it said:\n{}",
                process.said()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its identity, from the certificate's name in the configuration folder.
    ///
    /// # Errors
    /// `sumun-agent check-config` does not say it.
    pub fn id(&self) -> Result<String> {
        let text = fs::read_to_string(self.config())?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("id = "))
            .context("agent.toml names no id")?;
        Ok(line.trim().trim_matches('"').to_owned())
    }

    /// SIGHUP: it reads its policies again.
    pub fn reload(&mut self) {
        self.process().signal(Signal::SIGHUP);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process().kill();
    }

    /// SIGTERM; waits for the end.
    ///
    /// # Errors
    /// It had to be killed, or ended badly.
    pub fn stop(&mut self) -> Result<()> {
        let process = self.process();
        let status = process.stop()?;
        ensure!(
            status.success(),
            "the agent ended with {status}; it said:\n{}",
            process.said()
        );
        Ok(())
    }

    /// `sumun-agent release`: no pin, no program is left.
    ///
    /// # Errors
    /// It fails.
    pub fn release(&self) -> Result<()> {
        let output = Command::new(programs::path("sumun-agent"))
            .args(["release", "--config"])
            .arg(self.config())
            .output()?;
        ensure!(
            output.status.success(),
            "sumun-agent release: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process = None;
        if let Err(error) = self.release() {
            eprintln!("{error:#}");
        }
    }
}
