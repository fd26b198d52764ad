//! The thread that reads the rings: receive, enrich, detect, spool, and only then advance.
//!
//! A cycle:
//!
//! 1. note the time and what the kernel has given out, wait until no program is under
//!    way, note how far the bulk ring has come, and read what fanotify tells of the calls up to there;
//! 2. read the life ring to its end, then the bulk ring up to that point, so a file
//!    record never comes before the exec that made its process;
//! 3. compare the sequences, add gaps;
//! 4. write the lanes to the spool, then the read positions, then advance the rings and
//!    move the watermark.
//!
//! If the spool cannot write, nothing is advanced: the rings fill, the kernel counts exactly
//! what it could not place, and the gap is written when writing works again.

mod applied;
pub mod batch;
mod changes;
pub mod clock;
pub mod consumed;
mod core;
mod cycle;
mod denied;
mod folds;
mod integrity;
pub mod lanes;
pub mod policies;
mod secrets;
pub mod streams;
mod syncer;
mod told;

pub use self::core::Counts;
pub use self::cycle::{Control, Pipeline, Setup};
