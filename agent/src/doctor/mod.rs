//! `sumun-agent doctor`: what is missing on this host, and how to mend it. Everything is found by trying; nothing
//! is changed, and a running agent is not disturbed.

mod identity;
pub mod report;

use std::fmt;
use std::fs;
use std::net::TcpStream;
use std::net::ToSocketAddrs as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use serde::Serialize;

use crate::config::Config;
use crate::forward::connect::{self, chain};
use crate::forward::identity::Identity;
use crate::kernel::{self, ProbeReport};
use crate::pipeline::policies;
use crate::status::{self, Peers};

/// How long a collector may take to accept a connection.
const REACH: Duration = Duration::from_secs(5);
/// Left on the disk at least, beside what the spool may still take.
const SPARE: u64 = 64 << 20;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Good,
    /// The agent runs, but sees or does less.
    Lacking,
    /// The agent does not run, or delivers nothing.
    Broken,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What.
    pub about: &'static str,
    /// How bad it is.
    pub grade: Grade,
    /// What was found.
    pub found: String,
    /// How to mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// Everything that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// In the order in which an agent needs them.
    pub findings: Vec<Finding>,
}

impl Diagnosis {
    /// False if something is broken.
    #[must_use]
    pub fn works(&self) -> bool {
        self.findings
            .iter()
            .all(|finding| finding.grade != Grade::Broken)
    }

    fn good(&mut self, about: &'static str, found: impl Into<String>) {
        self.add(about, Grade::Good, found.into(), None);
    }

    fn lacking(&mut self, about: &'static str, found: impl Into<String>, mend: impl Into<String>) {
        self.add(about, Grade::Lacking, found.into(), Some(mend.into()));
    }

    fn broken(&mut self, about: &'static str, found: impl Into<String>, mend: impl Into<String>) {
        self.add(about, Grade::Broken, found.into(), Some(mend.into()));
    }

    fn add(&mut self, about: &'static str, grade: Grade, found: String, mend: Option<String>) {
        self.findings.push(Finding {
            about,
            grade,
            found,
            mend,
        });
    }
}

impl fmt::Display for Diagnosis {
    /// One line a thing, for people, and one for how to mend it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let grade = match finding.grade {
                Grade::Good => "good",
                Grade::Lacking => "lacking",
                Grade::Broken => "BROKEN",
            };
            writeln!(f, "{grade:<8} {:<14} {}", finding.about, finding.found)?;
            if let Some(mend) = &finding.mend {
                writeln!(f, "{:<8} {:<14} mend: {mend}", "", "")?;
            }
        }
        Ok(())
    }
}

/// Looks at everything.
#[must_use]
pub fn diagnose(path: &Path) -> Diagnosis {
    let mut told = Diagnosis {
        findings: Vec::new(),
    };
    let probe = kernel::probe();
    of_kernel(&mut told, &probe);
    bpffs(&mut told);
    memlock(&mut told, &probe);
    clock(&mut told);
    match Config::load(path) {
        Ok(config) => {
            told.good("configuration", config.path.display().to_string());
            of_config(&mut told, &config);
        }
        Err(error) => told.broken(
            "configuration",
            chain(&error),
            "`sumun-agent enroll` writes one; `sumun-agent check-config` checks what was changed",
        ),
    }
    told
}

