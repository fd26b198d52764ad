//! Debian's bpftrace with a script as a user would write it for the watch of the benchmark.

use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::rate;
use crate::process::Process;

const PROGRAM: &str = "/usr/bin/bpftrace";
/// Longest path that its script compares, with what comes below it: it reads strings of 64 bytes.
const PATH_MAX: usize = 48;
const READY: Duration = Duration::from_secs(60);

/// A bpftrace with the watch of the benchmark.
#[derive(Debug)]
pub struct Bpftrace {
    process: Process,
    output: PathBuf,
    before: u64,
}

/// Why bpftrace cannot be measured here; `None` if it can.
#[must_use]
pub fn hindered(matched: &Path) -> Option<String> {
    if !Path::new(PROGRAM).exists() {
        return Some(format!(
            "{PROGRAM} is not there (Debian's package bpftrace)"
        ));
    }
    let length = matched.as_os_str().len();
    (length > PATH_MAX).then(|| {
        format!(
            "it compares strings of 64 bytes, too short for {}: set TMPDIR to a shorter path",
            matched.display()
        )
    })
}

impl Bpftrace {
    /// Runs it in this empty folder, and returns when it writes what it sees.
    ///
    /// # Errors
    /// It does not get ready, as on a kernel that it cannot attach to.
    pub fn start(dir: &Path, matched: &Path) -> Result<Self> {
        let output = dir.join("bpftrace.txt");
        let process = Process::start(
            "bpftrace",
            Command::new(PROGRAM)
                .arg("-o")
                .arg(&output)
                .arg("-e")
                .arg(script(matched.to_str().context("UTF-8")?)),
            &dir.join("bpftrace.out"),
        )?;
        let mut this = Self {
            process,
            output,
            before: 0,
        };
        let begun = Instant::now();
        // What it sees first is this program; it may keep some lines before it writes them.
        while this.count()?.0 == 0 {
            ensure!(
                this.process.ended().is_none() && begun.elapsed() < READY,
                "bpftrace is not ready; it said:\n{}",
                this.process.said()
            );
            Command::new("/bin/true")
                .status()
                .context("run /bin/true")?;
            std::thread::sleep(Duration::from_millis(20));
        }
        this.before = this.count()?.0;
        Ok(this)
    }

    /// Its processor time, ns.
    ///
    /// # Errors
    /// It has gone.
    pub fn cpu_ns(&self) -> Result<u64> {
        rate::cpu_ns(self.process.pid())
    }

    /// Ends it: what it has written down since it was ready, and what it says that it lost.
    ///
    /// # Errors
    /// It does not end, or its output cannot be read.
    pub fn finish(mut self) -> Result<(u64, u64)> {
        self.process.stop()?;
        let (records, told) = self.count()?;
        let said = self.process.said();
        let lost = told + said.lines().map(lost).sum::<u64>();
        Ok((records - self.before, lost))
    }

    /// Records in its output so far, and events that it says there it lost. Line by line: with a
    /// large memory every fork of the workload would take longer.
    fn count(&self) -> Result<(u64, u64)> {
        let failed = || format!("read {}", self.output.display());
        let file = match File::open(&self.output) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok((0, 0)),
            Err(error) => return Err(error).with_context(failed),
        };
        let (mut records, mut told) = (0, 0);
        for line in BufReader::new(file).split(b'\n') {
            let line = line.with_context(failed)?;
            let line = String::from_utf8_lossy(&line);
            records += u64::from(is_record(&line));
            told += lost(&line);
        }
        Ok((records, told))
    }
}

/// Tracepoints only, since not every kernel has kprobes. The name of an open is the caller's word.
fn script(matched: &str) -> String {
    let length = matched.len() + 1;
    format!(
        r#"
tracepoint:syscalls:sys_enter_openat /strncmp(str(args->filename), "{matched}/", {length}) == 0/
{{ printf("open %d %d %s %s\n", pid, uid, comm, str(args->filename)); }}
tracepoint:syscalls:sys_enter_execve {{ printf("args %d ", pid); join(args->argv); }}
tracepoint:sched:sched_process_exec {{ printf("exec %d %d %s %s\n", pid, uid, comm, str(args->filename)); }}
tracepoint:sock:inet_sock_set_state /args->protocol == 6 && args->newstate == 2/
{{ printf("connect %d %d %s %s:%d\n", pid, uid, comm, ntop(args->daddr), args->dport); }}
"#
    )
}

/// Lines of opens, execs and connects; not the arguments, which may span several.
fn is_record(line: &str) -> bool {
    ["open ", "exec ", "connect "]
        .iter()
        .any(|kind| line.starts_with(kind))
}

/// The number in its message `Lost N events`; 0 on any other line.
fn lost(line: &str) -> u64 {
    let number = line.strip_prefix("Lost ");
    let number = number.and_then(|rest| rest.strip_suffix(" events"));
    number.and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        let text = "Attaching 4 probes...\nargs 7 sh -c x\nopen 7 0 sh /x\nexec 7 0 sh /bin/sh\nLost 12 events\n";
        assert_eq!(text.lines().filter(|line| is_record(line)).count(), 2);
        assert_eq!(text.lines().map(lost).sum::<u64>(), 12);
    }

    #[test]
    fn the_script_compares_the_whole_directory() {
        assert!(script("/a/b").contains(r#"str(args->filename), "/a/b/", 5)"#));
    }
}
