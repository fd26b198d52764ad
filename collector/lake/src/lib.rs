//! The lake: rows of the catalogue's columns, Parquet files and the scan that
//! answers a predicate over both.
//!
//! # Tables
//!
//! One table per [`Family`]: `process`, `file`, `network`, `alert` and `gap`. Its columns
//! are the catalogue's fields of that family, dots written as `_`; a field that an
//! event has not is NULL. `proc.ancestors` is three list columns of equal length.
//!
//! # Absent and unknown
//!
//! A NULL is an absent value. Of a value that was lost or cut off, the text that is
//! left stays in its column, because people want to see it, but no predicate
//! may take it for the whole: the column `_unknown` has a bit for each field of
//! [`UNKNOWABLE`] (bit n is the n-th of them) that is unknown on that row, and the scan
//! reads such a field as NULL. `_ancestors_unknown` does the same for each ancestor's path. Both
//! are NULL on nearly all rows and take no space.
//!
//! # Files
//!
//! `tenant=<t>/family=<f>/day=<day>/<segment>.parquet`: all rows of one tenant and family in
//! one segment of the durable log; the day is the one it was written on, UTC.
//! zstd, page index, sorted by host and time. A file's name appears only when its
//! bytes are on disk, and files are never changed.
#![forbid(unsafe_code)]

pub mod engine;
pub mod error;
pub mod facts;
pub mod family;
pub mod files;
pub mod json;
mod judge;
pub mod read;
pub mod rows;
pub mod scan;
pub mod write;

pub use engine::{Engine, EngineOptions, Source};
pub use error::{Error, Result};
pub use facts::FactTable;
pub use family::{Family, UNKNOWABLE};
pub use files::{Lake, LakeFile};
pub use read::{GapRow, ImageRow, RowReader};
pub use rows::{RowSet, rows};
