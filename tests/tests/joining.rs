//! Hosts that join without a token: the real agent, the real collector, and doubles of Amazon and of a cluster that sign
//! with OpenSSL.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use sumun_tests::check::text;
use sumun_tests::clock::unix_ns;
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::issuer::Issuer;
use sumun_tests::metadata::{Metadata, Mood, Signer, openssl};
use sumun_tests::process::Process;
use sumun_tests::programs;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const ACCOUNT: &str = "123456789012";
const NODE: &str = "0b5f8a3e-6c1d-4e0f-9a7b-1c2d3e4f5a6b";

fn document(account: &str, instance: &str, age: Duration) -> String {
    let begun = OffsetDateTime::from(SystemTime::now()) - age;
    let begun = begun
        .replace_nanosecond(0)
        .expect("a time")
        .format(&Rfc3339)
        .expect("a time");
    json!({
        "accountId": account, "region": "eu-west-1", "instanceId": instance, "pendingTime": begun,
        "availabilityZone": "eu-west-1b", "instanceType": "m7g.large", "imageId": "ami-0def", "version": "2017-09-30",
    })
    .to_string()
}

/// A host of its own, as far as enrolment goes.
struct Host<'a> {
    collector: &'a Collector,
    out: PathBuf,
}

impl Host<'_> {
    fn enroll(&self, options: &[&str]) -> Output {
        Command::new(programs::path("sumun-agent"))
            .args(["enroll", "--once", "--no-policies", "--collector"])
            .arg(self.collector.addr().expect("an address"))
            .arg("--ca")
            .arg(self.collector.dir().join("ca/ca.pem"))
            .arg("--out")
            .arg(&self.out)
            .args(options)
            .output()
            .expect("the agent can be started")
    }

    fn id(&self) -> String {
        let text = fs::read_to_string(self.out.join("agent.toml")).expect("it is enrolled");
        let line = text.lines().find_map(|line| line.strip_prefix("id = "));
        line.expect("an id").trim_matches('"').to_owned()
    }
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[track_caller]
fn joined(output: &Output) {
    assert!(output.status.success(), "{}", said(output));
}

#[track_caller]
fn refused(output: &Output, part: &str) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(part), "{part}: {said}");
}

fn rows(collector: &Collector, args: &[&str]) -> Vec<Value> {
    let output = collector
        .ctl()
        .run(&[&["joins"], args, &["-o", "json"]].concat());
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).expect("rows")
}

fn with_openssl(test: &str) -> bool {
    let there = openssl(Path::new("/"), &["version"]).is_ok();
    if !there {
        println!("SKIPPED {test}: openssl is not installed (make setup-test)");
    }
    there
}

