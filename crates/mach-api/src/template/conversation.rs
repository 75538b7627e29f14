//! Messages as a template sees them. Templates differ in what they take, so a message has several shapes.

use minijinja::Value;
use serde_json::Value as Json;

use super::exact;
use crate::Message;
use crate::chat::{Content, Role, ToolCall};

/// Names under which published templates read an assistant's reasoning.
pub(super) const REASONING: &[&str] = &["reasoning_content", "reasoning", "thinking", "thought"];

/// How arguments of a call are handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arguments {
    /// As a dict.
    Object,
    /// As the JSON text of it.
    Text,
}

/// How a template takes its messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    /// Roles whose content parts it walks over itself. For others parts are joined by line breaks.
    pub(super) walks_parts: Vec<Role>,
    /// It does not know the developer's role.
    pub(super) developer_as_system: bool,
    /// It takes `none` for a content that is absent beside calls, not an empty text.
    pub(super) null_content: bool,
    pub(super) arguments: Arguments,
    /// The same for arguments that are no JSON object.
    pub(super) broken_arguments: Arguments,
    /// Under which names it is given the reasoning.
    pub(super) reasoning: Vec<&'static str>,
    /// Reasoning is left out where a message calls tools and says something too.
    pub(super) one_voice: bool,
    /// Ids of calls are nine letters and digits, whatever the client's are.
    pub(super) short_ids: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            walks_parts: Vec::new(),
            developer_as_system: false,
            null_content: true,
            arguments: Arguments::Object,
            broken_arguments: Arguments::Object,
            reasoning: REASONING.to_vec(),
            one_voice: false,
            short_ids: false,
        }
    }
}

/// Says something more in a message, after an empty line.
fn add(message: &mut Message, more: &Message) {
    let text = |content: &Content| match content {
        Content::None => String::new(),
        Content::Text(text) => text.clone(),
        Content::Parts(parts) => parts.join("\n"),
    };
    let (said, more) = (text(&message.content), text(&more.content));
    let gap = if said.is_empty() || more.is_empty() { "" } else { "\n\n" };
    message.content = Content::Text(format!("{said}{gap}{more}"));
}

impl Shape {
    /// One message.
    pub(super) fn message(&self, message: &Message) -> Value {
        let mut fields: Vec<(&str, Value)> = Vec::new();
        let role = match message.role {
            Role::Developer if self.developer_as_system => Role::System,
            role => role,
        };
        fields.push(("role", role.as_str().into()));
        fields.push(("content", self.content(message)));
        if let Some(name) = &message.name {
            fields.push(("name", name.as_str().into()));
        }
        let says_something = !matches!(&message.content, Content::None)
            && !matches!(&message.content, Content::Text(text) if text.is_empty());
        let hidden = self.one_voice && says_something && !message.tool_calls.is_empty();
        if let Some(reasoning) = message.reasoning_content.as_deref().filter(|_| !hidden) {
            fields.extend(self.reasoning.iter().map(|name| (*name, reasoning.into())));
        }
        if !message.tool_calls.is_empty() {
            fields.push(("tool_calls", message.tool_calls.iter().map(|call| self.call(call)).collect()));
        }
        if let Some(id) = &message.tool_call_id {
            fields.push(("tool_call_id", self.id(id)));
        }
        Value::from_pairs(fields)
    }

    fn content(&self, message: &Message) -> Value {
        match &message.content {
            Content::None if self.null_content && !message.tool_calls.is_empty() => Value::from(()),
            Content::None => Value::from(""),
            Content::Text(text) => text.as_str().into(),
            Content::Parts(parts) if self.walks_parts.contains(&message.role) => parts
                .iter()
                .map(|text| Value::from_pairs([("type", "text"), ("text", text.as_str())]))
                .collect(),
            Content::Parts(parts) => parts.join("\n").into(),
        }
    }

