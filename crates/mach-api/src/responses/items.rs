//! Items of a conversation as its messages: what an assistant thought, said and called in a row is one message.

use serde_json::{Map, Value, json};

use super::past::Backing;
use super::seal::Kind;
use super::tools::Names;
use crate::ApiError;
use crate::chat::{Arguments, Content, Limits, Message, Role, ToolCall, tool_call_id};
use crate::fields::{Fields, kind};
use crate::notes::UnknownFields;

/// What is refused in its place says this.
const TEXT_ONLY: &str = "this model reads text; supported are input_text and output_text";

/// Fields of items that say nothing to the model.
const HARMLESS: &[&str] = &["id", "status", "phase", "created_by"];

/// What is put before the summary of a conversation that was made shorter.
const SUMMARY: &str = "Summary of the conversation so far:\n\n";

/// Messages, as items are read.
pub(super) struct Messages<'a> {
    body: &'a Fields,
    backing: &'a Backing<'a>,
    limits: &'a Limits,
    names: &'a Names,
    read: Vec<Message>,
    /// The last one is the assistant's, and what it does next belongs to it.
    open: bool,
}

impl<'a> Messages<'a> {
    pub(super) fn new(
        body: &'a Fields,
        limits: &'a Limits,
        names: &'a Names,
        backing: &'a Backing<'a>,
    ) -> Self {
        Self { body, backing, limits, names, read: Vec::new(), open: false }
    }

    /// The messages. One that only thinks says nothing.
    pub(super) fn finish(mut self) -> Vec<Message> {
        for message in &mut self.read {
            if message.content == Content::None && message.tool_calls.is_empty() {
                message.content = Content::Text(String::new());
            }
        }
        self.read
    }

    pub(super) fn push(&mut self, message: Message) {
        self.open = message.role == Role::Assistant;
        self.read.push(message);
    }

    /// Reads an item.
    pub(super) fn item(&mut self, path: &str, value: Value) -> Result<(), ApiError> {
        if self.read.len() > self.limits.messages {
            let reason = format!("must hold at most {} messages", self.limits.messages);
            return Err(self.body.error("input", reason));
        }
        let mut item = self.body.nested(path, value)?;
        let kind = item.string("type")?;
        match kind.as_deref() {
            None if item.has("role") => self.message(item),
            None if item.has("id") => self.reference(item),
            None => Err(item.error("type", "is required")),
            Some("message") => self.message(item),
            Some("reasoning") => self.reasoning(item),
            Some("function_call") => {
                let arguments = item.take("arguments");
                self.call(item, arguments)
            }
            Some("custom_tool_call") => {
                let input = item.string("input")?.unwrap_or_default();
                self.call(item, Some(json!({"input": input})))
            }
            Some("function_call_output" | "custom_tool_call_output") => self.result(item),
            Some("item_reference") => self.reference(item),
            Some("compaction" | "compaction_summary") => self.compaction(item),
            Some(other) => {
                let other: String = other.chars().take(40).collect();
                if self.limits.unknown_fields == UnknownFields::Refuse {
                    return Err(item.error("type", format!("`{other}` items are not read here")));
                }
                self.body.ignore(&format!("{path}({other})"));
                Ok(())
            }
        }
    }

