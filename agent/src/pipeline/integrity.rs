//! What a look at the kernel's own word has found becomes events here, a stream of their own in a ring of no kernel, as
//! those of calls that were held ([`super::denied`]).
//!
//! A finding is told once while it lasts, and again to rules that are new; one that goes and comes back is told again. A
//! cycle that could not be written tells the same findings again.

use std::collections::BTreeSet;
use std::rc::Rc;

use sumun_abi::event::process::{Actor, CAPS_UNKNOWN};
use sumun_abi::record::Header;
use sumun_proto::v1::{Event, KernelChange, Kind};

use super::core::Core;
use crate::enrich::process::Node;
use crate::integrity::{Check, Finding, Process, Report};
use crate::kernel::StreamId;

/// The stream; the kernel's rings have lower numbers.
const STREAM: StreamId = StreamId {
    ring: 3,
    cpu: 0,
    level: 0,
};

/// Modules that are remembered at most; of those beyond nobody knows whether they are hidden.
const MODULES_MAX: usize = 1024;

/// Modules of which the kernel has told that they were loaded, and has not told that they were removed.
#[derive(Clone, Debug, Default)]
pub struct Modules {
    names: BTreeSet<String>,
    /// Why some that were loaded are not among them.
    unknown: Option<&'static str>,
}

impl Modules {
    /// A call that loads or removes one has returned.
    pub fn told(&mut self, event: &Event) {
        let Some(change) = &event.kernel else { return };
        if change.result != Some(0) {
            return;
        }
        let removed = event.kind() == Kind::ModuleUnload;
        match &change.name {
            // The caller's word, and the only one that there is: one that the agent does not know may stand for any.
            Some(name) if removed && self.names.remove(name) => {}
            _ if removed => self.forget("a module was removed that was not seen being loaded"),
            None => self.unknown = Some("a module was loaded whose name is not known"),
            Some(_) if self.names.len() == MODULES_MAX => {
                self.unknown = Some("more were loaded than are remembered");
            }
            Some(name) => {
                self.names.insert(name.clone());
            }
        }
    }

    /// One of them may have been removed.
    pub fn forget(&mut self, why: &'static str) {
        self.names.clear();
        self.unknown = Some(why);
    }

    /// Their names.
    #[must_use]
    pub fn names(&self) -> BTreeSet<String> {
        self.names.clone()
    }

    /// Why some that the agent has seen being loaded would not be missed; for people.
    #[must_use]
    pub fn unknown(&self) -> Option<String> {
        let why = self.unknown?;
        Some(format!(
            "of some modules that were loaded since the agent runs nobody would notice that no list has them: {why}"
        ))
    }
}

/// By what a finding is the same as one before.
type Key = (Check, String, Option<Process>);

/// Findings on their way to the spool, and those that are there.
#[derive(Debug, Default)]
pub struct Findings {
    /// With the number and time of their event.
    waiting: Vec<(u64, Finding)>,
    /// What was found at the last look of its check, told or about to be. What the kernel says of it can change meanwhile.
    lasting: BTreeSet<Key>,
    /// The filter whose rules were asked of these.
    generation: u32,
    last: u64,
}

impl Findings {
    /// Takes what was found. An event is never older than what has been said to be complete, `through_ns`. Those that are new
    /// are returned.
    pub fn add(
        &mut self,
        report: &Report,
        (generation, now_ns, through_ns): (u32, u64, u64),
    ) -> Vec<Finding> {
        if generation != self.generation {
            self.lasting.clear();
            self.generation = generation;
        }
        let key = |finding: &Finding| (finding.check, finding.object.clone(), finding.process);
        let mut new = report.findings.clone();
        new.retain(|finding| !self.lasting.contains(&key(finding)));
        for finding in &new {
            self.last = now_ns.max(through_ns + 1).max(self.last + 1);
            self.waiting.push((self.last, finding.clone()));
        }
        // Of what could not be looked at nobody knows that it is over.
        self.lasting
            .retain(|(check, ..)| report.blind.contains_key(check));
        self.lasting.extend(report.findings.iter().map(key));
        new
    }

    /// Adds all that wait to the lanes.
    pub fn emit(&self, core: &mut Core) {
        for (seq, finding) in &self.waiting {
            core.found(self.generation, *seq, finding);
        }
    }

    /// They are in the spool.
    pub fn written(&mut self) {
        self.waiting.clear();
    }
}

