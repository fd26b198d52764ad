//! The host cut off, on the running kernel: sockets of a cgroup of the test's own, over a wire between network namespaces of its own.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use sumun_abi::isolate::Allowed;
use sumun_agent::enforce::isolate::allow::{Allow, Protocol};
use sumun_agent::pipeline::clock::boot_ns;

use crate::bench::{self, DEADLINE};
use crate::wire::{Cgroup, HERE, THERE, THERE6, Wire};

/// What does not come by then was kept back: the wire takes microseconds.
const SHORT: Duration = Duration::from_millis(300);
/// What was kept back is sent again by then, once it may pass.
const AGAIN: Duration = Duration::from_secs(20);

/// Everything that passes the wire: what was connected before, new connections both ways, datagrams.
struct Talk {
    listed: (TcpStream, TcpStream),
    other: (TcpStream, TcpStream),
    udp: UdpSocket,
}

fn listener(wire: &Wire, at: IpAddr) -> io::Result<TcpListener> {
    wire.there.run(move || TcpListener::bind((at, 0)))
}

/// A connection to it; the accepted end belongs to the cgroup of the one that listens.
fn pair(wire: &Wire, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let address = listener.local_addr().unwrap();
    let stream = wire.here.run(move || TcpStream::connect(address).unwrap());
    let (peer, _) = listener.accept().unwrap();
    (stream, peer)
}

/// Whether a byte that is written here comes out there in time.
fn flows((stream, peer): &mut (TcpStream, TcpStream), within: Duration) -> bool {
    stream.write_all(b"x").unwrap();
    comes(peer, within)
}

fn comes(peer: &mut TcpStream, within: Duration) -> bool {
    peer.set_read_timeout(Some(within)).unwrap();
    peer.read_exact(&mut [0]).is_ok()
}

fn port(stream: &TcpStream) -> u16 {
    stream.peer_addr().unwrap().port()
}

fn only(port: Option<u16>, local_port: Option<u16>) -> Vec<Allowed> {
    let allow = Allow {
        why: "test",
        net: THERE.into(),
        bits: 32,
        protocol: Some(Protocol::Tcp),
        port,
        local_port,
    };
    vec![allow.entry()]
}

