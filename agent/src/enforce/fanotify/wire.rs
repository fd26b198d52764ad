//! What the agent and the process that holds calls tell each other.
//!
//! The plan comes by standard input, once, with what is known of cgroups. Everything after it goes over a socket of whole
//! messages: the agent asks whether the other still answers and tells what else is known of cgroups, the other says what it has held.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use sumun_abi::verdict::{SCOPE_STEPS, Scope};
use sumun_policy::asking::{Asking, Questions};
use sumun_policy::deny::{DenyRule, Names};
use sumun_policy::verdict::scope::is_of_scope;
use sumun_policy::{Predicate, Verdict};
use sumun_proto::v1::Kind;
use sumun_proto::{FieldId, View, text};

/// Longest message, in bytes: two paths and an executable's with every byte escaped, and words.
pub(super) const MESSAGE_MAX: usize = 64 * 1024;
/// What the agent sends.
pub(super) const PING: &[u8] = b"?";

/// What is to be denied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// The agent, of which nothing is denied.
    pub agent: u32,
    /// `host.id` and `host.name`.
    pub host: (String, String),
    /// Number of the hierarchy whose cgroups are meant, as `/proc/PID/cgroup` has it; `None`: not known.
    pub hierarchy: Option<u32>,
    pub rules: Vec<PlanRule>,
}

/// What a process that holds calls begins with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Start {
    pub plan: Plan,
    /// What is known of cgroups, for the questions of the plan.
    pub cgroups: Vec<(String, Answers)>,
}

/// What processes in a cgroup answer to questions, by their bits: yes, unknown, and the same for all cgroups below. What is neither is no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answers {
    own: [u64; 2],
    below: [u64; 2],
}

impl From<Scope> for Answers {
    fn from(scope: Scope) -> Self {
        Self {
            own: [scope.yes, scope.unknown],
            below: [scope.below_yes, scope.below_unknown],
        }
    }
}

/// What has changed of cgroups: a message to the process. `None`: it is gone.
pub(super) type Changes = Vec<(String, Option<Answers>)>;

/// What is known of cgroups, by their paths.
pub(super) type Cgroups = HashMap<String, Answers>;

/// The answers of processes in the cgroup of a path: its own, or those for all below the nearest one above it that is known.
pub(super) fn answers(cgroups: &Cgroups, path: &str) -> Option<[u64; 2]> {
    if let Some(known) = cgroups.get(path) {
        return Some(known.own);
    }
    // Whoever makes cgroups chooses how deep they are: what is further from the root than so much is what is above it there.
    let mut at = path;
    if let Some((end, _)) = path.match_indices('/').nth(SCOPE_STEPS as usize) {
        at = &path[..end];
        if let Some(known) = cgroups.get(at) {
            return Some(known.below);
        }
    }
    for _ in 0..SCOPE_STEPS {
        at = match at.rsplit_once('/')? {
            ("", "") => return None,
            ("", _) => "/",
            (above, _) => above,
        };
        if let Some(known) = cgroups.get(at) {
            return Some(known.below);
        }
    }
    None
}

/// A rule on a kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PlanRule {
    pub rule: usize,
    pub kind: i32,
    /// Paths as text, as everywhere.
    pub files: Vec<String>,
    pub prefixes: Vec<String>,
    /// Canonical.
    pub predicate: String,
    /// Canonical: the selector, and the rule's own condition.
    pub presumed: Option<[String; 2]>,
    pub exceptions: Vec<(String, Option<i64>)>,
}

impl From<&DenyRule> for PlanRule {
    fn from(rule: &DenyRule) -> Self {
        let texts = |paths: &std::collections::BTreeSet<Vec<u8>>| {
            paths.iter().map(|path| text::from_bytes(path)).collect()
        };
        Self {
            rule: rule.rule,
            kind: rule.kind.into(),
            files: texts(&rule.names.files),
            prefixes: texts(&rule.names.prefixes),
            predicate: rule.predicate.to_string(),
            presumed: rule
                .presumed
                .as_ref()
                .map(|parts| parts.each_ref().map(ToString::to_string)),
            exceptions: rule
                .exceptions
                .iter()
                .map(|(predicate, expires)| (predicate.to_string(), *expires))
                .collect(),
        }
    }
}

