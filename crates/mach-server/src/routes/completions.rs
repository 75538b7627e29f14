//! `POST /v1/completions`: plain prompts, several at a time.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use mach_api::chat::{FinishReason, Usage};
use mach_api::completions::{
    Completion, CompletionChoice, CompletionChunk, CompletionLogprobs, Prompt, completion_id,
};
use mach_api::{ApiError, CompletionRequest, ErrorKind};
use mach_engine::{Event, GenerateRequest};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tracing::{info, warn};

use super::chat::{check_media_type, describe, lost, read_body};
use super::tokens::off_the_sockets;
use crate::chat_model::unix_time;
use crate::coalesce::coalesce;
use crate::failure::{Failure, from_engine_for_prompt};
use crate::notes::noted;
use crate::server::Shared;
use crate::{ChatModel, auth, mode, sse};

/// Events that may share one write when the client is slower than the model.
const BATCH: usize = 64;

/// Events of several prompts, each with the number of its prompt's first choice.
type Numbered = Pin<Box<dyn Stream<Item = (u32, Event)> + Send>>;

pub(crate) async fn completions(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    let model = Arc::clone(shared.model()?);
    check_media_type(&headers)?;
    let body = read_body(body, shared.config.max_body).await?;
    let (for_work, limits) = (Arc::clone(&model), shared.config.limits.clone());
    let (request, prompts) = off_the_sockets(move || {
        let request = CompletionRequest::parse(&body, &limits)?;
        let prompts = prepare(&for_work, &request)?;
        Ok((request, prompts))
    })
    .await?;
    let prompt_tokens = prompts.iter().map(|(_, generate)| generate.prompt.len()).sum();
    let (mut echoes, mut all, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for (echo, generate) in prompts {
        let submitted = model.engine.submit_and_tell(generate);
        let (events, started) = submitted.map_err(|e| from_engine_for_prompt(&e))?;
        echoes.push(echo);
        all.push(events);
        starts.push(started);
    }
    // The head speaks of the first prompt.
    let mut first = starts.into_iter().next();
    if let (true, Some(started), Some(events)) = (request.settings.stream, &mut first, all.first_mut()) {
        mode::wait(started, events).await.map_err(|e| from_engine_for_prompt(&e))?;
    }
    let told = noted(&shared, &request.notes);
    let choices = request.settings.n;
    let numbered = (0..).zip(all).map(|(prompt, events)| {
        let first = prompt * choices;
        UnboundedReceiverStream::new(events).map(move |event| (first, event)).boxed()
    });
    let answer = Answer {
        id: completion_id(),
        created: unix_time(),
        model,
        request,
        prompt_tokens,
        echoes,
        offsets: Vec::new(),
        events: Box::pin(stream::select_all(numbered)),
        tokens: 0,
        cached: 0,
    };
    let response = if answer.request.settings.stream {
        sse::event_stream(answer.stream())
    } else {
        Json(answer.collect().await?).into_response()
    };
    Ok(match first {
        Some(mut started) => told.tell(mode::tell(response, &mut started)),
        None => told.tell(response),
    })
}

/// Each prompt's text, for echoes, and what the engine is asked.
fn prepare(
    model: &ChatModel,
    request: &CompletionRequest,
) -> Result<Vec<(String, GenerateRequest)>, ApiError> {
    model.check_name(request.settings.model.as_deref())?;
    let tokenizer = model.engine.tokenizer();
    let vocab = model.engine.vocab();
    let one = |prompt: &Prompt| {
        let (text, tokens) = match prompt {
            Prompt::Text(text) => {
                let tokens = tokenizer.encode(text, true);
                (text.clone(), tokens.map_err(|e| ApiError::new(ErrorKind::Internal, e.to_string()))?)
            }
            Prompt::Tokens(ids) => {
                if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
                    let reason = format!("token id {id} is outside the vocabulary of {vocab}");
                    return Err(ApiError::field("prompt", reason));
                }
                let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.bytes(id)).copied().collect();
                (String::from_utf8_lossy(&bytes).into_owned(), ids.clone())
            }
        };
        let echo = if request.echo { text } else { String::new() };
        Ok((echo, model.prepare_plain(&request.settings, tokens)?))
    };
    request.prompts.iter().map(one).collect()
}

