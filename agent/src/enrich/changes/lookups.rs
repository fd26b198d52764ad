//! Questions to file systems, asked by a thread of their own: whoever reads records never waits for a disk, a program or another host.
//!
//! An answer is waited for a moment. If it does not come, the thread is left to wait by itself, what it was asked about is not asked again until it has
//! answered, and another thread goes on with the rest.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::kernel::handles::FsId;

/// An answer is waited for so long.
const PATIENCE: Duration = Duration::from_millis(50);
/// In one cycle for so long in all; the last may take its own time beyond.
const IN_A_CYCLE: Duration = Duration::from_millis(100);
/// What did not answer in time is not asked for so long, even if it has answered since.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// At most one line of log in this time.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// Threads that wait for what does not answer, at most: with so many nothing is asked any more until one of them has ended.
const STUCK_MAX: usize = 8;

/// Whom a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// A file system, by its handles.
    FileSystem(FsId),
    /// Whatever lies where a path leads to: whose it is is only known when it has answered.
    Path,
}

type Job = Box<dyn FnOnce() + Send>;

/// Asks.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    worker: Option<SyncSender<Job>>,
    stuck: Vec<Stuck>,
    spent: Duration,
    complained: Option<Instant>,
}

/// A question that was not answered in time.
#[derive(Debug)]
struct Stuck {
    of: Of,
    since: Instant,
    /// Held by the thread while it waits.
    waits: Weak<()>,
}

impl Stuck {
    fn is_there(&self) -> bool {
        self.waits.strong_count() > 0 || self.since.elapsed() < AGAIN_AFTER
    }
}

impl Lookups {
    /// A cycle begins: there is time again.
    pub(super) fn begin(&mut self) {
        self.spent = Duration::ZERO;
        self.stuck.retain(Stuck::is_there);
    }

    /// Questions that have not been answered.
    pub(super) fn stuck(&self) -> usize {
        self.stuck.len()
    }

    /// Has this done by the other thread; `None` if that takes too long, or is not tried because the last time it did.
    pub(super) fn ask<T: Send + 'static>(
        &mut self,
        of: Of,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let barred = self.stuck.len() >= STUCK_MAX || self.stuck.iter().any(|one| one.of == of);
        if barred || self.spent >= IN_A_CYCLE {
            return None;
        }
        let begun = Instant::now();
        let (answer, answered) = sync_channel(1);
        let held = Arc::new(());
        let waits = Arc::downgrade(&held);
        let job: Job = Box::new(move || {
            // Nobody may be there any more to hear it.
            let _ = answer.send(work());
            drop(held);
        });
        if self.worker.is_none() {
            self.worker = worker();
        }
        // It has no other: it is only asked when it has answered.
        self.worker.as_ref()?.send(job).ok()?;
        let found = answered.recv_timeout(PATIENCE);
        self.spent += begun.elapsed();
        match found {
            Ok(found) => return Some(found),
            Err(RecvTimeoutError::Timeout) => {
                let since = Instant::now();
                if self
                    .complained
                    .is_none_or(|last| last.elapsed() >= COMPLAIN_EVERY)
                {
                    tracing::warn!(
                        ?of,
                        "a file system does not say in time where a folder is: it is not asked until it does"
                    );
                    self.complained = Some(since);
                }
                self.stuck.push(Stuck { of, since, waits });
            }
            Err(RecvTimeoutError::Disconnected) => {}
        }
        // It ends when it has answered.
        self.worker = None;
        None
    }
}

fn worker() -> Option<SyncSender<Job>> {
    let (ask, asked): (_, Receiver<Job>) = sync_channel(1);
    let started = thread::Builder::new()
        .name("lookups".into())
        .spawn(move || asked.into_iter().for_each(|job| job()));
    match started {
        Ok(_) => Some(ask),
        Err(error) => {
            tracing::warn!(%error, "cannot start a thread that asks where folders are");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_answer_is_waited_for_once_and_holds_up_nobody_else() {
        let mut lookups = Lookups::default();
        let (hung, other) = (Of::FileSystem([1; 8]), Of::FileSystem([2; 8]));
        assert_eq!(lookups.ask(other, || 5), Some(5));
        let (end, wait) = sync_channel::<()>(0);
        let begun = Instant::now();
        let found = lookups.ask(hung, move || wait.recv().is_ok());
        assert_eq!(found, None);
        assert!(begun.elapsed() >= PATIENCE);
        assert_eq!(lookups.stuck(), 1);
        // Not again, however often, and at once; the others go on.
        let begun = Instant::now();
        for _ in 0..1000 {
            assert_eq!(lookups.ask(hung, || 6), None);
        }
        assert!(begun.elapsed() < PATIENCE);
        lookups.begin();
        assert_eq!(lookups.ask(other, || 7), Some(7));
        thread::sleep(AGAIN_AFTER);
        lookups.begin();
        assert_eq!((lookups.ask(hung, || 8), lookups.stuck()), (None, 1));
        // When it has answered it is asked again.
        drop(end);
        let begun = Instant::now();
        while lookups.ask(hung, || 9) != Some(9) {
            assert!(begun.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(10));
            lookups.begin();
        }
        assert_eq!(lookups.stuck(), 0);
    }

    #[test]
    fn a_cycle_waits_so_long_and_only_so_many_threads_hang() {
        let mut lookups = Lookups {
            spent: IN_A_CYCLE,
            ..Lookups::default()
        };
        assert_eq!(lookups.ask(Of::Path, || 1), None);
        lookups.begin();
        assert_eq!(lookups.ask(Of::Path, || 2), Some(2));
        let mut ends = Vec::new();
        for number in 0..=STUCK_MAX {
            let (end, wait) = sync_channel::<()>(0);
            lookups.begin();
            let of = Of::FileSystem([number as u8; 8]);
            assert_eq!(lookups.ask(of, move || wait.recv().is_ok()), None);
            ends.push(end);
        }
        lookups.begin();
        assert_eq!(lookups.stuck(), STUCK_MAX);
        assert_eq!(lookups.ask(Of::Path, || 3), None);
    }
}
