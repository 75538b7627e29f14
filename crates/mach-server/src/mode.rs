//! `X-Decode-Mode` and `X-Active-Loops`: how an answer comes about, as far as that is known when it starts.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use mach_engine::{EngineError, Event, Events, Started};
use tokio::sync::oneshot;

/// A stream begins without the headers when its request still waits after this time, so that nobody gives the connection up.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is known of the start.
pub(crate) type Start = oneshot::Receiver<Started>;

/// Waits until the request leaves the queue. A request that fails before that can still be answered with a status.
pub(crate) async fn wait(start: &mut Start, events: &mut Events) -> Result<(), EngineError> {
    let (sender, receiver) = oneshot::channel();
    let started = tokio::time::timeout(PATIENCE, &mut *start).await;
    match started {
        Ok(Ok(started)) => {
            // A fresh channel that holds the answer, for whoever writes the headers.
            let _ = sender.send(started);
            *start = receiver;
            Ok(())
        }
        Ok(Err(_)) => match events.recv().await {
            Some(Event::Failed(error)) => Err(error),
            _ => Err(EngineError::ShuttingDown),
        },
        Err(_) => Ok(()),
    }
}

/// Puts what is known into the response's head.
pub(crate) fn tell(mut response: Response, start: &mut Start) -> Response {
    if let Ok(Started { mode, active }) = start.try_recv() {
        let headers = response.headers_mut();
        let mode = HeaderValue::from_static(mode.as_str());
        headers.insert(HeaderName::from_static("x-decode-mode"), mode);
        headers.insert(HeaderName::from_static("x-active-loops"), HeaderValue::from(active));
    }
    response
}
