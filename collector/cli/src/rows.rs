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
        "rename" => format!(
            "{} -> {}",
            path(row, "file.path", "file.flaws"),
            path(row, "file.new_path", "file.new_flaws")
        ),
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
