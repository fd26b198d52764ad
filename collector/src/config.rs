//! `collector.toml`: read into [`Raw`], checked into [`Config`]; nothing later
//! checks again.

mod join;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::ingest::Limits;
use crate::store::Kept;
use crate::tenant::join::Join;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("failed to read configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// It is not what this program understands.
    #[error("{}:{line}:{column}: {what}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong and what to write instead.
        what: String,
    },
}

/// The file as it is written. Every key but `listen` has a default.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    server: RawServer,
    #[serde(default)]
    paths: RawPaths,
    #[serde(default)]
    agents: RawAgents,
    #[serde(default)]
    ingest: RawIngest,
    #[serde(default)]
    facts: RawFacts,
    #[serde(default)]
    metrics: Option<RawMetrics>,
    #[serde(default)]
    join: Vec<join::Raw>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawServer {
    listen: toml::Spanned<String>,
    #[serde(default)]
    names: Vec<toml::Spanned<String>>,
    max_connections: Option<toml::Spanned<u64>>,
    drain_seconds: Option<toml::Spanned<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPaths {
    ca: Option<PathBuf>,
    state: Option<PathBuf>,
    run: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAgents {
    certificate_seconds: Option<toml::Spanned<u64>>,
    renewal_grace_seconds: Option<toml::Spanned<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIngest {
    segment_bytes: Option<toml::Spanned<u64>>,
    segment_seconds: Option<toml::Spanned<u64>>,
    buffer_bytes: Option<toml::Spanned<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFacts {
    days: Option<toml::Spanned<u64>>,
    bytes: Option<toml::Spanned<u64>>,
    all_bytes: Option<toml::Spanned<u64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    listen: toml::Spanned<String>,
}

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The directory of the configuration.
    pub dir: PathBuf,
    /// Where the certificate authority is: `ca/` beside the configuration if it says nothing else.
    pub ca: PathBuf,
    /// Where the state is kept: `state/` beside the configuration if it says nothing else.
    pub state: PathBuf,
    /// Where `collector.addr` and `metrics.addr` are written: beside the configuration if it says nothing else.
    pub run: PathBuf,
    /// The one port.
    pub listen: SocketAddr,
    /// Names of the server certificate: DNS names and addresses.
    pub names: Vec<String>,
    /// Connections at a time.
    pub max_connections: usize,
    /// How long a stop may take.
    pub drain: Duration,
    /// Validity of an agent's certificate.
    pub certificate_valid: Duration,
    /// How long after its end it can still be renewed.
    pub renewal_grace: Duration,
    /// How much is kept before it is durable, and in the lake.
    pub limits: Limits,
    /// How much of what is told of workloads is kept.
    pub facts: Kept,
    /// Where metrics are served; loopback only.
    pub metrics: Option<SocketAddr>,
    /// Who may join without a token.
    pub joins: Vec<Join>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// It cannot be read, or a key or value is not understood.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_path_buf(),
            source,
        })?;
        Config::parse(path, &text)
    }

    /// Checks the text of a file.
    ///
    /// # Errors
    /// A key or value is not understood.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let raw: Raw = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            invalid(path, text, at, explain(error.message()))
        })?;
        let check = Check { path, text };
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let listen = check.address(&raw.server.listen)?;
        if listen.port() == 0 {
            return Err(check.error(
                &raw.server.listen,
                "port 0: agents need a port that stays the same; `sumun-collector init` picks a free one".into(),
            ));
        }
        let names = raw
            .server
            .names
            .iter()
            .map(|name| check.name(name))
            .collect::<Result<_, _>>()?;
        let metrics = match &raw.metrics {
            None => None,
            Some(metrics) => {
                let address = check.address(&metrics.listen)?;
                if !address.ip().is_loopback() {
                    return Err(check.error(
                        &metrics.listen,
                        "metrics are served on loopback only: use 127.0.0.1 or [::1]".into(),
                    ));
                }
                Some(address)
            }
        };
        let seconds = |value: &Option<toml::Spanned<u64>>, default, least, most| {
            check
                .within(value, default, least, most)
                .map(Duration::from_secs)
        };
        let day = 86_400;
        let mib = 1024 * 1024;
        Ok(Config {
            joins: join::check(raw.join, &check, &dir)?,
            // A relative place is beside the configuration; `join` takes an absolute one as it is.
            ca: dir.join(raw.paths.ca.as_deref().unwrap_or(Path::new("ca"))),
            state: dir.join(raw.paths.state.as_deref().unwrap_or(Path::new("state"))),
            run: match raw.paths.run {
                Some(run) => dir.join(run),
                None => dir.clone(),
            },
            dir,
            listen,
            names,
            max_connections: check.size(&raw.server.max_connections, 4096, 8, 1_000_000)?,
            drain: seconds(&raw.server.drain_seconds, 10, 1, 300)?,
            certificate_valid: seconds(&raw.agents.certificate_seconds, day, 2, 366 * day)?,
            renewal_grace: seconds(&raw.agents.renewal_grace_seconds, 14 * day, 0, 366 * day)?,
            limits: Limits {
                segment_bytes: check.within(
                    &raw.ingest.segment_bytes,
                    32 * mib,
                    1024,
                    1024 * mib,
                )?,
                segment_age: seconds(&raw.ingest.segment_seconds, 60, 1, day)?,
                buffer_bytes: check.size(
                    &raw.ingest.buffer_bytes,
                    64 * mib,
                    4 * mib,
                    16 * 1024 * mib,
                )?,
            },
            facts: Kept {
                age: Duration::from_secs(day * check.within(&raw.facts.days, 400, 2, 36_600)?),
                bytes: check.size(&raw.facts.bytes, 64 * mib, mib, 16 * 1024 * mib)?,
                all_bytes: check.size(&raw.facts.all_bytes, 512 * mib, mib, 64 * 1024 * mib)?,
            },
            metrics,
        })
    }

    /// Where the state is kept.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.state.clone()
    }

    /// The state database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.state_dir().join("state.db")
    }

    /// The durable log.
    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        self.state_dir().join("log")
    }

    /// The lake.
    #[must_use]
    pub fn lake_dir(&self) -> PathBuf {
        self.state_dir().join("lake")
    }

    /// The certificate authority.
    #[must_use]
    pub fn ca_dir(&self) -> PathBuf {
        self.ca.clone()
    }
}

