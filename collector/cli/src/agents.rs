//! `agents list` and `agents show`.

use std::io::Write as _;

use serde_json::{Value, json};
use sumun_policy::report;
use sumun_proto::v1::{Agent, AgentsRequest};

use crate::args::{Output, ShowAgent};
use crate::failure::Failure;
use crate::moment::{self, millis, rfc3339};
use crate::output::{Cells, Printer, Shown, Tone};
use crate::remote::Remote;
use crate::rows::{at, integer, safe, text, truth};

/// Lists all agents.
pub(crate) async fn list(mut remote: Remote, output: Output) -> Result<(), Failure> {
    let agents = fetch(&mut remote, String::new(), false).await?;
    let mut printer = Printer::new(
        output,
        &[
            "NAME",
            "STATE",
            "REASON",
            "LAST SEEN",
            "SPOOLED",
            "VERSION",
            "KERNEL",
            "ID",
        ],
        cells,
    );
    for agent in &agents {
        printer.row(&row(agent).to_string())?;
    }
    printer.finish()
}

/// Shows one agent.
pub(crate) async fn show(
    mut remote: Remote,
    args: ShowAgent,
    output: Output,
) -> Result<(), Failure> {
    let agents = fetch(&mut remote, args.host.clone(), true).await?;
    if agents.is_empty() {
        return Err(unknown(&args.host));
    }
    if output != Output::Table {
        let mut printer = Printer::new(output, &[], cells);
        for agent in &agents {
            printer.row(&row(agent).to_string())?;
        }
        return printer.finish();
    }
    let mut out = std::io::stdout().lock();
    for agent in &agents {
        out.write_all(page(&row(agent)).as_bytes())?;
    }
    Ok(out.flush()?)
}

/// The agents with this id or name, or all; with their policies if asked for.
pub(crate) async fn fetch(
    remote: &mut Remote,
    host: String,
    policies: bool,
) -> Result<Vec<Agent>, Failure> {
    let request = AgentsRequest { host, policies };
    let reply = remote.query.agents(request).await?;
    Ok(reply.into_inner().agents)
}

/// No agent is called so.
pub(crate) fn unknown(host: &str) -> Failure {
    Failure::message_only(format!(
        "no agent has the id or name {host:?}; `sumunctl agents list` shows them"
    ))
}

/// An agent as JSON; the keys are part of the documented output.
fn row(agent: &Agent) -> Value {
    let mut row = json!({
        "id": agent.id,
        "name": agent.name,
        "state": agent.state,
        "reason": agent.reason,
        "version": agent.version,
        "kernel": agent.kernel,
        "enrolled": rfc3339(agent.enrolled_ns),
        "last_seen": rfc3339(agent.last_seen_ns),
        "certificate_expires": rfc3339(agent.certificate_expires_ns),
        "lanes": agent.lanes.iter().map(|lane| json!({
            "lane": lane.lane,
            "through": rfc3339(lane.through_ns),
            "spooled_batches": lane.spooled_batches,
            "spooled_bytes": lane.spooled_bytes,
            "spooled_events": lane.spooled_events,
        })).collect::<Vec<_>>(),
        "losses": agent.losses.iter().map(|loss| json!({
            "ring": loss.ring,
            "cpu": loss.cpu,
            "level": loss.level,
            "reason": loss.reason,
            "count": loss.count,
        })).collect::<Vec<_>>(),
        "doors": agent.doors.iter().map(|door| json!({
            "kind": sumun_proto::catalogue::kind_name(door.kind()),
            "rung": door.rung,
            "reason": door.reason,
            "deny": door.deny,
            "deny_reason": door.deny_reason,
        })).collect::<Vec<_>>(),
        "trouble": agent.trouble,
        "isolation": agent.isolation.as_ref().map(report::isolation_json),
    });
    // Not in the list of all: they may be long.
    if let Some(loaded) = &agent.policies {
        row["policies"] = loaded
            .policies
            .iter()
            .map(|policy| report::policy_json(policy, moment::now()))
            .collect();
        row["policies_loaded"] = rfc3339(loaded.loaded_ns).into();
        row["policy_hash"] = loaded.hash.as_str().into();
        row["policy_errors"] = report::refused_json(loaded).into();
        row["policy_rules_left_out"] = loaded.left_out.into();
    }
    row
}

