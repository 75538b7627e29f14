//! Items of an answer.

use serde_json::{Value, json};

use super::seal::{Kind, Seal};
use super::tools::Names;
use crate::chat::TokenLogprob;

/// An id: what it is of, and a random part.
pub(super) fn id(prefix: &str) -> String {
    format!("{prefix}_{}", uuid::Uuid::new_v4().simple())
}

/// How far an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    InProgress,
    Completed,
    Incomplete,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
        }
    }
}

/// How what the model thought is shown.
#[derive(Debug, Clone, Default)]
pub(super) struct Thoughts {
    /// As a summary, which was asked for: the thoughts themselves.
    pub(super) summary: bool,
    /// Sealed as well, for clients that send back nothing else.
    pub(super) sealed: bool,
}

impl Thoughts {
    /// A part of the item.
    pub(super) fn part(&self, text: &str) -> Value {
        json!({"type": if self.summary { "summary_text" } else { "reasoning_text" }, "text": text})
    }

    /// The item; without its parts while nothing is thought yet.
    pub(super) fn item(&self, id: &str, text: Option<&str>, status: Status, seal: &Seal) -> Value {
        let parts = text.map(|text| vec![self.part(text)]).unwrap_or_default();
        let (summary, content) = if self.summary { (parts, Vec::new()) } else { (Vec::new(), parts) };
        let sealed = text.filter(|_| self.sealed).map(|text| seal.close(Kind::Reasoning, text));
        json!({
            "id": id, "type": "reasoning", "summary": summary, "content": content,
            "encrypted_content": sealed, "status": status.name(),
        })
    }
}

/// A part of a message.
pub(super) fn text_part(text: &str, logprobs: &[TokenLogprob]) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
}

/// A message; without its part while nothing is said yet.
pub(super) fn message(id: &str, part: Option<Value>, status: Status) -> Value {
    let content: Vec<Value> = part.into_iter().collect();
    json!({"id": id, "type": "message", "role": "assistant", "status": status.name(), "content": content})
}

/// A call.
pub(super) fn call(
    id: &str,
    call_id: &str,
    name: &str,
    names: &Names,
    arguments: &str,
    status: Status,
) -> Value {
    let (group, name) = names.original(name);
    let mut item = json!({
        "id": id, "type": "function_call", "call_id": call_id, "name": name, "arguments": arguments,
        "status": status.name(),
    });
    if let (Some(item), Some(group)) = (item.as_object_mut(), group) {
        item.insert("namespace".into(), group.into());
    }
    item
}
