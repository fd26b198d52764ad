//! Policies and predicates: from TOML and CEL to a checked policy, its matcher
//! and the plan for the kernel's pre-filter.
#![forbid(unsafe_code)]

pub mod ir;
pub mod plan;
pub mod time;

pub use ir::Predicate;
