//! The spool as a stream sees it: its file operations are made on threads that
//! may wait for a disk.

use futures::future::select_all;
use sumun_proto::v1::{Delivery, Lane};
use tokio::sync::watch;

use crate::spool::{Error, Spool};

/// Some lanes of the spool, for one stream.
pub(super) struct Outbox {
    spool: Spool,
    /// Each lane's highest synced sequence.
    lanes: Vec<(Lane, watch::Receiver<u64>)>,
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
            watched.push((*lane, spool.subscribe(*lane).ok_or(Error::NoLane)?));
        }
        Ok(Self {
            spool: spool.clone(),
            lanes: watched,
        })
    }

    /// The next batch of a lane that is synced and was not handed out yet; `None`
    /// when there is none, or as many are out as the spool allows.
    pub(super) async fn next(&mut self, lane: Lane) -> Result<Option<Delivery>, Error> {
        // Seen before it is looked at: what is synced meanwhile counts as a change.
        for (known, synced) in &mut self.lanes {
            if *known == lane {
                synced.borrow_and_update();
            }
        }
        self.blocking(move |spool| spool.next(lane)).await
    }

    /// The collector has everything of this epoch and lane up to `number`.
    pub(super) async fn acknowledge(
        &self,
        lane: Lane,
        epoch: u64,
        number: u64,
    ) -> Result<(), Error> {
        self.blocking(move |spool| spool.ack(lane, epoch, number))
            .await
    }

    /// The collector will never take this batch.
    pub(super) async fn refuse(
        &self,
        lane: Lane,
        epoch: u64,
        number: u64,
        reason: String,
    ) -> Result<(), Error> {
        self.blocking(move |spool| spool.reject(lane, epoch, number, &reason))
            .await
    }

    /// Returns when a lane has more than when [`Outbox::next`] last looked at it.
    pub(super) async fn changed(&mut self) {
        let lanes = self
            .lanes
            .iter_mut()
            .map(|(_, synced)| Box::pin(synced.changed()));
        // The sending half lives as long as the spool, which is held here.
        let _ = select_all(lanes).await;
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
