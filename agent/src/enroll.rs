//! `sumun-agent enroll`: a token, or what a cloud or a cluster says of the host, for an identity.
//!
//! The key is made here and never leaves; the collector, whose own certificate the
//! given CA vouches for, answers the proof with a certificate for it. Everything is
//! written by replacing whole files; `agent.toml` comes last, so its presence means that the
//! identity is complete.
//!
//! With `--once` a host that is enrolled stays so ([`known`]).
//!
//! What a cloud or a cluster says is bound to the first key that is shown with it. So the key is kept from try to
//! try, and from one enrolment to the next: an answer that was lost on its way is asked for again.

mod known;

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rcgen::KeyPair;
use sumun_proto::v1::EnrollRequest;
use sumun_proto::v1::enroll_request::Proof;
use sumun_proto::v1::enrolment_client::EnrolmentClient;

use crate::cli::{Enroll, Join};
use crate::config::{self, Config, server_name};
use crate::enrich::{host, runtime::cloud};
use crate::forward::backoff::Backoff;
use crate::forward::identity::Holder;
use crate::forward::{connect, identity};
use crate::starter;
use crate::status::Peers;

/// Where the packages' service has its configuration. State and socket have places of their own then, as the
/// file system's standard wants.
const SYSTEM: &str = "/etc/sumun";
/// The state of the packages' service.
const SYSTEM_STATE: &str = "/var/lib/sumun/agent";
/// The socket's folder of the packages' service.
const SYSTEM_RUN: &str = "/run/sumun";

/// Longest wait for the collector's answer.
const ANSWER: Duration = Duration::from_secs(30);

/// An enrolment that did not come about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is an identity already.
    #[error("{path} exists already: this host is enrolled; --force replaces its identity")]
    Enrolled {
        /// The configuration.
        path: PathBuf,
    },
    /// There is the identity of another collector.
    #[error(
        "this host is enrolled at another collector, as the agent {agent} of tenant {tenant}: {} does not vouch for its certificate; \
         `sumun-agent enroll --force` makes it one of this collector, which then gets what is still in its spool, too",
        ca.display()
    )]
    Foreign {
        /// Who it is there.
        agent: String,
        /// Whose.
        tenant: String,
        /// The authority that was given.
        ca: PathBuf,
    },
    /// The host would become another tenant's.
    #[error(
        "this host was enrolled for the tenant {before}, and would be for {now} now, which would get what is still in its spool, too: \
         `sumun-agent enroll --force` if that is wanted"
    )]
    OtherTenant {
        /// Whose it was.
        before: String,
        /// Whose it would be.
        now: String,
    },
    /// The collector does not want the identity.
    #[error(
        "this host is enrolled as the agent {agent}, whose certificate has expired and which the collector does not take any more \
         ({reason}); `sumun-agent enroll --force` makes a new one"
    )]
    Unwanted {
        /// Who it is.
        agent: String,
        /// The collector's word.
        reason: String,
    },
    /// The token's or the settings' file cannot be used.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The metadata service does not tell.
    #[error("the instance's metadata service gives no signed document: {0}")]
    Metadata(String),
    /// The settings do not make a good configuration.
    #[error("{path}: {why}")]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The address is none.
    #[error("{0:?} is not HOST:PORT")]
    Address(String),
    /// The folder cannot be made.
    #[error("cannot make the folder {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Files, keys or certificates.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The collector cannot be reached, or is not the one the CA vouches for.
    #[error(transparent)]
    Connect(#[from] connect::Error),
    /// The collector refused.
    #[error("the collector at {address} refused to enrol this host: {reason}")]
    Refused {
        /// The collector.
        address: String,
        /// Why.
        reason: String,
        /// It may not refuse the next time.
        passing: bool,
    },
    /// The collector did not answer.
    #[error("the collector at {address} did not answer within 30 s")]
    Silent {
        /// The collector.
        address: String,
    },
}

/// What an enrolment gave.
#[derive(Clone, Debug)]
pub struct Enrolled {
    /// Identity of the agent.
    pub agent_id: String,
    /// Its tenant.
    pub tenant: String,
    /// The configuration that was written.
    pub config: PathBuf,
    /// Starter policies that were written.
    pub policies: usize,
}

