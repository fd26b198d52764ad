//! Rules that kill, on the running kernel: what is killed never runs, what is not named goes on.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{
        fs::PermissionsExt as _,
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use sumun_abi::{
    event::process::{Exec, outcome},
    verdict::{Guard, Lineage},
};
use sumun_agent::{
    kernel::{Known, Seed, Swapped, Trial},
    receive::record::{Body, Record},
};
use sumun_policy::{
    plan::Plan,
    verdict::{Atom, Id, Texts, VerdictClause, VerdictPlan, kind_bit},
};
use sumun_proto::v1::Kind;

use crate::bench::{self, Bench, Seen};

fn bench(name: &str) -> Option<Bench> {
    let mut bench = bench::take(name)?;
    bench.kernel().hold_until(u64::MAX).unwrap();
    Some(bench)
}

fn load(bench: &mut Bench, plan: &VerdictPlan, generation: u32, seeds: Vec<Seed>) {
    let generation = bench.generation(generation);
    let swapped = bench
        .kernel()
        .set_rules(&Plan::default(), plan, generation, || Known {
            processes: seeds,
            ..Known::default()
        })
        .unwrap();
    assert_eq!(swapped, sumun_agent::kernel::Swapped::default());
}

fn bytes(path: &Path) -> Vec<u8> {
    path.to_str().unwrap().into()
}

fn path_is(path: &Path) -> Texts {
    Texts {
        paths: vec![bytes(path)],
        ..Texts::default()
    }
}

fn name_is(name: &str) -> Texts {
    Texts {
        names: vec![name.into()],
        ..Texts::default()
    }
}

/// One clause that needs some atoms and forbids others, for rule 7.
fn plan(need: Vec<Atom>, forbid: Vec<Atom>) -> VerdictPlan {
    let (needed, all) = (need.len(), need.len() + forbid.len());
    let bits = |count: usize| (1_u64 << count) - 1;
    VerdictPlan {
        atoms: need.into_iter().chain(forbid).collect(),
        clauses: vec![VerdictClause {
            rule: 7,
            kinds: kind_bit(Kind::Exec),
            need: bits(needed),
            forbid: bits(all) & !bits(needed),
        }],
    }
}

/// A copy of a shell under another name.
fn shell(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    fs::copy(fs::canonicalize("/bin/sh").unwrap(), &path).unwrap();
    path
}

/// Lets a shell touch a file and say something.
fn touch(shell: &Path, file: &Path) -> Output {
    run(shell, &format!("echo here; : > {}", file.display()))
        .output()
        .unwrap()
}

/// A script for a shell, which is called `sh` whatever its file is: busybox asks for that.
fn run(shell: &Path, script: &str) -> Command {
    let mut command = Command::new(shell);
    command.arg0("sh").arg("-c").arg(script);
    command
}

/// Started under its own name, a copy of busybox does nothing: then only records can be compared.
fn does_nothing_as_a_copy() -> bool {
    fs::canonicalize("/bin/sh").unwrap().ends_with("busybox")
}

/// It was killed, and neither printed nor wrote anything.
fn was_killed(output: &Output, file: &Path) -> bool {
    let killed = output.status.signal() == Some(9);
    assert!(!killed || output.stdout.is_empty() && !file.exists());
    killed
}

fn execs(seen: &[Seen], path: &Path) -> Vec<Exec> {
    let of = |record: &Seen| match record.body {
        Body::Exec(exec) if record.text(exec.exe) == path.to_str().unwrap() => Some(exec),
        _ => None,
    };
    seen.iter().filter_map(of).collect()
}

