//! Open, close after write, rename and unlink; changes of a file.

use sumun_abi::event::file::{
    CALL_COMPAT, CALL_IO_URING, CHANGE_OBJECT, CHANGE_TO_OBJECT, Change, FailedOpen, NAMES_OBJECT,
    Names, OPEN_FAILED, Open,
};
use sumun_abi::record::{FLAW_LOST, Span};
use sumun_proto::text;
use sumun_proto::v1::{Event, File, Kind, Source};

use super::record::Record;
use crate::kernel::syscalls;

/// An open, a close after write, or a file that was mapped to be executed.
#[must_use]
pub fn open(kind: Kind, record: &Record<'_>, open: &Open) -> Event {
    let (path, source, flaws) = text_of(record, open.path);
    Event {
        kind: kind.into(),
        tid: open.actor.tid,
        file: Some(File {
            path,
            source,
            flaws,
            flags: open.flags,
            dev: open.dev,
            ino: open.ino,
            mode: open.mode,
            fd: open.fd,
            ..File::default()
        }),
        call: made(open.flags, "").into(),
        ..Event::default()
    }
}

/// An open that failed: the kernel's base directory, the caller's name.
#[must_use]
pub fn failed_open(record: &Record<'_>, open: &FailedOpen) -> Event {
    let (path, source, flaws) = joined(record, open.base, open.name);
    Event {
        kind: Kind::Open.into(),
        tid: open.actor.tid,
        result: Some(open.result),
        failed: true,
        file: Some(File {
            path,
            source,
            flaws,
            flags: open.flags | OPEN_FAILED,
            fd: -1,
            ..File::default()
        }),
        ..Event::default()
    }
}

/// A rename or an unlink, or one that failed: the kernel's own objects where a decision point saw the call, else its base directory and the
/// caller's names.
#[must_use]
pub fn names(kind: Kind, record: &Record<'_>, names: &Names) -> Event {
    let named = |base, name| match names.flags & NAMES_OBJECT {
        0 => joined(record, base, name),
        _ => text_of(record, name),
    };
    let (path, source, flaws) = named(names.base, names.name);
    let mut file = File {
        path,
        source,
        flaws,
        flags: names.flags,
        call_flags: names.call_flags,
        dev: names.dev,
        ino: names.ino,
        mode: names.mode,
        ..File::default()
    };
    if kind == Kind::Rename {
        (file.new_path, file.new_source, file.new_flaws) = named(names.to_base, names.to_name);
    }
    Event {
        kind: kind.into(),
        tid: names.actor.tid,
        result: failed(names.result),
        failed: names.result < 0,
        file: Some(file),
        call: made(names.flags, "").into(),
        ..Event::default()
    }
}

/// A change of permissions, owner, length, links or extended attributes.
#[must_use]
pub fn change(kind: Kind, record: &Record<'_>, change: &Change) -> Event {
    let compat = change.flags & CALL_COMPAT != 0;
    let object = change.flags & CHANGE_OBJECT != 0;
    let (path, source, flaws) = if object || kind == Kind::Symlink {
        text_of(record, change.name)
    } else {
        joined(record, change.base, change.name)
    };
    let mut file = File {
        path,
        source,
        flaws,
        flags: change.flags,
        dev: change.dev,
        ino: change.ino,
        mode: change.mode,
        ..File::default()
    };
    match kind {
        // The kernel takes these bits and no other (`S_IALLUGO`).
        Kind::Chmod => file.change = Some(change.value & 0o7777),
        Kind::Chown => {
            let id = |given| id(change.number, compat, given);
            (file.owner, file.group) = (id(change.uid), id(change.gid));
        }
        Kind::Truncate => file.change = Some(length(change.number, compat, change.value)),
        Kind::Link | Kind::Symlink => {
            (file.new_path, file.new_source, file.new_flaws) = match change.flags & CHANGE_TO_OBJECT
            {
                0 => joined(record, change.to_base, change.to_name),
                _ => text_of(record, change.to_name),
            };
        }
        _ => {
            let (name, _, flaws) = text_of(record, change.to_name);
            (file.xattr, file.xattr_flaws) = (name, flaws);
        }
    }
    Event {
        kind: kind.into(),
        tid: change.actor.tid,
        result: failed(change.result),
        failed: change.result < 0,
        file: Some(file),
        call: made(
            change.flags,
            syscalls::name(change.number, compat).unwrap_or_default(),
        )
        .into(),
        ..Event::default()
    }
}

/// The result of an attempt that failed.
pub(super) fn failed(result: i32) -> Option<i32> {
    (result < 0).then_some(result)
}

/// What made it: io_uring, or a system call of this name.
fn made(flags: u32, call: &'static str) -> &'static str {
    if flags & CALL_IO_URING == 0 {
        call
    } else {
        "io_uring"
    }
}

/// An owner as the caller gave it; `None` if it stays. Three old 32-bit calls (lchown, fchown, chown) know
/// sixteen bits only.
fn id(number: u32, compat: bool, given: u32) -> Option<u32> {
    if compat && matches!(number, 16 | 95 | 182) {
        let short = given & 0xffff;
        return (short != 0xffff).then_some(short);
    }
    (given != u32::MAX).then_some(given)
}

/// A length: 32-bit calls hand over the second and third argument as one number, of which truncate and ftruncate
/// mean the lower half. On Arm (EABI) that of truncate64 and ftruncate64 begins in the third: its upper half is not known.
fn length(number: u32, compat: bool, given: u64) -> u64 {
    match (compat, number) {
        (true, 193 | 194) if cfg!(target_arch = "aarch64") => given >> 32,
        (true, 193 | 194) | (false, _) => given,
        (true, _) => given & 0xffff_ffff,
    }
}

/// The text of a span as it stands, with source and flaws.
pub(super) fn text_of(record: &Record<'_>, span: Span) -> (Option<String>, i32, u32) {
    let bytes = record.text(span);
    let path = (!bytes.is_empty()).then(|| text::from_bytes(bytes));
    (path, i32::from(span.source), u32::from(span.flaws))
}

/// A name in its directory. An absolute name stands alone; all of it is the caller's word.
pub(super) fn joined(record: &Record<'_>, base: Span, name: Span) -> (Option<String>, i32, u32) {
    let caller = i32::from(Source::Caller);
    let (base_bytes, name_bytes) = (record.text(base), record.text(name));
    if name_bytes.is_empty() {
        return (None, caller, u32::from(name.flaws) | u32::from(FLAW_LOST));
    }
    if name_bytes.starts_with(b"/") {
        return (
            Some(text::from_bytes(name_bytes)),
            caller,
            u32::from(name.flaws),
        );
    }
    let mut path = text::from_bytes(base_bytes);
    if !path.ends_with('/') {
        path.push('/');
    }
    text::push_bytes(&mut path, name_bytes);
    (
        Some(path),
        caller,
        u32::from(name.flaws) | u32::from(base.flaws),
    )
}
