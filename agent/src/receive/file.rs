//! Open, close after write, rename and unlink.

use sumun_abi::event::file::{Names, Open};
use sumun_abi::record::{FLAW_LOST, Span};
use sumun_proto::text;
use sumun_proto::v1::{Event, File, Kind, Source};

use super::record::Record;

/// An open or a close after write.
#[must_use]
pub fn open(kind: Kind, record: &Record<'_>, open: &Open) -> Event {
    let (path, source, flaws) = path(record, open.path);
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
        ..Event::default()
    }
}

/// A rename or an unlink: the kernel's base directory, the caller's names.
#[must_use]
pub fn names(kind: Kind, record: &Record<'_>, names: &Names) -> Event {
    let (path, source, flaws) = joined(record, names.base, names.name);
    let mut file = File {
        path,
        source,
        flaws,
        flags: names.flags,
        call_flags: names.call_flags,
        ..File::default()
    };
    if kind == Kind::Rename {
        (file.new_path, file.new_source, file.new_flaws) =
            joined(record, names.to_base, names.to_name);
    }
    Event {
        kind: kind.into(),
        tid: names.actor.tid,
        file: Some(file),
        ..Event::default()
    }
}

fn path(record: &Record<'_>, span: Span) -> (Option<String>, i32, u32) {
    let bytes = record.text(span);
    let path = (!bytes.is_empty()).then(|| text::from_bytes(bytes));
    (path, i32::from(span.source), u32::from(span.flaws))
}

/// A name in its directory. An absolute name stands alone; all of it is the caller's word.
fn joined(record: &Record<'_>, base: Span, name: Span) -> (Option<String>, i32, u32) {
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
