//! `policy plan`: what would become of each rule on each host, before it is rolled out; from what the hosts' agents have tried out on their kernels.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sumun_policy::doors::Doors;
use sumun_policy::verdict::VerdictPlan;
use sumun_policy::{CheckedPolicy, deny, report};
use sumun_proto::catalogue::kind_name;
use sumun_proto::v1::{Agent, Door, Kind, LoadedPolicy, LoadedRule};

use crate::args::{Output, PlanPolicies};
use crate::failure::Failure;
use crate::output::{Cells, Printer, Shown, Tone};
use crate::remote::Remote;
use crate::rows::text;
use crate::{agents, moment, policy};

/// What is said of a host that has not said what its kernel does.
const UNKNOWN: &str = "unknown";

/// Plans the files as if they took the place of everything that the hosts have loaded; fails when one is refused.
pub(crate) async fn print(
    mut remote: Remote,
    args: PlanPolicies,
    output: Output,
) -> Result<(), Failure> {
    let policies = policy::sound(&args.files)?;
    let wanted = args.host.unwrap_or_default();
    let agents = agents::fetch(&mut remote, wanted.clone(), false).await?;
    if agents.is_empty() && !wanted.is_empty() {
        return Err(agents::unknown(&wanted));
    }
    let titles = &[
        "RULE",
        "KIND",
        "EFFECT",
        "REQUESTED",
        "EFFECTIVE",
        "HOSTS",
        "REASON",
    ];
    let mut printer = Printer::new(output, titles, cells);
    let mut rows = Vec::new();
    for agent in &agents {
        rows.extend(of_host(&policies, agent, moment::now()));
    }
    let less = rows.iter().any(|row| row["less"] == true);
    if output == Output::Table {
        rows = together(&rows, agents.len());
    }
    for row in &rows {
        printer.row(&row.to_string())?;
    }
    printer.finish()?;
    match less && args.require_effective {
        true => Err(Failure::Said),
        false => Ok(()),
    }
}

/// A row for each rule and kind on a host. The keys are part of the documented output.
fn of_host(policies: &[CheckedPolicy], agent: &Agent, now_ns: i64) -> Vec<Value> {
    let host =
        json!({ "id": agent.id, "name": agent.name, "state": agent.state, "kernel": agent.kernel });
    let heard = !agent.doors.is_empty();
    let foreseen = match heard {
        true => foreseen(policies, &agent.doors, now_ns),
        // The kinds and effects are the same everywhere.
        false => report::policies(
            policies,
            (&Doors::foreseen(), &[]),
            |_| String::new(),
            |_| None,
        ),
    };
    let mut rows = Vec::new();
    for policy in &foreseen {
        let name = policy.policy.as_ref().map_or("", |policy| &policy.name);
        for rule in &policy.rules {
            for kind in &rule.kinds {
                let (effective, reason) = match heard {
                    true => (kind.mode.as_str(), kind.reason.as_str()),
                    false => (
                        UNKNOWN,
                        "the collector has not heard of it since it was started: what its kernel does is not known",
                    ),
                };
                rows.push(json!({
                    "host": host,
                    "policy": name,
                    "rule": rule.id,
                    "kind": kind_name(kind.kind()),
                    "effect": rule.effect,
                    "requested": policy.mode,
                    "effective": effective,
                    "reason": reason,
                    "less": is_less(policy, rule, effective),
                }));
            }
        }
    }
    rows
}