#[test]
fn an_instance_joins_once_by_what_amazon_signed() {
    if !with_openssl("joining") {
        return;
    }
    let dir = scratch();
    let amazon = Signer::new(dir.path(), "eu-west-1").expect("a signer");
    let stranger = dir.path().join("stranger");
    let stranger = Signer::new(&stranger, "eu-west-1").expect("a signer");
    // As deploy/aws/terraform writes it.
    let entry = include_str!("../../deploy/aws/terraform/join.toml.tftpl")
        .replace("${jsonencode(accounts)}", &format!("[{ACCOUNT:?}]"))
        .replace("${jsonencode(regions)}", "[\"eu-west-1\"]")
        .replace("${max_age_seconds}", "3600")
        .replace(
            "\"aws\"",
            &format!(
                "{:?}",
                dir.path().join("certificates").display().to_string()
            ),
        );
    let collector = Collector::start_with(&[("[metrics]", &format!("{entry}\n[metrics]"))]);
    let collector = collector.expect("a collector");
    let metadata = Metadata::start().expect("a metadata service");
    let address = metadata.address.to_string();
    let options = ["--join", "ec2", "--metadata", &address];
    let host = |name: &str| Host {
        collector: &collector,
        out: dir.path().join(name),
    };
    let minute = Duration::from_secs(60);
    let first = amazon
        .sign(&document(ACCOUNT, "i-1", minute))
        .expect("signed");

    // A key and a document, and nobody typed anything.
    metadata.set(Mood::Strict, &first);
    let one = host("one");
    joined(&one.enroll(&options));
    let id = one.id();
    let asked = metadata.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[0].starts_with("PUT /latest/api/token"), "{asked:?}");
    let again = one.enroll(&options);
    joined(&again);
    assert!(
        said(&again).contains("enrolled already"),
        "{}",
        said(&again)
    );
    assert_eq!(metadata.asked().len(), 2, "nobody is asked again");

    // The same document in other hands: refused, and again the same agent for who has its key.
    let thief = host("thief");
    refused(
        &thief.enroll(&options),
        &format!("has joined already, as the agent {id}"),
    );
    let kept = host("kept");
    fs::create_dir(&kept.out).expect("a folder");
    fs::copy(one.out.join("agent.key"), kept.out.join("agent.key")).expect("the key");
    joined(&kept.enroll(&options));
    assert_eq!(kept.id(), id);

    // What is wrong is said, and waited for only if it can pass.
    let cases = [
        (
            stranger
                .sign(&document(ACCOUNT, "i-2", minute))
                .expect("signed"),
            "not signed by Amazon's key",
        ),
        (
            amazon
                .sign(&document("210987654321", "i-2", minute))
                .expect("signed"),
            "account 210987654321 may not join",
        ),
        (
            amazon
                .sign(&document(ACCOUNT, "i-2", 120 * minute))
                .expect("signed"),
            "was started at",
        ),
        (first.replacen('M', "N", 1), "signed document"),
        (String::new(), "signed document"),
    ];
    for (number, (signed, part)) in cases.iter().enumerate() {
        metadata.set(Mood::Strict, signed);
        refused(&host(&format!("wrong-{number}")).enroll(&options), part);
    }
    metadata.set(Mood::Old, &first);
    let output = Command::new("timeout")
        .arg("2")
        .arg(programs::path("sumun-agent"))
        .args(["enroll", "--once", "--collector"])
        .arg(collector.addr().expect("an address"))
        .arg("--ca")
        .arg(collector.dir().join("ca/ca.pem"))
        .arg("--out")
        .arg(dir.path().join("old"))
        .args(options)
        .output()
        .expect("it can be started");
    assert_eq!(output.status.code(), Some(124), "{}", said(&output));
    assert!(
        said(&output).contains("no signed document"),
        "{}",
        said(&output)
    );

    // An admin sees who is who, and lets the instance join anew.
    let bound = rows(&collector, &["list"]);
    assert_eq!(bound.len(), 1, "{bound:?}");
    let subject = format!("{ACCOUNT}/eu-west-1/i-1");
    assert_eq!(text(&bound[0], "subject"), subject);
    assert_eq!(
        (text(&bound[0], "agent"), text(&bound[0], "entry")),
        (id.as_str(), "ec2")
    );
    let forgotten = collector.ctl().run(&["joins", "forget", &subject]);
    assert!(forgotten.status.success(), "{}", said(&forgotten));
    metadata.set(Mood::Strict, &first);
    joined(&thief.enroll(&options));
    assert_ne!(thief.id(), id);
    let nobody = collector.ctl().run(&["joins", "forget", "x"]);
    assert_eq!(nobody.status.code(), Some(1), "{}", said(&nobody));
    let log = rows(&collector, &["log"]);
    let outcomes: Vec<&str> = log.iter().map(|row| text(row, "outcome")).collect();
    // Of strangers' accounts nobody is told but the collector's own log.
    assert_eq!(
        outcomes,
        [
            "enrolled",
            "refused",
            "again",
            "refused",
            "refused",
            "forgotten",
            "enrolled"
        ],
        "{log:?}"
    );
    assert!(
        log.iter().all(|row| text(row, "method") == "ec2"),
        "{log:?}"
    );
    assert_eq!(text(&log[5], "by"), "init");
}

