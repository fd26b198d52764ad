//! Rules that kill at opens, closes, connects and accepts, on the running kernel: nobody reads while the process dies.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use sumun_abi::{
    event::{
        file::{ACCESS_WRITE, FILE_DELETED, OPEN_CREATED, OPEN_TRUNCATE},
        process::outcome,
    },
    verdict::{Lineage, Verdict},
};
use sumun_agent::{
    kernel::{Known, Seed, Swapped},
    receive::record::{Body, Record},
};
use sumun_policy::{
    plan::{Clause, KindPlan, Plan},
    verdict::{
        AFTER, Atom, End, FORCED, Id, RESULT_ZERO, Texts, VerdictClause, VerdictPlan, kind_bit,
    },
};
use sumun_proto::v1::Kind;

use crate::actor::{command, is_begun, is_through, program};
use crate::bench::{self, Bench, Seen};

const LOCAL: &str = "127.0.0.1";
const RULE: u32 = 7;

struct Case {
    bench: Bench,
    dir: tempfile::TempDir,
    generation: u32,
    program: PathBuf,
    /// `FORCED`, if the rules mean services of the host, too.
    forced: u32,
}

impl Case {
    fn new(name: &str) -> Option<Self> {
        let mut bench = bench::take(name)?;
        bench.kernel().hold_until(u64::MAX).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("files")).unwrap();
        Some(Self {
            program: program(dir.path().join("actor")),
            generation: bench.generation(0),
            bench,
            dir,
            forced: 0,
        })
    }

    fn file(&self, name: &str) -> String {
        let path = self.dir.path().join("files").join(name);
        if name != "new" {
            fs::write(&path, "x").unwrap();
        }
        path.to_str().unwrap().to_owned()
    }

    /// One clause that needs some atoms and forbids others, on a kind. Everything in the folder and all
    /// connections are recorded.
    fn load(&mut self, kind: Kind, need: Vec<Atom>, forbid: Vec<Atom>, seeds: Vec<Seed>) {
        let (needed, all) = (need.len(), need.len() + forbid.len());
        let bits = |count: usize| (1_u64 << count) - 1;
        let plan = VerdictPlan {
            atoms: need.into_iter().chain(forbid).collect(),
            clauses: vec![VerdictClause {
                rule: RULE as usize,
                kinds: kind_bit(kind) | self.forced,
                need: bits(needed),
                forbid: bits(all) & !bits(needed),
            }],
        };
        let below = Clause {
            path_prefixes: Some(vec![bytes(&self.dir.path().join("files"))]),
            ..Clause::default()
        };
        let kinds = AFTER.map(|kind| match kind {
            Kind::Open | Kind::CloseWrite | Kind::MapExec => {
                (kind, KindPlan::Clauses(vec![below.clone()]))
            }
            _ => (kind, KindPlan::All),
        });
        let filter = Plan {
            kinds: kinds.to_vec(),
            ..Plan::default()
        };
        self.generation += 1;
        let swapped = self
            .bench
            .kernel()
            .set_rules(&filter, &plan, self.generation, || Known {
                processes: seeds,
                ..Known::default()
            })
            .unwrap();
        assert_eq!(swapped, Swapped::default());
    }

    /// That it is a program of this test: rules that name no file or port would kill others of the host.
    fn own(&self) -> Atom {
        Atom::Exe(Texts {
            prefixes: vec![bytes(self.dir.path())],
            ..Texts::default()
        })
    }

    /// Runs the acts; what came of them, and the verdicts in the records of a kind.
    fn run(&mut self, kind: Kind, acts: &[String]) -> (Output, Vec<Verdict>) {
        let child = command(&self.program, acts)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        let seen = self.bench.settle();
        let mine: Vec<Seen> = seen
            .into_iter()
            .filter(|record| record.actor().pid == pid)
            .collect();
        let generation = self.generation;
        let all = mine.iter().filter_map(|record| {
            let (of, verdict, header) = match record.body {
                Body::Open(open) => (Kind::Open, open.verdict, open.header),
                Body::CloseWrite(open) => (Kind::CloseWrite, open.verdict, open.header),
                Body::Mapped(open) => (Kind::MapExec, open.verdict, open.header),
                Body::Connect(made) => (Kind::Connect, made.verdict, made.header),
                Body::Accept(made) => (Kind::Accept, made.verdict, made.header),
                _ => return None,
            };
            assert_eq!(header.generation, generation);
            (of == kind).then_some(verdict)
        });
        let verdicts = all.collect();
        (output, verdicts)
    }

    /// Runs one act and says whether the process was killed for it, by the one record of it.
    #[track_caller]
    fn kills(&mut self, kind: Kind, act: String) -> bool {
        let (output, verdicts) = self.run(kind, std::slice::from_ref(&act));
        assert!(is_begun(&output));
        let killed = !is_through(&output);
        let [verdict] = verdicts[..] else {
            panic!("{act}: one record, not {verdicts:?}");
        };
        let expected = match killed {
            true => (outcome::KILLED, RULE, 0),
            false => (outcome::NONE, 0, 0),
        };
        let found = (verdict.outcome, verdict.rule, verdict.error);
        assert_eq!(found, expected, "{act}");
        killed
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    path.to_str().unwrap().into()
}

