//! Joining without a token: what vouches for a host instead is its cloud or its cluster. What is proved is bound to the first
//! agent that shows it, so that nothing is gained by showing it again.

pub mod binding;
mod cms;
pub mod ec2;
pub mod issuer;
pub mod kubernetes;
pub mod limit;

use std::sync::Arc;

use ec2::Ec2;
use kubernetes::Kubernetes;
use sumun_proto::v1::enroll_request::Proof;

/// An entry `[[join]]` of the configuration.
#[derive(Clone, Debug)]
pub struct Join {
    /// What people call it.
    pub name: String,
    /// Whose agents these become.
    pub tenant: Arc<str>,
    /// Who may.
    pub method: Method,
}

/// Who vouches.
#[derive(Clone, Debug)]
pub enum Method {
    /// Amazon, for instances of EC2.
    Ec2(Ec2),
    /// A cluster of Kubernetes, for its nodes.
    Kubernetes(Kubernetes),
}

/// What was proved: who this is, by names that are nobody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// `ec2` or `kubernetes`.
    pub method: &'static str,
    /// The instance, or the node of a cluster.
    pub subject: String,
}

/// Why nothing was proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For people, on both sides.
    pub why: String,
    /// It is the collector that cannot judge it now.
    pub broken: bool,
    /// Whose agent it would have become, if that much is known: its admins are told.
    pub tenant: Option<Arc<str>>,
}

impl Failure {
    fn denied(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            broken: false,
            tenant: None,
        }
    }

    fn broken(why: String) -> Self {
        Self {
            why,
            broken: true,
            tenant: None,
        }
    }

    fn at(mut self, join: &Join) -> Self {
        self.tenant = Some(Arc::clone(&join.tenant));
        self
    }
}

/// Fetches what judging this proof may need and is not here. It takes a few seconds at most; what failed is said by [`prove`].
pub async fn prepare(joins: &[Join], proof: &Proof) {
    if let Proof::ServiceAccountToken(token) = proof {
        let of = joins.iter().filter_map(|join| match &join.method {
            Method::Kubernetes(kubernetes) => Some(kubernetes),
            Method::Ec2(_) => None,
        });
        kubernetes::prepare(of, token).await;
    }
}

/// Judges a proof by the entries of the configuration: which of them lets its bearer in, and as whom.
///
/// # Errors
/// Why it does not.
pub fn prove<'a>(joins: &'a [Join], proof: &Proof) -> Result<(&'a Join, Proven), Failure> {
    match proof {
        Proof::Ec2Document(signed) => {
            let of = joins.iter().filter_map(|join| match &join.method {
                Method::Ec2(ec2) => Some((join, ec2)),
                Method::Kubernetes(_) => None,
            });
            ec2::prove(of, signed)
        }
        Proof::ServiceAccountToken(token) => {
            let of = joins.iter().filter_map(|join| match &join.method {
                Method::Kubernetes(kubernetes) => Some((join, kubernetes)),
                Method::Ec2(_) => None,
            });
            kubernetes::prove(of, token)
        }
    }
}

#[cfg(test)]
mod tests;
