//! The kernel side of Sumun: programs on BTF tracepoints that read the
//! kernel's own objects, ask the filter, and write records.
//!
//! `hooks` holds one file per event family, `kernel` the readers of kernel
//! structures (the only place with raw kernel pointers), `policy` the filter.
//! Everything that user space shares is in the crate `sumun-abi`.
//!
//! Functions named `sumun_*` are global functions in BPF's sense: the verifier
//! checks each once, for all values of its arguments, so they take nothing but
//! integers and check every bound themselves.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod hooks;
mod kernel;
mod maps;
mod policy;
mod run;

/// The licence the kernel checks before it allows the helpers that tracing needs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // Nothing here can panic (no indexing, no overflow checks); the compiler wants the symbol.
    loop {}
}
