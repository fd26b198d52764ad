//! `tree`: a process with its ancestors and descendants.
//!
//! The collector sends process rows (fork, exec, exit). A process is named by its
//! pid and the start time that the upper bits of every `exec_id` hold
//! (`sumun_proto::identity::exec_id`), so rows of different images of one process, and
//! ancestors that have no row of their own in the range, fall together.

use std::collections::{BTreeMap, HashSet};
use std::io::Write as _;

use serde_json::Value;
use sumun_proto::v1::TreeRequest;
use sumun_proto::v1::tree_request::Process as Wanted;

use crate::args::{Output, TreeArgs};
use crate::failure::Failure;
use crate::moment;
use crate::output::{Printer, report};
use crate::remote::Remote;
use crate::rows::{at, command_line, exit, integer, safe, text};
use crate::search::each_row;

/// Bits of an `exec_id` below the start time.
const IMAGE_BITS: u32 = 20;

/// Indentation stops growing here: deeper trees do not fit a screen.
const INDENT_MAX: usize = 40;

/// Largest pid that Linux gives (`PID_MAX_LIMIT`, 2^22); what is larger is an exec_id.
const PID_MAX: u64 = 1 << 22;

/// Start (from the exec_id), then pid: sorts processes by age.
type Key = (i128, i128);

#[derive(Default)]
struct Process {
    parent: Option<Key>,
    exe: String,
    args: String,
    /// Executables of earlier images, oldest first.
    before: Vec<String>,
    ended: Option<String>,
}

/// Asks for the tree and prints it.
pub(crate) async fn print(
    mut remote: Remote,
    args: TreeArgs,
    output: Output,
) -> Result<(), Failure> {
    let now = moment::now();
    let wanted = match u32::try_from(args.process) {
        Ok(pid) if args.process <= PID_MAX => Wanted::Pid(pid),
        _ => Wanted::ExecId(args.process),
    };
    let host = args.host;
    let request = TreeRequest {
        host: host.clone(),
        process: Some(wanted),
        since_ns: args.range.since.resolve(now),
        until_ns: args.range.until.map(|until| until.resolve(now)),
    };
    let replies = remote.query.tree(request).await?.into_inner();
    let mut found = false;
    let completeness = if output == Output::Table {
        let mut forest = Forest::default();
        let completeness = each_row(replies, |row| {
            let row: Value = serde_json::from_str(row).map_err(|error| {
                Failure::failed(error.into(), "the collector sent a row that is not JSON")
            })?;
            forest.add(&row);
            found = true;
            Ok(())
        })
        .await?;
        let mut out = std::io::stdout().lock();
        out.write_all(forest.draw(wanted).as_bytes())?;
        out.flush()?;
        completeness
    } else {
        let mut printer = Printer::new(output, &[], |_| Vec::new());
        let completeness = each_row(replies, |row| {
            found = true;
            printer.row(row)
        })
        .await?;
        printer.finish()?;
        completeness
    };
    if !found {
        // Before the completeness, which is the last line; nobody may be reading.
        let _ = writeln!(
            std::io::stderr(),
            "sumunctl: nothing is known of process {} on {} in this range; \
             look further back with --since",
            args.process,
            safe(&host)
        );
        report(&completeness, output, false)?;
        return Err(Failure::Said);
    }
    report(&completeness, output, args.range.require_complete)
}

/// Processes by age.
#[derive(Default)]
struct Forest {
    processes: BTreeMap<Key, Process>,
}

fn key(exec_id: Option<i128>, pid: Option<i128>) -> Option<Key> {
    Some((exec_id? >> IMAGE_BITS, pid?))
}

impl Forest {
    fn add(&mut self, row: &Value) {
        // An exec that was denied: the process went on with the program it had.
        if integer(row, "result").is_some_and(|result| result < 0) {
            return;
        }
        let Some(own) = key(integer(row, "proc.exec_id"), integer(row, "proc.pid")) else {
            return;
        };
        let parent = key(
            integer(row, "proc.parent.exec_id"),
            integer(row, "proc.parent.pid"),
        );
        let process = self.processes.entry(own).or_default();
        process.parent = process.parent.or(parent);
        let exe = text(row, "proc.exe.path");
        if !exe.is_empty() && exe != process.exe {
            let earlier = std::mem::replace(&mut process.exe, exe.to_owned());
            if !earlier.is_empty() {
                process.before.push(earlier);
            }
        }
        let args = command_line(row);
        if !args.is_empty() {
            process.args = args;
        }
        process.ended = process.ended.take().or_else(|| exit(row));
        if let Some(parent) = parent {
            let process = self.processes.entry(parent).or_default();
            if process.exe.is_empty() {
                process.exe = text(row, "proc.parent.exe.path").to_owned();
            }
        }
        self.add_ancestors(row, own);
    }