    fn message(&mut self, mut item: Fields) -> Result<(), ApiError> {
        let role = match item.required_string("role")?.as_str() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "system" => Role::System,
            "developer" => Role::Developer,
            other => {
                let other: String = other.chars().take(40).collect();
                let reason = format!("`{other}` is not one of user, assistant, system, developer");
                return Err(item.error("role", reason));
            }
        };
        let content = item.take("content").ok_or_else(|| item.error("content", "is required"))?;
        let content = self.content(&item.path("content"), content)?;
        item.end(HARMLESS)?;
        if role != Role::Assistant {
            self.push(Message { content, ..Message::text(role, "") });
            return Ok(());
        }
        match self.assistant(|last| last.tool_calls.is_empty() && last.content == Content::None) {
            Some(message) => message.content = content,
            None => self.push(Message { content, ..Message::text(role, "") }),
        }
        Ok(())
    }

    /// The assistant's message that goes on, if it is still to be added to.
    fn assistant(&mut self, fits: impl Fn(&Message) -> bool) -> Option<&mut Message> {
        let open = self.open;
        self.read.last_mut().filter(|last| open && fits(last))
    }

    fn content(&self, path: &str, value: Value) -> Result<Content, ApiError> {
        let list = match value {
            Value::String(text) => return Ok(Content::Text(text)),
            Value::Array(list) => list,
            other => {
                let reason = format!("must be a string or an array of parts, not {}", kind(&other));
                return Err(ApiError::field(path, reason));
            }
        };
        let mut texts = self.texts(path, list)?;
        Ok(match texts.len() {
            0 | 1 => Content::Text(texts.pop().unwrap_or_default()),
            _ => Content::Parts(texts),
        })
    }

    fn texts(&self, path: &str, list: Vec<Value>) -> Result<Vec<String>, ApiError> {
        let mut texts = Vec::with_capacity(list.len());
        for (i, part) in list.into_iter().enumerate() {
            let mut part = self.body.nested(format!("{path}[{i}]"), part)?;
            let field = match part.required_string("type")?.as_str() {
                "input_text" | "output_text" | "text" | "summary_text" | "reasoning_text" => "text",
                "refusal" => "refusal",
                _ => return Err(part.error("type", TEXT_ONLY)),
            };
            texts.push(part.required_string(field)?);
            part.end(&["annotations", "logprobs", "parsed", "prompt_cache_breakpoint"])?;
        }
        Ok(texts)
    }

    /// What the model thought: as the server sealed it, or else as it stands there.
    fn reasoning(&mut self, mut item: Fields) -> Result<(), ApiError> {
        let sealed = item.string("encrypted_content")?.filter(|sealed| !sealed.is_empty());
        let mut said = |name: &str| -> Result<Vec<String>, ApiError> {
            let list = item.array(name)?.unwrap_or_default();
            self.texts(&item.path(name), list)
        };
        let (content, summary) = (said("content")?.concat(), said("summary")?.join("\n\n"));
        let opened = sealed.and_then(|sealed| {
            let opened = self.backing.seal.open(Kind::Reasoning, &sealed);
            if opened.is_none() {
                let path = item.path("encrypted_content");
                self.body.warn(format!("{path} is not by this server's key; it is left out"));
            }
            opened
        });
        item.end(HARMLESS)?;
        let thought = opened.unwrap_or(if content.is_empty() { summary } else { content });
        if thought.is_empty() {
            return Ok(());
        }
        match self.assistant(|last| last.tool_calls.is_empty() && last.content == Content::None) {
            Some(message) => message.reasoning_content.get_or_insert_default().push_str(&thought),
            None => self.push(Message {
                content: Content::None,
                reasoning_content: Some(thought),
                ..Message::text(Role::Assistant, "")
            }),
        }
        Ok(())
    }

    fn call(&mut self, mut item: Fields, arguments: Option<Value>) -> Result<(), ApiError> {
        let name = item.required_string("name")?;
        let name =
            item.string("namespace")?.map_or_else(|| name.clone(), |group| self.names.flat(&group, &name));
        let id = item.string("call_id")?.or(item.string("id")?).unwrap_or_else(tool_call_id);
        let Arguments { object: arguments, text, broken } = Arguments::read(arguments);
        if broken {
            let path = item.path("arguments");
            item.warn(format!("{path} is no JSON object; it is passed on as the chat template takes it"));
        }
        item.end(HARMLESS)?;
        let call = ToolCall { id: Some(id), name, arguments, text, broken };
        match self.assistant(|_| true) {
            Some(message) => message.tool_calls.push(call),
            None => self.push(Message {
                content: Content::None,
                tool_calls: vec![call],
                ..Message::text(Role::Assistant, "")
            }),
        }
        Ok(())
    }

    fn result(&mut self, mut item: Fields) -> Result<(), ApiError> {
        let id = item.required_string("call_id")?;
        let path = item.path("output");
        let text = match item.take("output") {
            None => String::new(),
            Some(Value::String(text)) => text,
            Some(Value::Array(list)) => self.texts(&path, list)?.join("\n"),
            // As some clients give what a tool gave them.
            Some(other) => other.to_string(),
        };
        item.end(&[HARMLESS, &["name", "success"]].concat())?;
        self.push(Message { tool_call_id: Some(id), ..Message::text(Role::Tool, text) });
        Ok(())
    }

    /// An item of an earlier response, by its id.
    fn reference(&mut self, mut item: Fields) -> Result<(), ApiError> {
        let id = item.required_string("id")?;
        let Some(past) = self.backing.past else {
            return Err(item.error("id", "this server keeps no responses; send the item itself"));
        };
        let record = past.response_of_item(&id)?;
        let Some(found) = record.as_ref().and_then(|record| record.item(&id)) else {
            let id: String = id.chars().take(80).collect();
            return Err(item.error("id", format!("Item with id '{id}' not found.")));
        };
        if found.get("type").is_some_and(|kind| kind == "item_reference") {
            return Err(item.error("id", "refers to a reference"));
        }
        let path = item.path("");
        self.item(path.trim_end_matches('.'), found.clone())
    }

    fn compaction(&mut self, mut item: Fields) -> Result<(), ApiError> {
        let sealed = item.required_string("encrypted_content")?;
        let Some(text) = self.backing.seal.open(Kind::Compaction, &sealed) else {
            return Err(item.error("encrypted_content", "is not by this server's key"));
        };
        item.end(HARMLESS)?;
        self.push(Message::text(Role::User, format!("{SUMMARY}{text}")));
        Ok(())
    }
}

/// Whether a message is the summary of a conversation that was made shorter.
pub(super) fn is_summary(message: &Message) -> bool {
    matches!(&message.content, Content::Text(text) if message.role == Role::User && text.starts_with(SUMMARY))
}

/// Items of an input as they are kept: all have a type and an id.
pub(super) fn with_ids(items: &[Value]) -> Vec<Value> {
    let one = |item: &Value| {
        let mut item = item.clone();
        if let Some(object) = item.as_object_mut() {
            complete(object);
        }
        item
    };
    items.iter().map(one).collect()
}

fn complete(item: &mut Map<String, Value>) {
    if !item.contains_key("type") {
        let kind = if item.contains_key("role") { "message" } else { "item_reference" };
        item.insert("type".into(), kind.into());
    }
    let message = item.get("type").is_some_and(|kind| kind == "message");
    if let (true, Some(Value::String(text))) = (message, item.get("content")) {
        let kind = match item.get("role").and_then(Value::as_str) {
            Some("assistant") => "output_text",
            _ => "input_text",
        };
        let part = json!([{"type": kind, "text": text}]);
        item.insert("content".into(), part);
    }
    if !item.get("id").is_some_and(Value::is_string) {
        let prefix = if message { "msg" } else { "item" };
        item.insert("id".into(), super::output::id(prefix).into());
    }
}
