//! Secrets in arguments, redacted before anything is written or sent.
//!
//! The engine and the kernel judge what was really run; what goes into the spool, and from there to the
//! collector, has [`MARK`] in the place of each secret, and `redacted` among the flaws of its arguments. So
//! no secret is on the agent's disk either. An image is looked at once, when it is first written
//! ([`crate::enrich::process::Program::told`]), whatever number of events names it.
//!
//! `words` splits arguments and the command lines within them as a shell would, `text` finds what shows by itself
//! what it is (tokens, keys, addresses with passwords, `name=value`), `programs` knows which flag of which
//! program is followed by a secret. In doubt it is redacted.

mod names;
mod programs;
mod text;
mod words;

#[cfg(test)]
mod tests;

use std::ops::Range;

use regex_automata::meta::Regex;

pub use names::normal;

/// What stands in the place of a secret.
pub const MARK: &str = "[redacted]";

/// The operator's part.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// False: nothing is redacted.
    pub on: bool,
    /// More names whose values are secret, as `normal` writes them.
    pub names: Vec<String>,
    /// Names whose values are told, as `normal` writes them.
    pub keep: Vec<String>,
    /// More patterns of secrets.
    pub patterns: Vec<Regex>,
}

/// Finds secrets.
#[derive(Clone, Debug, Default)]
pub struct Redactor {
    rules: Rules,
}

/// Where secrets are: which argument, and which bytes of it.
type Found = Vec<(usize, Range<usize>)>;

impl Redactor {
    /// With the operator's rules.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self { rules }
    }

    /// The arguments without secrets; `None` where there was none. `cut` says that the last argument
    /// is not whole: then less of a token is enough.
    #[must_use]
    pub fn redact(&self, args: &[String], cut: bool) -> Option<Vec<String>> {
        if !self.rules.on {
            return None;
        }
        let mut found = Found::new();
        words::arguments(&self.rules, args, &mut found);
        let last = args.len().saturating_sub(1);
        for (index, arg) in args.iter().enumerate() {
            text::find(&self.rules, arg, cut && index == last, &mut |range| {
                found.push((index, range));
            });
            for pattern in &self.rules.patterns {
                let matches = pattern.find_iter(arg).map(|at| (index, at.range()));
                found.extend(matches.filter(|(_, range)| !range.is_empty()));
            }
        }
        if text::names_aws(&found, args) {
            for (index, arg) in args.iter().enumerate() {
                text::aws_secrets(arg, &mut |range| found.push((index, range)));
            }
        }
        if found.is_empty() {
            return None;
        }
        found.sort_by_key(|(index, range)| (*index, range.start));
        let mut redacted = args.to_vec();
        let mut from = 0;
        while let Some((index, _)) = found.get(from) {
            let index = *index;
            let to = from + found[from..].partition_point(|(other, _)| *other == index);
            redacted[index] = without(&args[index], found[from..to].iter().map(|(_, range)| range));
            from = to;
        }
        (redacted != args).then_some(redacted)
    }
}

impl Redactor {
    /// One text that is no command, without secrets; `None` where there was none.
    #[must_use]
    pub fn redact_text(&self, text: &str, cut: bool) -> Option<String> {
        self.redact(&[text.to_owned()], cut)?.pop()
    }

    /// Labels or tags, each by itself, and whether there were secrets in them. `cut` as in [`Self::redact`].
    pub fn redact_labels(&self, labels: &mut [String], cut: bool) -> bool {
        let last = labels.len().saturating_sub(1);
        let mut any = false;
        for (index, label) in labels.iter_mut().enumerate() {
            if let Some(told) = self.redact_text(label, cut && index == last) {
                *label = told;
                any = true;
            }
        }
        any
    }

    /// The value of a setting without secrets: its name may say that it is one.
    #[must_use]
    pub fn redact_value(&self, name: &str, value: &str, cut: bool) -> Option<String> {
        let whole = self.redact_text(&format!("{name}={value}"), cut)?;
        let told = whole
            .strip_prefix(name)
            .and_then(|told| told.strip_prefix('='));
        // Where the name itself looks like one, the whole is.
        Some(told.map_or_else(|| MARK.to_owned(), str::to_owned))
    }
}

/// A text with [`MARK`] in the place of each range; they are in order and may overlap.
fn without<'a>(text: &str, ranges: impl Iterator<Item = &'a Range<usize>>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for range in ranges {
        // Bytes that are looked for are ASCII, so every end lies between characters; if not, more is taken.
        let start = floor(text, range.start.max(at));
        let end = ceil(text, range.end);
        if end <= at || start >= end {
            continue;
        }
        // What overlaps or touches another secret is one with it.
        if start > at || !out.ends_with(MARK) {
            out.push_str(&text[at..start]);
            out.push_str(MARK);
        }
        at = end;
    }
    out.push_str(&text[at..]);
    out
}

fn floor(text: &str, mut at: usize) -> usize {
    at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn ceil(text: &str, mut at: usize) -> usize {
    at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at += 1;
    }
    at
}
