//! io_uring on the running kernel: what it does is told once, of the process whose ring it is, and denied as any other call.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::fcntl::RenameFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use sumun_abi::event::{
    file::{
        ACCESS_READ, ACCESS_WRITE, CALL_IO_URING, NAMES_DIRECTORY, OPEN_CREATED, OPEN_TRUNCATE,
    },
    kind,
    process::outcome,
};
use sumun_agent::receive::record::Body;
use sumun_proto::catalogue::kind_name;
use sumun_proto::v1::{Kind, Source};

use crate::bench::Bench;
use crate::points::{self, below, folder, identity, of, opens, path_of, points, told};
use crate::rings::{self, BY_WORKER, LINKED, Request, Ring, UNTOLD};
use crate::rules::Ruled;

/// A kernel side that is told what io_uring does of these kinds, and rings of both sorts; or why there is none.
fn bench(name: &str, kinds: &[Kind]) -> Option<(Bench, [Ring; 2])> {
    let mut bench = points(name)?;
    for status in bench.kernel().rings() {
        if let Some(reason) = &status.reason {
            let kind = kind_name(status.kind);
            eprintln!("not told of io_uring: {kind}: {reason}");
            if kinds.contains(&status.kind) {
                eprintln!("SKIPPED {name}: {kind}: {reason}");
                return None;
            }
        }
    }
    let made = Ring::new(false).and_then(|plain| Ok([plain, Ring::new(true)?]));
    match made {
        Ok(rings) => Some((bench, rings)),
        Err(refused) => {
            eprintln!("SKIPPED {name}: no io_uring here: {refused:?}");
            None
        }
    }
}

