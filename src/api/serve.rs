//! The two listeners: connections in, requests to the router.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tower::Service;

use super::access::Peer;
use super::limits::HEAD_TIME_MAX;
use crate::proto::limits::CONNECTIONS_MAX;

/// After a failed accept (most likely no descriptor is left) the next try waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the network until the task is dropped. Beyond [`CONNECTIONS_MAX`] connections new ones wait in the backlog.
pub async fn network(listener: TcpListener, router: Router, room: Arc<Semaphore>) {
    loop {
        // The semaphore is never closed.
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, address)) => {
                // Frames are one write each; waiting to fill packets only adds latency.
                let _ = stream.set_nodelay(true);
                let router = router.clone();
                tokio::spawn(async move {
                    connection(stream, Peer::Network(address), router).await;
                    drop(permit);
                });
            }
            Err(e) => {
                log::warn!("accept on the network: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves the Unix socket likewise.
pub async fn local(listener: UnixListener, router: Router, room: Arc<Semaphore>) {
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let Ok(peer) = stream.peer_cred() else { continue };
                let router = router.clone();
                tokio::spawn(async move {
                    connection(stream, Peer::Local { user: peer.uid() }, router).await;
                    drop(permit);
                });
            }
            Err(e) => {
                log::warn!("accept on the Unix socket: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Room for connections: each listener has half, so a crowd on the network never locks local tools out.
pub fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(CONNECTIONS_MAX / 2))
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer, router: Router) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        let mut router = router.clone();
        async move {
            let response = router.call(request).await.unwrap_or_else(|never: Infallible| match never {});
            Ok::<_, Infallible>(response)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(e) = served {
        log::debug!("connection from {peer:?}: {e}");
    }
}
