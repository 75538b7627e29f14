//! `POST /tokenize` and `POST /detokenize`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use mach_api::tokens::{DetokenizeRequest, Detokenized, TokenizeInput, TokenizeRequest, Tokenized};
use mach_api::{ApiError, ErrorKind};

use super::body::{off_the_sockets, read_json};
use crate::failure::Failure;
use crate::notes::noted;
use crate::server::Shared;
use crate::{ChatModel, auth};

pub(crate) async fn tokenize(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    let model = Arc::clone(shared.model()?);
    let body = read_json(&headers, body, shared.config.max_body).await?;
    let limits = shared.config.limits.clone();
    let work = move || {
        let request = TokenizeRequest::parse(&body, &limits)?;
        Ok((tokens_of(&model, &request)?, request.notes))
    };
    let (tokens, notes) = off_the_sockets(work).await?;
    Ok(noted(&shared, &notes).tell(Json(tokens).into_response()))
}

pub(crate) async fn detokenize(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    let model = Arc::clone(shared.model()?);
    let body = read_json(&headers, body, shared.config.max_body).await?;
    let limits = shared.config.limits.clone();
    let work = move || {
        let request = DetokenizeRequest::parse(&body, &limits)?;
        Ok((text_of(&model, &request)?, request.notes))
    };
    let (text, notes) = off_the_sockets(work).await?;
    Ok(noted(&shared, &notes).tell(Json(text).into_response()))
}

fn tokens_of(model: &ChatModel, request: &TokenizeRequest) -> Result<Tokenized, ApiError> {
    model.check_name(request.model.as_deref())?;
    let tokenizer = model.engine.tokenizer();
    let rendered;
    let text = match &request.input {
        TokenizeInput::Prompt(text) => text,
        TokenizeInput::Chat { messages, tools, template_kwargs, add_generation_prompt } => {
            rendered = model
                .template(!tools.is_empty())?
                .render_as(messages, tools, template_kwargs, *add_generation_prompt)
                .map_err(|e| ApiError::field("messages", e.to_string()))?;
            &rendered
        }
    };
    let tokens = tokenizer
        .encode(text, request.add_special_tokens)
        .map_err(|e| ApiError::new(ErrorKind::Internal, e.to_string()))?;
    let text = |&id: &u32| String::from_utf8_lossy(tokenizer.bytes(id)).into_owned();
    Ok(Tokenized {
        count: tokens.len(),
        max_model_len: model.engine.facts().context,
        token_strs: request.return_token_strs.then(|| tokens.iter().map(text).collect()),
        tokens,
    })
}

fn text_of(model: &ChatModel, request: &DetokenizeRequest) -> Result<Detokenized, ApiError> {
    model.check_name(request.model.as_deref())?;
    let vocab = model.engine.facts().vocab;
    if let Some(i) = request.tokens.iter().position(|&id| id as usize >= vocab) {
        let reason = format!("is outside the vocabulary of {vocab} tokens");
        return Err(ApiError::field(format!("tokens[{i}]"), reason));
    }
    Ok(Detokenized { prompt: model.text_of(&request.tokens) })
}
