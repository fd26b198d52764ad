//! A pod as Kubernetes makes one: containerd with its own root, state and socket, asked through the CRI.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::container;
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
/// A namespace of the node.
const NODE: i32 = 2;
/// Where Debian and others put the plugins that set up networks of pods.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
/// The bridge of the pods' network.
const BRIDGE: &str = "sumun-pods0";
/// The state of a container that has ended.
const EXITED: i32 = 2;

/// A containerd of the test's own.
#[derive(Debug)]
pub struct Containerd {
    socket: PathBuf,
    process: Process,
    network: Option<Network>,
    // Last, when nothing runs in them any more.
    cgroups: Cgroups,
}

/// The cgroups of pods, which a kubelet would remove: it is not the runtime's to do.
#[derive(Debug, Default)]
struct Cgroups(Mutex<Vec<String>>);

impl Drop for Cgroups {
    fn drop(&mut self) {
        let made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for path in &*made {
            container::remove(Path::new(path.trim_start_matches('/')));
        }
    }
}

/// A network that pods may have of their own; its bridge goes with it.
#[derive(Debug)]
pub struct Network {
    plugins: &'static str,
    /// The node in it.
    pub node: &'static str,
    addresses: PathBuf,
    /// Whether the node forwarded packets before: the plugin has it do so.
    forwarded: String,
}

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

impl Network {
    /// Sets one up in a folder for the pods of a containerd. `None`: the plugins are not installed, or `ip`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn new(folder: &Path) -> Result<Option<Self>> {
        let whole = |folder: &&str| {
            let mut names = ["bridge", "host-local", "loopback"].iter();
            names.all(|name| Path::new(folder).join(name).exists())
        };
        let Some(plugins) = PLUGINS.into_iter().find(whole) else {
            return Ok(None);
        };
        if Command::new("ip").arg("-V").output().is_err() {
            return Ok(None);
        }
        let addresses = folder.join("addresses");
        let config = serde_json::json!({
            "cniVersion": "0.4.0", "name": "pods",
            "plugins": [{
                "type": "bridge", "bridge": BRIDGE, "isDefaultGateway": true,
                "ipam": {
                    "type": "host-local", "ranges": [[{ "subnet": "10.211.77.0/24", "gateway": "10.211.77.1" }]],
                    "dataDir": addresses.display().to_string(),
                },
            }],
        });
        fs::create_dir_all(folder.join("networks"))?;
        fs::write(folder.join("networks/pods.conflist"), config.to_string())?;
        Ok(Some(Self {
            plugins,
            node: "10.211.77.1",
            addresses,
            forwarded: fs::read_to_string(FORWARD)?,
        }))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", BRIDGE]).output();
        if let Err(error) = fs::write(FORWARD, &self.forwarded) {
            eprintln!("{FORWARD}: {error}");
        }
    }
}

/// What of the node a pod shares.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// Its processes.
    pub pid: bool,
    /// Its network.
    pub network: bool,
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
    /// Where what its containers print is written; empty: nowhere.
    pub logs: String,
}

impl Containerd {
    /// Starts it in a folder, with an image that is also the one that holds pods.
    ///
    /// # Errors
    /// It does not serve; the message holds what it printed.
    pub fn start(folder: &Path, archive: &Path, image: &str) -> Result<Self> {
        Self::start_with(folder, archive, image, None)
    }

