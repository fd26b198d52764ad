//! TLS 1.3 with optional client certificates and a server certificate that is
//! replaced while the port stays open.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use crate::api::auth::PeerCertificate;
use crate::tenant::ca::{self, Ca};

/// Validity of the server certificate.
pub const SERVER_VALID: Duration = Duration::from_secs(24 * 3600);
/// It is replaced at this age, so that a client whose clock is slow or that
/// fetches it once a day never sees an expired one.
pub const SERVER_ROTATE: Duration = Duration::from_secs(8 * 3600);

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No server certificate.
    #[error("failed to issue the server certificate")]
    Issue(#[from] ca::Error),
    /// The library refuses the settings or the key.
    #[error("failed to set up TLS")]
    Tls(#[from] rustls::Error),
    /// The library refuses the CA's certificate.
    #[error("failed to use the CA's certificate to verify agents")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The collector's own certificate, replaceable.
#[derive(Debug)]
pub struct ServerCertificate {
    current: RwLock<Arc<CertifiedKey>>,
}

impl ServerCertificate {
    /// Issues the first one.
    ///
    /// # Errors
    /// No certificate can be made for these names.
    pub fn issue(ca: &Ca, names: &[String]) -> Result<Self, Error> {
        Ok(ServerCertificate {
            current: RwLock::new(issue(ca, names)?),
        })
    }

    /// Replaces it for connections from now on.
    ///
    /// # Errors
    /// No certificate can be made; the old one stays.
    pub fn rotate(&self, ca: &Ca, names: &[String]) -> Result<(), Error> {
        let next = issue(ca, names)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current))
    }
}

fn issue(ca: &Ca, names: &[String]) -> Result<Arc<CertifiedKey>, Error> {
    let (certificate, key) = ca.issue_server(names, SERVER_VALID)?;
    let chain = vec![certificate];
    let key = CertifiedKey::from_der(chain, PrivateKeyDer::Pkcs8(key), &ring::default_provider())?;
    Ok(Arc::new(key))
}

/// The settings of the port.
///
/// # Errors
/// The CA's certificate cannot be used.
pub fn server_config(
    ca: &Ca,
    certificate: Arc<ServerCertificate>,
    grace: Duration,
) -> Result<ServerConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone())?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
    let verifier = AgentVerifier {
        inner: verifier,
        grace,
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would carry a certificate that was checked long ago.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// As the library verifies, but a certificate that has expired within the
/// grace is let in: the services see its end, and only renewal accepts it.
/// The handshake still proves possession of its key.
#[derive(Debug)]
struct AgentVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    grace: Duration,
}

impl ClientCertVerifier for AgentVerifier {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .inner
            .verify_client_cert(end_entity, intermediates, now);
        let Err(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) = &verified
        else {
            return verified;
        };
        let end = PeerCertificate::read(end_entity)
            .and_then(|certificate| u64::try_from(certificate.expires_ns / 1_000_000_000).ok());
        match end {
            Some(end) if now.as_secs() < end.saturating_add(self.grace.as_secs()) => {
                let then = UnixTime::since_unix_epoch(Duration::from_secs(end));
                self.inner
                    .verify_client_cert(end_entity, intermediates, then)
            }
            _ => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
