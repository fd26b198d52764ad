//! Whether the kernel shows to everybody what it knows: looked at now and then, while a rule asks for it.
//!
//! Whoever has taken over a kernel can lie to this, too. What is found here is what known rootkits and the tricks without
//! one leave behind: a process that records or the task iterator tell of and `/proc` does not show, a module that one list
//! has and another has not, a function or an entry of a table that leads elsewhere. Each finding is looked at twice, a while apart, so that what
//! begins or ends meanwhile is none; what cannot be looked at on this host is said.
//!
//! A thread of its own reads all of it, the task iterator too, which is asked only if somebody was not found. It owns nothing
//! of the agent: the pipeline tells it who lives ([`Ask`]). Nothing that somebody has mounted over a process's folder is
//! opened, and a look that hangs all the same is given up and said.

mod hooks;
mod module;
mod process;
pub mod tables;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use sumun_abi::{event::process::Exec, plain};

use crate::kernel::memory::Memory;
use crate::kernel::pidfd::PidFd;
use crate::kernel::tasks::Tasks;

/// Between the two looks.
const SETTLE: Duration = Duration::from_secs(1);
/// How long the thread waits for what the pipeline says of those it does not find.
const CONFIRM_WITHIN: Duration = Duration::from_secs(60);
/// How long a look may take. One that takes longer waits for a file system that does not answer: no second is begun beside it.
const LOOK_WITHIN: Duration = Duration::from_secs(180);
/// Findings of one check in one look that are told one by one at most; of the rest one finding says how many they are.
pub const FINDINGS_MAX: usize = 64;

/// A process, as the agent's tree has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process {
    /// Its number in the initial pid namespace.
    pub pid: u32,
    /// Its start, ns since boot.
    pub start_ns: u64,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// Processes that `/proc` does not show.
    HiddenProcess,
    /// Modules that one list has and another has not.
    HiddenModule,
    /// Functions that ftrace leads elsewhere.
    FunctionHook,
    /// Probes on functions that rootkits probe.
    Kprobe,
    /// Tables of system calls of which an entry leads elsewhere.
    SyscallTable,
    /// Functions of `/proc` that lead elsewhere.
    ProcHook,
}

impl Check {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::HiddenProcess,
        Self::HiddenModule,
        Self::FunctionHook,
        Self::Kprobe,
        Self::SyscallTable,
        Self::ProcHook,
    ];

    /// As `integrity.check` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::HiddenProcess => "hidden_process",
            Self::HiddenModule => "hidden_module",
            Self::FunctionHook => "function_hook",
            Self::Kprobe => "kprobe",
            Self::SyscallTable => "syscall_table",
            Self::ProcHook => "proc_hook",
        }
    }
}

/// Something that does not agree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Found by.
    pub check: Check,
    /// What it is about: a pid, the name of a module or function, an entry of a table.
    pub object: String,
    /// The process, of [`Check::HiddenProcess`].
    pub process: Option<Process>,
    /// In what way.
    pub detail: String,
}

/// The object of a finding that stands for those that are not told one by one.
const MORE: &str = "and more";

impl Finding {
    /// True if it stands and falls with the module having been loaded and not removed.
    #[must_use]
    pub fn needs_module(&self) -> bool {
        self.check == Check::HiddenModule && self.detail == module::GONE
    }
}

/// What a look has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What was found, sorted; at most [`FINDINGS_MAX`] of a check, and one more for the rest.
    pub findings: Vec<Finding>,
    /// How many have no finding of their own.
    pub more: usize,
    /// What could not be looked at, and why.
    pub blind: BTreeMap<Check, String>,
    /// What was looked at, but for a part, and why.
    pub partly: BTreeMap<Check, String>,
    /// How long it took, without the time between the two looks.
    pub took: Duration,
}

/// How it stands with it, for the status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Between two looks; `None` = there are none.
    pub every: Option<Duration>,
    /// Some rule asks for what is found.
    pub asked: bool,
    /// When the last look ended, wall clock, ns since the Unix epoch; 0 = there was none.
    pub looked_ns: i64,
    /// What it has come to.
    pub report: Report,
}

impl Standing {
    /// What cannot be looked at, or not wholly, in one line; empty if nothing.
    #[must_use]
    pub fn blind(&self) -> String {
        let blind = self.report.blind.iter().chain(&self.report.partly);
        let each: Vec<_> = blind
            .map(|(check, reason)| format!("{}: {reason}", check.name()))
            .collect();
        each.join("; ")
    }
}

