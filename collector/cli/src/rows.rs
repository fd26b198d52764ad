//! Rows as the collector sends them: one JSON object each, in the catalogue's nesting.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde_json::Value;

/// The value at a dotted name.
pub(crate) fn at<'a>(row: &'a Value, name: &str) -> Option<&'a Value> {
    name.split('.').try_fold(row, |value, key| value.get(key))
}

/// Text at a dotted name; empty when absent.
pub(crate) fn text<'a>(row: &'a Value, name: &str) -> &'a str {
    at(row, name).and_then(Value::as_str).unwrap_or("")
}

/// An integer at a dotted name, written as a number or, when it has 64 bits, as a string.
pub(crate) fn integer(row: &Value, name: &str) -> Option<i128> {
    match at(row, name)? {
        Value::Number(number) => number
            .as_i64()
            .map(i128::from)
            .or_else(|| number.as_u64().map(i128::from)),
        Value::String(digits) => digits.parse().ok(),
        _ => None,
    }
}

/// A boolean at a dotted name; false when absent.
pub(crate) fn truth(row: &Value, name: &str) -> bool {
    at(row, name).and_then(Value::as_bool).unwrap_or(false)
}

/// Makes text safe to print: what a terminal would act on, or would show in
/// another order than it stands, is written as an escape.
pub(crate) fn safe(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        let direction = matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || direction {
            // Writing to a String cannot fail.
            let _ = write!(shown, "\\u{{{:x}}}", u32::from(character));
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Arguments as one would type them in a shell.
pub(crate) fn command_line(row: &Value) -> String {
    let Some(Value::Array(args)) = at(row, "proc.args") else {
        return String::new();
    };
    let mut line = args
        .iter()
        .filter_map(Value::as_str)
        .map(quoted)
        .collect::<Vec<_>>()
        .join(" ");
    if let Some(Value::Array(flaws)) = at(row, "proc.args_flaws")
        && !flaws.is_empty()
    {
        line.push_str(" …");
    }
    line
}

fn quoted(argument: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,@%+".contains(&byte);
    let shown = safe(argument);
    if !shown.is_empty() && shown.bytes().all(plain) {
        shown
    } else {
        format!("'{}'", shown.replace('\'', "'\\''"))
    }
}

/// `name[pid]`, with `?` for a name that is not known.
pub(crate) fn process(row: &Value) -> String {
    named(text(row, "proc.exe.name"), integer(row, "proc.pid"))
}

fn named(name: &str, pid: Option<i128>) -> String {
    let name = if name.is_empty() {
        "?".to_owned()
    } else {
        safe(name)
    };
    pid.map_or_else(|| name.clone(), |pid| format!("{name}[{pid}]"))
}

/// What happened, in one line: a command line, a path or an address.
pub(crate) fn what(row: &Value) -> String {
    match text(row, "kind") {
        "exec" => {
            let line = command_line(row);
            if line.is_empty() {
                safe(text(row, "proc.exe.path"))
            } else {
                line
            }
        }
        "fork" => {
            let parent = named(
                text(row, "proc.parent.exe.name"),
                integer(row, "proc.parent.pid"),
            );
            format!("from {parent}")
        }
        "exit" => exit(row).unwrap_or_default(),
        "open" => {
            let mut marks = Vec::new();
            for (field, mark) in [
                ("file.access.read", "read"),
                ("file.access.write", "write"),
                ("file.access.append", "append"),
                ("file.create", "created"),
                ("file.trunc", "truncated"),
            ] {
                if truth(row, field) {
                    marks.push(mark);
                }
            }
            format!(
                "{} ({})",
                path(row, "file.path", "file.flaws"),
                marks.join(" ")
            )
        }
        "rename" | "link" => format!(
            "{} -> {}",
            path(row, "file.path", "file.flaws"),
            path(row, "file.new_path", "file.new_flaws")
        ),
        // What a link says stands before its own name.
        "symlink" => format!(
            "{} <- {}",
            path(row, "file.path", "file.flaws"),
            path(row, "file.new_path", "file.new_flaws")
        ),
        "chmod" => {
            let mode = integer(row, "file.new_mode").unwrap_or_default();
            format!("{} mode {mode:04o}", path(row, "file.path", "file.flaws"))
        }
        "chown" => {
            let id = |name| integer(row, name).map_or("-".to_owned(), |id| id.to_string());
            let (user, group) = (id("file.new_uid"), id("file.new_gid"));
            format!(
                "{} owner {user}:{group}",
                path(row, "file.path", "file.flaws")
            )
        }
        "truncate" => {
            let length = integer(row, "file.length").unwrap_or_default();
            format!("{} to {length} bytes", path(row, "file.path", "file.flaws"))
        }
        "setxattr" => format!(
            "{} {}",
            path(row, "file.path", "file.flaws"),
            safe(text(row, "file.xattr"))
        ),
        "bind" | "listen" => format!(
            "{} {}{}",
            end(row, "net.dst"),
            text(row, "net.proto"),
            flaws(row, "net.flaws")
        ),
        "connect_udp" => {
            let name = match text(row, "net.dst.name") {
                "" => String::new(),
                name => format!(" ({})", safe(name)),
            };
            format!("-> {}{name} udp", end(row, "net.dst"))
        }
        "connect_unix" => path(row, "net.dst.path", "net.flaws") + &error(row),
        "socket" => {
            let [family, kind] = ["socket.family", "socket.type"].map(|name| text(row, name));
            let protocol = integer(row, "socket.protocol").unwrap_or_default();
            format!("{family} {kind} {protocol}{}", error(row))
        }
        "dns" => dns(row),
        "setid" | "capset" => credentials(row),
        "ptrace" | "process_vm_readv" | "process_vm_writev" | "pidfd_getfd" => {
            let name = text(row, "target.exe.name");
            let target = match integer(row, "target.pid") {
                Some(pid) => named(name, Some(pid)),
                None => "?".to_owned(),
            };
            let request = text(row, "ptrace.request");
            let space = if request.is_empty() { "" } else { " " };
            format!("{request}{space}{target}{}", error(row))
        }
        "unshare" | "setns" => {
            format!("{} {}", text(row, "call"), items(row, "ns.types"))
        }
        "map_wx" => {
            let length = integer(row, "mem.len").unwrap_or_default();
            let file = match text(row, "file.path") {
                "" => String::new(),
                file => format!(" of {}", safe(file)),
            };
            let (call, prot) = (text(row, "call"), items(row, "mem.prot"));
            format!("{call} {length} bytes {prot}{file}")
        }
        "prctl" => {
            let option = text(row, "prctl.option");
            let with = match text(row, "prctl.name") {
                "" => integer(row, "prctl.arg2").map_or_else(String::new, |arg| format!(" {arg}")),
                name => format!(" {}", safe(name)),
            };
            format!("{option}{with}{}", error(row))
        }
        "userfaultfd" => items(row, "userfaultfd.flags") + &error(row),
        "module_load" | "module_unload" => {
            let known = [text(row, "module.name"), text(row, "file.path")];
            let known: Vec<_> = known.into_iter().filter(|name| !name.is_empty()).collect();
            let name = if known.is_empty() {
                "?".to_owned()
            } else {
                safe(&known.join(" "))
            };
            name + &error(row)
        }
        "bpf" => {
            let (command, kind) = (text(row, "bpf.command"), text(row, "bpf.prog.type"));
            let name = safe(text(row, "bpf.prog.name"));
            format!("{command} {kind} {name}{}", error(row))
        }
        "mount" | "umount" | "pivot_root" | "chroot" => {
            let source = match text(row, "mount.source") {
                "" => String::new(),
                source => format!("{} on ", safe(source)),
            };
            let (target, fs) = (
                path(row, "mount.target", "mount.flaws"),
                text(row, "mount.type"),
            );
            let space = if fs.is_empty() { "" } else { " " };
            format!("{source}{target}{space}{}", safe(fs))
        }
        "kexec_load" | "io_uring_setup" => text(row, "call").to_owned() + &error(row),
        "sysctl" => {
            let (name, value) = (text(row, "sysctl.name"), text(row, "sysctl.value"));
            format!("{} = {}{}", safe(name), safe(value), error(row))
        }
        "integrity" => {
            let [check, object, detail] =
                ["check", "object", "detail"].map(|name| text(row, &format!("integrity.{name}")));
            format!("{check} {}: {}", safe(object), safe(detail))
        }
        "connect" | "accept" => {
            format!(
                "{} -> {} {}{}",
                end(row, "net.src"),
                end(row, "net.dst"),
                text(row, "net.proto"),
                flaws(row, "net.flaws")
            ) + &result(row)
        }
        _ => path(row, "file.path", "file.flaws"),
    }
}

/// A question, or an answer with what it says.
fn dns(row: &Value) -> String {
    let question = format!(
        "{} {}",
        safe(text(row, "dns.question.name")),
        text(row, "dns.question.type")
    );
    let server = end(row, "net.dst");
    let flaws = flaws(row, "dns.flaws");
    if !truth(row, "dns.response") {
        return format!("{question} ? {server}{flaws}");
    }
    let answers = safe(&items(row, "dns.answers"));
    let rcode = text(row, "dns.rcode");
    format!("{question} = {rcode} {answers} from {server}{flaws}")
}

/// A change of user or capabilities, in the fewest words that tell it.
fn credentials(row: &Value) -> String {
    let mut told = Vec::new();
    for name in ["uid", "euid", "gid", "egid"] {
        let new = integer(row, &format!("priv.new.{name}"));
        let old = integer(row, &format!("priv.old.{name}"));
        if let Some(new) = new
            && old != Some(new)
        {
            let old = old.map_or("?".to_owned(), |old| old.to_string());
            told.push(format!("{name} {old} -> {new}"));
        }
    }
    let gained = items(row, "priv.cap_gained");
    if !gained.is_empty() {
        told.push(format!("+ {gained}"));
    }
    if told.is_empty() {
        return text(row, "call").to_owned();
    }
    format!("{} {}", text(row, "call"), told.join(", "))
}

/// The items of a list.
fn items(row: &Value, name: &str) -> String {
    let Some(Value::Array(items)) = at(row, name) else {
        return String::new();
    };
    let items: Vec<_> = items.iter().filter_map(Value::as_str).collect();
    items.join(" ")
}

/// Why a call failed, if it did.
fn error(row: &Value) -> String {
    match integer(row, "result") {
        Some(code) if code != 0 => result(row),
        _ => String::new(),
    }
}

/// How a process ended.
pub(crate) fn exit(row: &Value) -> Option<String> {
    integer(row, "exit.signal")
        .map(|signal| format!("killed by signal {signal}"))
        .or_else(|| integer(row, "exit.code").map(|code| format!("exit {code}")))
}

fn path(row: &Value, name: &str, flaws_name: &str) -> String {
    let path = text(row, name);
    let path = if path.is_empty() {
        "?".to_owned()
    } else {
        safe(path)
    };
    path + &flaws(row, flaws_name)
}

fn flaws(row: &Value, name: &str) -> String {
    let Some(Value::Array(flaws)) = at(row, name) else {
        return String::new();
    };
    let names: Vec<_> = flaws.iter().filter_map(Value::as_str).collect();
    if names.is_empty() {
        String::new()
    } else {
        format!(" [{}]", names.join(" "))
    }
}

fn end(row: &Value, side: &str) -> String {
    let ip = text(row, &format!("{side}.ip"));
    let port = integer(row, &format!("{side}.port"));
    let ip = match ip {
        "" => "?".to_owned(),
        six if six.contains(':') => format!("[{six}]"),
        four => four.to_owned(),
    };
    port.map_or_else(|| ip.clone(), |port| format!("{ip}:{port}"))
}

fn result(row: &Value) -> String {
    match integer(row, "result") {
        Some(0) => String::new(),
        Some(code) => {
            let error = i32::try_from(-code).map(std::io::Error::from_raw_os_error);
            error.map_or_else(|_| format!(": error {code}"), |error| format!(": {error}"))
        }
        None => ": closed before it was connected".to_owned(),
    }
}

/// Names an alert by the kernel record it is about: pin generation, ring, CPU,
/// nesting level and sequence. Rules that matched the same record share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AlertId {
    pin: u64,
    ring: u32,
    cpu: u32,
    level: u32,
    seq: u64,
}

impl AlertId {
    /// The id of a row of the alert table.
    pub(crate) fn of(row: &Value) -> Option<Self> {
        // Unsigned 64-bit numbers may have been stored in a signed column.
        let bits = |name: &str| {
            let value = integer(row, name)?;
            u64::try_from(value)
                .ok()
                .or_else(|| i64::try_from(value).ok().map(i64::cast_unsigned))
        };
        Some(Self {
            pin: bits("origin.pin")?,
            ring: u32::try_from(integer(row, "origin.ring")?).ok()?,
            cpu: u32::try_from(integer(row, "origin.cpu")?).ok()?,
            level: u32::try_from(integer(row, "origin.level")?).ok()?,
            seq: bits("origin.seq")?,
        })
    }

    /// The predicate that is true for its rows.
    pub(crate) fn predicate(self) -> String {
        format!(
            "origin.pin == {} && origin.ring == {} && origin.cpu == {} && origin.level == {} \
             && origin.seq == {}",
            self.pin.cast_signed(),
            self.ring,
            self.cpu,
            self.level,
            self.seq.cast_signed()
        )
    }
}

impl fmt::Display for AlertId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{:x}-{}-{}-{}-{}",
            self.pin, self.ring, self.cpu, self.level, self.seq
        )
    }
}

