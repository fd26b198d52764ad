//! An issuer's keys from the issuer itself: its discovery document (OpenID Connect Discovery 1.0) names the place of them.
//!
//! Asked over TLS that a given authority vouches for, and only because a token came that needs it: at most once in
//! [`AGAIN`], with bounds on time and size, and one asking for all that wait. What was fetched is kept for [`FRESH`], and for [`KEPT`]
//! while the issuer does not answer: it need not be up when its nodes join.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, HOST};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tracing::{info, warn};

use super::kubernetes::{KEYS_MAX, Key, parse_keys, usable};
use crate::ingest::writer::chain;

/// After a try, whatever became of it, the next one is not made earlier.
const AGAIN: Duration = Duration::from_secs(60);
/// Keys are looked for anew after so long: one that was taken away shall not count for ever.
const FRESH: Duration = Duration::from_secs(600);
/// Without an answer the last keys count for so long.
const KEPT: Duration = Duration::from_secs(86_400);
/// For both questions together.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest token that is shown to an issuer.
const TOKEN_MAX: u64 = 16 * 1024;

/// An issuer that is asked for its keys.
#[derive(Debug)]
pub struct Issuer {
    /// As its tokens name it: an URL.
    name: String,
    /// Certificates of who vouches for it, PEM.
    authority: PathBuf,
    /// What the collector shows of itself there, read at each try.
    token: Option<PathBuf>,
    state: Mutex<State>,
    /// Held while it is asked.
    asking: tokio::sync::Mutex<()>,
    pace: Pace,
}

#[derive(Debug, Default)]
struct State {
    keys: Option<(Arc<Vec<Key>>, Instant)>,
    tried: Option<Instant>,
    failure: Option<String>,
}