/// What the thread is told.
#[derive(Debug)]
pub enum Ask {
    /// Look, with this known of processes and modules.
    Look {
        /// Who lives.
        processes: Vec<Process>,
        /// Modules that were loaded since the agent runs, and not removed.
        modules: BTreeSet<String>,
        /// What reads the kernel's memory, or why there is nothing.
        memory: Result<Box<Memory>, String>,
    },
    /// Of those that were not found, these may still live, and the kernel's own list of who does; why there is none.
    Alive(Vec<Process>, Result<Tasks, String>),
}

/// What the thread says.
#[derive(Debug)]
pub enum Answer {
    /// These are not to be seen; who of them lives?
    Missing(Vec<Process>),
    /// The look is over.
    Done(Report, Held),
}

/// Processes that were found hidden, each held by the descriptor that proves it: it was opened before the kernel's own list was
/// read, the list had the process with its start, and the descriptor's has not ended since.
pub type Held = Vec<(Process, PidFd)>;

/// The thread, while there is one.
#[derive(Debug)]
struct Looker {
    ask: SyncSender<Ask>,
    answer: Receiver<Answer>,
}

/// Where a look is.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Looking {
        since: Instant,
    },
    /// Given up; the thread is still there.
    Hanging,
}

/// When to look, and how far it is.
#[derive(Debug)]
pub struct Watch {
    every: Option<Duration>,
    looker: Option<Looker>,
    state: State,
    due: Instant,
    /// How long a look may take.
    within: Duration,
}

/// What the pipeline has to do.
#[derive(Debug)]
pub enum Turn {
    /// Nothing.
    Nothing,
    /// Say who lives: [`Watch::look`].
    Begin,
    /// Say who of these lives: [`Watch::alive`].
    Confirm(Vec<Process>),
    /// Take what was found.
    Done(Report, Held),
    /// The thread is not there any more, hangs, or cannot be started.
    Failed(String),
}

impl Watch {
    /// Looks so often; `None` = never.
    #[must_use]
    pub fn new(every: Option<Duration>) -> Self {
        Self {
            every,
            looker: None,
            state: State::Waiting,
            due: Instant::now(),
            within: LOOK_WITHIN,
        }
    }

    /// Between two looks; `None` = there are none.
    #[must_use]
    pub fn every(&self) -> Option<Duration> {
        self.every
    }

    /// Called at every cycle. `asked`: some rule asks for what is found; without one the thread ends after its look, and the
    /// next is at once when there is one again.
    pub fn turn(&mut self, asked: bool) -> Turn {
        let Some(every) = self.every else {
            return Turn::Nothing;
        };
        if self.state == State::Waiting {
            if !asked {
                self.looker = None;
                self.due = Instant::now();
            }
            return match asked && self.due <= Instant::now() {
                true => Turn::Begin,
                false => Turn::Nothing,
            };
        }
        let Some(looker) = &self.looker else {
            self.state = State::Waiting;
            return Turn::Nothing;
        };
        let hangs = self.state == State::Hanging;
        match looker.answer.try_recv() {
            // It is told nothing, and ends its look without an answer.
            Ok(Answer::Missing(_)) if hangs => Turn::Nothing,
            Ok(Answer::Missing(processes)) => Turn::Confirm(processes),
            // What it says is old.
            Ok(Answer::Done(..)) if hangs => {
                self.state = State::Waiting;
                self.due = Instant::now();
                Turn::Nothing
            }
            Ok(Answer::Done(report, held)) => {
                self.state = State::Waiting;
                self.due = Instant::now() + every;
                Turn::Done(report, held)
            }
            Err(TryRecvError::Empty) => match self.state {
                State::Looking { since } if since.elapsed() > self.within => {
                    self.state = State::Hanging;
                    Turn::Failed(format!(
                        "a look did not end within {} seconds: a file system that it reads does not answer",
                        self.within.as_secs()
                    ))
                }
                _ => Turn::Nothing,
            },
            Err(TryRecvError::Disconnected) => {
                self.looker = None;
                self.state = State::Waiting;
                self.due = Instant::now() + every;
                Turn::Failed("the thread that looks has ended; see the log".into())
            }
        }
    }

