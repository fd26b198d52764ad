//! What is wrong with a predicate or a policy, and where.

use std::fmt;

/// A place in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Byte offset; the end of the text if something is missing there.
    pub offset: usize,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// One fault at one place of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Byte offset into the text; its end if the fault is that something is missing.
    pub offset: usize,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl Place {
    /// A byte offset of a text. An offset inside a character
    /// means that character, one past the end means the end.
    #[must_use]
    pub fn of(text: &str, offset: usize) -> Self {
        let mut offset = offset.min(text.len());
        while !text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            offset,
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

impl Problem {
    /// A fault at a byte offset of a text; see [`Place::of`].
    #[must_use]
    pub fn at(text: &str, offset: usize, message: impl Into<String>) -> Self {
        Self::in_place(Place::of(text, offset), message)
    }

    /// A fault at a place that is known.
    #[must_use]
    pub fn in_place(place: Place, message: impl Into<String>) -> Self {
        let Place {
            offset,
            line,
            column,
        } = place;
        Self {
            offset,
            line,
            column,
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

/// The candidate that is most like what was written, if one is near enough
/// to be meant: a third of the longer name may differ.
#[must_use]
pub fn nearest<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    if written.len() > 256 {
        return None;
    }
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let away = distance(written, candidate);
            let longer = written.chars().count().max(candidate.chars().count());
            (away * 3 <= longer).then_some((away, candidate))
        })
        .min_by_key(|(away, _)| *away)
        .map(|(_, candidate)| candidate)
}

/// ` (did you mean NAME?)`, or nothing.
pub(crate) fn did_you_mean<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> String {
    nearest(written, candidates).map_or_else(String::new, |name| format!(" (did you mean {name}?)"))
}

/// Number of characters to insert, remove, replace or exchange with the neighbour.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().collect();
    let right: Vec<char> = right.chars().collect();
    let mut before = vec![0; right.len() + 1];
    let mut above: Vec<usize> = (0..=right.len()).collect();
    for (row, one) in left.iter().enumerate() {
        let mut current = vec![row + 1];
        for (column, other) in right.iter().enumerate() {
            let mut best = (above[column] + usize::from(one != other))
                .min(above[column + 1] + 1)
                .min(current[column] + 1);
            if row > 0 && column > 0 && *one == right[column - 1] && left[row - 1] == *other {
                best = best.min(before[column - 1] + 1);
            }
            current.push(best);
        }
        before = std::mem::replace(&mut above, current);
    }
    above[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters() {
        let text = "é == 1\n && x";
        let problem = Problem::at(text, text.find('x').expect("it is there"), "wrong");
        assert_eq!((problem.line, problem.column), (2, 5));
        assert_eq!(problem.to_string(), "2:5: wrong");
        assert_eq!(Problem::at(text, 1, "inside é").offset, 0);
        assert_eq!(Problem::at(text, 999, "past").offset, text.len());
        assert_eq!(Problem::at("é==", 2, "").column, 2);
    }

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let names = ["proc.exe.name", "proc.exe.path", "file.path"];
        assert_eq!(nearest("proc.exe.nmae", names), Some("proc.exe.name"));
        assert_eq!(nearest("proc.exec.path", names), Some("proc.exe.path"));
        assert_eq!(nearest("zebra", names), None);
        assert_eq!(distance("ab", "ba"), 1);
        assert_eq!(distance("", "abc"), 3);
    }
}
