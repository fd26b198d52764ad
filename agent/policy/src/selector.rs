//! `[selector]`: which workloads a policy is about.
//!
//! It becomes a part of each rule's predicate, so that the engine, the kernel, the scope of what is collected and a search all
//! read it with one meaning. What is not known yet of a workload is unknown to it, not absent: a rule
//! that may match is an alert marked undecided, and nothing is stopped for it. `pending = "inside"` has such a workload count
//! as one of the policy's until it is known.

use std::fmt::Write as _;

use sumun_proto::{FieldId, FieldType};
use toml::de::DeTable;

use crate::check::Lists;
use crate::ir::{Expr, Predicate};
use crate::limits::CANONICAL_MAX;
use crate::problem::Problem;
use crate::read::{Reader, Value, integer};

const KEYS: &[&str] = &[
    "unit",
    "slice",
    "container",
    "k8s",
    "ecs",
    "login",
    "cloud",
    "host",
    "pending",
];
const PENDING: &[&str] = &["alert", "inside"];

/// Names below a table, with the fields they ask for.
const TABLES: &[(&str, &[(&str, &str)])] = &[
    (
        "container",
        &[
            ("digest", "container.image_digest"),
            ("id", "container.id"),
            ("image", "container.image"),
            ("name", "container.name"),
            ("runtime", "container.runtime"),
        ],
    ),
    (
        "k8s",
        &[
            ("namespace", "k8s.namespace"),
            ("node", "k8s.node"),
            ("owner", "k8s.owner.name"),
            ("owner_kind", "k8s.owner.kind"),
            ("pod", "k8s.pod.name"),
            ("service_account", "k8s.service_account"),
            ("uid", "k8s.pod.uid"),
        ],
    ),
    (
        "ecs",
        &[
            ("cluster", "ecs.cluster"),
            ("container", "ecs.container.name"),
            ("family", "ecs.task.family"),
            ("task", "ecs.task.id"),
        ],
    ),
    (
        "login",
        &[("session", "login.session"), ("uid", "login.uid")],
    ),
    (
        "cloud",
        &[
            ("account", "cloud.account"),
            ("image", "cloud.image"),
            ("instance", "cloud.instance.id"),
            ("instance_type", "cloud.instance.type"),
            ("provider", "cloud.provider"),
            ("region", "cloud.region"),
            ("role", "cloud.role"),
            ("scaling_group", "cloud.scaling_group"),
            ("zone", "cloud.zone"),
        ],
    ),
    ("host", &[("name", "host.name"), ("os", "host.os_id")]),
];

/// Tables of KEY = VALUE below a table.
const LABELS: &[(&str, &str, &str)] = &[
    ("container", "labels", "container.labels"),
    ("k8s", "labels", "k8s.labels"),
    ("cloud", "tags", "cloud.tags"),
];

/// Most values of a key.
const VALUES_MAX: usize = 256;
/// Longest value, in bytes.
const VALUE_MAX: usize = 1024;

/// Which workloads a policy is about.
pub(crate) struct Selector {
    /// What has to hold.
    pub(crate) asked: Predicate,
    /// A workload counts as one of them while that is not known.
    pub(crate) pending_is_inside: bool,
}

impl Default for Selector {
    fn default() -> Self {
        Self {
            asked: Predicate::everything(),
            pending_is_inside: false,
        }
    }
}

