//! The routes that generate: one handler, whatever the dialect.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use mach_api::chat::{ChatDialect, Settings};
use mach_api::completions::CompletionDialect;
use mach_api::messages::MessagesDialect;
use mach_api::responses::{Backing, CompactionDialect, Keep, Past, ResponsesDialect};
use mach_api::turn::{Head, Input, Parsed};
use mach_api::{ApiError, Dialect, ErrorKind, Notes, memory};
use serde_json::{Value, json};

use super::body::read_json;
use crate::account::Held;
use crate::answer::{Answers, Asking};
use crate::auth::Caller;
use crate::chat_model::{Prepared, unix_time};
use crate::failure::{Failure, from_engine};
use crate::job::{Job, off_the_sockets};
use crate::notes::noted;
use crate::server::Shared;
use crate::store::{Keeper, Owned};
use crate::{ChatModel, auth, mode, sse};

/// `POST /v1/chat/completions`.
pub(crate) async fn chat_completions(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    generate::<ChatDialect>(shared, headers, body).await
}

/// `POST /v1/completions`.
pub(crate) async fn completions(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    generate::<CompletionDialect>(shared, headers, body).await
}

/// `POST /v1/messages`.
pub(crate) async fn messages(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    generate::<MessagesDialect>(shared, headers, body).await
}

/// `POST /v1/responses`.
pub(crate) async fn responses(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    generate::<ResponsesDialect>(shared, headers, body).await
}

/// `POST /v1/responses/compact`.
pub(crate) async fn compact_response(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    generate::<CompactionDialect>(shared, headers, body).await
}

/// `POST /v1/messages/count_tokens`.
pub(crate) async fn count_message_tokens(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    count::<MessagesDialect>(shared, headers, body, |tokens| json!({"input_tokens": tokens})).await
}

/// `POST /v1/responses/input_tokens`.
pub(crate) async fn count_response_tokens(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let told = |tokens| json!({"object": "response.input_tokens", "input_tokens": tokens});
    count::<ResponsesDialect>(shared, headers, body, told).await
}

/// The length of the prompt that a request would have. Nothing is queued.
async fn count<D: Dialect>(
    shared: Arc<Shared>,
    headers: HeaderMap,
    body: Body,
    told: impl Fn(usize) -> Value,
) -> Result<Response, Failure> {
    let (model, mut parsed, held) = parsed::<D>(&shared, &headers, body).await?;
    let notes = std::mem::take(&mut parsed.notes);
    let (account, bytes) = (Arc::clone(&model.account), model.memory_of(&parsed.turns)?);
    let count = move |job: &mut Job| {
        let tokens = parsed.turns.iter().map(|turn| model.count(turn, job));
        tokens.sum::<Result<usize, ApiError>>()
    };
    let tokens = off_the_sockets(&account, bytes, count).await?;
    Ok(held.until_written(noted(&shared, &notes).tell(Json(told(tokens)).into_response())))
}

/// Reads and parses a body. What was made of it takes its place, and is what the request holds until it is answered.
async fn parsed<D: Dialect>(
    shared: &Arc<Shared>,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Arc<ChatModel>, Parsed<D>, Held), Failure> {
    auth::check(shared.config.api_key.as_deref(), headers)?;
    let model = Arc::clone(shared.model()?);
    let account = Arc::clone(&model.account);
    let (body, mut held) = read_json(&account, headers, body, shared.config.max_body).await?;
    let (bytes, limits) = (memory::of_json(&body), shared.config.limits.clone());
    let (for_salt, caller) = (Arc::clone(shared), Caller::of(headers));
    let parse = move |job: &mut Job| {
        let store = &for_salt.config.store;
        let past = Owned::new(store, caller, job, bytes);
        let keep = || Arc::new(Keeper { store: Arc::clone(store), caller }) as Arc<dyn Keep>;
        let there = store.kept().is_some();
        let backing = Backing {
            past: there.then_some(&past as &dyn Past),
            keep: there.then(keep),
            seal: Arc::clone(&store.seal),
        };
        let mut parsed = D::parse_with(&body, &limits, &backing)?;
        for turn in &mut parsed.turns {
            turn.settings.cache_salt = for_salt.salt(&caller, turn.settings.cache_salt.take());
        }
        Ok(parsed)
    };
    let parsed = off_the_sockets(&account, bytes, parse).await?;
    let turns: usize = parsed.turns.iter().map(|turn| model.held_by(turn)).sum();
    held.set(turns.saturating_add(parsed.dialect.memory()))?;
    Ok((model, parsed, held))
}

