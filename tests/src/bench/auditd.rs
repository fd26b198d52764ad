//! The kernel's audit with Debian's auditd: configuration, log and rules of its own, nothing left behind.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::rate;
use crate::process::Process;

/// Key of every rule that is added here.
const KEY: &str = "sumun-bench";
const READY: Duration = Duration::from_secs(20);
/// What Debian's own rules set the queue to.
const BACKLOG: &str = "8192";

/// An auditd with the watch of the benchmark.
#[derive(Debug)]
pub struct Auditd {
    process: Process,
    log: PathBuf,
    before: BTreeMap<String, String>,
}

/// Why auditd cannot be measured here; `None` if it can.
#[must_use]
pub fn hindered() -> Option<String> {
    for path in [
        "/usr/sbin/auditd",
        "/usr/sbin/auditctl",
        "/etc/audit/auditd.conf",
    ] {
        if !Path::new(path).exists() {
            return Some(format!("{path} is not there (Debian's package auditd)"));
        }
    }
    // What an earlier run left that was killed.
    let _ = ctl(&["-D", "-k", KEY]);
    let state = match ctl(&["-s"]) {
        Ok(text) => status(&text),
        Err(error) => return Some(format!("the kernel's audit does not answer: {error:#}")),
    };
    if state.get("pid").is_none_or(|pid| pid != "0") {
        return Some("an auditd is already running".to_owned());
    }
    if state.get("enabled").is_none_or(|enabled| enabled != "0") {
        return Some("the kernel's audit is already in use".to_owned());
    }
    match ctl(&["-l"]) {
        Ok(text) if others(&text) => Some("there are audit rules already".to_owned()),
        Ok(_) => None,
        Err(error) => Some(format!("{error:#}")),
    }
}

impl Auditd {
    /// Runs it in this empty folder, watching opens below `matched`, all execs and all connects.
    ///
    /// # Errors
    /// It does not get ready, or the kernel refuses a rule.
    pub fn start(dir: &Path, matched: &Path) -> Result<Self> {
        let before = status(&ctl(&["-s"])?);
        let log = dir.join("audit.log");
        let text =
            fs::read_to_string("/etc/audit/auditd.conf").context("auditd's configuration")?;
        fs::write(dir.join("auditd.conf"), config(&text, &log, dir))?;
        let process = Process::start(
            "auditd",
            Command::new("/usr/sbin/auditd")
                .arg("-n")
                .arg("-c")
                .arg(dir),
            &dir.join("auditd.out"),
        )?;
        let mut this = Self {
            process,
            log,
            before,
        };
        let pid = this.process.pid().to_string();
        let begun = Instant::now();
        while status(&ctl(&["-s"])?).get("pid") != Some(&pid) {
            ensure!(
                this.process.ended().is_none() && begun.elapsed() < READY,
                "auditd is not ready; it said:\n{}",
                this.process.said()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        ctl(&["-b", BACKLOG])?;
        let dir = format!("dir={}", matched.to_str().context("UTF-8")?);
        // The 64-bit calls that open a file; openat is what the workload does.
        #[cfg(target_arch = "x86_64")]
        let opens = "open,creat,openat,openat2";
        #[cfg(not(target_arch = "x86_64"))]
        let opens = "openat,openat2";
        for rest in [
            &["-S", opens, "-F", &dir][..],
            &["-S", "execve,execveat"],
            &["-S", "connect"],
        ] {
            let rule = ["-a", "always,exit", "-F", "arch=b64"];
            ctl(&[&rule, rest, &["-k", KEY]].concat())?;
        }
        Ok(this)
    }

    /// Processor time, ns: of auditd, and of the kernel's thread that hands it the records.
    ///
    /// # Errors
    /// One of them cannot be found.
    pub fn cpu_ns(&self) -> Result<u64> {
        Ok(rate::cpu_ns(self.process.pid())? + rate::cpu_ns(kauditd()?)?)
    }

    /// System calls in its log that were the watch's: opens of the file, execs and so on.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn recorded(&self) -> Result<u64> {
        let file = File::open(&self.log).with_context(|| format!("read {}", self.log.display()))?;
        records(BufReader::new(file))
    }

    /// Records that the kernel dropped since it was started.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn lost(&self) -> Result<u64> {
        let count = |state: &BTreeMap<String, String>| -> u64 {
            state
                .get("lost")
                .and_then(|text| text.parse().ok())
                .unwrap_or(0)
        };
        Ok(count(&status(&ctl(&["-s"])?)).saturating_sub(count(&self.before)))
    }
}

impl Drop for Auditd {
    fn drop(&mut self) {
        let mut undo = vec![vec!["-D", "-k", KEY]];
        let set = |option: &'static str, key: &str| {
            self.before
                .get(key)
                .map(|value| vec![option, value.as_str()])
        };
        undo.extend(set("-b", "backlog_limit"));
        for arguments in &undo {
            if let Err(error) = ctl(arguments) {
                eprintln!("auditctl {}: {error:#}", arguments.join(" "));
            }
        }
        if let Err(error) = self.process.stop() {
            eprintln!("auditd: {error:#}");
        }
        // It was off: `hindered` has looked.
        if let Err(error) = ctl(&["-e", "0"]) {
            eprintln!("auditctl -e 0: {error:#}");
        }
    }
}

