//! Policy files: read, checked, compiled to rules and a kernel filter; and the
//! scope records that say what was collected when.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use sumun_engine::Engine;
use sumun_policy::{CheckedPolicy, Plan, check_files, plan};
use sumun_proto::catalogue::kind_name;
use sumun_proto::v1::scope::Mode;
use sumun_proto::v1::{Kind, Scope, ScopeRule};

use crate::kernel::HookStatus;
use crate::status;

/// The policy directory cannot be read. A directory that is not there is no error: no policies.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the policies in {path}: {source}")]
pub struct Error {
    path: PathBuf,
    source: std::io::Error,
}

/// Policies as they are loaded.
#[derive(Debug)]
pub struct Loaded {
    policies: Vec<CheckedPolicy>,
    /// Files with errors: path and what to say.
    refused: Vec<(String, String)>,
    plan: Plan,
    engine: Arc<Engine>,
    hash: String,
}

impl Default for Loaded {
    fn default() -> Self {
        Self::compile(Vec::new(), Vec::new())
    }
}

/// Reads and checks every `*.toml` of a directory, in the order of their names. A file with
/// errors is left out and reported.
///
/// # Errors
/// When the directory cannot be read.
pub fn load(directory: &Path) -> Result<Loaded, Error> {
    let failed = |source| Error {
        path: directory.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Loaded::default());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut refused = Vec::new();
    let mut texts = Vec::new();
    for path in paths {
        let name = path.display().to_string();
        match fs::read_to_string(&path) {
            Ok(text) => texts.push((name, text)),
            Err(error) => refused.push((name.clone(), format!("{name}: cannot be read: {error}"))),
        }
    }
    let mut policies = Vec::new();
    for check in check_files(texts.iter().map(|(name, text)| (name.as_str(), text.as_str()))) {
        for line in check.to_string().lines().filter(|_| check.errors.is_empty()) {
            tracing::warn!("{line}");
        }
        match check.policy {
            Some(policy) => policies.push(policy),
            None => {
                tracing::error!("policy file refused\n{check}");
                refused.push((check.path.clone(), check.to_string()));
            }
        }
    }
    Ok(Loaded::compile(policies, refused))
}

impl Loaded {
    /// These, with the policies of `before` whose files are now refused: a bad
    /// file never unloads good rules.
    #[must_use]
    pub fn keeping(self, before: &Self) -> Self {
        let kept: Vec<_> = before
            .policies
            .iter()
            .filter(|policy| self.refused.iter().any(|(path, _)| *path == policy.path))
            .filter(|policy| self.policies.iter().all(|new| new.name != policy.name))
            .cloned()
            .collect();
        if kept.is_empty() {
            return self;
        }
        for policy in &kept {
            tracing::warn!(policy = %policy.name, path = %policy.path, "the version that was loaded stays");
        }
        let mut policies = self.policies;
        policies.extend(kept);
        policies.sort_by(|one, two| one.path.cmp(&two.path));
        Self::compile(policies, self.refused)
    }

    /// The kernel's filter.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The rules.
    #[must_use]
    pub fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.engine)
    }

    /// SHA-256 of the loaded files, hex.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Number of rules.
    #[must_use]
    pub fn rules(&self) -> usize {
        self.policies.iter().map(|policy| policy.rules.len()).sum()
    }

    /// What is wrong with the files that are not loaded.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        self.refused.iter().map(|(_, text)| text.clone()).collect()
    }

    /// The loaded policies, for the status.
    #[must_use]
    pub fn listed(&self) -> Vec<status::Policy> {
        self.policies
            .iter()
            .map(|policy| status::Policy {
                name: policy.name.clone(),
                version: policy.version,
                file: policy.path.clone(),
                hash: hex::encode(Sha256::digest(policy.source.as_bytes())),
                rules: policy.rules.len(),
            })
            .collect()
    }

    /// What is collected of each kind from a time on.
    #[must_use]
    pub fn scopes(&self, hooks: &[HookStatus], generation: u32, from_boot_ns: u64) -> Vec<Scope> {
        plan::scopes(&self.policies)
            .into_iter()
            .map(|mut scope| {
                scope.from_boot_ns = from_boot_ns;
                scope.generation = generation;
                scope.policy_hash.clone_from(&self.hash);
                if let Some(reason) = blind(hooks, scope.kind()) {
                    scope.set_mode(Mode::None);
                    scope.rules.clear();
                    scope.reason = reason;
                }
                scope
            })
            .collect()
    }

    fn compile(policies: Vec<CheckedPolicy>, refused: Vec<(String, String)>) -> Self {
        let (plan, warnings) = Plan::build(&policies);
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        let mut hash = Sha256::new();
        for policy in &policies {
            hash.update(policy.source.len().to_le_bytes());
            hash.update(policy.source.as_bytes());
        }
        Self {
            engine: Arc::new(Engine::new(&policies)),
            plan,
            hash: hex::encode(hash.finalize()),
            policies,
            refused,
        }
    }
}