#[test]
fn a_node_joins_by_the_token_of_its_pod() {
    if !with_openssl("joining") {
        return;
    }
    let dir = scratch();
    let issuer = Issuer::new(dir.path()).expect("a key");
    let keys = issuer.keys().expect("keys");
    fs::write(dir.path().join("keys.json"), keys).expect("keys");
    let entry = format!(
        "[[join]]\nname = \"here\"\nmethod = \"kubernetes\"\nissuer = \"https://kubernetes.default.svc.cluster.local\"\n\
         audience = \"sumun-collector\"\nkeys = {:?}\nsubjects = [\"system:serviceaccount:sumun:sumun-agent\"]\n\n[metrics]",
        dir.path().join("keys.json").display().to_string()
    );
    let collector = Collector::start_with(&[("[metrics]", &entry)]).expect("a collector");
    let file = dir.path().join("token");
    let place = file.display().to_string();
    let options = ["--join", "kubernetes", "--service-account-token", &place];
    let host = |name: &str| Host {
        collector: &collector,
        out: dir.path().join(name),
    };
    let token = |changes: &[_]| issuer.token(("node-1", NODE), changes).expect("a token");
    for (changes, part) in [
        (
            vec![("aud", json!("https://kubernetes.default.svc"))],
            "another audience",
        ),
        (vec![("exp", json!(1))], "expired"),
        (
            vec![("sub", json!("system:serviceaccount:shop:default"))],
            "may not join",
        ),
        (vec![("kubernetes.io", json!({}))], "not bound to a pod"),
    ] {
        fs::write(&file, token(&changes)).expect("a token");
        refused(&host("wrong").enroll(&options), part);
    }
    fs::write(&file, token(&[])).expect("a token");
    joined(&host("node").enroll(&options));
    // Another pod of the same node, without the node's folder: an admin has to say so.
    refused(&host("other").enroll(&options), "has joined already");
    assert_eq!(
        text(&rows(&collector, &["list"])[0], "subject"),
        format!("here/node/{NODE}")
    );
    // Whoever tries too often is not even looked at, whatever the proof; one that waits does so.
    let wrong = dir.path().join("wrong.token");
    fs::write(&wrong, "sumun_enroll_guess").expect("a token");
    let wrong = wrong.display().to_string();
    let limited = (0..80).any(|_| {
        let output = Command::new("timeout")
            .arg("3")
            .arg(programs::path("sumun-agent"))
            .args(["enroll", "--collector"])
            .arg(collector.addr().expect("an address"))
            .args(["--token-file", &wrong, "--ca"])
            .arg(collector.dir().join("ca/ca.pem"))
            .arg("--out")
            .arg(dir.path().join("guess"))
            .output();
        said(&output.expect("it can be started")).contains("try again in a minute")
    });
    assert!(limited, "tokens can be tried out at will");
}

#[test]
fn an_identity_that_has_ended_is_replaced_and_one_of_another_collector_is_not() {
    let dir = scratch();
    let short = [
        ("# certificate_seconds = 86400", "certificate_seconds = 2"),
        (
            "# renewal_grace_seconds = 1209600",
            "renewal_grace_seconds = 0",
        ),
    ];
    let collector = Collector::start_with(&short).expect("a collector");
    let other = Collector::start().expect("another collector");
    let token = |collector: &Collector| collector.dir().join("enroll.token").display().to_string();
    let out = dir.path().join("host");
    let (own, foreign) = (token(&collector), token(&other));
    let host = |collector| Host {
        collector,
        out: out.clone(),
    };
    let known = host(&collector);
    joined(&known.enroll(&["--token-file", &own]));
    let id = known.id();

    // Whoever gives the data of another collector means another host, or has to say so.
    let key = fs::read(out.join("agent.key")).expect("a key");
    refused(
        &host(&other).enroll(&["--token-file", &foreign]),
        &format!("enrolled at another collector, as the agent {id} of tenant default"),
    );
    assert_eq!(fs::read(out.join("agent.key")).expect("a key"), key);

    // Ended, and beyond renewal: the next start of a machine mends it.
    std::thread::sleep(Duration::from_secs(3));
    let anew = known.enroll(&["--token-file", &own]);
    joined(&anew);
    assert!(said(&anew).contains("enrolling anew"), "{}", said(&anew));
    assert_ne!(known.id(), id);
    let id = known.id();

    // While nobody can be asked, it stays as it is.
    let address = collector.addr().expect("an address");
    let authority = collector.dir().join("ca/ca.pem");
    let kept = dir.path().join("kept.pem");
    fs::copy(&authority, &kept).expect("a copy");
    std::thread::sleep(Duration::from_secs(3));
    drop(collector);
    let enroll = |options: &[&str]| {
        Command::new(programs::path("sumun-agent"))
            .args(["enroll", "--once", "--token-file", &foreign])
            .args(["--collector", &address.to_string()])
            .arg("--ca")
            .arg(&kept)
            .arg("--out")
            .arg(&out)
            .args(options)
            .output()
            .expect("the agent can be started")
    };
    let away = enroll(&["--no-policies"]);
    joined(&away);
    assert!(said(&away).contains("enrolled already"), "{}", said(&away));
    let unchanged = fs::read_to_string(out.join("agent.toml")).expect("a configuration");
    assert!(unchanged.contains(&id));

    // Where a chart's policies were, there are none: the starter policies come back, once.
    let policies = || {
        fs::read_dir(out.join("policies"))
            .expect("a folder")
            .count()
    };
    assert_eq!(policies(), 0);
    joined(&enroll(&[]));
    assert_eq!(policies(), 0, "who took them away is not given them again");
    joined(&enroll(&["--starter-policies"]));
    let all = policies();
    assert!(all > 5, "{all}");
    let one = fs::read_dir(out.join("policies")).expect("a folder").next();
    fs::remove_file(one.expect("a policy").expect("a policy").path()).expect("removed");
    joined(&enroll(&["--starter-policies"]));
    assert_eq!(policies(), all - 1);
}

