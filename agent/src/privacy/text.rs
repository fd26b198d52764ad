//! Secrets that show by themselves what they are, wherever they stand in a text: tokens with a known beginning,
//! private keys, addresses with passwords, `name=value` and headers.

use std::ops::Range;

use super::names::{Value, value_of};
use super::words::closing;
use super::{Found, Rules};

/// A token with a known beginning.
struct Token {
    start: &'static str,
    /// Fewest characters after the beginning.
    least: usize,
    /// True: the beginning may be written in either case, and stays.
    scheme: bool,
}

const fn token(start: &'static str, least: usize) -> Token {
    Token {
        start,
        least,
        scheme: false,
    }
}

/// What services give out. The first byte of each is in [`STARTS`].
const TOKENS: &[Token] = &[
    // AWS: keys of users and of sessions.
    token("AKIA", 16),
    token("ASIA", 16),
    token("ABIA", 16),
    token("ACCA", 16),
    // GitHub, GitLab.
    token("ghp_", 16),
    token("gho_", 16),
    token("ghu_", 16),
    token("ghs_", 16),
    token("ghr_", 16),
    token("github_pat_", 16),
    token("glpat-", 16),
    token("gldt-", 16),
    token("glrt-", 16),
    // Slack, Stripe, OpenAI, Anthropic, Google, npm, PyPI, DigitalOcean, Vault, SendGrid, Docker, Shopify, Hugging Face, age.
    token("xoxa-", 10),
    token("xoxb-", 10),
    token("xoxe-", 10),
    token("xoxp-", 10),
    token("xoxr-", 10),
    token("xoxs-", 10),
    token("xapp-", 10),
    token("sk_live_", 10),
    token("sk_test_", 10),
    token("rk_live_", 10),
    token("sk-", 20),
    token("AIza", 30),
    token("ya29.", 10),
    token("npm_", 20),
    token("pypi-", 16),
    token("dop_v1_", 16),
    token("hvs.", 16),
    token("hvb.", 16),
    token("SG.", 20),
    token("dckr_pat_", 16),
    token("shpat_", 16),
    token("hf_", 20),
    token("AGE-SECRET-KEY-1", 10),
    // JSON Web Tokens, which Kubernetes and OpenID use.
    token("eyJ", 20),
    Token {
        start: "bearer ",
        least: 6,
        scheme: true,
    },
];

/// First bytes of [`TOKENS`].
const STARTS: [bool; 256] = {
    let mut table = [false; 256];
    let mut index = 0;
    while index < TOKENS.len() {
        let byte = TOKENS[index].start.as_bytes()[0];
        table[byte as usize] = true;
        if TOKENS[index].scheme {
            table[byte.to_ascii_uppercase() as usize] = true;
        }
        index += 1;
    }
    table
};

/// Bytes at which something else than a token may begin.
const SIGNS: [bool; 256] = {
    let mut table = [false; 256];
    table[b'=' as usize] = true;
    table[b':' as usize] = true;
    table[b'-' as usize] = true;
    table[b'\'' as usize] = true;
    table[b'"' as usize] = true;
    table
};

/// What names of options, variables and fields are made of.
pub(super) fn in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

fn in_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'+' | b'/' | b'=' | b'~')
}

/// Hands on where secrets are in a text. `cut`: the text goes on unseen.
pub(super) fn find(rules: &Rules, text: &str, cut: bool, take: &mut impl FnMut(Range<usize>)) {
    let text = text.as_bytes();
    let mut at = 0;
    while let Some(byte) = text.get(at).copied() {
        if STARTS[usize::from(byte)]
            && (at == 0 || !text[at - 1].is_ascii_alphanumeric())
            && let Some(range) = token_at(text, at, cut)
        {
            at = range.end;
            take(range);
            continue;
        }
        if SIGNS[usize::from(byte)] {
            let found = match byte {
                b'-' if text[at..].starts_with(b"-----BEGIN ") => private_key(text, at),
                b':' if text[at..].starts_with(b"://") => address(text, at + 3),
                b'=' | b':' => assigned(rules, text, at),
                b'\'' | b'"' => quoted(rules, text, at),
                _ => None,
            };
            if let Some(range) = found {
                // What is in it goes with it, so each byte is looked at once whatever is given.
                at = range.end.max(at + 1);
                take(range);
                continue;
            }
        }
        at += 1;
    }
}

