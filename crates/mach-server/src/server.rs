//! The server: readiness, the router, start and drain.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use mach_api::chat::Limits as RequestLimits;
use mach_api::{ApiError, ErrorKind};
use tokio::net::TcpListener;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::{info, warn};

use crate::auth::Caller;
use crate::drain::Drain;
use crate::failure::Failure;
use crate::hosts::Hosts;
use crate::layers::{self, Keys, Origins};
use crate::listen::{Limits, listen};
use crate::metrics::HttpMetrics;
use crate::notes::Named;
use crate::store::Store;
use crate::warmed::Warmed;
use crate::{ChatModel, routes, shape};

/// Settings of the server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Key that requests must bring; none accepts any.
    pub api_key: Option<String>,
    /// Largest request body in bytes.
    pub max_body: usize,
    /// Limits of a chat request's parts.
    pub limits: RequestLimits,
    /// How long running generations may take to finish after the signal to stop.
    pub drain_timeout: Duration,
    /// Largest head of a request in bytes.
    pub max_head: usize,
    /// How long a request's head may take to arrive.
    pub head_timeout: Duration,
    /// Connections that may be open at one time; more wait.
    pub max_connections: usize,
    /// Generating requests that one key may have at one time.
    pub max_concurrent_per_key: Option<usize>,
    /// Pages of which sites may ask this server.
    pub cors: Option<Origins>,
    /// Names that requests may be for. Checked if they are given, or if there is no key: then addresses and `localhost` are
    /// answered as well, and pages of other sites are not.
    pub allowed_hosts: Option<Hosts>,
    /// How long a client may take nothing of its answer before it is cut off.
    pub write_timeout: Option<Duration>,
    /// Each API key has a salt of its own in the prefix cache.
    pub cache_salt_per_key: bool,
    /// Responses that are kept.
    pub store: Arc<Store>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            api_key: None,
            max_body: 32 << 20,
            limits: RequestLimits::default(),
            drain_timeout: Duration::from_secs(30),
            max_head: 64 << 10,
            head_timeout: Duration::from_secs(30),
            max_connections: 1024,
            max_concurrent_per_key: None,
            cors: None,
            allowed_hosts: None,
            write_timeout: Some(Duration::from_secs(60)),
            cache_salt_per_key: false,
            store: Arc::new(Store::none()),
        }
    }
}

/// Whether the model can answer yet. Shared by the loader and the routes.
#[derive(Debug, Default)]
pub struct Readiness {
    model: OnceLock<Arc<ChatModel>>,
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
}

impl Readiness {
    /// Nothing loaded yet.
    pub fn loading() -> Arc<Self> {
        Arc::default()
    }

    /// Reports progress of loading.
    pub fn progress(&self, bytes_done: u64, bytes_total: u64) {
        self.bytes_done.store(bytes_done, Ordering::Relaxed);
        self.bytes_total.store(bytes_total, Ordering::Relaxed);
    }

    /// The model can answer. Only the first call counts.
    pub fn ready(&self, model: ChatModel) -> &Arc<ChatModel> {
        self.model.get_or_init(|| Arc::new(model))
    }

    /// The model, once it can answer.
    pub fn model(&self) -> Option<&Arc<ChatModel>> {
        self.model.get()
    }

    /// The share of the weights that is loaded, 0 to 1.
    pub fn share(&self) -> f64 {
        let total = self.bytes_total.load(Ordering::Relaxed);
        let done = self.bytes_done.load(Ordering::Relaxed);
        if total == 0 { 0.0 } else { (done as f64 / total as f64).min(1.0) }
    }
}

/// What every route sees.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: ServerConfig,
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) http: HttpMetrics,
    pub(crate) keys: Keys,
    /// Names that requests may be for, if that is looked at.
    pub(crate) hosts: Option<Hosts>,
    /// Who warmed what.
    pub(crate) warmed: Warmed,
    /// Ignored fields that the log has named.
    pub(crate) named: Named,
    /// What is at work.
    pub(crate) drain: Arc<Drain>,
}

impl Shared {
    /// The model, or a 503 while it loads or after its engine died.
    pub(crate) fn model(&self) -> Result<&Arc<ChatModel>, ApiError> {
        let Some(model) = self.readiness.model() else {
            let percent = (self.readiness.share() * 100.0) as u32;
            return Err(ApiError::new(
                ErrorKind::Unavailable,
                format!("the model is loading: {percent} % of the weights are in place"),
            )
            .retry_after(1));
        };
        if !model.engine.running() {
            return Err(ApiError::new(ErrorKind::Unavailable, "the engine has stopped"));
        }
        Ok(model)
    }
}

