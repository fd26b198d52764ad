//! Connections on the running kernel: each exactly once, with its ends, its result and its process.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use crate::bench::{self, Bench, Seen};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, accept4, bind, connect,
        getsockname, listen, setsockopt, socket, sockopt,
    },
};
use sumun_abi::event::network::{
    CONN_CALLER, CONN_DEFERRED, CONN_LOST, CONN_RACY, Connection, FAMILY_INET, FAMILY_INET6,
    RESULT_UNKNOWN,
};
use sumun_agent::receive::record::Body;
use sumun_policy::plan::{Clause, KindPlan, Plan, Ports};
use sumun_proto::v1::Kind;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOCAL6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A kernel side that sends every connection.
fn bench(name: &str) -> Option<Bench> {
    let mut bench = bench::take(name)?;
    load(&mut bench, KindPlan::All, KindPlan::All);
    Some(bench)
}

fn load(bench: &mut Bench, connects: KindPlan, accepts: KindPlan) {
    let plan = Plan {
        kinds: vec![(Kind::Connect, connects), (Kind::Accept, accepts)],
        ..Plan::default()
    };
    // Verdicts are kept by generation: no two filters have the same.
    let generation = bench.kernel().filter_generation() + 1;
    assert_eq!(bench.kernel().set_filter(&plan, generation).unwrap(), []);
}

/// Runs on a thread that shares its descriptors with nobody.
fn alone<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_FILES).unwrap();
                work()
            })
            .join()
            .unwrap()
    })
}

/// Runs alone, in a network namespace without any route.
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    alone(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}

fn ends(connection: &Connection) -> (SocketAddr, SocketAddr) {
    let address = |bytes: [u8; 16]| match connection.family {
        FAMILY_INET => {
            assert_eq!(bytes[4..], [0; 12]);
            IpAddr::from(<[u8; 4]>::try_from(&bytes[..4]).unwrap())
        }
        FAMILY_INET6 => IpAddr::from(bytes),
        other => panic!("family {other}"),
    };
    (
        SocketAddr::new(address(connection.src), connection.src_port),
        SocketAddr::new(address(connection.dst), connection.dst_port),
    )
}

/// This process's connects and accepts among the records.
fn mine(seen: &[Seen]) -> (Vec<Connection>, Vec<Connection>) {
    let (mut connects, mut accepts) = (Vec::new(), Vec::new());
    for record in seen {
        match record.body {
            Body::Connect(found) if found.actor.pid == std::process::id() => connects.push(found),
            Body::Accept(found) if found.actor.pid == std::process::id() => accepts.push(found),
            _ => {}
        }
    }
    (connects, accepts)
}

/// All of this process's connects and accepts until now; every one of them looks sound.
fn settled(bench: &mut Bench) -> (Vec<Connection>, Vec<Connection>) {
    let seen = bench.settle();
    let generation = bench.kernel().filter_generation();
    for record in &seen {
        if let Body::Connect(found) | Body::Accept(found) = record.body {
            assert_eq!(found.header.generation, generation);
            assert!(found.begun_ns <= found.header.boot_ns && found.begun_ns > 0);
        }
    }
    mine(&seen)
}

fn one(found: &[Connection]) -> Connection {
    let [found] = found else {
        panic!("{} records: {found:?}", found.len())
    };
    *found
}

fn stream(family: AddressFamily, flags: SockFlag) -> OwnedFd {
    socket(
        family,
        SockType::Stream,
        flags | SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap()
}

fn to(fd: &OwnedFd, address: SocketAddr) -> Result<(), Errno> {
    connect(fd.as_raw_fd(), &SockaddrStorage::from(address))
}

fn own_end(fd: &OwnedFd) -> SocketAddr {
    let name: SockaddrStorage = getsockname(fd.as_raw_fd()).unwrap();
    match (name.as_sockaddr_in(), name.as_sockaddr_in6()) {
        (Some(name), _) => SocketAddr::from((name.ip(), name.port())),
        (_, Some(name)) => SocketAddr::from((name.ip(), name.port())),
        _ => panic!("not an IP socket"),
    }
}

/// A port that nobody listens on, for as long as its socket lives.
fn closed_port() -> (OwnedFd, SocketAddr) {
    let held = stream(AddressFamily::Inet, SockFlag::empty());
    bind(
        held.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(LOCAL, 0)),
    )
    .unwrap();
    let address = own_end(&held);
    (held, address)
}

