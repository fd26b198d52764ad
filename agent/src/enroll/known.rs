//! Of a host that is enrolled already: whether its identity is still one, at the collector that is asked for.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::AlertDescription;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sumun_proto::v1::RenewRequest;
use sumun_proto::v1::ingest_client::IngestClient;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use super::Error;
use crate::cli::Enroll;
use crate::config::Config;
use crate::forward::connect;
use crate::forward::identity::{self, Holder, Identity};
use crate::status::Peers;

/// Longest wait for the collector's answer.
const ANSWER: Duration = Duration::from_secs(10);

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It is good, or the agent makes it so by itself.
    Good,
    /// It has ended, and is not renewed any more. It was of this tenant.
    Ended(String),
}

/// Looks. The collector is asked only about a certificate that has ended, and not waited for.
///
/// # Errors
/// It is of another collector, or not wanted any more by this one: nothing that should mend itself.
pub(super) async fn look(args: &Enroll, config: &Path) -> Result<State, Error> {
    let file = args.out.join("agent.pem");
    let certificate = identity::read(&file)?;
    let holder = Holder::of(&certificate, &file.display().to_string())?;
    if !is_of(args, &certificate)? {
        return Err(Error::Foreign {
            agent: holder.agent_id,
            tenant: holder.tenant,
            ca: args.ca.clone(),
        });
    }
    if OffsetDateTime::now_utc().unix_timestamp() < holder.not_after {
        return Ok(State::Good);
    }
    let Ok(config) = Config::load(config) else {
        // Its faults are told at the agent's start, or mended by the settings.
        return Ok(State::Good);
    };
    let identity = Identity::load(&config.collector)?;
    let (address, name) = (&config.collector.address, &config.collector.name);
    match connect::refusal(address, name, Arc::clone(&identity.tls)).await {
        Ok(Some(AlertDescription::CertificateExpired)) => {
            return Ok(State::Ended(holder.tenant));
        }
        // It says otherwise what it has against it, or cannot be asked now.
        Ok(Some(_)) | Err(_) => return Ok(State::Good),
        Ok(None) => {}
    }
    // For some days after its end the collector takes it for a renewal. An empty request is refused, after who sent it was looked at.
    let peers = Peers::default();
    let Ok(channel) = connect::connect(address, name, identity.tls, &peers).await else {
        return Ok(State::Good);
    };
    let mut client = IngestClient::new(channel);
    let asked = client.renew(RenewRequest::default());
    if let Ok(Err(status)) = tokio::time::timeout(ANSWER, asked).await
        && status.code() == tonic::Code::PermissionDenied
    {
        return Err(Error::Unwanted {
            agent: holder.agent_id,
            reason: status.message().to_owned(),
        });
    }
    Ok(State::Good)
}

/// Whether the authority that was given vouches for the certificate, or did so before the collector had another one.
fn is_of(args: &Enroll, certificate: &[u8]) -> Result<bool, Error> {
    let given = authorities(&identity::read(&args.ca)?);
    let own = authorities(&identity::read(&args.out.join("ca.pem"))?);
    if given.iter().any(|authority| own.contains(authority)) {
        return Ok(true);
    }
    let leaf = CertificateDer::from_pem_slice(certificate).ok();
    let leaf = leaf
        .as_ref()
        .and_then(|leaf| X509Certificate::from_der(leaf).ok());
    let signed = |authority: &CertificateDer<'_>| {
        let (Ok((_, authority)), Some((_, leaf))) = (X509Certificate::from_der(authority), &leaf)
        else {
            return false;
        };
        leaf.verify_signature(Some(authority.public_key())).is_ok()
    };
    Ok(given.iter().any(signed))
}

fn authorities(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    let all = CertificateDer::pem_slice_iter(pem);
    all.filter_map(Result::ok).collect()
}
