//! The spool as a stream sees it: its file operations are made on threads that
//! may wait for a disk. Going there and back costs more than what is done there, so a lane is only looked
//! at when there may be something new.

use futures::future::select_all;
use sumun_proto::v1::{Delivery, Lane};
use tokio::sync::watch;

use crate::spool::{Error, Spool};

/// Some lanes of the spool, for one stream.
pub(super) struct Outbox {
    spool: Spool,
    lanes: Vec<Watched>,
}

struct Watched {
    lane: Lane,
    /// Its highest synced sequence.
    synced: watch::Receiver<u64>,
    /// There was nothing to send, or too much unanswered, when it was last looked at: what is
    /// synced or answered from then on changes that, nothing else does.
    at_rest: bool,
}

impl Outbox {
    /// Everything of these lanes that is not answered will be handed out (again).
    ///
    /// # Errors
    /// When the spool has no such lane.
    pub(super) fn new(spool: &Spool, lanes: &[Lane]) -> Result<Self, Error> {
        let mut watched = Vec::new();
        for lane in lanes {
            spool.rewind(*lane)?;
            watched.push(Watched {
                lane: *lane,
                synced: spool.subscribe(*lane).ok_or(Error::NoLane)?,
                at_rest: false,
            });
        }
        Ok(Self {
            spool: spool.clone(),
            lanes: watched,
        })
    }

    /// The next batch of a lane that is synced and was not handed out yet; `None`
    /// when there is none, or as many are out as the spool allows.
    pub(super) async fn next(&mut self, lane: Lane) -> Result<Option<Delivery>, Error> {
        let Some(watched) = self.watched(lane) else {
            return Err(Error::NoLane);
        };
        if watched.at_rest && !watched.synced.has_changed().unwrap_or(true) {
            return Ok(None);
        }
        // Seen before it is looked at: what is synced meanwhile counts as a change.
        watched.synced.borrow_and_update();
        watched.at_rest = false;
        let next = self.blocking(move |spool| spool.next(lane)).await?;
        if let Some(watched) = self.watched(lane) {
            watched.at_rest = next.is_none();
        }
        Ok(next)
    }

    /// The collector has everything of this epoch and lane up to `number`.
    pub(super) async fn acknowledge(
        &mut self,
        lane: Lane,
        epoch: u64,
        number: u64,
    ) -> Result<(), Error> {
        self.answered(lane);
        self.blocking(move |spool| spool.ack(lane, epoch, number))
            .await
    }

    /// The collector will never take this batch.
    pub(super) async fn refuse(
        &mut self,
        lane: Lane,
        epoch: u64,
        number: u64,
        reason: String,
    ) -> Result<(), Error> {
        self.answered(lane);
        self.blocking(move |spool| spool.reject(lane, epoch, number, &reason))
            .await
    }

    /// Returns when a lane has more than when [`Outbox::next`] last looked at it.
    pub(super) async fn changed(&mut self) {
        let lanes = self.lanes.iter_mut().map(|watched| {
            Box::pin(async {
                // The sending half lives as long as the spool, which is held here.
                let _ = watched.synced.changed().await;
                // Waiting for the change has seen it.
                watched.at_rest = false;
            })
        });
        let _ = select_all(lanes).await;
    }

    /// There may be room for more of a lane.
    fn answered(&mut self, lane: Lane) {
        if let Some(watched) = self.watched(lane) {
            watched.at_rest = false;
        }
    }

    fn watched(&mut self, lane: Lane) -> Option<&mut Watched> {
        self.lanes.iter_mut().find(|watched| watched.lane == lane)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Spool) -> T + Send + 'static,
    ) -> T {
        let spool = self.spool.clone();
        match tokio::task::spawn_blocking(move || work(&spool)).await {
            Ok(done) => done,
            // Never cancelled, so it panicked; the panic goes on here.
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    }
}
