//! What others than the kernel tell, on its way into the table of workloads, the rules and the spool.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use sumun_proto::v1::{Facts, System};
use sumun_proto::view::facts::{TOLD_AGAIN, with_pod_of};

use super::clock::boot_ns;
use super::core::Core;
use crate::enrich::runtime::kept::Kept;
use crate::enrich::runtime::{Learned, Runtimes, Settings};
use crate::status::Counters;

/// Workloads that are told of again in one cycle: thousands at once would crowd the lane.
const AGAIN_AT_ONCE: usize = 16;

/// What lives is told of again after [`TOLD_AGAIN`]: the collector gives up what nobody tells of any more.
#[derive(Debug)]
struct Again {
    /// Still to be told in this round; 0 is the host.
    left: VecDeque<u64>,
    /// Since boot: the time that a host sleeps counts, since the collector's clock goes on.
    begun_ns: u64,
}

impl Again {
    fn new(now_ns: u64) -> Self {
        Self {
            left: VecDeque::new(),
            begun_ns: now_ns,
        }
    }

    /// Whom to tell of in this cycle.
    fn next(&mut self, now_ns: u64, all: impl FnOnce() -> Vec<u64>) -> Vec<u64> {
        let since = Duration::from_nanos(now_ns.saturating_sub(self.begun_ns));
        if self.left.is_empty() && since >= TOLD_AGAIN {
            self.begun_ns = now_ns;
            self.left.push_back(0);
            self.left.extend(all());
        }
        let count = self.left.len().min(AGAIN_AT_ONCE);
        self.left.drain(..count).collect()
    }
}

/// The asking thread, and what has come from it and is not written yet.
pub struct Told {
    runtimes: Runtimes,
    host: Facts,
    /// Until the cycle that adds them to the lane has been written. Bounded by what the thread keeps ready.
    unwritten: Vec<Facts>,
    windows: Windows,
    again: Again,
    kept: Kept,
    /// What was said before a restart.
    before: Vec<Facts>,
}

/// For how long workloads were not named: from the making of a cgroup until its runtime had told of it.
#[derive(Clone, Copy, Debug, Default)]
struct Windows {
    count: u64,
    sum_ms: u64,
    longest_ms: u64,
}

