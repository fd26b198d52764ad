//! The same watch by the agent, by auditd and by bpftrace: what each costs the work that is watched, and
//! what it takes for itself.
//!
//! Watched are the opens below one directory, all execs and all TCP connects. In each round each of
//! them runs in turn, and nothing at the beginning and at the end; the differences to the mean of
//! these two are the sample.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::auditd::{self, Auditd, Quiet};
use super::bpftrace::{self, Bpftrace};
use super::nginx::{self, Nginx};
use super::rate;
use super::report::{Report, Sample};
use super::rules::with;
use super::work::{BATCHES, Work, measured, per, per_piece};
use crate::host::{Agent, Collector};

/// After the work, as long as a watcher may still have to do with it.
const SETTLE: Duration = Duration::from_millis(600);
/// How long it is watched without the work: what it takes then is not the work's.
const IDLE: Duration = Duration::from_secs(1);

/// Work: key, words, pieces of a batch, goal of the workload and of the agent in ns.
const KINDS: [(&str, &str, u32, &str, &str); 5] = [
    (
        "open",
        "an unmatched open+close",
        20_000,
        "goal: 150 or less",
        "",
    ),
    (
        "matched",
        "a matched open+close",
        1_500,
        "goal: 1000 or less",
        "goal: 3000 or less",
    ),
    (
        "exec",
        "fork+exec+exit, ten short arguments",
        200,
        "goal: 6000 or less, in the kernel",
        "goal: 20000 or less",
    ),
    (
        "connect",
        "a TCP connection over loopback",
        400,
        "goal: 2000 or less",
        "goal: 5000 or less",
    ),
    (
        "nginx",
        "a request to nginx, each with a connection",
        200,
        "goal: 3000 or less",
        "goal: 6000 or less",
    ),
];
/// The place of nginx among them, the last: left out where it is not there.
const NGINX: usize = 4;
const NAMES: [&str; 3] = ["sumun", "auditd", "bpftrace"];

/// Nanoseconds a piece of each kind of work: of the workload, and of the watcher itself.
type Phase = [(f64, f64); KINDS.len()];

/// The kinds of work that can be done here.
fn kinds() -> &'static [(&'static str, &'static str, u32, &'static str, &'static str)] {
    match nginx::hindered() {
        Some(_) => &KINDS[..NGINX],
        None => &KINDS,
    }
}

/// Two phases with nothing, and one of each watcher that can run here.
struct Round {
    off: [Phase; 2],
    on: [Option<Phase>; 3],
}

/// Runs the rounds and reports. The agent is stopped, and has its own policies back afterwards.
///
/// # Errors
/// The agent does not start or stop; of the others, that one does not stop as it should.
pub fn run(
    rounds: usize,
    dirs: (&Path, &Path),
    work: &Work,
    agent: &mut Agent,
    collector: &Collector,
    report: &mut Report,
) -> Result<()> {
    let (scratch, matched) = dirs;
    let mut skipped = [None, auditd::hindered(), bpftrace::hindered(matched)];
    let policies = vec![("peers".to_owned(), CONNECTS.to_owned())];
    let mut rows = Vec::new();
    let mut seen = [(0, 0, 0); 3];
    phase(work, None)?; // warms caches, counts for nothing
    for round in 0..rounds {
        let before = phase(work, None)?;
        let mut on = [None; 3];
        // Another one is first each time, so that drift cancels.
        for place in 0..NAMES.len() {
            let which = (round + place) % NAMES.len();
            if skipped[which].is_some() {
                continue;
            }
            let dir = scratch.join(format!("peer-{round}-{which}"));
            fs::create_dir(&dir)?;
            let result = match which {
                0 => with(&policies, agent, collector, |agent| {
                    let pid = agent.process().pid();
                    phase(work, Some(&|| rate::cpu_ns(pid)))
                })
                .map(Ok)?,
                1 => Quiet::without(|| {
                    let auditd = Auditd::start(&dir, matched)?;
                    let done = phase(work, Some(&|| auditd.cpu_ns()))?;
                    note(&mut seen[which], (auditd.recorded()?, auditd.lost()?));
                    Ok(done)
                }),
                _ => Bpftrace::start(&dir, matched).and_then(|bpftrace| {
                    let done = phase(work, Some(&|| bpftrace.cpu_ns()))?;
                    note(&mut seen[which], bpftrace.finish()?);
                    Ok(done)
                }),
            };
            match result {
                Ok(done) => on[which] = Some(done),
                Err(error) => skipped[which] = Some(format!("{error:#}")),
            }
            fs::remove_dir_all(&dir)?;
        }
        let after = phase(work, None)?;
        say(round, &before, &on, &after);
        rows.push(Round {
            off: [before, after],
            on,
        });
    }
    for (name, why) in NAMES.iter().zip(&skipped) {
        if let Some(why) = why {
            println!("SKIPPED {name}: {why}");
        }
    }
    tell(&rows, report);
    recorded(&seen, report);
    let nginx = nginx::hindered();
    if let Some(why) = &nginx {
        println!("SKIPPED nginx: {why}");
    }
    let count = skipped.iter().chain([&nginx]).flatten().count();
    report.figure(
        "peers_skipped",
        "skipped",
        count.to_string(),
        json!(count),
        "",
    );
    if skipped[1].is_none() {
        println!(
            "  note: until the next boot the kernel puts audit's hook into every new process; \
             'auditctl -a task,never' keeps it out, and then auditd sees none of them"
        );
    }
    Ok(())
}

/// Beside the benchmark's own rule on opens.
const CONNECTS: &str = r#"
[policy]
name = "peers"
version = 1

