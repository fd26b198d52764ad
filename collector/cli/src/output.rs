//! Printing: rows as a table, a JSON array or JSON lines; completeness on
//! standard error.

use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write as _};

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;
use sumun_proto::v1::Completeness;

use crate::args::Output;
use crate::failure::Failure;
use crate::moment::rfc3339;
use crate::rows::safe;

/// Longest cell on a terminal; a pipe gets everything.
const CELL_MAX: usize = 240;

/// Bytes in a unit that people read.
pub(crate) fn quantity(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{} KiB", bytes.div_ceil(1024)),
        _ => {
            let tenths = (bytes * 10).div_ceil(1_048_576);
            format!("{}.{} MiB", tenths / 10, tenths % 10)
        }
    }
}

/// Lines about completeness under a table.
const REMARKS_MAX: usize = 10;

/// A row of cells.
pub(crate) type Cells = Vec<Shown>;

/// One cell.
pub(crate) struct Shown {
    text: String,
    tone: Tone,
}

/// What a cell's colour says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Warning,
    Bad,
}

impl Shown {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self::toned(text, Tone::Plain)
    }

    #[cfg(test)]
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: text.into(),
            tone,
        }
    }
}

/// Where rows go.
pub(crate) struct Printer {
    output: Output,
    out: BufWriter<StdoutLock<'static>>,
    table: Option<TablePrinter>,
    rows: u64,
}

struct TablePrinter {
    table: Table,
    cells: fn(&Value) -> Cells,
    colour: bool,
    terminal: bool,
}

impl Printer {
    /// Rows become table rows by `cells`, under `titles`.
    pub(crate) fn new(output: Output, titles: &[&str], cells: fn(&Value) -> Cells) -> Self {
        let table = (output == Output::Table).then(|| TablePrinter::new(titles, cells));
        Self {
            output,
            out: BufWriter::new(io::stdout().lock()),
            table,
            rows: 0,
        }
    }

    /// Prints one row, which is the text of a JSON object.
    pub(crate) fn row(&mut self, json: &str) -> Result<(), Failure> {
        match self.output {
            Output::Table => {
                let row: Value = serde_json::from_str(json).map_err(|error| {
                    Failure::failed(error.into(), "the collector sent a row that is not JSON")
                })?;
                if let Some(table) = &mut self.table {
                    table.add(&row);
                }
            }
            Output::Json => {
                let before: &[u8] = if self.rows == 0 { b"[\n" } else { b",\n" };
                self.out.write_all(before)?;
                self.out.write_all(json.as_bytes())?;
            }
            Output::Jsonl => {
                self.out.write_all(json.as_bytes())?;
                self.out.write_all(b"\n")?;
            }
        }
        self.rows += 1;
        Ok(())
    }

    /// Prints what is still held back.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        match self.output {
            Output::Table => {
                if let Some(table) = self.table.take() {
                    for line in table.table.lines() {
                        writeln!(self.out, "{}", line.trim_end())?;
                    }
                }
            }
            Output::Json if self.rows == 0 => self.out.write_all(b"[]\n")?,
            Output::Json => self.out.write_all(b"\n]\n")?,
            Output::Jsonl => {}
        }
        Ok(self.out.flush()?)
    }
}

impl TablePrinter {
    fn new(titles: &[&str], cells: fn(&Value) -> Cells) -> Self {
        let terminal = io::stdout().is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        if terminal {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        table.set_header(titles.iter().map(|title| {
            let cell = Cell::new(title);
            if colour {
                cell.add_attribute(Attribute::Bold)
            } else {
                cell
            }
        }));
        if let Some(first) = table.column_mut(0) {
            first.set_padding((0, 1));
        }
        Self {
            table,
            cells,
            colour,
            terminal,
        }
    }

    fn add(&mut self, row: &Value) {
        let cells = (self.cells)(row);
        self.table.add_row(cells.into_iter().map(|shown| {
            let mut text = safe(&shown.text);
            if self.terminal && text.chars().count() > CELL_MAX {
                text = text.chars().take(CELL_MAX).chain(['…']).collect();
            }
            let cell = Cell::new(text);
            match shown.tone {
                _ if !self.colour => cell,
                Tone::Plain => cell,
                Tone::Good => cell.fg(Color::Green),
                Tone::Warning => cell.fg(Color::Yellow),
                Tone::Bad => cell.fg(Color::Red),
            }
        }));
    }
}

/// Completeness as JSON; the keys are part of the documented output.
#[derive(Serialize)]
struct Report<'a> {
    complete: bool,
    through: Option<String>,
    truncated: bool,
    hosts: Vec<HostReport<'a>>,
    gaps: Vec<GapReport<'a>>,
    scope: Vec<ScopeReport<'a>>,
}

#[derive(Serialize)]
struct HostReport<'a> {
    id: &'a str,
    name: &'a str,
    complete: bool,
    through: Option<String>,
    state: &'a str,
    reason: &'a str,
}