fn wait_for(fd: &OwnedFd, events: PollFlags) {
    let mut fds = [PollFd::new(fd.as_fd(), events)];
    let ready = poll(&mut fds, PollTimeout::try_from(bench::DEADLINE).unwrap()).unwrap();
    assert_eq!(ready, 1, "nothing came of the socket");
}

#[expect(unsafe_code, reason = "the call that made it returns a number")]
fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just handed it out, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[expect(unsafe_code, reason = "a descriptor that others close too")]
fn close_number(fd: RawFd) {
    // SAFETY: a number that this test alone uses; that it may be closed already is the test.
    unsafe { libc::close(fd) };
}

#[test]
fn a_connect_and_its_accept_have_both_ends() {
    let Some(mut bench) = bench("net-ends") else {
        return;
    };
    for local in [LOCAL, LOCAL6] {
        let (server, client, tid) = alone(|| {
            let listener = TcpListener::bind((local, 0)).unwrap();
            let server = listener.local_addr().unwrap();
            let client = TcpStream::connect(server).unwrap();
            let (_accepted, peer) = listener.accept().unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
            (server, peer, nix::unistd::gettid().as_raw() as u32)
        });
        let (connects, accepts) = settled(&mut bench);
        for found in [one(&connects), one(&accepts)] {
            assert_eq!(ends(&found), (client, server));
            assert_eq!(
                (found.result, found.protocol, found.flags),
                (0, 6, 0),
                "{found:?}"
            );
            assert_eq!((found.actor.tid, found.actor.files_shared), (tid, 0));
        }
    }
}

#[test]
fn a_mapped_address_is_the_address_it_maps() {
    let Some(mut bench) = bench("net-mapped") else {
        return;
    };
    let (server, client) = alone(|| {
        // Both sockets are of IPv6, the packets between them of IPv4.
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mapped = SocketAddr::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), port);
        let client = stream(AddressFamily::Inet6, SockFlag::empty());
        to(&client, mapped).unwrap();
        listener.accept().unwrap();
        (
            SocketAddr::new(LOCAL, port),
            SocketAddr::new(LOCAL, own_end(&client).port()),
        )
    });
    let (connects, accepts) = settled(&mut bench);
    for found in [one(&connects), one(&accepts)] {
        assert_eq!(found.family, FAMILY_INET);
        assert_eq!(ends(&found), (client, server));
    }
}

#[test]
fn a_connect_that_does_not_wait_is_recorded_once() {
    let Some(mut bench) = bench("net-nonblock") else {
        return;
    };
    let listener = TcpListener::bind((LOCAL, 0)).unwrap();
    let server = listener.local_addr().unwrap();
    let client = stream(AddressFamily::Inet, SockFlag::SOCK_NONBLOCK);
    assert_eq!(to(&client, server), Err(Errno::EINPROGRESS));
    wait_for(&client, PollFlags::POLLOUT);
    // What the second call says of the first is no record of its own.
    assert_eq!(to(&client, server), Ok(()));
    assert_eq!(to(&client, server), Err(Errno::EISCONN));
    let (connects, _) = settled(&mut bench);
    let found = one(&connects);
    assert_eq!(ends(&found), (own_end(&client), server));
    assert_eq!(found.result, 0);
}

/// A listening socket that takes no more connections until one is accepted, with one
/// connect in its queue and one waiting outside.
struct Full {
    listener: OwnedFd,
    server: SocketAddr,
    _queued: OwnedFd,
    outside: OwnedFd,
}