/// A network namespace, for as long as its process lives.
struct Net(Process);

impl Net {
    fn new(dir: &Path, name: &str) -> Self {
        let mut held = Command::new("unshare");
        held.args(["--net", "sleep", "60"]);
        let held = Process::start(name, &mut held, &dir.join(name)).expect("a namespace");
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).expect("a namespace");
        while of(&held.pid().to_string()) == of("self") {
            std::thread::sleep(Duration::from_millis(5));
        }
        Self(held)
    }

    fn run(&self, program: &[&str]) -> Output {
        let target = self.0.pid().to_string();
        Command::new("nsenter")
            .args(["--target", &target, "--net", "--"])
            .args(program)
            .output()
            .expect("nsenter can be started")
    }

    #[track_caller]
    fn ip(&self, args: &str) {
        let args: Vec<&str> = ["ip"].into_iter().chain(args.split(' ')).collect();
        let output = self.run(&args);
        assert!(output.status.success(), "{args:?}: {}", said(&output));
    }
}

#[test]
fn behind_a_router_the_hop_limit_is_told_and_how_to_mend_it() {
    let name = "hop limit";
    if !nix::unistd::geteuid().is_root() {
        return println!("SKIPPED {name}: networks are made by root only");
    }
    let there = Command::new("ip").arg("-V").output().is_ok();
    if !there {
        return println!("SKIPPED {name}: ip is not installed (make setup-test)");
    }
    let dir = scratch();
    // The service, the instance, and a container on it with a network of its own.
    let [service, instance, container] =
        ["service", "instance", "container"].map(|name| Net::new(dir.path(), name));
    let to = |net: &Net| format!("netns {}", net.0.pid());
    service.ip(&format!(
        "link add inst type veth peer name imds {}",
        to(&instance)
    ));
    container.ip(&format!(
        "link add eth0 type veth peer name pod {}",
        to(&instance)
    ));
    for (net, setup) in [
        (&service, "addr add 169.254.169.254/32 dev lo"),
        (&service, "addr add 10.99.0.1/24 dev inst"),
        (&service, "link set lo up"),
        (&service, "link set inst up"),
        (&service, "route add 10.99.1.0/24 via 10.99.0.2"),
        (&instance, "addr add 10.99.0.2/24 dev imds"),
        (&instance, "addr add 10.99.1.1/24 dev pod"),
        (&instance, "link set imds up"),
        (&instance, "link set pod up"),
        (&instance, "route add 169.254.169.254/32 via 10.99.0.1"),
        (&container, "addr add 10.99.1.2/24 dev eth0"),
        (&container, "link set eth0 up"),
        (&container, "route add default via 10.99.1.1"),
    ] {
        net.ip(setup);
    }
    let forwards = instance.run(&["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"]);
    assert!(forwards.status.success(), "{}", said(&forwards));
    let metadata = Metadata::start_in(service.0.pid()).expect("a metadata service");
    metadata.tell(
        &document(ACCOUNT, "i-hops", Duration::from_secs(60)),
        "web",
        &[],
    );

    // Of a host that is enrolled nowhere near: what is asked here is the cloud.
    let collector = Collector::start().expect("a collector");
    let host = Host {
        collector: &collector,
        out: dir.path().join("host"),
    };
    let token = collector.dir().join("enroll.token").display().to_string();
    joined(&host.enroll(&["--token-file", &token]));
    let config = host.out.join("agent.toml");
    let text = fs::read_to_string(&config).expect("a configuration");
    fs::write(&config, format!("{text}\n[identity]\ncloud = \"aws\"\n")).expect("written");
    let agent = programs::path("sumun-agent").display().to_string();
    let config = config.display().to_string();
    let doctor = [agent.as_str(), "doctor", "--config", &config];
    let near = said(&instance.run(&doctor));
    assert!(
        near.contains("good     cloud          aws i-hops in eu-west-1"),
        "{near}"
    );
    // The question arrives, the answer does not.
    let before = metadata.asked().len();
    let far = said(&container.run(&doctor));
    assert!(far.contains("lacking  cloud"), "{far}");
    assert!(far.contains("the hop limit may be 1"), "{far}");
    assert!(far.contains("--http-put-response-hop-limit 2"), "{far}");
    let asked = metadata.asked();
    assert!(asked.len() > before, "{asked:?}");
    assert!(
        asked[before..]
            .iter()
            .all(|line| line.starts_with("PUT /latest/api/token")),
        "{asked:?}"
    );
}

