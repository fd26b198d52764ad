//! `events list`, `alerts list`, `gaps list`.

use serde_json::Value;
use sumun_proto::v1::search_reply::Message;
use sumun_proto::v1::{Completeness, SearchReply, SearchRequest, Table};
use tonic::Streaming;

use crate::args::{ListArgs, Output};
use crate::failure::Failure;
use crate::moment::{self, millis};
use crate::output::{Cells, Printer, Shown, Tone, report};
use crate::remote::Remote;
use crate::rows::{AlertId, integer, process, text, what};

/// Rows of a table or array when `--limit` is not given.
const LIMIT: u64 = 100;

/// Which table is searched, and how its rows look.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Events,
    Alerts,
    Gaps,
}

/// Searches, prints, reports completeness.
pub(crate) async fn list(
    mut remote: Remote,
    kind: Kind,
    args: ListArgs,
    output: Output,
) -> Result<(), Failure> {
    let now = moment::now();
    let request = SearchRequest {
        table: match kind {
            Kind::Events => Table::Events,
            Kind::Alerts => Table::Alerts,
            Kind::Gaps => Table::Gaps,
        }
        .into(),
        r#where: args.predicate,
        since_ns: args.range.since.resolve(now),
        until_ns: args.range.until.map(|until| until.resolve(now)),
        limit: args.limit.unwrap_or(match output {
            Output::Table | Output::Json => LIMIT,
            Output::Jsonl => 0,
        }),
    };
    let mut printer = printer(kind, output);
    let replies = remote.query.search(request).await?.into_inner();
    let completeness = each_row(replies, |row| printer.row(row)).await?;
    printer.finish()?;
    report(&completeness, output, args.range.require_complete)
}

/// Gives every row to `take`; returns the completeness that ends the answer.
pub(crate) async fn each_row(
    mut replies: Streaming<SearchReply>,
    mut take: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<Completeness, Failure> {
    let mut completeness = None;
    while let Some(reply) = replies.message().await? {
        match reply.message {
            Some(Message::Rows(rows)) => {
                for row in &rows.json {
                    take(row)?;
                }
            }
            Some(Message::Completeness(report)) => completeness = Some(report),
            None => {}
        }
    }
    completeness.ok_or_else(|| {
        Failure::message_only(
            "the collector's answer broke off before it said whether it is complete",
        )
    })
}

fn printer(kind: Kind, output: Output) -> Printer {
    match kind {
        Kind::Events => Printer::new(
            output,
            &["TIME", "HOST", "KIND", "PROCESS", "UID", "WHAT"],
            event_cells,
        ),
        Kind::Alerts => Printer::new(
            output,
            &[
                "TIME", "HOST", "SEVERITY", "RULE", "VERDICT", "COUNT", "KIND", "PROCESS", "ID",
                "WHAT",
            ],
            alert_cells,
        ),
        Kind::Gaps => Printer::new(
            output,
            &["FROM", "TO", "HOST", "LANE", "REASON", "MISSING", "DETAIL"],
            gap_cells,
        ),
    }
}

fn number(row: &Value, name: &str) -> String {
    integer(row, name).map_or_else(String::new, |number| number.to_string())
}

fn event_cells(row: &Value) -> Cells {
    vec![
        Shown::new(millis(text(row, "time"))),
        Shown::new(text(row, "host.name")),
        Shown::new(text(row, "kind")),
        Shown::new(process(row)),
        Shown::new(number(row, "proc.uid")),
        Shown::new(what(row)),
    ]
}

/// What became of a rule that kills; empty for one that does not.
fn verdict(row: &Value) -> Shown {
    let outcome = text(row, "verdict.outcome");
    let tone = match outcome {
        "killed" => Tone::Good,
        "failed" | "expired" => Tone::Bad,
        "guarded" | "undecided" => Tone::Warning,
        _ => Tone::Plain,
    };
    Shown::toned(outcome, tone)
}

fn alert_cells(row: &Value) -> Cells {
    let severity = text(row, "rule.severity");
    let tone = match severity {
        "critical" | "high" => Tone::Bad,
        "medium" => Tone::Warning,
        _ => Tone::Plain,
    };
    vec![
        Shown::new(millis(text(row, "time"))),
        Shown::new(text(row, "host.name")),
        Shown::toned(severity, tone),
        Shown::new(format!(
            "{}/{}",
            text(row, "policy.name"),
            text(row, "rule.id")
        )),
        verdict(row),
        Shown::new(number(row, "alert.count")),
        Shown::new(text(row, "kind")),
        Shown::new(process(row)),
        Shown::new(AlertId::of(row).map_or_else(String::new, |id| id.to_string())),
        Shown::new(what(row)),
    ]
}

fn gap_cells(row: &Value) -> Cells {
    let missing = integer(row, "gap.count").map_or_else(|| "unknown".to_owned(), |n| n.to_string());
    let detail = text(row, "gap.detail");
    let detail = if integer(row, "gap.first_seq").is_some() {
        let stream = format!(
            "ring {} cpu {} level {}: {}..{}",
            number(row, "origin.ring"),
            number(row, "origin.cpu"),
            number(row, "origin.level"),
            number(row, "gap.first_seq"),
            number(row, "gap.last_seq")
        );
        if detail.is_empty() {
            stream
        } else {
            format!("{stream}; {detail}")
        }
    } else {
        detail.to_owned()
    };
    vec![
        Shown::new(millis(text(row, "gap.from"))),
        Shown::new(millis(text(row, "gap.to"))),
        Shown::new(text(row, "host.name")),
        Shown::new(text(row, "gap.lane")),
        Shown::new(text(row, "gap.reason")),
        Shown::toned(missing, Tone::Warning),
        Shown::new(detail),
    ]
}
