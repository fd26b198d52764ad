//! The service `Admin`.

use std::sync::Arc;
use std::time::Duration;

use sumun_proto::v1::admin_server::Admin;
use sumun_proto::v1::create_token_request::Purpose as WirePurpose;
use sumun_proto::v1::{CreateTokenRequest, CreateTokenResponse};
use tonic::{Request, Response, Status};
use tracing::{error, info};

use crate::ingest::writer::chain;
use crate::tenant::token::{self, Error, Purpose, Tokens};

/// The service `Admin`. Every method needs an admin token; the tenant is the
/// token's.
#[derive(Debug)]
pub struct AdminService {
    /// The tokens.
    pub tokens: Arc<Tokens>,
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let Some(admin) = request.extensions().get::<token::Admin>().cloned() else {
            return Err(Status::unauthenticated("this needs an admin token"));
        };
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
}