    /// Begins a look.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn look(
        &mut self,
        processes: Vec<Process>,
        modules: BTreeSet<String>,
        memory: Result<Memory, String>,
    ) -> Result<(), String> {
        if self.looker.is_none() {
            match start() {
                Ok(looker) => self.looker = Some(looker),
                Err(error) => {
                    self.due = Instant::now() + self.every.unwrap_or(CONFIRM_WITHIN);
                    return Err(format!("the thread that looks cannot be started: {error}"));
                }
            }
        }
        self.tell(Ask::Look {
            processes,
            modules,
            memory: memory.map(Box::new),
        });
        self.state = State::Looking {
            since: Instant::now(),
        };
        Ok(())
    }

    /// Who may live of those that were not found, and the kernel's own list, which decides; why there is none.
    pub fn alive(&mut self, processes: Vec<Process>, tasks: Result<Tasks, String>) {
        self.tell(Ask::Alive(processes, tasks));
    }

    /// The thread waits for it, or has ended, which the next turn sees.
    fn tell(&self, ask: Ask) {
        if let Some(looker) = &self.looker {
            let _ = looker.ask.try_send(ask);
        }
    }
}

fn start() -> io::Result<Looker> {
    // One question and one answer at a time.
    let (ask, asked) = sync_channel(1);
    let (say, answer) = sync_channel(1);
    thread::Builder::new()
        .name("integrity".into())
        .spawn(move || {
            while let Ok(ask) = asked.recv() {
                // A late word on a look that was given up.
                let Ask::Look {
                    processes,
                    modules,
                    mut memory,
                } = ask
                else {
                    continue;
                };
                let mut read = || things(&modules, &mut memory);
                let (mut report, held) = look(&processes, &mut read, &say, &asked);
                if let Ok(memory) = &memory
                    && !report.blind.contains_key(&Check::ProcHook)
                {
                    let unknown = tables::partly(memory);
                    let unknown = unknown.map(|reason| (Check::ProcHook, reason));
                    report.partly.extend(unknown);
                }
                if say.send(Answer::Done(report, held)).is_err() {
                    return;
                }
            }
        })?;
    Ok(Looker { ask, answer })
}

/// The objects of a check that are found, with what is wrong with them.
pub type Found = BTreeMap<String, String>;

/// One look at everything but processes: each check that could be made.
fn things(
    modules: &BTreeSet<String>,
    memory: &mut Result<Box<Memory>, String>,
) -> Vec<(Check, Result<Found, String>)> {
    let named = |hooks: Vec<hooks::Hooked>| -> Found {
        let named = hooks.into_iter().map(|hook| (hook.function, hook.detail));
        named.collect()
    };
    let of_modules = module::Shown::look().map(|shown| {
        let hidden = shown.hidden(modules).into_iter();
        hidden.map(|(name, why)| (name, why.to_owned())).collect()
    });
    let mut of_memory = |read: fn(&mut Memory) -> Result<Found, String>| match memory {
        Ok(memory) => read(memory),
        Err(reason) => Err(reason.clone()),
    };
    vec![
        (Check::SyscallTable, of_memory(tables::calls)),
        (Check::ProcHook, of_memory(tables::of_proc)),
        (Check::HiddenModule, of_modules),
        (Check::FunctionHook, hooks::redirected().map(named)),
        (Check::Kprobe, hooks::probed().map(named)),
    ]
}

