//! The machine as an instance of EC2: the metadata service at its real address, docs/install-ecs.md as it stands, user data run
//! twice, what the collector is told of the instance, policies that ask for it, and who may ask for credentials unseen.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use sumun_tests::check::{int, text};
use sumun_tests::host::scratch;
use sumun_tests::machine::Machine;
use sumun_tests::metadata::{Metadata, Mood, Signer, openssl};
use sumun_tests::process::Process;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{LIMIT, blocks, bring, left, property};

const PAGE: &str = include_str!("../../../docs/install-ecs.md");
const USER_DATA: &str = include_str!("../../../deploy/aws/user-data.yaml.tftpl");
const PACKAGES: &str = "packages.example:8443";

/// In force on this instance, on another one, and one that tells who asks the metadata service.
const POLICIES: [(&str, &str); 3] = [
    (
        "web",
        r#"
[policy]
name = "web"
version = 1
mode = "enforce"

[selector]
cloud = { account = ["123456789012"], role = ["web-profile"], tags = { role = "web" } }

[[rule]]
id = "web"
on = ["exec"]
when = 'proc.exe.name == "prog-web"'
effect = "kill"
"#,
    ),
    (
        "db",
        r#"
[policy]
name = "db"
version = 1
mode = "enforce"

[selector]
cloud = { tags = { role = "db" } }

[[rule]]
id = "db"
on = ["exec"]
when = 'proc.exe.name == "prog-db"'
effect = "kill"
"#,
    ),
    (
        "metadata",
        r#"
[policy]
name = "metadata"
version = 1

[[rule]]
id = "metadata"
on = ["connect"]
when = 'net.dst.ip == "169.254.169.254"'
"#,
    ),
];

/// How the page says that a placeholder of user data is made.
fn made(placeholder: &str) -> String {
    let row = format!("| `{placeholder}` | ");
    let line = PAGE.lines().find_map(|line| line.strip_prefix(&row));
    let cell = line.unwrap_or_else(|| panic!("the page tells of {placeholder}"));
    let command = cell.split('`').nth(1);
    command.expect("a command").to_owned()
}

/// Does what cloud-init does with it: writes the file and runs the command.
fn as_cloud_init(machine: &Machine, data: &str) {
    let value = |key: &str| {
        let mut lines = data.lines().map(|line| line.trim_start_matches([' ', '-']));
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        value
            .unwrap_or_else(|| panic!("{key} in {data}"))
            .trim_matches('"')
            .to_owned()
    };
    assert_eq!(value("encoding"), "b64");
    let (path, mode) = (value("path"), value("permissions"));
    machine
        .run(&format!(
            "echo '{}' | base64 -d >{path}; chmod {mode} {path}",
            value("content")
        ))
        .expect("a file of user data");
    let command = data
        .split("runcmd:\n  - [")
        .nth(1)
        .and_then(|rest| rest.split(']').next())
        .expect("a command");
    let words: Vec<String> = command
        .split(", ")
        .map(|word| format!("'{}'", word.trim_matches('"')))
        .collect();
    machine
        .run(&words.join(" "))
        .expect("the command of user data");
}

/// The curl of this host in the machine, which has none, believing the authority of a server of packages.
fn give_curl(machine: &Machine, authority: &Path) -> bool {
    let ldd = "ldd $(command -v curl) | grep -o '/[^ ]*'; command -v curl";
    let Ok(needed) = Command::new("sh").args(["-euc", ldd]).output() else {
        return false;
    };
    if !needed.status.success() {
        return false;
    }
    let needed = String::from_utf8_lossy(&needed.stdout).into_owned();
    let folder = machine.path("/opt/curl");
    fs::create_dir_all(&folder).expect("a folder");
    let mut loader = String::new();
    for file in needed.lines() {
        let name = Path::new(file)
            .file_name()
            .expect("a file")
            .to_string_lossy()
            .into_owned();
        fs::copy(file, folder.join(&name)).expect("copied");
        if name.starts_with("ld-") {
            loader = name;
        }
    }
    fs::copy(authority, folder.join("ca.pem")).expect("copied");
    let script = format!(
        "#!/bin/sh\nCURL_CA_BUNDLE=/opt/curl/ca.pem exec /opt/curl/{loader} --library-path /opt/curl /opt/curl/curl \"$@\"\n"
    );
    fs::write(machine.path("/usr/local/bin/curl"), script).expect("a script");
    machine
        .run("chmod 755 /usr/local/bin/curl; curl --version")
        .is_ok()
}