fn path_is(path: &str) -> Texts {
    Texts {
        paths: vec![path.into()],
        ..Texts::default()
    }
}

fn name_is(name: &str) -> Texts {
    Texts {
        names: vec![name.into()],
        ..Texts::default()
    }
}

fn number(id: Id, first: u32, last: u32) -> Atom {
    Atom::Number {
        id,
        range: (first, last),
    }
}

#[test]
fn an_open_kills_at_once_every_time_by_path_name_and_access() {
    let Some(mut case) = Case::new("kill-open") else {
        return;
    };
    let (secret, other) = (case.file("secret"), case.file("other"));
    let below = Texts {
        prefixes: vec![format!("{}/files/sec", case.dir.path().display()).into()],
        ..Texts::default()
    };
    for asked in [path_is(&secret), name_is("secret"), below] {
        let write = Atom::Flag(ACCESS_WRITE);
        case.load(Kind::Open, vec![Atom::File(asked), write], vec![], vec![]);
        let acts = [
            "read",
            "write",
            "append",
            "rewrite",
            "thread write",
            "create",
        ];
        let killed = acts.map(|act| case.kills(Kind::Open, format!("{act} {secret}")));
        assert_eq!(killed, [false, true, true, true, true, true]);
        assert!(!case.kills(Kind::Open, format!("write {other}")));
    }
    // Nothing is left out in a hundred.
    let opens = (0..bench::times(100)).map(|_| case.kills(Kind::Open, format!("write {secret}")));
    assert!(opens.collect::<Vec<_>>().iter().all(|killed| *killed));

    // Created, truncated, and the negations.
    let flags = |case: &mut Case, mut need: Vec<Atom>, forbid: Vec<Atom>| {
        need.push(case.own());
        case.load(Kind::Open, need, forbid, vec![]);
    };
    flags(&mut case, vec![Atom::Flag(OPEN_CREATED)], vec![]);
    let new = case.file("new");
    assert!(case.kills(Kind::Open, format!("create {new}")));
    assert!(!case.kills(Kind::Open, format!("create {new}")));
    flags(&mut case, vec![], vec![Atom::Flag(OPEN_TRUNCATE)]);
    assert!(case.kills(Kind::Open, format!("read {other}")));
    assert!(!case.kills(Kind::Open, format!("rewrite {other}")));
    flags(&mut case, vec![], vec![Atom::File(name_is("secret"))]);
    assert!(case.kills(Kind::Open, format!("read {other}")));
    assert!(!case.kills(Kind::Open, format!("read {secret}")));

    // A close after write is a kind of its own.
    let asked = Atom::File(name_is("secret"));
    case.load(Kind::CloseWrite, vec![asked], vec![], vec![]);
    assert!(!case.kills(Kind::Open, format!("read {secret}")));
    assert!(!case.kills(Kind::CloseWrite, format!("write {other}")));
    assert!(case.kills(Kind::CloseWrite, format!("write {secret}")));
}

