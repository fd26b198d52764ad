//! `sumun-agent enroll`: a token for an identity.
//!
//! The key is made here and never leaves; the collector, whose own certificate the
//! given CA vouches for, answers the token with a certificate for it. Everything is
//! written by replacing whole files; `agent.toml` comes last, so its presence means that the
//! identity is complete.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sumun_proto::v1::EnrollRequest;
use sumun_proto::v1::enrolment_client::EnrolmentClient;

use crate::cli::Enroll;
use crate::config::server_name;
use crate::forward::{connect, identity};
use crate::starter;

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
    /// The token's file cannot be used.
    #[error("cannot read the token {path}")]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
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

/// Enrols this host. What was there before `--force` is kept beside as `agent.toml.old`. A host that had no
/// configuration gets the starter policies: on another one, those that are missing were taken away.
///
/// # Errors
/// Nothing of an earlier identity is touched before the collector has made a new one.
pub async fn enroll(args: &Enroll, host_name: &str) -> Result<Enrolled, Error> {
    let config = args.out.join("agent.toml");
    if !args.force && config.exists() {
        return Err(Error::Enrolled { path: config });
    }
    let token = fs::read_to_string(&args.token_file).map_err(|source| Error::Token {
        path: args.token_file.clone(),
        source,
    })?;
    let ca_pem = identity::read(&args.ca)?;
    let tls = identity::anonymous(&ca_pem, &args.ca)?;
    let name =
        server_name(&args.collector).ok_or_else(|| Error::Address(args.collector.clone()))?;
    let policies = args.out.join("policies");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&policies)
        .map_err(|source| Error::Folder {
            path: policies.clone(),
            source,
        })?;
    let policies = (!args.no_policies && !config.exists()).then_some(policies);
    // A folder that cannot be written to must be found before a use of the token is spent.
    let key = identity::new_key()?;
    let parked = args.out.join("agent.key.enrolling");
    identity::replace(&parked, key.serialize_pem().as_bytes(), 0o600)?;
    let made = ask(
        args,
        &name,
        tls,
        &token,
        identity::request(&key)?,
        host_name,
    )
    .await;
    let outcome = made.and_then(|made| {
        let holder = identity::check_made(&made.certificate_pem, &key)?;
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
        let mut text = config_text(&holder.agent_id, &holder.tenant, &args.collector);
        if args.out == Path::new(SYSTEM) {
            text.push_str(&system_places());
        }
        identity::replace(&config, text.as_bytes(), 0o644)?;
        Ok(Enrolled {
            agent_id: holder.agent_id,
            tenant: holder.tenant,
            config,
            policies: installed,
        })
    });
    // Either in place by now, or of no use.
    let _ = fs::remove_file(&parked);
    outcome
}

async fn ask(
    args: &Enroll,
    name: &rustls_pki_types::ServerName<'static>,
    tls: std::sync::Arc<rustls::ClientConfig>,
    token: &str,
    csr_der: Vec<u8>,
    host_name: &str,
) -> Result<sumun_proto::v1::EnrollResponse, Error> {
    let channel = connect::connect(&args.collector, name, tls).await?;
    let request = EnrollRequest {
        token: token.trim().to_owned(),
        csr_der,
        host_name: host_name.to_owned(),
        machine_id: machine_id(),
    };
    let mut client = EnrolmentClient::new(channel);
    match tokio::time::timeout(ANSWER, client.enroll(request)).await {
        Err(_) => Err(Error::Silent {
            address: args.collector.clone(),
        }),
        Ok(Err(status)) => Err(Error::Refused {
            address: args.collector.clone(),
            reason: if status.message().is_empty() {
                connect::chain(&status)
            } else {
                status.message().to_owned()
            },
        }),
        Ok(Ok(response)) => Ok(response.into_inner()),
    }
}

/// machine-id(5); empty where there is none.
fn machine_id() -> String {
    fs::read_to_string("/etc/machine-id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
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
