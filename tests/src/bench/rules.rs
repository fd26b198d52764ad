//! What the number of rules costs those whom no rule asks for, and what rules that kill add to an exec.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::report::{Report, Sample};
use super::shop::{self, Policies};
use super::work::{Work, measured, per, per_piece};
use crate::host::{Agent, Collector};
use crate::programs;
use crate::raw::bpf;

/// Rules of the large set.
const MANY: usize = 1000;
/// Execs of one look at the kernel's statistics.
const EXECS: u32 = 500;
/// Hooks of the life of processes.
const LIFE: [&str; 3] = [
    "sched_process_fork",
    "sched_process_exec",
    "sched_process_exit",
];

/// Runs both comparisons. The agent is stopped, and has its own policies back afterwards.
///
/// # Errors
/// The agent does not start or stop, or the kernel does not tell its statistics.
pub fn run(
    rounds: usize,
    work: &Work,
    agent: &mut Agent,
    collector: &Collector,
    report: &mut Report,
) -> Result<()> {
    let many = shop::files(MANY, &std::env::temp_dir());
    opens(rounds, &many, work, agent, collector, report)?;
    let kills = vec![("kills".to_owned(), shop::kills())];
    execs(rounds, &kills, work, agent, collector, report)
}

/// Runs the agent with these policies beside its own, as long as `during` takes.
///
/// # Errors
/// The agent does not start or stop, or that of `during`.
pub fn with<T>(
    policies: &Policies,
    agent: &mut Agent,
    collector: &Collector,
    during: impl FnOnce(&mut Agent) -> Result<T>,
) -> Result<T> {
    for (name, text) in policies {
        agent.policy(name, text)?;
    }
    agent.run()?;
    agent.online(collector)?;
    let result = during(agent);
    agent.stop()?;
    agent.release()?;
    for (name, _) in policies {
        let path = agent.home().join("policies").join(format!("{name}.toml"));
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    result
}

fn opens(
    rounds: usize,
    many: &Policies,
    work: &Work,
    agent: &mut Agent,
    collector: &Collector,
    report: &mut Report,
) -> Result<()> {
    let measure = || measured(|| per_piece(20_000, || work.open()));
    let (mut rows, mut counted) = (Vec::new(), 0);
    for round in 0..rounds {
        let off = measure()?;
        let mut one = || with(&Vec::new(), agent, collector, |_| measure());
        // Which comes first changes, so that drift cancels.
        let first = match round % 2 {
            0 => Some(one()?),
            _ => None,
        };
        let thousand = with(many, agent, collector, |agent| {
            counted = rules(agent)?.0;
            measure()
        })?;
        let one = match first {
            Some(one) => one,
            None => with(&Vec::new(), agent, collector, |_| measure())?,
        };
        println!(
            "  round {:>2}: open+close {off:.0} / {one:.0} / {thousand:.0} ns (off / 1 rule / {MANY} more)",
            round + 1
        );
        rows.push((off, one, thousand));
    }
    ensure!(counted == MANY + 1, "the agent has {counted} rules loaded");
    report.section(&format!(
        "Processor time added to an unmatched open+close, ns: median (quartiles) of {rounds} rounds"
    ));
    let sample = |value: fn(&(f64, f64, f64)) -> f64| Sample::of(rows.iter().map(value).collect());
    let one = sample(|row| row.1 - row.0);
    let thousand = sample(|row| row.2 - row.0);
    let ratio = thousand.median / one.median;
    report.figure(
        "rules_open_1_ns",
        "with 1 rule",
        one.to_string(),
        one.json(),
        "",
    );
    report.figure(
        "rules_open_1000_ns",
        &format!("with {counted} rules on open"),
        thousand.to_string(),
        thousand.json(),
        "",
    );
    report.figure(
        "rules_open_ratio",
        "the medians, 1001 rules against 1",
        format!("x {ratio:.2}"),
        json!(ratio),
        "goal: 1",
    );
    Ok(())
}

/// How many rules the agent says it has loaded, and how many of them kill before the start.
fn rules(agent: &Agent) -> Result<(usize, usize)> {
    let output = Command::new(programs::path("sumun-agent"))
        .args(["status", "-o", "json", "--config"])
        .arg(agent.config())
        .output()
        .context("run sumun-agent status")?;
    let status: Value = serde_json::from_slice(&output.stdout).context("the agent's status")?;
    let policies = status["policies"].as_array().context("no policies in it")?;
    let modes = policies
        .iter()
        .filter_map(|policy| policy["modes"].as_array());
    let (mut all, mut killing) = (0, 0);
    for mode in modes.flatten() {
        all += 1;
        killing += usize::from(mode["effective"] == "kill-before-start");
    }
    Ok((all, killing))
}

/// Of one fork+exec+exit, ns: processor time, then what the programs of `LIFE` take in the kernel.
type Exec = (f64, [f64; 3]);

fn execs(
    rounds: usize,
    kills: &Policies,
    work: &Work,
    agent: &mut Agent,
    collector: &Collector,
    report: &mut Report,
) -> Result<()> {
    let mut killing = 0;
    let mut measure = |agent: &mut Agent| -> Result<Exec> {
        killing = rules(agent)?.1.max(killing);
        let cpu = measured(|| per_piece(150, || work.exec()))?;
        Ok((cpu, in_kernel(work)?))
    };
    let none = Vec::new();
    let mut rows = Vec::new();
    for round in 0..rounds {
        let before = with(&none, agent, collector, &mut measure)?;
        let kill = with(kills, agent, collector, &mut measure)?;
        let after = with(&none, agent, collector, &mut measure)?;
        println!(
            "  round {:>2}: fork+exec+exit {:.1} / {:.1} / {:.1} us, exec program {:.0} / {:.0} / {:.0} ns \
             (without / with / without rules that kill)",
            round + 1,
            before.0 / 1e3,
            kill.0 / 1e3,
            after.0 / 1e3,
            before.1[1],
            kill.1[1],
            after.1[1],
        );
        rows.push((before, kill, after));
    }
    ensure!(killing == 20, "{killing} rules kill before the start");
    report.section(&format!(
        "20 rules that kill, judged in the kernel, none matching: ns added to an exec, median (quartiles) of {rounds} rounds"
    ));
    let mut put = |key: &str, what: &str, get: &dyn Fn(&Exec) -> f64, goal: &str| {
        let of = |value: &dyn Fn(&(Exec, Exec, Exec)) -> f64| {
            Sample::of(rows.iter().map(value).collect())
        };
        let without = of(&|row| f64::midpoint(get(&row.0), get(&row.2)));
        let added = of(&|row| get(&row.1) - f64::midpoint(get(&row.0), get(&row.2)));
        let control = of(&|row| get(&row.2) - get(&row.0));
        report.figure(
            &format!("kill_{key}_added_ns"),
            what,
            format!("{added}; without {without}; control {control}"),
            json!({"added": added.json(), "without": without.json(), "control": control.json()}),
            goal,
        );
    };
    for (number, hook) in LIFE.iter().enumerate() {
        put(
            hook,
            &format!("{hook}, in the kernel"),
            &|row| row.1[number],
            "",
        );
    }
    put(
        "kernel",
        "all three",
        &|row| row.1.iter().sum(),
        "goal: 1000 or less",
    );
    put("cpu", "fork+exec+exit, processor time", &|row| row.0, "");
    Ok(())
}

/// What the programs of `LIFE` take for one fork+exec+exit, by the kernel's statistics.
fn in_kernel(work: &Work) -> Result<[f64; 3]> {
    let _on = bpf::statistics().context("switch the kernel's BPF statistics on")?;
    let before = bpf::attached()?;
    measured(|| (0..EXECS).try_for_each(|_| work.exec()))?;
    let after = bpf::attached()?;
    let mut times = [0.0; 3];
    for now in &after {
        let Some(place) = LIFE.iter().position(|hook| *hook == now.hook) else {
            continue;
        };
        if let Some(then) = before.iter().find(|one| one.link == now.link) {
            // A mean of all runs: other programs of the host are in it, too.
            times[place] += per(now.run_ns - then.run_ns, now.runs - then.runs);
        }
    }
    ensure!(
        times.iter().all(|time| *time > 0.0),
        "the agent's programs on {LIFE:?} did not run: {times:?}"
    );
    Ok(times)
}
