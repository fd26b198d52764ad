//! A new certificate before the old one expires.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use rcgen::KeyPair;
use sumun_proto::v1::RenewRequest;
use sumun_proto::v1::ingest_client::IngestClient;
use time::OffsetDateTime;
use tonic::transport::Channel;
use tracing::{info, warn};

use super::connect::chain;
use super::identity::{self, Holder};
use crate::config::Collector;
use crate::status::{Counters, Status};

/// Longest wait for the collector's answer.
const ANSWER: Duration = Duration::from_secs(30);
/// The clock is looked at this often: it may be set, or the host asleep.
const LOOK: Duration = Duration::from_secs(30);
/// Wait after a failure, at most; a twentieth of the lifetime when that is shorter.
const AGAIN_MAX: u64 = 60;

/// A renewal that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error("the collector did not answer within 30 s")]
    Silent,
    #[error("{}", super::stream::status_text(.0))]
    Refused(tonic::Status),
    #[error("the collector made a certificate for another agent ({0})")]
    Other(String),
}

/// Waits until two thirds of the certificate's life are over, then renews it.
/// Returns when the new one is on disk; tries again for as long as it has to.
pub(super) async fn renew(
    client: IngestClient<Channel>,
    collector: &Collector,
    holder: &Holder,
    status: &Arc<Status>,
) {
    let at = holder.renew_at(rand::rng().random_range(0.0..1.0));
    let lifetime = u64::try_from(holder.not_after.saturating_sub(holder.not_before)).unwrap_or(0);
    let again = Duration::from_secs((lifetime / 20).clamp(1, AGAIN_MAX));
    loop {
        let left = at - OffsetDateTime::now_utc().unix_timestamp();
        match u64::try_from(left) {
            Ok(left) if left > 0 => {
                tokio::time::sleep(Duration::from_secs(left).min(LOOK)).await;
                continue;
            }
            _ => {}
        }
        match once(client.clone(), collector, holder, status).await {
            Ok(()) => return,
            Err(error) => {
                let text = chain(&error);
                if status.trouble("certificate", Some(format!("cannot be renewed: {text}"))) {
                    warn!(error = %text, expires = %expiry(holder), "failed to renew the certificate");
                }
                tokio::time::sleep(again).await;
            }
        }
    }
}

fn expiry(holder: &Holder) -> String {
    OffsetDateTime::from_unix_timestamp(holder.not_after)
        .map_or_else(|_| holder.not_after.to_string(), |time| time.to_string())
}

/// Renews the certificate now, whether it is due or has expired already: for
/// some days after its end the collector takes it as proof of the key, for this alone.
pub(super) async fn once(
    mut client: IngestClient<Channel>,
    collector: &Collector,
    holder: &Holder,
    status: &Status,
) -> Result<(), Error> {
    let (key_path, place) = (&collector.key, collector.key.display().to_string());
    let pem = String::from_utf8(identity::read(key_path)?).map_err(|_| identity::Error::Bad {
        place,
        fault: "not text".to_owned(),
    })?;
    let key = KeyPair::from_pem(&pem).map_err(identity::Error::from)?;
    let csr_der = identity::request(&key)?;
    let made = tokio::time::timeout(ANSWER, client.renew(RenewRequest { csr_der }))
        .await
        .map_err(|_| Error::Silent)?
        .map_err(Error::Refused)?
        .into_inner();
    let new = identity::check_made(&made.certificate_pem, &key)?;
    if (&new.agent_id, &new.tenant) != (&holder.agent_id, &holder.tenant) {
        return Err(Error::Other(new.agent_id));
    }
    // The CA first: should a crash come between the two, the new CA's file still holds
    // what the collector, proved by the old one, vouches for.
    replace_ca(&collector.ca, &made.ca_pem)?;
    identity::replace(
        &collector.certificate,
        made.certificate_pem.as_bytes(),
        0o644,
    )?;
    Counters::add(&status.counters.renewals, 1);
    status.trouble("certificate", None);
    info!(expires = %expiry(&new), "renewed the certificate");
    Ok(())
}

fn replace_ca(path: &Path, pem: &str) -> Result<(), identity::Error> {
    if pem.is_empty() || identity::read(path)? == pem.as_bytes() {
        return Ok(());
    }
    // Refuses what is no CA.
    identity::anonymous(pem.as_bytes(), path)?;
    identity::replace(path, pem.as_bytes(), 0o644)
}
