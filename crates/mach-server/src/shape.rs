//! Errors in the shape of the API that was asked: routes that refuse know one shape, OpenAI's.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use mach_api::Dialect;

use crate::failure::Refused;

/// Rewrites the body of what a route refuses.
pub(crate) async fn errors_of<D: Dialect>(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let Some(Refused(error)) = response.extensions().get::<Refused>().cloned() else { return response };
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(D::error(&error).to_string()))
}
