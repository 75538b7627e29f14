//! Responses that were given before.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use mach_api::responses::{Past, Record};
use mach_api::{ApiError, ErrorKind};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::auth::{self, Caller};
use crate::failure::Failure;
use crate::job::{Job, off_the_sockets};
use crate::server::Shared;
use crate::store::Owned;

/// Items of a page, at most and unless asked.
const PAGE: (usize, usize) = (100, 20);

fn not_found(id: &str) -> ApiError {
    let id: String = id.chars().take(80).collect();
    ApiError::new(ErrorKind::ResponseNotFound, format!("Response with id '{id}' not found."))
}

/// Does something with what the caller has kept.
async fn with_past<T: Send + 'static>(
    shared: &Arc<Shared>,
    headers: &HeaderMap,
    work: impl FnOnce(&Owned<'_>) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    auth::check(shared.config.api_key.as_deref(), headers)?;
    let account = Arc::clone(&shared.model()?.account);
    let (own, caller) = (Arc::clone(shared), Caller::of(headers));
    let read = move |job: &mut Job| work(&Owned::new(&own.config.store, caller, job, 0));
    off_the_sockets(&account, 0, read).await
}

fn found(past: &Owned<'_>, id: &str) -> Result<Record, ApiError> {
    past.response(id)?.ok_or_else(|| not_found(id))
}

/// What a response is asked for with.
#[derive(Debug, Deserialize)]
pub(crate) struct Asked {
    #[serde(default)]
    stream: bool,
}

/// `GET /v1/responses/{id}`.
pub(crate) async fn get_response(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Result<Json<Value>, Failure> {
    let record = with_past(&shared, &headers, move |past| found(past, &id)).await?;
    if asked.stream {
        return Err(ApiError::field("stream", "only answers that are being given are streamed").into());
    }
    Ok(Json(record.response))
}

/// `DELETE /v1/responses/{id}`.
pub(crate) async fn delete_response(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, Failure> {
    let own = id.clone();
    if !with_past(&shared, &headers, move |past| past.forget(&own)).await? {
        return Err(not_found(&id).into());
    }
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})))
}

/// `POST /v1/responses/{id}/cancel`: responses are not made in the background, so that none can be cancelled.
pub(crate) async fn cancel_response(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, Failure> {
    with_past(&shared, &headers, move |past| found(past, &id)).await?;
    let message = "Only responses that are made in the background can be cancelled.";
    Err(ApiError::new(ErrorKind::InvalidRequest, message).into())
}

/// Which items are asked for.
#[derive(Debug, Deserialize)]
pub(crate) struct Paging {
    limit: Option<usize>,
    after: Option<String>,
    order: Option<String>,
}

/// `GET /v1/responses/{id}/input_items`.
pub(crate) async fn response_input(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(paging): Query<Paging>,
    headers: HeaderMap,
) -> Result<Json<Value>, Failure> {
    let record = with_past(&shared, &headers, move |past| found(past, &id)).await?;
    Ok(Json(page(record.input, &paging)?))
}

fn page(mut items: Vec<Value>, paging: &Paging) -> Result<Value, ApiError> {
    let (most, usual) = PAGE;
    let limit = paging.limit.unwrap_or(usual);
    if !(1..=most).contains(&limit) {
        return Err(ApiError::field("limit", format!("must be between 1 and {most}")));
    }
    match paging.order.as_deref() {
        None | Some("desc") => items.reverse(),
        Some("asc") => {}
        Some(_) => return Err(ApiError::field("order", "must be `asc` or `desc`")),
    }
    if let Some(after) = &paging.after {
        let at = items.iter().position(|item| item.get("id").and_then(Value::as_str) == Some(after));
        let at = at.ok_or_else(|| ApiError::field("after", "no such item"))?;
        items.drain(..=at);
    }
    let more = items.len() > limit;
    items.truncate(limit);
    let id = |item: Option<&Value>| item.and_then(|item| item.get("id")).cloned().unwrap_or_default();
    let (first, last) = (id(items.first()), id(items.last()));
    Ok(json!({"object": "list", "data": items, "first_id": first, "last_id": last, "has_more": more}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_in_pages() {
        let items: Vec<Value> = (0..5).map(|i| json!({"id": format!("i{i}")})).collect();
        let ask = |limit, after: Option<&str>, order: Option<&str>| {
            let paging = Paging { limit, after: after.map(Into::into), order: order.map(Into::into) };
            page(items.clone(), &paging)
        };
        let ids = |page: Value| -> Vec<String> {
            page["data"].as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(ids(ask(None, None, None).unwrap()), ["i4", "i3", "i2", "i1", "i0"]);
        let first = ask(Some(2), None, Some("asc")).unwrap();
        assert_eq!(
            (&first["first_id"], &first["last_id"], &first["has_more"]),
            (&json!("i0"), &json!("i1"), &json!(true))
        );
        let next = ask(Some(3), Some("i1"), Some("asc")).unwrap();
        assert_eq!(next["has_more"], false);
        assert_eq!(ids(next), ["i2", "i3", "i4"]);
        for (limit, after, order) in
            [(Some(0), None, None), (Some(101), None, None), (None, Some("x"), None), (None, None, Some("x"))]
        {
            assert!(ask(limit, after, order).is_err());
        }
    }
}
