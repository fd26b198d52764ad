//! Proofs as OpenSSL makes them, which knows nothing of the code here, and what is wrong with each of many others.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::*;

const NODE: &str = "0b5f8a3e-6c1d-4e0f-9a7b-1c2d3e4f5a6b";
pub(super) const SUBJECT: &str = "system:serviceaccount:sumun:sumun-agent";

fn openssl(folder: &Path, args: &[&str]) {
    let output = Command::new("openssl")
        .current_dir(folder)
        .args(args)
        .output();
    let output = output.expect("openssl can be started");
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A folder with the keys of a region and of a stranger; `None`, with a line that says why, without OpenSSL.
fn keys(test: &str) -> Option<TempDir> {
    if Command::new("openssl").arg("version").output().is_err() {
        println!("SKIPPED {test}: openssl is not installed (make setup-test)");
        return None;
    }
    let dir = tempfile::tempdir().expect("a folder");
    fs::create_dir(dir.path().join("certificates")).expect("a folder");
    for (key, certificate) in [
        ("amazon.key", "certificates/eu-west-1.pem"),
        ("other.key", "other.pem"),
    ] {
        let new = [
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
        ];
        openssl(
            dir.path(),
            &[&new[..], &["-keyout", key, "-out", certificate]].concat(),
        );
    }
    Some(dir)
}

fn document(account: &str, region: &str, age: Duration) -> String {
    let begun = (OffsetDateTime::now_utc() - age)
        .replace_nanosecond(0)
        .expect("a time");
    json!({
        "accountId": account,
        "region": region,
        "instanceId": "i-0abc",
        "pendingTime": begun.format(&Rfc3339).expect("a time"),
        "instanceType": "m7g.large",
    })
    .to_string()
}

fn sign(dir: &Path, document: &str, who: (&str, &str), options: &[&str]) -> Vec<u8> {
    fs::write(dir.join("document"), document).expect("a document");
    let (key, certificate) = who;
    let args = [
        "cms",
        "-sign",
        "-binary",
        "-nodetach",
        "-md",
        "sha256",
        "-in",
        "document",
        "-out",
        "signed",
    ];
    let who = ["-outform", "DER", "-inkey", key, "-signer", certificate];
    openssl(dir, &[&args[..], &who, options].concat());
    fs::read(dir.join("signed")).expect("what is signed")
}

const AMAZON: (&str, &str) = ("amazon.key", "certificates/eu-west-1.pem");

fn instances(dir: &Path, regions: &[&str]) -> Vec<Join> {
    let ec2 = Ec2 {
        accounts: vec!["123456789012".into()],
        regions: regions.iter().map(|region| (*region).to_owned()).collect(),
        certificates: dir.join("certificates"),
        max_age: Duration::from_secs(3600),
    };
    vec![Join {
        name: "prod".into(),
        tenant: "acme".into(),
        method: Method::Ec2(ec2),
    }]
}

fn judged(joins: &[Join], signed: &[u8]) -> Result<Proven, Failure> {
    let text = STANDARD.encode(signed).into_bytes();
    prove(joins, &Proof::Ec2Document(text)).map(|(_, proven)| proven)
}

#[test]
fn a_document_counts_in_every_form_in_which_it_is_signed() {
    let Some(dir) = keys("a_document_counts_in_every_form") else {
        return;
    };
    let dir = dir.path();
    let joins = instances(dir, &[]);
    let good = document("123456789012", "eu-west-1", Duration::from_secs(60));
    // With attributes and without, of known and of unknown length as Amazon's, with the certificate and without.
    for options in [
        &[][..],
        &["-noattr"],
        &["-stream"],
        &["-stream", "-noattr"],
        &["-nocerts", "-keyid"],
    ] {
        let signed = sign(dir, &good, AMAZON, options);
        let proven =
            judged(&joins, &signed).unwrap_or_else(|failure| panic!("{options:?}: {failure:?}"));
        assert_eq!(proven.subject, "123456789012/eu-west-1/i-0abc");
        // One byte of what is signed, and it is not signed any more.
        let at = signed
            .windows(6)
            .position(|six| six == b"i-0abc")
            .expect("the document is inside");
        let mut forged = signed.clone();
        forged[at + 5] = b'd';
        let failure = judged(&joins, &forged).expect_err("forged");
        assert!(failure.why.contains("signed"), "{options:?}: {failure:?}");
        for end in (0..signed.len()).step_by(97) {
            judged(&joins, &signed[..end]).expect_err("cut off");
        }
    }
    let text = STANDARD.encode(sign(dir, &good, AMAZON, &[]));
    let lines = format!(
        "-----BEGIN PKCS7-----\n{}\n{}\n-----END PKCS7-----\n",
        &text[..64],
        &text[64..]
    );
    prove(&joins, &Proof::Ec2Document(lines.into_bytes())).expect("with its lines around");
}

#[test]
fn who_is_not_asked_for_may_not_join() {
    let Some(dir) = keys("who_is_not_asked_for") else {
        return;
    };
    let dir = dir.path();
    let minute = Duration::from_secs(60);
    let account = "123456789012";
    let good = document(account, "eu-west-1", minute);
    let joins = instances(dir, &[]);
    let refused = |joins: &[Join], document: &str, who, part: &str| {
        let failure = judged(joins, &sign(dir, document, who, &[])).expect_err(part);
        assert!(
            failure.why.contains(part) && !failure.broken,
            "{part}: {failure:?}"
        );
    };
    refused(
        &joins,
        &good,
        ("other.key", "other.pem"),
        "not signed by Amazon's key",
    );
    refused(
        &joins,
        &document("210987654321", "eu-west-1", minute),
        AMAZON,
        "account 210987654321",
    );
    refused(
        &joins,
        &document(account, "us-east-1", minute),
        AMAZON,
        "no certificate of Amazon's for us-east-1",
    );
    refused(
        &joins,
        &document(account, "../eu-west-1", minute),
        AMAZON,
        "no identity document",
    );
    refused(
        &joins,
        &document(account, "eu-west-1", 61 * minute),
        AMAZON,
        "was started at",
    );
    refused(&joins, "{}", AMAZON, "no identity document");
    refused(
        &instances(dir, &["us-east-1"]),
        &good,
        AMAZON,
        "in eu-west-1 may not join",
    );
    let tomorrow = OffsetDateTime::now_utc() + time::Duration::days(1);
    let future = good.replace(
        &good[good.find("pendingTime").expect("a time") + 14..][..20],
        &tomorrow
            .replace_nanosecond(0)
            .expect("a time")
            .format(&Rfc3339)
            .expect("a time"),
    );
    refused(&joins, &future, AMAZON, "from the future");
    // A hash that nobody should use any more, and a signature that covers nothing.
    fs::write(dir.join("document"), &good).expect("a document");
    let sha1 = [
        "cms",
        "-sign",
        "-binary",
        "-nodetach",
        "-md",
        "sha1",
        "-in",
        "document",
        "-out",
        "signed",
        "-outform",
        "DER",
    ];
    openssl(
        dir,
        &[&sha1[..], &["-inkey", AMAZON.0, "-signer", AMAZON.1]].concat(),
    );
    let failure =
        judged(&joins, &fs::read(dir.join("signed")).expect("signed")).expect_err("SHA-1");
    assert!(failure.why.contains("SHA-256"), "{failure:?}");
    for bytes in [
        &b""[..],
        b"\x30\x80",
        &[0x30; 2000],
        &[0x24, 0x80].repeat(1000),
    ] {
        judged(&joins, bytes).expect_err("nothing of the kind");
    }
    let failure = prove(&joins, &Proof::Ec2Document(b"<html>".to_vec())).expect_err("no base64");
    assert!(failure.why.contains("base64"), "{failure:?}");
    // The collector's own fault is not the instance's.
    let signed = sign(dir, &good, AMAZON, &[]);
    fs::remove_dir_all(dir.join("certificates")).expect("removed");
    let failure = judged(&joins, &signed).expect_err("no certificates");
    assert!(failure.broken && failure.tenant.is_some(), "{failure:?}");
}

pub(super) struct Cluster {
    pub(super) dir: TempDir,
    key: EcdsaKeyPair,
    joins: Vec<Join>,
}

impl Cluster {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (random, kind) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let key = EcdsaKeyPair::generate_pkcs8(kind, &random).expect("a key");
        let key = EcdsaKeyPair::from_pkcs8(kind, key.as_ref(), &random).expect("a key");
        let point = key.public_key().as_ref();
        let part = |range| URL_SAFE_NO_PAD.encode(&point[range]);
        let keys = json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "kid": "one", "use": "sig", "alg": "ES256", "x": part(1..33), "y": part(33..65),
        }]});
        fs::write(dir.path().join("keys.json"), keys.to_string()).expect("keys");
        let joins = vec![Join {
            name: "here".into(),
            tenant: "acme".into(),
            method: Method::Kubernetes(Kubernetes {
                issuer: "https://kubernetes.default.svc.cluster.local".into(),
                audience: "sumun-collector".into(),
                keys: kubernetes::KeySource::File(dir.path().join("keys.json")),
                subjects: vec![SUBJECT.into()],
            }),
        }];
        Self { dir, key, joins }
    }

    pub(super) fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .expect("signed");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    fn judge(&self, token: &str) -> Result<Proven, Failure> {
        prove(&self.joins, &Proof::ServiceAccountToken(token.to_owned())).map(|(_, proven)| proven)
    }
}

