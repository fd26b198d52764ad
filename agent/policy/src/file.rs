//! Policy files: from TOML to a checked policy.
//!
//! Every fault of a file is found in one run and has its place in the file,
//! predicates included. A file with a fault gives no policy at all; what becomes of
//! the other files is not its business.

use std::fmt;
use std::time::Duration;

use sumun_proto::v1::{Kind, RuleRef, Severity};

use crate::check::Lists;
use crate::ir::{Predicate, Set};
use crate::list::{List, TOTAL_MAX};
use crate::parts::{self, PARTS_MAX};
use crate::problem::{Place, Problem};
use crate::read;

/// Largest policy file, in bytes.
pub const FILE_MAX: usize = 16 * 1024 * 1024;
/// Most rules in a file.
pub const RULES_MAX: usize = 1000;

/// An exception that expires within this time is warned of.
pub const EXPIRY_NEAR: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// What a rule does when it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The event is stored.
    Record,
    /// The event is stored and an alert raised.
    Alert,
    /// As `Alert`, and in `enforce` the process is killed.
    Kill,
    /// As `Alert`, and in `enforce` the call fails.
    Deny,
    /// As `Alert`, and in `enforce` the host is cut off from the network.
    Isolate,
}

/// Whether effects that stop something are applied. With `record` and `alert`
/// there is nothing to stop, and both modes do the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// They are reported only.
    Observe,
    /// They are applied.
    Enforce,
}

/// A policy without faults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedPolicy {
    /// File it came from, as given to [`check_file`].
    pub path: String,
    /// SHA-256 of that file's text.
    pub sha256: [u8; 32],
    /// Its name; unique among the loaded ones.
    pub name: String,
    /// Its version, from 1.
    pub version: u32,
    /// Observe or enforce.
    pub mode: Mode,
    /// Its lists.
    pub lists: Lists,
    /// Its rules, in the order of the file.
    pub rules: Vec<Rule>,
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Unique within the policy.
    pub id: String,
    /// For people; may be empty.
    pub title: String,
    /// Kinds it is asked on: one or more, in the order of the file.
    pub kinds: Vec<Kind>,
    /// What has to hold; everything if the rule has no `when`.
    pub predicate: Predicate,
    /// With a selector whose pending workloads count as inside: what the predicate is made of.
    pub presumed: Option<Presumed>,
    /// What it does.
    pub effect: Effect,
    /// With the effects `kill`, `deny` and `isolate`: it may do without a condition, kill what a host needs, or close a folder of the system.
    pub force: bool,
    /// With the effect `kill`: all that descend from the process are killed, too.
    pub lineage: bool,
    /// With the effect `isolate`: for how long, from the last match on; `None` = without an end of its own.
    pub lasts: Option<Duration>,
    /// How bad it is.
    pub severity: Severity,
    /// MITRE ATT&CK techniques.
    pub attack: Vec<String>,
    /// What it lets pass without an alert.
    pub exceptions: Vec<Exception>,
    /// How many alerts it raises one by one.
    pub rate: Option<Rate>,
}

/// A predicate taken apart: a selector, which counts as true while nobody knows, and the rule's own condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presumed {
    /// The selector.
    pub selector: Predicate,
    /// What else has to hold.
    pub when: Predicate,
}

/// So many alerts in a window go out one by one; the rest are counted and told together when it ends.
/// Nothing else depends on it: every event is judged and stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Alerts, from 1.
    pub count: u64,
    /// Length of the window, which begins with an alert, ns.
    pub window_ns: u64,
}

impl Rate {
    /// From `10/1m`: a number of alerts, a number of seconds, minutes or hours. `None` for
    /// anything else, for more than a million alerts, and for windows of more than a day.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (count, window) = text.split_once('/')?;
        let (length, seconds) = [("s", 1), ("m", 60), ("h", 60 * 60)]
            .into_iter()
            .find_map(|(unit, seconds)| Some((window.strip_suffix(unit)?, seconds)))?;
        let number = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse::<u64>().ok().filter(|_| plain)
        };
        let (count, window) = (number(count)?, number(length)?.checked_mul(seconds)?);
        let sound = (1..=1_000_000).contains(&count) && (1..=24 * 60 * 60).contains(&window);
        sound.then_some(Self {
            count,
            window_ns: window * 1_000_000_000,
        })
    }
}

/// An exception of a rule: an event that satisfies it raises no alert and is
/// stored all the same. What is collected does not depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Unique within the rule.
    pub name: String,
    /// Who answers for it.
    pub owner: String,
    /// What has to hold. One that cannot be decided does not except.
    pub predicate: Predicate,
    /// It applies to events before this time, ns since the Unix epoch; `None` = for ever.
    pub expires_ns: Option<i64>,
    /// Where `expires` stands in the file, or without one the exception.
    pub place: Place,
}

/// What came of one file.
#[derive(Clone, Debug)]
pub struct FileCheck {
    /// The file, as given.
    pub path: String,
    /// The policy, exactly if there are no errors.
    pub policy: Option<CheckedPolicy>,
    /// What has to be changed.
    pub errors: Vec<Problem>,
    /// What costs more than one may think.
    pub warnings: Vec<Problem>,
}

impl CheckedPolicy {
    /// Its lists that are too long to be written out, by name.
    pub fn large_lists(&self) -> impl Iterator<Item = &List> {
        self.lists.values().filter_map(|set| match set {
            Set::List(list) => Some(&**list),
            Set::Str(_) | Set::Int(_) => None,
        })
    }

