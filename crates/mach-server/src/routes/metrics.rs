//! `GET /metrics`, for Prometheus.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use mach_api::{ApiError, ErrorKind};

use crate::auth;
use crate::failure::Failure;
use crate::server::Shared;

/// Never waits for the engine; before the model is loaded, only HTTP is counted.
pub(crate) async fn metrics(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    let text = crate::metrics::render(&shared.http, shared.readiness.model())
        .map_err(|e| ApiError::new(ErrorKind::Internal, e.to_string()))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
