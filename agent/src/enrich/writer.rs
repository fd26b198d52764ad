//! Who wrote an executable: the process that was the last to open it for writing, and whether it is a relative of the one that
//! executes it.
//!
//! The kernel side remembers the process by its key, since a rule began to ask. Its path and its descent come from the tree, which keeps
//! images after their end for that (`process::WRITERS_MAX`).

use std::rc::Rc;

use sumun_abi::event::process::{Exec, writer};
use sumun_proto::identity::exec_id;
use sumun_proto::text::file_name;
use sumun_proto::v1;
use sumun_proto::view::UNKNOWN_TEXT;

use super::process::{ImageKey, Node, Tree};

/// A file that was changed so long before it was watched may have been changed after: the kernel stamps with a coarse clock, and
/// clocks are slewed, ns.
const DOUBT_NS: i64 = 1_000_000_000;

/// Programs that start what has nothing to do with each other. Names can be put on, so they count only for processes of root, for
/// those that process 1 has made, and for the first of a pid namespace.
const STARTERS: [&str; 30] = [
    "systemd",
    "init",
    "runit",
    "runsvdir",
    "s6-svscan",
    "openrc-init",
    "supervisord",
    "tini",
    "docker-init",
    "dumb-init",
    "catatonit",
    "containerd",
    "containerd-shim",
    "containerd-shim-runc-v1",
    "containerd-shim-runc-v2",
    "dockerd",
    "conmon",
    "conmonrs",
    "crio",
    "podman",
    "runc",
    "crun",
    "kubelet",
    "cron",
    "crond",
    "atd",
    "anacron",
    "inetd",
    "xinetd",
    SSHD,
];
const SSHD: &str = "sshd";

/// Who wrote an executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// `exec_id` of the image that did; 0 = not known.
    exec_id: u64,
    /// Path of its executable, and whether it is a relative; `None` = not all of it is known.
    who: Option<(String, bool)>,
}

impl Writer {
    const UNKNOWN: Self = Self {
        exec_id: 0,
        who: None,
    };

    /// Out of a batch.
    #[must_use]
    pub fn of(writer: &v1::Writer) -> Self {
        let who = writer.path.clone().map(|path| (path, writer.lineage));
        Self {
            exec_id: writer.exec_id,
            who,
        }
    }

    /// As a part of a batch.
    #[must_use]
    pub fn message(&self) -> v1::Writer {
        v1::Writer {
            exec_id: self.exec_id,
            path: self.who.as_ref().map(|(path, _)| path.clone()),
            lineage: self.who.as_ref().is_some_and(|(_, lineage)| *lineage),
        }
    }

    /// True if it is not known who.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.who.is_none()
    }
}

/// Says of a new image who wrote its executable, unless nobody has since that was watched. `offset_ns`: wall time minus boot time.
pub fn tell(tree: &Tree, node: &Rc<Node>, exec: &Exec, offset_ns: i64) {
    let told = match exec.writer.state {
        writer::SEEN => {
            let key = ImageKey {
                pid: exec.writer.pid,
                start_ns: exec.writer.start_ns,
                image: exec.writer.image,
            };
            seen(tree, node, key)
        }
        writer::NOT_SEEN if changed_since(exec, offset_ns) => Writer::UNKNOWN,
        _ => return,
    };
    if let Some(program) = node.program() {
        // An image that is told of twice had it from the first.
        let _ = program.writer.set(told);
    }
}

/// Whether the executable may have been changed since who writes is watched.
fn changed_since(exec: &Exec, offset_ns: i64) -> bool {
    let Ok(changed_ns) = i64::try_from(exec.exe_changed_ns) else {
        return true;
    };
    let since_ns = offset_ns.saturating_add_unsigned(exec.watched_since_ns);
    changed_ns == 0 || changed_ns >= since_ns.saturating_sub(DOUBT_NS)
}

