//! The agent's side: starts the process that holds calls, watches that it answers, and ends it when it does not.
//!
//! A thread of its own, which waits for nothing else of the agent. What the other says is kept in a bounded queue for
//! the reading thread. A new plan gets a new process, and the one before ends when the new one is ready, so at no moment is
//! nobody there.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, send, setsockopt, shutdown,
    socketpair, sockopt,
};
use sumun_abi::verdict::Scope;
use sumun_policy::Predicate;
use sumun_policy::deny::DenyRule;
use sumun_proto::Host;
use sumun_proto::v1::Kind;

use super::wire::{
    self, Call, Cgroups, Changes, Counts, MESSAGE_MAX, Missing, PING, Plan, Said, Start,
};
use crate::enforce::scope::Told;
use crate::kernel::stat::Stat;

/// A process that is stopped, or waits for a device, and has not answered for so long is ended.
const PATIENCE: Duration = Duration::from_millis(100);
/// One that only waits for a processor is ended after so long: ending takes a processor, too.
const PATIENCE_WITH_LOAD: Duration = Duration::from_secs(1);
/// How often is looked.
const TICK: Duration = Duration::from_millis(20);
/// The longest until a new process is ready; it says so after some seconds, however slow the disks are.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Until another is started after one has ended: doubled each time, and forgotten when one has lasted.
const BACKOFF: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(10)];
const LASTED: Duration = Duration::from_secs(60);
/// Kernel memory for what a process has said and this thread has not heard yet: some thousand calls.
const SAYS_BYTES: usize = 2 * 1024 * 1024;
/// Calls that wait for the reading thread at most; those beyond are counted and told as a gap.
const QUEUE_MAX: usize = 4096;
/// And so many bytes of them: a path can be long.
const QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// Cgroups of which a process has not been told yet, at most. One that falls further behind gets another in its place, which
/// begins with all of them.
const UNTOLD_MAX: usize = 64 * 1024;
/// Bytes of one message about cgroups, about: the longest path, escaped, has room besides.
const CHANGES_BYTES: usize = MESSAGE_MAX / 4;

/// How well rules that deny are carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Why nothing is held; `None` when the process works, or nothing is asked for.
    pub trouble: Option<String>,
    /// Rules that are not carried out, or not wholly.
    pub missing: Vec<Missing>,
    /// Over all processes.
    pub counts: Counts,
    /// Processes that ended without being told to.
    pub restarts: u64,
}

impl Report {
    /// Why a rule is not carried out on a kind; `None` if it is.
    #[must_use]
    pub fn reason(&self, rule: usize, kind: Kind) -> Option<String> {
        if let Some(trouble) = &self.trouble {
            return Some(trouble.clone());
        }
        let missing = self
            .missing
            .iter()
            .find(|missing| missing.rule == rule && missing.kind == i32::from(kind));
        missing.map(|missing| missing.reason.clone())
    }
}

/// Carries out rules that deny.
#[derive(Debug, Default)]
pub struct Keeper {
    shared: Arc<Mutex<Shared>>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// What is asked for, and by which generation of the policies.
    wanted: Option<(Arc<Plan>, u32)>,
    /// What cgroups answer to the questions of that plan; as many as [`crate::enforce::scope`] tells of.
    cgroups: Cgroups,
    /// Those of which something else is known since the thread looked last; [`UNTOLD_MAX`] at most.
    changed: HashSet<String>,
    /// They were more.
    behind: bool,
    stop: bool,
    report: Report,
    /// With the generation of the plan that it was judged by.
    calls: VecDeque<(u32, Call)>,
    /// Of the calls.
    bytes: usize,
    dropped: u64,
}

