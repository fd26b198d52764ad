//! What the benchmarks measure with: work, statistics, what a process cost.

pub mod cost;
pub mod rate;
pub mod report;
