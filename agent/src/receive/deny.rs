//! Calls that rules which deny were asked about: those that failed are events.

use sumun_abi::event::deny::Asked;
use sumun_proto::v1::{Event, Kind, Network};

use sumun_abi::event::network::FAMILY_INET;

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
pub fn denied(asked: &Asked) -> Event {
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
    event
}
