//! Many short pods of a real containerd, several at once, against what the test knows of each: every event says whose it is,
//! the first included, and how long that took to be known is told. And a policy for the pods of one label: it stops what their
//! containers do first, and leaves the others alone.

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sumun_tests::check::{int, list, nobody_is_unknown, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::container::{Rootfs, has, pod_uid};
use sumun_tests::ctl::Ctl;
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::pod::{self, Containerd, Pod, Sandbox, cri};
use sumun_tests::programs::long;

/// How long the store may take until an answer is complete, and the runtime until it has told.
const LIMIT: Duration = Duration::from_secs(60);
/// Pods at once.
const AT_ONCE: u64 = 4;
/// From the making of a container's cgroup until all is known of it, ms: at most, of 99 in 100. On a quiet machine it is a hundredth of
/// that (docs/performance.md); beyond it something waits that should not.
const KNOWN_WITHIN_MS: i64 = 5_000;

/// What the test knows of a pod.
struct Known {
    pod: Pod,
    container: String,
}

/// What the containers read is an event, too: of another ring than what processes begin with, read when they may be gone.
const READ: &str = r#"
[policy]
name = "read"
version = 1

[[rule]]
id = "read"
on = ["open"]
when = 'file.name.startsWith("prog-")'
effect = "record"
"#;

/// What the pods of the cart may not do, however early.
fn policy(port: u16) -> String {
    format!(
        r#"
[policy]
name = "cart"
version = 1
mode = "enforce"

[selector]
k8s = {{ labels = {{ app = "cart" }} }}

[[rule]]
id = "evil"
on = ["exec"]
when = 'proc.exe.path == "/evil"'
effect = "kill"

[[rule]]
id = "out"
on = ["connect"]
when = 'net.dst.port == {port}'
effect = "deny"
"#
    )
}

/// A container of one command in a pod; its exit status.
fn run_in(
    containerd: &Containerd,
    (pod, sandbox): (&Pod, &Sandbox),
    (name, image): (&str, &str),
    command: &[&str],
) -> i32 {
    let config = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: name.into(),
            attempt: 0,
        }),
        image: Some(cri::ImageSpec {
            image: image.into(),
        }),
        command: command.iter().map(|part| (*part).to_owned()).collect(),
        ..cri::ContainerConfig::default()
    };
    let id = containerd.container(pod, sandbox, &config);
    let id = id.expect("a container");
    containerd.wait(&id, LIMIT).expect("it ends")
}

/// What is known of a pod holds while no agent is there, and is the same for the next one from its start on.
fn without_an_agent(
    containerd: &Containerd,
    image: &str,
    collector: &Collector,
    agent: &mut Agent,
) {
    let pod = |label: &str, number| Pod {
        name: format!("{label}-alone"),
        uid: pod_uid(number),
        namespace: "shop".into(),
        labels: vec![("app".into(), label.into())],
        logs: String::new(),
    };
    let pods = [(pod("cart", 30_000), true), (pod("basket", 30_001), false)];
    let sandboxes = pods
        .each_ref()
        .map(|(pod, _)| containerd.sandbox(pod).expect("a pod"));
    let all = |name: &str| {
        for ((pod, stopped), sandbox) in pods.iter().zip(&sandboxes) {
            let status = run_in(containerd, (pod, sandbox), (name, image), &["/evil"]);
            assert_eq!(status == 137, *stopped, "{name} in {}: {status}", pod.name);
        }
    };
    all("before");
    agent.kill();
    all("meanwhile");
    agent.run().expect("an agent that runs");
    agent.online(collector).expect("an agent that is online");
    all("after");
    for sandbox in sandboxes {
        containerd.remove(&sandbox.id).expect("a pod that ends");
    }
}

