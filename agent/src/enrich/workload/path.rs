//! What the path of a cgroup tells of whose it is.
//!
//! Runtimes and systemd name their cgroups in a few shapes. Who may make a cgroup decides what its name is
//! worth: at the root of the hierarchy and below runtimes' units only root of the host can, below a user's
//! manager the user, inside a container the container. So the outermost container and the
//! outermost unit are the true ones, and what stands below them is somebody's word.

use std::fmt;

/// What a workload is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// The root cgroup.
    Host,
    /// Any cgroup that has no known shape.
    #[default]
    Cgroup,
    /// A systemd slice.
    Slice,
    /// A systemd unit.
    Unit,
    /// A session of the login manager.
    Session,
    /// The cgroup of a Kubernetes pod, around those of its containers.
    Pod,
    /// A container.
    Container,
    /// A machine of systemd-machined: a container with an init, or a virtual machine.
    Machine,
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Kind::Host => "host",
            Kind::Cgroup => "cgroup",
            Kind::Slice => "slice",
            Kind::Unit => "unit",
            Kind::Session => "session",
            Kind::Pod => "pod",
            Kind::Container => "container",
            Kind::Machine => "machine",
        })
    }
}

/// A path taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place<'a> {
    /// What the workload is.
    pub kind: Kind,
    /// Bytes of the path up to the end of the workload's own cgroup.
    pub root: usize,
    /// Container or machine.
    pub container: &'a str,
    /// The runtime, if the shape tells.
    pub runtime: &'static str,
    /// Bytes of the path up to the end of the outermost thing that only root or a runtime of the host can have made: what is
    /// further down may be anybody's.
    pub made_by_host: usize,
    /// The innermost container inside that one.
    pub nested: &'a str,
    /// Kubernetes pod.
    pub pod_uid: String,
    /// Its quality of service.
    pub pod_qos: &'static str,
    /// ECS task.
    pub ecs_task: &'a str,
    /// The outermost unit.
    pub unit: &'a str,
    /// The innermost slice above unit and container.
    pub slice: &'a str,
    /// User of the slice.
    pub login_uid: Option<u32>,
    /// Session of the login manager.
    pub login_session: &'a str,
    /// A runtime of the host made the container's cgroup, or at least no user and no other container did: the host's
    /// runtimes may be asked of it.
    pub by_host: bool,
}

/// Takes a path apart.
#[must_use]
pub fn classify(path: &str) -> Place<'_> {
    let mut place = Place {
        root: path.len(),
        ..Place::default()
    };
    let mut walk = Walk::default();
    let (mut end, mut at) = (0, 0);
    for component in path.split('/') {
        let start = at;
        at += component.len() + 1;
        if !component.is_empty() {
            end = start + component.len();
            walk.step(&mut place, component, end);
        }
    }
    if place.pod_uid.is_empty() {
        place.pod_qos = "";
    }
    if place.made_by_host == 0 {
        place.made_by_host = path.len();
    }
    if end == 0 {
        place.kind = Kind::Host;
    } else if place.kind == Kind::Cgroup && walk.slice_end == end {
        place.kind = Kind::Slice;
    }
    place
}

