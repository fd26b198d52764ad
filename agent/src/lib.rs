//! The agent: from kernel records to the collector. Folders are the stages in order:
//! `kernel` → `receive` → `enrich` → `detect` → `enforce` → `spool` → `forward`; `pipeline` drives the
//! first six on one thread, `run` wires everything together. `integrity` looks, beside them, for what the kernel does not show.

pub mod cli;
pub mod command;
pub mod config;
pub mod detect;
pub mod doctor;
pub mod enforce;
pub mod enrich;
pub mod enroll;
pub mod forward;
pub mod integrity;
pub mod kernel;
pub mod pipeline;
pub mod privacy;
pub mod receive;
pub mod released;
pub mod run;
pub mod spool;
pub mod starter;
pub mod status;
