//! Arguments of a call in the history, however they are written.

use serde_json::{Map, Value};

use crate::surrogates::mend_text;

/// Places where broken text is cut before it is given up.
const CUTS: usize = 32;
/// Brackets that may be open in it, as many as a JSON reader allows.
const DEPTH: usize = 127;

/// Arguments as far as they could be read.
#[derive(Debug, PartialEq)]
pub(crate) struct Arguments {
    /// As an object; of broken ones what could be made out.
    pub(crate) object: Map<String, Value>,
    /// As they were written, if they came as text.
    pub(crate) text: Option<String>,
    /// They are no JSON object.
    pub(crate) broken: bool,
}

impl Arguments {
    fn sound(object: Map<String, Value>, text: Option<String>) -> Self {
        Self { object, text, broken: false }
    }

    /// Reads the value of `arguments`. Nothing, `null` and empty text are no arguments.
    pub(crate) fn read(value: Option<Value>) -> Self {
        match value {
            None | Some(Value::Null) => Self::sound(Map::new(), None),
            Some(Value::Object(object)) => Self::sound(object, None),
            Some(Value::String(text)) => Self::read_text(text),
            Some(other) => Self { text: Some(other.to_string()), object: wrapped(other), broken: true },
        }
    }

    fn read_text(text: String) -> Self {
        if text.trim().is_empty() {
            return Self::sound(Map::new(), None);
        }
        let text = mend_text(&text).into_owned();
        match serde_json::from_str(&text) {
            Ok(Value::Object(object)) => Self::sound(object, Some(text)),
            Ok(Value::Null) => Self::sound(Map::new(), None),
            Ok(Value::String(inner)) => match serde_json::from_str(&inner) {
                // Encoded twice.
                Ok(Value::Object(object)) => Self::sound(object, Some(inner)),
                _ => Self { object: wrapped(inner.into()), text: Some(text), broken: true },
            },
            Ok(other) => Self { object: wrapped(other), text: Some(text), broken: true },
            Err(_) => {
                let object = completed(&text).unwrap_or_else(|| wrapped(text.as_str().into()));
                Self { object, text: Some(text), broken: true }
            }
        }
    }
}

/// What is no object, as one.
fn wrapped(value: Value) -> Map<String, Value> {
    Map::from_iter([("arguments".to_owned(), value)])
}

/// The object that text cut off in the middle began: strings and brackets are closed, and what cannot be read at the end is
/// left out.
fn completed(text: &str) -> Option<Map<String, Value>> {
    // Where the text can end, with what is open there.
    let mut ends: Vec<(usize, Vec<char>)> = Vec::new();
    let (mut open, mut inside, mut escaped) = (Vec::new(), false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if inside => escaped = true,
            '"' => inside = !inside,
            _ if inside => {}
            '{' | '[' if open.len() >= DEPTH => return None,
            '{' | '[' => {
                open.push(if c == '{' { '}' } else { ']' });
                ends.push((at + 1, open.clone()));
            }
            '}' | ']' if open.pop() != Some(c) => return None,
            ',' => ends.push((at, open.clone())),
            _ => {}
        }
        if ends.len() > CUTS {
            // The first stays: it is the empty object.
            ends.remove(1);
        }
    }
    if open.is_empty() {
        return None;
    }
    let mut whole = text.to_owned();
    if inside {
        // An escape that was cut goes as well.
        let cut = text.rfind('\\').filter(|at| escaped || is_cut_escape(text.get(*at..).unwrap_or_default()));
        whole.truncate(cut.unwrap_or(whole.len()));
        whole.push('"');
    }
    let close = |text: &str, open: &[char]| {
        let closed: String = text.chars().chain(open.iter().rev().copied()).collect();
        match serde_json::from_str(&mend_text(&closed)) {
            Ok(Value::Object(object)) => Some(object),
            _ => None,
        }
    };
    close(&whole, &open).or_else(|| {
        ends.iter().rev().find_map(|(end, open)| close(text.get(..*end).unwrap_or_default(), open))
    })
}