#[test]
fn killed_before_the_first_instruction_every_time() {
    let Some(mut bench) = bench("kill") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (evil, good) = (shell(dir.path(), "evil"), shell(dir.path(), "good"));
    let file = dir.path().join("file");
    load(
        &mut bench,
        &plan(vec![Atom::Exe(path_is(&evil))], vec![]),
        3,
        vec![],
    );
    let mut seen = Vec::new();
    let turns = bench::times(1000);
    for turn in 0..turns {
        assert!(was_killed(&touch(&evil, &file), &file), "turn {turn}");
        if turn % 100 == 0 {
            seen.extend(bench.drain());
        }
    }
    assert!(!was_killed(&touch(&good, &file), &file) && file.exists());
    fs::remove_file(&file).unwrap();
    seen.extend(bench.settle());
    let killed = execs(&seen, &evil);
    assert_eq!(killed.len(), turns);
    for exec in killed {
        assert_eq!(
            (exec.outcome, exec.rule, exec.error),
            (outcome::KILLED, 7, 0)
        );
        assert_eq!(exec.header.generation, bench.generation(3));
    }
    assert_eq!(execs(&seen, &good)[0].outcome, outcome::NONE);

    // Nothing is asked any more.
    load(&mut bench, &VerdictPlan::default(), 4, vec![]);
    assert!(!was_killed(&touch(&evil, &file), &file));
}

#[test]
fn verdicts_hold_without_an_agent_until_they_expire() {
    let Some(mut bench) = bench("hold") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let evil = shell(dir.path(), "evil");
    let file = dir.path().join("file");
    load(
        &mut bench,
        &plan(vec![Atom::Exe(name_is("evil"))], vec![]),
        1,
        vec![],
    );
    // As if it had been killed: pins and programs stay.
    bench.quit();
    for _ in 0..50 {
        assert!(was_killed(&touch(&evil, &file), &file));
    }
    let mut kernel = sumun_agent::kernel::Kernel::load(&bench.config).unwrap();
    kernel.hold_until(1).unwrap();
    bench.kernel = Some(kernel);
    assert!(!was_killed(&touch(&evil, &file), &file));
    fs::remove_file(&file).unwrap();
    bench.kernel().hold_until(u64::MAX).unwrap();
    assert!(was_killed(&touch(&evil, &file), &file));
    let seen: Vec<Exec> = execs(&bench.drain(), &evil);
    let outcomes: Vec<_> = seen.iter().map(|exec| exec.outcome).collect();
    assert_eq!(outcomes.len(), 52);
    assert_eq!(outcomes[50..], [outcome::EXPIRED, outcome::KILLED]);
}

#[test]
fn paths_names_and_ids_and_their_negations() {
    let Some(mut bench) = bench("atoms") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("below");
    fs::create_dir(&below).unwrap();
    let (one, two) = (shell(&below, "one"), shell(&below, "two"));
    let other = shell(dir.path(), "one");
    let file = dir.path().join("file");
    let prefix = Texts {
        prefixes: vec![bytes(&below)],
        ..Texts::default()
    };
    let root = Atom::Number {
        id: Id::Euid,
        range: (0, 0),
    };
    let somebody = Atom::Number {
        id: Id::Uid,
        range: (1, u32::MAX),
    };
    let cases: [(VerdictPlan, [bool; 3]); 5] = [
        (
            plan(vec![Atom::Exe(prefix.clone())], vec![]),
            [true, true, false],
        ),
        (
            plan(vec![Atom::Exe(name_is("one"))], vec![]),
            [true, false, true],
        ),
        (
            plan(
                vec![Atom::Exe(prefix.clone()), root.clone()],
                vec![Atom::Exe(name_is("two")), somebody.clone()],
            ),
            [true, false, false],
        ),
        (
            plan(vec![Atom::Exe(prefix.clone()), somebody], vec![]),
            [false; 3],
        ),
        (plan(vec![Atom::Exe(prefix)], vec![root]), [false; 3]),
    ];
    for (generation, (plan, expected)) in cases.into_iter().enumerate() {
        load(&mut bench, &plan, generation as u32 + 1, vec![]);
        let killed = [&one, &two, &other].map(|shell| {
            let killed = was_killed(&touch(shell, &file), &file);
            let _ = fs::remove_file(&file);
            killed
        });
        assert_eq!(killed, expected, "{plan:?}");
    }
}

/// Words for each process that runs now, which say that it has no such ancestor and is none.
fn nobody(bench: &mut Bench) -> Vec<Seed> {
    let mut seeds = Vec::new();
    let told = |bytes: &[u8]| {
        if let Ok(record) = Record::parse(bytes)
            && let Body::Task(task) = record.body
        {
            seeds.push(Seed {
                pid: task.actor.pid,
                start_ns: task.actor.start_ns,
                lineage: Lineage {
                    image: task.actor.image,
                    ..Lineage::default()
                },
            });
        }
    };
    bench.kernel().bootstrap_tasks(told).unwrap();
    assert!(seeds.len() > 1);
    seeds
}