impl Full {
    fn new() -> Self {
        let listener = stream(AddressFamily::Inet, SockFlag::empty());
        bind(
            listener.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::new(LOCAL, 0)),
        )
        .unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let server = own_end(&listener);
        let queued = stream(AddressFamily::Inet, SockFlag::empty());
        to(&queued, server).unwrap();
        let outside = stream(AddressFamily::Inet, SockFlag::SOCK_NONBLOCK);
        assert_eq!(to(&outside, server), Err(Errno::EINPROGRESS));
        Full {
            listener,
            server,
            _queued: queued,
            outside,
        }
    }
}

#[test]
fn a_connect_completed_later_names_its_caller() {
    let Some(mut bench) = bench("net-deferred") else {
        return;
    };
    let full = Full::new();
    let (connects, _) = settled(&mut bench);
    assert_eq!(connects.len(), 1, "the one in the queue");
    let before = Instant::now();
    drop(owned(
        accept4(full.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).unwrap(),
    ));
    // The next try comes from a timer, whoever runs then.
    wait_for(&full.outside, PollFlags::POLLOUT);
    eprintln!("completed after {:?}", before.elapsed());
    let (connects, accepts) = settled(&mut bench);
    let found = one(&connects);
    assert_eq!(ends(&found), (own_end(&full.outside), full.server));
    assert_eq!((found.result, found.flags), (0, CONN_DEFERRED));
    assert_eq!(accepts.len(), 1);
}

#[test]
fn a_connect_given_up_has_no_result() {
    let Some(mut bench) = bench("net-given-up") else {
        return;
    };
    let full = Full::new();
    let (own, server) = (own_end(&full.outside), full.server);
    drop(full.outside);
    let (connects, _) = settled(&mut bench);
    let found: Vec<_> = connects
        .into_iter()
        .filter(|found| found.src_port == own.port())
        .collect();
    let found = one(&found);
    assert_eq!(ends(&found), (own, server));
    assert_eq!((found.result, found.flags), (RESULT_UNKNOWN, CONN_DEFERRED));
}

#[test]
fn a_refused_connect_is_recorded_once() {
    let Some(mut bench) = bench("net-refused") else {
        return;
    };
    let (_held, nobody) = closed_port();
    let refused = -(Errno::ECONNREFUSED as i32);

    // A call that waits, twice.
    let client = stream(AddressFamily::Inet, SockFlag::empty());
    for _ in 0..2 {
        assert_eq!(to(&client, nobody), Err(Errno::ECONNREFUSED));
        let (connects, _) = settled(&mut bench);
        let found = one(&connects);
        let (src, dst) = ends(&found);
        assert_eq!((found.result, found.flags, dst), (refused, 0, nobody));
        assert_eq!(src.ip(), LOCAL);
        assert_ne!(src.port(), 0);
    }

    // One that does not; the error is fetched by a second one.
    let client = stream(AddressFamily::Inet, SockFlag::SOCK_NONBLOCK);
    match to(&client, nobody) {
        Err(Errno::EINPROGRESS) => {
            wait_for(&client, PollFlags::POLLOUT);
            assert_eq!(to(&client, nobody), Err(Errno::ECONNREFUSED));
        }
        other => assert_eq!(other, Err(Errno::ECONNREFUSED)),
    }
    let (connects, _) = settled(&mut bench);
    assert_eq!(one(&connects).result, refused);

    // The error is fetched otherwise, and a call later finds only that there was one.
    let client = stream(AddressFamily::Inet, SockFlag::SOCK_NONBLOCK);
    if to(&client, nobody) == Err(Errno::EINPROGRESS) {
        wait_for(&client, PollFlags::POLLOUT);
        let error = nix::sys::socket::getsockopt(&client, sockopt::SocketError).unwrap();
        assert_eq!(error, Errno::ECONNREFUSED as i32);
        assert_eq!(to(&client, nobody), Err(Errno::ECONNABORTED));
    }
    let (connects, _) = settled(&mut bench);
    assert_eq!(one(&connects).result, refused);
    // After that the socket tries anew.
    let again = to(&client, nobody);
    assert!(
        matches!(again, Err(Errno::EINPROGRESS | Errno::ECONNREFUSED)),
        "{again:?}"
    );
    let (connects, _) = settled(&mut bench);
    assert_eq!(one(&connects).result, refused);
}

