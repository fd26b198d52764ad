//! Runs the generators (`tests/src/bin`).

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{programs, raw};

/// Runs a generator to its end and returns what it printed.
///
/// # Errors
/// It fails: what it wanted to produce was not produced.
pub fn run<S: AsRef<OsStr>>(name: &str, args: &[S]) -> Result<String> {
    let output = Command::new(programs::path(name))
        .args(args)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start {name}"))?;
    ensure!(
        output.status.success(),
        "{name} ended with {}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A generator that runs beside the test; dropped, it is told to end (its input is closed).
#[derive(Debug)]
pub struct Background {
    child: Child,
}

impl Background {
    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start<S: AsRef<OsStr>>(name: &str, args: &[S]) -> Result<Self> {
        let mut command = Command::new(programs::path(name));
        raw::bind_to_this_thread(&mut command);
        let child = command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self { child })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It fails.
    pub fn finish(mut self) -> Result<String> {
        use std::io::Read;
        let mut text = String::new();
        if let Some(mut output) = self.child.stdout.take() {
            output.read_to_string(&mut text)?;
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "a generator ended with {status}");
        Ok(text.trim().to_owned())
    }

    /// True while it runs.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.running() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Ordinary load in this directory for at most so long.
///
/// # Errors
/// It cannot be started.
pub fn noise(dir: &Path, seconds: u64) -> Result<Background> {
    Background::start(
        "noise",
        &[
            OsStr::new("--dir"),
            dir.as_os_str(),
            OsStr::new("--seconds"),
            OsStr::new(&seconds.to_string()),
        ],
    )
}
