//! The routes.

mod body;
mod cache;
mod capabilities;
mod generate;
mod metrics;
mod models;
mod openapi;
mod responses;
mod stats;
mod tokens;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use mach_api::{ApiError, ErrorKind};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::server::Shared;

pub(crate) use cache::{cache_stats, list_warm_prefixes, warm_prefix};
pub(crate) use capabilities::capabilities;
pub(crate) use generate::{
    chat_completions, compact_response, completions, count_message_tokens, count_response_tokens, messages,
    responses,
};
pub(crate) use metrics::metrics;
pub(crate) use models::{get_model, list_models};
pub(crate) use openapi::openapi;
pub(crate) use responses::{cancel_response, delete_response, get_response, response_input};
pub(crate) use stats::stats;
pub(crate) use tokens::{detokenize, tokenize};

/// `GET /health`: 200 once the model answers, 503 before. Needs no key.
pub(crate) async fn health(State(shared): State<Arc<Shared>>) -> Response {
    match shared.model() {
        Ok(model) => Json(json!({"status": "ok", "queued": model.engine.waiting()})).into_response(),
        Err(_) if shared.readiness.model().is_none() => {
            let body = json!({"status": "loading", "progress": shared.readiness.share()});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "stopped"}))).into_response(),
    }
}

/// `GET /`: that a server is here. Some clients ask for the head of it before anything else. Needs no key.
pub(crate) async fn root() -> Json<Value> {
    Json(json!({"name": "mach", "version": env!("CARGO_PKG_VERSION"), "routes": "/openapi.json"}))
}

/// `GET /version`. Needs no key.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

pub(crate) async fn not_found(method: Method, uri: Uri) -> Failure {
    let hint = match crate::paths::meant(uri.path()) {
        Some(route) => format!("; did you mean {route}?"),
        None => "; GET /openapi.json lists the routes".to_owned(),
    };
    ApiError::new(ErrorKind::NotFound, format!("no such route: {method} {}{hint}", uri.path())).into()
}

pub(crate) async fn method_not_allowed(method: Method, uri: Uri) -> Failure {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(ErrorKind::MethodNotAllowed, message).into()
}
