//! `sumunctl`, as an admin calls it.

use std::path::PathBuf;
use std::process::{Command, Output};
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
        let output = self.run(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "sumunctl {args:?} ended with {}: {errors}",
            output.status
        );
        let rows = std::str::from_utf8(&output.stdout)
            .context("sumunctl printed bytes that are not UTF-8")?
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<Vec<Value>, _>>()
            .with_context(|| format!("sumunctl {args:?} printed something else than JSON lines"))?;
        let last = errors.lines().last().unwrap_or_default();
        let last: Value = serde_json::from_str(last)
            .with_context(|| format!("the last line on stderr is no JSON: '{last}'"))?;
        Ok(Answer {
            rows,
            completeness: last["completeness"].clone(),
        })
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

    /// `gaps list` of a time range, without a limit.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn gaps(&self, since: u64) -> Result<Answer> {
        self.list("gaps", since, None, "")
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
        let begun = Instant::now();
        loop {
            let answer = self.events(since, Some(until), filter)?;
            if answer.complete() {
                return Ok(answer);
            }
            ensure!(
                begun.elapsed() < limit,
                "no complete answer to '{filter}' after {limit:?}: {} rows, {}",
                answer.rows.len(),
                answer.completeness
            );
            std::thread::sleep(Duration::from_millis(200));
        }
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
