//! Policy files: read, checked, compiled to rules and a kernel filter; and the
//! scope records that say what was collected when.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use sumun_engine::Engine;
use sumun_policy::deny::{self, DenyRule};
use sumun_policy::doors::{DENIABLE, Doors};
use sumun_policy::file::FILE_MAX;
use sumun_policy::verdict::{self, Late, VerdictPlan};
use sumun_policy::{CheckedPolicy, Effect, Plan, Problem, check_files, loaded, plan, report};
use sumun_proto::catalogue::kind_name;
use sumun_proto::v1::scope::Mode;
use sumun_proto::v1::{
    EffectiveMode, Kind, LoadedPolicies, PolicyRef, RefusedPolicy, Scope, ScopeRule,
};

use crate::enforce::deny::Carried;
use crate::enforce::fanotify as holding;
use crate::integrity::Check;
use crate::kernel::{HookStatus, Trial};

/// A policy directory or file cannot be read. A directory that is not there is no error: no policies.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {source}")]
pub struct Error {
    path: PathBuf,
    source: std::io::Error,
}

/// Policies as they are loaded.
#[derive(Clone, Debug)]
pub struct Loaded {
    policies: Vec<CheckedPolicy>,
    /// What is wrong with files that have errors.
    refused: Vec<RefusedPolicy>,
    plan: Plan,
    /// Where the kernel can deny.
    doors: Doors,
    /// What the kernel judges alone.
    verdicts: VerdictPlan,
    /// Rules that kill or deny, but that only the agent can judge.
    late: Vec<Late>,
    /// Rules that deny and can be carried out by holding calls.
    held: Vec<DenyRule>,
    engine: Arc<Engine>,
    hash: String,
    loaded_ns: i64,
}

impl Default for Loaded {
    fn default() -> Self {
        Self::none(Doors::default())
    }
}

/// Reads and checks every `*.toml` of a directory, in the order of their names. A file with
/// errors is reported, and what `before` had loaded from it stays: a bad file never unloads
/// good rules.
///
/// # Errors
/// When the directory or a file in it cannot be read.
pub fn load(directory: &Path, before: &Loaded) -> Result<Loaded, Error> {
    let failed = |path: &Path, source| Error {
        path: path.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Loaded::none(before.doors.clone()));
        }
        Err(error) => return Err(failed(directory, error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| failed(directory, error))?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
    }
    paths.sort();
    let (mut texts, mut not_utf8) = (Vec::new(), Vec::new());
    for path in paths {
        let mut bytes = Vec::new();
        // One byte more than is taken: the check says that it is too long.
        fs::File::open(&path)
            .and_then(|file| file.take(FILE_MAX as u64 + 1).read_to_end(&mut bytes))
            .map_err(|error| failed(&path, error))?;
        let (text, fault) = match String::from_utf8(bytes) {
            Ok(text) => (text, None),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                (text, Some(valid))
            }
        };
        texts.push((path.display().to_string(), text));
        not_utf8.push(fault);
    }
    let mut checks = check_files(
        texts
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str())),
    );
    let now_ns = wall_ns();
    let mut refused = Vec::new();
    for (check, (not_utf8, (_, text))) in checks.iter_mut().zip(not_utf8.iter().zip(&texts)) {
        if let Some(offset) = not_utf8 {
            // Also where TOML would take any character, as in a comment: the hash is that of the file.
            let message = "the file is not UTF-8: save it as UTF-8";
            check.errors.push(Problem::at(text, *offset, message));
            check.policy = None;
        }
        check.warn_of_expiry(now_ns);
        if check.policy.is_none() {
            tracing::error!("policy file refused; what was loaded from it before stays\n{check}");
            let kept = before
                .policies
                .iter()
                .find(|policy| policy.path == check.path)
                .map_or_else(String::new, |policy| policy.name.clone());
            refused.push(RefusedPolicy {
                file: check.path.clone(),
                error: check.to_string(),
                kept,
            });
        } else if !check.warnings.is_empty() {
            tracing::warn!("{check}");
        }
    }
    let policies = loaded(&checks, &before.policies);
    for refused in &mut refused {
        // Another file may have taken its name.
        if policies.iter().all(|policy| policy.path != refused.file) {
            refused.kept.clear();
        }
    }
    Ok(Loaded::compile(policies, refused, before.doors.clone()))
}

