//! How a host says which policies are in force, and what of them.

use serde_json::{Value, json};
use sumun_proto::catalogue::kind_name;
use sumun_proto::v1::{
    EffectiveMode, Isolation, Kind, LoadedException, LoadedPolicies, LoadedPolicy, LoadedRule,
    PolicyRef,
};

use crate::asking::QUESTIONS_MAX;
use crate::deny::{DenyRule, NAMES_MAX};
use crate::doors::Doors;
use crate::explain::{Effective, effective};
use crate::file::{CheckedPolicy, Effect, Mode, Rule};
use crate::time;
use crate::verdict::Late;

/// Effective modes, from the most that can be done to nothing.
pub const MODES: [&str; 10] = [
    "deny",
    "deny-via-agent",
    "kill-before-start",
    "kill-after",
    "kill-late",
    "isolate",
    "alert",
    "record",
    "pending",
    "none",
];

/// Most bytes of a report, so that it fits into a message: some ten thousand rules.
pub const REPORT_BYTES: usize = 512 * 1024;
/// What an item takes beside its texts, at most.
const ITEM_BYTES: usize = 32;
/// Longest text in a report, in bytes.
pub const REPORT_TEXT_MAX: usize = 1024;

/// Policies that are loaded together, as they work on a host: `late` is what
/// [`crate::verdict::VerdictPlan::build`] leaves to the agent with its doors, `blind` says why nothing of a kind is seen there.
#[must_use]
pub fn policies(
    policies: &[CheckedPolicy],
    (doors, late): (&Doors, &[Late]),
    sha256: impl Fn(&CheckedPolicy) -> String,
    blind: impl Fn(Kind) -> Option<String>,
) -> Vec<LoadedPolicy> {
    let mut before = 0;
    let mut loaded = Vec::with_capacity(policies.len());
    for policy in policies {
        let rules = policy.rules.iter().enumerate();
        let rules = rules.map(|(index, known)| {
            rule(known, |kind| match blind(kind) {
                Some(reason) => (Effective::None, reason),
                None => effective(policy.mode, (before + index, known), kind, doors, late),
            })
        });
        loaded.push(LoadedPolicy {
            policy: Some(PolicyRef {
                name: policy.name.clone(),
                version: policy.version,
                sha256: sha256(policy),
            }),
            file: policy.path.clone(),
            mode: match policy.mode {
                Mode::Observe => "observe",
                Mode::Enforce => "enforce",
            }
            .to_owned(),
            rules: rules.collect(),
        });
        before += policy.rules.len();
    }
    loaded
}

fn rule(rule: &Rule, effective: impl Fn(Kind) -> (Effective, String)) -> LoadedRule {
    let effect = match rule.effect {
        Effect::Record => "record",
        Effect::Alert => "alert",
        Effect::Kill => "kill",
        Effect::Deny => "deny",
        Effect::Isolate => "isolate",
    };
    let kinds = rule.kinds.iter().map(|kind| {
        let (mode, reason) = effective(*kind);
        EffectiveMode {
            kind: (*kind).into(),
            mode: mode.name().to_owned(),
            reason,
        }
    });
    let exceptions = rule.exceptions.iter().map(|exception| LoadedException {
        name: exception.name.clone(),
        owner: exception.owner.clone(),
        expires_ns: exception.expires_ns.unwrap_or(0),
    });
    LoadedRule {
        id: rule.id.clone(),
        effect: effect.to_owned(),
        kinds: kinds.collect(),
        exceptions: exceptions.collect(),
    }
}

/// Says of rules that are to deny by holding calls which are not carried out: those for which there was no room (`held` is what
/// [`crate::deny::plan`] made of the same policies), and those of which `why` gives a reason, by number and kind.
pub fn not_held(
    policies: &mut [LoadedPolicy],
    held: &[DenyRule],
    why: impl Fn(usize, Kind) -> Option<String>,
) {
    let rules = policies.iter_mut().flat_map(|policy| &mut policy.rules);
    for (number, rule) in rules.enumerate() {
        let via_agent = |mode: &&mut EffectiveMode| mode.mode == Effective::DenyViaAgent.name();
        for mode in rule.kinds.iter_mut().filter(via_agent) {
            let kind = mode.kind();
            let planned = |rule: &DenyRule| rule.rule == number && rule.kind == kind;
            let reason = match held.iter().any(planned) {
                true => why(number, kind),
                false => Some(format!(
                    "all rules together name more than {NAMES_MAX} files and folders, or ask more than {QUESTIONS_MAX} things of workloads and the host"
                )),
            };
            if let Some(reason) = reason {
                mode.mode = Effective::Alert.name().into();
                mode.reason = format!("not denied: {reason}");
            }
        }
    }
}

