//! Literals: what they may be, and whether they can match at all.

use std::net::IpAddr;

use ipnet::IpNet;
use regex_automata::meta::{BuildError, Regex};
use regex_syntax::hir::{Class, Hir, HirKind};
use sumun_proto::FieldId;
use sumun_proto::catalogue::KINDS;

use crate::ir::{Operand, Set};
use crate::problem::did_you_mean;

/// Largest automaton of one regular expression, in bytes.
pub(crate) const REGEX_NFA_MAX: usize = 1024 * 1024;

/// Literals of one type as a set.
pub(crate) fn set(items: Vec<Operand>) -> Result<Set, String> {
    let mut texts = Vec::new();
    let mut numbers = Vec::new();
    for item in items {
        match item {
            Operand::Str(text) => texts.push(text),
            Operand::Int(number) => numbers.push(number),
            other => {
                return Err(format!(
                    "{other} stands in a list, but a list holds string or int literals"
                ));
            }
        }
    }
    if !texts.is_empty() && !numbers.is_empty() {
        return Err("the list mixes strings and ints: items have one type".to_owned());
    }
    let mut set = if numbers.is_empty() {
        Set::Str(texts)
    } else {
        Set::Int(numbers)
    };
    set.tidy();
    Ok(set)
}

/// A network: host bits are cleared, IPv4-mapped ones are refused.
pub(crate) fn net(written: &str) -> Result<IpNet, String> {
    let net: IpNet = written.parse().map_err(|_| {
        format!("{written:?} is no network: write it like \"10.0.0.0/8\" or \"2001:db8::/32\"")
    })?;
    if let IpNet::V6(six) = net
        && six.addr().to_ipv4_mapped().is_some()
    {
        return Err("IPv4-mapped addresses are IPv4 in events: write the IPv4 network".to_owned());
    }
    Ok(net.trunc())
}

/// Compiles a regular expression within the limits.
///
/// # Errors
/// Why it is none, or that it is too large.
pub(crate) fn regex(pattern: &str) -> Result<Regex, String> {
    build(pattern).map_err(|error| {
            if error.size_limit().is_some() {
                return format!(
                    "the regular expression is too large: its automaton has more than {REGEX_NFA_MAX} bytes"
                );
            }
            let why = error
                .syntax_error()
                .map_or_else(|| error.to_string(), |error| {
                    // The last line says what is wrong, those before it draw the place.
                    error.to_string().lines().last().unwrap_or_default().to_owned()
                });
            let why = why.strip_prefix("error: ").unwrap_or(&why);
            format!("not a regular expression: {why}")
        })
}

/// Compiles within the limits.
pub(crate) fn build(pattern: &str) -> Result<Regex, Box<BuildError>> {
    Regex::builder()
        .configure(
            Regex::config()
                .nfa_size_limit(Some(REGEX_NFA_MAX))
                .onepass_size_limit(Some(REGEX_NFA_MAX))
                .hybrid_cache_capacity(REGEX_NFA_MAX),
        )
        .build(pattern)
        .map_err(Box::new)
}

/// An upper-case ASCII letter without which some part of the regular expression
/// cannot match.
pub(crate) fn regex_capital(pattern: &str) -> Option<char> {
    // The pattern was compiled before.
    capital_in(&regex_syntax::parse(pattern).ok()?)
}

fn capital_in(hir: &Hir) -> Option<char> {
    let within = |first: char, last: char| {
        (first.is_ascii_uppercase() && last.is_ascii_uppercase()).then_some(first)
    };
    match hir.kind() {
        HirKind::Literal(literal) => {
            let byte = literal.0.iter().find(|byte| byte.is_ascii_uppercase())?;
            Some(char::from(*byte))
        }
        HirKind::Class(Class::Unicode(class)) => {
            let ranges: Option<Vec<char>> = class
                .iter()
                .map(|range| within(range.start(), range.end()))
                .collect();
            ranges?.first().copied()
        }
        HirKind::Class(Class::Bytes(class)) => {
            let ranges: Option<Vec<char>> = class
                .iter()
                .map(|range| within(range.start().into(), range.end().into()))
                .collect();
            ranges?.first().copied()
        }
        // The parser's descent was bounded, so this one is.
        HirKind::Repetition(inner) => capital_in(&inner.sub),
        HirKind::Capture(inner) => capital_in(&inner.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().find_map(capital_in),
        HirKind::Empty | HirKind::Look(_) => None,
    }
}

/// Refuses upper-case letters where the other side has none.
pub(crate) fn lowered(operand: &Operand, capital: Option<char>, what: &str) -> Result<(), String> {
    match (operand, capital) {
        (Operand::Lower(_), Some(capital)) => Err(format!(
            "{operand} has no upper-case letters, so {what} with {capital} in it never matches: write it in lower case"
        )),
        _ => Ok(()),
    }
}

/// An upper-case ASCII letter of a text.
pub(crate) fn capital(text: &str) -> Option<char> {
    text.chars().find(char::is_ascii_uppercase)
}

/// Refuses a literal that the operand can never equal.
pub(crate) fn fits(operand: &Operand, literal: &str) -> Result<(), String> {
    match operand {
        Operand::Lower(_) => lowered(operand, capital(literal), &format!("{literal:?}")),
        Operand::Field(field @ (FieldId::NetSrcIp | FieldId::NetDstIp)) => {
            let name = field.info().name;
            let address: IpAddr = literal.parse().map_err(|_| {
                format!("{literal:?} is no address: {name} holds one; for networks write cidr(\"…\").containsIP({name})")
            })?;
            let canonical = address.to_canonical().to_string();
            if canonical == literal {
                Ok(())
            } else {
                Err(format!(
                    "{name} holds this address as {canonical:?}: write it so"
                ))
            }
        }
        Operand::Field(FieldId::Kind) if KINDS.iter().all(|(name, _)| *name != literal) => {
            let near = did_you_mean(literal, KINDS.iter().map(|(name, _)| *name));
            Err(format!("{literal:?} is no kind of event{near}"))
        }
        _ => Ok(()),
    }
}
