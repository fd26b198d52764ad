//! The harness of the end-to-end tests and benchmarks: it runs the real
//! programs on the running kernel, against generators that keep their own
//! record (the oracle) of what they really did.
//!
//! Everything a test starts is a guard: dropped, it stops its process and
//! removes its files. Tests take turns on the kernel ([`host::Turn`]), because
//! there is one agent per kernel.

pub mod args;
pub mod bench;
pub mod check;
pub mod clock;
pub mod container;
pub mod ctl;
pub mod duck;
pub mod elf;
pub mod generator;
pub mod host;
pub mod issuer;
pub mod kubelet;
pub mod machine;
pub mod metadata;
pub mod oracle;
pub mod pod;
pub mod process;
pub mod programs;
#[expect(
    unsafe_code,
    reason = "the generators race the kernel for the bytes of a system call's arguments and make \
              32-bit calls, which no safe wrapper can express"
)]
pub mod raw;
pub mod ssh;
pub mod wire;