/// As Kubernetes 1.30 projects it.
pub(super) fn claims() -> Value {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    json!({
        "aud": ["sumun-collector"],
        "exp": now + 600,
        "iat": now,
        "iss": "https://kubernetes.default.svc.cluster.local",
        "jti": "f1",
        "kubernetes.io": {
            "namespace": "sumun",
            "node": { "name": "node-1", "uid": NODE },
            "pod": { "name": "sumun-agent-x", "uid": "1b5f8a3e-6c1d-4e0f-9a7b-1c2d3e4f5a6b" },
            "serviceaccount": { "name": "sumun-agent", "uid": "2b5f8a3e-6c1d-4e0f-9a7b-1c2d3e4f5a6b" },
        },
        "nbf": now,
        "sub": SUBJECT,
    })
}

#[test]
fn a_node_joins_by_the_token_that_its_pod_has_and_by_no_other() {
    let cluster = Cluster::new();
    let header = json!({ "alg": "ES256", "kid": "one" });
    let token = cluster.sign(&header, &claims());
    let proven = cluster.judge(&token).expect("a node");
    assert_eq!(proven.subject, format!("here/node/{NODE}"));

    let refused = |header: &Value, changes: &[(&str, Value)], part: &str| {
        let mut claims = claims();
        for (pointer, value) in changes {
            match claims.pointer_mut(pointer) {
                Some(place) if !value.is_null() => *place = value.clone(),
                _ => {
                    let (object, key) = pointer.rsplit_once('/').expect("a pointer");
                    let object = claims.pointer_mut(object).and_then(Value::as_object_mut);
                    object.expect("an object").remove(key);
                }
            }
        }
        let failure = cluster
            .judge(&cluster.sign(header, &claims))
            .expect_err(part);
        assert!(
            failure.why.contains(part) && !failure.broken,
            "{part}: {failure:?}"
        );
    };
    let now = OffsetDateTime::now_utc().unix_timestamp();
    refused(
        &header,
        &[("/aud", json!(["https://kubernetes.default.svc"]))],
        "another audience",
    );
    refused(&header, &[("/exp", json!(now - 120))], "expired");
    refused(&header, &[("/nbf", json!(now + 3600))], "future");
    refused(
        &header,
        &[("/exp", json!(now + 30 * 86_400))],
        "more than a day",
    );
    refused(
        &header,
        &[("/sub", json!("system:serviceaccount:shop:default"))],
        "may not join",
    );
    refused(
        &header,
        &[("/iss", json!("https://elsewhere.example"))],
        "issuer",
    );
    refused(&header, &[("/kubernetes.io/node", Value::Null)], "1.30");
    refused(
        &header,
        &[("/kubernetes.io/pod", Value::Null)],
        "not bound to a pod",
    );
    refused(
        &header,
        &[("/kubernetes.io/node/uid", json!("../x"))],
        "no uid",
    );
    // A claim of another type is none.
    for claim in ["exp", "nbf", "iat", "aud", "sub", "kubernetes.io"] {
        refused(&header, &[(&format!("/{claim}"), Value::Null)], "lacks");
        refused(&header, &[(&format!("/{claim}"), json!(true))], "lacks");
    }
    refused(
        &json!({ "alg": "ES256", "kid": "two" }),
        &[],
        "not signed by a key",
    );
    // The token does not choose how it is judged.
    for algorithm in ["none", "HS256", "RS256", "es256", "ES384"] {
        refused(
            &json!({ "alg": algorithm, "kid": "one" }),
            &[],
            "not signed by a key",
        );
    }
    let (signed, signature) = token.rsplit_once('.').expect("a token");
    let other = cluster
        .sign(&header, &json!({}))
        .rsplit_once('.')
        .expect("a token")
        .1
        .to_owned();
    for bad in [
        String::new(),
        "a.b.c".into(),
        signed.to_owned(),
        format!("{signed}."),
        format!("{signed}.{other}"),
        format!("{token}.{signature}"),
        token.replacen('.', "..", 1),
        "x".repeat(20_000),
    ] {
        let failure = cluster.judge(&bad).expect_err("no token");
        assert!(!failure.broken, "{failure:?}");
    }
    // Keys are read anew: one that was taken away counts no more, and none at all is the collector's fault.
    let keys = cluster.dir.path().join("keys.json");
    fs::write(&keys, r#"{"keys": []}"#).expect("keys");
    assert!(!cluster.judge(&token).expect_err("no such key").broken);
    fs::remove_file(&keys).expect("removed");
    assert!(cluster.judge(&token).expect_err("no keys").broken);
}

#[test]
fn of_clusters_with_one_name_the_key_decides() {
    let (mut one, two) = (Cluster::new(), Cluster::new());
    let header = json!({ "alg": "ES256" });
    let mut of_two = two.joins[0].clone();
    of_two.name = "there".into();
    one.joins.push(of_two);
    let proven = one
        .judge(&two.sign(&header, &claims()))
        .expect("a node of the second");
    assert_eq!(proven.subject, format!("there/node/{NODE}"));
    let proven = one
        .judge(&one.sign(&header, &claims()))
        .expect("a node of the first");
    assert_eq!(proven.subject, format!("here/node/{NODE}"));
}
