//! Where a login came from: the address at the other end of the connection of the host's sshd that a process descends from.
//!
//! Asked once for each connection, when sshd begins an image for it, or when it is found running: the kernel is shown the
//! descriptors of that very process and says who the peer is. Nothing is taken from the environment (`SSH_CLIENT`), which
//! whoever has logged in can write, nor from a log. All that descends from the process is of that login, after su and sudo
//! and in the background, as with the login user id. Who comes by other ways (a console, a service) has none, and neither
//! has one whose connection was gone before it could be looked at: it is never guessed.

use std::net::SocketAddr;

use super::process::Node;
use crate::enforce::guard;
use crate::kernel::pidfd::PidFd;
use crate::kernel::stat::Stat;

/// Descriptors that are looked at: sshd has its connection among the first.
const DESCRIPTORS: i32 = 16;

/// Takes the peer of the connection, if this is an image of the host's sshd. One that has none, or more than one, is of no login that is
/// known, whoever has started it: a session of sshd may have begun many connections for whom it forwards.
pub fn look(node: &Node) {
    let Some(program) = node.program() else {
        return;
    };
    let name = program.exe_path.rsplit('/').next().unwrap_or_default();
    if guard::is_name_of_sshd(name.as_bytes())
        && let Some(peer) = peer(node.key.pid, node.key.start_ns)
    {
        node.came_from(peer);
    }
}

/// The only connection of a process; `None` if it is not the host's sshd, or gone.
fn peer(pid: u32, start_ns: u64) -> Option<Option<SocketAddr>> {
    let process = PidFd::open(pid).ok()?;
    // In this order: what is held is the process that began then, and it is the host's own sshd.
    if !Stat::of(pid).ok()??.began_at(start_ns) || !guard::is_sshd(pid) {
        return None;
    }
    let peers = (0..DESCRIPTORS).filter_map(|descriptor| process.peer(descriptor));
    Some(only(peers))
}

/// What all of them are.
fn only(mut peers: impl Iterator<Item = SocketAddr>) -> Option<SocketAddr> {
    let first = peers.next()?;
    peers.all(|peer| peer == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_connections_none_is_taken_for_the_logins() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let (one, other) = (at("192.0.2.7:40022"), at("192.0.2.7:443"));
        assert_eq!(only([].into_iter()), None);
        assert_eq!(only([one].into_iter()), Some(one));
        // Standard input, output and the connection itself.
        assert_eq!(only([one; 3].into_iter()), Some(one));
        assert_eq!(only([one, one, other].into_iter()), None);
    }
}