/// Keeps audit's hook out of the processes and threads that begin while it is there.
///
/// Once audit was on, the kernel gives each new task that hook until the next boot, also after
/// audit is off again: every system call of it takes the slow way, and what something
/// else adds seems less. The rule `task,never` takes it away.
#[derive(Debug)]
pub struct Quiet {
    added: bool,
}

impl Quiet {
    /// Adds the rule, unless it is there, or somebody uses audit, or there is no `auditctl`.
    #[must_use]
    pub fn keep() -> Self {
        let added = hindered().is_none()
            && ctl(&["-l"]).is_ok_and(|text| !has_quiet(&text))
            && ctl(&["-a", "task,never"]).is_ok();
        Self { added }
    }

    /// Takes the rule away while `during` runs.
    ///
    /// # Errors
    /// That of `during`, or the rule cannot be set.
    pub fn without<T>(during: impl FnOnce() -> Result<T>) -> Result<T> {
        let there = has_quiet(&ctl(&["-l"])?);
        if there {
            ctl(&["-d", "task,never"])?;
        }
        let result = during();
        if there {
            ctl(&["-a", "task,never"])?;
        }
        result
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if self.added
            && let Err(error) = ctl(&["-d", "task,never"])
        {
            eprintln!("auditctl -d task,never: {error:#}");
        }
    }
}

fn ctl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("/usr/sbin/auditctl")
        .args(arguments)
        .output()
        .context("run auditctl")?;
    if !output.status.success() {
        bail!(
            "auditctl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `auditctl -s`: a key and its value on each line.
fn status(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

fn is_quiet(line: &str) -> bool {
    matches!(line.trim(), "-a never,task" | "-a task,never")
}

/// Whether `auditctl -l` shows the rule of [`Quiet`].
fn has_quiet(text: &str) -> bool {
    text.lines().any(is_quiet)
}

/// Whether `auditctl -l` shows any other rule.
fn others(text: &str) -> bool {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .into_iter()
        .any(|line| line != "No rules" && !is_quiet(line))
}

/// The distribution's configuration, with a log and plugins elsewhere, and one log that is never rotated.
fn config(text: &str, log: &Path, dir: &Path) -> String {
    let log = log.display().to_string();
    let plugins = dir.join("plugins.d").display().to_string();
    let own = [
        ("log_file", log.as_str()),
        ("log_group", "root"),
        ("plugin_dir", plugins.as_str()),
        ("max_log_file_action", "IGNORE"),
    ];
    let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !own.iter().any(|(name, _)| key(line) == *name))
        .map(str::to_owned)
        .collect();
    lines.extend(own.iter().map(|(name, value)| format!("{name} = {value}")));
    lines.join("\n") + "\n"
}

/// System calls in a log that a rule of the benchmark asked for. Line by line: with a large
/// memory every fork of the workload would take longer.
fn records(log: impl BufRead) -> Result<u64> {
    let key = format!("key=\"{KEY}\"");
    let mut count = 0;
    for line in log.split(b'\n') {
        let line = line.context("read the log")?;
        let line = String::from_utf8_lossy(&line);
        count += u64::from(line.starts_with("type=SYSCALL") && line.contains(&key));
    }
    Ok(count)
}

/// The kernel's thread of audit.
fn kauditd() -> Result<u32> {
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end while we look.
        if fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|comm| comm.trim() == "kauditd")
        {
            return Ok(pid);
        }
    }
    bail!("the kernel's thread kauditd is not there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read() {
        let status = status("enabled 1\npid 17\nbacklog_limit 64\nloginuid_immutable 0 unlocked\n");
        assert_eq!(status["pid"], "17");
        assert_eq!(status["backlog_limit"], "64");
        assert_eq!(status["loginuid_immutable"], "0 unlocked");
    }

    #[test]
    fn rules_of_others_are_told_from_ours() {
        assert!(!others("No rules\n"));
        assert!(!others("-a never,task\n"));
        assert!(has_quiet("-a never,task\n"));
        assert!(others("-a never,task\n-w /etc/passwd -p wa -k passwd\n"));
        assert!(!has_quiet("-a always,task\n"));
    }

    #[test]
    fn the_configuration_is_the_distribution_s_with_another_log() {
        let text = "local_events = yes\nlog_file = /var/log/audit/audit.log\nlog_format = ENRICHED\nplugin_dir = /etc/audit/plugins.d\n##name = x\n";
        let ours = config(text, Path::new("/tmp/x/audit.log"), Path::new("/tmp/x"));
        assert!(
            ours.starts_with("local_events = yes\nlog_format = ENRICHED\n##name = x\n"),
            "{ours}"
        );
        assert!(ours.contains("\nlog_file = /tmp/x/audit.log\n"), "{ours}");
        assert!(
            !ours.contains("/var/log") && !ours.contains("/etc/audit"),
            "{ours}"
        );
    }

    #[test]
    fn records_of_our_rules_are_counted() {
        let text = "type=SYSCALL msg=audit(1.2:3): arch=c000003e syscall=257 key=\"sumun-bench\"\n\
                    type=PATH msg=audit(1.2:3): name=\"x\"\n\
                    type=SYSCALL msg=audit(1.2:4): syscall=44 key=(null)\n\
                    type=CONFIG_CHANGE msg=audit(1.2:1): op=add_rule key=\"sumun-bench\"\n";
        assert_eq!(records(text.as_bytes()).expect("a log"), 1);
    }
}
