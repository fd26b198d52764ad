//! The catalogue's form of text: what paths and arguments look like everywhere
//! outside the kernel.
//!
//! Bytes that are not part of valid UTF-8, and NUL, become `\xNN`; a backslash becomes `\\`.
//! So every byte string has exactly one text and every text one byte string, and all
//! functions of predicates and queries work on the text.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The text of bytes.
#[must_use]
pub fn from_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    push_bytes(&mut text, bytes);
    text
}

/// Appends the text of bytes.
pub fn push_bytes(text: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        let valid = chunk.valid();
        if valid.contains(['\\', '\0']) {
            for character in valid.chars() {
                match character {
                    '\\' => text.push_str("\\\\"),
                    '\0' => text.push_str("\\x00"),
                    other => text.push(other),
                }
            }
        } else {
            text.push_str(valid);
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
}

/// The bytes of a text, or `None` where it is not in the catalogue's form.
#[must_use]
pub fn to_bytes(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first != b'\\' {
            bytes.push(first);
            rest = after;
            continue;
        }
        match after {
            [b'\\', tail @ ..] => {
                bytes.push(b'\\');
                rest = tail;
            }
            [b'x', high, low, tail @ ..] => {
                let digit = |byte: &u8| (*byte as char).to_digit(16);
                bytes.push(u8::try_from(digit(high)? * 16 + digit(low)?).ok()?);
                rest = tail;
            }
            _ => return None,
        }
    }
    Some(bytes)
}

/// The last component of a path; empty for `/` and for the empty path.
#[must_use]
pub fn file_name(path: &str) -> &str {
    // Names are short: looking at one byte after the other is quicker than a search by words.
    match path.bytes().rposition(|byte| byte == b'/') {
        Some(slash) => path.get(slash + 1..).unwrap_or(""),
        None => path,
    }
}

/// `lowerAscii()`: ASCII letters in lower case; copied only if there is an upper-case one.
#[must_use]
pub fn lower(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(text.to_ascii_lowercase())
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_text_are_one_to_one() {
        for bytes in [
            &b"/usr/bin/true"[..],
            b"a\\b",
            b"\xff\xfe/x",
            b"\0",
            "가\u{fffd}".as_bytes(),
            b"",
        ] {
            let text = from_bytes(bytes);
            assert_eq!(to_bytes(&text).as_deref(), Some(bytes), "{text}");
        }
        assert_eq!(from_bytes(b"\xff\\"), "\\xff\\\\");
        assert_eq!(to_bytes("\\q"), None);
        assert_eq!(to_bytes("\\x0"), None);
    }
}
