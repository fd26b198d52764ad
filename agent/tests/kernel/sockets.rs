//! Sockets that are bound and that listen, on the running kernel, native and 32-bit.

use std::{
    net::{TcpListener, UdpSocket},
    os::{fd::AsRawFd, unix::net::UnixListener},
};

use crate::bench::{self, Seen};
use sumun_agent::receive::{network, record::Body};
use sumun_proto::v1::Kind;
use sumun_proto::view::ip_from;

/// Of this process: kind, protocol, own address and port.
fn own(seen: &[Seen]) -> Vec<(Kind, u32, String, u32)> {
    let pid = std::process::id();
    seen.iter()
        .filter_map(|record| match record.body {
            Body::OwnEnd(kind, own) if own.actor.pid == pid => {
                let event = network::own_end(kind, &own);
                let network = event.network.unwrap();
                assert!(network.src_ip.is_empty());
                assert_eq!(network.result, Some(0));
                let ip = ip_from(&network.dst_ip).unwrap().to_string();
                Some((kind, network.protocol, ip, network.dst_port))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn sockets_are_told_with_their_own_end() {
    let Some(mut bench) = bench::take("sockets") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    bench.ask(&[Kind::Bind, Kind::Listen]);
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let any = TcpListener::bind("[::]:0").ok();
    // Neither other families nor attempts that fail.
    let _unix = UnixListener::bind(dir.path().join("socket")).unwrap();
    assert!(UdpSocket::bind(udp.local_addr().unwrap()).is_err());
    let seen = bench.settle();
    let local = |kind, protocol, port: u16| (kind, protocol, "127.0.0.1".to_owned(), port.into());
    let (t, u) = (
        tcp.local_addr().unwrap().port(),
        udp.local_addr().unwrap().port(),
    );
    let mut wanted = vec![
        local(Kind::Bind, 6, t),
        local(Kind::Listen, 6, t),
        local(Kind::Bind, 17, u),
    ];
    if let Some(any) = &any {
        let port = u32::from(any.local_addr().unwrap().port());
        for kind in [Kind::Bind, Kind::Listen] {
            wanted.push((kind, 6, "::".to_owned(), port));
        }
    } else {
        eprintln!("SKIPPED an IPv6 socket: this kernel has none");
    }
    assert_eq!(own(&seen), wanted);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn thirty_two_bit_sockets_are_told_too() {
    use crate::low::{Low, int80};
    let Some(mut bench) = bench::take("sockets32") else {
        return;
    };
    if int80(20, 0, 0, 0, 0) != std::process::id() as i32 {
        eprintln!("SKIPPED thirty_two_bit_sockets_are_told_too: this kernel has no 32-bit calls");
        return;
    }
    let mut low = Low::new();
    // 127.0.0.1, any port.
    let address = low.put(&[2, 0, 0, 0, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    let sockets: Vec<_> = (0..2)
        .map(|_| {
            nix::sys::socket::socket(
                nix::sys::socket::AddressFamily::Inet,
                nix::sys::socket::SockType::Stream,
                nix::sys::socket::SockFlag::empty(),
                None,
            )
            .unwrap()
        })
        .collect();
    let fd = |at: usize| sockets[at].as_raw_fd() as u32;
    let words = [fd(1), address, 16].map(u32::to_ne_bytes).concat();
    let (bind, listen) = (
        low.put(&words),
        low.put(&[fd(1), 1].map(u32::to_ne_bytes).concat()),
    );
    bench.ask(&[Kind::Bind, Kind::Listen]);
    // bind and listen, then both by socketcall.
    assert_eq!(int80(361, fd(0), address, 16, 0), 0);
    assert_eq!(int80(363, fd(0), 1, 0, 0), 0);
    assert_eq!(int80(102, 2, bind, 0, 0), 0);
    assert_eq!(int80(102, 4, listen, 0, 0), 0);
    let seen = bench.settle();
    let kinds: Vec<_> = own(&seen)
        .into_iter()
        .map(|(kind, protocol, ..)| (kind, protocol))
        .collect();
    assert_eq!(
        kinds,
        [
            (Kind::Bind, 6),
            (Kind::Listen, 6),
            (Kind::Bind, 6),
            (Kind::Listen, 6)
        ]
    );
}