    /// The same for pods with a network of their own.
    ///
    /// # Errors
    /// As of [`Self::start`].
    pub fn start_with(
        folder: &Path,
        archive: &Path,
        image: &str,
        network: Option<Network>,
    ) -> Result<Self> {
        let networks = network.as_ref().map_or_else(String::new, |network| {
            format!(
                "[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {:?}\nconf_dir = {:?}\n",
                network.plugins,
                folder.join("networks").display().to_string()
            )
        });
        let socket = folder.join("containerd.sock");
        let config = folder.join("containerd.toml");
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {image:?}\n\
             restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n\
             {networks}[plugins.\"io.containerd.internal.v1.opt\"]\npath = {:?}\n",
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
        let this = Self {
            socket,
            process,
            network,
            cgroups: Cgroups::default(),
        };
        this.import(archive)?;
        Ok(this)
    }

    /// Adds an image.
    ///
    /// # Errors
    /// It is none.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let import = Command::new("ctr")
            .arg("--address")
            .arg(&self.socket)
            .args([
                "-n",
                "k8s.io",
                "images",
                "import",
                "--snapshotter",
                "native",
            ])
            .arg(archive)
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            import.status.success(),
            "ctr images import: {}",
            String::from_utf8_lossy(&import.stderr)
        );
        Ok(())
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
        let sandbox = self.sandbox(pod)?;
        let container = self.run_in(pod, &sandbox, image, command)?;
        Ok((sandbox.id, container))
    }

    /// The same in a pod that is there.
    ///
    /// # Errors
    /// As of [`Self::run`].
    pub fn run_in(
        &self,
        pod: &Pod,
        sandbox: &Sandbox,
        image: &str,
        command: &[&str],
    ) -> Result<String> {
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: "web".into(),
                attempt: 0,
            }),
            image: Some(cri::ImageSpec {
                image: image.into(),
            }),
            command: command.iter().map(|part| (*part).to_owned()).collect(),
            ..cri::ContainerConfig::default()
        };
        self.container(pod, sandbox, &config)
    }

    /// Makes a pod in the node's network without a container.
    ///
    /// # Errors
    /// As of [`Self::run`].
    pub fn sandbox(&self, pod: &Pod) -> Result<Sandbox> {
        let shared = Shared {
            pid: false,
            network: true,
        };
        self.sandbox_with(pod, shared)
    }

    /// The address of a pod in a network of its own.
    ///
    /// # Errors
    /// It has none.
    pub fn address(&self, sandbox: &Sandbox) -> Result<String> {
        let network = self.network.as_ref().context("no network")?;
        for entry in fs::read_dir(network.addresses.join("pods"))? {
            let path = entry?.path();
            let whose = fs::read_to_string(&path).unwrap_or_default();
            if whose.starts_with(&sandbox.id) {
                let name = path.file_name().context("a name")?;
                return Ok(name.to_string_lossy().into_owned());
            }
        }
        bail!("pod {} has no address", sandbox.id)
    }

    /// Makes a pod without a container.
    ///
    /// # Errors
    /// As of [`Self::run`].
    pub fn sandbox_with(&self, pod: &Pod, shared: Shared) -> Result<Sandbox> {
        let config = sandbox(pod, shared);
        let parent = config.linux.as_ref().map(|linux| &linux.cgroup_parent);
        let mut cgroups = self
            .cgroups
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        cgroups.extend(parent.cloned());
        drop(cgroups);
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
        };
        let id = on_this_thread(self.socket.clone(), async |client| {
            Ok(client
                .run_pod_sandbox(request)
                .await?
                .into_inner()
                .pod_sandbox_id)
        });
        let id = id.with_context(|| self.process.said())?;
        Ok(Sandbox { id, config })
    }

    /// Starts a container in a pod.
    ///
    /// # Errors
    /// As of [`Self::run`].
    pub fn container(
        &self,
        pod: &Pod,
        sandbox: &Sandbox,
        config: &cri::ContainerConfig,
    ) -> Result<String> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.config.clone()),
        };
        let started = on_this_thread(self.socket.clone(), async |client| {
            let id = client
                .create_container(request)
                .await?
                .into_inner()
                .container_id;
            let request = cri::StartContainerRequest {
                container_id: id.clone(),
            };
            client.start_container(request).await?;
            Ok(id)
        });
        started.with_context(|| format!("pod {}: {}", pod.name, self.process.said()))
    }

    /// Waits until a container has ended; its status.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub fn wait(&self, container: &str, limit: Duration) -> Result<i32> {
        let begun = Instant::now();
        loop {
            let request = cri::ContainerStatusRequest {
                container_id: container.into(),
            };
            let status = on_this_thread(self.socket.clone(), async |client| {
                let status = client.container_status(request).await?.into_inner().status;
                status.context("a status")
            })?;
            if status.state == EXITED {
                return Ok(status.exit_code);
            }
            ensure!(begun.elapsed() < limit, "it has not ended within {limit:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs a command in a container, as `kubectl exec` and probes do: its status, and what it printed.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<(i32, String, String)> {
        let request = cri::ExecSyncRequest {
            container_id: container.into(),
            cmd: command.iter().map(|part| (*part).to_owned()).collect(),
            timeout: 20,
        };
        let said = on_this_thread(self.socket.clone(), async |client| {
            Ok(client.exec_sync(request).await?.into_inner())
        })?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((said.exit_code, text(&said.stdout), text(&said.stderr)))
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
            // A container that ends by itself at that moment takes its shim away, and containerd says so. Stopping is asked for
            // until it is done, as the kubelet does.
            let mut tries = 1;
            while let Err(status) = client.stop_pod_sandbox(request.clone()).await {
                if tries == STOPS {
                    return Err(status.into());
                }
                tries += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            client.remove_pod_sandbox(request).await?;
            Ok(())
        })
    }
}

/// How often a pod is asked to stop.
const STOPS: u32 = 10;

/// A pod that is there.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    config: cri::PodSandboxConfig,
}

fn sandbox(pod: &Pod, shared: Shared) -> cri::PodSandboxConfig {
    let of = |shared| if shared { NODE } else { 0 };
    let namespaces = cri::NamespaceOption {
        network: of(shared.network),
        pid: of(shared.pid),
    };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            attempt: 0,
        }),
        // With the node's network comes its name.
        hostname: match shared.network {
            true => String::new(),
            false => pod.name.clone(),
        },
        log_directory: pod.logs.clone(),
        labels: pod.labels.iter().cloned().collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: format!("/kubepods/burstable/pod{}", pod.uid),
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces),
            }),
        }),
    }
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
