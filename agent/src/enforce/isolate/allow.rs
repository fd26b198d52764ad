//! What goes on while the host is cut off: a list, whose entries each say why they are there.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sumun_abi::event::network::{FAMILY_INET, FAMILY_INET6};
use sumun_abi::isolate::{ALLOWED_MAX, ANY_PORT, Allowed};

/// Most entries that a configuration gives.
pub const CONFIGURED_MAX: usize = 32;
/// Most addresses of the collector, of DNS servers and of file servers, each.
pub const FOUND_MAX: usize = 8;
// With the four of DHCP.
/// Where servers of DHCP are: on the link, or behind a relay at an address that is not of the Internet, where anybody could be the
/// other end (RFC 1918, 6598, 3927, 8415). One at a public address has to be listed in the configuration.
const DHCP: [(IpAddr, u8); 8] = [
    (IpAddr::V4(Ipv4Addr::BROADCAST), 32),
    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), 12),
    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(100, 64, 0, 0)), 10),
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    (IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2)), 128),
];
const _: () = assert!(CONFIGURED_MAX + 3 * FOUND_MAX + DHCP.len() <= ALLOWED_MAX);

/// Protocols that have ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    fn number(self) -> u16 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Packets to and from a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    /// Why.
    pub why: &'static str,
    /// Address of the network, the host bits zero.
    pub net: IpAddr,
    /// Length of its prefix.
    pub bits: u8,
    /// Only of this protocol.
    pub protocol: Option<Protocol>,
    /// Only this port of the other end.
    pub port: Option<u16>,
    /// Only this port of this host.
    pub local_port: Option<u16>,
}

impl Allow {
    fn host(why: &'static str, address: IpAddr, protocol: Option<Protocol>, port: u16) -> Self {
        Self {
            why,
            net: address,
            bits: if address.is_ipv4() { 32 } else { 128 },
            protocol,
            port: Some(port),
            local_port: None,
        }
    }

    /// As the kernel's side takes it.
    #[must_use]
    pub fn entry(&self) -> Allowed {
        let (family, mut bytes) = match self.net {
            IpAddr::V4(address) => {
                let mut bytes = [0; 16];
                bytes[..4].copy_from_slice(&address.octets());
                (FAMILY_INET, bytes)
            }
            IpAddr::V6(address) => (FAMILY_INET6, address.octets()),
        };
        let mut mask = [0_u8; 16];
        for (place, byte) in mask.iter_mut().enumerate() {
            let left = usize::from(self.bits).saturating_sub(place * 8).min(8);
            *byte = !(0xff_u16 >> left) as u8;
        }
        for (byte, mask) in bytes.iter_mut().zip(mask) {
            *byte &= mask;
        }
        let range = |port: Option<u16>| port.map_or((0, u16::MAX), |port| (port, port));
        let (port, local) = (range(self.port), range(self.local_port));
        Allowed {
            address: halves(bytes),
            mask: halves(mask),
            family,
            protocol: self.protocol.map_or(0, Protocol::number),
            port_first: port.0,
            port_last: port.1,
            local_first: local.0,
            local_last: local.1,
            flags: match (self.port, self.local_port) {
                (None, None) => ANY_PORT,
                _ => 0,
            },
            pad: 0,
        }
    }
}

/// An address as two words, as it lies in memory.
fn halves(bytes: [u8; 16]) -> [u64; 2] {
    let half = |place: usize| {
        let mut half = [0; 8];
        half.copy_from_slice(&bytes[place..place + 8]);
        u64::from_ne_bytes(half)
    };
    [half(0), half(8)]
}

impl fmt::Display for Allow {
    /// `10.0.0.0/8 tcp port 443 (configured)`.
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.net {
            net if self.bits == 0 && net.is_ipv4() => write!(to, "IPv4")?,
            _ if self.bits == 0 => write!(to, "IPv6")?,
            net => write!(to, "{net}/{}", self.bits)?,
        }
        if let Some(protocol) = self.protocol {
            write!(to, " {}", protocol.name())?;
        }
        if let Some(port) = self.port {
            write!(to, " port {port}")?;
        }
        if let Some(port) = self.local_port {
            write!(to, " local port {port}")?;
        }
        write!(to, " ({})", self.why)
    }
}

/// What goes on: what is configured, and what the host needs to stay reachable by its collector.
#[must_use]
pub fn list(
    configured: &[Allow],
    collector: &[SocketAddr],
    dns: &[IpAddr],
    mounts: &[SocketAddr],
) -> Vec<Allow> {
    let mut list: Vec<Allow> = configured.iter().take(CONFIGURED_MAX).cloned().collect();
    for address in collector.iter().take(FOUND_MAX) {
        let protocol = Some(Protocol::Tcp);
        list.push(Allow::host(
            "collector",
            address.ip(),
            protocol,
            address.port(),
        ));
    }
    // By UDP and TCP.
    let server = |address: &IpAddr| Allow::host("DNS server", *address, None, 53);
    list.extend(dns.iter().take(FOUND_MAX).map(server));
    for address in mounts.iter().take(FOUND_MAX) {
        list.push(Allow::host(
            "mounted from there",
            address.ip(),
            None,
            address.port(),
        ));
    }
    list.extend(DHCP.map(|(net, bits)| {
        let (port, local) = match net {
            IpAddr::V4(_) => (67, 68),
            IpAddr::V6(_) => (547, 546),
        };
        Allow {
            why: "DHCP",
            net,
            bits,
            protocol: Some(Protocol::Udp),
            port: Some(port),
            local_port: Some(local),
        }
    }));
    list
}

