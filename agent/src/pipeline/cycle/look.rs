//! The look for what the kernel knows and does not show, between cycles.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use sumun_policy::plan::KindPlan;
use sumun_proto::v1::Kind;

use super::Pipeline;
use crate::enrich::process::ImageKey;
use crate::integrity::{Check, Finding, Held, Process, Report, Turn};
use crate::pipeline::clock::boot_ns;
use crate::pipeline::policies;

/// How long a look waits at most until all records have been read that were there when it ended.
const LATE_WITHIN: Duration = Duration::from_secs(60);

impl Pipeline {
    /// Goes on with the look at what the kernel does not show, which a thread of its own takes, while a rule asks for it.
    pub(super) fn look_at_kernel(&mut self, bulk_emptied: bool) {
        if let Some((report, held, since)) = self.reported.take() {
            // That a module was removed may be told by a record that is not read yet.
            match bulk_emptied || since.elapsed() > LATE_WITHIN {
                true => self.judge(report, held, bulk_emptied),
                false => self.reported = Some((report, held, since)),
            }
        }
        let asked = *self.loaded.plan().kind(Kind::Integrity) != KindPlan::None;
        let process = |key: ImageKey| Process {
            pid: key.pid,
            start_ns: key.start_ns,
        };
        match self.watch.turn(asked) {
            Turn::Nothing => {}
            Turn::Begin => {
                let living = self.core.tree.living();
                let processes = living.map(|node| process(node.key)).collect();
                let modules = self.core.modules.names();
                let memory = self.kernel.memory();
                if let Err(reason) = self.watch.look(processes, modules, memory) {
                    self.blind(reason);
                }
            }
            Turn::Confirm(mut missing) => {
                // Most have ended, and their records have been read since.
                let living = self.core.tree.living();
                let living: HashSet<Process> = living.map(|node| process(node.key)).collect();
                missing.retain(|one| living.contains(one));
                // Records may be late, or lost: the kernel's own list decides.
                let tasks = match missing.is_empty() {
                    true => Err("nobody is missing".into()),
                    false => self.kernel.running().map_err(|error| error.to_string()),
                };
                self.watch.alive(missing, tasks);
            }
            Turn::Done(report, held) => self.reported = Some((report, held, Instant::now())),
            Turn::Failed(reason) => self.blind(reason),
        }
        if self.standing.asked != asked || self.standing.every != self.watch.every() {
            self.standing.asked = asked;
            self.standing.every = self.watch.every();
            self.publish();
        }
    }

    /// Takes out what the records since tell otherwise. `read`: all of them were read that were there when the look ended.
    pub(super) fn judge(&mut self, mut report: Report, held: Held, read: bool) {
        let modules = self.core.modules.names();
        let found = report.findings.len();
        report
            .findings
            .retain(|one| !one.needs_module() || read && modules.contains(&one.object));
        if !read && found > report.findings.len() {
            let reason = "records are late: whether modules were removed is not known".to_owned();
            report.partly.insert(Check::HiddenModule, reason);
        } else if let Some(reason) = self.core.modules.unknown() {
            report.partly.insert(Check::HiddenModule, reason);
        }
        // The agent has looked at their folders in vain, and may not kill what it knows nothing of.
        let tree = &self.core.tree;
        let known = |process: &Process| {
            let mut living = tree.living();
            let node = living.find(|node| is(node.key, *process))?;
            let program = node.program().filter(|program| program.exe_flaws == 0)?;
            let name = program.exe_path.rsplit('/').next()?;
            (!name.is_empty()).then(|| name.to_owned())
        };
        let named = held
            .into_iter()
            .filter_map(|(process, held)| Some((process, held, known(&process)?)));
        self.core.enforcer.prove(named.collect());
        self.found(report);
    }

    /// Nothing could be looked at.
    pub(super) fn blind(&mut self, reason: String) {
        let blind = Check::ALL.into_iter().map(|check| (check, reason.clone()));
        let report = Report {
            blind: blind.collect(),
            ..Report::default()
        };
        self.found(report);
    }

    /// A look has ended.
    pub(super) fn found(&mut self, report: Report) {
        let now_ns = boot_ns().unwrap_or(self.through_boot_ns);
        let when = (self.generation, now_ns, self.through_boot_ns);
        for Finding {
            check,
            object,
            detail,
            ..
        } in self.findings.add(&report, when)
        {
            tracing::warn!(
                check = check.name(),
                object,
                detail,
                "the kernel does not show what it knows"
            );
        }
        let before = &self.standing.report;
        for (check, reason) in report.blind.iter().chain(&report.partly) {
            let told = [before.blind.get(check), before.partly.get(check)];
            if !told.contains(&Some(reason)) {
                tracing::warn!(check = check.name(), reason, "cannot be looked at");
            }
        }
        self.standing.looked_ns = policies::wall_ns();
        let same = self.standing.report.blind == report.blind;
        self.standing.report = report;
        if !same {
            // Not what is complete already: what was found there has been told.
            self.scope(
                self.through_boot_ns + 1,
                now_ns.max(self.through_boot_ns + 1),
            );
        }
        self.publish();
    }
}

fn is(key: ImageKey, process: Process) -> bool {
    (key.pid, key.start_ns) == (process.pid, process.start_ns)
}
