//! The Container Runtime Interface: containerd and CRI-O as Kubernetes asks them.

use std::io;
use std::path::Path;

use hyper_util::rt::TokioIo;
use sumun_proto::cri::runtime_service_client::RuntimeServiceClient;
use sumun_proto::cri::{
    ContainerFilter, ContainerStatus, ContainerStatusRequest, ListContainersRequest,
    PodSandboxStatus, PodSandboxStatusRequest,
};
use sumun_proto::v1::Facts;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use super::{labels, reference, untold};

/// Longest answer.
const ANSWER_MAX: usize = 4 * 1024 * 1024;

/// A runtime that is asked.
#[derive(Clone, Debug)]
pub struct Cri {
    client: RuntimeServiceClient<Channel>,
}

impl Cri {
    /// The runtime behind a socket. It is connected to when it is asked.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move {
                let stream = UnixStream::connect(socket).await?;
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        // The address is not used: the socket is.
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Self {
            client: RuntimeServiceClient::new(channel).max_decoding_message_size(ANSWER_MAX),
        }
    }

    /// Asks of a container, or of a pod's own (its sandbox); `None` if the runtime does not know it. Of one whose description is too
    /// long nothing is known but that it is its.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn container(&self, id: &str) -> Result<Option<Facts>, Status> {
        match self.told(id).await {
            Err(status) if is_too_long(&status) => Ok(Some(untold("cri"))),
            told => told,
        }
    }

    async fn told(&self, id: &str) -> Result<Option<Facts>, Status> {
        let mut client = self.client.clone();
        let request = ContainerStatusRequest {
            container_id: id.into(),
            verbose: false,
        };
        let status = match known(client.container_status(request).await)? {
            Some(response) => response.status,
            None => None,
        };
        let Some(status) = status.filter(|status| status.id == id) else {
            // Of the container that holds a pod's namespaces only the pod is known.
            let sandbox = self.sandbox(id).await?;
            return Ok(sandbox.map(|sandbox| {
                let mut facts = Facts::default();
                pod(&mut facts, sandbox);
                facts
            }));
        };
        let request = ListContainersRequest {
            filter: Some(ContainerFilter { id: id.into() }),
        };
        let listed = client.list_containers(request).await?.into_inner();
        let mut facts = container(status);
        let sandbox = listed.containers.into_iter().find(|listed| listed.id == id);
        if let Some(listed) = sandbox
            && let Some(sandbox) = self.sandbox(&listed.pod_sandbox_id).await?
        {
            pod(&mut facts, sandbox);
        }
        Ok(Some(facts))
    }

    async fn sandbox(&self, id: &str) -> Result<Option<PodSandboxStatus>, Status> {
        let mut client = self.client.clone();
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.into(),
            verbose: false,
        };
        let response = known(client.pod_sandbox_status(request).await)?;
        let status = response.and_then(|response| response.status);
        Ok(status.filter(|status| status.id == id))
    }
}

/// An answer, or that there is no such thing. containerd says `NOT_FOUND`, or `UNKNOWN` with words.
fn known<T>(answer: Result<tonic::Response<T>, Status>) -> Result<Option<T>, Status> {
    match answer {
        Ok(response) => Ok(Some(response.into_inner())),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        // containerd as Docker runs it has no CRI.
        Err(status) if status.code() == Code::Unimplemented => Ok(None),
        Err(status) if status.code() == Code::Unknown && status.message().contains("not found") => {
            Ok(None)
        }
        Err(status) => Err(status),
    }
}

/// An answer beyond [`ANSWER_MAX`], or beyond what the runtime itself sends.
fn is_too_long(status: &Status) -> bool {
    status.code() == Code::OutOfRange
        || status.code() == Code::ResourceExhausted && status.message().contains("larger than max")
}

fn container(status: ContainerStatus) -> Facts {
    let mut facts = Facts {
        source: "cri".into(),
        container_name: status.metadata.unwrap_or_default().name,
        ..Facts::default()
    };
    // REPOSITORY@DIGEST, or the image's id where it has none.
    match status.image_ref.split_once('@') {
        Some((_, digest)) => digest.clone_into(&mut facts.image_digest),
        None => {
            facts.image_digest.clone_from(&status.image_ref);
            facts.image_id = status.image_ref;
        }
    }
    (facts.image, facts.image_tag) = reference(&status.image.unwrap_or_default().image);
    (facts.container_labels, facts.container_labels_flaws) = labels(status.labels);
    facts
}

fn pod(facts: &mut Facts, sandbox: PodSandboxStatus) {
    let metadata = sandbox.metadata.unwrap_or_default();
    facts.source = "cri".into();
    facts.pod_name = metadata.name;
    facts.pod_uid = metadata.uid;
    facts.namespace = metadata.namespace;
    (facts.pod_labels, facts.pod_labels_flaws) = labels(sandbox.labels);
}