/// The servers that a resolv.conf(5) names.
#[must_use]
pub fn dns_servers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            words.next().filter(|word| *word == "nameserver")?;
            // A scope, as in fe80::1%eth0, is no part of the address.
            words.next()?.split('%').next()?.parse().ok()
        })
        .filter(|address: &IpAddr| !address.is_loopback())
        .collect()
}

/// The servers of file systems that are mounted over the network, by a mountinfo (proc(5)): NFS and SMB say whose they are.
#[must_use]
pub fn mounted_from(text: &str) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((_, rest)) = line.split_once(" - ") else {
            continue;
        };
        let mut words = rest.split_ascii_whitespace();
        let usual = match words.next() {
            Some("nfs" | "nfs4") => 2049,
            Some("cifs" | "smb3") => 445,
            _ => continue,
        };
        let options = words.nth(1).unwrap_or_default();
        let option = |name: &str| {
            let mut all = options
                .split(',')
                .filter_map(|option| option.split_once('='));
            all.find_map(|(known, value)| (known == name).then_some(value))
        };
        let Some(address) = option("addr").and_then(|text| text.parse::<IpAddr>().ok()) else {
            continue;
        };
        let port = option("port").and_then(|text| text.parse().ok());
        let address = SocketAddr::new(address, port.filter(|port| *port != 0).unwrap_or(usual));
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_only_the_bits_that_count() {
        let allow = Allow {
            why: "configured",
            net: "10.1.2.3".parse().expect("an address"),
            bits: 12,
            protocol: Some(Protocol::Tcp),
            port: None,
            local_port: Some(22),
        };
        let entry = allow.entry();
        let bytes = |words: [u64; 2]| words.map(u64::to_ne_bytes).concat();
        assert_eq!(bytes(entry.mask)[..5], [0xff, 0xf0, 0, 0, 0]);
        assert_eq!(bytes(entry.address)[..5], [10, 0, 0, 0, 0]);
        assert_eq!((entry.family, entry.protocol), (FAMILY_INET, 6));
        assert_eq!((entry.port_first, entry.port_last), (0, u16::MAX));
        assert_eq!((entry.local_first, entry.local_last), (22, 22));
        assert_eq!(entry.flags, 0);
        assert_eq!(
            allow.to_string(),
            "10.1.2.3/12 tcp local port 22 (configured)"
        );
        let six = Allow {
            net: "fd00::1".parse().expect("an address"),
            bits: 128,
            local_port: None,
            ..allow
        };
        assert_eq!(bytes(six.entry().mask), [0xff; 16]);
        assert_eq!(
            (six.entry().family, six.entry().flags),
            (FAMILY_INET6, ANY_PORT)
        );
    }

    #[test]
    fn the_list_fits_whatever_is_found() {
        let many: Vec<IpAddr> = (0..100).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        let ends: Vec<_> = many.iter().map(|ip| SocketAddr::new(*ip, 7)).collect();
        let one = Allow::host("configured", many[0], None, 1);
        let list = list(&vec![one; 100], &ends, &many, &ends);
        assert!(list.len() <= ALLOWED_MAX, "{}", list.len());
        let said: Vec<String> = list.iter().map(ToString::to_string).collect();
        for wanted in [
            "10.0.0.0/32 tcp port 7 (collector)",
            "10.0.0.7/32 port 53 (DNS server)",
            "10.0.0.1/32 port 7 (mounted from there)",
            "255.255.255.255/32 udp port 67 local port 68 (DHCP)",
            "10.0.0.0/8 udp port 67 local port 68 (DHCP)",
            "fe80::/10 udp port 547 local port 546 (DHCP)",
        ] {
            assert!(said.iter().any(|said| said == wanted), "{wanted}: {said:?}");
        }
    }

    #[test]
    fn servers_are_those_that_the_host_uses() {
        let text = "# a comment\nnameserver 10.0.0.2\nnameserver 127.0.0.53\nsearch x\nnameserver fe80::1%eth0\nnameserver\n";
        let found = dns_servers(text)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        assert_eq!(found, ["10.0.0.2", "fe80::1"]);
        let mounts = "22 1 0:21 / /mnt rw shared:1 - nfs4 nas:/x rw,vers=4.2,addr=10.0.0.9,port=0\n\
             23 1 0:22 / /smb rw - cifs //nas/y rw,addr=10.0.0.10,port=4450\n\
             24 1 0:23 / /x rw - ext4 /dev/sda rw,addr=10.0.0.11\n\
             25 1 0:24 / /n rw - nfs nas:/y rw,addr=10.0.0.9\n";
        let found = mounted_from(mounts)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        assert_eq!(found, ["10.0.0.9:2049", "10.0.0.10:4450"]);
    }
}
