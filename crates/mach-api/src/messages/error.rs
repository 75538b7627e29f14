//! Errors in Anthropic's shape: `{"type": "error", "error": {"type", "message"}}`.

use serde_json::{Value, json};

use crate::{ApiError, ErrorKind};

/// The body of an error response, and of an `error` event.
pub fn messages_error(error: &ApiError) -> Value {
    let message = match error.kind {
        // Clients look for these words and then shorten the conversation.
        ErrorKind::ContextLength => format!("prompt is too long: {}", error.message),
        _ => error.message.clone(),
    };
    json!({"type": "error", "error": {"type": type_name(error), "message": message}})
}

fn type_name(error: &ApiError) -> &'static str {
    match error.kind.status() {
        401 => "authentication_error",
        403 => "permission_error",
        404 | 405 => "not_found_error",
        413 | 431 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        408 | 504 => "timeout_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}
