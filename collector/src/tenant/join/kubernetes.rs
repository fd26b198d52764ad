//! Nodes of a cluster: the token that Kubernetes projects into a pod for one audience, signed by the cluster's key, with the
//! node on which the pod runs (from 1.30 on).
//!
//! A signed token (RFC 7515) in its compact form, and of its many ways only those that Kubernetes' issuers use: RS256 and ES256.
//! Written here because the library for it takes its cryptography from where this workspace does not, and because all that
//! decides are the claims.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;
use time::OffsetDateTime;

use super::issuer::Issuer;
use super::{Failure, Join, Proven};

/// Longest token.
const TOKEN_MAX: usize = 16 * 1024;
/// Longest file or answer with keys.
pub(super) const KEYS_MAX: u64 = 256 * 1024;
/// How far the clocks of the cluster and of the collector may be apart, seconds.
const SKEW: i64 = 60;
/// A projected token is valid for an hour if nothing else is asked for, and Kubernetes gives no more than a day here.
const VALID_MAX: i64 = 86_400;

/// Which pods' nodes may join.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    /// `iss` of the cluster's tokens.
    pub issuer: String,
    /// What `aud` has to hold.
    pub audience: String,
    /// Where the issuer's keys are.
    pub keys: KeySource,
    /// Service accounts, as `system:serviceaccount:NAMESPACE:NAME`.
    pub subjects: Vec<String>,
}

/// Where an issuer's keys (JWKS) are.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// A file, read at each proof: keys are changed.
    File(PathBuf),
    /// The issuer itself. Kept, and asked for anew.
    Issuer(Arc<Issuer>),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
}

/// All of them have to be there, and of these types.
#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Audiences,
    sub: String,
    exp: i64,
    nbf: i64,
    iat: i64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Bound {
    node: Option<Object>,
    pod: Option<Object>,
}

#[derive(Deserialize)]
struct Object {
    uid: String,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<Key>,
}

/// A key of an issuer (RFC 7517).
#[derive(Debug, Deserialize)]
pub(super) struct Key {
    kid: Option<String>,
    kty: String,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// A token taken apart; nothing of it is believed yet.
struct Token<'a> {
    header: Header,
    claims: Claims,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Token<'a> {
    fn read(token: &'a str) -> Result<Self, Failure> {
        let token = token.trim();
        if token.len() > TOKEN_MAX {
            return Err(Failure::denied("the service account's token is too long"));
        }
        let malformed = || Failure::denied("it is no token of a service account");
        let (signed, signature) = token.rsplit_once('.').ok_or_else(malformed)?;
        let (header, claims) = signed.split_once('.').ok_or_else(malformed)?;
        let part = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed());
        Ok(Self {
            header: serde_json::from_slice(&part(header)?).map_err(|_| malformed())?,
            signature: part(signature)?,
            // Read before they are believed, to know whose key it should be.
            claims: serde_json::from_slice(&part(claims)?).map_err(|_| {
                Failure::denied(
                    "the token lacks what a projected token has: iss, aud, sub, exp, nbf, iat, kubernetes.io",
                )
            })?,
            signed,
        })
    }
}

/// Asks issuers for the keys that this token may be signed with, where they are not known.
pub(super) async fn prepare(joins: impl Iterator<Item = &Kubernetes>, token: &str) {
    let Ok(token) = Token::read(token) else {
        return;
    };
    for kubernetes in joins.filter(|known| known.issuer == token.claims.iss) {
        if let KeySource::Issuer(issuer) = &kubernetes.keys {
            issuer.refresh(token.header.kid.as_deref()).await;
        }
    }
}

/// Judges a token by the entries of the configuration. Clusters can have the same issuer's name: then the key decides.
///
/// # Errors
/// Why it proves nothing, or its node may not join.
pub(super) fn prove<'a>(
    joins: impl Iterator<Item = (&'a Join, &'a Kubernetes)>,
    token: &str,
) -> Result<(&'a Join, Proven), Failure> {
    let Token {
        header,
        claims,
        signed,
        signature,
    } = Token::read(token)?;
    let mut last = None;
    let mut broken = None;
    let mut refused = None;
    for (join, kubernetes) in joins.filter(|(_, known)| known.issuer == claims.iss) {
        last = Some(join);
        let keys = match kubernetes.read_keys() {
            Ok(keys) => keys,
            // Another cluster of this name may know it.
            Err(why) => {
                broken.get_or_insert(why);
                continue;
            }
        };
        let named = header.kid.as_deref();
        if named.is_some_and(|kid| keys.iter().all(|key| key.kid() != Some(kid)))
            && let KeySource::Issuer(issuer) = &kubernetes.keys
            && !issuer.is_certain()
        {
            broken.get_or_insert(format!(
                "the token is signed by a key that {} may have begun to use: it is asked again within a minute",
                kubernetes.issuer
            ));
            continue;
        }
        let genuine = keys
            .iter()
            .filter(|key| header.kid.is_none() || key.kid == header.kid)
            .any(|key| key.verifies(&header.alg, signed.as_bytes(), &signature));
        if genuine {
            let now = OffsetDateTime::now_utc().unix_timestamp();
            let node = match kubernetes.allow(&claims, now) {
                Ok(node) => node,
                // Another entry for the same cluster may be for this audience or account.
                Err(failure) => {
                    refused.get_or_insert(failure.at(join));
                    continue;
                }
            };
            let subject = format!("{}/node/{node}", join.name);
            let method = "kubernetes";
            return Ok((join, Proven { method, subject }));
        }
    }
    if let Some(refused) = refused {
        return Err(refused);
    }
    let failure = match (last, broken) {
        (_, Some(why)) => Failure::broken(why),
        (None, None) => {
            Failure::denied(format!("pods of the issuer {:?} may not join", claims.iss))
        }
        (Some(_), None) => Failure::denied("the token is not signed by a key of its issuer"),
    };
    Err(match last {
        Some(join) => failure.at(join),
        None => failure,
    })
}

