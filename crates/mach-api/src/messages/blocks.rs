//! Messages made of blocks, as messages of a conversation.

use serde_json::{Map, Value};

use crate::chat::{Content, Limits, Message, Role, ToolCall};
use crate::fields::{Fields, kind};
use crate::{ApiError, chat::tool_call_id};

/// How the line begins with which a client names itself; it may be another with every request.
const CLIENT_HEADER: &str = "x-anthropic-billing-header:";

/// The blocks that messages may have: the user's, the assistant's, and those of a tool's result.
const OF_USER: &str = "text, tool_result, search_result, and document where its source is text or content";
const OF_ASSISTANT: &str = "text, thinking, redacted_thinking and tool_use";
const OF_RESULT: &str =
    "text, search_result, tool_reference, and document where its source is text or content";

/// Whether something was marked for caching.
#[derive(Debug, Default)]
pub(super) struct Marks(bool);

impl Marks {
    /// Takes the mark of an object. It says nothing to the model.
    pub(super) fn field(&mut self, fields: &mut Fields) {
        self.0 |= fields.take("cache_control").is_some();
    }

    /// Whether there was one.
    pub(super) fn any(&self) -> bool {
        self.0
    }
}

/// Takes `system` and `messages`.
pub(super) fn conversation(
    fields: &mut Fields,
    limits: &Limits,
    marks: &mut Marks,
) -> Result<Vec<Message>, ApiError> {
    let mut messages = Vec::new();
    if let Some(value) = fields.take("system") {
        let texts = texts(fields, "system", value, marks)?;
        let told = |text: &String| limits.keep_client_headers || !text.starts_with(CLIENT_HEADER);
        let texts: Vec<String> = texts.into_iter().filter(told).filter(|text| !text.is_empty()).collect();
        if !texts.is_empty() {
            messages.push(Message::text(Role::System, texts.join("\n\n")));
        }
    }
    let list = fields.array("messages")?.ok_or_else(|| fields.error("messages", "is required"))?;
    if list.is_empty() {
        return Err(fields.error("messages", "must hold at least one message"));
    }
    if list.len() > limits.messages {
        return Err(fields.error("messages", format!("must hold at most {} messages", limits.messages)));
    }
    for (i, value) in list.into_iter().enumerate() {
        let path = format!("messages[{i}]");
        let mut message = fields.nested(path.as_str(), value)?;
        let role = message.required_string("role")?;
        let content = message.take("content").ok_or_else(|| message.error("content", "is required"))?;
        marks.field(&mut message);
        let at = message.path("content");
        match role.as_str() {
            "user" => user(fields, &at, content, marks, &mut messages)?,
            "assistant" => messages.push(assistant(fields, &at, content, marks)?),
            "system" => {
                let texts = texts(fields, &at, content, marks)?;
                messages.push(Message::text(Role::System, texts.join("\n\n")));
            }
            other => {
                let other: String = other.chars().take(40).collect();
                let reason = format!("`{other}` is not one of user, assistant, system");
                return Err(message.error("role", reason));
            }
        }
        message.end(&["id", "type", "model", "stop_reason", "stop_sequence", "usage", "name"])?;
    }
    Ok(messages)
}

/// A string, or text blocks.
fn texts(body: &Fields, path: &str, value: Value, marks: &mut Marks) -> Result<Vec<String>, ApiError> {
    let list = match value {
        Value::String(text) => return Ok(vec![text]),
        Value::Array(list) => list,
        other => return Err(neither(path, &other)),
    };
    let one = |(i, block): (usize, Value)| {
        let mut block = body.nested(format!("{path}[{i}]"), block)?;
        marks.field(&mut block);
        match block.required_string("type")?.as_str() {
            "text" => text(block),
            kind => Err(block.unread(kind, "text")),
        }
    };
    list.into_iter().enumerate().map(one).collect()
}

fn neither(path: &str, value: &Value) -> ApiError {
    ApiError::field(path, format!("must be a string or an array of blocks, not {}", kind(value)))
}

fn text(mut block: Fields) -> Result<String, ApiError> {
    let text = block.required_string("text")?;
    block.end(&["citations"])?;
    Ok(text)
}

/// Results of tools become messages of their own, in front of what is said beside them.
fn user(
    body: &Fields,
    path: &str,
    content: Value,
    marks: &mut Marks,
    messages: &mut Vec<Message>,
) -> Result<(), ApiError> {
    let list = match content {
        Value::String(text) => {
            messages.push(Message::text(Role::User, text));
            return Ok(());
        }
        Value::Array(list) => list,
        other => return Err(neither(path, &other)),
    };
    let (mut said, before) = (Vec::new(), messages.len());
    for (i, block) in list.into_iter().enumerate() {
        let mut block = body.nested(format!("{path}[{i}]"), block)?;
        marks.field(&mut block);
        match block.required_string("type")?.as_str() {
            "text" => said.push(text(block)?),
            "tool_result" => messages.push(tool_result(body, block, marks)?),
            "document" => said.push(document(body, block, marks)?),
            "search_result" => said.push(search_result(body, block, marks)?),
            kind => return Err(block.unread(kind, OF_USER)),
        }
    }
    match said.len() {
        0 if messages.len() > before => {}
        0 => messages.push(Message::text(Role::User, "")),
        1 => messages.push(Message::text(Role::User, said.remove(0))),
        _ => messages.push(Message { content: Content::Parts(said), ..Message::text(Role::User, "") }),
    }
    Ok(())
}

