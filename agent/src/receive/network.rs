//! TCP connections, made and accepted; sockets bound and listening.

use sumun_abi::event::network::{CONN_LOST, Connection, FAMILY_INET, RESULT_UNKNOWN};
use sumun_proto::v1::{Event, Kind, Network};

/// A socket that was bound or listens: there is no other end.
#[must_use]
pub fn own_end(kind: Kind, own: &Connection) -> Event {
    let mut event = connection(kind, own);
    if let Some(network) = &mut event.network {
        network.src_ip = Vec::new();
    }
    event
}

/// A connect that ended, or an accepted connection.
#[must_use]
pub fn connection(kind: Kind, connection: &Connection) -> Event {
    let lost = connection.flags & CONN_LOST != 0;
    let address = |bytes: &[u8; 16]| match connection.family {
        _ if lost => Vec::new(),
        FAMILY_INET => bytes[..4].to_vec(),
        _ => bytes.to_vec(),
    };
    Event {
        kind: kind.into(),
        tid: connection.actor.tid,
        network: Some(Network {
            src_ip: address(&connection.src),
            dst_ip: address(&connection.dst),
            src_port: connection.src_port.into(),
            dst_port: connection.dst_port.into(),
            protocol: connection.protocol,
            result: (connection.result != RESULT_UNKNOWN).then_some(connection.result),
            begun_boot_ns: connection.begun_ns,
            flags: connection.flags.into(),
        }),
        ..Event::default()
    }
}
