//! DNS on the running kernel: questions and answers of a process, by UDP and TCP, on loopback.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::id;
use std::thread;
use std::time::Duration;

use crate::bench::{self, Bench, Seen};
use sumun_agent::receive::network::{self, Resolved};
use sumun_agent::receive::record::{Body, Record};
use sumun_proto::v1::{Event, Kind};

/// An address of loopback that no resolver listens on.
const SERVER: &str = "127.0.53.1:53";

/// A question for an address, or its answer with one.
fn message(name: &str, kind: u16, answer: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = vec![0xab, 0xcd];
    let flags: u16 = if answer.is_some() { 0x8180 } else { 0x0100 };
    for word in [flags, 1, answer.is_some().into(), 0, 0] {
        bytes.extend(word.to_be_bytes());
    }
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes.extend([kind, 1].map(u16::to_be_bytes).concat());
    if let Some(data) = answer {
        bytes.extend([0xc0, 12]);
        bytes.extend([kind, 1, 0, 60].map(u16::to_be_bytes).concat());
        bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(data);
    }
    bytes
}

fn prefixed(message: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(message);
    bytes
}

/// Of this process: the events, and what they resolve.
fn told(seen: &[Seen]) -> Vec<(Event, Option<Resolved>)> {
    seen.iter()
        .filter_map(|record| match &record.body {
            Body::Dns(message) if message.actor.pid == id() => Some(network::dns(
                &Record::parse(&record.bytes).unwrap(),
                message,
            )),
            _ => None,
        })
        .collect()
}

/// Question or answer, name, type, answers, protocol, flaws.
fn words(event: &Event) -> (bool, String, u32, Vec<String>, u32, u32) {
    let dns = event.dns.clone().unwrap();
    let network = event.network.as_ref().unwrap();
    assert_eq!(network.dst_port, 53);
    assert_eq!(dns.rcode, dns.response.then_some(0));
    (
        dns.response,
        dns.question_name.unwrap_or_default(),
        dns.question_type,
        dns.answers,
        network.protocol,
        dns.flaws,
    )
}

/// Asks by UDP and returns once the answer is there.
fn resolve(server: SocketAddr, name: &str, kind: u16, data: &'static [u8]) {
    let listener = UdpSocket::bind(server).unwrap();
    let any = if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let name = name.to_owned();
    let server_name = name.clone();
    let serving = thread::spawn(move || {
        let mut buffer = [0; 512];
        let (_, from) = listener.recv_from(&mut buffer).unwrap();
        listener
            .send_to(&message(&server_name, kind, Some(data)), from)
            .unwrap();
    });
    socket.send_to(&message(&name, kind, None), server).unwrap();
    assert!(socket.recv(&mut [0; 512]).unwrap() > 12);
    serving.join().unwrap();
}

fn bench(name: &str) -> Option<Bench> {
    let mut bench = bench::take(name)?;
    bench.ask(&[Kind::Dns]);
    Some(bench)
}

#[test]
fn a_question_and_its_answer_are_those_of_the_process() {
    let Some(mut bench) = bench("dns") else {
        return;
    };
    let server: SocketAddr = SERVER.parse().unwrap();
    resolve(server, "Www.Example.test", 1, &[192, 0, 2, 9]);
    let seen = bench.settle();
    let told = told(&seen);
    let name = "www.example.test".to_owned();
    let found: Vec<_> = told.iter().map(|(event, _)| words(event)).collect();
    assert_eq!(
        found,
        [
            (false, name.clone(), 1, vec![], 17, 0),
            (true, name.clone(), 1, vec!["192.0.2.9".to_owned()], 17, 0),
        ]
    );
    for (event, _) in &told {
        assert_eq!(event.network.as_ref().unwrap().dst_ip, [127, 0, 53, 1]);
    }
    let resolved = Resolved {
        name,
        addresses: vec![(IpAddr::from([192, 0, 2, 9]), 60)],
    };
    assert_eq!(told[0].1, None);
    assert_eq!(told[1].1, Some(resolved));
}

#[test]
fn ipv6_is_told_too() {
    let Some(mut bench) = bench("dns6") else {
        return;
    };
    let server: SocketAddr = "[::1]:53".parse().unwrap();
    if let Err(error) = UdpSocket::bind(server) {
        eprintln!("SKIPPED ipv6_is_told_too: {error}");
        return;
    }
    resolve(
        server,
        "six.test",
        28,
        &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
    );
    let seen = bench.settle();
    let told = told(&seen);
    let found: Vec<_> = told.iter().map(|(event, _)| words(event)).collect();
    assert_eq!(
        found,
        [
            (false, "six.test".to_owned(), 28, vec![], 17, 0),
            (
                true,
                "six.test".to_owned(),
                28,
                vec!["2001:db8::7".to_owned()],
                17,
                0
            ),
        ]
    );
    let ip = &told[1].0.network.as_ref().unwrap().dst_ip;
    assert_eq!(ip.as_slice(), std::net::Ipv6Addr::LOCALHOST.octets());
}

#[test]
fn streams_are_told_message_by_message() {
    let Some(mut bench) = bench("dns-tcp") else {
        return;
    };
    let listener = TcpListener::bind(SERVER).unwrap();
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 512];
        let len = stream.read(&mut buffer).unwrap();
        assert!(len > 14);
        stream
            .write_all(&prefixed(&message("tcp.test", 1, Some(&[192, 0, 2, 8]))))
            .unwrap();
    });
    let mut stream = TcpStream::connect(SERVER).unwrap();
    stream
        .write_all(&prefixed(&message("tcp.test", 1, None)))
        .unwrap();
    assert!(stream.read(&mut [0; 512]).unwrap() > 14);
    serving.join().unwrap();
    let seen = bench.settle();
    let found: Vec<_> = told(&seen).iter().map(|(event, _)| words(event)).collect();
    let name = "tcp.test".to_owned();
    assert_eq!(
        found,
        [
            (false, name.clone(), 1, vec![], 6, 0),
            (true, name, 1, vec!["192.0.2.8".to_owned()], 6, 0),
        ]
    );
}

/// What is no DNS, or none of this host's questions.
#[test]
fn other_ports_and_servers_are_left_alone() {
    let Some(mut bench) = bench("dns-other") else {
        return;
    };
    let server = UdpSocket::bind("127.0.53.1:5353").unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .send_to(
            &message("other.test", 1, None),
            server.local_addr().unwrap(),
        )
        .unwrap();
    let seen = bench.settle();
    assert!(told(&seen).is_empty());
    // To the port, what is no message at all.
    socket.send_to(b"x", SERVER).unwrap();
    let seen = bench.settle();
    let told = told(&seen);
    let [(event, None)] = told.as_slice() else {
        panic!("{told:?}")
    };
    let dns = event.dns.as_ref().unwrap();
    assert_eq!(dns.flaws, u32::from(sumun_abi::record::FLAW_PARTIAL));
    assert_eq!(dns.question_name, None);
}