fn of_kernel(told: &mut Diagnosis, probe: &ProbeReport) {
    if nix::unistd::geteuid().is_root() {
        told.good("user", "root");
    } else {
        told.broken("user", "not root", "run this, and the agent, as root");
    }
    if probe.missing_capabilities.is_empty() {
        told.good("capabilities", "all that are needed");
    } else {
        told.broken(
            "capabilities",
            format!("missing {}", probe.missing_capabilities.join(", ")),
            "add them to CapabilityBoundingSet= of the unit, or to the container's capabilities",
        );
    }
    match &probe.btf.reason {
        None => told.good("kernel", format!("{}, with type information", probe.kernel)),
        Some(reason) => told.broken(
            "kernel",
            format!("{}: {reason}", probe.kernel),
            "a kernel from 5.10 on with CONFIG_DEBUG_INFO_BTF=y, as distributions build it; in a container, mount /sys",
        ),
    }
    if probe
        .lockdown
        .as_deref()
        .is_some_and(|modes| modes.contains("[confidentiality]"))
    {
        told.broken(
            "lockdown",
            "confidentiality: no program may read the kernel's memory",
            "boot with lockdown=integrity, or without lockdown=",
        );
    } else {
        told.good(
            "lockdown",
            probe
                .lockdown
                .clone()
                .unwrap_or_else(|| "not known: securityfs is not mounted".into()),
        );
    }
    match &probe.object.reason {
        None => told.good("programs", "are accepted by the kernel"),
        Some(reason) => told.broken(
            "programs",
            format!("are refused: {reason}"),
            "what stands above comes first; else `sumun-agent bugreport` and tell the authors",
        ),
    }
    let refused: Vec<String> = probe
        .hooks
        .iter()
        .filter(|hook| !hook.available)
        .map(|hook| {
            format!(
                "{} ({})",
                hook.hook,
                hook.reason.as_deref().unwrap_or("not told")
            )
        })
        .collect();
    if refused.is_empty() {
        told.good("hooks", format!("all {}", probe.hooks.len()));
    } else if refused.len() == probe.hooks.len() {
        told.broken(
            "hooks",
            format!("none: {}", refused[0]),
            "what stands above comes first",
        );
    } else {
        told.lacking(
            "hooks",
            format!("not seen here: {}", refused.join("; ")),
            "a newer kernel; docs/kernel-support.md says what each needs",
        );
    }
    match &probe.fanotify.reason {
        None => told.good("deny", "opens and executions can be held (fanotify)"),
        Some(reason) => told.lacking(
            "deny",
            format!("rules that deny are alerts only: {reason}"),
            "CAP_SYS_ADMIN, and a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y",
        ),
    }
    match (&probe.fentry.reason, &probe.changes.reason) {
        (None, _) => told.good(
            "names",
            "what is renamed and removed is seen at decision points",
        ),
        (_, None) => told.good("names", "what is renamed and removed is told by fanotify"),
        (Some(fentry), Some(reason)) => told.lacking(
            "names",
            format!(
                "renames and removals have the caller's word: fentry: {fentry}; fanotify: {reason}"
            ),
            "CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH, in a pod hostPID, and Linux 5.17 or newer",
        ),
    }
    match &probe.lsm.reason {
        None => told.good("lsm", "BPF programs can be security modules"),
        Some(reason) => told.lacking(
            "lsm",
            format!("{reason}: what happens is seen at system calls, not at decision points"),
            match &probe.security_modules {
                Some(modules) if !modules.split(',').any(|module| module == "bpf") => {
                    format!("boot with lsm={modules},bpf")
                }
                _ => "a kernel with CONFIG_BPF_LSM=y that lets root load such programs".to_owned(),
            },
        ),
    }
}

fn bpffs(told: &mut Diagnosis) {
    let place = Path::new("/sys/fs/bpf");
    match statfs(place) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => told.good("bpffs", "mounted at /sys/fs/bpf"),
        Ok(_) => told.lacking(
            "bpffs",
            "not mounted: the agent mounts it itself if it may",
            "mount -t bpf bpf /sys/fs/bpf; in a container, mount the host's, or what was pinned goes with the container",
        ),
        Err(errno) => told.broken(
            "bpffs",
            format!("/sys/fs/bpf: {errno}"),
            "mount -t bpf bpf /sys/fs/bpf; in a container, mount the host's",
        ),
    }
}

fn memlock(told: &mut Diagnosis, probe: &ProbeReport) {
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    if limit == nix::libc::RLIM_INFINITY {
        told.good("memlock", "unlimited");
    } else if probe.object.available {
        // From 5.11 on maps are accounted to the cgroup.
        told.good(
            "memlock",
            format!("{limit} bytes, which this kernel does not ask for"),
        );
    } else {
        told.lacking(
            "memlock",
            format!("{limit} bytes: kernels before 5.11 account maps to it"),
            "LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`",
        );
    }
}

/// Nobody can say that a clock is right; somebody should be setting it.
fn clock(told: &mut Diagnosis) {
    const SET_BY: [(&str, &str); 4] = [
        ("/run/systemd/timesync/synchronized", "systemd-timesyncd"),
        ("/run/chrony/chronyd.pid", "chrony"),
        ("/run/chrony/chronyd.sock", "chrony"),
        ("/run/ntpd.pid", "ntpd"),
    ];
    let now = time::OffsetDateTime::from(SystemTime::now());
    match SET_BY.iter().find(|(path, _)| Path::new(path).exists()) {
        Some((_, who)) => told.good("clock", format!("{now}, set by {who}")),
        None => told.lacking(
            "clock",
            format!("{now}; no time service is known to set it"),
            "install chrony or systemd-timesyncd; certificates fail, and events stand at wrong times, with a wrong clock",
        ),
    }
}

