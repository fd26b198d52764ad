//! A stream of matching opens: what is produced, stored and lost, what it costs, how fast it is seen.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::report::{Report, quantile};
use super::work::per;
use crate::check::{int, text};
use crate::clock::unix_ns;
use crate::ctl::Ctl;
use crate::duck;
use crate::elf;
use crate::generator::Background;
use crate::host::{Agent, Collector};

/// Seconds that the collector keeps rows in its log before they are in the lake.
pub const SEGMENT_SECONDS: u64 = 5;
/// After this long without load the agent's memory is looked at again.
const REST: Duration = Duration::from_secs(5);
/// How long the store may take until it has everything.
const LIMIT: Duration = Duration::from_secs(300);

/// Nanoseconds of processor time that all threads of a process have had.
///
/// # Errors
/// The process has gone.
pub fn cpu_ns(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while we look.
        if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
            sum += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// Proportional set size of a process, KiB.
///
/// # Errors
/// The process has gone.
pub fn pss_kib(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .context("smaps_rollup has no Pss")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

/// Events that the agent has spooled and the collector not acknowledged.
fn backlog(ctl: &Ctl) -> Result<i64> {
    let agents = ctl.agents()?;
    let lanes = agents.first().and_then(|agent| agent["lanes"].as_array());
    Ok(lanes
        .into_iter()
        .flatten()
        .filter_map(|lane| int(lane, "spooled_events"))
        .sum())
}

/// What a stream of opens is made of.
pub struct Plan<'a> {
    /// A directory that a rule asks for.
    pub dir: &'a Path,
    /// Seconds.
    pub seconds: u64,
    /// Opens a second.
    pub rate: u64,
}

/// Runs the stream, and counts with another engine what the lake holds in the
/// end. Stops the agent for that.
///
/// # Errors
/// A program fails, or the store never gets complete.
pub fn run(
    plan: &Plan<'_>,
    agent: &mut Agent,
    collector: &mut Collector,
    python: &Path,
    report: &mut Report,
) -> Result<()> {
    let ctl = collector.ctl();
    let dir = plan.dir.to_str().context("UTF-8")?;
    let pid = agent.process().pid();
    let (cpu_before, since) = (cpu_ns(pid)?, unix_ns());
    let collector_pid = collector.process().pid();
    let collector_before = cpu_ns(collector_pid)?;
    let mut storm = Background::start(
        "open-storm",
        &[
            "--dir",
            dir,
            "--seconds",
            &plan.seconds.to_string(),
            "--rate",
            &plan.rate.to_string(),
        ],
    )?;
    let (mut backlogs, mut sizes) = (Vec::new(), Vec::new());
    while storm.running() {
        std::thread::sleep(Duration::from_secs(1));
        backlogs.push(backlog(&ctl)?);
        sizes.push(pss_kib(pid)?);
    }
    let said = storm.finish()?;
    let until = unix_ns();
    let (produced, took) = said.split_once(' ').context("the storm's count")?;
    let (produced, took): (u64, u64) = (produced.parse()?, took.parse()?);
    println!("  {produced} opens produced; waiting for the store");
    let filter = format!(r#"kind == "open" && file.path.startsWith("{dir}/")"#);
    let caught_up = catch_up(&ctl, since, until, &filter)?;
    std::thread::sleep(REST);
    let rested = pss_kib(pid)?;
    let cpu = cpu_ns(pid)? - cpu_before;
    let collector_cpu = cpu_ns(collector_pid)? - collector_before;
    let gaps = ctl.gaps(since)?.rows;
    let lost: i64 = gaps
        .iter()
        .filter(|gap| text(gap, "gap.lane") == "bulk")
        .map(|gap| int(gap, "gap.count").context("a gap without a count"))
        .sum::<Result<i64>>()?;
    agent.stop()?;
    let quiet = Duration::from_secs(SEGMENT_SECONDS * 3);
    let counted = duck::settled(python, collector.dir(), "open", &format!("{dir}/"), quiet)?;
    let (stored, distinct) = (counted.rows, counted.origins);
    // The generator writes each file once before it opens them.
    let made = 1000;
    let expected = produced + made;

    report.section(&format!(
        "{} matching opens/s asked for, {} s",
        plan.rate, plan.seconds
    ));
    let mut put = |key: &str, what: &str, value: String, json: serde_json::Value, goal: &str| {
        report.figure(key, what, value, json, goal);
    };
    put(
        "rate_per_second",
        "opens a second, as produced",
        format!("{:.0}", per(produced * 1_000_000_000, took)),
        json!(per(produced * 1_000_000_000, took)),
        "",
    );
    put(
        "produced",
        "produced (counted by the generator)",
        expected.to_string(),
        json!(expected),
        "",
    );
    put(
        "stored",
        "stored (counted by DuckDB)",
        stored.to_string(),
        json!(stored),
        "",
    );
    put(
        "doubled",
        "stored more than once (same origin)",
        (stored - distinct).to_string(),
        json!(stored - distinct),
        "goal: 0",
    );
    put(
        "lost",
        "recorded as gaps of that lane",
        lost.to_string(),
        json!(lost),
        "goal: 0",
    );
    let difference = i128::from(expected) - i128::from(stored) - i128::from(lost);
    put(
        "unexplained",
        "produced - stored - gaps",
        difference.to_string(),
        json!(i64::try_from(difference)?),
        "goal: 0",
    );
    let (first, last) = backlogs.split_at(backlogs.len() / 2);
    let top = |values: &[i64]| values.iter().copied().max().unwrap_or(0);
    put(
        "backlog",
        "backlog, events: highest in the first and second half",
        format!("{} / {}", top(first), top(last)),
        json!(backlogs),
        "goal: flat",
    );
    put(
        "caught_up_ms",
        "complete after the end, ms",
        caught_up.as_millis().to_string(),
        json!(u64::try_from(caught_up.as_millis())?),
        "",
    );
    put(
        "agent_cpu_ns_per_event",
        "agent's processor time an event, ns",
        format!("{:.0}", per(cpu, expected)),
        json!(per(cpu, expected)),
        "",
    );
    // Of all its threads, delivery too: what one core can do from the ring to the spool is more.
    put(
        "agent_events_per_core",
        "events a second that one core's time is enough for in the agent",
        format!("{:.0}", 1e9 / per(cpu, expected)),
        json!(1e9 / per(cpu, expected)),
        "goal: 400000",
    );
    put(
        "collector_cpu_ns_per_event",
        "collector's processor time an event, ns",
        format!("{:.0}", per(collector_cpu, expected)),
        json!(per(collector_cpu, expected)),
        "",
    );
    let most = sizes.iter().copied().max().unwrap_or(0);
    put(
        "agent_pss_busy_kib",
        "agent's PSS under this load, highest, KiB",
        most.to_string(),
        json!(most),
        "goal: 65536 or less",
    );
    put(
        "agent_pss_after_kib",
        "agent's PSS 5 s after this load, KiB",
        rested.to_string(),
        json!(rested),
        "goal: 30720 or less",
    );
    Ok(())
}

/// How long it takes until the watermarks have passed `until`.
fn catch_up(ctl: &Ctl, since: u64, until: u64, filter: &str) -> Result<Duration> {
    let begun = Instant::now();
    let (since, until) = (crate::clock::rfc3339(since), crate::clock::rfc3339(until));
    loop {
        let answer = ctl.ask(&[
            "events", "list", "--since", &since, "--until", &until, "--where", filter, "--limit",
            "1", "-o", "jsonl",
        ])?;
        let waits = answer.completeness["hosts"].as_array().is_none_or(|hosts| {
            hosts.is_empty()
                || hosts
                    .iter()
                    .any(|host| text(host, "through") < until.as_str())
        });
        if answer.complete() || !waits {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > LIMIT {
            bail!(
                "the store is not complete after {LIMIT:?}: {}",
                answer.completeness
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// How long an exec takes until `sumunctl` shows it, on an idle agent. Each time
/// includes the start of the `sumunctl` that shows it.
///
/// # Errors
/// A program fails, or an event never comes.
pub fn latency(dir: &Path, count: usize, ctl: &Ctl, report: &mut Report) -> Result<()> {
    let helper = dir.join("latency-program");
    elf::write(&helper)?;
    let mut times = Vec::new();
    for index in 0..count {
        let path: PathBuf = dir.join(format!("latency-{index}"));
        fs::hard_link(&helper, &path)?;
        std::thread::sleep(Duration::from_millis(20 + 7 * (index as u64 % 30)));
        let since = unix_ns();
        let begun = Instant::now();
        Command::new(&path).status()?;
        let until = unix_ns();
        let filter = format!(r#"kind == "exec" && proc.exe.path == "{}""#, path.display());
        loop {
            if !ctl.events(since, Some(until), &filter)?.rows.is_empty() {
                break;
            }
            ensure!(
                begun.elapsed() < LIMIT,
                "the exec of {} is never shown",
                path.display()
            );
        }
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        fs::remove_file(&path)?;
    }
    times.sort_by(f64::total_cmp);
    let (half, most) = (quantile(&times, 0.5), quantile(&times, 0.99));
    report.section(&format!(
        "An event until sumunctl shows it, idle, of {count}"
    ));
    report.figure(
        "latency_p50_ms",
        "p50, ms",
        format!("{half:.0}"),
        json!(half),
        "",
    );
    report.figure(
        "latency_p99_ms",
        "p99, ms",
        format!("{most:.0}"),
        json!(most),
        "goal: 250 or less",
    );
    Ok(())
}
