//! Errors in the shape of the API that was asked: whoever refuses knows one shape, OpenAI's.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use mach_api::Dialect;
use mach_api::messages::MessagesDialect;

use crate::failure::Refused;

/// Rewrites the body of what is refused.
pub(crate) async fn errors(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let messages = path == "/v1/messages" || path.starts_with("/v1/messages/");
    let response = next.run(request).await;
    if !messages {
        return response;
    }
    let mut response = of::<MessagesDialect>(response);
    // Anthropic's name of it, which its clients show.
    if let Some(id) = response.headers().get("x-request-id").cloned() {
        response.headers_mut().insert("request-id", id);
    }
    response
}

fn of<D: Dialect>(response: Response) -> Response {
    let Some(Refused(error)) = response.extensions().get::<Refused>().cloned() else { return response };
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(D::error(&error).to_string()))
}