fn of_config(told: &mut Diagnosis, config: &Config) {
    match policies::load(&config.policies, &policies::Loaded::default()) {
        Ok(loaded) if loaded.refused().is_empty() => {
            told.good(
                "policies",
                format!(
                    "{} in {}",
                    loaded.report(&[], &Default::default()).policies.len(),
                    config.policies.display()
                ),
            );
        }
        Ok(loaded) => {
            let faults: Vec<String> = loaded
                .refused()
                .iter()
                .map(|refused| refused.error.to_string())
                .collect();
            told.lacking(
                "policies",
                faults.join("; "),
                "mend the file, then systemctl reload sumun-agent",
            );
        }
        Err(error) => told.broken(
            "policies",
            chain(&error),
            "the folder has to be there; an empty one will do",
        ),
    }
    identity::look(told, &config.identity);
    disk(told, config);
    if certificate(told, config) {
        collector(told, config);
    }
    agent(told, config);
}

fn disk(told: &mut Diagnosis, config: &Config) {
    let place = nearest(&config.state);
    let quota = config.spool.alert + config.spool.life + config.spool.bulk;
    let taken = size_of(&config.state.join("spool"));
    match statvfs(&place) {
        Ok(found) => {
            let free = found.blocks_available() * found.fragment_size();
            let wanted = quota.saturating_sub(taken);
            let text = format!("{} MiB free at {}", free >> 20, place.display());
            if free < wanted + SPARE {
                told.lacking(
                    "disk",
                    format!(
                        "{text}; the spool may still take {} MiB while the collector is away",
                        wanted >> 20
                    ),
                    "make room, or set [spool] alert, life and bulk lower",
                );
            } else {
                told.good("disk", text);
            }
        }
        Err(errno) => told.broken(
            "disk",
            format!("{}: {errno}", place.display()),
            "the state's folder has to be there and writable",
        ),
    }
}

/// The folder, or the nearest above it that is there.
fn nearest(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"))
        .to_owned()
}

fn size_of(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .filter_map(|entry| {
            let meta = entry.metadata().ok()?;
            // Two levels: lanes, and their segments.
            Some(if meta.is_dir() {
                size_of(&entry.path())
            } else {
                meta.len()
            })
        })
        .sum()
}

fn certificate(told: &mut Diagnosis, config: &Config) -> bool {
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    match Identity::load(&config.collector) {
        Ok(identity) => match identity.holder.fault_at(now) {
            None => {
                let hours = (identity.holder.not_after - now) / 3600;
                told.good(
                    "certificate",
                    format!("agent {}, {hours} hours left", identity.holder.agent_id),
                );
                true
            }
            Some(fault) => {
                told.broken(
                    "certificate",
                    fault,
                    "set the clock, or enrol again with `sumun-agent enroll --force`",
                );
                false
            }
        },
        Err(error) => {
            told.broken(
                "certificate",
                chain(&error),
                "enrol again with `sumun-agent enroll --force`",
            );
            false
        }
    }
}

fn collector(told: &mut Diagnosis, config: &Config) {
    let address = &config.collector.address;
    if let Err(error) = reach(address) {
        return told.broken(
            "collector",
            format!("{address} is not reached: {error}"),
            "is it running, is the address right, is a firewall between? Until then events are kept in the spool",
        );
    }
    let connected = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())
        .and_then(|runtime| {
            let tls = Identity::load(&config.collector)
                .map_err(|error| chain(&error))?
                .tls;
            let (name, peers) = (&config.collector.name, Peers::default());
            let connecting = connect::connect(address, name, tls, &peers);
            runtime.block_on(connecting).map_err(|error| chain(&error))
        });
    match connected {
        Ok(_) => told.good("collector", format!("{address} answers, and is who it should be")),
        Err(error) => told.broken(
            "collector",
            error,
            "its certificate has to name this address and be of the CA in agent.toml: `names` in collector.toml, or enrol again",
        ),
    }
}

fn reach(address: &str) -> Result<(), String> {
    let mut last = "the name has no address".to_owned();
    for socket in address
        .to_socket_addrs()
        .map_err(|error| error.to_string())?
    {
        match TcpStream::connect_timeout(&socket, REACH) {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

fn agent(told: &mut Diagnosis, config: &Config) {
    match status::ask(&config.run) {
        Ok(answer) => {
            let state = answer["state"].as_str().unwrap_or("not told").to_owned();
            told.good("agent", format!("runs: {state}"));
        }
        Err(error) => told.lacking(
            "agent",
            chain(&error),
            "systemctl enable --now sumun-agent; its log: journalctl -u sumun-agent",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_configuration_it_says_how_to_get_one() {
        let told = diagnose(Path::new("/nonexistent/agent.toml"));
        assert!(!told.works());
        let text = told.to_string();
        assert!(text.contains("BROKEN   configuration"), "{text}");
        assert!(
            text.contains("mend: `sumun-agent enroll` writes one"),
            "{text}"
        );
    }
}