#[test]
fn without_a_route_the_address_is_the_callers_word() {
    let Some(mut bench) = bench("net-route") else {
        return;
    };
    let targets: [SocketAddr; 3] = [
        "198.51.100.7:4711".parse().unwrap(),
        "[2001:db8::7]:4711".parse().unwrap(),
        "[::ffff:198.51.100.7]:4711".parse().unwrap(),
    ];
    for target in targets {
        let family = if target.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let error = apart(|| {
            // Neither datagrams nor local sockets are of interest, failed or not.
            let datagrams = socket(family, SockType::Datagram, SockFlag::empty(), None).unwrap();
            to(&datagrams, target).unwrap_err();
            let local = nix::sys::socket::UnixAddr::new("/nonexistent/socket").unwrap();
            let unix = stream(AddressFamily::Unix, SockFlag::empty());
            connect(unix.as_raw_fd(), &local).unwrap_err();
            let client = stream(family, SockFlag::empty());
            to(&client, target).unwrap_err()
        });
        let (connects, _) = settled(&mut bench);
        let found = one(&connects);
        let shown = SocketAddr::new(target.ip().to_canonical(), target.port());
        assert_eq!(ends(&found).1, shown);
        assert_eq!((found.result, found.flags), (-(error as i32), CONN_CALLER));
        assert!(
            matches!(error, Errno::ENETUNREACH | Errno::EADDRNOTAVAIL),
            "{error}"
        );
    }
    // Where others share the descriptors, it says so.
    let client = stream(AddressFamily::Inet, SockFlag::empty());
    let broadcast = SocketAddr::from((Ipv4Addr::BROADCAST, 4711));
    let error = to(&client, broadcast).unwrap_err();
    let (connects, _) = settled(&mut bench);
    let found = one(&connects);
    assert_eq!((ends(&found).1, found.result), (broadcast, -(error as i32)));
    assert_eq!(found.flags, CONN_CALLER | CONN_RACY);
}

#[test]
fn a_connect_that_fails_before_its_first_packet_has_the_calls_error() {
    let Some(mut bench) = bench("net-taken") else {
        return;
    };
    let listener = TcpListener::bind((LOCAL, 0)).unwrap();
    let server = listener.local_addr().unwrap();
    let first = stream(AddressFamily::Inet, SockFlag::empty());
    let second = stream(AddressFamily::Inet, SockFlag::empty());
    for client in [&first, &second] {
        setsockopt(client, sockopt::ReuseAddr, &true).unwrap();
    }
    bind(
        first.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(LOCAL, 0)),
    )
    .unwrap();
    let own = own_end(&first);
    bind(second.as_raw_fd(), &SockaddrStorage::from(own)).unwrap();
    to(&first, server).unwrap();
    // The kernel has changed the socket's state when it finds both ends taken.
    assert_eq!(to(&second, server), Err(Errno::EADDRNOTAVAIL));
    let (connects, _) = settled(&mut bench);
    assert_eq!(connects.len(), 2, "{connects:?}");
    assert_eq!((ends(&connects[0]), connects[0].result), ((own, server), 0));
    assert_eq!(ends(&connects[1]), (own, server));
    assert_eq!(connects[1].result, -(Errno::EADDRNOTAVAIL as i32));
    assert_eq!(connects[1].flags, 0);
}

#[test]
fn a_socket_connected_to_itself_is_one_connect() {
    let Some(mut bench) = bench("net-itself") else {
        return;
    };
    let client = stream(AddressFamily::Inet, SockFlag::empty());
    bind(
        client.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(LOCAL, 0)),
    )
    .unwrap();
    let own = own_end(&client);
    to(&client, own).unwrap();
    let (connects, accepts) = settled(&mut bench);
    let found = one(&connects);
    assert_eq!((ends(&found), found.result), ((own, own), 0));
    assert_eq!(accepts, []);
}

