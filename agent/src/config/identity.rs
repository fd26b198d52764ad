//! `[identity]`: whom the agent asks of containers and of the host.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use sumun_policy::problem::Problem;
use toml::Spanned;

use crate::enrich::runtime::Settings;
use crate::enrich::runtime::cloud::{self, Provider};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    cri: Option<Vec<PathBuf>>,
    docker: Option<Vec<PathBuf>>,
    podman: Option<Vec<PathBuf>>,
    storage: Option<Vec<PathBuf>>,
    cloud: Option<Spanned<String>>,
    metadata: Option<Spanned<String>>,
}

/// What is not given is what runtimes do if nothing else is said.
pub(super) fn check(raw: Raw, at: impl Fn(usize, String) -> Problem) -> Result<Settings, Problem> {
    let usual = Settings::default();
    let mut metadata = cloud::Settings::default();
    if let Some(address) = raw.metadata {
        metadata.address = address.get_ref().parse::<SocketAddr>().map_err(|_| {
            let message = format!("metadata address {:?} is not IP:PORT", address.get_ref());
            at(address.span().start, message)
        })?;
    }
    let (cloud, place) = match &raw.cloud {
        None => ("auto", 0),
        Some(cloud) => (cloud.get_ref().as_str(), cloud.span().start),
    };
    metadata.provider = match cloud {
        "auto" | "off" => None,
        "aws" => Some(Provider::Ec2),
        "azure" => Some(Provider::Azure),
        "gcp" => Some(Provider::Google),
        other => {
            let message = format!("cloud {other:?} is none of auto, off, aws, azure, gcp");
            return Err(at(place, message));
        }
    };
    Ok(Settings {
        cri: raw.cri.unwrap_or(usual.cri),
        docker: raw.docker.unwrap_or(usual.docker),
        podman: raw.podman.unwrap_or(usual.podman),
        stores: raw.storage.unwrap_or(usual.stores),
        cloud: (cloud != "off").then_some(metadata),
    })
}
