//! What others than the kernel tell, on its way into the table of workloads, the rules and the spool.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sumun_proto::v1::{Facts, System};

use super::clock::boot_ns;
use super::core::Core;
use crate::enrich::runtime::{Learned, Runtimes, Settings};
use crate::status::Counters;

/// The asking thread, and what has come from it and is not written yet.
pub struct Told {
    runtimes: Runtimes,
    host: Facts,
    /// Until the cycle that adds them to the lane has been written. Bounded by what the thread keeps ready.
    unwritten: Vec<Facts>,
}

impl Told {
    /// Begins to ask.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub fn start(settings: Settings, system: System) -> std::io::Result<Self> {
        let host = Facts {
            source: "host".into(),
            system: Some(system),
            ..Facts::default()
        };
        Ok(Self {
            runtimes: Runtimes::start(settings)?,
            host,
            unwritten: Vec::new(),
        })
    }

    /// Before the first cgroup is known.
    pub fn begin(&mut self, core: &mut Core) {
        core.workloads.asking = self.runtimes.told().present.load(Ordering::Relaxed);
        self.of_host(core);
    }

    /// Takes what has been learned, and asks about what is new. Never waits.
    pub fn cycle(&mut self, core: &mut Core) {
        core.workloads.asking = self.runtimes.told().present.load(Ordering::Relaxed);
        while let Some(learned) = self.runtimes.learned() {
            let Learned {
                workload,
                made_ns,
                facts,
            } = learned;
            match facts {
                Some(facts) if workload == 0 => {
                    self.host.cloud = facts.cloud;
                    self.of_host(core);
                }
                Some(facts) => {
                    let now = boot_ns().unwrap_or_default();
                    let pending_ns = match made_ns {
                        0 => 0,
                        made => now.saturating_sub(made),
                    };
                    let facts = Facts {
                        workload,
                        version: now,
                        pending_ns,
                        ..facts
                    };
                    core.workloads.learned(workload, Some(&facts));
                    self.unwritten.push(facts);
                }
                None => core.workloads.learned(workload, None),
            }
        }
        for question in core.workloads.take_questions() {
            let workload = question.workload;
            if !self.runtimes.ask(question) {
                core.workloads.learned(workload, None);
            }
        }
        for facts in &self.unwritten {
            core.life.open().facts(facts.clone());
        }
    }

    /// What the cycle added is in the spool.
    pub fn written(&mut self) {
        self.unwritten.clear();
    }

    /// Copies the counters.
    pub fn counters(&self, counters: &Counters) {
        let told: &Arc<_> = self.runtimes.told();
        let copy = |to: &AtomicU64, from: &AtomicU64| {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        };
        copy(&counters.runtime_known, &told.known);
        copy(&counters.runtime_unknown, &told.unknown);
        copy(&counters.runtime_failed, &told.failed);
        copy(&counters.runtime_dropped, &told.dropped);
    }

    fn of_host(&mut self, core: &mut Core) {
        self.host.version = boot_ns().unwrap_or_default();
        for (_, lane) in core.lanes() {
            lane.set_host(&self.host);
        }
        self.unwritten.push(self.host.clone());
    }
}