/// A rule, ready to judge.
#[derive(Debug)]
pub(super) struct Held {
    pub rule: usize,
    pub kind: Kind,
    pub names: Names,
    matcher: Asking,
    /// Of a policy whose pending workloads count as inside: its selector, and the rule's own condition.
    presumed: Option<[Asking; 2]>,
    /// Each until a time, ns since the Unix epoch.
    exceptions: Vec<(Asking, Option<i64>)>,
    /// It reads whose the process is.
    pub asks: bool,
}

impl Held {
    /// Whether the rule is about an event, for certain; with the answers of its process's cgroup, if anything is known of that.
    pub(super) fn matches(&self, view: &View<'_>, known: Option<[u64; 2]>, now_ns: i64) -> Verdict {
        let answer = |number: usize| {
            let [yes, unknown] = known?;
            let bit = 1_u64.checked_shl(u32::try_from(number).ok()?)?;
            (unknown & bit == 0).then_some(yes & bit != 0)
        };
        let mut whole = match (self.matcher.matches(view, &answer), &self.presumed) {
            // Where nothing at all is known, nothing is presumed either.
            (Verdict::Undecided, Some([selector, when]))
                if known.is_some() && selector.matches(view, &answer) == Verdict::Undecided =>
            {
                when.matches(view, &answer)
            }
            (verdict, _) => verdict,
        };
        if whole == Verdict::NoMatch {
            return whole;
        }
        for (exception, expires) in &self.exceptions {
            if expires.is_some_and(|expires| expires <= now_ns) {
                continue;
            }
            match exception.matches(view, &answer) {
                Verdict::Match => return Verdict::NoMatch,
                Verdict::Undecided => whole = Verdict::Undecided,
                Verdict::NoMatch => {}
            }
        }
        whole
    }
}

/// Whether a field is of the workload or the host, and not of the call.
fn is_asked(field: FieldId) -> bool {
    is_of_scope(field) && !matches!(field, FieldId::HostId | FieldId::HostName)
}

/// What rules ask about workloads and the host, by its numbers: the same for the agent, which answers, and for whoever holds calls.
pub(super) fn questions(rules: &[DenyRule]) -> Questions {
    let mut questions = Questions::default();
    for predicate in rules.iter().flat_map(DenyRule::predicates) {
        let _ = Asking::new(predicate, &mut questions);
    }
    questions
}

impl PlanRule {
    /// Compiles it, and adds its questions to those of the rules before it.
    ///
    /// # Errors
    /// The agent is of another version.
    pub(super) fn compile(&self, questions: &mut Questions) -> Result<Held, String> {
        let mut asks = false;
        let mut matcher = |canonical: &str| {
            let predicate = Predicate::parse_canonical(canonical)
                .map_err(|_| format!("cannot read the predicate {canonical:?}"))?;
            asks |= predicate.fields().into_iter().any(is_asked);
            Ok::<_, String>(Asking::new(&predicate, questions))
        };
        let paths = |texts: &[String]| {
            texts
                .iter()
                .filter_map(|text| text::to_bytes(text))
                .collect()
        };
        // In the order of [`questions`].
        let predicate = matcher(&self.predicate)?;
        let presumed = match &self.presumed {
            Some([selector, when]) => Some([matcher(selector)?, matcher(when)?]),
            None => None,
        };
        let exceptions = self
            .exceptions
            .iter()
            .map(|(predicate, expires)| Ok((matcher(predicate)?, *expires)))
            .collect::<Result<_, String>>()?;
        Ok(Held {
            rule: self.rule,
            kind: Kind::try_from(self.kind).map_err(|error| error.to_string())?,
            names: Names {
                files: paths(&self.files),
                prefixes: paths(&self.prefixes),
            },
            matcher: predicate,
            presumed,
            exceptions,
            asks,
        })
    }
}