struct Check<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Check<'_> {
    fn error<T>(&self, at: &toml::Spanned<T>, what: String) -> Error {
        invalid(self.path, self.text, at.span().start, what)
    }

    fn address(&self, value: &toml::Spanned<String>) -> Result<SocketAddr, Error> {
        value.get_ref().parse().map_err(|_| {
            self.error(
                value,
                format!(
                    "`{}` is not an address and port, e.g. \"0.0.0.0:7443\" or \"[::]:7443\"",
                    value.get_ref()
                ),
            )
        })
    }

    fn name(&self, value: &toml::Spanned<String>) -> Result<String, Error> {
        match is_server_name(value.get_ref()) {
            true => Ok(value.get_ref().clone()),
            false => Err(self.error(
                value,
                format!("`{}` is not a host name or an address", value.get_ref()),
            )),
        }
    }

    fn within(
        &self,
        value: &Option<toml::Spanned<u64>>,
        default: u64,
        least: u64,
        most: u64,
    ) -> Result<u64, Error> {
        let Some(value) = value else {
            return Ok(default);
        };
        match (least..=most).contains(value.get_ref()) {
            true => Ok(*value.get_ref()),
            false => Err(self.error(
                value,
                format!("{} is not between {least} and {most}", value.get_ref()),
            )),
        }
    }

    fn size(
        &self,
        value: &Option<toml::Spanned<u64>>,
        default: u64,
        least: u64,
        most: u64,
    ) -> Result<usize, Error> {
        let checked = self.within(value, default, least, most)?;
        Ok(usize::try_from(checked).unwrap_or(usize::MAX))
    }
}

/// Whether a text can stand in the server certificate.
#[must_use]
pub fn is_server_name(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok()
        || rustls_pki_types::DnsName::try_from(name).is_ok_and(|name| !name.as_ref().is_empty())
}