impl Shared {
    /// The salt that a caller's request has: the one that it asks for, or one of the caller's own.
    pub(crate) fn salt(&self, caller: &Caller, asked: Option<String>) -> Option<String> {
        if self.config.cache_salt_per_key { Some(caller.salt(asked.as_deref())) } else { asked }
    }
}

fn router(shared: Arc<Shared>) -> Router {
    let generating = Router::new()
        .route("/v1/chat/completions", post(routes::chat_completions))
        .route("/v1/completions", post(routes::completions))
        .route("/v1/responses", post(routes::responses))
        .route("/v1/responses/compact", post(routes::compact_response))
        .route_layer(from_fn_with_state(Arc::clone(&shared), layers::one_key_at_a_time));
    let messages = Router::new()
        .route("/v1/messages", post(routes::messages))
        .route_layer(from_fn_with_state(Arc::clone(&shared), layers::one_key_at_a_time))
        .route("/v1/messages/count_tokens", post(routes::count_message_tokens))
        .method_not_allowed_fallback(routes::method_not_allowed);
    let mut router = Router::new()
        .route("/", get(routes::root))
        .route("/health", get(routes::health))
        .route("/healthz", get(routes::health))
        .route("/ping", get(routes::health).post(routes::health))
        .route("/version", get(routes::version))
        .route("/metrics", get(routes::metrics))
        .route("/openapi.json", get(routes::openapi))
        .route("/tokenize", post(routes::tokenize))
        .route("/detokenize", post(routes::detokenize))
        .route("/v1/models", get(routes::list_models))
        .route("/v1/models/{*id}", get(routes::get_model))
        .route("/v1/capabilities", get(routes::capabilities))
        .route("/v1/stats", get(routes::stats))
        .route("/v1/responses/input_tokens", post(routes::count_response_tokens))
        .route("/v1/responses/{id}", get(routes::get_response).delete(routes::delete_response))
        .route("/v1/responses/{id}/input_items", get(routes::response_input))
        .route("/v1/responses/{id}/cancel", post(routes::cancel_response))
        .route("/v1/cache/stats", get(routes::cache_stats))
        .route("/v1/cache/warm_prefix", get(routes::list_warm_prefixes).post(routes::warm_prefix))
        .merge(generating)
        .merge(messages)
        .fallback(routes::not_found)
        .method_not_allowed_fallback(routes::method_not_allowed)
        .layer(CatchPanicLayer::custom(panicked));
    if let Some(origins) = &shared.config.cors {
        router = router.layer(origins.layer());
    }
    router
        .layer(from_fn_with_state(Arc::clone(&shared), layers::observe))
        .layer(from_fn(shape::errors))
        .with_state(shared)
}

fn panicked(_panic: Box<dyn std::any::Any + Send>) -> Response {
    Failure(ApiError::new(ErrorKind::Internal, "internal error")).into_response()
}

/// Serves until `stop` resolves, then drains: no new connections, running generations finish, for at most the drain
/// timeout.
pub async fn serve(
    listener: TcpListener,
    config: ServerConfig,
    readiness: Arc<Readiness>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let drain_timeout = config.drain_timeout;
    let (stopping, mut stopped) = tokio::sync::watch::channel(false);
    let limits = Limits::of(&config);
    let shared = Arc::new(Shared {
        keys: Keys::new(config.max_concurrent_per_key),
        hosts: config.allowed_hosts.clone().or_else(|| config.api_key.is_none().then(Hosts::default)),
        warmed: Warmed::default(),
        named: Named::default(),
        drain: Arc::default(),
        config,
        readiness: Arc::clone(&readiness),
        http: HttpMetrics::default(),
    });
    let store = Arc::clone(&shared.config.store);
    let signalled = Arc::clone(&readiness);
    let drain = Arc::clone(&shared.drain);
    let draining = Arc::clone(&drain);
    let graceful = async move {
        stop.await;
        draining.begin();
        if let Some(model) = signalled.model() {
            info!(waiting = model.engine.waiting(), "draining");
            model.engine.close();
        }
        let _ = stopping.send(true);
    };
    let server = listen(listener, router(shared), limits, drain, graceful);
    let mut server = std::pin::pin!(server);
    let deadline = async {
        // An error means that the sender is gone, which it is only after sending.
        let _ = stopped.wait_for(|&s| s).await;
        tokio::time::sleep(drain_timeout).await;
    };
    tokio::select! {
        () = &mut server => {}
        () = deadline => {
            warn!("the drain timeout is over; running generations are cut off");
            if let Some(model) = readiness.model() {
                model.engine.abort();
            }
            // Long enough to write the errors out.
            let _ = tokio::time::timeout(Duration::from_secs(1), server).await;
        }
    }
    if let Some(model) = readiness.model() {
        model.engine.close();
    }
    // A thread that panicked is told of in the log.
    let _ = tokio::task::spawn_blocking(move || store.flush()).await;
    Ok(())
}
