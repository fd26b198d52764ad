//! A cluster that says of each pod's token which node it is for, and shows the keys that it signs with.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::metadata::openssl;

/// Its name.
pub const NAME: &str = "https://kubernetes.default.svc.cluster.local";

/// Its key, in a folder of its own.
#[derive(Debug)]
pub struct Issuer {
    folder: PathBuf,
}

impl Issuer {
    /// With a new key, below this folder.
    ///
    /// # Errors
    /// OpenSSL is not there.
    pub fn new(folder: &Path) -> Result<Self> {
        let folder = folder.join("issuer");
        fs::create_dir_all(&folder)?;
        openssl(&folder, &["genrsa", "-out", "key", "2048"])?;
        Ok(Self { folder })
    }

    /// What it shows at `/openid/v1/jwks`.
    ///
    /// # Errors
    /// OpenSSL does not read its own key.
    pub fn keys(&self) -> Result<String> {
        let modulus = openssl(&self.folder, &["rsa", "-in", "key", "-noout", "-modulus"])?;
        let modulus = String::from_utf8(modulus)?;
        let modulus = modulus.trim().trim_start_matches("Modulus=");
        let bytes: Vec<u8> = (0..modulus.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&modulus[at..at + 2], 16))
            .collect::<Result<_, _>>()?;
        let key = json!({ "kty": "RSA", "kid": "one", "n": self.url64(&bytes)?, "e": "AQAB" });
        Ok(json!({ "keys": [key] }).to_string())
    }

    /// Signs the token of an agent's pod on a node, with other claims where they are given.
    ///
    /// # Errors
    /// OpenSSL does not sign.
    pub fn token(&self, (node, uid): (&str, &str), changes: &[(&str, Value)]) -> Result<String> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let mut claims = json!({
            "aud": ["sumun-collector"], "exp": now + 600, "iat": now, "nbf": now, "iss": NAME,
            "sub": "system:serviceaccount:sumun:sumun-agent",
            "kubernetes.io": {
                "namespace": "sumun",
                "node": { "name": node, "uid": uid },
                "pod": { "name": "sumun-agent-x", "uid": "1b5f8a3e-6c1d-4e0f-9a7b-1c2d3e4f5a6b" },
            },
        });
        for (key, value) in changes {
            claims[*key] = value.clone();
        }
        let header = json!({ "alg": "RS256", "kid": "one" });
        let signed = format!(
            "{}.{}",
            self.url64(header.to_string().as_bytes())?,
            self.url64(claims.to_string().as_bytes())?
        );
        fs::write(self.folder.join("to-sign"), &signed)?;
        let signature = openssl(
            &self.folder,
            &["dgst", "-sha256", "-sign", "key", "to-sign"],
        )?;
        Ok(format!("{signed}.{}", self.url64(&signature)?))
    }

    /// Base64 for URLs, without its padding.
    fn url64(&self, bytes: &[u8]) -> Result<String> {
        fs::write(self.folder.join("bytes"), bytes)?;
        let text = openssl(&self.folder, &["base64", "-A", "-in", "bytes"])?;
        let text = String::from_utf8(text).context("base64 is text")?;
        Ok(text
            .trim()
            .trim_end_matches('=')
            .replace('+', "-")
            .replace('/', "_"))
    }
}
