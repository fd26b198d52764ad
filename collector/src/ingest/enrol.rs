//! Enrolment: a token, or what vouches for a host in its place, and a signing request become an identity.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use rcgen::PublicKeyData as _;
use sha2::{Digest as _, Sha256};
use sqlx::{Row, Sqlite, SqlitePool, Transaction};
use sumun_proto::v1::enroll_request::Proof;
use sumun_proto::v1::enrolment_server::Enrolment;
use sumun_proto::v1::{EnrollRequest, EnrollResponse, JoinAttempt};
use tonic::{Request, Response, Status};
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::api::auth::Peer;
use crate::ingest::writer::chain;
use crate::metrics::Metrics;
use crate::state::now_ns;
use crate::tenant::ca::{Ca, checked_key};
use crate::tenant::identity::Identity;
use crate::tenant::join::binding::{self, Binding};
use crate::tenant::join::limit::Limit;
use crate::tenant::join::{self, Join};
use crate::tenant::registry::{Refusal, Registry};
use crate::tenant::token;

const NAME_MAX: usize = 253;
const TOKEN_MAX: usize = 256;

/// The service `Enrolment`. It needs no client certificate.
#[derive(Debug)]
pub struct EnrolmentService {
    /// The state database.
    pub database: SqlitePool,
    /// Issues the certificates.
    pub ca: Arc<Ca>,
    /// Learns of the new agents.
    pub registry: Registry,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Validity of an agent's certificate.
    pub valid: Duration,
    /// Who may join without a token.
    pub joins: Arc<[Join]>,
    /// Who tried too often.
    pub limit: Limit,
}

/// Why somebody was not enrolled.
struct Refused {
    status: Status,
    /// Whose agent it would have become, if that is known.
    tenant: Option<Arc<str>>,
    subject: String,
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self {
            status,
            tenant: None,
            subject: String::new(),
        }
    }
}

/// What somebody is let in by.
struct Entry {
    tenant: Arc<str>,
    /// Method, subject and entry of the configuration; `None` for a token.
    proven: Option<(&'static str, String, String)>,
}

#[tonic::async_trait]
impl Enrolment for EnrolmentService {
    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        let peer = request.extensions().get::<Peer>();
        let address = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.address.ip());
        // Before anything is done for it.
        let Some(mut tried) = self.limit.begin(address) else {
            self.metrics.enrolments_refused.inc();
            return Err(Status::resource_exhausted(
                "too many enrolments from this address were tried in vain: try again in a minute",
            ));
        };
        let request = request.into_inner();
        if let Some(proof) = &request.proof {
            join::prepare(&self.joins, proof).await;
        }
        let Some(_turn) = tried.turn().await else {
            self.metrics.enrolments_refused.inc();
            return Err(Status::unavailable(
                "too many hosts are being enrolled: try again",
            ));
        };
        match self.enrol(&request, address).await {
            Ok((response, subject)) => {
                tried.proved(subject.as_deref());
                self.metrics.enrolments.inc();
                info!(
                    agent = %response.agent_id, tenant = %response.tenant,
                    host = %request.host_name, "enrolled an agent"
                );
                Ok(Response::new(response))
            }
            Err(refused) => {
                self.metrics.enrolments_refused.inc();
                warn!(
                    host = %request.host_name, address = %address, subject = refused.subject,
                    reason = refused.status.message(), "refused an enrolment"
                );
                let attempt = JoinAttempt {
                    outcome: "refused".into(),
                    subject: refused.subject,
                    reason: refused.status.message().to_owned(),
                    ..attempt(&request, address)
                };
                let tenant = refused.tenant.unwrap_or_default();
                if let Err(error) = self.note(&tenant, &attempt).await {
                    warn!(error = %chain(&error), "failed to write the log of enrolments");
                }
                Err(refused.status)
            }
        }
    }
}