impl Keeper {
    /// From now on these rules; none at all ends the process. `cgroups` is what is known of cgroups of this hierarchy for what the rules
    /// ask ([`Keeper::questions`]).
    pub fn set(
        &mut self,
        rules: &[DenyRule],
        generation: u32,
        host: &Host,
        (hierarchy, cgroups): (Option<u32>, Vec<(String, Scope)>),
    ) {
        let plan = Plan {
            agent: std::process::id(),
            host: (host.id.clone(), host.name.clone()),
            hierarchy,
            rules: rules.iter().map(Into::into).collect(),
        };
        let mut shared = locked(&self.shared);
        if self.thread.is_none() && plan.rules.is_empty() {
            return;
        }
        shared.wanted = Some((Arc::new(plan), generation));
        let cgroups = cgroups
            .into_iter()
            .map(|(path, scope)| (path, scope.into()));
        let before = std::mem::replace(&mut shared.cgroups, cgroups.collect());
        // A process that has this very plan already is told of the difference.
        let shared_now = &mut *shared;
        let now = shared_now.cgroups.keys().chain(before.keys());
        shared_now.changed.extend(now.cloned());
        if self.thread.is_none() {
            shared.report.trouble = Some(STARTING.into());
        }
        drop(shared);
        if self.thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let started = thread::Builder::new()
                .name("keeper".into())
                .spawn(move || Keeping::new(shared).run());
            match started {
                Ok(thread) => self.thread = Some(thread),
                Err(error) => {
                    let why = format!("cannot start a thread: {error}");
                    locked(&self.shared).report.trouble = Some(why);
                }
            }
        }
    }

    /// What rules ask of workloads and the host, by its number.
    #[must_use]
    pub fn questions(rules: &[DenyRule]) -> Vec<Predicate> {
        wire::questions(rules).all().to_vec()
    }

    /// Something else is known of cgroups.
    pub fn tell(&self, changes: Vec<Told>) {
        if changes.is_empty() {
            return;
        }
        let mut shared = locked(&self.shared);
        for (path, scope) in changes {
            match scope {
                Some(scope) => shared.cgroups.insert(path.clone(), scope.into()),
                None => shared.cgroups.remove(&path),
            };
            if self.thread.is_some() {
                shared.changed.insert(path);
            }
        }
        if shared.changed.len() > UNTOLD_MAX {
            shared.changed.clear();
            shared.behind = true;
        }
    }

    /// Nothing is held any more; what was told until then is still to be taken.
    pub fn stop(&mut self) {
        locked(&self.shared).stop = true;
        if let Some(thread) = self.thread.take() {
            // It has no panic to tell of that its report would not show.
            let _ = thread.join();
        }
    }

    /// Waits until the rules are carried out, or it is known that they are not.
    pub fn settle(&self, patience: Duration) {
        let begun = Instant::now();
        let starting = || locked(&self.shared).report.trouble.as_deref() == Some(STARTING);
        while starting() && begun.elapsed() < patience {
            thread::sleep(TICK / 4);
        }
    }

    /// The calls that were told since the last time, in their order, and how many were not kept.
    #[must_use]
    pub fn take(&self) -> (Vec<(u32, Call)>, u64) {
        let mut shared = locked(&self.shared);
        let dropped = std::mem::take(&mut shared.dropped);
        shared.bytes = 0;
        (shared.calls.drain(..).collect(), dropped)
    }

    /// How it is.
    #[must_use]
    pub fn report(&self) -> Report {
        locked(&self.shared).report.clone()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}

const STARTING: &str = "the process that holds calls is being started";

