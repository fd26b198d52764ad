//! A lineage that is killed as a whole: what the kernel side has to know, and what it knows of those that were made meanwhile.

use std::{
    fmt,
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use sumun_abi::{record::LEVELS, verdict::hunt};

use super::{Error, Kernel, Ring};

/// How long it is waited for programs that are under way on other processors: they take microseconds, but they can be preempted.
const IDLE_WAIT: Duration = Duration::from_millis(20);

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kin {
    /// Its number.
    pub pid: u32,
    /// Its start, ns since boot.
    pub start_ns: u64,
}

impl Kin {
    fn key(self) -> [u64; 2] {
        [self.pid.into(), self.start_ns]
    }

    fn of([pid, start_ns]: [u64; 2]) -> Option<Self> {
        let pid = u32::try_from(pid).ok()?;
        Some(Self { pid, start_ns })
    }
}

/// The maps of a hunt, opened beside those of the kernel side: it is for the thread that reads records, in the middle of them.
pub struct Hunt {
    state: Array<MapData, u64>,
    born: HashMap<MapData, [u64; 2], [u64; 2]>,
    doomed: HashMap<MapData, [u64; 2], u64>,
    busy: PerCpuArray<MapData, [u64; LEVELS as usize]>,
    life: OwnedFd,
    life_bytes: u32,
}

impl fmt::Debug for Hunt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hunt").finish_non_exhaustive()
    }
}

impl Kernel {
    /// What is needed to kill lineages.
    ///
    /// # Errors
    /// A pinned map cannot be opened.
    pub fn hunt(&self) -> Result<Hunt, Error> {
        let open = |name: &'static str| {
            MapData::from_pin(self.pins.map(name)).map_err(Error::map("open", name))
        };
        let life = open("LIFE")?;
        let fd = life.fd().as_fd().try_clone_to_owned();
        Ok(Hunt {
            state: of(Map::Array(open("HUNT")?), "HUNT")?,
            born: of(Map::HashMap(open("BORN")?), "BORN")?,
            doomed: of(Map::HashMap(open("DOOMED")?), "DOOMED")?,
            busy: of(Map::PerCpuArray(open("BUSY")?), "BUSY")?,
            life: fd.map_err(Error::call("duplicate the ring's descriptor"))?,
            life_bytes: self.life_bytes,
        })
    }
}

fn of<M: TryFrom<Map, Error = MapError>>(map: Map, name: &'static str) -> Result<M, Error> {
    M::try_from(map).map_err(Error::map("open", name))
}

impl Hunt {
    /// From now until a boot time, in ns, each new process is known by whom it comes from of those that are there now. Of
    /// those that are doomed nothing is forgotten.
    ///
    /// # Errors
    /// A map cannot be written.
    pub fn begin(&mut self, until_ns: u64) -> Result<(), Error> {
        clear(&mut self.born, "BORN")?;
        self.hold_until(until_ns)
    }

    /// It goes on until then.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn hold_until(&mut self, until_ns: u64) -> Result<(), Error> {
        let set = self.state.set(hunt::UNTIL, until_ns, 0);
        set.map_err(Error::map("write", "HUNT"))
    }

    /// It is over: all is forgotten.
    ///
    /// # Errors
    /// A map cannot be written.
    pub fn end(&mut self) -> Result<(), Error> {
        self.hold_until(0)?;
        clear(&mut self.doomed, "DOOMED")?;
        clear(&mut self.born, "BORN")
    }

    /// A process is killed as its next system call returns, and so is whoever comes from it. `forced`: also what runs the host.
    ///
    /// # Errors
    /// The map is full or cannot be written.
    pub fn doom(&mut self, kin: Kin, forced: bool) -> Result<(), Error> {
        self.doomed
            .insert(kin.key(), u64::from(forced), 0)
            .map_err(Error::map("write", "DOOMED"))
    }

    /// Those that were made since it began, and whom each comes from.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn born(&self) -> Result<Vec<(Kin, Kin)>, Error> {
        let all = self.born.iter().collect::<Result<Vec<_>, _>>();
        let all = all.map_err(Error::map("list", "BORN"))?;
        let known = all
            .into_iter()
            .filter_map(|(child, root)| Some((Kin::of(child)?, Kin::of(root)?)));
        Ok(known.collect())
    }

    /// For how many there was no room, since the maps were made.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn full(&self) -> Result<u64, Error> {
        let full = self.state.get(&hunt::FULL, 0);
        full.map_err(Error::map("read", "HUNT"))
    }

    /// Waits until each program that is under way now has ended. False if one goes on for too long.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn wait_for_programs(&self) -> Result<bool, Error> {
        let begun = Instant::now();
        // A processor on which nothing was under way once since is through with what was.
        let mut through: Vec<bool> = Vec::new();
        loop {
            let levels = self.busy.get(&0, 0).map_err(Error::map("read", "BUSY"))?;
            through.resize(levels.len(), false);
            for (through, levels) in through.iter_mut().zip(levels.iter()) {
                *through |= levels.iter().all(|level| *level == 0);
            }
            if through.iter().all(|through| *through) {
                return Ok(true);
            }
            if begun.elapsed() > IDLE_WAIT {
                return Ok(false);
            }
            std::thread::yield_now();
        }
    }

    /// Shows the records of process life that nobody has given up yet, up to the first that is still being written. They are
    /// read again by whoever reads the ring.
    ///
    /// # Errors
    /// The ring cannot be mapped.
    pub fn unread(&self, mut see: impl FnMut(&[u8])) -> Result<(), Error> {
        let fd = self.life.try_clone();
        let fd = fd.map_err(Error::call("duplicate the ring's descriptor"))?;
        let ring = Ring::new(fd, self.life_bytes);
        let mut ring = ring.map_err(Error::call("map the ring"))?;
        let mut records = ring.drain(u64::MAX);
        while let Some(bytes) = records.next() {
            see(bytes);
        }
        Ok(())
    }
}

fn clear<V: aya::Pod>(
    map: &mut HashMap<MapData, [u64; 2], V>,
    name: &'static str,
) -> Result<(), Error> {
    let keys: Result<Vec<_>, MapError> = map.keys().collect();
    for key in keys.map_err(Error::map("list", name))? {
        // It may be gone.
        let _ = map.remove(&key);
    }
    Ok(())
}