#[derive(Serialize)]
struct GapReport<'a> {
    host: &'a str,
    lane: &'a str,
    reason: &'a str,
    count: Option<u64>,
    from: Option<String>,
    to: Option<String>,
}

#[derive(Serialize)]
struct ScopeReport<'a> {
    host: &'a str,
    kind: &'a str,
    mode: &'a str,
    reason: &'a str,
    from: Option<String>,
    to: Option<String>,
}

/// The line `{"completeness":{...}}`.
fn completeness_line(completeness: &Completeness) -> String {
    let report = Report {
        complete: completeness.complete,
        through: rfc3339(completeness.through_ns),
        truncated: completeness.truncated,
        hosts: completeness
            .hosts
            .iter()
            .map(|host| HostReport {
                id: &host.id,
                name: &host.name,
                complete: host.complete,
                through: rfc3339(host.through_ns),
                state: &host.state,
                reason: &host.reason,
            })
            .collect(),
        gaps: completeness
            .gaps
            .iter()
            .map(|gap| GapReport {
                host: &gap.host,
                lane: &gap.lane,
                reason: &gap.reason,
                count: gap.count,
                from: rfc3339(gap.from_ns),
                to: rfc3339(gap.to_ns),
            })
            .collect(),
        scope: completeness
            .scope
            .iter()
            .map(|scope| ScopeReport {
                host: &scope.host,
                kind: &scope.kind,
                mode: &scope.mode,
                reason: &scope.reason,
                from: rfc3339(scope.from_ns),
                to: rfc3339(scope.to_ns),
            })
            .collect(),
    };
    serde_json::json!({ "completeness": report }).to_string()
}

/// Why an answer is not all there is, a line each, for people.
fn remarks(completeness: &Completeness) -> Vec<String> {
    let mut lines = Vec::new();
    if completeness.truncated {
        lines.push("the limit cut off older rows; --limit 0 shows all".to_owned());
    }
    if completeness.complete {
        return lines;
    }
    for host in completeness.hosts.iter().filter(|host| !host.complete) {
        lines.push(format!("not complete: {}: {}", host.name, host.reason));
    }
    for gap in &completeness.gaps {
        let count = gap
            .count
            .map_or_else(|| "an unknown number".to_owned(), |count| count.to_string());
        let time = |ns| rfc3339(ns).unwrap_or_else(|| "?".to_owned());
        lines.push(format!(
            "gap: {} {}: {count} missing between {} and {} ({})",
            gap.host,
            gap.lane,
            time(gap.from_ns),
            time(gap.to_ns),
            gap.reason
        ));
    }
    // What was not collected stands in the reasons of the hosts already.
    if lines.len() > REMARKS_MAX {
        let more = lines.len() - REMARKS_MAX;
        lines.truncate(REMARKS_MAX);
        lines.push(format!("and {more} more, all in the line below"));
    }
    lines
}

/// Prints completeness as the last line on standard error; before it, in table
/// form, what it means. Fails when `required` and the answer is not complete.
pub(crate) fn report(
    completeness: &Completeness,
    output: Output,
    required: bool,
) -> Result<(), Failure> {
    let mut err = io::stderr().lock();
    // Nobody may be reading standard error, which changes nothing.
    if output == Output::Table {
        for remark in remarks(completeness) {
            let _ = writeln!(err, "{}", safe(&remark));
        }
    }
    let _ = writeln!(err, "{}", completeness_line(completeness));
    if required && !completeness.complete {
        return Err(Failure::Said);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sumun_proto::v1::{GapSummary, HostCompleteness, ScopeSummary};

    #[test]
    fn completeness_is_stable_json_on_one_line() {
        let completeness = Completeness {
            complete: false,
            through_ns: 1_500_000_000,
            truncated: true,
            hosts: vec![HostCompleteness {
                id: "u".into(),
                name: "web\n1".into(),
                complete: false,
                through_ns: 0,
                state: "offline".into(),
                reason: "data to 10:03, then silent".into(),
            }],
            gaps: vec![GapSummary {
                host: "u".into(),
                lane: "bulk".into(),
                reason: "power_loss".into(),
                count: None,
                from_ns: 1_000_000_000,
                to_ns: 2_000_000_000,
            }],
            scope: vec![ScopeSummary {
                host: "u".into(),
                kind: "open".into(),
                mode: "filtered".into(),
                reason: "open: filtered".into(),
                from_ns: 0,
                to_ns: 0,
            }],
        };
        assert_eq!(
            completeness_line(&completeness),
            r#"{"completeness":{"complete":false,"through":"1970-01-01T00:00:01.5Z","truncated":true,"hosts":[{"id":"u","name":"web\n1","complete":false,"through":null,"state":"offline","reason":"data to 10:03, then silent"}],"gaps":[{"host":"u","lane":"bulk","reason":"power_loss","count":null,"from":"1970-01-01T00:00:01Z","to":"1970-01-01T00:00:02Z"}],"scope":[{"host":"u","kind":"open","mode":"filtered","reason":"open: filtered","from":null,"to":null}]}}"#
        );
        assert_eq!(remarks(&completeness).len(), 3);
    }
}
