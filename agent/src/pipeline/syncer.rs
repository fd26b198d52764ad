//! Makes what the pipeline wrote durable, on a thread of its own: reading goes on
//! while the disk works, and what came meanwhile shares the next sync.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::spool::Spool;

/// Pause after a sync that failed; the spool has logged why.
const TROUBLE_PAUSE: Duration = Duration::from_millis(500);

/// The syncing thread. Dropping it ends the thread after a last sync.
#[derive(Debug)]
pub struct Syncer {
    /// Holds one wish at most: a second one while the first waits asks for nothing more.
    wish: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no room for a thread.
    pub fn start(spool: Spool) -> std::io::Result<Self> {
        let (wish, wishes) = sync_channel(1);
        let thread = thread::Builder::new()
            .name("syncer".into())
            .spawn(move || run(&spool, &wishes))?;
        Ok(Self {
            wish: Some(wish),
            thread: Some(thread),
        })
    }

    /// Something was written.
    pub fn written(&self) {
        if let Some(wish) = &self.wish {
            // Full means that a sync is about to begin, which covers this too.
            let _ = wish.try_send(());
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.wish = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(spool: &Spool, wishes: &Receiver<()>) {
    let mut failed = false;
    loop {
        let wish = if failed {
            thread::sleep(TROUBLE_PAUSE);
            !matches!(
                wishes.try_recv(),
                Err(std::sync::mpsc::TryRecvError::Disconnected)
            )
        } else {
            wishes.recv().is_ok()
        };
        failed = spool.sync().is_err();
        if !wish {
            return;
        }
    }
}
