//! Cutting the host off: the programs that keep packets back, what passes them, and how they are tried.
//!
//! The programs are attached only while the host is cut off, and pinned then: it stays so without an agent, until the lease of
//! the rules is over, its time is, or it is ended.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    maps::{Array, MapData, PerCpuArray, PerCpuValues},
    programs::Program,
};
use sumun_abi::isolate::{self, Allowed, Isolation};

use super::{
    Error, Kernel, Of, cgroup_root, cgroup_root::host_root, chain, program_array, sockets::load,
    take,
};

#[expect(unsafe_code, reason = "aya wants to know that a value is plain data")]
// SAFETY: `repr(C)`, integers only, without implicit padding (size asserted in the abi).
unsafe impl aya::Pod for Of<Isolation> {}

/// A program that keeps packets back.
struct Hook {
    program: &'static str,
    door: &'static str,
    behind: &'static str,
    /// `enum bpf_attach_type`, include/uapi/linux/bpf.h.
    attach_type: u32,
}

const HOOKS: [Hook; 2] = [
    Hook {
        program: "isolate_out",
        door: "door_isolate_out",
        behind: "AT_ISOLATE_OUT",
        attach_type: 1,
    },
    Hook {
        program: "isolate_in",
        door: "door_isolate_in",
        behind: "AT_ISOLATE_IN",
        attach_type: 0,
    },
];

/// How long a datagram that is kept back is waited for.
const PATIENCE: Duration = Duration::from_millis(100);

/// What cuts the host off. It acts by itself, so that whoever judges an event can do it at once.
pub struct Isolator {
    states: Array<MapData, u64>,
    plans: Array<MapData, Of<Isolation>>,
    dropped: PerCpuArray<MapData, u64>,
    /// The programs that are attached, in the order of `HOOKS`; or why they cannot be loaded.
    doors: Result<Vec<OwnedFd>, String>,
    /// Of their links.
    pins: [PathBuf; HOOKS.len()],
    /// The cgroup whose sockets are cut off, below the root of all.
    cgroup: PathBuf,
    /// Inode number of the one that the programs were attached to by this agent.
    attached_to: Option<u64>,
}

/// Packets that were kept back since the programs were attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// That were sent.
    pub sent: u64,
    /// That came in.
    pub received: u64,
}

impl Kernel {
    /// Takes what cuts the host off, for the sockets of this cgroup and those below it; `/` is the whole host. If the host is cut
    /// off from before, this agent's programs take over.
    ///
    /// # Errors
    /// Its maps were taken before. A kernel that does not load the programs is no error: see [`Isolator::try_out`].
    pub fn isolator(&mut self, cgroup: &Path) -> Result<Isolator, Error> {
        let doors = self.isolation_doors();
        Ok(Isolator {
            states: take(&mut self.ebpf, "ISOLATING")?,
            plans: take(&mut self.ebpf, "ISOLATION")?,
            dropped: take(&mut self.ebpf, "DROPPED")?,
            doors,
            pins: HOOKS.each_ref().map(|hook| self.pins.link(hook.program)),
            cgroup: cgroup.to_owned(),
            attached_to: None,
        })
    }

    fn isolation_doors(&mut self) -> Result<Vec<OwnedFd>, String> {
        let mut doors = Vec::with_capacity(HOOKS.len());
        for hook in &HOOKS {
            let mut fds = Vec::with_capacity(2);
            for name in [hook.program, hook.door] {
                let program = self
                    .ebpf
                    .program_mut(name)
                    .ok_or_else(|| format!("the object has no program {name}"))?;
                load(program)
                    .map_err(|error| format!("the kernel refuses the program {name}: {error}"))?;
                let Program::CgroupSkb(program) = program else {
                    return Err(format!("{name} is of another type"));
                };
                let fd = program.fd().and_then(|fd| Ok(fd.try_clone()?));
                fds.push(fd.map_err(|error| chain(&error))?);
            }
            let [program, door] = &fds[..] else {
                return Err(format!("{} has no two programs", hook.program));
            };
            program_array(&mut self.ebpf, hook.behind)?
                .set(0, program, 0)
                .map_err(|error| {
                    format!(
                        "cannot put the program behind {}: {}",
                        hook.door,
                        chain(&error)
                    )
                })?;
            let door = door.as_fd().try_clone_to_owned();
            doors.push(door.map_err(|error| format!("cannot keep {}: {error}", hook.door))?);
        }
        Ok(doors)
    }
}

