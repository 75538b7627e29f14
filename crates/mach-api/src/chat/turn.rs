//! What an assistant message says, whatever way a client writes it down.

use serde_json::Value;

use super::{Content, Message};

/// Equal for an answer and for the message that a client makes of it: the text without white space around it, the
/// calls' names and arguments whatever the order of their keys, and the reasoning if there is any. Ids are the
/// client's own affair.
pub fn turn_digest(message: &Message) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let mut field = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    match &message.content {
        Content::None => field(""),
        Content::Text(text) => field(text.trim()),
        Content::Parts(parts) => field(parts.concat().trim()),
    }
    field(message.reasoning_content.as_deref().unwrap_or_default().trim());
    for call in &message.tool_calls {
        field(&call.name);
        match &call.text {
            Some(text) if call.broken => field(text),
            _ => field(&sorted(&Value::Object(call.arguments.clone())).to_string()),
        }
    }
    *hasher.finalize().as_bytes()
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(list) => list.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::chat::{Role, ToolCall};

    #[test]
    fn order_of_keys_and_white_space_do_not_matter() {
        let call = |arguments: &Value| ToolCall {
            id: None,
            name: "f".into(),
            arguments: arguments.as_object().cloned().unwrap_or_else(Map::new),
            text: None,
            broken: false,
        };
        let with = |text: &str, arguments: &Value| {
            let mut message = Message::text(Role::Assistant, text);
            message.tool_calls = vec![call(arguments)];
            turn_digest(&message)
        };
        let one = with("a", &json!({"x": {"p": 1, "q": [2]}, "y": "z"}));
        assert_eq!(one, with(" a\n", &json!({"y": "z", "x": {"q": [2], "p": 1}})));
        assert_ne!(one, with("b", &json!({"x": {"p": 1, "q": [2]}, "y": "z"})));
        assert_ne!(one, with("a", &json!({"x": {"p": 1, "q": [3]}, "y": "z"})));
        assert_ne!(one, turn_digest(&Message::text(Role::Assistant, "a")));
    }
}