fn tool_result(body: &Fields, mut block: Fields, marks: &mut Marks) -> Result<Message, ApiError> {
    let id = block.required_string("tool_use_id")?;
    let failed = block.bool("is_error")?.unwrap_or(false);
    let path = block.path("content");
    let mut text = match block.take("content") {
        None => String::new(),
        Some(Value::String(text)) => text,
        Some(Value::Array(list)) => {
            let mut texts = Vec::with_capacity(list.len());
            for (i, part) in list.into_iter().enumerate() {
                let mut part = body.nested(format!("{path}[{i}]"), part)?;
                marks.field(&mut part);
                match part.required_string("type")?.as_str() {
                    "text" => texts.push(self::text(part)?),
                    "document" => texts.push(document(body, part, marks)?),
                    "search_result" => texts.push(search_result(body, part, marks)?),
                    "tool_reference" => texts.push(part.required_string("tool_name")?),
                    kind => return Err(part.unread(kind, OF_RESULT)),
                }
            }
            texts.join("\n")
        }
        Some(other) => return Err(neither(&path, &other)),
    };
    // Templates know no failed results.
    if failed && !text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("error")) {
        text = if text.is_empty() { "Error".into() } else { format!("Error: {text}") };
    }
    block.end(&[])?;
    Ok(Message { tool_call_id: Some(id), ..Message::text(Role::Tool, text) })
}

/// A document that is text.
fn document(body: &Fields, mut block: Fields, marks: &mut Marks) -> Result<String, ApiError> {
    let path = block.path("source");
    let source = block.take("source").ok_or_else(|| block.error("source", "is required"))?;
    let mut source = body.nested(path.as_str(), source)?;
    let data = match source.required_string("type")?.as_str() {
        "text" => source.required_string("data")?,
        "content" => {
            let content = source.take("content").ok_or_else(|| source.error("content", "is required"))?;
            texts(body, &source.path("content"), content, marks)?.join("\n")
        }
        kind => return Err(source.unread(kind, "text and content")),
    };
    let title = block.string("title")?;
    block.end(&["citations", "context"])?;
    Ok(match title {
        Some(title) => format!("{title}\n\n{data}"),
        None => data,
    })
}

fn search_result(body: &Fields, mut block: Fields, marks: &mut Marks) -> Result<String, ApiError> {
    let title = block.required_string("title")?;
    let source = block.required_string("source")?;
    let path = block.path("content");
    let content = block.take("content").ok_or_else(|| block.error("content", "is required"))?;
    let text = texts(body, &path, content, marks)?.join("\n");
    block.end(&["citations"])?;
    Ok(format!("{title} ({source})\n{text}"))
}

fn assistant(body: &Fields, path: &str, content: Value, marks: &mut Marks) -> Result<Message, ApiError> {
    let mut message = Message::text(Role::Assistant, "");
    let list = match content {
        Value::String(text) => return Ok(Message { content: Content::Text(text), ..message }),
        Value::Array(list) => list,
        other => return Err(neither(path, &other)),
    };
    let (mut said, mut thoughts) = (Vec::new(), Vec::new());
    for (i, block) in list.into_iter().enumerate() {
        let mut block = body.nested(format!("{path}[{i}]"), block)?;
        marks.field(&mut block);
        match block.required_string("type")?.as_str() {
            "text" => said.push(text(block)?),
            "thinking" => {
                thoughts.push(block.required_string("thinking")?);
                block.end(&["signature"])?;
            }
            // Another server's, which cannot be read here.
            "redacted_thinking" => {}
            "tool_use" => {
                let id = block.string("id")?.unwrap_or_else(tool_call_id);
                let name = block.required_string("name")?;
                let arguments: Map<String, Value> = block.object("input")?.unwrap_or_default();
                block.end(&["caller"])?;
                message.tool_calls.push(ToolCall {
                    id: Some(id),
                    name,
                    arguments,
                    text: None,
                    broken: false,
                });
            }
            kind => return Err(block.unread(kind, OF_ASSISTANT)),
        }
    }
    message.content = match said.len() {
        0 if !message.tool_calls.is_empty() => Content::None,
        0 | 1 => Content::Text(said.pop().unwrap_or_default()),
        _ => Content::Parts(said),
    };
    message.reasoning_content = Some(thoughts.concat()).filter(|text| !text.is_empty());
    Ok(message)
}
