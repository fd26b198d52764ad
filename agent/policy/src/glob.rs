//! Globs: patterns of paths as shells have them, judged as regular expressions.
//!
//! Braces come first: a glob with braces stands for one glob for each way to choose, and
//! matches if one of these does. Such an alternative is a list of components with `/`
//! between them, and always stands for the whole text:
//!
//! - `**` as a whole component is any number of components, none included; at the end it
//!   is everything below;
//! - `*` is any number of characters but `/`, `?` is one;
//! - `[ab]`, `[a-z]` is one of these, `[!ab]` or `[^ab]` any other one, never `/`;
//! - every other character stands for itself, the backslash too, which is how the
//!   catalogue's text form writes bytes.

use regex_automata::meta::Regex;

use crate::literal;

/// Most alternatives that the braces of a glob stand for.
pub const GLOB_ALTERNATIVES_MAX: usize = 256;
/// Most bytes of all these alternatives.
pub const GLOB_EXPANDED_MAX: usize = 64 * 1024;

/// A glob that was understood.
#[derive(Debug)]
pub(crate) struct Glob {
    /// One or more.
    alternatives: Vec<Vec<Component>>,
}

/// What stands between two `/`.
#[derive(Debug)]
enum Component {
    /// `**`
    Deep,
    Parts(Vec<Part>),
}

#[derive(Debug)]
enum Part {
    Literal(String),
    /// `?`
    One,
    /// `*`
    Many,
    Class {
        negated: bool,
        /// First and last of each, in order.
        ranges: Vec<(char, char)>,
    },
}

/// What is certain of the texts that an alternative matches.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// They are this one.
    Whole(String),
    /// They are those that start with this.
    Below(String),
    /// They start with this, and more is asked.
    From(String),
}

impl Shape {
    /// What they all start with.
    fn start(&self) -> &str {
        match self {
            Shape::Whole(text) | Shape::Below(text) | Shape::From(text) => text,
        }
    }
}

impl Glob {
    pub(crate) fn parse(written: &str) -> Result<Self, String> {
        let alternatives = expand(written)?
            .iter()
            .map(|alternative| components(alternative))
            .collect::<Result<_, _>>()?;
        Ok(Self { alternatives })
    }

    /// The regular expression that means the same.
    pub(crate) fn regex(&self) -> Result<Regex, String> {
        let alternatives: Vec<String> = self.alternatives.iter().map(|one| pattern(one)).collect();
        literal::build(&format!("(?s)\\A(?:{})\\z", alternatives.join("|"))).map_err(|error| {
            match error.size_limit() {
                Some(_) => format!(
                    "the glob is too large: its automaton has more than {} bytes",
                    literal::REGEX_NFA_MAX
                ),
                None => format!("not a glob: {error}"),
            }
        })
    }

    /// What is certain of each alternative.
    pub(crate) fn shapes(&self) -> impl Iterator<Item = Shape> {
        self.alternatives.iter().map(|one| shape(one))
    }

    /// What every text that matches starts with; may be empty.
    pub(crate) fn start(&self) -> String {
        self.shapes()
            .map(|shape| shape.start().to_owned())
            .reduce(|common, other| {
                let same = common.chars().zip(other.chars());
                same.take_while(|(one, two)| one == two)
                    .map(|(one, _)| one)
                    .collect()
            })
            .unwrap_or_default()
    }

    /// The last components that a text has to have one of, if the glob names them.
    pub(crate) fn last_names(&self) -> Option<Vec<String>> {
        self.alternatives
            .iter()
            .map(|alternative| match alternative.last()? {
                Component::Deep => None,
                Component::Parts(parts) => literal_of(parts),
            })
            .collect()
    }

    /// Of each alternative the longest text without a wildcard; may be empty.
    pub(crate) fn longest_parts(&self) -> Vec<String> {
        self.alternatives
            .iter()
            .map(|one| longest_part(one))
            .collect()
    }

