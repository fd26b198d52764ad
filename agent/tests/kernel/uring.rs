//! io_uring and what it connects, on the running kernel: denied as any other connect is, and told of the process whose ring it is.

use std::io::ErrorKind;
use std::net::{SocketAddr, SocketAddrV4, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use sumun_abi::event::{kind, process::outcome};
use sumun_agent::receive::record::Body;
use sumun_proto::v1::Kind;

use crate::rings;
use crate::rules::Ruled;

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
