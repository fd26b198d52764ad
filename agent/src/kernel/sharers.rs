//! Which processes share their open files, as the kernel tells when asked.

use std::{
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
};

use sumun_abi::verdict::{SHARERS_ENTRIES, Sharer};

use super::{Kernel, tasks};

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
        tasks::pin_iterator(&mut self.ebpf, PROGRAM, &pin, btf)
    }
}

/// Name of the program and of its pinned link.
const PROGRAM: &str = "sharers";