/// Looks twice. Of a module that is removed meanwhile only the pipeline knows: it leaves out those ([`Finding::needs_module`]).
fn look(
    processes: &[Process],
    things: &mut dyn FnMut() -> Vec<(Check, Result<Found, String>)>,
    say: &SyncSender<Answer>,
    asked: &Receiver<Ask>,
) -> (Report, Held) {
    let begun = Instant::now();
    let mut report = Report::default();
    let mut findings = BTreeSet::new();
    let mut held = Held::new();
    let missing = match process::look(processes) {
        Ok(seen) => {
            let unknown = seen.unknown.map(|reason| (Check::HiddenProcess, reason));
            report.partly.extend(unknown);
            if seen.over {
                findings.insert(Finding {
                    check: Check::HiddenProcess,
                    object: "/proc".into(),
                    process: None,
                    detail: "something is mounted over the host's /proc: people see that".into(),
                });
            }
            seen.wrong.into_iter().map(|(process, _)| process).collect()
        }
        Err(reason) => {
            report.blind.insert(Check::HiddenProcess, reason);
            Vec::new()
        }
    };
    let before = things();
    let suspected = |(_, found): &(Check, Result<Found, String>)| {
        found.as_ref().is_ok_and(|found| !found.is_empty())
    };
    let mut waited = Duration::ZERO;
    if !missing.is_empty() || before.iter().any(suspected) {
        thread::sleep(SETTLE);
        waited += SETTLE;
    }
    if !missing.is_empty() && say.send(Answer::Missing(missing)).is_ok() {
        let asking = Instant::now();
        let alive = match asked.recv_timeout(CONFIRM_WITHIN) {
            Ok(Ask::Alive(missing, tasks)) => Ok((missing, tasks)),
            Ok(Ask::Look { .. }) | Err(RecvTimeoutError::Timeout) => {
                Err("who lives could not be confirmed in time".to_owned())
            }
            // Nobody listens any more.
            Err(RecvTimeoutError::Disconnected) => return (report, held),
        };
        waited += asking.elapsed();
        // Whoever lives still, and is still not to be seen.
        match alive.and_then(|(missing, tasks)| again(&missing, tasks)) {
            Ok((found, proven, unknown)) => {
                findings.extend(found);
                held = proven;
                let unknown = unknown.map(|reason| (Check::HiddenProcess, reason));
                report.partly.extend(unknown);
            }
            Err(reason) => {
                report.blind.insert(Check::HiddenProcess, reason);
            }
        }
    }
    let after = match before.iter().any(suspected) {
        true => things(),
        false => Vec::new(),
    };
    for (check, found) in before {
        let found = match found {
            Ok(found) => found,
            Err(reason) => {
                report.blind.insert(check, reason);
                continue;
            }
        };
        let still = after.iter().find(|(other, _)| *other == check);
        let still = match still {
            Some((_, Ok(still))) => still,
            // It was looked at once: that is no finding, and not nothing.
            Some((_, Err(reason))) => {
                report.blind.insert(check, reason.clone());
                continue;
            }
            None => continue,
        };
        for (object, detail) in found {
            if still.contains_key(&object) {
                findings.insert(Finding {
                    check,
                    object,
                    process: None,
                    detail,
                });
            }
        }
    }
    (report.findings, report.more) = bounded(findings);
    report.took = begun.elapsed().saturating_sub(waited);
    (report, held)
}

/// So many of each check that none pushes out another's; and of the rest how many there are.
fn bounded(findings: BTreeSet<Finding>) -> (Vec<Finding>, usize) {
    let mut told = Vec::new();
    let mut counts: BTreeMap<Check, usize> = BTreeMap::new();
    for finding in findings {
        let count = counts.entry(finding.check).or_default();
        *count += 1;
        if *count <= FINDINGS_MAX {
            told.push(finding);
        }
    }
    let mut more = 0;
    for (check, count) in counts {
        let rest = count.saturating_sub(FINDINGS_MAX);
        if rest > 0 {
            told.push(Finding {
                check,
                object: MORE.into(),
                process: None,
                detail: format!("{rest} more were found in this look, beside the {FINDINGS_MAX} that are told one by one"),
            });
            more += rest;
        }
    }
    told.sort();
    (told, more)
}