#[test]
fn an_open_kills_by_the_capabilities_that_the_thread_has_by_then() {
    let Some(mut case) = Case::new("kill-capability") else {
        return;
    };
    let secret = case.file("secret");
    let file = || Atom::File(name_is("secret"));
    // CAP_SYS_CHROOT, and CAP_PERFMON of the upper half.
    for capability in [18, 38] {
        let has = || number(Id::Capability(capability), 1, 1);
        let without = [format!("drop {capability}"), format!("read {secret}")];
        case.load(Kind::Open, vec![file(), has()], vec![], vec![]);
        assert!(case.kills(Kind::Open, format!("read {secret}")));
        let (output, verdicts) = case.run(Kind::Open, &without);
        assert!(is_through(&output));
        let [verdict] = verdicts[..] else {
            panic!("one record, not {verdicts:?}");
        };
        assert_eq!(verdict.outcome, outcome::NONE);
        // And the other way round.
        case.load(Kind::Open, vec![file()], vec![has()], vec![]);
        assert!(!case.kills(Kind::Open, format!("read {secret}")));
        let (output, verdicts) = case.run(Kind::Open, &without);
        assert!(!is_through(&output));
        assert_eq!(verdicts[0].outcome, outcome::KILLED);
    }
}

#[test]
fn a_file_that_is_mapped_to_be_executed_kills_before_the_call_returns() {
    let Some(mut case) = Case::new("kill-mapped") else {
        return;
    };
    let (asked, other) = (case.file("library"), case.file("other"));
    case.load(
        Kind::MapExec,
        vec![Atom::File(path_is(&asked))],
        vec![Atom::Flag(FILE_DELETED)],
        vec![],
    );
    for act in ["load", "thread load"] {
        assert!(case.kills(Kind::MapExec, format!("{act} {asked}")), "{act}");
        assert!(
            !case.kills(Kind::MapExec, format!("{act} {other}")),
            "{act}"
        );
    }
    case.load(
        Kind::MapExec,
        vec![Atom::File(name_is("library")), Atom::Flag(FILE_DELETED)],
        vec![],
        vec![],
    );
    assert!(!case.kills(Kind::MapExec, format!("load {asked}")));
}

#[test]
fn verdicts_on_opens_expire_and_spare_the_guarded() {
    let Some(mut case) = Case::new("kill-hold") else {
        return;
    };
    let secret = case.file("secret");
    let asked = || vec![Atom::File(name_is("secret"))];
    case.load(Kind::Open, asked(), vec![], vec![]);
    case.bench.kernel().hold_until(1).unwrap();
    let (output, verdicts) = case.run(Kind::Open, &[format!("read {secret}")]);
    assert!(is_through(&output));
    assert_eq!(
        (verdicts[0].outcome, verdicts[0].rule),
        (outcome::EXPIRED, RULE)
    );
    case.bench.kernel().hold_until(u64::MAX).unwrap();
    assert!(case.kills(Kind::Open, format!("read {secret}")));
    // By their names, if only root can have put them there; which sshd listens, and what is of a container, only the agent knows.
    for (name, expected) in [
        ("sshd", outcome::PERHAPS_GUARDED),
        ("containerd-shim-runc-v2", outcome::PERHAPS_GUARDED),
        ("kubelet", outcome::PERHAPS_GUARDED),
        ("systemd-journald", outcome::PERHAPS_GUARDED),
        ("containers", outcome::KILLED),
        ("sumun-agent", outcome::GUARDED),
        ("sshe", outcome::KILLED),
    ] {
        case.program = program(case.dir.path().join(name));
        let (output, verdicts) = case.run(Kind::Open, &[format!("read {secret}")]);
        assert_eq!(is_through(&output), expected != outcome::KILLED, "{name}");
        assert_eq!(verdicts[0].outcome, expected, "{name}");
    }
    // Not as somebody's file, nor if the rule means it; but sshd and the agent stay whatever it means.
    let service = program(case.dir.path().join("dockerd"));
    case.program.clone_from(&service);
    std::os::unix::fs::chown(&service, Some(4711), None).unwrap();
    assert!(case.kills(Kind::Open, format!("read {secret}")));
    std::os::unix::fs::chown(&service, Some(0), None).unwrap();
    case.forced = FORCED;
    case.load(Kind::Open, asked(), vec![], vec![]);
    assert!(case.kills(Kind::Open, format!("read {secret}")));
    for (name, expected) in [
        ("sshd", outcome::PERHAPS_GUARDED),
        ("sumun-agent", outcome::GUARDED),
    ] {
        case.program = case.dir.path().join(name);
        let (_, verdicts) = case.run(Kind::Open, &[format!("read {secret}")]);
        assert_eq!(
            (verdicts[0].outcome, verdicts[0].rule),
            (expected, RULE),
            "{name}"
        );
    }
}

