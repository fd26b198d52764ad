//! Reading a policy file key by key.

use sumun_proto::catalogue::{KINDS, kind_name};
use sumun_proto::v1::{Kind, Severity};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::check::Lists;
use crate::file::{CheckedPolicy, Effect, LIST_MAX, Mode, RULES_MAX, Rule};
use crate::ir::{Operand, Predicate, Set};
use crate::literal;
use crate::narrow::{narrow, on_kind};
use crate::plan::{is_life, is_unfiltered};
use crate::problem::{Problem, did_you_mean};
use crate::source::Source;

/// A policy with what was found on the way.
pub(crate) struct Read {
    pub(crate) policy: Option<CheckedPolicy>,
    pub(crate) errors: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
}

const TOP_KEYS: &[&str] = &["policy", "lists", "rule"];
const TOP_LATER: &[&str] = &["selector", "sequence", "threshold", "profile"];
const POLICY_KEYS: &[&str] = &["name", "version", "mode"];
const RULE_KEYS: &[&str] = &["id", "title", "on", "when", "effect", "severity", "attack"];
const RULE_LATER: &[&str] = &["exception", "rate"];
const EFFECTS: &[&str] = &["record", "alert"];
const EFFECTS_LATER: &[&str] = &["kill", "deny", "quarantine", "isolate", "capture"];
const KINDS_LATER: &[&str] = &[
    "link", "symlink", "chmod", "chown", "truncate", "bind", "listen",
];
const MODES: &[&str] = &["observe", "enforce"];
const SEVERITIES: &[(&str, Severity)] = &[
    ("info", Severity::Info),
    ("low", Severity::Low),
    ("medium", Severity::Medium),
    ("high", Severity::High),
    ("critical", Severity::Critical),
];
/// Longest name of a policy, rule or list, in bytes.
const NAME_MAX: usize = 64;
/// Longest title, in bytes.
const TITLE_MAX: usize = 256;
/// Most techniques of a rule.
const ATTACK_MAX: usize = 32;

