//! Killing late: after the event was judged in user space.
//!
//! The process is held by a descriptor first, then found to be the one that the record names, and only
//! then killed through the descriptor: another that was given its number meanwhile is never hit. Its start is
//! compared to the clock tick of `/proc` (ten milliseconds): a process that ends and whose
//! number is given to another within one tick would be taken for it.

use nix::errno::Errno;
use sumun_abi::event::process::Actor;
use sumun_proto::catalogue::family;
use sumun_proto::v1::Kind;

use super::guard::{self, Guarded, How};
use super::sharers::{self, Sharers};
use crate::kernel::folder;
use crate::kernel::pidfd::PidFd;
use crate::kernel::stat::Stat;

/// The process of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its number.
    pub pid: u32,
    /// The thread that acted.
    pub tid: u32,
    /// Its start, ns since boot.
    pub start_ns: u64,
    /// Others may share its open files, and then they are killed too.
    pub with_sharers: bool,
    /// How it is to be killed.
    pub how: How,
}

/// A process that `/proc` does not show as it is: held by a descriptor that was opened before the kernel's own list had the
/// process with this start.
#[derive(Debug)]
pub struct Proven {
    /// Its number.
    pub pid: u32,
    /// Its start, ns since boot.
    pub start_ns: u64,
    /// It.
    pub held: PidFd,
    /// The name of its program's file, by the kernel's records.
    pub program: String,
}

impl Proven {
    /// True if it is this one.
    #[must_use]
    pub fn is(&self, target: &Target) -> bool {
        (self.pid, self.start_ns) == (target.pid, target.start_ns)
    }

    /// Kills it. What `/proc` says of it is not to be had, so of what may not be killed more is left out than else: all that
    /// could be sshd or, unless the rule is `forced`, a service. A thread of the kernel has no program, and is not among these.
    fn kill(&self, forced: bool) -> Done {
        match self.pid {
            1 => return Done::Guarded(Guarded::Init),
            own if own == std::process::id() => return Done::Guarded(Guarded::Agent),
            _ => {}
        }
        let name = self.program.as_bytes();
        let name = name.strip_suffix(guard::DELETED).unwrap_or(name);
        if guard::is_name_of_sshd(name) || !forced && guard::is_name_of_service(name) {
            return Done::Failed(format!(
                "/proc/{} is not to be seen: whether it listens for ssh, or runs the host or its containers, is not known, so it is not killed",
                self.pid
            ));
        }
        if self.held.has_ended() == Ok(true) {
            return Done::Gone;
        }
        match self.held.kill() {
            Ok(()) => Done::Killed {
                with: Vec::new(),
                remark: Some("/proc does not show it: found by the kernel's own list".into()),
            },
            Err(Errno::ESRCH) => Done::Gone,
            Err(errno) => Done::Failed(refused(self.pid, errno)),
        }
    }
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// The signal was taken.
    Killed {
        /// Other processes that shared its files and were killed with it.
        with: Vec<u32>,
        /// Who was not, and why.
        remark: Option<String>,
    },
    /// It had ended, or its number is another's.
    Gone,
    /// No policy may kill it.
    Guarded(Guarded),
    /// Why it could not be killed, and what to do.
    Failed(String),
}

impl Target {
    /// The process of an event, for a rule that is `forced` or not.
    #[must_use]
    pub fn of(kind: Kind, actor: &Actor, forced: bool) -> Self {
        Self {
            pid: actor.pid,
            tid: actor.tid,
            start_ns: actor.start_ns,
            // Exec gives it files of its own, and a child has opened nothing yet.
            with_sharers: actor.files_shared != 0 && family(kind) != "process",
            how: How {
                starting: kind == Kind::Exec,
                forced,
            },
        }
    }
}

/// Kills a process, if it is still there and may be killed. `proven`: it, if it was found that `/proc` does not show it.
#[must_use]
pub fn kill(target: &Target, proven: Option<&Proven>) -> Done {
    let held = match (hold(target), proven) {
        (Ok(held), _) => held,
        (Err(Done::Gone | Done::Failed(_)), Some(proven)) => {
            return proven.kill(target.how.forced);
        }
        (Err(done), _) => return done,
    };
    let sharers = if target.with_sharers {
        sharers::find(target.pid, target.tid)
    } else {
        Sharers::default()
    };
    if let Err(errno) = held.kill() {
        return match errno {
            Errno::ESRCH => Done::Gone,
            errno => Done::Failed(refused(target.pid, errno)),
        };
    }
    let mut remark = sharers.remark;
    let mut with = Vec::new();
    for (pid, held) in sharers.found {
        match held.kill() {
            Ok(()) => with.push(pid),
            Err(Errno::ESRCH) => {}
            Err(errno) => remark = Some(format!("shares its files: {}", refused(pid, errno))),
        }
    }
    Done::Killed { with, remark }
}

/// Whether a process is still there, for one that is not to be acted on again.
#[must_use]
pub fn look(target: &Target) -> Done {
    match hold(target) {
        Ok(_) => Done::Failed(
            "this record was dealt with before the agent was restarted, or is older than the rules that are loaded now: it is not acted on"
                .into(),
        ),
        Err(done) => done,
    }
}

fn refused(pid: u32, errno: Errno) -> String {
    format!("cannot kill process {pid} (pidfd_send_signal): {errno}; give the agent CAP_KILL")
}