#[test]
fn a_host_that_was_off_longer_than_its_certificate_is_the_same_agent_with_nothing_lost() {
    let name = "expired certificate";
    let Some(turn) = Turn::take(name) else { return };
    if !with_openssl(name) {
        return;
    }
    let short = [("# certificate_seconds = 86400", "certificate_seconds = 5")];
    let mut collector = Collector::start_with(&short).expect("a collector");
    let mut agent = Agent::start(turn, &collector, &[]).expect("an agent");
    let id = agent.id().expect("an id");
    let serial = |agent: &Agent| {
        let args = ["x509", "-in", "agent.pem", "-noout", "-serial"];
        openssl(&agent.home(), &args).expect("a certificate")
    };
    // What was recorded with nobody to send it to is there when the host goes off.
    collector.stop().expect("stopped");
    let since = unix_ns();
    let program = agent.home().join("prog-before-it-went-off");
    fs::copy("/bin/true", &program).expect("a program");
    for _ in 0..3 {
        let ran = Command::new(&program).status().expect("it can be started");
        assert!(ran.success());
    }
    std::thread::sleep(Duration::from_secs(1));
    agent.kill();
    let old = serial(&agent);
    let good = ["x509", "-in", "agent.pem", "-noout", "-checkend", "0"];
    while openssl(&agent.home(), &good).is_ok() {
        std::thread::sleep(Duration::from_millis(200));
    }
    // From now on certificates live as they usually do.
    let path = collector.dir().join("collector.toml");
    let lines = fs::read_to_string(&path).expect("a configuration");
    let lines = lines.replace("certificate_seconds = 5", "certificate_seconds = 86400");
    fs::write(&path, lines).expect("written");
    collector.restart().expect("it runs again");

    agent.run().expect("it can be started");
    agent.online(&collector).expect("it is online again");
    assert_eq!(agent.id().expect("an id"), id);
    assert_ne!(serial(&agent), old);
    let ctl = collector.ctl();
    let agents = ctl.agents().expect("agents");
    assert_eq!(agents.len(), 1, "{agents:?}");
    let expires =
        OffsetDateTime::parse(text(&agents[0], "certificate_expires"), &Rfc3339).expect("a time");
    assert!(expires > OffsetDateTime::now_utc() + Duration::from_secs(3_600));
    let filter = r#"kind == "exec" && proc.exe.name == "prog-before-it-went-off""#;
    let begun = std::time::Instant::now();
    loop {
        let rows = ctl.events(since, None, filter).expect("an answer").rows;
        if rows.len() == 3 {
            break;
        }
        assert!(rows.len() < 3, "delivered twice: {rows:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{rows:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
