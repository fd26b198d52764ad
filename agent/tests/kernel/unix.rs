//! Unix sockets connected, and unusual sockets made, on the running kernel.

use std::fs;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, id};

use crate::bench::{self, Bench, Seen};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use sumun_abi::record::FLAW_DELETED;
use sumun_agent::receive::{
    network,
    record::{Body, Record},
};
use sumun_policy::plan::{Clause, KindPlan, Plan};
use sumun_proto::v1::{Kind, Network, Source};

/// What a child of the test does.
const ACT: &str = "SUMUN_TEST_UNIX";

/// The child: connects to a socket, or makes a raw one, without the rights to.
#[test]
fn actor() {
    let Some(path) = std::env::var_os(ACT) else {
        return;
    };
    assert!(UnixStream::connect(path).is_err());
    let raw = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::empty(),
        SockProtocol::Icmp,
    );
    assert!(raw.is_err());
}

fn load(bench: &mut Bench, plan: KindPlan) {
    let plan = Plan {
        kinds: vec![(Kind::ConnectUnix, plan)],
        ..Plan::default()
    };
    let generation = bench.kernel().filter_generation() + 1;
    assert_eq!(bench.kernel().set_filter(&plan, generation).unwrap(), []);
}

/// Connects of a process.
fn of(pid: u32, seen: &[Seen]) -> Vec<Network> {
    seen.iter()
        .filter_map(|record| match &record.body {
            Body::Unix(connect) if connect.actor.pid == pid => {
                let parsed = Record::parse(&record.bytes).unwrap();
                network::unix(&parsed, connect).network
            }
            _ => None,
        })
        .collect()
}

fn paths(networks: &[Network]) -> Vec<String> {
    networks
        .iter()
        .map(|network| network.dst_path.clone().unwrap())
        .collect()
}

fn real(path: &Path) -> String {
    path.canonicalize().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn the_sockets_own_file_is_told() {
    let Some(mut bench) = bench::take("unix") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    load(&mut bench, KindPlan::All);
    let _stream = UnixListener::bind(place("stream")).unwrap();
    let _datagram = UnixDatagram::bind(place("datagram")).unwrap();
    let name = format!("sumun-test-{}", id());
    let _abstract =
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    std::os::unix::fs::symlink(place("stream"), place("link")).unwrap();
    let first = UnixStream::connect(place("stream")).unwrap();
    let second = UnixStream::connect(place("link")).unwrap();
    let third = UnixDatagram::unbound().unwrap();
    third.connect(place("datagram")).unwrap();
    let fourth = UnixStream::connect_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    // Nobody is there, and a pair is no connection.
    assert!(UnixStream::connect(place("nobody")).is_err());
    let _pair = UnixStream::pair().unwrap();
    let seen = bench.settle();
    let told = of(id(), &seen);
    let (stream, datagram) = (real(&place("stream")), real(&place("datagram")));
    assert_eq!(
        paths(&told),
        [stream.clone(), stream, datagram, format!("@{name}")]
    );
    let kinds: Vec<u32> = told.iter().map(|network| network.r#type).collect();
    assert_eq!(kinds, [1, 1, 2, 1]);
    assert!(told.iter().all(|network| network.result == Some(0)));
    let sources: Vec<_> = told.iter().map(Network::dst_source).collect();
    assert_eq!(
        sources,
        [Source::Object, Source::Object, Source::Object, Source::Copy]
    );
    drop((first, second, third, fourth));

    // A file that has another name by now, and one that has none any more.
    fs::rename(place("stream"), place("moved")).unwrap();
    let _moved = UnixStream::connect(place("moved")).unwrap();
    let gone = UnixListener::bind(place("gone")).unwrap();
    let held = fs::File::options()
        .custom_flags_path()
        .open(place("gone"))
        .unwrap();
    fs::remove_file(place("gone")).unwrap();
    let _late = UnixStream::connect(format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&held)
    ))
    .unwrap();
    drop(gone);
    let seen = bench.settle();
    let told = of(id(), &seen);
    assert_eq!(
        told[0].dst_path.as_deref(),
        Some(real(&place("moved")).as_str())
    );
    assert!(told[1].dst_path.as_deref().unwrap().ends_with("/gone"));
    assert_ne!(told[1].dst_flaws & u32::from(FLAW_DELETED), 0);
}

/// `O_PATH`: a socket's file cannot be opened otherwise.
trait PathFlag {
    fn custom_flags_path(&mut self) -> &mut Self;
}

impl PathFlag for fs::OpenOptions {
    fn custom_flags_path(&mut self) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::custom_flags(self.read(true), 0o10_000_000)
    }
}

#[test]
fn only_what_is_asked_for_leaves_the_kernel() {
    let Some(mut bench) = bench::take("unix-filter") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    fs::create_dir(place("below")).unwrap();
    let listeners: Vec<_> = ["wanted", "other", "below/a"]
        .iter()
        .map(|name| UnixListener::bind(place(name)).unwrap())
        .collect();
    let exact = Clause {
        path_exact: Some(vec![real(&place("wanted")).into_bytes()]),
        ..Clause::default()
    };
    let below = Clause {
        path_prefixes: Some(vec![format!("{}/", real(&place("below"))).into_bytes()]),
        ..Clause::default()
    };
    load(&mut bench, KindPlan::Clauses(vec![exact, below]));
    for name in ["wanted", "other", "below/a", "other", "wanted"] {
        drop(UnixStream::connect(place(name)).unwrap());
    }
    drop(listeners);
    let seen = bench.settle();
    assert_eq!(
        paths(&of(id(), &seen)),
        ["wanted", "below/a", "wanted"].map(|name| {
            let dir = dir.path().canonicalize().unwrap();
            dir.join(name).to_str().unwrap().to_owned()
        })
    );
}

