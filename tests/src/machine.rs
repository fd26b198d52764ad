//! A machine with systemd, in which packages are installed: a copy of the root that
//! `tests/nspawn/fetch-root` made, booted by systemd-nspawn on this kernel with a network of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::process::Process;

/// How long the machine may take to boot.
const BOOT: Duration = Duration::from_secs(60);

/// Calls that an agent makes and that nspawn's filter does not let through, whatever the capabilities.
const CALLS: &str =
    "bpf perf_event_open fanotify_init fanotify_mark pidfd_getfd process_vm_readv kcmp @mount";

/// A booted machine; dropped, it is gone with all that was in it.
#[derive(Debug)]
pub struct Machine {
    leader: u32,
    /// Why its systemd makes no cgroups for its units that an agent sees.
    pub without_units: Option<String>,
    // In this order: what runs in it ends before its cgroups and files go.
    _process: Process,
    _units: Option<Units>,
    root: TempDir,
}

/// The cgroups of v1 that name whose processes are, to which the machine's systemd writes as that of a host does; nspawn lets it only into
/// those of systemd's own. What it has made there is removed when this is dropped.
#[derive(Debug)]
struct Units {
    before: Vec<PathBuf>,
}

impl Units {
    /// Nobody's, so far.
    ///
    /// # Errors
    /// There is no such hierarchy, or another systemd is in it.
    fn take() -> Result<Self, String> {
        let root = Path::new(PIDS);
        if !root.join("cgroup.procs").exists() {
            return Err(format!("{PIDS} is no cgroup of v1"));
        }
        let slice = root.join("system.slice");
        if is_idle(&slice) {
            // Of a test that was killed: where a systemd runs, something runs in it.
            remove(&slice);
        }
        if slice.exists() {
            return Err(format!("{PIDS} has units of another systemd"));
        }
        let before = folders(root);
        Ok(Self { before })
    }
}

