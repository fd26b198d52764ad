//! The state of the folds on disk: two files written in turn, each
//!
//! ```text
//! crc32c  4   over everything after it
//! length  4   of the message
//! message     protobuf, `Saved`
//! ```
//!
//! little-endian. Plain writes: they survive a kill of the agent. One that is torn fails
//! its checksum, and the other holds; its records are still in the rings.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use prost::Message;
use sumun_policy::Rate;
use sumun_proto::FORMAT;
use sumun_proto::v1::{Batch, Event, Lane, RuleRef};

use super::{Fold, Folds, Sample, Window, alert};
use crate::kernel::StreamId;
use crate::spool::{self, Highest};

const NAMES: [&str; 2] = ["folds.0", "folds.1"];

/// The files cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {path}: {source}; the state directory must be writable")]
pub struct Error {
    operation: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

/// Which boot and which pinned maps records are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Generation of the pinned maps.
    pub pin_generation: u64,
    /// Sixteen bytes of the boot id.
    pub boot_id: [u8; 16],
}

/// The files.
pub(super) struct File {
    files: [(PathBuf, fs::File); 2],
    origin: Origin,
    turn: u64,
    buffer: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Saved {
    #[prost(uint64, tag = "1")]
    turn: u64,
    #[prost(fixed64, tag = "2")]
    pin_generation: u64,
    #[prost(bytes = "vec", tag = "3")]
    boot_id: Vec<u8>,
    #[prost(sint64, tag = "4")]
    wall_offset_ns: i64,
    #[prost(uint64, tag = "5")]
    next: u64,
    #[prost(message, repeated, tag = "6")]
    counted: Vec<Highest>,
    #[prost(message, repeated, tag = "7")]
    windows: Vec<SavedWindow>,
    /// Of the boot and the pins that are in use.
    #[prost(bool, tag = "15")]
    current: bool,
}

#[derive(Clone, PartialEq, Message)]
struct SavedWindow {
    #[prost(message, required, tag = "1")]
    rule: RuleRef,
    #[prost(uint64, tag = "2")]
    rate_count: u64,
    #[prost(uint64, tag = "3")]
    rate_window_ns: u64,
    #[prost(fixed64, tag = "4")]
    start_ns: u64,
    #[prost(uint64, tag = "5")]
    sent: u64,
    #[prost(message, optional, tag = "6")]
    fold: Option<SavedFold>,
}

#[derive(Clone, PartialEq, Message)]
struct SavedFold {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(uint64, tag = "2")]
    count: u64,
    #[prost(fixed64, tag = "3")]
    first_ns: u64,
    #[prost(fixed64, tag = "4")]
    last_ns: u64,
    #[prost(bool, tag = "5")]
    undecided: bool,
    #[prost(message, required, tag = "6")]
    event: Event,
}

/// A fold of another boot, or from before a release: a batch of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Orphan {
    batch: Batch,
    /// How many alerts it stands for.
    pub count: u64,
}

impl File {
    /// Opens the files, and reads the newer one that is whole.
    pub(super) fn open(state: &Path, origin: Origin) -> Result<(Self, Saved), Error> {
        let open = |name: &str| {
            let path = state.join(name);
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map(|file| (path.clone(), file))
                .map_err(|source| Error {
                    operation: "open",
                    path,
                    source,
                })
        };
        let files = [open(NAMES[0])?, open(NAMES[1])?];
        let mut saved = Saved::default();
        for (path, _) in &files {
            let bytes = fs::read(path).map_err(|source| Error {
                operation: "read",
                path: path.clone(),
                source,
            })?;
            match decode(&bytes) {
                Some(found) if found.turn > saved.turn => saved = found,
                None if !bytes.is_empty() => {
                    tracing::warn!(path = %path.display(), "a file of folded alerts is damaged; the other one counts");
                }
                _ => {}
            }
        }
        saved.current =
            saved.pin_generation == origin.pin_generation && saved.boot_id == origin.boot_id;
        let file = Self {
            files,
            origin,
            turn: saved.turn,
            buffer: Vec::new(),
        };
        Ok((file, saved))
    }

    /// Writes the next file.
    pub(super) fn write(&mut self, mut saved: Saved) -> Result<(), Error> {
        self.turn += 1;
        saved.turn = self.turn;
        saved.pin_generation = self.origin.pin_generation;
        saved.boot_id = self.origin.boot_id.to_vec();
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.extend([0; 8]);
        // A Vec grows as it must.
        let _ = saved.encode(buffer);
        let length = u32::try_from(buffer.len() - 8).unwrap_or(u32::MAX);
        buffer[4..8].copy_from_slice(&length.to_le_bytes());
        let crc = crc32c::crc32c(&buffer[4..]);
        buffer[..4].copy_from_slice(&crc.to_le_bytes());
        let (path, file) = &self.files[usize::from(self.turn.is_multiple_of(2))];
        file.write_all_at(&self.buffer, 0).map_err(|source| Error {
            operation: "write",
            path: path.clone(),
            source,
        })
    }
}