/// What an agent would report of these policies, on a host whose kinds are seen and denied like this.
fn foreseen(policies: &[CheckedPolicy], of_host: &[Door], now_ns: i64) -> Vec<LoadedPolicy> {
    let known = of_host.iter().filter(|door| !door.deny.is_empty());
    let known = known.map(|door| {
        let works = match door.deny.as_str() {
            "lsm" | "cgroup" => Ok(()),
            _ => Err(door.deny_reason.clone()),
        };
        (door.kind(), works)
    });
    let doors = Doors::of_host(known.collect());
    let (_, late) = VerdictPlan::build(policies, &doors, now_ns);
    let of_kind = |kind: Kind| of_host.iter().find(|door| door.kind() == kind);
    let blind = |kind| match of_kind(kind) {
        Some(door) => (door.rung == "none").then(|| door.reason.clone()),
        // An agent tells of every kind that it knows.
        None => Some(format!(
            "its agent does not know the kind {}: it is older than sumunctl",
            kind_name(kind)
        )),
    };
    let mut all = report::policies(policies, (&doors, &late), |_| String::new(), blind);
    let held = deny::plan(policies, &doors, &late);
    report::not_held(&mut all, &held, |_, kind| {
        let door = of_kind(kind)?;
        (door.deny == "none").then(|| door.deny_reason.clone())
    });
    all
}

/// Whether a rule does less than it asks for: nothing, an alert in place of what would stop it, or a kill that comes when it is done. In
/// observe nothing is to be stopped.
fn is_less(policy: &LoadedPolicy, rule: &LoadedRule, effective: &str) -> bool {
    match effective {
        UNKNOWN | "none" => true,
        "alert" | "kill-late" => {
            policy.mode == "enforce" && !matches!(rule.effect.as_str(), "alert" | "record")
        }
        _ => false,
    }
}

/// Rows of all hosts, those that say the same as one, with how many hosts it is about and the names of some.
fn together(rows: &[Value], hosts: usize) -> Vec<Value> {
    let mut order = Vec::new();
    let mut same: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in rows {
        let mut said = row.clone();
        let name = row["host"]["name"].as_str().unwrap_or_default().to_owned();
        said["host"] = Value::Null;
        let key = said.to_string();
        let names = same.entry(key.clone()).or_default();
        if names.is_empty() {
            order.push((key, said));
        }
        names.push(name);
    }
    order.sort_by_key(|(_, said)| place(rows, said));
    order
        .into_iter()
        .map(|(key, mut said)| {
            let names = same.remove(&key).unwrap_or_default();
            said["hosts"] = match names.len() {
                all if all == hosts => format!("all {hosts}"),
                some => format!("{some} of {hosts}: {}", some_of(&names)),
            }
            .into();
            said
        })
        .collect()
}

/// Where the rule and kind of a row stand among all: rows of one rule are beside each other.
fn place(rows: &[Value], said: &Value) -> usize {
    let same = |row: &Value| {
        ["policy", "rule", "kind"]
            .iter()
            .all(|key| row[key] == said[key])
    };
    rows.iter().position(same).unwrap_or(rows.len())
}

/// Names that a cell holds.
const NAMED_MAX: usize = 5;

