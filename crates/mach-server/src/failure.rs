//! Errors as HTTP responses.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mach_api::{ApiError, ErrorKind};
use mach_engine::EngineError;

/// An error on its way to the client.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) ApiError);

/// What an error says, for the log: in the extensions of its response.
#[derive(Debug, Clone)]
pub(crate) struct Reason(pub(crate) String);

/// The error itself, for APIs of another shape: in the extensions of its response.
#[derive(Debug, Clone)]
pub(crate) struct Refused(pub(crate) ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0.body())).into_response();
        response.extensions_mut().insert(Reason(self.0.message.clone()));
        response.extensions_mut().insert(Refused(self.0.clone()));
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

/// The engine's errors in the API's terms. `prompt`: the field that holds what is answered.
pub(crate) fn from_engine(error: &EngineError, prompt: &str) -> ApiError {
    let message = error.to_string();
    match error {
        EngineError::ContextLength { .. } => {
            ApiError { param: Some(prompt.into()), ..ApiError::new(ErrorKind::ContextLength, message) }
        }
        EngineError::EmptyPrompt | EngineError::Token { .. } => ApiError::field(prompt, message),
        EngineError::Grammar(_) => ApiError::new(ErrorKind::InvalidRequest, message),
        EngineError::QueueFull { retry_after, .. } => {
            ApiError::new(ErrorKind::Overloaded, message).retry_after(*retry_after)
        }
        EngineError::QueueTimeout { .. } => ApiError::new(ErrorKind::QueueTimeout, message).retry_after(1),
        EngineError::RequestTimeout { .. } => ApiError::new(ErrorKind::Timeout, message),
        EngineError::NeverFits { .. } => {
            ApiError { param: Some(prompt.into()), ..ApiError::new(ErrorKind::Unavailable, message) }
        }
        EngineError::ShuttingDown | EngineError::Memory(_) => ApiError::new(ErrorKind::Unavailable, message),
        _ => ApiError::new(ErrorKind::Internal, message),
    }
}
