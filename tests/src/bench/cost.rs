//! What the agent adds to four kinds of work, in interleaved rounds.
//!
//! Each round measures: nothing attached, an empty program on each hook that
//! the agent uses, the agent, and nothing again. The differences within a round
//! are the sample; nothing against nothing shows how far the machine's own
//! unrest goes.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use super::report::{Report, Sample};
use super::work::{Work, measured, per, per_piece};
use crate::host::{Agent, Collector};
use crate::raw;
use crate::raw::bpf::{self, Attached};

/// Nanoseconds of one piece of each work.
#[derive(Clone, Copy, Debug)]
struct Costs {
    open: f64,
    open_shared: f64,
    call: f64,
    exec: f64,
}

/// Off, empty programs, the agent, off again.
type Round = (Costs, Costs, Costs, Costs);

fn measure(work: &Work) -> Result<Costs> {
    measured(|| {
        // This thread's descriptors are those of the whole process, as in every program with threads …
        let open_shared = per_piece(20_000, || work.open())?;
        // … and from here on its own, as in every program without.
        unshare(CloneFlags::CLONE_FILES).context("take a descriptor table of its own")?;
        Ok(Costs {
            open: per_piece(20_000, || work.open())?,
            open_shared,
            call: per_piece(200_000, || {
                raw::getppid();
                Ok(())
            })?,
            exec: per_piece(60, || work.exec())?,
        })
    })
}

/// Runs the rounds and reports the differences.
///
/// # Errors
/// The agent does not start or stop, or a program cannot be attached.
pub fn run(
    rounds: usize,
    work: &Work,
    agent: &mut Agent,
    collector: &Collector,
    report: &mut Report,
) -> Result<()> {
    // Which hooks the agent uses, it shows by itself.
    agent.run()?;
    agent.online(collector)?;
    let hooks: Vec<u32> = bpf::attached()?.iter().map(|one| one.btf_id).collect();
    agent.stop()?;
    agent.release()?;
    ensure!(
        !hooks.is_empty() && hooks.iter().all(|id| *id != 0),
        "the agent's hooks cannot be found: {hooks:?}"
    );
    let mut rows = Vec::new();
    measure(work)?; // warms caches, counts for nothing
    for round in 0..rounds {
        let off = measure(work)?;
        let empty = {
            let _links = hooks
                .iter()
                .map(|id| bpf::attach_empty(*id))
                .collect::<nix::Result<Vec<OwnedFd>>>()
                .context("attach an empty program")?;
            measure(work)?
        };
        agent.run()?;
        agent.online(collector)?;
        let on = measure(work)?;
        agent.stop()?;
        agent.release()?;
        let off_again = measure(work)?;
        println!(
            "  round {:>2}: open+close {:.0} / {:.0} / {:.0} / {:.0} ns, with threads {:.0} / {:.0} / {:.0} / {:.0} ns, getppid {:.0} / {:.0} / {:.0} / {:.0} ns, \
             fork+exec+exit {:.0} / {:.0} / {:.0} / {:.0} us (off / empty / agent / off)",
            round + 1,
            off.open,
            empty.open,
            on.open,
            off_again.open,
            off.open_shared,
            empty.open_shared,
            on.open_shared,
            off_again.open_shared,
            off.call,
            empty.call,
            on.call,
            off_again.call,
            off.exec / 1e3,
            empty.exec / 1e3,
            on.exec / 1e3,
            off_again.exec / 1e3,
        );
        rows.push((off, empty, on, off_again));
    }
    type Get = fn(&Costs) -> f64;
    let kinds: [(&str, &str, Get, &str, &str); 4] = [
        (
            "open",
            "an unmatched open+close",
            |costs| costs.open,
            "goal: 150 ns or less",
            "",
        ),
        (
            "open_shared",
            "an unmatched open+close by a process with threads",
            |costs| costs.open_shared,
            "goal: 150 ns or less",
            "",
        ),
        (
            "syscall",
            "a system call nobody asked about",
            |costs| costs.call,
            "",
            "goal: 10 ns or less",
        ),
        (
            "exec",
            "fork+exec+exit, ten short arguments",
            |costs| costs.exec,
            "",
            "",
        ),
    ];
    for (key, what, get, goal_added, goal_above) in kinds {
        report.section(&format!(
            "Processor time added to {what}, ns: median (quartiles) of {rounds} rounds"
        ));
        // Each phase against the mean of the two empty ones around it, so that drift cancels.
        let base = |row: &Round| f64::midpoint(get(&row.0), get(&row.3));
        let sample = |value: &dyn Fn(&Round) -> f64| Sample::of(rows.iter().map(value).collect());
        let control = sample(&|row| get(&row.3) - get(&row.0));
        let without = sample(&base);
        let empty = sample(&|row| get(&row.1) - base(row));
        let added = sample(&|row| get(&row.2) - base(row));
        let above = sample(&|row| get(&row.2) - get(&row.1));
        let mut put = |name: &str, words: &str, sample: Sample, goal: &str| {
            report.figure(
                &format!("{key}_{name}_ns"),
                words,
                sample.to_string(),
                sample.json(),
                goal,
            );
        };
        put("without", "without the agent", without, "");
        put("control", "control: off against off", control, "");
        put(
            "empty",
            "added by empty programs on the same hooks",
            empty,
            "",
        );
        put("added", "added by the agent", added, goal_added);
        put(
            "above_empty",
            "the agent above the empty programs",
            above,
            goal_above,
        );
    }
    Ok(())
}