#[test]
fn several_paths_are_one_connection() {
    let Some(mut bench) = bench("net-mptcp") else {
        return;
    };
    let Some(listener) = mptcp() else { return };
    bind(
        listener.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(LOCAL, 0)),
    )
    .unwrap();
    listen(&listener, Backlog::new(8).unwrap()).unwrap();
    let server = own_end(&listener);
    let client = alone(|| {
        let client = mptcp().unwrap();
        to(&client, server).unwrap();
        let accepted = owned(accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).unwrap());
        // A byte, so that the handshake is a whole one.
        let (client, accepted) = (TcpStream::from(client), TcpStream::from(accepted));
        (&client).write_all(b"x").unwrap();
        (&accepted).read_exact(&mut [0]).unwrap();
        client.local_addr().unwrap()
    });
    let (_held, nobody) = closed_port();
    let refused = mptcp().unwrap();
    assert_eq!(to(&refused, nobody), Err(Errno::ECONNREFUSED));
    let (connects, accepts) = settled(&mut bench);
    assert_eq!(connects.len(), 2, "{connects:?}");
    for found in [connects[0], one(&accepts)] {
        assert_eq!(ends(&found), (client, server));
        assert_eq!(
            (found.result, found.protocol, found.flags),
            (0, 262, 0),
            "{found:?}"
        );
    }
    assert_eq!(ends(&connects[1]).1, nobody);
    assert_eq!(connects[1].result, -(Errno::ECONNREFUSED as i32));
    assert_eq!((connects[1].protocol, connects[1].flags), (262, 0));
}

#[expect(unsafe_code, reason = "nix does not know this protocol")]
fn mptcp() -> Option<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_MPTCP) };
    if fd < 0 {
        eprintln!(
            "SKIPPED several_paths_are_one_connection: this kernel has no MPTCP ({})",
            Errno::last()
        );
        return None;
    }
    Some(owned(fd))
}

const STATE: &str = "inet_sock_set_state";
const EXIT: &str = "sys_exit";

#[test]
fn two_thousand_connects_at_once_are_two_thousand() {
    const THREADS: usize = 4;
    const EACH: usize = 500;
    let Some(mut bench) = bench("net-storm") else {
        return;
    };
    let listener = TcpListener::bind((LOCAL, 0)).unwrap();
    let server = listener.local_addr().unwrap();
    let mut wanted: Vec<SocketAddr> = thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..THREADS * EACH {
                drop(listener.accept().unwrap());
            }
        });
        let client = |n: usize| {
            let flags = if n.is_multiple_of(2) {
                SockFlag::empty()
            } else {
                SockFlag::SOCK_NONBLOCK
            };
            let client = stream(AddressFamily::Inet, flags);
            match to(&client, server) {
                Err(Errno::EINPROGRESS) => wait_for(&client, PollFlags::POLLOUT),
                done => done.unwrap(),
            }
            own_end(&client)
        };
        let clients: Vec<_> = (0..THREADS)
            .map(|n| scope.spawn(move || (0..EACH).map(|_| client(n)).collect::<Vec<_>>()))
            .collect();
        clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect()
    });
    wanted.sort_unstable();
    let (connects, accepts) = settled(&mut bench);
    for (found, hook) in [(connects, STATE), (accepts, EXIT)] {
        assert!(
            found
                .iter()
                .all(|found| found.result == 0 && ends(found).1 == server)
        );
        let mut sources: Vec<_> = found.iter().map(|found| ends(found).0).collect();
        sources.sort_unstable();
        let mut left = wanted.iter();
        for source in &sources {
            assert!(
                left.any(|wanted| wanted == source),
                "{source} twice, or never connected"
            );
        }
        bench.nothing_else_missing(hook, wanted.len() - sources.len());
    }
    assert_eq!(bench.lost(), 0);
}

