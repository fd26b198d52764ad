//! Reads what may take long, on a thread of its own: of which cgroup a thread is.
//!
//! Until Linux 6.8 who reads `/proc/PID/cgroup` waits for `cgroup_mutex` (`proc_cgroup_show`, kernel/cgroup/cgroup.c), which
//! whoever has cgroups of its own can keep busy. Who waits so cannot be killed, and no call may wait with it.

use std::cell::Cell;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// How long a call waits for it, at most. While one is being waited for in vain, no further call waits.
const WITHIN: Duration = Duration::from_millis(50);

/// The thread.
#[derive(Debug)]
pub(super) struct Aside {
    asks: SyncSender<u32>,
    said: Receiver<Option<String>>,
    /// It has not come back with an answer that nobody waits for any more.
    away: Cell<bool>,
}

impl Aside {
    /// Starts it. `begin` is done by the thread first, and has been when this returns.
    ///
    /// # Errors
    /// There is no thread, or why it could not begin.
    pub(super) fn start(
        begin: impl FnOnce() -> Result<(), String> + Send + 'static,
        read: impl Fn(u32) -> Option<String> + Send + 'static,
    ) -> Result<Self, String> {
        // One question at a time: neither ever waits to hand something over.
        let (asks, asked) = sync_channel::<u32>(1);
        let (says, said) = sync_channel(1);
        let (begins, begun) = sync_channel(1);
        thread::Builder::new()
            .name("cgroups".into())
            .spawn(move || {
                let done = begin();
                let failed = done.is_err();
                if begins.send(done).is_err() || failed {
                    return;
                }
                while let Ok(tid) = asked.recv() {
                    if says.send(read(tid)).is_err() {
                        return;
                    }
                }
            })
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        let ended = |_| "a thread has ended".to_owned();
        begun.recv().map_err(ended)??;
        Ok(Self {
            asks,
            said,
            away: Cell::new(false),
        })
    }

    /// The path of a thread's cgroup.
    ///
    /// # Errors
    /// It is not known, and why.
    pub(super) fn read(&self, tid: u32) -> Result<String, &'static str> {
        const BUSY: &str =
            "the kernel's cgroups are busy (before Linux 6.8 they are locked while one is read)";
        if self.away.get() && self.said.try_recv().is_err() {
            return Err(BUSY);
        }
        self.away.set(false);
        if self.asks.try_send(tid).is_err() {
            return Err("who reads it has ended");
        }
        match self.said.recv_timeout(WITHIN) {
            Ok(path) => {
                path.ok_or("its cgroup cannot be read, as one whose path is longer than a page")
            }
            Err(_) => {
                self.away.set(true);
                Err(BUSY)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn one_that_hangs_holds_up_one_call_for_a_moment() {
        let (lets, go) = sync_channel::<()>(1);
        let read = move |tid: u32| {
            if tid == 1 {
                let _ = go.recv();
            }
            (tid != 3).then(|| format!("/{tid}"))
        };
        let aside = Aside::start(|| Ok(()), read).expect("a thread");
        assert_eq!(aside.read(7).as_deref(), Ok("/7"));
        assert!(aside.read(3).is_err_and(|why| why.contains("page")));
        let begun = Instant::now();
        assert!(aside.read(1).is_err_and(|why| why.contains("busy")));
        assert!(begun.elapsed() >= WITHIN);
        let begun = Instant::now();
        for _ in 0..1000 {
            assert!(aside.read(7).is_err_and(|why| why.contains("busy")));
        }
        // None of them waits.
        assert!(begun.elapsed() < 20 * WITHIN);
        lets.send(()).expect("it waits");
        // The answer that comes late is nobody's.
        let begun = Instant::now();
        let path = loop {
            match aside.read(8) {
                Ok(path) => break path,
                Err(_) => assert!(begun.elapsed() < Duration::from_secs(10)),
            }
            thread::sleep(Duration::from_millis(1));
        };
        assert_eq!(path, "/8");
        assert!(Aside::start(|| Err("no".into()), |_| None).is_err_and(|why| why == "no"));
    }
}