fn locked(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread.
struct Keeping {
    shared: Arc<Mutex<Shared>>,
    current: Option<Holder>,
    next: Option<Holder>,
    /// Killed or told to end, and not waited for yet.
    dying: Vec<Holder>,
    /// Of processes that have ended.
    before: Counts,
    /// What they had not told.
    untold: u64,
    backoff: Duration,
    start_at: Instant,
    /// For a message.
    room: Vec<u8>,
}

/// A process that holds calls.
struct Holder {
    process: Child,
    socket: OwnedFd,
    plan: Arc<Plan>,
    generation: u32,
    started: Instant,
    /// What it has not marked, once it is ready.
    ready: Option<Vec<Missing>>,
    broken: Option<String>,
    counts: Counts,
    /// Cgroups of which it has not been told yet.
    untold: HashSet<String>,
    /// Since when an answer is due.
    asked: Option<Instant>,
    /// When it was asked last.
    asked_last: Instant,
    /// Since when it is to end by itself.
    retired: Option<Instant>,
}

impl Keeping {
    fn new(shared: Arc<Mutex<Shared>>) -> Self {
        Self {
            shared,
            current: None,
            next: None,
            dying: Vec::new(),
            before: Counts::default(),
            untold: 0,
            backoff: BACKOFF[0],
            start_at: Instant::now(),
            room: vec![0; MESSAGE_MAX],
        }
    }

    fn run(mut self) {
        loop {
            let (wanted, stop) = {
                let shared = locked(&self.shared);
                (shared.wanted.clone(), shared.stop)
            };
            if stop {
                break;
            }
            if let Some((plan, generation)) = wanted {
                self.want(&plan, generation);
            }
            self.inform();
            self.wait();
            self.listen();
            self.watch();
            self.bury();
            self.tell();
        }
        self.dismiss();
        let begun = Instant::now();
        self.bury();
        // Killed, it ends, unless the kernel itself is stuck; then nobody is helped by waiting.
        while !self.dying.is_empty() && begun.elapsed() < 2 * PATIENCE_WITH_LOAD {
            thread::sleep(TICK / 4);
            self.bury();
        }
        self.count();
    }

    /// Tells processes what else is known of cgroups: those that work for the plan that is wanted, whose questions these are.
    fn inform(&mut self) {
        let mut shared = locked(&self.shared);
        let changed = std::mem::take(&mut shared.changed);
        let behind = std::mem::take(&mut shared.behind);
        let Some((wanted, _)) = shared.wanted.clone() else {
            return;
        };
        let holders = [&mut self.current, &mut self.next].into_iter().flatten();
        for holder in holders.filter(|holder| holder.plan == wanted) {
            holder.untold.extend(changed.iter().cloned());
            if behind || holder.untold.len() > UNTOLD_MAX {
                let why = "the process that holds calls does not know of all cgroups";
                holder.broken = Some(why.into());
            }
            holder.inform(&shared.cgroups);
        }
    }

    /// Takes leave of those that have ended, and of what they said until then.
    fn bury(&mut self) {
        let Self {
            shared,
            before,
            dying,
            room,
            ..
        } = self;
        dying.retain_mut(|holder| {
            if holder.retired.is_some_and(|at| holder.is_late(at)) {
                let _ = holder.process.kill();
            }
            let ended = !matches!(holder.process.try_wait(), Ok(None));
            holder.listen(shared, room);
            if ended {
                *before = sum(*before, holder.counts);
            }
            !ended
        });
    }

    /// Starts a process for a plan that none works for.
    fn want(&mut self, plan: &Arc<Plan>, generation: u32) {
        if plan.rules.is_empty() {
            self.dismiss();
            return;
        }
        for holder in [&mut self.current, &mut self.next].into_iter().flatten() {
            if holder.plan == *plan {
                // The same rules under the same numbers.
                holder.generation = generation;
            }
        }
        if self
            .current
            .as_ref()
            .is_some_and(|holder| holder.plan == *plan)
        {
            if let Some(other) = self.next.take() {
                self.end(other);
            }
            return;
        }
        if self
            .next
            .as_ref()
            .is_some_and(|holder| holder.plan == *plan)
        {
            return;
        }
        if let Some(other) = self.next.take() {
            self.end(other);
        }
        if Instant::now() < self.start_at {
            return;
        }
        // A program in a folder that rules name is started once the one that holds calls has answered: if that hangs, this
        // thread has to be there to end it.
        let current = self.current.as_ref();
        if current.is_some_and(|holder| holder.asked.is_some_and(|at| at.elapsed() > 2 * TICK)) {
            return;
        }
        let cgroups = {
            let shared = locked(&self.shared);
            // What is known is for the questions of the plan that is wanted now, and another may be meanwhile.
            if !shared.wanted.as_ref().is_some_and(|(now, _)| now == plan) {
                return;
            }
            let known = shared.cgroups.iter();
            known
                .map(|(path, answers)| (path.clone(), *answers))
                .collect()
        };
        match Holder::start(Arc::clone(plan), cgroups, generation) {
            Ok(holder) => self.next = Some(holder),
            Err(why) => self.failed(why),
        }
    }

    fn failed(&mut self, why: String) {
        self.start_at = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF[1]);
        if self.current.is_none() {
            locked(&self.shared).report.trouble = Some(why);
        } else {
            tracing::error!(
                why,
                "rules that deny are not swapped; those before them go on"
            );
        }
    }

    /// For the next word of one of them, a tick at most.
    fn wait(&self) {
        let holders = || [&self.current, &self.next].into_iter().flatten();
        let mut fds: Vec<_> = holders()
            .map(|holder| PollFd::new(holder.socket.as_fd(), PollFlags::POLLIN))
            .collect();
        if fds.is_empty() {
            thread::sleep(TICK);
            return;
        }
        let tick = PollTimeout::try_from(TICK.as_millis()).unwrap_or(PollTimeout::ZERO);
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, tick);
    }

    fn listen(&mut self) {
        for holder in [&mut self.current, &mut self.next].into_iter().flatten() {
            holder.listen(&self.shared, &mut self.room);
        }
        let ready = self.next.as_ref().is_some_and(|next| next.ready.is_some());
        if ready && let Some(before) = self.current.take() {
            self.retire(before);
        }
        if ready {
            self.current = self.next.take();
        }
    }

    /// Ends those that do not answer, and starts others.
    fn watch(&mut self) {
        if let Some(mut holder) = self.next.take() {
            match holder.fault() {
                None => self.next = Some(holder),
                Some(why) => {
                    self.end(holder);
                    self.failed(why);
                }
            }
        }
        if let Some(mut holder) = self.current.take() {
            match holder.fault() {
                None => {
                    if holder.started.elapsed() > LASTED {
                        self.backoff = BACKOFF[0];
                    }
                    self.current = Some(holder);
                }
                Some(why) => {
                    self.end(holder);
                    tracing::error!(why, "nothing is denied until another process holds calls");
                    locked(&self.shared).report.restarts += 1;
                    self.failed(why);
                }
            }
        }
    }

    fn count(&mut self) {
        let mut counts = self.before;
        let holders = [&self.current, &self.next].into_iter().flatten();
        for holder in holders.chain(&self.dying) {
            counts = sum(counts, holder.counts);
        }
        let mut shared = locked(&self.shared);
        shared.dropped += counts.untold.saturating_sub(self.untold);
        self.untold = counts.untold.max(self.untold);
        shared.report.counts = counts;
    }

    fn tell(&mut self) {
        self.count();
        let mut shared = locked(&self.shared);
        let asked = shared
            .wanted
            .as_ref()
            .is_some_and(|(plan, _)| !plan.rules.is_empty());
        match &self.current {
            Some(holder) => {
                shared.report.trouble = None;
                // Those of an older plan have other numbers.
                let of_wanted = shared
                    .wanted
                    .as_ref()
                    .is_some_and(|(plan, _)| *plan == holder.plan);
                if of_wanted {
                    shared.report.missing = holder.ready.clone().unwrap_or_default();
                } else {
                    shared.report.trouble = Some(STARTING.into());
                }
            }
            None if !asked => {
                shared.report.trouble = None;
                shared.report.missing.clear();
            }
            None => {
                shared
                    .report
                    .trouble
                    .get_or_insert_with(|| STARTING.to_owned());
            }
        }
    }

    /// Ends all of them.
    fn dismiss(&mut self) {
        if let Some(holder) = self.next.take() {
            self.end(holder);
        }
        if let Some(holder) = self.current.take() {
            self.retire(holder);
        }
    }

    /// Lets a process end by itself: what waits for it may have begun before others were there, and is still answered.
    fn retire(&mut self, mut holder: Holder) {
        if shutdown(holder.socket.as_raw_fd(), Shutdown::Write).is_err() {
            self.end(holder);
            return;
        }
        holder.retired = Some(Instant::now());
        self.dying.push(holder);
    }

    /// Ends a process; what waits for it goes on.
    fn end(&mut self, mut holder: Holder) {
        // It may be gone already.
        let _ = holder.process.kill();
        // What it says until it has ended is taken then.
        self.dying.push(holder);
    }
}

