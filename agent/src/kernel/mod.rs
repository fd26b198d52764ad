//! The kernel boundary: load, resolve offsets, attach, pin, filter, read.
//!
//! The only module of the agent with unsafe code, each use with its reason. Everything
//! here blocks and knows no runtime.

mod btf;
pub mod canary;
mod cast;
pub mod cgroup;
mod cgroup_root;
mod doors;
mod error;
pub mod fanotify;
mod filter;
pub mod folder;
pub mod handles;
pub mod heap;
mod hooks;
mod hunt;
pub mod isolate;
mod kills;
pub mod known;
mod links;
mod lock;
pub mod memory;
pub mod pidfd;
mod pins;
mod points;
mod probe;
pub mod resident;
pub mod rights;
mod ring;
mod rings;
mod sharers;
mod slots;
mod sockets;
pub mod stat;
mod streams;
pub mod symbols;
pub mod syscalls;
pub mod tasks;
mod trie;
mod tries;
mod verdicts;
mod verifier;
mod writers;

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, PerCpuArray, ProgramArray},
    programs::{BtfTracePoint, ProgramError, links::FdLink},
};
use sha2::{Digest, Sha256};
use sumun_abi::{loss::Stream, policy::Filter, record::LEVELS};

pub use self::{
    doors::DoorStatus,
    error::Error,
    filter::Swapped,
    hooks::HookStatus,
    hunt::{Hunt, Kin},
    kills::{KillStatus, Trial},
    lock::LockPlace,
    points::PointStatus,
    probe::{Feature, ProbeReport, probe},
    ring::{Drain, Ring},
    sharers::SharersSource,
    streams::StreamId,
    verdicts::{Known, Seed},
    writers::Forgotten,
};
use self::{hooks::HOOKS, pins::Pins, slots::Slots, symbols::Symbols};

/// The kernel side, built by `build.rs`. ELF wants eight-byte alignment.
static OBJECT: &Aligned<[u8]> = &Aligned {
    _align: [],
    bytes: *include_bytes!(concat!(env!("OUT_DIR"), "/sumun-ebpf.o")),
};

