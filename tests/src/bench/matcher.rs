//! How many events the rule engine judges in a second on one processor, with few and with many rules.

use std::hint::black_box;

use anyhow::{Result, ensure};
use serde_json::json;
use sumun_abi::event::file::{ACCESS_READ, ACCESS_WRITE};
use sumun_engine::Engine;
use sumun_policy::{CheckedPolicy, check_files};
use sumun_proto::v1::{Batch, Event, File, Image, Kind, Network};
use sumun_proto::{Host, View};

use super::rate;
use super::report::{Report, Sample};
use super::shop;
use super::work::{measured, per_piece};

/// Numbers of rules that are compared.
const RULES: [usize; 3] = [1, 100, 1000];
/// Events of a batch.
const EVENTS: u32 = 1000;
/// Batches judged between two looks at the clock.
const REPEATS: u32 = 10;

/// Runs the rounds and reports events a second: once with events whose ancestry is not known to its
/// end, so that every rule on ancestors of a program is undecided, and once with events of which it is.
///
/// # Errors
/// A policy is not valid.
pub fn run(rounds: usize, report: &mut Report) -> Result<()> {
    let engines = RULES
        .iter()
        .map(|count| engine(*count))
        .collect::<Result<Vec<_>>>()?;
    for known in [false, true] {
        measure(rounds, &engines, known, report)?;
    }
    build(report)
}

fn measure(rounds: usize, engines: &[Engine], known: bool, report: &mut Report) -> Result<()> {
    let batch = batch(known);
    let mut times = vec![Vec::new(); RULES.len()];
    for _ in 0..rounds {
        for (engine, times) in engines.iter().zip(&mut times) {
            let per_batch = measured(|| per_piece(REPEATS, || judge(engine, &batch)))?;
            times.push(per_batch / f64::from(EVENTS));
        }
    }
    let (ancestry, suffix) = match known {
        true => ("known", "_known"),
        false => ("not known to its end", ""),
    };
    report.section(&format!(
        "The rule engine alone, one processor, execs, opens and connects 3:5:2, ancestry {ancestry}: median (quartiles) of {rounds} rounds"
    ));
    let mut medians = Vec::new();
    for ((count, engine), times) in RULES.iter().zip(engines).zip(times) {
        let rate = Sample::of(times.iter().map(|ns| 1e9 / ns).collect());
        let ns = Sample::of(times);
        medians.push(ns.median);
        report.figure(
            &format!("matcher_{count}{suffix}_per_second"),
            &format!("events/s, number of rules: {count}"),
            format!(
                "{rate}; {:.0} ns and {:.2} hits an event",
                ns.median,
                hits(engine, &batch)
            ),
            rate.json(),
            if *count == 100 {
                "goal: 1000000 or more"
            } else {
                ""
            },
        );
    }
    if let [_, hundred, thousand] = medians[..] {
        report.figure(
            &format!("matcher_1000{suffix}_to_100"),
            "time an event, 1000 rules against 100",
            format!("x {:.2}", thousand / hundred),
            json!(thousand / hundred),
            "goal: almost 1",
        );
    }
    Ok(())
}

/// What it takes to make the engine of ten thousand rules, and to keep it.
fn build(report: &mut Report) -> Result<()> {
    const RULES: usize = 10_000;
    let policies = checked(RULES)?;
    let before = rate::pss_kib(std::process::id())?;
    let mut engine = None;
    let ns = measured(|| {
        per_piece(1, || {
            engine = Some(Engine::new(&policies));
            Ok(())
        })
    })?;
    let index_kib = engine.as_ref().map_or(0, Engine::index_bytes) / 1024;
    let grown = rate::pss_kib(std::process::id())?.saturating_sub(before);
    report.figure(
        "matcher_build_10000",
        &format!("engine of {RULES} rules: processor time to make it"),
        format!(
            "{:.0} ms; the index takes {index_kib} KiB, all of it {grown} KiB at most",
            ns / 1e6
        ),
        json!({ "ns": ns, "index_kib": index_kib, "grown_kib": grown }),
        "",
    );
    drop(engine);
    Ok(())
}

fn engine(rules: usize) -> Result<Engine> {
    Ok(Engine::new(&checked(rules)?))
}

fn checked(rules: usize) -> Result<Vec<CheckedPolicy>> {
    let policies = shop::mixed(rules);
    let files = policies
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()));
    let mut checked = Vec::new();
    for check in check_files(files) {
        ensure!(
            check.errors.is_empty(),
            "a policy of the benchmark: {check}"
        );
        checked.extend(check.policy);
    }
    Ok(checked)
}

