//! Globs read off their definition, for the oracle.

/// Whether a glob matches, read off its definition: braces first, then one character after
/// the other. The crate goes by way of a regular expression.
pub(crate) fn matches(glob: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    expanded(&glob.chars().collect::<Vec<_>>())
        .iter()
        .any(|glob| stands_for(glob, &text, true))
}

/// Index behind the class that opens at the start of this.
fn class_length(glob: &[char]) -> usize {
    let start = if matches!(glob.get(1), Some('!' | '^')) {
        3
    } else {
        2
    };
    let close = glob[start..].iter().position(|c| *c == ']');
    start + close.expect("classes are closed") + 1
}

fn expanded(glob: &[char]) -> Vec<Vec<char>> {
    let mut at = 0;
    while at < glob.len() && glob[at] != '{' {
        at += if glob[at] == '[' {
            class_length(&glob[at..])
        } else {
            1
        };
    }
    if at == glob.len() {
        return vec![glob.to_vec()];
    }
    let (mut choices, mut end) = (vec![Vec::new()], at + 1);
    while glob[end] != '}' {
        match glob[end] {
            ',' => choices.push(Vec::new()),
            other => choices.last_mut().expect("there is one").push(other),
        }
        end += 1;
    }
    choices
        .into_iter()
        .flat_map(|choice| expanded(&[&glob[..at], &choice, &glob[end + 1..]].concat()))
        .collect()
}

fn stands_for(glob: &[char], text: &[char], at_start: bool) -> bool {
    match glob {
        [] => text.is_empty(),
        ['*', '*'] if at_start => true,
        ['*', '*', '/', rest @ ..] if at_start => {
            stands_for(rest, text, true)
                || (0..text.len())
                    .any(|at| text[at] == '/' && stands_for(rest, &text[at + 1..], true))
        }
        ['*', rest @ ..] => {
            let within = text.iter().take_while(|c| **c != '/').count();
            (0..=within).any(|at| stands_for(rest, &text[at..], false))
        }
        ['?', rest @ ..] => {
            text.first().is_some_and(|c| *c != '/') && stands_for(rest, &text[1..], false)
        }
        ['[', ..] => {
            let length = class_length(glob);
            let negated = matches!(glob[1], '!' | '^');
            let mut class = &glob[1 + usize::from(negated)..length - 1];
            let Some(character) = text.first().filter(|c| **c != '/') else {
                return false;
            };
            let mut found = false;
            while let [first, more @ ..] = class {
                match more {
                    ['-', last, others @ ..] => {
                        found |= (first..=last).contains(&character);
                        class = others;
                    }
                    _ => {
                        found |= first == character;
                        class = more;
                    }
                }
            }
            found != negated && stands_for(&glob[length..], &text[1..], false)
        }
        [first, rest @ ..] => {
            text.first() == Some(first) && stands_for(rest, &text[1..], *first == '/')
        }
    }
}
