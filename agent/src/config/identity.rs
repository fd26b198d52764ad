//! `[identity]`: whom the agent asks of containers and of the host.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use sumun_policy::problem::Problem;
use toml::Spanned;

use super::server_name;
use crate::enrich::runtime::Settings;
use crate::enrich::runtime::cloud::{self, Provider};
use crate::enrich::runtime::kubelet;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    cri: Option<Vec<PathBuf>>,
    docker: Option<Vec<PathBuf>>,
    podman: Option<Vec<PathBuf>>,
    storage: Option<Vec<PathBuf>>,
    cloud: Option<Spanned<String>>,
    metadata: Option<Spanned<String>>,
    kubelet: Option<RawKubelet>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKubelet {
    address: Option<Spanned<String>>,
    name: Option<Spanned<String>>,
    ca: PathBuf,
    token: PathBuf,
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
    let kubelet = match raw.kubelet {
        None => None,
        Some(raw) => {
            if let Some(address) = &raw.address
                && server_name(address.get_ref()).is_none()
            {
                let message = format!("kubelet address {:?} is not HOST:PORT", address.get_ref());
                return Err(at(address.span().start, message));
            }
            if let Some(name) = &raw.name
                && !kubelet::is_name(name.get_ref())
            {
                let message = format!("{:?} is no host's name or address", name.get_ref());
                return Err(at(name.span().start, message));
            }
            Some(kubelet::Settings {
                address: raw.address.map(Spanned::into_inner),
                name: raw.name.map(Spanned::into_inner),
                ca: raw.ca,
                token: raw.token,
            })
        }
    };
    Ok(Settings {
        cri: raw.cri.unwrap_or(usual.cri),
        docker: raw.docker.unwrap_or(usual.docker),
        podman: raw.podman.unwrap_or(usual.podman),
        stores: raw.storage.unwrap_or(usual.stores),
        cloud: (cloud != "off").then_some(metadata),
        kubelet,
    })
}
