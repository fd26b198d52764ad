//! Enrolment: a token and a signing request become an identity.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Row, SqlitePool};
use sumun_proto::v1::enrolment_server::Enrolment;
use sumun_proto::v1::{EnrollRequest, EnrollResponse};
use tonic::{Request, Response, Status};
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::ingest::writer::chain;
use crate::metrics::Metrics;
use crate::state::now_ns;
use crate::tenant::ca::{Ca, checked_key};
use crate::tenant::identity::Identity;
use crate::tenant::registry::Registry;
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
}

#[tonic::async_trait]
impl Enrolment for EnrolmentService {
    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        let request = request.into_inner();
        let result = self.enrol(&request).await;
        match &result {
            Ok(response) => {
                self.metrics.enrolments.inc();
                info!(
                    agent = %response.agent_id, tenant = %response.tenant,
                    host = %request.host_name, "enrolled an agent"
                );
            }
            Err(status) => {
                self.metrics.enrolments_refused.inc();
                warn!(host = %request.host_name, reason = status.message(), "refused an enrolment");
            }
        }
        result.map(Response::new)
    }
}

impl EnrolmentService {
    async fn enrol(&self, request: &EnrollRequest) -> Result<EnrollResponse, Status> {
        if request.host_name.len() > NAME_MAX || request.machine_id.len() > NAME_MAX {
            return Err(Status::invalid_argument(
                "host name and machine id have 253 bytes at most",
            ));
        }
        if request.token.len() > TOKEN_MAX {
            return Err(Status::permission_denied("the token is not valid"));
        }
        // Before the token is touched: a bad request must not use it up.
        checked_key(&request.csr_der)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let internal = |error: &dyn std::error::Error| {
            error!(error = %chain(error), "failed to enrol an agent");
            Status::unavailable("the collector cannot enrol now: try again")
        };

        let hash = token::hash(&request.token);
        let now = now_ns();
        let mut tx = self
            .database
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(|error| internal(&error))?;
        let row = sqlx::query(
            "UPDATE token SET uses_left = uses_left - 1 WHERE hash = ? AND purpose = 'enroll' \
             AND uses_left > 0 AND expires_ns > ? RETURNING tenant",
        )
        .bind(&hash[..])
        .bind(now)
        .fetch_optional(&mut *tx)
        .await
        .map_err(|error| internal(&error))?;
        let Some(row) = row else {
            let row =
                sqlx::query("SELECT expires_ns FROM token WHERE hash = ? AND purpose = 'enroll'")
                    .bind(&hash[..])
                    .fetch_optional(&mut *tx)
                    .await
                    .map_err(|error| internal(&error))?;
            // Whoever holds a real token may know what became of it.
            let expires_ns = row.map(|row| row.try_get::<i64, _>("expires_ns"));
            return Err(Status::permission_denied(match expires_ns {
                None | Some(Err(_)) => "the token is not valid",
                Some(Ok(expires_ns)) if expires_ns <= now => {
                    "the token has expired: ask for a new one"
                }
                Some(Ok(_)) => "the token is used up: ask for a new one",
            }));
        };
        let tenant: String = row.try_get("tenant").map_err(|error| internal(&error))?;
        let identity = Identity {
            tenant: tenant.into(),
            agent: Uuid::new_v4(),
        };
        let issued = self
            .ca
            .issue_agent(&request.csr_der, &identity, self.valid)
            .map_err(|error| internal(&error))?;
        sqlx::query(
            "INSERT INTO agent (id, tenant, name, machine_id, enrolled_ns, certificate_expires_ns) \
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(identity.agent.hyphenated().to_string())
        .bind(&*identity.tenant)
        .bind(&request.host_name)
        .bind(&request.machine_id)
        .bind(now)
        .bind(issued.expires_ns)
        .execute(&mut *tx)
        .await
        .map_err(|error| internal(&error))?;
        // Durable before the certificate leaves.
        tx.commit().await.map_err(|error| internal(&error))?;
        self.registry
            .enrolled(&identity, &request.host_name, issued.expires_ns, now);
        Ok(EnrollResponse {
            agent_id: identity.agent.hyphenated().to_string(),
            tenant: identity.tenant.to_string(),
            certificate_pem: issued.pem,
            ca_pem: self.ca.pem().to_owned(),
        })
    }
}
