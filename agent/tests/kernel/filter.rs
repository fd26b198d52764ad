//! The filter in the kernel: what no clause could match does not leave it, what one could
//! match always does, also while directories move and filters are swapped.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::bench::{self, Bench, Seen};
use sumun_abi::event::file::{ACCESS_WRITE, OPEN_CREATED, OPEN_TRUNCATE};
use sumun_agent::receive::record::Body;
use sumun_policy::plan::{Clause, KindPlan, Plan};
use sumun_proto::v1::Kind;

fn opens_where(clauses: Vec<Clause>) -> Plan {
    Plan {
        kinds: vec![(Kind::Open, KindPlan::Clauses(clauses))],
        ..Plan::default()
    }
}

fn prefixes(paths: &[&Path]) -> Clause {
    let paths = paths
        .iter()
        .map(|path| path.to_str().unwrap().as_bytes().to_vec())
        .collect();
    Clause {
        path_prefixes: Some(paths),
        ..Clause::default()
    }
}

fn exact(paths: &[&Path]) -> Clause {
    let paths = paths
        .iter()
        .map(|path| path.to_str().unwrap().as_bytes().to_vec())
        .collect();
    Clause {
        path_exact: Some(paths),
        ..Clause::default()
    }
}

struct Place {
    dir: PathBuf,
    _own: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let own = tempfile::tempdir().unwrap();
        Place {
            dir: fs::canonicalize(own.path()).unwrap(),
            _own: own,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Names below the place that were opened, with how often.
    fn opened(&self, seen: &[Seen]) -> BTreeMap<String, u32> {
        let mut found = BTreeMap::new();
        for record in seen {
            if let Body::Open(open) = record.body
                && let Some(name) = record
                    .text(open.path)
                    .strip_prefix(&format!("{}/", self.dir.display()))
            {
                *found.entry(name.to_owned()).or_default() += 1;
            }
        }
        found
    }
}

fn counts<const N: usize>(wanted: [(&str, u32); N]) -> BTreeMap<String, u32> {
    wanted
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count))
        .collect()
}

fn touch(path: &Path) {
    fs::write(path, "").unwrap();
}

fn set(bench: &mut Bench, plan: &Plan, generation: u32) {
    let generation = bench.generation(generation);
    assert_eq!(bench.kernel().set_filter(plan, generation).unwrap(), []);
}

#[test]
fn paths_match_by_prefix_and_exactly() {
    let Some(mut bench) = bench::take("paths") else {
        return;
    };
    let place = Place::new();
    for dir in ["data/deep", "database", "other"] {
        fs::create_dir_all(place.at(dir)).unwrap();
    }
    let open_all = || {
        for name in [
            "data/x",
            "data/deep/x",
            "database/x",
            "dat",
            "datum",
            "other/x",
            "other/xy",
            "other/y",
            "x",
        ] {
            touch(&place.at(name));
        }
    };
    // Twice each: the second time from the cache.
    set(
        &mut bench,
        &opens_where(vec![prefixes(&[&place.at("data")])]),
        1,
    );
    open_all();
    open_all();
    assert_eq!(
        place.opened(&bench.settle()),
        counts([("data/x", 2), ("data/deep/x", 2), ("database/x", 2)])
    );
    set(
        &mut bench,
        &opens_where(vec![prefixes(&[&place.at("data/")])]),
        2,
    );
    open_all();
    open_all();
    assert_eq!(
        place.opened(&bench.settle()),
        counts([("data/x", 2), ("data/deep/x", 2)])
    );
    let plan = opens_where(vec![
        exact(&[&place.at("other/x"), &place.at("dat"), &place.at("absent")]),
        prefixes(&[&place.at("data/de")]),
    ]);
    set(&mut bench, &plan, 3);
    open_all();
    open_all();
    assert_eq!(
        place.opened(&bench.settle()),
        counts([("other/x", 2), ("dat", 2), ("data/deep/x", 2)])
    );
    set(
        &mut bench,
        &opens_where(vec![prefixes(&[Path::new("/nowhere")])]),
        4,
    );
    open_all();
    assert_eq!(place.opened(&bench.settle()), counts([]));
    set(&mut bench, &Plan::default(), 5);
    open_all();
    assert_eq!(place.opened(&bench.settle()), counts([]));
}

