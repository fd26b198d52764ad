//! Calls that the kernel denies, on the running kernel, by programs on the root of all cgroups: judged from outside, by what came
//! to the other end or stands in the file, and by the record of each.

use std::{
    fs,
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, connect, sendto, socket,
};
use sumun_abi::{
    event::{deny::Asked, kernel::SETTING_VALUE, kind, process::outcome},
    record::{FLAW_TRUNCATED, RING_BULK},
};
use sumun_agent::receive::record::Body;
use sumun_proto::v1::Kind;

use crate::{
    actor,
    bench::Seen,
    rules::{self, Ruled},
};

/// The calls that were asked about, of a kind of record.
fn asked(seen: &[Seen], kind: u16) -> Vec<Asked> {
    let calls = seen.iter().filter_map(|record| match record.body {
        Body::Asked(asked) if asked.kind == u32::from(kind) => Some(asked),
        _ => None,
    });
    calls.collect()
}

fn eperm<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
}

/// The connection, once it goes through again: some kernels (5.10) let go of a removed link only after a while.
fn connected(to: SocketAddr) -> TcpStream {
    let begun = Instant::now();
    loop {
        match TcpStream::connect(to) {
            Ok(stream) => return stream,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(5), "{to}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Nobody has connected, and no datagram has come.
fn is_quiet(tcp: &TcpListener, udp: &UdpSocket) -> bool {
    tcp.set_nonblocking(true).unwrap();
    udp.set_nonblocking(true).unwrap();
    let waits = |kind| kind == ErrorKind::WouldBlock;
    tcp.accept().is_err_and(|error| waits(error.kind()))
        && udp
            .recv(&mut [0; 8])
            .is_err_and(|error| waits(error.kind()))
}

/// Listeners on one port, of TCP and UDP.
fn listeners(address: &str) -> Option<(TcpListener, UdpSocket)> {
    let tcp = TcpListener::bind((address, 0)).ok()?;
    let udp = UdpSocket::bind((address, tcp.local_addr().ok()?.port())).ok()?;
    Some((tcp, udp))
}

#[test]
fn a_denied_connect_reaches_nobody_whatever_makes_it() {
    let Some(mut ruled) = Ruled::new("deny-connect", &[Kind::Connect]) else {
        return;
    };
    let Some((tcp, udp)) = listeners("127.0.0.1") else {
        panic!("no port");
    };
    let (other_tcp, other_udp) = listeners("127.0.0.1").unwrap();
    let six = listeners("::1");
    let port = tcp.local_addr().unwrap().port();
    let ports = [
        Some(port),
        six.as_ref()
            .map(|(tcp, _)| tcp.local_addr().unwrap().port()),
    ];
    let list: Vec<String> = ports.iter().flatten().map(u16::to_string).collect();
    ruled.load(
        "connect",
        &format!("net.dst.port in [{}] && net.dst.private", list.join(", ")),
    );
    let mut tried = 0;
    let mut denied = |what: &str, result: bool| {
        assert!(result, "{what} was denied and went on");
        tried += 1;
    };
    let v4: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
    denied("TCP", eperm(TcpStream::connect(v4)));
    let any = UdpSocket::bind("127.0.0.1:0").unwrap();
    denied("connected UDP", eperm(any.connect(v4)));
    denied("a datagram", eperm(any.send_to(b"x", v4)));
    let to = SockaddrIn::new(127, 0, 0, 1, port);
    let open = |protocol| {
        socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::empty(),
            protocol,
        )
    };
    let fast = open(SockProtocol::Tcp).unwrap();
    // A send that connects: nothing is sent, not even the first packet.
    let sent = sendto(
        std::os::fd::AsRawFd::as_raw_fd(&fast),
        b"x",
        &to,
        MsgFlags::from_bits_retain(libc::MSG_FASTOPEN),
    );
    denied("TCP Fast Open", sent == Err(nix::errno::Errno::EPERM));
    let mut mptcp = false;
    if let Some(made) = rules::mptcp() {
        let result = connect(std::os::fd::AsRawFd::as_raw_fd(&made), &to);
        denied("MPTCP", result == Err(nix::errno::Errno::EPERM));
        mptcp = true;
    } else {
        eprintln!("SKIPPED MPTCP: this kernel has none");
    }
    // An IPv4 address in the clothes of IPv6.
    let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{port}").parse().unwrap();
    if six.is_some() {
        denied("a mapped address", eperm(TcpStream::connect(mapped)));
        let both = UdpSocket::bind("[::]:0").unwrap();
        denied(
            "a datagram to a mapped address",
            eperm(both.send_to(b"x", mapped)),
        );
    }
    if let Some((tcp, udp)) = &six {
        let to = tcp.local_addr().unwrap();
        denied("TCP over IPv6", eperm(TcpStream::connect(to)));
        let any = UdpSocket::bind("[::1]:0").unwrap();
        denied("connected UDP over IPv6", eperm(any.connect(to)));
        denied("a datagram over IPv6", eperm(any.send_to(b"x", to)));
        assert!(is_quiet(tcp, udp), "something came over IPv6");
    } else {
        eprintln!("SKIPPED IPv6: this host has none");
    }
    assert!(is_quiet(&tcp, &udp), "something came");
    // What no rule names goes on.
    let free = other_tcp.local_addr().unwrap();
    let _connected = TcpStream::connect(free).unwrap();
    any.send_to(b"x", free).unwrap();
    assert!(other_tcp.accept().is_ok() && other_udp.recv(&mut [0; 8]).is_ok());

    let seen = ruled.bench.settle();
    let own = std::process::id();
    let calls = asked(&seen, kind::CONNECT);
    assert_eq!(calls.len(), tried, "one record each: {calls:?}");
    for call in &calls {
        assert_eq!(call.verdict.outcome, outcome::DENIED);
        assert_eq!((call.verdict.rule, call.actor.pid), (0, own));
        assert_eq!(call.header.ring, RING_BULK);
        assert!(ports.contains(&Some(call.dst_port)), "{call:?}");
        let mapped = call.family == 2 && call.dst[..4] == [127, 0, 0, 1];
        assert!(mapped || call.family == 10 && call.dst[15] == 1, "{call:?}");
    }
    let of = |protocol| {
        calls
            .iter()
            .filter(|call| call.protocol == protocol)
            .count()
    };
    assert_eq!(
        (of(262), of(6) + of(17)),
        (usize::from(mptcp), tried - usize::from(mptcp))
    );
    // The call's failure is not told twice.
    let failures: Vec<_> = seen
        .iter()
        .filter_map(|record| match record.body {
            Body::Connect(made) if made.actor.pid == own && made.result != 0 => Some(made),
            _ => None,
        })
        .collect();
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn a_denied_bind_leaves_the_port_free() {
    let Some(mut ruled) = Ruled::new("deny-bind", &[Kind::Bind]) else {
        return;
    };
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    ruled.load("bind", &format!("net.dst.port == {port}"));
    assert!(eperm(TcpListener::bind(("127.0.0.1", port))));
    assert!(eperm(UdpSocket::bind(("0.0.0.0", port))));
    assert!(eperm(rules::bind_without_family(port)));
    let mut tried = 3;
    match TcpListener::bind("[::]:0") {
        Ok(_) => {
            assert!(eperm(TcpListener::bind(("::", port))));
            tried += 1;
        }
        Err(_) => eprintln!("SKIPPED IPv6: this host has none"),
    }
    // Which port this one gets, nobody knows before.
    let any = UdpSocket::bind("127.0.0.1:0").unwrap();
    let seen = ruled.bench.settle();
    let mut calls = asked(&seen, kind::BIND);
    let undecided: Vec<_> = calls
        .extract_if(.., |call| call.verdict.outcome != outcome::DENIED)
        .collect();
    assert_eq!((calls.len(), calls[0].dst_port), (tried, port));
    assert!(
        undecided
            .iter()
            .all(|call| call.verdict.outcome == outcome::UNDECIDED && call.dst_port == 0)
    );
    // Not by the rule, but by nobody listening there.
    drop(any);
    assert!(
        TcpStream::connect(("127.0.0.1", port))
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    );
    ruled.load("bind", "net.dst.port == 1");
    TcpListener::bind(("127.0.0.1", port)).unwrap();
}

#[test]
fn a_denied_setting_stays_as_it_was() {
    const PATTERN: &str = "/proc/sys/kernel/core_pattern";
    let Some(mut ruled) = Ruled::new("deny-sysctl", &[Kind::Sysctl]) else {
        return;
    };
    let before = fs::read(PATTERN).unwrap();
    if let Err(error) = fs::write(PATTERN, &before) {
        eprintln!("SKIPPED deny-sysctl: /proc/sys is not writable here: {error}");
        return;
    }
    ruled.load(
        "sysctl",
        r#"sysctl.name == "kernel.core_pattern" && sysctl.value.startsWith("|/nowhere") || sysctl.name.startsWith("kernel.modp") && sysctl.value != "/this""#,
    );
    assert!(eperm(fs::write(PATTERN, "|/nowhere/to/be found\n")));
    // The kernel would take the beginning of what is longer than it has room for.
    let long = |begin: &[u8]| [begin, &[b'x'; 2000]].concat();
    assert!(eperm(fs::write(PATTERN, long(b"|/nowhere/"))));
    assert_eq!(fs::read(PATTERN).unwrap(), before);
    let modprobe = fs::read("/proc/sys/kernel/modprobe");
    if let Ok(modprobe) = modprobe {
        assert!(eperm(fs::write("/proc/sys/kernel/modprobe", "/nowhere")));
        let longer = long(b"/nowhere\n");
        assert!(eperm(fs::write("/proc/sys/kernel/modprobe", longer)));
        assert_eq!(fs::read("/proc/sys/kernel/modprobe").unwrap(), modprobe);
    }
    fs::write(PATTERN, &before).unwrap();
    // Of this it takes the first line.
    let padded = long(&before);
    fs::write(PATTERN, &padded).unwrap();
    assert_eq!(fs::read(PATTERN).unwrap(), before);
    let seen = ruled.bench.settle();
    let written: Vec<_> = seen
        .iter()
        .filter_map(|record| match record.body {
            Body::Setting(setting) => Some((
                record.text(setting.name),
                record.text(setting.value),
                setting.verdict.outcome,
            )),
            _ => None,
        })
        .collect();
    let is = |name: &str, value: &[u8], outcome| {
        let value = String::from_utf8_lossy(value).trim_end().to_owned();
        written.contains(&(name.to_owned(), value, outcome))
    };
    assert!(
        is(
            "kernel/core_pattern",
            b"|/nowhere/to/be found",
            outcome::DENIED
        ),
        "{written:?}"
    );
    assert!(
        is("kernel/core_pattern", &before, outcome::NONE),
        "{written:?}"
    );
    // Of a long one the event has the beginning, and says that it is no more.
    let cut = |whole: &[u8]| String::from_utf8_lossy(&whole[..SETTING_VALUE - 1]).into_owned();
    for (value, outcome) in [
        (cut(&long(b"|/nowhere/")), outcome::DENIED),
        (cut(&padded), outcome::NONE),
    ] {
        let found = seen.iter().find_map(|record| match record.body {
            Body::Setting(setting) if record.text(setting.value) == value => {
                Some((setting.value.flaws, setting.verdict.outcome))
            }
            _ => None,
        });
        assert_eq!(found, Some((FLAW_TRUNCATED, outcome)), "{written:?}");
    }
}

/// A rule on who it is, with processes that are there before it and that no agent has told of.
#[test]
fn what_is_not_known_goes_on_and_is_told() {
    let Some(mut ruled) = Ruled::new("deny-unknown", &[Kind::Connect]) else {
        return;
    };
    let (tcp, _udp) = listeners("127.0.0.1").unwrap();
    let to = tcp.local_addr().unwrap();
    ruled.load(
        "connect",
        &format!(
            r#"net.dst.port == {} && proc.exe.name != "nobody""#,
            to.port()
        ),
    );
    let _stream = TcpStream::connect(to).unwrap();
    let seen = ruled.bench.settle();
    let calls = asked(&seen, kind::CONNECT);
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert_eq!(
        (calls[0].verdict.outcome, calls[0].verdict.lineage_unknown),
        (outcome::UNDECIDED, 1)
    );
    // A child that was started after it is known.
    let dir = tempfile::tempdir().unwrap();
    let program = actor::program(dir.path().join("somebody"));
    let act = [format!("connect {to}")];
    assert!(actor::is_through(
        &actor::command(&program, &act).output().unwrap()
    ));
    // Of a program that is named like the host's sshd, and is root's, nothing is denied.
    let sshd = actor::program(dir.path().join("sshd"));
    fs::set_permissions(&sshd, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(actor::is_through(
        &actor::command(&sshd, &act).output().unwrap()
    ));
    let seen = ruled.bench.settle();
    let outcomes: Vec<u32> = asked(&seen, kind::CONNECT)
        .iter()
        .map(|call| call.verdict.outcome)
        .collect();
    assert_eq!(outcomes, [outcome::DENIED, outcome::GUARDED]);
    let _first = tcp.accept().unwrap();
    let _sshds = tcp.accept().unwrap();
    tcp.set_nonblocking(true).unwrap();
    assert!(tcp.accept().is_err());
}

/// Programs of others on the root of all cgroups stay, and theirs and ours both count.
#[test]
fn others_at_the_same_place_keep_working() {
    let Some(mut ruled) = Ruled::new("deny-beside", &[Kind::Connect]) else {
        return;
    };
    let (one, _a) = listeners("127.0.0.1").unwrap();
    let (other, _b) = listeners("127.0.0.1").unwrap();
    let (one, other) = (one.local_addr().unwrap(), other.local_addr().unwrap());
    ruled.load("connect", &format!("net.dst.port == {}", one.port()));
    let mut beside = ruled.beside();
    ruled.load_into(
        &mut beside,
        "connect",
        &format!("net.dst.port == {}", other.port()),
    );
    assert!(eperm(TcpStream::connect(one)) && eperm(TcpStream::connect(other)));
    beside.release().unwrap();
    assert!(eperm(TcpStream::connect(one)));
    let _free = connected(other);
    // A rule that is gone denies nothing, and its doors are gone, too.
    ruled.load("connect", "net.dst.port == 1 && proc.uid == 4294967294");
    let _free = TcpStream::connect(one).unwrap();
    let links = |ruled: &Ruled| {
        let entries = fs::read_dir(ruled.bench.links()).unwrap();
        entries
            .filter(|entry| {
                entry
                    .as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with("deny_")
            })
            .count()
    };
    assert_eq!(links(&ruled), 4, "connect and sendmsg, for two families");
    ruled.load("exit", "");
    assert_eq!(links(&ruled), 0, "nobody asks for a door");
}

/// The agent is gone: what it has denied stays denied until its time is over, or until it is released. (By its name the last one here: the
/// next needs a kernel side anew.)
#[test]
fn without_the_agent_denials_stay_until_the_lease_is_over() {
    let Some(mut ruled) = Ruled::new("deny-alone", &[Kind::Connect]) else {
        return;
    };
    let (tcp, udp) = listeners("127.0.0.1").unwrap();
    let to = tcp.local_addr().unwrap();
    ruled.load("connect", &format!("net.dst.port == {}", to.port()));
    ruled.bench.quit();
    assert!(eperm(TcpStream::connect(to)));
    assert!(is_quiet(&tcp, &udp));
    // The next one finds it all, and what was denied meanwhile.
    ruled.again();
    assert!(eperm(TcpStream::connect(to)));
    ruled.bench.kernel().hold_until(0).unwrap();
    let _late = TcpStream::connect(to).unwrap();
    let seen = ruled.bench.settle();
    let outcomes: Vec<u32> = asked(&seen, kind::CONNECT)
        .iter()
        .map(|call| call.verdict.outcome)
        .collect();
    assert_eq!(
        outcomes,
        [outcome::DENIED, outcome::DENIED, outcome::EXPIRED]
    );
    ruled.bench.kernel().hold_until(u64::MAX).unwrap();
    assert!(eperm(TcpStream::connect(to)));
    drop(ruled.bench.kernel.take());
    sumun_agent::kernel::release(&ruled.bench.config).unwrap();
    let _free = connected(to);
}
