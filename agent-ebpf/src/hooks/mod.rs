//! One file per event family; `syscall` holds the two tracepoints that families share.

mod door;
mod file;
mod network;
mod process;
mod syscall;
