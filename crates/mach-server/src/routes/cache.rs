//! `GET /v1/cache/stats`: what is in memory and on disk. `/v1/cache/warm_prefix`: what is to stay there.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use mach_api::chat::WarmRequest;
use mach_api::{ApiError, ErrorKind, memory};
use serde_json::{Value, json};

use super::body::read_json;
use crate::auth;
use crate::failure::Failure;
use crate::job::{Job, off_the_sockets};
use crate::notes::noted;
use crate::server::Shared;
use crate::warm::warm_tokens;

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
    let account = Arc::clone(&model.account);
    let (body, mut held) = read_json(&account, &headers, body, shared.config.max_body).await?;
    let (bytes, limits) = (memory::of_json(&body), shared.config.limits.clone());
    let work = move |_: &mut Job| {
        let request = WarmRequest::parse(&body, &limits)?;
        Ok(request)
    };
    let request = off_the_sockets(&account, bytes, work).await?;
    held.set(model.held_by_prefix(&request))?;
    let for_work = Arc::clone(&model);
    let work = move |job: &mut Job| Ok((for_work.stable_part_as(&request, job)?, request));
    let (tokens, request) = off_the_sockets(&account, 0, work).await?;
    // Waiting for the engine takes no memory of work.
    let warmed =
        tokio::task::spawn_blocking(move || Ok((warm_tokens(&model, &request, tokens)?, request.notes)));
    let internal = |_| ApiError::new(ErrorKind::Internal, "internal error");
    let (report, notes) = warmed.await.map_err(internal)?.map_err(Failure)?;
    Ok(held.until_written(noted(&shared, &notes).tell(Json(report).into_response())))
}
