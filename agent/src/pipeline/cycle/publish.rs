//! What others see of the pipeline: how far it has come, its figures, and how each kind is seen and denied.

use std::sync::atomic::{AtomicU64, Ordering};

use sumun_proto::catalogue::KINDS;
use sumun_proto::v1::{Door, Kind};

use super::Pipeline;
use crate::kernel::{DoorStatus, HookStatus, PointStatus};
use crate::pipeline::{changes, policies};
use crate::status::LANES;

const SELECTORS: &str = "selectors";

impl Pipeline {
    /// Everything up to a time is in the lanes.
    pub(super) fn reached(&mut self, through_boot_ns: u64) {
        let progress = &self.status.progress;
        progress.set_wall_offset_ns(self.core.clock.offset_ns());
        for (index, lane) in LANES.iter().enumerate() {
            let (epoch, number) = self.written[index];
            progress.written(*lane, epoch, number, through_boot_ns);
        }
        let (counters, counts) = (&self.status.counters, &self.core.counts);
        let set = |counter: &AtomicU64, value| counter.store(value, Ordering::Relaxed);
        set(&counters.records, counts.life + counts.bulk);
        set(&counters.undecodable, counts.undecodable);
        set(&counters.events, counts.events);
        set(&counters.alerts, counts.alerts);
        set(&counters.excepted, counts.excepted);
        set(&counters.folded, counts.folded);
        set(&counters.gaps, counts.gaps);
        self.told.counters(counters);
        let workloads = self.core.workloads.stats();
        set(&counters.cgroups_left_out, workloads.left_out);
        set(&counters.cgroups_unknown, workloads.unknown);
        set(&counters.workloads_pending, workloads.pending as u64);
        set(&counters.scopes, self.core.scopes.told() as u64);
        set(&counters.scopes_left_out, self.core.scopes.left_out());
        let full = self.core.scopes.is_full().then(|| {
            "the kernel has no room for whose further cgroups are: rules that ask for workloads are judged late there".to_owned()
        });
        if self.status.trouble(SELECTORS, full.clone())
            && let Some(full) = full
        {
            tracing::error!("{full}");
        }
        set(&counters.names_evicted, self.core.names.evicted());
        changes::count(self.core.changes.counts(), counters);
        let denials = self.core.denier.denials().iter().flatten();
        for (counter, count) in counters.denials.iter().flatten().zip(denials) {
            set(counter, *count);
        }
        set(&counters.held_calls, self.holding.counts.held);
        set(&counters.held_overflows, self.holding.counts.overflows);
        set(&counters.holder_restarts, self.holding.restarts);
        let kills = self.core.enforcer.kills().iter().flatten();
        for (counter, count) in counters.kills.iter().flatten().zip(kills) {
            set(counter, *count);
        }
    }

    /// What changes with policies and hooks.
    pub(super) fn publish(&mut self) {
        let hooks = self.kernel.hooks();
        let trouble = self.holding.trouble.as_deref();
        let told = self.asked.tell(&self.core.changes);
        let seen = (self.kernel.points(), self.kernel.rings(), &told);
        let mut doors = doors(hooks, seen, self.kernel.doors(), trouble);
        if let Some(door) = doors.iter_mut().find(|door| door.kind() == Kind::Integrity)
            && self.watch.every().is_some()
        {
            door.rung = "agent".into();
            door.reason = self.standing.blind();
        }
        let standing = self.standing.clone();
        self.status.update(|parts| {
            parts.doors = doors;
            parts.integrity = standing;
        });
        self.holding = self.keeper.report();
        let mut report = self.loaded.report(hooks, &self.holding);
        if let Some(reason) = self.core.isolation.trouble() {
            policies::without_isolation(&mut report, reason);
        }
        if self.standing.asked {
            self.loaded
                .without_checks(&mut report, &self.standing.report.blind);
        }
        self.status.set_policies(report);
        let carried = self.loaded.denied(hooks, &self.holding);
        self.core.denier.set_carried(carried);
    }
}

/// How each kind is seen, and what makes its calls fail.
fn doors(
    hooks: &[HookStatus],
    (points, rings, told): (&[PointStatus], &[PointStatus], &Result<String, String>),
    deny: &[DoorStatus],
    trouble: Option<&str>,
) -> Vec<Door> {
    KINDS
        .iter()
        .map(|(name, kind)| {
            let (deny, deny_reason) = denied(*kind, deny, trouble);
            let of_kind: Vec<_> = hooks
                .iter()
                .filter(|hook| hook.kinds.contains(name))
                .collect();
            let refused: Vec<_> = of_kind
                .iter()
                .filter(|hook| !hook.available)
                .map(|hook| {
                    format!(
                        "{}: {}",
                        hook.hook,
                        hook.reason.as_deref().unwrap_or_default()
                    )
                })
                .collect();
            let seen = refused.is_empty() && !of_kind.is_empty();
            let point = points.iter().find(|point| point.kind == *kind);
            let no_point = point.map(|point| point.reason.as_deref());
            let mut reasons = refused;
            let rung = match (seen, kind, no_point) {
                (false, ..) => "none",
                (true, Kind::Sysctl, _) => "cgroup",
                (true, _, Some(None)) => "fentry",
                (true, _, why) => {
                    reasons.extend(why.flatten().map(|why| format!("fentry: {why}")));
                    match kind {
                        Kind::Rename | Kind::Unlink => changes::rung(told, &mut reasons),
                        _ => "tracepoint",
                    }
                }
            };
            let ring = rings.iter().find(|ring| ring.kind == *kind);
            let untold = ring.and_then(|ring| ring.reason.as_ref());
            reasons.extend(untold.map(|why| format!("not told of io_uring: {why}")));
            Door {
                kind: (*kind).into(),
                rung: rung.into(),
                reason: reasons.join("; "),
                deny,
                deny_reason,
            }
        })
        .collect()
}

/// What makes calls of a kind fail on this host, and why it is not better; empty if nothing ever does.
fn denied(kind: Kind, doors: &[DoorStatus], trouble: Option<&str>) -> (String, String) {
    let Some(door) = doors.iter().find(|door| door.kind == kind) else {
        return (String::new(), String::new());
    };
    match (&door.reason, trouble) {
        (None, _) => (door.rung.into(), String::new()),
        (Some(reason), None) if matches!(kind, Kind::Open | Kind::Exec) => {
            ("fanotify".into(), reason.clone())
        }
        (Some(reason), Some(trouble)) if matches!(kind, Kind::Open | Kind::Exec) => (
            "none".into(),
            format!("{}: {reason}; fanotify: {trouble}", door.rung),
        ),
        (Some(reason), _) => ("none".into(), reason.clone()),
    }
}