impl Loaded {
    /// No rules, on a host with these doors.
    #[must_use]
    pub fn none(doors: Doors) -> Self {
        Self::compile(Vec::new(), Vec::new(), doors)
    }

    /// Where the kernel can deny, as these rules were compiled for.
    #[must_use]
    pub fn doors(&self) -> &Doors {
        &self.doors
    }

    /// The same rules for other doors.
    #[must_use]
    pub fn with_doors(self, doors: Doors) -> Self {
        let (verdicts, late) = VerdictPlan::build(&self.policies, &doors, wall_ns());
        Self {
            held: deny::plan(&self.policies, &doors, &late),
            doors,
            verdicts,
            late,
            ..self
        }
    }

    /// The kernel's filter.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The rules that kill and that the kernel judges alone.
    #[must_use]
    pub fn verdicts(&self) -> &VerdictPlan {
        &self.verdicts
    }

    /// The rules that deny, of those that can be carried out by holding opens and executions.
    #[must_use]
    pub fn held(&self) -> &[DenyRule] {
        &self.held
    }

    /// The rules that isolate in `enforce`, by policy and id; and whether any rule isolates at all.
    #[must_use]
    pub fn isolating(&self) -> (HashSet<(String, String)>, bool) {
        let (mut rules, mut asked) = (HashSet::new(), false);
        for policy in &self.policies {
            for rule in &policy.rules {
                if rule.effect == Effect::Isolate {
                    asked = true;
                    if policy.mode == sumun_policy::Mode::Enforce {
                        rules.insert((policy.name.clone(), rule.id.clone()));
                    }
                }
            }
        }
        (rules, asked)
    }

    /// A rule kills, denies or isolates in `enforce`: the agent may have to do it, or to tell the kernel of whom it holds.
    #[must_use]
    pub fn acts(&self) -> bool {
        let mut enforced = self
            .policies
            .iter()
            .filter(|policy| policy.mode == sumun_policy::Mode::Enforce)
            .flat_map(|policy| &policy.rules);
        enforced.any(|rule| !matches!(rule.effect, Effect::Record | Effect::Alert))
    }

    /// How rules that deny in `enforce` are carried out on a kind, by their place among all.
    #[must_use]
    pub fn denied(
        &self,
        hooks: &[HookStatus],
        holding: &holding::Report,
    ) -> BTreeMap<(usize, i32), Carried> {
        let mut carried = BTreeMap::new();
        let mut number = 0;
        for policy in self.report(hooks, holding).policies {
            for rule in policy.rules {
                if rule.effect == "deny" && policy.mode == "enforce" {
                    for kind in &rule.kinds {
                        let how = match kind.mode.as_str() {
                            "deny" => Carried::ByKernel,
                            "deny-via-agent" => Carried::ByHolding,
                            _ => Carried::Not(kind.reason.clone()),
                        };
                        carried.insert((number, kind.kind), how);
                    }
                }
                number += 1;
            }
        }
        carried
    }

    /// The same with the exceptions that apply at a time, ns since the Unix epoch, if the kernel's rules
    /// are others then.
    #[must_use]
    pub fn renewed(&self, now_ns: i64) -> Option<Self> {
        // Mostly none expires at all.
        verdict::next_expiry(&self.policies, i64::MIN)?;
        let (verdicts, late) = VerdictPlan::build(&self.policies, &self.doors, now_ns);
        (verdicts != self.verdicts).then(|| Self {
            held: deny::plan(&self.policies, &self.doors, &late),
            verdicts,
            late,
            ..self.clone()
        })
    }

    /// The kernel takes none of the rules that kill or deny: all are judged in the agent.
    pub fn without_kernel(&mut self, reason: &str) {
        let plan = std::mem::take(&mut self.verdicts);
        let judged = plan.clauses.iter().flat_map(|clause| {
            let killed = [Kind::Exec].into_iter().chain(verdict::AFTER);
            let killed = killed.map(|kind| (kind, verdict::kind_bit(kind)));
            let denied = DENIABLE.map(|kind| (kind, verdict::denied_bit(kind)));
            killed
                .chain(denied)
                .filter(|(_, bit)| clause.kinds & bit != 0)
                .map(|(kind, _)| (clause.rule, kind))
        });
        let judged: BTreeSet<(usize, Kind)> = judged.collect();
        self.late
            .extend(judged.into_iter().map(|(rule, kind)| Late {
                rule,
                kind,
                reason: reason.to_owned(),
            }));
        self.late.sort_by_key(|late| late.rule);
        self.held = deny::plan(&self.policies, &self.doors, &self.late);
    }

