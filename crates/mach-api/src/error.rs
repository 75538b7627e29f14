//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use serde::Serialize;

/// What kind of failure this is; decides the HTTP status and the `type` and `code` of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A field is missing, malformed, out of range or not supported.
    InvalidRequest,
    /// The prompt does not fit the context.
    ContextLength,
    /// The body is not what the endpoint takes.
    UnsupportedMediaType,
    /// The body is larger than the limit.
    TooLarge,
    /// The head of the request is larger than the limit.
    HeadTooLarge,
    /// The request did not arrive in time.
    ArrivalTimeout,
    /// The API key is missing or wrong.
    Unauthorized,
    /// The request came for a host that this server does not answer to.
    HostNotAllowed,
    /// A page of another site sent the request.
    OriginNotAllowed,
    /// No model of this name.
    ModelNotFound,
    /// The response that a request goes on from is not kept.
    PreviousResponseNotFound,
    /// No response of this id is kept.
    ResponseNotFound,
    /// No such route.
    NotFound,
    /// The route exists, not for this method.
    MethodNotAllowed,
    /// The queue is full.
    Overloaded,
    /// The key has as many requests at work as it may have.
    TooManyAtOnce,
    /// The memory that requests may have together is taken.
    NoRoom,
    /// The request waited for its turn as long as it may.
    QueueTimeout,
    /// The request took as long as it may.
    Timeout,
    /// The model is loading, or the server is draining.
    Unavailable,
    /// The server failed.
    Internal,
}

impl ErrorKind {
    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::ContextLength | Self::PreviousResponseNotFound => 400,
            Self::Unauthorized => 401,
            Self::HostNotAllowed | Self::OriginNotAllowed => 403,
            Self::ModelNotFound | Self::ResponseNotFound | Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::ArrivalTimeout => 408,
            Self::TooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Overloaded | Self::TooManyAtOnce | Self::NoRoom => 429,
            Self::HeadTooLarge => 431,
            Self::Internal => 500,
            Self::Unavailable | Self::QueueTimeout => 503,
            Self::Timeout => 504,
        }
    }

    /// `error.type` of the body.
    pub fn type_name(self) -> &'static str {
        match self {
            Self::Unauthorized => "authentication_error",
            Self::HostNotAllowed | Self::OriginNotAllowed => "permission_error",
            Self::Overloaded | Self::TooManyAtOnce | Self::NoRoom => "rate_limit_error",
            Self::Timeout | Self::ArrivalTimeout => "timeout_error",
            Self::Unavailable | Self::QueueTimeout => "service_unavailable_error",
            Self::Internal => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// `error.code` of the body.
    pub fn code(self) -> Option<&'static str> {
        match self {
            Self::ContextLength => Some("context_length_exceeded"),
            Self::TooLarge | Self::HeadTooLarge => Some("request_too_large"),
            Self::Unauthorized => Some("invalid_api_key"),
            Self::HostNotAllowed => Some("host_not_allowed"),
            Self::OriginNotAllowed => Some("origin_not_allowed"),
            Self::ModelNotFound => Some("model_not_found"),
            Self::PreviousResponseNotFound => Some("previous_response_not_found"),
            Self::ResponseNotFound => Some("response_not_found"),
            Self::NotFound => Some("unknown_url"),
            Self::MethodNotAllowed => Some("method_not_allowed"),
            Self::Overloaded => Some("queue_full"),
            Self::TooManyAtOnce => Some("concurrency_limit"),
            Self::NoRoom => Some("memory_limit"),
            Self::QueueTimeout => Some("queue_timeout"),
            Self::Timeout | Self::ArrivalTimeout => Some("request_timeout"),
            Self::Unavailable => Some("unavailable"),
            Self::InvalidRequest | Self::UnsupportedMediaType | Self::Internal => None,
        }
    }
}

/// A refused or failed request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of failure it is, which gives the status.
    pub kind: ErrorKind,
    /// Words for a person.
    pub message: String,
    /// Path of the field at fault, for instance `messages[0].content`.
    pub param: Option<String>,
    /// Seconds after which a retry makes sense.
    pub retry_after: Option<u32>,
}

impl ApiError {
    /// An error that concerns no field.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None, retry_after: None }
    }

    /// A 400 for a field; the message begins with the field's path.
    pub fn field(path: impl Into<String>, reason: impl AsRef<str>) -> Self {
        let path = path.into();
        Self {
            kind: ErrorKind::InvalidRequest,
            message: format!("{path}: {}", reason.as_ref()),
            param: Some(path),
            retry_after: None,
        }
    }

    /// The same error with a `Retry-After`.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The response body.
    pub fn body(&self) -> ErrorBody<'_> {
        ErrorBody {
            error: ErrorDetail {
                message: &self.message,
                r#type: self.kind.type_name(),
                param: self.param.as_deref(),
                code: self.kind.code(),
            },
        }
    }
}

/// Body of an error response.
#[derive(Debug, Clone, Serialize)]
pub struct ErrorBody<'a> {
    /// What OpenAI's clients look for.
    pub error: ErrorDetail<'a>,
}

/// The fields of an error.
#[derive(Debug, Clone, Serialize)]
pub struct ErrorDetail<'a> {
    /// Words for a person.
    pub message: &'a str,
    /// Class of the error.
    pub r#type: &'static str,
    /// Field at fault.
    pub param: Option<&'a str>,
    /// Machine-readable reason.
    pub code: Option<&'static str>,
}
