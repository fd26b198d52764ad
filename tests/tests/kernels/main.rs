//! The kernel side on other kernels: each of tests/vm/fetch-kernels is booted once, and the tests of
//! `agent/tests/kernel` run in it. What it gave there, and on this host, are the tables in docs/kernel-support.md; what the
//! verifier had to walk through is held to what is recorded there.

mod boot;
mod facts;
mod page;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use boot::BOOTS;
use facts::Said;
use sumun_tests::programs;

/// What the verifier may have to walk through for all programs together.
const INSTRUCTIONS_MAX: u64 = 1_500_000;

/// What all guests may take of the processors: ten minutes of two, and a quarter for slower ones. How long that is depends on what
/// else runs.
const PROCESSOR_MAX: Duration = Duration::from_secs(1500);

/// Guests at once: most of a guest's time is the verifier's, which is one thread.
const AT_ONCE: usize = 2;

/// Waits while another guest has a processor: as long as the file is there that tests/run names.
fn wait_for_others() {
    let Some(file) = std::env::var_os("SUMUN_GUESTS_BESIDE") else {
        return;
    };
    while Path::new(&file).exists() {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// What the children of this process that have ended took of the processors.
fn taken() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("/proc is there");
    let (_, fields) = stat.rsplit_once(')').expect("the name is in parentheses");
    // cutime and cstime, in hundredths (proc(5)).
    let ticks = fields.split_whitespace().skip(13).take(2);
    let ticks: u64 = ticks
        .map(|field| field.parse::<u64>().expect("a number"))
        .sum();
    Duration::from_millis(ticks * 10)
}

/// True when docs/kernel-support.md is to be written.
fn writes() -> bool {
    std::env::var_os("SUMUN_WRITE_DOCS").is_some()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Of all tests this one is left out: races of a kernel that preempts everywhere, emulated beside other guests, take the longest and
/// are not all understood yet. `make test-kernels` boots it.
const ALONE: &str = "newest";

/// Boots all kernels, [`AT_ONCE`] at a time, the longest first; those that are not there are left out, and with `of_all` tests
/// [`ALONE`], too.
///
/// # Panics
/// With what all that failed have said, once all have been tried.
fn boot_all(program: &Path, of_all: bool) -> BTreeMap<&'static str, Said> {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let said = Mutex::new(BTreeMap::new());
    let failed = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for worker in 0..AT_ONCE {
            let (next, said, failed, scratch) = (&next, &said, &failed, &scratch);
            scope.spawn(move || {
                if worker > 0 {
                    wait_for_others();
                }
                while let Some(one) = BOOTS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if of_all && one.column == ALONE {
                        eprintln!("SKIPPED kernels: {ALONE}: make test-kernels boots it");
                        continue;
                    }
                    match boot::boot(one, program, scratch.path()) {
                        Ok(came) => said
                            .lock()
                            .expect("no panic")
                            .extend(came.map(|came| (one.column, came))),
                        Err(reason) => failed.lock().expect("no panic").push(reason),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    said.into_inner().expect("no panic")
}

#[test]
fn every_kernel_does_what_the_page_says() {
    if cfg!(not(target_arch = "x86_64")) {
        eprintln!("SKIPPED kernels: the guests are x86_64");
        return;
    }
    if programs::guests_run_elsewhere() {
        return;
    }
    let asked = std::env::var("SUMUN_GUESTS").unwrap_or_default();
    let of_all = asked == "last";
    if !of_all && asked != "alone" {
        eprintln!("SKIPPED kernels: it takes some minutes: make test and make test-kernels run it");
        return;
    }
    let path = root().join("docs/kernel-support.md");
    if of_all && !page::is_written(&path) {
        eprintln!(
            "SKIPPED kernels: docs/kernel-support.md has no tables yet: SUMUN_WRITE_DOCS=1 make test-kernels"
        );
        return;
    }
    let program = programs::test("kernel");
    let begun = Instant::now();
    let mut said = boot_all(&program, of_all);
    let (took, taken) = (begun.elapsed(), taken());
    println!(
        "{} kernels in {took:.0?}, {taken:.0?} of processors",
        said.len()
    );
    assert!(taken <= PROCESSOR_MAX, "too dear");
    if let Some(native) = boot::native(&program) {
        said.insert(page::NATIVE, native);
    }
    for (column, one) in &said {
        let total = one.facts.total();
        println!("{column}: {total} instructions verified");
        assert!(total <= INSTRUCTIONS_MAX, "{column}: {total}");
    }
    if writes() {
        page::write(&path, &said);
    } else {
        page::compare(&path, &said);
    }
}
