//! Reading a policy file key by key.

use sha2::{Digest as _, Sha256};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::check::Lists;
use crate::file::{CheckedPolicy, Mode};
use crate::ir::{Operand, Set};
use crate::list::{BYTES_MAX, ITEMS_MAX};
use crate::literal;
use crate::problem::{Problem, did_you_mean};
use crate::source::Source;

/// A policy with what was found on the way.
pub(crate) struct Read {
    pub(crate) policy: Option<CheckedPolicy>,
    pub(crate) errors: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
}

const TOP_KEYS: &[&str] = &["policy", "selector", "lists", "rule"];
const TOP_LATER: &[&str] = &["sequence", "threshold", "profile"];
const POLICY_KEYS: &[&str] = &["name", "version", "mode"];
const MODES: &[&str] = &["observe", "enforce"];
/// Most faults of a file's syntax that are told at once.
const FAULTS_MAX: usize = 100;
/// Longest name of a policy, rule or list, in bytes.
pub(crate) const NAME_MAX: usize = 64;

/// Reads a file.
pub(crate) fn policy(path: &str, text: &str) -> Read {
    let (table, faults) = DeTable::parse_recoverable(text);
    let mut reader = Reader {
        source: Source { text },
        errors: Vec::new(),
        warnings: Vec::new(),
        without_list: false,
    };
    if !faults.is_empty() {
        // Each place is counted from the start of a file that may be long.
        for fault in faults.into_iter().take(FAULTS_MAX) {
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

pub(crate) struct Reader<'a> {
    pub(crate) source: Source<'a>,
    pub(crate) errors: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
    /// A list was refused: what its rules cost is not known.
    pub(crate) without_list: bool,
}

pub(crate) type Value<'a> = Spanned<DeValue<'a>>;

impl Reader<'_> {
    pub(crate) fn error(&mut self, offset: usize, message: impl Into<String>) {
        self.errors
            .push(Problem::at(self.source.text, offset, message));
    }

    pub(crate) fn warning(&mut self, offset: usize, message: impl Into<String>) {
        self.warnings
            .push(Problem::at(self.source.text, offset, message));
    }

    /// Refuses keys that are not there, or not there yet.
    pub(crate) fn keys(
        &mut self,
        place: &str,
        table: &DeTable<'_>,
        known: &[&str],
        later: &[&str],
    ) {
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
            sha256: Sha256::digest(self.source.text).into(),
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
                } else {
                    // Of one that is refused, what names it is not at fault.
                    let set = self.list(value, name);
                    self.without_list |= set.is_none();
                    let set = set.unwrap_or(Set::Str(Vec::new()));
                    policy.lists.insert(name.to_owned(), set);
                }
            }
        }
        let selector = match table.get("selector") {
            Some(value) => self.selector(value),
            None => None,
        };
        let selector = selector.unwrap_or_default();
        if let Some(value) = table.get("rule") {
            self.rules(value, &mut policy, &selector);
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
        if items.len() > ITEMS_MAX {
            self.error(
                value.span().start,
                format!(
                    "the list {name} has {} items, at most {ITEMS_MAX} are taken: make it two lists, and write x in lists.A || x in lists.B",
                    items.len()
                ),
            );
            return None;
        }
        let mut operands = Vec::with_capacity(items.len());
        let mut bytes = 0;
        for item in items {
            if let Some(text) = item.get_ref().as_str() {
                bytes += text.len();
                if bytes > BYTES_MAX {
                    self.error(
                        value.span().start,
                        format!("the items of the list {name} have more than {BYTES_MAX} bytes together: make it two lists, and write x in lists.A || x in lists.B"),
                    );
                    return None;
                }
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
            Ok(set) => Some(set.named(name)),
            Err(message) => {
                self.error(value.span().start, format!("{name}: {message}"));
                None
            }
        }
    }

    pub(crate) fn table<'v, 'd>(
        &mut self,
        value: &'v Value<'d>,
        name: &str,
    ) -> Option<&'v DeTable<'d>> {
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

    pub(crate) fn array<'v, 'd>(
        &mut self,
        value: &'v Value<'d>,
        name: &str,
    ) -> Option<&'v [Value<'d>]> {
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

    pub(crate) fn text(&mut self, value: &Value<'_>, name: &str, max: usize) -> Option<String> {
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
    pub(crate) fn name(&mut self, value: &Value<'_>, what: &str) -> Option<String> {
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
    pub(crate) fn choice<'w>(
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

pub(crate) fn integer(value: &Value<'_>) -> Option<i64> {
    let number = value.get_ref().as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn is_identifier(name: &str) -> bool {
    name.len() <= NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
