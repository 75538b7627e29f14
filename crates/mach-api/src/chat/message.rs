//! Messages of a conversation.

use serde_json::{Map, Value, json};

use super::arguments::Arguments;
use super::content;
use crate::ApiError;
use crate::fields::Fields;

/// Fields that clients echo from earlier responses or add as hints to other servers; they say nothing to the model.
pub(super) const HARMLESS: &[&str] = &[
    "annotations",
    "audio",
    "cache_control",
    "id",
    "index",
    "parsed",
    "parsed_arguments",
    "provider_specific_fields",
    "reasoning_details",
    "refusal",
    "thinking_blocks",
];

/// Names under which clients send an assistant's reasoning back, in order; two of them say the same.
const REASONING: &[&str] = &["reasoning_content", "reasoning", "thinking"];

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions of the application.
    System,
    /// Instructions, OpenAI's newer name.
    Developer,
    /// The person.
    User,
    /// The model, in an earlier turn.
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

    /// Whether it is an assistant's and says something that an answer can go on with.
    pub(crate) fn can_go_on(&self) -> bool {
        let said = match &self.content {
            Content::None => false,
            Content::Text(text) => !text.trim().is_empty(),
            Content::Parts(parts) => parts.last().is_some_and(|text| !text.trim().is_empty()),
        };
        self.role == Role::Assistant && self.tool_calls.is_empty() && said
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
        let (content, thoughts) = match fields.take("content") {
            None => (Content::None, None),
            Some(value) => content::parse(&fields, role, value)?,
        };
        let name = fields.string("name")?;
        let mut reasoning_content = None;
        for field in REASONING {
            match fields.take(field) {
                Some(Value::String(text)) if !text.is_empty() => _ = reasoning_content.get_or_insert(text),
                // Some clients send what belongs to the request, or blocks that repeat the text.
                _ => {}
            }
        }
        let reasoning_content = reasoning_content.or(thoughts);
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
        if content == Content::None && !matches!(role, Role::Assistant | Role::Tool) {
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
        let Arguments { object: arguments, text, broken } = Arguments::read(fields.take("arguments"));
        if broken {
            let path = fields.path("arguments");
            fields.warn(format!("{path} is no JSON object; it is passed on as the chat template takes it"));
        }
        fields.end(HARMLESS)?;
        Ok(Self { id, name, arguments, text, broken })
    }
}

/// Checks `"type": "function"`; absent counts as given.
pub(super) fn function_type(fields: &mut Fields) -> Result<(), ApiError> {
    match fields.string("type")?.as_deref() {
        None | Some("function") => Ok(()),
        Some(_) => Err(fields.error("type", "only `function` is supported")),
    }
}