    /// The names that the glob asks for at any depth, as `**/sh` does, if that is all it asks for.
    pub(crate) fn at_any_depth(&self) -> Option<Vec<String>> {
        self.alternatives
            .iter()
            .map(|alternative| match alternative.as_slice() {
                [Component::Deep, Component::Parts(parts)] => literal_of(parts),
                _ => None,
            })
            .collect()
    }

    /// True when each alternative begins with `/` or at any depth, as paths do: a wildcard
    /// of characters in front stands for no `/`.
    pub(crate) fn is_rooted(&self) -> bool {
        self.alternatives
            .iter()
            .all(|alternative| match alternative.first() {
                Some(Component::Parts(parts)) => parts.is_empty(),
                Some(Component::Deep) | None => true,
            })
    }

    /// An upper-case ASCII letter that has to stand in some text that matches.
    pub(crate) fn capital(&self) -> Option<char> {
        let parts = self.alternatives.iter().flatten().flat_map(|component| {
            let parts: &[Part] = match component {
                Component::Deep => &[],
                Component::Parts(parts) => parts,
            };
            parts
        });
        parts
            .filter_map(|part| match part {
                Part::Literal(text) => text.chars().find(char::is_ascii_uppercase),
                Part::Class {
                    negated: false,
                    ranges,
                } => ranges
                    .iter()
                    .all(|(first, last)| first.is_ascii_uppercase() && last.is_ascii_uppercase())
                    .then(|| ranges.first().map_or('A', |(first, _)| *first)),
                _ => None,
            })
            .next()
    }
}

/// One text for each way to choose from the braces.
fn expand(written: &str) -> Result<Vec<String>, String> {
    let mut all = vec![String::new()];
    let mut at = 0;
    while at < written.len() {
        let (choices, end) = if written[at..].starts_with('{') {
            braces(written, at)?
        } else {
            let end = plain_end(written, at)?;
            (vec![&written[at..end]], end)
        };
        let bytes: usize = all.iter().map(String::len).sum();
        let longest = choices.iter().map(|choice| choice.len()).max().unwrap_or(0);
        if all.len() * choices.len() > GLOB_ALTERNATIVES_MAX
            || (bytes + all.len() * longest) * choices.len() > GLOB_EXPANDED_MAX
        {
            return Err(format!(
                "the braces of the glob stand for more than {GLOB_ALTERNATIVES_MAX} alternatives or {GLOB_EXPANDED_MAX} bytes: use lists.NAME.exists(g, field.glob(g)), or a wider pattern"
            ));
        }
        all = all
            .iter()
            .flat_map(|start| choices.iter().map(move |choice| format!("{start}{choice}")))
            .collect();
        at = end;
    }
    Ok(all)
}

/// Where braces open next, classes skipped, or the end.
fn plain_end(written: &str, from: usize) -> Result<usize, String> {
    let mut at = from;
    while let Some(next) = written[at..].chars().next() {
        match next {
            '{' => break,
            '[' => at = class_end(written, at)?,
            other => at += other.len_utf8(),
        }
    }
    Ok(at)
}

/// The choices of the braces that open at `open`, and where they end.
fn braces(written: &str, open: usize) -> Result<(Vec<&str>, usize), String> {
    let mut choices = Vec::new();
    let (mut start, mut at) = (open + 1, open + 1);
    while let Some(next) = written[at..].chars().next() {
        match next {
            '[' => at = class_end(written, at)?,
            '{' => {
                return Err(format!(
                    "braces stand inside braces, at character {}: write all alternatives into one pair, or [{{] for the character itself",
                    character(written, at)
                ));
            }
            ',' | '}' => {
                choices.push(&written[start..at]);
                at += 1;
                start = at;
                if next == '}' {
                    if choices.len() < 2 {
                        return Err(format!(
                            "the braces at character {} hold one alternative only: write {{a,b}}, or [{{] for the character itself",
                            character(written, open)
                        ));
                    }
                    return Ok((choices, at));
                }
            }
            other => at += other.len_utf8(),
        }
    }
    Err(format!(
        "the {{ at character {} is not closed: write [{{] for the character itself",
        character(written, open)
    ))
}

