//! docs/install-kubernetes.md on a node without an API server: the pods of deploy/kubernetes as a kubelet makes them, by a real
//! containerd. The agent in its pod sees and stops what is done in another one.

use std::fs;
use std::io;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use sumun_tests::check::{int, list, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::container::{Rootfs, has, pod_uid};
use sumun_tests::ctl::Ctl;
use sumun_tests::host::{Turn, scratch};
use sumun_tests::issuer::{self, Issuer};
use sumun_tests::kubelet::Node;
use sumun_tests::pod::{self, Containerd, Network, Pod, Sandbox};
use sumun_tests::programs;

const PAGE: &str = include_str!("../../docs/install-kubernetes.md");
const LIMIT: Duration = Duration::from_secs(60);
const SERVICE: &str = "sumun-collector.sumun.svc";
const BOX: &str = "sumun.test/box:1.0";

fn policy(node: &Path, port: u16) -> String {
    format!(
        r#"
[policy]
name = "pods"
version = 1
mode = "enforce"

[[rule]]
id = "second"
on = ["exec"]
when = 'proc.exe.name == "prog-second"'
effect = "kill"

[[rule]]
id = "outside"
on = ["connect"]
when = 'net.dst.port == {port}'
effect = "deny"

[[rule]]
id = "secret"
on = ["open"]
when = 'file.path == "{}/secret"'
effect = "deny"
"#,
        node.display()
    )
}

/// A node, its runtime, and what is on it.
struct Cluster {
    node: Node,
    containerd: Containerd,
    ctl: Option<Ctl>,
    folder: PathBuf,
    collector: Option<String>,
    /// Where the service of the collector leads to.
    service: Arc<Mutex<String>>,
    /// Who signs the tokens of its pods; `None` without OpenSSL.
    issuer: Option<Issuer>,
    pods: Vec<Sandbox>,
    // Given back last, when nothing is in the kernel any more.
    _turn: Turn,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Containers outlive their containerd, and an agent the test that failed.
        for pod in self.pods.iter().rev() {
            if let Err(error) = self.containerd.remove(&pod.id) {
                eprintln!("{error:#}");
            }
        }
        if let Err(error) = release() {
            eprintln!("sumun-agent release: {error}");
        }
    }
}

/// Takes everything of an agent that does not run out of the kernel.
fn release() -> std::io::Result<std::process::Output> {
    Command::new(programs::path("sumun-agent"))
        .arg("release")
        .output()
}

impl Cluster {
    /// A pod of a workload, its init containers run; the id of its container.
    fn start(&mut self, kind: &str, name: &str) -> String {
        let (pod, sandbox) = self
            .begin(kind, name)
            .unwrap_or_else(|error| panic!("{error}"));
        let spec = &self.node.template(kind, name).expect("a template")["spec"];
        let container = &spec["containers"][0];
        let config = self.node.container(spec, container).expect("a container");
        let id = self
            .containerd
            .container(&pod, &sandbox, &config)
            .expect("a container");
        if let Some(probe) = container["startupProbe"]["exec"]["command"].as_array() {
            let probe: Vec<&str> = probe.iter().filter_map(Value::as_str).collect();
            self.until(&id, &probe);
        }
        id
    }

    /// The pod with its init containers alone; else what the one that failed has said.
    fn begin(&mut self, kind: &str, name: &str) -> Result<(Pod, Sandbox), String> {
        let template = self.node.template(kind, name).expect("a template");
        let spec = &template["spec"];
        let labels = template["metadata"]["labels"].as_object().expect("labels");
        let pod = Pod {
            name: format!("{name}-0"),
            uid: pod_uid(unix_ns()),
            namespace: "sumun".into(),
            labels: labels
                .iter()
                .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
                .collect(),
            logs: self.folder.display().to_string(),
        };
        let sandbox = self
            .containerd
            .sandbox_with(&pod, self.node.shared(spec))
            .expect("a pod");
        self.pods.push(sandbox.clone());
        if kind == "StatefulSet" && self.node.networks {
            // What the service's name leads to.
            let address = self.containerd.address(&sandbox).expect("an address");
            self.node.hosts = vec![(SERVICE.into(), address.clone())];
            *self.service.lock().expect("no panic") = address;
        }
        for init in spec["initContainers"].as_array().expect("init containers") {
            let config = self.node.container(spec, init).expect("a container");
            let id = self.containerd.container(&pod, &sandbox, &config);
            let id = id.unwrap_or_else(|error| panic!("{}: {error:#}", init["name"]));
            let status = self.containerd.wait(&id, LIMIT).expect("it ends");
            if status != 0 {
                return Err(format!("{}: {status}: {}", init["name"], self.logs()));
            }
        }
        Ok((pod, sandbox))
    }

