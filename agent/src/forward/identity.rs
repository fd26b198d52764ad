//! Who the agent is: its key and certificate on disk, and as TLS wants them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::config::Collector;

/// An identity that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file or an answer has not what it should have.
    #[error("{place}: {fault}")]
    Bad {
        /// The file, or who answered.
        place: String,
        /// What is wrong.
        fault: String,
    },
    /// Key and certificates do not make a TLS identity.
    #[error("key and certificate cannot be used together")]
    Tls(#[from] rustls::Error),
    /// A key or a request cannot be made.
    #[error("cannot make a certificate request")]
    Request(#[from] rcgen::Error),
}

/// What a certificate says about its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The agent's UUID.
    pub agent_id: String,
    /// Its tenant.
    pub tenant: String,
    /// Valid from here, seconds since the Unix epoch.
    pub not_before: i64,
    /// Valid to here, seconds since the Unix epoch.
    pub not_after: i64,
}

impl Holder {
    /// Reads the first certificate of a PEM chain. `place` is for messages.
    ///
    /// # Errors
    /// [`Error::Bad`] when it is none, or names no agent.
    pub fn of(pem: &[u8], place: &str) -> Result<Self, Error> {
        let bad = |fault: &str| Error::Bad {
            place: place.to_owned(),
            fault: fault.to_owned(),
        };
        let leaf = CertificateDer::from_pem_slice(pem)
            .map_err(|error| bad(&format!("no certificate in PEM form ({error})")))?;
        let (_, certificate) = X509Certificate::from_der(&leaf)
            .map_err(|error| bad(&format!("not a certificate ({error})")))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| bad(&format!("unreadable names ({error})")))?;
        let uri = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .find_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .ok_or_else(|| bad("the certificate names no agent"))?;
        // spiffe://sumun/tenant/<tenant>/agent/<uuid>
        let (tenant, agent_id) = uri
            .strip_prefix("spiffe://sumun/tenant/")
            .and_then(|rest| rest.split_once("/agent/"))
            .filter(|(tenant, id)| {
                crate::config::is_tenant(tenant) && uuid::Uuid::parse_str(id).is_ok()
            })
            .ok_or_else(|| bad(&format!("{uri} is not the name of an agent")))?;
        Ok(Self {
            agent_id: agent_id.to_owned(),
            tenant: tenant.to_owned(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }

    /// Why the certificate cannot be used at that time, if so. Seconds since the Unix epoch.
    #[must_use]
    pub fn fault_at(&self, now: i64) -> Option<String> {
        let text = |seconds| {
            OffsetDateTime::from_unix_timestamp(seconds)
                .map_or_else(|_| seconds.to_string(), |time| time.to_string())
        };
        if now >= self.not_after {
            return Some(format!(
                "the certificate expired at {}; enrol again with `sumun-agent enroll --force`, \
                 the agent goes on with the new one by itself",
                text(self.not_after)
            ));
        }
        (now < self.not_before).then(|| {
            format!(
                "the certificate is valid from {} on; is the clock of this host right?",
                text(self.not_before)
            )
        })
    }

    /// When to renew: at two thirds of the lifetime, earlier by up to a tenth of it by `jitter`
    /// (0 to 1), so that agents enrolled together do not renew together.
    #[must_use]
    pub fn renew_at(&self, jitter: f64) -> i64 {
        let lifetime = self.not_after.saturating_sub(self.not_before);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            reason = "seconds of a lifetime, where a second more or less is nothing"
        )]
        let early = (lifetime as f64 * 0.1 * jitter.clamp(0.0, 1.0)) as i64;
        self.not_before + lifetime / 3 * 2 - early
    }
}

/// An identity as it stands on disk, read anew for every connection so that
/// a renewed certificate, or a new enrolment, needs no restart.
pub struct Identity {
    /// What the certificate says.
    pub holder: Holder,
    /// TLS with the agent's certificate, trusting only the collector's CA.
    pub tls: Arc<ClientConfig>,
}

impl Identity {
    /// Reads key, certificate and CA.
    ///
    /// # Errors
    /// When a file cannot be read or the three do not fit.
    pub fn load(collector: &Collector) -> Result<Self, Error> {
        let certificate = read(&collector.certificate)?;
        let key = read(&collector.key)?;
        let holder = Holder::of(&certificate, &collector.certificate.display().to_string())?;
        let chain = CertificateDer::pem_slice_iter(&certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| bad(&collector.certificate, &error))?;
        let key =
            PrivateKeyDer::from_pem_slice(&key).map_err(|error| bad(&collector.key, &error))?;
        let tls =
            trusting(&read(&collector.ca)?, &collector.ca)?.with_client_auth_cert(chain, key)?;
        Ok(Self {
            holder,
            tls: Arc::new(http2(tls)),
        })
    }
}

