//! The process that holds calls: a child of the agent with nothing but the rules that deny, so that it answers
//! also while the agent is busy or stopped, and can be ended, which lets go what waits, when it does not.
//!
//! One thread answers, and opens nothing but files of `/proc` for which no lock is held long; another reads of which cgroup a thread is
//! (`aside`); another keeps the marks, which may have to wait for a disk. Neither has a descriptor of the group.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::parent_id;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{MsgFlags, recv, send};
use sumun_policy::asking::Questions;
use sumun_proto::Host;

use super::aside::Aside;
use super::judge::Judge;
use super::marks::{Marker, Marks, Named};
use super::opener;
use super::wire::{
    Cgroups, Changes, Counts, Decision, MESSAGE_MAX, Missing, PING, Plan, PlanRule, Said, Start,
};
use crate::enrich::host;
use crate::kernel::canary;
use crate::kernel::fanotify::{Group, OVERFLOW};
use crate::kernel::rights;

/// Calls that are answered before the agent is, at most.
const AT_ONCE: u32 = 64;
/// Messages of the agent that are taken before calls are answered again, at most.
const HEARD_AT_ONCE: u32 = 4;
/// To answer what waits at the end, at most.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// The agent is told that calls are held at the latest after this, however slow the disks are.
const READY_ANYWAY: Duration = Duration::from_secs(2);
/// Between two looks at what is named, at least.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Looking takes this part of the time at most.
const LOOK_SHARE: u32 = 20;
/// Number of the kernel's first cgroup namespace, which shows paths from the root (`PROC_CGROUP_INIT_INO`,
/// include/linux/proc_ns.h).
const FIRST_CGROUPS: u64 = 0xEFFF_FFFB;

/// Runs until the agent ends or closes its half of the socket, which is standard output.
///
/// # Errors
/// What it was given by standard input is no plan.
pub fn run() -> anyhow::Result<ExitCode> {
    // With the agent, also when this process is stopped: nothing may wait for what nobody watches.
    set_pdeathsig(Signal::SIGKILL).context("cannot ask to be ended with the agent (prctl)")?;
    // What ends the agent, from a terminal or of all its cgroup, ends this process with it, and not before.
    let all = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
    all.into_iter()
        .collect::<SigSet>()
        .thread_block()
        .context("cannot block signals")?;
    let _ = nix::unistd::setpgid(nix::unistd::Pid::this(), nix::unistd::Pid::from_raw(0));
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .context("cannot read the plan")?;
    let start: Start = serde_json::from_str(&text).context("cannot read the plan")?;
    drop(text);
    let Start { plan, cgroups } = start;
    if parent_id() != plan.agent {
        anyhow::bail!("this is a part of the agent, which starts it by itself");
    }
    let socket = std::io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .context("cannot take the socket")?;
    let socket = Arc::new(socket);
    let cgroups = cgroups.into_iter().collect();
    match host::go_to_files().and_then(|()| hold(&plan, cgroups, &socket)) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(why) => {
            tell(socket.as_fd(), &Said::Broken(why));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The hierarchy whose cgroups say whose processes are, once this process sees their whole paths.
///
/// # Errors
/// It does not, and why.
fn hierarchy(plan: &Plan) -> Result<u32, String> {
    let hierarchy = plan
        .hierarchy
        .ok_or("the hierarchy of cgroups is not known to the agent")?;
    let is_first = || {
        let own = std::fs::metadata("/proc/self/ns/cgroup");
        own.map(|own| own.ino() == FIRST_CGROUPS)
    };
    let failed = |error: &dyn std::fmt::Display| {
        format!(
            "this cgroup namespace shows a part of the host's cgroups only, and another cannot be entered (/proc/1/ns/cgroup): {error}"
        )
    };
    if !is_first().map_err(|error| failed(&error))? {
        let first = File::open("/proc/1/ns/cgroup").map_err(|error| failed(&error))?;
        setns(first, CloneFlags::CLONE_NEWCGROUP).map_err(|errno| failed(&errno))?;
        if !is_first().map_err(|error| failed(&error))? {
            return Err(failed(&"it is not the host's"));
        }
    }
    Ok(hierarchy)
}

fn hold(plan: &Plan, cgroups: Cgroups, socket: &Arc<OwnedFd>) -> Result<(), String> {
    canary::try_out()?;
    let mut questions = Questions::default();
    let rules = plan
        .rules
        .iter()
        .map(|rule| PlanRule::compile(rule, &mut questions))
        .collect::<Result<Vec<_>, _>>()?;
    let hierarchy = hierarchy(plan);
    let asks = rules.iter().any(|rule| rule.asks);
    let group =
        Group::new().map_err(|errno| format!("cannot make a group (fanotify_init): {errno}"))?;
    let group = Arc::new(group);
    // All threads that follow read what is others', by names and of `/proc`, and nothing else takes a right: marks on files and folders
    // and answers are the group's, which is made.
    rights::keep(&[rights::DAC_READ_SEARCH, rights::SYS_PTRACE]).map_err(|error| {
        format!("cannot give up the rights that are not needed any more (capset): {error}")
    })?;
    let named = Arc::new(Mutex::new(Arc::new(Named::new())));
    let no_thread = |error| format!("cannot start a thread: {error}");
    let number = group.as_fd().as_raw_fd();
    let own_table =
        |errno: Errno| format!("cannot have a table of descriptors apart (unshare): {errno}");
    let aside = match hierarchy {
        // Before anything is marked.
        Ok(hierarchy) if asks => Ok(Aside::start(
            move || without(number).map_err(own_table),
            move |tid| opener::cgroup(tid, hierarchy),
        )?),
        Ok(_) => Err("no rule asks for it".to_owned()),
        Err(why) => Err(why),
    };
    let marker = Marker::start(Arc::clone(&group)).map_err(no_thread)?;
    let marks = Marks::new(marker, &rules, Arc::clone(&named));
    let (id, name) = plan.host.clone();
    let judge = Judge::new(rules, Host { id, name }, aside, plan.agent);
    let progress = Arc::new(Progress::default());
    let (teller, looked) = (Arc::clone(socket), Arc::clone(&progress));
    thread::Builder::new()
        .name("marks".into())
        .spawn(move || match without(number) {
            Ok(()) => keep(marks, &looked, &teller),
            Err(errno) => {
                tell(teller.as_fd(), &Said::Broken(own_table(errno)));
            }
        })
        .map_err(no_thread)?;
    let rules = plan.rules.as_slice();
    let known = Known {
        judge,
        named,
        cgroups,
    };
    answer(&group, socket.as_fd(), known, |begun| {
        progress.be_ready(begun, rules, socket.as_fd())
    });
    Ok(())
}

/// From now on this thread has descriptors of its own, and not this one. Nothing is marked yet, so no file of others is
/// among them.
fn without(group: RawFd) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_FILES)?;
    nix::unistd::close(group)
}