/// Where the time goes: nanoseconds of each program, from the kernel's own statistics.
///
/// # Errors
/// The kernel does not tell.
pub fn programs(work: &Work, report: &mut Report) -> Result<()> {
    const OPENS: u32 = 100_000;
    const CALLS: u32 = 200_000;
    const EXECS: u32 = 1_000;
    report
        .section("Nanoseconds a run of each program (kernel.bpf_stats_enabled; a run of its own)");
    let _on = bpf::statistics().context("switch the kernel's BPF statistics on")?;
    type Piece<'a> = &'a dyn Fn() -> Result<()>;
    let works: [(&str, u32, Piece<'_>); 3] = [
        ("unmatched open+close", OPENS, &|| work.open()),
        ("getppid", CALLS, &|| {
            raw::getppid();
            Ok(())
        }),
        ("fork+exec+exit", EXECS, &|| work.exec()),
    ];
    let mut json = serde_json::Map::new();
    let mut in_exec = 0.0;
    for (name, count, piece) in works {
        let before = bpf::attached()?;
        for _ in 0..count {
            piece()?;
        }
        let after = bpf::attached()?;
        let mut list = Vec::new();
        for now in &after {
            let Some(then) = before.iter().find(|one| one.link == now.link) else {
                continue;
            };
            let (runs, ns) = (now.runs - then.runs, now.run_ns - then.run_ns);
            if runs < u64::from(count) / 2 {
                continue;
            }
            list.push(program_line(now, runs, ns, count));
            if name == "fork+exec+exit" {
                in_exec += per(ns, u64::from(count));
            }
        }
        let words: Vec<String> = list.iter().map(|(words, _)| words.clone()).collect();
        let values: Vec<Value> = list.into_iter().map(|(_, value)| value).collect();
        json.insert(name.to_owned(), json!(values));
        for line in words {
            report.figure("programs", name, line, Value::Object(json.clone()), "");
        }
    }
    report.figure(
        "exec_in_kernel_ns",
        "all programs, one fork+exec+exit",
        format!("{in_exec:.0} ns"),
        json!(in_exec),
        "goal: 6 us or less",
    );
    Ok(())
}

fn program_line(program: &Attached, runs: u64, ns: u64, count: u32) -> (String, Value) {
    let each = per(ns, runs);
    let times = per(runs, u64::from(count));
    (
        format!("{:<20} {each:>6.0} ns x {times:.1}", program.hook),
        json!({"program": program.hook, "ns_per_run": each, "runs_per_piece": times}),
    )
}