impl Isolator {
    /// Finds out whether the host can be cut off: a datagram of the agent's own on loopback has to be kept back on its way out and
    /// on its way in, and to arrive before and after. Nothing else is kept back meanwhile.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn try_out(&mut self) -> Result<(), String> {
        if self.is_attached() {
            // It is in force; with a cgroup of its own the agent's datagrams would not pass there.
            return Ok(());
        }
        let root = host_root()?;
        self.open_cgroup(&root)?;
        self.set_state(isolate::STATE, 0)?;
        let _links = self.attach(&root)?;
        let tried = self.prove();
        self.set_state(isolate::CANARY, 0)?;
        tried
    }

    fn prove(&mut self) -> Result<(), String> {
        let failed = |error: io::Error| format!("cannot make a socket to try it on: {error}");
        let made = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        let (from, to) = (made().map_err(failed)?, made().map_err(failed)?);
        to.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        let address = to.local_addr().map_err(failed)?;
        let ports = (from.local_addr().map_err(failed)?.port(), address.port());
        let mut buffer = [0; 8];
        let mut arrives = |text: &[u8]| match to.recv(&mut buffer) {
            Ok(length) => buffer[..length] == *text,
            Err(_) => false,
        };
        let sent = |text: &[u8]| from.send_to(text, address).map(drop);
        let first = sent(b"1").is_ok() && arrives(b"1");
        self.set_state(isolate::CANARY, isolate::canary(false, ports.0, ports.1))?;
        let out = sent(b"2");
        self.set_state(isolate::CANARY, isolate::canary(true, ports.0, ports.1))?;
        let came_in = sent(b"3").is_ok() && arrives(b"3");
        self.set_state(isolate::CANARY, 0)?;
        let last = sent(b"4").is_ok() && arrives(b"4");
        if !first || !last {
            return Err("it cannot be tried, as a datagram of the agent does not arrive on loopback without it, either".to_owned());
        }
        match out {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            Err(error) => {
                return Err(format!(
                    "attached without effect: a datagram that it keeps back ended otherwise: {error}"
                ));
            }
            Ok(()) => {
                return Err(
                    "attached without effect: a datagram that it keeps back went out".to_owned(),
                );
            }
        }
        match came_in {
            true => {
                Err("attached without effect: a datagram that it keeps back came in".to_owned())
            }
            false => Ok(()),
        }
    }

    /// True if packets are kept back, or were until their time was over.
    #[must_use]
    pub fn is_in_force(&self) -> bool {
        self.state() != 0 && self.is_attached() && !self.is_another()
    }

    /// True if the maps say that packets are to be kept back, by whichever programs.
    #[must_use]
    pub fn keeps_back(&self) -> bool {
        self.state() != 0
    }

    /// Keeps back everything but what is listed, until a boot time (0: without an end). Over what was in force the list changes
    /// in one write.
    ///
    /// # Errors
    /// The list is too long, or the programs cannot be attached; then nothing has changed.
    pub fn isolate(&mut self, list: &[Allowed], until_ns: u64) -> Result<(), String> {
        let mut plan = Isolation {
            until_ns,
            count: u32::try_from(list.len()).unwrap_or(u32::MAX),
            ..Isolation::default()
        };
        plan.list
            .get_mut(..list.len())
            .ok_or_else(|| format!("{} entries are too many", list.len()))?
            .copy_from_slice(list);
        let place = u32::from(self.state() == 1);
        self.plans
            .set(place, Of(plan), 0)
            .map_err(|error| format!("cannot write the map ISOLATION: {}", chain(&error)))?;
        let began = !self.is_attached();
        if began {
            // Until both are there, neither does anything; and what was kept back before is another isolation's.
            self.set_state(isolate::STATE, 0)?;
            self.forget_dropped();
        }
        if began || self.is_another() {
            let root = host_root()?;
            let cgroup = self.open_cgroup(&root)?;
            let links = self.attach(&cgroup)?;
            for (link, pin) in links.iter().zip(&self.pins) {
                // One that is left alone would be half of it.
                let _ = fs::remove_file(pin);
                if let Err(error) = cgroup_root::pin(link, pin) {
                    self.detach()?;
                    return Err(format!("cannot pin a link: {error}"));
                }
            }
            self.attached_to = cgroup.metadata().ok().map(|found| found.ino());
        }
        self.set_state(isolate::STATE, u64::from(place) + 1)
    }

    /// Lets everything pass, and detaches the programs.
    ///
    /// # Errors
    /// A map cannot be written, or a pin not be removed.
    pub fn end(&mut self) -> Result<(), String> {
        self.set_state(isolate::STATE, 0)?;
        self.detach()
    }

    /// What was kept back.
    #[must_use]
    pub fn dropped(&self) -> Dropped {
        let of = |way: u32| {
            self.dropped
                .get(&way, 0)
                .map_or(0, |counts| counts.iter().sum())
        };
        Dropped {
            sent: of(isolate::dropped::OUT),
            received: of(isolate::dropped::IN),
        }
    }

    fn is_attached(&self) -> bool {
        self.pins.iter().all(|pin| pin.exists())
    }

    /// True if this agent has not attached its programs to the cgroup that is asked for: an agent before it did, to which one is not
    /// known, or that cgroup was removed and made again, and the kernel has let go of them.
    fn is_another(&self) -> bool {
        let now = host_root().and_then(|root| self.open_cgroup(&root));
        let ino = now
            .ok()
            .and_then(|cgroup| Some(cgroup.metadata().ok()?.ino()));
        ino != self.attached_to
    }

    fn forget_dropped(&mut self) {
        let cpus = aya::util::nr_cpus().unwrap_or_default();
        for way in [isolate::dropped::OUT, isolate::dropped::IN] {
            if let Ok(none) = PerCpuValues::try_from(vec![0; cpus]) {
                // A count that goes on is no harm.
                let _ = self.dropped.set(way, none, 0);
            }
        }
    }

    fn state(&self) -> u64 {
        self.states.get(&isolate::STATE, 0).unwrap_or(0)
    }

    fn set_state(&mut self, place: u32, value: u64) -> Result<(), String> {
        self.states
            .set(place, value, 0)
            .map_err(|error| format!("cannot write the map ISOLATING: {}", chain(&error)))
    }

    fn detach(&self) -> Result<(), String> {
        for pin in &self.pins {
            match fs::remove_file(pin) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(format!("cannot remove {}: {error}", pin.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn attach(&self, cgroup: impl AsFd) -> Result<Vec<OwnedFd>, String> {
        let doors = self.doors.as_ref().map_err(Clone::clone)?;
        let attached = |(door, hook): (&OwnedFd, &Hook)| {
            let link = cgroup_root::attach(door.as_fd(), cgroup.as_fd(), hook.attach_type);
            link.map_err(|error| match error.raw_os_error() {
                Some(libc::EPERM) => {
                    "somebody has attached a program to the cgroup that allows no other".to_owned()
                }
                _ => format!("cannot attach {}: {error}", hook.door),
            })
        };
        doors.iter().zip(&HOOKS).map(attached).collect()
    }

    fn open_cgroup(&self, root: &OwnedFd) -> Result<File, String> {
        let below = self.cgroup.strip_prefix("/").unwrap_or(&self.cgroup);
        let path = Path::new("/proc/self/fd")
            .join(root.as_raw_fd().to_string())
            .join(below);
        File::open(&path).map_err(|error| {
            format!(
                "cannot open the cgroup {} of [enforce.isolate]: {error}",
                self.cgroup.display()
            )
        })
    }
}
