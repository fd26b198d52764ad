//! Space that is held back for the record that says that space ran out.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The file `reserve` of a log: either holding all of its bytes or nothing.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    bytes: u64,
    held: bool,
}

impl Reserve {
    pub(crate) fn new(dir: &Path, bytes: u64) -> Self {
        Reserve {
            path: dir.join("reserve"),
            bytes,
            held: false,
        }
    }

    pub(crate) fn held(&self) -> bool {
        self.held || self.bytes == 0
    }

    /// Takes the space if it is not held. Does nothing if it is.
    pub(crate) fn take(&mut self) -> Result<()> {
        if self.held() {
            return Ok(());
        }
        match self.allocate() {
            Ok(()) => {
                self.held = true;
                Ok(())
            }
            Err(error) => {
                // A half-taken reserve would be in the way of what it is for.
                let _ = fs::remove_file(&self.path);
                Err(Error::io("reserve space in", &self.path, error))
            }
        }
    }

    /// Gives the space back to the file system.
    pub(crate) fn release(&mut self) -> Result<()> {
        if !self.held || self.bytes == 0 {
            return Ok(());
        }
        let released = OpenOptions::new()
            .write(true)
            .open(&self.path)
            .and_then(|file| {
                file.set_len(0)?;
                // Journalling file systems hand freed blocks out after the
                // transaction that freed them is on disk.
                file.sync_all()
            });
        match released {
            Ok(()) => {
                self.held = false;
                Ok(())
            }
            Err(error) => Err(Error::io("release reserved space in", &self.path, error)),
        }
    }

    fn allocate(&self) -> io::Result<()> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)?;
        let len =
            i64::try_from(self.bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        match nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, len) {
            Ok(()) => {}
            // No preallocation on this file system: writing is the next best.
            Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOSYS) => {
                io::copy(
                    &mut io::Read::take(io::repeat(0xA5), self.bytes),
                    &mut &file,
                )?;
            }
            Err(errno) => return Err(errno.into()),
        }
        file.set_len(self.bytes)?;
        file.sync_all()
    }
}
