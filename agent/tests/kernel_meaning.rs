//! One meaning: random rules that kill are judged by the kernel and by the agent's matcher on the same real execs.
#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

mod kernel;

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use rand::{Rng, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use sumun_abi::{event::process::outcome, verdict::Lineage};
use sumun_agent::{
    detect::Detector,
    enrich::process::{Limits, Tree},
    kernel::{Seed, StreamId, Swapped},
    pipeline::batch::{BatchBuilder, Origin},
    receive::{
        process,
        record::{Body, Record},
    },
};
use sumun_engine::Engine;
use sumun_policy::{CheckedPolicy, check_file, verdict::VerdictPlan};
use sumun_proto::{Host, v1::Lane};

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
    match random.random_range(0..11) {
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

impl Agent {
    fn exec(&mut self, bytes: &[u8], dir: &str, compiled: bool, rule: &str) {
        let record = Record::parse(bytes).unwrap();
        let exec = match &record.body {
            Body::Fork(fork) => return drop(process::fork(&mut self.tree, fork)),
            Body::Exit(exit) => return drop(process::exit(&mut self.tree, exit)),
            Body::Exec(exec) => exec,
            _ => return,
        };
        let (event, node, actor) = process::exec(&mut self.tree, &record, exec);
        if !record.text(exec.exe).starts_with(dir.as_bytes()) {
            return;
        }
        let origin = Origin {
            boot_id: [0; 16],
            pin_generation: 0,
            cgroup_controller: String::new(),
        };
        let mut batch = BatchBuilder::new(Lane::Life, &origin, 0);
        let image = batch.image(&node, &actor);
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

#[test]
fn kernel_and_matcher_agree_on_random_rules() {
    let Some(mut bench) = kernel::bench("meaning") else {
        return;
    };
    let kernel = bench.kernel();
    kernel.hold_until(u64::MAX).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let dir_text = dir.path().to_str().unwrap().to_owned();
    let programs = Programs::new(dir.path());
    let mut agent = Agent {
        tree: Tree::new(Limits { bytes: 8 << 20 }),
        detector: Detector::new(Host::default()),
        compared: 0,
        killed: 0,
    };
    // None of those who run already is one that a rule asks for.
    let mut seeds = Vec::new();
    let tree = &mut agent.tree;
    kernel
        .bootstrap_tasks(|bytes| {
            let record = Record::parse(bytes).unwrap();
            if let Body::Task(task) = &record.body {
                let key = process::task(tree, &record, task).key;
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
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (rounds, mut compiled) = (150, 0);
    for generation in 1..=rounds {
        let policies = [policy(&mut random, &dir_text)];
        let (plan, late) = VerdictPlan::build(&policies, 0);
        compiled += usize::from(late.is_empty());
        let swapped = bench
            .kernel()
            .set_rules(&sumun_policy::Plan::default(), &plan, generation, || {
                seeds.clone()
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
        "{} execs compared on {rounds} rules, {compiled} of them the kernel's; {} killed",
        agent.compared, agent.killed
    );
    assert!(compiled > 50 && agent.killed > 100, "not exercised");
}