#[repr(C)]
struct Aligned<B: ?Sized> {
    _align: [u64; 0],
    bytes: B,
}

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Where and how large.
#[derive(Clone, Debug)]
pub struct KernelConfig {
    /// The BPF filesystem; mounted if it is not.
    pub bpffs: PathBuf,
    /// Directory in it; the ABI version is added.
    pub directory: String,
    /// Where the lock is that keeps a second agent away.
    pub lock: LockPlace,
    /// Data bytes of the ring of process life; a power of two of at least a page.
    pub life_bytes: u32,
    /// Data bytes of the ring of file and network records.
    pub bulk_bytes: u32,
    /// Whether decision points are used where the kernel has them.
    pub points: bool,
    /// Maps by their names that are to have other entries than as they are declared: for tests of what comes of a full one.
    pub entries: Vec<(&'static str, u32)>,
}

impl Default for KernelConfig {
    fn default() -> Self {
        KernelConfig {
            bpffs: "/sys/fs/bpf".into(),
            directory: "sumun".into(),
            lock: LockPlace::Kernel,
            life_bytes: 8 * 1024 * 1024,
            bulk_bytes: 16 * 1024 * 1024,
            points: true,
            entries: Vec::new(),
        }
    }
}

/// A type of `sumun_abi` as the value of a map.
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
struct Of<T>(T);

#[expect(unsafe_code, reason = "aya wants to know that a value is plain data")]
// SAFETY: `repr(C)`, integers only, without implicit padding (sizes are asserted in the abi).
unsafe impl aya::Pod for Of<Stream> {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl aya::Pod for Of<Filter> {}

/// Contents of the pinned map `META`: hash of the layout of all maps, then the
/// number that names this set of pins.
type Meta = [u64; 8];

/// The loaded kernel side.
pub struct Kernel {
    ebpf: Ebpf,
    /// The kernel's types, parsed: some 25 MiB, so only until the programs are loaded.
    btf: Option<aya::Btf>,
    slots: Slots,
    /// Or why there are none.
    symbols: Result<Symbols, String>,
    pins: Pins,
    active: u32,
    generation: u64,
    reused: bool,
    hooks: Vec<HookStatus>,
    streams: PerCpuArray<MapData, Of<Stream>>,
    busy: PerCpuArray<MapData, [u64; LEVELS as usize]>,
    /// The doors that were asked how often they were left out, by their programs.
    doors: HashMap<&'static str, streams::Door>,
    control: Array<MapData, u64>,
    maps: filter::Maps,
    verdicts: verdicts::Maps,
    /// What can make calls fail.
    deny: doors::State,
    /// Kinds of which the active rules want the doors, by their places.
    denied: u32,
    /// How the kernel kills, as it was tried.
    kills: Vec<KillStatus>,
    /// What sees decisions.
    points: points::State,
    /// Who writes files.
    writers: writers::State,
    /// Programs at decision points that this agent has attached.
    points_open: Vec<&'static str>,
    rings: rings::State,
    /// True once this agent's programs are the active ones.
    attached: bool,
    /// True if the filter asks for what a call's entry shows.
    entries: bool,
    cgroup_controller: &'static str,
    life_bytes: u32,
    /// Process life.
    pub life: Ring,
    /// File and network records.
    pub bulk: Ring,
    // Last, so that it is given back after everything else.
    _lock: lock::Lock,
}

impl Kernel {
    /// Takes the lock, resolves offsets and loads the object. Takes over the pins
    /// of an agent that died, with what it had not read, if they fit.
    ///
    /// # Errors
    /// Another agent runs, rights or BTF are missing, or the object is refused.
    pub fn load(config: &KernelConfig) -> Result<Self, Error> {
        let btf_bytes = fs::read(BTF).map_err(|source| Error::NoBtf {
            path: BTF.into(),
            source,
        })?;
        let kallsyms = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
        let mut slots = Slots::resolve(&btf_bytes, &kallsyms)?;
        let symbols = Symbols::parse(&kallsyms);
        drop((btf_bytes, kallsyms));

        let missing = probe::missing_capabilities();
        if !missing.is_empty() {
            return Err(Error::NotPermitted(missing));
        }
        raise_memlock();
        let lock = lock::take(&config.lock)?;
        let layout = layout(config)?;
        let pins = Pins::open(&config.bpffs, &config.directory, layout.0[0])?;
        let (generation, reused) = adopt(&pins, &layout)?;

        let btf = aya::Btf::from_sys_fs().map_err(Error::BtfLoad)?;
        let (cgroup, cgroup_controller) = cgroup_index(&slots);
        let hierarchy = cgroup::hierarchy(cgroup_controller).unwrap_or_else(|error| {
            tracing::warn!(%error, "cgroups that come and go are not seen: events do not say whose they are");
            u32::MAX
        });
        let compat_mask = COMPAT_MASK;
        let syscalls = syscalls::table();
        let object = cast::Completed::new(&OBJECT.bytes, &mut slots);
        let mut loader = EbpfLoader::new();
        for (map, entries) in &config.entries {
            loader.map_max_entries(map, *entries);
        }
        let mut ebpf = loader
            .btf(Some(&btf))
            .default_map_pin_directory(pins.root())
            .map_max_entries("LIFE", config.life_bytes)
            .map_max_entries("BULK", config.bulk_bytes)
            .override_global("OFFSETS", &slots.values[..], true)
            .override_global("SYMBOLS", &slots.symbols[..], true)
            .override_global("SYSCALLS", &syscalls[..], true)
            .override_global("COMPAT_MASK", &compat_mask, true)
            .override_global("CGROUP_INDEX", &cgroup, true)
            .override_global("CGROUP_HIERARCHY", &hierarchy, true)
            .load(object.bytes())
            .map_err(|error| Error::Load(Box::new(error)))?;

        let life = open_ring(&ebpf, "LIFE", config.life_bytes)?;
        let bulk = open_ring(&ebpf, "BULK", config.bulk_bytes)?;
        let streams = take(&mut ebpf, "STREAMS")?;
        let busy = take(&mut ebpf, "BUSY")?;
        let control: Array<MapData, u64> = take(&mut ebpf, "CONTROL")?;
        let active = control.get(&0, 0).map_err(Error::map("read", "CONTROL"))? as u32 & 1;
        let maps = filter::Maps {
            filters: take(&mut ebpf, "FILTERS")?,
            matches: take(&mut ebpf, "MATCH")?,
        };
        let verdicts = verdicts::Maps {
            plans: take(&mut ebpf, "VERDICTS")?,
            lineage: take(&mut ebpf, "LINEAGE")?,
            seeds: take(&mut ebpf, "SEEDS")?,
            scopes: take(&mut ebpf, "SCOPES")?,
            guard: take(&mut ebpf, "GUARD")?,
            lease: take(&mut ebpf, "LEASE")?,
        };
        let deny = doors::State::new(take(&mut ebpf, "CANARY")?);
        let kept = (take(&mut ebpf, "KNOWN")?, take(&mut ebpf, "OPENED")?);
        let points = points::State::new(kept, take(&mut ebpf, "POINTS")?, config.points);
        let writers = writers::State::new(take(&mut ebpf, "WATCHED")?);
        let filter = maps
            .filters
            .get(&active, 0)
            .map_err(Error::map("read", "FILTERS"))?;
        let plan = verdicts.plans.get(&active, 0);
        let plan = plan.map_err(Error::map("read", "VERDICTS"))?;
        let denied = doors::wanted(&filter.0, &plan.0);
        let entries = filter.0.entry_actions != 0;
        let mut kernel = Kernel {
            ebpf,
            btf: Some(btf),
            slots,
            symbols,
            pins,
            active,
            generation,
            reused,
            hooks: Vec::new(),
            streams,
            busy,
            doors: HashMap::new(),
            control,
            maps,
            verdicts,
            deny,
            denied,
            kills: Vec::new(),
            points,
            writers,
            points_open: Vec::new(),
            rings: rings::State::default(),
            attached: false,
            entries,
            cgroup_controller,
            life_bytes: config.life_bytes,
            life,
            bulk,
            _lock: lock,
        };
        kernel.adopt_writers(&filter.0);
        Ok(kernel)
    }

