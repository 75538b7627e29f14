//! Reading a JSON object field by field, so that every complaint names its path.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::rc::Rc;

use serde_json::{Map, Value};

use crate::notes::{Notes, UnknownFields};
use crate::{ApiError, ErrorKind};

/// What a JSON value is, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// An object being taken apart. `null` counts as absent.
pub(crate) struct Fields {
    path: String,
    map: Map<String, Value>,
    unknown: UnknownFields,
    /// Shared by all objects of a body.
    notes: Rc<RefCell<Notes>>,
}

impl Fields {
    /// Wraps the body itself.
    pub(crate) fn body(value: Value, unknown: UnknownFields) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { path: String::new(), map, unknown, notes: Rc::default() }),
            other => {
                let message = format!("the body must be a JSON object, not {}", kind(&other));
                Err(ApiError::new(ErrorKind::InvalidRequest, message))
            }
        }
    }

    /// Wraps an object of the same body, found at `path`.
    pub(crate) fn nested(&self, path: impl Into<String>, value: Value) -> Result<Self, ApiError> {
        let path = path.into();
        match value {
            Value::Object(map) => {
                Ok(Self { path, map, unknown: self.unknown, notes: Rc::clone(&self.notes) })
            }
            other => Err(ApiError::field(path, format!("must be an object, not {}", kind(&other)))),
        }
    }

    /// Ends an object: fields that were not taken and are not `harmless` are noted, or refused where that was asked
    /// for. `null` and empty lists ask for nothing.
    pub(crate) fn end(self, harmless: &[&str]) -> Result<(), ApiError> {
        for (name, value) in &self.map {
            let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
            if empty || harmless.contains(&name.as_str()) {
                continue;
            }
            let name: String = name.chars().take(80).collect();
            match self.unknown {
                UnknownFields::Ignore => self.notes.borrow_mut().ignore(&self.path(&name)),
                UnknownFields::Refuse => return Err(self.error(&name, "unrecognized request field")),
            }
        }
        Ok(())
    }

    /// Notes a part of the body that is left out.
    pub(crate) fn ignore(&self, path: &str) {
        self.notes.borrow_mut().ignore(path);
    }

    /// Notes something that was let pass.
    pub(crate) fn warn(&self, text: impl Into<String>) {
        self.notes.borrow_mut().warn(text.into());
    }

    /// The notes of the body, by this and all nested objects, also those still to come.
    pub(crate) fn shared_notes(&self) -> Rc<RefCell<Notes>> {
        Rc::clone(&self.notes)
    }

    /// Whether the field is there, be it `null`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// A field that is still there.
    pub(crate) fn peek(&self, name: &str) -> Option<&Value> {
        self.map.get(name)
    }

    /// Puts a field in its place.
    pub(crate) fn put(&mut self, name: &str, value: Value) {
        self.map.insert(name.to_owned(), value);
    }

    /// The path of a field.
    pub(crate) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// A complaint about a field.
    pub(crate) fn error(&self, name: &str, reason: impl AsRef<str>) -> ApiError {
        ApiError::field(self.path(name), reason)
    }

    /// Removes a field; `null` is absent.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|v| !v.is_null())
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.error(name, format!("must be a string, not {}", kind(&other)))),
        }
    }

    pub(crate) fn required_string(&mut self, name: &str) -> Result<String, ApiError> {
        self.string(name)?.ok_or_else(|| self.error(name, "is required"))
    }

    pub(crate) fn bool(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(b)),
            Some(other) => Err(self.error(name, format!("must be a boolean, not {}", kind(&other)))),
        }
    }

    pub(crate) fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(a)) => Ok(Some(a)),
            Some(other) => Err(self.error(name, format!("must be an array, not {}", kind(&other)))),
        }
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(o)) => Ok(Some(o)),
            Some(other) => Err(self.error(name, format!("must be an object, not {}", kind(&other)))),
        }
    }

    pub(crate) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        integer(&self.path(name), &value, range).map(Some)
    }

    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        number(&self.path(name), &value, range).map(Some)
    }
}

/// An integer in a range. `3.0` is an integer, as in Python's JSON readers; `3.5` and `true` are not.
pub(crate) fn integer(path: &str, value: &Value, range: RangeInclusive<i64>) -> Result<i64, ApiError> {
    let Value::Number(n) = value else {
        return Err(ApiError::field(path, format!("must be an integer, not {}", kind(value))));
    };
    let whole = n.as_i64().or_else(|| {
        let f = n.as_f64()?;
        // Beyond 2^53 a double no longer names one integer.
        (f.fract() == 0.0 && f.abs() <= 9_007_199_254_740_992.0).then_some(f as i64)
    });
    match whole {
        Some(i) if range.contains(&i) => Ok(i),
        None if n.as_f64().is_some_and(|f| f.fract() != 0.0) => {
            Err(ApiError::field(path, format!("must be an integer, not {n}")))
        }
        _ => Err(ApiError::field(
            path,
            format!("must be between {} and {}, got {n}", range.start(), range.end()),
        )),
    }
}

/// A finite number in a range.
pub(crate) fn number(path: &str, value: &Value, range: RangeInclusive<f64>) -> Result<f32, ApiError> {
    let Value::Number(n) = value else {
        return Err(ApiError::field(path, format!("must be a number, not {}", kind(value))));
    };
    match n.as_f64() {
        Some(f) if range.contains(&f) => Ok(f as f32),
        _ => Err(ApiError::field(
            path,
            format!("must be between {} and {}, got {n}", range.start(), range.end()),
        )),
    }
}