/// Parse, prepare, ask the engine, write.
async fn generate<D: Dialect>(
    shared: Arc<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let (model, parsed, held) = parsed::<D>(&shared, &headers, body).await?;
    let account = Arc::clone(&model.account);
    let (bytes, for_work) = (model.memory_of(&parsed.turns)?, Arc::clone(&model));
    let work = move |job: &mut Job| Request::<D>::prepare(&for_work, parsed, job);
    let Request { dialect, settings, prepared, notes } = off_the_sockets(&account, bytes, work).await?;
    let told = noted(&shared, &notes);

    let submitted = prepared.and_then(|prepared| {
        let (asking, generate): (Vec<_>, Vec<_>) = prepared.into_iter().map(Asking::of).unzip();
        let submitted = model.engine.submit_all(generate).map_err(|e| from_engine(&e, D::PROMPT_FIELD))?;
        Ok((asking, submitted))
    });
    let (asking, submitted) = match submitted {
        Ok(submitted) => submitted,
        Err(error) if D::LENGTH_IN_STREAM && settings.stream && error.kind == ErrorKind::ContextLength => {
            return Ok(held.until_written(told.tell(sse::refusal(dialect, &error))));
        }
        Err(error) => return Err(error.into()),
    };
    let (events, starts): (Vec<_>, Vec<_>) = submitted.into_iter().unzip();
    let mut turns: Vec<_> = asking.into_iter().zip(events).collect();
    // The head of the response speaks of the first turn.
    let mut first = starts.into_iter().next();
    if let (true, Some(started), Some((_, events))) = (settings.stream, &mut first, turns.first_mut()) {
        mode::wait(started, events).await.map_err(|e| from_engine(&e, D::PROMPT_FIELD))?;
    }
    let answers = Answers::new(model, turns, settings.n, D::PROMPT_FIELD);
    let response = if settings.stream {
        sse::response(dialect, answers)
    } else {
        let (answers, counts) = answers.collect().await?;
        Json(dialect.document(answers, counts)).into_response()
    };
    let response = match &mut first {
        Some(started) => mode::tell(response, started),
        None => response,
    };
    Ok(held.until_written(told.tell(response)))
}

/// A request that the engine can be asked.
struct Request<D> {
    dialect: D,
    /// Those of all turns.
    settings: Settings,
    /// What the engine is asked, or why it cannot be.
    prepared: Result<Vec<Prepared>, ApiError>,
    notes: Notes,
}

impl<D: Dialect> Request<D> {
    fn prepare(model: &ChatModel, parsed: Parsed<D>, job: &mut Job) -> Result<Self, ApiError> {
        let Parsed { turns, mut dialect, notes } = parsed;
        let prepared: Result<Vec<Prepared>, _> =
            turns.iter().map(|turn| model.prepare_as(turn, job)).collect();
        let lengths = prepared.iter().flatten().map(|prepared| prepared.generate.prompt.len());
        let settings = turns.first().map(|turn| turn.settings.clone()).unwrap_or_default();
        let text = |input: &Input| match input {
            Input::Text(text) => text.clone(),
            Input::Tokens(ids) => model.text_of(ids),
            Input::Conversation(_) => String::new(),
        };
        dialect.begin(Head {
            created: unix_time(),
            model: model.name_for(&settings).to_owned(),
            numerics: model.numerics.clone(),
            prompt_tokens: lengths.sum(),
            prompts: match dialect.wants_prompts() {
                true => turns.iter().map(|turn| text(&turn.input)).collect(),
                false => Vec::new(),
            },
        });
        Ok(Self { dialect, settings, prepared, notes })
    }
}
