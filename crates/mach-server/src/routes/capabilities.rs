//! `GET /v1/capabilities`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde_json::Value;

use crate::auth;
use crate::failure::Failure;
use crate::server::Shared;

pub(crate) async fn capabilities(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Result<Json<Value>, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    Ok(Json(crate::capabilities::capabilities(shared.model()?)))
}
