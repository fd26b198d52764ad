//! The Sumun collector: agents deliver, admins ask.
//!
//! ```text
//! api (TLS, who is who) → ingest (numbers, durable log) → store (memory, lake) → query
//!                          tenant (CA, tokens, agents)     state (SQLite)
//! ```
#![forbid(unsafe_code)]

pub mod api;
pub mod config;
pub mod ingest;
pub mod init;
pub mod metrics;
pub mod query;
pub mod run;
pub mod state;
pub mod store;
pub mod tenant;
