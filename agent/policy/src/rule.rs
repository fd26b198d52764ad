//! Reading the rules of a policy file.

use std::time::Duration;

use sumun_proto::FieldId;
use sumun_proto::catalogue::{KINDS, kind_name};
use sumun_proto::v1::{Kind, Severity};
use toml::de::DeTable;

use crate::check::Lists;
use crate::coarse::EXACT_MAX;
use crate::condition::beyond_the_kernel;
use crate::deny::{closes, doubted};
use crate::essential;
use crate::explain::{ISOLATED, loosened};
use crate::file::{CheckedPolicy, Effect, Presumed, RULES_MAX, Rate, Rule};
use crate::ir::Predicate;
use crate::narrow::{narrow, never, on_kind};
use crate::plan::{Clause, is_life, is_own, is_unfiltered, is_whole};
use crate::problem::Problem;
use crate::read::{Reader, Value};
use crate::selector::Selector;
use crate::time;
use crate::verdict::{AFTER, holds_always, late_alone};

const RULE_KEYS: &[&str] = &[
    "id",
    "title",
    "on",
    "when",
    "effect",
    "force",
    "kill",
    "for",
    "severity",
    "attack",
    "rate",
    "exception",
];
const EFFECTS: &[&str] = &["record", "alert", "kill", "deny", "isolate"];
const EFFECTS_LATER: &[&str] = &["quarantine", "capture"];
const SEVERITIES: &[(&str, Severity)] = &[
    ("info", Severity::Info),
    ("low", Severity::Low),
    ("medium", Severity::Medium),
    ("high", Severity::High),
    ("critical", Severity::Critical),
];
/// Longest title, in bytes.
const TITLE_MAX: usize = 256;
/// Most techniques of a rule.
const ATTACK_MAX: usize = 32;