/// What the process that holds calls says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Said {
    /// A call on a harmless file of its own was denied, and all that is named is marked but for these.
    Ready(Vec<Missing>),
    /// It cannot work at all, and why.
    Broken(String),
    /// What is not marked has changed.
    Marks(Vec<Missing>),
    /// The answer to a ping.
    Pong(Counts),
    /// A call that was denied, or that a rule would have denied.
    Call(Box<Call>),
}

/// A rule on a kind that is not carried out, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Its place among all rules.
    pub rule: usize,
    /// Number of the kind.
    pub kind: i32,
    /// Why.
    pub reason: String,
}

/// Since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Calls that were held and answered.
    pub held: u64,
    /// Of them denied.
    pub denied: u64,
    /// Denied calls of which the agent could not be told: its socket was full.
    pub untold: u64,
    /// Times that more calls waited than the kernel keeps: what came then was let through.
    pub overflows: u64,
}

/// What was decided about a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// It failed with EPERM.
    Denied,
    /// No policy may deny it.
    Guarded,
    /// A value that a rule asks for is unknown.
    Undecided,
    /// It could not be told whether it may be denied.
    Failed,
}

/// A call that a rule was about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// What became of it.
    pub decision: Decision,
    /// Why, if there is something to say.
    pub reason: String,
    /// The rules, by their place among all.
    pub rules: Vec<usize>,
    /// Number of the kind.
    pub kind: i32,
    /// When it was judged, ns since boot.
    pub boot_ns: u64,
    /// Who.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// Its process's start, ns since boot, to the tick of `/proc`.
    pub start_ns: u64,
    /// Path of its executable; `None` when it is not known.
    pub exe: Option<String>,
    /// Real and effective ids: uid, gid, euid, egid.
    pub ids: [u32; 4],
    /// Effective capabilities, bit n is capability n.
    pub cap_effective: u64,
    /// Path of the file as the call reached it.
    pub path: Option<String>,
    /// `FLAW_*` of it.
    pub flaws: u32,
    /// `ACCESS_*`, `OPEN_*` and `CALL_*` bits.
    pub flags: u32,
    /// Device, as the kernel encodes it; of btrfs and overlays as stat(2) names it.
    pub dev: u32,
    /// Inode.
    pub ino: u64,
    /// Type and permissions.
    pub mode: u32,
}

impl Call {
    /// Bytes that it takes in memory, about.
    #[must_use]
    pub fn size(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        size_of::<Self>()
            + size_of_val(&self.rules[..])
            + self.reason.len()
            + text(&self.exe)
            + text(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_cgroup_that_is_known_answers() {
        let answer = |own, below| Answers {
            own: [own, 0],
            below: [below, 0],
        };
        let known = [
            ("/", answer(1, 2)),
            ("/a", answer(3, 4)),
            ("/a/b/c", answer(5, 6)),
        ];
        let known = known.map(|(path, answers)| (path.to_owned(), answers));
        let mut cgroups = Cgroups::from(known);
        let deep = format!("/a{}", "/x".repeat(SCOPE_STEPS as usize + 1));
        let deeper = format!("/a/b/c{}", "/a-name-of-20-bytes-".repeat(300));
        for (path, expected) in [
            ("/", Some(1)),
            ("/a", Some(3)),
            ("/a/b", Some(4)),
            ("/a/b/c", Some(5)),
            ("/a/b/c/d", Some(6)),
            ("/b", Some(2)),
            ("/ab", Some(2)),
            (&deep, Some(4)),
            (&deeper, Some(6)),
        ] {
            let found = answers(&cgroups, path).map(|[yes, _]| yes);
            assert_eq!(found, expected, "{path}");
        }
        cgroups.remove("/");
        assert_eq!(answers(&cgroups, "/b"), None);
    }
}
