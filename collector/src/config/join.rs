//! `[[join]]`: who may join without a token.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::{Check, Error};
use crate::tenant::DEFAULT_TENANT;
use crate::tenant::identity::is_tenant_name;
use crate::tenant::join::ec2::Ec2;
use crate::tenant::join::issuer::Issuer;
use crate::tenant::join::kubernetes::{KeySource, Kubernetes};
use crate::tenant::join::{Join, Method};

/// Entries, at most.
const JOINS_MAX: usize = 1024;
/// How old an instance may be that joins by its document, if nothing else is said.
const AGE: u64 = 3600;

/// As it is written: the keys of a method that is not the entry's are refused, too.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    name: Spanned<String>,
    tenant: Option<Spanned<String>>,
    method: Spanned<String>,
    accounts: Option<Spanned<Vec<String>>>,
    regions: Option<Spanned<Vec<String>>>,
    certificates: Option<Spanned<PathBuf>>,
    max_age_seconds: Option<Spanned<u64>>,
    issuer: Option<Spanned<String>>,
    audience: Option<Spanned<String>>,
    keys: Option<Spanned<PathBuf>>,
    issuer_ca: Option<Spanned<PathBuf>>,
    issuer_token: Option<Spanned<PathBuf>>,
    subjects: Option<Spanned<Vec<String>>>,
}

/// Checks all entries, and that no two of them could let the same host in.
pub(super) fn check(raw: Vec<Raw>, check: &Check<'_>, dir: &Path) -> Result<Vec<Join>, Error> {
    let mut joins: Vec<Join> = Vec::new();
    let (mut names, mut accounts) = (HashSet::new(), HashSet::new());
    for raw in raw {
        if joins.len() == JOINS_MAX {
            return Err(check.error(&raw.name, format!("more than {JOINS_MAX} entries [[join]]")));
        }
        let name = raw.name.get_ref();
        // It is a part of what agents are bound to.
        if !is_tenant_name(name) {
            let what = format!("{name:?} is no name of an entry: lower-case letters, digits and -");
            return Err(check.error(&raw.name, what));
        }
        if !names.insert(name.clone()) {
            return Err(check.error(&raw.name, format!("there is an entry {name:?} already")));
        }
        if let Some(tenant) = raw.tenant.as_ref()
            && !is_tenant_name(tenant.get_ref())
        {
            let what = format!("{:?} is not a tenant's name", tenant.get_ref());
            return Err(check.error(tenant, what));
        }
        let method = match raw.method.get_ref().as_str() {
            "ec2" => Method::Ec2(ec2(&raw, check, dir, &mut accounts)?),
            "kubernetes" => Method::Kubernetes(kubernetes(&raw, check, dir)?),
            other => {
                let what = format!("{other:?} is no method: ec2 or kubernetes");
                return Err(check.error(&raw.method, what));
            }
        };
        let tenant = raw
            .tenant
            .as_ref()
            .map_or(DEFAULT_TENANT, |tenant| tenant.get_ref());
        joins.push(Join {
            name: name.clone(),
            tenant: tenant.into(),
            method,
        });
    }
    Ok(joins)
}

fn ec2(
    raw: &Raw,
    check: &Check<'_>,
    dir: &Path,
    taken: &mut HashSet<String>,
) -> Result<Ec2, Error> {
    foreign(check, "ec2", &raw.issuer)?;
    foreign(check, "ec2", &raw.audience)?;
    foreign(check, "ec2", &raw.keys)?;
    foreign(check, "ec2", &raw.issuer_ca)?;
    foreign(check, "ec2", &raw.issuer_token)?;
    foreign(check, "ec2", &raw.subjects)?;
    let accounts = needed(raw, check, "accounts", &raw.accounts)?;
    for account in accounts.get_ref() {
        if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
            let what = format!("{account:?} is not an account: twelve digits");
            return Err(check.error(accounts, what));
        }
        // Otherwise their order would say whose agent it becomes.
        if !taken.insert(account.clone()) {
            let what = format!("the account {account} is in another entry already");
            return Err(check.error(accounts, what));
        }
    }
    let ec2 = Ec2 {
        accounts: accounts.get_ref().clone(),
        regions: raw
            .regions
            .as_ref()
            .map_or_else(Vec::new, |regions| regions.get_ref().clone()),
        certificates: dir.join(needed(raw, check, "certificates", &raw.certificates)?.get_ref()),
        max_age: Duration::from_secs(check.within(
            &raw.max_age_seconds,
            AGE,
            60,
            20 * 366 * 86_400,
        )?),
    };
    if accounts.get_ref().is_empty() {
        return Err(check.error(accounts, "no account: nobody could join".into()));
    }
    if let Some(certificates) = &raw.certificates {
        let keys = ec2.keys().map_err(|why| check.error(certificates, why))?;
        let lacking = ec2
            .regions
            .iter()
            .find(|region| !keys.contains_key(*region));
        if let Some(region) = lacking {
            let what = format!("no certificate {region}.pem there");
            return Err(check.error(certificates, what));
        }
    }
    Ok(ec2)
}