    /// The collector's pod, once its port is open.
    fn start_collector(&mut self) {
        self.collector = Some(self.start("StatefulSet", "sumun-collector"));
        let (_, address) = &self.node.hosts[0];
        let place = format!("{address}:7443");
        let begun = Instant::now();
        while TcpStream::connect(&place).is_err() {
            assert!(begun.elapsed() < LIMIT, "{}", self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends pods, but for the first few.
    fn keep(&mut self, count: usize) {
        for pod in self.pods.split_off(count).iter().rev() {
            self.containerd.remove(&pod.id).expect("a pod that ends");
        }
    }

    /// The agent of a node, once it is online.
    fn online(&self, ctl: &Ctl, node: &str) -> Value {
        let begun = Instant::now();
        loop {
            let agents = ctl.agents().expect("agents");
            let online = |agent: &&Value| agent["state"] == "online" && agent["name"] == node;
            if let Some(agent) = agents.iter().find(online) {
                return agent.clone();
            }
            assert!(begun.elapsed() < LIMIT, "{agents:?}: {}", self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn until(&self, container: &str, probe: &[&str]) {
        let begun = Instant::now();
        loop {
            match self.containerd.exec(container, probe) {
                Ok((0, ..)) => return,
                said => assert!(begun.elapsed() < LIMIT, "{said:?}: {}", self.logs()),
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What containers have printed.
    fn logs(&self) -> String {
        let mut all = String::new();
        for name in ["init.log", "collector.log", "enroll.log", "agent.log"] {
            if let Ok(log) = fs::read_to_string(self.folder.join(name)) {
                all.push_str(&format!("== {name}\n{log}\n"));
            }
        }
        all
    }

    /// Carries out a line of the page, or says that it cannot: without an API server nothing else is known.
    fn follow(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["kubectl", "apply", "-k", "deploy/kubernetes"] => {
                // The objects are there: of them the collector can start, the agents wait for their secret.
                self.start_collector();
            }
            ["kubectl", "get", "--raw", what, files @ ..] => {
                let issuer = self.issuer.as_ref().expect("an issuer");
                let said = match *what {
                    "/openid/v1/jwks" => issuer.keys().expect("keys"),
                    "/.well-known/openid-configuration" => issuer::NAME.to_owned(),
                    _ => panic!("{line}: nothing is there"),
                };
                match files {
                    [file] => {
                        let file = file.strip_prefix('>').expect("into a file");
                        fs::write(self.folder.join(file), said).expect("a file");
                    }
                    _ => assert!(PAGE.contains(&format!("issuer = {said:?}")), "{said}"),
                }
            }
            [
                "kubectl",
                "-n",
                "sumun",
                "exec",
                "sumun-collector-0",
                "--",
                command @ ..,
                file,
            ] => {
                let collector = self.collector.clone().expect("a collector");
                let (status, out, errors) =
                    self.containerd.exec(&collector, command).expect("it runs");
                assert_eq!(status, 0, "{line}: {out}{errors}");
                let file = file.strip_prefix('>').expect("into a file");
                fs::write(self.folder.join(file), out).expect("a file");
            }
            [
                "kubectl",
                "-n",
                "sumun",
                "create",
                "secret",
                "generic",
                name,
                files @ ..,
            ] => {
                let files: Vec<(String, String)> = files
                    .iter()
                    .map(|file| {
                        let file = file.strip_prefix("--from-file=").expect("a file");
                        let content =
                            fs::read_to_string(self.folder.join(file)).expect("it was made");
                        (file.to_owned(), content)
                    })
                    .collect();
                let files: Vec<_> = files
                    .iter()
                    .map(|(a, b)| (a.as_str(), b.as_str()))
                    .collect();
                self.node.secret(name, &files);
            }
            [
                "kubectl",
                "-n",
                "sumun",
                "port-forward",
                "service/sumun-collector",
                ports,
                ..,
            ] => {
                assert_eq!(*ports, "7443:7443", "{line}");
                // A pod in the node's network is there already.
                if self.node.networks {
                    forward(Arc::clone(&self.service)).expect("a port");
                }
            }
            ["sumunctl", "--config", file, rest @ ..] => {
                let ctl = Ctl::new(self.folder.join(file));
                let output = ctl.run(rest);
                assert!(output.status.success(), "{line}: {output:?}");
                self.ctl = Some(ctl);
            }
            // With Helm: its engine is asked in tests/manifests; here it is plain.
            ["helm", "install", ..] | ["kubectl", "label", "namespace", ..] => {}
            _ => panic!("{line}: this cannot be followed"),
        }
    }
}

/// Passes on what comes to the node's port 7443 to that of a pod, until the test ends.
fn forward(service: Arc<Mutex<String>>) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:7443")?;
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let place = format!("{}:7443", service.lock().expect("no panic"));
            let Ok(pod) = TcpStream::connect(place) else {
                continue;
            };
            for (from, to) in [(&client, &pod), (&pod, &client)] {
                let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else {
                    continue;
                };
                std::thread::spawn(move || {
                    // Whoever breaks off has his reasons.
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    Ok(())
}

/// The blocks of a language in a part of the page.
fn blocks(heading: &str, language: &str) -> impl Iterator<Item = &'static str> {
    let from = PAGE
        .find(heading)
        .unwrap_or_else(|| panic!("a part {heading:?}"));
    let part = PAGE[from + 1..].split("\n## ").next().unwrap_or_default();
    let begin = format!("```{language}\n");
    let blocks: Vec<&str> = part.split(begin.as_str()).skip(1).collect();
    blocks
        .into_iter()
        .map(|block| block.split("```").next().unwrap_or_default())
}

/// The lines of a part of the page that are for a shell.
fn lines(heading: &str) -> Vec<&'static str> {
    blocks(heading, "sh").flat_map(str::lines).collect()
}

/// The part of the page about nodes that nobody has given a token: one joins by what the cluster signs for its pod, and once only.
fn nodes_without_a_token(cluster: &mut Cluster, ctl: &Ctl) {
    const PART: &str = "\n## Nodes without a token";
    const NODE: &str = "0b5f8a3e-6c1d-4e0f-9a7b-1c2d3e4f5a6b";
    let Some(issuer) = &cluster.issuer else {
        return println!("SKIPPED nodes without a token: openssl is not installed");
    };
    let begun = Instant::now();
    let token = issuer.token(("node-2", NODE), &[]).expect("a token");
    for line in lines(PART) {
        cluster.follow(line);
    }
    let folder = cluster.folder.clone();
    let read = |name: &str| fs::read_to_string(folder.join(name)).expect("it was made");
    let given = blocks(PART, "yaml").next().expect("values");
    let values = given.replace(r#"{"keys": [...]}"#, read("keys.json").trim());
    assert_ne!(values, given, "the page has keys to fill in");
    fs::write(folder.join("values.yaml"), values).expect("a file");
    cluster
        .node
        .upgrade(&folder.join("values.yaml"))
        .expect("the chart takes the page's values");
    cluster
        .node
        .secret("sumun-join", &[("ca.pem", &read("ca.pem"))]);
    // The annotation of its pods is another one, so Kubernetes starts them anew.
    cluster.keep(0);
    cluster.start_collector();
    let home = folder.join("node-2");
    cluster.node.name = "node-2".into();
    cluster.node.folders[0].1 = home.clone();
    cluster.node.tokens.insert("sumun-collector".into(), token);
    cluster.start("DaemonSet", "sumun-agent");
    let first = cluster.online(ctl, "node-2");
    let bound = || {
        let output = ctl.run(&["joins", "list", "-o", "json"]);
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout).expect("rows");
        assert_eq!(rows.len(), 1, "{rows:?}");
        let subject = text(&rows[0], "subject").to_owned();
        assert_eq!(subject, format!("this-cluster/node/{NODE}"));
        (subject, rows[0]["agent"].clone())
    };
    let (subject, agent) = bound();
    assert_eq!(agent, first["id"]);
    // Without its folder it is refused, until an admin says so.
    cluster.keep(1);
    fs::remove_dir_all(&home).expect("the node's folder");
    let refused = cluster
        .begin("DaemonSet", "sumun-agent")
        .expect_err("refused");
    assert!(refused.contains("has joined already"), "{refused}");
    cluster.keep(1);
    let forgotten = ctl.run(&["joins", "forget", &subject]);
    assert!(forgotten.status.success(), "{forgotten:?}");
    cluster.begin("DaemonSet", "sumun-agent").expect("it joins");
    assert_ne!(bound().1, agent);
    println!(
        "nodes without a token: {:.1} s",
        begun.elapsed().as_secs_f64()
    );
}

/// An image of a shell and two programs.
fn image(folder: &Path) -> PathBuf {
    let rootfs = Rootfs::make(folder).expect("a root file system");
    rootfs.program("prog-first").expect("a program");
    rootfs.program("prog-second").expect("a program");
    rootfs.shell().expect("a shell");
    let tar = rootfs.tar().expect("a tar");
    pod::archive(folder, &tar, BOX).expect("an image")
}

/// Asks until there is a row.
fn row(ctl: &Ctl, what: &str, since: u64, filter: &str) -> Value {
    let begun = Instant::now();
    loop {
        let answer = match what {
            "alerts" => ctl.alerts(since, filter),
            _ => ctl.events(since, None, filter),
        };
        if let Some(row) = answer.expect("an answer").rows.pop() {
            return row;
        }
        assert!(begun.elapsed() < LIMIT, "no row of {what}: {filter}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_agent_s_pod_sees_and_stops_what_is_done_in_another() {
    let name = "kubernetes";
    let Some(turn) = Turn::take(name) else {
        return;
    };
    if !has("containerd") || !has("ctr") || !has("runc") || !has("busybox") || !has("strip") {
        return println!(
            "SKIPPED {name}: containerd, runc, busybox or binutils is not installed (make setup-test)"
        );
    }
    if TcpListener::bind("0.0.0.0:7443").is_err() {
        return println!(
            "SKIPPED {name}: the port 7443, which the manifest names, is another program's here"
        );
    }
    let dir = scratch();
    let Some(mut node) = Node::new("node-1", dir.path()).expect("manifests") else {
        return println!(
            "SKIPPED {name}: Python's packages of deploy/setup/requirements.txt are not there (make setup-test)"
        );
    };
    release().expect("nothing of an earlier test is left");
    // As systemd leaves it.
    if !fs::read_to_string("/proc/mounts")
        .expect("mounts")
        .contains(" /sys/fs/bpf bpf ")
    {
        let mounted = Command::new("mount")
            .args(["-t", "bpf", "bpf", "/sys/fs/bpf"])
            .status();
        assert!(mounted.expect("mount can be started").success());
    }
    let own = programs::path("sumun-agent");
    let built =
        Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/container/build"))
            .arg(own.parent().expect("a folder"))
            .arg(dir.path().join("images"))
            .output()
            .expect("the script can be started");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let runtime = dir.path().join("runtime");
    fs::create_dir(&runtime).expect("a folder");
    let network = Network::new(&runtime).expect("a network");
    if network.is_none() {
        println!(
            "SKIPPED {name}, pods in a network of their own: the plugins of containernetworking-plugins or ip are not installed (make setup-test)"
        );
    }
    node.networks = network.is_some();
    let node_address = network.as_ref().map_or("127.0.0.1", |network| network.node);
    let containerd = match Containerd::start_with(&runtime, &image(dir.path()), BOX, network) {
        Ok(containerd) => containerd,
        Err(error) => return println!("SKIPPED {name}: {error:#}"),
    };
    for entry in fs::read_dir(dir.path().join("images")).expect("images") {
        containerd
            .import(&entry.expect("an image").path())
            .expect("imported");
    }
    let home = dir.path().join("node");
    node.folders = vec![
        ("/var/lib/sumun".into(), home.clone()),
        ("/run/containerd".into(), runtime.clone()),
    ];
    node.hosts = vec![(SERVICE.into(), "127.0.0.1".into())];
    let mut cluster = Cluster {
        node,
        containerd,
        ctl: None,
        folder: dir.path().to_owned(),
        collector: None,
        service: Arc::default(),
        issuer: Issuer::new(dir.path()).ok(),
        pods: Vec::new(),
        _turn: turn,
    };
    for line in lines("# Installing on Kubernetes")
        .into_iter()
        .chain(lines("\n## The agents' secret"))
    {
        cluster.follow(line);
    }
    // What is there when the agent comes, and what it finds on the node.
    let server = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = server.local_addr().expect("an address").port();
    fs::create_dir_all(home.join("identity/policies")).expect("a folder");
    fs::write(home.join("secret"), "of the node\n").expect("a file");
    fs::write(
        home.join("identity/policies/pods.toml"),
        policy(&home, port),
    )
    .expect("a policy");
    let agent = cluster.start("DaemonSet", "sumun-agent");
    for line in lines("\n## Asking") {
        cluster.follow(line);
    }
    let ctl = cluster.ctl.take().expect("a context");
    // By the node's name, not the pod's.
    let id = cluster.online(&ctl, "node-1")["id"].clone();

    // Another pod: a program that may run, one that may not, and a connection that may not be made.
    let since = unix_ns();
    let pod = Pod {
        name: "cart-1".into(),
        uid: pod_uid(9001),
        namespace: "shop".into(),
        labels: vec![("app".into(), "cart".into())],
        logs: dir.path().display().to_string(),
    };
    let script = format!(
        "/prog-first; a=$?; /prog-second; b=$?; /bin/busybox nc {node_address} {port} </dev/null; c=$?; \
         [ $a = 1 ] && [ $b = 137 ] && [ $c = 1 ] && exit 42; exit 7"
    );
    let shared = cluster.node.shared(&Value::Null);
    let sandbox = cluster.containerd.sandbox_with(&pod, shared);
    let sandbox = sandbox.expect("a pod");
    cluster.pods.push(sandbox.clone());
    let container = cluster
        .containerd
        .run_in(&pod, &sandbox, BOX, &["/bin/busybox", "sh", "-c", &script])
        .expect("a container");
    let status = cluster.containerd.wait(&container, LIMIT).expect("it ends");
    assert_eq!(status, 42, "it was not stopped: {}", cluster.logs());
    server.set_nonblocking(true).expect("a socket");
    assert!(server.accept().is_err(), "the connection was made");
    let whose = |row: &Value| {
        assert_eq!(text(row, "container.id"), container, "{row}");
        assert_eq!(text(row, "k8s.pod.name"), "cart-1", "{row}");
        assert_eq!(text(row, "k8s.namespace"), "shop", "{row}");
        assert_eq!(text(row, "k8s.pod.uid"), pod.uid, "{row}");
        assert_eq!(list(row, "k8s.labels"), ["app=cart"], "{row}");
        assert_eq!(text(row, "host.name"), "node-1", "{row}");
    };
    let told = "has(k8s.pod.name)";
    // The first event of the container has it all, too.
    let first = row(
        &ctl,
        "events",
        since,
        &format!(r#"kind == "exec" && proc.exe.name == "prog-first" && {told}"#),
    );
    whose(&first);
    let killed = row(&ctl, "alerts", since, r#"rule.id == "second""#);
    assert_eq!(text(&killed, "verdict.outcome"), "killed", "{killed}");
    whose(&row(
        &ctl,
        "events",
        since,
        &format!(r#"kind == "exec" && proc.exe.name == "prog-second" && {told}"#),
    ));
    let denied = row(
        &ctl,
        "events",
        since,
        &format!(r#"kind == "connect" && net.dst.port == {port} && {told}"#),
    );
    whose(&denied);
    assert_eq!(int(&denied, "result"), Some(-1), "{denied}");

    // Rules that name files mean the node's: held from the pod, in the node's own mount namespace.
    let begun = Instant::now();
    loop {
        let mut content = String::new();
        let opened = fs::File::open(home.join("secret"))
            .and_then(|mut file| file.read_to_string(&mut content));
        match opened {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => break,
            said => assert!(begun.elapsed() < LIMIT, "{said:?}: {}", cluster.logs()),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    // It is a pod that is asked how it is.
    let (status, doctor, _) = cluster
        .containerd
        .exec(&agent, &["sumun-agent", "doctor"])
        .expect("it runs");
    assert_eq!(status, 0, "{doctor}");

    // A new pod of the node is the same agent.
    cluster.keep(1);
    cluster.start("DaemonSet", "sumun-agent");
    assert_eq!(cluster.online(&ctl, "node-1")["id"], id);
    assert_eq!(ctl.agents().expect("agents").len(), 1);
    nodes_without_a_token(&mut cluster, &ctl);
}
