//! `/v1/models`: the readiness probe of many clients, so it answers 200 only once the model can.

use std::sync::Arc;

use axum::Json;
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
    Ok(Json(ModelList::new(shared.model()?.cards().collect())))
}

pub(crate) async fn get_model(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<ModelCard>, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    let card = shared.model()?.cards().find(|card| card.id == id);
    card.map(Json).ok_or_else(|| {
        let id: String = id.chars().take(80).collect();
        ApiError::new(ErrorKind::ModelNotFound, format!("the model `{id}` does not exist")).into()
    })
}
