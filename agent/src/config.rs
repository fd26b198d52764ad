//! `agent.toml`: from the file to a checked configuration.
//!
//! Two steps: [`File`] is what serde takes, with unknown keys refused;
//! [`Config`] is what the agent uses, with paths resolved against the folder of
//! the file and every value in range. Nothing later checks again.
//!
//! ```toml
//! [agent]
//! id = "6f9619ff-8b86-4d01-b42d-00c04fc964ff"   # from the certificate
//! tenant = "default"
//!
//! [collector]
//! address = "collector.example:7443"
//! ca = "ca.pem"
//! certificate = "agent.pem"
//! key = "agent.key"
//!
//! [paths]                       # relative to this file
//! state = "state"
//! run = "run"
//! policies = "policies"
//!
//! [spool]                       # bytes on disk, each lane its own
//! alert = "64MiB"
//! life = "512MiB"
//! bulk = "1GiB"
//!
//! [rings]                       # kernel to agent; a power of two
//! life = "4MiB"
//! bulk = "8MiB"
//!
//! [enforce]
//! hold = "24h"                  # rules that kill, deny and isolate go on for so long without an agent: s, m, h or d
//!
//! [enforce.isolate]             # what goes on while a rule isolates the host, besides what always does
//! cgroup = "/"                  # whose sockets are cut off, from the root of the unified hierarchy: the whole host
//! mounts = true                 # servers of file systems that are mounted over NFS or SMB stay reachable
//! allow = [                     # packets in both directions; protocol (tcp, udp), port (of the other end) and local_port may be left out
//!     { net = "10.0.0.0/8", protocol = "tcp", local_port = 22 },
//! ]
//!
//! [integrity]                   # what the kernel does not show: hidden processes and modules, hooked functions
//! every = "5m"                  # looked at so often while a rule asks for it; "off"
//!
//! [files]
//! fanotify = true               # where the kernel has no decision points, take its word for what was renamed and removed
//!
//! [privacy]
//! redact = true                 # secrets in arguments are replaced before anything is written or sent
//! names = []                    # more names whose values are secret: "customer-pin"
//! keep = []                     # names whose values are told though they look secret: "page-token"
//! patterns = []                 # more patterns of secrets, regular expressions: 'ACME-[0-9]{12}'
//!
//! [identity]                    # sockets and folders; what is there is asked, what is not is no fault
//! cri = ["/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock", "/run/k0s/containerd.sock",
//!     "/var/snap/microk8s/common/run/containerd.sock", "/run/crio/crio.sock"]
//! docker = ["/run/docker.sock"]
//! podman = ["/run/podman/podman.sock"]
//! storage = ["/var/lib/containers/storage"]
//! cloud = "auto"                # auto | off | aws | azure | gcp
//! metadata = "169.254.169.254:80"
//!
//! [identity.kubelet]            # only if this is there: who made a pod, and its service account
//! ca = "/var/lib/kubelet/pki/kubelet.crt"   # who vouches for the kubelet's certificate
//! token = "/etc/sumun/kubelet.token"        # of a service account that may get nodes/pods
//! address = "127.0.0.1:10250"   # else the address in SUMUN_NODE_IP, if that is set
//! name = "node-1"               # of the certificate; else the host's
//!
//! [metrics]
//! listen = "127.0.0.1:9637"     # "off", or a loopback address
//!
//! [log]
//! format = "text"               # text | json
//! level = "info"                # as tracing's EnvFilter; SUMUN_LOG overrides it
//! ```

mod identity;
mod isolate;

use std::fmt;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex_automata::meta;
use rustls_pki_types::ServerName;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use sumun_policy::problem::{Problem, nearest};
use sumun_policy::time::length;
use toml::Spanned;

use crate::enforce::isolate::Settings;
use crate::enrich::runtime;
use crate::privacy;

/// Where metrics are served when the file says nothing: on, because they cost
/// nothing until asked for and loopback lets nobody else ask. A port in use
/// is a warning, not a failure.
pub const METRICS_DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9637);

