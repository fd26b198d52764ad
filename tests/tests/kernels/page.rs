//! The tables of docs/kernel-support.md, each between two marks: written from what the kernels said, or compared with it cell
//! by cell, so that a kernel that is not at hand leaves its column alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::boot::{self, BOOTS};
use super::facts::{Facts, Outcome, Said};

/// This host, among the columns.
pub const NATIVE: &str = "native";

/// Cells by row and column, and what stands below the table.
#[derive(Default)]
struct Table {
    cells: BTreeMap<String, BTreeMap<String, String>>,
    notes: BTreeMap<String, Vec<String>>,
}

impl Table {
    fn set(&mut self, row: impl Into<String>, column: &str, cell: impl Into<String>) {
        let row = self.cells.entry(row.into()).or_default();
        row.insert(column.to_owned(), cell.into());
    }

    fn note(&mut self, note: String, column: &str) {
        let columns = self.notes.entry(note).or_default();
        if columns.last().is_none_or(|last| last != column) {
            columns.push(column.to_owned());
        }
    }

    fn text(&self, corner: &str, columns: &[String]) -> String {
        let heads = columns.join(" | ");
        let mut text = format!(
            "| {corner} | {heads} |\n|---{}|\n",
            "|---".repeat(columns.len())
        );
        for (row, cells) in &self.cells {
            let cells: Vec<&str> = columns
                .iter()
                .map(|column| cells.get(column).map_or("-", String::as_str))
                .collect();
            writeln!(text, "| {row} | {} |", cells.join(" | ")).expect("a string");
        }
        for (note, columns) in &self.notes {
            writeln!(text, "\n{}: {note}.", columns.join("; ")).expect("a string");
        }
        text
    }

    /// As it stands on the page.
    fn read(text: &str) -> (Vec<String>, Self) {
        let cells = |line: &str| -> Vec<String> {
            let inner = line.trim().trim_start_matches('|').trim_end_matches('|');
            inner
                .split(" | ")
                .map(|cell| cell.trim().to_owned())
                .collect()
        };
        let mut lines = text.lines().filter(|line| line.starts_with('|'));
        let columns = lines.next().map(cells).unwrap_or_default();
        let columns: Vec<String> = columns.into_iter().skip(1).collect();
        let mut table = Self::default();
        for line in lines.skip(1) {
            let mut row = cells(line).into_iter();
            let name = row.next().unwrap_or_default();
            for (column, cell) in columns.iter().zip(row) {
                table.set(name.clone(), column, cell);
            }
        }
        (columns, table)
    }

    fn cell(&self, row: &str, column: &str) -> Option<&str> {
        let cell = self.cells.get(row)?.get(column)?;
        Some(cell.as_str()).filter(|cell| *cell != "-")
    }
}

/// How a kernel's column is headed. That of a host says what it is, so that another host is not held to it.
fn head(column: &str, facts: &Facts) -> String {
    if column != NATIVE {
        return column.to_owned();
    }
    let minor: Vec<&str> = facts.release.split('.').take(2).collect();
    let lsm = match facts.doors.iter().any(|door| door.rung == "lsm") {
        true => "",
        false => ", no BPF LSM",
    };
    format!("{} natively{lsm}", minor.join("."))
}

/// True for the column of a host, however it is headed.
fn is_native(column: &str) -> bool {
    column.contains(" natively")
}

/// Which kinds come, and on which rung.
fn kinds(table: &mut Table, column: &str, facts: &Facts) {
    let families: BTreeSet<&str> = facts
        .kinds
        .iter()
        .map(|kind| kind.family.as_str())
        .collect();
    for family in families {
        let kinds: Vec<_> = facts
            .kinds
            .iter()
            .filter(|kind| kind.family == family)
            .collect();
        let mut rungs: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for kind in &kinds {
            let rung = match &kind.reason {
                None => kind.rung.as_str(),
                Some(reason) => {
                    table.note(format!("no `{}`: {reason}", kind.name), column);
                    "none"
                }
            };
            rungs.entry(rung).or_default().push(&kind.name);
        }
        let most = rungs.iter().max_by_key(|(_, kinds)| kinds.len());
        let most = most.map_or("", |(rung, _)| *rung);
        let mut words: Vec<String> = rungs
            .iter()
            .filter(|(rung, _)| **rung != most)
            .map(|(rung, kinds)| format!("{rung}: {}", kinds.join(", ")))
            .collect();
        words.push(if words.is_empty() {
            most.to_owned()
        } else {
            format!("else {most}")
        });
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name.as_str()).collect();
        let row = format!("**{family}**: {}", names.join(", "));
        table.set(row, column, words.join("; "));
    }
}

