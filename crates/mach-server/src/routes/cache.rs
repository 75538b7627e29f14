//! `GET /v1/cache/stats`: what is in memory and on disk. `/v1/cache/warm_prefix`: what is to stay there.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use mach_api::chat::WarmRequest;
use mach_api::{ApiError, ErrorKind, memory};
use serde_json::{Value, json};

use super::body::read_json;
use crate::auth::{self, Caller};
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

/// What `GET /v1/cache/warm_prefix` may ask for.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Listing {
    cache_salt: Option<String>,
}

/// The prefixes that the caller warmed, or that lie below a salt that it names, and where they are.
pub(crate) async fn list_warm_prefixes(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    query: Result<Query<Listing>, QueryRejection>,
) -> Result<Json<Value>, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    let Query(Listing { cache_salt }) =
        query.map_err(|e| ApiError::new(ErrorKind::InvalidRequest, e.body_text()))?;
    let caller = Caller::of(&headers);
    let warmed = shared.model()?.engine.prefix().map(|cache| {
        let root = |asked| cache.root(shared.salt(&caller, asked).as_deref());
        let named = cache_salt.map(|salt| root(Some(salt)));
        shared.warmed.seen_by(caller, named, root(None), cache.warmed())
    });
    let warmed = warmed.unwrap_or_default();
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
    let (for_work, caller) = (Arc::clone(&shared), Caller::of(&headers));
    let work = move |_: &mut Job| {
        let mut request = WarmRequest::parse(&body, &limits)?;
        request.cache_salt = for_work.salt(&caller, request.cache_salt.take());
        Ok(request)
    };
    let request = off_the_sockets(&account, bytes, work).await?;
    held.set(model.held_by_prefix(&request))?;
    let for_work = Arc::clone(&model);
    let work = move |job: &mut Job| Ok((for_work.stable_part_as(&request, job)?, request));
    let (tokens, request) = off_the_sockets(&account, 0, work).await?;
    // Waiting for the engine takes no memory of work.
    let for_note = Arc::clone(&shared);
    let warmed = tokio::task::spawn_blocking(move || {
        let report = warm_tokens(&model, &request, tokens)?;
        let there = || model.engine.prefix().map(|cache| cache.warmed()).unwrap_or_default();
        for_note.warmed.note(&report.prefix.key, caller, there);
        Ok((report, request.notes))
    });
    let internal = |_| ApiError::new(ErrorKind::Internal, "internal error");
    let (report, notes) = warmed.await.map_err(internal)?.map_err(Failure)?;
    Ok(held.until_written(noted(&shared, &notes).tell(Json(report).into_response())))
}
