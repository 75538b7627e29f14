//! `/v1/models`: the readiness probe of many clients, so it answers 200 only once the model can.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use mach_api::{ApiError, ErrorKind, ModelCard, ModelList};

use crate::auth;
use crate::failure::Failure;
use crate::server::Shared;

pub(crate) async fn list_models(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Result<Json<ModelList>, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    Ok(Json(shared.model()?.list()))
}

pub(crate) async fn get_model(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelCard>, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    // A name that is no text is none of ours.
    let Path(id) = id.map_err(|e| ApiError::new(ErrorKind::InvalidRequest, e.body_text()))?;
    let card = shared.model()?.list().data.into_iter().find(|card| card.id == id);
    card.map(Json).ok_or_else(|| {
        let id: String = id.chars().take(80).collect();
        ApiError::new(ErrorKind::ModelNotFound, format!("the model `{id}` does not exist")).into()
    })
}