fn list_of<'a>(row: &'a Value, name: &str) -> &'a [Value] {
    at(row, name)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn cells(row: &Value) -> Cells {
    let state = text(row, "state");
    let tone = if state == "online" {
        Tone::Good
    } else {
        Tone::Bad
    };
    let spooled: i128 = list_of(row, "lanes")
        .iter()
        .filter_map(|lane| integer(lane, "spooled_events"))
        .sum();
    let isolated = match text(row, "isolation.rule") {
        "" => String::new(),
        rule => format!(
            "isolated since {} for {rule}",
            millis(text(row, "isolation.since"))
        ),
    };
    let reason = [text(row, "reason"), &isolated, text(row, "trouble")];
    let reason = reason.into_iter().filter(|part| !part.is_empty());
    let reason = reason.collect::<Vec<_>>().join(" ");
    vec![
        Shown::new(text(row, "name")),
        Shown::toned(state, tone),
        Shown::new(reason),
        Shown::new(millis(text(row, "last_seen"))),
        Shown::new(spooled.to_string()),
        Shown::new(text(row, "version")),
        Shown::new(text(row, "kernel")),
        Shown::new(text(row, "id")),
    ]
}

fn page(row: &Value) -> String {
    let mut page = String::new();
    for key in [
        "name",
        "id",
        "state",
        "reason",
        "trouble",
        "version",
        "kernel",
        "enrolled",
        "last_seen",
        "certificate_expires",
    ] {
        let value = text(row, key);
        if !value.is_empty() {
            page.push_str(&format!("{key:<20} {}\n", safe(value)));
        }
    }
    if let Some(now) = at(row, "isolation").filter(|now| now.is_object()) {
        page.push('\n');
        for line in report::isolation_text(now).lines() {
            page.push_str(&format!("{}\n", safe(line)));
        }
    }
    page.push_str("\nlanes\n");
    for lane in list_of(row, "lanes") {
        page.push_str(&format!(
            "  {:<6} complete to {}, spooled {} events in {} batches, {} bytes\n",
            safe(text(lane, "lane")),
            at(lane, "through").and_then(Value::as_str).unwrap_or("?"),
            integer(lane, "spooled_events").unwrap_or(0),
            integer(lane, "spooled_batches").unwrap_or(0),
            integer(lane, "spooled_bytes").unwrap_or(0),
        ));
    }
    page.push_str("\nhooks\n");
    for door in list_of(row, "doors") {
        page.push_str(&format!(
            "  {:<12} {:<12} {}\n",
            text(door, "kind"),
            safe(text(door, "rung")),
            safe(text(door, "reason"))
        ));
    }
    page.push_str("\ndeny\n");
    for door in list_of(row, "doors") {
        if !text(door, "deny").is_empty() {
            page.push_str(&format!(
                "  {:<12} {:<12} {}\n",
                text(door, "kind"),
                safe(text(door, "deny")),
                safe(text(door, "deny_reason"))
            ));
        }
    }
    if at(row, "policies").is_some() {
        page.push_str("\npolicies\n");
        policies(row, &mut page);
    }
    let losses = list_of(row, "losses");
    if !losses.is_empty() {
        page.push_str("\nlost in the kernel since it was attached\n");
        for loss in losses {
            page.push_str(&format!(
                "  ring {} cpu {} level {}: {} {}\n",
                integer(loss, "ring").unwrap_or(0),
                integer(loss, "cpu").unwrap_or(0),
                integer(loss, "level").unwrap_or(0),
                integer(loss, "count").unwrap_or(0),
                safe(text(loss, "reason"))
            ));
        }
    }
    page
}

