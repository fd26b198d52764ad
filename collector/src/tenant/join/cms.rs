//! The little of CMS (RFC 5652, once PKCS #7) in which EC2 signs an instance's identity document: signed data with its content
//! inside and one signer, RSA with SHA-256.
//!
//! BER, not DER: EC2 uses indefinite lengths and cuts the content into pieces. Certificates in it are not looked at: who may
//! sign is known before.

use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use sha2::{Digest as _, Sha256};
use x509_parser::asn1_rs::{Any, Class, FromBer as _, Length, Tag};

/// Pieces of the content, at most.
const PIECES_MAX: usize = 64;

// Contents of object identifiers, without tag and length.
/// 1.2.840.113549.1.7.1
const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
/// 1.2.840.113549.1.7.2
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
/// 1.2.840.113549.1.9.3
const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03];
/// 1.2.840.113549.1.9.4
const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04];
/// 2.16.840.1.101.3.4.2.1
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
/// 1.2.840.113549.1.1.1
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
/// 1.2.840.113549.1.1.11
const RSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];

/// What was signed, and how; nothing of it is true before [`Signed::verify`] says so.
#[derive(Debug)]
pub(super) struct Signed {
    /// The content.
    pub(super) content: Vec<u8>,
    /// What the signature is over: the content, or attributes that hold its hash.
    covered: Vec<u8>,
    signature: Vec<u8>,
}

impl Signed {
    /// Takes it apart. With attributes, the hash in them has to be that of the content.
    ///
    /// # Errors
    /// What is not as it should be.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut outer = Parts::of(sequence(whole(bytes)?)?);
        if outer.oid()? != SIGNED_DATA {
            return Err("it is not signed data");
        }
        let mut data = Parts::of(sequence(whole(outer.tagged(0)?)?)?);
        let _version = data.next()?;
        let _digests = data.next()?;
        let mut content = Parts::of(sequence(data.next()?)?);
        if content.oid()? != DATA {
            return Err("its content is no data");
        }
        let content = octets(whole(content.tagged(0)?)?)?;
        // Certificates and revocations, both optional.
        let mut signers = data.next()?;
        while signers.class() == Class::ContextSpecific {
            signers = data.next()?;
        }
        if signers.tag() != Tag::Set {
            return Err("it has no signers");
        }
        let mut signers = Parts::of(signers.data);
        let signer = signers.next()?;
        if !signers.is_over() {
            return Err("it has more than one signer");
        }
        let mut signer = Parts::of(sequence(signer)?);
        let _version = signer.next()?;
        let _issuer_and_serial = signer.next()?;
        if algorithm(signer.next()?)? != SHA256 {
            return Err("it is not hashed by SHA-256");
        }
        let mut next = signer.next()?;
        let covered = match next.class() {
            Class::ContextSpecific => {
                let covered = attributes(&next, &content)?;
                next = signer.next()?;
                covered
            }
            _ => content.clone(),
        };
        if ![RSA, RSA_SHA256].contains(&algorithm(next)?) {
            return Err("it is not signed by RSA");
        }
        Ok(Self {
            content,
            covered,
            signature: octets(signer.next()?)?,
        })
    }

    /// Whether the owner of this key has signed it: an `RSAPublicKey` of 2048 bits or more.
    pub(super) fn verify(&self, key: &[u8]) -> bool {
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key)
            .verify(&self.covered, &self.signature)
            .is_ok()
    }
}

/// Signed attributes as they are signed: with the tag of a set.
fn attributes(any: &Any<'_>, content: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut parts = Parts::of(any.data);
    let (mut is_data, mut is_content) = (false, false);
    while !parts.is_over() {
        let mut attribute = Parts::of(sequence(parts.next()?)?);
        let name = attribute.oid()?;
        let mut values = Parts::of(attribute.next()?.data);
        let value = values.next()?;
        match name {
            CONTENT_TYPE => is_data = value.tag() == Tag::Oid && value.data == DATA,
            MESSAGE_DIGEST => is_content = octets(value)? == Sha256::digest(content)[..],
            _ => continue,
        }
        if !values.is_over() {
            return Err("an attribute has more than one value");
        }
    }
    if !is_data || !is_content {
        return Err("the signed hash is not that of the content");
    }
    // They are signed in DER, whatever is around them.
    let Length::Definite(length) = any.header.length() else {
        return Err("the signed attributes have no length");
    };
    let mut covered = vec![0x31];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => covered.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            let bytes = &bytes[zeros..];
            // At most eight.
            covered.push(0x80 | u8::try_from(bytes.len()).unwrap_or(8));
            covered.extend_from_slice(bytes);
        }
    }
    covered.extend_from_slice(any.data);
    Ok(covered)
}

/// The one value that the bytes are.
fn whole(bytes: &[u8]) -> Result<Any<'_>, &'static str> {
    let mut parts = Parts::of(bytes);
    let value = parts.next()?;
    match parts.is_over() {
        true => Ok(value),
        false => Err("there is something behind it"),
    }
}

fn sequence(any: Any<'_>) -> Result<&[u8], &'static str> {
    match (any.class(), any.tag()) {
        (Class::Universal, Tag::Sequence) => Ok(any.data),
        _ => Err("it is not put together as signed data is"),
    }
}

/// The identifier of an algorithm.
fn algorithm(any: Any<'_>) -> Result<&[u8], &'static str> {
    Parts::of(sequence(any)?).oid()
}

/// A string of octets, whole or in pieces.
fn octets(any: Any<'_>) -> Result<Vec<u8>, &'static str> {
    if (any.class(), any.tag()) != (Class::Universal, Tag::OctetString) {
        return Err("it is not put together as signed data is");
    }
    if !any.header.is_constructed() {
        return Ok(any.data.to_vec());
    }
    let (mut parts, mut all) = (Parts::of(any.data), Vec::new());
    for _ in 0..PIECES_MAX {
        if parts.is_over() {
            return Ok(all);
        }
        let piece = parts.next()?;
        let plain = (piece.class(), piece.tag()) == (Class::Universal, Tag::OctetString);
        if !plain || piece.header.is_constructed() {
            return Err("its content is in pieces of pieces");
        }
        all.extend_from_slice(piece.data);
    }
    Err("its content is in too many pieces")
}

/// Values that stand one after the other.
struct Parts<'a> {
    rest: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    fn next(&mut self) -> Result<Any<'a>, &'static str> {
        // The parser bounds how deep values of indefinite length may stand in each other.
        let (rest, any) = Any::from_ber(self.rest).map_err(|_| "it is cut off or no BER")?;
        self.rest = rest;
        Ok(any)
    }

    fn oid(&mut self) -> Result<&'a [u8], &'static str> {
        let any = self.next()?;
        match (any.class(), any.tag()) {
            (Class::Universal, Tag::Oid) => Ok(any.data),
            _ => Err("it is not put together as signed data is"),
        }
    }

    /// What is inside of an explicit tag.
    fn tagged(&mut self, number: u32) -> Result<&'a [u8], &'static str> {
        let any = self.next()?;
        match any.class() == Class::ContextSpecific && any.tag() == Tag(number) {
            true => Ok(any.data),
            false => Err("it is not put together as signed data is"),
        }
    }
}