/// Where the class that opens at `open` ends. A `]` that stands first is one of its characters.
fn class_end(written: &str, open: usize) -> Result<usize, String> {
    let inside = &written[open + 1..];
    let skipped = usize::from(inside.starts_with(['!', '^']));
    let first = inside[skipped..].chars().next().map_or(0, char::len_utf8);
    inside[skipped..]
        .get(first..)
        .and_then(|rest| rest.find(']'))
        .map(|close| open + 1 + skipped + first + close + 1)
        .filter(|end| !written[open..*end].contains('/'))
        .ok_or_else(|| {
            format!(
                "the [ at character {} is not closed before the next /: write [[] for the character itself",
                character(written, open)
            )
        })
}

/// The number of a character as people count, from 1.
fn character(written: &str, offset: usize) -> usize {
    written[..offset].chars().count() + 1
}

/// The components of an alternative, which has no braces any more.
fn components(alternative: &str) -> Result<Vec<Component>, String> {
    alternative
        .split('/')
        .map(|component| match component {
            "**" => Ok(Component::Deep),
            other => Ok(Component::Parts(parts(other)?)),
        })
        .collect()
}

fn parts(component: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut at = 0;
    while let Some(next) = component[at..].chars().next() {
        match next {
            '*' if component[at..].starts_with("**") => {
                return Err(format!(
                    "** is a whole component: write /**/ or /** in place of {component:?}, or * for a part of a name"
                ));
            }
            '*' => parts.push(Part::Many),
            '?' => parts.push(Part::One),
            '[' => {
                let end = class_end(component, at)?;
                parts.push(class(&component[at..end])?);
                at = end;
                continue;
            }
            other => match parts.last_mut() {
                Some(Part::Literal(text)) => text.push(other),
                _ => parts.push(Part::Literal(other.to_string())),
            },
        }
        at += next.len_utf8();
    }
    Ok(parts)
}

/// A class with its brackets.
fn class(written: &str) -> Result<Part, String> {
    let inside = &written[1..written.len() - 1];
    let negated = inside.starts_with(['!', '^']);
    let mut rest = inside[usize::from(negated)..].chars().peekable();
    let mut ranges = Vec::new();
    while let Some(first) = rest.next() {
        let mut ahead = rest.clone();
        let last = match (ahead.next(), ahead.next()) {
            (Some('-'), Some(last)) => {
                rest = ahead;
                last
            }
            _ => first,
        };
        if last < first {
            return Err(format!(
                "{first}-{last} in {written} is no range: its end comes before its start"
            ));
        }
        ranges.push((first, last));
    }
    // A single character that is meant as such: `[*]`.
    match ranges.as_slice() {
        [(first, last)] if !negated && first == last => Ok(Part::Literal(first.to_string())),
        _ => Ok(Part::Class { negated, ranges }),
    }
}

/// The text of parts that are all literal; an empty component is one.
fn literal_of(parts: &[Part]) -> Option<String> {
    parts
        .iter()
        .map(|part| match part {
            Part::Literal(text) => Some(text.as_str()),
            _ => None,
        })
        .collect()
}

fn shape(components: &[Component]) -> Shape {
    let mut text = String::new();
    let last = components.len().saturating_sub(1);
    for (index, component) in components.iter().enumerate() {
        match component {
            Component::Deep if index == last => return Shape::Below(text),
            Component::Deep => return Shape::From(text),
            Component::Parts(parts) => {
                for part in parts {
                    match part {
                        Part::Literal(literal) => text.push_str(literal),
                        _ => return Shape::From(text),
                    }
                }
            }
        }
        if index < last {
            text.push('/');
        }
    }
    Shape::Whole(text)
}

/// The longest text that an alternative has without a wildcard.
fn longest_part(components: &[Component]) -> String {
    let last = components.len().saturating_sub(1);
    let mut runs = vec![String::new()];
    for (index, component) in components.iter().enumerate() {
        match component {
            // The slash behind it belongs to it.
            Component::Deep => runs.push(String::new()),
            Component::Parts(parts) => {
                for part in parts {
                    match (part, runs.last_mut()) {
                        (Part::Literal(text), Some(run)) => run.push_str(text),
                        _ => runs.push(String::new()),
                    }
                }
                if let Some(run) = runs.last_mut().filter(|_| index < last) {
                    run.push('/');
                }
            }
        }
    }
    runs.into_iter().max_by_key(String::len).unwrap_or_default()
}