/// What can be denied, and by which door.
fn denied(table: &mut Table, column: &str, facts: &Facts) {
    for door in &facts.doors {
        let cell = match &door.reason {
            None => door.rung.clone(),
            Some(reason) => {
                table.note(format!("no `{}`: {reason}", door.kind), column);
                "no".to_owned()
            }
        };
        table.set(&door.kind, column, cell);
    }
    if let Some(reason) = &facts.fanotify {
        table.note(format!("nothing is held: {reason}"), column);
    }
    let held = if facts.fanotify.is_none() {
        "fanotify"
    } else {
        "no"
    };
    table.set("open and exec, held for the agent", column, held);
}

/// What passed.
fn tests(table: &mut Table, column: &str, said: &Said) {
    // On a host they run by themselves.
    if is_native(column) {
        return;
    }
    let modules: BTreeSet<&str> = said
        .tests
        .keys()
        .map(|(module, _)| module.as_str())
        .collect();
    for module in modules {
        let of = || said.tests.iter().filter(|((of, _), _)| of == module);
        let reasons: BTreeSet<_> = of().map(|(_, outcome)| outcome.reason()).collect();
        if let [Some(reason)] = Vec::from_iter(reasons)[..] {
            table.note(format!("skipped all of `{module}`: {reason}"), column);
            table.set(module, column, "skipped");
            continue;
        }
        let mut skipped = 0;
        for ((_, name), outcome) in of() {
            if let Outcome::Skipped(reason) = outcome {
                skipped += 1;
                let name = name.replace('_', " ");
                table.note(format!("skipped `{module}`, {name}: {reason}"), column);
            }
        }
        let cell = match skipped {
            0 => "yes".to_owned(),
            skipped => format!("yes, {skipped} skipped"),
        };
        table.set(module, column, cell);
    }
}

/// Whether somebody who changes names and descriptors under a call is seen through, by rung: `agent/tests/kernel/misleading.rs`.
fn tries(table: &mut Table, column: &str, said: &Said) {
    for ((module, test), outcome) in &said.tests {
        let Some(name) = test.strip_suffix(boot::TRIES) else {
            continue;
        };
        let (rung, name) = match (module.as_str(), name.split_once("::")) {
            ("points", None) => ("fentry", name),
            ("names", None) => ("fanotify", name),
            ("misleading", Some((rung, name))) => (rung, name),
            _ => panic!("{module}::{test} is of no rung"),
        };
        let row = format!("{rung}: {}", name.trim_end_matches('_').replace('_', " "));
        let cell = match outcome {
            Outcome::Ok => "yes",
            Outcome::Skipped(_) => "-",
        };
        table.set(row, column, cell);
    }
}

/// The row of all doors: each of them only jumps.
const DOORS: &str = "(all doors)";
const TOTAL: &str = "(total)";

fn instructions(table: &mut Table, column: &str, facts: &Facts) {
    if facts.instructions.is_empty() {
        return;
    }
    let mut doors = 0;
    for (program, count) in &facts.instructions {
        match program.starts_with("door_") {
            true => doors += count,
            false => table.set(program, column, count.to_string()),
        }
    }
    table.set(DOORS, column, doors.to_string());
    table.set(TOTAL, column, facts.total().to_string());
}

/// Marks of the tables, what stands in their corners, and what fills them.
type Fill = fn(&mut Table, &str, &Said);
const TABLES: [(&str, &str, Fill); 5] = [
    ("kernels", "events", |table, column, said| {
        kinds(table, column, &said.facts);
    }),
    ("denied", "denied", |table, column, said| {
        denied(table, column, &said.facts);
    }),
    ("tests", "seen in tests of", tests),
    ("tries", "misleads nobody", tries),
    ("instructions", "program", |table, column, said| {
        instructions(table, column, &said.facts);
    }),
];

/// The part of the page between the two marks of this name, and where it lies.
fn part<'a>(page: &'a str, name: &str) -> (&'a str, std::ops::Range<usize>) {
    let (begin, end) = (
        format!("<!-- {name} -->\n"),
        format!("<!-- end of {name} -->"),
    );
    let from = page.find(&begin).map(|at| at + begin.len());
    let from = from.unwrap_or_else(|| panic!("docs/kernel-support.md has no mark {begin}"));
    let to = page[from..].find(&end).map(|at| from + at);
    let to = to.unwrap_or_else(|| panic!("docs/kernel-support.md has no mark {end}"));
    (&page[from..to], from..to)
}

