//! How large a request is for this model: what cannot fit is refused by its length, and what it takes is told before it is taken.

use mach_api::chat::{Message, ResponseFormat, Role, WarmInput, WarmRequest};
use mach_api::memory::{self, Weight, said};
use mach_api::output::grammar::LONGEST_GRAMMAR;
use mach_api::turn::{Input, Turn};
use mach_api::{ApiError, ErrorKind};
use mach_engine::grammar::GrammarCompiler;
use serde_json::Value;

use crate::ChatModel;
use crate::job::Job;

/// Bytes that a token takes in what the engine is asked, and in the sequence that it makes of it.
const OF_TOKEN: usize = 12;
/// Bytes of a list of tokens for each, as a number in JSON that grows; a byte of text is a token at most.
const OF_LISTED: usize = 24;
/// The same with the token's text, in a list and in JSON.
const OF_LISTED_TEXT: usize = 128;
/// Characters of a grammar for each value of a schema, beside the texts in it.
const OF_SCHEMA_VALUE: usize = 24;

/// What asks for the texts of tokens.
const STRINGS: &[u8] = b"return_token_strs";

impl ChatModel {
    /// Refuses a text that no context of this size can hold before it is tokenized, which takes time and many times its memory.
    pub(crate) fn check_length(&self, bytes: usize, field: &str) -> Result<(), ApiError> {
        let context = self.engine.facts().context;
        if bytes <= self.engine.tokenizer().longest_text(context) {
            return Ok(());
        }
        Err(too_long(format!("{bytes} bytes"), context, field))
    }

    /// Refuses more tokens than the context has.
    pub(crate) fn check_tokens(&self, tokens: usize, field: &str) -> Result<(), ApiError> {
        let context = self.engine.facts().context;
        if tokens <= context { Ok(()) } else { Err(too_long(format!("{tokens} tokens"), context, field)) }
    }

    /// Refuses messages whose prompt cannot fit before it is rendered. What the model said before is not counted: templates leave out parts of
    /// it.
    pub(crate) fn check_messages(&self, messages: &[Message]) -> Result<(), ApiError> {
        let others = messages.iter().filter(|message| message.role != Role::Assistant);
        self.check_length(others.map(|message| said(&message.content)).sum(), "messages")
    }

    /// Bytes that a turn holds until it is answered.
    pub(crate) fn held_by(&self, turn: &Turn) -> usize {
        let context = self.engine.facts().context;
        let own = match &turn.input {
            Input::Conversation(chat) => {
                let weight = Weight::of_chat(&chat.messages, &chat.tools, &chat.template_kwargs);
                // The messages go when the prompt is there; tools are kept to read calls by.
                weight.memory().max(context.min(weight.bytes).saturating_mul(OF_TOKEN))
            }
            Input::Text(text) => text.len() + context.min(text.len()).saturating_mul(OF_TOKEN),
            Input::Tokens(ids) => ids.len().saturating_mul(OF_TOKEN),
        };
        let stops = turn.settings.stop.iter().map(String::len).sum::<usize>();
        own + stops + 8 * turn.settings.stop_token_ids.len()
    }

    /// The tokens of a text, whatever is charged beside it.
    pub(crate) fn tokens_of(
        &self,
        text: &str,
        special: bool,
        beside: usize,
        job: &mut Job,
    ) -> Result<Vec<u32>, ApiError> {
        let tokenizer = self.engine.tokenizer();
        let all = tokenizer.memory(text.len()).saturating_add(beside);
        job.needs(all)?;
        let mut refused = None;
        let tokens = tokenizer.encode_within(text, special, &mut |more| {
            refused = job.needs(all.saturating_add(more)).err();
            refused.is_none()
        });
        tokens.map_err(|e| refused.unwrap_or_else(|| ApiError::new(ErrorKind::Internal, e.to_string())))
    }

    /// Bytes of the answer that lists the tokens of a text, with their texts or without, and of the text.
    pub(crate) fn memory_of_answer(&self, text: usize, strings: bool) -> usize {
        text.saturating_mul(2 + if strings { OF_LISTED_TEXT } else { OF_LISTED })
    }

