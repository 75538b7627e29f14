//! `GET /v1/cache/stats`: what is in memory and on disk. `/v1/cache/warm_prefix`: what is to stay there.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use mach_api::chat::WarmRequest;
use serde_json::{Value, json};

use super::body::{off_the_sockets, read_json};
use crate::failure::Failure;
use crate::notes::noted;
use crate::server::Shared;
use crate::{auth, warm};

/// Never waits for the engine.
pub(crate) async fn cache_stats(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Result<Json<Value>, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    let model = shared.model()?;
    Ok(Json(json!({
        "object": "cache.stats",
        "generation_in_flight": model.engine.busy(),
        "streaming_summary": model.engine.streaming().as_deref(),
        "prefix_cache": model.engine.prefix().map(|cache| cache.stats()),
    })))
}

/// The warmed prefixes and where they are.
pub(crate) async fn list_warm_prefixes(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Result<Json<Value>, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    let warmed = shared.model()?.engine.prefix().map(|cache| cache.warmed()).unwrap_or_default();
    Ok(Json(json!({"object": "list", "data": warmed})))
}

/// Warms a prefix; answers when it is in memory and, where there is a directory, on disk.
pub(crate) async fn warm_prefix(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    let model = Arc::clone(shared.model()?);
    let body = read_json(&headers, body, shared.config.max_body).await?;
    let limits = shared.config.limits.clone();
    let work = move || {
        let request = WarmRequest::parse(&body, &limits)?;
        Ok((warm(&model, &request)?, request.notes))
    };
    let (report, notes) = off_the_sockets(work).await?;
    Ok(noted(&shared, &notes).tell(Json(report).into_response()))
}
