//! The connection to the collector.

use std::time::Duration;

use sumun_proto::v1::admin_client::AdminClient;
use sumun_proto::v1::query_client::QueryClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::context::Context;
use crate::failure::Failure;

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// Largest answer message; the collector sends rows in chunks far below it.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// A channel whose every call carries the token.
type Authorized = InterceptedService<Channel, Bearer>;

/// Adds `authorization: Bearer TOKEN`.
#[derive(Clone)]
pub(crate) struct Bearer(MetadataValue<Ascii>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut call: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        call.metadata_mut().insert("authorization", self.0.clone());
        Ok(call)
    }
}

/// A connected collector.
pub(crate) struct Remote {
    /// Queries.
    pub(crate) query: QueryClient<Authorized>,
    /// Administration.
    pub(crate) admin: AdminClient<Authorized>,
}

impl Remote {
    /// Connects over TLS, trusting only the context's CA.
    pub(crate) async fn connect(context: &Context) -> Result<Self, Failure> {
        let mut bearer: MetadataValue<Ascii> =
            format!("Bearer {}", context.token).parse().map_err(|_| {
                Failure::message_only(
                    "the token in the context file has characters that no token has",
                )
            })?;
        bearer.set_sensitive(true);
        let bearer = Bearer(bearer);
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&context.ca_pem))
            .domain_name(&context.host);
        let unreachable = |error: tonic::transport::Error| {
            Failure::failed(
                error.into(),
                format!("cannot reach the collector at {}", context.address),
            )
        };
        let channel = Endpoint::from_shared(format!("https://{}", context.address))
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(unreachable)?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20))
            .connect()
            .await
            .map_err(unreachable)?;
        let authorized = InterceptedService::new(channel, bearer);
        Ok(Self {
            query: QueryClient::new(authorized.clone()).max_decoding_message_size(ANSWER_MAX),
            admin: AdminClient::new(authorized),
        })
    }
}