impl EnrolmentService {
    /// The identity, and what it was proved to be, if not by a token.
    async fn enrol(
        &self,
        request: &EnrollRequest,
        address: IpAddr,
    ) -> Result<(EnrollResponse, Option<String>), Refused> {
        if request.host_name.len() > NAME_MAX || request.machine_id.len() > NAME_MAX {
            return Err(Status::invalid_argument(
                "host name and machine id have 253 bytes at most",
            )
            .into());
        }
        if request.token.len() > TOKEN_MAX {
            return Err(Status::permission_denied("the token is not valid").into());
        }
        // Before the token is touched: a bad request must not use it up.
        let key = checked_key(&request.csr_der)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let key = Sha256::digest(key.subject_public_key_info()).to_vec();
        let proven = match &request.proof {
            Some(proof) => Some(self.prove(proof).await?),
            None => None,
        };
        let mut tx = self
            .database
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(|error| internal(&error))?;
        let entry = match proven {
            Some(entry) => entry,
            None => Entry {
                tenant: spend(&mut tx, &request.token).await?,
                proven: None,
            },
        };
        let (identity, known) = self.whose(&mut tx, &entry, &key).await?;
        let issued = self
            .ca
            .issue_agent(&request.csr_der, &identity, self.valid)
            .map_err(|error| internal(&error))?;
        let now = now_ns();
        let query = match known {
            false => sqlx::query(
                "INSERT INTO agent (tenant, name, machine_id, certificate_expires_ns, enrolled_ns, id) \
                 VALUES (?, ?, ?, ?, ?, ?)",
            ),
            true => sqlx::query(
                "UPDATE agent SET tenant = ?, name = ?, machine_id = ?, certificate_expires_ns = ?, \
                 enrolled_ns = ? WHERE id = ?",
            ),
        };
        query
            .bind(&*identity.tenant)
            .bind(&request.host_name)
            .bind(&request.machine_id)
            .bind(issued.expires_ns)
            .bind(now)
            .bind(identity.agent.hyphenated().to_string())
            .execute(&mut *tx)
            .await
            .map_err(|error| internal(&error))?;
        let mut attempt = JoinAttempt {
            outcome: if known { "again" } else { "enrolled" }.into(),
            agent: identity.agent.hyphenated().to_string(),
            ..attempt(request, address)
        };
        if let Some((method, subject, name)) = &entry.proven {
            let to = Binding {
                agent: identity.agent,
                key,
            };
            binding::bind(&mut tx, &entry.tenant, (method, subject, name), &to)
                .await
                .map_err(|error| internal(&error))?;
            attempt.subject.clone_from(subject);
        }
        binding::write(&mut tx, &entry.tenant, &attempt)
            .await
            .map_err(|error| internal(&error))?;
        // Durable before the certificate leaves.
        tx.commit().await.map_err(|error| internal(&error))?;
        match self.registry.check(&identity) {
            Ok(()) => self.registry.expires(&identity, issued.expires_ns),
            Err(_) => {
                self.registry
                    .enrolled(&identity, &request.host_name, issued.expires_ns, now);
            }
        }
        let response = EnrollResponse {
            agent_id: identity.agent.hyphenated().to_string(),
            tenant: identity.tenant.to_string(),
            certificate_pem: issued.pem,
            ca_pem: self.ca.pem().to_owned(),
        };
        Ok((response, entry.proven.map(|(_, subject, _)| subject)))
    }

    /// Judges what vouches for the host.
    async fn prove(&self, proof: &Proof) -> Result<Entry, Refused> {
        let (joins, proof) = (Arc::clone(&self.joins), proof.clone());
        // It reads files and verifies signatures.
        let judged = tokio::task::spawn_blocking(move || {
            join::prove(&joins, &proof).map(|(join, proven)| Entry {
                tenant: Arc::clone(&join.tenant),
                proven: Some((proven.method, proven.subject, join.name.clone())),
            })
        });
        let judged = judged.await.map_err(|error| internal(&error))?;
        judged.map_err(|failure| {
            let status = if failure.broken {
                error!(reason = failure.why, "cannot judge who may join");
                Status::unavailable("the collector cannot judge this proof now: its log says why")
            } else {
                Status::permission_denied(failure.why)
            };
            Refused {
                status,
                tenant: failure.tenant,
                subject: String::new(),
            }
        })
    }

