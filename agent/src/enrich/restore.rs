//! The process tree out of batches of before a restart.

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::rc::Rc;

use sumun_abi::event::process::{Actor, Namespaces};
use sumun_proto::identity;
use sumun_proto::v1::{Batch, Image};

use super::process::{Node, Program, Tree};
use super::writer::Writer;

/// Adds the images of a batch that the tree does not know.
pub fn images(tree: &mut Tree, batch: &Batch) {
    let mut nodes: Vec<Rc<Node>> = Vec::with_capacity(batch.images.len());
    for image in &batch.images {
        // Parents stand before their children.
        let parent = (image.parent as usize)
            .checked_sub(1)
            .and_then(|index| nodes.get(index));
        let actor = Actor {
            pid: image.pid,
            tid: image.pid,
            start_ns: image.start_ns,
            image: identity::image(image.pid, image.start_ns, image.exec_id),
            uid: image.uid,
            gid: image.gid,
            euid: image.euid,
            egid: image.egid,
            cgroup_id: image.cgroup_id,
            cgroup_hierarchy: u32::from(image.cgroup_hierarchy != "unified"),
            files_shared: 0,
            cap_effective: image.cap_effective.unwrap_or(0),
        };
        let node = tree.restore(
            &actor,
            parent,
            (image.parent_pid, image.parent_exec_id),
            image.seen.then(|| program(image)),
            image.ns.map_or_else(Namespaces::default, |ns| Namespaces {
                mnt: ns.mnt,
                pid: ns.pid,
                net: ns.net,
                user: ns.user,
                uts: ns.uts,
                ipc: ns.ipc,
                cgroup: ns.cgroup,
                pid_inside: ns.pid_inside,
            }),
        );
        if let (Ok(ip), Ok(port)) = (image.login_ip.parse(), image.login_port.try_into()) {
            node.came_from(Some(SocketAddr::new(ip, port)));
        }
        nodes.push(node);
    }
}

fn program(image: &Image) -> Program {
    Program {
        exe_path: image.exe_path.clone(),
        exe_flaws: image.exe_flaws,
        exe_dev: image.exe_dev,
        exe_ino: image.exe_ino,
        in_image: image.in_image,
        setid: image.setid,
        script: image.script.clone(),
        exe_changed_ns: image.exe_changed_ns,
        args: image.args.clone(),
        args_flaws: image.args_flaws,
        args_total: image.args_total,
        cwd: image.cwd.clone(),
        cwd_flaws: image.cwd_flaws,
        auid: image.auid,
        session: image.session,
        tty: image.tty.clone(),
        caps: [
            image.cap_effective.unwrap_or(0),
            image.cap_permitted,
            image.cap_inheritable,
        ],
        bootstrapped: image.bootstrapped,
        kernel_thread: image.kernel_thread,
        writer: image
            .writer
            .as_ref()
            .map_or_else(OnceCell::new, |writer| OnceCell::from(Writer::of(writer))),
        ..Program::default()
    }
}
