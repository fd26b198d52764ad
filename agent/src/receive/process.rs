//! Fork, exec, exit and the task iterator: into the process tree and events.

use std::io::Read as _;
use std::rc::Rc;

use sumun_abi::event::process::{
    Actor, EXE_IN_IMAGE, EXE_INTERPRETED, EXE_LAYERED, EXE_SECURE, Exec, Exit, Fork,
};
use sumun_abi::record::{ARGS_MAX, FLAW_DELETED, FLAW_PARTIAL, FLAW_RACY, Span};
use sumun_proto::text;
use sumun_proto::v1::{self, Event, Kind};
use sumun_proto::view::UNKNOWN_TEXT;

use super::file::joined;
use super::record::Record;
use crate::enrich::process::{Began, ImageKey, Node, Program, Tree};
use crate::enrich::writer;
use crate::kernel::folder;
use crate::kernel::stat::Stat;

/// The parent of all kernel threads (`kthreadd`, init/main.c).
const KTHREADD: u32 = 2;

/// A fork: the event's process is the child.
pub fn fork(tree: &mut Tree, fork: &Fork) -> (Event, Rc<Node>, Actor) {
    let parent = ImageKey {
        pid: fork.parent_pid,
        start_ns: fork.parent_start_ns,
        image: fork.parent_image,
    };
    let caller = ImageKey::of(&fork.actor);
    let parent = if fork.parent_pid == 0 { caller } else { parent };
    let node = tree.fork(&fork.child, caller, parent, fork.ns);
    (event(Kind::Fork, &fork.child), node, fork.child)
}

/// An exec: the event's process is the new image. `offset_ns`: wall time minus boot time.
pub fn exec(
    tree: &mut Tree,
    record: &Record<'_>,
    exec: &Exec,
    offset_ns: i64,
) -> (Event, Rc<Node>, Actor) {
    let node = tree.began(began(record, exec, false));
    writer::tell(tree, &node, exec, offset_ns);
    (event(Kind::Exec, &exec.actor), node, exec.actor)
}

/// A process found running: no event, only a place in the tree.
pub fn task(tree: &mut Tree, record: &Record<'_>, exec: &Exec, offset_ns: i64) -> Rc<Node> {
    let mut began = began(record, exec, true);
    let program = &mut began.program;
    // The iterator runs in the agent and cannot read another process's memory.
    if program.args.is_empty() && program.args_total > 0 {
        match cmdline(exec.actor.pid, exec.actor.start_ns) {
            Some(args) => program.args = args,
            None => program.args_flaws |= u32::from(FLAW_PARTIAL),
        }
    }
    let node = tree.began(began);
    writer::tell(tree, &node, exec, offset_ns);
    node
}

/// Arguments of a running process, up to the bound of exec records; `None` when the pid
/// is not (or no longer) that process.
fn cmdline(pid: u32, start_ns: u64) -> Option<Vec<String>> {
    let mut bytes = Vec::new();
    let file = folder::open(pid, "cmdline").ok()?;
    file.take(ARGS_MAX as u64).read_to_end(&mut bytes).ok()?;
    // Read after the arguments: a pid that was given to another process in between has another start.
    let stat = Stat::of(pid).ok()??;
    stat.began_at(start_ns).then(|| split(&bytes))
}

/// The end of a process.
pub fn exit(tree: &mut Tree, exit: &Exit) -> (Event, Rc<Node>, Actor) {
    let node = tree.exit(&exit.actor);
    let mut event = event(Kind::Exit, &exit.actor);
    event.exit = Some(v1::Exit { code: exit.code });
    (event, node, exit.actor)
}

fn event(kind: Kind, actor: &Actor) -> Event {
    Event {
        kind: kind.into(),
        tid: actor.tid,
        ..Event::default()
    }
}

