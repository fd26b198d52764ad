//! The status as JSON, and as a page for people.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use serde_json::{Value, json};
use sumun_policy::report;
use sumun_proto::catalogue::{kind_name, lane_name};
use sumun_proto::view::boot_id_text;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Connection, LANES, Status, locked};
use crate::integrity::Standing;
use crate::pipeline::policies;

/// Bytes of memory of this process: proportional and resident set size.
fn memory() -> (Option<u64>, Option<u64>) {
    // proc_pid_smaps(5): "Pss: N kB" lines, summed by the kernel.
    let Ok(text) = std::fs::read_to_string("/proc/self/smaps_rollup") else {
        return (None, None);
    };
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kilobytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some(kilobytes * 1024)
    };
    (field("Pss:"), field("Rss:"))
}

fn rfc3339(time: OffsetDateTime) -> Option<String> {
    time.format(&Rfc3339).ok()
}

fn seconds(unix: i64) -> Option<String> {
    (unix != 0)
        .then(|| OffsetDateTime::from_unix_timestamp(unix).ok())
        .flatten()
        .and_then(rfc3339)
}

/// The status as JSON; the keys are part of the documented output.
pub(super) fn json(status: &Status) -> Value {
    let parts = status.parts();
    let (pss, rss) = memory();
    let lanes: Vec<Value> = LANES
        .iter()
        .zip(status.lanes())
        .map(|(lane, progress)| {
            json!({
                "lane": lane_name(*lane),
                "through_boot_ns": progress.through_boot_ns.to_string(),
                "epoch": format!("{:016x}", progress.epoch),
                "number": progress.number,
                "spooled_batches": progress.spooled_batches,
                "spooled_bytes": progress.spooled_bytes,
                "spooled_events": progress.spooled_events,
                "disk_bytes": progress.disk_bytes,
                "dropped_events": progress.dropped_events,
            })
        })
        .collect();
    let reason = match &parts.connection {
        Connection::Away { reason } => reason.as_str(),
        _ => "",
    };
    let now_ns = policies::wall_ns();
    let counters = &status.counters;
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "state": parts.phase.name(),
        "started": rfc3339(OffsetDateTime::from(status.started())),
        "uptime_seconds": SystemTime::now()
            .duration_since(status.started())
            .map_or(0, |up| up.as_secs()),
        "agent_id": status.run.agent_id,
        "tenant": status.run.tenant,
        "host": status.run.host_name,
        "kernel": status.run.kernel,
        "boot_id": boot_id_text(&status.run.boot_id),
        "attached": status.progress.attached(),
        "bootstrapped": status.progress.bootstrapped(),
        "trouble": status.trouble_text(),
        "hooks": parts.doors.iter().map(|door| json!({
            "kind": kind_name(door.kind()),
            "rung": door.rung,
            "reason": door.reason,
            "deny": door.deny,
            "deny_reason": door.deny_reason,
        })).collect::<Vec<_>>(),
        "kills": parts.kills,
        "lanes": lanes,
        "isolation": parts.isolation.as_ref().map(report::isolation_json),
        "integrity": integrity(&parts.integrity),
        "losses": status.progress.losses().iter().map(|loss| json!({
            "ring": loss.ring,
            "cpu": loss.cpu,
            "level": loss.level,
            "reason": loss.reason,
            "count": loss.count,
        })).collect::<Vec<_>>(),
        "policies": parts.policies.policies.iter()
            .map(|policy| report::policy_json(policy, now_ns))
            .collect::<Vec<_>>(),
        "policies_loaded": seconds(parts.policies.loaded_ns / 1_000_000_000),
        "policy_hash": parts.policies.hash,
        "policy_errors": report::refused_json(&parts.policies),
        "policy_rules_left_out": parts.policies.left_out,
        "expired_exceptions": report::expired(&parts.policies, now_ns),
        "collector": {
            "address": status.run.collector,
            "state": parts.connection.name(),
            "reason": reason,
            "certificate_expires": seconds(parts.certificate_expires),
            "connects": count(&counters.connects),
            "sent_batches": count(&counters.sent_batches),
            "acked_batches": count(&counters.acked_batches),
            "rejected_batches": count(&counters.rejected_batches),
        },
        "counters": {
            "records": count(&counters.records),
            "undecodable": count(&counters.undecodable),
            "events": count(&counters.events),
            "alerts": count(&counters.alerts),
            "excepted": count(&counters.excepted),
            "folded": count(&counters.folded),
            "runtime_known": count(&counters.runtime_known),
            "runtime_unknown": count(&counters.runtime_unknown),
            "runtime_failed": count(&counters.runtime_failed),
            "runtime_refused": count(&counters.runtime_refused),
            "runtime_dropped": count(&counters.runtime_dropped),
            "cgroups_left_out": count(&counters.cgroups_left_out),
            "events_without_workload": count(&counters.cgroups_unknown),
            "gaps": count(&counters.gaps),
        },
        "workloads": {
            "pending": count(&counters.workloads_pending),
            "named": count(&counters.workloads_named),
            "named_ms": count(&counters.workloads_named_ms),
            "longest_ms": count(&counters.workloads_named_longest_ms),
            "cgroups_told": count(&counters.scopes),
            "cgroups_without_room": count(&counters.scopes_left_out),
            "troubles": *locked(&counters.identity_troubles),
        },
        "deny": {
            "held": count(&counters.held_calls),
            "denied": counters.denials.iter().map(|of_mode| count(&of_mode[0])).sum::<u64>(),
            "overflows": count(&counters.held_overflows),
            "restarts": count(&counters.holder_restarts),
        },
        "memory": { "pss_bytes": pss, "rss_bytes": rss },
        "metrics": parts.metrics,
    })
}

