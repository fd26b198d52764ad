//! From the bytes of a ring to the typed event: one file per event family.

pub mod cgroup;
pub mod deny;
pub mod dns;
pub mod file;
pub mod kernel;
pub mod network;
pub mod privilege;
pub mod process;
pub mod record;