    /// The agent that it becomes, and whether that is one that was enrolled before.
    async fn whose(
        &self,
        tx: &mut Transaction<'_, Sqlite>,
        entry: &Entry,
        key: &[u8],
    ) -> Result<(Identity, bool), Refused> {
        let tenant = &entry.tenant;
        let identity = |agent| Identity {
            tenant: Arc::clone(tenant),
            agent,
        };
        let Some((method, subject, _)) = &entry.proven else {
            return Ok((identity(Uuid::new_v4()), false));
        };
        let refused = |why: String| Refused {
            status: Status::permission_denied(why),
            tenant: Some(Arc::clone(tenant)),
            subject: subject.clone(),
        };
        let other = binding::other_of_key(tx, tenant, (method, subject), key)
            .await
            .map_err(|error| internal(&error))?;
        if let Some(other) = other {
            return Err(refused(format!(
                "the key is that of {other}, as on a copy of its disk: remove agent.key and what begins with it, and join again"
            )));
        }
        let bound = binding::bound(tx, tenant, method, subject)
            .await
            .map_err(|error| internal(&error))?;
        let Some(bound) = bound else {
            return Ok((identity(Uuid::new_v4()), false));
        };
        let identity = identity(bound.agent);
        match self.registry.check(&identity) {
            // The database has it: it was written, and whoever asked did not wait for the end.
            Ok(()) | Err(Refusal::UnknownAgent) => {}
            Err(refusal) => return Err(refused(refusal.to_string())),
        }
        // The signing request proves that its sender has the key.
        if bound.key == key {
            return Ok((identity, true));
        }
        Err(refused(format!(
            "{subject} has joined already, as the agent {}: another needs the key of that one, or an admin who has it forgotten (sumunctl joins forget {subject})",
            identity.agent
        )))
    }

    async fn note(&self, tenant: &str, attempt: &JoinAttempt) -> Result<(), sqlx::Error> {
        let mut tx = self.database.begin_with("BEGIN IMMEDIATE").await?;
        binding::write(&mut tx, tenant, attempt).await?;
        tx.commit().await
    }
}

/// Uses a token once; its tenant.
async fn spend(tx: &mut Transaction<'_, Sqlite>, token: &str) -> Result<Arc<str>, Refused> {
    let hash = token::hash(token);
    let now = now_ns();
    let row = sqlx::query(
        "UPDATE token SET uses_left = uses_left - 1 WHERE hash = ? AND purpose = 'enroll' \
         AND uses_left > 0 AND expires_ns > ? RETURNING tenant",
    )
    .bind(&hash[..])
    .bind(now)
    .fetch_optional(&mut **tx)
    .await
    .map_err(|error| internal(&error))?;
    if let Some(row) = row {
        let tenant: String = row.try_get("tenant").map_err(|error| internal(&error))?;
        return Ok(tenant.into());
    }
    let row =
        sqlx::query("SELECT tenant, expires_ns FROM token WHERE hash = ? AND purpose = 'enroll'")
            .bind(&hash[..])
            .fetch_optional(&mut **tx)
            .await
            .map_err(|error| internal(&error))?;
    // Whoever holds a real token may know what became of it.
    let Some(row) = row else {
        return Err(Status::permission_denied("the token is not valid").into());
    };
    let tenant: String = row.try_get("tenant").map_err(|error| internal(&error))?;
    let expires_ns: i64 = row
        .try_get("expires_ns")
        .map_err(|error| internal(&error))?;
    Err(Refused {
        status: Status::permission_denied(match expires_ns <= now {
            true => "the token has expired: ask for a new one",
            false => "the token is used up: ask for a new one",
        }),
        tenant: Some(tenant.into()),
        subject: String::new(),
    })
}

fn attempt(request: &EnrollRequest, address: IpAddr) -> JoinAttempt {
    JoinAttempt {
        method: match &request.proof {
            None => "token",
            Some(Proof::Ec2Document(_)) => "ec2",
            Some(Proof::ServiceAccountToken(_)) => "kubernetes",
        }
        .into(),
        host: request.host_name.chars().take(NAME_MAX).collect(),
        address: address.to_canonical().to_string(),
        ..JoinAttempt::default()
    }
}

fn internal(error: &dyn std::error::Error) -> Refused {
    error!(error = %chain(error), "failed to enrol an agent");
    Status::unavailable("the collector cannot enrol now: try again").into()
}