    /// Bytes that `/tokenize` takes as far as the body tells, parsing and rendering included. So the work waits for its memory at
    /// the start, instead of being refused in the middle.
    pub(crate) fn memory_of_tokenizing(&self, body: &[u8]) -> usize {
        let (parsing, text) = (memory::of_json(body), body.len());
        if text > self.engine.tokenizer().longest_text(self.engine.facts().context) {
            // What is too long is refused when it is parsed, which is all that it takes.
            return parsing;
        }
        let weight = Weight { bytes: text, values: memory::values(body) };
        let chat = self.templates.as_ref().map_or(0, |templates| templates.default.usual_memory(weight));
        let strings = body.windows(STRINGS.len()).any(|part| part == STRINGS);
        let answer = self.memory_of_answer(text, strings);
        parsing.max(chat).max(self.engine.tokenizer().memory(text).saturating_add(answer))
    }

    /// The same for a prefix to be warmed.
    pub(crate) fn held_by_prefix(&self, request: &WarmRequest) -> usize {
        match &request.input {
            WarmInput::Prompt(text) => text.len(),
            WarmInput::Chat { messages, tools, template_kwargs } => {
                Weight::of_chat(messages, tools, template_kwargs).memory()
            }
        }
    }

    /// Bytes that preparing these turns takes, one after another, as far as it can be told before they are rendered. An error if one cannot
    /// fit.
    pub(crate) fn memory_of(&self, turns: &[Turn]) -> Result<usize, ApiError> {
        for turn in turns {
            match &turn.input {
                Input::Conversation(chat) => self.check_messages(&chat.messages)?,
                Input::Text(text) => self.check_length(text.len(), "prompt")?,
                Input::Tokens(ids) => self.check_tokens(ids.len(), "prompt")?,
            }
        }
        let tokenizer = self.engine.tokenizer();
        let longest = tokenizer.longest_text(self.engine.facts().context);
        let of = |turn: &Turn| match &turn.input {
            Input::Conversation(chat) => {
                let weight = Weight::of_chat(&chat.messages, &chat.tools, &chat.template_kwargs);
                let template = self.template(!chat.tools.is_empty());
                let rendering = template.map_or(0, |template| template.usual_memory(weight));
                // Most prompts are a little longer than what they say.
                let text = (weight.bytes + weight.bytes / 4 + 64 * weight.values).min(longest);
                rendering.max(tokenizer.memory(text).saturating_add(2 * text))
            }
            Input::Text(text) => tokenizer.memory(text.len()),
            Input::Tokens(_) => 0,
        };
        // What may come to a grammar; how large that is shows when it is written.
        let grammar = |turn: &Turn| {
            let tools: &[Value] = match &turn.input {
                Input::Conversation(chat) => &chat.tools,
                _ => &[],
            };
            let written = |weight: Weight| weight.bytes + OF_SCHEMA_VALUE * weight.values;
            let length = match &turn.settings.format {
                Some(ResponseFormat::Json(schema, ..)) => written(Weight::of_json(schema)),
                Some(ResponseFormat::Lark(text) | ResponseFormat::Regex(text)) => text.len(),
                None if tools.is_empty() => return 0,
                None => 0,
            };
            let tools: usize = tools.iter().map(|tool| written(Weight::of_json(tool))).sum();
            // What is longer than this is refused.
            GrammarCompiler::memory((length + tools).min(LONGEST_GRAMMAR))
        };
        Ok(turns.iter().map(|turn| of(turn).max(grammar(turn))).max().unwrap_or(0))
    }
}

fn too_long(size: String, context: usize, field: &str) -> ApiError {
    let message = format!(
        "the prompt has {size}, more than this model's context of {context} tokens can hold, prompt and answer together"
    );
    ApiError { param: Some(field.into()), ..ApiError::new(ErrorKind::ContextLength, message) }
}
