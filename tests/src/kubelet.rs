//! What a kubelet makes of a pod's specification for the container runtime: nothing is added, and what is not known is an
//! error, so that a test runs the manifest and not something like it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::container::capabilities;
use crate::pod::{Shared, cri};

/// A cluster's objects, and the node that they are on.
#[derive(Debug)]
pub struct Node {
    objects: Vec<Value>,
    /// Its name.
    pub name: String,
    /// Where the node's folders are, by their beginning; what is not in it is where it says.
    pub folders: Vec<(String, PathBuf)>,
    /// Volumes of pods, and the files of secrets and the like.
    volumes: PathBuf,
    /// Names that its DNS would tell.
    pub hosts: Vec<(String, String)>,
    /// Pods have a network of their own, unless they ask for the node's.
    pub networks: bool,
    /// Tokens of service accounts, as the API server would sign them for a pod, by whom they are shown to.
    pub tokens: BTreeMap<String, String>,
}

impl Node {
    /// With the objects that `kubectl apply -k deploy/kubernetes` would make; `None` without Python's packages.
    ///
    /// # Errors
    /// The manifests cannot be read.
    pub fn new(name: &str, scratch: &Path) -> Result<Option<Self>> {
        let Some(python) = python() else {
            return Ok(None);
        };
        Ok(Some(Self {
            objects: render(&python, None)?,
            name: name.to_owned(),
            folders: Vec::new(),
            volumes: scratch.join("volumes"),
            hosts: Vec::new(),
            networks: false,
            tokens: BTreeMap::new(),
        }))
    }

    /// Adds a secret, as `kubectl create secret generic NAME --from-file=…` does, in place of one of this name.
    pub fn secret(&mut self, name: &str, files: &[(&str, &str)]) {
        let data: BTreeMap<_, _> = files.iter().copied().collect();
        self.apply(vec![serde_json::json!({
            "kind": "Secret",
            "metadata": { "name": name },
            "stringData": data,
        })]);
    }

    /// Takes what `helm upgrade --values FILE` makes.
    ///
    /// # Errors
    /// The chart does not take the values.
    pub fn upgrade(&mut self, values: &Path) -> Result<()> {
        let python = python().context("Python's packages")?;
        self.apply(render(&python, Some(values))?);
        Ok(())
    }

    fn apply(&mut self, objects: Vec<Value>) {
        for object in objects {
            self.objects.retain(|known| {
                known["kind"] != object["kind"]
                    || known["metadata"]["name"] != object["metadata"]["name"]
            });
            self.objects.push(object);
        }
    }

