//! What container runtimes say: names, images and labels, from real ones, also on events that came before the answer.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use sumun_tests::check::{list, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::container::{self, Cgroup, Rootfs, has, pod_uid};
use sumun_tests::elf;
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::pod::{self, Containerd, Pod};
use sumun_tests::process::Process;

/// How long the store may take until an answer is complete, and a runtime until it serves.
const LIMIT: Duration = Duration::from_secs(60);

const POLICY: &str = r#"
[policy]
name = "shop"
version = 1

[selector]
container = { name = ["web-*"], image = ["*/box:1.*"], labels = { app = "cart" } }

[[rule]]
id = "second"
on = ["exec"]
when = 'proc.exe.name == "prog-second"'

[[rule]]
id = "other"
on = ["exec"]
when = 'proc.exe.name == "prog-second" && container.name == "db-1"'
"#;

const POD_POLICY: &str = r#"
[policy]
name = "pods"
version = 1

[selector]
k8s = { labels = { app = "cart" } }

[[rule]]
id = "in-shop"
on = ["exec"]
when = 'proc.exe.name == "prog-second" && k8s.namespace == "shop"'

[[rule]]
id = "elsewhere"
on = ["exec"]
when = 'proc.exe.name == "prog-second" && k8s.namespace == "elsewhere"'
"#;

/// An agent that asks only these runtimes.
fn agent(turn: Turn, collector: &Collector, identity: &str) -> Agent {
    let mut agent = Agent::enroll(turn, collector, &[("shop", POLICY)]).expect("an agent");
    let config = agent.config();
    let mut written = fs::read_to_string(&config).expect("a configuration");
    written.push_str("\n[identity]\ncloud = \"off\"\n");
    for key in ["cri", "docker", "podman", "storage"] {
        if !identity.contains(&format!("{key} = ")) {
            written.push_str(&format!("{key} = []\n"));
        }
    }
    written.push_str(identity);
    written.push('\n');
    fs::write(&config, written).expect("a configuration");
    agent.run().expect("an agent that runs");
    agent.online(collector).expect("an agent that is online");
    agent
}

/// A root file system as a tar, with a shell and two programs.
fn image(folder: &Path) -> std::path::PathBuf {
    let rootfs = Rootfs::make(folder).expect("a root file system");
    rootfs.program("prog-first").expect("a program");
    rootfs.program("prog-second").expect("a program");
    rootfs.shell().expect("a shell");
    rootfs.tar().expect("a tar")
}