impl Error {
    /// Whether it may be otherwise in a while, without anybody doing anything here.
    fn passes(&self) -> bool {
        match self {
            Error::Connect(connect::Error::Connect { .. })
            | Error::Silent { .. }
            | Error::Metadata(_) => true,
            Error::Refused { passing, .. } => *passing,
            _ => false,
        }
    }
}

/// What becomes known on the way.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// There is a new identity.
    Enrolled(Enrolled),
    /// There was one already.
    Known {
        /// The configuration.
        config: PathBuf,
        /// The settings were taken over, and were others than before.
        changed: bool,
        /// Starter policies that were written.
        policies: usize,
    },
}

/// Enrols this host. What was there before `--force` is kept beside as `agent.toml.old`. A host that had no
/// configuration gets the starter policies: on another one, those that are missing were taken away. With `--once`, one that is
/// enrolled stays so, but if its certificate is not renewed any more; a collector that is away is waited for. `told` is called with
/// what is done so and why.
///
/// # Errors
/// Nothing of an earlier identity is touched before the collector has made a new one.
pub async fn enroll(args: &Enroll, host_name: &str, told: impl Fn(&str)) -> Result<Outcome, Error> {
    let config = args.out.join("agent.toml");
    let settings = args.settings.as_deref().map(read).transpose()?;
    let mut replaces = match args.force {
        true => Replaces::Any,
        false => Replaces::None,
    };
    if config.exists() && args.once {
        let known::State::Ended(tenant) = known::look(args, &config).await? else {
            let changed = match &settings {
                None => false,
                Some(settings) => renew(args, &config, settings)?,
            };
            return Ok(Outcome::Known {
                config,
                changed,
                policies: starter_again(args)?,
            });
        };
        told(
            "the certificate of this host has expired, and is not renewed any more: enrolling anew",
        );
        if !args.force {
            replaces = Replaces::Of(tenant);
        }
    }
    let (mut backoff, mut last) = (Backoff::default(), String::new());
    loop {
        match once(args, host_name, settings.as_deref(), &replaces).await {
            Ok(enrolled) => return Ok(Outcome::Enrolled(enrolled)),
            Err(error) if args.once && error.passes() => {
                let reason = connect::chain(&error);
                if reason != last {
                    told(&reason);
                    last = reason;
                }
                tokio::time::sleep(backoff.next(Instant::now())).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// With `--starter-policies`: writes them where there are none at all, as where those of a chart's values were.
fn starter_again(args: &Enroll) -> Result<usize, Error> {
    let folder = args.out.join("policies");
    let has_some = || {
        let entries = fs::read_dir(&folder)?;
        let mut names = entries.filter_map(|entry| Some(entry.ok()?.path()));
        io::Result::Ok(names.any(|path| path.extension().is_some_and(|end| end == "toml")))
    };
    match has_some() {
        _ if !args.starter_policies => Ok(0),
        Ok(true) => Ok(0),
        Ok(false) => Ok(starter::install(&folder)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_folder(&folder)?;
            Ok(starter::install(&folder)?)
        }
        Err(source) => Err(Error::Read {
            path: folder,
            source,
        }),
    }
}

fn make_folder(path: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path);
    made.map_err(|source| Error::Folder {
        path: path.to_owned(),
        source,
    })
}

/// Writes the configuration of a host that is enrolled anew; whether it was another one before.
fn renew(args: &Enroll, config: &Path, settings: &str) -> Result<bool, Error> {
    let certificate = args.out.join("agent.pem");
    let holder = Holder::of(
        &identity::read(&certificate)?,
        &certificate.display().to_string(),
    )?;
    let text = whole_text(args, &holder, Some(settings))?;
    if identity::read(config)? == text.as_bytes() {
        return Ok(false);
    }
    identity::replace(config, text.as_bytes(), 0o644)?;
    Ok(true)
}

/// The identity that a new one may take the place of.
#[derive(Debug, PartialEq, Eq)]
enum Replaces {
    /// None: there must not be one.
    None,
    /// One of this tenant: what is in the spool is nobody else's.
    Of(String),
    /// Any.
    Any,
}

async fn once(
    args: &Enroll,
    host_name: &str,
    settings: Option<&str>,
    replaces: &Replaces,
) -> Result<Enrolled, Error> {
    let config = args.out.join("agent.toml");
    if *replaces == Replaces::None && config.exists() {
        return Err(Error::Enrolled { path: config });
    }
    let (token, proof) = proof(args).await?;
    let ca_pem = identity::read(&args.ca)?;
    let tls = identity::anonymous(&ca_pem, &args.ca)?;
    let name =
        server_name(&args.collector).ok_or_else(|| Error::Address(args.collector.clone()))?;
    let policies = args.out.join("policies");
    make_folder(&policies)?;
    let policies = (!args.no_policies && !config.exists()).then_some(policies);
    // A folder that cannot be written to must be found before a use of the token is spent.
    let parked = args.out.join("agent.key.enrolling");
    let key = key(args, &parked)?;
    identity::replace(&parked, key.serialize_pem().as_bytes(), 0o600)?;
    let request = EnrollRequest {
        token,
        csr_der: identity::request(&key)?,
        host_name: host_name.to_owned(),
        machine_id: machine_id(),
        proof,
    };
    let made = ask(args, &name, tls, request).await;
    // Of no use any more, unless the next try has to show it again.
    let again = args.join.is_some() && made.is_err();
    let outcome = made.and_then(|made| {
        let holder = identity::check_made(&made.certificate_pem, &key)?;
        if let Replaces::Of(tenant) = replaces
            && *tenant != holder.tenant
        {
            return Err(Error::OtherTenant {
                before: tenant.clone(),
                now: holder.tenant,
            });
        }
        let text = whole_text(args, &holder, settings)?;
        let ca = if made.ca_pem.is_empty() {
            &ca_pem
        } else {
            made.ca_pem.as_bytes()
        };
        if config.exists() {
            identity::replace(
                &args.out.join("agent.toml.old"),
                &identity::read(&config)?,
                0o644,
            )?;
        }
        identity::replace(
            &args.out.join("agent.key"),
            key.serialize_pem().as_bytes(),
            0o600,
        )?;
        identity::replace(
            &args.out.join("agent.pem"),
            made.certificate_pem.as_bytes(),
            0o644,
        )?;
        identity::replace(&args.out.join("ca.pem"), ca, 0o644)?;
        let installed = match &policies {
            Some(folder) => starter::install(folder)?,
            None => 0,
        };
        identity::replace(&config, text.as_bytes(), 0o644)?;
        Ok(Enrolled {
            agent_id: holder.agent_id,
            tenant: holder.tenant,
            config,
            policies: installed,
        })
    });
    if !again {
        let _ = fs::remove_file(&parked);
    }
    outcome
}

/// The token, or what stands in its place.
async fn proof(args: &Enroll) -> Result<(String, Option<Proof>), Error> {
    let proof = match (&args.token_file, args.join) {
        (Some(file), _) => return Ok((read(file)?.trim().to_owned(), None)),
        (None, Some(Join::Kubernetes)) => {
            let token = read(&args.service_account_token)?;
            Proof::ServiceAccountToken(token.trim().to_owned())
        }
        // Clap takes one or the other.
        (None, Some(Join::Ec2) | None) => {
            let document = cloud::signed_document(args.metadata).await;
            Proof::Ec2Document(document.map_err(Error::Metadata)?)
        }
    };
    Ok((String::new(), Some(proof)))
}

/// A token is for a new agent, with a new key. What is said of a host leads to the agent whose key it was first shown with.
fn key(args: &Enroll, parked: &Path) -> Result<KeyPair, Error> {
    if args.join.is_some() {
        for path in [&args.out.join("agent.key"), parked] {
            let pem = fs::read_to_string(path).ok();
            if let Some(key) = pem.and_then(|pem| KeyPair::from_pem(&pem).ok()) {
                return Ok(key);
            }
        }
    }
    Ok(identity::new_key()?)
}

async fn ask(
    args: &Enroll,
    name: &rustls_pki_types::ServerName<'static>,
    tls: std::sync::Arc<rustls::ClientConfig>,
    request: EnrollRequest,
) -> Result<sumun_proto::v1::EnrollResponse, Error> {
    let channel = connect::connect(&args.collector, name, tls, &Peers::default()).await?;
    let mut client = EnrolmentClient::new(channel);
    match tokio::time::timeout(ANSWER, client.enroll(request)).await {
        Err(_) => Err(Error::Silent {
            address: args.collector.clone(),
        }),
        Ok(Err(status)) => Err(Error::Refused {
            address: args.collector.clone(),
            passing: matches!(
                status.code(),
                tonic::Code::Unavailable
                    | tonic::Code::ResourceExhausted
                    | tonic::Code::DeadlineExceeded
                    | tonic::Code::Cancelled
            ),
            reason: if status.message().is_empty() {
                connect::chain(&status)
            } else {
                status.message().to_owned()
            },
        }),
        Ok(Ok(response)) => Ok(response.into_inner()),
    }
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// machine-id(5); empty where there is none.
fn machine_id() -> String {
    fs::read_to_string(host::root().join("etc/machine-id"))
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// The whole configuration, which is checked: what is wrong in the settings is told now and not at the agent's start.
fn whole_text(args: &Enroll, holder: &Holder, settings: Option<&str>) -> Result<String, Error> {
    let mut text = config_text(&holder.agent_id, &holder.tenant, &args.collector);
    let file = args.settings.clone().unwrap_or_default();
    let wrong = |why: String| Error::Settings {
        path: file.clone(),
        why,
    };
    let table: toml::Table = match settings {
        Some(settings) => settings
            .parse()
            .map_err(|error: toml::de::Error| wrong(error.to_string()))?,
        None => toml::Table::new(),
    };
    for key in ["agent", "collector"] {
        if table.contains_key(key) {
            return Err(wrong(format!(
                "[{key}] is written by the enrolment: take it out"
            )));
        }
    }
    if args.out == Path::new(SYSTEM) && !table.contains_key("paths") {
        text.push_str(&system_places());
    }
    if let Some(settings) = settings {
        text.push_str(&format!("\n# From {}.\n{settings}", file.display()));
        let path = args.out.join("agent.toml");
        if let Err(error) = Config::check(&path, &text) {
            let config::Error::Wrong { problem, .. } = &error else {
                return Err(wrong(error.to_string()));
            };
            return Err(wrong(problem.message.clone()));
        }
    }
    Ok(text)
}

/// What is not set is at its default; the file says where the rest is explained.
fn config_text(agent_id: &str, tenant: &str, address: &str) -> String {
    let mut text = String::from(
        "# Written by `sumun-agent enroll`. Paths are relative to this file.\n\
         # Also: [paths] state, run, policies; [spool] alert, life, bulk; [rings] life, bulk; [enforce] hold;\n\
         # [privacy] redact, names, keep, patterns; [metrics] listen; [log] format, level.\n",
    );
    let quoted = |value: &str| toml::Value::from(value).to_string();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "\n[agent]\nid = {}\ntenant = {}\n\n[collector]\naddress = {}\nca = \"ca.pem\"\n\
         certificate = \"agent.pem\"\nkey = \"agent.key\"\n",
        quoted(agent_id),
        quoted(tenant),
        quoted(address)
    );
    text
}

fn system_places() -> String {
    format!("\n[paths]\nstate = \"{SYSTEM_STATE}\"\nrun = \"{SYSTEM_RUN}\"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_written_configuration_is_a_good_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("agent.toml");
        let id = "6f9619ff-8b86-4d01-b42d-00c04fc964ff";
        fs::write(&path, config_text(id, "default", "[::1]:7443")).expect("write");
        let config = Config::load(&path).expect("a good configuration");
        assert_eq!(
            (config.agent_id.as_str(), config.tenant.as_str()),
            (id, "default")
        );
        assert_eq!(config.collector.key, folder.path().join("agent.key"));
        assert_eq!(config.state, folder.path().join("state"));

        let text = config_text(id, "default", "[::1]:7443") + &system_places();
        fs::write(&path, text).expect("write");
        let config = Config::load(&path).expect("a good configuration");
        assert_eq!(config.state, Path::new(SYSTEM_STATE));
        assert_eq!(config.run, Path::new(SYSTEM_RUN));
    }
}
