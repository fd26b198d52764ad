//! On which rung of the ladder nothing gets around a rule, and on which it is carried out as well as can be there.
//!
//! Read off the tables that decide it: the doors and kinds of [`crate::doors`], the kinds that the kernel judges ([`AFTER`]), what it
//! can judge of the rule (`late_alone`), what can be held (`held`), and whose names are the caller's word ([`is_unfiltered`]).

use sumun_proto::FieldId;
use sumun_proto::v1::Kind;

use crate::deny::held;
use crate::doors::{CGROUP, DENIABLE};
use crate::explain::Effective;
use crate::file::{Effect, Rule};
use crate::narrow::{asks_for_failures, never, on_kind};
use crate::plan::{is_own, is_unfiltered};
use crate::verdict::{AFTER, late_alone};

/// Kinds that decision points see: what was opened or changed is the kernel's own object there.
pub const POINTS: [Kind; 8] = [
    Kind::Open,
    Kind::Rename,
    Kind::Unlink,
    Kind::Link,
    Kind::Symlink,
    Kind::Chmod,
    Kind::Chown,
    Kind::Truncate,
];

/// What becomes of a rule in `enforce` on a rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnRung {
    /// `lsm`, `cgroup`, `fanotify`, `fentry`, `tracepoint` or `agent`.
    pub rung: &'static str,
    /// What is done there.
    pub effective: Effective,
    /// What the rule is about cannot be had there without its effect. Else that is best effort.
    pub airtight: bool,
    /// By what, and if it is not airtight, what gets around it.
    pub why: &'static str,
}

const NOT_BEFORE: &str = "the event has happened by then";
const BY_PATH: &str =
    "by the path through which it is reached: by a hard link or another mount it has another";
const BY_INODE: &str = "of files named by their whole path the file itself, whatever its name; let through if the agent does not answer within 100 ms";
const CALLERS_WORD: &str = "the name is the caller's word, which another thread can change meanwhile; fanotify, where it is asked, tells what was renamed and removed";
const BY_OBJECT: &str = "by the kernel's own object";
const SHARED: &str = "by what is behind the descriptor at the end of the call: where others share the open files another one can have been put there, and the event says so";

const SWAPPED: &str = "by what is behind the descriptor at the end of the call: where others share the open files another one can have been put there, and then the call can be missed";

fn at(rung: &'static str, effective: Effective, airtight: bool, why: &'static str) -> OnRung {
    OnRung {
        rung,
        effective,
        airtight,
        why,
    }
}

/// What becomes of a rule on a kind, on each rung that makes a difference, from the best down; empty if it cannot match there.
#[must_use]
pub fn on_rungs(rule: &Rule, kind: Kind) -> Vec<OnRung> {
    if never(&rule.predicate, kind) {
        return Vec::new();
    }
    match rule.effect {
        Effect::Deny => denied(rule, kind),
        Effect::Kill if kind == Kind::Exit => Vec::new(),
        Effect::Kill => killed(rule, kind),
        Effect::Isolate => vec![at("cgroup", Effective::Isolate, false, NOT_BEFORE)],
        Effect::Alert => seen(kind, Effective::Alert),
        Effect::Record => seen(kind, Effective::Record),
    }
}

fn denied(rule: &Rule, kind: Kind) -> Vec<OnRung> {
    let mut rungs = Vec::new();
    if DENIABLE.contains(&kind) && late_alone(rule, kind).is_none() {
        let named = names_a_file(rule, kind);
        let why = match named {
            true => BY_PATH,
            false => BY_OBJECT,
        };
        let rung = match CGROUP.contains(&kind) {
            true => "cgroup",
            false => "lsm",
        };
        rungs.push(at(rung, Effective::Deny, !named, why));
    }
    if held(rule, kind).is_ok() {
        rungs.push(at("fanotify", Effective::DenyViaAgent, false, BY_INODE));
    }
    if rungs.iter().all(|rung| rung.rung != "cgroup") {
        rungs.push(at("tracepoint", Effective::Alert, false, NOT_BEFORE));
    }
    rungs
}

fn killed(rule: &Rule, kind: Kind) -> Vec<OnRung> {
    let late = || late(kind);
    if late_alone(rule, kind).is_some() || asks_for_failures(&rule.predicate, kind) {
        return late();
    }
    match kind {
        Kind::Exec => vec![at(
            "tracepoint",
            Effective::KillBeforeStart,
            true,
            BY_OBJECT,
        )],
        Kind::Open => vec![
            at("fentry", Effective::KillAfter, true, BY_OBJECT),
            at("tracepoint", Effective::KillAfter, false, SHARED),
        ],
        Kind::CloseWrite => vec![at("tracepoint", Effective::KillAfter, false, SHARED)],
        Kind::MapExec => vec![at("tracepoint", Effective::KillAfter, false, SWAPPED)],
        kind if AFTER.contains(&kind) => {
            vec![at("tracepoint", Effective::KillAfter, true, BY_OBJECT)]
        }
        _ => late(),
    }
}

