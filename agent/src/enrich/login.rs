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

/// Takes the peer of the connection, if this is an image of sshd that has one.
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

fn peer(pid: u32, start_ns: u64) -> Option<SocketAddr> {
    let process = PidFd::open(pid).ok()?;
    // In this order: what is held is the process that began then, and it is the host's own sshd.
    if !Stat::of(pid).ok()??.began_at(start_ns) || !guard::is_sshd(pid) {
        return None;
    }
    (0..DESCRIPTORS).find_map(|descriptor| process.peer(descriptor))
}
