//! Who an agent is: `spiffe://sumun/tenant/<tenant>/agent/<uuid>`, the one URI
//! name of its certificate.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

const PREFIX: &str = "spiffe://sumun/tenant/";
const TENANT_MAX: usize = 63;

/// An agent of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Name of the tenant.
    pub tenant: Arc<str>,
    /// Id of the agent: `host.id` of its events.
    pub agent: Uuid,
}

impl Identity {
    /// Reads the URI. `None` if it is not exactly of this form.
    #[must_use]
    pub fn from_uri(uri: &str) -> Option<Self> {
        let (tenant, agent) = uri.strip_prefix(PREFIX)?.split_once("/agent/")?;
        if !is_tenant_name(tenant) {
            return None;
        }
        let id = Uuid::try_parse(agent).ok()?;
        // One way of writing it: no upper case, braces or missing hyphens.
        (id.hyphenated().to_string() == agent).then(|| Identity {
            tenant: tenant.into(),
            agent: id,
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { tenant, agent } = self;
        write!(f, "{PREFIX}{tenant}/agent/{}", agent.hyphenated())
    }
}

/// Whether a text can name a tenant: it becomes a part of URIs and paths.
#[must_use]
pub fn is_tenant_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty()
        && name.len() <= TENANT_MAX
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uri_and_identity_are_each_other() {
        let uri = "spiffe://sumun/tenant/acme-2/agent/6f1b3a44-0d6b-4be0-9d3c-54c2b3a0f1aa";
        let identity = Identity::from_uri(uri).expect("well-formed");
        assert_eq!(&*identity.tenant, "acme-2");
        assert_eq!(identity.to_string(), uri);
    }

    #[test]
    fn anything_else_is_nobody() {
        for uri in [
            "",
            "spiffe://other/tenant/a/agent/6f1b3a44-0d6b-4be0-9d3c-54c2b3a0f1aa",
            "spiffe://sumun/tenant//agent/6f1b3a44-0d6b-4be0-9d3c-54c2b3a0f1aa",
            "spiffe://sumun/tenant/../agent/6f1b3a44-0d6b-4be0-9d3c-54c2b3a0f1aa",
            "spiffe://sumun/tenant/A/agent/6f1b3a44-0d6b-4be0-9d3c-54c2b3a0f1aa",
            "spiffe://sumun/tenant/a/agent/6F1B3A44-0D6B-4BE0-9D3C-54C2B3A0F1AA",
            "spiffe://sumun/tenant/a/agent/6f1b3a440d6b4be09d3c54c2b3a0f1aa",
            "spiffe://sumun/tenant/a/agent/6f1b3a44-0d6b-4be0-9d3c-54c2b3a0f1aa/x",
            "spiffe://sumun/tenant/a/b/agent/6f1b3a44-0d6b-4be0-9d3c-54c2b3a0f1aa",
        ] {
            assert_eq!(Identity::from_uri(uri), None, "{uri}");
        }
    }
}
