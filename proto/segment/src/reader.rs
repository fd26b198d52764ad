//! Reading a log in order, beside the appends.

use std::io;
use std::sync::Arc;

use crate::Seq;
use crate::error::{Error, Result};
use crate::scan::{Found, Scan, Step};

use crate::shared::{Place, Shared};

/// The next thing in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A record, as it was appended.
    Record {
        /// Its sequence.
        seq: Seq,
        /// First sequence of the segment it lies in.
        segment: Seq,
        /// Its payload.
        payload: &'a [u8],
    },
    /// Records that are damaged or gone, other than by [`crate::Log::remove_through`].
    Lost {
        /// First lost sequence.
        from: Seq,
        /// Last lost sequence.
        to: Seq,
    },
}

/// Reads forward. At the end it returns `None` and can be asked again after
/// more was appended (or synced). Records removed while it is behind them are
/// passed over.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    next: Seq,
    until: Seq,
    durable_only: bool,
    open: Option<Open>,
}

/// The segment being read.
struct Open {
    first: Seq,
    generation: u64,
    scan: Scan,
}

enum Got {
    Record(Found),
    Lost { from: Seq, to: Seq },
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, from: Seq, durable_only: bool) -> Self {
        Reader {
            shared,
            next: from.max(1),
            until: Seq::MAX,
            durable_only,
            open: None,
        }
    }

    /// Ends the reading behind the record `seq`.
    #[must_use]
    pub fn until(mut self, seq: Seq) -> Self {
        self.until = seq;
        self
    }

    /// Sequence of the record that comes next.
    #[must_use]
    pub fn position(&self) -> Seq {
        self.next
    }

    /// The next record or loss; `None` at the end of what may be read now.
    ///
    /// # Errors
    /// [`Error::Io`]: the file cannot be opened or read. Calling again tries
    /// the same record again.
    #[expect(
        clippy::should_implement_trait,
        reason = "the entry borrows the reader's buffer, which Iterator cannot express"
    )]
    pub fn next(&mut self) -> Result<Option<Entry<'_>>> {
        match self.advance()? {
            None => Ok(None),
            Some(Got::Lost { from, to }) => Ok(Some(Entry::Lost { from, to })),
            Some(Got::Record(found)) => Ok(self.open.as_ref().map(|open| Entry::Record {
                seq: found.header.seq,
                segment: open.first,
                payload: open.scan.payload(&found),
            })),
        }
    }

    fn advance(&mut self) -> Result<Option<Got>> {
        loop {
            let place = self.shared.state().place_of(self.next);
            if self.next < place.oldest {
                self.next = place.oldest;
                continue;
            }
            let limit = self.until.min(match self.durable_only {
                true => place.durable,
                false => place.written,
            });
            if self.next > limit {
                return Ok(None);
            }
            let last = limit.min(place.last);
            if !self.open_at(&place)? {
                // The file is gone though nobody removed it.
                return Ok(Some(self.lose(last)));
            }
            let Some(open) = &mut self.open else { continue };
            open.scan.extend(place.end);
            loop {
                let step = open
                    .scan
                    .step()
                    .map_err(|e| Error::io("read", &self.shared.path_of(place.first), e))?;
                let found = match step {
                    Step::Damage => continue,
                    Step::End => return Ok(Some(self.lose(last))),
                    Step::Record(found) => found,
                };
                let seq = found.header.seq;
                if seq < self.next {
                    continue;
                }
                if seq > self.next {
                    open.scan.back_to(&found);
                    return Ok(Some(self.lose(last.min(seq - 1))));
                }
                self.next = seq + 1;
                return Ok(Some(Got::Record(found)));
            }
        }
    }

    /// Passes over everything up to `to`.
    fn lose(&mut self, to: Seq) -> Got {
        let from = self.next;
        self.next = to + 1;
        Got::Lost { from, to }
    }

    /// Opens the segment at `place` unless it is open. `false` if its file is
    /// missing.
    fn open_at(&mut self, place: &Place) -> Result<bool> {
        if let Some(open) = &self.open
            && open.first == place.first
            && open.generation == place.generation
        {
            return Ok(true);
        }
        self.open = None;
        let file = match &place.active {
            Some(active) => Arc::clone(active),
            None => match std::fs::File::open(self.shared.path_of(place.first)) {
                Ok(file) => Arc::new(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // Removed just now, or missing?
                    let now = self.shared.state().place_of(self.next);
                    let same = now.first == place.first && now.generation == place.generation;
                    return Ok(!same);
                }
                Err(error) => {
                    let path = self.shared.path_of(place.first);
                    return Err(Error::io("open", &path, error));
                }
            },
        };
        self.open = Some(Open {
            first: place.first,
            generation: place.generation,
            scan: Scan::new(file, self.shared.id, place.first, place.end),
        });
        Ok(true)
    }
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open")
            .field("first", &self.first)
            .field("end", &self.scan.end())
            .finish_non_exhaustive()
    }
}
