//! `POST /tokenize` and `POST /detokenize`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use mach_api::memory::Weight;
use mach_api::tokens::{DetokenizeRequest, Detokenized, TokenizeInput, TokenizeRequest, Tokenized};
use mach_api::{ApiError, ErrorKind, memory};

use super::body::read_json;
use crate::failure::Failure;
use crate::job::{Job, off_the_sockets};
use crate::notes::noted;
use crate::prompt::rendered;
use crate::server::Shared;
use crate::{ChatModel, auth};

pub(crate) async fn tokenize(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    let model = Arc::clone(shared.model()?);
    let account = Arc::clone(&model.account);
    let (body, mut held) = read_json(&account, &headers, body, shared.config.max_body).await?;
    let (bytes, limits) = (model.memory_of_tokenizing(&body), shared.config.limits.clone());
    let work = move |job: &mut Job| {
        let request = TokenizeRequest::parse(&body, &limits)?;
        drop(body);
        let tokens = tokens_of(&model, &request, job)?;
        // The answer is written here, where its memory is charged.
        Ok((serde_json::to_vec(&tokens).map_err(internal)?, request.notes))
    };
    let (tokens, notes) = off_the_sockets(&account, bytes, work).await?;
    held.set(tokens.len())?;
    Ok(held.until_written(noted(&shared, &notes).tell(json_response(tokens))))
}

pub(crate) async fn detokenize(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    let model = Arc::clone(shared.model()?);
    let account = Arc::clone(&model.account);
    let (body, mut held) = read_json(&account, &headers, body, shared.config.max_body).await?;
    let (bytes, limits) = (memory::of_json(&body), shared.config.limits.clone());
    let work = move |job: &mut Job| {
        let request = DetokenizeRequest::parse(&body, &limits)?;
        drop(body);
        let text = text_of(&model, &request, job)?;
        Ok((serde_json::to_vec(&text).map_err(internal)?, request.notes))
    };
    let (text, notes) = off_the_sockets(&account, bytes, work).await?;
    held.set(text.len())?;
    Ok(held.until_written(noted(&shared, &notes).tell(json_response(text))))
}

fn internal(error: impl ToString) -> ApiError {
    ApiError::new(ErrorKind::Internal, error.to_string())
}

fn json_response(bytes: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], bytes).into_response()
}

fn tokens_of(model: &ChatModel, request: &TokenizeRequest, job: &mut Job) -> Result<Tokenized, ApiError> {
    model.check_name(request.model.as_deref())?;
    let tokenizer = model.engine.tokenizer();
    let text_of_chat;
    let text = match &request.input {
        TokenizeInput::Prompt(text) => text,
        TokenizeInput::Chat { messages, tools, template_kwargs, add_generation_prompt } => {
            let template = model.template(!tools.is_empty())?;
            model.check_messages(messages)?;
            let weight = Weight::of_chat(messages, tools, template_kwargs);
            let render = || template.render_as(messages, tools, template_kwargs, *add_generation_prompt);
            text_of_chat = rendered(template, weight, weight.memory(), job, render)?;
            &text_of_chat
        }
    };
    let field = if matches!(request.input, TokenizeInput::Prompt(_)) { "prompt" } else { "messages" };
    model.check_length(text.len(), field)?;
    let answer = model.memory_of_answer(text.len(), request.return_token_strs);
    let tokens = model.tokens_of(text, request.add_special_tokens, answer, job)?;
    job.goes_on()?;
    let text = |&id: &u32| String::from_utf8_lossy(tokenizer.bytes(id)).into_owned();
    Ok(Tokenized {
        count: tokens.len(),
        max_model_len: model.engine.facts().context,
        token_strs: request.return_token_strs.then(|| tokens.iter().map(text).collect()),
        tokens,
    })
}

fn text_of(model: &ChatModel, request: &DetokenizeRequest, job: &mut Job) -> Result<Detokenized, ApiError> {
    model.check_name(request.model.as_deref())?;
    // As bytes, as text, and as JSON with an escape for each, which grows.
    let text: usize = request.tokens.iter().map(|&id| model.engine.tokenizer().bytes(id).len()).sum();
    job.needs(text.saturating_mul(16).saturating_add(4 * request.tokens.len()))?;
    let vocab = model.engine.facts().vocab;
    if let Some(i) = request.tokens.iter().position(|&id| id as usize >= vocab) {
        let reason = format!("is outside the vocabulary of {vocab} tokens");
        return Err(ApiError::field(format!("tokens[{i}]"), reason));
    }
    Ok(Detokenized { prompt: model.text_of(&request.tokens) })
}
