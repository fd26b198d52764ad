//! Policies and predicates: from TOML and CEL to a checked policy, its matcher
//! and the plan for the kernel's pre-filter.
#![forbid(unsafe_code)]

pub mod asking;
mod call;
mod canonical;
mod capability;
mod check;
mod clause;
pub mod coarse;
mod condition;
mod covers;
pub mod deny;
pub mod doors;
mod each;
pub mod errors;
mod essential;
mod exception;
pub mod explain;
pub mod file;
pub mod glob;
pub mod ir;
pub mod limits;
pub mod list;
mod literal;
mod logic;
mod matcher;
mod narrow;
pub mod needs;
mod outcome;
mod parse;
mod parts;
pub mod plan;
pub mod problem;
mod read;
pub mod report;
mod rule;
pub mod rungs;
mod selector;
mod source;
mod text;
pub mod time;
pub mod verdict;

pub use check::{Lists, UNFOLD_MAX};
pub use covers::{alternatives, covers};
pub use explain::explain;
pub use file::{
    CheckedPolicy, Effect, Exception, FileCheck, Mode, Presumed, Rate, Rule, check_file,
    check_files, loaded,
};
pub use ir::Predicate;
pub use matcher::Matcher;
pub use narrow::on_kind;
pub use outcome::Verdict;
pub use parts::PARTS_MAX;
pub use plan::{Plan, scopes};
pub use problem::Problem;

#[cfg(test)]
mod file_tests;
#[cfg(test)]
mod language_tests;
