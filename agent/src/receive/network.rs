//! TCP connections, made and accepted; sockets bound and listening; talk by UDP, Unix sockets, unusual sockets, DNS.

use std::net::IpAddr;

use sumun_abi::event::network::{
    CONN_LOST, Connection, DNS_ANSWER, DNS_TCP, Datagram, Dns, FAMILY_INET, RESULT_UNKNOWN, Socket,
    UnixConnect,
};
use sumun_abi::record::{FLAW_PARTIAL, FLAW_TRUNCATED, SOURCE_COPY};
use sumun_proto::text;
use sumun_proto::v1::{self, Event, Kind, Network};

use super::dns;
use super::record::Record;

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
            ..Network::default()
        }),
        ..Event::default()
    }
}

/// Whom a process talks to by UDP.
#[must_use]
pub fn datagram(datagram: &Datagram) -> Event {
    let mut event = own_end(Kind::ConnectUdp, &datagram.connection);
    if let Some(network) = &mut event.network {
        network.folded = datagram.folded;
    }
    event
}

/// A connect of a Unix socket.
#[must_use]
pub fn unix(record: &Record<'_>, connect: &UnixConnect) -> Event {
    let bytes = record.text(connect.path);
    let path = match bytes {
        [] => None,
        // Without a file: written as /proc/net/unix does. What is padded with NULs has them in its name.
        [0, name @ ..] if connect.path.source == SOURCE_COPY => {
            let mut path = "@".to_owned();
            text::push_bytes(&mut path, name);
            Some(path)
        }
        // A path in an address may end before the address does.
        path => Some(text::from_bytes(
            path.split(|byte| *byte == 0).next().unwrap_or_default(),
        )),
    };
    Event {
        kind: Kind::ConnectUnix.into(),
        tid: connect.actor.tid,
        network: Some(Network {
            result: Some(connect.result),
            flags: connect.flags.into(),
            dst_path: path,
            dst_source: connect.path.source.into(),
            dst_flaws: connect.path.flaws.into(),
            r#type: connect.kind.into(),
            ..Network::default()
        }),
        ..Event::default()
    }
}

/// A socket of an unusual kind was made.
#[must_use]
pub fn socket(socket: &Socket) -> Event {
    /// `AF_PACKET`: its protocol is in network order.
    const PACKET: u32 = 17;
    let protocol = match socket.family {
        PACKET => u16::from_be(socket.protocol as u16).into(),
        _ => socket.protocol,
    };
    Event {
        kind: Kind::Socket.into(),
        tid: socket.actor.tid,
        network: Some(Network {
            result: Some(socket.result),
            flags: socket.flags,
            family: socket.family,
            r#type: socket.kind,
            protocol,
            ..Network::default()
        }),
        ..Event::default()
    }
}

/// What a DNS server answered: the name that was asked for, and its addresses, each with the seconds that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// In lower case, in the catalogue's form.
    pub name: String,
    /// As events have them.
    pub addresses: Vec<(IpAddr, u32)>,
}

/// A DNS message, and what it resolves. Of a segment that is no message, as all but the first of a long one, the event
/// says that it is partial.
#[must_use]
pub fn dns(record: &Record<'_>, dns: &Dns) -> (Event, Option<Resolved>) {
    let tcp = dns.flags & DNS_TCP != 0;
    let mut bytes = record.text(dns.message);
    let mut flaws = if (dns.len as usize) > bytes.len() {
        FLAW_TRUNCATED
    } else {
        0
    };
    if tcp {
        // The length of the message comes first; what does not fit together is found below.
        let len = bytes
            .get(..2)
            .map_or(0, |len| usize::from(u16::from_be_bytes([len[0], len[1]])));
        bytes = bytes.get(2..).unwrap_or_default();
        if len < bytes.len() {
            // Another message comes after it.
            bytes = &bytes[..len];
            flaws |= FLAW_PARTIAL;
        }
    }
    let message = dns::read(bytes).unwrap_or_else(|| dns::Message {
        flaws: FLAW_PARTIAL,
        ..dns::Message::default()
    });
    let response = dns.flags & DNS_ANSWER != 0;
    let is_answer = response && message.response;
    let (name, kind) = match message.question {
        Some((name, kind)) => (Some(name), kind.into()),
        None => (None, 0),
    };
    let resolved = name
        .clone()
        .filter(|_| is_answer && !message.addresses.is_empty())
        .map(|name| Resolved {
            name,
            addresses: message.addresses,
        });
    let server = match dns.family {
        FAMILY_INET => dns.server[..4].to_vec(),
        // As everywhere, one of IPv4 is told as such.
        _ => match std::net::Ipv6Addr::from(dns.server).to_canonical() {
            IpAddr::V4(four) => four.octets().to_vec(),
            IpAddr::V6(six) => six.octets().to_vec(),
        },
    };
    let event = Event {
        kind: Kind::Dns.into(),
        tid: dns.actor.tid,
        network: Some(Network {
            dst_ip: server,
            dst_port: 53,
            protocol: if tcp { 6 } else { 17 },
            ..Network::default()
        }),
        dns: Some(v1::Dns {
            response,
            question_name: name,
            question_type: kind,
            rcode: is_answer.then(|| message.rcode.into()),
            answers: message.answers,
            flaws: (flaws | message.flaws).into(),
        }),
        ..Event::default()
    };
    (event, resolved)
}