#[test]
fn a_connect_kills_whether_or_not_the_call_waits() {
    let Some(mut case) = Case::new("kill-connect") else {
        return;
    };
    let listeners = [(LOCAL, 0), (LOCAL, 0)].map(|at| TcpListener::bind(at).unwrap());
    let [asked, other] = listeners.each_ref().map(|one| one.local_addr().unwrap());
    let port = |port: u16| number(Id::DstPort, port.into(), port.into());
    let net = |bits: u8| Atom::Net {
        end: End::Dst,
        nets: vec![("127.0.0.0".parse().unwrap(), bits)],
    };
    let mptcp = number(Id::Protocol, 262, 262);
    for (need, forbid) in [
        (vec![port(asked.port())], vec![]),
        (vec![port(asked.port()), net(8)], vec![mptcp]),
        (vec![net(8), case.own()], vec![port(other.port())]),
    ] {
        case.load(Kind::Connect, need, forbid, vec![]);
        for act in ["connect", "begin", "thread begin"] {
            assert!(case.kills(Kind::Connect, format!("{act} {asked}")), "{act}");
            assert!(
                !case.kills(Kind::Connect, format!("{act} {other}")),
                "{act}"
            );
        }
    }
    case.load(Kind::Connect, vec![net(32)], vec![], vec![]);
    assert!(!case.kills(Kind::Connect, format!("connect {asked}")));

    // What the answer tells is judged when it comes: here it comes inside the call.
    let ok = || number(Id::Result, RESULT_ZERO, RESULT_ZERO);
    case.load(
        Kind::Connect,
        vec![port(asked.port()), ok()],
        vec![],
        vec![],
    );
    assert!(case.kills(Kind::Connect, format!("connect {asked}")));
    drop(listeners);
    assert!(!case.kills(Kind::Connect, format!("connect {asked}")));
    let refused = number(Id::Result, RESULT_ZERO - 111, RESULT_ZERO - 111);
    case.load(
        Kind::Connect,
        vec![port(asked.port()), refused],
        vec![],
        vec![],
    );
    assert!(case.kills(Kind::Connect, format!("connect {asked}")));
    assert!(case.kills(Kind::Connect, format!("begin {asked}")));
}

#[test]
fn an_accept_kills_who_accepts() {
    let Some(mut case) = Case::new("kill-accept") else {
        return;
    };
    let from = |first: u8| Atom::Net {
        end: End::Src,
        nets: vec![(std::net::Ipv4Addr::new(first, 0, 0, 0).into(), 8)],
    };
    let own = case.own();
    case.load(Kind::Accept, vec![from(127), own], vec![], vec![]);
    assert!(case.kills(Kind::Accept, "accept".into()));
    let own = case.own();
    case.load(Kind::Accept, vec![from(10), own], vec![], vec![]);
    assert!(!case.kills(Kind::Accept, "accept".into()));
}

/// Words for each process that runs now: that it is none of those that are asked for.
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
    seeds
}

