//! `sumunctl`, as an admin calls it.

use std::io::{BufRead as _, BufReader, Read as _, Seek as _};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{clock, programs};

/// Calls `sumunctl` with one configuration.
#[derive(Clone, Debug)]
pub struct Ctl {
    config: PathBuf,
}

/// An answer: the rows, and what it says about its completeness.
#[derive(Clone, Debug)]
pub struct Answer {
    /// One object a row.
    pub rows: Vec<Value>,
    /// The object under `completeness`.
    pub completeness: Value,
}

impl Answer {
    /// True if it says that nothing is missing.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.completeness["complete"] == true
    }
}

impl Ctl {
    /// With the context written by `sumun-collector init`.
    #[must_use]
    pub fn new(config: PathBuf) -> Self {
        Self { config }
    }

    /// Runs it with these arguments.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Output {
        Command::new(programs::path("sumunctl"))
            .arg("--config")
            .arg(&self.config)
            .args(args)
            .output()
            .expect("sumunctl can be started")
    }

    /// Runs it and reads rows and completeness from what it printed.
    ///
    /// # Errors
    /// Another status than 0, or output that is not JSON lines.
    pub fn ask(&self, args: &[&str]) -> Result<Answer> {
        let mut rows = Vec::new();
        let completeness = self.each(args, |row| rows.push(row))?;
        Ok(Answer { rows, completeness })
    }

    /// As [`Self::ask`], but hands each row on as it comes: a whole row with its ancestry
    /// takes kilobytes, and an answer can have a million. What it says about its completeness
    /// is returned.
    ///
    /// # Errors
    /// As [`Self::ask`]; rows may have been handed on by then.
    pub fn each(&self, args: &[&str], mut take: impl FnMut(Value)) -> Result<Value> {
        // Not a pipe: nobody would read it while rows are read.
        let mut stderr = tempfile::tempfile()?;
        let mut child = Command::new(programs::path("sumunctl"))
            .arg("--config")
            .arg(&self.config)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(stderr.try_clone()?)
            .spawn()
            .context("start sumunctl")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let told = BufReader::new(stdout).lines().try_for_each(|line| {
            let line = line.context("sumunctl printed bytes that are not UTF-8")?;
            let row = serde_json::from_str(&line).with_context(|| {
                format!("sumunctl {args:?} printed something else than JSON lines")
            })?;
            take(row);
            anyhow::Ok(())
        });
        // The pipe is closed by now: a program that goes on printing ends too.
        let status = child.wait()?;
        let mut errors = String::new();
        stderr.rewind()?;
        stderr.read_to_string(&mut errors)?;
        ensure!(
            told.is_err() || status.success(),
            "sumunctl {args:?} ended with {status}: {errors}"
        );
        told?;
        let last = errors.lines().last().unwrap_or_default();
        let last: Value = serde_json::from_str(last)
            .with_context(|| format!("the last line on stderr is no JSON: '{last}'"))?;
        Ok(last["completeness"].clone())
    }

    /// `events list` of a time range (Unix ns), without a limit.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn events(&self, since: u64, until: Option<u64>, filter: &str) -> Result<Answer> {
        self.list("events", since, until, filter)
    }

    /// `alerts list` of a time range, without a limit.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn alerts(&self, since: u64, filter: &str) -> Result<Answer> {
        self.list("alerts", since, None, filter)
    }

    /// Asks for alerts up to `until` again and again until the answer says that it is complete.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub fn complete_alerts(
        &self,
        since: u64,
        until: u64,
        filter: &str,
        limit: Duration,
    ) -> Result<Answer> {
        until_complete(filter, limit, || {
            self.list("alerts", since, Some(until), filter)
        })
    }

    /// `gaps list` of a time range, without a limit.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn gaps(&self, since: u64) -> Result<Answer> {
        self.list("gaps", since, None, "")
    }

    /// `events list` of a time range, row by row. What it says about its completeness is returned.
    ///
    /// # Errors
    /// As [`Self::each`].
    pub fn each_event(
        &self,
        since: u64,
        until: u64,
        filter: &str,
        take: impl FnMut(Value),
    ) -> Result<Value> {
        let (since, until) = (clock::rfc3339(since), clock::rfc3339(until));
        let args = [
            "events", "list", "--since", &since, "--until", &until, "--where", filter, "-o",
            "jsonl",
        ];
        self.each(&args, take)
    }

    fn list(&self, noun: &str, since: u64, until: Option<u64>, filter: &str) -> Result<Answer> {
        let since = clock::rfc3339(since);
        let until = until.map(clock::rfc3339);
        let mut args = vec![noun, "list", "--since", &since, "-o", "jsonl"];
        if !filter.is_empty() {
            args.extend(["--where", filter]);
        }
        if let Some(until) = &until {
            args.extend(["--until", until]);
        }
        self.ask(&args)
    }

    /// Asks for events up to `until` again and again until the answer says that it is complete.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub fn complete_events(
        &self,
        since: u64,
        until: u64,
        filter: &str,
        limit: Duration,
    ) -> Result<Answer> {
        until_complete(filter, limit, || self.events(since, Some(until), filter))
    }

    /// As [`Self::complete_events`], without keeping the rows.
    ///
    /// # Errors
    /// As [`Self::complete_events`].
    pub fn wait_complete(
        &self,
        since: u64,
        until: u64,
        filter: &str,
        limit: Duration,
    ) -> Result<()> {
        let ask = || {
            let completeness = self.each_event(since, until, filter, |_| ())?;
            let rows = Vec::new();
            Ok(Answer { rows, completeness })
        };
        until_complete(filter, limit, ask).map(|_| ())
    }

    /// The agents, as `agents list` names them.
    ///
    /// # Errors
    /// The collector cannot be asked.
    pub fn agents(&self) -> Result<Vec<Value>> {
        let output = self.run(&["agents", "list", "-o", "json"]);
        ensure!(
            output.status.success(),
            "sumunctl agents list: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

fn until_complete(
    filter: &str,
    limit: Duration,
    ask: impl Fn() -> Result<Answer>,
) -> Result<Answer> {
    let begun = Instant::now();
    loop {
        let answer = ask()?;
        if answer.complete() {
            return Ok(answer);
        }
        ensure!(
            begun.elapsed() < limit,
            "no complete answer to '{filter}' after {limit:?}: {} rows kept, {}",
            answer.rows.len(),
            answer.completeness
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}