/// Reads a file.
pub(crate) fn policy(path: &str, text: &str) -> Read {
    let (table, faults) = DeTable::parse_recoverable(text);
    let mut reader = Reader {
        source: Source { text },
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    if !faults.is_empty() {
        for fault in faults {
            let offset = fault.span().map_or(0, |span| span.start);
            reader.error(offset, fault.message().replace('\n', ": "));
        }
        return Read {
            policy: None,
            errors: reader.errors,
            warnings: Vec::new(),
        };
    }
    let policy = reader.document(path, table.get_ref());
    Read {
        policy,
        errors: reader.errors,
        warnings: reader.warnings,
    }
}

struct Reader<'a> {
    source: Source<'a>,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

type Value<'a> = Spanned<DeValue<'a>>;

impl Reader<'_> {
    fn error(&mut self, offset: usize, message: impl Into<String>) {
        self.errors
            .push(Problem::at(self.source.text, offset, message));
    }

    /// Refuses keys that are not there, or not there yet.
    fn keys(&mut self, place: &str, table: &DeTable<'_>, known: &[&str], later: &[&str]) {
        for key in table.keys() {
            let (name, offset) = (key.get_ref().as_ref(), key.span().start);
            if later.contains(&name) {
                self.error(
                    offset,
                    format!("{name} is not yet supported {place}: take it out"),
                );
            } else if !known.contains(&name) {
                let near = did_you_mean(name, known.iter().chain(later).copied());
                self.error(
                    offset,
                    format!(
                        "unknown key {name:?} {place}{near}: there are {}",
                        known.join(", ")
                    ),
                );
            }
        }
    }

    fn document(&mut self, path: &str, table: &DeTable<'_>) -> Option<CheckedPolicy> {
        self.keys("at the top of a policy", table, TOP_KEYS, TOP_LATER);
        let mut policy = CheckedPolicy {
            path: path.to_owned(),
            source: self.source.text.to_owned(),
            name: String::new(),
            version: 1,
            mode: Mode::Observe,
            lists: Lists::new(),
            rules: Vec::new(),
        };
        match table.get("policy") {
            None => self.error(
                0,
                "the table [policy] is missing: begin with [policy] and name = \"…\"",
            ),
            Some(value) => {
                if let Some(header) = self.table(value, "policy") {
                    self.header(value.span().start, header, &mut policy);
                }
            }
        }
        if let Some(value) = table.get("lists")
            && let Some(lists) = self.table(value, "lists")
        {
            for (key, value) in lists {
                let name = key.get_ref().as_ref();
                if !is_identifier(name) {
                    self.error(key.span().start, format!("{name:?} is no list name: it has to be a word of letters, digits and _, to be written lists.NAME"));
                } else if let Some(set) = self.list(value, name) {
                    policy.lists.insert(name.to_owned(), set);
                }
            }
        }
        if let Some(value) = table.get("rule") {
            self.rules(value, &mut policy);
        }
        Some(policy)
    }

    fn header(&mut self, start: usize, header: &DeTable<'_>, policy: &mut CheckedPolicy) {
        self.keys("in [policy]", header, POLICY_KEYS, &[]);
        match header.get("name") {
            None => self.error(start, "name is missing in [policy]"),
            Some(value) => {
                if let Some(name) = self.name(value, "name") {
                    policy.name = name;
                }
            }
        }
        if let Some(value) = header.get("version") {
            match integer(value).and_then(|number| u32::try_from(number).ok()) {
                Some(version) if version > 0 => policy.version = version,
                _ => self.error(
                    value.span().start,
                    "version has to be a whole number from 1 on",
                ),
            }
        }
        if let Some(value) = header.get("mode") {
            match self.choice(value, "mode", MODES, &[]) {
                Some("enforce") => policy.mode = Mode::Enforce,
                _ => policy.mode = Mode::Observe,
            }
        }
    }

    fn list(&mut self, value: &Value<'_>, name: &str) -> Option<Set> {
        let items = self.array(value, name)?;
        if items.len() > LIST_MAX {
            self.error(
                value.span().start,
                format!(
                    "{name} has {} items, at most {LIST_MAX} are taken",
                    items.len()
                ),
            );
            return None;
        }
        let mut operands = Vec::with_capacity(items.len());
        for item in items {
            if let Some(text) = item.get_ref().as_str() {
                operands.push(Operand::Str(text.to_owned()));
            } else if let Some(number) = integer(item) {
                operands.push(Operand::Int(number));
            } else {
                let ty = item.get_ref().type_str();
                self.error(
                    item.span().start,
                    format!("an item of {name} is {ty}: a list holds strings or integers"),
                );
                return None;
            }
        }
        match literal::set(operands) {
            Ok(set) => Some(set),
            Err(message) => {
                self.error(value.span().start, format!("{name}: {message}"));
                None
            }
        }
    }

    fn rules(&mut self, value: &Value<'_>, policy: &mut CheckedPolicy) {
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
            if let Some(rule) = self.rule(value.span().start, table, &policy.lists) {
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

    fn rule(&mut self, start: usize, table: &DeTable<'_>, lists: &Lists) -> Option<Rule> {
        let faults = self.errors.len();
        self.keys("in [[rule]]", table, RULE_KEYS, RULE_LATER);
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
        if let Some(predicate) = &predicate {
            let place = table.get("when").map_or(start, |value| value.span().start);
            self.cost(place, predicate, &kinds);
        }
        let rule = Rule {
            id: id?,
            title,
            kinds,
            predicate: predicate?,
            effect: if effect == Some("record") {
                Effect::Record
            } else {
                Effect::Alert
            },
            severity,
            attack,
        };
        (self.errors.len() == faults).then_some(rule)
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
            let Some(name) = self.choice(item, "on", &names, KINDS_LATER) else {
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

    fn predicate(&mut self, value: &Value<'_>, lists: &Lists, kinds: &[Kind]) -> Option<Predicate> {
        let Some(text) = value.get_ref().as_str() else {
            let ty = value.get_ref().type_str();
            self.error(
                value.span().start,
                format!("when is {ty}, but it has to be a string"),
            );
            return None;
        };
        let predicate = match Predicate::parse(text, lists) {
            Ok(predicate) => predicate,
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
        for kind in kinds {
            if is_life(*kind) {
                continue;
            }
            let name = kind_name(*kind);
            if is_unfiltered(*kind) {
                self.warnings.push(Problem::at(
                    self.source.text,
                    offset,
                    format!("every {name} is sent to user space: its path is the caller's word, which may not filter in the kernel"),
                ));
                continue;
            }
            let narrowed = narrow(predicate, *kind);
            if narrowed.clauses.is_empty() {
                self.warnings.push(Problem::at(
                    self.source.text,
                    offset,
                    format!("the rule can never match on {name}: take the kind out"),
                ));
            } else if narrowed
                .clauses
                .iter()
                .any(crate::plan::Clause::is_everything)
            {
                let judged = match kind {
                    Kind::Connect | Kind::Accept => {
                        "net.src.port and net.dst.port compared with numbers, addresses by == or cidr(…)"
                    }
                    _ => {
                        "file.path by ==, in or startsWith, file.access.*, file.create, file.trunc"
                    }
                };
                let why = if *predicate == Predicate::everything() {
                    "the rule has no condition"
                } else if narrowed.widened {
                    "the condition has too many alternatives for the kernel"
                } else {
                    "no condition that always applies is one the kernel can judge"
                };
                self.warnings.push(Problem::at(
                    self.source.text,
                    offset,
                    format!("every {name} is sent to user space: {why}; it judges proc.exe.path and proc.exe.name by == or in, and {judged}"),
                ));
            }
        }
    }

    fn table<'v, 'd>(&mut self, value: &'v Value<'d>, name: &str) -> Option<&'v DeTable<'d>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            let ty = value.get_ref().type_str();
            self.error(
                value.span().start,
                format!("{name} is {ty}, but it has to be a table"),
            );
        }
        table
    }

    fn array<'v, 'd>(&mut self, value: &'v Value<'d>, name: &str) -> Option<&'v [Value<'d>]> {
        let array = value.get_ref().as_array();
        if array.is_none() {
            let ty = value.get_ref().type_str();
            self.error(
                value.span().start,
                format!("{name} is {ty}, but it has to be an array: write [\"…\"]"),
            );
        }
        array.map(|array| &array[..])
    }

    fn text(&mut self, value: &Value<'_>, name: &str, max: usize) -> Option<String> {
        match value.get_ref().as_str() {
            Some(text) if text.len() <= max => Some(text.to_owned()),
            Some(text) => {
                let message = format!("{name} has {} bytes, at most {max} are taken", text.len());
                self.error(value.span().start, message);
                None
            }
            None => {
                let ty = value.get_ref().type_str();
                self.error(
                    value.span().start,
                    format!("{name} is {ty}, but it has to be a string"),
                );
                None
            }
        }
    }

    /// A name that stands in ids like `policy/rule`.
    fn name(&mut self, value: &Value<'_>, what: &str) -> Option<String> {
        let text = self.text(value, what, NAME_MAX)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if text.is_empty() || !text.chars().all(plain) {
            self.error(
                value.span().start,
                format!("{what} {text:?} has to be one word of letters, digits, - _ and ."),
            );
            return None;
        }
        Some(text)
    }

    /// One of some words.
    fn choice<'w>(
        &mut self,
        value: &Value<'_>,
        name: &str,
        known: &[&'w str],
        later: &[&str],
    ) -> Option<&'w str> {
        let text = self.text(value, name, usize::MAX)?;
        if let Some(found) = known.iter().find(|word| **word == text) {
            return Some(found);
        }
        let offset = value.span().start;
        if later.contains(&text.as_str()) {
            self.error(
                offset,
                format!(
                    "{name} {text:?} is not yet supported: there are {}",
                    known.join(", ")
                ),
            );
        } else {
            let near = did_you_mean(&text, known.iter().chain(later).copied());
            self.error(
                offset,
                format!(
                    "unknown {name} {text:?}{near}: there are {}",
                    known.join(", ")
                ),
            );
        }
        None
    }
}

fn integer(value: &Value<'_>) -> Option<i64> {
    let number = value.get_ref().as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn is_identifier(name: &str) -> bool {
    name.len() <= NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
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
