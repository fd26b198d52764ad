//! Calls that do no harm, made to see that a door makes them fail: with the programs attached, each is denied to
//! the thread that tries it, and to no other (`CANARY`).

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
};

use sumun_proto::v1::Kind;

/// Makes a call of a kind, in every way that its door has; says what went through, or why it cannot be tried.
pub(super) fn try_kind(kind: Kind) -> Result<(), String> {
    match kind {
        Kind::Connect => connect(),
        Kind::Bind => bind(),
        Kind::Sysctl => denied("reading a setting", fs::read("/proc/sys/kernel/ostype")),
        _ => Err("there is nothing to try it with".to_owned()),
    }
}

/// The call has to fail with EPERM.
fn denied<T>(what: &str, result: io::Result<T>) -> Result<(), String> {
    match result.map_err(|error| (error.raw_os_error(), error)) {
        Err((Some(libc::EPERM), _)) => Ok(()),
        Err((_, error)) => Err(format!("{what} that was denied ended otherwise: {error}")),
        Ok(_) => Err(format!("{what} was denied and went on")),
    }
}

/// A host without IPv6 has no such sockets.
fn is_without(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

/// The port of the discard protocol: nobody is there, and nothing leaves the host.
const NOBODY: u16 = 9;

fn connect() -> Result<(), String> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .map_err(|error| format!("cannot make a socket to try it on: {error}"))?;
    let to = (Ipv4Addr::LOCALHOST, NOBODY);
    denied("a connect over IPv4", socket.connect(to))?;
    denied("a datagram over IPv4", socket.send_to(b"", to))?;
    match UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) {
        Ok(socket) => {
            let to = (Ipv6Addr::LOCALHOST, NOBODY);
            denied("a connect over IPv6", socket.connect(to))?;
            denied("a datagram over IPv6", socket.send_to(b"", to))
        }
        Err(error) if is_without(&error) => Ok(()),
        Err(error) => Err(format!("cannot make a socket to try it on: {error}")),
    }
}

fn bind() -> Result<(), String> {
    denied(
        "a bind over IPv4",
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)),
    )?;
    match UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) {
        Err(error) if is_without(&error) => Ok(()),
        tried => denied("a bind over IPv6", tried),
    }
}
