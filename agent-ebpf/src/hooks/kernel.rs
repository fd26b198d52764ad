//! Modules, BPF programs, mounts, another kernel and io_uring, when the call returns. A module's name
//! comes from the tracepoint that its loading passes. And the kernel's memory, when the agent asks for it.

use core::ptr::{self, addr_of, addr_of_mut};

use aya_ebpf::{
    helpers::generated::{
        bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_probe_read_user,
        bpf_probe_read_user_str, bpf_seq_write,
    },
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use sumun_abi::{
    event::{
        kernel::{
            KERNEL_CALLER, KERNEL_LOST, Loaded, MODULE_NAME, Module, Mount, PROGRAM_NAME, Program,
            Setup, signature,
        },
        kind,
    },
    memory::READ_MAX,
    policy::{action, whole},
    record::{FLAW_LOST, FLAW_RACY, RING_LIFE},
    slot,
    verdict::denied,
};

use super::{
    file::base,
    process::IterTask,
    syscall::{Call, Handed},
};
use crate::{
    kernel::{
        field,
        file::{File, read_user},
        get, opaque,
        path::{Tail, Text},
        task::Task,
        value,
    },
    maps::{MEMORY, MODULES},
    policy,
    run::{self, Run},
};

/// `AT_FDCWD`
const CWD: i32 = -100;

// include/uapi/linux/bpf.h, `enum bpf_cmd`
const BPF_PROG_LOAD: u64 = 5;
const BPF_PROG_ATTACH: u64 = 8;
const BPF_RAW_TRACEPOINT_OPEN: u64 = 17;

/// A module was loaded; its call has not returned yet.
#[btf_tracepoint(function = "module_load")]
fn module_load(ctx: BtfTracePointContext) -> i32 {
    let module: u64 = ctx.arg(0);
    let mut loaded = Loaded {
        name: [0; MODULE_NAME],
        signature: signature::UNCHECKED,
    };
    if value(slot::MODULE_SIG_OK) != slot::NONE {
        loaded.signature = match get::<u8>(module, slot::MODULE_SIG_OK) {
            0 => signature::NONE,
            _ => signature::GOOD,
        };
    }
    // SAFETY: the destination is ours; the helper never faults.
    unsafe {
        bpf_probe_read_kernel_str(
            (&raw mut loaded.name).cast(),
            MODULE_NAME as u32,
            field(module, slot::MODULE_NAME) as *const _,
        );
    }
    let _ = MODULES.insert(&Task::current().tid(), &loaded, 0);
    0
}

/// A call of this family returned. What moves mounts moves paths.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sumun_kernel(call: u64) -> u64 {
    match Call(call).action() {
        action::INIT_MODULE | action::FINIT_MODULE | action::DELETE_MODULE => sumun_module(call),
        action::BPF => sumun_program(call),
        action::KEXEC | action::IO_URING => sumun_setup(call),
        _ => {
            if run::given(Call(call).level()).is_some_and(|given| given.result >= 0) {
                policy::flush();
            }
            sumun_mount(call)
        }
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_module(call: u64) -> u64 {
    let call = Call(call);
    let (kind, place) = if call.action() == action::DELETE_MODULE {
        (kind::MODULE_UNLOAD, whole::MODULE_UNLOAD)
    } else {
        (kind::MODULE_LOAD, whole::MODULE_LOAD)
    };
    let Some(handed) = call.handed(place) else {
        return 0;
    };
    if super::deny::was_denied(handed.result(), denied::MODULE_LOAD) {
        return 0;
    }
    let task = handed.task;
    let [a, b, c, ..] = handed.given.arguments;
    let Some(record) = handed.run.record::<Module>() else {
        return 0;
    };
    let mut tail = Tail::after::<Module>(handed.run.level);
    let from_file = handed.action == action::FINIT_MODULE;
    let file = if from_file {
        File::of(task, a as i32)
    } else {
        File::LOST
    };
    let mut flags = handed.flags;
    if from_file && file.is_lost() {
        flags |= KERNEL_LOST;
    }
    let (parameters, call_flags) = match handed.action {
        action::INIT_MODULE => (c, 0),
        action::FINIT_MODULE => (b, c),
        _ => (0, b),
    };
    let tid = task.tid();
    let racy = if task.shares_files() { FLAW_RACY } else { 0 };
    // SAFETY: the record is this run's, and all fields are written; the map value is live, and only this
    // thread's calls write it. The helpers never fault.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).number).write(handed.given.number as u32);
        addr_of_mut!((*record).result).write(handed.result());
        addr_of_mut!((*record).call_flags).write(call_flags as u32);
        file.identity(
            addr_of_mut!((*record).dev),
            addr_of_mut!((*record).mode),
            addr_of_mut!((*record).ino),
        );
        let path = addr_of_mut!((*record).path);
        if file.is_lost() {
            Text::NONE.store(path, if from_file { FLAW_LOST | racy } else { 0 });
        } else {
            tail.path(file.dentry(), file.mnt()).store(path, racy);
        }
        let place = addr_of_mut!((*record).parameters);
        if parameters == 0 {
            Text::NONE.store(place, 0);
        } else {
            tail.user_string(parameters).store(place, 0);
        }
        let name = addr_of_mut!((*record).name);
        clear(name.cast(), MODULE_NAME);
        let signature = addr_of_mut!((*record).signature);
        signature.write(signature::UNCHECKED);
        if handed.action == action::DELETE_MODULE {
            flags |= KERNEL_CALLER;
            bpf_probe_read_user_str(name.cast(), MODULE_NAME as u32, a as *const _);
        } else if let Some(found) = MODULES.get_ptr(&tid) {
            ptr::copy_nonoverlapping(addr_of!((*found).name), name, 1);
            signature.write((*found).signature);
            let _ = MODULES.remove(&tid);
        }
        addr_of_mut!((*record).flags).write(flags);
    }
    handed.send(kind, tail.end())
}

/// Zeroes bytes in words of eight, where the compiler would call a function.
#[inline(always)]
fn clear(place: *mut u8, len: usize) {
    let mut at = 0;
    while at < len {
        // SAFETY: callers pass an aligned field of their record of that length, a multiple of eight.
        unsafe { place.add(at).cast::<u64>().write_volatile(0) };
        at += 8;
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_program(call: u64) -> u64 {
    let Some(handed) = Call(call).handed(whole::BPF) else {
        return 0;
    };
    let task = handed.task;
    let [command, attributes, ..] = handed.given.arguments;
    let command = command & 0xffff_ffff;
    let result = handed.result();
    // Where the program's descriptor is in the attributes: `union bpf_attr`.
    let fd = match command {
        BPF_PROG_LOAD => handed.given.result as u32,
        BPF_PROG_ATTACH => read_user(attributes + 4).unwrap_or(u32::MAX),
        BPF_RAW_TRACEPOINT_OPEN => read_user(attributes + 8).unwrap_or(u32::MAX),
        _ => read_user(attributes).unwrap_or(u32::MAX),
    };
    let program: u64 = if command != BPF_PROG_LOAD || result == 0 {
        get(File::of(task, fd as i32).0, slot::FILE_PRIVATE)
    } else {
        0
    };
    let Some(record) = handed.run.record::<Program>() else {
        return 0;
    };
    let mut flags = handed.flags;
    // SAFETY: the record is this run's, and all fields are written. The helpers never fault.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).number).write(handed.given.number as u32);
        addr_of_mut!((*record).result).write(result);
        addr_of_mut!((*record).command).write(command as u32);
        let name = addr_of_mut!((*record).name);
        clear(name.cast(), PROGRAM_NAME);
        let kind = addr_of_mut!((*record).kind);
        let attach = addr_of_mut!((*record).attach);
        let instructions = addr_of_mut!((*record).instructions);
        let id = addr_of_mut!((*record).id);
        id.write(0);
        // A failed attachment may have named something that is no program at all.
        if program != 0 && result == 0 {
            let aux: u64 = get(program, slot::PROG_AUX);
            kind.write(get(program, slot::PROG_TYPE));
            attach.write(get(program, slot::PROG_ATTACH));
            instructions.write(get(program, slot::PROG_LEN));
            id.write(get(aux, slot::PROG_AUX_ID));
            bpf_probe_read_kernel_str(
                name.cast(),
                PROGRAM_NAME as u32,
                field(aux, slot::PROG_AUX_NAME) as *const _,
            );
        } else if command == BPF_PROG_LOAD && result != 0 {
            flags |= KERNEL_CALLER;
            kind.write(read_user(attributes).unwrap_or(u32::MAX));
            instructions.write(read_user(attributes + 4).unwrap_or(0));
            attach.write(read_user(attributes + 68).unwrap_or(0));
            bpf_probe_read_user(
                name.cast(),
                PROGRAM_NAME as u32,
                (attributes + 48) as *const _,
            );
        } else {
            flags |= KERNEL_LOST;
            kind.write(u32::MAX);
            attach.write(0);
            instructions.write(0);
        }
        addr_of_mut!((*record).flags).write(flags);
    }
    handed.send(kind::BPF, size_of::<Program>() as u32)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_mount(call: u64) -> u64 {
    let call = Call(call);
    let (kind, place) = match call.action() {
        action::UMOUNT => (kind::UMOUNT, whole::UMOUNT),
        action::PIVOT_ROOT => (kind::PIVOT_ROOT, whole::PIVOT_ROOT),
        action::CHROOT => (kind::CHROOT, whole::CHROOT),
        _ => (kind::MOUNT, whole::MOUNT),
    };
    let Some(handed) = call.handed(place) else {
        return 0;
    };
    let task = handed.task;
    let [a, b, c, d, e] = handed.given.arguments;
    // Source, target, type, flags.
    let (source, target, fs, call_flags) = match handed.action {
        action::UMOUNT => (0, a, 0, b),
        action::PIVOT_ROOT => (b, a, 0, 0),
        action::CHROOT => (0, a, 0, 0),
        action::MOVE_MOUNT => (b, d, 0, e),
        action::FSMOUNT => (0, 0, 0, b),
        action::MOUNT_AT => (0, b, 0, c),
        _ => (a, b, c, d),
    };
    let (source_dir, dir) = match handed.action {
        action::MOVE_MOUNT => (a as i32, c as i32),
        action::MOUNT_AT => (CWD, a as i32),
        _ => (CWD, CWD),
    };
    let Some(record) = handed.run.record::<Mount>() else {
        return 0;
    };
    let mut tail = Tail::after::<Mount>(handed.run.level);
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).number).write(handed.given.number as u32);
        addr_of_mut!((*record).flags).write(handed.flags);
        addr_of_mut!((*record).call_flags).write(call_flags);
        addr_of_mut!((*record).result).write(handed.result());
        addr_of_mut!((*record).pad).write(0);
        let place = addr_of_mut!((*record).source);
        let above = addr_of_mut!((*record).source_base);
        named(&handed, &mut tail, source, source_dir, (place, above));
        let place = addr_of_mut!((*record).target);
        let above = addr_of_mut!((*record).base);
        named(&handed, &mut tail, target, dir, (place, above));
        let place = addr_of_mut!((*record).fs);
        if fs == 0 {
            Text::NONE.store(place, 0);
        } else {
            tail.user_string(fs).store(place, 0);
        }
    }
    handed.send(kind, tail.end())
}

