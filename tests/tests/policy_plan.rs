//! `sumunctl policy plan`: what it foresees for the host at hand is what its agent then reports, and for a host of a lesser kernel what that
//! kernel leaves of it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use sumun_proto::v1::forward_request::Message;
use sumun_proto::v1::ingest_client::IngestClient;
use sumun_proto::v1::{Door, ForwardRequest, Hello, Kind, Lane};
use sumun_tests::check::text;
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::programs;
use tonic::codegen::tokio_stream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

const LIMIT: Duration = Duration::from_secs(60);

const POLICY: &str = r#"
[policy]
name = "gate"
version = 1
mode = "enforce"

[[rule]]
id = "no-metadata"
on = ["connect"]
when = 'net.dst.ip == "169.254.169.254"'
effect = "deny"

[[rule]]
id = "indicator"
on = ["open"]
when = 'file.path == "/sumun-test/indicator"'
effect = "deny"

[[rule]]
id = "modules"
on = ["module_load"]
when = 'file.path.startsWith("/tmp/")'
effect = "deny"

[[rule]]
id = "tool"
on = ["exec"]
when = 'proc.exe.name == "sumun-plan-tool"'
effect = "kill"

[[rule]]
id = "resolved"
on = ["dns"]
when = 'dns.question.name == "example.test"'
"#;

/// An agent that says hello and what its kernel does, and nothing else.
fn lesser(collector: &Collector, home: &Path) {
    let addr = collector.addr().expect("its address");
    let ctl = collector.ctl();
    let token = ctl.run(&["tokens", "create"]);
    let file = home.join("token");
    fs::write(&file, token.stdout).expect("written");
    let out = home.join("agent");
    let output = Command::new(programs::path("sumun-agent"))
        .args(["enroll", "--no-policies", "--collector", &addr])
        .arg("--token-file")
        .arg(&file)
        .arg("--ca")
        .arg(collector.dir().join("ca/ca.pem"))
        .arg("--out")
        .arg(&out)
        .output()
        .expect("the agent can be started");
    assert!(output.status.success(), "{output:?}");
    let read = |name: &str| fs::read(out.join(name)).expect("enrolment wrote it");
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("ca.pem")))
        .identity(Identity::from_pem(read("agent.pem"), read("agent.key")))
        .domain_name("127.0.0.1");
    let door = |kind: Kind, rung: &str, deny: &str, why: &str| Door {
        kind: kind.into(),
        rung: rung.into(),
        reason: match rung {
            "none" => why.into(),
            _ => String::new(),
        },
        deny: deny.into(),
        deny_reason: why.into(),
    };
    let hello = Hello {
        host_name: "lesser".into(),
        version: "0.0.1".into(),
        kernel: "5.10.0".into(),
        boot_id: vec![7; 16],
        lanes: vec![Lane::Alert.into()],
        doors: vec![
            door(
                Kind::Exec,
                "tracepoint",
                "fanotify",
                "lsm: no bpf in the list",
            ),
            door(
                Kind::Open,
                "tracepoint",
                "fanotify",
                "lsm: no bpf in the list",
            ),
            door(Kind::Connect, "tracepoint", "none", "cgroup: out of reach"),
            door(
                Kind::ModuleLoad,
                "tracepoint",
                "none",
                "lsm: no bpf in the list",
            ),
            door(Kind::Dns, "none", "", "no cgroups of version 2"),
        ],
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("https://{addr}")).expect("an address");
        let channel = endpoint.tls_config(tls).expect("TLS").connect().await;
        let mut client = IngestClient::new(channel.expect("a connection"));
        let hello = ForwardRequest {
            message: Some(Message::Hello(hello)),
        };
        let replies = client.forward(tokio_stream::iter([hello])).await;
        let mut replies = replies.expect("a stream").into_inner();
        // Until the collector has read it and ends its side.
        let _ = replies.message().await;
    });
}

