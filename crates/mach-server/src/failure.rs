//! Errors as HTTP responses.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mach_api::{ApiError, ErrorKind};
use mach_engine::EngineError;

/// An error on its way to the client.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0.body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.0.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// The engine's errors in the API's terms. `max_tokens_field`: the field that gave the length.
pub(crate) fn from_engine(error: &EngineError, max_tokens_field: &str) -> ApiError {
    let message = error.to_string();
    match error {
        EngineError::ContextLength { .. } => {
            ApiError { param: Some("messages".into()), ..ApiError::new(ErrorKind::ContextLength, message) }
        }
        EngineError::MaxTokens { .. } => ApiError::field(max_tokens_field, message),
        EngineError::EmptyPrompt | EngineError::Token { .. } => ApiError::field("messages", message),
        EngineError::Grammar(_) => ApiError::new(ErrorKind::InvalidRequest, message),
        EngineError::QueueFull { retry_after, .. } => {
            ApiError::new(ErrorKind::Overloaded, message).retry_after(*retry_after)
        }
        EngineError::QueueTimeout { .. } => ApiError::new(ErrorKind::QueueTimeout, message).retry_after(1),
        EngineError::RequestTimeout { .. } => ApiError::new(ErrorKind::Timeout, message),
        EngineError::NeverFits { .. } => {
            ApiError { param: Some("messages".into()), ..ApiError::new(ErrorKind::Unavailable, message) }
        }
        EngineError::ShuttingDown | EngineError::Memory(_) => ApiError::new(ErrorKind::Unavailable, message),
        _ => ApiError::new(ErrorKind::Internal, message),
    }
}

/// As [`from_engine`], for a plain prompt.
pub(crate) fn from_engine_for_prompt(error: &EngineError) -> ApiError {
    match error {
        EngineError::EmptyPrompt | EngineError::Token { .. } => ApiError::field("prompt", error.to_string()),
        _ => {
            let error = from_engine(error, "max_tokens");
            let param = error.param.map(|p| if p == "messages" { "prompt".to_owned() } else { p });
            ApiError { param, ..error }
        }
    }
}
