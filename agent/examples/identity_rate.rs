//! What it costs to find whose an event is, where a thousand containers are known: `cargo run --release --workspace --example identity_rate`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use sumun_agent::enrich::workload::Workloads;
use sumun_proto::v1;

const CONTAINERS: u64 = 1_000;
const EVENTS: u32 = 10_000;

fn main() {
    let mut workloads = Workloads::default();
    workloads.made(1, "/", 0);
    workloads.made(2, "/kubepods", 0);
    for number in 0..CONTAINERS {
        let (pod, container) = (1_000 + 2 * number, 1_001 + 2 * number);
        let path = format!("/kubepods/pod{number:08x}-0000-4000-8000-{number:012x}");
        workloads.made(pod, &path, 0);
        workloads.made(container, &format!("{path}/{number:064x}"), 0);
        let facts = v1::Facts {
            workload: container,
            container_name: "web".into(),
            pod_name: format!("cart-{number}"),
            ..v1::Facts::default()
        };
        workloads.learned(container, Some(&facts));
    }
    // Events come in runs, of one process after the other; and, at worst, each of another container.
    for (name, run) in [("one container after the other", 1), ("in runs of 50", 50)] {
        let mut best = Duration::MAX;
        for _ in 0..300 {
            let begun = Instant::now();
            for event in 0..EVENTS {
                let container = 1_001 + 2 * (u64::from(event / run) * 7919 % CONTAINERS);
                black_box(workloads.of(black_box(container)));
            }
            best = best.min(begun.elapsed() / EVENTS);
        }
        println!("{name:<32} {best:?} an event");
    }
    assert_eq!(workloads.stats().unknown, 0);
}