fn token_at(text: &[u8], at: usize, cut: bool) -> Option<Range<usize>> {
    let rest = &text[at..];
    let known = TOKENS.iter().find(|token| {
        let start = token.start.as_bytes();
        match token.scheme {
            true => rest
                .get(..start.len())
                .is_some_and(|begin| begin.eq_ignore_ascii_case(start)),
            false => rest.starts_with(start),
        }
    })?;
    let from = at + known.start.len();
    let len = text[from..]
        .iter()
        .take_while(|byte| in_token(**byte))
        .count();
    let end = from + len;
    let enough = len >= known.least || cut && end == text.len();
    enough.then_some(if known.scheme { from } else { at }..end)
}

/// A PEM block whose label says that it is a private key, up to its end or that of the text.
fn private_key(text: &[u8], at: usize) -> Option<Range<usize>> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    let label = at + BEGIN.len();
    // A label that is cut off may have been one.
    let line = &text[label..text.len().min(label + 64)];
    let dashes = find_bytes(line, b"-----");
    let named = find_bytes(&line[..dashes.unwrap_or(line.len())], b"PRIVATE KEY").is_some();
    if !named && (dashes.is_some() || text.len() >= label + 64) {
        return None;
    }
    let from = label + dashes.map_or(0, |dashes| dashes + 5);
    let end = find_bytes(&text[from..], b"-----END ").map_or(text.len(), |end| from + end);
    Some(from..end)
}

/// Longest name and password of an address: what is looked at for each `://`.
const ADDRESS_MAX: usize = 512;

/// The password in `scheme://name:password@host`; of a lone name as long as a token, the name.
fn address(text: &[u8], from: usize) -> Option<Range<usize>> {
    let ends =
        |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\'' | b'<' | b'>' | b'`');
    let rest = &text[from..text.len().min(from + ADDRESS_MAX)];
    let run = &rest[..rest.iter().position(ends).unwrap_or(rest.len())];
    let slash = run
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?' | b'#'))
        .unwrap_or(run.len());
    let colon = run[..slash].iter().position(|byte| *byte == b':');
    let near = run[..slash].iter().rposition(|byte| *byte == b'@');
    match (colon, near) {
        (Some(colon), Some(at)) if colon < at => Some(from + colon + 1..from + at),
        // A password may hold a `/`; a port may not hold anything else than digits.
        (Some(colon), None) if !run[colon + 1..slash].iter().all(u8::is_ascii_digit) => {
            let at = run.iter().rposition(|byte| *byte == b'@')?;
            Some(from + colon + 1..from + at)
        }
        (None, Some(at)) if at >= 16 => Some(from..from + at),
        _ => None,
    }
}

/// The value of `name=value`, `"name": "value"` and `Name: value`; `at` is the sign between them.
fn assigned(rules: &Rules, text: &[u8], at: usize) -> Option<Range<usize>> {
    let mut end = at;
    while end > 0 && text[end - 1] == b' ' {
        end -= 1;
    }
    let closed = end > 0 && matches!(text[end - 1], b'"' | b'\'');
    if closed {
        end -= 1;
        // `{\"name\": …}` within a quoted text.
        while end > 0 && text[end - 1] == b'\\' {
            end -= 1;
        }
    }
    let start = text[..end]
        .iter()
        .rposition(|byte| !in_name(*byte))
        .map_or(0, |before| before + 1);
    if start == end {
        return None;
    }
    let value = value_of(rules, &text[start..end]);
    if value == Value::Open {
        return None;
    }
    let mut from = at + 1;
    // `name := value`, `name == value`.
    while matches!(text.get(from), Some(b'=')) {
        from += 1;
    }
    let tight = !matches!(text.get(from), Some(b' ' | b'\t' | b'"' | b'\''));
    // A path or a resource's name (`arn:…:secret:name`) is not a value of this kind.
    if text[at] == b':' && tight && !closed && start > 0 && matches!(text[start - 1], b'/' | b':') {
        return None;
    }
    while matches!(text.get(from), Some(b' ' | b'\t')) {
        from += 1;
    }
    value_at(text, from, value)
}

