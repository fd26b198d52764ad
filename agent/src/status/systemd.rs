//! What systemd is told, when it started the agent; nothing otherwise.

use std::sync::Arc;

use sd_notify::NotifyState;
use tracing::warn;

use super::Status;

/// The agent collects events.
pub fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("collecting")]);
}

/// Policies are being loaded again; [`ready`] says that it is over.
pub fn reloading() {
    // Since systemd 253 the time is part of the protocol (sd_notify(3), RELOADING=1).
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The agent is stopping.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Feeds the watchdog for as long as the pipeline goes round: an agent that
/// hangs is restarted. Before it begins to, systemd's limit of a start holds, which
/// is longer: the verifier alone may take its time. Returns at once when there is no watchdog.
pub async fn watchdog(status: Arc<Status>) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut tick = tokio::time::interval(limit / 3);
    let mut before = None;
    loop {
        tick.tick().await;
        let turns = status.progress.turns();
        let starting = !status.progress.attached();
        if starting || before != Some(turns) {
            before = Some(turns);
            tell(&[NotifyState::Watchdog]);
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "failed to notify systemd");
    }
}
