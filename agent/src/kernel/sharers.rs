//! Which processes share their open files, as the kernel tells when asked.

use std::{
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
};

use aya::programs::{Iter, links::FdLink};
use sumun_abi::verdict::{SHARERS_ENTRIES, Sharer};

use super::{Kernel, chain, verifier};

/// A pinned iterator: each time it is opened, it goes through all processes.
#[derive(Clone, Debug, Default)]
pub struct SharersSource {
    pin: PathBuf,
}

impl SharersSource {
    /// Processes that were made to share their open files with another, and the table that each has now.
    ///
    /// # Errors
    /// The iterator cannot be read.
    pub fn read(&self) -> io::Result<Vec<Sharer>> {
        let mut bytes = Vec::new();
        // No more rows than there are entries.
        let most = SHARERS_ENTRIES as usize * size_of::<Sharer>();
        File::open(&self.pin)?
            .take(most as u64)
            .read_to_end(&mut bytes)?;
        let rows = bytes.chunks_exact(size_of::<Sharer>());
        Ok(rows.filter_map(sumun_abi::plain::read).collect())
    }
}

impl Kernel {
    /// Who shares open files, to be asked later.
    #[must_use]
    pub fn sharers(&self) -> SharersSource {
        SharersSource {
            pin: self.pins.link(PROGRAM),
        }
    }

    /// Loads the iterator and pins it in place of a previous agent's.
    pub(super) fn pin_sharers(&mut self, btf: &aya::Btf) -> Result<(), String> {
        let pin = self.pins.link(PROGRAM);
        let program: &mut Iter = self
            .ebpf
            .program_mut(PROGRAM)
            .ok_or("the object has no program sharers")?
            .try_into()
            .map_err(|error: aya::programs::ProgramError| chain(&error))?;
        if program.fd().is_err() {
            verifier::load(|| program.load("task", btf)).map_err(|error| chain(&error))?;
        }
        let link = program
            .attach()
            .and_then(|id| program.take_link(id))
            .map_err(|error| chain(&error))?;
        let link = FdLink::try_from(link).map_err(|error| chain(&error))?;
        if pin.exists() {
            std::fs::remove_file(&pin)
                .map_err(|error| format!("cannot remove {}: {error}", pin.display()))?;
        }
        link.pin(&pin).map_err(|error| chain(&error))?;
        Ok(())
    }
}

/// Name of the program and of its pinned link.
const PROGRAM: &str = "sharers";