    /// Puts this agent's programs behind the doors, attaches the doors that are not
    /// attached yet, and makes the filter the active one. A previous agent's
    /// program at a door is replaced in one write: no event is seen twice or by none.
    ///
    /// # Errors
    /// A map or a pin cannot be written. A hook that this kernel refuses is no error:
    /// see [`Kernel::hooks`].
    pub fn attach(&mut self) -> Result<(), Error> {
        let btf = self.take_btf()?;
        let prepared: Vec<_> = HOOKS
            .iter()
            .map(|hook| (!self.lacks(hook)).then(|| self.prepare(hook, &btf)))
            .collect();
        // A refusal is told by `bootstrap_tasks`, which tries again.
        let _ = self.load_tasks(&btf);
        if let Err(reason) = self.pin_sharers(&btf) {
            tracing::warn!(
                reason,
                "processes that share the open files of one that a rule has killed will not be found"
            );
        }
        if let Err(reason) = self.pin_memory(&btf) {
            tracing::warn!(
                reason,
                "whether the kernel's tables of functions lead elsewhere cannot be looked at"
            );
        }
        drop(btf);
        self.hooks = HOOKS
            .iter()
            .zip(prepared)
            .map(|(hook, prepared)| {
                let Some(prepared) = prepared else {
                    return status_of(hook, Ok(()));
                };
                let attached = prepared.and_then(|()| {
                    self.install(hook)?;
                    if hook.on_demand {
                        Ok(())
                    } else {
                        self.attach_door(hook)
                    }
                });
                if attached.is_err() {
                    self.vacate(hook);
                }
                self.verified(hook, status_of(hook, attached))
            })
            .collect();
        let filter = self
            .maps
            .filters
            .get(&self.active, 0)
            .map_err(Error::map("read", "FILTERS"))?;
        let sockets = self.attach_sockets(&filter.0);
        self.hooks.extend(sockets);
        if self.entries {
            self.attach_on_demand()?;
        } else {
            self.pins.remove_link(hooks::SYS_ENTER)?;
        }
        self.open_what_can_be(self.denied);
        let known = filter.0.known;
        self.open_points(known);
        self.hooks.extend(self.hooks_of_doors());
        self.switch(self.active)?;
        self.close_doors(self.denied)?;
        self.close_points(known)?;
        self.attached = true;
        // What the plan of a previous agent has left.
        self.forget_lineage()?;
        Ok(())
    }

    /// What became of each hook.
    #[must_use]
    pub fn hooks(&self) -> &[HookStatus] {
        &self.hooks
    }

    /// Adds what sees a kind without a hook, after [`Kernel::attach`].
    pub fn note(&mut self, status: HookStatus) {
        self.hooks.push(status);
    }

    /// What the kernel's verifier walked through before it took each program that is loaded, in instructions by the
    /// program's name; told from 5.16 on.
    #[must_use]
    pub fn instructions(&self) -> Vec<(String, u64)> {
        let loaded = self.ebpf.programs().filter_map(|(name, program)| {
            let count = program.info().ok()?.verified_instruction_count()?;
            Some((name.to_owned(), u64::from(count)))
        });
        loaded.collect()
    }

