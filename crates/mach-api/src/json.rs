//! Reading a body as JSON.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_path_to_error::Track;

use crate::surrogates::mend;
use crate::{ApiError, ErrorKind};

/// Parses bytes as JSON, halves of surrogate pairs as U+FFFD. Numbers too large for a double, nesting deeper than 128, keys that
/// stand twice in one object and broken syntax are errors that name the path reached. A key that stands twice means one thing to
/// a proxy that reads the first and another to a server that reads the last.
pub(crate) fn json(bytes: &[u8]) -> Result<Value, ApiError> {
    let bytes = mend(bytes);
    let mut de = serde_json::Deserializer::from_slice(&bytes);
    let (mut track, twice) = (Track::new(), RefCell::new(None));
    let value =
        Once { twice: &twice }.deserialize(serde_path_to_error::Deserializer::new(&mut de, &mut track));
    let value = value.map_err(|reason| {
        // The last segment of a path is `?` where not even a key could be read.
        let path = track.path().to_string();
        let mut path = path.trim_end_matches('?').trim_end_matches('.').to_owned();
        if let Some(key) = twice.take() {
            if !path.is_empty() {
                path.push('.');
            }
            return ApiError::field(path + &key, "the key stands more than once in its object");
        }
        if path.is_empty() {
            ApiError::new(ErrorKind::InvalidRequest, format!("the body is not valid JSON: {reason}"))
        } else {
            ApiError::field(path, format!("not valid JSON: {reason}"))
        }
    })?;
    de.end()
        .map_err(|e| ApiError::new(ErrorKind::InvalidRequest, format!("the body is not valid JSON: {e}")))?;
    Ok(value)
}

/// Reads any value whose objects hold each key once.
#[derive(Clone, Copy)]
struct Once<'a> {
    /// The first key that was met again, cut to what a message holds.
    twice: &'a RefCell<Option<String>>,
}

impl<'de> DeserializeSeed<'de> for Once<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = object.next_key::<String>()? {
            if map.contains_key(&key) {
                *self.twice.borrow_mut() = Some(key.chars().take(80).collect());
                return Err(A::Error::custom("a key stands twice"));
            }
            let value = object.next_value_seed(self)?;
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_stands_once_in_its_object() {
        for (body, path) in [
            (r#"{"a": 1, "a": 1}"#, "a"),
            (r#"{"a": null, "b": 2, "a": 3}"#, "a"),
            (r#"{"m": [{"r": 1}, {"r": 1, "c": 2, "r": 3}]}"#, "m[1].r"),
            (r#"{"t": [{"f": {"p": {"x": {}, "x": {}}}}]}"#, "t[0].f.p.x"),
            // The same key, written in two ways.
            (r#"{"ab": 1, "a\u0062": 1}"#, "ab"),
        ] {
            let error = json(body.as_bytes()).unwrap_err();
            assert_eq!(
                (error.kind, error.param.as_deref()),
                (ErrorKind::InvalidRequest, Some(path)),
                "{body}"
            );
            assert!(error.message.contains("more than once"), "{}", error.message);
        }
        for body in
            [r#"{"a": {"a": 1}, "b": [{"a": 1}, {"a": 1}]}"#, r#"{"t": "{\"a\":1,\"a\":2}", "A": 1, "a": 2}"#]
        {
            assert!(json(body.as_bytes()).is_ok(), "{body}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        let deep = format!(r#"{{"a": {}1{}}}"#, "[".repeat(200), "]".repeat(200));
        for (body, path) in [
            (r#"{"a": {"b": 1e999}}"#, Some("a.b")),
            (r#"{"a": [1, 2 3]}"#, Some("a")),
            (r#"{"a": 1"#, None),
            (r#"{"a": 1} x"#, None),
            ("", None),
        ] {
            assert_eq!(json(body.as_bytes()).unwrap_err().param.as_deref(), path, "{body}");
        }
        assert!(json(deep.as_bytes()).unwrap_err().param.unwrap().starts_with("a[0]"));
    }

    proptest! {
        /// Without keys that stand twice, every value is what `serde_json` reads, numbers to the bit, keys in their order.
        #[test]
        fn values_are_those_of_serde_json(ints in prop::collection::vec(any::<i64>(), 0..4), big in any::<u64>(),
            double in any::<f64>(), texts in prop::collection::btree_map(any::<String>(), any::<String>(), 0..5)) {
            let value = serde_json::json!({"ints": ints, "big": big, "double": double, "texts": texts,
                "more": [null, true, {"z": 1, "a": [double, -0.0, 1e300]}]});
            let text = value.to_string();
            let want: Value = serde_json::from_str(&text).unwrap();
            let got = json(text.as_bytes()).unwrap();
            prop_assert_eq!(got.to_string(), want.to_string());
            prop_assert_eq!(got, want);
        }
    }
}
