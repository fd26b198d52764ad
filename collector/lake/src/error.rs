//! What can go wrong with the lake.

use std::io;
use std::path::PathBuf;

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation on the lake.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lake's location is not one this version can use.
    #[error("cannot use {url} as the lake: {reason}")]
    Location {
        /// As configured.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The file system refused.
    #[error("failed to {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// A batch that does not hold together.
    #[error("malformed batch: {0}")]
    Malformed(String),
    /// Rows could not be built or encoded.
    #[error("failed to build rows of table {table}")]
    Rows {
        /// The family.
        table: &'static str,
        /// Arrow's word.
        #[source]
        source: datafusion::arrow::error::ArrowError,
    },
    /// A Parquet file could not be written.
    #[error("failed to write {}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The writer's word.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// A scan could not be planned or run.
    #[error("failed to {operation}")]
    Scan {
        /// What was tried.
        operation: &'static str,
        /// DataFusion's word.
        #[source]
        source: datafusion::error::DataFusionError,
    },
    /// The query needs more memory and spill space than it may use.
    #[error(
        "query needs more than its share of memory: narrow the time range or the predicate, or set a limit"
    )]
    Memory,
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: &std::path::Path, source: io::Error) -> Self {
        Error::Io {
            operation,
            path: path.to_path_buf(),
            source,
        }
    }

    pub(crate) fn scan(
        operation: &'static str,
    ) -> impl FnOnce(datafusion::error::DataFusionError) -> Self {
        move |source| {
            if matches!(
                source.find_root(),
                datafusion::error::DataFusionError::ResourcesExhausted(_)
            ) {
                Error::Memory
            } else {
                Error::Scan { operation, source }
            }
        }
    }
}
