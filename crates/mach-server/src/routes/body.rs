//! Reading the body of a request, charged while it arrives.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::http::{HeaderMap, header};
use bytes::Buf;
use http_body_util::BodyExt;
use mach_api::{ApiError, ErrorKind};
use tokio::time::timeout;

use crate::account::{Account, Held};

/// How long a request's body may take to arrive, and to go on arriving.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE_TIMEOUT: Duration = Duration::from_secs(15);

/// Bytes that a body begins with.
const FIRST: usize = 8 << 10;

/// The body of a request that says it is JSON, with the memory that it holds. A page of another site can make a browser send a form to
/// this server, but not JSON.
pub(crate) async fn read_json(
    account: &Arc<Account>,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<(Vec<u8>, Held), ApiError> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let message = "the request needs the header `Content-Type: application/json`";
        return Err(ApiError::new(ErrorKind::UnsupportedMediaType, message));
    }
    let too_slow = |limit: Duration| {
        let message = format!("the request body did not arrive within {} s", limit.as_secs());
        ApiError::new(ErrorKind::ArrivalTimeout, message)
    };
    let mut held = account.hold();
    match timeout(BODY_TIMEOUT, collect(body, limit, &mut held)).await {
        Ok(Ok(bytes)) => Ok((bytes, held)),
        Ok(Err(Some(error))) => Err(error),
        Ok(Err(None)) => Err(too_slow(PAUSE_TIMEOUT)),
        Err(_) => Err(too_slow(BODY_TIMEOUT)),
    }
}

/// `None` for a pause that is too long.
async fn collect(mut body: Body, limit: usize, held: &mut Held) -> Result<Vec<u8>, Option<ApiError>> {
    let too_large =
        || ApiError::new(ErrorKind::TooLarge, format!("the request body is larger than {limit} bytes"));
    // What is announced is not charged before it comes.
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limit {
        return Err(Some(too_large()));
    }
    let mut bytes = Vec::new();
    while let Some(frame) = timeout(PAUSE_TIMEOUT, body.frame()).await.map_err(|_| None)? {
        let broken = |e| ApiError::new(ErrorKind::InvalidRequest, format!("the request body broke off: {e}"));
        let Ok(mut data) = frame.map_err(broken)?.into_data() else { continue };
        let len = bytes.len() + data.remaining();
        if len > limit {
            return Err(Some(too_large()));
        }
        if len > bytes.capacity() {
            let capacity = (2 * bytes.capacity()).max(FIRST).min(announced.max(FIRST)).max(len);
            held.set(capacity)?;
            bytes.reserve_exact(capacity - bytes.len());
        }
        while data.has_remaining() {
            let chunk = data.chunk();
            bytes.extend_from_slice(chunk);
            data.advance(chunk.len());
        }
    }
    Ok(bytes)
}
