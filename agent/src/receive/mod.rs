//! From the bytes of a ring to the typed event: one file per event family.

pub mod file;
pub mod network;
pub mod process;
pub mod record;
