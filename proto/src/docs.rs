//! The page `docs/events.md`, made from the catalogue.

use std::fmt::Write as _;

use crate::catalogue::{FIELDS, FieldInfo, FieldType, KINDS, Tier, family};

/// Tables in the order of the page, with what one row of each is.
const TABLES: &[(&str, &str)] = &[
    ("process", "A fork, an exec or an exit."),
    (
        "file",
        "A successful open, a close after writing, a rename or an unlink; a change of permissions, owner, length, links or extended attributes.",
    ),
    (
        "network",
        "A TCP connect with its result, an accept, or a socket that was bound or listens.",
    ),
    (
        "privilege",
        "A change of credentials, a reach into another process, namespaces made or entered, memory that can hold code.",
    ),
    (
        "kernel",
        "A module, a BPF program, a mount, a change of root, another kernel, an io_uring.",
    ),
    (
        "alert",
        "A rule that matched, with all fields of the event it matched on; the event has a row of its own.",
    ),
    (
        "gap",
        "Something that is missing, where it is missing, and why.",
    ),
];

/// The page's text.
#[must_use]
pub fn events_page() -> String {
    let mut page = String::from(INTRODUCTION);
    page.push_str("\n## Kinds\n\n| kind | table |\n|---|---|\n");
    for (name, kind) in KINDS {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(page, "| `{name}` | {} |", family(*kind));
    }
    page.push_str("\n## Tables\n\n| table | one row is |\n|---|---|\n");
    for (name, what) in TABLES {
        let _ = writeln!(page, "| `{name}` | {what} |");
    }
    page.push_str("\n## Fields\n");
    for (group, fields) in groups() {
        let _ = write!(page, "\n### {}\n\n{HEADER}", title(group));
        for field in fields {
            row(&mut page, field);
        }
    }
    page.push_str(COLUMNS);
    page
}

/// Fields by the first word of their names, in the order these come first.
/// Fields without a dot stand together.
fn groups() -> Vec<(&'static str, Vec<&'static FieldInfo>)> {
    let mut groups: Vec<(&str, Vec<&FieldInfo>)> = Vec::new();
    for field in FIELDS {
        let group = field
            .name
            .split_once('.')
            .map_or("event", |(first, _)| first);
        match groups.iter_mut().find(|(known, _)| *known == group) {
            Some((_, fields)) => fields.push(field),
            None => groups.push((group, vec![field])),
        }
    }
    groups
}

fn title(group: &str) -> String {
    match group {
        "event" => "The event".to_owned(),
        name => format!("`{name}`"),
    }
}

const HEADER: &str = "| field | type | in | what | absent when | known from | judged in | OCSF |\n\
                      |---|---|---|---|---|---|---|---|\n";

fn row(page: &mut String, field: &FieldInfo) {
    let ty = match field.ty {
        FieldType::Str => "string",
        FieldType::Int if field.json_string => "int (JSON string)",
        FieldType::Int => "int",
        FieldType::Bool => "bool",
        FieldType::Time => "time",
        FieldType::StrList => "list of string",
        FieldType::ImageList => "list of ancestors",
    };
    let place = if field.kinds.is_empty() {
        match field.families.len() {
            7 => "all".to_owned(),
            _ => field.families.join(", "),
        }
    } else {
        field.kinds.join(", ")
    };
    let unit = match field.unit {
        "" => String::new(),
        unit => format!(" ({unit})"),
    };
    let tier = match field.tier {
        Tier::Kernel => "kernel",
        Tier::Agent => "agent",
    };
    let ocsf = match field.ocsf {
        "" => String::new(),
        path => format!("`{path}`"),
    };
    let _ = writeln!(
        page,
        "| `{}` | {ty}{unit} | {place} | {} | {} | {} | {tier} | {ocsf} |",
        field.name,
        cell(field.doc),
        cell(field.absent),
        field.source,
    );
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

const INTRODUCTION: &str = "\
# Events

<!-- Made from proto/fields.toml by `SUMUN_WRITE_DOCS=1 cargo test -p sumun-proto --test docs`. -->

Every name below is the same in a predicate (`proc.exe.name == \"sh\"`), in JSON (nested objects) and in
the lake (a column, with `_` for each dot).

- **Absent.** A field that an event has not is left out of JSON and NULL in the lake. In a predicate,
  reading it is an error, which `&&` and `||` absorb, `!` keeps, and which at the end is no match. `has(field)` asks for it.
- **Unknown.** What was lost or cut off is not absent: the `flaws` beside it say so (`truncated`, `partial`,
  `lost`; `unreachable` and `racy` leave a value that is whole but doubtful). What is left of a text is
  shown; a predicate that depends on the rest does not match in a search, and in a rule gives an alert marked `undecided`.
- **Text.** Bytes that are not UTF-8, and NUL, are written `\\xNN`, a backslash `\\\\`; all functions work on that form.
- **Numbers** of 64 bits are strings in JSON. **Times** are RFC 3339, UTC, with nanoseconds.
- **Known from** says whose word it is: `object` the kernel's own object, `copy` the kernel's copy, `caller` the
  caller's word, `agent` or `collector` what they add.
- **Judged in** is the lowest stage that can decide on the field: the `kernel`'s pre-filter, or the `agent`.
";

const COLUMNS: &str = "
## Columns of the lake

One Parquet file holds the rows of one tenant and table in one segment of the collector's log:
`tenant=<tenant>/family=<table>/day=<day it was written, UTC>/<segment>.parquet`, sorted by host and time. Columns are
the fields of the table in the order above. Texts are UTF-8, integers are 64 bits with sign, times are nanoseconds in UTC, lists are
list columns. Beside the fields there are:

| column | what |
|---|---|
| `proc_ancestors_pid`, `proc_ancestors_exec_id`, `proc_ancestors_exe_path` | `proc.ancestors`: three lists of equal length, parent first |
| `_unknown` | Bits of the fields that are unknown on this row, NULL when none is. Their columns hold what is left of them. Bit 0 is `proc.exe.path`, then `proc.exe.name`, `proc.args`, `proc.cwd`, `proc.parent.exe.path`, `proc.parent.exe.name`, `proc.ancestors`, `file.path`, `file.name`, `file.new_path`, `file.trunc`, `net.src.ip`, `net.src.port`, `net.src.private`, `net.dst.ip`, `net.dst.port`, `net.dst.private`, and further ones in the order of `UNKNOWABLE` (`collector/lake/src/family.rs`); of a list it means that its end is missing |
| `_ancestors_unknown` | Of each ancestor: 0 nothing is unknown, 1 its path, 2 its path and name; NULL when nothing is |
";
