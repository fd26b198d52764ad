//! What each stream has given out and lost.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    os::fd::{AsFd as _, AsRawFd as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use aya::programs::{ProgramFd, ProgramInfo};
use sumun_abi::{
    loss::Stream,
    record::{LEVELS, RINGS},
};

use super::{Error, Kernel, hooks::HOOKS};

/// Names a stream within one set of pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId {
    /// `RING_LIFE` or `RING_BULK`.
    pub ring: u8,
    /// CPU number.
    pub cpu: u32,
    /// Nesting level.
    pub level: u8,
}

impl Kernel {
    /// Every stream with its last sequence and its losses. Read before the
    /// ring is drained, a sequence tells how far that ring must come.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn streams(&self) -> Result<Vec<(StreamId, Stream)>, Error> {
        let mut found = Vec::new();
        for ring in 0..RINGS {
            for level in 0..LEVELS {
                let index = ring * LEVELS + level;
                let values = self
                    .streams
                    .get(&index, 0)
                    .map_err(Error::map("read", "STREAMS"))?;
                for (cpu, stream) in values.iter().enumerate() {
                    let id = StreamId {
                        ring: ring as u8,
                        cpu: cpu as u32,
                        level: level as u8,
                    };
                    found.push((id, stream.0));
                }
            }
        }
        Ok(found)
    }

    /// True if some program is under way on some CPU: a sequence may have been given out
    /// whose record is neither in the ring nor counted yet.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn in_flight(&self) -> Result<bool, Error> {
        let values = self.busy.get(&0, 0).map_err(Error::map("read", "BUSY"))?;
        Ok(values
            .iter()
            .any(|levels| levels.iter().any(|level| *level != 0)))
    }

    /// How often the kernel left a hook's program out because it was running on the same CPU
    /// already, since its door was attached; where two do the same, how often both can have been left out of one event. From 6.1 on a packet can do that to the state of
    /// sockets; where tracepoints can be preempted (7.x), any other task to every hook. No
    /// stream knows of it, and most of these runs would have found nothing of interest: it
    /// is the most that can be missing. Older kernels leave none out.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub fn missed(&mut self) -> Result<Vec<(&'static str, u64)>, Error> {
        let mut found: Vec<(&'static str, u64)> = Vec::new();
        for hook in HOOKS {
            // The door counts, which a previous agent may have attached.
            let door = self.pins.door(hook.program);
            let Ok(pinned) = fs::metadata(&door) else {
                self.doors.remove(hook.program);
                continue;
            };
            if self.doors.get(hook.program).map(|door| door.pin) != Some(pinned.ino()) {
                let opened = Door::open(&door, pinned.ino()).map_err(|reason| Error::Hook {
                    hook: hook.program,
                    reason,
                })?;
                self.doors.insert(hook.program, opened);
            }
            let Some(opened) = self.doors.get_mut(hook.program) else {
                continue;
            };
            let misses = opened.misses().map_err(Error::file("read", &opened.path))?;
            let first = hook.program.strip_suffix("_again");
            match found.iter_mut().find(|(name, _)| Some(*name) == first) {
                Some((_, both)) => *both = misses.min(*both),
                None => found.push((hook.program, misses)),
            }
        }
        Ok(found)
    }
}

/// A hook's program, and where the kernel says how often it was left out. It is asked at each watermark, so it is kept open as long as the
/// pin is the same.
pub(super) struct Door {
    /// Inode of the pin.
    pin: u64,
    /// What `info` is of.
    _program: ProgramFd,
    info: File,
    path: String,
    text: String,
}

impl Door {
    fn open(pin: &Path, inode: u64) -> Result<Self, String> {
        let program = ProgramInfo::from_pin(pin)
            .and_then(|info| info.fd())
            .map_err(|error| super::chain(&error))?;
        let path = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
        let info = File::open(&path).map_err(|error| format!("cannot open {path}: {error}"))?;
        Ok(Self {
            pin: inode,
            _program: program,
            info,
            path,
            text: String::new(),
        })
    }

    /// Since the door was attached. Kernels that leave none out have no such line.
    fn misses(&mut self) -> io::Result<u64> {
        self.text.clear();
        self.info.rewind()?;
        self.info.read_to_string(&mut self.text)?;
        let mut lines = self.text.lines();
        let count = lines.find_map(|line| line.strip_prefix("recursion_misses:"));
        Ok(count
            .and_then(|count| count.trim().parse().ok())
            .unwrap_or(0))
    }
}