fn seen(tree: &Tree, node: &Rc<Node>, key: ImageKey) -> Writer {
    let own = Line::of(node);
    let named = own.nodes.iter().find(|one| one.key == key).cloned();
    let writer = named.or_else(|| tree.known(key));
    let program = writer.as_ref().and_then(|writer| writer.program());
    let path = program
        .filter(|program| program.exe_flaws & UNKNOWN_TEXT == 0 && !program.exe_path.is_empty())
        .map(|program| program.exe_path.clone());
    let lineage = if own.has(&key) {
        Some(true)
    } else {
        writer.and_then(|writer| own.is_related(&Line::of(&writer)))
    };
    Writer {
        exec_id: exec_id(key.pid, key.start_ns, key.image),
        who: path.zip(lineage),
    }
}

/// A process and its ancestors.
struct Line {
    /// The process first.
    nodes: Vec<Rc<Node>>,
}

impl Line {
    fn of(node: &Rc<Node>) -> Self {
        let nodes = std::iter::successors(Some(Rc::clone(node)), |node| node.parent());
        Self {
            nodes: nodes.collect(),
        }
    }

    /// Whether a process is one of them, whatever image it had.
    fn has(&self, key: &ImageKey) -> bool {
        let is = |node: &Rc<Node>| (node.key.pid, node.key.start_ns) == (key.pid, key.start_ns);
        self.nodes.iter().any(is)
    }

    /// Whether it goes up to a process without a parent.
    fn is_whole(&self) -> bool {
        self.nodes.last().is_some_and(|top| top.parent_pid() == 0)
    }

    /// Whether the nearest of them that the other has, too, ties them together; the process itself does. `None` if that is not
    /// known.
    fn is_related(&self, other: &Self) -> Option<bool> {
        let mut nodes = self.nodes.iter().enumerate();
        match nodes.find(|(_, node)| other.has(&node.key)) {
            Some((above, node)) => Some(above == 0 || !is_starter(node)),
            None => (self.is_whole() && other.is_whole()).then_some(false),
        }
    }
}

