//! Whose it was: on every event, from the first one of a container on.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use sumun_tests::bench::rate::pss_kib;
use sumun_tests::check::{int, list, nobody_is_unknown, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::container::{Cgroup, Rootfs, has, id, pod_uid};
use sumun_tests::elf;
use sumun_tests::host::{Agent, Collector, Turn, scratch};
use sumun_tests::programs::{self, emulated, long};
use sumun_tests::ssh::{self, Sshd};

/// How long the store may take until an answer is complete.
const LIMIT: Duration = Duration::from_secs(60);

const POLICY: &str = r#"
[policy]
name = "identity"
version = 1

[[rule]]
id = "in-container"
on = ["exec"]
when = 'container.id.startsWith("CONTAINER") && proc.exe.name.startsWith("prog-")'

[[rule]]
id = "in-unit"
on = ["exec"]
when = 'unit == "sumun-test.service" && !has(container.id)'
"#;

/// Process life is always collected; other kinds only if a rule asks for them.
const PROGRAMS: &str = r#"kind in ["exec", "exit"] && proc.exe.name.startsWith("prog-")"#;

/// What a program should be told to belong to.
struct Wanted {
    container: String,
    pod: String,
}

/// How many there are: in the long form, else, and where a processor is emulated.
fn count(of_long: u64, else_: u64) -> u64 {
    match (long(), emulated()) {
        (_, true) => else_ / 10,
        (true, false) => of_long,
        (false, false) => else_,
    }
}

fn run_all(count: u64, workers: u64, each: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    each(number);
                }
            });
        }
    });
}

