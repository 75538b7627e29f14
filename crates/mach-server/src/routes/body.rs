//! Reading the body of a request.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use mach_api::{ApiError, ErrorKind};

/// How long a request's body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The body of a request that says it is JSON. A page of another site can make a browser send a form to this server, but not
/// JSON.
pub(crate) async fn read_json(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let message = "the request needs the header `Content-Type: application/json`";
        return Err(ApiError::new(ErrorKind::UnsupportedMediaType, message));
    }
    let Ok(read) = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await else {
        let message = format!("the request body did not arrive within {} s", BODY_TIMEOUT.as_secs());
        return Err(ApiError::new(ErrorKind::ArrivalTimeout, message));
    };
    match read {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => {
            let message = format!("the request body is larger than {limit} bytes");
            Err(ApiError::new(ErrorKind::TooLarge, message))
        }
        Err(e) => Err(ApiError::new(ErrorKind::InvalidRequest, format!("the request body broke off: {e}"))),
    }
}

/// Long texts take long to parse, render and tokenise, so this leaves the threads that serve sockets.
pub(crate) async fn off_the_sockets<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::new(ErrorKind::Internal, "internal error"))?
}