impl Reader<'_> {
    /// The selector; everything if there is none, and nothing but errors if it is faulty.
    pub(crate) fn selector(&mut self, value: &Value<'_>) -> Option<Selector> {
        let table = self.table(value, "selector")?;
        let faults = self.errors.len();
        self.keys("in [selector]", table, KEYS, &[]);
        let mut parts = Vec::new();
        for (key, field) in [("unit", "unit"), ("slice", "slice")] {
            if let Some(value) = table.get(key) {
                parts.extend(self.any_of(value, key, field));
            }
        }
        for (name, fields) in TABLES {
            if let Some(value) = table.get(*name)
                && let Some(inner) = self.table(value, name)
            {
                self.below(name, inner, fields, &mut parts);
            }
        }
        let pending = table
            .get("pending")
            .and_then(|value| self.choice(value, "pending", PENDING, &[]));
        let start = value.span().start;
        if parts.is_empty() && self.errors.len() == faults {
            self.warning(
                start,
                "the selector asks for nothing: the policy is about every workload",
            );
        }
        if self.errors.len() > faults {
            return None;
        }
        let text = parts.join(" && ");
        if text.is_empty() {
            return Some(Selector::default());
        }
        // It is made of checked parts; only its size can be at fault.
        match Predicate::parse(&text, &Lists::new()) {
            Ok(asked) => Some(Selector {
                asked,
                pending_is_inside: pending == Some("inside"),
            }),
            Err(problems) => {
                for problem in problems {
                    self.error(start, format!("the selector: {}", problem.message));
                }
                None
            }
        }
    }

    fn below(
        &mut self,
        name: &str,
        table: &DeTable<'_>,
        fields: &[(&str, &str)],
        parts: &mut Vec<String>,
    ) {
        let labels = LABELS.iter().find(|(table, _, _)| *table == name);
        let known: Vec<&str> = fields
            .iter()
            .map(|(key, _)| *key)
            .chain(labels.map(|(_, key, _)| *key))
            .collect();
        self.keys(&format!("in selector.{name}"), table, &known, &[]);
        for (key, field) in fields {
            if let Some(value) = table.get(*key) {
                parts.extend(self.any_of(value, key, field));
            }
        }
        let Some((_, key, field)) = labels else {
            return;
        };
        let Some(value) = table.get(*key) else {
            return;
        };
        let Some(labels) = self.table(value, key) else {
            return;
        };
        for (label, value) in labels {
            if let Some(value) = self.text(value, label.get_ref(), VALUE_MAX) {
                let label = label.get_ref();
                parts.push(format!(
                    "{} in {field}",
                    quoted(&format!("{label}={value}"))
                ));
            }
        }
    }

    /// One of some texts, in which `*` stands for anything; of a number, one of some numbers.
    fn any_of(&mut self, value: &Value<'_>, key: &str, field: &str) -> Option<String> {
        let items = self.array(value, key)?;
        if items.is_empty() || items.len() > VALUES_MAX {
            let message = format!(
                "{key} has {} values: from 1 to {VALUES_MAX} are taken",
                items.len()
            );
            self.error(value.span().start, message);
            return None;
        }
        let (mut whole, mut parts) = (Vec::new(), Vec::new());
        let is_number = FieldId::by_name(field).is_some_and(|id| id.info().ty == FieldType::Int);
        for item in items {
            if is_number {
                let Some(number) = integer(item) else {
                    self.error(item.span().start, format!("{key} takes numbers"));
                    return None;
                };
                whole.push(number.to_string());
                continue;
            }
            let text = self.text(item, key, VALUE_MAX)?;
            if text.contains('*') {
                parts.push(format!("{field}.matches({})", quoted(&pattern(&text))));
            } else {
                whole.push(quoted(&text));
            }
        }
        if !whole.is_empty() {
            parts.push(format!("{field} in [{}]", whole.join(", ")));
        }
        Some(format!("({})", parts.join(" || ")))
    }

    /// A rule's predicate within the selector.
    pub(crate) fn within(
        &mut self,
        selector: &Predicate,
        predicate: Predicate,
        place: usize,
    ) -> Option<Predicate> {
        if *selector.expr() == Expr::Const(true) {
            return Some(predicate);
        }
        let mut parts = Vec::new();
        for part in [selector.expr().clone(), predicate.expr().clone()] {
            match part {
                Expr::Const(true) => {}
                Expr::And(inner) => parts.extend(inner),
                other => parts.push(other),
            }
        }
        let one = (parts.len() == 1).then(|| parts.pop()).flatten();
        let joined = Predicate::new(one.unwrap_or(Expr::And(parts)));
        let canonical = joined.to_string();
        let fault = match canonical.len() > CANONICAL_MAX {
            true => Some(format!("it has {} bytes", canonical.len())),
            false => crate::limits::check(&canonical, CANONICAL_MAX)
                .err()
                .map(|problem: Problem| problem.message),
        };
        if let Some(fault) = fault {
            self.error(place, format!("with the selector, {fault}: split the rule"));
            return None;
        }
        Some(joined)
    }
}

/// A pattern in which `*` stands for anything, as a regular expression of the whole text.
fn pattern(text: &str) -> String {
    let mut regex = String::from("^");
    for character in text.chars() {
        match character {
            '*' => regex.push_str("(?s:.*)"),
            plain if plain.is_ascii_punctuation() => {
                regex.push('\\');
                regex.push(plain);
            }
            plain => regex.push(plain),
        }
    }
    regex.push('$');
    regex
}

