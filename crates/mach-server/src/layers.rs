//! What every request passes: an id and a span for the logs, counters, the limit of its key, CORS.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use mach_api::{ApiError, ErrorKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_http::cors::{AllowOrigin, Any, CorsLayer};
use tracing::{Instrument, info_span};

use crate::auth::Caller;
use crate::failure::{Failure, Reason};
use crate::server::Shared;
use crate::writing::{self, End, Watched};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Longest id that is taken over from a client.
const LONGEST_ID: usize = 128;

/// Routes that are asked again and again: their requests are logged for debugging only.
const QUIET: [&str; 5] = ["/health", "/metrics", "/v1/stats", "/v1/bank", "/v1/cache/stats"];

/// Gives a request its id, its span and its place in the counters.
pub(crate) async fn observe(
    State(shared): State<Arc<Shared>>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    let method = request.method().clone();
    let route = matched.map_or_else(|| "other".to_owned(), |m| m.as_str().to_owned());
    let span = info_span!("request", id = %id, %method, path = request.uri().path());
    let running = shared.drain.enter();
    let draining = shared.drain.begun();
    let mut response = match refused(&shared, &request, &route) {
        Some(error) => Failure(error).into_response(),
        None => next.run(request).instrument(span.clone()).await,
    };
    let charge = match writing::charge(&shared, &response) {
        Ok(charge) => charge,
        Err(error) => {
            response = Failure(error).into_response();
            None
        }
    };
    if draining {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let status = response.status().as_u16();
    shared.http.count(method.as_str(), &route, status);
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let quiet = QUIET.contains(&route.as_str()) && status < 400;
    let reason = response.extensions_mut().remove::<Reason>().map(|Reason(message)| message);
    let end = End { started, status, quiet, reason, _running: running, _charge: charge };
    response.map(|body| Body::new(Watched::new(body, span, end)))
}

/// Why a request is refused before any route sees it.
fn refused(shared: &Shared, request: &Request, route: &str) -> Option<ApiError> {
    // hyper stops reading a head that is much too large; up to what it reads at once, it does not notice.
    let size = head_bytes(request);
    if size > shared.config.max_head {
        let message = format!("the head of the request has {size} bytes; {} may be", shared.config.max_head);
        return Some(ApiError::new(ErrorKind::HeadTooLarge, message));
    }
    if let Some(hosts) = &shared.hosts {
        let checked = hosts.check(request.uri(), request.headers(), shared.config.cors.as_ref());
        if let Err(error) = checked {
            return Some(error);
        }
    }
    // What is measured to the end can be asked for to the end.
    let stopping = shared.drain.begun() && route != "/metrics";
    stopping.then(|| ApiError::new(ErrorKind::Unavailable, "the server is stopping").retry_after(1))
}

fn head_bytes(request: &Request) -> usize {
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    request.uri().path().len() + request.uri().query().map_or(0, str::len) + headers.sum::<usize>()
}

/// The client's id if it is sane, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let sane = |id: &&str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/".contains(&b);
        (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(plain)
    };
    let given = headers.get(REQUEST_ID).and_then(|v| v.to_str().ok()).filter(sane);
    given.map_or_else(|| uuid::Uuid::new_v4().simple().to_string(), str::to_owned)
}

/// Generating requests of each key.
#[derive(Debug)]
pub(crate) struct Keys {
    most: Option<usize>,
    places: Mutex<HashMap<Caller, Weak<Semaphore>>>,
}

impl Keys {
    pub(crate) fn new(most: Option<usize>) -> Self {
        Self { most, places: Mutex::default() }
    }

