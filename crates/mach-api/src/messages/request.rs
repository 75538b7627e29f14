//! The body of `POST /v1/messages`, parsed into a turn.

use serde_json::{Map, Value};

use super::blocks::{self, conversation};
use crate::chat::request::PromptEnd;
use crate::chat::settings::{parse_cache_salt, parse_max_tokens};
use crate::chat::{Limits, ResponseFormat, SamplingFields, Settings, ToolChoice};
use crate::fields::Fields;
use crate::json::json;
use crate::notes::Notes;
use crate::turn::{Conversation, Input, Turn};
use crate::{ApiError, Message};

/// Fields that cannot change the text of an answer: accepted and ignored.
const HARMLESS: &[&str] = &[
    "betas",
    "cache_control",
    "container",
    "context_management",
    "diagnostics",
    "inference_geo",
    "metadata",
    "priority",
    "service_tier",
    "speed",
    "user_profile_id",
];

/// A valid request for an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct MessagesRequest {
    /// What is asked.
    pub turn: Turn,
    /// Somewhere in the body a prefix is marked for caching: what is computed is told as written to the cache.
    pub marks_cache: bool,
    /// What was let pass.
    pub notes: Notes,
}

impl MessagesRequest {
    /// Parses a request body.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::body(json(body)?, limits.unknown_fields)?;
        let mut marks = blocks::Marks::default();
        marks.field(&mut fields);
        let messages = conversation(&mut fields, limits, &mut marks)?;
        let mut tools = parse_tools(&mut fields, limits, &mut marks)?;
        let (tool_choice, parallel_tool_calls) = parse_tool_choice(&mut fields, &tools)?;
        if tool_choice == ToolChoice::None {
            tools.clear();
        }
        let mut template_kwargs = parse_thinking(&mut fields)?;
        let format = parse_output(&mut fields, limits, &mut template_kwargs)?;
        let max_tokens = parse_max_tokens(&mut fields, "max_tokens", 1)?;
        let settings = Settings {
            model: fields.string("model")?.filter(|name| !name.is_empty()),
            format,
            max_tokens,
            sampling: SamplingFields::parse(&mut fields, limits)?,
            stop: parse_stop(&mut fields, limits)?,
            n: 1,
            stream: fields.bool("stream")?.unwrap_or(false),
            cache_salt: parse_cache_salt(&mut fields)?,
            ..Settings::default()
        };
        if fields.array("mcp_servers")?.is_some_and(|servers| !servers.is_empty()) {
            let reason = "this server calls no tools itself; give them as `tools`";
            return Err(fields.error("mcp_servers", reason));
        }
        let notes = fields.shared_notes();
        fields.end(HARMLESS)?;
        let conversation = Conversation {
            messages,
            tools,
            tool_choice,
            parallel_tool_calls,
            template_kwargs,
            end: PromptEnd::Turn,
            truncate: false,
        };
        let turn = Turn { input: Input::Conversation(conversation), settings };
        Ok(Self { turn: goes_on(turn), marks_cache: marks.any(), notes: notes.take() })
    }
}

/// An assistant's message at the end is gone on with, if it says something.
fn goes_on(mut turn: Turn) -> Turn {
    if let Input::Conversation(conversation) = &mut turn.input
        && conversation.messages.last().is_some_and(Message::can_go_on)
    {
        conversation.end = PromptEnd::Continue;
    }
    turn
}

/// Tools as templates take them. Those that Anthropic would run itself are left out, and noted.
fn parse_tools(
    fields: &mut Fields,
    limits: &Limits,
    marks: &mut blocks::Marks,
) -> Result<Vec<Value>, ApiError> {
    let given = fields.array("tools")?.unwrap_or_default();
    if given.len() > limits.tools {
        return Err(fields.error("tools", format!("must hold at most {} tools", limits.tools)));
    }
    let mut tools = Vec::with_capacity(given.len());
    for (i, tool) in given.into_iter().enumerate() {
        let path = format!("tools[{i}]");
        let mut tool = fields.nested(path.as_str(), tool)?;
        marks.field(&mut tool);
        let kind = tool.string("type")?;
        if let Some(kind) = kind.filter(|kind| kind != "custom") {
            let kind: String = kind.chars().take(40).collect();
            fields.ignore(&format!("tools[{i}]({kind})"));
            continue;
        }
        let name = tool.required_string("name")?;
        if name.is_empty() {
            return Err(tool.error("name", "must not be empty"));
        }
        let mut function = Map::new();
        function.insert("name".into(), name.into());
        if let Some(description) = tool.string("description")? {
            function.insert("description".into(), description.into());
        }
        let schema = tool.object("input_schema")?.unwrap_or_default();
        let schema = Value::from(schema);
        crate::chat::check_schema(&tool.path("input_schema"), &schema, limits)?;
        function.insert("parameters".into(), schema);
        tool.bool("strict")?;
        tool.end(&["allowed_callers", "defer_loading", "eager_input_streaming", "input_examples"])?;
        tools.push(serde_json::json!({"type": "function", "function": function}));
    }
    Ok(tools)
}