impl Holder {
    fn start(
        plan: Arc<Plan>,
        cgroups: Vec<(String, wire::Answers)>,
        generation: u32,
    ) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| {
            format!("cannot start the process that holds calls: {error}")
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (own, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .map_err(|errno| failed(&errno))?;
        let begin = Start {
            plan: (*plan).clone(),
            cgroups,
        };
        let text = serde_json::to_vec(&begin).map_err(|error| failed(&error))?;
        // Without CAP_NET_ADMIN there is less room, and a gap says what could not be told.
        let _ = setsockopt(&other, sockopt::SndBufForce, &SAYS_BYTES);
        // A file: into a pipe this thread would have to wait for the other to read.
        let input =
            memfd_create("sumun-plan", MFdFlags::MFD_CLOEXEC).map_err(|errno| failed(&errno))?;
        let mut input = File::from(input);
        input.write_all(&text).map_err(|error| failed(&error))?;
        input.rewind().map_err(|error| failed(&error))?;
        let process = Command::new("/proc/self/exe")
            .arg0("sumun-agent")
            .arg("hold-calls")
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(other))
            .spawn()
            .map_err(|error| failed(&error))?;
        Ok(Self {
            process,
            socket: own,
            plan,
            generation,
            started: Instant::now(),
            ready: None,
            broken: None,
            counts: Counts::default(),
            untold: HashSet::new(),
            asked: None,
            asked_last: Instant::now(),
            retired: None,
        })
    }

