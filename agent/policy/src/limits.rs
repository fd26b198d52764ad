//! Limits on the text of a predicate, checked before it is parsed.
//!
//! The parser descends one stack frame or more for each bracket and for each
//! link of a chain, so what it is given is bounded first. The scan knows
//! strings and comments; all else it takes by character.

use crate::problem::Problem;

/// Longest predicate that a person writes, in bytes.
pub const TEXT_MAX: usize = 4 * 1024;
/// Longest canonical text, lists filled in, in bytes.
pub const CANONICAL_MAX: usize = 64 * 1024;
/// Most brackets open at once.
pub const NESTING_MAX: usize = 32;
/// Most links of one chain: `a.b.c`, `a[0][1]`, `a == b == c`, `1 + 2 + 3`.
pub const CHAIN_MAX: usize = 32;
/// Most signs in a row: `!!!!a`, `----1`.
pub const SIGNS_MAX: usize = 8;
/// Most `&&` and `||` in a predicate.
pub const LOGIC_MAX: usize = 256;
/// Most `&&` and `||` of a canonical text, where lists are unfolded.
pub const CANONICAL_LOGIC_MAX: usize = 2 * crate::check::UNFOLD_MAX;
/// Most `?` in a predicate.
pub const CHOICES_MAX: usize = 8;

/// What is counted for each open bracket.
#[derive(Default)]
struct Level {
    /// Links since the last operator or comma.
    members: usize,
    /// Operators other than logic since the last logic operator or comma.
    operators: usize,
}

/// Refuses a text that is too long, nested too deep or chained too long.
///
/// # Errors
/// The first place where a limit is passed.
pub fn check(text: &str, length_max: usize) -> Result<(), Problem> {
    if text.len() > length_max {
        return Err(Problem::at(
            text,
            length_max,
            format!(
                "the predicate has {} bytes, at most {length_max} are taken: split the rule, or move values into [lists]",
                text.len()
            ),
        ));
    }
    let logic_max = match length_max {
        CANONICAL_MAX => CANONICAL_LOGIC_MAX,
        _ => LOGIC_MAX,
    };
    let bytes = text.as_bytes();
    let mut levels = vec![Level::default()];
    let (mut signs, mut logic, mut choices) = (0, 0, 0);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let start = at;
        at += 1;
        let refuse = |what: &str, max: usize| {
            Err(Problem::at(
                text,
                start,
                format!("{what}: at most {max} are taken"),
            ))
        };
        if !matches!(byte, b'!' | b'-' | b' ' | b'\t' | b'\r' | b'\n' | 0x0c) {
            signs = 0;
        }
        let depth = levels.len();
        let Some(level) = levels.last_mut() else {
            // The outermost level is never removed.
            break;
        };
        match byte {
            b'"' | b'\'' => at = string_end(bytes, start, raw_before(bytes, start)),
            b'/' if bytes.get(at) == Some(&b'/') => {
                at = bytes[at..]
                    .iter()
                    .position(|byte| *byte == b'\n')
                    .map_or(bytes.len(), |newline| at + newline);
            }
            b'(' | b'[' | b'{' => {
                level.members += 1;
                if level.members > CHAIN_MAX {
                    return refuse("the chain of calls and members is too long", CHAIN_MAX);
                }
                if depth > NESTING_MAX {
                    return refuse("the brackets are nested too deep", NESTING_MAX);
                }
                levels.push(Level::default());
            }
            b')' | b']' | b'}' if depth > 1 => {
                levels.pop();
            }
            b'.' => {
                level.members += 1;
                if level.members > CHAIN_MAX {
                    return refuse("the chain of members is too long", CHAIN_MAX);
                }
            }
            b',' => *level = Level::default(),
            b'?' | b':' => {
                *level = Level::default();
                choices += usize::from(byte == b'?');
                if choices > CHOICES_MAX {
                    return refuse("there are too many ? operators", CHOICES_MAX);
                }
            }
            b'&' | b'|' => {
                *level = Level::default();
                // `&&` is two bytes, a lone `&` is refused by the parser.
                logic += 1;
                if logic > 2 * logic_max {
                    return refuse("there are too many && and || operators", logic_max);
                }
            }
            b'!' | b'-' if bytes.get(at) != Some(&b'=') => {
                signs += 1;
                if signs > SIGNS_MAX {
                    return refuse("there are too many signs in a row", SIGNS_MAX);
                }
                level.members = 0;
                level.operators += usize::from(byte == b'-');
            }
            b'+' | b'*' | b'/' | b'%' | b'<' | b'>' | b'=' | b'!' => {
                level.members = 0;
                level.operators += 1;
                if matches!(bytes.get(at), Some(b'=')) {
                    at += 1;
                }
            }
            b'i' if is_in_operator(bytes, start) => {
                level.members = 0;
                level.operators += 1;
                at += 1;
            }
            _ => {}
        }
        if levels
            .last()
            .is_some_and(|level| level.operators > CHAIN_MAX)
        {
            return refuse("the chain of operators is too long", CHAIN_MAX);
        }
    }
    Ok(())
}

