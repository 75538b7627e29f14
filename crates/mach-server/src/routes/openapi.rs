//! `GET /openapi.json`: what this server takes and answers, for tools. Needs no key.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::server::Shared;

/// The document; its version and the served names are filled in.
const DOCUMENT: &str = include_str!("openapi.json");

pub(crate) async fn openapi(State(shared): State<Arc<Shared>>) -> Response {
    let text = DOCUMENT.replace("VERSION", env!("CARGO_PKG_VERSION"));
    let names = shared.readiness.model().map(|model| serde_json::json!(model.names).to_string());
    let text = match names {
        Some(names) => text.replace(r#"["MODELS"]"#, &names),
        None => text.replace(r#", "enum": ["MODELS"]"#, ""),
    };
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