/// Hits an event.
#[expect(clippy::cast_precision_loss, reason = "a thousand events")]
fn hits(engine: &Engine, batch: &Batch) -> f64 {
    let host = Host::default();
    let (mut hits, mut sum) = (Vec::new(), 0);
    for event in &batch.events {
        let view = View {
            host: &host,
            batch,
            event,
            alert: None,
        };
        engine.evaluate(&view, &mut hits);
        sum += hits.len();
    }
    sum as f64 / f64::from(EVENTS)
}

fn judge(engine: &Engine, batch: &Batch) -> Result<()> {
    let host = Host::default();
    let mut hits = Vec::new();
    for event in &batch.events {
        let view = View {
            host: &host,
            batch,
            event,
            alert: None,
        };
        black_box(engine.evaluate(black_box(&view), &mut hits));
    }
    Ok(())
}

/// A batch as a busy host sends it: a few dozen programs, each a service's, a shell or a tool, with
/// parents; every second open and every fourth connect is one that a rule of a thousand asks for. The
/// first program is that of the first process if the ancestry is to be `known`, else one whose parent is missing.
fn batch(known: bool) -> Batch {
    let mut images = vec![image(0, 0, "/usr/lib/systemd/systemd")];
    if known {
        images[0].pid = 1;
    }
    for service in 1..10 {
        images.push(image(
            1,
            service,
            &format!("/srv/service-{service}/bin/service-{service}"),
        ));
    }
    let tools = [
        "/usr/bin/dash",
        "/usr/bin/bash",
        "/usr/bin/curl",
        "/usr/bin/grep",
        "/usr/bin/python3.11",
        "/usr/sbin/cron",
        "/usr/bin/tool-7",
        "/usr/bin/cat",
    ];
    for number in 0..30_usize {
        let parent = 2 + number % 9;
        images.push(image(parent, number, tools[number % tools.len()]));
    }
    let count = images.len();
    let events = (0..EVENTS as usize)
        .map(|number| {
            let mut event = Event {
                image: u32::try_from(1 + number * 7 % count).unwrap_or(1),
                ..Event::default()
            };
            // Spread over all rules.
            let service = number * 37 % 1000;
            match number % 10 {
                0 | 3 | 6 => event.kind = Kind::Exec.into(),
                2 | 7 => {
                    event.kind = Kind::Connect.into();
                    event.network = Some(connection(service, number % 4 == 0));
                }
                _ => {
                    event.kind = Kind::Open.into();
                    event.file = Some(file(service, number.is_multiple_of(2)));
                }
            }
            event
        })
        .collect();
    Batch {
        images,
        events,
        ..Batch::default()
    }
}

fn image(parent: usize, number: usize, path: &str) -> Image {
    let number = u32::try_from(number).unwrap_or(0);
    Image {
        pid: 100 + number,
        seen: true,
        parent: u32::try_from(parent).unwrap_or(0),
        exe_path: path.to_owned(),
        args: ["-c", "--config", "/etc/app.conf", "--verbose"]
            .map(str::to_owned)
            .to_vec(),
        uid: 1000 + number,
        ..Image::default()
    }
}

fn file(service: usize, asked: bool) -> File {
    let path = match asked {
        true if service.is_multiple_of(2) => format!("/srv/service-{service}/secrets/key.pem"),
        true => format!("/srv/service-{service}/app.d/main.conf"),
        false => format!("/usr/lib/python3/dist-packages/module_{service}/__init__.py"),
    };
    File {
        path: Some(path),
        flags: match asked {
            true => ACCESS_READ | ACCESS_WRITE,
            false => ACCESS_READ,
        },
        ..File::default()
    }
}

fn connection(service: usize, asked: bool) -> Network {
    let last = u8::try_from(service % 250).unwrap_or(0);
    Network {
        src_ip: vec![10, 200, 0, 1],
        dst_ip: vec![192, 0, 2, last],
        src_port: 40_000,
        dst_port: match asked {
            true => 20_000 + u32::try_from(service).unwrap_or(0),
            false => 443,
        },
        protocol: 6,
        result: Some(0),
        ..Network::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_events_match_and_most_do_not() {
        let (engine, batch) = (engine(1000).expect("an engine"), batch(false));
        let host = Host::default();
        let mut hits = Vec::new();
        let hit = batch.events.iter().filter(|event| {
            let view = View {
                host: &host,
                batch: &batch,
                event,
                alert: None,
            };
            engine.evaluate(&view, &mut hits);
            !hits.is_empty()
        });
        let hit = hit.count();
        assert!((50..500).contains(&hit), "{hit} of {EVENTS} events match");
    }
}
