//! Who did it: what is known of the process behind a record, and of the workload it is part of.

pub mod process;
pub mod restore;
pub mod workload;
