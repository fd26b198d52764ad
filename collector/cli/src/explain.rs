//! `policy explain`: which condition of a rule is judged where, what the rule costs
//! and what its effect will be, offline.

use std::io::Write as _;

use serde_json::{Value, json};
use sumun_policy::explain::{Cost, Effective, Explained, Filter};
use sumun_policy::{CheckedPolicy, Effect, Mode, Plan, explain};
use sumun_proto::catalogue::kind_name;

use crate::args::{Output, PolicyFiles};
use crate::failure::Failure;
use crate::output::{Cells, Printer, Shown, Tone, quantity};
use crate::policy;

const TITLES: &[&str] = &[
    "RULE",
    "KIND",
    "COST",
    "FILTER",
    "EFFECT",
    "MODE",
    "JUDGED",
    "CONDITION",
];

/// Longest condition in a table, in characters; JSON has it whole.
const CONDITION_MAX: usize = 100;

/// Explains the files as if they were loaded together; fails when one is refused.
pub(crate) fn print(args: &PolicyFiles, output: Output) -> Result<(), Failure> {
    let policies = policy::sound(args)?;
    let (_, warnings) = Plan::build(&policies);
    for warning in warnings {
        // Nobody may be reading standard error, which changes nothing.
        let _ = writeln!(std::io::stderr(), "warning: {warning}");
    }
    let rows = rows(&policies);
    let mut printer = Printer::new(output, TITLES, cells);
    for row in &rows {
        match output {
            Output::Table => {
                for line in lines(row) {
                    printer.row(&line.to_string())?;
                }
            }
            Output::Json | Output::Jsonl => printer.row(&row.to_string())?,
        }
    }
    printer.finish()
}

fn rows(policies: &[CheckedPolicy]) -> Vec<Value> {
    let now_ns = crate::moment::now();
    explain(policies, now_ns).iter().map(row).collect()
}

/// A rule on a kind as JSON; the keys are part of the documented output.
fn row(said: &Explained) -> Value {
    json!({
        "policy": said.policy,
        "rule": said.rule,
        "kind": kind_name(said.kind),
        "cost": said.cost.name(),
        "cost_of_kind": said.cost_of_kind.name(),
        "filter": said.filter.map(Filter::name),
        "effect": match said.effect {
            Effect::Record => "record",
            Effect::Alert => "alert",
            Effect::Kill => "kill",
            Effect::Deny => "deny",
            Effect::Isolate => "isolate",
        },
        "requested": match said.requested {
            Mode::Observe => "observe",
            Mode::Enforce => "enforce",
        },
        "effective": said.effective.name(),
        "reason": said.reason,
        "conditions": said.conditions.iter().map(|condition| json!({
            "judged": condition.judged.name(),
            "text": condition.text,
        })).collect::<Vec<_>>(),
        "lists": said.lists.iter().map(|list| json!({
            "name": list.name,
            "items": list.items,
            "matcher_bytes": list.matcher_bytes,
            "kernel": list.kernel.to_string(),
            "kernel_bytes": list.kernel_bytes,
        })).collect::<Vec<_>>(),
        "rungs": said.rungs.iter().map(|rung| json!({
            "rung": rung.rung,
            "effective": rung.effective.name(),
            "airtight": rung.airtight,
            "why": rung.why,
        })).collect::<Vec<_>>(),
    })
}