#[test]
fn ancestors_are_inherited_and_unknown_until_they_are_told() {
    let Some(mut bench) = bench("lineage") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (server, tool) = (shell(dir.path(), "server"), shell(dir.path(), "tool"));
    let file = dir.path().join("file");
    let asked = plan(
        vec![
            Atom::Exe(name_is("tool")),
            Atom::Ancestor(name_is("server")),
        ],
        vec![],
    );
    // A shell between, and one that execs: both keep the ancestors.
    let script = format!(
        "sh -c 'exec sh -c \"{} -c \\\": > {}\\\"; true\"'",
        tool.display(),
        file.display()
    );
    let through = |outer: &Path| {
        run(outer, &script).output().unwrap();
        let ran = file.exists() || does_nothing_as_a_copy();
        let _ = fs::remove_file(&file);
        ran
    };
    let plain = fs::canonicalize("/bin/sh").unwrap();

    // This process is older than the plan, so nothing is known of its children's ancestors …
    load(&mut bench, &asked, 1, vec![]);
    // … but below the server it is known all the same.
    through(&server);
    assert!(through(&plain));
    let seen = bench.settle();
    let judged: Vec<_> = execs(&seen, &tool)
        .iter()
        .map(|exec| (exec.outcome, exec.lineage_unknown))
        .collect();
    assert_eq!(judged, [(outcome::KILLED, 0), (outcome::UNDECIDED, 1)]);

    // … until it is told.
    let seeds = nobody(&mut bench);
    load(&mut bench, &asked, 2, seeds);
    for _ in 0..20 {
        assert!(!through(&server) || does_nothing_as_a_copy());
        assert!(through(&plain));
    }
    let seen = bench.settle();
    let outcomes: Vec<_> = execs(&seen, &tool)
        .iter()
        .map(|exec| exec.outcome)
        .collect();
    assert_eq!(outcomes.len(), 40);
    for pair in outcomes.chunks(2) {
        assert_eq!(pair, [outcome::KILLED, outcome::NONE]);
    }
    // The process itself is not its own ancestor.
    let seeds = nobody(&mut bench);
    let asked = plan(vec![Atom::Ancestor(name_is("tool"))], vec![]);
    load(&mut bench, &asked, 3, seeds);
    assert!(!was_killed(&touch(&tool, &file), &file));
}

