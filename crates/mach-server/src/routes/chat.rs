//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use mach_api::chat::{ChatCompletion, Choice, FinishReason, TokenLogprob, TopLogprob, Usage, completion_id};
use mach_api::{ApiError, ChatRequest, ErrorKind};
use mach_engine::{Event, Events, TextTokenizer};
use tracing::info;

use crate::chat_model::unix_time;
use crate::failure::{Failure, from_engine};
use crate::notes::noted;
use crate::reader::{Reader, Reading};
use crate::server::Shared;
use crate::{ChatModel, Prepared, auth, mode, sse};

pub(crate) async fn chat_completions(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    let model = Arc::clone(shared.model()?);
    check_media_type(&headers)?;
    let body = read_body(body, shared.config.max_body).await?;
    let (request, Prepared { generate, text, reading }) =
        parse_and_prepare(Arc::clone(&shared), Arc::clone(&model), body).await?;
    let prompt_tokens = generate.prompt.len();
    let (mut events, mut started) = model.engine.submit_and_tell(generate).map_err(|e| from_engine(&e))?;
    if request.settings.stream {
        mode::wait(&mut started, &mut events).await.map_err(|e| from_engine(&e))?;
    }
    let answer =
        Answer { id: completion_id(), created: unix_time(), model, request, prompt_tokens, text, reading };
    let told = noted(&shared, &answer.request.notes);
    let response = if answer.request.settings.stream {
        sse::response(answer, events)
    } else {
        Json(collect(&answer, events).await?).into_response()
    };
    Ok(told.tell(mode::tell(response, &mut started)))
}

/// An answer in the making.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: Arc<ChatModel>,
    pub(crate) request: ChatRequest,
    pub(crate) prompt_tokens: usize,
    /// Digest of the prompt's text.
    pub(crate) text: [u8; 32],
    /// How the choices are read.
    pub(crate) reading: Reading,
}

impl Answer {
    /// The name in responses: the one that the request used.
    pub(crate) fn model_name(&self) -> &str {
        self.model.name_for(&self.request.settings)
    }

    pub(crate) fn log_finish(&self, completion_tokens: usize) {
        info!(id = self.id, prompt_tokens = self.prompt_tokens, completion_tokens, "answered");
    }

    /// A reader for each choice.
    pub(crate) fn readers(&self) -> Vec<Reader> {
        let stats = &self.model.output_stats;
        (0..self.request.settings.n).map(|_| Reader::new(&self.reading, Arc::clone(stats))).collect()
    }

    /// Remembers the exact tokens of an answer, for when it comes back as a message.
    pub(crate) fn remember(&self, reader: &Reader, ids: Option<Vec<u32>>) {
        if let (Some(ids), Some(message)) = (ids, reader.as_history()) {
            self.model.remember(self.request.settings.cache_salt.as_deref(), &self.text, &message, &ids);
        }
    }

    /// Log probabilities in the API's terms.
    pub(crate) fn logprobs(&self, tokens: Vec<mach_engine::TokenLogprob>) -> Option<Vec<TokenLogprob>> {
        self.request.settings.logprobs?;
        let tokenizer = self.model.engine.tokenizer();
        Some(tokens.into_iter().map(|t| describe(tokenizer, t)).collect())
    }
}

pub(crate) fn describe(tokenizer: &TextTokenizer, token: mach_engine::TokenLogprob) -> TokenLogprob {
    let text = |id| String::from_utf8_lossy(tokenizer.bytes(id)).into_owned();
    TokenLogprob {
        token: text(token.id),
        logprob: token.logprob,
        bytes: tokenizer.bytes(token.id).to_vec(),
        top_logprobs: token
            .top
            .into_iter()
            .map(|(id, logprob)| TopLogprob { token: text(id), logprob, bytes: tokenizer.bytes(id).to_vec() })
            .collect(),
    }
}

/// What a stream that ends too early says.
pub(crate) fn lost() -> ApiError {
    ApiError::new(ErrorKind::Internal, "the engine dropped the request")
}

/// A page of another site can make a browser send a form to this server, but not JSON.
pub(crate) fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = "the request needs the header `Content-Type: application/json`";
    Err(ApiError::new(ErrorKind::UnsupportedMediaType, message))
}

/// How long a request's body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) async fn read_body(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let Ok(read) = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await else {
        let message = format!("the request body did not arrive within {} s", BODY_TIMEOUT.as_secs());
        return Err(ApiError::new(ErrorKind::InvalidRequest, message));
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

/// Long prompts take long to render and tokenise, so this leaves the threads that serve sockets.
async fn parse_and_prepare(
    shared: Arc<Shared>,
    model: Arc<ChatModel>,
    body: Bytes,
) -> Result<(ChatRequest, Prepared), ApiError> {
    let work = move || {
        let request = ChatRequest::parse(&body, &shared.config.limits)?;
        let generate = model.prepare(&request)?;
        Ok((request, generate))
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::new(ErrorKind::Internal, "internal error")),
    }
}

async fn collect(answer: &Answer, mut events: Events) -> Result<ChatCompletion, ApiError> {
    struct Part {
        reader: Reader,
        logprobs: Vec<mach_engine::TokenLogprob>,
        finish: Option<FinishReason>,
    }
    let part = |reader| Part { reader, logprobs: Vec::new(), finish: None };
    let mut parts: Vec<Part> = answer.readers().into_iter().map(part).collect();
    let (mut completion_tokens, mut cached_tokens) = (0, 0);
    while let Some(event) = events.recv().await {
        match event {
            Event::Text { choice, text, logprobs } => {
                if let Some(part) = parts.get_mut(choice as usize) {
                    part.reader.push(&text, &mut |_| {});
                    part.logprobs.extend(logprobs);
                }
            }
            Event::Finished { choice, reason, tokens, cached, ids, .. } => {
                completion_tokens += tokens;
                cached_tokens = cached;
                if let Some(part) = parts.get_mut(choice as usize) {
                    part.reader.finish(reason == mach_engine::FinishReason::Length, &mut |_| {});
                    answer.remember(&part.reader, ids);
                    part.finish = Some(part.reader.finish_reason(reason));
                }
            }
            Event::Failed(error) => return Err(from_engine(&error)),
        }
    }
    let choices = (0..)
        .zip(parts)
        .map(|(index, part)| {
            let finish = part.finish.ok_or_else(lost)?;
            Ok(Choice::new(index, part.reader.message(), answer.logprobs(part.logprobs), finish))
        })
        .collect::<Result<_, ApiError>>()?;
    answer.log_finish(completion_tokens);
    Ok(ChatCompletion {
        id: answer.id.clone(),
        object: "chat.completion",
        created: answer.created,
        model: answer.model_name().to_owned(),
        system_fingerprint: answer.model.numerics.clone(),
        choices,
        usage: Usage::new(answer.prompt_tokens, cached_tokens, completion_tokens),
    })
}
