//! deploy/aws/ecs-agent.json on an instance, without ECS: its two containers by podman, with exactly their settings. The agent
//! joins by what Amazon signed, and sees and stops what is done in another container.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use sumun_tests::check::text;
use sumun_tests::clock::unix_ns;
use sumun_tests::container::{self, Rootfs, has};
use sumun_tests::host::{Collector, Turn, scratch};
use sumun_tests::metadata::{Metadata, Mood, Signer, openssl};
use sumun_tests::programs;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const TASK: &str = include_str!("../../deploy/aws/ecs-agent.json");
const LIMIT: Duration = Duration::from_secs(60);
const POLICY: &str = r#"
[policy]
name = "tasks"
version = 1
mode = "enforce"

[[rule]]
id = "second"
on = ["exec"]
when = 'proc.exe.name == "prog-second"'
effect = "kill"
"#;

fn podman(store: &Path) -> Command {
    let mut podman = Command::new("podman");
    podman
        .args([
            "--cgroup-manager=cgroupfs",
            "--runtime=runc",
            "--storage-driver=vfs",
            "--root",
        ])
        .arg(store.join("root"))
        .arg("--runroot")
        .arg(store.join("run"))
        .arg("--tmpdir")
        .arg(store.join("tmp"));
    podman
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[track_caller]
fn good(output: Output) -> Output {
    assert!(output.status.success(), "{}", said(&output));
    output
}

/// The options of `podman run` for a container of the task, as ECS gives them to Docker; what is not known is an error.
fn options(task: &Value, part: &Value, here: impl Fn(&str) -> String) -> Vec<String> {
    assert_eq!(
        (&task["networkMode"], &task["pidMode"]),
        (&json!("host"), &json!("host"))
    );
    // Files: more than this host gives cannot be asked for here, and podman asks for a million by itself.
    let limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"];
    let mut options: Vec<String> = ["--network=host", "--pid=host"]
        .into_iter()
        .chain(limits)
        .map(String::from)
        .collect();
    let strings = |value: &Value| -> Vec<String> {
        let list = value.as_array().expect("a list");
        list.iter()
            .map(|one| one.as_str().expect("a text").to_owned())
            .collect()
    };
    for (key, value) in part.as_object().expect("a container") {
        match key.as_str() {
            "name" | "image" | "command" | "essential" | "dependsOn" | "cpu"
            | "memoryReservation" | "stopTimeout" | "healthCheck" | "ulimits" => {}
            "privileged" => assert_eq!(*value, json!(false)),
            "user" => options.push(format!("--user={}", value.as_str().expect("a user"))),
            "memory" => options.push(format!("--memory={value}m")),
            "readonlyRootFilesystem" => options.push(format!("--read-only={value}")),
            "dockerSecurityOptions" => {
                let security = strings(value);
                options.extend(
                    security
                        .iter()
                        .map(|one| format!("--security-opt={}", one.replace(':', "="))),
                );
            }
            "linuxParameters" => {
                let capabilities = &value["capabilities"];
                let drop = strings(&capabilities["drop"]);
                options.extend(drop.iter().map(|one| format!("--cap-drop={one}")));
                let add = container::capabilities(strings(&capabilities["add"]));
                options.extend(add.iter().map(|one| format!("--cap-add={one}")));
                for tmpfs in value["tmpfs"].as_array().into_iter().flatten() {
                    let path = tmpfs["containerPath"].as_str().expect("a path");
                    let more = strings(&tmpfs["mountOptions"]).join(",");
                    options.push(format!("--tmpfs={path}:size={}m,{more}", tmpfs["size"]));
                }
            }
            "mountPoints" => {
                for point in value.as_array().expect("a list") {
                    let volumes = task["volumes"].as_array().expect("volumes");
                    let volume = volumes
                        .iter()
                        .find(|volume| volume["name"] == point["sourceVolume"]);
                    let source = volume.expect("a volume")["host"]["sourcePath"]
                        .as_str()
                        .expect("a path");
                    let mode = if point["readOnly"] == true {
                        "ro"
                    } else {
                        "rw"
                    };
                    let to = point["containerPath"].as_str().expect("a path");
                    options.push(format!("--volume={}:{to}:{mode},rbind", here(source)));
                }
            }
            other => panic!("{other} is not known here"),
        }
    }
    options
}

#[test]
fn the_task_s_agent_joins_and_stops_what_is_done_in_another_container() {
    let name = "ecs";
    let Some(_turn) = Turn::take(name) else {
        return;
    };
    if !has("podman")
        || !has("runc")
        || !has("busybox")
        || openssl(Path::new("/"), &["version"]).is_err()
    {
        return println!(
            "SKIPPED {name}: podman, runc, busybox or openssl is not installed (make setup-test)"
        );
    }
    let dir = scratch();
    let store = dir.path().join("store");
    let amazon = Signer::new(dir.path(), "eu-west-1").expect("a signer");
    let begun =
        (OffsetDateTime::from(SystemTime::now()) - Duration::from_secs(60)).replace_nanosecond(0);
    let document = json!({
        "accountId": "123456789012", "region": "eu-west-1", "instanceId": "i-1",
        "pendingTime": begun.expect("a time").format(&Rfc3339).expect("a time"),
    });
    let metadata = Metadata::start().expect("a metadata service");
    metadata.set(
        Mood::Strict,
        &amazon.sign(&document.to_string()).expect("signed"),
    );
    let join = format!(
        "[[join]]\nname = \"prod\"\nmethod = \"ec2\"\naccounts = [\"123456789012\"]\ncertificates = {:?}\n\n[metrics]",
        dir.path().join("certificates").display().to_string()
    );
    let collector = Collector::start_with(&[
        ("[metrics]", &join),
        ("names = [", "names = [\"collector.example\", "),
    ]);
    let collector = collector.expect("a collector");
    let address = collector.addr().expect("an address");
    let (_, port) = address.rsplit_once(':').expect("a port");

    let own = programs::path("sumun-agent");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/container/build");
    good(
        Command::new(script)
            .arg(own.parent().expect("a folder"))
            .arg(dir.path().join("images"))
            .output()
            .expect("it can be started"),
    );
    for entry in fs::read_dir(dir.path().join("images")).expect("images") {
        let path = entry.expect("an image").path();
        if path.to_string_lossy().contains("/sumun-agent-") {
            good(
                podman(&store)
                    .args(["load", "-q", "-i"])
                    .arg(path)
                    .output()
                    .expect("podman"),
            );
        }
    }
    let rootfs = Rootfs::make(dir.path()).expect("a root file system");
    rootfs.program("prog-first").expect("a program");
    rootfs.program("prog-second").expect("a program");
    rootfs.shell().expect("a shell");
    let tar = rootfs.tar().expect("a tar");
    good(
        podman(&store)
            .arg("import")
            .arg(&tar)
            .arg("localhost/box:1.0")
            .output()
            .expect("podman"),
    );

    // What an instance has.
    let home = dir.path().join("instance");
    for folder in ["identity/policies", "agent", "join"] {
        fs::create_dir_all(home.join(folder)).expect("a folder");
    }
    fs::copy(collector.dir().join("ca/ca.pem"), home.join("join/ca.pem")).expect("the authority");
    fs::write(home.join("identity/policies/tasks.toml"), POLICY).expect("a policy");
    fs::write(home.join("docker.sock"), "").expect("a file");
    let task: Value = serde_json::from_str(TASK).expect("JSON");
    let here = |path: &str| match path {
        "/var/lib/sumun/identity" => home.join("identity").display().to_string(),
        "/var/lib/sumun/agent" => home.join("agent").display().to_string(),
        "/etc/sumun-join" => home.join("join").display().to_string(),
        "/run/docker.sock" => home.join("docker.sock").display().to_string(),
        other => other.to_owned(),
    };
    let command = |container: &Value| {
        let list = container["command"].as_array().expect("a command");
        let words = list.iter().filter_map(Value::as_str);
        words
            .map(|word| word.replace(":7443", &format!(":{port}")))
            .collect::<Vec<_>>()
    };
    let [enroll, agent] = task["containerDefinitions"]
        .as_array()
        .expect("containers")
        .as_slice()
    else {
        panic!("two containers");
    };
    let image = agent["image"].as_str().expect("an image");
    let run = |container: &Value, more: &[&str]| {
        let mut run = podman(&store);
        run.arg("run")
            .args(more)
            .args(options(&task, container, here));
        run.arg("--add-host=collector.example:127.0.0.1")
            .arg(image)
            .args(command(container));
        run
    };
    // The one thing that is not the task's: nobody else's metadata service is here.
    let place = format!("--metadata={}", metadata.address);
    let enrolled = run(enroll, &["--rm"]).arg(place).output().expect("podman");
    good(enrolled);
    let release = || {
        Command::new(programs::path("sumun-agent"))
            .arg("release")
            .output()
    };
    release().expect("nothing of an earlier test is left");
    good(
        run(agent, &["-d", "--name=agent"])
            .output()
            .expect("podman"),
    );

    let checked = std::panic::catch_unwind(|| {
        let ctl = collector.ctl();
        let begun = Instant::now();
        while !ctl
            .agents()
            .expect("agents")
            .iter()
            .any(|agent| agent["state"] == "online")
        {
            let log = podman(&store)
                .args(["logs", "agent"])
                .output()
                .expect("podman");
            assert!(begun.elapsed() < LIMIT, "{}", said(&log));
            std::thread::sleep(Duration::from_millis(50));
        }
        let joined = ctl.run(&["joins", "list", "-o", "json"]);
        let joined: Value = serde_json::from_slice(&joined.stdout).expect("rows");
        assert_eq!(joined[0]["subject"], "123456789012/eu-west-1/i-1");
        let health: Vec<&str> = agent["healthCheck"]["command"]
            .as_array()
            .expect("a check")
            .iter()
            .skip(1)
            .filter_map(Value::as_str)
            .collect();
        good(
            podman(&store)
                .args(["exec", "agent"])
                .args(health)
                .output()
                .expect("podman"),
        );
        let since = unix_ns();
        let other = [
            "run",
            "--rm",
            "--network=none",
            "--ulimit=nofile=1024:1024",
            "--ulimit=nproc=1024:1024",
            "localhost/box:1.0",
        ];
        let script = "/prog-first; a=$?; /prog-second; b=$?; [ $a = 1 ] && [ $b = 137 ]";
        let ran = podman(&store)
            .args(other)
            .args(["/bin/busybox", "sh", "-c", script])
            .output();
        good(ran.expect("podman"));
        let begun = Instant::now();
        loop {
            let rows = ctl
                .alerts(since, r#"rule.id == "second""#)
                .expect("an answer")
                .rows;
            if let Some(row) = rows.first() {
                assert_eq!(text(row, "verdict.outcome"), "killed", "{row}");
                assert_eq!(text(row, "container.id").len(), 64, "{row}");
                break;
            }
            assert!(begun.elapsed() < LIMIT, "no alert");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let stopped = podman(&store)
        .args(["rm", "-f", "-t", "30", "agent"])
        .output()
        .expect("podman");
    let released = release().expect("it can be started");
    if let Err(panic) = checked {
        std::panic::resume_unwind(panic);
    }
    good(stopped);
    good(released);
}
