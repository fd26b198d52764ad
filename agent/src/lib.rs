//! The agent: from kernel records to the collector. Folders are the stages in order:
//! `kernel` → `receive` → `enrich` → `detect` → `spool` → `forward`; `pipeline` drives the
//! first five on one thread, `run` wires everything together.

pub mod detect;
pub mod enrich;
pub mod kernel;
pub mod receive;
pub mod spool;