    /// The same with the rules that try the ways to kill; nothing is told of these.
    #[must_use]
    pub fn on_trial(&self) -> (Self, Trial) {
        let mut tried = self.clone();
        let trial = Trial::behind(&mut tried.plan, &mut tried.verdicts, self.rules());
        (tried, trial)
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
    pub fn refused(&self) -> &[RefusedPolicy] {
        &self.refused
    }

    /// Says which exceptions have expired between two times, ns since the Unix epoch.
    pub fn tell_expired(&self, from_ns: i64, to_ns: i64) {
        for policy in &self.policies {
            for rule in &policy.rules {
                let expired = rule.exceptions.iter().filter(|exception| {
                    exception
                        .expires_ns
                        .is_some_and(|expires| from_ns < expires && expires <= to_ns)
                });
                for exception in expired {
                    tracing::warn!(
                        policy = policy.name,
                        rule = rule.id,
                        exception = exception.name,
                        owner = exception.owner,
                        "an exception has expired: the rule applies again"
                    );
                }
            }
        }
    }

    /// What is in force, and what of it works with these hooks.
    #[must_use]
    pub fn report(&self, hooks: &[HookStatus], holding: &holding::Report) -> LoadedPolicies {
        let mut loaded = LoadedPolicies {
            hash: self.hash.clone(),
            loaded_ns: self.loaded_ns,
            policies: report::policies(&self.policies, (&self.doors, &self.late), sha256, |kind| {
                blind(hooks, kind)
            }),
            refused: self.refused.clone(),
            left_out: 0,
        };
        report::not_held(&mut loaded.policies, &self.held, |number, kind| {
            holding.reason(number, kind)
        });
        report::bound(&mut loaded);
        loaded
    }

    /// Says of rules on what the kernel does not show which of the checks that they name cannot be made. A rule that names
    /// none asks for all.
    pub fn without_checks(&self, report: &mut LoadedPolicies, blind: &BTreeMap<Check, String>) {
        let rules = self.policies.iter().flat_map(|policy| &policy.rules);
        let told = report.policies.iter_mut();
        for (rule, told) in rules.zip(told.flat_map(|policy| &mut policy.rules)) {
            if !rule.kinds.contains(&Kind::Integrity) {
                continue;
            }
            let text = rule.predicate.to_string();
            let names = |check: &Check| text.contains(&format!("\"{}\"", check.name()));
            let mut named: Vec<_> = Check::ALL.into_iter().filter(names).collect();
            if named.is_empty() {
                named = Check::ALL.into();
            }
            let missed = || blind.iter().filter(|(check, _)| named.contains(check));
            if missed().next().is_none() {
                continue;
            }
            let of_integrity = |mode: &&mut EffectiveMode| mode.kind() == Kind::Integrity;
            for mode in told.kinds.iter_mut().filter(of_integrity) {
                if missed().count() == named.len() {
                    mode.mode = "none".into();
                    mode.reason.clear();
                }
                let before = std::mem::take(&mut mode.reason);
                let reasons = [before, unseen(missed())];
                let reasons = reasons.into_iter().filter(|reason| !reason.is_empty());
                mode.reason = reasons.collect::<Vec<_>>().join("; ");
            }
        }
    }

    /// The policies with a rule on a kind.
    fn policies_on(&self, kind: Kind) -> Vec<PolicyRef> {
        self.policies
            .iter()
            .filter(|policy| policy.rules.iter().any(|rule| rule.kinds.contains(&kind)))
            .map(|policy| PolicyRef {
                name: policy.name.clone(),
                version: policy.version,
                sha256: sha256(policy),
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
                scope.policies = self.policies_on(scope.kind());
                if let Some(reason) = blind(hooks, scope.kind()) {
                    scope.set_mode(Mode::None);
                    scope.rules.clear();
                    scope.reason = reason;
                }
                scope
            })
            .collect()
    }

    fn compile(policies: Vec<CheckedPolicy>, refused: Vec<RefusedPolicy>, doors: Doors) -> Self {
        let (plan, warnings) = Plan::build(&policies);
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        let loaded_ns = wall_ns();
        let (verdicts, late) = VerdictPlan::build(&policies, &doors, loaded_ns);
        let mut hash = Sha256::new();
        for policy in &policies {
            hash.update(policy.sha256);
        }
        Self {
            engine: Arc::new(Engine::new(&policies)),
            plan,
            held: deny::plan(&policies, &doors, &late),
            doors,
            verdicts,
            late,
            hash: hex::encode(hash.finalize()),
            policies,
            refused,
            loaded_ns,
        }
    }
}

/// Says of rules that isolate that this host cannot be cut off.
pub fn without_isolation(report: &mut LoadedPolicies, reason: &str) {
    let rules = report
        .policies
        .iter_mut()
        .flat_map(|policy| &mut policy.rules);
    for kind in rules.flat_map(|rule| &mut rule.kinds) {
        if kind.mode == "isolate" {
            kind.mode = "alert".into();
            kind.reason = format!("not isolated: {reason}");
        }
    }
}

/// Claims of what the kernel does not show only what can be looked for: a check that is blind is not collected.
pub fn narrow(scopes: &mut [Scope], blind: &BTreeMap<Check, String>) {
    let seen = Check::ALL.into_iter();
    let mut seen: Vec<_> = seen
        .filter(|check| !blind.contains_key(check))
        .map(|check| format!("\"{}\"", check.name()))
        .collect();
    seen.sort_unstable();
    let of_integrity = scopes
        .iter_mut()
        .filter(|scope| scope.kind() == Kind::Integrity && scope.mode() == Mode::All);
    for scope in of_integrity {
        let predicate = match seen.as_slice() {
            all if all.len() == Check::ALL.len() => continue,
            [] => None,
            [one] => Some(format!("integrity.check == {one}")),
            more => Some(format!("integrity.check in [{}]", more.join(", "))),
        };
        scope.reason = unseen(blind.iter());
        scope.set_mode(match predicate {
            None => Mode::None,
            Some(_) => Mode::Filtered,
        });
        scope.rules = predicate
            .map(|predicate| ScopeRule {
                predicate,
                ..ScopeRule::default()
            })
            .into_iter()
            .collect();
    }
}

fn unseen<'a>(blind: impl Iterator<Item = (&'a Check, &'a String)>) -> String {
    let each: Vec<_> = blind
        .map(|(check, reason)| format!("{}: {reason}", check.name()))
        .collect();
    each.join("; ")
}

