//! A pod as Kubernetes makes one: containerd with its own root, state and socket, asked through the CRI.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::process::Process;

/// The Container Runtime Interface, generated.
#[expect(
    missing_docs,
    clippy::allow_attributes_without_reason,
    reason = "generated; the interface's own documentation says what they mean"
)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

use cri::runtime_service_client::RuntimeServiceClient;

/// How long containerd may take until it serves.
const READY: Duration = Duration::from_secs(60);
/// The network of the node, so that no network has to be set up.
const NODE: i32 = 2;

/// A containerd of the test's own.
#[derive(Debug)]
pub struct Containerd {
    socket: PathBuf,
    process: Process,
}

/// What a pod is called.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: Vec<(String, String)>,
}

impl Containerd {
    /// Starts it in a folder, with an image that is also the one that holds pods.
    ///
    /// # Errors
    /// It does not serve; the message holds what it printed.
    pub fn start(folder: &Path, archive: &Path, image: &str) -> Result<Self> {
        let socket = folder.join("containerd.sock");
        let config = folder.join("containerd.toml");
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {image:?}\n\
             restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = {:?}\n",
            folder.join("root").display().to_string(),
            folder.join("state").display().to_string(),
            socket.display().to_string(),
            folder.join("opt").display().to_string(),
        );
        fs::write(&config, text)?;
        let mut process = Process::start(
            "containerd",
            Command::new("containerd").arg("--config").arg(&config),
            &folder.join("containerd.log"),
        )?;
        let ctr = || {
            let mut ctr = Command::new("ctr");
            ctr.arg("--address")
                .arg(&socket)
                .args(["-n", "k8s.io"])
                .stdin(Stdio::null());
            ctr
        };
        let begun = Instant::now();
        while !ctr()
            .arg("version")
            .output()
            .is_ok_and(|output| output.status.success())
        {
            if process.ended().is_some() || begun.elapsed() > READY {
                bail!("containerd does not serve: {}", process.said());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let import = ctr()
            .args(["images", "import", "--snapshotter", "native"])
            .arg(archive)
            .output()?;
        ensure!(
            import.status.success(),
            "ctr images import: {}",
            String::from_utf8_lossy(&import.stderr)
        );
        Ok(Self { socket, process })
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Runs a command in a container `web` of a new pod; the ids of pod and container.
    ///
    /// # Errors
    /// containerd refuses; the message holds what it printed.
    pub fn run(&self, pod: &Pod, image: &str, command: &[&str]) -> Result<(String, String)> {
        let made = on_this_thread(self.socket.clone(), async |client| {
            make(client, pod, image, command).await
        });
        made.with_context(|| self.process.said())
    }

    /// Ends a pod.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn remove(&self, sandbox: &str) -> Result<()> {
        on_this_thread(self.socket.clone(), async |client| {
            let request = cri::PodSandboxRequest {
                pod_sandbox_id: sandbox.into(),
            };
            client.stop_pod_sandbox(request.clone()).await?;
            client.remove_pod_sandbox(request).await?;
            Ok(())
        })
    }
}

async fn make(
    client: &mut RuntimeServiceClient<Channel>,
    pod: &Pod,
    image: &str,
    command: &[&str],
) -> Result<(String, String)> {
    let config = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            attempt: 0,
        }),
        // With the node's network comes its name.
        hostname: String::new(),
        log_directory: String::new(),
        labels: pod.labels.iter().cloned().collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: format!("/kubepods/burstable/pod{}", pod.uid),
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(cri::NamespaceOption { network: NODE }),
            }),
        }),
    };
    let request = cri::RunPodSandboxRequest {
        config: Some(config.clone()),
    };
    let sandbox = client
        .run_pod_sandbox(request)
        .await?
        .into_inner()
        .pod_sandbox_id;
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: "web".into(),
                attempt: 0,
            }),
            image: Some(cri::ImageSpec {
                image: image.into(),
            }),
            command: command.iter().map(|part| (*part).to_owned()).collect(),
            ..cri::ContainerConfig::default()
        }),
        sandbox_config: Some(config),
    };
    let container = client
        .create_container(request)
        .await?
        .into_inner()
        .container_id;
    let request = cri::StartContainerRequest {
        container_id: container.clone(),
    };
    client.start_container(request).await?;
    Ok((sandbox, container))
}

fn on_this_thread<T>(
    socket: PathBuf,
    work: impl AsyncFnOnce(&mut RuntimeServiceClient<Channel>) -> Result<T>,
) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(socket).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        // The address is not used: the socket is.
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await?;
        work(&mut RuntimeServiceClient::new(channel)).await
    })
}

/// A root file system as an image that runtimes import: docker-archive, one layer.
///
/// # Errors
/// `tar` or `sha256sum` fails.
pub fn archive(folder: &Path, layer: &Path, image: &str) -> Result<PathBuf> {
    let parts = folder.join("archive");
    fs::create_dir_all(&parts)?;
    fs::copy(layer, parts.join("layer.tar"))?;
    let output = Command::new("sha256sum").arg(layer).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let hash = text.split(' ').next().context("a hash")?;
    let arch = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    let config = serde_json::json!({
        "architecture": arch,
        "os": "linux",
        "config": { "Cmd": ["/bin/busybox", "sleep", "3600"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{hash}")] },
    });
    fs::write(parts.join("config.json"), config.to_string())?;
    let manifest = serde_json::json!([{
        "Config": "config.json",
        "RepoTags": [image],
        "Layers": ["layer.tar"],
    }]);
    fs::write(parts.join("manifest.json"), manifest.to_string())?;
    let path = folder.join("archive.tar");
    let made = Command::new("tar")
        .arg("-C")
        .arg(&parts)
        .arg("-cf")
        .arg(&path)
        .args(["manifest.json", "config.json", "layer.tar"])
        .status()?;
    ensure!(made.success(), "tar ended with {made}");
    Ok(path)
}