fn kubernetes(raw: &Raw, check: &Check<'_>, dir: &Path) -> Result<Kubernetes, Error> {
    foreign(check, "kubernetes", &raw.accounts)?;
    foreign(check, "kubernetes", &raw.regions)?;
    foreign(check, "kubernetes", &raw.certificates)?;
    foreign(check, "kubernetes", &raw.max_age_seconds)?;
    let subjects = needed(raw, check, "subjects", &raw.subjects)?;
    let account = |subject: &String| {
        let mut parts = subject
            .strip_prefix("system:serviceaccount:")
            .unwrap_or("")
            .split(':');
        let whole = [parts.next(), parts.next()];
        whole
            .iter()
            .all(|part| part.is_some_and(|part| !part.is_empty()))
            && parts.next().is_none()
    };
    if subjects.get_ref().is_empty() || !subjects.get_ref().iter().all(account) {
        let what = "subjects are service accounts: \"system:serviceaccount:NAMESPACE:NAME\"";
        return Err(check.error(subjects, what.into()));
    }
    let audience = needed(raw, check, "audience", &raw.audience)?;
    if audience.get_ref().is_empty() {
        return Err(check.error(audience, "a token has to be for an audience".into()));
    }
    let issuer = needed(raw, check, "issuer", &raw.issuer)?;
    let kubernetes = Kubernetes {
        issuer: issuer.get_ref().clone(),
        audience: audience.get_ref().clone(),
        keys: key_source(raw, check, dir, issuer)?,
        subjects: subjects.get_ref().clone(),
    };
    if let Some(keys) = &raw.keys {
        kubernetes.check().map_err(|why| check.error(keys, why))?;
    }
    Ok(kubernetes)
}

/// A file of keys, or the issuer itself with whoever vouches for it.
fn key_source(
    raw: &Raw,
    check: &Check<'_>,
    dir: &Path,
    issuer: &Spanned<String>,
) -> Result<KeySource, Error> {
    let authority = match (&raw.keys, &raw.issuer_ca) {
        (Some(keys), None) => {
            if let Some(token) = &raw.issuer_token {
                let what = "`issuer_token` is for an issuer that is asked: with `issuer_ca`";
                return Err(check.error(token, what.into()));
            }
            return Ok(KeySource::File(dir.join(keys.get_ref())));
        }
        (Some(keys), Some(_)) => {
            let what = "`keys` or `issuer_ca`: the keys are in a file, or the issuer is asked";
            return Err(check.error(keys, what.into()));
        }
        (None, Some(authority)) => authority,
        (None, None) => {
            let what = "the method \"kubernetes\" needs `keys`, a file, or `issuer_ca`, which vouches for the issuer that is asked for them";
            return Err(check.error(&raw.method, what.into()));
        }
    };
    let token = raw.issuer_token.as_ref();
    let token = token.map(|token| dir.join(token.get_ref()));
    let made = Issuer::new(issuer.get_ref(), &dir.join(authority.get_ref()), token);
    let made = made.map_err(|why| check.error(authority, why))?;
    Ok(KeySource::Issuer(Arc::new(made)))
}

fn needed<'a, T>(
    raw: &Raw,
    check: &Check<'_>,
    key: &str,
    value: &'a Option<Spanned<T>>,
) -> Result<&'a Spanned<T>, Error> {
    value.as_ref().ok_or_else(|| {
        let what = format!("the method {:?} needs `{key}`", raw.method.get_ref());
        check.error(&raw.method, what)
    })
}

fn foreign<T>(check: &Check<'_>, method: &str, value: &Option<Spanned<T>>) -> Result<(), Error> {
    match value {
        None => Ok(()),
        Some(value) => Err(check.error(
            value,
            format!("this key is not one of the method {method:?}"),
        )),
    }
}