    /// The template of a workload.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn template(&self, kind: &str, name: &str) -> Result<Value> {
        Ok(self.object(kind, name)?["spec"]["template"].clone())
    }

    /// An object.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn object(&self, kind: &str, name: &str) -> Result<&Value> {
        self.objects
            .iter()
            .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
            .with_context(|| format!("there is no {kind} {name}"))
    }

    /// What of the node a pod shares.
    #[must_use]
    pub fn shared(&self, pod: &Value) -> Shared {
        Shared {
            pid: pod["hostPID"] == true,
            network: pod["hostNetwork"] == true || !self.networks,
        }
    }

    /// A container of a pod for the runtime.
    ///
    /// # Errors
    /// Something in it is not known here.
    pub fn container(&self, pod: &Value, container: &Value) -> Result<cri::ContainerConfig> {
        known(
            container,
            &[
                "name",
                "image",
                "imagePullPolicy",
                "command",
                "args",
                "env",
                "securityContext",
                "resources",
                "startupProbe",
                "livenessProbe",
                "readinessProbe",
                "ports",
                "volumeMounts",
            ],
        )?;
        let name = text(&container["name"]);
        let mut mounts = Vec::new();
        for mount in list(&container["volumeMounts"]) {
            known(mount, &["name", "mountPath", "readOnly"])?;
            let host = self.volume(pod, text(&mount["name"]))?;
            mounts.push(cri::Mount {
                container_path: text(&mount["mountPath"]).to_owned(),
                host_path: host.display().to_string(),
                readonly: mount["readOnly"].as_bool().unwrap_or(false),
            });
        }
        // As every pod has.
        let hosts = self.volumes.join("hosts");
        let lines = self.hosts.iter().map(|(name, ip)| format!("{ip} {name}\n"));
        fs::create_dir_all(&self.volumes)?;
        fs::write(
            &hosts,
            format!("127.0.0.1 localhost\n{}", lines.collect::<String>()),
        )?;
        mounts.push(cri::Mount {
            container_path: "/etc/hosts".into(),
            host_path: hosts.display().to_string(),
            readonly: false,
        });
        let mut envs = Vec::new();
        for env in list(&container["env"]) {
            let field = text(&env["valueFrom"]["fieldRef"]["fieldPath"]);
            ensure!(field == "spec.nodeName", "{env} is not known");
            envs.push(cri::KeyValue {
                key: text(&env["name"]).to_owned(),
                value: self.name.clone(),
            });
        }
        let strings = |value: &Value| {
            list(value)
                .iter()
                .map(|part| text(part).to_owned())
                .collect()
        };
        Ok(cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(cri::ImageSpec {
                image: text(&container["image"]).to_owned(),
            }),
            command: strings(&container["command"]),
            args: strings(&container["args"]),
            envs,
            mounts,
            log_path: format!("{name}.log"),
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(resources(&container["resources"])?),
                security_context: Some(security(
                    pod,
                    &container["securityContext"],
                    self.shared(pod),
                )?),
            }),
            ..cri::ContainerConfig::default()
        })
    }

    /// Where a volume is, made if it has to be.
    fn volume(&self, pod: &Value, name: &str) -> Result<PathBuf> {
        let own = self.volumes.join(name);
        // Of a claim's template.
        let Some(volume) = list(&pod["volumes"])
            .iter()
            .find(|volume| volume["name"] == name)
        else {
            fs::create_dir_all(&own)?;
            self.give(pod, &own)?;
            return Ok(own);
        };
        if let Some(host) = volume.get("hostPath") {
            let path = self.here(text(&host["path"]));
            match text(&host["type"]) {
                "Directory" => ensure!(path.is_dir(), "{} is no folder", path.display()),
                "DirectoryOrCreate" => fs::create_dir_all(&path)?,
                other => bail!("a hostPath of type {other:?} is not known"),
            }
            return Ok(path);
        }
        fs::create_dir_all(&own)?;
        let projected = self.projected(&volume["projected"])?;
        let files = if volume.get("emptyDir").is_some() {
            self.give(pod, &own)?;
            return Ok(own);
        } else if let Some(secret) = volume.get("secret") {
            self.object("Secret", text(&secret["secretName"]))?["stringData"].clone()
        } else if let Some(map) = volume.get("configMap") {
            self.object("ConfigMap", text(&map["name"]))?["data"].clone()
        } else if let Some(files) = projected {
            files
        } else {
            bail!("{volume} is not known");
        };
        let mode = ["secret", "projected"]
            .iter()
            .find_map(|kind| volume[kind]["defaultMode"].as_u64())
            .unwrap_or(0o644);
        for (file, content) in files.as_object().into_iter().flatten() {
            let path = own.join(file);
            let _ = fs::remove_file(&path);
            fs::write(&path, text(content))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(u32::try_from(mode)?))?;
        }
        Ok(own)
    }

    /// The files of a projected volume; `None`: it is none.
    fn projected(&self, volume: &Value) -> Result<Option<Value>> {
        if volume.is_null() {
            return Ok(None);
        }
        known(volume, &["defaultMode", "sources"])?;
        let mut files = BTreeMap::new();
        for source in list(&volume["sources"]) {
            known(source, &["serviceAccountToken"])?;
            let wanted = &source["serviceAccountToken"];
            known(wanted, &["audience", "expirationSeconds", "path"])?;
            let audience = text(&wanted["audience"]);
            let token = self.tokens.get(audience);
            let token = token.with_context(|| format!("no token for {audience:?}"))?;
            files.insert(text(&wanted["path"]), token);
        }
        Ok(Some(serde_json::to_value(files)?))
    }

    /// To the pod's group, as its fsGroup asks.
    fn give(&self, pod: &Value, path: &Path) -> Result<()> {
        if let Some(group) = pod["securityContext"]["fsGroup"].as_u64() {
            chown(path, None, Some(u32::try_from(group)?))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o2775))?;
        }
        Ok(())
    }

    /// Where a folder of the node is.
    #[must_use]
    pub fn here(&self, path: &str) -> PathBuf {
        let moved = self.folders.iter().find_map(|(from, to)| {
            let rest = path.strip_prefix(from.as_str())?;
            (rest.is_empty() || rest.starts_with('/'))
                .then(|| to.join(rest.trim_start_matches('/')))
        });
        moved.unwrap_or_else(|| path.into())
    }
}

