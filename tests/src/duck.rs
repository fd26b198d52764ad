//! Counting in the lake with an engine that is not ours.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How long a lake may grow after the last event.
const LIMIT: Duration = Duration::from_secs(300);

const SCRIPT: &str = r"
import duckdb, glob, sys
root, family, kind, prefix = sys.argv[1:]
files = [f for f in glob.glob(root + '/**/*.parquet', recursive=True) if family in f[len(root):]]
if not files:
    print(0, 0, 0)
    sys.exit()
key = 'origin_pin, origin_ring, origin_cpu, origin_level, origin_seq'
duckdb.execute('set enable_progress_bar = false')
rows = 'from read_parquet(?, union_by_name=true) where kind = ? and starts_with(file_path, ?)'
count = lambda what: duckdb.execute(what + ' ' + rows, [files, kind, prefix]).fetchone()[0]
print(count('select count(*)'), count(f'select count(distinct ({key}))'), count('select count(distinct file_path)'))
";

/// Rows of one kind below a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// All of them.
    pub rows: u64,
    /// Different origins: records of the kernel.
    pub origins: u64,
    /// Different paths.
    pub paths: u64,
}

/// Python with DuckDB, as `make setup-test` installs it.
#[must_use]
pub fn python() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").unwrap_or_default();
    let cache = std::env::var_os("SUMUN_CACHE")
        .map_or_else(|| Path::new(&home).join(".cache/sumun"), PathBuf::from);
    let python = cache.join("venv/bin/python3");
    python.exists().then_some(python)
}

/// Counts the rows of file events in the lake under a collector's folder.
///
/// # Errors
/// Python or DuckDB fails.
pub fn count(python: &Path, collector: &Path, kind: &str, prefix: &str) -> Result<Count> {
    let output = Command::new(python)
        .args(["-c", SCRIPT])
        .arg(collector)
        .args(["file", kind, prefix])
        .output()
        .context("start python")?;
    ensure!(
        output.status.success(),
        "DuckDB: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said = String::from_utf8(output.stdout)?;
    let numbers: Vec<u64> = said
        .split_whitespace()
        .map(|number| {
            number
                .parse()
                .with_context(|| format!("DuckDB said '{said}'"))
        })
        .collect::<Result<_>>()?;
    let [rows, origins, paths] = numbers[..] else {
        anyhow::bail!("DuckDB said '{said}'");
    };
    Ok(Count {
        rows,
        origins,
        paths,
    })
}

/// Counts until the lake has not grown for `quiet`, which has to be longer
/// than the collector keeps rows in its log.
///
/// # Errors
/// As [`count`], or it still grows after five minutes.
pub fn settled(
    python: &Path,
    collector: &Path,
    kind: &str,
    prefix: &str,
    quiet: Duration,
) -> Result<Count> {
    let begun = Instant::now();
    let mut last = count(python, collector, kind, prefix)?;
    let mut since = Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = count(python, collector, kind, prefix)?;
        if now != last {
            (last, since) = (now, Instant::now());
        } else if since.elapsed() >= quiet {
            return Ok(last);
        }
        ensure!(
            begun.elapsed() < LIMIT,
            "the lake still grows after {LIMIT:?}"
        );
    }
}
