//! Instances of EC2: the identity document that Amazon signs for each, with the RSA key of its region.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::pem::Pem;

use super::cms::Signed;
use super::{Failure, Proven};

/// Longest signed document; those of EC2 have two kilobytes.
const DOCUMENT_MAX: usize = 32 * 1024;
/// Regions with a certificate, at most.
const REGIONS_MAX: usize = 256;
/// Longest certificate file.
const CERTIFICATE_MAX: u64 = 64 * 1024;
/// A document may be so much younger than this clock: clocks differ.
const AHEAD: Duration = Duration::from_secs(300);

/// Which instances may join.
#[derive(Clone, Debug)]
pub struct Ec2 {
    /// Ids of accounts.
    pub accounts: Vec<String>,
    /// Regions; empty = all that have a certificate.
    pub regions: Vec<String>,
    /// The folder of Amazon's certificates, each named after its region: `eu-west-1.pem`.
    pub certificates: PathBuf,
    /// An instance that was started longer ago cannot join by its document alone.
    pub max_age: Duration,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    account_id: String,
    region: String,
    instance_id: String,
    pending_time: String,
}

impl Ec2 {
    /// Reads the certificates anew: the folder may have changed.
    ///
    /// # Errors
    /// The folder cannot be read, or what is in it is no certificate with an RSA key.
    pub fn keys(&self) -> Result<BTreeMap<String, Vec<u8>>, String> {
        let place = self.certificates.display();
        let entries =
            fs::read_dir(&self.certificates).map_err(|error| format!("{place}: {error}"))?;
        let mut keys = BTreeMap::new();
        for entry in entries {
            let path = entry.map_err(|error| format!("{place}: {error}"))?.path();
            if path.extension().is_none_or(|extension| extension != "pem") {
                continue;
            }
            let region = path.file_stem().and_then(|stem| stem.to_str());
            let region = region.ok_or_else(|| format!("{}: not a region", path.display()))?;
            let key = key_of(&path).map_err(|why| format!("{}: {why}", path.display()))?;
            keys.insert(region.to_owned(), key);
            if keys.len() > REGIONS_MAX {
                return Err(format!("{place}: more than {REGIONS_MAX} certificates"));
            }
        }
        match keys.is_empty() {
            true => Err(format!(
                "{place}: no certificate REGION.pem: Amazon's documentation lists them (\"AWS public certificates\", RSA-2048)"
            )),
            false => Ok(keys),
        }
    }

    fn judge(&self, signed: &Signed, document: &Document) -> Result<(), Failure> {
        let region = &document.region;
        let keys = self.keys().map_err(Failure::broken)?;
        let key = keys.get(region).ok_or_else(|| {
            Failure::denied(format!("there is no certificate of Amazon's for {region}"))
        })?;
        if !signed.verify(key) {
            return Err(Failure::denied(format!(
                "the document is not signed by Amazon's key for {region}"
            )));
        }
        self.allow(document, OffsetDateTime::now_utc())
    }

    fn allow(&self, document: &Document, now: OffsetDateTime) -> Result<(), Failure> {
        let region = &document.region;
        if !self.regions.is_empty() && !self.regions.contains(region) {
            return Err(Failure::denied(format!(
                "instances in {region} may not join"
            )));
        }
        let begun = OffsetDateTime::parse(&document.pending_time, &Rfc3339)
            .map_err(|_| Failure::denied("the document's pendingTime is no time"))?;
        if begun > now + AHEAD {
            return Err(Failure::denied(
                "the document is from the future: is the clock of the collector right?",
            ));
        }
        if begun + self.max_age < now {
            return Err(Failure::denied(format!(
                "the instance was started at {}, and its document is good for {} s: raise max_age_seconds, start the instance anew, or use a token",
                document.pending_time,
                self.max_age.as_secs()
            )));
        }
        Ok(())
    }
}

/// Judges a signed document, in PEM's base64 with or without its lines around, by the entries of the configuration.
///
/// # Errors
/// Why it proves nothing, or its instance may not join.
pub(super) fn prove<'a>(
    mut joins: impl Iterator<Item = (&'a super::Join, &'a Ec2)>,
    signed: &[u8],
) -> Result<(&'a super::Join, Proven), Failure> {
    let bytes = decode(signed)?;
    let signed = Signed::read(&bytes)
        .map_err(|why| Failure::denied(format!("the signed document: {why}")))?;
    // Read before it is believed, to know which key it should be signed with.
    let document: Document = serde_json::from_slice(&signed.content)
        .map_err(|_| Failure::denied("what is signed is no identity document of an instance"))?;
    let plain = |text: &str| {
        !text.is_empty()
            && text.len() <= 64
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if ![
        &document.account_id,
        &document.region,
        &document.instance_id,
    ]
    .into_iter()
    .all(|text| plain(text))
    {
        return Err(Failure::denied(
            "what is signed is no identity document of an instance",
        ));
    }
    let (join, ec2) = joins
        .find(|(_, ec2)| ec2.accounts.contains(&document.account_id))
        .ok_or_else(|| {
            Failure::denied(format!(
                "instances of the account {} may not join",
                document.account_id
            ))
        })?;
    ec2.judge(&signed, &document)
        .map_err(|failure| failure.at(join))?;
    let Document {
        account_id,
        region,
        instance_id,
        ..
    } = document;
    Ok((
        join,
        Proven {
            method: "ec2",
            subject: format!("{account_id}/{region}/{instance_id}"),
        },
    ))
}

fn decode(text: &[u8]) -> Result<Vec<u8>, Failure> {
    let bad = || Failure::denied("the signed document is no base64");
    if text.len() > DOCUMENT_MAX {
        return Err(Failure::denied("the signed document is too long"));
    }
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    let text: String = text
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .flat_map(str::chars)
        .filter(|letter| !letter.is_ascii_whitespace())
        .collect();
    STANDARD.decode(text).map_err(|_| bad())
}

/// The RSA key of a certificate file.
fn key_of(path: &Path) -> Result<Vec<u8>, String> {
    let length = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > CERTIFICATE_MAX {
        return Err("too long for a certificate".into());
    }
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let (_, pem) =
        x509_parser::pem::parse_x509_pem(&text).map_err(|_| "no certificate in PEM form")?;
    let certificate = Pem::parse_x509(&pem).map_err(|_| "the certificate cannot be parsed")?;
    let key = certificate.public_key();
    match key.parsed() {
        Ok(x509_parser::public_key::PublicKey::RSA(rsa)) if rsa.key_size() >= 2048 => {
            Ok(key.subject_public_key.data.to_vec())
        }
        _ => Err("not a certificate with an RSA key of 2048 bits".into()),
    }
}
