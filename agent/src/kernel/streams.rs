//! What each stream has given out and lost.

use sumun_abi::{
    loss::Stream,
    record::{LEVELS, RINGS},
};

use super::{Error, Kernel};

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
        Ok(values.iter().any(|levels| levels.iter().any(|level| *level != 0)))
    }
}
