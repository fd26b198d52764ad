//! Calls that were held for rules that deny: those that failed become events here, as the kernel has no record of
//! a call that did nothing.
//!
//! They are a stream of their own, in a ring of no kernel. Its numbers are times, so they grow from run to run, and a
//! gap in them says nothing: what could not be told is counted where it was left out. A cycle that could not be written
//! takes the same calls again.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::{fs, io};

use sumun_abi::event::process::Actor;
use sumun_abi::record::{FLAW_LOST, Header};
use sumun_engine::Hit;
use sumun_policy::Mode;
use sumun_proto::v1::{self, Event, File, Gap, Kind, Source};

use super::core::Core;
use crate::detect::unloaded;
use crate::enforce::deny;
use crate::enforce::fanotify::{Call, Decision};
use crate::enrich::process::{Node, Program};
use crate::kernel::StreamId;

/// The stream; the kernel's rings have lower numbers.
const STREAM: StreamId = StreamId {
    ring: 2,
    cpu: 0,
    level: 0,
};

/// Calls that wait for the spool at most; those beyond are counted and told as a gap.
const PENDING_MAX: usize = 16 * 1024;
/// And so many bytes of them: a path can be long.
const PENDING_BYTES: usize = 8 * 1024 * 1024;

/// A file in the state directory, there while calls are held: an agent that was killed may have been told of denied calls that are
/// not in the spool, and the next one says so.
#[derive(Debug)]
pub struct Unsaid {
    path: PathBuf,
    there: bool,
}

impl Unsaid {
    /// In this state directory.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        let path = state.join("holding");
        let there = path.exists();
        Self { path, there }
    }

    /// True if an agent before this one was killed while it held calls.
    #[must_use]
    pub fn is_left(&self) -> bool {
        self.there
    }

    /// Calls are held, or not any more and all of them are in the spool.
    ///
    /// # Errors
    /// The file cannot be made or removed.
    pub fn set(&mut self, holding: bool) -> io::Result<()> {
        if self.there == holding {
            return Ok(());
        }
        match holding {
            true => fs::write(&self.path, "")?,
            false => fs::remove_file(&self.path)?,
        }
        self.there = holding;
        Ok(())
    }
}

/// Calls that the agent was told of and that are not in the spool yet.
#[derive(Debug, Default)]
pub struct Pending {
    calls: VecDeque<(u32, u64, Call)>,
    /// Of the calls.
    bytes: usize,
    lost: u64,
    last: u64,
}

impl Pending {
    /// Takes what was told: those let through are remembered, the others numbered. An event is never older than what has been
    /// said to be complete, `through_ns`.
    pub fn add(
        &mut self,
        (calls, lost): (Vec<(u32, Call)>, u64),
        through_ns: u64,
        core: &mut Core,
    ) {
        self.lost += lost;
        for (generation, mut call) in calls {
            if call.decision == Decision::Denied {
                core.denier.count_denied();
                if self.calls.len() == PENDING_MAX || self.bytes >= PENDING_BYTES {
                    self.lost += 1;
                    continue;
                }
                call.boot_ns = call.boot_ns.max(through_ns + 1);
                self.last = call.boot_ns.max(self.last + 1);
                self.bytes += call.size();
                self.calls.push_back((generation, self.last, call));
            } else {
                core.denier.let_through(deny::Passed::of_call(&call));
            }
        }
    }

    /// Whether there is something to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty() && self.lost == 0
    }

    /// Adds all of it to the lanes.
    pub fn emit(&self, core: &mut Core, (from_ns, now_ns): (u64, u64)) {
        for (generation, seq, call) in &self.calls {
            core.denied(*generation, *seq, call);
        }
        if self.lost > 0 {
            core.counts.gaps += 1;
            core.bulk.gap(Gap {
                reason: "untold".into(),
                count: Some(self.lost),
                from_boot_ns: from_ns,
                to_boot_ns: now_ns,
                detail:
                    "opens and executions that were denied, and of which the agent was not told"
                        .into(),
                ..Gap::default()
            });
        }
    }

    /// They are in the spool.
    pub fn written(&mut self) {
        self.calls.clear();
        self.bytes = 0;
        self.lost = 0;
    }
}