impl Core {
    /// A finding: its event, judged as any other. Of a process that is hidden it is that one's; of all else the agent's, who
    /// has found it.
    fn found(&mut self, generation: u32, seq: u64, finding: &Finding) {
        let process = finding.process.map_or(self.own_pid, |process| process.pid);
        let lives = |node: &Rc<Node>| {
            let same = |process: Process| node.key.start_ns == process.start_ns;
            node.key.pid == process && finding.process.is_none_or(same)
        };
        let of_process = self.tree.living().find(lives);
        // It has ended since: what is known of it is in the records before.
        let actor = of_process.as_deref().map(actor).unwrap_or(Actor {
            pid: process,
            tid: process,
            start_ns: finding.process.map_or(0, |process| process.start_ns),
            cap_effective: CAPS_UNKNOWN,
            ..Actor::default()
        });
        let node = of_process.unwrap_or_else(|| self.tree.find(&actor));
        let event = Event {
            kind: Kind::Integrity.into(),
            tid: process,
            kernel: Some(KernelChange {
                check: finding.check.name().into(),
                name: Some(finding.object.clone()),
                value: Some(finding.detail.clone()),
                ..KernelChange::default()
            }),
            ..Event::default()
        };
        let header = Header {
            len: 0,
            kind: 0,
            ring: STREAM.ring,
            level: STREAM.level,
            cpu: STREAM.cpu,
            generation,
            seq,
            boot_ns: seq,
        };
        self.emit(event, &node, (&actor, true), &header, None);
    }
}

/// The process of an image, as it was when that began.
pub(super) fn actor(node: &Node) -> Actor {
    let [uid, gid, euid, egid] = node.ids;
    let (cgroup_id, cgroup_hierarchy) = node.cgroup;
    Actor {
        pid: node.key.pid,
        tid: node.key.pid,
        start_ns: node.key.start_ns,
        image: node.key.image,
        uid,
        gid,
        euid,
        egid,
        cgroup_id,
        cgroup_hierarchy,
        // They can have changed since it began.
        cap_effective: CAPS_UNKNOWN,
        ..Actor::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(objects: &[&str]) -> Report {
        let findings = objects
            .iter()
            .map(|object| Finding {
                check: Check::HiddenModule,
                object: (*object).to_owned(),
                process: None,
                detail: String::new(),
            })
            .collect();
        Report {
            findings,
            ..Report::default()
        }
    }

    #[test]
    fn what_lasts_is_told_once_and_to_new_rules_again() {
        let mut findings = Findings::default();
        let mut take = |objects: &[&str], generation| {
            let new = findings.add(&report(objects), (generation, 5, 9));
            let numbers: Vec<_> = findings.waiting.iter().map(|(seq, _)| *seq).collect();
            findings.written();
            (new.len(), numbers)
        };
        assert_eq!(take(&["a", "b"], 1), (2, vec![10, 11]));
        assert_eq!(take(&["a", "b"], 1), (0, vec![]));
        assert_eq!(take(&["b"], 1), (0, vec![]));
        assert_eq!(take(&["a", "b"], 1), (1, vec![12]));
        assert_eq!(take(&["a", "b"], 2), (2, vec![13, 14]));
        // One look cannot be made, and of one thing the kernel says something else.
        let mut other = report(&["a", "b"]);
        other.findings[0].detail = "another tracer".into();
        let mut blind = Report::default();
        blind.blind.insert(Check::HiddenModule, "no list".into());
        for report in [&blind, &other] {
            assert_eq!(findings.add(report, (2, 5, 9)), []);
        }
        assert_eq!(findings.add(&Report::default(), (2, 5, 9)), []);
        assert_eq!(findings.add(&other, (2, 5, 9)).len(), 2);
    }

    #[test]
    fn modules_are_known_from_their_loading_to_their_removal() {
        let call = |kind: Kind, name: Option<&str>, result| Event {
            kind: kind.into(),
            kernel: Some(KernelChange {
                name: name.map(str::to_owned),
                result: Some(result),
                ..KernelChange::default()
            }),
            ..Event::default()
        };
        let mut modules = Modules::default();
        modules.told(&call(Kind::ModuleLoad, Some("a"), 0));
        modules.told(&call(Kind::ModuleLoad, Some("b"), -1));
        modules.told(&call(Kind::ModuleUnload, Some("a"), -11));
        assert_eq!(modules.names(), BTreeSet::from(["a".to_owned()]));
        modules.told(&call(Kind::ModuleUnload, Some("a"), 0));
        assert!(modules.names().is_empty());
        assert_eq!(modules.unknown(), None);
        // Whose name is not read, or is another's by now, may be any of them: none is missed for it.
        for name in [None, Some("flipped")] {
            modules.told(&call(Kind::ModuleLoad, Some("a"), 0));
            modules.told(&call(Kind::ModuleUnload, name, 0));
            assert!(modules.names().is_empty());
        }
        assert!(modules.unknown().is_some());
        let mut modules = Modules::default();
        modules.told(&call(Kind::ModuleLoad, None, 0));
        assert!(modules.unknown().is_some());
        for number in 0..2 * MODULES_MAX {
            modules.told(&call(Kind::ModuleLoad, Some(&number.to_string()), 0));
        }
        assert_eq!(modules.names().len(), MODULES_MAX);
        assert!(modules.unknown().is_some());
        modules.forget("records were lost");
        assert!(
            modules
                .unknown()
                .is_some_and(|why| why.ends_with("records were lost"))
        );
        assert!(modules.names().is_empty());
    }
}