/// The objects of `deploy/kubernetes`, or of the chart with values.
fn render(python: &Path, values: Option<&Path>) -> Result<Vec<Value>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/render.py");
    let output = Command::new(python)
        .arg(script)
        .arg("--json")
        .args(values)
        .output()?;
    ensure!(
        output.status.success(),
        "render.py --json: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn resources(resources: &Value) -> Result<cri::LinuxContainerResources> {
    let limits = &resources["limits"];
    known(limits, &["cpu", "memory"])?;
    let memory = text(&limits["memory"]);
    let memory: i64 = match memory.strip_suffix("Mi") {
        Some(count) => count.parse::<i64>()? << 20,
        None => {
            memory
                .strip_suffix("Gi")
                .context("a limit of memory")?
                .parse::<i64>()?
                << 30
        }
    };
    let cpu: i64 = match text(&limits["cpu"]) {
        "" => 0,
        count => count.parse()?,
    };
    Ok(cri::LinuxContainerResources {
        cpu_period: if cpu > 0 { 100_000 } else { 0 },
        cpu_quota: cpu * 100_000,
        memory_limit_in_bytes: memory,
    })
}

fn security(
    pod: &Value,
    own: &Value,
    shared: Shared,
) -> Result<cri::LinuxContainerSecurityContext> {
    let of_pod = &pod["securityContext"];
    known(
        own,
        &[
            "runAsUser",
            "privileged",
            "allowPrivilegeEscalation",
            "readOnlyRootFilesystem",
            "capabilities",
        ],
    )?;
    let profile = |profile: &Value| -> Result<Option<cri::SecurityProfile>> {
        let profile_type = match text(&profile["type"]) {
            "" => return Ok(None),
            "RuntimeDefault" => 0,
            "Unconfined" => 1,
            other => bail!("a profile {other:?} is not known"),
        };
        Ok(Some(cri::SecurityProfile { profile_type }))
    };
    let names = |value: &Value| {
        list(value)
            .iter()
            .map(|name| text(name).to_owned())
            .collect()
    };
    let user = own["runAsUser"].as_i64().or(of_pod["runAsUser"].as_i64());
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: capabilities(names(&own["capabilities"]["add"])),
            drop_capabilities: names(&own["capabilities"]["drop"]),
        }),
        privileged: own["privileged"].as_bool().unwrap_or(false),
        namespace_options: Some(cri::NamespaceOption {
            network: if shared.network { 2 } else { 0 },
            pid: if shared.pid { 2 } else { 0 },
        }),
        run_as_user: user.map(|value| cri::Int64Value { value }),
        readonly_rootfs: own["readOnlyRootFilesystem"].as_bool().unwrap_or(false),
        no_new_privs: own["allowPrivilegeEscalation"] == false,
        seccomp: profile(&of_pod["seccompProfile"])?,
        apparmor: profile(&of_pod["appArmorProfile"])?,
    })
}

fn known(value: &Value, keys: &[&str]) -> Result<()> {
    let unknown = value
        .as_object()
        .into_iter()
        .flatten()
        .find(|(key, _)| !keys.contains(&key.as_str()));
    match unknown {
        None => Ok(()),
        Some((key, value)) => bail!("{key}: {value} is not known to this kubelet"),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The Python with the packages of `deploy/setup/requirements.txt`, if it is there.
#[must_use]
pub fn python() -> Option<PathBuf> {
    let cache = std::env::var_os("SUMUN_CACHE").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache/sumun"),
        PathBuf::from,
    );
    let python = cache.join("venv/bin/python");
    let good = Command::new(&python)
        .args(["-c", "import helm_python, kubernetes_validate, yaml"])
        .output()
        .is_ok_and(|output| output.status.success());
    good.then_some(python)
}
