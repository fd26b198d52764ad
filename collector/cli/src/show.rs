//! `alerts show`.

use std::io::Write as _;

use serde_json::Value;
use sumun_proto::v1::{SearchRequest, Table};

use crate::args::{Output, ShowAlert};
use crate::failure::Failure;
use crate::moment;
use crate::output::report;
use crate::remote::Remote;
use crate::rows::{integer, safe, text, what};
use crate::search::each_row;

/// Prints every alert of one kernel record with all its fields.
pub(crate) async fn alert(
    mut remote: Remote,
    args: ShowAlert,
    output: Output,
) -> Result<(), Failure> {
    let request = SearchRequest {
        table: Table::Alerts.into(),
        r#where: args.id.predicate(),
        since_ns: args.since.resolve(moment::now()),
        until_ns: None,
        limit: 0,
    };
    let replies = remote.query.search(request).await?.into_inner();
    let mut rows: Vec<Value> = Vec::new();
    let completeness = each_row(replies, |row| {
        let row = serde_json::from_str(row).map_err(|error| {
            Failure::failed(error.into(), "the collector sent a row that is not JSON")
        })?;
        rows.push(row);
        Ok(())
    })
    .await?;
    if rows.is_empty() {
        // Before the completeness, which is the last line; nobody may be reading.
        let _ = writeln!(
            std::io::stderr(),
            "sumunctl: no alert has the id {}; look further back with --since",
            args.id
        );
        report(&completeness, output, false)?;
        return Err(Failure::Said);
    }
    let mut out = std::io::stdout().lock();
    match output {
        Output::Json => writeln!(out, "{}", Value::Array(rows))?,
        Output::Jsonl => {
            for row in &rows {
                writeln!(out, "{row}")?;
            }
        }
        Output::Table => {
            for (index, row) in rows.iter().enumerate() {
                if index > 0 {
                    writeln!(out)?;
                }
                out.write_all(page(row).as_bytes())?;
            }
        }
    }
    out.flush()?;
    report(&completeness, output, false)
}

/// An alert on a screen: what, by whom, under whom, then every field.
fn page(row: &Value) -> String {
    let mut page = format!(
        "{} {}/{}: {}\n{}\n",
        safe(text(row, "rule.severity")),
        safe(text(row, "policy.name")),
        safe(text(row, "rule.id")),
        safe(text(row, "rule.title")),
        what(row),
    );
    if crate::rows::at(row, "alert.folded") == Some(&Value::Bool(true)) {
        let count = integer(row, "alert.count").unwrap_or(0);
        page.push_str(&format!(
            "{count} matches beyond the rule's rate, {} to {}; this is the first of them\n",
            safe(text(row, "alert.first")),
            safe(text(row, "alert.last")),
        ));
    }
    let outcome = text(row, "verdict.outcome");
    if !outcome.is_empty() {
        let reason = text(row, "verdict.reason");
        page.push_str(&format!(
            "verdict: {} (requested {}, effective {}){}{}\n",
            safe(outcome),
            safe(text(row, "verdict.requested")),
            safe(text(row, "verdict.effective")),
            if reason.is_empty() { "" } else { ": " },
            safe(reason),
        ));
    }
    if let Some(Value::Array(ancestors)) = crate::rows::at(row, "proc.ancestors")
        && !ancestors.is_empty()
    {
        page.push_str("\nancestors, nearest first\n");
        for ancestor in ancestors {
            let pid = integer(ancestor, "pid").map_or_else(String::new, |pid| pid.to_string());
            page.push_str(&format!(
                "  {pid:>8}  {}\n",
                safe(text(ancestor, "exe.path"))
            ));
        }
    }
    page.push_str("\nfields\n");
    let mut fields = Vec::new();
    flatten(row, String::new(), &mut fields);
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in fields {
        page.push_str(&format!("  {name:width$}  {}\n", safe(&value)));
    }
    page
}

fn flatten(value: &Value, name: String, fields: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                let name = if name.is_empty() {
                    key.clone()
                } else {
                    format!("{name}.{key}")
                };
                flatten(member, name, fields);
            }
        }
        Value::Null => {}
        Value::String(text) => fields.push((name, text.clone())),
        // Shown above as a list.
        Value::Array(_) if name == "proc.ancestors" => {}
        other => fields.push((name, other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_names_rule_ancestors_and_fields() {
        let row = json!({
            "kind": "exec",
            "rule": {"id": "shell", "severity": "high", "title": "A shell"},
            "policy": {"name": "web"},
            "proc": {"args": ["sh"], "ancestors": [{"pid": 7, "exe": {"path": "/usr/sbin/nginx"}}]},
        });
        let page = page(&row);
        assert!(page.starts_with("high web/shell: A shell\nsh\n"), "{page}");
        assert!(page.contains("         7  /usr/sbin/nginx\n"), "{page}");
        assert!(page.contains("  rule.severity  high\n"), "{page}");
        assert!(!page.contains("beyond"), "{page}");
        assert!(!page.contains("verdict"), "{page}");
        let mut judged = row.clone();
        judged["verdict"] = json!({"requested": "enforce", "effective": "kill-late",
            "outcome": "gone", "reason": "it had ended"});
        let page = super::page(&judged);
        assert!(
            page.contains("verdict: gone (requested enforce, effective kill-late): it had ended\n"),
            "{page}"
        );
        assert!(page.contains("  verdict.outcome    gone\n"), "{page}");
        let mut folded = row;
        folded["alert"] = json!({"folded": true, "count": "40", "first": "a", "last": "b"});
        let page = super::page(&folded);
        assert!(
            page.contains("40 matches beyond the rule's rate, a to b; this is the first of them\n"),
            "{page}"
        );
    }
}
