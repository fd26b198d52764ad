//! What this host can do, found by trying: nothing stays loaded.

use std::{fs, path::Path};

use aya::{
    maps::MapType,
    programs::{LsmAttachType, ProgramType},
    sys::{is_map_supported, is_program_supported},
};
use serde::Serialize;
use sumun_abi::slot::symbol;

use super::{
    DoorStatus, Error, HookStatus, Kernel, KernelConfig, KillStatus, LockPlace, PointStatus, chain,
    hooks::HOOKS, status_of,
};

/// One thing that a host has or has not.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Feature {
    /// True if it works.
    pub available: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Feature {
    fn from<E: std::error::Error + 'static>(tried: Result<bool, E>) -> Self {
        match tried {
            Ok(true) => Feature {
                available: true,
                reason: None,
            },
            Ok(false) => Feature {
                available: false,
                reason: Some("this kernel does not have it".into()),
            },
            Err(error) => Feature {
                available: false,
                reason: Some(chain(&error)),
            },
        }
    }

    fn because(reason: Option<String>) -> Self {
        Feature {
            available: reason.is_none(),
            reason,
        }
    }
}

/// What a host can do.
#[derive(Clone, Debug, Serialize)]
pub struct ProbeReport {
    /// Kernel release, as `uname -r` says it.
    pub kernel: String,
    /// Type information of the kernel: needed for everything.
    pub btf: Feature,
    /// Loading the object and its maps: needed for everything.
    pub object: Feature,
    /// Ring buffer maps (from 5.8): needed for everything.
    pub ring_buffer: Feature,
    /// Finding the processes that already run.
    pub task_iterator: Feature,
    /// Trampolines, for the rung `fentry`.
    pub fentry: Feature,
    /// BPF programs as security module, for the rung `lsm`.
    pub lsm: Feature,
    /// Permission events, for the rung `fanotify`: an open and an exec of a file of its own were denied.
    pub fanotify: Feature,
    /// Events of fanotify that say what was renamed and removed: the agent's own calls were told as they were.
    pub changes: Feature,
    /// Active security modules; absent if securityfs is not mounted.
    pub security_modules: Option<String>,
    /// Kernel lockdown; `confidentiality` forbids reading kernel memory. Absent as above.
    pub lockdown: Option<String>,
    /// Rights that the agent needs on this kernel and does not have.
    pub missing_capabilities: Vec<String>,
    /// Kernel variables whose addresses are shown: without them renames are detected by
    /// walking twice, and verdicts on directories are dropped on each rename call.
    pub symbols: Vec<&'static str>,
    /// Hierarchy that names processes' cgroups.
    pub cgroup_controller: Option<&'static str>,
    /// Each hook, and why it cannot be attached if it cannot.
    pub hooks: Vec<HookStatus>,
    /// What can make calls fail, by kind: a harmless call was denied by each.
    pub doors: Vec<DoorStatus>,
    /// How the kernel kills: a child of its own was, when it started and when it opened a file.
    pub kills: Vec<KillStatus>,
    /// Cutting the host off: a datagram of its own on loopback was kept back.
    pub isolation: Feature,
    /// Which calls are seen where the kernel decides about them, by kind: each saw a call of the agent's own.
    pub points: Vec<PointStatus>,
    /// What io_uring does, of which it is told at its own functions, by kind.
    pub rings: Vec<PointStatus>,
}