/// Accepts while a sibling closes what it gets; how many descriptors were found empty.
fn accept_and_lose(bench: &mut Bench, listener: &TcpListener, rounds: usize) -> usize {
    let server = listener.local_addr().unwrap();
    // The lowest free number, which is what accept returns each time: clients live elsewhere.
    let number = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                close_number(number);
            }
        });
        scope.spawn(move || {
            unshare(CloneFlags::CLONE_FILES).unwrap();
            for _ in 0..rounds {
                // Reset rather than closed, so that no port stays taken.
                let client = stream(AddressFamily::Inet, SockFlag::empty());
                to(&client, server).unwrap();
                let linger = libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(&client, sockopt::Linger, &linger).unwrap();
            }
        });
        for _ in 0..rounds {
            close_number(accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).unwrap());
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (connects, accepts) = settled(bench);
    assert!(connects.len() <= rounds && accepts.len() <= rounds);
    bench.nothing_else_missing(STATE, rounds - connects.len());
    bench.nothing_else_missing(EXIT, rounds - accepts.len());
    let mut sources: HashMap<SocketAddr, usize> = HashMap::new();
    for found in &connects {
        *sources.entry(ends(found).0).or_default() += 1;
    }
    let (mut lost, mut unknown) = (0, rounds - connects.len());
    for found in &accepts {
        assert_ne!(found.flags & CONN_RACY, 0);
        if found.flags & CONN_LOST != 0 {
            lost += 1;
            continue;
        }
        let (src, dst) = ends(found);
        assert_eq!(dst, server);
        match sources.get_mut(&src).filter(|left| **left > 0) {
            Some(left) => *left -= 1,
            // Its connect is one of the missing records.
            None if unknown > 0 => unknown -= 1,
            None => panic!("{src} twice, or never connected"),
        }
    }
    lost
}

#[test]
fn an_accepted_socket_that_a_sibling_closes_is_marked() {
    let rounds = bench::times(3000);
    let Some(mut bench) = bench("net-lost") else {
        return;
    };
    let listener = TcpListener::bind((LOCAL, 0)).unwrap();
    // On a machine with better things to do the two may never meet.
    for batch in 1..=20 {
        let lost = accept_and_lose(&mut bench, &listener, rounds);
        if lost > 0 {
            eprintln!(
                "{lost} of {rounds} accepted sockets were gone when looked for (batch {batch})"
            );
            return;
        }
    }
    panic!("not exercised: no race was won");
}