/// Whether text that begins with a backslash is an escape `\uXXXX` without all of its digits.
fn is_cut_escape(text: &str) -> bool {
    text.strip_prefix("\\u")
        .is_some_and(|digits| digits.len() < 4 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> (Value, bool) {
        let arguments = Arguments::read(Some(text.into()));
        (arguments.object.into(), arguments.broken)
    }

    #[test]
    fn sound_arguments_are_objects() {
        for (text, want) in [
            ("{\"a\": 1}", json!({"a": 1})),
            ("", json!({})),
            (" \n", json!({})),
            ("null", json!({})),
            ("{\"a\": \"\\ud83e\"}", json!({"a": "\u{fffd}"})),
            ("\"{\\\"a\\\": 1}\"", json!({"a": 1})),
        ] {
            assert_eq!(read(text), (want, false), "{text}");
        }
        assert_eq!(Arguments::read(None), Arguments::sound(Map::new(), None));
        assert_eq!(Arguments::read(Some(json!({"a": 1}))).object, *json!({"a": 1}).as_object().unwrap());
    }

    #[test]
    fn of_broken_ones_what_can_be_made_out_is_kept() {
        for (text, want) in [
            ("{\"path\": \"/sr", json!({"path": "/sr"})),
            ("{", json!({})),
            ("{\"pa", json!({})),
            ("{\"path\"", json!({})),
            ("{\"path\":", json!({})),
            ("{\"a\": 1, \"b\": tr", json!({"a": 1})),
            ("{\"a\": [1, {\"b\": \"x\\", json!({"a": [1, {"b": "x"}]})),
            ("{\"a\": \"x\\u00", json!({"a": "x"})),
            ("{\"a\": \"x\\ud83e", json!({"a": "x\u{fffd}"})),
            ("{\"a\": [1, 2", json!({"a": [1, 2]})),
            ("{\"a\": {\"b\": 1}", json!({"a": {"b": 1}})),
            ("{\"path\": \"the \"big\" one\"}", json!({"arguments": "{\"path\": \"the \"big\" one\"}"})),
            ("[\"/srv\"]", json!({"arguments": ["/srv"]})),
            ("3", json!({"arguments": 3})),
            ("\"x\"", json!({"arguments": "x"})),
            ("ls -l", json!({"arguments": "ls -l"})),
            ("{]", json!({"arguments": "{]"})),
            (&"{\"a\":[".repeat(200), json!({"arguments": "{\"a\":[".repeat(200)})),
        ] {
            assert_eq!(read(text), (want, true), "{text}");
        }
        let list = Arguments::read(Some(json!([1])));
        assert_eq!((list.text.as_deref(), list.broken), (Some("[1]"), true));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in r#"[{}\[\]",:\\u0-9a-f é]{0,40}"#) {
            let arguments = Arguments::read(Some(text.as_str().into()));
            prop_assert!(!arguments.broken || arguments.text.as_deref() == Some(text.as_str())
                || arguments.text.is_some_and(|text| text.contains("fffd")));
        }

        /// However sound arguments are cut, what is made out was said.
        #[test]
        fn a_cut_keeps_what_was_whole(a in "[a-z\"\\\\é😀]{0,8}", b in any::<i32>(), cut in 1usize..60) {
            let whole = json!({"first": a, "list": [b, {"deep": a}], "last": true});
            let text = whole.to_string();
            let cut = (0..=cut.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            let made_out = Value::from(Arguments::read(Some(text[..cut.max(1)].into())).object);
            for (key, value) in made_out.as_object().unwrap() {
                if key == "first" {
                    prop_assert!(a.starts_with(value.as_str().unwrap()));
                } else {
                    prop_assert!(whole.get(key).is_some(), "{key}");
                }
            }
        }
    }
}
