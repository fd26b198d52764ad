//! The figures of docs/performance.md: `tests/bench/run` calls this.
//!
//! `bench --out DIR --python PYTHON [--rounds 15] [--seconds 30] [--rate 50000] [--only PART,PART]`
//!
//! Parts, in their order: matcher, cost, programs, rules, latency, memory, rate, identity, peers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;
use sumun_tests::args::Args;
use sumun_tests::bench::auditd::Quiet;
use sumun_tests::bench::rate::{self, Plan};
use sumun_tests::bench::report::Report;
use sumun_tests::bench::work::Work;
use sumun_tests::bench::{cost, identity, matcher, peers, rules};
use sumun_tests::host::{Agent, Collector, Turn};

const PARTS: &str = "matcher,cost,programs,rules,latency,memory,rate,identity,peers";

fn main() -> Result<()> {
    let args = Args::parse()?;
    let out = args.path("out")?;
    let only = args.get("only").unwrap_or(PARTS);
    let wanted = |part: &str| only.split(',').any(|one| one == part);
    if let Some(unknown) = only
        .split(',')
        .find(|part| !PARTS.split(',').any(|known| known == *part))
    {
        bail!("--only: there is no part '{unknown}'; there are {PARTS}");
    }
    let mut report = Report::default();
    if wanted("matcher") {
        let rounds = usize::try_from(args.number("rounds", 15)?)?;
        println!("matcher: {rounds} rounds");
        matcher::run(rounds, &mut report)?;
    }
    if only != "matcher" {
        let Some(turn) = Turn::take("bench") else {
            bail!("the benchmark needs root and a kernel with BTF");
        };
        let _quiet = Quiet::keep();
        // In a thread that began when it was quiet.
        let done = std::thread::scope(|scope| {
            scope
                .spawn(|| on_kernel(turn, &args, &wanted, &mut report))
                .join()
        });
        done.map_err(|_| anyhow!("the benchmark panicked"))??;
    }
    write(&out, &report)
}

/// Everything that needs an agent.
fn on_kernel(
    turn: Turn,
    args: &Args,
    wanted: &dyn Fn(&str) -> bool,
    report: &mut Report,
) -> Result<()> {
    let python = args.path("python")?;
    let rounds = usize::try_from(args.number("rounds", 15)?)?;
    let seconds = args.number("seconds", 30)?;
    let per_second = args.number("rate", 50_000)?;
    let scratch = tempfile::Builder::new().prefix("sumun-bench.").tempdir()?;
    let sub = |name: &str| -> Result<PathBuf> {
        let path = scratch.path().join(name);
        fs::create_dir(&path)?;
        Ok(path)
    };
    let (matched, unmatched) = (sub("matched")?, sub("unmatched")?);
    let policy = format!(
        r#"
[policy]
name = "bench"
version = 1

[[rule]]
id = "opens"
on = ["open"]
when = 'file.path.startsWith("{}/")'
effect = "record"
"#,
        matched.to_str().context("UTF-8")?
    );
    // The default is a minute; the counting in the end need not wait that long.
    let seal = format!("segment_seconds = {}", rate::SEGMENT_SECONDS);
    let mut collector = Collector::start_with(&[("# segment_seconds = 60", &seal)])?;
    let mut agent = Agent::enroll(turn, &collector, &[("bench", &policy)])?;
    let work = Work::new(&unmatched, &matched)?;

    if wanted("cost") {
        println!("cost: {rounds} rounds");
        cost::run(rounds, &work, &mut agent, &collector, report)?;
    }
    if wanted("rules") {
        let rounds = rounds.min(9);
        println!("rules: {rounds} rounds");
        rules::run(rounds, &work, &mut agent, &collector, report)?;
    }
    if ["programs", "latency", "memory", "rate"]
        .iter()
        .any(|part| wanted(part))
    {
        agent.run()?;
        agent.online(&collector)?;
        if wanted("programs") {
            println!("programs");
            cost::programs(&work, report)?;
        }
        if wanted("latency") {
            println!("latency");
            rate::latency(scratch.path(), 200, &collector.ctl(), report)?;
        }
        if wanted("memory") {
            memory(&mut agent, report)?;
        }
        if wanted("rate") {
            println!("rate: {per_second} opens/s for {seconds} s");
            let plan = Plan {
                dir: &matched,
                seconds,
                rate: per_second,
            };
            rate::run(&plan, &mut agent, &mut collector, &python, report)?;
        } else {
            agent.stop()?;
        }
        agent.release()?;
    }
    if wanted("identity") {
        println!("identity: {rounds} rounds");
        identity::run(rounds, &work, &mut agent, &collector, report)?;
    }
    // Last: the kernel is not the same after it had audit on.
    if wanted("peers") {
        println!("peers: {rounds} rounds");
        let dirs = (scratch.path(), matched.as_path());
        peers::run(rounds, dirs, &work, &mut agent, &collector, report)?;
    }
    Ok(())
}

fn memory(agent: &mut Agent, report: &mut Report) -> Result<()> {
    std::thread::sleep(Duration::from_secs(2));
    let idle = rate::pss_kib(agent.process().pid())?;
    report.section("Memory");
    report.figure(
        "agent_pss_idle_kib",
        "agent's PSS, steady, default rings, KiB",
        idle.to_string(),
        json!(idle),
        "goal: 30720 or less",
    );
    Ok(())
}

fn write(out: &Path, report: &Report) -> Result<()> {
    let table = report.table();
    println!("{table}");
    fs::create_dir_all(out)?;
    fs::write(out.join("bench.txt"), table)?;
    let path = out.join("bench.json");
    let mut json = report.json();
    json["kernel"] = json!(fs::read_to_string("/proc/sys/kernel/osrelease")?.trim());
    json["processors"] = json!(std::thread::available_parallelism()?.get());
    fs::write(&path, serde_json::to_string_pretty(&json)? + "\n")?;
    println!("also in {}", path.display());
    Ok(())
}
