//! Files that are mapped to be executed, on the running kernel.
#![expect(
    unsafe_code,
    reason = "mappings that the standard library does not make"
)]

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    process::id,
    ptr, thread,
};

use sumun_abi::{
    event::file::{CALL_COMPAT, FILE_DELETED, FILE_IN_IMAGE, FILE_NOT_IN_IMAGE, Open},
    record::{FLAW_RACY, SOURCE_OBJECT},
};
use sumun_agent::receive::record::Body;
use sumun_policy::plan::{Clause, KindPlan, Plan};
use sumun_proto::v1::Kind;

use crate::{
    bench::{self, Bench, Seen},
    written::{Mounted, enter},
};

const LENGTH: usize = 4096;
const CODE: i32 = libc::PROT_READ | libc::PROT_EXEC;

/// A private mapping of the beginning of a file, which is there for a moment.
pub(crate) fn map(file: &File, protection: i32) -> io::Result<()> {
    map_as(file.as_raw_fd(), protection, libc::MAP_PRIVATE)
}

fn map_as(fd: i32, protection: i32, flags: i32) -> io::Result<()> {
    // SAFETY: a new mapping where the kernel wants it.
    let at = unsafe { libc::mmap(ptr::null_mut(), LENGTH, protection, flags, fd, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping that was just made, to which nothing points.
    assert_eq!(unsafe { libc::munmap(at, LENGTH) }, 0);
    Ok(())
}

fn file(path: &Path) -> File {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, [0; LENGTH]).unwrap();
    File::open(path).unwrap()
}

fn memfd() -> File {
    // SAFETY: a text that ends with a zero.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_create, c"code".as_ptr(), 0) };
    assert!(fd >= 0);
    // SAFETY: a new descriptor of ours.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    file.set_len(LENGTH as u64).unwrap();
    file
}

fn ask(bench: &mut Bench, clause: Clause) {
    let plan = Plan {
        kinds: vec![(Kind::MapExec, KindPlan::Clauses(vec![clause]))],
        ..Plan::default()
    };
    let generation = bench.kernel().last_generation() + 1;
    assert_eq!(bench.kernel().set_filter(&plan, generation).unwrap(), []);
    drop(bench.settle());
}

fn below(folder: &Path) -> Clause {
    Clause {
        path_prefixes: Some(vec![format!("{}/", folder.display()).into()]),
        ..Clause::default()
    }
}

fn with(flags: u32) -> Clause {
    Clause {
        access_any: Some(flags),
        ..Clause::default()
    }
}

/// What this process has mapped, with its path.
fn own(seen: &[Seen]) -> Vec<(Open, String)> {
    let mapped = seen.iter().filter_map(|record| match &record.body {
        Body::Mapped(mapped) => Some((*mapped, record.text(mapped.path))),
        _ => None,
    });
    mapped.filter(|(open, _)| open.actor.pid == id()).collect()
}

fn paths(seen: &[Seen]) -> Vec<String> {
    own(seen).into_iter().map(|(_, path)| path).collect()
}

#[test]
fn a_mapping_is_told_if_its_file_can_match() {
    let Some(mut bench) = bench::take("mapped") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let asked = dir.join("asked");
    let [library, deep, beside, gone, written] = [
        "asked/lib",
        "asked/deep/lib",
        "beside/lib",
        "asked/gone",
        "asked/out",
    ]
    .map(|name| (file(&dir.join(name)), dir.join(name).display().to_string()));
    fs::remove_file(&gone.1).unwrap();
    let written = OpenOptions::new().write(true).open(&written.1).unwrap();
    let memory = memfd();
    ask(&mut bench, below(&asked));
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // The second time from the cache.
    for _ in 0..2 {
        for (file, _) in [&library, &deep, &beside, &gone] {
            map(file, CODE).unwrap();
            map(file, libc::PROT_READ).unwrap();
        }
        map_as(library.0.as_raw_fd(), CODE, libc::MAP_SHARED).unwrap();
        map_as(-1, CODE, anonymous).unwrap();
        // What is ignored is not what was mapped.
        map_as(library.0.as_raw_fd(), CODE, anonymous).unwrap();
        // Refused: it is not open for reading.
        map(&written, CODE).unwrap_err();
        // Without a tree that a prefix could be of: it is sent, whatever is asked for.
        map(&memory, CODE).unwrap();
        let seen = bench.settle();
        let found = own(&seen);
        let found: Vec<_> = found
            .iter()
            .map(|(open, path)| (path.as_str(), open.ino, open.flags & FILE_DELETED))
            .collect();
        let [one, two, three] =
            [&library, &deep, &gone].map(|(file, path)| (path.as_str(), ino(file)));
        assert_eq!(
            found,
            [
                (one.0, one.1, 0),
                (two.0, two.1, 0),
                (three.0, three.1, FILE_DELETED),
                (one.0, one.1, 0),
                ("memfd:code", ino(&memory), FILE_DELETED),
            ]
        );
        let (open, _) = own(&seen).swap_remove(0);
        assert_eq!(open.fd, library.0.as_raw_fd());
        assert_eq!(
            u64::from(open.mode),
            u64::from(library.0.metadata().unwrap().mode())
        );
        assert_eq!(
            (open.path.source, open.path.flaws),
            (SOURCE_OBJECT, FLAW_RACY)
        );
        assert_eq!(open.header.generation, bench.kernel().filter_generation());
    }

    ask(&mut bench, with(FILE_DELETED));
    for (file, _) in [&library, &gone] {
        map(file, CODE).unwrap();
    }
    map(&memory, CODE).unwrap();
    assert_eq!(paths(&bench.settle()), [gone.1.as_str(), "memfd:code"]);

    // Beside the other kind that the same call is: each tells what is of it.
    let both = Plan {
        kinds: vec![
            (Kind::MapExec, KindPlan::Clauses(vec![below(&asked)])),
            (Kind::MapWx, KindPlan::All),
        ],
        ..Plan::default()
    };
    let generation = bench.kernel().last_generation() + 1;
    assert_eq!(bench.kernel().set_filter(&both, generation).unwrap(), []);
    drop(bench.settle());
    map(&library.0, CODE).unwrap();
    map(&library.0, CODE | libc::PROT_WRITE).unwrap();
    map(&beside.0, CODE | libc::PROT_WRITE).unwrap();
    let seen = bench.settle();
    let kinds: Vec<_> = seen
        .iter()
        .filter(|record| record.actor().pid == id())
        .filter_map(|record| match &record.body {
            Body::Mapped(_) => Some("exec"),
            Body::Memory(..) => Some("wx"),
            _ => None,
        })
        .collect();
    assert_eq!(kinds, ["exec", "exec", "wx", "wx"]);
    bench.ask(&[Kind::MapWx]);
    map(&library.0, CODE).unwrap();
    assert_eq!(paths(&bench.settle()), [""; 0]);
}

fn ino(file: &File) -> u64 {
    file.metadata().unwrap().ino()
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_mapping_by_the_oldest_call_is_told() {
    use crate::low::{Low, int80};
    let Some(mut bench) = bench::take("mapped32") else {
        return;
    };
    if int80(20, 0, 0, 0, 0) != id() as i32 {
        return eprintln!("SKIPPED mapped32: this kernel has no 32-bit calls");
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let library = file(&dir.join("lib"));
    let mut low = Low::new();
    let mut map = |protection: i32| {
        let private = libc::MAP_PRIVATE as u32;
        let words = [0, LENGTH as u32, protection as u32, private];
        let words = [&words[..], &[library.as_raw_fd() as u32, 0]].concat();
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        let at = int80(90, low.put(&bytes), 0, 0, 0) as u32;
        assert!(at < u32::MAX - 4095, "{}", at as i32);
        // SAFETY: the mapping that was just made.
        assert_eq!(unsafe { libc::munmap(at as usize as *mut _, LENGTH) }, 0);
    };
    ask(&mut bench, below(&dir));
    map(CODE);
    map(libc::PROT_READ);
    let seen = bench.settle();
    let [(open, path)] = &own(&seen)[..] else {
        panic!("{:?}", paths(&seen));
    };
    assert_eq!(path, dir.join("lib").to_str().unwrap());
    assert_eq!(open.flags & CALL_COMPAT, CALL_COMPAT);
    assert_eq!(open.ino, ino(&library));
}

#[test]
fn what_came_with_the_image_is_told_apart() {
    let Some(mut bench) = bench::take("mapped-layers") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let _disk = Mounted::new("tmpfs", at("disk"), "mode=755").unwrap();
    let disk = |name: &str| at("disk").join(name);
    for name in ["upper", "work", "lower/tmp"] {
        fs::create_dir_all(disk(name)).unwrap();
    }
    for name in ["image", "changed"] {
        drop(file(&disk("lower").join(name)));
    }
    let [lower, upper, work] = ["lower", "upper", "work"].map(disk);
    let (lower, upper, work) = (lower.display(), upper.display(), work.display());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let root = match Mounted::new("overlay", at("root"), &options) {
        Ok(root) => root,
        Err(error) => return eprintln!("SKIPPED mapped-layers: no overlay here: {error}"),
    };
    let _other = Mounted::new("tmpfs", root.0.join("tmp"), "mode=755").unwrap();
    drop(file(&root.0.join("tmp/volume")));
    drop(file(&root.0.join("changed")));
    let wanted = [
        ("/image", FILE_IN_IMAGE),
        ("/changed", FILE_NOT_IN_IMAGE),
        ("/tmp/volume", FILE_NOT_IN_IMAGE),
    ];
    let run = || {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&root.0).unwrap();
                for (path, _) in wanted {
                    map(&File::open(path).unwrap(), CODE).unwrap();
                }
            });
            inside.join().unwrap();
        });
    };
    let told = |bench: &mut Bench| -> Vec<(String, u32)> {
        let found = own(&bench.settle());
        found
            .into_iter()
            .map(|(open, path)| (path, open.flags & (FILE_IN_IMAGE | FILE_NOT_IN_IMAGE)))
            .collect()
    };
    let wanted = |asked: u32| -> Vec<(String, u32)> {
        let asked = wanted.into_iter().filter(|(_, flags)| flags & asked != 0);
        asked
            .map(|(path, flags)| (path.to_owned(), flags))
            .collect()
    };
    for asked in [
        FILE_NOT_IN_IMAGE,
        FILE_IN_IMAGE,
        FILE_IN_IMAGE | FILE_NOT_IN_IMAGE,
    ] {
        ask(&mut bench, with(asked));
        run();
        assert_eq!(told(&mut bench), wanted(asked));
    }
}
