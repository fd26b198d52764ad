//! The certificate authority of the collector's own: it names the collector
//! to agents and admins, and agents to the collector.
//!
//! An agent's certificate carries one name, its SPIFFE URI; whatever else a
//! signing request asks for is ignored.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use crate::tenant::identity::Identity;

/// Certificate of the authority, in its directory.
pub const CA_CERTIFICATE: &str = "ca.pem";
/// Its key, in the same directory.
pub const CA_KEY: &str = "ca.key";

/// Largest signing request that is read, in bytes.
pub const CSR_MAX: usize = 16 * 1024;

const CA_VALID: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Clocks of two hosts may differ by this without a new certificate being
/// taken for one of the future.
const SKEW: Duration = Duration::from_secs(3600);

/// A failed operation of the authority.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the authority cannot be read.
    #[error("failed to read {}: has `sumun-collector init` been run?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// A file of the authority is damaged.
    #[error("{} is not what `sumun-collector init` wrote: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// A certificate cannot be made.
    #[error("failed to make a certificate")]
    Issue(#[source] rcgen::Error),
    /// A signing request is malformed, or not signed with the key it carries.
    #[error("the signing request is malformed or not signed by its own key")]
    Request,
}

/// The authority.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// A certificate for an agent.
#[derive(Debug)]
pub struct Issued {
    /// The certificate.
    pub pem: String,
    /// Its end, ns since the Unix epoch.
    pub expires_ns: i64,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").finish_non_exhaustive()
    }
}

impl Ca {
    /// Makes a new authority; returns the texts of its certificate and key.
    ///
    /// # Errors
    /// No key can be made.
    pub fn generate() -> Result<(String, String), Error> {
        let key = KeyPair::generate().map_err(Error::Issue)?;
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "Sumun");
        // The key's start in the name tells two authorities apart for people.
        let start = &key.public_key_raw()[1..5];
        name.push(
            DnType::CommonName,
            format!("Sumun collector CA {}", hex::encode(start)),
        );
        params.distinguished_name = name;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let now = OffsetDateTime::now_utc();
        params.not_before = now - SKEW;
        params.not_after = now + CA_VALID;
        params.serial_number = Some(serial());
        let certificate = params.self_signed(&key).map_err(Error::Issue)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// Reads the authority from its directory.
    ///
    /// # Errors
    /// A file is absent or damaged.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| Error::Read {
                path: path.to_path_buf(),
                source,
            })
        };
        let (pem_path, key_path) = (dir.join(CA_CERTIFICATE), dir.join(CA_KEY));
        let pem = read(&pem_path)?;
        let damaged = |path: &Path, what| Error::Damaged {
            path: path.to_path_buf(),
            what,
        };
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| damaged(&pem_path, "no certificate in it"))?;
        let key = KeyPair::from_pem(&read(&key_path)?)
            .map_err(|_| damaged(&key_path, "no private key in it"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|_| damaged(&pem_path, "the certificate cannot be parsed"))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(damaged(
                &key_path,
                "not the key of the certificate beside it",
            ));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|_| damaged(&pem_path, "not the certificate of an authority"))?;
        Ok(Ca {
            issuer,
            certificate,
            pem,
        })
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The authority's certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A certificate and a fresh key for the collector itself.
    ///
    /// # Errors
    /// A name cannot be put into a certificate, or no key can be made.
    pub fn issue_server(
        &self,
        names: &[String],
        valid: Duration,
    ) -> Result<(CertificateDer<'static>, PrivatePkcs8KeyDer<'static>), Error> {
        let key = KeyPair::generate().map_err(Error::Issue)?;
        let mut params = leaf(
            ExtendedKeyUsagePurpose::ServerAuth,
            "Sumun collector",
            valid,
        );
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.as_str().try_into().map_err(Error::Issue)?),
            });
        }
        let certificate = params.signed_by(&key, &self.issuer).map_err(Error::Issue)?;
        Ok((certificate.into(), key.into()))
    }

    /// A certificate for an agent, over the key of its signing request.
    ///
    /// # Errors
    /// [`Error::Request`] if the request is malformed or does not prove
    /// possession of its key.
    pub fn issue_agent(
        &self,
        csr_der: &[u8],
        identity: &Identity,
        valid: Duration,
    ) -> Result<Issued, Error> {
        let key = checked_key(csr_der)?;
        let mut params = leaf(ExtendedKeyUsagePurpose::ClientAuth, "Sumun agent", valid);
        let uri = identity.to_string();
        params
            .subject_alt_names
            .push(SanType::URI(uri.as_str().try_into().map_err(Error::Issue)?));
        let certificate: Certificate =
            params.signed_by(&key, &self.issuer).map_err(Error::Issue)?;
        let seconds = params.not_after.unix_timestamp();
        Ok(Issued {
            pem: certificate.pem(),
            expires_ns: seconds.saturating_mul(1_000_000_000),
        })
    }
}

/// The key of a signing request that is signed with it.
///
/// # Errors
/// [`Error::Request`].
pub fn checked_key(csr_der: &[u8]) -> Result<rcgen::PublicKey, Error> {
    if csr_der.len() > CSR_MAX {
        return Err(Error::Request);
    }
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
        .map(|request| request.public_key)
        .map_err(|_| Error::Request)
}

fn leaf(usage: ExtendedKeyUsagePurpose, name: &str, valid: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after = now + valid;
    params.serial_number = Some(serial());
    params
}

/// 127 random bits, positive.
fn serial() -> SerialNumber {
    let mut bytes = uuid::Uuid::new_v4().into_bytes();
    bytes[0] &= 0x7f;
    bytes[0] |= 0x40;
    SerialNumber::from(bytes.to_vec())
}
