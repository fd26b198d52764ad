//! The kernel side on the running kernel: one program, so that most tests share one that is loaded (`bench`). A module for
//! each family, and for what a family's tests have in common.
#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

mod actor;
mod bench;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "other tests use more of it, and have it in a library"
)]
#[path = "../../../tests/src/elf.rs"]
mod elf;
#[cfg(target_arch = "x86_64")]
mod low;
#[expect(unsafe_code, reason = "memory that changes while the kernel reads it")]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "other tests use more of it, and have it in a library"
)]
#[path = "../../../tests/src/raw/name.rs"]
mod racing;
#[expect(unsafe_code, reason = "rings are memory shared with the kernel")]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "other tests use more of it, and have it in a library"
)]
#[path = "../../../tests/src/raw/uring.rs"]
mod rings;
mod rules;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "other tests use more of it, and have it in a library"
)]
#[path = "../../../tests/src/wire.rs"]
mod wire;

mod cgroup;
mod deny;
mod deny_lsm;
mod dns;
mod failed_open;
mod file;
mod file_changes;
mod filter;
mod full;
mod integrity;
mod isolate;
mod kernel;
mod kill_after;
mod mapped;
mod meaning;
mod misleading;
mod names;
mod network;
mod points;
mod privilege;
mod probe;
mod process;
mod recovery;
mod scope;
mod sockets;
mod udp;
mod unix;
mod uring;
mod verdict;
mod ways;
mod written;

/// No test: what this program does when another test starts it as its child.
#[test]
fn actor() {
    actor::act();
}