fn text(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

/// Makes them one after the other; whatever is completed has to succeed.
fn make(ring: &mut Ring, requests: &[Request], completed: u32) {
    for (number, result) in ring.make(requests, completed).unwrap() {
        assert!(result >= 0, "{number}: {result} of {requests:?}");
    }
}

/// Fails in the way that is said.
fn fail(ring: &mut Ring, request: Request, error: i32) {
    assert_eq!(ring.make(&[request], 1).unwrap(), [(0, -error)]);
}

#[test]
fn what_io_uring_opens_is_told_once() {
    let Some((mut bench, rings)) = bench("uring-open", &[Kind::Open]) else {
        return;
    };
    let (_dir, dir) = folder();
    let (_elsewhere, elsewhere) = folder();
    fs::write(dir.join("a"), "content").unwrap();
    fs::write(elsewhere.join("c"), "").unwrap();
    fs::create_dir(dir.join("box")).unwrap();
    points::set(&mut bench, &below(&dir));
    let a = text(&dir.join("a"));
    for ring in rings {
        let mut ring = ring.with_places().unwrap();
        let new = ["new", "newer"].map(|name| dir.join(name));
        let how = [(libc::O_RDWR | libc::O_TRUNC) as u64, 0, 0];
        let create = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        // (what is opened, how, whether it has a descriptor)
        let mut expected = Vec::new();
        let mut told_of = |path: &Path, flags, fd| expected.push((path.to_owned(), flags, fd));
        let at_a = dir.join("a");
        make(&mut ring, &[Request::open(&a, libc::O_RDONLY)], 1);
        told_of(&at_a, ACCESS_READ, true);
        let by_worker = Request::open(&a, libc::O_RDONLY).with(BY_WORKER);
        make(&mut ring, &[by_worker], 1);
        told_of(&at_a, ACCESS_READ, true);
        make(&mut ring, &[Request::open2(&a, &how)], 1);
        told_of(&at_a, ACCESS_READ | ACCESS_WRITE | OPEN_TRUNCATE, true);
        let names = new.each_ref().map(|path| text(path));
        let created = Request::open(&names[0], create);
        make(&mut ring, &[created], 1);
        told_of(&new[0], ACCESS_WRITE | OPEN_CREATED, true);
        // Not there, not allowed, and not asked about.
        fail(
            &mut ring,
            Request::open(c"/no/such", libc::O_RDONLY),
            libc::ENOENT,
        );
        let name = text(&dir.join("box"));
        fail(
            &mut ring,
            Request::open(&name, libc::O_WRONLY),
            libc::EISDIR,
        );
        let unasked = text(&elsewhere.join("c"));
        make(&mut ring, &[Request::open(&unasked, libc::O_RDONLY)], 1);
        let linked = [
            Request::open(&a, libc::O_RDONLY).with(LINKED),
            Request::open(&names[1], create).with(LINKED),
            Request::open(&a, libc::O_WRONLY),
        ];
        make(&mut ring, &linked, 3);
        told_of(&at_a, ACCESS_READ, true);
        told_of(&new[1], ACCESS_WRITE | OPEN_CREATED, true);
        told_of(&at_a, ACCESS_WRITE, true);
        make(
            &mut ring,
            &[Request::open(&a, libc::O_RDONLY).into_place(2)],
            1,
        );
        told_of(&at_a, ACCESS_READ, false);
        let by_worker = Request::open(&a, libc::O_WRONLY).with(BY_WORKER);
        make(&mut ring, &[by_worker.into_place(1)], 1);
        told_of(&at_a, ACCESS_WRITE, false);
        if ring.skips() {
            for more in [0, BY_WORKER] {
                let silent = Request::open(&a, libc::O_RDONLY).into_place(3);
                let after = Request::nothing();
                make(&mut ring, &[silent.with(LINKED | UNTOLD | more), after], 1);
                told_of(&at_a, ACCESS_READ, false);
            }
        } else {
            eprintln!("SKIPPED opens: no requests without a completion here");
        }
        // No ring's.
        drop(File::open(&at_a).unwrap());
        let seen = bench.settle();
        let mut found = opens(&seen, &dir);
        let (last, plain) = found.pop().unwrap();
        assert_eq!((last, plain.flags), (path_of(&at_a).unwrap(), ACCESS_READ));
        let short: Vec<_> = found
            .iter()
            .map(|(path, open)| {
                let file = (open.dev, open.ino, open.path.flaws);
                (path.clone(), file, open.flags, open.fd >= 0)
            })
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(path, flags, fd)| {
                let (dev, ino) = identity(path);
                let path = path_of(path).unwrap();
                (path, (dev, ino, 0), flags | CALL_IO_URING, *fd)
            })
            .collect();
        assert_eq!(short, expected);
        let own = nix::unistd::gettid().as_raw().cast_unsigned();
        let others = found.iter().filter(|(_, open)| open.actor.tid != own);
        println!(
            "{} opens told, {} by other threads",
            found.len(),
            others.count()
        );
        for path in new {
            fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(bench.kernel().points_full().unwrap(), 0);
}

#[test]
fn what_io_uring_does_to_names_is_told_once() {
    let Some((mut bench, rings)) = bench("uring-names", &[Kind::Rename, Kind::Unlink]) else {
        return;
    };
    let (_dir, dir) = folder();
    let at = |name: &str| dir.join(name);
    let named = |name: &str| text(&dir.join(name));
    let [a, b, c, hard, soft, full, empty] =
        ["a", "b", "c", "hard", "soft", "full", "empty"].map(named);
    bench.ask(&points::KINDS);
    for mut ring in rings {
        for name in ["a", "c"] {
            fs::write(at(name), "").unwrap();
        }
        for name in ["full", "full/in", "empty"] {
            fs::create_dir(at(name)).unwrap();
        }
        let (one, other, gone) = (
            identity(&at("a")),
            identity(&at("c")),
            identity(&at("empty")),
        );
        drop(bench.settle());
        make(&mut ring, &[Request::rename(&a, &b, 0)], 1);
        let path = |name: &str| path_of(&at(name));
        let by = "io_uring";
        let mut expected = vec![(Kind::Rename, (path("a"), path("b")), one, by)];
        let says = c"../no/such";
        let names = (Some("../no/such".to_owned()), path("soft"));
        for (request, link) in [
            (
                Request::link(&b, &hard),
                (Kind::Link, (path("b"), path("hard")), one, by),
            ),
            (
                Request::symlink(says, &soft),
                (Kind::Symlink, names, (0, 0), by),
            ),
        ] {
            match ring.make(&[request], 1).unwrap()[..] {
                [(0, 0)] => expected.push(link),
                // From 5.15 on; 5.10 has the same code without them.
                [(0, error)] if error == -libc::EINVAL => {
                    eprintln!("SKIPPED names: no requests for links here");
                }
                ref other => panic!("{other:?}"),
            }
        }
        let exchange = RenameFlags::RENAME_EXCHANGE.bits();
        let linked = [
            Request::rename(&b, &c, exchange).with(LINKED),
            Request::unlink(&b, 0),
        ];
        make(&mut ring, &linked, 2);
        // What the kernel decides about and then does not do is not told, nor what it never comes to decide about.
        fail(
            &mut ring,
            Request::unlink(&full, libc::AT_REMOVEDIR),
            libc::ENOTEMPTY,
        );
        fail(&mut ring, Request::rename(&c, &full, 0), libc::EISDIR);
        fail(&mut ring, Request::unlink(&a, 0), libc::ENOENT);
        let removed = Request::unlink(&empty, libc::AT_REMOVEDIR);
        if ring.skips() {
            make(
                &mut ring,
                &[removed.with(LINKED | UNTOLD), Request::nothing()],
                1,
            );
        } else {
            make(&mut ring, &[removed], 1);
        }
        // No ring's.
        fs::remove_file(at("c")).unwrap();
        let seen = bench.settle();
        let found = told(&seen, &dir);
        let short: Vec<_> = found
            .iter()
            .map(|(kind, event)| {
                let file = of(event);
                let names = (file.path.clone(), file.new_path.clone());
                (*kind, names, (file.dev, file.ino), event.call.as_str())
            })
            .collect();
        expected.extend([
            (Kind::Rename, (path("b"), path("c")), one, by),
            (Kind::Unlink, (path("b"), None), other, by),
            (Kind::Unlink, (path("empty"), None), gone, by),
            (Kind::Unlink, (path("c"), None), one, ""),
        ]);
        assert_eq!(short, expected);
        let last = found.len() - 1;
        let own = nix::unistd::gettid().as_raw().cast_unsigned();
        for (kind, event) in &found[..last] {
            let file = of(event);
            let source = match kind {
                Kind::Symlink => Source::Copy,
                _ => Source::Object,
            };
            assert_eq!((file.source(), file.flaws, file.new_flaws), (source, 0, 0));
            assert_ne!(file.flags & CALL_IO_URING, 0);
            assert_ne!(event.tid, own, "a worker did it: {event:?}");
        }
        assert_eq!(of(&found[last - 3].1).call_flags, exchange);
        assert_ne!(of(&found[last - 1].1).flags & NAMES_DIRECTORY, 0);
        for name in ["hard", "soft"] {
            // Where it was made.
            let _ = fs::remove_file(at(name));
        }
        fs::remove_dir_all(at("full")).unwrap();
    }
    assert_eq!(bench.kernel().points_full().unwrap(), 0);
}

/// `struct sockaddr_un`.
fn unix_name(path: &Path) -> Vec<u8> {
    let family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap();
    let mut name = family.to_ne_bytes().to_vec();
    name.extend(text(path).as_bytes_with_nul());
    name
}

#[test]
fn what_io_uring_does_with_sockets_is_told_once() {
    let Some((mut bench, rings)) = bench("uring-sockets", &[Kind::Accept]) else {
        return;
    };
    bench.ask(&[Kind::Accept, Kind::Bind, Kind::Listen, Kind::ConnectUnix]);
    let known: Vec<_> = bench.kernel().rings().to_vec();
    let is_told = |kind| {
        known
            .iter()
            .any(|of| of.kind == kind && of.reason.is_none())
    };
    for ring in rings {
        let mut ring = ring.with_places().unwrap();
        let (listener, address) = listener();
        let listens = listener.as_fd();
        let connect = move || TcpStream::connect(address).unwrap();
        drop(bench.settle());
        let mut clients = Vec::new();
        for request in [
            Request::accept(listens),
            Request::accept(listens).with(BY_WORKER),
            Request::accept(listens).into_place(2),
        ] {
            clients.push(connect());
            make(&mut ring, &[request], 1);
        }
        // When it is asked for nobody is there yet.
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            connect()
        });
        make(&mut ring, &[Request::accept(listens)], 1);
        clients.push(late.join().unwrap());
        // No ring's.
        clients.push(connect());
        drop(listener.accept().unwrap());
        // One request for all that come.
        clients.push(connect());
        match ring.make(&[Request::accept_all(listens)], 1).unwrap()[..] {
            [(0, error)] if error == -libc::EINVAL => {
                eprintln!("SKIPPED accepts: no request that goes on accepting here");
                drop(listener.accept().unwrap());
            }
            [(0, 0..)] => {
                clients.push(connect());
                make(&mut ring, &[], 1);
            }
            ref other => panic!("{other:?}"),
        }
        let seen = bench.settle();
        let accepts = seen.iter().filter_map(|record| match record.body {
            Body::Accept(made) if made.actor.pid == std::process::id() => Some(made),
            _ => None,
        });
        let found: Vec<_> = accepts
            .map(|made| {
                assert_eq!((made.dst_port, made.protocol), (address.port(), 6));
                made.src_port
            })
            .collect();
        let ports: Vec<_> = clients
            .iter()
            .map(|client| client.local_addr().unwrap().port())
            .collect();
        assert_eq!(found, ports);
        println!("accepted {ports:?}");
        // Not those of the ring before.
        drop(ring);
        own_ends(&mut bench, is_told(Kind::Bind));
        unix(&mut bench, is_told(Kind::ConnectUnix));
    }
}