/// Runs it and returns what it printed.
fn said(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .expect("it can be started");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Asks for the exec of a program until the row has its container's name: the runtime may be slower.
fn exec(collector: &Collector, since: u64, program: &str) -> Value {
    let filter =
        format!(r#"kind == "exec" && proc.exe.name == "{program}" && has(container.name)"#);
    let begun = Instant::now();
    loop {
        let answer = collector.ctl().events(since, None, &filter);
        let mut rows = answer.expect("an answer").rows;
        if let Some(row) = rows.pop() {
            assert!(rows.is_empty(), "{rows:?}");
            return row;
        }
        assert!(begun.elapsed() < LIMIT, "nobody told of {program}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

const TASK_ARN: &str =
    "arn:aws:ecs:eu-west-1:123456789012:task/prod/0123456789abcdef0123456789abcdef";

/// First program at once, second once the runtime has certainly told of the container.
const WORK: &str = "/prog-first; /bin/busybox sleep 4; /prog-second; true";

fn told(collector: &Collector, since: u64, id: &str, source: &str) {
    // The first was executed before anybody could tell.
    for program in ["prog-first", "prog-second"] {
        let row = exec(collector, since, program);
        assert_eq!(text(&row, "container.id"), id, "{row}");
        assert_eq!(text(&row, "container.name"), "web-1", "{row}");
        assert_eq!(text(&row, "workload.source"), source, "{row}");
        assert!(text(&row, "container.image").ends_with("/box:1.0"), "{row}");
        assert_eq!(text(&row, "container.image_tag"), "1.0", "{row}");
        assert!(!text(&row, "host.kernel").is_empty(), "{row}");
    }
}

#[test]
fn a_container_of_docker_is_told() {
    let Some(turn) = Turn::take("a_container_of_docker_is_told") else {
        return;
    };
    if !has("dockerd") || !has("docker") || !has("busybox") {
        println!("SKIPPED a_container_of_docker_is_told: Docker or busybox is not installed");
        return;
    }
    let dir = scratch();
    let socket = dir.path().join("docker.sock");
    let mut daemon = Process::start(
        "dockerd",
        Command::new("dockerd")
            .args(["--bridge=none", "--iptables=false", "--storage-driver=vfs"])
            .arg("--data-root")
            .arg(dir.path().join("data"))
            .arg("--exec-root")
            .arg(dir.path().join("exec"))
            .arg("--pidfile")
            .arg(dir.path().join("pid"))
            .arg("--host")
            .arg(format!("unix://{}", socket.display())),
        &dir.path().join("dockerd.log"),
    )
    .expect("dockerd can be started");
    let docker = || {
        let mut docker = Command::new("docker");
        docker
            .arg("--host")
            .arg(format!("unix://{}", socket.display()));
        docker
    };
    let begun = Instant::now();
    while !docker()
        .arg("version")
        .output()
        .is_ok_and(|output| output.status.success())
    {
        if daemon.ended().is_some() || begun.elapsed() > LIMIT {
            println!(
                "SKIPPED a_container_of_docker_is_told: dockerd does not serve: {}",
                daemon.said()
            );
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    said(
        docker()
            .arg("import")
            .arg(image(dir.path()))
            .arg("sumun-test/box:1.0"),
    );
    let collector = Collector::start().expect("a collector");
    let identity = format!("docker = [{:?}]", socket.display().to_string());
    let mut agent = agent(turn, &collector, &identity);
    let since = unix_ns();
    let id = said(docker().args([
        "run",
        "-d",
        "--network=none",
        "--name=web-1",
        "--label=app=cart",
        // As ECS's agent starts a task's container.
        "--cgroup-parent=/ecs/0123456789abcdef0123456789abcdef",
        "--label=com.amazonaws.ecs.cluster=prod",
        "--label=com.amazonaws.ecs.container-name=web",
        "--label=com.amazonaws.ecs.task-definition-family=shop",
        &format!("--label=com.amazonaws.ecs.task-arn={TASK_ARN}"),
        "sumun-test/box:1.0",
        "/bin/busybox",
        "sh",
        "-c",
        WORK,
    ]));
    said(docker().args(["wait", "web-1"]));
    told(&collector, since, &id, "docker");
    let row = exec(&collector, since, "prog-second");
    assert_eq!(list(&row, "container.labels")[0], "app=cart", "{row}");
    assert_eq!(
        row["ecs"],
        serde_json::json!({
            "cluster": "prod", "container": { "name": "web" },
            "task": { "arn": TASK_ARN, "family": "shop", "id": "0123456789abcdef0123456789abcdef" },
        }),
        "{row}"
    );
    // It is of no registry.
    let image = said(docker().args(["inspect", "--format={{.Image}}", "web-1"]));
    assert_eq!(text(&row, "container.image_id"), image, "{row}");
    assert_eq!(text(&row, "container.image_digest"), image, "{row}");
    let of_task =
        r#"ecs.cluster == "prod" && ecs.container.name == "web" && ecs.task.arn.endsWith("cdef")"#;
    let found = collector.ctl().events(since, None, of_task);
    assert!(!found.expect("an answer").rows.is_empty());
    // The policy is about this container, and one of its rules about another.
    assert_eq!(list(&row, "rules"), ["shop/second"], "{row}");
    let alerts = collector
        .ctl()
        .alerts(since, r#"container.name == "web-1""#);
    let alerts = alerts.expect("an answer").rows;
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    assert_eq!(text(&alerts[0], "rule.id"), "second");
    agent.stop().expect("the agent stops when told to");
}

#[test]
fn a_pod_of_containerd_is_told_with_its_labels() {
    let Some(turn) = Turn::take("a_pod_of_containerd_is_told") else {
        return;
    };
    if !has("containerd") || !has("ctr") || !has("runc") || !has("busybox") {
        println!(
            "SKIPPED a_pod_of_containerd_is_told: containerd, runc or busybox is not installed"
        );
        return;
    }
    let dir = scratch();
    let image_name = "sumun.test/box:1.0";
    let archive = pod::archive(dir.path(), &image(dir.path()), image_name).expect("an image");
    let containerd = match Containerd::start(dir.path(), &archive, image_name) {
        Ok(containerd) => containerd,
        Err(error) => {
            println!("SKIPPED a_pod_of_containerd_is_told: {error:#}");
            return;
        }
    };
    let collector = Collector::start().expect("a collector");
    let identity = format!("cri = [{:?}]", containerd.socket().display().to_string());
    let mut agent = agent(turn, &collector, &identity);
    agent.policy("pods", POD_POLICY).expect("a policy");
    agent.reload();
    let pod = Pod {
        name: "cart-1".into(),
        uid: pod_uid(9001),
        namespace: "shop".into(),
        labels: vec![("app".into(), "cart".into()), ("tier".into(), "web".into())],
        logs: String::new(),
    };
    let since = unix_ns();
    let command = ["/bin/busybox", "sh", "-c", WORK];
    let (sandbox, container) = containerd.run(&pod, image_name, &command).expect("a pod");
    for program in ["prog-first", "prog-second"] {
        let row = exec(&collector, since, program);
        assert_eq!(text(&row, "container.id"), container, "{row}");
        assert_eq!(text(&row, "container.name"), "web", "{row}");
        assert_eq!(text(&row, "workload.source"), "cri", "{row}");
        assert_eq!(text(&row, "k8s.pod.uid"), pod.uid, "{row}");
        assert_eq!(text(&row, "k8s.pod.name"), "cart-1", "{row}");
        assert_eq!(text(&row, "k8s.namespace"), "shop", "{row}");
        assert_eq!(list(&row, "k8s.labels"), ["app=cart", "tier=web"], "{row}");
        assert_eq!(text(&row, "container.image"), image_name, "{row}");
        assert!(
            text(&row, "container.image_digest").starts_with("sha256:"),
            "{row}"
        );
        if program == "prog-second" {
            // By then the runtime had told: the rule is decided, and the one for another namespace is not met.
            assert_eq!(list(&row, "rules"), ["pods/in-shop"], "{row}");
        }
    }
    // What is told of a workload is asked for as any field.
    let until = unix_ns();
    for (filter, some) in [
        (r#""app=cart" in k8s.labels"#, true),
        (r#""app=cat" in k8s.labels"#, false),
        (
            r#"k8s.namespace.startsWith("sh") && has(k8s.pod.name)"#,
            true,
        ),
        (
            r#"k8s.namespace == "shop" && container.name != "web""#,
            false,
        ),
    ] {
        let filter = format!(r#"kind == "exec" && proc.exe.name.startsWith("prog-") && {filter}"#);
        let answer = collector
            .ctl()
            .complete_events(since, until, &filter, LIMIT);
        assert_eq!(
            !answer.expect("an answer").rows.is_empty(),
            some,
            "{filter}"
        );
    }
    containerd.remove(&sandbox).expect("a pod that ends");
    agent.stop().expect("the agent stops when told to");
}

#[test]
fn a_container_of_podman_is_told_without_a_service() {
    let Some(turn) = Turn::take("a_container_of_podman_is_told") else {
        return;
    };
    if !has("podman") || !has("runc") || !has("busybox") {
        println!("SKIPPED a_container_of_podman_is_told: podman, runc or busybox is not installed");
        return;
    }
    let dir = scratch();
    let store = dir.path().join("store");
    let podman = || {
        let mut podman = Command::new("podman");
        podman
            .args([
                "--cgroup-manager=cgroupfs",
                "--runtime=runc",
                "--storage-driver=vfs",
            ])
            .arg("--root")
            .arg(&store)
            .arg("--runroot")
            .arg(dir.path().join("run"))
            .arg("--tmpdir")
            .arg(dir.path().join("tmp"));
        podman
    };
    said(
        podman()
            .arg("import")
            .arg(image(dir.path()))
            .arg("localhost/box:1.0"),
    );
    let collector = Collector::start().expect("a collector");
    let identity = format!("storage = [{:?}]", store.display().to_string());
    let mut agent = agent(turn, &collector, &identity);
    let since = unix_ns();
    let id = said(podman().args([
        "run",
        "-d",
        "--ulimit=nofile=1024:1024",
        "--ulimit=nproc=1024:1024",
        "--network=none",
        "--name=web-1",
        "localhost/box:1.0",
        "/bin/busybox",
        "sh",
        "-c",
        WORK,
    ]));
    told(&collector, since, &id, "podman");
    // Its labels are not known, which is not that it has none.
    for (filter, some) in [
        (r#"!("app=cart" in container.labels)"#, false),
        (r#""app=cart" in container.labels"#, false),
        (r#""lost" in container.labels_flaws"#, true),
    ] {
        let filter = format!(r#"kind == "exec" && container.id == "{id}" && {filter}"#);
        let answer = collector
            .ctl()
            .complete_events(since, unix_ns(), &filter, LIMIT);
        assert_eq!(
            !answer.expect("an answer").rows.is_empty(),
            some,
            "{filter}"
        );
    }
    let row = exec(&collector, since, "prog-second");
    let image = [
        "image",
        "inspect",
        "--format={{.Digest}} sha256:{{.Id}}",
        "localhost/box:1.0",
    ];
    assert_eq!(
        format!(
            "{} {}",
            text(&row, "container.image_digest"),
            text(&row, "container.image_id")
        ),
        said(podman().args(image)),
        "{row}"
    );
    said(podman().args(["rm", "-f", "web-1"]));
    agent.stop().expect("the agent stops when told to");
}

/// Docker as slow as one likes: it takes questions, and answers none of a container until it may. One is of the app shop, one of cart.
fn slow_docker(socket: &Path, (shop, cart): (&str, &str), may: &Arc<AtomicBool>) {
    let listener = UnixListener::bind(socket).expect("a socket");
    let (shop, cart, may) = (shop.to_owned(), cart.to_owned(), Arc::clone(may));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (shop, cart, may) = (shop.clone(), cart.clone(), Arc::clone(&may));
            std::thread::spawn(move || {
                let lines = BufReader::new(&stream).lines().map_while(Result::ok);
                let lines: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let first = lines.first().cloned().unwrap_or_default();
                let id = first.strip_prefix("GET /containers/");
                let id = id
                    .and_then(|rest| rest.split('/').next())
                    .unwrap_or_default();
                let known = id == shop || id == cart;
                while known && !may.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(10));
                }
                let app = if id == cart { "cart" } else { "shop" };
                let body = match known {
                    true => format!(
                        r#"{{"Id":"{id}","Name":"/{app}","Image":"","Config":{{"Image":"x","Labels":{{"app":"{app}"}}}}}}"#
                    ),
                    false => "{}".to_owned(),
                };
                let status = if known { 200 } else { 404 };
                // Whoever has gone meanwhile asks again.
                let _ = write!(
                    &stream,
                    "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
            });
        }
    });
}

fn kills(name: &str, pending: &str) -> String {
    format!(
        "[policy]\nname = \"{name}\"\nversion = 1\nmode = \"enforce\"\n\n\
         [selector]\ncontainer = {{ labels = {{ app = \"cart\" }} }}\n{pending}\n\
         [[rule]]\nid = \"{name}\"\non = [\"exec\"]\nwhen = 'proc.exe.name == \"prog-{name}\"'\neffect = \"kill\"\n"
    )
}

#[test]
fn a_container_that_is_not_named_yet_is_inside_where_the_policy_says_so() {
    let name = "pending inside";
    let Some(turn) = Turn::take(name) else { return };
    let dir = scratch();
    let program = |name: &str| {
        let path = dir.path().join(name);
        elf::write(&path).expect("a program");
        path
    };
    let (inside, by_default) = (program("prog-inside"), program("prog-usual"));
    let (shop, cart) = (container::id(9100), container::id(9200));
    let (socket, may) = (
        dir.path().join("docker.sock"),
        Arc::new(AtomicBool::new(false)),
    );
    slow_docker(&socket, (&shop, &cart), &may);
    let collector = Collector::start().expect("a collector");
    let identity = format!("docker = [{:?}]", socket.display().to_string());
    let mut agent = agent(turn, &collector, &identity);
    let policies = [("inside", "pending = \"inside\"\n"), ("usual", "")];
    for (name, pending) in policies {
        agent.policy(name, &kills(name, pending)).expect("a policy");
    }
    agent.reload();
    let since = unix_ns();
    let begun = Instant::now();
    let until = |holds: &dyn Fn() -> bool, what: &str| {
        while !holds() {
            assert!(begun.elapsed() < LIMIT, "never: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let is_killed = |cgroup: &Cgroup, program: &Path| {
        let ended = cgroup.run(program).map_err(|error| error.to_string());
        ended.is_err_and(|error| error.contains("signal: 9"))
    };
    let slow = Cgroup::make(&format!("/docker/{shop}")).expect("a cgroup");
    until(
        &|| is_killed(&slow, &inside),
        "the policy is in force for what is pending",
    );
    // The other policy, which says nothing, waits for the name.
    assert!(!is_killed(&slow, &by_default));
    assert!(is_killed(&slow, &inside), "it is still pending");
    may.store(true, Ordering::Relaxed);
    until(
        &|| !is_killed(&slow, &inside),
        "told that it is another, it is outside",
    );
    let named = Cgroup::make(&format!("/docker/{cart}")).expect("a cgroup");
    until(
        &|| is_killed(&named, &by_default),
        "told that it is one, it is inside",
    );
    assert!(is_killed(&named, &inside));
    // What was killed while nobody knew its name is told with it.
    let killed = r#"rule.id == "inside" && container.name == "shop""#;
    until(
        &|| {
            let alerts = collector.ctl().alerts(since, killed);
            alerts.is_ok_and(|alerts| {
                alerts
                    .rows
                    .iter()
                    .any(|row| text(row, "verdict.outcome") == "killed")
            })
        },
        "an alert of what was killed",
    );
    agent.stop().expect("the agent stops when told to");
}