    /// Tells it of cgroups, as far as it listens.
    fn inform(&mut self, cgroups: &Cgroups) {
        while !self.untold.is_empty() {
            let Some((message, changes)) = told(&self.untold, cgroups) else {
                return;
            };
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            if send(self.socket.as_raw_fd(), &message, flags).is_err() {
                // It has enough to read for now, or is gone, which is seen elsewhere.
                return;
            }
            for (path, _) in changes {
                self.untold.remove(&path);
            }
        }
    }

    /// Takes what it has said, and asks whether it answers.
    fn listen(&mut self, shared: &Mutex<Shared>, bytes: &mut [u8]) {
        loop {
            let len = match recv(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT) {
                // Closed: its end is seen elsewhere.
                Ok(0) => break,
                Ok(len) => len,
                Err(Errno::EINTR) => continue,
                Err(_) => break,
            };
            match serde_json::from_slice(&bytes[..len]) {
                // In either order: two threads say it.
                Ok(Said::Ready(missing) | Said::Marks(missing)) => self.ready = Some(missing),
                Ok(Said::Broken(why)) => self.broken = Some(why),
                Ok(Said::Pong(counts)) => {
                    self.counts = counts;
                    self.asked = None;
                }
                Ok(Said::Call(call)) => {
                    let mut shared = locked(shared);
                    if shared.calls.len() < QUEUE_MAX && shared.bytes < QUEUE_BYTES {
                        shared.bytes += call.size();
                        shared.calls.push_back((self.generation, *call));
                    } else if call.decision == super::wire::Decision::Denied {
                        shared.dropped += 1;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the process that holds calls is not understood")
                }
            }
        }
        let due = self.asked.is_none() && self.asked_last.elapsed() >= TICK;
        if self.ready.is_some() && due {
            self.asked_last = Instant::now();
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            if send(self.socket.as_raw_fd(), PING, flags).is_ok() {
                self.asked = Some(self.asked_last);
            }
        }
    }

    /// Whether it has not ended by itself for so long that it does not.
    fn is_late(&self, since: Instant) -> bool {
        let since = since.elapsed();
        let cannot = || {
            let stat = Stat::of(self.process.id()).ok().flatten();
            stat.is_some_and(|stat| stat.is_stopped() || stat.is_stuck())
        };
        since >= PATIENCE_WITH_LOAD || since >= PATIENCE && cannot()
    }

    /// Why it has to be replaced.
    fn fault(&mut self) -> Option<String> {
        if let Some(why) = self.broken.take() {
            return Some(why);
        }
        if let Ok(Some(status)) = self.process.try_wait() {
            return Some(format!("the process that holds calls has ended ({status})"));
        }
        let stat = || Stat::of(self.process.id()).ok().flatten();
        let Some(asked) = self.asked.map(|asked| asked.elapsed()) else {
            // Not yet ready.
            let stopped = self.ready.is_none() && stat().is_some_and(Stat::is_stopped);
            if stopped {
                return Some("the process that holds calls was stopped".into());
            }
            let late = self.ready.is_none() && self.started.elapsed() > READY_WITHIN;
            return late.then(|| {
                format!(
                    "the process that holds calls was not ready within {} s",
                    READY_WITHIN.as_secs()
                )
            });
        };
        if asked < PATIENCE {
            return None;
        }
        let stat = stat();
        if stat.is_some_and(Stat::is_stopped) {
            return Some("the process that holds calls was stopped, and has been ended".into());
        }
        (stat.is_some_and(Stat::is_stuck) || asked >= PATIENCE_WITH_LOAD).then(|| {
            format!(
                "the process that holds calls did not answer for {} ms, and has been ended",
                asked.as_millis()
            )
        })
    }
}

/// A message about some of these cgroups, and what it says; never longer than one may be, whatever they are called: a byte of a path
/// may take six. `None`: there is none.
fn told(untold: &HashSet<String>, cgroups: &Cgroups) -> Option<(Vec<u8>, Changes)> {
    let mut changes: Changes = Vec::new();
    let mut bytes = 0;
    for path in untold {
        bytes += path.len() + size_of::<wire::Answers>();
        changes.push((path.clone(), cgroups.get(path).copied()));
        if bytes >= CHANGES_BYTES {
            break;
        }
    }
    loop {
        let message = serde_json::to_vec(&changes).ok()?;
        if message.len() <= MESSAGE_MAX || changes.len() <= 1 {
            return Some((message, changes));
        }
        changes.truncate(changes.len() / 2);
    }
}

fn sum(one: Counts, other: Counts) -> Counts {
    Counts {
        held: one.held + other.held,
        denied: one.denied + other.denied,
        untold: one.untold + other.untold,
        overflows: one.overflows + other.overflows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_no_longer_than_one_may_be_whatever_cgroups_are_called() {
        let name = |number: usize| format!("/{number:03}{}", "\x01".repeat(1019));
        let mut untold: HashSet<String> = (0..100).map(name).collect();
        let cgroups = Cgroups::new();
        let mut messages = 0;
        while !untold.is_empty() {
            let (message, changes) = told(&untold, &cgroups).expect("a message");
            assert!(message.len() <= MESSAGE_MAX, "{}", message.len());
            assert!(!changes.is_empty());
            for (path, _) in changes {
                assert!(untold.remove(&path));
            }
            messages += 1;
        }
        assert!((10..=50).contains(&messages), "{messages}");
    }
}
