//! Arguments as words, and the command lines within them (`sh -c "…"`) as words of their own.

use std::ops::Range;

use super::names::{Value, value_of};
use super::programs::{self, Form, Known};
use super::{Found, Rules};

/// Command lines within command lines that are looked into.
const DEPTH_MAX: u32 = 4;

/// One word: where its text stands in the argument.
#[derive(Clone)]
struct Word {
    arg: usize,
    at: Range<usize>,
}

/// Looks at the arguments of a program.
pub(super) fn arguments(rules: &Rules, args: &[String], found: &mut Found) {
    let words: Vec<Word> = args
        .iter()
        .enumerate()
        .map(|(arg, text)| Word {
            arg,
            at: 0..text.len(),
        })
        .collect();
    command(rules, args, &words, 0, found);
}

/// Looks at the words of one command.
fn command(rules: &Rules, args: &[String], words: &[Word], depth: u32, found: &mut Found) {
    // `sudo mysql …`, `env A=b curl …`, `timeout 5 sshpass …`: each word may be the program that flags belong to.
    let texts: Vec<&str> = words
        .iter()
        .map(|word| &args[word.arg][word.at.clone()])
        .collect();
    let mut flags = Known::default();
    let mut secret_next = None;
    if programs::last_is_secret(&texts)
        && let Some(last) = words.last()
    {
        found.push((last.arg, last.at.clone()));
    }
    for (index, (word, text)) in words.iter().zip(&texts).enumerate() {
        let mut take = |range: Range<usize>| {
            let start = word.at.start;
            found.push((word.arg, start + range.start..start + range.end));
        };
        if let Some(form) = secret_next.take() {
            match form {
                Form::After(byte) => {
                    if let Some(at) = text.bytes().position(|other| other == byte) {
                        take(at + 1..text.len());
                    }
                    continue;
                }
                // Another flag: the one before had no value.
                _ if text.starts_with("--") && text.len() > 2 => {}
                _ => {
                    take(0..text.len());
                    continue;
                }
            }
        }
        let flag = text.starts_with('-');
        if !flag {
            flags.add(text, &texts);
        }
        match flags.of(text) {
            Some((known, "")) => {
                secret_next = Some(known.form);
                continue;
            }
            Some((known, rest)) => {
                let start = text.len() - rest.len();
                match known.form {
                    Form::After(byte) => {
                        if let Some(at) = rest.bytes().position(|other| other == byte) {
                            take(start + at + 1..text.len());
                        }
                    }
                    _ => take(start..text.len()),
                }
                continue;
            }
            None => {}
        }
        let plain = !text.bytes().any(|byte| byte.is_ascii_whitespace());
        if plain {
            // `--password SECRET`; `config set password SECRET`.
            let name = text.rsplit([':', '/']).next().unwrap_or(text);
            let set = index > 0 && texts[index - 1].eq_ignore_ascii_case("set");
            let bare = flag && !text.contains(['=', ':']);
            if (bare || set)
                && value_of(rules, if bare { text } else { name }.as_bytes()) != Value::Open
            {
                secret_next = Some(Form::Next);
            }
            continue;
        }
        // `--password=SECRET WITH SPACES`, but not what a shell is given to run.
        let script = index > 0 && is_dash_c(texts[index - 1]);
        if !script
            && let Some(at) = text.bytes().position(|byte| byte == b'=')
            && text[..at].bytes().all(super::text::in_name)
            && value_of(rules, &text.as_bytes()[..at]) != Value::Open
        {
            take(at + 1..text.len());
            continue;
        }
        if depth < DEPTH_MAX {
            line(rules, args, word, depth + 1, found);
        }
    }
}

/// `-c`, `-lc`, `-ec`: what follows is run by a shell.
fn is_dash_c(text: &str) -> bool {
    text.len() <= 5 && text.starts_with('-') && !text.starts_with("--") && text.ends_with('c')
}

/// Looks at a command line within an argument: its commands, one after the other.
fn line(rules: &Rules, args: &[String], within: &Word, depth: u32, found: &mut Found) {
    let text = args[within.arg][within.at.clone()].as_bytes();
    let mut words: Vec<Word> = Vec::new();
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b';' | b'|' | b'&' | b'\n' | b'(' | b')' | b'`' => {
                command(rules, args, &words, depth, found);
                words.clear();
                at += 1;
            }
            byte if byte.is_ascii_whitespace() => at += 1,
            quote @ (b'"' | b'\'') => {
                let end = closing(text, at + 1, quote);
                words.push(word(within, at + 1..end));
                at = end + 1;
            }
            _ => {
                let start = at;
                while at < text.len() && !ends_word(text[at]) {
                    // A quote within a word, as in `--password="a b"`, keeps its blanks.
                    if matches!(text[at], b'"' | b'\'') {
                        at = closing(text, at + 1, text[at]);
                    }
                    at += 1;
                }
                at = at.min(text.len());
                words.push(word(within, start..at));
            }
        }
    }
    command(rules, args, &words, depth, found);
}

fn word(within: &Word, at: Range<usize>) -> Word {
    let start = within.at.start;
    Word {
        arg: within.arg,
        at: start + at.start..start + at.end,
    }
}

fn ends_word(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, b';' | b'|' | b'&' | b'(' | b')' | b'`')
}

/// Where a quote is closed, or the end. A backslash of the program's is two here (catalogue form).
pub(super) fn closing(text: &[u8], from: usize, quote: u8) -> usize {
    let mut at = from;
    while at < text.len() {
        match text[at] {
            b'\\' if quote == b'"' && text.get(at + 1) == Some(&b'\\') => at += 3,
            byte if byte == quote => return at,
            _ => at += 1,
        }
    }
    text.len()
}