fn filled(fill: Fill, said: &BTreeMap<&'static str, Said>) -> Table {
    let mut table = Table::default();
    for (column, one) in said {
        fill(&mut table, &head(column, &one.facts), one);
    }
    table
}

/// Writes what was said; columns of kernels that are not at hand stay.
pub fn write(path: &Path, said: &BTreeMap<&'static str, Said>) {
    let mut page = fs::read_to_string(path).expect("docs/kernel-support.md can be read");
    let heads: Vec<String> = said
        .iter()
        .map(|(column, one)| head(column, &one.facts))
        .collect();
    for (mark, corner, fill) in TABLES {
        let (text, range) = part(&page, mark);
        let mut table = filled(fill, said);
        let (old_columns, old) = Table::read(text);
        let missing = |column: &&String| {
            !heads.contains(column) && BOOTS.iter().any(|boot| boot.column == column.as_str())
        };
        for column in old_columns.iter().filter(missing) {
            for (row, cells) in &old.cells {
                if let Some(cell) = cells.get(column) {
                    table.set(row.clone(), column, cell.clone());
                }
            }
        }
        // Kernels in the order of their versions, then the host.
        let has = |column: &str| table.cells.values().any(|row| row.contains_key(column));
        let mut columns: Vec<String> = BOOTS.iter().map(|boot| boot.column.to_owned()).collect();
        columns.sort_by_key(|column| ORDER.iter().position(|known| column == known));
        columns.extend(heads.iter().filter(|head| is_native(head)).cloned());
        columns.retain(|column| has(column));
        let text = table.text(corner, &columns);
        page.replace_range(range, &text);
    }
    fs::write(path, page).expect("docs/kernel-support.md can be written");
}

/// The order of the columns.
const ORDER: [&str; 5] = ["5.10", "5.10, `lsm=…,bpf`", "6.1", "6.12", "newest"];

/// True once somebody has written it: before, there is nothing to hold a kernel to.
pub fn is_written(path: &Path) -> bool {
    let page = fs::read_to_string(path).expect("docs/kernel-support.md can be read");
    let is_empty = |(mark, _, _): &(&str, &str, Fill)| part(&page, mark).0.is_empty();
    !TABLES.iter().any(is_empty)
}

/// Holds what was said to what is written.
pub fn compare(path: &Path, said: &BTreeMap<&'static str, Said>) {
    let page = fs::read_to_string(path).expect("docs/kernel-support.md can be read");
    let mut stale = Vec::new();
    for (mark, _, fill) in TABLES {
        let (columns, written) = Table::read(part(&page, mark).0);
        let table = filled(fill, said);
        for one in said.iter().map(|(column, one)| head(column, &one.facts)) {
            if !columns.contains(&one) {
                let natively = is_native(&one);
                if !natively && table.cells.values().any(|row| row.contains_key(&one)) {
                    stale.push(format!("{mark}: no column {one}"));
                } else if natively && mark == "kernels" {
                    println!("another host than that of the page: {one}");
                }
                continue;
            }
            let rows: BTreeSet<&String> = table.cells.keys().chain(written.cells.keys()).collect();
            for row in rows {
                let (now, then) = (table.cell(row, &one), written.cell(row, &one));
                let same = match mark {
                    "instructions" => is_within(row, now, then),
                    _ => now == then,
                };
                if !same {
                    stale.push(format!(
                        "{mark}: {row} on {one}: {}, and the page says {}",
                        now.unwrap_or("-"),
                        then.unwrap_or("-")
                    ));
                }
            }
        }
    }
    assert!(
        stale.is_empty(),
        "docs/kernel-support.md is stale; SUMUN_WRITE_DOCS=1 make test-kernels writes it, if this is as it should be:\n{}",
        stale.join("\n")
    );
}

/// A program's budget is what is recorded of it, and a little: other compilers and later patches of a kernel move it. The total
/// has a bound of its own.
fn is_within(row: &str, now: Option<&str>, recorded: Option<&str>) -> bool {
    let number = |cell: Option<&str>| cell.and_then(|cell| cell.parse::<u64>().ok());
    match (number(now), number(recorded)) {
        _ if row == TOTAL => true,
        (Some(now), Some(recorded)) => now <= recorded + recorded / 5 + 2_000,
        (now, recorded) => now.is_none() == recorded.is_none(),
    }
}