/// The times above.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) again: Duration,
    pub(super) fresh: Duration,
    pub(super) kept: Duration,
    pub(super) patience: Duration,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Issuer {
    /// Makes one that nobody has been asked of yet. `authority` is a file of certificates, PEM.
    ///
    /// # Errors
    /// The name is not the URL of a server with TLS, or the file cannot be used.
    pub fn new(name: &str, authority: &Path, token: Option<PathBuf>) -> Result<Self, String> {
        secure(name)?;
        trusting(authority)?;
        Ok(Self {
            name: name.to_owned(),
            authority: authority.to_owned(),
            token,
            state: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            pace: Pace {
                again: AGAIN,
                fresh: FRESH,
                kept: KEPT,
                patience: PATIENCE,
            },
        })
    }

    /// The same at another pace.
    #[cfg(test)]
    pub(super) fn at_pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// The keys as they are known.
    ///
    /// # Errors
    /// Why none are.
    pub(super) fn keys(&self) -> Result<Arc<Vec<Key>>, String> {
        let state = self.state();
        match &state.keys {
            Some((keys, at)) if at.elapsed() < self.pace.kept => Ok(Arc::clone(keys)),
            _ => Err(format!(
                "the keys of {}: {}",
                self.name,
                state.failure.as_deref().unwrap_or("not asked for yet")
            )),
        }
    }

    /// Asks, if a token with this key's name needs it and it is time.
    pub(super) async fn refresh(&self, kid: Option<&str>) {
        if !self.is_due(kid) {
            return;
        }
        let _asking = self.asking.lock().await;
        // Another may have asked meanwhile.
        if !self.is_due(kid) {
            return;
        }
        // Before it is asked: whoever needs it may go away half way.
        self.state().tried = Some(Instant::now());
        let answer = match tokio::time::timeout(self.pace.patience, self.fetch()).await {
            Ok(answer) => answer,
            Err(_) => Err("it does not answer in time".to_owned()),
        };
        let mut state = self.state();
        match answer {
            Ok(keys) => {
                info!(
                    issuer = self.name,
                    keys = keys.len(),
                    "fetched the keys of an issuer"
                );
                state.keys = Some((Arc::new(keys), Instant::now()));
                state.failure = None;
            }
            Err(why) => {
                warn!(
                    issuer = self.name,
                    why, "failed to fetch the keys of an issuer"
                );
                state.failure = Some(why);
            }
        }
    }

    /// A key that is not among those known now is none of the issuer's: it has just been asked.
    pub(super) fn is_certain(&self) -> bool {
        let state = self.state();
        let asked = state.keys.as_ref().map(|(_, at)| at.elapsed());
        state.failure.is_none() && asked.is_some_and(|asked| asked < self.pace.patience)
    }

    fn is_due(&self, kid: Option<&str>) -> bool {
        let state = self.state();
        if state
            .tried
            .is_some_and(|tried| tried.elapsed() < self.pace.again)
        {
            return false;
        }
        match &state.keys {
            Some((keys, at)) => {
                let known = kid.is_none_or(|kid| keys.iter().any(|key| key.kid() == Some(kid)));
                !known || at.elapsed() >= self.pace.fresh
            }
            None => true,
        }
    }

    async fn fetch(&self) -> Result<Vec<Key>, String> {
        let token = self.token.as_deref().map(read_token).transpose()?;
        let tls = trusting(&self.authority)?;
        let place = format!(
            "{}/.well-known/openid-configuration",
            self.name.trim_end_matches('/')
        );
        let text = self.get(&tls, &place, token.as_deref()).await?;
        let discovery: Discovery = serde_json::from_slice(&text)
            .map_err(|error| format!("{place}: no discovery document: {error}"))?;
        if discovery.issuer != self.name {
            return Err(format!("{place}: it is of {:?}", discovery.issuer));
        }
        let text = self
            .get(&tls, &discovery.jwks_uri, token.as_deref())
            .await?;
        let keys = parse_keys(&text).map_err(|why| format!("{}: {why}", discovery.jwks_uri))?;
        match usable(&keys) {
            true => Ok(keys),
            false => Err(format!("{}: no key of RSA or P-256", discovery.jwks_uri)),
        }
    }

    /// What is at a place: no redirects, no connection that is kept.
    async fn get(
        &self,
        tls: &Arc<ClientConfig>,
        place: &str,
        token: Option<&str>,
    ) -> Result<Bytes, String> {
        let failed = |error: &dyn std::error::Error| format!("{place}: {}", chain(error));
        let (uri, host, port) = secure(place)?;
        let name = ServerName::try_from(host.clone()).map_err(|error| failed(&error))?;
        let stream = TcpStream::connect((host.as_str(), port))
            .await
            .map_err(|error| failed(&error))?;
        let stream = TlsConnector::from(Arc::clone(tls))
            .connect(name, stream)
            .await
            .map_err(|error| failed(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::get(path)
            .header(
                HOST,
                uri.authority().map_or("", |authority| authority.as_str()),
            )
            .header(ACCEPT, "application/json");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|error| failed(&error))?;
        let asked = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(|error| failed(&error))?;
            if response.status() != hyper::StatusCode::OK {
                return Err(format!("{place}: it answers {}", response.status()));
            }
            let most = usize::try_from(KEYS_MAX).unwrap_or(usize::MAX);
            let body = Limited::new(response.into_body(), most).collect().await;
            body.map(|body| body.to_bytes())
                .map_err(|error| format!("{place}: {error}"))
        };
        tokio::pin!(asked);
        // The connection ends with the answer, or with the time that is given for it.
        tokio::select! {
            answer = &mut asked => answer,
            ended = connection => match ended {
                Ok(()) => asked.await,
                Err(error) => Err(failed(&error)),
            },
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What connects to servers for which the authorities in a file vouch: read each time, since the file is changed.
fn trusting(authority: &Path) -> Result<Arc<ClientConfig>, String> {
    let place = authority.display();
    let mut roots = RootCertStore::empty();
    let found =
        CertificateDer::pem_file_iter(authority).map_err(|error| format!("{place}: {error}"))?;
    for certificate in found {
        let certificate = certificate.map_err(|error| format!("{place}: {error}"))?;
        // A system's bundle has some that this library does not take.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err(format!("{place}: no certificate of an authority in it"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(tls))
}

/// Takes an URL apart: of a server with TLS, and of nobody in it.
fn secure(place: &str) -> Result<(Uri, String, u16), String> {
    let wrong = || format!("{place:?} is not https://HOST[:PORT][/PATH]");
    let uri: Uri = place.parse().map_err(|_| wrong())?;
    let host = uri.host().filter(|host| !host.is_empty());
    let named = uri
        .authority()
        .is_some_and(|whole| whole.as_str().contains('@'));
    match host {
        Some(host) if uri.scheme_str() == Some("https") && !named => {
            let host = host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned();
            let port = uri.port_u16().unwrap_or(443);
            Ok((uri, host, port))
        }
        _ => Err(wrong()),
    }
}

fn read_token(path: &Path) -> Result<String, String> {
    let read = || -> io::Result<String> {
        if std::fs::metadata(path)?.len() > TOKEN_MAX {
            return Err(io::Error::other("too long for a token"));
        }
        std::fs::read_to_string(path)
    };
    let text = read().map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests;
