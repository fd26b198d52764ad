//! The service `Admin`.

use std::sync::Arc;
use std::time::Duration;

use sqlx::SqlitePool;
use sumun_proto::v1::admin_server::Admin;
use sumun_proto::v1::create_token_request::Purpose as WirePurpose;
use sumun_proto::v1::{
    CreateTokenRequest, CreateTokenResponse, ForgetJoinRequest, ForgetJoinResponse,
    ListJoinsRequest, ListJoinsResponse,
};
use tonic::{Request, Response, Status};
use tracing::{error, info};

use crate::ingest::writer::chain;
use crate::tenant::join::binding;
use crate::tenant::registry::Registry;
use crate::tenant::token::{self, Error, Purpose, Tokens};

/// The service `Admin`. Every method needs an admin token; the tenant is the
/// token's.
#[derive(Debug)]
pub struct AdminService {
    /// The tokens.
    pub tokens: Arc<Tokens>,
    /// The state database.
    pub database: SqlitePool,
    /// Learns of agents that are revoked.
    pub registry: Registry,
}

/// Whose token it is.
fn who<T>(request: &Request<T>) -> Result<token::Admin, Status> {
    let admin = request.extensions().get::<token::Admin>().cloned();
    admin.ok_or_else(|| Status::unauthenticated("this needs an admin token"))
}

fn failed(error: &sqlx::Error) -> Status {
    error!(error = %chain(error), "failed to read or write who has joined");
    Status::unavailable("the collector cannot do that now: try again")
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let admin = who(&request)?;
        let request = request.into_inner();
        let purpose = match request.purpose() {
            WirePurpose::Enroll => Purpose::Enroll,
            WirePurpose::Admin => Purpose::Admin,
            WirePurpose::Unspecified => {
                return Err(Status::invalid_argument(
                    "a token is for one purpose: enroll or admin",
                ));
            }
        };
        let valid = Duration::from_secs(request.valid_seconds);
        let created = self
            .tokens
            .create(&admin.tenant, purpose, &request.name, request.uses, valid)
            .await
            .map_err(|error| match error {
                Error::Invalid(what) => Status::invalid_argument(what),
                error => {
                    error!(error = %chain(&error), "failed to make a token");
                    Status::unavailable("the collector cannot make a token now: try again")
                }
            })?;
        info!(
            ?purpose, by = %admin.name, tenant = %admin.tenant, name = %request.name,
            uses = request.uses, valid_seconds = request.valid_seconds, "made a token"
        );
        Ok(Response::new(CreateTokenResponse {
            token: created.token,
            expires_ns: created.expires_ns,
        }))
    }

    async fn list_joins(
        &self,
        request: Request<ListJoinsRequest>,
    ) -> Result<Response<ListJoinsResponse>, Status> {
        let admin = who(&request)?;
        let request = request.into_inner();
        let mut response = ListJoinsResponse::default();
        if request.log {
            let limit = match request.limit {
                0 => binding::ROWS_MAX,
                limit => limit,
            };
            let log = binding::log(&self.database, &admin.tenant, limit).await;
            response.log = log.map_err(|error| failed(&error))?;
        } else {
            let joined = binding::list(&self.database, &admin.tenant).await;
            response.joined = joined.map_err(|error| failed(&error))?;
        }
        Ok(Response::new(response))
    }

    async fn forget_join(
        &self,
        request: Request<ForgetJoinRequest>,
    ) -> Result<Response<ForgetJoinResponse>, Status> {
        let admin = who(&request)?;
        let subject = request.into_inner().subject;
        let agents = binding::forget(&self.database, &admin.tenant, &subject, &admin.name)
            .await
            .map_err(|error| failed(&error))?;
        for agent in &agents {
            self.registry.revoke(*agent);
        }
        let forgotten = agents.len() as u64;
        info!(by = %admin.name, tenant = %admin.tenant, subject, forgotten, "forgot who has joined");
        Ok(Response::new(ForgetJoinResponse { forgotten }))
    }
}
