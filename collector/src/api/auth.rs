//! Who may call what. One port serves all, so every service checks for itself:
//! `Ingest` an agent's certificate, `Query` and `Admin` an admin's token.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tonic::{Request, Status};
use x509_parser::extensions::GeneralName;

use crate::metrics::Metrics;
use crate::state::{now_ns, span_ns};
use crate::tenant::identity::Identity;
use crate::tenant::registry::{Refusal, Registry};
use crate::tenant::token::Tokens;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it comes from.
    pub address: SocketAddr,
    /// The certificate it has proved to own, if it has shown one: issued by
    /// this collector's CA, perhaps expired.
    pub certificate: Option<Arc<PeerCertificate>>,
}

/// What a verified certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Its agent, if it names exactly one.
    pub identity: Option<Identity>,
    /// Its end, ns since the Unix epoch.
    pub expires_ns: i64,
}

impl PeerCertificate {
    /// Reads a certificate. `None` if it cannot be parsed.
    #[must_use]
    pub fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let seconds = parsed.validity().not_after.timestamp();
        let names = parsed.subject_alternative_name().ok().flatten();
        let identity = names.and_then(|names| match names.value.general_names.as_slice() {
            [GeneralName::URI(uri)] => Identity::from_uri(uri),
            _ => None,
        });
        Some(PeerCertificate {
            identity,
            expires_ns: seconds.saturating_mul(1_000_000_000),
        })
    }
}

/// An agent that may deliver.
#[derive(Clone, Debug)]
pub struct Allowed {
    /// Who it is.
    pub identity: Identity,
    /// For how long its certificate is still valid.
    pub expires_in: Duration,
}

/// Checks agents.
#[derive(Clone, Debug)]
pub struct Agents {
    registry: Registry,
    grace: Duration,
}

impl Agents {
    /// `grace`: for how long after its end a certificate can still be renewed.
    #[must_use]
    pub fn new(registry: Registry, grace: Duration) -> Self {
        Agents { registry, grace }
    }

    /// The agent of a request's connection.
    ///
    /// # Errors
    /// No certificate, an expired one, or of nobody that is enrolled.
    pub fn require<T>(&self, request: &Request<T>) -> Result<Allowed, Status> {
        let (identity, expires_ns) = self.known(request)?;
        let left = expires_ns.saturating_sub(now_ns());
        if left <= 0 {
            return Err(Status::unauthenticated(
                "the certificate has expired: renew it",
            ));
        }
        Ok(Allowed {
            identity,
            expires_in: Duration::from_nanos(left.cast_unsigned()),
        })
    }

    /// Like [`Agents::require`], but the certificate may have expired.
    ///
    /// # Errors
    /// As [`Agents::require`], or it expired too long ago.
    pub fn require_for_renewal<T>(&self, request: &Request<T>) -> Result<Identity, Status> {
        let (identity, expires_ns) = self.known(request)?;
        if expires_ns.saturating_add(span_ns(self.grace)) <= now_ns() {
            return Err(Status::unauthenticated(
                "the certificate expired too long ago: enrol the agent again",
            ));
        }
        Ok(identity)
    }

    /// Whether an agent that was let in may stay.
    ///
    /// # Errors
    /// It was revoked in between.
    pub fn still_allowed(&self, identity: &Identity) -> Result<(), Status> {
        self.registry.check(identity).map_err(refused)
    }

    fn known<T>(&self, request: &Request<T>) -> Result<(Identity, i64), Status> {
        let certificate = request
            .extensions()
            .get::<Peer>()
            .and_then(|peer| peer.certificate.as_ref())
            .ok_or_else(|| {
                Status::unauthenticated("this needs an agent's certificate: enrol the agent first")
            })?;
        let identity = certificate
            .identity
            .as_ref()
            .ok_or_else(|| Status::unauthenticated("the certificate does not name an agent"))?;
        self.registry.check(identity).map_err(refused)?;
        Ok((identity.clone(), certificate.expires_ns))
    }
}

fn refused(refusal: Refusal) -> Status {
    Status::permission_denied(refusal.to_string())
}

/// Checks admins: `authorization: Bearer TOKEN`.
#[derive(Clone, Debug)]
pub struct Admins {
    tokens: Arc<Tokens>,
    metrics: Arc<Metrics>,
}

impl Admins {
    /// Checks against these tokens.
    #[must_use]
    pub fn new(tokens: Arc<Tokens>, metrics: Arc<Metrics>) -> Self {
        Admins { tokens, metrics }
    }

    /// Lets a request pass, with [`crate::tenant::token::Admin`] in its
    /// extensions.
    ///
    /// # Errors
    /// No token, or none that is valid.
    pub fn check(&self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let header = request.metadata().get("authorization");
        let token = header
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        let Some(admin) = token.and_then(|token| self.tokens.admin(token)) else {
            self.metrics.admins_refused.inc();
            return Err(Status::unauthenticated(match token {
                Some(_) => "the admin token is not valid or has expired",
                None => "this needs an admin token: `authorization: Bearer TOKEN`",
            }));
        };
        request.extensions_mut().insert(admin);
        Ok(request)
    }
}