/// Where a walk down a path is.
#[derive(Default)]
struct Walk {
    /// Below `kubepods`: what has no quality of its own is guaranteed.
    kubepods: bool,
    /// The component above is a pod, a folder of Docker, or a task of ECS.
    above: Above,
    /// Below what a user of the host can write to.
    of_user: bool,
    slice_end: usize,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Above {
    #[default]
    Other,
    Docker,
    Ecs,
    EcsTask,
    Pod,
    Lxc,
}

impl Walk {
    fn step<'a>(&mut self, place: &mut Place<'a>, component: &'a str, end: usize) {
        let above = std::mem::take(&mut self.above);
        if matches!(place.kind, Kind::Container | Kind::Machine) {
            if let Some((id, _)) = container(component, above).filter(|(id, _)| is_hex_id(id)) {
                if id != place.container {
                    place.nested = id;
                }
            } else if component == "docker" {
                self.above = Above::Docker;
            }
            return;
        }
        if place.kind == Kind::Pod && is_monitor(component) {
            // What watches over a pod's containers, and starts them, is the runtime's.
            place.kind = Kind::Cgroup;
            place.root = end;
            place.pod_uid.clear();
            place.pod_qos = "";
            return;
        }
        if let Some((id, runtime)) = container(component, above) {
            place.made_by_host = match place.made_by_host {
                0 => end,
                above => above,
            };
            place.by_host = !self.of_user && (place.unit.is_empty() || is_runtime(place.unit));
            place.kind = Kind::Container;
            (place.container, place.runtime, place.root) = (id, runtime, end);
            if place.pod_uid.is_empty()
                && let Some(slice) = component.split_once(".slice:").map(|(slice, _)| slice)
            {
                self.pod(place, slice);
            }
            if !place.by_host {
                // Whose pod it says it is counts only from who may say it.
                place.pod_uid.clear();
                (place.pod_qos, place.ecs_task) = ("", "");
            }
            return;
        }
        if place.unit.is_empty()
            && place.kind != Kind::Pod
            && let Some((name, runtime)) = machine(component, place.slice)
        {
            place.by_host = false;
            place.kind = Kind::Machine;
            (place.container, place.runtime, place.root) = (name, runtime, end);
            (place.unit, place.made_by_host) = (component, end);
            return;
        }
        if !place.unit.is_empty() && !is_runtime(place.unit) {
            // Below a unit only containers are looked for.
            self.above = folder(component);
            return;
        }
        // What stands below a pod is somebody's word, but for its containers.
        if place.kind == Kind::Pod {
            return;
        }
        if component == "kubepods" || component == "kubepods.slice" {
            self.kubepods = true;
        }
        if self.pod(place, component) {
            self.above = Above::Pod;
            place.kind = Kind::Pod;
            place.root = end;
            if component.ends_with(".slice") {
                place.slice = component;
            }
            return;
        }
        if above == Above::Ecs {
            place.ecs_task = component;
            self.above = Above::EcsTask;
            return;
        }
        self.above = folder(component);
        if component.ends_with(".slice") {
            place.slice = component;
            self.slice_end = end;
            if let Some(task) = component
                .strip_prefix("ecstasks-")
                .and_then(|rest| rest.strip_suffix(".slice"))
            {
                place.ecs_task = task;
            }
            if let Some(uid) = component
                .strip_prefix("user-")
                .and_then(|rest| rest.strip_suffix(".slice"))
                .and_then(|uid| uid.parse().ok())
            {
                place.login_uid = Some(uid);
                self.of_user = true;
            }
        } else if place.unit.is_empty() && is_unit(component) {
            place.unit = component;
            place.kind = Kind::Unit;
            place.root = end;
            if !is_runtime(component) {
                place.made_by_host = end;
            }
            if let Some(session) = component
                .strip_prefix("session-")
                .and_then(|rest| rest.strip_suffix(".scope"))
                .filter(|_| place.login_uid.is_some())
            {
                place.kind = Kind::Session;
                place.login_session = session;
            }
        }
    }

    /// Takes a pod's name from a component: `pod<uid>`, or `…-pod<uid with underscores>` of a slice.
    fn pod(&mut self, place: &mut Place<'_>, component: &str) -> bool {
        let slice = component.strip_suffix(".slice").unwrap_or(component);
        let qos = match slice {
            "burstable" if self.kubepods => "burstable",
            "besteffort" if self.kubepods => "besteffort",
            _ if slice.contains("kubepods-burstable") => "burstable",
            _ if slice.contains("kubepods-besteffort") => "besteffort",
            _ => "",
        };
        if !qos.is_empty() {
            place.pod_qos = qos;
        }
        let uid = match slice.rsplit_once("-pod") {
            Some((above, uid)) if above.contains("kubepods") => uid,
            _ if self.kubepods => slice.strip_prefix("pod").unwrap_or_default(),
            _ => "",
        };
        if !is_pod_uid(uid) {
            return false;
        }
        if self.of_user || !(place.unit.is_empty() || is_runtime(place.unit)) {
            return false;
        }
        place.pod_uid = uid.replace('_', "-");
        if place.pod_qos.is_empty() {
            place.pod_qos = "guaranteed";
        }
        true
    }
}

fn folder(component: &str) -> Above {
    match component {
        "docker" => Above::Docker,
        "ecs" => Above::Ecs,
        "lxc" | "lxc.payload" => Above::Lxc,
        _ => Above::Other,
    }
}