/// What was found that the kernel does not show.
fn integrity(standing: &Standing) -> Value {
    let report = &standing.report;
    json!({
        "every_seconds": standing.every.map(|every| every.as_secs()),
        "asked": standing.asked,
        "looked": seconds(standing.looked_ns / 1_000_000_000),
        "took_ms": u64::try_from(report.took.as_millis()).unwrap_or(u64::MAX),
        "findings": report.findings.iter().map(|finding| json!({
            "check": finding.check.name(),
            "object": finding.object,
            "detail": finding.detail,
        })).collect::<Vec<_>>(),
        "more": report.more,
        "blind": report.blind.iter().chain(&report.partly).map(|(check, reason)| json!({
            "check": check.name(),
            "reason": reason,
        })).collect::<Vec<_>>(),
    })
}

/// The same for people.
fn integrity_text(integrity: &Value) -> String {
    let word = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let mut page = String::from("\nintegrity\n");
    // Writing to a String cannot fail.
    let _ = match (&integrity["every_seconds"], &integrity["asked"]) {
        (Value::Null, _) => writeln!(page, "  off in agent.toml"),
        (_, Value::Bool(false)) => writeln!(page, "  no rule asks for it"),
        (every, _) => writeln!(
            page,
            "  every {every} s; last {}, which took {} ms",
            integrity["looked"].as_str().unwrap_or("not yet"),
            integrity["took_ms"]
        ),
    };
    for finding in integrity["findings"].as_array().into_iter().flatten() {
        let [check, object, detail] = ["check", "object", "detail"].map(|key| word(&finding[key]));
        let _ = writeln!(page, "  FOUND {check} {object}: {detail}");
    }
    if integrity["more"].as_u64().is_some_and(|more| more > 0) {
        let _ = writeln!(page, "  FOUND {} more", integrity["more"]);
    }
    for blind in integrity["blind"].as_array().into_iter().flatten() {
        let [check, reason] = ["check", "reason"].map(|key| word(&blind[key]));
        let _ = writeln!(page, "  cannot look at {check}: {reason}");
    }
    page
}

