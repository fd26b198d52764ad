//! Files that are written by other calls than write, on the running kernel: the open for writing and the close tell of each.
#![expect(
    unsafe_code,
    reason = "calls that the standard library does not make are what is tested"
)]

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    path::Path,
    process::id,
    ptr,
};

use sumun_abi::event::file::ACCESS_WRITE;
use sumun_agent::receive::record::Body;
use sumun_policy::plan::{Clause, KindPlan, Plan};
use sumun_proto::v1::Kind;

use crate::bench::{self, Seen};

const TEXT: &[u8] = b"written";

/// Writes the text, which is in the first file, too, into the second.
type Write = fn(&File, &File);

/// How, by its name.
const WAYS: [(&str, Write); 5] = [
    ("write", |_, to| {
        let mut to = to;
        to.write_all(TEXT).unwrap();
    }),
    ("sendfile", |from, to| {
        // SAFETY: two open files; where to begin is not said.
        let sent = unsafe {
            libc::sendfile(
                to.as_raw_fd(),
                from.as_raw_fd(),
                ptr::null_mut(),
                TEXT.len(),
            )
        };
        assert_eq!(sent, TEXT.len() as isize);
    }),
    ("copy_file_range", |from, to| {
        let (from, to, none) = (from.as_raw_fd(), to.as_raw_fd(), ptr::null_mut());
        // SAFETY: as above.
        let copied = unsafe { libc::copy_file_range(from, none, to, none, TEXT.len(), 0) };
        assert_eq!(copied, TEXT.len() as isize);
    }),
    ("splice", |_, to| {
        let (read, mut write) = std::io::pipe().unwrap();
        write.write_all(TEXT).unwrap();
        let (from, to, none) = (read.as_raw_fd(), to.as_raw_fd(), ptr::null_mut());
        // SAFETY: as above.
        let moved = unsafe { libc::splice(from, none, to, none, TEXT.len(), 0) };
        assert_eq!(moved, TEXT.len() as isize);
    }),
    ("mapping", |_, to| Mapping::of(to).write()),
];

/// A shared mapping of a file that is as long as the text.
struct Mapping(*mut u8);

impl Mapping {
    fn of(file: &File) -> Self {
        file.set_len(TEXT.len() as u64).unwrap();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (none, fd) = (ptr::null_mut(), file.as_raw_fd());
        // SAFETY: a new mapping where the kernel wants it.
        let at = unsafe { libc::mmap(none, TEXT.len(), protection, libc::MAP_SHARED, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Self(at.cast())
    }

    fn write(&self) {
        // SAFETY: the mapping is that long.
        unsafe { ptr::copy_nonoverlapping(TEXT.as_ptr(), self.0, TEXT.len()) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own, to which nothing else points.
        unsafe { libc::munmap(self.0.cast(), TEXT.len()) };
    }
}

/// What this process has done to files below a folder, by their names.
fn told(seen: &[Seen], folder: &Path) -> Vec<(&'static str, String)> {
    let own = seen.iter().filter(|record| record.actor().pid == id());
    own.filter_map(|record| {
        let (kind, open) = match &record.body {
            Body::Open(open) => ("open", open),
            Body::CloseWrite(open) => ("close_write", open),
            _ => return None,
        };
        let path = record.text(open.path);
        let name = Path::new(&path).strip_prefix(folder).ok()?;
        assert_ne!(open.flags & ACCESS_WRITE, 0);
        Some((kind, name.display().to_string()))
    })
    .collect()
}

#[test]
fn whatever_writes_a_file_is_told_by_its_open_and_its_close() {
    let Some(mut bench) = bench::take("ways") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let source = dir.join("source");
    fs::write(&source, TEXT).unwrap();
    let clause = Clause {
        path_prefixes: Some(vec![format!("{}/", dir.display()).into()]),
        access_any: Some(ACCESS_WRITE),
        ..Clause::default()
    };
    let plan = Plan {
        kinds: [Kind::Open, Kind::CloseWrite]
            .map(|kind| (kind, KindPlan::Clauses(vec![clause.clone()])))
            .to_vec(),
        ..Plan::default()
    };
    let generation = bench.kernel().last_generation() + 1;
    assert_eq!(bench.kernel().set_filter(&plan, generation).unwrap(), []);
    drop(bench.settle());
    let open = |name: &str| {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true);
        options.open(dir.join(name)).unwrap()
    };
    let content = |name: &str| {
        let mut text = Vec::new();
        File::open(dir.join(name))
            .and_then(|mut file| file.read_to_end(&mut text))
            .unwrap();
        text
    };
    for (name, write) in WAYS {
        let to = open(name);
        write(&File::open(&source).unwrap(), &to);
        drop(to);
        assert_eq!(content(name), TEXT, "{name}");
        let both = ["open", "close_write"].map(|kind| (kind, name.to_owned()));
        assert_eq!(told(&bench.settle(), &dir), both);
    }

    // What is written through a mapping after its descriptor was closed is told by the open, and by the close before it.
    let to = open("later");
    let mapping = Mapping::of(&to);
    drop(to);
    let both = ["open", "close_write"].map(|kind| (kind, "later".to_owned()));
    assert_eq!(told(&bench.settle(), &dir), both);
    assert_ne!(content("later"), TEXT);
    mapping.write();
    drop(mapping);
    assert_eq!(content("later"), TEXT);
    assert_eq!(told(&bench.settle(), &dir), []);
}