#[test]
fn only_what_a_clause_could_match_leaves_the_kernel() {
    let Some(mut bench) = bench::take("net-filter") else {
        return;
    };
    let listener = TcpListener::bind((LOCAL, 0)).unwrap();
    let listener6 = TcpListener::bind((LOCAL6, 0)).unwrap();
    let (v4, v6) = (
        listener.local_addr().unwrap(),
        listener6.local_addr().unwrap(),
    );
    let executable = std::env::current_exe().unwrap();
    let name = executable.file_name().unwrap().as_encoded_bytes().to_vec();
    let ports = |first: u16, last: u16| Some(vec![Ports { first, last }]);
    let net = |text: &str, bits: u8| Some(vec![(text.parse::<IpAddr>().unwrap(), bits)]);
    let clause = Clause::default;
    // The clause, and whether it could match a connection to v4 and one to v6.
    let cases = [
        (
            Clause {
                dst_ports: ports(v4.port(), v4.port()),
                ..clause()
            },
            true,
            false,
        ),
        (
            Clause {
                dst_ports: ports(1024, 65535),
                ..clause()
            },
            true,
            true,
        ),
        (
            Clause {
                dst_ports: ports(9, 9),
                ..clause()
            },
            false,
            false,
        ),
        (
            Clause {
                src_ports: ports(v4.port(), v4.port()),
                ..clause()
            },
            false,
            false,
        ),
        (
            Clause {
                src_ports: ports(1024, 65535),
                ..clause()
            },
            true,
            true,
        ),
        (
            Clause {
                dst_nets: net("127.0.0.0", 8),
                ..clause()
            },
            true,
            false,
        ),
        (
            Clause {
                dst_nets: net("127.0.0.2", 32),
                ..clause()
            },
            false,
            false,
        ),
        (
            Clause {
                src_nets: net("::1", 128),
                ..clause()
            },
            false,
            true,
        ),
        (
            Clause {
                src_nets: net("::", 64),
                dst_ports: ports(v6.port(), v6.port()),
                ..clause()
            },
            false,
            true,
        ),
        (
            Clause {
                src_nets: net("::", 64),
                dst_ports: ports(9, 9),
                ..clause()
            },
            false,
            false,
        ),
        (
            Clause {
                exe_names: Some(vec![name]),
                ..clause()
            },
            true,
            true,
        ),
        (
            Clause {
                exe_names: Some(vec![b"another".to_vec()]),
                ..clause()
            },
            false,
            false,
        ),
        (
            Clause {
                exe_paths: Some(vec![executable.as_os_str().as_encoded_bytes().to_vec()]),
                dst_nets: net("::1", 128),
                ..clause()
            },
            false,
            true,
        ),
    ];
    for (clause, with_v4, with_v6) in cases {
        let plan = KindPlan::Clauses(vec![clause.clone()]);
        load(&mut bench, plan.clone(), plan);
        for (listener, server) in [(&listener, v4), (&listener6, v6)] {
            let client = TcpStream::connect(server).unwrap();
            listener.accept().unwrap();
            drop(client);
        }
        let (connects, accepts) = settled(&mut bench);
        for found in [connects, accepts] {
            let servers: Vec<_> = found.iter().map(|found| ends(found).1).collect();
            let wanted: Vec<_> = [(v4, with_v4), (v6, with_v6)]
                .into_iter()
                .filter_map(|(server, with)| with.then_some(server))
                .collect();
            assert_eq!(servers, wanted, "{clause:?}");
        }
    }
    // The caller's word for an address filters nothing.
    let plan = KindPlan::Clauses(vec![Clause {
        dst_ports: ports(9, 9),
        ..clause()
    }]);
    load(&mut bench, plan, KindPlan::None);
    let target = "198.51.100.7:4711".parse().unwrap();
    apart(|| to(&stream(AddressFamily::Inet, SockFlag::empty()), target)).unwrap_err();
    let (connects, _) = settled(&mut bench);
    assert_eq!(one(&connects).flags, CONN_CALLER);
    // And what nobody asks about stays where it is.
    load(&mut bench, KindPlan::None, KindPlan::All);
    let client = TcpStream::connect(v4).unwrap();
    listener.accept().unwrap();
    drop(client);
    let (connects, accepts) = settled(&mut bench);
    assert_eq!((connects.len(), accepts.len()), (0, 1));
}

