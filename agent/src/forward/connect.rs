//! A connection to the collector over TLS.
//!
//! tonic's own TLS holds one certificate for ever, so the connector is ours: the
//! identity is read from disk for each connection.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::{AlertDescription, ClientConfig};
use rustls_pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::status::Peers;

/// Longest wait for TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(10);
/// An HTTP/2 ping goes out after this silence, and
const PING: Duration = Duration::from_secs(10);
/// the connection is given up when no answer came for this long.
const PONG: Duration = Duration::from_secs(10);

/// A connection that did not come about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not an address.
    #[error("{address:?} is not an address")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// TCP, TLS or HTTP/2 failed.
    #[error("cannot reach the collector at {address}")]
    Connect {
        /// `HOST:PORT`.
        address: String,
        /// What failed.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Connects to `address`, whose certificate must be for `name`. `peers` is told which addresses that are.
///
/// # Errors
/// [`Error::Connect`] after 10 s at most.
pub async fn connect(
    address: &str,
    name: &ServerName<'static>,
    tls: Arc<ClientConfig>,
    peers: &Peers,
) -> Result<Channel, Error> {
    let not_an_address = |source: Box<dyn StdError + Send + Sync>| Error::Address {
        address: address.to_owned(),
        source,
    };
    // To tonic the transport is plain, because TLS is below it; the requests
    // still say what they are.
    let origin: Uri = format!("https://{address}")
        .parse()
        .map_err(|error| not_an_address(Box::new(error)))?;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| not_an_address(error.into()))?
        .origin(origin)
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .keep_alive_while_idle(true);
    let connector = TlsConnector::from(tls);
    let target = Arc::<str>::from(address);
    let name = name.clone();
    let peers = peers.clone();
    let service = tower::service_fn(move |_: Uri| {
        let (target, name, connector) = (target.clone(), name.clone(), connector.clone());
        let peers = peers.clone();
        async move {
            let addresses: Vec<_> = lookup_host(&*target).await?.collect();
            peers.tried(&addresses);
            let stream = TcpStream::connect(&addresses[..]).await?;
            stream.set_nodelay(true)?;
            let address = stream.peer_addr()?;
            let stream = connector.connect(name, stream).await?;
            peers.reached(address);
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    endpoint
        .connect_with_connector(service)
        .await
        .map_err(|source| Error::Connect {
            address: address.to_owned(),
            source,
        })
}

/// What the collector at `address` has against the certificate in `tls`, if anything.
///
/// With TLS 1.3 a server looks at it after the client's handshake is done, and its alert is lost to a client that writes meanwhile:
/// the connection is reset. So nothing is written here: what comes first is the alert, or the server's part of HTTP/2.
///
/// # Errors
/// There is no connection, or it ended otherwise than by an alert. After 10 s at most.
pub async fn refusal(
    address: &str,
    name: &ServerName<'static>,
    tls: Arc<ClientConfig>,
) -> io::Result<Option<AlertDescription>> {
    let heard = async {
        let stream = TcpStream::connect(address).await?;
        let mut stream = TlsConnector::from(tls)
            .connect(name.clone(), stream)
            .await?;
        stream.read_u8().await
    };
    match tokio::time::timeout(CONNECT, heard).await? {
        Ok(_) => Ok(None),
        Err(error) => match error.get_ref().and_then(|cause| cause.downcast_ref()) {
            Some(rustls::Error::AlertReceived(alert)) => Ok(Some(*alert)),
            _ => Err(error),
        },
    }
}

/// An error with all its causes in one line; a cause that says the same again is left out.
#[must_use]
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
