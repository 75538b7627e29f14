//! What requests take in memory, told before they take it: as JSON, and as what is made of it.

use serde_json::{Map, Value};

use crate::Message;
use crate::chat::Content;

/// Bytes that a JSON value takes beside its text, its place in a growing list and in the lists that it is copied into included.
pub const OF_VALUE: usize = 320;

/// Bytes of a text while it is parsed: itself, mended or unescaped, and its copy.
const OF_TEXT: usize = 3;

/// The most bytes that parsing a JSON text takes, its result included. Looks at the text once and makes nothing.
pub fn of_json(text: &[u8]) -> usize {
    values(text).saturating_mul(OF_VALUE).saturating_add(text.len().saturating_mul(OF_TEXT))
}

/// Values of a JSON text, at most. Looks at the text once, as [`of_json`] does: what separates and opens. Inside of strings that counts where the string is JSON itself, which the
/// arguments of a call are.
pub fn values(text: &[u8]) -> usize {
    let (mut found, mut at, mut named) = (1, 0, false);
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => {
                let rest = text.get(at + 1..).unwrap_or_default();
                let (len, escapes) = string(rest);
                let inside = rest.get(..len).unwrap_or_default();
                if named {
                    found += inside.iter().filter(|byte| opens(**byte)).count();
                }
                // A name may be written in escapes.
                named = inside == b"arguments" || escapes;
                at += len + 1;
            }
            b':' | b' ' | b'\t' | b'\n' | b'\r' => {}
            byte => {
                found += usize::from(opens(*byte));
                named = false;
            }
        }
        at += 1;
    }
    found
}

fn opens(byte: u8) -> bool {
    matches!(byte, b',' | b'[' | b'{')
}

/// Bytes up to the end of a string, and whether there are escapes among them.
fn string(text: &[u8]) -> (usize, bool) {
    let (mut at, mut escapes) = (0, false);
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => break,
            b'\\' => {
                escapes = true;
                at += 1;
            }
            _ => {}
        }
        at += 1;
    }
    (at.min(text.len()), escapes)
}

/// How much of something there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weight {
    /// Bytes of its texts.
    pub bytes: usize,
    /// Values that hold them.
    pub values: usize,
}

impl Weight {
    /// Of texts and values of JSON, names included.
    pub fn of_json(value: &Value) -> Self {
        let mut sum = Self::default();
        let mut open = vec![value];
        while let Some(value) = open.pop() {
            sum.values += 1;
            match value {
                Value::String(text) => sum.bytes += text.len(),
                Value::Array(list) => open.extend(list),
                Value::Object(map) => {
                    sum.bytes += map.keys().map(String::len).sum::<usize>();
                    open.extend(map.values());
                }
                _ => {}
            }
        }
        sum
    }

    /// Of what a template is given.
    pub fn of_chat(messages: &[Message], tools: &[Value], kwargs: &Map<String, Value>) -> Self {
        let messages = messages.iter().map(Self::of_message);
        let rest = tools.iter().chain(kwargs.values()).map(Self::of_json);
        messages.chain(rest).fold(Self::default(), Self::plus)
    }

    fn of_message(message: &Message) -> Self {
        let mut sum = Self { bytes: said(&message.content), values: 4 };
        if let Content::Parts(parts) = &message.content {
            sum.values += parts.len();
        }
        for text in [&message.reasoning_content, &message.name, &message.tool_call_id].into_iter().flatten() {
            // Templates know reasoning by several names.
            sum = sum.plus(Self { bytes: text.len(), values: 4 });
        }
        for call in &message.tool_calls {
            let arguments = call.arguments.values().map(Self::of_json).fold(Self::default(), Self::plus);
            let text = call.text.as_ref().map_or(0, String::len);
            sum = sum.plus(arguments).plus(Self { bytes: call.name.len() + text, values: 6 });
        }
        sum
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, values: self.values + other.values }
    }

    /// Bytes that it takes in memory.
    pub fn memory(self) -> usize {
        self.bytes.saturating_add(self.values.saturating_mul(OF_VALUE))
    }
}

/// Bytes that a message says.
pub fn said(content: &Content) -> usize {
    match content {
        Content::None => 0,
        Content::Text(text) => text.len(),
        Content::Parts(parts) => parts.iter().map(String::len).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_outside_of_strings() {
        for (text, want) in [
            ("1", 1),
            ("[]", 2),
            ("[1,2]", 3),
            (r#"{"a":{"b":[]},"c,[{":"\",["}"#, 5),
            ("not, json", 2),
            (r#"{"arguments": "{\"a\": [1, 2]}", "b": "[,"}"#, 6),
            (r#"{"\u0061rguments":"[[["}"#, 5),
            (r#""open \"#, 1),
        ] {
            assert_eq!(values(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn every_value_is_counted_before_it_is_parsed() {
        for text in [r#"{"a":[1,{"b":[[],[[]]]},"x"],"c":null}"#, "[[[[]]],{},{}]", r#""a""#] {
            let weight = Weight::of_json(&serde_json::from_str(text).unwrap());
            assert!(values(text.as_bytes()) >= weight.values, "{text}");
        }
    }
}
