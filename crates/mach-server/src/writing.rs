//! The way of an answer to its client: in its request's span, in pieces, charged while it waits.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use mach_api::{ApiError, ErrorKind};
use mach_engine::Charge;
use tracing::{Span, debug, info};

use crate::drain::Running;
use crate::server::Shared;

/// Bytes that hyper is given at once. It takes more only when these are nearly written, so that the rest stays where it is charged.
const PIECE: usize = 32 << 10;

/// Charges a whole answer until it is written; a stream charges its events itself.
pub(crate) fn charge(shared: &Shared, response: &Response) -> Result<Option<Charge>, ApiError> {
    let bytes = response.body().size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    let (Some(bytes), Some(model)) = (bytes.filter(|&bytes| bytes > PIECE), shared.readiness.model()) else {
        return Ok(None);
    };
    let charge = model.engine.unread().charge(bytes);
    let full =
        || ApiError::new(ErrorKind::Unavailable, "too many answers wait to be read (--max-unread-mib)");
    charge.map(Some).ok_or_else(|| full().retry_after(1))
}

/// What is told, and given back, when the answer is written or given up.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) started: Instant,
    pub(crate) status: u16,
    pub(crate) quiet: bool,
    /// Why the request was refused.
    pub(crate) reason: Option<String>,
    pub(crate) _running: Running,
    pub(crate) _charge: Option<Charge>,
}

/// A body that is written inside the request's span; the log tells when it is written or given up.
#[derive(Debug)]
pub(crate) struct Watched {
    body: Body,
    /// What hyper was not given yet.
    rest: Bytes,
    span: Span,
    end: End,
}

impl Watched {
    pub(crate) fn new(body: Body, span: Span, end: End) -> Self {
        Self { body, rest: Bytes::new(), span, end }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let _inside = this.span.enter();
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(context))
                .map(|frame| frame.map(Frame::into_data))
            {
                Some(Ok(Ok(data))) => this.rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _inside = self.span.enter();
        let (status, seconds) = (self.end.status, self.end.started.elapsed().as_secs_f64());
        let reason = self.end.reason.as_deref();
        if self.end.quiet {
            debug!(status, seconds, reason, "request ended");
        } else {
            info!(status, seconds, reason, "request ended");
        }
    }
}