impl Drop for Units {
    fn drop(&mut self) {
        // What ran in the machine may still be ending.
        let begun = Instant::now();
        loop {
            let made = folders(Path::new(PIDS)).into_iter();
            let made = made.filter(|folder| !self.before.contains(folder) && is_of_systemd(folder));
            let made: Vec<_> = made.collect();
            made.iter().for_each(|folder| remove(folder));
            if !made.iter().any(|folder| folder.exists()) {
                return;
            }
            if begun.elapsed() > GONE_WITHIN {
                println!("left behind: {made:?}");
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// How long what ran in the machine may take to end.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// Whether a cgroup and those below it have no process; not so if there is none.
fn is_idle(cgroup: &Path) -> bool {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs"));
    procs.is_ok_and(|procs| procs.is_empty()) && folders(cgroup).iter().all(|below| is_idle(below))
}

/// Where the cgroups are that name whose processes are.
const PIDS: &str = "/sys/fs/cgroup/pids";

fn is_of_systemd(folder: &Path) -> bool {
    let name = folder.file_name().and_then(|name| name.to_str());
    let kinds = [".slice", ".scope", ".service", ".mount", ".socket", ".swap"];
    name.is_some_and(|name| kinds.iter().any(|kind| name.ends_with(kind)))
}

fn folders(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes a cgroup with those below it, but for such as somebody is in.
fn remove(cgroup: &Path) {
    for below in folders(cgroup) {
        remove(&below);
    }
    let _ = fs::remove_dir(cgroup);
}

/// The folder of the root, or why there is none.
///
/// # Errors
/// No root was made, or a program that is needed is not installed.
pub fn root() -> Result<PathBuf, String> {
    let cache = std::env::var_os("SUMUN_CACHE").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache/sumun"),
        PathBuf::from,
    );
    let root = cache.join("nspawn/bookworm-1");
    for tool in [
        "systemd-nspawn",
        "nsenter",
        "dpkg-deb",
        "dpkg-shlibdeps",
        "lintian",
        "rpmbuild",
    ] {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(tool).exists()));
        if !found {
            return Err(format!("{tool} is not installed (make setup-test)"));
        }
    }
    match root.join("usr").is_dir() {
        true => Ok(root),
        false => Err(format!("{} is not there (make setup-test)", root.display())),
    }
}

/// A copy of the root in a folder.
///
/// # Errors
/// There is no room for it.
pub fn copy(root: &Path, folder: &Path) -> Result<PathBuf> {
    let to = folder.join("root");
    let copied = Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .arg(root)
        .arg(&to)
        .status()?;
    ensure!(copied.success(), "the root cannot be copied");
    Ok(to)
}

impl Machine {
    /// Copies the root and boots it.
    ///
    /// # Errors
    /// It does not come up.
    pub fn boot(root: &Path) -> Result<Self> {
        let copy = tempfile::Builder::new()
            .prefix("sumun-machine.")
            .tempdir()?;
        let machine = self::copy(root, copy.path())?;
        let process = Process::start(
            "systemd-nspawn",
            Command::new("systemd-nspawn")
                .args([
                    "-q",
                    "--register=no",
                    "--keep-unit",
                    "--boot",
                    "--private-network",
                ])
                .args(["--capability=all", "--console=pipe"])
                .arg(format!("--system-call-filter={CALLS}"))
                .arg("-D")
                .arg(&machine),
            &copy.path().join("console.log"),
        )?;
        let (units, without_units) = match Units::take() {
            Ok(units) => (Some(units), None),
            Err(reason) => (None, Some(reason)),
        };
        let mut this = Self {
            leader: 0,
            without_units,
            _process: process,
            _units: units,
            root: copy,
        };
        this.up()?;
        if this.without_units.is_none() {
            // systemd asks once what it may write to.
            this.run(&format!(
                "mount -o remount,bind,rw {PIDS}; systemctl daemon-reexec"
            ))?;
        }
        Ok(this)
    }

    fn up(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            if self.leader == 0 {
                self.leader = leader_below(self._process.pid()).unwrap_or(0);
            }
            if self.leader != 0 {
                let output = self.output("systemctl is-system-running")?;
                let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                // A container lacks what some of Debian's own units want.
                if state == "running" || state == "degraded" {
                    // What systemd mounts on a host and nspawn leaves out; what is pinned goes with the machine.
                    let mount = "mount -o remount,rw /sys; mkdir -p /sys/fs/bpf; mount -t bpf bpf /sys/fs/bpf; mount -o remount,ro /sys";
                    self.run(mount)?;
                    return Ok(());
                }
            }
            ensure!(
                self._process.ended().is_none() && begun.elapsed() < BOOT,
                "the machine does not come up; it said:\n{}",
                self._process.said()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Its first process, as this host numbers it.
    #[must_use]
    pub fn leader(&self) -> u32 {
        self.leader
    }

    /// Runs a program of this host in the machine's network, which has few of its own.
    ///
    /// # Errors
    /// It fails.
    pub fn network(&self, program: &[&str]) -> Result<()> {
        let output = Command::new("nsenter")
            .args(["--target", &self.leader.to_string(), "--net", "--"])
            .args(program)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program:?}: {said}");
        Ok(())
    }

    /// A path inside as one outside.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root
            .path()
            .join("root")
            .join(inside.trim_start_matches('/'))
    }

    /// Runs shell lines as root in `/root`.
    ///
    /// # Errors
    /// They cannot be started.
    pub fn output(&self, script: &str) -> Result<Output> {
        Ok(Command::new("nsenter")
            .args(["--target", &self.leader.to_string()])
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"])
            .args(["--root", "--wd", "--", "/bin/sh", "-c"])
            .arg(format!("cd /root\n{script}"))
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", "/root")
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .output()?)
    }

    /// Runs shell lines and returns what they print.
    ///
    /// # Errors
    /// They end with another status than 0; the message holds what they printed.
    pub fn run(&self, script: &str) -> Result<String> {
        let output = self.output(&format!("set -eu\n{script}"))?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "in the machine, `{script}` ended with {}:\n{out}{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(out)
    }

    /// Runs a shell condition until it holds.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub fn until(&self, condition: &str, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        while !self.output(condition)?.status.success() {
            if begun.elapsed() > limit {
                let journal = self.run("journalctl --no-pager -n 40").unwrap_or_default();
                bail!("in the machine, not within {limit:?}: {condition}\n{journal}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }
}

/// The child of a process that is the first one of a pid namespace.
fn leader_below(parent: u32) -> Result<u32> {
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
            continue;
        };
        let value = |key: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .map(str::trim)
        };
        let below = value("PPid:").and_then(|ppid| ppid.parse().ok()) == Some(parent);
        let first = value("NSpid:").is_some_and(|ids| ids.ends_with("\t1"));
        // Until it has run systemd, it is nspawn itself, which is still moving in.
        if below && first && value("Name:") == Some("systemd") {
            return Ok(pid);
        }
    }
    None.context("no first process yet")
}
