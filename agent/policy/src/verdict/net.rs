//! Conditions on the ends of a connection and on its protocol, as the kernel judges them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sumun_proto::FieldId;

use super::formula::Formula;
use super::{End, Id, NETS_MAX};

/// `IPPROTO_TCP`, `IPPROTO_UDP` and `IPPROTO_MPTCP`, by their names in events; others are their number there.
const PROTOCOLS: [(&str, u32); 3] = [("tcp", 6), ("udp", 17), ("mptcp", 262)];

/// What [`sumun_proto::view::is_private`] is true of.
const PRIVATE: [(IpAddr, u8); 9] = [
    (v4(10, 0), 8),
    (v4(100, 64), 10),
    (v4(127, 0), 8),
    (v4(169, 254), 16),
    (v4(172, 16), 12),
    (v4(192, 168), 16),
    (IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
    (v6(0xfc00), 7),
    (v6(0xfe80), 10),
];

const fn v4(first: u8, second: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(first, second, 0, 0))
}

const fn v6(first: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0))
}

/// `net.src.private`, `net.dst.private`.
pub(super) fn private(field: FieldId) -> Option<Formula> {
    let end = match field {
        FieldId::NetSrcPrivate => End::Src,
        FieldId::NetDstPrivate => End::Dst,
        _ => return None,
    };
    Some(Formula::net(end, PRIVATE.to_vec()))
}

/// True for fields that are texts of what the kernel knows as numbers.
pub(super) fn is_text(field: FieldId) -> bool {
    field == FieldId::NetProto || end(field).is_some()
}

fn end(field: FieldId) -> Option<End> {
    match field {
        FieldId::NetSrcIp => Some(End::Src),
        FieldId::NetDstIp => Some(End::Dst),
        _ => None,
    }
}

/// The address lies in a network.
pub(super) fn within(field: FieldId, net: IpNet) -> Result<Formula, &'static str> {
    let end = end(field).ok_or("")?;
    if let IpNet::V6(net) = net
        && net.addr().to_ipv4_mapped().is_some()
    {
        return Err("no address is IPv4 mapped to IPv6: write it as IPv4");
    }
    Ok(Formula::net(end, vec![(net.addr(), net.prefix_len())]))
}

/// The field, of which `is_text` is true, is one of the texts.
pub(super) fn one_of(field: FieldId, texts: &[String]) -> Result<Formula, &'static str> {
    let Some(end) = end(field) else {
        let number = |text: &String| match PROTOCOLS.iter().find(|(name, _)| name == text) {
            Some((_, number)) => Some(*number),
            None => {
                let number: u32 = text.parse().ok()?;
                let named = PROTOCOLS.iter().any(|(_, known)| *known == number);
                (!named && number.to_string() == *text).then_some(number)
            }
        };
        let known = texts.iter().filter_map(number);
        return Ok(Formula::number(
            Id::Protocol,
            known.map(|number| (number, number)).collect(),
        ));
    };
    if texts.is_empty() {
        return Err("the list is empty");
    }
    if texts.len() > NETS_MAX {
        return Err("the list has more than 1024 addresses");
    }
    let address = |text: &String| {
        let address: IpAddr = text.parse().ok()?;
        let is_mapped = matches!(address, IpAddr::V6(six) if six.to_ipv4_mapped().is_some());
        let bits = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        (!is_mapped && address.to_string() == *text).then_some((address, bits))
    };
    let addresses: Option<Vec<_>> = texts.iter().map(address).collect();
    let addresses = addresses.ok_or("a text is no address, or is not written as events have it")?;
    Ok(Formula::net(end, addresses))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sumun_proto::view::is_private;

    /// The first and last address of each network are private, their neighbours are not.
    #[test]
    fn private_networks_are_those_of_the_catalogue() {
        let of = |address: IpAddr| {
            let nets = PRIVATE.iter();
            nets.filter_map(|(net, bits)| IpNet::new(*net, *bits).ok())
                .any(|net| net.contains(&address))
        };
        let mut looked_at = 0;
        for (net, bits) in PRIVATE {
            let net = IpNet::new(net, bits).expect("a network");
            assert_eq!(net.network(), net.addr(), "host bits are zero");
            let around = |address: IpAddr| match address {
                IpAddr::V4(four) => {
                    let number = u32::from(four);
                    [number.wrapping_sub(1), number, number.wrapping_add(1)]
                        .map(|number| IpAddr::V4(number.into()))
                }
                IpAddr::V6(six) => {
                    let number = u128::from(six);
                    [number.wrapping_sub(1), number, number.wrapping_add(1)]
                        .map(|number| IpAddr::V6(number.into()))
                }
            };
            for address in [net.network(), net.broadcast()]
                .into_iter()
                .flat_map(around)
            {
                assert_eq!(of(address), is_private(address), "{address}");
                looked_at += 1;
            }
        }
        assert_eq!(looked_at, 6 * PRIVATE.len());
    }

    #[test]
    fn only_addresses_as_events_have_them() {
        let told = |text: &str| one_of(FieldId::NetDstIp, &[text.to_owned()]).is_ok();
        for (text, known) in [
            ("10.0.0.1", true),
            ("2001:db8::1", true),
            ("2001:DB8::1", false),
            ("2001:db8:0::1", false),
            ("::ffff:10.0.0.1", false),
            ("10.0.0.01", false),
            ("localhost", false),
        ] {
            assert_eq!(told(text), known, "{text}");
        }
        let mapped: IpNet = "::ffff:10.0.0.0/104".parse().expect("a network");
        assert!(within(FieldId::NetDstIp, mapped).is_err());
        let every: IpNet = "::/0".parse().expect("a network");
        assert!(within(FieldId::NetDstIp, every).is_ok());
    }
}