/// An answer in the making.
struct Answer {
    id: String,
    created: u64,
    model: Arc<ChatModel>,
    request: CompletionRequest,
    prompt_tokens: usize,
    /// What each prompt's answers begin with.
    echoes: Vec<String>,
    /// Where the next token of each choice begins, in characters.
    offsets: Vec<usize>,
    events: Numbered,
    tokens: usize,
    cached: usize,
}

impl Answer {
    fn choices(&self) -> u32 {
        self.request.settings.n * self.echoes.len() as u32
    }

    fn logprobs(&mut self, index: u32, tokens: Vec<mach_engine::TokenLogprob>) -> Option<CompletionLogprobs> {
        self.request.settings.logprobs?;
        let tokenizer = self.model.engine.tokenizer();
        let tokens = tokens.into_iter().map(|t| describe(tokenizer, t)).collect();
        self.offsets.resize((index as usize + 1).max(self.offsets.len()), 0);
        self.offsets.get_mut(index as usize).map(|offset| CompletionLogprobs::new(tokens, offset))
    }

    /// Counts a choice that ended.
    fn ended(&mut self, reason: mach_engine::FinishReason, tokens: usize, cached: usize) -> FinishReason {
        self.tokens += tokens;
        self.cached += cached;
        match reason {
            mach_engine::FinishReason::Stop => FinishReason::Stop,
            mach_engine::FinishReason::Length => FinishReason::Length,
        }
    }

    fn usage(&self) -> Usage {
        // Every choice of a prompt tells how much of it was known.
        let cached = self.cached / self.request.settings.n.max(1) as usize;
        Usage::new(self.prompt_tokens, cached, self.tokens)
    }

    fn log_finish(&self) {
        info!(id = self.id, prompt_tokens = self.prompt_tokens, completion_tokens = self.tokens, "answered");
    }

    async fn collect(mut self) -> Result<Completion, ApiError> {
        struct Part {
            text: String,
            logprobs: Vec<mach_engine::TokenLogprob>,
            finish: Option<FinishReason>,
        }
        let mut parts: Vec<Part> = Vec::new();
        for echo in &self.echoes {
            let part = || Part { text: echo.clone(), logprobs: Vec::new(), finish: None };
            parts.extend((0..self.request.settings.n).map(|_| part()));
        }
        while let Some((first, event)) = self.events.next().await {
            match event {
                Event::Text { choice, text, logprobs } => {
                    if let Some(part) = parts.get_mut((first + choice) as usize) {
                        part.text.push_str(&text);
                        part.logprobs.extend(logprobs);
                    }
                }
                Event::Finished { choice, reason, tokens, cached, .. } => {
                    let finish = self.ended(reason, tokens, cached);
                    if let Some(part) = parts.get_mut((first + choice) as usize) {
                        part.finish = Some(finish);
                    }
                }
                Event::Failed(error) => return Err(from_engine_for_prompt(&error)),
            }
        }
        let mut choices = Vec::with_capacity(parts.len());
        for (index, part) in (0..).zip(parts) {
            let logprobs = self.logprobs(index, part.logprobs);
            let finish_reason = Some(part.finish.ok_or_else(lost)?);
            choices.push(CompletionChoice { index, text: part.text, logprobs, finish_reason });
        }
        self.log_finish();
        Ok(Completion {
            usage: self.usage(),
            id: self.id,
            object: "text_completion",
            created: self.created,
            model: self.model.name_for(&self.request.settings).to_owned(),
            system_fingerprint: self.model.numerics.clone(),
            choices,
        })
    }