/// True when the quote at `start` follows a raw prefix (`r`, `R`, also after `b`).
fn raw_before(bytes: &[u8], start: usize) -> bool {
    let word_start = bytes[..start]
        .iter()
        .rposition(|byte| !is_word(*byte))
        .map_or(0, |index| index + 1);
    matches!(
        &bytes[word_start..start],
        [b'r' | b'R'] | [b'b' | b'B', b'r' | b'R']
    )
}

/// Offset behind the string whose first quote is at `start`. A string
/// that does not end is left to the parser: nothing behind its quote counts.
fn string_end(bytes: &[u8], start: usize, raw: bool) -> usize {
    let quote = bytes[start];
    let triple = bytes[start..].starts_with(&[quote; 3]);
    let width = if triple { 3 } else { 1 };
    let mut at = start + width;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'\\' && !raw {
            at += 2;
        } else if byte == b'\n' && !triple {
            return at;
        } else if bytes[at..].starts_with(&[quote; 3][..width]) {
            return at + width;
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn is_in_operator(bytes: &[u8], start: usize) -> bool {
    bytes[start..].starts_with(b"in")
        && !bytes.get(start + 2).is_some_and(|byte| is_word(*byte))
        && !start
            .checked_sub(1)
            .is_some_and(|before| is_word(bytes[before]) || bytes[before] == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        check(text, TEXT_MAX)
            .err()
            .map_or_else(String::new, |problem| problem.message)
    }

    #[test]
    fn hostile_texts_are_refused() {
        assert!(refused(&"a".repeat(5000)).contains("at most 4096"));
        assert!(refused(&"(".repeat(40)).contains("nested"));
        assert!(refused(&"[".repeat(40)).contains("nested"));
        assert!(refused(&format!("a{}", ".b".repeat(40))).contains("chain"));
        assert!(refused(&format!("a{}", "[0]".repeat(40))).contains("chain"));
        assert!(refused(&format!("a{}", "(0)".repeat(40))).contains("chain"));
        assert!(refused(&"!".repeat(9)).contains("signs"));
        assert!(refused(&"! ".repeat(9)).contains("signs"));
        assert!(refused(&"-".repeat(9)).contains("signs"));
        assert!(refused(&"a ? ".repeat(9)).contains('?'));
        assert!(refused(&format!("1{}", " + 1".repeat(40))).contains("chain"));
        assert!(refused(&format!("1{}", " - 1".repeat(40))).contains("chain"));
        assert!(refused(&format!("a{}", " in a".repeat(40))).contains("chain"));
        assert!(refused(&format!("a{}", " == a".repeat(40))).contains("chain"));
        assert!(refused(&format!("a{}", "&&a".repeat(257))).contains("&&"));
    }

    #[test]
    fn long_but_flat_texts_pass() {
        assert_eq!(refused(&format!("a in [{}]", "'x', ".repeat(500))), "");
        assert_eq!(refused(&format!("a == 1{}", " && a == 1".repeat(256))), "");
        assert_eq!(
            refused(&format!("a.b == 1{}", " || a.b == -1".repeat(200))),
            ""
        );
    }

    #[test]
    fn strings_and_comments_do_not_count() {
        for text in [
            format!("a == '{}'", "(".repeat(100)),
            format!("a == \"\\\"{}\"", ".".repeat(100)),
            "a == r'\\'".to_owned(),
            format!("a == '''\n'{}'''", "!".repeat(100)),
            format!("a // {}\n == 1", "(".repeat(100)),
        ] {
            assert_eq!(refused(&text), "", "{text}");
        }
        // The raw string ends at its second quote although a backslash stands before.
        assert!(refused(&format!("r'\\' + {}", "(".repeat(40))).contains("nested"));
        // An identifier that ends in r is no prefix.
        assert_eq!(refused(&format!("bar'\\'{}'", "(".repeat(40))), "");
    }
}