/// Of the bytes of the file it was loaded from, hex.
fn sha256(policy: &CheckedPolicy) -> String {
    hex::encode(policy.sha256)
}

/// The wall clock now, ns since the Unix epoch.
#[must_use]
pub fn wall_ns() -> i64 {
    let now = time::OffsetDateTime::now_utc().unix_timestamp_nanos();
    i64::try_from(now).unwrap_or(i64::MAX)
}

/// Why nothing of a kind can be seen; `None` when it can.
fn blind(hooks: &[HookStatus], kind: Kind) -> Option<String> {
    let name = kind_name(kind);
    let mut of_kind = hooks
        .iter()
        .filter(|hook| hook.kinds.contains(&name))
        .peekable();
    of_kind.peek()?;
    let refused: Vec<_> = of_kind.filter(|hook| !hook.available).collect();
    let reasons: Vec<_> = refused
        .iter()
        .map(|hook| {
            format!(
                "{}: {}",
                hook.hook,
                hook.reason.as_deref().unwrap_or("not attached")
            )
        })
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
        let same = old.mode == new.mode && same_rules(&old.rules, &new.rules);
        if same {
            // Another version of a file that collects the same is on record, too.
            if old.policies != new.policies {
                records.push(new.clone());
            }
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
            both.rules
                .retain(|rule| old.rules.iter().any(|old| said(old) == said(rule)));
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
    let (one, two): (BTreeSet<_>, BTreeSet<_>) = (
        one.iter().map(said).collect(),
        two.iter().map(said).collect(),
    );
    one == two
}

/// What a record says of a rule: its predicate, or if that was too long its name.
fn said(rule: &ScopeRule) -> (String, &str) {
    match rule.predicate.as_str() {
        "" => (format!("{}/{}", rule.policy, rule.rule), ""),
        predicate => (String::new(), predicate),
    }
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
                let rules = scope
                    .rules
                    .iter()
                    .map(|rule| rule.predicate.as_str())
                    .collect();
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
            [
                (7, Mode::Filtered, vec!["b"]),
                (9, Mode::Filtered, vec!["b"])
            ]
        );
        let other = changes(&old, &[scope(Mode::Filtered, &["x"], 9)], 7);
        assert_eq!(shape(&other)[0], (7, Mode::None, vec![]));
        assert!(changes(&old, &[scope(Mode::Filtered, &["b", "a"], 9)], 7).is_empty());
        let all = changes(&old, &[scope(Mode::All, &[], 9)], 7);
        assert_eq!(shape(&all), [(9, Mode::All, vec![])]);
    }

    /// A predicate that is too long for the record is known by its rule's name.
    #[test]
    fn rules_without_a_predicate_are_told_apart_by_their_names() {
        let named = |names: &[&str], from| {
            let mut one = scope(Mode::Filtered, &vec![""; names.len()], from);
            for (rule, name) in one.rules.iter_mut().zip(names) {
                rule.rule = (*name).into();
            }
            [one]
        };
        let names = |scope: &Scope| {
            let rules = scope.rules.iter();
            rules.map(|rule| rule.rule.clone()).collect::<Vec<_>>()
        };
        let found = changes(&named(&["x", "y"], 1), &named(&["y", "z"], 9), 7);
        assert_eq!(
            found
                .iter()
                .map(|scope| (scope.from_boot_ns, names(scope)))
                .collect::<Vec<_>>(),
            [(7, vec!["y".into()]), (9, vec!["y".into(), "z".into()])]
        );
        assert!(changes(&named(&["x", "y"], 1), &named(&["y", "x"], 9), 7).is_empty());
    }

    #[test]
    fn a_bad_file_never_unloads_good_rules() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("one.toml");
        let good = "[policy]\nname = \"one\"\nversion = 1\n[[rule]]\nid = \"r\"\non = [\"exec\"]\n";
        fs::write(&file, good).expect("write");
        let first = load(dir.path(), &Loaded::default()).expect("load");
        assert_eq!((first.rules(), first.refused().len()), (1, 0));
        fs::write(&file, "[policy]\nnmae = \"one\"\n").expect("write");
        let second = load(dir.path(), &first).expect("load");
        assert_eq!((second.rules(), second.refused().len()), (1, 1));
        assert_eq!(second.refused()[0].kept, "one");
        assert!(second.refused()[0].error.contains("one.toml:2:1: error:"));
        assert_eq!(second.hash(), first.hash());
        fs::remove_file(&file).expect("remove");
        let third = load(dir.path(), &second).expect("load");
        assert_eq!(third.rules(), 0);
        fs::write(&file, [good.as_bytes(), b"# \xff\n"].concat()).expect("write");
        let fourth = load(dir.path(), &third).expect("load");
        assert!(
            fourth.refused()[0]
                .error
                .contains("one.toml:7:3: error: the file is not UTF-8")
        );
        assert_eq!((fourth.rules(), fourth.refused()[0].kept.as_str()), (0, ""));
    }

    #[test]
    fn a_reload_is_on_record_with_the_hash_of_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("one.toml");
        let text = "[policy]\nname = \"one\"\nversion = 1\n[[rule]]\nid = \"r\"\non = [\"open\"]\n\
            when = 'file.path == \"/x\"'\n";
        let scopes = |text: &str, before: &Loaded| {
            fs::write(&file, text).expect("write");
            let loaded = load(dir.path(), before).expect("load");
            let scopes = loaded.scopes(&[], 1, 5);
            (loaded, scopes)
        };
        let (first, old) = scopes(text, &Loaded::default());
        let (second, same) = scopes(text, &first);
        assert!(changes(&old, &same, 3).is_empty());
        let edited = format!("{text}# a remark\n");
        let (third, new) = scopes(&edited, &second);
        let records = changes(&old, &new, 3);
        let [record] = &records[..] else {
            panic!("one record, not {records:?}");
        };
        assert_eq!((record.kind(), record.from_boot_ns), (Kind::Open, 5));
        let hash = hex::encode(Sha256::digest(edited.as_bytes()));
        assert_eq!(record.policies[0].sha256, hash);
        let report = third.report(&[], &holding::Report::default());
        let named = report.policies[0].policy.as_ref().expect("a name");
        assert_eq!((&named.sha256, named.version), (&hash, 1));
        assert_ne!(
            report.hash,
            first.report(&[], &holding::Report::default()).hash
        );
    }

    #[test]
    fn a_check_that_is_blind_is_neither_collected_nor_in_force() {
        let dir = tempfile::tempdir().expect("a directory");
        let rule = |id: &str, when: &str| {
            format!("[[rule]]\nid = \"{id}\"\non = [\"integrity\"]\n{when}\n")
        };
        let text = [
            "[policy]\nname = \"one\"\nversion = 1\n".to_owned(),
            rule("any", ""),
            rule("hook", "when = 'integrity.check == \"function_hook\"'"),
            rule(
                "two",
                "when = 'integrity.check in [\"function_hook\", \"hidden_module\"]'",
            ),
            rule("other", "when = 'integrity.check == \"hidden_process\"'"),
        ];
        fs::write(dir.path().join("one.toml"), text.concat()).expect("write");
        let loaded = load(dir.path(), &Loaded::default()).expect("load");
        let blind = |checks: &[Check]| -> BTreeMap<Check, String> {
            let reason = |check: &Check| (*check, "not mounted".to_owned());
            checks.iter().map(reason).collect()
        };
        let modes = |blind: &BTreeMap<Check, String>| {
            let mut report = loaded.report(&[], &holding::Report::default());
            loaded.without_checks(&mut report, blind);
            let rules = report.policies[0].rules.iter();
            let mode = |rule: &sumun_proto::v1::LoadedRule| {
                let mode = &rule.kinds[0];
                (mode.mode.clone(), mode.reason.contains("not mounted"))
            };
            rules.map(mode).collect::<Vec<_>>()
        };
        let (alert, none) = (|told| ("alert".to_owned(), told), ("none".to_owned(), true));
        assert_eq!(
            modes(&blind(&[])),
            [alert(false), alert(false), alert(false), alert(false)]
        );
        let hooks = blind(&[Check::FunctionHook, Check::Kprobe]);
        assert_eq!(
            modes(&hooks),
            [alert(true), none.clone(), alert(true), alert(false)]
        );
        assert_eq!(
            modes(&blind(&Check::ALL)),
            [none.clone(), none.clone(), none.clone(), none]
        );

        let narrowed = |blind: &BTreeMap<Check, String>| {
            let mut scopes = loaded.scopes(&[], 1, 5);
            narrow(&mut scopes, blind);
            let scope = scopes
                .into_iter()
                .find(|scope| scope.kind() == Kind::Integrity);
            scope.expect("each kind has one")
        };
        assert_eq!(narrowed(&blind(&[])).mode(), Mode::All);
        let some = narrowed(&hooks);
        assert_eq!(some.mode(), Mode::Filtered);
        assert!(
            some.reason.contains("function_hook: not mounted"),
            "{}",
            some.reason
        );
        // As the collector asks it.
        let parsed = |text: &str| {
            sumun_policy::Predicate::parse_canonical(text)
                .unwrap_or_else(|error| panic!("{text}: {error:?}"))
        };
        let covers = |query: &str, scope: &Scope| {
            sumun_policy::covers(&parsed(query), &parsed(&scope.rules[0].predicate))
        };
        assert!(covers("integrity.check == \"hidden_process\"", &some));
        assert!(covers(
            "integrity.check in [\"hidden_module\", \"hidden_process\"]",
            &some
        ));
        assert!(!covers("integrity.check == \"function_hook\"", &some));
        let one = narrowed(&blind(&Check::ALL[1..]));
        assert!(covers("integrity.check == \"hidden_process\"", &one));
        let all = narrowed(&blind(&Check::ALL));
        assert_eq!((all.mode(), all.rules.len()), (Mode::None, 0));
    }
}
