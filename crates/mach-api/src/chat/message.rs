//! Messages of a conversation.

use serde_json::{Map, Value, json};

use crate::ApiError;
use crate::fields::{Fields, kind};

/// Fields that clients echo from earlier responses or add as hints to other servers; they say nothing to the model.
const HARMLESS: &[&str] = &["annotations", "refusal", "cache_control", "reasoning_details"];

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions.
    System,
    /// Instructions, OpenAI's newer name.
    Developer,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// Name on the wire and in templates.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing (an assistant message that only calls tools).
    None,
    /// A string.
    Text(String),
    /// Text parts, in order.
    Parts(Vec<String>),
}

/// A tool call made by the assistant.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// Id that the tool's answer refers to.
    pub id: Option<String>,
    /// Function name.
    pub name: String,
    /// Arguments, parsed from the JSON string on the wire; key order kept.
    pub arguments: Map<String, Value>,
    /// The arguments as they were written, if they came as text.
    pub text: Option<String>,
    /// They are no JSON object; `arguments` holds what could be made out.
    pub broken: bool,
}

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: Content,
    /// Name of the participant.
    pub name: Option<String>,
    /// Reasoning of an earlier assistant turn.
    pub reasoning_content: Option<String>,
    /// Calls made by the assistant.
    pub tool_calls: Vec<ToolCall>,
    /// Which call a tool message answers.
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A plain message.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            content: Content::Text(text.into()),
            name: None,
            reasoning_content: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
        }
    }

    /// Parses the message found at `path` of a body.
    pub(crate) fn parse(body: &Fields, path: &str, value: Value) -> Result<Self, ApiError> {
        let mut fields = body.nested(path, value)?;
        let role = match fields.required_string("role")?.as_str() {
            "system" => Role::System,
            "developer" => Role::Developer,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            // `function` is OpenAI's older word.
            "tool" | "function" => Role::Tool,
            other => {
                return Err(fields.error(
                    "role",
                    format!(
                        "`{}` is not one of system, developer, user, assistant, tool",
                        other.chars().take(40).collect::<String>()
                    ),
                ));
            }
        };
        let content = match fields.take("content") {
            None => Content::None,
            Some(value) => parse_content(&fields, value)?,
        };
        let name = fields.string("name")?;
        let reasoning_content = match fields.string("reasoning_content")? {
            Some(text) => Some(text),
            None => fields.string("reasoning")?,
        };
        let mut tool_calls = match fields.array("tool_calls")? {
            None => Vec::new(),
            Some(calls) if role != Role::Assistant && !calls.is_empty() => {
                return Err(fields.error("tool_calls", "only assistant messages call tools"));
            }
            Some(calls) => calls
                .into_iter()
                .enumerate()
                .map(|(i, call)| ToolCall::parse(&fields, &format!("{path}.tool_calls[{i}]"), call))
                .collect::<Result<_, _>>()?,
        };
        if let Some(call) = fields.take("function_call") {
            if role != Role::Assistant {
                return Err(fields.error("function_call", "only assistant messages call functions"));
            }
            let call = json!({"function": call});
            tool_calls.push(ToolCall::parse(&fields, &fields.path("function_call"), call)?);
        }
        let tool_call_id = fields.string("tool_call_id")?;
        if tool_call_id.is_some() && role != Role::Tool {
            return Err(fields.error("tool_call_id", "only tool messages answer a call"));
        }
        if content == Content::None && tool_calls.is_empty() {
            return Err(fields.error("content", "is required"));
        }
        fields.end(HARMLESS)?;
        Ok(Self { role, content, name, reasoning_content, tool_calls, tool_call_id })
    }
}

impl ToolCall {
    fn parse(message: &Fields, path: &str, value: Value) -> Result<Self, ApiError> {
        let mut fields = message.nested(path, value)?;
        let id = fields.string("id")?;
        function_type(&mut fields)?;
        fields.take("index");
        let function = fields.take("function").ok_or_else(|| fields.error("function", "is required"))?;
        let function = fields.nested(format!("{path}.function"), function)?;
        fields.end(HARMLESS)?;
        let mut fields = function;
        let name = fields.required_string("name")?;
        let mut text = None;
        let arguments = match fields.take("arguments") {
            None => Map::new(),
            Some(Value::Object(map)) => map,
            Some(Value::String(text)) if text.trim().is_empty() => Map::new(),
            Some(Value::String(written)) => match serde_json::from_str(&written) {
                Ok(Value::Object(map)) => {
                    text = Some(written);
                    map
                }
                Ok(other) => {
                    return Err(
                        fields.error("arguments", format!("must hold a JSON object, not {}", kind(&other)))
                    );
                }
                Err(e) => return Err(fields.error("arguments", format!("not valid JSON: {e}"))),
            },
            Some(other) => {
                return Err(fields.error("arguments", format!("must be a string, not {}", kind(&other))));
            }
        };
        fields.end(HARMLESS)?;
        Ok(Self { id, name, arguments, text, broken: false })
    }
}

/// Checks `"type": "function"`; absent counts as given.
pub(super) fn function_type(fields: &mut Fields) -> Result<(), ApiError> {
    match fields.string("type")?.as_deref() {
        None | Some("function") => Ok(()),
        Some(_) => Err(fields.error("type", "only `function` is supported")),
    }
}

fn parse_content(message: &Fields, value: Value) -> Result<Content, ApiError> {
    let path = message.path("content");
    match value {
        Value::String(text) => Ok(Content::Text(text)),
        Value::Array(parts) => {
            let texts = parts.into_iter().enumerate().map(|(i, part)| {
                let mut fields = message.nested(format!("{path}[{i}]"), part)?;
                match fields.required_string("type")?.as_str() {
                    "text" => {}
                    other => {
                        let other: String = other.chars().take(40).collect();
                        return Err(
                            fields.error("type", format!("`{other}` parts are not supported, only `text`"))
                        );
                    }
                }
                let text = fields.required_string("text")?;
                fields.end(HARMLESS)?;
                Ok(text)
            });
            texts.collect::<Result<_, _>>().map(Content::Parts)
        }
        other => Err(ApiError::field(path, format!("must be a string or an array, not {}", kind(&other)))),
    }
}
