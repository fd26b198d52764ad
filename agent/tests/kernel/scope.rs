//! Rules that ask whose a process is, on the running kernel: answered by its cgroup, and for one that was made a moment ago
//! by what was said of all below one above it.

use std::{
    fs,
    io::Write as _,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::{fs::MetadataExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use sumun_abi::{event::process::outcome, verdict::Scope};
use sumun_agent::{
    kernel::{Known, Swapped, cgroup},
    receive::record::Body,
};
use sumun_policy::{
    Predicate,
    plan::Plan,
    verdict::{Atom, Texts, VerdictClause, VerdictPlan, kind_bit, scope},
};
use sumun_proto::v1::Kind;

use crate::{
    bench::{self, Bench, Seen},
    rules::Ruled,
};

/// What the tests ask of cgroups: the first atom of a plan.
const BIT: u64 = 1;

/// Folders of the hierarchy, removed at the end.
struct Tree {
    mount: PathBuf,
    made: Vec<PathBuf>,
}

impl Tree {
    fn new(controller: &str) -> Self {
        let mount = match controller {
            "unified" => "/sys/fs/cgroup".into(),
            _ => PathBuf::from("/sys/fs/cgroup").join(controller),
        };
        Self {
            mount,
            made: Vec::new(),
        }
    }

    /// A cgroup, by its path below one of the test's own; and its id.
    fn make(&mut self, path: &str) -> (PathBuf, u64) {
        let path = self
            .mount
            .join(format!("sumun-scope-{}{path}", std::process::id()));
        fs::create_dir(&path).unwrap();
        self.made.push(path.clone());
        let id = fs::metadata(&path).unwrap().ino();
        (path, id)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        for path in self.made.iter().rev() {
            let begun = Instant::now();
            // The last process in it may not be gone yet.
            while let Err(error) = fs::remove_dir(path) {
                if begun.elapsed() > Duration::from_secs(10) {
                    eprintln!("{} is left behind: {error}", path.display());
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// The rule 7 kills what has this path, where the first atom holds.
fn plan(evil: &Path, presumed: bool) -> VerdictPlan {
    let asked = Predicate::parse("k8s.namespace == 'shop'", &Default::default()).unwrap();
    VerdictPlan {
        atoms: vec![
            Atom::Scope(scope::Scope { asked, presumed }),
            Atom::Exe(Texts {
                paths: vec![evil.to_str().unwrap().into()],
                ..Texts::default()
            }),
        ],
        clauses: vec![VerdictClause {
            rule: 7,
            kinds: kind_bit(Kind::Exec),
            need: 0b11,
            forbid: 0,
        }],
    }
}

fn unknown() -> Scope {
    Scope {
        unknown: BIT,
        below_unknown: BIT,
        ..Scope::default()
    }
}

fn outside() -> Scope {
    Scope::default()
}

fn inside() -> Scope {
    Scope {
        yes: BIT,
        below_yes: BIT,
        ..Scope::default()
    }
}

fn load(bench: &mut Bench, plan: &VerdictPlan, generation: u32, cgroups: &[(u64, Scope)]) {
    let generation = bench.generation(generation);
    let known = || Known {
        cgroups: cgroups.to_vec(),
        ..Known::default()
    };
    let swapped = bench
        .kernel()
        .set_rules(&Plan::default(), plan, generation, known)
        .unwrap();
    assert_eq!(swapped, Swapped::default());
}

fn evil(dir: &Path) -> PathBuf {
    let path = dir.join("evil");
    fs::copy(fs::canonicalize("/bin/sh").unwrap(), &path).unwrap();
    path
}

/// A shell joins a cgroup and executes the program: the first of its own in there. True if it was killed.
fn is_killed(cgroup: &Path, evil: &Path) -> bool {
    let script = "echo $$ > \"$0\" && exec \"$1\" -c :";
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", script])
        .args([&cgroup.join("cgroup.procs"), evil]);
    let status = command.status().unwrap();
    let killed = status.signal() == Some(9);
    // A copy of busybox under another name does nothing.
    assert!(killed || matches!(status.code(), Some(0 | 127)), "{status}");
    killed
}

fn outcomes(seen: &[Seen], evil: &Path) -> Vec<u32> {
    let of = |record: &Seen| match record.body {
        Body::Exec(exec) if record.text(exec.exe) == evil.to_str().unwrap() => Some(exec.outcome),
        _ => None,
    };
    seen.iter().filter_map(of).collect()
}

fn take(name: &str) -> Option<(Bench, Tree, tempfile::TempDir)> {
    let mut bench = bench::take(name)?;
    bench.kernel().hold_until(u64::MAX).unwrap();
    let tree = Tree::new(bench.kernel().cgroup_controller());
    Some((bench, tree, tempfile::tempdir().unwrap()))
}

#[test]
fn a_new_cgroup_is_in_scope_before_its_first_exec() {
    let Some((mut bench, mut tree, dir)) = take("scope") else {
        return;
    };
    let evil = evil(dir.path());
    let top = tree.make("");
    let (mine, theirs, open) = (tree.make("/mine"), tree.make("/theirs"), tree.make("/open"));
    // The root says that nothing is known of what nobody names.
    let cgroups = [
        (1, unknown()),
        (mine.1, inside()),
        (theirs.1, outside()),
        (open.1, unknown()),
    ];
    load(&mut bench, &plan(&evil, false), 1, &cgroups);
    drop(bench.settle());
    let mut cases = vec![
        (mine.0.clone(), outcome::KILLED),
        (theirs.0.clone(), outcome::NONE),
        (open.0.clone(), outcome::UNDECIDED),
        (top.0.clone(), outcome::UNDECIDED),
    ];
    // Made after the rules were loaded; nobody says anything of them.
    for (path, wanted) in [
        ("/mine/new", outcome::KILLED),
        ("/mine/new/deep", outcome::KILLED),
        ("/theirs/new", outcome::NONE),
        ("/open/new", outcome::UNDECIDED),
        ("/other", outcome::UNDECIDED),
    ] {
        cases.push((tree.make(path).0, wanted));
    }
    for (path, wanted) in &cases {
        let killed = is_killed(path, &evil);
        assert_eq!(killed, *wanted == outcome::KILLED, "{}", path.display());
        let seen = bench.settle();
        assert_eq!(outcomes(&seen, &evil), [*wanted], "{}", path.display());
    }
    // A container's cgroup is told of when its runtime has named it, also against what is said of all below.
    let (other, id) = tree.make("/mine/other");
    bench.kernel().scope(id, outside()).unwrap();
    assert!(!is_killed(&other, &evil));
    bench.kernel().unscope(id);
    assert!(is_killed(&other, &evil));
    bench.kernel().unscope(mine.1);
    assert!(!is_killed(&other, &evil));
}

#[test]
fn what_is_not_known_kills_only_if_the_policy_says_so() {
    let Some((mut bench, mut tree, dir)) = take("scope-pending") else {
        return;
    };
    let evil = evil(dir.path());
    let (top, id) = tree.make("");
    load(&mut bench, &plan(&evil, true), 1, &[(1, unknown())]);
    let (new, _) = tree.make("/new");
    assert!(is_killed(&new, &evil) && is_killed(&top, &evil));
    bench.kernel().scope(id, outside()).unwrap();
    assert!(!is_killed(&new, &evil) && !is_killed(&top, &evil));
    // Nobody has said anything at all: that is no pending workload.
    load(&mut bench, &plan(&evil, true), 2, &[]);
    drop(bench.settle());
    assert!(!is_killed(&new, &evil));
    assert_eq!(outcomes(&bench.settle(), &evil), [outcome::UNDECIDED]);
}

/// Deeper than is asked, what is above says it, or, before Linux 6.1, an entry of its own.
#[test]
fn no_depth_is_too_deep() {
    let Some((mut bench, mut tree, dir)) = take("scope-depth") else {
        return;
    };
    let evil = evil(dir.path());
    let mut path = String::new();
    let (_, top) = tree.make("");
    let mut all = Vec::new();
    // Ten more, and with so long names that no record has the whole path.
    for depth in 0..=sumun_abi::verdict::SCOPE_STEPS + 10 {
        path.push_str(if depth < 10 {
            "/x"
        } else {
            "/a-name-of-20-bytes-"
        });
        all.push(tree.make(&path));
    }
    load(&mut bench, &plan(&evil, false), 1, &[(top, inside())]);
    let (deep, (deepest, id)) = (&all[60].0, &all[all.len() - 1]);
    assert!(is_killed(deep, &evil));
    // What there was in the place of `ancestors`.
    let types = fs::read("/sys/kernel/btf/vmlinux").unwrap();
    let old = b"\0ancestor_ids\0";
    let is_old = types.windows(old.len()).any(|window| window == old);
    assert_eq!(is_killed(deepest, &evil), !is_old);
    bench.kernel().scope(*id, inside()).unwrap();
    assert!(is_killed(deepest, &evil));
}

/// No exec is judged by a plan without its answers, however often plans are swapped.
#[test]
fn a_swap_keeps_the_answers() {
    let Some((mut bench, mut tree, dir)) = take("scope-swap") else {
        return;
    };
    let evil = evil(dir.path());
    let (_, id) = tree.make("");
    let (new, _) = tree.make("/new");
    let cgroups = [(1, unknown()), (id, inside())];
    load(&mut bench, &plan(&evil, false), 1, &cgroups);
    let done = AtomicBool::new(false);
    let (killed, swaps) = std::thread::scope(|scope| {
        let runs = scope.spawn(|| {
            let mut killed = 0;
            while !done.load(Ordering::Acquire) {
                assert!(is_killed(&new, &evil), "after {killed}");
                killed += 1;
            }
            killed
        });
        let swaps = bench::times(100) as u32;
        for swap in 0..swaps {
            load(&mut bench, &plan(&evil, false), 2 + swap, &cgroups);
            drop(bench.drain());
        }
        done.store(true, Ordering::Release);
        (runs.join().unwrap(), swaps)
    });
    println!("{killed} execs killed during {swaps} swaps");
    assert!(killed > 2);
}

/// The whole hierarchy of a busy host has room.
#[test]
fn there_is_room_for_ten_thousand_cgroups() {
    let Some((mut bench, _tree, dir)) = take("scope-room") else {
        return;
    };
    let evil = evil(dir.path());
    const MOST: usize = sumun_abi::verdict::SCOPES_ENTRIES as usize / 2;
    const { assert!(MOST > 10_000) };
    let most = bench::times(MOST) as u64;
    let cgroups: Vec<_> = (0..most).map(|id| (u64::MAX - id, outside())).collect();
    let begun = Instant::now();
    // Two plans at once, as in each swap.
    load(&mut bench, &plan(&evil, false), 1, &cgroups);
    load(&mut bench, &plan(&evil, false), 2, &cgroups);
    println!("{} entries twice in {:?}", cgroups.len(), begun.elapsed());
    if most < MOST as u64 {
        return;
    }
    // Others go on being told of until it is full, which is said.
    let full = (0..=most).any(|id| bench.kernel().scope(1 << 40 | id, outside()).is_err());
    assert!(full);
}

#[test]
fn a_connect_is_denied_in_scope_and_nowhere_else() {
    let Some(mut ruled) = Ruled::new("scope-deny", &[Kind::Connect]) else {
        return;
    };
    let controller = ruled.bench.kernel().cgroup_controller();
    let mut tree = Tree::new(controller);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let to = listener.local_addr().unwrap();
    let (mine, theirs) = (tree.make(""), tree.make("-theirs"));
    let when = format!("net.dst.port == {} && 'app=cart' in k8s.labels", to.port());
    ruled.load_knowing("connect", &when, |plan| {
        let atoms = plan.atoms.iter();
        let place = atoms
            .clone()
            .position(|atom| matches!(atom, Atom::Scope(_)));
        let bit = 1 << place.unwrap();
        Known {
            cgroups: vec![
                (
                    mine.1,
                    Scope {
                        below_yes: bit,
                        ..Scope::default()
                    },
                ),
                (theirs.1, Scope::default()),
            ],
            ..Known::default()
        }
    });
    let (new, _) = tree.make("/new");
    let join = |folder: &Path| {
        let mut procs = fs::OpenOptions::new()
            .write(true)
            .open(folder.join("cgroup.procs"))
            .unwrap();
        write!(procs, "{}", std::process::id()).unwrap();
    };
    for turn in 0..20 {
        join(&new);
        let denied = TcpStream::connect(to).expect_err("it is denied");
        assert_eq!(denied.raw_os_error(), Some(libc::EPERM), "turn {turn}");
        join(&theirs.0);
        TcpStream::connect(to).unwrap();
        // Nothing is known there.
        join(&tree.mount);
        TcpStream::connect(to).unwrap();
    }
    // It is what the walk tells of.
    let mut walked = 0;
    let mut see = |id, _: &str| walked += u32::from(id == mine.1);
    cgroup::walk(controller, &mut see, |_| {}).unwrap();
    assert_eq!(walked, 1);
}
