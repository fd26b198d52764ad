//! What the tests on the running kernel share: pins and a lock of their own, taking turns,
//! and records read from the rings.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]
#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

#[cfg(target_arch = "x86_64")]
pub mod low;

use std::{
    fs::File,
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use sumun_abi::{event::process::Actor, record::Span};
use sumun_agent::{
    kernel::{Kernel, KernelConfig, LockPlace},
    receive::record::{Body, Record},
};
use sumun_policy::plan::{KindPlan, Plan};
use sumun_proto::v1::Kind;

/// How long a record may take from the kernel to the test.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A kernel side of this test's own.
pub struct Bench {
    pub kernel: Option<Kernel>,
    pub config: KernelConfig,
    /// The generations of this test's filters are above this: see [`Bench::generation`].
    before: u32,
    /// Is as [`bench`] makes it, for any test.
    common: bool,
    turn: Option<Flock<File>>,
    dir: Option<tempfile::TempDir>,
}

/// In a virtual machine, where loading takes seconds, the tests of one program use one kernel side
/// after each other.
static SHARED: Mutex<Option<Bench>> = Mutex::new(None);

/// True where tests hand on what they have loaded; what the last one used is not released.
fn shares() -> bool {
    std::env::var_os("SUMUN_TEST_SHARE").is_some()
}

/// So many times; in a virtual machine, where each takes far longer, a tenth.
pub fn times(count: usize) -> usize {
    if shares() { count / 10 } else { count }
}

/// The reason why tests on the kernel cannot run here, if there is one.
pub fn unable() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root");
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("no BTF");
    }
    None
}

/// Loads and attaches, or says why not.
pub fn bench(name: &str) -> Option<Bench> {
    let handed_on = SHARED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(mut bench) = handed_on {
        bench.before = bench.kernel().last_generation();
        return Some(bench);
    }
    let mut bench = bench_with(name, |_| {})?;
    bench.common = true;
    Some(bench)
}

pub fn bench_with(name: &str, change: impl FnOnce(&mut KernelConfig)) -> Option<Bench> {
    if let Some(reason) = unable() {
        eprintln!("SKIPPED {name}: {reason}");
        return None;
    }
    // Programs of several tests at once would slow each other and fill each other's rings.
    let turn = File::create(std::env::temp_dir().join("sumun-kernel-tests.lock")).unwrap();
    let turn = Flock::lock(turn, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = KernelConfig {
        directory: format!("sumun-test-{name}-{}", std::process::id()),
        lock: LockPlace::File(dir.path().join("lock")),
        ..KernelConfig::default()
    };
    change(&mut config);
    let kernel = Kernel::load(&config).unwrap_or_else(|error| panic!("{error}: {error:?}"));
    let mut bench = Bench {
        kernel: Some(kernel),
        config,
        before: 0,
        common: false,
        turn: Some(turn),
        dir: Some(dir),
    };
    bench.kernel().attach().unwrap();
    for hook in bench.kernel().hooks() {
        assert!(hook.available, "{}: {:?}", hook.hook, hook.reason);
    }
    Some(bench)
}

impl Drop for Bench {
    fn drop(&mut self) {
        if self.common
            && shares()
            && !std::thread::panicking()
            && let Some(kernel) = self.kernel.take()
        {
            let mut next = Bench {
                kernel: Some(kernel),
                config: self.config.clone(),
                before: 0,
                common: true,
                turn: self.turn.take(),
                dir: self.dir.take(),
            };
            next.clear();
            *SHARED.lock().unwrap_or_else(PoisonError::into_inner) = Some(next);
            return;
        }
        let released = match self.kernel.take() {
            Some(kernel) => kernel.release(),
            None => sumun_agent::kernel::release(&self.config).map(drop),
        };
        if let Err(error) = released
            && !std::thread::panicking()
        {
            panic!("the pins are left behind: {error:?}");
        }
    }
}

/// A record with its strings, owned.
#[derive(Clone, Debug)]
pub struct Seen {
    pub bytes: Vec<u8>,
    pub body: Body,
}

impl Seen {
    pub fn text(&self, span: Span) -> String {
        String::from_utf8_lossy(Record::parse(&self.bytes).unwrap().text(span)).into_owned()
    }

    pub fn actor(&self) -> Actor {
        self.body.actor()
    }
}

impl Bench {
    /// Ends the agent as a signal would: pins and programs stay.
    pub fn quit(&mut self) {
        self.common = false;
        drop(self.kernel.take());
    }

    pub fn kernel(&mut self) -> &mut Kernel {
        self.kernel.as_mut().unwrap()
    }

    /// The n-th generation of this test's filters: verdicts are kept by generation, and a kernel side
    /// may have had filters of other tests.
    pub fn generation(&self, n: u32) -> u32 {
        self.before + n
    }

    /// Asks for nothing, and kills nobody, any more.
    fn clear(&mut self) {
        let generation = self.kernel().last_generation() + 1;
        let widened = self.kernel().set_filter(&Plan::default(), generation);
        assert_eq!(widened.unwrap(), []);
        self.kernel().hold_until(0).unwrap();
        drop(self.settle());
    }

    /// Everything that is in both rings now; given up.
    pub fn drain(&mut self) -> Vec<Seen> {
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
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&[Seen]) -> bool) -> Vec<Seen> {
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
    pub fn ask(&mut self, kinds: &[Kind]) {
        let plan = Plan {
            kinds: kinds.iter().map(|kind| (*kind, KindPlan::All)).collect(),
            ..Plan::default()
        };
        let generation = self.kernel().last_generation() + 1;
        self.kernel().set_filter(&plan, generation).unwrap();
        drop(self.settle());
    }

    /// All records up to the exit of a process that is started now: what happened before is in.
    pub fn settle(&mut self) -> Vec<Seen> {
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