#[test]
fn prefixes_longer_than_a_key_still_match() {
    let Some(mut bench) = bench::take("long") else {
        return;
    };
    let place = Place::new();
    let long = "n".repeat(200);
    let (near, far) = (format!("{long}/{long}a"), format!("{long}/{long}b"));
    for dir in [&near, &far] {
        fs::create_dir_all(place.at(dir)).unwrap();
    }
    let plan = opens_where(vec![
        prefixes(&[&place.at(&format!("{near}/"))]),
        exact(&[&place.at(&format!("{far}/x"))]),
    ]);
    set(&mut bench, &plan, 1);
    for _ in 0..2 {
        touch(&place.at(&format!("{near}/x")));
        touch(&place.at(&format!("{far}/x")));
        touch(&place.at("x"));
    }
    let opened = place.opened(&bench.settle());
    assert_eq!(opened.get(&format!("{near}/x")), Some(&2));
    assert_eq!(opened.get(&format!("{far}/x")), Some(&2));
    assert_eq!(opened.get("x"), None);
}

#[test]
fn access_and_executable_are_conditions_too() {
    let Some(mut bench) = bench::take("exe") else {
        return;
    };
    let place = Place::new();
    touch(&place.at("file"));
    fs::copy("/bin/cat", place.at("a cat")).unwrap();
    let clause = |change: &dyn Fn(&mut Clause)| {
        let mut clause = prefixes(&[&place.dir]);
        change(&mut clause);
        opens_where(vec![clause])
    };
    let act = || {
        drop(fs::File::open(place.at("file")).unwrap());
        drop(
            fs::OpenOptions::new()
                .write(true)
                .open(place.at("file"))
                .unwrap(),
        );
        drop(
            fs::OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(place.at("file"))
                .unwrap(),
        );
        for program in [Path::new("/bin/cat"), &place.at("a cat")] {
            assert!(
                Command::new(program)
                    .arg(place.at("file"))
                    .status()
                    .unwrap()
                    .success()
            );
        }
    };
    let flags = |seen: &[Seen]| -> Vec<(bool, u32)> {
        seen.iter()
            .filter_map(|record| match record.body {
                Body::Open(open)
                    if record.text(open.path) == place.at("file").to_str().unwrap() =>
                {
                    Some((open.actor.pid == std::process::id(), open.flags))
                }
                _ => None,
            })
            .collect()
    };
    const READ: u32 = sumun_abi::event::file::ACCESS_READ;
    set(
        &mut bench,
        &clause(&|clause| clause.access_any = Some(ACCESS_WRITE)),
        1,
    );
    act();
    assert_eq!(
        flags(&bench.settle()),
        [(true, ACCESS_WRITE), (true, ACCESS_WRITE | OPEN_TRUNCATE)]
    );
    set(
        &mut bench,
        &clause(&|clause| clause.access_any = Some(OPEN_TRUNCATE | OPEN_CREATED)),
        2,
    );
    act();
    assert_eq!(
        flags(&bench.settle()),
        [(true, ACCESS_WRITE | OPEN_TRUNCATE)]
    );
    set(
        &mut bench,
        &clause(&|clause| clause.exe_names = Some(vec![b"cat".to_vec()])),
        3,
    );
    act();
    assert_eq!(flags(&bench.settle()), [(false, READ)]);
    let path = place.at("a cat").to_str().unwrap().as_bytes().to_vec();
    set(
        &mut bench,
        &clause(&|clause| clause.exe_paths = Some(vec![path.clone()])),
        4,
    );
    act();
    assert_eq!(flags(&bench.settle()), [(false, READ)]);
    let both = clause(&|clause| {
        clause.exe_paths = Some(vec![path.clone()]);
        clause.exe_names = Some(vec![b"cat".to_vec(), b"dog".to_vec()]);
    });
    set(&mut bench, &both, 5);
    act();
    assert_eq!(flags(&bench.settle()), [(false, READ), (false, READ)]);
    set(
        &mut bench,
        &clause(&|clause| clause.exe_names = Some(vec![b"ca".to_vec()])),
        6,
    );
    act();
    assert_eq!(flags(&bench.settle()), []);
}