/// How far the first look has come.
#[derive(Default)]
struct Progress {
    /// Rules of the plan that have been looked at.
    done: AtomicUsize,
    ready: AtomicBool,
}

impl Progress {
    /// A file system that does not answer holds up nothing but the rules that name files there, and those behind them. True
    /// once the agent has been told.
    fn be_ready(&self, begun: Instant, rules: &[PlanRule], socket: BorrowedFd<'_>) -> bool {
        if begun.elapsed() < READY_ANYWAY {
            return self.ready.load(Ordering::Relaxed);
        }
        if self.ready.swap(true, Ordering::Relaxed) {
            return true;
        }
        let done = self.done.load(Ordering::Relaxed);
        let missing = rules.iter().skip(done).map(|rule| Missing {
            rule: rule.rule,
            kind: rule.kind,
            reason: "what it names has not been looked at yet: a file system is slow to answer"
                .into(),
        });
        tell(socket, &Said::Ready(missing.collect()))
    }
}

/// Looks what is named, again and again.
fn keep(mut marks: Marks, progress: &Progress, socket: &OwnedFd) {
    let mut before = None;
    loop {
        let begun = Instant::now();
        let missing = marks.renew(&progress.done);
        if before.as_ref() != Some(&missing) {
            let said = match progress.ready.swap(true, Ordering::Relaxed) {
                false => Said::Ready(missing.clone()),
                true => Said::Marks(missing.clone()),
            };
            // What could not be told is told at the next look.
            if tell(socket.as_fd(), &said) {
                before = Some(missing);
            }
        }
        thread::sleep(LOOK_EVERY.max(begun.elapsed() * LOOK_SHARE));
    }
}