/// The kernel gives out the same process ids again and again while it lives.
struct Reuse {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reuse {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let last = "/proc/sys/kernel/ns_last_pid";
            let base = fs::read_to_string(last).unwrap();
            while !seen.load(Ordering::Relaxed) {
                fs::write(last, &base).unwrap();
                std::thread::sleep(Duration::from_millis(40));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Reuse {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Seventeen thousand forks, execs and exits, with reused process ids: each knows its ancestors.
#[test]
fn ancestors_stay_right_over_many_forks() {
    let Some(mut bench) = bench("forks") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (server, tool) = (shell(dir.path(), "server"), shell(dir.path(), "tool"));
    let asked = plan(
        vec![
            Atom::Exe(name_is("tool")),
            Atom::Ancestor(name_is("server")),
        ],
        vec![],
    );
    let seeds = nobody(&mut bench);
    load(&mut bench, &asked, 1, seeds);
    let out = dir.path().join("out");
    // So many that the map would be full if it kept those that have ended.
    let rounds = bench::times(8500);
    let script = format!(
        "i=0; while [ $i -lt {rounds} ]; do i=$((i+1)); ( {} -c 'echo x >> {}' ) ; done 2>/dev/null",
        tool.display(),
        out.display()
    );
    let reuse = Reuse::start();
    let begun = Instant::now();
    let mut below = run(&server, &script).spawn().unwrap();
    let mut beside = run(Path::new("/bin/sh"), &script).spawn().unwrap();
    let mut outcomes: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    let mut pids: BTreeMap<u32, usize> = BTreeMap::new();
    let mut note = |records: Vec<Seen>| {
        for exec in execs(&records, &tool) {
            *outcomes.entry((exec.outcome, exec.parent_pid)).or_default() += 1;
            *pids.entry(exec.actor.pid).or_default() += 1;
        }
    };
    let (server_pid, plain_pid) = (below.id(), beside.id());
    while below.try_wait().unwrap().is_none() || beside.try_wait().unwrap().is_none() {
        note(bench.drain());
        assert!(begun.elapsed() < Duration::from_secs(180));
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(reuse);
    note(bench.settle());
    println!("{outcomes:?}; {} process ids", pids.len());
    assert!(pids.len() < rounds, "process ids were not reused");
    // Where a fork was left out, as it was preempted by others twice, nobody knows the ancestors: the agent judges.
    let left_out = bench.left_out("sched_process_fork");
    let undecided: usize = [plain_pid, server_pid]
        .iter()
        .filter_map(|pid| outcomes.remove(&(outcome::UNDECIDED, *pid)))
        .sum();
    println!("{undecided} undecided; of forks at most {left_out} were left out");
    assert!(undecided as u64 <= left_out);
    let told = |outcome, pid| outcomes.get(&(outcome, pid)).copied().unwrap_or(0);
    let (spared, killed) = (
        told(outcome::NONE, plain_pid),
        told(outcome::KILLED, server_pid),
    );
    assert_eq!(spared + killed + undecided, 2 * rounds, "{outcomes:?}");
    assert_eq!(outcomes.len(), 2, "{outcomes:?}");
    if !does_nothing_as_a_copy() {
        let lines = fs::read_to_string(&out).unwrap().lines().count();
        assert!((spared..=spared + undecided).contains(&lines), "{lines}");
    }
}

/// Plans are swapped as fast as it goes: each exec is judged by one of them as a whole.
#[test]
fn no_exec_is_judged_by_half_a_plan() {
    let Some(mut bench) = bench("swap") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let names = ["both", "odd", "even", "none"];
    let shells = names.map(|name| shell(dir.path(), name));
    // One in two plans is for rule 1, the other for rule 2; each names one program alone, and one with the other.
    let of = |number: u32| {
        let alone = if number == 1 { "odd" } else { "even" };
        VerdictPlan {
            atoms: vec![Atom::Exe(name_is("both")), Atom::Exe(name_is(alone))],
            clauses: [1, 2]
                .map(|need| VerdictClause {
                    rule: number as usize,
                    kinds: kind_bit(Kind::Exec),
                    need,
                    forbid: 0,
                })
                .to_vec(),
        }
    };
    load(&mut bench, &of(1), 1, vec![]);
    let stop = AtomicBool::new(false);
    let (mut swaps, mut seen) = (1, Vec::new());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let runs: Vec<_> = shells
            .iter()
            .map(|shell| {
                scope.spawn(|| {
                    let mut killed = (0, 0);
                    while !stop.load(Ordering::Relaxed) {
                        let output = run(shell, ":").output().unwrap();
                        killed.0 += usize::from(output.status.signal() == Some(9));
                        killed.1 += 1;
                    }
                    killed
                })
            })
            .collect();
        while begun.elapsed() < Duration::from_secs(5) {
            swaps += 1;
            load(
                &mut bench,
                &of(if swaps % 2 == 1 { 1 } else { 2 }),
                swaps,
                vec![],
            );
            if swaps % 16 == 0 {
                seen.extend(bench.drain());
            }
        }
        stop.store(true, Ordering::Relaxed);
        let killed: Vec<_> = runs.into_iter().map(|run| run.join().unwrap()).collect();
        println!("{swaps} swaps; killed, of: {killed:?}");
        // Some kernels leave a program out when it is preempted by another exec: not judged, but counted.
        let left_out = bench.left_out("sched_process_exec");
        assert_eq!(killed[3].0, 0);
        assert!(
            killed[0].1 - killed[0].0 <= left_out as usize,
            "{left_out} left out"
        );
        for one in &killed[1..3] {
            assert!(one.0 > 0 && one.0 < one.1);
        }
        for (shell, (_, runs)) in shells.iter().zip(&killed) {
            seen.extend(bench.settle());
            let execs = execs(&seen, shell);
            let missing = runs.abs_diff(execs.len());
            assert!(missing <= left_out as usize, "each is recorded once");
            for exec in execs {
                let odd = exec.header.generation % 2 == bench.generation(1) % 2;
                let expected = match shell.file_name().unwrap().to_str().unwrap() {
                    "both" => true,
                    "odd" => odd,
                    "even" => !odd,
                    _ => false,
                };
                let rule = if odd { 1 } else { 2 };
                let judged = (exec.outcome, exec.rule);
                let right = if expected {
                    (outcome::KILLED, rule)
                } else {
                    (outcome::NONE, 0)
                };
                assert_eq!(judged, right, "{exec:?}");
            }
        }
    });
}

/// What an agent does at its start: a child is killed at its start, another at its open, and a third not at all.
#[test]
fn both_ways_to_kill_are_tried_and_seen_to_fail() {
    let Some(mut bench) = bench("trial") else {
        return;
    };
    let (mut filter, mut verdicts) = (Plan::default(), VerdictPlan::default());
    let trial = Trial::behind(&mut filter, &mut verdicts, 5);
    for (number, works) in [(1, true), (2, false)] {
        let generation = bench.generation(number);
        let known = Known::default;
        let kernel = bench.kernel();
        let swapped = kernel.set_rules(&filter, &verdicts, generation, known);
        assert_eq!(swapped.unwrap(), Swapped::default());
        // Without an agent the rules are over.
        kernel.hold_until(if works { u64::MAX } else { 1 }).unwrap();
        let children = kernel.try_kills(&trial);
        // Without a rule, and each way until it works.
        assert_eq!(children.len(), if works { 3 } else { 11 });
        let kills = kernel.kills().to_vec();
        println!("{kills:?}");
        let modes: Vec<_> = kills.iter().map(|kill| kill.mode).collect();
        assert_eq!(modes, ["kill-before-start", "kill-after"]);
        for kill in kills {
            assert_eq!(kill.available, works, "{kill:?}");
            assert_eq!(kill.reason.is_none(), works, "{kill:?}");
        }
        drop(bench.settle());
    }
}

#[test]
fn the_agent_is_never_killed() {
    let Some(mut bench) = bench("guard") else {
        return;
    };
    let own = std::env::current_exe().unwrap();
    let mut guard = Guard::default();
    let told = |bytes: &[u8]| {
        if let Ok(record) = Record::parse(bytes)
            && let Body::Task(task) = record.body
            && task.actor.pid == std::process::id()
        {
            (guard.exe_ino, guard.exe_dev) = (task.exe_ino, task.exe_dev);
        }
    };
    bench.kernel().bootstrap_tasks(told).unwrap();
    bench.kernel().guard(guard).unwrap();
    load(
        &mut bench,
        &plan(vec![Atom::Exe(path_is(&own))], vec![]),
        1,
        vec![],
    );
    let output = Command::new(&own).arg("--list").output().unwrap();
    assert!(output.status.success());
    let seen = bench.settle();
    let guarded = execs(&seen, &own);
    assert_eq!(guarded.len(), 1);
    assert_eq!((guarded[0].outcome, guarded[0].rule), (outcome::GUARDED, 7));
}

/// By their names, if the file is one that only root can have put there.
#[test]
fn sshd_and_another_agent_are_never_killed_but_who_takes_their_names_is() {
    let Some(mut bench) = bench("names") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let below = Texts {
        prefixes: vec![bytes(dir.path())],
        ..Texts::default()
    };
    load(&mut bench, &plan(vec![Atom::Exe(below)], vec![]), 1, vec![]);
    let file = dir.path().join("file");
    for (name, guarded) in [("sshd", true), ("sumun-agent", true), ("sshe", false)] {
        let program = shell(dir.path(), name);
        assert_eq!(
            !was_killed(&touch(&program, &file), &file),
            guarded,
            "{name}"
        );
        // Anybody may write it, or it is somebody's.
        fs::set_permissions(&program, fs::Permissions::from_mode(0o757)).unwrap();
        let _ = fs::remove_file(&file);
        assert!(was_killed(&touch(&program, &file), &file), "{name} for all");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(&program, Some(4711), None).unwrap();
        let _ = fs::remove_file(&file);
        assert!(
            was_killed(&touch(&program, &file), &file),
            "{name} of somebody"
        );
    }
}