fn policies(row: &Value, page: &mut String) {
    for policy in list_of(row, "policies") {
        page.push_str(&format!(
            "  {} version {}, {}, {} rules, {}\n    sha256 {}\n",
            safe(text(policy, "name")),
            integer(policy, "version").unwrap_or(0),
            safe(text(policy, "mode")),
            integer(policy, "rules").unwrap_or(0),
            safe(text(policy, "file")),
            safe(text(policy, "hash")),
        ));
        page.push_str(&format!(
            "    {:<24} {:<8} {:<10} {:<18} {}\n",
            "RULE", "EFFECT", "REQUESTED", "EFFECTIVE", "REASON"
        ));
        for rule in list_of(policy, "modes") {
            page.push_str(&format!(
                "    {:<24} {:<8} {:<10} {:<18} {}\n",
                safe(text(rule, "rule")),
                safe(text(rule, "effect")),
                safe(text(rule, "requested")),
                safe(text(rule, "effective")),
                safe(text(rule, "reason")),
            ));
            for exception in list_of(rule, "exceptions") {
                let end = match (text(exception, "expires"), truth(exception, "expired")) {
                    ("", _) => "does not expire".to_owned(),
                    (end, true) => format!("expired {}", safe(end)),
                    (end, false) => format!("expires {}", safe(end)),
                };
                page.push_str(&format!(
                    "      except {}, of {}, {end}\n",
                    safe(text(exception, "name")),
                    safe(text(exception, "owner")),
                ));
            }
        }
    }
    for refused in list_of(row, "policy_errors") {
        let what = match text(refused, "kept") {
            "" => "is not loaded".to_owned(),
            name => format!("has faults, {} stays as it was", safe(name)),
        };
        page.push_str(&format!("  {} {what}\n", safe(text(refused, "file"))));
        for line in text(refused, "error").lines() {
            page.push_str(&format!("    {}\n", safe(line)));
        }
    }
    match integer(row, "policy_rules_left_out") {
        None | Some(0) => {}
        Some(count) => page.push_str(&format!("  and {count} more that did not fit\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sumun_proto::v1::{
        AgentLane, Door, EffectiveMode, Kind, LoadedException, LoadedPolicies, LoadedPolicy,
        LoadedRule, PolicyRef, RefusedPolicy,
    };

    #[test]
    fn an_agent_is_stable_json() {
        let agent = Agent {
            id: "u".into(),
            name: "web1".into(),
            state: "online".into(),
            last_seen_ns: 1_000_000_000,
            lanes: vec![AgentLane {
                lane: "life".into(),
                through_ns: 0,
                spooled_events: 3,
                ..AgentLane::default()
            }],
            doors: vec![Door {
                kind: Kind::Exec.into(),
                rung: "tracepoint".into(),
                reason: "no bpf in the LSM list".into(),
                deny: "fanotify".into(),
                deny_reason: "no bpf in the LSM list".into(),
            }],
            ..Agent::default()
        };
        let row = row(&agent);
        assert_eq!(
            row.to_string(),
            r#"{"id":"u","name":"web1","state":"online","reason":"","version":"","kernel":"","enrolled":null,"last_seen":"1970-01-01T00:00:01Z","certificate_expires":null,"lanes":[{"lane":"life","through":null,"spooled_batches":0,"spooled_bytes":0,"spooled_events":3}],"losses":[],"doors":[{"kind":"exec","rung":"tracepoint","reason":"no bpf in the LSM list","deny":"fanotify","deny_reason":"no bpf in the LSM list"}],"trouble":"","isolation":null}"#
        );
        assert!(page(&row).contains("exec         tracepoint   no bpf in the LSM list"));
    }

    #[test]
    fn an_agent_shows_what_of_its_policies_works() {
        let agent = Agent {
            policies: Some(LoadedPolicies {
                hash: "all".into(),
                policies: vec![LoadedPolicy {
                    policy: Some(PolicyRef {
                        name: "web".into(),
                        version: 3,
                        sha256: "abc".into(),
                    }),
                    mode: "enforce".into(),
                    rules: vec![LoadedRule {
                        id: "shell\u{1b}".into(),
                        effect: "alert".into(),
                        kinds: vec![EffectiveMode {
                            kind: Kind::Exec.into(),
                            mode: "none".into(),
                            reason: "no such hook".into(),
                        }],
                        exceptions: vec![LoadedException {
                            name: "old".into(),
                            owner: "ops".into(),
                            expires_ns: 1_000_000_000,
                        }],
                    }],
                    ..LoadedPolicy::default()
                }],
                refused: vec![RefusedPolicy {
                    file: "bad.toml".into(),
                    error: "bad.toml:1:2: wrong".into(),
                    kept: String::new(),
                }],
                left_out: 7,
                ..LoadedPolicies::default()
            }),
            ..Agent::default()
        };
        let row = row(&agent);
        assert_eq!(row["policies"][0]["modes"][0]["effective"], "none");
        let page = page(&row);
        for wanted in [
            "  web version 3, enforce, 1 rules, \n    sha256 abc\n",
            "    shell\\u{1b}              alert    enforce    none               no such hook\n",
            "      except old, of ops, expired 1970-01-01T00:00:01Z\n",
            "  bad.toml is not loaded\n    bad.toml:1:2: wrong\n",
            "  and 7 more that did not fit\n",
        ] {
            assert!(page.contains(wanted), "{wanted:?} is not in\n{page}");
        }
    }
}
