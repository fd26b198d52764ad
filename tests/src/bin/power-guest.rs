//! Runs inside the virtual machine of the power loss test: collector and agent on
//! the guest's disk, programs that are executed one after the other, and a
//! line on the serial port for each that the store shows.
//!
//! `power-guest --state DIR --round N [--reported FILE] [--verify]`
//!
//! Every path in FILE was reported in an earlier life of this guest: it must be in the
//! store exactly once. With `--verify` that is all; else it goes on until the power is cut.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sumun_tests::args::Args;
use sumun_tests::check::text;
use sumun_tests::ctl::Ctl;
use sumun_tests::process::Process;
use sumun_tests::{elf, programs};

/// Emulated processors take their time.
const READY: Duration = Duration::from_secs(180);
/// Where the programs are; a guest's memory, so that only the store has to survive.
const PROGRAMS: &str = "/tmp/power";

fn main() -> Result<()> {
    let args = Args::parse()?;
    let state = args.path("state")?;
    let round = args.number("round", 0)?;
    let reported: HashSet<String> = match args.get("reported") {
        Some(file) => fs::read_to_string(file)?
            .lines()
            .map(str::to_owned)
            .collect(),
        None => HashSet::new(),
    };
    let (home, agent_home) = (state.join("collector"), state.join("agent"));
    if !home.join("collector.toml").exists() {
        once(
            Command::new(programs::path("sumun-collector"))
                .arg("init")
                .arg(&home)
                .args(["--listen", "127.0.0.1:0"]),
        )?;
    }
    let ready = home.join("collector.addr");
    // Left by the life before.
    let _ = fs::remove_file(&ready);
    let mut collector = Process::start(
        "sumun-collector",
        Command::new(programs::path("sumun-collector"))
            .arg("run")
            .arg("--config")
            .arg(home.join("collector.toml")),
        Path::new("/tmp/collector.log"),
    )?;
    wait("the collector", &mut collector, || Ok(ready.exists()))?;
    println!("collector ready");
    let ctl = Ctl::new(home.join("admin.toml"));
    // Before the agent can send anything again.
    verify(&ctl, &reported)?;

    if !agent_home.join("agent.toml").exists() {
        once(
            Command::new(programs::path("sumun-agent"))
                .arg("enroll")
                .arg("--collector")
                .arg(fs::read_to_string(&ready)?.trim())
                .arg("--token-file")
                .arg(home.join("enroll.token"))
                .arg("--ca")
                .arg(home.join("ca/ca.pem"))
                .arg("--no-policies")
                .arg("--out")
                .arg(&agent_home),
        )?;
    }
    let mut agent = Process::start(
        "sumun-agent",
        Command::new(programs::path("sumun-agent"))
            .arg("run")
            .arg("--config")
            .arg(agent_home.join("agent.toml")),
        Path::new("/tmp/agent.log"),
    )?;
    wait("the agent", &mut agent, || {
        Ok(ctl
            .agents()?
            .iter()
            .any(|agent| text(agent, "state") == "online"))
    })?;
    println!("agent online");
    // And after it has sent again what it had spooled.
    verify(&ctl, &reported)?;
    if args.has("verify") {
        agent.stop()?;
        collector.stop()?;
        println!("verified {}", reported.len());
        return Ok(());
    }
    produce(&ctl, round)
}

fn once(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn wait(what: &str, process: &mut Process, ready: impl Fn() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !ready().unwrap_or(false) {
        if process.ended().is_some() || begun.elapsed() > READY {
            bail!("{what} is not ready; it said:\n{}", process.said());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// How often the exec of each program whose path begins so is stored.
fn stored(ctl: &Ctl, prefix: &str) -> Result<HashMap<String, usize>> {
    let filter = format!(r#"kind == "exec" && proc.exe.path.startsWith("{prefix}")"#);
    let answer = ctl.ask(&[
        "events", "list", "--since", "30d", "--where", &filter, "-o", "jsonl",
    ])?;
    let mut counts = HashMap::new();
    for row in &answer.rows {
        *counts
            .entry(text(row, "proc.exe.path").to_owned())
            .or_default() += 1;
    }
    Ok(counts)
}

fn verify(ctl: &Ctl, reported: &HashSet<String>) -> Result<()> {
    let counts = stored(ctl, &format!("{PROGRAMS}/"))?;
    let missing: Vec<&String> = reported
        .iter()
        .filter(|path| !counts.contains_key(*path))
        .collect();
    let doubled: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    ensure!(
        missing.is_empty() && doubled.is_empty(),
        "of {} reported {} are missing: {:?}; doubled: {:?}",
        reported.len(),
        missing.len(),
        missing.iter().take(5).collect::<Vec<_>>(),
        doubled.iter().take(5).collect::<Vec<_>>()
    );
    println!(
        "{} stored, {} of them reported before",
        counts.len(),
        reported.len()
    );
    Ok(())
}

fn produce(ctl: &Ctl, round: u64) -> Result<()> {
    fs::create_dir_all(PROGRAMS)?;
    let helper = Path::new(PROGRAMS).join("helper");
    elf::write(&helper)?;
    let mut told = HashSet::new();
    for seq in 0u64.. {
        let path = format!("{PROGRAMS}/r{round}-{seq}");
        fs::hard_link(&helper, &path)?;
        Command::new(&path)
            .status()
            .with_context(|| format!("run {path}"))?;
        fs::remove_file(&path)?;
        if seq % 10 != 9 {
            continue;
        }
        for path in stored(ctl, &format!("{PROGRAMS}/r{round}-"))?.into_keys() {
            if told.insert(path.clone()) {
                // One write a line: the serial port has it, or only a part without an end.
                println!("acked {path}");
            }
        }
        println!("told {}", told.len());
    }
    Ok(())
}