impl Core {
    /// A call that was denied: its event, and an alert of each rule that did it. Other rules are not asked: nothing was
    /// opened or executed.
    fn denied(&mut self, generation: u32, seq: u64, call: &Call) {
        let kind = Kind::try_from(call.kind).unwrap_or_default();
        let life = kind == Kind::Exec;
        let (mut node, actor) = self.caller(call);
        let mut event = Event {
            kind: call.kind,
            boot_ns: call.boot_ns,
            tid: call.tid,
            result: Some(-libc::EPERM),
            origin: Some(v1::Origin {
                ring: STREAM.ring.into(),
                cpu: STREAM.cpu,
                level: STREAM.level.into(),
                seq,
            }),
            ..Event::default()
        };
        if life {
            // As of any exec, the process is shown with the program that it asked for.
            node = self.tree.never_began(&node, program(call), seq);
        } else {
            event.file = Some(File {
                path: call.path.clone(),
                source: Source::Object.into(),
                flaws: call.flaws,
                flags: call.flags,
                dev: call.dev,
                ino: call.ino,
                mode: call.mode,
                fd: -1,
                ..File::default()
            });
        }
        let verdict = deny::denied(call);
        let found: Vec<Hit> = call
            .rules
            .iter()
            .map(|rule| Hit {
                // The number is one of the rules of its generation alone.
                rule: match self.detector.has(generation, *rule) {
                    true => *rule,
                    false => unloaded(*rule),
                },
                undecided: false,
                alert: true,
                exception: None,
                kill: None,
                deny: Some(Mode::Enforce),
                isolate: None,
                doubt: None,
            })
            .collect();
        let verdicts = vec![Some(verdict.clone()); found.len()];
        let workload = self.workloads.of(actor.cgroup_id);
        let lane = if life { &mut self.life } else { &mut self.bulk };
        let held = lane.holds(STREAM, seq);
        let batch = lane.open();
        event.image = batch.image(&node, &actor, workload.as_ref());
        batch.event(event, STREAM, seq);
        batch.verdict(verdict);
        for hit in &found {
            let rule = batch.rule((generation, hit.rule), || {
                self.detector.describe(generation, hit.rule)
            });
            batch.matched(rule);
        }
        let event = match held {
            true => batch.withdraw(),
            false => {
                self.counts.events += 1;
                batch.batch().events.last().cloned()
            }
        };
        let header = Header {
            len: 0,
            kind: 0,
            ring: STREAM.ring,
            level: STREAM.level,
            cpu: STREAM.cpu,
            generation,
            seq,
            boot_ns: call.boot_ns,
        };
        let by = (&node, &actor, workload.as_ref());
        self.alerts(event, (&found, &verdicts), by, &header);
    }

    /// The process that made a call, as it was when it made it.
    fn caller(&mut self, call: &Call) -> (Rc<Node>, Actor) {
        let [uid, gid, euid, egid] = call.ids;
        let mut actor = Actor {
            pid: call.pid,
            tid: call.tid,
            start_ns: call.start_ns,
            uid,
            gid,
            euid,
            egid,
            cap_effective: call.cap_effective,
            ..Actor::default()
        };
        let node = match self
            .tree
            .at_tick(call.pid, call.start_ns, call.exe.as_deref())
        {
            Some(node) => node,
            None => self.tree.find(&actor),
        };
        (actor.start_ns, actor.image) = (node.key.start_ns, node.key.image);
        (actor.cgroup_id, actor.cgroup_hierarchy) = node.cgroup;
        (node, actor)
    }
}

/// What is known of a program that was not started.
fn program(call: &Call) -> Program {
    let lost = u32::from(FLAW_LOST);
    Program {
        exe_path: call.path.clone().unwrap_or_default(),
        exe_flaws: call.flaws,
        exe_dev: call.dev,
        exe_ino: call.ino,
        args_flaws: lost,
        cwd_flaws: lost,
        ..Program::default()
    }
}