    /// What events and alerts say of a rule.
    #[must_use]
    pub fn rule_ref(&self, rule: &Rule) -> RuleRef {
        RuleRef {
            policy: self.name.clone(),
            policy_version: self.version,
            rule: rule.id.clone(),
            title: rule.title.clone(),
            severity: rule.severity.into(),
            attack: rule.attack.clone(),
        }
    }

    /// A warning for each exception that has expired, or will within
    /// [`EXPIRY_NEAR`]. It is never an error: a policy that was taken yesterday must not be
    /// refused at a restart because a date has passed.
    #[must_use]
    pub fn expiry_warnings(&self, now_ns: i64) -> Vec<Problem> {
        let near = i64::try_from(EXPIRY_NEAR.as_nanos()).unwrap_or(i64::MAX);
        let mut warnings = Vec::new();
        for rule in &self.rules {
            for exception in &rule.exceptions {
                let Some(expires) = exception.expires_ns else {
                    continue;
                };
                let when = if expires <= now_ns {
                    "expired at"
                } else if expires <= now_ns.saturating_add(near) {
                    "expires at"
                } else {
                    continue;
                };
                let what = if expires <= now_ns {
                    "it no longer applies"
                } else {
                    "it will not apply from then on"
                };
                let Exception { name, owner, .. } = exception;
                let message = format!(
                    "the exception {name:?} of rule {:?} {when} {}: {what}; let {owner} renew it, or take it out",
                    rule.id,
                    crate::time::written(expires),
                );
                warnings.push(Problem::in_place(exception.place, message));
            }
        }
        warnings
    }
}

impl FileCheck {
    /// Adds what [`CheckedPolicy::expiry_warnings`] finds.
    pub fn warn_of_expiry(&mut self, now_ns: i64) {
        if let Some(policy) = &self.policy {
            self.warnings.extend(policy.expiry_warnings(now_ns));
        }
    }
}

/// One line for each error and warning: `path:line:column: error: what`.
impl fmt::Display for FileCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = self.errors.iter().map(|problem| ("error", problem));
        let warnings = self.warnings.iter().map(|problem| ("warning", problem));
        for (index, (weight, problem)) in errors.chain(warnings).enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let Problem {
                line,
                column,
                message,
                ..
            } = problem;
            write!(f, "{}:{line}:{column}: {weight}: {message}", self.path)?;
        }
        Ok(())
    }
}

/// Checks the text of one file.
#[must_use]
pub fn check_file(path: &str, text: &str) -> FileCheck {
    let mut check = FileCheck {
        path: path.to_owned(),
        policy: None,
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    let too_much = if text.len() > FILE_MAX {
        Some(format!(
            "the file has more than {FILE_MAX} bytes: make it several policies"
        ))
    } else if parts::count(text) > PARTS_MAX {
        Some(format!(
            "the file has more than {PARTS_MAX} values and keys: make it several policies"
        ))
    } else {
        None
    };
    if let Some(message) = too_much {
        check.errors.push(Problem::at(text, 0, message));
        return check;
    }
    let read = read::policy(path, text);
    check.errors = read.errors;
    check.errors.sort_by_key(|problem| problem.offset);
    check.warnings = read.warnings;
    if check.errors.is_empty() {
        check.policy = read.policy;
    }
    check
}

/// Checks files that are loaded together: (path, text). Besides what
/// [`check_file`] finds, the second policy of a name is an error, and the one whose
/// lists take more than [`TOTAL_MAX`] together with those before.
#[must_use]
pub fn check_files<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<FileCheck> {
    let mut checks: Vec<FileCheck> = Vec::new();
    let mut of_lists = 0;
    for (path, text) in files {
        let mut check = check_file(path, text);
        if let Some(policy) = &check.policy
            && let Some(earlier) = checks.iter().find(|earlier| {
                earlier
                    .policy
                    .as_ref()
                    .is_some_and(|known| known.name == policy.name)
            })
        {
            let message = format!(
                "the policy name {:?} is already used by {}: give this one another",
                policy.name, earlier.path
            );
            let offset = text.find("name").unwrap_or(0);
            check.errors.push(Problem::at(text, offset, message));
            check.policy = None;
        }
        if let Some(policy) = &check.policy {
            let bytes: usize = policy.large_lists().map(List::bytes).sum();
            if of_lists + bytes > TOTAL_MAX {
                let message = format!(
                    "the lists take {bytes} bytes, with those of the files before {}: at most {TOTAL_MAX} are taken on a host",
                    of_lists + bytes
                );
                let offset = text.find("[lists]").unwrap_or(0);
                check.errors.push(Problem::at(text, offset, message));
                check.policy = None;
            } else {
                of_lists += bytes;
            }
        }
        checks.push(check);
    }
    checks
}

/// What is loaded after a check: each file's policy, or, where the file has
/// become faulty, the one that was loaded from it before. Files that are gone are unloaded.
#[must_use]
pub fn loaded(checks: &[FileCheck], previous: &[CheckedPolicy]) -> Vec<CheckedPolicy> {
    let good: Vec<&CheckedPolicy> = checks
        .iter()
        .filter_map(|check| check.policy.as_ref())
        .collect();
    checks
        .iter()
        .filter_map(|check| match &check.policy {
            Some(policy) => Some(policy.clone()),
            None => previous
                .iter()
                .find(|old| old.path == check.path)
                // Another file may have taken the name meanwhile.
                .filter(|old| good.iter().all(|policy| policy.name != old.name))
                .cloned(),
        })
        .collect()
}
