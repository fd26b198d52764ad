//! Fields of the family `network`.

use std::borrow::Cow;

use sumun_abi::event::network::{CONN_CALLER, CONN_COPY, CONN_LOST, CONN_RACY};
use sumun_abi::record::{FLAW_LOST, FLAW_RACY};

use crate::catalogue::FieldId;
use crate::v1::{Kind, Network};

use super::{
    Items, UNKNOWN_TEXT, Value, View, int, ip_from, is_private, list, optional, source_name, text,
};

/// `AF_*` (include/linux/socket.h).
const FAMILIES: &[(u32, &str)] = &[
    (1, "unix"),
    (2, "inet"),
    (10, "inet6"),
    (16, "netlink"),
    (17, "packet"),
    (29, "can"),
    (31, "bluetooth"),
    (38, "alg"),
    (40, "vsock"),
    (44, "xdp"),
];

/// `SOCK_*` (include/linux/net.h).
const TYPES: &[(u32, &str)] = &[
    (1, "stream"),
    (2, "dgram"),
    (3, "raw"),
    (4, "rdm"),
    (5, "seqpacket"),
    (10, "packet"),
];

/// Types of DNS records.
const RECORDS: &[(u32, &str)] = &[
    (1, "A"),
    (2, "NS"),
    (5, "CNAME"),
    (6, "SOA"),
    (10, "NULL"),
    (12, "PTR"),
    (15, "MX"),
    (16, "TXT"),
    (28, "AAAA"),
    (33, "SRV"),
    (35, "NAPTR"),
    (41, "OPT"),
    (43, "DS"),
    (48, "DNSKEY"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (251, "IXFR"),
    (252, "AXFR"),
    (255, "ANY"),
];

/// What a server says of a question (RFC 1035, RFC 2136).
const RCODES: &[&str] = &[
    "noerror", "formerr", "servfail", "nxdomain", "notimp", "refused", "yxdomain", "yxrrset",
    "nxrrset", "notauth", "notzone",
];

/// The name of a number, or the number itself after `other`.
fn named(names: &'static [(u32, &'static str)], number: u32, other: &str) -> Value<'static> {
    match names.iter().find(|(known, _)| *known == number) {
        Some((_, name)) => text(name),
        None => Value::Str(Cow::Owned(format!("{other}{number}"))),
    }
}