impl FromStr for AlertId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong =
            || format!("{text:?} is not the id of an alert; `sumunctl alerts list` shows them");
        let mut parts = text.split('-');
        let mut next = || parts.next().ok_or_else(wrong);
        let id = Self {
            pin: u64::from_str_radix(next()?, 16).map_err(|_| wrong())?,
            ring: next()?.parse().map_err(|_| wrong())?,
            cpu: next()?.parse().map_err(|_| wrong())?,
            level: next()?.parse().map_err(|_| wrong())?,
            seq: next()?.parse().map_err(|_| wrong())?,
        };
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_terminal_is_never_told_what_to_do() {
        assert_eq!(
            safe("a\x1b[2Jb\n\u{202e}가"),
            "a\\u{1b}[2Jb\\u{a}\\u{202e}가"
        );
        let row = json!({"kind": "exec", "proc": {"args": ["sh", "-c", "echo 'a'\x07", ""]}});
        assert_eq!(what(&row), "sh -c 'echo '\\''a'\\''\\u{7}' ''");
    }

    #[test]
    fn what_happened_by_kind() {
        let open = json!({"kind": "open", "file": {"path": "/a b", "flaws": ["racy"],
            "access": {"write": true, "read": false}, "create": true}});
        assert_eq!(what(&open), "/a b [racy] (write created)");
        let rename = json!({"kind": "rename", "file": {"path": "/a", "new_path": "/b"}});
        assert_eq!(what(&rename), "/a -> /b");
        let connect = json!({"kind": "connect", "result": -111, "net": {"proto": "tcp",
            "src": {"ip": "::1", "port": 5}, "dst": {"ip": "10.0.0.1", "port": 80}}});
        assert_eq!(
            what(&connect),
            "[::1]:5 -> 10.0.0.1:80 tcp: Connection refused (os error 111)"
        );
        let exit = json!({"kind": "exit", "exit": {"signal": 9}});
        assert_eq!(what(&exit), "killed by signal 9");
        let fork = json!({"kind": "fork", "proc": {"parent": {"pid": 7, "exe": {"name": "sh"}}}});
        assert_eq!(what(&fork), "from sh[7]");
    }

    #[test]
    fn alert_ids_are_read_back_and_select_their_rows() {
        let row = json!({"origin": {"pin": "-2", "ring": 1, "cpu": 3, "level": 0, "seq": "18"}});
        let id = AlertId::of(&row).expect("an origin");
        assert_eq!(id.to_string(), "fffffffffffffffe-1-3-0-18");
        assert_eq!(id.to_string().parse(), Ok(id));
        let unsigned = json!({"origin": {"pin": "18446744073709551614", "ring": 1, "cpu": 3,
            "level": 0, "seq": "18"}});
        assert_eq!(AlertId::of(&unsigned), Some(id));
        assert!(
            id.predicate()
                .starts_with("origin.pin == -2 && origin.ring == 1")
        );
        for wrong in ["", "1-2-3-4", "1-2-3-4-5-6", "x-1-1-1-1"] {
            assert!(wrong.parse::<AlertId>().is_err(), "{wrong}");
        }
    }
}
