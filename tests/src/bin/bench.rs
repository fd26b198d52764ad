//! The figures of docs/performance.md: `tests/bench/run` calls this.
//!
//! `bench --out DIR --python PYTHON [--rounds 15] [--seconds 30] [--rate 50000] [--only cost,programs,latency,rate]`

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sumun_tests::args::Args;
use sumun_tests::bench::cost::{self, Work};
use sumun_tests::bench::rate::{self, Plan};
use sumun_tests::bench::report::Report;
use sumun_tests::host::{Agent, Collector, Turn};

fn main() -> Result<()> {
    let args = Args::parse()?;
    let out = args.path("out")?;
    let python = args.path("python")?;
    let rounds = usize::try_from(args.number("rounds", 15)?)?;
    let seconds = args.number("seconds", 30)?;
    let per_second = args.number("rate", 50_000)?;
    let only = args.get("only").unwrap_or("cost,programs,latency,rate");
    let wanted = |part: &str| only.split(',').any(|one| one == part);

    let Some(turn) = Turn::take("bench") else {
        bail!("the benchmark needs root and a kernel with BTF");
    };
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
    let mut report = Report::default();
    let work = Work::new(&unmatched)?;

    if wanted("cost") {
        println!("cost: {rounds} rounds");
        cost::run(rounds, &work, &mut agent, &collector, &mut report)?;
    }
    agent.run()?;
    agent.online(&collector)?;
    if wanted("programs") {
        println!("programs");
        cost::programs(&work, &mut report)?;
    }
    if wanted("latency") {
        println!("latency");
        rate::latency(scratch.path(), 200, &collector.ctl(), &mut report)?;
    }
    std::thread::sleep(Duration::from_secs(2));
    let idle = rate::pss_kib(agent.process().pid())?;
    report.section("Memory");
    report.figure(
        "agent_pss_idle_kib",
        "agent's PSS, steady, default rings, KiB",
        idle.to_string(),
        json!(idle),
        "goal: 40960 or less",
    );
    if wanted("rate") {
        println!("rate: {per_second} opens/s for {seconds} s");
        let plan = Plan {
            dir: &matched,
            seconds,
            rate: per_second,
        };
        rate::run(&plan, &mut agent, &mut collector, &python, &mut report)?;
    }
    let table = report.table();
    println!("{table}");
    fs::create_dir_all(&out)?;
    fs::write(out.join("bench.txt"), table)?;
    let path = out.join("bench.json");
    let mut json = report.json();
    json["kernel"] = json!(fs::read_to_string("/proc/sys/kernel/osrelease")?.trim());
    json["processors"] = json!(std::thread::available_parallelism()?.get());
    fs::write(&path, serde_json::to_string_pretty(&json)? + "\n")?;
    println!("also in {}", path.display());
    Ok(())
}