/// Tries everything out. Needs root for more than the first lines.
#[must_use]
pub fn probe() -> ProbeReport {
    let btf = fs::metadata(super::BTF).err();
    let config = KernelConfig {
        directory: format!("sumun-probe-{}", std::process::id()),
        lock: LockPlace::Nowhere,
        life_bytes: 64 * 1024,
        bulk_bytes: 64 * 1024,
        ..KernelConfig::default()
    };
    let mut report = ProbeReport {
        kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        btf: Feature::because(btf.map(|error| format!("cannot read {}: {error}", super::BTF))),
        object: Feature::because(None),
        ring_buffer: Feature::from(is_map_supported(MapType::RingBuf)),
        task_iterator: Feature::because(Some("the object is not loaded".into())),
        fentry: Feature::from(is_program_supported(ProgramType::Tracing)),
        lsm: Feature::from(is_program_supported(ProgramType::Lsm(LsmAttachType::Mac))),
        fanotify: Feature::because(super::canary::try_out().err()),
        changes: Feature::because(super::handles::try_out().err()),
        security_modules: read("/sys/kernel/security/lsm"),
        lockdown: read("/sys/kernel/security/lockdown"),
        missing_capabilities: missing_capabilities(),
        symbols: Vec::new(),
        cgroup_controller: None,
        hooks: Vec::new(),
        doors: Vec::new(),
        kills: Vec::new(),
        isolation: Feature::because(Some("the object is not loaded".into())),
        points: Vec::new(),
        rings: Vec::new(),
    };
    if let Some(modules) = &report.security_modules
        && report.lsm.available
        && !modules.split(',').any(|module| module == "bpf")
    {
        report.lsm = Feature::because(Some(format!(
            "bpf is not among the active modules ({modules})"
        )));
    }
    match Kernel::load(&config) {
        Ok(mut kernel) => {
            match kernel.take_btf() {
                Ok(btf) => {
                    report.task_iterator = Feature::because(kernel.load_tasks(&btf).err());
                    let tried = |hook| {
                        if kernel.lacks(hook) {
                            return status_of(hook, Ok(()));
                        }
                        let status = status_of(hook, kernel.prepare(hook, &btf));
                        kernel.verified(hook, status)
                    };
                    report.hooks = HOOKS.iter().map(tried).collect();
                }
                Err(error) => {
                    let reason = chain(&error);
                    let refused = |hook| status_of(hook, Err(reason.clone()));
                    report.hooks = HOOKS.iter().map(refused).collect();
                }
            }
            match kernel.try_doors() {
                Ok(()) => {
                    report.doors = kernel.doors().to_vec();
                    report.points = kernel.points().to_vec();
                    report.rings = kernel.rings().to_vec();
                }
                Err(error) => report.object = Feature::because(Some(chain(&error))),
            }
            match kernel.kill_on_trial() {
                Ok(()) => report.kills = kernel.kills().to_vec(),
                Err(error) => report.object = Feature::because(Some(chain(&error))),
            }
            let isolation = kernel
                .isolator(Path::new("/"))
                .map_err(|error| chain(&error));
            let tried = isolation.and_then(|mut isolation| isolation.try_out());
            report.isolation = Feature::because(tried.err());
            report.cgroup_controller = Some(kernel.cgroup_controller());
            report.symbols = symbol::NAMES
                .iter()
                .zip(kernel.slots.symbols)
                .filter(|(_, address)| *address != 0)
                .map(|(name, _)| *name)
                .collect();
            if let Err(error) = kernel.release() {
                report.object = Feature::because(Some(chain(&error)));
            }
        }
        Err(error) => {
            let reason = chain(&error);
            report.hooks = HOOKS
                .iter()
                .map(|hook| status_of(hook, Err(reason.clone())))
                .collect();
            report.object = Feature::because(Some(reason));
            // What was pinned before it failed.
            let _: Result<bool, Error> = super::release(&config);
        }
    }
    report
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

/// Names of the capabilities that are not effective. Numbers: include/uapi/linux/capability.h.
pub(super) fn missing_capabilities() -> Vec<String> {
    const SYS_ADMIN: u32 = 21;
    const NEEDED: [(u32, &str); 3] = [(39, "CAP_BPF"), (38, "CAP_PERFMON"), (19, "CAP_SYS_PTRACE")];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let has = |bit: u32| effective >> bit & 1 != 0;
    NEEDED
        .iter()
        // CAP_SYS_ADMIN contains the first two.
        .filter(|(bit, _)| !(has(*bit) || *bit > 30 && has(SYS_ADMIN)))
        .map(|(_, name)| (*name).to_owned())
        .collect()
}

impl std::fmt::Display for ProbeReport {
    /// One line a thing, for people.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut line = |name: &str, reason: Option<&str>| match reason {
            None => writeln!(f, "{name:<24} yes"),
            Some(reason) => writeln!(f, "{name:<24} no: {reason}"),
        };
        line(&format!("kernel {}", self.kernel), None)?;
        for (name, feature) in [
            ("type information (BTF)", &self.btf),
            ("ring buffers", &self.ring_buffer),
            ("object", &self.object),
            ("task iterator", &self.task_iterator),
            ("rung fentry", &self.fentry),
            ("rung lsm", &self.lsm),
            ("rung fanotify", &self.fanotify),
            ("fanotify: names", &self.changes),
        ] {
            line(
                name,
                feature
                    .reason
                    .as_deref()
                    .or((!feature.available).then_some("")),
            )?;
        }
        for hook in &self.hooks {
            line(
                &format!("hook {}", hook.hook),
                hook.reason.as_deref().or((!hook.available).then_some("")),
            )?;
        }
        for door in &self.doors {
            let kind = sumun_proto::catalogue::kind_name(door.kind);
            let name = match &door.reason {
                None => format!("deny {kind} ({})", door.rung),
                Some(_) => format!("deny {kind}"),
            };
            line(&name, door.reason.as_deref())?;
        }
        for kill in &self.kills {
            line(kill.mode, kill.reason.as_deref())?;
        }
        line("isolate", self.isolation.reason.as_deref())?;
        for point in &self.points {
            let kind = sumun_proto::catalogue::kind_name(point.kind);
            line(&format!("decision point {kind}"), point.reason.as_deref())?;
        }
        for ring in &self.rings {
            let kind = sumun_proto::catalogue::kind_name(ring.kind);
            line(&format!("io_uring {kind}"), ring.reason.as_deref())?;
        }
        if !self.missing_capabilities.is_empty() {
            line(
                "capabilities",
                Some(&format!("missing {}", self.missing_capabilities.join(", "))),
            )?;
        }
        writeln!(
            f,
            "{:<24} {}",
            "cgroups named by",
            self.cgroup_controller.unwrap_or("unknown")
        )?;
        let shown = if self.symbols.is_empty() {
            "none".to_owned()
        } else {
            self.symbols.join(", ")
        };
        writeln!(f, "{:<24} {shown}", "kernel variables shown")?;
        let modules = self
            .security_modules
            .as_deref()
            .unwrap_or("unknown: securityfs is not mounted");
        writeln!(f, "{:<24} {modules}", "security modules")?;
        let lockdown = self
            .lockdown
            .as_deref()
            .unwrap_or("unknown: securityfs is not mounted");
        writeln!(f, "{:<24} {lockdown}", "lockdown")
    }
}
