//! The body of `POST /v1/chat/completions`, parsed into a value that is valid by construction.

use serde_json::{Map, Value};

use super::known::end_body;
use super::sampling::parse_logprobs;
use super::settings::{Settings, parse_max_tokens};
use super::tools::Functions;
use super::{Limits, Message, ToolChoice};
use crate::ApiError;
use crate::fields::Fields;
use crate::json::json;
use crate::notes::Notes;
use crate::turn::{Conversation, Input, Turn};

/// Where the prompt of a conversation ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PromptEnd {
    /// Where the assistant is to speak.
    #[default]
    Turn,
    /// Behind the last message.
    Message,
    /// Inside the last message, which the assistant goes on with.
    Continue,
}

/// A valid chat request.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// What is said so far; tools are left out when `tool_choice` is `none`.
    pub conversation: Conversation,
    /// Its tools came as `functions`, OpenAI's older way: a call goes back as `function_call`.
    pub legacy_functions: bool,
    /// How the answer is generated.
    pub settings: Settings,
    /// What was let pass.
    pub notes: Notes,
}

impl ChatRequest {
    /// Parses a request body.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::body(json(body)?, limits.unknown_fields)?;
        let messages = parse_messages(&mut fields, limits)?;
        let Functions { mut tools, choice: tool_choice, legacy } = Functions::parse(&mut fields, limits)?;
        if tool_choice == ToolChoice::None {
            tools.clear();
        }
        let settings = Settings::parse(&mut fields, limits)?;
        let old_limit = parse_max_tokens(&mut fields, "max_tokens", 1)?;
        let new_limit = parse_max_tokens(&mut fields, "max_completion_tokens", 1)?;
        let settings = Settings {
            max_tokens: new_limit.or(old_limit),
            logprobs: parse_logprobs(&mut fields)?,
            n: fields.integer("n", 1..=i64::from(limits.choices))?.unwrap_or(1) as u32,
            ..settings
        };
        let end = PromptEnd::parse(&mut fields, &messages)?;
        let template_kwargs = parse_template_kwargs(&mut fields)?;
        let parallel_tool_calls = fields.bool("parallel_tool_calls")?.unwrap_or(true) && !legacy;
        let notes = fields.shared_notes();
        end_body(fields)?;
        let conversation = Conversation {
            messages,
            tools,
            tool_choice,
            parallel_tool_calls,
            template_kwargs,
            end,
            truncate: false,
        };
        Ok(Self { conversation, legacy_functions: legacy, settings, notes: notes.take() })
    }

    /// The same as a turn, whatever API it came by.
    pub fn into_turn(self) -> Turn {
        Turn { input: Input::Conversation(self.conversation), settings: self.settings }
    }
}

impl PromptEnd {
    fn parse(fields: &mut Fields, messages: &[Message]) -> Result<Self, ApiError> {
        let turn = fields.bool("add_generation_prompt")?;
        if fields.bool("continue_final_message")? != Some(true) {
            return Ok(if turn == Some(false) { Self::Message } else { Self::Turn });
        }
        if turn == Some(true) {
            let reason = "cannot be combined with `add_generation_prompt`";
            return Err(fields.error("continue_final_message", reason));
        }
        if messages.last().is_some_and(Message::can_go_on) {
            return Ok(Self::Continue);
        }
        let reason = "needs an assistant message with content at the end of `messages`";
        Err(fields.error("continue_final_message", reason))
    }
}

/// Variables for the template, those that have a field of their own included.
pub(crate) fn parse_template_kwargs(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let mut kwargs = fields.object("chat_template_kwargs")?.unwrap_or_default();
    for name in ["messages", "tools", "add_generation_prompt", "documents"] {
        if kwargs.contains_key(name) {
            return Err(fields.error(&format!("chat_template_kwargs.{name}"), "is set by the request itself"));
        }
    }
    for name in ["reasoning_effort", "verbosity"] {
        if let Some(level) = fields.string(name)? {
            kwargs.entry(name).or_insert(level.into());
        }
    }
    Ok(kwargs)
}

pub(crate) fn parse_messages(fields: &mut Fields, limits: &Limits) -> Result<Vec<Message>, ApiError> {
    let list = fields.array("messages")?.ok_or_else(|| fields.error("messages", "is required"))?;
    if list.is_empty() {
        return Err(fields.error("messages", "must hold at least one message"));
    }
    if list.len() > limits.messages {
        return Err(fields.error("messages", format!("must hold at most {} messages", limits.messages)));
    }
    list.into_iter().enumerate().map(|(i, m)| Message::parse(fields, &format!("messages[{i}]"), m)).collect()
}