/// How long rules that kill go on without an agent when the file says nothing: longer than a night in which
/// nobody looks, and not for ever on a host that nobody can tell otherwise.
pub const HOLD_DEFAULT: Duration = Duration::from_hours(24);

/// How often is looked for what the kernel does not show when the file says nothing: a rootkit is there for weeks, and a look
/// takes some hundredths of a second.
pub const INTEGRITY_DEFAULT: Duration = Duration::from_mins(5);

/// Smallest quota of a lane: several of the largest batches and the room the
/// spool keeps for gap records.
pub const QUOTA_MIN: u64 = 16 << 20;

/// Smallest ring: many of the largest records.
pub const RING_MIN: u64 = 256 << 10;
/// Largest ring that the kernel takes for its `u32` size.
pub const RING_MAX: u64 = 1 << 31;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}; `sumun-agent enroll` writes one")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something in it is wrong.
    #[error("{path}:{problem}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Where and what.
        problem: Problem,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    agent: Agent,
    collector: RawCollector,
    #[serde(default)]
    paths: RawPaths,
    #[serde(default)]
    spool: RawSpool,
    #[serde(default)]
    rings: RawRings,
    #[serde(default)]
    enforce: RawEnforce,
    #[serde(default)]
    integrity: RawIntegrity,
    #[serde(default)]
    files: RawFiles,
    #[serde(default)]
    privacy: RawPrivacy,
    #[serde(default)]
    identity: identity::Raw,
    #[serde(default)]
    metrics: RawMetrics,
    #[serde(default)]
    log: RawLog,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Agent {
    id: Spanned<String>,
    tenant: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCollector {
    address: Spanned<String>,
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPaths {
    state: PathBuf,
    run: PathBuf,
    policies: PathBuf,
}

impl Default for RawPaths {
    fn default() -> Self {
        Self {
            state: "state".into(),
            run: "run".into(),
            policies: "policies".into(),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSpool {
    alert: Option<Spanned<Size>>,
    life: Option<Spanned<Size>>,
    bulk: Option<Spanned<Size>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRings {
    life: Option<Spanned<Size>>,
    bulk: Option<Spanned<Size>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEnforce {
    hold: Option<Spanned<String>>,
    #[serde(default)]
    isolate: isolate::Raw,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIntegrity {
    every: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawFiles {
    fanotify: bool,
}

impl Default for RawFiles {
    fn default() -> Self {
        Self { fanotify: true }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPrivacy {
    redact: bool,
    names: Vec<Spanned<String>>,
    keep: Vec<Spanned<String>>,
    patterns: Vec<Spanned<String>>,
}

impl Default for RawPrivacy {
    fn default() -> Self {
        Self {
            redact: true,
            names: Vec::new(),
            keep: Vec::new(),
            patterns: Vec::new(),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    listen: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    #[serde(default)]
    format: LogFormat,
    level: Option<Spanned<String>>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people and journald.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it was read from.
    pub path: PathBuf,
    /// Identity of the agent, as in its certificate.
    pub agent_id: String,
    /// Tenant of the agent, as in its certificate.
    pub tenant: String,
    /// Where events go.
    pub collector: Collector,
    /// Spool and read positions.
    pub state: PathBuf,
    /// Socket of `sumun-agent status`.
    pub run: PathBuf,
    /// Folder of policy files.
    pub policies: PathBuf,
    /// Whom to ask of containers and of the host.
    pub identity: runtime::Settings,
    /// Bytes on disk of each lane.
    pub spool: Quotas,
    /// Bytes of each ring.
    pub rings: Rings,
    /// Rules that kill go on for so long without an agent.
    pub hold: Duration,
    /// What goes on while a rule isolates the host.
    pub isolate: Settings,
    /// How often is looked for what the kernel does not show; `None` = never.
    pub integrity: Option<Duration>,
    /// Whether fanotify is asked what was renamed and removed, where the kernel has no decision points.
    pub fanotify: bool,
    /// What is taken out of arguments.
    pub privacy: privacy::Rules,
    /// Where Prometheus may ask; `None` = nowhere.
    pub metrics: Option<SocketAddr>,
    /// Format of the log.
    pub log_format: LogFormat,
    /// What is logged, as a filter of `tracing`.
    pub log_level: String,
}

/// The collector and the files that prove who is who.
#[derive(Clone, Debug)]
pub struct Collector {
    /// `HOST:PORT`.
    pub address: String,
    /// The name its certificate must have: the host of the address.
    pub name: ServerName<'static>,
    /// CA of the collector's certificate, PEM.
    pub ca: PathBuf,
    /// The agent's certificate chain, PEM; replaced when it is renewed.
    pub certificate: PathBuf,
    /// The agent's key, PEM; it stays the same when the certificate is renewed, so that
    /// a crash never leaves a key and a certificate that do not fit.
    pub key: PathBuf,
}

/// Bytes on disk of each lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Alerts.
    pub alert: u64,
    /// Fork, exec, exit.
    pub life: u64,
    /// File and network.
    pub bulk: u64,
}

/// Bytes of each ring, powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// Process life.
    pub life: u32,
    /// File and network.
    pub bulk: u32,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`Error::Read`], or [`Error::Wrong`] with the place in the file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::check(path, &text)
    }

    /// Checks the text of a file.
    ///
    /// # Errors
    /// [`Error::Wrong`] with the place in it.
    pub fn check(path: &Path, text: &str) -> Result<Self, Error> {
        Self::parse(path, text).map_err(|problem| Error::Wrong {
            path: path.to_owned(),
            problem,
        })
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Problem> {
        let file: File = toml::from_str(text).map_err(|error| problem_of(text, &error))?;
        let at = |offset: usize, message: String| Problem::at(text, offset, message);
        // `Path::parent` of a bare name is the empty path, which means here.
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let place = |path: PathBuf| folder.join(path);

        let id = &file.agent.id;
        if uuid::Uuid::parse_str(id.get_ref()).is_err() {
            let message = format!("agent id {:?} is not a UUID", id.get_ref());
            return Err(at(id.span().start, message));
        }
        let tenant = &file.agent.tenant;
        if !is_tenant(tenant.get_ref()) {
            let message = format!(
                "tenant {:?} is not a tenant's name (lower-case letters, digits and -)",
                tenant.get_ref()
            );
            return Err(at(tenant.span().start, message));
        }
        let address = &file.collector.address;
        let name = server_name(address.get_ref()).ok_or_else(|| {
            at(
                address.span().start,
                format!(
                    "collector address {:?} is not HOST:PORT, such as 10.0.0.5:7443 or \
                     [fd00::5]:7443",
                    address.get_ref()
                ),
            )
        })?;
        let quota = |size: Option<Spanned<Size>>, default: u64, lane: &str| match size {
            None => Ok(default),
            Some(size) if size.get_ref().0 < QUOTA_MIN => Err(at(
                size.span().start,
                format!("the quota of lane {lane} has to be 16MiB or more"),
            )),
            Some(size) => Ok(size.get_ref().0),
        };
        let ring = |size: Option<Spanned<Size>>, default: u32, ring: &str| {
            let Some(size) = size else {
                return Ok(default);
            };
            let bytes = size.get_ref().0;
            let usable = bytes.is_power_of_two() && (RING_MIN..=RING_MAX).contains(&bytes);
            u32::try_from(bytes).ok().filter(|_| usable).ok_or_else(|| {
                at(
                    size.span().start,
                    format!("the size of ring {ring} has to be a power of two from 256KiB to 2GiB"),
                )
            })
        };
        Ok(Self {
            path: path.to_owned(),
            collector: Collector {
                address: address.get_ref().clone(),
                name,
                ca: place(file.collector.ca),
                certificate: place(file.collector.certificate),
                key: place(file.collector.key),
            },
            state: place(file.paths.state),
            run: place(file.paths.run),
            policies: place(file.paths.policies),
            spool: Quotas {
                alert: quota(file.spool.alert, 64 << 20, "alert")?,
                life: quota(file.spool.life, 512 << 20, "life")?,
                bulk: quota(file.spool.bulk, 1 << 30, "bulk")?,
            },
            rings: Rings {
                life: ring(file.rings.life, 4 << 20, "life")?,
                bulk: ring(file.rings.bulk, 8 << 20, "bulk")?,
            },
            hold: match file.enforce.hold {
                None => HOLD_DEFAULT,
                Some(hold) => length(hold.get_ref()).ok_or_else(|| {
                    at(
                        hold.span().start,
                        format!(
                            "hold {:?} is no time from 10 seconds to 366 days such as \"24h\" (s, m, h or d)",
                            hold.get_ref()
                        ),
                    )
                })?,
            },
            isolate: isolate::check(file.enforce.isolate, at)?,
            integrity: match file.integrity.every {
                None => Some(INTEGRITY_DEFAULT),
                Some(every) if every.get_ref() == "off" => None,
                Some(every) => Some(length(every.get_ref()).ok_or_else(|| {
                    at(
                        every.span().start,
                        format!(
                            "every {:?} is neither \"off\" nor a time from 10 seconds to 366 days such as \"5m\" (s, m, h or d)",
                            every.get_ref()
                        ),
                    )
                })?),
            },
            fanotify: file.files.fanotify,
            privacy: file.privacy.check().map_err(|(offset, message)| at(offset, message))?,
            identity: identity::check(file.identity, at)?,
            metrics: match file.metrics.listen {
                None => Some(METRICS_DEFAULT),
                Some(listen) => {
                    metrics(listen.get_ref()).map_err(|message| at(listen.span().start, message))?
                }
            },
            log_format: file.log.format,
            log_level: match file.log.level {
                None => "info".to_owned(),
                Some(level) => {
                    if let Err(error) = level.get_ref().parse::<tracing_subscriber::EnvFilter>() {
                        return Err(at(
                            level.span().start,
                            format!("log level {:?}: {error}", level.get_ref()),
                        ));
                    }
                    level.into_inner()
                }
            },
            agent_id: file.agent.id.into_inner(),
            tenant: file.agent.tenant.into_inner(),
        })
    }
}

/// Most items in each list of `[privacy]`: every one is asked about every argument.
const PRIVACY_MAX: usize = 64;
/// Bytes that a compiled pattern may take, and again those that it may use while it runs.
const PATTERN_MAX: usize = 256 << 10;

impl RawPrivacy {
    /// # Errors
    /// Where, and what is wrong.
    fn check(self) -> Result<privacy::Rules, (usize, String)> {
        let bounded = |list: &[Spanned<String>], key: &str| match list.get(PRIVACY_MAX) {
            None => Ok(()),
            Some(item) => Err((
                item.span().start,
                format!(
                    "`{key}` has more than {PRIVACY_MAX} items: each is asked about every argument"
                ),
            )),
        };
        let names = |list: &[Spanned<String>], key: &str| {
            bounded(list, key)?;
            list.iter()
                .map(|name| match privacy::normal(name.get_ref()) {
                    normal if normal.is_empty() || normal.len() > 64 => Err((
                        name.span().start,
                        format!("{:?} is no name such as \"customer-pin\"", name.get_ref()),
                    )),
                    normal => Ok(normal),
                })
                .collect::<Result<Vec<_>, _>>()
        };
        bounded(&self.patterns, "patterns")?;
        let pattern = |text: &Spanned<String>| {
            let limits = meta::Config::new()
                .nfa_size_limit(Some(PATTERN_MAX))
                .hybrid_cache_capacity(PATTERN_MAX);
            let built = meta::Builder::new().configure(limits).build(text.get_ref());
            built.map_err(|error| {
                let cause = std::error::Error::source(&error)
                    .map_or(String::new(), |cause| format!(": {cause}"));
                (
                    text.span().start,
                    format!("pattern {:?}: {error}{cause}", text.get_ref()),
                )
            })
        };
        Ok(privacy::Rules {
            on: self.redact,
            names: names(&self.names, "names")?,
            keep: names(&self.keep, "keep")?,
            patterns: self
                .patterns
                .iter()
                .map(pattern)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The host of `HOST:PORT` or `[IPV6]:PORT` as a name that a certificate can have.
#[must_use]
pub fn server_name(address: &str) -> Option<ServerName<'static>> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok().filter(|port| *port != 0)?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    ServerName::try_from(host.to_owned()).ok()
}

/// What a tenant may be called: it stands in the certificate's URI.
#[must_use]
pub fn is_tenant(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn metrics(listen: &str) -> Result<Option<SocketAddr>, String> {
    if listen == "off" {
        return Ok(None);
    }
    let address: SocketAddr = listen.parse().map_err(|_| {
        format!("metrics address {listen:?} is neither \"off\" nor IP:PORT, such as 127.0.0.1:9637")
    })?;
    if !address.ip().is_loopback() {
        return Err(format!(
            "metrics address {listen} is not a loopback address: metrics have no authentication"
        ));
    }
    Ok(Some(address))
}

/// What serde found, with the place and, for an unknown key, the nearest known one.
fn problem_of(text: &str, error: &toml::de::Error) -> Problem {
    let message = error.message();
    let offset = error.span().map_or(0, |span| span.start);
    // serde: "unknown field `a`, expected one of `b`, `c`"; the names stand between backticks.
    let mut names = message.split('`').skip(1).step_by(2);
    let unknown = message
        .strip_prefix("unknown field ")
        .and_then(|_| names.next());
    let Some(unknown) = unknown else {
        return Problem::at(text, offset, message.trim_end());
    };
    let known: Vec<&str> = names.collect();
    let hint = match nearest(unknown, known.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("known here: {}", known.join(", ")),
    };
    Problem::at(text, offset, format!("unknown key `{unknown}`; {hint}"))
}

/// A number of bytes: an integer, or text with a unit such as `"64MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size(u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a number of bytes, or text such as \"64MiB\"")
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
        u64::try_from(bytes)
            .map(Size)
            .map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim_start() {
            "" | "B" => Some(0),
            "KiB" => Some(10),
            "MiB" => Some(20),
            "GiB" => Some(30),
            "TiB" => Some(40),
            _ => None,
        };
        number
            .parse::<u64>()
            .ok()
            .zip(shift)
            .and_then(|(number, shift)| number.checked_mul(1 << shift))
            .map(Size)
            .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[agent]\n\
        id = \"6f9619ff-8b86-4d01-b42d-00c04fc964ff\"\n\
        tenant = \"default\"\n\
        [collector]\n\
        address = \"127.0.0.1:7443\"\n\
        ca = \"ca.pem\"\n\
        certificate = \"agent.pem\"\n\
        key = \"/etc/keys/agent.key\"\n";

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/etc/sumun/agent.toml"), text)
            .map_err(|problem| problem.to_string())
    }

    #[test]
    fn defaults_and_paths_next_to_the_file() {
        let config = parse(GOOD).expect("a good file");
        assert_eq!(config.state, Path::new("/etc/sumun/state"));
        assert_eq!(config.collector.ca, Path::new("/etc/sumun/ca.pem"));
        assert_eq!(config.collector.key, Path::new("/etc/keys/agent.key"));
        assert_eq!(config.rings.bulk, 8 << 20);
        assert_eq!(config.metrics, Some(METRICS_DEFAULT));
        assert_eq!(config.log_format, LogFormat::Text);
    }

    #[test]
    fn every_setting_is_read() {
        let text = format!(
            "{GOOD}[paths]\nstate = \"/var/lib/sumun\"\n[spool]\nbulk = \"2GiB\"\nlife = 33554432\n\
             [rings]\nlife = \"1MiB\"\n[metrics]\nlisten = \"off\"\n[log]\nformat = \"json\"\n\
             level = \"sumun_agent=debug\"\n"
        );
        let config = parse(&text).expect("a good file");
        assert_eq!(config.state, Path::new("/var/lib/sumun"));
        assert_eq!((config.spool.bulk, config.spool.life), (2 << 30, 32 << 20));
        assert_eq!(config.rings.life, 1 << 20);
        assert_eq!(config.metrics, None);
        assert_eq!(config.log_format, LogFormat::Json);

        let text = format!(
            "{GOOD}[privacy]\nnames = [\"Customer-PIN\"]\nkeep = [\"page_token\"]\npatterns = ['ACME-[0-9]{{4}}']\n"
        );
        let privacy = parse(&text).expect("a good file").privacy;
        assert!(privacy.on && privacy.patterns[0].is_match("ACME-1234"));
        assert_eq!(
            (privacy.names, privacy.keep),
            (vec!["customerpin".to_owned()], vec!["pagetoken".to_owned()])
        );
    }

    #[test]
    fn faults_have_a_place_and_say_what_was_meant() {
        let lines = GOOD.lines().count();
        for (text, wanted) in [
            (
                GOOD.replace("address", "adress"),
                "5:1: unknown key `adress`; did you mean `address`?",
            ),
            (
                format!("{GOOD}[spol]\n"),
                "9:2: unknown key `spol`; did you mean `spool`?",
            ),
            (
                format!("{GOOD}[log]\nzebra = 1\n"),
                "10:1: unknown key `zebra`; known here: format, level",
            ),
            (
                format!("{GOOD}[spool]\nbulk = \"1MiB\"\n"),
                "10:8: the quota of lane bulk has to be 16MiB or more",
            ),
            (
                format!("{GOOD}[rings]\nlife = 1000000\n"),
                "10:8: the size of ring life has to be a power of two from 256KiB to 2GiB",
            ),
            (
                format!("{GOOD}[metrics]\nlisten = \"0.0.0.0:1\"\n"),
                "10:10: metrics address 0.0.0.0:1 is not a loopback address: metrics have no authentication",
            ),
            (
                GOOD.replace("127.0.0.1:7443", "127.0.0.1"),
                "5:11: collector address \"127.0.0.1\" is not HOST:PORT",
            ),
            (GOOD.replace("6f9619ff", "x"), "2:6: agent id"),
            (
                GOOD.replace("\"default\"", "\"A b\""),
                "3:10: tenant \"A b\"",
            ),
            (
                GOOD.replace("\"default\"", "7"),
                "3:10: invalid type: integer `7`, expected a string",
            ),
            (
                format!("{GOOD}[log]\nformat = \"xml\"\n"),
                "10:10: unknown variant `xml`",
            ),
            (
                format!("{GOOD}[spool]\nbulk = \"5 potatoes\"\n"),
                "10:8: invalid value: string \"5 potatoes\"",
            ),
            (
                format!("{GOOD}[log]\nlevel = \"a=b=c\"\n"),
                "10:9: log level",
            ),
            (
                format!("{GOOD}[privacy]\npatterns = ['(']\n"),
                "10:13: pattern \"(\"",
            ),
            (
                format!("{GOOD}[privacy]\nnames = ['--']\n"),
                "10:10: \"--\" is no name",
            ),
            ("[agent]\n".to_owned(), "missing field"),
        ] {
            let error = parse(&text).expect_err(&text);
            assert!(
                error.contains(wanted),
                "{error:?} is not {wanted:?} ({lines} lines)"
            );
        }
    }

    #[test]
    fn a_missing_file_says_how_to_get_one() {
        let error = Config::load(Path::new("/nonexistent/agent.toml")).expect_err("no file");
        assert!(error.to_string().contains("sumun-agent enroll"), "{error}");
    }
}
