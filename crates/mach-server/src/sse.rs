//! Answers as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use mach_api::{ApiError, Dialect};
use tracing::warn;

use crate::answer::{Answers, Step};

/// Something goes out when nothing else did for this long, so that proxies and clients keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

const HEADERS: [(header::HeaderName, &str); 3] = [
    (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
    (header::CACHE_CONTROL, "no-cache"),
    // Tells nginx not to collect the stream.
    (header::HeaderName::from_static("x-accel-buffering"), "no"),
];

/// The streaming response. Dropping it (the client left) drops the answers, which cancels the generation.
pub(crate) fn response<D: Dialect>(dialect: D, answers: Answers) -> Response {
    let writer = EventWriter { dialect, answers, begun: false, done: false };
    let body = Body::from_stream(stream::unfold(writer, |mut writer| async move {
        let bytes = writer.next().await?;
        Some((Ok::<_, Infallible>(bytes), writer))
    }));
    (HEADERS, body).into_response()
}

/// A stream that tells why there is no answer.
pub(crate) fn refusal<D: Dialect>(mut dialect: D, error: &ApiError) -> Response {
    let mut out = Vec::new();
    dialect.open(&mut out);
    dialect.fail(error, &mut out);
    (HEADERS, Body::from(out)).into_response()
}

struct EventWriter<D> {
    dialect: D,
    answers: Answers,
    begun: bool,
    done: bool,
}

impl<D: Dialect> EventWriter<D> {
    async fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut out = Vec::with_capacity(512);
        if !std::mem::replace(&mut self.begun, true) {
            self.dialect.open(&mut out);
            if !out.is_empty() {
                return Some(out.into());
            }
        }
        match tokio::time::timeout(KEEP_ALIVE, self.answers.next()).await {
            Err(_) => self.dialect.keep_alive(&mut out),
            Ok(Err(error)) => self.fail(&error, &mut out),
            Ok(Ok(steps)) => {
                steps.into_iter().for_each(|step| self.write(step, &mut out));
                if self.answers.finished() {
                    self.dialect.close(self.answers.counts(), &mut out);
                    self.done = true;
                }
            }
        }
        Some(out.into())
    }

    fn write(&mut self, step: Step, out: &mut Vec<u8>) {
        match step {
            Step::Said { choice, said, logprobs } => self.dialect.said(choice, said, logprobs, out),
            Step::Ended { choice, ending } => self.dialect.ended(choice, ending, out),
        }
    }

    /// The status is long sent, so the error is an event.
    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        warn!(reason = error.message, "a stream ends with an error");
        self.dialect.fail(error, out);
        self.done = true;
    }
}