/// Why nothing of a kind can be seen; `None` when it can.
fn blind(hooks: &[HookStatus], kind: Kind) -> Option<String> {
    let name = kind_name(kind);
    let mut of_kind = hooks.iter().filter(|hook| hook.kinds.contains(&name)).peekable();
    of_kind.peek()?;
    let refused: Vec<_> = of_kind.filter(|hook| !hook.available).collect();
    let reasons: Vec<_> = refused
        .iter()
        .map(|hook| format!("{}: {}", hook.hook, hook.reason.as_deref().unwrap_or("not attached")))
        .collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// The scope records of a swap that began at `before_ns` and was done at the time the
/// new scopes carry. Between the two either filter may have judged a
/// record: only what both let through is claimed for that moment.
#[must_use]
pub fn changes(old: &[Scope], new: &[Scope], before_ns: u64) -> Vec<Scope> {
    let mut records = Vec::new();
    for new in new {
        let Some(old) = old.iter().find(|old| old.kind == new.kind) else {
            records.push(new.clone());
            continue;
        };
        if old.mode == new.mode && same_rules(&old.rules, &new.rules) {
            continue;
        }
        let common = common(old, new);
        if !(common.mode == old.mode && same_rules(&common.rules, &old.rules)) {
            records.push(Scope {
                from_boot_ns: before_ns,
                ..common
            });
        }
        records.push(new.clone());
    }
    records
}

/// What is collected under both.
fn common(old: &Scope, new: &Scope) -> Scope {
    let mut both = new.clone();
    match (old.mode(), new.mode()) {
        (Mode::All, _) => {}
        (_, Mode::All) => {
            both.mode = old.mode;
            both.rules.clone_from(&old.rules);
        }
        (Mode::Filtered, Mode::Filtered) => {
            both.rules.retain(|rule| old.rules.iter().any(|old| old.predicate == rule.predicate));
            if both.rules.is_empty() {
                both.set_mode(Mode::None);
            }
        }
        _ => {
            both.set_mode(Mode::None);
            both.rules.clear();
        }
    }
    both
}

fn same_rules(one: &[ScopeRule], two: &[ScopeRule]) -> bool {
    let predicates = |rules: &[ScopeRule]| {
        let mut texts: Vec<_> = rules.iter().map(|rule| rule.predicate.clone()).collect();
        texts.sort();
        texts.dedup();
        texts
    };
    predicates(one) == predicates(two)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(mode: Mode, predicates: &[&str], from: u64) -> Scope {
        Scope {
            kind: Kind::Open.into(),
            mode: mode.into(),
            from_boot_ns: from,
            rules: predicates
                .iter()
                .map(|predicate| ScopeRule {
                    predicate: (*predicate).into(),
                    ..ScopeRule::default()
                })
                .collect(),
            ..Scope::default()
        }
    }

    fn shape(scopes: &[Scope]) -> Vec<(u64, Mode, Vec<&str>)> {
        scopes
            .iter()
            .map(|scope| {
                let rules = scope.rules.iter().map(|rule| rule.predicate.as_str()).collect();
                (scope.from_boot_ns, scope.mode(), rules)
            })
            .collect()
    }

    #[test]
    fn between_two_filters_only_what_both_let_through_is_claimed() {
        let old = [scope(Mode::Filtered, &["a", "b"], 1)];
        let wider = changes(&old, &[scope(Mode::Filtered, &["a", "b", "c"], 9)], 7);
        assert_eq!(shape(&wider), [(9, Mode::Filtered, vec!["a", "b", "c"])]);
        let narrower = changes(&old, &[scope(Mode::Filtered, &["b"], 9)], 7);
        assert_eq!(
            shape(&narrower),
            [(7, Mode::Filtered, vec!["b"]), (9, Mode::Filtered, vec!["b"])]
        );
        let other = changes(&old, &[scope(Mode::Filtered, &["x"], 9)], 7);
        assert_eq!(shape(&other)[0], (7, Mode::None, vec![]));
        assert!(changes(&old, &[scope(Mode::Filtered, &["b", "a"], 9)], 7).is_empty());
        let all = changes(&old, &[scope(Mode::All, &[], 9)], 7);
        assert_eq!(shape(&all), [(9, Mode::All, vec![])]);
    }

    #[test]
    fn a_bad_file_never_unloads_good_rules() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("one.toml");
        let good = "[policy]\nname = \"one\"\nversion = 1\n[[rule]]\nid = \"r\"\non = [\"exec\"]\n";
        fs::write(&file, good).expect("write");
        let first = load(dir.path()).expect("load");
        assert_eq!((first.rules(), first.errors().len()), (1, 0));
        fs::write(&file, "[policy]\nnmae = \"one\"\n").expect("write");
        let second = load(dir.path()).expect("load").keeping(&first);
        assert_eq!((second.rules(), second.errors().len()), (1, 1));
        assert_eq!(second.hash(), first.hash());
        fs::remove_file(&file).expect("remove");
        let third = load(dir.path()).expect("load").keeping(&second);
        assert_eq!(third.rules(), 0);
    }
}