/// As a literal of CEL.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(character);
            }
            '\n' => quoted.push_str("\\n"),
            control if control.is_control() => {
                // Writing to a string cannot fail.
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use crate::check_file;

    fn rule(selector: &str, rest: &str) -> Result<String, String> {
        let text = format!(
            "[policy]\nname = \"p\"\n[selector]\n{selector}\n[[rule]]\nid = \"r\"\non = [\"exec\"]\n{rest}"
        );
        let check = check_file("p.toml", &text);
        match &check.policy {
            Some(policy) => Ok(policy.rules[0].predicate.to_string()),
            None => Err(check.to_string()),
        }
    }

    #[test]
    fn a_selector_is_a_part_of_each_rule() {
        let when = "when = 'proc.uid == 0 && proc.gid == 0'";
        let told = rule("unit = [\"a.service\"]", when).expect("a rule");
        assert!(
            told.ends_with(" && proc.uid == 0 && proc.gid == 0"),
            "{told}"
        );
        assert!(
            told.contains("unit") && told.contains("\"a.service\""),
            "{told}"
        );
        // A rule without a condition has the selector's.
        let alone = rule("unit = [\"a.service\"]", "").expect("a rule");
        assert!(
            alone.contains("unit") && alone.contains("a.service"),
            "{alone}"
        );
        let all = rule(
            "k8s = { namespace = [\"shop\"], labels = { app = \"cart\" } }\n\
             cloud = { tags = { role = \"web\" } }\n\
             container = { image = [\"*/nginx:*\"] }",
            when,
        )
        .expect("a rule");
        for part in [
            "k8s.namespace",
            "\"app=cart\" in k8s.labels",
            "\"role=web\" in cloud.tags",
            "container.image.matches(",
            "proc.uid == 0",
        ] {
            assert!(all.contains(part), "{part} in {all}");
        }
    }

    #[test]
    fn every_key_asks_for_its_field() {
        for (name, fields) in super::TABLES {
            for (key, field) in *fields {
                let (value, wanted) = match *key {
                    "uid" if *name == "login" => ("1000", format!("{field} in [1000]")),
                    _ => ("\"x\"", format!("{field} in [\"x\"]")),
                };
                let told = rule(&format!("{name} = {{ {key} = [{value}, {value}] }}"), "");
                let told = told.unwrap_or_else(|error| panic!("{name}.{key}: {error}"));
                // Of one value there is a shorter way to say it.
                let short = wanted.replace("in [", "== ").replace(']', "");
                assert!(told == wanted || told == short, "{told} for {name}.{key}");
            }
        }
    }

    #[test]
    fn what_is_pending_is_outside_unless_the_policy_says_otherwise() {
        let presumed = |pending: &str| {
            let text = format!(
                "[policy]\nname = \"p\"\n[selector]\nunit = [\"a\"]\n{pending}\n[[rule]]\nid = \"r\"\non = [\"exec\"]\nwhen = 'proc.uid == 0'\n"
            );
            let check = check_file("p.toml", &text);
            let policy = check.policy.unwrap_or_else(|| panic!("{:?}", check.errors));
            policy.rules[0].presumed.clone()
        };
        assert_eq!(presumed(""), None);
        assert_eq!(presumed("pending = \"alert\""), None);
        let parts = presumed("pending = \"inside\"").expect("both parts");
        let texts = [&parts.selector, &parts.when].map(ToString::to_string);
        assert!(
            texts[0].starts_with("unit") && texts[1] == "proc.uid == 0",
            "{texts:?}"
        );
    }

    #[test]
    fn faults_have_their_place() {
        for (selector, wanted) in [
            (
                "unti = [\"a\"]",
                "p.toml:4:1: error: unknown key \"unti\" in [selector] (did you mean unit?)",
            ),
            ("unit = \"a\"", "but it has to be an array"),
            ("unit = []", "unit has 0 values"),
            (
                "k8s = { namspace = [\"a\"] }",
                "unknown key \"namspace\" in selector.k8s (did you mean namespace?)",
            ),
            (
                "k8s = { labels = [\"a\"] }",
                "labels is array, but it has to be a table",
            ),
            ("login = { uid = [\"root\"] }", "uid takes numbers"),
            (
                "unit = [\"a\"]\npending = \"inisde\"",
                "p.toml:5:11: error: unknown pending \"inisde\" (did you mean inside?): there are alert, inside",
            ),
            (
                "cloud = { tags = { a = 1 } }",
                "a is integer, but it has to be a string",
            ),
        ] {
            let told = rule(selector, "").expect_err(selector);
            assert!(told.contains(wanted), "{told}");
        }
    }
}