fn some_of(names: &[String]) -> String {
    let named = names[..names.len().min(NAMED_MAX)].join(", ");
    match names.len().saturating_sub(NAMED_MAX) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

fn cells(row: &Value) -> Cells {
    let effective = text(row, "effective");
    let tone = match row["less"] == true {
        true => Tone::Bad,
        false => Tone::Plain,
    };
    vec![
        Shown::new(format!("{}/{}", text(row, "policy"), text(row, "rule"))),
        Shown::new(text(row, "kind")),
        Shown::new(text(row, "effect")),
        Shown::new(text(row, "requested")),
        Shown::toned(effective, tone),
        Shown::new(text(row, "hosts")),
        Shown::new(text(row, "reason")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use sumun_policy::check_files;

    const POLICY: &str = r#"
[policy]
name = "gate"
version = 1
mode = "enforce"

[[rule]]
id = "no-metadata"
on = ["connect"]
when = 'net.dst.ip == "169.254.169.254"'
effect = "deny"

[[rule]]
id = "shadow"
on = ["open"]
when = 'file.path == "/etc/shadow"'
effect = "deny"

[[rule]]
id = "modules"
on = ["module_load"]
when = 'file.path.startsWith("/tmp/")'
effect = "deny"

[[rule]]
id = "shell"
on = ["exec"]
when = 'proc.exe.name == "sh"'
effect = "kill"

[[rule]]
id = "reverse"
on = ["exec"]
when = 'proc.args[0] == "nc"'
effect = "kill"
"#;

    fn door(kind: Kind, rung: &str, deny: &str, why: &str) -> Door {
        Door {
            kind: kind.into(),
            rung: rung.into(),
            reason: match rung {
                "none" => why.into(),
                _ => String::new(),
            },
            deny: deny.into(),
            deny_reason: why.into(),
        }
    }

    fn agent(name: &str, doors: Vec<Door>) -> Agent {
        Agent {
            name: name.into(),
            doors,
            ..Agent::default()
        }
    }

    fn modes(rows: &[Value]) -> Vec<(&str, &str, bool)> {
        rows.iter()
            .map(|row| {
                (
                    text(row, "rule"),
                    text(row, "effective"),
                    row["less"] == true,
                )
            })
            .collect()
    }

    #[test]
    fn each_host_is_foreseen_by_what_its_kernel_does() {
        let checks = check_files([("p.toml", POLICY)]);
        let policies = [checks[0].policy.clone().expect("a policy")];
        let modern = agent(
            "modern",
            vec![
                door(Kind::Exec, "tracepoint", "lsm", ""),
                door(Kind::Open, "tracepoint", "lsm", ""),
                door(Kind::Connect, "tracepoint", "cgroup", ""),
                door(Kind::ModuleLoad, "tracepoint", "lsm", ""),
            ],
        );
        let rows = of_host(&policies, &modern, 0);
        assert_eq!(
            modes(&rows),
            [
                ("no-metadata", "deny", false),
                ("shadow", "deny", false),
                ("modules", "deny", false),
                ("shell", "kill-before-start", false),
                // Only the agent can judge arguments.
                ("reverse", "kill-late", true),
            ]
        );
        let old = agent(
            "old",
            vec![
                door(Kind::Exec, "none", "none", "no such hook"),
                door(
                    Kind::Open,
                    "tracepoint",
                    "fanotify",
                    "lsm: no bpf in the list",
                ),
                door(Kind::Connect, "tracepoint", "none", "cgroup: out of reach"),
                door(
                    Kind::ModuleLoad,
                    "tracepoint",
                    "none",
                    "lsm: no bpf in the list",
                ),
            ],
        );
        let lesser = of_host(&policies, &old, 0);
        assert_eq!(
            modes(&lesser),
            [
                ("no-metadata", "alert", true),
                ("shadow", "deny-via-agent", false),
                ("modules", "alert", true),
                ("shell", "none", true),
                ("reverse", "none", true),
            ]
        );
        assert!(text(&lesser[0], "reason").contains("cgroup: out of reach"));
        assert_eq!(text(&lesser[3], "reason"), "no such hook");
        let none = agent(
            "new",
            vec![door(Kind::Open, "tracepoint", "none", "no fanotify")],
        );
        let rows_of_none = of_host(&policies, &none, 0);
        assert_eq!(modes(&rows_of_none)[1], ("shadow", "alert", true));
        // A kind that it says nothing of is not seen.
        assert_eq!(modes(&rows_of_none)[2], ("modules", "none", true));
        assert!(text(&rows_of_none[2], "reason").contains("does not know the kind module_load"));
        let silent = of_host(&policies, &agent("silent", Vec::new()), 0);
        assert!(silent.iter().all(|row| text(row, "effective") == "unknown"));

        let mut all = rows;
        all.extend(lesser);
        let shown = together(&all, 2);
        let of = |rule: &str| -> Vec<(String, String)> {
            let rows = shown.iter().filter(|row| text(row, "rule") == rule);
            rows.map(|row| (text(row, "effective").into(), text(row, "hosts").into()))
                .collect()
        };
        let pair = |mode: &str, hosts: &str| (mode.to_owned(), hosts.to_owned());
        assert_eq!(
            of("shell"),
            [
                pair("kill-before-start", "1 of 2: modern"),
                pair("none", "1 of 2: old"),
            ]
        );
        let same = together(&of_host(&policies, &modern, 0), 1);
        assert_eq!(text(&same[0], "hosts"), "all 1");
    }
}
