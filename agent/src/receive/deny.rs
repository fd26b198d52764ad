//! Calls that rules which deny were asked about: those that failed are events.

use sumun_abi::event::deny::Asked;
use sumun_abi::event::network::FAMILY_INET;
use sumun_abi::record::FLAW_LOST;
use sumun_proto::v1::{Event, File, KernelChange, Kind, Network, Privilege, Source, Target};

use crate::enrich::process::Program;

use super::file::text_of;
use super::record::Record;

/// The kind of the call.
#[must_use]
pub fn kind(asked: &Asked) -> Kind {
    i32::try_from(asked.kind)
        .ok()
        .and_then(|kind| Kind::try_from(kind).ok())
        .unwrap_or_default()
}

/// A call that was denied.
#[must_use]
pub fn denied(record: &Record<'_>, asked: &Asked) -> Event {
    let mut event = Event {
        kind: kind(asked).into(),
        tid: asked.actor.tid,
        result: Some(-libc::EPERM),
        ..Event::default()
    };
    if asked.family != 0 {
        let dst_ip = match asked.family {
            FAMILY_INET => asked.dst[..4].to_vec(),
            _ => asked.dst.to_vec(),
        };
        event.network = Some(Network {
            dst_ip,
            dst_port: asked.dst_port.into(),
            protocol: asked.protocol,
            result: Some(-libc::EPERM),
            begun_boot_ns: asked.header.boot_ns,
            ..Network::default()
        });
    }
    let (path, _, flaws) = text_of(record, asked.path);
    match kind(asked) {
        Kind::Ptrace => {
            event.privilege = Some(Privilege {
                target: (asked.target_pid != 0).then(|| Target {
                    pid: asked.target_pid,
                    start_ns: asked.target_start_ns,
                    exe_path: path,
                    exe_flaws: flaws,
                    ..Target::default()
                }),
                result: Some(-libc::EPERM),
                ..Privilege::default()
            });
        }
        Kind::Mount | Kind::PivotRoot => {
            event.kernel = Some(KernelChange {
                target: path,
                target_flaws: flaws,
                flags: Some(asked.value),
                ..KernelChange::default()
            });
        }
        of => {
            if path.is_some() {
                let (new_path, _, new_flaws) = text_of(record, asked.to_path);
                event.file = Some(File {
                    path,
                    source: Source::Object.into(),
                    flaws,
                    flags: asked.flags,
                    dev: asked.dev,
                    ino: asked.ino,
                    mode: asked.mode,
                    fd: -1,
                    new_path,
                    new_flaws,
                    change: (of == Kind::Chmod).then_some(asked.value & 0o7777),
                    ..File::default()
                });
            }
            if of == Kind::MapWx {
                event.privilege = Some(Privilege {
                    protection: asked.value as u32,
                    ..Privilege::default()
                });
            }
            if of == Kind::ModuleLoad {
                event.kernel = Some(KernelChange {
                    result: Some(-libc::EPERM),
                    ..KernelChange::default()
                });
            }
        }
    }
    event
}

/// What is known of a program that was not started.
#[must_use]
pub fn program(record: &Record<'_>, asked: &Asked) -> Program {
    let (path, _, flaws) = text_of(record, asked.path);
    let lost = u32::from(FLAW_LOST);
    Program {
        exe_path: path.unwrap_or_default(),
        exe_flaws: flaws,
        exe_dev: asked.dev,
        exe_ino: asked.ino,
        in_image: super::process::in_image(asked.flags),
        args_flaws: lost,
        cwd_flaws: lost,
        ..Program::default()
    }
}