/// A status as a page for people.
#[must_use]
pub fn text(status: &Value) -> String {
    let mut page = String::new();
    let word = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "?".to_owned(),
        other => other.to_string(),
    };
    let rows = |key: &str| status[key].as_array().cloned().unwrap_or_default();
    // Writing to a String cannot fail.
    for (name, value) in [
        ("state", &status["state"]),
        ("version", &status["version"]),
        ("pid", &status["pid"]),
        ("since", &status["started"]),
        ("agent", &status["agent_id"]),
        ("tenant", &status["tenant"]),
        ("trouble", &status["trouble"]),
        ("collector", &status["collector"]["address"]),
        ("  state", &status["collector"]["state"]),
        ("  reason", &status["collector"]["reason"]),
        ("  certificate", &status["collector"]["certificate_expires"]),
        ("metrics", &status["metrics"]),
    ] {
        let value = word(value);
        if !value.is_empty() {
            let _ = writeln!(page, "{name:<14} {value}");
        }
    }
    if let Some(bytes) = status["memory"]["pss_bytes"].as_u64() {
        let _ = writeln!(page, "{:<14} {} MiB", "memory", bytes.div_ceil(1 << 20));
    }
    if !status["isolation"].is_null() {
        let _ = writeln!(page, "\n{}", report::isolation_text(&status["isolation"]));
    }
    page.push_str("\nhooks\n");
    for hook in rows("hooks") {
        let _ = writeln!(
            page,
            "  {:<12} {:<12} {}",
            word(&hook["kind"]),
            word(&hook["rung"]),
            word(&hook["reason"])
        );
    }
    page.push_str("\ndeny\n");
    for hook in rows("hooks") {
        if !word(&hook["deny"]).is_empty() {
            let _ = writeln!(
                page,
                "  {:<12} {:<12} {}",
                word(&hook["kind"]),
                word(&hook["deny"]),
                word(&hook["deny_reason"])
            );
        }
    }
    for kill in rows("kills") {
        let works = match (kill["available"].as_bool(), kill["reason"].as_str()) {
            (Some(true), None) => "tried at the start, and works".to_owned(),
            (Some(true), Some(reason)) => reason.to_owned(),
            (_, reason) => format!(
                "NOT: rules that kill are carried out late: {}",
                reason.unwrap_or_default()
            ),
        };
        let _ = writeln!(page, "  {:<18} {works}", word(&kill["mode"]));
    }
    page.push_str(&integrity_text(&status["integrity"]));
    let workloads = &status["workloads"];
    let _ = writeln!(
        page,
        "\nworkloads\n  {} pending; {} named, within {} ms at most; {} cgroups told to the kernel, {} without room",
        word(&workloads["pending"]),
        word(&workloads["named"]),
        word(&workloads["longest_ms"]),
        word(&workloads["cgroups_told"]),
        word(&workloads["cgroups_without_room"]),
    );
    for (who, why) in workloads["troubles"].as_object().into_iter().flatten() {
        let _ = writeln!(page, "  not told by {who}: {}", word(why));
    }
    page.push_str("\nlanes\n");
    for lane in rows("lanes") {
        let _ = writeln!(
            page,
            "  {:<6} batch {}, spooled {} events in {} batches, {} bytes on disk, {} events given up",
            word(&lane["lane"]),
            word(&lane["number"]),
            word(&lane["spooled_events"]),
            word(&lane["spooled_batches"]),
            word(&lane["disk_bytes"]),
            word(&lane["dropped_events"])
        );
    }
    page.push_str("\npolicies\n");
    for policy in rows("policies") {
        let _ = writeln!(
            page,
            "  {} version {}, {}, {} rules, {}\n    sha256 {}",
            word(&policy["name"]),
            word(&policy["version"]),
            word(&policy["mode"]),
            word(&policy["rules"]),
            word(&policy["file"]),
            word(&policy["hash"]),
        );
        for rule in policy["modes"].as_array().into_iter().flatten() {
            let _ = writeln!(
                page,
                "    {:<24} {:<8} {:<18} {}",
                word(&rule["rule"]),
                word(&rule["effect"]),
                word(&rule["effective"]),
                word(&rule["reason"]),
            );
            for exception in rule["exceptions"].as_array().into_iter().flatten() {
                if exception["expired"] == true {
                    let _ = writeln!(
                        page,
                        "      the exception {:?} of {} has expired",
                        word(&exception["name"]),
                        word(&exception["owner"])
                    );
                }
            }
        }
    }
    for refused in rows("policy_errors") {
        let what = match refused["kept"].as_str() {
            Some(name) => format!("has faults, {name} stays as it was"),
            None => "is not loaded".to_owned(),
        };
        let _ = writeln!(
            page,
            "  {} {what}:\n    {}",
            word(&refused["file"]),
            word(&refused["error"]).replace('\n', "\n    ")
        );
    }
    let losses = rows("losses");
    if !losses.is_empty() {
        page.push_str("\nlost in the kernel\n");
    }
    for loss in losses {
        let _ = writeln!(
            page,
            "  ring {} cpu {} level {}: {} {}",
            word(&loss["ring"]),
            word(&loss["cpu"]),
            word(&loss["level"]),
            word(&loss["count"]),
            word(&loss["reason"])
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::KillStatus;
    use crate::status::Run;
    use sumun_proto::v1::{
        Door, EffectiveMode, Kind, Lane, LoadedException, LoadedPolicies, LoadedPolicy, LoadedRule,
        Loss, PolicyRef, RefusedPolicy,
    };

    #[test]
    fn everything_that_was_told_is_shown() {
        let status = Status::new(Run {
            collector: "10.0.0.1:7443".into(),
            ..Run::default()
        });
        status.progress.written(Lane::Bulk, 1, 9, 5);
        status.progress.set_losses(vec![Loss {
            ring: 1,
            cpu: 3,
            level: 0,
            reason: "ring_full".into(),
            count: 17,
        }]);
        status.update(|parts| {
            parts.doors = vec![Door {
                kind: Kind::Open.into(),
                rung: "tracepoint".into(),
                reason: "no BPF LSM".into(),
                deny: "fanotify".into(),
                deny_reason: "lsm: no BPF LSM".into(),
            }];
            parts.kills = vec![KillStatus {
                mode: "kill-after",
                available: false,
                reason: Some("without effect".into()),
            }];
            parts.connection = Connection::Away {
                reason: "connection refused".into(),
            };
            parts.certificate_expires = 1;
        });
        status.set_policies(LoadedPolicies {
            policies: vec![LoadedPolicy {
                policy: Some(PolicyRef {
                    name: "web".into(),
                    version: 3,
                    sha256: "abc".into(),
                }),
                mode: "enforce".into(),
                rules: vec![LoadedRule {
                    id: "shell".into(),
                    effect: "alert".into(),
                    kinds: vec![EffectiveMode {
                        kind: Kind::Exec.into(),
                        mode: "none".into(),
                        reason: "sched_process_exec: not there".into(),
                    }],
                    exceptions: vec![LoadedException {
                        name: "old".into(),
                        owner: "ops".into(),
                        expires_ns: 1,
                    }],
                }],
                ..LoadedPolicy::default()
            }],
            refused: vec![RefusedPolicy {
                file: "bad.toml".into(),
                error: "bad.toml:1:2: wrong".into(),
                kept: "bad".into(),
            }],
            ..LoadedPolicies::default()
        });
        status.trouble("spool", Some("no space left".into()));
        let json = json(&status);
        assert_eq!(json["lanes"][2]["number"], 9);
        assert_eq!(json["collector"]["state"], "unreachable");
        assert_eq!(json["policies"][0]["hash"], "abc");
        assert_eq!(json["policies"][0]["modes"][0]["effective"], "none");
        assert_eq!(json["policy_errors"][0]["kept"], "bad");
        assert_eq!(json["kills"][0]["available"], false);
        assert_eq!(json["expired_exceptions"], 1);
        assert_eq!(
            json["collector"]["certificate_expires"],
            "1970-01-01T00:00:01Z"
        );
        assert!(
            json["memory"]["pss_bytes"]
                .as_u64()
                .is_some_and(|bytes| bytes > 0)
        );
        let page = text(&json);
        for wanted in [
            "connection refused",
            "no space left",
            "open         tracepoint   no BPF LSM",
            "bulk   batch 9, spooled 0 events in 0 batches, 0 bytes on disk, 0 events given up",
            "web version 3, enforce, 1 rules",
            "sha256 abc",
            "shell                    alert    none               sched_process_exec: not there",
            "the exception \"old\" of ops has expired",
            " MiB\n",
            "bad.toml has faults, bad stays as it was:\n    bad.toml:1:2: wrong",
            "ring 1 cpu 3 level 0: 17 ring_full",
        ] {
            assert!(page.contains(wanted), "{wanted:?} is not in\n{page}");
        }
    }
}
