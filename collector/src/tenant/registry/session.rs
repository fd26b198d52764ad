//! What an agent says while its stream is open; as much of it as is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sumun_policy::report;
use sumun_proto::v1::{Goodbye, Heartbeat, Hello, Isolation, LaneState};
use uuid::Uuid;

use super::progress::Mark;
use super::{Agent, LANES, Registry};
use crate::state::now_ns;
use crate::tenant::identity::Identity;

/// Longest text of an agent's own that is kept, in bytes.
const TEXT_MAX: usize = 1024;
/// Most entries of a list of an agent's own that are kept.
const LIST_MAX: usize = 4096;

impl Registry {
    /// A stream begins. It counts as open until the returned value is dropped.
    #[must_use]
    pub fn connect(&self, identity: &Identity, hello: &Hello) -> Session {
        self.change(identity.agent, |agent| {
            if !hello.host_name.is_empty() {
                agent.name = bounded(&hello.host_name);
            }
            agent.version = bounded(&hello.version);
            agent.kernel = bounded(&hello.kernel);
            agent.doors = hello.doors.iter().take(LIST_MAX).cloned().collect();
            if agent.boot_id != hello.boot_id || agent.streams == 0 {
                agent.attached = false;
                agent.bootstrapped = false;
            }
            agent.boot_id = hello.boot_id.clone();
            agent.stopped_ns = 0;
            agent.streams += 1;
            agent.touch();
        });
        Session {
            registry: self.clone(),
            agent: identity.agent,
            waits: AtomicBool::new(false),
        }
    }
}

/// An open stream of an agent.
#[derive(Debug)]
pub struct Session {
    registry: Registry,
    agent: Uuid,
    waits: AtomicBool,
}

impl Session {
    /// Anything at all was heard.
    pub fn heard(&self) {
        self.registry.change(self.agent, Agent::touch);
    }

    /// The stream waits for this collector from now on, or no longer.
    pub fn waits(&self, waits: bool) {
        if self.waits.swap(waits, Ordering::Relaxed) == waits {
            return;
        }
        self.registry.change(self.agent, |agent| match waits {
            true => agent.waiting += 1,
            false => {
                agent.waiting = agent.waiting.saturating_sub(1);
                agent.touch();
            }
        });
    }

    /// A heartbeat.
    pub fn heartbeat(&self, beat: &Heartbeat) {
        self.registry.change(self.agent, |agent| {
            agent.touch();
            agent.attached = beat.attached;
            agent.bootstrapped = beat.bootstrapped;
            agent.trouble = bounded(&beat.trouble);
            agent.isolation = beat.isolation.as_ref().map(isolation);
            agent.losses = beat.losses.iter().take(LIST_MAX).cloned().collect();
            if let Some(policies) = &beat.policies {
                let mut policies = policies.clone();
                report::bound(&mut policies);
                agent.policies = Some(Arc::new(policies));
                agent.policies_dirty = true;
            }
            if !beat.boot_id.is_empty() {
                agent.boot_id = beat.boot_id.clone();
            }
            let boot_id = agent.boot_id.clone();
            claim_all(agent, &beat.lanes, &boot_id, beat.wall_offset_ns);
        });
    }

    /// A goodbye: the agent stops on purpose.
    pub fn goodbye(&self, goodbye: &Goodbye) {
        self.registry.change(self.agent, |agent| {
            agent.touch();
            agent.stopped_ns = now_ns();
            let boot_id = agent.boot_id.clone();
            claim_all(agent, &goodbye.lanes, &boot_id, goodbye.wall_offset_ns);
        });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.waits(false);
        self.registry.change(self.agent, |agent| {
            agent.streams = agent.streams.saturating_sub(1);
            agent.dirty = true;
        });
    }
}

fn claim_all(agent: &mut Agent, lanes: &[LaneState], boot_id: &[u8], wall_offset_ns: i64) {
    for state in lanes.iter().take(LANES.len()) {
        let mark = Mark {
            boot_id: boot_id.to_vec(),
            boot_ns: state.through_boot_ns,
            wall_ns: wall_offset_ns.wrapping_add(state.through_boot_ns.cast_signed()),
        };
        if let Some(lane) = agent.lane(state.lane()) {
            lane.claim(state, mark);
        }
    }
}

/// A text of the agent's own.
pub(super) fn bounded(text: &str) -> String {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// What is kept of an isolation.
fn isolation(told: &Isolation) -> Isolation {
    Isolation {
        policy: bounded(&told.policy),
        rule: bounded(&told.rule),
        cgroup: bounded(&told.cgroup),
        allowed: told
            .allowed
            .iter()
            .take(LIST_MAX)
            .map(|text| bounded(text))
            .collect(),
        ..*told
    }
}