impl Reader<'_> {
    pub(crate) fn rules(
        &mut self,
        value: &Value<'_>,
        policy: &mut CheckedPolicy,
        selector: &Selector,
    ) {
        let Some(rules) = value.get_ref().as_array() else {
            self.error(value.span().start, "rule is no list: write [[rule]]");
            return;
        };
        if rules.len() > RULES_MAX {
            self.error(
                value.span().start,
                format!(
                    "the policy has {} rules, at most {RULES_MAX} are taken",
                    rules.len()
                ),
            );
            return;
        }
        for value in rules {
            let Some(table) = self.table(value, "rule") else {
                continue;
            };
            if let Some(rule) = self.rule(value.span().start, table, (&policy.lists, selector)) {
                if policy.rules.iter().any(|known| known.id == rule.id) {
                    let offset = table
                        .get("id")
                        .map_or(value.span().start, |id| id.span().start);
                    self.error(
                        offset,
                        format!(
                            "the rule id {:?} is used twice: give this one another",
                            rule.id
                        ),
                    );
                }
                policy.rules.push(rule);
            }
        }
    }

    fn rule(
        &mut self,
        start: usize,
        table: &DeTable<'_>,
        (lists, selector): (&Lists, &Selector),
    ) -> Option<Rule> {
        let faults = self.errors.len();
        self.keys("in [[rule]]", table, RULE_KEYS, &[]);
        let id = match table.get("id") {
            Some(value) => self.name(value, "id"),
            None => {
                self.error(start, "id is missing in [[rule]]");
                None
            }
        };
        let title = table
            .get("title")
            .and_then(|value| self.text(value, "title", TITLE_MAX))
            .unwrap_or_default();
        let kinds = match table.get("on") {
            Some(value) => self.kinds(value),
            None => {
                self.error(start, "on is missing in [[rule]]: write on = [\"exec\"]");
                Vec::new()
            }
        };
        let effect = table
            .get("effect")
            .and_then(|value| self.choice(value, "effect", EFFECTS, EFFECTS_LATER));
        let severity = table
            .get("severity")
            .and_then(|value| {
                let names: Vec<&str> = SEVERITIES.iter().map(|(name, _)| *name).collect();
                let chosen = self.choice(value, "severity", &names, &[])?;
                SEVERITIES.iter().find(|(name, _)| *name == chosen)
            })
            .map_or(Severity::Medium, |(_, severity)| *severity);
        let attack = table
            .get("attack")
            .map_or_else(Vec::new, |value| self.attack(value));
        let predicate = match table.get("when") {
            Some(value) => self.predicate(value, lists, &kinds),
            None => Some(Predicate::everything()),
        };
        let place = table.get("when").map_or(start, |value| value.span().start);
        let presumed = predicate
            .as_ref()
            .filter(|_| selector.pending_is_inside)
            .map(|when| Presumed {
                selector: selector.asked.clone(),
                when: when.clone(),
            });
        let predicate =
            predicate.and_then(|predicate| self.within(&selector.asked, predicate, place));
        if let Some(predicate) = &predicate {
            self.cost(place, predicate, &kinds);
        }
        let effect = match effect {
            Some("record") => Effect::Record,
            Some("kill") => Effect::Kill,
            Some("deny") => Effect::Deny,
            Some("isolate") => Effect::Isolate,
            _ => Effect::Alert,
        };
        let force = table
            .get("force")
            .is_some_and(|value| self.force(value, effect));
        let lineage = table
            .get("kill")
            .is_some_and(|value| self.lineage(value, effect));
        let lasts = table.get("for").and_then(|value| self.lasts(value, effect));
        let exceptions = table.get("exception").map_or_else(Vec::new, |value| {
            self.exceptions(value, lists, &kinds, effect)
        });
        let rate = table.get("rate").and_then(|value| self.rate(value, effect));
        let rule = Rule {
            id: id?,
            title,
            kinds,
            predicate: predicate?,
            presumed,
            effect,
            force,
            lineage,
            lasts,
            severity,
            attack,
            exceptions,
            rate,
        };
        let place = |key: &str| table.get(key).map_or(start, |value| value.span().start);
        match effect {
            Effect::Kill => self.kill(place("on"), place("when"), &rule),
            Effect::Deny => self.deny(place("on"), place("when"), &rule),
            Effect::Isolate => self.isolate(place("effect"), place("when"), &rule),
            Effect::Record | Effect::Alert => {}
        }
        (self.errors.len() == faults).then_some(rule)
    }

    fn force(&mut self, value: &Value<'_>, effect: Effect) -> bool {
        let offset = value.span().start;
        let Some(force) = value.get_ref().as_bool() else {
            let ty = value.get_ref().type_str();
            self.error(
                offset,
                format!("force is {ty}, but it has to be true or false"),
            );
            return false;
        };
        if force && !matches!(effect, Effect::Kill | Effect::Deny | Effect::Isolate) {
            self.warning(
                offset,
                "force changes nothing: it lets a rule with the effect kill, deny or isolate have no condition",
            );
        }
        force
    }

    /// Whom a rule kills.
    fn lineage(&mut self, value: &Value<'_>, effect: Effect) -> bool {
        let lineage = self.choice(value, "kill", &["process", "lineage"], &[]) == Some("lineage");
        if effect != Effect::Kill {
            self.warning(
                value.span().start,
                "kill changes nothing: it says whom a rule with the effect kill kills",
            );
        }
        lineage
    }

    /// What a rule that kills has to be, and what it may be thought to be.
    fn kill(&mut self, on: usize, when: usize, rule: &Rule) {
        for kind in &rule.kinds {
            let name = kind_name(*kind);
            if *kind == Kind::Exit {
                self.error(
                    on,
                    "there is nothing to kill on exit, the process has ended by then: take the kind out, or write effect = \"alert\"",
                );
            } else if !rule.force && holds_always(&rule.predicate, *kind) {
                self.error(
                    when,
                    format!("the rule would kill on every {name}, whatever the process is: write a condition that says which, or force = true if every one is meant"),
                );
            } else if !rule.force
                && let Some((what, path)) = essential::killed(rule, *kind)
            {
                self.error(
                    when,
                    format!("the rule would kill {what} on {name} ({path}), without which nobody may get at the host or its containers: leave it out of the condition, make an exception of it, or write force = true if it is meant"),
                );
                // On the other kinds it is mostly the same.
                break;
            }
        }
        let late = |kind: &Kind| late_alone(rule, *kind).map(|why| (*kind, why));
        let mut judged = [Kind::Exec].into_iter().chain(AFTER);
        // The first is enough: mostly it is the same condition on each.
        if let Some((kind, why)) =
            judged.find_map(|kind| rule.kinds.iter().find(|on| **on == kind).and_then(late))
        {
            let (name, instead) = match kind {
                Kind::Exec => ("exec", "before it starts"),
                kind => (kind_name(kind), "by the kernel"),
            };
            self.warning(
                when,
                format!("on {name} the process is killed late, once the agent has judged the event, and not {instead}: {why}"),
            );
        }
    }

    /// What a rule that denies has to be, and where it will not be carried out.
    fn deny(&mut self, on: usize, when: usize, rule: &Rule) {
        for kind in &rule.kinds {
            let name = kind_name(*kind);
            if matches!(kind, Kind::Exit | Kind::Fork) {
                self.error(
                    on,
                    format!("there is nothing to deny on {name}: take the kind out, or write effect = \"alert\""),
                );
                continue;
            }
            if !rule.force && holds_always(&rule.predicate, *kind) {
                self.error(
                    when,
                    format!("the rule would deny every {name}: write a condition that says which, or force = true if every one is meant"),
                );
            } else if !rule.force
                && let Some(folder) = closes(rule, *kind)
            {
                self.error(
                    when,
                    format!("the rule would close {folder} to every program, so that none starts: name a narrower folder or the programs, or write force = true if that is meant"),
                );
            }
            if let Some(why) = doubted(rule, *kind) {
                self.warning(when, format!("on {name} {why}"));
            }
        }
    }

    /// What a rule that isolates has to be, and what it does and does not.
    fn isolate(&mut self, effect: usize, when: usize, rule: &Rule) {
        for kind in &rule.kinds {
            if !rule.force && holds_always(&rule.predicate, *kind) {
                let name = kind_name(*kind);
                self.error(
                    when,
                    format!("the rule would cut the host off on every {name}: write a condition that says which, or force = true if every one is meant"),
                );
            }
        }
        self.warning(
            effect,
            format!("in enforce the rule cuts the host off, {ISOLATED}"),
        );
    }

    /// For how long a rule isolates.
    fn lasts(&mut self, value: &Value<'_>, effect: Effect) -> Option<Duration> {
        let text = self.text(value, "for", usize::MAX)?;
        let offset = value.span().start;
        let lasts = time::length(&text);
        if lasts.is_none() {
            self.error(
                offset,
                format!("for {text:?} is no time from 10 seconds to 366 days: write it like \"1h\" (s, m, h or d)"),
            );
        } else if effect != Effect::Isolate {
            self.error(
                offset,
                "for says how long a rule with the effect isolate does so: take it out, or write effect = \"isolate\"",
            );
        }
        lasts
    }

    fn kinds(&mut self, value: &Value<'_>) -> Vec<Kind> {
        let Some(items) = self.array(value, "on") else {
            return Vec::new();
        };
        if items.is_empty() {
            self.error(
                value.span().start,
                "on is empty: name at least one kind of event",
            );
        }
        let names: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
        let mut kinds = Vec::new();
        for item in items {
            let Some(name) = self.choice(item, "on", &names, &[]) else {
                continue;
            };
            let kind = KINDS.iter().find(|(known, _)| *known == name);
            if let Some((_, kind)) = kind
                && !kinds.contains(kind)
            {
                kinds.push(*kind);
            }
        }
        kinds
    }

    fn attack(&mut self, value: &Value<'_>) -> Vec<String> {
        let Some(items) = self.array(value, "attack") else {
            return Vec::new();
        };
        if items.len() > ATTACK_MAX {
            self.error(
                value.span().start,
                format!(
                    "attack has {} techniques, at most {ATTACK_MAX} are taken",
                    items.len()
                ),
            );
        }
        let mut techniques = Vec::new();
        for item in items {
            match item.get_ref().as_str() {
                Some(technique) if is_technique(technique) => {
                    techniques.push(technique.to_owned());
                }
                _ => self.error(
                    item.span().start,
                    "not a technique of MITRE ATT&CK: write it like \"T1059\" or \"T1059.004\"",
                ),
            }
        }
        techniques
    }

    fn rate(&mut self, value: &Value<'_>, effect: Effect) -> Option<Rate> {
        let text = self.text(value, "rate", usize::MAX)?;
        let offset = value.span().start;
        let rate = Rate::parse(&text);
        if rate.is_none() {
            self.error(
                offset,
                format!("rate {text:?} is not understood: write how many alerts in which time, like \"10/1m\" (s, m or h; up to 1000000, up to 24h)"),
            );
        } else if effect == Effect::Record {
            self.warning(
                offset,
                "a rule with the effect record raises no alert: its rate changes nothing",
            );
        }
        rate
    }

    pub(crate) fn predicate(
        &mut self,
        value: &Value<'_>,
        lists: &Lists,
        kinds: &[Kind],
    ) -> Option<Predicate> {
        let Some(text) = value.get_ref().as_str() else {
            let ty = value.get_ref().type_str();
            self.error(
                value.span().start,
                format!("when is {ty}, but it has to be a string"),
            );
            return None;
        };
        let predicate = match Predicate::parse_with_warnings(text, lists) {
            Ok((predicate, warnings)) => {
                for problem in warnings {
                    let offset = self.source.within(value.span(), text, problem.offset);
                    self.warnings
                        .push(Problem::at(self.source.text, offset, problem.message));
                }
                predicate
            }
            Err(problems) => {
                for problem in problems {
                    let offset = self.source.within(value.span(), text, problem.offset);
                    self.error(offset, problem.message);
                }
                return None;
            }
        };
        if kinds.is_empty() {
            return Some(predicate);
        }
        let mut fits = true;
        for field in predicate.fields() {
            if is_of_judging(field) {
                fits = false;
                let name = field.info().name;
                let offset = self
                    .source
                    .within(value.span(), text, text.find(name).unwrap_or(0));
                self.error(
                    offset,
                    format!(
                        "{name} is known only after the rules have been judged: it is for queries"
                    ),
                );
                continue;
            }
            if kinds.iter().any(|kind| on_kind(field, *kind)) {
                continue;
            }
            fits = false;
            let name = field.info().name;
            let on: Vec<&str> = kinds.iter().map(|kind| kind_name(*kind)).collect();
            let possible: Vec<&str> = KINDS
                .iter()
                .filter(|(_, kind)| on_kind(field, *kind))
                .map(|(name, _)| *name)
                .collect();
            let possible = if possible.is_empty() {
                "it belongs to no kind that a rule can name".to_owned()
            } else {
                format!("it is on {}", possible.join(", "))
            };
            let inside = text.find(name).unwrap_or(0);
            let offset = self.source.within(value.span(), text, inside);
            self.error(
                offset,
                format!("{name} is never present on {}: {possible}", on.join(", ")),
            );
        }
        fits.then_some(predicate)
    }

    /// Warns of kinds of which everything goes to user space.
    fn cost(&mut self, offset: usize, predicate: &Predicate, kinds: &[Kind]) {
        if self.without_list {
            return;
        }
        for kind in kinds {
            let name = kind_name(*kind);
            let narrowed = narrow(predicate, *kind);
            if never(predicate, *kind) {
                self.warnings.push(Problem::at(
                    self.source.text,
                    offset,
                    format!("the rule can never match on {name}: take the kind out"),
                ));
            }
            if is_life(*kind) {
                continue;
            }
            if is_unfiltered(*kind) && !is_own(*kind) && !narrowed.clauses.is_empty() {
                self.warnings.push(Problem::at(
                    self.source.text,
                    offset,
                    format!("every {name} is sent and stored: its path is the caller's word, which may not filter"),
                ));
                continue;
            }
            for (list, items, taken) in loosened(predicate, *kind) {
                self.warnings.push(Problem::at(
                    self.source.text,
                    offset,
                    format!("lists.{list} has {items} items, and the kernel's filter takes a list of at most {EXACT_MAX}: on {name} it lets through {taken}, and the agent looks for the items"),
                ));
            }
            if matches!(kind, Kind::Setid | Kind::Capset) {
                self.warnings.push(Problem::at(
                    self.source.text,
                    offset,
                    format!("while a rule on {name} is loaded, a program runs at the entry of every system call: what was before is seen only there"),
                ));
            }
            if !is_whole(*kind) && narrowed.clauses.iter().any(Clause::is_everything) {
                let judged = match kind {
                    Kind::Connect | Kind::Accept => {
                        "net.src.port and net.dst.port compared with numbers, addresses by == or cidr(…)"
                    }
                    _ => {
                        "file.path by ==, in, startsWith or what a glob starts with, file.access.*, file.create, file.trunc"
                    }
                };
                let beyond = predicate.conjuncts().iter().find_map(beyond_the_kernel);
                let why = if *predicate == Predicate::everything() {
                    "the rule has no condition".to_owned()
                } else if narrowed.widened {
                    "the condition has too many alternatives for the kernel".to_owned()
                } else if let Some(why) = beyond {
                    why
                } else {
                    "no condition that always applies is one the kernel can judge".to_owned()
                };
                self.warnings.push(Problem::at(
                    self.source.text,
                    offset,
                    format!("every {name} is sent to user space: {why}; it judges proc.exe.path and proc.exe.name by == or in, and {judged}"),
                ));
            }
        }
    }
}

/// What the rules themselves lead to: no rule can read it.
fn is_of_judging(field: FieldId) -> bool {
    matches!(
        field,
        FieldId::Rules
            | FieldId::Exceptions
            | FieldId::VerdictRequested
            | FieldId::VerdictEffective
            | FieldId::VerdictOutcome
            | FieldId::VerdictReason
    )
}

/// `T1234` or `T1234.567`.
fn is_technique(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('T') else {
        return false;
    };
    let digits =
        |text: &str, count| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    match rest.split_once('.') {
        Some((technique, part)) => digits(technique, 4) && digits(part, 3),
        None => digits(rest, 4),
    }
}
