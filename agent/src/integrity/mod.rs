//! Whether the kernel shows to everybody what it knows: looked at now and then, while a rule asks for it.
//!
//! Whoever has taken over a kernel can lie to this, too. What is found here is what known rootkits and the tricks without
//! one leave behind: a process that records or the task iterator tell of and `/proc` does not show, a module that one list
//! has and another has not, a function that leads elsewhere. Each finding is looked at twice, a while apart, so that what
//! begins or ends meanwhile is none; what cannot be looked at on this host is said.
//!
//! A thread of its own reads, a little at a time. It owns nothing of the agent: the pipeline tells it who lives
//! ([`Ask`]), and confirms by the task iterator whoever it does not find.

mod hooks;
mod module;
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Between the two looks.
const SETTLE: Duration = Duration::from_secs(1);
/// How long the thread waits for what the pipeline says of those it does not find.
const CONFIRM_WITHIN: Duration = Duration::from_secs(60);
/// Findings of one look that are told at most; the rest is counted.
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
}

impl Check {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::HiddenProcess,
        Self::HiddenModule,
        Self::FunctionHook,
        Self::Kprobe,
    ];

    /// As `integrity.check` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::HiddenProcess => "hidden_process",
            Self::HiddenModule => "hidden_module",
            Self::FunctionHook => "function_hook",
            Self::Kprobe => "kprobe",
        }
    }
}

/// Something that does not agree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Found by.
    pub check: Check,
    /// What it is about: a pid, the name of a module or function.
    pub object: String,
    /// The process, of [`Check::HiddenProcess`].
    pub process: Option<Process>,
    /// In what way.
    pub detail: String,
}

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
    /// What was found, sorted; at most [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// How much more there was.
    pub more: usize,
    /// What could not be looked at, and why.
    pub blind: BTreeMap<Check, String>,
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
    /// What cannot be looked at, in one line; empty if nothing.
    #[must_use]
    pub fn blind(&self) -> String {
        let blind = self.report.blind.iter();
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
    },
    /// Of those that were not found, these still live.
    Alive(Vec<Process>),
}

/// What the thread says.
#[derive(Debug)]
pub enum Answer {
    /// These are not to be seen; who of them lives?
    Missing(Vec<Process>),
    /// The look is over.
    Done(Report),
}

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
    Looking,
}

/// When to look, and how far it is.
#[derive(Debug)]
pub struct Watch {
    every: Option<Duration>,
    looker: Option<Looker>,
    state: State,
    due: Instant,
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
    Done(Report),
    /// The thread is not there any more, or cannot be started.
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
        }
    }

    /// Between two looks; `None` = there are none.
    #[must_use]
    pub fn every(&self) -> Option<Duration> {
        self.every
    }

    /// Called at every cycle. `asked`: some rule asks for what is found; without one the thread ends, and the next
    /// look is at once when there is one again.
    pub fn turn(&mut self, asked: bool) -> Turn {
        let Some(every) = self.every.filter(|_| asked) else {
            if self.looker.take().is_some() {
                self.state = State::Waiting;
            }
            self.due = Instant::now();
            return Turn::Nothing;
        };
        if self.state == State::Waiting {
            return match self.due <= Instant::now() {
                true => Turn::Begin,
                false => Turn::Nothing,
            };
        }
        let Some(looker) = &self.looker else {
            self.state = State::Waiting;
            return Turn::Nothing;
        };
        match looker.answer.try_recv() {
            Ok(Answer::Missing(processes)) => Turn::Confirm(processes),
            Ok(Answer::Done(report)) => {
                self.state = State::Waiting;
                self.due = Instant::now() + every;
                Turn::Done(report)
            }
            Err(TryRecvError::Empty) => Turn::Nothing,
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
        self.tell(Ask::Look { processes, modules });
        self.state = State::Looking;
        Ok(())
    }

    /// Who lives of those that were not found.
    pub fn alive(&mut self, processes: Vec<Process>) {
        self.tell(Ask::Alive(processes));
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
                let Ask::Look { processes, modules } = ask else {
                    continue;
                };
                let report = look(&processes, &modules, &say, &asked);
                if say.send(Answer::Done(report)).is_err() {
                    return;
                }
            }
        })?;
    Ok(Looker { ask, answer })
}

/// The objects of a check that are found, with what is wrong with them.
type Found = BTreeMap<String, String>;

/// One look at everything but processes: each check that could be made.
fn things(modules: &BTreeSet<String>) -> Vec<(Check, Result<Found, String>)> {
    let named = |hooks: Vec<hooks::Hooked>| -> Found {
        let named = hooks.into_iter().map(|hook| (hook.function, hook.detail));
        named.collect()
    };
    let of_modules = module::Shown::look().map(|shown| {
        let hidden = shown.hidden(modules).into_iter();
        hidden.map(|(name, why)| (name, why.to_owned())).collect()
    });
    vec![
        (Check::HiddenModule, of_modules),
        (Check::FunctionHook, hooks::redirected().map(named)),
        (Check::Kprobe, hooks::probed().map(named)),
    ]
}

/// Looks twice. Of a module that is removed meanwhile only the pipeline knows: it leaves out those ([`Finding::needs_module`]).
fn look(
    processes: &[Process],
    modules: &BTreeSet<String>,
    say: &SyncSender<Answer>,
    asked: &Receiver<Ask>,
) -> Report {
    let begun = Instant::now();
    let mut report = Report::default();
    let mut findings = BTreeSet::new();
    let missing = match process::look(processes) {
        Ok(found) => found.into_iter().map(|(process, _)| process).collect(),
        Err(reason) => {
            report.blind.insert(Check::HiddenProcess, reason);
            Vec::new()
        }
    };
    let before = things(modules);
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
            Ok(Ask::Alive(alive)) => Ok(alive),
            Ok(Ask::Look { .. }) | Err(RecvTimeoutError::Timeout) => {
                Err("who lives could not be confirmed in time".to_owned())
            }
            Err(RecvTimeoutError::Disconnected) => Ok(Vec::new()),
        };
        waited += asking.elapsed();
        // Whoever lives still, and is still not to be seen.
        match alive.and_then(|alive| again(&alive)) {
            Ok(found) => findings.extend(found),
            Err(reason) => {
                report.blind.insert(Check::HiddenProcess, reason);
            }
        }
    }
    let after = match before.iter().any(suspected) {
        true => things(modules),
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
        let Some((_, Ok(still))) = still else {
            continue;
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
    report.more = findings.len().saturating_sub(FINDINGS_MAX);
    report.findings = findings.into_iter().take(FINDINGS_MAX).collect();
    report.took = begun.elapsed().saturating_sub(waited);
    report
}

/// The second look at processes: those of which the kernel has just said that they live.
fn again(alive: &[Process]) -> Result<Vec<Finding>, String> {
    Ok(process::seen(alive)?
        .into_iter()
        .map(|(process, wrong)| Finding {
            check: Check::HiddenProcess,
            object: process.pid.to_string(),
            process: Some(process),
            detail: wrong.text().to_owned(),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

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
            .look(vec![own, gone, own], BTreeSet::new())
            .expect("a thread");
        let begun = Instant::now();
        loop {
            match watch.turn(true) {
                Turn::Confirm(missing) => {
                    assert_eq!(missing, [gone]);
                    watch.alive(Vec::new());
                }
                Turn::Done(report) => {
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
}
