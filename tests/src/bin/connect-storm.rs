//! Makes TCP connections on loopback and writes down both ends of each.
//!
//! `connect-storm --count N --oracle FILE [--threads 2] [--v6 true]`
//!
//! In turn: a blocking connect that is accepted, a non-blocking one, a blocking
//! one that is refused, a non-blocking one that is refused. IPv4 connections each
//! come from an address of their own in 127/8; IPv6 has one loopback address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, sockopt,
};
use sumun_tests::args::Args;
use sumun_tests::oracle::{self, Connection};

fn main() -> Result<()> {
    let args = Args::parse()?;
    let count = args.number("count", 1000)?;
    let threads = args.number("threads", 2)?;
    let v6 = args.has("v6");
    let done = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || -> Result<Vec<Connection>> {
                    let ends = Ends::new(v6)?;
                    let mut done = Vec::new();
                    for seq in (thread..count).step_by(usize::try_from(threads)?) {
                        ends.one(seq, &mut done)
                            .with_context(|| format!("connection {seq}"))?;
                    }
                    Ok(done)
                })
            })
            .collect();
        handles
            .into_iter()
            .map(|handle| handle.join().expect("a thread of the storm panicked"))
            .collect::<Result<Vec<_>>>()
    })?
    .concat();
    oracle::write(&args.path("oracle")?, &done)?;
    println!("{}", done.len());
    Ok(())
}

struct Ends {
    v6: bool,
    listener: TcpListener,
    /// Bound and never listening: connections to it are refused, and nobody else gets the port.
    refusing: OwnedFd,
}

impl Ends {
    fn new(v6: bool) -> Result<Self> {
        let ip = loopback(v6);
        let refusing = stream(v6, SockFlag::empty())?;
        socket::bind(refusing.as_raw_fd(), &*kernel_form(SocketAddr::new(ip, 0)))?;
        Ok(Self {
            v6,
            listener: TcpListener::bind((ip, 0))?,
            refusing,
        })
    }

    fn one(&self, seq: u64, done: &mut Vec<Connection>) -> Result<()> {
        let refused = seq % 4 >= 2;
        let nonblocking = seq % 2 == 1;
        let dst = if refused {
            local(&self.refusing, self.v6)?
        } else {
            self.listener.local_addr()?
        };
        let flags = if nonblocking {
            SockFlag::SOCK_NONBLOCK
        } else {
            SockFlag::empty()
        };
        let socket = stream(self.v6, flags)?;
        let own = if self.v6 {
            loopback(true)
        } else {
            let seq = u32::try_from(seq)?;
            IpAddr::V4(Ipv4Addr::from(0x7f10_0000 + seq + 1))
        };
        // Known before the call, so that a refused one has a source too.
        socket::bind(socket.as_raw_fd(), &*kernel_form(SocketAddr::new(own, 0)))?;
        let src = local(&socket, self.v6)?;
        let result = connect(&socket, dst, nonblocking)?;
        if refused == (result == 0) {
            bail!("connect to {dst} ended with {result}");
        }
        let record = |kind: &str, result: i32| Connection {
            kind: kind.to_owned(),
            pid: std::process::id(),
            src: (src.ip().to_string(), src.port()),
            dst: (dst.ip().to_string(), dst.port()),
            result,
        };
        done.push(record("connect", result));
        if !refused {
            let (_accepted, peer) = self.listener.accept()?;
            if peer != src {
                bail!("accepted {peer} instead of {src}");
            }
            done.push(record("accept", 0));
        }
        // No TIME_WAIT: the ports are free at once.
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        socket::setsockopt(&socket, sockopt::Linger, &linger)?;
        Ok(())
    }
}

fn loopback(v6: bool) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::LOCALHOST)
    } else {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    }
}

fn stream(v6: bool, flags: SockFlag) -> Result<OwnedFd> {
    let family = if v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    Ok(socket::socket(
        family,
        SockType::Stream,
        flags | SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

fn kernel_form(address: SocketAddr) -> Box<dyn SockaddrLike> {
    match address {
        SocketAddr::V4(v4) => Box::new(SockaddrIn::from(v4)),
        SocketAddr::V6(v6) => Box::new(SockaddrIn6::from(v6)),
    }
}

fn local(socket: &OwnedFd, v6: bool) -> Result<SocketAddr> {
    let fd = socket.as_raw_fd();
    Ok(if v6 {
        let address: SockaddrIn6 = socket::getsockname(fd)?;
        SocketAddr::new(address.ip().into(), address.port())
    } else {
        let address: SockaddrIn = socket::getsockname(fd)?;
        SocketAddr::new(address.ip().into(), address.port())
    })
}

/// 0 or the negative error number that the connect ended with.
fn connect(socket: &OwnedFd, dst: SocketAddr, nonblocking: bool) -> Result<i32> {
    match socket::connect(socket.as_raw_fd(), &*kernel_form(dst)) {
        Ok(()) => return Ok(0),
        Err(Errno::EINPROGRESS) if nonblocking => {}
        Err(error) => return Ok(-(error as i32)),
    }
    let mut wait = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut wait, PollTimeout::from(5000u16))? == 0 {
        bail!(io::Error::from(io::ErrorKind::TimedOut));
    }
    Ok(-socket::getsockopt(socket, sockopt::SocketError)?)
}