/// Takes `tool_choice`: whether tools are called, and whether more than one.
fn parse_tool_choice(fields: &mut Fields, tools: &[Value]) -> Result<(ToolChoice, bool), ApiError> {
    let Some(value) = fields.take("tool_choice") else { return Ok((ToolChoice::Auto, true)) };
    let mut choice = fields.nested("tool_choice", value)?;
    let parallel = !choice.bool("disable_parallel_tool_use")?.unwrap_or(false);
    let wanted = match choice.required_string("type")?.as_str() {
        "auto" => ToolChoice::Auto,
        "any" => ToolChoice::Required,
        "none" => ToolChoice::None,
        "tool" => ToolChoice::Function(choice.required_string("name")?),
        _ => return Err(choice.error("type", "must be `auto`, `any`, `tool` or `none`")),
    };
    choice.end(&["name"])?;
    Ok((wanted.check(fields, "tool_choice", tools)?, parallel))
}

/// The switch of templates for `thinking`; off where it is absent, as Anthropic has it.
fn parse_thinking(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let on = match fields.take("thinking") {
        None => false,
        Some(value) => {
            let mut thinking = fields.nested("thinking", value)?;
            let on = match thinking.required_string("type")?.as_str() {
                // Budgets are a bound that nothing here enforces; some clients send -1.
                "enabled" | "adaptive" => true,
                "disabled" => false,
                _ => return Err(thinking.error("type", "must be `enabled`, `adaptive` or `disabled`")),
            };
            thinking.end(&["budget_tokens", "display"])?;
            on
        }
    };
    let mut kwargs = fields.object("chat_template_kwargs")?.unwrap_or_default();
    kwargs.entry("enable_thinking").or_insert(on.into());
    Ok(kwargs)
}

/// Takes `output_config` (and `output_format`, its older half): the effort goes to the template, the format to the grammar.
fn parse_output(
    fields: &mut Fields,
    limits: &Limits,
    kwargs: &mut Map<String, Value>,
) -> Result<Option<ResponseFormat>, ApiError> {
    let older = fields.take("output_format");
    let mut format = None;
    if let Some(value) = fields.take("output_config") {
        let mut config = fields.nested("output_config", value)?;
        if let Some(effort) = config.string("effort")? {
            kwargs.entry("reasoning_effort").or_insert(effort.into());
        }
        format = config.take("format");
        config.end(&["task_budget"])?;
    }
    let (value, path) = match (format, older) {
        (Some(value), _) => (value, "output_config.format"),
        (None, Some(value)) => (value, "output_format"),
        (None, None) => return Ok(None),
    };
    let mut format = fields.nested(path, value)?;
    if format.required_string("type")? != "json_schema" {
        return Err(format.error("type", "must be `json_schema`"));
    }
    let schema = format.take("schema").ok_or_else(|| format.error("schema", "is required"))?;
    crate::chat::check_schema(&format.path("schema"), &schema, limits)?;
    format.end(&["name", "strict", "description"])?;
    Ok(Some(ResponseFormat::Json(schema, path, true)))
}

fn parse_stop(fields: &mut Fields, limits: &Limits) -> Result<Vec<String>, ApiError> {
    let list = fields.array("stop_sequences")?.unwrap_or_default();
    if list.len() > limits.stops {
        return Err(fields.error("stop_sequences", format!("must hold at most {} strings", limits.stops)));
    }
    let one = |(i, value): (usize, Value)| {
        let path = format!("stop_sequences[{i}]");
        match value {
            Value::String(text) if text.is_empty() => Err(fields.error(&path, "must not be empty")),
            Value::String(text) if text.len() > limits.stop_bytes => {
                Err(fields.error(&path, format!("must be at most {} bytes long", limits.stop_bytes)))
            }
            Value::String(text) => Ok(text),
            _ => Err(fields.error(&path, "must be a string")),
        }
    };
    list.into_iter().enumerate().map(one).collect()
}
