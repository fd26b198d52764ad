//! Modules, BPF programs, mounts and roots, another kernel, io_uring.

use sumun_abi::event::file::CALL_COMPAT;
use sumun_abi::event::kernel::{Module, Mount, Program, Setting, Setup};
use sumun_abi::event::process::outcome;
use sumun_abi::record::Span;
use sumun_proto::text;
use sumun_proto::v1::{Event, File, KernelChange, Kind};

use super::file::{failed, joined, text_of};
use super::record::Record;
use crate::kernel::syscalls;

/// `MS_BIND | MS_MOVE` (include/uapi/linux/mount.h): the source is a directory or file, and no device.
const MS_BIND_MOVE: u64 = 4096 | 8192;

/// `MS_MGC_MSK` and `MS_MGC_VAL` (fs/namespace.c): what mount's flags were told by in Linux 2.4. The kernel takes it away,
/// and its bits are those of other flags.
const MS_MAGIC: [u64; 2] = [0xffff_0000, 0xc0ed_0000];

/// Flags of a mount or umount as the kernel takes them.
fn mount_flags(call: &str, given: u64) -> u64 {
    let [mask, magic] = MS_MAGIC;
    match call {
        "mount" if given & mask == magic => given & !mask,
        // The old one has no flags: in the place of a second argument is anything.
        "umount" => 0,
        _ => given,
    }
}

/// An event of this family.
fn event(kind: Kind, tid: u32, (number, flags): (u32, u32), kernel: KernelChange) -> Event {
    Event {
        kind: kind.into(),
        tid,
        call: syscalls::name(number, flags & CALL_COMPAT != 0)
            .unwrap_or_default()
            .into(),
        kernel: Some(kernel),
        ..Event::default()
    }
}

/// A name in a field of its own, ended by NUL.
pub(super) fn name(bytes: &[u8]) -> Option<String> {
    let len = bytes.iter().position(|byte| *byte == 0);
    let bytes = &bytes[..len.unwrap_or(bytes.len())];
    (!bytes.is_empty()).then(|| text::from_bytes(bytes))
}

/// init_module, finit_module, delete_module.
#[must_use]
pub fn module(kind: Kind, record: &Record<'_>, module: &Module) -> Event {
    let (parameters, _, parameters_flaws) = text_of(record, module.parameters);
    let name = name(&module.name);
    let change = KernelChange {
        result: Some(module.result),
        // What was loaded or removed has a name.
        name_unknown: name.is_none() && module.result == 0,
        signature: (kind == Kind::ModuleLoad && module.result == 0 && name.is_some())
            .then_some(module.signature as u32),
        name,
        parameters,
        parameters_flaws,
        flags: Some(module.call_flags.into()),
        ..KernelChange::default()
    };
    let call = (module.number, module.flags);
    let mut event = event(kind, module.actor.tid, call, change);
    let (path, source, flaws) = text_of(record, module.path);
    if path.is_some() || flaws != 0 {
        event.file = Some(File {
            path,
            source,
            flaws,
            dev: module.dev,
            ino: module.ino,
            mode: module.mode,
            ..File::default()
        });
    }
    event
}

/// A BPF program loaded or attached.
#[must_use]
pub fn program(kind: Kind, program: &Program) -> Event {
    let known = program.kind != u32::MAX;
    let change = KernelChange {
        result: Some(program.result),
        command: Some(program.command),
        name: name(&program.name),
        program_type: known.then_some(program.kind),
        attach_type: known.then_some(program.attach),
        program_id: program.id,
        ..KernelChange::default()
    };
    event(
        kind,
        program.actor.tid,
        (program.number, program.flags),
        change,
    )
}

/// mount, umount, pivot_root, chroot and the calls of the newer kind.
#[must_use]
pub fn mount(kind: Kind, record: &Record<'_>, mount: &Mount) -> Event {
    let call = (mount.number, mount.flags);
    let place = |base: Span, name: Span| {
        if name == Span::default() {
            return (None, 0);
        }
        let (path, _, flaws) = joined(record, base, name);
        (path, flaws)
    };
    let mut change = KernelChange {
        flags: Some(mount.call_flags),
        ..KernelChange::default()
    };
    (change.target, change.target_flaws) = place(mount.base, mount.target);
    let (fs, _, fs_flaws) = text_of(record, mount.fs);
    (change.fs, change.fs_flaws) = (fs, fs_flaws);
    let mut event = event(kind, mount.actor.tid, call, change);
    (event.result, event.failed) = (failed(mount.result), mount.result < 0);
    if let Some(change) = &mut event.kernel {
        change.flags = Some(mount_flags(&event.call, mount.call_flags));
    }
    let is_place = event.call != "mount" || mount.call_flags & MS_BIND_MOVE != 0;
    if let Some(change) = &mut event.kernel {
        (change.source, change.source_flaws) = if is_place {
            place(mount.source_base, mount.source)
        } else {
            let (source, _, flaws) = text_of(record, mount.source);
            (source, flaws)
        };
    }
    event
}

/// Another kernel, or an io_uring.
#[must_use]
pub fn setup(kind: Kind, setup: &Setup) -> Event {
    let change = KernelChange {
        result: Some(setup.result),
        entries: (kind == Kind::IoUringSetup).then_some(setup.entries),
        flags: Some(setup.call_flags),
        ..KernelChange::default()
    };
    event(kind, setup.actor.tid, (setup.number, setup.flags), change)
}

/// A setting that is written. Its name is as sysctl(8) has it: a dot parts, and a dot within a name is a slash.
#[must_use]
pub fn setting(record: &Record<'_>, setting: &Setting) -> Event {
    let (name, _, name_flaws) = text_of(record, setting.name);
    let (value, _, value_flaws) = text_of(record, setting.value);
    let swapped = |name: String| {
        let swap = |character| match character {
            '/' => '.',
            '.' => '/',
            other => other,
        };
        name.chars().map(swap).collect()
    };
    Event {
        kind: Kind::Sysctl.into(),
        tid: setting.actor.tid,
        result: (setting.verdict.outcome == outcome::DENIED).then_some(-libc::EPERM),
        kernel: Some(KernelChange {
            name: name.map(swapped),
            name_flaws,
            value,
            value_flaws,
            ..KernelChange::default()
        }),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_those_that_the_kernel_takes() {
        // As busybox and older versions of util-linux hand them over.
        assert_eq!(mount_flags("mount", 0xc0ed_0000), 0);
        assert_eq!(
            mount_flags("mount", 0xc0ed_0000 | MS_BIND_MOVE),
            MS_BIND_MOVE
        );
        // MS_PRIVATE | MS_REC
        assert_eq!(mount_flags("mount", 1 << 18 | 16384), 1 << 18 | 16384);
        assert_eq!(mount_flags("umount", 3), 0);
        assert_eq!(mount_flags("umount2", 3), 3);
    }
}
