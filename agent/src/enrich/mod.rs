//! Who did it: what is known of the process behind a record, of the workload it is part of, and of the host.

pub mod changes;
pub mod host;
pub mod login;
pub mod names;
pub mod process;
pub mod restore;
pub mod runtime;
pub mod workload;
pub mod writer;
