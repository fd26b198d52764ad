//! `joins`: who has joined without a token, and who came and was refused.

use std::io::Write as _;

use serde_json::{Value, json};
use sumun_proto::v1::{ForgetJoinRequest, JoinAttempt, Joined, ListJoinsRequest};

use crate::args::{ForgetJoin, JoinLog, Output};
use crate::failure::Failure;
use crate::moment::{millis, rfc3339};
use crate::output::{Cells, Printer, Shown, Tone};
use crate::remote::Remote;
use crate::rows::text;

/// Lists what is bound to which agent.
pub(crate) async fn list(mut remote: Remote, output: Output) -> Result<(), Failure> {
    let request = ListJoinsRequest::default();
    let response = remote.admin.list_joins(request).await?.into_inner();
    let titles = ["METHOD", "SUBJECT", "ENTRY", "HOST", "AGENT", "SINCE"];
    let mut printer = Printer::new(output, &titles, bound);
    for joined in &response.joined {
        printer.row(&row(joined).to_string())?;
    }
    printer.finish()
}

/// Lists who came and what became of it.
pub(crate) async fn log(mut remote: Remote, args: JoinLog, output: Output) -> Result<(), Failure> {
    let request = ListJoinsRequest {
        log: true,
        limit: args.limit,
    };
    let response = remote.admin.list_joins(request).await?.into_inner();
    let titles = [
        "TIME", "OUTCOME", "METHOD", "SUBJECT", "HOST", "ADDRESS", "AGENT", "WHY",
    ];
    let mut printer = Printer::new(output, &titles, attempted);
    for attempt in &response.log {
        printer.row(&attempt_row(attempt).to_string())?;
    }
    printer.finish()
}

/// Lets another agent join as this subject.
pub(crate) async fn forget(mut remote: Remote, args: ForgetJoin) -> Result<(), Failure> {
    let request = ForgetJoinRequest {
        subject: args.subject.clone(),
    };
    let forgotten = remote
        .admin
        .forget_join(request)
        .await?
        .into_inner()
        .forgotten;
    if forgotten == 0 {
        return Err(Failure::message_only(format!(
            "nobody has joined as {:?}; `sumunctl joins list` shows who has",
            args.subject
        )));
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{}: the agent that it was is revoked, and the next that proves to be it may join",
        args.subject
    )?;
    Ok(out.flush()?)
}

/// The keys are part of the documented output.
fn row(joined: &Joined) -> Value {
    json!({
        "method": joined.method,
        "subject": joined.subject,
        "entry": joined.entry,
        "agent": joined.agent,
        "host": joined.host,
        "bound": rfc3339(joined.bound_ns),
        "used": rfc3339(joined.used_ns),
    })
}

/// As above.
fn attempt_row(attempt: &JoinAttempt) -> Value {
    json!({
        "time": rfc3339(attempt.at_ns),
        "outcome": attempt.outcome,
        "method": attempt.method,
        "subject": attempt.subject,
        "host": attempt.host,
        "address": attempt.address,
        "agent": attempt.agent,
        "reason": attempt.reason,
        "by": attempt.by,
    })
}

fn bound(row: &Value) -> Cells {
    let mut cells: Vec<Shown> = ["method", "subject", "entry", "host", "agent"]
        .iter()
        .map(|name| Shown::new(text(row, name)))
        .collect();
    cells.push(Shown::new(millis(text(row, "bound"))));
    cells
}

fn attempted(row: &Value) -> Cells {
    let tone = match text(row, "outcome") {
        "refused" => Tone::Bad,
        _ => Tone::Good,
    };
    let mut cells = vec![
        Shown::new(millis(text(row, "time"))),
        Shown::toned(text(row, "outcome"), tone),
    ];
    let rest = ["method", "subject", "host", "address", "agent"];
    cells.extend(rest.iter().map(|name| Shown::new(text(row, name))));
    let by = text(row, "by");
    cells.push(Shown::new(match by.is_empty() {
        true => text(row, "reason").to_owned(),
        false => format!("by {by}"),
    }));
    cells
}
