//! Literals: what they may be, and whether they can match at all.

use std::net::IpAddr;

use ipnet::IpNet;
use regex_automata::meta::Regex;
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
pub fn regex(pattern: &str) -> Result<Regex, String> {
    Regex::builder()
        .configure(
            Regex::config()
                .nfa_size_limit(Some(REGEX_NFA_MAX))
                .onepass_size_limit(Some(REGEX_NFA_MAX))
                .hybrid_cache_capacity(REGEX_NFA_MAX),
        )
        .build(pattern)
        .map_err(|error| {
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

/// Refuses a literal that the field can never equal.
pub(crate) fn fits(operand: &Operand, literal: &str) -> Result<(), String> {
    match operand {
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
