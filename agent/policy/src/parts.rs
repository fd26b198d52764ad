//! How many parts a TOML file has, counted before it is parsed: each becomes a value in memory, many times
//! larger than its text.

/// Most commas, dots, equal signs and opening brackets of a policy file outside of strings and comments.
pub const PARTS_MAX: usize = 500_000;

/// Counts them. Behind a string that does not end nothing is counted: there the parser stops.
pub(crate) fn count(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut at, mut parts) = (0, 0);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' | b'\'' => {
                let Some(end) = string_end(bytes, at) else {
                    return parts;
                };
                at = end;
                continue;
            }
            b'#' => {
                let rest = bytes[at..].iter().position(|byte| *byte == b'\n');
                at = rest.map_or(bytes.len(), |length| at + length);
                continue;
            }
            b',' | b'.' | b'=' | b'[' | b'{' => parts += 1,
            _ => {}
        }
        at += 1;
    }
    parts
}

/// Offset behind the string whose first quote is at `start`; `None` if it does not end.
fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let quote = bytes[start];
    let long = bytes[start..].starts_with(&[quote; 3]);
    let width = if long { 3 } else { 1 };
    let mut at = start + width;
    loop {
        let byte = *bytes.get(at)?;
        if byte == b'\\' && quote == b'"' {
            at += 2;
        } else if byte == b'\n' && !long {
            return None;
        } else if bytes[at..].starts_with(&[quote; 3][..width]) {
            at += width;
            // A long string may end in quotes of its own.
            while long && bytes.get(at) == Some(&quote) {
                at += 1;
            }
            return Some(at);
        } else {
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_comments_have_no_parts() {
        for (text, parts) in [
            ("", 0),
            ("a = 1", 1),
            ("a.b = [1, 2]", 4),
            ("[a]\nb = {c = 1}", 4),
            ("a = 'x,y.z=[{'", 1),
            ("a = \"x,\\\",y\" # ,,,\nb = 1", 2),
            ("a = '''\n',',\n'''\nb = 1", 2),
            ("a = \"\"\"x\\\"\"\"\",\"\"\", 1", 2),
            ("a = '''x''''\nb = 1", 2),
            ("a = ''\nb = \"\"", 2),
            ("a = 'not ended\n,,,", 1),
            ("a = \"not ended,,,", 1),
            ("a = \"\\", 1),
        ] {
            assert_eq!(count(text), parts, "{text}");
        }
    }
}