fn bad(path: &Path, fault: &rustls_pki_types::pem::Error) -> Error {
    Error::Bad {
        place: path.display().to_string(),
        fault: fault.to_string(),
    }
}

/// TLS without a client certificate, trusting only a CA: for enrolment.
///
/// # Errors
/// When the CA cannot be read.
pub fn anonymous(ca_pem: &[u8], ca: &Path) -> Result<Arc<ClientConfig>, Error> {
    Ok(Arc::new(http2(trusting(ca_pem, ca)?.with_no_client_auth())))
}

/// TLS without a client certificate or a protocol above it, trusting only a CA: for others than the collector.
///
/// # Errors
/// When the CA cannot be read.
pub fn plain(ca_pem: &[u8], ca: &Path) -> Result<ClientConfig, Error> {
    Ok(trusting(ca_pem, ca)?.with_no_client_auth())
}

fn trusting(
    ca_pem: &[u8],
    ca: &Path,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        roots.add(certificate.map_err(|error| bad(ca, &error))?)?;
    }
    if roots.is_empty() {
        return Err(Error::Bad {
            place: ca.display().to_string(),
            fault: "no certificate in PEM form".to_owned(),
        });
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots))
}

fn http2(mut tls: ClientConfig) -> ClientConfig {
    tls.alpn_protocols = vec![b"h2".to_vec()];
    tls
}

/// Reads a file of the identity.
///
/// # Errors
/// [`Error::Read`].
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// A new key: ECDSA on P-256.
///
/// # Errors
/// [`Error::Request`] when the system gives no randomness.
pub fn new_key() -> Result<KeyPair, Error> {
    Ok(KeyPair::generate()?)
}

/// A certificate request (PKCS#10, DER) for a key. The collector uses only its
/// key: the name is the collector's to give.
///
/// # Errors
/// [`Error::Request`].
pub fn request(key: &KeyPair) -> Result<Vec<u8>, Error> {
    let request = CertificateParams::default().serialize_request(key)?;
    Ok(request.der().to_vec())
}

/// Checks a certificate that the collector made: it must be for this key.
///
/// # Errors
/// [`Error::Bad`] when it is for another key, or names no agent.
pub fn check_made(pem: &str, key: &KeyPair) -> Result<Holder, Error> {
    let place = "the collector's answer";
    let holder = Holder::of(pem.as_bytes(), place)?;
    let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| Error::Bad {
        place: place.to_owned(),
        fault: error.to_string(),
    })?;
    let ours = X509Certificate::from_der(&leaf)
        .is_ok_and(|(_, leaf)| leaf.public_key().raw == key.subject_public_key_info());
    if ours {
        Ok(holder)
    } else {
        Err(Error::Bad {
            place: place.to_owned(),
            fault: "the certificate is for another key".to_owned(),
        })
    }
}

/// Replaces a file so that after a crash it is whole, the old one or the new one.
///
/// # Errors
/// [`Error::Write`].
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let attempt = || {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = path.with_file_name(name);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    };
    attempt().map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(not_before: i64, not_after: i64) -> Holder {
        Holder {
            agent_id: String::new(),
            tenant: String::new(),
            not_before,
            not_after,
        }
    }

    #[test]
    fn renewal_falls_before_two_thirds() {
        let day = holder(1000, 1000 + 86_400);
        assert_eq!(day.renew_at(0.0), 1000 + 57_600);
        assert_eq!(day.renew_at(1.0), 1000 + 57_600 - 8_640);
    }

    #[test]
    fn a_certificate_is_too_old_or_too_new() {
        let certificate = holder(100, 200);
        assert_eq!(certificate.fault_at(150), None);
        assert!(
            certificate
                .fault_at(200)
                .is_some_and(|fault| fault.contains("expired at"))
        );
        assert!(
            certificate
                .fault_at(99)
                .is_some_and(|fault| fault.contains("clock"))
        );
    }

    #[test]
    fn replacing_keeps_the_mode_and_leaves_nothing_behind() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("agent.key");
        replace(&path, b"one", 0o600).expect("write");
        replace(&path, b"two", 0o600).expect("write");
        assert_eq!(fs::read(&path).expect("read"), b"two");
        let mode = fs::metadata(&path).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1);
    }

    #[test]
    fn what_is_no_certificate_is_refused_with_its_place() {
        let error = Holder::of(b"nonsense", "agent.pem").expect_err("no certificate");
        assert!(
            error.to_string().starts_with("agent.pem: no certificate"),
            "{error}"
        );
    }
}