    /// A place, if there is a limit; an error if the key has none left.
    fn enter(&self, headers: &HeaderMap) -> Result<Option<(Arc<Semaphore>, OwnedSemaphorePermit)>, ApiError> {
        let Some(most) = self.most else { return Ok(None) };
        let key = Caller::of(headers);
        // Only while they are in use.
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|_, place| place.strong_count() > 0);
        let place = places.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
            let place = Arc::new(Semaphore::new(most));
            places.insert(key, Arc::downgrade(&place));
            place
        });
        match Arc::clone(&place).try_acquire_owned() {
            Ok(permit) => Ok(Some((place, permit))),
            Err(_) => {
                let message =
                    format!("this key has {most} requests at work, which is as many as it may have");
                Err(ApiError::new(ErrorKind::TooManyAtOnce, message).retry_after(1))
            }
        }
    }
}

/// Holds a request back when its key has as many at work as it may have. The place is free when the answer is written.
pub(crate) async fn one_key_at_a_time(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let permit = match shared.keys.enter(request.headers()) {
        Ok(permit) => permit,
        Err(error) => return Failure(error).into_response(),
    };
    let response = next.run(request).await;
    match permit {
        None => response,
        Some((_, permit)) => response.map(|body| Body::new(Held { body, _permit: permit })),
    }
}

/// A body that holds its key's place.
#[derive(Debug)]
struct Held {
    body: Body,
    _permit: OwnedSemaphorePermit,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Sites whose pages may ask this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Any origin may read answers.
    Any,
    /// These, as browsers write them: `https://example.org`.
    These(Vec<HeaderValue>),
}

impl Origins {
    /// Reads origins as a command line has them; `*` stands for all.
    pub fn parse(origins: &[String]) -> Result<Option<Self>, String> {
        if origins.is_empty() {
            return Ok(None);
        }
        if origins.iter().any(|o| o == "*") {
            return Ok(Some(Self::Any));
        }
        let origin = |text: &String| {
            let plain = text
                .split_once("://")
                .is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty() && !rest.contains('/'));
            HeaderValue::from_str(text).ok().filter(|_| plain).ok_or_else(|| {
                format!("`{text}` is no origin: it looks like https://example.org, without a path")
            })
        };
        Ok(Some(Self::These(origins.iter().map(origin).collect::<Result<_, _>>()?)))
    }

    pub(crate) fn layer(&self) -> CorsLayer {
        let origins = match self {
            Self::Any => AllowOrigin::from(Any),
            Self::These(list) => AllowOrigin::list(list.iter().cloned()),
        };
        let exposed = ["x-request-id", "x-decode-mode", "x-active-loops", "x-ignored-fields", "retry-after"];
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods(Any)
            .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE, API_KEY, REQUEST_ID])
            .expose_headers(exposed.map(HeaderName::from_static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(given: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, given.parse().unwrap());
        request_id(&headers)
    }

    #[test]
    fn only_sane_ids_are_taken_over() {
        assert_eq!(id("run-7/step.3"), "run-7/step.3");
        for strange in ["", "a b", "a\"b", &"x".repeat(129), "{}"] {
            let made = id(strange);
            assert!(made != strange && made.len() == 32, "{made}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }

    #[test]
    fn a_key_has_its_places_and_no_more() {
        let keys = Keys::new(Some(2));
        let with = |key: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(key));
            keys.enter(&headers)
        };
        let (first, _second) = (with("Bearer a").unwrap(), with("Bearer a").unwrap());
        assert_eq!(with("Bearer a").unwrap_err().kind, ErrorKind::TooManyAtOnce);
        assert!(with("Bearer b").is_ok());
        drop(first);
        assert!(with("Bearer a").is_ok());
        assert!(Keys::new(None).enter(&HeaderMap::new()).unwrap().is_none());
    }

    #[test]
    fn origins_are_origins() {
        let parse = |list: &[&str]| Origins::parse(&list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(parse(&[]), Ok(None));
        assert_eq!(parse(&["https://a.example", "*"]), Ok(Some(Origins::Any)));
        assert!(
            matches!(parse(&["http://localhost:3000"]), Ok(Some(Origins::These(list))) if list.len() == 1)
        );
        for bad in ["a.example", "https://a.example/", "://x", "http://"] {
            assert!(parse(&[bad]).is_err(), "{bad}");
        }
    }
}