    fn call(&self, call: &ToolCall) -> Value {
        let function = Value::from_pairs([
            ("name", Value::from(call.name.as_str())),
            ("arguments", self.arguments(call)),
        ]);
        let mut fields = Vec::new();
        if let Some(id) = &call.id {
            fields.push(("id", self.id(id)));
        }
        fields.push(("type", "function".into()));
        fields.push(("function", function));
        Value::from_pairs(fields)
    }

    fn id(&self, id: &str) -> Value {
        let is_short = id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric());
        if self.short_ids && !is_short {
            return blake3::hash(id.as_bytes()).to_hex().chars().take(9).collect::<String>().into();
        }
        id.into()
    }

    fn arguments(&self, call: &ToolCall) -> Value {
        let form = if call.broken { self.broken_arguments } else { self.arguments };
        match (form, &call.text) {
            (Arguments::Text, Some(text)) => text.as_str().into(),
            (Arguments::Text, None) => Json::from(call.arguments.clone()).to_string().into(),
            (Arguments::Object, Some(text)) if !call.broken => {
                exact::value(text).unwrap_or_else(|_| exact::object(&call.arguments))
            }
            (Arguments::Object, _) => exact::object(&call.arguments),
        }
    }
}

/// The messages with their instructions where any template takes them: those at the start as one, those in the middle as the
/// user's, who says them with what was said before or after. What stands in front of them is rendered as it was. `None` if
/// they are there already.
pub(super) fn arrange(messages: &[Message]) -> Option<Vec<Message>> {
    let instructs = |m: &Message| matches!(m.role, Role::System | Role::Developer);
    let leading = messages.iter().take_while(|m| instructs(m)).count();
    let join = leading > 1;
    let late = messages.iter().skip(leading).any(instructs);
    if !join && !late {
        return None;
    }
    let mut out: Vec<Message> = Vec::with_capacity(messages.len());
    // Whether the last message of `out` has instructions of the middle in it.
    let mut moved = false;
    for (at, message) in messages.iter().enumerate() {
        let moves = at >= leading && instructs(message);
        let joins = match out.last() {
            Some(last) if moves || moved => last.role == Role::User && (moves || message.role == Role::User),
            Some(_) => at < leading,
            None => false,
        };
        match out.last_mut().filter(|_| joins) {
            Some(last) => add(last, message),
            None if moves => out.push(Message { role: Role::User, ..message.clone() }),
            None => out.push(message.clone()),
        }
        moved = moves;
    }
    Some(out)
}

/// Other shapes to try where a template fails with the one that suits it elsewhere, the least change first.
pub(super) fn other_shapes(shape: &Shape, messages: &[Message]) -> Vec<Shape> {
    let calls = || messages.iter().flat_map(|message| &message.tool_calls);
    let other = |form: Arguments| match form {
        Arguments::Object => Arguments::Text,
        Arguments::Text => Arguments::Object,
    };
    let absent = messages.iter().any(|m| m.content == Content::None && !m.tool_calls.is_empty());
    let no_null = |shape: &Shape| Shape { null_content: false, ..shape.clone() };
    let one_voice = |shape: &Shape| Shape { one_voice: true, ..shape.clone() };
    let mut out = Vec::new();
    if shape.null_content && absent {
        out.push(no_null(shape));
    }
    if calls().any(|call| call.broken) {
        out.push(Shape { broken_arguments: other(shape.broken_arguments), ..shape.clone() });
    }
    if messages.iter().any(|m| m.reasoning_content.is_some() && !m.tool_calls.is_empty()) {
        out.push(one_voice(shape));
    }
    if calls().next().is_some() {
        out.push(Shape { arguments: other(shape.arguments), ..shape.clone() });
    }
    if out.len() > 1 {
        out.push(one_voice(&no_null(shape)));
        out.push(Shape { broken_arguments: other(shape.broken_arguments), ..one_voice(&no_null(shape)) });
    }
    out
}