#[test]
fn what_is_not_listed_stops_and_goes_on_afterwards() {
    // Its maps are taken for good.
    let Some(mut bench) = bench::own("isolate", |_| {}) else {
        return;
    };
    let wire = match Wire::new() {
        Ok(wire) => wire,
        Err(error) => {
            let mut isolator = bench.kernel().isolator(Path::new("/")).unwrap();
            assert_eq!(isolator.try_out(), Ok(()));
            println!("a datagram of the agent's own was kept back, and nothing else");
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
            eprintln!("SKIPPED what_is_not_listed_stops: no wire can be laid: {error}");
            return;
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let name = format!("sumun-isolate-{}", std::process::id());
    let cgroup = Cgroup::new(folder.path(), &name).unwrap();
    let mut isolator = bench.kernel().isolator(Path::new(&cgroup.path())).unwrap();
    assert_eq!(isolator.try_out(), Ok(()));
    assert!(!isolator.is_in_force());
    bench.kernel().hold_until(u64::MAX).unwrap();

    // Sockets belong to the cgroup that their maker is in.
    let outside = wire.here.run(|| UdpSocket::bind((HERE, 0)).unwrap());
    let listeners = [(); 2].map(|()| listener(&wire, THERE.into()).unwrap());
    let six = listener(&wire, THERE6.into());
    cgroup.join(true).unwrap();
    let inbound = wire.here.run(|| TcpListener::bind((HERE, 0)).unwrap());
    let mut talk = Talk {
        listed: pair(&wire, &listeners[0]),
        other: pair(&wire, &listeners[1]),
        udp: wire.here.run(|| UdpSocket::bind((HERE, 0)).unwrap()),
    };
    let mut six = six.ok().map(|listener| pair(&wire, &listener));
    cgroup.join(false).unwrap();
    let sink = wire.there.run(|| UdpSocket::bind((THERE, 0)).unwrap());
    sink.set_read_timeout(Some(SHORT)).unwrap();
    let sink_address = sink.local_addr().unwrap();
    assert!(flows(&mut talk.listed, AGAIN) && flows(&mut talk.other, AGAIN));

    isolator
        .isolate(&only(Some(port(&talk.listed.0)), None), 0)
        .unwrap();
    assert!(isolator.is_in_force());
    // A connection that existed, one that is listed, datagrams, and sockets of others.
    assert!(!flows(&mut talk.other, SHORT), "it went on");
    assert!(flows(&mut talk.listed, AGAIN), "what is listed stopped");
    let error = talk.udp.send_to(b"x", sink_address).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
    assert!(outside.send_to(b"x", sink_address).is_ok());
    assert!(
        sink.recv(&mut [0; 8]).is_ok(),
        "another cgroup's sockets go on"
    );
    if let Some(six) = &mut six {
        assert!(!flows(six, SHORT), "IPv6 went on");
    } else {
        println!("no IPv6 here");
    }
    // Into a socket that listens, and on loopback, also by the address of the wire.
    let address = inbound.local_addr().unwrap();
    let connected = wire
        .there
        .run(move || TcpStream::connect_timeout(&address, SHORT).is_ok());
    assert!(!connected, "somebody got in");
    let connected = wire
        .here
        .run(move || TcpStream::connect_timeout(&address, AGAIN).is_ok());
    assert!(connected, "loopback stopped");
    let dropped = isolator.dropped();
    assert!(dropped.sent >= 2 && dropped.received >= 1, "{dropped:?}");

    // By a port of this end, over the plan in force; what was written meanwhile comes.
    let local = talk.other.0.local_addr().unwrap().port();
    isolator.isolate(&only(None, Some(local)), 0).unwrap();
    assert!(comes(&mut talk.other.1, AGAIN), "the other stays away");
    assert!(
        !flows(&mut talk.listed, SHORT),
        "the first is listed no more"
    );
    // A whole network, of any protocol.
    let net = Allow {
        why: "test",
        net: IpAddr::from([10, 203, 0, 0]),
        bits: 16,
        protocol: None,
        port: None,
        local_port: None,
    };
    isolator.isolate(&[net.entry()], 0).unwrap();
    assert!(comes(&mut talk.listed.1, AGAIN));
    assert!(talk.udp.send_to(b"x", sink_address).is_ok());

    // A time that is over, and the end of the lease.
    isolator
        .isolate(&[], boot_ns().unwrap() + 400_000_000)
        .unwrap();
    assert!(talk.udp.send_to(b"x", sink_address).is_err());
    passes_by_itself(&talk.udp, sink_address);
    isolator.isolate(&[], 0).unwrap();
    assert!(talk.udp.send_to(b"x", sink_address).is_err());
    bench
        .kernel()
        .hold_until(boot_ns().unwrap() + 400_000_000)
        .unwrap();
    passes_by_itself(&talk.udp, sink_address);
    bench.kernel().hold_until(u64::MAX).unwrap();
    assert!(talk.udp.send_to(b"x", sink_address).is_err());
    isolator.end().unwrap();
    assert!(!isolator.is_in_force());
    assert!(talk.udp.send_to(b"x", sink_address).is_ok());
    assert!(flows(&mut talk.other, AGAIN) && flows(&mut talk.listed, AGAIN));
    if let Some((_, peer)) = &mut six {
        assert!(comes(peer, AGAIN));
    }
}

fn passes_by_itself(socket: &UdpSocket, to: SocketAddr) {
    let begun = Instant::now();
    while socket.send_to(b"x", to).is_err() {
        assert!(begun.elapsed() < DEADLINE, "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}
