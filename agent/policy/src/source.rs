//! Places inside TOML strings.

use std::ops::Range;

/// The text of a file.
pub(crate) struct Source<'a> {
    pub(crate) text: &'a str,
}

impl Source<'_> {
    /// Offset in the file of byte `inside` of a string value, whose literal
    /// has the span `literal` and the value `value`.
    ///
    /// Basic strings are walked escape by escape. If the walk does not fit the value,
    /// the start of the literal is returned.
    pub(crate) fn within(&self, literal: Range<usize>, value: &str, inside: usize) -> usize {
        let start = literal.start;
        let Some(raw) = self.text.get(literal) else {
            return start;
        };
        let (quote, multiline) = match raw.as_bytes() {
            [b'"', b'"', b'"', ..] => (b'"', true),
            [b'\'', b'\'', b'\'', ..] => (b'\'', true),
            [quote @ (b'"' | b'\''), ..] => (*quote, false),
            _ => return start,
        };
        let mut at = if multiline { 3 } else { 1 };
        if multiline {
            // A newline right after the quotes is no part of the value.
            if raw[at..].starts_with("\r\n") {
                at += 2;
            } else if raw[at..].starts_with('\n') {
                at += 1;
            }
        }
        if quote == b'\'' {
            return start + newlines(raw, at, value, inside);
        }
        let mut produced = 0;
        while produced < inside {
            let Some(ahead) = raw.get(at..) else {
                return start;
            };
            let Some(next) = ahead.chars().next() else {
                return start;
            };
            if next != '\\' {
                let normalized = ahead.starts_with("\r\n");
                at += if normalized { 2 } else { next.len_utf8() };
                produced += if normalized { 1 } else { next.len_utf8() };
                continue;
            }
            let rest = &ahead[1..];
            match rest.chars().next() {
                Some('x') => (at, produced) = code(raw, at, 2, produced),
                Some('u') => (at, produced) = code(raw, at, 4, produced),
                Some('U') => (at, produced) = code(raw, at, 8, produced),
                Some(c) if c.is_whitespace() => {
                    // The end of a line and the white space of the next one are left out.
                    at += 1 + (rest.len() - rest.trim_start().len());
                }
                Some(_) => {
                    at += 2;
                    produced += 1;
                }
                None => return start,
            }
        }
        start + at.min(raw.len())
    }
}

/// Position in a literal string: only line ends can differ from the value.
fn newlines(raw: &str, from: usize, value: &str, inside: usize) -> usize {
    let before = value.as_bytes().get(..inside).unwrap_or(value.as_bytes());
    let lines = before.iter().filter(|byte| **byte == b'\n').count();
    let returns = raw[from..].matches("\r\n").take(lines).count();
    let kept = before.iter().filter(|byte| **byte == b'\r').count();
    (from + inside + returns.saturating_sub(kept)).min(raw.len())
}

/// Steps over an escape of `digits` hexadecimal digits.
fn code(raw: &str, at: usize, digits: usize, produced: usize) -> (usize, usize) {
    let width = raw
        .get(at + 2..at + 2 + digits)
        .and_then(|hex| u32::from_str_radix(hex, 16).ok())
        .and_then(char::from_u32)
        .map_or(1, char::len_utf8);
    (at + 2 + digits, produced + width)
}
