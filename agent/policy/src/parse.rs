//! From text to the CEL library's syntax tree, within limits.

use cel::common::ast::{IdedExpr, SourceInfo};
use cel::parser::Parser;

use crate::limits;
use crate::problem::Problem;

/// Stack of the thread that parses and checks: the parser needs some tens of
/// kilobytes a level, in every build. It is reserved, not touched, until needed.
const STACK: usize = 64 * 1024 * 1024;

/// A parsed predicate with the place of each node.
pub(crate) struct Parsed<'a> {
    pub(crate) text: &'a str,
    pub(crate) root: IdedExpr,
    places: SourceInfo,
}

impl Parsed<'_> {
    /// Byte offset of a node.
    pub(crate) fn offset(&self, id: u64) -> usize {
        self.places
            .offset_for(id)
            .map_or(0, |(start, _)| start as usize)
    }
}

/// Checks the limits, parses, and hands the tree to `then` on the same large stack.
///
/// # Errors
/// What passes a limit, the parser's complaints, or those of `then`.
pub(crate) fn with_parsed<T: Send>(
    text: &str,
    length_max: usize,
    then: impl FnOnce(&Parsed<'_>) -> Result<T, Vec<Problem>> + Send,
) -> Result<T, Vec<Problem>> {
    limits::check(text, length_max).map_err(|problem| vec![problem])?;
    if text.trim().is_empty() {
        return Err(vec![Problem::at(
            text,
            0,
            "the predicate is empty: leave it out to match everything",
        )]);
    }
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new()
            .name("predicate".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, || then(&parse(text)?));
        match worker {
            Ok(worker) => worker.join().unwrap_or_else(|_| {
                Err(vec![Problem::at(
                    text,
                    0,
                    "the parser failed on this predicate: write it in another way and report this text",
                )])
            }),
            Err(error) => Err(vec![Problem::at(
                text,
                0,
                format!("could not start a thread to parse the predicate: {error}"),
            )]),
        }
    })
}

fn parse(text: &str) -> Result<Parsed<'_>, Vec<Problem>> {
    let parser = Parser::new()
        .max_recursion_depth(96)
        .error_recovery_limit(10);
    match parser.parse_with_source_info(text) {
        Ok((root, places)) => Ok(Parsed { text, root, places }),
        Err(errors) => {
            let mut problems: Vec<Problem> = errors
                .errors
                .iter()
                .map(|error| Problem::at(text, offset_of(text, error.pos), tidy(&error.msg)))
                .collect();
            problems.dedup_by(|one, other| one.offset == other.offset);
            if problems.is_empty() {
                problems.push(Problem::at(text, 0, "not a predicate"));
            }
            // One slip makes the parser complain several times; the first is the true one.
            problems.truncate(1);
            Err(problems)
        }
    }
}

/// Byte offset of the parser's line and column (both from 1, columns in characters).
fn offset_of(text: &str, (line, column): (isize, isize)) -> usize {
    let mut start = 0;
    for _ in 1..line.max(1) {
        match text[start..].find('\n') {
            Some(newline) => start += newline + 1,
            None => return text.len(),
        }
    }
    let column = usize::try_from(column - 1).unwrap_or(0);
    text[start..]
        .char_indices()
        .nth(column)
        .map_or(text.len(), |(offset, _)| start + offset)
}

/// The parser's message without its prefix and its list of every possible token.
fn tidy(message: &str) -> String {
    let message = message.strip_prefix("Syntax error: ").unwrap_or(message);
    let short = message.split(" expecting {").next().unwrap_or(message);
    let mut short: String = short
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    short = short.replace("<EOF>", "the end");
    format!("not a predicate: {short}")
}