impl Kubernetes {
    fn read_keys(&self) -> Result<Arc<Vec<Key>>, String> {
        match &self.keys {
            KeySource::File(path) => read_file(path).map(Arc::new),
            KeySource::Issuer(issuer) => issuer.keys(),
        }
    }

    /// Whether the keys can be used, as far as that is known without asking anybody.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), String> {
        match &self.keys {
            KeySource::File(path) if !usable(&read_file(path)?) => {
                Err(format!("{}: no key of RSA or P-256", path.display()))
            }
            KeySource::File(_) => Ok(()),
            KeySource::Issuer(_) => Ok(()),
        }
    }

    /// The uid of the node that may join.
    fn allow(&self, claims: &Claims, now: i64) -> Result<String, Failure> {
        let audience = match &claims.aud {
            Audiences::One(one) => *one == self.audience,
            Audiences::Many(many) => many.contains(&self.audience),
        };
        if !audience {
            return Err(Failure::denied(format!(
                "the token is for another audience than {:?}",
                self.audience
            )));
        }
        if claims.exp.saturating_add(SKEW) <= now {
            return Err(Failure::denied("the token has expired"));
        }
        if claims.nbf.saturating_sub(SKEW) > now || claims.iat.saturating_sub(SKEW) > now {
            return Err(Failure::denied(
                "the token is from the future: are the clocks right?",
            ));
        }
        if claims.exp.saturating_sub(claims.iat) > VALID_MAX {
            return Err(Failure::denied(
                "the token is valid for more than a day: project one with expirationSeconds",
            ));
        }
        if !self.subjects.contains(&claims.sub) {
            return Err(Failure::denied(format!("{} may not join", claims.sub)));
        }
        if claims.kubernetes.pod.is_none() {
            return Err(Failure::denied("the token is not bound to a pod"));
        }
        let node = claims.kubernetes.node.as_ref().ok_or_else(|| {
            Failure::denied("the token names no node: that is done by Kubernetes 1.30 and newer")
        })?;
        match uuid::Uuid::try_parse(&node.uid) {
            Ok(uid) => Ok(uid.hyphenated().to_string()),
            Err(_) => Err(Failure::denied("the token's node has no uid")),
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<Key>, String> {
    let place = path.display();
    let length = fs::metadata(path)
        .map_err(|error| format!("{place}: {error}"))?
        .len();
    if length > KEYS_MAX {
        return Err(format!("{place}: too long for a file of keys"));
    }
    let text = fs::read(path).map_err(|error| format!("{place}: {error}"))?;
    parse_keys(&text).map_err(|why| format!("{place}: {why}"))
}

/// Reads a set of keys.
pub(super) fn parse_keys(text: &[u8]) -> Result<Vec<Key>, String> {
    let keys: Keys = serde_json::from_slice(text).map_err(|error| {
        format!("no JWKS, as `kubectl get --raw /openid/v1/jwks` prints it: {error}")
    })?;
    Ok(keys.keys)
}

/// Whether one of the keys is of a kind that tokens are verified with.
pub(super) fn usable(keys: &[Key]) -> bool {
    keys.iter().any(Key::is_usable)
}

impl Key {
    /// Its name in tokens.
    pub(super) fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// RSA: modulus and exponent.
    fn rsa(&self) -> Option<RsaPublicKeyComponents<Vec<u8>>> {
        let number = |text: &Option<String>| {
            let bytes = URL_SAFE_NO_PAD.decode(text.as_ref()?).ok()?;
            // As the verifier wants them: without zeros in front.
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            Some(bytes[zeros..].to_vec())
        };
        match self.kty.as_str() {
            "RSA" => Some(RsaPublicKeyComponents {
                n: number(&self.n)?,
                e: number(&self.e)?,
            }),
            _ => None,
        }
    }

    /// P-256: the point, uncompressed.
    fn p256(&self) -> Option<Vec<u8>> {
        if self.kty != "EC" || self.crv.as_deref() != Some("P-256") {
            return None;
        }
        let mut point = vec![4];
        for text in [&self.x, &self.y] {
            let bytes = URL_SAFE_NO_PAD.decode(text.as_ref()?).ok()?;
            if bytes.len() != 32 {
                return None;
            }
            point.extend_from_slice(&bytes);
        }
        Some(point)
    }

    fn is_usable(&self) -> bool {
        self.rsa().is_some() || self.p256().is_some()
    }

    /// The key's kind has to be that of the algorithm: a token does not choose how it is judged.
    fn verifies(&self, algorithm: &str, signed: &[u8], signature: &[u8]) -> bool {
        match algorithm {
            "RS256" => self.rsa().is_some_and(|key| {
                key.verify(&RSA_PKCS1_2048_8192_SHA256, signed, signature)
                    .is_ok()
            }),
            "ES256" => self.p256().is_some_and(|point| {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                    .verify(signed, signature)
                    .is_ok()
            }),
            _ => false,
        }
    }
}