/// Whether descendants of a process have nothing to do with each other for that.
fn is_starter(node: &Node) -> bool {
    // Process 1, and the first of the kernel's threads.
    if node.parent_pid() == 0 || node.key.pid == 1 {
        return true;
    }
    let Some(program) = node.program() else {
        return false;
    };
    let name = file_name(&program.exe_path);
    if program.kernel_thread || !STARTERS.contains(&name) {
        return program.kernel_thread;
    }
    // A session of sshd is its child; it and what it starts belong together.
    let parent = node.parent().and_then(|parent| parent.program());
    if name == SSHD && parent.is_some_and(|parent| file_name(&parent.exe_path) == SSHD) {
        return false;
    }
    node.ids[0] == 0 || node.parent_pid() == 1 || node.ns.pid_inside == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrich::process::{Began, Limits, Program};
    use sumun_abi::event::process::Writer as Record;
    use sumun_abi::event::process::{Actor, Namespaces};

    /// Wall time minus boot time.
    const OFFSET: i64 = 1_700_000_000_000_000_000;

    struct Host {
        tree: Tree,
        last: u32,
    }

    fn key(pid: u32, image: u64) -> ImageKey {
        ImageKey {
            pid,
            start_ns: u64::from(pid) * 10,
            image,
        }
    }

    fn actor(key: ImageKey) -> Actor {
        Actor {
            pid: key.pid,
            start_ns: key.start_ns,
            image: key.image,
            uid: 1000,
            ..Actor::default()
        }
    }

    impl Host {
        fn new() -> Self {
            let mut tree = Tree::new(Limits { bytes: 1 << 20 });
            tree.keep_writers(true);
            let mut host = Self { tree, last: 500 };
            host.exec(key(1, 1), key(0, 0), "/sbin/init");
            host
        }

        fn exec(&mut self, who: ImageKey, parent: ImageKey, path: &str) -> Rc<Node> {
            self.exec_as(1000, who, parent, path)
        }

        fn exec_as(&mut self, uid: u32, who: ImageKey, parent: ImageKey, path: &str) -> Rc<Node> {
            self.tree.began(Began {
                actor: Actor { uid, ..actor(who) },
                program: Program {
                    exe_path: path.into(),
                    args: vec![path.into()],
                    ..Program::default()
                },
                ns: Namespaces::default(),
                parent,
            })
        }

        /// A child, and its program.
        fn child(&mut self, parent: ImageKey, pid: u32, path: &str) -> ImageKey {
            self.child_of(1000, parent, pid, path)
        }

        /// The same by a user.
        fn child_of(&mut self, uid: u32, parent: ImageKey, pid: u32, path: &str) -> ImageKey {
            let forked = key(pid, parent.image);
            let ns = Namespaces::default();
            self.tree.fork(&actor(forked), parent, parent, ns);
            let began = key(pid, parent.image + 1);
            self.exec_as(uid, began, parent, path);
            began
        }

        fn end(&mut self, who: ImageKey) {
            self.tree.exit(&actor(who));
            for _ in 0..3 {
                self.tree.end_cycle(true);
            }
        }

        /// What is told of a file that `writer` wrote and `parent`'s new child executes.
        fn told(&mut self, writer: ImageKey, parent: ImageKey) -> v1::Writer {
            self.last += 1;
            let child = self.child(parent, self.last, "/tmp/file");
            let node = self.tree.known(child).expect("it began");
            let exec = Exec {
                writer: Record {
                    start_ns: writer.start_ns,
                    image: writer.image,
                    boot_ns: 5,
                    pid: writer.pid,
                    state: writer::SEEN,
                },
                ..blank()
            };
            tell(&self.tree, &node, &exec, OFFSET);
            let program = node.program().expect("a program");
            let told = program.writer.get().expect("somebody").message();
            self.tree.exit(&actor(child));
            told
        }
    }

    fn blank() -> Exec {
        let bytes = vec![0; size_of::<Exec>()];
        sumun_abi::plain::read(&bytes).expect("plain data")
    }

    fn known(path: &str, lineage: bool) -> (Option<String>, bool) {
        (Some(path.into()), lineage)
    }

    fn who(writer: v1::Writer) -> (Option<String>, bool) {
        (writer.path, writer.lineage)
    }

    #[test]
    fn what_a_shell_let_download_and_executes_is_of_its_lineage() {
        let mut host = Host::new();
        let sshd = host.child(key(1, 1), 10, "/usr/sbin/sshd");
        let session = host.child(sshd, 11, "/usr/sbin/sshd");
        let shell = host.child(session, 12, "/bin/sh");
        let curl = host.child(shell, 13, "/usr/bin/curl");
        host.end(curl);
        assert_eq!(who(host.told(curl, shell)), known("/usr/bin/curl", true));
        // By the shell itself, as by its redirections, and by a copy of it that became another program.
        assert_eq!(who(host.told(shell, shell)), known("/bin/sh", true));
        let copy = key(13, shell.image);
        assert_eq!(who(host.told(copy, shell)), known("/bin/sh", true));
        // Another login shares with it only the sshd that listens.
        let other = host.child(sshd, 21, "/usr/sbin/sshd");
        let other = host.child(other, 22, "/bin/sh");
        assert_eq!(who(host.told(curl, other)), known("/usr/bin/curl", false));
        // Of one login's two shells both hang from its sshd.
        let second = host.child(session, 31, "/bin/sh");
        assert_eq!(who(host.told(curl, second)), known("/usr/bin/curl", true));
    }

    #[test]
    fn services_are_not_relatives_by_what_starts_them() {
        let mut host = Host::new();
        let manager = host.child(key(1, 1), 10, "/usr/lib/systemd/systemd");
        let one = host.child(manager, 11, "/usr/bin/one");
        let other = host.child(manager, 12, "/usr/bin/other");
        assert_eq!(who(host.told(one, other)), known("/usr/bin/one", false));
        let dpkg = host.child(key(1, 1), 13, "/usr/bin/dpkg");
        assert_eq!(who(host.told(dpkg, other)), known("/usr/bin/dpkg", false));
        // Nor by what has started that.
        let entry = host.child(key(1, 1), 16, "/entrypoint");
        let jobs = host.child_of(0, entry, 17, "/usr/sbin/crond");
        let (one, other) = (
            host.child(jobs, 18, "/bin/one"),
            host.child(jobs, 19, "/bin/sh"),
        );
        assert_eq!(who(host.told(one, other)), known("/bin/one", false));
        assert_eq!(who(host.told(entry, other)), known("/entrypoint", true));
        // Its name alone makes nobody a manager.
        let posing = host.child(entry, 14, "/tmp/systemd");
        let dropper = host.child(posing, 15, "/tmp/dropper");
        let told = host.told(dropper, posing);
        assert_eq!(who(told), known("/tmp/dropper", true));
    }

    #[test]
    fn who_was_forgotten_is_unknown_but_named() {
        let mut host = Host::new();
        let shell = host.child(key(1, 1), 10, "/bin/sh");
        let gone = key(77, 3);
        let told = host.told(gone, shell);
        assert_eq!((told.path, told.lineage), (None, false));
        assert_eq!(told.exec_id, exec_id(77, 770, 3));
        // Asked no more, nothing is kept.
        let writer = host.child(shell, 11, "/usr/bin/curl");
        host.tree.keep_writers(false);
        host.end(writer);
        assert_eq!(host.told(writer, shell).path, None);
    }

    #[test]
    fn ended_images_are_kept_up_to_a_bound() {
        let mut host = Host::new();
        let shell = host.child(key(1, 1), 10, "/bin/sh");
        let kept = u32::try_from(super::super::process::WRITERS_MAX).expect("few");
        for pid in 1000..1000 + kept {
            let child = host.child(shell, pid, "/bin/true");
            host.tree.exit(&actor(child));
        }
        for _ in 0..3 {
            host.tree.end_cycle(true);
        }
        assert!(host.tree.stats().images <= super::super::process::WRITERS_MAX + 8);
        assert!(host.tree.known(key(1000, 2)).is_none());
        let last = host.tree.known(key(999 + kept, 3)).expect("kept");
        let program = last.program().expect("its program");
        assert_eq!(
            (program.exe_path.as_str(), program.args.len()),
            ("/bin/true", 0)
        );
    }

    #[test]
    fn a_file_that_nobody_was_seen_to_write_is_unknown_only_if_it_was_changed() {
        let since = 100_000_000_000;
        let wall = OFFSET.cast_unsigned() + since;
        for (state, changed, unknown) in [
            (writer::NOT_SEEN, wall - 5_000_000_000, false),
            (writer::NOT_SEEN, wall - 1_000_000, true),
            (writer::NOT_SEEN, wall + 5_000_000_000, true),
            (writer::NOT_SEEN, 0, true),
            (writer::LOWER, wall + 5_000_000_000, false),
            (writer::NOT_WATCHED, wall + 5_000_000_000, false),
        ] {
            let mut host = Host::new();
            let node = host.exec(key(5, 1), key(1, 1), "/bin/ls");
            let exec = Exec {
                writer: Record {
                    state,
                    ..Record::default()
                },
                watched_since_ns: since,
                exe_changed_ns: changed,
                ..blank()
            };
            tell(&host.tree, &node, &exec, OFFSET);
            let program = node.program().expect("a program");
            assert_eq!(
                program.writer.get().map(Writer::is_unknown),
                unknown.then_some(true),
                "{state} {changed}"
            );
        }
    }
}