fn status(agent: &Agent) -> Value {
    let output = Command::new(programs::path("sumun-agent"))
        .args(["status", "-o", "json", "--config"])
        .arg(agent.config())
        .output()
        .expect("the status");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// Each program's exec and exit, with the identity that the oracle has.
fn check(rows: &[Value], wanted: &HashMap<String, Wanted>) {
    let mut seen: HashMap<&str, [u32; 2]> = HashMap::new();
    for row in rows {
        let name = text(row, "proc.exe.name");
        let of = &wanted[name];
        assert_eq!(text(row, "container.id"), of.container, "{row}");
        assert_eq!(text(row, "k8s.pod.uid"), of.pod, "{row}");
        assert_eq!(text(row, "workload.kind"), "container", "{row}");
        assert!(int(row, "workload.id") > Some(0), "{row}");
        let seen = seen.entry(name).or_default();
        match text(row, "kind") {
            "exec" => seen[0] += 1,
            "exit" => seen[1] += 1,
            other => panic!("{other}: {row}"),
        }
    }
    assert_eq!(seen.len(), wanted.len());
    for (name, seen) in seen {
        assert_eq!(seen, [1, 1], "{name}");
    }
}

/// The one exec of a program.
fn exec_of(collector: &Collector, (since, until): (u64, u64), name: &str) -> Value {
    let filter = format!(r#"kind == "exec" && proc.exe.name == "{name}""#);
    let mut answer = collector
        .ctl()
        .complete_events(since, until, &filter, LIMIT)
        .unwrap_or_else(|error| panic!("{name}: {error:#}"));
    assert_eq!(answer.rows.len(), 1, "{name}: {:?}", answer.rows);
    answer.rows.remove(0)
}

#[test]
fn short_lived_cgroups_are_told_apart_from_their_first_event_on() {
    let Some(turn) = Turn::take("short_lived_cgroups_are_told_apart") else {
        return;
    };
    let scratch = scratch();
    let count = count(10_000, 400);
    let collector = Collector::start().expect("a collector");
    let mut agent = Agent::start(turn, &collector, &[]).expect("an agent");
    elf::write(&scratch.path().join("program")).expect("a program");
    let mut wanted = HashMap::new();
    for number in 0..count {
        let name = format!("prog-{number}");
        fs::hard_link(scratch.path().join("program"), scratch.path().join(&name)).expect("a name");
        // Containers of one pod share its cgroup, which comes and goes with them.
        let of = Wanted {
            container: id(number),
            pod: pod_uid(number / 5),
        };
        wanted.insert(name, of);
    }
    let pid = agent.process().pid();
    let memory = || pss_kib(pid).expect("the agent's memory");
    let before = memory();
    let since = unix_ns();
    run_all(count, 4, |number| {
        let name = format!("prog-{number}");
        let Wanted { container, pod } = &wanted[&name];
        let path = format!("/kubepods/burstable/pod{pod}/{container}");
        // Another's removal of the pod's cgroup may come in between.
        let cgroup = (0..100)
            .find_map(|_| Cgroup::make(&path).ok())
            .expect("a cgroup");
        cgroup
            .run(&scratch.path().join(&name))
            .expect("a program that runs");
    });
    let until = unix_ns();
    let filter = PROGRAMS;
    let ctl = collector.ctl();
    let answer = ctl
        .complete_events(since, until, filter, LIMIT)
        .expect("an answer");
    check(&answer.rows, &wanted);
    let quality = text(&answer.rows[0], "k8s.pod.qos");
    assert_eq!(quality, "burstable");
    nobody_is_unknown(&collector.ctl(), (since, until), LIMIT);
    // What has gone is given up.
    let begun = Instant::now();
    let now = loop {
        let now = status(&agent);
        if now["workloads"]["pending"] == 0 {
            break now;
        }
        assert!(begun.elapsed() < LIMIT, "{now}");
        std::thread::sleep(Duration::from_millis(200));
    };
    println!(
        "{count} cgroups in {:.1} s; the agent's PSS {before} KiB before and {} KiB after",
        Duration::from_nanos(until - since).as_secs_f64(),
        memory(),
    );
    for what in ["cgroups_left_out", "events_without_workload"] {
        assert_eq!(now["counters"][what], 0, "{now}");
    }
    agent.stop().expect("the agent stops when told to");
}

#[test]
fn containers_of_runc_are_known_before_their_first_program() {
    let Some(turn) = Turn::take("containers_of_runc_are_known") else {
        return;
    };
    if !has("runc") {
        println!("SKIPPED containers_of_runc_are_known: runc is not installed");
        return;
    }
    let scratch = scratch();
    let count = count(1000, 200);
    let collector = Collector::start().expect("a collector");
    let mut agent = Agent::start(turn, &collector, &[]).expect("an agent");
    let rootfs = Rootfs::make(scratch.path()).expect("a root file system");
    let mut wanted = HashMap::new();
    for number in 0..count {
        let name = format!("prog-{number}");
        rootfs.program(&name).expect("a program");
        let of = Wanted {
            container: id(number),
            pod: pod_uid(number),
        };
        wanted.insert(name, of);
    }
    let since = unix_ns();
    run_all(count, 4, |number| {
        let name = format!("prog-{number}");
        let Wanted { container, pod } = &wanted[&name];
        let cgroup = format!("/kubepods/pod{pod}/{container}");
        // Of many at once some do not get as far as their program.
        let mut failed = String::new();
        let ran = (0..10).any(|attempt| {
            let bundle = scratch.path().join(format!("bundle-{number}-{attempt}"));
            let output = rootfs.run(&bundle, container, &cgroup, &name);
            let output = output.expect("runc");
            failed += &String::from_utf8_lossy(&output.stderr);
            output.status.code() == Some(3)
        });
        assert!(ran, "{failed}");
        if !failed.is_empty() {
            println!("{name}: {failed}");
        }
    });
    let until = unix_ns();
    for Wanted { container, pod } in wanted.values() {
        // runc leaves the pod's cgroup.
        drop(Cgroup::make(&format!("/kubepods/pod{pod}/{container}")));
    }
    let filter = PROGRAMS;
    let ctl = collector.ctl();
    let answer = ctl
        .complete_events(since, until, filter, LIMIT)
        .expect("an answer");
    check(&answer.rows, &wanted);
    assert_eq!(text(&answer.rows[0], "k8s.pod.qos"), "guaranteed");
    nobody_is_unknown(&collector.ctl(), (since, until), LIMIT);
    agent.stop().expect("the agent stops when told to");
}

#[test]
fn what_was_there_before_the_agent_is_known_and_goes_on_after_a_restart() {
    let Some(turn) = Turn::take("what_was_there_before_the_agent") else {
        return;
    };
    let scratch = scratch();
    let (outer, inner) = (id(7001), id(7002));
    let policy = POLICY.replace("CONTAINER", &outer);
    let name = |name: &str| {
        let path = scratch.path().join(name);
        elf::write(&path).expect("a program");
        path
    };
    let before = Cgroup::make(&format!("/docker/{outer}")).expect("a cgroup");
    let nested = Cgroup::make(&format!("/docker/{outer}/docker/{inner}")).expect("a cgroup");
    let unit = Cgroup::make("/system.slice/sumun-test.service").expect("a cgroup");
    let collector = Collector::start().expect("a collector");
    let mut agent = Agent::start(turn, &collector, &[("identity", &policy)]).expect("an agent");
    let since = unix_ns();
    before
        .run(&name("prog-before"))
        .expect("a program that runs");
    nested
        .run(&name("prog-nested"))
        .expect("a program that runs");
    unit.run(&name("prog-unit")).expect("a program that runs");
    // Someone who may make cgroups only below the unit's takes a pod's name.
    let pod = pod_uid(7003);
    let imitation = format!("/system.slice/sumun-test.service/kubepods/pod{pod}/{inner}");
    let imitation = Cgroup::make(&imitation).expect("a cgroup");
    imitation
        .run(&name("prog-imitation"))
        .expect("a program that runs");
    agent.kill();
    let late = Cgroup::make(&format!("/kubepods/besteffort/pod{pod}/{inner}")).expect("a cgroup");
    late.run(&name("prog-unwatched"))
        .expect("a program that runs");
    let numbers = (before.id().expect("an id"), late.id().expect("an id"));
    // Gone before the next agent can look.
    drop(late);
    agent.run().expect("the agent starts again");
    before
        .run(&name("prog-after"))
        .expect("a program that runs");
    let until = unix_ns();

    let ask = |name: &str| exec_of(&collector, (since, until), name);
    for name in ["prog-before", "prog-after"] {
        let row = ask(name);
        assert_eq!(text(&row, "container.id"), outer, "{row}");
        assert_eq!(text(&row, "container.runtime"), "docker", "{row}");
        assert_eq!(
            int(&row, "workload.id"),
            Some(numbers.0.cast_signed()),
            "{row}"
        );
        assert_eq!(list(&row, "rules"), ["identity/in-container"], "{row}");
    }
    let row = ask("prog-nested");
    assert_eq!(text(&row, "container.id"), outer, "{row}");
    assert_eq!(text(&row, "container.nested_id"), inner, "{row}");
    assert_eq!(
        int(&row, "workload.id"),
        Some(numbers.0.cast_signed()),
        "{row}"
    );
    let row = ask("prog-unit");
    assert_eq!(
        (text(&row, "unit"), text(&row, "slice")),
        ("sumun-test.service", "system.slice")
    );
    assert_eq!(list(&row, "rules"), ["identity/in-unit"], "{row}");
    let row = ask("prog-imitation");
    assert_eq!(
        (text(&row, "k8s.pod.uid"), text(&row, "unit")),
        ("", "sumun-test.service"),
        "{row}"
    );
    let row = ask("prog-unwatched");
    assert_eq!(text(&row, "k8s.pod.uid"), pod, "{row}");
    assert_eq!(text(&row, "k8s.pod.qos"), "besteffort", "{row}");
    assert_eq!(
        int(&row, "workload.id"),
        Some(numbers.1.cast_signed()),
        "{row}"
    );
    agent.stop().expect("the agent stops when told to");
    drop((nested, imitation));
}

const LOGIN: &str = r#"
[policy]
name = "login"
version = 1

[lists]
here = ["127.0.0.1", "::1"]

[[rule]]
id = "by-ssh"
on = ["exec"]
when = 'login.src.ip in lists.here && proc.exe.name.startsWith("prog-")'

[[rule]]
id = "on-a-terminal"
on = ["exec"]
when = 'proc.tty.startsWith("pts/") && proc.exe.name.startsWith("prog-")'

[[rule]]
id = "of-a-user"
on = ["exec"]
when = 'proc.auid == 4711 && proc.exe.name.startsWith("prog-")'

[[rule]]
id = "set-id"
on = ["exec"]
when = 'proc.exe.setid && proc.exe.name.startsWith("prog-")'

[[rule]]
id = "script"
on = ["exec"]
when = 'proc.script.path.endsWith("/script") && proc.exe.name.startsWith("prog-")'
"#;

/// What a shell of a login says of itself, before anybody has written to its environment.
const WHO: &str =
    "echo $SSH_CONNECTION $(cat /proc/self/loginuid) $(cut -d' ' -f6 /proc/$$/stat) $(tty)";

/// A login as its own shell tells of it.
#[derive(Debug)]
struct Login {
    ip: &'static str,
    /// The port at the client's end.
    port: i64,
    /// Who has logged in; `None`: this kernel or this PAM do not say.
    auid: Option<i64>,
    session: i64,
    /// As below `/dev`.
    tty: String,
}

impl Login {
    fn of(ip: &'static str, said: &str) -> Self {
        let words: Vec<&str> = said.split_ascii_whitespace().collect();
        let number = |at: usize| -> i64 {
            let number = words.get(at).and_then(|word| word.parse().ok());
            number.unwrap_or_else(|| panic!("nobody said who it is: {said:?}"))
        };
        Self {
            ip,
            port: number(1),
            auid: login_user(number(4)),
            session: number(5),
            tty: words[6].strip_prefix("/dev/").unwrap_or_default().into(),
        }
    }
}

/// A login user id as the kernel shows it: of nobody it is the highest number.
fn login_user(shown: i64) -> Option<i64> {
    (shown != i64::from(u32::MAX)).then_some(shown)
}

#[test]
fn who_has_logged_in_and_how_is_on_what_a_login_does() {
    let Some(turn) = Turn::take("who_has_logged_in_and_how") else {
        return;
    };
    if !ssh::has() {
        println!("SKIPPED who_has_logged_in_and_how: OpenSSH is not installed (make setup-test)");
        return;
    }
    let scratch = scratch();
    // Other users' programs are below it, too.
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    let program = |name: &str| {
        let path = scratch.path().join(name);
        elf::write(&path).expect("a program");
        path.display().to_string()
    };
    let server = Sshd::start(&scratch.path().join("sshd"), "127.0.0.1").expect("sshd");

    // One who is there before the agent …
    let mut early = server
        .login(&format!("{WHO}; exec /bin/sh -s"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ssh");
    let mut said = String::new();
    let mut answers = BufReader::new(early.stdout.take().expect("a pipe"));
    answers.read_line(&mut said).expect("an answer");
    let first = Login::of("127.0.0.1", &said);
    let collector = Collector::start().expect("a collector");
    let mut agent = Agent::start(turn, &collector, &[("login", LOGIN)]).expect("an agent");
    let since = unix_ns();
    let mut commands = early.stdin.take().expect("a pipe");
    writeln!(commands, "{}", program("prog-early")).expect("a command");
    drop(commands);
    early.wait().expect("it ends");

    // … and one who comes later, and says of itself what it likes.
    let owned = program("prog-owned");
    fs::set_permissions(&owned, fs::Permissions::from_mode(0o4755)).expect("a mode");
    let remote = format!(
        "{WHO}; {}; export SSH_CLIENT='203.0.113.9 1 22' SSH_CONNECTION='203.0.113.9 1 10.0.0.1 22'; \
         {}; setpriv --reuid=65534 --clear-groups {}; setpriv --reuid=65534 --clear-groups {owned}; setsid -f {}",
        program("prog-plain"),
        program("prog-forged"),
        program("prog-other-user"),
        program("prog-left"),
    );
    let ask = |mut command: Command| {
        let output = command.output().expect("ssh");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let late = Login::of("127.0.0.1", &ask(server.login(&remote)));
    let terminal = server.login_on_terminal(&format!("{WHO}; {}", program("prog-terminal")));
    let terminal = Login::of("127.0.0.1", &ask(terminal));
    assert!(terminal.tty.starts_with("pts/"), "{terminal:?}");
    // A login from here to here is another one.
    let six = TcpListener::bind("[::1]:0").is_ok().then(|| {
        let server = Sshd::start(&scratch.path().join("sshd6"), "::1").expect("sshd");
        Login::of(
            "::1",
            &ask(server.login(&format!("{WHO}; {}", program("prog-six")))),
        )
    });
    // Nobody's, or of whoever runs this test; on no terminal.
    let local = Command::new("setsid")
        .arg("-w")
        .arg(program("prog-local"))
        .status();
    assert!(local.is_ok(), "{local:?}");
    // What a login does besides, without one: its user is not 0, which a field might be that nobody has filled in.
    let user = format!(
        "echo 4711 >/proc/self/loginuid && exec {} has run",
        program("prog-user")
    );
    let user = Command::new("sh").args(["-c", &user]).output().expect("sh");
    let set = user.status.code() == Some(3);
    let script = scratch.path().join("script");
    fs::write(&script, format!("#!{}\n", program("prog-interpreter"))).expect("a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("a mode");
    let _ = Command::new(&script).status();
    let until = unix_ns();

    let ask = |name: &str| exec_of(&collector, (since, until), name);
    let has_rules = |row: &Value, wanted: &[&str]| {
        let wanted: Vec<_> = wanted.iter().map(|id| format!("login/{id}")).collect();
        assert_eq!(list(row, "rules"), wanted, "{row}");
    };
    let mut wanted = vec![
        ("prog-early", &first, &["by-ssh"][..]),
        ("prog-plain", &late, &["by-ssh"]),
        ("prog-forged", &late, &["by-ssh"]),
        ("prog-other-user", &late, &["by-ssh"]),
        ("prog-owned", &late, &["by-ssh", "set-id"]),
        ("prog-left", &late, &["by-ssh"]),
        ("prog-terminal", &terminal, &["by-ssh", "on-a-terminal"]),
    ];
    wanted.extend(six.iter().map(|login| ("prog-six", login, &["by-ssh"][..])));
    for (name, login, rules) in wanted {
        let row = ask(name);
        assert_eq!(text(&row, "login.src.ip"), login.ip, "{name}: {row}");
        assert_eq!(
            int(&row, "login.src.port"),
            Some(login.port),
            "{name}: {row}"
        );
        assert_eq!(int(&row, "proc.auid"), login.auid, "{name}: {row}");
        assert_eq!(text(&row, "proc.tty"), login.tty, "{name}: {row}");
        if name != "prog-left" {
            assert_eq!(
                int(&row, "proc.session"),
                Some(login.session),
                "{name}: {row}"
            );
        }
        let (user, effective) = match name {
            "prog-other-user" => (65534, 65534),
            "prog-owned" => (65534, 0),
            _ => (0, 0),
        };
        assert_eq!(int(&row, "proc.uid"), Some(user), "{name}: {row}");
        assert_eq!(int(&row, "proc.euid"), Some(effective), "{name}: {row}");
        assert_eq!(row["proc"]["exe"]["setid"], name == "prog-owned", "{row}");
        has_rules(&row, rules);
    }
    if late.auid.is_none() {
        println!("SKIPPED login user of ssh: {late:?}: PAM or the kernel do not set it here");
    }
    let row = ask("prog-local");
    let foreign = int(&row, "login.src.port");
    assert!(
        foreign != Some(late.port) && foreign != Some(first.port),
        "{row}"
    );
    let own = fs::read_to_string("/proc/self/loginuid").unwrap_or_default();
    let own = own.trim().parse().ok().and_then(login_user);
    assert_eq!(int(&row, "proc.auid"), own, "{row}");
    assert_eq!(
        (text(&row, "proc.tty"), text(&row, "proc.script.path")),
        ("", ""),
        "{row}"
    );
    if set {
        let row = ask("prog-user");
        assert_eq!(int(&row, "proc.auid"), Some(4711), "{row}");
        has_rules(&row, &["of-a-user"]);
    } else {
        println!("SKIPPED a login user other than root: {user:?}");
    }
    let row = ask("prog-interpreter");
    assert_eq!(
        text(&row, "proc.script.path"),
        script.display().to_string(),
        "{row}"
    );
    has_rules(&row, &["script"]);

    // Searched for, too.
    for (filter, count) in [
        (format!("login.src.port == {}", late.port), 5),
        (format!("proc.tty == {:?}", terminal.tty), 1),
        (format!("proc.session == {}", late.session), 4),
        ("proc.exe.setid".to_owned(), 1),
        (
            format!("proc.script.path == {:?}", script.display().to_string()),
            1,
        ),
        ("proc.auid == 4711".to_owned(), usize::from(set)),
    ] {
        let filter = format!("kind == \"exec\" && {filter} && proc.exe.name.startsWith(\"prog-\")");
        let found = collector
            .ctl()
            .complete_events(since, until, &filter, LIMIT);
        assert_eq!(found.expect("an answer").rows.len(), count, "{filter}");
    }
    agent.stop().expect("the agent stops when told to");
}