#[test]
fn executables_ancestors_and_ids_are_those_of_the_exec_and_unknown_until_told() {
    let Some(mut case) = Case::new("kill-whose") else {
        return;
    };
    let secret = case.file("secret");
    let read = format!("read {secret}");
    let plain = case.program.clone();
    let named = program(case.dir.path().join("named"));
    let asked = || vec![Atom::File(name_is("secret")), Atom::Exe(name_is("named"))];
    let rest = || {
        vec![
            Atom::Ancestor(name_is("nobody")),
            number(Id::Uid, 1, u32::MAX),
        ]
    };
    // Known from its exec, but whose child it is is not.
    case.load(Kind::Open, asked(), vec![], vec![]);
    case.program = named.clone();
    assert!(case.kills(Kind::Open, read.clone()));
    case.load(Kind::Open, asked(), rest(), vec![]);
    let (output, verdicts) = case.run(Kind::Open, std::slice::from_ref(&read));
    assert!(is_through(&output));
    assert_eq!(
        (verdicts[0].outcome, verdicts[0].lineage_unknown),
        (outcome::UNDECIDED, 1)
    );
    let seeds = nobody(&mut case.bench);
    case.load(Kind::Open, asked(), rest(), seeds.clone());
    assert!(case.kills(Kind::Open, read.clone()));
    case.program = plain;
    assert!(!case.kills(Kind::Open, read.clone()));
    // A rename of the program afterwards makes it no other.
    let root = number(Id::Euid, 0, 0);
    case.load(Kind::Open, [asked(), vec![root]].concat(), vec![], seeds);
    let moved = case.dir.path().join("moved");
    for (from, to, killed) in [(&named, &moved, true), (&moved, &named, false)] {
        let (from, to) = (from.clone(), to.clone());
        let child = command(&from, &["wait".into(), read.clone()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        case.bench.until("its exec", |seen| {
            seen.iter()
                .any(|record| matches!(record.body, Body::Exec(exec) if exec.actor.pid == pid))
        });
        fs::rename(&from, &to).unwrap();
        // Its input ends.
        let output = child.wait_with_output().unwrap();
        assert_eq!(!is_through(&output), killed, "{}", from.display());
        case.bench.settle();
    }

    // One that was there before the plan: unknown, then told.
    let start = || {
        command(&named, &["wait".into(), read.clone()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut outcomes = BTreeMap::new();
    for told in [false, true] {
        let child = start();
        let pid = child.id();
        let seen = case.bench.until("its exec", |seen| {
            seen.iter()
                .any(|record| matches!(record.body, Body::Exec(exec) if exec.actor.pid == pid))
        });
        let actor = seen
            .iter()
            .map(Seen::actor)
            .rfind(|actor| actor.pid == pid)
            .unwrap();
        case.load(Kind::Open, asked(), vec![], vec![]);
        if told {
            let seed = Seed {
                pid,
                start_ns: actor.start_ns,
                lineage: Lineage {
                    image: actor.image,
                    exe_yes: 0b10,
                    ..Lineage::default()
                },
            };
            case.bench.kernel().seed(&seed).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let seen = case.bench.settle();
        let verdict = seen.iter().find_map(|record| match record.body {
            Body::Open(open) if open.actor.pid == pid => Some(open.verdict.outcome),
            _ => None,
        });
        outcomes.insert(told, (is_through(&output), verdict.unwrap()));
    }
    assert_eq!(outcomes[&false], (true, outcome::UNDECIDED));
    assert_eq!(outcomes[&true], (false, outcome::KILLED));
}

#[test]
fn a_process_that_shares_no_files_has_no_table_in_its_record() {
    let Some(mut case) = Case::new("kill-table") else {
        return;
    };
    let secret = case.file("secret");
    case.load(
        Kind::Open,
        vec![Atom::File(name_is("secret"))],
        vec![],
        vec![],
    );
    // Its threads share it; nobody else does, as the iterator tells. Where the other one has died of the same kill before the table
    // is looked at, nobody shares it any more.
    let told = (0..10).any(|_| {
        let (_, verdicts) = case.run(Kind::Open, &[format!("thread read {secret}")]);
        assert_eq!(verdicts[0].outcome, outcome::KILLED);
        let sharers = case.bench.kernel().sharers().read().unwrap();
        assert!(sharers.iter().all(|row| row.table != verdicts[0].table));
        verdicts[0].table != 0
    });
    assert!(told, "it never had a table");
}