    fn add_ancestors(&mut self, row: &Value, own: Key) {
        let Some(Value::Array(ancestors)) = at(row, "proc.ancestors") else {
            return;
        };
        let mut child = own;
        for ancestor in ancestors {
            let Some(parent) = key(integer(ancestor, "exec_id"), integer(ancestor, "pid")) else {
                return;
            };
            let known = self.processes.entry(parent).or_default();
            if known.exe.is_empty() {
                known.exe = text(ancestor, "exe.path").to_owned();
            }
            if let Some(process) = self.processes.get_mut(&child) {
                process.parent = process.parent.or(Some(parent));
            }
            child = parent;
        }
    }

    /// One line a process, children under their parent, oldest first.
    fn draw(&self, wanted: Wanted) -> String {
        let mut children: BTreeMap<Key, Vec<Key>> = BTreeMap::new();
        let mut stack = Vec::new();
        for (key, process) in self.processes.iter().rev() {
            match process.parent {
                Some(parent) if parent != *key && self.processes.contains_key(&parent) => {
                    children.entry(parent).or_default().push(*key);
                }
                _ => stack.push((*key, 0)),
            }
        }
        let width = self
            .processes
            .keys()
            .map(|(_, pid)| pid.to_string().len())
            .max()
            .unwrap_or(0);
        let mut drawn = HashSet::new();
        let mut page = String::new();
        // Rows that name each other as parents have no root; they come last.
        let mut rest = self.processes.keys().copied();
        while let Some((key, depth)) = stack.pop().or_else(|| Some((rest.next()?, 0))) {
            if !drawn.insert(key) {
                continue;
            }
            let Some(process) = self.processes.get(&key) else {
                continue;
            };
            let asked = match wanted {
                Wanted::Pid(pid) => key.1 == i128::from(pid),
                Wanted::ExecId(id) => key.0 == i128::from(id) >> IMAGE_BITS,
            };
            page.push_str(&line(process, key.1, depth, width, asked));
            let below = children.get(&key).map_or(&[][..], Vec::as_slice);
            stack.extend(below.iter().map(|child| (*child, depth + 1)));
        }
        page
    }
}

fn line(process: &Process, pid: i128, depth: usize, width: usize, asked: bool) -> String {
    let mark = if asked { '>' } else { ' ' };
    let indent = "  ".repeat(depth.min(INDENT_MAX));
    let exe = if process.exe.is_empty() {
        "?".to_owned()
    } else {
        safe(&process.exe)
    };
    let mut line = format!("{mark} {pid:>width$}  {indent}{exe}");
    if !process.args.is_empty() {
        line.push_str(&format!("  {}", process.args));
    }
    if !process.before.is_empty() {
        let before: Vec<_> = process.before.iter().map(|exe| safe(exe)).collect();
        line.push_str(&format!("  (was {})", before.join(", ")));
    }
    if let Some(ended) = &process.ended {
        line.push_str(&format!("  ({ended})"));
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn id(start: u64, image: u64) -> String {
        ((start << IMAGE_BITS) + image).to_string()
    }

    #[test]
    fn children_stand_under_their_parents_and_images_fall_together() {
        let mut forest = Forest::default();
        forest.add(
            &json!({"kind": "fork", "proc": {"pid": 20, "exec_id": id(5, 0),
            "exe": {"path": "/usr/sbin/nginx"},
            "parent": {"pid": 10, "exec_id": id(3, 1), "exe": {"path": "/usr/sbin/nginx"}},
            "ancestors": [
                {"pid": 10, "exec_id": id(3, 1), "exe": {"path": "/usr/sbin/nginx"}},
                {"pid": 1, "exec_id": id(0, 1), "exe": {"path": "/sbin/init"}}]}}),
        );
        forest.add(
            &json!({"kind": "exec", "proc": {"pid": 20, "exec_id": id(5, 1),
            "exe": {"path": "/bin/sh"}, "args": ["sh", "-c", "id"],
            "parent": {"pid": 10, "exec_id": id(3, 1)}}}),
        );
        forest.add(
            &json!({"kind": "exit", "exit": {"code": 0}, "proc": {"pid": 20,
            "exec_id": id(5, 1), "exe": {"path": "/bin/sh"}, "args": ["sh", "-c", "id"]}}),
        );
        assert_eq!(
            forest.draw(Wanted::Pid(20)),
            "   1  /sbin/init\n  10    /usr/sbin/nginx\n> 20      /bin/sh  sh -c id  \
             (was /usr/sbin/nginx)  (exit 0)\n"
        );
    }

    #[test]
    fn rows_that_contradict_each_other_end() {
        let mut forest = Forest::default();
        for (own, parent) in [(1, 2), (2, 1)] {
            forest.add(&json!({"proc": {"pid": own, "exec_id": id(own, 0),
                "parent": {"pid": parent, "exec_id": id(parent, 0)}}}));
        }
        assert_eq!(forest.draw(Wanted::Pid(1)), "> 1  ?\n  2    ?\n");
    }
}
