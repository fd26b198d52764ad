//! What the kubelet of the node says of its pods and the runtime does not: who made the pod, and which service account it has.
//!
//! Only asked where it is configured (`[identity.kubelet]`), by its list of the node's pods, over TLS, with a token. The list is
//! kept until a pod is asked about that is not in it, and fetched at most once in [`AGAIN`], for all that wait. It is
//! asked after the runtime, whose word is passed on first: a kubelet that hangs holds nothing up.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls_pki_types::ServerName;
use serde::Deserialize;
use sumun_proto::v1::Facts;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use super::http;
use crate::forward::identity;

/// The list is fetched no earlier after it was fetched, or could not be.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest list. A node has some hundred pods, each of some ten kilobytes.
const ANSWER_MAX: usize = 32 * 1024 * 1024;
/// Where kubelets listen.
const PORT: u16 = 10250;
/// Longest token.
const TOKEN_MAX: u64 = 16 * 1024;

/// Where the kubelet is, and what is shown to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `HOST:PORT`; `None`: the address in `SUMUN_NODE_IP`, else of this host, at its usual port.
    pub address: Option<String>,
    /// What its certificate has to be for; `None`: the name of the host.
    pub name: Option<String>,
    /// Who vouches for its certificate.
    pub ca: PathBuf,
    /// The file of a service account's token; read each time, it is changed.
    pub token: PathBuf,
}

/// The kubelet.
#[derive(Debug)]
pub struct Kubelet {
    address: String,
    name: String,
    settings: Settings,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pods: HashMap<String, Pod>,
    asked: Option<Instant>,
}

#[derive(Clone, Debug, Default)]
struct Pod {
    owner: Option<Owner>,
    service_account: String,
    node: String,
}

// Of the API's types only what is used (core/v1, meta/v1).
#[derive(Deserialize)]
struct PodList {
    items: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    uid: String,
    #[serde(default)]
    owner_references: Vec<Owner>,
}

#[derive(Clone, Debug, Deserialize)]
struct Owner {
    kind: String,
    name: String,
    #[serde(default)]
    controller: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    service_account_name: String,
    node_name: String,
}

impl Kubelet {
    /// Nothing is asked yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let own = || {
            let ip = std::env::var("SUMUN_NODE_IP").ok();
            let ip = ip.and_then(|ip| ip.parse::<IpAddr>().ok());
            SocketAddr::new(ip.unwrap_or(Ipv4Addr::LOCALHOST.into()), PORT).to_string()
        };
        Self {
            address: settings.address.clone().unwrap_or_else(own),
            name: settings.name.clone().unwrap_or_else(crate::run::host_name),
            settings,
            state: Mutex::default(),
        }
    }

    /// The facts of a pod's container, with what the kubelet says of the pod; `None` if it does not know it.
    ///
    /// # Errors
    /// It does not answer well.
    pub async fn add(&self, facts: &Facts) -> io::Result<Option<Facts>> {
        let mut state = self.state.lock().await;
        if !state.pods.contains_key(&facts.pod_uid) {
            if let Some(asked) = state.asked {
                tokio::time::sleep(AGAIN.saturating_sub(asked.elapsed())).await;
            }
            // Also if it fails, or is given up while it waits.
            state.asked = Some(Instant::now());
            state.pods = self.list().await?;
        }
        let Some(pod) = state.pods.get(&facts.pod_uid) else {
            return Ok(None);
        };
        let (owner_kind, owner_name) = match &pod.owner {
            Some(owner) => (owner.kind.clone(), owner.name.clone()),
            None => Default::default(),
        };
        Ok(Some(Facts {
            owner_kind,
            owner_name,
            service_account: pod.service_account.clone(),
            node: pod.node.clone(),
            ..facts.clone()
        }))
    }

    /// Asks it once how many pods it has.
    ///
    /// # Errors
    /// It does not answer well.
    pub async fn count(&self) -> io::Result<usize> {
        Ok(self.list().await?.len())
    }

    async fn list(&self) -> io::Result<HashMap<String, Pod>> {
        let (address, name) = (&self.address, &self.name);
        let Settings { ca, token, .. } = &self.settings;
        let token = read_token(token)?;
        let tls = identity::plain(&identity::read(ca).map_err(io::Error::other)?, ca)
            .map_err(io::Error::other)?;
        let server = ServerName::try_from(name.clone()).map_err(io::Error::other)?;
        let stream = TcpStream::connect(address.as_str()).await?;
        let stream = TlsConnector::from(Arc::new(tls))
            .connect(server, stream)
            .await?;
        let bearer = format!("Bearer {token}");
        let request = http::Request {
            method: "GET",
            path: "/pods",
            host: name,
            headers: &[("Authorization", &bearer), ("Accept", "application/json")],
        };
        let answer = http::ask(stream, request, ANSWER_MAX).await?;
        if answer.status != 200 {
            return Err(io::Error::other(format!(
                "the kubelet answers {}: its list of pods is for who may get nodes/pods (nodes/proxy before Kubernetes 1.33)",
                answer.status
            )));
        }
        pods(&answer.body)
    }
}

fn pods(body: &[u8]) -> io::Result<HashMap<String, Pod>> {
    let list: PodList = serde_json::from_slice(body)?;
    let pods = list.items.into_iter().map(|item| {
        let Metadata {
            uid,
            owner_references,
        } = item.metadata;
        let pod = Pod {
            // Of several at most one manages it.
            owner: owner_references.into_iter().find(|owner| owner.controller),
            service_account: item.spec.service_account_name,
            node: item.spec.node_name,
        };
        (uid, pod)
    });
    Ok(pods.collect())
}

fn read_token(path: &Path) -> io::Result<String> {
    let place = |error: io::Error| io::Error::other(format!("{}: {error}", path.display()));
    if std::fs::metadata(path).map_err(place)?.len() > TOKEN_MAX {
        return Err(place(io::Error::other("too long for a token")));
    }
    let text = std::fs::read_to_string(path).map_err(place)?;
    let token = text.trim();
    match token.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(token.to_owned()),
        false => Err(place(io::Error::other("no token"))),
    }
}

/// Whether a text can be the name of a certificate: a host's or an address.
#[must_use]
pub fn is_name(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok() || ServerName::try_from(name).is_ok()
}

#[cfg(test)]
mod tests;
