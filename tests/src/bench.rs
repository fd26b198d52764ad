//! What the benchmarks measure with: work, statistics, what a process cost.

pub mod auditd;
pub mod bpftrace;
pub mod cost;
pub mod identity;
pub mod matcher;
pub mod nginx;
pub mod peers;
pub mod rate;
pub mod report;
pub mod rules;
pub mod shop;
pub mod work;