#[test]
fn accepting_a_local_socket_is_no_network_event() {
    let Some(mut bench) = bench("net-unix") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
    listener.accept().unwrap();
    drop(client);
    // A call with nothing to accept is none either.
    let tcp = TcpListener::bind((LOCAL, 0)).unwrap();
    tcp.set_nonblocking(true).unwrap();
    assert_eq!(tcp.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(settled(&mut bench), (vec![], vec![]));
}

/// 32-bit calls, made from this 64-bit process as any program can.
#[cfg(target_arch = "x86_64")]
mod compat {
    use super::*;

    const SOCKETCALL: u32 = 102;
    const CONNECT: u32 = 362;
    const ACCEPT4: u32 = 364;

    /// Memory that a 32-bit pointer reaches.
    struct Low(*mut u8);

    #[expect(
        unsafe_code,
        reason = "memory and instructions of another call interface"
    )]
    impl Low {
        fn new() -> Self {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
            let access = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping at an address of the kernel's choice.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, flags, -1, 0) };
            assert_ne!(at, libc::MAP_FAILED);
            Low(at.cast())
        }

        fn write(&self, offset: usize, bytes: &[u8]) -> u32 {
            assert!(offset + bytes.len() <= 4096);
            // SAFETY: inside the mapping, which this value owns.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(offset), bytes.len());
                self.0.add(offset) as usize as u32
            }
        }

        /// Only for calls that write to no memory.
        fn call(number: u32, arguments: [u32; 4]) -> i32 {
            let mut result = number as i32;
            // SAFETY: the interrupt keeps all registers but eax (and r8 to r11 on old kernels).
            unsafe {
                std::arch::asm!(
                    "xchg {first:r}, rbx",
                    "int 0x80",
                    "xchg {first:r}, rbx",
                    first = inout(reg) u64::from(arguments[0]) => _,
                    inout("eax") result,
                    in("ecx") arguments[1],
                    in("edx") arguments[2],
                    in("esi") arguments[3],
                    out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                );
            }
            result
        }
    }

    #[expect(unsafe_code, reason = "as above")]
    impl Drop for Low {
        fn drop(&mut self) {
            // SAFETY: made by `new`, and no reference into it is left.
            unsafe { libc::munmap(self.0.cast(), 4096) };
        }
    }

    fn given(address: SocketAddr) -> Vec<u8> {
        let SocketAddr::V4(address) = address else {
            panic!("IPv4 is enough")
        };
        let mut bytes = (libc::AF_INET as u16).to_ne_bytes().to_vec();
        bytes.extend(address.port().to_be_bytes());
        bytes.extend(address.ip().octets());
        bytes.extend([0; 8]);
        bytes
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn calls_of_32_bits_are_calls() {
        let Some(mut bench) = bench("net-compat") else {
            return;
        };
        let listener = TcpListener::bind((LOCAL, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        let broadcast = SocketAddr::from((Ipv4Addr::BROADCAST, 4711));
        let low = Low::new();
        let address = low.write(0, &given(server));
        let unreachable = low.write(16, &given(broadcast));
        let accepting = listener.as_raw_fd() as u32;
        for through_socketcall in [false, true] {
            let connect = |client: &OwnedFd, address: u32| {
                let client = client.as_raw_fd() as u32;
                if through_socketcall {
                    let arguments = low.write(64, &words(&[client, address, 16]));
                    Low::call(SOCKETCALL, [3, arguments, 0, 0])
                } else {
                    Low::call(CONNECT, [client, address, 16, 0])
                }
            };
            let client = stream(AddressFamily::Inet, SockFlag::empty());
            let result = connect(&client, address);
            if result == -(Errno::ENOSYS as i32) {
                eprintln!("SKIPPED calls_of_32_bits_are_calls: this kernel has no 32-bit calls");
                return;
            }
            assert_eq!(result, 0);
            let accepted = if through_socketcall {
                let arguments =
                    low.write(64, &words(&[accepting, 0, 0, libc::SOCK_CLOEXEC as u32]));
                Low::call(SOCKETCALL, [18, arguments, 0, 0])
            } else {
                Low::call(ACCEPT4, [accepting, 0, 0, libc::SOCK_CLOEXEC as u32])
            };
            assert!(accepted >= 0, "{accepted}");
            let _accepted = owned(accepted);
            let failing = stream(AddressFamily::Inet, SockFlag::empty());
            let error = connect(&failing, unreachable);
            assert!(error < 0);

            let (connects, accepts) = settled(&mut bench);
            assert_eq!(connects.len(), 2, "{connects:?}");
            for found in [connects[0], one(&accepts)] {
                assert_eq!(ends(&found), (own_end(&client), server));
                assert_eq!(found.result, 0);
            }
            assert_eq!(ends(&connects[1]).1, broadcast);
            assert_eq!(
                (connects[1].result, connects[1].flags),
                (error, CONN_CALLER | CONN_RACY)
            );
        }
    }
}