/// The second look at processes: those of which the kernel says that they live, and what is wrong with each. What could not
/// be looked at is the last of the three.
fn again(
    missing: &[Process],
    tasks: Result<Tasks, String>,
) -> Result<(Vec<Finding>, Held, Option<String>), String> {
    if missing.is_empty() {
        return Ok((Vec::new(), Held::new(), None));
    }
    // Before the list is read: whoever it has is then the one that is held.
    let first = missing.iter().take(FINDINGS_MAX);
    let held: Held = first
        .filter_map(|process| Some((*process, PidFd::open(process.pid).ok()?)))
        .collect();
    let wanted: HashSet<Process> = missing.iter().copied().collect();
    let mut living = Vec::new();
    let not_confirmed = |reason: &dyn std::fmt::Display| {
        format!("processes that /proc does not show cannot be confirmed: {reason}")
    };
    tasks
        .map_err(|reason| not_confirmed(&reason))?
        .each(|record| {
            let task = plain::read::<Exec>(record).map(|exec| Process {
                pid: exec.actor.pid,
                start_ns: exec.actor.start_ns,
            });
            living.extend(task.filter(|task| wanted.contains(task)));
        })
        .map_err(|error| not_confirmed(&error))?;
    let seen = process::look(&living)?;
    let wrong: HashSet<Process> = seen.wrong.iter().map(|(process, _)| *process).collect();
    let held = held
        .into_iter()
        .filter(|(process, held)| wrong.contains(process) && held.has_ended() == Ok(false))
        .collect();
    let findings = seen
        .wrong
        .into_iter()
        .map(|(process, wrong)| Finding {
            check: Check::HiddenProcess,
            object: process.pid.to_string(),
            process: Some(process),
            detail: wrong.text().to_owned(),
        })
        .collect();
    Ok((findings, held, seen.unknown))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> Result<Memory, String> {
        Err("no kernel side".into())
    }

    #[test]
    fn a_look_is_begun_only_when_it_is_asked_for() {
        let mut never = Watch::new(None);
        assert!(matches!(never.turn(true), Turn::Nothing));
        let mut watch = Watch::new(Some(Duration::from_hours(1)));
        assert!(matches!(watch.turn(false), Turn::Nothing));
        assert!(watch.looker.is_none());
        assert!(matches!(watch.turn(true), Turn::Begin));
        // Somebody who has ended is not to be seen, and does not live.
        let mut child = std::process::Command::new("/bin/true")
            .spawn()
            .expect("a child");
        child.wait().expect("its end");
        let gone = Process {
            pid: child.id(),
            start_ns: 1,
        };
        let own = Process {
            pid: std::process::id(),
            start_ns: 1,
        };
        watch
            .look(vec![own, gone, own], BTreeSet::new(), none())
            .expect("a thread");
        let begun = Instant::now();
        let mut confirmed = false;
        loop {
            match watch.turn(true) {
                Turn::Confirm(missing) => {
                    assert_eq!(missing, [gone]);
                    confirmed = true;
                    watch.alive(missing, Err("no iterator".into()));
                }
                Turn::Done(report, held) => {
                    let blind = report.blind.get(&Check::HiddenProcess);
                    let blind = blind.expect("nobody has confirmed");
                    match confirmed {
                        true => assert!(blind.contains("no iterator"), "{blind}"),
                        false => {
                            eprintln!("SKIPPED a_look_is_begun_only_when_it_is_asked_for: {blind}")
                        }
                    }
                    assert!(held.is_empty());
                    let process = |finding: &Finding| finding.process.is_some();
                    assert!(!report.findings.iter().any(process), "{report:?}");
                    break;
                }
                Turn::Nothing => thread::sleep(Duration::from_millis(5)),
                other => panic!("{other:?}"),
            }
            assert!(begun.elapsed() < Duration::from_secs(60));
        }
        assert!(matches!(watch.turn(true), Turn::Nothing));
        assert!(matches!(watch.turn(false), Turn::Nothing));
        assert!(watch.looker.is_none());
        assert!(matches!(watch.turn(true), Turn::Begin));
    }

    #[test]
    fn a_look_that_hangs_is_said_and_no_second_is_begun() {
        let (ask, asked) = sync_channel(1);
        let (say, answer) = sync_channel(1);
        let mut watch = Watch::new(Some(Duration::from_hours(1)));
        watch.looker = Some(Looker { ask, answer });
        watch.within = Duration::from_millis(50);
        let looks = watch.look(Vec::new(), BTreeSet::new(), none());
        looks.expect("a thread");
        assert!(matches!(asked.try_recv(), Ok(Ask::Look { .. })));
        assert!(matches!(watch.turn(true), Turn::Nothing));
        thread::sleep(Duration::from_millis(60));
        let Turn::Failed(reason) = watch.turn(true) else {
            panic!("it is not said");
        };
        assert!(reason.contains("did not end"), "{reason}");
        // Nor while no rule asks, nor when one asks again.
        for asks in [true, false, true] {
            assert!(matches!(watch.turn(asks), Turn::Nothing));
            assert!(watch.looker.is_some());
        }
        // It goes on at last: what it says is old, and the next look is at once.
        say.try_send(Answer::Done(Report::default(), Held::new()))
            .expect("room");
        assert!(matches!(watch.turn(true), Turn::Nothing));
        assert!(matches!(watch.turn(true), Turn::Begin));
    }

    #[test]
    fn no_check_pushes_out_another_and_the_rest_is_told() {
        let finding = |check, number: usize| Finding {
            check,
            object: number.to_string(),
            process: None,
            detail: String::new(),
        };
        let many = (0..FINDINGS_MAX + 7).map(|number| finding(Check::HiddenProcess, number));
        let all = many.chain([finding(Check::HiddenModule, 0)]).collect();
        let (told, more) = bounded(all);
        assert_eq!((told.len(), more), (FINDINGS_MAX + 2, 7));
        assert!(told.iter().any(|one| one.check == Check::HiddenModule));
        let rest = told
            .iter()
            .find(|one| one.object == MORE)
            .expect("the rest");
        assert!(rest.detail.starts_with("7 more"), "{rest:?}");
    }
}