/// The regular expression of an alternative.
fn pattern(components: &[Component]) -> String {
    let mut pattern = String::new();
    let last = components.len().saturating_sub(1);
    for (index, component) in components.iter().enumerate() {
        match component {
            Component::Deep if index == last => pattern.push_str(".*"),
            // The slash behind it belongs to it.
            Component::Deep => pattern.push_str("(?:.*/)?"),
            Component::Parts(parts) => {
                for part in parts {
                    match part {
                        Part::Literal(text) => regex_syntax::escape_into(text, &mut pattern),
                        Part::One => pattern.push_str("[^/]"),
                        Part::Many => pattern.push_str("[^/]*"),
                        Part::Class { negated, ranges } => {
                            push_class(&mut pattern, *negated, ranges);
                        }
                    }
                }
                if index < last {
                    pattern.push('/');
                }
            }
        }
    }
    pattern
}

fn push_class(pattern: &mut String, negated: bool, ranges: &[(char, char)]) {
    pattern.push_str(if negated { "[^/" } else { "[[" });
    for (first, last) in ranges {
        let code = |character: char| u32::from(character);
        pattern.push_str(&format!(
            "\\x{{{:x}}}-\\x{{{:x}}}",
            code(*first),
            code(*last)
        ));
    }
    // A range may have the slash within.
    pattern.push_str(if negated { "]" } else { "]--/]" });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(glob: &str, text: &str) -> bool {
        let glob = Glob::parse(glob).expect("a glob");
        glob.regex().expect("small").is_match(text)
    }

    #[test]
    fn globs_mean_what_the_documentation_says() {
        for (glob, yes, no) in [
            (
                "/etc/*.d/**",
                &["/etc/cron.d/x", "/etc/.d/a/b", "/etc/x.d/"][..],
                &[
                    "/etc/cron.d",
                    "/etc/a/b.d/x",
                    "/etc/cron.dx/y",
                    "x/etc/a.d/b",
                ][..],
            ),
            (
                "/a/**/b",
                &["/a/b", "/a/x/b", "/a/x/y/b", "/a//b"],
                &["/ab", "/a/xb", "/a/b/", "/a/b/c"],
            ),
            ("**/sh", &["sh", "/bin/sh", "/sh"], &["/bin/dash", "sh/"]),
            ("/tmp/**", &["/tmp/", "/tmp/a/b"], &["/tmp", "/tmpx"]),
            ("**", &["", "/", "a/b\n"], &[]),
            ("**/**", &["", "/", "a/b"], &[]),
            ("?b*", &["ab", "한bc", ".b"], &["b", "/b", "ab/"]),
            ("", &[""], &["a"]),
            ("[a-c]x", &["ax", "cx"], &["dx", "-x", "x"]),
            ("[!a-c]x", &["dx", "-x"], &["ax", "/x", "x"]),
            ("[^a]", &["b", "\n"], &["a", "/"]),
            ("[]]", &["]"], &["", "["]),
            ("[!]a]", &["x"], &["]", "a"]),
            ("[.-0]", &[".", "0"], &["/"]),
            ("[a-]", &["a", "-"], &["b"]),
            ("[*][?][[]", &["*?["], &["xy["]),
            (r"[\d]", &[r"\", "d"], &["1"]),
            (r"/tmp/\xff*", &[r"/tmp/\xff", r"/tmp/\xffa"], &["/tmp/xff"]),
            ("a.b+", &["a.b+"], &["axb+", "a.bb"]),
            ("]},", &["]},"], &[]),
            (
                "/{etc,opt/*}/{a,b}.conf",
                &["/etc/a.conf", "/opt/x/b.conf"],
                &["/opt/a.conf", "/etc/c.conf"],
            ),
            ("{/etc/**,/x}", &["/etc/a", "/x"], &["/y"]),
            ("a{,b}", &["a", "ab"], &["b"]),
            ("{[,],b}", &[",", "b"], &["["]),
            ("[{]a[}]", &["{a}"], &["a"]),
        ] {
            for text in yes {
                assert!(matches(glob, text), "{glob} does not match {text:?}");
            }
            for text in no {
                assert!(!matches(glob, text), "{glob} matches {text:?}");
            }
        }
    }

    #[test]
    fn what_is_no_glob_is_said() {
        for (glob, expected) in [
            ("/a[b", "the [ at character 3 is not closed"),
            ("[a/b]", "is not closed before the next /"),
            ("[]", "is not closed"),
            ("[!]", "is not closed"),
            ("한{a", "the { at character 2 is not closed"),
            ("{a,{b,c}}", "braces stand inside braces, at character 4"),
            ("{a}", "one alternative only"),
            ("{}", "one alternative only"),
            ("/a**", "** is a whole component"),
            ("/**b/c", "** is a whole component"),
            ("***", "** is a whole component"),
            ("{/a*,/a}*", "** is a whole component"),
            ("[b-a]", "b-a in [b-a] is no range"),
        ] {
            let error = Glob::parse(glob).expect_err(glob);
            assert!(error.contains(expected), "{glob}: {error}");
        }
        let error = Glob::parse(&"{a,b}".repeat(9)).expect_err("too many");
        assert!(error.contains("more than 256 alternatives"), "{error}");
        let long = format!("{{a,b}}{}", "x".repeat(GLOB_EXPANDED_MAX / 2));
        let error = Glob::parse(&long).expect_err("too long");
        assert!(error.contains("65536 bytes"), "{error}");
        let large = Glob::parse(&"[!a]".repeat(8000)).expect("a glob");
        let error = large.regex().expect_err("too large");
        assert!(error.contains("the glob is too large"), "{error}");
    }

    #[test]
    fn what_is_certain_of_a_glob() {
        let shapes =
            |glob: &str| -> Vec<Shape> { Glob::parse(glob).expect("a glob").shapes().collect() };
        let whole = |text: &str| Shape::Whole(text.to_owned());
        let below = |text: &str| Shape::Below(text.to_owned());
        let from = |text: &str| Shape::From(text.to_owned());
        assert_eq!(shapes("/etc/[*]"), [whole("/etc/*")]);
        assert_eq!(shapes("/etc/**"), [below("/etc/")]);
        assert_eq!(shapes("/etc/**/x"), [from("/etc/")]);
        assert_eq!(shapes("/etc/pass*"), [from("/etc/pass")]);
        assert_eq!(shapes("**"), [below("")]);
        assert_eq!(shapes("/{etc,usr/**}"), [whole("/etc"), below("/usr/")]);
        let glob = |text: &str| Glob::parse(text).expect("a glob");
        for (written, part) in [
            ("/home/*/.ssh/**", "/.ssh/"),
            ("**/.ssh/**", ".ssh/"),
            ("/a/**/bcd?", "bcd"),
            ("/a/**/b", "/a/"),
            ("/etc/[*]x", "/etc/*x"),
            ("**", ""),
        ] {
            assert_eq!(glob(written).longest_parts(), [part], "{written}");
        }
        assert_eq!(glob("/opt/{한a,한b}/*").start(), "/opt/한");
        assert_eq!(glob("{a,b}").start(), "");
        assert_eq!(
            glob("/usr/**/{nc,ncat}").last_names(),
            Some(vec!["nc".to_owned(), "ncat".to_owned()])
        );
        assert_eq!(glob("/usr/{nc,**}").last_names(), None);
        assert_eq!(glob("/usr/n*").last_names(), None);
        assert_eq!(glob("/a[A-Z]").capital(), Some('A'));
        assert_eq!(glob("/{a,B}").capital(), Some('B'));
        assert_eq!(glob("/a[A-Za][!A]*").capital(), None);
    }
}