/// The lines of a table for one row: the rule with its first condition, one for each other, one for each
/// long list, why the mode is less than what was asked for, and if something is to be stopped one for each rung.
fn lines(row: &Value) -> Vec<Value> {
    let conditions = row["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let mut first = row.clone();
    first["condition"] = conditions
        .first()
        .cloned()
        .unwrap_or_else(|| json!({ "judged": "", "text": "(every event of the kind)" }));
    let rest = conditions
        .iter()
        .skip(1)
        .map(|condition| json!({ "condition": condition }));
    let lists = row["lists"].as_array().map_or(&[][..], Vec::as_slice);
    let lists = lists.iter().map(|list| json!({ "list": list }));
    let reason = text(&row["reason"]);
    let reason = (!reason.is_empty()).then(|| json!({ "reason": reason }));
    let stops = matches!(row["effect"].as_str(), Some("kill" | "deny"));
    let rungs = row["rungs"].as_array().filter(|_| stops);
    let rungs = rungs.into_iter().flatten();
    let rungs = rungs.map(|rung| json!({ "rung": rung }));
    let first = std::iter::once(first);
    let all = first.chain(rest).chain(lists).chain(reason);
    all.chain(rungs).collect()
}

/// What a long list takes where.
fn list_cost(list: &Value) -> String {
    let bytes = |key: &str| quantity(list[key].as_u64().unwrap_or(0));
    let in_kernel = match list["kernel_bytes"].as_u64() {
        Some(0) | None => "nothing of it in the kernel".to_owned(),
        Some(_) => format!(
            "in the kernel {}, up to {}",
            text(&list["kernel"]),
            bytes("kernel_bytes")
        ),
    };
    format!(
        "lists.{}: {} items, {} in the agent, looked up by hash; {in_kernel}",
        text(&list["name"]),
        list["items"],
        bytes("matcher_bytes")
    )
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("").to_owned()
}

fn cells(line: &Value) -> Cells {
    let (cost, of_kind) = (text(&line["cost"]), text(&line["cost_of_kind"]));
    let every = Cost::EveryEvent.name();
    let (cost, dear) = match () {
        () if cost == every => (format!("every {}", text(&line["kind"])), true),
        // It is narrow, but another rule is not.
        () if of_kind == every => (
            format!("{cost} (others: every {})", text(&line["kind"])),
            true,
        ),
        () => (cost, false),
    };
    let effective = text(&line["effective"]);
    let rule = match line["policy"].as_str() {
        Some(policy) => format!("{policy}/{}", text(&line["rule"])),
        None => String::new(),
    };
    let (judged, condition) = match (line["policy"].as_str(), line["reason"].as_str()) {
        // Lines of their own.
        (None, Some(reason)) => ("(why)".to_owned(), reason.to_owned()),
        (None, None) if line["list"].is_object() => ("(list)".to_owned(), list_cost(&line["list"])),
        (None, None) if line["rung"].is_object() => {
            let rung = &line["rung"];
            let how = match rung["airtight"].as_bool() {
                Some(true) => "airtight",
                _ => "best effort",
            };
            (
                format!("({})", text(&rung["rung"])),
                format!(
                    "{}, {how}: {}",
                    text(&rung["effective"]),
                    text(&rung["why"])
                ),
            )
        }
        _ => {
            let condition = &line["condition"];
            (
                text(&condition["judged"]),
                shortened(text(&condition["text"])),
            )
        }
    };
    vec![
        Shown::new(rule),
        Shown::new(text(&line["kind"])),
        Shown::toned(cost, if dear { Tone::Warning } else { Tone::Plain }),
        Shown::new(match line.get("filter") {
            Some(Value::String(filter)) => filter,
            Some(_) => "-",
            None => "",
        }),
        Shown::new(text(&line["effect"])),
        match effective == Effective::None.name() {
            true => Shown::toned(effective, Tone::Bad),
            false => Shown::new(effective),
        },
        Shown::new(judged),
        Shown::new(condition),
    ]
}

fn shortened(condition: String) -> String {
    match condition.char_indices().nth(CONDITION_MAX) {
        Some((end, _)) => format!("{}…", &condition[..end]),
        None => condition,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sumun_policy::{FileCheck, check_files};

    fn policies(checks: Vec<FileCheck>) -> Vec<CheckedPolicy> {
        let policies = checks.into_iter();
        policies.filter_map(|check| check.policy).collect()
    }

    const POLICY: &str = r#"
[policy]
name = "web"
[[rule]]
id = "etc"
on = ["open", "exec"]
when = 'proc.exe.name == "vi" && proc.exe.path.glob("/usr/*/vi")'
[[rule]]
id = "all"
on = ["connect"]
effect = "record"
"#;

    /// The page's example is what is printed: the same words in the same order.
    #[test]
    fn the_documentation_shows_what_is_printed() {
        let page = include_str!("../../../docs/policy.md");
        let (_, section) = page
            .split_once("### What becomes of a rule")
            .expect("the section");
        let mut blocks = section.split("```").skip(1).step_by(2);
        let shown = blocks.next().expect("the output");
        let file = blocks.next().expect("the policy").replacen("toml", "", 1);
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let printed = rows(&policies(check_files([("web.toml", file.as_str())])))
            .iter()
            .flat_map(lines)
            .map(|line| {
                let cells = cells(&line);
                let texts: Vec<&str> = cells.iter().map(Shown::text).collect();
                words(&texts.join(" "))
            })
            .collect::<Vec<_>>();
        let shown: Vec<String> = shown.lines().skip(3).map(words).collect();
        assert!(printed.len() >= 6, "{printed:?}");
        assert_eq!(shown[..printed.len()], printed);
    }

    #[test]
    fn a_rule_that_kills_says_when_and_why_not_before_the_start() {
        let policy = |mode: &str| {
            format!(
                "[policy]\nname = \"k\"\nmode = {mode:?}\n[[rule]]\nid = \"r\"\non = [\"exec\", \"connect\", \"rename\"]\neffect = \"kill\"\nwhen = 'proc.exe.name == \"nc\"'\n"
            )
        };
        let file = policy("enforce");
        let found = rows(&policies(check_files([("k.toml", file.as_str())])));
        let modes = |rows: &[Value]| -> Vec<Value> {
            rows.iter()
                .map(|row| json!([row["effect"], row["effective"]]))
                .collect()
        };
        assert_eq!(
            modes(&found),
            [
                json!(["kill", "kill-before-start"]),
                json!(["kill", "kill-after"]),
                json!(["kill", "kill-late"])
            ]
        );
        assert_eq!(found[0]["reason"], "");
        assert_eq!(found[0]["conditions"][0]["judged"], "kernel");
        assert_eq!(found[1]["reason"], "");
        let of_rename = lines(&found[2]);
        let last: Vec<String> = cells(&of_rename[1])
            .iter()
            .map(|cell| cell.text().to_owned())
            .collect();
        assert_eq!(last[6], "(why)");
        assert!(
            last[7].starts_with("what the call names is the caller's word"),
            "{last:?}"
        );
        assert_eq!(last[..6].concat(), "");

        let file = policy("observe");
        let found = rows(&policies(check_files([("k.toml", file.as_str())])));
        assert_eq!(
            modes(&found),
            [
                json!(["kill", "alert"]),
                json!(["kill", "alert"]),
                json!(["kill", "alert"])
            ]
        );
        assert_eq!(found[0]["reason"], "observe: reports what would be killed");
    }

    #[test]
    fn a_row_for_each_kind_and_a_line_for_each_condition() {
        let rows = rows(&policies(check_files([("web.toml", POLICY)])));
        assert_eq!(
            rows[0].to_string(),
            r#"{"policy":"web","rule":"etc","kind":"open","cost":"narrow","cost_of_kind":"narrow","filter":"looser","effect":"alert","requested":"observe","effective":"alert","reason":"","conditions":[{"judged":"kernel","text":"proc.exe.name == \"vi\""},{"judged":"kernel, then agent","text":"proc.exe.path.glob(\"/usr/*/vi\")"}],"lists":[],"rungs":[{"rung":"fentry","effective":"alert","airtight":true,"why":"by the kernel's own object"},{"rung":"tracepoint","effective":"alert","airtight":false,"why":"by what is behind the descriptor at the end of the call: where others share the open files another one can have been put there, and the event says so"}]}"#
        );
        assert_eq!(rows[1]["cost"], "free");
        assert_eq!(rows[1]["filter"], Value::Null);
        assert_eq!(rows[2]["cost"], "every event of the kind");
        assert_eq!(rows[2]["conditions"], json!([]));
        assert_eq!(rows[2]["effective"], "record");
        assert_eq!(rows.len(), 3);
        let of: Vec<usize> = rows.iter().map(|row| lines(row).len()).collect();
        assert_eq!(of, [2, 2, 1]);
        assert!(
            rows.iter()
                .flat_map(lines)
                .all(|line| cells(&line).len() == TITLES.len())
        );
    }
}
