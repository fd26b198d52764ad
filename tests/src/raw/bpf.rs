//! What the kernel says about loaded BPF programs, and empty ones on the same hooks.
//!
//! Layout of `union bpf_attr` and of `struct bpf_prog_info`:
//! <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/bpf.h>

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

const PROG_LOAD: i32 = 5;
const PROG_GET_FD_BY_ID: i32 = 13;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const RAW_TRACEPOINT_OPEN: i32 = 17;
const LINK_GET_FD_BY_ID: i32 = 30;
/// `BPF_LINK_TYPE_ITER` of `enum bpf_link_type`.
const LINK_ITERATOR: u32 = 4;
const LINK_GET_NEXT_ID: i32 = 31;
const ENABLE_STATS: i32 = 32;

const PROG_TYPE_TRACING: u32 = 26;
const ATTACH_TRACE_RAW_TP: u32 = 23;

/// `union bpf_attr`, or an info structure, by byte offset.
struct Words([u64; 32]);

impl Words {
    fn new() -> Self {
        Self([0; 32])
    }

    fn set(&mut self, offset: usize, value: u32) -> &mut Self {
        let shift = offset % 8 * 8;
        let word = &mut self.0[offset / 8];
        *word = *word & !(0xffff_ffff << shift) | u64::from(value) << shift;
        self
    }

    fn set_pointer<T>(&mut self, offset: usize, pointer: *const T) -> &mut Self {
        self.0[offset / 8] = pointer as u64;
        self
    }

    fn get(&self, offset: usize) -> u32 {
        let bytes = self.0[offset / 8].to_ne_bytes();
        let start = offset % 8;
        u32::from_ne_bytes([
            bytes[start],
            bytes[start + 1],
            bytes[start + 2],
            bytes[start + 3],
        ])
    }
}

fn call(command: i32, attr: &mut Words) -> nix::Result<i64> {
    // SAFETY: `attr` is larger than any command reads, zero beyond what is set, and
    // what its pointers point to outlives the call in every caller.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.0.as_mut_ptr(), 128) };
    Errno::result(result)
}

fn open(command: i32, attr: &mut Words) -> nix::Result<OwnedFd> {
    let fd = i32::try_from(call(command, attr)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn info(fd: &OwnedFd) -> nix::Result<Words> {
    info_into(fd, Words::new())
}

fn info_into(fd: &OwnedFd, mut info: Words) -> nix::Result<Words> {
    let mut attr = Words::new();
    attr.set(0, u32::try_from(fd.as_raw_fd()).map_err(|_| Errno::EBADF)?)
        .set(4, 232)
        .set_pointer(8, info.0.as_mut_ptr());
    call(OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// A program that is attached by a link.
#[derive(Clone, Debug)]
pub struct Attached {
    /// Id of its link.
    pub link: u32,
    /// The tracepoint it is attached to; empty for other links.
    pub hook: String,
    /// Type of the thing it is attached to, in the kernel's BTF; 0 = none.
    pub btf_id: u32,
    /// Nanoseconds it ran while statistics were on.
    pub run_ns: u64,
    /// How often it ran while statistics were on.
    pub runs: u64,
}

/// Every program that is attached by a link, in the order of the links' ids; not iterators, which run when
/// they are read and on no event.
///
/// # Errors
/// Without the right to ask.
pub fn attached() -> nix::Result<Vec<Attached>> {
    let mut found = Vec::new();
    let mut link = 0;
    loop {
        let mut attr = Words::new();
        attr.set(0, link);
        match call(LINK_GET_NEXT_ID, &mut attr) {
            Ok(_) => link = attr.get(4),
            Err(Errno::ENOENT) => return Ok(found),
            Err(error) => return Err(error),
        }
        // A link or program that has just gone is not there.
        let Ok(fd) = open(LINK_GET_FD_BY_ID, Words::new().set(0, link)) else {
            continue;
        };
        // The kernel writes the tracepoint's name where we say; other links ignore it.
        let mut name = [0u8; 64];
        let mut asked = Words::new();
        asked.set_pointer(16, name.as_mut_ptr()).set(24, 64);
        let told = info_into(&fd, asked)?;
        if told.get(0) == LINK_ITERATOR {
            continue;
        }
        let program = told.get(8);
        let Ok(fd) = open(PROG_GET_FD_BY_ID, Words::new().set(0, program)) else {
            continue;
        };
        let info = info(&fd)?;
        found.push(Attached {
            link,
            hook: CStr::from_bytes_until_nul(&name).map_or_else(
                |_| String::new(),
                |name| name.to_string_lossy().into_owned(),
            ),
            btf_id: info.get(224),
            run_ns: info.0[24],
            runs: info.0[25],
        });
    }
}

/// Counts runs and time of all programs until it is dropped.
///
/// # Errors
/// As bpf(2); the kernel has it from 5.8 on.
pub fn statistics() -> nix::Result<OwnedFd> {
    open(ENABLE_STATS, &mut Words::new())
}

/// A program that returns at once, attached to a BTF tracepoint until it is dropped.
///
/// # Errors
/// As bpf(2).
pub fn attach_empty(btf_id: u32) -> nix::Result<OwnedFd> {
    // r0 = 0; exit
    let code: [u64; 2] = [0x0000_0000_0000_00b7, 0x0000_0000_0000_0095];
    let license = c"GPL";
    let mut attr = Words::new();
    attr.set(0, PROG_TYPE_TRACING)
        .set(4, 2)
        .set_pointer(8, code.as_ptr())
        .set_pointer(16, license.as_ptr())
        .set(68, ATTACH_TRACE_RAW_TP)
        .set(108, btf_id);
    let program = open(PROG_LOAD, &mut attr)?;
    let number = u32::try_from(program.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    // The link keeps the program.
    open(RAW_TRACEPOINT_OPEN, Words::new().set(8, number))
}
