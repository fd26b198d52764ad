//! One meaning: random rules that kill are judged by the kernel and by the agent's matcher on the same real execs, opens and
//! connects.

use std::{
    ffi::OsStr,
    fs,
    net::TcpListener,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use crate::{actor, bench};
use rand::{Rng, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use sumun_abi::{
    event::process::{Actor, outcome},
    verdict::Lineage,
};
use sumun_agent::{
    detect::Detector,
    enrich::process::{Limits, Tree},
    kernel::{Known, Seed, StreamId, Swapped},
    pipeline::batch::{BatchBuilder, Origin},
    receive::{
        file, network, process,
        record::{Body, Record},
    },
};
use sumun_engine::Engine;
use sumun_policy::doors::Doors;
use sumun_policy::{CheckedPolicy, Plan, check_file, verdict::VerdictPlan};
use sumun_proto::{
    Host,
    v1::{Kind, Lane},
};

/// Somebody who is not root.
const SOMEBODY: u32 = 4711;

/// A random condition on an exec, of words that the kernel knows, and of a few that it does not.
fn condition(random: &mut StdRng, dir: &str, depth: u32) -> String {
    if depth > 0 && random.random_bool(0.6) {
        let (left, right) = (
            condition(random, dir, depth - 1),
            condition(random, dir, depth - 1),
        );
        return match random.random_range(0..3) {
            0 => format!("({left} && {right})"),
            1 => format!("({left} || {right})"),
            _ => format!("!({left})"),
        };
    }
    let name = ["one", "two", "server", "sh"].choose(random).unwrap();
    let folder = ["a", "b", "a/", "a/o", "nowhere/"].choose(random).unwrap();
    let id = ["uid", "gid", "euid", "egid"].choose(random).unwrap();
    let number = [0, 1, 1000, SOMEBODY].choose(random).unwrap();
    let order = ["==", "!=", "<", ">="].choose(random).unwrap();
    // Root has the first; of those that run here some have the second, and none has the third.
    let capability = [
        r#""CAP_CHOWN""#,
        r#""CAP_SYS_RESOURCE""#,
        r#""CAP_CHECKPOINT_RESTORE""#,
        "63",
    ];
    let capability = capability.choose(random).unwrap();
    match random.random_range(0..13) {
        11 => format!("{capability} in proc.cap_effective"),
        12 => format!("!({capability} in proc.cap_effective)"),
        0 => format!(r#"proc.exe.name == "{name}""#),
        1 => format!(r#"proc.exe.name in ["{name}", "two"]"#),
        2 => format!(r#"proc.exe.name != "{name}""#),
        3 => format!(r#"proc.exe.path.startsWith("{dir}/{folder}")"#),
        4 => format!(r#"proc.exe.path == "{dir}/a/{name}""#),
        5 => format!(r#"proc.exe.path.endsWith("/{name}")"#),
        6 => format!("proc.{id} {order} {number}"),
        7 | 8 => format!(r#"proc.ancestors.exists(p, p.exe.name == "{name}")"#),
        9 => format!(r#"proc.ancestors.exists(p, p.exe.path.startsWith("{dir}/{folder}"))"#),
        _ => r#"proc.args.exists(arg, arg == "nothing")"#.to_owned(),
    }
}

/// A random condition on an open below `dir` or a connect to one of the ports.
fn later(random: &mut StdRng, dir: &str, ports: [u16; 2], depth: u32) -> String {
    if depth > 0 && random.random_bool(0.6) {
        let (left, right) = (
            later(random, dir, ports, depth - 1),
            later(random, dir, ports, depth - 1),
        );
        return match random.random_range(0..4) {
            0 | 1 => format!("({left} && {right})"),
            2 => format!("({left} || {right})"),
            _ => format!("!({left})"),
        };
    }
    let name = ["x", "y", "\\\\xff"].choose(random).unwrap();
    let folder = ["f/", "f/d/", "f/x", "f", "nowhere/"]
        .choose(random)
        .unwrap();
    let access = [
        "file.access.read",
        "file.access.write",
        "!file.access.append",
        "file.create",
        "file.trunc == false",
    ];
    let port = ports.choose(random).unwrap();
    let order = ["==", "!=", "<=", ">"].choose(random).unwrap();
    let net = ["127.0.0.0/8", "10.0.0.0/8", "0.0.0.0/0", "::/0"]
        .choose(random)
        .unwrap();
    let end = ["src", "dst"].choose(random).unwrap();
    match random.random_range(0..16) {
        0 => format!(r#"file.name == "{name}""#),
        1 => format!(r#"file.name in ["{name}", "y"]"#),
        2 => format!(r#"file.path.startsWith("{dir}/{folder}")"#),
        3 => format!(r#"file.path != "{dir}/f/{name}""#),
        4 => format!(r#"file.path.endsWith("/{name}")"#),
        5 => format!(r#"file.path.glob("{dir}/f/{{d/**,{name}}}")"#),
        6 | 7 => (*access.choose(random).unwrap()).to_owned(),
        8 | 9 => format!("net.dst.port {order} {port}"),
        10 => format!(r#"cidr("{net}").containsIP(net.{end}.ip)"#),
        11 => format!(r#"net.{end}.ip == "127.0.0.1""#),
        12 => format!("result {order} -111"),
        13 => (*[r#"net.proto == "tcp""#, "net.dst.private"]
            .choose(random)
            .unwrap())
        .to_owned(),
        _ => condition(random, dir, 0),
    }
}

/// A rule on opens and connects, with one that records them all.
fn policy_on_later(random: &mut StdRng, dir: &str, ports: [u16; 2]) -> CheckedPolicy {
    let mut text = format!(
        "[policy]\nname = \"random\"\nversion = 1\nmode = \"enforce\"\n\n[[rule]]\nid = \"all\"\non = [\"open\", \"close_write\"]\neffect = \"record\"\nwhen = 'file.path.startsWith(\"{dir}/f/\")'\n\n[[rule]]\nid = \"net\"\non = [\"connect\"]\neffect = \"record\"\n\n[[rule]]\nid = \"rule\"\non = [\"open\", \"close_write\", \"connect\"]\neffect = \"kill\"\nforce = true\nwhen = '''proc.exe.path.startsWith(\"{dir}/\") && (kind == \"connect\" || file.path.startsWith(\"{dir}/f/\")) && {}'''\n",
        later(random, dir, ports, 3)
    );
    if random.random_bool(0.3) {
        text += &format!(
            "\n[[rule.exception]]\nname = \"but\"\nowner = \"nobody\"\nwhen = '''{}'''\n",
            later(random, dir, ports, 1)
        );
    }
    let check = check_file("random.toml", &text);
    let told = check.to_string();
    check.policy.unwrap_or_else(|| panic!("{text}\n{told}"))
}

fn policy(random: &mut StdRng, dir: &str) -> CheckedPolicy {
    let mut text = format!(
        "[policy]\nname = \"random\"\nversion = 1\nmode = \"enforce\"\n\n[[rule]]\nid = \"rule\"\non = [\"exec\"]\neffect = \"kill\"\nforce = true\nwhen = '''proc.exe.path.startsWith(\"{dir}/\") && {}'''\n",
        condition(random, dir, 3)
    );
    if random.random_bool(0.3) {
        text += &format!(
            "\n[[rule.exception]]\nname = \"but\"\nowner = \"nobody\"\nwhen = '''{}'''\n",
            condition(random, dir, 1)
        );
    }
    let check = check_file("random.toml", &text);
    let told = check.to_string();
    check.policy.unwrap_or_else(|| panic!("{text}\n{told}"))
}

struct Programs {
    programs: Vec<PathBuf>,
    server: PathBuf,
}

impl Programs {
    fn new(dir: &Path) -> Self {
        let sh = fs::canonicalize("/bin/sh").unwrap();
        let copy = |name: &str| {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::copy(&sh, &path).unwrap();
            path
        };
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            programs: ["a/one", "a/two", "b/one"].map(copy).to_vec(),
            server: copy("server"),
        }
    }

    /// Every program by root, by somebody, and below the server, if that may run.
    fn run(&self) {
        for program in &self.programs {
            for uid in [0, SOMEBODY] {
                let mut command = Command::new(program);
                command.arg0("sh").args(["-c", ":"]).uid(uid).gid(uid);
                let _ = command.current_dir("/").status().unwrap();
            }
            let script = format!("'{}' -c : 2>&-; :", program.display());
            let mut command = Command::new(&self.server);
            let _ = command.arg0("sh").arg("-c").arg(script).status().unwrap();
        }
    }
}

/// What the agent's side makes of the records.
struct Agent {
    tree: Tree,
    detector: Detector,
    compared: usize,
    killed: usize,
}

/// None of those who run already is one that a rule asks for: what the kernel is told of them.
fn strangers(bench: &mut bench::Bench, agent: &mut Agent) -> Vec<Seed> {
    let mut seeds = Vec::new();
    let tree = &mut agent.tree;
    bench
        .kernel()
        .bootstrap_tasks(|bytes| {
            let record = Record::parse(bytes).unwrap();
            if let Body::Task(task) = &record.body {
                let key = process::task(tree, &record, task, 0).key;
                seeds.push(Seed {
                    pid: key.pid,
                    start_ns: key.start_ns,
                    lineage: Lineage {
                        image: key.image,
                        ..Lineage::default()
                    },
                });
            }
        })
        .unwrap();
    agent.tree.join();
    seeds
}

impl Agent {
    fn new() -> Self {
        Self {
            tree: Tree::new(Limits { bytes: 8 << 20 }),
            detector: Detector::new(Host::default()),
            compared: 0,
            killed: 0,
        }
    }

    /// Whether a rule that kills has certainly matched.
    fn kills(&mut self, generation: u32, event: sumun_proto::v1::Event, actor: &Actor) -> bool {
        let node = self.tree.find(actor);
        let origin = Origin {
            boot_id: [0; 16],
            pin_generation: 0,
            cgroup_controller: String::new(),
            redactor: std::rc::Rc::default(),
        };
        let mut batch = BatchBuilder::new(Lane::Bulk, &origin, 0);
        let image = batch.image(&node, actor, None);
        let stream = StreamId {
            ring: 0,
            cpu: 0,
            level: 0,
        };
        batch.event(sumun_proto::v1::Event { image, ..event }, stream, 1);
        let hits = self.detector.judge(generation, batch.batch());
        hits.iter()
            .any(|hit| hit.kill.is_some() && hit.is_certain())
    }

    /// Compares an open, close or connect of a program below `dir`.
    fn later(&mut self, bytes: &[u8], late: &[Kind], dir: &str, rule: &str) {
        let record = Record::parse(bytes).unwrap();
        let (kind, event, actor, verdict) = match &record.body {
            Body::Fork(fork) => return drop(process::fork(&mut self.tree, fork)),
            Body::Exit(exit) => return drop(process::exit(&mut self.tree, exit)),
            Body::Exec(exec) => return drop(process::exec(&mut self.tree, &record, exec, 0)),
            Body::Open(open) => {
                let event = file::open(Kind::Open, &record, open);
                (Kind::Open, event, open.actor, open.verdict)
            }
            Body::CloseWrite(open) => {
                let event = file::open(Kind::CloseWrite, &record, open);
                (Kind::CloseWrite, event, open.actor, open.verdict)
            }
            Body::Connect(made) => {
                let event = network::connection(Kind::Connect, made);
                (Kind::Connect, event, made.actor, made.verdict)
            }
            _ => return,
        };
        let node = self.tree.find(&actor);
        let own = node
            .program()
            .is_some_and(|own| own.exe_path.starts_with(dir));
        if !own {
            return;
        }
        let certain = self.kills(record.header.generation, event.clone(), &actor);
        self.compared += 1;
        self.killed += usize::from(verdict.outcome == outcome::KILLED);
        let agrees = match verdict.outcome {
            // A connect that begins has no source port and no result yet; where they matter, it is judged again.
            outcome::KILLED => certain && !late.contains(&kind),
            outcome::NONE => !certain || late.contains(&kind),
            _ => false,
        };
        assert!(agrees, "{rule}\non {event:?}: {verdict:?}, {certain}");
    }

    fn exec(&mut self, bytes: &[u8], dir: &str, compiled: bool, rule: &str) {
        let record = Record::parse(bytes).unwrap();
        let exec = match &record.body {
            Body::Fork(fork) => return drop(process::fork(&mut self.tree, fork)),
            Body::Exit(exit) => return drop(process::exit(&mut self.tree, exit)),
            Body::Exec(exec) => exec,
            _ => return,
        };
        let (event, node, actor) = process::exec(&mut self.tree, &record, exec, 0);
        if !record.text(exec.exe).starts_with(dir.as_bytes()) {
            return;
        }
        let origin = Origin {
            boot_id: [0; 16],
            pin_generation: 0,
            cgroup_controller: String::new(),
            redactor: std::rc::Rc::default(),
        };
        let mut batch = BatchBuilder::new(Lane::Life, &origin, 0);
        let image = batch.image(&node, &actor, None);
        let stream = StreamId {
            ring: 0,
            cpu: 0,
            level: 0,
        };
        batch.event(sumun_proto::v1::Event { image, ..event }, stream, 1);
        let header = record.header;
        let hits = self.detector.judge(header.generation, batch.batch());
        let certain = hits.iter().any(sumun_engine::Hit::is_certain);
        self.compared += 1;
        self.killed += usize::from(certain && compiled);
        // Nothing about these processes is unknown, so nothing is in doubt.
        let expected = match (compiled, certain) {
            (true, true) => outcome::KILLED,
            _ => outcome::NONE,
        };
        assert_eq!(
            exec.outcome,
            expected,
            "{rule}\non {:?}, {hits:?}",
            batch.batch()
        );
    }
}

fn known(seeds: &[Seed]) -> Known {
    Known {
        processes: seeds.to_vec(),
        ..Known::default()
    }
}

#[test]
fn kernel_and_matcher_agree_on_random_rules() {
    let Some(mut bench) = bench::take("meaning") else {
        return;
    };
    let kernel = bench.kernel();
    kernel.hold_until(u64::MAX).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let dir_text = dir.path().to_str().unwrap().to_owned();
    let programs = Programs::new(dir.path());
    let mut agent = Agent::new();
    let seeds = strangers(&mut bench, &mut agent);
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (rounds, mut round, mut compiled) = (bench::times(150), 0, 0);
    // Few rules may happen to match nothing: then there are more of them.
    let exercised = |round, compiled, killed| compiled > round / 3 && killed > 2 * (rounds / 3);
    while round < rounds || !exercised(round, compiled, agent.killed) && round < 150 {
        round += 1;
        let generation = bench.generation(round as u32);
        let policies = [policy(&mut random, &dir_text)];
        let (plan, late) = VerdictPlan::build(&policies, &Doors::default(), 0);
        compiled += usize::from(late.is_empty());
        let swapped = bench
            .kernel()
            .set_rules(&sumun_policy::Plan::default(), &plan, generation, || {
                known(&seeds)
            })
            .unwrap();
        assert_eq!(swapped, Swapped::default());
        agent
            .detector
            .load(generation, Arc::new(Engine::new(&policies)));
        agent.detector.retire(generation);
        programs.run();
        let rule = policies[0].rules[0].predicate.to_string();
        for record in bench.settle() {
            agent.exec(&record.bytes, &dir_text, late.is_empty(), &rule);
        }
    }
    println!(
        "{} execs compared on {round} rules, {compiled} of them the kernel's; {} killed",
        agent.compared, agent.killed
    );
    assert!(exercised(round, compiled, agent.killed), "not exercised");
}

/// What the programs do in each round: each act by a process of its own, so that one that dies does not keep the others from theirs.
fn acts(dir: &str, ports: [u16; 2]) -> Vec<String> {
    let mut acts = vec![
        format!("read {dir}/f/x"),
        format!("write {dir}/f/d/x"),
        format!("rewrite {dir}/f/y"),
        format!("append {dir}/f/d/\\xff"),
        format!("create {dir}/f/new"),
    ];
    acts.extend(ports.map(|port| format!("begin 127.0.0.1:{port}")));
    acts.push(format!("connect 127.0.0.1:{}", ports[0]));
    acts
}

#[test]
fn kernel_and_matcher_agree_on_random_rules_about_opens_and_connects() {
    let Some(mut bench) = bench::take("meaning-later") else {
        return;
    };
    bench.kernel().hold_until(u64::MAX).unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let dir_text = dir.path().to_str().unwrap().to_owned();
    let programs = ["a/one", "b/two"].map(|name| actor::program(dir.path().join(name)));
    fs::create_dir_all(dir.path().join("f/d")).unwrap();
    for file in [&b"f/x"[..], b"f/y", b"f/d/x", b"f/d/\xff"] {
        let path = dir.path().join(OsStr::from_bytes(file));
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    }
    // One is listened on, the other refuses.
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let shut = TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = [&open, &shut].map(|one| one.local_addr().unwrap().port());
    drop(shut);
    let acts = acts(&dir_text, ports);
    let mut agent = Agent::new();
    let seeds = strangers(&mut bench, &mut agent);
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (rounds, mut round, mut compiled) = (bench::times(60), 0, 0);
    let exercised = |round, compiled, killed| compiled > round && killed > rounds * 5 / 6;
    while round < rounds || !exercised(round, compiled, agent.killed) && round < 60 {
        round += 1;
        let generation = bench.generation(round as u32);
        let policies = [policy_on_later(&mut random, &dir_text, ports)];
        let (plan, late) = VerdictPlan::build(&policies, &Doors::default(), 0);
        let late: Vec<Kind> = late.iter().map(|late| late.kind).collect();
        compiled += 3 - late.len();
        let (filter, _) = Plan::build(&policies);
        let swapped = bench
            .kernel()
            .set_rules(&filter, &plan, generation, || known(&seeds))
            .unwrap();
        assert_eq!(swapped, Swapped::default());
        agent
            .detector
            .load(generation, Arc::new(Engine::new(&policies)));
        agent.detector.retire(generation);
        let children: Vec<_> = acts
            .iter()
            .enumerate()
            .map(|(number, act)| {
                let uid = [0, SOMEBODY][number % 2];
                let mut child = actor::command(&programs[number % 2], std::slice::from_ref(act));
                child.uid(uid).gid(uid).stdin(Stdio::null());
                child.stdout(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for child in children {
            actor::is_through(&child.wait_with_output().unwrap());
        }
        let rule = policies[0].rules[2].predicate.to_string();
        for record in bench.settle() {
            agent.later(&record.bytes, &late, &dir_text, &rule);
        }
    }
    println!(
        "{} events compared on {round} rules, {compiled} of {} by kind the kernel's; {} killed",
        agent.compared,
        3 * round,
        agent.killed
    );
    assert!(exercised(round, compiled, agent.killed), "not exercised");
}