/// Appends a name of the caller's, if it gave one, and the directory that it is relative to.
#[inline(always)]
pub(super) fn named(
    handed: &Handed,
    tail: &mut Tail,
    name: u64,
    dirfd: i32,
    (place, above): (*mut sumun_abi::record::Span, *mut sumun_abi::record::Span),
) {
    if name == 0 {
        Text::NONE.store(place, 0);
        Text::NONE.store(above, 0);
        return;
    }
    let task = handed.task;
    let racy = if task.shares_files() || task.shares_fs() {
        FLAW_RACY
    } else {
        0
    };
    let start = tail.end();
    tail.user_string(name).store(place, 0);
    base(handed.run, task, tail, start, dirfd).store(above, racy);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sumun_setup(call: u64) -> u64 {
    let call = Call(call);
    let (kind, place) = if call.action() == action::KEXEC {
        (kind::KEXEC_LOAD, whole::KEXEC)
    } else {
        (kind::IO_URING_SETUP, whole::IO_URING)
    };
    let Some(handed) = call.handed(place) else {
        return 0;
    };
    let [a, b, _, d, e] = handed.given.arguments;
    let (entries, call_flags) = if kind == kind::IO_URING_SETUP {
        // `struct io_uring_params`: two numbers of entries, then the flags.
        let asked: u32 = read_user(b + 8).unwrap_or(0);
        (a as u32, u64::from(asked))
    } else {
        // kexec_load has its flags in the fourth place, kexec_file_load in the fifth.
        (0, if e != 0 { e } else { d })
    };
    let Some(record) = handed.run.record::<Setup>() else {
        return 0;
    };
    // SAFETY: the record is this run's; all fields are written.
    unsafe {
        handed.task.actor(addr_of_mut!((*record).actor));
        addr_of_mut!((*record).number).write(handed.given.number as u32);
        addr_of_mut!((*record).flags).write(handed.flags);
        addr_of_mut!((*record).result).write(handed.result());
        addr_of_mut!((*record).entries).write(entries);
        addr_of_mut!((*record).call_flags).write(call_flags);
    }
    handed.send(kind, size_of::<Setup>() as u32)
}

/// Writes into the iterator's file what `MEMORY` asks for, once.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn memory(ctx: *const IterTask) -> i32 {
    // SAFETY: the kernel passes this context to programs of this type.
    let (meta, pointer) = unsafe { ((*ctx).meta, (*ctx).task) };
    // SAFETY: as above.
    if pointer == 0 || unsafe { (*meta).num } != 0 {
        return 0;
    }
    let Some(wanted) = MEMORY.get_ptr(0) else {
        return 0;
    };
    // SAFETY: a live map value; the agent writes it before it opens the file.
    let [address, len] = unsafe { ptr::read_volatile(wanted) };
    if let Some(run) = Run::begin(RING_LIFE) {
        if let Some(scratch) = run::scratch(run.level) {
            let len = opaque(len);
            // SAFETY: the scratch is this run's, `len` is inside its record, and `seq` is the kernel's.
            unsafe {
                let out: *mut u8 = addr_of_mut!((*scratch).record).cast();
                if address == 0 {
                    let own = run.number(Task::current_plain().0.address);
                    out.cast::<u64>().write(own);
                    bpf_seq_write((*meta).seq.cast(), out.cast(), size_of::<u64>() as u32);
                } else if len <= READ_MAX as u64
                    && bpf_probe_read_kernel(out.cast(), len as u32, address as *const _) == 0
                {
                    bpf_seq_write((*meta).seq.cast(), out.cast(), len as u32);
                }
            }
        }
        run.end();
    }
    0
}