/// Killed by the agent: whatever is seen, it has happened, and what was started meanwhile lives on.
fn late(kind: Kind) -> Vec<OnRung> {
    let seen = seen(kind, Effective::KillLate).into_iter();
    seen.map(|rung| OnRung {
        airtight: false,
        why: match rung.airtight {
            true => NOT_BEFORE,
            false => rung.why,
        },
        ..rung
    })
    .collect()
}

fn seen(kind: Kind, effective: Effective) -> Vec<OnRung> {
    if is_own(kind) {
        return vec![at(
            "agent",
            effective,
            false,
            "found by looking now and then: what comes and goes in between is not",
        )];
    }
    let below = match kind {
        Kind::Open | Kind::CloseWrite => Some(SHARED),
        Kind::MapExec => Some(SWAPPED),
        kind if is_unfiltered(kind) => Some(CALLERS_WORD),
        _ => None,
    };
    let mut rungs = Vec::new();
    if POINTS.contains(&kind) {
        rungs.push(at("fentry", effective, true, BY_OBJECT));
    }
    let rung = match kind {
        Kind::Sysctl => "cgroup",
        _ => "tracepoint",
    };
    rungs.push(at(
        rung,
        effective,
        below.is_none(),
        below.unwrap_or(BY_OBJECT),
    ));
    rungs
}

/// It goes by the name of a file that the call is about.
fn names_a_file(rule: &Rule, kind: Kind) -> bool {
    let about = |field: &FieldId| match field {
        FieldId::ProcExePath | FieldId::ProcExeName => kind == Kind::Exec,
        FieldId::FilePath | FieldId::FileName => on_kind(*field, kind),
        _ => false,
    };
    rule.predicate.fields().iter().any(about)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::check_file;

    fn of(effect: &str, on: &str, when: &str) -> Vec<String> {
        let text = format!(
            "[policy]\nname = \"p\"\nmode = \"enforce\"\n[[rule]]\nid = \"r\"\non = [{on:?}]\nwhen = '''{when}'''\neffect = {effect:?}\n"
        );
        let check = check_file("p.toml", &text);
        let policy = check.policy.unwrap_or_else(|| panic!("{:?}", check.errors));
        let rule = &policy.rules[0];
        on_rungs(rule, rule.kinds[0])
            .iter()
            .map(|rung| {
                let how = if rung.airtight {
                    "airtight"
                } else {
                    "best effort"
                };
                format!("{}: {}, {how}", rung.rung, rung.effective.name())
            })
            .collect()
    }

    #[test]
    fn each_effect_says_where_nothing_gets_around_it() {
        for (effect, on, when, expected) in [
            (
                "deny",
                "open",
                r#"file.path == "/etc/shadow""#,
                &[
                    "lsm: deny, best effort",
                    "fanotify: deny-via-agent, best effort",
                    "tracepoint: alert, best effort",
                ][..],
            ),
            (
                "deny",
                "connect",
                "net.dst.port == 22",
                &["cgroup: deny, airtight"],
            ),
            (
                "deny",
                "ptrace",
                r#"proc.exe.name == "gdb""#,
                &["lsm: deny, airtight", "tracepoint: alert, best effort"],
            ),
            (
                "kill",
                "exec",
                r#"proc.exe.name == "nc""#,
                &["tracepoint: kill-before-start, airtight"],
            ),
            (
                "kill",
                "open",
                r#"file.path == "/etc/shadow""#,
                &[
                    "fentry: kill-after, airtight",
                    "tracepoint: kill-after, best effort",
                ],
            ),
            (
                "kill",
                "rename",
                r#"file.path == "/etc/shadow""#,
                &[
                    "fentry: kill-late, best effort",
                    "tracepoint: kill-late, best effort",
                ],
            ),
            (
                "kill",
                "exec",
                r#""-rf" in proc.args"#,
                &["tracepoint: kill-late, best effort"],
            ),
            (
                "alert",
                "unlink",
                r#"file.path == "/etc/shadow""#,
                &["fentry: alert, airtight", "tracepoint: alert, best effort"],
            ),
            (
                "alert",
                "sysctl",
                r#"sysctl.name == "kernel.modprobe""#,
                &["cgroup: alert, airtight"],
            ),
        ] {
            assert_eq!(of(effect, on, when), expected, "{effect} {on} {when}");
        }
    }
}
