//! Talk by UDP, on the running kernel: once a process and address, whoever makes the call.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::id;
use std::time::Duration;

use crate::bench::{self, Bench, Seen};
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendmsg};
use sumun_abi::event::network::{CONN_COPY, FAMILY_INET, FLOWS_PER_SECOND, RESULT_UNKNOWN};
use sumun_abi::loss::reason;
use sumun_agent::receive::{network, record::Body};
use sumun_policy::plan::{Clause, KindPlan, Plan, Ports};
use sumun_proto::v1::{Event, Kind};
use sumun_proto::view::ip_from;

fn load(bench: &mut Bench, plan: KindPlan) {
    let plan = Plan {
        kinds: vec![(Kind::ConnectUdp, plan)],
        ..Plan::default()
    };
    let generation = bench.kernel().filter_generation() + 1;
    assert_eq!(bench.kernel().set_filter(&plan, generation).unwrap(), []);
}

/// Of this process: where to, and how much before it had no record of its own.
fn told(seen: &[Seen]) -> Vec<(SocketAddr, u64)> {
    events(seen)
        .into_iter()
        .map(|event| {
            let network = event.network.unwrap();
            assert_eq!((network.protocol, network.result), (17, None));
            assert!(network.src_ip.is_empty());
            let ip = ip_from(&network.dst_ip).unwrap();
            let port = u16::try_from(network.dst_port).unwrap();
            (SocketAddr::new(ip, port), network.folded)
        })
        .collect()
}

fn events(seen: &[Seen]) -> Vec<Event> {
    seen.iter()
        .filter_map(|record| match &record.body {
            Body::Datagram(datagram) if datagram.connection.actor.pid == id() => {
                assert_eq!(datagram.connection.flags, CONN_COPY);
                assert_eq!(datagram.connection.result, RESULT_UNKNOWN);
                Some(network::datagram(datagram))
            }
            _ => None,
        })
        .collect()
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port)
}

#[test]
fn each_address_is_told_once() {
    let Some(mut bench) = bench::take("udp") else {
        return;
    };
    load(&mut bench, KindPlan::All);
    let servers: Vec<_> = (0..3)
        .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
        .collect();
    let ports: Vec<u16> = servers
        .iter()
        .map(|server| server.local_addr().unwrap().port())
        .collect();
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Without a connection, and again by another socket and by sendmsg.
    for _ in 0..5 {
        socket.send_to(b"x", local(ports[0])).unwrap();
    }
    let another = UdpSocket::bind("0.0.0.0:0").unwrap();
    let to = SockaddrStorage::from(local(ports[1]));
    for _ in 0..3 {
        sendmsg(
            another.as_raw_fd(),
            &[IoSlice::new(b"x")],
            &[],
            MsgFlags::empty(),
            Some(&to),
        )
        .unwrap();
    }
    another.send_to(b"x", local(ports[0])).unwrap();
    // With one: told at its beginning, and not at what is sent.
    let connected = UdpSocket::bind("0.0.0.0:0").unwrap();
    connected.connect(local(ports[2])).unwrap();
    connected.send(b"x").unwrap();
    let seen = bench.settle();
    let wanted: Vec<_> = ports.iter().map(|port| (local(*port), 0)).collect();
    assert_eq!(told(&seen), wanted);

    // Another filter asks anew, and hears what it has missed.
    load(&mut bench, KindPlan::All);
    socket.send_to(b"x", local(ports[0])).unwrap();
    let seen = bench.settle();
    assert_eq!(told(&seen), [(local(ports[0]), 5)]);
}

#[test]
fn both_families_are_told_as_what_they_are() {
    let Some(mut bench) = bench::take("udp6") else {
        return;
    };
    load(&mut bench, KindPlan::All);
    let Ok(socket) = UdpSocket::bind("[::]:0") else {
        eprintln!("SKIPPED both_families_are_told_as_what_they_are: this kernel has no IPv6");
        return;
    };
    let six: SocketAddr = "[::1]:9".parse().unwrap();
    // That nobody listens makes no difference.
    socket.send_to(b"x", six).unwrap();
    let mapped: SocketAddr = "[::ffff:127.0.0.1]:9".parse().unwrap();
    // It may be told that nobody listened to the one before.
    let _ = socket.send_to(b"x", mapped);
    let connected = UdpSocket::bind("[::]:0").unwrap();
    connected.connect("[::1]:10").unwrap();
    let seen = bench.settle();
    assert_eq!(
        told(&seen),
        [(six, 0), (local(9), 0), ("[::1]:10".parse().unwrap(), 0)]
    );
}

