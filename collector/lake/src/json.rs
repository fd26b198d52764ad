//! Rows as JSON objects in the catalogue's nesting.

use std::io::Write as _;
use std::sync::LazyLock;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::datatypes::{Int64Type, TimestampNanosecondType};
use sumun_proto::{FieldId, FieldInfo, FieldType, text};
use time::OffsetDateTime;

use crate::family::{ANCESTORS_UNKNOWN_COLUMN, Family};

/// A key of an object.
#[derive(Debug)]
enum Node {
    Object(&'static str, Vec<Node>),
    Field(&'static str, &'static FieldInfo),
}

static TREES: LazyLock<[Vec<Node>; Family::ALL.len()]> = LazyLock::new(|| {
    Family::ALL.map(|family| {
        let mut tree = Vec::new();
        for field in family.fields() {
            let words: Vec<_> = field.name.split('.').collect();
            insert(&mut tree, &words, field);
        }
        tree
    })
});

fn insert(tree: &mut Vec<Node>, words: &[&'static str], field: &'static FieldInfo) {
    let Some((first, rest)) = words.split_first() else {
        return;
    };
    if rest.is_empty() {
        tree.push(Node::Field(first, field));
        return;
    }
    let at = tree
        .iter()
        .position(|node| matches!(node, Node::Object(name, _) if name == first));
    let at = at.unwrap_or_else(|| {
        tree.push(Node::Object(first, Vec::new()));
        tree.len() - 1
    });
    if let Node::Object(_, inner) = &mut tree[at] {
        insert(inner, rest, field);
    }
}

/// Each row of a batch of a table's columns as one JSON object, keys in the
/// catalogue's order, absent keys left out.
#[must_use]
pub fn rows(family: Family, batch: &RecordBatch) -> Vec<String> {
    let columns = Columns::of(family, batch);
    (0..batch.num_rows())
        .map(|row| {
            let mut out = Vec::with_capacity(1024);
            if !columns.object(&mut out, &TREES[family as usize], row) {
                out.extend_from_slice(b"{}");
            }
            // Only text and ASCII was written.
            String::from_utf8(out).unwrap_or_default()
        })
        .collect()
}

struct Columns<'a> {
    /// By `FieldId`.
    fields: Vec<Option<&'a ArrayRef>>,
    ancestors: Option<[&'a ArrayRef; 3]>,
    ancestors_unknown: Option<&'a ArrayRef>,
}

impl<'a> Columns<'a> {
    fn of(family: Family, batch: &'a RecordBatch) -> Self {
        let mut fields = vec![None; sumun_proto::FIELDS.len()];
        for field in family.fields() {
            fields[field.id as usize] = batch.column_by_name(field.column);
        }
        let ancestors = [
            "proc_ancestors_pid",
            "proc_ancestors_exec_id",
            "proc_ancestors_exe_path",
        ]
        .map(|name| batch.column_by_name(name));
        Columns {
            fields,
            ancestors: match ancestors {
                [Some(pid), Some(exec_id), Some(path)] => Some([pid, exec_id, path]),
                _ => None,
            },
            ancestors_unknown: batch.column_by_name(ANCESTORS_UNKNOWN_COLUMN),
        }
    }

    /// Writes an object, or nothing if no key of it is there.
    fn object(&self, out: &mut Vec<u8>, nodes: &[Node], row: usize) -> bool {
        let start = out.len();
        out.push(b'{');
        let mut any = false;
        for node in nodes {
            let mark = out.len();
            if any {
                out.push(b',');
            }
            let wrote = match node {
                Node::Object(name, inner) => {
                    key(out, name);
                    self.object(out, inner, row)
                }
                Node::Field(name, field) => {
                    key(out, name);
                    self.field(out, field, row)
                }
            };
            if wrote {
                any = true;
            } else {
                out.truncate(mark);
            }
        }
        if any {
            out.push(b'}');
        } else {
            out.truncate(start);
        }
        any
    }

    fn field(&self, out: &mut Vec<u8>, field: &FieldInfo, row: usize) -> bool {
        if field.id == FieldId::ProcAncestors {
            return self.ancestors(out, row);
        }
        let Some(array) = self.fields[field.id as usize] else {
            return false;
        };
        if array.is_null(row) {
            return false;
        }
        match field.ty {
            FieldType::Int => {
                let value = array.as_primitive::<Int64Type>().value(row);
                integer(out, value, field.json_string);
            }
            FieldType::Bool => {
                let value = array.as_boolean().value(row);
                out.extend_from_slice(if value { b"true" } else { b"false" });
            }
            FieldType::Time => {
                let value = array.as_primitive::<TimestampNanosecondType>().value(row);
                out.push(b'"');
                out.extend_from_slice(time_text(value).as_bytes());
                out.push(b'"');
            }
            FieldType::Str => string(out, array.as_string::<i32>().value(row)),
            FieldType::StrList | FieldType::ImageList => {
                let items = array.as_list::<i32>().value(row);
                let items = items.as_string::<i32>();
                out.push(b'[');
                for at in 0..items.len() {
                    if at > 0 {
                        out.push(b',');
                    }
                    string(out, items.value(at));
                }
                out.push(b']');
            }
        }
        true
    }

    fn ancestors(&self, out: &mut Vec<u8>, row: usize) -> bool {
        let Some([pids, exec_ids, paths]) = self.ancestors else {
            return false;
        };
        if pids.is_null(row) {
            return false;
        }
        let pids = pids.as_list::<i32>().value(row);
        let exec_ids = exec_ids.as_list::<i32>().value(row);
        let paths = paths.as_list::<i32>().value(row);
        let marks = self
            .ancestors_unknown
            .filter(|marks| marks.is_valid(row))
            .map(|marks| marks.as_list::<i32>().value(row));
        let pids = pids.as_primitive::<Int64Type>();
        let exec_ids = exec_ids.as_primitive::<Int64Type>();
        let paths = paths.as_string::<i32>();
        out.push(b'[');
        for at in 0..pids.len() {
            if at > 0 {
                out.push(b',');
            }
            out.extend_from_slice(b"{\"pid\":");
            integer(out, pids.value(at), false);
            out.extend_from_slice(b",\"exec_id\":");
            integer(out, exec_ids.value(at), true);
            if paths.is_valid(at) {
                let path = paths.value(at);
                out.extend_from_slice(b",\"exe\":{\"path\":");
                string(out, path);
                let named = marks
                    .as_ref()
                    .is_none_or(|marks| marks.as_primitive::<Int64Type>().value(at) < 2);
                if named {
                    out.extend_from_slice(b",\"name\":");
                    string(out, text::file_name(path));
                }
                out.push(b'}');
            }
            out.push(b'}');
        }
        out.push(b']');
        true
    }
}

fn key(out: &mut Vec<u8>, name: &str) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn integer(out: &mut Vec<u8>, value: i64, quoted: bool) {
    // Writing to a Vec cannot fail. Unsigned 64-bit numbers keep their bits in
    // columns; ids and times never reach the sign.
    let _ = if quoted {
        write!(out, "\"{value}\"")
    } else {
        write!(out, "{value}")
    };
}

fn string(out: &mut Vec<u8>, value: &str) {
    // Writing text to a Vec cannot fail.
    let _ = serde_json::to_writer(out, value);
}

/// RFC 3339 in UTC with nine digits of a second.
#[must_use]
pub fn time_text(ns: i64) -> String {
    // All of i64 is between the years 1677 and 2262.
    let Ok(time) = OffsetDateTime::from_unix_timestamp_nanos(ns.into()) else {
        return String::new();
    };
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.nanosecond()
    )
}

/// The UTC day of a time, `YYYY-MM-DD`.
#[must_use]
pub fn day(ns: i64) -> String {
    time_text(ns).chars().take(10).collect()
}
