//! The pieces of work that are measured, and the clock they are measured with.

use std::ffi::{CStr, CString};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use nix::fcntl::OFlag;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use super::report::Sample;
use crate::{elf, raw};

/// Times that one phase repeats each batch; the median counts.
pub const BATCHES: u32 = 9;

/// What is done over and over.
#[derive(Debug)]
pub struct Work {
    unmatched: CString,
    matched: CString,
    program: CString,
    args: Vec<CString>,
    listener: TcpListener,
    address: SocketAddr,
}

impl Work {
    /// With a file in a directory that no rule asks for, and one in a directory that one does.
    ///
    /// # Errors
    /// Its files cannot be written, or it cannot listen on loopback.
    pub fn new(unmatched: &Path, matched: &Path) -> Result<Self> {
        let name = |dir: &Path, name: &str| -> Result<CString> {
            Ok(CString::new(dir.join(name).to_str().context("UTF-8")?)?)
        };
        std::fs::write(unmatched.join("unmatched"), "x")?;
        std::fs::write(matched.join("matched"), "x")?;
        elf::write(&unmatched.join("program"))?;
        let program = name(unmatched, "program")?;
        let mut args = vec![program.clone()];
        args.extend((0..10).map(|_| c"argument".to_owned()));
        let listener = TcpListener::bind("127.0.0.1:0")?;
        Ok(Self {
            unmatched: name(unmatched, "unmatched")?,
            matched: name(matched, "matched")?,
            program,
            args,
            address: listener.local_addr()?,
            listener,
        })
    }

    /// Opens and closes the file that no rule asks for.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(&self) -> Result<()> {
        opened(&self.unmatched)
    }

    /// Opens and closes the file that a rule asks for.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open_matched(&self) -> Result<()> {
        opened(&self.matched)
    }

    /// A fork, an exec with ten short arguments, an exit.
    ///
    /// # Errors
    /// The program does not run.
    pub fn exec(&self) -> Result<()> {
        let child = raw::fork_exec(&self.program, &self.args)?;
        let status = waitpid(Pid::from_raw(child), None)?;
        ensure!(
            matches!(status, WaitStatus::Exited(_, 11)),
            "the program did not run: {status:?}"
        );
        Ok(())
    }

    /// A TCP connection over loopback, both ends.
    ///
    /// # Errors
    /// It is not made.
    pub fn connect(&self) -> Result<()> {
        let stream = TcpStream::connect(self.address)?;
        let (_accepted, _) = self.listener.accept()?;
        // No TIME_WAIT: the ports are free at once.
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&stream, sockopt::Linger, &linger)?;
        Ok(())
    }
}

fn opened(file: &CStr) -> Result<()> {
    drop(nix::fcntl::open(file, OFlag::O_RDONLY, Mode::empty())?);
    Ok(())
}

/// Runs this in a thread of its own, which stays, with what it forks, on the last processor,
/// where its neighbours disturb least.
///
/// A new thread, since what a program that was started before has of the kernel's audit was
/// decided when it began.
///
/// # Errors
/// That of `work`, or there is no processor.
pub fn measured<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let handle = scope.spawn(|| {
            let allowed = sched_getaffinity(Pid::from_raw(0))?;
            let last = (0..CpuSet::count())
                .rev()
                .find(|cpu| allowed.is_set(*cpu) == Ok(true))
                .context("no processor to run on")?;
            let mut set = CpuSet::new();
            set.set(last)?;
            sched_setaffinity(Pid::from_raw(0), &set)?;
            work()
        });
        handle
            .join()
            .map_err(|_| anyhow!("the measuring thread panicked"))?
    })
}

/// Nanoseconds of processor time of one piece: the median of [`BATCHES`] batches of so many.
///
/// # Errors
/// A piece fails.
pub fn per_piece(count: u32, mut piece: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut batches = Vec::new();
    for _ in 0..BATCHES {
        let begun = cpu_ns()?;
        for _ in 0..count {
            piece()?;
        }
        batches.push((cpu_ns()? - begun) / f64::from(count));
    }
    Ok(Sample::of(batches).median)
}

/// Processor time of this thread and of the children it has waited for, ns. What
/// a program in the kernel costs is in it; that others want the processor too is not.
fn cpu_ns() -> Result<f64> {
    let own = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    let children = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let (user, system) = (children.user_time(), children.system_time());
    #[expect(
        clippy::cast_precision_loss,
        reason = "a benchmark ends long before 2^53 ns"
    )]
    let ns = |seconds: i64, rest: i64| seconds as f64 * 1e9 + rest as f64;
    Ok(ns(own.tv_sec(), own.tv_nsec())
        + ns(user.tv_sec(), user.tv_usec() * 1000)
        + ns(system.tv_sec(), system.tv_usec() * 1000))
}

/// A share of a sum.
#[expect(
    clippy::cast_precision_loss,
    reason = "sums of a benchmark stay far below 2^53"
)]
#[must_use]
pub fn per(sum: u64, count: u64) -> f64 {
    sum as f64 / count.max(1) as f64
}
