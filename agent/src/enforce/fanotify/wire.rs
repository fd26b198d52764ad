//! What the agent and the process that holds calls tell each other.
//!
//! The plan comes by standard input, once. Everything after it goes over a socket of whole messages: the agent
//! asks whether the other still answers, the other says what it has held.

use serde::{Deserialize, Serialize};
use sumun_policy::deny::{DenyRule, Names};
use sumun_policy::{Matcher, Predicate};
use sumun_proto::text;
use sumun_proto::v1::Kind;

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
    pub rules: Vec<PlanRule>,
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
    pub matcher: Matcher,
    pub exceptions: Vec<(Matcher, Option<i64>)>,
}

impl PlanRule {
    /// Compiles it.
    ///
    /// # Errors
    /// The agent is of another version.
    pub(super) fn compile(&self) -> Result<Held, String> {
        let matcher = |canonical: &str| {
            Predicate::parse_canonical(canonical)
                .map(|predicate| Matcher::compile(&predicate))
                .map_err(|_| format!("cannot read the predicate {canonical:?}"))
        };
        let paths = |texts: &[String]| {
            texts
                .iter()
                .filter_map(|text| text::to_bytes(text))
                .collect()
        };
        Ok(Held {
            rule: self.rule,
            kind: Kind::try_from(self.kind).map_err(|error| error.to_string())?,
            names: Names {
                files: paths(&self.files),
                prefixes: paths(&self.prefixes),
            },
            matcher: matcher(&self.predicate)?,
            exceptions: self
                .exceptions
                .iter()
                .map(|(predicate, expires)| Ok((matcher(predicate)?, *expires)))
                .collect::<Result<_, String>>()?,
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
