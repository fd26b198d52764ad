//! One file per event family; `syscall` holds the two tracepoints that families share.

mod cgroup;
mod deny;
mod door;
mod file;
mod isolate;
mod kernel;
mod network;
mod privilege;
mod process;
mod syscall;

pub(crate) use deny::told;
