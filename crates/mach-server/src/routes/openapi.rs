//! `GET /openapi.json`: what this server takes and answers, for tools. Needs no key.

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// The document; its version is filled in.
const DOCUMENT: &str = include_str!("openapi.json");

pub(crate) async fn openapi() -> Response {
    let text = DOCUMENT.replace("VERSION", env!("CARGO_PKG_VERSION"));
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