/// The message of a file that is whole. Behind it may be the rest of a longer one.
fn decode(bytes: &[u8]) -> Option<Saved> {
    let (crc, rest) = bytes.split_first_chunk::<4>()?;
    let (length, message) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let message = message.get(..length)?;
    if crc32c::crc32c(rest.get(..length + 4)?) != u32::from_le_bytes(*crc) {
        return None;
    }
    Saved::decode(message).ok()
}

impl Saved {
    pub(super) fn of(folds: &Folds, wall_offset_ns: i64) -> Self {
        Self {
            wall_offset_ns,
            next: folds.next,
            counted: Highest::list(&folds.counted),
            windows: folds.windows.values().map(SavedWindow::of).collect(),
            ..Self::default()
        }
    }

    pub(super) fn next(&self) -> u64 {
        // Numbers start with one: what a lane holds of a stream starts with none.
        self.next.max(1)
    }

    pub(super) fn counted(&self) -> BTreeMap<StreamId, u64> {
        let of_now = self.counted.iter().filter(|_| self.current);
        of_now.filter_map(|counted| counted.stream()).collect()
    }

    pub(super) fn windows(&self) -> impl Iterator<Item = Window> {
        let of_now = self.windows.iter().filter(|_| self.current);
        of_now.map(SavedWindow::window)
    }

    pub(super) fn orphans(&self) -> Vec<Orphan> {
        if self.current {
            return Vec::new();
        }
        let folded = self.windows.iter().filter_map(|window| {
            let window = window.window();
            let fold = window.fold?;
            let event = fold.sample.event.clone();
            // Filled in when it is written.
            let alert = alert(1, &fold, event, 0);
            Some(Orphan {
                count: fold.count,
                batch: Batch {
                    format: FORMAT,
                    lane: Lane::Alert.into(),
                    boot_id: self.boot_id.clone(),
                    pin_generation: self.pin_generation,
                    wall_offset_ns: self.wall_offset_ns,
                    rules: vec![(*window.rule).clone()],
                    alerts: vec![alert],
                    ..Batch::default()
                },
            })
        });
        folded.collect()
    }
}

impl SavedWindow {
    fn of(window: &Window) -> Self {
        Self {
            rule: (*window.rule).clone(),
            rate_count: window.rate.count,
            rate_window_ns: window.rate.window_ns,
            start_ns: window.start_ns,
            sent: window.sent,
            fold: window.fold.as_ref().map(|fold| SavedFold {
                number: fold.number,
                count: fold.count,
                first_ns: fold.first_ns,
                last_ns: fold.last_ns,
                undecided: fold.undecided,
                event: fold.sample.event.clone(),
            }),
        }
    }

    fn window(&self) -> Window {
        Window {
            rule: Rc::new(self.rule.clone()),
            rate: Rate {
                count: self.rate_count,
                window_ns: self.rate_window_ns,
            },
            start_ns: self.start_ns,
            sent: self.sent,
            fold: self.fold.as_ref().map(|fold| Fold {
                number: fold.number,
                count: fold.count,
                first_ns: fold.first_ns,
                last_ns: fold.last_ns,
                undecided: fold.undecided,
                sample: Rc::new(Sample {
                    // The image is of a batch that is gone.
                    event: Event {
                        image: 0,
                        ..fold.event.clone()
                    },
                    by: None,
                }),
            }),
        }
    }
}

impl Orphan {
    /// Writes it to the alert lane. Its row has the time of now, on the clock of its own boot gone on.
    ///
    /// # Errors
    /// When the spool cannot take it.
    pub fn write(mut self, spool: &spool::Spool, wall_ns: i64) -> Result<(), spool::Error> {
        let at_ns = wall_ns
            .wrapping_sub(self.batch.wall_offset_ns)
            .cast_unsigned();
        for alert in &mut self.batch.alerts {
            if let Some(fold) = &mut alert.fold {
                fold.at_boot_ns = at_ns;
            }
        }
        let boot_id = <[u8; 16]>::try_from(self.batch.boot_id.as_slice()).unwrap_or_default();
        let body = self.batch.encode_to_vec();
        let item = spool::Item {
            body: &body,
            events: 1,
            missing: Some(0),
            first_boot_ns: at_ns,
            last_boot_ns: at_ns,
            boot_id,
            wall_offset_ns: self.batch.wall_offset_ns,
            pin_generation: self.batch.pin_generation,
            // Nothing of these pins can come again.
            highest: &BTreeMap::new(),
        };
        spool.append(Lane::Alert, &item).map(drop)
    }
}