#[test]
fn cached_verdicts_follow_directories_that_move() {
    let Some(mut bench) = bench::take("moves") else {
        return;
    };
    let place = Place::new();
    fs::create_dir_all(place.at("out/dir")).unwrap();
    fs::create_dir_all(place.at("watched")).unwrap();
    touch(&place.at("out/dir/x"));
    set(
        &mut bench,
        &opens_where(vec![prefixes(&[&place.at("watched/")])]),
        1,
    );
    let open = |name: &str| drop(fs::File::open(place.at(name)).unwrap());
    for round in 0..100 {
        open("out/dir/x");
        open("out/dir/x");
        fs::rename(place.at("out/dir"), place.at("watched/dir")).unwrap();
        open("watched/dir/x");
        open("watched/dir/x");
        fs::rename(place.at("watched/dir"), place.at("out/dir")).unwrap();
        // A directory that gets the inode number, and perhaps the memory, of one that has gone.
        let (gone, new) = (format!("out/gone{round}"), format!("watched/new{round}"));
        fs::create_dir(place.at(&gone)).unwrap();
        touch(&place.at(&format!("{gone}/x")));
        fs::remove_file(place.at(&format!("{gone}/x"))).unwrap();
        fs::remove_dir(place.at(&gone)).unwrap();
        fs::create_dir(place.at(&new)).unwrap();
        touch(&place.at(&format!("{new}/x")));
    }
    let opened = place.opened(&bench.settle());
    assert_eq!(opened.get("watched/dir/x"), Some(&200));
    for round in 0..100 {
        assert_eq!(
            opened.get(&format!("watched/new{round}/x")),
            Some(&1),
            "round {round}"
        );
    }
    assert!(
        !opened.keys().any(|name| name.starts_with("out/")),
        "{opened:?}"
    );
}

#[test]
fn a_bind_mount_shows_a_directory_elsewhere() {
    let Some(mut bench) = bench::take("bind") else {
        return;
    };
    let place = Place::new();
    for dir in ["out", "watched"] {
        fs::create_dir(place.at(dir)).unwrap();
    }
    touch(&place.at("out/x"));
    touch(&place.at("single"));
    let plan = opens_where(vec![
        prefixes(&[&place.at("watched/")]),
        exact(&[&place.at("single")]),
    ]);
    set(&mut bench, &plan, 1);
    let done = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                use nix::mount::{MsFlags, mount};
                nix::sched::unshare(
                    nix::sched::CloneFlags::CLONE_NEWNS | nix::sched::CloneFlags::CLONE_FS,
                )
                .unwrap();
                let none: Option<&str> = None;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
                for _ in 0..10 {
                    drop(fs::File::open(place.at("out/x")).unwrap());
                    mount(
                        Some(&place.at("out")),
                        &place.at("watched"),
                        none,
                        MsFlags::MS_BIND,
                        none,
                    )
                    .unwrap();
                    mount(
                        Some(&place.at("out/x")),
                        &place.at("single"),
                        none,
                        MsFlags::MS_BIND,
                        none,
                    )
                    .unwrap();
                    drop(fs::File::open(place.at("out/x")).unwrap());
                    drop(fs::File::open(place.at("watched/x")).unwrap());
                    drop(fs::File::open(place.at("watched/x")).unwrap());
                    drop(fs::File::open(place.at("single")).unwrap());
                    nix::mount::umount(&place.at("watched")).unwrap();
                    nix::mount::umount(&place.at("single")).unwrap();
                }
            })
            .join()
    });
    done.unwrap();
    assert_eq!(
        place.opened(&bench.settle()),
        counts([("watched/x", 20), ("single", 10)])
    );
}

#[test]
fn swaps_lose_nothing_that_both_filters_want() {
    let Some(mut bench) = bench::take("swap") else {
        return;
    };
    let place = Place::new();
    fs::create_dir_all(place.at("both/a")).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let plans = [
        opens_where(vec![prefixes(&[&place.at("both/")])]),
        opens_where(vec![
            prefixes(&[&place.at("bo")]),
            prefixes(&[Path::new("/nowhere/else")]),
        ]),
        Plan {
            kinds: vec![(Kind::Open, KindPlan::All)],
            ..Plan::default()
        },
        opens_where(vec![exact(&[&place.at("both/a/x")])]),
    ];
    set(&mut bench, &plans[0], 1);
    let mut seen = Vec::new();
    let count = std::sync::atomic::AtomicU32::new(0);
    let begun = std::time::Instant::now();
    let in_time = || begun.elapsed() < bench::DEADLINE;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) && in_time() {
                touch(&place.at("both/a/x"));
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        });
        let mut generation = 1;
        for _ in 0..25 {
            for plan in &plans {
                generation += 1;
                set(&mut bench, plan, generation);
                seen.extend(bench.drain());
                // The opener comes in between on a busy machine, too.
                let before = count.load(std::sync::atomic::Ordering::Relaxed);
                while count.load(std::sync::atomic::Ordering::Relaxed) < before + 2 && in_time() {
                    std::thread::yield_now();
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let produced = count.into_inner();
    seen.extend(bench.settle());
    assert_eq!(place.opened(&seen).get("both/a/x"), Some(&produced));
    let generations: std::collections::BTreeSet<u32> = seen
        .iter()
        .filter_map(|record| match record.body {
            Body::Open(open) => Some(open.header.generation),
            _ => None,
        })
        .collect();
    assert!(generations.len() > 90, "{generations:?}");
}
