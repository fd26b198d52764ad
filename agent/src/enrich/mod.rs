//! Who did it: what is known of the process behind a record.

pub mod process;
pub mod restore;