#[test]
fn what_is_planned_is_what_is_reported() {
    let Some(turn) = Turn::take("what_is_planned") else {
        return;
    };
    let scratch = scratch();
    let file = scratch.path().join("gate.toml");
    fs::write(&file, POLICY).expect("written");
    let file = file.to_str().expect("UTF-8");
    let collector = Collector::start().expect("a collector");
    let ctl = collector.ctl();
    lesser(&collector, scratch.path());
    let mut agent = Agent::start(turn, &collector, &[]).expect("an agent");
    let id = agent.id().expect("its id");
    let plan = |more: &[&str]| {
        let answer = ctl.run(&[&["policy", "plan", file], more].concat());
        let said = String::from_utf8_lossy(&answer.stdout).into_owned();
        (answer.status.code(), said)
    };
    let rows = |more: &[&str]| -> Vec<Value> {
        let (status, said) = plan(&[&["-o", "json"], more].concat());
        assert_eq!(status, Some(0), "{said}");
        let rows: Vec<Value> = serde_json::from_str(&said).expect("rows");
        rows
    };
    let of = |rows: &[Value], host: &str| -> Vec<(String, String)> {
        let rows = rows
            .iter()
            .filter(|row| text(row, "host.name") == host || text(row, "host.id") == host);
        rows.map(|row| {
            (
                text(row, "rule").to_owned(),
                text(row, "effective").to_owned(),
            )
        })
        .collect()
    };
    let all = rows(&[]);
    let pairs = |expected: &[(&str, &str)]| -> Vec<(String, String)> {
        let pairs = expected.iter();
        pairs
            .map(|(rule, mode)| ((*rule).to_owned(), (*mode).to_owned()))
            .collect()
    };
    assert_eq!(
        of(&all, "lesser"),
        pairs(&[
            ("no-metadata", "alert"),
            ("indicator", "deny-via-agent"),
            ("modules", "alert"),
            ("tool", "kill-before-start"),
            ("resolved", "none"),
        ])
    );
    let reason = |rule: &str| {
        let mut rows = all.iter().filter(|row| text(row, "host.name") == "lesser");
        rows.find(|row| text(row, "rule") == rule)
            .map(|row| text(row, "reason").to_owned())
            .unwrap_or_default()
    };
    assert!(reason("no-metadata").contains("cgroup: out of reach"));
    assert!(reason("modules").contains("no bpf in the list"));
    assert!(reason("resolved").contains("no cgroups of version 2"));
    let here = of(&all, &id);
    assert_eq!(here.len(), 5, "{all:?}");

    let (status, table) = plan(&[]);
    assert_eq!(status, Some(0));
    assert!(table.contains("1 of 2: lesser"), "{table}");
    let (status, _) = plan(&["--host", "lesser", "--require-effective"]);
    assert_eq!(status, Some(1));
    let (status, _) = plan(&["--host", "nobody"]);
    assert_eq!(status, Some(1));

    // What was foreseen for this host, by its own report.
    agent.policy("gate", POLICY).expect("written");
    agent.reload();
    let begun = Instant::now();
    let reported = loop {
        let answer = ctl.run(&["policy", "list", "--host", &id, "-o", "json"]);
        let rows: Vec<Value> = serde_json::from_slice(&answer.stdout).unwrap_or_default();
        let loaded = rows.into_iter().find(|row| row["name"] == "gate");
        if let Some(loaded) = loaded {
            break loaded;
        }
        assert!(begun.elapsed() < LIMIT, "the policy is not loaded");
        std::thread::sleep(Duration::from_millis(50));
    };
    let modes = reported["modes"].as_array().expect("its rules").iter();
    let modes: Vec<(String, String)> = modes
        .map(|rule| {
            (
                text(rule, "rule").to_owned(),
                text(rule, "effective").to_owned(),
            )
        })
        .collect();
    println!("foreseen and reported: {here:?}");
    assert_eq!(modes, here);
    agent.stop().expect("it stops");
}