/// The very process, if it has not ended and may be killed.
fn hold(target: &Target) -> Result<PidFd, Done> {
    let pid = target.pid;
    let held = PidFd::open(pid).map_err(|errno| match errno {
        // The number is free, or that of a thread.
        Errno::ESRCH | Errno::EINVAL | Errno::ENOENT => Done::Gone,
        errno => Done::Failed(format!(
            "cannot open process {pid} (pidfd_open): {errno}; the agent may need more descriptors (LimitNOFILE)"
        )),
    })?;
    let stat = match Stat::of(pid) {
        Ok(Some(stat)) => stat,
        Ok(None) => {
            return Err(match held.has_ended() {
                Ok(false) => Done::Failed(format!(
                    "process {pid} lives, and has no folder in /proc: whether it is the one of the record is not known"
                )),
                _ => Done::Gone,
            });
        }
        Err(error) if folder::is_covered(&error) => {
            return Err(Done::Failed(format!(
                "a mount lies over /proc/{pid}: whether it is the process of the record is not known"
            )));
        }
        Err(error) => {
            return Err(Done::Failed(format!(
                "cannot read /proc/{pid}/stat: {error}; the agent needs the host's /proc"
            )));
        }
    };
    if !stat.began_at(target.start_ns) {
        return Err(Done::Gone);
    }
    match guard::of(pid, stat, target.how) {
        Ok(None) => {}
        Ok(Some(guarded)) => return Err(Done::Guarded(guarded)),
        Err(unknown) => return Err(Done::Failed(unknown)),
    }
    // Last: what was read under its number until here was its own.
    match held.has_ended() {
        Ok(false) => Ok(held),
        Ok(true) => Err(Done::Gone),
        Err(errno) => Err(Done::Failed(format!(
            "cannot ask whether process {pid} has ended (poll): {errno}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::stat::tests::start_ns;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Child, Command, Stdio};

    fn child() -> Child {
        Command::new("/bin/sleep")
            .arg("60")
            .stdin(Stdio::null())
            .spawn()
            .expect("a child")
    }

    fn target(pid: u32, start_ns: u64) -> Target {
        Target {
            pid,
            tid: pid,
            start_ns,
            with_sharers: false,
            how: How::default(),
        }
    }

    fn alone() -> Done {
        Done::Killed {
            with: Vec::new(),
            remark: None,
        }
    }

    #[test]
    fn the_very_process_is_killed_and_then_it_is_gone() {
        let mut child = child();
        let target = target(child.id(), start_ns(child.id()));
        assert_eq!(kill(&target, None), alone());
        let status = child.wait().expect("its end");
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        assert_eq!(kill(&target, None), Done::Gone);
    }

    #[test]
    fn one_that_has_ended_but_was_not_waited_for_is_gone() {
        let mut child = child();
        let target = target(child.id(), start_ns(child.id()));
        child.kill().expect("a signal");
        while !PidFd::open(child.id())
            .and_then(|held| held.has_ended())
            .expect("a zombie has a number")
        {
            std::thread::yield_now();
        }
        assert_eq!(kill(&target, None), Done::Gone);
        child.wait().expect("its end");
    }

    #[test]
    fn another_process_with_its_number_is_left_alone() {
        let mut child = child();
        let start_ns = start_ns(child.id());
        for other in [start_ns - 1, start_ns + 10_000_000, 0] {
            assert_eq!(kill(&target(child.id(), other), None), Done::Gone);
        }
        assert!(child.try_wait().expect("a child").is_none(), "it lives");
        child.kill().expect("a signal");
        child.wait().expect("its end");
        // The number of a thread is no process.
        let tid = std::thread::spawn(|| nix::unistd::gettid().as_raw().cast_unsigned());
        assert_eq!(
            kill(&target(tid.join().expect("a thread"), 0), None),
            Done::Gone
        );
    }

    #[test]
    fn one_that_proc_does_not_show_is_killed_by_what_proves_it() {
        let mut child = child();
        let pid = child.id();
        let start_ns = start_ns(pid);
        let other = start_ns + 10_000_000;
        let proven = |pid, start_ns, program: &str| Proven {
            pid,
            start_ns,
            held: PidFd::open(pid).expect("it lives"),
            program: program.into(),
        };
        // As if its folder were another's.
        let hidden = target(pid, other);
        assert!(!proven(pid, start_ns, "sleep").is(&hidden));
        for sshd in ["sshd", "sshd (deleted)", "sshd-session"] {
            let done = kill(&hidden, Some(&proven(pid, other, sshd)));
            assert!(matches!(done, Done::Failed(_)), "{done:?}");
        }
        assert!(child.try_wait().expect("a child").is_none(), "it lives");
        let one = proven(pid, other, "sleep");
        assert!(one.is(&hidden));
        let Done::Killed { with, remark } = kill(&hidden, Some(&one)) else {
            panic!("it is not killed");
        };
        assert!(with.is_empty() && remark.is_some());
        child.wait().expect("its end");
        assert_eq!(kill(&hidden, Some(&one)), Done::Gone);
        // Nobody is killed for being hidden that else is not.
        let own = std::process::id();
        let done = kill(&target(own, 1), Some(&proven(own, 1, "sleep")));
        assert_eq!(done, Done::Guarded(Guarded::Agent));
        let done = kill(&target(1, 1), Some(&proven(1, 1, "sleep")));
        assert_eq!(done, Done::Guarded(Guarded::Init));
    }

    #[test]
    fn what_is_guarded_is_left_alone() {
        let own = std::process::id();
        assert_eq!(
            kill(&target(own, start_ns(own)), None),
            Done::Guarded(Guarded::Agent)
        );
        // The same check stands before every signal: here it is not sent even with the right start.
        assert_eq!(look(&target(1, start_ns(1))), Done::Guarded(Guarded::Init));
    }
}