fn value_at(text: &[u8], mut from: usize, value: Value) -> Option<Range<usize>> {
    while text.get(from) == Some(&b'\\') {
        from += 1;
    }
    let quote = text
        .get(from)
        .copied()
        .filter(|byte| matches!(byte, b'"' | b'\''));
    let end = match quote {
        Some(quote) => {
            from += 1;
            let escaped = from > 1 && text[from - 2] == b'\\';
            match escaped {
                true => text[from..]
                    .iter()
                    .position(|byte| *byte == quote)
                    .map_or(text.len(), |len| from + len),
                false => closing(text, from, quote),
            }
        }
        None => {
            let ends = |byte: &u8| match value {
                Value::Line => matches!(byte, b'"' | b'\'' | b'\n' | b'\r'),
                _ => {
                    byte.is_ascii_whitespace()
                        || matches!(
                            byte,
                            b'"' | b'\''
                                | b'&'
                                | b';'
                                | b','
                                | b'}'
                                | b')'
                                | b'|'
                                | b'<'
                                | b'>'
                                | b'`'
                        )
                }
            };
            text[from..]
                .iter()
                .position(ends)
                .map_or(text.len(), |len| from + len)
        }
    };
    (end > from).then_some(from..end)
}

/// A value that is quoted behind a name and a blank: `IDENTIFIED BY 'x'`, `PASSWORD 'x'`; `at` is the quote.
fn quoted(rules: &Rules, text: &[u8], at: usize) -> Option<Range<usize>> {
    let end = at.checked_sub(1).filter(|blank| text[*blank] == b' ')?;
    let start = text[..end]
        .iter()
        .rposition(|byte| !in_name(*byte))
        .map_or(0, |before| before + 1);
    let name = &text[start..end];
    let identified = name.eq_ignore_ascii_case(b"by")
        && ends_with(text[..start].trim_ascii_end(), b"identified");
    if !identified && (name.is_empty() || value_of(rules, name) == Value::Open) {
        return None;
    }
    value_at(text, at, Value::Word)
}

/// True if an access key of AWS was found: its secret, which shows by nothing but its shape, is looked for then.
pub(super) fn names_aws(found: &Found, args: &[String]) -> bool {
    found.iter().any(|(arg, range)| {
        let secret = &args[*arg].as_bytes()[range.clone()];
        secret.len() == 20 && matches!(&secret[..4], b"AKIA" | b"ASIA")
    })
}

/// Words of forty characters that look like a secret key of AWS.
pub(super) fn aws_secrets(text: &str, take: &mut impl FnMut(Range<usize>)) {
    let text = text.as_bytes();
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    let mut at = 0;
    while at < text.len() {
        let len = text[at..].iter().take_while(|byte| inside(**byte)).count();
        let word = &text[at..at + len];
        if len == 40
            && word.iter().any(u8::is_ascii_uppercase)
            && word.iter().any(u8::is_ascii_lowercase)
        {
            take(at..at + len);
        }
        at += len + 1;
    }
}

fn ends_with(text: &[u8], end: &[u8]) -> bool {
    text.len() >= end.len() && text[text.len() - end.len()..].eq_ignore_ascii_case(end)
}

fn find_bytes(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
