//! `policy list`: what each host has loaded, as it last said.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sumun_policy::report;
use sumun_proto::v1::{Agent, LoadedPolicies};

use crate::agents;
use crate::args::{ListPolicies, Output};
use crate::failure::Failure;
use crate::moment;
use crate::output::{Cells, Printer, Shown, Tone};
use crate::remote::Remote;
use crate::rows::{at, integer, text};

/// Hexadecimal digits of a hash in a table.
const HASH_SHOWN: usize = 12;

/// Lists the policies of all hosts, or of one.
pub(crate) async fn list(
    mut remote: Remote,
    args: ListPolicies,
    output: Output,
) -> Result<(), Failure> {
    let wanted = args.host.unwrap_or_default();
    let agents = agents::fetch(&mut remote, wanted.clone(), false).await?;
    if agents.is_empty() && !wanted.is_empty() {
        return Err(agents::unknown(&wanted));
    }
    let mut printer = Printer::new(
        output,
        &[
            "HOST",
            "STATE",
            "POLICY",
            "VERSION",
            "REQUESTED",
            "RULES",
            "EFFECTIVE",
            "HASH",
            "FAULT",
        ],
        cells,
    );
    // One by one: each answer is bounded, however many hosts there are.
    for agent in agents {
        for agent in agents::fetch(&mut remote, agent.id, true).await? {
            for row in rows(&agent, moment::now()) {
                printer.row(&row.to_string())?;
            }
        }
    }
    printer.finish()
}

/// A row for each policy and each faulty file of a host, or one that says that there is none. The keys
/// are part of the documented output.
fn rows(agent: &Agent, now_ns: i64) -> Vec<Value> {
    let host = json!({ "id": agent.id, "name": agent.name, "state": agent.state });
    let empty = LoadedPolicies::default();
    let loaded = agent.policies.as_ref().unwrap_or(&empty);
    let loaded_at = moment::rfc3339(loaded.loaded_ns);
    let policies = loaded
        .policies
        .iter()
        .map(|policy| report::policy_json(policy, now_ns));
    let mut rows: Vec<Value> = policies.chain(report::refused_json(loaded)).collect();
    if rows.is_empty() {
        let error = agent.policies.is_none().then_some("it has not said yet");
        rows.push(json!({ "name": null, "error": error }));
    }
    for row in &mut rows {
        row["host"] = host.clone();
        row["loaded"] = loaded_at.clone().into();
    }
    rows
}

fn cells(row: &Value) -> Cells {
    let fault = text(row, "error");
    let mut modes: BTreeMap<&str, usize> = BTreeMap::new();
    for rule in at(row, "modes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        *modes.entry(text(rule, "effective")).or_default() += 1;
    }
    let less = modes.contains_key("none") || modes.contains_key("pending");
    let effective: Vec<String> = modes
        .iter()
        .map(|(mode, count)| format!("{count} {mode}"))
        .collect();
    let name = match (text(row, "name"), text(row, "file")) {
        ("", file) => file,
        (name, _) => name,
    };
    let number =
        |key: &str| integer(row, key).map_or_else(String::new, |number| number.to_string());
    let hash: String = text(row, "hash").chars().take(HASH_SHOWN).collect();
    vec![
        Shown::new(text(row, "host.name")),
        Shown::new(text(row, "host.state")),
        Shown::new(name),
        Shown::new(number("version")),
        Shown::new(text(row, "mode")),
        Shown::new(number("rules")),
        Shown::toned(
            effective.join(", "),
            if less { Tone::Warning } else { Tone::Plain },
        ),
        Shown::new(hash),
        Shown::toned(fault.lines().next().unwrap_or_default(), Tone::Bad),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use sumun_proto::v1::{LoadedPolicy, PolicyRef, RefusedPolicy};

    #[test]
    fn a_host_has_a_row_for_each_policy_and_each_faulty_file() {
        let agent = Agent {
            id: "u".into(),
            name: "web1".into(),
            state: "online".into(),
            policies: Some(LoadedPolicies {
                loaded_ns: 1_000_000_000,
                policies: vec![LoadedPolicy {
                    policy: Some(PolicyRef {
                        name: "web".into(),
                        version: 3,
                        sha256: "abc".into(),
                    }),
                    mode: "observe".into(),
                    ..LoadedPolicy::default()
                }],
                refused: vec![RefusedPolicy {
                    file: "bad.toml".into(),
                    error: "bad.toml:1:2: wrong".into(),
                    kept: "bad".into(),
                }],
                ..LoadedPolicies::default()
            }),
            ..Agent::default()
        };
        let rows = rows(&agent, 0);
        assert_eq!(rows.len(), 2);
        for row in &rows {
            assert_eq!(row["host"]["name"], "web1");
            assert_eq!(row["loaded"], "1970-01-01T00:00:01Z");
        }
        assert_eq!(
            (&rows[0]["name"], &rows[0]["hash"]),
            (&json!("web"), &json!("abc"))
        );
        assert_eq!(
            (&rows[1]["kept"], &rows[1]["file"]),
            (&json!("bad"), &json!("bad.toml"))
        );
        let silent = super::rows(&Agent::default(), 0);
        assert_eq!(silent.len(), 1);
        assert_eq!(silent[0]["error"], "it has not said yet");
    }
}