fn began(record: &Record<'_>, exec: &Exec, bootstrapped: bool) -> Began {
    let flaws = |span: Span| u32::from(span.flaws);
    // A process that has given up its memory on its way out looks the same, but for its parent.
    let kernel_thread = bootstrapped
        && exec.exe_ino == 0
        && exec.args_total == 0
        && (exec.actor.pid == KTHREADD || exec.parent_pid == KTHREADD);
    let deleted = if exec.exe_ino != 0 && exec.exe_nlink == 0 {
        u32::from(FLAW_DELETED)
    } else {
        0
    };
    // A running process may have rewritten its arguments before the iterator came.
    let racy = if bootstrapped {
        u32::from(FLAW_RACY)
    } else {
        0
    };
    let (script, of_script) = script(record, exec);
    Began {
        actor: exec.actor,
        program: Program {
            exe_path: text::from_bytes(record.text(exec.exe)),
            exe_flaws: flaws(exec.exe) | deleted,
            exe_dev: exec.exe_dev,
            exe_ino: exec.exe_ino,
            in_image: in_image(exec.exe_flags),
            setid: (!bootstrapped).then_some(exec.exe_flags & EXE_SECURE != 0),
            script,
            exe_changed_ns: exec.exe_changed_ns,
            args: split(record.text(exec.args)),
            args_flaws: flaws(exec.args) | racy,
            args_total: exec.args_total,
            cwd: text::from_bytes(record.text(exec.cwd)),
            cwd_flaws: flaws(exec.cwd) | of_script,
            auid: (exec.auid != u32::MAX).then_some(exec.auid),
            session: exec.session,
            tty: tty(record.text(exec.tty)),
            caps: [
                exec.actor.cap_effective,
                exec.cap_permitted,
                exec.cap_inheritable,
            ],
            bootstrapped,
            kernel_thread,
            ..Program::default()
        },
        ns: exec.ns,
        parent: ImageKey {
            pid: exec.parent_pid,
            start_ns: exec.parent_start_ns,
            image: exec.parent_image,
        },
    }
}

/// Whether an executable with these `EXE_*` came with the image; `None` if the root of the mount namespace is of none.
pub fn in_image(flags: u32) -> Option<bool> {
    (flags & EXE_LAYERED != 0).then_some(flags & EXE_IN_IMAGE != 0)
}

/// Path of what was executed, where that is run by another program, and what is wrong with it; else empty.
fn script(record: &Record<'_>, exec: &Exec) -> (String, u32) {
    if exec.exe_flags & EXE_INTERPRETED == 0 {
        return (String::new(), 0);
    }
    let (path, _, flaws) = joined(record, exec.cwd, exec.script);
    (path.unwrap_or_default(), flaws & UNKNOWN_TEXT)
}

/// The device's name below `/dev`: the kernel's own of a pseudo terminal lacks the slash.
fn tty(name: &[u8]) -> String {
    match name.strip_prefix(b"pts") {
        Some(number) if !number.is_empty() && number.iter().all(u8::is_ascii_digit) => {
            format!("pts/{}", text::from_bytes(number))
        }
        _ => text::from_bytes(name),
    }
}

/// Arguments end with NUL; one that was cut off is kept as the last.
fn split(arguments: &[u8]) -> Vec<String> {
    if arguments.is_empty() {
        return Vec::new();
    }
    let body = arguments.strip_suffix(&[0]).unwrap_or(arguments);
    let mut found = Vec::with_capacity(body.iter().filter(|byte| **byte == 0).count() + 1);
    found.extend(body.split(|byte| *byte == 0).map(text::from_bytes));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::stat::tests::start_ns;

    #[test]
    fn the_arguments_of_a_running_process_need_its_start() {
        let own = start_ns(std::process::id());
        let args = cmdline(std::process::id(), own).expect("our own arguments");
        let first = std::env::args().next().expect("a program name");
        assert_eq!(args.first(), Some(&first));
        assert_eq!(cmdline(std::process::id(), own + 60_000_000_000), None);
    }

    #[test]
    fn terminals_are_named_as_below_dev() {
        let names: [&[u8]; 5] = [b"pts0", b"pts12", b"tty1", b"ptsx", b""];
        let told = ["pts/0", "pts/12", "tty1", "ptsx", ""];
        assert_eq!(names.map(tty), told);
    }

    #[test]
    fn arguments_are_split_at_nul_and_empty_ones_kept() {
        assert_eq!(split(b"a\0\0b\0"), ["a", "", "b"]);
        assert_eq!(split(b"a\0b"), ["a", "b"]);
        assert_eq!(split(b"\0"), [""]);
        assert_eq!(split(b"\xff\\\0"), ["\\xff\\\\"]);
        assert!(split(b"").is_empty());
    }
}