    /// Number of possible CPUs: those that streams are kept for.
    ///
    /// # Errors
    /// `/sys` does not say.
    pub fn cpus(&self) -> Result<u32, Error> {
        aya::util::nr_cpus()
            .map(|cpus| cpus as u32)
            .map_err(|(path, source)| Error::File {
                op: "read",
                path: path.into(),
                source,
            })
    }

    /// The v1 controller whose hierarchy names processes' cgroups, or `unified`.
    #[must_use]
    pub fn cgroup_controller(&self) -> &'static str {
        self.cgroup_controller
    }

    /// Random number made with the maps: sequences are comparable only under one.
    #[must_use]
    pub fn pin_generation(&self) -> u64 {
        self.generation
    }

    /// True if the maps of a previous agent were taken over.
    #[must_use]
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// Detaches everything and removes the pins.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn release(self) -> Result<(), Error> {
        self.pins.remove().map(drop)
    }

    /// Detaches what agents with other maps have left, whose rules were in force until now; what they had not read is given up
    /// with it. To be called once the rules of this one are in force: attached, with a lease. Whatever of it fails, the rest is done.
    ///
    /// # Errors
    /// A pin cannot be removed, the first one. What is left is in force until its lease is over, and the next agent tries again.
    pub fn retire_others(&mut self) -> (Vec<Retired>, Result<(), Error>) {
        let mut done = self.pins.be_whole();
        let others = match self.pins.others() {
            Ok(others) => others,
            Err(error) => return (Vec::new(), done.and(Err(error))),
        };
        let mut given_up = Vec::new();
        let mut left = Vec::with_capacity(others.len());
        for other in others {
            // What is open goes on holding what its programs write until they are detached.
            let rings = ["LIFE", "BULK"].map(|name| open_left(&other.map(name)));
            match other.remove_links() {
                Ok(links) => given_up.extend(links),
                Err(error) => done = done.and(Err(error)),
            }
            left.push((other, rings));
        }
        if !links::wait_for_programs(&given_up) {
            done = done.and(Err(Error::Held(links::DETACH_DEADLINE)));
        }
        let mut retired = Vec::with_capacity(left.len());
        for (other, rings) in left {
            retired.push(Retired {
                unread: rings.map(|ring| ring.map(count_unread)),
            });
            done = done.and(other.remove().map(drop));
        }
        (retired, done)
    }

    /// Makes filter `index` the active one.
    fn switch(&mut self, index: u32) -> Result<(), Error> {
        self.control
            .set(0, u64::from(index), 0)
            .map_err(Error::map("write", "CONTROL"))?;
        self.active = index;
        Ok(())
    }

    /// The kernel's types: those that loading the object has left, else read again.
    fn take_btf(&mut self) -> Result<aya::Btf, Error> {
        match self.btf.take() {
            Some(btf) => Ok(btf),
            None => aya::Btf::from_sys_fs().map_err(Error::BtfLoad),
        }
    }

    /// True if this kernel has nothing that the hook could tell.
    fn lacks(&self, hook: &hooks::Hook) -> bool {
        hook.can_lack
            .is_some_and(|slot| self.slots.values[slot] == sumun_abi::slot::NONE)
    }

    /// Loads a hook's two programs, if this kernel has what they read.
    fn prepare(&mut self, hook: &hooks::Hook, btf: &aya::Btf) -> Result<(), String> {
        let missing = self.slots.missing(hook.required);
        if !missing.is_empty() {
            return Err(format!("this kernel has no {}", missing.join(", ")));
        }
        for name in [hook.program, hook.door] {
            let program = tracepoint(&mut self.ebpf, name)?;
            // Loaded by an earlier `attach`.
            if program.fd().is_ok() {
                continue;
            }
            verifier::load(|| program.load(hook.tracepoint, btf)).map_err(|error| {
                format!("the kernel refuses the program {name}: {}", chain(&error))
            })?;
        }
        Ok(())
    }

    /// The status, with what the verifier had to do for the hook.
    fn verified(&mut self, hook: &hooks::Hook, status: HookStatus) -> HookStatus {
        let count = |program: &mut BtfTracePoint| {
            let info = program.info().ok()?;
            info.verified_instruction_count().map(u64::from)
        };
        let counts = [hook.program, hook.door]
            .map(|name| tracepoint(&mut self.ebpf, name).ok().and_then(count));
        HookStatus {
            verified_instructions: counts.into_iter().sum(),
            ..status
        }
    }