    /// The body of a stream. Dropping it (the client left) cancels the generation.
    fn stream(mut self) -> Body {
        let nothing = Box::pin(stream::empty::<(u32, Event)>());
        let events = std::mem::replace(&mut self.events, nothing).ready_chunks(BATCH);
        let unfinished = self.choices();
        let writer = Writer { answer: self, events, unfinished, begun: false, done: false };
        Body::from_stream(stream::unfold(writer, |mut writer| async move {
            let bytes = writer.next().await?;
            Some((Ok::<_, Infallible>(bytes), writer))
        }))
    }
}

struct Writer {
    answer: Answer,
    events: stream::ReadyChunks<Numbered>,
    /// Choices that have not finished.
    unfinished: u32,
    begun: bool,
    done: bool,
}

impl Writer {
    async fn next(&mut self) -> Option<bytes::Bytes> {
        if self.done {
            return None;
        }
        let mut out = Vec::with_capacity(512);
        if !std::mem::replace(&mut self.begun, true) && self.answer.request.echo {
            let n = self.answer.request.settings.n as usize;
            let echoes = self.answer.echoes.clone();
            for (index, text) in (0..).zip(echoes.iter().flat_map(|echo| std::iter::repeat_n(echo, n))) {
                let text = text.clone();
                self.chunk(
                    &mut out,
                    Some(CompletionChoice { index, text, logprobs: None, finish_reason: None }),
                );
            }
            return Some(out.into());
        }
        match tokio::time::timeout(sse::KEEP_ALIVE, self.events.next()).await {
            Err(_) => out.extend_from_slice(sse::KEEP_ALIVE_LINE),
            Ok(None) => self.fail(&mut out, &lost()),
            Ok(Some(events)) => {
                for (first, event) in coalesce(events) {
                    self.event(&mut out, first, event);
                }
            }
        }
        Some(out.into())
    }

    fn event(&mut self, out: &mut Vec<u8>, first: u32, event: Event) {
        if self.done {
            return;
        }
        match event {
            Event::Text { choice, text, logprobs } => {
                let index = first + choice;
                let logprobs = self.answer.logprobs(index, logprobs);
                self.chunk(out, Some(CompletionChoice { index, text, logprobs, finish_reason: None }));
            }
            Event::Finished { choice, reason, tokens, cached, .. } => {
                let finish_reason = Some(self.answer.ended(reason, tokens, cached));
                let index = first + choice;
                let end = CompletionChoice { index, text: String::new(), logprobs: None, finish_reason };
                self.chunk(out, Some(end));
                self.unfinished = self.unfinished.saturating_sub(1);
                if self.unfinished == 0 {
                    if self.answer.request.settings.include_usage {
                        self.chunk(out, None);
                    }
                    out.extend_from_slice(sse::DONE);
                    self.answer.log_finish();
                    self.done = true;
                }
            }
            Event::Failed(error) => self.fail(out, &from_engine_for_prompt(&error)),
        }
    }

    /// Writes a chunk; without a choice, the usage chunk.
    fn chunk(&self, out: &mut Vec<u8>, choice: Option<CompletionChoice>) {
        let answer = &self.answer;
        let last = choice.is_none();
        let usage = answer.request.settings.include_usage.then(|| last.then(|| answer.usage()));
        let chunk = CompletionChunk {
            id: &answer.id,
            object: "text_completion",
            created: answer.created,
            model: answer.model.name_for(&answer.request.settings),
            system_fingerprint: &answer.model.numerics,
            choices: choice.into_iter().collect(),
            usage,
        };
        sse::write_data(out, &chunk);
    }

    /// The status is long sent, so the error is an event.
    fn fail(&mut self, out: &mut Vec<u8>, error: &ApiError) {
        warn!(reason = error.message, "a stream ends with an error");
        sse::write_data(out, &error.body());
        out.extend_from_slice(sse::DONE);
        self.done = true;
    }
}