fn invalid(path: &Path, text: &str, at: usize, what: String) -> Error {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Error::Invalid {
        path: path.to_path_buf(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        what,
    }
}

/// Adds the nearest name to "unknown field `x`, expected one of `a`, `b`".
fn explain(message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field `") else {
        return message.to_owned();
    };
    let mut names = rest.split('`').step_by(2);
    let Some(unknown) = names.next() else {
        return message.to_owned();
    };
    let nearest = names
        .map(|name| (distance(unknown, name), name))
        .min()
        .filter(|(distance, name)| *distance <= name.len().max(unknown.len()) / 2);
    match nearest {
        Some((_, name)) => format!("unknown key `{unknown}`: did you mean `{name}`?"),
        None => format!("unknown key {}", &message["unknown field ".len()..]),
    }
}

/// Edits between two words.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/etc/sumun/collector.toml"), text)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_shortest_one() {
        let config = parse("[server]\nlisten = \"127.0.0.1:7443\"\n").expect("good");
        assert_eq!(config.listen.port(), 7443);
        assert_eq!(config.certificate_valid, Duration::from_secs(86_400));
        assert_eq!(config.log_dir(), Path::new("/etc/sumun/state/log"));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_the_nearest() {
        let text = "[server]\nlisten = \"127.0.0.1:7443\"\n\n[ingest]\nsegment_byte = 1\n";
        assert_eq!(
            parse(text).expect_err("unknown"),
            "/etc/sumun/collector.toml:5:1: unknown key `segment_byte`: did you mean `segment_bytes`?"
        );
    }

    #[test]
    fn bad_values_are_named_with_their_place() {
        let server = "[server]\nlisten = \"127.0.0.1:7443\"\n";
        for (text, part) in [
            (
                "[server]\nlisten = \"localhost\"\n".to_owned(),
                ":2:10: `localhost` is not an address",
            ),
            ("[server]\nlisten = \"127.0.0.1:0\"\n".to_owned(), "port 0"),
            (
                format!("{server}names = [\"a b\"]\n"),
                ":3:10: `a b` is not a host name",
            ),
            (
                format!("{server}[metrics]\nlisten = \"0.0.0.0:1\"\n"),
                "loopback only",
            ),
            (
                format!("{server}[ingest]\nsegment_seconds = 0\n"),
                "between 1 and",
            ),
            (
                format!("{server}[ingest]\nsegment_seconds = \"x\"\n"),
                ":4:19: ",
            ),
        ] {
            let error = parse(&text).expect_err("bad");
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn who_may_join_is_said_in_full_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("collector.toml");
        let keys = r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#;
        std::fs::write(dir.path().join("keys.json"), keys).expect("keys");
        let parse = |joins: &str| {
            let text = format!("[server]\nlisten = \"127.0.0.1:7443\"\n{joins}");
            Config::parse(&path, &text).map_err(|error| error.to_string())
        };
        let good = "[[join]]\nname = \"here\"\nmethod = \"kubernetes\"\nissuer = \"https://i\"\naudience = \"a\"\n\
                    keys = \"keys.json\"\nsubjects = [\"system:serviceaccount:sumun:sumun-agent\"]\n";
        assert_eq!(parse(good).expect("good").joins.len(), 1);
        for (joins, part) in [
            (good.replace("\"a\"", "\"\""), "audience"),
            (good.replace("audience = \"a\"\n", ""), "needs `audience`"),
            (good.replace("system:serviceaccount:sumun:", ""), "service accounts"),
            (good.replace("keys.json", "no.json"), "no.json"),
            (good.replace("keys = \"keys.json\"\n", ""), "needs `keys`"),
            (format!("{good}issuer_ca = \"keys.json\"\n"), "`keys` or `issuer_ca`"),
            (format!("{good}issuer_token = \"token\"\n"), "with `issuer_ca`"),
            (good.replace("keys =", "issuer_ca ="), "no certificate"),
            (good.replace("keys =", "issuer_ca =").replace("https:", "http:"), "is not https"),
            (good.replace("kubernetes\"", "password\""), "no method"),
            (format!("{good}accounts = [\"123456789012\"]\n"), "not one of the method"),
            (format!("{good}{good}"), "already"),
            (good.replace("here", "Here"), "no name"),
            (good.replace("audience", "audiense"), "did you mean `audience`"),
            (
                "[[join]]\nname = \"aws\"\nmethod = \"ec2\"\naccounts = [\"1\"]\ncertificates = \".\"\n".to_owned(),
                "twelve digits",
            ),
            (
                "[[join]]\nname = \"aws\"\nmethod = \"ec2\"\naccounts = [\"123456789012\"]\ncertificates = \".\"\n".to_owned(),
                "no certificate REGION.pem",
            ),
        ] {
            let error = parse(&joins).expect_err(part);
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