#[test]
fn only_what_is_asked_for_leaves_the_kernel() {
    let Some(mut bench) = bench::take("udp-filter") else {
        return;
    };
    let ports = |first, last| Clause {
        dst_ports: Some(vec![Ports { first, last }]),
        ..Clause::default()
    };
    let network = Clause {
        dst_nets: Some(vec![(IpAddr::from([127, 0, 0, 8]), 29)]),
        ..Clause::default()
    };
    let other = Clause {
        exe_names: Some(vec![b"no-such-program".to_vec()]),
        ..Clause::default()
    };
    load(
        &mut bench,
        KindPlan::Clauses(vec![ports(4000, 4999), network, other]),
    );
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for to in [
        "127.0.0.1:3999",
        "127.0.0.1:4000",
        "127.0.0.1:5000",
        "127.0.0.9:5000",
    ] {
        let _ = socket.send_to(b"x", to);
    }
    let seen = bench.settle();
    assert_eq!(
        told(&seen),
        [(local(4000), 0), ("127.0.0.9:5000".parse().unwrap(), 0)]
    );
}

#[test]
fn what_nobody_asks_for_is_not_attached() {
    let Some(mut bench) = bench::take("udp-off") else {
        return;
    };
    let links = bench.links();
    let attached = |name: &str| links.join(name).exists();
    let all = [
        "udp_connect4",
        "udp_connect6",
        "udp_send4",
        "udp_send6",
        "dns_out",
        "dns_in",
    ];
    assert_eq!(all.map(attached), [false; 6]);
    bench.ask(&[Kind::ConnectUdp]);
    assert_eq!(all.map(attached), [true, true, true, true, false, false]);
    bench.ask(&[Kind::Dns]);
    assert_eq!(all.map(attached), [false, false, false, false, true, true]);
    bench.ask(&[Kind::Open]);
    assert_eq!(all.map(attached), [false; 6]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let _ = socket.send_to(b"x", local(9));
    let seen = bench.settle();
    assert_eq!(told(&seen), []);
}

/// More new addresses than a second has room for: each is told, or counted as lost.
#[test]
fn a_flood_is_bounded_and_counted() {
    let Some(mut bench) = bench::take("udp-flood") else {
        return;
    };
    load(&mut bench, KindPlan::All);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    // Of its own: what this process has said to an address is remembered, for the tests that come later, too.
    let flooded = |port| SocketAddr::new(IpAddr::from([127, 0, 0, 2]), port);
    let before = limited(&mut bench);
    let flood = 40_000_u16;
    for port in 1..=flood {
        // Nobody listens, which the next call may be told.
        while socket.send_to(b"x", flooded(port)).is_err() {}
    }
    let seen = bench.settle();
    // The next test finds a second with room in it.
    std::thread::sleep(Duration::from_secs(1));
    let told = told(&seen);
    let lost = limited(&mut bench) - before;
    assert!(told.iter().all(|(address, _)| address.port() <= flood));
    // A send that failed because of the one before may have been counted, too.
    let all = told.len() as u64 + lost;
    assert!(all >= u64::from(flood), "{} + {lost}", told.len());
    assert!(lost > 0 && told.len() as u64 >= FLOWS_PER_SECOND, "{lost}");
    let family = events(&seen).len();
    assert_eq!(family, told.len());
    assert_eq!(FAMILY_INET, 2);
}

fn limited(bench: &mut Bench) -> u64 {
    let streams = bench.kernel().streams().unwrap();
    streams
        .iter()
        .map(|(_, stream)| stream.lost[reason::LIMITED as usize])
        .sum()
}