impl<'a> View<'a> {
    pub(super) fn network(&self, id: FieldId) -> Option<Value<'a>> {
        let network = self.event.network.as_ref()?;
        match self.kind() {
            Kind::Socket => return socket(network, id),
            Kind::ConnectUnix => return connect_unix(network, id),
            // A socket by itself has no other end, and of UDP and DNS it is not looked for.
            Kind::Bind | Kind::Listen | Kind::ConnectUdp | Kind::Dns
                if matches!(
                    id,
                    FieldId::NetSrcIp | FieldId::NetSrcPort | FieldId::NetSrcPrivate
                ) =>
            {
                return None;
            }
            Kind::Bind | Kind::Listen | Kind::Dns if id == FieldId::NetSource => return None,
            Kind::ConnectUdp | Kind::Dns if id == FieldId::NetFlaws => return None,
            _ => {}
        }
        let lost = network.flags & u32::from(CONN_LOST) != 0;
        let address = |bytes: &[u8]| match ip_from(bytes) {
            Some(ip) => Some(Ok(ip)),
            None if lost => Some(Err(Value::Unknown)),
            None => None,
        };
        let port = |ip: &[u8], port: u32| match address(ip)? {
            Ok(_) => Some(Value::Int(port.into())),
            Err(unknown) => Some(unknown),
        };
        let written = |bytes: &[u8]| match address(bytes)? {
            Ok(ip) => Some(Value::Str(Cow::Owned(ip.to_string()))),
            Err(unknown) => Some(unknown),
        };
        let private = |bytes: &[u8]| match address(bytes)? {
            Ok(ip) => Some(Value::Bool(is_private(ip))),
            Err(unknown) => Some(unknown),
        };
        Some(match id {
            FieldId::NetSrcIp => written(&network.src_ip)?,
            FieldId::NetSrcPort => port(&network.src_ip, network.src_port)?,
            FieldId::NetSrcPrivate => private(&network.src_ip)?,
            FieldId::NetDstIp => written(&network.dst_ip)?,
            FieldId::NetDstPort => port(&network.dst_ip, network.dst_port)?,
            FieldId::NetDstPrivate => private(&network.dst_ip)?,
            FieldId::NetDstName if matches!(self.kind(), Kind::Connect | Kind::ConnectUdp) => {
                text(network.dst_name.as_deref()?)
            }
            FieldId::NetFolded if self.kind() == Kind::ConnectUdp => int(network.folded),
            FieldId::NetProto => match network.protocol {
                262 => text("mptcp"),
                6 => text("tcp"),
                17 => text("udp"),
                0 if lost => Value::Unknown,
                other => Value::Str(Cow::Owned(other.to_string())),
            },
            FieldId::NetSource => text(if network.flags & u32::from(CONN_CALLER) != 0 {
                "caller"
            } else if network.flags & u32::from(CONN_COPY) != 0 {
                "copy"
            } else {
                "object"
            }),
            FieldId::NetFlaws => list(Items::Flaws(flaws(network)), true),
            FieldId::Result => Value::Int(network.result?.into()),
            _ => return None,
        })
    }

    pub(super) fn dns(&self, id: FieldId) -> Option<Value<'a>> {
        let dns = self.event.dns.as_ref()?;
        // What is behind a flaw is not known.
        let cut = dns.flaws & UNKNOWN_TEXT != 0;
        let of_question = |value| match dns.question_name {
            Some(_) => Some(value),
            None if cut => Some(Value::Unknown),
            None => None,
        };
        Some(match id {
            FieldId::DnsResponse => Value::Bool(dns.response),
            FieldId::DnsQuestionName => {
                of_question(text(dns.question_name.as_deref().unwrap_or_default()))?
            }
            FieldId::DnsQuestionType => of_question(named(RECORDS, dns.question_type, "TYPE"))?,
            FieldId::DnsAnswers => list(Items::Strings(&dns.answers), !cut),
            FieldId::DnsRcode => match dns.rcode {
                Some(code) => match RCODES.get(code as usize) {
                    Some(name) => text(name),
                    None => Value::Str(Cow::Owned(code.to_string())),
                },
                None => return None,
            },
            FieldId::DnsFlaws => list(Items::Flaws(dns.flaws), true),
            _ => return None,
        })
    }
}

fn flaws(network: &Network) -> u32 {
    let of = |bit: u16, flaw: u8| match network.flags & u32::from(bit) {
        0 => 0,
        _ => u32::from(flaw),
    };
    of(CONN_LOST, FLAW_LOST) | of(CONN_RACY, FLAW_RACY)
}

fn socket(network: &Network, id: FieldId) -> Option<Value<'static>> {
    Some(match id {
        FieldId::SocketFamily => named(FAMILIES, network.family, ""),
        FieldId::SocketType => named(TYPES, network.r#type, ""),
        FieldId::SocketProtocol => Value::Int(network.protocol.into()),
        FieldId::NetFlaws => list(Items::Flaws(flaws(network)), true),
        FieldId::Result => Value::Int(network.result?.into()),
        _ => return None,
    })
}

fn connect_unix(network: &Network, id: FieldId) -> Option<Value<'_>> {
    Some(match id {
        FieldId::NetDstPath => optional(network.dst_path.as_deref(), network.dst_flaws)?,
        FieldId::NetProto => text("unix"),
        FieldId::SocketType if network.r#type == 0 => return None,
        FieldId::SocketType => named(TYPES, network.r#type, ""),
        FieldId::NetSource => text(source_name(network.dst_source)?),
        FieldId::NetFlaws => list(Items::Flaws(network.dst_flaws | flaws(network)), true),
        FieldId::Result => Value::Int(network.result?.into()),
        _ => return None,
    })
}