fn own_ends(bench: &mut Bench, is_told: bool) {
    let mut ring = Ring::new(false).unwrap();
    let socket = made();
    let name = rings::name("127.0.0.1:0".parse().unwrap());
    match ring
        .make(&[Request::bind(socket.as_fd(), &name)], 1)
        .unwrap()[..]
    {
        [(0, 0)] => {}
        [(0, error)] if error == -libc::EINVAL && !is_told => {
            return eprintln!("SKIPPED binds: no requests to bind here");
        }
        ref other => panic!("{other:?}"),
    }
    make(&mut ring, &[Request::listen(socket.as_fd())], 1);
    let bound = TcpListener::from(socket).local_addr().unwrap();
    let seen = bench.settle();
    let found: Vec<_> = seen
        .iter()
        .filter_map(|record| match record.body {
            Body::OwnEnd(kind, own) if own.actor.pid == std::process::id() => {
                Some((kind, own.dst_port, own.flags))
            }
            _ => None,
        })
        .collect();
    let port = bound.port();
    assert_eq!(found, [(Kind::Bind, port, 0), (Kind::Listen, port, 0)]);
}

fn unix(bench: &mut Bench, is_told: bool) {
    let (_dir, dir) = folder();
    let path = dir.join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    let mut ring = Ring::new(false).unwrap();
    drop(bench.settle());
    let name = unix_name(&path);
    for more in [0, BY_WORKER] {
        let socket = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::empty(),
            None,
        );
        let socket = socket.unwrap();
        let absent = unix_name(&dir.join("absent"));
        fail(
            &mut ring,
            Request::connect(socket.as_fd(), &absent),
            libc::ENOENT,
        );
        let request = Request::connect(socket.as_fd(), &name);
        make(&mut ring, &[request.with(more)], 1);
    }
    let seen = bench.settle();
    let found: Vec<_> = seen
        .iter()
        .filter_map(|record| match record.body {
            Body::Unix(made) if made.actor.pid == std::process::id() => {
                Some((record.text(made.path), made.result))
            }
            _ => None,
        })
        .collect();
    if is_told {
        let path = path_of(&path).unwrap();
        assert_eq!(found, [(path.clone(), 0), (path, 0)]);
    } else {
        eprintln!("SKIPPED unix: what io_uring connects to Unix sockets is not told here");
    }
}