/// Rows that `sumunctl` of the machine prints.
fn rows(machine: &Machine, what: &str, filter: &str) -> Vec<Value> {
    let script =
        format!("sumunctl {what} list --since 15m -o jsonl --where '{filter}' 2>/dev/null");
    let printed = machine.run(&script).expect("an answer");
    let lines = printed.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect()
}

/// From user data to purge, in a machine that has none of Sumun's; `packages` is a folder with those of the agent, the collector and
/// `sumunctl`.
pub(super) fn by_user_data(machine: &Machine, packages: &Path) {
    let name = "instance";
    if openssl(Path::new("/"), &["version"]).is_err() {
        return println!("SKIPPED {name}: openssl is not installed (make setup-test)");
    }
    let dir = scratch();
    let amazon = Signer::new(dir.path(), "eu-west-1").expect("a signer");
    let server = [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=packages",
        "-addext",
        "subjectAltName=DNS:packages.example",
        "-keyout",
        "server.key",
        "-out",
        "server.pem",
    ];
    openssl(dir.path(), &server).expect("a certificate");
    let begun = Instant::now();
    if !give_curl(machine, &dir.path().join("server.pem")) {
        return println!("SKIPPED {name}: curl of this host does not run in the machine");
    }

    // What an instance finds: the firmware's names, the metadata service, packages over https.
    machine
        .run(
            "if [ -e /sys/class/dmi/id ]; then mount -t tmpfs tmpfs /sys/class/dmi/id/; echo 'Amazon EC2' >/sys/class/dmi/id/sys_vendor; fi; \
             echo 127.0.0.1 packages.example >>/etc/hosts",
        )
        .expect("an instance's surroundings");
    machine
        .network(&["ip", "addr", "add", "169.254.169.254/32", "dev", "lo"])
        .expect("an address");
    let metadata = Metadata::start_in(machine.leader()).expect("a metadata service");
    let started = OffsetDateTime::from(SystemTime::now()) - Duration::from_secs(60);
    let started = started
        .replace_nanosecond(0)
        .expect("a time")
        .format(&Rfc3339);
    let document = json!({
        "accountId": "123456789012", "region": "eu-west-1", "availabilityZone": "eu-west-1b", "instanceId": "i-0abc",
        "instanceType": "m7g.large", "imageId": "ami-0def", "pendingTime": started.expect("a time"), "version": "2017-09-30",
    })
    .to_string();
    metadata.set(Mood::Strict, &amazon.sign(&document).expect("signed"));
    let tags = [
        ("role", "web"),
        ("Cost Center", "4 2"),
        ("aws:autoscaling:groupName", "shop-web"),
    ];
    metadata.tell(&document, "web-profile", &tags);
    let mut served = Command::new("nsenter");
    served.args([
        "--target",
        &machine.leader().to_string(),
        "--net",
        "--",
        "openssl",
    ]);
    let (cert, key) = (dir.path().join("server.pem"), dir.path().join("server.key"));
    served.args([
        "s_server",
        "-quiet",
        "-WWW",
        "-accept",
        "127.0.0.1:8443",
        "-cert",
    ]);
    served.arg(cert).arg("-key").arg(key).current_dir(packages);
    let _served =
        Process::start("openssl", &mut served, &dir.path().join("served")).expect("a server");

    // The collector lets the account's instances join, as the page says.
    bring(machine, packages);
    machine
        .run(
            "apt-get install -y ./sumun-collector_*.deb ./sumunctl_*.deb && rm sumun-collector_*.deb sumunctl_*.deb
             sumun-collector init /etc/sumun --listen 127.0.0.1:7443
             mkdir /etc/sumun/aws",
        )
        .expect("a collector");
    let certificate = dir.path().join("certificates/eu-west-1.pem");
    fs::copy(certificate, machine.path("/etc/sumun/aws/eu-west-1.pem")).expect("copied");
    let entry = blocks(PAGE, "How an instance joins", "toml").concat();
    let config = machine.path("/etc/sumun/collector.toml");
    let lines = fs::read_to_string(&config).expect("a configuration");
    fs::write(&config, format!("{lines}\n{entry}")).expect("written");
    machine
        .run("systemctl enable --now sumun-collector")
        .expect("the collector runs");

    // User data, as it is made by hand.
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let install = Command::new("sh")
        .args(["-euc", &made("install_base64")])
        .current_dir(repository)
        .output()
        .expect("a shell");
    let package = fs::read_dir(packages)
        .expect("packages")
        .map(|entry| entry.expect("a package").path())
        .find(|path| path.to_string_lossy().contains("/sumun-agent_"))
        .expect("the agent's package");
    let package = package
        .file_name()
        .expect("a file")
        .to_string_lossy()
        .into_owned();
    let sum = format!("sha256sum {package}");
    let sum = machine.run(&sum).expect("a hash");
    let sum = sum.split(' ').next().expect("a hash").to_owned();
    machine
        .run("rm *.deb")
        .expect("the agent comes over the network");
    let data = [
        (
            "install_base64",
            String::from_utf8(install.stdout).expect("text"),
        ),
        ("collector", "127.0.0.1:7443".to_owned()),
        (
            "ca_base64",
            machine.run(&made("ca_base64")).expect("the authority"),
        ),
        ("package_url", format!("https://{PACKAGES}/{package}")),
        ("package_sha256", sum),
    ]
    .into_iter()
    .fold(USER_DATA.to_owned(), |data, (name, value)| {
        assert!(data.contains(&format!("${{{name}}}")), "{name}: {data}");
        assert!(
            PAGE.contains(&format!("`{name}`")),
            "the page tells of {name}"
        );
        data.replace(&format!("${{{name}}}"), &value)
    });
    assert!(!data.contains("${"), "{data}");
    as_cloud_init(machine, &data);
    let online = "sumunctl agents list -o jsonl 2>/dev/null | grep -q '\"online\"'";
    machine.until(online, LIMIT).expect("the agent is online");
    let who = "sed -n 's/^id = //p' /etc/sumun/agent.toml; systemctl show -p MainPID -p UnitFileState sumun-agent";
    let before = machine.run(who).expect("its identity");
    assert!(before.contains("UnitFileState=enabled"), "{before}");
    as_cloud_init(machine, &data);
    assert_eq!(
        machine.run(who).expect("its identity"),
        before,
        "a second run changes nothing"
    );

    // Policies take effect by what the cloud says.
    for (name, policy) in POLICIES {
        fs::write(
            machine.path(&format!("/etc/sumun/policies/{name}.toml")),
            policy,
        )
        .expect("a policy");
    }
    machine
        .run("cp /bin/true prog-web; cp /bin/true prog-db; systemctl reload sumun-agent")
        .expect("policies");
    let killed = |when: &str| {
        machine
            .until("./prog-web; [ $? = 137 ]", LIMIT)
            .unwrap_or_else(|error| panic!("{when}: {error:#}"));
        machine
            .run("./prog-db")
            .expect("it is not of that instance");
    };
    killed("told of the instance");
    // Started anew with the rules in the kernel, it asks under the very rule that watches who asks.
    let asked = metadata.asked().len();
    machine
        .run("systemctl restart sumun-agent")
        .expect("started anew");
    machine.until(online, LIMIT).expect("online again");
    killed("after a restart");
    assert!(metadata.asked().len() > asked, "it has asked again");

    // So do those who come with it: it is told to nobody. Whoever else asks is, by whatever name, its own file included.
    let asked = metadata.asked().len();
    let doctor = machine
        .run("sumun-agent doctor")
        .expect("nothing is broken");
    assert!(
        doctor.contains("good     cloud          aws i-0abc in eu-west-1"),
        "{doctor}"
    );
    let enroll = "timeout 20 $WITH sumun-agent enroll --join ec2 --collector 127.0.0.1:7443 --ca /etc/sumun/collector-ca.pem --out /tmp/other 2>&1 || true";
    let said = machine
        .run(&format!("WITH=; {enroll}"))
        .expect("it can be started");
    assert!(said.contains("has joined already"), "{said}");
    assert!(metadata.asked().len() >= asked + 5, "both have asked");
    for other in ["setpriv --reuid=65534 --clear-groups", "unshare --mount"] {
        machine
            .run(&format!("WITH='{other}'; rm -rf /tmp/other; {enroll}"))
            .expect("it can be started");
    }
    machine
        .run("bash -c 'exec 3<>/dev/tcp/169.254.169.254/80'")
        .expect("a probe");
    let probe = "sumunctl alerts list --since 15m -o jsonl --where 'rule.id == \"metadata\" && proc.exe.name == \"bash\"' 2>/dev/null | grep -q bash";
    machine.until(probe, LIMIT).expect("the probe is told");
    let told = rows(machine, "alerts", r#"rule.id == "metadata""#);
    let inside = machine.run("readlink /proc/1/ns/mnt").expect("a namespace");
    let inside = inside
        .trim_end_matches("]\n")
        .trim_start_matches("mnt:[")
        .parse::<i64>();
    let inside = inside.expect("a number");
    let mut others = [0, 0, 0];
    for row in &told {
        let own_spaces = int(row, "proc.ns.mnt") == Some(inside);
        match (text(row, "proc.exe.name"), int(row, "proc.uid")) {
            ("bash", Some(0)) => others[0] += 1,
            ("sumun-agent", Some(65534)) => others[1] += 1,
            ("sumun-agent", Some(0)) if !own_spaces => others[2] += 1,
            _ => panic!("the agent is told of for its own questions: {row}"),
        }
    }
    assert!(
        others.iter().all(|count| *count > 0),
        "{others:?}: {told:?}"
    );

    // The collector knows the instance of each event.
    let events = rows(
        machine,
        "events",
        r#"kind == "exec" && proc.exe.name == "prog-db""#,
    );
    let cloud = &events.last().expect("an event")["cloud"];
    assert_eq!(
        *cloud,
        json!({
            "provider": "aws", "account": "123456789012", "region": "eu-west-1", "zone": "eu-west-1b",
            "instance": { "id": "i-0abc", "type": "m7g.large" }, "image": "ami-0def", "role": "web-profile",
            "scaling_group": "shop-web",
            "tags": ["Cost Center=4 2", "aws:autoscaling:groupName=shop-web", "role=web"], "tags_flaws": [],
        })
    );
    let found = rows(
        machine,
        "events",
        r#"kind == "exec" && "role=web" in cloud.tags && cloud.region == "eu-west-1" && proc.exe.name == "prog-web""#,
    );
    assert!(found.len() >= 2, "{found:?}");
    assert_eq!(property(machine, "sumun-agent", "NRestarts"), "0");

    // Purged, nothing is left of what user data did.
    for block in blocks(PAGE, "Removing", "sh") {
        machine.run(&block).expect("removed");
    }
    let kept = machine.run("ls /etc/sumun").expect("the collector's");
    for gone in ["agent", "ca.pem", "policies", "package", "settings"] {
        assert!(
            !kept.lines().any(|file| file.starts_with(gone)),
            "{gone} is left: {kept}"
        );
    }
    machine
        .run("rm -r /etc/sumun/aws; apt-get purge -y sumun-collector sumunctl")
        .expect("purged");
    assert_eq!(left(machine), "", "left after a purge");
    println!("{name}: {:.1} s", begun.elapsed().as_secs_f64());
}