#[test]
fn who_is_not_let_is_told_as_he_says() {
    let Some(mut bench) = bench::take("unix-denied") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program: PathBuf = dir.path().join("actor");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let closed = dir.path().join("closed");
    let _listener = UnixListener::bind(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o600)).unwrap();
    bench.ask(&[Kind::ConnectUnix, Kind::Socket]);
    let mut child = Command::new(program)
        .args(["--exact", "unix::actor"])
        .env(ACT, &closed)
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .spawn()
        .unwrap();
    let pid = child.id();
    assert!(child.wait().unwrap().success());
    let seen = bench.settle();
    let told = of(pid, &seen);
    let [network] = told.as_slice() else {
        panic!("{told:?}")
    };
    assert_eq!(network.result, Some(-13));
    assert_eq!(network.dst_source(), Source::Caller);
    assert_eq!(network.dst_path.as_deref(), closed.to_str());
    assert_eq!(made(pid, &seen), [(2, 3, 1, -1)]);
}

/// Sockets that a process made: family, type, protocol, result.
fn made(pid: u32, seen: &[Seen]) -> Vec<(u32, u32, u32, i32)> {
    seen.iter()
        .filter_map(|record| match &record.body {
            Body::Socket(made) if made.actor.pid == pid => {
                let network = network::socket(made).network.unwrap();
                assert_eq!(network.flags, 0);
                Some((
                    network.family,
                    network.r#type,
                    network.protocol,
                    network.result.unwrap(),
                ))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn raw_and_packet_sockets_are_told_and_ordinary_ones_are_not() {
    let Some(mut bench) = bench::take("socket") else {
        return;
    };
    bench.ask(&[Kind::Socket]);
    let make = |family, kind, protocol: Option<SockProtocol>| {
        socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol).map(drop)
    };
    for (family, kind) in [
        (AddressFamily::Inet, SockType::Stream),
        (AddressFamily::Inet6, SockType::Datagram),
        (AddressFamily::Unix, SockType::Stream),
    ] {
        let _ = make(family, kind, None);
    }
    make(
        AddressFamily::Netlink,
        SockType::Raw,
        Some(SockProtocol::NetlinkRoute),
    )
    .unwrap();
    let mut wanted = Vec::new();
    make(AddressFamily::Inet, SockType::Raw, Some(SockProtocol::Icmp)).unwrap();
    wanted.push((2, 3, 1, 0));
    match make(
        AddressFamily::Packet,
        SockType::Raw,
        Some(SockProtocol::EthAll),
    ) {
        Ok(()) => wanted.push((17, 3, 3, 0)),
        Err(error) => wanted.push((17, 3, 3, -(error as i32))),
    }
    let seen = bench.settle();
    assert_eq!(made(id(), &seen), wanted);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn thirty_two_bit_calls_are_told_too() {
    use crate::low::{Low, int80};
    use std::os::fd::AsRawFd as _;
    let Some(mut bench) = bench::take("unix32") else {
        return;
    };
    if int80(20, 0, 0, 0, 0) != id() as i32 {
        eprintln!("SKIPPED thirty_two_bit_calls_are_told_too: this kernel has no 32-bit calls");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _listener = UnixListener::bind(&path).unwrap();
    let mut low = Low::new();
    let mut address = vec![1, 0];
    address.extend(path.to_str().unwrap().bytes());
    address.push(0);
    let len = address.len() as u32;
    let address = low.put(&address);
    let sockets: Vec<_> = (0..2)
        .map(|_| {
            socket(
                AddressFamily::Unix,
                SockType::Stream,
                SockFlag::empty(),
                None,
            )
            .unwrap()
        })
        .collect();
    let fd = |at: usize| sockets[at].as_raw_fd() as u32;
    let connect = low.put(&[fd(1), address, len].map(u32::to_ne_bytes).concat());
    let raw = low.put(&[2_u32, 3, 1].map(u32::to_ne_bytes).concat());
    bench.ask(&[Kind::ConnectUnix, Kind::Socket]);
    // connect and socket, then both by socketcall.
    assert_eq!(int80(362, fd(0), address, len, 0), 0);
    let first = int80(359, 2, 3, 1, 0);
    assert_eq!(int80(102, 3, connect, 0, 0), 0);
    let second = int80(102, 1, raw, 0, 0);
    assert!(first >= 0 && second >= 0);
    let seen = bench.settle();
    assert_eq!(paths(&of(id(), &seen)), [real(&path), real(&path)]);
    let told: Vec<_> = seen
        .iter()
        .filter_map(|record| match &record.body {
            Body::Socket(made) if made.actor.pid == id() => {
                Some((made.family, made.kind, made.protocol, made.result))
            }
            _ => None,
        })
        .collect();
    assert_eq!(told, [(2, 3, 1, 0), (2, 3, 1, 0)]);
    for fd in [first, second] {
        nix::unistd::close(fd).unwrap();
    }
}
