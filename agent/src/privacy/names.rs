//! Names whose values are secret.

use super::Rules;

/// Longest name that is looked at; a longer one is judged by its end.
const NAME_MAX: usize = 64;

/// Ends of names, without `-`, `_` and `.` and in lower case, whatever stands before.
const ENDS: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "secret",
    "token",
    "apikey",
    "accesskey",
    "secretkey",
    "privatekey",
    "accountkey",
    "sharedkey",
    "authkey",
    "encryptionkey",
    "signingkey",
    "masterkey",
    "sessionkey",
    "credential",
    "credentials",
    "creds",
    "requirepass",
    "masterauth",
    "xamzsignature",
];

/// Ends that are words of their own: after a `-`, `_`, `.`, a change to upper case, or nothing.
const WORDS: &[&str] = &["pass", "pwd", "psk", "jwt", "sig", "signature", "otp"];

/// Whose whole line is the value.
const LINES: &[&str] = &["authorization", "proxyauthorization", "cookie", "setcookie"];

/// A name as it is compared: lower case, without `-`, `_` and `.`.
#[must_use]
pub fn normal(name: &str) -> String {
    name.bytes()
        .filter(|byte| !matches!(byte, b'-' | b'_' | b'.'))
        .map(|byte| char::from(byte.to_ascii_lowercase()))
        .collect()
}

/// What follows a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Nothing that is secret.
    Open,
    /// A secret of one word.
    Word,
    /// A secret that goes on to the end of the line.
    Line,
}

/// What the value of a name is.
pub(super) fn value_of(rules: &Rules, name: &[u8]) -> Value {
    // Most names end in a letter that no secret's name ends in.
    let Some(last) = name.last() else {
        return Value::Open;
    };
    let last = last.to_ascii_lowercase();
    if !matches!(
        last,
        b'd' | b'e' | b't' | b'n' | b'y' | b'l' | b's' | b'k' | b'g' | b'p' | b'h'
    ) && rules.names.is_empty()
    {
        return Value::Open;
    }
    let name = &name[name.len().saturating_sub(NAME_MAX)..];
    let mut buffer = [0; NAME_MAX];
    let mut len = 0;
    for byte in name {
        if !matches!(byte, b'-' | b'_' | b'.') {
            buffer[len] = byte.to_ascii_lowercase();
            len += 1;
        }
    }
    let flat = &buffer[..len];
    let is = |list: &[String]| list.iter().any(|known| known.as_bytes() == flat);
    if is(&rules.keep) {
        return Value::Open;
    }
    if LINES.iter().any(|known| known.as_bytes() == flat) {
        return Value::Line;
    }
    if is(&rules.names)
        || ENDS.iter().any(|end| flat.ends_with(end.as_bytes()))
        || WORDS.iter().any(|word| ends_in_word(name, word.as_bytes()))
    {
        return Value::Word;
    }
    Value::Open
}

fn ends_in_word(name: &[u8], word: &[u8]) -> bool {
    let Some(at) = name.len().checked_sub(word.len()) else {
        return false;
    };
    let (before, end) = name.split_at(at);
    if !end.eq_ignore_ascii_case(word) {
        return false;
    }
    match before.last() {
        // The shell's own PWD and OLDPWD are folders.
        None => !name.eq_ignore_ascii_case(b"pwd"),
        Some(b'-') => before.iter().any(|byte| *byte != b'-') || word != b"pwd",
        Some(b'_' | b'.') => true,
        Some(byte) => end[0].is_ascii_uppercase() && byte.is_ascii_lowercase(),
    }
}
