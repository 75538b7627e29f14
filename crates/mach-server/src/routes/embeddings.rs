//! `POST /v1/embeddings`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use mach_api::completions::Prompt;
use mach_api::embeddings::{Embedding, EmbeddingList, EmbeddingRequest};
use mach_api::{ApiError, ErrorKind, memory};
use mach_engine::{CacheHints, Event, Events, GenerateRequest, OutputControl, Preset, SamplingParams};

use super::body::read_json;
use crate::failure::{Failure, from_engine};
use crate::job::{Job, off_the_sockets};
use crate::notes::noted;
use crate::server::Shared;
use crate::{ChatModel, auth};

/// The field of a complaint that names no input.
const FIELD: &str = "input";
/// Bytes of a value in the answer, as JSON that grows.
const OF_VALUE: usize = 32;

pub(crate) async fn embeddings(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    let model = Arc::clone(shared.model()?);
    let account = Arc::clone(&model.account);
    let (body, mut held) = read_json(&account, &headers, body, shared.config.max_body).await?;
    let (bytes, limits, for_work) =
        (memory::of_json(&body), shared.config.limits.clone(), Arc::clone(&model));
    let work = move |job: &mut Job| {
        let request = EmbeddingRequest::parse(&body, &limits)?;
        drop(body);
        for_work.check_name(request.model.as_deref())?;
        let tokens = tokens_of(&for_work, &request.inputs, job)?;
        Ok((request, tokens))
    };
    let (request, inputs) = off_the_sockets(&account, bytes, work).await?;
    let all: usize = inputs.iter().map(Vec::len).sum();
    let (count, tokens) = (inputs.len(), all * size_of::<u32>());
    held.set(tokens)?;
    let requests = inputs.into_iter().map(embedding_of).collect();
    let asked = model.engine.submit_all(requests).map_err(|e| from_engine(&e, FIELD))?;
    let mut data = Vec::with_capacity(asked.len());
    for (index, (events, _)) in asked.into_iter().enumerate() {
        let state = state(events).await?;
        if index == 0 {
            // Now it is known how long they are.
            held.set(tokens + count * state.len() * OF_VALUE)?;
        }
        if let Some(asked) = request.dimensions.filter(|&asked| asked > state.len()) {
            let reason = format!("must be at most {}, got {asked}", state.len());
            return Err(ApiError::field("dimensions", reason).into());
        }
        data.push(Embedding::new(index, state, request.dimensions, request.encoding));
    }
    let name = request.model.or_else(|| model.names.first().cloned()).unwrap_or_default();
    let response = Json(EmbeddingList::new(name, data, all)).into_response();
    Ok(held.until_written(noted(&shared, &request.notes).tell(response)))
}

/// Tokens of the inputs, each checked.
fn tokens_of(model: &ChatModel, inputs: &[Prompt], job: &mut Job) -> Result<Vec<Vec<u32>>, ApiError> {
    let (vocab, many) = (model.engine.facts().vocab, inputs.len() > 1);
    let mut beside = 0;
    let one = |(i, input): (usize, &Prompt)| {
        let field = if many { format!("{FIELD}[{i}]") } else { FIELD.to_owned() };
        job.goes_on()?;
        let tokens = match input {
            Prompt::Text(text) => {
                model.check_length(text.len(), &field)?;
                model.tokens_of(text, true, beside, job)?
            }
            Prompt::Tokens(ids) => ids.clone(),
        };
        beside += tokens.len() * size_of::<u32>();
        model.check_tokens(tokens.len() + 1, &field)?;
        match tokens.iter().find(|&&id| id as usize >= vocab) {
            Some(id) => {
                Err(ApiError::field(field, format!("token id {id} is outside the vocabulary of {vocab}")))
            }
            None => Ok(tokens),
        }
    };
    inputs.iter().enumerate().map(one).collect()
}

fn embedding_of(prompt: Vec<u32>) -> GenerateRequest {
    GenerateRequest {
        prompt,
        choices: 1,
        max_tokens: Some(1),
        sampling: SamplingParams::greedy(),
        stop: Vec::new(),
        stop_token_ids: Vec::new(),
        logprobs: None,
        preset: Preset::None,
        policy: None,
        cache: CacheHints::default(),
        warm: false,
        output: OutputControl { embedding: true, ..OutputControl::default() },
    }
}

/// Waits for the hidden state.
async fn state(mut events: Events) -> Result<Vec<f32>, ApiError> {
    while let Some(event) = events.recv().await {
        match event {
            Event::Embedding(values) => return Ok(values),
            Event::Failed(error) => return Err(from_engine(&error, FIELD)),
            Event::Text { .. } | Event::Finished { .. } => {}
        }
    }
    Err(ApiError::new(ErrorKind::Internal, "the engine dropped the request"))
}
