//! What the tests on the running kernel share: a loaded kernel side that one test hands on to the next, turns, and records read
//! from the rings.

use std::{
    fs::{self, File},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    process::Command,
    sync::{Mutex, MutexGuard, Once, PoisonError},
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use sumun_abi::{event::process::Actor, record::Span, verdict::Guard};
use sumun_agent::{
    kernel::{Kernel, KernelConfig, LockPlace},
    receive::record::{Body, Record},
};
use sumun_policy::plan::{KindPlan, Plan};
use sumun_proto::v1::Kind;

/// How long a record may take from the kernel to the test; in a virtual machine that others leave little of a processor,
/// too.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Directories of pins: this, the first test's name and the process.
const DIRECTORY: &str = "sumun-test-";
/// The end of that of a second kernel side.
pub(crate) const BESIDE: &str = "-beside";

/// What is handed on. Who holds this lock is the only test of this process that uses the kernel.
static TURN: Mutex<Option<Loaded>> = Mutex::new(None);

/// A kernel side that asks for nothing and waits for the next test: loading one takes a second, and a quarter of a
/// minute in a virtual machine.
struct Loaded {
    kernel: Kernel,
    config: KernelConfig,
    /// The tests that have used it.
    users: Vec<String>,
    host: Flock<File>,
    dir: tempfile::TempDir,
}

impl Loaded {
    fn release(self) {
        self.kernel
            .release()
            .unwrap_or_else(|error| panic!("the pins are left behind: {error:?}"));
    }
}

/// A kernel side of this test's own.
pub(crate) struct Bench {
    pub(crate) kernel: Option<Kernel>,
    pub(crate) config: KernelConfig,
    /// The generations of this test's filters are above this: see [`Bench::generation`].
    before: u32,
    /// Is as [`take`] makes it, for any test.
    common: bool,
    users: Vec<String>,
    /// What was lost, and what the kernel left out by hook, before this test.
    known: (u64, Vec<(&'static str, u64)>),
    // In this order: pins first, then the turn on the host, then that in this process.
    host: Option<Flock<File>>,
    dir: Option<tempfile::TempDir>,
    turn: Turn,
}

/// The right to use the kernel in this process.
pub(crate) struct Turn(MutexGuard<'static, Option<Loaded>>);

/// Waits for the turn. A test that failed with it has taken what it used out of the way.
pub(crate) fn turn() -> Turn {
    Turn(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// So many times; in a virtual machine, where each takes far longer, a tenth.
pub(crate) fn times(count: usize) -> usize {
    if is_emulated() { count / 10 } else { count }
}

/// True in a virtual machine whose processors are emulated.
pub(crate) fn is_emulated() -> bool {
    std::env::var_os("SUMUN_TEST_EMULATED").is_some()
}

/// The reason why tests on the kernel cannot run here, if there is one.
pub(crate) fn unable() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root");
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("no BTF");
    }
    None
}

/// A kernel side, loaded and attached, that other tests have used or will; or says why not.
pub(crate) fn take(name: &str) -> Option<Bench> {
    let mut turn = turn();
    let Some(loaded) = turn.0.take() else {
        let mut bench = load(name, turn, |_| {})?;
        bench.common = true;
        return Some(bench);
    };
    let mut bench = Bench {
        before: loaded.kernel.last_generation(),
        kernel: Some(loaded.kernel),
        config: loaded.config,
        common: true,
        users: loaded.users,
        known: (0, Vec::new()),
        host: Some(loaded.host),
        dir: Some(loaded.dir),
        turn,
    };
    bench.users.push(name.to_owned());
    bench.known = (bench.lost(), bench.kernel().missed().unwrap());
    Some(bench)
}

/// A kernel side that no other test uses: for what is about loading, or changes what it is loaded with.
pub(crate) fn own(name: &str, change: impl FnOnce(&mut KernelConfig)) -> Option<Bench> {
    let mut turn = turn();
    if let Some(loaded) = turn.0.take() {
        loaded.release();
    }
    load(name, turn, change)
}

fn load(name: &str, turn: Turn, change: impl FnOnce(&mut KernelConfig)) -> Option<Bench> {
    if let Some(reason) = unable() {
        eprintln!("SKIPPED {name}: {reason}");
        return None;
    }
    at_end();
    // Programs of several tests at once would slow each other and fill each other's rings.
    let host = File::create(std::env::temp_dir().join("sumun-kernel-tests.lock")).unwrap();
    let host = Flock::lock(host, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .unwrap();
    sweep();
    let dir = tempfile::tempdir().unwrap();
    let mut config = KernelConfig {
        directory: format!("{DIRECTORY}{name}-{}", std::process::id()),
        lock: LockPlace::File(dir.path().join("lock")),
        // What the tracepoints say by themselves is what most tests are about.
        points: false,
        ..KernelConfig::default()
    };
    change(&mut config);
    let kernel = Kernel::load(&config).unwrap_or_else(|error| panic!("{error}: {error:?}"));
    let mut bench = Bench {
        kernel: Some(kernel),
        config,
        before: 0,
        common: false,
        users: vec![name.to_owned()],
        known: (0, Vec::new()),
        host: Some(host),
        dir: Some(dir),
        turn,
    };
    bench.kernel().attach().unwrap();
    for hook in bench.kernel().hooks() {
        assert!(hook.available, "{}: {:?}", hook.hook, hook.reason);
    }
    Some(bench)
}

/// What is left of programs that were killed would stay attached.
fn sweep() {
    let config = KernelConfig::default();
    let Ok(entries) = fs::read_dir(&config.bpffs) else {
        return;
    };
    for entry in entries.flatten() {
        let directory = entry.file_name().to_string_lossy().into_owned();
        let of = directory.strip_prefix(DIRECTORY);
        let Some((_, pid)) = of.and_then(|rest| rest.trim_end_matches(BESIDE).rsplit_once('-'))
        else {
            continue;
        };
        if !Path::new("/proc").join(pid).exists() {
            let config = KernelConfig {
                directory: directory.clone(),
                lock: LockPlace::Nowhere,
                ..config.clone()
            };
            let released = sumun_agent::kernel::release(&config);
            eprintln!("{directory}, of a program that has ended, is removed: {released:?}");
        }
    }
}

/// What no test takes any more is released at the end of the program, where libtest tells nobody but the C library.
#[expect(unsafe_code, reason = "there is no other end of a test program")]
fn at_end() {
    static ONCE: Once = Once::new();
    extern "C" fn end() {
        let last = TURN.try_lock().ok().and_then(|mut turn| turn.take());
        if let Some(Err(error)) = last.map(|loaded| loaded.kernel.release()) {
            eprintln!("the pins are left behind: {error:?}");
        }
    }
    ONCE.call_once(|| {
        // SAFETY: a function without arguments that does not unwind.
        assert_eq!(unsafe { libc::atexit(end) }, 0);
    });
}

impl Drop for Bench {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if self.common && !failed {
            // What does not let itself be cleared is of no use to anybody.
            match catch_unwind(AssertUnwindSafe(|| self.clear())) {
                Ok(()) => {
                    *self.turn.0 = Some(Loaded {
                        kernel: self.kernel.take().unwrap(),
                        config: self.config.clone(),
                        users: std::mem::take(&mut self.users),
                        host: self.host.take().unwrap(),
                        dir: self.dir.take().unwrap(),
                    });
                    return;
                }
                Err(panic) => {
                    drop(self.release());
                    resume_unwind(panic);
                }
            }
        }
        let released = self.release();
        if failed {
            eprintln!(
                "what failed was on a kernel side that was used by: {}; it is released ({released:?}), and the next test loads its own",
                self.users.join(", ")
            );
        } else if let Err(error) = released {
            panic!("the pins are left behind: {error:?}");
        }
    }
}

/// A record with its strings, owned.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) bytes: Vec<u8>,
    pub(crate) body: Body,
}

impl Seen {
    pub(crate) fn text(&self, span: Span) -> String {
        String::from_utf8_lossy(Record::parse(&self.bytes).unwrap().text(span)).into_owned()
    }

    pub(crate) fn actor(&self) -> Actor {
        self.body.actor()
    }
}

impl Bench {
    /// Ends the agent as a signal would: pins and programs stay.
    pub(crate) fn quit(&mut self) {
        self.common = false;
        drop(self.kernel.take());
    }

    pub(crate) fn kernel(&mut self) -> &mut Kernel {
        self.kernel.as_mut().unwrap()
    }

    /// The n-th generation of this test's filters: verdicts are kept by generation, and a kernel side
    /// may have had filters of other tests.
    pub(crate) fn generation(&self, n: u32) -> u32 {
        self.before + n
    }

    /// Asks for nothing, and kills nobody, any more.
    fn clear(&mut self) {
        self.kernel().use_points(false);
        let generation = self.kernel().last_generation() + 1;
        let widened = self.kernel().set_filter(&Plan::default(), generation);
        assert_eq!(widened.unwrap(), []);
        self.kernel().hold_until(0).unwrap();
        self.kernel().guard(Guard::default()).unwrap();
        drop(self.settle());
    }

    fn release(&mut self) -> Result<(), sumun_agent::kernel::Error> {
        match self.kernel.take() {
            Some(kernel) => kernel.release(),
            None => sumun_agent::kernel::release(&self.config).map(drop),
        }
    }

    /// Where the links of its programs are pinned: the set is the only one.
    pub(crate) fn links(&self) -> std::path::PathBuf {
        let sets = self.config.bpffs.join(&self.config.directory);
        let mut sets = std::fs::read_dir(sets).unwrap();
        sets.next().unwrap().unwrap().path().join("links")
    }

    /// How many records were lost since the test began.
    pub(crate) fn lost(&mut self) -> u64 {
        let streams = self.kernel().streams().unwrap();
        let all = streams.iter().flat_map(|(_, stream)| stream.lost);
        all.sum::<u64>() - self.known.0
    }

    /// How many runs of a hook the kernel may have left out since then: see [`Kernel::missed`].
    pub(crate) fn left_out(&mut self, hook: &str) -> u64 {
        let of = |all: &[(&'static str, u64)]| {
            let found = all.iter().find(|(name, _)| *name == hook);
            found.map_or(0, |(_, count)| *count)
        };
        of(&self.kernel().missed().unwrap()) - of(&self.known.1)
    }

    /// No more records are missing than the kernel says it left out runs of this program.
    pub(crate) fn nothing_else_missing(&mut self, program: &str, missing: usize) {
        let most = self.left_out(program);
        assert!(
            missing as u64 <= most,
            "{missing} records are missing, and of runs at most {most}"
        );
        if most > 0 {
            eprintln!(
                "{missing} records are missing; of runs that the kernel left out at most {most}"
            );
        }
    }

    /// Everything that is in both rings now; given up.
    pub(crate) fn drain(&mut self) -> Vec<Seen> {
        let kernel = self.kernel();
        let mut seen = Vec::new();
        for ring in [&mut kernel.life, &mut kernel.bulk] {
            let mut drain = ring.drain(u64::MAX / 2);
            while let Some(bytes) = drain.next() {
                let record = Record::parse(bytes).unwrap();
                seen.push(Seen {
                    bytes: bytes.to_vec(),
                    body: record.body,
                });
            }
            let position = ring.position();
            ring.commit(position);
        }
        seen
    }

    /// Collects records until `done` is content with them.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&[Seen]) -> bool) -> Vec<Seen> {
        let begun = Instant::now();
        let mut seen = Vec::new();
        loop {
            seen.extend(self.drain());
            if done(&seen) {
                return seen;
            }
            if begun.elapsed() > DEADLINE {
                for record in &seen {
                    eprintln!("{:?}", record.body);
                }
                panic!("{what} did not come");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks for every record of these kinds.
    pub(crate) fn ask(&mut self, kinds: &[Kind]) {
        let plan = Plan {
            kinds: kinds.iter().map(|kind| (*kind, KindPlan::All)).collect(),
            ..Plan::default()
        };
        let generation = self.kernel().last_generation() + 1;
        self.kernel().set_filter(&plan, generation).unwrap();
        drop(self.settle());
    }

    /// All records up to the exit of a process that is started now: what happened before is in.
    pub(crate) fn settle(&mut self) -> Vec<Seen> {
        let mut child = Command::new("/bin/true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let seen = self.until("a marker's exit", |seen| {
            seen.iter()
                .any(|record| matches!(record.body, Body::Exit(exit) if exit.actor.pid == pid))
        });
        seen.into_iter()
            .filter(|record| record.actor().pid != pid)
            .collect()
    }
}
