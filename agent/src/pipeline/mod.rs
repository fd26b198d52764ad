//! The thread that reads the rings: receive, enrich, detect, spool, and only then advance.

pub mod batch;
pub mod clock;
pub mod consumed;