/// The least of a rule's modes over its kinds, and why it is less.
#[must_use]
pub fn weakest(rule: &LoadedRule) -> (&str, String) {
    let rank = |mode: &str| {
        let known = MODES.iter().position(|name| *name == mode);
        // A mode of a newer agent is said as it is.
        known.unwrap_or(MODES.len())
    };
    let Some(least) = rule.kinds.iter().max_by_key(|kind| rank(&kind.mode)) else {
        return ("none", "the rule names no kind of event".to_owned());
    };
    let all = rule.kinds.iter().all(|kind| kind.mode == least.mode);
    let mut reasons: Vec<String> = Vec::new();
    for kind in rule.kinds.iter().filter(|kind| kind.mode == least.mode) {
        let reason = match (all, kind.reason.as_str()) {
            (true, reason) => reason.to_owned(),
            (false, "") => kind_name(kind.kind()).to_owned(),
            (false, reason) => format!("{}: {reason}", kind_name(kind.kind())),
        };
        if !reason.is_empty() && !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    (&least.mode, reasons.join("; "))
}

/// Exceptions that no longer apply.
#[must_use]
pub fn expired(loaded: &LoadedPolicies, now_ns: i64) -> usize {
    let policies = loaded.policies.iter();
    policies.map(|policy| expired_of(policy, now_ns)).sum()
}

fn expired_of(policy: &LoadedPolicy, now_ns: i64) -> usize {
    let exceptions = policy.rules.iter().flat_map(|rule| &rule.exceptions);
    exceptions
        .filter(|exception| is_over(exception, now_ns))
        .count()
}

fn is_over(exception: &LoadedException, now_ns: i64) -> bool {
    exception.expires_ns != 0 && exception.expires_ns <= now_ns
}

/// A loaded policy as JSON; the keys are part of the documented output.
#[must_use]
pub fn policy_json(policy: &LoadedPolicy, now_ns: i64) -> Value {
    let named = policy.policy.clone().unwrap_or_default();
    json!({
        "name": named.name,
        "version": named.version,
        "hash": named.sha256,
        "file": policy.file,
        "mode": policy.mode,
        "rules": policy.rules.len(),
        "expired_exceptions": expired_of(policy, now_ns),
        "modes": policy
            .rules
            .iter()
            .map(|rule| rule_json(rule, &policy.mode, now_ns))
            .collect::<Vec<_>>(),
    })
}

fn rule_json(rule: &LoadedRule, requested: &str, now_ns: i64) -> Value {
    let (effective, reason) = weakest(rule);
    json!({
        "rule": rule.id,
        "effect": rule.effect,
        "requested": requested,
        "effective": effective,
        "reason": reason,
        "kinds": rule.kinds.iter().map(|kind| json!({
            "kind": kind_name(kind.kind()),
            "effective": kind.mode,
            "reason": kind.reason,
        })).collect::<Vec<_>>(),
        "exceptions": rule.exceptions.iter().map(|exception| json!({
            "name": exception.name,
            "owner": exception.owner,
            "expires": (exception.expires_ns != 0).then(|| time::written(exception.expires_ns)),
            "expired": is_over(exception, now_ns),
        })).collect::<Vec<_>>(),
    })
}

/// The files with faults as JSON; the keys are part of the documented output.
#[must_use]
pub fn refused_json(loaded: &LoadedPolicies) -> Vec<Value> {
    let refused = loaded.refused.iter();
    refused
        .map(|refused| {
            json!({
                "file": refused.file,
                "error": refused.error,
                "kept": (!refused.kept.is_empty()).then_some(&refused.kept),
            })
        })
        .collect()
}

/// A host that is cut off as JSON; the keys are part of the documented output.
#[must_use]
pub fn isolation_json(now: &Isolation) -> Value {
    json!({
        "rule": format!("{}/{}", now.policy, now.rule),
        "since": time::written(now.since_ns),
        "until": (now.until_ns != 0).then(|| time::written(now.until_ns)),
        "cgroup": now.cgroup,
        "allowed": now.allowed,
        "dropped": { "sent": now.dropped_sent, "received": now.dropped_received },
        "not_covered": "packets that are forwarded, and those of packet sockets",
    })
}

/// The same for people, some lines; from [`isolation_json`].
#[must_use]
pub fn isolation_text(now: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let whose = match text(&now["cgroup"]).as_str() {
        "/" => "the whole host".to_owned(),
        cgroup => format!("sockets of {cgroup}"),
    };
    let until = match text(&now["until"]).as_str() {
        "" => "until it is lifted or the rule is not in force".to_owned(),
        until => format!("until {until}"),
    };
    let mut lines = format!(
        "ISOLATED since {} for {}, {until}\n  {whose}; {} packets out and {} in were kept back\n  not covered: {}\n  goes on: loopback, neighbour discovery\n",
        text(&now["since"]),
        text(&now["rule"]),
        now["dropped"]["sent"],
        now["dropped"]["received"],
        text(&now["not_covered"]),
    );
    for allowed in now["allowed"].as_array().into_iter().flatten() {
        lines.push_str(&format!("    {}\n", text(allowed)));
    }
    lines
}

/// Cuts a report down to what is kept of one, and counts what is left out.
pub fn bound(loaded: &mut LoadedPolicies) {
    let mut room = Room {
        bytes: REPORT_BYTES,
        left_out: 0,
    };
    text(&mut loaded.hash);
    for refused in &mut loaded.refused {
        text(&mut refused.file);
        text(&mut refused.error);
        text(&mut refused.kept);
    }
    room.cut(&mut loaded.refused, |refused| {
        refused.file.len() + refused.error.len() + refused.kept.len()
    });
    for policy in &mut loaded.policies {
        text(&mut policy.file);
        text(&mut policy.mode);
        let named = policy.policy.get_or_insert_default();
        text(&mut named.name);
        text(&mut named.sha256);
    }
    room.cut(&mut loaded.policies, |policy| {
        let named = policy.policy.as_ref();
        policy.file.len()
            + policy.mode.len()
            + named.map_or(0, |named| named.name.len() + named.sha256.len())
    });
    for policy in &mut loaded.policies {
        for rule in &mut policy.rules {
            text(&mut rule.id);
            text(&mut rule.effect);
            for kind in &mut rule.kinds {
                text(&mut kind.mode);
                text(&mut kind.reason);
            }
            for exception in &mut rule.exceptions {
                text(&mut exception.name);
                text(&mut exception.owner);
            }
        }
        room.cut(&mut policy.rules, rule_bytes);
    }
    let left_out = u32::try_from(room.left_out).unwrap_or(u32::MAX);
    loaded.left_out = loaded.left_out.saturating_add(left_out);
}

fn rule_bytes(rule: &LoadedRule) -> usize {
    let kinds = rule.kinds.iter();
    let exceptions = rule.exceptions.iter();
    rule.id.len()
        + rule.effect.len()
        + kinds
            .map(|kind| ITEM_BYTES + kind.mode.len() + kind.reason.len())
            .sum::<usize>()
        + exceptions
            .map(|exception| ITEM_BYTES + exception.name.len() + exception.owner.len())
            .sum::<usize>()
}

/// What a report may still take.
struct Room {
    bytes: usize,
    left_out: usize,
}

impl Room {
    /// Keeps the first items for which there is room.
    fn cut<T>(&mut self, items: &mut Vec<T>, bytes: impl Fn(&T) -> usize) {
        let mut kept = 0;
        for item in items.iter() {
            let bytes = ITEM_BYTES + bytes(item);
            if bytes > self.bytes {
                break;
            }
            self.bytes -= bytes;
            kept += 1;
        }
        self.left_out += items.len() - kept;
        items.truncate(kept);
    }
}

fn text(text: &mut String) {
    let mut end = text.len().min(REPORT_TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::check_file;

    const POLICY: &str = r#"
[policy]
name = "web"
version = 3
mode = "enforce"

[[rule]]
id = "shell"
on = ["exec", "connect"]
when = 'proc.exe.name == "sh"'

[[rule.exception]]
name = "until spring"
when = 'proc.uid == 0'
owner = "ops"
expires = 2027-03-01

[[rule]]
id = "seen"
on = ["exec"]
effect = "record"
"#;

    fn report(blind: impl Fn(Kind) -> Option<String>) -> LoadedPolicy {
        let check = check_file("/etc/web.toml", POLICY);
        let policy = check.policy.expect("a policy");
        let doors = Doors::default();
        policies(&[policy], (&doors, &[]), |_| "abc".to_owned(), blind).remove(0)
    }

    #[test]
    fn what_is_in_force_and_why_not() {
        let whole = policy_json(&report(|_| None), 0);
        assert_eq!(whole["hash"], "abc");
        assert_eq!(
            (&whole["rules"], &whole["mode"]),
            (&json!(2), &json!("enforce"))
        );
        let shell = &whole["modes"][0];
        assert_eq!(shell["requested"], "enforce");
        assert_eq!(
            (&shell["effective"], &shell["reason"]),
            (&json!("alert"), &json!(""))
        );
        assert_eq!(whole["modes"][1]["effective"], "record");

        let blind = |kind| (kind == Kind::Connect).then(|| "sock: no such function".to_owned());
        let part = policy_json(&report(blind), 0);
        let shell = &part["modes"][0];
        assert_eq!(shell["effective"], "none");
        assert_eq!(shell["reason"], "connect: sock: no such function");
        assert_eq!(shell["kinds"][0]["effective"], "alert");
        assert_eq!(part["modes"][1]["effective"], "record");
    }

    /// The rules are numbered over all policies, and the least of the modes is told with its reason.
    #[test]
    fn a_rule_that_kills_says_how() {
        let with = |name: &str, mode: &str, rules: &[(&str, &str)]| {
            let mut file = format!("[policy]\nname = {name:?}\nmode = {mode:?}\n");
            for (on, when) in rules {
                file.push_str(&format!(
                    "[[rule]]\nid = \"r{}\"\non = [{on}]\nwhen = '{when}'\neffect = \"kill\"\n",
                    file.len()
                ));
            }
            let check = check_file("kill.toml", &file);
            check
                .policy
                .unwrap_or_else(|| panic!("{}", check.errors[0].message))
        };
        let name = "proc.exe.name == \"nc\"";
        let all = [
            with(
                "a",
                "enforce",
                &[("\"exec\"", name), ("\"exec\", \"connect\"", name)],
            ),
            with("b", "observe", &[("\"exec\"", name)]),
            with(
                "c",
                "enforce",
                &[("\"exec\"", "proc.args[0] == \"nc\""), ("\"exec\"", name)],
            ),
        ];
        let doors = Doors::foreseen();
        let (_, late) = crate::verdict::VerdictPlan::build(&all, &doors, 0);
        assert_eq!(late.iter().map(|late| late.rule).collect::<Vec<_>>(), [3]);
        let report = policies(&all, (&doors, &late), |_| String::new(), |_| None);
        let told: Vec<_> = report
            .iter()
            .flat_map(|policy| &policy.rules)
            .map(|rule| {
                let (mode, reason) = weakest(rule);
                format!("{}: {mode}: {reason}", rule.effect)
            })
            .collect();
        assert_eq!(
            told,
            [
                "kill: kill-before-start: ",
                "kill: kill-after: connect",
                "kill: alert: observe: reports what would be killed",
                "kill: kill-late: only the agent can judge proc.args[0] == \"nc\"",
                "kill: kill-before-start: ",
            ]
        );
        let report = policies(
            &all,
            (&doors, &late),
            |_| String::new(),
            |_| Some("no hook".to_owned()),
        );
        assert_eq!(weakest(&report[0].rules[0]), ("none", "no hook".to_owned()));
    }

    #[test]
    fn an_exception_is_shown_as_expired_from_its_moment_on() {
        let report = report(|_| None);
        let end = time::parse("2027-03-02T00:00:00Z").expect("a time");
        for (now, expired) in [(end - 1, false), (end, true)] {
            let json = policy_json(&report, now);
            let exception = &json["modes"][0]["exceptions"][0];
            assert_eq!(exception["expired"], expired);
            assert_eq!(exception["expires"], "2027-03-02T00:00:00Z");
            assert_eq!(json["expired_exceptions"], usize::from(expired));
        }
    }

    #[test]
    fn a_report_is_cut_and_says_so() {
        let mut loaded = LoadedPolicies {
            policies: vec![report(|_| None); 3000],
            ..LoadedPolicies::default()
        };
        loaded.policies[0].rules[0].id = "é".repeat(1000);
        bound(&mut loaded);
        assert_eq!(loaded.policies[0].rules[0].id.len(), REPORT_TEXT_MAX);
        let policies = loaded.policies.iter();
        let rules: usize = policies.map(|policy| policy.rules.len()).sum();
        assert_eq!(loaded.policies.len(), 3000);
        assert!(rules > 1000, "{rules}");
        assert_eq!(rules + loaded.left_out as usize, 6000);
        let before = loaded.clone();
        bound(&mut loaded);
        assert_eq!(loaded, before, "what fits is left alone");
    }
}