[[rule]]
id = "connects"
on = ["connect"]
effect = "record"
"#;

/// All kinds of work once, under a watcher with this clock or under none.
fn phase(work: &Work, watcher: Option<&dyn Fn() -> Result<u64>>) -> Result<Phase> {
    let mut done = [(0.0, 0.0); KINDS.len()];
    // What audit has of a process was decided when it began.
    let nginx = match nginx::hindered() {
        Some(_) => None,
        None => Some(Nginx::start()?),
    };
    let idle = match watcher {
        Some(cpu_ns) => {
            std::thread::sleep(SETTLE); // after its start
            let (from, begun) = (cpu_ns()?, Instant::now());
            std::thread::sleep(IDLE);
            share(cpu_ns()? - from, begun.elapsed())
        }
        None => 0.0,
    };
    for (place, (_, _, count, _, _)) in kinds().iter().enumerate() {
        let served = nginx.as_ref().filter(|_| place == NGINX);
        let server = || served.map_or(Ok(0), Nginx::cpu_ns);
        let begun = Instant::now();
        let from = watcher.map_or(Ok(0), |cpu_ns| cpu_ns())?;
        let server_from = server()?;
        let each = measured(|| {
            per_piece(*count, || match (place, served) {
                (0, _) => work.open(),
                (1, _) => work.open_matched(),
                (2, _) => work.exec(),
                (_, Some(nginx)) => nginx.request(),
                (_, None) => work.connect(),
            })
        })?;
        let each = each + per(server()? - server_from, u64::from(*count * BATCHES));
        let own = match watcher {
            Some(cpu_ns) => {
                std::thread::sleep(SETTLE);
                per(cpu_ns()? - from, 1) - idle * begun.elapsed().as_secs_f64()
            }
            None => 0.0,
        };
        done[place] = (each, own / f64::from(*count * BATCHES));
    }
    Ok(done)
}

/// Nanoseconds a second.
fn share(ns: u64, time: Duration) -> f64 {
    per(ns, 1) / time.as_secs_f64().max(1e-9)
}

/// Adds a round, what was recorded in it, what was lost.
fn note(seen: &mut (u64, u64, u64), (recorded, lost): (u64, u64)) {
    *seen = (seen.0 + 1, seen.1 + recorded, seen.2 + lost);
}

fn say(round: usize, before: &Phase, on: &[Option<Phase>; 3], after: &Phase) {
    for (place, (_, words, ..)) in kinds().iter().enumerate() {
        let each = on.iter().map(|phase| {
            phase.map_or("-".to_owned(), |phase| {
                let (work, own) = phase[place];
                format!("{work:.0}+{own:.0}")
            })
        });
        println!(
            "  round {:>2}: {words}: {:.0} / {} / {:.0} ns (off / {} with their own time / off)",
            round + 1,
            before[place].0,
            each.collect::<Vec<_>>().join(" / "),
            after[place].0,
            NAMES.join(" / "),
        );
    }
}

fn tell(rows: &[Round], report: &mut Report) {
    for (place, (key, words, _, goal_work, goal_own)) in kinds().iter().enumerate() {
        report.section(&format!(
            "Processor time added to {words}, ns: median (quartiles) of {} rounds",
            rows.len()
        ));
        let base = |row: &Round| f64::midpoint(row.off[0][place].0, row.off[1][place].0);
        let without = Sample::of(rows.iter().map(base).collect());
        let control = rows
            .iter()
            .map(|row| row.off[1][place].0 - row.off[0][place].0);
        let control = Sample::of(control.collect());
        report.figure(
            &format!("peers_{key}_without_ns"),
            "without any; control: off against off",
            format!("{without}; {control}"),
            json!({"without": without.json(), "control": control.json()}),
            "",
        );
        for (which, name) in NAMES.iter().enumerate() {
            let of = |value: &dyn Fn(&Round, (f64, f64)) -> f64| {
                let values = rows
                    .iter()
                    .filter_map(|row| Some(value(row, row.on[which]?[place])));
                Sample::of(values.collect())
            };
            let work = of(&|row, phase| phase.0 - base(row));
            let own = of(&|_, phase| phase.1);
            let both = of(&|row, phase| phase.0 + phase.1 - base(row));
            if work.count == 0 {
                continue;
            }
            let ours = which == 0;
            for (part, words, sample, goal) in [
                ("work", "workload", work, *goal_work),
                ("own", "itself", own, *goal_own),
                (
                    "both",
                    "both",
                    both,
                    if ours { "lower than the others" } else { "" },
                ),
            ] {
                report.figure(
                    &format!("peers_{key}_{name}_{part}_ns"),
                    &format!("{name}, {words}"),
                    sample.to_string(),
                    sample.json(),
                    if ours { goal } else { "" },
                );
            }
        }
    }
}

/// How much of the watched work is in the records of the others.
fn recorded(seen: &[(u64, u64, u64); 3], report: &mut Report) {
    report.section("Of the watched opens, execs and connects, in their records");
    let asked: u32 = kinds()[1..].iter().map(|kind| kind.2 * BATCHES).sum();
    for (name, (rounds, recorded, lost)) in NAMES.iter().zip(seen).filter(|(_, seen)| seen.0 > 0) {
        let asked = rounds * u64::from(asked);
        report.figure(
            &format!("peers_recorded_{name}"),
            &format!("{name} (with what the host did besides)"),
            format!("{recorded} of {asked}; it says {lost} lost"),
            json!({"recorded": recorded, "asked": asked, "lost": lost}),
            "",
        );
    }
}
