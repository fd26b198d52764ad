//! Many short pods of a real containerd, several at once, against what the test knows of each: every event says whose it is,
//! the first included, and how long that took to be known is told.

use std::collections::HashMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sumun_tests::check::{int, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::container::{Rootfs, has, pod_uid};
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::pod::{self, Containerd, Pod};
use sumun_tests::programs::long;

/// How long the store may take until an answer is complete, and the runtime until it has told.
const LIMIT: Duration = Duration::from_secs(60);
/// Pods at once.
const AT_ONCE: u64 = 4;

/// What the test knows of a pod.
struct Known {
    pod: Pod,
    container: String,
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
    let count = if long() { 1_000 } else { 12 };
    let dir = scratch();
    let rootfs = Rootfs::make(dir.path()).expect("a root");
    rootfs.shell().expect("a shell");
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
    let mut agent = Agent::enroll(turn, &collector, &[]).expect("an agent");
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
                    let script = format!("/prog-{number}; exec /bin/busybox sleep 1");
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
    let filter = r#"kind == "exec" && proc.exe.name.startsWith("prog-")"#;
    let begun = Instant::now();
    let rows = loop {
        let answer = ctl.complete_events(since, until, filter, LIMIT);
        let rows = answer.expect("an answer").rows;
        // The runtime's word may still be on its way.
        let told = rows
            .iter()
            .all(|row| int(row, "workload.pending_ms").is_some());
        if told || begun.elapsed() > LIMIT {
            break rows;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(rows.len(), known.len(), "each program once");
    let mut pending = Vec::new();
    for row in &rows {
        let Known { pod, container } = &known[text(row, "proc.exe.name")];
        assert_eq!(text(row, "container.id"), container, "{row}");
        assert_eq!(text(row, "k8s.pod.uid"), pod.uid, "{row}");
        assert_eq!(text(row, "k8s.pod.name"), pod.name, "{row}");
        assert_eq!(text(row, "k8s.namespace"), pod.namespace, "{row}");
        pending.push(int(row, "workload.pending_ms").unwrap_or_else(|| panic!("{row}")));
    }
    // And of what else went on in them, nothing is without a workload: the runtime's own steps and the shell, from the first.
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
        "{} pods, {} events in them; from the making of a cgroup until the runtime had told, ms: p50 {} p99 {} highest {}",
        known.len(),
        of_ours,
        quantile(&pending, 50),
        quantile(&pending, 99),
        quantile(&pending, 100)
    );
    agent.stop().expect("the agent stops when told to");
}
