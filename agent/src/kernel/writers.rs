//! Who opens files for writing is remembered in the kernel, while a rule asks: since when, and how well.

use aya::maps::{Array, MapData};
use nix::time::{ClockId, clock_gettime};
use sumun_abi::event::process::{WRITERS_ENTRIES, watched};
use sumun_abi::policy::{Filter, WRITERS};

use super::{Error, Kernel};

/// The hook that remembers, everywhere.
const EXIT: &str = "sys_exit";

/// What has not been remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Files that made room for others.
    pub evicted: u64,
    /// Files for which there was no room for a moment.
    pub failed: u64,
}

/// The times and counters of what is remembered.
pub(super) struct State {
    watched: Array<MapData, u64>,
    /// The active filter asks for it, and has been fed without a gap.
    on: bool,
}

impl State {
    pub(super) fn new(watched: Array<MapData, u64>) -> Self {
        Self { watched, on: false }
    }
}

/// True if a filter asks for it.
fn asks(filter: &Filter) -> bool {
    filter.known & WRITERS != 0
}

impl Kernel {
    /// Goes on with what an agent before this one has left, if its programs have been there all the time.
    pub(super) fn adopt_writers(&mut self, filter: &Filter) {
        self.writers.on = asks(filter) && self.pins.link(EXIT).exists();
    }

    /// Before a filter becomes the active one: what it begins to remember counts from now on.
    pub(super) fn watch_writers(&mut self, filter: &Filter) -> Result<(), Error> {
        if asks(filter) && !self.writers.on {
            let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(|errno| Error::Hook {
                hook: EXIT,
                reason: format!("cannot read the time since boot: {errno}"),
            })?;
            let now = (now.tv_sec() * 1_000_000_000 + now.tv_nsec()).cast_unsigned();
            self.writers
                .watched
                .set(watched::SINCE, now, 0)
                .map_err(Error::map("write", "WATCHED"))?;
        }
        Ok(())
    }

    /// It has become the active one.
    pub(super) fn watches_writers(&mut self, filter: &Filter) {
        self.writers.on = asks(filter);
    }

    /// What has not been remembered of who wrote files, since the maps were made.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub fn writers_forgotten(&self) -> Result<Forgotten, Error> {
        let read = |place| {
            let count = self.writers.watched.get(&place, 0);
            count.map_err(Error::map("read", "WATCHED"))
        };
        Ok(Forgotten {
            evicted: read(watched::FILES)?.saturating_sub(WRITERS_ENTRIES.into()),
            failed: read(watched::FAILED)?,
        })
    }
}