fn made() -> OwnedFd {
    socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::empty(),
        None,
    )
    .unwrap()
}

fn listener() -> (TcpListener, SocketAddrV4) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else {
        panic!("it is of IPv4");
    };
    (listener, address)
}

#[test]
fn a_connect_through_io_uring_is_denied_and_told_of_its_process() {
    let Some(mut ruled) = Ruled::new("deny-uring", &[Kind::Connect]) else {
        return;
    };
    let (asked, denied_to) = listener();
    let (_other, free) = listener();
    ruled.load("connect", &format!("net.dst.port == {}", denied_to.port()));
    let mut made_by = Vec::new();
    for kernel_thread in [false, true] {
        let who = if kernel_thread {
            "its thread"
        } else {
            "the call"
        };
        match rings::connect(made().as_fd(), free, kernel_thread) {
            Ok(Ok(())) => {}
            // Before 5.11 the thread takes registered files only.
            Ok(Err(error)) if kernel_thread && error.raw_os_error() == Some(libc::EBADF) => {
                eprintln!("SKIPPED by {who}: {error}");
                continue;
            }
            Ok(Err(error)) => panic!("by {who}, another port: {error}"),
            Err(refused) => {
                eprintln!("SKIPPED by {who}: no io_uring here: {refused:?}");
                continue;
            }
        }
        let result = rings::connect(made().as_fd(), denied_to, kernel_thread).unwrap();
        let error = result.expect_err("it was denied and went on");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "by {who}: {error}");
        made_by.push(who);
    }
    asked.set_nonblocking(true).unwrap();
    let quiet = asked.accept().unwrap_err();
    assert_eq!(quiet.kind(), ErrorKind::WouldBlock);
    let seen = ruled.bench.settle();
    let records = seen.iter().filter_map(|record| match record.body {
        Body::Asked(asked) if asked.kind == u32::from(kind::CONNECT) => Some(asked),
        _ => None,
    });
    let records: Vec<_> = records.collect();
    assert_eq!(records.len(), made_by.len(), "{made_by:?}: {records:?}");
    for record in records {
        assert_eq!(record.verdict.outcome, outcome::DENIED);
        assert_eq!(record.actor.pid, std::process::id());
    }
    println!("denied, made by {made_by:?}");
}
