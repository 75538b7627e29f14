//! The body of `POST /v1/responses`, parsed into a turn.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::items::{self, Messages};
use super::output::Thoughts;
use super::past::{self, Backing};
use super::tools::{Names, Tools};
use crate::chat::request::PromptEnd;
use crate::chat::sampling::parse_stop;
use crate::chat::settings::{parse_cache_salt, parse_max_tokens};
use crate::chat::{Limits, Message, Role, SamplingFields, Settings, ToolChoice};
use crate::fields::{Fields, kind};
use crate::json::json as read_json;
use crate::notes::Notes;
use crate::turn::{Conversation, Input, Turn};
use crate::{ApiError, Keep};

/// Fields that cannot change the text of an answer: accepted and ignored.
const HARMLESS: &[&str] = &[
    "client_metadata",
    "context_management",
    "moderation",
    "prompt_cache_options",
    "prompt_cache_retention",
    "stream_options",
];

/// Fields that would mean something else if they were ignored.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("background", "answers are given while the client waits; `true` is not supported"),
    ("conversation", "is not supported; send the items, or `previous_response_id`"),
    ("prompt", "prompts kept by OpenAI are not here; send `instructions` and `input`"),
];

/// Fields that the response repeats as they were given, and what it says where they were not.
fn repeated() -> [(&'static str, Value); 17] {
    [
        ("instructions", Value::Null),
        ("max_output_tokens", Value::Null),
        ("max_tool_calls", Value::Null),
        ("metadata", json!({})),
        ("parallel_tool_calls", true.into()),
        ("previous_response_id", Value::Null),
        ("prompt_cache_key", Value::Null),
        ("reasoning", json!({"effort": null, "summary": null})),
        ("safety_identifier", Value::Null),
        ("service_tier", "default".into()),
        ("temperature", Value::Null),
        ("text", json!({"format": {"type": "text"}})),
        ("tool_choice", "auto".into()),
        ("tools", json!([])),
        ("top_p", Value::Null),
        ("truncation", "disabled".into()),
        ("user", Value::Null),
    ]
}

/// What of a request its answer needs.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Fields that the response repeats.
    pub(super) repeated: Map<String, Value>,
    pub(super) thoughts: Thoughts,
    pub(super) logprobs: bool,
    pub(super) names: Names,
    /// The response that it goes on from.
    pub(super) previous: Option<String>,
    /// What is new in the request, as items with ids, if the response is kept.
    pub(super) input: Vec<Value>,
    /// Who keeps the response.
    pub(super) keep: Option<Arc<dyn Keep>>,
}

/// A valid request for a response.
#[derive(Debug, Clone)]
pub struct ResponsesRequest {
    /// What is asked.
    pub turn: Turn,
    /// What its answer needs.
    pub asked: Asked,
    /// What was let pass.
    pub notes: Notes,
}

impl ResponsesRequest {
    /// Parses a request body.
    pub fn parse(body: &[u8], limits: &Limits, backing: &Backing<'_>) -> Result<Self, ApiError> {
        let mut fields = Fields::body(read_json(body)?, limits.unknown_fields)?;
        refuse(&mut fields)?;
        let mut asked = Asked { repeated: repeat(&fields), ..Asked::default() };
        let given = fields.array("tools")?.unwrap_or_default();
        let tools = Tools::parse(&fields, given, limits)?;
        let tool_choice = tools.choice(&mut fields)?;
        let messages = conversation(&mut fields, limits, (backing, &tools.names), &mut asked)?;
        let mut template_kwargs = fields.object("chat_template_kwargs")?.unwrap_or_default();
        asked.thoughts = reasoning(&mut fields, &mut template_kwargs)?;
        let format = super::format::parse(&mut fields, limits, &mut template_kwargs)?;
        include(&mut fields, &mut asked)?;
        let top_logprobs = fields.integer("top_logprobs", 0..=20)?;
        asked.logprobs |= top_logprobs.is_some_and(|top| top > 0);
        let truncate = truncation(&mut fields)?;
        let parallel_tool_calls = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        let settings = Settings {
            model: fields.string("model")?.filter(|name| !name.is_empty()),
            format,
            max_tokens: parse_max_tokens(&mut fields, "max_output_tokens", 1)?,
            sampling: SamplingFields::parse(&mut fields, limits)?,
            stop: parse_stop(&mut fields, limits)?,
            logprobs: asked.logprobs.then(|| top_logprobs.unwrap_or(0) as usize),
            n: 1,
            stream: fields.bool("stream")?.unwrap_or(false),
            cache_salt: parse_cache_salt(&mut fields)?,
            ..Settings::default()
        };
        checked(&mut fields)?;
        keeping(&mut fields, backing, &mut asked)?;
        let notes = fields.shared_notes();
        fields.end(HARMLESS)?;
        let Tools { functions, names } = tools;
        asked.names = names;
        let conversation = Conversation {
            messages,
            tools: if tool_choice == ToolChoice::None { Vec::new() } else { functions },
            tool_choice,
            parallel_tool_calls,
            template_kwargs,
            end: PromptEnd::Turn,
            truncate,
        };
        let turn = Turn { input: Input::Conversation(conversation), settings };
        Ok(Self { turn, asked, notes: notes.take() })
    }
}

fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    for (name, reason) in UNSUPPORTED {
        if fields.take(name).is_some_and(|value| value != false) {
            return Err(fields.error(name, reason));
        }
    }
    Ok(())
}

fn repeat(fields: &Fields) -> Map<String, Value> {
    let given = |(name, absent): (&str, Value)| {
        let value = fields.peek(name).filter(|value| !value.is_null()).cloned().unwrap_or(absent);
        (name.to_owned(), value)
    };
    repeated().into_iter().map(given).collect()
}

/// What was said so far: the instructions, which hold for this turn alone, then what the request goes on from, then what is new.
fn conversation(
    fields: &mut Fields,
    limits: &Limits,
    (backing, names): (&Backing<'_>, &Names),
    asked: &mut Asked,
) -> Result<Vec<Message>, ApiError> {
    let instructions = fields.take("instructions");
    asked.previous = fields.string("previous_response_id")?;
    let earlier = match &asked.previous {
        Some(id) => past::chain(backing.past, id)?,
        None => Vec::new(),
    };
    let input = match fields.take("input") {
        None => return Err(fields.error("input", "is required")),
        Some(Value::String(text)) => vec![json!({"type": "message", "role": "user", "content": text})],
        Some(Value::Array(list)) => list,
        Some(other) => {
            let reason = format!("must be a string or an array of items, not {}", kind(&other));
            return Err(fields.error("input", reason));
        }
    };
    asked.input = input;
    let mut messages = Messages::new(fields, limits, names, backing);
    match instructions {
        None => {}
        Some(Value::String(text)) if text.is_empty() => {}
        Some(Value::String(text)) => messages.push(Message::text(Role::System, text)),
        Some(Value::Array(list)) => {
            for (i, item) in list.into_iter().enumerate() {
                messages.item(&format!("instructions[{i}]"), item)?;
            }
        }
        Some(other) => {
            let reason = format!("must be a string or an array of items, not {}", kind(&other));
            return Err(fields.error("instructions", reason));
        }
    }
    for item in earlier {
        messages.item("previous_response_id", item)?;
    }
    for (i, item) in asked.input.iter().enumerate() {
        messages.item(&format!("input[{i}]"), item.clone())?;
    }
    let messages = messages.finish();
    if messages.is_empty() {
        return Err(fields.error("input", "must hold at least one message"));
    }
    Ok(messages)
}

/// Takes `reasoning`: the effort goes to the template, and a summary is given where one is asked for.
fn reasoning(fields: &mut Fields, kwargs: &mut Map<String, Value>) -> Result<Thoughts, ApiError> {
    let mut thoughts = Thoughts::default();
    let Some(value) = fields.take("reasoning") else { return Ok(thoughts) };
    let mut reasoning = fields.nested("reasoning", value)?;
    if let Some(effort) = reasoning.string("effort")? {
        if effort == "none" {
            kwargs.entry("enable_thinking").or_insert(false.into());
        }
        kwargs.entry("reasoning_effort").or_insert(effort.into());
    }
    for name in ["summary", "generate_summary"] {
        match reasoning.string(name)?.as_deref() {
            None | Some("none") => {}
            Some("auto" | "concise" | "detailed") => thoughts.summary = true,
            Some(_) => return Err(reasoning.error(name, "must be `auto`, `concise` or `detailed`")),
        }
    }
    reasoning.end(&["context", "mode"])?;
    Ok(thoughts)
}

fn include(fields: &mut Fields, asked: &mut Asked) -> Result<(), ApiError> {
    for (i, value) in fields.array("include")?.unwrap_or_default().into_iter().enumerate() {
        match value.as_str() {
            Some("reasoning.encrypted_content") => asked.thoughts.sealed = true,
            Some("message.output_text.logprobs") => asked.logprobs = true,
            // Parts of tools that are not called here.
            Some(_) => {}
            None => return Err(fields.error(&format!("include[{i}]"), "must be a string")),
        }
    }
    Ok(())
}

fn truncation(fields: &mut Fields) -> Result<bool, ApiError> {
    match fields.string("truncation")?.as_deref() {
        None | Some("disabled") => Ok(false),
        Some("auto") => Ok(true),
        Some(_) => Err(fields.error("truncation", "must be `auto` or `disabled`")),
    }
}

/// Fields that the response repeats and nothing else reads: they are what they should be.
fn checked(fields: &mut Fields) -> Result<(), ApiError> {
    fields.object("metadata")?;
    fields.integer("max_tool_calls", 1..=i64::MAX)?;
    for name in ["prompt_cache_key", "safety_identifier", "service_tier", "user"] {
        fields.string(name)?;
    }
    Ok(())
}

/// Takes `store`. A response is kept unless the request or the operator says otherwise.
fn keeping(fields: &mut Fields, backing: &Backing<'_>, asked: &mut Asked) -> Result<(), ApiError> {
    let store = fields.bool("store")?;
    if store == Some(true) && backing.keep.is_none() {
        fields.ignore("store");
    }
    asked.keep = backing.keep.clone().filter(|_| store != Some(false));
    asked.repeated.insert("store".into(), asked.keep.is_some().into());
    asked.input = if asked.keep.is_some() { items::with_ids(&asked.input) } else { Vec::new() };
    Ok(())
}
