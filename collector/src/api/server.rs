//! The port: connections in, services behind.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::{debug, info, warn};

use crate::api::auth::{Peer, PeerCertificate};
use crate::metrics::Metrics;

/// A handshake must be done within this.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Connections that have shaken hands and wait for the services.
const READY: usize = 64;
/// Pause after the system could not give another connection.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Takes connections from the listener, at most `max` at a time; more are
/// closed at once and counted. Ends when `stopping` becomes true.
#[must_use]
pub fn connections(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    max: usize,
    metrics: Arc<Metrics>,
    mut stopping: watch::Receiver<bool>,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, stream) = mpsc::channel(READY);
    let acceptor = TlsAcceptor::from(tls);
    let slots = Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)));
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = crate::run::stopped(&mut stopping) => return,
            };
            let (socket, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the other side has gone already.
                    warn!(%error, "failed to accept a connection");
                    sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                metrics.connections_refused.inc();
                continue;
            };
            let acceptor = acceptor.clone();
            let metrics = Arc::clone(&metrics);
            let ready = ready.clone();
            tokio::spawn(async move {
                let shaken = timeout(HANDSHAKE_WITHIN, handshake(acceptor, socket, address));
                match shaken.await {
                    Ok(Ok((stream, peer))) => {
                        let connection = Connection {
                            stream,
                            peer,
                            _open: Open::new(&metrics),
                            _slot: slot,
                        };
                        // The services are gone: so is the port.
                        let _ = ready.send(Ok(connection)).await;
                    }
                    Ok(Err(error)) => {
                        metrics.handshakes_failed.inc();
                        // A bad certificate is worth a line, a port scan is not.
                        match error.kind() {
                            io::ErrorKind::InvalidData => {
                                info!(%address, %error, "TLS handshake failed");
                            }
                            _ => debug!(%address, %error, "TLS handshake failed"),
                        }
                    }
                    Err(_) => {
                        metrics.handshakes_failed.inc();
                        debug!(%address, "TLS handshake took too long");
                    }
                }
            });
        }
    });
    ReceiverStream::new(stream)
}

async fn handshake(
    acceptor: TlsAcceptor,
    socket: TcpStream,
    address: SocketAddr,
) -> io::Result<(TlsStream<TcpStream>, Peer)> {
    socket.set_nodelay(true)?;
    let stream = acceptor.accept(socket).await?;
    let (_, session) = stream.get_ref();
    let shown = session.peer_certificates().and_then(<[_]>::first);
    let certificate = shown.map(|certificate| {
        PeerCertificate::read(certificate)
            .map(Arc::new)
            .ok_or_else(|| io::Error::other("the certificate cannot be parsed"))
    });
    let peer = Peer {
        address,
        certificate: certificate.transpose()?,
    };
    Ok((stream, peer))
}

/// Counts an open connection for as long as it lives.
#[derive(Debug)]
struct Open(Arc<Metrics>);

impl Open {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.connections.inc();
        Open(Arc::clone(metrics))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

/// A TLS connection, with who is at its other end.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    _open: Open,
    _slot: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