/// What calls are judged by.
struct Known {
    judge: Judge,
    named: Arc<Mutex<Arc<Named>>>,
    /// As many as the agent keeps ([`crate::enforce::scope`]).
    cgroups: Cgroups,
}

/// Answers every call that waits, until the agent is gone.
fn answer(
    group: &Group,
    socket: BorrowedFd<'_>,
    mut known: Known,
    be_ready: impl Fn(Instant) -> bool,
) {
    let (mut counts, begun) = (Counts::default(), Instant::now());
    let mut room = vec![0; MESSAGE_MAX];
    loop {
        let patience = match be_ready(begun) {
            true => PollTimeout::NONE,
            false => PollTimeout::from(250_u8),
        };
        let mut fds = [
            PollFd::new(group.as_fd(), PollFlags::POLLIN),
            PollFd::new(socket, PollFlags::POLLIN),
        ];
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, patience);
        // First what the agent has to say: calls are judged by it.
        let goes_on = heard(socket, &counts, &mut known.cgroups, &mut room);
        for _ in 0..AT_ONCE {
            if !waits(group) {
                break;
            }
            // The kernel could not give us the file, as when another holds a lease of it, and has denied the call: nobody
            // knows whose. Or one that waited was killed just now; that cannot be told apart.
            if !matches!(one(group, socket, &known, &mut counts), Ok(true)) {
                counts.denied += 1;
                counts.untold += 1;
            }
        }
        if !goes_on {
            break;
        }
    }
    // What has begun is still answered; what begins now is for others.
    let _ = group.flush();
    let begun = Instant::now();
    while waits(group) && begun.elapsed() < LAST_ANSWERS {
        let _ = one(group, socket, &known, &mut counts);
    }
    // The agent wants to know of those that it could not be told of.
    tell(socket, &Said::Pong(counts));
}

/// Whether a call waits.
fn waits(group: &Group) -> bool {
    let mut fds = [PollFd::new(group.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Answers one call; false if there was none.
fn one(
    group: &Group,
    socket: BorrowedFd<'_>,
    known: &Known,
    counts: &mut Counts,
) -> nix::Result<bool> {
    let Some(event) = group.next()? else {
        return Ok(false);
    };
    if event.mask & OVERFLOW != 0 {
        counts.overflows += 1;
        return Ok(true);
    }
    let Some(file) = &event.file else {
        return Ok(true);
    };
    let named = known.named.lock();
    let all = Arc::clone(&named.unwrap_or_else(PoisonError::into_inner));
    let named = |id| all.get(&id).cloned().unwrap_or_default();
    let call = known
        .judge
        .judge(&known.cgroups, (event.mask, event.tid), file, named);
    counts.held += 1;
    let denied = call
        .as_ref()
        .is_some_and(|call| call.decision == Decision::Denied);
    // First told, then answered: what follows from the answer finds the agent informed.
    if let Some(call) = call
        && !tell(socket, &Said::Call(Box::new(call)))
    {
        counts.untold += u64::from(denied);
    }
    counts.denied += u64::from(denied);
    // A call that was killed meanwhile does not wait for it.
    let _ = group.answer(event, !denied);
    Ok(true)
}

/// Answers the agent, and takes some of what it tells of cgroups; false when it is gone.
fn heard(socket: BorrowedFd<'_>, counts: &Counts, cgroups: &mut Cgroups, room: &mut [u8]) -> bool {
    for _ in 0..HEARD_AT_ONCE {
        match recv(socket.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return false,
            Ok(len) if room[..len] == *PING => {
                tell(socket, &Said::Pong(*counts));
            }
            Ok(len) => match serde_json::from_slice::<Changes>(&room[..len]) {
                Ok(changes) => {
                    for (path, answers) in changes {
                        match answers {
                            Some(answers) => cgroups.insert(path, answers),
                            None => cgroups.remove(&path),
                        };
                    }
                }
                Err(error) => {
                    let why = format!("what the agent tells of cgroups is not understood: {error}");
                    tell(socket, &Said::Broken(why));
                }
            },
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return true,
            Err(_) => return false,
        }
    }
    true
}

/// Sends a message, if there is room: nobody waits for the agent.
fn tell(socket: BorrowedFd<'_>, said: &Said) -> bool {
    let Ok(bytes) = serde_json::to_vec(said) else {
        return false;
    };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    bytes.len() <= MESSAGE_MAX && send(socket.as_raw_fd(), &bytes, flags).is_ok()
}