impl Told {
    /// Begins to ask.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub fn start(
        settings: Settings,
        system: System,
        state: &Path,
        boot_id: [u8; 16],
    ) -> std::io::Result<Self> {
        let (kept, before) = Kept::open(state, boot_id);
        let host = Facts {
            source: "host".into(),
            system: Some(system),
            cloud_pending: settings.cloud.is_some(),
            ..Facts::default()
        };
        Ok(Self {
            runtimes: Runtimes::start(settings)?,
            host,
            unwritten: Vec::new(),
            windows: Windows::default(),
            again: Again::new(boot_ns().unwrap_or_default()),
            kept,
            before,
        })
    }

    /// Before the first cgroup is known.
    pub fn begin(&mut self, core: &mut Core) {
        for facts in std::mem::take(&mut self.before) {
            core.workloads.restore_facts(facts);
        }
        core.workloads.ask(self.runtimes.present());
        self.of_host(core);
    }

    /// Takes what has been learned, asks about what is new, and tells both. Never waits.
    pub fn cycle(&mut self, core: &mut Core) {
        self.learn(core);
        let now_ns = boot_ns().unwrap_or_default();
        let again = self.again.next(now_ns, || core.workloads.told_of());
        for workload in again {
            let version = boot_ns().unwrap_or_default();
            match core.workloads.facts_of(workload) {
                // Those that it has of its pod bear no number yet.
                Some(facts) => self.unwritten.push(Facts {
                    workload,
                    version,
                    ..facts.clone()
                }),
                None if workload == 0 => self.unwritten.push(Facts {
                    version,
                    ..self.host.clone()
                }),
                // It has ended meanwhile.
                None => {}
            }
        }
        for facts in &self.unwritten {
            core.life.open().facts(facts.clone());
        }
    }

    /// Takes what has been learned, and asks about what is new. Never waits.
    pub fn learn(&mut self, core: &mut Core) {
        core.workloads.ask(self.runtimes.present());
        while let Some(learned) = self.runtimes.learned() {
            let Learned {
                workload,
                made_ns,
                facts,
                again,
                denied,
            } = learned;
            if let Some(question) = again {
                let now = boot_ns().unwrap_or_default();
                core.workloads.ask_again(question, now);
                continue;
            }
            match facts {
                Some(facts) if workload == 0 => {
                    self.host.cloud = facts.cloud;
                    self.host.cloud_pending = false;
                    self.of_host(core);
                }
                None if workload == 0 => {
                    self.host.cloud_pending = false;
                    self.of_host(core);
                }
                Some(facts) => {
                    let now = boot_ns().unwrap_or_default();
                    // More of one that had its names before, and not only those of its pod.
                    let known = core.workloads.facts_of(workload);
                    let facts = match known {
                        Some(known) => with_pod_of(facts, known),
                        None => facts,
                    };
                    let known = known.filter(|known| !known.container_name.is_empty());
                    let pending_ns = match (known, made_ns) {
                        (Some(known), _) => known.pending_ns,
                        (None, 0) => 0,
                        (None, made) => now.saturating_sub(made),
                    };
                    if known.is_none() && pending_ns != 0 {
                        let ms = pending_ns / 1_000_000;
                        self.windows.count += 1;
                        self.windows.sum_ms += ms;
                        self.windows.longest_ms = self.windows.longest_ms.max(ms);
                    }
                    let facts = Facts {
                        workload,
                        version: now,
                        pending_ns,
                        ..facts
                    };
                    core.workloads.learned(workload, Some(&facts));
                    self.unwritten.push(facts);
                }
                None if denied => core.workloads.denied(workload),
                None => core.workloads.learned(workload, None),
            }
        }
        if !core.workloads.asking {
            return self.give_up(core);
        }
        core.workloads.ask_due(boot_ns().unwrap_or_default());
        // Of a host with many containers, some wait here for their turn.
        for question in core.workloads.take_questions(self.runtimes.room()) {
            if let Err(question) = self.runtimes.ask(question) {
                core.workloads.ask_later(question);
            }
        }
    }

    /// Nobody is there to be asked: containers do not wait for ever.
    fn give_up(&self, core: &mut Core) {
        let given_up = core.workloads.give_up(boot_ns().unwrap_or_default());
        if let Some(first) = given_up.first() {
            let count = given_up.len() as u64;
            let unknown = &self.runtimes.told().unknown;
            unknown.fetch_add(count, Ordering::Relaxed);
            tracing::warn!(
                count,
                first,
                "no container runtime is found here: these containers have no names, and rules that ask for names take them for such"
            );
        }
    }

    /// What the cycle added is in the spool.
    pub fn written(&mut self) {
        for facts in self.unwritten.drain(..).filter(|facts| facts.workload != 0) {
            self.kept.keep(&facts);
        }
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
        copy(&counters.runtime_refused, &told.refused);
        let troubles = counters.identity_troubles.lock();
        *troubles.unwrap_or_else(PoisonError::into_inner) = told.troubles();
        copy(&counters.runtime_dropped, &told.dropped);
        let set = |to: &AtomicU64, value| to.store(value, Ordering::Relaxed);
        set(&counters.workloads_named, self.windows.count);
        set(&counters.workloads_named_ms, self.windows.sum_ms);
        set(
            &counters.workloads_named_longest_ms,
            self.windows.longest_ms,
        );
    }

    fn of_host(&mut self, core: &mut Core) {
        self.host.version = boot_ns().unwrap_or_default();
        for (_, lane) in core.lanes() {
            lane.set_host(&self.host);
        }
        core.scopes.set_host(&self.host);
        self.unwritten.push(self.host.clone());
    }

    /// The cloud has told of the host, or there is none.
    #[must_use]
    pub fn knows_cloud(&self) -> bool {
        !self.host.cloud_pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lives_is_told_of_again_a_few_at_a_time() {
        let hours = u64::try_from(TOLD_AGAIN.as_nanos()).expect("some hours");
        let begin = 5;
        let mut again = Again::new(begin);
        let all = || (1..=20).collect::<Vec<u64>>();
        assert!(again.next(begin + hours / 2, all).is_empty());
        let later = begin + hours;
        let first = again.next(later, all);
        assert_eq!((first.len(), first[0]), (AGAIN_AT_ONCE, 0));
        assert_eq!(again.next(later, all), [16, 17, 18, 19, 20]);
        assert!(again.next(later, all).is_empty());
        assert!(!again.next(later + hours, all).is_empty());
    }
}