/// Names that runtimes give their scopes.
const PREFIXES: [(&str, &str); 5] = [
    ("docker-", "docker"),
    ("cri-containerd-", "containerd"),
    ("crio-", "cri-o"),
    ("libpod-", "podman"),
    ("nerdctl-", "containerd"),
];

/// `crio-conmon-ID` and `libpod-conmon-ID`, with systemd as scopes.
fn is_monitor(component: &str) -> bool {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    let mut ids = ["crio-conmon-", "libpod-conmon-"]
        .iter()
        .filter_map(|prefix| name.strip_prefix(prefix));
    ids.any(is_hex_id)
}

/// A container's id and runtime, if the component is its cgroup.
fn container(component: &str, above: Above) -> Option<(&str, &'static str)> {
    let scope = component.strip_suffix(".scope");
    for (prefix, runtime) in PREFIXES {
        // Also without systemd: libpod-ID. `crio-conmon-ID` and `libpod-conmon-ID` watch over containers.
        let name = scope.unwrap_or(component);
        if let Some(id) = name.strip_prefix(prefix).filter(|id| is_hex_id(id)) {
            return Some((id, runtime));
        }
    }
    // runc's way to write systemd's names where it does not use systemd.
    if let Some((slice, rest)) = component.split_once(".slice:")
        && let Some((runtime, id)) = rest.split_once(':')
        && !slice.is_empty()
        && is_id(id)
    {
        let runtime = match runtime {
            "cri-containerd" | "nerdctl" => "containerd",
            "docker" => "docker",
            "crio" => "cri-o",
            "libpod" => "podman",
            _ => "",
        };
        return Some((id, runtime));
    }
    if let Some(name) = component.strip_prefix("lxc.payload.") {
        return (!name.is_empty()).then_some((name, "lxc"));
    }
    match above {
        Above::Docker if is_hex_id(component) => Some((component, "docker")),
        Above::Lxc if !component.starts_with('.') => Some((component, "lxc")),
        // On Fargate a task's containers are named by the task and a number.
        Above::EcsTask if is_id(component) => {
            let runtime = if is_hex_id(component) { "docker" } else { "" };
            Some((component, runtime))
        }
        Above::Pod if is_id(component) => Some((component, "")),
        _ if is_hex_id(component) => Some((component, "")),
        _ => None,
    }
}

/// A machine's name and what runs it, if the component is its unit.
fn machine<'a>(component: &'a str, slice: &str) -> Option<(&'a str, &'static str)> {
    if let Some(name) = component
        .strip_prefix("systemd-nspawn@")
        .and_then(|rest| rest.strip_suffix(".service"))
    {
        return Some((name, "nspawn"));
    }
    let name = component
        .strip_prefix("machine-")
        .and_then(|rest| rest.strip_suffix(".scope"))
        .filter(|_| slice == "machine.slice")?;
    let runtime = if name.starts_with("qemu") {
        "qemu"
    } else {
        "nspawn"
    };
    Some((name, runtime))
}

/// The ids that runtimes draw: 64 hexadecimal digits.
fn is_hex_id(id: &str) -> bool {
    id.len() == 64
        && id
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What an id can be made of where its place alone says that it is one.
fn is_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= 128
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && !is_unit(id)
}

/// A UUID, in a slice with underscores, or the hash of a static pod.
fn is_pod_uid(uid: &str) -> bool {
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if uid.len() == 32 {
        return hex(uid);
    }
    let groups: Vec<&str> = uid.split(['-', '_']).collect();
    let lengths = [8, 4, 4, 4, 12];
    groups.len() == lengths.len()
        && groups
            .iter()
            .zip(lengths)
            .all(|(group, len)| group.len() == len && hex(group))
}

fn is_unit(component: &str) -> bool {
    [".service", ".scope", ".socket", ".mount", ".swap"]
        .iter()
        .any(|suffix| component.len() > suffix.len() && component.ends_with(suffix))
}

/// Units of runtimes: containers below them are theirs.
pub(super) fn is_runtime(unit: &str) -> bool {
    let name = unit.strip_suffix(".service").unwrap_or(unit);
    matches!(
        name,
        "containerd"
            | "docker"
            | "crio"
            | "podman"
            | "kubelet"
            | "k3s"
            | "k3s-agent"
            | "rke2-server"
            | "rke2-agent"
            | "k0scontroller"
            | "k0sworker"
            | "ecs"
    )
}

#[cfg(test)]
mod tests;
