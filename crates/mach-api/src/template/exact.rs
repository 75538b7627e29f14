//! JSON text as values of a template, every number with all its digits.

use minijinja::Value;
use serde_json::Value as Json;

use super::python::number;

/// Reads JSON as Python's `json.loads` does: integers of any size, and what no double holds is infinite.
pub(super) fn value(text: &str) -> Result<Value, serde_json::Error> {
    let mut mark = String::from("number:");
    while text.contains(&mark) {
        mark.insert(0, '-');
    }
    match marked(text, &mark) {
        Some(marked) => Ok(convert(&serde_json::from_str(&marked)?, Some(&mark))),
        None => Ok(convert(&serde_json::from_str(text)?, None)),
    }
}

/// A parsed value.
pub(super) fn json(value: &Json) -> Value {
    convert(value, None)
}

/// A parsed object.
pub(super) fn object(map: &serde_json::Map<String, Json>) -> Value {
    Value::from_pairs(map.iter().map(|(key, item)| (key.as_str(), json(item))))
}

fn convert(value: &Json, mark: Option<&str>) -> Value {
    match value {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            (None, None) => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => match mark.and_then(|mark| text.strip_prefix(mark)) {
            Some("-0") => Value::from(0),
            Some(literal) if is_integer(literal) => number::integer(literal),
            Some(literal) => Value::from(literal.parse().unwrap_or(f64::NAN)),
            None => Value::from(text.as_str()),
        },
        Json::Array(list) => list.iter().map(|item| convert(item, mark)).collect(),
        Json::Object(map) => {
            Value::from_pairs(map.iter().map(|(key, item)| (key.as_str(), convert(item, mark))))
        }
    }
}

/// The text with numbers that a parser would round written as strings that begin with `mark`; `None` without such.
fn marked(text: &str, mark: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = String::new();
    let (mut at, mut copied, mut inside) = (0, 0, false);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' if inside => at += 1,
            b'"' => inside = !inside,
            b'-' | b'0'..=b'9' if !inside => {
                let len = bytes
                    .get(at..)
                    .unwrap_or_default()
                    .iter()
                    .take_while(|b| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
                    .count();
                let literal = text.get(at..at + len).unwrap_or_default();
                if is_lost(literal) {
                    out.push_str(text.get(copied..at).unwrap_or_default());
                    out.push_str(&format!("\"{mark}{literal}\""));
                    copied = at + len;
                }
                at += len - 1;
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return None;
    }
    out.push_str(text.get(copied..).unwrap_or_default());
    Some(out)
}

/// Whether a literal is a number of JSON that would not come out as it is.
fn is_lost(literal: &str) -> bool {
    if is_integer(literal) {
        return literal == "-0" || (literal.parse::<i64>().is_err() && literal.parse::<u64>().is_err());
    }
    literal.parse::<f64>().is_ok_and(f64::is_infinite)
        && serde_json::from_str::<serde::de::IgnoredAny>(literal).is_ok()
}

fn is_integer(literal: &str) -> bool {
    let digits = literal.strip_prefix('-').unwrap_or(literal);
    !digits.is_empty()
        && digits.bytes().all(|b| b.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::template::python::text;

    #[test]
    fn numbers_keep_their_digits() {
        for (json, want) in [
            ("12345678901234567890123", "12345678901234567890123"),
            ("[18446744073709551616, -9223372036854775809]", "[18446744073709551616, -9223372036854775809]"),
            ("-0", "0"),
            ("[-0.0, 1e400, -1E999, 1e16, 0.1]", "[-0.0, inf, -inf, 1e+16, 0.1]"),
            (
                r#"{"a\"1": "number:99999999999999999999", "b": 99999999999999999999}"#,
                r#"{'a"1': 'number:99999999999999999999', 'b': 99999999999999999999}"#,
            ),
        ] {
            assert_eq!(text::str(&value(json).unwrap()), want);
        }
        for broken in ["01", "--1", "99999999999999999999999 9", "1e", "[00000000000000000000000000]", "-"] {
            assert!(value(broken).is_err(), "{broken}");
        }
    }

    proptest! {
        #[test]
        fn what_is_json_stays_json(text in r#"[\[\]{}",:0-9e.+\\a -]{0,24}"#) {
            let strict = serde_json::from_str::<Json>(&text);
            let exact = value(&text);
            if strict.is_ok() {
                prop_assert!(exact.is_ok());
            } else if let Ok(exact) = exact {
                // Only what a double cannot hold is read that would not be otherwise.
                prop_assert!(super::super::python::text::str(&exact).contains("inf"));
            }
        }
    }
}
