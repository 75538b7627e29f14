//! Answers as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use mach_api::chat::{ChatCompletionChunk, ChunkChoice, Delta, Usage};
use mach_engine::{Event, Events};
use serde::Serialize;
use tracing::warn;

use crate::coalesce::coalesce;
use crate::failure::from_engine;
use crate::reader::Reader;
use crate::routes::{Answer, lost};

/// A comment line goes out when nothing else did for this long, so that proxies keep the connection.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// That line.
pub(crate) const KEEP_ALIVE_LINE: &[u8] = b": keep-alive\n\n";
/// The last event of a stream.
pub(crate) const DONE: &[u8] = b"data: [DONE]\n\n";
/// Events that may share one write when the client is slower than the model.
const BATCH: usize = 64;

/// The streaming response. Dropping it (the client left) drops `events`, which cancels the generation.
pub(crate) fn response(answer: Answer, events: Events) -> Response {
    let readers = answer.readers();
    let answer_choices = readers.len();
    let writer = Writer {
        events,
        buffer: Vec::with_capacity(BATCH),
        unfinished: answer.request.settings.n,
        tokens: 0,
        cached: 0,
        readers,
        answer,
        begun: vec![false; answer_choices],
        done: false,
    };
    let body = Body::from_stream(stream::unfold(writer, |mut writer| async move {
        let bytes = writer.next().await?;
        Some((Ok::<_, Infallible>(bytes), writer))
    }));
    event_stream(body)
}

/// The response that carries a stream of events.
pub(crate) fn event_stream(body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // Tells nginx not to collect the stream.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, body).into_response()
}

#[derive(Debug)]
struct Writer {
    answer: Answer,
    events: Events,
    buffer: Vec<Event>,
    /// Choices that have not finished.
    unfinished: u32,
    tokens: usize,
    /// Prompt tokens that were not computed.
    cached: usize,
    /// One a choice.
    readers: Vec<Reader>,
    /// Which choices have said who speaks.
    begun: Vec<bool>,
    done: bool,
}

impl Writer {
    async fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut out = Vec::with_capacity(512);
        let mut buffer = std::mem::take(&mut self.buffer);
        let received = tokio::time::timeout(KEEP_ALIVE, self.events.recv_many(&mut buffer, BATCH)).await;
        match received {
            Err(_) => out.extend_from_slice(KEEP_ALIVE_LINE),
            Ok(0) => self.fail(&mut out, &lost()),
            Ok(_) => {
                for ((), event) in coalesce(buffer.drain(..).map(|event| ((), event))) {
                    self.event(&mut out, event);
                }
            }
        }
        self.buffer = buffer;
        Some(out.into())
    }

    fn event(&mut self, out: &mut Vec<u8>, event: Event) {
        if self.done {
            return;
        }
        match event {
            Event::Text { choice, text, logprobs } => {
                let mut deltas = Vec::new();
                if let Some(reader) = self.readers.get_mut(choice as usize) {
                    reader.push(&text, &mut |delta| deltas.push(delta));
                }
                self.deltas(out, choice, deltas, logprobs);
            }
            Event::Finished { choice, reason, tokens, cached, ids, .. } => {
                self.tokens += tokens;
                self.cached = cached;
                let mut deltas = Vec::new();
                let mut finish_reason = None;
                if let Some(reader) = self.readers.get_mut(choice as usize) {
                    let cut = reason == mach_engine::FinishReason::Length;
                    reader.finish(cut, &mut |delta| deltas.push(delta));
                    self.answer.remember(reader, ids);
                    finish_reason = Some(reader.finish_reason(reason));
                }
                self.deltas(out, choice, deltas, Vec::new());
                // An answer that says nothing has a content too.
                let mut delta = Delta::default();
                self.begin(out, choice, &mut delta, true);
                self.chunk(out, Some(ChunkChoice { index: choice, delta, logprobs: None, finish_reason }));
                self.unfinished = self.unfinished.saturating_sub(1);
                if self.unfinished == 0 {
                    if self.answer.request.settings.include_usage {
                        self.chunk(out, None);
                    }
                    out.extend_from_slice(DONE);
                    self.answer.log_finish(self.tokens);
                    self.done = true;
                }
            }
            Event::Failed(error) => {
                let error = from_engine(&error);
                self.fail(out, &error);
            }
        }
    }

    /// Writes what is new of a choice; the log probabilities of its tokens go with the first chunk.
    fn deltas(
        &mut self,
        out: &mut Vec<u8>,
        index: u32,
        mut deltas: Vec<Delta>,
        logprobs: Vec<mach_engine::TokenLogprob>,
    ) {
        let mut logprobs = (!logprobs.is_empty()).then_some(logprobs);
        if deltas.is_empty() && logprobs.is_some() {
            deltas.push(Delta::default());
        }
        for mut delta in deltas {
            let content = delta.content.is_some();
            self.begin(out, index, &mut delta, content);
            let logprobs = logprobs.take().and_then(|new| self.answer.logprobs(new)).map(Into::into);
            self.chunk(out, Some(ChunkChoice { index, delta, logprobs, finish_reason: None }));
        }
    }

    /// Says who speaks, once a choice: in a chunk of its own before content, as OpenAI does, else with what comes first, so that
    /// a message that only calls or reasons gets no content.
    fn begin(&mut self, out: &mut Vec<u8>, index: u32, first: &mut Delta, content: bool) {
        let begun = self.begun.get_mut(index as usize).map(|begun| std::mem::replace(begun, true));
        if begun != Some(false) {
            return;
        }
        if !content {
            first.role = Some("assistant");
            return;
        }
        let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
        self.chunk(out, Some(ChunkChoice { index, delta, logprobs: None, finish_reason: None }));
    }

    /// Writes a chunk; without a choice, the usage chunk.
    fn chunk(&self, out: &mut Vec<u8>, choice: Option<ChunkChoice>) {
        let counts = || Usage::new(self.answer.prompt_tokens, self.cached, self.tokens);
        let usage = self.answer.request.settings.include_usage.then(|| choice.is_none().then(counts));
        let chunk = ChatCompletionChunk {
            id: &self.answer.id,
            object: "chat.completion.chunk",
            created: self.answer.created,
            model: self.answer.model_name(),
            system_fingerprint: &self.answer.model.numerics,
            choices: choice.into_iter().collect(),
            usage,
        };
        write_data(out, &chunk);
    }

    /// The status is long sent, so the error is an event.
    fn fail(&mut self, out: &mut Vec<u8>, error: &mach_api::ApiError) {
        warn!(reason = error.message, "a stream ends with an error");
        write_data(out, &error.body());
        out.extend_from_slice(DONE);
        self.done = true;
    }
}

pub(crate) fn write_data(out: &mut Vec<u8>, value: &impl Serialize) {
    out.extend_from_slice(b"data: ");
    // These types hold strings and finite numbers only, and a Vec takes every write.
    let _ = serde_json::to_writer(&mut *out, value);
    out.extend_from_slice(b"\n\n");
}
