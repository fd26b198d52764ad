//! Log lines on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Starts logging: `level` is a filter of `tracing`, which the variable `SUMUN_LOG` overrides.
/// Under journald lines carry no time, which the journal has already.
pub fn start(format: LogFormat, level: &str) {
    let filter = EnvFilter::try_from_env("SUMUN_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A second start (tests in one process) keeps the first.
    let _ = match format {
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
        LogFormat::Text if std::env::var_os("JOURNAL_STREAM").is_some() => {
            lines.with_ansi(false).without_time().try_init()
        }
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
            lines.with_ansi(colour).try_init()
        }
    };
}
