//! The accept loop: limits of connections and of request heads, and an end that lets running answers finish.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::Service;
use tracing::{debug, info, warn};

use crate::drain::Drain;
use crate::socket::Socket;
use crate::{ServerConfig, paths, refusal};

/// Headers of a request.
const MAX_HEADERS: usize = 100;
/// Bytes of an answer that the kernel holds for a client (it takes twice that, for its own needs).
const SEND_BUFFER: usize = 256 << 10;
/// Pause after an accept that failed (most often: no file handle is left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a connection may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    head: usize,
    head_timeout: Duration,
    connections: usize,
    /// How long a client may take nothing of its answer.
    patience: Option<Duration>,
}

impl Limits {
    pub(crate) fn of(config: &ServerConfig) -> Self {
        // hyper reads heads through a buffer of at least 8 KiB.
        Self {
            head: config.max_head.max(8 << 10),
            head_timeout: config.head_timeout,
            connections: config.max_connections.max(1),
            patience: config.write_timeout,
        }
    }
}

/// Serves until `stop` resolves and what runs has finished. Until then connections stay open, so that a request on one of them is
/// told that the server stops instead of meeting a closed door.
pub(crate) async fn listen(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    drain: Arc<Drain>,
    stop: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut stop => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // A token is one small write; without this it would wait for the one before to be acknowledged.
        if let Err(error) = stream.set_nodelay(true) {
            warn!(%error, "cannot set TCP_NODELAY");
        }
        // What a client does not read must not pile up in the kernel either.
        if let Err(error) = socket2::SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER) {
            warn!(%error, "cannot set SO_SNDBUF");
        }
        let (socket, rest) = Socket::new(stream, limits.patience);
        let router = router.clone();
        let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            let answer = router.clone().call(paths::canonical(request.map(Body::new)));
            async move { answer.await.map_err(|never: Infallible| never) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_timeout)
            .max_headers(MAX_HEADERS)
            .max_buf_size(limits.head)
            .serve_connection(TokioIo::new(socket), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            let _place = place;
            let ended = connection.await;
            if rest.given_up() {
                info!("a client that did not read its answer was cut off");
                return rest.reset();
            }
            if let Err(error) = ended {
                debug!(%error, "a connection ended early");
                if error.is_timeout() && rest.begun() {
                    rest.say(&refusal::late(limits.head_timeout));
                }
            }
            rest.end().await;
        });
    }
    drop(listener);
    drain.idle().await;
    graceful.shutdown().await;
}