/// The first process of containers of pods, some of the cart: what became of them is what the policy says.
fn first_processes(containerd: &Containerd, image: &str, ctl: &Ctl, listener: TcpListener) {
    let since = unix_ns();
    let port = listener
        .local_addr()
        .expect("an address")
        .port()
        .to_string();
    let came = Arc::new(AtomicU64::new(0));
    let comes = Arc::clone(&came);
    std::thread::spawn(move || {
        // Each is closed at once, which ends the other side.
        for stream in listener.incoming() {
            comes.fetch_add(u64::from(stream.is_ok()), Ordering::Relaxed);
        }
    });
    let rounds = if long() { 25 } else { 1 };
    let mut denied = 0;
    for round in 0..rounds {
        for label in ["cart", "basket"] {
            let pod = Pod {
                name: format!("{label}-first-{round}"),
                uid: pod_uid(20_000 + 2 * round + u64::from(label == "cart")),
                namespace: "shop".into(),
                labels: vec![("app".into(), label.into())],
                logs: String::new(),
            };
            let sandbox = containerd.sandbox(&pod).expect("a pod");
            let run = |name, command: &[&str]| {
                run_in(containerd, (&pod, &sandbox), (name, image), command)
            };
            let evil = run("evil", &["/evil"]);
            let out = run("out", &["/bin/busybox", "nc", "127.0.0.1", &port]);
            let came = came.swap(0, Ordering::Relaxed) > 0;
            containerd.remove(&sandbox.id).expect("a pod that ends");
            let cart = label == "cart";
            assert_eq!(evil == 137, cart, "{}: {evil}", pod.name);
            assert_eq!((out == 0, came), (!cart, !cart), "{}: {out}", pod.name);
            denied += usize::from(cart);
        }
    }
    let begun = Instant::now();
    loop {
        let alerts = ctl.alerts(since, r#"policy.name == "cart""#);
        let rows = alerts.expect("an answer").rows;
        if rows.len() < 2 * denied && begun.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(100));
            continue;
        }
        assert_eq!(rows.len(), 2 * denied, "{rows:?}");
        for row in &rows {
            let verdict = (text(row, "verdict.effective"), text(row, "verdict.outcome"));
            let wanted = match text(row, "rule.id") {
                "evil" => ("kill-before-start", "killed"),
                _ => ("deny", "denied"),
            };
            assert_eq!(verdict, wanted, "{row}");
        }
        break;
    }
    println!(
        "of {} pods, the first process of {denied} was killed before it began, and their first connection denied",
        2 * rounds
    );
}

fn quantile(sorted: &[i64], of_100: usize) -> i64 {
    sorted[(sorted.len() - 1) * of_100 / 100]
}