    /// Puts a hook's program behind its door.
    fn install(&mut self, hook: &hooks::Hook) -> Result<(), String> {
        let failed = |error: &dyn std::error::Error| {
            format!(
                "cannot put the program behind {}: {}",
                hook.door,
                chain(error)
            )
        };
        let program = tracepoint(&mut self.ebpf, hook.program)?;
        let fd = program.fd().map_err(|error| failed(&error))?;
        let fd = fd.try_clone().map_err(|error| failed(&error))?;
        self.behind(hook)?
            .set(0, &fd, 0)
            .map_err(|error| failed(&error))
    }

    /// Leaves nothing behind a door: not a previous agent's program, either.
    fn vacate(&mut self, hook: &hooks::Hook) {
        if let Ok(mut map) = self.behind(hook) {
            // An error says that it was empty.
            let _ = map.clear_index(&0);
        }
    }

    fn behind(&mut self, hook: &hooks::Hook) -> Result<ProgramArray<&mut MapData>, String> {
        program_array(&mut self.ebpf, hook.behind)
    }

    /// Attaches a hook's door, unless a previous agent has.
    fn attach_door(&mut self, hook: &hooks::Hook) -> Result<(), String> {
        let path = self.pins.link(hook.program);
        if path.exists() {
            return Ok(());
        }
        let door = self.pins.door(hook.program);
        self.pins.wait_for_end(hook.program);
        let program = tracepoint(&mut self.ebpf, hook.door)?;
        let begun = Instant::now();
        let id = loop {
            match program.attach() {
                Ok(id) => break id,
                // Some kernels (5.10) let go of a removed link only after a while.
                Err(ProgramError::SyscallError(error))
                    if error.io_error.kind() == io::ErrorKind::AlreadyExists
                        && begun.elapsed() < links::DETACH_DEADLINE =>
                {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(format!("cannot attach: {}", chain(&error))),
            }
        };
        let link = program
            .take_link(id)
            .map_err(|error| format!("cannot attach: {}", chain(&error)))?;
        if door.exists() {
            fs::remove_file(&door)
                .map_err(|error| format!("cannot remove {}: {error}", door.display()))?;
        }
        program
            .pin(door)
            .map_err(|error| format!("cannot pin the program: {}", chain(&error)))?;
        FdLink::from(link)
            .pin(path)
            .map_err(|error| format!("cannot pin its link: {}", chain(&error)))?;
        Ok(())
    }
}

fn program_array<'a>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<ProgramArray<&'a mut MapData>, String> {
    let map = ebpf
        .map_mut(name)
        .ok_or_else(|| format!("the object has no map {name}"))?;
    ProgramArray::try_from(map).map_err(|error| chain(&error))
}

fn status_of(hook: &hooks::Hook, tried: Result<(), String>) -> HookStatus {
    HookStatus {
        hook: hook.program,
        kinds: hook.kinds.to_vec(),
        available: tried.is_ok(),
        reason: tried.err(),
        verified_instructions: None,
    }
}

/// Removes what a dead agent left: pins, and with them programs and enforcement, which are gone when this returns. True
/// if there was anything.
///
/// # Errors
/// An agent runs, a pin cannot be removed, or somebody else holds the programs.
pub fn release(config: &KernelConfig) -> Result<bool, Error> {
    let _lock = lock::take(&config.lock)?;
    Pins::remove_left(&config.bpffs, &config.directory)
}

/// The message of an error and of what caused it; aya's verifier errors hold the log's end.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    // The verifier explains itself at the end of a log that can be a megabyte long.
    let tail = text.char_indices().rev().nth(2000).map_or(0, |(at, _)| at);
    if tail > 0 {
        format!("…{}", &text[tail..])
    } else {
        text
    }
}

fn tracepoint<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint, String> {
    ebpf.program_mut(name)
        .ok_or_else(|| format!("the object has no program {name}"))?
        .try_into()
        .map_err(|error| chain(&error))
}

fn take<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, Error>
where
    M: TryFrom<Map, Error = aya::maps::MapError>,
{
    let map = ebpf.take_map(name).ok_or(Error::Absent(name))?;
    M::try_from(map).map_err(Error::map("open", name))
}

fn open_ring(ebpf: &Ebpf, name: &'static str, size: u32) -> Result<Ring, Error> {
    match ebpf.map(name) {
        Some(Map::RingBuf(data)) => {
            let fd = std::os::fd::AsFd::as_fd(data.fd())
                .try_clone_to_owned()
                .map_err(Error::call("duplicate the ring's descriptor"))?;
            Ring::new(fd, size).map_err(Error::call("map the ring"))
        }
        _ => Err(Error::Absent(name)),
    }
}

/// What an agent with other maps has left, and is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retired {
    /// Records that it had not read, of process life and of the rest; `None` if they could not be counted.
    pub unread: [Option<u64>; 2],
}

/// A ring of another layout. How long records are is said by the kernel itself, so they can be counted.
fn open_left(path: &Path) -> Option<Ring> {
    let data = MapData::from_pin(path).ok()?;
    let size = data.info().ok()?.max_entries();
    let fd = std::os::fd::AsFd::as_fd(data.fd())
        .try_clone_to_owned()
        .ok()?;
    Ring::new(fd, size).ok()
}

fn count_unread(mut ring: Ring) -> u64 {
    let mut drain = ring.drain(u64::MAX);
    let mut count = 0;
    while drain.next().is_some() {
        count += 1;
    }
    count
}

/// Takes over pinned maps if they have the layout of ours, else begins anew beside those that have another. The number
/// that names the set, and whether it was there.
fn adopt(pins: &Pins, (layout, maps): &([u64; 4], Vec<String>)) -> Result<(u64, bool), Error> {
    let path = pins.map("META");
    // A set that is not whole was being made or removed when an agent ended. So was one beside another, if its rules were never
    // in force: the other's are.
    if (pins.is_whole() || pins.others()?.is_empty())
        && path.exists()
        && maps.iter().all(|name| pins.map(name).exists())
        && let Ok(data) = MapData::from_pin(&path)
        && let Ok(map) = Array::<MapData, Meta>::try_from(Map::Array(data))
        && let Ok(meta) = map.get(&0, 0)
        && meta[..4] == *layout
    {
        return Ok((meta[4], true));
    }
    pins.clear()?;
    let generation = rand::random();
    let mut meta = Meta::default();
    meta[..4].copy_from_slice(layout);
    meta[4] = generation;
    let mut map = Array::<MapData, Meta>::create(1, 0).map_err(Error::map("create", "META"))?;
    map.set(0, meta, 0).map_err(Error::map("write", "META"))?;
    map.pin(&path).map_err(|source| Error::Map {
        op: "pin",
        map: "META",
        source: Box::new(aya::maps::MapError::PinError {
            name: None,
            error: source,
        }),
    })?;
    Ok((generation, false))
}

/// Hash over what all pinned maps look like, and their names.
fn layout(config: &KernelConfig) -> Result<([u64; 4], Vec<String>), Error> {
    let object = aya_obj::Object::parse(&OBJECT.bytes)
        .map_err(|error| Error::Load(Box::new(aya::EbpfError::ParseError(error))))?;
    let mut maps: Vec<_> = object
        .maps
        .iter()
        .filter(|(_, map)| map.pinning() == aya_obj::maps::PinningType::ByName)
        .map(|(name, map)| {
            (
                name,
                map.map_type(),
                map.key_size(),
                map.value_size(),
                map.max_entries(),
                map.map_flags(),
            )
        })
        .collect();
    maps.sort_unstable();
    let mut hash = Sha256::new();
    hash.update(format!(
        "{maps:?} {} {} {:?}",
        config.life_bytes, config.bulk_bytes, config.entries
    ));
    let digest = hash.finalize();
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(digest.chunks_exact(8)) {
        *word = bytes
            .iter()
            .fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    let names = maps.iter().map(|map| map.0.clone()).collect();
    Ok((words, names))
}

/// Which hierarchy names a process's cgroup, by its place in `css_set.subsys`.
fn cgroup_index(slots: &Slots) -> (u32, &'static str) {
    use sumun_abi::slot;
    let controller = cgroup::controller();
    let index = match controller {
        "pids" => slots.values[slot::CGROUP_PIDS],
        "memory" => slots.values[slot::CGROUP_MEMORY],
        _ => slot::NONE,
    };
    (index, controller)
}

/// Before 5.11 maps count as locked memory. Where the limit cannot be raised creating a map
/// says so; later kernels do not care.
fn raise_memlock() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}

/// `TS_COMPAT` in `thread_info.status`, arch/x86/include/asm/thread_info.h.
#[cfg(target_arch = "x86_64")]
const COMPAT_MASK: u32 = 2;
/// `_TIF_32BIT` in `thread_info.flags`, arch/arm64/include/asm/thread_info.h.
#[cfg(target_arch = "aarch64")]
const COMPAT_MASK: u32 = 1 << 22;