#[test]
fn every_event_of_many_short_pods_says_whose_it_is() {
    let Some(turn) = Turn::take("every_event_of_many_short_pods") else {
        return;
    };
    if !has("containerd") || !has("ctr") || !has("runc") || !has("busybox") {
        println!("SKIPPED pods: containerd, runc or busybox is not installed");
        return;
    }
    let asked = std::env::var("SUMUN_PODS").ok();
    let asked = asked.map(|count| count.parse().expect("SUMUN_PODS is a number of pods"));
    let count = asked.unwrap_or(if long() { 1_000 } else { 12 });
    let dir = scratch();
    let rootfs = Rootfs::make(dir.path()).expect("a root");
    rootfs.shell().expect("a shell");
    rootfs.program("evil").expect("a program");
    for number in 0..count {
        rootfs
            .program(&format!("prog-{number}"))
            .expect("a program");
    }
    let tar = rootfs.tar().expect("a tar");
    let image = "sumun.test/many:1.0";
    let archive = pod::archive(dir.path(), &tar, image).expect("an image");
    let containerd = match Containerd::start(dir.path(), &archive, image) {
        Ok(containerd) => containerd,
        Err(error) => {
            println!("SKIPPED pods: {error:#}");
            return;
        }
    };
    let collector = Collector::start().expect("a collector");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let policies = [("cart", &*policy(port)), ("read", READ)];
    let mut agent = Agent::enroll(turn, &collector, &policies).expect("an agent");
    let mut config = fs::read_to_string(agent.config()).expect("a configuration");
    config.push_str(&format!(
        "\n[identity]\ncloud = \"off\"\ndocker = []\npodman = []\nstorage = []\ncri = [{:?}]\n",
        containerd.socket().display().to_string()
    ));
    fs::write(agent.config(), config).expect("a configuration");
    agent.run().expect("an agent that runs");
    agent.online(&collector).expect("an agent that is online");

    let since = unix_ns();
    let known = Mutex::new(HashMap::new());
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    let pod = Pod {
                        name: format!("cart-{number}"),
                        uid: pod_uid(10_000 + number),
                        namespace: format!("shop-{}", number % 7),
                        labels: vec![("app".into(), format!("cart-{number}"))],
                        logs: String::new(),
                    };
                    let script =
                        format!("/prog-{number}; : < /prog-{number}; exec /bin/busybox sleep 1");
                    let command = ["/bin/busybox", "sh", "-c", &script];
                    let (sandbox, container) =
                        containerd.run(&pod, image, &command).expect("a pod");
                    std::thread::sleep(Duration::from_secs(1));
                    containerd.remove(&sandbox).expect("a pod that ends");
                    let known = &mut *known.lock().expect("no panic");
                    known.insert(format!("prog-{number}"), Known { pod, container });
                }
            });
        }
    });
    let until = unix_ns();
    let known = known.into_inner().expect("no panic");

    let ctl = collector.ctl();
    // Each program began and ended once, and was read by the shell.
    let filters = [
        r#"kind in ["exec", "exit"] && proc.exe.name.startsWith("prog-")"#,
        r#"kind == "open" && file.name.startsWith("prog-")"#,
    ];
    let begun = Instant::now();
    let rows = loop {
        let rows = filters.map(|filter| {
            let answer = ctl.complete_events(since, until, filter, LIMIT);
            answer.expect("an answer").rows
        });
        let rows = rows.concat();
        // The runtime's word may still be on its way.
        let told = rows
            .iter()
            .all(|row| int(row, "workload.pending_ms").is_some());
        if told || begun.elapsed() > LIMIT {
            break rows;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    let mut pending = Vec::new();
    let mut each = HashMap::new();
    for row in &rows {
        let kind = text(row, "kind");
        let program = match kind {
            "open" => text(row, "file.name"),
            _ => text(row, "proc.exe.name"),
        };
        *each.entry((program, kind)).or_insert(0) += 1;
        let Known { pod, container } = &known[program];
        assert_eq!(text(row, "container.id"), container, "{row}");
        assert_eq!(text(row, "k8s.pod.uid"), pod.uid, "{row}");
        assert_eq!(text(row, "k8s.pod.name"), pod.name, "{row}");
        assert_eq!(text(row, "k8s.namespace"), pod.namespace, "{row}");
        let label = format!("app={}", pod.name);
        assert_eq!(list(row, "k8s.labels"), [label], "{row}");
        assert_eq!(text(row, "container.name"), "web", "{row}");
        assert_eq!(text(row, "container.image"), image, "{row}");
        pending.push(int(row, "workload.pending_ms").unwrap_or_else(|| panic!("{row}")));
    }
    let kinds = ["exec", "exit", "open"];
    let wanted = known
        .keys()
        .flat_map(|program| kinds.map(|kind| ((&**program, kind), 1)));
    assert_eq!(each, wanted.collect());
    // And of what else went on in them, nothing is without a workload: the runtime's own steps and the shell, from the first.
    nobody_is_unknown(&ctl, (since, until), LIMIT);
    let life = r#"kind in ["fork", "exec", "exit"] && has(container.id)"#;
    let all = ctl
        .complete_events(since, until, life, LIMIT)
        .expect("an answer")
        .rows;
    let ids: HashMap<_, _> = known
        .values()
        .map(|known| (&*known.container, &known.pod))
        .collect();
    let mut of_ours = 0;
    for row in &all {
        // The pod's sandbox is a container, too; its id is nobody's here, but its pod is.
        if let Some(pod) = ids.get(text(row, "container.id")) {
            of_ours += 1;
            assert_eq!(text(row, "k8s.pod.name"), pod.name, "{row}");
        }
        assert!(!text(row, "k8s.pod.uid").is_empty(), "{row}");
    }
    // The shell, its program and what it becomes: two execs and their forks and exits, at least.
    assert!(of_ours >= 5 * known.len(), "{of_ours} of {}", all.len());
    pending.sort_unstable();
    println!(
        "{} pods in {:.0} s, {} events in them; from the making of a cgroup until the runtime had told, ms: p50 {} p99 {} highest {}",
        known.len(),
        Duration::from_nanos(until - since).as_secs_f64(),
        of_ours,
        quantile(&pending, 50),
        quantile(&pending, 99),
        quantile(&pending, 100)
    );
    assert!(quantile(&pending, 99) <= KNOWN_WITHIN_MS, "{pending:?}");
    first_processes(&containerd, image, &ctl, listener);
    without_an_agent(&containerd, image, &collector, &mut agent);
    agent.stop().expect("the agent stops when told to");
}
